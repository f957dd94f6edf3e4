//! One phase: spreads its connections over threads, starts them together, gathers what they tell, and judges it.

use crate::collect::{Collector, SecondTallies};
use crate::engine::{
    ARRIVAL_TIMEOUT, BACKLOG_TIMEOUT, Clock, Control, Driver, Effort, LanePlan, Means, Origin, PartName,
    Place, Plan, Received, Report, Work, run_raw_sync, run_thread,
};
use crate::failure::Failure;
use crate::layout::{Layout, MachineShare};
use crate::outage::{LocalBroker, Restart};
use crate::process::Watched;
use crate::remote::Link;
use crate::result::{BrokerProcess, Growth, Integrity, Part, PartKind, RestartSeen, Usage};
use crate::scenario::{Phase, Scenario};
use crate::sequence::Sequences;
use crate::target::Target;
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often an interrupt is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Between the last thread's being ready and the start.
const START_DELAY: Duration = Duration::from_millis(50);
/// How long readers have after the last acknowledgement of a run that was interrupted.
const INTERRUPT_GRACE: Duration = Duration::from_secs(1);
/// How long threads may take to connect and to join groups.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// What came of a phase.
#[derive(Debug)]
pub(crate) struct PhaseOutcome {
    pub parts: Vec<Part>,
    /// None where nothing could be checked.
    pub integrity: Option<Integrity>,
    /// Records that were due and not sent, since the broker did not keep up.
    pub unsent: u64,
    /// Of the busiest thread.
    pub effort: Effort,
    /// What was measured, shorter after an interrupt.
    pub measured_s: f64,
    pub started_unix_ms: u64,
    /// Why nothing is checked, where that may surprise.
    pub notes: Vec<String>,
    /// What we took within the measured time, and a local broker.
    pub usage: Usage,
    pub broker_process: Option<BrokerProcess>,
    pub restart: Option<RestartSeen>,
    /// Groups of consumers that read not one record, by their names.
    pub nothing_read: Vec<String>,
    /// Records that were acknowledged, warm-up included.
    pub acknowledged: BTreeMap<Place, u64>,
    /// How the logs grew, where that was looked at.
    pub growth: Option<Growth>,
}

/// A folder, and the part that counts writes below it.
#[derive(Debug)]
struct RawSync {
    folder: PathBuf,
    part: usize,
}

/// A phase that is ready to be run: what its threads do.
pub(crate) struct Prepared {
    plan: Arc<Plan>,
    means: Means,
    works: Vec<Work>,
    /// Lanes of librdkafka, a thread each.
    libraries: Vec<Vec<LanePlan>>,
    /// Where bare writes are made beside the load.
    raw_sync: Option<RawSync>,
    restart: Option<Restart>,
    /// The consumers' groups that must see everything, with how many readers each has.
    checked: Vec<Option<usize>>,
    notes: Vec<String>,
}

impl Prepared {
    /// Lays out the phase. `run` marks its records. Of several machines each takes its share of the connections.
    pub(crate) fn new(
        scenario: &Scenario,
        phase: &Phase,
        target: &Target,
        run: u64,
        machine: MachineShare,
        means: Means,
    ) -> Result<Prepared, Failure> {
        means.driver.check(scenario)?;
        let partitions = target.topics.iter().map(|topic| topic.leaders.len() as u64).sum();
        phase.check_places(partitions).map_err(Failure::Usage)?;
        let mut layout = Layout::new(scenario, phase, machine, means.driver);
        for settings in &phase.producers {
            layout.add_producers(settings, target)?;
        }
        for settings in &phase.consumers {
            layout.add_consumers(settings, run);
        }
        if let Some(settings) = &phase.churn {
            layout.add_churn(settings);
        }
        let seconds = Duration::from_secs_f64;
        let plan = Plan {
            run,
            brokers: target.addresses.clone(),
            client_id: "flumen-bench".to_owned(),
            request_timeout: seconds(scenario.request_timeout_s),
            seed: scenario.seed,
            topics: target.topics.iter().map(|topic| Arc::from(topic.name.as_str())).collect(),
            partitions: target.topics.iter().map(|topic| topic.leaders.len() as i32).collect(),
            warmup: seconds(phase.warmup_seconds),
            length: seconds(phase.warmup_seconds + phase.seconds),
            bytes_max: phase.bytes,
            parts: layout.parts,
        };
        let mut notes = Vec::new();
        if !phase.producers.is_empty() && !phase.consumers.is_empty() && !layout.is_checkable {
            notes.push("records are not checked: values below 32 bytes, or acks = \"none\"".to_owned());
        }
        let (mut works, mut libraries) = (layout.works, Vec::new());
        if means.driver == Driver::Librdkafka {
            libraries.extend(works.iter_mut().map(|work| std::mem::take(&mut work.lanes)));
            libraries.retain(|lanes| !lanes.is_empty());
            works.retain(|work| !work.is_empty());
        }
        Ok(Prepared {
            plan: Arc::new(plan),
            means,
            works,
            libraries,
            raw_sync: None,
            restart: None,
            checked: layout.checked,
            notes,
        })
    }

