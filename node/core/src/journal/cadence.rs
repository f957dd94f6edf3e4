//! When the next group is formed: at once, or a little later with more in it.
//!
//! A group costs the same whether it holds one batch or many, and where many come that cost is most of what a batch takes.
//! Waiting pays when more is certain to come while it lasts. How much comes while a group is being written tells: clients
//! who wait for their answers send nothing then.
//!
//! ```text
//!   formed ───── written ──── the next is formed
//!     └── arrivals ──┘ rate      at formed + GAP_BATCHES / rate, at most GAP_MAX; sooner with GAP_BATCHES there
//! ```
//!
//! Invariants: where less than half of [`GAP_BATCHES`] would come in [`GAP_MAX`], nothing waits; nothing waits for longer than
//! [`GAP_MAX`] from one group to the next.

use std::time::Duration;

/// From one group to the next at most, where waiting is what is between them.
const GAP_MAX: Duration = Duration::from_millis(1);
/// Batches of a group that are enough.
const GAP_BATCHES: usize = 8;
/// How much of the rate is the past's at each group.
const MEMORY: f64 = 0.9;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Cadence {
    /// Batches a second, while a group was being written.
    rate: f64,
    formed: Duration,
}

impl Cadence {
    /// A group was formed at `now`.
    pub fn formed(&mut self, now: Duration) {
        self.formed = now;
    }

    /// It is durable, and so many batches have arrived meanwhile.
    pub fn written(&mut self, now: Duration, arrived: usize) {
        let took = now.saturating_sub(self.formed).max(Duration::from_micros(1));
        let rate = arrived as f64 / took.as_secs_f64();
        self.rate = MEMORY * self.rate + (1.0 - MEMORY) * rate;
    }

    /// How long the next group still waits, with so many batches there for it.
    pub fn wait(&self, now: Duration, staged: usize) -> Duration {
        let expected = self.rate * GAP_MAX.as_secs_f64();
        if staged == 0 || staged >= GAP_BATCHES || expected < GAP_BATCHES as f64 / 2.0 {
            return Duration::ZERO;
        }
        let gap = GAP_MAX.min(Duration::from_secs_f64(GAP_BATCHES as f64 / self.rate));
        (self.formed + gap).saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// After many groups that take 100 us each, in which so many arrive.
    fn steady(arrived: usize) -> (Cadence, Duration) {
        let (mut cadence, mut now) = (Cadence::default(), Duration::ZERO);
        for _ in 0..100 {
            cadence.formed(now);
            now += micros(100);
            cadence.written(now, arrived);
        }
        (cadence, now)
    }

    #[test]
    fn waits_where_many_come_until_enough_are_there() {
        let (cadence, now) = steady(1);
        // 10,000 a second: eight take 800 us, of which the write took 100.
        let wait = cadence.wait(now, 1);
        assert!(wait > micros(690) && wait < micros(710), "{wait:?}");
        assert_eq!(cadence.wait(now, GAP_BATCHES), Duration::ZERO);
        assert_eq!(cadence.wait(now + micros(701), 1), Duration::ZERO);
        assert_eq!(cadence.wait(now, 0), Duration::ZERO, "there is nothing to wait with");
        let (cadence, now) = steady(20);
        assert_eq!(cadence.wait(now, 1), Duration::ZERO, "as many as are enough came during the write");
    }

    #[test]
    fn does_not_wait_for_who_waits_for_an_answer() {
        let (cadence, now) = steady(0);
        assert_eq!(cadence.wait(now, 1), Duration::ZERO);
        let (mut cadence, mut now) = steady(1);
        for _ in 0..50 {
            cadence.formed(now);
            now += micros(100);
            cadence.written(now, 0);
        }
        assert_eq!(cadence.wait(now, 1), Duration::ZERO, "they have gone");
    }
}
