//! What happens behind the commit loop: fills, checkpoints, rolled segments closed, retention, journal files ready.
//!
//! One task, one thing at a time; it sleeps without a timer while nothing is dirty, but for the retention check. Beside it
//! files are removed, which may take long.
//!
//! ```text
//!   checkpoint: fill what is durable ─▶ snapshot ─▶ sync segments, directories ─▶ write, sync, rename, sync directory
//!               ─▶ remove the one before ─▶ free journal files
//! ```
//!
//! Invariants: a snapshot says only what completed writes hold and the sync after it makes durable; a journal file is
//! freed only by a checkpoint that is durable; a segment is unlinked only when LOG_START is durable.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use flumen_core::journal::{CheckpointPlan, FillPace, FillPressure, checkpoint_due};
use flumen_core::limits::{BULK_BYTES_PER_CHECKPOINT, FILL_BYTES_MIN};
use flumen_core::log::Segment;
use flumen_core::types::{Lsn, Offset};
use futures_util::future::select;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::api::{EngineFault, Slot};
use crate::checkpoint::{Checkpoint, Record, checkpoint_name};
use crate::disk::{Disk, File, OpenMode};
use crate::engine::{Engine, Life, planted};
use crate::journal_files::{JournalFileInfo, journal_path, lay_out};
use crate::partition::{Filled, Note, Partition, segment_path};
use crate::removal::Removal;

/// Space kept for a checkpoint.
const CHECKPOINT_RESERVE_BYTES: u64 = 1 << 20;
/// Time from a checkpoint that could not be written to the next attempt.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(1);
/// Indexes that are kept after one checkpoint, and after the last.
const INDEXES_KEPT_MAX: usize = 64;
const INDEXES_KEPT_LAST_MAX: usize = 1024;
/// What is scanned at once to complete an index that nobody asked for.
const INDEX_SCAN_BYTES_MAX: u64 = 16 << 20;
/// `retention.ms` of a log that keeps its records for ever.
const NO_LIMIT: i64 = -1;
/// Longest rest after a write of a fill.
const FILL_REST_MAX: Duration = Duration::from_millis(10);

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
}

/// What retention goes by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    All,
    /// Time has to wait for its interval: records may be old when they come.
    Size,
}

