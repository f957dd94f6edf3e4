//! Fills: what is durable in the journal goes on to its segments, by large direct writes.
//!
//! At a pace that follows what waits for them (`FillPressure` in `core/journal`): calm ones rest after each write, as their
//! writes stand in the way of the journal's.

use std::rc::Rc;
use std::time::Duration;

use flumen_core::journal::{FillPace, FillPressure};
use flumen_core::limits::FILL_BYTES_MIN;
use flumen_core::types::{Lsn, Offset};
use futures_util::future::{Either, join, select};
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::api::Slot;
use crate::disk::{Disk, File};
use crate::engine::{Engine, Life, planted};
use crate::partition::Partition;
use crate::signal::Signal;

/// Longest rest after a write of a fill.
const FILL_REST_MAX: Duration = Duration::from_millis(10);

/// A write of a fill, planned.
struct Fill<D: Disk> {
    base: Offset,
    file: Rc<D::File>,
    buffer: Rc<D::Buffer>,
    position: u64,
    bytes: usize,
}

impl<D: Disk, T: 'static> Engine<D, T> {
    /// Fills partitions that have much in memory, or that bulk waits for, or all when the cache is over its bound or an
    /// append waits for room.
    pub(super) async fn fill_due(&self) {
        let due: Vec<Slot> = {
            let mut state = self.state.borrow_mut();
            let over = state.evict(self.settings.cache_bytes_max) || state.full;
            if !std::mem::take(&mut state.fill_due) && !over {
                return;
            }
            let all = state.slots().into_iter();
            let due: Vec<Slot> = all
                .filter(|slot| {
                    state.get(*slot).is_some_and(|partition| {
                        let much = over || partition.unfilled_bytes >= FILL_BYTES_MIN;
                        partition.fill_wanted || (much && partition.has_unfilled())
                    })
                })
                .collect();
            // What bulk waited for may have come with a checkpoint's fill.
            state.fill_awaited &= !due.is_empty();
            due
        };
        if due.is_empty() {
            return;
        }
        self.fill_all(due).await;
        let mut state = self.state.borrow_mut();
        let waits = |slot: &Slot| state.get(*slot).is_some_and(|partition| partition.fill_wanted);
        state.fill_awaited = state.slots().iter().any(waits);
        state.evict(self.settings.cache_bytes_max);
        drop(state);
        self.settle_soon();
    }

    /// Fills what is due until `other` has ended. Appends wait for the memory that fills give back, and a sync of everything
    /// takes as long as whatever else anybody has written to the file system.
    pub(super) async fn fill_during<R>(&self, other: impl Future<Output = R>) -> R {
        let over = Signal::default();
        let other = async {
            let result = other.await;
            over.notify();
            result
        };
        let fills = async {
            let mut called = false;
            while let Either::Right(_) = select(over.wait(), self.upkeep.wait()).await {
                called = true;
                self.keep_journal_ready().await;
                self.fill_due().await;
            }
            // Of what it was called for, fills have been made alone.
            if called {
                self.upkeep.notify();
            }
        };
        join(other, fills).await.0
    }

    /// Fills partitions, at the pace that is right at each moment.
    pub(super) async fn fill_all(&self, slots: Vec<Slot>) {
        let durable = self.state.borrow().journal.durable_lsn;
        let mut slots = slots.into_iter();
        let mut tasks = FuturesUnordered::new();
        loop {
            while tasks.len() < self.fill_pace().depth {
                let Some(slot) = slots.next() else { break };
                tasks.push(Box::pin(self.fill(slot, durable)));
            }
            if tasks.next().await.is_none() {
                return;
            }
            // Calm fills take long, and the journal goes on meanwhile.
            self.keep_journal_ready().await;
        }
    }

    fn fill_pace(&self) -> FillPace {
        let state = self.state.borrow();
        let out_of_files = state.journal.free_count() == 0 && !state.journal.may_grow();
        let awaited = state.full
            || state.fill_awaited
            || state.checkpoint_wanted
            || out_of_files
            || self.life.get() != Life::Running;
        let pressure = FillPressure {
            awaited,
            staged_bytes: state.buffers.pinned_bytes(),
            staged_max: self.settings.staged_bytes_max,
            journal_bytes: state.journal.bytes_since_checkpoint,
            checkpoint_bytes: self.settings.checkpoint_bytes,
        };
        pressure.pace()
    }

    /// Writes what is durable of a partition to its segments, up to a group.
    async fn fill(&self, slot: Slot, durable: Lsn) {
        // Where nothing came of it nobody is woken: the commit loop may wait, and would wake this task again.
        let mut changed = false;
        loop {
            let pace = self.fill_pace();
            let planned = {
                let mut state = self.state.borrow_mut();
                let Some(partition) = state.get_mut(slot) else { return };
                changed |= std::mem::take(&mut partition.fill_wanted);
                let lose_prefix = planted!(self.settings, TailPrefixLost);
                let planned = partition.plan_fill(&self.disk, durable, pace.write_bytes, lose_prefix);
                state.metrics.filled_bytes += planned.as_ref().map_or(0, |fill| fill.bytes as u64);
                planned
            };
            let Some(fill) = planned else { break };
            changed = true;
            let began = self.disk.monotonic();
            let written = fill.file.write_at(fill.buffer, fill.position).await;
            {
                let mut state = self.state.borrow_mut();
                let Some((partition, buffers, journal)) = state.with(slot) else { return };
                if let Some(writer) = partition.writer_mut(fill.base) {
                    writer.fill_done(written.is_ok());
                }
                partition.advance_filled(journal.durable_lsn, buffers);
            }
            if let Err(error) = written {
                self.segment_fault(slot, fill.base, "write", &error);
                break;
            }
            if pace.rests {
                let took = self.disk.monotonic().saturating_sub(began);
                self.disk.sleep(took.min(FILL_REST_MAX)).await;
            }
        }
        if !changed {
            return;
        }
        // Bulk may have waited for the fill.
        self.state.borrow_mut().mark_dirty(slot);
        self.work.notify();
        self.progress.notify();
    }
}

