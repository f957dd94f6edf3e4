//! Latencies, counted in buckets whose width grows with the value: eight to each power of two, so that a value is
//! known to an eighth. Adding is two shifts and an increment; merging is adding.
use std::cell::Cell;
use std::time::Duration;

/// Buckets to each power of two.
const SUB: usize = 8;
/// Powers of two of microseconds that are told apart; the last is over an hour.
const POWERS: usize = 32;
const BUCKETS: usize = SUB * POWERS;

/// A histogram of durations. Owned by one shard.
#[derive(Debug)]
pub struct Histogram {
    counts: Box<[Cell<u64>; BUCKETS]>,
    sum_us: Cell<u64>,
    max_us: Cell<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            counts: Box::new([const { Cell::new(0) }; BUCKETS]),
            sum_us: Cell::new(0),
            max_us: Cell::new(0),
        }
    }
}

/// The bucket of a value: below 8 each its own, above by its three bits after the first.
fn bucket(us: u64) -> usize {
    if us < SUB as u64 {
        return us as usize;
    }
    let power = us.ilog2() as usize;
    let sub = (us >> (power - 3)) as usize & (SUB - 1);
    ((power - 2) * SUB + sub).min(BUCKETS - 1)
}

/// The smallest value of a bucket.
fn floor(bucket: usize) -> u64 {
    if bucket < 2 * SUB {
        return bucket as u64;
    }
    let (power, sub) = (bucket / SUB + 2, bucket % SUB);
    ((SUB + sub) as u64) << (power - 3)
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let count = &self.counts[bucket(us)];
        count.set(count.get() + 1);
        self.sum_us.set(self.sum_us.get().saturating_add(us));
        self.max_us.set(self.max_us.get().max(us));
    }

    /// What was counted so far.
    pub fn counted(&self) -> Counted {
        let last = self.counts.iter().rposition(|count| count.get() > 0).map_or(0, |last| last + 1);
        Counted {
            counts: self.counts[..last].iter().map(Cell::get).collect(),
            sum_us: self.sum_us.get(),
            max_us: self.max_us.get(),
        }
    }
}

/// What a histogram held at one moment. `Send`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    counts: Vec<u64>,
    /// Sum of all values in microseconds.
    pub sum_us: u64,
    /// Largest value in microseconds.
    pub max_us: u64,
}

impl Counted {
    /// Adds another's.
    pub fn merge(&mut self, other: &Counted) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        self.max_us = self.max_us.max(other.max_us);
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How many values are at most `us`, which is a power of two from 8 on: exact but for values equal to it, which
    /// are counted with the next larger ones.
    pub(super) fn count_below(&self, us: u64) -> u64 {
        debug_assert!(us.is_power_of_two() && us >= SUB as u64);
        self.counts.iter().take(bucket(us)).sum()
    }

    /// A value that the share `quantile` of all is not above, to an eighth: the end of its bucket.
    pub fn quantile_us(&self, quantile: f64) -> u64 {
        let wanted = ((self.count() as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return (floor(index + 1) - 1).min(self.max_us);
            }
        }
        self.max_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_falls_into_the_bucket_that_holds_it() {
        for us in (0..10_000).chain((13..40).map(|shift| (1 << shift) - 1)).chain((13..33).map(|s| 1 << s)) {
            let index = bucket(us);
            assert!(floor(index) <= us, "{us}");
            assert!(us < floor(index + 1) || index == BUCKETS - 1, "{us}");
            assert!(
                floor(index + 1) - floor(index) <= (us / SUB as u64).max(1) || index == BUCKETS - 1,
                "{us}"
            );
        }
    }

    #[test]
    fn quantiles_are_within_an_eighth_also_when_merged() {
        let (a, b) = (Histogram::default(), Histogram::default());
        for us in 1..=10_000 {
            if us % 3 == 0 { &a } else { &b }.record(Duration::from_micros(us));
        }
        let mut all = a.counted();
        all.merge(&b.counted());
        assert_eq!((all.count(), all.sum_us, all.max_us), (10_000, 50_005_000, 10_000));
        for (quantile, exact) in [(0.5, 5_000.0), (0.99, 9_900.0), (0.999, 9_990.0)] {
            let estimate = all.quantile_us(quantile) as f64;
            assert!((exact..=exact * 1.13).contains(&estimate), "{quantile}: {estimate}");
        }
        assert_eq!(all.quantile_us(1.0), 10_000);
        assert_eq!(Counted::default().quantile_us(0.99), 0);
        assert_eq!(all.count_below(1024), 1023);
    }
}
