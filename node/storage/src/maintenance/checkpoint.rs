//! Checkpoints: what the segments of all partitions hold, said in one file, so that the journal behind it is free.
//!
//! ```text
//!   fill what is durable ─▶ snapshot ─▶ sync segments, directories ─▶ write, sync, rename, sync directory
//!   ─▶ remove the one before ─▶ free journal files
//! ```
//!
//! What is filled beside the sync is the next one's.
//!
//! One that fails leaves the one before in force, and whatever it would have freed stays.

use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use flumen_core::journal::{CheckpointPlan, checkpoint_due};
use flumen_core::limits::BULK_BYTES_PER_CHECKPOINT;
use flumen_core::types::{Lsn, Offset};

use crate::api::{EngineFault, Slot};
use crate::checkpoint::{Checkpoint, Record, checkpoint_name};
use crate::disk::{Disk, File, OpenMode};
use crate::engine::{Engine, Life, planted};
use crate::partition::{Filled, Partition};

/// Space kept for a checkpoint.
const CHECKPOINT_RESERVE_BYTES: u64 = 1 << 20;
/// Time from a checkpoint that could not be written to the next attempt.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(1);

/// What a checkpoint needs beside the bytes of its file.
struct Snapshot {
    checkpoint: Checkpoint,
    /// Which snapshot it is.
    round: u64,
    /// Groups up to this one are needed by no partition.
    covered: Lsn,
    directories: Vec<Rc<str>>,
    /// Partitions whose segments it says something new of.
    online: Vec<Slot>,
    /// What it says of each partition.
    filled: Vec<(Slot, Filled)>,
    /// Of some partition something was durable and not filled: the next covers more.
    is_behind: bool,
}

