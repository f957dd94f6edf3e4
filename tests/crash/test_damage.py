"""Files that were damaged while the node was down: what is derived is made anew, what lies past the true end is
ignored, and what was acknowledged is never cut and never skipped in silence."""

import pytest

from harness import wire

pytestmark = pytest.mark.flumen_only

COUNT = 4000
TOPIC = "damaged"


@pytest.fixture
def broker(own_broker):
    """A node with several closed segments and a neighbour topic, stopped."""
    one = own_broker()
    with wire.Connection(one.port) as connection:
        for name in (TOPIC, "neighbour"):
            code, message = wire.create_topic(connection, name, 1, 1, {"segment.bytes": "1048576"})
            assert code == wire.NONE, message
            for n in range(0, COUNT, 10):
                batch = wire.Batch([value(n + k) for k in range(10)], timestamp=time_of(n))
                assert wire.produce(connection, [(name, 0, batch.encode())]) == [(wire.NONE, n)]
    assert one.stop() == 0
    assert len(one.segments(TOPIC, 0)) >= 3
    return one


def value(n: int) -> bytes:
    return b"%08d" % n * 125


def time_of(n: int) -> int:
    return 1_700_000_000_000 + n


def read_all(connection, topic) -> int:
    """Reads from offset 0, checking each record's content; returns the offset that cannot be read, or the end."""
    at = 0
    while True:
        code, high_watermark, records = wire.fetch(connection, topic, at, max_wait_ms=0, min_bytes=0)
        if code != wire.NONE:
            assert code in (wire.CORRUPT_MESSAGE, wire.KAFKA_STORAGE_ERROR)
            return at
        if at == high_watermark:
            return at
        before = at
        while len(records) >= 61:
            size = 12 + int.from_bytes(records[8:12])
            if size > len(records):
                break
            assert int.from_bytes(records[:8]) == at
            for k in range(10):
                assert value(at + k) in records[:size]
            at, records = at + 10, records[size:]
        assert at > before, f"offset {at} is answered with nothing"


def whole(broker):
    with wire.Connection(broker.port) as connection:
        assert read_all(connection, TOPIC) == COUNT
        assert read_all(connection, "neighbour") == COUNT


def offset_at(connection, timestamp):
    code, offset, _ = wire.list_offsets(connection, TOPIC, timestamp)[0]
    assert code == wire.NONE
    return offset


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "cut", "too long"])
def test_indexes_are_made_anew(broker, damage):
    for segment in broker.segments(TOPIC, 0):
        for index in (segment.with_suffix(".index"), segment.with_suffix(".timeindex")):
            if not index.exists():
                continue
            content = index.read_bytes()
            match damage:
                case "missing":
                    index.unlink()
                case "empty":
                    index.write_bytes(b"")
                case "garbage":
                    index.write_bytes(b"\x5a" * len(content))
                case "cut":
                    index.write_bytes(content[: len(content) // 2 + 1])
                case "too long":
                    index.write_bytes(content + b"\xff" * 1000)
    broker.start()
    whole(broker)
    with wire.Connection(broker.port) as connection:
        for n in (0, 1230, 3990):
            assert offset_at(connection, time_of(n)) == n


@pytest.mark.parametrize("garbage", [b"\0" * 10_000, b"\x77" * 10_000])
def test_garbage_after_the_true_end(broker, garbage):
    """It is not there, and it is not there after the next append either."""
    with open(broker.segments(TOPIC, 0)[-1], "ab") as segment:
        segment.write(garbage)
    broker.start()
    whole(broker)
    with wire.Connection(broker.port) as connection:
        batch = wire.Batch([value(COUNT + k) for k in range(10)])
        assert wire.produce(connection, [(TOPIC, 0, batch.encode())]) == [(wire.NONE, COUNT)]
        assert read_all(connection, TOPIC) == COUNT + 10


@pytest.mark.parametrize("which", [0, 1, -1], ids=["first segment", "second segment", "last segment"])
def test_flipped_bit_in_a_segment(broker, which):
    """The batch with the bit cannot be read, and that is said with file and position; all before it can."""
    segment = broker.segments(TOPIC, 0)[which]
    content = bytearray(segment.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0x10
    segment.write_bytes(content)
    broker.start()
    with wire.Connection(broker.port) as connection:
        stopped_at = read_all(connection, TOPIC)
        assert int(segment.stem) <= stopped_at < COUNT
        assert read_all(connection, "neighbour") == COUNT
        # Asked again, it is no better.
        assert wire.fetch(connection, TOPIC, stopped_at)[0] != wire.NONE
    assert broker.logs(segment.name)
    assert len(segment.read_bytes()) == len(content), "what was acknowledged was cut"


def test_segment_is_gone(broker):
    """Acknowledged records that are not there any more are an error, not an empty log."""
    broker.segments(TOPIC, 0)[1].unlink()
    broker.start()
    with wire.Connection(broker.port) as connection:
        code = wire.fetch(connection, TOPIC, int(COUNT / 2), max_wait_ms=0, min_bytes=0)[0]
        stopped_at = read_all(connection, TOPIC) if code == wire.NONE else 0
        assert stopped_at < COUNT
        assert read_all(connection, "neighbour") == COUNT
