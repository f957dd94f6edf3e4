//! One partition in recovery: its state at the checkpoint, and what journals add to it.

use std::collections::BTreeMap;

use flumen_core::epochs::EpochCache;
use flumen_core::journal::{Entry, EntryKind, decode_extent};
use flumen_core::log::{Incoming, Log, Placement};
use flumen_core::producer::ProducerTable;
use flumen_core::types::{Incarnation, LeaderEpoch, Lsn, Offset, PartitionId, ShardId};
use flumen_wire::batch::{BatchHeader, HEADER_LEN};
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::{KnownPartition, RecoveredPartition, Recovery};
use crate::checkpoint::Record;
use crate::disk::{BLOCK, Buffer, Disk, File, OpenMode};
use crate::partition::segment_path;
use flumen_core::limits::RECOVERY_DEPTH;

/// Bytes that a segment lacks.
struct Missing {
    segment_base: Offset,
    position: u64,
    bytes: Vec<u8>,
}

/// Bulk that an extent says is there.
pub(super) struct ExtentSeen {
    pub(super) segment_base: Offset,
    pub(super) position: u64,
    /// Bytes that are in the file, without the inline tail.
    pub(super) length: u64,
    pub(super) headers: Vec<u8>,
}

/// See the module.
pub(super) struct Replay {
    pub(super) id: PartitionId,
    pub(super) known: KnownPartition,
    /// What the newest checkpoint says.
    record: Option<Record>,
    /// The incarnation of the newest checkpoint for all: a partition that it does not have was made later.
    base: Incarnation,
    pub(super) log: Log,
    /// How far compaction came.
    cleaned: Option<Offset>,
    pub(super) producers: ProducerTable,
    epochs: EpochCache,
    missing: Vec<Missing>,
    pub(super) extents: Vec<ExtentSeen>,
    /// Segments that were written to: their index files are old.
    pub(super) touched: Vec<Offset>,
    /// Segments that were cut.
    pub(super) cut: Vec<Offset>,
    /// The shard in whose journal it was, in the last incarnation of which a journal speaks of it.
    pub(super) shard: Option<(Incarnation, ShardId)>,
    pub(super) directory_changed: bool,
    /// Segments that bytes belong to and that are not there, each with what the disk said: unlinked below a log start
    /// that a later entry tells, or lost.
    pub(super) absent: Vec<(Offset, String)>,
    pub(super) offline: Option<String>,
    /// The journal that is corrupt; `None` where the disk only refused.
    corrupt: Option<Incarnation>,
    pub(super) has_record: bool,
}

impl Replay {
    pub(super) fn new(
        id: PartitionId,
        known: KnownPartition,
        record: Option<Record>,
        base: Incarnation,
        expiration_ms: i64,
        now_ms: i64,
    ) -> Replay {
        let mut replay = Replay {
            id,
            known,
            log: Log::new(Offset(0), now_ms),
            cleaned: record.as_ref().and_then(|record| record.cleaned),
            producers: ProducerTable::new(expiration_ms),
            epochs: EpochCache::new(),
            missing: Vec::new(),
            extents: Vec::new(),
            touched: Vec::new(),
            cut: Vec::new(),
            shard: None,
            directory_changed: false,
            absent: Vec::new(),
            offline: None,
            corrupt: None,
            // Incarnation 0 stands for a partition that was offline before it ever had one (`frozen`).
            has_record: record.as_ref().is_some_and(|record| record.incarnation.0 > 0),
            record: None,
            base,
        };
        if let Some(record) = &record {
            replay.log = record.log.clone();
            replay.offline = record.offline.clone();
            replay.corrupt = record.offline.as_ref().map(|_| record.incarnation);
            let restored = ProducerTable::restore(expiration_ms, &record.producers);
            let epochs = EpochCache::restore(record.epochs.clone());
            match (restored, epochs) {
                (Ok(producers), Ok(epochs)) => (replay.producers, replay.epochs) = (producers, epochs),
                _ => replay.offline = Some("its checkpoint holds what cannot be".to_owned()),
            }
        }
        replay.record = record;
        replay
    }

    /// Whether groups of this incarnation may hold something of it.
    pub(super) fn needs(&self, incarnation: Incarnation) -> bool {
        let first = self.record.as_ref().map_or(self.base, |record| record.incarnation);
        self.corrupt.is_none() && first <= incarnation
    }

