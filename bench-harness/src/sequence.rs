//! Which records were received: sets of sequence numbers, and what is wrong with them.
//!
//! Records of one producer to one partition are numbered from 0. A consumer that sees all of them holds one range; each
//! hole costs one more. So that a broker which loses everything cannot exhaust the memory, a set has at most
//! [`RANGES_MAX`] ranges: past that, holes are closed and counted as lost at once.

use std::collections::BTreeMap;

/// See the head of this file.
const RANGES_MAX: usize = 100_000;

/// A set of sequence numbers, as ranges that neither touch nor overlap: begin and (exclusive) end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sequences {
    ranges: BTreeMap<u64, u64>,
    /// Numbers that were given up because there were too many holes.
    pub overflowed: u64,
}

/// What a number was to a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Above all that were there.
    InOrder,
    /// Below one that was there, and new.
    Late,
    /// There already.
    Again,
}

impl Sequences {
    /// Adds one number.
    pub(crate) fn add(&mut self, number: u64) -> Seen {
        // Nearly always the one behind the last.
        if let Some(mut last) = self.ranges.last_entry()
            && *last.get() == number
        {
            *last.get_mut() += 1;
            return Seen::InOrder;
        }
        let before = self.ranges.range(..=number).next_back().map(|(begin, end)| (*begin, *end));
        if before.is_some_and(|(_, end)| number < end) {
            return Seen::Again;
        }
        let is_last = self.ranges.range(number..).next().is_none();
        self.add_range(number, number + 1);
        if is_last { Seen::InOrder } else { Seen::Late }
    }

    /// Adds `begin..end`. How many of these were there already.
    pub(crate) fn add_range(&mut self, mut begin: u64, mut end: u64) -> u64 {
        if begin >= end {
            return 0;
        }
        // Nearly always behind the last.
        if let Some(mut last) = self.ranges.last_entry()
            && *last.get() == begin
        {
            *last.get_mut() = end;
            return 0;
        }
        let mut overlap = 0;
        let (asked_begin, asked_end) = (begin, end);
        while let Some((found_begin, found_end)) =
            self.ranges.range(..=end).next_back().map(|(begin, end)| (*begin, *end))
        {
            if found_end < begin {
                break;
            }
            overlap += found_end.min(asked_end).saturating_sub(found_begin.max(asked_begin));
            begin = begin.min(found_begin);
            end = end.max(found_end);
            self.ranges.remove(&found_begin);
        }
        self.ranges.insert(begin, end);
        if self.ranges.len() > RANGES_MAX {
            self.close_first_hole();
        }
        overlap
    }

    fn close_first_hole(&mut self) {
        let (Some((begin, end)), Some((next_begin, next_end))) =
            (self.ranges.pop_first(), self.ranges.pop_first())
        else {
            return;
        };
        self.overflowed += next_begin - end;
        self.ranges.insert(begin, next_end);
    }

    /// How many numbers it holds.
    pub(crate) fn count(&self) -> u64 {
        self.ranges.iter().map(|(begin, end)| end - begin).sum::<u64>() - self.overflowed
    }

    /// The ranges, ascending.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(begin, end)| (*begin, *end))
    }

    /// Takes in another set. How many numbers both had.
    pub(crate) fn merge(&mut self, other: &Sequences) -> u64 {
        self.overflowed += other.overflowed;
        other.ranges().map(|(begin, end)| self.add_range(begin, end)).sum()
    }

    /// Those that are not in `other`.
    pub(crate) fn without(&self, other: &Sequences) -> Sequences {
        let mut left = Sequences::default();
        for (begin, end) in self.ranges() {
            let mut from = begin;
            for (other_begin, other_end) in other.overlapping(begin, end) {
                left.add_range(from, other_begin);
                from = other_end;
            }
            left.add_range(from, end);
        }
        left
    }

    /// How many are below `limit`.
    pub(crate) fn count_below(&self, limit: u64) -> u64 {
        self.ranges.range(..limit).map(|(begin, end)| end.min(&limit) - begin).sum()
    }

    /// Behind the last one.
    pub(crate) fn end(&self) -> u64 {
        self.ranges.last_key_value().map_or(0, |(_, end)| *end)
    }

    /// Its ranges within others' bounds, cut to them, ascending.
    fn overlapping(&self, begin: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let before = self.ranges.range(..begin).next_back().filter(|(_, to)| **to > begin);
        let within = self.ranges.range(begin..end);
        before.into_iter().chain(within).map(move |(from, to)| ((*from).max(begin), (*to).min(end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set(numbers: &[u64]) -> Sequences {
        let mut set = Sequences::default();
        for number in numbers {
            set.add(*number);
        }
        set
    }

    #[test]
    fn order_is_told_from_lateness_and_from_repetition() {
        let mut set = Sequences::default();
        assert_eq!([0, 1, 4, 2, 2, 0, 5].map(|number| set.add(number)), {
            use Seen::*;
            [InOrder, InOrder, InOrder, Late, Again, Again, InOrder]
        });
        assert_eq!(set.ranges().collect::<Vec<_>>(), [(0, 3), (4, 6)]);
    }

    #[test]
    fn too_many_holes_are_counted_and_closed() {
        let mut set = Sequences::default();
        for number in 0..RANGES_MAX as u64 + 5 {
            set.add(2 * number);
        }
        assert_eq!(set.overflowed, 5);
        assert_eq!(set.ranges().count(), RANGES_MAX);
        assert_eq!(set.count(), RANGES_MAX as u64 + 5);
    }

    proptest! {
        #[test]
        fn it_is_a_set(first in prop::collection::vec(0..60_u64, 0..60), second in prop::collection::vec(0..60_u64, 0..60)) {
            let (one, other) = (set(&first), set(&second));
            let (dumb, dumber): (BTreeSet<_>, BTreeSet<_>) = (first.into_iter().collect(), second.into_iter().collect());
            prop_assert_eq!(one.count(), dumb.len() as u64);
            let missing: Vec<u64> = dumb.difference(&dumber).copied().collect();
            prop_assert_eq!(one.without(&other), set(&missing));
            prop_assert_eq!(one.end(), dumb.last().map_or(0, |last| last + 1));
            prop_assert_eq!(one.count_below(30), dumb.range(..30).count() as u64);
            let mut merged = one.clone();
            prop_assert_eq!(merged.merge(&other), dumb.intersection(&dumber).count() as u64);
            let union: Vec<_> = dumb.union(&dumber).copied().collect();
            prop_assert_eq!(merged, set(&union));
        }
    }
}
