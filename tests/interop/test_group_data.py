"""One group is a queue, many groups are publish/subscribe: on real data, every record counted and compared.

Members are kcat processes (librdkafka of Debian, older than that of the other suites), so what they print is what
was in the records.
"""

import collections
import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time

import pytest
from test_real_data import SETS

from harness import brokers, groups, members, places, wire

PARTITIONS = 12
QUEUE = 4
SUBSCRIBERS = 4


class Kcat:
    """A member of a group; the records that it was given, in order. What else it says is kept in a file, for the failure."""

    SAID_BYTES = 6_000

    def __init__(self, broker, group: str, topic: str, *settings: str):
        self.group = group
        self.records: list[tuple[bytes, bytes]] = []
        self.said = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [*brokers.END_WITH_PARENT, "kcat", "-b", broker.address, "-u", "-q", "-f", "%p\t%s\n",
             "-X", "auto.offset.reset=earliest", "-X", "session.timeout.ms=6000", "-d", "cgrp,topic,metadata",
             *settings, "-G", group, topic],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.said,
        )  # fmt: skip
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    def _read(self):
        for line in self.process.stdout:
            partition, _, value = line.rstrip(b"\n").partition(b"\t")
            self.records.append((partition, value))

    def ended(self) -> bool:
        return self.process.poll() is not None

    def tail(self) -> str:
        """The end of what it said; the file's own position is where it writes."""
        size = os.fstat(self.said.fileno()).st_size
        last = os.pread(self.said.fileno(), self.SAID_BYTES, max(0, size - self.SAID_BYTES))
        return f"{self.group}, status {self.process.poll()}, {len(self.records)} records:\n{last.decode(errors='replace')}"

    def leave(self):
        """It commits what it has printed, and leaves."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.tail()
        self.reading.join(30)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.said.close()


def until(holds, what, there: list[Kcat], timeout_s=60):
    """Waits for it. Fails at once when one of those who should be there has ended, with what they said."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        ended = [one for one in there if one.ended()]
        if ended or time.monotonic() > deadline:
            why = "a member has ended" if ended else f"not in {timeout_s} s"
            pytest.fail("\n\n".join([f"{what}: {why}", *(one.tail() for one in ended or there)]))
        time.sleep(0.02)


@pytest.mark.parametrize("name", SETS)
def test_queue_and_subscribers(broker, topic, name):
    records = SETS[name]()
    values = collections.Counter(value for _, value in records)
    with contextlib.ExitStack() as held:
        connection = held.enter_context(wire.Connection(broker.port))
        wire.create_served_topic(connection, topic, PARTITIONS)

        def member(group):
            one = Kcat(broker, group, topic)
            held.callback(one.close)
            return one

        queue = [member(f"{topic}-queue") for _ in range(QUEUE)]
        subscribers = [member(f"{topic}-subscriber-{n}") for n in range(SUBSCRIBERS)]
        sizes = {f"{topic}-queue": QUEUE} | {one.group: 1 for one in subscribers}

        def stable():
            found = [(groups.describe(connection, group), size) for group, size in sizes.items()]
            return all(one.state == "Stable" and len(one.members) == size for one, size in found)

        everybody = [*queue, *subscribers]
        until(stable, "the groups are not stable", everybody)
        places.run(
            ["kcat", "-b", broker.address, "-P", "-t", topic, "-K", "\t", "-z", "lz4"],
            input=b"".join(key + b"\t" + value + b"\n" for key, value in records),
        )
        until(lambda: sum(len(one.records) for one in queue) >= len(records), "the queue lacks records", everybody)
        until(
            lambda: min(len(one.records) for one in subscribers) >= len(records), "a subscriber lacks records", everybody
        )
        for one in everybody:
            one.leave()

        # The queue: each record to exactly one member, each partition to one of them, nobody idle.
        assert collections.Counter(value for one in queue for _, value in one.records) == values
        partitions = [{partition for partition, _ in one.records} for one in queue]
        assert sum(map(len, partitions)) == len(set.union(*partitions)), "two had the same partition"
        assert all(partitions), "one had nothing"
        # The subscribers: each has all of it, in the same order in each partition.
        for one in subscribers:
            assert collections.Counter(value for _, value in one.records) == values
            assert by_partition(one) == by_partition(subscribers[0])
        for group in sizes:
            assert positions(connection, group) == ends(connection, topic), group


def by_partition(member) -> dict[bytes, list[bytes]]:
    out = collections.defaultdict(list)
    for partition, value in member.records:
        out[partition].append(value)
    return out


