//! The registry: every group of a coordinator, whatever its kind.
//!
//! A group begins with the first JoinGroup or ConsumerGroupHeartbeat, or with the first offset that is committed in
//! its name (a *simple* group: a classic one without a type of protocols); it ends with its tombstones.

use std::collections::BTreeMap;
use std::sync::Arc;

use flumen_wire::ErrorCode;
use flumen_wire::group::group_metadata_key::GroupMetadataKey;

use super::answer::ListedGroup;
use super::classic::{ClassicGroup, ClassicState};
use super::consumer::ConsumerGroup;
use super::record::Record;
use super::{Context, Coordinator};

/// A group, by kind.
#[derive(Debug)]
pub(super) enum Group {
    /// Its members make the assignment; also a group that only commits offsets.
    Classic(ClassicGroup),
    /// Its coordinator makes the assignment (KIP-848).
    Consumer(ConsumerGroup),
}

/// All groups of a coordinator, by id.
#[derive(Debug, Default)]
pub(super) struct Groups {
    by_id: BTreeMap<Arc<str>, Group>,
}

/// Groups by type and state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct GroupCounts {
    pub classic_empty: usize,
    pub classic_preparing_rebalance: usize,
    pub classic_completing_rebalance: usize,
    pub classic_stable: usize,
    pub consumer: usize,
}

impl GroupCounts {
    /// Adds those of another coordinator.
    pub fn add(&mut self, other: &GroupCounts) {
        self.classic_empty += other.classic_empty;
        self.classic_preparing_rebalance += other.classic_preparing_rebalance;
        self.classic_completing_rebalance += other.classic_completing_rebalance;
        self.classic_stable += other.classic_stable;
        self.consumer += other.consumer;
    }
}

impl Groups {
    pub(super) fn get(&self, id: &str) -> Option<&Group> {
        self.by_id.get(id)
    }

    /// The group, if it is a classic one.
    pub(super) fn classic(&self, id: &str) -> Option<&ClassicGroup> {
        match self.by_id.get(id) {
            Some(Group::Classic(group)) => Some(group),
            _ => None,
        }
    }

    /// The group, if it is a classic one.
    pub(super) fn classic_mut(&mut self, id: &str) -> Option<&mut ClassicGroup> {
        match self.by_id.get_mut(id) {
            Some(Group::Classic(group)) => Some(group),
            _ => None,
        }
    }

    /// The group, if it is a consumer group.
    pub(super) fn consumer(&self, id: &str) -> Option<&ConsumerGroup> {
        match self.by_id.get(id) {
            Some(Group::Consumer(group)) => Some(group),
            _ => None,
        }
    }

    /// The group, if it is a consumer group.
    pub(super) fn consumer_mut(&mut self, id: &str) -> Option<&mut ConsumerGroup> {
        match self.by_id.get_mut(id) {
            Some(Group::Consumer(group)) => Some(group),
            _ => None,
        }
    }

    /// Puts a group in, in place of the one that had its id.
    pub(super) fn insert(&mut self, id: Arc<str>, group: Group) -> Option<Group> {
        self.by_id.insert(id, group)
    }

    /// Takes a group out.
    pub(super) fn remove(&mut self, id: &str) -> Option<Group> {
        self.by_id.remove(id)
    }

    /// Takes a group out, with its id.
    pub(super) fn remove_entry(&mut self, id: &str) -> Option<(Arc<str>, Group)> {
        self.by_id.remove_entry(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Group)> {
        self.by_id.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// An offset was committed in the name of a group: there is one, if only for that.
    pub(super) fn simple_if_absent(&mut self, id: &str) {
        if !self.by_id.contains_key(id) {
            let id: Arc<str> = id.into();
            self.by_id.insert(Arc::clone(&id), Group::Classic(ClassicGroup::new(id)));
        }
    }

    /// Groups whose state and type are among those asked for; an empty list asks for all. Case does not matter.
    pub(super) fn list(&self, states: &[&str], types: &[&str]) -> Vec<ListedGroup> {
        let is_asked = |asked: &[&str], name: &str| {
            asked.is_empty() || asked.iter().any(|asked| asked.eq_ignore_ascii_case(name))
        };
        let listed = self.by_id.values().map(|group| match group {
            Group::Classic(group) => group.listed(),
            Group::Consumer(group) => group.listed(),
        });
        listed.filter(|group| is_asked(states, group.state) && is_asked(types, group.group_type)).collect()
    }

    pub(super) fn counts(&self) -> GroupCounts {
        let mut counts = GroupCounts::default();
        for group in self.by_id.values() {
            let count = match group {
                Group::Classic(group) => match group.state() {
                    ClassicState::Empty => &mut counts.classic_empty,
                    ClassicState::PreparingRebalance => &mut counts.classic_preparing_rebalance,
                    ClassicState::CompletingRebalance => &mut counts.classic_completing_rebalance,
                    ClassicState::Stable => &mut counts.classic_stable,
                },
                Group::Consumer(_) => &mut counts.consumer,
            };
            *count += 1;
        }
        counts
    }

    /// Hard state of all groups, as records.
    pub(super) fn snapshot(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for group in self.by_id.values() {
            match group {
                Group::Classic(group) => records.extend(group.snapshot()),
                Group::Consumer(group) => group.snapshot(&mut records),
            }
        }
        records
    }
}

/// What is asked of a group of any kind.
impl Coordinator {
    /// DeleteGroups: a group without members goes, with its offsets.
    pub(super) fn delete_group(&mut self, cx: &Context<'_>, id: &str) -> ErrorCode {
        let refusal = match self.groups.get(id) {
            None => return ErrorCode::GroupIdNotFound,
            Some(Group::Classic(group)) => group.refuses_deletion(),
            Some(Group::Consumer(group)) => group.refuses_deletion(),
        };
        if let Some(refusal) = refusal {
            return refusal;
        }
        let offsets = self.offsets.tombstones(id);
        self.write_apart(cx, offsets);
        self.write_group_tombstones(id);
        ErrorCode::None
    }

    /// Writes what ends a group that has no members.
    pub(super) fn write_group_tombstones(&mut self, id: &str) {
        let tombstones = match self.groups.get(id) {
            None => return,
            Some(Group::Classic(_)) => vec![Record::tombstone(&GroupMetadataKey { group: id })],
            Some(Group::Consumer(group)) => group.tombstones(),
        };
        self.write_all(tombstones);
    }
}
