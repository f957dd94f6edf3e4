"""Kafka's own command-line tools."""

import re

import pytest
from harness import places


def kafka(broker, tool, main_class, *arguments, **how) -> str:
    server = ("--bootstrap-server", broker.address)
    return tool(f"org.apache.kafka.tools.{main_class}", *server, *arguments, **how).decode()


def test_topic_command(broker, tool, topic):
    def topics(*arguments):
        return kafka(broker, tool, "TopicCommand", *arguments)

    topics("--create", "--topic", topic, "--partitions", "3", "--config", "retention.ms=3600000")
    assert topic in topics("--list").split()
    described = topics("--describe", "--topic", topic)
    assert "PartitionCount: 3" in described and "ReplicationFactor: 1" in described
    assert "retention.ms=3600000" in described
    assert re.search(r"TopicId: [A-Za-z0-9_-]{22}\s", described)
    topics("--alter", "--topic", topic, "--partitions", "5")
    assert "PartitionCount: 5" in topics("--describe", "--topic", topic)
    topics("--delete", "--topic", topic)
    assert topic not in topics("--list").split()


def test_get_offset_shell(broker, tool, client, topic):
    kafka(broker, tool, "TopicCommand", "--create", "--topic", topic, "--partitions", "2")
    for partition, count in ((0, 10), (1, 25)):
        lines = b"".join(b"%d\n" % n for n in range(count))
        client(["kcat", "-b", broker.address, "-P", "-t", topic, "-p", str(partition)], input=lines)

    def offsets(time):
        said = kafka(broker, tool, "GetOffsetShell", "--topic", topic, "--time", time)
        return said.split()

    assert offsets("latest") == [f"{topic}:0:10", f"{topic}:1:25"]
    assert offsets("earliest") == [f"{topic}:0:0", f"{topic}:1:0"]
    assert offsets("max-timestamp")[0].startswith(f"{topic}:0:")


def test_console_clients(broker, tool, topic):
    lines = b"".join(b"line %d\n" % n for n in range(2000))
    kafka(broker, tool, "ConsoleProducer", "--topic", topic, input=lines)
    assert consume(broker, tool, topic, 2000) == lines
    tail = ("--offset", "1990", "--max-messages", "10")
    said = kafka(broker, tool, "consumer.ConsoleConsumer", "--topic", topic, "--partition", "0", *tail)
    assert said.encode() == b"".join(lines.splitlines(keepends=True)[1990:])


def consume(broker, tool, topic, count) -> bytes:
    how = ("--partition", "0", "--offset", "earliest", "--max-messages", str(count), "--timeout-ms", "30000")
    return kafka(broker, tool, "consumer.ConsoleConsumer", "--topic", topic, *how).encode()


def test_producer_performance(broker, tool, topic):
    for acks in ("1", "all"):
        said = kafka(
            broker, tool, "ProducerPerformance", "--topic", topic, "--num-records", "100000",
            "--record-size", "500", "--throughput", "-1", "--command-property", f"acks={acks}",
        )  # fmt: skip
        assert "100000 records sent" in said
    total = kafka(broker, tool, "GetOffsetShell", "--topic", topic, "--time", "latest")
    assert total.split() == [f"{topic}:0:200000"]


def test_delete_records_command(broker, tool, topic, tmp_path):
    kafka(broker, tool, "ConsoleProducer", "--topic", topic, input=b"a\nb\nc\n")
    asked = tmp_path / "offsets.json"
    asked.write_text('{"partitions": [{"topic": "%s", "partition": 0, "offset": 2}], "version": 1}' % topic)
    kafka(broker, tool, "DeleteRecordsCommand", "--offset-json-file", asked)
    earliest = kafka(broker, tool, "GetOffsetShell", "--topic", topic, "--time", "earliest")
    assert earliest.split() == [f"{topic}:0:2"]


