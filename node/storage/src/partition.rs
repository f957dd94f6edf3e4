//! One partition as its shard's engine holds it.
//!
//! ```text
//!  append ──▶ staged ──▶ chunk in a group in flight ──▶ durable ──▶ filled ──▶ covered by a checkpoint
//!               │ (no space yet: held, and taken back when the disk is full)
//!               └──▶ bulk write ──▶ synced ──▶ its EXTENT in a group ──▶ durable
//! ```
//!
//! Invariants, in offsets: `log_start <= high_watermark <= log.log_end()`; chunks end where `staged` begins; what is
//! `filled` is in segments to the last byte, and ends between two groups.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;
use flumen_core::config::LogConfig;
use flumen_core::epochs::EpochCache;
use flumen_core::limits::ALLOCATE_BYTES_MIN;
use flumen_core::log::{Log, Mark, Placement};
use flumen_core::producer::ProducerTable;
use flumen_core::types::{LeaderEpoch, Lsn, Offset, PartitionId};
use flumen_wire::batch::BatchHeader;

use crate::api::Slot;
use crate::cache::{Buffers, Chunk};
use crate::checkpoint::Record;
use crate::compact::Compaction;
use crate::disk::Disk;
use crate::segment::{SegmentIndex, SegmentView};
use crate::slices::Slice;
use crate::writer::Writer;

/// A batch that has its place and is in no buffer yet.
pub(crate) struct Staged<T> {
    pub(crate) placement: Placement,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) bytes: Bytes,
    /// The time to stamp it with, under LogAppendTime.
    pub(crate) append_time: Option<i64>,
    pub(crate) max_timestamp: i64,
    pub(crate) token: T,
}

/// What to journal of a partition besides batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// The log starts here.
    LogStart(Offset),
    /// The partition is gone.
    Drop,
}

/// The state to go back to when there is no space for what was staged since.
pub(crate) struct Held {
    pub(crate) mark: Mark,
    pub(crate) producers: ProducerTable,
    pub(crate) epochs: EpochCache,
}

/// A bulk write that has no EXTENT entry yet.
pub(crate) struct Bulk<B, T> {
    pub(crate) number: u64,
    pub(crate) base_offset: Offset,
    pub(crate) last_offset: Offset,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) segment_base: Offset,
    pub(crate) position: u64,
    pub(crate) length: u64,
    pub(crate) headers: Vec<u8>,
    pub(crate) tail: Option<Slice<B>>,
    pub(crate) tokens: Vec<T>,
    pub(crate) written: bool,
    pub(crate) synced: bool,
}

/// How far a partition's segments hold everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    /// Every entry up to this group is in the segments.
    pub(crate) lsn: Lsn,
    /// End of what they hold.
    pub(crate) end: Offset,
    pub(crate) segment_base: Offset,
    pub(crate) position: u64,
}

/// See the module.
pub(crate) struct Partition<D: Disk, T> {
    pub(crate) id: PartitionId,
    pub(crate) slot: Slot,
    pub(crate) directory: Rc<str>,
    pub(crate) config: Rc<LogConfig>,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) log: Log,
    pub(crate) producers: ProducerTable,
    pub(crate) epochs: EpochCache,
    /// Start that is durable and visible.
    pub(crate) log_start: Offset,
    pub(crate) high_watermark: Offset,
    /// End of what durable groups hold.
    pub(crate) durable_end: Offset,

    pub(crate) staged: VecDeque<Staged<T>>,
    pub(crate) staged_bytes: usize,
    pub(crate) notes: VecDeque<(Note, Option<T>)>,
    pub(crate) held: Option<Box<Held>>,
    /// It is on the list of partitions that the next cycle looks at.
    pub(crate) dirty: bool,
    /// Space is being allocated for it.
    pub(crate) allocating: bool,
    /// Answers to duplicates of what is not durable yet: last offset of the original.
    pub(crate) waiters: VecDeque<(Offset, T)>,

    pub(crate) chunks: VecDeque<Chunk<D::Buffer>>,
    /// Number of the first of `chunks`, counted from the beginning.
    pub(crate) chunks_first: u64,
    /// Number of the first that no write took.
    pub(crate) unwritten: u64,
    /// Number of the first that is not in `filled`.
    pub(crate) unfilled: u64,
    pub(crate) unfilled_bytes: usize,
    pub(crate) filled: Filled,
    /// How far a durable checkpoint says that the segments hold everything.
    pub(crate) checkpointed: Filled,
    /// A sync failed: of what was written since the last checkpoint nothing is known, so its journals stay.
    pub(crate) sync_failed: bool,
    /// It waits for a fill before a checkpoint.
    pub(crate) fill_wanted: bool,
    pub(crate) writers: VecDeque<Writer<D>>,
    pub(crate) bulk: VecDeque<Bulk<D::Buffer, T>>,
    pub(crate) bulk_next: u64,
    /// Indexes of the segments in `writers`, in the same order.
    pub(crate) indexes: VecDeque<Rc<RefCell<SegmentIndex>>>,
    /// What each of them may take of memory; shared by all partitions.
    pub(crate) index_room: Rc<Cell<usize>>,
    /// Segment and position up to which its index is kept on disk, as far as is known.
    pub(crate) index_kept: (Offset, u64),
    /// Segments were created since the directory was synced.
    pub(crate) directory_dirty: bool,
    pub(crate) offline: Option<Rc<str>>,
    /// LOG_START entries on their way.
    pub(crate) log_start_wanted: Offset,
    /// Number of the next chunk to be journalled again, while it is offline.
    pub(crate) relog: Option<u64>,
    /// What was covered when that began, until the last of them is durable: all or none of them count from their new
    /// place, since recovery goes by LSN and would find a later chunk's first copy before an earlier one's second.
    pub(crate) relogging: Option<Lsn>,
    /// What checkpoints say of it while it is offline since recovery.
    pub(crate) frozen: Option<Box<Record>>,
    /// So many files of it maintenance makes or removes, by their names.
    pub(crate) tended: usize,
    /// What compaction has done, and does now.
    pub(crate) compaction: Compaction,
    /// It is being deleted; its DROP entry is durable.
    pub(crate) deleting: bool,
    pub(crate) dropped: bool,
}