impl<D: Disk, T: 'static> Engine<D, T> {
    pub(super) fn is_checkpoint_due(&self) -> bool {
        let state = self.state.borrow();
        let now = self.disk.monotonic();
        let plan = CheckpointPlan {
            journal_bytes: state.journal.bytes_since_checkpoint,
            bulk_bytes: state.bulk_bytes_since_checkpoint,
            staged_bytes: state.buffers.pinned_bytes(),
            dirty_ms: state.dirty_since.map(|since| now.saturating_sub(since).as_millis() as u64),
        };
        let interval = self.settings.checkpoint_interval.as_millis() as u64;
        let (bytes, staged_max) = (self.settings.checkpoint_bytes, self.settings.staged_bytes_max);
        if let Some(again) = state.checkpoint_again {
            return now >= again;
        }
        let wanted = state.checkpoint_wanted && plan.dirty_ms.is_some();
        wanted || checkpoint_due(&plan, bytes, BULK_BYTES_PER_CHECKPOINT, staged_max, interval)
    }

    /// Makes a checkpoint and frees what it covers. What fails leaves the one before in force.
    pub(super) async fn checkpoint(&self, number: &mut u64) {
        let started = self.disk.monotonic();
        let pretend = planted!(self.settings, CheckpointBeforeFill);
        if !pretend {
            let unfilled: Vec<Slot> = {
                let state = self.state.borrow();
                let wants =
                    |slot: &Slot| state.get(*slot).is_some_and(|p| p.has_unfilled() && p.offline.is_none());
                state.slots().into_iter().filter(wants).collect()
            };
            self.fill_all(unfilled).await;
        }
        self.relog_broken();
        if self.life.get() == Life::Faulted {
            return;
        }
        // One that fails leaves its number to the next.
        let snapshot = self.snapshot(*number + 1, pretend);
        let early = planted!(self.settings, JournalFreedEarly);
        if early {
            self.state.borrow_mut().journal.release(snapshot.covered);
        }
        let unsynced = planted!(self.settings, CheckpointBeforeSync);
        if !unsynced && !self.fill_during(self.sync_segments(&snapshot)).await {
            // Partitions went offline: what was said of them is not true. Another attempt says less.
            self.mark_unclean();
            let mut state = self.state.borrow_mut();
            for slot in state.slots() {
                if let Some(partition) = state.get_mut(slot) {
                    partition.directory_dirty |= snapshot.directories.contains(&partition.directory);
                }
            }
            drop(state);
            self.mark_checkpoint_due();
            return;
        }
        let mut written = self.write_checkpoint(&snapshot.checkpoint, &snapshot.online).await;
        if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull) {
            self.disk.remove_file(&self.reserve_path()).await.ok();
            written = self.write_checkpoint(&snapshot.checkpoint, &snapshot.online).await;
            self.make_reserve().await;
        }
        match written {
            Ok(()) => {
                *number += 1;
                self.covered(&snapshot, started);
                // Files were filled meanwhile, perhaps.
                self.relog_broken();
                if let Some(directory) = self.held_for_good() {
                    self.fail(EngineFault::Held(directory));
                }
            }
            Err(error) => {
                let mut state = self.state.borrow_mut();
                state.metrics.checkpoints_failed += 1;
                state.journal.disk_full |= error.kind() == io::ErrorKind::StorageFull;
                state.checkpoint_again = Some(self.disk.monotonic() + CHECKPOINT_RETRY);
                drop(state);
                self.mark_unclean();
            }
        }
    }

    /// What every partition's segments hold now. Nothing that a write in flight brings is in it.
    fn snapshot(&self, number: u64, pretend: bool) -> Snapshot {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let durable = state.journal.durable_lsn;
        let mut covered = durable;
        let (mut records, mut directories) = (Vec::new(), Vec::new());
        let (mut filled, mut online) = (Vec::new(), Vec::new());
        let mut is_behind = false;
        for slot in state.slots() {
            let Some(partition) = state.get_mut(slot) else { continue };
            let record = match &partition.frozen {
                Some(record) => (**record).clone(),
                None => {
                    let lsn = if pretend { durable } else { partition.covered(durable) };
                    covered = covered.min(lsn);
                    if !partition.sync_failed {
                        filled.push((slot, Filled { lsn, ..partition.filled }));
                    }
                    partition.record(self.settings.incarnation, lsn, pretend)
                }
            };
            records.push(record);
            if partition.offline.is_none() {
                online.push(slot);
                is_behind |= partition.covered(durable) < durable;
            }
            // A directory whose sync failed is not synced again: it might say that all is well.
            if std::mem::take(&mut partition.directory_dirty) && !partition.sync_failed {
                directories.push(partition.directory.clone());
            }
        }
        let is_dirty = covered < durable || state.journal.has_group_in_flight();
        state.dirty_since = is_dirty.then(|| self.disk.monotonic());
        state.checkpoint_wanted = false;
        state.checkpoint_again = None;
        state.checkpoint_round += 1;
        let round = state.checkpoint_round;
        state.journal.bytes_since_checkpoint = 0;
        state.bulk_bytes_since_checkpoint = 0;
        let checkpoint = Checkpoint {
            incarnation: self.settings.incarnation,
            shard: self.settings.shard.0,
            number,
            durable_lsn: durable,
            records,
        };
        Snapshot { checkpoint, round, covered, directories, online, filled, is_behind }
    }

    /// Makes fills durable, with the directories of new segments. `false` when some partition went offline.
    async fn sync_segments(&self, snapshot: &Snapshot) -> bool {
        let mut sound = true;
        if let Err(error) = self.disk.sync_all().await {
            // It may have lost what any shard wrote, and no later sync would tell: only the journals are sure.
            self.fail(EngineFault::Sync(error));
            return false;
        }
        if planted!(self.settings, DirectoryNotSynced) {
            return sound;
        }
        for directory in &snapshot.directories {
            if let Err(error) = self.disk.sync_directory(directory).await {
                let slots: Vec<Slot> = {
                    let state = self.state.borrow();
                    let same = |slot: &Slot| state.get(*slot).is_some_and(|p| p.directory == *directory);
                    state.slots().into_iter().filter(same).collect()
                };
                // Whose partition was deleted meanwhile is no part of what is said.
                sound &= slots.is_empty();
                for slot in slots {
                    self.sync_fault(slot, format!("sync of directory {directory} failed: {error}"));
                }
            }
        }
        sound
    }

    async fn write_checkpoint(&self, checkpoint: &Checkpoint, online: &[Slot]) -> io::Result<()> {
        let (incarnation, shard, number) = (checkpoint.incarnation, checkpoint.shard, checkpoint.number);
        // A sync of bulk that failed meanwhile may have taken fills along that this checkpoint counts on.
        let sound = || {
            let state = self.state.borrow();
            !online.iter().any(|slot| state.get(*slot).is_some_and(|partition| partition.offline.is_some()))
        };
        write_checkpoint(&self.disk, checkpoint, &sound).await?;
        if number > 1 {
            let before = format!("checkpoint/{}", checkpoint_name(incarnation, shard, number - 1));
            // One that was never written is no loss, nor one that stays: recovery takes the newest.
            self.disk.remove_file(&before).await.ok();
        }
        Ok(())
    }

    fn covered(&self, snapshot: &Snapshot, started: Duration) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        state.journal.release(snapshot.covered);
        state.checkpoint_round_durable = snapshot.round;
        for (slot, filled) in &snapshot.filled {
            if let Some(partition) = state.get_mut(*slot) {
                partition.checkpointed = *filled;
            }
        }
        if state.journal.free_count() > 0 {
            state.journal.disk_full = false;
        } else if snapshot.is_behind && !state.journal.room_for(state.staged_bytes, state.staged_batches) {
            // Who was told that there is no room is not heard of again before there is some.
            state.checkpoint_wanted = true;
            self.upkeep.notify();
        }
        state.metrics.checkpoints += 1;
        let took = self.disk.monotonic().saturating_sub(started);
        state.metrics.checkpoint_micros += took.as_micros() as u64;
        state.evict(self.settings.cache_bytes_max);
        drop(guard);
        self.settle_soon();
        self.progress.notify();
    }

    /// The partition for which so much is kept in the journal or in memory, now that all has been freed that can be, that
    /// appends would wait for ever: it is offline, and no other checkpoint frees more.
    fn held_for_good(&self) -> Option<String> {
        let state = self.state.borrow();
        let slots = state.slots().into_iter();
        let offline = || slots.clone().filter_map(|slot| state.get(slot)).filter(|p| p.offline.is_some());
        if self.life.get() != Life::Running || offline().any(|p| p.relogging.is_some() || p.deleting) {
            return None;
        }
        let journal = &state.journal;
        let room = journal.free_count() > 0
            || journal.may_grow()
            || journal.room_for(state.staged_bytes, state.staged_batches);
        if !room {
            return self.journal_held_by();
        }
        // Memory is given out again from half of it on.
        let half = self.settings.staged_bytes_max / 2;
        if state.buffers.pinned_bytes() <= half {
            return None;
        }
        let held: BTreeSet<u64> =
            offline().flat_map(|p| p.unfilled_chunks()).map(|chunk| chunk.buffer).collect();
        let bytes: usize = held.into_iter().map(|number| state.buffers.size(number)).sum();
        let most = offline().max_by_key(|partition| partition.unfilled_bytes);
        most.filter(|_| bytes > half).map(|partition| partition.directory.to_string())
    }

    /// What offline partitions have in memory alone is journalled again, so that they do not pin old journal files.
    fn relog_broken(&self) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let Some(sealed) = state.journal.sealed_lsn() else { return };
        let (durable, entry_max) = (state.journal.durable_lsn, state.journal.group_bytes_max() as usize / 2);
        for slot in state.slots() {
            let Some(partition) = state.get_mut(slot) else { continue };
            let broken =
                partition.offline.is_some() && partition.frozen.is_none() && partition.relogging.is_none();
            let small = |partition: &Partition<D, T>| {
                partition.unfilled_chunks().all(|chunk| chunk.len() <= entry_max)
            };
            let broken = broken && !partition.sync_failed;
            if broken && partition.has_unfilled() && partition.covered(durable) < sealed && small(partition) {
                partition.relog = Some(partition.unfilled);
                partition.relogging = Some(partition.covered(durable));
                state.mark_dirty(slot);
            }
        }
        self.work.notify();
    }

    fn mark_unclean(&self) {
        let now = self.disk.monotonic();
        self.state.borrow_mut().dirty_since.get_or_insert(now);
    }

    /// Space that a checkpoint can have when the disk is full: without one the journal would fill too.
    pub(super) async fn make_reserve(&self) {
        let path = self.reserve_path();
        let mode = OpenMode { create_new: true, write: true, synchronous: false };
        // It may be there already, or the disk may be full now: it is a reserve, not a need.
        if let Ok(file) = self.disk.open(&path, mode).await
            && file.preallocate(CHECKPOINT_RESERVE_BYTES).await.is_err()
        {
            self.disk.remove_file(&path).await.ok();
        }
    }

    fn reserve_path(&self) -> String {
        format!("checkpoint/reserve-{}.tmp", self.settings.shard)
    }
}

