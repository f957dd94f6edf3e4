//! Puts together what threads and machines counted: by the second, and over the whole. Nothing is averaged; a second is
//! complete when all have told theirs.

use crate::engine::{PartName, Tally, histogram};
use crate::result::{Drift, Latency, Part, PartKind, Second, Summary};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// What is measured for less than this has no beginning and no end to speak of.
const DRIFT_S_MIN: f64 = 60.0;
/// A drain after the end that is shorter than this counts with the last second.
const DRAIN_FOLDED_S: f64 = 0.5;

/// What came of one second, over all threads.
#[derive(Clone, Debug)]
pub(crate) struct SecondTallies {
    pub second: u64,
    /// When it began, by the wall clock.
    pub at_unix_ns: u64,
    pub tallies: Vec<Tally>,
}

/// Of a part, the histograms of the first and the last sixth of the measured time.
#[derive(Clone, Debug)]
struct Ends {
    first: Histogram<u64>,
    last: Histogram<u64>,
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
    /// None where the time is too short for that.
    ends: Option<Vec<Ends>>,
    measured_s: f64,
    /// When the measured time began.
    began_unix_ns: u64,
}

impl Collector {
    /// For so many sources, which all tell every second.
    pub(crate) fn new(parts: &[PartName], sources: usize, measured_s: f64) -> Collector {
        let ends = Ends { first: histogram(), last: histogram() };
        Collector {
            ends: (measured_s >= DRIFT_S_MIN).then(|| vec![ends; parts.len()]),
            parts: parts.to_vec(),
            sources,
            open: BTreeMap::new(),
            totals: vec![Tally::default(); parts.len()],
            seconds: vec![Vec::new(); parts.len()],
            measured_s,
            began_unix_ns: 0,
        }
    }

    /// The measured time begins then.
    pub(crate) fn begins_at(&mut self, unix_ns: u64) {
        self.began_unix_ns = unix_ns;
    }

    /// The measured time was cut short.
    pub(crate) fn cut(&mut self, measured_s: f64) {
        if measured_s < self.measured_s {
            // What would have been the last sixth is not there.
            (self.measured_s, self.ends) = (measured_s, None);
        }
    }

    /// Whole seconds of a sixth of the measured time.
    fn sixth(&self) -> u64 {
        (self.measured_s / 6.0) as u64
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
        Some(self.close(second, tallies))
    }

    fn close(&mut self, second: u64, tallies: Vec<Tally>) -> SecondTallies {
        let at_unix_ns = self.began_unix_ns + second * 1_000_000_000;
        let done = SecondTallies { second, at_unix_ns, tallies };
        for ((total, seconds), tally) in self.totals.iter_mut().zip(&mut self.seconds).zip(&done.tallies) {
            total.merge(tally);
            seconds.push(second_of(done.second, tally));
        }
        let (sixth, whole) = (self.sixth(), self.measured_s as u64);
        for (ends, tally) in self.ends.iter_mut().flatten().zip(&done.tallies) {
            let into = match done.second {
                second if second < sixth => &mut ends.first,
                second if (whole - sixth..whole).contains(&second) => &mut ends.last,
                _ => continue,
            };
            into.add(&tally.histogram).expect("all have the same bounds");
        }
        done
    }

    /// What not all have told (those that end first tell less), in order.
    pub(crate) fn finish(&mut self) -> Vec<SecondTallies> {
        let open = std::mem::take(&mut self.open);
        open.into_iter().map(|(second, (_, tallies))| self.close(second, tallies)).collect()
    }

