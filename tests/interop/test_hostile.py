"""Bad bytes and bad manners from the network. After each of them the node serves others, and its memory is
bounded. Requests are made by hand (harness/wire.py), since no client can be brought to send them.
"""

import collections
import contextlib
import random
import resource
import struct
import time

import pytest
import zstandard

from harness import wire
from harness.brokers import rss_max, undisturbed

MIB = 1 << 20


@pytest.fixture
def connection(broker):
    with wire.Connection(broker.port) as one:
        yield one


@pytest.fixture
def made(connection, topic) -> str:
    """A topic with three partitions, served."""
    code, message = wire.create_topic(connection, topic, 3)
    assert code == wire.NONE, message
    # The reference answers before the topic is served.
    deadline = time.monotonic() + 10
    while [code for code, _ in probe(connection, topic)] != [wire.NONE] * 3:
        assert time.monotonic() < deadline, "the topic is not served"
        time.sleep(0.05)
    return topic


def probe(connection, topic):
    """Empty fetches of the three partitions: whether each is served."""
    found = wire.read_fetch(
        connection.call(wire.FETCH, 4, wire.fetch_body(topic, [(n, 0) for n in range(3)], max_wait_ms=0, min_bytes=0))
    )
    return [found[n][:2] for n in range(3)]


# -- frames -------------------------------------------------------------------------------------------

REQUEST_BYTES_MAX = 100 * MIB

BAD_FRAMES = {
    "negative length": struct.pack(">i", -1),
    "most negative length": struct.pack(">i", -(1 << 31)),
    "largest length": struct.pack(">i", (1 << 31) - 1) + b"\0" * 100,
    "just above socket.request.max.bytes": struct.pack(">i", REQUEST_BYTES_MAX + 1) + b"\0" * 100,
    "no room for a header": struct.pack(">i", 3) + b"\0\0\0",
    "empty": struct.pack(">i", 0),
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": bytes.fromhex("1603010200010001fc0303") + b"\x5a" * 400,
    "unknown api key": wire.frame(999, 0, 1, b""),
    "negative api key": wire.frame(-1, 0, 1, b""),
    "unknown version": wire.frame(wire.METADATA, 99, 1, b"\0" * 50),
    "negative version": wire.frame(wire.METADATA, -1, 1, b"\0" * 50),
    "broker-to-broker api": wire.frame(4, 0, 1, b"\0" * 50),
    "client id longer than the frame": struct.pack(">ihhih", 10, 3, 1, 1, 30_000),
    "body cut short": wire.frame(wire.METADATA, 1, 1, struct.pack(">i", 5) + wire.string("a")[:-1]),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_frame_closes_the_connection(broker, name):
    with undisturbed(broker), wire.Connection(broker.port) as connection:
        connection.raw(BAD_FRAMES[name])
        assert connection.closed_by_peer()


def test_unknown_version_of_api_versions(broker, connection):
    """It gets the table, in version 0, and the connection goes on."""
    answer = connection.call(wire.API_VERSIONS, 99, b"\0" * 20)
    assert answer.take("h") == wire.UNSUPPORTED_VERSION
    assert answer.take("i") > 0
    assert wire.api_versions(connection)


def test_no_feature_begins_at_0_before_version_4(broker, connection):
    """Java clients from 3.3 to 3.8 end themselves over that."""

    def told(version):
        name_and_version = b"\5test\2" + b"1"
        connection.send(wire.API_VERSIONS, version, b"\0" + name_and_version + b"\0")
        return connection.receive_frame()

    # Once among those that are known, once among those in force.
    assert [told(version).count(b"group.version") for version in (3, 4)] == [1, 2]
    assert [told(version).count(b"metadata.version") for version in (3, 4)] == [2, 2]


def test_produce_0_to_2_is_advertised_and_refused(broker, connection):
    assert wire.api_versions(connection)[wire.PRODUCE] == (0, 13)
    connection.send(wire.PRODUCE, 2, struct.pack(">hi", -1, 1000) + wire.array([]))
    assert connection.closed_by_peer()


@pytest.mark.flumen_only  # The reference allocates by the claim, and is out of heap.
def test_frame_that_never_ends(broker):
    """Half a frame, and then silence or the end: no memory by the claim, nobody else waits."""
    with undisturbed(broker), contextlib.ExitStack() as held:
        for _ in range(100):
            one = held.enter_context(wire.Connection(broker.port))
            one.raw(struct.pack(">i", REQUEST_BYTES_MAX) + b"\0\0\0\1" + b"\0" * 20)
        assert wire.answers(broker.port)


@pytest.mark.flumen_only  # The reference takes as much as its heap has.
def test_large_frames_that_never_end(own_broker):
    """Sixty clients send 20 MiB each of a request of 100 and fall silent. Small requests go on, and large ones in
    a while, though their clients may have to send them again."""
    broker = own_broker(arguments=("--memory", "128MiB"))
    large = wire.Batch([b"l" * (MIB - 1000)]).encode()
    with contextlib.ExitStack() as held, wire.Connection(broker.port) as small:
        wire.create_served_topic(small, "large-frames", timeout_s=10)
        senders = [held.enter_context(wire.Connection(broker.port)).socket for _ in range(60)]
        for sender in senders:
            sender.sendall(struct.pack(">i", REQUEST_BYTES_MAX - 1) + b"\0\0\0\7\0\0\0\1")
            sender.setblocking(False)
        left = dict.fromkeys(senders, 20 * MIB)
        deadline = time.monotonic() + 3
        while left and time.monotonic() < deadline:
            for sender in list(left):
                with contextlib.suppress(BlockingIOError):
                    left[sender] -= sender.send(bytes(min(left[sender], MIB)))
                if not left[sender]:
                    del left[sender]
            rss_max(broker, 0.001, 256 * MIB)
        assert left, "nobody was made to wait"
        assert wire.produce(small, [("large-frames", 0, wire.Batch([b"small"]).encode())])[0][0] == wire.NONE
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError, wire.Closed), wire.Connection(broker.port, timeout_s=60) as honest:
                assert wire.produce(honest, [("large-frames", 0, large)])[0][0] == wire.NONE
                break
            assert time.monotonic() < deadline, "there is no room for a request"
        rss_max(broker, 0.001, 256 * MIB)


