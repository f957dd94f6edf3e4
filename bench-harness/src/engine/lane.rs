//! One producer's records for the partitions of one leader: a schedule, a connection, and what is on its way.
//!
//! ```text
//!             due                 a batch is full, or linger over             answered
//!   schedule ─────► next request ─────────────────────────────────► in flight ────────► counted, with the time
//!      ▲                 │ another connection, perhaps to                │ refused, or    since it was due
//!      │                 ▼ another leader: due again                     ▼ broken
//!      └────────────────────────────────────────────────────────── errors counted; nothing is sent again
//! ```
//!
//! Nothing queues but times, for one request: a record is made when it is sent. What the broker holds up is due all the
//! same, since the schedule waits with it, and is counted from when it was due. So a stall of any length costs no memory.
//!
//! Records whose fate is unknown (refused, or the connection broke) are not sent again: duplicates that a client makes by
//! itself would hide those that a broker makes. A load by the clock loses nothing by that, since what comes next is due.
//!
//! Invariants: nothing is allocated for a record or a request once buffers have grown; requests in flight are bounded by
//! the settings; the lateness of a send counts only while the lane was free to send.

use super::draw::{Draw, Drawn, write_key};
use super::tally::{Amount, error_name};
use super::thread::Shop;
use super::{BACKLOG_TIMEOUT, LanePlan, Place};
use crate::payload::{Header, Values};
use crate::scenario::{Load, Partitioning, Producers};
use crate::schedule::{Schedule, Share};
use crate::sequence::Sequences;
use flumen_client::Error;
use flumen_client::cluster::{Lane as Purpose, Topics};
use flumen_client::error::is_retriable;
use flumen_client::limits::{BACKOFF_MAX, BACKOFF_MIN};
use flumen_client::metadata::TopicPartition;
use flumen_client::pipe::{Asked, Pipe};
use flumen_client::producer::request::{Head, RequestWriter, VERSIONS, read_response};
use flumen_client::producer::{Identity, identity};
use flumen_client::runtime::{self, Alarm};
use flumen_wire::ApiKey;
use flumen_wire::batch::{NewRecord, sequence_after};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// What a record takes in a batch besides key and value, about.
const RECORD_OVERHEAD: usize = 12;
/// Turns of reading and writing before other lanes get theirs.
const TURNS_MAX: usize = 16;
/// The longest a lane sleeps: the end may have been moved.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// A partition that the lane sends to.
struct Slot {
    place: Place,
    /// Of the next record, in its header.
    next_sequence: u64,
    /// Of the next record, for the broker.
    next_idempotent: i32,
    acknowledged: Sequences,
    /// What the request in the making has of it.
    bytes: usize,
    records: usize,
}

/// A record of the request in the making.
#[derive(Clone, Copy)]
struct Planned {
    slot: u32,
    due_ns: u64,
    key: u64,
}

/// The request in the making. Its records have left the schedule, and wait for others until their linger is over.
#[derive(Default)]
struct Making {
    records: Vec<Planned>,
    /// With what records take besides their values.
    bytes: usize,
    value_bytes: usize,
    batches: usize,
    /// A batch of it is: it waits no longer.
    has_full_batch: bool,
    /// Nothing more fits.
    is_full: bool,
    /// The schedule as it was before.
    before: Option<Schedule>,
    /// When a batch will be full, by the schedule.
    fills_at_ns: Option<u64>,
}

impl Making {
    fn add(&mut self, one: Planned, size: usize, is_new_batch: bool) {
        self.records.push(one);
        self.bytes += size;
        self.value_bytes += size - RECORD_OVERHEAD;
        self.batches += usize::from(is_new_batch);
    }

    /// Empty again, in the memory that it has.
    fn renewed(mut self) -> Making {
        self.records.clear();
        Making { records: self.records, ..Making::default() }
    }
}

/// What is on its way in one batch.
struct BatchSent {
    slot: u32,
    records: u32,
    first_sequence: u64,
}

/// What is on its way in one request.
pub(super) struct Sent {
    batches: u32,
    records: u32,
    bytes: u32,
}

