//! Bytes of the journal: file header, group header, table of entries. Little-endian; reserved bytes are zero.

use crate::limits::{BLOCK_BYTES, GROUP_BYTES_MAX, GROUP_ENTRIES_MAX, JOURNAL_FILE_BYTES_MAX};
use crate::types::{Incarnation, LeaderEpoch, Lsn, Offset, PartitionId, ShardId, TopicId};
use flumen_wire::batch::HEADER_LEN;
use flumen_wire::crc::crc32c;

const FILE_MAGIC: &[u8; 8] = b"FLUMJRNL";
const GROUP_MAGIC: &[u8; 8] = b"FLUMGRUP";
const VERSION: u16 = 1;

/// Used bytes of the file's header block; the rest of the block is zero.
pub const FILE_HEADER_LEN: usize = 64;
/// Bytes of a group's header.
pub const GROUP_HEADER_LEN: usize = 128;
/// Bytes of one entry of a group's table.
pub const ENTRY_LEN: usize = 72;

const _: () = assert!(GROUP_HEADER_LEN as u64 <= BLOCK_BYTES);
const _: () = assert!(GROUP_HEADER_LEN + GROUP_ENTRIES_MAX as usize * ENTRY_LEN < GROUP_BYTES_MAX as usize);

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// No magic: nothing of ours was ever written here.
    Magic,
    /// A format of a later release.
    Version(u16),
    /// The checksum does not fit.
    Checksum,
    /// A field that cannot be, its name.
    Field(&'static str),
}

impl std::fmt::Display for FormatError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FormatError::Magic => f.write_str("no magic"),
            FormatError::Version(version) => write!(f, "format version {version} is of a later release"),
            FormatError::Checksum => f.write_str("checksum does not fit"),
            FormatError::Field(name) => write!(f, "field {name} cannot be"),
        }
    }
}

/// The hash of groups: XXH3, 64 bits.
pub fn hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// The identity of a journal file, which no client can guess: it holds the data folder's random identity.
pub fn file_uuid(directory_id: [u8; 16], incarnation: Incarnation, shard: ShardId, count: u32) -> [u8; 16] {
    let mut bytes = [0u8; 30];
    bytes[..16].copy_from_slice(&directory_id);
    bytes[16..24].copy_from_slice(&incarnation.0.to_le_bytes());
    bytes[24..26].copy_from_slice(&shard.0.to_le_bytes());
    bytes[26..30].copy_from_slice(&count.to_le_bytes());
    xxhash_rust::xxh3::xxh3_128(&bytes).to_le_bytes()
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk::<N>().expect("the caller checked the length")
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Block 0 of a journal file, written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// The number in its name.
    pub number: u32,
    /// The data folder's identity.
    pub directory_id: [u8; 16],
    /// This file's identity; every group in it repeats it.
    pub file_uuid: [u8; 16],
    /// Length of the file.
    pub capacity: u64,
}

impl FileHeader {
    /// Writes the header block; `block` is [`BLOCK_BYTES`] long.
    pub fn encode(&self, block: &mut [u8]) {
        assert!(block.len() == BLOCK_BYTES as usize);
        block.fill(0);
        put(block, 0, FILE_MAGIC);
        put(block, 8, &VERSION.to_le_bytes());
        put(block, 12, &self.number.to_le_bytes());
        put(block, 16, &self.directory_id);
        put(block, 32, &self.file_uuid);
        put(block, 48, &self.capacity.to_le_bytes());
        let crc = crc32c(&block[..FILE_HEADER_LEN - 4]);
        put(block, FILE_HEADER_LEN - 4, &crc.to_le_bytes());
    }

