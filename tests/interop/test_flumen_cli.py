"""`flumen`, the command, against this node and against Apache Kafka in the same way; in a pipe and on a terminal."""

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import termios
import threading
import time

import pytest

from harness import brokers, places, wire

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
FIND_COORDINATOR, CREATE_TOPICS, DESCRIBE_CLUSTER = 10, 19, 60


@pytest.fixture(scope="module", params=["flumen", "kafka"])
def broker(request):
    """One broker of each kind, whatever `--peer` says: the command must work against both."""
    with brokers.BROKERS[request.param]() as one:
        yield one
        assert one.running(), "the broker ended during the suite"


class Done:
    """How a run of the command ended."""

    def __init__(self, done: subprocess.CompletedProcess):
        self.status, self.out, self.err = done.returncode, done.stdout, done.stderr.decode()

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self):
        return json.loads(self.out)


def command(broker, *arguments) -> list[str]:
    address = [] if broker is None else ["-b", broker.address]
    return [str(places.cli_binary()), *address, *map(str, arguments)]


def run(broker, *arguments, input: bytes = b"", timeout_s: float = 60) -> Done:
    done = subprocess.run(command(broker, *arguments), input=input, capture_output=True, timeout=timeout_s)
    return Done(done)


def good(broker, *arguments, **how) -> Done:
    done = run(broker, *arguments, **how)
    assert done.status == 0, f"{arguments}: status {done.status}\n{done.err}\n{done.text[-2000:]}"
    assert done.err == "", done.err
    return done


def create(broker, topic, partitions=1, *more):
    good(broker, "topic", "create", topic, "-p", partitions, *more)


def numbers(count: int) -> bytes:
    return b"".join(b"%d\n" % n for n in range(count))


# -- topics, settings, cluster --------------------------------------------------------------------


def test_topics(broker, topic):
    made = good(broker, "topic", "create", topic, "-p", 3, "-c", "retention.ms=3600000")
    assert re.search(rf"^{topic} +created: partitions 3, replicas 1$", made.text, re.MULTILINE)
    again = run(broker, "topic", "create", topic)
    assert (again.status, "exists already" in again.err, "TOPIC_ALREADY_EXISTS" in again.err) == (1, True, True)
    good(broker, "topic", "create", topic, "--if-not-exists")
    assert re.search(rf"^{topic} +3 +1$", good(broker, "topic", "list").text, re.MULTILINE)
    good(broker, "topic", "alter", topic, "-p", 5, "--set", "segment.ms=7200000", "--reset", "retention.ms")
    good(broker, "produce", topic, "-p", 4, input=numbers(10))
    (described,) = good(broker, "topic", "describe", topic, "--format", "json").json
    # Kafka sets some for the whole cluster by itself.
    assert described["configs"]["segment.ms"] == "7200000" and "retention.ms" not in described["configs"]
    assert [one["high_watermark"] for one in described["partitions"]] == [0, 0, 0, 0, 10]
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", described["id"])
    table = good(broker, "topic", "describe", topic).text
    assert "records about 10" in table and "segment.ms = 7200000  (topic)" in table
    good(broker, "topic", "delete", topic)
    gone = run(broker, "topic", "describe", topic)
    assert (gone.status, f'no topic "{topic}"' in gone.err, "flumen topic list" in gone.err) == (1, True, True)
    assert run(broker, "topic", "delete", topic).status == 1
    good(broker, "topic", "delete", topic, "--if-exists")


def test_what_went_wrong_is_said_for_each(broker, topic):
    create(broker, topic)
    mixed = run(broker, "topic", "create", topic, topic + "-new", "bad/name", "--format", "json")
    assert mixed.status == 1
    results = {one["name"]: one for one in mixed.json}
    assert results[topic]["code"] == "TOPIC_ALREADY_EXISTS"
    assert results[topic + "-new"]["ok"] is True
    assert results["bad/name"]["code"] == "INVALID_TOPIC_EXCEPTION"
    unknown = run(broker, "topic", "create", topic + "-c", "-c", "no.such.setting=1")
    assert unknown.status == 1 and "no.such.setting" in unknown.err


def test_a_topic_that_is_not_there_has_a_code(broker, topic):
    (result,) = run(broker, "topic", "delete", topic, "--format", "json").json
    assert (result["ok"], result["code"]) == (False, "UNKNOWN_TOPIC_OR_PARTITION")


def test_a_change_that_goes_half_way_says_so(broker, topic):
    create(broker, topic, 3)
    half = run(broker, "topic", "alter", topic, "-p", 2, "-c", "segment.ms=7200000")
    assert half.status == 1 and "INVALID_PARTITIONS" in half.err
    assert re.search(rf"^{topic} +1 setting changed$", half.text, re.MULTILINE)
    # There are no more partitions where the settings were refused.
    refused = run(broker, "topic", "alter", topic, "-p", 4, "-c", "segment.ms=soon", "--format", "json")
    assert refused.status == 1 and [one["code"] for one in refused.json] == ["INVALID_CONFIG"]
    (described,) = good(broker, "topic", "describe", topic, "--format", "json").json
    assert (described["configs"]["segment.ms"], len(described["partitions"])) == ("7200000", 3)