/// Why a connection was left.
enum Left {
    Done,
    /// What was refused may be taken elsewhere, or under another identity.
    Refused,
    Broken(Error),
}

/// See the head of this file.
pub(super) struct Lane {
    settings: Arc<Producers>,
    producer: u32,
    part: usize,
    lateness_part: usize,
    /// None for a closed loop.
    schedule: Option<Schedule>,
    share: Share,
    trace: Option<Arc<[u64]>>,
    /// Ascending by place.
    slots: Vec<Slot>,
    draw: Draw,
    /// The slot that was drawn for the next record, where that was not sent yet.
    drawn: Option<Drawn>,
    values: Values,
    identity: Option<Identity>,
    version: i16,
    pipe: Option<Pipe<Sent>>,
    alarm: Alarm,
    /// Of the requests in flight, oldest first.
    dues: VecDeque<u64>,
    batches: VecDeque<BatchSent>,
    making: Making,
    scratch: Vec<u8>,
    key: Vec<u8>,
    /// Whether its connection was made after the broker was killed, and nothing was acknowledged on it yet.
    heals: bool,
    /// Since when it could have sent; none while requests in flight or the socket forbid it.
    free_since: Option<Instant>,
    refused: bool,
    backoff: Duration,
}

impl Lane {
    /// Connects to the leader.
    pub(super) async fn open(shop: &Rc<Shop>, plan: LanePlan) -> Result<Lane, Error> {
        let mut lane = Lane::new(shop, plan);
        lane.connect(shop).await?;
        Ok(lane)
    }

    fn new(shop: &Shop, plan: LanePlan) -> Lane {
        let settings = plan.settings;
        let slot = |place: &Place| Slot {
            place: *place,
            next_sequence: 0,
            next_idempotent: 0,
            acknowledged: Sequences::default(),
            bytes: 0,
            records: 0,
        };
        Lane {
            producer: plan.producer,
            part: plan.part,
            lateness_part: plan.lateness_part,
            schedule: schedule(shop, &settings, plan.share, plan.trace.as_ref()),
            share: plan.share,
            trace: plan.trace,
            slots: plan.places.iter().map(slot).collect(),
            draw: Draw::new(&settings, plan.producer, plan.places.len(), shop.plan.seed),
            drawn: None,
            values: plan.values,
            identity: None,
            version: 0,
            pipe: None,
            alarm: Alarm::new(),
            dues: VecDeque::new(),
            batches: VecDeque::new(),
            making: Making::default(),
            scratch: Vec::new(),
            key: Vec::new(),
            heals: false,
            free_since: None,
            refused: false,
            backoff: BACKOFF_MIN,
            settings,
        }
    }

    async fn connect(&mut self, shop: &Shop) -> Result<(), Error> {
        let heals = shop.control.outage.is_gone();
        let at = self.topic_partition(shop, 0);
        let metadata = shop.cluster.metadata();
        let leader = metadata.leader(&at)?;
        let broker = metadata
            .broker(leader)
            .ok_or(Error::NoLeader { topic: at.topic.to_string(), partition: at.partition })?;
        let link = shop.cluster.node(leader, Purpose::Admin).await?;
        let theirs = link.versions().range(ApiKey::Produce);
        let fits = theirs.map(|(min, max)| (min.max(VERSIONS.0), max.min(VERSIONS.1)));
        self.version = match fits {
            Some((min, max)) if min <= max => max,
            _ => {
                let address = link.address().clone();
                return Err(Error::Unsupported { address, api: ApiKey::Produce, ours: VERSIONS, theirs });
            }
        };
        if self.settings.idempotent {
            self.identity = identity(&shop.cluster).await?;
            self.slots.iter_mut().for_each(|slot| slot.next_idempotent = 0);
        }
        self.pipe = Some(Pipe::connect(&broker.address()).await?);
        self.heals = heals;
        self.free_since = Some(Instant::now());
        Ok(())
    }

    fn topic_partition(&self, shop: &Shop, slot: usize) -> TopicPartition {
        let place = self.slots[slot].place;
        TopicPartition::new(&*shop.plan.topics[place.topic as usize], place.partition)
    }

