//! The group coordinators of this shard: one for each partition of `__consumer_offsets` that it owns, their log, their
//! clock, and the way of requests to them from every shard.
//!
//! ```text
//!   handler (any shard) ── call ──> shard of the group's partition: Coordinator decides
//!        ^                                   │ records, one batch at a time        │ parked or held
//!        │                          engine: append ── durable ── committed ────────┤
//!        └────────────── Answered ───────────────────────────────────────── answers that may leave
//!
//!   a seat's task: load the log ──> write batches ──(an append fails)──> drop the state, load again
//! ```
//!
//! Calls and answers are notes, not mailbox calls: a JoinGroup may wait for minutes, and must not hold what produces
//! and fetches need to cross.
//!
//! Invariants:
//! - an answer leaves only when the engine has settled what it depends on (`core/coordinator`);
//! - **every call is answered once**, also when its coordinator loads, fails or goes;
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
use flumen_storage::{AppendError, ReadError, ReadOutcome, Slot};
use flumen_wire::ErrorCode;
use flumen_wire::batch::{BatchBuilder, BatchHeader, Batches, NewRecord};
use flumen_wire::compression::Compression;
use futures_channel::oneshot;
use slab::Slab;

use super::Shard;
use super::mail::Mail;
use crate::runtime::{self, local::Bell};

/// Bytes of the log that are read at a time while loading (`offsets.load.buffer.size` in Kafka).
const LOAD_BYTES: usize = 4 << 20;
/// Time until a log that could not be read, or not be written, is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

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
    /// The engine has room again.
    room: Bell,
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
    waiting: RefCell<VecDeque<(Call, Origin)>>,
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
}

/// Why a seat's log could not be used.
enum LogFault {
    Gone,
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
            for (_, origin) in seat.waiting.take() {
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
        let waiting = seat.waiting.take().into_iter().map(|(_, origin)| origin);
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
        // Behind those that wait: of one connection, none overtakes another.
        if !seat.has_room() || !seat.waiting.borrow().is_empty() {
            seat.waiting.borrow_mut().push_back((call, origin));
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
            uuid: self.random(random_uuid),
        };
        let (has_work, deadline) = {
            let mut coordinator = seat.coordinator.borrow_mut();
            happens(&mut coordinator, &cx);
            (coordinator.backlog_bytes() > 0, coordinator.next_deadline())
        };
        if has_work {
            seat.work.ring();
        }
        self.deliver(seat);
        if let Some(deadline) = deadline
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
            let deadlines = self.seats().into_iter().filter_map(|seat| {
                let deadline = seat.coordinator.borrow().next_deadline()?;
                Some((deadline, seat))
            });
            let now = runtime::uptime();
            let (due, later): (Vec<_>, Vec<_>) = deadlines.partition(|(deadline, _)| *deadline <= now);
            if !due.is_empty() {
                for (_, seat) in due {
                    self.with_coordinator(&seat, |coordinator, cx| coordinator.tick(cx));
                }
                self.net.flush(&*self);
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
        while !seat.closed.get() {
            let fault = match self.load(&seat).await {
                Ok(slot) => self.write_batches(&seat, slot).await,
                Err(fault) => Err(fault),
            };
            match fault {
                // Closed.
                Ok(()) => {}
                // The image that shows it gone is on its way, or the one that shows it here was too early.
                Err(LogFault::Gone) => self.drop_state(&seat),
                Err(LogFault::Failed(reason)) => {
                    tracing::error!(partition = seat.partition.partition, "{OFFSETS_TOPIC}: {reason}");
                    self.drop_state(&seat);
                }
            }
            if !seat.closed.get() {
                runtime::sleep(RETRY_AFTER).await;
            }
        }
    }

    /// Replays the log to its end.
    async fn load(&self, seat: &Seat) -> Result<Slot, LogFault> {
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
            return Ok(slot);
        }
        self.with_coordinator(seat, |coordinator, cx| coordinator.finish_loading(cx));
        if records > 0 {
            let took = runtime::uptime().saturating_sub(began).as_millis() as u64;
            let partition = seat.partition.partition;
            tracing::debug!(partition, records, took_ms = took, "groups loaded");
        }
        Ok(slot)
    }

    fn load_fault(&self, error: ReadError, at: Offset) -> LogFault {
        self.report_read_faults();
        match error {
            ReadError::Gone => LogFault::Gone,
            error => LogFault::Failed(format!("cannot be read at offset {at}: {}", error.error_code())),
        }
    }

    /// Appends what the coordinator decides, batch by batch. Returns when the seat is closed and all is written.
    async fn write_batches(&self, seat: &Seat, slot: Slot) -> Result<(), LogFault> {
        loop {
            let ring = seat.work.next();
            let batch = seat.coordinator.borrow_mut().next_batch(COORDINATOR_BATCH_BYTES);
            match batch {
                Some(batch) => {
                    self.append_records(slot, &batch).await?;
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
            let next = seat.waiting.borrow_mut().pop_front();
            let Some((call, origin)) = next else { break };
            self.make_call(seat, call, origin);
        }
        self.net.flush(self);
        true
    }

    async fn append_records(&self, slot: Slot, batch: &Batch) -> Result<(), LogFault> {
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
        loop {
            let room = self.coordinators.room.next();
            let (token, settled) = self.shared().waiter();
            match self.engine.append(slot, now_ms, bytes.clone(), &header, token) {
                Ok(_) => {
                    return settled
                        .await
                        .map_err(|code| LogFault::Failed(format!("an append failed: {code}")));
                }
                Err((_, AppendError::Full)) => room.await,
                Err((_, AppendError::Refused(ErrorCode::UnknownTopicOrPartition))) => {
                    return Err(LogFault::Gone);
                }
                Err((_, AppendError::Refused(code))) => {
                    return Err(LogFault::Failed(format!("an append was refused: {code}")));
                }
            }
        }
    }

    /// The engine has room again.
    pub(super) fn coordinators_have_room(&self) {
        self.coordinators.room.ring();
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
