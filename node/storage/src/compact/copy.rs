//! Judging one batch, and writing the new segment with its index.
//!
//! A new segment is written front to back in whole buffers, into a file under its `.cleaned` name that nothing else knows.
//! It is cut to its true length and synced before it gets another name.

use std::rc::Rc;

use flumen_core::limits::{ALLOCATE_BYTES_MAX, BATCH_BYTES_MAX, SEGMENT_BYTES_MAX};
use flumen_core::log::{Group, Pass, Segment};
use flumen_wire::batch::{BatchError, BatchHeader, RecordSet, Retained, emptied};
use flumen_wire::compression::Compression;

use super::Interrupted;
use super::pass::Work;
use super::swap::Cleaned;
use crate::api::Slot;
use crate::disk::{BLOCK, Buffer, Disk, File, OpenMode};
use crate::engine::Engine;
use crate::partition::segment_path;
use crate::segment::{SegmentIndex, timestamp_of};

/// Records of a batch, uncompressed, from this size on are compressed on another thread.
const OFFLOAD_BYTES_MIN: usize = 16 << 10;
/// Others from this one on.
const OFFLOAD_PLAIN_BYTES_MIN: usize = 256 << 10;
/// Bytes of one write.
const WRITE_BYTES: usize = 256 << 10;

/// What is left of a batch.
pub(super) enum Copied {
    /// All of it, as it is.
    Whole,
    /// Less, or with a delete horizon: these bytes.
    Rewritten(Vec<u8>),
    /// Nothing.
    Gone,
}

/// A new segment that is being written.
pub(super) struct Copy<D: Disk> {
    pub(super) path: String,
    file: Rc<D::File>,
    disk: D,
    buffer: D::Buffer,
    used: usize,
    written: u64,
    allocated: u64,
    /// Bytes of old segments that were not looked at yet.
    pub(super) source_left: u64,
    index: SegmentIndex,
    segment: Segment,
    end: flumen_core::types::Offset,
    /// It would not be what it replaces, byte for byte.
    pub(super) is_changed: bool,
}

/// Removes a file that nothing relies on.
pub(super) async fn remove_leftover<D: Disk>(disk: &D, path: &str) {
    // What stays is removed by the next attempt, or at the next start.
    disk.remove_file(path).await.ok();
}

impl<D: Disk> Copy<D> {
    /// Adds what is left of a batch. Returns the writes that are due.
    pub(super) fn take(
        &mut self,
        header: &BatchHeader,
        source: &[u8],
        copied: Copied,
    ) -> Result<Vec<(D::Buffer, u64)>, Interrupted> {
        self.is_changed |= !matches!(copied, Copied::Whole);
        match copied {
            Copied::Whole => Ok(self.push(header, source)),
            Copied::Gone => Ok(Vec::new()),
            Copied::Rewritten(bytes) => {
                // Compressed anew it may be larger. Left as it was, it would keep values that the next pass takes for the last
                // of their keys, once what deleted them has gone.
                let end = self.segment.size + bytes.len() as u64 + self.source_left;
                if bytes.len() > BATCH_BYTES_MAX || end > SEGMENT_BYTES_MAX {
                    let base = header.base_offset;
                    let reason =
                        format!("{}: what is left of the batch at offset {base} does not fit", self.path);
                    return Err(Interrupted::Damaged(reason));
                }
                let header = BatchHeader::parse(&bytes).expect("a batch that was just built");
                Ok(self.push(&header, &bytes))
            }
        }
    }

    fn push(&mut self, header: &BatchHeader, bytes: &[u8]) -> Vec<(D::Buffer, u64)> {
        let (size, timestamp) = (bytes.len() as u64, timestamp_of(header));
        self.index.append(self.segment.size, size, header.last_offset(), timestamp);
        if self.segment.first_timestamp < 0 {
            self.segment.first_timestamp = timestamp;
        }
        self.segment.max_timestamp = self.segment.max_timestamp.max(timestamp);
        self.segment.size += size;
        let mut rest = bytes;
        let mut full = Vec::new();
        while !rest.is_empty() {
            let len = rest.len().min(WRITE_BYTES - self.used);
            self.buffer.as_mut_slice()[self.used..self.used + len].copy_from_slice(&rest[..len]);
            self.used += len;
            rest = &rest[len..];
            if self.used == WRITE_BYTES {
                let buffer = std::mem::replace(&mut self.buffer, self.disk.allocate(WRITE_BYTES));
                full.push((buffer, self.written));
                self.written += WRITE_BYTES as u64;
                self.used = 0;
            }
        }
        full
    }

    /// The last write: what is left in the buffer, up to a whole block.
    fn last_write(&mut self) -> Option<(D::Buffer, u64)> {
        if self.used == 0 {
            return None;
        }
        let len = self.used.next_multiple_of(BLOCK);
        let mut buffer = std::mem::replace(&mut self.buffer, self.disk.allocate(BLOCK));
        buffer.as_mut_slice()[self.used..len].fill(0);
        buffer.truncate(len);
        Some((buffer, self.written))
    }
}

