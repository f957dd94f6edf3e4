"""kcat, the command-line client over librdkafka."""

import json
import subprocess
import time

import pytest

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


def kcat(broker, *arguments):
    return ["kcat", "-b", broker.address, "-m", "20", *arguments]


def test_metadata(broker, client, topic):
    client(kcat(broker, "-P", "-t", topic, "-p", "0"), input=b"one\n")
    listed = json.loads(client(kcat(broker, "-L", "-J")))
    assert [one["name"] for one in listed["brokers"]] == [broker.address]
    found = {one["topic"]: one for one in listed["topics"]}[topic]
    assert [one["partition"] for one in found["partitions"]] == [0]
    assert found["partitions"][0]["leader"] == listed["brokers"][0]["id"]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("acks", ["0", "1", "all"])
def test_lines_come_back(broker, client, topic, codec, acks):
    lines = b"".join(b"%s %d %s\n" % (codec.encode(), n, b"ab" * (n % 97)) for n in range(3000))
    settings = ["-X", f"compression.codec={codec}", "-X", f"acks={acks}"]
    client(kcat(broker, "-P", "-t", topic, "-p", "0", *settings), input=lines)
    if acks == "0":
        wait_for_end(broker, client, topic, 3000)
    assert client(kcat(broker, "-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-q")) == lines


def wait_for_end(broker, client, topic, end):
    """What is sent with acks=0 arrives, but nobody says when."""
    for _ in range(100):
        said = client(kcat(broker, "-Q", "-t", f"{topic}:0:-1"))
        if said.split()[-1] == str(end).encode():
            return
        time.sleep(0.1)
    pytest.fail(f"{topic} does not reach {end}: {said}")


def test_idempotent_producer(broker, client, topic):
    lines = b"".join(b"%d\n" % n for n in range(20_000))
    client(kcat(broker, "-P", "-t", topic, "-p", "0", "-X", "enable.idempotence=true"), input=lines)
    assert client(kcat(broker, "-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-q")) == lines


def test_offsets_and_tails(broker, client, topic):
    client(kcat(broker, "-P", "-t", topic, "-p", "0"), input=b"".join(b"%d\n" % n for n in range(1000)))

    def read(*how):
        return client(kcat(broker, "-C", "-t", topic, "-p", "0", "-e", "-q", "-f", "%o %s\n", *how)).split()

    assert read("-o", "500", "-c", "2") == [b"500", b"500", b"501", b"501"]
    assert read("-o", "-3") == [b"997", b"997", b"998", b"998", b"999", b"999"]
    assert read("-o", "end") == []


def test_keys_headers_and_nulls(broker, client, topic):
    client(
        kcat(broker, "-P", "-t", topic, "-p", "0", "-K", ":", "-Z", "-H", "a=1", "-H", "b=two"),
        input=b"key:value\nnull:\n",
    )
    said = client(kcat(broker, "-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-q", "-J"))
    first, second = map(json.loads, said.splitlines())
    assert (first["key"], first["payload"], first["headers"]) == ("key", "value", ["a", "1", "b", "two"])
    assert second["payload"] is None


def test_a_waiting_consumer_gets_what_comes(broker, client, topic):
    """A long poll ends when a record arrives, not when its time is over."""
    client(kcat(broker, "-P", "-t", topic, "-p", "0"), input=b"before\n")
    # It says when it sends a fetch, unless it is told to be quiet.
    reads = kcat(broker, "-C", "-t", topic, "-p", "0", "-o", "end", "-c", "1", "-d", "fetch")
    waits = [*reads, "-X", "fetch.wait.max.ms=30000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(waits, **pipes) as consumer:
        try:
            assert any(b"Fetch 1/1/1 toppar(s)" in line for line in consumer.stderr)
            assert consumer.poll() is None
            sent = time.monotonic()
            client(kcat(broker, "-P", "-t", topic, "-p", "0"), input=b"after\n")
            assert consumer.communicate(timeout=20)[0] == b"after\n"
            assert time.monotonic() - sent < 10
        finally:
            consumer.kill()
