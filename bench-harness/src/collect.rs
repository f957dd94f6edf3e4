//! Puts together what threads and machines counted: by the second, and over the whole. Nothing is averaged; a second is
//! complete when all have told theirs.

use crate::engine::{PartName, Tally};
use crate::result::{Latency, Part, Second};
use std::collections::BTreeMap;

/// A drain after the end that is shorter than this counts with the last second.
const DRAIN_FOLDED_S: f64 = 0.5;

/// What came of one second, over all threads.
#[derive(Clone, Debug)]
pub(crate) struct SecondTallies {
    pub second: u64,
    pub tallies: Vec<Tally>,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Collector {
    parts: Vec<PartName>,
    sources: usize,
    /// Seconds that not all have told, with how many have.
    open: BTreeMap<u64, (usize, Vec<Tally>)>,
    totals: Vec<Tally>,
    seconds: Vec<Vec<Second>>,
    measured_s: f64,
}

impl Collector {
    /// For so many sources, which all tell every second.
    pub(crate) fn new(parts: &[PartName], sources: usize, measured_s: f64) -> Collector {
        Collector {
            parts: parts.to_vec(),
            sources,
            open: BTreeMap::new(),
            totals: vec![Tally::default(); parts.len()],
            seconds: vec![Vec::new(); parts.len()],
            measured_s,
        }
    }

    /// The measured time was cut short.
    pub(crate) fn cut(&mut self, measured_s: f64) {
        self.measured_s = self.measured_s.min(measured_s);
    }

    /// Takes what one source counted in a second. The second, when it is complete with that.
    pub(crate) fn add(&mut self, second: u64, tallies: &[Tally]) -> Option<SecondTallies> {
        let empty = || (0, vec![Tally::default(); self.parts.len()]);
        let (told, merged) = self.open.entry(second).or_insert_with(empty);
        *told += 1;
        for (sum, one) in merged.iter_mut().zip(tallies) {
            sum.merge(one);
        }
        if *told < self.sources {
            return None;
        }
        let (_, tallies) = self.open.remove(&second)?;
        Some(self.close(SecondTallies { second, tallies }))
    }

    fn close(&mut self, done: SecondTallies) -> SecondTallies {
        for ((total, seconds), tally) in self.totals.iter_mut().zip(&mut self.seconds).zip(&done.tallies) {
            total.merge(tally);
            seconds.push(second_of(done.second, tally));
        }
        done
    }

    /// What not all have told (those that end first tell less), in order.
    pub(crate) fn finish(&mut self) -> Vec<SecondTallies> {
        let open = std::mem::take(&mut self.open);
        open.into_iter().map(|(second, (_, tallies))| self.close(SecondTallies { second, tallies })).collect()
    }

    /// The whole, and each of its seconds. `drained_s` is how long answers came after the measured time.
    pub(crate) fn into_parts(self, phase: &str, drained_s: f64) -> Vec<Part> {
        let (measured_s, parts) = (self.measured_s, self.parts);
        let result =
            parts.into_iter().zip(self.totals).zip(self.seconds).map(|((part, total), seconds)| Part {
                kind: part.kind,
                name: part.name,
                phase: phase.to_owned(),
                requests: total.requests,
                records: total.records,
                bytes: total.bytes,
                latency: Latency::of(&total.histogram),
                errors: total.errors,
                seconds: with_lengths(seconds, measured_s, drained_s),
            });
        result.collect()
    }
}

fn second_of(second: u64, tally: &Tally) -> Second {
    let at =
        |quantile| if tally.histogram.is_empty() { 0 } else { tally.histogram.value_at_quantile(quantile) };
    Second {
        at_s: second as f64,
        length_s: 1.0,
        requests: tally.requests,
        records: tally.records,
        bytes: tally.bytes,
        errors: tally.errors(),
        p50_ns: at(0.5),
        p99_ns: at(0.99),
        p99_9_ns: at(0.999),
        max_ns: if tally.histogram.is_empty() { 0 } else { tally.histogram.max() },
    }
}

/// Cuts the last second to its length; what came after the end counts with it, or has seconds of its own.
fn with_lengths(seconds: Vec<Second>, measured_s: f64, drained_s: f64) -> Vec<Second> {
    let end_s = if drained_s < DRAIN_FOLDED_S { measured_s } else { measured_s + drained_s };
    let mut kept: Vec<Second> = Vec::new();
    for mut one in seconds {
        let left = end_s - one.at_s;
        if left < 0.01 {
            // Behind the end: percentiles of the larger stand, they cannot be added.
            if let Some(last) = kept.last_mut() {
                fold(last, &one);
            }
            continue;
        }
        one.length_s = left.min(1.0);
        kept.push(one);
    }
    kept
}

fn fold(into: &mut Second, one: &Second) {
    into.requests += one.requests;
    into.records += one.records;
    into.bytes += one.bytes;
    into.errors += one.errors;
    into.max_ns = into.max_ns.max(one.max_ns);
    if one.records > into.records / 2 {
        (into.p50_ns, into.p99_ns, into.p99_9_ns) = (one.p50_ns, one.p99_ns, one.p99_9_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::PartKind;

    fn tally(records: u64, latency_ns: u64) -> Tally {
        let mut tally = Tally { records, ..Tally::default() };
        tally.histogram.record_n(latency_ns, records).expect("in bounds");
        tally
    }

    fn collector(sources: usize) -> Collector {
        let part = PartName { kind: PartKind::Produce, name: String::new() };
        Collector::new(&[part], sources, 2.0)
    }

    #[test]
    fn a_second_is_complete_when_all_have_told_it_and_the_whole_is_their_sum() {
        let mut both = collector(2);
        assert!(both.add(0, &[tally(10, 100)]).is_none());
        let done = both.add(0, &[tally(5, 900)]).expect("complete");
        assert_eq!((done.second, done.tallies[0].records), (0, 15));
        both.add(1, &[tally(1, 100)]);
        // The other one has ended.
        assert_eq!(both.finish().len(), 1);
        let part = both.into_parts("p", 0.0).remove(0);
        assert_eq!((part.records, part.seconds.len(), part.phase.as_str()), (16, 2, "p"));
        let latency = part.latency.expect("timed");
        assert_eq!((latency.summary.count, latency.summary.p50_ns), (16, 100));
        assert!(latency.summary.max_ns >= 900 && part.seconds[0].max_ns >= 900);
    }

    #[test]
    fn a_short_drain_counts_with_the_last_second_and_a_long_one_has_its_own() {
        for (drained_s, lengths, last) in [(0.01, vec![1.0, 1.0], 11), (0.75, vec![1.0, 1.0, 0.75], 1)] {
            let mut one = collector(1);
            one.add(0, &[tally(10, 100)]);
            one.add(1, &[tally(10, 100)]);
            one.add(2, &[tally(1, 100)]);
            let part = one.into_parts("", drained_s).remove(0);
            assert_eq!(part.seconds.iter().map(|second| second.length_s).collect::<Vec<_>>(), lengths);
            assert_eq!(part.seconds.last().map(|second| second.records), Some(last));
        }
    }
}
