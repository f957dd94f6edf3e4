"""Kafka's own tools for groups understand the node: ConsumerGroupCommand, ConsumerPerformance, VerifiableConsumer, and
the readers of the offsets topic, whose records are Kafka's byte for byte."""

import contextlib
import json
import re
import subprocess
import time

import pytest

from harness import brokers, groups, members, places, wire

PARTITIONS = 4
RECORDS = 25
GROUPS = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
CONSOLE = "org.apache.kafka.tools.consumer.ConsoleConsumer"
TIME_MS = 1_700_000_000_000


class Tools:
    """One JVM that runs tools one by one."""

    def __init__(self):
        self.process = subprocess.Popen(
            [*brokers.END_WITH_PARENT, *places.java("ToolRunner", options=members.JVM, class_path=(places.JAVA_PROGRAMS,))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words) -> tuple[int, str]:
        self.process.stdin.write("\t".join(map(str, words)).encode() + b"\n")
        self.process.stdin.flush()
        status, size = map(int, self.process.stdout.readline().split())
        return status, self.process.stdout.read(size).decode()

    def close(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def tools():
    one = Tools()
    yield one
    one.close()


@pytest.fixture(scope="module")
def broker(peer):
    with peer(settings=members.SETTINGS) as one:
        yield one
        assert one.running(), "the broker ended during the suite"


@pytest.fixture
def command(broker, tools):
    """ConsumerGroupCommand; what it printed."""

    def call(*words, status=0) -> str:
        ended, said = tools.run(GROUPS, "--bootstrap-server", broker.address, *words)
        assert ended == status, said
        return said

    return call


@pytest.fixture
def filled(broker, topic) -> str:
    """A topic of four partitions with 25 records each, a second apart."""
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, topic, PARTITIONS, {"retention.ms": "-1"})
        for n in range(RECORDS):
            batch = wire.Batch([b"%d" % n], timestamp=TIME_MS + n * 1000).encode()
            answers = wire.produce(connection, [(topic, p, batch) for p in range(PARTITIONS)])
            assert answers == [(wire.NONE, n)] * PARTITIONS
    return topic


@contextlib.contextmanager
def consuming(broker, group, topic, protocol, count=2):
    """`count` members that have processed and committed everything."""
    one = members.Group(broker, group, topic, PARTITIONS, "librdkafka", protocol)
    try:
        for _ in range(count):
            one.join()
        one.until_shared(one.every)
        one.until(lambda: one.committed() == dict.fromkeys(range(PARTITIONS), RECORDS), "not all is committed")
        yield one
        for member in one.every:
            member.ask_to_leave()
        for member in one.every:
            member.wait_left(20)
    finally:
        one.close()


def table(said: str) -> list[dict[str, str]]:
    """The rows of a table below its header."""
    lines = [line.split() for line in said.splitlines() if line.strip()]
    at = next(n for n, line in enumerate(lines) if line[0] == "GROUP")
    return [dict(zip(lines[at], line)) for line in lines[at + 1 :] if len(line) >= len(lines[at]) - 1]


@pytest.mark.parametrize("protocol, kind", [("range", "Classic"), ("consumer", "Consumer")])
def test_list_and_describe(broker, command, filled, protocol, kind):
    group = filled
    with consuming(broker, group, filled, protocol) as running:
        assert group in command("--list").split()
        assert re.search(rf"^{group}\s+Stable\s*$", command("--list", "--state"), re.MULTILINE)
        assert re.search(rf"^{group}\s+{kind}\s*$", command("--list", "--type"), re.MULTILINE)

        rows = table(command("--describe", "--group", group))
        assert sorted(int(row["PARTITION"]) for row in rows) == list(range(PARTITIONS))
        for row in rows:
            assert (row["TOPIC"], row["CURRENT-OFFSET"], row["LOG-END-OFFSET"], row["LAG"]) == (filled, "25", "25", "0")
            assert row["HOST"] == "/127.0.0.1" and row["CLIENT-ID"] == "rdkafka"
        assert len({row["CONSUMER-ID"] for row in rows}) == 2

        rows = table(command("--describe", "--group", group, "--members", "--verbose"))
        assert len(rows) == 2 and {row["#PARTITIONS"] for row in rows} == {"2"}
        for row in rows:
            assert filled in str(row)

        (row,) = table(command("--describe", "--group", group, "--state"))
        assert row["STATE"] == "Stable" and row["#MEMBERS"] == "2"
        assert row["ASSIGNMENT-STRATEGY"] == ("range" if kind == "Classic" else "uniform")

        # What is in use is neither reset nor deleted.
        refused = command("--reset-offsets", "--group", group, "--topic", filled, "--to-earliest", "--execute", status=ANY)
        assert "inactive" in refused
        assert "not empty" in command("--delete", "--group", group, status=ANY)
        assert len(running.members()) == 2
    (row,) = table(command("--describe", "--group", group, "--state"))
    assert row["STATE"] == "Empty" and row["#MEMBERS"] == "0"
    assert "successful" in command("--delete", "--group", group)
    assert group not in command("--list").split()


class Any:
    def __eq__(self, other):
        return True


ANY = Any()


def test_reset_offsets(broker, command, filled, tmp_path):
    group = filled
    with consuming(broker, group, filled, "cooperative-sticky", count=1):
        pass

    def reset(*how, execute=True) -> dict[int, str]:
        mode = "--execute" if execute else "--dry-run"
        rows = table(command("--reset-offsets", "--group", group, *how, mode))
        return {int(row["PARTITION"]): row["NEW-OFFSET"] for row in rows}

    def committed() -> dict[int, int]:
        with wire.Connection(broker.port) as connection:
            return {p: found[0] for (_, p), found in groups.committed(connection, group)[1].items()}

    every = range(PARTITIONS)
    assert reset("--topic", filled, "--to-earliest", execute=False) == dict.fromkeys(every, "0")
    assert committed() == dict.fromkeys(every, RECORDS), "a dry run changes nothing"
    assert reset("--topic", filled, "--to-earliest") == dict.fromkeys(every, "0")
    assert committed() == dict.fromkeys(every, 0)
    assert reset("--topic", f"{filled}:1,2", "--to-offset", "11") == {1: "11", 2: "11"}
    assert reset("--all-topics", "--shift-by", "2") == {0: "2", 1: "13", 2: "13", 3: "2"}
    exported = command("--reset-offsets", "--group", group, "--all-topics", "--to-current", "--export", "--dry-run")
    at = time.strftime("%Y-%m-%dT%H:%M:%S.000", time.gmtime(TIME_MS // 1000 + 7))
    assert reset("--topic", filled, "--to-datetime", at + "Z") == dict.fromkeys(every, "7")
    assert reset("--topic", filled, "--to-latest") == dict.fromkeys(every, "25")
    plan = tmp_path / "plan.csv"
    plan.write_text("".join(line + "\n" for line in exported.splitlines() if line.startswith((f'"{filled}"', filled))))
    assert reset("--from-file", plan) == {0: "2", 1: "13", 2: "13", 3: "2"}
    assert committed() == {0: 2, 1: 13, 2: 13, 3: 2}
    said = command("--delete-offsets", "--group", group, "--topic", f"{filled}:1")
    assert "successful" in said.lower()
    assert committed() == {0: 2, 2: 13, 3: 2}


def test_errors(command, filled):
    for what in ("--describe", "--delete"):
        said = command(what, "--group", "no-such-group", status=ANY)
        assert "no-such-group not found" in said or "does not exist" in said, said


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_consumer_performance(broker, tools, filled, protocol):
    status, said = tools.run(
        "org.apache.kafka.tools.ConsumerPerformance", "--bootstrap-server", broker.address, "--topic", filled,
        "--group", filled, "--num-records", "100", "--command-property", f"group.protocol={protocol}",
    )  # fmt: skip
    assert status == 0, said
    *_, header, figures = [line.split(", ") for line in said.splitlines() if ", " in line]
    assert dict(zip(header, figures))["data.consumed.in.nMsg"] == "100", said


@pytest.mark.parametrize("protocol", ["CLASSIC", "CONSUMER"])
def test_verifiable_consumer(broker, tools, filled, protocol):
    status, said = tools.run(
        "org.apache.kafka.tools.VerifiableConsumer", "--bootstrap-server", broker.address, "--topic", filled,
        "--group-id", filled, "--group-protocol", protocol, "--max-messages", "100",
    )  # fmt: skip
    assert status == 0, said
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    names = [event["name"] for event in events]
    assert names[0] == "startup_complete" and names[-1] == "shutdown_complete"
    assignments = [event["partitions"] for event in events if event["name"] == "partitions_assigned"]
    assigned = [one["partition"] for of_event in assignments for one in of_event]
    assert sorted(assigned) == list(range(PARTITIONS))
    assert sum(event["count"] for event in events if event["name"] == "records_consumed") == 100
    commits = [event for event in events if event["name"] == "offsets_committed"]
    assert commits and all(event["success"] for event in commits)
    positions = {one["partition"]: one["offset"] for event in commits for one in event["offsets"]}
    assert positions == dict.fromkeys(range(PARTITIONS), RECORDS)


def offsets_partition(group: str) -> int:
    """The partition of the offsets topic that a group is on: Java's hash of its name, made positive."""
    code = 0
    for character in group:
        code = (31 * code + ord(character)) & 0xFFFFFFFF
    return (code & 0x7FFFFFFF) % 50


def read_offsets_topic(broker, tools, group, formatter) -> list[dict]:
    status, said = tools.run(
        CONSOLE, "--bootstrap-server", broker.address, "--topic", "__consumer_offsets",
        "--partition", offsets_partition(group), "--offset", "earliest", "--timeout-ms", "2000",
        "--formatter", f"org.apache.kafka.tools.consumer.{formatter}",
    )  # fmt: skip
    assert status == 0, said
    found, at = [], said.find("{")
    while at >= 0:
        one, end = json.JSONDecoder().raw_decode(said, at)
        found.append(one)
        at = said.find("{", end)
    # Groups share partitions.
    return [one for one in found if one["key"]["data"]["group" if "group" in one["key"]["data"] else "groupId"] == group]


@pytest.mark.parametrize("protocol", ["range", "consumer"])
def test_the_offsets_topic_is_readable(broker, tools, filled, protocol):
    group = filled
    with consuming(broker, group, filled, protocol, count=1):
        pass
    offsets = read_offsets_topic(broker, tools, group, "OffsetsMessageFormatter")
    last = {one["key"]["data"]["partition"]: one["value"] for one in offsets}
    assert set(last) == set(range(PARTITIONS))
    for one in last.values():
        assert one["data"]["offset"] == RECORDS
        assert abs(one["data"]["commitTimestamp"] / 1000 - time.time()) < 600
    if protocol == "consumer":
        return
    metadata = read_offsets_topic(broker, tools, group, "GroupMetadataMessageFormatter")
    values = [one["value"]["data"] for one in metadata if one["value"] is not None]
    (stable,) = [one for one in values if one["members"]][-1:]
    assert (stable["protocolType"], stable["protocol"]) == ("consumer", "range") and len(stable["members"]) == 1
    assert stable["members"][0]["clientId"] == "rdkafka" and stable["leader"] == stable["members"][0]["memberId"]
    assert values[-1]["members"] == [] and values[-1]["generation"] > stable["generation"]


def test_describe_topic_of_offsets(broker, tools, filled):
    """It is there as Kafka's is: internal, compacted, 50 partitions."""
    with consuming(broker, filled, filled, "range", count=1):
        pass
    status, said = tools.run(
        "org.apache.kafka.tools.TopicCommand", "--bootstrap-server", broker.address,
        "--describe", "--topic", "__consumer_offsets",
    )  # fmt: skip
    assert status == 0, said
    assert "PartitionCount: 50" in said and "cleanup.policy=compact" in said
