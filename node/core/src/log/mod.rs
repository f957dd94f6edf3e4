//! One partition's log as arithmetic: offsets, segments, positions; where a batch goes, when a segment is rolled,
//! what retention may delete, what compaction keeps.
//!
//! Offsets are decided here, at placement, before anything is durable; what could not be journalled is taken back
//! with [`Log::rewind`]. The high watermark is the engine's to keep.
//!
//! ```text
//!  log_start                                      log_end
//!     v                                              v
//! [segment 0 ....][segment 1 ....][active segment ....]
//! ```
//!
//! Invariants: segments are in order of base offset and the last is the active one; each begins where the one
//! before ends, in offsets; `segments[0].base_offset <= log_start <= log_end`; no segment passes
//! [`SEGMENT_BYTES_MAX`], nor an offset `i32::MAX` from its segment's base.

mod compaction;
mod offset_map;
mod retention;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use compaction::{Cleanable, Fate, Group, Pass};
pub use offset_map::{OffsetMap, SLOT_BYTES};
pub use retention::{Deletable, Reason};

use crate::config::LogConfig;
use crate::limits::{SEGMENT_BYTES_MAX, SMALL_SEGMENTS_MAX};
use crate::types::Offset;

/// One segment, by what the log knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset of its first record, and its name.
    pub base_offset: Offset,
    /// Bytes of batches placed in it.
    pub size: u64,
    /// Largest timestamp in it; -1 where no record has one.
    pub max_timestamp: i64,
    /// `max_timestamp` of its first batch, from which `segment.ms` counts; -1 where there is none.
    pub first_timestamp: i64,
    /// When it was made, in broker time: what counts where records have no timestamps.
    pub created_ms: i64,
}

impl Segment {
    /// An empty segment.
    pub fn new(base_offset: Offset, created_ms: i64) -> Segment {
        Segment { base_offset, size: 0, max_timestamp: -1, first_timestamp: -1, created_ms }
    }
}

/// What placement needs to know of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Bytes of the whole batch.
    pub size: u64,
    /// How many offsets it takes: `last_offset_delta + 1`.
    pub records: i64,
    /// Its largest timestamp, as it will be stored.
    pub max_timestamp: i64,
}

/// Where a batch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Offset of its last.
    pub last_offset: Offset,
    /// The segment.
    pub segment_base: Offset,
    /// Where in the segment.
    pub position: u64,
    /// Whether the segment is new.
    pub rolled: bool,
}

/// Why a batch cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceError {
    /// It is larger than a segment may be.
    TooLarge,
    /// The log is at the last offset there is.
    Exhausted,
}

/// Where the log ended at some moment, to go back to. Valid while nothing before it was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    log_end: Offset,
    active: Segment,
}

impl Mark {
    /// Offset of the next record at that moment.
    pub fn log_end(&self) -> Offset {
        self.log_end
    }

    /// The segment that was active.
    pub fn active_base(&self) -> Offset {
        self.active.base_offset
    }
}

/// One partition's log. See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    log_start: Offset,
    log_end: Offset,
    segments: Vec<Segment>,
}

impl Log {
    /// An empty log that begins at `start`.
    pub fn new(start: Offset, now_ms: i64) -> Log {
        Log { log_start: start, log_end: start, segments: vec![Segment::new(start, now_ms)] }
    }

    /// A log as a checkpoint or recovery knows it. `None` when the parts do not fit together.
    pub fn restore(log_start: Offset, log_end: Offset, segments: Vec<Segment>) -> Option<Log> {
        let rising = segments.windows(2).all(|pair| pair[0].base_offset < pair[1].base_offset);
        let bounded = segments.iter().all(|segment| segment.size <= SEGMENT_BYTES_MAX);
        let (first, last) = (segments.first()?, segments.last()?);
        let fits = first.base_offset <= log_start && log_start <= log_end && last.base_offset <= log_end;
        // Records take space: an active segment is empty exactly when the log ends at its base.
        let exact = (last.size == 0) == (last.base_offset == log_end);
        (rising && bounded && fits && exact).then_some(Log { log_start, log_end, segments })
    }

    /// First offset that may be read.
    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    /// Offset of the next record.
    pub fn log_end(&self) -> Offset {
        self.log_end
    }

    /// All segments, oldest first; the last is active.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segment that is appended to.
    pub fn active(&self) -> &Segment {
        self.segments.last().expect("a log always has an active segment")
    }

