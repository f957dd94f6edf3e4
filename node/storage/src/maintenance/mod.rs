//! What happens behind the commit loop: fills, checkpoints, rolled segments closed, retention, journal files ready.
//!
//! One task, one thing at a time, but that fills go on beside a checkpoint's sync; it sleeps without a timer while nothing is
//! dirty, but for the retention check. Beside it files are removed, which may take long.
//!
//! Invariants: a snapshot says only what completed writes hold and the sync after it makes durable; a journal file is
//! freed only by a checkpoint that is durable; a segment is unlinked only when LOG_START is durable.

mod checkpoint;
mod fill;
mod retention;
mod segments;

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::select;

pub(crate) use self::checkpoint::write_checkpoint;
use self::retention::Rules;
use crate::api::{EngineFault, Slot};
use crate::disk::{Disk, File};
use crate::engine::{Engine, Life};
use crate::journal_files::{JournalFileInfo, journal_path, lay_out};

/// Indexes that are kept after one checkpoint, and after the last.
const INDEXES_KEPT_MAX: usize = 64;
const INDEXES_KEPT_LAST_MAX: usize = 1024;

impl<D: Disk, T: 'static> Engine<D, T> {
    /// Runs until the engine has stopped or is at fault.
    pub async fn run_maintenance(&self) {
        // What is left of the removals then is done by the next start.
        select(pin!(self.maintain()), pin!(self.remove_files())).await;
    }

    async fn maintain(&self) {
        let mut checkpoint_number = 0;
        let mut retention_at = self.disk.monotonic() + self.settings.retention_interval;
        loop {
            if matches!(self.life.get(), Life::Stopped | Life::Faulted) {
                return;
            }
            if self.life.get() == Life::Stopping && self.is_drained() {
                self.finish(&mut checkpoint_number).await;
                return;
            }
            self.keep_journal_ready().await;
            self.fill_due().await;
            if self.is_checkpoint_due() {
                self.checkpoint(&mut checkpoint_number).await;
                self.keep_indexes(self.settings.index_keep_bytes, INDEXES_KEPT_MAX).await;
            }
            self.lay_out_journal().await;
            for slot in self.close_rolled().await {
                // Of a log at its size one may go for each that is full: one by one, and not all of an interval's at once.
                self.raise_log_start(slot, self.disk.now_ms(), Rules::Size, false);
            }
            let retention_due = self.disk.monotonic() >= retention_at;
            if retention_due {
                retention_at = self.disk.monotonic() + self.settings.retention_interval;
            }
            self.retain(retention_due);
            self.rest(retention_at).await;
        }
    }

    /// Waits for something to do.
    async fn rest(&self, retention_at: Duration) {
        let now = self.disk.monotonic();
        let mut until = retention_at;
        {
            let state = self.state.borrow();
            // After one that failed nothing is due before its time to try again, or this would spin.
            let due = state.dirty_since.map(|since| since + self.settings.checkpoint_interval);
            if let Some(at) = state.checkpoint_again.or(due) {
                until = until.min(at);
            }
        }
        let sleep = pin!(self.disk.sleep(until.saturating_sub(now)));
        select(self.upkeep.wait(), sleep).await;
    }

    /// Makes the journal's first files and a small reserve of space. Appends are answered
    /// [`AppendError::Full`](crate::AppendError::Full) before.
    pub async fn prepare(&self) {
        self.keep_journal_ready().await;
        self.make_reserve().await;
    }

    /// A free journal file stands ready before it is needed.
    async fn keep_journal_ready(&self) {
        while self.state.borrow().journal.is_short() {
            match self.create_journal_file().await {
                // Only then: the commit loop may wait for a file, and would wake this task again.
                Ok(true) => {
                    self.settle_soon();
                    self.progress.notify();
                }
                Ok(false) => return,
                Err(fault) => {
                    self.fail(fault);
                    return;
                }
            }
        }
    }

    /// Free journal files have every block written before they are used: a synchronous write to a block that never was
    /// written changes the file's map, and waits for the file system's own journal.
    async fn lay_out_journal(&self) {
        while self.life.get() == Life::Running {
            let Some(info) = self.state.borrow_mut().journal.take_bare() else { return };
            // Without space the file system copies on write, and the file serves as it is.
            if let Err(error) = lay_out(&self.disk, info).await
                && error.kind() != io::ErrorKind::StorageFull
            {
                self.fail(EngineFault::Journal { file: journal_path(info.number), position: 0, error });
                return;
            }
            self.state.borrow_mut().journal.put_laid_out(JournalFileInfo { laid_out: true, ..info });
            self.settle_soon();
            self.progress.notify();
        }
    }

    /// The engine cannot go on, seen from here: the commit loop ends with it.
    fn fail(&self, fault: EngineFault) {
        self.life.set(Life::Faulted);
        self.state.borrow_mut().fault.get_or_insert(fault);
        self.work.notify();
        self.progress.notify();
    }

    /// Maintenance has no file of the partition in hand any more: whoever deletes it waits for that, as its name may then
    /// be another's.
    pub(crate) fn tended(&self, slot: Slot) {
        if let Some(partition) = self.state.borrow_mut().get_mut(slot) {
            partition.tended -= 1;
        }
        self.progress.notify();
    }

    fn is_drained(&self) -> bool {
        let state = self.state.borrow();
        let idle = |slot: &Slot| {
            state.get(*slot).is_none_or(|partition| {
                partition.offline.is_some()
                    || partition.staged.is_empty()
                        && partition.bulk.is_empty()
                        && partition.notes.is_empty()
                        && partition.durable_end >= partition.log.log_end()
            })
        };
        // No group is in flight (one may hold a log start alone), and no answer waits to be handed out.
        let quiet = state.ready.is_empty() && !state.journal.has_group_in_flight();
        quiet && state.slots().iter().all(idle)
    }

    /// The clean end: everything in segments of their true length, and a last checkpoint.
    async fn finish(&self, number: &mut u64) {
        self.checkpoint(number).await;
        self.close_rolled().await;
        self.keep_indexes(self.settings.index_keep_bytes / 256, INDEXES_KEPT_LAST_MAX).await;
        let open: Vec<(Rc<D::File>, u64)> = {
            let mut state = self.state.borrow_mut();
            let mut open = Vec::new();
            for slot in state.slots() {
                let Some(partition) = state.get_mut(slot) else { continue };
                let size = partition.log.active().size;
                let idle = partition.offline.is_none() && !partition.allocating && !partition.has_unfilled();
                if let Some(writer) = partition.writers.back_mut()
                    && idle
                    && writer.allocated > size
                {
                    open.extend(writer.file.clone().map(|file| (file, size)));
                }
            }
            open
        };
        for (file, size) in open {
            // Space that is not given back is cut off at the next start.
            file.truncate(size).await.ok();
        }
        if self.life.get() != Life::Faulted {
            self.life.set(Life::Stopped);
        }
        for signal in [&self.work, &self.bulk_work, &self.space_work, &self.upkeep] {
            signal.notify();
        }
        self.progress.notify();
    }
}
