//! When records are due: pure arithmetic from settings and a seed. Times are nanoseconds from the start of the load.
//!
//! A schedule is asked for its next time and moved on; it never looks at a clock and never skips: what the broker held
//! up stays due at the time at which it was, and its latency counts from there.
//!
//! A load is spread over many connections by giving each its share of the rate. Evenly spaced arrivals stay evenly
//! spaced over all of them together: each begins at its own fraction of the gap. Random ones need no such care.
//!
//! Invariant: times never decrease, and the same settings and seed give the same times.

mod trace;

pub(crate) use trace::read_trace;

use crate::scenario::{Arrivals, Producers};
use fastrand::Rng;
use std::sync::Arc;

const SECOND_NS: f64 = 1e9;

/// The part of a load that one connection makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Share {
    /// Its part of the rate, above 0 and at most 1.
    pub part: f64,
    /// Which of how many.
    pub index: usize,
    pub count: usize,
}

/// See the head of this file.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    kind: Kind,
    next_ns: u64,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Arrival `number` is due at `(number + phase) * gap_ns`: counted, not added up, so that nothing drifts.
    Constant {
        gap_ns: f64,
        phase: f64,
        number: u64,
    },
    Poisson {
        gap_ns: f64,
        at_ns: f64,
        rng: Rng,
    },
    /// Evenly within bursts.
    Bursty {
        gap_ns: f64,
        burst_ns: f64,
        cycle_ns: f64,
        phase: f64,
        number: u64,
    },
    /// The rate grows or falls from `from` to `to` (per nanosecond) within `over_ns`, and stays.
    Ramp {
        from: f64,
        to: f64,
        over_ns: f64,
        phase: f64,
        number: u64,
    },
    Trace {
        times_ns: Arc<[u64]>,
        step: usize,
        number: usize,
    },
}

