#!/usr/bin/env python3
"""What groups and idle consumers cost: `groups.py [--peer kafka] [--only NAME,...] [--seconds N]`.

- `heartbeats`: CPU of the broker for 200 classic groups of 5 members, each with a heartbeat every 3 s.
- `rebalance`: 100 members of one classic group over 1,000 partitions that join at once, then one more: the time from
  the last join until everybody has its share.
- `consumer-heartbeats`: as `heartbeats`, with the protocol in which the broker assigns, and its interval of 5 s.
- `consumer-rebalance`: as `rebalance`, with members that ask again every 100 ms.
- `idle`: CPU of the broker with 1,000 connections, each with one fetch of one of 1,000 partitions parked: for 60 s,
  and for a client's usual 500 ms, after which it asks again.

Members are made by hand (harness/swarm.py), so that one thread can play a thousand. It prints figures and judges nothing.
"""

import argparse
import heapq
import pathlib
import selectors
import struct
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import brokers, groups, swarm, wire  # noqa: E402

TOPIC = "wide"
PARTITIONS = 1_000
MEMBERS = 100


def ready(broker: brokers.Broker) -> None:
    """The topic is served, and so is a coordinator."""
    with wire.Connection(broker.port, timeout_s=120) as connection:
        wire.create_served_topic(connection, TOPIC, PARTITIONS)
        deadline = time.monotonic() + 60
        while groups.find_coordinator(connection, "any")[0] or groups.committed(connection, "any")[0]:
            assert time.monotonic() < deadline, "no coordinator"
            time.sleep(0.1)


class Cpu:
    """CPU of a broker over a while, in percent of one core."""

    def __init__(self, broker: brokers.Broker):
        self.broker, self.used, self.began = broker, broker.cpu_s(), time.monotonic()

    def percent(self) -> float:
        return 100 * (self.broker.cpu_s() - self.used) / (time.monotonic() - self.began)


def heartbeats(broker: brokers.Broker, seconds: float) -> str:
    with swarm.Swarm(broker.port, TOPIC, PARTITIONS, heartbeat_s=3.0) as crowd:
        for one in crowd.connect({f"beating-{n}": 5 for n in range(200)}):
            one.join()
        crowd.run_until(crowd.settled, 120)
        # Past what the joins left behind.
        crowd.run_for(3)
        rest = Cpu(broker)
        crowd.heartbeats = 0
        crowd.run_for(seconds)
        return cost(broker, rest.percent(), crowd.heartbeats, seconds)


def cost(broker: brokers.Broker, percent: float, count: int, seconds: float) -> str:
    each = 1e4 * percent * seconds / max(1, count)
    return (
        f"1000 members in 200 groups: {count / seconds:.0f} heartbeats/s, {percent:.2f} % of one core, "
        f"{each:.1f} us each, resident {broker.rss_bytes() >> 20} MiB"
    )


def rebalance(broker: brokers.Broker, _: float) -> str:
    with swarm.Swarm(broker.port, TOPIC, PARTITIONS, heartbeat_s=0.1) as crowd:
        together = join_all(crowd, MEMBERS)
        one_more = join_all(crowd, 1)
        return f"{settled(together, one_more)}; answers {dict(crowd.codes)}"


def join_all(crowd: swarm.Swarm, count: int) -> float:
    """How long after the last join everybody had its share."""
    for one in crowd.connect({"rebalanced": count}):
        one.join()
    last = time.monotonic()
    crowd.run_until(crowd.settled, 60)
    return crowd.settled_at - last


def settled(together: float, one_more: float) -> str:
    return (
        f"{MEMBERS} members, {PARTITIONS} partitions: settled {together * 1000:.0f} ms after the last of "
        f"{MEMBERS} joins at once, {one_more * 1000:.0f} ms after one more"
    )


class Subscriber:
    """A member of the protocol in which the broker assigns."""

    def __init__(self, port: int, group: str):
        self.group = group
        self.connection = wire.Connection(port, timeout_s=60)
        self.id, self.epoch = "", 0
        self.owned: dict[bytes, list[int]] = {}
        # What it has told the broker of that.
        self.told: dict[bytes, list[int]] | None = None
        self.telling: dict[bytes, list[int]] | None = None
        self.received = bytearray()

    def beat(self) -> None:
        """Says all at first, what it owns when that has changed, else nothing."""
        first = self.epoch == 0
        self.telling = self.owned
        body = groups.consumer_heartbeat_body(
            self.group, self.id, self.epoch, topics=[TOPIC] if first else None,
            owned=self.owned if first or self.told != self.owned else None, rebalance_ms=30_000 if first else -1,
        )  # fmt: skip
        self.connection.send(groups.CONSUMER_GROUP_HEARTBEAT, 0, groups.NO_TAGS + body)

    def readable(self) -> bool:
        """Whether an answer was taken."""
        self.received += self.connection.socket.recv(1 << 20)
        if len(self.received) < 4 or len(self.received) < 4 + struct.unpack_from(">i", self.received)[0]:
            return False
        reader = wire.Reader(bytes(self.received[4:]))
        self.received.clear()
        reader.take("i")
        beat = groups.read_consumer_heartbeat(reader)
        assert beat.code == wire.NONE, beat
        self.id, self.epoch, self.told = beat.member, beat.epoch, self.telling
        if beat.assignment is not None:
            self.owned = beat.assignment
        return True

    def partitions(self) -> list[int]:
        return [one for of in self.owned.values() for one in of]


