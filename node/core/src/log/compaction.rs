//! What compaction does with a log: when it is worth it, which segments become one, which records stay.
//!
//! ```text
//!  log_start      first_dirty             end               high watermark
//!     |--- clean ----|------- dirty -------|- too young, open --|
//!     [segment][segment][segment][segment] [segment][active     ]
//! ```
//!
//! Kafka's rules (`LogCleanerManager.cleanableOffsets`, `Cleaner`): a pass reads keys of the dirty part into an
//! [`OffsetMap`] as far as it holds them, then goes over everything below the end of what the map knows, clean part included,
//! and keeps of each key the last record. A pass that the map was too small for leaves a dirty part for the next one.
//!
//! Invariants: offsets never change; nothing at or above [`Cleanable::end`] is read or written; the last batch of a pass
//! and the last batch of each producer stay, emptied if need be, so that neither the end nor a sequence is lost.

use std::collections::HashMap;

use flumen_wire::batch::{BatchHeader, Record};

use super::{Log, OffsetMap, Segment, index_full};
use crate::config::LogConfig;
use crate::limits::SEGMENT_BYTES_MAX;
use crate::types::{Offset, ProducerId};

/// What of a log may be compacted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleanable {
    /// Below it each key occurs once, as far as earlier passes saw.
    pub first_dirty: Offset,
    /// Base offset of the first segment that must stay as it is.
    pub end: Offset,
    /// Bytes of segments below the dirty ones.
    pub clean_bytes: u64,
    /// Bytes of segments that hold anything from `first_dirty` to `end`.
    pub dirty_bytes: u64,
    /// A record of the dirty part is older than `max.compaction.lag.ms`.
    pub overdue: bool,
}

impl Cleanable {
    /// Share of the dirty part, 0 to 1.
    pub fn dirty_ratio(&self) -> f64 {
        self.dirty_bytes as f64 / (self.clean_bytes + self.dirty_bytes).max(1) as f64
    }

    /// Whether a pass is worth it.
    pub fn is_due(&self, config: &LogConfig) -> bool {
        self.overdue || self.dirty_ratio() > config.min_cleanable_dirty_ratio
    }
}

/// Neighbouring segments that become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Base offsets, in order.
    pub bases: Vec<Offset>,
    /// Base offset of the segment after them.
    pub end: Offset,
    /// Bytes of them all.
    pub size: u64,
}

impl Group {
    /// Base offset of what they become.
    pub fn first(&self) -> Offset {
        self.bases[0]
    }
}

impl Log {
    /// What may be compacted at this moment: closed segments that end at or below `below`, and of these from the first
    /// dirty one on only those that `min.compaction.lag.ms` lets. `cleaned` is how far earlier passes came. `None` where
    /// nothing is dirty.
    pub fn cleanable(
        &self,
        now_ms: i64,
        config: &LogConfig,
        cleaned: Option<Offset>,
        below: Offset,
    ) -> Option<Cleanable> {
        let start = self.log_start();
        // A position outside the log is of a log that was cut since.
        let first_dirty = cleaned.filter(|at| (start..=self.log_end()).contains(at)).unwrap_or(start);
        let segments = self.segments();
        let from = self.segment_of(first_dirty)?;
        let time_of = |time: i64, segment: &Segment| if time >= 0 { time } else { segment.created_ms };
        let mut end = segments[from].base_offset;
        let (mut dirty_bytes, mut earliest) = (0, i64::MAX);
        for pair in segments[from..].windows(2) {
            let (segment, next) = (&pair[0], pair[1].base_offset);
            let age = now_ms.saturating_sub(time_of(segment.max_timestamp, segment));
            if next > below || (config.min_compaction_lag_ms > 0 && age < config.min_compaction_lag_ms) {
                break;
            }
            dirty_bytes += segment.size;
            earliest = earliest.min(time_of(segment.first_timestamp, segment));
            end = next;
        }
        if end <= first_dirty || dirty_bytes == 0 {
            return None;
        }
        let clean_bytes = segments[..from].iter().map(|segment| segment.size).sum();
        let overdue = now_ms.saturating_sub(earliest) > config.max_compaction_lag_ms;
        Some(Cleanable { first_dirty, end, clean_bytes, dirty_bytes, overdue })
    }

