//! glommio: one executor on the thread that asks for it, for clients that shall cost little per request.
//!
//! What is known to bite in glommio 0.9.0 and how it is avoided here: preemption is left at 20 ms or more and no queue
//! asks for a latency, since an executor may otherwise park with runnable tasks, and as it may even so, where its thread waits for a
//! processor, a [`Pulse`] wakes it; a task is never spawned while
//! something is borrowed, since its first poll happens at once; few wakers of one task exist at a time, since their
//! count has 16 bits; little memory is registered, since only sockets are used.

use super::{Driver, Running};
use glommio::timer::Timer;
use glommio::{LocalExecutorBuilder, Placement};
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an executor stands still at most that parked with runnable tasks.
const PULSE_PERIOD: Duration = Duration::from_millis(50);

/// See [`super::connect`].
pub(super) type Stream = glommio::net::TcpStream;

/// How an executor is to run.
#[derive(Clone, Debug)]
pub struct UringSettings {
    /// The processor to stay on; none: any.
    pub cpu: Option<usize>,
    /// How long it spins before it sleeps: less latency for a whole processor.
    pub spin: Duration,
    /// Operations that the ring takes at once.
    pub ring_depth: usize,
}

impl Default for UringSettings {
    fn default() -> UringSettings {
        UringSettings { cpu: None, spin: Duration::ZERO, ring_depth: 128 }
    }
}

/// Why there is no executor; the text says what to do.
#[derive(Debug)]
pub struct StartError(String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "io_uring cannot be used here: {}; `flumen doctor` says what mends it", self.0)
    }
}

impl std::error::Error for StartError {}

/// Runs a future to its end on an executor on this thread, with all tasks that it starts.
pub fn run_uring<F, Fut, T>(settings: &UringSettings, main: F) -> Result<T, StartError>
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = T>,
{
    /// The least that glommio takes.
    const IO_MEMORY: usize = 64 << 10;
    let placement = settings.cpu.map_or(Placement::Unbound, Placement::Fixed);
    let mut builder = LocalExecutorBuilder::new(placement)
        .name("client")
        .io_memory(IO_MEMORY)
        .ring_depth(settings.ring_depth)
        .preempt_timer(Duration::from_millis(20));
    if !settings.spin.is_zero() {
        builder = builder.spin_before_park(settings.spin);
    }
    // It fails assertions of its own where locked memory is short.
    let executor = match catch_unwind(AssertUnwindSafe(|| builder.make())) {
        Ok(Ok(executor)) => executor,
        Ok(Err(error)) => return Err(StartError(error.to_string())),
        Err(_) => return Err(StartError("see above".into())),
    };
    Ok(executor.run(async {
        let _running = Running::enter(Driver::Uring);
        let _pulse = Pulse::start();
        main().await
    }))
}

/// A thread that wakes an executor from outside again and again: one that parked with runnable tasks goes on, which nothing else
/// may ever make it do.
struct Pulse {
    beat: Arc<Beat>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Beat {
    is_over: AtomicBool,
    /// Of a task of the executor that does nothing else than to be woken.
    waker: Mutex<Option<Waker>>,
}

impl Beat {
    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulse {
    /// Within the executor. Without a thread to be had there is none.
    fn start() -> Pulse {
        let beat = Arc::new(Beat::default());
        let woken = Arc::clone(&beat);
        spawn(std::future::poll_fn(move |context| {
            if woken.is_over.load(Ordering::Acquire) {
                return Poll::Ready(());
            }
            woken.waker().get_or_insert_with(|| context.waker().clone());
            Poll::Pending
        }));
        let beating = Arc::clone(&beat);
        let thread = std::thread::Builder::new().name("pulse".into()).spawn(move || {
            while !beating.is_over.load(Ordering::Acquire) {
                std::thread::park_timeout(PULSE_PERIOD);
                // Neither taken nor dropped here: the last drop of a waker on another thread may race with its task's end.
                if let Some(waker) = &*beating.waker() {
                    waker.wake_by_ref();
                }
            }
        });
        Pulse { beat, thread: thread.ok() }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.beat.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // Nothing is woken once the executor is gone.
            let _ = thread.join();
        }
        *self.beat.waker() = None;
    }
}

pub(super) fn spawn(task: impl Future<Output = ()> + 'static) {
    glommio::spawn_local(task).detach();
}

pub(super) async fn sleep(duration: Duration) {
    glommio::timer::sleep(duration).await;
}

/// See [`super::Alarm`].
#[derive(Debug)]
pub(super) struct Alarm {
    timer: Option<Timer>,
    at: Option<Instant>,
}

impl Alarm {
    pub(super) fn new() -> Alarm {
        Alarm { timer: None, at: None }
    }

    pub(super) fn poll_at(&mut self, context: &mut Context<'_>, at: Instant) -> Poll<()> {
        let now = Instant::now();
        if now >= at {
            return Poll::Ready(());
        }
        if self.at != Some(at) {
            match &mut self.timer {
                Some(timer) => timer.reset(at - now),
                None => self.timer = Some(Timer::new(at - now)),
            }
            self.at = Some(at);
        }
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        Pin::new(timer).poll(context).map(|_| self.at = None)
    }
}

pub(super) async fn connect(address: SocketAddr) -> io::Result<Stream> {
    let stream = Stream::connect(address).await.map_err(io::Error::from)?;
    stream.set_nodelay(true).map_err(io::Error::from)?;
    Ok(stream)
}