/// Writes a checkpoint so that it is there whole or not at all. `sound` is asked last of all whether what it says still
/// holds.
pub(crate) async fn write_checkpoint<D: Disk>(
    disk: &D,
    checkpoint: &Checkpoint,
    sound: &dyn Fn() -> bool,
) -> io::Result<()> {
    let name = checkpoint_name(checkpoint.incarnation, checkpoint.shard, checkpoint.number);
    let (temporary, path) = (format!("checkpoint/{name}.tmp"), format!("checkpoint/{name}"));
    disk.write_file(&temporary, &checkpoint.encode(), true).await?;
    if !sound() {
        return Err(io::Error::other("a partition went offline meanwhile"));
    }
    disk.rename(&temporary, &path).await?;
    disk.sync_directory("checkpoint").await
}

impl<D: Disk, T> Partition<D, T> {
    /// What a checkpoint says of the partition.
    pub(crate) fn record(
        &self,
        incarnation: flumen_core::types::Incarnation,
        lsn: Lsn,
        pretend: bool,
    ) -> Record {
        let mut filled = if self.sync_failed { self.checkpointed } else { self.filled };
        if pretend
            && let Some(chunk) = self.chunks.iter().rev().find(|chunk| chunk.last_offset < self.durable_end)
        {
            filled = Filled {
                lsn,
                end: Offset(chunk.last_offset.0 + 1),
                segment_base: chunk.segment_base,
                position: chunk.end_position(),
            };
        }
        let mut producers = self.producers.clone();
        producers.truncate_to(filled.end);
        let mut producers = producers.snapshot();
        producers.written = filled.end.0 > 0;
        let mut epochs = self.epochs.clone();
        epochs.truncate_to(filled.end);
        Record {
            id: self.id,
            incarnation,
            lsn,
            high_watermark: filled.end.min(self.high_watermark),
            log: self.compaction.with_swaps(&self.log).as_filled(
                filled.end,
                filled.segment_base,
                filled.position,
            ),
            cleaned: self.compaction.cleaned,
            epochs: epochs.entries().to_vec(),
            producers,
            offline: None,
        }
    }
}
