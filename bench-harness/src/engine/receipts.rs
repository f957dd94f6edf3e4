//! What one consumer has received of a phase, and what is wrong with it.
//!
//! A record that is not here was lost only if the consumer has been past it. So this holds, beside the sequence numbers of
//! what came, the partitions that were read to their ends, and what the broker had deleted before it was read.
//!
//! A member of a group is given some records twice: whoever takes a partition over begins at the last commit. Such a
//! record comes from the same offset again; a duplicate that the broker made has an offset of its own.

use super::{ARRIVAL_TIMEOUT, Origin, Place, Received};
use crate::payload::Header;
use crate::sequence::{Seen, Sequences};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What a record was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Ours(Header),
    /// From an offset that was read before.
    Redelivered,
    /// Of another phase, or of somebody else.
    Foreign,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    received: Received,
    /// Whether offsets are kept, to tell redelivery from duplication.
    is_member: bool,
    /// In partitions with deletions: of each producer the first sequence number that may have been deleted.
    open: BTreeMap<Place, BTreeMap<u32, u64>>,
    distinct: u64,
    last_at: Option<Instant>,
}

impl Receipts {
    pub(super) fn of_reader(group: usize, reader: usize) -> Receipts {
        let received = Received { group, reader: Some(reader), ..Received::default() };
        Receipts { received, ..Receipts::default() }
    }

    pub(super) fn of_member(group: usize) -> Receipts {
        let received = Received { group, ..Received::default() };
        Receipts { received, is_member: true, ..Receipts::default() }
    }

    /// Takes a record's value that came from a place.
    pub(super) fn take(&mut self, run: u64, place: Place, offset: i64, value: &[u8]) -> Taken {
        let received = &mut self.received;
        received.read += 1;
        let Some(header) = Header::read(value).filter(|header| header.run == run) else {
            return Taken::Foreign;
        };
        if self.is_member {
            let offset = u64::try_from(offset).unwrap_or_default();
            if received.offsets.entry(place).or_default().add(offset) == Seen::Again {
                received.redelivered += 1;
                return Taken::Redelivered;
            }
        }
        let origin = (header.producer, place);
        if let Some(open) = self.open.get_mut(&place) {
            let is_known = received.sequences.contains_key(&origin);
            if let Some(from) = open.remove(&header.producer).or((!is_known).then_some(0)) {
                received.deleted.entry(origin).or_default().add_range(from, header.sequence);
            }
        }
        match received.sequences.entry(origin).or_default().add(header.sequence) {
            Seen::InOrder => self.distinct += 1,
            Seen::Late => {
                self.distinct += 1;
                received.reordered += 1;
            }
            Seen::Again => received.duplicated += 1,
        }
        Taken::Ours(header)
    }

    /// The broker has deleted what would have come next there.
    pub(super) fn note_deletion(&mut self, place: Place) {
        let Received { sequences, deleted_in, .. } = &mut self.received;
        deleted_in.insert(place);
        let open = self.open.entry(place).or_default();
        for ((producer, _), seen) in sequences.iter().filter(|((_, at), _)| *at == place) {
            open.entry(*producer).or_insert(seen.end());
        }
    }

    /// All that was acknowledged there has been handed out, if it is there at all.
    pub(super) fn note_reached(&mut self, place: Place) {
        self.received.reached.insert(place);
    }

    pub(super) fn has_reached(&self, place: Place) -> bool {
        self.received.reached.contains(&place)
    }

    pub(super) fn into_received(mut self) -> Received {
        for (place, open) in self.open {
            for (producer, from) in open {
                self.received.deleted.entry((producer, place)).or_default().add_range(from, u64::MAX);
            }
        }
        self.received
    }

    pub(super) fn distinct(&self) -> u64 {
        self.distinct
    }

    pub(super) fn note_arrival(&mut self, at: Instant) {
        self.last_at = Some(at);
    }

    /// Whether nothing has come for so long that nothing will; who pauses between fetches is given that time besides.
    pub(super) fn is_quiet(&self, sealed_since: Instant, pause: Duration) -> bool {
        let since = self.last_at.map_or(sealed_since, |at| at.max(sealed_since));
        since.elapsed() > ARRIVAL_TIMEOUT + pause
    }
}

/// What became of the records that one reader, or the members of a group together, should have received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    pub lost: u64,
    /// Not come to yet.
    pub unread: u64,
    /// Deleted by the broker before they were read.
    pub deleted: u64,
}

impl Received {
    /// Takes in what another member of the group received. What both were given from the same offsets was redelivered;
    /// what both have beyond that, the broker has twice.
    pub(crate) fn merge(&mut self, other: &Received) {
        let (mut again, mut redelivered) = (0, 0);
        for (origin, sequences) in &other.sequences {
            again += self.sequences.entry(*origin).or_default().merge(sequences);
        }
        for (place, offsets) in &other.offsets {
            redelivered += self.offsets.entry(*place).or_default().merge(offsets);
        }
        for (origin, sequences) in &other.deleted {
            self.deleted.entry(*origin).or_default().merge(sequences);
        }
        self.deleted_in.extend(&other.deleted_in);
        self.reached.extend(&other.reached);
        self.duplicated += other.duplicated + again.saturating_sub(redelivered);
        self.redelivered += other.redelivered + redelivered;
        self.reordered += other.reordered;
        self.read += other.read;
    }