    /// Bytes of batches in all segments.
    pub fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size).sum()
    }

    /// Index of the segment that holds `offset`, or would.
    pub fn segment_of(&self, offset: Offset) -> Option<usize> {
        self.segments.partition_point(|segment| segment.base_offset <= offset).checked_sub(1)
    }

    /// Gives a batch its offsets and its place, and moves the end past it.
    pub fn place(
        &mut self,
        now_ms: i64,
        config: &LogConfig,
        batch: &Incoming,
    ) -> Result<Placement, PlaceError> {
        assert!(batch.size > 0 && batch.records > 0, "an empty batch was checked before");
        if batch.size > u64::from(config.segment_bytes).min(SEGMENT_BYTES_MAX) {
            return Err(PlaceError::TooLarge);
        }
        let base_offset = self.log_end;
        let next = base_offset.checked_add(batch.records).ok_or(PlaceError::Exhausted)?;
        let last_offset = Offset(next.0 - 1);
        let rolled = self.must_roll(now_ms, config, batch, last_offset);
        if rolled {
            self.segments.push(Segment::new(base_offset, now_ms));
        }
        let active = self.segments.last_mut().expect("a log always has an active segment");
        let position = active.size;
        if position == 0 {
            active.first_timestamp = batch.max_timestamp;
        }
        active.size += batch.size;
        active.max_timestamp = active.max_timestamp.max(batch.max_timestamp);
        let segment_base = active.base_offset;
        assert!(active.size <= SEGMENT_BYTES_MAX);
        self.log_end = next;
        Ok(Placement { base_offset, last_offset, segment_base, position, rolled })
    }

    /// Kafka's rules (`LogSegment.shouldRoll`): size, age by the records' own time where they have one, indexes
    /// full, offsets too far from the base. An empty segment is never rolled.
    fn must_roll(&self, now_ms: i64, config: &LogConfig, batch: &Incoming, last_offset: Offset) -> bool {
        let active = self.active();
        if active.size == 0 {
            return false;
        }
        let bytes_max = u64::from(config.segment_bytes).min(SEGMENT_BYTES_MAX);
        let time = if batch.max_timestamp >= 0 { batch.max_timestamp } else { now_ms };
        let age = if active.first_timestamp >= 0 {
            time.saturating_sub(active.first_timestamp)
        } else {
            now_ms.saturating_sub(active.created_ms)
        };
        // Of what only somebody's settings ask for there is an end: each segment takes a place in every checkpoint.
        let may_be_small = self.segments.len() < SMALL_SEGMENTS_MAX;
        active.size + batch.size > bytes_max
            || last_offset.0 - active.base_offset.0 > i64::from(i32::MAX)
            || may_be_small && (age > config.segment_ms_max() || index_full(active.size, config))
    }

    /// Begins a new segment at the log's end. `None` when the active one is empty already.
    pub fn roll(&mut self, now_ms: i64) -> Option<Offset> {
        if self.active().size == 0 {
            return None;
        }
        self.segments.push(Segment::new(self.log_end, now_ms));
        Some(self.log_end)
    }

    /// Whether the active segment's time is over, though nothing is appended: by broker time.
    pub fn roll_due(&self, now_ms: i64, config: &LogConfig) -> bool {
        let active = self.active();
        let is_over = now_ms.saturating_sub(active.created_ms) > config.segment_ms_max();
        active.size > 0 && is_over && self.segments.len() < SMALL_SEGMENTS_MAX
    }

    /// The end as it stands, for [`rewind`](Self::rewind).
    pub fn mark(&self) -> Mark {
        Mark { log_end: self.log_end, active: *self.active() }
    }

    /// Takes back all placements since `mark`. Returns the segments that are no more.
    pub fn rewind(&mut self, mark: Mark) -> Vec<Offset> {
        assert!(mark.log_end <= self.log_end && self.log_start <= mark.log_end);
        let at = self.segments.iter().rposition(|segment| segment.base_offset == mark.active.base_offset);
        let at = at.expect("a segment that was active at a mark is not deleted before the mark is given up");
        let gone = self.segments.drain(at + 1..).map(|segment| segment.base_offset).collect();
        self.segments[at] = mark.active;
        self.log_end = mark.log_end;
        gone
    }

    /// Moves the start up. It never goes back.
    pub fn advance_log_start(&mut self, offset: Offset) {
        assert!(offset <= self.log_end, "the start passes the end");
        self.log_start = self.log_start.max(offset);
    }

    /// Forgets the segments that lie wholly below the log start. Returns them.
    pub fn drop_below_start(&mut self) -> Vec<Segment> {
        self.drop_below_start_before(Offset(i64::MAX))
    }

    /// The same, of segments below `open` only: those from there on are still written to.
    pub fn drop_below_start_before(&mut self, open: Offset) -> Vec<Segment> {
        let mut count = 0;
        while count + 1 < self.segments.len()
            && self.segments[count + 1].base_offset <= self.log_start
            && self.segments[count].base_offset < open
        {
            count += 1;
        }
        self.segments.drain(..count).collect()
    }

    /// Cuts the log so that it ends at `offset`, at `position` of the segment `segment_base` (KIP-101; what a batch
    /// boundary is, the caller knows). Returns the segments that are no more. `None` when the log has no such place.
    pub fn truncate(&mut self, offset: Offset, segment_base: Offset, position: u64) -> Option<Vec<Offset>> {
        let at = self.segments.iter().position(|segment| segment.base_offset == segment_base)?;
        let segment = self.segments[at];
        let exact = (position == 0) == (segment_base == offset);
        if offset > self.log_end || offset < self.log_start || position > segment.size || !exact {
            return None;
        }
        let gone = self.segments.drain(at + 1..).map(|segment| segment.base_offset).collect();
        self.segments[at].size = position;
        if position == 0 {
            self.segments[at].first_timestamp = -1;
        }
        self.log_end = offset;
        Some(gone)
    }

    /// The log as far as its segments hold it: up to `end`, at `position` of the segment `base`. What a checkpoint
    /// keeps. Where `base` was deleted since, nothing of the next segment is filled.
    pub fn as_filled(&self, end: Offset, base: Offset, position: u64) -> Log {
        let mut log = self.clone();
        if end == log.log_end {
            return log;
        }
        log.log_start = log.log_start.min(end);
        if self.segments[0].base_offset > base {
            let first = self.segments[0];
            let segment = if first.base_offset == end {
                Segment::new(end, first.created_ms)
            } else {
                // More of `base` is journalled, and so is the log start that went past it.
                assert!(end < first.base_offset, "what is filled ends before the first segment");
                Segment { size: position, ..Segment::new(base, first.created_ms) }
            };
            return Log { log_start: end, log_end: end, segments: vec![segment] };
        }
        log.truncate(end, base, position).expect("what is filled is a place of the log");
        log
    }

    /// Adds a batch that a journal holds, at the place that it was given when it was placed. The error says what
    /// does not fit: recovery must not go on with this partition.
    pub fn replay(
        &mut self,
        placement: &Placement,
        batch: &Incoming,
        now_ms: i64,
    ) -> Result<(), &'static str> {
        if placement.base_offset != self.log_end {
            return Err("the base offset is not the log's end");
        }
        if placement.last_offset.0 - placement.base_offset.0 + 1 != batch.records {
            return Err("the last offset does not fit the record count");
        }
        let active = self.active();
        if placement.segment_base == active.base_offset {
            if placement.position != active.size {
                return Err("the position is not the segment's end");
            }
        } else {
            if placement.segment_base != self.log_end || placement.position != 0 || active.size == 0 {
                return Err("the segment does not begin at the log's end");
            }
            self.segments.push(Segment::new(self.log_end, now_ms));
        }
        let active = self.segments.last_mut().expect("a log always has an active segment");
        if active.size + batch.size > SEGMENT_BYTES_MAX {
            return Err("the segment is too large");
        }
        if active.size == 0 {
            active.first_timestamp = batch.max_timestamp;
        }
        active.size += batch.size;
        active.max_timestamp = active.max_timestamp.max(batch.max_timestamp);
        self.log_end = Offset(placement.last_offset.0 + 1);
        Ok(())
    }
}

/// Whether an index of the segment could have reached `segment.index.bytes`: entries of 12 bytes (time index), one
/// for every `index.interval.bytes`.
fn index_full(size: u64, config: &LogConfig) -> bool {
    let interval = u64::from(config.index_interval_bytes).max(1);
    (size / interval).saturating_mul(12) >= u64::from(config.segment_index_bytes)
}
