"""The APIs of consumer groups by hand, on top of wire.py: what a well-behaved client cannot be made to say.

The classic ones in the last version with the classic encoding, the two of the newer protocol, which have no such
version, in their first one.
"""

import dataclasses
import struct
import time

from . import wire
from .wire import Reader, array, blob, string

OFFSET_COMMIT, OFFSET_FETCH, FIND_COORDINATOR = 8, 9, 10
JOIN_GROUP, HEARTBEAT, LEAVE_GROUP, SYNC_GROUP = 11, 12, 13, 14
DESCRIBE_GROUPS, LIST_GROUPS, DELETE_GROUPS, OFFSET_DELETE = 15, 16, 42, 47
CONSUMER_GROUP_HEARTBEAT, CONSUMER_GROUP_DESCRIBE = 68, 69

OFFSET_METADATA_TOO_LARGE = 12
COORDINATOR_LOAD_IN_PROGRESS = 14
COORDINATOR_NOT_AVAILABLE = 15
NOT_COORDINATOR = 16
ILLEGAL_GENERATION = 22
INCONSISTENT_GROUP_PROTOCOL = 23
INVALID_GROUP_ID = 24
UNKNOWN_MEMBER_ID = 25
INVALID_SESSION_TIMEOUT = 26
REBALANCE_IN_PROGRESS = 27
INVALID_COMMIT_OFFSET_SIZE = 28
INVALID_REQUEST = 42
NON_EMPTY_GROUP = 68
GROUP_ID_NOT_FOUND = 69
MEMBER_ID_REQUIRED = 79
GROUP_MAX_SIZE_REACHED = 81
FENCED_INSTANCE_ID = 82
GROUP_SUBSCRIBED_TO_TOPIC = 86
FENCED_MEMBER_EPOCH = 110
UNRELEASED_INSTANCE_ID = 111
UNSUPPORTED_ASSIGNOR = 112
STALE_MEMBER_EPOCH = 113

SUBSCRIPTION = struct.pack(">h", 0) + array([]) + blob(None)


def subscription(topics: list[str]) -> bytes:
    """The metadata that a consumer joins with: ConsumerProtocolSubscription v0."""
    return struct.pack(">h", 0) + array([string(one) for one in topics]) + blob(None)


def assignment(topic: str, partitions: list[int]) -> bytes:
    """What a member is assigned: ConsumerProtocolAssignment v0."""
    listed = array([struct.pack(">i", one) for one in partitions])
    return struct.pack(">h", 0) + array([string(topic) + listed]) + blob(None)


@dataclasses.dataclass
class Joined:
    code: int
    generation: int
    protocol: str | None
    leader: str | None
    member: str | None
    # Of the leader: member id -> metadata.
    members: dict[str, bytes]


def join_body(
    group: str, member: str = "", *, instance: str | None = None, session_ms: int = 10_000, rebalance_ms: int = 10_000,
    protocol_type: str = "consumer", protocols: list[tuple[str, bytes]] | None = None,
) -> bytes:  # fmt: skip
    """JoinGroup v5."""
    if protocols is None:
        protocols = [("range", SUBSCRIPTION)]
    listed = array([string(name) + blob(metadata) for name, metadata in protocols])
    timeouts = struct.pack(">ii", session_ms, rebalance_ms)
    return string(group) + timeouts + string(member) + string(instance) + string(protocol_type) + listed


def read_join(reader: Reader) -> Joined:
    reader.take("i")
    code, generation = reader.take("h"), reader.take("i")
    protocol, leader, member = reader.string(), reader.string(), reader.string()
    members = {}
    for _ in range(reader.take("i")):
        name = reader.string()
        reader.string()
        members[name] = reader.blob()
    return Joined(code, generation, protocol, leader, member, members)


def join(connection: wire.Connection, group: str, member: str = "", **how) -> Joined:
    return read_join(connection.call(JOIN_GROUP, 5, join_body(group, member, **how)))


def join_fully(connection: wire.Connection, group: str, **how) -> Joined:
    """As a client does: a dynamic member is given its id first."""
    given = join(connection, group, **how)
    return join(connection, group, given.member, **how) if given.code == MEMBER_ID_REQUIRED else given


def sync_body(group: str, generation: int, member: str, assignments: dict[str, bytes], instance: str | None = None) -> bytes:
    """SyncGroup v3."""
    listed = array([string(name) + blob(one) for name, one in assignments.items()])
    return string(group) + struct.pack(">i", generation) + string(member) + string(instance) + listed


