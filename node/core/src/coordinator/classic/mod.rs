//! Classic groups: the coordinator keeps who is in, and one member, the leader, makes the assignment.
//!
//! ```text
//!             first join            all have joined, or time is up
//!   Empty ──────────────> PreparingRebalance ──────────────────> CompletingRebalance
//!     ^                     ^    ^     │ nobody came                    │ the leader's SyncGroup,
//!     └─────────────────────│────│─────┘                                │ written
//!                           │    └── a member joins, leaves, dies ──────┤
//!                           └─────── the same ───────────────────── Stable
//! ```
//!
//! Hard state is the group's record: a generation with its members and their assignments, written when the leader
//! has made them, or a group without members. All else is soft: the generation that is being formed, who waits for it
//! (`join` and `sync` tokens), who was only given an id (`pending`, KIP-394). A reload begins from the last generation
//! that was written; members of one that was not are told to join again.
//!
//! Invariants:
//! - **an assignment leaves only after the generation that it is part of is in the log**;
//! - a member id is in `members` or in `pending`, never in both; a static member's name leads to one member id;
//! - a member has at most one token parked; whoever removes a member answers it.

mod convert;
mod join;
mod members;
mod rebalance;
mod sync;

pub(in crate::coordinator) use convert::MovedMember;
pub(in crate::coordinator) use join::{MEMBER_ID_VERSION, new_member_id};
pub(in crate::coordinator) use members::join_refused;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flumen_wire::ErrorCode;
use flumen_wire::codec::Versioned;
use flumen_wire::group::consumer_protocol_subscription::ConsumerProtocolSubscription;
use flumen_wire::group::group_metadata_key::GroupMetadataKey;
use flumen_wire::group::group_metadata_value::{GroupMetadataValue, MemberMetadata};

use super::answer::{Answer, DescribedMember, GroupDescription, ListedGroup};
use super::consumer::Refused;
use super::groups::{Group, Groups};
use super::offsets::Aging;
use super::outbox::{Outbox, Token};
use super::record::Record;
use super::timers::{Timer, Timers};
use super::{Context, Coordinator};
use crate::limits::{GROUP_MEMBER_TOPICS_MAX, GROUP_MEMBERS_BYTES_MAX};

/// The type of protocols whose bytes the coordinator can read: that of Kafka's consumers.
pub(in crate::coordinator) const CONSUMER: &str = "consumer";
/// The version in which Kafka writes the group.
const VALUE_VERSION: i16 = 3;
/// No time.
const NO_TIME: i64 = -1;
/// How long a member that does not know its id yet may wait for its first generation: it cannot send heartbeats.
const NEW_MEMBER_TIMEOUT: Duration = Duration::from_secs(300);

/// How far a classic group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::coordinator) enum ClassicState {
    /// No members; perhaps offsets.
    Empty,
    /// Members are to join the next generation.
    PreparingRebalance,
    /// The generation stands; its leader is to bring the assignment.
    CompletingRebalance,
    /// Every member has its assignment, or may ask for it.
    Stable,
}

impl ClassicState {
    fn name(self) -> &'static str {
        match self {
            ClassicState::Empty => "Empty",
            ClassicState::PreparingRebalance => "PreparingRebalance",
            ClassicState::CompletingRebalance => "CompletingRebalance",
            ClassicState::Stable => "Stable",
        }
    }
}

/// A protocol that a member speaks, and what it says to it.
type Protocol = (Arc<str>, Bytes);

/// A member.
#[derive(Debug)]
pub(in crate::coordinator) struct Member {
    id: Arc<str>,
    /// Its static name (KIP-345).
    group_instance_id: Option<Arc<str>>,
    client_id: Arc<str>,
    client_host: Arc<str>,
    rebalance_timeout_ms: i32,
    session_timeout_ms: i32,
    /// By preference.
    protocols: Vec<Protocol>,
    assignment: Bytes,
    /// Its JoinGroup waits for the generation.
    join: Option<Token>,
    /// Its SyncGroup waits for the leader.
    sync: Option<Token>,
    /// It has never been in a generation: it may not know its id.
    is_new: bool,
}

