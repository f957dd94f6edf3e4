//! A scenario from begin to end: its topics, its phases one after the other, the verdict, the result.

use crate::cli::{BROKERS, RunOptions};
use crate::console::Console;
use crate::engine::{Amount, Means};
use crate::failure::Failure;
use crate::growth;
use crate::hlog::IntervalLogs;
use crate::interrupt;
use crate::layout::MachineShare;
use crate::limits;
use crate::machine;
use crate::outage::LocalBroker;
use crate::phase::{PhaseOutcome, Prepared, Watching, resolve};
use crate::progress::Progress;
use crate::remote::{self, Link};
use crate::result::{
    BrokerProcess, FORMAT_VERSION, Integrity, Manner, Part, RUN_FORMAT, RunResult, Tool, TopicsSeen, Usage,
    Verdict,
};
use crate::scenario::{Acks, Scenario};
use crate::summary;
use crate::target::Target;
use crate::verdict::judge;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Begins the note of a phase without it.
const NOT_COMPARED: &str = "it was not checked whether the logs grew by what was acknowledged";
/// With `--limits`, each of the things that are measured before the load.
const LIMITS_EACH: Duration = Duration::from_secs(2);

/// What came of a scenario.
pub(crate) struct Measured {
    pub result: RunResult,
    /// Why it ended before its time, if it did. What there was is in the result, which says so.
    pub ended: Option<Failure>,
}

/// Runs a scenario, writes what was asked for, prints what came of it.
pub(crate) fn scenario(scenario: Scenario, options: &RunOptions) -> Result<(), Failure> {
    let scenario = scenario.with(&options.overrides)?;
    let interrupted = interrupt::flag()?;
    check_writable(options.output.as_deref())?;
    let mut logs = options.hlog.as_deref().map(IntervalLogs::create).transpose()?;
    let mut console = Console::default();
    let Measured { mut result, ended } =
        measure(&scenario, options, &interrupted, &mut logs, &mut |text| console.print(text))?;
    result.verdict.notes.extend(options.data_dir.as_deref().and_then(machine::no_disk_below));
    // What may be lost is written before what may not be readable any more.
    let written = options.output.as_deref().map_or(Ok(()), |path| result.write(path));
    let logged = logs.map_or(Ok(()), IntervalLogs::finish);
    console.print(&summary::verdict(&result));
    if scenario.name == "canonical"
        && let Some(numbers) = summary::canonical(&result)
    {
        console.print(&format!("{numbers}\n"));
    }
    written.and(logged)?;
    if !result.verdict.failed.is_empty() {
        return Err(Failure::Unsound(result.verdict.failed.join("; ")));
    }
    ended.map_or(Ok(()), Err)?;
    console.end()
}

/// Runs what the file of a result says. Flags override it, as they do a scenario.
pub(crate) fn again(path: &Path, options: &RunOptions) -> Result<(), Failure> {
    let result = RunResult::read(path)?;
    let mut setting: Scenario = serde_json::from_value(result.setting)
        .map_err(|error| Failure::Other(format!("{}: its setting: {error}", path.display())))?;
    // As many partitions as there were, where the topics are made again.
    if let Some(TopicsSeen { count, partitions, .. }) = result.topics
        && let Some(each) = partitions.checked_div(count.into())
        && each * u64::from(count) == partitions
    {
        setting.topic.partitions = i32::try_from(each).unwrap_or(setting.topic.partitions);
    }
    let addresses = &result.broker.addresses;
    let there = (!addresses.is_empty()).then(|| addresses.join(","));
    let manner = result.manner.unwrap_or_default();
    let mut options = options.clone();
    options.brokers = options.brokers.or(there);
    options.workers = options.workers.or(manner.workers);
    options.data_dir = options.data_dir.or(manner.data_dir);
    options.raw_sync |= manner.raw_sync;
    options.limits |= manner.limits;
    options.sending.driver = options.sending.driver.or(Some(manner.driver));
    options.sending.epoll |= manner.epoll;
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

/// Runs all phases and judges them. `print` gets the lines of each phase when it is over. A failure before anything was
/// measured is the command's own.
pub(crate) fn measure(
    scenario: &Scenario,
    options: &RunOptions,
    interrupted: &AtomicBool,
    logs: &mut Option<IntervalLogs>,
    print: &mut dyn FnMut(&str),
) -> Result<Measured, Failure> {
    let timeout = Duration::from_secs_f64(scenario.request_timeout_s);
    let addresses = addresses(options.brokers.as_deref().unwrap_or(BROKERS))?;
    let means = options.sending.means();
    means.driver.check(scenario)?;
    refuse_with_workers(scenario, options)?;
    let target = Target::prepare(&addresses, &scenario.topic, timeout)?;
    let folder = options.data_dir.clone().unwrap_or_else(|| PathBuf::from("."));
    let limits = match options.limits {
        true => Some(limits::measure(&folder, LIMITS_EACH, interrupted)?),
        false => None,
    };
    let mut workers = options.workers.as_deref().map(remote::connect).transpose()?.unwrap_or_default();
    let mut progress = Progress::new(options.quiet);
    let mut outcomes = Vec::new();
    let mut ended = None;
    for (number, phase) in scenario.phases.iter().enumerate() {
        progress.begin(&phase.name, phase.warmup_seconds, phase.seconds);
        let raw_sync = options.raw_sync.then_some(&*folder);
        let asked = Asked { scenario, number, target: &target, means, raw_sync, timeout };
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
                ended = interrupted.load(Ordering::Relaxed).then_some(Failure::Interrupted);
            }
            Err(failure) => ended = Some(failure),
        }
        if ended.is_some() {
            break;
        }
    }
    if !scenario.topic.keep {
        // The figures stand without it.
        let _ = target.clean(timeout);
    }
    if outcomes.is_empty()
        && let Some(failure) = ended
    {
        return Err(failure);
    }
    let verdict = judge(&outcomes, ended.as_ref().map(|failure| partial(failure, scenario, outcomes.len())));
    let notes = target.notes(&scenario.topic);
    let mut result = result(scenario, &folder, target, outcomes, verdict);
    result.verdict.notes.splice(0..0, notes);
    if !workers.is_empty() {
        result.machines = workers.into_iter().map(|worker| worker.machine).collect();
    }
    let manner = Manner {
        driver: means.driver,
        epoll: !means.uring,
        workers: options.workers.clone(),
        data_dir: options.data_dir.clone(),
        raw_sync: options.raw_sync,
        limits: options.limits,
    };
    (result.limits, result.driver, result.manner) = (limits, means.driver.name(), Some(manner));
    Ok(Measured { result, ended })
}

