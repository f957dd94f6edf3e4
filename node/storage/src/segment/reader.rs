//! `SegmentReader`: what lies on disk, by offset. One per shard.
//!
//! ```text
//!   read(view, offset) ──▶ a stream that stands at this offset? ──no──▶ index look-up
//!                                   │yes: position known, window doubles      │ position at or before it
//!                                   ▼                                          ▼
//!                          chunk in memory that holds the position? ──no──▶ one aligned read of a window
//!                                   │                                          │
//!                                   └──────────▶ walk, verify, slices ◀────────┘
//! ```
//!
//! A *stream* is a reader that goes on where it stopped; nobody registers, it is recognised by its offset. Its
//! window grows from 64 KiB to 1 MiB and what a response did not take stays in memory for the next one.
//!
//! Bounded: open files, bytes of loaded indexes, streams, bytes of their chunks. None of it is the batch cache.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::ops::Range;
use std::rc::Rc;

use flumen_core::types::Offset;

use super::chunk::{Chunk, Expect, Step};
use super::lookup::Loaded;
use super::lru::Lru;
use super::{Corruption, EpochFits, SegmentError, SegmentView};
use crate::disk::{BLOCK, Disk, File, OpenMode};
use crate::signal::Progress;
use crate::slices::Slices;

/// Bounds of one shard's reader.
#[derive(Clone, Debug)]
pub struct ReaderSettings {
    /// Segment files kept open.
    pub files_max: usize,
    /// Bytes of indexes of closed segments kept in memory.
    pub index_bytes_max: usize,
    /// Readers whose place is remembered.
    pub streams_max: usize,
    /// Bytes read ahead and kept for all of them.
    pub read_ahead_bytes_max: usize,
    /// First read of a stream, in bytes.
    pub window_min: usize,
    /// Largest read of a stream, unless one batch needs more.
    pub window_max: usize,
    /// Largest batch: a corrupt length must not make us allocate what it claims.
    pub batch_bytes_max: usize,
}

impl Default for ReaderSettings {
    fn default() -> ReaderSettings {
        ReaderSettings {
            files_max: 256,
            index_bytes_max: 16 << 20,
            streams_max: 256,
            read_ahead_bytes_max: 16 << 20,
            window_min: 64 << 10,
            window_max: 1 << 20,
            batch_bytes_max: 96 << 20,
        }
    }
}

/// What the reader has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReaderMetrics {
    /// Reads of the disk.
    pub disk_reads: u64,
    /// Bytes of these.
    pub disk_bytes: u64,
    /// Reads answered from what was read ahead.
    pub read_ahead_hits: u64,
    /// Indexes rebuilt by a scan.
    pub indexes_rebuilt: u64,
}

/// A reader that goes on where it stopped.
struct Stream<B> {
    path: Rc<str>,
    /// Next batch: its base offset (or a lower bound) and its position.
    offset: i64,
    position: u64,
    window: usize,
    /// What of the last read is left.
    chunk: Option<Chunk<B>>,
    used: u64,
}

/// Reads segments of one shard's partitions.
pub struct SegmentReader<D: Disk> {
    pub(super) disk: D,
    pub(super) settings: ReaderSettings,
    files: RefCell<Lru<Rc<D::File>>>,
    pub(super) indexes: RefCell<Lru<Loaded>>,
    /// Segments whose index is being loaded or scanned; and that one of them is done.
    pub(super) indexing: RefCell<HashSet<Rc<str>>>,
    pub(super) indexed: Progress,
    streams: RefCell<Vec<Stream<D::Buffer>>>,
    clock: Cell<u64>,
    /// How often something was forgotten.
    era: Cell<u64>,
    pub(super) metrics: Cell<ReaderMetrics>,
}

/// Where a walk begins.
#[derive(Clone, Copy)]
pub(super) struct Start {
    pub(super) position: u64,
    pub(super) expect: Expect,
}

impl<D: Disk> SegmentReader<D> {
    /// A reader with empty caches.
    pub fn new(disk: D, settings: ReaderSettings) -> SegmentReader<D> {
        SegmentReader {
            files: RefCell::new(Lru::new(settings.files_max)),
            indexes: RefCell::new(Lru::new(settings.index_bytes_max)),
            indexing: RefCell::default(),
            indexed: Progress::default(),
            streams: RefCell::default(),
            clock: Cell::new(0),
            era: Cell::new(0),
            metrics: Cell::default(),
            disk,
            settings,
        }
    }

    /// What it has done so far.
    pub fn metrics(&self) -> ReaderMetrics {
        self.metrics.get()
    }

    /// Bytes of memory that its caches hold.
    pub fn cached_bytes(&self) -> usize {
        let chunks = |streams: &Vec<Stream<D::Buffer>>| {
            streams.iter().filter_map(|stream| stream.chunk.as_ref()).map(Chunk::weight).sum::<usize>()
        };
        self.indexes.borrow().weight() + chunks(&self.streams.borrow())
    }

