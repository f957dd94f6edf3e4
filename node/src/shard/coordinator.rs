//! The group coordinators of this shard: one for each partition of `__consumer_offsets` that it owns, their log, their
//! clock, and the way of requests to them from every shard.
//!
//! ```text
//!   handler (any shard) ── call ──> shard of the group's partition: Coordinator decides
//!        ^                                   │ records, one batch at a time        │ parked or held
//!        │                          engine: append ── durable ── committed ────────┤
//!        └────────────── Answered ───────────────────────────────────────── answers that may leave
//!
//!   a seat's task: load the log ──> write batches ──(undetermined)──> drop the state, load again, ever more slowly
//!                                        └──(no space)──> stalled: the same batch again, ever more slowly
//! ```
//!
//! Calls and answers are notes, not mailbox calls: a JoinGroup may wait for minutes, and must not hold what produces
//! and fetches need to cross.
//!
//! Invariants:
//! - an answer leaves only when the engine has settled what it depends on (`core/coordinator`);
//! - **every call is answered once**, also when its coordinator loads, fails or goes;
//! - **calls that wait are older than a deadline that has passed meanwhile**: it is looked at behind them, since they may be
//!   the heartbeats that put it off;
//! - a batch of a coordinator has its place among the appends of the shard that wait for room;
//! - no timer runs but one per shard, and none while no group has a deadline.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use flumen_core::coordinator::{
    Answer, Batch, Context, Coordinator, GroupCounts, OFFSETS_TOPIC, Token, partition_for,
};
use flumen_core::limits::{BATCH_BYTES_MAX, COORDINATOR_BACKLOG_BYTES_MAX, COORDINATOR_BATCH_BYTES};
use flumen_core::metadata::{Image, NewTopic};
use flumen_core::types::{Offset, PartitionId, ShardId};
use flumen_storage::{ReadError, ReadOutcome};
use flumen_wire::ErrorCode;
use flumen_wire::batch::{BatchBuilder, BatchHeader, Batches, NewRecord};
use flumen_wire::compression::Compression;
use futures_channel::oneshot;
use slab::Slab;

use super::Shard;
use super::mail::Mail;
use crate::runtime::{self, local::Bell};

/// What a batch has beside its records, rounded up.
const BATCH_HEADER_BYTES: usize = 64;
/// Bytes of the log that are read at a time while loading (`offsets.load.buffer.size` in Kafka).
const LOAD_BYTES: usize = 4 << 20;
/// Time until a log that could not be read, or not be written, is tried again: at first, and at most.
const RETRY_AFTER: Duration = Duration::from_millis(500);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// What a call does with the coordinator that it was brought to.
pub(crate) type Call = Box<dyn FnOnce(&mut Coordinator, &Context<'_>, Token) + Send>;

/// Where an answer goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    shard: ShardId,
    key: u32,
}

/// The coordinators of a shard, and the calls that its handlers have made.
#[derive(Default)]
pub(crate) struct Coordinators {
    seats: RefCell<BTreeMap<i32, Rc<Seat>>>,
    /// Handlers of this shard that wait for an answer.
    calls: RefCell<Slab<oneshot::Sender<Answer>>>,
    next_token: Cell<u64>,
    /// When the timer is set for.
    armed: Cell<Option<Duration>>,
    /// A deadline has come before that.
    sooner: Bell,
    /// Commits of offsets since the start, and records written.
    records_written: Cell<u64>,
}

/// One coordinator and its log.
struct Seat {
    partition: PartitionId,
    coordinator: RefCell<Coordinator>,
    /// Who waits for the answer to each token.
    origins: RefCell<HashMap<Token, Origin>>,
    /// Calls that came while too much waited to be written.
    waiting: RefCell<Queue<(Call, Origin)>>,
    /// Since when its log has taken nothing.
    stalled: Cell<Option<Duration>>,
    /// There may be something to write, or the seat is gone.
    work: Bell,
    /// The partition is not here any more, or the node stops: nothing new is taken.
    closed: Cell<bool>,
}

impl Seat {
    /// Not too much waits to be written.
    fn has_room(&self) -> bool {
        self.coordinator.borrow().backlog_bytes() <= COORDINATOR_BACKLOG_BYTES_MAX
    }