def test_byte_by_byte(broker, connection):
    for byte in wire.frame(wire.METADATA, 1, 7, wire.array([])):
        connection.raw(bytes([byte]))
        time.sleep(0.01)
    assert connection.receive()[0] == 7


CLAIMS = {
    "2^31-1": b"\x7f\xff\xff\xff" * 12,
    "-2^31": b"\x80\x00\x00\x00" * 12,
    "ones": b"\xff" * 60,
    "varint 2^32-1": b"\xff\xff\xff\xff\x0f" * 12,
    "endless varint": b"\x80" * 60,
    "nested counts": b"\0\0\0\1" * 20 + b"\x7f\xff\xff\xff",
    "deep tags": b"\0" * 20 + b"\xfe\xff\xff\xff\x0f" * 8,
    "nothing": b"",
    "zeros": b"\0" * 100,
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_of_every_api(broker, connection, claim):
    """Every version of every API that is advertised, with a body of absurd counts: an error or the end."""
    versions = wire.api_versions(connection)
    with undisturbed(broker), Shouting(broker) as shouting:
        for api_key, (lowest, highest) in versions.items():
            for version in range(lowest, highest + 1):
                shouting.say(wire.frame(api_key, version, 1, CLAIMS[claim]))
                shouting.say(wire.frame(api_key, version, 1, b"\0" + CLAIMS[claim]))


class Shouting:
    """Sends without caring for answers, each request on a connection of its own, which stays open for a while."""

    def __init__(self, broker, open_max=50):
        self.broker, self.open_max, self.open = broker, open_max, collections.deque()

    def say(self, raw):
        if len(self.open) == self.open_max:
            self.open.popleft().close()
        self.open.append(wire.Connection(self.broker.port))
        with contextlib.suppress(wire.Closed):
            self.open[-1].raw(raw)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        time.sleep(0.2)
        for one in self.open:
            one.close()


@pytest.mark.flumen_only  # The reference runs out of heap.
def test_mutated_requests(broker, connection, made):
    """Requests that were right, with some bytes changed, cut out or doubled."""
    seeds = [
        wire.frame(wire.PRODUCE, 7, 1, wire.produce_body([(made, 0, wire.Batch([b"a", b"b"]).encode())])),
        wire.frame(wire.FETCH, 4, 1, wire.fetch_body(made, [(0, 0), (1, 0)], max_wait_ms=0)),
        wire.frame(wire.METADATA, 1, 1, wire.array([wire.string(made)])),
        wire.frame(wire.LIST_OFFSETS, 1, 1, struct.pack(">i", -1) + wire.array(
            [wire.string(made) + wire.array([struct.pack(">iq", 0, -1)])])),
        wire.frame(wire.INIT_PRODUCER_ID, 1, 1, wire.string(None) + struct.pack(">i", 1000)),
    ]  # fmt: skip
    chance = random.Random(20_240_601)
    with undisturbed(broker), Shouting(broker) as shouting:
        for _ in range(5000):
            shouting.say(mutated(chance, chance.choice(seeds)))
        assert wire.produce(connection, [(made, 2, wire.Batch([b"after"]).encode())]) == [(wire.NONE, 0)]


def mutated(chance: random.Random, frame: bytes) -> bytes:
    body = bytearray(frame[4:])
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(body))
        match chance.randrange(4):
            case 0:
                body[at] = chance.randrange(256)
            case 1:
                body[at] ^= 1 << chance.randrange(8)
            case 2:
                del body[at : at + chance.randint(1, 8)]
            case 3:
                body[at:at] = body[at : at + chance.randint(1, 8)]
        if not body:
            break
    return struct.pack(">i", len(body)) + body


