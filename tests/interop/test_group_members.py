"""Real clients in groups through a whole life: members join, leave, are killed with SIGKILL, and so is the broker, also in
the midst of joins and leaves.

All groups live at the same time on one broker and read one topic, which is written to all the while; so they are also
independent of each other. What happened to each is one test. In the steady part, with nobody coming or going,
every record is processed exactly once; over all of it, at least once, nothing is skipped, and no stay with a
partition begins before what was committed.
"""

import concurrent.futures
import contextlib
import os
import threading
import time

import pytest

from harness import groups, members, wire

PARTITIONS = 12
TOPIC = "life"
STEADY_RECORDS = 300
RECORDS_PER_S = 600
# How often each group goes through all that happens to members.
ROUNDS = int(os.environ.get("GROUP_ROUNDS", "1"))

# Of a classic group; consumer groups are not known to DescribeGroups.
JOINING = ("PreparingRebalance", "CompletingRebalance")

LIVES = [
    ("java", "range"),
    ("java", "cooperative-sticky"),
    ("java", "consumer"),
    ("librdkafka", "range"),
    ("librdkafka", "cooperative-sticky"),
    ("librdkafka", "consumer"),
    ("kafka-python", "range"),
    ("kafka-python", "cooperative-sticky"),
    ("franz-go", "range"),
    ("franz-go", "cooperative-sticky"),
    ("franz-go", "consumer"),
    ("kafkajs", "roundrobin"),
]


class Stage:
    """The broker that all groups are on, and the moments at which they wait for each other."""

    def __init__(self, broker, count):
        self.broker = broker
        self.groups: list[members.Group] = []
        self.load: members.Load | None = None
        self.left = count
        self.changed = threading.Condition()
        self.waiting = 0
        self.round = 0
        self.action = None
        # After the crash: what was committed, and what the broker said of it.
        self.kept: dict[str, tuple[dict[int, int], dict[int, int]]] = {}

    def meet(self, action=lambda: None) -> None:
        """Waits until every group that is still in it has come here; the last one does `action`."""
        with self.changed:
            self.waiting += 1
            self.action = action
            mine = self.round
            self._act_when_all_are_here()
            self.changed.wait_for(lambda: self.round > mine)

    def leave(self) -> None:
        """A group that has failed, or is done, is not waited for."""
        with self.changed:
            self.left -= 1
            if self.waiting:
                self._act_when_all_are_here()

    def _act_when_all_are_here(self) -> None:
        if self.waiting < self.left:
            return
        try:
            self.action()
        finally:
            self.waiting = 0
            self.round += 1
            self.changed.notify_all()

    def produce_steadily(self) -> None:
        """The records of the steady part, and no others."""
        values = [b"%d" % n for n in range(STEADY_RECORDS)]
        batch = wire.Batch(values, timestamp=int(time.time() * 1000)).encode()
        with wire.Connection(self.broker.port) as connection:
            wire.produce(connection, [(TOPIC, partition, batch) for partition in range(PARTITIONS)])

    def begin_load(self) -> None:
        self.load = members.Load(self.broker, TOPIC, PARTITIONS, RECORDS_PER_S)

    def crash(self) -> None:
        """Kills the broker and starts it again, and looks at what it still knows."""
        acknowledged = {group.name: group.committed() for group in self.groups}
        self.broker.kill()
        self.broker.start()
        with wire.Connection(self.broker.port) as connection:
            for name, positions in acknowledged.items():
                self.kept[name] = (positions, fetch_committed(connection, name))

    def crash_while_joining(self) -> None:
        """The same at a moment at which groups are in the midst of a join."""
        with wire.Connection(self.broker.port) as connection:
            deadline = time.monotonic() + 20
            while not any(groups.describe(connection, one.name).state in JOINING for one in self.groups):
                assert time.monotonic() < deadline, "no group is joining"
                time.sleep(0.01)
        self.crash()

    def end_load(self) -> None:
        self.load.stop()

    def ends(self) -> dict[int, int]:
        out = {}
        with wire.Connection(self.broker.port) as connection:
            for partition in range(PARTITIONS):
                code, out[partition], _ = wire.fetch(connection, TOPIC, 0, partition, partition_max_bytes=1)
                assert code == wire.NONE and out[partition] > STEADY_RECORDS, (code, out)
        return out


