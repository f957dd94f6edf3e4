"""The node as its operator sees it: start, stop, refusals, health, metrics. Nothing of this is the reference's."""

import contextlib
import itertools
import os
import re
import signal
import struct
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

import pytest

from harness import brokers, places, wire

pytestmark = pytest.mark.flumen_only


def get(broker, path) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{broker.admin_port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def received_bytes(broker) -> int:
    """What the node has taken of all that clients sent it."""
    return int(re.search(r"^flumen_received_bytes_total (\d+)$", get(broker, "/metrics")[1], re.MULTILINE)[1])


def refused(*arguments, environment=None) -> str:
    """Starts a node that must not start; returns what it said."""
    done = subprocess.run(
        [places.node_binary(), *arguments], capture_output=True, timeout=30, stdin=subprocess.DEVNULL,
        env=os.environ | (environment or {}), text=True,
    )  # fmt: skip
    assert done.returncode not in (0, 101) and done.returncode > 0, done
    return done.stdout + done.stderr


def test_ready_is_said_in_one_line(own_broker):
    broker = own_broker()
    assert broker.logs("ready in ")
    (line,) = [line for line in broker.log_text().splitlines() if broker.address in line and "ready" in line]
    for part in (str(broker.admin_port), str(broker.data), "shards"):
        assert part in line
    assert re.search(r"ready in \d+ ms\b", line), "no start-up time"


def test_health_and_metrics(own_broker):
    broker = own_broker()
    with wire.Connection(broker.port) as connection:
        assert wire.create_topic(connection, "metered", 3)[0] == wire.NONE
        for n in range(10):
            answer = wire.produce(connection, [("metered", 0, wire.Batch([b"x" * 1000]).encode())])
            assert answer == [(wire.NONE, n)]
    assert get(broker, "/livez")[0] == 200
    assert get(broker, "/readyz")[0] == 200
    assert get(broker, "/nothing")[0] == 404
    status, text = get(broker, "/metrics")
    assert status == 200
    assert re.search(r'^flumen_\w+\{[^}]*api="Produce"[^}]*\} 1[01]', text, re.MULTILINE), text
    for word in ("received_bytes", "sent_bytes", "partitions", "commit_cycles", "journal_sync_seconds", "journal", "cache", "stall"):
        assert re.search(rf"^flumen_\w*{word}\w*", text, re.MULTILINE), f"nothing of {word} in\n{text}"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_clean_stop(own_broker, how):
    """Status 0, and all is there again, also what was never answered with a sync by itself."""
    broker = own_broker()
    with wire.Connection(broker.port) as connection:
        assert wire.create_topic(connection, "stopped", 2)[0] == wire.NONE
        wire.produce(connection, [("stopped", 0, wire.Batch([b"%d" % n for n in range(50)]).encode())])
        broker.process.send_signal(how)
        assert broker.process.wait(30) == 0, broker.log_tail()
        broker.process = None
    broker.start()
    with wire.Connection(broker.port) as connection:
        assert wire.fetch(connection, "stopped", 0)[:2] == (wire.NONE, 50)


def described(connection, names, create: bool = True) -> list[tuple[int, str, bool, int]]:
    """Metadata of topics, which it may create: error, name, internal or not, number of partitions."""
    body = wire.array([wire.string(name) for name in names]) + struct.pack(">?", create)
    answer = connection.call(wire.METADATA, 4, body)
    answer.take("i")
    for _ in range(answer.take("i")):
        answer.take("i"), answer.string(), answer.take("i"), answer.string()
    answer.string(), answer.take("i")
    out = []
    for _ in range(answer.take("i")):
        code, name, internal = answer.take("h"), answer.string(), answer.take("b") != 0
        partitions = answer.take("i")
        for _ in range(partitions):
            answer.take("h"), answer.take("i"), answer.take("i")
            for _ in range(2):
                for _ in range(answer.take("i")):
                    answer.take("i")
        out.append((code, name, internal, partitions))
    return out


def topic_error(connection, topic) -> int:
    """What Metadata says of a topic."""
    ((code, *_),) = described(connection, [topic], create=False)
    return code


def test_what_one_shard_shows_every_shard_knows(own_broker):
    """A topic that a client has learnt of over one connection is known over every other from then on, and served."""
    broker = own_broker()
    with contextlib.ExitStack() as held:
        # Which shard has a connection is the kernel's choice: of so many, each has some.
        connections = [held.enter_context(wire.Connection(broker.port)) for _ in range(12)]
        creator = held.enter_context(wire.Connection(broker.port))
        names = [f"seen-{n}" for n in range(150)]

        def create():
            for name in names:
                assert wire.create_topic(creator, name, 8)[0] == wire.NONE

        creating = threading.Thread(target=create)
        creating.start()
        held.callback(creating.join)
        for name in names:
            seen = next(one for one in itertools.cycle(connections) if topic_error(one, name) == wire.NONE)
            assert {topic_error(one, name) for one in connections} == {wire.NONE}, name
            body = wire.fetch_body(name, [(partition, 0) for partition in range(8)], max_wait_ms=0, min_bytes=0)
            read = wire.read_fetch(seen.call(wire.FETCH, 4, body))
            assert {code for code, _, _ in read.values()} == {wire.NONE}, name


def test_a_topic_that_is_named_often_is_described_once(own_broker):
    """However often: what is asked for with few bytes must not take much memory."""
    broker = own_broker()
    with wire.Connection(broker.port) as connection:
        assert wire.create_topic(connection, "often", 1000)[0] == wire.NONE
        assert described(connection, ["often"] * 200_000) == [(wire.NONE, "often", False, 1000)]
        many = described(connection, [f"new-{n}" for n in range(20_000)])
        assert len(many) == 20_000 and many[0][1] == "new-0"


def test_the_topic_of_offsets_is_made_as_it_must_be_whoever_asks_first(own_broker):
    """A lag monitor may, before any group: an ordinary topic in its place would forget what groups commit."""
    broker = own_broker()
    offsets = "__consumer_offsets"
    with wire.Connection(broker.port) as connection:
        assert described(connection, [offsets]) == [(wire.NONE, offsets, True, 50)]
        settings = wire.describe_configs(connection, wire.TOPIC, offsets)
        assert settings["cleanup.policy"][0] == "compact"
        # Its partitions stay as many: a group's is found by their number.
        more = wire.string(offsets) + struct.pack(">i", 60) + struct.pack(">i", -1)
        answer = connection.call(wire.CREATE_PARTITIONS, 0, wire.array([more]) + struct.pack(">i?", 10_000, False))
        answer.take("i"), answer.take("i"), answer.string()
        assert answer.take("h") == wire.INVALID_REQUEST


def test_a_topic_with_the_longest_name_comes_and_goes(own_broker):
    """Its directory's name leaves no room for what a deleted one is called."""
    broker = own_broker()
    name = "x" * 249
    batch = wire.Batch([b"of the last one"]).encode()
    with wire.Connection(broker.port) as connection:
        for _ in range(2):
            wire.create_served_topic(connection, name, 2)
            assert wire.produce(connection, [(name, n, batch) for n in range(2)]) == [(wire.NONE, 0)] * 2
            assert wire.delete_topic(connection, name) == wire.NONE
        wire.create_served_topic(connection, name, 2)
        assert wire.produce(connection, [(name, n, batch) for n in range(2)]) == [(wire.NONE, 0)] * 2
    broker.kill()
    broker.start()
    with wire.Connection(broker.port) as connection:
        assert all(b"of the last one" in wire.fetch(connection, name, 0, partition)[2] for partition in range(2))


def test_a_cleaner_that_never_rests_holds_up_nobody(own_broker):
    broker = own_broker(settings={"log.cleaner.backoff.ms": "0"})
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, "compacted", 4, {"cleanup.policy": "compact"})
    # On each shard.
    assert all(wire.answers(broker.port) for _ in range(40))
    assert broker.stop() == 0


