#!/usr/bin/env python3
"""What a large `__consumer_offsets` costs when a node starts: `offsets.py [--peer kafka] [--groups N] [--partitions N]
[--commits N]`.

N groups commit positions of N partitions each, again and again until there are N commits. Then the broker is stopped, or
killed with SIGKILL, and started again: the time until it answers, until the group of each coordinator has its positions
again, and what memory it took. Each position of every group is compared in the end.

It is a benchmark, not a test: it judges the positions alone, and it wants an otherwise idle machine.
"""

import argparse
import collections
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import brokers, groups, wire  # noqa: E402

TOPIC = "positions"
IN_FLIGHT = 64
COORDINATORS = 50
BEFORE_IT_SERVES = {
    groups.COORDINATOR_LOAD_IN_PROGRESS,
    groups.COORDINATOR_NOT_AVAILABLE,
    groups.NOT_COORDINATOR,
}


def coordinator_of(group: str) -> int:
    """The partition of the offsets topic that a group is on: Java's hash of its name, made positive."""
    code = 0
    for character in group:
        code = (31 * code + ord(character)) & 0xFFFFFFFF
    return (code & 0x7FFFFFFF) % COORDINATORS


def ready(broker: brokers.Broker, partitions: int) -> None:
    with wire.Connection(broker.port, timeout_s=120) as connection:
        wire.create_served_topic(connection, TOPIC, partitions)
        deadline = time.monotonic() + 60
        while groups.find_coordinator(connection, "any")[0]:
            assert time.monotonic() < deadline, "no coordinator"
            time.sleep(0.1)
    for group in one_of_each([f"group-{n}" for n in range(1000)]):
        until_positions(broker, group, {}, time.monotonic() + 60)


def one_of_each(names: list[str]) -> list[str]:
    """A group of each coordinator."""
    found = {coordinator_of(name): name for name in names}
    assert len(found) == COORDINATORS, "too few groups"
    return list(found.values())


def until_positions(broker: brokers.Broker, group: str, expected: dict, deadline: float) -> None:
    while True:
        try:
            with wire.Connection(broker.port) as connection:
                code, found = groups.committed(connection, group)
        except (OSError, wire.Closed):
            code = None
        if code == wire.NONE:
            return check(group, found, expected)
        assert code in {None, *BEFORE_IT_SERVES}, code
        assert time.monotonic() < deadline, f"{group} is not there in time"
        time.sleep(0.01)


def check(group: str, found: dict, expected: dict) -> None:
    positions = {partition: offset for (_, partition), (offset, _, _) in found.items()}
    assert positions == expected, f"{group}: {positions} instead of {expected}"


def commit_all(broker: brokers.Broker, names: list[str], partitions: int, rounds: int) -> float:
    began = time.monotonic()
    under_way = collections.deque()
    with wire.Connection(broker.port, timeout_s=120) as connection:

        def settle():
            under_way.popleft()
            reader = connection.receive()[1]
            reader.take("i")
            assert reader.take("i") == 1
            reader.string()
            for _ in range(reader.take("i")):
                partition, code = reader.take("i"), reader.take("h")
                assert code == wire.NONE, (partition, code)

        for at in range(rounds):
            offsets = {(TOPIC, partition): position(at, partition) for partition in range(partitions)}
            for name in names:
                connection.send(groups.OFFSET_COMMIT, 7, groups.commit_body(name, offsets))
                under_way.append(name)
                if len(under_way) >= IN_FLIGHT:
                    settle()
        while under_way:
            settle()
    return time.monotonic() - began


def position(at: int, partition: int) -> int:
    return 1000 * at + partition


def peak_mib(broker: brokers.Broker) -> int:
    (line,) = [one for one in broker._proc("status").splitlines() if one.startswith("VmHWM:")]
    return int(line.split()[1]) >> 10


def restart(broker: brokers.Broker, how: str, names: list[str], expected: dict) -> str:
    before = broker.rss_bytes() >> 20
    getattr(broker, how)()
    began = time.monotonic()
    broker.start()
    for group in one_of_each(names):
        until_positions(broker, group, expected, began + 300)
    loaded = time.monotonic() - began
    said = (
        f"after {how}: answers after {broker.started_in_s:.2f} s, the groups of all {COORDINATORS} coordinators after "
        f"{loaded:.2f} s; CPU {broker.cpu_s():.2f} s; resident {broker.rss_bytes() >> 20} MiB, at most "
        f"{peak_mib(broker)} MiB, before {before} MiB"
    )
    with wire.Connection(broker.port, timeout_s=120) as connection:
        for name in names:
            code, found = groups.committed(connection, name)
            assert code == wire.NONE, code
            check(name, found, expected)
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=sorted(brokers.BROKERS), default="flumen")
    parser.add_argument("--groups", type=int, default=10_000)
    parser.add_argument("--partitions", type=int, default=10)
    parser.add_argument("--commits", type=int, default=1_000_000)
    asked = parser.parse_args()
    rounds = max(1, asked.commits // (asked.groups * asked.partitions))
    names = [f"group-{n}" for n in range(asked.groups)]
    expected = {partition: position(rounds - 1, partition) for partition in range(asked.partitions)}
    with brokers.BROKERS[asked.peer]() as broker:
        ready(broker, asked.partitions)
        took = commit_all(broker, names, asked.partitions, rounds)
        count = rounds * asked.groups * asked.partitions
        print(
            f"{asked.peer}: {count} commits of {asked.groups} groups over {asked.partitions} partitions in {took:.1f} s, "
            f"CPU {broker.cpu_s():.1f} s",
            flush=True,
        )
        for how in ("kill", "stop"):
            print(restart(broker, how, names, expected), flush=True)


if __name__ == "__main__":
    main()
