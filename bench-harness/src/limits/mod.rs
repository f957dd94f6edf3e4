//! `flumen-bench limits`: what this machine can do at most, each thing alone, so that a result can be stated as a share of
//! it. A broker that syncs is not faster than a bare write with a sync; nobody's bytes are faster than the disk's or the
//! loopback's. The figures hold for the moment: virtual disks change by the hour, so they are best measured right before the
//! run (`--limits`).

mod disk;
mod loopback;

pub(crate) use disk::SyncedFile;

use crate::cli::LimitsOptions;
use crate::console::Console;
use crate::failure::Failure;
use crate::interrupt;
use crate::machine;
use crate::quantity;
use crate::result::{FORMAT_VERSION, Latency, Machine, write_document};
use crate::run::check_writable;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What `format` says in the document of limits alone.
const LIMITS_FORMAT: &str = "flumen-bench limits";
/// A slower operation than this counts as this.
const LATENCY_MAX_NS: u64 = 600_000_000_000;
const CRC_BYTES: usize = 1 << 20;

/// See the head of this file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub disk: DiskLimits,
    pub loopback_bytes_per_s: f64,
    /// One thread to another and back, 64 bytes, as sockets do it that block.
    pub loopback_round_trip: Latency,
    /// CRC-32C over 1 MiB that is in the cache, on one core.
    pub crc32c_bytes_per_s: f64,
}

/// Of the file system below a folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DiskLimits {
    /// io_uring, direct, 256 KiB, 16 at a time, one after the other in space that is laid out. None where io_uring or
    /// direct I/O is denied.
    pub write_bytes_per_s: Option<f64>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_denied: Option<String>,
    /// Writes of which each returns when it is durable, one at a time, in space that is laid out: by their size in bytes.
    pub synced_writes: Vec<SyncedWrites>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SyncedWrites {
    pub bytes: u32,
    /// Past the page cache; some file systems can not.
    pub is_direct: bool,
    pub latency: Latency,
}

/// The document of `flumen-bench limits -o`.
#[derive(Serialize)]
struct Document<'a> {
    format: &'static str,
    format_version: u32,
    machine: Machine,
    limits: &'a Limits,
}

pub(crate) fn run(options: &LimitsOptions) -> Result<(), Failure> {
    if !(options.seconds > 0.0 && options.seconds <= 3600.0) {
        return Err(Failure::Usage("--seconds: give a time above 0 and up to 3600".to_owned()));
    }
    check_writable(options.output.as_deref())?;
    let interrupted = interrupt::flag()?;
    let each = Duration::from_secs_f64(options.seconds);
    let limits = measure(&options.folder, each, &interrupted)?;
    let mut console = Console::default();
    console.print(&words(&limits));
    let Some(path) = &options.output else { return console.end() };
    let document = Document {
        format: LIMITS_FORMAT,
        format_version: FORMAT_VERSION,
        machine: machine::describe(&options.folder),
        limits: &limits,
    };
    let document = serde_json::to_vec_pretty(&document).map_err(|error| Failure::Other(error.to_string()))?;
    write_document(path, &document)?;
    console.end()
}

/// One after the other, `each` so long; `folder` lies on the disk that is meant.
pub(crate) fn measure(folder: &Path, each: Duration, interrupted: &AtomicBool) -> Result<Limits, Failure> {
    let go_on = || match interrupted.load(Ordering::Relaxed) {
        true => Err(Failure::Interrupted),
        false => Ok(()),
    };
    let crc32c_bytes_per_s = crc_rate(each);
    go_on()?;
    let loopback_bytes_per_s = loopback::throughput(each)?;
    go_on()?;
    let loopback_round_trip = loopback::round_trip(each)?;
    go_on()?;
    let disk = disk::measure(folder, each, &go_on)?;
    go_on()?;
    Ok(Limits { disk, loopback_bytes_per_s, loopback_round_trip, crc32c_bytes_per_s })
}

