//! The engine's disk, on glommio: direct I/O through the shard's own ring.
//!
//! Owned by one shard; each shard mounts the data folder for itself. glommio's traps are guarded here: writes that
//! end short are continued, reads end where the file ends and never show what was in the buffer before, the polled
//! ring is kept out of use (`runtime`), and opening a file that is being removed is an error, not a panic.
//!
//! What has no operation on the ring (rename, list, `syncfs`, ...) runs on the shard's blocking threads.
use crate::runtime::{self, blocking};
use crate::runtime::{InFlight, quietly};
use crate::sys;
use flumen_storage::disk::{self, BLOCK, DirectoryEntry, Disk, OpenMode};
use glommio::io::{BufferedFile, DmaBuffer, DmaFile, OpenOptions, ReadResult};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

#[cfg(any(test, feature = "fault-injection"))]
mod fault;
#[cfg(not(any(test, feature = "fault-injection")))]
#[path = "disk/no_fault.rs"]
mod fault;
#[cfg(test)]
mod tests;

use fault::{Faults, Operation};

/// Name of the file, in the data folder, that each shard opens before any other (see `runtime`): one block.
pub const PROBE_FILE: &str = ".probe";

/// Memory that the disk writes from, or has read into.
pub struct Buffer(Memory);

enum Memory {
    /// Shared with a write in flight, which outlives the future that waits for it.
    Own(Rc<DmaBuffer>),
    /// What a read returned. Copied when somebody wants to change it.
    Read(ReadResult),
}

impl Buffer {
    /// Memory of `len` bytes, aligned for direct I/O, content undefined.
    pub fn allocate(len: usize) -> Buffer {
        assert!(len > 0 && len.is_multiple_of(BLOCK), "direct I/O is in whole blocks, not {len} bytes");
        Buffer(Memory::Own(Rc::new(glommio::allocate_dma_buffer(len))))
    }

    fn copy_of(bytes: &[u8]) -> Buffer {
        Buffer(Memory::Own(Rc::new(dma_copy(bytes))))
    }

    /// For glommio to write from.
    fn dma(&self) -> Rc<DmaBuffer> {
        match &self.0 {
            Memory::Own(buffer) => buffer.clone(),
            Memory::Read(result) => Rc::new(dma_copy(result)),
        }
    }
}

fn dma_copy(bytes: &[u8]) -> DmaBuffer {
    // glommio makes no empty buffer: at least one block.
    let mut buffer = glommio::allocate_dma_buffer(bytes.len().next_multiple_of(BLOCK).max(BLOCK));
    buffer.trim_to_size(bytes.len());
    buffer.as_bytes_mut().copy_from_slice(bytes);
    buffer
}

impl disk::Buffer for Buffer {
    fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Memory::Own(buffer) => buffer.as_bytes(),
            Memory::Read(result) => result,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        let unshared = match &mut self.0 {
            Memory::Own(buffer) => Rc::get_mut(buffer).is_some(),
            Memory::Read(_) => false,
        };
        if !unshared {
            *self = Buffer::copy_of(disk::Buffer::as_slice(self));
        }
        match &mut self.0 {
            Memory::Own(buffer) => Rc::get_mut(buffer).expect("copied if shared").as_bytes_mut(),
            Memory::Read(_) => unreachable!("replaced above"),
        }
    }

    fn truncate(&mut self, len: usize) {
        match &mut self.0 {
            Memory::Own(buffer) => match Rc::get_mut(buffer) {
                Some(buffer) => buffer.trim_to_size(len),
                None => *self = Buffer::copy_of(&disk::Buffer::as_slice(self)[..len]),
            },
            Memory::Read(result) => {
                *result = ReadResult::slice(result, 0, len).expect("a truncation is within the buffer");
            }
        }
    }
}

/// A shard's view of the data folder.
#[derive(Clone)]
pub struct GlommioDisk {
    root: Rc<Path>,
    /// Whether the file system takes direct I/O.
    direct: bool,
    sync_gate: Arc<SyncGate>,
    faults: Faults,
}

