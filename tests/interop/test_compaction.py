"""A compacted topic with real clients: written and read by librdkafka, Kafka's console consumer, and Kafka's dump tool."""

import re
import time

import pytest

from harness import places

pytestmark = pytest.mark.flumen_only

KEYS = 300
ROUND = 40_000
SETTINGS = {"log.cleaner.backoff.ms": "200"}
TOPIC = (
    "cleanup.policy=compact", "segment.bytes=1048576", "min.cleanable.dirty.ratio=0.01", "delete.retention.ms=600000",
)  # fmt: skip


def write(broker, client, topic, codec, first, table):
    """Updates of all keys, every seventh of them a deletion; `table` is what they come to."""
    lines = []
    for n in range(first, first + ROUND):
        key, value = f"key-{n * 7919 % KEYS}", "" if n % 7 == 0 else f"{codec} {n} {n * n}"
        lines.append(f"{key}:{value}\n")
        table[key] = (n, value)
    client(
        ["kcat", "-b", broker.address, "-P", "-t", topic, "-p", "0", "-K:", "-Z", "-z", codec,
         "-X", "enable.idempotence=true"],
        input="".join(lines).encode(),
    )  # fmt: skip


def read(broker, client, topic) -> list[tuple[int, str, str]]:
    """Offset, key, value of everything, as librdkafka reads it."""
    said = client(["kcat", "-b", broker.address, "-C", "-t", topic, "-p", "0", "-e", "-q", "-f", "%o\t%k\t%s\n"])
    rows = [line.split("\t") for line in said.decode().splitlines()]
    return [(int(offset), key, value) for offset, key, value in rows]


def check(rows, table, end):
    """Offsets rise, and the last row of each key is its last value, at its offset."""
    assert all(before[0] < after[0] for before, after in zip(rows, rows[1:], strict=False))
    last = {key: (offset, value) for offset, key, value in rows}
    assert last == table
    assert rows[-1][0] == end - 1


def test_the_last_value_of_each_key_stays(own_broker, client, tool, topic):
    broker = own_broker(settings=SETTINGS)
    server = ("--bootstrap-server", broker.address)
    settings = [word for setting in TOPIC for word in ("--config", setting)]
    tool("org.apache.kafka.tools.TopicCommand", *server, "--create", "--topic", topic, *settings)
    table: dict[str, tuple[int, str]] = {}
    codecs = ("none", "gzip", "snappy", "lz4", "zstd", "none")
    for number, codec in enumerate(codecs):
        write(broker, client, topic, codec, number * ROUND, table)
    end = len(codecs) * ROUND

    # What is not closed yet stays as it is: at most a segment, of some 30,000 records. The rest waits for a checkpoint.
    deadline = time.monotonic() + 100
    while len(rows := read(broker, client, topic)) > 2 * ROUND:
        assert time.monotonic() < deadline, f"{len(rows)} of {end} records are still there\n{broker.log_tail()}"
        time.sleep(0.2)
    check(rows, table, end)
    assert broker.logs("compacted")

    how = ("--partition", "0", "--offset", "earliest", "--timeout-ms", "5000")
    # The console consumer ends with an error once nothing comes any more.
    said = tool(
        "org.apache.kafka.tools.consumer.ConsoleConsumer", *server, "--topic", topic, *how,
        "--max-messages", str(len(rows)), "--formatter-property", "print.key=true",
        "--formatter-property", "print.offset=true",
    ).decode()  # fmt: skip
    offsets = [int(offset) for offset in re.findall(r"Offset:(\d+)", said)]
    assert offsets == [row[0] for row in rows][: len(offsets)] and len(offsets) == len(rows)

    assert broker.stop() in broker.clean_statuses
    files = sorted(path.name for path in (broker.data / f"{topic}-0").iterdir())
    assert not [name for name in files if name.endswith((".swap", ".cleaned"))], files
    check_dump(broker, topic, table)
    broker.start()
    check(read(broker, client, topic), table, end)


def check_dump(broker, topic, table):
    """Kafka's dump tool takes every segment and index, and finds the same records."""
    seen, horizons = {}, 0
    segments = broker.segments(topic, 0)
    for one in segments:
        said = places.run(
            places.java(
                "org.apache.kafka.tools.DumpLogSegments", "--files", str(one),
                "--deep-iteration", "--print-data-log",
            ),
        ).decode()  # fmt: skip
        assert "isvalid: false" not in said, one
        horizons += len(re.findall(r"deleteHorizonMs: (?:OptionalLong\[)?\d+", said))
        for offset, key in re.findall(r"^\| offset: (\d+) .* key: (\S+)", said, re.MULTILINE):
            seen[key] = int(offset)
    assert seen == {key: offset for key, (offset, _) in table.items()}
    assert horizons > 0, "no batch says until when its tombstones stay"
    for one in segments[:-1]:
        for index in (one.with_suffix(".index"), one.with_suffix(".timeindex")):
            command = places.java("org.apache.kafka.tools.DumpLogSegments", "--files", str(index), "--index-sanity-check")
            # So little may be left of a segment that its offset index has no entry.
            said = places.run(command).decode()
            assert "passed sanity check" in said or (index.stat().st_size == 0 and "is empty" in said), index