    /// Bare writes below a folder are timed at the same time.
    pub(crate) fn beside_raw_sync(mut self, folder: &Path) -> Prepared {
        let plan = Arc::make_mut(&mut self.plan);
        plan.parts.push(PartName { kind: PartKind::RawSync, name: String::new() });
        self.raw_sync = Some(RawSync { folder: folder.to_owned(), part: plan.parts.len() - 1 });
        self
    }

    /// The broker is killed and started again, so long after the begin of the measured time.
    pub(crate) fn with_restart(mut self, broker: LocalBroker, at: Duration) -> Prepared {
        self.restart = Some(Restart::new(broker, self.plan.warmup + at));
        self
    }

    pub(crate) fn threads(&self) -> usize {
        self.works.len() + self.libraries.len() + usize::from(self.raw_sync.is_some())
    }

    pub(crate) fn warmup(&self) -> Duration {
        self.plan.warmup
    }

    pub(crate) fn control(&self, clock: Clock) -> Control {
        Control::new(clock, self.plan.length, self.checked.len())
    }

    /// Starts its threads, which wait for the time to begin.
    pub(crate) fn start(
        self,
        control: &Arc<Control>,
        tell: &Sender<Report>,
    ) -> Result<Vec<JoinHandle<()>>, Failure> {
        let uring = self.means.uring;
        let mut running = Vec::new();
        let mut spawn = |name: String, work: Box<dyn FnOnce() + Send>| {
            let spawned = std::thread::Builder::new().name(name).spawn(work);
            spawned.map(|thread| running.push(thread)).map_err(|error| Failure::io("a thread", error))
        };
        for (number, work) in self.works.into_iter().enumerate() {
            let (plan, control, tell) = (self.plan.clone(), control.clone(), tell.clone());
            let work = move || run_thread(plan, control, work, tell, uring);
            spawn(format!("load-{number}"), Box::new(work))?;
        }
        #[cfg(feature = "librdkafka")]
        for (number, lanes) in self.libraries.into_iter().enumerate() {
            let (plan, control, tell) = (self.plan.clone(), control.clone(), tell.clone());
            let work = move || crate::engine::librdkafka::run_producers(plan, control, lanes, &tell);
            spawn(format!("send-{number}"), Box::new(work))?;
        }
        if let Some(RawSync { folder, part }) = self.raw_sync {
            let (plan, control, tell) = (self.plan.clone(), control.clone(), tell.clone());
            let work = move || run_raw_sync(&plan, &control, &folder, part, &tell);
            spawn("raw-sync".to_owned(), Box::new(work))?;
        }
        Ok(running)
    }

    /// Runs it here. `watch` hears of every second that is complete; when `interrupted` is set, the load ends.
    pub(crate) fn run(
        mut self,
        interrupted: &AtomicBool,
        watch: &mut Watching<'_>,
    ) -> Result<PhaseOutcome, Failure> {
        let control = Arc::new(self.control(Clock::new(0)));
        let (tell, told) = channel();
        let (plan, checked, notes) = (self.plan.clone(), self.checked.clone(), self.notes.clone());
        let mut gathering = Gathering::new(&plan, &control, self.threads());
        gathering.restart = self.restart.take();
        let running = self.start(&control, &tell)?;
        drop(tell);
        let gathered = gathering.gather(&told, interrupted, watch);
        if gathered.is_err() {
            control.abandoned.store(true, Ordering::Relaxed);
        }
        for thread in running {
            if thread.join().is_err() {
                return Err(Failure::Other("a thread of the load has crashed".to_owned()));
            }
        }
        gathered?;
        Ok(gathering.into_outcome(&checked, notes, watch))
    }

