//! Producers through librdkafka: the same schedule, records and histograms as [`super::lane`], so that what differs is the
//! library.
//!
//! ```text
//!   schedule ──due──► send ──► queue of the library ──► its broker threads ══► broker
//!                                                                                │
//!   counted, with the time since it was due ◄── delivery ◄── its poll thread ◄───┘
//! ```
//!
//! A thread of ours hands over what is due, for all of its lanes; each lane is a client of the library with a poll thread,
//! in which deliveries are timed. What the broker holds up waits in the library's queue, not in the schedule, up to
//! [`QUEUED_MAX`] records; the lateness of a record is that of its handing over.
//!
//! As with lanes of our own nothing is sent again (`retries=0`), unless it is idempotent, which the library does not
//! offer without. It sends one batch in each request.

use super::draw::{Draw, Drawn, write_key};
use super::effort::{Gauge, Sample};
use super::tally::Amount;
use super::{BACKLOG_TIMEOUT, Control, Effort, LanePlan, Origin, Place, Plan, Report, Tally};
use crate::failure::Failure;
use crate::payload::{Header, Values};
use crate::scenario::{Acks, Load, Partitioning, Producers, Scenario};
use crate::schedule::Schedule;
use crate::sequence::Sequences;
use flumen_wire::ErrorCode;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::statistics::Statistics;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// Records of a lane that the library may have, as by its own default.
const QUEUED_MAX: u64 = 100_000;
/// And bytes of them.
const QUEUED_BYTES_MAX: u64 = 256 << 20;
/// Records that a lane hands over before another gets its turn.
const TURN_RECORDS: usize = 1_000;
/// The longest sleep: the end may have been moved.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// How often the library tells how many requests it has sent.
const STATISTICS_MS: u32 = 1_000;
const SECOND_NS: u64 = 1_000_000_000;
/// Beside the value: key, and what a batch takes.
const MESSAGE_ROOM: usize = 4 << 10;

/// With its version, as results call it.
pub(crate) fn name() -> String {
    format!("librdkafka {}", rdkafka::util::get_rdkafka_version().1)
}

/// Names the settings that the library has no counterpart of.
pub(crate) fn check(scenario: &Scenario) -> Result<(), Failure> {
    for (number, phase) in scenario.phases.iter().enumerate() {
        for (index, one) in phase.producers.iter().enumerate() {
            let refused = |key: &str, why: &str| {
                let place = format!("phases.{number}.producers.{index}.{key}");
                Err(Failure::Usage(format!("scenario {}: {place}: {why}", scenario.name)))
            };
            if one.request_batches > 1 {
                return refused("request_batches", "librdkafka sends one batch in each request: 0 or 1");
            }
            if one.request_bytes < one.batch_bytes {
                return refused("request_bytes", "librdkafka has no such bound: give at least batch_bytes");
            }
            if one.batch_records > 1_000_000 {
                return refused("batch_records", "librdkafka puts at most 1,000,000 records into a batch");
            }
        }
    }
    Ok(())
}

/// The lanes of one thread, to their end.
pub(crate) fn run_producers(
    plan: Arc<Plan>,
    control: Arc<Control>,
    lanes: Vec<LanePlan>,
    reports: &Sender<Report>,
) {
    if let Err(failure) = carry_out(plan, control, lanes, reports) {
        let _ = reports.send(Report::Failed(failure));
    }
}

fn carry_out(
    plan: Arc<Plan>,
    control: Arc<Control>,
    lanes: Vec<LanePlan>,
    reports: &Sender<Report>,
) -> Result<(), Failure> {
    let shared = Arc::new(Shared {
        tallies: Mutex::new(vec![Tally::default(); plan.parts.len()]),
        sender: std::thread::current(),
        waits_for_room: AtomicBool::new(false),
        plan,
        control,
    });
    let mut opened = Vec::new();
    for lane in lanes {
        opened.push(Lane::open(&shared, lane)?);
    }
    let _ = reports.send(Report::Ready);
    while shared.control.start_at.get().is_none() && !shared.control.is_abandoned() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut intervals = Intervals { shared: &shared, reports, second: 0, gauges: HashMap::new() };
    let unsent = send_all(&shared, &mut opened, &mut intervals);
    let mut acknowledged: BTreeMap<Origin, Sequences> = BTreeMap::new();
    for lane in &opened {
        lane.gather(&mut acknowledged);
    }
    let _ = reports.send(Report::Produced { acknowledged, unsent });
    intervals.tell();
    let _ = reports.send(Report::Done { received: Vec::new(), effort: intervals.effort() });
    Ok(())
}