def test_what_is_named_twice_is_meant_once(broker, topic):
    good(broker, "topic", "create", topic, topic, "-p", 2)
    good(broker, "produce", topic, "-p", 0, input=numbers(3))
    assert good(broker, "consume", topic, topic).out == numbers(3)
    assert good(broker, "consume", topic, "-p", "0,0").out == numbers(3)
    assert len(good(broker, "topic", "describe", topic, topic, "--format", "json").json) == 1
    group = topic + "-group"
    sought = good(broker, "group", "seek", group, "--to", "end", "-t", f"{topic},{topic}:0", "--format", "json").json
    assert [(one["partition"], one["offset"]) for one in sought] == [(0, 3), (1, 0)]
    assert len(good(broker, "group", "describe", group, group, "--format", "json").json) == 1
    good(broker, "group", "delete", group, group)
    good(broker, "topic", "delete", topic, topic)


def test_configs(broker, topic):
    create(broker, topic)
    good(broker, "config", "set", "topic", topic, "segment.ms=7200000", "max.message.bytes=2000000")
    one = good(broker, "config", "get", "topic", topic, "segment.ms", "--format", "json").json
    assert [(c["name"], c["value"], c["source"]) for c in one] == [("segment.ms", "7200000", "topic")]
    changed = good(broker, "config", "get", "topic", topic, "--changed").text
    assert re.search(r"max\.message\.bytes +2000000 +topic", changed) and "cleanup.policy" not in changed
    good(broker, "config", "set", "topic", topic, "--reset", "segment.ms")
    assert "segment.ms" not in good(broker, "config", "get", "topic", topic, "--changed").text
    refused = run(broker, "config", "set", "topic", topic, "segment.ms=soon")
    assert refused.status == 1 and "INVALID_CONFIG" in refused.err
    broker_id = good(broker, "cluster", "info", "--format", "json").json["brokers"][0]["id"]
    shown = good(broker, "config", "get", "broker", broker_id).text
    assert "num.partitions" in shown
    # What has no value is not for that a secret.
    secret = {
        one["name"]
        for one in good(broker, "config", "get", "broker", broker_id, "--format", "json").json
        if one["sensitive"] and one["value"] is None
    }
    assert {line.split()[0] for line in shown.splitlines() if " (secret) " in line} == secret


def test_cluster(broker):
    info = good(broker, "cluster", "info", "--apis", "--format", "json").json
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", info["cluster_id"])
    assert [f"{one['host']}:{one['port']}" for one in info["brokers"]] == [broker.address]
    assert {"key": 0, "name": "Produce", "min": 0, "max": 13} in info["apis"]
    table = good(broker, "cluster", "info").text
    assert info["cluster_id"] in table and broker.address in table


def test_the_environment_names_the_brokers(broker):
    environment = {**os.environ, "FLUMEN_BROKERS": f"127.0.0.1:1,{broker.address}"}
    done = subprocess.run(command(None, "cluster", "info"), capture_output=True, env=environment, timeout=60)
    assert done.returncode == 0 and broker.address in done.stdout.decode()


def test_wrong_arguments(broker):
    for wrong in (
        ["produce", "t", "-k", ""],
        ["config", "get", "broker", "x"],
        ["topic", "alter", "t"],
        ["consume", "t", "-f", "%v", "--format", "json"],
        ["group", "seek", "g", "--to", "start", "-t", ","],
    ):
        done = run(broker, *wrong)
        assert done.status == 2 and done.err and not done.out, wrong


# -- records --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_lines_come_back(broker, topic, codec):
    create(broker, topic)
    lines = b"".join(b"%s %d %s\n" % (codec.encode(), n, b"ab" * (n % 97)) for n in range(5000))
    good(broker, "produce", topic, "-z", codec, input=lines)
    assert good(broker, "consume", topic).out == lines
    # Real clients read what it wrote, and it reads what they wrote.
    kcat = ["kcat", "-b", broker.address, "-t", topic, "-p", "0"]
    assert places.run([*kcat, "-C", "-o", "beginning", "-e", "-q"]) == lines
    places.run([*kcat, "-P", "-z", codec], input=lines)
    assert good(broker, "consume", topic, "-o", "5000").out == lines


def test_the_real_data(broker, topic):
    create(broker, topic, 4)
    path = places.DATA / "birdstrikes.csv"
    said = good(broker, "produce", topic, "--file", path, "-k", ",", "--format", "json").json
    lines = path.read_bytes().splitlines()
    assert (said["records"], said["failed"]) == (len(lines), 0)
    back = good(broker, "consume", topic, "-f", "%k,%v\\n").out.splitlines()
    assert sorted(back) == sorted(lines)


@pytest.mark.parametrize("acks", ["0", "1", "all"])
def test_acks(broker, topic, acks):
    create(broker, topic)
    good(broker, "produce", topic, "--acks", acks, input=numbers(3000))
    deadline = time.monotonic() + 20
    while (back := good(broker, "consume", topic).out) != numbers(3000):
        assert acks == "0" and time.monotonic() < deadline, back[-100:]