    /// The first group of an earlier incarnation's journals that its checkpoint does not cover; `None` where nothing of it
    /// is in them.
    pub(super) fn first_needed(&self, incarnation: Incarnation) -> Option<Lsn> {
        if !self.needs(incarnation) {
            return None;
        }
        match &self.record {
            Some(record) if record.incarnation == incarnation => Some(Lsn(record.lsn.0 + 1)),
            // It was offline ever since.
            Some(record) if record.incarnation.0 > 0 => None,
            _ => Some(Lsn(1)),
        }
    }

    /// Whether its checkpoint does not cover this group.
    pub(super) fn is_past(&self, incarnation: Incarnation, lsn: Lsn) -> bool {
        match &self.record {
            Some(record) => (incarnation, lsn) > (record.incarnation, record.lsn),
            None => incarnation >= self.base,
        }
    }

    /// Whether journals of this incarnation must be kept for it.
    pub(super) fn pins(&self, incarnation: Incarnation) -> bool {
        match (&self.offline, self.corrupt) {
            (None, _) => false,
            (Some(_), Some(corrupt)) => corrupt == incarnation,
            (Some(_), None) => self.needs(incarnation),
        }
    }

    /// Returns whether that is news.
    pub(super) fn take_offline(&mut self, reason: String, corrupt: Option<Incarnation>) -> bool {
        if self.offline.is_some() {
            return false;
        }
        self.offline = Some(reason);
        self.corrupt = corrupt;
        self.missing.clear();
        true
    }

    /// Takes one entry of a group. The error says what does not fit.
    pub(super) fn apply(&mut self, entry: &Entry, body: &[u8], now_ms: i64) -> Result<(), String> {
        match entry.kind {
            EntryKind::Data => self.apply_data(entry, body, now_ms),
            EntryKind::Relog if entry.last_offset < self.log.log_end() => Ok(()),
            EntryKind::Relog => self.apply_data(entry, body, now_ms),
            EntryKind::Extent => self.apply_extent(entry, body, now_ms),
            EntryKind::Truncate => self.apply_truncate(entry),
            EntryKind::LogStart => {
                if entry.base_offset > self.log.log_end() {
                    return Err(format!("log start {} past the log's end", entry.base_offset));
                }
                self.log.advance_log_start(entry.base_offset);
                self.epochs.prune_below(self.log.log_start());
                Ok(())
            }
            EntryKind::Drop => {
                self.log = Log::new(Offset(0), now_ms);
                self.cleaned = None;
                self.producers.truncate_to(Offset(0));
                self.epochs = EpochCache::new();
                self.missing.clear();
                self.extents.clear();
                self.directory_changed = true;
                self.cut.push(Offset(0));
                Ok(())
            }
        }
    }

    fn apply_data(&mut self, entry: &Entry, body: &[u8], now_ms: i64) -> Result<(), String> {
        let mut position = entry.position;
        let mut next = entry.base_offset;
        for batch in batches_of(body) {
            let batch = batch?;
            let header = BatchHeader::parse(batch).map_err(|error| format!("{error:?}"))?;
            next = self.replay(entry, &header, next, position, now_ms)?;
            position += batch.len() as u64;
        }
        if next.0 != entry.last_offset.0 + 1 || position != entry.position + entry.length {
            return Err("the entry's batches are not those it names".to_owned());
        }
        self.miss(entry.segment_base, entry.position, body);
        Ok(())
    }

    fn apply_extent(&mut self, entry: &Entry, body: &[u8], now_ms: i64) -> Result<(), String> {
        let extent = decode_extent(body).map_err(|error| error.to_string())?;
        let mut position = entry.position;
        let mut next = entry.base_offset;
        for header in extent.headers.chunks_exact(HEADER_LEN) {
            let header = BatchHeader::parse(header).map_err(|error| format!("{error:?}"))?;
            next = self.replay(entry, &header, next, position, now_ms)?;
            position += header.size() as u64;
        }
        let end = entry.position + entry.length;
        if next.0 != entry.last_offset.0 + 1 || position != end || extent.tail.len() as u64 > entry.length {
            return Err("the extent's batches are not those it names".to_owned());
        }
        let tail_at = end - extent.tail.len() as u64;
        self.miss(entry.segment_base, tail_at, extent.tail);
        self.note_touched(entry.segment_base);
        self.extents.push(ExtentSeen {
            segment_base: entry.segment_base,
            position: entry.position,
            length: tail_at - entry.position,
            headers: extent.headers.to_vec(),
        });
        Ok(())
    }

