"""Members with bad manners, by hand: each gets the error code that Kafka gives it, others are served all the while, and
the node's memory is bounded. Run with `--peer kafka`, these say what the reference answers."""

import collections
import contextlib
import random
import struct
import time

import pytest
from test_hostile import Shouting, mutated

from harness import brokers, groups, swarm, wire

MIB = 1 << 20
SETTINGS = {
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "group.max.size": "600",
    "group.consumer.session.timeout.ms": "2000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.heartbeat.interval.ms": "500",
    "group.consumer.min.heartbeat.interval.ms": "500",
}
BEFORE_IT_SERVES = {
    groups.COORDINATOR_LOAD_IN_PROGRESS,
    groups.COORDINATOR_NOT_AVAILABLE,
    groups.NOT_COORDINATOR,
}


@pytest.fixture(scope="module")
def broker(peer):
    """Short sessions, small groups, and a coordinator that has loaded."""
    with peer(settings=SETTINGS) as one:
        with wire.Connection(one.port) as connection:
            until_coordinated(connection, "any")
        yield one
        assert one.running(), "the broker ended during the suite"


def until_coordinated(connection, group):
    """The offsets topic is made on first use; whoever comes early is told to come again."""
    deadline = time.monotonic() + 30
    while groups.find_coordinator(connection, group)[0] != wire.NONE or groups.committed(connection, group)[0] != wire.NONE:
        assert time.monotonic() < deadline, "no coordinator"
        time.sleep(0.05)


@pytest.fixture
def connection(broker):
    with wire.Connection(broker.port) as one:
        yield one


@pytest.fixture
def group(connection, topic) -> str:
    """A group name that no other test uses."""
    return topic


@pytest.fixture
def made(connection, topic) -> str:
    """A topic with three partitions, served."""
    wire.create_served_topic(connection, topic, 3)
    return topic


def settled(connection, group, **how) -> groups.Joined:
    """A group of one, stable."""
    joined = groups.join_fully(connection, group, **how)
    assert (joined.code, joined.leader) == (wire.NONE, joined.member)
    assert groups.sync(connection, group, joined.generation, joined.member, {joined.member: b"x"}) == (wire.NONE, b"x")
    return joined


# -- who is unknown, late, or wrong ---------------------------------------------------------------------


def test_member_id_is_required(connection, group):
    """A member without an id is given one, and with it is in; a group of pending members is Empty."""
    first = groups.join(connection, group)
    assert first.code == groups.MEMBER_ID_REQUIRED and first.member
    joined = groups.join(connection, group, first.member)
    assert (joined.code, joined.generation, joined.member, joined.protocol) == (wire.NONE, 1, first.member, "range")
    assert joined.members == {first.member: groups.SUBSCRIPTION}


def test_unknown_member(connection, group):
    assert groups.heartbeat(connection, group, 1, "nobody") == groups.UNKNOWN_MEMBER_ID
    assert groups.sync(connection, group, 1, "nobody")[0] == groups.UNKNOWN_MEMBER_ID
    assert groups.join(connection, group, "nobody").code == groups.UNKNOWN_MEMBER_ID
    assert groups.leave(connection, group, [("nobody", None)]) == (wire.NONE, [groups.UNKNOWN_MEMBER_ID])
    joined = settled(connection, group)
    assert groups.heartbeat(connection, group, joined.generation, "nobody") == groups.UNKNOWN_MEMBER_ID
    assert groups.sync(connection, group, joined.generation, "nobody")[0] == groups.UNKNOWN_MEMBER_ID
    assert groups.join(connection, group, "nobody").code == groups.UNKNOWN_MEMBER_ID
    assert groups.leave(connection, group, [("nobody", None)]) == (wire.NONE, [groups.UNKNOWN_MEMBER_ID])
    assert groups.heartbeat(connection, group, joined.generation, joined.member) == wire.NONE


