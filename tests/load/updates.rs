//! Updates of keys on a compacted topic, and the table that must come of them.
//!
//! `update` sends `--count` records over `--keys` keys. Record `n` has the key that a fixed function of `n` names, and `n` in
//! its value, so that `table`, which reads everything back, knows the last value of each key without having been told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{
    Deliveries, Failure, Figures, Options, Poller, Watched, check_delivered, payload, per_record, producer,
};

/// The key of record `n`: SplitMix64.
fn key_of(n: u64, keys: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % keys
}

pub(crate) fn update(mut options: Options) -> Result<Figures, Failure> {
    let topic: String = options.take("topic", None)?;
    let partitions: u64 = options.take("partitions", Some(1))?;
    let count: u64 = options.take("count", None)?;
    let keys: u64 = options.take("keys", None)?;
    let size: usize = options.take("size", Some(100))?;
    let pid: u32 = options.take("pid", Some(0))?;
    let deliveries = Arc::new(Deliveries::new(Duration::ZERO)?);
    let producer = Arc::new(producer(&mut options, deliveries.clone(), 5)?);
    options.done()?;
    let poller = Poller::start(producer.clone());
    let mut value = payload(size.max(8));
    let watched = Watched::begin(pid)?;
    for n in 0..count {
        let key = key_of(n, keys);
        value[..8].copy_from_slice(&n.to_be_bytes());
        let key_bytes = key.to_be_bytes();
        let partition = (key % partitions) as i32;
        let mut record = BaseRecord::with_opaque_to(&topic, 0)
            .partition(partition)
            .key(&key_bytes[..])
            .payload(&value[..]);
        while let Err((error, back)) = producer.send(record) {
            if !matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) {
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_micros(500));
            record = back;
        }
    }
    producer.flush(Duration::from_secs(120))?;
    let mut figures = Figures::default();
    let cpu_s = watched.end(&mut figures)?;
    drop(poller);
    check_delivered(&deliveries, count)?;
    per_record(&mut figures, cpu_s, count, size);
    Ok(figures)
}

/// Reads everything and compares. An error where a last value is missing or wrong, or an offset does not rise;
/// `superseded` counts the records that are there and not the last of their key.
pub(crate) fn table(mut options: Options) -> Result<Figures, Failure> {
    let topic: String = options.take("topic", None)?;
    let partitions: i32 = options.take("partitions", Some(1))?;
    let count: u64 = options.take("count", None)?;
    let keys: u64 = options.take("keys", None)?;
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", options.take::<String>("brokers", None)?)
        .set("group.id", "none")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .create()?;
    options.done()?;
    let mut last: HashMap<u64, u64> = HashMap::new();
    for n in 0..count {
        last.insert(key_of(n, keys), n);
    }
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(&topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let (mut records, mut ended) = (0u64, 0);
    let mut next: HashMap<i32, i64> = HashMap::new();
    let mut found: HashMap<u64, u64> = HashMap::new();
    while ended < partitions {
        let message = match consumer.poll(Duration::from_secs(20)) {
            None => return Err("nothing comes any more".into()),
            Some(Err(KafkaError::PartitionEOF(_))) => {
                ended += 1;
                continue;
            }
            Some(message) => message?,
        };
        let next = next.entry(message.partition()).or_default();
        if message.offset() < *next {
            return Err(format!("offset {} comes where {next} follows", message.offset()).into());
        }
        *next = message.offset() + 1;
        let number = |bytes: Option<&[u8]>| {
            bytes.and_then(|bytes| bytes.first_chunk::<8>()).map(|bytes| u64::from_be_bytes(*bytes))
        };
        let key = number(message.key()).ok_or("a record without a key of ours")?;
        // What closes the last segment has a key past all others.
        if key < keys {
            found.insert(key, number(message.payload()).ok_or("a record without a value of ours")?);
            records += 1;
        }
    }
    let wrong = last.iter().filter(|(key, n)| found.get(key) != Some(n)).count();
    if wrong > 0 || found.len() != last.len() {
        return Err(format!("{wrong} of {} keys have another last value, or none", last.len()).into());
    }
    let mut figures = Figures::default();
    figures.set("records", records as f64);
    figures.set("keys", last.len() as f64);
    figures.set("superseded", (records - last.len() as u64) as f64);
    Ok(figures)
}