class Subscribers:
    """Many of them, each with a heartbeat every `interval_s`, and at once when it has something to tell, as clients do."""

    def __init__(self, port: int, interval_s: float):
        self.port, self.interval_s = port, interval_s
        self.members: list[Subscriber] = []
        self.due: list[tuple[float, int, Subscriber]] = []
        self.selector = selectors.DefaultSelector()
        self.beats = 0

    def __enter__(self) -> "Subscribers":
        return self

    def __exit__(self, *_) -> None:
        self.selector.close()
        for one in self.members:
            one.connection.close()

    def connect(self, group: str, count: int) -> list[Subscriber]:
        fresh = [Subscriber(self.port, group) for _ in range(count)]
        for one in fresh:
            self.selector.register(one.connection.socket, selectors.EVENT_READ, one)
        self.members += fresh
        return fresh

    def beat_at(self, when: float, one: Subscriber) -> None:
        heapq.heappush(self.due, (when, id(one), one))

    def run_until(self, holds, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            now = time.monotonic()
            assert now < deadline, f"not in time: {sorted(len(one.partitions()) for one in self.members)}"
            while self.due and self.due[0][0] <= now:
                heapq.heappop(self.due)[2].beat()
            for key, _ in self.selector.select(0.01):
                one = key.data
                if one.readable():
                    self.beats += 1
                    self.beat_at(now if one.told != one.owned else now + self.interval_s, one)

    def run_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.run_until(lambda: time.monotonic() >= end, seconds + 60)

    def shared(self) -> bool:
        """Every partition has one owner, and all have their fair share."""
        owned = [one.partitions() for one in self.members]
        sizes = {len(one) for one in owned}
        if sum(map(len, owned)) != PARTITIONS or max(sizes) - min(sizes) > 1:
            return False
        return len({partition for one in owned for partition in one}) == PARTITIONS


def consumer_heartbeats(broker: brokers.Broker, seconds: float) -> str:
    with Subscribers(broker.port, 5.0) as crowd:
        now = time.monotonic()
        for n in range(200):
            for k, one in enumerate(crowd.connect(f"consumer-beating-{n}", 5)):
                # Spread over the interval, as members that start at different times are.
                crowd.beat_at(now + (n + 200 * k) * 0.005, one)
        crowd.run_for(15)
        rest = Cpu(broker)
        crowd.beats = 0
        crowd.run_for(seconds)
        return cost(broker, rest.percent(), crowd.beats, seconds)


def consumer_rebalance(broker: brokers.Broker, _: float) -> str:
    with Subscribers(broker.port, 0.1) as crowd:
        return settled(enter_all(crowd, MEMBERS), enter_all(crowd, 1))


def enter_all(crowd: Subscribers, count: int) -> float:
    for one in crowd.connect("consumer-rebalanced", count):
        one.beat()
    last = time.monotonic()
    crowd.run_until(crowd.shared, 60)
    return time.monotonic() - last


def idle(broker: brokers.Broker, seconds: float) -> str:
    said = []
    for wait_ms in (60_000, 500):
        percent, answers = parked(broker, wait_ms, seconds)
        said.append(f"max_wait {wait_ms} ms: {percent:.2f} % of one core at {answers / seconds:.0f} answers/s")
    return f"1000 parked fetches over 1000 partitions: {'; '.join(said)}; resident {broker.rss_bytes() >> 20} MiB"


def parked(broker: brokers.Broker, wait_ms: int, seconds: float) -> tuple[float, int]:
    """CPU in percent, and how many fetches came back empty and were sent again."""
    bodies = [wire.fetch_body(TOPIC, [(n, 0)], max_wait_ms=wait_ms) for n in range(PARTITIONS)]
    connections = [wire.Connection(broker.port, timeout_s=120) for _ in range(PARTITIONS)]
    answers = 0

    def turn(selector, until):
        nonlocal answers
        while time.monotonic() < until:
            for key, _ in selector.select(0.1):
                connection, body = connections[key.data], bodies[key.data]
                code = wire.read_fetch(connection.receive()[1])[key.data][0]
                assert code == wire.NONE, code
                connection.send(wire.FETCH, 4, body)
                answers += 1

    try:
        with selectors.DefaultSelector() as selector:
            for n, one in enumerate(connections):
                one.send(wire.FETCH, 4, bodies[n])
                selector.register(one.socket, selectors.EVENT_READ, n)
            turn(selector, time.monotonic() + 2)
            answers, rest = 0, Cpu(broker)
            turn(selector, time.monotonic() + seconds)
            return rest.percent(), answers
    finally:
        for one in connections:
            one.close()


SCENARIOS = {
    "heartbeats": heartbeats,
    "rebalance": rebalance,
    "consumer-heartbeats": consumer_heartbeats,
    "consumer-rebalance": consumer_rebalance,
    "idle": idle,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=sorted(brokers.BROKERS), default="flumen")
    parser.add_argument("--only", default=",".join(SCENARIOS))
    parser.add_argument("--seconds", type=float, default=30, help="of each measurement of CPU")
    asked = parser.parse_args()
    settings = {"group.initial.rebalance.delay.ms": "0", "group.consumer.heartbeat.interval.ms": "5000"}
    for name in asked.only.split(","):
        with brokers.BROKERS[asked.peer](settings=settings) as broker:
            ready(broker)
            print(f"{asked.peer} {name}: {SCENARIOS[name](broker, asked.seconds)}", flush=True)


if __name__ == "__main__":
    main()