/// Hands over what is due until the end, and waits for what is on its way. How many records that were due were not sent.
fn send_all(shared: &Shared, lanes: &mut [Lane], intervals: &mut Intervals<'_>) -> u64 {
    let control = &shared.control;
    loop {
        intervals.look();
        let now = Instant::now();
        let mut next = now + SLEEP_MAX.min(intervals.left(now));
        shared.waits_for_room.store(false, Ordering::SeqCst);
        let mut has_more = false;
        for lane in lanes.iter_mut() {
            match lane.hand_over(now) {
                Next::At(due) => {
                    has_more = true;
                    next = next.min(due);
                }
                // Whoever makes room wakes this thread; it may have done so already.
                Next::Room => {
                    has_more = true;
                    shared.waits_for_room.store(true, Ordering::SeqCst);
                    if lane.delivery.has_room() {
                        next = now;
                    }
                }
                Next::Never => {}
            }
        }
        if !has_more || control.is_abandoned() {
            break;
        }
        std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
    }
    let end_ns = control.end_ns();
    let latest = end_ns + BACKLOG_TIMEOUT.max(shared.plan.request_timeout).as_nanos() as u64;
    let is_open = |lane: &Lane| lane.delivery.queued.load(Ordering::SeqCst) > 0;
    while lanes.iter().any(is_open) && shared.ns(Instant::now()) < latest && !control.is_abandoned() {
        intervals.look();
        shared.waits_for_room.store(true, Ordering::SeqCst);
        if lanes.iter().any(is_open) {
            std::thread::park_timeout(SLEEP_MAX.min(intervals.left(Instant::now())));
        }
    }
    lanes.iter_mut().map(Lane::count_unsent).sum()
}

/// What the threads of one sender share.
struct Shared {
    plan: Arc<Plan>,
    control: Arc<Control>,
    /// By part, of the second that runs.
    tallies: Mutex<Vec<Tally>>,
    sender: Thread,
    waits_for_room: AtomicBool,
}

impl Shared {
    fn ns(&self, at: Instant) -> u64 {
        self.control.start_at.get().map_or(0, |start| at.saturating_duration_since(*start).as_nanos() as u64)
    }

    fn at(&self, ns: u64) -> Instant {
        self.control.start_at.get().copied().unwrap_or_else(Instant::now) + Duration::from_nanos(ns)
    }

    fn is_measured(&self, due_ns: u64) -> bool {
        due_ns >= self.plan.warmup.as_nanos() as u64 && due_ns < self.control.end_ns()
    }

    fn tallies(&self) -> MutexGuard<'_, Vec<Tally>> {
        held(&self.tallies)
    }
}

/// A thread that died with it has left whole counts.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells each second of the measured time when it is over.
struct Intervals<'a> {
    shared: &'a Shared,
    reports: &'a Sender<Report>,
    second: u64,
    /// Of all threads of this process: any of the library's may be the limit.
    gauges: HashMap<String, Gauge>,
}

impl Intervals<'_> {
    fn ends(&self) -> Instant {
        self.shared.at(self.shared.plan.warmup.as_nanos() as u64 + (self.second + 1) * SECOND_NS)
    }

    fn left(&self, now: Instant) -> Duration {
        self.ends().saturating_duration_since(now)
    }

    fn look(&mut self) {
        let measured_from = self.shared.at(self.shared.plan.warmup.as_nanos() as u64);
        if self.gauges.is_empty() && Instant::now() >= measured_from {
            let now = Instant::now();
            self.gauges = samples().map(|(thread, sample)| (thread, Gauge::new(sample, now))).collect();
        }
        while Instant::now() >= self.ends() {
            self.tell();
        }
    }

    fn effort(&self) -> Effort {
        self.gauges.values().map(Gauge::effort).fold(Effort::default(), Effort::fuller)
    }

    fn tell(&mut self) {
        let is_measured = self.second * SECOND_NS + (self.shared.plan.warmup.as_nanos() as u64)
            < self.shared.control.end_ns();
        if is_measured {
            let now = Instant::now();
            for (thread, sample) in samples() {
                self.gauges.entry(thread).or_insert_with(|| Gauge::new(sample, now)).add(sample, now);
            }
        }
        let fresh = vec![Tally::default(); self.shared.plan.parts.len()];
        let tallies = std::mem::replace(&mut *self.shared.tallies(), fresh);
        let _ = self.reports.send(Report::Interval { second: self.second, tallies });
        self.second += 1;
    }
}

