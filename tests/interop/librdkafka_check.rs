//! librdkafka through the `rdkafka` crate, against a running broker: `librdkafka-check ADDRESS PREFIX`.
//! Each check works on a topic of its own that begins with PREFIX. The first that fails ends the program with
//! its message; what passed is printed.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigSource, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

type Failure = Box<dyn std::error::Error>;

const TIMEOUT: Duration = Duration::from_secs(30);
const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

struct Checks {
    address: String,
    prefix: String,
    admin: AdminClient<DefaultClientContext>,
}

/// Runs a future of the client to its end; there is no runtime here, and none is needed.
fn wait<T>(future: impl Future<Output = T>) -> T {
    futures_executor::block_on(future)
}

macro_rules! ensure {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err(format!($($message)+).into());
        }
    };
}

impl Checks {
    fn new(address: &str, prefix: &str) -> Result<Self, Failure> {
        let admin = ClientConfig::new().set("bootstrap.servers", address).create()?;
        Ok(Self { address: address.to_owned(), prefix: prefix.to_owned(), admin })
    }

    fn topic(&self, name: &str, partitions: i32) -> Result<String, Failure> {
        let topic = format!("{}-{name}", self.prefix);
        let new = NewTopic::new(&topic, partitions, TopicReplication::Fixed(1));
        let results = wait(self.admin.create_topics([&new], &AdminOptions::new()))?;
        ensure!(results == [Ok(topic.clone())], "create {topic}: {results:?}");
        Ok(topic)
    }

