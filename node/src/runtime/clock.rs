//! Time on a shard: sleeping, timeouts, and the two clocks.
//!
//! The timers are glommio's. A shard that waits without glommio ([`super::Waiting`]) has to know when the next of them is
//! due: that of [`sleep`] is noted for it.
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::task::{Context, Poll};
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
    /// When the sleeps of this shard end, each with the address of its note.
    static ALARMS: RefCell<BTreeSet<(Duration, usize)>> = const { RefCell::new(BTreeSet::new()) };
}

/// Waits.
pub async fn sleep(time: Duration) {
    let _noted = Alarm::set(uptime() + time);
    glommio::timer::sleep(time).await;
}

/// When the first of the shard's sleeps ends.
pub(super) fn next_alarm() -> Option<Duration> {
    ALARMS.with_borrow(|alarms| alarms.first().map(|(at, _)| *at))
}

/// The note of one sleep, for as long as it lasts.
struct Alarm(Box<Duration>);

impl Alarm {
    fn set(at: Duration) -> Alarm {
        let alarm = Alarm(Box::new(at));
        ALARMS.with_borrow_mut(|alarms| alarms.insert(alarm.key()));
        alarm
    }

    fn key(&self) -> (Duration, usize) {
        (*self.0, &raw const *self.0 as usize)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        ALARMS.with_borrow_mut(|alarms| alarms.remove(&self.key()));
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
    let mut timer = glommio::timer::Timer::new(time);
    std::future::poll_fn(move |cx: &mut Context<'_>| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut timer).poll(cx).map(|_| Err(Elapsed))
    })
    .await
}
