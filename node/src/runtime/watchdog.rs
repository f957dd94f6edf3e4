//! The watchdog: one plain thread that sees a shard with work and without progress.
//!
//! ```text
//!              a task is woken                              all shards idle
//!   asleep ─────────────────────> checking every PERIOD <──────────────────────> checking every QUIET_PERIOD ──┐
//!     ^                                                                                                        │
//!     └────────────────────────────────────── idle for LINGER checks ──────────────────────────────────────────┘
//! ```
//!
//! At each check, for each shard: a poll that began before the last check and has not ended is a *stall* (the
//! task held its core), reported with the task's name. Work that was there at the last check, no poll since, and
//! none in progress: the executor *parked with runnable tasks* (glommio 0.9.0 does, when its preemption timer
//! fires in a certain window), and is woken. Both are counted for the metrics.
//!
//! The cost to a task: two atomic additions a wake, two plain stores a poll. An idle node costs nothing: the
//! thread sleeps until the first task of any shard is woken.
use super::task::Door;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// Time between two checks of shards with work, so also the shortest stall that is surely seen is twice this.
pub const PERIOD: Duration = Duration::from_millis(5);
/// Time until the next check where the last one found all idle: a shard that gets little to do is to pay little for being
/// watched. A stall that begins meanwhile is seen so much later.
const QUIET_PERIOD: Duration = Duration::from_millis(25);
/// Checks without work before the thread goes to sleep.
const LINGER: u32 = 3;
/// A stall shorter than this is counted, not logged.
const LOG_STALL: Duration = Duration::from_millis(20);

/// Counters of one shard: written by its own thread, but for `woken`.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Pulse {
    /// Wakes that will lead to a poll. Any thread.
    woken: AtomicU64,
    shard: ShardSide,
    reports: Reports,
}

#[derive(Default)]
#[repr(align(128))]
struct ShardSide {
    /// Wakes that have led to a poll (or whose task is gone).
    polled: AtomicU64,
    /// Polls, entered and left: odd while one is in progress.
    polls: AtomicU64,
    /// Name of the task polled last.
    name: AtomicU32,
    /// Passes of the door task.
    ticks: AtomicU64,
    isolated_panics: AtomicU64,
}

#[derive(Default)]
struct Reports {
    rescues: AtomicU64,
    stalls: AtomicU64,
    stalled_us: AtomicU64,
}

/// What the watchdog has seen of a shard since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Polls of tasks.
    pub polls: u64,
    /// Times that it parked with runnable tasks and was woken.
    pub rescues: u64,
    /// Polls that held the core for longer than a check.
    pub stalls: u64,
    /// Time in such polls, in microseconds.
    pub stalled_us: u64,
    /// Panics of isolated tasks.
    pub isolated_panics: u64,
}

fn add(counter: &AtomicU64, by: u64) {
    // One writer: a plain load and store, not a locked addition.
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Release);
}

