//! What a node needs of kernel and file system, looked at before anything is started; and the lock on its
//! data folder.
//!
//! ```text
//!   prepare: data folder made ── locked ── io_uring ── limits ── direct I/O ── Place
//! ```
//!
//! What is missing is said with the command that mends it. What is merely less than it would like is a warning, said
//! once.
use crate::config::Config;
use crate::disk::PROBE_FILE;
use crate::runtime;
use crate::sys::{self, Limit, Resource};
use flumen_storage::disk::BLOCK;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Name of the file, in the data folder, whose lock says that a node uses it.
pub const LOCK_FILE: &str = ".lock";

/// Locked memory without which glommio makes no executor.
const LOCKED_BYTES_MIN: u64 = 512 << 10;
/// Memory for direct I/O that each shard registers with its rings, where it may.
const IO_MEMORY: u64 = 8 << 20;
/// Rings of one executor, each of which the memory is registered with, and accounted for.
const RINGS: u64 = 3;
/// Open files under which a node says that it would like more.
const OPEN_FILES_WANTED: u64 = 65_536;

/// The kernel's numbers of the operations that glommio uses, by name. Without one of them it ends the process.
const OPERATIONS: [(&str, usize); 23] = [
    ("NOP", 0),
    ("READV", 1),
    ("WRITEV", 2),
    ("FSYNC", 3),
    ("READ_FIXED", 4),
    ("WRITE_FIXED", 5),
    ("POLL_ADD", 6),
    ("POLL_REMOVE", 7),
    ("SENDMSG", 9),
    ("RECVMSG", 10),
    ("TIMEOUT", 11),
    ("TIMEOUT_REMOVE", 12),
    ("ACCEPT", 13),
    ("LINK_TIMEOUT", 15),
    ("CONNECT", 16),
    ("FALLOCATE", 17),
    ("OPENAT", 18),
    ("CLOSE", 19),
    ("STATX", 21),
    ("READ", 22),
    ("WRITE", 23),
    ("SEND", 26),
    ("RECV", 27),
];

/// Why a node cannot run here. The text says what to do.
#[derive(Debug)]
pub struct Trouble(pub String);

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Trouble {}

/// A place where a node can run. The data folder is locked while this lives.
#[derive(Debug)]
pub struct Place {
    /// Whether the data folder takes direct I/O.
    pub direct: bool,
    /// How the shards are to be started here.
    pub executors: runtime::Settings,
    /// Files and connections that may be open at a time.
    pub open_files_max: u64,
    /// What is less than it could be: to be logged.
    pub warnings: Vec<String>,
    _lock: File,
}

/// Looks at everything, makes and locks the data folder.
pub fn prepare(config: &Config) -> Result<Place, Trouble> {
    let own = config.cluster_addr.to_string();
    if let Some(other) = config.seeds.iter().map(ToString::to_string).find(|seed| *seed != own) {
        return Err(Trouble(format!(
            "--seeds names another node, {other}, and this version runs alone: each would be a cluster of its own, \
             with data of its own. Leave --seeds away"
        )));
    }
    let mut warnings = Vec::new();
    let data_dir = &config.data_dir;
    std::fs::create_dir_all(data_dir).map_err(|error| {
        Trouble(format!(
            "the data folder {} cannot be made: {error}; give another with --data-dir",
            data_dir.display()
        ))
    })?;
    let lock = lock(data_dir)?;
    check_uring()?;
    let io_memory = locked_memory(config.shards, &mut warnings)?;
    let open_files_max = open_files(&mut warnings)?;
    let direct = direct_io(data_dir, &mut warnings)?;
    let executors = runtime::Settings {
        io_memory,
        probe_file: Some(data_dir.join(PROBE_FILE)),
        ..runtime::Settings::default()
    };
    Ok(Place { direct, executors, open_files_max, warnings, _lock: lock })
}

/// Locks the folder, for as long as the file lives: also a kill -9 lets go of it.
fn lock(data_dir: &Path) -> Result<File, Trouble> {
    let path = data_dir.join(LOCK_FILE);
    let cannot = |error: io::Error| {
        Trouble(format!(
            "{} cannot be opened: {error}; does the folder belong to this user? (`ls -ld {}`)",
            path.display(),
            data_dir.display()
        ))
    };
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = (&file).take(32).read_to_string(&mut owner);
            let owner = match owner.trim() {
                "" => String::new(),
                pid => format!(" (process {pid})"),
            };
            return Err(Trouble(format!(
                "the data folder {} is in use by another node{owner}; stop that one, or give this one a \
                 folder of its own with --data-dir",
                data_dir.display()
            )));
        }
        Err(TryLockError::Error(error)) => {
            return Err(Trouble(format!("{} cannot be locked: {error}", path.display())));
        }
    }
    // For the message above, on the other side. Not worth failing for.
    let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
    Ok(file)
}

