//! A piece of a segment in memory, and the walk over its batches.
//!
//! Each step checks what the header claims against all that is known of its place: CRC-32C covers neither base
//! offset, nor length, nor leader epoch, so these are checked against the batch before, the index, and the
//! segment's bounds.

use std::ops::Range;
use std::rc::Rc;

use flumen_core::types::{LeaderEpoch, Offset};
use flumen_wire::batch::{BatchError, BatchHeader, HEADER_LEN, crc_matches};

use super::{Corruption, EpochFits, SegmentError, SegmentView};
use crate::disk::Buffer;
use crate::slices::Slice;

/// Bytes `[start, end)` of a segment.
pub(super) struct Chunk<B> {
    pub(super) buffer: Rc<B>,
    pub(super) start: u64,
    pub(super) end: u64,
}

impl<B> Clone for Chunk<B> {
    fn clone(&self) -> Chunk<B> {
        Chunk { buffer: self.buffer.clone(), start: self.start, end: self.end }
    }
}

/// What is known of the next batch's offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// Its base offset.
    Base(i64),
    /// Its base offset is at least this: a compacted log has gaps.
    BaseFrom(i64),
    /// Its last offset, by the offset index.
    Last(i64),
}

impl Expect {
    pub(super) fn base(view: &SegmentView, offset: i64) -> Expect {
        if view.contiguous { Expect::Base(offset) } else { Expect::BaseFrom(offset) }
    }
}

/// What there is at a position.
pub(super) enum Step {
    /// A whole batch; its CRC and epoch are not checked yet.
    Batch(BatchHeader),
    /// The batch is not whole in this chunk: as many bytes from its position are needed to get on.
    More(u64),
    /// The end of the segment's batches.
    End,
}

impl<B: Buffer> Chunk<B> {
    /// Bytes of memory.
    pub(super) fn weight(&self) -> usize {
        self.buffer.as_slice().len()
    }

    pub(super) fn contains(&self, position: u64) -> bool {
        (self.start..self.end).contains(&position)
    }

    fn range(&self, position: u64, end: u64) -> Range<usize> {
        (position - self.start) as usize..(end - self.start) as usize
    }

    pub(super) fn slice(&self, position: u64, end: u64) -> Slice<B> {
        Slice::new(self.buffer.clone(), self.range(position, end))
    }

    /// Looks at the batch that begins at `position`, which is not before the chunk's start.
    pub(super) fn step(
        &self,
        view: &SegmentView,
        position: u64,
        expect: Expect,
        batch_bytes_max: u64,
    ) -> Result<Step, SegmentError> {
        if position >= view.len {
            return Ok(Step::End);
        }
        let here = &self.buffer.as_slice()[self.range(position.min(self.end), self.end)];
        let corrupt = |reason| Err(view.corrupt(position, reason));
        let header = match BatchHeader::parse(here) {
            Ok(header) => header,
            Err(BatchError::Magic(magic)) => return corrupt(Corruption::Magic(magic)),
            Err(BatchError::Length(length)) => return corrupt(Corruption::Length(length)),
            Err(_) if view.len - position < HEADER_LEN as u64 => return corrupt(Corruption::Cut),
            Err(_) => return Ok(Step::More(HEADER_LEN as u64)),
        };
        let size = header.size() as u64;
        if size > batch_bytes_max || position + size > view.len {
            return corrupt(Corruption::Length(header.batch_length));
        }
        if header.last_offset_delta < 0 || header.last_offset() >= view.end_offset.0 {
            return corrupt(Corruption::LastOffset(header.last_offset()));
        }
        let found = header.base_offset;
        match expect {
            Expect::Base(expected) if found != expected => {
                return corrupt(Corruption::BaseOffset { expected, found });
            }
            Expect::BaseFrom(expected) if found < expected => {
                return corrupt(Corruption::BaseOffset { expected, found });
            }
            Expect::Last(expected) if header.last_offset() != expected => {
                return corrupt(Corruption::LastOffset(header.last_offset()));
            }
            _ if found < view.base_offset.0 => {
                return corrupt(Corruption::BaseOffset { expected: view.base_offset.0, found });
            }
            _ => {}
        }
        Ok(if position + size > self.end { Step::More(size) } else { Step::Batch(header) })
    }

    /// The whole batch at `position`, its CRC and epoch checked.
    pub(super) fn verified(
        &self,
        view: &SegmentView,
        position: u64,
        header: &BatchHeader,
        fits: EpochFits<'_>,
    ) -> Result<Slice<B>, SegmentError> {
        let slice = self.slice(position, position + header.size() as u64);
        if !crc_matches(slice.as_slice()) {
            return Err(view.corrupt(position, Corruption::Crc { stored: header.crc }));
        }
        if !fits(Offset(header.base_offset), LeaderEpoch(header.partition_leader_epoch)) {
            return Err(view.corrupt(position, Corruption::Epoch(header.partition_leader_epoch)));
        }
        Ok(slice)
    }
}