def test_keys_go_where_other_clients_send_them(broker, topic):
    create(broker, topic, 5)
    lines = b"".join(b"key-%d:value %d\n" % (n, n) for n in range(200))
    good(broker, "produce", topic, "-k", ":", input=lines)
    places.run(
        ["kcat", "-b", broker.address, "-P", "-t", topic, "-K", ":", "-X", "topic.partitioner=murmur2_random"],
        input=lines,
    )
    partitions: dict[bytes, set[bytes]] = {}
    for line in good(broker, "consume", topic, "-f", "%k %p\\n").out.splitlines():
        key, partition = line.split()
        partitions.setdefault(key, set()).add(partition)
    assert len(partitions) == 200 and all(len(found) == 1 for found in partitions.values())
    assert len(set.union(*partitions.values())) == 5


def test_keys_headers_nulls_and_formats(broker, topic):
    create(broker, topic)
    arguments = ["-k", "::", "-Z", "-H", "a=1", "-H", "b=two=2"]
    good(broker, "produce", topic, *arguments, input=b"key::value\nonly value\nnull::\n\xff::bin\xfe\n")
    shown = good(broker, "consume", topic, "-f", "%t[%p]@%o %k=%v %K/%S %h%%\\x21\\n").out.splitlines()
    name = topic.encode()
    assert shown[0] == name + b"[0]@0 key=value 3/5 a=1,b=two=2%!"
    assert shown[1] == name + b"[0]@1 =only value -1/10 a=1,b=two=2%!"
    assert shown[2] == name + b"[0]@2 null= 4/-1 a=1,b=two=2%!"
    records = [json.loads(line) for line in good(broker, "consume", topic, "-J").out.splitlines()]
    assert [one["key"] for one in records] == ["key", None, "null", {"base64": "/w=="}]
    assert records[2]["value"] is None
    assert records[0]["headers"] == [{"key": "a", "value": "1"}, {"key": "b", "value": "two=2"}]
    assert abs(records[0]["timestamp"] / 1000 - time.time()) < 300
    dated = good(broker, "consume", topic, "-n", 1, "-f", "%d %T").text
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \d{13}", dated)


def test_where_to_begin(broker, topic):
    create(broker, topic)
    good(broker, "produce", topic, input=numbers(1000))
    read = lambda *how: good(broker, "consume", topic, *how).out.split()  # noqa: E731
    assert read("-o", "-3") == [b"997", b"998", b"999"]
    assert read("-o", "500", "-n", 2) == [b"500", b"501"]
    assert read("-o", "+2", "-n", 1) == [b"2"]
    assert read("-o", "end") == []
    assert read("-o", "start", "-n", 0) == []
    assert len(read("-o", "@-1h")) == 1000
    assert read("-o", "@2000-01-01", "-n", 1) == [b"0"]
    between = int(time.time() * 1000) + 1
    while int(time.time() * 1000) <= between:
        time.sleep(0.001)
    good(broker, "produce", topic, input=b"late\n")
    assert read("-o", f"@{between}") == [b"late"]
    assert read("-o", f"@{between + 86_400_000}") == []


def test_partitions(broker, topic):
    create(broker, topic, 3)
    for partition in range(3):
        good(broker, "produce", topic, "-p", partition, input=b"of %d\n" % partition)
    assert good(broker, "consume", topic, "-p", "0,2").out.split(b"\n").count(b"of 1") == 0
    assert sorted(good(broker, "consume", topic).out.splitlines()) == [b"of 0", b"of 1", b"of 2"]
    wrong = run(broker, "produce", topic, "-p", 3, input=b"x\n")
    assert wrong.status == 1 and "has no partition 3: it has 3" in wrong.err
    assert run(broker, "consume", topic, "-p", 7).status == 1


def test_refused_records(broker, topic):
    create(broker, topic, 1, "-c", "max.message.bytes=1000")
    refused = run(broker, "produce", topic, input=b"x" * 5000 + b"\n")
    assert refused.status == 1 and "MESSAGE_TOO_LARGE" in refused.err and "max.message.bytes" in refused.err
    missing = run(broker, "produce", "no-such-topic-here", "--no-create", input=b"x\n")
    assert missing.status == 1 and "flumen topic create no-such-topic-here" in missing.err


def test_what_makes_no_sense_makes_no_topic(broker, topic, tmp_path):
    assert run(broker, "produce", topic, "--linger", "soon", input=b"x\n").status == 2
    assert run(broker, "produce", topic, "--file", tmp_path / "absent").status == 1
    assert topic not in good(broker, "topic", "list").text


def test_a_record_that_the_broker_hangs_up_on():
    with brokers.Flumen({"socket.request.max.bytes": str(2 << 20)}) as one:
        create(one, "t", 1, "-c", f"max.message.bytes={8 << 20}")
        refused = run(one, "produce", "t", "--timeout", "1s", input=b"x" * (3 << 20) + b"\n")
        assert refused.status == 1 and "socket.request.max.bytes" in refused.err, refused.err


