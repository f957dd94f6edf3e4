//! Segments: finding batches in them, reading them, and their indexes.
//!
//! A segment is Kafka's, byte for byte: record batches (magic 2) back to back, from position 0 to its length.
//! Its indexes are Kafka's too, and purely derived: missing or corrupt ones are rebuilt by a scan.
//!
//! ```text
//!   <20 digits>.log        batches
//!   <20 digits>.index      (last offset of a batch - base offset, position of the batch), 8 bytes an entry
//!   <20 digits>.timeindex  (greatest timestamp so far, last offset of its batch - base offset), 12 bytes
//!   <20 digits>.partialindex  ours: of a segment that is being written, what both would hold of its first part
//! ```
//!
//! | file | does |
//! |---|---|
//! | `index` | the two indexes in memory: building, look-up, Kafka's file formats and their checks |
//! | `chunk` | a piece of a segment in memory, walked batch by batch, each one verified |
//! | `reader` | `SegmentReader`: reads by offset with read-ahead; owns the bounded caches |
//! | `lookup` | indexes of closed segments: load, check, rebuild; look-up by time |
//! | `lru` | the map behind those caches: forgets what was used longest ago |
//!
//! Everything lives on the shard that owns the partition. Buffers of the reader are its own and bounded, so
//! that reading old data never pushes the tail of a log out of the batch cache.

mod chunk;
mod index;
mod lookup;
mod lru;
mod reader;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::rc::Rc;

use flumen_core::types::{LeaderEpoch, Offset};

/// Extensions of the files that are derived from a segment.
pub(crate) const INDEX_EXTENSIONS: [&str; 3] = ["index", "timeindex", PARTIAL_INDEX];
/// What a checkpoint keeps of the index of a segment that is still written to. Checksummed, and only of what has come to
/// stay: no recovery makes it wrong.
pub(crate) const PARTIAL_INDEX: &str = "partialindex";

pub use index::{IndexError, OffsetEntry, SegmentIndex, TimeEntry};
pub use lookup::Found;
pub(crate) use lookup::{Cursor, first_record, timestamp_of};
pub use reader::{ReaderMetrics, ReaderSettings, SegmentReader};

/// What the engine knows of a segment at the moment of a read. The reader trusts nothing past it.
#[derive(Clone)]
pub struct SegmentView {
    /// `<directory>/<20 digits>`, without extension.
    pub path: Rc<str>,
    /// Offset of the first batch that the segment may hold.
    pub base_offset: Offset,
    /// Every offset of the segment is below it.
    pub end_offset: Offset,
    /// Bytes of whole batches that are in the file; what lies behind is none of the reader's business.
    pub len: u64,
    /// Offsets have no gap (false for a compacted log), so that a wrong base offset is seen at once.
    pub contiguous: bool,
    /// The index of the active segment; `None` for a closed one, whose index is loaded from its files.
    pub live: Option<Rc<RefCell<SegmentIndex>>>,
    /// Greatest timestamp of its batches; -1 where it is not known.
    pub max_timestamp: i64,
    /// `index.interval.bytes`, for the index of a closed segment that must be rebuilt.
    pub index_interval_bytes: u32,
    /// [`SegmentReader::era`] when this was known: another file may bear the path later.
    pub era: u64,
}

/// Why a segment could not be read. Nothing is ever skipped: the bytes at this place cannot be had.
#[derive(Debug)]
pub enum SegmentError {
    /// The disk failed.
    Io {
        /// Path of the file.
        file: String,
        /// Position of the read.
        position: u64,
        /// What the disk said.
        error: io::Error,
    },
    /// The disk returned something that is not what was written.
    Corrupt {
        /// Path of the file.
        file: String,
        /// Position of the batch.
        position: u64,
        /// What is wrong with it.
        reason: Corruption,
    },
}

/// What is wrong with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// Its length is less than a header, more than a batch may have, or reaches past the segment.
    Length(i32),
    /// Its magic is not 2.
    Magic(i8),
    /// The CRC-32C that it carries is not that of its bytes.
    Crc {
        /// As the batch says.
        stored: u32,
    },
    /// The segment's batches end within a header.
    Cut,
    /// Its base offset is not what follows from the batches before it.
    BaseOffset {
        /// The base offset, or the least where the log may have gaps.
        expected: i64,
        /// As the batch says.
        found: i64,
    },
    /// Its offsets reach past the end of the segment, or run backwards.
    LastOffset(i64),
    /// The leader epoch is not the one that its offset was written in.
    Epoch(i32),
    /// The segment is shorter than it must be.
    Short {
        /// Length of the file.
        len: u64,
    },
    /// A compressed batch that cannot be opened, or records that cannot be parsed.
    Records {
        /// Base offset of the batch.
        base_offset: i64,
    },
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Corruption::Length(length) => write!(f, "impossible batch length {length}"),
            Corruption::Magic(magic) => write!(f, "magic {magic} instead of 2"),
            Corruption::Crc { stored } => write!(f, "CRC-32C {stored:08x} is not that of the bytes"),
            Corruption::Cut => f.write_str("the last batch is cut short"),
            Corruption::BaseOffset { expected, found } => {
                write!(f, "base offset {found} where {expected} follows")
            }
            Corruption::LastOffset(offset) => write!(f, "impossible last offset {offset}"),
            Corruption::Epoch(epoch) => write!(f, "leader epoch {epoch} does not fit the offset"),
            Corruption::Short { len } => write!(f, "the file ends at {len}"),
            Corruption::Records { base_offset } => {
                write!(f, "the records of the batch at offset {base_offset} cannot be read")
            }
        }
    }
}

impl fmt::Display for SegmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SegmentError::Io { file, position, error } => write!(f, "{file} at position {position}: {error}"),
            SegmentError::Corrupt { file, position, reason } => {
                write!(f, "{file} at position {position}: corrupt: {reason}")
            }
        }
    }
}

impl std::error::Error for SegmentError {}

/// Whether a batch at this offset may carry this leader epoch.
pub type EpochFits<'a> = &'a dyn Fn(Offset, LeaderEpoch) -> bool;

impl SegmentView {
    /// Path of the batches.
    pub fn log_path(&self) -> String {
        format!("{}.log", self.path)
    }

    fn corrupt(&self, position: u64, reason: Corruption) -> SegmentError {
        SegmentError::Corrupt { file: self.log_path(), position, reason }
    }

    fn io(&self, position: u64, error: io::Error) -> SegmentError {
        SegmentError::Io { file: self.log_path(), position, error }
    }
}