    /// Takes one batch into the log's state. Returns the offset after it.
    fn replay(
        &mut self,
        entry: &Entry,
        header: &BatchHeader,
        expected: Offset,
        position: u64,
        now_ms: i64,
    ) -> Result<Offset, String> {
        if header.base_offset != expected.0 || header.partition_leader_epoch != entry.leader_epoch.0 {
            return Err(format!("batch at offset {} where {expected} follows", header.base_offset));
        }
        let placement = Placement {
            base_offset: expected,
            last_offset: Offset(header.last_offset()),
            segment_base: entry.segment_base,
            position,
            rolled: false,
        };
        let incoming = Incoming {
            size: header.size() as u64,
            records: i64::from(header.last_offset_delta) + 1,
            max_timestamp: header.max_timestamp,
        };
        let end = self.log.log_end();
        self.log
            .replay(&placement, &incoming, now_ms)
            .map_err(|reason| format!("batch at offset {expected} of a log that ends at {end}: {reason}"))?;
        self.epochs.assign(LeaderEpoch(header.partition_leader_epoch), expected);
        self.producers.apply_recovered(now_ms, header);
        Ok(Offset(header.next_offset()))
    }

    fn apply_truncate(&mut self, entry: &Entry) -> Result<(), String> {
        let (end, base, position) = (entry.base_offset, entry.segment_base, entry.position);
        self.log.truncate(end, base, position).ok_or("truncation to a place that the log does not have")?;
        self.epochs.truncate_to(end);
        self.producers.truncate_to(end);
        self.missing.retain_mut(|missing| {
            if missing.segment_base == base && missing.position + missing.bytes.len() as u64 > position {
                missing.bytes.truncate(position.saturating_sub(missing.position) as usize);
            }
            missing.segment_base <= base && !missing.bytes.is_empty()
        });
        self.directory_changed = true;
        self.note_touched(base);
        self.cut.push(base);
        Ok(())
    }

    fn note_touched(&mut self, base: Offset) {
        if !self.touched.contains(&base) {
            self.touched.push(base);
        }
    }

    fn miss(&mut self, segment_base: Offset, position: u64, bytes: &[u8]) {
        self.note_touched(segment_base);
        if bytes.is_empty() {
            return;
        }
        // Neighbours are written together.
        if let Some(last) = self.missing.last_mut()
            && last.segment_base == segment_base
            && last.position + last.bytes.len() as u64 == position
        {
            last.bytes.extend_from_slice(bytes);
            return;
        }
        self.missing.push(Missing { segment_base, position, bytes: bytes.to_vec() });
    }

    /// What the new checkpoint says of it.
    pub(super) fn record(&self, incarnation: Incarnation) -> Record {
        if self.offline.is_some() {
            return self.frozen();
        }
        Record {
            id: self.id,
            incarnation,
            lsn: Lsn(0),
            high_watermark: self.log.log_end(),
            log: self.log.clone(),
            cleaned: self.cleaned,
            epochs: self.epochs.entries().to_vec(),
            producers: self.producers.snapshot(),
            offline: None,
        }
    }

    /// What checkpoints say while it is offline: what the last one said, and that its data is corrupt where it is.
    fn frozen(&self) -> Record {
        let mut record = self.record.clone().unwrap_or_else(|| Record {
            id: self.id,
            incarnation: Incarnation(0),
            lsn: Lsn(0),
            high_watermark: Offset(0),
            log: Log::new(Offset(0), 0),
            cleaned: None,
            epochs: Vec::new(),
            producers: Default::default(),
            offline: None,
        });
        if let Some(incarnation) = self.corrupt {
            record.incarnation = incarnation;
            record.offline = self.offline.clone();
        }
        record
    }

    pub(super) fn into_recovered(self) -> RecoveredPartition {
        let frozen = self.offline.is_some().then(|| Box::new(self.frozen()));
        RecoveredPartition {
            id: self.id,
            directory: self.known.directory,
            offline: self.offline,
            config: self.known.config,
            leader_epoch: self.known.leader_epoch,
            log: self.log,
            cleaned: self.cleaned,
            producers: self.producers,
            epochs: self.epochs,
            frozen,
        }
    }
}