def read_sync(reader: Reader) -> tuple[int, bytes]:
    reader.take("i")
    return reader.take("h"), reader.blob()


def sync(connection, group, generation, member, assignments=None, instance=None) -> tuple[int, bytes]:
    return read_sync(connection.call(SYNC_GROUP, 3, sync_body(group, generation, member, assignments or {}, instance)))


def heartbeat_body(group: str, generation: int, member: str, instance: str | None = None) -> bytes:
    """Heartbeat v3."""
    return string(group) + struct.pack(">i", generation) + string(member) + string(instance)


def heartbeat(connection, group, generation, member, instance=None) -> int:
    reader = connection.call(HEARTBEAT, 3, heartbeat_body(group, generation, member, instance))
    reader.take("i")
    return reader.take("h")


def until_rebalancing(connection, group, generation, member):
    """Another member's join, sent on another connection, has arrived."""
    deadline = time.monotonic() + 5
    while (code := heartbeat(connection, group, generation, member)) == wire.NONE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert code == REBALANCE_IN_PROGRESS


def leave(connection, group: str, members: list[tuple[str, str | None]]) -> tuple[int, list[int]]:
    """LeaveGroup v3 of `(member id, instance id)`s: the code, and that of each."""
    body = string(group) + array([string(member) + string(instance) for member, instance in members])
    reader = connection.call(LEAVE_GROUP, 3, body)
    reader.take("i")
    code, codes = reader.take("h"), []
    for _ in range(reader.take("i")):
        reader.string(), reader.string()
        codes.append(reader.take("h"))
    return code, codes


def commit_body(
    group: str, offsets: dict[tuple[str, int], int], *, generation: int = -1, member: str = "",
    instance: str | None = None, metadata: str | None = "",
) -> bytes:  # fmt: skip
    """OffsetCommit v7 of (topic, partition) -> offset."""
    topics: dict[str, list[bytes]] = {}
    for (topic, partition), offset in offsets.items():
        topics.setdefault(topic, []).append(struct.pack(">iqi", partition, offset, -1) + string(metadata))
    body = string(group) + struct.pack(">i", generation) + string(member) + string(instance)
    return body + array([string(topic) + array(listed) for topic, listed in topics.items()])


def commit(connection, group: str, offsets: dict[tuple[str, int], int], **how) -> dict[tuple[str, int], int]:
    """Commits them; (topic, partition) -> code."""
    reader = connection.call(OFFSET_COMMIT, 7, commit_body(group, offsets, **how))
    reader.take("i")
    out = {}
    for _ in range(reader.take("i")):
        topic = reader.string()
        for _ in range(reader.take("i")):
            partition = reader.take("i")
            out[topic, partition] = reader.take("h")
    return out


def committed(connection, group: str, topic: str | None = None, partitions: list[int] | None = None):
    """OffsetFetch v5; `(code, {(topic, partition): (offset, metadata, code)})`, of everything without a topic."""
    asked = struct.pack(">i", -1)
    if topic is not None:
        asked = array([string(topic) + array([struct.pack(">i", one) for one in partitions or []])])
    reader = connection.call(OFFSET_FETCH, 5, string(group) + asked)
    reader.take("i")
    out = {}
    for _ in range(reader.take("i")):
        name = reader.string()
        for _ in range(reader.take("i")):
            partition, offset = reader.take("i"), reader.take("q")
            reader.take("i")
            out[name, partition] = (offset, reader.string(), reader.take("h"))
    return reader.take("h"), out


def find_coordinator(connection, key: str, key_type: int = 0) -> tuple[int, int]:
    """FindCoordinator v2; `(code, node id)`."""
    reader = connection.call(FIND_COORDINATOR, 2, string(key) + struct.pack(">b", key_type))
    reader.take("i")
    code = reader.take("h")
    reader.string()
    return code, reader.take("i")


@dataclasses.dataclass
class Described:
    code: int
    state: str | None
    protocol_type: str | None
    protocol: str | None
    members: list[str]


def describe(connection, group: str) -> Described:
    """DescribeGroups v4 of one group."""
    reader = connection.call(DESCRIBE_GROUPS, 4, array([string(group)]) + b"\0")
    reader.take("i")
    assert reader.take("i") == 1
    code = reader.take("h")
    assert reader.string() == group
    state, protocol_type, protocol = reader.string(), reader.string(), reader.string()
    members = []
    for _ in range(reader.take("i")):
        members.append(reader.string())
        reader.string(), reader.string(), reader.string(), reader.blob(), reader.blob()
    return Described(code, state, protocol_type, protocol, members)


