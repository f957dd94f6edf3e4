//! What a journal file holds: the run of valid groups at its start, why the run ends, and what headers further on
//! say. On bytes alone, so that fuzzing reaches all of it.

use super::format::{ENTRY_LEN, FormatError, GROUP_HEADER_LEN, GroupHeader, decode_table, hash};
use crate::limits::BLOCK_BYTES;
use crate::types::{Incarnation, Lsn, ShardId};

/// A group whose header is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundGroup {
    /// Its header.
    pub header: GroupHeader,
    /// Where it begins in the file.
    pub position: u64,
    /// Hash of its header, which the next group repeats.
    pub header_hash: u64,
    /// Whether its table is as written: then entries can be told apart.
    pub table_valid: bool,
    /// Whether its bodies and padding are as written.
    pub body_valid: bool,
}

impl FoundGroup {
    /// Whether all of it is as written.
    pub fn is_valid(&self) -> bool {
        self.table_valid && self.body_valid
    }
}

/// Where the first run of a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At the end of the file.
    End,
    /// At a valid header of an older use of the file.
    Stale,
    /// At bytes that are no valid group.
    Bad,
}

/// A valid header anywhere in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderSeen {
    /// Whose.
    pub shard: ShardId,
    /// Of which start.
    pub incarnation: Incarnation,
    /// Which group.
    pub lsn: Lsn,
    /// What it knew to be durable.
    pub durable_lsn: Lsn,
    /// Where it begins.
    pub position: u64,
}

/// What [`scan`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileScan {
    /// Groups of the newest use of the file, LSNs rising by one, broken ones among them only where the header is
    /// valid or a later header of the same use follows.
    pub groups: Vec<FoundGroup>,
    /// Why there are no more.
    pub stop: Stop,
    /// Where that is.
    pub stop_position: u64,
    /// Every valid header of this file beyond `stop_position`, of any use.
    pub beyond: Vec<HeaderSeen>,
}

fn header_at(file: &[u8], position: u64, uuid: [u8; 16]) -> Result<GroupHeader, FormatError> {
    let start = usize::try_from(position).expect("files are below the limit");
    let header = GroupHeader::decode(&file[start..])?;
    if header.file_uuid != uuid {
        return Err(FormatError::Field("file_uuid"));
    }
    if header.position != position {
        return Err(FormatError::Field("position"));
    }
    if position + header.byte_length > file.len() as u64 {
        return Err(FormatError::Field("byte_length"));
    }
    Ok(header)
}

fn found(file: &[u8], header: GroupHeader) -> FoundGroup {
    let start = header.position as usize;
    let group = &file[start..start + header.byte_length as usize];
    let table = &group[GROUP_HEADER_LEN..GROUP_HEADER_LEN + header.entry_count as usize * ENTRY_LEN];
    let table_valid = hash(table) == header.table_hash && decode_table(&header, group).is_ok();
    let body_valid = hash(&group[GROUP_HEADER_LEN + table.len()..]) == header.body_hash;
    let header_hash = hash(&group[..GROUP_HEADER_LEN]);
    FoundGroup { header, position: header.position, header_hash, table_valid, body_valid }
}

/// Reads a journal file, of which `file` is the whole content, from the group at `from` on (the first is at
/// [`BLOCK_BYTES`]). Bytes may be anything.
pub fn scan(file: &[u8], uuid: [u8; 16], from: u64) -> FileScan {
    let len = file.len() as u64 / BLOCK_BYTES * BLOCK_BYTES;
    let file = &file[..len as usize];
    let mut groups: Vec<FoundGroup> = Vec::new();
    let mut position = from.next_multiple_of(BLOCK_BYTES).min(len);
    let stop = loop {
        if position >= len {
            break Stop::End;
        }
        match header_at(file, position, uuid) {
            Err(_) => break Stop::Bad,
            Ok(header) => {
                let follows = groups.last().is_none_or(|last| {
                    header.incarnation == last.header.incarnation
                        && header.shard == last.header.shard
                        && header.lsn.0 == last.header.lsn.0 + 1
                        && header.previous_hash == last.header_hash
                });
                if !follows {
                    break Stop::Stale;
                }
                // One that is not valid is kept too: the caller judges it, and its length leads to the next.
                groups.push(found(file, header));
                position += header.byte_length;
            }
        }
    };
    let beyond = headers_beyond(file, position, uuid);
    FileScan { groups, stop, stop_position: position, beyond }
}

/// Valid headers from `position` on, at any block.
fn headers_beyond(file: &[u8], mut position: u64, uuid: [u8; 16]) -> Vec<HeaderSeen> {
    let mut seen = Vec::new();
    while position < file.len() as u64 {
        if let Ok(header) = header_at(file, position, uuid) {
            seen.push(HeaderSeen {
                shard: header.shard,
                incarnation: header.incarnation,
                lsn: header.lsn,
                durable_lsn: header.durable_lsn,
                position,
            });
        }
        position += BLOCK_BYTES;
    }
    seen
}

/// What a missing or bad group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Never acknowledged: it and what follows is dropped.
    Torn,
    /// Acknowledged, and lost or changed since.
    Corrupt,
}

/// Judges group `lsn` of a journal, which is bad or missing, by all that is known of the same journal and
/// incarnation: the highest `durable_lsn` that any valid header or checkpoint of it says.
pub fn judge(lsn: Lsn, durable_lsn_known: Lsn) -> Tail {
    if durable_lsn_known >= lsn { Tail::Corrupt } else { Tail::Torn }
}
