//! Idempotence: what one partition remembers of its producers, so that a batch that is sent twice is written once, a
//! batch that overtook another is refused, and an older instance of a producer is fenced (KIP-98, KIP-360).
//!
//! Owned by the partition's shard. Persisted in checkpoints, rebuilt past them from the log's batches in order. Its
//! state advances when a batch is *placed*, not when it is durable, so that batches in flight follow each other; should
//! the append fail for good, the partition is loaded anew.
//!
//! ```text
//!   unknown --first batch--> known(epoch, window of 5 batches) --higher epoch, sequence 0--> known(epoch', window of 1)
//!      ^                        |
//!      +-- expired or evicted --+
//! ```
//!
//! A batch that was good but found no space ([`ProducerTable::refuse`]) is remembered too, where its producer is not
//! known: what the producer sent behind it must not be taken for its first once there is space again. Kafka has no such
//! case, as it meets the full disk when the log directory is already lost.
//!
//! Differences from Kafka, all on purpose:
//! - A producer's time of expiry counts from its last append here, not from its records' timestamps, which may be
//!   those of old data.
//! - The number of producers is bounded: the longest idle go first.
//! - In a partition that never held anything a producer begins with sequence 0, so that its first batches cannot overtake each
//!   other; unless a topic of that name was deleted since the node started ([`ProducerTable::expect_old`]). Kafka takes any
//!   sequence of a producer that it does not know, and to refuse that of one which outlived its topic ends some clients.
//!
//! A repeated batch that is older than the window is OUT_OF_ORDER_SEQUENCE_NUMBER, as in Kafka. Clients take the
//! former answer, DUPLICATE_SEQUENCE_NUMBER, for success, which may not be said before the first one is durable.
//!
//! Invariants: a window's batches rise in offset and follow each other in sequence; an epoch never goes back.

use crate::types::{Offset, ProducerEpoch, ProducerId, Timestamp};
use flumen_wire::ErrorCode;
use flumen_wire::batch::{BatchHeader, sequence_after};
use std::collections::BTreeMap;
use std::fmt;

/// Batches of a producer that are remembered; Kafka's clients have at most as many in flight.
pub const WINDOW_BATCHES: usize = 5;
/// Producers that a partition remembers.
pub const PRODUCERS_PER_PARTITION_MAX: usize = 2048;
/// How many go at once when there are more, so that finding the oldest is not paid for by every new producer.
pub const PRODUCERS_EVICTED_AT_ONCE: usize = PRODUCERS_PER_PARTITION_MAX / 16;
/// `producer.id.expiration.ms` unless it is set.
pub const PRODUCER_ID_EXPIRATION_MS: i64 = 86_400_000;

const _: () = assert!(PRODUCERS_EVICTED_AT_ONCE > 0);
const _: () = assert!(PRODUCERS_PER_PARTITION_MAX * size_of::<ProducerState>() <= 512 << 10);

/// One batch that a producer wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchState {
    /// Sequence number of its last record.
    pub last_sequence: i32,
    /// Last offset minus first offset.
    pub offset_delta: i32,
    /// Its last offset.
    pub last_offset: Offset,
    /// Its `max_timestamp` as it stands in the log: the time of the append under LogAppendTime.
    pub timestamp: Timestamp,
}

/// What is remembered of one producer; also what is persisted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProducerState {
    /// Its id.
    pub producer_id: ProducerId,
    /// Its current epoch.
    pub epoch: ProducerEpoch,
    /// When it last wrote, by the clock of the node.
    pub seen: Timestamp,
    window: [BatchState; WINDOW_BATCHES],
    window_len: u8,
}

/// What is to be done with a batch that may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Write it.
    Append,
    /// It was written before: answer as was (or, while that is not durable, will be) answered then.
    Duplicate {
        /// Where its first record is.
        base_offset: Offset,
        /// Where its last record is.
        last_offset: Offset,
        /// `log_append_time` of the answer.
        append_time: Timestamp,
    },
}

/// Why a batch may not be written. The text is for the answer's `error_message`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceError {
    /// A newer instance of the producer has written.
    Fenced {
        /// Of the batch.
        epoch: ProducerEpoch,
        /// The producer's.
        current: ProducerEpoch,
    },
    /// Neither what comes next nor one of the last batches.
    OutOfOrder {
        /// First sequence of the batch.
        sequence: i32,
        /// What would have been taken.
        expected: i32,
    },
}

/// The batch with which an unknown producer must begin, since it was refused once.
#[derive(Clone, Copy, Debug)]
struct Refused {
    epoch: ProducerEpoch,
    sequence: i32,
    at: Timestamp,
}

