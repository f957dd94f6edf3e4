//! Compaction: closed segments of a log are rewritten with the last record of each key alone.
//!
//! One task per shard, in the background: one partition at a time, the dirtiest first. What stays is decided in
//! `flumen_core::log`; here it is read, written and put in place.
//!
//! ```text
//!   choose ─▶ read keys of the dirty part ─▶ for each group of segments: copy what stays into `.cleaned`, sync
//!          ─▶ `.swap`, directory sync ─▶ a checkpoint that counts on it ─▶ rename over the old segment (`swap`)
//! ```
//!
//! | file | does |
//! |---|---|
//! | `mod` | the loop: which partition, when; what a partition remembers |
//! | `pass` | one pass over one partition: the map of keys, group after group |
//! | `copy` | judging one batch; writing the new segment and its index |
//! | `swap` | the new segment takes the place of the old ones; what recovery makes of a swap that was cut short |
//! | `pace` | how fast it may go |
//!
//! Invariants:
//! - only segments are touched that are closed and that a durable checkpoint knows as filled, all of them below the high
//!   watermark; never the active one;
//! - **the checkpoint decides**: until one that knows the new segment is durable, the old ones are there, whole; from then
//!   on the new one is, as `.swap` or under its own name;
//! - no read sees half of a swap: it takes the layout as of its start, and is made again if that has changed meanwhile;
//! - memory is bounded by the map and three buffers, I/O by one read or write in flight.

mod copy;
mod pace;
mod pass;
mod swap;

use std::borrow::Cow;
use std::time::Duration;

use flumen_core::log::{Cleanable, Log, Segment};
use flumen_core::types::{Offset, PartitionId};
use futures_util::future::select;

use crate::api::{CompactionRun, Slot};
use crate::disk::Disk;
use crate::engine::{Engine, Life};
use crate::partition::Partition;
use crate::segment::SegmentError;

pub(crate) use swap::parse_swap_name;

/// Shortest rest when there is nothing to do, whatever `log.cleaner.backoff.ms` says.
const BACKOFF_MIN: Duration = Duration::from_millis(10);

/// What a partition knows of its compaction.
#[derive(Debug, Default)]
pub(crate) struct Compaction {
    /// The first dirty offset. `None`: nothing was ever compacted, so offsets have no gap.
    pub(crate) cleaned: Option<Offset>,
    /// New segments that are durable under their `.swap` names, and not in place yet.
    pub(crate) swaps: Vec<Swap>,
    /// A pass is under way.
    pub(crate) running: bool,
    /// A file is being put in place at this moment: reads wait.
    pub(crate) renaming: bool,
    /// Counts the changes of what lies under segments' names.
    pub(crate) layout: u64,
    /// After a pass that failed: not before this time. For ever where its data is damaged.
    not_before: Option<Duration>,
}

/// A new segment that is to take the place of others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Swap {
    /// Base offset of the segment after those that it replaces.
    pub(crate) end: Offset,
    /// The new segment.
    pub(crate) segment: Segment,
}

impl Compaction {
    /// What a checkpoint says of the log: that swaps are done. Recovery does what is left to do.
    pub(crate) fn with_swaps<'a>(&self, log: &'a Log) -> Cow<'a, Log> {
        let mut log = Cow::Borrowed(log);
        for swap in &self.swaps {
            let replaced = log.to_mut().replace(swap.end, swap.segment);
            replaced.expect("segments under a swap stay in their log");
        }
        log
    }

    /// Whether segments may leave the log now.
    pub(crate) fn may_drop_segments(&self) -> bool {
        self.swaps.is_empty()
    }
}

/// Why a pass ended early.
#[derive(Debug)]
enum Interrupted {
    /// The partition is gone or offline, its log was cut, or the engine stops: nothing is wrong.
    Over,
    /// The disk failed or is full: worth another try.
    Failed(String),
    /// A segment is damaged: another try would end the same way.
    Damaged(String),
}

impl From<SegmentError> for Interrupted {
    fn from(error: SegmentError) -> Interrupted {
        match error {
            SegmentError::Io { .. } => Interrupted::Failed(error.to_string()),
            SegmentError::Corrupt { .. } => Interrupted::Damaged(error.to_string()),
        }
    }
}

impl<D: Disk, T: 'static> Engine<D, T> {
    /// Compacts until the engine stops. `told` hears of every pass that did anything, or failed.
    pub async fn run_compaction(&self, told: impl Fn(&CompactionRun)) {
        while self.life.get() == Life::Running {
            let chosen = if self.compaction_settings.borrow().enable { self.choose() } else { None };
            let Some((slot, id, cleanable)) = chosen else {
                self.rest_from_compaction().await;
                continue;
            };
            let started = self.disk.monotonic();
            if let Some(mut run) = self.compact(slot, id, cleanable).await {
                run.took = self.disk.monotonic().saturating_sub(started);
                self.count_run(&run);
                told(&run);
            }
        }
    }

    /// Waits until there may be something to do. Without a compacted partition no timer runs.
    async fn rest_from_compaction(&self) {
        let any = {
            let state = self.state.borrow();
            let compacted = |slot: &Slot| state.get(*slot).is_some_and(|p| p.config.cleanup_policy.compact);
            state.slots().iter().any(compacted)
        };
        if any {
            let backoff = self.compaction_settings.borrow().backoff.max(BACKOFF_MIN);
            let sleep = std::pin::pin!(self.disk.sleep(backoff));
            select(self.compaction_work.wait(), sleep).await;
        } else {
            self.compaction_work.wait().await;
        }
    }

    /// The partition that is most in need of a pass.
    fn choose(&self) -> Option<(Slot, PartitionId, Cleanable)> {
        let (now, now_ms) = (self.disk.monotonic(), self.disk.now_ms());
        let state = self.state.borrow();
        let due = state.slots().into_iter().filter_map(|slot| {
            let partition = state.get(slot)?;
            let cleanable = partition.cleanable(now, now_ms)?;
            Some((slot, partition.id, cleanable))
        });
        let order = |a: &Cleanable, b: &Cleanable| {
            (a.overdue, a.dirty_ratio()).partial_cmp(&(b.overdue, b.dirty_ratio()))
        };
        due.max_by(|a, b| order(&a.2, &b.2).unwrap_or(std::cmp::Ordering::Equal))
    }

    fn count_run(&self, run: &CompactionRun) {
        let mut state = self.state.borrow_mut();
        let metrics = &mut state.metrics;
        metrics.compaction_runs += 1;
        metrics.compaction_runs_failed += u64::from(run.failed.is_some());
        metrics.compaction_read_bytes += run.bytes_read;
        metrics.compaction_written_bytes += run.bytes_written;
        metrics.compaction_micros += run.took.as_micros() as u64;
    }
}

impl<D: Disk, T> Partition<D, T> {
    /// What of it may and should be compacted now.
    fn cleanable(&self, now: Duration, now_ms: i64) -> Option<Cleanable> {
        let rests = self.compaction.not_before.is_some_and(|at| now < at);
        if !self.config.cleanup_policy.compact || rests || !self.may_be_compacted() {
            return None;
        }
        // Everything below is closed, and a durable checkpoint says that it is filled.
        let open = self.writers.front().map_or(Offset(0), |writer| writer.base);
        let below = open.min(self.checkpointed.segment_base).min(self.high_watermark);
        let cleanable = self.log.cleanable(now_ms, &self.config, self.compaction.cleaned, below)?;
        cleanable.is_due(&self.config).then_some(cleanable)
    }

    fn may_be_compacted(&self) -> bool {
        self.offline.is_none() && !self.deleting
    }
}
