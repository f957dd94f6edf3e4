//! Starting the shards: one thread with one glommio executor each.
//!
//! ```text
//!   start() ── thread shard-N: executor made ── probe file opened ── main task runs ── all I/O over ── thread ends
//! ```
use super::task::{Door, Home, spawn};
use super::watchdog::{self, Health};
use crate::sys;
use flumen_core::types::ShardId;
use glommio::{CpuSet, Latency, LocalExecutorBuilder, Placement, PoolPlacement, Shares};
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// How the shards are to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Memory for direct I/O that is registered with the kernel, for each shard. It is resident from the start.
    pub io_memory: usize,
    /// Operations that a ring takes at once.
    pub ring_depth: usize,
    /// How long a task may run before others get their turn. Not under 10 ms: glommio then parks with runnable
    /// tasks more often.
    pub preempt: Duration,
    /// How long an idle shard spins before it sleeps. Zero in a node that is to idle at 0 %.
    pub spin: Duration,
    /// A file of at least one block on the device of the data folder, see [`guard_poll_ring`].
    pub probe_file: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            io_memory: 8 << 20,
            ring_depth: 256,
            preempt: Duration::from_millis(20),
            spin: Duration::ZERO,
            probe_file: None,
        }
    }
}

/// Why the shards could not be started.
#[derive(Debug)]
pub enum StartError {
    /// The thread could not be started.
    Thread(io::Error),
    /// The executor could not be made; the text says why.
    Executor(ShardId, String),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::Thread(error) => write!(f, "cannot start a thread: {error}"),
            StartError::Executor(shard, why) => write!(f, "shard {shard} cannot be started: {why}"),
        }
    }
}

impl std::error::Error for StartError {}

/// What a shard's main task is told of its place.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    /// This shard.
    pub shard: ShardId,
    /// How many there are.
    pub shards: u16,
}

/// The running shards.
pub struct Executors<T> {
    threads: Vec<JoinHandle<T>>,
    doors: Vec<Arc<Door>>,
}

impl<T> Executors<T> {
    /// Waits until every shard's main task is over. A shard whose thread panicked outside of any task is `Err`.
    pub fn join(self) -> Vec<std::thread::Result<T>> {
        self.threads.into_iter().map(JoinHandle::join).collect()
    }

    /// What the watchdog has seen, by shard.
    pub fn health(&self) -> impl Fn() -> Vec<Health> + Send + Sync + 'static + use<T> {
        let doors = self.doors.clone();
        move || doors.iter().map(|door| door.pulse.health()).collect()
    }
}

thread_local! {
    static SEAT: Cell<Option<Seat>> = const { Cell::new(None) };
    static IN_FLIGHT: Cell<u32> = const { Cell::new(0) };
}

/// The shard of this thread. An assertion failure on other threads.
pub fn shard() -> ShardId {
    SEAT.get().expect("not on the thread of a shard").shard
}

/// Starts one shard for each seed, and in each the future that `main` makes of its seed. Returns once
/// all executors are up, or the first error (then none runs).
pub fn start<S, F, Fut, T>(settings: &Settings, seeds: Vec<S>, main: F) -> Result<Executors<T>, StartError>
where
    S: Send + 'static,
    F: Fn(Seat, S) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = T> + 'static,
    T: Send + 'static,
{
    sys::register_membarrier();
    let shards = u16::try_from(seeds.len()).expect("bounded by the number of processors");
    let fences = fences(seeds.len());
    let (up_sender, up) = mpsc::channel();
    let mut executors = Executors { threads: Vec::new(), doors: Vec::new() };
    let mut gates = Vec::new();
    for (index, seed) in seeds.into_iter().enumerate() {
        let seat = Seat { shard: ShardId(index as u16), shards };
        let door = Arc::new(Door::new());
        let (gate, opened) = mpsc::channel::<()>();
        let work = Work {
            seat,
            settings: settings.clone(),
            fence: fences[index].clone(),
            door: door.clone(),
            up: up_sender.clone(),
            opened,
        };
        let main = main.clone();
        let thread = std::thread::Builder::new()
            .name(format!("shard-{index}"))
            .spawn(move || work.run(move || main(seat, seed)))
            .map_err(StartError::Thread)?;
        executors.threads.push(thread);
        executors.doors.push(door);
        gates.push(gate);
    }
    drop(up_sender);
    // One that fails drops its sender with the error sent; the gates of the others then stay shut.
    for _ in 0..shards {
        match up.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => unreachable!("each shard reports once before it drops its sender"),
        }
    }
    for gate in gates {
        // The shard waits for it: it cannot be gone.
        let _ = gate.send(());
    }
    Ok(executors)
}

/// For tests and tools: one shard, until `main` is over.
pub fn run_once<F, Fut, T>(settings: &Settings, main: F) -> Result<T, StartError>
where
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let mut results = start(settings, vec![()], move |_, ()| main())?.join();
    match results.pop() {
        Some(Ok(result)) => Ok(result),
        Some(Err(panic)) => resume_unwind(panic),
        None => unreachable!("one seed, one shard"),
    }
}

/// One shard's thread.
struct Work {
    seat: Seat,
    settings: Settings,
    fence: Option<Vec<usize>>,
    door: Arc<Door>,
    up: mpsc::Sender<Result<(), StartError>>,
    opened: mpsc::Receiver<()>,
}

