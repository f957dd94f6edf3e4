//! The deterministic executor: tasks, virtual time, and the events that complete I/O.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fmt::Write as _;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::Random;
use super::disk::{Fault, InFlight, SimDisk};
use super::tree::{Inode, Tree};

/// How a life of the simulated machine begins.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Bytes of space on the disk.
    pub capacity: u64,
    /// The wall clock at virtual time zero, in milliseconds since the Unix epoch.
    pub start_ms: i64,
    /// How long a sync of everything takes at least: others write to the file system too.
    pub sync_all_takes: Duration,
    /// Polls and completions after which a run is taken to go round in circles.
    pub steps_max: u64,
    /// Keep the trace as text, not only its hash, and print it where a panic ends the life.
    pub keep_trace: bool,
}

impl Default for SimOptions {
    fn default() -> SimOptions {
        SimOptions {
            capacity: 1 << 40,
            start_ms: 1_700_000_000_000,
            sync_all_takes: Duration::ZERO,
            steps_max: 20_000_000,
            keep_trace: false,
        }
    }
}

/// Why `run` ended without the output of its future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The step of I/O given to `crash_after` has come.
    Crashed,
    /// Nothing is ready, no I/O is in flight, no timer is set, and the future is not done: a deadlock.
    Stuck,
    /// `SimOptions::steps_max` was reached.
    Steps,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stop::Crashed => "crashed, as planned",
            Stop::Stuck => "deadlock: nothing is ready, nothing in flight, no timer set",
            Stop::Steps => "no end after the greatest number of steps",
        })
    }
}

/// What ends a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The power failed: what was not synced is kept, lost or torn.
    Power,
    /// The process died (`kill -9`): what had completed is there, synced or not.
    Process,
}

/// How far the clock may go while a task is ready.
const LATE_MAX: Duration = Duration::from_micros(100);

type TaskFuture = Pin<Box<dyn Future<Output = ()>>>;

pub(super) enum Event {
    Wake(Waker),
    Io(InFlight),
}

/// All that a life consists of, except its tasks.
pub(super) struct State {
    pub(super) random: Random,
    pub(super) tree: Tree,
    pub(super) faults: Vec<Fault>,
    pub(super) now: Duration,
    pub(super) start_ms: i64,
    pub(super) sync_all_takes: Duration,
    /// Nothing happens any more: the machine has crashed or is being taken down.
    pub(super) dead: bool,
    pub(super) blocks_in_flight: BTreeSet<(Inode, u64)>,
    events: BTreeMap<(Duration, u64), Event>,
    next_event: u64,
    io_steps: u64,
    crash_at: u64,
    trace: Trace,
}

struct Trace {
    hash: DefaultHasher,
    text: Option<String>,
}

pub(super) struct World {
    pub(super) state: RefCell<State>,
    tasks: RefCell<BTreeMap<u64, (TaskFuture, Arc<TaskWaker>)>>,
    next_task: Cell<u64>,
    ready: Arc<Mutex<Vec<u64>>>,
}

struct TaskWaker {
    task: u64,
    queued: AtomicBool,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().expect("no poll panics while it holds the queue").push(self.task);
        }
    }
}

impl State {
    /// Counts one step of I/O (a submission or a completion); the machine dies at the one it was told.
    pub(super) fn io_step(&mut self, what: fmt::Arguments<'_>) {
        self.io_steps += 1;
        if self.io_steps >= self.crash_at {
            self.dead = true;
        }
        self.note(what);
    }

    pub(super) fn note(&mut self, what: fmt::Arguments<'_>) {
        let line = format!("{} {} {what}\n", self.now.as_nanos(), self.io_steps);
        line.hash(&mut self.trace.hash);
        if let Some(text) = &mut self.trace.text {
            text.push_str(&line);
        }
    }

    /// Makes content part of the trace without printing it.
    pub(super) fn note_bytes(&mut self, bytes: &[u8]) {
        self.trace.hash.write(bytes);
    }

