#!/usr/bin/env python3
"""Measures brokers side by side, by turns in one run: `compare.py [--only NAME,...] [--brokers flumen,kafka] [--turns N]`.

A contender is a broker with settings: `kafka` in its default form, which does not sync; `kafka-sync` with
flush.messages=1; `flumen` as it comes, durable before every acknowledgement. Every scenario runs on every contender
in each turn, on a fresh topic of a broker that stays up, after a warm-up of the same kind. What is printed is the median over the
turns with its spread, and the ratio to the first contender. CPU is that of the broker's process alone, user and
system; latency counts from the time at which a record was due (load/main.rs says how), and beside it stands what a
bare synchronous write to the same file system took at that time (raw_*).

It is a benchmark, not a test: it has no thresholds, and it wants an otherwise idle machine.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import brokers, places, wire  # noqa: E402

CONTENDERS = {
    "flumen": lambda: brokers.Flumen(),
    "kafka": lambda: brokers.Kafka(),
    "kafka-sync": lambda: brokers.Kafka({"log.flush.interval.messages": "1"}),
}


@dataclasses.dataclass
class Scenario:
    """One mode of the load program, with its options, and the figures that are compared."""

    mode: str
    partitions: int
    figures: tuple[str, ...]
    options: dict[str, int | str]
    # Options of the warm-up that differ.
    warmup: dict[str, int | str] = dataclasses.field(default_factory=dict)


LATENCIES = (
    "p50_ms", "p99_ms", "p99_9_ms", "raw_p50_ms", "raw_p99_ms", "raw_p99_9_ms", "behind_ms", "cpu_us_per_record",
    "broker_rss_mib",
)  # fmt: skip


def latency(rate: int, partitions: int) -> Scenario:
    options = {"rate": rate, "size": 1024, "seconds": 20, "warmup-seconds": 5}
    return Scenario("latency", partitions, LATENCIES, options, {"seconds": 3, "warmup-seconds": 0})


SCENARIOS = {
    "produce-1k": Scenario(
        "produce", 4, ("cpu_s_per_gb", "elapsed_s", "broker_rss_mib"),
        {"size": 1024, "count": 2_000_000, "linger-ms": 5}, {"count": 500_000},
    ),
    "produce-100": Scenario(
        "produce", 4, ("cpu_us_per_record", "cpu_s_per_gb", "elapsed_s"),
        {"size": 100, "count": 5_000_000, "linger-ms": 5}, {"count": 1_000_000},
    ),
    "requests-16": Scenario(
        "requests", 4, ("cpu_us_per_record", "elapsed_s"),
        {"size": 1024, "count": 320_000, "connections": 16, "depth": 8}, {"count": 80_000},
    ),
    "requests-1": Scenario(
        "requests", 1, ("cpu_us_per_record", "elapsed_s"),
        {"size": 1024, "count": 30_000, "connections": 1, "depth": 1}, {"count": 5_000},
    ),
    "fetch-tail": Scenario(
        "fetch", 4, ("cpu_s_per_gb", "elapsed_s"), {"count": 16_000, "repeat": 20}, {"repeat": 5},
    ),
    "latency-5k": latency(5_000, 4),
    "latency-20k-64": latency(20_000, 64),
    "latency-20k-1000": latency(20_000, 1_000),
}  # fmt: skip

_topics = itertools.count()


def new_topic(broker: brokers.Broker, partitions: int) -> str:
    name = f"measured-{next(_topics)}"
    with wire.Connection(broker.port, timeout_s=120) as connection:
        code, message = wire.create_topic(connection, name, partitions)
        if code != wire.NONE:
            raise brokers.BrokerFailed(f"{broker.name} does not create {name}: {code} {message}")
        # The reference answers before every partition is served.
        for partition in range(partitions):
            while wire.fetch(connection, name, 0, partition, max_wait_ms=0, min_bytes=0)[0] != wire.NONE:
                time.sleep(0.05)
    return name


def delete_topic(broker: brokers.Broker, name: str) -> None:
    with wire.Connection(broker.port, timeout_s=120) as connection:
        connection.call(wire.DELETE_TOPICS, 1, wire.array([wire.string(name)]) + b"\0\0\x75\x30")


def load(broker: brokers.Broker, mode: str, **options) -> dict[str, float]:
    command = [places.program("load"), mode, "--brokers", broker.address]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return json.loads(places.run(command, timeout_s=1800))


def measure(broker: brokers.Broker, scenario: Scenario, *, warm: bool) -> dict[str, float]:
    """One run on a fresh topic, or the warm-up of one."""
    topic = new_topic(broker, scenario.partitions)
    options = {name.replace("-", "_"): value for name, value in scenario.options.items()}
    if warm:
        options |= {name.replace("-", "_"): value for name, value in scenario.warmup.items()}
    if scenario.mode == "fetch":
        count = 2 * scenario.partitions * scenario.options["count"]
        load(broker, "produce", topic=topic, partitions=scenario.partitions, size=1024, count=count)
    if scenario.mode == "latency":
        options["raw_disk"] = broker.data
    figures = load(
        broker, scenario.mode, topic=topic, partitions=scenario.partitions, pid=broker.process.pid, **options
    )
    delete_topic(broker, topic)
    return figures


def report(name: str, scenario: Scenario, runs: dict[str, list[dict[str, float]]]) -> None:
    print(f"\n{name}")
    first = next(iter(runs))
    for figure in scenario.figures:
        cells = []
        base = statistics.median(run[figure] for run in runs[first])
        for contender, of_contender in runs.items():
            values = sorted(run[figure] for run in of_contender)
            middle = statistics.median(values)
            ratio = "" if contender == first or not base else f" = {middle / base:.1f} x"
            cells.append(f"{contender} {middle:.3f} ({values[0]:.3f}..{values[-1]:.3f}){ratio}")
        print(f"  {figure:18} " + "   ".join(cells), flush=True)


def idle(running: dict[str, brokers.Broker]) -> None:
    """CPU and memory at rest, started empty."""
    print("\nidle")
    for name, broker in running.items():
        used = broker.cpu_s()
        time.sleep(10)
        percent = (broker.cpu_s() - used) * 10
        rss = broker.rss_bytes() / (1 << 20)
        print(f"  {name:12} start {broker.started_in_s * 1000:.0f} ms, CPU {percent:.1f} %, resident {rss:.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--brokers", default="flumen,kafka,kafka-sync")
    parser.add_argument("--only", default=",".join(SCENARIOS))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", help="also writes all figures to this file")
    asked = parser.parse_args()
    names = asked.only.split(",")
    running = {name: CONTENDERS[name]() for name in asked.brokers.split(",")}
    everything = {}
    try:
        for broker in running.values():
            broker.start()
        idle(running)
        for name in names:
            scenario = SCENARIOS[name]
            runs = {contender: [] for contender in running}
            for contender in running:
                measure(running[contender], scenario, warm=True)
            for _ in range(asked.turns):
                for contender, broker in running.items():
                    runs[contender].append(measure(broker, scenario, warm=False))
            report(name, scenario, runs)
            everything[name] = runs
    finally:
        for broker in running.values():
            broker.close()
    if asked.json:
        pathlib.Path(asked.json).write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