# -- record batches -----------------------------------------------------------------------------------

TWO = [b"one", b"two"]
ONE_RECORD = wire.record(0, b"x")

BAD_BATCHES = {
    "bad crc": (wire.Batch(TWO, crc=0), {wire.CORRUPT_MESSAGE}),
    "count above the records": (wire.Batch(TWO, count=3), {wire.INVALID_RECORD}),
    "count below the records": (wire.Batch(TWO, count=1), {wire.INVALID_RECORD}),
    "negative count": (wire.Batch(TWO, count=-5), {wire.INVALID_RECORD}),
    "count of 2^31-1": (
        wire.Batch(TWO, count=(1 << 31) - 1, last_offset_delta=(1 << 31) - 2),
        {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE},
    ),
    "last offset delta": (wire.Batch(TWO, last_offset_delta=7), {wire.INVALID_RECORD}),
    "offset deltas": (
        wire.Batch(TWO, records=wire.record(0, b"a") + wire.record(5, b"b")),
        {wire.INVALID_RECORD},
    ),
    "record length above the batch": (
        wire.Batch([b"x"], records=wire.varint(1 << 20) + ONE_RECORD[1:]),
        {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE},
    ),
    "negative record length": (
        wire.Batch([b"x"], records=wire.varint(-9) + ONE_RECORD[1:]),
        {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE},
    ),
    "endless varint": (
        wire.Batch([b"x"], records=b"\x80" * 30),
        {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE},
    ),
    "bytes after the last record": (wire.Batch([b"x"], records=ONE_RECORD + b"\0" * 9), {wire.INVALID_RECORD}),
    "no records": (wire.Batch([], records=b""), {wire.INVALID_RECORD}),
}


# The reference appends the first, and says UNKNOWN_SERVER_ERROR to the second.
STRICTER = {"offset deltas", "endless varint"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.flumen_only) if name in STRICTER else name for name in BAD_BATCHES],
)
def test_bad_batch(broker, connection, made, name):
    """Its partition gets the error; the others of the same request succeed."""
    batch, codes = BAD_BATCHES[name]
    good = wire.Batch([b"good"]).encode()
    with undisturbed(broker):
        answers = wire.produce(connection, [(made, 0, good), (made, 1, batch.encode()), (made, 2, good)])
    assert answers[0] == answers[2] == (wire.NONE, 0)
    assert answers[1][0] in codes
    assert wire.fetch(connection, made, 0, partition=1, max_wait_ms=0, min_bytes=0)[1] == 0


UNREADABLE_BATCHES = {
    "length above what is there": wire.Batch(TWO, length=5000).encode(),
    "length below a header": wire.Batch(TWO, length=10).encode(),
    "negative length": wire.Batch(TWO, length=-1).encode(),
    "cut short": wire.Batch(TWO).encode()[:-4],
    "shorter than a header": b"\0" * 20,
    "garbage": b"\x37" * 300,
    "two batches": wire.Batch(TWO).encode() * 2,
    "nothing": b"",
    "magic 0": wire.Batch(TWO, magic=0).encode(),
    "magic 1": wire.Batch(TWO, magic=1).encode(),
    "magic 9": wire.Batch(TWO, magic=9).encode(),
    "unknown codec": wire.Batch(TWO, attributes=7).encode(),
    "not what the codec says": wire.Batch(TWO, attributes=4).encode(),
}


