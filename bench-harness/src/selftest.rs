//! Does the generator tell the truth? Against the null broker, whose stalls are known, the histogram must show what
//! arithmetic says; and a closed loop beside it shows what generators hide that wait for answers before they ask again.
//!
//! With a stall of `s` in every `t`, and records due evenly, a record that is due `u` into the stall waits `s - u`. So the
//! part of records that wait longer than `x` is `(s - x) / t`, and the quantile `q` is `s - (1 - q) t`, where that is above 0.

use crate::cli::SelftestOptions;
use crate::console::say;
use crate::engine::Means;
use crate::failure::Failure;
use crate::interrupt;
use crate::layout::MachineShare;
use crate::null_broker::{NullBroker, Script};
use crate::phase::{PhaseOutcome, Prepared};
use crate::progress::{Progress, milliseconds};
use crate::result::PartKind;
use crate::scenario::{Load, Partitioning, Phase, Producers, Scenario, TopicSettings};
use crate::target::Target;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How far the histogram may be off.
const TOLERANCE: f64 = 0.02;
/// A shorter stall is as long as what else takes time.
const STALL_MS_MIN: f64 = 1.0;
/// An hour.
const EVERY_MS_MAX: f64 = 3_600_000.0;
/// When the machine was too busy for the generator to be on time, this often it is tried again.
const ATTEMPTS: usize = 5;
/// Sends that are this late say that the machine was too busy, not that the histogram is wrong.
const LATENESS_NS_MAX: u64 = 500_000;
/// Records per second. What a stall holds up is answered in no time: where many are, that time would count.
const RATE: f64 = 1000.0;

/// One quantile: what arithmetic says, and what was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    pub quantile: f64,
    pub expected_ns: f64,
    pub found_ns: u64,
}

impl Check {
    pub(crate) fn is_good(&self) -> bool {
        (self.found_ns as f64 / self.expected_ns - 1.0).abs() <= TOLERANCE
    }
}

/// `flumen-bench selftest`.
pub(crate) fn run(options: &SelftestOptions) -> Result<(), Failure> {
    let SelftestOptions { stall_ms, every_ms, .. } = *options;
    if !(stall_ms >= STALL_MS_MIN && stall_ms < every_ms && every_ms <= EVERY_MS_MAX) {
        return Err(Failure::Usage(format!(
            "--stall-ms {stall_ms} --every-ms {every_ms}: a stall has at least {STALL_MS_MIN} ms and is shorter than the time \
             from one to the next, which has at most {EVERY_MS_MAX}"
        )));
    }
    let milliseconds_of = |value: f64| Duration::from_secs_f64(value / 1e3);
    let (stall, every) = (milliseconds_of(stall_ms), milliseconds_of(every_ms));
    let interrupted = interrupt::flag()?;
    let mut why = String::new();
    for _ in 0..ATTEMPTS {
        let open = attempt(stall, every, options.stalls, Load::Open, options.sending.means(), &interrupted)?;
        if interrupted.load(Ordering::Relaxed) {
            return Err(Failure::Interrupted);
        }
        let lateness_ns = summary(&open, PartKind::Lateness).map_or(0, |summary| summary.p99_9_ns);
        say(&format!("lateness of the generator: p99.9 {}\n", milliseconds(lateness_ns)))?;
        let checks = checks(&open, stall, every);
        for check in &checks {
            let expected = milliseconds(check.expected_ns as u64);
            let off = (check.found_ns as f64 / check.expected_ns - 1.0) * 100.0;
            let found = milliseconds(check.found_ns);
            let quantile = check.quantile * 100.0;
            say(&format!("p{quantile:<6} expected {expected:>9}  found {found:>9}  {off:+.2} %\n"))?;
        }
        if checks.iter().all(Check::is_good) {
            return compare_with_closed(stall, every, options, &interrupted);
        }
        why = match lateness_ns > LATENESS_NS_MAX {
            true => "the machine was too busy for the generator to be on time".to_owned(),
            false => "the histogram does not show what arithmetic says".to_owned(),
        };
        if lateness_ns <= LATENESS_NS_MAX {
            break;
        }
        say(&format!("{why}: once more\n"))?;
    }
    Err(Failure::Other(why))
}

fn compare_with_closed(
    stall: Duration,
    every: Duration,
    options: &SelftestOptions,
    interrupted: &AtomicBool,
) -> Result<(), Failure> {
    let closed = attempt(stall, every, options.stalls, Load::Closed, options.sending.means(), interrupted)?;
    if let Some(summary) = summary(&closed, PartKind::Produce) {
        say(&format!(
            "a generator that waits for each answer ({}) would have said of the same broker: p99 {}, p99.9 {}\n",
            options.sending.means().driver.name(),
            milliseconds(summary.p99_ns),
            milliseconds(summary.p99_9_ns)
        ))?;
    }
    say(&format!("the histogram shows the stalls within {:.0} %\n", TOLERANCE * 100.0))
}

