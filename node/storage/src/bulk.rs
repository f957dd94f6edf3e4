//! Bulk past the journal: whole blocks go straight to the segment, several writes in flight, one sync for several of
//! them; only then an EXTENT entry enters a group, and only then the answer leaves.
//!
//! ```text
//!   staged ──▶ write (8-16 in flight) ──▶ written ──▶ sync ──▶ synced ──▶ EXTENT in a group, in order
//! ```
//!
//! Invariants: bulk of one segment ends at a whole block, so that no two writes touch one block; what is left of it,
//! under a block, travels in the EXTENT entry and is the prefix of the next write. A fill never runs on a segment with
//! bulk in flight, nor bulk beside a fill.

use std::rc::Rc;

use flumen_core::limits::{BULK_WRITE_BYTES, BULK_WRITES_MAX};
use flumen_core::types::Offset;
use flumen_wire::batch::{HEADER_LEN, assign};
use futures_util::future::{Either, LocalBoxFuture, select};
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::api::Slot;
use crate::cache::{Chunk, LSN_NONE};
use crate::commit::copy_batch;
use crate::disk::{BLOCK, Buffer, Disk, File};
use crate::engine::{Engine, Life, State, planted};
use crate::partition::{Bulk, Partition, Staged};
use crate::slices::Slice;

/// Bytes of one segment that are synced together, when more is under way.
const SYNC_BYTES: usize = 4 << 20;

/// A write of bulk to be made.
pub(crate) struct BulkWrite<D: Disk> {
    slot: Slot,
    /// Which of the partition's.
    number: u64,
    /// Which of the segment's.
    write_number: u64,
    segment_base: Offset,
    file: Rc<D::File>,
    buffer: Rc<D::Buffer>,
    position: u64,
}

/// Whose a write or a sync is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    slot: Slot,
    segment_base: Offset,
}

enum Event {
    Written { key: Key, number: u64, write_number: u64, bytes: usize, result: std::io::Result<()> },
    Synced { key: Key, numbers: Vec<u64>, named: bool, result: std::io::Result<()> },
}

/// One segment with bulk under way.
struct Syncing<D: Disk> {
    key: Key,
    file: Rc<D::File>,
    unsynced: Vec<u64>,
    unsynced_bytes: usize,
    writing: usize,
    syncing: bool,
}

