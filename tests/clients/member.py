"""A member of a consumer group by kafka-python: `member.py ADDRESS GROUP TOPIC PROTOCOL SESSION_MS [INSTANCE_ID]`.

What it prints, and what is asked of it, is said in harness/members.py.
"""

import signal
import sys
import threading
import time

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.errors import KafkaConnectionError, KafkaError

ASSIGNORS = {
    "range": RangePartitionAssignor,
    "roundrobin": RoundRobinPartitionAssignor,
    "cooperative-sticky": CooperativeStickyAssignor,
}
COMMIT_INTERVAL_S = 0.2


def say(event: str) -> None:
    print(time.time_ns() // 1000, event)


class Member(ConsumerRebalanceListener):
    """The library calls the listener on a thread of its own, and it must not block there: so nothing is committed
    when partitions are given up, and what has been polled of them by then is dropped."""

    def __init__(self, address, group, topic, protocol, session_ms, instance_id=None):
        self.lock = threading.Lock()
        self.owned: set[TopicPartition] = set()
        self.uncommitted: dict[TopicPartition, int] = {}
        self.committed_at = time.monotonic()
        self.leaving = False
        self.topic = topic
        self.consumer = KafkaConsumer(
            bootstrap_servers=address, group_id=group, group_instance_id=instance_id,
            enable_auto_commit=False, auto_offset_reset="earliest", metadata_max_age_ms=5000,
            partition_assignment_strategy=[ASSIGNORS[protocol]], session_timeout_ms=int(session_ms),
            heartbeat_interval_ms=500, reconnect_backoff_max_ms=200,
        )  # fmt: skip

    def run(self):
        self.consumer.subscribe([self.topic], listener=self)
        while not self.leaving:
            try:
                polled = self.consumer.poll(timeout_ms=100)
            except KafkaConnectionError:
                # The broker is down: the other libraries try again by themselves, this one now and then leaves it to us.
                continue
            for partition, records in polled.items():
                self.process(partition, records)
            if time.monotonic() - self.committed_at >= COMMIT_INTERVAL_S:
                self.commit()
        self.commit()
        self.consumer.close(autocommit=False)
        say("left")

    def process(self, partition, records):
        with self.lock:
            if partition not in self.owned:
                return
            for record in records:
                say(f"record {partition.partition} {record.offset}")
            self.uncommitted[partition] = records[-1].offset + 1
            sys.stdout.flush()

    def commit(self):
        """What fails is tried again with the next call, or by who owns the partition then."""
        self.committed_at = time.monotonic()
        with self.lock:
            positions = dict(self.uncommitted)
        if not positions:
            return
        try:
            self.consumer.commit({one: OffsetAndMetadata(at, "", -1) for one, at in positions.items()})
        except KafkaError as refused:
            say(f"refused {type(refused).__name__}")
            return
        with self.lock:
            for partition, offset in positions.items():
                say(f"committed {partition.partition} {offset}")
                if self.uncommitted.get(partition) == offset:
                    del self.uncommitted[partition]
            sys.stdout.flush()

    def on_partitions_revoked(self, revoked):
        self._gone("revoked", revoked)

    def on_partitions_lost(self, lost):
        self._gone("lost", lost)

    def _gone(self, how, partitions):
        with self.lock:
            self.owned.difference_update(partitions)
            for partition in partitions:
                self.uncommitted.pop(partition, None)
            say(f"{how} {','.join(str(one.partition) for one in partitions)}")
            sys.stdout.flush()

    def on_partitions_assigned(self, assigned):
        with self.lock:
            self.owned.update(assigned)
            say(f"assigned {','.join(str(one.partition) for one in assigned)}")
            sys.stdout.flush()


member = Member(*sys.argv[1:])


def leave(*_):
    member.leaving = True


signal.signal(signal.SIGTERM, leave)
member.run()