def stop_in_its_tracks(process: subprocess.Popen) -> None:
    """Stops all of its threads, of which none does anything any more."""
    process.send_signal(signal.SIGSTOP)
    threads = list(pathlib.Path(f"/proc/{process.pid}/task").iterdir())
    while any((thread / "stat").read_text().rsplit(")", 1)[1].split()[0] != "T" for thread in threads):
        assert process.poll() is None


def unread(port: int) -> bool:
    """Whether whoever listens there has been sent something that it has not read."""
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if int(local.split(":")[1], 16) == port and state == "01" and int(queues.split(":")[1], 16) > 0:
            return True
    return False


@contextlib.contextmanager
def produce_to_a_broker_that_hangs(*arguments):
    """`produce`, whose last line is on its way to a broker that does not take it."""
    with brokers.Flumen() as one:
        create(one, "t")
        process = subprocess.Popen(
            command(one, "produce", "t", *arguments), stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            process.stdin.write(b"first\n")
            process.stdin.flush()
            deadline = time.monotonic() + 20
            while good(one, "consume", "t").out != b"first\n":
                assert time.monotonic() < deadline
            stop_in_its_tracks(one.process)
            process.stdin.write(b"second\n")
            process.stdin.close()
            while not unread(one.port):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process
        finally:
            process.kill()
            process.wait()


def test_produce_gives_up_in_time():
    with produce_to_a_broker_that_hangs("--timeout", "3s") as process:
        assert process.wait(30) == 1
        assert b"not delivered within 3.0 s" in process.stderr.read()


def test_an_interrupt_ends_produce_though_nobody_answers():
    with produce_to_a_broker_that_hangs("--timeout", "10min") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
        assert b"1 of 2 records" in process.stderr.read()


def test_a_broken_pipe_ends_quietly(broker, topic):
    create(broker, topic)
    good(broker, "produce", topic, input=numbers(200_000))
    shell = " ".join(command(broker, "consume", topic)) + " | head -2"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", shell], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0\n1\n", b"")


def test_follow_until_interrupted(broker, topic):
    create(broker, topic)
    with subprocess.Popen(command(broker, "consume", topic, "--follow"), stdout=subprocess.PIPE) as follower:
        try:
            for n in range(3):
                good(broker, "produce", topic, input=b"line %d\n" % n)
                assert follower.stdout.readline() == b"line %d\n" % n
            follower.send_signal(signal.SIGINT)
            assert follower.wait(20) == 0
        finally:
            follower.kill()


