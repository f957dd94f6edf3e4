"""The node is killed with SIGKILL while members are joining, by hand, so that it is known how far each had come: who was
acknowledged is still a member, what was committed is still there, and the group settles with everybody in it."""

import struct
import time

import pytest

from harness import groups, swarm, wire

MEMBERS, LATE, PARTITIONS = 20, 20, 40
SETTINGS = {
    "group.initial.rebalance.delay.ms": "0",
    "group.consumer.session.timeout.ms": "10000",
    "group.consumer.min.session.timeout.ms": "10000",
    "group.consumer.heartbeat.interval.ms": "500",
    "group.consumer.min.heartbeat.interval.ms": "500",
}
BEFORE_IT_SERVES = {
    groups.COORDINATOR_LOAD_IN_PROGRESS,
    groups.COORDINATOR_NOT_AVAILABLE,
    groups.NOT_COORDINATOR,
}


@pytest.fixture
def broker(own_broker, topic):
    """With a topic, and a coordinator that has loaded."""
    one = own_broker(settings=SETTINGS)
    with wire.Connection(one.port) as connection:
        wire.create_served_topic(connection, topic, PARTITIONS)
        until_coordinated(connection, topic)
    return one


def until_coordinated(connection, group):
    deadline = time.monotonic() + 30
    while groups.find_coordinator(connection, group)[0] != wire.NONE or groups.committed(connection, group)[0] != wire.NONE:
        assert time.monotonic() < deadline, "no coordinator"
        time.sleep(0.02)


def positions(connection, group) -> dict[int, int]:
    return {partition: found[0] for (_, partition), found in groups.committed(connection, group)[1].items()}


def test_classic_members(broker, topic):
    """Half are in a generation, the other half wait for it to end when the node is killed."""
    with wire.Connection(broker.port) as connection, swarm.Swarm(broker.port, topic, PARTITIONS, heartbeat_s=0.2) as crowd:
        old = crowd.connect({topic: MEMBERS})
        for one in old:
            one.join()
        crowd.run_until(crowd.settled, 60)
        crowd.fall_silent()
        late = crowd.connect({topic: LATE})
        for one in late:
            one.join()
        # With their ids they ask again, and wait: nobody of the generation knows of it yet.
        crowd.run_until(lambda: all(one.joins == 2 for one in late), 60)
        generation, ids = old[0].generation, {one.id for one in old}
        groups.until_rebalancing(connection, topic, generation, old[0].id)
        for at, one in enumerate(old):
            taken = groups.commit(connection, topic, {(topic, at): 100 + at}, generation=generation, member=one.id)
            assert taken == {(topic, at): wire.NONE}
        broker.kill()
    broker.start()
    with wire.Connection(broker.port) as connection, swarm.Swarm(broker.port, topic, PARTITIONS, heartbeat_s=0.2) as crowd:
        until_coordinated(connection, topic)
        assert positions(connection, topic) == {at: 100 + at for at in range(MEMBERS)}
        described = groups.describe(connection, topic)
        # The generation is what was written last; the join that was under way is forgotten.
        assert (described.state, set(described.members)) == ("Stable", ids)
        assert groups.heartbeat(connection, topic, generation, old[0].id) == wire.NONE
        for before, one in zip(old + late, crowd.connect({topic: MEMBERS + LATE}), strict=True):
            one.id = before.id
            one.join()
        crowd.run_until(crowd.settled, 60)
        assert {one.id for one in crowd.members} > ids, "who was acknowledged has lost its membership"
        assert {one.generation for one in crowd.members} == {crowd.members[0].generation}
        assert crowd.members[0].generation > generation
        assert sorted(p for one in crowd.members for p in dealt(one.assignment)) == list(range(PARTITIONS))
        stale = groups.commit(connection, topic, {(topic, 0): 1}, generation=generation, member=old[0].id)
        assert stale == {(topic, 0): groups.ILLEGAL_GENERATION}
        assert positions(connection, topic)[0] == 100


