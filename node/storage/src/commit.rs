//! The commit loop: what was staged since the last cycle becomes one group, one write, and, once that is durable,
//! answers.
//!
//! ```text
//!   wait ──▶ form a group ──▶ write it ──▶ durable: watermarks, answers ──┐
//!    ▲         │ nothing         │ failed: the journal is at fault         │
//!    └─────────┘                 ▼                                         │
//!              ▲              the node exits                               │
//!              └───────────────────────────────────────────────────────────┘
//! ```
//!
//! One group is in flight; what arrives meanwhile is the next one, which waits a little longer where that brings many more
//! (`core/journal/cadence.rs`). Invariant: no answer leaves before the write of its
//! group, and of every earlier one, has completed (relaxed topics excepted, by their owner's choice).

use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use flumen_core::journal::{
    ENTRY_LEN, Entry, EntryKind, GROUP_HEADER_LEN, GroupCut, GroupHeader, Route, encode_extent_prefix,
    extent_body_len, hash, route,
};
use flumen_core::types::{LeaderEpoch, Lsn, Offset, PartitionId};
use flumen_wire::ErrorCode;
use flumen_wire::batch::{HEADER_LEN, assign, set_log_append_time};
use futures_util::future::select;

use crate::api::{EngineFault, Slot};
use crate::cache::{Chunk, LSN_NONE};
use crate::disk::{Buffer, Disk, File, OpenMode};
use crate::engine::{Engine, Life, State, planted};
use crate::journal_files::{JournalFileInfo, create, journal_path};
use crate::partition::{Bulk, Note, Partition, Staged};
use crate::slices::Slice;

/// One entry of a group that is being put together.
struct Planned<D: Disk, T> {
    slot: Slot,
    partition: PartitionId,
    what: What<D, T>,
}

enum What<D: Disk, T> {
    Data(Vec<Staged<T>>),
    Extent(Bulk<D::Buffer, T>),
    Note(Note, Option<T>, Offset),
    Relog(Again<D>),
}

/// A chunk that is journalled again.
struct Again<D: Disk> {
    number: u64,
    base_offset: Offset,
    last_offset: Offset,
    leader_epoch: LeaderEpoch,
    segment_base: Offset,
    position: u64,
    parts: [Slice<D::Buffer>; 2],
}

impl<D: Disk, T> What<D, T> {
    fn body_len(&self) -> usize {
        match self {
            What::Data(staged) => staged.iter().map(|staged| staged.bytes.len()).sum(),
            What::Extent(bulk) => extent_len(bulk),
            What::Note(..) => 0,
            What::Relog(again) => again.parts.iter().map(Slice::len).sum(),
        }
    }
}

fn extent_len<B, T>(bulk: &Bulk<B, T>) -> usize {
    extent_body_len(bulk.headers.len() / HEADER_LEN, bulk.tail.as_ref().map_or(0, Slice::len))
}

/// What a group does once it is durable.
struct Effect<D: Disk, T> {
    slot: Slot,
    /// End of its batches.
    end: Option<Offset>,
    note: Option<Note>,
    tokens: Vec<T>,
    /// The chunk of this number lies in a new buffer.
    relog: Option<(u64, u64, Slice<D::Buffer>)>,
}

/// A group that is on its way to the disk.
struct Group<D: Disk, T> {
    lsn: Lsn,
    file: Rc<D::File>,
    number: u32,
    position: u64,
    buffer: Rc<D::Buffer>,
    effects: Vec<Effect<D, T>>,
    formed: Duration,
}

/// What forming came to.
enum Formed<D: Disk, T> {
    Nothing,
    /// The next group goes to another file: the current one has no room for it, or costs more than need be.
    FileFull,
    Group(Group<D, T>),
}

