#!/usr/bin/env python3
"""What an operator feels of a broker: `operations.py [--brokers flumen,kafka] [--gigabytes 10] [--turns N]`.

    start      time until it serves, started empty (median of the turns)
    idle       CPU and resident memory at rest, empty and with 1,000 partitions that hold records
    full load  the highest resident memory while producers and consumers do all they can; Flumen is told `--memory`
    restart    time until it serves after kill -9 under load with so many gigabytes of log, and until a record of
               before the kill is read back and a new one is acknowledged

It is a benchmark, not a test: it has no thresholds, and it wants an otherwise idle machine.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import brokers, places, wire  # noqa: E402

MEMORY_MIB = 512
CONTENDERS = {
    "flumen": lambda: brokers.Flumen(arguments=("--memory", f"{MEMORY_MIB}MiB")),
    "kafka": lambda: brokers.Kafka(),
}
PARTITIONS = 1_000
# Longer than what a start or a load leaves to be done: a checkpoint after 30 s.
SETTLE_S = 45
REST_S = 20


def load(broker, mode: str, **options) -> subprocess.Popen:
    command = [str(places.program("load")), mode, "--brokers", broker.address]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def create(broker, topic: str, partitions: int) -> None:
    with wire.Connection(broker.port, timeout_s=120) as connection:
        wire.create_served_topic(connection, topic, partitions)


def at_rest(broker) -> str:
    time.sleep(SETTLE_S)
    used = broker.cpu_s()
    time.sleep(REST_S)
    percent = (broker.cpu_s() - used) * 100 / REST_S
    return f"CPU {percent:.2f} %, resident {broker.rss_bytes() / (1 << 20):.0f} MiB"


def peak_mib(broker) -> float:
    status = pathlib.Path(f"/proc/{broker.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def started_empty(make, turns: int) -> list[float]:
    taken = []
    for _ in range(turns):
        with make() as broker:
            taken.append(broker.started_in_s * 1000)
    return sorted(taken)


def restart(broker, topic: str) -> tuple[float, float]:
    """kill -9 under load; seconds until Metadata is answered, and until old is read and new is written."""
    running = load(broker, "produce", topic=topic, partitions=4, size=1024, count=1_000_000_000)
    time.sleep(2)
    broker.kill()
    running.kill()
    running.wait()
    began = time.monotonic()
    broker.start()
    with wire.Connection(broker.port, timeout_s=120) as connection:
        for partition in range(4):
            while wire.fetch(connection, topic, 0, partition, max_wait_ms=0, min_bytes=0)[0] != wire.NONE:
                time.sleep(0.005)
            batch = wire.Batch([b"after the kill"]).encode()
            while wire.produce(connection, [(topic, partition, batch)])[0][0] != wire.NONE:
                time.sleep(0.005)
    return broker.started_in_s, time.monotonic() - began


def measure(name: str, make, gigabytes: int, turns: int) -> None:
    print(name)
    taken = started_empty(make, turns)
    print(f"  start      {statistics.median(taken):.0f} ms ({taken[0]:.0f}..{taken[-1]:.0f})", flush=True)
    with make() as broker:
        print(f"  idle       empty: {at_rest(broker)}", flush=True)
        create(broker, "many", PARTITIONS)
        load(broker, "produce", topic="many", partitions=PARTITIONS, size=1024, count=10_000).wait()
        print(f"  idle       {PARTITIONS} partitions: {at_rest(broker)}", flush=True)
    with make() as broker:
        create(broker, "load", 4)
        count = gigabytes * 1_000_000
        load(broker, "produce", topic="load", partitions=4, size=1024, count=count).wait()
        both = [
            load(broker, "produce", topic="load", partitions=4, size=100, count=10_000_000),
            load(broker, "fetch", topic="load", partitions=4, count=count // 4),
        ]
        for one in both:
            one.wait()
        told = f" of --memory {MEMORY_MIB} MiB" if name == "flumen" else ""
        print(f"  full load  highest resident {peak_mib(broker):.0f} MiB{told}", flush=True)
        for _ in range(turns):
            serving, served = restart(broker, "load")
            print(f"  restart    serving after {serving:.2f} s, old read and new written after {served:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--brokers", default="flumen,kafka")
    parser.add_argument("--gigabytes", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    for name in asked.brokers.split(","):
        measure(name, CONTENDERS[name], asked.gigabytes, asked.turns)


if __name__ == "__main__":
    main()