impl Work {
    fn run<F, Fut, T>(self, main: F) -> T
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = T> + 'static,
        T: 'static,
    {
        let executor = match self.make() {
            Ok(executor) => executor,
            Err(why) => {
                let _ = self.up.send(Err(StartError::Executor(self.seat.shard, why)));
                resume_unwind(Box::new("the executor could not be made"));
            }
        };
        let _ = self.up.send(Ok(()));
        if self.opened.recv().is_err() {
            resume_unwind(Box::new("another shard could not be started"));
        }
        SEAT.set(Some(self.seat));
        let door = self.door;
        let probe_file = self.settings.probe_file;
        // From before the executor's first turn: it may park in that already.
        watchdog::watch(&door);
        executor.run(async move {
            let queue = |name, shares| {
                glommio::executor().create_task_queue(Shares::Static(shares), Latency::NotImportant, name)
            };
            let _home = Home::enter(door.clone(), queue("foreground", 1000), queue("background", 200));
            glommio::spawn_local(Home::serve_door(door.clone())).detach();
            super::ring::open();
            if let Some(path) = probe_file {
                guard_poll_ring(&path).await;
            }
            // This future is none of our tasks, so nobody counts its wakes: a poll is owed as long as it has to go on.
            let main = {
                let (main, door) = (main(), door.clone());
                async move {
                    let result = main.await;
                    door.pulse.note_woken();
                    result
                }
            };
            let main = spawn("main", main);
            door.pulse.note_polled();
            let result = main.await;
            drain().await;
            super::ring::close();
            door.pulse.note_polled();
            watchdog::unwatch(&door);
            Home::leave();
            result.expect("a panic of the main task has ended the process")
        })
    }

    fn make(&self) -> Result<glommio::LocalExecutor, String> {
        let settings = &self.settings;
        let preempt_ok = settings.preempt >= Duration::from_millis(10);
        assert!(preempt_ok || cfg!(test), "see the documentation of the setting");
        let mut builder = LocalExecutorBuilder::new(placement(self.fence.as_deref()))
            .name("shard")
            .io_memory(settings.io_memory)
            .ring_depth(settings.ring_depth)
            .preempt_timer(settings.preempt)
            // By default all shards would share the first processor for it. Two: a `syncfs` may take long.
            .blocking_thread_pool_placement(PoolPlacement::Unbound(2));
        if !settings.spin.is_zero() {
            builder = builder.spin_before_park(settings.spin);
        }
        match catch_unwind(AssertUnwindSafe(|| builder.make())) {
            Ok(Ok(executor)) => Ok(executor),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("glommio failed an assertion of its own (see above)".into()),
        }
    }
}

/// The processors of each shard: its own, and those that no shard owns, for the kernel's workers that do its
/// buffered and appending writes (they inherit it). `None`: anywhere.
fn fences(shards: usize) -> Vec<Option<Vec<usize>>> {
    let allowed = sys::allowed_cpus();
    if shards > allowed.len() {
        return vec![None; shards];
    }
    let spare = &allowed[shards..];
    (0..shards)
        .map(|shard| {
            let mut fence = vec![allowed[shard]];
            if spare.is_empty() {
                fence.push(allowed[(shard + 1) % allowed.len()]);
            } else {
                fence.extend_from_slice(spare);
            }
            Some(fence)
        })
        .collect()
}

fn placement(fence: Option<&[usize]>) -> Placement {
    let Some(fence) = fence else { return Placement::Unbound };
    // `online` reads the machine's topology, not the container's: only what both know counts.
    match CpuSet::online() {
        Ok(online) => {
            let cpus = online.filter(|location| fence.contains(&location.cpu));
            if cpus.is_empty() { Placement::Unbound } else { Placement::Fenced(cpus) }
        }
        Err(_) => Placement::Unbound,
    }
}

/// Keeps glommio's polled ring out of use on the device of `path`.
///
/// glommio decides once for each thread and device, by a read through the first file that it opens. From an empty
/// file opened for reading and writing that read "succeeds" with nothing, the device is taken for pollable, and
/// every later read fails with EOPNOTSUPP; on devices that are pollable, long reads have been seen to hang. A
/// file opened only for writing makes that read fail, which settles it the safe way. glommio logs that as an
/// error; the log leaves the line out.
async fn guard_poll_ring(path: &std::path::Path) {
    let opened = glommio::io::OpenOptions::new().read(false).write(true).dma_open(path).await;
    match opened {
        Ok(file) => {
            let _ = file.close().await;
        }
        // A file system without direct I/O: it has no polled ring either.
        Err(error) => tracing::debug!(%error, "the probe file cannot be opened for direct I/O"),
    }
}

/// Runs `f`, which may block, on a thread apart. A panic in it is carried over to the caller: on the thread
/// itself it would kill it, and every later blocking call of this shard with it.
pub async fn blocking<R, F>(f: F) -> R
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    let _in_flight = InFlight::new();
    match glommio::executor().spawn_blocking(move || catch_unwind(AssertUnwindSafe(f))).await {
        Ok(result) => result,
        Err(panic) => resume_unwind(panic),
    }
}

/// Counts an operation that the kernel (or the blocking thread) works on with memory of ours, so that the
/// executor outlives it.
pub(crate) struct InFlight;

impl InFlight {
    pub(crate) fn new() -> Self {
        IN_FLIGHT.set(IN_FLIGHT.get() + 1);
        InFlight
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        IN_FLIGHT.set(IN_FLIGHT.get() - 1);
    }
}

/// Whether glommio works on anything that is counted.
pub(super) fn is_in_flight() -> bool {
    IN_FLIGHT.get() > 0
}

/// Waits for all operations: glommio frees their buffers when the executor ends, whether or not the kernel is
/// done with them.
async fn drain() {
    const WAIT_MAX: Duration = Duration::from_secs(10);
    let deadline = super::uptime() + WAIT_MAX;
    while (IN_FLIGHT.get() > 0 || !super::ring::is_idle()) && super::uptime() < deadline {
        super::sleep(Duration::from_millis(1)).await;
    }
    // Twice around the loop: files that were dropped are closed, what was cancelled is reaped.
    super::sleep(Duration::from_millis(1)).await;
}
