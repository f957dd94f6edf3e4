//! The checkpoint file: for each partition, how far its segments hold everything, and what no segment tells.
//!
//! Little-endian; `docs/FORMATS.md` says it byte by byte. A file is written under a `.tmp` name, synced, renamed, and
//! its directory synced: what bears a final name was whole once, so a bad one is corruption.

use flumen_core::epochs::{EpochCache, EpochStart};
use flumen_core::journal::hash;
use flumen_core::limits::SEGMENTS_MAX;
use flumen_core::log::{Log, Segment};
use flumen_core::producer::{BatchState, ProducerSnapshot, ProducerState, WINDOW_BATCHES};
use flumen_core::types::{
    Incarnation, LeaderEpoch, Lsn, Offset, PartitionId, ProducerEpoch, ProducerId, ShardId, Timestamp,
    TopicId,
};

const MAGIC: &[u8; 8] = b"FLUMCKPT";
const VERSION: u16 = 1;
/// What is written once a partition was compacted: each partition ends with how far.
const VERSION_COMPACTED: u16 = 2;
const HEADER_LEN: usize = 48;
/// The shard of a checkpoint that recovery wrote for all.
pub(crate) const SHARD_ALL: u16 = u16::MAX;

/// One partition in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) id: PartitionId,
    /// Groups up to this one, and of earlier incarnations, hold nothing that is not in the segments.
    pub(crate) incarnation: Incarnation,
    pub(crate) lsn: Lsn,
    pub(crate) high_watermark: Offset,
    /// Offsets and segments as they stand on disk.
    pub(crate) log: Log,
    /// How far compaction came: the first dirty offset. `None`: never, so that offsets have no gap.
    pub(crate) cleaned: Option<Offset>,
    pub(crate) epochs: Vec<EpochStart>,
    pub(crate) producers: ProducerSnapshot,
    /// Acknowledged data of it is damaged, in the journal of `incarnation` or in a segment: it is not served.
    pub(crate) offline: Option<String>,
}

/// A checkpoint file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) incarnation: Incarnation,
    pub(crate) shard: u16,
    pub(crate) number: u64,
    /// Highest LSN known durable in this incarnation's journal of the shard.
    pub(crate) durable_lsn: Lsn,
    pub(crate) records: Vec<Record>,
}

/// Name of a checkpoint file.
pub(crate) fn checkpoint_name(incarnation: Incarnation, shard: u16, number: u64) -> String {
    match shard {
        SHARD_ALL => format!("{incarnation}-all-{number}"),
        shard => format!("{incarnation}-{shard}-{number}"),
    }
}

/// Incarnation, shard and number from a file's name.
pub(crate) fn parse_name(name: &str) -> Option<(Incarnation, u16, u64)> {
    let mut parts = name.split('-');
    let incarnation = parts.next()?.parse().ok()?;
    let shard = match parts.next()? {
        "all" => SHARD_ALL,
        shard => shard.parse().ok().filter(|shard| *shard != SHARD_ALL)?,
    };
    let number = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some((Incarnation(incarnation), shard, number))
}

/// What a checkpoint file says in short, for whoever looks at a data folder from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointSummary {
    /// Of which start.
    pub incarnation: Incarnation,
    /// Of which shard; `None` for the one that recovery wrote for all.
    pub shard: Option<ShardId>,
    /// Highest LSN known durable in that journal.
    pub durable_lsn: Lsn,
    /// How many partitions it knows.
    pub partitions: usize,
    /// Partitions that are not served, each with the reason.
    pub offline: Vec<(PartitionId, String)>,
}

