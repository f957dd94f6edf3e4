//! The load of the crash suite and its judge: `crash-load ADDRESS TOPIC PARTITIONS SEED`.
//!
//! Produces with acks=all and idempotence for as long as it lives, through every death of the broker, and keeps a
//! ledger of what was acknowledged. The driver (`run.py`) writes commands to standard input, one a line, and
//! gets one line back, which opens with `ok` or `failed`:
//!
//! - `session`: drops the producer with all that it has in flight and makes a new one (another producer id, another codec).
//! - `check`: holds the load, waits until nothing is in flight, and reads every partition from the last check on.
//! - `check-all`: the same from offset 0.
//! - `quit`.
//!
//! What must hold of every partition:
//! - its offsets are 0, 1, 2, ... to its end, without a gap;
//! - every record is one that was sent, byte for byte;
//! - the records of one session are numbered 0, 1, 2, ... in that order: nothing twice, nothing out of place.
//!   (Only what was dropped by `session` unacknowledged may be missing, from the end of its session);
//! - every acknowledged record stands at the offset of its acknowledgement.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

type Failure = Box<dyn std::error::Error>;

const HEADER_BYTES: usize = 20;
const SIZE_LARGE: usize = 700_000;
const IN_FLIGHT_MAX: usize = 2_000;
/// Keeps the logs of a long run small enough to be read again and again.
const BYTES_PER_SECOND: f64 = 24e6;
const SETTLE_TIMEOUT: Duration = Duration::from_secs(90);
const CODECS: [&str; 5] = ["none", "lz4", "zstd", "gzip", "snappy"];

/// What identifies a record. Its bytes follow from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sent {
    partition: u32,
    session: u32,
    number: u32,
    size: u32,
}

impl Sent {
    fn payload(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.size as usize);
        for word in [self.partition, self.session, self.number, self.size] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        let mut random = Random(
            u64::from(self.session) << 40 ^ u64::from(self.partition) << 32 ^ u64::from(self.number) | 1,
        );
        while out.len() < self.size as usize {
            // Half noise, half zeros, so that codecs have work to do and something to gain.
            out.extend_from_slice(&(random.next() & 0xffff_ffff).to_be_bytes());
        }
        out.truncate(self.size as usize);
        out
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_be_bytes(payload.get(at..at + 4)?.try_into().ok()?));
        let sent = Self { partition: word(0)?, session: word(4)?, number: word(8)?, size: word(12)? };
        (sent.size as usize == payload.len() && sent.payload() == payload).then_some(sent)
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }
}

#[derive(Default)]
struct Ledger {
    /// Per partition: offset -> what was acknowledged there.
    acknowledged: HashMap<i32, BTreeMap<i64, Sent>>,
    /// What went wrong in a callback.
    failures: Vec<String>,
}

struct Acknowledgements {
    ledger: Arc<Mutex<Ledger>>,
}

impl ClientContext for Acknowledgements {
    fn error(&self, error: KafkaError, reason: &str) {
        // A broker that is down is what this program is for.
        if matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::Fatal)) {
            self.ledger.lock().unwrap().failures.push(format!("fatal: {reason}"));
        }
    }
}

impl ProducerContext for Acknowledgements {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        let mut ledger = self.ledger.lock().unwrap();
        match result {
            Ok(message) => {
                let partition = ledger.acknowledged.entry(message.partition()).or_default();
                if let Some(before) = partition.insert(message.offset(), *sent) {
                    let offset = message.offset();
                    ledger.failures.push(format!("offset {offset} given to {before:?} and {sent:?}"));
                }
            }
            Err((
                KafkaError::MessageProduction(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight),
                _,
            )) => {}
            Err((error, _)) => ledger.failures.push(format!("{sent:?} was not delivered: {error}")),
        }
    }
}

