import java.time.Duration;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.stream.Collectors;
import org.apache.kafka.clients.consumer.CloseOptions;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.RebalanceInProgressException;
import org.apache.kafka.clients.consumer.CommitFailedException;
import org.apache.kafka.clients.consumer.RetriableCommitFailedException;
import org.apache.kafka.common.errors.TimeoutException;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * A member of a consumer group by the Java client: {@code Member ADDRESS GROUP TOPIC PROTOCOL SESSION_MS [INSTANCE_ID]}.
 * What it prints, and what is asked of it, is said in harness/members.py.
 */
public class Member implements ConsumerRebalanceListener {
    static final Map<String, String> ASSIGNORS = Map.of(
            "range", "org.apache.kafka.clients.consumer.RangeAssignor",
            "roundrobin", "org.apache.kafka.clients.consumer.RoundRobinAssignor",
            "cooperative-sticky", "org.apache.kafka.clients.consumer.CooperativeStickyAssignor");
    static final long COMMIT_INTERVAL_MS = 200;

    final KafkaConsumer<byte[], byte[]> consumer;
    final Map<TopicPartition, Long> uncommitted = new HashMap<>();
    long committedAt;

    Member(String[] arguments) {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", arguments[0]);
        settings.put("group.id", arguments[1]);
        settings.put("auto.offset.reset", "earliest");
        settings.put("enable.auto.commit", "false");
        settings.put("metadata.max.age.ms", "5000");
        settings.put("reconnect.backoff.max.ms", "200");
        settings.put("key.deserializer", ByteArrayDeserializer.class.getName());
        settings.put("value.deserializer", ByteArrayDeserializer.class.getName());
        if (arguments[3].equals("consumer")) {
            settings.put("group.protocol", "consumer");
        } else {
            settings.put("partition.assignment.strategy", ASSIGNORS.get(arguments[3]));
            settings.put("session.timeout.ms", arguments[4]);
            settings.put("heartbeat.interval.ms", "500");
        }
        if (arguments.length > 5) {
            settings.put("group.instance.id", arguments[5]);
        }
        consumer = new KafkaConsumer<>(settings);
    }

    public static void main(String[] arguments) throws Exception {
        Member member = new Member(arguments);
        AtomicBoolean leaving = new AtomicBoolean();
        Thread polling = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            leaving.set(true);
            try {
                polling.join();
            } catch (InterruptedException ignored) {
                // The process ends anyway.
            }
        }));
        member.run(List.of(arguments[2]), leaving);
    }

    void run(List<String> topics, AtomicBoolean leaving) {
        consumer.subscribe(topics, this);
        while (!leaving.get()) {
            for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(100))) {
                say("record " + record.partition() + " " + record.offset());
                uncommitted.put(new TopicPartition(record.topic(), record.partition()), record.offset() + 1);
            }
            System.out.flush();
            if (System.currentTimeMillis() - committedAt >= COMMIT_INTERVAL_MS) {
                commit();
            }
        }
        // Leaving revokes, and that commits.
        consumer.close(CloseOptions.timeout(Duration.ofSeconds(10)));
        say("left");
        System.out.flush();
    }

    /** What fails is tried again with the next call, or by who owns the partition then. */
    void commit() {
        committedAt = System.currentTimeMillis();
        if (uncommitted.isEmpty()) {
            return;
        }
        Map<TopicPartition, OffsetAndMetadata> offsets = uncommitted.entrySet().stream()
                .collect(Collectors.toMap(Map.Entry::getKey, one -> new OffsetAndMetadata(one.getValue())));
        try {
            consumer.commitSync(offsets, Duration.ofSeconds(5));
        } catch (CommitFailedException | RebalanceInProgressException
                | RetriableCommitFailedException | TimeoutException refused) {
            say("refused " + refused.getClass().getSimpleName());
            return;
        }
        offsets.forEach((partition, offset) -> say("committed " + partition.partition() + " " + offset.offset()));
        uncommitted.clear();
        System.out.flush();
    }

    @Override
    public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
        say("assigned", partitions);
    }

    @Override
    public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
        commit();
        uncommitted.keySet().removeAll(partitions);
        say("revoked", partitions);
    }

    @Override
    public void onPartitionsLost(Collection<TopicPartition> partitions) {
        uncommitted.keySet().removeAll(partitions);
        say("lost", partitions);
    }

    static void say(String event, Collection<TopicPartition> partitions) {
        say(event + " " + partitions.stream().map(one -> "" + one.partition()).collect(Collectors.joining(",")));
        System.out.flush();
    }

    static void say(String event) {
        java.time.Instant now = java.time.Instant.now();
        System.out.println(now.getEpochSecond() * 1_000_000 + now.getNano() / 1000 + " " + event);
    }
}
