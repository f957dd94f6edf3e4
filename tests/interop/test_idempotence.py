"""Sequence numbers as the network shows them: duplicates, gaps, epochs. By hand, since a client keeps them right."""

import time

import pytest

from harness import wire


@pytest.fixture
def connection(broker):
    with wire.Connection(broker.port) as one:
        yield one


@pytest.fixture
def send(connection, topic):
    """`send(sequence, count, epoch)` of one new producer to partition 0: `(error code, base offset)`."""
    wire.create_served_topic(connection, topic, timeout_s=10)
    code, producer_id, first_epoch = wire.init_producer_id(connection)
    assert (code, first_epoch) == (wire.NONE, 0)

    def call(sequence, count=1, epoch=0):
        batch = wire.Batch(
            [b"%d" % (sequence + n) for n in range(count)],
            producer_id=producer_id, producer_epoch=epoch, base_sequence=sequence,
        )  # fmt: skip
        return wire.produce(connection, [(topic, 0, batch.encode())])[0]

    return call


def test_a_retry_gets_its_first_offset(send):
    assert [send(0, 3), send(3, 2), send(5, 1)] == [(0, 0), (0, 3), (0, 5)]
    assert [send(0, 3), send(5, 1), send(3, 2)] == [(0, 0), (0, 5), (0, 3)]
    assert send(6) == (0, 6)


def test_the_window_is_five_batches(send):
    for n in range(8):
        assert send(n) == (wire.NONE, n)
    assert [send(n) for n in range(3, 8)] == [(wire.NONE, n) for n in range(3, 8)]
    # Older ones are known to be duplicates, but not where they are.
    assert send(1)[0] in (wire.DUPLICATE_SEQUENCE_NUMBER, wire.OUT_OF_ORDER_SEQUENCE_NUMBER)
    assert send(8) == (wire.NONE, 8)


def test_a_gap_is_refused(send):
    assert send(0) == (wire.NONE, 0)
    assert send(2)[0] == wire.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert send(1) == (wire.NONE, 1)


def test_a_higher_epoch_fences_the_lower(send):
    assert send(0, epoch=0) == (wire.NONE, 0)
    assert send(1, epoch=1)[0] == wire.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert send(0, epoch=1) == (wire.NONE, 1)
    assert send(1, epoch=0)[0] == wire.INVALID_PRODUCER_EPOCH


def test_a_topic_that_is_made_again_takes_a_producer_where_it_was(send, connection, topic):
    """It does not know of that, and for some clients an answer that its numbers are wrong is the end."""
    assert [send(0, 3), send(3, 2)] == [(0, 0), (0, 3)]
    assert wire.delete_topic(connection, topic) == wire.NONE
    wire.create_served_topic(connection, topic, timeout_s=10)
    assert send(5) == (wire.NONE, 0)
    assert send(7)[0] == wire.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert send(6) == (wire.NONE, 1)


def test_producer_ids_differ(connection):
    ids = [wire.init_producer_id(connection) for _ in range(200)]
    assert {code for code, _, _ in ids} == {wire.NONE}
    assert len({producer_id for _, producer_id, _ in ids}) == 200


@pytest.mark.flumen_only  # The reference gives a retry after a clean stop another offset.
def test_state_survives_a_restart(own_broker):
    """Duplicates are known, and producer ids are not given twice, after a clean stop and after a crash."""
    broker = own_broker()
    with wire.Connection(broker.port) as connection:
        assert wire.create_topic(connection, "kept")[0] == wire.NONE
        _, producer_id, _ = wire.init_producer_id(connection)
        for n in range(4):
            assert send_again(connection, producer_id, n) == (wire.NONE, n)
    for next_sequence, end in ((4, broker.stop), (5, broker.kill)):
        end()
        broker.start()
        with wire.Connection(broker.port) as connection:
            for n in range(max(0, next_sequence - 5), next_sequence):
                assert send_again(connection, producer_id, n) == (wire.NONE, n)
            assert send_again(connection, producer_id, next_sequence) == (wire.NONE, next_sequence)
            assert wire.init_producer_id(connection)[1] != producer_id


def send_again(connection, producer_id, sequence):
    now_ms = int(time.time() * 1000)
    batch = wire.Batch([b"%d" % sequence], now_ms, producer_id=producer_id, producer_epoch=0, base_sequence=sequence)
    return wire.produce(connection, [("kept", 0, batch.encode())])[0]