/// Why there is not more than these phases.
fn partial(failure: &Failure, scenario: &Scenario, phases: usize) -> String {
    match (failure, scenario.phases.get(phases)) {
        (Failure::Interrupted, _) | (_, None) => "interrupted before its time".to_owned(),
        (failure, Some(phase)) => format!("phase {:?} failed: {failure}", phase.name),
    }
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
    /// Of one answer.
    timeout: Duration,
}

impl Asked<'_> {
    /// Runs it, and looks at what it left in the logs.
    fn run(
        &self,
        workers: &mut [Link],
        interrupted: &AtomicBool,
        watch: &mut Watching<'_>,
    ) -> Result<PhaseOutcome, Failure> {
        let producers = &self.scenario.phases[self.number].producers;
        if producers.is_empty() {
            return self.load(workers, interrupted, watch);
        }
        if producers.iter().any(|one| one.acks == Acks::None) {
            let mut outcome = self.load(workers, interrupted, watch)?;
            outcome.notes.push(format!("{NOT_COMPARED}: acks = \"none\""));
            return Ok(outcome);
        }
        let begin = growth::ends(self.target, self.timeout);
        let mut outcome = self.load(workers, interrupted, watch)?;
        let grown =
            begin.and_then(|begin| growth::since(&begin, &outcome.acknowledged, self.target, self.timeout));
        match grown {
            Ok(growth) => outcome.growth = Some(growth),
            Err(why) => outcome.notes.push(format!("{NOT_COMPARED}: {why}")),
        }
        Ok(outcome)
    }

    /// Here, or on workers where there are some.
    fn load(
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
    outcome.growth.iter_mut().for_each(|growth| growth.phase = phase.to_owned());
    if let Some(broker) = &mut outcome.broker_process {
        broker.relate(work_of(&outcome.parts));
    }
}

/// What the broker did while it was watched.
fn work_of(parts: &[Part]) -> Amount {
    let mut sum = Amount::default();
    parts.iter().filter(|part| part.kind.is_work()).for_each(|part| sum.add(part.in_time()));
    sum
}

/// The document of the whole run.
fn result(
    scenario: &Scenario,
    folder: &Path,
    target: Target,
    outcomes: Vec<PhaseOutcome>,
    verdict: Verdict,
) -> RunResult {
    let (mut parts, mut integrity, mut generator, mut broker) = (Vec::new(), None, Usage::default(), None);
    let (mut duration_s, mut started_unix_ms) = (0.0, None);
    let (mut restarts, mut growths) = (Vec::new(), Vec::new());
    for outcome in outcomes {
        parts.extend(outcome.parts);
        restarts.extend(outcome.restart);
        growths.extend(outcome.growth);
        started_unix_ms.get_or_insert(outcome.started_unix_ms);
        generator.add_behind(outcome.usage, duration_s);
        match (&mut broker, outcome.broker_process) {
            (None, one) => broker = one,
            (Some(sum), Some(one)) => add_broker(sum, one, duration_s),
            (Some(_), None) => {}
        }
        if let Some(one) = outcome.integrity {
            integrity.get_or_insert_with(Integrity::default).add(one);
        }
        duration_s += outcome.measured_s;
    }
    if let Some(broker) = &mut broker {
        broker.relate(work_of(&parts));
    }
    RunResult {
        format: RUN_FORMAT.to_owned(),
        format_version: FORMAT_VERSION,
        tool: Tool { version: env!("CARGO_PKG_VERSION").to_owned(), command: std::env::args().collect() },
        scenario: scenario.name.clone(),
        setting: serde_json::to_value(scenario).unwrap_or_default(),
        driver: String::new(),
        manner: None,
        topics: Some(target.seen()),
        broker: target.broker,
        machines: vec![machine::describe(folder)],
        started_unix_ms: started_unix_ms.unwrap_or_default(),
        duration_s,
        verdict,
        parts,
        integrity,
        generator,
        broker_process: broker,
        limits: None,
        restarts,
        growths,
    }
}

fn add_broker(sum: &mut BrokerProcess, one: BrokerProcess, from_s: f64) {
    sum.restarted |= one.restarted || one.pid != sum.pid;
    sum.pid = one.pid;
    sum.usage.add_behind(one.usage, from_s);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_ports() {
        assert_eq!(addresses("a:1, [::1]:2").expect("sound"), ["a:1", "[::1]:2"]);
        assert!(addresses("").is_err() && addresses("a").is_err() && addresses("a:b").is_err());
    }
}
