//! What compaction leaves of a batch: fewer records at the offsets that they had, or the header alone.
//!
//! Offsets, producer and sequence stay as they were (`MemoryRecords.filterTo` of Kafka): a batch keeps its base offset and
//! its last offset delta, so that sequence state can be derived from it, whatever of its records is gone.

use super::scan::RecordSet;
use super::varint;
use super::{
    Attributes, BatchHeader, DELETE_HORIZON_BIT, HEADER_LEN, LOG_APPEND_TIME_BIT, MAGIC, TimestampType, seal,
};
use crate::compression::{self, Compression};

/// A batch without the records that are gone, not compressed yet.
#[derive(Clone, Debug)]
pub struct Retained {
    header: BatchHeader,
    body: Vec<u8>,
}

impl Retained {
    /// Keeps the records of `records` for which `keep` is true; it has an entry for each, and one at least is true. With
    /// `delete_horizon`, that time becomes the batch's base timestamp, which the records' deltas then count from
    /// (KIP-534).
    pub fn new(records: &RecordSet<'_>, keep: &[bool], delete_horizon: Option<i64>) -> Retained {
        let mut header = records.header;
        let shift = delete_horizon.map(|horizon| header.base_timestamp.wrapping_sub(horizon));
        let mut body = Vec::with_capacity(records.body.len());
        let (mut at, mut count, mut max_timestamp) = (0, 0, i64::MIN);
        for (record, keep) in records.iter().zip(keep) {
            // The caller has walked them already; what cannot be read was not kept.
            let Ok(record) = record else { break };
            let raw = &records.body[at..at + record.size];
            at += record.size;
            if !keep {
                continue;
            }
            count += 1;
            max_timestamp = max_timestamp.max(record.timestamp);
            match shift {
                None => body.extend_from_slice(raw),
                Some(shift) => move_timestamp(raw, shift, &mut body),
            }
        }
        assert!(count > 0, "a batch of which nothing is left is emptied or dropped");
        header.record_count = count;
        if header.timestamp_type() == TimestampType::CreateTime {
            header.max_timestamp = max_timestamp;
        }
        if let Some(horizon) = delete_horizon {
            header.base_timestamp = horizon;
            header.attributes = Attributes(header.attributes.0 | DELETE_HORIZON_BIT);
        }
        Retained { header, body }
    }

    /// The batch, compressed with the codec that it had.
    pub fn build(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_LEN];
        let codec = self.header.compression().unwrap_or(Compression::None);
        compression::compress(codec, &self.body, &mut out);
        seal(&mut out, self.header);
        out
    }
}

/// The header alone, as compaction keeps it of the last batch of a producer: no records, all else says what it said.
pub fn emptied(header: &BatchHeader) -> Vec<u8> {
    let kept = header.attributes.0 & (LOG_APPEND_TIME_BIT | super::TRANSACTIONAL_BIT | super::CONTROL_BIT);
    let header = BatchHeader {
        attributes: Attributes(kept),
        base_timestamp: header.max_timestamp,
        record_count: 0,
        ..*header
    };
    let mut out = vec![0; HEADER_LEN];
    seal(&mut out, header);
    out
}

/// Copies a record whose timestamp delta counts from elsewhere.
fn move_timestamp(raw: &[u8], shift: i64, out: &mut Vec<u8>) {
    let mut at = 0;
    let read = (|| {
        varint::read_i32(raw, &mut at).ok()?;
        let attributes = *raw.get(at)?;
        at += 1;
        let delta = varint::read_i64(raw, &mut at).ok()?;
        Some((attributes, delta))
    })();
    let (attributes, delta) = read.expect("a record that was read before");
    let (delta, rest) = (delta.wrapping_add(shift), &raw[at..]);
    varint::write(out, (1 + varint::len(delta) + rest.len()) as i64);
    out.push(attributes);
    varint::write(out, delta);
    out.extend_from_slice(rest);
}