/// Whether the kernel has all of io_uring that an executor needs, and lets this process use it.
pub fn check_uring() -> Result<(), Trouble> {
    let known = sys::probe_uring().map_err(|error| {
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Trouble(explain_uring(&error, disabled.as_deref().map(str::trim), &status))
    })?;
    let missing: Vec<&str> = OPERATIONS
        .iter()
        .filter(|(_, number)| !known.get(*number).copied().unwrap_or(false))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Trouble(format!(
        "this kernel's io_uring lacks {}: it is too old; Linux 5.8 is the least, 6.1 or later is better (`uname -r`)",
        missing.join(", ")
    )))
}

fn explain_uring(error: &io::Error, disabled: Option<&str>, status: &str) -> String {
    let filtered = status.lines().any(|line| line.starts_with("Seccomp:") && line.trim_end().ends_with('2'));
    match error.raw_os_error() {
        Some(libc::ENOSYS) if !filtered => "this kernel has no io_uring: Linux 5.8 is the least, and it must be built \
             with CONFIG_IO_URING (`uname -r`)"
            .into(),
        Some(libc::EPERM | libc::EACCES) if matches!(disabled, Some("1" | "2")) => format!(
            "io_uring is switched off on this machine (kernel.io_uring_disabled={}); switch it on with \
             `sysctl -w kernel.io_uring_disabled=0`, and in /etc/sysctl.d for good",
            disabled.unwrap_or_default()
        ),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) if filtered => {
            "io_uring is denied by the seccomp profile of this container; start it with one that allows \
             io_uring_setup, io_uring_enter and io_uring_register (docker: `--security-opt seccomp=PROFILE.json`, or \
             `seccomp=unconfined` to try it; Kubernetes: securityContext.seccompProfile)"
                .into()
        }
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is not permitted to this process: a security module (SELinux, AppArmor) denies it; \
             `dmesg | tail` says which rule"
                .into()
        }
        Some(libc::ENOMEM) => "io_uring gets no locked memory; raise the limit with `ulimit -l unlimited` (systemd: \
             LimitMEMLOCK=infinity, docker: `--ulimit memlock=-1`)"
            .into(),
        Some(libc::EMFILE | libc::ENFILE) => {
            "no file descriptors are left for io_uring; raise the limit with `ulimit -n 65536`".into()
        }
        _ => format!("io_uring cannot be set up: {error}"),
    }
}

/// Raises the limit of locked memory as far as this process may. The memory that each shard may register.
pub fn locked_memory(shards: u16, warnings: &mut Vec<String>) -> Result<usize, Trouble> {
    const MEND: &str =
        "`ulimit -l unlimited` (systemd: LimitMEMLOCK=infinity, docker: `--ulimit memlock=-1`)";
    let limit = sys::raise_limit(Resource::LockedMemory)
        .or_else(|_| sys::limit(Resource::LockedMemory))
        .map_err(|error| Trouble(format!("the limit of locked memory cannot be read: {error}")))?;
    if limit.soft < LOCKED_BYTES_MIN {
        return Err(Trouble(format!(
            "this process may lock {} KiB of memory, and io_uring needs {} KiB at least; raise the limit with {MEND}",
            limit.soft >> 10,
            LOCKED_BYTES_MIN >> 10
        )));
    }
    let memory = io_memory(limit, shards, may_lock_all());
    if memory < IO_MEMORY {
        warnings.push(format!(
            "this process may lock {} KiB of memory, so direct I/O uses little registered memory, at some cost in \
             speed; raise the limit with {MEND}",
            limit.soft >> 10
        ));
    }
    Ok(memory as usize)
}

/// What fits: each shard registers its memory with each of its rings, and each counts against the limit, which
/// holds for all processes of the user. So half of it is left alone.
fn io_memory(limit: Limit, shards: u16, unlimited: bool) -> u64 {
    if unlimited {
        return IO_MEMORY;
    }
    let each = limit.soft / 2 / (RINGS * u64::from(shards));
    (each / BLOCK as u64 * BLOCK as u64).clamp(64 << 10, IO_MEMORY)
}

/// Whether the limit does not hold for this process (CAP_IPC_LOCK).
fn may_lock_all() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1)
}

/// Raises the limit of open files as far as this process may. What it is then.
pub fn open_files(warnings: &mut Vec<String>) -> Result<u64, Trouble> {
    let limit = sys::raise_limit(Resource::OpenFiles)
        .or_else(|_| sys::limit(Resource::OpenFiles))
        .map_err(|error| Trouble(format!("the limit of open files cannot be read: {error}")))?;
    if limit.soft < OPEN_FILES_WANTED {
        warnings.push(format!(
            "this process may have {} files and connections open; many clients and partitions want {OPEN_FILES_WANTED}: \
             `ulimit -n {OPEN_FILES_WANTED}` (systemd: LimitNOFILE, docker: `--ulimit nofile={OPEN_FILES_WANTED}`)",
            limit.soft
        ));
    }
    Ok(limit.soft)
}

