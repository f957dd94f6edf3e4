"""How long a fetch waits: for `min_bytes` over all its partitions, and not at all for what is there already. What it gives
of a topic that has a codec of its own. And where a restart leaves a position."""

import contextlib
import gzip
import struct
import time

import pytest

from harness import wire

# A fetch that should be answered and is not, fails by the timeout of its connection.
FOR_EVER_MS = 600_000
BATCH = wire.Batch([b"x" * 900]).encode()


def append(connection, topic, partition, count=1):
    for _ in range(count):
        assert wire.produce(connection, [(topic, partition, BATCH)])[0][0] == wire.NONE


def is_answered(connection, within_s) -> bool:
    """Whether something has come; it stays to be read."""
    connection.socket.settimeout(within_s)
    with contextlib.suppress(TimeoutError):
        return len(connection.socket.recv(1, 2)) > 0  # MSG_PEEK
    return False


def test_waits_for_min_bytes_of_one_partition(broker, topic):
    """Also where some bytes are there when it begins: those that follow are noticed."""
    with wire.Connection(broker.port) as producer, wire.Connection(broker.port) as consumer:
        wire.create_served_topic(producer, topic, 1)
        append(producer, topic, 0)
        body = wire.fetch_body(topic, [(0, 0)], max_wait_ms=FOR_EVER_MS, min_bytes=3 * len(BATCH))
        consumer.send(wire.FETCH, 4, body)
        append(producer, topic, 0)
        assert not is_answered(consumer, 0.3), "two batches are not three"
        append(producer, topic, 0)
        assert is_answered(consumer, 10)
        code, high_watermark, records = wire.read_fetch(consumer.receive()[1])[0]
        assert (code, high_watermark, len(records)) == (wire.NONE, 3, 3 * len(BATCH))


def test_waits_for_min_bytes_of_all_partitions_together(broker, topic):
    """Of many, that lie on all shards, whichever gets the bytes."""
    partitions = 16
    with wire.Connection(broker.port) as producer, wire.Connection(broker.port) as consumer:
        wire.create_served_topic(producer, topic, partitions)
        wanted = [(partition, 0) for partition in range(partitions)]
        body = wire.fetch_body(topic, wanted, max_wait_ms=FOR_EVER_MS, min_bytes=2 * partitions * len(BATCH))
        consumer.send(wire.FETCH, 4, body)
        for n in range(2 * partitions - 1):
            append(producer, topic, n % 5)
        assert not is_answered(consumer, 0.3), "one is missing"
        append(producer, topic, partitions - 1)
        assert is_answered(consumer, 10)
        read = wire.read_fetch(consumer.receive()[1])
        assert sum(len(records) for _, _, records in read.values()) == 2 * partitions * len(BATCH)


def test_does_not_wait_for_what_lies_on_disk(own_broker, topic):
    """However little of it is read at a time: what `min_bytes` asks for is there."""
    broker = own_broker()
    with wire.Connection(broker.port) as producer:
        wire.create_served_topic(producer, topic, 1)
        append(producer, topic, 0, 500)
    assert broker.stop() == 0
    broker.start()
    with wire.Connection(broker.port) as consumer:
        at = 0
        while at < 400:
            read = wire.fetch(consumer, topic, at, max_wait_ms=FOR_EVER_MS, min_bytes=100 * len(BATCH))
            assert read[:2] == (wire.NONE, 500)
            at += len(read[2]) // len(BATCH)


def test_answers_when_the_time_is_up(broker, topic):
    """With what there is."""
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, topic, 2)
        append(connection, topic, 1)
        began = time.monotonic()
        body = wire.fetch_body(topic, [(0, 0), (1, 0)], max_wait_ms=300, min_bytes=2 * len(BATCH))
        read = wire.read_fetch(connection.call(wire.FETCH, 4, body))
        assert time.monotonic() - began >= 0.3
        assert [len(records) for _, _, records in read.values()] == [0, len(BATCH)]


@pytest.mark.flumen_only
def test_does_not_wait_for_what_its_limits_keep_out(broker, topic):
    """The limit of the partition ends inside of a batch, and below `min_bytes`: there is no more to wait for."""
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, topic, 1)
        append(connection, topic, 0, 10)
        limit = 5 * len(BATCH) - 1
        read = wire.fetch(
            connection, topic, 0, max_wait_ms=FOR_EVER_MS, min_bytes=limit, partition_max_bytes=limit
        )
        assert len(read[2]) == 4 * len(BATCH)


