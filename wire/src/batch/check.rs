//! Whether a produced batch may enter a log. The order of checks and the resulting error codes are Kafka's
//! (`ProduceRequest.validateRecords`, then the log's analysis, then `LogValidator`), so that a batch with two faults
//! gets the same answer here and there.
//!
//! Stricter than Kafka in this: bytes after the batch are refused rather than dropped, since whoever sent them would
//! take them for acknowledged; offset deltas of uncompressed records must be consecutive; lengths below -1 are refused.

use super::error::{BatchError, RecordFault};
use super::varint::{self, Malformed};
use super::{
    BATCH_LENGTH_MIN, BatchHeader, CRC_FROM, HEADER_LEN, MAGIC, MAGIC_AT, PREFIX_LEN, TimestampType,
    stored_crc,
};
use crate::compression::{self, Compression};
use crate::crc::crc32c;
use bytes::Buf;

/// The smallest record of the oldest format: a `batch_length` below it is no batch of any format.
const LEGACY_LENGTH_MIN: i32 = 14;

/// What the topic and the request ask of a batch.
#[derive(Clone, Copy, Debug)]
pub struct CheckRules {
    /// `max.message.bytes`: bytes of the batch as it comes, compressed or not.
    pub batch_bytes_max: usize,
    /// Produce 7 and later may carry zstd.
    pub zstd_allowed: bool,
    /// The topic is compacted: each record needs a key. Opens compressed batches.
    pub keys_required: bool,
    /// Walk the records of compressed batches too.
    pub open_compressed: bool,
    /// How large a compressed batch may be once opened.
    pub decompressed_bytes_max: usize,
}

impl Default for CheckRules {
    fn default() -> CheckRules {
        CheckRules {
            batch_bytes_max: i32::MAX as usize,
            zstd_allowed: true,
            keys_required: false,
            open_compressed: false,
            decompressed_bytes_max: 64 << 20,
        }
    }
}

impl CheckRules {
    /// Whether compressed batches are opened, which takes far longer than all else.
    pub fn opens_compressed(&self) -> bool {
        self.open_compressed || self.keys_required
    }
}

/// A batch that may enter a log, once its timestamps and its sequence are found good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The header as it stands.
    pub header: BatchHeader,
    /// The lowest timestamp of its records, apart from those that have none (-1); -1 where none has one. For a
    /// compressed batch that was not opened, the header's base timestamp.
    pub min_timestamp: i64,
    /// The highest timestamp of its records; -1 where none has one. For a compressed batch that was not opened, the
    /// header's word. Where it differs from the header's, [`super::set_max_timestamp`] mends it.
    pub max_timestamp: i64,
    /// Bytes that a compressed batch opened to; 0 where it was not opened.
    pub opened_bytes: usize,
}

/// The shortest record: its length, attributes, two deltas, no key, no value, no headers.
const RECORD_BYTES_MIN: usize = 7;

/// Checks the records of one partition in a Produce request: exactly one batch, whole, intact and well formed.
pub fn check(records: &[u8], rules: &CheckRules) -> Result<Checked, BatchError> {
    let header = check_extent(records, rules)?;
    if header.base_offset != 0 {
        return Err(BatchError::BaseOffset(header.base_offset));
    }
    if header.size() > rules.batch_bytes_max {
        return Err(BatchError::TooLarge { size: header.size(), max: rules.batch_bytes_max });
    }
    let (stored, computed) = (stored_crc(records), crc32c(&records[CRC_FROM..]));
    if stored != computed {
        return Err(BatchError::Crc { stored, computed });
    }
    let compression = check_header(&header)?;
    let body = &records[HEADER_LEN..];
    let mut opened = Vec::new();
    let (min_timestamp, max_timestamp) = match compression {
        Compression::None => walk(body, &header, rules.keys_required)?,
        _ if rules.opens_compressed() => {
            compression::decompress(compression, body, rules.decompressed_bytes_max, &mut opened)?;
            walk(&opened, &header, rules.keys_required)?
        }
        _ => {
            // Nobody counts them, but what cannot be in it is not.
            let bytes_max = compression.opened_bytes_max(body.len()).min(rules.decompressed_bytes_max);
            if header.record_count as usize > bytes_max / RECORD_BYTES_MIN {
                let (count, last_offset_delta) = (header.record_count, header.last_offset_delta);
                return Err(BatchError::Count { count, last_offset_delta });
            }
            (header.base_timestamp, header.max_timestamp)
        }
    };
    Ok(Checked { header, min_timestamp, max_timestamp, opened_bytes: opened.len() })
}