def test_configs_command(broker, tool, topic):
    kafka(broker, tool, "TopicCommand", "--create", "--topic", topic)
    server = ("--bootstrap-server", broker.address, "--entity-type", "topics", "--entity-name", topic)
    tool("kafka.admin.ConfigCommand", *server, "--alter", "--add-config", "segment.ms=7200000")
    described = tool("kafka.admin.ConfigCommand", *server, "--describe").decode()
    assert "segment.ms=7200000" in described
    every = tool("kafka.admin.ConfigCommand", *server, "--describe", "--all").decode()
    assert "cleanup.policy=delete" in every


def test_log_dirs_and_cluster(broker, tool, topic):
    kafka(broker, tool, "ConsoleProducer", "--topic", topic, input=b"a\n")
    described = kafka(broker, tool, "LogDirsCommand", "--describe", "--topic-list", topic)
    assert f'"partition":"{topic}-0"' in described
    assert kafka_cluster_id(broker, tool)
    assert "Produce(0)" in kafka(broker, tool, "BrokerApiVersionsCommand")


def kafka_cluster_id(broker, tool) -> str:
    said = tool("org.apache.kafka.tools.ClusterTool", "cluster-id", "--bootstrap-server", broker.address)
    return re.search(r"Cluster ID: ([A-Za-z0-9_-]{22})", said.decode())[1]


def test_what_was_not_set_up(broker, tool, topic):
    """Tools and consoles ask for it of every broker."""
    kafka(broker, tool, "TopicCommand", "--create", "--topic", topic, "--partitions", "2")
    with pytest.raises(places.ClientFailed, match="SecurityDisabledException"):
        kafka(broker, tool, "AclCommand", "--list")
    for kind in ("users", "clients"):
        asked = ("--describe", "--entity-type", kind)
        assert tool("kafka.admin.ConfigCommand", "--bootstrap-server", broker.address, *asked) == b""
    listed = kafka(broker, tool, "reassign.ReassignPartitionsCommand", "--list")
    assert "No partition reassignments found" in listed
    of_one = ("--election-type", "preferred", "--topic", topic, "--partition", "1")
    elected = kafka(broker, tool, "LeaderElectionCommand", *of_one)
    assert "Valid replica already elected for partitions" in elected and topic in elected


def test_dump_log_segments(own_broker, client, topic):
    """Closed segments are Kafka's, byte for byte: its dump tool reads every record of every codec."""
    broker = own_broker()
    segment = ("--config", "segment.bytes=1048576")
    tool_run(broker, "TopicCommand", "--create", "--topic", topic, *segment)
    expected = 0
    for codec in ("none", "gzip", "snappy", "lz4", "zstd"):
        lines = b"".join(b"%s %d %d\n" % (codec.encode(), n, n * n * 7919) for n in range(40_000))
        client(
            ["kcat", "-b", broker.address, "-P", "-t", topic, "-p", "0", "-z", codec,
             "-X", "enable.idempotence=true"],
            input=lines,
        )  # fmt: skip
        expected += 40_000
    assert broker.stop() in broker.clean_statuses
    segments = broker.segments(topic, 0)
    assert len(segments) > 2, "the load was to fill several segments"
    seen = []
    for one in segments:
        said = places.run(
            places.java(
                "org.apache.kafka.tools.DumpLogSegments", "--files", str(one),
                "--deep-iteration", "--print-data-log",
            ),
        ).decode()  # fmt: skip
        assert "isvalid: true" in said and "isvalid: false" not in said, one
        assert f"Log starting offset: {int(one.stem)}\n" in said
        seen += [int(offset) for offset in re.findall(r"^\| offset: (\d+) ", said, re.MULTILINE)]
    assert seen == list(range(expected))
    check_indexes(segments[:-1])


def check_indexes(closed):
    for one in closed:
        for index in (one.with_suffix(".index"), one.with_suffix(".timeindex")):
            command = places.java("org.apache.kafka.tools.DumpLogSegments", "--files", str(index), "--index-sanity-check")
            assert "passed sanity check" in places.run(command).decode(), index


def tool_run(broker, main_class, *arguments):
    server = ("--bootstrap-server", broker.address)
    return places.run(places.java(f"org.apache.kafka.tools.{main_class}", *server, *arguments))