/// Checks the content of a file of the folder of checkpoints. `None`: a file that was never finished, of which nothing
/// depends. The error says what is wrong.
pub fn verify_checkpoint(name: &str, bytes: &[u8]) -> Result<Option<CheckpointSummary>, &'static str> {
    let Some(named) = parse_name(name) else {
        return if name.ends_with(".tmp") { Ok(None) } else { Err("the name is not that of a checkpoint") };
    };
    let found = Checkpoint::decode(bytes)?;
    if (found.incarnation, found.shard, found.number) != named {
        return Err("it bears another's name");
    }
    let offline = found.records.iter().filter_map(|record| Some((record.id, record.offline.clone()?)));
    Ok(Some(CheckpointSummary {
        incarnation: found.incarnation,
        shard: (found.shard != SHARD_ALL).then_some(ShardId(found.shard)),
        durable_lsn: found.durable_lsn,
        partitions: found.records.len(),
        offline: offline.collect(),
    }))
}

impl Checkpoint {
    /// The bytes of the file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + self.records.len() * 256);
        let compacted = self.records.iter().any(|record| record.cleaned.is_some());
        let version = if compacted { VERSION_COMPACTED } else { VERSION };
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&self.shard.to_le_bytes());
        out.extend_from_slice(&(self.records.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.durable_lsn.0.to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        for record in &self.records {
            record.encode(&mut out);
            if compacted {
                out.extend_from_slice(&record.cleaned.map_or(-1, |at| at.0).to_le_bytes());
            }
        }
        let sum = hash(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads a file. The error says what does not fit.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Checkpoint, &'static str> {
        if bytes.len() < HEADER_LEN + 8 || &bytes[..8] != MAGIC {
            return Err("not a checkpoint");
        }
        let (content, sum) = bytes.split_at(bytes.len() - 8);
        if hash(content).to_le_bytes() != sum {
            return Err("the checksum does not fit");
        }
        let mut reader = Reader { bytes: &content[8..] };
        let version = reader.u16()?;
        if ![VERSION, VERSION_COMPACTED].contains(&version) {
            return Err("a format of a later release");
        }
        let shard = reader.u16()?;
        let count = reader.u32()?;
        let incarnation = Incarnation(reader.u64()?);
        let number = reader.u64()?;
        let durable_lsn = Lsn(reader.u64()?);
        reader.u64()?;
        let mut records = Vec::new();
        for _ in 0..count {
            let mut record = Record::decode(&mut reader)?;
            if version == VERSION_COMPACTED {
                record.cleaned = Some(Offset(reader.i64()?)).filter(|at| at.0 >= 0);
            }
            records.push(record);
        }
        if !reader.bytes.is_empty() {
            return Err("bytes after the last record");
        }
        Ok(Checkpoint { incarnation, shard, number, durable_lsn, records })
    }
}

impl Record {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.topic.0);
        out.extend_from_slice(&self.id.partition.to_le_bytes());
        out.push(u8::from(self.producers.written));
        out.extend_from_slice(&[0; 3]);
        for value in [self.incarnation.0, self.lsn.0] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        for offset in [self.high_watermark, self.log.log_start(), self.log.log_end()] {
            out.extend_from_slice(&offset.0.to_le_bytes());
        }
        let segments = self.log.segments();
        let reason = self.offline.as_deref().unwrap_or_default();
        // One producer that no table takes back must not cost all the others: it is left out.
        let sound = |producer: &&ProducerState| {
            let ProducerState { producer_id, epoch, seen, .. } = **producer;
            ProducerState::from_parts(producer_id, epoch, seen, producer.window()).is_some()
        };
        let producers: Vec<&ProducerState> = self.producers.producers.iter().filter(sound).collect();
        for count in [segments.len(), self.epochs.len(), producers.len(), reason.len()] {
            out.extend_from_slice(&(count as u32).to_le_bytes());
        }
        for segment in segments {
            out.extend_from_slice(&segment.base_offset.0.to_le_bytes());
            out.extend_from_slice(&segment.size.to_le_bytes());
            for time in [segment.max_timestamp, segment.first_timestamp, segment.created_ms] {
                out.extend_from_slice(&time.to_le_bytes());
            }
        }
        for entry in &self.epochs {
            out.extend_from_slice(&entry.epoch.0.to_le_bytes());
            out.extend_from_slice(&entry.start_offset.0.to_le_bytes());
        }
        for producer in producers {
            encode_producer(producer, out);
        }
        out.extend_from_slice(reason.as_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Record, &'static str> {
        let topic = TopicId(reader.array()?);
        let partition = reader.u32()? as i32;
        let written = reader.u32()? != 0;
        let incarnation = Incarnation(reader.u64()?);
        let lsn = Lsn(reader.u64()?);
        let high_watermark = Offset(reader.i64()?);
        let log_start = Offset(reader.i64()?);
        let log_end = Offset(reader.i64()?);
        let (segments, epochs, producers) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let reason = reader.u32()? as usize;
        if segments as usize > SEGMENTS_MAX {
            return Err("too many segments");
        }
        let segments = (0..segments).map(|_| decode_segment(reader)).collect::<Result<Vec<_>, _>>()?;
        let epochs = (0..epochs).map(|_| decode_epoch(reader)).collect::<Result<Vec<_>, _>>()?;
        let producers = (0..producers).map(|_| decode_producer(reader)).collect::<Result<Vec<_>, _>>()?;
        let reason = reader.text(reason)?;
        let log = Log::restore(log_start, log_end, segments).ok_or("segments that do not fit together")?;
        EpochCache::restore(epochs.clone()).map_err(|_| "leader epochs out of order")?;
        Ok(Record {
            id: PartitionId { topic, partition },
            incarnation,
            lsn,
            high_watermark,
            log,
            cleaned: None,
            epochs,
            producers: ProducerSnapshot { written, producers },
            offline: (!reason.is_empty()).then_some(reason),
        })
    }
}