    /// Sends until the end, and hands over what was acknowledged.
    pub(super) async fn run(mut self, shop: Rc<Shop>) {
        self.free_since = Some(Instant::now());
        loop {
            let left = poll_fn(|context| self.turn(&shop, context)).await;
            match left {
                Left::Done => break,
                Left::Refused => {}
                Left::Broken(error) => self.give_up_in_flight(&shop, &error),
            }
            self.refused = false;
            if !self.recover(&shop).await {
                break;
            }
        }
        let unsent = self.count_unsent(&shop);
        shop.unsent.set(shop.unsent.get() + unsent);
        let mut acknowledged = shop.acknowledged.borrow_mut();
        for slot in &self.slots {
            acknowledged.entry((self.producer, slot.place)).or_default().merge(&slot.acknowledged);
        }
        shop.lanes.set(shop.lanes.get() - 1);
    }

    /// How many records were due and never sent.
    fn count_unsent(&mut self, shop: &Shop) -> u64 {
        self.give_back();
        let (end_ns, Some(schedule)) = (shop.control.end_ns(), &mut self.schedule) else { return 0 };
        let mut unsent = 0;
        while schedule.next_ns() < end_ns {
            unsent += u64::from(schedule.next_ns() >= shop.plan.warmup.as_nanos() as u64);
            schedule.advance();
        }
        unsent
    }

    // -- what happens on a connection ---------------------------------------------------------------

    fn turn(&mut self, shop: &Shop, context: &mut Context<'_>) -> Poll<Left> {
        let Some(mut pipe) = self.pipe.take() else { return Poll::Ready(Left::Refused) };
        match self.drive(&mut pipe, shop, context) {
            Ok(None) => {
                self.pipe = Some(pipe);
                Poll::Pending
            }
            Ok(Some(left)) => {
                self.pipe = Some(pipe);
                Poll::Ready(left)
            }
            Err(error) => {
                self.pipe = Some(pipe);
                Poll::Ready(Left::Broken(error))
            }
        }
    }

    fn drive(
        &mut self,
        pipe: &mut Pipe<Sent>,
        shop: &Shop,
        context: &mut Context<'_>,
    ) -> Result<Option<Left>, Error> {
        for _ in 0..TURNS_MAX {
            let mut has_read = false;
            if let Poll::Ready(result) = pipe.poll_receive(context) {
                result?;
                has_read = true;
                let now = Instant::now();
                while let Some((asked, body)) = pipe.next()? {
                    self.settle(shop, &asked, body, now)?;
                }
            }
            let now = Instant::now();
            let has_sent = self.fill(pipe, shop, now);
            if let Poll::Ready(result) = pipe.poll_flush(context) {
                result?;
            }
            if let Some(left) = self.leaves(pipe, shop, now)? {
                return Ok(Some(left));
            }
            if !has_read && !has_sent {
                let at = self.wake_at(pipe, shop, now);
                if self.alarm.poll_at(context, at).is_pending() {
                    return Ok(None);
                }
            }
        }
        context.waker().wake_by_ref();
        Ok(None)
    }

    /// Whether it is time to go, or to go elsewhere.
    fn leaves(&self, pipe: &Pipe<Sent>, shop: &Shop, now: Instant) -> Result<Option<Left>, Error> {
        if let Some(oldest) = pipe.oldest()
            && now.saturating_duration_since(oldest.at) > shop.plan.request_timeout
        {
            let (address, after) = (pipe.address().clone(), shop.plan.request_timeout);
            return Err(Error::Timeout { address, api: ApiKey::Produce, after });
        }
        if pipe.in_flight() > 0 || pipe.unsent_bytes() > 0 {
            return Ok(shop.control.is_abandoned().then_some(Left::Done));
        }
        if self.refused {
            return Ok(Some(Left::Refused));
        }
        Ok(self.is_over(shop, now).then_some(Left::Done))
    }

