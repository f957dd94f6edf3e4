"""What `flumen-bench` leaves for people: a comparison of two brokers, made by turns, and the page that draws it, opened in
a real browser."""

import html.parser
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

import pytest

from harness import brokers, places

# Short, since it is the way that is tested here, not the figures; as much as costs a broker some ticks of its CPU's clock.
SHORT = ["--seconds", "1", "--warmup", "0.5", "--rate", "3000", "--quiet"]
PAGE_TIMEOUT_S = 60


def bench(*arguments, timeout_s: float = 180, status: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [str(places.bench_binary()), *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


class Drawn(html.parser.HTMLParser):
    """The curves of a page after its script has run, by the place of their figure."""

    def __init__(self, text: str):
        super().__init__()
        self.figures: list[list[tuple[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag == "figure":
            self.figures.append([])
        if tag == "path" and "data-name" in named:
            self.figures[-1].append((named["data-name"], named.get("d", "")))

    def handle_data(self, data):
        self.texts.append(data)


def open_in_browser(page: pathlib.Path, width: int = 1200) -> Drawn:
    """The page as a browser has made it; nothing is to be loaded, so it has no network either."""
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
                f"--window-size={width},2000", "--virtual-time-budget=5000", "--host-resolver-rules=MAP * ~NOTFOUND",
                "--dump-dom", page.resolve().as_uri(),
            ],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PAGE_TIMEOUT_S, check=True,
        )  # fmt: skip
    return Drawn(done.stdout)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A short comparison of two nodes that run already, and what it printed."""
    output = tmp_path_factory.mktemp("compared") / "c.json"
    with brokers.Flumen() as a, brokers.Flumen() as b:
        done = bench(
            "compare", "latency", "--a", a.address, "--b", b.address, "--turns", "3", "--warmup-turns", "1",
            "-o", output, *SHORT,
        )  # fmt: skip
        yield json.loads(output.read_text()), output, done.stdout, (a.address, b.address)


def test_turns_alternate_and_every_run_is_whole(compared):
    document, _, _, addresses = compared
    assert document["format"] == "flumen-bench comparison"
    assert [one["name"] for one in document["contenders"]] == list(addresses)
    assert [(run["turn"], run["contender"]) for run in document["runs"]] == [
        (1, 0), (1, 1), (2, 1), (2, 0), (3, 0), (3, 1)
    ]
    for run in document["runs"]:
        result = run["result"]
        assert result["broker"]["addresses"] == [addresses[run["contender"]]]
        assert result["verdict"].get("failed", []) == []
        produced = next(part for part in result["parts"] if part["kind"] == "produce")
        assert produced["records"] > 100


def test_ratios_have_intervals_and_are_printed(compared):
    document, _, printed, _ = compared
    ratios = {(one["figure"], one["over"]): one for one in document["ratios"]}
    for figure in ("produce_p50", "produce_p99", "produce_records_per_s", "cpu_per_record"):
        ratio = ratios[figure, "turns"]
        assert ratio["samples"] == 3
        assert "interval" in ratio, (ratio, printed)
        assert ratio["interval"]["low"] <= ratio["interval"]["high"]
        assert ratio["ratio"] == pytest.approx(ratio["a"] / ratio["b"])
    # Both are paced alike: more would be a broken comparison.
    assert ratios["produce_records_per_s", "turns"]["ratio"] == pytest.approx(1, rel=0.2)
    assert "produce latency, p99" in printed and "A / B" in printed


def test_a_browser_draws_the_page(compared):
    document, output, _, addresses = compared
    page = output.with_suffix(".html")
    drawn = open_in_browser(page)
    percentiles = drawn.figures[0]
    assert set(addresses) <= {name for name, _ in percentiles}
    # One curve for each turn behind those of all.
    assert len([name for name, _ in percentiles if "turn" in name]) == len(document["runs"])
    for figure in drawn.figures:
        assert figure, "a chart without a curve"
        for name, path in figure:
            assert path.startswith("M") and "NaN" not in path and "Infinity" not in path, (name, path[:80])
    names = {name for figure in drawn.figures for name, _ in figure}
    assert {"max", "p99", "p50", "broker", "generator", "produced"} <= names
    assert "99 %" in drawn.texts, "the axis of percentiles has its labels"


def test_the_page_is_drawn_on_a_narrow_screen_too(compared):
    _, output, _, _ = compared
    drawn = open_in_browser(output.with_suffix(".html"), width=500)
    assert drawn.figures and all(drawn.figures)


def test_a_page_is_made_again_from_the_document(compared, tmp_path):
    _, output, _, _ = compared
    again = tmp_path / "again.html"
    bench("report", output, "-o", again)
    assert again.read_text() == output.with_suffix(".html").read_text()


def test_a_hostile_name_runs_nothing(compared, tmp_path):
    document, _, _, _ = compared
    hostile = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    document = json.loads(json.dumps(document))
    document["scenario"] = hostile
    for contender in document["contenders"]:
        contender["name"] = hostile
    path = tmp_path / "hostile.json"
    path.write_text(json.dumps(document))
    bench("report", path, "-o", tmp_path / "hostile.html")
    drawn = open_in_browser(tmp_path / "hostile.html")
    assert drawn.figures and all(drawn.figures)
    # In the heading as text, and nowhere as what the browser has run.
    assert hostile in drawn.texts
    assert "owned" not in drawn.texts


def test_what_is_no_result_is_refused(tmp_path):
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"format": "something else", "format_version": 1}')
    assert "wanted is flumen-bench run" in bench("report", wrong, "-o", tmp_path / "r.html", status=1).stderr
    later = tmp_path / "later.json"
    later.write_text('{"format": "flumen-bench run", "format_version": 99}')
    assert "format version 99" in bench("report", later, "-o", tmp_path / "r.html", status=1).stderr
    assert not (tmp_path / "r.html").exists()


def test_a_full_disk_under_the_page_is_said(compared):
    _, output, _, _ = compared
    assert "/dev/full" in bench("report", output, "-o", "/dev/full", status=1).stderr


def test_nonsense_is_refused_before_anything_starts(tmp_path):
    output = tmp_path / "c.json"
    assert "no broker" in bench("compare", "--a", "pulsar", "--b", "kafka", "-o", output, status=2).stderr
    bench("compare", "no-such-scenario", "--a", "flumen", "--b", "kafka", "-o", output, status=2)
    bench("compare", "--a", "127.0.0.1:1", "--b", "127.0.0.1:1", "-o", output, *SHORT, "--set",
          "request_timeout_s=1", status=3)  # fmt: skip
    assert not output.exists()


def _children_below(folder: pathlib.Path) -> list[int]:
    """Processes that work in a folder or below."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                working = os.readlink(entry / "cwd")
            except OSError:
                continue
            if working.startswith(f"{folder}/"):
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_it_no_broker_and_no_folder_stays(tmp_path, how):
    folder = tmp_path / "data"
    output = tmp_path / "c.json"
    node = places.node_binary()
    process = subprocess.Popen(
        [
            places.bench_binary(), "compare", "latency", "--a", f"flumen={node}", "--b", f"flumen={node}",
            "--turns", "50", "--warmup-turns", "0", "--seconds", "2", "--warmup", "0", "--folder", folder, "-o", output,
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        # Until the first turn has ended: both brokers run, and there is something to keep.
        for line in process.stderr:
            if b"turn 2 of 50" in line:
                break
        assert len(_children_below(folder)) == 2
        process.send_signal(how)
        process.stderr.read()
        status = process.wait(60)
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 20
    while _children_below(folder) or any(folder.iterdir()):
        assert time.monotonic() < deadline, f"left: {_children_below(folder)} {list(folder.iterdir())}"
        time.sleep(0.02)
    if how == signal.SIGINT:
        assert status == 130
        # What there was is written, and says that it is not all.
        document = json.loads(output.read_text())
        assert "interrupted" in document["verdict"]["partial"]
        assert [run["contender"] for run in document["runs"]][:2] == [0, 1]
        assert output.with_suffix(".html").exists()


GROUP = """
request_timeout_s = 5
[topic]
name = "bench-group"
partitions = 4
[[phases]]
name = "p"
seconds = 3
warmup_seconds = 0.5
[[phases.producers]]
rate = 1000
count = 2
payload.size = 64
[[phases.consumers]]
mode = "group"
count = 3
wait_ms = 50
"""


def test_a_group_reads_all_and_who_is_slow_loses_nothing(tmp_path):
    scenario, output = tmp_path / "group.toml", tmp_path / "r.json"
    scenario.write_text(GROUP)
    with brokers.Flumen() as node:
        began = time.time()
        bench("run", scenario, "-b", node.address, "-o", output)
        result = json.loads(output.read_text())
        # Members that wait for each other on one connection wait for the end of a session, 45 s.
        assert result["started_unix_ms"] / 1000 - began < 25
        assert result["integrity"]["checked"] == 3500 == result["growths"][0]["appended"]
        bad = ("lost", "unread", "deleted", "duplicated", "reordered")
        assert [result["integrity"][what] for what in bad] == [0] * 5
        scenario.write_text(GROUP + "pause_ms = 1500\npartition_bytes_max = 1000\n")
        assert "still behind" in bench("run", scenario, "-b", node.address, "-o", output).stdout
        integrity = json.loads(output.read_text())["integrity"]
        assert integrity["unread"] > 500 and integrity["lost"] == integrity["duplicated"] == 0


HISTORY = """
[topic]
name = "bench-history"
partitions = 4
[[phases]]
name = "fill"
seconds = 30
warmup_seconds = 0
bytes = 4000000
[[phases.producers]]
load = "closed"
payload.size = 1000
[[phases]]
name = "read"
seconds = 8
warmup_seconds = 0
[[phases.consumers]]
mode = "group"
from = "earliest"
count = 2
"""


def test_a_group_that_reads_old_data_is_counted_until_it_has(tmp_path):
    """All of it, though one member is there before the other; and what was sent long ago has no latency."""
    scenario, output = tmp_path / "history.toml", tmp_path / "r.json"
    scenario.write_text(HISTORY)
    with brokers.Flumen() as node:
        bench("run", scenario, "-b", node.address, "-o", output)
    result = json.loads(output.read_text())
    (appended,) = [one["appended"] for one in result["growths"]]
    (read,) = [part for part in result["parts"] if part["phase"] == "read"]
    assert read["records"] == appended >= 4000 and "latency" not in read
    assert sum(second["length_s"] for second in read["seconds"]) < 7


def test_kafka_is_started_and_compared(tmp_path):
    folder = tmp_path / "data"
    output = tmp_path / "c.json"
    bench(
        "compare", "latency", "--a", f"flumen={places.node_binary()}", "--b", "kafka", "--turns", "1",
        "--warmup-turns", "0", "--folder", folder, "--kafka-jars", places.KAFKA_JARS, "-o", output, *SHORT,
        timeout_s=300,
    )  # fmt: skip
    document = json.loads(output.read_text())
    descriptions = [one["description"] for one in document["contenders"]]
    assert "fdatasync before every acknowledgement" in descriptions[0]
    assert "Apache Kafka 4.3.1" in descriptions[1] and "no sync" in descriptions[1]
    # One turn: ratios, and no interval that would feign to know their spread.
    assert document["ratios"]
    assert all("interval" not in one for one in document["ratios"] if one["over"] == "turns")
    processes = [run["result"]["broker_process"]["name"] for run in document["runs"]]
    assert processes[1] == "java", "its CPU is counted"
    assert list(folder.iterdir()) == []


def test_brokers_that_are_killed_in_the_midst_are_compared(tmp_path):
    folder = tmp_path / "data"
    output = tmp_path / "c.json"
    node = f"flumen={places.node_binary()}"
    printed = bench(
        "compare", "restart", "--a", node, "--b", node, "--turns", "1", "--warmup-turns", "0", "--folder", folder,
        "--raw-sync", "-o", output, "--quiet", "--seconds", "5", "--warmup", "0.5", "--set", "phases.0.restart.at_seconds=1",
    ).stdout  # fmt: skip
    assert "kill -9 to first acknowledgement" in printed and "produce p99 over a bare write's" in printed
    document = json.loads(output.read_text())
    for run in document["runs"]:
        result = run["result"]
        (restart,) = result["restarts"]
        assert 1 <= restart["killed_at_s"] < 2
        # Within the time that a request has.
        assert 0 < restart["first_acknowledgement_ns"] < 30e9
        assert result["broker_process"]["restarted"]
        # What was acknowledged before the kill is there after it.
        assert result["integrity"]["checked"] > 500 and result["integrity"]["lost"] == 0
        raw = next(part for part in result["parts"] if part["kind"] == "raw_sync")
        assert raw["latency"]["summary"]["count"] > 10
    ratio = next(one for one in document["ratios"] if one["figure"] == "first_acknowledgement")
    assert ratio["ratio"] == pytest.approx(ratio["a"] / ratio["b"])
    # The second processes of both are gone, too.
    assert not _children_below(folder) and list(folder.iterdir()) == []
    drawn = open_in_browser(output.with_suffix(".html"))
    assert "bare write and sync" in {name for name, _ in drawn.figures[0]}


@pytest.mark.alone
def test_the_generator_shows_stalls_as_they_are():
    # Long, since what a busy machine adds does not grow with them.
    printed = bench("selftest", "--stall-ms", "400", "--every-ms", "1600", "--stalls", "3").stdout
    assert "the histogram shows the stalls within 2 %" in printed


@pytest.mark.alone
def test_limits_of_the_machine(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    output = tmp_path / "l.json"
    printed = bench("limits", "--folder", folder, "--seconds", "0.2", "-o", output).stdout
    assert "write and sync, 4 KiB" in printed and "loopback" in printed and "CRC-32C" in printed
    limits = json.loads(output.read_text())["limits"]
    assert limits["disk"]["synced_writes"][0]["latency"]["summary"]["count"] > 0
    assert list(folder.iterdir()) == []
    bench("limits", "--folder", tmp_path / "nowhere", "--seconds", "0.2", status=1)
    bench("limits", "--folder", folder, "--seconds", "-1", status=2)