    /// Runs it on workers, which have been prepared and have so many threads in all.
    pub(crate) fn run_on(
        self,
        workers: &mut [Link],
        threads: usize,
        interrupted: &AtomicBool,
        watch: &mut Watching<'_>,
    ) -> Result<PhaseOutcome, Failure> {
        let control = Arc::new(self.control(Clock::new(0)));
        let mut gathering = Gathering::new(&self.plan, &control, threads);
        let (tell, told) = channel();
        let (gathered, usages) = std::thread::scope(|scope| {
            let follow = |worker| {
                let (control, tell) = (&control, tell.clone());
                scope.spawn(move || Link::follow(worker, control, &tell))
            };
            let following: Vec<_> = workers.iter_mut().map(follow).collect();
            drop(tell);
            let gathered = gathering.gather(&told, interrupted, watch);
            if gathered.is_err() {
                control.abandoned.store(true, Ordering::Relaxed);
            }
            let usages: Vec<_> = following.into_iter().filter_map(|one| one.join().ok()).collect();
            (gathered, usages)
        });
        gathered?;
        let mut outcome = gathering.into_outcome(&self.checked, self.notes, watch);
        outcome.usage = Usage::default();
        for usage in usages {
            outcome.usage.add_beside(usage);
        }
        Ok(outcome)
    }
}

/// Hears of every second that is complete.
pub(crate) type Watching<'a> = dyn FnMut(&[PartName], &SecondTallies) + 'a;

/// What the threads have told so far.
struct Gathering<'a> {
    plan: &'a Plan,
    control: &'a Control,
    collector: Collector,
    threads: usize,
    ready: usize,
    produced: usize,
    done: usize,
    acknowledged: BTreeMap<Origin, Sequences>,
    received: Vec<Received>,
    unsent: u64,
    /// Of values that were acknowledged.
    bytes: u64,
    effort: Effort,
    produced_at: Option<Instant>,
    watched: Watched,
    restart: Option<Restart>,
}

/// The addresses behind names, as far as they can be found.
pub(crate) fn resolve(brokers: &[String]) -> Vec<SocketAddr> {
    brokers.iter().filter_map(|one| one.to_socket_addrs().ok()).flatten().collect()
}

