//! What is kept of a consumer group, record by record. Each has the key of its kind, the latest of a key counts, and
//! `None` is the tombstone that ends it.

use std::sync::Arc;

use bytes::Bytes;

use crate::coordinator::assignor::Partitions;
use crate::types::PartitionId;

/// A change of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The group: its epoch, and the topics that it was made for.
    Epoch(Option<GroupEpoch>),
    /// A member: what it said about itself.
    Member(Arc<str>, Option<Arc<MemberMetadata>>),
    /// A regular expression that members subscribe by.
    Expression(Arc<str>, Option<Arc<ResolvedExpression>>),
    /// The epoch for which all targets were computed.
    TargetEpoch(Option<TargetEpoch>),
    /// What a member is to have.
    Target(Arc<str>, Option<Arc<Partitions>>),
    /// What a member has.
    Current(Arc<str>, Option<CurrentAssignment>),
}

impl Change {
    /// Whether it takes back what its key stands for.
    pub(super) fn is_tombstone(&self) -> bool {
        *self == self.to_tombstone()
    }

    /// What takes this back.
    pub(super) fn to_tombstone(&self) -> Change {
        match self {
            Change::Epoch(_) => Change::Epoch(None),
            Change::Member(id, _) => Change::Member(Arc::clone(id), None),
            Change::Expression(regex, _) => Change::Expression(Arc::clone(regex), None),
            Change::TargetEpoch(_) => Change::TargetEpoch(None),
            Change::Target(id, _) => Change::Target(Arc::clone(id), None),
            Change::Current(id, _) => Change::Current(Arc::clone(id), None),
        }
    }
}

/// See [`Change::Epoch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupEpoch {
    /// Rises with every change that asks for new targets.
    pub epoch: i32,
    /// Hash of the topics subscribed to, as they were.
    pub metadata_hash: i64,
}

/// See [`Change::TargetEpoch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetEpoch {
    /// The group's epoch for which the targets are.
    pub epoch: i32,
    /// When they were computed, in milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
}

/// See [`Change::Expression`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedExpression {
    /// The topics that match, in rising order.
    pub topics: Vec<Arc<str>>,
    /// Offset of the metadata image that was searched.
    pub image_offset: i64,
    /// When it was, in milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
}

/// What a member said about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberMetadata {
    /// Its name over restarts; members that have one are static.
    pub instance_id: Option<Arc<str>>,
    /// Where it is.
    pub rack_id: Option<Arc<str>>,
    /// What its client calls itself.
    pub client_id: Arc<str>,
    /// The address that it speaks from.
    pub client_host: Arc<str>,
    /// The topics that it subscribes to, in rising order, each once.
    pub subscribed_topic_names: Vec<Arc<str>>,
    /// The expression by which it subscribes to others; empty is as good as none.
    pub subscribed_topic_regex: Option<Arc<str>>,
    /// How long it may take to give up partitions.
    pub rebalance_timeout_ms: i32,
    /// The assignor that it would like.
    pub server_assignor: Option<Arc<str>>,
    /// Set for members that speak the classic protocol.
    pub classic: Option<ClassicMember>,
}

impl MemberMetadata {
    /// The expression by which it subscribes, if there is any.
    pub fn expression(&self) -> Option<&Arc<str>> {
        self.subscribed_topic_regex.as_ref().filter(|regex| !regex.is_empty())
    }

    /// Roughly what it takes in memory and in the log.
    pub(super) fn len_bytes(&self) -> usize {
        let texts = [&self.instance_id, &self.rack_id, &self.subscribed_topic_regex].into_iter().flatten();
        let texts = texts.chain([&self.client_id, &self.client_host]).chain(&self.subscribed_topic_names);
        let classic = self.classic.iter().flat_map(|classic| &classic.supported_protocols);
        texts.map(|text| size_of::<Arc<str>>() + text.len()).sum::<usize>()
            + classic.map(|(name, metadata)| name.len() + metadata.len()).sum::<usize>()
    }
}

/// What is kept of a member that speaks the classic protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassicMember {
    /// Its own session timeout.
    pub session_timeout_ms: i32,
    /// The assignors that it offered, with its subscription in the encoding of each.
    pub supported_protocols: Vec<(Arc<str>, Bytes)>,
}

/// Where a member is on its way to its target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemberState {
    /// It has what it is to have in its epoch.
    #[default]
    Stable,
    /// It was told to give up partitions and has not said that it did.
    UnrevokedPartitions,
    /// It waits for partitions that others have not given up yet.
    UnreleasedPartitions,
    /// A state that a later release has written.
    Unknown,
}

impl MemberState {
    /// Kafka's number.
    pub fn code(self) -> i8 {
        match self {
            MemberState::Stable => 0,
            MemberState::UnrevokedPartitions => 1,
            MemberState::UnreleasedPartitions => 2,
            MemberState::Unknown => 127,
        }
    }

    /// The state of this number.
    pub fn from_code(code: i8) -> MemberState {
        match code {
            0 => MemberState::Stable,
            1 => MemberState::UnrevokedPartitions,
            2 => MemberState::UnreleasedPartitions,
            _ => MemberState::Unknown,
        }
    }
}

/// What a member has, and has to give up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CurrentAssignment {
    /// The member's epoch: 0 before it has any, -2 for a static member that is away.
    pub member_epoch: i32,
    /// The epoch before, from which a member comes whose last answer was lost.
    pub previous_member_epoch: i32,
    /// Where it is on its way.
    pub state: MemberState,
    /// What it has been told to own.
    pub assigned: Partitions,
    /// What it has been told to give up, and may own still.
    pub pending_revocation: Partitions,
    /// Since when it has each of those.
    pub since: AssignmentEpochs,
}

impl CurrentAssignment {
    /// What the member may own.
    pub(super) fn owned(&self) -> impl Iterator<Item = &PartitionId> {
        self.assigned.iter().chain(self.pending_revocation.iter())
    }
}

/// The epoch in which a member was given each of its partitions (KIP-1251): what it commits of one is its own to commit
/// since then, also when the member has moved on to a newer epoch meanwhile. In rising order of partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AssignmentEpochs(Arc<[(PartitionId, i32)]>);

impl AssignmentEpochs {
    /// Of a member that has all of it since one epoch.
    pub fn all(partitions: &Partitions, epoch: i32) -> AssignmentEpochs {
        partitions.iter().map(|partition| (*partition, epoch)).collect()
    }

    /// The epoch of one partition, if the member has it.
    pub fn of(&self, partition: PartitionId) -> Option<i32> {
        let place = self.0.binary_search_by_key(&partition, |(partition, _)| *partition).ok()?;
        Some(self.0[place].1)
    }

    /// Of what a member has from now on: as before, and this epoch for what it did not have.
    pub(super) fn carried<'a>(
        &self,
        owned: impl Iterator<Item = &'a PartitionId>,
        epoch: i32,
    ) -> AssignmentEpochs {
        let next: Vec<(PartitionId, i32)> =
            owned.map(|partition| (*partition, self.of(*partition).unwrap_or(epoch))).collect();
        let next: AssignmentEpochs = next.into_iter().collect();
        // Most steps change nothing: then there is one copy.
        if next == *self { self.clone() } else { next }
    }
}

impl FromIterator<(PartitionId, i32)> for AssignmentEpochs {
    fn from_iter<I: IntoIterator<Item = (PartitionId, i32)>>(epochs: I) -> AssignmentEpochs {
        let mut epochs = Vec::from_iter(epochs);
        epochs.sort_unstable();
        epochs.dedup_by_key(|(partition, _)| *partition);
        AssignmentEpochs(epochs.into())
    }
}
