//! What the engine says and asks: settings, placements, read outcomes, errors, and the [`Sink`] that hears of
//! durability.

use std::fmt;
use std::time::Duration;

use flumen_core::limits::{BULK_BYTES_MIN, JOURNAL_FILE_BYTES, STAGED_BYTES_MAX};
use flumen_core::producer::PRODUCER_ID_EXPIRATION_MS;
use flumen_core::types::{Incarnation, LeaderEpoch, Offset, PartitionId, ShardId};
use flumen_wire::ErrorCode;

use crate::slices::Slices;

/// How one shard's engine is set up.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// This shard.
    pub shard: ShardId,
    /// How many shards the node has; journal files are dealt out by `number % shards`.
    pub shards: u16,
    /// This start of the node, durable before the engine is made.
    pub incarnation: Incarnation,
    /// The data folder's random identity.
    pub directory_id: [u8; 16],
    /// Bytes accepted and not yet in their segments at most; past it `append` answers [`AppendError::Full`].
    pub staged_bytes_max: usize,
    /// What the batch cache aims at (what is not filled yet stays, whatever this says).
    pub cache_bytes_max: usize,
    /// Bytes of the indexes of active segments, and as many of those of closed ones that are in use: the more segments share
    /// them, the sparser each is.
    pub index_bytes_max: usize,
    /// Size of a journal file.
    pub journal_file_bytes: u64,
    /// Journal files made at start.
    pub journal_files: usize,
    /// Journal bytes after which a checkpoint is due.
    pub checkpoint_bytes: u64,
    /// Time after which a checkpoint is due when anything is dirty.
    pub checkpoint_interval: Duration,
    /// Bytes that an active segment grows by until a checkpoint keeps its index, too: about what the first read of it
    /// after a crash scans. The last checkpoint of a life keeps it after a 256th of that.
    pub index_keep_bytes: u64,
    /// Time between two looks for segments to delete or to roll (`log.retention.check.interval.ms`).
    pub retention_interval: Duration,
    /// Space that a file which is removed gives back at once. One of less than a 32nd of that goes in one go.
    pub removal_step_bytes: u64,
    /// Staged bytes of one partition in one cycle from which they go past the journal.
    pub bulk_bytes_min: usize,
    /// `producer.id.expiration.ms`.
    pub producer_expiration_ms: i64,
    /// How compaction runs at first.
    pub compaction: CompactionSettings,
    /// The bug that a test wants to see found.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<PlantedBug>,
}

/// How compaction runs (`log.cleaner.*`). Sizes and rates are the node's; each shard has its share.
#[derive(Clone, Debug, PartialEq)]
pub struct CompactionSettings {
    /// `log.cleaner.enable`.
    pub enable: bool,
    /// `log.cleaner.backoff.ms`: rest when there is nothing to do, and after a failure.
    pub backoff: Duration,
    /// `log.cleaner.dedupe.buffer.size`: memory for maps of keys.
    pub dedupe_buffer_bytes: usize,
    /// `log.cleaner.io.buffer.load.factor`: how full a map may get.
    pub load_factor: f64,
    /// `log.cleaner.io.buffer.size`: memory for one read and one write.
    pub io_buffer_bytes: usize,
    /// `log.cleaner.io.max.bytes.per.second`: read and written together.
    pub io_bytes_per_second: f64,
    /// What hashes of keys begin with: no client can guess it.
    pub hash_seed: u64,
}

impl Default for CompactionSettings {
    fn default() -> CompactionSettings {
        CompactionSettings {
            enable: true,
            backoff: Duration::from_secs(15),
            dedupe_buffer_bytes: 128 << 20,
            load_factor: 0.9,
            io_buffer_bytes: 512 << 10,
            io_bytes_per_second: f64::MAX,
            hash_seed: 0,
        }
    }
}