/// A classic group. See the module.
#[derive(Debug)]
pub(in crate::coordinator) struct ClassicGroup {
    id: Arc<str>,
    /// Hard: the value of its record as it was last written; none for a group that only has offsets.
    written: Option<Arc<[u8]>>,
    state: ClassicState,
    /// When it came into that state, in wall time.
    state_since_ms: i64,
    protocol_type: Option<Arc<str>>,
    /// What the members of this generation speak.
    protocol: Option<Arc<str>>,
    generation_id: i32,
    leader: Option<Arc<str>>,
    members: BTreeMap<Arc<str>, Member>,
    static_members: BTreeMap<Arc<str>, Arc<str>>,
    /// Ids that were given out and have not joined yet (KIP-394).
    pending: BTreeSet<Arc<str>>,
    /// Members of this generation that have not asked for their assignment.
    pending_sync: BTreeSet<Arc<str>>,
    /// How many members speak each protocol.
    supported: BTreeMap<Arc<str>, usize>,
    /// How many members have a `join`.
    awaiting_join: usize,
    /// Bytes of what members say and are called, and of ids that were given out.
    bytes: usize,
    /// What the members of this generation read, where that is known.
    subscribed: Option<BTreeSet<Arc<str>>>,
    initial: Option<InitialRebalance>,
}

/// The first rebalance of a group that was empty: it waits for members that start at the same time.
#[derive(Clone, Copy, Debug)]
struct InitialRebalance {
    /// A member has come since the wait began.
    new_member_added: bool,
    /// What is left for waiting longer.
    remaining: Duration,
    /// What is being waited.
    delay: Duration,
}

/// What an event of a group may touch beside the group.
pub(in crate::coordinator) struct Effects<'a> {
    cx: &'a Context<'a>,
    timers: &'a mut Timers,
    outbox: &'a mut Outbox,
    /// To be written when the event is over.
    records: Vec<Record>,
}

impl Effects<'_> {
    fn session(&mut self, group: &Arc<str>, member: &Arc<str>, timeout: Duration) {
        self.timers.set(group, Timer::Session(Arc::clone(member)), self.cx.now + timeout);
    }
}

/// What the members of a group may say, and what they may be assigned, in bytes of each: the group's record, which has both
/// and some more, has to fit the log.
fn members_bytes_max(cx: &Context<'_>) -> usize {
    GROUP_MEMBERS_BYTES_MAX.min(cx.decision_bytes_max / 3)
}

/// Times of clients are signed; what is negative is none.
fn millis(ms: i32) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

impl ClassicGroup {
    /// A group without members, of which nothing is written.
    pub(in crate::coordinator) fn new(id: Arc<str>) -> ClassicGroup {
        ClassicGroup {
            id,
            written: None,
            state: ClassicState::Empty,
            state_since_ms: NO_TIME,
            protocol_type: None,
            protocol: None,
            generation_id: 0,
            leader: None,
            members: BTreeMap::new(),
            static_members: BTreeMap::new(),
            pending: BTreeSet::new(),
            pending_sync: BTreeSet::new(),
            supported: BTreeMap::new(),
            awaiting_join: 0,
            bytes: 0,
            subscribed: None,
            initial: None,
        }
    }

    pub(in crate::coordinator) fn state(&self) -> ClassicState {
        self.state
    }

    fn enter(&mut self, cx: &Context<'_>, state: ClassicState) {
        self.state = state;
        self.state_since_ms = cx.now_ms;
    }

    /// Whether the coordinator can read what members say.
    pub(in crate::coordinator) fn uses_consumer_protocol(&self) -> bool {
        self.protocol_type.as_deref() == Some(CONSUMER)
    }

    /// Whether the group reads a topic; where that is not known, a group of consumers counts as reading all.
    pub(in crate::coordinator) fn is_subscribed_to(&self, topic: &str) -> bool {
        match &self.subscribed {
            Some(topics) => topics.contains(topic),
            None => self.uses_consumer_protocol() && self.state != ClassicState::Empty,
        }
    }