    /// Rises whenever something is forgotten. What a read finds that began before is not kept: its path may be
    /// another file's by then.
    pub fn era(&self) -> u64 {
        self.era.get()
    }

    pub(super) fn is_current(&self, view: &SegmentView) -> bool {
        view.era == self.era.get()
    }

    /// Forgets all segments whose path begins with `prefix`: they were removed, renamed or cut. Also closes
    /// their files, so that the space comes back.
    pub fn forget(&self, prefix: &str) {
        self.era.set(self.era.get() + 1);
        self.files.borrow_mut().remove_prefix(prefix);
        self.indexes.borrow_mut().remove_prefix(prefix);
        self.streams.borrow_mut().retain(|stream| !stream.path.starts_with(prefix));
    }

    /// Whole batches from the one that holds `offset`, or from the first after it where a compacted log has a gap,
    /// up to `bytes_max`; with `at_least_one` the first batch comes whatever its size (KIP-74). Empty where the
    /// segment holds no such batch, or the first is too large.
    ///
    /// Every batch is verified: CRC, offsets, sizes, and by `fits` the epoch. Where only a later one is bad, what
    /// comes before it is returned, and the error goes to the read that begins with it.
    pub async fn read(
        &self,
        view: &SegmentView,
        offset: Offset,
        bytes_max: usize,
        at_least_one: bool,
        fits: EpochFits<'_>,
    ) -> Result<Slices<D::Buffer>, SegmentError> {
        let mut window = self.settings.window_min;
        let mut held = None;
        let start = match self.resume(view, offset) {
            Some(resumed) => {
                window = resumed.window;
                held = resumed.chunk;
                resumed.start
            }
            None => self.start_of(view, offset).await?,
        };
        if start.position >= view.len {
            return Ok(Slices::default());
        }
        let held = held.or_else(|| self.chunk_at(&view.path, start.position));
        let want = Want { offset: offset.0, bytes_max, at_least_one };
        match self.read_from(view, start, window, held, &want, fits).await {
            Err(SegmentError::Corrupt { .. }) if self.distrust_index(view).await => {
                let start = self.start_of(view, offset).await?;
                self.read_from(view, start, window, None, &want, fits).await
            }
            result => result,
        }
    }

    async fn read_from(
        &self,
        view: &SegmentView,
        start: Start,
        window: usize,
        held: Option<Chunk<D::Buffer>>,
        want: &Want,
        fits: EpochFits<'_>,
    ) -> Result<Slices<D::Buffer>, SegmentError> {
        let mut start = start;
        let mut chunk = match held {
            Some(chunk) => {
                self.count(|metrics| metrics.read_ahead_hits += 1);
                chunk
            }
            None => self.load(view, start.position, window).await?,
        };
        loop {
            let mut taken = 0..0;
            match self.walk(view, &chunk, &mut start, want, fits, &mut taken)? {
                Walked::Done { left } => {
                    let mut slices = Slices::default();
                    slices.push(chunk.slice(taken.start.max(chunk.start), taken.end.max(chunk.start)));
                    self.remember(view, start, window, left.then_some(chunk));
                    return Ok(slices);
                }
                Walked::More(bytes) => {
                    chunk = self.load(view, start.position, window.max(bytes as usize)).await?
                }
            }
        }
    }

    /// Takes batches from the chunk, positions `taken`. `start` ends at the first batch not taken.
    fn walk(
        &self,
        view: &SegmentView,
        chunk: &Chunk<D::Buffer>,
        start: &mut Start,
        want: &Want,
        fits: EpochFits<'_>,
        taken: &mut Range<u64>,
    ) -> Result<Walked, SegmentError> {
        loop {
            let step = chunk.step(view, start.position, start.expect, self.settings.batch_bytes_max as u64);
            let header = match step {
                Ok(Step::Batch(header)) => header,
                Ok(Step::More(bytes)) if taken.is_empty() => return Ok(Walked::More(bytes)),
                Ok(Step::More(_) | Step::End) => return Ok(Walked::Done { left: false }),
                Err(error) if taken.is_empty() => return Err(error),
                Err(_) => return Ok(Walked::Done { left: true }),
            };
            let size = header.size();
            if header.last_offset() >= want.offset {
                let bytes = (taken.end - taken.start) as usize + size;
                if bytes > want.bytes_max && !(taken.is_empty() && want.at_least_one) {
                    return Ok(Walked::Done { left: true });
                }
                match chunk.verified(view, start.position, &header, fits) {
                    Ok(_) if taken.is_empty() => *taken = start.position..start.position + size as u64,
                    Ok(_) => taken.end += size as u64,
                    Err(error) if taken.is_empty() => return Err(error),
                    Err(_) => return Ok(Walked::Done { left: true }),
                }
            }
            start.position += size as u64;
            start.expect = Expect::base(view, header.next_offset());
        }
    }