def test_unknown_member_commits(connection, group, made):
    def commit(**how):
        return groups.commit(connection, group, {(made, 0): 5}, **how)[made, 0]

    assert commit(generation=3, member="nobody") == groups.ILLEGAL_GENERATION
    joined = settled(connection, group)
    assert commit(generation=joined.generation, member="nobody") == groups.UNKNOWN_MEMBER_ID
    assert commit(generation=joined.generation + 1, member=joined.member) == groups.ILLEGAL_GENERATION
    # Nobody commits from outside while the group has members.
    assert commit() == groups.UNKNOWN_MEMBER_ID
    assert groups.committed(connection, group, made, [0])[1][made, 0][0] == -1
    assert commit(generation=joined.generation, member=joined.member) == wire.NONE
    assert groups.committed(connection, group, made, [0]) == (wire.NONE, {(made, 0): (5, "", wire.NONE)})


@pytest.mark.parametrize("off_by", [-1, 1, 1_000_000])
def test_wrong_generation(connection, group, off_by):
    joined = settled(connection, group)
    generation = joined.generation + off_by
    assert groups.heartbeat(connection, group, generation, joined.member) == groups.ILLEGAL_GENERATION
    assert groups.sync(connection, group, generation, joined.member)[0] == groups.ILLEGAL_GENERATION
    assert groups.heartbeat(connection, group, joined.generation, joined.member) == wire.NONE


def test_stale_member_after_a_rebalance(broker, connection, group, made):
    """Who sleeps through a rebalance is told first that there is one, and after it that it is not a member any more."""
    slow = settled(connection, group, rebalance_ms=700, session_ms=5_000)
    with wire.Connection(broker.port) as other:
        given = groups.join(other, group)
        other.send(groups.JOIN_GROUP, 5, groups.join_body(group, given.member, rebalance_ms=700))
        groups.until_rebalancing(connection, group, slow.generation, slow.member)
        # It may still say how far it came.
        assert groups.commit(connection, group, {(made, 0): 7}, generation=slow.generation, member=slow.member) == {
            (made, 0): wire.NONE
        }
        joined = groups.read_join(other.receive()[1])
        assert (joined.code, list(joined.members)) == (wire.NONE, [given.member])
        assert groups.heartbeat(connection, group, slow.generation, slow.member) == groups.UNKNOWN_MEMBER_ID
        assert groups.commit(connection, group, {(made, 0): 8}, generation=slow.generation, member=slow.member) == {
            (made, 0): groups.UNKNOWN_MEMBER_ID
        }
        assert groups.committed(other, group, made, [0])[1][made, 0][0] == 7


def test_wrong_protocol(connection, broker, group):
    settled(connection, group)
    with wire.Connection(broker.port) as other:
        for how in (
            {"protocol_type": "connect"},
            {"protocol_type": ""},
            {"protocols": []},
            {"protocols": [("nobody-else-has-it", groups.SUBSCRIPTION)]},
        ):
            assert groups.join(other, group, **how).code == groups.INCONSISTENT_GROUP_PROTOCOL, how
        assert groups.join(other, group + "-new", protocol_type="").code == groups.INCONSISTENT_GROUP_PROTOCOL
        assert groups.join(other, group + "-new", protocols=[]).code == groups.INCONSISTENT_GROUP_PROTOCOL


def test_the_protocol_that_all_have_is_chosen(broker, connection, group):
    one = groups.join(connection, group, protocols=[("a", b"1"), ("b", b"2")])
    joined = groups.join(connection, group, one.member, protocols=[("a", b"1"), ("b", b"2")])
    assert joined.protocol == "a"
    with wire.Connection(broker.port) as other:
        given = groups.join(other, group, protocols=[("b", b"3"), ("c", b"4")])
        other.send(groups.JOIN_GROUP, 5, groups.join_body(group, given.member, protocols=[("b", b"3"), ("c", b"4")]))
        groups.until_rebalancing(connection, group, joined.generation, one.member)
        again = groups.join(connection, group, one.member, protocols=[("a", b"1"), ("b", b"2")])
        assert (again.code, again.protocol) == (wire.NONE, "b")
        assert again.members == {one.member: b"2", given.member: b"3"}
        assert groups.read_join(other.receive()[1]).members == {}