    fn producer(&self, settings: &[(&str, &str)]) -> Result<FutureProducer, Failure> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address).set("message.timeout.ms", "20000");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        Ok(config.create()?)
    }

    fn consumer(&self) -> Result<BaseConsumer, Failure> {
        Ok(ClientConfig::new()
            .set("bootstrap.servers", &self.address)
            .set("group.id", "none")
            .set("enable.auto.commit", "false")
            .set("check.crcs", "true")
            .create()?)
    }

    /// Reads `count` records of partition 0 from `from`.
    fn read(&self, topic: &str, from: Offset, count: usize) -> Result<Vec<OwnedMessage>, Failure> {
        let consumer = self.consumer()?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, 0, from)?;
        consumer.assign(&assignment)?;
        let mut out = Vec::new();
        while out.len() < count {
            let message =
                consumer.poll(TIMEOUT).ok_or_else(|| format!("{topic}: only {} came", out.len()))??;
            out.push(message.detach());
        }
        Ok(out)
    }

    fn codecs(&self) -> Result<(), Failure> {
        for codec in CODECS {
            let topic = self.topic(&format!("codec-{codec}"), 1)?;
            let producer = self.producer(&[("compression.type", codec), ("linger.ms", "50")])?;
            let values: Vec<String> = (0..500).map(|n| format!("{codec} {n} {}", "x".repeat(n))).collect();
            let sent: Vec<_> = values
                .iter()
                .map(|value| {
                    producer.send_result(FutureRecord::<(), _>::to(&topic).partition(0).payload(value))
                })
                .collect();
            for (number, report) in sent.into_iter().enumerate() {
                let delivery = wait(report.map_err(|(error, _)| error)?)?.map_err(|(error, _)| error)?;
                ensure!(delivery.offset == number as i64, "{codec}: record {number} at {}", delivery.offset);
            }
            for (message, value) in self.read(&topic, Offset::Beginning, 500)?.iter().zip(&values) {
                ensure!(message.payload() == Some(value.as_bytes()), "{codec}: offset {}", message.offset());
            }
        }
        Ok(())
    }

    fn acks_and_idempotence(&self) -> Result<(), Failure> {
        let topic = self.topic("acks", 1)?;
        let settings: [&[(&str, &str)]; 4] =
            [&[("acks", "0")], &[("acks", "1")], &[("acks", "all")], &[("enable.idempotence", "true")]];
        for setting in settings {
            let producer = self.producer(setting)?;
            for number in 0..100 {
                let value = format!("{setting:?} {number}");
                let record = FutureRecord::<(), _>::to(&topic).partition(0).payload(&value);
                wait(producer.send(record, TIMEOUT)).map_err(|(error, _)| error)?;
            }
        }
        let messages = self.read(&topic, Offset::Beginning, 400)?;
        for (number, message) in messages.iter().enumerate() {
            ensure!(message.offset() == number as i64, "offset {} at place {number}", message.offset());
        }
        Ok(())
    }

    fn keys_headers_timestamps(&self) -> Result<(), Failure> {
        let topic = self.topic("parts", 1)?;
        let producer = self.producer(&[])?;
        let headers = OwnedHeaders::new()
            .insert(Header { key: "a", value: Some("1") })
            .insert(Header { key: "empty", value: Some("") })
            .insert(Header::<&str> { key: "none", value: None });
        let full = FutureRecord::to(&topic)
            .partition(0)
            .key("key")
            .payload("value")
            .timestamp(1_700_000_000_123)
            .headers(headers.clone());
        wait(producer.send(full, TIMEOUT)).map_err(|(error, _)| error)?;
        let bare = FutureRecord::<(), ()>::to(&topic).partition(0);
        wait(producer.send(bare, TIMEOUT)).map_err(|(error, _)| error)?;
        let messages = self.read(&topic, Offset::Beginning, 2)?;
        let [full, bare] = messages.as_slice() else { unreachable!("two were asked for") };
        ensure!(full.key() == Some(b"key") && full.payload() == Some(b"value"), "{full:?}");
        ensure!(full.timestamp().to_millis() == Some(1_700_000_000_123), "{full:?}");
        let found = full.headers().ok_or("no headers")?;
        let same = (0..3).all(|at| found.get(at) == headers.as_borrowed().get(at));
        ensure!(found.count() == 3 && same, "{found:?}");
        ensure!(bare.key().is_none() && bare.payload().is_none(), "{bare:?}");
        Ok(())
    }

    fn offsets_and_times(&self) -> Result<(), Failure> {
        let topic = self.topic("times", 1)?;
        let producer = self.producer(&[])?;
        const FIRST_MS: i64 = 1_700_000_000_000;
        for number in 0..100i64 {
            let value = number.to_string();
            let record = FutureRecord::<(), _>::to(&topic)
                .partition(0)
                .payload(&value)
                .timestamp(FIRST_MS + number * 1000);
            wait(producer.send(record, TIMEOUT)).map_err(|(error, _)| error)?;
        }
        let consumer = self.consumer()?;
        ensure!(consumer.fetch_watermarks(&topic, 0, TIMEOUT)? == (0, 100), "watermarks");
        for (time, expected) in [
            (FIRST_MS - 5, Offset::Offset(0)),
            (FIRST_MS + 41_500, Offset::Offset(42)),
            (FIRST_MS + 99_000, Offset::Offset(99)),
            (FIRST_MS + 99_001, Offset::End),
        ] {
            let mut asked = TopicPartitionList::new();
            asked.add_partition_offset(&topic, 0, Offset::Offset(time))?;
            let found = consumer.offsets_for_times(asked, TIMEOUT)?.elements()[0].offset();
            ensure!(found == expected, "time {time}: {found:?}, not {expected:?}");
        }
        let tail = self.read(&topic, Offset::OffsetTail(10), 10)?;
        ensure!(tail[0].offset() == 90, "the tail starts at {}", tail[0].offset());
        ensure!(self.read(&topic, Offset::Offset(37), 1)?[0].payload() == Some(b"37"), "offset 37");
        Ok(())
    }

    fn out_of_range(&self) -> Result<(), Failure> {
        let topic = self.topic("range", 1)?;
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.address)
            .set("group.id", "none")
            .set("auto.offset.reset", "error")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&topic, 0, Offset::Offset(1000))?;
        consumer.assign(&assignment)?;
        match consumer.poll(TIMEOUT) {
            Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => {
                Ok(())
            }
            other => Err(format!("offset 1000 of an empty partition: {other:?}").into()),
        }
    }

    fn large_records(&self) -> Result<(), Failure> {
        let topic = format!("{}-large", self.prefix);
        let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "10000000");
        let created = wait(self.admin.create_topics([&new], &AdminOptions::new()))?;
        ensure!(created[0].is_ok(), "{created:?}");
        let producer = self.producer(&[("message.max.bytes", "12000000")])?;
        for size in [1, 4095, 4096, 4097, 1_000_000, 9_000_000] {
            let value: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
            let record = FutureRecord::<(), _>::to(&topic).partition(0).payload(&value);
            let delivery = wait(producer.send(record, TIMEOUT)).map_err(|(error, _)| error)?;
            let back = self.read(&topic, Offset::Offset(delivery.offset), 1)?;
            ensure!(back[0].payload() == Some(&value), "{size} bytes came back otherwise");
        }
        let value = vec![0u8; 11_000_000];
        let record = FutureRecord::<(), _>::to(&topic).partition(0).payload(&value);
        match wait(producer.send(record, TIMEOUT)) {
            Err((error, _)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                Ok(())
            }
            other => Err(format!("a record above max.message.bytes: {other:?}").into()),
        }
    }

    fn administration(&self) -> Result<(), Failure> {
        let topic = self.topic("admin", 2)?;
        let options = AdminOptions::new();
        let again = NewTopic::new(&topic, 2, TopicReplication::Fixed(1));
        let results = wait(self.admin.create_topics([&again], &options))?;
        let expected = Err((topic.clone(), RDKafkaErrorCode::TopicAlreadyExists));
        ensure!(results == [expected], "create again: {results:?}");

        let results = wait(self.admin.create_partitions([&NewPartitions::new(&topic, 5)], &options))?;
        ensure!(results == [Ok(topic.clone())], "create partitions: {results:?}");
        let metadata = self.consumer()?.fetch_metadata(Some(&topic), TIMEOUT)?;
        let partitions = metadata.topics()[0].partitions();
        ensure!(partitions.len() == 5, "{} partitions", partitions.len());
        ensure!(partitions.iter().all(|one| one.leader() == metadata.brokers()[0].id()), "leaders");

        let resource = ResourceSpecifier::Topic(&topic);
        let described = wait(self.admin.describe_configs([&resource], &options))?;
        let config = described[0].as_ref().map_err(|code| format!("describe: {code}"))?;
        let values: HashMap<_, _> = config.entry_map();
        let retention = values.get("retention.ms").ok_or("no retention.ms")?;
        ensure!(retention.value.as_deref() == Some("604800000"), "{retention:?}");
        ensure!(retention.source == ConfigSource::Default, "{retention:?}");
        ensure!(values.contains_key("cleanup.policy"), "no cleanup.policy");

        let results = wait(self.admin.delete_topics(&[&topic], &options))?;
        ensure!(results == [Ok(topic.clone())], "delete: {results:?}");
        let results = wait(self.admin.delete_topics(&[&topic], &options))?;
        let expected = Err((topic, RDKafkaErrorCode::UnknownTopicOrPartition));
        ensure!(results == [expected], "delete again: {results:?}");
        Ok(())
    }

    fn auto_create(&self) -> Result<(), Failure> {
        let topic = format!("{}-auto", self.prefix);
        let producer = self.producer(&[])?;
        let record = FutureRecord::<(), _>::to(&topic).payload("first");
        let delivery = wait(producer.send(record, TIMEOUT)).map_err(|(error, _)| error)?;
        ensure!(delivery.offset == 0, "offset {}", delivery.offset);
        ensure!(self.read(&topic, Offset::Beginning, 1)?[0].payload() == Some(b"first"), "{topic}");
        Ok(())
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, prefix] = arguments.as_slice() else {
        return Err("usage: librdkafka-check ADDRESS PREFIX".into());
    };
    let checks = Checks::new(address, prefix)?;
    type Check = fn(&Checks) -> Result<(), Failure>;
    let all: [(&str, Check); 8] = [
        ("codecs", Checks::codecs),
        ("acks_and_idempotence", Checks::acks_and_idempotence),
        ("keys_headers_timestamps", Checks::keys_headers_timestamps),
        ("offsets_and_times", Checks::offsets_and_times),
        ("out_of_range", Checks::out_of_range),
        ("large_records", Checks::large_records),
        ("administration", Checks::administration),
        ("auto_create", Checks::auto_create),
    ];
    for (name, check) in all {
        check(&checks).map_err(|error| format!("{name}: {error}"))?;
        println!("{name} passed");
    }
    Ok(())
}
