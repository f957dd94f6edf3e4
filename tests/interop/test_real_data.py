"""Real data, keyed by airport, through kcat and through the Java console producer, and out again: every record
byte for byte, and in the order of the file for each key.

- flights-20k.json: 20,000 flights, keyed by origin; the record is the flight's JSON text.
- birdstrikes.csv: 10,000 reports, keyed by airport name; the record is the line.
"""

import collections
import json

import pytest

from harness import places

PARTITIONS = 6


def flights() -> list[tuple[bytes, bytes]]:
    rows = json.loads((places.DATA / "flights-20k.json").read_text())
    return [(row["origin"].encode(), json.dumps(row, separators=(",", ":")).encode()) for row in rows]


def birdstrikes() -> list[tuple[bytes, bytes]]:
    lines = (places.DATA / "birdstrikes.csv").read_bytes().splitlines()[1:]
    return [(line.split(b",", 1)[0], line) for line in lines]


SETS = {"flights": flights, "birdstrikes": birdstrikes}


def by_kcat(broker, topic, lines, codec):
    command = ["kcat", "-b", broker.address, "-P", "-t", topic, "-K", "\t", "-z", codec]
    places.run(command, input=lines)


def by_java(broker, topic, lines, codec):
    places.run(
        places.java(
            "org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", broker.address, "--topic", topic,
            "--reader-property", "parse.key=true", "--reader-property", "key.separator=\t",
            "--compression-codec", codec,
        ),
        input=lines,
    )  # fmt: skip


def out_by_kcat(broker, topic):
    command = ["kcat", "-b", broker.address, "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-f", "%p\t%k\t%s\n"]
    return places.run(command)


def out_by_java(broker, topic):
    said = b""
    for partition in range(PARTITIONS):
        # Without groups: one partition after the other, each to its end.
        offset = places.run(["kcat", "-b", broker.address, "-Q", "-t", f"{topic}:{partition}:-1"]).split()[-1]
        if offset == b"0":
            continue
        said += places.run(
            places.java(
                "org.apache.kafka.tools.consumer.ConsoleConsumer", "--bootstrap-server", broker.address,
                "--topic", topic, "--partition", str(partition), "--offset", "earliest",
                "--max-messages", offset.decode(), "--timeout-ms", "60000",
                "--formatter-property", "print.key=true", "--formatter-property", "print.partition=true",
            ),
        ).replace(b"Partition:", b"")  # fmt: skip
    return said


@pytest.mark.parametrize("produce", [by_kcat, by_java])
@pytest.mark.parametrize("consume", [out_by_kcat, out_by_java])
@pytest.mark.parametrize("name, codec", [("flights", "zstd"), ("birdstrikes", "none")])
def test_real_data(broker, topic, tool, name, codec, produce, consume):
    records = SETS[name]()
    assert len(records) > 9_000
    server = ("--bootstrap-server", broker.address)
    tool("org.apache.kafka.tools.TopicCommand", *server, "--create", "--topic", topic, "--partitions", PARTITIONS)
    produce(broker, topic, b"".join(key + b"\t" + value + b"\n" for key, value in records), codec)

    found = [line.split(b"\t", 2) for line in consume(broker, topic).splitlines()]
    assert len(found) == len(records)
    partition_of = {}
    for partition, key, _ in found:
        assert partition_of.setdefault(key, partition) == partition, f"{key} is in two partitions"
    assert grouped((key, value) for _, key, value in found) == grouped(records)
    assert sorted(value for _, _, value in found) == sorted(value for _, value in records)


def grouped(records):
    out = collections.defaultdict(list)
    for key, value in records:
        out[key].append(value)
    return out