@pytest.mark.parametrize("session_ms", [0, -1, 499, 1_800_001, (1 << 31) - 1])
def test_session_timeout_out_of_range(connection, group, session_ms):
    assert groups.join(connection, group, session_ms=session_ms).code == groups.INVALID_SESSION_TIMEOUT


def test_group_without_a_name(connection, made):
    assert groups.join(connection, "").code == groups.INVALID_GROUP_ID
    assert groups.heartbeat(connection, "", 1, "a") == groups.INVALID_GROUP_ID
    assert groups.sync(connection, "", 1, "a")[0] == groups.INVALID_GROUP_ID
    assert groups.leave(connection, "", [("a", None)])[0] == groups.INVALID_GROUP_ID
    assert groups.delete(connection, [""]) == {"": groups.GROUP_ID_NOT_FOUND}


def test_key_type_that_nobody_knows(connection):
    assert groups.find_coordinator(connection, "a", 77)[0] == groups.INVALID_REQUEST


def test_static_member_is_fenced(broker, connection, group):
    """Two with one instance id: the first is out, with the error that says so."""
    first = groups.join(connection, group, instance="i")
    assert first.code == wire.NONE, "a static member needs no round trip for its id"
    assert groups.sync(connection, group, first.generation, first.member, {first.member: b"x"}, "i")[0] == wire.NONE
    with wire.Connection(broker.port) as other:
        second = groups.join(other, group, instance="i")
        assert second.code == wire.NONE and second.member != first.member
        # The same subscription: no rebalance, the same generation.
        assert second.generation == first.generation
    fenced = groups.FENCED_INSTANCE_ID
    assert groups.heartbeat(connection, group, first.generation, first.member, "i") == fenced
    assert groups.sync(connection, group, first.generation, first.member, instance="i")[0] == fenced
    assert groups.join(connection, group, first.member, instance="i").code == fenced
    assert groups.leave(connection, group, [(first.member, "i")]) == (wire.NONE, [fenced])
    assert groups.leave(connection, group, [("", "i")]) == (wire.NONE, [wire.NONE])


def test_group_is_full(broker, connection, group):
    """The member past `group.max.size` is refused, and those who are in stay."""
    with swarm.Swarm(broker.port, "any", 600, heartbeat_s=0.5) as full:
        for one in full.connect({group: 600}):
            one.join()
        full.run_until(full.settled, 60)
        assert groups.join(connection, group).code == groups.GROUP_MAX_SIZE_REACHED
        assert len(groups.describe(connection, group).members) == 600


# -- too much ---------------------------------------------------------------------------------------------


def test_oversized_commit_metadata(connection, group, made):
    """Its partition is refused; the others of the request are not."""

    def commit(partition, size):
        return groups.commit(connection, group, {(made, partition): 1}, metadata="m" * size)[made, partition]

    assert commit(0, 4096) == wire.NONE
    assert commit(1, 4097) == groups.OFFSET_METADATA_TOO_LARGE
    assert commit(2, 32_767) == groups.OFFSET_METADATA_TOO_LARGE
    found = groups.committed(connection, group)[1]
    assert found == {(made, 0): (1, "m" * 4096, wire.NONE)}


def test_oversized_subscription(broker, connection, group):
    """Larger than what a record of the offsets topic may be. The reference does not answer."""
    with brokers.undisturbed(broker, growth_max=128 * MIB), wire.Connection(broker.port, timeout_s=3) as other:
        huge = [("range", b"x" * (20 * MIB))]
        with contextlib.suppress(wire.Closed, TimeoutError):
            joined = groups.join_fully(other, group, protocols=huge)
            if joined.code == wire.NONE:
                code, _ = groups.sync(other, group, joined.generation, joined.member, {joined.member: b"x"})
                assert code != wire.NONE
    assert settled(connection, group + "-other").code == wire.NONE


