//! What a thread counts of each part of the load, by the second. Tallies of threads and machines add up exactly:
//! histograms are merged bucket by bucket, and nothing is averaged.

use crate::result::PartKind;
use flumen_client::Error;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// An hour: later than that is counted as an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// Of a histogram's values: three digits are kept.
const DIGITS: u8 = 3;

/// A part of a phase: what it measures and what it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartName {
    pub kind: PartKind,
    pub name: String,
}

/// What was counted of one part within some time.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub requests: u64,
    pub records: u64,
    pub bytes: u64,
    pub errors: BTreeMap<String, u64>,
    /// Nanoseconds.
    pub histogram: Histogram<u64>,
}

/// An empty histogram of latencies in nanoseconds, as all here are.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS).expect("the bounds are sound")
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { requests: 0, records: 0, bytes: 0, errors: BTreeMap::new(), histogram: histogram() }
    }
}

impl Tally {
    /// Records a duration.
    pub(crate) fn time(&mut self, nanoseconds: u64) {
        self.histogram.saturating_record(nanoseconds.max(1));
    }

    /// Counts errors under a name.
    pub(crate) fn error(&mut self, name: &str, count: u64) {
        match self.errors.get_mut(name) {
            Some(held) => *held += count,
            None => drop(self.errors.insert(name.to_owned(), count)),
        }
    }

    pub(crate) fn errors(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Adds what another thread or machine counted.
    pub(crate) fn merge(&mut self, other: &Tally) {
        self.requests += other.requests;
        self.records += other.records;
        self.bytes += other.bytes;
        for (name, count) in &other.errors {
            self.error(name, *count);
        }
        self.histogram.add(&other.histogram).expect("all have the same bounds");
    }
}

/// Under which name an error is counted: Kafka's for what a broker said, our own for the rest.
pub(crate) fn error_name(error: &Error) -> String {
    match error {
        Error::Broker { code, .. } => code.name().to_owned(),
        Error::Timeout { .. } => "TIMEOUT".to_owned(),
        Error::Malformed { .. } => "MALFORMED".to_owned(),
        Error::NoLeader { .. } => "LEADER_NOT_AVAILABLE".to_owned(),
        _ => "CONNECTION".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up_exactly() {
        let (mut one, mut other, mut both) = (Tally::default(), Tally::default(), Tally::default());
        for (index, value) in (0..2000_u64).map(|index| (index, 1 + index * index * 977)).collect::<Vec<_>>()
        {
            if index % 3 == 0 { &mut one } else { &mut other }.time(value);
            both.time(value);
        }
        one.error("CONNECTION", 2);
        other.error("CONNECTION", 3);
        other.error("TIMEOUT", 1);
        (one.records, other.records) = (5, 6);
        one.merge(&other);
        assert_eq!(one.histogram, both.histogram);
        assert_eq!((one.errors["CONNECTION"], one.errors(), one.records), (5, 6, 11));
    }

    #[test]
    fn what_takes_too_long_counts_as_the_longest() {
        let mut tally = Tally::default();
        tally.time(u64::MAX);
        tally.time(0);
        assert!(tally.histogram.max() >= LATENCY_NS_MAX && tally.histogram.min() == 1);
    }
}
