//! Time on a shard: sleeping, timeouts, and the two clocks.
//!
//! The timers are glommio's. A shard that waits without glommio ([`super::Waiting`]) looks at those of [`sleep`] and [`timeout`]
//! itself: they are kept twice, and whoever is there first wakes the sleeper.
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::btree_map::OccupiedEntry;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> i64 {
    // A clock before 1970 is a machine without one; zero is what Kafka's clients then see, too.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Monotonic time since the process first asked for it. One origin for all shards.
pub fn uptime() -> Duration {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed()
}

thread_local! {
    /// Who is to be woken when, each with the number of its sleep.
    static ALARMS: RefCell<BTreeMap<(Duration, u64), Waker>> = const { RefCell::new(BTreeMap::new()) };
    static SLEEPS: Cell<u64> = const { Cell::new(0) };
}

/// Waits. At least for a turn of the other tasks, however short the time: a loop with a sleep in it holds up nobody.
pub fn sleep(time: Duration) -> Sleep {
    let number = SLEEPS.replace(SLEEPS.get() + 1);
    Sleep { key: (uptime() + time, number), timer: glommio::timer::Timer::new(time), given_way: false }
}

/// See [`sleep`].
pub struct Sleep {
    key: (Duration, u64),
    timer: glommio::timer::Timer,
    given_way: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let gives_way = !std::mem::replace(&mut self.given_way, true);
        if uptime() >= self.key.0 {
            if gives_way {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            return Poll::Ready(());
        }
        ALARMS.with_borrow_mut(|alarms| match alarms.get_mut(&self.key) {
            Some(waker) => waker.clone_from(context.waker()),
            None => drop(alarms.insert(self.key, context.waker().clone())),
        });
        Pin::new(&mut self.timer).poll(context).map(|_| ())
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        ALARMS.with_borrow_mut(|alarms| alarms.remove(&self.key));
    }
}

/// When the first of the shard's sleeps ends.
pub(super) fn next_alarm() -> Option<Duration> {
    ALARMS.with_borrow(|alarms| alarms.keys().next().map(|(at, _)| *at))
}

/// Wakes whose sleep is over. Whether there was any.
pub(super) fn ring_alarms() -> bool {
    let now = uptime();
    let mut rung = false;
    loop {
        // Taken out first: a waker may run its task at once.
        let due = ALARMS.with_borrow_mut(|alarms| {
            alarms.first_entry().filter(|first| first.key().0 <= now).map(OccupiedEntry::remove)
        });
        let Some(waker) = due else { return rung };
        waker.wake();
        rung = true;
    }
}

/// Lets the shard's other tasks run once, and has it look at its rings.
pub async fn yield_now() {
    glommio::executor().yield_now().await;
}

/// Gives way if something is due: for loops that may run for long. Cheap when nothing is.
pub async fn yield_if_needed() {
    glommio::yield_if_needed().await;
}

/// The time given to [`timeout`] was over first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

/// Runs `future` for at most `time`; past it, the future is dropped. Never around an accept: a connection that was
/// just accepted would be lost.
pub async fn timeout<F: Future>(time: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut timer = sleep(time);
    std::future::poll_fn(move |cx: &mut Context<'_>| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut timer).poll(cx).map(|()| Err(Elapsed))
    })
    .await
}
