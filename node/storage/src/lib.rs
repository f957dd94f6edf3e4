//! The storage engine: journal, segments, checkpoints, recovery; generic over a `Disk`.
#![forbid(unsafe_code)]
mod api;
mod bulk;
mod cache;
mod checkpoint;
mod commit;
mod compact;
pub mod disk;
mod engine;
pub mod identity;
mod journal_files;
mod lifecycle;
mod maintenance;
pub mod metadata_log;
mod partition;
mod recover;
mod removal;
pub mod segment;
mod signal;
#[cfg(feature = "sim")]
pub mod sim;
mod slices;
mod space;
mod writer;

#[cfg(feature = "planted-bugs")]
pub use api::PlantedBug;
pub use api::{
    AppendError, CompactionRun, CompactionSettings, DiskRead, EngineFault, EngineMetrics, EngineSettings,
    EpochEnd, Offsets, Placed, ReadError, ReadOutcome, Sink, Slot, StorageError,
};
pub use checkpoint::{CheckpointSummary, verify_checkpoint};
pub use engine::Engine;
pub use journal_files::JournalFileInfo;
pub use lifecycle::FoundRecord;
pub use recover::{KnownPartition, Recovered, RecoveredPartition, RecoveryError, RecoverySettings, recover};
pub use removal::Grave;
pub use slices::{Slice, Slices};
