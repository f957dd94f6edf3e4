//! Indexes of segments that are not in memory whole, and look-up by time.
//!
//! The index of an active segment lacks what was written before the last start; it is put before it when it is first needed,
//! from what a checkpoint kept of it (`.partialindex`) and a scan of the rest.
//!
//! An index is loaded from its files, checked, and continued by a scan from its last entry to the end of what
//! it should cover, which is short unless the files are old. A missing or implausible one is rebuilt by a scan of
//! the segment. The checks cannot see everything (Kafka's format has no checksum), so a corruption that was met
//! through an index from files makes it suspect first: it is rebuilt, and only if the second look says the same,
//! it is the segment that is corrupt. However many ask, one of them at a time loads or scans a segment.
//!
//! A scan that meets corruption gives what it has: offsets below it stay readable.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use flumen_core::limits::DECOMPRESSED_BYTES_MAX;
use flumen_core::types::{LeaderEpoch, Offset, Timestamp};
use flumen_wire::batch::{BatchHeader, Batches};
use flumen_wire::compression::Compression;

use super::chunk::{Chunk, Expect, Step};
use super::reader::{SegmentReader, Start};
use super::{Corruption, OffsetEntry, PARTIAL_INDEX, SegmentError, SegmentIndex, SegmentView, TimeEntry};
use crate::disk::Disk;
use crate::signal::Progress;
use crate::slices::Slice;

/// Bytes of one read of a scan.
const SCAN_BYTES: usize = 1 << 20;
/// Longest index file: a segment's positions are below 2 GiB, and the smallest batch with an entry takes more.
const INDEX_FILE_BYTES_MAX: u64 = 1 << 30;

/// Of one segment no more is kept in memory than leaves room for as many others.
const INDEXES_MIN: usize = 8;

/// An index in memory.
#[derive(Clone)]
pub(super) struct Loaded {
    index: Rc<SegmentIndex>,
    /// Made by a scan of the segment's own bytes, from position 0.
    scanned: bool,
}

/// A record found by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its offset.
    pub offset: Offset,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// Leader epoch of its batch.
    pub leader_epoch: LeaderEpoch,
}

impl<D: Disk> SegmentReader<D> {
    /// Greatest timestamp of the segment and the last offset of the batch that has it; `None` where no batch has a
    /// timestamp.
    pub async fn largest_timestamp(&self, view: &SegmentView) -> Result<Option<TimeEntry>, SegmentError> {
        let largest = self.with_index(view, SegmentIndex::largest_timestamp).await?;
        Ok(largest.0)
    }