impl Schedule {
    /// The schedule of one connection. `over_s` is the length of the load, which a ramp spans. A replay needs its times.
    pub(crate) fn new(
        settings: &Producers,
        share: Share,
        over_s: f64,
        seed: u64,
        trace: Option<&Arc<[u64]>>,
    ) -> Schedule {
        let gap_ns = SECOND_NS / (settings.rate * share.part);
        let phase = share.index as f64 / share.count as f64;
        let kind = match settings.arrivals {
            Arrivals::Constant => Kind::Constant { gap_ns, phase, number: 0 },
            Arrivals::Poisson => {
                // Neighbours must not be alike.
                let own = (share.index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mut rng = Rng::with_seed(seed ^ own);
                let at_ns = exponential(&mut rng) * gap_ns;
                Kind::Poisson { gap_ns, at_ns, rng }
            }
            Arrivals::Bursty => {
                let (burst_ns, pause_ns) = (settings.burst_ms * 1e6, settings.pause_ms * 1e6);
                let cycle_ns = burst_ns + pause_ns;
                // All arrivals of a cycle are in its burst.
                Kind::Bursty { gap_ns: gap_ns * burst_ns / cycle_ns, burst_ns, cycle_ns, phase, number: 0 }
            }
            Arrivals::Ramp => {
                let (from, to) = (1.0 / gap_ns, settings.rate_end * share.part / SECOND_NS);
                Kind::Ramp { from, to, over_ns: over_s * SECOND_NS, phase, number: 0 }
            }
            Arrivals::Trace => {
                let times_ns = trace.cloned().unwrap_or_else(|| Arc::new([]));
                Kind::Trace { times_ns, step: share.count, number: share.index }
            }
        };
        let mut schedule = Schedule { kind, next_ns: 0 };
        schedule.next_ns = schedule.time_ns();
        schedule
    }

    /// When the next record is due; [`u64::MAX`] for never.
    pub(crate) fn next_ns(&self) -> u64 {
        self.next_ns
    }

    /// Goes on to the one after that.
    pub(crate) fn advance(&mut self) {
        match &mut self.kind {
            Kind::Constant { number, .. } | Kind::Bursty { number, .. } | Kind::Ramp { number, .. } => {
                *number += 1;
            }
            Kind::Poisson { gap_ns, at_ns, rng } => *at_ns += exponential(rng) * *gap_ns,
            Kind::Trace { step, number, .. } => *number += *step,
        }
        self.next_ns = self.time_ns();
    }

    fn time_ns(&self) -> u64 {
        match &self.kind {
            Kind::Constant { gap_ns, phase, number } => ((*number as f64 + phase) * gap_ns) as u64,
            Kind::Poisson { at_ns, .. } => *at_ns as u64,
            Kind::Bursty { gap_ns, burst_ns, cycle_ns, phase, number } => {
                let within = (*number as f64 + phase) * gap_ns;
                ((within / burst_ns).floor() * cycle_ns + within % burst_ns) as u64
            }
            Kind::Ramp { from, to, over_ns, phase, number } => {
                ramp_time(*from, *to, *over_ns, *number as f64 + phase) as u64
            }
            Kind::Trace { times_ns, number, .. } => times_ns.get(*number).copied().unwrap_or(u64::MAX),
        }
    }
}

/// Of mean 1.
fn exponential(rng: &mut Rng) -> f64 {
    // 1 - x is above 0.
    -(1.0 - rng.f64()).ln()
}

/// When `count` arrivals have been, where the rate goes from `from` to `to` evenly and then stays: the solution of
/// `from t + (to - from) t^2 / 2 over = count`, in the form that does not subtract like from like.
fn ramp_time(from: f64, to: f64, over: f64, count: f64) -> f64 {
    let within = over * (from + to) / 2.0;
    if count >= within {
        return over + (count - within) / to;
    }
    let slope = (to - from) / over;
    2.0 * count / (from + (from * from + 2.0 * slope * count).max(0.0).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(arrivals: Arrivals) -> Producers {
        Producers { arrivals, rate: 1000.0, rate_end: 3000.0, ..Producers::default() }
    }

    const WHOLE: Share = Share { part: 1.0, index: 0, count: 1 };

    fn times(settings: &Producers, share: Share, seed: u64, until_ns: u64) -> Vec<u64> {
        let trace: Arc<[u64]> = Arc::new([5, 10, 10, 25]);
        let mut schedule = Schedule::new(settings, share, 10.0, seed, Some(&trace));
        let mut times = Vec::new();
        while schedule.next_ns() < until_ns {
            times.push(schedule.next_ns());
            schedule.advance();
        }
        times
    }

    #[test]
    fn constant_arrivals_do_not_drift() {
        let mut settings = settings(Arrivals::Constant);
        settings.rate = 3.0;
        assert_eq!(times(&settings, WHOLE, 1, 1_000_000_001), [0, 333_333_333, 666_666_666, 1_000_000_000]);
        settings.rate = 8000.0;
        let mut schedule = Schedule::new(&settings, WHOLE, 1.0, 1, None);
        for _ in 0..8000 * 600 {
            schedule.advance();
        }
        assert_eq!(schedule.next_ns(), 600_000_000_000);
    }

    #[test]
    fn shares_of_a_constant_load_interleave() {
        let settings = settings(Arrivals::Constant);
        let share = |index| Share { part: 0.25, index, count: 4 };
        let mut all: Vec<_> =
            (0..4).flat_map(|index| times(&settings, share(index), 1, 1_000_000_000)).collect();
        all.sort_unstable();
        assert_eq!(all, times(&settings, WHOLE, 1, 1_000_000_000));
    }

    #[test]
    fn poisson_arrivals_have_the_mean_and_the_spread_of_the_law() {
        let settings = settings(Arrivals::Poisson);
        let times = times(&settings, WHOLE, 7, 200_000_000_000);
        // 200,000 expected, with a standard deviation of 447.
        assert!((times.len() as f64 - 200_000.0).abs() < 5.0 * 447.0, "{}", times.len());
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "an exponential law has spread 1 of its mean");
    }

    #[test]
    fn bursts_hold_the_rate_on_average_and_pauses_are_empty() {
        let mut settings = settings(Arrivals::Bursty);
        (settings.burst_ms, settings.pause_ms) = (100.0, 400.0);
        let times = times(&settings, WHOLE, 1, 10_000_000_000);
        assert_eq!(times.len(), 10_000);
        assert!(times.iter().all(|at| at % 500_000_000 < 100_000_000), "none in a pause");
        assert_eq!(times.iter().filter(|at| **at < 500_000_000).count(), 500);
    }

    #[test]
    fn a_ramp_goes_from_rate_to_rate_and_stays() {
        let settings = settings(Arrivals::Ramp);
        let times = times(&settings, WHOLE, 1, 12_000_000_000);
        let in_second = |second: u64| times.iter().filter(|at| **at / 1_000_000_000 == second).count();
        // In second n of ten the mean rate is 1000 + 200 (n + 1/2).
        for second in 0..10 {
            let expected = 1100 + 200 * second as usize;
            assert!(in_second(second).abs_diff(expected) <= 1, "second {second}: {}", in_second(second));
        }
        assert!(in_second(10).abs_diff(3000) <= 1 && in_second(11).abs_diff(3000) <= 1);
    }

    #[test]
    fn a_trace_is_replayed_and_ends() {
        let settings = settings(Arrivals::Trace);
        assert_eq!(times(&settings, WHOLE, 1, 100), [5, 10, 10, 25]);
        assert_eq!(times(&settings, Share { part: 0.5, index: 1, count: 2 }, 1, 100), [10, 25]);
    }

    proptest! {
        #[test]
        fn times_never_decrease_and_a_seed_repeats_them(
            kind in 0..4usize, seed: u64, rate in 0.5..1e6f64, end in 0.5..1e6f64, index in 0..5usize,
        ) {
            let arrivals = [Arrivals::Constant, Arrivals::Poisson, Arrivals::Bursty, Arrivals::Ramp][kind];
            let settings = Producers { arrivals, rate, rate_end: end, ..Producers::default() };
            let share = Share { part: 0.2, index, count: 5 };
            let mut first = Schedule::new(&settings, share, 3.0, seed, None);
            let mut second = Schedule::new(&settings, share, 3.0, seed, None);
            let mut before = 0;
            for _ in 0..500 {
                prop_assert!(first.next_ns() >= before);
                prop_assert_eq!(first.next_ns(), second.next_ns());
                before = first.next_ns();
                first.advance();
                second.advance();
            }
        }
    }
}
