//! The metadata log on disk: records appended and synced, snapshots, recovery. Plain files of its own, recovered
//! before anything else. One task of one shard owns it.
//!
//! ```text
//!   metadata/<offset>.snapshot    all metadata after `offset` records
//!   metadata/<offset>.log         the frames from record `offset` on
//! ```
//!
//! A frame is the records of one decision, so that a decision is there whole or not at all. Appending is one
//! durable write; the last partial block is written again with an identical beginning.
//!
//! When the log has grown by `snapshot_bytes`, a snapshot is written and a new log begun:
//!
//! ```text
//!   S.snapshot.tmp, synced ─> S.snapshot, directory synced ─> S.log.tmp, synced ─> S.log, directory synced
//!                                                              ─> what is older is removed
//! ```
//!
//! Up to the last rename the old log goes on being the log, so a failure before it costs nothing. Recovery takes
//! the newest snapshot, and the newest log that begins at or before it.
//!
//! Torn or corrupt: appends wait for each other, so a frame behind a bad one proves that the bad one was durable:
//! corruption, and the node does not start. A bad frame with nothing behind it is a write that did not complete;
//! it is cut, and was never acknowledged.

mod codec;
mod format;
mod recovery;
#[cfg(test)]
mod tests;
mod verify;

use std::fmt;
use std::io;
use std::rc::Rc;

use flumen_core::metadata::{Image, Record, ReplayError};

use self::format::{FileHeader, FileKind, FrameHeader, PAYLOAD_BYTES_MAX, encode_frame};
use crate::disk::{BLOCK, Buffer, Disk, File, OpenMode};

pub use self::verify::verify;

/// The folder of the metadata log within the data folder.
pub const METADATA_DIRECTORY: &str = "metadata";

/// Step by which a log's space is allocated.
const ALLOCATE_BYTES: u64 = 1 << 20;
/// Records of one frame of a snapshot.
const SNAPSHOT_FRAME_RECORDS: usize = 256;
/// Largest file that recovery reads: a log that could not be snapshotted for long, or a snapshot of
/// everything that the limits allow.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Why the metadata log cannot be recovered.
#[derive(Debug)]
pub enum MetadataLogError {
    /// The disk failed.
    Io {
        /// At which file.
        file: String,
        /// How.
        error: io::Error,
    },
    /// Bytes that were durable are not what was written. They are left as they are.
    Corrupt {
        /// In which file.
        file: String,
        /// Where.
        position: u64,
        /// What is wrong.
        reason: String,
    },
    /// A file that has to be there is not.
    Missing(String),
    /// The records contradict each other.
    Replay(ReplayError),
}

impl fmt::Display for MetadataLogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetadataLogError::Io { file, error } => write!(f, "{file}: {error}"),
            MetadataLogError::Corrupt { file, position, reason } => write!(
                f,
                "{file} is corrupt at position {position}: {reason}. Nothing was changed; restore the file, or the \
                 data folder, from a replica or a backup"
            ),
            MetadataLogError::Missing(file) => write!(f, "{file} is missing; restore it from a backup"),
            MetadataLogError::Replay(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for MetadataLogError {}

/// Why records were not appended.
#[derive(Debug)]
pub enum AppendError {
    /// There is no space. Nothing was written; it can be tried again.
    Full(io::Error),
    /// They are more than one decision may make. Nothing was written.
    TooLarge,
    /// A write failed, now or before, and what is on disk is not known: the node has to end and to recover.
    Failed(String),
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AppendError::Full(error) => write!(f, "no space for the metadata log: {error}"),
            AppendError::TooLarge => write!(f, "more metadata records than one request may make"),
            AppendError::Failed(reason) => write!(f, "the metadata log failed: {reason}"),
        }
    }
}

impl std::error::Error for AppendError {}

