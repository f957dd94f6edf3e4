//! One shard's storage engine: state and the calls that do no I/O. The loops are in `commit`, `bulk`, `space`,
//! `maintenance`, `removal`, `compact`.
//!
//! Owned by one shard, used from one thread. No borrow of the state is held over an await: loops plan with owned
//! data, let go, await, and look again.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use flumen_core::config::{LogConfig, TimestampType};
use flumen_core::journal::Cadence;
use flumen_core::limits::{JOURNAL_FILE_BYTES_MAX, JOURNAL_FILE_BYTES_MIN, WAITERS_MAX};
use flumen_core::log::{Incoming, PlaceError};
use flumen_core::producer::{ActiveProducer, Verdict};
use flumen_core::types::{LeaderEpoch, Offset, PartitionId};
use flumen_wire::ErrorCode;
use flumen_wire::batch::BatchHeader;

use crate::api::{
    AppendError, CompactionSettings, DiskRead, EngineFault, EngineMetrics, EngineSettings, EpochEnd, Offsets,
    Placed, ReadError, ReadOutcome, Sink, Slot,
};
use crate::cache::{self, Buffers, Want};
use crate::disk::{BLOCK, Disk};
use crate::journal_files::Journal;
use crate::partition::{Held, Note, Partition, Staged, placed_header};
use crate::removal::{Grave, Removal};
use crate::segment::{ReaderSettings, SegmentReader};
use crate::signal::{Progress, Signal};

/// Whether the bug is the one that a test planted. Always false in a node.
macro_rules! planted {
    ($settings:expr, $bug:ident) => {{
        #[cfg(feature = "planted-bugs")]
        let is = $settings.planted == Some(crate::api::PlantedBug::$bug);
        #[cfg(not(feature = "planted-bugs"))]
        let is = false;
        is
    }};
}
pub(crate) use planted;

/// A place for a partition.
struct Place<D: Disk, T> {
    generation: u32,
    partition: Option<Box<Partition<D, T>>>,
}

/// An answer that may leave.
pub(crate) type Answer<T> = (T, Result<(), ErrorCode>);

/// What changes.
pub(crate) struct State<D: Disk, T> {
    places: Vec<Place<D, T>>,
    vacant: Vec<u32>,
    by_id: HashMap<PartitionId, Slot>,
    /// What the index of an active segment may take, and what all of them may.
    index_room: Rc<Cell<usize>>,
    index_bytes_max: usize,
    /// Partitions that the next cycle looks at.
    pub(crate) dirty: Vec<Slot>,
    /// Partitions that want space.
    pub(crate) space_wanted: VecDeque<Slot>,
    /// Bulk writes to be made.
    pub(crate) bulk_wanted: VecDeque<crate::bulk::BulkWrite<D>>,
    /// Answers that wait for no group.
    pub(crate) ready: Vec<Answer<T>>,
    /// Partitions whose high watermark moved without one, or that are no longer served.
    pub(crate) moved: Vec<(Slot, PartitionId)>,
    /// Partitions that went offline, and why, for the sink.
    pub(crate) went_offline: Vec<(PartitionId, Rc<str>)>,
    /// Bytes that no buffer holds yet, and batches of them.
    pub(crate) staged_bytes: usize,
    pub(crate) staged_batches: usize,
    /// Batches that the last group left behind.
    pub(crate) left_behind: usize,
    pub(crate) cadence: Cadence,
    pub(crate) buffers: Buffers,
    pub(crate) journal: Journal<D>,
    /// Somebody was told [`AppendError::Full`].
    pub(crate) full: bool,
    /// Since when something has not been covered by a checkpoint.
    pub(crate) dirty_since: Option<Duration>,
    pub(crate) bulk_bytes_since_checkpoint: u64,
    /// Some partition is to be filled without waiting for a checkpoint.
    pub(crate) fill_due: bool,
    /// Bulk waits for a fill.
    pub(crate) fill_awaited: bool,
    /// The journal has no free file: a checkpoint is due whatever else.
    pub(crate) checkpoint_wanted: bool,
    /// Snapshots taken for checkpoints, and the last of them that a durable checkpoint holds.
    pub(crate) checkpoint_round: u64,
    pub(crate) checkpoint_round_durable: u64,
    /// When a checkpoint that could not be written is tried again.
    pub(crate) checkpoint_again: Option<Duration>,
    /// Deleted partitions, and what an earlier life left, and when they go.
    pub(crate) graves: Vec<(Duration, Grave)>,
    /// Segments that retention gave up, and when they are to be gone.
    pub(crate) removals: VecDeque<Removal>,
    pub(crate) removals_due: Duration,
    /// Bytes of small files that were removed since the last rest.
    pub(crate) removed_small: u64,
    /// Until when space counts as short.
    pub(crate) space_short_until: Duration,
    /// Why the engine cannot go on, seen outside the commit loop.
    pub(crate) fault: Option<EngineFault>,
    /// What reads found wrong, not fetched yet.
    pub(crate) read_faults: Vec<String>,
    pub(crate) metrics: EngineMetrics,
}

