//! Record batches of format v2 (KIP-98): the unit that producers send, segments hold, consumers get.
//!
//! A batch is 61 bytes of header and then its records, compressed as one block or not:
//!
//! ```text
//!  0 base_offset i64         8 batch_length i32 (of what follows it)   12 partition_leader_epoch i32
//! 16 magic i8 = 2           17 crc u32 (CRC-32C of all from byte 21)   21 attributes i16
//! 23 last_offset_delta i32  27 base_timestamp i64                      35 max_timestamp i64
//! 43 producer_id i64        51 producer_epoch i16                      53 base_sequence i32
//! 57 record_count i32       61 records
//! ```
//!
//! [`check()`] decides whether a produced batch may enter a log. [`Batches`] walks batches that lie back to
//! back, [`RecordSet`] the records of one. [`assign`] and [`set_log_append_time`] are the only changes that a
//! broker makes to what it appends. [`Retained`] and [`emptied`] are what compaction leaves of a batch. [`BatchBuilder`]
//! makes batches, for clients.
//!
//! Invariants: nothing here panics on bytes from outside, and nothing allocates by a length that they claim.

mod builder;
mod check;
mod error;
mod filter;
mod scan;
pub(crate) mod varint;

pub use builder::{BatchBuilder, NewRecord};
pub use check::{CheckRules, Checked, check};
pub use error::{BatchError, RecordFault};
pub use filter::{Retained, emptied};
pub use scan::{Batches, Headers, RawBatch, Record, RecordSet, Records};

use crate::compression::{self, Compression};
use crate::crc::crc32c;
use bytes::Buf;

/// Bytes of a batch before its records.
pub const HEADER_LEN: usize = 61;
/// Bytes of `base_offset` and `batch_length`, which `batch_length` does not count.
pub const PREFIX_LEN: usize = 12;
/// The smallest `batch_length`: a header without records.
pub const BATCH_LENGTH_MIN: i32 = (HEADER_LEN - PREFIX_LEN) as i32;
/// The only format that is served.
pub const MAGIC: i8 = 2;

const LEADER_EPOCH_AT: usize = 12;
const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;
/// The first byte that the CRC covers.
const CRC_FROM: usize = 21;
const ATTRIBUTES_AT: usize = 21;
const MAX_TIMESTAMP_AT: usize = 35;

const COMPRESSION_BITS: i16 = 0x07;
const LOG_APPEND_TIME_BIT: i16 = 0x08;
const TRANSACTIONAL_BIT: i16 = 0x10;
const CONTROL_BIT: i16 = 0x20;
const DELETE_HORIZON_BIT: i16 = 0x40;

/// What the timestamps of a batch mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// Each record has the time that its producer gave it.
    CreateTime,
    /// All records have the batch's `max_timestamp`, set by the broker at the append.
    LogAppendTime,
}

/// The attributes of a batch, as one bit set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes(pub i16);

/// The header of a batch, as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record; 0 from a client.
    pub base_offset: i64,
    /// Bytes after this field.
    pub batch_length: i32,
    /// Epoch of the leader that appended it.
    pub partition_leader_epoch: i32,
    /// Format, always [`MAGIC`] here.
    pub magic: i8,
    /// CRC-32C of everything from the attributes on.
    pub crc: u32,
    /// Compression, kind of timestamp, flags.
    pub attributes: Attributes,
    /// Offset of the last record, counted from `base_offset`.
    pub last_offset_delta: i32,
    /// Timestamp of the first record, the zero of the records' deltas.
    pub base_timestamp: i64,
    /// The highest timestamp of its records, by its producer's word.
    pub max_timestamp: i64,
    /// -1 without idempotence.
    pub producer_id: i64,
    /// -1 without idempotence.
    pub producer_epoch: i16,
    /// Sequence number of the first record; -1 without idempotence.
    pub base_sequence: i32,
    /// How many records it says to hold.
    pub record_count: i32,
}

impl Attributes {
    /// The codec; `Err` holds an id that no codec has.
    pub fn compression(self) -> Result<Compression, u8> {
        Compression::from_id((self.0 & COMPRESSION_BITS) as u8)
    }

    /// Whether records carry their own timestamps.
    pub fn timestamp_type(self) -> TimestampType {
        if self.0 & LOG_APPEND_TIME_BIT != 0 {
            TimestampType::LogAppendTime
        } else {
            TimestampType::CreateTime
        }
    }

    /// Whether it is part of a transaction.
    pub fn is_transactional(self) -> bool {
        self.0 & TRANSACTIONAL_BIT != 0
    }

    /// Whether it holds a commit or abort marker, or another control record, instead of data.
    pub fn is_control(self) -> bool {
        self.0 & CONTROL_BIT != 0
    }

