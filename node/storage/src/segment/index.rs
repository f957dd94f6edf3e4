//! Offset and time index of one segment, in memory and in Kafka's file formats.
//!
//! Both are sparse: an entry for the first batch after more than `index.interval.bytes` since the last. An
//! offset entry names the *last* offset of the batch at its position; a time entry the greatest timestamp of
//! the segment so far and the last offset of the batch that has it.
//!
//! Invariants: offsets and positions of `offsets` rise strictly, so do timestamps of `times`, whose offsets
//! rise. A time entry is never later than the batch of the offset entry that was made with it, and at each offset entry
//! the time entries know the greatest timestamp up to its batch: an index may be cut there, and continued.
//!
//! An index may cover only `[covered_from, covered_to)`: after a restart, that of an active segment begins
//! where recovery began, and the part before is loaded or scanned when it is first needed.
//!
//! Memory for indexes is bounded, segments are not: an index that has grown too large is made [sparser](SegmentIndex::thin),
//! and who looks something up reads further.

use std::fmt;

use flumen_core::journal::hash;

/// One entry of the offset index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetEntry {
    /// Last offset of a batch.
    pub offset: i64,
    /// Position of that batch.
    pub position: u64,
}

/// One entry of the time index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeEntry {
    /// No record up to `offset` has a greater timestamp.
    pub timestamp: i64,
    /// Last offset of the batch that has it.
    pub offset: i64,
}

/// Why an index file is of no use (it is rebuilt then).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexError {
    /// Its length is not a multiple of an entry.
    Length(usize),
    /// The entry of this number is outside the segment or not after the one before.
    Entry(usize),
}

impl fmt::Display for IndexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IndexError::Length(len) => write!(f, "{len} bytes are no whole number of entries"),
            IndexError::Entry(number) => write!(f, "entry {number} is out of order or outside the segment"),
        }
    }
}

const OFFSET_ENTRY: usize = 8;
const TIME_ENTRY: usize = 12;

/// Below so many offset entries an index is not made sparser.
const ENTRIES_MIN: usize = 64;

const PARTIAL_MAGIC: &[u8; 8] = b"FLUMPIDX";
const PARTIAL_VERSION: u64 = 1;
/// Magic, version, base offset, number of offset entries.
const PARTIAL_HEADER: usize = 32;

/// The indexes of one segment.
#[derive(Clone, Debug)]
pub struct SegmentIndex {
    base_offset: i64,
    interval_bytes: u32,
    covered_from: u64,
    covered_to: u64,
    bytes_since_entry: u64,
    /// Relative offset and position.
    offsets: Vec<(u32, u32)>,
    /// Timestamp and relative offset.
    times: Vec<(i64, u32)>,
    /// Greatest timestamp and the last offset of its batch, over all that is covered.
    largest: Option<TimeEntry>,
    /// Last offset of the batch at `covered_to`, where an index file has told it.
    next_last_offset: Option<i64>,
}

impl SegmentIndex {
    /// The index of an empty segment.
    pub fn new(base_offset: i64, interval_bytes: u32) -> SegmentIndex {
        SegmentIndex::resume(base_offset, interval_bytes, 0)
    }

    /// An index that knows nothing of what lies before `position`.
    pub fn resume(base_offset: i64, interval_bytes: u32, position: u64) -> SegmentIndex {
        SegmentIndex {
            base_offset,
            interval_bytes,
            covered_from: position,
            covered_to: position,
            bytes_since_entry: 0,
            offsets: Vec::new(),
            times: Vec::new(),
            largest: None,
            next_last_offset: None,
        }
    }

    /// Takes note of the next batch. Batches come in order, without a gap in position.
    pub fn append(&mut self, position: u64, size: u64, last_offset: i64, max_timestamp: i64) {
        assert_eq!(position, self.covered_to, "batches are indexed in the order of their positions");
        if self.largest.is_none_or(|largest| max_timestamp > largest.timestamp) && max_timestamp >= 0 {
            self.largest = Some(TimeEntry { timestamp: max_timestamp, offset: last_offset });
        }
        // Where the index begins in the middle, its first batch gets an entry: nothing else leads to it.
        let first = self.offsets.is_empty() && self.covered_from > 0;
        if self.bytes_since_entry > u64::from(self.interval_bytes) || first {
            if let (Some(relative), Ok(position)) = (self.relative(last_offset), u32::try_from(position)) {
                self.offsets.push((relative, position));
            }
            self.note_largest();
            self.bytes_since_entry = 0;
        }
        self.next_last_offset = None;
        self.bytes_since_entry += size;
        self.covered_to = position + size;
    }

