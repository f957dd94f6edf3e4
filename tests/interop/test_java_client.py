"""The Java client 4.x, mostly with its default settings; the checks are in JavaCheck.java. And the one before."""

import json
import pathlib

import pytest

from harness import places

CHECKS = [
    "codecs", "acks", "order", "records", "offsets", "reset", "long_poll", "large", "limits",
    "topics", "topic_errors", "configs", "cluster", "delete_records", "producers",
    "positions_classic", "positions_consumer", "group_admin", "pattern",
]  # fmt: skip


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> pathlib.Path:
    """JavaCheck, compiled once."""
    out = tmp_path_factory.mktemp("classes")
    source = pathlib.Path(__file__).with_name("JavaCheck.java")
    places.run(["javac", "-d", out, "-cp", f"{places.KAFKA_JARS}/*", source])
    return out


@pytest.mark.parametrize("check", CHECKS)
def test_java_client(broker, classes, topic, check):
    command = places.java("JavaCheck", broker.address, topic, check, class_path=(classes,))
    assert places.run(command) == b"passed\n"


def test_the_client_before_4(broker, topic):
    def tool(name, *arguments):
        main = f"org.apache.kafka.tools.{name}"
        options = ("--bootstrap-server", broker.address, "--topic", topic, "--max-messages", "1000", *arguments)
        said = places.run(places.java(main, *options, jars=places.KAFKA_3_JARS)).decode().splitlines()
        return [json.loads(line) for line in said if line.startswith("{")]

    assert tool("VerifiableProducer", "--acks", "-1")[-1]["acked"] == 1000
    told = tool("VerifiableConsumer", "--group-id", topic, "--reset-policy", "earliest", "--verbose")
    assert [one["value"] for one in told if one["name"] == "record_data"] == [str(n) for n in range(1000)]
    assert [one["offsets"][0]["offset"] for one in told if one["name"] == "offsets_committed"][-1] == 1000