def test_stop_with_clients_that_wait(own_broker):
    """A parked fetch and an idle connection do not hold it up."""
    broker = own_broker()
    with wire.Connection(broker.port) as parked, wire.Connection(broker.port):
        assert wire.create_topic(parked, "parked")[0] == wire.NONE
        before = received_bytes(broker)
        parked.send(wire.FETCH, 4, wire.fetch_body("parked", [(0, 0)], max_wait_ms=600_000))
        deadline = time.monotonic() + 10
        while received_bytes(broker) == before:
            assert time.monotonic() < deadline, "the fetch does not arrive"
            time.sleep(0.01)
        began = time.monotonic()
        assert broker.stop() == 0
        assert time.monotonic() - began < 10


def test_second_node_on_the_same_folder(own_broker):
    broker = own_broker()
    ports = brokers.free_ports(3)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    said = refused(
        "--data-dir", str(broker.data), "--kafka-addr", addresses[0], "--admin-addr", addresses[1],
        "--cluster-addr", addresses[2],
    )  # fmt: skip
    assert str(broker.data) in said and re.search(r"lock|in use|another", said)
    assert wire.answers(broker.port)


def test_address_in_use(own_broker):
    broker = own_broker()
    with tempfile.TemporaryDirectory() as folder:
        admin, cluster = brokers.free_ports(2)
        said = refused(
            "--data-dir", folder, "--kafka-addr", broker.address, "--admin-addr", f"127.0.0.1:{admin}",
            "--cluster-addr", f"127.0.0.1:{cluster}",
        )  # fmt: skip
    assert broker.address in said
    assert wire.answers(broker.port)


