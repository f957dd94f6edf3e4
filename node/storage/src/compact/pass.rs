//! One pass over one partition.

use std::time::Duration;

use flumen_core::limits::DECOMPRESSED_BYTES_MAX;
use flumen_core::log::{Cleanable, Fate, Group, OffsetMap, Pass};
use flumen_core::types::{Offset, PartitionId};
use flumen_wire::batch::{BatchError, BatchHeader, Batches, RecordSet};
use flumen_wire::compression::{Compression, CompressionError};

use super::copy::{Copied, Copy, remove_leftover};
use super::pace::Pace;
use super::swap::Cleaned;
use super::{BACKOFF_MIN, Interrupted};
use crate::api::{CompactionRun, CompactionSettings, Slot};
use crate::disk::Disk;
use crate::engine::{Engine, Life, planted};
use crate::segment::{Cursor, SegmentView};
use crate::slices::Slice;

/// Compressed batches from this size on are opened and closed on another thread.
const OFFLOAD_BYTES_MIN: usize = 16 << 10;
/// Most that comes out of a batch which is opened here: some KiB may become many MiB.
const OPENED_HERE_BYTES_MAX: usize = 1 << 20;
/// Bytes of old segments whose successors wait for one checkpoint together.
const BYTES_PER_CHECKPOINT: u64 = 256 << 20;
/// Segments that do.
const SWAPS_PER_CHECKPOINT: usize = 256;

/// A pass under way: what all of its steps need.
pub(super) struct Work<D: Disk> {
    pub(super) slot: Slot,
    pub(super) settings: CompactionSettings,
    pub(super) pace: Pace<D>,
    pub(super) run: CompactionRun,
    /// Some of what was cleaned could not be put in place.
    pub(super) is_partial: bool,
}

