"""The Kafka protocol by hand, for what a well-behaved client cannot be made to do.

Only versions with the classic encoding (no compact strings, no tagged fields), so that the bytes of a test
can be read off its code. Independent of the `wire` crate on purpose.
"""

import dataclasses
import socket
import struct
import time

import crc32c

PRODUCE, FETCH, LIST_OFFSETS, METADATA = 0, 1, 2, 3
API_VERSIONS, CREATE_TOPICS, DELETE_TOPICS, INIT_PRODUCER_ID, OFFSET_FOR_LEADER_EPOCH = 18, 19, 20, 22, 23
DESCRIBE_CONFIGS, ALTER_CONFIGS, INCREMENTAL_ALTER_CONFIGS, CREATE_PARTITIONS = 32, 33, 44, 37

NONE = 0
OFFSET_OUT_OF_RANGE = 1
CORRUPT_MESSAGE = 2
UNKNOWN_TOPIC_OR_PARTITION = 3
NOT_LEADER_OR_FOLLOWER = 6
MESSAGE_TOO_LARGE = 10
INVALID_TOPIC_EXCEPTION = 17
INVALID_REQUIRED_ACKS = 21
INVALID_TIMESTAMP = 32
UNSUPPORTED_VERSION = 35
TOPIC_ALREADY_EXISTS = 36
INVALID_PARTITIONS = 37
INVALID_REPLICATION_FACTOR = 38
INVALID_CONFIG = 40
INVALID_REQUEST = 42
UNSUPPORTED_FOR_MESSAGE_FORMAT = 43
OUT_OF_ORDER_SEQUENCE_NUMBER = 45
DUPLICATE_SEQUENCE_NUMBER = 46
INVALID_PRODUCER_EPOCH = 47
KAFKA_STORAGE_ERROR = 56
INVALID_RECORD = 87
# A kind of resource that has settings.
TOPIC = 2
BROKER = 4


def string(text: str | None) -> bytes:
    if text is None:
        return struct.pack(">h", -1)
    raw = text.encode()
    return struct.pack(">h", len(raw)) + raw


def blob(raw: bytes | None) -> bytes:
    return struct.pack(">i", -1) if raw is None else struct.pack(">i", len(raw)) + raw


def array(items: list[bytes]) -> bytes:
    return struct.pack(">i", len(items)) + b"".join(items)


def varint(value: int) -> bytes:
    """A zig-zag variable-length integer, as records use it."""
    left = (value << 1) ^ (value >> 63)
    out = bytearray()
    while left & ~0x7F:
        out.append((left & 0x7F) | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)


class Reader:
    """Takes values off the front of a response."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, code: str) -> int:
        (value,) = struct.unpack_from(">" + code, self.data, self.at)
        self.at += struct.calcsize(">" + code)
        return value

    def raw_bytes(self, length: int) -> bytes:
        assert 0 <= length <= len(self.data) - self.at, f"length {length} past the end of the response"
        self.at += length
        return self.data[self.at - length : self.at]

    def string(self) -> str | None:
        length = self.take("h")
        return None if length < 0 else self.raw_bytes(length).decode()

    def blob(self) -> bytes | None:
        length = self.take("i")
        return None if length < 0 else self.raw_bytes(length)


class Closed(Exception):
    """The broker closed the connection."""


class Connection:
    """One TCP connection to a broker."""

    def __init__(
        self, port: int, timeout_s: float = 20, receive_buffer: int | None = None, source: str | None = None
    ):
        self.socket = socket.socket()
        if source is not None:
            self.socket.bind((source, 0))
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout_s)
        self.socket.connect(("127.0.0.1", port))
        self.correlation_id = 0

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def raw(self, data: bytes) -> None:
        """Sends bytes as they are. A connection that the broker has closed already is `Closed`."""
        try:
            self.socket.sendall(data)
        except (ConnectionResetError, BrokenPipeError) as error:
            raise Closed from error

    def send(self, api_key: int, version: int, body: bytes) -> int:
        """Sends one request with header v1; returns its correlation id."""
        self.correlation_id += 1
        self.raw(frame(api_key, version, self.correlation_id, body))
        return self.correlation_id

    def receive(self) -> tuple[int, Reader]:
        """The next response, with header v0: correlation id and body."""
        reader = Reader(self.receive_frame())
        return reader.take("i"), reader

    def receive_frame(self) -> bytes:
        (length,) = struct.unpack(">i", self._exactly(4))
        return self._exactly(length)

    def call(self, api_key: int, version: int, body: bytes) -> Reader:
        sent = self.send(api_key, version, body)
        answered, reader = self.receive()
        assert answered == sent, f"response {answered} to request {sent}"
        return reader

    def closed_by_peer(self) -> bool:
        """Waits for the broker to close. False when it sends something, or nothing in time."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            try:
                part = self.socket.recv(min(count, 1 << 20))
            except ConnectionResetError as error:
                raise Closed from error
            if not part:
                raise Closed
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def frame(api_key: int, version: int, correlation_id: int, body: bytes) -> bytes:
    header = struct.pack(">hhi", api_key, version, correlation_id) + string("wire")
    return blob(header + body)