impl Pulse {
    pub(super) fn note_woken(&self) {
        // Ordered before the look at `ASLEEP` in `attend`.
        self.woken.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn note_polled(&self) {
        add(&self.shard.polled, 1);
    }

    pub(super) fn enter(&self, name: u32) {
        self.shard.name.store(name, Ordering::Relaxed);
        add(&self.shard.polls, 1);
    }

    pub(super) fn leave(&self) {
        add(&self.shard.polls, 1);
    }

    /// The poll in progress waits in the kernel. Returns what it is [entered](Pulse::enter) with afterwards.
    pub(super) fn leave_for_a_while(&self) -> u32 {
        self.leave();
        self.shard.name.load(Ordering::Relaxed)
    }

    /// Whether a task is owed a poll. Asked on the shard's thread, of which a poll in progress does not count.
    pub(super) fn owes_a_poll(&self) -> bool {
        // `polled` first: a wake counted in between may only make it look busier.
        let polled = self.shard.polled.load(Ordering::Relaxed);
        self.woken.load(Ordering::SeqCst) != polled
    }

    pub(super) fn tick(&self) {
        add(&self.shard.ticks, 1);
    }

    pub(super) fn note_isolated_panic(&self) {
        add(&self.shard.isolated_panics, 1);
    }

    /// What the watchdog has seen.
    pub(super) fn health(&self) -> Health {
        Health {
            polls: self.shard.polls.load(Ordering::Relaxed) / 2,
            rescues: self.reports.rescues.load(Ordering::Relaxed),
            stalls: self.reports.stalls.load(Ordering::Relaxed),
            stalled_us: self.reports.stalled_us.load(Ordering::Relaxed),
            isolated_panics: self.shard.isolated_panics.load(Ordering::Relaxed),
        }
    }
}

/// The thread sleeps, and wants to be woken by whoever has work.
static ASLEEP: AtomicBool = AtomicBool::new(false);
static THREAD: OnceLock<Thread> = OnceLock::new();
static SHARDS: Mutex<Vec<Arc<Door>>> = Mutex::new(Vec::new());
static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

/// Called after every wake: gets the watchdog out of bed. One load when it is up.
pub(super) fn attend() {
    if ASLEEP.load(Ordering::SeqCst) && ASLEEP.swap(false, Ordering::SeqCst) {
        get_up();
    }
}

#[cold]
fn get_up() {
    if let Some(thread) = THREAD.get() {
        thread.unpark();
    }
}

/// The number of a task's name.
pub(super) fn name(name: &'static str) -> u32 {
    thread_local! {
        static KNOWN: std::cell::RefCell<Vec<(*const u8, u32)>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    KNOWN.with_borrow_mut(|known| {
        if let Some(&(_, number)) = known.iter().find(|(at, _)| *at == name.as_ptr()) {
            return number;
        }
        let mut names = NAMES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let number = names.iter().position(|other| *other == name).unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        });
        let number = u32::try_from(number).expect("names are constants of the program");
        known.push((name.as_ptr(), number));
        number
    })
}

pub(super) fn name_of(number: u32) -> &'static str {
    let names = NAMES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    names.get(number as usize).copied().unwrap_or("?")
}

/// Puts the shard of this thread under watch, until [`unwatch`], with a poll owed. Starts the watchdog's thread when it is
/// the first.
pub(super) fn watch(door: &Arc<Door>) {
    door.thread.store(crate::sys::thread_id(), Ordering::Relaxed);
    door.pulse.note_woken();
    SHARDS.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(door.clone());
    THREAD.get_or_init(|| {
        crate::sys::allow_interrupts().expect("SIGURG may be handled");
        std::thread::Builder::new()
            .name("watchdog".into())
            .stack_size(256 << 10)
            .spawn(run)
            .expect("a thread can be started")
            .thread()
            .clone()
    });
    ASLEEP.store(false, Ordering::SeqCst);
    get_up();
}

pub(super) fn unwatch(door: &Arc<Door>) {
    SHARDS.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).retain(|other| !Arc::ptr_eq(other, door));
}

/// What the last check saw of a shard.
struct Seen {
    door: Arc<Door>,
    polls: u64,
    had_work: bool,
    /// Since when the poll in progress lasts, as far as was seen, and its task's name.
    stall: Option<(Instant, u32)>,
}

fn run() {
    let mut seen: Vec<Seen> = Vec::new();
    let mut idle_checks = 0;
    loop {
        refresh(&mut seen);
        let now = Instant::now();
        let mut busy = false;
        for shard in &mut seen {
            busy |= shard.check(now);
        }
        idle_checks = if busy { 0 } else { idle_checks + 1 };
        if idle_checks < LINGER {
            std::thread::sleep(if busy { PERIOD } else { QUIET_PERIOD });
            continue;
        }
        idle_checks = 0;
        ASLEEP.store(true, Ordering::SeqCst);
        // Whoever woke a task before the store did not see it: look once more.
        if seen.iter().any(Seen::has_work) {
            ASLEEP.store(false, Ordering::SeqCst);
            continue;
        }
        while ASLEEP.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }
}

