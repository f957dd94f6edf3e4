//! The storage engine: journal, segments, checkpoints, recovery; generic over a `Disk`.
#![forbid(unsafe_code)]
pub mod disk;
#[cfg(feature = "sim")]
pub mod sim;