def test_wrong_settings():
    said = refused("--set", "num.partition=3")
    assert "num.partition" in said and "num.partitions" in said
    assert "num.partitions" in refused("--set", "num.partitions=three")
    assert "memory" in refused("--memory", "lots")
    assert "num.partitions" in refused(environment={"FLUMEN_SET_NUM_PARTITIONS": "three"})


def test_settings_come_from_everywhere(own_broker, tmp_path):
    """Flags override the environment, which overrides the file."""
    file = tmp_path / "flumen.toml"
    file.write_text('node-id = 7\n[set]\n"num.partitions" = 3\n"log.retention.ms" = 1000000\n')
    broker = own_broker(settings={"num.partitions": "5"}, arguments=("--config", str(file)))
    with wire.Connection(broker.port) as connection:
        assert wire.create_topic(connection, "by-default", -1, -1)[0] == wire.NONE
        answer = connection.call(wire.METADATA, 1, wire.array([wire.string("by-default")]))
        assert (answer.take("i"), answer.take("i")) == (1, 7), "one broker, number 7"
    partitions = sorted(path.name for path in broker.data.glob("by-default-*"))
    assert partitions == [f"by-default-{n}" for n in range(5)]


def test_memory_file_system():
    """It works there too; where direct I/O is missing (tmpfs of older kernels), it says so."""
    with brokers.Flumen(folder="/dev/shm") as broker, wire.Connection(broker.port) as connection:
        assert wire.create_topic(connection, "buffered")[0] == wire.NONE
        assert wire.produce(connection, [("buffered", 0, wire.Batch([b"x"]).encode())]) == [(wire.NONE, 0)]
        assert has_direct_io("/dev/shm") or broker.logs("O_DIRECT")


def has_direct_io(folder) -> bool:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            os.close(os.open(file.name, os.O_RDWR | os.O_DIRECT))
            return True
        except OSError:
            return False


def unmount(place):
    """The kernel closes the files of an io_uring some time after its process has ended."""
    deadline = time.monotonic() + 30
    while (done := subprocess.run(["umount", place], capture_output=True, text=True)).returncode != 0:
        assert "busy" in done.stderr and time.monotonic() < deadline, done.stderr
        time.sleep(0.05)


@contextlib.contextmanager
def small_file_system(folder, mib):
    """An ext4 of its own on a file. Needs root and a loop device; without them this test fails, and says why."""
    image, place = folder / "image", folder / "mounted"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(mib << 20)
    places.run(["mkfs.ext4", "-q", "-F", image])
    places.run(["mount", "-o", "loop", image, place])
    try:
        yield place
    finally:
        unmount(place)


def test_full_disk(tmp_path):
    """KAFKA_STORAGE_ERROR to producers, reads go on, and it recovers when space is back."""
    with small_file_system(tmp_path, 2048) as place, brokers.Flumen(folder=str(place)) as broker:
        with wire.Connection(broker.port, timeout_s=60) as connection:
            assert wire.create_topic(connection, "full")[0] == wire.NONE
            filler = place / "filler"
            fill_up(filler, place, leave=48 << 20)
            batch = wire.Batch([os.urandom(900_000)]).encode()
            codes = []
            for _ in range(200):
                codes.append(wire.produce(connection, [("full", 0, batch)])[0][0])
                if codes[-1] != wire.NONE:
                    break
            assert codes[-1] == wire.KAFKA_STORAGE_ERROR
            written = codes.count(wire.NONE)
            for offset in (0, written - 1):
                assert wire.fetch(connection, "full", offset)[:2] == (wire.NONE, written)
            assert broker.running()
            filler.unlink()
            deadline = time.monotonic() + 30
            while (answer := wire.produce(connection, [("full", 0, batch)])[0])[0] != wire.NONE:
                assert time.monotonic() < deadline, f"still {answer} with space on the disk"
                time.sleep(0.2)
            assert answer == (wire.NONE, written)
        assert broker.stop() == 0
        broker.start()
        with wire.Connection(broker.port) as connection:
            assert wire.fetch(connection, "full", written)[:2] == (wire.NONE, written + 1)


def fill_up(filler, place, leave):
    with open(filler, "wb") as file:
        free = os.statvfs(place)
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - leave)