def dealt(assignment: bytes) -> list[int]:
    """The partitions of `groups.assignment`."""
    reader = wire.Reader(assignment)
    reader.take("h")
    assert reader.take("i") == 1
    reader.string()
    return [reader.take("i") for _ in range(reader.take("i"))]


class Subscriber:
    """A member of the protocol in which the broker assigns; `epoch` is 0 until it was acknowledged."""

    def __init__(self, group: str, topic: str):
        self.group, self.topic = group, topic
        self.id, self.epoch = "", 0
        self.owned: dict[bytes, list[int]] = {}

    def body(self) -> bytes:
        first = self.epoch == 0
        return groups.NO_TAGS + groups.consumer_heartbeat_body(
            self.group, self.id, self.epoch, topics=[self.topic] if first else None, owned=self.owned
        )

    def take(self, beat: groups.Beat) -> None:
        assert beat.code == wire.NONE, beat
        self.id, self.epoch = beat.member, beat.epoch
        if beat.assignment is not None:
            self.owned = beat.assignment

    def beat(self, connection) -> None:
        connection.send(groups.CONSUMER_GROUP_HEARTBEAT, 0, self.body())
        self.take(groups.read_consumer_heartbeat(connection.receive()[1]))

    def partitions(self) -> list[int]:
        return [one for of in self.owned.values() for one in of]


def share(connection, members: list[Subscriber]) -> None:
    """Heartbeats for all in turn, until each partition has one owner and all have their fair share."""
    deadline = time.monotonic() + 60
    while True:
        owned = sorted(one for member in members for one in member.partitions())
        sizes = {len(member.partitions()) for member in members}
        if owned == list(range(PARTITIONS)) and max(sizes) - min(sizes) <= 1:
            return
        assert time.monotonic() < deadline, [member.partitions() for member in members]
        for member in members:
            member.beat(connection)


def test_consumer_members(broker, topic):
    """Half share the partitions; of the other half, whose heartbeats are under way when the node is killed, some were
    acknowledged and some were not."""
    old = [Subscriber(topic, topic) for _ in range(MEMBERS)]
    late = [Subscriber(topic, topic) for _ in range(LATE)]
    with wire.Connection(broker.port) as connection:
        share(connection, old)
        for at, one in enumerate(old):
            assert commit(connection, topic, one, at, 100 + at) == wire.NONE
        for one in late:
            connection.send(groups.CONSUMER_GROUP_HEARTBEAT, 0, one.body())
        # Answers come in order: half of them are read, what the others come to is not known.
        for one in late[: LATE // 2]:
            one.take(groups.read_consumer_heartbeat(connection.receive()[1]))
        broker.kill()
    broker.start()
    with wire.Connection(broker.port) as connection:
        until_coordinated(connection, topic)
        assert positions(connection, topic) == {at: 100 + at for at in range(MEMBERS)}
        known = old + late[: LATE // 2]
        for one in known:
            # Who was acknowledged is still a member, with its epoch: `take` refuses anything else.
            one.beat(connection)
        # Those who never heard of it begin anew; what they may have left behind goes with its session.
        share(connection, known + late[LATE // 2 :])
        assert len({one.id for one in known + late}) == MEMBERS + LATE


def commit(connection, group: str, member: Subscriber, partition: int, offset: int) -> int:
    """OffsetCommit v9, the first that knows member epochs."""
    listed = struct.pack(">iqi", partition, offset, -1) + groups.compact_string("") + groups.NO_TAGS
    topic = groups.compact_string(member.topic) + groups.compact_array([listed]) + groups.NO_TAGS
    body = groups.compact_string(group) + struct.pack(">i", member.epoch) + groups.compact_string(member.id)
    body += groups.compact_string(None) + groups.compact_array([topic]) + groups.NO_TAGS
    raw = groups.flexible(connection, groups.OFFSET_COMMIT, 9, body)
    reader = groups.CompactReader(raw.data)
    reader.at = raw.at
    reader.tags()
    reader.take("i")
    assert reader.unsigned() == 2
    reader.compact_string()
    assert reader.unsigned() == 2 and reader.take("i") == partition
    return reader.take("h")