fn refresh(seen: &mut Vec<Seen>) {
    let shards = SHARDS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    seen.retain(|known| shards.iter().any(|door| Arc::ptr_eq(door, &known.door)));
    for door in shards.iter() {
        if !seen.iter().any(|known| Arc::ptr_eq(door, &known.door)) {
            seen.push(Seen { door: door.clone(), polls: 0, had_work: false, stall: None });
        }
    }
}

impl Seen {
    fn has_work(&self) -> bool {
        let pulse = &self.door.pulse;
        // `polled` first: a wake counted in between may only make it look busier.
        let polled = pulse.shard.polled.load(Ordering::SeqCst);
        pulse.woken.load(Ordering::SeqCst) != polled || pulse.shard.polls.load(Ordering::SeqCst) % 2 == 1
    }

    /// One look at the shard. Whether it has work.
    fn check(&mut self, now: Instant) -> bool {
        let pulse = &self.door.pulse;
        let polls = pulse.shard.polls.load(Ordering::Acquire);
        let moved = polls != self.polls;
        self.polls = polls;
        if moved {
            if let Some((since, name)) = self.stall.take() {
                self.end_stall(now - since, name);
            }
        } else if polls % 2 == 1 {
            if self.stall.is_none() {
                // Seen twice in the same poll: it has lasted for at least one period.
                pulse.reports.stalls.fetch_add(1, Ordering::Relaxed);
                self.stall = Some((now - PERIOD, pulse.shard.name.load(Ordering::Relaxed)));
            }
        } else if self.had_work && self.has_work() && self.sleeps() {
            pulse.reports.rescues.fetch_add(1, Ordering::Relaxed);
            self.door.ring();
        }
        self.had_work = self.has_work();
        self.had_work
    }

    /// Whether its thread sleeps, rather than waits for a core on a busy machine. Asked only when it stands still.
    fn sleeps(&self) -> bool {
        let thread = self.door.thread.load(Ordering::Relaxed);
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
        // The state stands after the name, which is in parentheses and may hold anything.
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
        matches!(state, None | Some('S'))
    }

    fn end_stall(&self, time: Duration, name: u32) {
        let stalled_us = &self.door.pulse.reports.stalled_us;
        stalled_us.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
        if time >= LOG_STALL {
            tracing::warn!(task = name_of(name), ms = time.as_millis() as u64, "a task held its core");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Wake, Waker};

    #[derive(Default)]
    struct Rung(AtomicU64);

    impl Wake for Rung {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A shard as the watchdog sees it, played step by step.
    fn shard() -> (Seen, Arc<Rung>) {
        let rung = Arc::new(Rung::default());
        let door = Arc::new(Door::new());
        door.set_waker(Waker::from(rung.clone()));
        (Seen { door, polls: 0, had_work: false, stall: None }, rung)
    }

    #[test]
    fn work_without_progress_is_rung_for_at_the_second_look() {
        let (mut seen, rung) = shard();
        assert!(!seen.check(Instant::now()), "idle");
        seen.door.pulse.note_woken();
        assert!(seen.check(Instant::now()));
        assert_eq!(rung.0.load(Ordering::SeqCst), 0, "it may be on its way");
        assert!(seen.check(Instant::now()));
        assert_eq!(rung.0.load(Ordering::SeqCst), 1);
        seen.door.pulse.note_polled();
        seen.door.pulse.enter(0);
        seen.door.pulse.leave();
        assert!(!seen.check(Instant::now()), "done");
        assert_eq!(seen.door.pulse.health(), Health { polls: 1, rescues: 1, ..Health::default() });
    }

    #[test]
    fn a_long_poll_is_one_stall_and_no_reason_to_ring() {
        let (mut seen, rung) = shard();
        let start = Instant::now();
        seen.door.pulse.enter(name("long"));
        for look in 0..6 {
            assert!(seen.check(start + PERIOD * look), "busy");
        }
        seen.door.pulse.leave();
        assert!(!seen.check(start + PERIOD * 6));
        let health = seen.door.pulse.health();
        assert_eq!((health.stalls, health.stalled_us, health.rescues), (1, 30_000, 0));
        assert_eq!(rung.0.load(Ordering::SeqCst), 0);
    }
}