/// One pass of compaction over one partition, for the log.
#[derive(Clone, Debug)]
pub struct CompactionRun {
    /// Which partition.
    pub id: PartitionId,
    /// Its directory, `<topic>-<partition>`.
    pub directory: String,
    /// Where the dirty part begins now.
    pub first_dirty: Offset,
    /// Distinct keys of the dirty part.
    pub keys: u64,
    /// Memory that their map took.
    pub map_bytes: u64,
    /// Segments that were replaced, and by how many.
    pub segments_before: u64,
    /// See `segments_before`.
    pub segments_after: u64,
    /// Records that were judged, and how many of them stayed.
    pub records_before: u64,
    /// See `records_before`.
    pub records_after: u64,
    /// Bytes read, some of them twice: once for the keys.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes by which the log shrank.
    pub bytes_removed: u64,
    /// How long it took.
    pub took: Duration,
    /// Why it ended early.
    pub failed: Option<String>,
}

impl CompactionRun {
    pub(crate) fn new(id: PartitionId, directory: String, first_dirty: Offset) -> CompactionRun {
        CompactionRun {
            id,
            directory,
            first_dirty,
            keys: 0,
            map_bytes: 0,
            segments_before: 0,
            segments_after: 0,
            records_before: 0,
            records_after: 0,
            bytes_read: 0,
            bytes_written: 0,
            bytes_removed: 0,
            took: Duration::ZERO,
            failed: None,
        }
    }
}

impl EngineSettings {
    /// The usual settings of one of `shards` shards, with `memory_bytes` for all of them.
    pub fn new(
        shard: ShardId,
        shards: u16,
        incarnation: Incarnation,
        directory_id: [u8; 16],
        memory_bytes: usize,
    ) -> EngineSettings {
        let share = memory_bytes / usize::from(shards.max(1));
        let staged_bytes_max = (share / 4).min(STAGED_BYTES_MAX / usize::from(shards.max(1)));
        EngineSettings {
            shard,
            shards,
            incarnation,
            directory_id,
            staged_bytes_max,
            cache_bytes_max: share / 4,
            index_bytes_max: share / 16,
            journal_file_bytes: JOURNAL_FILE_BYTES,
            journal_files: 2,
            checkpoint_bytes: (staged_bytes_max as u64 / 2)
                .clamp(JOURNAL_FILE_BYTES / 4, 2 * JOURNAL_FILE_BYTES),
            checkpoint_interval: Duration::from_secs(30),
            index_keep_bytes: 256 << 20,
            retention_interval: Duration::from_secs(300),
            removal_step_bytes: 32 << 20,
            bulk_bytes_min: BULK_BYTES_MIN,
            producer_expiration_ms: PRODUCER_ID_EXPIRATION_MS,
            compaction: CompactionSettings {
                dedupe_buffer_bytes: (128 << 20).min(memory_bytes / 8),
                ..CompactionSettings::default()
            },
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }
}

/// Mistakes that a storage engine may have. Each is built in behind this feature so that the test bed can show
/// that it finds them; none is compiled into a node.
#[cfg(feature = "planted-bugs")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlantedBug {
    /// The answer leaves before the journal write has completed.
    AnswerBeforeSync,
    /// The EXTENT entry is journalled before the bulk is synced.
    ExtentBeforeSync,
    /// The checkpoint says that bytes are filled whose writes have not completed.
    CheckpointBeforeFill,
    /// The checkpoint is written without syncing the fills.
    CheckpointBeforeSync,
    /// Recovery takes any well-formed group of a journal file, whatever its incarnation and LSN.
    StaleGroupAccepted,
    /// A journal file is written again before the checkpoint that covers it is durable.
    JournalFreedEarly,
    /// A bad group is taken for a torn tail whatever later groups say.
    CorruptionTakenForTornTail,
    /// Recovery applies groups that the checkpoint covers.
    FilledLsnIgnored,
    /// The directory is not synced after a segment was created.
    DirectoryNotSynced,
    /// Segments are unlinked before LOG_START is durable.
    UnlinkBeforeLogStart,
    /// A fill writes zeros over the head of the block that it shares with the one before.
    TailPrefixLost,
    /// A duplicate is answered at once, though the original is not durable yet.
    DuplicateAnsweredEarly,
    /// A compacted segment takes the old one's place before the checkpoint that counts on it is durable.
    SwapBeforeCheckpoint,
    /// The old segment is removed before the new one's `.swap` name is durable.
    OldRemovedBeforeSwap,
    /// Compaction drops tombstones at once.
    TombstoneDroppedEarly,
    /// Recovery removes a `.swap` that the checkpoint counts on.
    SwapDiscarded,
}