    /// Whether `base_timestamp` is the time at which tombstones may go (set by compaction).
    pub fn has_delete_horizon(self) -> bool {
        self.0 & DELETE_HORIZON_BIT != 0
    }
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`, which may end anywhere after it. Magic and the lower bound of the
    /// length are checked, nothing else.
    pub fn parse(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else { return Err(BatchError::Missing) };
        let mut at = &header[..];
        let parsed = BatchHeader {
            base_offset: at.get_i64(),
            batch_length: at.get_i32(),
            partition_leader_epoch: at.get_i32(),
            magic: at.get_i8(),
            crc: at.get_u32(),
            attributes: Attributes(at.get_i16()),
            last_offset_delta: at.get_i32(),
            base_timestamp: at.get_i64(),
            max_timestamp: at.get_i64(),
            producer_id: at.get_i64(),
            producer_epoch: at.get_i16(),
            base_sequence: at.get_i32(),
            record_count: at.get_i32(),
        };
        if parsed.magic != MAGIC {
            return Err(BatchError::Magic(parsed.magic));
        }
        if parsed.batch_length < BATCH_LENGTH_MIN {
            return Err(BatchError::Length(parsed.batch_length));
        }
        Ok(parsed)
    }

    /// Bytes of the whole batch.
    pub fn size(&self) -> usize {
        PREFIX_LEN + self.batch_length as usize
    }

    /// Offset of the last record. Saturates, so that a hostile header is no overflow.
    pub fn last_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta))
    }

    /// The offset after the batch.
    pub fn next_offset(&self) -> i64 {
        self.last_offset().saturating_add(1)
    }

    /// Sequence number of the last record; sequences wrap from `i32::MAX` to 0. -1 without idempotence.
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence < 0 { -1 } else { sequence_after(self.base_sequence, self.last_offset_delta) }
    }

    /// Whether an idempotent producer sent it.
    pub fn has_producer_id(&self) -> bool {
        self.producer_id >= 0
    }

    /// The codec; `Err` holds an id that no codec has.
    pub fn compression(&self) -> Result<Compression, u8> {
        self.attributes.compression()
    }

    /// Whether records carry their own timestamps.
    pub fn timestamp_type(&self) -> TimestampType {
        self.attributes.timestamp_type()
    }

    /// Whether it is part of a transaction. The caller refuses these until there are transactions.
    pub fn is_transactional(&self) -> bool {
        self.attributes.is_transactional()
    }

    /// Whether it holds control records instead of data.
    pub fn is_control(&self) -> bool {
        self.attributes.is_control()
    }
}

/// The sequence number `count` records after `sequence`; both not negative. Wraps from `i32::MAX` to 0.
pub fn sequence_after(sequence: i32, count: i32) -> i32 {
    ((i64::from(sequence) + i64::from(count)) & i64::from(i32::MAX)) as i32
}

/// Whether the stored CRC is that of the content. `batch` is exactly one batch.
pub fn crc_matches(batch: &[u8]) -> bool {
    batch.len() >= HEADER_LEN && stored_crc(batch) == crc32c(&batch[CRC_FROM..])
}

fn stored_crc(batch: &[u8]) -> u32 {
    (&batch[CRC_AT..]).get_u32()
}

/// Gives a checked batch its place in a log. The CRC does not cover what is changed. `batch` begins with a header.
pub fn assign(batch: &mut [u8], base_offset: i64, leader_epoch: i32) {
    assert!(batch.len() >= HEADER_LEN && base_offset >= 0);
    batch[..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[LEADER_EPOCH_AT..LEADER_EPOCH_AT + 4].copy_from_slice(&leader_epoch.to_be_bytes());
}

/// Stamps a checked batch with the time of its append (`message.timestamp.type=LogAppendTime`) and renews its CRC.
/// `batch` is exactly one batch.
pub fn set_log_append_time(batch: &mut [u8], append_time: i64) {
    set_timestamp(batch, TimestampType::LogAppendTime, append_time);
}

/// Puts the true maximum where a producer stated another one, as Kafka does, and renews the CRC. `batch` is exactly
/// one batch.
pub fn set_max_timestamp(batch: &mut [u8], max_timestamp: i64) {
    set_timestamp(batch, TimestampType::CreateTime, max_timestamp);
}

fn set_timestamp(batch: &mut [u8], kind: TimestampType, max_timestamp: i64) {
    assert!(batch.len() >= HEADER_LEN);
    let mut attributes = (&batch[ATTRIBUTES_AT..]).get_i16() & !LOG_APPEND_TIME_BIT;
    if kind == TimestampType::LogAppendTime {
        attributes |= LOG_APPEND_TIME_BIT;
    }
    batch[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.to_be_bytes());
    batch[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&max_timestamp.to_be_bytes());
    renew_crc(batch);
}

/// The same batch in another codec, with its CRC renewed. `batch` is exactly one batch; it is opened to at most
/// `decompressed_bytes_max` bytes.
pub fn recompress(
    batch: &[u8],
    codec: Compression,
    decompressed_bytes_max: usize,
) -> Result<Vec<u8>, BatchError> {
    let header = BatchHeader::parse(batch)?;
    let from = header.compression().map_err(BatchError::UnknownCompression)?;
    let mut records = Vec::new();
    compression::decompress(from, &batch[HEADER_LEN..], decompressed_bytes_max, &mut records)?;
    let mut out = vec![0; HEADER_LEN];
    compression::compress(codec, &records, &mut out);
    let attributes = Attributes(header.attributes.0 & !COMPRESSION_BITS | i16::from(codec.id()));
    seal(&mut out, BatchHeader { attributes, ..header });
    Ok(out)
}

/// Writes the header in front of the records that follow its place, with length and CRC.
fn seal(batch: &mut [u8], header: BatchHeader) {
    let length = i32::try_from(batch.len() - PREFIX_LEN).expect("a batch is below 2 GiB");
    header.write(length, batch);
    renew_crc(batch);
}

fn renew_crc(batch: &mut [u8]) {
    let crc = crc32c(&batch[CRC_FROM..]);
    batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