/// Path of a segment, without extension.
pub(crate) fn segment_path(directory: &str, base: Offset) -> String {
    format!("{directory}/{base:020}")
}

impl<D: Disk, T> Partition<D, T> {
    /// A partition whose log is on disk as `log` says, to the last byte.
    pub(crate) fn new(
        id: PartitionId,
        slot: Slot,
        directory: &str,
        config: LogConfig,
        leader_epoch: LeaderEpoch,
        state: (Log, ProducerTable, EpochCache),
        lsn: Lsn,
    ) -> Partition<D, T> {
        let (log, producers, epochs) = state;
        let active = *log.active();
        let end = log.log_end();
        let index = SegmentIndex::resume(active.base_offset.0, config.index_interval_bytes, active.size);
        Partition {
            id,
            slot,
            directory: directory.into(),
            config: Rc::new(config),
            leader_epoch,
            log_start: log.log_start(),
            log_start_wanted: log.log_start(),
            high_watermark: end,
            durable_end: end,
            producers,
            epochs,
            staged: VecDeque::new(),
            staged_bytes: 0,
            notes: VecDeque::new(),
            held: None,
            dirty: false,
            allocating: false,
            waiters: VecDeque::new(),
            chunks: VecDeque::new(),
            chunks_first: 0,
            unwritten: 0,
            unfilled: 0,
            unfilled_bytes: 0,
            filled: Filled { lsn, end, segment_base: active.base_offset, position: active.size },
            checkpointed: Filled { lsn, end, segment_base: active.base_offset, position: active.size },
            sync_failed: false,
            fill_wanted: false,
            writers: VecDeque::from([Writer::new(active.base_offset, active.size, ALLOCATE_BYTES_MIN)]),
            indexes: VecDeque::from([Rc::new(RefCell::new(index))]),
            index_room: Rc::new(Cell::new(usize::MAX)),
            bulk: VecDeque::new(),
            bulk_next: 0,
            index_kept: (active.base_offset, 0),
            directory_dirty: false,
            offline: None,
            relog: None,
            relogging: None,
            frozen: None,
            tended: 0,
            compaction: Compaction::default(),
            deleting: false,
            dropped: false,
            log,
        }
    }

    pub(crate) fn chunk(&self, number: u64) -> Option<&Chunk<D::Buffer>> {
        let index =
            number.checked_sub(self.chunks_first).expect("a chunk that is not filled is never evicted");
        self.chunks.get(index as usize)
    }

    /// What is in no segment yet, or not known to be.
    pub(crate) fn unfilled_chunks(&self) -> impl Iterator<Item = &Chunk<D::Buffer>> {
        self.chunks.range((self.unfilled - self.chunks_first) as usize..)
    }

    pub(crate) fn chunks_end(&self) -> u64 {
        self.chunks_first + self.chunks.len() as u64
    }

    pub(crate) fn writer_mut(&mut self, base: Offset) -> Option<&mut Writer<D>> {
        self.writers.iter_mut().find(|writer| writer.base == base)
    }

    pub(crate) fn writer(&self, base: Offset) -> Option<&Writer<D>> {
        self.writers.iter().find(|writer| writer.base == base)
    }

    /// Offset of the first staged batch that must wait for space.
    pub(crate) fn held_from(&self) -> Offset {
        self.held.as_ref().map_or(Offset(i64::MAX), |held| held.mark.log_end())
    }

    /// Batches that may go into this cycle.
    pub(crate) fn takeable(&self) -> usize {
        let from = self.held_from();
        if from == Offset(i64::MAX) {
            return self.staged.len();
        }
        self.staged.partition_point(|staged| staged.placement.base_offset < from)
    }