    /// The segments below `end`, dealt into groups that each become one segment: no larger than `segment.bytes`, with
    /// offsets and indexes that fit one (`Cleaner.groupSegmentsBySize`). A segment that is larger stands alone.
    pub fn compaction_groups(&self, end: Offset, config: &LogConfig) -> Vec<Group> {
        let bytes_max = u64::from(config.segment_bytes).min(SEGMENT_BYTES_MAX);
        let mut groups: Vec<Group> = Vec::new();
        for pair in self.segments().windows(2).filter(|pair| pair[0].base_offset < end) {
            let (segment, next) = (&pair[0], pair[1].base_offset);
            if let Some(group) = groups.last_mut() {
                let size = group.size + segment.size;
                let span = next.0 - 1 - group.first().0;
                if size <= bytes_max && !index_full(size, config) && span <= i64::from(i32::MAX) {
                    group.bases.push(segment.base_offset);
                    (group.end, group.size) = (next, size);
                    continue;
                }
            }
            groups.push(Group { bases: vec![segment.base_offset], end: next, size: segment.size });
        }
        groups
    }

    /// Puts one segment in the place of those from its base offset up to `end`, which is where another one begins.
    /// Returns the base offsets that are no more. `None` when the log has no such places.
    pub fn replace(&mut self, end: Offset, merged: Segment) -> Option<Vec<Offset>> {
        let find = |base| self.segments.iter().position(|segment| segment.base_offset == base);
        let (from, to) = (find(merged.base_offset)?, find(end)?);
        if from >= to || merged.size > SEGMENT_BYTES_MAX {
            return None;
        }
        let gone = self.segments.splice(from..to, [merged]).skip(1);
        Some(gone.map(|segment| segment.base_offset).collect())
    }
}

/// What is done with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays as it is.
    Whole,
    /// Each of its records is judged.
    Judged,
}

/// One pass over a log: which records stay.
#[derive(Debug)]
pub struct Pass {
    /// What the dirty part holds.
    pub map: OffsetMap,
    /// The time of the pass.
    pub now_ms: i64,
    /// `delete.retention.ms`.
    pub delete_retention_ms: i64,
    /// The last offset that each known producer wrote.
    pub last_offsets: HashMap<ProducerId, Offset>,
}

impl Pass {
    /// What becomes of a batch. Control batches stay; so does what the map does not know yet.
    pub fn fate(&self, header: &BatchHeader) -> Fate {
        if header.is_control() || header.base_offset >= self.map.end().0 { Fate::Whole } else { Fate::Judged }
    }

    /// Whether a record of a judged batch stays: it has a key, the dirty part holds no later one of that key, and if it
    /// is a tombstone, its time is not over.
    pub fn keeps(&self, header: &BatchHeader, record: &Record<'_>) -> bool {
        if record.offset >= self.map.end().0 {
            return true;
        }
        let Some(key) = record.key else { return false };
        if self.map.get(key).is_some_and(|last| record.offset < last.0) {
            return false;
        }
        // The horizon is set when a tombstone is first met, hence never over then.
        let over = header.attributes.has_delete_horizon() && self.now_ms >= header.base_timestamp;
        record.value.is_some() || !over
    }

    /// The time that a batch gets which keeps a tombstone: from then on a pass removes it. `None` where it has one.
    pub fn delete_horizon(&self, header: &BatchHeader) -> Option<i64> {
        let horizon = self.now_ms.saturating_add(self.delete_retention_ms);
        (!header.attributes.has_delete_horizon()).then_some(horizon)
    }

    /// Whether a batch without records stays: it is the last that its producer wrote, or the last of the pass.
    pub fn keeps_header(&self, header: &BatchHeader) -> bool {
        let last = self.last_offsets.get(&ProducerId(header.producer_id));
        let of_producer = header.has_producer_id() && last.is_some_and(|last| last.0 == header.last_offset());
        of_producer || header.next_offset() == self.map.end().0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