impl<D: Disk, T: 'static> Engine<D, T> {
    /// The commit loop proper. Ends when the engine has stopped, or the journal is at fault.
    pub(crate) async fn commit_loop(&self) -> Result<(), EngineFault> {
        loop {
            // What another loop met: nothing more is written, nothing more is answered.
            if let Some(fault) = self.state.borrow_mut().fault.take() {
                return Err(fault);
            }
            let wait = self.wait_for_more();
            if !wait.is_zero() {
                self.settle();
                select(self.work.wait(), pin!(self.disk.sleep(wait))).await;
                continue;
            }
            let formed = self.form();
            self.settle();
            match formed {
                // What is left may be of offline partitions: their journals stay.
                Formed::Nothing | Formed::FileFull if self.life.get() == Life::Stopped => return Ok(()),
                Formed::Nothing => self.work.wait().await,
                Formed::FileFull => self.switch_file().await?,
                Formed::Group(group) => self.write_group(group).await?,
            }
        }
    }

    /// How long to wait for more before the next group is formed.
    fn wait_for_more(&self) -> Duration {
        let state = self.state.borrow();
        if self.life.get() != Life::Running || state.dirty.is_empty() {
            return Duration::ZERO;
        }
        state.cadence.wait(self.disk.monotonic(), state.staged_batches)
    }

    async fn write_group(&self, group: Group<D, T>) -> Result<(), EngineFault> {
        let written = group.file.write_at(group.buffer.clone(), group.position).await;
        if let Err(error) = written {
            // Undetermined: nothing of it is answered, no offset of it is used again, the node ends.
            self.life.set(Life::Faulted);
            return Err(EngineFault::Journal {
                file: journal_path(group.number),
                position: group.position,
                error,
            });
        }
        self.complete(group);
        self.settle();
        Ok(())
    }

    /// Goes on in the next journal file.
    async fn switch_file(&self) -> Result<(), EngineFault> {
        loop {
            let seen = self.progress.count();
            let free = self.state.borrow_mut().journal.take_free();
            if let Some(info) = free {
                return self.open_journal_file(info).await;
            }
            let may_grow = self.state.borrow().journal.may_grow();
            if may_grow && self.create_journal_file().await? {
                continue;
            }
            if !may_grow && let Some(directory) = self.journal_held_by() {
                self.life.set(Life::Faulted);
                return Err(EngineFault::Held(directory));
            }
            // Appends are refused meanwhile; a checkpoint frees a file.
            self.mark_checkpoint_due();
            self.progress.after(seen).await;
            if matches!(self.life.get(), Life::Stopped | Life::Faulted) {
                return Ok(());
            }
        }
    }

    async fn open_journal_file(&self, info: JournalFileInfo) -> Result<(), EngineFault> {
        let path = journal_path(info.number);
        let mode = OpenMode { create_new: false, write: true, synchronous: true };
        match self.disk.open(&path, mode).await {
            Ok(file) => {
                let mut state = self.state.borrow_mut();
                state.journal.switch(info, file);
                if state.journal.free_count() == 0 {
                    self.upkeep.notify();
                }
                Ok(())
            }
            Err(error) => {
                self.life.set(Life::Faulted);
                Err(EngineFault::Journal { file: path, position: 0, error })
            }
        }
    }

    /// The partition that no checkpoint can free the oldest journal file of: it is offline, and what the file holds of it
    /// may not be journalled again, or finds no room.
    pub(crate) fn journal_held_by(&self) -> Option<String> {
        let state = self.state.borrow();
        let (oldest, durable) = (state.journal.oldest_sealed_lsn()?, state.journal.durable_lsn);
        let holds =
            |p: &&Partition<D, T>| p.offline.is_some() && p.frozen.is_none() && p.covered(durable) < oldest;
        let held = state.slots().into_iter().filter_map(|slot| state.get(slot)).find(holds);
        held.map(|partition| partition.directory.to_string())
    }

    /// Has maintenance make a checkpoint as soon as it can.
    pub(crate) fn mark_checkpoint_due(&self) {
        self.state.borrow_mut().checkpoint_wanted = true;
        self.upkeep.notify();
    }

    /// Makes one more journal file. `false` when the disk is full.
    pub(crate) async fn create_journal_file(&self) -> Result<bool, EngineFault> {
        let info = self.state.borrow_mut().journal.next_file(&self.settings);
        match create(&self.disk, self.settings.directory_id, info).await {
            Ok(()) => {
                let mut state = self.state.borrow_mut();
                state.journal.put_free(info);
                state.journal.disk_full = false;
                Ok(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                let mut state = self.state.borrow_mut();
                state.journal.disk_full = true;
                state.metrics.storage_full += 1;
                Ok(false)
            }
            Err(error) => {
                self.life.set(Life::Faulted);
                Err(EngineFault::Journal { file: journal_path(info.number), position: 0, error })
            }
        }
    }

    /// Hands out what waits for no group, with nothing borrowed.
    pub(crate) fn settle(&self) {
        let mut state = self.state.borrow_mut();
        let mut ready = std::mem::take(&mut state.ready);
        let moved = std::mem::take(&mut state.moved);
        let offline = std::mem::take(&mut state.went_offline);
        let staged = state.staged_bytes + state.buffers.pinned_bytes();
        let room = state.full
            && staged <= self.settings.staged_bytes_max / 2
            && state.journal.room_for(state.staged_bytes, state.staged_batches);
        if room {
            state.full = false;
        }
        drop(state);
        if !moved.is_empty() {
            self.sink.advanced(&moved);
        }
        if !ready.is_empty() {
            self.sink.settled(&mut ready);
            if self.life.get() == Life::Stopping {
                self.upkeep.notify();
            }
        }
        for (partition, reason) in offline {
            self.sink.partition_offline(partition, &reason);
        }
        if room {
            self.sink.room();
        }
    }

    /// Takes what is staged and makes a group of it.
    fn form(&self) -> Formed<D, T> {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        if state.dirty.is_empty() {
            return Formed::Nothing;
        }
        if state.journal.has_better() {
            return Formed::FileFull;
        }
        let bytes_max = state.journal.group_bytes_max().min(state.journal.remaining());
        let mut cut = GroupCut::new(bytes_max);
        let mut planned = Vec::new();
        let mut left_out = false;
        let dirty = std::mem::take(&mut state.dirty);
        // As it is for all of them: what goes as bulk is taken off on the way.
        let staged_bytes = state.staged_bytes;
        for slot in dirty {
            let Some(partition) = state.get_mut(slot) else { continue };
            partition.dirty = false;
            if self.plan(state, slot, staged_bytes, &mut cut, &mut planned) {
                left_out = true;
                state.mark_dirty(slot);
            }
        }
        if planned.is_empty() {
            return if left_out { Formed::FileFull } else { Formed::Nothing };
        }
        Formed::Group(self.build(state, cut.len(), planned))
    }

    /// Adds what a partition has for this cycle, of all that the shard has staged. Returns whether something that could go
    /// did not fit.
    fn plan(
        &self,
        state: &mut State<D, T>,
        slot: Slot,
        staged_bytes: usize,
        cut: &mut GroupCut,
        planned: &mut Vec<Planned<D, T>>,
    ) -> bool {
        let Some(partition) = state.get_mut(slot) else { return false };
        if partition.offline.is_some() && !partition.deleting {
            return plan_relog(partition, slot, cut, planned);
        }
        let id = partition.id;
        let early = planted!(self.settings, ExtentBeforeSync);
        while let Some(bulk) = partition.bulk.front() {
            if !(bulk.synced || early && bulk.written) {
                break;
            }
            if !cut.add(extent_len(bulk)) {
                return true;
            }
            let bulk = partition.bulk.pop_front().expect("looked at above");
            planned.push(Planned { slot, partition: id, what: What::Extent(bulk) });
        }
        while !partition.notes.is_empty() {
            if !cut.add(0) {
                return true;
            }
            let (note, token) = partition.notes.pop_front().expect("looked at above");
            let at = match note {
                Note::LogStart(offset) => offset,
                Note::Drop => partition.log.log_end(),
            };
            planned.push(Planned { slot, partition: id, what: What::Note(note, token, at) });
        }
        let takeable = partition.takeable();
        if takeable == 0 {
            return false;
        }
        let bytes: usize = partition.staged.range(..takeable).map(|staged| staged.bytes.len()).sum();
        match route(bytes, staged_bytes, self.settings.bulk_bytes_min, !partition.bulk.is_empty()) {
            Route::Wait => false,
            Route::Bulk => {
                self.start_bulk(state, slot, takeable);
                false
            }
            Route::Journal => plan_data(state, slot, takeable, cut, planned),
        }
    }

    /// Writes header, table and bodies into one buffer: the only copy on the way to the journal.
    fn build(&self, state: &mut State<D, T>, len: usize, planned: Vec<Planned<D, T>>) -> Group<D, T> {
        let mut buffer = self.disk.allocate(len);
        let bytes = buffer.as_mut_slice();
        let table_end = GROUP_HEADER_LEN + planned.len() * ENTRY_LEN;
        let mut at = table_end;
        let mut bodies = Vec::with_capacity(planned.len());
        for (index, entry) in planned.iter().enumerate() {
            let body = at..at + entry.what.body_len();
            write_body(&entry.what, &mut bytes[body.clone()]);
            entry_of(entry, body.len()).encode(bytes, index);
            at = body.end;
            bodies.push(body);
        }
        bytes[at..].fill(0);
        let current = state.journal.current.as_mut().expect("a group has a file to go to");
        let lsn = state.journal.next_lsn;
        let header = GroupHeader {
            shard: self.settings.shard,
            entry_count: planned.len() as u32,
            file_uuid: current.info.file_uuid,
            incarnation: self.settings.incarnation,
            lsn,
            durable_lsn: state.journal.durable_lsn,
            previous_hash: state.journal.previous_hash,
            byte_length: len as u64,
            table_hash: hash(&bytes[GROUP_HEADER_LEN..table_end]),
            body_hash: hash(&bytes[table_end..]),
            position: current.position,
        };
        header.encode(bytes);
        let position = current.position;
        current.position += len as u64;
        current.last_lsn = lsn;
        let (file, number) = (current.file.clone(), current.info.number);
        state.journal.previous_hash = hash(&bytes[..GROUP_HEADER_LEN]);
        state.journal.next_lsn = Lsn(lsn.0 + 1);
        state.journal.bytes_since_checkpoint += len as u64;
        state.metrics.groups += 1;
        state.metrics.group_bytes += len as u64;
        if state.dirty_since.is_none() {
            state.dirty_since = Some(self.disk.monotonic());
            self.upkeep.notify();
        }
        let buffer = Rc::new(buffer);
        let effects = self.enter(state, lsn, &buffer, planned, bodies);
        let formed = self.disk.monotonic();
        state.cadence.formed(formed);
        state.left_behind = state.staged_batches;
        Group { lsn, file, number, position, buffer, effects, formed }
    }

    /// Enters the batches of a group into the cache, and says what follows once it is durable.
    fn enter(
        &self,
        state: &mut State<D, T>,
        lsn: Lsn,
        buffer: &Rc<D::Buffer>,
        planned: Vec<Planned<D, T>>,
        bodies: Vec<std::ops::Range<usize>>,
    ) -> Vec<Effect<D, T>> {
        let data = planned
            .iter()
            .filter(|entry| matches!(entry.what, What::Data(_) | What::Relog(_)))
            .map(|entry| entry.slot);
        let data: Vec<Slot> = data.collect();
        // A group without batches is of no use to readers.
        let number = if data.is_empty() { 0 } else { state.buffers.add(buffer.as_slice().len(), data) };
        let mut effects = Vec::with_capacity(planned.len());
        for (entry, body) in planned.into_iter().zip(bodies) {
            let slot = entry.slot;
            let partition = state.get_mut(slot).expect("planned in this call");
            let effect = match entry.what {
                What::Data(staged) => {
                    let (bytes, batches) = (body.len(), staged.len());
                    let body = Slice::new(buffer.clone(), body);
                    let effect = enter_data(partition, slot, lsn, number, body, staged);
                    state.staged_bytes -= bytes;
                    state.staged_batches -= batches;
                    effect
                }
                What::Extent(bulk) => {
                    let at = partition.chunks.partition_point(|chunk| chunk.base_offset < bulk.base_offset);
                    let chunk = partition.chunks.get_mut(at).filter(|c| c.base_offset == bulk.base_offset);
                    chunk.expect("bulk stays in the cache until it is journalled").lsn = lsn;
                    let end = Offset(bulk.last_offset.0 + 1);
                    Effect { slot, end: Some(end), note: None, tokens: bulk.tokens, relog: None }
                }
                What::Note(note, token, _) => {
                    let tokens = token.into_iter().collect();
                    Effect { slot, end: None, note: Some(note), tokens, relog: None }
                }
                What::Relog(again) => {
                    let relog = Some((again.number, number, Slice::new(buffer.clone(), body)));
                    Effect { slot, end: None, note: None, tokens: Vec::new(), relog }
                }
            };
            effects.push(self.relax(state, slot, effect));
        }
        effects
    }

    /// A relaxed topic is acknowledged and visible when its group is formed.
    fn relax(&self, state: &mut State<D, T>, slot: Slot, mut effect: Effect<D, T>) -> Effect<D, T> {
        let Some(partition) = state.get_mut(slot) else { return effect };
        let relaxed = !partition.config.is_durable_before_ack() || planted!(self.settings, AnswerBeforeSync);
        if let (true, Some(end)) = (relaxed, effect.end) {
            partition.high_watermark = partition.high_watermark.max(end);
            let moved = (slot, partition.id);
            state.ready.extend(effect.tokens.drain(..).map(|token| (token, Ok(()))));
            state.moved.push(moved);
        }
        effect
    }

    /// The group is durable: watermarks move, answers are ready.
    fn complete(&self, group: Group<D, T>) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        assert_eq!(group.lsn.0, state.journal.durable_lsn.0 + 1, "one group in flight, in order");
        state.journal.durable_lsn = group.lsn;
        let now = self.disk.monotonic();
        state.cadence.written(now, state.staged_batches.saturating_sub(state.left_behind));
        let micros = now.saturating_sub(group.formed).as_micros() as u64;
        state.metrics.group_micros += micros;
        state.metrics.group_micros_max = state.metrics.group_micros_max.max(micros);
        for effect in group.effects {
            self.take_effect(state, group.lsn, effect);
        }
        if self.life.get() == Life::Stopping
            || state.evict(self.settings.cache_bytes_max)
            || state.buffers.pinned_bytes() > self.settings.staged_bytes_max / 2
            || state.journal.bytes_since_checkpoint >= self.settings.checkpoint_bytes
            || state.fill_due
        {
            self.upkeep.notify();
        }
        drop(guard);
        if self.life.get() == Life::Stopping {
            self.upkeep.notify();
        }
        self.progress.notify();
    }

    fn take_effect(&self, state: &mut State<D, T>, lsn: Lsn, effect: Effect<D, T>) {
        let ready = effect.tokens.into_iter().map(|token| (token, Ok(())));
        state.ready.extend(ready);
        let Some((partition, buffers, journal)) = state.with(effect.slot) else { return };
        if let Some((number, buffer, body)) = effect.relog {
            let old = partition.relogged(number, buffer, body, lsn);
            buffers.filled(old);
            if partition.relogging.is_none() && state.full {
                // What a checkpoint frees now is waited for.
                state.checkpoint_wanted = true;
                self.upkeep.notify();
            }
            return;
        }
        let mut moved = false;
        if let Some(end) = effect.end {
            assert!(end > partition.durable_end, "what is durable rises");
            partition.durable_end = end;
            moved = end > partition.high_watermark;
            partition.high_watermark = partition.high_watermark.max(end);
            partition.advance_filled(journal.durable_lsn, buffers);
        }
        if let Some(Note::LogStart(offset)) = effect.note {
            partition.log.advance_log_start(offset);
            partition.log_start = partition.log_start.max(offset);
            partition.epochs.prune_below(partition.log_start);
            moved = true;
            self.upkeep.notify();
        }
        partition.dropped |= effect.note == Some(Note::Drop);
        let fill =
            partition.unfilled_bytes >= flumen_core::limits::FILL_BYTES_MIN && partition.bulk.is_empty();
        let id = partition.id;
        let mut answered = Vec::new();
        if !partition.waiters.is_empty() {
            let below = partition.high_watermark;
            let (settled, kept) = partition.waiters.drain(..).partition(|(last, _)| *last < below);
            partition.waiters = kept;
            let settled: VecDeque<(Offset, T)> = settled;
            answered.extend(settled.into_iter().map(|(_, token)| (token, Ok(()))));
        }
        state.fill_due |= fill;
        state.ready.extend(answered);
        if moved {
            state.moved.push((effect.slot, id));
        }
    }

    /// Takes a partition offline: what it has not journalled fails, what is in flight may still become durable.
    pub(crate) fn take_offline(&self, slot: Slot, reason: String) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let Some(partition) = state.get_mut(slot) else { return };
        if partition.offline.is_some() {
            return;
        }
        let reason: Rc<str> = reason.into();
        partition.offline = Some(reason.clone());
        partition.held = None;
        let id = partition.id;
        let failed = Err(ErrorCode::KafkaStorageError);
        let mut answers = Vec::new();
        let (mut bytes, mut batches) = (0, 0);
        let mut loose = Vec::new();
        // Bulk without an EXTENT entry never was.
        while partition.chunks.back().is_some_and(|chunk| chunk.lsn == LSN_NONE) {
            if let Some(chunk) = partition.chunks.pop_back() {
                partition.unfilled_bytes -= chunk.len();
                loose.push(chunk.buffer);
            }
        }
        partition.unwritten = partition.unwritten.min(partition.chunks_end());
        for bulk in partition.bulk.drain(..) {
            answers.extend(bulk.tokens.into_iter().map(|token| (token, failed)));
        }
        for staged in partition.staged.drain(..) {
            bytes += staged.bytes.len();
            batches += 1;
            answers.push((staged.token, failed));
        }
        partition.staged_bytes = 0;
        answers.extend(partition.waiters.drain(..).map(|(_, token)| (token, failed)));
        if !partition.deleting {
            answers.extend(
                partition.notes.drain(..).filter_map(|(_, token)| token).map(|token| (token, failed)),
            );
        }
        for buffer in loose {
            state.buffers.filled(buffer);
        }
        state.staged_bytes -= bytes;
        state.staged_batches -= batches;
        state.ready.append(&mut answers);
        state.went_offline.push((id, reason));
        state.moved.push((slot, id));
        drop(guard);
        self.work.notify();
        self.progress.notify();
    }
}

