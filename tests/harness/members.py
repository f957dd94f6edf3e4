"""Members of consumer groups as child processes, and the judge of what they did.

Every member is a program of tests/clients that one library is tested with, called as

    ADDRESS GROUP TOPIC PROTOCOL SESSION_MS [INSTANCE_ID]

with PROTOCOL the name of a client's assignor (`range`, `roundrobin`, `cooperative-sticky`), or `consumer` for the
protocol in which the broker assigns. It subscribes, starts at the earliest record where nothing is committed, commits
synchronously about five times a second and, where its library can, before it gives a partition up, and leaves on
SIGTERM. It prints a line for each thing that happens, at once, with the time in microseconds first:

    TIME assigned 0,3,6        partitions that were added
    TIME revoked 0,3           partitions that were given up in order; `all` for every one
    TIME lost 0,3              partitions that were taken away
    TIME record PARTITION OFFSET
    TIME committed PARTITION OFFSET      acknowledged by the broker
    TIME refused WORDS         a commit was not accepted; it is tried again
    TIME error WORDS
    TIME left

So a record that a commit covers has been printed before it, also when the member is killed.
"""

import collections
import dataclasses
import signal
import subprocess
import threading
import time

from . import brokers, groups, places, wire

SESSION_MS = 6_000
# What a broker is started with, so that a dead member is noticed in that time with every protocol.
SETTINGS = {
    "group.initial.rebalance.delay.ms": "500",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": str(SESSION_MS),
    "group.consumer.min.session.timeout.ms": str(SESSION_MS),
    "group.consumer.heartbeat.interval.ms": "500",
    "group.consumer.min.heartbeat.interval.ms": "500",
}
RECORDS_PER_BATCH = 5
# A JVM that starts quickly and stays small.
JVM = ("-Xmx128m", *places.QUICK_JVM)


def command(client: str) -> list[str]:
    """What starts a member of this client library."""
    here = places.TESTS / "clients"
    match client:
        case "java":
            return places.java("Member", options=JVM, class_path=(places.JAVA_PROGRAMS,))
        case "librdkafka":
            return [str(places.program("member"))]
        case "kafka-python":
            return [str(places.CLIENTS / "venv" / "bin" / "python"), str(here / "member.py")]
        case "franz-go":
            return [str(places.GO_PROGRAMS / "member")]
        case "kafkajs":
            return ["node", str(places.NODE_PROGRAMS / "member.js")]
    raise ValueError(f"no client {client}")


@dataclasses.dataclass
class Event:
    time_us: int
    member: "Member"
    kind: str
    words: list[str]

    def numbers(self) -> tuple[int, int]:
        return int(self.words[0]), int(self.words[1])

    def partitions(self) -> set[int]:
        return {int(one) for one in self.words[0].split(",")} if self.words else set()