impl<D: Disk, T: 'static> Engine<D, T> {
    /// Begins the segment that a group becomes.
    pub(super) async fn begin_copy(&self, slot: Slot, group: &Group) -> Result<Copy<D>, Interrupted> {
        self.still_wanted(slot)?;
        let (path, interval, created_ms) = {
            let state = self.state.borrow();
            let partition = state.get(slot).ok_or(Interrupted::Over)?;
            let path = format!("{}.cleaned", segment_path(&partition.directory, group.first()));
            let segments = partition.log.segments().iter();
            let of_group = segments.filter(|segment| group.bases.contains(&segment.base_offset));
            let created_ms = of_group.map(|segment| segment.created_ms).max().unwrap_or_default();
            (path, partition.config.index_interval_bytes, created_ms)
        };
        remove_leftover(&self.disk, &path).await;
        let mode = OpenMode { create_new: true, write: true, synchronous: false };
        let file = self.disk.open(&path, mode).await;
        let file = Rc::new(file.map_err(|error| Interrupted::Failed(format!("{path}: {error}")))?);
        let mut copy = Copy {
            path,
            file,
            disk: self.disk.clone(),
            buffer: self.disk.allocate(WRITE_BYTES),
            used: 0,
            written: 0,
            allocated: 0,
            source_left: group.size,
            index: SegmentIndex::new(group.first().0, interval),
            segment: Segment::new(group.first(), created_ms),
            end: group.end,
            is_changed: group.bases.len() > 1,
        };
        self.allocate(&mut copy).await?;
        Ok(copy)
    }

    /// Makes the writes that are due, and takes space for the next.
    pub(super) async fn write_full(
        &self,
        work: &mut Work<D>,
        copy: &mut Copy<D>,
        full: Vec<(D::Buffer, u64)>,
    ) -> Result<(), Interrupted> {
        for (buffer, at) in full {
            let written = copy.file.write_at(Rc::new(buffer), at).await;
            written.map_err(|error| Interrupted::Failed(format!("{}: {error}", copy.path)))?;
            work.run.bytes_written += WRITE_BYTES as u64;
            self.moved(work, WRITE_BYTES).await?;
        }
        self.allocate(copy).await
    }

    /// Takes space before it is written to: appended bit by bit, a file is slow to write and scattered.
    async fn allocate(&self, copy: &mut Copy<D>) -> Result<(), Interrupted> {
        let needed = copy.written + WRITE_BYTES as u64;
        if needed <= copy.allocated {
            return Ok(());
        }
        let step = copy.allocated.clamp(WRITE_BYTES as u64, ALLOCATE_BYTES_MAX);
        let to = needed.max(copy.allocated + step).next_multiple_of(BLOCK as u64);
        let allocated = copy.file.preallocate(to).await;
        allocated.map_err(|error| Interrupted::Failed(format!("{}: {error}", copy.path)))?;
        copy.allocated = to;
        Ok(())
    }

    /// The new segment is whole: it is cut to its length and synced.
    pub(super) async fn finish_copy(
        &self,
        work: &mut Work<D>,
        mut copy: Copy<D>,
    ) -> Result<Cleaned, Interrupted> {
        let path = copy.path.clone();
        let failed = |error: std::io::Error| Interrupted::Failed(format!("{path}: {error}"));
        if let Some((buffer, at)) = copy.last_write() {
            work.run.bytes_written += buffer.as_slice().len() as u64;
            copy.file.write_at(Rc::new(buffer), at).await.map_err(failed)?;
        }
        copy.file.truncate(copy.segment.size).await.map_err(failed)?;
        copy.file.sync().await.map_err(failed)?;
        copy.index.close();
        Ok(Cleaned { path: copy.path, segment: copy.segment, end: copy.end, index: copy.index })
    }

    /// What is left of a batch of which records may go.
    pub(super) async fn judge(
        &self,
        work: &mut Work<D>,
        pass: &Pass,
        header: &BatchHeader,
        records: RecordSet<'_>,
        size: usize,
    ) -> Result<Copied, BatchError> {
        let mut keep = Vec::new();
        let (mut kept, mut tombstones) = (0, false);
        let forgets = self.forgets_horizons();
        for record in &records {
            let record = record?;
            work.pace.worked(record.size).await;
            let stays = pass.keeps(header, &record) && !(forgets && record.value.is_none());
            kept += usize::from(stays);
            tombstones |= stays && record.value.is_none() && record.offset < pass.map.end().0;
            keep.push(stays);
        }
        work.run.records_before += keep.len() as u64;
        work.run.records_after += kept as u64;
        if kept == 0 {
            return Ok(match (pass.keeps_header(header), keep.is_empty()) {
                (false, _) => Copied::Gone,
                (true, true) => Copied::Whole,
                (true, false) => Copied::Rewritten(emptied(header)),
            });
        }
        let horizon = if tombstones { pass.delete_horizon(header) } else { None };
        if kept == keep.len() && horizon.is_none() {
            return Ok(Copied::Whole);
        }
        let plain = header.compression() == Ok(Compression::None);
        let offload_min = if plain { OFFLOAD_PLAIN_BYTES_MIN } else { OFFLOAD_BYTES_MIN };
        let bytes = if records.len_bytes().max(size) >= offload_min {
            let records = records.into_owned();
            self.disk.offload(move || Retained::new(&records, &keep, horizon).build()).await
        } else {
            Retained::new(&records, &keep, horizon).build()
        };
        Ok(Copied::Rewritten(bytes))
    }
}