/// Lets one sync of everything through at a time, for all shards of a node, and none after one that failed: the failed
/// one may have lost what any shard wrote, and a later one would not tell. Held on blocking threads alone.
#[derive(Debug, Default)]
pub struct SyncGate(Mutex<Gate>);

#[derive(Debug, Default)]
struct Gate {
    /// One for all syncs: the kernel tells each open file of an error once, and a file that is opened later perhaps not
    /// of one that somebody else was told of.
    root: Option<std::fs::File>,
    failed: Option<io::ErrorKind>,
}

impl SyncGate {
    fn pass(&self, root: &Path) -> io::Result<()> {
        let mut gate = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kind) = gate.failed {
            return Err(io::Error::new(kind, "a sync of the data folder has failed before"));
        }
        let synced = gate.sync(root);
        gate.failed = synced.as_ref().err().map(io::Error::kind);
        synced
    }
}

impl Gate {
    fn sync(&mut self, root: &Path) -> io::Result<()> {
        let root = match self.root.take() {
            Some(root) => root,
            None => std::fs::File::open(root)?,
        };
        sys::sync_file_system(self.root.insert(root))
    }
}

impl GlommioDisk {
    /// Mounts the folder, on the shard that will use it. `direct`: what the probe of the file system said. All shards of
    /// a node have one gate.
    pub fn mount(root: &Path, direct: bool, sync_gate: Arc<SyncGate>) -> GlommioDisk {
        GlommioDisk { root: root.into(), direct, sync_gate, faults: Faults::from_environment() }
    }

    fn path(&self, path: &str) -> PathBuf {
        debug_assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".."), "{path}");
        if path.is_empty() { self.root.to_path_buf() } else { self.root.join(path) }
    }

    /// Runs a blocking operation on a path.
    async fn on_path<T, F>(&self, operation: Operation, path: &str, f: F) -> io::Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Path) -> io::Result<T> + Send + 'static,
    {
        self.faults.check(operation, path)?;
        let full = self.path(path);
        blocking(move || f(&full).map_err(|error| named(error, &full))).await
    }
}

