//! Tasks of a shard: spawning them, waking them from anywhere, and accounting for both.
//!
//! A task is polled on its home thread only; its waker may go anywhere. glommio's own wakers may not: their
//! reference count is an `i16`, and a foreign thread that drops the last one races the task's end. So each task
//! has one glommio waker, which stays in a table on the home thread, and gives out wakers of ours that hold
//! the key to that table:
//!
//! ```text
//!   wake on the home thread:      woken? ──no──> table[key].wake()
//!   wake on a foreign thread:     woken? ──no──> door.queue.push(task); door task of the shard is woken,
//!                                                which does the former
//! ```
//!
//! A shard that waits in [`super::Waiting`] is not asleep as glommio sees it: `waits` says so, and its bell is rung.
//!
//! `woken` makes every further wake before the next poll a no-op, so what a foreign thread can queue is bounded
//! by the number of tasks. The counters behind it ([`Pulse`]) tell the watchdog of work that nobody does.
//!
//! Invariants: `polled <= woken` in [`Pulse`]; a key is used by one task until that task ended; the table
//! is never borrowed while a task is polled.
use super::watchdog::{self, Pulse};
use crossbeam_queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};

/// Which of a shard's two queues a task runs in. Both progress; processor time is shared by their weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// What a client waits for.
    Foreground,
    /// What nobody waits for: fills, checkpoints, retention.
    Background,
}

/// What a shard's thread knows of itself.
pub(super) struct Home {
    pub(super) door: Arc<Door>,
    pub(super) foreground: glommio::TaskQueueHandle,
    pub(super) background: glommio::TaskQueueHandle,
    wakers: RefCell<Slab<Entry>>,
}

struct Entry {
    /// glommio's, from the first poll on.
    waker: Option<Waker>,
    /// Tells the tasks apart that used one key after the other.
    task: u64,
}

/// The shard's side that other threads see.
pub(super) struct Door {
    pub(super) pulse: Pulse,
    queue: SegQueue<Arc<TaskWaker>>,
    pending: AtomicBool,
    /// The shard waits in [`super::Waiting`], or is about to, and its bell must be rung.
    waits: AtomicBool,
    /// An eventfd. `None`: the process has no descriptor left, and its shard waits the executor's way alone.
    bell: Option<OwnedFd>,
    /// The kernel's number of the shard's thread, for the watchdog.
    pub(super) thread: AtomicI32,
    /// Waker of the door task. The one waker of glommio's that foreign threads hold: for the life of the process.
    waker: OnceLock<Waker>,
}