def test_an_interrupt_before_the_end_is_told(broker, topic):
    """Nobody reads its output, so it stands still in the midst; what it has begun to print is printed."""
    create(broker, topic)
    lines = b"".join(b"%0999d\n" % n for n in range(16_000))
    good(broker, "produce", topic, input=lines)
    with subprocess.Popen(command(broker, "consume", topic), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        try:
            first = reader.stdout.readline()
            reader.send_signal(signal.SIGINT)
            rest = reader.stdout.read()
            assert reader.wait(20) == 130
            assert b"interrupted" in reader.stderr.read()
            assert lines.startswith(first + rest) and len(first + rest) < len(lines)
        finally:
            reader.kill()


@pytest.mark.parametrize("kind", ["flumen", "kafka"])
def test_both_ways_survive_a_crash_of_the_broker(kind, topic):
    """What is sent while the broker is gone arrives when it is back: in order, each line once."""
    with brokers.BROKERS[kind]() as one:
        create(one, topic)
        lines = numbers(3000).splitlines(keepends=True)
        # A broker may take long to come back where much else runs.
        patient = ("--timeout", "2min")
        producer = subprocess.Popen(command(one, "produce", topic, *patient), stdin=subprocess.PIPE)
        follower = subprocess.Popen(command(one, "consume", topic, "--follow", *patient), stdout=subprocess.PIPE)
        try:
            producer.stdin.write(b"".join(lines[:1000]))
            producer.stdin.flush()
            assert [follower.stdout.readline() for _ in range(1000)] == lines[:1000]
            one.kill()
            producer.stdin.write(b"".join(lines[1000:2000]))
            producer.stdin.flush()
            one.start()
            producer.stdin.write(b"".join(lines[2000:]))
            producer.stdin.close()
            assert producer.wait(60) == 0
            assert [follower.stdout.readline() for _ in range(2000)] == lines[1000:]
            follower.send_signal(signal.SIGINT)
            assert follower.wait(20) == 0
            assert good(one, "consume", topic).out == b"".join(lines)
        finally:
            producer.kill()
            follower.kill()


# -- a terminal -----------------------------------------------------------------------------------


def on_terminal(arguments, *, input: bytes = b"", columns: int = 80, stop: bytes | None = None) -> tuple[int, str]:
    """Runs a command with all three streams on a pseudo-terminal; its status and what is to be seen."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(arguments, stdin=follower, stdout=follower, stderr=follower, close_fds=True)
    os.close(follower)
    os.write(leader, input)
    seen, deadline, stopped = b"", time.monotonic() + 60, False
    try:
        while time.monotonic() < deadline:
            ready, _, _ = select.select([leader], [], [], 0.2)
            if ready:
                try:
                    piece = os.read(leader, 65536)
                except OSError:
                    break
                if not piece:
                    break
                seen += piece
            elif process.poll() is not None:
                break
            if stop is not None and not stopped and re.search(stop, seen):
                process.send_signal(signal.SIGINT)
                stopped = True
        return process.wait(20), seen.decode()
    finally:
        process.kill()
        os.close(leader)


def test_tables_fit_the_terminal(broker, topic):
    long = topic + "-" + "x" * 150
    create(broker, long)
    assert long in good(broker, "topic", "list").text
    status, seen = on_terminal(command(broker, "topic", "list"), columns=60)
    assert status == 0
    lines = seen.replace("\r", "").splitlines()
    assert lines and all(len(line) <= 60 for line in lines) and any("…" in line for line in lines)


def test_progress_on_a_terminal(broker, topic):
    create(broker, topic)
    status, seen = on_terminal(command(broker, "produce", topic), input=b"one\ntwo\n\x04")
    assert status == 0 and re.search(r"2 records, \d+ B in .* \([\d,]+/s, ", seen), seen
    follow = command(broker, "consume", topic, "--follow")
    status, seen = on_terminal(follow, stop=rb"2 records .*/s .* behind")
    assert status == 0 and "one\r\ntwo\r\n" in seen, seen


def test_json_is_for_reading_on_a_terminal(broker):
    status, seen = on_terminal(command(broker, "cluster", "info", "--format", "json"))
    assert status == 0 and len(seen.splitlines()) > 5
    json.loads(seen)


# -- groups ---------------------------------------------------------------------------------------


def without(port: int, lacking: set[int]) -> socket.socket:
    """A way to a broker on which it is an old one: it knows version 0 of ApiVersions alone, and lacks some APIs."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(frame: bytes, upstream: wire.Connection) -> bytes:
        key, version, correlation_id = struct.unpack_from(">hhi", frame)
        head = struct.pack(">i", correlation_id)
        if key != wire.API_VERSIONS:
            upstream.raw(wire.blob(frame))
            return upstream.receive_frame()
        served = [one for one in wire.api_versions(upstream).items() if one[0] not in lacking]
        table = [struct.pack(">hhh", key, *((0, 0) if key == wire.API_VERSIONS else versions)) for key, versions in served]
        code = wire.NONE if version == 0 else wire.UNSUPPORTED_VERSION
        return head + struct.pack(">h", code) + wire.array(table)

    def serve():
        with contextlib.suppress(OSError, wire.Closed):
            while True:
                peer, _ = listener.accept()
                with peer, wire.Connection(port) as upstream, contextlib.suppress(struct.error):
                    while True:
                        (length,) = struct.unpack(">i", peer.recv(4, socket.MSG_WAITALL))
                        peer.sendall(wire.blob(answer(peer.recv(length, socket.MSG_WAITALL), upstream)))

    threading.Thread(target=serve, daemon=True).start()
    return listener


def test_what_a_broker_lacks_is_named(broker, topic):
    create(broker, topic)
    with without(broker.port, {FIND_COORDINATOR, DESCRIBE_CLUSTER, CREATE_TOPICS}) as old:
        address = ["-b", "127.0.0.1:%d" % old.getsockname()[1]]
        assert topic in good(None, "topic", "list", *address).text
        # What another API says as well is asked for there.
        assert broker.address in good(None, "cluster", "info", *address).text
        for arguments in (["group", "describe", "g"], ["consume", "-g", "g", topic]):
            done = run(None, *arguments, *address)
            assert done.status == 1 and "does not have the API FindCoordinator" in done.err, done.err


def test_a_group_goes_on_where_it_was(broker, topic):
    create(broker, topic, 3)
    good(broker, "produce", topic, input=numbers(300))
    group = topic + "-group"
    first = good(broker, "consume", topic, "-g", group, "-n", 100).out.split()
    assert len(first) == 100
    rest = good(broker, "consume", topic, "-g", group).out.split()
    assert sorted(map(int, first + rest)) == list(range(300))
    assert good(broker, "consume", topic, "-g", group).out == b""
    listed = {one["group"]: one for one in good(broker, "group", "list", "--format", "json").json}
    assert listed[group]["state"] in ("Empty", "")
    (described,) = good(broker, "group", "describe", group, "--format", "json").json
    assert (described["lag"], described["members"], len(described["partitions"])) == (0, [], 3)


def test_seek(broker, topic):
    create(broker, topic, 2)
    good(broker, "produce", topic, "-p", 0, input=numbers(100))
    good(broker, "produce", topic, "-p", 1, input=numbers(50))
    group = topic + "-group"
    nothing = run(broker, "group", "seek", group, "--to", "start")
    assert nothing.status == 2 and "--topics" in nothing.err
    good(broker, "group", "seek", group, "--to", "end", "-t", topic)
    assert good(broker, "consume", topic, "-g", group).out == b""
    dry = good(broker, "group", "seek", group, "--to", "-10", "--dry-run", "--format", "json").json
    assert [(one["partition"], one["before"], one["offset"], one["done"]) for one in dry] == [
        (0, 100, 90, False),
        (1, 50, 40, False),
    ]
    good(broker, "group", "seek", group, "--to", "-10", "-t", f"{topic}:1")
    assert good(broker, "consume", topic, "-g", group).out == b"".join(b"%d\n" % n for n in range(40, 50))
    good(broker, "group", "seek", group, "--to", "@2000-01-01")
    table = good(broker, "group", "describe", group).text
    assert re.search(rf"^{topic} +0 +0 +100 +100 +█+ +- +-$", table, re.MULTILINE), table
    assert re.search(rf"^{topic} +1 +0 +50 +50 +█+▌? *  +- +-$", table, re.MULTILINE), table
    assert len(good(broker, "consume", topic, "-g", group).out.split()) == 150
    good(broker, "group", "delete", group)
    gone = run(broker, "group", "describe", group)
    assert gone.status == 1 and "flumen group list" in gone.err


@pytest.mark.parametrize("assignor", ["range", "cooperative-sticky"])
def test_members_share_and_one_that_leaves_is_replaced(broker, topic, assignor):
    create(broker, topic, 4)
    group = topic + "-group"
    arguments = ["consume", topic, "-g", group, "--follow", "--assignor", assignor, "-f", "%p:%v\\n"]
    members = []
    try:
        for _ in range(2):
            members.append(subprocess.Popen(command(broker, *arguments), stdout=subprocess.PIPE))
        wait_for(broker, group, lambda one: sorted(len(m["assignment"]) for m in one["members"]) == [2, 2])
        for partition in range(4):
            good(broker, "produce", topic, "-p", partition, input=b"a\n")
        seen = [sorted(member.stdout.readline() for _ in range(2)) for member in members]
        assert sorted(sum(seen, [])) == [b"%d:a\n" % p for p in range(4)]
        for how in ((), ("--dry-run",)):
            busy = run(broker, "group", "seek", group, "--to", "start", "-t", topic, *how)
            assert (busy.status, busy.out) == (1, b"") and "stop its consumers first" in busy.err
        assert run(broker, "group", "delete", group).status == 1
        members[0].send_signal(signal.SIGINT)
        assert members[0].wait(30) == 0
        wait_for(broker, group, lambda one: [len(m["assignment"]) for m in one["members"]] == [4])
        for partition in range(4):
            good(broker, "produce", topic, "-p", partition, input=b"b\n")
        assert sorted(members[1].stdout.readline() for _ in range(4)) == [b"%d:b\n" % p for p in range(4)]
        members[1].send_signal(signal.SIGINT)
        assert members[1].wait(30) == 0
        (described,) = good(broker, "group", "describe", group, "--format", "json").json
        assert (described["lag"], [one["committed"] for one in described["partitions"]]) == (0, [2] * 4)
    finally:
        for member in members:
            member.kill()
            member.wait()


@pytest.mark.parametrize("assignor", ["range", "cooperative-sticky"])
def test_a_group_shares_new_partitions(broker, topic, assignor):
    create(broker, topic, 1)
    group = topic + "-group"
    arguments = ["consume", topic, "-g", group, "--follow", "--metadata-age", "100ms", "-f", "%p\\n"]
    members = []
    try:
        for _ in range(2):
            joining = command(broker, *arguments, "--assignor", assignor)
            members.append(subprocess.Popen(joining, stdout=subprocess.PIPE))
        wait_for(broker, group, lambda one: sorted(len(m["assignment"]) for m in one["members"]) == [0, 1])
        good(broker, "topic", "alter", topic, "-p", 4)
        wait_for(broker, group, lambda one: sorted(len(m["assignment"]) for m in one["members"]) == [2, 2])
        for partition in range(4):
            good(broker, "produce", topic, "-p", partition, input=b"x\n")
        seen = sorted(member.stdout.readline() for member in members for _ in range(2))
        assert seen == [b"%d\n" % partition for partition in range(4)]
        for member in members:
            member.send_signal(signal.SIGINT)
            assert member.wait(30) == 0
    finally:
        for member in members:
            member.kill()
            member.wait()


def test_an_interrupt_ends_a_join_that_waits(broker, topic):
    """The group waits for a member that stands still."""
    create(broker, topic, 2)
    group = topic + "-group"
    arguments = command(broker, "consume", topic, "-g", group)
    with subprocess.Popen([*arguments, "--follow"], stdout=subprocess.DEVNULL) as first:
        try:
            wait_for(broker, group, lambda one: [len(m["assignment"]) for m in one["members"]] == [2])
            stop_in_its_tracks(first)
            for follow, status in (([], 130), (["--follow"], 0)):
                with subprocess.Popen([*arguments, *follow], stderr=subprocess.DEVNULL) as second:
                    try:
                        wait_for(broker, group, lambda one: one["state"].replace(" ", "") == "PreparingRebalance")
                        wait_for(broker, group, lambda one: len(one["members"]) == 2)
                        second.send_signal(signal.SIGINT)
                        assert second.wait(15) == status
                        # It has left.
                        wait_for(broker, group, lambda one: len(one["members"]) == 1, within_s=10)
                    finally:
                        second.kill()
        finally:
            first.kill()


def test_ids_keep_to_their_line(broker, topic):
    create(broker, topic)
    group = topic + "-a\nb"
    good(broker, "group", "seek", group, "--to", "end", "-t", topic)
    first = good(broker, "group", "describe", group).text.splitlines()[0]
    assert first.startswith(f"{topic}-a\ufffdb  state ")
    good(broker, "group", "delete", group)


def test_a_group_of_the_new_protocol_is_shown(broker, topic):
    """KIP-848: the coordinator assigns; another request describes it."""
    create(broker, topic, 3)
    group = topic + "-group"
    consumer = places.java(
        "org.apache.kafka.tools.consumer.ConsoleConsumer", "--bootstrap-server", broker.address, "--topic", topic,
        "--group", group, "--command-property", "group.protocol=consumer",
    )  # fmt: skip
    with subprocess.Popen(consumer, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(broker, group, lambda one: [len(m["assignment"]) for m in one["members"]] == [3])
            (described,) = good(broker, "group", "describe", group, "--format", "json").json
            assert (described["type"], described["state"], described["assignor"]) == ("consumer", "Stable", "uniform")
            listed = {one["group"]: one for one in good(broker, "group", "list", "--format", "json").json}
            assert listed[group]["type"] == "consumer"
        finally:
            process.kill()


def wait_for(broker, group, condition, within_s: float = 40):
    deadline = time.monotonic() + within_s
    while True:
        done = run(broker, "group", "describe", group, "--format", "json")
        if done.status == 0 and condition(done.json[0]):
            return
        assert time.monotonic() < deadline, f"{done.err}\n{done.text}"
        time.sleep(0.1)


# -- files and the machine ------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["flumen", "kafka"])
def stopped(request):
    """The data folder of a broker that was given records and stopped in order."""
    with brokers.BROKERS[request.param]() as one:
        create(one, "data", 1, "-c", "segment.bytes=1048576")
        for codec in CODECS:
            lines = b"".join(b"k%d:%s %d\n" % (n, codec.encode(), n * n * 7919) for n in range(40_000))
            good(one, "produce", "data", "-k", ":", "-z", codec, "--batch-size", "65536", input=lines)
        assert one.stop() in one.clean_statuses
        yield one


def test_verify_and_dump(stopped):
    whole = good(None, "log", "verify", stopped.data, "--format", "json").json
    assert whole["faults"] == [] and whole["records"] >= 200_000 and whole["segments"] > 2
    folder = stopped.data / "data-0"
    verified = good(None, "log", "verify", folder).text
    assert verified.splitlines()[-1] == "sound" and "200,000 records" in verified
    dumped = [json.loads(line) for line in good(None, "log", "dump", folder, "--format", "json").out.splitlines()]
    assert {one["compression"] for one in dumped} == set(CODECS)
    assert sum(one["records"] for one in dumped) == 200_000
    records = good(None, "log", "dump", folder, "--records", "-f", "%t-%p %o %k\\n").out.splitlines()
    assert records[0] == b"data-0 0 k0" and records[-1] == b"data-0 199999 k39999" and len(records) == 200_000
    table = good(None, "log", "dump", next(iter(stopped.segments("data", 0)))).text
    assert "POSITION" in table.splitlines()[1]


def test_what_is_wrong_is_found_with_its_place(stopped, tmp_path):
    source = stopped.data / "data-0"
    segment = sorted(source.glob("*.log"))[1]
    dumped = [json.loads(line) for line in good(None, "log", "dump", segment, "--format", "json").out.splitlines()]
    target = dumped[2]

    def damaged(change, extension=".log"):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}" / "data-0"
        folder.mkdir(parents=True)
        for one in source.glob(segment.stem + ".*"):
            (folder / one.name).write_bytes(one.read_bytes())
        path = folder / (segment.stem + extension)
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)
        done = run(None, "log", "verify", folder, "--format", "json")
        assert done.status == 4, done.err
        found = [one for one in done.json["faults"] if one["file"] == str(path)]
        assert found, done.json
        return found[0]["position"], found[0]["what"]

    def flip(content):
        content[target["position"] + 100] ^= 1

    position, what = damaged(flip)
    assert position == target["position"] and "CRC" in what
    position, what = damaged(lambda content: content.__delitem__(slice(target["position"] + 70, None)))
    assert position == target["position"] and "ends inside of a batch" in what

    def garbage(content):
        content[target["position"] + 16] = 9

    position, what = damaged(garbage)
    assert position == target["position"] and "format 9" in what

    def backwards(content):
        content[target["position"] : target["position"] + 8] = struct.pack(">q", dumped[0]["base_offset"])

    position, what = damaged(backwards)
    assert position == target["position"] and "or later is due" in what

    def index(content):
        content[4:8] = struct.pack(">I", 12345)

    position, what = damaged(index, ".index")
    assert position == 0 and "no batch begins at position 12345" in what