def answers(port: int, source: str | None = None) -> bool:
    """Whether a broker on this port answers ApiVersions, and Metadata with itself in it; asked from that address."""
    try:
        with Connection(port, timeout_s=5, source=source) as connection:
            if connection.call(API_VERSIONS, 0, b"").take("h") != NONE:
                return False
            return connection.call(METADATA, 1, array([])).take("i") > 0
    except (OSError, Closed, struct.error):
        return False


# -- record batches -------------------------------------------------------------------------------


@dataclasses.dataclass
class Batch:
    """A record batch v2. What a test wants wrong, it sets; `count`, `crc`, `length` None means right."""

    values: list[bytes]
    timestamp: int = 1_600_000_000_000
    attributes: int = 0
    magic: int = 2
    producer_id: int = -1
    producer_epoch: int = -1
    base_sequence: int = -1
    count: int | None = None
    last_offset_delta: int | None = None
    crc: int | None = None
    length: int | None = None
    records: bytes | None = None

    def encode(self) -> bytes:
        records = self.records
        if records is None:
            records = b"".join(record(delta, value) for delta, value in enumerate(self.values))
        count = len(self.values) if self.count is None else self.count
        last = len(self.values) - 1 if self.last_offset_delta is None else self.last_offset_delta
        checked = struct.pack(
            ">hiqqqhii", self.attributes, last, self.timestamp, self.timestamp,
            self.producer_id, self.producer_epoch, self.base_sequence, count,
        ) + records  # fmt: skip
        crc = crc32c.crc32c(checked) if self.crc is None else self.crc
        length = 9 + len(checked) if self.length is None else self.length
        return struct.pack(">qiibI", 0, length, -1, self.magic, crc) + checked


def record(offset_delta: int, value: bytes, key: bytes | None = None) -> bytes:
    body = b"\0" + varint(0) + varint(offset_delta)
    body += varint(-1) if key is None else varint(len(key)) + key
    body += varint(len(value)) + value + varint(0)
    return varint(len(body)) + body


# -- requests -------------------------------------------------------------------------------------


def produce_body(
    partitions: list[tuple[str, int, bytes]], acks: int = -1, timeout_ms: int = 10_000
) -> bytes:
    """Produce v3 to v8 of `(topic, partition, records)`s."""
    topics: dict[str, list[bytes]] = {}
    for topic, partition, records in partitions:
        topics.setdefault(topic, []).append(struct.pack(">i", partition) + blob(records))
    entries = [string(topic) + array(of_topic) for topic, of_topic in topics.items()]
    return string(None) + struct.pack(">hi", acks, timeout_ms) + array(entries)


def produce(
    connection: Connection, partitions: list[tuple[str, int, bytes]], acks: int = -1
) -> list[tuple[int, int]]:
    """Produce v7; `(error code, base offset)` in the order asked."""
    answers = read_produce(connection.call(PRODUCE, 7, produce_body(partitions, acks)))
    return [answers[topic, partition] for topic, partition, _ in partitions]


def read_produce(reader: Reader) -> dict[tuple[str, int], tuple[int, int]]:
    """Produce v5 to v7: (topic, partition) -> (error code, base offset)."""
    out = {}
    for _ in range(reader.take("i")):
        topic = reader.string()
        for _ in range(reader.take("i")):
            partition, code, base_offset = reader.take("i"), reader.take("h"), reader.take("q")
            reader.take("q"), reader.take("q")
            out[topic, partition] = (code, base_offset)
    return out


def fetch_body(
    topic: str, partitions: list[tuple[int, int]], max_wait_ms: int = 1000, min_bytes: int = 1,
    max_bytes: int = 64 << 20, partition_max_bytes: int = 32 << 20,
) -> bytes:  # fmt: skip
    """Fetch v4 of `(partition, offset)`s."""
    entries = [struct.pack(">iqi", p, offset, partition_max_bytes) for p, offset in partitions]
    head = struct.pack(">iiiib", -1, max_wait_ms, min_bytes, max_bytes, 0)
    return head + array([string(topic) + array(entries)])


def read_fetch(reader: Reader) -> dict[int, tuple[int, int, bytes]]:
    """Fetch v4: partition -> (error code, high watermark, records)."""
    reader.take("i")
    out = {}
    for _ in range(reader.take("i")):
        reader.string()
        for _ in range(reader.take("i")):
            partition, code, high_watermark = reader.take("i"), reader.take("h"), reader.take("q")
            reader.take("q")
            for _ in range(max(0, reader.take("i"))):
                reader.take("q"), reader.take("q")
            out[partition] = (code, high_watermark, reader.blob() or b"")
    return out


def create_topic(
    connection: Connection, name: str, partitions: int = 1, replicas: int = 1,
    configs: dict[str, str] | None = None,
) -> tuple[int, str | None]:  # fmt: skip
    """CreateTopics v2; `(error code, message)`."""
    entries = [string(key) + string(value) for key, value in (configs or {}).items()]
    topic = string(name) + struct.pack(">ih", partitions, replicas) + array([]) + array(entries)
    reader = connection.call(CREATE_TOPICS, 2, array([topic]) + struct.pack(">ib", 30_000, 0))
    reader.take("i"), reader.take("i")
    reader.string()
    return reader.take("h"), reader.string()


