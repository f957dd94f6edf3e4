#!/usr/bin/env python3
"""The crash suite: `run.py [--rounds N] [--seed N] [--peer kafka]`.

Each round kills the broker with SIGKILL at a random moment under load, starts it again, and judges what is in
the log; what must hold is said in crash_load.rs, which produces and judges. In some rounds the broker is killed
again inside its recovery, once or more, in some it gets another number of shards, and in some the producer ends
with it. Everything random follows from the seed. Ends with status 1 and the broker's log when anything is wrong.
"""

import argparse
import pathlib
import random
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import brokers, places, wire  # noqa: E402

PARTITIONS = 12
ANSWER_TIMEOUT_S = 240


class Wrong(Exception):
    """Something that must hold does not."""


class Load:
    """The load generator and judge, as a child process with one line for one line."""

    def __init__(self, broker: brokers.Broker, topic: str, seed: int):
        command = [places.program("crash-load"), broker.address, topic, str(PARTITIONS), str(seed)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, command: str) -> str:
        # A generator that hangs is a failure too, not a suite without end.
        timer = threading.Timer(ANSWER_TIMEOUT_S, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if not answer.startswith("ok "):
            raise Wrong(f"{command}: {answer or 'the load generator ended or hung'}")
        return answer.removeprefix("ok ")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Suite:
    """One broker through all its lives."""

    def __init__(self, broker: brokers.Broker, rounds: int, seed: int):
        self.broker = broker
        self.rounds = rounds
        self.seed = seed
        self.random = random.Random(seed)
        self.ready_s: list[float] = []

    def run(self) -> None:
        self.broker.start()
        with wire.Connection(self.broker.port) as connection:
            # Small segments, so that rolls are among what is interrupted.
            code, message = wire.create_topic(connection, "crash", PARTITIONS, 1, {"segment.bytes": "2097152"})
        if code != wire.NONE:
            raise Wrong(f"the topic cannot be created: {code} {message}")
        self._wait_for_topic()
        load = Load(self.broker, "crash", self.seed)
        try:
            for number in range(1, self.rounds + 1):
                self._round(number, load)
            print(f"all of it: {load.ask('check-all')}", flush=True)
            self._clean_stop(load)
        finally:
            load.close()

    def _wait_for_topic(self) -> None:
        for _ in range(100):
            listed = subprocess.run(
                ["kcat", "-b", self.broker.address, "-Q", "-t", f"crash:{PARTITIONS - 1}:-1"],
                capture_output=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            if listed.returncode == 0:
                return
            time.sleep(0.1)
        raise Wrong("the topic is not served")

    def _round(self, number: int, load: Load) -> None:
        loaded_s = self.random.choice([self.random.uniform(0, 0.3), self.random.uniform(0.3, 3)])
        time.sleep(loaded_s)
        self.broker.kill()
        kills = self._kills_in_recovery()
        if self.random.random() < 0.4:
            load.ask("session")
        self._other_shards()
        self.broker.start()
        self.ready_s.append(self.broker.started_in_s)
        found = load.ask("check")
        print(
            f"round {number}: killed after {loaded_s:.2f} s, {kills} times more while it recovered, "
            f"ready in {self.broker.started_in_s * 1000:.0f} ms; {found}",
            flush=True,
        )

    def _kills_in_recovery(self) -> int:
        """Starts it and kills it before it is ready, sometimes."""
        kills = 0
        while self.random.random() < 0.3 and kills < 3:
            self._other_shards()
            self.broker.launch()
            time.sleep(self.random.uniform(0, 0.08))
            self.broker.kill()
            kills += 1
        return kills

    def _other_shards(self) -> None:
        if isinstance(self.broker, brokers.Flumen) and self.random.random() < 0.5:
            self.broker.arguments = ("--shards", str(self.random.choice([1, 2])))

    def _clean_stop(self, load: Load) -> None:
        """SIGTERM under load: status 0, and nothing acknowledged is lost by that either."""
        status = self.broker.stop()
        if status not in self.broker.clean_statuses:
            raise Wrong(f"SIGTERM ended it with status {status}")
        self.broker.start()
        print(f"after SIGTERM: {load.ask('check')}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    parser.add_argument("--peer", choices=sorted(brokers.BROKERS), default="flumen")
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if asked.seed is None else asked.seed
    print(f"{asked.peer}, {asked.rounds} rounds, seed {seed}", flush=True)
    broker = brokers.BROKERS[asked.peer]()
    suite = Suite(broker, asked.rounds, seed)
    try:
        suite.run()
    except (Wrong, brokers.BrokerFailed) as failure:
        print(f"FAILED with seed {seed}: {failure}\n--- log of {broker.name}\n{broker.log_tail()}", flush=True)
        return 1
    finally:
        broker.close()
    ready = sorted(suite.ready_s)
    middle, worst = ready[len(ready) // 2] * 1000, ready[-1] * 1000
    print(f"nothing acknowledged was lost; ready after a kill in {middle:.0f} ms, at worst {worst:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
