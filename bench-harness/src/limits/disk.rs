//! What the disk below a folder takes: in bulk, and durably one write at a time. Both into a file that has been written
//! before, as a log's files are laid out before they are used; otherwise the file system's own bookkeeping would be measured.

use super::{DiskLimits, SyncedWrites, latency_of, nanoseconds, new_histogram};
use crate::failure::Failure;
use flumen_client::runtime::{UringSettings, run_uring};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use glommio::io::DmaFile;
use rustix::fs::OFlags;
use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const BULK_BYTES: usize = 256 << 10;
const BULK_DEPTH: usize = 16;
const BULK_FILE_BYTES: u64 = 512 << 20;
const SYNCED_SIZES: [u32; 2] = [4 << 10, 8 << 10];
const SYNCED_FILE_BYTES: u64 = 16 << 20;
const ALIGNMENT: usize = 4096;

/// A file of ours that is gone when this is.
struct Scratch(PathBuf);

impl Scratch {
    fn below(folder: &Path) -> Scratch {
        let name = format!("flumen-bench-limits-{}-{:08x}", std::process::id(), fastrand::u32(..));
        Scratch(folder.join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(super) fn measure(
    folder: &Path,
    each: Duration,
    go_on: &dyn Fn() -> Result<(), Failure>,
) -> Result<DiskLimits, Failure> {
    let scratch = Scratch::below(folder);
    let failed = |error: io::Error| Failure::io(scratch.0.display(), error);
    lay_out(&scratch.0, SYNCED_FILE_BYTES).map_err(failed)?;
    let mut synced_writes = Vec::new();
    for bytes in SYNCED_SIZES {
        go_on()?;
        synced_writes.push(synced(&scratch.0, bytes, each)?);
    }
    go_on()?;
    let (write_bytes_per_s, write_denied) = match bulk_rate(&scratch.0, each) {
        Ok(rate) => (Some(rate), None),
        Err(reason) => (None, Some(reason)),
    };
    Ok(DiskLimits { write_bytes_per_s, write_denied, synced_writes })
}

/// Written whole and durable, so that its blocks are there.
fn lay_out(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let chunk = vec![3; 1 << 20];
    for _ in 0..bytes >> 20 {
        file.write_all(&chunk)?;
    }
    file.sync_all()
}

/// One write at a time, each durable when it returns.
fn synced(path: &Path, bytes: u32, each: Duration) -> Result<SyncedWrites, Failure> {
    let writer = Synced::open(path, bytes as usize)?;
    let mut histogram = new_histogram()?;
    let began = Instant::now();
    for number in 0.. {
        let sent = Instant::now();
        if sent.duration_since(began) >= each {
            break;
        }
        writer.write(number)?;
        histogram.saturating_record(nanoseconds(sent.elapsed()));
    }
    let latency = latency_of(&histogram, "writes with a sync")?;
    Ok(SyncedWrites { bytes, is_direct: writer.is_direct, latency })
}

/// A file that is laid out, open for writes that are durable when they return (`O_DSYNC`).
struct Synced {
    file: File,
    path: PathBuf,
    is_direct: bool,
    memory: Vec<u8>,
    /// Of the block within it.
    at: usize,
    bytes: usize,
}

impl Synced {
    fn open(path: &Path, bytes: usize) -> Result<Synced, Failure> {
        let open =
            |flags: OFlags| OpenOptions::new().write(true).custom_flags(flags.bits() as i32).open(path);
        let direct = open(OFlags::DIRECT | OFlags::DSYNC);
        let is_direct = direct.is_ok();
        let file =
            direct.or_else(|_| open(OFlags::DSYNC)).map_err(|error| Failure::io(path.display(), error))?;
        let memory = vec![7; bytes + ALIGNMENT];
        let at = memory.as_ptr().align_offset(ALIGNMENT);
        Ok(Synced { file, path: path.to_owned(), is_direct, memory, at, bytes })
    }

    /// Writes a block, each number at its place.
    fn write(&self, number: u64) -> Result<(), Failure> {
        let block = self.memory.get(self.at..self.at + self.bytes);
        let block = block.ok_or_else(|| Failure::Other("unaligned memory".to_owned()))?;
        let position = number % (SYNCED_FILE_BYTES / self.bytes as u64) * self.bytes as u64;
        self.file.write_all_at(block, position).map_err(|error| Failure::io(self.path.display(), error))
    }
}

/// A file of our own for such writes, which goes when this does.
pub(crate) struct SyncedFile {
    writer: Synced,
    written: Cell<u64>,
    _scratch: Scratch,
}

impl SyncedFile {
    pub(crate) fn create(folder: &Path) -> Result<SyncedFile, Failure> {
        let scratch = Scratch::below(folder);
        lay_out(&scratch.0, SYNCED_FILE_BYTES).map_err(|error| Failure::io(scratch.0.display(), error))?;
        let writer = Synced::open(&scratch.0, SYNCED_SIZES[0] as usize)?;
        Ok(SyncedFile { writer, written: Cell::new(0), _scratch: scratch })
    }

    /// Writes a block behind the one before it. Its bytes.
    pub(crate) fn write(&self) -> Result<u64, Failure> {
        self.writer.write(self.written.replace(self.written.get() + 1))?;
        Ok(self.writer.bytes as u64)
    }
}

/// Bytes per second, or why there is no such figure.
fn bulk_rate(path: &Path, each: Duration) -> Result<f64, String> {
    let rate = run_uring(&UringSettings::default(), || async {
        // `create` opens for writing alone, which keeps glommio from polling for completions.
        let file = DmaFile::create(path).await.map_err(|error| error.to_string())?;
        let rate = bulk(&file, each).await;
        let closed = file.close().await.map_err(|error| error.to_string());
        rate.and_then(|rate| closed.map(|()| rate))
    });
    rate.map_err(|error| error.to_string())?
}

/// Keeps as many writes in flight as there are buffers. The file is laid out by a first pass that does not count, since
/// opening it has emptied it.
async fn bulk(file: &DmaFile, each: Duration) -> Result<f64, String> {
    file.pre_allocate(BULK_FILE_BYTES, false).await.map_err(|error| error.to_string())?;
    let blocks = BULK_FILE_BYTES / BULK_BYTES as u64;
    let write = |number: u64| async move {
        let mut buffer = file.alloc_dma_buffer(BULK_BYTES);
        buffer.as_bytes_mut().fill(number as u8);
        let position = number % blocks * BULK_BYTES as u64;
        file.write_at(buffer, position).await.map_err(|error| error.to_string())
    };
    let mut flying = FuturesUnordered::new();
    let mut next = 0;
    let (mut written, mut began) = (0u64, Instant::now());
    loop {
        while flying.len() < BULK_DEPTH {
            flying.push(write(next));
            next += 1;
        }
        let Some(done) = flying.next().await else { break };
        written += done? as u64;
        if next == blocks + BULK_DEPTH as u64 {
            (written, began) = (0, Instant::now());
        }
        if next > blocks + BULK_DEPTH as u64 && began.elapsed() >= each {
            break;
        }
    }
    let rate = written as f64 / began.elapsed().as_secs_f64();
    // Nothing may be in flight when the executor ends.
    while let Some(done) = flying.next().await {
        done?;
    }
    Ok(rate)
}
