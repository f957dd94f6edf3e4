//! A small load generator for side-by-side measurements: `load MODE --brokers HOST:PORT --topic NAME ...`.
//!
//! One run is one figure set, printed as one line of JSON. With `--pid` the CPU time (user and system) and the
//! resident size of that process, the broker, are taken before and after. `compare.py` beside this file
//! starts brokers, creates topics, and runs the modes by turns.
//!
//! | mode | does |
//! |---|---|
//! | `produce` | librdkafka, as fast as it goes: `--size`, `--count`, `--partitions`, `--linger-ms` |
//! | `requests` | by hand, one record in each request: `--connections`, `--depth` requests in flight on each |
//! | `latency` | librdkafka, open loop at `--rate` over `--partitions` for `--seconds` after `--warmup-seconds`; latency counts from the time at which the record was due. `--raw-disk FOLDER`: beside it, what a bare synchronous write takes there |
//! | `update` | librdkafka, `--count` updates of `--keys` keys |
//! | `table` | reads all of these back: each key must have its last value; says how many older ones are left |
//! | `fetch` | librdkafka, the last `--count` records of every partition, `--repeat` times |

mod raw_disk;
mod requests;
mod updates;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use raw_disk::RawDisk;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// `--name value` pairs; a name that no mode asked for is an error.
pub(crate) struct Options {
    values: HashMap<String, String>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let mut values = HashMap::new();
        for pair in arguments.chunks(2) {
            let [name, value] = pair else {
                return Err(format!("{pair:?} needs a value").into());
            };
            let name = name.strip_prefix("--").ok_or_else(|| format!("{name} is not an option"))?;
            values.insert(name.to_owned(), value.clone());
        }
        Ok(Self { values })
    }

    pub(crate) fn take<T: std::str::FromStr>(
        &mut self,
        name: &str,
        default: Option<T>,
    ) -> Result<T, Failure> {
        match (self.values.remove(name), default) {
            (Some(value), _) => {
                value.parse().map_err(|_| format!("--{name} {value}: not a valid value").into())
            }
            (None, Some(default)) => Ok(default),
            (None, None) => Err(format!("--{name} is missing").into()),
        }
    }

    pub(crate) fn done(&self) -> Result<(), Failure> {
        match self.values.keys().next() {
            Some(name) => Err(format!("--{name} is not an option of this mode").into()),
            None => Ok(()),
        }
    }
}