def delete_topic(connection: Connection, name: str) -> int:
    """Deletes it and waits until that is done; returns the error code."""
    reader = connection.call(DELETE_TOPICS, 1, array([string(name)]) + struct.pack(">i", 10_000))
    reader.take("i"), reader.take("i"), reader.string()
    return reader.take("h")


def alter_topic(connection: Connection, topic: str, settings: dict[str, str]) -> int:
    """Sets settings of a topic; returns the error code."""
    return _alter(connection, TOPIC, topic, settings)


def alter_broker(connection: Connection, settings: dict[str, str]) -> int:
    """Sets settings of all brokers; returns the error code."""
    return _alter(connection, BROKER, "", settings)


def _alter(connection: Connection, kind: int, resource: str, settings: dict[str, str]) -> int:
    """IncrementalAlterConfigs v0, each setting set."""
    set_value = b"\0"
    changes = [string(name) + set_value + string(value) for name, value in settings.items()]
    body = array([bytes([kind]) + string(resource) + array(changes)]) + b"\0"
    reader = connection.call(INCREMENTAL_ALTER_CONFIGS, 0, body)
    reader.take("i"), reader.take("i")
    return reader.take("h")


def describe_configs(
    connection: Connection, kind: int, name: str
) -> dict[str, tuple[str | None, int, list[tuple[str | None, str | None, int]]]]:
    """DescribeConfigs v1, every setting of one resource: value, source, what lies behind."""
    body = array([struct.pack(">b", kind) + string(name) + struct.pack(">i", -1)]) + b"\1"
    answer = connection.call(DESCRIBE_CONFIGS, 1, body)
    answer.take("i")
    assert answer.take("i") == 1
    assert answer.take("h") == NONE
    answer.string(), answer.take("b"), answer.string()
    found = {}
    for _ in range(answer.take("i")):
        setting, value, _, source, _ = answer.string(), answer.string(), answer.take("b"), answer.take("b"), answer.take("b")
        behind = [(answer.string(), answer.string(), answer.take("b")) for _ in range(answer.take("i"))]
        found[setting] = value, source, behind
    return found


def create_served_topic(
    connection: Connection, name: str, partitions: int = 1, configs: dict[str, str] | None = None, timeout_s: float = 60,
) -> None:  # fmt: skip
    """Creates it and waits until every partition is served: the reference answers before."""
    code, message = create_topic(connection, name, partitions, 1, configs)
    assert code == NONE, message
    wait_until_served(connection, name, partitions, timeout_s)


def wait_until_served(connection: Connection, name: str, partitions: int = 1, timeout_s: float = 60) -> None:
    body = fetch_body(name, [(n, 0) for n in range(partitions)], max_wait_ms=0, min_bytes=0)
    deadline = time.monotonic() + timeout_s
    while {code for code, _, _ in read_fetch(connection.call(FETCH, 4, body)).values()} != {NONE}:
        assert time.monotonic() < deadline, f"{name} is not served"
        time.sleep(0.02)


def init_producer_id(connection: Connection, transactional_id: str | None = None) -> tuple[int, int, int]:
    """InitProducerId v1; `(error code, producer id, epoch)`."""
    reader = connection.call(INIT_PRODUCER_ID, 1, string(transactional_id) + struct.pack(">i", 60_000))
    reader.take("i")
    return reader.take("h"), reader.take("q"), reader.take("h")


def fetch(connection: Connection, topic: str, offset: int, partition: int = 0, **limits) -> tuple[int, int, bytes]:
    """Fetch v4 of one partition; `(error code, high watermark, records)`."""
    body = fetch_body(topic, [(partition, offset)], **limits)
    return read_fetch(connection.call(FETCH, 4, body))[partition]


LATEST = -1


def list_offsets(
    connection: Connection, topic: str, timestamp: int = LATEST, partitions: tuple[int, ...] = (0,)
) -> dict[int, tuple[int, int, int]]:
    """ListOffsets v4: by partition its error code, offset, and leader epoch."""
    asked = [struct.pack(">iiq", partition, -1, timestamp) for partition in partitions]
    body = struct.pack(">ib", -1, 0) + array([string(topic) + array(asked)])
    reader = connection.call(LIST_OFFSETS, 4, body)
    reader.take("i"), reader.take("i"), reader.string()
    answers = [[reader.take(field) for field in "ihqqi"] for _ in range(reader.take("i"))]
    return {partition: (code, offset, epoch) for partition, code, _, offset, epoch in answers}


def api_versions(connection: Connection) -> dict[int, tuple[int, int]]:
    """What the broker advertises: api key -> (lowest, highest version)."""
    reader = connection.call(API_VERSIONS, 0, b"")
    assert reader.take("h") == NONE
    return {reader.take("h"): (reader.take("h"), reader.take("h")) for _ in range(reader.take("i"))}