#[cfg(feature = "planted-bugs")]
impl PlantedBug {
    /// All of them.
    pub const ALL: [PlantedBug; 16] = [
        PlantedBug::AnswerBeforeSync,
        PlantedBug::ExtentBeforeSync,
        PlantedBug::CheckpointBeforeFill,
        PlantedBug::CheckpointBeforeSync,
        PlantedBug::StaleGroupAccepted,
        PlantedBug::JournalFreedEarly,
        PlantedBug::CorruptionTakenForTornTail,
        PlantedBug::FilledLsnIgnored,
        PlantedBug::DirectoryNotSynced,
        PlantedBug::UnlinkBeforeLogStart,
        PlantedBug::TailPrefixLost,
        PlantedBug::DuplicateAnsweredEarly,
        PlantedBug::SwapBeforeCheckpoint,
        PlantedBug::OldRemovedBeforeSwap,
        PlantedBug::TombstoneDroppedEarly,
        PlantedBug::SwapDiscarded,
    ];
}

/// A partition's place in its shard's engine: copied freely, checked on use, never valid again once the
/// partition is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Who hears of what became durable. Called from `run_journal` alone, never from within a call of the engine,
/// and with nothing of the engine borrowed: it may call the engine.
pub trait Sink<T> {
    /// Answers that may leave, in order per partition. The list is drained by the callee; what it leaves is dropped.
    fn settled(&self, answers: &mut Vec<(T, Result<(), ErrorCode>)>);
    /// Partitions whose high watermark (or log start) has moved, or that are no longer served.
    fn advanced(&self, partitions: &[(Slot, PartitionId)]);
    /// There is room again after an [`AppendError::Full`].
    fn room(&self);
    /// A partition went offline: its appends and reads answer KAFKA_STORAGE_ERROR from now on.
    fn partition_offline(&self, partition: PartitionId, reason: &str);
}

/// Where a batch went. Its answer may leave when the token comes back through [`Sink::settled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Offset of its first record (of the original's, for a duplicate).
    pub base_offset: Offset,
    /// What Produce answers: the broker's time under `message.timestamp.type=LogAppendTime`, else -1.
    pub log_append_time: i64,
    /// Start of the log at that moment.
    pub log_start_offset: Offset,
    /// Whether it was a retry of a batch that the log holds already.
    pub duplicate: bool,
}

/// Why a batch was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// Too much is staged: try again at [`Sink::room`].
    Full,
    /// The client's fault, or a partition that cannot take writes: what to answer.
    Refused(ErrorCode),
}

/// Offsets of one partition. All but `log_start` are exclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// First offset that can be read.
    pub log_start: Offset,
    /// End of what is acknowledged, hence readable.
    pub high_watermark: Offset,
    /// Offset of the next record.
    pub log_end: Offset,
}

/// What a read found.
#[derive(Debug)]
pub enum ReadOutcome<B> {
    /// Whole batches, from the one that holds the offset.
    Cached {
        /// Their bytes.
        slices: Slices<B>,
        /// There are more than `bytes_max` lets through.
        is_part: bool,
    },
    /// It lies on disk: give it to `read_disk`.
    Disk(DiskRead),
    /// The offset is the high watermark: nothing yet.
    Empty,
}

/// A read that needs the disk; plain data.
#[derive(Clone, Copy, Debug)]
pub struct DiskRead {
    /// Of which partition.
    pub slot: Slot,
    /// From where.
    pub offset: Offset,
    /// How much at most.
    pub bytes_max: usize,
    /// Whether the first batch comes whole, even when it is larger.
    pub at_least_one: bool,
}

/// Why a read failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// Below the log start or above the high watermark.
    OffsetOutOfRange,
    /// The partition is offline.
    Offline,
    /// The partition is not here (any more).
    Gone,
    /// The bytes on disk are not what was written; said with file and position by `take_read_faults`.
    Corrupt,
    /// The disk failed; said the same way.
    Io,
}