/// What was measured, in the order in which it is printed.
#[derive(Default)]
pub(crate) struct Figures(Vec<(&'static str, f64)>);

impl Figures {
    pub(crate) fn set(&mut self, name: &'static str, value: f64) {
        self.0.push((name, value));
    }

    fn json(&self) -> String {
        let fields: Vec<String> =
            self.0.iter().map(|(name, value)| format!("\"{name}\": {value:.6}")).collect();
        format!("{{{}}}", fields.join(", "))
    }
}

/// The broker's process, seen through /proc.
pub(crate) struct Watched {
    pid: u32,
    cpu_s: f64,
    began: Instant,
}

impl Watched {
    pub(crate) fn begin(pid: u32) -> Result<Self, Failure> {
        Ok(Self { pid, cpu_s: cpu_s(pid)?, began: Instant::now() })
    }

    /// CPU seconds since `begin`; sets them, the elapsed time and the resident size.
    pub(crate) fn end(self, figures: &mut Figures) -> Result<f64, Failure> {
        let used = cpu_s(self.pid)? - self.cpu_s;
        figures.set("elapsed_s", self.began.elapsed().as_secs_f64());
        figures.set("broker_cpu_s", used);
        figures.set("broker_rss_mib", rss_mib(self.pid)?);
        Ok(used)
    }
}

fn cpu_s(pid: u32) -> Result<f64, Failure> {
    if pid == 0 {
        return Ok(0.0);
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').ok_or("no command name in /proc/PID/stat")?.1;
    let ticks: Result<Vec<f64>, _> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect();
    // USER_HZ is 100 on every Linux that this runs on.
    Ok(ticks?.iter().sum::<f64>() / 100.0)
}

fn rss_mib(pid: u32) -> Result<f64, Failure> {
    if pid == 0 {
        return Ok(0.0);
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}

/// What the delivery reports add up to. `opaque` of a record is when it was due, in microseconds of the run.
struct Deliveries {
    began: Instant,
    /// Records due before this time, in microseconds of the run, are warm-up.
    counted_from_us: u64,
    latencies_us: Mutex<Histogram<u64>>,
    delivered: AtomicU64,
    failed: AtomicU64,
}

impl Deliveries {
    fn new(counted_from: Duration) -> Result<Self, Failure> {
        Ok(Self {
            began: Instant::now(),
            counted_from_us: counted_from.as_micros() as u64,
            latencies_us: Mutex::new(Histogram::new_with_bounds(1, 600_000_000, 3)?),
            delivered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }
}

struct Reports(Arc<Deliveries>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, due_us: usize) {
        if let Err((error, _)) = result {
            if self.0.failed.fetch_add(1, Ordering::Relaxed) == 0 {
                eprintln!("a record was not delivered: {error}");
            }
            return;
        }
        self.0.delivered.fetch_add(1, Ordering::Relaxed);
        let due_us = due_us as u64;
        if due_us >= self.0.counted_from_us {
            let latency = self.0.now_us().saturating_sub(due_us).max(1);
            self.0.latencies_us.lock().expect("not poisoned").saturating_record(latency);
        }
    }
}

fn producer(
    options: &mut Options,
    deliveries: Arc<Deliveries>,
    linger_ms: u32,
) -> Result<BaseProducer<Reports>, Failure> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", options.take::<String>("brokers", None)?)
        .set("acks", options.take::<String>("acks", Some("all".into()))?)
        .set("enable.idempotence", options.take::<String>("idempotence", Some("false".into()))?)
        .set("compression.type", options.take::<String>("compression", Some("none".into()))?)
        .set("linger.ms", linger_ms.to_string())
        .set("socket.nagle.disable", "true")
        .set("queue.buffering.max.messages", "500000")
        .set("queue.buffering.max.kbytes", "524288")
        .set("message.timeout.ms", "120000");
    Ok(config.create_with_context(Reports(deliveries))?)
}

/// Serves delivery reports on a thread of its own until dropped.
struct Poller {
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Poller {
    fn start(producer: Arc<BaseProducer<Reports>>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let seen = ended.clone();
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                producer.poll(Duration::from_millis(50));
            }
        });
        Self { ended, thread: Some(thread) }
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the polling thread does not panic");
        }
    }
}

fn send(
    producer: &BaseProducer<Reports>,
    topic: &str,
    partition: i32,
    payload: &[u8],
    due_us: u64,
) -> Result<(), Failure> {
    let mut record =
        BaseRecord::<(), _, _>::with_opaque_to(topic, due_us as usize).partition(partition).payload(payload);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                std::thread::sleep(Duration::from_micros(500));
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
}

/// Bytes that do not compress to nothing.
pub(crate) fn payload(size: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as u8
    };
    (0..size).map(|_| next()).collect()
}

fn produce(mut options: Options) -> Result<Figures, Failure> {
    let topic: String = options.take("topic", None)?;
    let partitions: i32 = options.take("partitions", Some(4))?;
    let size: usize = options.take("size", Some(1024))?;
    let count: u64 = options.take("count", None)?;
    let pid: u32 = options.take("pid", Some(0))?;
    let linger_ms = options.take("linger-ms", Some(5))?;
    let deliveries = Arc::new(Deliveries::new(Duration::ZERO)?);
    let producer = Arc::new(producer(&mut options, deliveries.clone(), linger_ms)?);
    options.done()?;
    let poller = Poller::start(producer.clone());
    let payload = payload(size);

    let watched = Watched::begin(pid)?;
    for number in 0..count {
        send(&producer, &topic, (number % partitions as u64) as i32, &payload, 0)?;
    }
    producer.flush(Duration::from_secs(120))?;
    let mut figures = Figures::default();
    let cpu_s = watched.end(&mut figures)?;
    drop(poller);
    check_delivered(&deliveries, count)?;
    per_record(&mut figures, cpu_s, count, size);
    Ok(figures)
}

pub(crate) fn per_record(figures: &mut Figures, cpu_s: f64, count: u64, size: usize) {
    figures.set("records", count as f64);
    figures.set("cpu_s_per_gb", cpu_s / (count as f64 * size as f64 / 1e9));
    figures.set("cpu_us_per_record", cpu_s * 1e6 / count as f64);
}

fn check_delivered(deliveries: &Deliveries, count: u64) -> Result<(), Failure> {
    let delivered = deliveries.delivered.load(Ordering::SeqCst);
    let failed = deliveries.failed.load(Ordering::SeqCst);
    if delivered == count {
        return Ok(());
    }
    Err(format!("{delivered} of {count} records were delivered, {failed} failed").into())
}

