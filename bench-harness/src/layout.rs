//! Which connections a phase has, and which thread of which machine gets each.

use crate::engine::{ChurnPlan, Driver, LanePlan, PartName, Place, ReaderPlan, Work};
use crate::failure::Failure;
use crate::payload::Values;
use crate::result::PartKind;
use crate::scenario::{Acks, Arrivals, Churn, Consumers, From, Load, Mode, Phase, Producers, Scenario};
use crate::schedule::{Share, read_trace};
use crate::target::Target;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Which of how many machines makes a load.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct MachineShare {
    pub index: usize,
    pub count: usize,
}

impl MachineShare {
    /// The only one.
    pub(crate) const WHOLE: MachineShare = MachineShare { index: 0, count: 1 };
}

/// A phase that is being laid out: groups of producers first, then those of consumers.
pub(crate) struct Layout {
    /// By thread of this machine.
    pub works: Vec<Work>,
    pub parts: Vec<PartName>,
    /// By group of consumers: how many readers must see everything, where they must.
    pub checked: Vec<Option<usize>>,
    /// Whether all records can be told apart and are acknowledged.
    pub is_checkable: bool,
    seed: u64,
    spread: Spread,
    /// A producer has a connection, and so a lane, for each leader; else one lane for all.
    by_leader: bool,
    producers: u32,
    readers: usize,
}

impl Layout {
    pub(crate) fn new(scenario: &Scenario, phase: &Phase, machine: MachineShare, driver: Driver) -> Layout {
        let threads = thread_count(scenario, phase);
        Layout {
            works: (0..threads).map(|_| Work::default()).collect(),
            parts: Vec::new(),
            checked: Vec::new(),
            is_checkable: !phase.producers.is_empty(),
            seed: scenario.seed,
            spread: Spread { next: 0, threads, machine },
            // That library has its own connections.
            by_leader: driver == Driver::Flumen,
            producers: 0,
            readers: 0,
        }
    }

    /// A lane for each producer and, where that is ours to do, for each leader.
    pub(crate) fn add_producers(&mut self, settings: &Producers, target: &Target) -> Result<(), Failure> {
        let settings = Arc::new(settings.clone());
        let part = self.add_part(PartKind::Produce, &settings.name);
        let lateness_part = match settings.load {
            Load::Open => self.add_part(PartKind::Lateness, &settings.name),
            Load::Closed => part,
        };
        let values = Values::new(&settings.payload, self.seed)?;
        self.is_checkable &= values.are_checked() && settings.acks != Acks::None;
        let trace: Option<Arc<[u64]>> = match (&settings.trace, settings.arrivals) {
            (Some(path), Arrivals::Trace) => Some(read_trace(Path::new(path))?.into()),
            _ => None,
        };
        let groups = match self.by_leader {
            true => target.places_by_leader(),
            false => {
                let mut all = target.places_by_leader().concat();
                all.sort_unstable();
                vec![all]
            }
        };
        let all: usize = groups.iter().map(Vec::len).sum();
        let count = settings.count as usize * groups.len();
        for index in 0..count {
            let places = &groups[index % groups.len()];
            let part_of_rate = places.len() as f64 / all as f64 / f64::from(settings.count);
            let lane = LanePlan {
                settings: settings.clone(),
                producer: self.producers + (index / groups.len()) as u32,
                places: places.clone(),
                share: Share { part: part_of_rate, index, count },
                values: values.starting_at(index),
                trace: trace.clone(),
                part,
                lateness_part,
            };
            if let Some(thread) = self.spread.next() {
                self.works[thread].lanes.push(lane);
            }
        }
        self.producers += settings.count;
        Ok(())
    }

    /// Those that begin at the end must see all that is acknowledged.
    pub(crate) fn add_consumers(&mut self, settings: &Consumers, run: u64) {
        let group = self.checked.len();
        let checks = self.is_checkable && settings.from == From::Latest;
        let kind = if checks { PartKind::EndToEnd } else { PartKind::Fetch };
        let part = self.add_part(kind, &settings.name);
        let settings = Arc::new(settings.clone());
        for _ in 0..settings.count {
            let reader = ReaderPlan {
                settings: settings.clone(),
                group,
                reader: self.readers,
                part,
                checks,
                group_id: format!("flumen-bench-{run:016x}-{group}"),
            };
            self.readers += 1;
            if let Some(thread) = self.spread.next() {
                self.works[thread].readers.push(reader);
            }
        }
        let readers = if settings.mode == Mode::Group { 1 } else { settings.count as usize };
        self.checked.push(checks.then_some(readers));
    }

    /// Each thread opens its share.
    pub(crate) fn add_churn(&mut self, settings: &Churn) {
        let part = self.add_part(PartKind::Connect, "");
        let Spread { threads, machine, .. } = self.spread;
        let count = threads * machine.count;
        for (thread, work) in self.works.iter_mut().enumerate() {
            let index = machine.index * threads + thread;
            let share = Share { part: 1.0 / count as f64, index, count };
            work.churn = Some(ChurnPlan { settings: settings.clone(), share, part });
        }
    }

    pub(crate) fn add_part(&mut self, kind: PartKind, name: &str) -> usize {
        self.parts.push(PartName { kind, name: name.to_owned() });
        self.parts.len() - 1
    }
}

fn thread_count(scenario: &Scenario, phase: &Phase) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = if scenario.threads > 0 { scenario.threads } else { (cores / 2).max(1) };
    let connections: u32 = phase.producers.iter().map(|one| one.count).sum::<u32>()
        + phase.consumers.iter().map(|one| one.count).sum::<u32>();
    wanted.min((connections as usize).max(1))
}

/// Deals connections out, to machines and to the threads of this one.
#[derive(Clone, Copy)]
struct Spread {
    next: usize,
    threads: usize,
    machine: MachineShare,
}

impl Spread {
    /// The thread of this machine that gets the next connection; none when another machine does.
    fn next(&mut self) -> Option<usize> {
        let number = self.next;
        self.next += 1;
        let is_ours = number % self.machine.count == self.machine.index;
        is_ours.then_some(number / self.machine.count % self.threads)
    }
}

impl Target {
    /// The partitions of each leader, ascending.
    fn places_by_leader(&self) -> Vec<Vec<Place>> {
        let mut groups: BTreeMap<i32, Vec<Place>> = BTreeMap::new();
        for (topic, one) in self.topics.iter().enumerate() {
            for (partition, leader) in one.leaders.iter().enumerate() {
                let place = Place { topic: topic as u32, partition: partition as i32 };
                groups.entry(*leader).or_default().push(place);
            }
        }
        groups.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_dealt_out_over_machines_and_threads() {
        let deal = |index| {
            let mut spread = Spread { next: 0, threads: 2, machine: MachineShare { index, count: 2 } };
            (0..6).map(|_| spread.next()).collect::<Vec<_>>()
        };
        assert_eq!(deal(0), [Some(0), None, Some(1), None, Some(0), None]);
        assert_eq!(deal(1), [None, Some(0), None, Some(1), None, Some(0)]);
    }
}