fn encode_producer(producer: &ProducerState, out: &mut Vec<u8>) {
    let window = producer.window();
    out.extend_from_slice(&producer.producer_id.0.to_le_bytes());
    out.extend_from_slice(&producer.seen.0.to_le_bytes());
    out.extend_from_slice(&producer.epoch.0.to_le_bytes());
    out.extend_from_slice(&(window.len() as u16).to_le_bytes());
    for batch in window {
        out.extend_from_slice(&batch.last_sequence.to_le_bytes());
        out.extend_from_slice(&batch.offset_delta.to_le_bytes());
        out.extend_from_slice(&batch.last_offset.0.to_le_bytes());
        out.extend_from_slice(&batch.timestamp.0.to_le_bytes());
    }
}

fn decode_producer(reader: &mut Reader<'_>) -> Result<ProducerState, &'static str> {
    let id = ProducerId(reader.i64()?);
    let seen = Timestamp(reader.i64()?);
    let epoch = ProducerEpoch(reader.u16()? as i16);
    let count = usize::from(reader.u16()?);
    let mut window = [BatchState::default(); WINDOW_BATCHES];
    let window = window.get_mut(..count).ok_or("a window that is too long")?;
    for batch in window.iter_mut() {
        *batch = BatchState {
            last_sequence: reader.u32()? as i32,
            offset_delta: reader.u32()? as i32,
            last_offset: Offset(reader.i64()?),
            timestamp: Timestamp(reader.i64()?),
        };
    }
    ProducerState::from_parts(id, epoch, seen, window).ok_or("a producer that cannot be")
}

fn decode_segment(reader: &mut Reader<'_>) -> Result<Segment, &'static str> {
    Ok(Segment {
        base_offset: Offset(reader.i64()?),
        size: reader.u64()?,
        max_timestamp: reader.i64()?,
        first_timestamp: reader.i64()?,
        created_ms: reader.i64()?,
    })
}

fn decode_epoch(reader: &mut Reader<'_>) -> Result<EpochStart, &'static str> {
    Ok(EpochStart { epoch: LeaderEpoch(reader.u32()? as i32), start_offset: Offset(reader.i64()?) })
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (first, rest) = self.bytes.split_first_chunk::<N>().ok_or("it ends too early")?;
        self.bytes = rest;
        Ok(*first)
    }

    fn text(&mut self, len: usize) -> Result<String, &'static str> {
        let (text, rest) = self.bytes.split_at_checked(len).ok_or("it ends too early")?;
        self.bytes = rest;
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn u16(&mut self) -> Result<u16, &'static str> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, &'static str> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Result<i64, &'static str> {
        self.array().map(i64::from_le_bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        let segment = |base, size| Segment { size, ..Segment::new(Offset(base), 77) };
        let batch =
            |last| BatchState { last_sequence: last, last_offset: Offset(last.into()), ..Default::default() };
        let producer = ProducerState::from_parts(
            ProducerId(4),
            ProducerEpoch(2),
            Timestamp(99),
            &[batch(10), batch(11)],
        );
        let record = |partition, offline: Option<&str>| Record {
            id: PartitionId { topic: TopicId([3; 16]), partition },
            incarnation: Incarnation(7),
            lsn: Lsn(12),
            high_watermark: Offset(20),
            log: Log::restore(Offset(5), Offset(20), vec![segment(0, 400), segment(10, 300)]).unwrap(),
            cleaned: None,
            epochs: vec![EpochStart { epoch: LeaderEpoch(1), start_offset: Offset(5) }],
            producers: ProducerSnapshot { written: true, producers: producer.into_iter().collect() },
            offline: offline.map(str::to_owned),
        };
        let records = vec![record(0, None), record(1, Some("damaged at 4096"))];
        Checkpoint { incarnation: Incarnation(7), shard: 1, number: 3, durable_lsn: Lsn(14), records }
    }

    #[test]
    fn round_trips_and_every_flipped_bit_is_seen() {
        let plain = checkpoint();
        let mut compacted = checkpoint();
        compacted.records[1].cleaned = Some(Offset(10));
        assert_eq!((plain.encode()[8], compacted.encode()[8]), (1, 2));
        every_flipped_bit_is_seen(&plain);
        every_flipped_bit_is_seen(&compacted);
    }

    fn every_flipped_bit_is_seen(checkpoint: &Checkpoint) {
        let mut bytes = checkpoint.encode();
        assert_eq!(Checkpoint::decode(&bytes).as_ref(), Ok(checkpoint));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Checkpoint::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for len in 0..bytes.len() {
            assert!(Checkpoint::decode(&bytes[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn what_a_file_says_is_checked_against_its_name() {
        let bytes = checkpoint().encode();
        let summary = verify_checkpoint("7-1-3", &bytes).unwrap().unwrap();
        assert_eq!((summary.incarnation, summary.shard), (Incarnation(7), Some(ShardId(1))));
        assert_eq!((summary.durable_lsn, summary.partitions), (Lsn(14), 2));
        let damaged = PartitionId { topic: TopicId([3; 16]), partition: 1 };
        assert_eq!(summary.offline, [(damaged, "damaged at 4096".to_owned())]);
        for name in ["7-1-4", "7-all-3", "8-1-3", "7-1"] {
            assert!(verify_checkpoint(name, &bytes).is_err(), "{name}");
        }
        assert_eq!(verify_checkpoint("7-1-3.tmp", &bytes[..20]), Ok(None));
        assert!(verify_checkpoint("7-1-3", &bytes[..20]).is_err());
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for (shard, name) in [(SHARD_ALL, "7-all-0"), (12, "7-12-0")] {
            assert_eq!(checkpoint_name(Incarnation(7), shard, 0), name);
            assert_eq!(parse_name(name), Some((Incarnation(7), shard, 0)));
        }
        for name in ["", "7", "7-1", "7-1-2.tmp", "7-65535-1", "a-1-1", "7-1-1-1"] {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }
}