def test_no_limit_keeps_the_first_batch_out(broker, topic):
    """Whoever allows less than a batch gets one all the same, or would never get on."""
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, topic, 1)
        append(connection, topic, 0, 2)
        for limit in (1, 0):
            assert len(wire.fetch(connection, topic, 0, partition_max_bytes=limit)[2]) == len(BATCH)


def test_a_partition_that_is_named_twice_is_read_once(broker, topic):
    """The last word counts."""
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, topic, 1)
        append(connection, topic, 0, 2)
        answer = connection.call(wire.FETCH, 4, wire.fetch_body(topic, [(0, 0)] * 1000 + [(0, 1)]))
        answer.take("i")
        assert (answer.take("i"), answer.string(), answer.take("i")) == (1, topic, 1)
        assert wire.fetch(connection, topic, 1)[2] == answer.data[-len(BATCH) :]


def test_the_offsets_of_a_partition_that_is_named_twice_are_not_told(broker, topic):
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, topic, 2)
        append(connection, topic, 1, 3)
        found = wire.list_offsets(connection, topic, partitions=(0, 1, 0))
        assert {partition: told[:2] for partition, told in found.items()} == {
            0: (wire.INVALID_REQUEST, -1),
            1: (wire.NONE, 3),
        }


def test_hears_of_the_end_of_its_topic(broker, topic):
    with wire.Connection(broker.port) as admin, wire.Connection(broker.port) as consumer:
        wire.create_served_topic(admin, topic, 1)
        consumer.send(wire.FETCH, 4, wire.fetch_body(topic, [(0, 0)], max_wait_ms=FOR_EVER_MS))
        assert not is_answered(consumer, 0.2)
        assert wire.delete_topic(admin, topic) == wire.NONE
        assert is_answered(consumer, 10)
        assert wire.read_fetch(consumer.receive()[1])[0][0] == wire.UNKNOWN_TOPIC_OR_PARTITION


def test_a_topic_has_its_own_codec(broker, topic):
    """`compression.type`: what comes in another is compressed again, as it was; what comes in this one stays."""
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, topic, configs={"compression.type": "gzip"})
        plain = wire.Batch([b"%d" % n * 100 for n in range(50)])
        sent = plain.encode()
        assert wire.produce(connection, [(topic, 0, sent)]) == [(wire.NONE, 0)]
        stored = wire.fetch(connection, topic, 0)[2]
        assert len(stored) < len(sent) / 5
        codec, records = stored[22] & 7, stored[61:]
        assert (codec, gzip.decompress(records)) == (1, sent[61:])
        again = wire.Batch([], records=records, count=50, last_offset_delta=49, attributes=1).encode()
        assert wire.produce(connection, [(topic, 0, again)]) == [(wire.NONE, 50)]
        assert wire.fetch(connection, topic, 50)[2][61:] == records


def test_a_restart_is_no_truncation(own_broker, topic):
    """A position at the end, of a leader under whom nobody has written, holds through restarts (KIP-320)."""
    broker = own_broker()
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, topic, timeout_s=10)
        assert wire.produce(connection, [(topic, 0, wire.Batch([b"a", b"b"]).encode())])[0][0] == wire.NONE
    assert broker.stop() == 0
    broker.start()
    with wire.Connection(broker.port) as connection:
        wire.wait_until_served(connection, topic, timeout_s=10)
        end, epoch = latest(connection, topic)
        assert end == 2
    assert broker.stop() == 0
    broker.start()
    with wire.Connection(broker.port) as connection:
        wire.wait_until_served(connection, topic, timeout_s=10)
        code, epoch_there, end_there = end_of_epoch(connection, topic, epoch)
        assert (code, end_there) == (wire.NONE, 2)
        assert 0 <= epoch_there <= epoch


def latest(connection, topic) -> tuple[int, int]:
    """The end of partition 0 and the epoch that the broker says with it."""
    code, offset, epoch = wire.list_offsets(connection, topic)[0]
    assert code == wire.NONE
    return offset, epoch


def end_of_epoch(connection, topic, epoch) -> tuple[int, int, int]:
    """OffsetForLeaderEpoch v2: error code, epoch, and its end."""
    body = wire.array([wire.string(topic) + wire.array([struct.pack(">iii", 0, -1, epoch)])])
    answer = connection.call(wire.OFFSET_FOR_LEADER_EPOCH, 2, body)
    answer.take("i"), answer.take("i"), answer.string(), answer.take("i")
    code, _ = answer.take("h"), answer.take("i")
    return code, answer.take("i"), answer.take("q")