thread_local! {
    static HOME: RefCell<Option<Rc<Home>>> = const { RefCell::new(None) };
    /// Identity of the door of this thread's shard: its address, 0 on plain threads.
    static DOOR: Cell<usize> = const { Cell::new(0) };
    static NEXT_TASK: Cell<u64> = const { Cell::new(1) };
    /// Set while a panic is expected and handled by us, so that the hook stays silent.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread, now, is one that will be handled (and should not be printed).
pub fn panic_is_expected() -> bool {
    QUIET.get()
}

impl Door {
    pub(super) fn new() -> Self {
        Door {
            pulse: Pulse::default(),
            queue: SegQueue::new(),
            pending: AtomicBool::new(false),
            waits: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok(),
            thread: AtomicI32::new(0),
            waker: OnceLock::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn set_waker(&self, waker: Waker) {
        assert!(self.waker.set(waker).is_ok());
    }

    fn knock(&self) {
        // The push comes before this look; the shard says that it waits before its last look at the queue.
        fence(Ordering::SeqCst);
        if self.waits.load(Ordering::Relaxed) && self.waits.swap(false, Ordering::SeqCst) {
            // It cannot fail: the counter is far from full.
            let _ = self.bell.as_ref().map(|bell| rustix::io::write(bell, &1u64.to_ne_bytes()));
            return;
        }
        if !self.pending.swap(true, Ordering::AcqRel) {
            self.ring();
        }
    }

    /// What becomes readable when a foreign thread wakes a task of a shard that [waits](Door::begin_wait).
    pub(super) fn bell(&self) -> Option<&OwnedFd> {
        self.bell.as_ref()
    }

    /// From here on whoever knocks rings the bell, once. `false` when somebody has knocked already.
    pub(super) fn begin_wait(&self) -> bool {
        self.waits.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.queue.is_empty()
    }

    /// The wait is over: silences the bell if it `rang`, and wakes what was asked for.
    pub(super) fn end_wait(&self, rang: bool) {
        self.waits.store(false, Ordering::SeqCst);
        if rang {
            // It is there to be read, and nothing hangs on it.
            let _ = self.bell.as_ref().map(|bell| rustix::io::read(bell, &mut [0u8; 8]));
        }
        self.answer();
    }

    /// Wakes, on the shard's thread, what foreign threads asked for.
    pub(super) fn answer(&self) {
        while let Some(task) = self.queue.pop() {
            task.wake_here();
        }
    }

    /// Wakes the shard, whatever it does. For the watchdog, too.
    pub(super) fn ring(&self) {
        match self.waker.get() {
            Some(waker) => waker.wake_by_ref(),
            // It parked before the first poll of all: there is nothing to wake yet, but a thread.
            None => crate::sys::interrupt_thread(self.thread.load(Ordering::Relaxed)),
        }
    }
}

impl Home {
    /// Makes this thread the home of a shard, until [`Home::leave`].
    pub(super) fn enter(
        door: Arc<Door>,
        foreground: glommio::TaskQueueHandle,
        background: glommio::TaskQueueHandle,
    ) -> Rc<Home> {
        let home = Rc::new(Home { door, foreground, background, wakers: RefCell::new(Slab::new()) });
        DOOR.set(Arc::as_ptr(&home.door) as usize);
        HOME.with_borrow_mut(|slot| {
            assert!(slot.is_none(), "this thread is the home of another shard");
            *slot = Some(home.clone());
        });
        home
    }

    /// Ends it: from here on wakes of this shard's tasks do nothing.
    pub(super) fn leave() {
        DOOR.set(0);
        let home = HOME.with_borrow_mut(Option::take);
        if let Some(home) = home {
            home.wakers.borrow_mut().clear();
        }
    }

    /// The task that carries the wakes of foreign threads over. Never ends.
    pub(super) async fn serve_door(door: Arc<Door>) {
        std::future::poll_fn(|cx| {
            door.waker.get_or_init(|| cx.waker().clone());
            door.pulse.tick();
            door.pending.store(false, Ordering::SeqCst);
            door.answer();
            Poll::<()>::Pending
        })
        .await;
    }
}

pub(super) fn home() -> Rc<Home> {
    HOME.with_borrow(|home| home.clone()).expect("not on the thread of a shard")
}

/// Wakes one task, from any thread. glommio never sees its clones.
struct TaskWaker {
    door: Arc<Door>,
    key: usize,
    task: u64,
    woken: AtomicBool,
}

impl TaskWaker {
    fn wake_here(&self) {
        HOME.with_borrow(|home| {
            if let Some(home) = home
                && let Some(entry) = home.wakers.borrow().get(self.key)
                && entry.task == self.task
                && let Some(waker) = &entry.waker
            {
                waker.wake_by_ref();
            }
        });
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.woken.swap(true, Ordering::AcqRel) {
            return;
        }
        self.door.pulse.note_woken();
        if DOOR.get() == Arc::as_ptr(&self.door) as usize {
            self.wake_here();
        } else {
            self.door.queue.push(self.clone());
            self.door.knock();
        }
        watchdog::attend();
    }
}

/// What a panic of a task does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnPanic {
    /// The process ends: the task may have left the shard's state half changed.
    Abort,
    /// The task ends. For tasks that own all that they touch.
    EndTask,
}

/// A spawned future with its accounting around it.
struct Task<F: Future> {
    future: Pin<Box<F>>,
    name: u32,
    on_panic: OnPanic,
    ours: Arc<TaskWaker>,
    waker: Waker,
    polled_before: bool,
    join: Rc<JoinState<F::Output>>,
}

impl<F: Future> Task<F> {
    /// First poll: puts glommio's waker into the table.
    #[cold]
    fn register(&mut self, waker: &Waker) {
        self.polled_before = true;
        HOME.with_borrow(|home| {
            let home = home.as_ref().expect("a task is polled on its home thread");
            home.wakers.borrow_mut()[self.ours.key].waker = Some(waker.clone());
        });
    }
}

impl<F: Future> Future for Task<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if !this.polled_before {
            this.register(cx.waker());
        }
        let pulse = &this.ours.door.pulse;
        // Cleared before the poll: a wake that comes during it must lead to another poll.
        if this.ours.woken.swap(false, Ordering::AcqRel) {
            pulse.note_polled();
        }
        pulse.enter(this.name);
        let context = &mut Context::from_waker(&this.waker);
        let polled = catch_unwind(AssertUnwindSafe(|| this.future.as_mut().poll(context)));
        pulse.leave();
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => {
                this.join.settle(Some(output));
                Poll::Ready(())
            }
            Err(_) => {
                let name = watchdog::name_of(this.name);
                if this.on_panic == OnPanic::Abort {
                    eprintln!("flumen-node: task {name} failed an assertion; the node stops here");
                    std::process::abort();
                }
                pulse.note_isolated_panic();
                this.join.settle(None);
                Poll::Ready(())
            }
        }
    }
}