@pytest.fixture(scope="module")
def node_files():
    """What a node keeps beside segments and journals, after a clean stop."""
    with brokers.Flumen() as one:
        create(one, "data", 3)
        good(one, "produce", "data", input=numbers(1000))
        assert one.stop() == 0
        yield one.data


def test_what_is_wrong_with_checkpoints_and_metadata_is_found(node_files, tmp_path):
    whole = good(None, "log", "verify", node_files, "--format", "json").json
    assert whole["faults"] == [] and whole["checkpoints"] >= 1 and whole["metadata_files"] >= 1
    # The topic, its three partitions, what the node says of itself.
    assert whole["metadata_records"] >= 5
    assert " checkpoints, " in good(None, "log", "verify", node_files).text

    def damaged(relative, change) -> tuple[str, int, str]:
        """The one fault of a folder in which one file was changed."""
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        for name in ("checkpoint", "metadata"):
            shutil.copytree(node_files / name, folder / name)
        change(folder / relative)
        done = run(None, "log", "verify", folder, "--format", "json")
        assert done.status == 4, done.err
        (found,) = done.json["faults"]
        return found["file"].removeprefix(f"{folder}/"), found["position"], found["what"]

    def flip(position):
        def change(path):
            content = bytearray(path.read_bytes())
            content[position] ^= 1
            path.write_bytes(content)

        return change

    # Beside them lies space that is kept for the next ones.
    checkpoints = [one for one in (node_files / "checkpoint").iterdir() if one.suffix != ".tmp"]
    checkpoint = max(checkpoints, key=lambda one: one.stat().st_size).relative_to(node_files)
    metadata = max((node_files / "metadata").glob("*.log")).relative_to(node_files)
    assert damaged(checkpoint, flip(60)) == (str(checkpoint), 0, "the checksum does not fit")
    assert damaged(checkpoint, lambda path: os.truncate(path, 50))[::2] == (str(checkpoint), "not a checkpoint")
    renamed = checkpoint.with_name("77-0-1")
    named = damaged(checkpoint, lambda path: path.rename(path.with_name(renamed.name)))
    assert named == (str(renamed), 0, "it bears another's name")
    assert damaged(metadata, flip(20))[:2] == (str(metadata), 0)
    file, position, what = damaged(metadata, flip(4096 + 50))
    assert (file, position) == (str(metadata), 4096) and "intact ones behind it" in what
    assert damaged(metadata, lambda path: path.unlink())[::2] == (str(metadata), "the file is missing")


