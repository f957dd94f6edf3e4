"""Fixtures of the suites that pytest runs. `--peer kafka` runs them against Apache Kafka instead of this node."""

import itertools

import pytest

from harness import brokers, places

_topic_numbers = itertools.count()
_running: list[brokers.Broker] = []


def pytest_addoption(parser):
    parser.addoption("--peer", choices=sorted(brokers.BROKERS), default="flumen", help="what is tested")


def pytest_sessionstart(session):
    """Whoever starts the suite makes what lets its JVMs start quickly, before any other process does."""
    if hasattr(session.config, "workerinput") or places.CLASS_ARCHIVE.exists() or not places.KAFKA_JARS.is_dir():
        return
    broker = _start(brokers.BROKERS[session.config.getoption("--peer")])
    try:
        places.archive_classes(broker.address)
    finally:
        _close(broker)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--peer") == "flumen":
        return
    skip = pytest.mark.skip(reason="says something of this node that the reference does otherwise")
    for item in items:
        if item.get_closest_marker("flumen_only"):
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """The report of a failed test ends with the log of every broker that runs."""
    report = yield
    if report.failed:
        for broker in _running:
            report.sections.append((f"log of {broker.name} at {broker.address}", broker.log_tail()))
    return report


def _start(kind: type[brokers.Broker], **arguments) -> brokers.Broker:
    broker = kind(**arguments)
    try:
        broker.start()
    except BaseException:
        broker.close()
        raise
    _running.append(broker)
    return broker


def _close(broker: brokers.Broker) -> None:
    _running.remove(broker)
    broker.close()


@pytest.fixture(scope="session")
def peer(request) -> type[brokers.Broker]:
    """The class of the broker under test."""
    return brokers.BROKERS[request.config.getoption("--peer")]


@pytest.fixture(scope="session")
def broker(peer):
    """A broker with default settings that all tests share. It must never end by itself."""
    one = _start(peer)
    yield one
    alive = one.running()
    _close(one)
    assert alive, "the broker ended during the suite"


@pytest.fixture
def own_broker(peer):
    """Starts a broker for this test alone: `own_broker(settings={...})`."""
    started = []

    def start(**arguments) -> brokers.Broker:
        started.append(_start(peer, **arguments))
        return started[-1]

    yield start
    for one in started:
        _close(one)


@pytest.fixture
def topic(request) -> str:
    """A topic name that no other test uses."""
    name = request.node.name.split("[")[0].removeprefix("test_")
    return f"{name}-{next(_topic_numbers)}"


@pytest.fixture
def client():
    """Runs a command-line client."""
    return places.run


@pytest.fixture
def tool():
    """Runs one of Kafka's own tools."""

    def call(main_class: str, *arguments, **how) -> bytes:
        return places.run(places.java(main_class, *map(str, arguments)), **how)

    return call
