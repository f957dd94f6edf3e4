"""kafka-python: a client that shares no code with the Java client or librdkafka."""

import time

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import MessageSizeTooLargeError, TopicAlreadyExistsError, UnknownTopicOrPartitionError

TIME_MS = 1_700_000_000_000


@pytest.fixture
def producer(broker):
    made = []

    def make(**settings):
        made.append(KafkaProducer(bootstrap_servers=broker.address, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close(timeout=10)


@pytest.fixture
def consumer(broker):
    one = KafkaConsumer(bootstrap_servers=broker.address, enable_auto_commit=False, auto_offset_reset="none")
    yield one
    one.close(autocommit=False)


@pytest.fixture
def admin(broker):
    one = KafkaAdminClient(bootstrap_servers=broker.address)
    yield one
    one.close()


def read(consumer, partition, count, timeout_s=30):
    out, deadline = [], time.monotonic() + timeout_s
    while len(out) < count:
        assert time.monotonic() < deadline, f"only {len(out)} of {count} came"
        for records in consumer.poll(timeout_ms=1000).values():
            out += records
    assert {TopicPartition(one.topic, one.partition) for one in out} == {partition}
    return out


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
def test_codecs(producer, consumer, topic, codec):
    values = [b"%d " % n + b"z" * n for n in range(1000)]
    sender = producer(compression_type=codec, linger_ms=20)
    sent = [sender.send(topic, value, partition=0) for value in values]
    assert [one.get(30).offset for one in sent] == list(range(1000))
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek_to_beginning(partition)
    assert [one.value for one in read(consumer, partition, 1000)] == values


@pytest.mark.parametrize("acks, idempotent", [(0, False), (1, False), ("all", False), ("all", True)])
def test_acks(producer, consumer, topic, acks, idempotent):
    sender = producer(acks=acks, enable_idempotence=idempotent)
    for n in range(200):
        sender.send(topic, b"%d" % n, partition=0)
    sender.flush(30)
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek(partition, 0)
    assert [one.value for one in read(consumer, partition, 200)] == [b"%d" % n for n in range(200)]


def test_offsets_and_times(producer, consumer, topic):
    sender = producer()
    for n in range(100):
        sender.send(topic, b"%d" % n, partition=0, timestamp_ms=TIME_MS + n * 1000)
    sender.flush(30)
    partition = TopicPartition(topic, 0)
    assert consumer.beginning_offsets([partition]) == {partition: 0}
    assert consumer.end_offsets([partition]) == {partition: 100}

    def at(time_ms):
        return consumer.offsets_for_times({partition: time_ms})[partition]

    assert (at(TIME_MS - 1).offset, at(TIME_MS - 1).timestamp) == (0, TIME_MS)
    assert (at(TIME_MS + 41_500).offset, at(TIME_MS + 41_500).timestamp) == (42, TIME_MS + 42_000)
    assert at(TIME_MS + 99_001) is None
    consumer.assign([partition])
    consumer.seek(partition, 60)
    assert [one.offset for one in read(consumer, partition, 40)] == list(range(60, 100))


def test_positions_of_a_group(broker, producer, admin, topic):
    """A group goes on where it was, replays, goes to a time, skips to now; and the admin client moves it."""
    admin.create_topics([NewTopic(topic, 2, 1, topic_configs={"retention.ms": "-1"})])
    admin.wait_for_topics([topic])
    sender = producer()
    for n in range(200):
        sender.send(topic, b"%d" % (n // 2), partition=n % 2, timestamp_ms=TIME_MS + n // 2 * 1000)
    sender.flush(30)
    both = [TopicPartition(topic, 0), TopicPartition(topic, 1)]

    def values(count):
        """The next records of both partitions."""
        out, deadline = {one: [] for one in both}, time.monotonic() + 30
        while sum(map(len, out.values())) < count:
            assert time.monotonic() < deadline, out
            for partition, records in member.poll(timeout_ms=500).items():
                out[partition] += [int(record.value) for record in records]
        return out

    def joined():
        return KafkaConsumer(
            topic, bootstrap_servers=broker.address, group_id=topic, enable_auto_commit=False, auto_offset_reset="earliest"
        )

    def every(start):
        return dict.fromkeys(both, list(range(start, 100)))

    member = joined()
    assert values(200) == every(0)
    member.commit({one: OffsetAndMetadata(60, "said", -1) for one in both})
    member.close(autocommit=False)
    member = joined()
    assert values(80) == every(60)
    assert [member.committed(one) for one in both] == [60, 60]
    member.seek_to_beginning()
    assert values(200) == every(0)
    found = member.offsets_for_times(dict.fromkeys(both, TIME_MS + 90_500))
    for one in both:
        member.seek(one, found[one].offset)
    assert values(18) == every(91)
    member.seek_to_beginning()
    member.seek_to_end()
    assert [member.position(one) for one in both] == [100, 100]
    member.commit()
    for one in both:
        sender.send(topic, b"99", partition=one.partition)
    assert values(2) == every(99)
    member.close(autocommit=False)
    assert {one: at.offset for one, at in admin.list_group_offsets({topic: None})[topic].items()} == dict.fromkeys(both, 100)


def test_topics_and_partitions(admin, producer, consumer, topic):
    admin.create_topics([NewTopic(topic, num_partitions=3, replication_factor=1)])
    with pytest.raises(TopicAlreadyExistsError):
        admin.create_topics([NewTopic(topic, num_partitions=3, replication_factor=1)])
    assert topic in admin.list_topics()
    admin.create_partitions({topic: 7})
    (described,) = admin.describe_topics([topic])
    assert len(described["partitions"]) == 7
    sender = producer()
    for n in range(70):
        sender.send(topic, b"%d" % n, partition=n % 7)
    sender.flush(30)
    partitions = [TopicPartition(topic, n) for n in range(7)]
    assert consumer.end_offsets(partitions) == dict.fromkeys(partitions, 10)
    admin.delete_topics([topic])
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.delete_topics([topic])


def test_configs(admin, topic):
    admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"retention.ms": "3600000"})])
    admin.wait_for_topics([topic])
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs={"segment.ms": "7200000"})])
    text = str(admin.describe_configs([resource]))
    for expected in ("retention.ms", "3600000", "segment.ms", "7200000"):
        assert expected in text


def test_too_large(producer, topic, admin):
    admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"max.message.bytes": "10000"})])
    with pytest.raises(MessageSizeTooLargeError):
        producer().send(topic, b"x" * 20_000, partition=0).get(30)
    assert producer().send(topic, b"x" * 5_000, partition=0).get(30).offset == 0
