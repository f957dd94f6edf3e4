//! Space before acknowledgement: files and their extents are there before a batch may enter the journal. A full disk
//! is met here, where the batch can still be refused.
//!
//! Space grows with the partition's rate, from 64 KiB steps to 16 MiB ones, mostly ahead of need.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use flumen_core::limits::{ALLOCATE_BYTES_MAX, BLOCK_BYTES};
use flumen_core::types::Offset;
use flumen_wire::ErrorCode;
use flumen_wire::batch::BatchHeader;
use futures_util::future::{Either, LocalBoxFuture, select};
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::api::Slot;
use crate::disk::{BLOCK, Buffer, Disk, File, OpenMode};
use crate::engine::{Engine, Life};
use crate::partition::{Partition, segment_path};

/// Allocations in flight at a time.
const ALLOCATIONS_MAX: usize = 16;

/// The next thing to do for a partition's space.
struct Need<D: Disk> {
    base: Offset,
    path: String,
    /// The open file, or `None`: it must be opened, or created where the segment is new.
    file: Option<Rc<D::File>>,
    is_new: bool,
    unloaded: Option<(u64, usize)>,
    allocate_to: u64,
}

impl<D: Disk, T> Partition<D, T> {
    fn next_need(&self) -> Option<Need<D>> {
        let segments = self.log.segments();
        for writer in &self.writers {
            let Some(at) = segments.iter().rposition(|segment| segment.base_offset == writer.base) else {
                continue;
            };
            let size = segments[at].size;
            let is_active = at + 1 == segments.len();
            let ahead = if is_active { writer.step / 2 } else { 0 };
            let cap = u64::from(self.config.segment_bytes).max(size).next_multiple_of(BLOCK_BYTES);
            let short = writer.allocated < (size + ahead).min(cap);
            if writer.is_ready() && !short {
                continue;
            }
            let grown = (size + writer.step).next_multiple_of(BLOCK_BYTES).min(cap);
            return Some(Need {
                base: writer.base,
                path: format!("{}.log", segment_path(&self.directory, writer.base)),
                file: writer.file.clone(),
                is_new: writer.submitted() == 0
                    && writer.allocated == 0
                    && writer.base > self.filled.segment_base,
                unloaded: writer.unloaded_block(),
                allocate_to: if is_active { grown } else { size.next_multiple_of(BLOCK_BYTES) },
            });
        }
        None
    }
}