@pytest.mark.parametrize("name", UNREADABLE_BATCHES)
def test_unreadable_batch(broker, made, name):
    """Refused by an error or the end of the connection; nothing of it is appended.

    A compressed batch is only opened where a rule needs it: then what was refused elsewhere is stored."""
    with wire.Connection(broker.port) as other, undisturbed(broker):
        try:
            code = wire.produce(other, [(made, 0, UNREADABLE_BATCHES[name])])[0][0]
        except wire.Closed:
            code = None
    if name == "not what the codec says":
        return
    assert code != wire.NONE
    with wire.Connection(broker.port) as fresh:
        assert wire.fetch(fresh, made, 0, max_wait_ms=0, min_bytes=0)[1] == 0


@pytest.mark.flumen_only  # The reference opens them all.
def test_batches_that_open_to_gigabytes(own_broker):
    """A request of a megabyte with 400 batches that open to 60 MiB each: as much as is fair is opened, and others go on."""
    broker = own_broker(arguments=("--shards", "1"))
    record = wire.record(0, bytes(60 * MIB), key=b"k")
    bomb = wire.Batch([b""], attributes=4, records=zstandard.compress(record)).encode()
    assert len(bomb) < 16_384
    with wire.Connection(broker.port, timeout_s=60) as hostile, wire.Connection(broker.port) as other:
        code, message = wire.create_topic(other, "opened", 1, configs={"cleanup.policy": "compact"})
        assert code == wire.NONE, message
        with undisturbed(broker, 512 * MIB):
            began = time.monotonic()
            hostile.send(wire.PRODUCE, 7, wire.produce_body([("opened", 0, bomb)] * 400))
            good = wire.Batch([b""], attributes=4, records=zstandard.compress(wire.record(0, b"v", key=b"k")))
            for _ in range(20):
                assert wire.produce(other, [("opened", 0, good.encode())])[0][0] == wire.NONE
            _, answer = hostile.receive()
            assert time.monotonic() - began < 10
        answer.take("i"), answer.string()
        codes = []
        for _ in range(answer.take("i")):
            answer.take("i")
            codes.append(answer.take("h"))
            answer.take("q"), answer.take("q"), answer.take("q")
        assert codes.count(wire.NONE) <= 4 and len(codes) == 400, collections.Counter(codes)


def test_compacted_topics_need_keys(connection, topic):
    """All records without a key are named, so that a client can send the others again."""
    assert wire.create_topic(connection, topic, 1, 1, {"cleanup.policy": "compact"})[0] == wire.NONE
    keys = [b"k", None, b"k", None, None]
    records = b"".join(wire.record(n, b"v", key) for n, key in enumerate(keys))
    batch = wire.Batch([b""] * 5, records=records).encode()
    deadline = time.monotonic() + 10
    while True:
        answer = connection.call(wire.PRODUCE, 8, wire.produce_body([(topic, 0, batch)]))
        answer.take("i"), answer.string(), answer.take("i"), answer.take("i")
        code = answer.take("h")
        # The reference answers before the topic is served.
        if code not in (wire.UNKNOWN_TOPIC_OR_PARTITION, wire.NOT_LEADER_OR_FOLLOWER):
            break
        assert time.monotonic() < deadline, "the topic is not served"
        time.sleep(0.05)
    assert code == wire.INVALID_RECORD
    answer.take("q"), answer.take("q"), answer.take("q")
    assert [(answer.take("i"), bool(answer.string()))[0] for _ in range(answer.take("i"))] == [1, 3, 4]


@pytest.mark.flumen_only  # The reference says it a thousand times.
def test_bad_frames_are_logged_at_a_bounded_rate(own_broker):
    """One line says what came from where; a thousand times the same is not a thousand lines."""
    broker = own_broker()
    before = len(broker.log_text().splitlines())
    for _ in range(1000):
        with wire.Connection(broker.port) as connection:
            connection.raw(BAD_FRAMES["negative length"])
            assert connection.closed_by_peer()
    lines = broker.log_text().splitlines()[before:]
    assert 0 < len(lines) < 100
    assert any("127.0.0.1" in line for line in lines)


