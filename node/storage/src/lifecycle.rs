//! Partitions come and go, the loops run, the engine stops; reads that need the disk.

use std::time::Duration;

use flumen_core::config::LogConfig;
use flumen_core::epochs::EpochCache;
use flumen_core::log::Log;
use flumen_core::producer::ProducerTable;
use flumen_core::types::{LeaderEpoch, Offset, PartitionId, Timestamp, TopicId};
use flumen_wire::ErrorCode;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::api::{DiskRead, EngineFault, ReadError, Slot, StorageError};
use crate::cache::{self, Want};
use crate::disk::{Disk, OpenMode};
use crate::engine::{Engine, Life};
use crate::partition::{Note, Partition, segment_path};
use crate::recover::RecoveredPartition;
use crate::removal::{Grave, buried_directory};
use crate::segment::{Found, SegmentError, SegmentView, first_record};
use crate::slices::Slices;

/// A record found by its timestamp.
pub type FoundRecord = (Offset, Timestamp, LeaderEpoch);

impl<D: Disk, T: 'static> Engine<D, T> {
    /// Runs the commit loop and what belongs to it, until [`stop`](Self::stop) is done (`Ok`) or the engine cannot go
    /// on: then nothing undetermined was answered, and the node must exit.
    pub async fn run_journal(&self) -> Result<(), EngineFault> {
        // Each loop is polled only when it is woken itself.
        let mut loops: FuturesUnordered<LocalBoxFuture<'_, Result<(), EngineFault>>> =
            FuturesUnordered::new();
        loops.push(Box::pin(self.commit_loop()));
        loops.push(Box::pin(async {
            self.bulk_loop().await;
            Ok(())
        }));
        loops.push(Box::pin(async {
            self.space_loop().await;
            Ok(())
        }));
        while let Some(ended) = loops.next().await {
            if let Err(fault) = ended {
                self.life.set(Life::Faulted);
                self.upkeep.notify();
                self.progress.notify();
                return Err(fault);
            }
        }
        Ok(())
    }

    /// Takes nothing new, has everything staged become durable, fills all, writes a checkpoint. The loops end with it.
    pub async fn stop(&self) {
        if self.life.get() == Life::Running {
            self.life.set(Life::Stopping);
        }
        self.upkeep.notify();
        self.work.notify();
        self.compaction_work.notify();
        self.progress.notify();
        loop {
            let seen = self.progress.count();
            if matches!(self.life.get(), Life::Stopped | Life::Faulted) {
                return;
            }
            self.progress.after(seen).await;
        }
    }

    /// Takes over a partition that recovery found.
    pub async fn adopt(&self, recovered: RecoveredPartition) -> Result<Slot, StorageError> {
        let mut state = self.state.borrow_mut();
        if state.slot_of(&recovered.id).is_some() {
            return Err(StorageError::Exists);
        }
        let lsn = state.journal.durable_lsn;
        let expiration_ms = self.settings.producer_expiration_ms;
        let slot = state.insert(|slot| {
            let mut producers = recovered.producers;
            producers.set_expiration_ms(expiration_ms);
            let log = (recovered.log, producers, recovered.epochs);
            let (id, epoch) = (recovered.id, recovered.leader_epoch);
            let mut partition =
                Partition::new(id, slot, &recovered.directory, recovered.config, epoch, log, lsn);
            partition.offline = recovered.offline.as_deref().map(Into::into);
            partition.frozen = recovered.frozen;
            partition.compaction.cleaned = recovered.cleaned;
            partition
        });
        self.compaction_work.notify();
        Ok(slot)
    }

    /// Makes an empty partition: directory, `partition.metadata`, first segment, all of it durable.
    pub async fn create_partition(
        &self,
        id: PartitionId,
        directory: &str,
        config: LogConfig,
        leader_epoch: LeaderEpoch,
    ) -> Result<Slot, StorageError> {
        if self.life.get() != Life::Running {
            return Err(StorageError::Stopping);
        }
        if self.partition(&id).is_some() {
            return Err(StorageError::Exists);
        }
        let failed = |error| StorageError::Io(format!("creating {directory}"), error);
        self.bury(clear_the_way(&self.disk, directory).await.map_err(failed)?);
        make_directory(&self.disk, id, directory).await.map_err(failed)?;
        let mut state = self.state.borrow_mut();
        if state.slot_of(&id).is_some() {
            return Err(StorageError::Exists);
        }
        let lsn = state.journal.durable_lsn;
        let log = Log::new(Offset(0), self.disk.now_ms());
        let producers = ProducerTable::new(self.settings.producer_expiration_ms);
        let parts = (log, producers, EpochCache::new());
        self.compaction_work.notify();
        Ok(state.insert(|slot| Partition::new(id, slot, directory, config, leader_epoch, parts, lsn)))
    }

    /// Removes a partition: what is staged is refused, a DROP entry is made durable, the directory gets a `-delete`
    /// name and goes after `file.delete.delay.ms`.
    pub async fn delete_partition(&self, id: &PartitionId) -> Result<(), StorageError> {
        let Some(slot) = self.partition(id) else { return Ok(()) };
        self.begin_delete(slot);
        loop {
            let seen = self.progress.count();
            if self.life.get() != Life::Running && self.life.get() != Life::Stopping {
                return Err(StorageError::Stopping);
            }
            {
                let state = self.state.borrow();
                let Some(partition) = state.get(slot) else { return Ok(()) };
                let busy = partition.writers.iter().any(|writer| writer.is_busy());
                let busy = busy || partition.compaction.running || partition.tended > 0;
                if partition.dropped && !busy && !partition.allocating && !partition.bulk_writing() {
                    break;
                }
            }
            self.progress.after(seen).await;
        }
        let (directory, delay) = {
            let mut state = self.state.borrow_mut();
            let Some(partition) = state.remove(slot) else { return Ok(()) };
            let unfilled = partition.unfilled..partition.chunks_end();
            for number in unfilled {
                if let Some(chunk) = partition.chunk(number) {
                    state.buffers.filled(chunk.buffer);
                }
            }
            (partition.directory.clone(), partition.config.file_delete_delay_ms.max(0) as u64)
        };
        self.reader.forget(&format!("{directory}/"));
        let number = self.disk.monotonic().as_nanos();
        let grave = buried_directory(&directory, &format!("{:x}-{number:x}", self.settings.incarnation.0));
        let failed = |error| StorageError::Io(format!("removing {directory}"), error);
        self.disk.rename(&directory, &grave).await.map_err(failed)?;
        self.disk.sync_directory("").await.map_err(failed)?;
        let at = self.disk.monotonic() + Duration::from_millis(delay);
        self.state.borrow_mut().graves.push((at, Grave::Directory(grave)));
        self.removal_work.notify();
        Ok(())
    }

    fn begin_delete(&self, slot: Slot) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let Some(partition) = state.get_mut(slot) else { return };
        if partition.deleting {
            return;
        }
        partition.deleting = true;
        partition.held = None;
        let id = partition.id;
        let gone = Err(ErrorCode::UnknownTopicOrPartition);
        let staged: Vec<_> = partition.staged.drain(..).collect();
        let bytes: usize = staged.iter().map(|staged| staged.bytes.len()).sum();
        partition.staged_bytes = 0;
        let mut answers: Vec<_> = partition.waiters.drain(..).map(|(_, token)| (token, gone)).collect();
        answers.extend(partition.bulk.drain(..).flat_map(|bulk| bulk.tokens).map(|token| (token, gone)));
        answers.extend(partition.notes.drain(..).filter_map(|(_, token)| token).map(|token| (token, gone)));
        partition.notes.push_back((Note::Drop, None));
        state.staged_bytes -= bytes;
        state.staged_batches -= staged.len();
        answers.extend(staged.into_iter().map(|staged| (staged.token, gone)));
        state.ready.append(&mut answers);
        state.moved.push((slot, id));
        state.mark_dirty(slot);
        // Segments that wait to be removed go with the directory.
        let queued = state.removals.len();
        state.removals.retain(|removal| removal.slot != slot);
        let taken = queued - state.removals.len();
        if let Some(partition) = state.get_mut(slot) {
            partition.tended -= taken;
        }
        drop(guard);
        self.work.notify();
    }

    /// The read that [`read`](Self::read) could not answer from memory. Empty when the log start has passed it by.
    pub async fn read_disk(&self, read: DiskRead) -> Result<Slices<D::Buffer>, ReadError> {
        // Read under a layout that changed meanwhile, bytes say nothing, and a failure neither.
        loop {
            let layout = self.settled_layout(read.slot).await?;
            let found = self.read_segments(&read).await;
            if self.is_layout(read.slot, layout) {
                return found;
            }
        }
    }

    /// From the first segment that has a batch at the offset or after it; a compacted one may end before.
    async fn read_segments(&self, read: &DiskRead) -> Result<Slices<D::Buffer>, ReadError> {
        let slot = read.slot;
        let mut next = None;
        loop {
            let view = {
                let state = self.state.borrow();
                let Some(partition) = state.get(slot) else { return Err(ReadError::Gone) };
                if partition.offline.is_some() {
                    return Err(ReadError::Offline);
                }
                if read.offset < partition.log_start {
                    return Err(ReadError::OffsetOutOfRange);
                }
                let Some(at) = partition.log.segment_of(next.unwrap_or(read.offset)) else {
                    return Err(ReadError::OffsetOutOfRange);
                };
                let view = partition.view(at, self.reader.era());
                if view.end_offset >= partition.filled.end && view.len == 0 {
                    return Ok(partition.cached_after(read));
                }
                view
            };
            if view.len > 0 {
                let (offset, bytes_max, at_least_one) = (read.offset, read.bytes_max, read.at_least_one);
                let fits = |offset: Offset, epoch: LeaderEpoch| self.fits_epoch(slot, offset, epoch);
                let mut found = self.reader.read(&view, offset, bytes_max, at_least_one, &fits).await;
                let is_empty = |found: &Result<Slices<_>, _>| found.as_ref().is_ok_and(Slices::is_empty);
                let may_end_before = is_empty(&found) && !view.contiguous;
                if may_end_before && !at_least_one {
                    // Or its batch is too large: then those behind it must not come first.
                    found = self.reader.read(&view, offset, 0, true, &fits).await;
                    if found.as_ref().is_ok_and(|slices| !slices.is_empty()) {
                        return Ok(Slices::default());
                    }
                }
                match found {
                    Ok(_) if may_end_before => {}
                    Ok(slices) => return Ok(slices),
                    Err(error) => return Err(self.read_failed(slot, read.offset, error)),
                }
            }
            let state = self.state.borrow();
            let Some(partition) = state.get(slot) else { return Err(ReadError::Gone) };
            if view.end_offset >= partition.filled.end {
                return Ok(partition.cached_after(read));
            }
            next = Some(view.end_offset);
        }
    }

    /// Whether a batch at this offset may have this leader epoch. Below the first known epoch nothing can be said.
    fn fits_epoch(&self, slot: Slot, offset: Offset, epoch: LeaderEpoch) -> bool {
        let state = self.state.borrow();
        let known = state.get(slot).and_then(|partition| partition.epochs.epoch_for(offset));
        known.is_none_or(|known| known == epoch)
    }

    /// What lies under the names of segments now, by its number. Waits while a file is being put in place.
    async fn settled_layout(&self, slot: Slot) -> Result<u64, ReadError> {
        loop {
            let seen = self.progress.count();
            {
                let state = self.state.borrow();
                let Some(partition) = state.get(slot) else { return Err(ReadError::Gone) };
                if !partition.compaction.renaming {
                    return Ok(partition.compaction.layout);
                }
            }
            self.progress.after(seen).await;
        }
    }

    /// Whether it still lies there.
    fn is_layout(&self, slot: Slot, layout: u64) -> bool {
        let state = self.state.borrow();
        state.get(slot).is_none_or(|partition| partition.compaction.layout == layout)
    }

    /// What a failed read means: it was overtaken by retention, the data is corrupt, or the disk failed.
    fn read_failed(&self, slot: Slot, offset: Offset, error: SegmentError) -> ReadError {
        {
            let state = self.state.borrow();
            let Some(partition) = state.get(slot) else { return ReadError::Gone };
            if partition.deleting {
                return ReadError::Gone;
            }
            if offset < partition.log_start {
                return ReadError::OffsetOutOfRange;
            }
        }
        let text = error.to_string();
        let answer = match error {
            SegmentError::Corrupt { .. } => ReadError::Corrupt,
            SegmentError::Io { .. } => ReadError::Io,
        };
        self.state.borrow_mut().read_faults.push(text);
        answer
    }

    /// What reads found wrong since the last call, with file and position, for the log.
    pub fn take_read_faults(&self) -> Vec<String> {
        std::mem::take(&mut self.state.borrow_mut().read_faults)
    }

    /// The first record whose timestamp is at least `timestamp`, below the high watermark.
    pub async fn offset_for_timestamp(
        &self,
        slot: Slot,
        timestamp: Timestamp,
    ) -> Result<Option<FoundRecord>, ReadError> {
        loop {
            let layout = self.settled_layout(slot).await?;
            let found = self.find_timestamp(slot, timestamp).await;
            if self.is_layout(slot, layout) {
                return found;
            }
        }
    }

    async fn find_timestamp(
        &self,
        slot: Slot,
        timestamp: Timestamp,
    ) -> Result<Option<FoundRecord>, ReadError> {
        let mut from = Offset(0);
        loop {
            let Views { segments, end } = self.views(slot)?;
            for (view, max_timestamp) in segments {
                // A segment's greatest timestamp is an upper bound.
                if max_timestamp < timestamp.0 || view.end_offset <= from {
                    continue;
                }
                let from = self.log_start(slot)?.max(from);
                match self.reader.offset_for_timestamp(&view, timestamp, from).await {
                    Ok(Some(found)) => return Ok(Some(record(found))),
                    Ok(None) => {}
                    Err(error) => return Err(self.read_failed(slot, view.base_offset, error)),
                }
            }
            if !self.is_filled_past(slot, end)? {
                return self.search_cache(slot, timestamp).await;
            }
            // What lay in memory alone lies in a segment now.
            from = end;
        }
    }

    /// The first record that has the greatest timestamp below the high watermark (KIP-734).
    pub async fn max_timestamp(&self, slot: Slot) -> Result<Option<FoundRecord>, ReadError> {
        loop {
            let layout = self.settled_layout(slot).await?;
            let found = self.find_max_timestamp(slot).await;
            if self.is_layout(slot, layout) {
                return found;
            }
        }
    }

    async fn find_max_timestamp(&self, slot: Slot) -> Result<Option<FoundRecord>, ReadError> {
        let mut best: Option<FoundRecord> = None;
        let mut from = Offset(0);
        loop {
            let Views { segments, end } = self.views(slot)?;
            for (view, max_timestamp) in segments {
                if best.is_some_and(|(_, at, _)| at.0 >= max_timestamp) || view.end_offset <= from {
                    continue;
                }
                match self.reader.max_timestamp(&view).await {
                    Ok(Some(found)) if best.is_none_or(|(_, at, _)| found.timestamp > at) => {
                        best = Some(record(found))
                    }
                    Ok(_) => {}
                    Err(error) => return Err(self.read_failed(slot, view.base_offset, error)),
                }
            }
            if !self.is_filled_past(slot, end)? {
                break;
            }
            from = end;
        }
        let floor = best.map_or(-1, |(_, at, _)| at.0);
        let cached = self.search_cache_max(slot, floor).await?;
        Ok(cached.or(best))
    }

    fn log_start(&self, slot: Slot) -> Result<Offset, ReadError> {
        self.state.borrow().get(slot).map(|partition| partition.log_start).ok_or(ReadError::Gone)
    }

    /// Whether more than up to `end` lies in segments now.
    fn is_filled_past(&self, slot: Slot, end: Offset) -> Result<bool, ReadError> {
        self.state.borrow().get(slot).map(|partition| partition.filled.end > end).ok_or(ReadError::Gone)
    }

    /// What lies on disk.
    fn views(&self, slot: Slot) -> Result<Views, ReadError> {
        let state = self.state.borrow();
        let Some(partition) = state.get(slot) else { return Err(ReadError::Gone) };
        if partition.offline.is_some() {
            return Err(ReadError::Offline);
        }
        let segments = partition.log.segments().iter().enumerate();
        let era = self.reader.era();
        let views = segments.map(|(at, segment)| (partition.view(at, era), segment.max_timestamp));
        let is_of_use = |view: &SegmentView| view.len > 0 && view.end_offset > partition.log_start;
        let segments = views.filter(|(view, _)| is_of_use(view)).collect();
        Ok(Views { segments, end: partition.filled.end })
    }

    /// The first record in memory, past what is on disk, whose timestamp is at least `timestamp`.
    async fn search_cache(&self, slot: Slot, timestamp: Timestamp) -> Result<Option<FoundRecord>, ReadError> {
        for batch in self.unfilled_batches(slot, timestamp)? {
            let from = self.log_start(slot)?;
            let found = first_record(&self.disk, &batch, timestamp, from).await;
            if let Some(found) = found.map_err(|_| ReadError::Corrupt)? {
                return Ok(Some(record(found)));
            }
        }
        Ok(None)
    }

    async fn search_cache_max(&self, slot: Slot, floor: i64) -> Result<Option<FoundRecord>, ReadError> {
        let greatest = {
            let state = self.state.borrow();
            let Some(partition) = state.get(slot) else { return Err(ReadError::Gone) };
            let below = partition.high_watermark;
            let unfilled = partition.chunks.iter().filter(|chunk| chunk.base_offset >= partition.filled.end);
            let headers = unfilled.flat_map(|chunk| chunk.headers().map(|(_, header)| header));
            let readable = partition.log_start.0..below.0;
            let readable = headers.filter(|header| readable.contains(&header.last_offset()));
            readable.map(|header| header.max_timestamp).max()
        };
        match greatest {
            Some(greatest) if greatest > floor => self.search_cache(slot, Timestamp(greatest)).await,
            _ => Ok(None),
        }
    }

    /// Copies of batches that are in memory and not on disk, below the high watermark, whose greatest timestamp is at
    /// least `timestamp`.
    fn unfilled_batches(&self, slot: Slot, timestamp: Timestamp) -> Result<Vec<Vec<u8>>, ReadError> {
        let state = self.state.borrow();
        let Some(partition) = state.get(slot) else { return Err(ReadError::Gone) };
        let mut found = Vec::new();
        let readable = partition.log_start.0..partition.high_watermark.0;
        for chunk in partition.chunks.iter().filter(|chunk| chunk.base_offset >= partition.filled.end) {
            for (_, header) in chunk.headers() {
                if readable.contains(&header.last_offset()) && header.max_timestamp >= timestamp.0 {
                    let want = Want {
                        offset: Offset(header.base_offset),
                        below: partition.high_watermark,
                        bytes_max: 0,
                        at_least_one: true,
                    };
                    found.push(cache::read(&partition.chunks, &want).0.to_vec());
                    // The first that holds one is enough, unless its greatest timestamp is not what it seems.
                    if found.len() >= 4 {
                        return Ok(found);
                    }
                }
            }
        }
        Ok(found)
    }
}

