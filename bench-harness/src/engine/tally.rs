//! What a thread counts of each part of the load, by the second. Tallies of threads and machines add up exactly:
//! histograms are merged bucket by bucket, and nothing is averaged.

use crate::result::PartKind;
use flumen_client::Error;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
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

/// An amount of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Amount {
    pub requests: u64,
    pub records: u64,
    pub bytes: u64,
}

impl Amount {
    pub(crate) fn add(&mut self, other: Amount) {
        self.requests += other.requests;
        self.records += other.records;
        self.bytes += other.bytes;
    }

    /// For [`serde`].
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Amount::default()
    }
}

/// What was counted of one part within some time.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub requests: u64,
    pub records: u64,
    pub bytes: u64,
    /// Of these, what came back after the end of the measured time.
    pub late: Amount,
    /// When the last of it came, in nanoseconds from the start of the load.
    pub last_ns: u64,
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
        Tally {
            requests: 0,
            records: 0,
            bytes: 0,
            late: Amount::default(),
            last_ns: 0,
            errors: BTreeMap::new(),
            histogram: histogram(),
        }
    }
}

impl Tally {
    /// Counts what came back at a time from the start of the load; `end_ns` is the end of the measured time.
    pub(crate) fn count(&mut self, amount: Amount, at_ns: u64, end_ns: u64) {
        self.requests += amount.requests;
        self.records += amount.records;
        self.bytes += amount.bytes;
        if at_ns >= end_ns {
            self.late.add(amount);
        }
        self.last_ns = self.last_ns.max(at_ns);
    }

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
        self.late.add(other.late);
        self.last_ns = self.last_ns.max(other.last_ns);
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
    fn what_came_after_the_end_is_told_apart() {
        let amount = |records| Amount { requests: 1, records, bytes: 10 * records };
        let (mut one, mut other) = (Tally::default(), Tally::default());
        one.count(amount(5), 99, 100);
        other.count(amount(7), 100, 100);
        other.merge(&one);
        assert_eq!((other.requests, other.records, other.bytes), (2, 12, 120));
        assert_eq!((other.late, other.last_ns), (amount(7), 100));
    }

    #[test]
    fn what_takes_too_long_counts_as_the_longest() {
        let mut tally = Tally::default();
        tally.time(u64::MAX);
        tally.time(0);
        assert!(tally.histogram.max() >= LATENCY_NS_MAX && tally.histogram.min() == 1);
    }
}
