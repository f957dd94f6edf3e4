//! The storage engine: journal, segments, checkpoints, recovery; generic over a `Disk`.
#![forbid(unsafe_code)]
mod api;
pub mod disk;
pub mod identity;
pub mod metadata_log;
pub mod segment;
#[cfg(feature = "sim")]
pub mod sim;
mod slices;

#[cfg(feature = "planted-bugs")]
pub use api::PlantedBug;
pub use api::{
    AppendError, DiskRead, EngineMetrics, EngineSettings, EpochEnd, JournalFault, Offsets, Placed, ReadError,
    ReadOutcome, Sink, Slot, StorageError,
};
pub use slices::{Slice, Slices};