/// Adds the path to an error, keeping its kind.
fn named(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Disk for GlommioDisk {
    type Buffer = Buffer;
    type File = GlommioFile;

    fn allocate(&self, len: usize) -> Buffer {
        Buffer::allocate(len)
    }

    async fn open(&self, path: &str, mode: OpenMode) -> io::Result<GlommioFile> {
        self.faults.check(Operation::Open, path)?;
        let full = self.path(path);
        let mut options = OpenOptions::new();
        options.read(true).write(mode.write || mode.create_new).create_new(mode.create_new).mode(0o644);
        if mode.synchronous {
            options.custom_flags(libc::O_DSYNC);
        }
        let _in_flight = InFlight::new();
        let handle = if self.direct {
            // glommio looks at the path again after it opened the file, and panics when it is gone by then.
            let opened = survive(options.dma_open(&full)).await;
            let opened = opened.ok_or_else(|| named(io::ErrorKind::NotFound.into(), &full))?;
            Handle::Direct(opened.map_err(|error| passing(error.into()))?)
        } else {
            Handle::Buffered(options.buffered_open(&full).await.map_err(|error| passing(error.into()))?)
        };
        Ok(GlommioFile { handle, path: path.into(), faults: self.faults.clone() })
    }

    async fn read_file(&self, path: &str, len_max: u64) -> io::Result<Vec<u8>> {
        self.on_path(Operation::Read, path, move |path| {
            use io::Read;
            let mut content = Vec::new();
            std::fs::File::open(path)?.take(len_max.saturating_add(1)).read_to_end(&mut content)?;
            if content.len() as u64 > len_max {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("longer than the {len_max} bytes that such a file can have"),
                ));
            }
            Ok(content)
        })
        .await
    }

    async fn write_file(&self, path: &str, content: &[u8], sync: bool) -> io::Result<()> {
        let content = content.to_vec();
        self.on_path(Operation::Write, path, move |path| {
            use io::Write;
            let mut file = std::fs::File::create(path)?;
            file.write_all(&content)?;
            if sync { file.sync_all() } else { Ok(()) }
        })
        .await
    }

    async fn create_directory(&self, path: &str) -> io::Result<()> {
        self.on_path(Operation::Create, path, |path| match std::fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            result => result,
        })
        .await
    }

    async fn list(&self, path: &str) -> io::Result<Vec<DirectoryEntry>> {
        self.on_path(Operation::List, path, list).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let to = self.path(to);
        self.on_path(Operation::Rename, from, move |from| std::fs::rename(from, &to)).await
    }

    async fn remove_file(&self, path: &str) -> io::Result<()> {
        self.on_path(Operation::Remove, path, |path| std::fs::remove_file(path)).await
    }

    async fn remove_directory(&self, path: &str) -> io::Result<()> {
        self.on_path(Operation::Remove, path, |path| std::fs::remove_dir_all(path)).await
    }

    async fn sync_directory(&self, path: &str) -> io::Result<()> {
        self.on_path(Operation::Sync, path, |path| std::fs::File::open(path)?.sync_all()).await
    }

    async fn sync_all(&self) -> io::Result<()> {
        let gate = Arc::clone(&self.sync_gate);
        self.on_path(Operation::Sync, "", move |root| gate.pass(root)).await
    }

    async fn is_laid_out(&self, path: &str) -> io::Result<bool> {
        if !self.direct {
            return Ok(true);
        }
        self.on_path(Operation::Read, path, |path| sys::is_laid_out(&std::fs::File::open(path)?)).await
    }

    async fn sleep(&self, time: Duration) {
        runtime::sleep(time).await;
    }

    fn offload<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> impl Future<Output = R> {
        blocking(work)
    }

    fn now_ms(&self) -> i64 {
        runtime::now_ms()
    }

    fn monotonic(&self) -> Duration {
        runtime::uptime()
    }
}

fn list(path: &Path) -> io::Result<Vec<DirectoryEntry>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        // No file of ours has a name that is not UTF-8; a foreign one keeps its place in the list.
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_directory = metadata.is_dir();
        entries.push(DirectoryEntry {
            name,
            len: if is_directory { 0 } else { metadata.len() },
            is_directory,
        });
    }
    Ok(entries)
}

/// Polls `future`; `None` if it panics, silently.
async fn survive<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(move |cx| match quietly(|| future.as_mut().poll(cx)) {
        Some(poll) => poll.map(Some),
        None => Poll::Ready(None),
    })
    .await
}

/// A lack of descriptors passes as a lack of space does, and is met in the same way.
fn passing(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => io::Error::new(io::ErrorKind::StorageFull, error),
        _ => error,
    }
}

enum Handle {
    Direct(DmaFile),
    /// The file system does not take direct I/O.
    Buffered(BufferedFile),
}

/// An open file of the data folder.
pub struct GlommioFile {
    handle: Handle,
    path: Rc<str>,
    faults: Faults,
}

impl GlommioFile {
    /// One write, as the kernel does it: maybe short.
    async fn write_once(&self, buffer: Rc<DmaBuffer>, position: u64) -> io::Result<usize> {
        let buffer = match self.faults.check_write(&self.path)? {
            Some(short) if short < buffer.len() => Rc::new(dma_copy(&buffer.as_bytes()[..short])),
            _ => buffer,
        };
        if let Handle::Direct(file) = &self.handle
            && let Some(write) = runtime::ring::write(file, buffer.clone(), position)
        {
            return write.await;
        }
        let _in_flight = InFlight::new();
        Ok(match &self.handle {
            Handle::Direct(file) => file.write_rc_at(buffer, position).await?,
            Handle::Buffered(file) => file.write_at(buffer.as_bytes().to_vec(), position).await?,
        })
    }

