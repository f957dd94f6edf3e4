//! Reading batches back: those that lie back to back in a segment or a response, and the records of one.

use super::error::{BatchError, RecordFault};
use super::varint;
use super::{BatchHeader, HEADER_LEN, MAGIC_AT, PREFIX_LEN, TimestampType, crc_matches};
use crate::compression::{self, Compression};
use bytes::Buf;
use std::borrow::Cow;

/// Walks batches that lie back to back. Ends at the end of the bytes, before a batch that is not whole, or after an
/// error; [`Batches::position`] says where. It checks the header's magic and length alone: the CRC is
/// [`RawBatch::crc_matches`].
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    bytes: &'a [u8],
    position: usize,
    failed: bool,
}

/// One whole batch within other bytes.
#[derive(Clone, Copy, Debug)]
pub struct RawBatch<'a> {
    /// Its header.
    pub header: BatchHeader,
    /// All its bytes, header included.
    pub bytes: &'a [u8],
    /// Where it began in the bytes that were walked.
    pub position: usize,
}

impl<'a> Batches<'a> {
    /// Walks `bytes` from their start.
    pub fn new(bytes: &'a [u8]) -> Batches<'a> {
        Batches { bytes, position: 0, failed: false }
    }

    /// Bytes of the whole batches seen so far; also the position of what comes next.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How many bytes the batch at [`Batches::position`] needs, where its length can be read: for a reader that cut
    /// it short and wants to read again.
    pub fn next_size(&self) -> Option<usize> {
        let length =
            self.bytes.get(self.position + 8..)?.first_chunk().map(|length| i32::from_be_bytes(*length))?;
        usize::try_from(length).ok().map(|length| PREFIX_LEN + length)
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<RawBatch<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.bytes[self.position..];
        if self.failed || rest.len() <= MAGIC_AT {
            return None;
        }
        let header = match BatchHeader::parse(rest) {
            Ok(header) if header.size() <= rest.len() => header,
            Ok(_) => return None,
            Err(BatchError::Missing) => match fault_of_short(rest) {
                None => return None,
                Some(error) => return self.fail(error),
            },
            Err(error) => return self.fail(error),
        };
        let batch = RawBatch { header, bytes: &rest[..header.size()], position: self.position };
        self.position += header.size();
        Some(Ok(batch))
    }
}

impl<'a> Batches<'a> {
    fn fail(&mut self, error: BatchError) -> Option<Result<RawBatch<'a>, BatchError>> {
        self.failed = true;
        Some(Err(error))
    }
}

/// A header that is cut short may be known bad already: so that garbage is told from a short read.
fn fault_of_short(rest: &[u8]) -> Option<BatchError> {
    let (length, magic) = ((&rest[8..]).get_i32(), (&rest[MAGIC_AT..]).get_i8());
    if magic != super::MAGIC {
        return Some(BatchError::Magic(magic));
    }
    (length < super::BATCH_LENGTH_MIN).then_some(BatchError::Length(length))
}

impl<'a> RawBatch<'a> {
    /// Whether the stored CRC is that of the content. Covers neither base offset, length nor leader epoch.
    pub fn crc_matches(&self) -> bool {
        crc_matches(self.bytes)
    }

    /// The same, as an error that names both.
    pub fn check_crc(&self) -> Result<(), BatchError> {
        let (stored, computed) =
            (super::stored_crc(self.bytes), super::crc32c(&self.bytes[super::CRC_FROM..]));
        if stored == computed { Ok(()) } else { Err(BatchError::Crc { stored, computed }) }
    }

    /// Its records; a compressed batch is opened, to at most `decompressed_bytes_max` bytes.
    pub fn records(&self, decompressed_bytes_max: usize) -> Result<RecordSet<'a>, BatchError> {
        let body = &self.bytes[HEADER_LEN..];
        let body = match self.header.compression().map_err(BatchError::UnknownCompression)? {
            Compression::None => Cow::Borrowed(body),
            compression => {
                let mut opened = Vec::new();
                compression::decompress(compression, body, decompressed_bytes_max, &mut opened)?;
                Cow::Owned(opened)
            }
        };
        Ok(RecordSet { header: self.header, body })
    }
}

/// The records of one batch, opened. Holds the decompressed bytes that the records borrow.
#[derive(Clone, Debug)]
pub struct RecordSet<'a> {
    pub(super) header: BatchHeader,
    pub(super) body: Cow<'a, [u8]>,
}

