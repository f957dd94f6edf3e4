//! The batch cache: what is in memory of each partition's tail, as slices of journal-group and bulk buffers.
//!
//! ```text
//!   partition:  [chunk][chunk][chunk]          by offset; a chunk is one entry of a group, or one bulk write
//!                  |      \      |
//!   buffers:    [group L ][ bulk ][group L+1]  first in, first out; `held` counts chunks not in a segment yet
//! ```
//!
//! Owned by one shard. Invariants: a partition's chunks have no gap; chunks of one buffer lie at the front of
//! their partitions when the buffer is the oldest; a buffer that holds what no segment has is never dropped.

use std::collections::VecDeque;

use flumen_core::types::{Lsn, Offset};
use flumen_wire::batch::{BatchHeader, HEADER_LEN};

use crate::api::Slot;
use crate::disk::Buffer;
use crate::slices::{Slice, Slices};

/// The LSN of what no group holds yet.
pub(crate) const LSN_NONE: Lsn = Lsn(u64::MAX);

/// Batches of one partition that lie back to back in a segment, in memory.
pub(crate) struct Chunk<B> {
    pub(crate) base_offset: Offset,
    pub(crate) last_offset: Offset,
    pub(crate) segment_base: Offset,
    pub(crate) position: u64,
    /// The bytes; a bulk write's last bytes, which it could not write in a whole block, are in `tail`.
    pub(crate) body: Slice<B>,
    pub(crate) tail: Option<Slice<B>>,
    /// The group that makes it true.
    pub(crate) lsn: Lsn,
    /// The buffer that it is counted in.
    pub(crate) buffer: u64,
}

impl<B: Buffer> Chunk<B> {
    pub(crate) fn len(&self) -> usize {
        self.body.len() + self.tail.as_ref().map_or(0, Slice::len)
    }

    pub(crate) fn end_position(&self) -> u64 {
        self.position + self.len() as u64
    }

    /// The bytes in order.
    pub(crate) fn parts(&self) -> [&[u8]; 2] {
        [self.body.as_slice(), self.tail.as_ref().map_or(&[], |tail| tail.as_slice())]
    }

    /// The header of the batch at `at`, from the start of the chunk.
    pub(crate) fn header(&self, at: usize) -> BatchHeader {
        let body = self.body.as_slice();
        let parsed = if at + HEADER_LEN <= body.len() {
            BatchHeader::parse(&body[at..])
        } else {
            // It straddles the two parts.
            let [body, tail] = self.parts();
            let mut header = [0u8; HEADER_LEN];
            let from_body = body.len().saturating_sub(at).min(HEADER_LEN);
            header[..from_body].copy_from_slice(&body[body.len() - from_body..]);
            let tail_at = at.saturating_sub(body.len());
            header[from_body..].copy_from_slice(&tail[tail_at..tail_at + HEADER_LEN - from_body]);
            BatchHeader::parse(&header)
        };
        parsed.expect("what is in the cache was checked when it was appended")
    }

    /// Headers of all batches, with where they begin.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (usize, BatchHeader)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            if at >= self.len() {
                return None;
            }
            let header = self.header(at);
            let here = at;
            at += header.size();
            Some((here, header))
        })
    }

    /// Adds the bytes `[from, to)` of the chunk to `slices`.
    pub(crate) fn push_range(&self, from: usize, to: usize, slices: &mut Slices<B>) {
        let body = self.body.len();
        if from < body {
            slices.push(self.body.slice(from..to.min(body)));
        }
        if to > body
            && let Some(tail) = &self.tail
        {
            slices.push(tail.slice(from.saturating_sub(body)..to - body));
        }
    }
}

/// What a read takes from a partition's chunks.
pub(crate) struct Want {
    pub(crate) offset: Offset,
    /// Exclusive.
    pub(crate) below: Offset,
    pub(crate) bytes_max: usize,
    pub(crate) at_least_one: bool,
}