    /// Notes a batch that enters a buffer in the index of its segment.
    pub(crate) fn index_batch(&mut self, placement: &Placement, size: usize, max_timestamp: i64) {
        let at = self.writers.iter().rposition(|writer| writer.base == placement.segment_base);
        let at = at.expect("what is journalled has a segment");
        let mut index = self.indexes[at].borrow_mut();
        index.append(placement.position, size as u64, placement.last_offset.0, max_timestamp);
        index.fit(self.index_room.get());
    }

    /// Adds a chunk at the end.
    pub(crate) fn push_chunk(&mut self, chunk: Chunk<D::Buffer>) {
        let follows = self.chunks.back().is_none_or(|last| last.last_offset.0 + 1 == chunk.base_offset.0);
        assert!(follows, "chunks have no gap");
        self.unfilled_bytes += chunk.len();
        self.chunks.push_back(chunk);
    }

    /// Moves `filled` on over chunks that are on disk and durable, as far as that ends between two groups.
    pub(crate) fn advance_filled(&mut self, durable: Lsn, buffers: &mut Buffers) {
        let mut count = 0;
        let mut whole = 0;
        loop {
            let number = self.unfilled + count;
            let next = self.chunk(number);
            if count > 0
                && next.is_none_or(|next| Some(next.lsn) != self.chunk(number - 1).map(|last| last.lsn))
            {
                whole = count;
            }
            let Some(chunk) = next else { break };
            let on_disk = match self.writer(chunk.segment_base) {
                Some(writer) => writer.written() >= chunk.end_position(),
                None => true,
            };
            if number >= self.unwritten || !on_disk || chunk.lsn > durable {
                break;
            }
            count += 1;
        }
        for _ in 0..whole {
            let chunk = self.chunk(self.unfilled).expect("counted above");
            let (len, buffer) = (chunk.len(), chunk.buffer);
            self.filled = Filled {
                lsn: chunk.lsn,
                end: Offset(chunk.last_offset.0 + 1),
                segment_base: chunk.segment_base,
                position: chunk.end_position(),
            };
            self.unfilled_bytes -= len;
            self.unfilled += 1;
            buffers.filled(buffer);
        }
    }

    /// Drops chunks of the oldest buffer, which is being evicted.
    pub(crate) fn evict(&mut self, buffer: u64) {
        while self.chunks.front().is_some_and(|chunk| chunk.buffer == buffer) {
            assert!(self.chunks_first < self.unfilled, "only what is in a segment leaves the cache");
            self.chunks.pop_front();
            self.chunks_first += 1;
        }
    }

    /// LSN up to which nothing of this partition is needed from the journal.
    pub(crate) fn covered(&self, durable: Lsn) -> Lsn {
        if self.sync_failed {
            return self.checkpointed.lsn;
        }
        let first = || self.chunk(self.unfilled).map(|chunk| Lsn(chunk.lsn.0 - 1));
        self.relogging.or_else(first).map_or(durable, |first| first.min(durable))
    }

    /// What a reader may read of a segment: bytes on disk, of whole batches, below what the cache must answer.
    pub(crate) fn view(&self, at: usize, era: u64) -> SegmentView {
        let segment = self.log.segments()[at];
        let next = self.log.segments().get(at + 1);
        let live = self.writers.iter().position(|writer| writer.base == segment.base_offset);
        let filled_here = segment.base_offset == self.filled.segment_base;
        let (len, end_offset) = if filled_here {
            (self.filled.position, self.filled.end)
        } else if segment.base_offset < self.filled.segment_base {
            (segment.size, next.map_or(self.filled.end, |next| next.base_offset))
        } else {
            (0, segment.base_offset)
        };
        SegmentView {
            path: segment_path(&self.directory, segment.base_offset).into(),
            base_offset: segment.base_offset,
            end_offset,
            len,
            contiguous: !self.config.cleanup_policy.compact && self.compaction.cleaned.is_none(),
            live: live.map(|live| self.indexes[live].clone()),
            max_timestamp: segment.max_timestamp,
            index_interval_bytes: self.config.index_interval_bytes,
            era,
        }
    }

    /// Whether anything of it is not in a checkpoint-worthy state: chunks to fill, bulk under way.
    pub(crate) fn has_unfilled(&self) -> bool {
        self.unfilled < self.chunks_end()
    }
}

/// A batch's header as it will stand in the log.
pub(crate) fn placed_header(
    header: &BatchHeader,
    base: Offset,
    epoch: LeaderEpoch,
    stamp: Option<i64>,
) -> BatchHeader {
    let mut placed = *header;
    placed.base_offset = base.0;
    placed.partition_leader_epoch = epoch.0;
    if let Some(time) = stamp {
        placed.max_timestamp = time;
    }
    placed
}