/// Moves staged batches into the plan: one entry for each run within one segment and epoch.
fn plan_data<D: Disk, T: 'static>(
    state: &mut State<D, T>,
    slot: Slot,
    takeable: usize,
    cut: &mut GroupCut,
    planned: &mut Vec<Planned<D, T>>,
) -> bool {
    let Some(partition) = state.get_mut(slot) else { return false };
    let mut run: Vec<Staged<T>> = Vec::new();
    let mut fits = true;
    for _ in 0..takeable {
        let next = partition.staged.front().expect("counted");
        let same = run.last().is_some_and(|last| {
            last.placement.segment_base == next.placement.segment_base
                && last.leader_epoch == next.leader_epoch
        });
        fits = if same { cut.extend(next.bytes.len()) } else { cut.add(next.bytes.len()) };
        if !fits {
            break;
        }
        if !same && !run.is_empty() {
            let what = What::Data(std::mem::take(&mut run));
            planned.push(Planned { slot, partition: partition.id, what });
        }
        let staged = partition.staged.pop_front().expect("looked at above");
        partition.staged_bytes -= staged.bytes.len();
        run.push(staged);
    }
    if !run.is_empty() {
        planned.push(Planned { slot, partition: partition.id, what: What::Data(run) });
    }
    !fits
}