    /// Reads it back.
    pub fn decode(block: &[u8]) -> Result<FileHeader, FormatError> {
        if block.len() < FILE_HEADER_LEN || &block[..8] != FILE_MAGIC {
            return Err(FormatError::Magic);
        }
        if u32::from_le_bytes(get(block, FILE_HEADER_LEN - 4)) != crc32c(&block[..FILE_HEADER_LEN - 4]) {
            return Err(FormatError::Checksum);
        }
        let version = u16::from_le_bytes(get(block, 8));
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        let header = FileHeader {
            number: u32::from_le_bytes(get(block, 12)),
            directory_id: get(block, 16),
            file_uuid: get(block, 32),
            capacity: u64::from_le_bytes(get(block, 48)),
        };
        if !header.capacity.is_multiple_of(BLOCK_BYTES) || header.capacity > JOURNAL_FILE_BYTES_MAX {
            return Err(FormatError::Field("capacity"));
        }
        Ok(header)
    }
}

/// The first bytes of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHeader {
    /// Whose journal it is.
    pub shard: ShardId,
    /// How many entries the table has.
    pub entry_count: u32,
    /// The file that it was written for.
    pub file_uuid: [u8; 16],
    /// The start of the node that wrote it.
    pub incarnation: Incarnation,
    /// Its number in the journal, from 1.
    pub lsn: Lsn,
    /// The highest LSN known durable when it was formed.
    pub durable_lsn: Lsn,
    /// Hash of the header of the group before; 0 for the first.
    pub previous_hash: u64,
    /// Bytes of the whole group, a multiple of [`BLOCK_BYTES`].
    pub byte_length: u64,
    /// Hash of the table.
    pub table_hash: u64,
    /// Hash of everything after the table, padding included.
    pub body_hash: u64,
    /// Where it was meant to be written in the file.
    pub position: u64,
}

impl GroupHeader {
    /// Writes the header at the start of `bytes`.
    pub fn encode(&self, bytes: &mut [u8]) {
        let bytes = &mut bytes[..GROUP_HEADER_LEN];
        bytes.fill(0);
        put(bytes, 0, GROUP_MAGIC);
        put(bytes, 8, &VERSION.to_le_bytes());
        put(bytes, 10, &self.shard.0.to_le_bytes());
        put(bytes, 12, &self.entry_count.to_le_bytes());
        put(bytes, 16, &self.file_uuid);
        put(bytes, 32, &self.incarnation.0.to_le_bytes());
        put(bytes, 40, &self.lsn.0.to_le_bytes());
        put(bytes, 48, &self.durable_lsn.0.to_le_bytes());
        put(bytes, 56, &self.previous_hash.to_le_bytes());
        put(bytes, 64, &self.byte_length.to_le_bytes());
        put(bytes, 72, &self.table_hash.to_le_bytes());
        put(bytes, 80, &self.body_hash.to_le_bytes());
        put(bytes, 88, &self.position.to_le_bytes());
        let crc = crc32c(&bytes[..GROUP_HEADER_LEN - 4]);
        put(bytes, GROUP_HEADER_LEN - 4, &crc.to_le_bytes());
    }

    /// Reads a header; that its hashes fit is for [`scan`](super::scan()) to say.
    pub fn decode(bytes: &[u8]) -> Result<GroupHeader, FormatError> {
        if bytes.len() < GROUP_HEADER_LEN || &bytes[..8] != GROUP_MAGIC {
            return Err(FormatError::Magic);
        }
        let bytes = &bytes[..GROUP_HEADER_LEN];
        if u32::from_le_bytes(get(bytes, GROUP_HEADER_LEN - 4)) != crc32c(&bytes[..GROUP_HEADER_LEN - 4]) {
            return Err(FormatError::Checksum);
        }
        let version = u16::from_le_bytes(get(bytes, 8));
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        let header = GroupHeader {
            shard: ShardId(u16::from_le_bytes(get(bytes, 10))),
            entry_count: u32::from_le_bytes(get(bytes, 12)),
            file_uuid: get(bytes, 16),
            incarnation: Incarnation(u64::from_le_bytes(get(bytes, 32))),
            lsn: Lsn(u64::from_le_bytes(get(bytes, 40))),
            durable_lsn: Lsn(u64::from_le_bytes(get(bytes, 48))),
            previous_hash: u64::from_le_bytes(get(bytes, 56)),
            byte_length: u64::from_le_bytes(get(bytes, 64)),
            table_hash: u64::from_le_bytes(get(bytes, 72)),
            body_hash: u64::from_le_bytes(get(bytes, 80)),
            position: u64::from_le_bytes(get(bytes, 88)),
        };
        header.check_fields()?;
        Ok(header)
    }

