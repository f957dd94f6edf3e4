"""Where things are: the repository, the build folder, the clients that `tests/install` put there."""

import os
import pathlib
import subprocess

TESTS = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = TESTS.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")).resolve()

# Filled by tests/install.
CLIENTS = TARGET / "clients"
KAFKA_JARS = CLIENTS / "kafka-jars"
KAFKA_3_JARS = CLIENTS / "kafka-3-jars"
DATA = CLIENTS / "vega-datasets" / "package" / "data"
# Built from tests/clients, a workspace of its own.
PROGRAMS = CLIENTS / "programs" / "release"
JAVA_PROGRAMS = CLIENTS / "java"
GO_PROGRAMS = CLIENTS / "go"
NODE_PROGRAMS = CLIENTS / "node"


def _built(name: str, variable: str, build: str) -> pathlib.Path:
    """A binary of this workspace: the one that the environment names, else the release build, else the debug one."""
    named = os.environ.get(variable)
    candidates = [pathlib.Path(named)] if named else [TARGET / "release" / name, TARGET / "debug" / name]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no {name} at {', '.join(map(str, candidates))}: run `{build}`")


def node_binary() -> pathlib.Path:
    """The `flumen-node` to test."""
    return _built("flumen-node", "FLUMEN_TEST_NODE", "cargo build --release")


def cli_binary() -> pathlib.Path:
    """The `flumen` to test."""
    return _built("flumen", "FLUMEN_TEST_CLI", "cargo build --release -p flumen-tools")


def bench_binary() -> pathlib.Path:
    """The `flumen-bench` to test."""
    return _built("flumen-bench", "FLUMEN_TEST_BENCH", "cargo build --release -p flumen-bench")


def faulty_node_binary() -> pathlib.Path:
    """A `flumen-node` built with `--features fault-injection`, put there by `.ci/run test` (or by hand)."""
    path = TARGET / "faults" / "flumen-node"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: run `cargo build -p flumen-node --features fault-injection` and copy "
            f"{TARGET / 'debug' / 'flumen-node'} there"
        )
    return path


def program(name: str) -> pathlib.Path:
    """A program of tests/clients, built by tests/install."""
    path = PROGRAMS / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run tests/install")
    return path


# Kafka's classes as a JVM has loaded and linked them once: another that maps them starts in half of the time. Made by
# `archive_classes`; it goes with the jars that it is of.
CLASS_ARCHIVE = KAFKA_JARS / "classes.jsa"
# A JVM that is small, and says nothing of an archive that it cannot use.
SMALL_JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xlog:cds=off")
# One that starts quickly, too. What is measured wants another.
QUICK_JVM = (*SMALL_JVM, "-Xshare:auto", f"-XX:SharedArchiveFile={CLASS_ARCHIVE}")


def java(
    main_class: str,
    *arguments: str,
    options: tuple[str, ...] = QUICK_JVM,
    class_path: tuple[pathlib.Path, ...] = (),
    jars: pathlib.Path = KAFKA_JARS,
) -> list[str]:
    """The command line that runs `main_class` with Kafka's jars on the class path."""
    if not jars.is_dir():
        raise FileNotFoundError(f"{jars} is missing: run tests/install")
    quiet = f"-Dlog4j2.configurationFile={TESTS / 'peers' / 'kafka' / 'log4j2.properties'}"
    joined = ":".join([f"{jars}/*", *map(str, class_path)])
    return ["java", quiet, *options, "-cp", joined, main_class, *arguments]


def archive_classes(address: str) -> None:
    """Makes the class archive by a run of what has Kafka's admin client, producer and consumer in it, against the broker there."""
    made = CLASS_ARCHIVE.with_suffix(f".{os.getpid()}")
    options = (*SMALL_JVM, f"-XX:ArchiveClassesAtExit={made}")
    flags = ("--topic", "classes", "--num-records", "10", "--producer-acks", "all", "--record-size", "100")
    run(java("org.apache.kafka.tools.EndToEndLatency", "--bootstrap-server", address, *flags, options=options))
    made.rename(CLASS_ARCHIVE)


class ClientFailed(Exception):
    """A client ended with an error; the message is all that it said."""


def run(command, *, input: bytes | None = None, timeout_s: float = 120) -> bytes:
    """Runs a client to its end and returns its standard output."""
    stdin = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=timeout_s, **stdin)
    if done.returncode != 0:
        said = (done.stdout[-4000:] + b"\n" + done.stderr[-4000:]).decode(errors="replace")
        raise ClientFailed(f"{command[0]} ended with status {done.returncode}:\n{said}")
    return done.stdout
