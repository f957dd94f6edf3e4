//! A member of a consumer group by librdkafka: `member ADDRESS GROUP TOPIC PROTOCOL SESSION_MS [INSTANCE_ID]`.
//! What it prints, and what is asked of it, is said in harness/members.py.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

type Failure = Box<dyn std::error::Error>;

const COMMIT_INTERVAL: Duration = Duration::from_millis(200);

static LEAVING: AtomicBool = AtomicBool::new(false);

fn say(event: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Whoever reads this may be gone: then there is nobody to tell.
    let _ = writeln!(std::io::stdout(), "{} {event}", now.as_micros());
}

fn say_partitions(event: &str, list: &TopicPartitionList) {
    let partitions: Vec<String> = list.elements().iter().map(|one| one.partition().to_string()).collect();
    say(&format!("{event} {}", partitions.join(",")));
}

/// Positions that were processed and not committed yet, by partition.
struct Positions {
    topic: String,
    uncommitted: Mutex<HashMap<i32, i64>>,
}

impl Positions {
    fn processed(&self, partition: i32, offset: i64) {
        self.uncommitted.lock().expect("nobody panics").insert(partition, offset + 1);
    }

    /// What fails is tried again with the next call, or by who owns the partition then.
    fn commit(&self, consumer: &BaseConsumer<Positions>) -> Result<(), KafkaError> {
        let mut uncommitted = self.uncommitted.lock().expect("nobody panics");
        if uncommitted.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        for (partition, offset) in uncommitted.iter() {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset))?;
        }
        match consumer.commit(&list, CommitMode::Sync) {
            Ok(()) => {
                for (partition, offset) in uncommitted.drain() {
                    say(&format!("committed {partition} {offset}"));
                }
            }
            Err(refused) => say(&format!("refused {refused}")),
        }
        Ok(())
    }
}

impl ClientContext for Positions {}

impl ConsumerContext for Positions {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => say_partitions("assigned", list),
            Rebalance::Revoke(list) => {
                let lost = consumer.assignment_lost();
                if !lost && let Err(error) = self.commit(consumer) {
                    say(&format!("error {error}"));
                }
                let mut uncommitted = self.uncommitted.lock().expect("nobody panics");
                for one in list.elements() {
                    uncommitted.remove(&one.partition());
                }
                say_partitions(if lost { "lost" } else { "revoked" }, list);
            }
            Rebalance::Error(error) => say(&format!("error {error}")),
        }
    }
}

fn settings(arguments: &[String]) -> Result<ClientConfig, Failure> {
    let [address, group, _, protocol, session_ms, rest @ ..] = arguments else {
        return Err("usage: member ADDRESS GROUP TOPIC PROTOCOL SESSION_MS [INSTANCE_ID]".into());
    };
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", address)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("topic.metadata.refresh.interval.ms", "5000")
        .set("reconnect.backoff.max.ms", "200");
    if protocol == "consumer" {
        config.set("group.protocol", "consumer");
    } else {
        config
            .set("partition.assignment.strategy", protocol)
            .set("session.timeout.ms", session_ms)
            .set("heartbeat.interval.ms", "500");
    }
    if let [instance_id] = rest {
        config.set("group.instance.id", instance_id);
    }
    Ok(config)
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let config = settings(&arguments)?;
    ctrlc::set_handler(|| LEAVING.store(true, Ordering::Relaxed))?;
    let topic = arguments[2].clone();
    let context = Positions { topic: topic.clone(), uncommitted: Mutex::default() };
    let consumer: BaseConsumer<Positions> = config.create_with_context(context)?;
    consumer.subscribe(&[&topic])?;
    let mut committed_at = Instant::now();
    while !LEAVING.load(Ordering::Relaxed) {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                say(&format!("record {} {}", message.partition(), message.offset()));
                consumer.context().processed(message.partition(), message.offset());
            }
            Some(Err(error)) => say(&format!("error {error}")),
            None => {}
        }
        if committed_at.elapsed() >= COMMIT_INTERVAL {
            consumer.context().commit(&consumer)?;
            committed_at = Instant::now();
        }
    }
    consumer.context().commit(&consumer)?;
    // Dropping it leaves the group.
    drop(consumer);
    say("left");
    Ok(())
}