    fn check_fields(&self) -> Result<(), FormatError> {
        let table = GROUP_HEADER_LEN as u64 + u64::from(self.entry_count) * ENTRY_LEN as u64;
        if self.entry_count == 0 || self.entry_count > GROUP_ENTRIES_MAX {
            return Err(FormatError::Field("entry_count"));
        }
        if !self.byte_length.is_multiple_of(BLOCK_BYTES)
            || self.byte_length > GROUP_BYTES_MAX
            || self.byte_length < table
        {
            return Err(FormatError::Field("byte_length"));
        }
        if self.lsn.0 == 0 || self.durable_lsn >= self.lsn {
            return Err(FormatError::Field("lsn"));
        }
        if !self.position.is_multiple_of(BLOCK_BYTES) || self.position > JOURNAL_FILE_BYTES_MAX {
            return Err(FormatError::Field("position"));
        }
        Ok(())
    }
}

/// What an entry of a group is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// Batches, exactly as they will stand in the segment.
    Data = 1,
    /// Batches that stand in the segment already, written and synced; the tail under a block is in the body.
    Extent = 2,
    /// The log ends at `base_offset`, at (`segment_base`, `position`), from now on.
    Truncate = 3,
    /// The log starts at `base_offset` from now on.
    LogStart = 4,
    /// The partition is gone, with all that was journalled for it.
    Drop = 5,
    /// Data that was journalled before, journalled again because its segment cannot take it: where the log has it
    /// already, it counts for nothing.
    Relog = 6,
}

impl EntryKind {
    fn from_code(code: u8) -> Option<EntryKind> {
        Some(match code {
            1 => EntryKind::Data,
            2 => EntryKind::Extent,
            3 => EntryKind::Truncate,
            4 => EntryKind::LogStart,
            5 => EntryKind::Drop,
            6 => EntryKind::Relog,
            _ => return None,
        })
    }
}

/// One entry of a group's table. Bodies follow the table in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is about.
    pub kind: EntryKind,
    /// The partition.
    pub partition: PartitionId,
    /// The leader's epoch in all batches of it.
    pub leader_epoch: LeaderEpoch,
    /// First offset.
    pub base_offset: Offset,
    /// Last offset (inclusive); `base_offset` where there are no records.
    pub last_offset: Offset,
    /// Name of the segment.
    pub segment_base: Offset,
    /// Where in the segment the batches begin.
    pub position: u64,
    /// Bytes of batches in the segment.
    pub length: u64,
    /// Bytes of the body in this group.
    pub body_length: u32,
}

