//! Recovery: from what a crash left to partitions that can be served. Runs before any shard serves, over all of the
//! data folder, whatever number of shards wrote it.
//!
//! ```text
//!   sync all that is visible ─▶ newest checkpoints ─▶ journals, by (incarnation, LSN) ─▶ missing bytes into segments
//!   ─▶ files cut to their true ends ─▶ sync ─▶ one checkpoint for all ─▶ older checkpoints go, journals are free
//! ```
//!
//! Never reads a segment to find its end. Idempotent: until the new checkpoint is durable nothing that it replaces is
//! touched, and what is written into segments is what any later attempt would write again.
//!
//! What is broken stays: a partition whose acknowledged data is damaged goes offline, with file and position, and so it
//! stays at later starts; the journals that hold its data are not used again.

mod checkpoints;
mod directories;
mod journals;
mod replay;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::time::Duration;

use flumen_core::config::LogConfig;
use flumen_core::epochs::EpochCache;
use flumen_core::log::Log;
use flumen_core::producer::ProducerTable;
use flumen_core::types::{Incarnation, LeaderEpoch, Lsn, Offset, PartitionId};

use crate::checkpoint::{Checkpoint, Record, SHARD_ALL};
use crate::disk::Disk;
use crate::journal_files::JournalFileInfo;
use crate::maintenance::write_checkpoint;
use crate::removal::Grave;
use replay::Replay;

/// How to recover.
#[derive(Clone, Debug)]
pub struct RecoverySettings {
    /// This start of the node, durable already and above every earlier one.
    pub incarnation: Incarnation,
    /// The data folder's identity.
    pub directory_id: [u8; 16],
    /// `producer.id.expiration.ms`.
    pub producer_expiration_ms: i64,
    /// Bytes of bulk, journalled by its extent alone, that are read again to compare their checksums.
    pub verify_bytes_max: u64,
    /// The bug that a test wants to see found.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<crate::api::PlantedBug>,
}

impl RecoverySettings {
    /// The usual ones.
    pub fn new(incarnation: Incarnation, directory_id: [u8; 16]) -> RecoverySettings {
        RecoverySettings {
            incarnation,
            directory_id,
            producer_expiration_ms: flumen_core::producer::PRODUCER_ID_EXPIRATION_MS,
            verify_bytes_max: 64 << 20,
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }
}

/// A partition that metadata knows.
#[derive(Clone, Debug)]
pub struct KnownPartition {
    /// Its directory, `<topic>-<partition>`.
    pub directory: String,
    /// Its settings.
    pub config: LogConfig,
    /// The epoch under which this node leads it from now on.
    pub leader_epoch: LeaderEpoch,
}

/// A partition as recovery leaves it, to be adopted by the shard that owns it.
#[derive(Debug)]
pub struct RecoveredPartition {
    /// Which.
    pub id: PartitionId,
    /// Its directory.
    pub directory: String,
    /// Why it cannot be served, with file and position.
    pub offline: Option<String>,
    pub(crate) config: LogConfig,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) log: Log,
    /// How far compaction came.
    pub(crate) cleaned: Option<Offset>,
    pub(crate) producers: ProducerTable,
    pub(crate) epochs: EpochCache,
    /// What checkpoints say of it while it is offline.
    pub(crate) frozen: Option<Box<Record>>,
}

impl RecoveredPartition {
    /// First and next offset.
    pub fn offsets(&self) -> (Offset, Offset) {
        (self.log.log_start(), self.log.log_end())
    }
}

/// What recovery came to. `Send`: it is dealt out to the shards.
#[derive(Debug)]
pub struct Recovered {
    /// Every known partition, by id.
    pub partitions: Vec<RecoveredPartition>,
    /// What is to be removed, whichever shard does it.
    pub graves: Vec<Grave>,
    /// Journal files, and which of them may be used again.
    pub journal_files: Vec<JournalFileInfo>,
    /// What was found amiss, each with file and position, for the log.
    pub findings: Vec<String>,
    /// Bytes of journals read.
    pub journal_bytes: u64,
    /// Bytes written into segments.
    pub written_bytes: u64,
    /// How long it took.
    pub took: Duration,
}

impl Recovered {
    /// The journal files of one of `shards` shards.
    pub fn journal_files_of(&self, shard: u16, shards: u16) -> Vec<JournalFileInfo> {
        let mine = |file: &&JournalFileInfo| file.number % u32::from(shards) == u32::from(shard);
        self.journal_files.iter().filter(mine).copied().collect()
    }
}

/// Why a node cannot start on this data folder.
#[derive(Debug)]
pub enum RecoveryError {
    /// The disk failed: what was done, and what it said.
    Io(String, io::Error),
    /// A journal of another data folder lies here.
    Foreign(String),
    /// There is no checkpoint at all, and here is a partition that was made in an earlier life.
    CheckpointMissing(String),
}