    /// Makes it sparser until it takes `bytes` of memory at most, or is short.
    pub(crate) fn fit(&mut self, bytes: usize) {
        while self.weight() > bytes && self.offsets.len() > ENTRIES_MIN {
            self.thin();
        }
    }

    /// Forgets every second offset entry and the time entries that were made with them, and goes on at twice the distance.
    fn thin(&mut self) {
        let mut number = 0;
        // The first stays: where the index begins in the middle, nothing else leads to its batch.
        self.offsets.retain(|_| {
            number += 1;
            number % 2 == 1
        });
        self.offsets.shrink_to_fit();
        let mut kept = Vec::with_capacity(self.times.len().min(self.offsets.len()));
        let mut times = self.times.iter().peekable();
        for (entry, _) in &self.offsets {
            let mut known = None;
            while let Some(time) = times.next_if(|(_, relative)| relative <= entry) {
                known = Some(*time);
            }
            kept.extend(known);
        }
        self.times = kept;
        let last = self.offsets.last().map_or(self.covered_from, |(_, at)| u64::from(*at));
        self.bytes_since_entry = self.covered_to - last;
        self.interval_bytes = self.interval_bytes.saturating_mul(2);
    }

    /// Adds the greatest timestamp to the time index, as Kafka does when a segment becomes inactive.
    pub fn close(&mut self) {
        self.note_largest();
    }

    fn note_largest(&mut self) {
        if let Some(largest) = self.largest
            && self.times.last().is_none_or(|(timestamp, _)| largest.timestamp > *timestamp)
            && let Some(relative) = self.relative(largest.offset)
        {
            self.times.push((largest.timestamp, relative));
        }
    }

    fn relative(&self, offset: i64) -> Option<u32> {
        // Kafka reads it as an i32.
        u32::try_from(offset.checked_sub(self.base_offset)?)
            .ok()
            .filter(|relative| *relative <= i32::MAX as u32)
    }

    /// Forgets everything at and past `position`, which is where a batch begins, or the end. `false` where
    /// that cannot be done exactly (the greatest timestamp may be gone) and the index must be rebuilt.
    #[must_use]
    pub fn truncate(&mut self, position: u64, end_offset: i64) -> bool {
        if position >= self.covered_to {
            return position == self.covered_to;
        }
        if position < self.covered_from {
            return false;
        }
        let keep = self.offsets.partition_point(|(_, at)| u64::from(*at) < position);
        self.offsets.truncate(keep);
        let base = self.base_offset;
        self.times.retain(|(_, relative)| base + i64::from(*relative) < end_offset);
        self.covered_to = position;
        let last = self.offsets.last().map_or(self.covered_from, |(_, at)| u64::from(*at));
        self.bytes_since_entry = position - last;
        self.largest.is_none_or(|largest| largest.offset < end_offset)
    }

    /// First position that it knows.
    pub fn covered_from(&self) -> u64 {
        self.covered_from
    }

    /// End of what it knows.
    pub fn covered_to(&self) -> u64 {
        self.covered_to
    }

    /// The entry with the greatest offset not above `offset`.
    pub fn lookup(&self, offset: i64) -> Option<OffsetEntry> {
        let after =
            self.offsets.partition_point(|(relative, _)| self.base_offset + i64::from(*relative) <= offset);
        let (relative, position) = *self.offsets.get(after.checked_sub(1)?)?;
        Some(OffsetEntry { offset: self.base_offset + i64::from(relative), position: u64::from(position) })
    }

    /// The entry with the greatest timestamp not above `timestamp`.
    pub fn lookup_time(&self, timestamp: i64) -> Option<TimeEntry> {
        self.last_time_while(|entry| entry.timestamp <= timestamp)
    }

    /// Greatest timestamp of what is covered.
    pub fn largest_timestamp(&self) -> Option<TimeEntry> {
        self.largest
    }

    /// The last time entry of what lies below `offset`: nothing before it has a greater timestamp.
    pub fn last_time_below(&self, offset: i64) -> Option<TimeEntry> {
        self.last_time_while(|entry| entry.offset < offset)
    }

