//! Making batches, for clients, tests and load generators.

use super::varint;
use super::{
    Attributes, BatchHeader, CONTROL_BIT, HEADER_LEN, LOG_APPEND_TIME_BIT, MAGIC, TRANSACTIONAL_BIT,
    TimestampType, seal,
};
use crate::compression::{self, Compression};

/// A record to be put in a batch. Times are milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewRecord<'a> {
    /// When it was made.
    pub timestamp: i64,
    /// `None` is null.
    pub key: Option<&'a [u8]>,
    /// `None` is null: a tombstone.
    pub value: Option<&'a [u8]>,
    /// Keys and values; a key must be UTF-8 to be read by other clients.
    pub headers: &'a [(&'a [u8], Option<&'a [u8]>)],
}

/// Collects records and writes them as one batch. Fields that a broker sets can be set too, for tests of what reads logs.
///
/// Records are written where they stay: behind the room for the header, and behind the headroom that
/// [`BatchBuilder::with_room`] leaves, so that [`BatchBuilder::finish`] copies nothing that is not compressed.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    compression: Compression,
    attributes: i16,
    base_offset: i64,
    leader_epoch: i32,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    count: i32,
    next_offset_delta: i32,
    /// Bytes of the headroom, or of what the batch is written behind.
    start: usize,
    /// The headroom, the header (once it is written), the records.
    buffer: Vec<u8>,
}

impl BatchBuilder {
    /// An empty batch.
    pub fn new(compression: Compression) -> BatchBuilder {
        BatchBuilder::with_room(compression, Vec::new(), 0)
    }

    /// An empty batch that is written into `buffer`, whose content is dropped, with `headroom` bytes before it.
    pub fn with_room(compression: Compression, mut buffer: Vec<u8>, headroom: usize) -> BatchBuilder {
        buffer.clear();
        buffer.resize(headroom, 0);
        BatchBuilder::behind(compression, buffer)
    }

    /// An empty batch that is written behind what `buffer` holds, which stays: a request in the making. It ends with
    /// [`BatchBuilder::finish`].
    pub fn behind(compression: Compression, mut buffer: Vec<u8>) -> BatchBuilder {
        let start = buffer.len();
        buffer.resize(start + HEADER_LEN, 0);
        BatchBuilder {
            compression,
            attributes: compression.id().into(),
            base_offset: 0,
            leader_epoch: -1,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            base_timestamp: -1,
            max_timestamp: -1,
            count: 0,
            next_offset_delta: 0,
            start,
            buffer,
        }
    }

    /// The batch's place in a log.
    pub fn at(mut self, base_offset: i64, leader_epoch: i32) -> BatchBuilder {
        self.base_offset = base_offset;
        self.leader_epoch = leader_epoch;
        self
    }

    /// Makes it the batch of an idempotent producer.
    pub fn producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> BatchBuilder {
        (self.producer_id, self.producer_epoch, self.base_sequence) = (id, epoch, base_sequence);
        self
    }

    /// Makes it part of a transaction.
    pub fn transactional(mut self) -> BatchBuilder {
        self.attributes |= TRANSACTIONAL_BIT;
        self
    }

    /// Makes it a control batch.
    pub fn control(mut self) -> BatchBuilder {
        self.attributes |= CONTROL_BIT;
        self
    }

    /// Says what its timestamps mean.
    pub fn timestamp_type(mut self, kind: TimestampType) -> BatchBuilder {
        match kind {
            TimestampType::CreateTime => self.attributes &= !LOG_APPEND_TIME_BIT,
            TimestampType::LogAppendTime => self.attributes |= LOG_APPEND_TIME_BIT,
        }
        self
    }

    /// Adds a record with the next offset.
    pub fn push(&mut self, record: NewRecord<'_>) -> &mut BatchBuilder {
        if self.count == 0 {
            self.base_timestamp = record.timestamp;
        }
        let timestamp_delta = record.timestamp.wrapping_sub(self.base_timestamp);
        let body = self.body_len(&record, timestamp_delta);
        let out = &mut self.buffer;
        varint::write(out, body as i64);
        out.push(0);
        varint::write(out, timestamp_delta);
        varint::write(out, self.next_offset_delta.into());
        write_field(out, record.key);
        write_field(out, record.value);
        varint::write(out, record.headers.len() as i64);
        for (key, value) in record.headers {
            write_field(out, Some(key));
            write_field(out, *value);
        }
        self.max_timestamp = self.max_timestamp.max(record.timestamp);
        self.count += 1;
        self.next_offset_delta += 1;
        self
    }

    /// Bytes that [`BatchBuilder::push`] of this record would add to the batch.
    pub fn len_with(&self, record: &NewRecord<'_>) -> usize {
        let base = if self.count == 0 { record.timestamp } else { self.base_timestamp };
        let body = self.body_len(record, record.timestamp.wrapping_sub(base));
        varint::len(body as i64) + body
    }

    fn body_len(&self, record: &NewRecord<'_>, timestamp_delta: i64) -> usize {
        1 + varint::len(timestamp_delta)
            + varint::len(self.next_offset_delta.into())
            + field_len(record.key)
            + field_len(record.value)
            + varint::len(record.headers.len() as i64)
            + record.headers.iter().map(|(k, v)| field_len(Some(k)) + field_len(*v)).sum::<usize>()
    }

    /// Leaves a hole of `count` offsets, as compaction does.
    pub fn skip_offsets(&mut self, count: i32) -> &mut BatchBuilder {
        self.next_offset_delta += count;
        self
    }

    /// How many records it has.
    pub fn count(&self) -> i32 {
        self.count
    }

    /// Bytes of the batch before compression.
    pub fn len_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Writes the batch. An empty one is what compaction leaves of an idempotent producer's last batch.
    pub fn build(&self) -> Vec<u8> {
        let records = &self.buffer[self.start + HEADER_LEN..];
        let mut out = Vec::with_capacity(HEADER_LEN + records.len());
        out.resize(HEADER_LEN, 0);
        compression::compress(self.compression, records, &mut out);
        self.write_header(&mut out);
        out
    }

    /// Ends the batch in its own buffer, behind the headroom. What is compressed goes through `scratch`.
    pub fn finish(mut self, scratch: &mut Vec<u8>) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.buffer);
        if self.compression != Compression::None {
            scratch.clear();
            compression::compress(self.compression, &buffer[self.start + HEADER_LEN..], scratch);
            buffer.truncate(self.start + HEADER_LEN);
            buffer.extend_from_slice(scratch);
        }
        self.write_header(&mut buffer[self.start..]);
        buffer
    }

    /// Writes the header at the start of `out`, which ends with the records as they are sent.
    fn write_header(&self, out: &mut [u8]) {
        let last_offset_delta = (self.next_offset_delta - 1).max(0);
        let header = BatchHeader {
            base_offset: self.base_offset,
            // `seal` writes what it is.
            batch_length: 0,
            partition_leader_epoch: self.leader_epoch,
            magic: MAGIC,
            crc: 0,
            attributes: Attributes(self.attributes),
            last_offset_delta,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
            record_count: self.count,
        };
        seal(out, header);
    }
}

fn field_len(field: Option<&[u8]>) -> usize {
    field.map_or(1, |bytes| varint::len(bytes.len() as i64) + bytes.len())
}

fn write_field(out: &mut Vec<u8>, field: Option<&[u8]>) {
    match field {
        None => varint::write(out, -1),
        Some(bytes) => {
            varint::write(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}
