"""The brokers under test, as child processes: `Flumen`, and the reference peer `Kafka`.

Both have the same shape, so that every test and every measurement runs against either:

    stopped --start()--> running --stop() or kill()--> stopped --start()--> ...   (same data folder)
                                                       close(): stopped, its folder removed

A broker listens on free loopback ports only, which it keeps over restarts, and writes only below its
own temporary folder.
"""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid

from . import places, wire

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
LOG_TAIL_LINES = 60
# What one bad client may cost, however much it claims.
GROWTH_MAX = 64 << 20


def _clean_environment() -> dict[str, str]:
    """Without what would configure a node."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FLUMEN_")}


# Before a command: a suite that is killed leaves nothing behind. Not by `preexec_fn`, which may deadlock in a child of a
# process that has threads.
END_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")


def _outgoing_ports() -> range:
    """Those that the kernel gives to whoever connects. A client that retries while a broker is down may be given that
    broker's own, and then keeps it."""
    first, last = map(int, pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return range(first, last + 1)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, and that no connection is given while a broker restarts. Held together while
    chosen, so that they differ."""
    outgoing = _outgoing_ports()
    candidates = [port for port in range(10_000, 65_536) if port not in outgoing]
    random.shuffle(candidates)
    with contextlib.ExitStack() as held:
        ports = []
        for port in candidates:
            one = held.enter_context(socket.socket())
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"{count} free ports were not to be found")


class BrokerFailed(Exception):
    """The broker ended, or did not get ready in time; the message ends with its log."""


class Broker:
    """What the two brokers share. Subclasses give `name`, `_prepare()`, `_command()`."""

    name: str
    start_timeout_s: float
    # What it exits with on SIGTERM.
    clean_statuses: tuple[int, ...]
    # Whether its resident memory tells what a client has cost it.
    bounded = True

    def __init__(self, settings: dict[str, str] | None = None, folder: str | None = None):
        self.settings = dict(settings or {})
        base = folder or os.environ.get("FLUMEN_TEST_DIR")
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"flumen-test-{self.name}-", dir=base))
        self.data = self.folder / "data"
        self.port, self.admin_port, self.cluster_port = free_ports(3)
        self.process: subprocess.Popen | None = None
        self.started_in_s = 0.0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> "Broker":
        """Starts the process and waits until it answers ApiVersions and Metadata."""
        self.launch()
        began = time.monotonic()
        self._wait_ready(began + self.start_timeout_s)
        self.started_in_s = time.monotonic() - began
        return self

    def launch(self) -> None:
        """Starts the process and does not wait for it."""
        assert self.process is None, "already running"
        self._prepare()
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*END_WITH_PARENT, *self._command()], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                env=self._environment(),
            )  # fmt: skip

    def _wait_ready(self, deadline: float) -> None:
        while not wire.answers(self.port):
            if self.process.poll() is not None:
                status, self.process = self.process.returncode, None
                raise BrokerFailed(f"{self.name} ended with status {status}\n{self.log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise BrokerFailed(f"{self.name} is not ready in time\n{self.log_tail()}")
            time.sleep(0.005)

    def stop(self, timeout_s: float = 60) -> int:
        """SIGTERM; returns the exit status."""
        return self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> int:
        """SIGKILL, as a crash."""
        return self._end(signal.SIGKILL, 30)

    def _end(self, how: signal.Signals, timeout_s: float) -> int:
        assert self.process is not None, "not running"
        self.process.send_signal(how)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise BrokerFailed(f"{self.name} did not end in {timeout_s} s\n{self.log_tail()}") from None
        finally:
            self.process = None

    def close(self) -> None:
        """Ends it without ceremony and removes its folder."""
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "Broker":
        return self.start()

    def __exit__(self, *_) -> None:
        self.close()

    # -- looking at it ------------------------------------------------------------------------

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log_text(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def logs(self, text: str, *, within_s: float = 10) -> bool:
        """Whether the log says so, now or soon: lines are written by a thread of their own."""
        deadline = time.monotonic() + within_s
        while text not in self.log_text():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def log_tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-LOG_TAIL_LINES:])

    def cpu_s(self) -> float:
        """User and system time of the process so far, in seconds."""
        fields = self._proc("stat").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def rss_bytes(self) -> int:
        for line in self._proc("status").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise BrokerFailed(f"{self.name} has no VmRSS: it is gone\n{self.log_tail()}")

    def files(self) -> int:
        """How many files and connections it has open."""
        assert self.process is not None, "not running"
        return len(list(pathlib.Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def _proc(self, name: str) -> str:
        assert self.process is not None, "not running"
        return pathlib.Path(f"/proc/{self.process.pid}/{name}").read_text()

    def segments(self, topic: str, partition: int) -> list[pathlib.Path]:
        """The segment files of a partition, oldest first."""
        return sorted((self.data / f"{topic}-{partition}").glob("*.log"))

    def _environment(self) -> dict[str, str]:
        return _clean_environment()

    def _prepare(self) -> None:
        raise NotImplementedError

    def _command(self) -> list[str]:
        raise NotImplementedError


class Flumen(Broker):
    """One `flumen-node`."""

    name = "flumen"
    clean_statuses = (0,)
    start_timeout_s = 30.0

    def __init__(
        self,
        settings: dict[str, str] | None = None,
        folder: str | None = None,
        arguments: tuple[str, ...] = (),
    ):
        super().__init__(settings, folder)
        self.arguments = arguments

    def _prepare(self) -> None:
        pass

    def _command(self) -> list[str]:
        command = [
            str(places.node_binary()),
            "--data-dir", str(self.data),
            "--kafka-addr", self.address,
            "--admin-addr", f"127.0.0.1:{self.admin_port}",
            "--cluster-addr", f"127.0.0.1:{self.cluster_port}",
            *self.arguments,
        ]  # fmt: skip
        for key, value in self.settings.items():
            command += ["--set", f"{key}={value}"]
        return command


class FaultyFlumen(Flumen):
    """A node whose disk fails where `fail` says, from one moment to the next."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.faults = self.folder / "faults"
        self.faults.write_text("")

    def fail(self, *rules: str) -> None:
        """`operation:path:fault[:after=N][:times=M]` each (node/src/disk/fault.rs); none: the disk is sound again."""
        whole = self.faults.with_suffix(".new")
        whole.write_text(";".join(rules))
        whole.rename(self.faults)

    def _command(self) -> list[str]:
        return [str(places.faulty_node_binary()), *super()._command()[1:]]

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"FLUMEN_FAULT_FILE": str(self.faults)}


