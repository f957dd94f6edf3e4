//! What can be wrong with a batch, in words and as Kafka's error code.

use crate::ErrorCode;
use crate::compression::CompressionError;
use std::fmt;

/// Why a batch is refused or cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchError {
    /// No whole batch is there.
    Missing,
    /// Something follows the one batch that a produce may hold per partition.
    Several,
    /// Not format 2.
    Magic(i8),
    /// `batch_length` is below that of an empty batch.
    Length(i32),
    /// Larger than `max.message.bytes`.
    TooLarge {
        /// Bytes of the batch.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// The bytes are not those that were sent.
    Crc {
        /// In the header.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// A client must send base offset 0.
    BaseOffset(i64),
    /// Count and offset range disagree, or the count is not positive.
    Count {
        /// `record_count`.
        count: i32,
        /// `last_offset_delta`.
        last_offset_delta: i32,
    },
    /// A client sent a control batch.
    Control,
    /// An idempotent batch without a sequence.
    Sequence(i32),
    /// An idempotent batch without an epoch, or a transactional one without a producer.
    Producer {
        /// `producer_id`.
        id: i64,
        /// `producer_epoch`.
        epoch: i16,
    },
    /// A client claims LogAppendTime, which is the broker's to set.
    TimestampType,
    /// No codec has this id.
    UnknownCompression(u8),
    /// zstd in a Produce request below version 7 (KIP-110).
    ZstdTooEarly,
    /// The record with this index is malformed.
    Record {
        /// Counted from 0.
        index: i32,
        /// What is wrong with it.
        fault: RecordFault,
    },
    /// Bytes are left after the last record.
    Remainder(usize),
    /// The compressed block cannot be opened.
    Decompress(CompressionError),
}

/// What is wrong with one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordFault {
    /// The batch ends before the record does.
    Truncated,
    /// A variable-length integer has no end.
    Varint,
    /// A length that does not fit the record, or below -1.
    Length,
    /// Its offset delta is not its index.
    OffsetDelta,
    /// A header count or header key that does not fit.
    Header,
    /// The record is longer than its fields.
    Remainder,
    /// A compacted topic needs keys.
    NoKey,
}

impl BatchError {
    /// What Kafka answers. In Produce requests of version 3 and later, the formats 0 and 1 are INVALID_RECORD, unknown
    /// ones are corruption.
    pub fn error_code(&self) -> ErrorCode {
        match self {
            BatchError::Missing
            | BatchError::Several
            | BatchError::Magic(0 | 1)
            | BatchError::BaseOffset(_)
            | BatchError::Count { .. }
            | BatchError::Control
            | BatchError::Sequence(_)
            | BatchError::Producer { .. }
            | BatchError::Record { .. }
            | BatchError::Remainder(_) => ErrorCode::InvalidRecord,
            BatchError::Magic(_)
            | BatchError::Length(_)
            | BatchError::Crc { .. }
            | BatchError::Decompress(CompressionError::Malformed(_)) => ErrorCode::CorruptMessage,
            BatchError::TooLarge { .. } | BatchError::Decompress(CompressionError::TooLarge { .. }) => {
                ErrorCode::MessageTooLarge
            }
            BatchError::TimestampType => ErrorCode::InvalidTimestamp,
            BatchError::UnknownCompression(_) | BatchError::ZstdTooEarly => {
                ErrorCode::UnsupportedCompressionType
            }
        }
    }

    /// The index of the record at fault, for `record_errors` of the Produce response (KIP-467).
    pub fn record_index(&self) -> Option<i32> {
        match self {
            BatchError::Record { index, .. } => Some(*index),
            _ => None,
        }
    }
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BatchError::Missing => write!(f, "there is no whole record batch"),
            BatchError::Several => write!(f, "only one record batch per partition is allowed"),
            BatchError::Magic(magic) => {
                write!(f, "record batches of format {magic} are not supported, only 2")
            }
            BatchError::Length(length) => write!(f, "batch length {length} is below that of a header"),
            BatchError::TooLarge { size, max } => {
                write!(f, "the record batch has {size} bytes, the topic allows {max}")
            }
            BatchError::Crc { stored, computed } => {
                write!(f, "the record batch is corrupt: CRC {stored:08x} stored, {computed:08x} computed")
            }
            BatchError::BaseOffset(offset) => write!(f, "base offset {offset} instead of 0"),
            BatchError::Count { count, last_offset_delta } => {
                write!(f, "{count} records do not span the offset deltas 0 to {last_offset_delta}")
            }
            BatchError::Control => write!(f, "clients may not write control records"),
            BatchError::Sequence(sequence) => write!(f, "sequence {sequence} with a producer id"),
            BatchError::Producer { id, epoch } => write!(f, "producer id {id} with producer epoch {epoch}"),
            BatchError::TimestampType => {
                write!(f, "producers may not set the timestamp type to LogAppendTime")
            }
            BatchError::UnknownCompression(id) => write!(f, "compression type {id} is unknown"),
            BatchError::ZstdTooEarly => write!(f, "zstd needs version 7 of the Produce request"),
            BatchError::Record { index, fault } => write!(f, "record {index}: {fault}"),
            BatchError::Remainder(bytes) => write!(f, "{bytes} bytes are left after the last record"),
            BatchError::Decompress(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for RecordFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecordFault::Truncated => "the batch ends before it",
            RecordFault::Varint => "malformed variable-length integer",
            RecordFault::Length => "a length does not fit",
            RecordFault::OffsetDelta => "offset deltas must rise by one from 0",
            RecordFault::Header => "a header count or header key does not fit",
            RecordFault::Remainder => "it is longer than its fields",
            RecordFault::NoKey => "a compacted topic does not accept records without key",
        })
    }
}

impl From<BatchError> for ErrorCode {
    fn from(error: BatchError) -> ErrorCode {
        error.error_code()
    }
}

impl std::error::Error for BatchError {}

impl From<CompressionError> for BatchError {
    fn from(error: CompressionError) -> BatchError {
        BatchError::Decompress(error)
    }
}