/// What a lane waits for.
enum Next {
    At(Instant),
    Room,
    Never,
}

/// One producer: a client of the library.
struct Lane {
    shared: Arc<Shared>,
    delivery: Arc<Delivery>,
    client: ThreadedProducer<Context>,
    settings: Arc<Producers>,
    producer: u32,
    lateness_part: usize,
    /// Ascending.
    places: Vec<Place>,
    /// Of the next record, by place.
    sequences: Vec<u64>,
    /// None for a closed loop.
    schedule: Option<Schedule>,
    draw: Draw,
    drawn: Option<Drawn>,
    /// Of a sticky place: what it has of a batch.
    stuck: (usize, usize),
    values: Values,
    key: Vec<u8>,
    /// Since when there was room.
    free_since: Option<Instant>,
}

impl Lane {
    /// Connects.
    fn open(shared: &Arc<Shared>, lane: LanePlan) -> Result<Lane, Failure> {
        let plan = &shared.plan;
        let settings = lane.settings;
        let schedule = (settings.load == Load::Open).then(|| {
            let over_s = plan.length.as_secs_f64();
            Schedule::new(&settings, lane.share, over_s, plan.seed, lane.trace.as_ref())
        });
        let delivery = Arc::new(Delivery {
            shared: shared.clone(),
            part: lane.part,
            is_closed: schedule.is_none(),
            is_answered: settings.acks != Acks::None,
            queued_max: queued_max(&settings, &lane.values, lane.places.len()),
            queued: AtomicU64::new(0),
            queued_bytes: AtomicU64::new(0),
            topics: plan.topics.iter().zip(0..).map(|(name, number)| (name.to_string(), number)).collect(),
            acknowledged: Mutex::default(),
            requests: AtomicU64::new(0),
        });
        let failed = |error: KafkaError| Failure::NoBroker(format!("librdkafka: {error}"));
        let config = config(plan, &settings, lane.values.len_max());
        let client: ThreadedProducer<Context> =
            config.create_with_context(Context(delivery.clone())).map_err(failed)?;
        client.client().fetch_metadata(None, plan.request_timeout).map_err(failed)?;
        Ok(Lane {
            shared: shared.clone(),
            delivery,
            client,
            producer: lane.producer,
            lateness_part: lane.lateness_part,
            sequences: vec![0; lane.places.len()],
            draw: Draw::new(&settings, lane.producer, lane.places.len(), plan.seed),
            drawn: None,
            stuck: (0, 0),
            places: lane.places,
            schedule,
            values: lane.values,
            key: Vec::new(),
            free_since: None,
            settings,
        })
    }

    /// Gives the library what is due, as far as there is room.
    fn hand_over(&mut self, now: Instant) -> Next {
        let (mut late, end_ns) = (Vec::new(), self.shared.control.end_ns());
        let next = loop {
            let now_ns = self.shared.ns(now);
            let due_ns = self.schedule.as_ref().map_or(now_ns, Schedule::next_ns);
            let is_over = due_ns >= end_ns || now_ns > end_ns + BACKLOG_TIMEOUT.as_nanos() as u64;
            if is_over || self.shared.control.is_abandoned() {
                break Next::Never;
            }
            if due_ns > now_ns {
                break Next::At(self.shared.at(due_ns));
            }
            if !self.delivery.has_room() {
                self.free_since = None;
                break Next::Room;
            }
            let free_since = *self.free_since.get_or_insert(now);
            if late.len() == TURN_RECORDS {
                break Next::At(now);
            }
            self.send(due_ns, now);
            late.push((due_ns, self.shared.ns(Instant::now().max(free_since)), self.shared.ns(free_since)));
            if let Some(schedule) = &mut self.schedule {
                schedule.advance();
            }
        };
        self.note_lateness(&late);
        next
    }

    /// Of records: when each was due, when it was handed over, since when there was room.
    fn note_lateness(&self, late: &[(u64, u64, u64)]) {
        if self.schedule.is_none() || late.is_empty() {
            return;
        }
        let mut tallies = self.shared.tallies();
        let tally = &mut tallies[self.lateness_part];
        for (due_ns, sent_ns, free_ns) in late.iter().filter(|one| self.shared.is_measured(one.0)) {
            tally.time(sent_ns.saturating_sub(*due_ns.max(free_ns)));
            tally.records += 1;
        }
        tally.requests += 1;
    }