    /// The whole, and each of its seconds. The load began so long before the measured time.
    pub(crate) fn into_parts(self, phase: &str, warmup_s: f64) -> Vec<Part> {
        let (measured_s, length_s, parts) = (self.measured_s, self.sixth(), self.parts);
        let drift =
            |ends: &Ends| Drift { length_s, first: Summary::of(&ends.first), last: Summary::of(&ends.last) };
        let is_timed = |ends: &&Ends| !ends.first.is_empty() && !ends.last.is_empty();
        let drifts: Vec<Option<Drift>> = (0..parts.len())
            .map(|number| self.ends.as_ref()?.get(number).filter(is_timed).map(drift))
            .collect();
        let all = parts.into_iter().zip(self.totals).zip(self.seconds).zip(drifts);
        let result = all.map(|(((part, total), seconds), drift)| {
            let last_s = (total.last_ns as f64 / 1e9 - warmup_s).max(0.0);
            Part {
                kind: part.kind,
                name: part.name,
                phase: phase.to_owned(),
                requests: total.requests,
                records: total.records,
                bytes: total.bytes,
                late: total.late,
                latency: Latency::of(&total.histogram),
                errors: total.errors,
                drift,
                seconds: with_lengths(seconds, end_of(part.kind, measured_s, last_s)),
            }
        });
        result.collect()
    }
}

/// When the last second of a part ends. Who drains after the measured time works as long as that takes; who reads old
/// data is done when it has all been read.
fn end_of(kind: PartKind, measured_s: f64, last_s: f64) -> f64 {
    match kind {
        PartKind::Fetch if last_s > 0.0 => last_s.min(measured_s),
        _ if last_s > measured_s + DRAIN_FOLDED_S => last_s,
        _ => measured_s,
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
fn with_lengths(seconds: Vec<Second>, end_s: f64) -> Vec<Second> {
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
    fn the_end_stands_beside_the_beginning() {
        let part = PartName { kind: PartKind::Produce, name: String::new() };
        let run = |cut_s: Option<f64>| {
            let mut one = Collector::new(std::slice::from_ref(&part), 1, 60.0);
            // Twice as slow in the last ten seconds; what comes after the end is in neither.
            for second in 0..61 {
                one.add(second, &[tally(1, if second < 50 { 1000 } else { 2000 } * (1 + second / 60))]);
            }
            cut_s.into_iter().for_each(|cut_s| one.cut(cut_s));
            one.into_parts("", 0.0).remove(0).drift
        };
        let drift = run(None).expect("a minute is enough");
        assert_eq!((drift.length_s, drift.first.count, drift.last.count), (10, 10, 10));
        assert_eq!((drift.first.p99_9_ns, drift.last.max_ns), (1000, 2000));
        assert_eq!(run(Some(59.0)), None, "its end is not there");
    }

    #[test]
    fn each_part_has_the_time_in_which_it_worked() {
        let part = |kind| PartName { kind, name: String::new() };
        let parts = [part(PartKind::Produce), part(PartKind::EndToEnd), part(PartKind::Fetch)];
        let mut one = Collector::new(&parts, 1, 4.0);
        // Producers are done in time, a consumer needs three seconds more, and old data has been read after 1.5 s.
        let counted = |records, last_ms: u64| Tally { last_ns: last_ms * 1_000_000, ..tally(records, 100) };
        for second in 0..7 {
            let produced = if second < 4 { tally(100, 100) } else { Tally::default() };
            let fetched = if second < 2 { counted(300, 1500) } else { Tally::default() };
            let received = if second < 6 { tally(60, 100) } else { counted(40, 7000) };
            one.add(second, &[produced, received, fetched]);
        }
        let rates: Vec<f64> =
            one.into_parts("", 0.0).iter().map(crate::result::Part::records_per_s).collect();
        assert_eq!(rates, [100.0, 400.0 / 7.0, 400.0]);
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
        for (last_ms, lengths, last) in [(2010, vec![1.0, 1.0], 11), (2750, vec![1.0, 1.0, 0.75], 1)] {
            let mut one = collector(1);
            one.add(0, &[tally(10, 100)]);
            one.add(1, &[tally(10, 100)]);
            // The load began half a second before the measured time.
            one.add(2, &[Tally { last_ns: (500 + last_ms) * 1_000_000, ..tally(1, 100) }]);
            let part = one.into_parts("", 0.5).remove(0);
            assert_eq!(part.seconds.iter().map(|second| second.length_s).collect::<Vec<_>>(), lengths);
            assert_eq!(part.seconds.last().map(|second| second.records), Some(last));
        }
    }
}
