//! A scenario from begin to end: its topics, its phases one after the other, the verdict, the result.

use crate::cli::RunOptions;
use crate::engine::Means;
use crate::failure::Failure;
use crate::hlog::IntervalLogs;
use crate::interrupt;
use crate::layout::MachineShare;
use crate::limits;
use crate::machine;
use crate::outage::LocalBroker;
use crate::phase::{PhaseOutcome, Prepared, Watching, resolve};
use crate::progress::{Progress, milliseconds};
use crate::remote::{self, Link};
use crate::result::{
    BrokerProcess, FORMAT_VERSION, Integrity, Machine as MachineDescription, Part, PartKind, RUN_FORMAT,
    RestartSeen, RunResult, Tool, Usage, Verdict,
};
use crate::scenario::Scenario;
use crate::summary;
use crate::target::Target;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Of a thread: above this share of a core it is full.
const FULL_SHARE: f64 = 0.95;
/// With `--limits`, each of the things that are measured before the load.
const LIMITS_EACH: Duration = Duration::from_secs(2);
/// Lateness of sends that says nothing, however short the latencies are.
const LATENESS_NS_MIN: u64 = 1_000_000;

/// Runs a scenario, prints what came of it, writes what was asked for.
pub(crate) fn scenario(scenario: Scenario, options: &RunOptions) -> Result<(), Failure> {
    let scenario = scenario.with(&options.overrides)?;
    let interrupted = interrupt::flag()?;
    check_writable(options.output.as_deref())?;
    let mut logs = options.hlog.as_deref().map(IntervalLogs::create).transpose()?;
    let mut print = |text: &str| print!("{text}");
    let result = measure(&scenario, options, &interrupted, &mut logs, &mut print)?;
    print!("{}", summary::verdict(&result));
    if scenario.name == "canonical"
        && let Some(numbers) = summary::canonical(&result)
    {
        println!("{numbers}");
    }
    if let Some(logs) = &logs {
        logs.write()?;
    }
    if let Some(path) = &options.output {
        result.write(path)?;
    }
    end(&result, interrupted.load(Ordering::Relaxed))
}

/// Runs what the file of a result says. Flags override it, as they do a scenario.
pub(crate) fn again(path: &Path, options: &RunOptions) -> Result<(), Failure> {
    let result = RunResult::read(path)?;
    let setting: Scenario = serde_json::from_value(result.setting)
        .map_err(|error| Failure::Other(format!("{}: its setting: {error}", path.display())))?;
    let mut options = options.clone();
    // Where it ran, unless another place is given.
    if options.brokers == crate::cli::BROKERS && !result.broker.addresses.is_empty() {
        options.brokers = result.broker.addresses.join(",");
    }
    scenario(setting, &options)
}

/// A report that cannot be written is to be known before the run, not after it.
pub(crate) fn check_writable(path: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    let is_special = std::fs::metadata(path).is_ok_and(|there| !there.is_file());
    if is_special {
        return Ok(());
    }
    let probe = PathBuf::from(format!("{}.new", path.display()));
    std::fs::write(&probe, b" ")
        .and_then(|()| std::fs::remove_file(&probe))
        .map_err(|error| Failure::io(path.display(), error))
}

/// The exit code that the verdict asks for.
fn end(result: &RunResult, interrupted: bool) -> Result<(), Failure> {
    if !result.verdict.failed.is_empty() {
        return Err(Failure::Unsound(result.verdict.failed.join("; ")));
    }
    if interrupted { Err(Failure::Interrupted) } else { Ok(()) }
}

