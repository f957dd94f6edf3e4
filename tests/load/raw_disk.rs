//! What the disk itself does while a load runs: one 4 KiB direct, synchronous write (`O_DIRECT | O_DSYNC`) at a
//! time into a file that is laid out, a few hundred a second, each timed. No broker that syncs can be better than
//! this at the same moment on the same machine; its percentiles are what a broker's are held against.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::{Failure, Figures};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 4096;
const PAUSE: Duration = Duration::from_millis(3);
// Linux's numbers on x86-64 and arm64; Rust's standard library has none.
#[cfg(target_arch = "x86_64")]
const O_DIRECT: i32 = 0o40000;
#[cfg(target_arch = "aarch64")]
const O_DIRECT: i32 = 0o200000;
const O_DSYNC: i32 = 0o10000;

/// Memory in which one block is aligned for direct I/O.
struct Memory(Vec<u8>);

impl Memory {
    fn block(&self) -> &[u8] {
        let at = self.0.as_ptr().align_offset(BLOCK);
        &self.0[at..at + BLOCK]
    }
}

/// Writes until it is asked to end; then removes its file.
pub(crate) struct RawDisk {
    path: PathBuf,
    ended: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Histogram<u64>, std::io::Error>>,
}

impl RawDisk {
    /// A file of its own in `folder`, which is to lie on the broker's file system.
    pub(crate) fn start(folder: &Path) -> Result<RawDisk, Failure> {
        let path = folder.join(format!("raw-disk-{}", std::process::id()));
        let mut plain = File::create(&path)?;
        for _ in 0..BLOCKS {
            plain.write_all(&[0; BLOCK])?;
        }
        plain.sync_all()?;
        let file = OpenOptions::new().write(true).custom_flags(O_DIRECT | O_DSYNC).open(&path)?;
        let ended = Arc::new(AtomicBool::new(false));
        let asked = ended.clone();
        let mut latencies = Histogram::new_with_bounds(1, 600_000_000, 3)?;
        let thread = std::thread::spawn(move || {
            let memory = Memory(vec![7; 2 * BLOCK]);
            let mut at = 0;
            while !asked.load(Ordering::Relaxed) {
                let began = Instant::now();
                file.write_all_at(memory.block(), at * BLOCK as u64)?;
                latencies.saturating_record(began.elapsed().as_micros().max(1) as u64);
                at = (at + 1) % BLOCKS;
                std::thread::sleep(PAUSE);
            }
            Ok(latencies)
        });
        Ok(RawDisk { path, ended, thread })
    }

    pub(crate) fn end(self, figures: &mut Figures) -> Result<(), Failure> {
        self.ended.store(true, Ordering::Relaxed);
        let latencies = self.thread.join().expect("the writing thread does not panic")?;
        for (name, percentile) in [("raw_p50_ms", 50.0), ("raw_p99_ms", 99.0), ("raw_p99_9_ms", 99.9)] {
            figures.set(name, latencies.value_at_percentile(percentile) as f64 / 1e3);
        }
        std::fs::remove_file(&self.path)?;
        Ok(())
    }
}