/// One producer and the thread that feeds it.
struct Session {
    producer: Arc<BaseProducer<Acknowledgements>>,
    held: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Session {
    fn start(run: &Run, number: u32) -> Result<Self, Failure> {
        let context = Acknowledgements { ledger: run.ledger.clone() };
        let producer: BaseProducer<Acknowledgements> = ClientConfig::new()
            .set("bootstrap.servers", &run.address)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "2")
            .set("compression.type", CODECS[number as usize % CODECS.len()])
            .set("message.timeout.ms", "300000")
            .set("message.max.bytes", "1000000")
            .set("reconnect.backoff.ms", "10")
            .set("reconnect.backoff.max.ms", "100")
            .set("retry.backoff.ms", "20")
            .set("log_level", "2")
            .create_with_context(context)?;
        let producer = Arc::new(producer);
        let held = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(AtomicBool::new(false));
        let feeder = Feeder {
            producer: producer.clone(),
            held: held.clone(),
            ended: ended.clone(),
            topic: run.topic.clone(),
            partitions: run.partitions,
            session: number,
            random: Random(run.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(number)) | 1),
        };
        let thread = std::thread::spawn(move || feeder.run());
        Ok(Self { producer, held, ended, thread })
    }

    fn settle(&self) -> Result<(), Failure> {
        self.held.store(true, Ordering::SeqCst);
        // The feeder polls the producer: only wait.
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        while self.producer.in_flight_count() > 0 {
            if Instant::now() > deadline {
                let left = self.producer.in_flight_count();
                return Err(format!("{left} records are still not acknowledged").into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn drop_all(self) -> Result<(), Failure> {
        self.ended.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| "the feeder panicked")?;
        self.producer.purge(PurgeConfig::default().queue().inflight());
        self.producer.flush(Duration::from_secs(10))?;
        Ok(())
    }
}

struct Feeder {
    producer: Arc<BaseProducer<Acknowledgements>>,
    held: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    topic: String,
    partitions: u32,
    session: u32,
    random: Random,
}

impl Feeder {
    fn run(mut self) {
        let mut numbers = vec![0u32; self.partitions as usize];
        let began = Instant::now();
        let mut bytes = 0f64;
        while !self.ended.load(Ordering::SeqCst) {
            let held = self.held.load(Ordering::SeqCst);
            let ahead = bytes > began.elapsed().as_secs_f64() * BYTES_PER_SECOND + 2e6;
            if held || ahead || self.producer.in_flight_count() as usize >= IN_FLIGHT_MAX {
                self.producer.poll(Duration::from_millis(1));
                continue;
            }
            let partition = self.random.below(u64::from(self.partitions)) as u32;
            let sent = Sent {
                partition,
                session: self.session,
                number: numbers[partition as usize],
                size: self.size(),
            };
            bytes += f64::from(sent.size);
            self.send(sent);
            numbers[partition as usize] += 1;
        }
    }

    /// Mostly small; sometimes large enough to go past the journal.
    fn size(&mut self) -> u32 {
        let bound = match self.random.below(1000) {
            0..=4 => SIZE_LARGE,
            5..=99 => 20_000,
            _ => 1_000,
        };
        (HEADER_BYTES as u64 + self.random.below(bound as u64)) as u32
    }

    fn send(&self, sent: Sent) {
        let payload = sent.payload();
        let mut record = BaseRecord::<(), _, _>::with_opaque_to(&self.topic, Box::new(sent))
            .partition(sent.partition as i32)
            .payload(&payload);
        loop {
            match self.producer.send(record) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    self.producer.poll(Duration::from_millis(1));
                }
                // Such as a fatal error of the idempotent producer: the callback has noted it.
                Err((error, _)) => panic!("{sent:?} cannot be sent: {error}"),
            }
        }
    }
}

/// How far a partition was read, and the next number of each session in it.
#[derive(Clone, Default)]
struct Progress {
    next_offset: i64,
    next_number: HashMap<u32, u32>,
}

struct Run {
    address: String,
    topic: String,
    partitions: u32,
    seed: u64,
    ledger: Arc<Mutex<Ledger>>,
}