fn write_body<D: Disk, T>(what: &What<D, T>, body: &mut [u8]) {
    match what {
        What::Data(staged) => {
            let mut at = 0;
            for staged in staged {
                let batch = &mut body[at..at + staged.bytes.len()];
                copy_batch(staged, batch);
                at += batch.len();
            }
        }
        What::Extent(bulk) => {
            let tail = bulk.tail.as_ref().map_or(&[][..], |tail| tail.as_slice());
            encode_extent_prefix(body, bulk.headers.len() / HEADER_LEN, tail.len());
            let (headers, rest) = body[8..].split_at_mut(bulk.headers.len());
            headers.copy_from_slice(&bulk.headers);
            rest.copy_from_slice(tail);
        }
        What::Note(..) => {}
        What::Relog(again) => {
            let (first, rest) = body.split_at_mut(again.parts[0].len());
            first.copy_from_slice(again.parts[0].as_slice());
            rest.copy_from_slice(again.parts[1].as_slice());
        }
    }
}

/// Copies a batch to where it stays, and sets what the broker sets.
pub(crate) fn copy_batch<T>(staged: &Staged<T>, batch: &mut [u8]) {
    batch.copy_from_slice(&staged.bytes);
    assign(batch, staged.placement.base_offset.0, staged.leader_epoch.0);
    if let Some(time) = staged.append_time {
        set_log_append_time(batch, time);
    }
}