fn summary(outcome: &PhaseOutcome, kind: PartKind) -> Option<crate::result::Summary> {
    let part = outcome.parts.iter().find(|part| part.kind == kind)?;
    part.latency.as_ref().map(|latency| latency.summary)
}

/// The quantiles that lie well within the stalls.
fn checks(outcome: &PhaseOutcome, stall: Duration, every: Duration) -> Vec<Check> {
    let (stall_ns, every_ns) = (stall.as_nanos() as f64, every.as_nanos() as f64);
    let part = outcome.parts.iter().find(|part| part.kind == PartKind::Produce);
    let Some(histogram) = part.and_then(|part| part.latency.as_ref()?.decode().ok()) else {
        return Vec::from([Check { quantile: 1.0, expected_ns: stall_ns, found_ns: 0 }]);
    };
    // Of the stalled part of the records, those that wait more than half of the stall, and so on.
    let stalled = stall_ns / every_ns;
    [0.5, 0.25, 0.1, 0.02]
        .map(|part| 1.0 - part * stalled)
        .map(|quantile| Check {
            quantile: (quantile * 1e6).round() / 1e6,
            expected_ns: stall_ns - (1.0 - quantile) * every_ns,
            found_ns: histogram.value_at_quantile(quantile),
        })
        .to_vec()
}

/// A load over a whole number of periods of a broker that stalls.
fn attempt(
    stall: Duration,
    every: Duration,
    stalls: u32,
    load: Load,
    means: Means,
    interrupted: &AtomicBool,
) -> Result<PhaseOutcome, Failure> {
    let script = Script { stall_every: every, stall, ..Script::default() };
    let broker = NullBroker::start("127.0.0.1:0", script)?;
    let producers = match load {
        Load::Open => Producers { count: 2, rate: RATE, ..Producers::default() },
        Load::Closed => Producers {
            load,
            in_flight: 1,
            batch_records: 1,
            request_batches: 1,
            partitioning: Partitioning::RoundRobin,
            ..Producers::default()
        },
    };
    let scenario = Scenario {
        name: "selftest".to_owned(),
        description: String::new(),
        seed: 1,
        threads: 1,
        request_timeout_s: 30.0,
        topic: TopicSettings { partitions: 4, ..TopicSettings::default() },
        phases: vec![Phase {
            name: String::new(),
            seconds: every.as_secs_f64() * f64::from(stalls),
            warmup_seconds: every.as_secs_f64(),
            bytes: None,
            producers: vec![producers],
            consumers: Vec::new(),
            churn: None,
            restart: None,
        }],
    };
    let timeout = Duration::from_secs(30);
    let target = Target::prepare(&[broker.address().to_string()], &scenario.topic, timeout)?;
    let phase = &scenario.phases[0];
    let prepared = Prepared::new(&scenario, phase, &target, 1, MachineShare::WHOLE, means)?;
    let mut progress = Progress::new(false);
    progress.begin("selftest", phase.warmup_seconds, phase.seconds);
    let outcome = prepared.run(interrupted, &mut |parts, second| progress.second(parts, second));
    progress.end();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Driver;

    fn stalls_are_seen(driver: Driver) {
        let means = Means { driver, uring: true };
        let (stall, every) = (Duration::from_millis(400), Duration::from_secs(1));
        let never = AtomicBool::new(false);
        for attempt_number in 1..=ATTEMPTS {
            let outcome = attempt(stall, every, 3, Load::Open, means, &never).expect("it runs");
            let checks = checks(&outcome, stall, every);
            if checks.iter().all(Check::is_good) {
                return;
            }
            let lateness_ns = summary(&outcome, PartKind::Lateness).map_or(0, |summary| summary.p99_9_ns);
            let is_busy = lateness_ns > LATENESS_NS_MAX && attempt_number < ATTEMPTS;
            assert!(is_busy, "lateness p99.9 {lateness_ns} ns, and {checks:?}");
        }
    }

    /// The short form: a stall of 400 ms in each second, of which 2 % are more than what an unoptimised build takes.
    #[test]
    fn stalls_are_seen_as_they_are() {
        stalls_are_seen(Driver::Flumen);
    }

    #[cfg(feature = "librdkafka")]
    #[test]
    fn stalls_are_seen_through_librdkafka_too() {
        stalls_are_seen(Driver::Librdkafka);
    }
}