class Kafka(Broker):
    """One Apache Kafka broker that is its own KRaft controller, with its start script's JVM options."""

    name = "kafka"
    clean_statuses = (0, 143)
    start_timeout_s = 120.0
    bounded = False

    def _prepare(self) -> None:
        properties = self.folder / "server.properties"
        if properties.exists():
            return
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self.cluster_port}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{self.cluster_port}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.data),
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            **self.settings,
        }
        properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        with open(self.folder / "log", "ab") as log:
            subprocess.run(
                places.java(
                    "kafka.tools.StorageTool", "format",
                    "--cluster-id", _kafka_uuid(), "--config", str(properties),
                ),
                check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def _command(self) -> list[str]:
        options = (
            "-Xmx1G", "-Xms1G", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20",
            "-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent",
            "-XX:MaxInlineLevel=15", "-Djava.awt.headless=true", "-Dflumen.log.level=INFO",
        )  # fmt: skip
        return places.java("kafka.Kafka", str(self.folder / "server.properties"), options=options)


@contextlib.contextmanager
def undisturbed(broker: Broker, growth_max: int = GROWTH_MAX):
    """What happens inside leaves the broker serving, and not much larger. The reference's heap says nothing."""
    before = broker.rss_bytes()
    yield
    assert broker.running(), "the broker ended"
    assert wire.answers(broker.port), "the broker does not answer any more"
    grown = broker.rss_bytes() - before
    if broker.bounded:
        assert grown < growth_max, f"{grown / (1 << 20):.0f} MiB more"


class Grown(Exception):
    """The broker has more memory than it may have."""


def rss_max(broker: Broker, seconds: float, limit: int) -> int:
    """The most that the broker has for so long. Ends early where it has too much, or it would take all there is."""
    most, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        most = max(most, broker.rss_bytes())
        if most > limit:
            raise Grown(f"{most // (1 << 20)} MiB")
        time.sleep(min(0.02, seconds))
    return most


def _kafka_uuid() -> str:
    """A random id in Kafka's print form: 22 characters of URL-safe base64, never opening with '-'."""
    import base64

    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


BROKERS = {"flumen": Flumen, "kafka": Kafka}