impl<D: Disk, T> Partition<D, T> {
    /// The next write of a fill: durable chunks of one segment, or a partial block that only bulk left.
    fn plan_fill(&mut self, disk: &D, durable: Lsn, bytes_max: usize, lose_prefix: bool) -> Option<Fill<D>> {
        if self.offline.is_some() {
            return None;
        }
        for at in 0..self.writers.len() {
            let base = self.writers[at].base;
            let mut parts = Vec::new();
            let mut bytes = 0;
            let mut next = self.unwritten;
            while bytes < bytes_max {
                let Some(chunk) = self.chunk(next).filter(|chunk| chunk.segment_base == base) else { break };
                if chunk.lsn > durable {
                    break;
                }
                parts.push(chunk.body.clone());
                bytes += chunk.len();
                next += 1;
            }
            let writer = &mut self.writers[at];
            if parts.is_empty() && !writer.has_unwritten_partial() {
                continue;
            }
            if writer.is_busy() {
                return None;
            }
            let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_slice()).collect();
            let write = writer.fill(disk, &parts, lose_prefix);
            let file = writer.file.clone().expect("a writer that takes a fill is open");
            self.unwritten = next;
            return Some(Fill { base, file, buffer: Rc::new(write.buffer), position: write.position, bytes });
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::api::{EngineSettings, Sink};
    use crate::sim::{Sim, SimDisk, SimOptions};
    use flumen_core::types::{Incarnation, PartitionId, ShardId};
    use flumen_wire::ErrorCode;

    struct Nobody;

    impl Sink<u64> for Nobody {
        fn settled(&self, _: &mut Vec<(u64, Result<(), ErrorCode>)>) {}
        fn advanced(&self, _: &[(Slot, PartitionId)]) {}
        fn room(&self) {}
        fn partition_offline(&self, _: PartitionId, _: &str) {}
    }

    /// Bulk asked for a fill, and what it waited for came with a checkpoint: then nobody waits any more.
    #[test]
    fn fills_are_calm_once_nobody_waits() {
        let sim = Sim::new(1, SimOptions::default());
        let disk = sim.disk();
        let settings = EngineSettings::new(ShardId(0), 1, Incarnation(1), [9; 16], 64 << 20);
        sim.run(async move {
            let engine: Rc<Engine<SimDisk, u64>> = Engine::new(disk, settings, Vec::new(), Nobody);
            {
                let mut state = engine.state.borrow_mut();
                (state.fill_due, state.fill_awaited) = (true, true);
            }
            assert_eq!(engine.fill_pace(), FillPace::HURRIED);
            engine.fill_due().await;
            assert_eq!(engine.fill_pace(), FillPace::CALM);
        })
        .unwrap();
    }
}