    /// The last of the time entries that are before a place in their order.
    fn last_time_while(&self, is_before: impl Fn(TimeEntry) -> bool) -> Option<TimeEntry> {
        let entry = |&(timestamp, relative): &(i64, u32)| TimeEntry {
            timestamp,
            offset: self.base_offset + i64::from(relative),
        };
        let after = self.times.partition_point(|time| is_before(entry(time)));
        self.times.get(after.checked_sub(1)?).map(entry)
    }

    /// The last offset entry.
    pub fn last_entry(&self) -> Option<OffsetEntry> {
        self.lookup(i64::MAX)
    }

    /// Bytes of memory.
    pub fn weight(&self) -> usize {
        size_of::<SegmentIndex>() + self.offsets.capacity() * OFFSET_ENTRY + self.times.capacity() * 16
    }

    /// Content of the `.index` file.
    pub fn offset_file(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.offsets.len() * OFFSET_ENTRY);
        write_offsets(&self.offsets, &mut out);
        out
    }

    /// Content of the `.timeindex` file.
    pub fn time_file(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.times.len() * TIME_ENTRY);
        write_times(&self.times, &mut out);
        out
    }

    /// The index that the two files hold, as far as it leads: `covered_to` is the position of its last
    /// entry, and whoever needs more appends the batches from there on. Checks are Kafka's and stricter: whole
    /// entries, rising, inside a segment of `len` bytes and offsets below `end_offset`.
    pub fn parse(
        base_offset: i64,
        interval_bytes: u32,
        end_offset: i64,
        len: u64,
        offset_file: &[u8],
        time_file: &[u8],
    ) -> Result<SegmentIndex, IndexError> {
        let mut index = SegmentIndex::new(base_offset, interval_bytes);
        let span = end_offset.saturating_sub(base_offset);
        index.offsets = parse_offsets(offset_file, span, len)?;
        index.times = parse_times(time_file, span)?;
        index.covered_to = len;
        index.step_back();
        Ok(index)
    }

    /// Takes the last offset entry off: the index ends before its batch, which whoever continues appends again,
    /// and what the time index says of it and of later ones comes back with it.
    fn step_back(&mut self) {
        let Some((last, position)) = self.offsets.pop() else {
            *self = SegmentIndex::new(self.base_offset, self.interval_bytes);
            return;
        };
        let base = self.base_offset;
        self.covered_to = u64::from(position);
        self.next_last_offset = Some(base + i64::from(last));
        self.times.retain(|(_, relative)| *relative < last);
        let entry = |time: &(i64, u32)| TimeEntry { timestamp: time.0, offset: base + i64::from(time.1) };
        self.largest = self.times.last().map(entry);
        // So that the entry is made again.
        self.bytes_since_entry = u64::from(self.interval_bytes) + 1;
    }

    /// Last offset of the batch at `covered_to`, where it is known.
    pub(super) fn next_last_offset(&self) -> Option<i64> {
        self.next_last_offset
    }

    /// Drops entries so that nothing past `position` is covered.
    pub(super) fn limit(&mut self, position: u64) {
        if self.covered_to > position {
            let keep = self.offsets.partition_point(|(_, at)| u64::from(*at) <= position);
            self.offsets.truncate(keep);
            self.step_back();
        }
    }

    /// Content of the `.partialindex` file: the entries of what lies below `position`, which must have come to stay.
    /// `None` where there is nothing to save, or where it does not begin at 0.
    pub(crate) fn partial_file(&self, position: u64) -> Option<Vec<u8>> {
        let keep = self.offsets.partition_point(|(_, at)| u64::from(*at) < position);
        let &(last, _) = self.offsets.get(keep.checked_sub(1)?)?;
        if self.covered_from > 0 {
            return None;
        }
        let times = self.times.partition_point(|(_, relative)| *relative < last);
        let len = PARTIAL_HEADER + keep * OFFSET_ENTRY + times * TIME_ENTRY + size_of::<u64>();
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(PARTIAL_MAGIC);
        out.extend_from_slice(&PARTIAL_VERSION.to_le_bytes());
        out.extend_from_slice(&self.base_offset.to_le_bytes());
        out.extend_from_slice(&(keep as u64).to_le_bytes());
        write_offsets(&self.offsets[..keep], &mut out);
        write_times(&self.times[..times], &mut out);
        let sum = hash(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        Some(out)
    }

    /// Reads that file, as [`parse`](Self::parse) reads Kafka's two. `None`: it is not one, or was not written whole.
    pub(super) fn parse_partial(
        base_offset: i64,
        interval_bytes: u32,
        end_offset: i64,
        len: u64,
        file: &[u8],
    ) -> Option<SegmentIndex> {
        let (content, sum) = file.split_last_chunk::<8>()?;
        let (header, entries) = content.split_first_chunk::<PARTIAL_HEADER>()?;
        let mut expected = [0; PARTIAL_HEADER - 8];
        expected[..8].copy_from_slice(PARTIAL_MAGIC);
        expected[8..16].copy_from_slice(&PARTIAL_VERSION.to_le_bytes());
        expected[16..].copy_from_slice(&base_offset.to_le_bytes());
        if hash(content).to_le_bytes() != *sum || header[..PARTIAL_HEADER - 8] != expected {
            return None;
        }
        let count = u64::from_le_bytes(*header.last_chunk()?);
        let offsets = usize::try_from(count).ok()?.checked_mul(OFFSET_ENTRY)?;
        let (offsets, times) = entries.split_at_checked(offsets)?;
        SegmentIndex::parse(base_offset, interval_bytes, end_offset, len, offsets, times).ok()
    }

    /// Puts `prefix`, which ends where this begins, before it.
    pub(super) fn prepend(&mut self, prefix: SegmentIndex) {
        assert_eq!((prefix.covered_from, prefix.covered_to), (0, self.covered_from), "the parts meet");
        let mut joined = prefix;
        joined.interval_bytes = joined.interval_bytes.max(self.interval_bytes);
        if let Some(largest) = joined.largest {
            // A part that began in the middle did not know that these were no news.
            self.times.retain(|(timestamp, _)| *timestamp > largest.timestamp);
            // Its first batch has an entry: by then the time index knows of all before.
            if !self.offsets.is_empty() {
                joined.note_largest();
            }
        }
        joined.offsets.append(&mut self.offsets);
        joined.times.append(&mut self.times);
        joined.largest = match (joined.largest, self.largest) {
            (Some(before), Some(after)) if after.timestamp <= before.timestamp => Some(before),
            (before, after) => after.or(before),
        };
        joined.bytes_since_entry = self.bytes_since_entry;
        joined.covered_to = self.covered_to;
        *self = joined;
    }
}