impl<F: Future> Drop for Task<F> {
    fn drop(&mut self) {
        // Whoever wakes it from here on finds it woken already, and does nothing.
        if self.ours.woken.swap(true, Ordering::AcqRel) {
            self.ours.door.pulse.note_polled();
        }
        let entry = HOME.with_borrow(|home| {
            let mut wakers = home.as_ref()?.wakers.borrow_mut();
            let still_ours = wakers.get(self.ours.key).is_some_and(|entry| entry.task == self.ours.task);
            still_ours.then(|| wakers.remove(self.ours.key))
        });
        // Outside of the borrow: dropping a waker of glommio's may run its scheduler.
        drop(entry);
        self.join.settle(None);
    }
}

struct JoinState<T> {
    value: RefCell<Option<T>>,
    settled: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl<T> JoinState<T> {
    fn settle(&self, output: Option<T>) {
        if self.settled.replace(true) {
            return;
        }
        *self.value.borrow_mut() = output;
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Waits for a task's result. Dropping it lets the task run on by itself.
pub struct Join<T>(Rc<JoinState<T>>);

/// The task ended without a result: it panicked (isolated), or its shard ended before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

impl<T> Join<T> {
    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.0.settled.get()
    }
}

impl<T> Future for Join<T> {
    type Output = Result<T, Lost>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.0.settled.get() {
            return Poll::Ready(self.0.value.borrow_mut().take().ok_or(Lost));
        }
        *self.0.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Spawns a task on this shard. It is first polled later, never inside this call. A panic in it ends the
/// process: the task may have left state of the shard half changed. `name` is for the watchdog's reports.
pub fn spawn<F>(name: &'static str, future: F) -> Join<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    spawn_in(Queue::Foreground, name, future)
}

/// As [`spawn`], into the queue given.
pub fn spawn_in<F>(queue: Queue, name: &'static str, future: F) -> Join<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    start(queue, name, OnPanic::Abort, future)
}

/// As [`spawn`], but a panic ends only the task, is printed and counted. For tasks that own all that they
/// touch (an HTTP connection of the admin address); never for one that changes state of its shard.
pub fn spawn_isolated<F>(name: &'static str, future: F) -> Join<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    start(Queue::Foreground, name, OnPanic::EndTask, future)
}

fn start<F>(queue: Queue, name: &'static str, on_panic: OnPanic, future: F) -> Join<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let home = home();
    let queue = match queue {
        Queue::Foreground => home.foreground,
        Queue::Background => home.background,
    };
    let join = Rc::new(JoinState {
        value: RefCell::new(None),
        settled: Cell::new(false),
        waker: RefCell::new(None),
    });
    let id = NEXT_TASK.replace(NEXT_TASK.get() + 1);
    let key = home.wakers.borrow_mut().insert(Entry { waker: None, task: id });
    // Born woken: the first poll is owed.
    let ours = Arc::new(TaskWaker { door: home.door.clone(), key, task: id, woken: AtomicBool::new(true) });
    home.door.pulse.note_woken();
    watchdog::attend();
    let task = Task {
        future: Box::pin(future),
        name: watchdog::name(name),
        on_panic,
        waker: Waker::from(ours.clone()),
        ours,
        polled_before: false,
        join: join.clone(),
    };
    // `spawn_local_into` defers the first poll; `spawn_local` would run it here, inside the caller's borrows.
    glommio::spawn_local_into(task, queue).expect("the shard's queues live as long as its thread").detach();
    Join(join)
}

/// Runs `f`, for a panic that is expected from somebody else's code: silent, and returned as `None`.
pub(crate) fn quietly<T>(f: impl FnOnce() -> T) -> Option<T> {
    let before = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    QUIET.set(before);
    result.ok()
}