/// Everything of a table that is persisted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerSnapshot {
    /// Whether the partition, or one of its name before it, ever held a batch, of whatever producer.
    pub written: bool,
    /// By rising producer id.
    pub producers: Vec<ProducerState>,
}

/// A snapshot that no table can have made; holds the producer at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotError(pub ProducerId);

/// One producer for DescribeProducers. Transactions are not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveProducer {
    /// Its id.
    pub producer_id: ProducerId,
    /// Its current epoch.
    pub epoch: ProducerEpoch,
    /// The last sequence number that it wrote.
    pub last_sequence: i32,
    /// The `max_timestamp` of the last batch that it wrote.
    pub last_timestamp: Timestamp,
}

/// The producers of one partition. An idle partition's takes no memory besides itself.
#[derive(Clone, Debug)]
pub struct ProducerTable {
    producers: BTreeMap<ProducerId, Box<ProducerState>>,
    /// Not persisted: after a restart no batch is in flight. At most as many as producers.
    refused: BTreeMap<ProducerId, Refused>,
    written: bool,
    expiration_ms: i64,
}

impl ProducerTable {
    /// For a partition that never held a batch.
    pub fn new(expiration_ms: i64) -> ProducerTable {
        ProducerTable { producers: BTreeMap::new(), refused: BTreeMap::new(), written: false, expiration_ms }
    }

    /// The partition has held nothing, but one of the same name may have, before it was deleted: producers that do not
    /// know of that go on where they were.
    pub fn expect_old(&mut self) {
        self.written = true;
    }

    /// Whether a checked batch may be written now. Changes nothing: after an append call [`ProducerTable::update`].
    pub fn check(&self, now_ms: i64, header: &BatchHeader) -> Result<Verdict, SequenceError> {
        if !header.has_producer_id() {
            return Ok(Verdict::Append);
        }
        let known = self.producers.get(&ProducerId(header.producer_id));
        match known.filter(|producer| !self.is_expired(now_ms, producer)) {
            Some(producer) => producer.check(header),
            None => self.check_first(header),
        }
    }

    fn check_first(&self, header: &BatchHeader) -> Result<Verdict, SequenceError> {
        let sequence = header.base_sequence;
        let refused = self.refused.get(&ProducerId(header.producer_id));
        match refused.filter(|refused| refused.epoch.0 == header.producer_epoch) {
            Some(refused) if refused.sequence == sequence => Ok(Verdict::Append),
            Some(refused) => Err(SequenceError::OutOfOrder { sequence, expected: refused.sequence }),
            // Retention or expiry may have taken what was known, so any sequence is accepted, as in Kafka; but a
            // partition that never held anything has lost nothing, and its first batches must not overtake each other.
            // (One that bears the name of a deleted one is not such a partition.)
            None if self.written || sequence == 0 => Ok(Verdict::Append),
            None => Err(SequenceError::OutOfOrder { sequence, expected: 0 }),
        }
    }

    /// Notes a batch that [`ProducerTable::check`] lets through and that is refused all the same, to be sent again: there
    /// is no space for it.
    pub fn refuse(&mut self, now_ms: i64, header: &BatchHeader) {
        let id = ProducerId(header.producer_id);
        let (epoch, sequence) = (ProducerEpoch(header.producer_epoch), header.base_sequence);
        let known = self.producers.get(&id).is_some_and(|producer| !self.is_expired(now_ms, producer));
        // One that is known is held to its window.
        if known || !header.has_producer_id() || self.check(now_ms, header) != Ok(Verdict::Append) {
            return;
        }
        if self.refused.len() >= PRODUCERS_PER_PARTITION_MAX && !self.refused.contains_key(&id) {
            self.refused.pop_first(); // ids rise: the oldest producer
        }
        self.refused.insert(id, Refused { epoch, sequence, at: Timestamp(now_ms) });
    }

    /// Notes a batch that was placed: its header as it will stand in the log. Call it for every batch, also those
    /// without a producer id.
    pub fn update(&mut self, now_ms: i64, placed: &BatchHeader) {
        debug_assert_eq!(self.check(now_ms, placed), Ok(Verdict::Append), "{placed:?}");
        self.apply(now_ms, placed);
    }

    /// Notes a batch found in the log, in order of offsets, at recovery. `seen_ms` is from when expiry counts: the time
    /// of the recovery for what is young, the batch's own timestamp for what may be old.
    pub fn apply_recovered(&mut self, seen_ms: i64, found: &BatchHeader) {
        self.apply(seen_ms, found);
    }