impl<D: Disk, T: 'static> Engine<D, T> {
    /// Serves partitions that want space. Ends when the engine has stopped.
    pub(crate) async fn space_loop(&self) {
        let mut tasks: FuturesUnordered<LocalBoxFuture<'_, ()>> = FuturesUnordered::new();
        loop {
            while tasks.len() < ALLOCATIONS_MAX {
                let Some(slot) = self.state.borrow_mut().space_wanted.pop_front() else { break };
                tasks.push(Box::pin(self.ensure_space(slot)));
            }
            if tasks.is_empty() {
                if matches!(self.life.get(), Life::Stopped | Life::Faulted) {
                    return;
                }
                self.space_work.wait().await;
                continue;
            }
            match select(tasks.next(), self.space_work.wait()).await {
                Either::Left(_) | Either::Right(_) => {}
            }
        }
    }

    /// Allocates until all that is staged has space, and some ahead.
    async fn ensure_space(&self, slot: Slot) {
        loop {
            let need = {
                let mut state = self.state.borrow_mut();
                let Some(partition) = state.get_mut(slot) else { return };
                match partition.next_need() {
                    Some(need) if partition.offline.is_none() => need,
                    _ => {
                        partition.allocating = false;
                        partition.held = None;
                        state.mark_dirty(slot);
                        self.work.notify();
                        self.progress.notify();
                        return;
                    }
                }
            };
            let base = need.base;
            match self.provide(need).await {
                Ok((file, allocated, loaded)) => {
                    let mut state = self.state.borrow_mut();
                    let Some(partition) = state.get_mut(slot) else { return };
                    partition.provided(base, file, allocated, loaded);
                }
                Err(error) => {
                    self.space_failed(slot, base, &error).await;
                    return;
                }
            }
        }
    }

    /// Opens or creates the file, reads its partial block, allocates.
    async fn provide(&self, need: Need<D>) -> io::Result<(Rc<D::File>, u64, Option<Vec<u8>>)> {
        let file = match need.file {
            Some(file) => file,
            None if need.is_new => Rc::new(self.create_segment_file(&need.path).await?),
            None => {
                let mode = OpenMode { create_new: false, write: true, synchronous: false };
                Rc::new(self.disk.open(&need.path, mode).await?)
            }
        };
        let loaded = match need.unloaded {
            None => None,
            Some((position, len)) => {
                let (buffer, content) = file.read_at(position, BLOCK).await?;
                if content < len {
                    let text = format!("the file ends before position {}", position + len as u64);
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                Some(buffer.as_slice()[..len].to_vec())
            }
        };
        file.preallocate(need.allocate_to).await?;
        Ok((file, need.allocate_to, loaded))
    }

    /// A new segment's file. One of that name can only be what an attempt that failed left behind.
    async fn create_segment_file(&self, path: &str) -> io::Result<D::File> {
        let mode = OpenMode { create_new: true, write: true, synchronous: false };
        match self.disk.open(path, mode).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.remove_file(path).await?;
                self.disk.open(path, mode).await
            }
            opened => opened,
        }
    }

    /// There is no space, or the disk failed: what was staged since is taken back.
    async fn space_failed(&self, slot: Slot, base: Offset, error: &io::Error) {
        if error.kind() != io::ErrorKind::StorageFull {
            if let Some(partition) = self.state.borrow_mut().get_mut(slot) {
                partition.allocating = false;
            }
            self.segment_fault(slot, base, "open or allocation", error);
            return;
        }
        self.space_ran_out();
        let gone = self.take_back(slot);
        for path in gone {
            self.reader.forget(&path);
            self.disk.remove_file(&format!("{path}.log")).await.ok();
        }
        let mut state = self.state.borrow_mut();
        if let Some(partition) = state.get_mut(slot) {
            partition.allocating = false;
            // A batch that came meanwhile asked for space and was told that it is on its way.
            if partition.held.is_some() && state.want_space(slot) {
                self.space_work.notify();
            }
        }
        drop(state);
        self.work.notify();
        self.progress.notify();
    }

    /// Undoes the placements that have no space. Returns the paths of segments that are no more.
    fn take_back(&self, slot: Slot) -> Vec<String> {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        state.metrics.storage_full += 1;
        let Some(partition) = state.get_mut(slot) else { return Vec::new() };
        let Some(held) = partition.held.take() else { return Vec::new() };
        let from = held.mark.log_end();
        let gone = partition.log.rewind(held.mark);
        partition.producers = held.producers;
        partition.epochs = held.epochs;
        while partition.writers.back().is_some_and(|writer| gone.contains(&writer.base)) {
            partition.writers.pop_back();
            partition.indexes.pop_back();
        }
        let at = partition.staged.partition_point(|staged| staged.placement.base_offset < from);
        let refused: Vec<_> = partition.staged.drain(at..).collect();
        let now_ms = self.disk.now_ms();
        for header in refused.iter().filter_map(|staged| BatchHeader::parse(&staged.bytes).ok()) {
            partition.producers.refuse(now_ms, &header);
        }
        let bytes: usize = refused.iter().map(|staged| staged.bytes.len()).sum();
        partition.staged_bytes -= bytes;
        let failed = Err(ErrorCode::KafkaStorageError);
        // Retries come in any order, so these are not sorted.
        let (kept, gone_too) = partition.waiters.drain(..).partition(|(last, _)| *last < from);
        partition.waiters = kept;
        let gone_too: VecDeque<(Offset, T)> = gone_too;
        let waiting: Vec<_> = gone_too.into_iter().map(|(_, token)| (token, failed)).collect();
        let directory = partition.directory.clone();
        state.staged_bytes -= bytes;
        state.staged_batches -= refused.len();
        state.ready.extend(refused.into_iter().map(|staged| (staged.token, failed)));
        state.ready.extend(waiting);
        gone.into_iter().map(|base| segment_path(&directory, base)).collect()
    }
}

impl<D: Disk, T> Partition<D, T> {
    fn provided(&mut self, base: Offset, file: Rc<D::File>, allocated: u64, loaded: Option<Vec<u8>>) {
        let created =
            self.writer(base).is_some_and(|writer| writer.file.is_none() && writer.submitted() == 0);
        self.directory_dirty |= created;
        let Some(writer) = self.writer_mut(base) else { return };
        writer.file = Some(file);
        writer.unnamed |= created;
        writer.allocated = writer.allocated.max(allocated);
        writer.step = (writer.step * 2).min(ALLOCATE_BYTES_MAX);
        if let Some(bytes) = loaded {
            writer.load(&bytes);
        }
    }
}