    /// One read, as the kernel does it: maybe short.
    async fn read_once(&self, position: u64, len: usize) -> io::Result<ReadResult> {
        self.faults.check(Operation::Read, &self.path)?;
        let _in_flight = InFlight::new();
        Ok(match &self.handle {
            // Not `read_at`, which shows what was in the buffer before when it reads past the end.
            Handle::Direct(file) => file.read_at_aligned(position, len).await?,
            Handle::Buffered(file) => file.read_at(position, len).await?,
        })
    }
}

impl disk::File for GlommioFile {
    type Buffer = Buffer;

    async fn write_at(&self, buffer: Rc<Buffer>, position: u64) -> io::Result<()> {
        let mut rest = buffer.dma();
        let mut position = position;
        debug_assert!(rest.len().is_multiple_of(BLOCK) && position.is_multiple_of(BLOCK as u64));
        loop {
            let written = self.write_once(rest.clone(), position).await?;
            if written >= rest.len() {
                return Ok(());
            }
            // What a short write did of its last block is written again.
            let whole = written / BLOCK * BLOCK;
            if whole == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::WriteZero,
                    format!("{}: nothing can be written at {position}: is the disk full?", self.path),
                ));
            }
            position += whole as u64;
            rest = Rc::new(dma_copy(&rest.as_bytes()[whole..]));
        }
    }

    async fn read_at(&self, position: u64, len: usize) -> io::Result<(Buffer, usize)> {
        debug_assert!(len > 0 && len.is_multiple_of(BLOCK) && position.is_multiple_of(BLOCK as u64));
        let result = self.read_once(position, len).await?;
        if result.len() >= len || !result.len().is_multiple_of(BLOCK) || result.is_empty() {
            let content = result.len().min(len);
            return Ok((Buffer(Memory::Read(result)), content));
        }
        // Whole blocks, but not all: the end of the file, or a read that ended early.
        let mut content = result.len();
        let mut buffer = glommio::allocate_dma_buffer(len);
        buffer.as_bytes_mut()[..content].copy_from_slice(&result);
        while content < len && content.is_multiple_of(BLOCK) {
            let more = self.read_once(position + content as u64, len - content).await?;
            if more.is_empty() {
                break;
            }
            let take = more.len().min(len - content);
            buffer.as_bytes_mut()[content..content + take].copy_from_slice(&more[..take]);
            content += take;
        }
        // What lies past the content is what was in that memory before: nobody shall see it.
        buffer.as_bytes_mut()[content..].fill(0);
        Ok((Buffer(Memory::Own(Rc::new(buffer))), content))
    }

    async fn sync(&self) -> io::Result<()> {
        self.faults.check(Operation::Sync, &self.path)?;
        if let Handle::Direct(file) = &self.handle
            && let Some(sync) = runtime::ring::sync(file)
        {
            return sync.await.map(|_| ());
        }
        let _in_flight = InFlight::new();
        match &self.handle {
            Handle::Direct(file) => file.fdatasync().await?,
            Handle::Buffered(file) => file.fdatasync().await?,
        }
        Ok(())
    }

    async fn preallocate(&self, len: u64) -> io::Result<()> {
        self.faults.check(Operation::Preallocate, &self.path)?;
        let _in_flight = InFlight::new();
        let done = match &self.handle {
            Handle::Direct(file) => file.pre_allocate(len, false).await,
            Handle::Buffered(file) => file.pre_allocate(len, false).await,
        };
        Ok(done?)
    }

    async fn truncate(&self, len: u64) -> io::Result<()> {
        self.faults.check(Operation::Truncate, &self.path)?;
        let _in_flight = InFlight::new();
        match &self.handle {
            Handle::Direct(file) => file.truncate(len).await?,
            Handle::Buffered(file) => file.truncate(len).await?,
        }
        Ok(())
    }
}