    /// Whether nothing more is to be sent: all that was due before the end has been, or that takes too long.
    fn is_over(&self, shop: &Shop, now: Instant) -> bool {
        let (now_ns, end_ns) = (shop.ns(now), shop.control.end_ns());
        if now_ns < end_ns {
            return shop.control.is_abandoned();
        }
        let is_due = |schedule: &Schedule| schedule.next_ns() < end_ns;
        let has_backlog = !self.making.records.is_empty() || self.schedule.as_ref().is_some_and(is_due);
        !has_backlog || now_ns > end_ns + BACKLOG_TIMEOUT.as_nanos() as u64 || shop.control.is_abandoned()
    }

    fn wake_at(&mut self, pipe: &Pipe<Sent>, shop: &Shop, now: Instant) -> Instant {
        let latest = now + SLEEP_MAX;
        let may_send = pipe.in_flight() < self.settings.in_flight && !self.refused;
        let Some(schedule) = self.schedule.as_ref().filter(|_| may_send) else { return latest };
        let first_ns = self.making.records.first().map_or(schedule.next_ns(), |one| one.due_ns);
        let over_ns = first_ns.saturating_add(self.linger_ns());
        let due_ns =
            if over_ns == first_ns { over_ns } else { over_ns.min(self.fills_at_ns(shop.ns(now), over_ns)) };
        // As it ends, nothing waits any longer.
        let due_ns =
            if due_ns > shop.control.end_ns() { shop.control.end_ns().max(first_ns) } else { due_ns };
        latest.min(shop.at(due_ns.min(shop.ns(latest))))
    }

    fn linger_ns(&self) -> u64 {
        (self.settings.linger_ms * 1e6) as u64
    }

    /// When a batch of the request in the making will be full, or `latest_ns`. By the schedule, and where records go by
    /// lot, as these go on average.
    fn fills_at_ns(&mut self, now_ns: u64, latest_ns: u64) -> u64 {
        if let Some(at_ns) = self.making.fills_at_ns.filter(|at_ns| *at_ns > now_ns) {
            return at_ns;
        }
        let Some(mut ahead) = self.schedule.clone() else { return latest_ns };
        let (settings, planned) = (&self.settings, self.making.records.len());
        let size = RECORD_OVERHEAD + self.values.len_ahead(planned);
        let fitting = (settings.batch_bytes / size).max(1);
        let of_batch = if settings.batch_records > 0 { fitting.min(settings.batch_records) } else { fitting };
        let is_sticky = settings.partitioning == Partitioning::Sticky;
        let batches = match settings.request_batches {
            _ if is_sticky => 1,
            0 => self.slots.len(),
            batches => batches.min(self.slots.len()),
        };
        let missing = (of_batch * batches).min(settings.request_bytes / size).saturating_sub(planned);
        for _ in 1..missing {
            if ahead.next_ns() >= latest_ns {
                break;
            }
            ahead.advance();
        }
        let at_ns = ahead.next_ns().min(latest_ns);
        self.making.fills_at_ns = Some(at_ns);
        at_ns
    }

    // -- sending ----------------------------------------------------------------------------------

    /// Makes requests of what is due, as many as may be in flight. Whether it made any.
    fn fill(&mut self, pipe: &mut Pipe<Sent>, shop: &Shop, now: Instant) -> bool {
        let mut has_sent = false;
        while !self.refused {
            let is_full = pipe.in_flight() >= self.settings.in_flight
                || pipe.unsent_bytes() >= 2 * self.settings.request_bytes;
            if is_full {
                self.free_since = None;
                break;
            }
            let free_since = *self.free_since.get_or_insert(now);
            if !self.choose(shop, now) {
                break;
            }
            self.note_lateness(shop, now, free_since);
            self.send(pipe, shop, now);
            has_sent = true;
        }
        has_sent
    }

    /// Takes from the schedule what goes into one request. Whether it is time to send that.
    fn choose(&mut self, shop: &Shop, now: Instant) -> bool {
        let (now_ns, end_ns) = (shop.ns(now), shop.control.end_ns());
        if self.is_over(shop, now) {
            return false;
        }
        while !self.making.is_full {
            let due_ns = match &self.schedule {
                Some(schedule) if schedule.next_ns() > now_ns || schedule.next_ns() >= end_ns => break,
                Some(schedule) => schedule.next_ns(),
                None => now_ns,
            };
            self.add_next(shop, due_ns);
        }
        let Some(first) = self.making.records.first() else { return false };
        let has_lingered = first.due_ns.saturating_add(self.linger_ns()) <= now_ns || now_ns >= end_ns;
        if !has_lingered && !self.making.has_full_batch && !self.making.is_full && self.schedule.is_some() {
            return false;
        }
        if self.making.batches > 1 {
            self.making.records.sort_unstable_by_key(|one| (one.slot, one.due_ns));
        }
        self.clear_slots();
        true
    }

