"""A disk that fails under a running node: who is told what, what goes on, and that nothing acknowledged is lost."""

import time
import urllib.request

import pytest

from harness import brokers, groups, wire

pytestmark = pytest.mark.flumen_only

# How a node ends that must not acknowledge any more.
EXIT_STORAGE_FAULT = 3
TOPIC = "faulty"


@pytest.fixture
def broker(request):
    """One shard, so that both topics share a journal; `--memory` by parameter."""
    memory = getattr(request, "param", "1GiB")
    with brokers.FaultyFlumen(arguments=("--shards", "1", "--memory", memory)) as one:
        with wire.Connection(one.port) as connection:
            for name in (TOPIC, "neighbour"):
                code, message = wire.create_topic(connection, name, 1, 1, {})
                assert code == wire.NONE, message
        yield one


def value(n: int) -> bytes:
    return b"%08d" % n * 16


def produce(connection, topic, n, size=1) -> tuple[int, int]:
    batch = wire.Batch([value(n) * size])
    return wire.produce(connection, [(topic, 0, batch.encode())])[0]


def read_all(broker, topic) -> list[bytes]:
    """The values, in order, of batches of one record each."""
    found, at = [], 0
    with wire.Connection(broker.port) as connection:
        while True:
            code, high_watermark, records = wire.fetch(connection, topic, at, max_wait_ms=0, min_bytes=0)
            assert code == wire.NONE
            if at == high_watermark:
                return found
            while len(records) >= 61 and len(records) >= (size := 12 + int.from_bytes(records[8:12])):
                assert int.from_bytes(records[:8]) == at
                found.append(records[:size])
                at, records = at + 1, records[size:]


def holds(found: list[bytes], acknowledged: dict[int, int]) -> None:
    """Each acknowledged value is at its offset."""
    for offset, n in acknowledged.items():
        assert value(n) in found[offset], f"offset {offset} lacks value {n}"