fn entry_of<D: Disk, T>(planned: &Planned<D, T>, body: usize) -> Entry {
    let blank = Entry {
        kind: EntryKind::Data,
        partition: planned.partition,
        leader_epoch: LeaderEpoch(0),
        base_offset: Offset(0),
        last_offset: Offset(0),
        segment_base: Offset(0),
        position: 0,
        length: 0,
        body_length: body as u32,
    };
    match &planned.what {
        What::Data(staged) => {
            let (first, last) = (&staged[0], &staged[staged.len() - 1]);
            Entry {
                leader_epoch: first.leader_epoch,
                base_offset: first.placement.base_offset,
                last_offset: last.placement.last_offset,
                segment_base: first.placement.segment_base,
                position: first.placement.position,
                length: body as u64,
                ..blank
            }
        }
        What::Extent(bulk) => Entry {
            kind: EntryKind::Extent,
            leader_epoch: bulk.leader_epoch,
            base_offset: bulk.base_offset,
            last_offset: bulk.last_offset,
            segment_base: bulk.segment_base,
            position: bulk.position,
            length: bulk.length,
            ..blank
        },
        What::Note(note, _, at) => Entry {
            kind: match note {
                Note::LogStart(_) => EntryKind::LogStart,
                Note::Drop => EntryKind::Drop,
            },
            base_offset: *at,
            last_offset: *at,
            ..blank
        },
        What::Relog(again) => Entry {
            kind: EntryKind::Relog,
            leader_epoch: again.leader_epoch,
            base_offset: again.base_offset,
            last_offset: again.last_offset,
            segment_base: again.segment_base,
            position: again.position,
            length: body as u64,
            ..blank
        },
    }
}