    /// Puts the next record into the request in the making, if it fits.
    fn add_next(&mut self, shop: &Shop, due_ns: u64) {
        let size = RECORD_OVERHEAD + self.values.len_ahead(self.making.records.len());
        let (slot, key) = self.drawn.unwrap_or_else(|| self.draw_next(shop));
        self.drawn = Some((slot, key));
        let (settings, making) = (&self.settings, &mut self.making);
        let is_full = |slot: &Slot| {
            slot.records > 0
                && (slot.bytes + size > settings.batch_bytes || slot.records == settings.batch_records)
        };
        let into = &mut self.slots[slot as usize];
        if is_full(into) && settings.partitioning == Partitioning::Sticky {
            self.drawn = None;
            let next = self.draw.turn(self.slots.len());
            making.is_full = self.slots[next].records > 0;
            return;
        }
        let is_new = into.records == 0;
        let ends_request = (making.bytes > 0 && making.bytes + size > settings.request_bytes)
            || (is_new && settings.request_batches > 0 && making.batches == settings.request_batches);
        if is_full(into) || ends_request {
            making.is_full = true;
            return;
        }
        into.bytes += size;
        into.records += 1;
        // The next one is taken to be like this one.
        making.has_full_batch |= is_full(into);
        if let Some(schedule) = &mut self.schedule {
            if making.records.is_empty() {
                making.before = Some(schedule.clone());
            }
            schedule.advance();
        }
        making.add(Planned { slot, due_ns, key }, size, is_new);
        self.drawn = None;
    }

    fn clear_slots(&mut self) {
        for one in &self.making.records {
            let slot = &mut self.slots[one.slot as usize];
            (slot.bytes, slot.records) = (0, 0);
        }
    }

    /// What has not been sent is due again.
    fn give_back(&mut self) {
        self.clear_slots();
        let mut making = std::mem::take(&mut self.making);
        if let Some(before) = making.before.take() {
            self.schedule = Some(before);
        }
        self.drawn = None;
        self.making = making.renewed();
    }

    /// The partition and the key of the next record.
    fn draw_next(&mut self, shop: &Shop) -> Drawn {
        let slots = &self.slots;
        self.draw.next(&shop.plan, slots.len(), |place| find(slots, place))
    }

    /// By how much the records of this request leave later than they could have.
    fn note_lateness(&self, shop: &Shop, now: Instant, free_since: Instant) {
        if self.schedule.is_none() {
            return;
        }
        let (now_ns, free_ns) = (shop.ns(now), shop.ns(free_since));
        let mut tallies = shop.tallies.borrow_mut();
        let tally = &mut tallies[self.lateness_part];
        let making = &self.making;
        // Who is sent with the first that lingered waits less, not more; a full batch waits for its last record alone.
        let dues = || making.records.iter().map(|one| one.due_ns);
        let lingered_ns = dues().min().unwrap_or(now_ns).saturating_add(self.linger_ns());
        let full_ns = match making.has_full_batch || making.is_full {
            true => dues().max().unwrap_or(now_ns),
            false => shop.control.end_ns(),
        };
        let could_ns = lingered_ns.min(full_ns).max(free_ns);
        for one in making.records.iter().filter(|one| shop.is_measured(one.due_ns)) {
            tally.time(now_ns.saturating_sub(could_ns.max(one.due_ns)));
            tally.records += 1;
        }
        tally.requests += 1;
    }

