//! Retention: log starts move up, and segments below a durable one are handed to `removal`.

use std::rc::Rc;

use flumen_core::log::Segment;
use flumen_core::types::Offset;

use crate::api::Slot;
use crate::disk::Disk;
use crate::engine::{Engine, planted};
use crate::partition::{Note, Partition, segment_path};
use crate::removal::Removal;

/// `retention.ms` of a log that keeps its records for ever.
const NO_LIMIT: i64 = -1;

/// What retention goes by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    All,
    /// Time has to wait for its interval: records may be old when they come.
    Size,
}

impl<D: Disk, T: 'static> Engine<D, T> {
    /// Retention: log starts move up, and what lies below a durable log start is to be removed.
    pub(super) fn retain(&self, due: bool) {
        let now_ms = self.disk.now_ms();
        let slots = self.state.borrow().slots();
        for slot in slots {
            let early = planted!(self.settings, UnlinkBeforeLogStart);
            if due {
                self.raise_log_start(slot, now_ms, Rules::All, early);
            }
            let mut guard = self.state.borrow_mut();
            let state = &mut *guard;
            let Some(partition) = state.get_mut(slot) else { continue };
            let gone = partition.take_deletable(early);
            if gone.is_empty() {
                continue;
            }
            partition.tended += gone.len();
            let directory = partition.directory.clone();
            state.metrics.segments_deleted += gone.len() as u64;
            state.removals.extend(gone.into_iter().map(|segment| Removal {
                slot,
                path: segment_path(&directory, segment.base_offset),
                bytes: segment.size,
            }));
            state.removals_due = self.disk.monotonic() + self.settings.retention_interval / 2;
            self.removal_work.notify();
        }
    }

    /// Journals a new log start where retention allows one, and rolls where the active segment's time is over.
    pub(super) fn raise_log_start(&self, slot: Slot, now_ms: i64, rules: Rules, early: bool) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let Some(partition) = state.get_mut(slot) else { return };
        if partition.offline.is_some() || partition.deleting || partition.held.is_some() {
            return;
        }
        partition.producers.expire(now_ms);
        let mut config = Rc::clone(&partition.config);
        if rules == Rules::Size {
            Rc::make_mut(&mut config).retention_ms = NO_LIMIT;
        }
        let deletable = partition.log.deletable(now_ms, &config, partition.high_watermark);
        let roll =
            deletable.is_some_and(|deletable| deletable.roll) || partition.log.roll_due(now_ms, &config);
        if roll && let Some(base) = partition.log.roll(now_ms) {
            partition.begin_segment(base);
            state.want_space(slot);
            self.space_work.notify();
        }
        let Some(partition) = state.get_mut(slot) else { return };
        let to = deletable.map_or(Offset(0), |deletable| deletable.log_start);
        if to > partition.log_start_wanted {
            partition.log_start_wanted = to;
            partition.notes.push_back((Note::LogStart(to), None));
            if early {
                partition.log.advance_log_start(to);
            }
            state.mark_dirty(slot);
            self.work.notify();
        }
    }
}

impl<D: Disk, T> Partition<D, T> {
    /// Segments wholly below the durable log start, closed; the log forgets them.
    fn take_deletable(&mut self, early: bool) -> Vec<Segment> {
        // A partition that is being deleted goes as a whole, and waits for none of this.
        let busy = self.held.is_some() || !self.compaction.may_drop_segments();
        if self.offline.is_some() || self.deleting || busy {
            return Vec::new();
        }
        let segments = self.log.segments();
        if !early && segments.get(1).is_none_or(|second| second.base_offset > self.log_start) {
            return Vec::new();
        }
        let open = self.writers.front().map_or(Offset(i64::MAX), |writer| writer.base);
        self.log.drop_below_start_before(open)
    }
}