/// Plans chunks of an offline partition that are to be journalled again.
fn plan_relog<D: Disk, T>(
    partition: &mut Partition<D, T>,
    slot: Slot,
    cut: &mut GroupCut,
    planned: &mut Vec<Planned<D, T>>,
) -> bool {
    while let Some(number) = partition.relog {
        let Some(chunk) = partition.chunk(number) else { break };
        // A log start past what is filled is in the journal alone too: it goes again with the last chunk, in one group.
        let with_start = number + 1 == partition.chunks_end() && partition.log_start > partition.filled.end;
        if (with_start && !cut.add(0)) || !cut.add(chunk.len()) {
            return true;
        }
        let tail = chunk.tail.clone().unwrap_or_else(|| chunk.body.slice(0..0));
        let again = Again {
            number,
            base_offset: chunk.base_offset,
            last_offset: chunk.last_offset,
            leader_epoch: LeaderEpoch(chunk.header(0).partition_leader_epoch),
            segment_base: chunk.segment_base,
            position: chunk.position,
            parts: [chunk.body.clone(), tail],
        };
        planned.push(Planned { slot, partition: partition.id, what: What::Relog(again) });
        if with_start {
            let start = partition.log_start;
            let what = What::Note(Note::LogStart(start), None, start);
            planned.push(Planned { slot, partition: partition.id, what });
        }
        partition.relog = Some(number + 1);
    }
    partition.relog = None;
    false
}