/// How far the engine's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Running,
    /// Nothing new is taken; what is staged goes out.
    Stopping,
    /// Everything is durable and covered by a checkpoint.
    Stopped,
    /// The journal failed.
    Faulted,
}

/// One shard's engine. See the module.
pub struct Engine<D: Disk, T: 'static> {
    pub(crate) disk: D,
    pub(crate) settings: EngineSettings,
    pub(crate) sink: Box<dyn Sink<T>>,
    pub(crate) state: RefCell<State<D, T>>,
    pub(crate) reader: SegmentReader<D>,
    pub(crate) life: Cell<Life>,
    /// Wakes the commit loop, the bulk loop, the space loop, maintenance, removal.
    pub(crate) work: Signal,
    pub(crate) bulk_work: Signal,
    pub(crate) space_work: Signal,
    pub(crate) upkeep: Signal,
    pub(crate) removal_work: Signal,
    /// Wakes compaction.
    pub(crate) compaction_work: Signal,
    pub(crate) compaction_settings: RefCell<CompactionSettings>,
    /// Something was settled, filled or freed: whoever waits looks again.
    pub(crate) progress: Progress,
}

impl<D: Disk, T> State<D, T> {
    pub(crate) fn get(&self, slot: Slot) -> Option<&Partition<D, T>> {
        let place = self.places.get(slot.index as usize)?;
        if place.generation == slot.generation { place.partition.as_deref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut Partition<D, T>> {
        let place = self.places.get_mut(slot.index as usize)?;
        if place.generation == slot.generation { place.partition.as_deref_mut() } else { None }
    }

    /// A partition and the parts of the state that its changes touch.
    pub(crate) fn with(&mut self, slot: Slot) -> Option<(&mut Partition<D, T>, &mut Buffers, &Journal<D>)> {
        let place = self.places.get_mut(slot.index as usize)?;
        if place.generation != slot.generation {
            return None;
        }
        Some((place.partition.as_deref_mut()?, &mut self.buffers, &self.journal))
    }

    /// Slots of all partitions, in the order of their places.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        self.places
            .iter()
            .filter_map(|place| place.partition.as_ref().map(|partition| partition.slot))
            .collect()
    }

    pub(crate) fn slot_of(&self, id: &PartitionId) -> Option<Slot> {
        self.by_id.get(id).copied()
    }

    pub(crate) fn insert(&mut self, make: impl FnOnce(Slot) -> Partition<D, T>) -> Slot {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, partition: None });
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[index as usize];
        let slot = Slot { index, generation: place.generation };
        let mut partition = make(slot);
        partition.index_room = Rc::clone(&self.index_room);
        assert!(self.by_id.insert(partition.id, slot).is_none(), "a partition is here once");
        place.partition = Some(Box::new(partition));
        self.share_index_room();
        slot
    }

    /// Each active segment has as much room for its index as any other. Those that are larger get smaller when they grow.
    fn share_index_room(&self) {
        self.index_room.set(self.index_bytes_max / self.by_id.len().max(1));
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Box<Partition<D, T>>> {
        let place = self.places.get_mut(slot.index as usize)?;
        if place.generation != slot.generation {
            return None;
        }
        let partition = place.partition.take()?;
        place.generation += 1;
        self.vacant.push(slot.index);
        self.by_id.remove(&partition.id);
        self.share_index_room();
        Some(partition)
    }

    /// Puts a partition on the list for the next cycle.
    pub(crate) fn mark_dirty(&mut self, slot: Slot) {
        if let Some(partition) = self.get_mut(slot)
            && !partition.dirty
        {
            partition.dirty = true;
            self.dirty.push(slot);
        }
    }

    /// Asks for space for a partition.
    pub(crate) fn want_space(&mut self, slot: Slot) -> bool {
        let Some(partition) = self.get_mut(slot) else { return false };
        if partition.allocating || partition.offline.is_some() {
            return false;
        }
        partition.allocating = true;
        self.space_wanted.push_back(slot);
        true
    }

    /// Drops the oldest buffers while there is too much, as long as they are filled. Returns whether there is still
    /// too much: then a fill is due.
    pub(crate) fn evict(&mut self, bytes_max: usize) -> bool {
        while self.buffers.over(bytes_max) {
            let Some((number, slots)) = self.buffers.evict() else { return true };
            for slot in slots {
                if let Some(partition) = self.get_mut(slot) {
                    partition.evict(number);
                }
            }
        }
        false
    }
}