/// Writes the probe file, if it can with direct I/O. Whether it could.
fn direct_io(data_dir: &Path, warnings: &mut Vec<String>) -> Result<bool, Trouble> {
    let path = data_dir.join(PROBE_FILE);
    let file_system = sys::file_system(data_dir)
        .map_err(|error| Trouble(format!("{}: statfs: {error}", data_dir.display())))?;
    if file_system.is_tmpfs() {
        write_probe(&path, 0).map_err(|error| not_writable(&path, &error))?;
        warnings.push(format!(
            "the data folder {} is in memory (tmpfs, no O_DIRECT): what is acknowledged does not outlive this machine's power",
            data_dir.display()
        ));
        // glommio knows tmpfs, and does not ask it for direct I/O.
        return Ok(true);
    }
    match write_probe(&path, libc::O_DIRECT) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            write_probe(&path, 0).map_err(|error| not_writable(&path, &error))?;
            warnings.push(format!(
                "the file system of {} takes no direct I/O (O_DIRECT): data is written through the page cache, which is slower \
                 and less even; XFS or ext4 on a local disk is better",
                data_dir.display()
            ));
            Ok(false)
        }
        Err(error) => Err(not_writable(&path, &error)),
    }
}

fn not_writable(path: &Path, error: &io::Error) -> Trouble {
    let what = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full: make room (`df -h` shows where)".to_owned()
        }
        io::ErrorKind::ReadOnlyFilesystem => "the file system is mounted read-only (`findmnt`)".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not write there (`ls -l`)".to_owned(),
        _ => error.to_string(),
    };
    Trouble(format!("{} cannot be written: {what}", path.display()))
}

/// One block, written and read back.
fn write_probe(path: &PathBuf, flags: i32) -> io::Result<()> {
    let mut memory = vec![0u8; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let block = &mut memory[start..start + BLOCK];
    block.fill(b'#');
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(flags)
        .open(path)?;
    file.write_all_at(block, 0)?;
    block.fill(0);
    file.read_exact_at(block, 0)?;
    if block.iter().any(|&byte| byte != b'#') {
        return Err(io::Error::other("what was written is not what is read"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        let path = std::env::temp_dir().join(format!("flumen-kernel-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("made");
        path
    }

    #[test]
    fn a_second_node_on_the_same_folder_is_refused() {
        let folder = folder();
        let first = lock(&folder).expect("free");
        let second = lock(&folder).expect_err("taken").to_string();
        let expected = format!("is in use by another node (process {})", std::process::id());
        assert!(second.contains(&expected), "{second}");
        drop(first);
        lock(&folder).expect("free again");
        let mut warnings = Vec::new();
        direct_io(&folder, &mut warnings).expect("writable");
        assert_eq!(std::fs::metadata(folder.join(PROBE_FILE)).expect("there").len(), BLOCK as u64);
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn this_machine_has_what_a_node_needs() {
        check_uring().expect("io_uring");
        assert!(locked_memory(1, &mut Vec::new()).expect("enough") >= 64 << 10);
    }

    #[test]
    fn what_denies_io_uring_is_told_with_what_mends_it() {
        let explain =
            |code, disabled, status| explain_uring(&io::Error::from_raw_os_error(code), disabled, status);
        let free = "Name:\tx\nSeccomp:\t0\n";
        let filtered = "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        assert!(explain(libc::ENOSYS, None, free).contains("CONFIG_IO_URING"));
        assert!(explain(libc::EPERM, Some("2"), free).contains("sysctl -w kernel.io_uring_disabled=0"));
        for code in [libc::EPERM, libc::ENOSYS] {
            assert!(explain(code, Some("0"), filtered).contains("seccomp=unconfined"));
        }
        assert!(explain(libc::EPERM, Some("0"), free).contains("security module"));
        assert!(explain(libc::ENOMEM, None, free).contains("ulimit -l"));
        assert!(explain(libc::EMFILE, None, free).contains("ulimit -n"));
    }

    #[test]
    fn registered_memory_fits_the_limit() {
        let limit = |bytes| Limit { soft: bytes, hard: bytes };
        assert_eq!(io_memory(limit(u64::MAX), 64, false), IO_MEMORY);
        assert_eq!(io_memory(limit(8 << 20), 2, true), IO_MEMORY);
        let each = io_memory(limit(8 << 20), 2, false);
        assert!(each * 2 * RINGS <= 8 << 20 && each >= 512 << 10, "{each}");
        assert_eq!(io_memory(limit(512 << 10), 64, false), 64 << 10);
    }
}