/// Whole batches from the one that holds the offset; the chunks must hold it. Also whether it was `bytes_max` that ended
/// them.
pub(crate) fn read<B: Buffer>(chunks: &VecDeque<Chunk<B>>, want: &Want) -> (Slices<B>, bool) {
    let mut slices = Slices::default();
    let first = chunks.partition_point(|chunk| chunk.last_offset < want.offset);
    for chunk in chunks.range(first..) {
        if chunk.base_offset >= want.below {
            break;
        }
        let whole = chunk.base_offset >= want.offset && chunk.last_offset < want.below;
        if whole && slices.len() + chunk.len() <= want.bytes_max {
            chunk.push_range(0, chunk.len(), &mut slices);
            continue;
        }
        match read_batches(chunk, want, &mut slices) {
            Stop::AtTheEnd => {}
            Stop::Below => break,
            Stop::Full => return (slices, true),
        }
    }
    (slices, false)
}

/// What ended a read of one chunk.
enum Stop {
    /// The chunk did: the next is to be looked at.
    AtTheEnd,
    /// `below` did.
    Below,
    /// `bytes_max` did.
    Full,
}

/// Takes batches of one chunk.
fn read_batches<B: Buffer>(chunk: &Chunk<B>, want: &Want, slices: &mut Slices<B>) -> Stop {
    let mut taken: Option<(usize, usize)> = None;
    let mut stop = Stop::AtTheEnd;
    for (at, header) in chunk.headers() {
        if header.last_offset() < want.offset.0 {
            continue;
        }
        if header.last_offset() >= want.below.0 {
            stop = Stop::Below;
            break;
        }
        let end = at + header.size();
        let (start, _) = taken.unwrap_or((at, at));
        let first = taken.is_none() && slices.is_empty();
        if slices.len() + (end - start) > want.bytes_max && !(first && want.at_least_one) {
            stop = Stop::Full;
            break;
        }
        taken = Some((start, end));
    }
    if let Some((start, end)) = taken {
        chunk.push_range(start, end, slices);
    }
    stop
}

/// A buffer that chunks are slices of.
struct Held {
    bytes: usize,
    /// Chunks in it that are not in a segment yet.
    unfilled: u32,
    slots: Vec<Slot>,
}

/// All buffers, oldest first.
#[derive(Default)]
pub(crate) struct Buffers {
    list: VecDeque<Held>,
    first: u64,
    bytes: usize,
    pinned_bytes: usize,
}

impl Buffers {
    /// Counts a new buffer with chunks of `slots`, none of them in a segment yet. Returns its number.
    pub(crate) fn add(&mut self, bytes: usize, slots: Vec<Slot>) -> u64 {
        let number = self.first + self.list.len() as u64;
        self.bytes += bytes;
        if !slots.is_empty() {
            self.pinned_bytes += bytes;
        }
        self.list.push_back(Held { bytes, unfilled: slots.len() as u32, slots });
        number
    }

    /// One chunk of the buffer is in its segment, or gone.
    pub(crate) fn filled(&mut self, number: u64) {
        let index = number.checked_sub(self.first).expect("a buffer with unfilled chunks is never dropped");
        let held = &mut self.list[index as usize];
        held.unfilled -= 1;
        if held.unfilled == 0 {
            self.pinned_bytes -= held.bytes;
        }
    }

    /// Whether there is more than `bytes_max`.
    pub(crate) fn over(&self, bytes_max: usize) -> bool {
        self.bytes > bytes_max
    }

    /// Takes the oldest buffer off when all of it is in segments: its number and whose chunks it has.
    pub(crate) fn evict(&mut self) -> Option<(u64, Vec<Slot>)> {
        if self.list.front()?.unfilled > 0 {
            return None;
        }
        let held = self.list.pop_front()?;
        self.bytes -= held.bytes;
        self.first += 1;
        Some((self.first - 1, held.slots))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of a buffer that has not been dropped.
    pub(crate) fn size(&self, number: u64) -> usize {
        self.list[(number - self.first) as usize].bytes
    }

    /// Bytes of buffers that cannot be dropped.
    pub(crate) fn pinned_bytes(&self) -> usize {
        self.pinned_bytes
    }
}
