"""An application changes over from the classic to the consumer protocol, one member after the other, and back again,
while it works: nothing is lost, and no partition has two owners when it has settled."""

import pytest

from harness import groups, members, wire

PARTITIONS = 12
TOPIC = "migrating"
RECORDS_PER_S = 600
CLASSIC_STATES = {"PreparingRebalance", "CompletingRebalance", "Stable", "Empty"}


@pytest.mark.parametrize(
    "client, classic",
    [("java", "range"), ("java", "cooperative-sticky"), ("librdkafka", "range"), ("librdkafka", "cooperative-sticky")],
)
def test_there_and_back(own_broker, client, classic):
    broker = own_broker(settings=members.SETTINGS)
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, TOPIC, PARTITIONS)
    group = members.Group(broker, f"{client}-{classic}", TOPIC, PARTITIONS, client, classic)
    load = members.Load(broker, TOPIC, PARTITIONS, RECORDS_PER_S)
    try:
        old = [group.join(), group.join()]
        group.until_shared(old)
        assert is_classic(broker, group.name)

        # The first member of the new protocol takes its share from the old ones.
        new = [group.join(protocol="consumer")]
        group.until_shared(old + new)
        assert not is_classic(broker, group.name)
        leave(old[0])
        group.until_shared(old[1:] + new)
        new.append(group.join(protocol="consumer"))
        group.until_shared(old[1:] + new)
        old[1].kill()
        group.until_shared(new)

        # And back.
        old = [group.join()]
        group.until_shared(new + old)
        leave(new[0])
        group.until_shared(new[1:] + old)
        assert not is_classic(broker, group.name)
        leave(new[1])
        old.append(group.join())
        group.until_shared(old)
        assert is_classic(broker, group.name)

        load.stop()
        group.until_processed(ends(broker))
        for one in old:
            leave(one)
        group.check_order()
    finally:
        load.ending.set()
        group.close()


def leave(member: members.Member) -> None:
    member.ask_to_leave()
    member.wait_left(20)


def is_classic(broker, group: str) -> bool:
    """DescribeGroups knows classic groups alone."""
    with wire.Connection(broker.port) as connection:
        return groups.describe(connection, group).state in CLASSIC_STATES


def ends(broker) -> dict[int, int]:
    out = {}
    with wire.Connection(broker.port) as connection:
        for partition in range(PARTITIONS):
            code, out[partition], _ = wire.fetch(connection, TOPIC, 0, partition, partition_max_bytes=1)
            assert code == wire.NONE
    return out