def metric(broker, name) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{broker.admin_port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{")))


def until(condition, within_s=60):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.02)


def produce_some(broker, count=50) -> dict[str, dict[int, int]]:
    acknowledged = {TOPIC: {}, "neighbour": {}}
    with wire.Connection(broker.port) as connection:
        for n in range(count):
            for topic in acknowledged:
                code, offset = produce(connection, topic, n)
                assert code == wire.NONE
                acknowledged[topic][offset] = n
    return acknowledged


def test_full_disk_is_met_before_the_acknowledgement(broker):
    """Producers hear KAFKA_STORAGE_ERROR, readers go on, and with space it recovers by itself."""
    acknowledged = produce_some(broker)
    broker.fail("preallocate:.log:ENOSPC")
    refused = 0
    with wire.Connection(broker.port) as connection:
        for n in range(100, 400):
            code, offset = produce(connection, TOPIC, n, size=40)
            if code == wire.NONE:
                acknowledged[TOPIC][offset] = n
            else:
                assert code == wire.KAFKA_STORAGE_ERROR
                refused += 1
    assert refused > 0, "space never ran out"
    holds(read_all(broker, TOPIC), acknowledged[TOPIC])
    broker.fail()
    with wire.Connection(broker.port) as connection:
        code, offset = produce(connection, TOPIC, 999)
        assert code == wire.NONE
        acknowledged[TOPIC][offset] = 999
    assert broker.stop() == 0
    broker.start()
    for topic, of_topic in acknowledged.items():
        holds(read_all(broker, topic), of_topic)


def test_topic_made_on_a_full_disk_is_served_once_there_is_space(broker):
    broker.fail("create:late-0:ENOSPC")
    with wire.Connection(broker.port) as connection:
        assert wire.create_topic(connection, "late", 1, 1, {})[0] == wire.NONE
        assert produce(connection, "late", 1)[0] == wire.UNKNOWN_TOPIC_OR_PARTITION
        broker.fail()
        until(lambda: produce(connection, "late", 1)[0] == wire.NONE)


def test_groups_outlast_a_full_disk():
    """Whoever waits is told to try again, and nobody is forgotten: neither a member that was not written yet and could not be
    heard for longer than its session, nor a commit that was acknowledged."""
    settings = {
        "offsets.topic.num.partitions": "1",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "500",
    }
    long_name, partitions = "g" * 3000, 100
    with brokers.FaultyFlumen(settings=settings, arguments=("--shards", "1")) as broker:
        with wire.Connection(broker.port) as connection:
            wire.create_served_topic(connection, TOPIC, partitions)
            until(lambda: groups.find_coordinator(connection, "g")[0] == wire.NONE)
            until(lambda: groups.committed(connection, "g")[0] == wire.NONE)
            joined = groups.join_fully(connection, "g", session_ms=3000)
            assert joined.code == wire.NONE
            broker.fail("preallocate:__consumer_offsets-:ENOSPC")
            acknowledged, codes = {}, {wire.NONE}
            for offset in range(1, 100):
                answer = groups.commit(connection, long_name, {(TOPIC, at): offset for at in range(partitions)})
                codes = set(answer.values())
                if codes != {wire.NONE}:
                    break
                assert groups.heartbeat(connection, "g", joined.generation, joined.member) == wire.NONE
                acknowledged = dict.fromkeys(range(partitions), offset)
            assert codes == {groups.NOT_COORDINATOR}, "space never ran out"
            heard = time.monotonic()
            until(lambda: time.monotonic() > heard + 3.5)
            assert groups.heartbeat(connection, "g", joined.generation, joined.member) == groups.NOT_COORDINATOR
            broker.fail()
            until(lambda: groups.heartbeat(connection, "g", joined.generation, joined.member) != groups.NOT_COORDINATOR)
            assert groups.heartbeat(connection, "g", joined.generation, joined.member) == wire.NONE
            code, _ = groups.sync(connection, "g", joined.generation, joined.member, {joined.member: b"mine"})
            assert code == wire.NONE
        assert broker.stop() == 0
        broker.start()
        with wire.Connection(broker.port) as connection:
            until(lambda: groups.committed(connection, "g")[0] == wire.NONE)
            assert groups.describe(connection, "g").members == [joined.member]
            found = groups.committed(connection, long_name)[1]
            assert all(found[TOPIC, at][0] >= offset for at, offset in acknowledged.items())


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_segment_fault_takes_its_partition_offline_alone(broker, operation):
    """Said in the log and in a metric; the neighbour goes on; the next start on a healthy disk has everything."""
    acknowledged = produce_some(broker)
    broker.fail(f"{operation}:{TOPIC}-0/:EIO")
    with wire.Connection(broker.port) as connection:
        # Bulk goes to the segment at once.
        code, _ = produce(connection, TOPIC, 100, size=6000)
        assert code == wire.KAFKA_STORAGE_ERROR
        assert produce(connection, TOPIC, 101)[0] == wire.KAFKA_STORAGE_ERROR
        assert wire.fetch(connection, TOPIC, 0)[0] == wire.KAFKA_STORAGE_ERROR
        assert wire.list_offsets(connection, TOPIC)[0][0] == wire.KAFKA_STORAGE_ERROR
        assert wire.list_offsets(connection, "neighbour")[0][0] == wire.NONE
        code, offset = produce(connection, "neighbour", 102)
        assert code == wire.NONE
        acknowledged["neighbour"][offset] = 102
    assert broker.logs("offline")
    assert metric(broker, "flumen_partitions_offline") == 1
    broker.fail()
    assert broker.stop() == 0
    broker.start()
    assert metric(broker, "flumen_partitions_offline") == 0
    for topic, of_topic in acknowledged.items():
        holds(read_all(broker, topic), of_topic)


def ends(broker) -> None:
    assert broker.process.wait(60) == EXIT_STORAGE_FAULT
    broker.process = None


@pytest.mark.parametrize("rule", ["write:journal/:EIO", "write:journal/:short=0", "any:journal/:EIO"])
def test_journal_fault_ends_the_node(broker, rule):
    """Nothing of the group is acknowledged, the node says why and exits; a start on a healthy disk has the rest."""
    acknowledged = produce_some(broker)
    broker.fail(rule)
    with wire.Connection(broker.port) as connection, pytest.raises((wire.Closed, OSError)):
        for n in range(100, 200):
            code, offset = produce(connection, TOPIC, n)
            if code == wire.NONE:
                acknowledged[TOPIC][offset] = n
    ends(broker)
    assert "journal" in broker.log_tail() and "Mend the disk" in broker.log_tail()
    broker.fail()
    broker.start()
    for topic, of_topic in acknowledged.items():
        holds(read_all(broker, topic), of_topic)


@pytest.mark.parametrize("broker", ["64MiB"], indirect=True)
def test_journal_file_that_cannot_be_made_ends_the_node(broker):
    """Met by upkeep, not by a produce: the node ends all the same, and says why."""
    acknowledged = produce_some(broker, 20)
    broker.fail("create:journal/:EIO", "open:journal/:EIO", "preallocate:journal/:EIO")
    with wire.Connection(broker.port) as connection, pytest.raises((wire.Closed, OSError)):
        for n in range(100, 20_000):
            code, offset = produce(connection, TOPIC, n, size=3000)
            if code == wire.NONE:
                acknowledged[TOPIC][offset] = n
    ends(broker)
    broker.fail()
    broker.start()
    for topic, of_topic in acknowledged.items():
        holds(read_all(broker, topic), of_topic)
