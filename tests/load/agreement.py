#!/usr/bin/env python3
"""Does `flumen-bench` agree with others? `agreement.py [--broker flumen|kafka|HOST:PORT] [--turns N] [--seconds N]`.

Against Kafka's `ProducerPerformance`, by turns on one broker, with the same records, acks and requests: one producer, one
record in each request, one or five of them unanswered, so that the broker and its disk are the limit and neither
client is. Throughput over all turns is to agree within 10 %.

And against arithmetic that knows nothing of histograms: with N requests always unanswered, the rate of answers times the
mean latency is N (Little's law). What the generator itself needs between an answer and the next request is missing
in the latency, so the product is a little below N; above it, latencies would be too long.

It is a measurement, not a test: it wants an otherwise idle machine. It exits with 1 where something does not agree.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import brokers, places  # noqa: E402

SIZE = 1024
TOLERANCE = 0.10
SENT = re.compile(r"(\d+) records sent, ([\d.]+) records/sec \(.*?\), ([\d.]+) ms avg latency")


def theirs(address: str, topic: str, in_flight: int, records: int) -> tuple[float, float]:
    """Records per second and mean latency in milliseconds, as ProducerPerformance has them for the whole run."""
    properties = {
        "bootstrap.servers": address, "acks": "all", "batch.size": 0, "linger.ms": 0,
        "max.in.flight.requests.per.connection": in_flight, "enable.idempotence": "false",
    }  # fmt: skip
    said = places.run(
        places.java(
            "org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--num-records", str(records),
            "--record-size", str(SIZE), "--throughput", "-1", "--producer-props",
            *(f"{name}={value}" for name, value in properties.items()),
            options=(),
        ),
        timeout_s=600,
    ).decode()  # fmt: skip
    _, rate, latency = SENT.findall(said)[-1]
    return float(rate), float(latency)


def ours(address: str, topic: str, in_flight: int, seconds: float) -> tuple[float, float]:
    """The same of flumen-bench."""
    scenario = f"""
        [topic]
        name = "{topic}"
        partitions = 1
        keep = true
        [[phases]]
        seconds = {seconds}
        warmup_seconds = 1
        [[phases.producers]]
        load = "closed"
        in_flight = {in_flight}
        batch_records = 1
        request_batches = 1
        payload.size = {SIZE}
    """
    with tempfile.TemporaryDirectory() as folder:
        path, output = pathlib.Path(folder, "scenario.toml"), pathlib.Path(folder, "result.json")
        path.write_text(scenario)
        command = [places.bench_binary(), "run", path, "-b", address, "-o", output, "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result = json.loads(output.read_text())
    produce = next(part for part in result["parts"] if part["kind"] == "produce")
    return produce["records"] / result["duration_s"], produce["latency"]["summary"]["mean_ns"] / 1e6


def compare(address: str, in_flight: int, turns: int, seconds: float) -> bool:
    topic = f"agreement-{in_flight}"
    # Makes the topic, too. As many records as take about as long as a turn of the other.
    rate, _ = ours(address, topic, in_flight, 2)
    rows = []
    for turn in range(turns):
        own = ours(address, topic, in_flight, seconds)
        their = theirs(address, topic, in_flight, int(rate * seconds))
        rows.append((own, their))
        print(
            f"in flight {in_flight}, turn {turn + 1}: flumen-bench {own[0]:.0f}/s, mean {own[1]:.3f} ms; "
            f"ProducerPerformance {their[0]:.0f}/s, mean {their[1]:.2f} ms",
            flush=True,
        )
    # The time that each needed for a record, over all turns: turns are of equal length for one, of equal count for the other.
    own_s, their_s = (sum(1 / row[side][0] for row in rows) for side in (0, 1))
    ratio = their_s / own_s
    little = sum(row[0][0] * row[0][1] / 1e3 for row in rows) / len(rows)
    print(
        f"in flight {in_flight}: flumen-bench has {ratio:.3f} of ProducerPerformance's throughput; rate times mean latency "
        f"is {little:.3f} of {in_flight}"
    )
    return abs(ratio - 1) <= TOLERANCE and (1 - TOLERANCE) * in_flight <= little <= 1.01 * in_flight


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", default="flumen", help="flumen, kafka, or the address of one that runs")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    asked = parser.parse_args()
    started = {"flumen": brokers.Flumen, "kafka": brokers.Kafka}.get(asked.broker)
    if started is None:
        agreed = [compare(asked.broker, count, asked.turns, asked.seconds) for count in (1, 5)]
    else:
        with started() as broker:
            agreed = [compare(broker.address, count, asked.turns, asked.seconds) for count in (1, 5)]
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
