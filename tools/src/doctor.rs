//! `flumen doctor`: what a node would like of this machine, what of that it lacks, and the command that mends it.
//!
//! What a node cannot do without is looked at by the node's own code (`flumen_node::kernel`), so that the two never
//! disagree.

use crate::amount;
use crate::cli::DoctorOptions;
use crate::failure::Failure;
use crate::output::{Column, Out, Table};
use flumen_node::kernel::{self, Trouble};
use flumen_node::sys;
use serde_json::json;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long each half of the disk test takes.
const DISK_TEST: Duration = Duration::from_secs(1);
/// What direct I/O is aligned to.
const BLOCK: usize = 4096;
/// A large write, as a fill of segments makes them.
const LARGE: usize = 1 << 20;
/// The file of the disk test is written round and round.
const TEST_FILE_BYTES: u64 = 64 << 20;
/// Less room than this is told.
const ROOM_WANTED: u64 = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Good,
    /// A node runs, less well.
    Poor,
    /// A node does not run.
    Bad,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Good => "ok",
            State::Poor => "warning",
            State::Bad => "wrong",
        }
    }
}

/// What one look found. `mend` says what is wrong, with the command that mends it.
#[derive(Debug)]
struct Check {
    name: &'static str,
    state: State,
    found: String,
    mend: Option<String>,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, state: State::Good, found: found.into(), mend: None }
    }

    fn poor(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Check {
        Check { name, state: State::Poor, found: found.into(), mend: Some(mend.into()) }
    }

    fn bad(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Check {
        Check { name, state: State::Bad, found: found.into(), mend: Some(mend.into()) }
    }

    /// What the node's own look says.
    fn of_node(name: &'static str, result: Result<String, Trouble>, warnings: Vec<String>) -> Check {
        match (result, warnings.into_iter().next()) {
            (Err(trouble), _) => Check::bad(name, "not usable", trouble.to_string()),
            (Ok(found), Some(warning)) => Check::poor(name, found, warning),
            (Ok(found), None) => Check::good(name, found),
        }
    }
}

pub(crate) fn run(options: &DoctorOptions, out: &mut Out) -> Result<(), Failure> {
    let folder = existing(&options.data_dir);
    let mut checks = vec![
        machine(),
        kernel_version(&read("/proc/sys/kernel/osrelease").unwrap_or_default()),
        Check::of_node("io_uring", kernel::check_uring().map(|()| "usable".to_owned()), Vec::new()),
        locked_memory(),
        open_files(),
        clock(read("/sys/devices/system/clocksource/clocksource0/current_clocksource").as_deref()),
        governor(read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").as_deref()),
        backlog(read("/proc/sys/net/core/somaxconn").as_deref()),
        file_system(&folder),
    ];
    if !options.no_disk {
        checks.push(disk(&folder));
    }
    print(&checks, out)?;
    match checks.iter().filter(|check| check.state == State::Bad).count() {
        0 => Ok(()),
        count => Err(Failure::Unsound(format!(
            "{count} of {} checks say that a node cannot run here",
            checks.len()
        ))),
    }
}

fn print(checks: &[Check], out: &mut Out) -> Result<(), Failure> {
    if out.is_json() {
        let one = |check: &Check| json!({ "check": check.name, "state": check.state.word(), "found": check.found, "mend": check.mend });
        return out.json(&checks.iter().map(one).collect::<Vec<_>>().into());
    }
    let mut table = Table::new(&[Column::Whole("CHECK"), Column::Whole("STATE"), Column::Whole("FOUND")]);
    for check in checks {
        table.row(vec![check.name.to_owned(), check.state.word().to_owned(), check.found.clone()]);
    }
    out.table(&table)?;
    for check in checks {
        if let Some(mend) = &check.mend {
            out.line(&format!("\n{}: {mend}", check.name))?;
        }
    }
    Ok(())
}

/// The content of one of the kernel's files.
fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The folder, or the nearest one above it that is there.
fn existing(folder: &Path) -> PathBuf {
    let mut at = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    while !at.is_dir() && at.pop() {}
    at
}

fn machine() -> Check {
    let (cpus, memory) = (sys::allowed_cpus().len(), sys::memory_total());
    let found = format!("{cpus} processors, {} of memory", amount::bytes(memory));
    if memory < 512 << 20 {
        return Check::poor(
            "machine",
            found,
            "a node likes 512 MiB or more; `flumen-node --memory 128MiB` makes do with less",
        );
    }
    Check::good("machine", found)
}

fn kernel_version(release: &str) -> Check {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Check::poor(
            "kernel",
            release,
            "its version cannot be read; Linux 5.8 is the least, 6.1 or later is better",
        );
    };
    match (major, minor) {
        (0..=4, _) | (5, 0..=7) => Check::bad(
            "kernel",
            release,
            "it is too old for io_uring as a node uses it: install Linux 5.8 or later, better 6.1",
        ),
        (5, _) | (6, 0) => {
            Check::poor("kernel", release, "io_uring is slower in this one: Linux 6.1 or later is better")
        }
        _ => Check::good("kernel", release),
    }
}

fn locked_memory() -> Check {
    let mut warnings = Vec::new();
    let shards = u16::try_from(sys::allowed_cpus().len()).unwrap_or(u16::MAX);
    let registered = kernel::locked_memory(shards, &mut warnings);
    let found = registered.map(|bytes| format!("{} for each core", amount::bytes(bytes as u64)));
    Check::of_node("locked memory", found, warnings)
}

fn open_files() -> Check {
    let mut warnings = Vec::new();
    let limit = kernel::open_files(&mut warnings)
        .map(|limit| amount::count(i64::try_from(limit).unwrap_or(i64::MAX)));
    Check::of_node("open files", limit, warnings)
}

fn clock(source: Option<&str>) -> Check {
    match source {
        None => Check::good("clock source", "not told"),
        Some(source @ ("hpet" | "acpi_pm" | "xen" | "jiffies" | "refined-jiffies" | "pit")) => Check::poor(
            "clock source",
            source,
            "reading the time goes through the kernel; where the processor's counter is reliable, `echo tsc | sudo tee \
             /sys/devices/system/clocksource/clocksource0/current_clocksource`",
        ),
        Some(source) => Check::good("clock source", source),
    }
}

fn governor(governor: Option<&str>) -> Check {
    match governor {
        None => Check::good("frequency", "not in the system's hands"),
        Some(slow @ ("powersave" | "conservative" | "ondemand")) => Check::poor(
            "frequency",
            slow,
            "cores slow down when idle, which shows in latency; `sudo cpupower frequency-set -g performance`",
        ),
        Some(governor) => Check::good("frequency", governor),
    }
}

fn backlog(somaxconn: Option<&str>) -> Check {
    match somaxconn.and_then(|text| text.parse::<u32>().ok()) {
        Some(limit) if limit < 1024 => Check::poor(
            "listen backlog",
            limit.to_string(),
            "many clients that connect at once are refused; `sudo sysctl -w net.core.somaxconn=4096`",
        ),
        Some(limit) => Check::good("listen backlog", limit.to_string()),
        None => Check::good("listen backlog", "not told"),
    }
}

fn file_system(folder: &Path) -> Check {
    let found = match sys::file_system(folder) {
        Ok(found) => found,
        Err(error) => return Check::bad("file system", folder.display().to_string(), error.to_string()),
    };
    let (name, mend) = kind(found.magic);
    let text = format!("{name}, {} free, at {}", amount::bytes(found.usable_bytes), folder.display());
    match mend {
        Some(mend) => Check::poor("file system", text, mend),
        None if found.usable_bytes < ROOM_WANTED => Check::poor(
            "file system",
            text,
            "there is little room: `df -h` shows where, --data-dir says where else",
        ),
        None => Check::good("file system", text),
    }
}

/// The name of a file system by the kernel's number, and what is wrong with it.
fn kind(magic: i64) -> (String, Option<&'static str>) {
    const LOCAL: &str = "put the data folder (--data-dir) on XFS or ext4 on a local disk";
    let (name, mend) = match magic {
        0x5846_5342 => ("XFS", None),
        0xef53 => ("ext4", None),
        0x0102_1994 => (
            "tmpfs",
            Some("it is in memory: nothing outlives the machine's power; put the data folder on a disk"),
        ),
        0x794c_7630 => (
            "overlayfs",
            Some("the layers of a container: it ends with it, and is slow; mount a volume there"),
        ),
        0x6969 => {
            ("NFS", Some("a synced write is a round trip to a server; put the data folder on a local disk"))
        }
        0x9123_683e => {
            ("Btrfs", Some("copy-on-write makes direct, synced writes slow; XFS or ext4 is better"))
        }
        0x2fc1_2fc1 => ("ZFS", Some("it copies what is written directly; XFS or ext4 is better")),
        0x6573_5546 => ("FUSE", Some(LOCAL)),
        _ => return (format!("file system 0x{magic:x}"), None),
    };
    (name.to_owned(), mend)
}

/// What the disk did in the test.
#[derive(Debug)]
struct DiskFigures {
    direct: bool,
    /// Latencies of synced writes of one block.
    p50: Duration,
    p99: Duration,
    syncs: usize,
    /// Of large writes.
    bytes_per_second: f64,
}

fn disk(folder: &Path) -> Check {
    let path = folder.join(format!(".flumen-doctor-{}", std::process::id()));
    let figures = match measure(&path) {
        Ok(figures) => figures,
        Err(error) => {
            let mend = format!(
                "{} cannot be written: {error}; does the folder belong to this user (`ls -ld`)? --data-dir names another",
                folder.display()
            );
            return Check::bad("disk", "no test", mend);
        }
    };
    let found = format!(
        "{} synced writes of 4 KiB: p50 {}, p99 {}; large writes: {}/s{}",
        amount::count(figures.syncs as i64),
        amount::elapsed(figures.p50),
        amount::elapsed(figures.p99),
        amount::bytes(figures.bytes_per_second as u64),
        if figures.direct { "" } else { " (no direct I/O)" },
    );
    if !figures.direct {
        return Check::poor(
            "disk",
            found,
            "the file system takes no direct I/O, which is slower and less even; use XFS or ext4",
        );
    }
    if figures.p50 > Duration::from_millis(10) {
        return Check::poor(
            "disk",
            found,
            "each acknowledgement waits for a synced write: an SSD, or a controller with a protected cache, is far faster",
        );
    }
    Check::good("disk", found)
}

/// The file of the disk test, opened twice.
struct TestFile {
    /// Each write is on the disk when it is done.
    synced: File,
    large: File,
    direct: bool,
}

impl TestFile {
    fn open(path: &Path) -> io::Result<TestFile> {
        let direct_flag = rustix::fs::OFlags::DIRECT.bits() as i32;
        let sync_flag = rustix::fs::OFlags::DSYNC.bits() as i32;
        let mut how = OpenOptions::new();
        how.read(true).write(true).create(true).truncate(false);
        let open = |flags: i32| how.clone().custom_flags(flags).open(path);
        let (synced, direct) = match open(direct_flag | sync_flag) {
            Ok(file) => (file, true),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => (open(sync_flag)?, false),
            Err(error) => return Err(error),
        };
        let large = open(if direct { direct_flag } else { 0 })?;
        Ok(TestFile { synced, large, direct })
    }
}

/// The file loses its name as soon as it is open: whatever ends the test, nothing is left behind.
fn measure(path: &Path) -> io::Result<DiskFigures> {
    let opened = TestFile::open(path);
    let removed = fs::remove_file(path);
    let TestFile { synced, large, direct } = opened?;
    removed?;
    let mut memory = vec![0u8; LARGE + BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let buffer = &mut memory[start..start + LARGE];
    buffer.fill(0xa5);

    // Written once before, so that the test does not measure the allocation of blocks.
    write_for(&large, buffer, TEST_FILE_BYTES, Duration::MAX)?;
    let began = Instant::now();
    let written = write_for(&large, buffer, u64::MAX, DISK_TEST)?;
    large.sync_data()?;
    let bytes_per_second = written as f64 / began.elapsed().as_secs_f64();

    let mut latencies = Vec::new();
    let began = Instant::now();
    let mut position = 0;
    while began.elapsed() < DISK_TEST {
        let at = Instant::now();
        synced.write_all_at(&buffer[..BLOCK], position)?;
        latencies.push(at.elapsed());
        position = (position + BLOCK as u64) % TEST_FILE_BYTES;
    }
    latencies.sort();
    let quantile = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    Ok(DiskFigures {
        direct,
        p50: quantile(0.5),
        p99: quantile(0.99),
        syncs: latencies.len(),
        bytes_per_second,
    })
}

/// Writes round and round, up to so many bytes or so long. How many bytes.
fn write_for(file: &File, buffer: &[u8], bytes_max: u64, time_max: Duration) -> io::Result<u64> {
    let began = Instant::now();
    let mut written = 0;
    while written < bytes_max && began.elapsed() < time_max {
        file.write_all_at(buffer, written % TEST_FILE_BYTES)?;
        written += buffer.len() as u64;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_judged_by_their_version() {
        let state = |release| kernel_version(release).state;
        for release in ["4.19.0-27-amd64", "5.4.0", "5.7.19"] {
            assert_eq!(state(release), State::Bad, "{release}");
        }
        for release in ["5.8.0", "5.15.0-1053-aws", "6.0.1", "strange"] {
            assert_eq!(state(release), State::Poor, "{release}");
        }
        for release in ["6.1.0", "6.18.2-flumen", "7.0"] {
            assert_eq!(state(release), State::Good, "{release}");
        }
    }

    #[test]
    fn what_is_poor_comes_with_a_command() {
        for check in
            [clock(Some("hpet")), governor(Some("powersave")), backlog(Some("128")), kernel_version("5.15.0")]
        {
            assert_eq!(check.state, State::Poor, "{check:?}");
            assert!(check.mend.is_some_and(|mend| mend.len() > 20));
        }
        for check in [clock(Some("tsc")), clock(None), governor(None), backlog(Some("4096"))] {
            assert_eq!((check.state, check.mend), (State::Good, None));
        }
    }

    #[test]
    fn the_folder_above_stands_for_one_that_is_not_there() {
        let folder = std::env::temp_dir();
        assert_eq!(existing(&folder.join("not/there/at/all")), folder);
        assert_eq!(existing(&folder), folder);
    }

    #[test]
    fn the_disk_test_leaves_nothing_behind() {
        let folder = std::env::temp_dir().join(format!("flumen-doctor-test-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("made");
        let check = disk(&folder);
        assert_ne!(check.state, State::Bad, "{check:?}");
        assert_eq!(fs::read_dir(&folder).expect("there").count(), 0);
        fs::remove_dir(&folder).expect("empty");
        assert_eq!(disk(&folder).state, State::Bad);
    }
}