/// The metadata log, open for appending.
pub struct MetadataLog<D: Disk> {
    disk: D,
    file: D::File,
    header: FileHeader,
    /// Length of the frames of the file, header included.
    position: u64,
    /// Length of the file: space that is allocated.
    allocated: u64,
    /// Content of the last, partial block.
    tail: Vec<u8>,
    next_offset: u64,
    epoch: u64,
    snapshot_bytes: u64,
    /// Length from which a snapshot is due.
    snapshot_due_at: u64,
    failed: Option<String>,
    fresh_uuid: Box<dyn FnMut() -> [u8; 16]>,
}

impl<D: Disk> MetadataLog<D> {
    /// Recovers the log, or begins one where there is none; returns it with the metadata that it holds.
    /// `epoch` marks what this start appends and is at least that of every frame (the incarnation will do),
    /// `snapshot_bytes` is how much it grows between snapshots, `fresh_uuid` gives random bytes.
    pub async fn recover(
        disk: D,
        epoch: u64,
        snapshot_bytes: u64,
        fresh_uuid: impl FnMut() -> [u8; 16] + 'static,
    ) -> Result<(MetadataLog<D>, Image), MetadataLogError> {
        recovery::recover(disk, epoch, snapshot_bytes, Box::new(fresh_uuid)).await
    }

    /// Offset of the next record.
    pub fn next_offset(&self) -> u64 {
        self.next_offset
    }

    /// Appends the records of one decision. When this returns they are durable.
    pub async fn append(&mut self, records: &[Record]) -> Result<(), AppendError> {
        if let Some(reason) = &self.failed {
            return Err(AppendError::Failed(reason.clone()));
        }
        if records.is_empty() {
            return Ok(());
        }
        let payload = codec::encode(records);
        let Some(count) = u32::try_from(records.len()).ok().filter(|_| payload.len() <= PAYLOAD_BYTES_MAX)
        else {
            return Err(AppendError::TooLarge);
        };
        let header = FrameHeader { offset: self.next_offset, epoch: self.epoch, count };
        let frame = encode_frame(&self.header.uuid, header, &payload);
        self.make_space(frame.len() as u64).await?;
        self.write(&frame).await?;
        self.next_offset = header.end();
        Ok(())
    }

    async fn make_space(&mut self, len: u64) -> Result<(), AppendError> {
        let needed = (self.position + len).next_multiple_of(BLOCK as u64);
        if needed <= self.allocated {
            return Ok(());
        }
        let target = needed.next_multiple_of(ALLOCATE_BYTES);
        if target > FILE_BYTES_MAX {
            return Err(AppendError::Full(io::ErrorKind::FileTooLarge.into()));
        }
        let done = async {
            self.file.preallocate(target).await?;
            // The length is part of what makes later writes durable.
            self.file.sync().await
        };
        match done.await {
            Ok(()) => {
                self.allocated = target;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Err(AppendError::Full(error)),
            Err(error) => Err(self.fail(&error)),
        }
    }

    async fn write(&mut self, frame: &[u8]) -> Result<(), AppendError> {
        let start = self.position - self.tail.len() as u64;
        let content = self.tail.len() + frame.len();
        let mut buffer = self.disk.allocate(content.next_multiple_of(BLOCK));
        let bytes = buffer.as_mut_slice();
        bytes[..self.tail.len()].copy_from_slice(&self.tail);
        bytes[self.tail.len()..content].copy_from_slice(frame);
        bytes[content..].fill(0);
        let tail = bytes[content / BLOCK * BLOCK..content].to_vec();
        // The file is open for synchronous writes: what completes is durable.
        match self.file.write_at(Rc::new(buffer), start).await {
            Ok(()) => {
                self.position += frame.len() as u64;
                self.tail = tail;
                Ok(())
            }
            Err(error) => Err(self.fail(&error)),
        }
    }

    fn fail(&mut self, error: &io::Error) -> AppendError {
        let reason = format!("{}: {error}", log_path(self.header.offset));
        self.failed = Some(reason.clone());
        AppendError::Failed(reason)
    }

    /// Whether the log has grown enough for a snapshot.
    pub fn is_snapshot_due(&self) -> bool {
        self.failed.is_none() && self.position >= self.snapshot_due_at
    }

    /// Writes a snapshot of `image`, which is all that was appended, and begins a new log. When it fails, the
    /// old log goes on being the log; whether appending still works, the next append says.
    pub async fn snapshot(&mut self, image: &Image) -> io::Result<()> {
        assert_eq!(image.offset(), self.next_offset, "a snapshot is of everything that was appended");
        if let Some(reason) = &self.failed {
            return Err(io::Error::other(reason.clone()));
        }
        // Not again at once if this fails.
        self.snapshot_due_at = self.position + self.snapshot_bytes;
        let offset = self.next_offset;
        let snapshot = encode_snapshot((self.fresh_uuid)(), self.epoch, image);
        if snapshot.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a snapshot that no start would read"));
        }
        let path = snapshot_path(offset);
        let temporary = format!("{path}.tmp");
        self.disk.write_file(&temporary, &snapshot, true).await?;
        self.disk.rename(&temporary, &path).await?;
        self.disk.sync_directory(METADATA_DIRECTORY).await?;
        let header = FileHeader { uuid: (self.fresh_uuid)(), offset, epoch: self.epoch };
        if header.offset == self.header.offset {
            return Ok(());
        }
        let (file, allocated) = create_log(&self.disk, header).await?;
        self.file = file;
        self.header = header;
        self.position = BLOCK as u64;
        self.allocated = allocated;
        self.tail = Vec::new();
        self.snapshot_due_at = self.position + self.snapshot_bytes;
        if let Err(error) = publish_log(&self.disk, offset).await {
            // Which of the two logs a recovery would find is not known, so nothing may be appended to either.
            self.fail(&error);
            return Err(error);
        }
        // What is left behind is removed by the next snapshot or recovery.
        let _ = recovery::remove_older(&self.disk, offset, offset).await;
        Ok(())
    }
}

