//! The journal, as decisions and bytes: what goes into it and what past it, how a group is laid out, and what a
//! recovery may believe of what it finds.
//!
//! One shard owns one journal: a chain of *groups* over several files, numbered by LSN from 1 within one
//! incarnation of the node. A group is one commit cycle of all partitions of the shard. Nothing here does I/O;
//! `flumen-storage` does, and `docs/FORMATS.md` says the formats byte by byte.
//!
//! ```text
//! file:  | header block | group L | group L+1 | ... | what an older use of the file left |
//! group: | header 128 | table: entries of 72 | bodies | zeros to the next block |
//! ```
//!
//! Invariants:
//! - a group is valid when its header's CRC, its place, its file and both hashes fit; then all of it counts;
//! - within one incarnation, LSNs of one journal have no gap, and each group holds the hash of the one before;
//! - what is bad is a torn tail only while nothing later says that it was durable.

mod cadence;
mod format;
mod plan;
mod scan;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use cadence::Cadence;
pub use format::{
    ENTRY_LEN, Entry, EntryKind, Extent, FILE_HEADER_LEN, FileHeader, FormatError, GROUP_HEADER_LEN,
    GroupHeader, decode_extent, decode_table, encode_extent_prefix, extent_body_len, file_uuid, group_len,
    hash,
};
pub use plan::{CheckpointPlan, FillPace, FillPressure, GroupCut, Route, checkpoint_due, free_files, route};
pub use scan::{FileScan, FoundGroup, HeaderSeen, Stop, Tail, judge, scan};
