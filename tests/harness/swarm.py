"""Hundreds of members of classic groups in one thread, by hand: each a connection and a small state machine, as a client
library has it, so that a broker is met by as many as no machine could run processes for.

    joining --JoinGroup--> syncing --SyncGroup--> stable --Heartbeat every `heartbeat_s`--> stable
       ^                      |                      |
       +---- REBALANCE_IN_PROGRESS, ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID (then as a new member)

The leader of a group deals its partitions out evenly.
"""

import collections
import heapq
import math
import selectors
import struct
import time

from . import groups, wire

REJOIN = {groups.REBALANCE_IN_PROGRESS, groups.ILLEGAL_GENERATION}


class One:
    """One member."""

    def __init__(self, swarm: "Swarm", group: str):
        self.swarm, self.group = swarm, group
        self.connection = wire.Connection(swarm.port, timeout_s=60)
        self.received = bytearray()
        self.id, self.generation, self.leads = "", -1, False
        self.state = "idle"
        self.asked_at = 0.0
        self.joins = 0
        self.assignment = b""

    def join(self) -> None:
        self.joins += 1
        self._ask("joining", groups.JOIN_GROUP, 5, groups.join_body(self.group, self.id, **self.swarm.how))

    def beat(self) -> None:
        self._ask("beating", groups.HEARTBEAT, 3, groups.heartbeat_body(self.group, self.generation, self.id))

    def _ask(self, state: str, api_key: int, version: int, body: bytes) -> None:
        self.state = state
        self.asked_at = time.monotonic()
        self.connection.send(api_key, version, body)

    def readable(self) -> None:
        part = self.connection.socket.recv(1 << 20)
        if not part:
            raise wire.Closed
        self.received += part
        if len(self.received) >= 4:
            (length,) = struct.unpack_from(">i", self.received)
            if len(self.received) >= 4 + length:
                reader = wire.Reader(bytes(self.received[4 : 4 + length]))
                del self.received[: 4 + length]
                reader.take("i")
                getattr(self, "_" + self.state)(reader)

    def _joining(self, reader) -> None:
        answer = groups.read_join(reader)
        self.swarm.codes[answer.code] += 1
        if answer.code == groups.MEMBER_ID_REQUIRED:
            self.id = answer.member
            self.join()
        elif answer.code == wire.NONE:
            self.id, self.generation = answer.member, answer.generation
            self.leads = answer.leader == answer.member
            assignments = self.swarm.deal(list(answer.members)) if self.leads else {}
            self._ask("syncing", groups.SYNC_GROUP, 3, groups.sync_body(self.group, self.generation, self.id, assignments))
        else:
            self._again(answer.code)

    def _syncing(self, reader) -> None:
        code, assignment = groups.read_sync(reader)
        self.swarm.codes[code] += 1
        if code != wire.NONE:
            return self._again(code)
        self.assignment = assignment
        self._settle()

    def _beating(self, reader) -> None:
        reader.take("i")
        code = reader.take("h")
        self.swarm.codes[code] += 1
        self.swarm.heartbeats += 1
        if code != wire.NONE:
            return self._again(code)
        self._settle()

    def _settle(self) -> None:
        if self.state == "syncing":
            self.swarm.settled_at = time.monotonic()
        self.state = "stable"
        heapq.heappush(self.swarm.due, (self.asked_at + self.swarm.heartbeat_s, id(self), self))

    def _again(self, code: int) -> None:
        if code == groups.UNKNOWN_MEMBER_ID:
            self.id = ""
        elif code not in REJOIN:
            self.state = f"refused with {code}"
            return
        self.join()


class Swarm:
    """Members, and the loop that drives them. `codes` counts every answer."""

    def __init__(self, port: int, topic: str, partitions: int, *, heartbeat_s: float = 3.0, **how):
        self.port, self.topic, self.partitions, self.heartbeat_s = port, topic, partitions, heartbeat_s
        self.how = {"session_ms": 30_000, "rebalance_ms": 30_000, **how}
        self.members: list[One] = []
        self.codes: collections.Counter[int] = collections.Counter()
        self.heartbeats = 0
        self.settled_at = 0.0
        self.due: list[tuple[float, int, One]] = []
        self.selector = selectors.DefaultSelector()

    def __enter__(self) -> "Swarm":
        return self

    def __exit__(self, *_) -> None:
        self.selector.close()
        for one in self.members:
            one.connection.close()

    def connect(self, groups_and_sizes: dict[str, int]) -> list[One]:
        """Connects members that do nothing yet."""
        fresh = [One(self, group) for group, size in groups_and_sizes.items() for _ in range(size)]
        for one in fresh:
            self.selector.register(one.connection.socket, selectors.EVENT_READ, one)
        self.members += fresh
        return fresh

    def fall_silent(self) -> None:
        """No heartbeats from now on, so nobody hears of what happens to its group."""
        self.heartbeat_s = math.inf
        self.due.clear()

    def deal(self, members: list[str]) -> dict[str, bytes]:
        members.sort()
        return {
            member: groups.assignment(self.topic, list(range(n, self.partitions, len(members))))
            for n, member in enumerate(members)
        }

    def run_until(self, holds, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            now = time.monotonic()
            assert now < deadline, f"not in time: {self.states()}, answers {dict(self.codes)}"
            while self.due and self.due[0][0] <= now:
                one = heapq.heappop(self.due)[2]
                if one.state == "stable":
                    one.beat()
            next_due = self.due[0][0] - now if self.due else 0.05
            for key, _ in self.selector.select(min(0.05, max(0.0, next_due))):
                key.data.readable()

    def run_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.run_until(lambda: time.monotonic() >= end, seconds + 60)

    def states(self) -> dict[str, int]:
        return dict(collections.Counter(one.state for one in self.members))

    def settled(self) -> bool:
        """Everybody is in, in the same generation as the rest of its group."""
        if any(one.state not in ("stable", "beating") for one in self.members):
            return False
        generations = collections.defaultdict(set)
        for one in self.members:
            generations[one.group].add(one.generation)
        return all(len(of_group) == 1 for of_group in generations.values())