def test_oversized_assignment(broker, connection, group):
    with brokers.undisturbed(broker, growth_max=128 * MIB), wire.Connection(broker.port) as other:
        joined = groups.join_fully(other, group)
        assert joined.code == wire.NONE
        with contextlib.suppress(wire.Closed):
            assignment = {joined.member: b"x" * (20 * MIB)}
            code, _ = groups.sync(other, group, joined.generation, joined.member, assignment)
            assert code == UNKNOWN_SERVER_ERROR
    assert settled(connection, group + "-other").code == wire.NONE


UNKNOWN_SERVER_ERROR = -1


def test_commits_for_what_does_not_exist(connection, group, made):
    """Each such partition is refused; the others of the request are not, and nothing of it is kept."""
    asked = {(made, 0): 3, (made, 3): 1, (made, -1): 1, (made, (1 << 31) - 1): 1, ("no-such-topic", 0): 1}
    found = groups.commit(connection, group, asked)
    assert found.pop((made, 0)) == wire.NONE
    assert set(found.values()) == {wire.UNKNOWN_TOPIC_OR_PARTITION} and len(found) == 4
    assert groups.committed(connection, group)[1] == {(made, 0): (3, "", wire.NONE)}
    answer = groups.committed(connection, group, "no-such-topic", [0, 77])
    assert answer == (wire.NONE, {("no-such-topic", p): (-1, "", wire.NONE) for p in (0, 77)})


def test_many_commits_for_what_does_not_exist(broker, connection, group):
    with brokers.undisturbed(broker):
        for n in range(20):
            asked = {(f"no-such-topic-{n}-{k}", p): 1 for k in range(50) for p in range(20)}
            assert set(groups.commit(connection, group, asked).values()) == {wire.UNKNOWN_TOPIC_OR_PARTITION}
    assert groups.committed(connection, group)[1] == {}


@pytest.mark.flumen_only  # The reference makes all of it, and is out of heap.
def test_an_answer_that_nobody_would_take(broker, connection, group, made):
    """Few bytes that ask for 400 MiB: the same offset, named very often. The connection is closed."""
    assert groups.commit(connection, group, {(made, 0): 1}, metadata="m" * 4096) == {(made, 0): wire.NONE}
    with brokers.undisturbed(broker, growth_max=128 * MIB), wire.Connection(broker.port) as other:
        with pytest.raises(wire.Closed):
            groups.committed(other, group, made, [0] * 100_000)
    assert groups.committed(connection, group, made, [0, 0])[1][made, 0][0] == 1


def test_an_offset_is_deleted_once(broker, connection, group, made):
    """However often it is named: each deletion would be a record with the group's name."""
    long = group + "x" * 30_000
    assert groups.commit(connection, long, {(made, 0): 1}) == {(made, 0): wire.NONE}
    partitions = bytes(4) * 300_000
    listed = struct.pack(">i", 300_000) + partitions
    body = wire.string(long) + wire.array([wire.string(made) + listed])
    with brokers.undisturbed(broker, growth_max=256 * MIB):
        assert connection.call(groups.OFFSET_DELETE, 0, body).take("h") == wire.NONE
    assert groups.committed(connection, long)[1] == {}


@pytest.mark.flumen_only  # The reference describes as many as are named.
def test_more_groups_than_there_can_be(broker, connection, group):
    with brokers.undisturbed(broker, growth_max=128 * MIB), wire.Connection(broker.port) as other:
        other.send(groups.DESCRIBE_GROUPS, 4, struct.pack(">i", 1_000_000) + b"\0\0" * 1_000_000 + b"\0")
        assert other.closed_by_peer()
    named = wire.array([wire.string(f"{group}-{n}") for n in range(5000)])
    answer = connection.call(groups.DESCRIBE_GROUPS, 4, named + b"\0")
    answer.take("i")
    assert answer.take("i") == 5000