    fn send(&mut self, due_ns: u64, now: Instant) {
        let plan = &self.shared.plan;
        let places = &self.places;
        let find = |place| places.binary_search(&place).ok().map(|at| at as u32);
        let (slot, rank) = self.drawn.take().unwrap_or_else(|| self.draw.next(plan, places.len(), find));
        let place = places[slot as usize];
        let clock = &self.shared.control.clock;
        let header = Header {
            run: plan.run,
            producer: self.producer,
            sequence: self.sequences[slot as usize],
            due_unix_ns: clock.unix_ns(self.shared.at(due_ns)),
        };
        let value = self.values.next(&header);
        let bytes = value.len();
        let topic = &plan.topics[place.topic as usize];
        let mut record = BaseRecord::with_opaque_to(topic, due_ns as usize)
            .partition(place.partition)
            .timestamp((clock.unix_ns(now) / 1_000_000) as i64)
            .payload(value);
        if self.draw.has_keys() {
            write_key(&mut self.key, rank);
            record = record.key(&self.key[..]);
        }
        self.delivery.add(bytes);
        match self.client.send(record) {
            Ok(()) => self.sequences[slot as usize] += 1,
            // It never had it: no delivery will tell.
            Err((error, _)) => {
                self.delivery.remove(bytes);
                if self.shared.is_measured(due_ns) {
                    self.shared.tallies()[self.delivery.part].error(&error_name(&error), 1);
                }
            }
        }
        self.stick(bytes);
    }

    /// A sticky place gets a whole batch before the next one has its turn.
    fn stick(&mut self, bytes: usize) {
        if self.settings.partitioning != Partitioning::Sticky {
            return;
        }
        self.stuck = (self.stuck.0 + bytes, self.stuck.1 + 1);
        let is_full =
            self.stuck.0 + bytes > self.settings.batch_bytes || self.stuck.1 == self.settings.batch_records;
        if is_full {
            self.draw.turn(self.places.len());
            self.stuck = (0, 0);
        }
    }

    fn count_unsent(&mut self) -> u64 {
        let end_ns = self.shared.control.end_ns();
        let Some(schedule) = &mut self.schedule else { return 0 };
        let mut unsent = 0;
        while schedule.next_ns() < end_ns {
            unsent += u64::from(self.shared.is_measured(schedule.next_ns()));
            schedule.advance();
        }
        unsent
    }

    /// Hands over what was acknowledged; what never came back is an error.
    fn gather(&self, into: &mut BTreeMap<Origin, Sequences>) {
        for (place, sequences) in held(&self.delivery.acknowledged).iter() {
            into.entry((self.producer, *place)).or_default().merge(sequences);
        }
        let left = self.delivery.queued.load(Ordering::SeqCst);
        if left > 0 {
            self.shared.tallies()[self.delivery.part].error("TIMEOUT", left);
        }
    }
}

/// In a closed loop: as many as keep the requests in flight full, and a batch for each partition behind them.
fn queued_max(settings: &Producers, values: &Values, places: usize) -> u64 {
    if settings.load == Load::Open {
        return QUEUED_MAX;
    }
    let fitting = (settings.batch_bytes / values.next_len().max(1)).max(1);
    let of_batch = match settings.batch_records {
        0 => fitting,
        1 => return settings.in_flight as u64,
        records => fitting.min(records),
    };
    (((settings.in_flight + places) * of_batch) as u64).min(QUEUED_MAX)
}

fn config(plan: &Plan, settings: &Producers, value_bytes_max: usize) -> ClientConfig {
    let timeout_ms = plan.request_timeout.as_millis();
    let acks = settings.acks.code().to_string();
    let batch_records = if settings.batch_records == 0 { 1_000_000 } else { settings.batch_records };
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", plan.brokers.join(","))
        .set("client.id", &plan.client_id)
        .set("acks", acks)
        .set("enable.idempotence", settings.idempotent.to_string())
        .set("max.in.flight.requests.per.connection", settings.in_flight.to_string())
        .set("compression.codec", settings.compression.name())
        .set("linger.ms", settings.linger_ms.to_string())
        .set("batch.size", settings.batch_bytes.to_string())
        .set("batch.num.messages", batch_records.to_string())
        .set("message.max.bytes", (settings.batch_bytes.max(value_bytes_max) + MESSAGE_ROOM).to_string())
        .set("queue.buffering.max.messages", QUEUED_MAX.to_string())
        .set("queue.buffering.max.kbytes", ((2 * QUEUED_BYTES_MAX) >> 10).to_string())
        .set("request.timeout.ms", timeout_ms.to_string())
        .set("socket.timeout.ms", timeout_ms.to_string())
        .set("message.timeout.ms", (timeout_ms + settings.linger_ms as u128).to_string())
        .set("statistics.interval.ms", STATISTICS_MS.to_string())
        .set_log_level(RDKafkaLogLevel::Emerg);
    if !settings.idempotent {
        config.set("retries", "0");
    }
    config
}