/// Makes an empty log under a temporary name; returns it with its length.
async fn create_log<D: Disk>(disk: &D, header: FileHeader) -> io::Result<(D::File, u64)> {
    let temporary = format!("{}.tmp", log_path(header.offset));
    match disk.remove_file(&temporary).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.open(&temporary, OpenMode { create_new: true, write: true, synchronous: true }).await?;
    file.preallocate(ALLOCATE_BYTES).await?;
    let mut buffer = disk.allocate(BLOCK);
    buffer.as_mut_slice().copy_from_slice(&header.encode(FileKind::Log));
    file.write_at(Rc::new(buffer), 0).await?;
    file.sync().await?;
    Ok((file, ALLOCATE_BYTES))
}

/// Gives a new log its name.
async fn publish_log<D: Disk>(disk: &D, offset: u64) -> io::Result<()> {
    let path = log_path(offset);
    disk.rename(&format!("{path}.tmp"), &path).await?;
    disk.sync_directory(METADATA_DIRECTORY).await
}

/// A whole snapshot file. It ends with a frame without records.
fn encode_snapshot(uuid: [u8; 16], epoch: u64, image: &Image) -> Vec<u8> {
    let mut bytes = FileHeader { uuid, offset: image.offset(), epoch }.encode(FileKind::Snapshot);
    let mut offset = 0;
    for records in image.snapshot().chunks(SNAPSHOT_FRAME_RECORDS) {
        let count = u32::try_from(records.len()).expect("at most SNAPSHOT_FRAME_RECORDS");
        let header = FrameHeader { offset, epoch, count };
        bytes.extend(encode_frame(&uuid, header, &codec::encode(records)));
        offset = header.end();
    }
    bytes.extend(encode_frame(&uuid, FrameHeader { offset, epoch, count: 0 }, &[]));
    bytes
}

fn log_path(offset: u64) -> String {
    format!("{METADATA_DIRECTORY}/{offset:020}.log")
}

fn snapshot_path(offset: u64) -> String {
    format!("{METADATA_DIRECTORY}/{offset:020}.snapshot")
}