def test_members_that_leave_while_they_wait(broker, connection, group):
    """Who has closed its connection has none, though its join waits for a member that does not come."""
    first = settled(connection, group, session_ms=30_000, rebalance_ms=30_000)
    before = broker.files()
    for _ in range(100):
        with wire.Connection(broker.port) as one:
            given = groups.join(one, group, session_ms=30_000, rebalance_ms=30_000)
            assert given.code == groups.MEMBER_ID_REQUIRED
            one.send(groups.JOIN_GROUP, 5, groups.join_body(group, given.member, session_ms=30_000, rebalance_ms=30_000))
    deadline = time.monotonic() + 10
    while broker.files() > before + 20:
        assert time.monotonic() < deadline, f"{broker.files()} files, {before} before"
        time.sleep(0.05)
    assert groups.heartbeat(connection, group, first.generation, first.member) == groups.REBALANCE_IN_PROGRESS


def test_join_storm(broker, connection, group):
    """500 at once: all get into one generation, one of them leads, each has what it was given."""
    with brokers.undisturbed(broker), swarm.Swarm(broker.port, "any", 1000, heartbeat_s=0.5) as crowd:
        every = crowd.connect({group: 500})
        for one in every:
            one.join()
        crowd.run_until(crowd.settled, 60)
        assert sum(one.leads for one in every) == 1
        assert collections.Counter(one.assignment for one in every).most_common(1)[0][1] == 1, "two have the same"
        assert sorted(groups.describe(connection, group).members) == sorted(one.id for one in every)
        with wire.Connection(broker.port) as other:
            assert settled(other, group + "-other").code == wire.NONE


def test_join_and_die(broker, connection, group):
    """A member that asks, is given an id, joins and is gone, 1,000 times: all of it is forgotten in time."""
    with brokers.undisturbed(broker):
        for _ in range(1000):
            with wire.Connection(broker.port) as one:
                given = groups.join(one, group, session_ms=500)
                if given.code == groups.GROUP_MAX_SIZE_REACHED:
                    continue
                assert given.code == groups.MEMBER_ID_REQUIRED
                one.send(groups.JOIN_GROUP, 5, groups.join_body(group, given.member, session_ms=500, rebalance_ms=500))
        deadline = time.monotonic() + 30
        while (found := groups.describe(connection, group)).state not in ("Empty", "Dead"):
            assert time.monotonic() < deadline, f"{found.state} with {len(found.members)} members"
            time.sleep(0.1)
    assert settled(connection, group).code == wire.NONE


def test_pending_members_are_forgotten(broker, connection, group):
    """An id that was given and never used costs something only until its session would be over."""
    with brokers.undisturbed(broker):
        codes = collections.Counter()
        for _ in range(1000):
            with wire.Connection(broker.port) as one:
                codes[groups.join(one, group, session_ms=500).code] += 1
        assert set(codes) <= {groups.MEMBER_ID_REQUIRED, groups.GROUP_MAX_SIZE_REACHED}
        deadline = time.monotonic() + 30
        while groups.join(connection, group, session_ms=500).code != groups.MEMBER_ID_REQUIRED:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.flumen_only  # The reference runs out of heap.
def test_mutated_requests(broker, connection, group, made):
    """Requests that were right, with some bytes changed, cut out or doubled; a group of good manners goes on."""
    good = settled(connection, group, session_ms=30_000)
    offset = wire.string(made) + wire.array([struct.pack(">iqi", 0, 5, -1) + wire.string("m")])
    bodies = {
        (groups.JOIN_GROUP, 5): groups.join_body(group + "-x", "m"),
        (groups.SYNC_GROUP, 3): groups.sync_body(group + "-x", 1, "m", {"m": b"x", "n": b"y"}),
        (groups.HEARTBEAT, 3): groups.heartbeat_body(group + "-x", 1, "m"),
        (groups.LEAVE_GROUP, 3): wire.string(group + "-x") + wire.array([wire.string("m") + wire.string(None)]),
        (groups.OFFSET_COMMIT, 7): (
            wire.string(group + "-x") + struct.pack(">i", -1) + wire.string("") + wire.string(None) + wire.array([offset])
        ),
        (groups.OFFSET_FETCH, 5): wire.string(group + "-x") + struct.pack(">i", -1),
        (groups.CONSUMER_GROUP_HEARTBEAT, 0): (
            groups.NO_TAGS + groups.consumer_heartbeat_body(group + "-y", "", 0, topics=[made], owned={})
        ),
    }
    seeds = [wire.frame(api_key, version, 1, body) for (api_key, version), body in bodies.items()]
    chance = random.Random(20_261_125)
    with brokers.undisturbed(broker), Shouting(broker) as shouting:
        for _ in range(5000):
            shouting.say(mutated(chance, chance.choice(seeds)))
    assert groups.heartbeat(connection, group, good.generation, good.member) == wire.NONE