    pub(super) fn schedule(&mut self, delay: Duration, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now + delay, self.next_event), event);
    }

    fn complete_next(&mut self) -> bool {
        let Some(((at, _), event)) = self.events.pop_first() else { return false };
        self.now = self.now.max(at);
        match event {
            Event::Wake(waker) => waker.wake(),
            Event::Io(in_flight) => in_flight.complete(self),
        }
        true
    }
}

/// One life of a simulated machine. Dropping it drops its tasks.
pub struct Sim {
    world: Rc<World>,
    options: SimOptions,
}

impl Sim {
    /// A machine with an empty disk.
    pub fn new(seed: u64, options: SimOptions) -> Sim {
        let tree = Tree::new(options.capacity);
        Sim::with_disk(Random::new(seed), tree, Duration::ZERO, options)
    }

    fn with_disk(random: Random, tree: Tree, now: Duration, options: SimOptions) -> Sim {
        let state = State {
            random,
            tree,
            faults: Vec::new(),
            now,
            start_ms: options.start_ms,
            sync_all_takes: options.sync_all_takes,
            dead: false,
            blocks_in_flight: BTreeSet::new(),
            events: BTreeMap::new(),
            next_event: 0,
            io_steps: 0,
            crash_at: u64::MAX,
            trace: Trace { hash: DefaultHasher::new(), text: options.keep_trace.then(String::new) },
        };
        let world = World {
            state: RefCell::new(state),
            tasks: RefCell::default(),
            next_task: Cell::new(0),
            ready: Arc::default(),
        };
        Sim { world: Rc::new(world), options }
    }

    /// The machine's disk.
    pub fn disk(&self) -> SimDisk {
        SimDisk::new(self.world.clone())
    }

    /// Runs `future` beside what is spawned later; it is first polled by `run`.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.world.spawn(Box::pin(future));
    }

    /// Crashes the machine at its `n`-th step of I/O from its start (a submission is a step, a completion
    /// another).
    pub fn crash_after(&self, n: u64) {
        self.world.state.borrow_mut().crash_at = n.max(1);
    }

    /// Steps of I/O so far.
    pub fn io_steps(&self) -> u64 {
        self.world.state.borrow().io_steps
    }

    /// Virtual time since the first life began.
    pub fn now(&self) -> Duration {
        self.world.state.borrow().now
    }

    /// A hash of everything that has happened in this life.
    pub fn trace_hash(&self) -> u64 {
        self.world.state.borrow().trace.hash.finish()
    }

    /// What has happened in this life, a line per step of I/O; empty unless `SimOptions::keep_trace`.
    pub fn trace(&self) -> String {
        self.world.state.borrow().trace.text.clone().unwrap_or_default()
    }

    /// Adds a line to the trace.
    pub fn note(&self, line: fmt::Arguments<'_>) {
        self.world.state.borrow_mut().note(line);
    }

    /// Runs until `future` is done or the machine stops. Spawned tasks that are not done stay for the next
    /// `run`.
    pub fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Result<T, Stop> {
        let output = Rc::new(RefCell::new(None));
        let slot = output.clone();
        self.spawn(async move {
            let value = future.await;
            *slot.borrow_mut() = Some(value);
        });
        for _ in 0..self.options.steps_max {
            if self.world.state.borrow().dead {
                return Err(Stop::Crashed);
            }
            if let Some(value) = output.borrow_mut().take() {
                return Ok(value);
            }
            if !self.world.step() {
                return Err(Stop::Stuck);
            }
        }
        Err(Stop::Steps)
    }

    /// Ends this life and begins the next one on what survives on the disk. `start_ms` stays; virtual time
    /// goes on.
    pub fn crash(self, crash: Crash) -> Sim {
        let options = self.options.clone();
        self.world.state.borrow_mut().dead = true;
        self.world.drop_tasks();
        let (mut random, mut tree, now, mut events) = {
            let mut state = self.world.state.borrow_mut();
            let random = state.random.fork();
            let tree = std::mem::replace(&mut state.tree, Tree::new(0));
            (random, tree, state.now, std::mem::take(&mut state.events))
        };
        // What is in flight happens in any order, as a whole, in part, or not at all.
        let mut in_flight: Vec<InFlight> = Vec::new();
        while let Some((_, event)) = events.pop_first() {
            if let Event::Io(io) = event {
                in_flight.push(io);
            }
        }
        while !in_flight.is_empty() {
            let next = random.index(in_flight.len());
            in_flight.swap_remove(next).interrupt(&mut tree, &mut random);
        }
        match crash {
            Crash::Process => tree.process_failure(),
            Crash::Power => tree.power_failure(&mut random),
        }
        Sim::with_disk(random, tree, now + Duration::from_secs(1), options)
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // Tasks own handles that own the world: without this, a world would keep itself alive.
        if let Ok(mut state) = self.world.state.try_borrow_mut() {
            state.dead = true;
            if let (true, Some(text)) = (std::thread::panicking(), &state.trace.text) {
                eprintln!("{text}");
            }
        }
        self.world.drop_tasks();
    }
}