impl<D: Disk, T: 'static> Engine<D, T> {
    /// Makes a pass, unless the partition is gone by now. `None` where it ended early for no fault.
    pub(super) async fn compact(
        &self,
        slot: Slot,
        id: PartitionId,
        cleanable: Cleanable,
    ) -> Option<CompactionRun> {
        let directory = {
            let mut state = self.state.borrow_mut();
            let partition = state.get_mut(slot)?;
            partition.compaction.running = true;
            partition.directory.clone()
        };
        let settings = self.compaction_settings.borrow().clone();
        let shards = f64::from(self.settings.shards);
        let mut work = Work {
            slot,
            pace: Pace::new(&self.disk, settings.io_bytes_per_second / shards),
            settings,
            run: CompactionRun::new(id, directory.to_string(), cleanable.first_dirty),
            is_partial: false,
        };
        let outcome = self.make_pass(&mut work, cleanable).await;
        let mut state = self.state.borrow_mut();
        if let Some(partition) = state.get_mut(slot) {
            partition.compaction.running = false;
            partition.compaction.not_before = match &outcome {
                Ok(()) => None,
                Err(Interrupted::Over | Interrupted::Failed(_)) => {
                    Some(self.disk.monotonic() + work.settings.backoff.max(BACKOFF_MIN))
                }
                Err(Interrupted::Damaged(_)) => Some(Duration::MAX),
            };
        }
        drop(state);
        // Who deletes the partition waits for this.
        self.progress.notify();
        match outcome {
            Ok(()) => Some(work.run),
            Err(Interrupted::Over) => None,
            Err(Interrupted::Failed(reason) | Interrupted::Damaged(reason)) => {
                Some(CompactionRun { failed: Some(reason), ..work.run })
            }
        }
    }

    async fn make_pass(&self, work: &mut Work<D>, cleanable: Cleanable) -> Result<(), Interrupted> {
        let map = self.read_keys(work, cleanable).await?;
        work.run.keys = map.len() as u64;
        work.run.map_bytes = map.size_bytes() as u64;
        let (pass, groups) = {
            let state = self.state.borrow();
            let partition = state.get(work.slot).ok_or(Interrupted::Over)?;
            let groups = partition.log.compaction_groups(map.end().min(cleanable.end), &partition.config);
            let pass = Pass {
                map,
                now_ms: self.disk.now_ms(),
                delete_retention_ms: partition.config.delete_retention_ms,
                last_offsets: partition.producers.last_offsets().collect(),
            };
            (pass, groups)
        };
        let (mut waiting, mut waiting_bytes) = (Vec::new(), 0);
        for group in groups {
            let cleaned = self.clean(work, &pass, &group).await;
            let cleaned = match cleaned {
                Ok(cleaned) => cleaned,
                Err(error) => {
                    self.discard(waiting).await;
                    return Err(error);
                }
            };
            waiting.extend(cleaned);
            waiting_bytes += group.size;
            if waiting_bytes >= BYTES_PER_CHECKPOINT || waiting.len() >= SWAPS_PER_CHECKPOINT {
                self.swap(work, std::mem::take(&mut waiting)).await?;
                waiting_bytes = 0;
                if work.is_partial {
                    return Err(Interrupted::Over);
                }
            }
        }
        self.swap(work, waiting).await?;
        if work.is_partial {
            // Were it called clean, tombstones that were kept would go before what they delete.
            return Err(Interrupted::Over);
        }
        self.passed(work, pass.map.end())
    }

    /// What lies below `end` is clean now; the next checkpoint says so.
    fn passed(&self, work: &mut Work<D>, end: Offset) -> Result<(), Interrupted> {
        let mut state = self.state.borrow_mut();
        state.dirty_since.get_or_insert(self.disk.monotonic());
        let partition = state.get_mut(work.slot).ok_or(Interrupted::Over)?;
        partition.compaction.cleaned = Some(end);
        work.run.first_dirty = end;
        Ok(())
    }

    /// The pass has a point: the partition is here and well, and the engine runs.
    pub(super) fn still_wanted(&self, slot: Slot) -> Result<(), Interrupted> {
        let state = self.state.borrow();
        let partition = state.get(slot).ok_or(Interrupted::Over)?;
        let wanted = self.life.get() == Life::Running && partition.may_be_compacted();
        if wanted { Ok(()) } else { Err(Interrupted::Over) }
    }

    /// The segment that begins at `base`, as it is read by everybody.
    fn view_of(&self, slot: Slot, base: Offset) -> Result<SegmentView, Interrupted> {
        self.still_wanted(slot)?;
        let state = self.state.borrow();
        let partition = state.get(slot).ok_or(Interrupted::Over)?;
        let at = partition.log.segment_of(base);
        let at = at.filter(|at| partition.log.segments()[*at].base_offset == base);
        let era = self.reader.era();
        // Gaps may be there from an earlier pass whose position was lost.
        Ok(SegmentView { contiguous: false, ..partition.view(at.ok_or(Interrupted::Over)?, era) })
    }

    /// Says how many bytes were moved, and waits until so many may be.
    pub(super) async fn moved(&self, work: &mut Work<D>, bytes: usize) -> Result<(), Interrupted> {
        let mut ahead = work.pace.ahead(bytes);
        while let Some(time) = ahead {
            self.disk.sleep(time).await;
            self.still_wanted(work.slot)?;
            ahead = work.pace.ahead(0);
        }
        Ok(())
    }

    /// The next batch of a segment, verified.
    async fn next_batch(
        &self,
        work: &mut Work<D>,
        view: &SegmentView,
        cursor: &mut Cursor<'_, D>,
    ) -> Result<Option<(u64, BatchHeader, Slice<D::Buffer>)>, Interrupted> {
        let next = cursor.next().await;
        // Retention may have taken the segment while it was read: that is no fault.
        self.view_of(work.slot, view.base_offset)?;
        let Some((position, header, batch)) = next? else { return Ok(None) };
        let known = {
            let state = self.state.borrow();
            let partition = state.get(work.slot).ok_or(Interrupted::Over)?;
            if !partition.config.cleanup_policy.compact {
                return Err(Interrupted::Over);
            }
            partition.epochs.epoch_for(Offset(header.base_offset))
        };
        if known.is_some_and(|known| known.0 != header.partition_leader_epoch) {
            let epoch = header.partition_leader_epoch;
            let path = view.log_path();
            return Err(Interrupted::Damaged(format!("{path} at position {position}: leader epoch {epoch}")));
        }
        work.run.bytes_read += batch.len() as u64;
        self.moved(work, batch.len()).await?;
        Ok(Some((position, header, batch)))
    }

    /// Reads the keys of the dirty part, as many as the map holds.
    async fn read_keys(&self, work: &mut Work<D>, cleanable: Cleanable) -> Result<OffsetMap, Interrupted> {
        let (first, end) = (cleanable.first_dirty, cleanable.end);
        let bytes_max = work.settings.dedupe_buffer_bytes / usize::from(self.settings.shards);
        let load_factor = work.settings.load_factor;
        let (records_max, seed) = ((end.0 - first.0) as u64, work.settings.hash_seed);
        let mut map = OffsetMap::new(bytes_max, load_factor, records_max, seed, first);
        let bases: Vec<Offset> = {
            let state = self.state.borrow();
            let partition = state.get(work.slot).ok_or(Interrupted::Over)?;
            let from = partition.log.segment_of(first).ok_or(Interrupted::Over)?;
            let dirty = partition.log.segments()[from..].iter().map(|segment| segment.base_offset);
            dirty.take_while(|base| *base < end).collect()
        };
        for base in bases {
            let view = self.view_of(work.slot, base)?;
            let mut cursor = Cursor::whole(&self.reader, &view, work.settings.read_bytes());
            while let Some((position, header, batch)) = self.next_batch(work, &view, &mut cursor).await? {
                if header.last_offset() < first.0 || header.is_control() {
                    work.pace.worked(batch.len()).await;
                    continue;
                }
                let records = self.open(batch.as_slice(), &view, position).await?;
                for record in &records {
                    let record = record.map_err(|error| unreadable(&view, position, &error))?;
                    work.pace.worked(record.size).await;
                    let Some(key) = record.key.filter(|_| record.offset >= first.0) else { continue };
                    if !map.offer(key, Offset(record.offset)) {
                        return Ok(map);
                    }
                }
            }
        }
        map.cover(end);
        Ok(map)
    }

    /// The records of a batch. Large compressed ones are opened elsewhere.
    async fn open<'a>(
        &self,
        batch: &'a [u8],
        view: &SegmentView,
        position: u64,
    ) -> Result<RecordSet<'a>, Interrupted> {
        let raw = Batches::new(batch).next().and_then(Result::ok);
        let raw = raw.ok_or_else(|| Interrupted::Damaged(format!("{} at {position}", view.log_path())))?;
        let plain = raw.header.compression() == Ok(Compression::None);
        let opened_here = match batch.len() {
            _ if plain => Some(raw.records(DECOMPRESSED_BYTES_MAX)),
            ..OFFLOAD_BYTES_MIN => match raw.records(OPENED_HERE_BYTES_MAX) {
                Err(BatchError::Decompress(CompressionError::TooLarge { .. })) => None,
                opened => Some(opened),
            },
            _ => None,
        };
        let opened = match opened_here {
            Some(opened) => opened,
            None => {
                let bytes = batch.to_vec();
                let open = move || {
                    let raw = Batches::new(&bytes).next()?.ok()?;
                    Some(raw.records(DECOMPRESSED_BYTES_MAX).map(RecordSet::into_owned))
                };
                self.disk.offload(open).await.expect("a batch that was parsed before")
            }
        };
        opened.map_err(|error| unreadable(view, position, &error))
    }

    /// Copies what stays of a group. `None` where nothing would change.
    async fn clean(
        &self,
        work: &mut Work<D>,
        pass: &Pass,
        group: &Group,
    ) -> Result<Option<Cleaned>, Interrupted> {
        let mut copy = self.begin_copy(work.slot, group).await?;
        let copied = self.copy_group(work, pass, group, &mut copy).await;
        let path = copy.path.clone();
        let finished = match copied {
            Ok(()) if copy.is_changed => self.finish_copy(work, copy).await.map(Some),
            Ok(()) => Ok(None),
            Err(error) => Err(error),
        };
        match finished {
            Ok(Some(cleaned)) => {
                work.run.segments_before += group.bases.len() as u64;
                work.run.segments_after += 1;
                // Compressed anew, it may have grown.
                work.run.bytes_removed += group.size.saturating_sub(cleaned.segment.size);
                Ok(Some(cleaned))
            }
            other => {
                // It is in the partition's directory, which is still this partition's: whoever deletes it waits.
                remove_leftover(&self.disk, &path).await;
                other
            }
        }
    }

    async fn copy_group(
        &self,
        work: &mut Work<D>,
        pass: &Pass,
        group: &Group,
        copy: &mut Copy<D>,
    ) -> Result<(), Interrupted> {
        for base in &group.bases {
            let view = self.view_of(work.slot, *base)?;
            let mut cursor = Cursor::whole(&self.reader, &view, work.settings.read_bytes());
            while let Some((position, header, batch)) = self.next_batch(work, &view, &mut cursor).await? {
                copy.source_left = copy.source_left.saturating_sub(batch.len() as u64);
                let copied = match pass.fate(&header) {
                    Fate::Whole => Copied::Whole,
                    Fate::Judged => {
                        let records = self.open(batch.as_slice(), &view, position).await?;
                        self.judge(work, pass, &header, records, batch.len())
                            .await
                            .map_err(|error| unreadable(&view, position, &error))?
                    }
                };
                let full = copy.take(&header, batch.as_slice(), copied)?;
                self.write_full(work, copy, full).await?;
            }
        }
        Ok(())
    }

    /// The planted bug that tombstones have no time.
    pub(super) fn forgets_horizons(&self) -> bool {
        planted!(self.settings, TombstoneDroppedEarly)
    }
}

impl CompactionSettings {
    /// Bytes of one read, and of one write.
    pub(super) fn read_bytes(&self) -> usize {
        // `log.cleaner.io.buffer.size` is for both. Small reads let others in between: larger ones would keep the shard.
        (self.io_buffer_bytes / 2).clamp(64 << 10, 256 << 10).next_multiple_of(crate::disk::BLOCK)
    }
}

pub(super) fn unreadable(view: &SegmentView, position: u64, error: &dyn std::fmt::Debug) -> Interrupted {
    Interrupted::Damaged(format!("{} at position {position}: {error:?}", view.log_path()))
}
