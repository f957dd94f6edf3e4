//! The border between the storage engine and the world: what it asks of a disk.
//!
//! Two implementations: `flumen-node`'s on glommio (direct I/O), and the simulated disk of this crate's
//! tests, which loses, tears and reorders what was not synced. The engine is written once, against these
//! traits, so what the test bed proves is what runs in production.
//!
//! Everything here is used from one thread; nothing is `Send`. Paths are relative to the data folder, with
//! `/` between components.
//!
//! Rules of the contract:
//! - positions and lengths of `write_at` and `read_at` are multiples of [`BLOCK`];
//! - writes in flight at the same time are unordered, and none is durable before a `sync` that was called
//!   *after* it completed (or, for a file opened with `synchronous`, before its own completion);
//! - creating, renaming and removing are durable only after `sync_directory` of the parent;
//! - a failed `sync` says nothing of what is on disk, and is never retried by the engine.

use std::future::Future;
use std::io;
use std::rc::Rc;

/// Unit of direct I/O: positions and lengths are multiples of it.
pub const BLOCK: usize = 4096;

/// Memory that the disk can write from. Content is undefined when fresh.
pub trait Buffer: 'static {
    /// The bytes.
    fn as_slice(&self) -> &[u8];
    /// The bytes, to fill.
    fn as_mut_slice(&mut self) -> &mut [u8];
    /// Shortens it to `len` bytes (a multiple of [`BLOCK`]).
    fn truncate(&mut self, len: usize);
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// Create it; an error when it exists already.
    pub create_new: bool,
    /// Allow writing.
    pub write: bool,
    /// Every write is durable when it completes (`O_DSYNC`).
    pub synchronous: bool,
}

/// What `list` says of one directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Name within the directory.
    pub name: String,
    /// Length in bytes (0 for directories).
    pub len: u64,
    /// Whether it is a directory.
    pub is_directory: bool,
}

/// A data folder.
pub trait Disk: Clone + 'static {
    /// Memory for direct I/O.
    type Buffer: Buffer;
    /// An open file.
    type File: File<Buffer = Self::Buffer>;

    /// Memory of `len` bytes (a multiple of [`BLOCK`]), aligned for direct I/O, content undefined.
    fn allocate(&self, len: usize) -> Self::Buffer;

    /// Opens a file for direct I/O.
    fn open(&self, path: &str, mode: OpenMode) -> impl Future<Output = io::Result<Self::File>>;
    /// Reads a whole small file (indexes, checkpoints); refuses one longer than `len_max` with `InvalidData`.
    fn read_file(&self, path: &str, len_max: u64) -> impl Future<Output = io::Result<Vec<u8>>>;
    /// Creates or replaces a small file, without a sync. With `sync`, its content is durable on return.
    fn write_file(&self, path: &str, content: &[u8], sync: bool) -> impl Future<Output = io::Result<()>>;
    /// Creates a directory; no error when it exists.
    fn create_directory(&self, path: &str) -> impl Future<Output = io::Result<()>>;
    /// Entries of a directory, in no order. `""` is the data folder itself.
    fn list(&self, path: &str) -> impl Future<Output = io::Result<Vec<DirectoryEntry>>>;
    /// Renames a file or directory, replacing a file of that name.
    fn rename(&self, from: &str, to: &str) -> impl Future<Output = io::Result<()>>;
    /// Removes a file.
    fn remove_file(&self, path: &str) -> impl Future<Output = io::Result<()>>;
    /// Removes a directory and all that is in it.
    fn remove_directory(&self, path: &str) -> impl Future<Output = io::Result<()>>;
    /// Makes creations, renames and removals in this directory durable.
    fn sync_directory(&self, path: &str) -> impl Future<Output = io::Result<()>>;
    /// Makes durable all that was written so far to any file of the data folder (`syncfs`). Once it has failed, for any
    /// shard, it fails for all.
    fn sync_all(&self) -> impl Future<Output = io::Result<()>>;
    /// Whether every block of a file was written once, so that writing it again changes nothing but its content.
    fn is_laid_out(&self, path: &str) -> impl Future<Output = io::Result<bool>>;
    /// Waits. The simulated disk's time is virtual.
    fn sleep(&self, time: std::time::Duration) -> impl Future<Output = ()>;
    /// Does work that keeps a processor busy for milliseconds, where it stalls nobody. Not for I/O.
    fn offload<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> impl Future<Output = R> {
        std::future::ready(work())
    }
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> i64;
    /// A monotonic clock, for measuring and for deadlines.
    fn monotonic(&self) -> std::time::Duration;
}

/// An open file, for direct I/O. Dropping it closes it.
pub trait File: 'static {
    /// Memory for direct I/O.
    type Buffer: Buffer;

    /// Writes the whole buffer (its length a multiple of [`BLOCK`]) at `position`: all of it, or an error.
    fn write_at(&self, buffer: Rc<Self::Buffer>, position: u64) -> impl Future<Output = io::Result<()>>;
    /// Reads up to `len` bytes at `position`. Returns the buffer and how many of its first bytes are
    /// content: fewer than `len` only at the end of the file.
    fn read_at(&self, position: u64, len: usize) -> impl Future<Output = io::Result<(Self::Buffer, usize)>>;
    /// Makes completed writes durable (`fdatasync`).
    fn sync(&self) -> impl Future<Output = io::Result<()>>;
    /// Reserves space for `[0, len)` and makes the file at least that long, unwritten parts reading as
    /// zeros. `StorageFull` where there is none.
    fn preallocate(&self, len: u64) -> impl Future<Output = io::Result<()>>;
    /// Cuts (or extends) the file to `len`.
    fn truncate(&self, len: u64) -> impl Future<Output = io::Result<()>>;
}
