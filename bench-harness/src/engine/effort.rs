//! How full a thread of the load was, by the second: time that it had a core, and time that it wanted one and had none
//! (`/proc/thread-self/schedstat`). A thread that had none to spare may have been the limit, whatever the broker did.

use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Above this share of a second a thread is full.
const FULL_SHARE: f64 = 0.95;
/// A shorter stretch than this says nothing, unless there is no other.
const STRETCH_MIN: Duration = Duration::from_millis(500);

/// Totals of a thread since it started.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    cpu_ns: u64,
    waiting_ns: u64,
}

impl Sample {
    /// Of this thread.
    pub(super) fn now() -> Sample {
        Sample::parse(&std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default())
    }

    /// The kernel's line. What cannot be read is zero: nothing is said then.
    pub(super) fn parse(schedstat: &str) -> Sample {
        let mut fields = schedstat.split_whitespace().map(|field| field.parse().unwrap_or_default());
        let mut next = || fields.next().unwrap_or_default();
        Sample { cpu_ns: next(), waiting_ns: next() }
    }
}

/// What is known of a thread over the measured time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Effort {
    /// Stretches of about a second, and those in which it was full.
    pub seconds: u32,
    pub full_seconds: u32,
    pub length_s: f64,
    pub cpu_s: f64,
    /// It wanted a core and had none.
    pub waiting_s: f64,
}

impl Effort {
    /// Of a core.
    pub(crate) fn cpu_share(&self) -> f64 {
        self.cpu_s / self.length_s.max(1e-9)
    }

    pub(crate) fn waiting_share(&self) -> f64 {
        self.waiting_s / self.length_s.max(1e-9)
    }

    /// Whether it was full in a noticeable part of the time.
    pub(crate) fn is_full(&self) -> bool {
        self.full_seconds > 0 && self.full_seconds * 10 >= self.seconds
    }

    /// The fuller one of two threads.
    pub(crate) fn fuller(self, other: Effort) -> Effort {
        let rank = |one: &Effort| {
            (
                f64::from(one.full_seconds) / f64::from(one.seconds.max(1)),
                one.cpu_share() + one.waiting_share(),
            )
        };
        if rank(&other) > rank(&self) { other } else { self }
    }
}

/// Samples a thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gauge {
    last: Sample,
    last_at: Instant,
    effort: Effort,
}

impl Gauge {
    pub(super) fn new(sample: Sample, at: Instant) -> Gauge {
        Gauge { last: sample, last_at: at, effort: Effort::default() }
    }

    /// A stretch of the measured time is over.
    pub(super) fn add(&mut self, sample: Sample, at: Instant) {
        let length = at.saturating_duration_since(self.last_at);
        let before = std::mem::replace(&mut self.last, sample);
        self.last_at = at;
        if length.is_zero() || (length < STRETCH_MIN && self.effort.seconds > 0) {
            return;
        }
        let seconds = |now: u64, before: u64| now.saturating_sub(before) as f64 / 1e9;
        let (cpu_s, waiting_s) =
            (seconds(sample.cpu_ns, before.cpu_ns), seconds(sample.waiting_ns, before.waiting_ns));
        let effort = &mut self.effort;
        effort.seconds += 1;
        effort.full_seconds += u32::from(cpu_s + waiting_s > FULL_SHARE * length.as_secs_f64());
        effort.length_s += length.as_secs_f64();
        effort.cpu_s += cpu_s;
        effort.waiting_s += waiting_s;
    }

    pub(super) fn effort(&self) -> Effort {
        self.effort
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over seconds with so many milliseconds on a core, and so many that it waited for one.
    fn effort(seconds: &[(u64, u64)]) -> Effort {
        let begin = Instant::now();
        let mut gauge = Gauge::new(Sample::parse("1000000000 500000000 7"), begin);
        let (mut cpu_ms, mut waiting_ms) = (1000, 500);
        for (number, (cpu, waiting)) in seconds.iter().enumerate() {
            (cpu_ms, waiting_ms) = (cpu_ms + cpu, waiting_ms + waiting);
            let line = format!("{} {} 9\n", cpu_ms * 1_000_000, waiting_ms * 1_000_000);
            gauge.add(Sample::parse(&line), begin + Duration::from_secs(number as u64 + 1));
        }
        gauge.effort()
    }

    #[test]
    fn a_thread_that_waits_for_a_core_is_as_full_as_one_that_has_it() {
        assert!(!effort(&[(500, 300), (600, 300)]).is_full());
        let waiting = effort(&[(500, 480), (500, 300)]);
        assert!(waiting.is_full(), "{waiting:?}");
        assert_eq!((waiting.cpu_share(), waiting.seconds, waiting.full_seconds), (0.5, 2, 1));
        // One second of twenty is no part that one notices.
        let mut seconds = vec![(100, 0); 19];
        seconds.push((1000, 0));
        assert!(!effort(&seconds).is_full());
        assert_eq!(effort(&[(100, 0)]).fuller(waiting), waiting);
        assert_eq!(waiting.fuller(effort(&[(100, 0)])), waiting);
    }

    #[test]
    fn a_rest_of_a_second_counts_where_there_is_nothing_else() {
        let begin = Instant::now();
        let mut gauge = Gauge::new(Sample::default(), begin);
        gauge.add(Sample::parse("100000000 0"), begin + Duration::from_millis(100));
        assert!(gauge.effort().is_full());
        gauge.add(Sample::parse("200000000 0"), begin + Duration::from_millis(200));
        assert_eq!(gauge.effort().seconds, 1);
    }

    #[test]
    fn the_kernel_accounts_for_threads() {
        // By the tick: at first there is nothing.
        let began = Instant::now();
        while Sample::now().cpu_ns == 0 {
            assert!(began.elapsed() < Duration::from_secs(20));
        }
    }
}