/// What the library's threads tell of one lane.
struct Delivery {
    shared: Arc<Shared>,
    part: usize,
    is_closed: bool,
    /// Without acknowledgements a delivery says that a record was sent.
    is_answered: bool,
    queued_max: u64,
    /// Records that the library has, and their bytes.
    queued: AtomicU64,
    queued_bytes: AtomicU64,
    topics: HashMap<String, u32>,
    acknowledged: Mutex<BTreeMap<Place, Sequences>>,
    /// That the library had sent when it last told.
    requests: AtomicU64,
}

impl Delivery {
    fn has_room(&self) -> bool {
        self.queued.load(Ordering::SeqCst) < self.queued_max
            && self.queued_bytes.load(Ordering::SeqCst) < QUEUED_BYTES_MAX
    }

    fn add(&self, bytes: usize) {
        self.queued.fetch_add(1, Ordering::SeqCst);
        self.queued_bytes.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    fn remove(&self, bytes: usize) {
        self.queued.fetch_sub(1, Ordering::SeqCst);
        self.queued_bytes.fetch_sub(bytes as u64, Ordering::SeqCst);
        if self.shared.waits_for_room.swap(false, Ordering::SeqCst) {
            self.shared.sender.unpark();
        }
    }

    fn count(&self, due_ns: u64, value: &[u8], topic: &str, partition: i32) {
        let now = Instant::now();
        let shared = &self.shared;
        let now_ns = shared.ns(now);
        if let Some(header) = Header::read(value)
            && self.is_answered
            && let Some(topic) = self.topics.get(topic)
        {
            let place = Place { topic: *topic, partition };
            held(&self.acknowledged).entry(place).or_default().add(header.sequence);
        }
        if shared.control.outage.was_gone(shared.at(due_ns)) {
            shared.control.outage.note_acknowledgement(now);
        }
        if shared.is_measured(due_ns) && (!self.is_closed || shared.is_measured(now_ns)) {
            let mut tallies = shared.tallies();
            let tally = &mut tallies[self.part];
            let amount = Amount { requests: 0, records: 1, bytes: value.len() as u64 };
            tally.count(amount, now_ns, shared.control.end_ns());
            if self.is_answered {
                tally.time(now_ns.saturating_sub(due_ns));
            }
        }
    }
}

/// The library's callbacks.
struct Context(Arc<Delivery>);

impl ClientContext for Context {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _message: &str) {}

    fn error(&self, _error: KafkaError, _reason: &str) {
        // Records that an error concerns are told of one by one.
    }

    /// The library counts requests, and tells of it by the second.
    fn stats(&self, statistics: Statistics) {
        let delivery = &self.0;
        let sent: i64 = statistics.brokers.values().filter_map(|broker| broker.req.get("Produce")).sum();
        let before = delivery.requests.swap(sent as u64, Ordering::SeqCst);
        if delivery.shared.is_measured(delivery.shared.ns(Instant::now())) {
            delivery.shared.tallies()[delivery.part].requests += (sent as u64).saturating_sub(before);
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, due_ns: usize) {
        let delivery = &self.0;
        let due_ns = due_ns as u64;
        let message = match result {
            Ok(message) => {
                let value = message.payload().unwrap_or_default();
                delivery.count(due_ns, value, message.topic(), message.partition());
                message
            }
            Err((error, message)) => {
                if delivery.shared.is_measured(due_ns) {
                    delivery.shared.tallies()[delivery.part].error(&error_name(error), 1);
                }
                message
            }
        };
        delivery.remove(message.payload().map_or(0, <[u8]>::len));
    }
}

/// Kafka's name where a broker said it; those of the library under the names that errors have here.
fn error_name(error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageTimedOut | RDKafkaErrorCode::OperationTimedOut) => "TIMEOUT".to_owned(),
        Some(code) => match i16::try_from(code as i32) {
            Ok(code) if code >= 0 => ErrorCode::from_code(code).name().to_owned(),
            _ => "CONNECTION".to_owned(),
        },
        None => "CONNECTION".to_owned(),
    }
}

/// Of each thread of this process, by its number.
fn samples() -> impl Iterator<Item = (String, Sample)> {
    let of = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("schedstat")).ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), Sample::parse(&text)))
    };
    fs::read_dir("/proc/self/task").into_iter().flatten().flatten().filter_map(of)
}
