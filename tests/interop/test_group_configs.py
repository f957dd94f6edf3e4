"""Settings of single groups: set, told with their source, effective, kept over a crash, listed by Kafka's own tool."""

import struct
import time

import pytest

from harness import groups, wire
from harness.wire import array, string

GROUP = 32
# Where a value comes from.
GROUP_CONFIG, STATIC, DEFAULT = 8, 4, 5
SESSION, HEARTBEAT = "consumer.session.timeout.ms", "consumer.heartbeat.interval.ms"
SETTINGS = {
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "200",
    "group.consumer.assignment.interval.ms": "0",
}


def alter(connection, group, **settings) -> tuple[int, str | None]:
    """AlterConfigs v0: a group has these settings and no others. `(error code, message)`."""
    configs = [string(name.replace("_", ".")) + string(str(value)) for name, value in settings.items()]
    body = array([struct.pack(">b", GROUP) + string(group) + array(configs)]) + b"\0"
    answer = connection.call(wire.ALTER_CONFIGS, 0, body)
    answer.take("i")
    assert answer.take("i") == 1
    return answer.take("h"), answer.string()


def described(connection, group) -> dict[str, tuple[str, int, list[tuple[str, str, int]]]]:
    """The settings of the consumer protocol: value, source, what lies behind."""
    found = wire.describe_configs(connection, GROUP, group)
    return {name: said for name, said in found.items() if name.startswith("consumer.")}


@pytest.fixture
def set_up(own_broker):
    broker = own_broker(settings=SETTINGS)
    with wire.Connection(broker.port) as connection:
        wire.create_served_topic(connection, "read", 2)
        deadline = time.monotonic() + 30
        while groups.find_coordinator(connection, "any")[0] != wire.NONE or groups.committed(connection, "any")[0] != wire.NONE:
            assert time.monotonic() < deadline, "no coordinator"
            time.sleep(0.05)
    return broker


def test_told_with_their_source(broker, topic):
    with wire.Connection(broker.port) as connection:
        assert set(described(connection, topic)) == {SESSION, HEARTBEAT, "consumer.assignment.interval.ms"}
        assert described(connection, topic)[SESSION] == ("45000", DEFAULT, [(f"group.{SESSION}", "45000", DEFAULT)])
        assert alter(connection, topic, consumer_session_timeout_ms=50_000) == (wire.NONE, None)
        behind = [(SESSION, "50000", GROUP_CONFIG), (f"group.{SESSION}", "45000", DEFAULT)]
        assert described(connection, topic)[SESSION] == ("50000", GROUP_CONFIG, behind)
        assert described(connection, f"{topic}-other")[SESSION][0] == "45000"
        refused = alter(connection, topic, consumer_session_timeout_ms=5_000)
        assert refused == (40, f"{SESSION} must be greater than or equal to group.consumer.min.session.timeout.ms")
        assert alter(connection, topic) == (wire.NONE, None)
        assert described(connection, topic)[SESSION][1] == DEFAULT


def test_in_force_and_kept(set_up):
    """One group's members are gone after its own time, another's stay; also after a crash."""
    broker = set_up
    with wire.Connection(broker.port) as connection:
        assert alter(connection, "short", consumer_session_timeout_ms=1_500, consumer_heartbeat_interval_ms=300) == (0, None)
        check_in_force(connection)
    broker.kill()
    broker.start()
    with wire.Connection(broker.port) as connection:
        deadline = time.monotonic() + 30
        while groups.committed(connection, "short")[0] != wire.NONE:
            assert time.monotonic() < deadline, "not loaded"
            time.sleep(0.05)
        check_in_force(connection)


def check_in_force(connection):
    intervals = {"short": 300, "long": 5_000}
    for group, interval in intervals.items():
        beat = groups.consumer_heartbeat(connection, group, "", 0, topics=["read"], owned={})
        assert (beat.code, beat.interval_ms) == (wire.NONE, interval)
    began = time.monotonic()
    while not is_empty(connection, "short"):
        assert time.monotonic() - began < 10, "its member is still there"
        time.sleep(0.05)
    assert time.monotonic() - began > 1.2
    assert not is_empty(connection, "long")


def is_empty(connection, group) -> bool:
    """Whoever is not a member may commit to a group that has none."""
    return groups.commit(connection, group, {("read", 0): 0}, generation=-1, member="")[("read", 0)] == wire.NONE


def test_by_kafkas_own_tool(broker, topic, tool):
    server = ("--bootstrap-server", broker.address, "--entity-type", "groups")
    tool("kafka.admin.ConfigCommand", *server, "--entity-name", topic, "--alter", "--add-config", f"{SESSION}=47000")
    assert f"{SESSION}=47000" in tool("kafka.admin.ConfigCommand", *server, "--describe").decode()
    tool("kafka.admin.ConfigCommand", *server, "--entity-name", topic, "--alter", "--delete-config", SESSION)
    assert topic not in tool("kafka.admin.ConfigCommand", *server, "--describe").decode()