/// Exactly one batch of format 2. Old formats are told apart before the length is judged, since theirs differ.
fn check_extent(records: &[u8], rules: &CheckRules) -> Result<BatchHeader, BatchError> {
    if records.len() < PREFIX_LEN {
        return Err(BatchError::Missing);
    }
    let batch_length = (&records[8..]).get_i32();
    if batch_length < LEGACY_LENGTH_MIN {
        return Err(BatchError::Length(batch_length));
    }
    if records.len() <= MAGIC_AT {
        return Err(BatchError::Missing);
    }
    let magic = (&records[MAGIC_AT..]).get_i8();
    if !(0..=MAGIC).contains(&magic) {
        return Err(BatchError::Magic(magic));
    }
    let size = PREFIX_LEN + batch_length as usize;
    if records.len() < size {
        return Err(BatchError::Missing);
    }
    if magic != MAGIC {
        return Err(BatchError::Magic(magic));
    }
    if batch_length < BATCH_LENGTH_MIN {
        return Err(BatchError::Length(batch_length));
    }
    let header = BatchHeader::parse(records)?;
    if header.compression() == Ok(Compression::Zstd) && !rules.zstd_allowed {
        return Err(BatchError::ZstdTooEarly);
    }
    if records.len() > size {
        return Err(BatchError::Several);
    }
    Ok(header)
}

/// What the header says must agree with itself, and be what a client may say.
fn check_header(header: &BatchHeader) -> Result<Compression, BatchError> {
    let (count, last_offset_delta) = (header.record_count, header.last_offset_delta);
    if count <= 0 || i64::from(last_offset_delta) + 1 != i64::from(count) {
        return Err(BatchError::Count { count, last_offset_delta });
    }
    if header.is_control() {
        return Err(BatchError::Control);
    }
    if header.has_producer_id() && header.base_sequence < 0 {
        return Err(BatchError::Sequence(header.base_sequence));
    }
    let lacks_producer = header.is_transactional() && !header.has_producer_id();
    if lacks_producer || (header.has_producer_id() && header.producer_epoch < 0) {
        return Err(BatchError::Producer { id: header.producer_id, epoch: header.producer_epoch });
    }
    if header.timestamp_type() == TimestampType::LogAppendTime {
        return Err(BatchError::TimestampType);
    }
    header.compression().map_err(BatchError::UnknownCompression)
}

/// Walks the structure of every record; answers the lowest and the highest timestamp.
fn walk(body: &[u8], header: &BatchHeader, keys_required: bool) -> Result<(i64, i64), BatchError> {
    let (mut at, mut min, mut max) = (0, i64::MAX, -1);
    for index in 0..header.record_count {
        let (delta, has_key) =
            walk_record(body, &mut at, index).map_err(|fault| BatchError::Record { index, fault })?;
        if keys_required && !has_key {
            return Err(BatchError::Record { index, fault: RecordFault::NoKey });
        }
        let timestamp = header.base_timestamp.wrapping_add(delta);
        max = max.max(timestamp);
        if timestamp != -1 {
            min = min.min(timestamp);
        }
    }
    if at != body.len() {
        return Err(BatchError::Remainder(body.len() - at));
    }
    Ok((if min == i64::MAX { -1 } else { min }, max))
}

/// One record at `*at`; answers its timestamp delta and whether it has a key. A claimed count costs nothing, as each
/// record takes at least one byte.
#[inline(always)]
fn walk_record(body: &[u8], at: &mut usize, index: i32) -> Result<(i64, bool), RecordFault> {
    let length = varint::read_i32(body, at).map_err(|_| ended(body, *at))?;
    let record = match usize::try_from(length) {
        Ok(length) if length <= body.len() - *at => &body[*at..*at + length],
        Ok(_) => return Err(RecordFault::Truncated),
        Err(_) => return Err(RecordFault::Length),
    };
    *at += record.len();
    let mut within = 1; // past the attributes, which are unused
    let timestamp_delta = varint::read_i64(record, &mut within)?;
    if varint::read_i32(record, &mut within)? != index {
        return Err(RecordFault::OffsetDelta);
    }
    let has_key = skip(record, &mut within)?;
    skip(record, &mut within)?;
    let headers = varint::read_i32(record, &mut within)?;
    if headers != 0 {
        walk_headers(record, &mut within, headers)?;
    }
    if within != record.len() {
        return Err(RecordFault::Remainder);
    }
    Ok((timestamp_delta, has_key))
}

/// Past a nullable field; answers whether it is there.
#[inline(always)]
fn skip(record: &[u8], within: &mut usize) -> Result<bool, RecordFault> {
    let length = varint::read_i32(record, within)?;
    if length < 0 {
        return if length == -1 { Ok(false) } else { Err(RecordFault::Length) };
    }
    if length as usize > record.len() - *within {
        return Err(RecordFault::Length);
    }
    *within += length as usize;
    Ok(true)
}

#[inline(never)]
fn walk_headers(record: &[u8], within: &mut usize, count: i32) -> Result<(), RecordFault> {
    if count < 0 || count as usize > record.len() - *within {
        return Err(RecordFault::Header);
    }
    for _ in 0..count {
        let has_key = skip(record, within)?;
        if !has_key {
            return Err(RecordFault::Header);
        }
        skip(record, within)?;
    }
    Ok(())
}

#[cold]
fn ended(body: &[u8], at: usize) -> RecordFault {
    if at >= body.len() { RecordFault::Truncated } else { RecordFault::Varint }
}

impl From<Malformed> for RecordFault {
    fn from(_: Malformed) -> RecordFault {
        RecordFault::Varint
    }
}
