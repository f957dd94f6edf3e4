#!/usr/bin/env python3
"""librdkafka's own test suite against a broker: `librdkafka_suite.py [--peer kafka] [NUMBER ...]`.

Builds the suite from the sources inside the `rdkafka-sys` crate (the version that tests/clients locks), starts a
broker as the suite wants it, and runs the parts for topics, produce, fetch and admin one by one. Numbers that cannot
pass yet stand in librdkafka_expected.txt with the reason. Ends with status 1 when any other fails, or when one of those passes:
then its line is to be removed.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import brokers, places  # noqa: E402

EXPECTED = pathlib.Path(__file__).with_name("librdkafka_expected.txt")
BUILD = places.CLIENTS / "librdkafka"
KAFKA_VERSION = "4.0.0"
TIMEOUT_S = 240

# Without those that are about consumer groups, transactions, TLS, SASL and ACLs from end to end, and those that only
# use librdkafka's own mock broker.
DEFAULT = """
0001 0002 0003 0005 0007 0008 0011 0012 0013 0014 0015 0016 0017 0020 0021 0022 0026 0028 0029 0031 0034 0036
0037 0038 0039 0040 0041 0042 0044 0046 0047 0048 0049 0051 0052 0053 0054 0055 0057 0058 0060 0061 0062 0063 0064
0065 0067 0068 0069 0070 0073 0074 0075 0076 0077 0078 0081 0082 0083 0084 0085 0086 0088 0090 0092 0093 0094 0095 0099
0100 0101 0107 0109 0110 0111 0112 0114 0121 0123 0125 0127 0137 1000
""".split()


def source() -> pathlib.Path:
    manifest = places.TESTS / "clients" / "Cargo.toml"
    said = places.run(["cargo", "metadata", "--locked", "--format-version", "1", "--manifest-path", manifest])
    packages = json.loads(said)["packages"]
    (crate,) = [one for one in packages if one["name"] == "rdkafka-sys"]
    return pathlib.Path(crate["manifest_path"]).parent / "librdkafka"


def build() -> pathlib.Path:
    """The folder with `test-runner` in it."""
    tests = BUILD / "tests"
    if not (tests / "test-runner").exists():
        print("building librdkafka and its tests", flush=True)
        shutil.rmtree(BUILD, ignore_errors=True)
        shutil.copytree(source(), BUILD)
        steps = (
            ["./configure", "--disable-ssl", "--disable-gssapi", "--disable-curl", "--disable-lz4-ext"],
            ["make", "-s", "-j2", "libs"],
            ["make", "-s", "-j2", "-C", "tests", "test-runner"],
        )
        for step in steps:
            done = subprocess.run(step, cwd=BUILD, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"{' '.join(step)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return tests


def expected() -> dict[str, str]:
    lines = (line.strip() for line in EXPECTED.read_text().splitlines())
    return dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))


def run(tests: pathlib.Path, number: str) -> tuple[str, str]:
    """`(outcome, what it said)` of one number: passed, skipped, failed, hung."""
    environment = os.environ | {
        "TESTS": number,
        "TEST_KAFKA_VERSION": KAFKA_VERSION,
        "LD_LIBRARY_PATH": f"{BUILD / 'src'}:{BUILD / 'src-cpp'}",
    }
    try:
        done = subprocess.run(
            ["./test-runner", "-p1", "-Q"], cwd=tests, env=environment, timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as hung:
        return "hung", last_words((hung.stdout or b"").decode(errors="replace"))
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode(errors="replace"))
    if re.search(rf"\|\s*{number}_\S+\s*\|\s*SKIPPED", said):
        return "skipped", ""
    if done.returncode == 0 and re.search(rf"\|\s*{number}_\S+\s*\|\s*PASSED", said):
        return "passed", ""
    return "failed", last_words(said)


def last_words(said: str) -> str:
    """The line that says why: the first failure, else the last line."""
    lines = [line for line in said.splitlines() if line.strip()]
    for line in lines:
        if re.search(r"failed:|failure:|TEST FAILURE|Assert|%[0-3]\|", line):
            return line.strip()
    return lines[-1].strip() if lines else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=sorted(brokers.BROKERS), default="flumen")
    parser.add_argument("numbers", nargs="*", default=DEFAULT)
    asked = parser.parse_args()
    tests = build()
    known = expected() if asked.peer == "flumen" else {}
    wrong, passed = [], 0
    with brokers.BROKERS[asked.peer]({"num.partitions": "4"}) as broker:
        (tests / "test.conf").write_text(f"metadata.broker.list={broker.address}\ntest.topic.random=true\n")
        for number in asked.numbers:
            began = time.monotonic()
            outcome, words = run(tests, number)
            took = time.monotonic() - began
            note = f"expected: {known[number]}" if number in known else words
            print(f"{number} {outcome:8} {took:6.1f} s  {note if outcome != 'passed' else ''}", flush=True)
            passed += outcome == "passed"
            if (outcome in ("failed", "hung")) != (number in known):
                wrong.append(number)
        if wrong:
            print(f"--- log of {broker.name}\n{broker.log_tail()}")
    print(f"{passed} of {len(asked.numbers)} passed; not as expected: {' '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