def test_garbage_after_a_batch(connection, made):
    """Refused, or ignored as the reference does; never appended."""
    records = wire.Batch(TWO).encode() + b"\x37" * 10
    code = wire.produce(connection, [(made, 0, records)])[0][0]
    _, high_watermark, stored = wire.fetch(connection, made, 0, max_wait_ms=0, min_bytes=0)
    assert (high_watermark, len(stored)) == ((2, len(records) - 10) if code == wire.NONE else (0, 0))


def test_error_without_acks_closes_the_connection(broker, made):
    """There is no other way to tell the client."""
    with wire.Connection(broker.port) as connection:
        bad = wire.Batch(TWO, crc=0).encode()
        connection.send(wire.PRODUCE, 7, wire.produce_body([(made, 0, bad)], acks=0))
        assert connection.closed_by_peer()


@pytest.mark.parametrize("acks", [2, -2, 100])
def test_wrong_acks(connection, made, acks):
    code = wire.produce(connection, [(made, 0, wire.Batch(TWO).encode())], acks=acks)[0][0]
    assert code == wire.INVALID_REQUIRED_ACKS


def test_too_large_a_batch(connection, made):
    code = wire.produce(connection, [(made, 0, wire.Batch([b"x" * 2_000_000]).encode())])[0][0]
    assert code == wire.MESSAGE_TOO_LARGE


def test_timestamp_in_the_far_future(connection, made):
    far = int(time.time() * 1000) + 3 * 86_400_000
    code = wire.produce(connection, [(made, 0, wire.Batch(TWO, timestamp=far).encode())])[0][0]
    assert code == wire.INVALID_TIMESTAMP


# -- names and numbers --------------------------------------------------------------------------------


def test_unknown_topic_and_partition(broker, connection, made):
    good = wire.Batch([b"good"]).encode()
    answers = wire.produce(connection, [("no-such-topic", 0, good), (made, 77, good), (made, -3, good), (made, 0, good)])
    assert [code for code, _ in answers] == [wire.UNKNOWN_TOPIC_OR_PARTITION] * 3 + [wire.NONE]
    assert wire.fetch(connection, made, 0, partition=77)[0] == wire.UNKNOWN_TOPIC_OR_PARTITION
    assert wire.fetch(connection, "no-such-topic", 0)[0] == wire.UNKNOWN_TOPIC_OR_PARTITION
    assert wire.fetch(connection, made, 1000)[0] == wire.OFFSET_OUT_OF_RANGE
    assert wire.fetch(connection, made, -1)[0] == wire.OFFSET_OUT_OF_RANGE


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "x" * 250, "ü", "a\0b"])
def test_bad_topic_name(broker, connection, name):
    with undisturbed(broker):
        code, message = wire.create_topic(connection, name)
    assert (code, bool(message)) == (wire.INVALID_TOPIC_EXCEPTION, True)


@pytest.mark.parametrize(
    "partitions, replicas, expected",
    [
        (0, 1, wire.INVALID_PARTITIONS),
        (-2, 1, wire.INVALID_PARTITIONS),
        (1, 2, wire.INVALID_REPLICATION_FACTOR),
        (1, 0, wire.INVALID_REPLICATION_FACTOR),
    ],
)
def test_bad_topic_numbers(broker, connection, topic, partitions, replicas, expected):
    code, message = wire.create_topic(connection, topic, partitions, replicas)
    assert (code, bool(message)) == (expected, True)


@pytest.mark.flumen_only  # The reference tries, and does not come back.
def test_too_many_partitions(broker, connection, topic):
    with undisturbed(broker):
        code, message = wire.create_topic(connection, topic, (1 << 31) - 1)
    assert (code, bool(message)) == (wire.INVALID_PARTITIONS, True)


# -- manners ------------------------------------------------------------------------------------------


def test_answers_keep_the_order_of_requests(connection, made):
    good = wire.Batch([b"x" * 500]).encode()
    sent = []
    for n in range(200):
        sent.append(connection.send(wire.PRODUCE, 7, wire.produce_body([(made, n % 3, good)])))
        sent.append(connection.send(wire.METADATA, 1, wire.array([wire.string(made)])))
    assert [connection.receive()[0] for _ in sent] == sent


