//! Deadlines of groups and members: soft state, lost at a reload and made anew from what was loaded.
//!
//! Putting a deadline off, which every heartbeat does, writes one number. The queue keeps the old time; when that
//! comes, the deadline is put in again with the time that it has by then.
//!
//! Invariant: **whoever takes out what has passed comes to an end**: what is set meanwhile has not passed yet.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::Arc;
use std::time::Duration;

/// What a deadline is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A classic group: its join phase ends, whoever has not come.
    Join,
    /// A classic group: members that have not asked for their assignment by now are removed.
    Sync,
    /// A member of a classic group (also one that only was given an id) was silent for too long.
    Session(Arc<str>),
    /// A member of a consumer group was silent for too long.
    ConsumerSession(Arc<str>),
    /// A member of a consumer group has not given up partitions in time.
    ConsumerRebalance(Arc<str>),
}

/// A deadline's identity: at most one of a kind for each group and member.
type Key = (Arc<str>, Timer);

/// The shortest time that a deadline lies ahead.
const AHEAD_MIN: Duration = Duration::from_millis(1);

/// Deadlines on the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// Until when deadlines were taken out.
    passed: Duration,
    deadlines: BTreeMap<Key, Deadline>,
    /// Each once, at the time that it had when it was put in.
    queue: BTreeSet<(Duration, Key)>,
}

#[derive(Debug)]
struct Deadline {
    due: Duration,
    /// The time in the queue; never later than when it is due.
    queued: Duration,
}

impl Timers {
    /// Sets a deadline, in place of the one that there was.
    pub(super) fn set(&mut self, group: &Arc<str>, timer: Timer, at: Duration) {
        let due = at.max(self.passed + AHEAD_MIN);
        match self.deadlines.entry((Arc::clone(group), timer)) {
            Entry::Vacant(entry) => {
                self.queue.insert((due, entry.key().clone()));
                entry.insert(Deadline { due, queued: due });
            }
            Entry::Occupied(mut entry) => {
                entry.get_mut().due = due;
                let queued = entry.get().queued;
                if due < queued {
                    entry.get_mut().queued = due;
                    let mut queued = (queued, entry.key().clone());
                    self.queue.remove(&queued);
                    queued.0 = due;
                    self.queue.insert(queued);
                }
            }
        }
    }

    /// Takes a deadline back, if there is one.
    pub(super) fn cancel(&mut self, group: &Arc<str>, timer: Timer) {
        let key = (Arc::clone(group), timer);
        if let Some(deadline) = self.deadlines.remove(&key) {
            self.queue.remove(&(deadline.queued, key));
        }
    }

    /// Whether a deadline is set.
    pub(super) fn is_set(&self, group: &Arc<str>, timer: Timer) -> bool {
        self.deadlines.contains_key(&(Arc::clone(group), timer))
    }

    /// Takes back all of a group that is gone.
    pub(super) fn cancel_group(&mut self, group: &Arc<str>) {
        let from = (Arc::clone(group), Timer::Join);
        let of_group = self.deadlines.range(from..).map(|(key, _)| key).take_while(|key| key.0 == *group);
        for (group, timer) in of_group.cloned().collect::<Vec<_>>() {
            self.cancel(&group, timer);
        }
    }

    /// Puts all off by the same time.
    pub(super) fn put_off(&mut self, by: Duration) {
        for deadline in self.deadlines.values_mut() {
            deadline.due += by;
            deadline.queued = deadline.due;
        }
        self.queue = self.deadlines.iter().map(|(key, deadline)| (deadline.queued, key.clone())).collect();
    }

    /// When to look again at the latest; `None`: never.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes out the next deadline that has passed.
    pub(super) fn pop(&mut self, now: Duration) -> Option<Key> {
        self.passed = self.passed.max(now);
        while let Some((at, _)) = self.queue.first()
            && *at <= now
        {
            let (_, key) = self.queue.pop_first()?;
            let deadline = self.deadlines.get_mut(&key).expect("what is queued is a deadline");
            if deadline.due <= now {
                self.deadlines.remove(&key);
                return Some(key);
            }
            deadline.queued = deadline.due;
            self.queue.insert((deadline.due, key));
        }
        None
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.deadlines.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_in_order_and_once() {
        let mut timers = Timers::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let at = Duration::from_secs;
        timers.set(&a, Timer::Join, at(5));
        timers.set(&b, Timer::Join, at(3));
        timers.set(&a, Timer::Session("m".into()), at(4));
        assert_eq!(timers.next_deadline(), Some(at(3)));
        assert_eq!(timers.pop(at(2)), None);
        // Put off, brought forward, and both.
        timers.set(&b, Timer::Join, at(9));
        timers.set(&a, Timer::Join, at(1));
        timers.set(&b, Timer::Join, at(8));
        timers.set(&b, Timer::Join, at(7));
        assert_eq!(timers.pop(at(4)), Some((Arc::clone(&a), Timer::Join)));
        assert_eq!(timers.pop(at(4)), Some((Arc::clone(&a), Timer::Session("m".into()))));
        assert_eq!(timers.pop(at(4)), None);
        assert_eq!(timers.next_deadline(), Some(at(7)));
        timers.set(&b, Timer::Join, at(5));
        assert_eq!(timers.pop(at(6)), Some((b, Timer::Join)));
        assert_eq!((timers.pop(at(100)), timers.len()), (None, 0));
    }

    #[test]
    fn what_is_set_while_deadlines_are_taken_out_has_not_passed() {
        let mut timers = Timers::default();
        let group: Arc<str> = "g".into();
        let now = Duration::from_secs(5);
        timers.set(&group, Timer::Join, now);
        let mut taken = 0;
        while let Some((group, timer)) = timers.pop(now) {
            taken += 1;
            assert_eq!(taken, 1);
            timers.set(&group, timer, now);
        }
        assert!(timers.next_deadline().is_some_and(|next| next > now));
    }

    #[test]
    fn all_may_be_put_off() {
        let mut timers = Timers::default();
        let group: Arc<str> = "g".into();
        let at = Duration::from_secs;
        timers.set(&group, Timer::Join, at(1));
        timers.set(&group, Timer::Sync, at(2));
        timers.set(&group, Timer::Sync, at(5));
        timers.put_off(at(10));
        assert_eq!((timers.pop(at(10)), timers.next_deadline()), (None, Some(at(11))));
        assert_eq!(timers.pop(at(14)), Some((Arc::clone(&group), Timer::Join)));
        assert_eq!(timers.pop(at(14)), None);
        timers.cancel(&group, Timer::Sync);
        assert_eq!((timers.pop(at(100)), timers.len(), timers.queue.len()), (None, 0, 0));
    }

    #[test]
    fn what_is_cancelled_does_not_come() {
        let mut timers = Timers::default();
        let group: Arc<str> = "g".into();
        for (member, after) in [("x", 1), ("y", 2), ("z", 3)] {
            timers.set(&group, Timer::Session(member.into()), Duration::from_secs(after));
        }
        timers.set(&"h".into(), Timer::Sync, Duration::from_secs(9));
        timers.set(&group, Timer::Session("x".into()), Duration::from_secs(7));
        timers.cancel(&group, Timer::Session("x".into()));
        timers.cancel(&group, Timer::Join);
        timers.cancel_group(&group);
        assert_eq!(timers.pop(Duration::from_secs(10)), Some(("h".into(), Timer::Sync)));
        assert_eq!(
            (timers.pop(Duration::from_secs(10)), timers.queue.len(), timers.deadlines.len()),
            (None, 0, 0)
        );
    }
}
