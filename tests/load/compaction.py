#!/usr/bin/env python3
"""What compaction costs, and that it is right: `compaction.py [--updates N] [--keys N] [--seconds N]
[--bytes-per-second N]`.

A node gets N updates over K keys on a compacted topic while it is told not to compact, then a record that closes the last
segment. Then the open-loop load of `load latency` runs on other topics twice: with nothing to compact, and while the log is
compacted. At the end everything is read back: exactly the last value of each
key must be there.

It is a benchmark, not a test: it has no thresholds but the content of the log, and it wants an otherwise idle machine.
"""

import argparse
import json
import pathlib
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import brokers, places, wire  # noqa: E402

SETTINGS = {
    "log.cleaner.backoff.ms": "500",
    # Whatever of a log is dirty is worth a pass, once it lies for so long.
    "log.cleaner.min.cleanable.ratio": "0.01",
    "log.segment.bytes": str(64 << 20),
}


def load(mode: str, broker: brokers.Broker, topic: str, **options) -> dict[str, float]:
    given = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [places.program("load"), mode, "--brokers", broker.address, "--topic", topic, *given]
    return json.loads(places.run(command, timeout_s=900))


def compacted(broker: brokers.Broker, topic: str, arguments) -> dict:
    """Fills a topic and closes its last segment."""
    lag = {"min.compaction.lag.ms": str(1 << 50)}
    with wire.Connection(broker.port) as connection:
        created = wire.create_topic(
            connection, topic, configs={"cleanup.policy": "compact", "segment.ms": "1000"} | lag
        )
        assert created[0] == wire.NONE, created
    filled = load("update", broker, topic, count=arguments.updates, keys=arguments.keys, pid=broker.process.pid)
    time.sleep(1.5)
    # Its key is past all others. It is younger than `segment.ms` lets the segment grow.
    record = wire.record(0, bytes(8), arguments.keys.to_bytes(8, "big"))
    last = wire.Batch([b""], timestamp=int(time.time() * 1000), records=record)
    with wire.Connection(broker.port) as connection:
        assert wire.produce(connection, [(topic, 0, last.encode())])[0][0] == wire.NONE
    return filled


def foreground(broker: brokers.Broker, name: str, seconds: int) -> dict[str, float]:
    with wire.Connection(broker.port) as connection:
        assert wire.create_topic(connection, name, 16)[0] == wire.NONE
    return load("latency", broker, name, partitions=16, rate=2000, size=1024, seconds=seconds, warmup_seconds=2)


def let_go(broker: brokers.Broker, topic: str) -> None:
    with wire.Connection(broker.port) as connection:
        changed = wire.alter_topic(connection, topic, {"min.compaction.lag.ms": "0"})
        assert changed == wire.NONE, changed


def until_compacted(broker: brokers.Broker, topic: str, updates: int) -> list[str]:
    """Waits until passes have come past the last update; returns what the log says of them."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        lines = [line for line in broker.log_text().splitlines() if "compacted" in line and f"{topic}-0" in line]
        if lines and int(re.search(r"first_dirty_offset=(\d+)", lines[-1])[1]) >= updates:
            return lines
        time.sleep(0.1)
    raise TimeoutError(f"no pass over all of {topic} is in the log\n{broker.log_tail()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--bytes-per-second", type=float, help="log.cleaner.io.max.bytes.per.second")
    arguments = parser.parse_args()
    latencies = ("p50_ms", "p99_ms", "p99_9_ms", "max_ms")
    rate = {"log.cleaner.io.max.bytes.per.second": str(arguments.bytes_per_second)}
    with brokers.Flumen(SETTINGS | (rate if arguments.bytes_per_second else {})) as broker:
        filled = compacted(broker, "table", arguments)
        print(f"filled in {filled['elapsed_s']:.1f} s; resident {broker.rss_bytes() >> 20} MiB", flush=True)
        off = foreground(broker, "off", arguments.seconds)
        print("compaction off:", {name: off[name] for name in latencies}, flush=True)
        before = broker.rss_bytes()
        let_go(broker, "table")
        on = foreground(broker, "on", arguments.seconds)
        print("compaction on: ", {name: on[name] for name in latencies}, flush=True)
        print(*until_compacted(broker, "table", arguments.updates), sep="\n")
        print(f"resident before {before >> 20} MiB, after {broker.rss_bytes() >> 20} MiB", flush=True)
        table = load("table", broker, "table", count=arguments.updates, keys=arguments.keys)
        print("read back:", table)
        assert table["superseded"] == 0, "an older value of a key is still there"


if __name__ == "__main__":
    main()
