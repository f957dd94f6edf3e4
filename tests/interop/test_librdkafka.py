"""librdkafka through the `rdkafka` crate; the checks are in librdkafka_check.rs."""

from harness import places


def test_librdkafka(broker, client, topic):
    said = client([places.program("librdkafka-check"), broker.address, topic])
    assert said.decode().count(" passed\n") == 8