impl<'a> Gathering<'a> {
    fn new(plan: &'a Plan, control: &'a Control, threads: usize) -> Gathering<'a> {
        let measured = plan.length - plan.warmup;
        Gathering {
            plan,
            control,
            collector: Collector::new(&plan.parts, threads, measured.as_secs_f64()),
            threads,
            ready: 0,
            produced: 0,
            done: 0,
            acknowledged: BTreeMap::new(),
            received: Vec::new(),
            unsent: 0,
            bytes: 0,
            effort: Effort::default(),
            produced_at: None,
            watched: Watched::Not(resolve(&plan.brokers)),
            restart: None,
        }
    }

    fn gather(
        &mut self,
        told: &Receiver<Report>,
        interrupted: &AtomicBool,
        watch: &mut Watching<'_>,
    ) -> Result<(), Failure> {
        let began = Instant::now();
        while self.done < self.threads {
            match told.recv_timeout(LOOK_INTERVAL) {
                Ok(report) => self.take(report, watch)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::Other("a thread of the load has ended early".to_owned()));
                }
            }
            let has_started = self.control.start_at.get().is_some();
            if interrupted.load(Ordering::Relaxed) {
                if !has_started {
                    return Err(Failure::Interrupted);
                }
                self.control.cut();
                // Readers that are behind do not hold up the end.
                if self.produced_at.is_some_and(|at| at.elapsed() > INTERRUPT_GRACE) {
                    self.control.abandoned.store(true, Ordering::Relaxed);
                }
            }
            if !has_started && began.elapsed() > READY_TIMEOUT {
                let seconds = READY_TIMEOUT.as_secs();
                return Err(Failure::NoBroker(format!("the connections were not ready within {seconds} s")));
            }
            self.give_up_when_late();
            self.watched.look(self.control, self.plan.warmup);
            self.restart.as_mut().map_or(Ok(()), |restart| restart.look(self.control))?;
        }
        Ok(())
    }

    /// A broker that answers nothing does not hold the run up for ever.
    fn give_up_when_late(&self) {
        let Some(start) = self.control.start_at.get() else { return };
        let end = *start + Duration::from_nanos(self.control.end_ns());
        let latest = end + BACKLOG_TIMEOUT.max(self.plan.request_timeout) + 2 * ARRIVAL_TIMEOUT;
        if Instant::now() > latest {
            self.control.abandoned.store(true, Ordering::Relaxed);
        }
    }

    /// What was asked for has been written.
    fn end_when_enough(&mut self, done: &SecondTallies) {
        let parts = self.plan.parts.iter().zip(&done.tallies);
        let produced = parts.filter(|(part, _)| part.kind == PartKind::Produce);
        self.bytes += produced.map(|(_, tally)| tally.bytes).sum::<u64>();
        if self.plan.bytes_max.is_some_and(|max| self.bytes >= max) {
            self.control.cut();
        }
    }

    fn take(&mut self, report: Report, watch: &mut Watching<'_>) -> Result<(), Failure> {
        match report {
            Report::Ready => {
                self.ready += 1;
                if self.ready == self.threads {
                    let start = Instant::now() + START_DELAY;
                    self.collector.begins_at(self.control.clock.unix_ns(start + self.plan.warmup));
                    let _ = self.control.start_at.set(start);
                }
            }
            Report::Interval { second, tallies } => {
                if let Some(done) = self.collector.add(second, &tallies) {
                    watch(&self.plan.parts, &done);
                    self.end_when_enough(&done);
                }
            }
            Report::Produced { acknowledged, unsent } => {
                self.produced += 1;
                self.unsent += unsent;
                for (origin, sequences) in acknowledged {
                    self.acknowledged.entry(origin).or_default().merge(&sequences);
                }
                if self.produced == self.threads {
                    self.produced_at = Some(Instant::now());
                    self.control.seal(self.acknowledged.values().map(Sequences::count).sum());
                }
            }
            Report::Done { received, effort } => {
                self.done += 1;
                self.received.extend(received);
                self.effort = self.effort.fuller(effort);
            }
            Report::Failed(failure) => return Err(failure),
        }
        Ok(())
    }

    fn into_outcome(
        mut self,
        checked: &[Option<usize>],
        notes: Vec<String>,
        watch: &mut Watching<'_>,
    ) -> PhaseOutcome {
        for second in self.collector.finish() {
            watch(&self.plan.parts, &second);
        }
        let start = self.control.start_at.get().copied().unwrap_or_else(Instant::now);
        let warmup_s = self.plan.warmup.as_secs_f64();
        let end_s = self.control.end_ns() as f64 / 1e9;
        let measured_s = (end_s - warmup_s).max(0.0);
        self.collector.cut(measured_s);
        let (usage, broker_process) = self.watched.into_seen();
        let restart = self.restart.and_then(|restart| restart.seen(self.control, self.plan.warmup));
        let integrity = judge(&self.acknowledged, &self.received, checked);
        let mut notes = notes;
        if let Some(max) = self.plan.bytes_max.filter(|max| self.bytes < *max) {
            notes.push(format!("{} of {max} bytes were written when its time was over", self.bytes));
        }
        let nothing_read = nothing_read(&self.plan.parts, &self.received);
        PhaseOutcome {
            parts: self.collector.into_parts("", warmup_s),
            integrity,
            unsent: self.unsent,
            effort: self.effort,
            measured_s,
            started_unix_ms: self.control.clock.unix_ns(start + self.plan.warmup) / 1_000_000,
            notes,
            usage,
            broker_process,
            restart,
            nothing_read,
            acknowledged: by_place(&self.acknowledged),
            growth: None,
        }
    }
}

fn by_place(acknowledged: &BTreeMap<Origin, Sequences>) -> BTreeMap<Place, u64> {
    let mut sums = BTreeMap::new();
    for ((_, place), sequences) in acknowledged {
        *sums.entry(*place).or_default() += sequences.count();
    }
    sums
}