    /// Of the records of one producer and partition that were acknowledged, those that are not here.
    pub(crate) fn missing(&self, origin: &Origin, acknowledged: &Sequences) -> Missing {
        let none = Sequences::default();
        let held = self.sequences.get(origin).unwrap_or(&none);
        let mut missing = acknowledged.without(held);
        let all = missing.count();
        match self.deleted.get(origin) {
            Some(deleted) => missing = missing.without(deleted),
            // Nothing of this producer was ever seen there.
            None if self.deleted_in.contains(&origin.1) && held.end() == 0 => missing = none.clone(),
            None => {}
        }
        let left = missing.count();
        let passed = if self.reached.contains(&origin.1) { left } else { missing.count_below(held.end()) };
        Missing { lost: passed + held.overflowed, unread: left - passed, deleted: all - left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::HEADER_BYTES;

    const RUN: u64 = 7;
    const PLACE: Place = Place { topic: 0, partition: 3 };

    fn value(producer: u32, sequence: u64) -> [u8; HEADER_BYTES] {
        let mut value = [0; HEADER_BYTES];
        Header { run: RUN, producer, sequence, due_unix_ns: 0 }.write(&mut value);
        value
    }

    fn acknowledged(end: u64) -> Sequences {
        let mut all = Sequences::default();
        all.add_range(0, end);
        all
    }

    fn take(receipts: &mut Receipts, offset: i64, sequence: u64) -> Taken {
        receipts.take(RUN, PLACE, offset, &value(1, sequence))
    }

    #[test]
    fn what_was_not_come_to_is_unread_and_what_was_passed_is_lost() {
        let mut receipts = Receipts::of_reader(0, 0);
        for sequence in [0, 1, 4] {
            take(&mut receipts, sequence as i64, sequence);
        }
        let behind = receipts.received.missing(&(1, PLACE), &acknowledged(10));
        assert_eq!(behind, Missing { lost: 2, unread: 5, deleted: 0 });
        let other = receipts.received.missing(&(2, PLACE), &acknowledged(10));
        assert_eq!(other, Missing { lost: 0, unread: 10, deleted: 0 });
        receipts.note_reached(PLACE);
        let at_end = receipts.into_received().missing(&(1, PLACE), &acknowledged(10));
        assert_eq!(at_end, Missing { lost: 7, unread: 0, deleted: 0 });
    }

    #[test]
    fn what_retention_took_is_not_lost_but_what_is_missing_elsewhere_is() {
        let mut receipts = Receipts::of_reader(0, 0);
        // 1 is lost; 3, 4 and 5 are deleted; 8 is lost; 9 is deleted, since nothing came behind it.
        for sequence in [0, 2] {
            take(&mut receipts, sequence as i64, sequence);
        }
        receipts.note_deletion(PLACE);
        for sequence in [6, 7] {
            take(&mut receipts, sequence as i64, sequence);
        }
        let once = receipts.received.missing(&(1, PLACE), &acknowledged(8));
        assert_eq!(once, Missing { lost: 1, unread: 0, deleted: 3 });
        receipts.note_deletion(PLACE);
        receipts.note_reached(PLACE);
        let received = receipts.into_received();
        let found = received.missing(&(1, PLACE), &acknowledged(10));
        assert_eq!(found, Missing { lost: 1, unread: 0, deleted: 5 });
        // Of another producer nothing is known there: it may all have been deleted.
        let other = received.missing(&(2, PLACE), &acknowledged(10));
        assert_eq!(other, Missing { lost: 0, unread: 0, deleted: 10 });
    }

    #[test]
    fn the_same_offset_again_is_redelivery_and_another_one_a_duplicate() {
        let mut member = Receipts::of_member(0);
        assert!(matches!(take(&mut member, 10, 0), Taken::Ours(_)));
        assert!(matches!(take(&mut member, 11, 1), Taken::Ours(_)));
        // After a rebalance from the last commit.
        assert_eq!(take(&mut member, 10, 0), Taken::Redelivered);
        // The broker has it twice.
        assert!(matches!(take(&mut member, 12, 1), Taken::Ours(_)));
        assert_eq!((member.distinct(), member.received.redelivered, member.received.duplicated), (2, 1, 1));
        let mut other = Receipts::of_member(0);
        take(&mut other, 11, 1);
        take(&mut other, 13, 2);
        // 0 from an offset of its own.
        take(&mut other, 14, 0);
        let mut both = member.into_received();
        both.merge(&other.into_received());
        assert_eq!((both.redelivered, both.duplicated), (2, 2));
        assert_eq!(both.missing(&(1, PLACE), &acknowledged(3)), Missing::default());
    }
}