    /// The first record at or after offset `from` whose timestamp is at least `timestamp`.
    pub async fn offset_for_timestamp(
        &self,
        view: &SegmentView,
        timestamp: Timestamp,
        from: Offset,
    ) -> Result<Option<Found>, SegmentError> {
        let look = |index: &SegmentIndex| (index.largest_timestamp(), index.lookup_time(timestamp.0));
        let ((largest, entry), whole) = self.with_index(view, look).await?;
        if whole && largest.is_none_or(|largest| largest.timestamp < timestamp.0) {
            return Ok(None);
        }
        let begin = entry.map_or(view.base_offset.0, |entry| entry.offset).max(from.0);
        let start = self.start_of(view, Offset(begin)).await?;
        let mut cursor = Cursor::new(self, view, start);
        while let Some((position, header, batch)) = cursor.next().await? {
            if header.max_timestamp >= timestamp.0 && header.last_offset() >= from.0 {
                let found = first_record(&self.disk, batch.as_slice(), timestamp, from).await;
                if let Some(found) = found.map_err(|_| unreadable(view, position, &header))? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// The first record that has the segment's greatest timestamp (KIP-734).
    pub async fn max_timestamp(&self, view: &SegmentView) -> Result<Option<Found>, SegmentError> {
        let end = view.end_offset.0;
        let look = |index: &SegmentIndex| (index.largest_timestamp(), index.last_time_below(end));
        let ((largest, below), _) = self.with_index(view, look).await?;
        let Some(largest) = largest else { return Ok(None) };
        // A batch that is on its way to the disk is in the live index already: then the greatest of the view is that of an
        // earlier entry, or of a batch since.
        let is_beyond = largest.offset >= end;
        let begin =
            if is_beyond { below.map_or(view.base_offset.0, |below| below.offset) } else { largest.offset };
        let start = self.start_of(view, Offset(begin)).await?;
        let mut cursor = Cursor::new(self, view, start);
        let mut best: Option<(u64, BatchHeader, Slice<D::Buffer>)> = None;
        while let Some((position, header, batch)) = cursor.next().await? {
            if header.last_offset() < begin || header.record_count == 0 {
                continue;
            }
            if best.as_ref().is_none_or(|(_, best, _)| best.max_timestamp < header.max_timestamp) {
                best = Some((position, header, batch));
            }
            if !is_beyond {
                break;
            }
        }
        let Some((position, header, batch)) = best else { return Ok(None) };
        let found =
            first_record(&self.disk, batch.as_slice(), Timestamp(header.max_timestamp), Offset(0)).await;
        found.map_err(|_| unreadable(view, position, &header))
    }

    /// Writes the index files of a segment that is closed now. Unsynced: who removes the journal that could rebuild
    /// them syncs first, and recovery removes the files of segments that it writes to.
    pub async fn write_index(&self, path: &str, index: &SegmentIndex) -> std::io::Result<()> {
        self.disk.write_file(&format!("{path}.index"), &index.offset_file(), false).await?;
        self.disk.write_file(&format!("{path}.timeindex"), &index.time_file(), false).await?;
        // What both hold was there in part. It may never have been.
        self.disk.remove_file(&format!("{path}.{PARTIAL_INDEX}")).await.ok();
        Ok(())
    }

    /// Keeps on disk what the index of an active segment knows of what lies below `position`, which must have come to
    /// stay. What it lacks since a restart is scanned, no more than `scan_bytes_max` of it in one call, and kept as far as
    /// that came. Where the file lacks less than `lacks_min` bytes it stays as it is. Returns how far it goes; `None` where
    /// nothing is to be gained now.
    pub(crate) async fn keep_index(
        &self,
        view: &SegmentView,
        position: u64,
        lacks_min: u64,
        scan_bytes_max: u64,
    ) -> Option<u64> {
        let live = view.live.as_ref()?;
        if self.indexing.borrow().contains(&view.path) {
            // Somebody completes it.
            return None;
        }
        let _turn = self.turn(&view.path).await;
        let covered_from = live.borrow().covered_from();
        let mut reached = position;
        let mut file = None;
        if covered_from > 0 {
            let kept = self.partial_index(view, covered_from).await;
            let kept =
                kept.unwrap_or_else(|| SegmentIndex::new(view.base_offset.0, view.index_interval_bytes));
            let before = kept.covered_to();
            if position.saturating_sub(before) < lacks_min {
                return Some(before);
            }
            let end = covered_from.min(before.saturating_add(scan_bytes_max));
            // An end in the midst of a batch looks like damage, and damage is for who reads it: what lies before counts.
            let (prefix, _) = self.scan(view, kept, end).await.ok()?;
            if prefix.covered_to() < covered_from {
                reached = prefix.covered_to();
                if reached.saturating_sub(before) * 2 < scan_bytes_max {
                    return None;
                }
                file = prefix.partial_file(reached);
            } else {
                live.borrow_mut().prepend(prefix);
                self.indexes.borrow_mut().remove(&view.path);
            }
        }
        let file = match file {
            Some(file) => file,
            None => live.borrow().partial_file(position)?,
        };
        // Whole or not at all: the one before is as good as it was.
        let (path, temporary) =
            (format!("{}.{PARTIAL_INDEX}", view.path), format!("{}.{PARTIAL_INDEX}.tmp", view.path));
        self.disk.write_file(&temporary, &file, false).await.ok()?;
        self.disk.rename(&temporary, &path).await.ok()?;
        Some(reached)
    }

    /// Where to begin to look for `offset`: the batch of the greatest index entry not above it.
    pub(super) async fn start_of(&self, view: &SegmentView, offset: Offset) -> Result<Start, SegmentError> {
        let live = view.live.as_ref().and_then(|live| live.borrow().lookup(offset.0));
        let entry = match live {
            Some(entry) => Some(entry),
            None => self.with_index(view, |index| index.lookup(offset.0)).await?.0,
        };
        Ok(match entry {
            Some(OffsetEntry { offset, position }) => Start { position, expect: Expect::Last(offset) },
            None => Start { position: 0, expect: Expect::base(view, view.base_offset.0) },
        })
    }

    /// Asks the index of the segment; also says whether it covers it whole (it does not where a scan met
    /// corruption).
    async fn with_index<R>(
        &self,
        view: &SegmentView,
        ask: impl Fn(&SegmentIndex) -> R,
    ) -> Result<(R, bool), SegmentError> {
        let Some(live) = &view.live else {
            let kept = self.indexes.borrow_mut().get(&view.path);
            let loaded = match kept {
                Some(loaded) => loaded,
                None => {
                    let _turn = self.turn(&view.path).await;
                    self.index(view, view.len).await?
                }
            };
            return Ok((ask(&loaded.index), loaded.index.covered_to() >= view.len));
        };
        let is_whole = || live.borrow().covered_from() == 0;
        if is_whole() {
            return Ok((ask(&live.borrow()), true));
        }
        let _turn = self.turn(&view.path).await;
        if is_whole() {
            return Ok((ask(&live.borrow()), true));
        }
        // The part before recovery began: once it is there, the live index is whole.
        let covered_from = live.borrow().covered_from();
        let prefix = self.index(view, covered_from).await?;
        let mut index = live.borrow_mut();
        if index.covered_from() == prefix.index.covered_to() {
            index.prepend((*prefix.index).clone());
            self.indexes.borrow_mut().remove(&view.path);
            return Ok((ask(&index), true));
        }
        Ok((ask(&prefix.index), false))
    }

    /// Waits until nobody else loads or scans this segment's index.
    async fn turn(&self, path: &Rc<str>) -> Turn<'_> {
        loop {
            let seen = self.indexed.count();
            if self.indexing.borrow_mut().insert(path.clone()) {
                return Turn { indexing: &self.indexing, indexed: &self.indexed, path: path.clone() };
            }
            self.indexed.after(seen).await;
        }
    }

    /// The index of `[0, end)` of a segment, from memory, from its files, or by a scan. In a turn.
    async fn index(&self, view: &SegmentView, end: u64) -> Result<Loaded, SegmentError> {
        if let Some(loaded) = self.indexes.borrow_mut().get(&view.path) {
            return Ok(loaded);
        }
        if let Some(index) = self.index_from_files(view, end).await {
            let (index, error) = self.scan(view, index, end).await?;
            if error.is_none() && fits(view, &index) {
                return Ok(self.keep(view, index, false));
            }
        } else if let Some(index) = self.partial_index(view, end).await {
            let (index, error) = self.scan(view, index, end).await?;
            if error.is_none() && fits(view, &index) {
                return Ok(self.keep_made(view, index, true, false).await);
            }
        }
        self.rebuild(view, end).await
    }

    /// What a checkpoint kept of the index. Where there are gaps compaction may have put another segment in its place.
    async fn partial_index(&self, view: &SegmentView, end: u64) -> Option<SegmentIndex> {
        if view.live.is_none() && !view.contiguous {
            return None;
        }
        let path = format!("{}.{PARTIAL_INDEX}", view.path);
        let file = self.disk.read_file(&path, INDEX_FILE_BYTES_MAX).await.ok()?;
        let (base, end_offset) = (view.base_offset.0, view.end_offset.0);
        let mut index =
            SegmentIndex::parse_partial(base, view.index_interval_bytes, end_offset, view.len, &file)?;
        index.limit(end);
        Some(index)
    }

    async fn index_from_files(&self, view: &SegmentView, end: u64) -> Option<SegmentIndex> {
        let offsets =
            self.disk.read_file(&format!("{}.index", view.path), INDEX_FILE_BYTES_MAX).await.ok()?;
        let times =
            self.disk.read_file(&format!("{}.timeindex", view.path), INDEX_FILE_BYTES_MAX).await.ok()?;
        let (base, end_offset) = (view.base_offset.0, view.end_offset.0);
        let index =
            SegmentIndex::parse(base, view.index_interval_bytes, end_offset, view.len, &offsets, &times);
        let mut index = index.ok()?;
        index.limit(end);
        Some(index)
    }

    async fn rebuild(&self, view: &SegmentView, end: u64) -> Result<Loaded, SegmentError> {
        self.count(|metrics| metrics.indexes_rebuilt += 1);
        let index = SegmentIndex::new(view.base_offset.0, view.index_interval_bytes);
        let (index, error) = self.scan(view, index, end).await?;
        Ok(self.keep_made(view, index, error.is_none(), true).await)
    }

    /// Keeps an index that a scan has made or completed, on disk, too, where it is `whole` and of a closed segment.
    async fn keep_made(&self, view: &SegmentView, index: SegmentIndex, whole: bool, scanned: bool) -> Loaded {
        // The files of a compacted log are written by compaction alone: a scan that ends late would leave there what it saw
        // of the segment before.
        if whole && view.live.is_none() && view.contiguous && self.is_current(view) {
            let mut closed = index.clone();
            closed.close();
            // Without the files the next look-up scans again: that is all that a failure costs.
            let _ = self.write_index(&view.path, &closed).await;
        }
        self.keep(view, index, scanned)
    }

    fn keep(&self, view: &SegmentView, mut index: SegmentIndex, scanned: bool) -> Loaded {
        index.fit(self.settings.index_bytes_max / INDEXES_MIN);
        let loaded = Loaded { index: Rc::new(index), scanned };
        if self.is_current(view) {
            self.indexes.borrow_mut().insert(view.path.clone(), loaded.clone(), loaded.index.weight());
        }
        loaded
    }

    /// Continues `index` to `end`. Corruption ends the scan and is returned beside what was indexed before it;
    /// a failing disk is an error.
    async fn scan(
        &self,
        view: &SegmentView,
        mut index: SegmentIndex,
        end: u64,
    ) -> Result<(SegmentIndex, Option<SegmentError>), SegmentError> {
        let position = index.covered_to();
        let expect = match index.next_last_offset() {
            Some(last) => Expect::Last(last),
            None => Expect::base(view, view.base_offset.0),
        };
        let bounded = SegmentView { len: end, ..view.clone() };
        let mut cursor = Cursor::new(self, &bounded, Start { position, expect });
        loop {
            match cursor.next().await {
                Ok(Some((position, header, _))) => {
                    index.append(position, header.size() as u64, header.last_offset(), timestamp_of(&header));
                }
                Ok(None) => return Ok((index, None)),
                Err(error @ SegmentError::Io { .. }) => return Err(error),
                Err(error) => return Ok((index, Some(error))),
            }
        }
    }

    /// After a corruption: if the index in use came from files, rebuilds it and says that a second look is worth
    /// while.
    pub(super) async fn distrust_index(&self, view: &SegmentView) -> bool {
        let kept = || self.indexes.borrow_mut().get(&view.path);
        if kept().is_none_or(|loaded| loaded.scanned) || view.live.is_some() {
            return false;
        }
        let _turn = self.turn(&view.path).await;
        if kept().is_some_and(|loaded| loaded.scanned) {
            // Somebody else met it, too.
            return true;
        }
        self.indexes.borrow_mut().remove(&view.path);
        self.rebuild(view, view.len).await.is_ok()
    }
}

/// The records of a batch cannot be read.
pub(crate) struct Unreadable;

/// The first record of a verified batch whose timestamp is at least `timestamp` and that lies at `from` or after it. A
/// compressed batch is opened on a thread apart: few bytes may become many. One that cannot be opened came so from its
/// producer, and hides nothing else: its header answers for its records.
pub(crate) async fn first_record<D: Disk>(
    disk: &D,
    batch: &[u8],
    timestamp: Timestamp,
    from: Offset,
) -> Result<Option<Found>, Unreadable> {
    let find = move |batch: &[u8]| {
        let raw = Batches::new(batch).next().and_then(Result::ok).ok_or(Unreadable)?;
        let records = raw.records(DECOMPRESSED_BYTES_MAX).map_err(|_| Unreadable)?;
        for record in &records {
            let record = record.map_err(|_| Unreadable)?;
            if record.timestamp >= timestamp.0 && record.offset >= from.0 {
                return Ok(Some(Found {
                    offset: Offset(record.offset),
                    timestamp: Timestamp(record.timestamp),
                    leader_epoch: LeaderEpoch(raw.header.partition_leader_epoch),
                }));
            }
        }
        Ok(None)
    };
    let plain = BatchHeader::parse(batch).is_ok_and(|header| header.compression() == Ok(Compression::None));
    if plain {
        return find(batch);
    }
    let header = BatchHeader::parse(batch).map_err(|_| Unreadable)?;
    let batch = batch.to_vec();
    let found = disk.offload(move || find(&batch)).await;
    Ok(found.unwrap_or_else(|Unreadable| {
        Some(Found {
            offset: Offset(header.base_offset.max(from.0)),
            timestamp: Timestamp(header.max_timestamp),
            leader_epoch: LeaderEpoch(header.partition_leader_epoch),
        })
    }))
}

fn unreadable(view: &SegmentView, position: u64, header: &BatchHeader) -> SegmentError {
    view.corrupt(position, Corruption::Records { base_offset: header.base_offset })
}

/// Whether an index of a closed segment knows the timestamp that the log knows. A time index that was torn, or not written to
/// its end, looks like any other.
fn fits(view: &SegmentView, index: &SegmentIndex) -> bool {
    let largest = index.largest_timestamp().map_or(-1, |largest| largest.timestamp);
    view.live.is_some() || largest >= view.max_timestamp
}

/// Somebody loads or scans a segment's index.
struct Turn<'a> {
    indexing: &'a RefCell<HashSet<Rc<str>>>,
    indexed: &'a Progress,
    path: Rc<str>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.indexing.borrow_mut().remove(&self.path);
        self.indexed.notify();
    }
}

