//! The machine and this process's place in it: processors, limits, memory.
use std::io;

/// The processors that this process may run on, in order. Never empty.
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: an all-zero `cpu_set_t` is an empty set; the call writes at most the size that it is given.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return vec![0];
        }
        set
    };
    let allowed: Vec<usize> = (0..libc::CPU_SETSIZE as usize)
        // SAFETY: the index is below the size of the set.
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect();
    if allowed.is_empty() { vec![0] } else { allowed }
}

/// Registers the process for the memory barrier that executors use before they sleep. While the process has one
/// thread this is free; later it costs each executor's first sleep several milliseconds.
pub fn register_membarrier() {
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;
    // SAFETY: no memory is passed. Where the kernel refuses, glommio finds its own way.
    unsafe {
        libc::syscall(libc::SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0);
    }
}

/// The kernel's number of this thread.
pub fn thread_id() -> i32 {
    // SAFETY: a plain query.
    unsafe { libc::gettid() }
}

/// Makes [`interrupt_thread`] harmless: without it the signal is ignored, and interrupts nothing.
pub fn allow_interrupts() -> std::io::Result<()> {
    // SAFETY: the handler does nothing, which is safe at any moment. Calls that can be restarted are.
    unsafe { signal_hook::low_level::register(INTERRUPT, || ()) }.map(|_| ())
}

/// Gets the thread `id` of this process out of a wait for its ring. Whatever else it does goes on undisturbed, and a
/// thread that has ended is none.
pub fn interrupt_thread(id: i32) {
    // SAFETY: no memory is passed, and the handler of [`allow_interrupts`] does nothing.
    unsafe {
        libc::syscall(libc::SYS_tgkill, libc::getpid(), id, INTERRUPT);
    }
}

/// Ignored where nobody handles it.
const INTERRUPT: libc::c_int = libc::SIGURG;

/// A limit of this process: what holds now, and up to what it may raise it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What holds. `u64::MAX`: unlimited.
    pub soft: u64,
    /// The most that `soft` may become.
    pub hard: u64,
}

/// The limits that matter to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Bytes of locked memory (`RLIMIT_MEMLOCK`).
    LockedMemory,
    /// Open files and connections (`RLIMIT_NOFILE`).
    OpenFiles,
}

impl Resource {
    fn number(self) -> libc::__rlimit_resource_t {
        match self {
            Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
            Resource::OpenFiles => libc::RLIMIT_NOFILE,
        }
    }
}

/// Reads a limit.
pub fn limit(resource: Resource) -> io::Result<Limit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call fills the structure that it is given.
    if unsafe { libc::getrlimit(resource.number(), &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Limit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

/// Raises the soft limit to the hard one. What holds afterwards.
pub fn raise_limit(resource: Resource) -> io::Result<Limit> {
    let now = limit(resource)?;
    if now.soft < now.hard {
        let raised = libc::rlimit { rlim_cur: now.hard, rlim_max: now.hard };
        // SAFETY: the call reads the structure that it is given.
        if unsafe { libc::setrlimit(resource.number(), &raised) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    limit(resource)
}

/// Memory of the machine in bytes, or of the container where that has less.
pub fn memory_total() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    });
    let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
        .chain(own_group_limit())
        .min();
    machine.unwrap_or(1 << 30).min(group.unwrap_or(u64::MAX))
}

/// The limit of the process's own control group (version 2), where it is not the root of what it sees.
fn own_group_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    std::fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max")).ok()?.trim().parse().ok()
}

/// What this process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Processor time in user mode, in microseconds.
    pub user_us: u64,
    /// Processor time in the kernel, in microseconds.
    pub system_us: u64,
    /// Open file descriptors.
    pub open_files: u64,
}

/// Reads [`Usage`].
pub fn usage() -> Usage {
    // SAFETY: an all-zero `rusage` is valid, and the call fills it.
    let rusage = unsafe {
        let mut rusage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut rusage);
        rusage
    };
    // SAFETY: a plain query.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    let us = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    Usage {
        resident_bytes: pages * page,
        user_us: us(rusage.ru_utime),
        system_us: us(rusage.ru_stime),
        open_files: std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
    }
}

/// Has the allocator keep what large buffers leave behind: given back to the kernel, each new one would be zeroed again,
/// page by page, which costs more than what is done with it.
pub fn keep_freed_memory() {
    // SAFETY: sets two numbers of the allocator; called while the process has one thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, ALLOCATED_ALONE_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_AT_THE_TOP);
    }
}

/// Bytes from which on memory is mapped for itself; the most that the allocator takes.
const ALLOCATED_ALONE_FROM: libc::c_int = 32 << 20;
/// Bytes that may lie free at the end of the heap.
const KEPT_AT_THE_TOP: libc::c_int = 128 << 20;

/// Bytes that nobody can guess, from the kernel.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the kernel gives no random bytes: {error}"),
        }
    }
    bytes
}