impl Run {
    /// Reads from `progress` to the ends of the partitions; returns how many records that were.
    fn check(&self, progress: &mut [Progress]) -> Result<u64, Failure> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.address)
            .set("group.id", "none")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("check.crcs", "true")
            .set("fetch.message.max.bytes", "4194304")
            .set("log_level", "2")
            .create()?;
        let mut ends = HashMap::new();
        let mut assignment = TopicPartitionList::new();
        for (partition, so_far) in progress.iter().enumerate() {
            let (start, end) =
                consumer.fetch_watermarks(&self.topic, partition as i32, Duration::from_secs(30))?;
            if start != 0 {
                return Err(format!("partition {partition} starts at {start}").into());
            }
            if end < so_far.next_offset {
                let seen = so_far.next_offset;
                return Err(format!("partition {partition} ends at {end}, was seen up to {seen}").into());
            }
            if end > so_far.next_offset {
                ends.insert(partition as i32, end);
                let from = Offset::Offset(so_far.next_offset);
                assignment.add_partition_offset(&self.topic, partition as i32, from)?;
            }
        }
        consumer.assign(&assignment)?;
        let mut records = 0;
        let mut patience = Instant::now();
        while !ends.is_empty() {
            let Some(message) = consumer.poll(Duration::from_millis(100)) else {
                if patience.elapsed() > Duration::from_secs(30) {
                    return Err(format!("nothing comes any more; missing up to {ends:?}").into());
                }
                continue;
            };
            patience = Instant::now();
            let message = message?;
            let partition = message.partition();
            let state = &mut progress[partition as usize];
            self.judge(partition, message.offset(), message.payload(), state)?;
            records += 1;
            if ends.get(&partition).is_some_and(|&end| state.next_offset >= end) {
                ends.remove(&partition);
            }
        }
        self.all_seen(progress)?;
        Ok(records)
    }

    fn judge(
        &self,
        partition: i32,
        offset: i64,
        payload: Option<&[u8]>,
        state: &mut Progress,
    ) -> Result<(), Failure> {
        let place = format!("partition {partition} offset {offset}");
        if offset != state.next_offset {
            return Err(format!("{place}: {} expected, a gap", state.next_offset).into());
        }
        let Some(sent) = payload.and_then(Sent::parse) else {
            return Err(format!("{place}: not a record that was sent").into());
        };
        if sent.partition as i32 != partition {
            return Err(format!("{place}: {sent:?} belongs elsewhere").into());
        }
        let next = state.next_number.entry(sent.session).or_default();
        if sent.number != *next {
            return Err(format!("{place}: {sent:?}, but number {next} is next").into());
        }
        *next += 1;
        state.next_offset += 1;
        let ledger = self.ledger.lock().unwrap();
        match ledger.acknowledged.get(&partition).and_then(|at| at.get(&offset)) {
            Some(acknowledged) if *acknowledged != sent => {
                Err(format!("{place}: {sent:?}, but {acknowledged:?} was acknowledged there").into())
            }
            _ => Ok(()),
        }
    }

    /// Nothing was acknowledged past what was read.
    fn all_seen(&self, progress: &[Progress]) -> Result<(), Failure> {
        let ledger = self.ledger.lock().unwrap();
        if let Some(failure) = ledger.failures.first() {
            return Err(failure.clone().into());
        }
        for (partition, state) in progress.iter().enumerate() {
            let last = ledger.acknowledged.get(&(partition as i32)).and_then(|at| at.last_key_value());
            if let Some((&offset, sent)) = last
                && offset >= state.next_offset
            {
                let end = state.next_offset;
                let what = format!("partition {partition} ends at {end}; acknowledged: {offset} {sent:?}");
                return Err(what.into());
            }
        }
        Ok(())
    }

    fn acknowledged_count(&self) -> usize {
        self.ledger.lock().unwrap().acknowledged.values().map(BTreeMap::len).sum()
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, topic, partitions, seed] = arguments.as_slice() else {
        return Err("usage: crash-load ADDRESS TOPIC PARTITIONS SEED".into());
    };
    let run = Run {
        address: address.clone(),
        topic: topic.clone(),
        partitions: partitions.parse()?,
        seed: seed.parse()?,
        ledger: Arc::default(),
    };
    let mut sessions = 0;
    let mut session = Session::start(&run, sessions)?;
    let mut progress = vec![Progress::default(); run.partitions as usize];
    for line in std::io::stdin().lock().lines() {
        let outcome = match line?.as_str() {
            "session" => {
                session.drop_all()?;
                sessions += 1;
                session = Session::start(&run, sessions)?;
                Ok(format!("session {sessions}"))
            }
            "check" => check(&run, &session, &mut progress),
            "check-all" => {
                let mut whole = vec![Progress::default(); run.partitions as usize];
                check(&run, &session, &mut whole)
            }
            "quit" => return Ok(()),
            other => Err(format!("unknown command {other}").into()),
        };
        match outcome {
            Ok(text) => println!("ok {text}"),
            Err(error) => println!("failed {error}"),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn check(run: &Run, session: &Session, progress: &mut [Progress]) -> Result<String, Failure> {
    session.settle()?;
    let records = run.check(progress)?;
    session.held.store(false, Ordering::SeqCst);
    Ok(format!("{records} records read, {} acknowledged so far", run.acknowledged_count()))
}
