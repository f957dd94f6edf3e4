#!/usr/bin/env python3
"""librdkafka's own test suite against a broker: `librdkafka_suite.py [--peer kafka] [--protocol consumer] [NUMBER[:SUBTEST] ...]`.

Builds the suite from the sources inside the `rdkafka-sys` crate (the version that tests/clients locks), starts a
broker as the suite wants it, and runs the parts for topics, produce, fetch, admin and groups one by one; with
`--protocol consumer` those that consume through a group, by the protocol in which the broker assigns. What cannot pass
stands in librdkafka_expected.txt with the reason. Ends with status 1 when any other fails, or when one of those passes: then
its line is to be removed. Wants rapidjson-dev (Debian's name) to be installed: without it some numbers are skipped.
"""

import argparse
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import brokers, places  # noqa: E402

EXPECTED = pathlib.Path(__file__).with_name("librdkafka_expected.txt")
BUILD = places.CLIENTS / "librdkafka"
TESTS = BUILD / "tests"
KAFKA_VERSION = "4.0.0"
TIMEOUT_S = 900
# Two members that are started one after the other are taken to be in the first generation together.
SETTINGS = {"num.partitions": "4", "group.initial.rebalance.delay.ms": "1000"}

# Without those that are about transactions, TLS, SASL and ACLs from end to end, and those that only use librdkafka's
# own mock broker. Of 0081, whose users and ACLs would end it early, the subtests.
WITHOUT_GROUPS = """
0001 0002 0003 0005 0006 0007 0008 0011 0012 0013 0015 0016 0017 0021 0031 0034 0036
0037 0038 0039 0041 0044 0046 0048 0053 0054 0055 0057 0058 0062 0063
0065 0068 0070 0073 0074 0075 0077 0078
0081:do_test_CreateTopics 0081:do_test_DeleteTopics 0081:do_test_CreatePartitions 0081:do_test_AlterConfigs
0081:do_test_IncrementalAlterConfigs 0081:do_test_DescribeConfigs: 0081:do_test_DeleteRecords
0081:do_test_DescribeTopics 0081:do_test_DescribeCluster 0081:do_test_ListOffsets 0081:do_test_unclean_destroy
0086 0088 0095
0100 0107 0109 0110 0111 0112 0114 0121 0123
""".split()
# Those that use groups: members, committed offsets, or what admins ask about them.
GROUPS = """
0014 0018 0019 0020 0022 0026 0028 0029 0030 0033 0040 0042 0045 0049 0050 0051 0052 0056 0059 0060 0061 0064 0067 0069 0076
0081:do_test_DeleteGroups 0081:do_test_ListConsumerGroups 0081:do_test_DescribeConsumerGroups
0081:do_test_DeleteConsumerGroupOffsets 0081:do_test_AlterConsumerGroupOffsets 0081:do_test_ListConsumerGroupOffsets
0081:do_test_DescribeConfigs_groups
0082 0083 0084 0085 0089 0090 0091 0092 0093 0094 0099 0102 0113 0118 0122 0125 0127 0130 0132 0137 0140 0153
""".split()
# Their scenario, as the suite calls it, is "noautocreate".
WITHOUT_AUTO_CREATE = {"0107", "0111"}
# Beside what they ask of a broker they spend minutes with the mock broker.
NOT_LOCAL = {"0045", "0102", "0113"}


def source() -> pathlib.Path:
    manifest = places.TESTS / "clients" / "Cargo.toml"
    said = places.run(["cargo", "metadata", "--locked", "--format-version", "1", "--manifest-path", manifest])
    packages = json.loads(said)["packages"]
    (crate,) = [one for one in packages if one["name"] == "rdkafka-sys"]
    return pathlib.Path(crate["manifest_path"]).parent / "librdkafka"


def build() -> None:
    if (TESTS / "test-runner").exists():
        return
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
    # Some tests call the scripts of a Kafka distribution.
    scripts = BUILD / "kafka" / "bin"
    scripts.mkdir(parents=True)
    for name, main_class in (
        ("kafka-topics.sh", "org.apache.kafka.tools.TopicCommand"),
        ("kafka-acls.sh", "kafka.admin.AclCommand"),
    ):
        script = scripts / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join(places.java(main_class))} "$@"\n')
        script.chmod(0o755)