# -- groups as a whole ----------------------------------------------------------------------------------


def test_describe_and_delete(connection, group, made):
    assert groups.describe(connection, group).state == "Dead"
    assert groups.delete(connection, [group]) == {group: groups.GROUP_ID_NOT_FOUND}
    assert groups.delete_offsets(connection, group, made, [0])[0] == groups.GROUP_ID_NOT_FOUND
    joined = settled(connection, group, protocols=[("range", groups.subscription([made]))])
    mine = {"generation": joined.generation, "member": joined.member}
    assert groups.commit(connection, group, {(made, 0): 4, (made, 1): 5}, **mine) == dict.fromkeys([(made, 0), (made, 1)], 0)
    described = groups.describe(connection, group)
    assert (described.code, described.state, described.protocol) == (wire.NONE, "Stable", "range")
    assert described.members == [joined.member]
    assert groups.delete(connection, [group]) == {group: groups.NON_EMPTY_GROUP}
    assert groups.delete_offsets(connection, group, made, [0]) == (wire.NONE, {0: groups.GROUP_SUBSCRIBED_TO_TOPIC})
    assert groups.leave(connection, group, [(joined.member, None)]) == (wire.NONE, [wire.NONE])
    assert groups.describe(connection, group).state == "Empty"
    assert groups.delete_offsets(connection, group, made, [0]) == (wire.NONE, {0: wire.NONE})
    assert groups.committed(connection, group)[1] == {(made, 1): (5, "", wire.NONE)}
    assert group in groups.list_groups(connection)
    assert groups.delete(connection, [group]) == {group: wire.NONE}
    assert groups.delete(connection, [group]) == {group: groups.GROUP_ID_NOT_FOUND}
    assert groups.committed(connection, group)[1] == {}
    assert group not in groups.list_groups(connection)


def test_a_deleted_topic_takes_its_offsets_along(connection, group, made):
    assert groups.commit(connection, group, {(made, 0): 4}) == {(made, 0): wire.NONE}
    assert wire.delete_topic(connection, made) == wire.NONE
    deadline = time.monotonic() + 10
    while groups.committed(connection, group)[1]:
        assert time.monotonic() < deadline, "the offsets are still there"
        time.sleep(0.05)


def test_asked_while_it_loads(own_broker):
    """After a kill, everybody asks at once: errors that clients retry, then what was committed, and nothing else."""
    broker = own_broker(settings=SETTINGS)
    names = [f"loaded-{n}" for n in range(200)]
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, "loading", 50)
        until_coordinated(connection, names[0])
        for n, name in enumerate(names):
            for offset in (1, 2, n + 10):
                found = groups.commit(connection, name, {("loading", p): offset for p in range(50)})
                deadline = time.monotonic() + 20
                while set(found.values()) != {wire.NONE}:
                    assert set(found.values()) <= {wire.NONE, *BEFORE_IT_SERVES} and time.monotonic() < deadline, found
                    time.sleep(0.05)
                    found = groups.commit(connection, name, {("loading", p): offset for p in range(50)})
    broker.kill()
    broker.launch()
    early = collections.Counter()
    deadline = time.monotonic() + 60
    for n, name in enumerate(names):
        while True:
            assert time.monotonic() < deadline, f"not loaded in time: {early}"
            try:
                with wire.Connection(broker.port) as connection:
                    code, found = groups.committed(connection, name)
            except (OSError, wire.Closed):
                time.sleep(0.005)
                continue
            if code == wire.NONE:
                assert found == {("loading", p): (n + 10, "", wire.NONE) for p in range(50)}, name
                break
            assert code in BEFORE_IT_SERVES, code
            early[code] += 1
    print(f"before it had loaded: {dict(early)}")