/// Each group of consumers has a part, in their order.
fn nothing_read(parts: &[PartName], received: &[Received]) -> Vec<String> {
    let groups = parts.iter().filter(|part| matches!(part.kind, PartKind::EndToEnd | PartKind::Fetch));
    let read =
        |group: usize| -> u64 { received.iter().filter(|one| one.group == group).map(|one| one.read).sum() };
    let silent = groups.enumerate().filter(|(group, _)| read(*group) == 0);
    silent.map(|(_, part)| part.name.clone()).collect()
}

/// Compares what was acknowledged with what each checked reader, or group of them, received.
fn judge(
    acknowledged: &BTreeMap<Origin, Sequences>,
    received: &[Received],
    checked: &[Option<usize>],
) -> Option<Integrity> {
    let total: u64 = acknowledged.values().map(Sequences::count).sum();
    let mut integrity: Option<Integrity> = None;
    for (group, readers) in checked.iter().enumerate() {
        let Some(readers) = readers else { continue };
        let sum = integrity.get_or_insert_with(Integrity::default);
        let mut by_reader: BTreeMap<Option<usize>, Received> = BTreeMap::new();
        for one in received.iter().filter(|one| one.group == group) {
            by_reader.entry(one.reader).or_default().merge(one);
        }
        sum.checked += total * *readers as u64;
        for held in by_reader.values() {
            sum.duplicated += held.duplicated;
            sum.redelivered += held.redelivered;
            sum.reordered += held.reordered;
            for (origin, sent) in acknowledged {
                let missing = held.missing(origin, sent);
                sum.lost += missing.lost;
                sum.unread += missing.unread;
                sum.deleted += missing.deleted;
            }
        }
        // A reader that told nothing read nothing.
        sum.unread += total * readers.saturating_sub(by_reader.len()) as u64;
    }
    integrity
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(ranges: &[(u64, u64)]) -> Sequences {
        let mut all = Sequences::default();
        for (begin, end) in ranges {
            all.add_range(*begin, *end);
        }
        all
    }

    const ORIGIN: Origin = (3, Place { topic: 0, partition: 1 });

    /// To the end of the log; offsets are as the sequence numbers.
    fn received(reader: Option<usize>, ranges: &[(u64, u64)]) -> Received {
        let offsets = reader.is_none().then(|| (ORIGIN.1, sequences(ranges)));
        Received {
            reader,
            sequences: BTreeMap::from([(ORIGIN, sequences(ranges))]),
            offsets: offsets.into_iter().collect(),
            reached: [ORIGIN.1].into(),
            ..Received::default()
        }
    }

    #[test]
    fn each_reader_must_have_all_that_was_acknowledged_and_no_more_is_asked() {
        let acknowledged = BTreeMap::from([(ORIGIN, sequences(&[(0, 10), (12, 20)]))]);
        // What has an unknown fate (10 and 11) may have arrived.
        let all = [received(Some(0), &[(0, 20)]), received(Some(1), &[(0, 9), (12, 20)])];
        let found = judge(&acknowledged, &all, &[Some(2)]).expect("checked");
        assert_eq!((found.checked, found.lost, found.duplicated), (36, 1, 0));
        let found = judge(&acknowledged, &all[..1], &[Some(2)]).expect("checked");
        assert_eq!((found.lost, found.unread), (0, 18), "a reader that told nothing has read nothing");
        assert_eq!(judge(&acknowledged, &all, &[None]), None);
    }

    #[test]
    fn who_is_behind_has_lost_nothing() {
        let acknowledged = BTreeMap::from([(ORIGIN, sequences(&[(0, 20)]))]);
        let behind = Received { reached: Default::default(), ..received(Some(0), &[(0, 5), (6, 12)]) };
        let found = judge(&acknowledged, &[behind], &[Some(1)]).expect("checked");
        assert_eq!((found.lost, found.unread, found.deleted), (1, 8, 0));
    }

    #[test]
    fn members_of_a_group_count_as_one() {
        let acknowledged = BTreeMap::from([(ORIGIN, sequences(&[(0, 20)]))]);
        let members = [received(None, &[(0, 12)]), received(None, &[(10, 20)])];
        let found = judge(&acknowledged, &members, &[Some(1)]).expect("checked");
        assert_eq!((found.checked, found.lost, found.duplicated, found.redelivered), (20, 0, 0, 2));
    }
}