/// A write of a fill, planned.
struct Fill<D: Disk> {
    base: Offset,
    file: Rc<D::File>,
    buffer: Rc<D::Buffer>,
    position: u64,
    bytes: usize,
}

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

    /// Space that a checkpoint can have when the disk is full: without one the journal would fill too.
    async fn make_reserve(&self) {
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
    }

    fn is_checkpoint_due(&self) -> bool {
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

    /// Fills partitions that have much in memory, or that bulk waits for, or all when the cache is over its bound or an
    /// append waits for room.
    async fn fill_due(&self) {
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

    /// Fills partitions, at the pace that is right at each moment.
    async fn fill_all(&self, slots: Vec<Slot>) {
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

    /// Makes a checkpoint and frees what it covers. What fails leaves the one before in force.
    async fn checkpoint(&self, number: &mut u64) {
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
        *number += 1;
        let snapshot = self.snapshot(*number, pretend);
        let early = planted!(self.settings, JournalFreedEarly);
        if early {
            self.state.borrow_mut().journal.release(snapshot.covered);
        }
        let unsynced = planted!(self.settings, CheckpointBeforeSync);
        if !unsynced && !self.sync_segments(&snapshot).await {
            // Partitions went offline: what was said of them is not true. Another attempt says less.
            self.mark_unclean();
            let mut state = self.state.borrow_mut();
            for slot in state.slots() {
                if let Some(partition) = state.get_mut(slot) {
                    partition.directory_dirty |= snapshot.directories.contains(&partition.directory);
                }
            }
            return;
        }
        let mut written = self.write_checkpoint(&snapshot.checkpoint, &snapshot.online).await;
        if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull) {
            self.disk.remove_file(&self.reserve_path()).await.ok();
            written = self.write_checkpoint(&snapshot.checkpoint, &snapshot.online).await;
            self.make_reserve().await;
        }
        match written {
            Ok(()) => self.covered(&snapshot, started),
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
                let mut unfilled =
                    partition.chunks.range((partition.unfilled - partition.chunks_first) as usize..);
                unfilled.all(|chunk| chunk.len() <= entry_max)
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
        }
        state.metrics.checkpoints += 1;
        let took = self.disk.monotonic().saturating_sub(started);
        state.metrics.checkpoint_micros += took.as_micros() as u64;
        state.evict(self.settings.cache_bytes_max);
        drop(guard);
        self.settle_soon();
        self.progress.notify();
    }

    /// What every partition's segments hold now. Nothing that a write in flight brings is in it.
    fn snapshot(&self, number: u64, pretend: bool) -> Snapshot {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let durable = state.journal.durable_lsn;
        let mut covered = durable;
        let (mut records, mut directories) = (Vec::new(), Vec::new());
        let (mut filled, mut online) = (Vec::new(), Vec::new());
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
            }
            if std::mem::take(&mut partition.directory_dirty) {
                directories.push(partition.directory.clone());
            }
        }
        state.dirty_since = (covered < durable).then(|| self.disk.monotonic());
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
        Snapshot { checkpoint, round, covered, directories, online, filled }
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
                for slot in slots {
                    self.sync_fault(slot, format!("sync of directory {directory} failed: {error}"));
                }
                sound = false;
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

    /// Keeps the indexes of active segments that grew by so many bytes, so that nobody scans after a restart what lies below.
    /// Of what a durable checkpoint holds: those bytes stay where they are. What is too much for one turn is for the
    /// next checkpoint's.
    async fn keep_indexes(&self, grown_min: u64, count_max: usize) {
        let mut left = count_max;
        let slots = self.state.borrow().slots();
        for slot in slots {
            let (view, position) = {
                let mut state = self.state.borrow_mut();
                let Some(partition) = state.get_mut(slot) else { continue };
                let end = partition.checkpointed;
                let kept = match partition.index_kept {
                    (base, position) if base == end.segment_base => position,
                    _ => 0,
                };
                let active = end.segment_base == partition.log.active().base_offset;
                let served = partition.offline.is_none() && !partition.deleting;
                if !active || !served || end.position.saturating_sub(kept) < grown_min {
                    continue;
                }
                if left == 0 {
                    return;
                }
                left -= 1;
                let view = partition.view(partition.log.segments().len() - 1, self.reader.era());
                partition.tended += 1;
                (view, end.position)
            };
            let reached = self.reader.keep_index(&view, position, grown_min, INDEX_SCAN_BYTES_MAX).await;
            if let Some(partition) = self.state.borrow_mut().get_mut(slot) {
                // Where it cannot be had the next attempt waits for as many bytes again.
                partition.index_kept = (view.base_offset, reached.unwrap_or(position));
            }
            self.tended(slot);
            self.keep_journal_ready().await;
        }
    }

    /// Cuts rolled segments to their true length and writes their indexes, once all of them is on disk. Returns of which
    /// partitions.
    async fn close_rolled(&self) -> Vec<Slot> {
        let mut closed = Vec::new();
        for slot in self.with_rolled() {
            loop {
                let closing = {
                    let mut state = self.state.borrow_mut();
                    state.get_mut(slot).and_then(|partition| {
                        let closable = partition.closable()?;
                        partition.tended += 1;
                        Some((closable, partition.directory.clone()))
                    })
                };
                let Some(((base, file, size, index), directory)) = closing else { break };
                let path = segment_path(&directory, base);
                if let Some(file) = &file
                    && let Err(error) = file.truncate(size).await
                {
                    self.segment_fault(slot, base, "truncation", &error);
                    self.tended(slot);
                    break;
                }
                index.borrow_mut().close();
                let whole = index.borrow().clone();
                if whole.covered_from() == 0 {
                    // Purely derived: where it cannot be written now, it is rebuilt when it is needed.
                    self.reader.write_index(&path, &whole).await.ok();
                }
                let mut state = self.state.borrow_mut();
                let Some(partition) = state.get_mut(slot) else { break };
                partition.writers.pop_front();
                partition.indexes.pop_front();
                state.dirty_since.get_or_insert(self.disk.monotonic());
                drop(state);
                self.tended(slot);
                closed.push(slot);
            }
        }
        closed.dedup();
        closed
    }

    fn with_rolled(&self) -> Vec<Slot> {
        let state = self.state.borrow();
        let rolled =
            |slot: &Slot| state.get(*slot).is_some_and(|p| p.writers.len() > 1 && p.offline.is_none());
        state.slots().into_iter().filter(rolled).collect()
    }

    /// Retention: log starts move up, and what lies below a durable log start is to be removed.
    fn retain(&self, due: bool) {
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

    /// Maintenance has no file of the partition in hand any more: whoever deletes it waits for that, as its name may then
    /// be another's.
    pub(crate) fn tended(&self, slot: Slot) {
        if let Some(partition) = self.state.borrow_mut().get_mut(slot) {
            partition.tended -= 1;
        }
        self.progress.notify();
    }

    /// Journals a new log start where retention allows one, and rolls where the active segment's time is over.
    fn raise_log_start(&self, slot: Slot, now_ms: i64, rules: Rules, early: bool) {
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
        let quiet = state.ready.is_empty() && state.journal.next_lsn.0 == state.journal.durable_lsn.0 + 1;
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

    /// The oldest segment, when it was rolled and all of it is on disk.
    #[allow(clippy::type_complexity)]
    fn closable(
        &mut self,
    ) -> Option<(Offset, Option<Rc<D::File>>, u64, Rc<std::cell::RefCell<crate::segment::SegmentIndex>>)>
    {
        let writer = self.writers.front()?;
        if self.writers.len() < 2 || writer.is_busy() || self.offline.is_some() || self.allocating {
            return None;
        }
        let segment = self.log.segments().iter().find(|segment| segment.base_offset == writer.base)?;
        let filled_past = self.filled.segment_base > writer.base
            || (self.filled.segment_base == writer.base && self.filled.position == segment.size);
        let held_here = self.held.as_ref().is_some_and(|held| held.mark.active_base() <= writer.base);
        if writer.written() < segment.size || !filled_past || held_here {
            return None;
        }
        Some((writer.base, writer.file.clone(), segment.size, self.indexes.front()?.clone()))
    }

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
