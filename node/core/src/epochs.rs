//! The leader epochs of one partition's log: at which offset each leader began to write (KIP-101, KIP-279). Whoever was
//! cut off from the leader learns from it where its own log and the leader's part.
//!
//! Owned by the partition's shard, persisted in checkpoints.
//!
//! Invariant: epochs and start offsets both rise strictly from entry to entry. An epoch reaches to the start of the
//! next one, the latest to the log end. It has as many entries as leaders have written to what is still in the log.

use crate::types::{LeaderEpoch, Offset};
use std::fmt;

/// The first offset that a leader wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The leader's epoch.
    pub epoch: LeaderEpoch,
    /// Its first offset.
    pub start_offset: Offset,
}

/// The epochs of one log, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochCache {
    entries: Vec<EpochStart>,
}

/// Entries that cannot be those of a log: negative, or not rising. Holds the index of the first wrong one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochsOutOfOrder(pub usize);

impl fmt::Display for EpochsOutOfOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leader epoch entry {} is negative or does not rise", self.0)
    }
}

impl std::error::Error for EpochsOutOfOrder {}

impl EpochCache {
    /// For a log without records.
    pub fn new() -> EpochCache {
        EpochCache::default()
    }

    /// From what [`EpochCache::entries`] gave.
    pub fn restore(entries: Vec<EpochStart>) -> Result<EpochCache, EpochsOutOfOrder> {
        for (i, entry) in entries.iter().enumerate() {
            let rises = i == 0
                || (entries[i - 1].epoch < entry.epoch && entries[i - 1].start_offset < entry.start_offset);
            if !rises || entry.epoch.0 < 0 || entry.start_offset.0 < 0 {
                return Err(EpochsOutOfOrder(i));
            }
        }
        Ok(EpochCache { entries })
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> &[EpochStart] {
        &self.entries
    }

    /// The newest entry.
    pub fn latest(&self) -> Option<EpochStart> {
        self.entries.last().copied()
    }

    /// The oldest entry.
    pub fn earliest(&self) -> Option<EpochStart> {
        self.entries.first().copied()
    }

    /// Notes that a leader's epoch begins at `start_offset`; called with every batch, cheap where nothing is new. As in
    /// Kafka, entries that contradict the new one give way: those of a leader that wrote nothing before it was
    /// replaced. Answers whether anything changed.
    pub fn assign(&mut self, epoch: LeaderEpoch, start_offset: Offset) -> bool {
        assert!(epoch.0 >= 0 && start_offset.0 >= 0, "epoch {epoch} from offset {start_offset}");
        if self.latest().is_some_and(|latest| latest.epoch == epoch && latest.start_offset <= start_offset) {
            return false;
        }
        let kept = self.entries.partition_point(|e| e.epoch < epoch && e.start_offset < start_offset);
        self.entries.truncate(kept);
        self.entries.push(EpochStart { epoch, start_offset });
        true
    }

    /// The largest epoch that is not above `requested`, and where it ends (exclusive): what OffsetForLeaderEpoch
    /// answers. `None` (-1, -1 on the wire) for an epoch above `current`, the leader's own. The leader's begins at the
    /// log end while nothing was written under it: what others wrote, or was deleted since, ends there. An epoch below the
    /// earliest ends where the earliest begins, since what it wrote is no longer there.
    pub fn end_offset_for(
        &self,
        requested: LeaderEpoch,
        current: LeaderEpoch,
        log_end: Offset,
    ) -> Option<(LeaderEpoch, Offset)> {
        if requested.0 < 0 || requested > current {
            return None;
        }
        if requested == current {
            return Some((requested, log_end));
        }
        let above = self.entries.partition_point(|e| e.epoch <= requested);
        let end = self.entries.get(above).map_or(log_end, |next| next.start_offset);
        let floor = above.checked_sub(1).map_or(requested, |floor| self.entries[floor].epoch);
        Some((floor, end))
    }

    /// The epoch that wrote `offset`; `None` for one before the earliest. The log end is the caller's to check.
    pub fn epoch_for(&self, offset: Offset) -> Option<LeaderEpoch> {
        let above = self.entries.partition_point(|e| e.start_offset <= offset);
        above.checked_sub(1).map(|i| self.entries[i].epoch)
    }

    /// The log now ends at `log_end` (exclusive).
    pub fn truncate_to(&mut self, log_end: Offset) {
        let kept = self.entries.partition_point(|e| e.start_offset < log_end);
        self.entries.truncate(kept);
    }

    /// The log now starts at `log_start`: epochs that lie wholly before it go, the one that holds it begins there.
    pub fn prune_below(&mut self, log_start: Offset) {
        let reached = self.entries.partition_point(|e| e.start_offset <= log_start);
        if let Some(holder) = reached.checked_sub(1) {
            self.entries.drain(..holder);
            self.entries[0].start_offset = log_start;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cache(entries: &[(i32, i64)]) -> EpochCache {
        let entries =
            entries.iter().map(|&(e, o)| EpochStart { epoch: LeaderEpoch(e), start_offset: Offset(o) });
        EpochCache::restore(entries.collect()).unwrap()
    }

    #[track_caller]
    fn ends(cache: &EpochCache, requested: i32, current: i32, expected: Option<(i32, i64)>) {
        let found = cache.end_offset_for(LeaderEpoch(requested), LeaderEpoch(current), Offset(50));
        assert_eq!(found, expected.map(|(e, o)| (LeaderEpoch(e), Offset(o))));
    }

    #[test]
    fn end_offsets_are_kafkas() {
        let three = cache(&[(2, 10), (5, 20), (9, 30)]);
        ends(&three, -1, 9, None);
        ends(&three, 0, 9, Some((0, 10)));
        ends(&three, 2, 9, Some((2, 20)));
        ends(&three, 4, 9, Some((2, 20)));
        ends(&three, 5, 9, Some((5, 30)));
        ends(&three, 8, 9, Some((5, 30)));
        ends(&three, 9, 9, Some((9, 50)));
        ends(&three, 10, 9, None);
    }

    #[test]
    fn leaders_that_wrote_nothing_have_epochs_too() {
        let written = cache(&[(2, 10)]);
        ends(&written, 2, 4, Some((2, 50)));
        ends(&written, 3, 4, Some((2, 50)));
        ends(&written, 4, 4, Some((4, 50)));
        ends(&written, 5, 4, None);
        ends(&EpochCache::new(), 0, 0, Some((0, 50)));
        ends(&EpochCache::new(), 1, 3, Some((1, 50)));
        ends(&EpochCache::new(), 4, 3, None);
    }

    #[test]
    fn a_leader_that_wrote_nothing_gives_way() {
        let mut c = cache(&[(1, 0), (2, 10)]);
        assert!(c.assign(LeaderEpoch(3), Offset(10)));
        assert_eq!(c, cache(&[(1, 0), (3, 10)]));
        assert!(!c.assign(LeaderEpoch(3), Offset(11)));
        assert!(c.assign(LeaderEpoch(3), Offset(5)));
        assert_eq!(c, cache(&[(1, 0), (3, 5)]));
        assert!(c.assign(LeaderEpoch(0), Offset(7)));
        assert_eq!(c, cache(&[(0, 7)]));
    }

    #[test]
    fn what_is_no_history_is_not_restored() {
        let entries = |list: &[(i32, i64)]| {
            let of = |&(e, o): &(i32, i64)| EpochStart { epoch: LeaderEpoch(e), start_offset: Offset(o) };
            EpochCache::restore(list.iter().map(of).collect()).map(drop)
        };
        assert_eq!(entries(&[(1, 0), (1, 5)]), Err(EpochsOutOfOrder(1)));
        assert_eq!(entries(&[(1, 5), (2, 5)]), Err(EpochsOutOfOrder(1)));
        assert_eq!(entries(&[(-1, 5)]), Err(EpochsOutOfOrder(0)));
        assert_eq!(entries(&[(0, -1)]), Err(EpochsOutOfOrder(0)));
    }

    /// The dumb model: which epoch wrote each offset, one by one.
    #[derive(Default)]
    struct Model {
        start: i64,
        writers: Vec<i32>,
    }

    impl Model {
        fn end(&self) -> i64 {
            self.start + self.writers.len() as i64
        }

        fn end_offset_for(&self, requested: i32, current: i32) -> Option<(i32, i64)> {
            if requested >= current {
                return (requested == current).then(|| (current, self.end()));
            }
            let floor = self.writers.iter().copied().filter(|&w| w <= requested).max().unwrap_or(requested);
            let end = self.writers.iter().take_while(|&&w| w <= requested).count() as i64;
            Some((floor, self.start + end))
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write { raise: i32, count: i64 },
        Truncate { by: i64 },
        DeleteBelow { by: i64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0i32..3, 1i64..6).prop_map(|(raise, count)| Step::Write { raise, count }),
            1 => (0i64..12).prop_map(|by| Step::Truncate { by }),
            1 => (0i64..12).prop_map(|by| Step::DeleteBelow { by }),
        ]
    }

    proptest! {
        #[test]
        fn as_if_every_offset_were_remembered(steps in prop::collection::vec(step(), 0..40)) {
            let (mut cache, mut model, mut epoch) = (EpochCache::new(), Model::default(), 0);
            for step in steps {
                match step {
                    Step::Write { raise, count } => {
                        epoch += raise;
                        cache.assign(LeaderEpoch(epoch), Offset(model.end()));
                        model.writers.extend((0..count).map(|_| epoch));
                    }
                    Step::Truncate { by } => {
                        let end = (model.end() - by).max(model.start);
                        cache.truncate_to(Offset(end));
                        model.writers.truncate((end - model.start) as usize);
                        epoch += 1; // whoever cuts a log follows a newer leader
                    }
                    // What takes everything leaves the epoch at the log end, which the model cannot say.
                    Step::DeleteBelow { by } if by < model.writers.len() as i64 => {
                        model.start += by;
                        cache.prune_below(Offset(model.start));
                        model.writers.drain(..by as usize);
                    }
                    Step::DeleteBelow { .. } => {}
                }
                prop_assert_eq!(EpochCache::restore(cache.entries().to_vec()).unwrap(), cache.clone());
                for requested in 0..=epoch + 1 {
                    let found =
                        cache.end_offset_for(LeaderEpoch(requested), LeaderEpoch(epoch), Offset(model.end()));
                    prop_assert_eq!(found.map(|(e, o)| (e.0, o.0)), model.end_offset_for(requested, epoch));
                }
                for (i, &writer) in model.writers.iter().enumerate() {
                    prop_assert_eq!(cache.epoch_for(Offset(model.start + i as i64)), Some(LeaderEpoch(writer)));
                }
                prop_assert_eq!(cache.epoch_for(Offset(model.start - 1)), None);
            }
        }
    }

    #[test]
    fn retention_that_takes_everything_keeps_the_latest_epoch_at_the_log_end() {
        let mut c = cache(&[(1, 0), (4, 10)]);
        c.prune_below(Offset(30));
        assert_eq!(c, cache(&[(4, 30)]));
        c.assign(LeaderEpoch(4), Offset(30));
        c.assign(LeaderEpoch(5), Offset(30));
        assert_eq!(c, cache(&[(5, 30)]));
    }
}