    fn apply(&mut self, seen_ms: i64, header: &BatchHeader) {
        self.written = true;
        if !header.has_producer_id() || header.is_control() {
            return;
        }
        let id = ProducerId(header.producer_id);
        self.refused.remove(&id);
        if !self.producers.contains_key(&id) && self.producers.len() >= PRODUCERS_PER_PARTITION_MAX {
            self.evict_oldest(PRODUCERS_EVICTED_AT_ONCE);
        }
        let expired = self.producers.get(&id).is_some_and(|producer| self.is_expired(seen_ms, producer));
        let fresh = || Box::new(ProducerState::first(header));
        let producer = self.producers.entry(id).or_insert_with(fresh);
        if expired {
            **producer = ProducerState::first(header);
        }
        producer.push(seen_ms, header);
    }

    fn is_expired(&self, now_ms: i64, producer: &ProducerState) -> bool {
        now_ms.saturating_sub(producer.seen.0) >= self.expiration_ms
    }

    /// Forgets producers that have not written for `producer.id.expiration.ms`; answers how many.
    pub fn expire(&mut self, now_ms: i64) -> usize {
        let before = self.producers.len();
        let expiration_ms = self.expiration_ms;
        self.producers.retain(|_, producer| now_ms.saturating_sub(producer.seen.0) < expiration_ms);
        self.refused.retain(|_, refused| now_ms.saturating_sub(refused.at.0) < expiration_ms);
        before - self.producers.len()
    }

    /// Forgets the `count` producers that have been idle longest: those whose last offset is lowest.
    pub fn evict_oldest(&mut self, count: usize) {
        if count >= self.producers.len() {
            self.producers.clear();
        } else if count > 0 {
            let mut last_offsets: Vec<Offset> = self.producers.values().map(|p| p.last_offset()).collect();
            let (_, &mut oldest_kept, _) = last_offsets.select_nth_unstable(count);
            self.producers.retain(|_, producer| producer.last_offset() >= oldest_kept);
        }
    }

    /// The setting has changed.
    pub fn set_expiration_ms(&mut self, expiration_ms: i64) {
        self.expiration_ms = expiration_ms;
    }

    /// The log now ends at `log_end` (exclusive): what was written past it is forgotten.
    pub fn truncate_to(&mut self, log_end: Offset) {
        self.producers.retain(|_, producer| {
            producer.truncate_to(log_end);
            producer.window_len > 0
        });
    }

    /// The last offset that each producer wrote.
    pub fn last_offsets(&self) -> impl Iterator<Item = (ProducerId, Offset)> {
        self.producers.iter().map(|(id, producer)| (*id, producer.last_offset()))
    }

    /// How many producers are known.
    pub fn len(&self) -> usize {
        self.producers.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// The producers known now, by rising id.
    pub fn active(&self, now_ms: i64) -> impl Iterator<Item = ActiveProducer> {
        let alive = move |producer: &&ProducerState| !self.is_expired(now_ms, producer);
        self.producers.values().map(|producer| &**producer).filter(alive).filter_map(|producer| {
            let last = producer.window().last()?;
            Some(ActiveProducer {
                producer_id: producer.producer_id,
                epoch: producer.epoch,
                last_sequence: last.last_sequence,
                last_timestamp: last.timestamp,
            })
        })
    }

    /// What a checkpoint keeps.
    pub fn snapshot(&self) -> ProducerSnapshot {
        let producers = self.producers.values().map(|producer| **producer).collect();
        ProducerSnapshot { written: self.written, producers }
    }

    /// From what a checkpoint kept.
    pub fn restore(expiration_ms: i64, snapshot: &ProducerSnapshot) -> Result<ProducerTable, SnapshotError> {
        let mut producers = BTreeMap::new();
        for producer in &snapshot.producers {
            let id = producer.producer_id;
            let rises = producers.last_key_value().is_none_or(|(last, _)| *last < id);
            if !rises || producers.len() == PRODUCERS_PER_PARTITION_MAX || !producer.is_sound() {
                return Err(SnapshotError(id));
            }
            producers.insert(id, Box::new(*producer));
        }
        let written = snapshot.written || !producers.is_empty();
        Ok(ProducerTable { producers, refused: BTreeMap::new(), written, expiration_ms })
    }
}

impl ProducerState {
    /// From persisted parts; `batches` are the latest of the window, oldest first, at most [`WINDOW_BATCHES`].
    pub fn from_parts(
        producer_id: ProducerId,
        epoch: ProducerEpoch,
        seen: Timestamp,
        batches: &[BatchState],
    ) -> Option<ProducerState> {
        let mut window = [BatchState::default(); WINDOW_BATCHES];
        window.get_mut(..batches.len())?.copy_from_slice(batches);
        let window_len = batches.len() as u8;
        let state = ProducerState { producer_id, epoch, seen, window, window_len };
        state.is_sound().then_some(state)
    }

    /// The latest batches, oldest first; never empty in a table.
    pub fn window(&self) -> &[BatchState] {
        &self.window[..usize::from(self.window_len)]
    }