impl RecordSet<'_> {
    /// The same, borrowing nothing.
    pub fn into_owned(self) -> RecordSet<'static> {
        RecordSet { header: self.header, body: Cow::Owned(self.body.into_owned()) }
    }

    /// Walks the records from the first.
    pub fn iter(&self) -> Records<'_> {
        Records { header: &self.header, body: &self.body, at: 0, index: 0 }
    }

    /// Bytes of all records, decompressed.
    pub fn len_bytes(&self) -> usize {
        self.body.len()
    }
}

impl<'s> IntoIterator for &'s RecordSet<'_> {
    type Item = Result<Record<'s>, BatchError>;
    type IntoIter = Records<'s>;

    fn into_iter(self) -> Records<'s> {
        self.iter()
    }
}

/// Walks the records of one batch; ends after an error. Offset deltas need not be consecutive: compaction leaves holes.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    header: &'a BatchHeader,
    body: &'a [u8],
    at: usize,
    index: i32,
}

/// One record, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its offset in the log.
    pub offset: i64,
    /// Its timestamp; the batch's for LogAppendTime.
    pub timestamp: i64,
    /// `None` is null.
    pub key: Option<&'a [u8]>,
    /// `None` is null: a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers.
    pub headers: Headers<'a>,
    /// Bytes that it takes in the decompressed batch.
    pub size: usize,
}

/// The headers of one record, checked when the record was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    left: i32,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index >= self.header.record_count.max(0) {
            return None;
        }
        let index = self.index;
        let read = self.read().map_err(|fault| BatchError::Record { index, fault });
        self.index += 1;
        if read.is_ok() && self.index == self.header.record_count && self.at != self.body.len() {
            return Some(Err(BatchError::Remainder(self.body.len() - self.at)));
        }
        if read.is_err() {
            self.index = self.header.record_count;
        }
        Some(read)
    }
}

impl<'a> Records<'a> {
    fn read(&mut self) -> Result<Record<'a>, RecordFault> {
        let begin = self.at;
        let length = varint::read_i32(self.body, &mut self.at)?;
        let length = usize::try_from(length).map_err(|_| RecordFault::Length)?;
        let rest = &self.body[self.at..];
        let record = rest.get(..length).ok_or(RecordFault::Truncated)?;
        self.at += length;
        let mut within = 1; // past the attributes, which are unused
        let timestamp_delta = varint::read_i64(record, &mut within)?;
        let offset_delta = varint::read_i32(record, &mut within)?;
        if offset_delta < 0 || offset_delta > self.header.last_offset_delta {
            return Err(RecordFault::OffsetDelta);
        }
        let key = field(record, &mut within)?;
        let value = field(record, &mut within)?;
        let headers = headers(record, within)?;
        let timestamp = match self.header.timestamp_type() {
            TimestampType::CreateTime => self.header.base_timestamp.wrapping_add(timestamp_delta),
            TimestampType::LogAppendTime => self.header.max_timestamp,
        };
        let offset = self.header.base_offset.saturating_add(i64::from(offset_delta));
        Ok(Record { offset, timestamp, key, value, headers, size: self.at - begin })
    }
}

fn field<'a>(record: &'a [u8], within: &mut usize) -> Result<Option<&'a [u8]>, RecordFault> {
    let length = varint::read_i32(record, within)?;
    if length < 0 {
        return if length == -1 { Ok(None) } else { Err(RecordFault::Length) };
    }
    let rest = record.get(*within..).ok_or(RecordFault::Length)?;
    let field = rest.get(..length as usize).ok_or(RecordFault::Length)?;
    *within += field.len();
    Ok(Some(field))
}

/// Walks them once, so that [`Headers`] can be iterated without errors.
fn headers(record: &[u8], mut within: usize) -> Result<Headers<'_>, RecordFault> {
    let count = varint::read_i32(record, &mut within)?;
    let bytes = &record[within..];
    if count < 0 || count as usize > bytes.len() {
        return Err(RecordFault::Header);
    }
    let mut at = 0;
    for _ in 0..count {
        field(bytes, &mut at)?.ok_or(RecordFault::Header)?;
        field(bytes, &mut at)?;
    }
    if at != bytes.len() {
        return Err(RecordFault::Remainder);
    }
    Ok(Headers { bytes, left: count })
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let mut at = 0;
        let key = field(self.bytes, &mut at).ok()??;
        let value = field(self.bytes, &mut at).ok()?;
        self.bytes = &self.bytes[at..];
        Some((key, value))
    }
}