class Member:
    """One running program. `owned` is what it holds as far as it has said."""

    def __init__(self, name: str, program: list[str], arguments: list[str]):
        self.name = name
        self.events: list[Event] = []
        self.owned: set[int] = set()
        self.assignments = 0
        self.said_else: collections.deque[str] = collections.deque(maxlen=40)
        self.process = subprocess.Popen(
            [*brokers.END_WITH_PARENT, *program, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            time_us, _, rest = line.strip().partition(" ")
            if not (time_us.isdigit() and len(time_us) == 16 and rest):
                self.said_else.append(line.rstrip())
                continue
            kind, *words = rest.split()
            self._note(Event(int(time_us), self, kind, words))

    def _note(self, event: Event) -> None:
        match event.kind:
            case "assigned":
                self.owned = self.owned | event.partitions()
                self.assignments += 1
            case "revoked" | "lost":
                self.owned = set() if event.words == ["all"] else self.owned - event.partitions()
        self.events.append(event)

    def running(self) -> bool:
        return self.process.poll() is None

    def ask_to_leave(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait_left(self, timeout_s: float) -> None:
        """Waits for it to end by itself, as asked."""
        status = self.process.wait(timeout_s)
        self.reading.join(timeout_s)
        if status not in (0, 143) or not self.events or self.events[-1].kind != "left":
            raise Wrong(f"{self.name} ended with status {status}:\n{self.tail()}")
        self.owned = set()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reading.join(10)
        self.owned = set()

    def tail(self) -> str:
        told = [one for one in self.events if one.kind not in ("record", "committed")]
        last = [f"{one.time_us} {one.kind} {' '.join(one.words)}" for one in [*told[-15:], *self.events[-5:]]]
        return "\n".join([*last, *self.said_else])


class Wrong(Exception):
    """Something that must hold of a group does not."""


class Group:
    """The members of one group, and all that they ever said."""

    def __init__(self, broker: brokers.Broker, name: str, topic: str, partitions: int, client: str, protocol: str):
        self.broker, self.name, self.topic, self.partitions = broker, name, topic, partitions
        self.client, self.protocol = client, protocol
        self.every: list[Member] = []

    def join(self, instance_id: str | None = None, protocol: str | None = None) -> Member:
        arguments = [self.broker.address, self.name, self.topic, protocol or self.protocol, str(SESSION_MS)]
        arguments += [instance_id] if instance_id else []
        self.every.append(Member(f"{self.name}/{len(self.every)}", command(self.client), arguments))
        return self.every[-1]

    def members(self) -> list[Member]:
        return [one for one in self.every if one.running()]

    def close(self) -> None:
        for one in self.members():
            one.kill()

    def until(self, holds, what: str, timeout_s: float = 45) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            ended = [one for one in self.every if not one.running() and one.process.returncode not in (0, 143, -9)]
            if ended or time.monotonic() > deadline:
                raise Wrong(f"{self.name}: {'a member ended' if ended else what + ' in time'}\n{self.state()}")
            time.sleep(0.02)

    def state(self) -> str:
        """The group as the broker has it, and as its members say."""
        try:
            with wire.Connection(self.broker.port, timeout_s=5) as connection:
                known = groups.describe(connection, self.name)
        except (OSError, wire.Closed) as error:
            known = error
        return f"{known}\n" + "\n".join(
            f"-- {one.name} {'runs' if one.running() else one.process.returncode}, owns {sorted(one.owned)}\n{one.tail()}"
            for one in self.every
        )

    def until_shared(self, members: list[Member]) -> None:
        """Waits until every partition has exactly one owner among `members`, and each owns its fair share."""
        fair = {self.partitions // len(members), -(-self.partitions // len(members))}

        def shared():
            owned = sorted(partition for one in members for partition in one.owned)
            return owned == list(range(self.partitions)) and {len(one.owned) for one in members} <= fair

        self.until(shared, f"not shared among {len(members)}")

    # -- judging --------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        out = [event for one in self.every for event in list(one.events)]
        return sorted(out, key=lambda event: event.time_us)

    def counts(self) -> collections.Counter:
        """How often each `(partition, offset)` was processed."""
        return collections.Counter(
            event.numbers() for one in self.every for event in list(one.events) if event.kind == "record"
        )

    def committed(self) -> dict[int, int]:
        """The highest acknowledged position of each partition."""
        out: dict[int, int] = {}
        for one in self.every:
            for event in list(one.events):
                if event.kind == "committed":
                    partition, offset = event.numbers()
                    out[partition] = max(out.get(partition, 0), offset)
        return out

    def until_processed(self, ends: dict[int, int], timeout_s: float = 45) -> None:
        """Waits until every record below `ends` was processed at least once."""

        def missing():
            seen = collections.Counter(partition for partition, _ in self.counts())
            return {p: end - seen[p] for p, end in ends.items() if seen[p] < end}

        self.until(lambda: not missing(), "not all was processed", timeout_s)
        every = self.counts()
        assert ends, "nothing was to be processed"
        never = [(p, at) for p, end in ends.items() for at in range(end) if not every[p, at]]
        if never:
            raise Wrong(f"{self.name}: never processed {never[:20]}")

    def history(self, partition: int, until_us: int) -> str:
        """What was said of a partition up to a moment, and a little after it."""
        def about(event):
            if event.kind in ("record", "committed"):
                return event.numbers()[0] == partition
            moves = event.kind in ("assigned", "revoked", "lost")
            return not moves or event.words == ["all"] or partition in event.partitions()

        lines = [
            f"{event.time_us} {event.member.name} {event.kind} {' '.join(event.words)}"
            for event in self.events() if about(event)
        ]
        before = sum(1 for line in lines if int(line.split()[0]) <= until_us)
        return "\n".join(lines[max(0, before - 30) : before + 10])

    def check_order(self) -> None:
        """Each stay with a partition begins at or after what was committed before it and skips nothing: neither what
        nobody had processed, nor anything in its midst."""
        processed: dict[int, int] = collections.defaultdict(int)
        committed: dict[int, int] = collections.defaultdict(int)
        # By member and partition: the next offset, or None after an assignment.
        next_of: dict[tuple[str, int], int | None] = {}
        floor: dict[tuple[str, int], int] = {}
        for event in self.events():
            name = event.member.name
            if event.kind == "committed":
                partition, offset = event.numbers()
                committed[partition] = max(committed[partition], offset)
            elif event.kind == "assigned":
                for partition in event.partitions():
                    next_of[name, partition] = None
                    floor[name, partition] = committed[partition]
            elif event.kind == "record":
                partition, offset = event.numbers()
                stay = (name, partition)
                if stay not in next_of:
                    raise Wrong(f"{name}: record {partition} {offset}, which was never assigned to it")
                expected = next_of[stay]
                if expected is None:
                    if not floor[stay] <= offset <= processed[partition]:
                        raise Wrong(
                            f"{name} begins with {partition} at {offset}: committed were {floor[stay]}, "
                            f"processed {processed[partition]}\n" + self.history(partition, event.time_us)
                        )
                elif not floor[stay] <= offset <= expected:
                    raise Wrong(
                        f"{name}: {offset} of partition {partition} came where {expected} was next, "
                        f"{floor[stay]} committed before\n"
                        + self.history(partition, event.time_us)
                    )
                next_of[stay] = offset + 1
                processed[partition] = max(processed[partition], offset + 1)


class Load:
    """Produces to every partition of a topic, all the time, also while the broker is away; `stop()` ends it.

    What counts afterwards is the log itself: a produce that was interrupted may be there twice.
    """

    def __init__(self, broker: brokers.Broker, topic: str, partitions: int, per_second: int):
        self.broker, self.topic, self.partitions = broker, topic, partitions
        self.pause_s = partitions * RECORDS_PER_BATCH / per_second
        self.ending = threading.Event()
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        values = [b"%d" % n for n in range(RECORDS_PER_BATCH)]
        while not self.ending.is_set():
            try:
                with wire.Connection(self.broker.port) as connection:
                    while not self.ending.wait(self.pause_s):
                        batch = wire.Batch(values, timestamp=int(time.time() * 1000)).encode()
                        wire.produce(connection, [(self.topic, p, batch) for p in range(self.partitions)])
            except (OSError, wire.Closed):
                self.ending.wait(0.1)
            except BaseException as failure:
                self.failure = failure
                raise

    def stop(self) -> None:
        self.ending.set()
        self.thread.join()
        if self.failure is not None:
            raise self.failure