/// What of a partition lies on disk.
struct Views {
    /// Oldest first, with their greatest timestamps.
    segments: Vec<(SegmentView, i64)>,
    /// Where that ends.
    end: Offset,
}

impl<D: Disk, T> Partition<D, T> {
    /// What memory alone holds, for a read of an offset that no segment on disk has a batch at or after.
    fn cached_after(&self, read: &DiskRead) -> Slices<D::Buffer> {
        if self.chunks.is_empty() {
            return Slices::default();
        }
        let want = Want {
            offset: read.offset.max(self.filled.end),
            below: self.high_watermark,
            bytes_max: read.bytes_max,
            at_least_one: read.at_least_one,
        };
        cache::read(&self.chunks, &want).0
    }

    /// Whether a write or sync of bulk may be in flight though nobody waits for it any more.
    fn bulk_writing(&self) -> bool {
        self.writers.iter().any(|writer| writer.is_busy())
    }
}

fn record(found: Found) -> FoundRecord {
    (found.offset, found.timestamp, found.leader_epoch)
}

/// Content of `partition.metadata`, as Kafka writes it.
pub(crate) fn partition_metadata(topic: TopicId) -> String {
    format!("version: 0\ntopic_id: {topic}\n")
}

/// What bears the name of a new partition is of an older topic, or of a creation that a crash cut short: it is to go.
pub(crate) async fn clear_the_way<D: Disk>(disk: &D, directory: &str) -> std::io::Result<Option<Grave>> {
    if disk.list(directory).await.is_err() {
        return Ok(None);
    }
    let grave = buried_directory(directory, &format!("{:x}", disk.monotonic().as_nanos()));
    disk.rename(directory, &grave).await?;
    disk.sync_directory("").await?;
    Ok(Some(Grave::Directory(grave)))
}

/// Makes the directory of a new partition durable.
pub(crate) async fn make_directory<D: Disk>(
    disk: &D,
    id: PartitionId,
    directory: &str,
) -> std::io::Result<()> {
    disk.create_directory(directory).await?;
    // Under its name it is whole: recovery tells half a creation from damage by that.
    let metadata = format!("{directory}/partition.metadata");
    let temporary = format!("{metadata}.tmp");
    disk.write_file(&temporary, partition_metadata(id.topic).as_bytes(), true).await?;
    disk.rename(&temporary, &metadata).await?;
    let path = format!("{}.log", segment_path(directory, Offset(0)));
    disk.open(&path, OpenMode { create_new: true, write: true, synchronous: false }).await?;
    disk.sync_directory(directory).await?;
    disk.sync_directory("").await
}
