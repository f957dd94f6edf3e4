import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.Config;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.admin.RemoveMembersFromConsumerGroupOptions;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.OffsetOutOfRangeException;
import org.apache.kafka.clients.consumer.SubscriptionPattern;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.GroupState;
import org.apache.kafka.common.GroupType;
import org.apache.kafka.common.TopicCollection;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.GroupIdNotFoundException;
import org.apache.kafka.common.errors.GroupNotEmptyException;
import org.apache.kafka.common.errors.InvalidPartitionsException;
import org.apache.kafka.common.errors.InvalidReplicationFactorException;
import org.apache.kafka.common.errors.InvalidTopicException;
import org.apache.kafka.common.errors.InvalidConfigurationException;
import org.apache.kafka.common.errors.RecordTooLargeException;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.errors.UnknownTopicIdException;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * The Java client against a running broker: {@code JavaCheck ADDRESS PREFIX CHECK}. Each check works on topics of its own
 * that begin with PREFIX. Run by test_java_client.py.
 */
public class JavaCheck {
    static final long TIME_MS = 1_700_000_000_000L;

    final String address;
    final String prefix;

    JavaCheck(String address, String prefix) {
        this.address = address;
        this.prefix = prefix;
    }

    public static void main(String[] arguments) throws Exception {
        JavaCheck check = new JavaCheck(arguments[0], arguments[1]);
        switch (arguments[2]) {
            case "codecs" -> check.codecs();
            case "acks" -> check.acks();
            case "order" -> check.order();
            case "records" -> check.records();
            case "offsets" -> check.offsets();
            case "reset" -> check.reset();
            case "long_poll" -> check.longPoll();
            case "large" -> check.large();
            case "limits" -> check.limits();
            case "topics" -> check.topics();
            case "topic_errors" -> check.topicErrors();
            case "configs" -> check.configs();
            case "cluster" -> check.cluster();
            case "delete_records" -> check.deleteRecords();
            case "producers" -> check.producers();
            case "positions_classic" -> check.positions("classic");
            case "positions_consumer" -> check.positions("consumer");
            case "group_admin" -> check.groupAdmin();
            case "pattern" -> check.pattern();
            default -> throw new IllegalArgumentException(arguments[2]);
        }
        System.out.println("passed");
    }

    // -- producing and consuming ---------------------------------------------------------------

