//! The state of a consumer group, and how records change it.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::assignor::Partitions;
use super::change::{
    Change, CurrentAssignment, GroupEpoch, MemberMetadata, MemberState, ResolvedExpression, TargetEpoch,
};
use crate::types::PartitionId;

/// A consumer group. Cheap to clone: what is large in it is shared until it changes.
#[derive(Clone, Debug)]
pub struct ConsumerGroup {
    pub(super) id: Arc<str>,
    pub(super) epoch: GroupEpoch,
    pub(super) target_epoch: TargetEpoch,
    pub(super) members: BTreeMap<Arc<str>, Arc<Member>>,
    pub(super) targets: BTreeMap<Arc<str>, Arc<Partitions>>,
    pub(super) expressions: BTreeMap<Arc<str>, Arc<ResolvedExpression>>,
    /// Who has each instance id. Follows from the members.
    pub(super) static_members: BTreeMap<Arc<str>, Arc<str>>,
    /// Who may own each partition. Follows from what the members have and have to give up.
    owners: HashMap<PartitionId, Arc<str>>,
    /// The topics, as the image counts their changes, that those of this group were last compared with. No state: only spares comparing again.
    pub(super) compared_with: Cell<Option<u64>>,
}

/// A member of a consumer group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// What it said about itself.
    pub metadata: Arc<MemberMetadata>,
    /// What it has.
    pub current: CurrentAssignment,
}

impl PartialEq for ConsumerGroup {
    fn eq(&self, other: &ConsumerGroup) -> bool {
        self.id == other.id
            && self.epoch == other.epoch
            && self.target_epoch == other.target_epoch
            && self.members == other.members
            && self.targets == other.targets
            && self.expressions == other.expressions
            && self.static_members == other.static_members
            && self.owners == other.owners
    }
}

impl ConsumerGroup {
    /// A group of which nothing is known yet.
    pub fn new(id: Arc<str>) -> ConsumerGroup {
        ConsumerGroup {
            id,
            epoch: GroupEpoch::default(),
            target_epoch: TargetEpoch::default(),
            members: BTreeMap::new(),
            targets: BTreeMap::new(),
            expressions: BTreeMap::new(),
            static_members: BTreeMap::new(),
            owners: HashMap::new(),
            compared_with: Cell::new(None),
        }
    }

    /// Applies a record.
    pub fn replay(&mut self, record: &Change) {
        match record {
            Change::Epoch(epoch) => self.epoch = epoch.unwrap_or_default(),
            Change::TargetEpoch(epoch) => self.target_epoch = epoch.unwrap_or_default(),
            Change::Member(id, Some(metadata)) => self.describe_member(id, metadata),
            Change::Member(id, None) => self.remove_member(id),
            Change::Current(id, Some(current)) => self.set_current(id, current.clone()),
            Change::Current(id, None) => {
                if self.members.contains_key(id) {
                    self.set_current(id, CurrentAssignment::default());
                }
            }
            Change::Target(id, Some(target)) => drop(self.targets.insert(Arc::clone(id), Arc::clone(target))),
            Change::Target(id, None) => drop(self.targets.remove(id)),
            Change::Expression(regex, Some(resolved)) => {
                self.expressions.insert(Arc::clone(regex), Arc::clone(resolved));
            }
            Change::Expression(regex, None) => drop(self.expressions.remove(regex)),
        }
    }

    fn describe_member(&mut self, id: &Arc<str>, metadata: &Arc<MemberMetadata>) {
        self.forget_instance(id);
        if let Some(instance_id) = &metadata.instance_id {
            self.static_members.insert(Arc::clone(instance_id), Arc::clone(id));
        }
        Arc::make_mut(self.members.entry(Arc::clone(id)).or_default()).metadata = Arc::clone(metadata);
    }

    fn remove_member(&mut self, id: &Arc<str>) {
        if self.members.contains_key(id) {
            self.set_current(id, CurrentAssignment::default());
            self.forget_instance(id);
            self.members.remove(id);
        }
    }

    fn forget_instance(&mut self, id: &Arc<str>) {
        if let Some(instance_id) = self.members.get(id).and_then(|member| member.metadata.instance_id.clone())
            && self.static_members.get(&instance_id) == Some(id)
        {
            self.static_members.remove(&instance_id);
        }
    }

    fn set_current(&mut self, id: &Arc<str>, current: CurrentAssignment) {
        let member = Arc::make_mut(self.members.entry(Arc::clone(id)).or_default());
        let before = std::mem::replace(&mut member.current, current);
        for partition in before.owned() {
            if self.owners.get(partition) == Some(id) {
                self.owners.remove(partition);
            }
        }
        for partition in member.current.owned() {
            self.owners.insert(*partition, Arc::clone(id));
        }
    }
}