fn crc_rate(each: Duration) -> f64 {
    let bytes: Vec<u8> = (0..CRC_BYTES).map(|place| (place * 31 % 251) as u8).collect();
    let began = Instant::now();
    let mut rounds = 0u32;
    while began.elapsed() < each {
        std::hint::black_box(flumen_wire::crc::crc32c(std::hint::black_box(&bytes)));
        rounds += 1;
    }
    f64::from(rounds) * CRC_BYTES as f64 / began.elapsed().as_secs_f64()
}

/// Nanoseconds, three digits.
fn new_histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).map_err(|error| Failure::Other(error.to_string()))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).min(LATENCY_MAX_NS)
}

/// An operation that ended not once in the time has no latency, which is as good as a failure.
fn latency_of(histogram: &Histogram<u64>, what: &str) -> Result<Latency, Failure> {
    Latency::of(histogram).ok_or_else(|| Failure::Other(format!("{what}: not one ended in the time given")))
}

impl Limits {
    /// Each with its value in words.
    pub(crate) fn rows(&self) -> Vec<(String, String)> {
        let rate = |value: f64| format!("{}/s", quantity::bytes(value));
        let timed = |latency: &Latency| {
            let of = &latency.summary;
            format!(
                "p50 {}, p99 {}, p99.9 {}, max {}",
                quantity::duration(of.p50_ns as f64),
                quantity::duration(of.p99_ns as f64),
                quantity::duration(of.p99_9_ns as f64),
                quantity::duration(of.max_ns as f64)
            )
        };
        let write = match (self.disk.write_bytes_per_s, &self.disk.write_denied) {
            (Some(value), _) => rate(value),
            (None, Some(reason)) => format!("not measured: {reason}"),
            (None, None) => "not measured".to_owned(),
        };
        let mut rows = vec![("direct write, 256 KiB, 16 at a time".to_owned(), write)];
        for writes in &self.disk.synced_writes {
            let how = if writes.is_direct { "direct" } else { "through the page cache" };
            rows.push((format!("write and sync, {} KiB, {how}", writes.bytes >> 10), timed(&writes.latency)));
        }
        rows.push(("loopback, one connection".to_owned(), rate(self.loopback_bytes_per_s)));
        rows.push(("loopback, there and back".to_owned(), timed(&self.loopback_round_trip)));
        rows.push(("CRC-32C, one core".to_owned(), rate(self.crc32c_bytes_per_s)));
        rows
    }
}

pub(crate) fn words(limits: &Limits) -> String {
    let rows = limits.rows();
    let width = rows.iter().map(|row| row.0.len()).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut out, (name, value)| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name:width$}  {value}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Short, so its figures say little; that all of it is measured and nothing stays behind is what is tested.
    #[test]
    fn everything_is_measured_and_nothing_stays_behind() {
        let folder = std::env::temp_dir().join(format!("flumen-bench-limits-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let limits = measure(&folder, Duration::from_millis(100), &AtomicBool::new(false)).expect("figures");
        assert_eq!(std::fs::read_dir(&folder).expect("the folder").count(), 0);
        std::fs::remove_dir_all(&folder).expect("the folder");
        assert!(limits.loopback_bytes_per_s > 1e6 && limits.crc32c_bytes_per_s > 1e6, "{limits:?}");
        assert!(limits.disk.write_bytes_per_s.is_some() != limits.disk.write_denied.is_some(), "{limits:?}");
        let sizes: Vec<u32> = limits.disk.synced_writes.iter().map(|writes| writes.bytes).collect();
        assert_eq!(sizes, [4096, 8192]);
        assert!(limits.loopback_round_trip.summary.count > 100, "{limits:?}");
        let text = serde_json::to_string(&limits).expect("a document");
        assert_eq!(serde_json::from_str::<Limits>(&text).expect("the same"), limits);
        assert_eq!(words(&limits).lines().count(), 6);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let failure = measure(Path::new("/nowhere"), Duration::from_millis(1), &AtomicBool::new(false));
        assert!(matches!(&failure, Err(Failure::Io(what, _)) if what.contains("/nowhere")), "{failure:?}");
    }

    #[test]
    fn an_interrupt_ends_it() {
        let failure = measure(Path::new("/"), Duration::from_millis(1), &AtomicBool::new(true));
        assert!(matches!(failure, Err(Failure::Interrupted)));
    }
}