    /// From when its offsets age.
    pub(in crate::coordinator) fn aging(&self) -> Aging {
        match (&self.protocol_type, self.state) {
            // Offsets are all that it is.
            (None, _) => Aging::SinceCommit,
            (Some(_), ClassicState::Empty) if self.state_since_ms == NO_TIME => Aging::SinceCommit,
            (Some(_), ClassicState::Empty) => Aging::Since(self.state_since_ms),
            // What it does not read any more may go.
            (Some(_), ClassicState::Stable) if self.subscribed.is_some() => Aging::SinceCommit,
            _ => Aging::Never,
        }
    }

    /// Whether nobody is in it or about to be.
    pub(in crate::coordinator) fn is_abandoned(&self) -> bool {
        self.state == ClassicState::Empty && self.pending.is_empty()
    }

    /// Why DeleteGroups may not take it.
    pub(in crate::coordinator) fn refuses_deletion(&self) -> Option<ErrorCode> {
        (self.state != ClassicState::Empty).then_some(ErrorCode::NonEmptyGroup)
    }

    pub(in crate::coordinator) fn listed(&self) -> ListedGroup {
        ListedGroup {
            group_id: Arc::clone(&self.id),
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            state: self.state.name(),
            group_type: "classic",
        }
    }

    fn described(&self) -> GroupDescription {
        let protocol = self.protocol.as_ref().filter(|_| self.state == ClassicState::Stable);
        let members = self.members.values().map(|member| DescribedMember {
            member_id: Arc::clone(&member.id),
            group_instance_id: member.group_instance_id.clone(),
            client_id: Arc::clone(&member.client_id),
            client_host: Arc::clone(&member.client_host),
            metadata: protocol.map(|protocol| member.metadata(protocol)).unwrap_or_default(),
            assignment: member.assignment.clone(),
        });
        GroupDescription {
            state: self.state.name(),
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: protocol.cloned().unwrap_or_default(),
            members: members.collect(),
        }
    }
}

/// Hard state.
impl ClassicGroup {
    /// The record of the group as it is now.
    pub(in crate::coordinator) fn record(&self) -> Record {
        let members = self.members.values().map(|member| MemberMetadata {
            member_id: &member.id,
            group_instance_id: member.group_instance_id.as_deref(),
            client_id: &member.client_id,
            client_host: &member.client_host,
            rebalance_timeout: member.rebalance_timeout_ms,
            session_timeout: member.session_timeout_ms,
            subscription: self.protocol.as_ref().map_or(&[], |protocol| member.said(protocol)),
            assignment: &member.assignment,
        });
        let value = GroupMetadataValue {
            protocol_type: self.protocol_type.as_deref().unwrap_or_default(),
            generation: self.generation_id,
            protocol: self.protocol.as_deref(),
            leader: self.leader.as_deref(),
            current_state_timestamp: self.state_since_ms,
            members: members.collect(),
        };
        Record::new(&GroupMetadataKey { group: &self.id }, &value, VALUE_VERSION)
    }

    pub(in crate::coordinator) fn snapshot(&self) -> Option<Record> {
        let key = GroupMetadataKey { group: &self.id };
        let written = self.written.as_ref()?;
        Some(Record { value: Some(written.to_vec()), ..Record::tombstone(&key) })
    }

    /// Soft state from what was loaded.
    fn revive(&mut self, fx: &mut Effects<'_>) {
        let Some(written) = self.written.clone() else { return };
        let value = GroupMetadataValue::from_versioned(&written).expect("it was read when it was replayed");
        self.protocol_type = Some(value.protocol_type.into()).filter(|name: &Arc<str>| !name.is_empty());
        self.protocol = value.protocol.map(Into::into);
        self.generation_id = value.generation;
        self.leader = value.leader.map(Into::into);
        self.state_since_ms = value.current_state_timestamp;
        self.state = if value.members.is_empty() { ClassicState::Empty } else { ClassicState::Stable };
        for said in &value.members {
            if self.members.contains_key(said.member_id) {
                // No coordinator writes that.
                continue;
            }
            let protocol: Arc<str> = value.protocol.unwrap_or_default().into();
            let timeouts = (said.rebalance_timeout, said.session_timeout);
            let member = Member {
                id: said.member_id.into(),
                group_instance_id: said.group_instance_id.map(Into::into),
                client_id: said.client_id.into(),
                client_host: said.client_host.into(),
                // Records of old have one time for both.
                rebalance_timeout_ms: if timeouts.0 < 0 { timeouts.1 } else { timeouts.0 },
                session_timeout_ms: timeouts.1,
                protocols: vec![(protocol, Bytes::copy_from_slice(said.subscription))],
                assignment: Bytes::copy_from_slice(said.assignment),
                join: None,
                sync: None,
                is_new: false,
            };
            fx.session(&self.id, &member.id, millis(member.session_timeout_ms));
            self.insert(member);
        }
        self.subscribed = self.subscriptions();
    }