impl<D: Disk, T: 'static> Engine<D, T> {
    /// Copies the first `takeable` staged batches of a partition into buffers to be written to its segment.
    pub(crate) fn start_bulk(&self, state: &mut State<D, T>, slot: Slot, takeable: usize) {
        let target = BULK_WRITE_BYTES.min(state.journal.group_bytes_max() as usize / 2 - BLOCK).max(BLOCK);
        let mut left = takeable;
        while left > 0 {
            let Some(partition) = state.get_mut(slot) else { return };
            let segment_base = partition.staged[0].placement.segment_base;
            if !partition.may_start_bulk(segment_base) {
                // Fills come first; they put the partition back on the list.
                partition.fill_wanted = true;
                state.fill_due = true;
                state.fill_awaited = true;
                self.upkeep.notify();
                return;
            }
            let batch = take_run(partition, left, target);
            left -= batch.len();
            let bytes: usize = batch.iter().map(|staged| staged.bytes.len()).sum();
            state.staged_bytes -= bytes;
            state.staged_batches -= batch.len();
            state.metrics.bulk_bytes += bytes as u64;
            state.bulk_bytes_since_checkpoint += bytes as u64;
            self.stage_bulk(state, slot, batch);
        }
        self.bulk_work.notify();
    }

    fn stage_bulk(&self, state: &mut State<D, T>, slot: Slot, batch: Vec<Staged<T>>) {
        let Some(partition) = state.get_mut(slot) else { return };
        let (first, last) = (batch[0].placement, batch[batch.len() - 1].placement);
        let leader_epoch = batch[0].leader_epoch;
        let length: usize = batch.iter().map(|staged| staged.bytes.len()).sum();
        for staged in &batch {
            partition.index_batch(&staged.placement, staged.bytes.len(), staged.max_timestamp);
        }
        let prepared: Vec<Prepared<'_>> = batch.iter().map(Prepared::new).collect();
        let earlier: Vec<[Slice<D::Buffer>; 2]> = partition.unwritten_parts();
        let mut parts: Vec<&[u8]> = earlier.iter().flatten().map(Slice::as_slice).collect();
        let earlier_len: usize = parts.iter().map(|part| part.len()).sum();
        parts.extend(prepared.iter().flat_map(Prepared::parts));
        let writer = partition.writer_mut(first.segment_base).expect("what is staged has a segment");
        let write = writer.bulk(&self.disk, &parts);
        let headers: Vec<u8> = prepared.iter().flat_map(|prepared| prepared.header()).copied().collect();
        drop(parts);
        let kept = writer.partial();
        let tail_bytes = &kept[kept.len() - kept.len().min(length)..];
        let tail = (!tail_bytes.is_empty()).then(|| {
            let mut block = self.disk.allocate(BLOCK);
            block.as_mut_slice()[..tail_bytes.len()].copy_from_slice(tail_bytes);
            Slice::new(Rc::new(block), 0..tail_bytes.len())
        });
        let file = writer.file.clone().expect("a writer that is ready is open");
        let (written, body) = match write {
            Some((write_number, write)) => {
                let start = (write.new_at + earlier_len).min(write.buffer.as_slice().len());
                let buffer = Rc::new(write.buffer);
                let body = Slice::new(buffer.clone(), start..buffer.as_slice().len());
                (Some((write_number, buffer, write.position)), body)
            }
            None => (None, tail.as_ref().expect("bytes are written or kept").slice(0..0)),
        };
        let number = partition.bulk_next;
        partition.bulk_next += 1;
        partition.bulk.push_back(Bulk {
            number,
            base_offset: first.base_offset,
            last_offset: last.last_offset,
            leader_epoch,
            segment_base: first.segment_base,
            position: first.position,
            length: length as u64,
            headers,
            tail: tail.clone(),
            tokens: batch.into_iter().map(|staged| staged.token).collect(),
            written: written.is_none(),
            synced: written.is_none(),
        });
        let buffer_bytes = body.buffer().as_slice().len() + tail.as_ref().map_or(0, |_| BLOCK);
        let chunk = Chunk {
            base_offset: first.base_offset,
            last_offset: last.last_offset,
            segment_base: first.segment_base,
            position: first.position,
            body,
            tail,
            lsn: LSN_NONE,
            buffer: 0,
        };
        assert_eq!(chunk.len(), length, "a bulk write and its tail are the batches");
        self.enter_bulk(state, slot, chunk, buffer_bytes);
        match written {
            Some((write_number, buffer, position)) => state.bulk_wanted.push_back(BulkWrite {
                slot,
                number,
                write_number,
                segment_base: first.segment_base,
                file,
                buffer,
                position,
            }),
            // Nothing to write: its EXTENT may go once those before it are there, in the next group: this one may come to
            // nothing.
            None => {
                state.mark_dirty(slot);
                self.work.notify();
            }
        }
    }

    fn enter_bulk(&self, state: &mut State<D, T>, slot: Slot, mut chunk: Chunk<D::Buffer>, bytes: usize) {
        chunk.buffer = state.buffers.add(bytes, vec![slot]);
        let Some(partition) = state.get_mut(slot) else { return };
        partition.push_chunk(chunk);
        partition.unwritten = partition.chunks_end();
    }

    /// Makes the writes and syncs. Ends when the engine has stopped.
    pub(crate) async fn bulk_loop(&self) {
        let mut tasks: FuturesUnordered<LocalBoxFuture<'static, Event>> = FuturesUnordered::new();
        let mut files: Vec<Syncing<D>> = Vec::new();
        let mut writing = 0;
        loop {
            while writing < BULK_WRITES_MAX {
                let Some(write) = self.state.borrow_mut().bulk_wanted.pop_front() else { break };
                start_write(write, &mut files, &mut tasks);
                writing += 1;
            }
            if tasks.is_empty() {
                if matches!(self.life.get(), Life::Stopped | Life::Faulted) {
                    return;
                }
                self.bulk_work.wait().await;
                continue;
            }
            let event = match select(tasks.next(), self.bulk_work.wait()).await {
                Either::Left((event, _)) => event,
                Either::Right(_) => None,
            };
            if let Some(event) = event {
                writing -= usize::from(matches!(event, Event::Written { .. }));
                self.handle(event, &mut files);
                self.start_syncs(&mut files, &mut tasks);
            }
        }
    }

    /// Begins a sync wherever enough is written, or nothing more is under way.
    fn start_syncs(
        &self,
        files: &mut [Syncing<D>],
        tasks: &mut FuturesUnordered<LocalBoxFuture<'static, Event>>,
    ) {
        for file in files {
            let due = !file.unsynced.is_empty() && (file.unsynced_bytes >= SYNC_BYTES || file.writing == 0);
            if file.syncing || !due {
                continue;
            }
            file.syncing = true;
            file.unsynced_bytes = 0;
            let (key, numbers, handle) = (file.key, std::mem::take(&mut file.unsynced), file.file.clone());
            // The bytes of a file that no directory names durably are lost with its name.
            let directory = {
                let state = self.state.borrow();
                let partition = state.get(key.slot);
                let unnamed = |partition: &&Partition<D, T>| {
                    partition.writer(key.segment_base).is_some_and(|writer| writer.unnamed)
                };
                partition.filter(unnamed).map(|partition| partition.directory.clone())
            };
            let directory = directory.filter(|_| !planted!(self.settings, DirectoryNotSynced));
            let disk = self.disk.clone();
            tasks.push(Box::pin(async move {
                let mut result = handle.sync().await;
                let named = directory.is_some();
                if let (Ok(()), Some(directory)) = (&result, directory) {
                    result = disk.sync_directory(&directory).await;
                }
                Event::Synced { key, numbers, named, result }
            }));
        }
    }

    fn handle(&self, event: Event, files: &mut Vec<Syncing<D>>) {
        let (key, failed) = match event {
            Event::Written { key, number, write_number, bytes, result } => {
                let file = files.iter_mut().find(|file| file.key == key).expect("it was entered when begun");
                file.writing -= 1;
                file.unsynced.push(number);
                file.unsynced_bytes += bytes;
                self.bulk_written(key, number, write_number, result.is_ok());
                (key, result.err().map(|error| ("write", error)))
            }
            Event::Synced { key, numbers, named, result } => {
                let file = files.iter_mut().find(|file| file.key == key).expect("it was entered when begun");
                file.syncing = false;
                if result.is_ok() {
                    self.bulk_synced(key, &numbers, named);
                }
                (key, result.err().map(|error| ("sync", error)))
            }
        };
        if let Some((what, error)) = failed {
            self.segment_fault(key.slot, key.segment_base, what, &error);
            let failed = files.iter_mut().find(|file| file.key == key).expect("found above");
            failed.unsynced.clear();
        }
        files.retain(|file| file.writing > 0 || file.syncing || !file.unsynced.is_empty());
    }

    fn bulk_written(&self, key: Key, number: u64, write_number: u64, sound: bool) {
        let early = planted!(self.settings, ExtentBeforeSync);
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let Some((partition, buffers, journal)) = state.with(key.slot) else { return };
        if let Some(writer) = partition.writer_mut(key.segment_base) {
            writer.bulk_done(write_number, sound);
        }
        partition.advance_filled(journal.durable_lsn, buffers);
        if let Some(bulk) = partition.bulk.iter_mut().find(|bulk| bulk.number == number) {
            bulk.written = sound;
        }
        if early {
            state.mark_dirty(key.slot);
            self.work.notify();
        }
        drop(guard);
        self.progress.notify();
    }

    fn bulk_synced(&self, key: Key, numbers: &[u64], named: bool) {
        let mut state = self.state.borrow_mut();
        let Some(partition) = state.get_mut(key.slot) else { return };
        for bulk in partition.bulk.iter_mut().filter(|bulk| numbers.contains(&bulk.number)) {
            bulk.synced = true;
        }
        if let Some(writer) = partition.writer_mut(key.segment_base) {
            writer.unnamed &= !named;
        }
        state.mark_dirty(key.slot);
        self.work.notify();
    }

    /// A segment cannot be written or synced: its partition goes offline, said once.
    pub(crate) fn segment_fault(&self, slot: Slot, base: Offset, what: &str, error: &std::io::Error) {
        let path = {
            let state = self.state.borrow();
            let Some(partition) = state.get(slot) else { return };
            crate::partition::segment_path(&partition.directory, base)
        };
        let reason = format!("{what} of {path}.log failed: {error}");
        match what {
            "sync" => self.sync_fault(slot, reason),
            _ => self.take_offline(slot, reason),
        }
        self.settle_soon();
    }

    /// After a sync that failed nothing is known of what was written since the last checkpoint, and no later sync would
    /// tell: the journal keeps all of it, for a start on a healthy disk.
    pub(crate) fn sync_fault(&self, slot: Slot, reason: String) {
        if let Some(partition) = self.state.borrow_mut().get_mut(slot) {
            partition.sync_failed = true;
        }
        self.take_offline(slot, reason);
    }

    /// Has the commit loop hand out what is ready.
    pub(crate) fn settle_soon(&self) {
        self.work.notify();
    }
}