fn latency(mut options: Options) -> Result<Figures, Failure> {
    let topic: String = options.take("topic", None)?;
    let partitions: u64 = options.take("partitions", None)?;
    let size: usize = options.take("size", Some(1024))?;
    let rate: u64 = options.take("rate", None)?;
    let seconds: u64 = options.take("seconds", Some(20))?;
    let warmup: u64 = options.take("warmup-seconds", Some(5))?;
    let pid: u32 = options.take("pid", Some(0))?;
    let linger_ms = options.take("linger-ms", Some(0))?;
    let raw_disk: PathBuf = options.take("raw-disk", Some(PathBuf::new()))?;
    let deliveries = Arc::new(Deliveries::new(Duration::from_secs(warmup))?);
    let producer = Arc::new(producer(&mut options, deliveries.clone(), linger_ms)?);
    options.done()?;
    let poller = Poller::start(producer.clone());
    let payload = payload(size);

    let count = rate * (seconds + warmup);
    let raw_disk = (!raw_disk.as_os_str().is_empty()).then(|| RawDisk::start(&raw_disk)).transpose()?;
    let watched = Watched::begin(pid)?;
    for number in 0..count {
        let due_us = number * 1_000_000 / rate;
        let now_us = deliveries.now_us();
        if due_us > now_us {
            std::thread::sleep(Duration::from_micros(due_us - now_us));
        }
        send(&producer, &topic, (number % partitions) as i32, &payload, due_us)?;
    }
    let behind_ms = deliveries.now_us() as f64 / 1e3 - (seconds + warmup) as f64 * 1e3;
    producer.flush(Duration::from_secs(120))?;
    let mut figures = Figures::default();
    let cpu_s = watched.end(&mut figures)?;
    drop(poller);
    check_delivered(&deliveries, count)?;
    per_record(&mut figures, cpu_s, count, size);
    figures.set("behind_ms", behind_ms.max(0.0));
    let latencies = deliveries.latencies_us.lock().expect("not poisoned");
    for (name, percentile) in [("p50_ms", 50.0), ("p90_ms", 90.0), ("p99_ms", 99.0), ("p99_9_ms", 99.9)] {
        figures.set(name, latencies.value_at_percentile(percentile) as f64 / 1e3);
    }
    figures.set("max_ms", latencies.max() as f64 / 1e3);
    if let Some(raw_disk) = raw_disk {
        raw_disk.end(&mut figures)?;
    }
    Ok(figures)
}

fn fetch(mut options: Options) -> Result<Figures, Failure> {
    let brokers: String = options.take("brokers", None)?;
    let topic: String = options.take("topic", None)?;
    let partitions: i32 = options.take("partitions", Some(4))?;
    let count: i64 = options.take("count", None)?;
    let repeat: u32 = options.take("repeat", Some(1))?;
    let pid: u32 = options.take("pid", Some(0))?;
    options.done()?;
    let mut figures = Figures::default();
    let (mut records, mut bytes) = (0u64, 0u64);
    let watched = Watched::begin(pid)?;
    for _ in 0..repeat {
        let (more_records, more_bytes) = fetch_tail(&brokers, &topic, partitions, count)?;
        records += more_records;
        bytes += more_bytes;
    }
    let cpu_s = watched.end(&mut figures)?;
    figures.set("records", records as f64);
    figures.set("cpu_s_per_gb", cpu_s / (bytes as f64 / 1e9));
    figures.set("cpu_us_per_record", cpu_s * 1e6 / records as f64);
    Ok(figures)
}

fn fetch_tail(brokers: &str, topic: &str, partitions: i32, count: i64) -> Result<(u64, u64), Failure> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "none")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .create()?;
    let mut assignment = TopicPartitionList::new();
    let mut left: HashMap<i32, i64> = HashMap::new();
    for partition in 0..partitions {
        let (start, end) = consumer.fetch_watermarks(topic, partition, Duration::from_secs(10))?;
        let from = (end - count).max(start);
        assignment.add_partition_offset(topic, partition, Offset::Offset(from))?;
        if end > from {
            left.insert(partition, end);
        }
    }
    consumer.assign(&assignment)?;
    let (mut records, mut bytes) = (0, 0);
    while !left.is_empty() {
        let Some(message) = consumer.poll(Duration::from_secs(20)) else {
            return Err(format!("nothing comes any more; missing up to {left:?}").into());
        };
        let message = message?;
        records += 1;
        bytes += message.payload_len() as u64;
        if left.get(&message.partition()).is_some_and(|&end| message.offset() + 1 >= end) {
            left.remove(&message.partition());
        }
    }
    Ok((records, bytes))
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((mode, options)) = arguments.split_first() else {
        return Err(
            "usage: load produce|requests|latency|fetch|update|table --brokers HOST:PORT --topic NAME ..."
                .into(),
        );
    };
    let options = Options::parse(options)?;
    let figures = match mode.as_str() {
        "produce" => produce(options)?,
        "requests" => requests::run(options)?,
        "latency" => latency(options)?,
        "fetch" => fetch(options)?,
        "update" => updates::update(options)?,
        "table" => updates::table(options)?,
        other => return Err(format!("{other} is not a mode").into()),
    };
    println!("{}", figures.json());
    Ok(())
}