    /** Every codec, with the client's default settings otherwise: idempotent, acks=all. */
    void codecs() throws Exception {
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            String topic = prefix + "-" + codec;
            List<byte[]> values = new ArrayList<>();
            for (int n = 0; n < 2000; n++) {
                values.add((codec + " " + n + " " + "y".repeat(n % 700)).getBytes(StandardCharsets.UTF_8));
            }
            sendAll(topic, values, Map.of("compression.type", codec, "linger.ms", "10"));
            same(values, read(topic, 0, 0, 2000));
        }
    }

    void acks() throws Exception {
        String topic = prefix + "-acks";
        List<byte[]> values = List.of(bytes("a"), bytes("b"), bytes("c"));
        sendAll(topic, values, Map.of("acks", "1", "enable.idempotence", "false"));
        sendAll(topic, values, Map.of("acks", "all", "enable.idempotence", "false"));
        try (var producer = producer(Map.of("acks", "0", "enable.idempotence", "false"))) {
            for (byte[] value : values) {
                producer.send(new ProducerRecord<>(topic, 0, null, value)).get();
            }
        }
        List<byte[]> expected = new ArrayList<>();
        for (int times = 0; times < 3; times++) {
            expected.addAll(values);
        }
        same(expected, read(topic, 0, 0, 9));
    }

    /** Many small batches in flight on many partitions stay in order. */
    void order() throws Exception {
        String topic = prefix + "-order";
        create(topic, 8, Map.of());
        try (var producer = producer(Map.of("batch.size", "500", "linger.ms", "0"))) {
            for (int n = 0; n < 40_000; n++) {
                producer.send(new ProducerRecord<>(topic, n % 8, null, bytes("" + n)));
            }
        }
        for (int partition = 0; partition < 8; partition++) {
            List<ConsumerRecord<byte[], byte[]>> records = read(topic, partition, 0, 5000);
            for (int n = 0; n < 5000; n++) {
                equal("" + (n * 8 + partition), text(records.get(n).value()));
            }
        }
    }

    void records() throws Exception {
        String topic = prefix + "-records";
        try (var producer = producer(Map.of())) {
            var full = new ProducerRecord<>(topic, 0, TIME_MS, bytes("key"), bytes("value"));
            full.headers().add(new RecordHeader("a", bytes("1"))).add(new RecordHeader("none", null));
            producer.send(full).get();
            producer.send(new ProducerRecord<byte[], byte[]>(topic, 0, null, null)).get();
        }
        var records = read(topic, 0, 0, 2);
        var full = records.get(0);
        equal("key value " + TIME_MS, text(full.key()) + " " + text(full.value()) + " " + full.timestamp());
        equal(2, full.headers().toArray().length);
        equal("1", text(full.headers().lastHeader("a").value()));
        equal(null, full.headers().lastHeader("none").value());
        equal(null, records.get(1).key());
        equal(null, records.get(1).value());
    }

    void offsets() throws Exception {
        String topic = prefix + "-offsets";
        var partition = new TopicPartition(topic, 0);
        try (var producer = producer(Map.of("batch.size", "200"))) {
            for (int n = 0; n < 500; n++) {
                producer.send(new ProducerRecord<>(topic, 0, TIME_MS + n * 10L, null, bytes("" + n)));
            }
            // The highest time stamp is not at the end.
            producer.send(new ProducerRecord<>(topic, 0, TIME_MS, null, bytes("500")));
        }
        try (var consumer = consumer(Map.of())) {
            equal(0L, consumer.beginningOffsets(List.of(partition)).get(partition));
            equal(501L, consumer.endOffsets(List.of(partition)).get(partition));
            var found = consumer.offsetsForTimes(Map.of(partition, TIME_MS + 2345)).get(partition);
            equal(235L, found.offset());
            equal(TIME_MS + 2350, found.timestamp());
            equal(null, consumer.offsetsForTimes(Map.of(partition, TIME_MS + 4991)).get(partition));
            consumer.assign(List.of(partition));
            consumer.seek(partition, 333);
            equal("333", text(poll(consumer, 1).get(0).value()));
            consumer.seekToEnd(List.of(partition));
            equal(501L, consumer.position(partition));
            consumer.seekToBeginning(List.of(partition));
            equal("0", text(poll(consumer, 1).get(0).value()));
        }
        try (var admin = admin()) {
            equal(0L, offset(admin, partition, OffsetSpec.earliest()));
            equal(501L, offset(admin, partition, OffsetSpec.latest()));
            equal(499L, offset(admin, partition, OffsetSpec.maxTimestamp()));
            equal(0L, offset(admin, partition, OffsetSpec.earliestLocal()));
            equal(-1L, offset(admin, partition, OffsetSpec.latestTiered()));
            equal(100L, offset(admin, partition, OffsetSpec.forTimestamp(TIME_MS + 1000)));
        }
    }

    long offset(Admin admin, TopicPartition partition, OffsetSpec spec) throws Exception {
        return admin.listOffsets(Map.of(partition, spec)).partitionResult(partition).get().offset();
    }

    void reset() throws Exception {
        String topic = prefix + "-reset";
        sendAll(topic, List.of(bytes("a"), bytes("b")), Map.of());
        var partition = new TopicPartition(topic, 0);
        try (var consumer = consumer(Map.of("auto.offset.reset", "none"))) {
            consumer.assign(List.of(partition));
            consumer.seek(partition, 77);
            try {
                poll(consumer, 1);
                throw new AssertionError("offset 77 was read");
            } catch (OffsetOutOfRangeException expected) {
                equal(Set.of(partition), expected.partitions());
            }
        }
        try (var consumer = consumer(Map.of("auto.offset.reset", "earliest"))) {
            consumer.assign(List.of(partition));
            consumer.seek(partition, 77);
            equal("a", text(poll(consumer, 1).get(0).value()));
        }
    }

    /** A parked fetch ends when a record comes, and many idle partitions do not keep it from being seen. */
    void longPoll() throws Exception {
        String topic = prefix + "-poll";
        create(topic, 20, Map.of());
        List<TopicPartition> partitions = new ArrayList<>();
        for (int n = 0; n < 20; n++) {
            partitions.add(new TopicPartition(topic, n));
        }
        try (var consumer = consumer(Map.of("fetch.max.wait.ms", "8000")); var producer = producer(Map.of())) {
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            consumer.poll(Duration.ofMillis(500));
            for (int n = 0; n < 20; n++) {
                producer.send(new ProducerRecord<>(topic, n, null, bytes("" + n))).get();
                long sent = System.nanoTime();
                equal("" + n, text(poll(consumer, 1).get(0).value()));
                long took = (System.nanoTime() - sent) / 1_000_000;
                require(took < 4_000, "record " + n + " took " + took + " ms");
            }
        }
    }

    void large() throws Exception {
        String topic = prefix + "-large";
        create(topic, 1, Map.of("max.message.bytes", "12000000"));
        List<byte[]> values = new ArrayList<>();
        for (int size : new int[] {10_000_000, 1, 4096, 5_000_000, 65_536, 1_048_576}) {
            byte[] value = new byte[size];
            for (int at = 0; at < size; at++) {
                value[at] = (byte) (at * 7 + size);
            }
            values.add(value);
        }
        var settings = Map.of("max.request.size", "12000000", "buffer.memory", "64000000", "batch.size", "3000000");
        sendAll(topic, values, settings);
        // Even a fetch that is smaller than the batch gets it.
        same(values, read(topic, 0, 0, values.size(), Map.of("max.partition.fetch.bytes", "1000", "fetch.max.bytes", "1000")));
    }

    void limits() throws Exception {
        String topic = prefix + "-limits";
        create(topic, 1, Map.of("max.message.bytes", "2000"));
        try (var producer = producer(Map.of())) {
            fails(RecordTooLargeException.class, producer.send(new ProducerRecord<>(topic, 0, null, new byte[5000])));
        }
        sendAll(topic, List.of(new byte[1000]), Map.of());
    }

    /** Topics by an expression that the broker resolves (KIP-848); and an operator removes a member. */
    void pattern() throws Exception {
        String topic = prefix + "-pattern";
        create(topic + "-a", 2, Map.of());
        create(topic + "-b", 1, Map.of());
        sendAll(topic + "-a", List.of(bytes("a")), Map.of());
        sendAll(topic + "-b", List.of(bytes("b")), Map.of());
        String group = prefix + "-pattern-group";
        var settings = Map.of("group.id", group, "group.protocol", "consumer", "auto.offset.reset", "earliest");
        try (var admin = admin(); var consumer = consumer(settings)) {
            consumer.subscribe(new SubscriptionPattern(topic + "-[ab]"));
            equal(2, poll(consumer, 2).size());
            equal(3, consumer.assignment().size());
            admin.removeMembersFromConsumerGroup(group, new RemoveMembersFromConsumerGroupOptions()).all().get();
        }
    }

    // -- administration ------------------------------------------------------------------------

    void topics() throws Exception {
        String topic = prefix + "-topics";
        try (var admin = admin()) {
            admin.createTopics(List.of(new NewTopic(topic, 3, (short) 1))).all().get();
            require(admin.listTopics().names().get().contains(topic), "not listed");
            var described = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            equal(3, described.partitions().size());
            equal(1, described.partitions().get(0).isr().size());
            var id = described.topicId();
            var byId = admin.describeTopics(TopicCollection.ofTopicIds(List.of(id))).allTopicIds().get().get(id);
            equal(topic, byId.name());
            fails(UnknownTopicIdException.class,
                admin.describeTopics(TopicCollection.ofTopicIds(List.of(Uuid.randomUuid()))).allTopicIds());
            admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(6))).all().get();
            sendAll(topic, List.of(bytes("a")), Map.of());
            described = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            equal(6, described.partitions().size());
            equal(id, described.topicId());
            var dirs = admin.describeLogDirs(List.of(described.partitions().get(0).leader().id())).allDescriptions().get();
            var replicas = dirs.values().iterator().next().values().iterator().next().replicaInfos();
            require(replicas.get(new TopicPartition(topic, 0)).size() > 0, "no size of the partition");
            equal(6L, replicas.keySet().stream().filter(one -> one.topic().equals(topic)).count());
            admin.deleteTopics(List.of(topic)).all().get();
            fails(UnknownTopicOrPartitionException.class, admin.deleteTopics(List.of(topic)).all());
            admin.createTopics(List.of(new NewTopic(topic, 1, (short) 1))).all().get();
            // A topic made anew is another topic.
            sendAll(topic, List.of(bytes("new")), Map.of());
            described = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            require(!described.topicId().equals(id), "the id of a deleted topic came back");
            same(List.of(bytes("new")), read(topic, 0, 0, 1));
        }
    }

    void topicErrors() throws Exception {
        String topic = prefix + "-errors";
        try (var admin = admin()) {
            admin.createTopics(List.of(new NewTopic(topic, 2, (short) 1))).all().get();
            fails(TopicExistsException.class, admin.createTopics(List.of(new NewTopic(topic, 2, (short) 1))).all());
            fails(InvalidTopicException.class, create(admin, "no/slashes", 1, 1, Map.of()));
            fails(InvalidTopicException.class, create(admin, "x".repeat(250), 1, 1, Map.of()));
            fails(InvalidPartitionsException.class, create(admin, topic + "-0", 0, 1, Map.of()));
            fails(InvalidReplicationFactorException.class, create(admin, topic + "-r", 1, 2, Map.of()));
            fails(InvalidConfigurationException.class, create(admin, topic + "-c", 1, 1, Map.of("no.such.setting", "1")));
            fails(InvalidConfigurationException.class, create(admin, topic + "-c", 1, 1, Map.of("retention.ms", "soon")));
            fails(InvalidConfigurationException.class, create(admin, topic + "-c", 1, 1, Map.of("segment.bytes", "1000")));
            fails(InvalidPartitionsException.class, admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(1))).all());
            fails(UnknownTopicOrPartitionException.class, admin.describeTopics(List.of(topic + "-none")).allTopicNames());
            require(admin.listTopics().names().get().stream().noneMatch(name -> name.startsWith(topic + "-")), "half made");
        }
    }

    void configs() throws Exception {
        String topic = prefix + "-configs";
        create(topic, 1, Map.of("retention.ms", "3600000"));
        var resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
        try (var admin = admin()) {
            setting(admin, resource, "retention.ms", "3600000", ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG);
            setting(admin, resource, "cleanup.policy", "delete", ConfigEntry.ConfigSource.DEFAULT_CONFIG);
            alter(admin, resource, "segment.ms", "7200000", AlterConfigOp.OpType.SET);
            alter(admin, resource, "retention.ms", null, AlterConfigOp.OpType.DELETE);
            setting(admin, resource, "segment.ms", "7200000", ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG);
            setting(admin, resource, "retention.ms", "604800000", ConfigEntry.ConfigSource.DEFAULT_CONFIG);
            fails(InvalidConfigurationException.class, change(admin, resource, "segment.ms", "never", AlterConfigOp.OpType.SET));
            require(admin.listConfigResources(Set.of(ConfigResource.Type.TOPIC), new org.apache.kafka.clients.admin.ListConfigResourcesOptions())
                .all().get().contains(resource), "not among the resources");
            String node = admin.describeCluster().nodes().get().iterator().next().idString();
            var broker = new ConfigResource(ConfigResource.Type.BROKER, node);
            setting(admin, broker, "num.partitions", "1", ConfigEntry.ConfigSource.DEFAULT_CONFIG);
            setting(admin, broker, "auto.create.topics.enable", "true", ConfigEntry.ConfigSource.DEFAULT_CONFIG);
        }
    }

    void alter(Admin admin, ConfigResource resource, String name, String value, AlterConfigOp.OpType how) throws Exception {
        change(admin, resource, name, value, how).get();
    }

    Future<Void> change(Admin admin, ConfigResource resource, String name, String value, AlterConfigOp.OpType how) {
        return admin.incrementalAlterConfigs(Map.of(resource, List.of(new AlterConfigOp(new ConfigEntry(name, value), how)))).all();
    }

    /** A change is seen in time, if not at once. */
    void setting(Admin admin, ConfigResource resource, String name, String value, ConfigEntry.ConfigSource source) throws Exception {
        ConfigEntry found = null;
        for (int times = 0; times < 50; times++) {
            Config config = admin.describeConfigs(List.of(resource)).all().get().get(resource);
            found = config.get(name);
            if (found != null && value.equals(found.value()) && found.source() == source) {
                return;
            }
            Thread.sleep(100);
        }
        throw new AssertionError(name + ": " + found);
    }

    void cluster() throws Exception {
        try (var admin = admin()) {
            var cluster = admin.describeCluster();
            equal(1, cluster.nodes().get().size());
            var node = cluster.nodes().get().iterator().next();
            equal(address, node.host() + ":" + node.port());
            equal(node.id(), cluster.controller().get().id());
            equal(22, cluster.clusterId().get().length());
        }
    }

    void deleteRecords() throws Exception {
        String topic = prefix + "-delete";
        var partition = new TopicPartition(topic, 0);
        List<byte[]> values = new ArrayList<>();
        for (int n = 0; n < 100; n++) {
            values.add(bytes("" + n));
        }
        sendAll(topic, values, Map.of("batch.size", "1"));
        try (var admin = admin()) {
            var deleted = admin.deleteRecords(Map.of(partition, RecordsToDelete.beforeOffset(40)));
            equal(40L, deleted.lowWatermarks().get(partition).get().lowWatermark());
            equal(40L, offset(admin, partition, OffsetSpec.earliest()));
            fails(org.apache.kafka.common.errors.OffsetOutOfRangeException.class,
                admin.deleteRecords(Map.of(partition, RecordsToDelete.beforeOffset(101))).all());
            same(values.subList(40, 100), read(topic, 0, 40, 60));
            admin.deleteRecords(Map.of(partition, RecordsToDelete.beforeOffset(-1))).all().get();
            equal(100L, offset(admin, partition, OffsetSpec.earliest()));
        }
        sendAll(topic, List.of(bytes("next")), Map.of());
        same(List.of(bytes("next")), read(topic, 0, 100, 1));
    }

    void producers() throws Exception {
        String topic = prefix + "-producers";
        var partition = new TopicPartition(topic, 0);
        try (var admin = admin(); var producer = producer(Map.of())) {
            RecordMetadata last = null;
            for (int n = 0; n < 5; n++) {
                last = producer.send(new ProducerRecord<>(topic, 0, null, bytes("" + n))).get();
            }
            equal(4L, last.offset());
            var states = admin.describeProducers(List.of(partition)).partitionResult(partition).get().activeProducers();
            equal(1, states.size());
            equal(4, states.get(0).lastSequence());
            require(states.get(0).producerId() >= 0, "" + states.get(0));
        }
    }

    // -- groups --------------------------------------------------------------------------------

    /** A member of the group of this check's name. */
    KafkaConsumer<byte[], byte[]> member(String group, String protocol, String topic) {
        var consumer = consumer(Map.of("group.id", group, "group.protocol", protocol, "enable.auto.commit", "false",
                "auto.offset.reset", "earliest"));
        consumer.subscribe(List.of(topic));
        return consumer;
    }

    /** Positions belong to the consumer: it goes on, replays, skips to now, goes to a time, as it likes. */
    void positions(String protocol) throws Exception {
        String topic = prefix + "-positions";
        String group = topic;
        create(topic, 1, Map.of("retention.ms", "-1"));
        var partition = new TopicPartition(topic, 0);
        try (var producer = producer(Map.of())) {
            for (int n = 0; n < 500; n++) {
                producer.send(new ProducerRecord<>(topic, 0, TIME_MS + n * 1000L, null, bytes("" + n)));
            }
        }
        try (var consumer = member(group, protocol, topic)) {
            equal("0", text(poll(consumer, 500).get(0).value()));
            consumer.commitSync(Map.of(partition, new OffsetAndMetadata(123, "said by the client")));
        }
        try (var consumer = member(group, protocol, topic)) {
            // It goes on where it was.
            equal("123", text(poll(consumer, 377).get(0).value()));
            var committed = consumer.committed(Set.of(partition)).get(partition);
            equal(123L, committed.offset());
            equal("said by the client", committed.metadata());
            // Replay.
            consumer.seekToBeginning(List.of(partition));
            var again = poll(consumer, 500);
            for (int n = 0; n < 500; n++) {
                equal("" + n, text(again.get(n).value()));
            }
            // By time.
            var found = consumer.offsetsForTimes(Map.of(partition, TIME_MS + 400_500L)).get(partition);
            consumer.seek(partition, found.offset());
            equal("401", text(poll(consumer, 99).get(0).value()));
            // Skip to now.
            consumer.seek(partition, 7);
            consumer.seekToEnd(List.of(partition));
            equal(500L, consumer.position(partition));
            consumer.commitSync();
            sendAll(topic, List.of(bytes("new")), Map.of());
            equal("new", text(poll(consumer, 1).get(0).value()));
        }
        try (var consumer = member(group, protocol, topic)) {
            equal("new", text(poll(consumer, 1).get(0).value()));
            equal(500L, consumer.committed(Set.of(partition)).get(partition).offset());
        }
    }

    /** What the admin client asks about groups. */
    void groupAdmin() throws Exception {
        String topic = prefix + "-admin";
        create(topic, 2, Map.of());
        sendAll(topic, List.of(bytes("a"), bytes("b")), Map.of());
        var partition = new TopicPartition(topic, 0);
        for (String protocol : List.of("classic", "consumer")) {
            String group = topic + "-" + protocol;
            try (var admin = admin()) {
                try (var consumer = member(group, protocol, topic)) {
                    poll(consumer, 2);
                    consumer.commitSync();
                    var described = admin.describeConsumerGroups(List.of(group)).describedGroups().get(group).get();
                    equal(GroupState.STABLE, described.groupState());
                    equal(protocol.equals("classic") ? GroupType.CLASSIC : GroupType.CONSUMER, described.type());
                    equal(1, described.members().size());
                    var assigned = described.members().iterator().next().assignment().topicPartitions();
                    equal(Set.of(partition, new TopicPartition(topic, 1)), assigned);
                    equal(consumer.groupMetadata().memberId(), described.members().iterator().next().consumerId());
                    fails(GroupNotEmptyException.class, admin.deleteConsumerGroups(List.of(group)).all());
                }
                var offsets = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
                equal(2L, offsets.get(partition).offset());
                admin.alterConsumerGroupOffsets(group, Map.of(partition, new OffsetAndMetadata(1))).all().get();
                try (var consumer = member(group, protocol, topic)) {
                    equal("b", text(poll(consumer, 1).get(0).value()));
                }
                boolean listed = admin.listGroups().all().get().stream().anyMatch(one -> one.groupId().equals(group));
                require(listed, "the group is not listed");
                admin.deleteConsumerGroupOffsets(group, Set.of(partition)).all().get();
                equal(null, admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().get(partition));
                admin.deleteConsumerGroups(List.of(group)).all().get();
                fails(GroupIdNotFoundException.class, admin.deleteConsumerGroups(List.of(group)).all());
                fails(GroupIdNotFoundException.class, admin.describeConsumerGroups(List.of(group)).all());
            }
        }
    }

    // -- the clients ---------------------------------------------------------------------------
    Properties properties(Map<String, String> settings) {
        Properties out = new Properties();
        out.put("bootstrap.servers", address);
        out.putAll(settings);
        return out;
    }

    KafkaProducer<byte[], byte[]> producer(Map<String, String> settings) {
        return new KafkaProducer<>(properties(settings), new ByteArraySerializer(), new ByteArraySerializer());
    }

    KafkaConsumer<byte[], byte[]> consumer(Map<String, String> settings) {
        return new KafkaConsumer<>(properties(settings), new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    Admin admin() {
        return Admin.create(properties(Map.of()));
    }

    Future<Void> create(Admin admin, String name, int partitions, int replicas, Map<String, String> configs) {
        return admin.createTopics(List.of(new NewTopic(name, partitions, (short) replicas).configs(configs))).all();
    }

    void create(String topic, int partitions, Map<String, String> configs) throws Exception {
        try (var admin = admin()) {
            create(admin, topic, partitions, 1, configs).get();
            // The reference answers before the topic is served.
            while (!admin.listTopics().names().get().contains(topic)) {
                Thread.sleep(20);
            }
        }
    }

    /** Sends to partition 0 and waits; offsets must rise one by one. */
    void sendAll(String topic, List<byte[]> values, Map<String, String> settings) throws Exception {
        try (var producer = producer(settings)) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            for (byte[] value : values) {
                sent.add(producer.send(new ProducerRecord<>(topic, 0, null, value)));
            }
            long first = sent.get(0).get().offset();
            for (int n = 0; n < sent.size(); n++) {
                equal(first + n, sent.get(n).get().offset());
            }
        }
    }

    List<ConsumerRecord<byte[], byte[]>> read(String topic, int partition, long from, int count) {
        return read(topic, partition, from, count, Map.of());
    }

    List<ConsumerRecord<byte[], byte[]>> read(String topic, int partition, long from, int count, Map<String, String> settings) {
        try (var consumer = consumer(settings)) {
            var assigned = new TopicPartition(topic, partition);
            consumer.assign(List.of(assigned));
            consumer.seek(assigned, from);
            var records = poll(consumer, count);
            for (int n = 0; n < count; n++) {
                equal(from + n, records.get(n).offset());
            }
            return records;
        }
    }

    List<ConsumerRecord<byte[], byte[]>> poll(KafkaConsumer<byte[], byte[]> consumer, int count) {
        List<ConsumerRecord<byte[], byte[]>> out = new ArrayList<>();
        long deadline = System.nanoTime() + 30_000_000_000L;
        while (out.size() < count) {
            require(System.nanoTime() < deadline, "only " + out.size() + " of " + count + " records came");
            consumer.poll(Duration.ofSeconds(1)).forEach(out::add);
        }
        return out;
    }

    // -- what is expected ----------------------------------------------------------------------

    static void fails(Class<? extends Exception> expected, Future<?> future) throws Exception {
        try {
            future.get();
        } catch (ExecutionException error) {
            require(expected.isInstance(error.getCause()), expected.getSimpleName() + " expected, not " + error.getCause());
            return;
        }
        throw new AssertionError(expected.getSimpleName() + " expected, but it worked");
    }

    static void same(List<byte[]> expected, List<ConsumerRecord<byte[], byte[]>> records) {
        for (int n = 0; n < expected.size(); n++) {
            require(Arrays.equals(expected.get(n), records.get(n).value()), "record " + n + " is another");
        }
    }

    static void equal(Object expected, Object found) {
        require(expected == null ? found == null : expected.equals(found), expected + " expected, not " + found);
    }

    static void require(boolean holds, String otherwise) {
        if (!holds) {
            throw new AssertionError(otherwise);
        }
    }

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static String text(byte[] raw) {
        return raw == null ? null : new String(raw, StandardCharsets.UTF_8);
    }
}