def test_what_a_crash_leaves_is_sound(tmp_path):
    """A node that was killed under load leaves torn ends and unfinished files, and none of it is a fault."""
    with brokers.Flumen() as one:
        create(one, "data", 3)
        producer = subprocess.Popen(command(one, "produce", "data"), stdin=subprocess.PIPE)
        try:
            producer.stdin.write(numbers(20_000))
            producer.stdin.flush()
            deadline = time.monotonic() + 20
            while not good(one, "consume", "data", "-n", 1).out:
                assert time.monotonic() < deadline
            one.kill()
        finally:
            producer.kill()
            producer.wait()
        checked = run(None, "log", "verify", one.data, "--format", "json").json
        # A segment may end inside of a batch that the journal has.
        assert [fault for fault in checked["faults"] if not fault["file"].endswith(".log")] == []


def test_doctor(tmp_path):
    checks = {one["check"]: one for one in good(None, "doctor", "--data-dir", tmp_path, "--format", "json").json}
    assert checks["io_uring"]["state"] == "ok" and checks["kernel"]["state"] in ("ok", "warning")
    assert re.search(r"p50 [\d.]+ [mu]s, p99 .* large writes: \d+ MB/s|GB/s", checks["disk"]["found"])
    assert list(tmp_path.iterdir()) == []
    refused = run(None, "doctor", "--data-dir", "/proc/none")
    assert refused.status == 4 and "disk" in refused.text and "--data-dir" in refused.text


def test_an_interrupt_of_doctor_leaves_nothing_behind(tmp_path):
    process = subprocess.Popen(command(None, "doctor", "--data-dir", tmp_path), stdout=subprocess.DEVNULL)
    try:
        opened = f"{tmp_path}/.flumen-doctor-"
        deadline = time.monotonic() + 20
        while not written_to(process.pid, opened):
            assert process.poll() is None and time.monotonic() < deadline
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.wait()


def written_to(pid: int, prefix: str) -> bool:
    """Whether the process has opened a file whose path begins like that and written to it."""
    for descriptor in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(descriptor).startswith(prefix) and descriptor.stat().st_size > 0:
                return True
    return False


def test_a_command_starts_at_once():
    took = []
    for _ in range(10):
        began = time.monotonic()
        good(None, "--version")
        took.append(time.monotonic() - began)
    assert min(took) < 0.05, took