    /// A producer whose first batch is about to be pushed.
    fn first(header: &BatchHeader) -> ProducerState {
        ProducerState {
            producer_id: ProducerId(header.producer_id),
            epoch: ProducerEpoch(header.producer_epoch),
            ..ProducerState::default()
        }
    }

    fn last_offset(&self) -> Offset {
        self.window().last().map_or(Offset(-1), |last| last.last_offset)
    }

    fn check(&self, header: &BatchHeader) -> Result<Verdict, SequenceError> {
        let (sequence, epoch) = (header.base_sequence, ProducerEpoch(header.producer_epoch));
        if epoch < self.epoch {
            return Err(SequenceError::Fenced { epoch, current: self.epoch });
        }
        if epoch > self.epoch {
            return match sequence {
                0 => Ok(Verdict::Append),
                _ => Err(SequenceError::OutOfOrder { sequence, expected: 0 }),
            };
        }
        let Some(last) = self.window().last() else { return Ok(Verdict::Append) };
        let same = |b: &&BatchState| {
            b.last_sequence == header.last_sequence() && b.offset_delta == header.last_offset_delta
        };
        if let Some(written) = self.window().iter().find(same) {
            return Ok(Verdict::Duplicate {
                base_offset: written.base_offset(),
                last_offset: written.last_offset,
                append_time: written.timestamp,
            });
        }
        match sequence_after(last.last_sequence, 1) {
            expected if expected == sequence => Ok(Verdict::Append),
            expected => Err(SequenceError::OutOfOrder { sequence, expected }),
        }
    }

    /// Adds the newest batch. One that does not follow the last (found in a log at recovery) begins a new window, as what
    /// lies between is not known.
    fn push(&mut self, seen_ms: i64, header: &BatchHeader) {
        let epoch = ProducerEpoch(header.producer_epoch);
        if epoch < self.epoch {
            return; // fencing never goes back
        }
        let follows = epoch == self.epoch
            && self
                .window()
                .last()
                .is_some_and(|last| sequence_after(last.last_sequence, 1) == header.base_sequence);
        if !follows {
            self.window_len = 0;
        }
        if usize::from(self.window_len) == WINDOW_BATCHES {
            self.window.copy_within(1.., 0);
            self.window_len -= 1;
        }
        self.window[usize::from(self.window_len)] = BatchState {
            last_sequence: header.last_sequence(),
            offset_delta: header.last_offset_delta,
            last_offset: Offset(header.last_offset()),
            timestamp: Timestamp(header.max_timestamp),
        };
        self.window_len += 1;
        self.epoch = epoch;
        self.seen = self.seen.max(Timestamp(seen_ms));
    }

    fn truncate_to(&mut self, log_end: Offset) {
        while self.window_len > 0 && self.last_offset() >= log_end {
            self.window_len -= 1;
        }
    }

    fn is_sound(&self) -> bool {
        let window = self.window.get(..usize::from(self.window_len)).unwrap_or(&[]);
        let batches_sound = window
            .iter()
            .all(|b| b.last_sequence >= 0 && b.offset_delta >= 0 && b.last_offset.0 >= b.offset_delta.into());
        let rises = window.windows(2).all(|w| {
            w[0].last_offset < w[1].base_offset()
                && sequence_after(w[0].last_sequence, 1) == w[1].first_sequence()
        });
        !window.is_empty() && batches_sound && rises && self.producer_id.0 >= 0 && self.epoch.0 >= 0
    }
}

impl BatchState {
    /// Where its first record is.
    pub fn base_offset(&self) -> Offset {
        Offset(self.last_offset.0 - i64::from(self.offset_delta))
    }

    /// Sequence number of its first record.
    pub fn first_sequence(&self) -> i32 {
        self.last_sequence.wrapping_sub(self.offset_delta) & i32::MAX
    }
}

impl SequenceError {
    /// For the partition's response.
    pub fn error_code(&self) -> ErrorCode {
        match self {
            SequenceError::Fenced { .. } => ErrorCode::InvalidProducerEpoch,
            SequenceError::OutOfOrder { .. } => ErrorCode::OutOfOrderSequenceNumber,
        }
    }
}

impl From<SequenceError> for ErrorCode {
    fn from(error: SequenceError) -> ErrorCode {
        error.error_code()
    }
}

impl fmt::Display for SequenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SequenceError::Fenced { epoch, current } => {
                write!(f, "producer epoch {epoch} is older than the current {current}")
            }
            SequenceError::OutOfOrder { sequence, expected } => {
                write!(f, "sequence {sequence} is out of order, {expected} is next")
            }
        }
    }
}

impl std::error::Error for SequenceError {}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the state of producer {} contradicts itself", self.0)
    }
}

impl std::error::Error for SnapshotError {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