impl<D: Disk, T> Partition<D, T> {
    /// Whether bulk may go to this segment now: no fill in flight, and nothing older is unwritten in another segment.
    fn may_start_bulk(&self, base: Offset) -> bool {
        let ready = self.writer(base).is_some_and(|writer| writer.is_ready() && !writer.fill_in_flight());
        let first = self.chunk(self.unwritten);
        ready && first.is_none_or(|chunk| chunk.segment_base == base)
    }

    /// Slices of all chunks that no write took.
    fn unwritten_parts(&self) -> Vec<[Slice<D::Buffer>; 2]> {
        let chunks = (self.unwritten..self.chunks_end()).filter_map(|number| self.chunk(number));
        chunks
            .map(|chunk| [chunk.body.clone(), chunk.tail.clone().unwrap_or_else(|| chunk.body.slice(0..0))])
            .collect()
    }
}

/// Takes batches of one segment and epoch, about `target` bytes, at least one.
fn take_run<D: Disk, T>(partition: &mut Partition<D, T>, most: usize, target: usize) -> Vec<Staged<T>> {
    let mut run: Vec<Staged<T>> = Vec::new();
    let mut bytes = 0;
    while run.len() < most && bytes < target {
        let Some(next) = partition.staged.front() else { break };
        let same = run.last().is_none_or(|last| {
            last.placement.segment_base == next.placement.segment_base
                && last.leader_epoch == next.leader_epoch
        });
        if !same {
            break;
        }
        bytes += next.bytes.len();
        partition.staged_bytes -= next.bytes.len();
        run.extend(partition.staged.pop_front());
    }
    run
}