impl Entry {
    /// Writes it as entry `index` of the table of the group in `group`.
    pub fn encode(&self, group: &mut [u8], index: usize) {
        let at = GROUP_HEADER_LEN + index * ENTRY_LEN;
        let bytes = &mut group[at..at + ENTRY_LEN];
        bytes.fill(0);
        bytes[0] = self.kind as u8;
        put(bytes, 4, &self.partition.partition.to_le_bytes());
        put(bytes, 8, &self.partition.topic.0);
        put(bytes, 24, &self.leader_epoch.0.to_le_bytes());
        put(bytes, 28, &self.body_length.to_le_bytes());
        put(bytes, 32, &self.base_offset.0.to_le_bytes());
        put(bytes, 40, &self.last_offset.0.to_le_bytes());
        put(bytes, 48, &self.segment_base.0.to_le_bytes());
        put(bytes, 56, &self.position.to_le_bytes());
        put(bytes, 64, &self.length.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Result<Entry, FormatError> {
        let kind = EntryKind::from_code(bytes[0]).ok_or(FormatError::Field("kind"))?;
        let entry = Entry {
            kind,
            partition: PartitionId {
                topic: TopicId(get(bytes, 8)),
                partition: i32::from_le_bytes(get(bytes, 4)),
            },
            leader_epoch: LeaderEpoch(i32::from_le_bytes(get(bytes, 24))),
            body_length: u32::from_le_bytes(get(bytes, 28)),
            base_offset: Offset(i64::from_le_bytes(get(bytes, 32))),
            last_offset: Offset(i64::from_le_bytes(get(bytes, 40))),
            segment_base: Offset(i64::from_le_bytes(get(bytes, 48))),
            position: u64::from_le_bytes(get(bytes, 56)),
            length: u64::from_le_bytes(get(bytes, 64)),
        };
        let with_records = matches!(kind, EntryKind::Data | EntryKind::Extent | EntryKind::Relog);
        if entry.base_offset.0 < 0 || entry.last_offset < entry.base_offset || entry.segment_base.0 < 0 {
            return Err(FormatError::Field("offset"));
        }
        if with_records && entry.leader_epoch.0 < 0 {
            return Err(FormatError::Field("leader_epoch"));
        }
        if with_records && (entry.length == 0 || entry.segment_base > entry.base_offset) {
            return Err(FormatError::Field("length"));
        }
        if matches!(kind, EntryKind::Data | EntryKind::Relog) && u64::from(entry.body_length) != entry.length
        {
            return Err(FormatError::Field("body_length"));
        }
        if entry.position.checked_add(entry.length).is_none() {
            return Err(FormatError::Field("position"));
        }
        Ok(entry)
    }
}

/// Reads a group's table: entries, each with the place of its body within the group. `header` was checked, `group`
/// is at least the table's length.
pub fn decode_table(
    header: &GroupHeader,
    group: &[u8],
) -> Result<Vec<(Entry, std::ops::Range<usize>)>, FormatError> {
    let count = header.entry_count as usize;
    let mut body_at = GROUP_HEADER_LEN + count * ENTRY_LEN;
    let mut entries = Vec::with_capacity(count);
    for index in 0..count {
        let at = GROUP_HEADER_LEN + index * ENTRY_LEN;
        let entry = Entry::decode(&group[at..at + ENTRY_LEN])?;
        let end = body_at + entry.body_length as usize;
        if end as u64 > header.byte_length {
            return Err(FormatError::Field("body_length"));
        }
        entries.push((entry, body_at..end));
        body_at = end;
    }
    Ok(entries)
}

/// Bytes of a group with so many entries and bytes of bodies.
pub fn group_len(entries: usize, body_bytes: usize) -> usize {
    (GROUP_HEADER_LEN + entries * ENTRY_LEN + body_bytes).next_multiple_of(BLOCK_BYTES as usize)
}

/// The body of an EXTENT entry: the headers of its batches, whose CRCs stand for the bytes in the segment, and the
/// bytes after the last whole block, which are nowhere else yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent<'a> {
    /// Headers of 61 bytes, back to back.
    pub headers: &'a [u8],
    /// The end of the batches.
    pub tail: &'a [u8],
}

/// Bytes of an EXTENT's body.
pub fn extent_body_len(batches: usize, tail: usize) -> usize {
    8 + batches * HEADER_LEN + tail
}

/// Writes the counts of an EXTENT's body; headers and tail follow.
pub fn encode_extent_prefix(body: &mut [u8], batches: usize, tail: usize) {
    put(body, 0, &(batches as u32).to_le_bytes());
    put(body, 4, &(tail as u32).to_le_bytes());
}

/// Reads the body of an EXTENT entry.
pub fn decode_extent(body: &[u8]) -> Result<Extent<'_>, FormatError> {
    if body.len() < 8 {
        return Err(FormatError::Field("extent"));
    }
    let batches = u32::from_le_bytes(get(body, 0)) as usize;
    let tail = u32::from_le_bytes(get(body, 4)) as usize;
    let rest = &body[8..];
    let Some(headers) = batches.checked_mul(HEADER_LEN) else { return Err(FormatError::Field("extent")) };
    if batches == 0 || tail >= BLOCK_BYTES as usize || headers.checked_add(tail) != Some(rest.len()) {
        return Err(FormatError::Field("extent"));
    }
    let (headers, tail) = rest.split_at(headers);
    Ok(Extent { headers, tail })
}