impl World {
    pub(super) fn spawn(&self, future: TaskFuture) {
        let task = self.next_task.get();
        self.next_task.set(task + 1);
        let waker = Arc::new(TaskWaker { task, queued: AtomicBool::new(false), ready: self.ready.clone() });
        waker.wake_by_ref();
        self.tasks.borrow_mut().insert(task, (future, waker));
    }

    /// Polls a ready task or completes the next event. False when there is neither.
    fn step(&self) -> bool {
        let task = {
            let mut state = self.state.borrow_mut();
            let mut ready = self.ready.lock().expect("no poll panics while it holds the queue");
            // Sometimes I/O completes between two tasks that are both ready; a task is never late by much.
            let soon = state.events.first_key_value().is_some_and(|((at, _), _)| *at <= state.now + LATE_MAX);
            if ready.is_empty() || soon && state.random.chance(1, 8) {
                drop(ready);
                if state.complete_next() {
                    return true;
                }
                ready = self.ready.lock().expect("no poll panics while it holds the queue");
            }
            if ready.is_empty() {
                return false;
            }
            let chosen = state.random.index(ready.len());
            ready.swap_remove(chosen)
        };
        let Some((mut future, waker)) = self.tasks.borrow_mut().remove(&task) else { return true };
        waker.queued.store(false, Ordering::Relaxed);
        let poll = future.as_mut().poll(&mut Context::from_waker(&Waker::from(waker.clone())));
        if poll.is_pending() {
            self.tasks.borrow_mut().insert(task, (future, waker));
        }
        true
    }

    fn drop_tasks(&self) {
        // Dropping a task may wake or spawn others.
        while let Some((_, task)) = { self.tasks.borrow_mut().pop_first() } {
            drop(task);
        }
    }
}

/// The result of an I/O, for the future that waits for it.
pub(super) struct Slot<R>(RefCell<SlotState<R>>);

struct SlotState<R> {
    result: Option<R>,
    waker: Option<Waker>,
}

impl<R> Slot<R> {
    pub(super) fn new() -> Rc<Slot<R>> {
        Rc::new(Slot(RefCell::new(SlotState { result: None, waker: None })))
    }

    pub(super) fn fill(&self, result: R) {
        let mut state = self.0.borrow_mut();
        state.result = Some(result);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    pub(super) async fn wait(self: Rc<Self>) -> R {
        std::future::poll_fn(|context| {
            let mut state = self.0.borrow_mut();
            match state.result.take() {
                Some(result) => Poll::Ready(result),
                None => {
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let _ = write!(text, "Sim at {:?} after {} steps of I/O", self.now(), self.io_steps());
        f.write_str(&text)
    }
}