    /// Encodes what was chosen into the connection's buffer.
    fn send(&mut self, pipe: &mut Pipe<Sent>, shop: &Shop, now: Instant) {
        let making = std::mem::take(&mut self.making);
        let plan = &making.records;
        let is_same_slot = |one: &Planned, next: &Planned| one.slot == next.slot;
        let is_same_topic = |one: &Planned, next: &Planned| {
            one.slot == next.slot || self.topic_of(one) == self.topic_of(next)
        };
        let topics = plan.chunk_by(is_same_topic).count();
        let batches = plan.chunk_by(is_same_slot).count() as u32;
        let sent = Sent { batches, records: plan.len() as u32, bytes: making.value_bytes as u32 };
        let acks = self.settings.acks.code();
        let is_answered = acks != 0;
        let token = is_answered.then_some(sent);
        pipe.write((ApiKey::Produce, self.version), token, now, |buffer, correlation_id| {
            let timeout_ms = shop.plan.request_timeout.as_millis() as i32;
            let head = Head { version: self.version, client_id: &shop.plan.client_id, acks, timeout_ms };
            let mut writer = RequestWriter::new(buffer, &head, correlation_id, topics);
            let mut rest = &plan[..];
            while let Some(first) = rest.first() {
                let topic = self.topic_of(first);
                let len = rest.iter().take_while(|one| self.topic_of(one) == topic).count();
                let (of_topic, behind) = rest.split_at(len);
                rest = behind;
                writer.topic(&shop.plan.topics[topic as usize], of_topic.chunk_by(is_same_slot).count());
                for batch in of_topic.chunk_by(is_same_slot) {
                    self.write_batch(&mut writer, shop, batch, now);
                }
            }
            writer.end()
        });
        if is_answered {
            self.dues.extend(plan.iter().map(|one| one.due_ns));
        } else {
            self.count_unanswered(shop, &making, now);
        }
        self.making = making.renewed();
    }

    /// Nobody says what became of these: they count when they are sent, and are not looked for.
    fn count_unanswered(&mut self, shop: &Shop, making: &Making, now: Instant) {
        self.batches.clear();
        let measured = making.records.iter().filter(|one| shop.is_measured(one.due_ns)).count();
        if measured > 0 {
            let bytes = (making.value_bytes * measured / making.records.len()) as u64;
            let amount = Amount { requests: 1, records: measured as u64, bytes };
            shop.tallies.borrow_mut()[self.part].count(amount, shop.ns(now), shop.control.end_ns());
        }
    }

    fn topic_of(&self, one: &Planned) -> u32 {
        self.slots[one.slot as usize].place.topic
    }

    fn write_batch(&mut self, writer: &mut RequestWriter, shop: &Shop, batch: &[Planned], now: Instant) {
        let (slot, records) = (batch[0].slot, batch.len() as u32);
        let entry = &mut self.slots[slot as usize];
        let first_sequence = entry.next_sequence;
        entry.next_sequence += u64::from(records);
        let identity = self.identity.map(|identity| (identity, entry.next_idempotent));
        entry.next_idempotent = sequence_after(entry.next_idempotent, records as i32);
        self.batches.push_back(BatchSent { slot, records, first_sequence });
        let clock = &shop.control.clock;
        let start_unix_ns = clock.unix_ns(shop.start.get());
        let timestamp = (clock.unix_ns(now) / 1_000_000) as i64;
        let (partition, compression) = (entry.place.partition, self.settings.compression);
        let (values, key, has_keys) = (&mut self.values, &mut self.key, self.draw.has_keys());
        writer.batch(partition, compression, identity, &mut self.scratch, |builder| {
            for (index, one) in batch.iter().enumerate() {
                let header = Header {
                    run: shop.plan.run,
                    producer: self.producer,
                    sequence: first_sequence + index as u64,
                    due_unix_ns: start_unix_ns + one.due_ns,
                };
                let key = has_keys.then(|| {
                    write_key(key, one.key);
                    &**key
                });
                builder.push(NewRecord { timestamp, key, value: Some(values.next(&header)), headers: &[] });
            }
        });
    }

    // -- what comes back --------------------------------------------------------------------------

