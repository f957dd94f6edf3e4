"""Few bytes that ask for much, of memory or of time: what they get is bounded, also where many ask, and others go on."""

import contextlib
import struct
import time

import pytest
from harness import groups, wire
from harness.brokers import rss_max, undisturbed

MIB = 1 << 20
LZ4, ZSTD = 3, 4
METADATA = 3

# Their bounds are this node's own.
pytestmark = pytest.mark.flumen_only


def test_frames_without_content(own_broker):
    """A batch of 100,000 empty frames of the old LZ4 format, each of which costs room for 8 MiB, is opened by searches by time."""
    broker = own_broker()
    empty = bytes.fromhex("02214c18 01000000 00")
    bomb = wire.Batch([b""], attributes=LZ4, records=empty * 100_000).encode()
    with wire.Connection(broker.port) as hostile, wire.Connection(broker.port) as other:
        wire.create_served_topic(other, "frames")
        assert wire.produce(hostile, [("frames", 0, bomb)])[0][0] == wire.NONE
        with undisturbed(broker):
            began = time.monotonic()
            for _ in range(8):
                assert wire.list_offsets(hostile, "frames", timestamp=0)[0][:2] == (wire.NONE, 0)
            # What makes a topic waits for the same threads.
            wire.create_served_topic(other, "other")
            assert time.monotonic() - began < 10


def test_a_batch_that_cannot_be_opened_hides_no_other(own_broker):
    broker = own_broker()
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, "times")
        bad = wire.Batch([b"x", b"y"], timestamp=1000, attributes=ZSTD).encode()
        for batch in (bad, wire.Batch([b"z"], timestamp=2000).encode()):
            assert wire.produce(connection, [("times", 0, batch)])[0][0] == wire.NONE
        found = {at: wire.list_offsets(connection, "times", timestamp=at)[0][:2] for at in (500, 1000, 1001, 2001)}
        assert found == {500: (0, 0), 1000: (0, 0), 1001: (0, 2), 2001: (0, -1)}


def test_the_same_settings_again_and_again(own_broker):
    """40 peers ask for all settings 3,800 times each, and read nothing: 1.2 MB in, and 12 GB if each got what it asks for."""
    broker = own_broker(arguments=("--memory", "256MiB"))
    body = wire.array([struct.pack(">b", wire.BROKER) + wire.string("1") + struct.pack(">i", -1)] * 3800) + b"\1"
    with contextlib.ExitStack() as held:
        for _ in range(40):
            held.enter_context(wire.Connection(broker.port, receive_buffer=4096)).send(wire.DESCRIBE_CONFIGS, 1, body)
        rss_max(broker, 8, 640 * MIB)
        with wire.Connection(broker.port) as other:
            assert wire.describe_configs(other, wire.BROKER, "1")


def test_the_same_group_again_and_again(own_broker):
    broker = own_broker()
    with wire.Connection(broker.port) as connection:
        body = wire.array([wire.string("one"), wire.string("two"), wire.string("one")]) + b"\0"
        answer = connection.call(groups.DESCRIBE_GROUPS, 4, body)
        answer.take("i")
        told = []
        for _ in range(answer.take("i")):
            told.append((answer.take("h"), answer.string()))
            answer.string(), answer.string(), answer.string()
            assert answer.take("i") == 0
            answer.take("i")
        assert [name for _, name in told] == ["one", "two", "one"]
        assert told[0][0] == told[1][0] != told[2][0] == wire.INVALID_REQUEST


def behind_a_fetch_that_waits(port, stack):
    """A peer with a fetch that waits for ever, and 15 requests of a megabyte behind it."""
    one = stack.enter_context(wire.Connection(port))
    one.send(wire.FETCH, 4, wire.fetch_body("waits", [(0, 0)], max_wait_ms=2**31 - 1, min_bytes=1))
    for _ in range(15):
        one.send(METADATA, 1, struct.pack(">i", 0) + bytes(MIB))
    return one


def test_whole_requests_behind_fetches_that_wait(own_broker):
    """Together 60 such peers would pin 900 MB. Past the bound fetches wait no more where something is behind them."""
    broker = own_broker(arguments=("--memory", "256MiB"))
    with wire.Connection(broker.port) as other, contextlib.ExitStack() as last:
        wire.create_served_topic(other, "waits")
        with contextlib.ExitStack() as held:
            for _ in range(60):
                behind_a_fetch_that_waits(broker.port, held)
            rss_max(broker, 1, 512 * MIB)
        one = behind_a_fetch_that_waits(broker.port, last)
        assert wire.produce(other, [("waits", 0, wire.Batch([b"v"]).encode())])[0][0] == wire.NONE
        for correlation_id in range(1, 17):
            assert one.receive()[0] == correlation_id


def test_topics_by_id_before_they_could_be_asked_for(own_broker):
    """Versions 10 and 11 have the fields, and refuse them."""
    broker = own_broker()
    null_name, no_tags = b"\0", b"\0"
    topic = bytes(16) + null_name + no_tags
    with wire.Connection(broker.port) as connection:
        answer = connection.call(METADATA, 10, no_tags + b"\2" + topic + b"\1\0\0" + no_tags)
        answer.take("b"), answer.take("i")  # the header's tags, throttle time
        assert answer.take("b") == 1, "no brokers"
        assert answer.take("b") == 0, "no cluster id"
        answer.take("i")
        assert answer.take("b") == 2, "one topic"
        assert answer.take("h") == wire.INVALID_REQUEST


def test_more_filters_than_there_are_states(own_broker):
    """Each would be compared with each group."""
    broker = own_broker()
    no_tags, empty = b"\0", b"\1"
    with wire.Connection(broker.port) as one, wire.Connection(broker.port) as other:
        answer = one.call(groups.LIST_GROUPS, 4, no_tags + bytes([64 + 1]) + 64 * empty + no_tags)
        answer.take("b"), answer.take("i")
        assert answer.take("h") == wire.NONE
        one.send(groups.LIST_GROUPS, 4, no_tags + bytes([65 + 1]) + 65 * empty + no_tags)
        assert one.closed_by_peer()
        assert groups.list_groups(other) == {}


def test_nobody_can_lock_everybody_out(own_broker):
    broker = own_broker()
    with wire.Connection(broker.port) as one:
        assert wire.alter_broker(one, {"max.connections": "0"}) == wire.INVALID_CONFIG
        assert wire.alter_broker(one, {"max.connections.per.ip": "0"}) == wire.NONE
        assert not wire.answers(broker.port)
    # Until the broker has seen that the first one is closed, it is the one that is let in.
    deadline = time.monotonic() + 10
    code = None
    while code is None:
        try:
            with wire.Connection(broker.port) as again:
                code = wire.alter_broker(again, {"max.connections.per.ip": "10"})
        except wire.Closed:
            assert time.monotonic() < deadline, "nobody is let in"
    assert code == wire.NONE
    assert wire.answers(broker.port)