/// The batches of a body, by their lengths, which must fill it.
pub(super) fn batches_of(body: &[u8]) -> impl Iterator<Item = Result<&[u8], String>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let size =
            BatchHeader::parse(rest).ok().map(|header| header.size()).filter(|size| *size <= rest.len());
        let Some(size) = size else {
            rest = &[];
            return Some(Err("a batch that its entry does not hold whole".to_owned()));
        };
        let (batch, after) = rest.split_at(size);
        rest = after;
        Some(Ok(batch))
    })
}

impl<D: Disk> Recovery<'_, D> {
    /// Writes what segments lack, several partitions at a time. What fails takes its partition offline.
    pub(super) async fn flush_all(&mut self) {
        let mut work: BTreeMap<PartitionId, (String, Vec<Missing>)> = BTreeMap::new();
        for replay in self.replays.values_mut().filter(|replay| !replay.missing.is_empty()) {
            let missing = std::mem::take(&mut replay.missing);
            work.insert(replay.id, (replay.known.directory.clone(), missing));
        }
        let mut failures = Vec::new();
        let mut queue = work.into_iter();
        let mut tasks = FuturesUnordered::new();
        loop {
            while tasks.len() < RECOVERY_DEPTH {
                let Some((id, (directory, missing))) = queue.next() else { break };
                let disk = self.disk;
                tasks.push(async move { (id, flush(disk, &directory, missing).await) });
            }
            match tasks.next().await {
                None => break,
                Some((id, Ok(flushed))) => {
                    self.written_bytes += flushed.written;
                    if let Some(replay) = self.replays.get_mut(&id) {
                        replay.directory_changed |= flushed.created;
                        replay.absent.extend(flushed.absent);
                    }
                }
                Some((id, Err(reason))) => failures.push((id, reason)),
            }
        }
        drop(tasks);
        for (id, reason) in failures {
            self.offline(id, reason, None);
        }
    }
}

/// What writing into a partition's segments came to.
#[derive(Default)]
struct Flushed {
    written: u64,
    created: bool,
    absent: Vec<(Offset, String)>,
}

/// Writes pieces into a partition's segments.
async fn flush<D: Disk>(disk: &D, directory: &str, missing: Vec<Missing>) -> Result<Flushed, String> {
    let mut flushed = Flushed::default();
    let mut open: Option<(Offset, D::File)> = None;
    for piece in missing {
        let path = format!("{}.log", segment_path(directory, piece.segment_base));
        let failed = |error: std::io::Error| format!("{path} at position {}: {error}", piece.position);
        if open.as_ref().is_none_or(|(base, _)| *base != piece.segment_base) {
            let mode = OpenMode { create_new: false, write: true, synchronous: false };
            let file = match disk.open(&path, mode).await {
                // A segment that was rolled just before the crash may not have reached its directory.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && piece.position == 0 => {
                    flushed.created = true;
                    disk.open(&path, OpenMode { create_new: true, ..mode }).await
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    flushed.absent.push((piece.segment_base, failed(error)));
                    continue;
                }
                opened => opened,
            };
            open = Some((piece.segment_base, file.map_err(failed)?));
        }
        let Some((_, file)) = &open else { continue };
        flushed.written += piece.bytes.len() as u64;
        write_piece(disk, file, piece.position, &piece.bytes).await.map_err(failed)?;
    }
    Ok(flushed)
}

/// Writes bytes at any position: what shares their first and last block stays as it is on disk. (The last block may
/// belong to bulk that begins there.)
async fn write_piece<D: Disk>(disk: &D, file: &D::File, position: u64, bytes: &[u8]) -> std::io::Result<()> {
    let block = BLOCK as u64;
    let start = position - position % block;
    let end = (position + bytes.len() as u64).next_multiple_of(block);
    let mut buffer = disk.allocate((end - start) as usize);
    let target = buffer.as_mut_slice();
    let len = target.len();
    target[..BLOCK].fill(0);
    target[len - BLOCK..].fill(0);
    let mut edges = vec![start];
    if end - block > start {
        edges.push(end - block);
    }
    for edge in edges {
        let (old, content) = file.read_at(edge, BLOCK).await?;
        let at = (edge - start) as usize;
        target[at..at + content].copy_from_slice(&old.as_slice()[..content]);
    }
    let at = (position - start) as usize;
    target[at..at + bytes.len()].copy_from_slice(bytes);
    file.write_at(std::rc::Rc::new(buffer), start).await
}
