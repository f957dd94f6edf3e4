"""The Java client 4.x, mostly with its default settings; the checks are in JavaCheck.java."""

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