    fn settle(&mut self, shop: &Shop, asked: &Asked<Sent>, body: &[u8], now: Instant) -> Result<(), Error> {
        let (sent, now_ns) = (&asked.token, shop.ns(now));
        let mut tallies = shop.tallies.borrow_mut();
        let tally = &mut tallies[self.part];
        let is_closed = self.schedule.is_none();
        // A closed loop counts what was acknowledged within the time.
        let counts = |due_ns: u64| {
            if is_closed {
                shop.is_measured(now_ns) && shop.is_measured(due_ns)
            } else {
                shop.is_measured(due_ns)
            }
        };
        // The batch that is expected next, and how many records come before it.
        let (mut position, mut before) = (0, 0);
        let (mut placed, mut measured) = (0, 0_u64);
        let (batches, slots, dues) = (&self.batches, &mut self.slots, &self.dues);
        let mut refusal = None;
        let read = read_response(body, asked.version, |one| {
            let is_of = |batch: &BatchSent| {
                let place = slots[batch.slot as usize].place;
                place.partition == one.partition && *shop.plan.topics[place.topic as usize] == *one.topic
            };
            let found = batch_answered(batches, sent.batches as usize, position, is_of);
            let Some(at) = found else { return };
            let batch = &batches[at];
            if at != position {
                before = batches.iter().take(at).map(|batch| batch.records as usize).sum();
            }
            let dues = dues.range(before..before + batch.records as usize);
            (position, before, placed) = (at + 1, before + batch.records as usize, placed + 1);
            if !one.error.is_none() {
                refusal = Some(one.error);
                let failed = dues.filter(|due_ns| shop.is_measured(**due_ns)).count();
                tally.error(one.error.name(), failed as u64);
                return;
            }
            let end = batch.first_sequence + u64::from(batch.records);
            slots[batch.slot as usize].acknowledged.add_range(batch.first_sequence, end);
            for due_ns in dues.filter(|due_ns| counts(**due_ns)) {
                tally.time(now_ns.saturating_sub(*due_ns));
                measured += 1;
            }
        });
        read.map_err(|error| Error::Malformed {
            address: self.pipe.as_ref().map_or_else(|| "the broker".into(), |pipe| pipe.address().clone()),
            api: Some(ApiKey::Produce),
            why: error.to_string(),
        })?;
        if placed < sent.batches {
            tally.error("UNANSWERED", u64::from(sent.batches - placed));
        }
        if self.heals && refusal.is_none() && placed > 0 {
            self.heals = false;
            shop.control.outage.note_acknowledgement(now);
        }
        if measured > 0 {
            let bytes = u64::from(sent.bytes) * measured / u64::from(sent.records).max(1);
            let amount = Amount { requests: 1, records: measured, bytes };
            tally.count(amount, now_ns, shop.control.end_ns());
        }
        self.batches.drain(..sent.batches as usize);
        self.dues.drain(..sent.records as usize);
        match refusal {
            None => self.backoff = BACKOFF_MIN,
            Some(code) => self.refused |= self.identity.is_some() || is_retriable(code),
        }
        Ok(())
    }

    // -- going on elsewhere -----------------------------------------------------------------------

    /// Counts what was in flight on a connection that broke.
    fn give_up_in_flight(&mut self, shop: &Shop, error: &Error) {
        let failed = self.dues.iter().filter(|due_ns| shop.is_measured(**due_ns)).count() as u64;
        shop.error(self.part, &error_name(error), failed.max(1));
        self.dues.clear();
        self.batches.clear();
        self.pipe = None;
    }

    /// Finds the leader and connects to it, until that succeeds. False when the load is over.
    async fn recover(&mut self, shop: &Rc<Shop>) -> bool {
        self.give_back();
        loop {
            let now = Instant::now();
            let is_late = shop.ns(now) > shop.control.end_ns() + BACKLOG_TIMEOUT.as_nanos() as u64;
            let is_over = self.is_over(shop, now) && self.dues.is_empty();
            if is_late || is_over || shop.control.is_abandoned() {
                return false;
            }
            runtime::sleep(self.backoff).await;
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
            match self.reroute(shop).await {
                Ok(()) => return true,
                Err(error) => shop.error(self.part, &error_name(&error), 1),
            }
        }
    }