    /// One aligned read that covers `[position, position + bytes)`, as far as the segment goes.
    pub(super) async fn load(
        &self,
        view: &SegmentView,
        position: u64,
        bytes: usize,
    ) -> Result<Chunk<D::Buffer>, SegmentError> {
        let block = BLOCK as u64;
        let start = position - position % block;
        let end = (position + bytes as u64).min(view.len);
        let len = (end - start).next_multiple_of(block) as usize;
        let file = self.file(view).await?;
        let (buffer, content) = file.read_at(start, len).await.map_err(|error| view.io(start, error))?;
        self.count(|metrics| {
            metrics.disk_reads += 1;
            metrics.disk_bytes += content as u64;
        });
        let have = (start + content as u64).min(view.len);
        if have < end {
            return Err(view.corrupt(position, Corruption::Short { len: start + content as u64 }));
        }
        Ok(Chunk { buffer: Rc::new(buffer), start, end: have })
    }

    async fn file(&self, view: &SegmentView) -> Result<Rc<D::File>, SegmentError> {
        if let Some(file) = self.files.borrow_mut().get(&view.path) {
            return Ok(file);
        }
        let opened = self.disk.open(&view.log_path(), OpenMode::default()).await;
        let file = Rc::new(opened.map_err(|error| view.io(0, error))?);
        if self.is_current(view) {
            self.files.borrow_mut().insert(view.path.clone(), file.clone(), 1);
        }
        Ok(file)
    }

    /// The stream that stands at this offset; its window has grown.
    fn resume(&self, view: &SegmentView, offset: Offset) -> Option<Resumed<D::Buffer>> {
        let mut streams = self.streams.borrow_mut();
        let at = streams.iter().position(|stream| stream.offset == offset.0 && *stream.path == *view.path)?;
        let stream = streams.swap_remove(at);
        let chunk = stream.chunk.filter(|chunk| chunk.contains(stream.position));
        let window = match chunk {
            Some(_) => stream.window,
            None => (stream.window * 2).min(self.settings.window_max),
        };
        let start = Start { position: stream.position, expect: Expect::base(view, stream.offset) };
        Some(Resumed { start, window, chunk })
    }

    /// What another stream has in memory of this place.
    fn chunk_at(&self, path: &str, position: u64) -> Option<Chunk<D::Buffer>> {
        let streams = self.streams.borrow();
        let chunks =
            streams.iter().filter(|stream| *stream.path == *path).filter_map(|stream| stream.chunk.as_ref());
        chunks.into_iter().find(|chunk| chunk.contains(position)).cloned()
    }

    fn remember(&self, view: &SegmentView, next: Start, window: usize, chunk: Option<Chunk<D::Buffer>>) {
        if !self.is_current(view) {
            return;
        }
        let offset = match next.expect {
            Expect::Base(offset) | Expect::BaseFrom(offset) => offset,
            // Nothing was taken or passed over: there is no place to go on from.
            Expect::Last(_) => return,
        };
        let used = self.clock.get() + 1;
        self.clock.set(used);
        let mut streams = self.streams.borrow_mut();
        streams.retain(|stream| stream.offset != offset || *stream.path != *view.path);
        if streams.len() >= self.settings.streams_max {
            let oldest = streams.iter().enumerate().min_by_key(|(_, stream)| stream.used).map(|(at, _)| at);
            oldest.map(|at| streams.swap_remove(at));
        }
        let path = view.path.clone();
        streams.push(Stream { path, offset, position: next.position, window, chunk, used });
        let weight = |stream: &Stream<D::Buffer>| stream.chunk.as_ref().map_or(0, Chunk::weight);
        let mut total: usize = streams.iter().map(weight).sum();
        while total > self.settings.read_ahead_bytes_max {
            let holders = streams.iter_mut().filter(|stream| stream.chunk.is_some());
            let Some(oldest) = holders.min_by_key(|stream| stream.used) else { break };
            total -= weight(oldest);
            oldest.chunk = None;
            // It was read for nothing: the next time for less.
            oldest.window = self.settings.window_min;
        }
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut ReaderMetrics)) {
        let mut metrics = self.metrics.get();
        change(&mut metrics);
        self.metrics.set(metrics);
    }
}

/// A stream taken up again.
struct Resumed<B> {
    start: Start,
    window: usize,
    chunk: Option<Chunk<B>>,
}

/// What a caller asked for.
struct Want {
    offset: i64,
    bytes_max: usize,
    at_least_one: bool,
}

/// How a walk ended.
enum Walked {
    /// At the end, or with enough taken; `left` says whether the chunk has more to give.
    Done { left: bool },
    /// The first batch wanted needs so many bytes from its position.
    More(u64),
}