impl<D: Disk, T> Partition<D, T> {
    /// A chunk was journalled again and lies in another buffer now. Returns the number of the old one.
    fn relogged(&mut self, number: u64, buffer: u64, body: Slice<D::Buffer>, lsn: Lsn) -> u64 {
        let index = (number - self.chunks_first) as usize;
        let chunk = &mut self.chunks[index];
        chunk.body = body;
        chunk.tail = None;
        chunk.lsn = lsn;
        let old = std::mem::replace(&mut chunk.buffer, buffer);
        if number + 1 == self.chunks_end() {
            self.relogging = None;
        }
        old
    }
}

fn enter_data<D: Disk, T>(
    partition: &mut Partition<D, T>,
    slot: Slot,
    lsn: Lsn,
    buffer: u64,
    body: Slice<D::Buffer>,
    staged: Vec<Staged<T>>,
) -> Effect<D, T> {
    for staged in &staged {
        partition.index_batch(&staged.placement, staged.bytes.len(), staged.max_timestamp);
    }
    let (first, last) = (&staged[0], &staged[staged.len() - 1]);
    let end = Offset(last.placement.last_offset.0 + 1);
    let chunk = Chunk {
        base_offset: first.placement.base_offset,
        last_offset: last.placement.last_offset,
        segment_base: first.placement.segment_base,
        position: first.placement.position,
        body,
        tail: None,
        lsn,
        buffer,
    };
    partition.push_chunk(chunk);
    let tokens = staged.into_iter().map(|staged| staged.token).collect();
    Effect { slot, end: Some(end), note: None, tokens, relog: None }
}