/// Look-ups.
impl ConsumerGroup {
    /// The group's epoch; 0 before it has any.
    pub fn epoch(&self) -> i32 {
        self.epoch.epoch
    }

    /// A member.
    pub fn member(&self, id: &str) -> Option<&Member> {
        self.members.get(id).map(Arc::as_ref)
    }

    /// The member with this instance id.
    pub fn static_member(&self, instance_id: &str) -> Option<(&Arc<str>, &Member)> {
        self.member_entry(self.static_members.get(instance_id)?)
    }

    /// A member, with the group's own copy of its id.
    pub(super) fn member_entry(&self, id: &str) -> Option<(&Arc<str>, &Member)> {
        self.members.get_key_value(id).map(|(id, member)| (id, &**member))
    }

    /// All members.
    pub fn members(&self) -> impl ExactSizeIterator<Item = (&Arc<str>, &Member)> {
        self.members.iter().map(|(id, member)| (id, &**member))
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// What a member is to have.
    pub(super) fn target(&self, member_id: &str) -> Arc<Partitions> {
        self.targets.get(member_id).cloned().unwrap_or_default()
    }

    /// Who may own a partition.
    pub(super) fn owner(&self, partition: &PartitionId) -> Option<&Arc<str>> {
        self.owners.get(partition)
    }

    /// Whether any member subscribes to a topic.
    pub fn is_subscribed_to(&self, topic: &str) -> bool {
        let by_name = |names: &[Arc<str>]| names.binary_search_by(|name| (**name).cmp(topic)).is_ok();
        self.members.values().any(|member| by_name(&member.metadata.subscribed_topic_names))
            || self.expressions.values().any(|resolved| by_name(&resolved.topics))
    }

    /// The changes that make this group out of a new one, the group's epoch first.
    pub(super) fn changes(&self) -> Vec<Change> {
        let mut changes = vec![Change::Epoch(Some(self.epoch)), Change::TargetEpoch(Some(self.target_epoch))];
        for (regex, resolved) in &self.expressions {
            changes.push(Change::Expression(Arc::clone(regex), Some(Arc::clone(resolved))));
        }
        for (id, member) in &self.members {
            changes.push(Change::Member(Arc::clone(id), Some(Arc::clone(&member.metadata))));
            changes.push(Change::Current(Arc::clone(id), Some(member.current.clone())));
        }
        for (id, target) in &self.targets {
            changes.push(Change::Target(Arc::clone(id), Some(Arc::clone(target))));
        }
        changes
    }

    /// All topics that anybody subscribes to, whether they are there or not.
    pub(super) fn subscribed_topics(&self) -> BTreeSet<&str> {
        let mut subscriptions: Vec<&[Arc<str>]> = Vec::new();
        let of_members = self.members.values().map(|member| &member.metadata.subscribed_topic_names[..]);
        for names in of_members.chain(self.expressions.values().map(|resolved| &resolved.topics[..])) {
            // Most groups are of one mind.
            if subscriptions.last() != Some(&names) {
                subscriptions.push(names);
            }
        }
        subscriptions.into_iter().flatten().map(AsRef::as_ref).collect()
    }

    /// The topics that one member subscribes to, whether they are there or not.
    pub(super) fn topics_of<'a>(&'a self, metadata: &'a MemberMetadata) -> BTreeSet<&'a str> {
        let resolved = metadata.expression().and_then(|regex| self.expressions.get(regex));
        let matching = resolved.iter().flat_map(|resolved| &resolved.topics);
        metadata.subscribed_topic_names.iter().chain(matching).map(AsRef::as_ref).collect()
    }

    /// Whether every member has what it is to have.
    pub(super) fn is_reconciled(&self) -> bool {
        self.members.values().all(|member| {
            member.current.state == MemberState::Stable
                && member.current.member_epoch == self.target_epoch.epoch
        })
    }
}

/// A group with the records of the decision so far. The group is copied when the first of them comes.
pub(super) struct Draft<'a> {
    pub(super) group: Cow<'a, ConsumerGroup>,
    pub(super) records: Vec<Change>,
}

impl<'a> Draft<'a> {
    pub(super) fn of(group: &'a ConsumerGroup) -> Draft<'a> {
        Draft { group: Cow::Borrowed(group), records: Vec::new() }
    }

    pub(super) fn push(&mut self, record: Change) {
        self.group.to_mut().replay(&record);
        self.records.push(record);
    }
}