impl<D: Disk, T: 'static> Engine<D, T> {
    /// An engine without partitions. `journal_files` are those that recovery freed for this shard.
    pub fn new(
        disk: D,
        mut settings: EngineSettings,
        journal_files: Vec<crate::JournalFileInfo>,
        sink: impl Sink<T> + 'static,
    ) -> Rc<Self> {
        assert!(settings.shard.0 < settings.shards, "shards are numbered from 0");
        assert!(settings.incarnation.0 > 0, "an incarnation is made durable before the engine starts");
        settings.journal_file_bytes =
            settings.journal_file_bytes.clamp(JOURNAL_FILE_BYTES_MIN, JOURNAL_FILE_BYTES_MAX);
        let journal = Journal::new(&settings, journal_files);
        settings.bulk_bytes_min = settings.bulk_bytes_min.min(journal.group_bytes_max() as usize / 4);
        let index_bytes_max = settings.index_bytes_max;
        let reader = ReaderSettings { index_bytes_max, ..ReaderSettings::default() };
        let reader = SegmentReader::new(disk.clone(), reader);
        Rc::new(Engine {
            disk,
            sink: Box::new(sink),
            state: RefCell::new(State {
                places: Vec::new(),
                vacant: Vec::new(),
                by_id: HashMap::new(),
                index_room: Rc::new(Cell::new(settings.index_bytes_max)),
                index_bytes_max: settings.index_bytes_max,
                dirty: Vec::new(),
                space_wanted: VecDeque::new(),
                bulk_wanted: VecDeque::new(),
                ready: Vec::new(),
                moved: Vec::new(),
                went_offline: Vec::new(),
                staged_bytes: 0,
                staged_batches: 0,
                left_behind: 0,
                cadence: Cadence::default(),
                buffers: Buffers::default(),
                journal,
                full: false,
                dirty_since: None,
                bulk_bytes_since_checkpoint: 0,
                fill_due: false,
                fill_awaited: false,
                checkpoint_wanted: false,
                checkpoint_round: 0,
                checkpoint_round_durable: 0,
                checkpoint_again: None,
                graves: Vec::new(),
                removals: VecDeque::new(),
                removals_due: Duration::ZERO,
                removed_small: 0,
                space_short_until: Duration::ZERO,
                fault: None,
                read_faults: Vec::new(),
                metrics: EngineMetrics::default(),
            }),
            compaction_settings: RefCell::new(settings.compaction.clone()),
            settings,
            reader,
            life: Cell::new(Life::Running),
            work: Signal::default(),
            bulk_work: Signal::default(),
            space_work: Signal::default(),
            upkeep: Signal::default(),
            removal_work: Signal::default(),
            compaction_work: Signal::default(),
            progress: Progress::default(),
        })
    }

    /// Where a partition is.
    pub fn partition(&self, id: &PartitionId) -> Option<Slot> {
        self.state.borrow().slot_of(id)
    }

    /// Every partition here, in no order.
    pub fn partitions(&self) -> Vec<(PartitionId, Slot)> {
        let state = self.state.borrow();
        state.slots().into_iter().filter_map(|slot| Some((state.get(slot)?.id, slot))).collect()
    }

    /// Changes a partition's settings.
    pub fn set_config(&self, slot: Slot, config: LogConfig) {
        if let Some(partition) = self.state.borrow_mut().get_mut(slot) {
            partition.config = Rc::new(config);
        }
        self.upkeep.notify();
        self.compaction_work.notify();
    }

    /// Changes how compaction runs. A pass under way goes on as it began.
    pub fn set_compaction(&self, settings: CompactionSettings) {
        self.compaction_settings.replace(settings);
        self.compaction_work.notify();
    }

    /// Takes a batch that `wire::batch::check` found good: gives it offsets and its place, and stages it. The token
    /// comes back through the sink when the answer may leave; on an error it comes back at once.
    pub fn append(
        &self,
        slot: Slot,
        now_ms: i64,
        batch: Bytes,
        header: &BatchHeader,
        token: T,
    ) -> Result<Placed, (T, AppendError)> {
        assert_eq!(batch.len(), header.size(), "the header is that of the batch");
        if self.life.get() != Life::Running {
            return Err((token, AppendError::Refused(ErrorCode::KafkaStorageError)));
        }
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if let Err(error) = self.check_room(state, batch.len()) {
            if let (AppendError::Refused(_), Some(partition)) = (&error, state.get_mut(slot)) {
                partition.producers.refuse(now_ms, header);
            }
            return Err((token, error));
        }
        let refuse = |token, code| Err((token, AppendError::Refused(code)));
        let Some(partition) = state.get_mut(slot) else {
            return refuse(token, ErrorCode::UnknownTopicOrPartition);
        };
        if partition.offline.is_some() {
            return refuse(token, ErrorCode::KafkaStorageError);
        }
        if partition.deleting {
            return refuse(token, ErrorCode::UnknownTopicOrPartition);
        }
        match partition.producers.check(now_ms, header) {
            Ok(Verdict::Append) => {}
            Ok(Verdict::Duplicate { base_offset, last_offset, append_time }) => {
                let stamped = partition.config.message_timestamp_type == TimestampType::LogAppendTime;
                let placed = Placed {
                    base_offset,
                    log_append_time: if stamped { append_time.0 } else { -1 },
                    log_start_offset: partition.log_start,
                    duplicate: true,
                };
                return self.await_original(state, slot, last_offset, token).map(|()| placed);
            }
            Err(error) => return refuse(token, error.error_code()),
        }
        match self.place(state, slot, now_ms, batch, header, token) {
            Ok((placed, wants_space)) => {
                if wants_space && state.want_space(slot) {
                    self.space_work.notify();
                }
                state.mark_dirty(slot);
                self.work.notify();
                Ok(placed)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether there is memory and journal space for so many bytes more.
    fn check_room(&self, state: &mut State<D, T>, bytes: usize) -> Result<(), AppendError> {
        let staged = state.staged_bytes + state.buffers.pinned_bytes();
        let crowded = staged > 0 && staged + bytes > self.settings.staged_bytes_max;
        // Alone, a batch that is bulk goes past the journal: it need not fit there.
        let alone = state.staged_bytes == 0 && bytes >= self.settings.bulk_bytes_min;
        let journalled = if alone { 2 * BLOCK } else { state.staged_bytes + bytes };
        let journal = state.journal.room_for(journalled, state.staged_batches + 1);
        if !crowded && journal {
            return Ok(());
        }
        if !journal && (state.journal.disk_full || !state.journal.may_grow()) {
            // Only a checkpoint makes room, unless nothing has come since the last.
            state.checkpoint_wanted |= state.journal.bytes_since_checkpoint > 0;
        }
        self.upkeep.notify();
        if !journal && state.journal.disk_full {
            return Err(AppendError::Refused(ErrorCode::KafkaStorageError));
        }
        state.full = true;
        Err(AppendError::Full)
    }

    /// The answer to a retry waits until the original is durable.
    fn await_original(
        &self,
        state: &mut State<D, T>,
        slot: Slot,
        last_offset: Offset,
        token: T,
    ) -> Result<(), (T, AppendError)> {
        let partition = state.get_mut(slot).expect("the caller has looked");
        if last_offset < partition.high_watermark || planted!(self.settings, DuplicateAnsweredEarly) {
            state.ready.push((token, Ok(())));
            self.work.notify();
        } else if partition.waiters.len() >= WAITERS_MAX {
            state.full = true;
            return Err((token, AppendError::Full));
        } else {
            partition.waiters.push_back((last_offset, token));
        }
        Ok(())
    }

    fn place(
        &self,
        state: &mut State<D, T>,
        slot: Slot,
        now_ms: i64,
        batch: Bytes,
        header: &BatchHeader,
        token: T,
    ) -> Result<(Placed, bool), (T, AppendError)> {
        let partition = state.get_mut(slot).expect("the caller has looked");
        let stamp = partition.config.message_timestamp_type == TimestampType::LogAppendTime;
        let append_time = stamp.then_some(now_ms);
        let incoming = Incoming {
            size: batch.len() as u64,
            records: i64::from(header.last_offset_delta) + 1,
            max_timestamp: append_time.unwrap_or(header.max_timestamp),
        };
        let mark = partition.log.mark();
        let config = partition.config.clone();
        let placement = match partition.log.place(now_ms, &config, &incoming) {
            Ok(placement) => placement,
            Err(PlaceError::TooLarge) => {
                return Err((token, AppendError::Refused(ErrorCode::RecordListTooLarge)));
            }
            Err(PlaceError::Exhausted) => {
                return Err((token, AppendError::Refused(ErrorCode::KafkaStorageError)));
            }
        };
        let end = placement.position + incoming.size;
        if placement.rolled {
            partition.begin_segment(placement.segment_base);
        }
        let writer = partition.writers.back().expect("the active segment has a writer");
        assert_eq!(writer.base, placement.segment_base);
        let lacks_space = end > writer.allocated || !writer.is_ready();
        let cap = u64::from(config.segment_bytes);
        let wants_space = lacks_space || (end + writer.step / 2 > writer.allocated && writer.allocated < cap);
        if lacks_space && partition.held.is_none() {
            let producers = partition.producers.clone();
            let epochs = partition.epochs.clone();
            partition.held = Some(Box::new(Held { mark, producers, epochs }));
        }
        let placed = placed_header(header, placement.base_offset, partition.leader_epoch, append_time);
        partition.producers.update(now_ms, &placed);
        partition.epochs.assign(partition.leader_epoch, placement.base_offset);
        let size = batch.len();
        partition.staged_bytes += size;
        partition.staged.push_back(Staged {
            placement,
            leader_epoch: partition.leader_epoch,
            bytes: batch,
            append_time,
            max_timestamp: incoming.max_timestamp,
            token,
        });
        let log_start_offset = partition.log_start;
        state.staged_bytes += size;
        state.staged_batches += 1;
        state.metrics.batches += 1;
        state.metrics.batch_bytes += size as u64;
        let placed = Placed {
            base_offset: placement.base_offset,
            log_append_time: append_time.unwrap_or(-1),
            log_start_offset,
            duplicate: false,
        };
        Ok((placed, wants_space))
    }

    /// Reads from memory, or says that the disk must be read. Only what is below the high watermark.
    pub fn read(
        &self,
        slot: Slot,
        offset: Offset,
        bytes_max: usize,
        at_least_one: bool,
    ) -> Result<ReadOutcome<D::Buffer>, ReadError> {
        let mut state = self.state.borrow_mut();
        let Some(partition) = state.get(slot).filter(|partition| !partition.deleting) else {
            return Err(ReadError::Gone);
        };
        if partition.offline.is_some() {
            return Err(ReadError::Offline);
        }
        if offset < partition.log_start || offset > partition.log.log_end() {
            return Err(ReadError::OffsetOutOfRange);
        }
        if offset >= partition.high_watermark {
            return Ok(ReadOutcome::Empty);
        }
        // What memory holds of the compacted part is as it was before.
        let is_compacted = partition.compaction.cleaned.is_some_and(|cleaned| offset < cleaned);
        if !is_compacted && partition.chunks.front().is_some_and(|first| first.base_offset <= offset) {
            let want = Want { offset, below: partition.high_watermark, bytes_max, at_least_one };
            let (slices, is_part) = cache::read(&partition.chunks, &want);
            state.metrics.reads_cached += 1;
            return Ok(ReadOutcome::Cached { slices, is_part });
        }
        state.metrics.reads_disk += 1;
        Ok(ReadOutcome::Disk(DiskRead { slot, offset, bytes_max, at_least_one }))
    }

    /// Offsets of a partition.
    pub fn offsets(&self, slot: Slot) -> Option<Offsets> {
        let state = self.state.borrow();
        let partition = state.get(slot)?;
        Some(Offsets {
            log_start: partition.log_start,
            high_watermark: partition.high_watermark,
            log_end: partition.log.log_end(),
        })
    }

    /// Where an epoch ends (KIP-320).
    pub fn end_offset_for_epoch(&self, slot: Slot, epoch: LeaderEpoch) -> Option<EpochEnd> {
        let state = self.state.borrow();
        let partition = state.get(slot)?;
        partition.epochs.end_offset_for(epoch, partition.leader_epoch, partition.high_watermark)
    }

    /// The epoch under which the record at `offset` was written.
    pub fn epoch_of(&self, slot: Slot, offset: Offset) -> Option<LeaderEpoch> {
        self.state.borrow().get(slot)?.epochs.epoch_for(offset)
    }

    /// Moves the log start up to `offset` (-1 is the high watermark). The token comes back when that is durable.
    pub fn delete_records(&self, slot: Slot, offset: Offset, token: T) -> Result<Offset, (T, ErrorCode)> {
        if self.life.get() != Life::Running {
            return Err((token, ErrorCode::KafkaStorageError));
        }
        let mut state = self.state.borrow_mut();
        let Some(partition) = state.get_mut(slot) else {
            return Err((token, ErrorCode::UnknownTopicOrPartition));
        };
        if partition.offline.is_some() || partition.deleting {
            return Err((token, ErrorCode::KafkaStorageError));
        }
        let to = if offset.0 == -1 { partition.high_watermark } else { offset };
        if to.0 < 0 || to > partition.high_watermark {
            return Err((token, ErrorCode::OffsetOutOfRange));
        }
        let to = to.max(partition.log_start_wanted);
        partition.log_start_wanted = to;
        partition.notes.push_back((Note::LogStart(to), Some(token)));
        state.mark_dirty(slot);
        self.work.notify();
        Ok(to)
    }

    /// An empty partition whose producers may have written to another one of the same name.
    pub fn expect_old_producers(&self, slot: Slot) {
        if let Some(partition) = self.state.borrow_mut().get_mut(slot) {
            partition.producers.expect_old();
        }
    }

    /// The partition's producers, for DescribeProducers.
    pub fn producers(&self, slot: Slot) -> Vec<ActiveProducer> {
        let now_ms = self.disk.now_ms();
        let state = self.state.borrow();
        state.get(slot).map_or_else(Vec::new, |partition| partition.producers.active(now_ms).collect())
    }

    /// Bytes of batches in the partition's log.
    pub fn size_bytes(&self, slot: Slot) -> u64 {
        self.state.borrow().get(slot).map_or(0, |partition| partition.log.size())
    }

    /// The leader epoch that the next batch gets.
    pub fn leader_epoch(&self, slot: Slot) -> Option<LeaderEpoch> {
        self.state.borrow().get(slot).map(|partition| partition.leader_epoch)
    }

    /// Why a partition is offline.
    pub fn offline_reason(&self, slot: Slot) -> Option<Rc<str>> {
        self.state.borrow().get(slot)?.offline.clone()
    }

    /// Counters and gauges as they stand.
    pub fn metrics(&self) -> EngineMetrics {
        let mut state = self.state.borrow_mut();
        let mut metrics = state.metrics;
        state.metrics.group_micros_max = 0;
        metrics.partitions = state.by_id.len() as u64;
        let offline = |place: &&Place<D, T>| place.partition.as_ref().is_some_and(|p| p.offline.is_some());
        metrics.partitions_offline = state.places.iter().filter(offline).count() as u64;
        metrics.staged_bytes = (state.staged_bytes + state.buffers.pinned_bytes()) as u64;
        metrics.cache_bytes = state.buffers.bytes() as u64;
        let indexes =
            state.places.iter().filter_map(|place| place.partition.as_ref()).flat_map(|p| &p.indexes);
        metrics.index_bytes = indexes.map(|index| index.borrow().weight() as u64).sum();
        metrics.journal_files = state.journal.file_count() as u64;
        metrics.journal_files_free = state.journal.free_count() as u64;
        metrics
    }
}

impl<D: Disk, T> Partition<D, T> {
    /// The log was rolled: its new segment has no file yet.
    pub(crate) fn begin_segment(&mut self, base: Offset) {
        use crate::segment::SegmentIndex;
        use crate::writer::Writer;
        let step = self.writers.back().map_or(flumen_core::limits::ALLOCATE_BYTES_MIN, |writer| writer.step);
        self.writers.push_back(Writer::new(base, 0, step));
        let index = SegmentIndex::new(base.0, self.config.index_interval_bytes);
        self.indexes.push_back(Rc::new(RefCell::new(index)));
    }
}