def fetch_committed(connection, group) -> dict[int, int]:
    """What the broker says is committed, when it has loaded the group."""
    deadline = time.monotonic() + 20
    while True:
        code, found = groups.committed(connection, group)
        if code == wire.NONE:
            return {partition: offset for (_, partition), (offset, _, _) in found.items()}
        loading = (groups.COORDINATOR_LOAD_IN_PROGRESS, groups.NOT_COORDINATOR, groups.COORDINATOR_NOT_AVAILABLE)
        assert code in loading, f"code {code}"
        assert time.monotonic() < deadline, f"the coordinator is not there in time: code {code}"
        time.sleep(0.02)


def live(stage: Stage, group: members.Group) -> None:
    """One group's life. Each part ends when what must come of it has come."""
    three = [group.join() for _ in range(3)]
    group.until_shared(three)

    stage.meet(stage.produce_steadily)
    group.until_processed(dict.fromkeys(range(PARTITIONS), STEADY_RECORDS))
    twice = [record for record, count in group.counts().items() if count != 1]
    if twice:
        raise members.Wrong(f"{group.name}: processed more than once while steady: {twice[:20]}")
    stage.meet(stage.begin_load)

    for _ in range(ROUNDS):
        three = churn(stage, group, three)
    stage.meet(stage.end_load)
    ends = stage.ends()
    group.until_processed(ends)
    for one in three:
        one.ask_to_leave()
    for one in three:
        one.wait_left(20)
    group.check_order()
    with wire.Connection(stage.broker.port) as connection:
        found = fetch_committed(connection, group.name)
    if found != ends:
        raise members.Wrong(f"{group.name}: committed in the end {found}, in the log {ends}")


def churn(stage: Stage, group: members.Group, three: list[members.Member]) -> list[members.Member]:
    """Everything that happens to members, once; returns the three that are there after it."""
    # One joins: its share is taken from the others.
    four = [*three, group.join()]
    group.until_shared(four)
    # One leaves.
    four[0].ask_to_leave()
    four[0].wait_left(20)
    group.until_shared(four[1:])
    # One is killed: its session runs out.
    four[1].kill()
    group.until_shared(four[2:])
    # The broker is killed and started again.
    stage.meet(stage.crash)
    check_kept(stage, group)
    again = [*four[2:], group.join()]
    group.until_shared(again)
    # The same while one joins and another leaves, in all groups at the same time.
    stage.meet()
    last = [*again[1:], group.join()]
    again[0].ask_to_leave()
    stage.meet(stage.crash_while_joining)
    check_kept(stage, group)
    again[0].wait_left(60)
    group.until_shared(last)
    return last


def check_kept(stage: Stage, group: members.Group) -> None:
    """What was committed before the crash is there after it."""
    acknowledged, found = stage.kept[group.name]
    behind = {p: (at, found.get(p)) for p, at in acknowledged.items() if found.get(p, -1) < at}
    if behind:
        raise members.Wrong(f"{group.name}: what was committed is gone: {behind}")


@pytest.fixture(scope="module")
def lives(peer, request):
    """Lives all that are asked for, and returns what went wrong in each."""
    parameters = [one.callspec.params for one in request.session.items if hasattr(one, "callspec")]
    asked = sorted({of_test["life"] for of_test in parameters if "life" in of_test})
    broker = peer(settings=members.SETTINGS)
    with contextlib.ExitStack() as held:
        held.callback(broker.close)
        broker.start()
        with wire.Connection(broker.port) as connection:
            wire.create_served_topic(connection, TOPIC, PARTITIONS)
        stage = Stage(broker, len(asked))

        def one(life) -> BaseException | None:
            client, protocol = life
            group = members.Group(broker, f"{client}-{protocol}", TOPIC, PARTITIONS, client, protocol)
            stage.groups.append(group)
            try:
                live(stage, group)
            except Exception as failure:
                return failure
            finally:
                stage.leave()
                group.close()
            return None

        with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
            outcomes = dict(zip(asked, pool.map(one, asked)))
            # Now: what was started by a thread ends with it.
            assert broker.running(), f"the broker ended\n{broker.log_tail()}"
        yield outcomes


@pytest.mark.parametrize("life", LIVES, ids="-".join)
def test_life(lives, life):
    failure = lives[life]
    if failure is not None:
        raise failure