/// Runs all phases and judges them. `print` gets the lines of each phase when it is over.
pub(crate) fn measure(
    scenario: &Scenario,
    options: &RunOptions,
    interrupted: &AtomicBool,
    logs: &mut Option<IntervalLogs>,
    print: &mut dyn FnMut(&str),
) -> Result<RunResult, Failure> {
    let timeout = Duration::from_secs_f64(scenario.request_timeout_s);
    let addresses = addresses(&options.brokers)?;
    let target = Target::prepare(&addresses, &scenario.topic, timeout)?;
    let folder = options.data_dir.clone().unwrap_or_else(|| PathBuf::from("."));
    let limits = match options.limits {
        true => Some(limits::measure(&folder, LIMITS_EACH, interrupted)?),
        false => None,
    };
    let means = options.sending.means();
    means.driver.check(scenario)?;
    refuse_with_workers(scenario, options)?;
    let mut workers = options.workers.as_deref().map(remote::connect).transpose()?.unwrap_or_default();
    let mut progress = Progress::new(options.quiet);
    let mut outcomes = Vec::new();
    let mut failure = None;
    for (number, phase) in scenario.phases.iter().enumerate() {
        progress.begin(&phase.name, phase.warmup_seconds, phase.seconds);
        logs.iter_mut().for_each(IntervalLogs::begin_phase);
        let raw_sync = options.raw_sync.then_some(&*folder);
        let asked = Asked { scenario, number, target: &target, means, raw_sync };
        let outcome = asked.run(&mut workers, interrupted, &mut |parts, second| {
            progress.second(parts, second);
            logs.iter_mut().for_each(|logs| logs.second(&phase.name, parts, second));
        });
        progress.end();
        match outcome {
            Ok(mut outcome) => {
                finish(&mut outcome, &phase.name);
                print(&summary::phase(&phase.name, &outcome));
                outcomes.push(outcome);
            }
            Err(error) => failure = Some(error),
        }
        if failure.is_some() || interrupted.load(Ordering::Relaxed) {
            break;
        }
    }
    if !scenario.topic.keep {
        // The figures stand without it.
        let _ = target.clean(timeout);
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    let machines = workers.into_iter().map(|worker| worker.machine).collect();
    let interrupted = interrupted.load(Ordering::Relaxed);
    let driver = means.driver.name();
    Ok(RunResult { limits, driver, ..result(scenario, &folder, target, outcomes, machines, interrupted) })
}

/// What is done beside the load is done here, and not where workers are.
fn refuse_with_workers(scenario: &Scenario, options: &RunOptions) -> Result<(), Failure> {
    let restarts = scenario.phases.iter().any(|phase| phase.restart.is_some());
    match (&options.workers, options.raw_sync, restarts) {
        (Some(_), true, _) => Err(Failure::Usage("--raw-sync: it is not for --workers".to_owned())),
        (Some(_), _, true) => Err(Failure::Usage(
            "phases.restart: a load of --workers cannot kill the broker; run it beside the broker".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// A phase that is to be run.
struct Asked<'a> {
    scenario: &'a Scenario,
    number: usize,
    target: &'a Target,
    means: Means,
    /// Where bare writes are made at the same time.
    raw_sync: Option<&'a Path>,
}

impl Asked<'_> {
    /// Here, or on workers where there are some.
    fn run(
        &self,
        workers: &mut [Link],
        interrupted: &AtomicBool,
        watch: &mut Watching<'_>,
    ) -> Result<PhaseOutcome, Failure> {
        let phase = &self.scenario.phases[self.number];
        let run = fastrand::u64(..);
        let share = |index, count| MachineShare { index, count };
        let count = workers.len().max(1);
        let mut prepared =
            Prepared::new(self.scenario, phase, self.target, run, share(0, count), self.means)?;
        if workers.is_empty() {
            if let Some(folder) = self.raw_sync {
                prepared = prepared.beside_raw_sync(folder);
            }
            if let Some(restart) = &phase.restart {
                let broker = LocalBroker::find(&resolve(&self.target.addresses))?;
                prepared = prepared.with_restart(broker, Duration::from_secs_f64(restart.at_seconds));
            }
            return prepared.run(interrupted, watch);
        }
        let mut threads = 0;
        for (index, worker) in workers.iter_mut().enumerate() {
            let share = share(index, count);
            threads += worker.prepare(self.scenario, self.number, self.target, run, share, self.means)?;
        }
        prepared.run_on(workers, threads, interrupted, watch)
    }
}

pub(crate) fn addresses(brokers: &str) -> Result<Vec<String>, Failure> {
    let all: Vec<String> =
        brokers.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect();
    if all.is_empty() {
        return Err(Failure::Usage("--brokers: give at least one HOST:PORT".to_owned()));
    }
    match all.iter().find(|one| one.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err())) {
        Some(wrong) => Err(Failure::Usage(format!("--brokers: {wrong:?} is no HOST:PORT"))),
        None => Ok(all),
    }
}

/// Names the parts, and relates what the broker took to what it did.
fn finish(outcome: &mut PhaseOutcome, phase: &str) {
    outcome.parts.iter_mut().for_each(|part| part.phase = phase.to_owned());
    outcome.restart.iter_mut().for_each(|restart| restart.phase = phase.to_owned());
    let work = outcome.parts.iter().filter(|part| part.kind.is_work());
    let (bytes, records, requests) = work.fold((0, 0, 0), |(bytes, records, requests), part| {
        (bytes + part.bytes, records + part.records, requests + part.requests)
    });
    if let Some(broker) = &mut outcome.broker_process {
        broker.relate(bytes, records, requests);
    }
}

/// The document of the whole run.
fn result(
    scenario: &Scenario,
    folder: &Path,
    target: Target,
    outcomes: Vec<PhaseOutcome>,
    workers: Vec<MachineDescription>,
    interrupted: bool,
) -> RunResult {
    let verdict = judge(&outcomes, interrupted);
    let (mut parts, mut integrity, mut generator, mut broker) = (Vec::new(), None, Usage::default(), None);
    let (mut duration_s, mut started_unix_ms, mut restarts) = (0.0, None, Vec::new());
    for outcome in outcomes {
        parts.extend(outcome.parts);
        restarts.extend(outcome.restart);
        started_unix_ms.get_or_insert(outcome.started_unix_ms);
        generator.add_behind(outcome.usage, duration_s);
        match (&mut broker, outcome.broker_process) {
            (None, one) => broker = one,
            (Some(sum), Some(one)) => add_broker(sum, one, duration_s),
            (Some(_), None) => {}
        }
        if let Some(one) = outcome.integrity {
            let sum: &mut Integrity = integrity.get_or_insert_with(Integrity::default);
            sum.checked += one.checked;
            sum.lost += one.lost;
            sum.duplicated += one.duplicated;
            sum.reordered += one.reordered;
        }
        duration_s += outcome.measured_s;
    }
    if let Some(broker) = &mut broker {
        let sum = |of: fn(&Part) -> u64| parts.iter().filter(|part| part.kind.is_work()).map(of).sum::<u64>();
        broker.relate(sum(|part| part.bytes), sum(|part| part.records), sum(|part| part.requests));
    }
    RunResult {
        format: RUN_FORMAT.to_owned(),
        format_version: FORMAT_VERSION,
        tool: Tool { version: env!("CARGO_PKG_VERSION").to_owned(), command: std::env::args().collect() },
        scenario: scenario.name.clone(),
        setting: serde_json::to_value(scenario).unwrap_or_default(),
        driver: String::new(),
        broker: target.broker,
        machines: if workers.is_empty() { vec![machine::describe(folder)] } else { workers },
        started_unix_ms: started_unix_ms.unwrap_or_default(),
        duration_s,
        verdict,
        parts,
        integrity,
        generator,
        broker_process: broker,
        limits: None,
        restarts,
    }
}

fn add_broker(sum: &mut BrokerProcess, one: BrokerProcess, from_s: f64) {
    sum.restarted |= one.restarted || one.pid != sum.pid;
    sum.pid = one.pid;
    sum.usage.add_behind(one.usage, from_s);
}

/// Whether the figures may be believed.
fn judge(outcomes: &[PhaseOutcome], interrupted: bool) -> Verdict {
    let mut verdict = Verdict::default();
    if interrupted {
        verdict.partial = Some("interrupted before its time".to_owned());
    }
    for outcome in outcomes {
        let phase = outcome.parts.first().map(|part| part.phase.clone()).unwrap_or_default();
        if let Some(why) = generator_limit(outcome) {
            verdict.generator_limited.get_or_insert(format!("{phase}: {why}"));
        }
        if let Some(found) = &outcome.integrity
            && found.lost + found.duplicated + found.reordered > 0
        {
            verdict.failed.push(format!(
                "{phase}: of {} records {} were lost, {} duplicated, {} reordered",
                found.checked, found.lost, found.duplicated, found.reordered
            ));
        }
        let idle = |part: &&Part| part.kind == PartKind::Produce && part.records == 0;
        if outcome.parts.iter().any(|part| idle(&part)) && outcome.measured_s > 0.5 {
            verdict.failed.push(format!("{phase}: nothing was acknowledged"));
        }
        if let Some(RestartSeen { first_acknowledgement_ns: None, .. }) = &outcome.restart {
            verdict.failed.push(format!("{phase}: nothing was acknowledged after the broker was killed"));
        }
        if outcome.unsent > 0 {
            verdict.notes.push(format!(
                "{phase}: the broker did not keep up: {} records that were due were never sent",
                outcome.unsent
            ));
        }
        verdict.notes.extend(outcome.notes.iter().map(|note| format!("{phase}: {note}")));
    }
    verdict
}

/// Why the generator, not the broker, was the limit, if it was.
fn generator_limit(outcome: &PhaseOutcome) -> Option<String> {
    if outcome.cpu_share > FULL_SHARE {
        let share = outcome.cpu_share * 100.0;
        return Some(format!("a thread of it had {share:.0} % of a core; give it more with --threads"));
    }
    let late = |kind: PartKind| {
        let of_kind = outcome.parts.iter().filter(move |part| part.kind == kind);
        of_kind.filter_map(|part| part.latency.as_ref()).map(|latency| latency.summary.p99_9_ns).max()
    };
    let (lateness, latency) = (late(PartKind::Lateness)?, late(PartKind::Produce)?);
    (lateness > LATENESS_NS_MIN && lateness > latency / 2).then(|| {
        let (lateness, latency) = (milliseconds(lateness), milliseconds(latency));
        format!("its own lateness, p99.9 {lateness}, is much of the latency, p99.9 {latency}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::Collector;
    use crate::engine::{PartName, Tally};

    fn outcome(lateness_ns: u64, latency_ns: u64, cpu_share: f64) -> PhaseOutcome {
        let part = |kind| PartName { kind, name: String::new() };
        let parts = [part(PartKind::Produce), part(PartKind::Lateness)];
        let tally = |ns| {
            let mut tally = Tally { records: 1, ..Tally::default() };
            tally.time(ns);
            tally
        };
        let mut collector = Collector::new(&parts, 1, 1.0);
        collector.add(0, &[tally(latency_ns), tally(lateness_ns)]);
        PhaseOutcome {
            parts: collector.into_parts("p", 0.0),
            integrity: None,
            unsent: 0,
            cpu_share,
            measured_s: 1.0,
            started_unix_ms: 0,
            notes: Vec::new(),
            usage: Usage::default(),
            broker_process: None,
            restart: None,
        }
    }

    #[test]
    fn a_run_whose_generator_was_the_limit_is_called_so() {
        let limited = |outcome| judge(&[outcome], false).generator_limited;
        assert_eq!(limited(outcome(100_000, 2_000_000, 0.5)), None);
        assert!(limited(outcome(100_000, 2_000_000, 0.99)).is_some_and(|why| why.contains("99 % of a core")));
        assert!(limited(outcome(3_000_000, 4_000_000, 0.5)).is_some_and(|why| why.contains("lateness")));
        assert_eq!(limited(outcome(3_000_000, 400_000_000, 0.5)), None, "a stall of the broker is not ours");
    }

    #[test]
    fn loss_fails_a_run() {
        let mut lossy = outcome(1, 1, 0.1);
        lossy.integrity = Some(Integrity { checked: 10, lost: 1, ..Integrity::default() });
        assert!(judge(&[lossy], false).failed[0].contains("1 were lost"));
        assert!(judge(&[outcome(1, 1, 0.1)], true).partial.is_some());
    }

    #[test]
    fn addresses_have_ports() {
        assert_eq!(addresses("a:1, [::1]:2").expect("sound"), ["a:1", "[::1]:2"]);
        assert!(addresses("").is_err() && addresses("a").is_err() && addresses("a:b").is_err());
    }
}