def positions(connection, group) -> dict[int, int]:
    """What is committed. kcat commits nothing where nothing was read."""
    found = {partition: offset for (_, partition), (offset, _, _) in groups.committed(connection, group)[1].items()}
    return {partition: found.get(partition, 0) for partition in range(PARTITIONS)}


def ends(connection, topic) -> dict[int, int]:
    return {p: wire.fetch(connection, topic, 0, p, max_wait_ms=0, min_bytes=0)[1] for p in range(PARTITIONS)}


@pytest.mark.parametrize("protocol", ["cooperative-sticky", "consumer"])
def test_queue_by_both_protocols(broker, topic, protocol):
    """The same with offsets in place of contents: four members, each of twelve partitions' records once."""
    records = SETS["flights"]()
    with wire.Connection(broker.port) as connection, contextlib.ExitStack() as held:
        wire.create_served_topic(connection, topic, PARTITIONS)
        group = members.Group(broker, topic, topic, PARTITIONS, "librdkafka", protocol)
        held.callback(group.close)
        four = [group.join() for _ in range(QUEUE)]
        group.until_shared(four)
        places.run(
            ["kcat", "-b", broker.address, "-P", "-t", topic, "-K", "\t"],
            input=b"".join(key + b"\t" + value + b"\n" for key, value in records),
        )
        expected = ends(connection, topic)
        assert sum(expected.values()) == len(records)
        group.until_processed(expected)
        for one in four:
            one.ask_to_leave()
        for one in four:
            one.wait_left(20)
        assert set(group.counts().values()) == {1}
        assert group.committed() == {p: end for p, end in expected.items() if end}


def test_static_member_comes_back(broker, topic):
    """A member with an instance id that is killed and comes back in time has its partitions again, and nobody else
    is moved."""
    with wire.Connection(broker.port) as connection, contextlib.ExitStack() as held:
        wire.create_served_topic(connection, topic, PARTITIONS)
        group = members.Group(broker, topic, topic, PARTITIONS, "librdkafka", "range")
        held.callback(group.close)
        three = [group.join(f"instance-{n}") for n in range(3)]
        group.until_shared(three)
        others = [one.assignments for one in three[1:]]
        before = set(three[0].owned)
        three[0].kill()
        again = group.join("instance-0")
        group.until(lambda: again.owned == before, "not what it had")
        assert [one.assignments for one in three[1:]] == others, "others were moved"
        batch = wire.Batch([b"x"] * 10, timestamp=int(time.time() * 1000)).encode()
        wire.produce(connection, [(topic, p, batch) for p in range(PARTITIONS)])
        group.until_processed(dict.fromkeys(range(PARTITIONS), 10))


def test_change_of_protocol_online(own_broker, topic):
    """A group goes over to the protocol in which the broker assigns, and back, member by member, under load."""
    broker = own_broker(settings=members.SETTINGS)
    with wire.Connection(broker.port) as connection, contextlib.ExitStack() as held:
        wire.create_served_topic(connection, topic, PARTITIONS)
        load = members.Load(broker, topic, PARTITIONS, 600)
        held.callback(load.stop)
        group = members.Group(broker, topic, topic, PARTITIONS, "librdkafka", "range")
        held.callback(group.close)
        there = [group.join() for _ in range(2)]
        group.until_shared(there)
        for protocol in ("consumer", "range"):
            fresh = [group.join(protocol=protocol) for _ in range(2)]
            group.until_shared(there + fresh)
            for one in there:
                one.ask_to_leave()
            for one in there:
                one.wait_left(20)
            group.until_shared(fresh)
            there = fresh
        load.stop()
        expected = ends(connection, topic)
        group.until_processed(expected)
        for one in there:
            one.ask_to_leave()
        for one in there:
            one.wait_left(20)
        group.check_order()
        assert group.committed() == expected


def test_regular_expression(broker, topic):
    """A subscription by pattern finds topics that come later. One is there from the start: librdkafka reports a pattern
    without any match as an error ("Subscribed topic not available"), and kcat ends at that, also with Apache Kafka."""
    pattern, refresh = f"^{topic}-.*", "topic.metadata.refresh.interval.ms=500"
    with contextlib.ExitStack() as held:
        connection = held.enter_context(wire.Connection(broker.port))
        wire.create_served_topic(connection, f"{topic}-first", 1)
        one = Kcat(broker, topic, pattern, "-X", refresh)
        held.callback(one.close)
        for name in ("first", "second", "third"):
            if name != "first":
                wire.create_served_topic(connection, f"{topic}-{name}", 1)
            places.run(["kcat", "-b", broker.address, "-P", "-t", f"{topic}-{name}"], input=name.encode() + b"\n")
            until(lambda: (b"0", name.encode()) in one.records, f"{name} is not found", [one])