fn write_offsets(offsets: &[(u32, u32)], out: &mut Vec<u8>) {
    for (relative, position) in offsets {
        out.extend_from_slice(&relative.to_be_bytes());
        out.extend_from_slice(&position.to_be_bytes());
    }
}

fn write_times(times: &[(i64, u32)], out: &mut Vec<u8>) {
    for (timestamp, relative) in times {
        out.extend_from_slice(&timestamp.to_be_bytes());
        out.extend_from_slice(&relative.to_be_bytes());
    }
}

fn parse_offsets(file: &[u8], span: i64, len: u64) -> Result<Vec<(u32, u32)>, IndexError> {
    let (entries, rest) = file.as_chunks::<OFFSET_ENTRY>();
    if !rest.is_empty() {
        return Err(IndexError::Length(file.len()));
    }
    let mut out: Vec<(u32, u32)> = Vec::with_capacity(entries.len());
    for (number, entry) in entries.iter().enumerate() {
        let [a, b, c, d, e, f, g, h] = *entry;
        let (relative, position) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        let rises = out.last().is_none_or(|last| relative > last.0 && position > last.1);
        // Position 0 needs no entry and gets none: a zeroed file is not an index.
        if !rises || i64::from(relative) >= span || u64::from(position) >= len || position == 0 {
            return Err(IndexError::Entry(number));
        }
        out.push((relative, position));
    }
    Ok(out)
}

fn parse_times(file: &[u8], span: i64) -> Result<Vec<(i64, u32)>, IndexError> {
    let (entries, rest) = file.as_chunks::<TIME_ENTRY>();
    if !rest.is_empty() {
        return Err(IndexError::Length(file.len()));
    }
    let mut out: Vec<(i64, u32)> = Vec::with_capacity(entries.len());
    for (number, entry) in entries.iter().enumerate() {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *entry;
        let timestamp = i64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let relative = u32::from_be_bytes([i, j, k, l]);
        let rises = out.last().is_none_or(|last| timestamp > last.0 && relative > last.1);
        if !rises || timestamp < 0 || i64::from(relative) >= span {
            return Err(IndexError::Entry(number));
        }
        out.push((timestamp, relative));
    }
    Ok(out)
}