/// The greatest timestamp of a batch's records; -1 of a batch that compaction has emptied.
pub(crate) fn timestamp_of(header: &BatchHeader) -> i64 {
    if header.record_count > 0 { header.max_timestamp } else { -1 }
}

/// Walks a segment's batches in order, each verified except for its epoch, in reads of its own.
pub(crate) struct Cursor<'a, D: Disk> {
    reader: &'a SegmentReader<D>,
    view: &'a SegmentView,
    start: Start,
    chunk: Option<Chunk<D::Buffer>>,
    /// Bytes of one read.
    read_bytes: usize,
}

impl<'a, D: Disk> Cursor<'a, D> {
    fn new(reader: &'a SegmentReader<D>, view: &'a SegmentView, start: Start) -> Cursor<'a, D> {
        Cursor { reader, view, start, chunk: None, read_bytes: SCAN_BYTES }
    }

    /// All batches of a segment, in reads of so many bytes.
    pub(crate) fn whole(
        reader: &'a SegmentReader<D>,
        view: &'a SegmentView,
        read_bytes: usize,
    ) -> Cursor<'a, D> {
        let start = Start { position: 0, expect: Expect::base(view, view.base_offset.0) };
        Cursor { read_bytes, ..Cursor::new(reader, view, start) }
    }

    /// The next batch and its position; `None` at the end.
    pub(crate) async fn next(
        &mut self,
    ) -> Result<Option<(u64, BatchHeader, Slice<D::Buffer>)>, SegmentError> {
        let Start { position, expect } = self.start;
        if position >= self.view.len {
            return Ok(None);
        }
        let mut bytes = self.read_bytes;
        loop {
            if let Some(chunk) = &self.chunk {
                match chunk.step(self.view, position, expect, self.reader.settings.batch_bytes_max as u64)? {
                    Step::End => return Ok(None),
                    Step::More(more) => bytes = bytes.max(more as usize),
                    Step::Batch(header) => {
                        let slice = chunk.verified(self.view, position, &header, &|_, _| true)?;
                        self.start.position += header.size() as u64;
                        self.start.expect = Expect::base(self.view, header.next_offset());
                        return Ok(Some((position, header, slice)));
                    }
                }
            }
            self.chunk = Some(self.reader.load(self.view, position, bytes).await?);
        }
    }
}