/// A batch as it will stand: where only the header changes, its records are not copied twice.
enum Prepared<'a> {
    Header([u8; HEADER_LEN], &'a [u8]),
    Whole(Vec<u8>),
}

impl<'a> Prepared<'a> {
    fn new<T>(staged: &'a Staged<T>) -> Prepared<'a> {
        if staged.append_time.is_some() {
            let mut whole = vec![0; staged.bytes.len()];
            copy_batch(staged, &mut whole);
            return Prepared::Whole(whole);
        }
        let (header, records) = staged.bytes.split_at(HEADER_LEN);
        let mut header: [u8; HEADER_LEN] = header.try_into().expect("split there");
        assign(&mut header, staged.placement.base_offset.0, staged.leader_epoch.0);
        Prepared::Header(header, records)
    }

    fn parts(&self) -> [&[u8]; 2] {
        match self {
            Prepared::Header(header, records) => [header, records],
            Prepared::Whole(whole) => [whole, &[]],
        }
    }

    fn header(&self) -> &[u8] {
        &self.parts()[0][..HEADER_LEN]
    }
}

fn start_write<D: Disk>(
    write: BulkWrite<D>,
    files: &mut Vec<Syncing<D>>,
    tasks: &mut FuturesUnordered<LocalBoxFuture<'static, Event>>,
) {
    let key = Key { slot: write.slot, segment_base: write.segment_base };
    match files.iter_mut().find(|file| file.key == key) {
        Some(file) => file.writing += 1,
        None => files.push(Syncing {
            key,
            file: write.file.clone(),
            unsynced: Vec::new(),
            unsynced_bytes: 0,
            writing: 1,
            syncing: false,
        }),
    }
    tasks.push(Box::pin(async move {
        let bytes = write.buffer.as_slice().len();
        let result = write.file.write_at(write.buffer, write.position).await;
        Event::Written { key, number: write.number, write_number: write.write_number, bytes, result }
    }));
}