def expected(protocol: str) -> dict[str, str]:
    """Names and reasons; a name may be qualified as NAME@PROTOCOL."""
    lines = (line.strip() for line in EXPECTED.read_text().splitlines())
    listed = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    return {
        name.partition("@")[0]: reason for name, reason in listed.items() if name.partition("@")[2] in ("", protocol)
    }


def run(broker: brokers.Broker, name: str, protocol: str) -> tuple[str, str]:
    """`(outcome, what it said)`; the outcome is passed, skipped, failed or hung."""
    number, _, subtest = name.partition(":")
    environment = os.environ | {
        "TESTS": number,
        "TEST_KAFKA_VERSION": KAFKA_VERSION,
        "TEST_CONSUMER_GROUP_PROTOCOL": protocol,
        "KAFKA_PATH": str(BUILD / "kafka"),
        "BROKERS": broker.address,
        "LD_LIBRARY_PATH": f"{BUILD / 'src'}:{BUILD / 'src-cpp'}",
    }
    if subtest:
        environment["SUBTESTS"] = subtest
    scenario = "noautocreate" if number in WITHOUT_AUTO_CREATE else "default"
    # Its own: another run may be under way, with the other protocol.
    settings = broker.folder / "test.conf"
    settings.write_text(f"metadata.broker.list={broker.address}\ntest.topic.random=true\n")
    environment["RDKAFKA_TEST_CONF"] = str(settings)
    try:
        done = subprocess.run(
            ["./test-runner", "-p1", *(["-L"] if number in NOT_LOCAL else []), "-s", scenario], cwd=TESTS, env=environment, timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        status, raw = done.returncode, done.stdout
    except subprocess.TimeoutExpired as hung:
        status, raw = None, hung.stdout or b""
    said = re.sub(r"\x1b\[[0-9;]*m", "", raw.decode(errors="replace"))
    (TESTS / f"{name.replace(':', '-')}.{protocol}.out").write_text(said)
    if status is None:
        return "hung", last_words(said)
    # A number may be several tests, some of which are not for a broker: one that passed goes before those skipped.
    verdicts = re.findall(rf"\|\s*{number}_\S+\s*\|\s*(PASSED|SKIPPED)\s*\|[^|]*\|(.*)", said)
    if status == 0 and verdicts:
        word, note = min(verdicts)
        return word.lower(), note.strip(" |")
    return "failed", last_words(said)


def last_words(said: str) -> str:
    """What says why: the first failure and the line after it, else the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for at, line in enumerate(lines):
        if line.startswith("### Test "):
            return " ".join(lines[at : at + 2])
    return lines[-1] if lines else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=sorted(brokers.BROKERS), default="flumen")
    parser.add_argument("--protocol", choices=("classic", "consumer"), default="classic", help="of the groups")
    parser.add_argument("names", nargs="*", metavar="NUMBER[:SUBTEST]")
    asked = parser.parse_args()
    build()
    known = expected(asked.protocol)
    names = asked.names or (GROUPS if asked.protocol == "consumer" else sorted(WITHOUT_GROUPS + GROUPS))
    kind = brokers.BROKERS[asked.peer]
    wrong, passed = [], 0
    with kind(SETTINGS) as usual, kind(SETTINGS | {"auto.create.topics.enable": "false"}) as without_auto_create:
        for name in names:
            broker = without_auto_create if name[:4] in WITHOUT_AUTO_CREATE else usual
            began = time.monotonic()
            outcome, words = run(broker, name, asked.protocol)
            took = time.monotonic() - began
            note = f"expected: {known[name]}" if name in known and outcome in ("failed", "hung") else words
            print(f"{name} {outcome} {took:.1f} s  {note}", flush=True)
            passed += outcome == "passed"
            if (outcome in ("failed", "hung")) != (name in known):
                wrong.append(name)
        alive = usual.running() and without_auto_create.running()
        if wrong or not alive:
            print(f"--- log of {usual.name}\n{usual.log_tail()}\n---\n{without_auto_create.log_tail()}")
    print(f"{passed} of {len(names)} passed; not as expected: {' '.join(wrong) or 'none'}")
    return 1 if wrong or not alive else 0


if __name__ == "__main__":
    sys.exit(main())