    async fn reroute(&mut self, shop: &Rc<Shop>) -> Result<(), Error> {
        let names: Vec<&str> = shop.plan.topics.iter().map(|name| &**name).collect();
        shop.cluster.refresh(Topics::Named(&names), false).await?;
        let metadata = shop.cluster.metadata();
        let mut by_leader: BTreeMap<i32, Vec<Place>> = BTreeMap::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let leader = metadata.leader(&self.topic_partition(shop, index))?;
            by_leader.entry(leader).or_default().push(slot.place);
        }
        // What has another leader than the first partition gets lanes of its own, with their share of the load.
        let first = metadata.leader(&self.topic_partition(shop, 0))?;
        by_leader.remove(&first);
        for moved in by_leader.values() {
            // Of what is left after those before.
            let part = moved.len() as f64 / self.slots.len() as f64;
            let slots = self.slots.extract_if(.., |slot| moved.binary_search(&slot.place).is_ok()).collect();
            self.split(shop, slots, part).await?;
        }
        self.connect(shop).await
    }

    /// Gives some of the partitions to a lane of their own, with their part of what is still to come.
    async fn split(&mut self, shop: &Rc<Shop>, slots: Vec<Slot>, part: f64) -> Result<(), Error> {
        let (index, count) = (self.share.index, self.share.count);
        let whole = self.share.part;
        let share = |part: f64, index: usize| Share { part: whole * part, index, count: 2 * count };
        let plan = LanePlan {
            settings: self.settings.clone(),
            producer: self.producer,
            places: slots.iter().map(|slot| slot.place).collect(),
            share: share(part, index + count),
            values: self.values.clone(),
            trace: self.trace.clone(),
            part: self.part,
            lateness_part: self.lateness_part,
        };
        let next_ns = self.schedule.as_ref().map_or(0, Schedule::next_ns);
        let mut other = Lane::new(shop, plan);
        other.slots = slots;
        self.share = share(1.0 - part, index);
        self.schedule = schedule(shop, &self.settings, self.share, self.trace.as_ref());
        for lane in [&mut *self, &mut other] {
            lane.drawn = None;
            lane.draw.begin_again();
            while lane.schedule.as_ref().is_some_and(|schedule| schedule.next_ns() < next_ns) {
                lane.schedule.as_mut().into_iter().for_each(Schedule::advance);
            }
        }
        shop.lanes.set(shop.lanes.get() + 1);
        let running: Pin<Box<dyn Future<Output = ()>>> = Box::pin(other.run(shop.clone()));
        runtime::spawn(running);
        Ok(())
    }
}

/// Which of the oldest `count` batches, those of one request, an answer is for. They mostly come back as they were sent, so
/// the one at `next` is looked at first; behind the request is another, which may have the same partitions.
fn batch_answered(
    batches: &VecDeque<BatchSent>,
    count: usize,
    next: usize,
    is_of: impl Fn(&BatchSent) -> bool,
) -> Option<usize> {
    (next..count).chain(0..next).find(|at| batches.get(*at).is_some_and(&is_of))
}

/// None for a closed loop.
fn schedule(shop: &Shop, settings: &Producers, share: Share, trace: Option<&Arc<[u64]>>) -> Option<Schedule> {
    let over_s = shop.plan.length.as_secs_f64();
    (settings.load == Load::Open).then(|| Schedule::new(settings, share, over_s, shop.plan.seed, trace))
}

fn find(slots: &[Slot], place: Place) -> Option<u32> {
    slots.binary_search_by_key(&place, |slot| slot.place).ok().map(|index| index as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_in_another_order_is_not_for_the_next_request() {
        let sent = [1, 2, 3, 1, 2, 3].map(|slot| BatchSent { slot, records: 1, first_sequence: 0 });
        let batches = VecDeque::from(sent);
        // Two requests with three batches each; the first is answered with its last batch first.
        let mut next = 0;
        let answered = [3, 1, 2].map(|slot| {
            let at = batch_answered(&batches, 3, next, |batch| batch.slot == slot).expect("it was sent");
            next = at + 1;
            at
        });
        assert_eq!(answered, [2, 0, 1]);
        assert_eq!(batch_answered(&batches, 3, 3, |batch| batch.slot == 4), None);
    }
}