# -- the newer protocol ---------------------------------------------------------------------------------


def entered(connection, group, topic, member="", **how) -> groups.Beat:
    beat = groups.consumer_heartbeat(connection, group, member, 0, topics=[topic], owned={}, **how)
    assert beat.code == wire.NONE, beat
    return beat


def test_consumer_unknown_and_stale(broker, connection, group, made):
    """Of a member that is not there, or is behind."""
    assert groups.consumer_heartbeat(connection, group, "nobody", 5).code == groups.GROUP_ID_NOT_FOUND
    beat = entered(connection, group, made)
    assert beat.member and beat.epoch >= 1
    assert groups.consumer_heartbeat(connection, group, "nobody", 5).code == groups.UNKNOWN_MEMBER_ID
    assert groups.consumer_heartbeat(connection, group, beat.member, beat.epoch + 7).code == groups.FENCED_MEMBER_EPOCH
    with wire.Connection(broker.port) as other:
        entered(other, group, made)
    latest = groups.consumer_heartbeat(connection, group, beat.member, beat.epoch, owned=beat.assignment)
    assert latest.code == wire.NONE
    assert groups.consumer_heartbeat(connection, group, beat.member, -1).code == wire.NONE


def test_consumer_commits(connection, group, made):
    beat = entered(connection, group, made)

    def commit(**how):
        return groups.commit(connection, group, {(made, 0): 5}, **how)[made, 0]

    # Requests of this version know nothing of member epochs.
    assert commit(generation=beat.epoch + 1, member=beat.member) == wire.UNSUPPORTED_VERSION
    assert commit(generation=beat.epoch, member="nobody") == groups.UNKNOWN_MEMBER_ID
    assert commit() == groups.UNKNOWN_MEMBER_ID
    assert groups.consumer_heartbeat(connection, group, beat.member, -1).epoch == -1
    assert commit() == wire.NONE
    assert groups.committed(connection, group)[1] == {(made, 0): (5, "", wire.NONE)}


def test_consumer_bad_requests(connection, group, made):
    def code(member="", epoch=0, of=group, **how):
        return groups.consumer_heartbeat(connection, of, member, epoch, **how).code

    whole = {"topics": [made], "owned": {}}
    assert code(of="", **whole) == groups.INVALID_REQUEST
    assert code(topics=None, owned={}) == groups.INVALID_REQUEST
    assert code(topics=[made], owned=None) == groups.INVALID_REQUEST
    assert code(epoch=-7, **whole) == groups.INVALID_REQUEST
    assert code(epoch=-2, member="a", **whole) == groups.INVALID_REQUEST
    assert code(epoch=5, **whole) == groups.INVALID_REQUEST
    assert code(instance="", **whole) == groups.INVALID_REQUEST
    assert code(rebalance_ms=-1, **whole) == groups.INVALID_REQUEST
    assert code(assignor="no-such-assignor", **whole) == groups.UNSUPPORTED_ASSIGNOR
    assert code(**whole) == wire.NONE


def test_consumer_static_members(broker, connection, group, made):
    """An instance id that is in use is not given away; one that left for a while is."""
    first = entered(connection, group, made, instance="i")
    with wire.Connection(broker.port) as other:
        taken = groups.consumer_heartbeat(other, group, "", 0, topics=[made], owned={}, instance="i")
        assert taken.code == groups.UNRELEASED_INSTANCE_ID
        assert groups.consumer_heartbeat(connection, group, first.member, -2, instance="i").code == wire.NONE
        second = entered(other, group, made, instance="i")
        assert second.member != first.member
        code = groups.consumer_heartbeat(connection, group, first.member, first.epoch, instance="i").code
        assert code == groups.FENCED_INSTANCE_ID