    /// The topics that the members of this generation read; none where what they say cannot be read, or is too much to be kept.
    fn subscriptions(&self) -> Option<BTreeSet<Arc<str>>> {
        if !self.uses_consumer_protocol() {
            return None;
        }
        let mut topics = BTreeSet::new();
        let Some(protocol) = &self.protocol else {
            return self.members.is_empty().then_some(topics);
        };
        for member in self.members.values() {
            let said = ConsumerProtocolSubscription::from_versioned_lenient(member.said(protocol)).ok()?;
            if topics.len() + said.topics.len() > GROUP_MEMBER_TOPICS_MAX {
                return None;
            }
            topics.extend(said.topics.into_iter().map(Arc::from));
        }
        Some(topics)
    }
}

impl Groups {
    /// A classic group was written.
    pub(in crate::coordinator) fn replay_classic(
        &mut self,
        id: &str,
        _said: &GroupMetadataValue<'_>,
        value: &[u8],
    ) {
        if self.classic(id).is_none() {
            // A consumer group of that name is gone then: the group was turned into a classic one.
            let id: Arc<str> = id.into();
            self.insert(Arc::clone(&id), Group::Classic(ClassicGroup::new(id)));
        }
        self.classic_mut(id).expect("it is there").written = Some(value.into());
    }
}

impl Coordinator {
    /// Lets an event happen to a classic group, and writes the records that come of it. `None`: there is none.
    fn with_classic<R>(
        &mut self,
        cx: &Context<'_>,
        id: &str,
        event: impl FnOnce(&mut ClassicGroup, &mut Effects<'_>) -> R,
    ) -> Option<R> {
        let Coordinator { groups, timers, outbox, .. } = self;
        let group = groups.classic_mut(id)?;
        let mut fx = Effects { cx, timers, outbox, records: Vec::new() };
        let result = event(group, &mut fx);
        let records = fx.records;
        self.write_all(records);
        Some(result)
    }

    /// The tombstone of a classic group: nobody is in it.
    pub(in crate::coordinator) fn remove_classic(&mut self, id: &str) {
        if self.groups.classic(id).is_some()
            && let Some((id, Group::Classic(group))) = self.groups.remove_entry(id)
        {
            assert!(group.awaiting_join == 0, "a group is deleted when it has no members");
            self.timers.cancel_group(&id);
        }
    }

    /// The log is loaded: sessions of all members begin.
    pub(in crate::coordinator) fn classic_groups_loaded(&mut self, cx: &Context<'_>) {
        let classic = self.groups.iter().filter(|(_, group)| matches!(group, Group::Classic(_)));
        for id in classic.map(|(id, _)| Arc::clone(id)).collect::<Vec<_>>() {
            self.with_classic(cx, &id, |group, fx| {
                group.revive(fx);
                // The bound may have become lower since.
                if group.members.len() > fx.cx.config.max_size as usize {
                    group.prepare_rebalance(fx);
                }
            });
        }
    }

    pub(in crate::coordinator) fn describe_group(&self, id: &str) -> Answer {
        let refused = |text: String| Err(Refused::new(ErrorCode::GroupIdNotFound, text));
        Answer::Described(match self.groups.get(id) {
            Some(Group::Classic(group)) => Ok(group.described()),
            Some(Group::Consumer(_)) => refused(format!("Group {id} is not a classic group.")),
            None => refused(format!("Group {id} not found.")),
        })
    }
}
