//! When and how much: which way a partition's batches go, where a group is cut, when a checkpoint is due, how hard
//! segments are filled for it, which journal files it frees.

use super::format::group_len;
use crate::limits::{FILL_WRITE_BYTES_MAX, FILLS_MAX, GROUP_BYTES_MAX, GROUP_ENTRIES_MAX};
use crate::types::Lsn;

/// Which way what a partition has staged goes in this cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Into the group.
    Journal,
    /// Straight to the segment, an EXTENT entry later.
    Bulk,
    /// Not in this cycle: an earlier bulk of the partition has no EXTENT entry yet.
    Wait,
}

/// Decides by what the partition has staged, what its shard has, and whether bulk of the partition is under way. Order
/// within the partition must hold, so behind bulk there is only bulk, or waiting.
///
/// Bulk is written once, but acknowledged after a write, a sync and a group, one after the other; what goes into the group
/// after one write, and is written twice. So half as much will do where the shard has much, and its disk is what is waited for.
pub fn route(
    partition_bytes: usize,
    shard_bytes: usize,
    bulk_bytes_min: usize,
    bulk_under_way: bool,
) -> Route {
    let is_much = |bytes| bytes >= bulk_bytes_min;
    if is_much(partition_bytes) || is_much(shard_bytes) && is_much(partition_bytes.saturating_mul(2)) {
        Route::Bulk
    } else if bulk_under_way {
        Route::Wait
    } else {
        Route::Journal
    }
}

/// Adds up a group and says what still fits.
#[derive(Clone, Copy, Debug)]
pub struct GroupCut {
    entries: usize,
    body_bytes: usize,
    bytes_max: usize,
}

impl GroupCut {
    /// An empty group of at most `bytes_max` bytes.
    pub fn new(bytes_max: u64) -> GroupCut {
        let bytes_max = bytes_max.min(GROUP_BYTES_MAX) as usize;
        GroupCut { entries: 0, body_bytes: 0, bytes_max }
    }

    /// Adds an entry when it fits.
    pub fn add(&mut self, body_bytes: usize) -> bool {
        let fits = self.entries < GROUP_ENTRIES_MAX as usize
            && group_len(self.entries + 1, self.body_bytes + body_bytes) <= self.bytes_max;
        if fits {
            self.entries += 1;
            self.body_bytes += body_bytes;
        }
        fits
    }

    /// Lengthens the entry added last when that fits.
    pub fn extend(&mut self, body_bytes: usize) -> bool {
        let fits = group_len(self.entries, self.body_bytes + body_bytes) <= self.bytes_max;
        if fits {
            self.body_bytes += body_bytes;
        }
        fits
    }

    /// Bytes of the group as it stands.
    pub fn len(&self) -> usize {
        group_len(self.entries, self.body_bytes)
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }
}

/// What decides whether a checkpoint is due.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckpointPlan {
    /// Journal bytes written since the last.
    pub journal_bytes: u64,
    /// Bulk bytes written since the last.
    pub bulk_bytes: u64,
    /// Bytes that are in memory and not in segments.
    pub staged_bytes: usize,
    /// Milliseconds since the first change after the last; `None` when nothing changed.
    pub dirty_ms: Option<u64>,
}

/// Whether a checkpoint is due: journal files and memory must come free long before either runs out.
pub fn checkpoint_due(
    plan: &CheckpointPlan,
    bytes: u64,
    bulk_bytes: u64,
    staged_max: usize,
    interval_ms: u64,
) -> bool {
    let Some(dirty_ms) = plan.dirty_ms else { return false };
    plan.journal_bytes >= bytes
        || plan.bulk_bytes >= bulk_bytes
        || plan.staged_bytes >= staged_max / 2
        || dirty_ms >= interval_ms
}

/// What decides how hard segments are filled.
#[derive(Clone, Copy, Debug, Default)]
pub struct FillPressure {
    /// Appends or bulk wait for it, or the engine ends.
    pub awaited: bool,
    /// Bytes that are in memory and not in segments.
    pub staged_bytes: usize,
    /// As many at most.
    pub staged_max: usize,
    /// Journal bytes written since the last checkpoint.
    pub journal_bytes: u64,
    /// Journal bytes from which a checkpoint is due.
    pub checkpoint_bytes: u64,
}

/// How hard segments are filled. A group's write queues at the disk behind those of fills, and its sync has to wait for
/// them too: with many under way commits take ten times as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillPace {
    /// Writes of one shard under way at a time.
    pub depth: usize,
    /// Bytes of one at most.
    pub write_bytes: usize,
    /// Whether there is a rest after each, as long as it took.
    pub rests: bool,
}

impl FillPace {
    /// Nobody waits.
    pub const CALM: FillPace = FillPace { depth: 1, write_bytes: 128 << 10, rests: true };
    /// More comes than that takes away.
    pub const STEADY: FillPace = FillPace { depth: 2, write_bytes: 512 << 10, rests: false };
    /// Somebody waits, or soon will.
    pub const HURRIED: FillPace =
        FillPace { depth: FILLS_MAX, write_bytes: FILL_WRITE_BYTES_MAX, rests: false };
}

impl FillPressure {
    /// The pace that it asks for.
    pub fn pace(&self) -> FillPace {
        let staged = |eighths: usize| self.staged_bytes >= self.staged_max / 8 * eighths;
        let journal = |halves: u64| self.journal_bytes >= self.checkpoint_bytes.saturating_mul(halves) / 2;
        if self.awaited || staged(6) || journal(6) {
            FillPace::HURRIED
        } else if staged(5) || journal(4) {
            FillPace::STEADY
        } else {
            FillPace::CALM
        }
    }
}

/// Of the files of a journal, in order, each with its last LSN, how many from the front a durable checkpoint frees
/// that covers everything up to `covered`.
pub fn free_files(last_lsns: impl Iterator<Item = Lsn>, covered: Lsn) -> usize {
    last_lsns.take_while(|last| *last <= covered).count()
}