def fill(connection, topic, mib):
    for _ in range(mib * 2):
        answers = wire.produce(connection, [(topic, 0, wire.Batch([b"y" * (MIB // 2)]).encode())])
        assert answers[0][0] == wire.NONE


def test_clients_that_never_read(own_broker):
    """Fifty clients ask for 400 MiB each and read nothing. They alone wait."""
    broker = own_broker()
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, "never-read", timeout_s=10)
        fill(connection, "never-read", 32)
        with undisturbed(broker, 256 * MIB), contextlib.ExitStack() as held:
            for _ in range(50):
                one = held.enter_context(wire.Connection(broker.port, receive_buffer=4096))
                for _ in range(50):
                    one.send(wire.FETCH, 4, wire.fetch_body("never-read", [(0, 0)], partition_max_bytes=8 * MIB))
            time.sleep(2)
            began = time.monotonic()
            assert wire.produce(connection, [("never-read", 0, wire.Batch([b"z"]).encode())])[0][0] == wire.NONE
            assert wire.fetch(connection, "never-read", 0)[0] == wire.NONE
            assert time.monotonic() - began < 5
            during = broker.rss_bytes()
        assert during < 1600 * MIB


@pytest.mark.flumen_only  # The reference takes one request at a time.
def test_large_requests_behind_one_that_waits(own_broker):
    """They are not taken while their turn does not come: 2 GB behind a fetch that waits for ever."""
    broker = own_broker()
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, "waits", timeout_s=10)
        with undisturbed(broker, 256 * MIB), wire.Connection(broker.port, timeout_s=3) as one:
            one.send(wire.FETCH, 4, wire.fetch_body("waits", [(0, 0)], max_wait_ms=2**31 - 1, min_bytes=1))
            with pytest.raises(TimeoutError):
                for _ in range(100):
                    one.send(METADATA, 1, struct.pack(">i", 0) + bytes(20 * MIB))
            assert broker.rss_bytes() < 384 * MIB


METADATA = 3


@pytest.mark.flumen_only
def test_clients_that_never_read_what_is_on_disk(own_broker):
    """As above, of what no cache holds: each answer has memory of its own."""
    broker = own_broker(arguments=("--memory", "256MiB"))
    partitions = 4
    with wire.Connection(broker.port) as connection:
        assert wire.create_topic(connection, "cold", partitions)[0] == wire.NONE
        for n in range(100):
            batch = wire.Batch([bytes([n]) * (MIB - 1000)]).encode()
            assert wire.produce(connection, [("cold", p, batch) for p in range(partitions)])[0][0] == wire.NONE
    assert broker.stop() == 0
    broker.start()
    with contextlib.ExitStack() as held:
        for _ in range(40):
            one = held.enter_context(wire.Connection(broker.port, receive_buffer=4096))
            for at in range(100):
                one.send(wire.FETCH, 4, wire.fetch_body("cold", [(p, at) for p in range(partitions)]))
        rss_max(broker, 5, 600 * MIB)
        with wire.Connection(broker.port) as connection:
            assert wire.fetch(connection, "cold", 7, partition_max_bytes=1)[0] == wire.NONE
        rss_max(broker, 1, 600 * MIB)


@pytest.mark.flumen_only
def test_producers_faster_than_the_disk(own_broker):
    """They are not read while much of theirs waits, also where one shard has it of another."""
    broker = own_broker(arguments=("--memory", "128MiB", "--shards", "2"))
    with wire.Connection(broker.port) as connection:
        assert wire.create_topic(connection, "flood", 2)[0] == wire.NONE
    batch = wire.Batch([b"f" * (MIB - 1000)]).encode()
    with contextlib.ExitStack() as held:
        senders = []
        for n in range(32):
            one = held.enter_context(wire.Connection(broker.port))
            one.socket.setblocking(False)
            frame = wire.frame(wire.PRODUCE, 7, 1, wire.produce_body([("flood", n % 2, batch)]))
            senders.append([one.socket, memoryview(frame * 64), 0])
        deadline = time.monotonic() + 30
        while any(at < len(data) for _, data, at in senders) and time.monotonic() < deadline:
            for sender in senders:
                socket, data, at = sender
                with contextlib.suppress(BlockingIOError):
                    sender[2] += socket.send(data[at : at + MIB]) if at < len(data) else 0
            rss_max(broker, 0.001, 512 * MIB)
    with wire.Connection(broker.port) as connection:
        assert wire.produce(connection, [("flood", 0, wire.Batch([b"after"]).encode())])[0][0] == wire.NONE


def test_slow_reader(own_broker):
    """A reader that takes its answer in small bites gets it whole, and others do not wait for it."""
    broker = own_broker()
    with wire.Connection(broker.port) as connection, wire.Connection(broker.port, receive_buffer=4096) as slow:
        wire.create_served_topic(connection, "slow-reader", timeout_s=10)
        fill(connection, "slow-reader", 8)
        slow.send(wire.FETCH, 4, wire.fetch_body("slow-reader", [(0, 0)], partition_max_bytes=8 * MIB))
        (length,) = struct.unpack(">i", slow.socket.recv(4, 0x100))  # MSG_WAITALL
        taken = 0
        while taken < length:
            taken += len(slow.socket.recv(min(65_536, length - taken)))
            if taken < MIB:
                assert wire.fetch(connection, "slow-reader", 0, partition_max_bytes=1)[0] == wire.NONE
        assert length > 7 * MIB


@pytest.fixture
def many_files():
    """Room for thousands of sockets in this process, and in the broker that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 10_000 if hard == resource.RLIM_INFINITY else min(hard, 10_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_two_thousand_idle_connections(own_broker, many_files):
    broker = own_broker()
    with undisturbed(broker, 128 * MIB), contextlib.ExitStack() as held:
        for n in range(2000):
            one = held.enter_context(wire.Connection(broker.port))
            if n % 2:
                wire.api_versions(one)
        used = broker.cpu_s()
        time.sleep(1)
        assert wire.answers(broker.port)
        assert broker.cpu_s() - used < 0.5


def test_more_than_max_connections(own_broker):
    """Those that are in go on; there is room again as soon as some leave."""
    broker = own_broker(settings={"max.connections": "20"})
    with wire.Connection(broker.port) as inside:
        wire.api_versions(inside)
        with undisturbed(broker), contextlib.ExitStack() as held:
            for _ in range(100):
                with contextlib.suppress(OSError, wire.Closed):
                    held.enter_context(wire.Connection(broker.port, timeout_s=0.1))
            time.sleep(0.5)
            assert wire.api_versions(inside)
            held.close()
            deadline = time.monotonic() + 10
            while not wire.answers(broker.port):
                assert time.monotonic() < deadline, "no room after all have left"


def test_max_connections_is_of_all_shards_and_may_change(own_broker):
    broker = own_broker(settings={"max.connections": "5"})
    is_let_in = wire.answers
    with contextlib.ExitStack() as held:
        inside = [held.enter_context(wire.Connection(broker.port)) for _ in range(5)]
        for one in inside:
            wire.api_versions(one)
        assert not is_let_in(broker.port)
        assert wire.alter_broker(inside[0], {"max.connections": "6"}) == wire.NONE
        deadline = time.monotonic() + 10
        while not is_let_in(broker.port):
            assert time.monotonic() < deadline, "the new value is not heard"


def test_connections_of_one_address_are_limited(own_broker):
    """`max.connections.per.ip`, and its overrides: who has too many is refused, and no other."""
    here, named, nobody = "127.0.0.1", "127.0.0.2", "127.0.0.3"
    overrides = "max.connections.per.ip.overrides"
    broker = own_broker(settings={"max.connections.per.ip": "4", overrides: f"{named}:2,{nobody}:0"})
    with contextlib.ExitStack() as held:
        inside = [held.enter_context(wire.Connection(broker.port, source=here)) for _ in range(4)]
        inside += [held.enter_context(wire.Connection(broker.port, source=named)) for _ in range(2)]
        for one in inside:
            wire.api_versions(one)
        for source in (here, named, nobody):
            assert not wire.answers(broker.port, source), source
        assert wire.answers(broker.port, "127.0.0.4")
        inside[-1].close()
        deadline = time.monotonic() + 10
        while not wire.answers(broker.port, named):
            assert time.monotonic() < deadline, "no room after one has left"
        assert not wire.answers(broker.port, here)
        assert wire.alter_broker(inside[0], {overrides: "localhost:5"}) == wire.INVALID_CONFIG
        assert wire.alter_broker(inside[0], {overrides: f"{nobody}:1"}) == wire.NONE
        while not wire.answers(broker.port, nobody):
            assert time.monotonic() < deadline, "the new value is not heard"


def test_reconnects(broker):
    """Connections that come and go leave nothing behind."""
    with undisturbed(broker):
        for _ in range(2000):
            wire.Connection(broker.port).close()