def list_groups(connection) -> dict[str, str]:
    """ListGroups v2: group -> protocol type."""
    reader = connection.call(LIST_GROUPS, 2, b"")
    reader.take("i")
    assert reader.take("h") == wire.NONE
    return {reader.string(): reader.string() for _ in range(reader.take("i"))}


def delete(connection, groups: list[str]) -> dict[str, int]:
    """DeleteGroups v1: group -> code."""
    reader = connection.call(DELETE_GROUPS, 1, array([string(one) for one in groups]))
    reader.take("i")
    return {reader.string(): reader.take("h") for _ in range(reader.take("i"))}


def delete_offsets(connection, group: str, topic: str, partitions: list[int]) -> tuple[int, dict[int, int]]:
    """OffsetDelete v0: the code, and that of each partition."""
    listed = array([struct.pack(">i", one) for one in partitions])
    reader = connection.call(OFFSET_DELETE, 0, string(group) + array([string(topic) + listed]))
    code = reader.take("h")
    reader.take("i")
    out = {}
    for _ in range(reader.take("i")):
        reader.string()
        for _ in range(reader.take("i")):
            partition = reader.take("i")
            out[partition] = reader.take("h")
    return code, out


# -- the newer protocol -------------------------------------------------------------------------------


def unsigned(value: int) -> bytes:
    """An unsigned variable-length integer."""
    out = bytearray()
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    return bytes([*out, value])


def compact_string(text: str | None) -> bytes:
    if text is None:
        return b"\0"
    raw = text.encode()
    return unsigned(len(raw) + 1) + raw


def compact_array(items: list[bytes] | None) -> bytes:
    return b"\0" if items is None else unsigned(len(items) + 1) + b"".join(items)


NO_TAGS = b"\0"


class CompactReader(Reader):
    """Takes the flexible encoding off the front of a response."""

    def unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self.take("B")
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def compact_string(self) -> str | None:
        length = self.unsigned() - 1
        return None if length < 0 else self.raw_bytes(length).decode()

    def tags(self) -> None:
        for _ in range(self.unsigned()):
            self.unsigned()
            self.raw_bytes(self.unsigned())


@dataclasses.dataclass
class Beat:
    code: int
    message: str | None
    member: str | None
    epoch: int
    interval_ms: int
    # Topic id -> partitions; None when the answer says nothing of it.
    assignment: dict[bytes, list[int]] | None


def consumer_heartbeat_body(
    group: str, member: str, epoch: int, *, instance: str | None = None, rebalance_ms: int = 10_000,
    topics: list[str] | None = None, assignor: str | None = None, owned: dict[bytes, list[int]] | None = None,
) -> bytes:  # fmt: skip
    """ConsumerGroupHeartbeat v0, in which the member's id may be empty. None: nothing changed."""
    body = compact_string(group) + compact_string(member) + struct.pack(">i", epoch)
    body += compact_string(instance) + compact_string(None) + struct.pack(">i", rebalance_ms)
    body += compact_array(None if topics is None else [compact_string(one) for one in topics])
    body += compact_string(assignor)
    if owned is not None:
        owned = [
            topic + compact_array([struct.pack(">i", one) for one in partitions]) + NO_TAGS
            for topic, partitions in owned.items()
        ]
    return body + compact_array(owned) + NO_TAGS


def read_consumer_heartbeat(data: Reader) -> Beat:
    reader = CompactReader(data.data)
    reader.at = data.at
    # The rest of the header.
    reader.tags()
    reader.take("i")
    code, message, member = reader.take("h"), reader.compact_string(), reader.compact_string()
    epoch, interval_ms = reader.take("i"), reader.take("i")
    assigned = None
    if reader.take("b") >= 0:
        assigned = {}
        for _ in range(reader.unsigned() - 1):
            topic = reader.raw_bytes(16)
            assigned[topic] = [reader.take("i") for _ in range(reader.unsigned() - 1)]
            reader.tags()
    return Beat(code, message, member, epoch, interval_ms, assigned)


def flexible(connection: wire.Connection, api_key: int, version: int, body: bytes) -> Reader:
    """A request with header v2; the response still has its header's tags in front."""
    return connection.call(api_key, version, NO_TAGS + body)


def consumer_heartbeat(connection, group: str, member: str, epoch: int, **how) -> Beat:
    body = consumer_heartbeat_body(group, member, epoch, **how)
    return read_consumer_heartbeat(flexible(connection, CONSUMER_GROUP_HEARTBEAT, 0, body))