def test_consumer_shares_and_session(broker, connection, group, made):
    """Two members share three partitions; when one falls silent the other has all."""
    first = entered(connection, group, made)
    with wire.Connection(broker.port) as other:
        second = entered(other, group, made)
        states = [
            [of, one.member, one.epoch, one.assignment or {}] for of, one in ((connection, first), (other, second))
        ]
        beat_until(group, states, lambda: sorted(map(count, states)) == [1, 2] and disjoint(states))
    beat_until(group, states[:1], lambda: count(states[0]) == 3)


def count(state) -> int:
    return sum(map(len, state[3].values()))


def disjoint(states) -> bool:
    owned = [(topic, p) for state in states for topic, of in state[3].items() for p in of]
    return len(owned) == len(set(owned))


def beat_until(group, states, holds, timeout_s=15):
    """Heartbeats for the members in turn, each at once with what it is given, until it holds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, [state[1:] for state in states]
        for state in states:
            connection, member, epoch, owned = state
            beat = groups.consumer_heartbeat(connection, group, member, epoch, owned=owned)
            assert beat.code == wire.NONE, beat
            state[2] = beat.epoch
            if beat.assignment is not None:
                state[3] = beat.assignment
        time.sleep(0.05)


def test_consumer_join_storm(broker, connection, group, made):
    """500 heartbeats at once, of members that are never heard of again: all are in, and in time none is."""
    with brokers.undisturbed(broker), contextlib.ExitStack() as held:
        every = [held.enter_context(wire.Connection(broker.port, timeout_s=60)) for _ in range(500)]
        body = groups.consumer_heartbeat_body(group, "", 0, topics=[made], owned={})
        for one in every:
            one.send(groups.CONSUMER_GROUP_HEARTBEAT, 0, groups.NO_TAGS + body)
        found = [groups.read_consumer_heartbeat(one.receive()[1]) for one in every]
        assert {one.code for one in found} <= {wire.NONE, groups.GROUP_MAX_SIZE_REACHED}
        assert len({one.member for one in found}) == 500
        deadline = time.monotonic() + 30
        while groups.delete(connection, [group])[group] != wire.NONE:
            assert time.monotonic() < deadline, "members are still there"
            time.sleep(0.2)


@pytest.mark.flumen_only
def test_commits_that_a_small_segment_does_not_hold(own_broker, topic):
    """They are refused as far as they are too large; who else asks does not notice, and many small ones share batches."""
    small = {"offsets.topic.segment.bytes": str(MIB), "offsets.topic.num.partitions": "1"}
    broker = own_broker(settings=SETTINGS | small)
    long_name, partitions = "g" * 3000, 1000
    with contextlib.ExitStack() as held:
        connection, *others = [held.enter_context(wire.Connection(broker.port, timeout_s=60)) for _ in range(40)]
        wire.create_served_topic(connection, topic, partitions)
        until_coordinated(connection, "member")
        joined = settled(connection, "member")
        for _ in range(3):
            codes = collections.Counter(
                groups.commit(connection, long_name, {(topic, at): 1 for at in range(partitions)}).values()
            )
            assert set(codes) == {wire.NONE, groups.INVALID_COMMIT_OFFSET_SIZE} and codes[wire.NONE] > 200, codes
            # 9 MiB of records, all at once.
            body = groups.commit_body(long_name, {(topic, at): 2 for at in range(75)})
            for one in others:
                one.send(groups.OFFSET_COMMIT, 7, body)
            for one in others:
                _, reader = one.receive()
                assert reader.take("i") == 0 and reader.take("i") == 1
                reader.string()
                assert [(reader.take("i"), reader.take("h")) for _ in range(reader.take("i"))] == [
                    (at, wire.NONE) for at in range(75)
                ]
            assert groups.heartbeat(connection, "member", joined.generation, joined.member) == wire.NONE
    assert "__consumer_offsets: an append" not in broker.log_text()