    /// When its coordinator wants to be looked at; `None` also where that has to wait for something else.
    fn deadline(&self) -> Option<Duration> {
        if self.stalled.get().is_some() || self.waiting.borrow().has_tick {
            return None;
        }
        self.coordinator.borrow().next_deadline()
    }
}

/// Calls that wait for room, in their order. A look at the deadlines takes its turn among them, once.
struct Queue<C> {
    entries: VecDeque<Queued<C>>,
    has_tick: bool,
}

#[derive(Debug, PartialEq)]
enum Queued<C> {
    Call(C),
    Tick,
}

impl<C> Default for Queue<C> {
    fn default() -> Queue<C> {
        Queue { entries: VecDeque::new(), has_tick: false }
    }
}

impl<C> Queue<C> {
    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn push(&mut self, call: C) {
        self.entries.push_back(Queued::Call(call));
    }

    fn push_tick(&mut self) {
        if !std::mem::replace(&mut self.has_tick, true) {
            self.entries.push_back(Queued::Tick);
        }
    }

    fn pop(&mut self) -> Option<Queued<C>> {
        let next = self.entries.pop_front()?;
        self.has_tick &= !matches!(next, Queued::Tick);
        Some(next)
    }

    fn into_calls(self) -> impl Iterator<Item = C> {
        self.entries.into_iter().filter_map(|queued| match queued {
            Queued::Call(call) => Some(call),
            Queued::Tick => None,
        })
    }
}

/// Ever longer times between two tries.
struct Backoff(Duration);

impl Backoff {
    fn new() -> Backoff {
        Backoff(RETRY_AFTER)
    }

    fn next(&mut self) -> Duration {
        let next = (self.0 * 2).min(RETRY_AFTER_MAX);
        std::mem::replace(&mut self.0, next)
    }
}

/// Why a seat's log could not be used.
enum LogFault {
    Gone,
    /// What was to be appended is not in the log, and may be later.
    Refused(ErrorCode),
    Failed(String),
}