impl fmt::Display for RecoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoveryError::Io(what, error) => write!(f, "{what}: {error}"),
            RecoveryError::Foreign(path) => {
                write!(f, "{path} belongs to another data folder: move it away, or restore node.meta")
            }
            RecoveryError::CheckpointMissing(directory) => write!(
                f,
                "the folder checkpoint is empty, but {directory} has been in use: without a checkpoint nobody knows what of \
                 it was acknowledged. Restore the folder as a whole (a copy that was made while the node ran is none); \
                 nothing was changed"
            ),
        }
    }
}

impl std::error::Error for RecoveryError {}

pub(crate) fn failed(what: &str) -> impl FnOnce(io::Error) -> RecoveryError + '_ {
    move |error| RecoveryError::Io(what.to_owned(), error)
}

/// Recovery under way.
pub(crate) struct Recovery<'a, D: Disk> {
    disk: &'a D,
    settings: &'a RecoverySettings,
    now_ms: i64,
    /// In the order of ids, so that the same disk gives the same run.
    replays: BTreeMap<PartitionId, Replay>,
    graves: Vec<Grave>,
    findings: Vec<String>,
    journal_bytes: u64,
    written_bytes: u64,
    verify_left: u64,
}

/// Recovers a data folder. `known` are the partitions that metadata has; directories of others are to be removed.
pub async fn recover<D: Disk>(
    disk: &D,
    settings: &RecoverySettings,
    known: &HashMap<PartitionId, KnownPartition>,
) -> Result<Recovered, RecoveryError> {
    let started = disk.monotonic();
    for directory in ["journal", "checkpoint"] {
        disk.create_directory(directory).await.map_err(failed(directory))?;
    }
    // What is visible may not be durable: after a crash of the process alone, the next one may take the machine.
    disk.sync_all().await.map_err(failed("sync of the data folder"))?;
    for directory in ["", "journal", "checkpoint"] {
        disk.sync_directory(directory).await.map_err(failed("sync of a directory"))?;
    }
    let mut recovery = Recovery {
        disk,
        settings,
        now_ms: disk.now_ms(),
        replays: BTreeMap::new(),
        graves: Vec::new(),
        findings: Vec::new(),
        journal_bytes: 0,
        written_bytes: 0,
        verify_left: settings.verify_bytes_max,
    };
    let base = recovery.read_checkpoints(known).await?;
    recovery.check_new_directories(&base).await?;
    let files = recovery.read_journals(&base).await?;
    recovery.settle_directories(known).await?;
    disk.sync_all().await.map_err(failed("sync of the data folder"))?;
    recovery.sync_directories().await?;
    recovery.write_checkpoint(&base).await?;
    let journal_files = recovery.free_files(&files).await;
    let mut recovered = Recovered {
        partitions: Vec::new(),
        graves: recovery.graves,
        journal_files,
        findings: recovery.findings,
        journal_bytes: recovery.journal_bytes,
        written_bytes: recovery.written_bytes,
        took: Duration::ZERO,
    };
    recovered.partitions = recovery.replays.into_values().map(Replay::into_recovered).collect();
    recovered.took = disk.monotonic().saturating_sub(started);
    Ok(recovered)
}

impl<D: Disk> Recovery<'_, D> {
    /// One checkpoint that covers everything; then those before it go.
    async fn write_checkpoint(&mut self, base: &checkpoints::Base) -> Result<(), RecoveryError> {
        let incarnation = self.settings.incarnation;
        let records = self.replays.values().map(|replay| replay.record(incarnation)).collect();
        let checkpoint =
            Checkpoint { incarnation, shard: SHARD_ALL, number: 0, durable_lsn: Lsn(0), records };
        let mut written = write_checkpoint(self.disk, &checkpoint, &|| true).await;
        if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull) {
            // What is to be removed has what is lacking.
            for grave in self.graves.drain(..) {
                grave.remove(self.disk).await;
            }
            written = write_checkpoint(self.disk, &checkpoint, &|| true).await;
        }
        written.map_err(failed("writing the checkpoint"))?;
        for name in &base.names {
            // One that stays is older than the one that counts.
            self.disk.remove_file(&format!("checkpoint/{name}")).await.ok();
        }
        Ok(())
    }

    /// The files, with those marked that hold what an offline partition may need.
    async fn free_files(&mut self, files: &[journals::JournalFile]) -> Vec<JournalFileInfo> {
        let mut free = Vec::new();
        for file in files {
            let pinned = file
                .first
                .is_some_and(|first| self.replays.values().any(|replay| replay.pins(first.incarnation)));
            if pinned {
                self.findings.push(format!("{} is kept for a partition that is offline", file.path));
            }
            // Where the disk cannot tell, it is laid out again.
            let laid_out = self.disk.is_laid_out(&file.path).await.unwrap_or(false);
            free.push(JournalFileInfo { usable: !pinned, laid_out, ..file.info });
        }
        free
    }

    /// Takes a partition offline for good, or (`corrupt` is `None`) until the disk lets it recover.
    fn offline(&mut self, id: PartitionId, reason: String, corrupt: Option<Incarnation>) {
        if let Some(replay) = self.replays.get_mut(&id)
            && replay.take_offline(reason, corrupt)
        {
            let reason = replay.offline.clone().unwrap_or_default();
            self.findings.push(format!("{} is offline: {reason}", replay.known.directory));
        }
    }
}