impl BatchHeader {
    /// Writes it over the first bytes of `batch`, with the length given and without the CRC.
    pub(super) fn write(&self, batch_length: i32, batch: &mut [u8]) {
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            batch[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&self.base_offset.to_be_bytes());
        put(&batch_length.to_be_bytes());
        put(&self.partition_leader_epoch.to_be_bytes());
        put(&MAGIC.to_be_bytes());
        put(&[0; 4]);
        put(&self.attributes.0.to_be_bytes());
        put(&self.last_offset_delta.to_be_bytes());
        put(&self.base_timestamp.to_be_bytes());
        put(&self.max_timestamp.to_be_bytes());
        put(&self.producer_id.to_be_bytes());
        put(&self.producer_epoch.to_be_bytes());
        put(&self.base_sequence.to_be_bytes());
        put(&self.record_count.to_be_bytes());
        assert_eq!(at, HEADER_LEN);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{BatchBuilder, Batches, NewRecord, RawBatch};
    use super::*;

    fn parse(bytes: &[u8]) -> RawBatch<'_> {
        let mut batches = Batches::new(bytes);
        let batch = batches.next().unwrap().unwrap();
        assert!(batch.crc_matches());
        assert_eq!(batches.position(), bytes.len());
        batch
    }

    fn batch(codec: Compression) -> Vec<u8> {
        let mut builder = BatchBuilder::new(codec).at(70, 4).producer(9, 2, 33);
        for i in 0..6u8 {
            let (key, value) = ([b'k', i], [i; 40]);
            let timestamp = 1000 + 300 * i64::from(i % 4);
            let value = (i != 2).then_some(&value[..]);
            builder.push(NewRecord { timestamp, key: Some(&key), value, headers: &[(b"h", Some(b"v"))] });
        }
        builder.build()
    }

    type Seen = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>);

    fn records(bytes: &[u8]) -> Vec<Seen> {
        let set = parse(bytes).records(1 << 20).unwrap();
        let owned = |field: Option<&[u8]>| field.map(<[u8]>::to_vec);
        let one = |r: super::super::Record<'_>| (r.offset, r.timestamp, owned(r.key), owned(r.value));
        set.iter().map(|record| one(record.unwrap())).collect()
    }

    #[test]
    fn what_is_kept_is_as_it_was_at_its_offset() {
        for codec in Compression::ALL {
            let source = batch(codec);
            let before = records(&source);
            for mask in 1..64u32 {
                let keep: Vec<bool> = (0..6).map(|i| mask & 1 << i != 0).collect();
                let set = parse(&source).records(1 << 20).unwrap();
                let expected: Vec<Seen> = before
                    .iter()
                    .zip(&keep)
                    .filter(|(_, keep)| **keep)
                    .map(|(seen, _)| seen.clone())
                    .collect();
                for horizon in [None, Some(5_000_000_000), Some(3)] {
                    let rewritten = Retained::new(&set, &keep, horizon).build();
                    assert_eq!(records(&rewritten), expected, "{codec} {mask:b} {horizon:?}");
                    let (old, new) = (parse(&source).header, parse(&rewritten).header);
                    assert_eq!(new.attributes.has_delete_horizon(), horizon.is_some());
                    assert_eq!(new.base_timestamp, horizon.unwrap_or(old.base_timestamp));
                    let latest = expected.iter().map(|seen| seen.1).max();
                    assert_eq!(Some(new.max_timestamp), latest);
                    let same = |h: BatchHeader| {
                        let producer = (h.producer_id, h.producer_epoch, h.base_sequence, h.last_sequence());
                        (
                            h.base_offset,
                            h.last_offset_delta,
                            h.partition_leader_epoch,
                            producer,
                            h.compression(),
                        )
                    };
                    assert_eq!(same(new), same(old));
                }
            }
        }
    }

    #[test]
    fn an_emptied_batch_still_says_whose_it_was() {
        let source = batch(Compression::Zstd);
        let old = parse(&source).header;
        let bytes = emptied(&old);
        let new = parse(&bytes).header;
        assert_eq!(bytes.len(), HEADER_LEN);
        assert_eq!((new.record_count, new.compression()), (0, Ok(Compression::None)));
        assert_eq!((new.base_offset, new.last_offset(), new.last_sequence()), (70, 75, old.last_sequence()));
        assert_eq!((new.producer_id, new.producer_epoch, new.max_timestamp), (9, 2, old.max_timestamp));
        assert!(records(&bytes).is_empty());
        // As the builder's, which Kafka's own tools were shown.
        let mut builder = BatchBuilder::new(Compression::None).at(70, 4).producer(9, 2, 33);
        builder.skip_offsets(6);
        let built = parse(&builder.build()).header;
        assert_eq!((built.last_offset(), built.record_count), (new.last_offset(), new.record_count));
    }
}