/// Calls, from any shard.
impl Shard {
    /// Has the coordinator of a group take a call, wherever it is, and returns its answer.
    pub(crate) async fn coordinate(
        &self,
        group_id: &str,
        call: impl FnOnce(&mut Coordinator, &Context<'_>, Token) + Send + 'static,
    ) -> Answer {
        match self.coordinator_partitions() {
            0 => Answer::Failed(ErrorCode::NotCoordinator),
            count => self.coordinate_at(partition_for(group_id, count), call).await,
        }
    }

    /// How many coordinators there are on all shards; 0 before the first use.
    pub(crate) fn coordinator_partitions(&self) -> i32 {
        self.image().topic(OFFSETS_TOPIC).map_or(0, |topic| topic.partitions.len() as i32)
    }

    /// As [`Shard::coordinate`], of the coordinator of one partition.
    pub(crate) async fn coordinate_at(
        &self,
        partition: i32,
        call: impl FnOnce(&mut Coordinator, &Context<'_>, Token) + Send + 'static,
    ) -> Answer {
        let Some(topic) = self.image().topic(OFFSETS_TOPIC).map(|topic| topic.id) else {
            return Answer::Failed(ErrorCode::NotCoordinator);
        };
        let (sender, receiver) = oneshot::channel();
        let key = self.coordinators.calls.borrow_mut().insert(sender) as u32;
        let origin = Origin { shard: self.id, key };
        let owner = self.owner(PartitionId { topic, partition });
        if owner == self.id {
            self.take_call(partition, Box::new(call), origin);
        } else {
            self.tell(owner, Mail::Coordinate { partition, call: Box::new(call), origin });
        }
        // Without an answer only when that shard has ended, and with it the node.
        receiver.await.unwrap_or(Answer::Failed(ErrorCode::CoordinatorNotAvailable))
    }

    /// Hands an answer to the handler that waits for it.
    pub(super) fn answered(&self, key: u32, answer: Answer) {
        let call = self.coordinators.calls.borrow_mut().remove(key as usize);
        // Fails when the handler is gone: its connection was closed.
        let _ = call.send(answer);
    }

    fn send_answer(&self, origin: Origin, answer: Answer) {
        if origin.shard == self.id {
            self.answered(origin.key, answer);
        } else {
            self.tell(origin.shard, Mail::Answered { key: origin.key, answer });
        }
    }

    /// Creates the topic of the coordinators' logs, unless it is there.
    pub(crate) async fn ensure_offsets_topic(self: &Rc<Self>) -> Result<(), ErrorCode> {
        if self.coordinator_partitions() > 0 {
            return Ok(());
        }
        let config = self.config().group.clone();
        let id = crate::handlers::new_topic_id(self);
        let created = self.decide(move |controller| {
            let brokers = i16::try_from(controller.image.brokers().len()).unwrap_or(i16::MAX).max(1);
            let wanted = config.offsets_topic_replication_factor;
            if wanted > brokers {
                tracing::info!(
                    "{OFFSETS_TOPIC} gets {brokers} replicas of the {wanted} that offsets.topic.replication.factor asks \
                     for: that is how many nodes there are"
                );
            }
            let segment_bytes = config.offsets_topic_segment_bytes.to_string();
            let topic = NewTopic {
                name: OFFSETS_TOPIC,
                partitions: config.offsets_topic_num_partitions,
                // A cluster that is still small starts all the same.
                replication_factor: wanted.min(brokers),
                assignments: Vec::new(),
                configs: vec![
                    ("cleanup.policy", Some("compact")),
                    ("compression.type", Some("producer")),
                    ("segment.bytes", Some(&segment_bytes)),
                ],
            };
            Ok(controller.create_topics(&[topic], &[id], false))
        });
        let refused = match created.await {
            Err(refused) => refused,
            Ok(mut outcomes) => match outcomes.remove(0) {
                Ok(_) => return Ok(()),
                Err(refused) => refused,
            },
        };
        if refused.code == ErrorCode::TopicAlreadyExists {
            // Somebody else was quicker.
            return Ok(());
        }
        tracing::error!("{OFFSETS_TOPIC} cannot be created: {refused}");
        Err(ErrorCode::CoordinatorNotAvailable)
    }
}

/// Seats.
impl Shard {
    /// Opens seats for partitions that are here, closes those of partitions that are gone, and tells coordinators
    /// of topics that went. Called when an image is published.
    pub(super) fn seat_coordinators(self: &Rc<Self>, before: &Image, next: &Image) {
        let topic = next.topic(OFFSETS_TOPIC);
        let is_here = |id: PartitionId| topic.is_some_and(|topic| topic.id == id.topic);
        let gone: Vec<Rc<Seat>> = {
            let seats = self.coordinators.seats.borrow();
            seats.values().filter(|seat| !is_here(seat.partition)).map(Rc::clone).collect()
        };
        for seat in gone {
            self.coordinators.seats.borrow_mut().remove(&seat.partition.partition);
            self.close_seat(&seat);
        }
        let count = topic.map_or(0, |topic| topic.partitions.len() as i32);
        for partition in 0..count {
            let id = PartitionId { topic: topic.expect("it has partitions").id, partition };
            if self.owner(id) == self.id && !self.coordinators.seats.borrow().contains_key(&partition) {
                self.open_seat(id);
            }
        }
        if let Some(topic) = topic
            && before.topic_by_id(topic.id).is_none()
            && !self.log_config(topic.id, &topic.name).cleanup_policy.compact
        {
            tracing::error!(
                "{OFFSETS_TOPIC} is not compacted, and retention will delete what groups have committed: set its \
                 cleanup.policy to compact"
            );
        }
        let deleted = before.topics().filter(|topic| next.topic_by_id(topic.id).is_none());
        let deleted: Vec<&str> = deleted.map(|topic| &*topic.name).collect();
        for seat in self.seats() {
            self.with_coordinator(&seat, |coordinator, cx| coordinator.metadata_changed(cx, &deleted));
        }
    }

    fn seats(&self) -> Vec<Rc<Seat>> {
        self.coordinators.seats.borrow().values().map(Rc::clone).collect()
    }

    fn open_seat(self: &Rc<Self>, partition: PartitionId) {
        let seat = Rc::new(Seat {
            partition,
            coordinator: RefCell::default(),
            origins: RefCell::default(),
            waiting: RefCell::default(),
            stalled: Cell::new(None),
            work: Bell::new(),
            closed: Cell::new(false),
        });
        self.coordinators.seats.borrow_mut().insert(partition.partition, Rc::clone(&seat));
        runtime::spawn("coordinator", Rc::clone(self).run_seat(seat));
    }

    /// Nothing new is taken, and whoever waits is told to look for the coordinator elsewhere.
    fn close_seat(&self, seat: &Seat) {
        seat.closed.set(true);
        self.drop_state(seat);
        seat.work.ring();
    }

    /// The node stops: nobody waits any longer, and what is decided is still written.
    pub(super) fn stop_coordinators(&self) {
        for seat in self.seats() {
            seat.closed.set(true);
            seat.coordinator.borrow_mut().retire();
            self.deliver(&seat);
            for (_, origin) in seat.waiting.take().into_calls() {
                self.send_answer(origin, Answer::Failed(ErrorCode::NotCoordinator));
            }
            seat.work.ring();
        }
    }

    /// The state is not that of the log: it is dropped, and all that depends on it refused.
    fn drop_state(&self, seat: &Seat) {
        let state = seat.coordinator.take();
        let mut origins = seat.origins.take();
        let told = state.abandon().into_iter().filter_map(|token| origins.remove(&token));
        seat.stalled.set(None);
        let waiting = seat.waiting.take().into_calls().map(|(_, origin)| origin);
        for origin in told.chain(waiting).collect::<Vec<_>>() {
            self.send_answer(origin, Answer::Failed(ErrorCode::NotCoordinator));
        }
    }

    /// Takes a call for a coordinator of this shard.
    pub(super) fn take_call(&self, partition: i32, call: Call, origin: Origin) {
        let seat = self.coordinators.seats.borrow().get(&partition).map(Rc::clone);
        let Some(seat) = seat.filter(|seat| !seat.closed.get()) else {
            return self.send_answer(origin, Answer::Failed(ErrorCode::NotCoordinator));
        };
        if seat.stalled.get().is_some() {
            return self.send_answer(origin, Answer::Failed(ErrorCode::NotCoordinator));
        }
        // Behind those that wait: of one connection, none overtakes another.
        if !seat.has_room() || !seat.waiting.borrow().is_empty() {
            seat.waiting.borrow_mut().push((call, origin));
            return;
        }
        self.make_call(&seat, call, origin);
    }

    fn make_call(&self, seat: &Seat, call: Call, origin: Origin) {
        let token = Token(self.coordinators.next_token.get());
        self.coordinators.next_token.set(token.0 + 1);
        seat.origins.borrow_mut().insert(token, origin);
        self.with_coordinator(seat, |coordinator, cx| call(coordinator, cx, token));
    }

    /// Lets something happen to a coordinator, and sees to what comes of it.
    fn with_coordinator(&self, seat: &Seat, happens: impl FnOnce(&mut Coordinator, &Context<'_>)) {
        let (image, config) = (self.image(), self.config());
        let cx = Context {
            now: runtime::uptime(),
            now_ms: runtime::now_ms(),
            image: &image,
            config: &config.group,
            decision_bytes_max: self.decision_bytes_max(seat),
            uuid: self.random(random_uuid),
        };
        let has_work = {
            let mut coordinator = seat.coordinator.borrow_mut();
            happens(&mut coordinator, &cx);
            coordinator.backlog_bytes() > 0
        };
        if has_work {
            seat.work.ring();
        }
        self.deliver(seat);
        if let Some(deadline) = seat.deadline()
            && self.coordinators.armed.get().is_none_or(|armed| deadline < armed)
        {
            self.coordinators.armed.set(Some(deadline));
            self.coordinators.sooner.ring();
        }
    }

    /// Sends the answers that may leave.
    fn deliver(&self, seat: &Seat) {
        loop {
            let ready = seat.coordinator.borrow_mut().pop_ready();
            let Some((token, answer)) = ready else { return };
            let origin = seat.origins.borrow_mut().remove(&token);
            self.send_answer(origin.expect("each token came with a call"), answer);
        }
    }

    /// The one timer of all coordinators of this shard.
    pub(super) async fn run_coordinator_timer(self: Rc<Self>) {
        loop {
            let sooner = self.coordinators.sooner.next();
            let deadlines =
                self.seats().into_iter().filter_map(|seat| seat.deadline().map(|deadline| (deadline, seat)));
            let now = runtime::uptime();
            let (due, later): (Vec<_>, Vec<_>) = deadlines.partition(|(deadline, _)| *deadline <= now);
            if !due.is_empty() {
                for (_, seat) in due {
                    if seat.waiting.borrow().is_empty() {
                        self.with_coordinator(&seat, |coordinator, cx| coordinator.tick(cx));
                    } else {
                        seat.waiting.borrow_mut().push_tick();
                    }
                    self.net.flush(&*self);
                    runtime::yield_if_needed().await;
                }
                continue;
            }
            let next = later.into_iter().map(|(deadline, _)| deadline).min();
            self.coordinators.armed.set(next);
            match next {
                Some(next) => drop(runtime::timeout(next - now, sooner).await),
                None => sooner.await,
            }
        }
    }
}

/// The log of one seat.
impl Shard {
    async fn run_seat(self: Rc<Self>, seat: Rc<Seat>) {
        let mut backoff = Backoff::new();
        while !seat.closed.get() {
            let fault = match self.load(&seat).await {
                Ok(()) => self.write_batches(&seat, &mut backoff).await,
                Err(fault) => Err(fault),
            };
            let pause = match fault {
                // Closed.
                Ok(()) => RETRY_AFTER,
                // The image that shows it gone is on its way, or the one that shows it here was too early.
                Err(LogFault::Gone) => {
                    self.drop_state(&seat);
                    RETRY_AFTER
                }
                Err(LogFault::Refused(code)) => {
                    self.fail(&seat, &format!("an append was refused: {code}"));
                    backoff.next()
                }
                Err(LogFault::Failed(reason)) => {
                    self.fail(&seat, &reason);
                    backoff.next()
                }
            };
            if !seat.closed.get() {
                runtime::sleep(pause).await;
            }
        }
    }

    fn fail(&self, seat: &Seat, reason: &str) {
        tracing::error!(partition = seat.partition.partition, "{OFFSETS_TOPIC}: {reason}");
        self.drop_state(seat);
    }

    /// Replays the log to its end.
    async fn load(&self, seat: &Seat) -> Result<(), LogFault> {
        let began = runtime::uptime();
        let slot = self.engine.partition(&seat.partition).ok_or(LogFault::Gone)?;
        let offsets = self.engine.offsets(slot).ok_or(LogFault::Gone)?;
        let mut next = offsets.log_start;
        let mut records = 0_u64;
        while next < offsets.high_watermark && !seat.closed.get() {
            let slices = match self.engine.read(slot, next, LOAD_BYTES, true) {
                Ok(ReadOutcome::Cached { slices, .. }) => Ok(slices),
                Ok(ReadOutcome::Disk(read)) => self.engine.read_disk(read).await,
                Ok(ReadOutcome::Empty) => break,
                Err(error) => Err(error),
            };
            let slices = slices.map_err(|error| self.load_fault(error, next))?;
            let from = next;
            for slice in slices.iter() {
                let replayed = replay(&mut seat.coordinator.borrow_mut(), slice.as_slice(), &mut next);
                records += replayed.map_err(LogFault::Failed)?;
                runtime::yield_if_needed().await;
            }
            if next == from {
                return Err(LogFault::Failed(format!("nothing can be read at offset {from}")));
            }
        }
        if seat.closed.get() {
            return Ok(());
        }
        self.with_coordinator(seat, |coordinator, cx| coordinator.finish_loading(cx));
        if records > 0 {
            let took = runtime::uptime().saturating_sub(began).as_millis() as u64;
            let partition = seat.partition.partition;
            tracing::debug!(partition, records, took_ms = took, "groups loaded");
        }
        Ok(())
    }

    fn load_fault(&self, error: ReadError, at: Offset) -> LogFault {
        self.report_read_faults();
        match error {
            ReadError::Gone => LogFault::Gone,
            error => LogFault::Failed(format!("cannot be read at offset {at}: {}", error.error_code())),
        }
    }

    /// Appends what the coordinator decides, batch by batch. Returns when the seat is closed and all is written.
    async fn write_batches(&self, seat: &Seat, backoff: &mut Backoff) -> Result<(), LogFault> {
        loop {
            let ring = seat.work.next();
            let bytes_max = COORDINATOR_BATCH_BYTES.min(self.decision_bytes_max(seat) / 2);
            let batch = seat.coordinator.borrow_mut().next_batch(bytes_max);
            match batch {
                Some(batch) => {
                    if !self.write_batch(seat, &batch, backoff).await? {
                        return Ok(());
                    }
                    *backoff = Backoff::new();
                    let written = &self.coordinators.records_written;
                    written.set(written.get() + batch.records.len() as u64);
                    if !self.settle_batch(seat, &batch) {
                        return Ok(());
                    }
                }
                None if seat.closed.get() => return Ok(()),
                None => ring.await,
            }
        }
    }

    /// Appends a batch. While there is no space for it, the state is that of the log and this batch: it is kept, and the
    /// batch tried again. False if the seat was closed meanwhile.
    async fn write_batch(&self, seat: &Seat, batch: &Batch, backoff: &mut Backoff) -> Result<bool, LogFault> {
        loop {
            match self.append_records(seat.partition, batch).await {
                Err(LogFault::Refused(ErrorCode::KafkaStorageError)) => {}
                Err(fault) => return Err(fault),
                Ok(()) => {
                    self.go_on(seat);
                    return Ok(true);
                }
            }
            if !seat.closed.get() {
                self.stall(seat);
                runtime::sleep(backoff.next()).await;
            }
            if seat.closed.get() {
                return Ok(false);
            }
        }
    }

    /// The log takes nothing. Whoever waits for it is told to try again, as by Kafka, and so is whoever asks from now on; no
    /// time passes for groups, since none of their members can be heard.
    fn stall(&self, seat: &Seat) {
        if seat.stalled.get().is_none() {
            seat.stalled.set(Some(runtime::uptime()));
            let partition = seat.partition.partition;
            tracing::error!(
                partition,
                "{OFFSETS_TOPIC}: an append was refused; it is tried until it is taken"
            );
        }
        seat.coordinator.borrow_mut().refuse_held(ErrorCode::NotCoordinator);
        self.deliver(seat);
        for (_, origin) in seat.waiting.take().into_calls() {
            self.send_answer(origin, Answer::Failed(ErrorCode::NotCoordinator));
        }
        self.net.flush(self);
    }

    fn go_on(&self, seat: &Seat) {
        if let Some(since) = seat.stalled.take() {
            let partition = seat.partition.partition;
            tracing::info!(partition, "{OFFSETS_TOPIC}: written again");
            let stalled = runtime::uptime().saturating_sub(since);
            self.with_coordinator(seat, |coordinator, _| coordinator.put_off_deadlines(stalled));
        }
    }

    /// What one decision may come to: its batch has to fit a segment.
    fn decision_bytes_max(&self, seat: &Seat) -> usize {
        let config = self.log_config(seat.partition.topic, OFFSETS_TOPIC);
        (config.segment_bytes as usize).min(BATCH_BYTES_MAX) - BATCH_HEADER_BYTES
    }

    /// A batch is durable: its answers leave, and calls that waited for room are taken. False if the state was dropped
    /// meanwhile.
    fn settle_batch(&self, seat: &Seat, batch: &Batch) -> bool {
        {
            let mut coordinator = seat.coordinator.borrow_mut();
            if coordinator.is_loading() {
                return false;
            }
            coordinator.committed(batch);
        }
        self.deliver(seat);
        while seat.has_room() {
            let next = seat.waiting.borrow_mut().pop();
            match next {
                Some(Queued::Call((call, origin))) => self.make_call(seat, call, origin),
                Some(Queued::Tick) => self.with_coordinator(seat, |coordinator, cx| coordinator.tick(cx)),
                None => break,
            }
        }
        self.net.flush(self);
        true
    }

    async fn append_records(&self, partition: PartitionId, batch: &Batch) -> Result<(), LogFault> {
        let now_ms = runtime::now_ms();
        let mut builder = BatchBuilder::new(Compression::None);
        for record in &batch.records {
            builder.push(NewRecord {
                timestamp: now_ms,
                key: Some(&record.key),
                value: record.value.as_deref(),
                headers: &[],
            });
        }
        let bytes = Bytes::from(builder.build());
        let header = BatchHeader::parse(&bytes).expect("a batch that was just built");
        match self.append_and_wait(partition, header, bytes).await {
            Ok(()) => Ok(()),
            Err(ErrorCode::UnknownTopicOrPartition) => Err(LogFault::Gone),
            Err(code) => Err(LogFault::Refused(code)),
        }
    }

    /// Groups and offsets of this shard, and records that were written for them.
    pub(super) fn coordinator_counts(&self) -> (GroupCounts, usize, u64) {
        let mut groups = GroupCounts::default();
        let mut offsets = 0;
        for seat in self.seats() {
            let coordinator = seat.coordinator.borrow();
            groups.add(&coordinator.group_counts());
            offsets += coordinator.offset_count();
        }
        (groups, offsets, self.coordinators.records_written.get())
    }
}

/// Replays the batches of one slice; `next` is the offset after them. Returns how many records there were. What cannot be
/// read ends it: groups that lack some of their records would be served as if they were whole.
fn replay(coordinator: &mut Coordinator, bytes: &[u8], next: &mut Offset) -> Result<u64, String> {
    let mut count = 0;
    for batch in Batches::new(bytes) {
        let batch = batch.map_err(|error| format!("no batch at offset {next}: {error}"))?;
        *next = Offset(batch.header.next_offset()).max(*next);
        if batch.header.is_control() {
            continue;
        }
        let base_offset = batch.header.base_offset;
        let unread = |error: &dyn std::fmt::Display| format!("the batch at offset {base_offset}: {error}");
        let records = batch.records(BATCH_BYTES_MAX).map_err(|error| unread(&error))?;
        for record in &records {
            let record = record.map_err(|error| unread(&error))?;
            count += 1;
            let Some(key) = record.key else { continue };
            let loaded = coordinator.load(key, record.value);
            loaded.map_err(|error| format!("at offset {}: {error}", record.offset))?;
        }
    }
    Ok(count)
}

/// A UUID of version 4.
fn random_uuid(random: &mut fastrand::Rng) -> [u8; 16] {
    let mut bytes = [0; 16];
    random.fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

#[cfg(test)]
mod tests {
    use flumen_core::coordinator::Record;
    use flumen_wire::group::offset_commit_key::OffsetCommitKey;
    use flumen_wire::group::offset_commit_value::OffsetCommitValue;

    use super::*;

    #[test]
    fn deadlines_are_looked_at_behind_the_calls_that_wait() {
        let mut queue = Queue::default();
        queue.push(1);
        queue.push_tick();
        queue.push(2);
        queue.push_tick();
        assert!(queue.has_tick);
        let mut popped = Vec::new();
        while let Some(next) = queue.pop() {
            popped.push((next, queue.has_tick));
        }
        assert_eq!(popped, [(Queued::Call(1), true), (Queued::Tick, false), (Queued::Call(2), false)]);
        queue.push_tick();
        assert!(!queue.is_empty() && queue.into_calls().next().is_none());
    }

    #[test]
    fn tries_come_ever_more_slowly() {
        let mut backoff = Backoff::new();
        let times: Vec<u64> = (0..8).map(|_| backoff.next().as_millis() as u64).collect();
        assert_eq!(times, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    }

    fn batch(records: &[Record]) -> Vec<u8> {
        let mut builder = BatchBuilder::new(Compression::None);
        for record in records {
            builder.push(NewRecord {
                timestamp: 0,
                key: Some(&record.key),
                value: record.value.as_deref(),
                headers: &[],
            });
        }
        builder.build()
    }

    /// As in Kafka: types of records that are not known are left out, and nothing else is.
    #[test]
    fn what_cannot_be_read_ends_loading() {
        let key = OffsetCommitKey { group: "g", topic: "t", partition: 0 };
        let good = Record::new(&key, &OffsetCommitValue { offset: 7, ..Default::default() }, 3);
        let value = |bytes: &[u8]| Record { value: Some(bytes.to_vec()), ..good.clone() };
        let unknown = Record { key: vec![0, 99, 1, 2], value: Some(vec![1]) };
        let load = |bytes: &[u8]| replay(&mut Coordinator::default(), bytes, &mut Offset(0));
        assert_eq!(load(&batch(&[good.clone(), unknown.clone(), good.clone()])), Ok(3));
        for bad in [
            // A version that is newer than all known, one that is not all there, a key that is not, no type.
            value(&[0, 99, 0, 0, 0, 0, 0, 0, 0, 0]),
            value(&[0, 3, 0]),
            Record { key: good.key[..5].to_vec(), value: None },
            Record { key: vec![0], value: None },
        ] {
            let error = load(&batch(&[good.clone(), bad])).expect_err("it cannot be read");
            assert!(error.starts_with("at offset 1: "), "{error}");
        }
        let mut of_no_format = batch(&[good]);
        of_no_format[16] = 99;
        let error = load(&of_no_format).expect_err("it is no batch");
        assert!(error.starts_with("no batch at offset 0: "), "{error}");
    }
}