impl ReadError {
    /// What a client hears.
    pub fn error_code(self) -> ErrorCode {
        match self {
            ReadError::OffsetOutOfRange => ErrorCode::OffsetOutOfRange,
            ReadError::Offline => ErrorCode::KafkaStorageError,
            ReadError::Gone => ErrorCode::UnknownTopicOrPartition,
            ReadError::Corrupt => ErrorCode::CorruptMessage,
            ReadError::Io => ErrorCode::KafkaStorageError,
        }
    }
}

/// Why a partition could not be created, opened or deleted.
#[derive(Debug)]
pub enum StorageError {
    /// It is here already.
    Exists,
    /// The disk refused: what was done, and what it said.
    Io(String, std::io::Error),
    /// The engine is stopping.
    Stopping,
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorageError::Exists => f.write_str("the partition exists already"),
            StorageError::Io(what, error) => write!(f, "{what}: {error}"),
            StorageError::Stopping => f.write_str("the node is stopping"),
        }
    }
}

impl std::error::Error for StorageError {}

/// Why the engine cannot go on. The node must say so and exit non-zero: a start on a healthy disk has all that was
/// acknowledged.
#[derive(Debug)]
pub enum EngineFault {
    /// The journal failed: a group is undetermined.
    Journal {
        /// The file.
        file: String,
        /// Where in it.
        position: u64,
        /// What the disk said.
        error: std::io::Error,
    },
    /// A sync of everything failed: of no segment is it known what is on disk, and no later sync would tell.
    Sync(std::io::Error),
    /// The journal, or the memory in front of it, is full of what the segments in this directory of an offline partition
    /// lack, or may lack where a sync failed: only a start writes that again.
    Held(String),
}

impl fmt::Display for EngineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EngineFault::Journal { file, position, error } => {
                write!(f, "{file} at {position}: {error}; nothing of this group was acknowledged")?;
            }
            EngineFault::Sync(error) => {
                write!(f, "sync of the data folder: {error}; the journal still has what was acknowledged")?;
            }
            EngineFault::Held(directory) => {
                write!(f, "no room is left beside what is kept for {directory}, which is offline")?;
            }
        }
        f.write_str(". Mend the disk, then start the node again")
    }
}

impl std::error::Error for EngineFault {}

/// Counters and gauges of one engine, as they stand.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineMetrics {
    /// Partitions here.
    pub partitions: u64,
    /// Of these, offline.
    pub partitions_offline: u64,
    /// Groups written.
    pub groups: u64,
    /// Bytes of groups written.
    pub group_bytes: u64,
    /// Time from forming a group to its durability, summed, in microseconds.
    pub group_micros: u64,
    /// Longest of them since the last look, in microseconds.
    pub group_micros_max: u64,
    /// Batches appended.
    pub batches: u64,
    /// Bytes of batches appended.
    pub batch_bytes: u64,
    /// Bytes that went past the journal.
    pub bulk_bytes: u64,
    /// Bytes filled into segments from the journal's memory.
    pub filled_bytes: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Checkpoints that could not be written.
    pub checkpoints_failed: u64,
    /// Time that checkpoints took, summed, in microseconds.
    pub checkpoint_micros: u64,
    /// Bytes accepted and not yet in their segments.
    pub staged_bytes: u64,
    /// Bytes that the batch cache holds.
    pub cache_bytes: u64,
    /// Bytes of the indexes of active segments.
    pub index_bytes: u64,
    /// Journal files that exist.
    pub journal_files: u64,
    /// Of these, free.
    pub journal_files_free: u64,
    /// Reads answered from the cache.
    pub reads_cached: u64,
    /// Reads that went to disk.
    pub reads_disk: u64,
    /// Segments deleted by retention.
    pub segments_deleted: u64,
    /// Times that space ran out.
    pub storage_full: u64,
    /// Passes of compaction.
    pub compaction_runs: u64,
    /// Of these, ended early.
    pub compaction_runs_failed: u64,
    /// Bytes that compaction read.
    pub compaction_read_bytes: u64,
    /// Bytes that compaction wrote.
    pub compaction_written_bytes: u64,
    /// Time that compaction took, summed, in microseconds.
    pub compaction_micros: u64,
}

/// What a leader says of an epoch (KIP-320): the largest epoch not above the asked one, and where it ends.
pub type EpochEnd = (LeaderEpoch, Offset);
