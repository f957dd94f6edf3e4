//! Members that speak the classic protocol, in a consumer group: an application changes over one member after the other
//! (KIP-848, online migration).
//!
//! The coordinator assigns to all. Such a member's generation is its member epoch, and it hears of what it is to own by
//! the ways of its own protocol:
//!
//! ```text
//!   Heartbeat ── REBALANCE_IN_PROGRESS when it would be told something new
//!        └──> JoinGroup: says what it owns, takes one step towards its target; never leads
//!                 └──> SyncGroup: hears what it has
//! ```
//!
//! It has its rebalance timeout to join again, and then to ask for its assignment.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use flumen_wire::ErrorCode;
use flumen_wire::codec::Versioned;
use flumen_wire::group::consumer_protocol_assignment::{ConsumerProtocolAssignment, TopicPartition};
use flumen_wire::group::consumer_protocol_subscription::ConsumerProtocolSubscription;
use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
use flumen_wire::messages::join_group_request::JoinGroupRequest;
use flumen_wire::messages::leave_group_request::MemberIdentity;
use flumen_wire::messages::sync_group_request::SyncGroupRequest;

use super::change::{ClassicMember, MemberMetadata, MemberState};
use super::group::{ConsumerGroup, Draft, Member};
use super::heartbeat::{Admitted, Arrival, Client, member_timers};
use super::{Context, Decision, TimerChange};
use crate::coordinator::assignor::Partitions;
use crate::coordinator::classic::CONSUMER;
use crate::limits::GROUP_MEMBER_TOPICS_MAX;
use crate::metadata::Image;
use crate::types::PartitionId;

/// A JoinGroup to a consumer group.
#[derive(Clone, Copy, Debug)]
pub struct ClassicJoin<'a> {
    /// As it came.
    pub request: &'a JoinGroupRequest<'a>,
    /// Who sent it.
    pub client: Client<'a>,
    /// The member's id: its own, or a new one.
    pub member_id: &'a str,
}

/// What a member hears that has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassicJoined {
    /// Its id.
    pub member_id: Arc<str>,
    /// Its epoch.
    pub generation_id: i32,
    /// The first of the protocols that it offered.
    pub protocol_name: Arc<str>,
}

/// What a member hears that asks for its assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassicSynced {
    /// The protocol of its generation.
    pub protocol_name: Arc<str>,
    /// What it has, in the encoding of that protocol.
    pub assignment: Bytes,
}

impl ConsumerGroup {
    /// Whether there are members, and all of them speak the classic protocol.
    pub fn is_all_classic(&self) -> bool {
        !self.is_empty() && self.members.values().all(|member| member.metadata.classic.is_some())
    }

    /// Decides on a JoinGroup.
    pub fn classic_join(
        &self,
        context: &Context<'_>,
        join: &ClassicJoin<'_>,
    ) -> Result<Decision<ClassicJoined>, ErrorCode> {
        let request = join.request;
        self.check_room(context, join.member_id, request.group_instance_id)
            .map_err(|refused| refused.code)?;
        self.check_protocols(request)?;
        let said = subscription(request.protocols[0].metadata).ok_or(ErrorCode::InconsistentGroupProtocol)?;
        let owned = partitions(
            context.image,
            said.owned_partitions.iter().map(|one| (one.topic, &one.partitions[..])),
        );
        let mut draft = Draft::of(self);
        let mut timers = Vec::new();
        let (id, before, is_new) = draft.admit_classic(join, &mut timers)?;
        let metadata = metadata(join, &said)?;
        let protocol_name: Arc<str> = request.protocols[0].name.into();
        let arrival = Arrival { id: Arc::clone(&id), before, is_new, metadata, owned: Some(owned) };
        let (records, after) =
            draft.advance(context, &mut timers, arrival).map_err(|refused| refused.code)?;
        timers.push(TimerChange::Rebalance {
            member_id: Arc::clone(&id),
            after_ms: rebalance_timeout_ms(request),
        });
        self.compared_with.set(Some(context.image.topics_offset()));
        let answer = ClassicJoined { member_id: id, generation_id: after.member_epoch, protocol_name };
        Ok(Decision { records, answer, timers })
    }

    /// Decides on a SyncGroup.
    pub fn classic_sync(
        &self,
        context: &Context<'_>,
        request: &SyncGroupRequest<'_>,
    ) -> Result<Decision<ClassicSynced>, ErrorCode> {
        let instance_id = request.group_instance_id;
        let (id, member, classic) =
            self.known_classic(request.member_id, instance_id, request.generation_id)?;
        let offered = classic.supported_protocols.first();
        let differs = |said: Option<&str>, known: Option<&str>| said.is_some_and(|said| known != Some(said));
        if differs(request.protocol_type, Some(CONSUMER))
            || differs(request.protocol_name, offered.map(|(name, _)| &**name))
        {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        let (name, said) = offered.ok_or(ErrorCode::InconsistentGroupProtocol)?;
        if self.target_epoch.epoch > member.current.member_epoch
            && member.current.state != MemberState::UnrevokedPartitions
        {
            return Err(ErrorCode::RebalanceInProgress);
        }
        let answer = ClassicSynced {
            protocol_name: Arc::clone(name),
            assignment: assignment(&member.current.assigned, context.image, version_of(said)),
        };
        let timers = member_timers(context, id, member).into();
        Ok(Decision { records: Vec::new(), answer, timers })
    }

    /// Decides on a Heartbeat.
    pub fn classic_heartbeat(
        &self,
        context: &Context<'_>,
        request: &HeartbeatRequest<'_>,
    ) -> Result<Decision<ErrorCode>, ErrorCode> {
        let instance_id = request.group_instance_id;
        let (id, member, _) = self.known_classic(request.member_id, instance_id, request.generation_id)?;
        let [session, _] = member_timers(context, id, member);
        let mut timers = vec![session];
        let current = &member.current;
        let may_have_more = || {
            let mut lacking =
                self.target(id).difference(&current.assigned).iter().copied().collect::<Vec<_>>();
            lacking.retain(|partition| self.owner(partition).is_some_and(|owner| owner != id));
            lacking.is_empty()
        };
        // Where nobody else is left who would bring the assignment that is due, its join has to.
        let has_news = current.member_epoch < self.target_epoch.epoch
            || self.is_assignment_due(context)
            || match current.state {
                MemberState::Stable => false,
                MemberState::UnreleasedPartitions => may_have_more(),
                MemberState::UnrevokedPartitions | MemberState::Unknown => true,
            };
        let answer = if has_news {
            timers.push(TimerChange::RebalanceUnlessSet {
                member_id: Arc::clone(id),
                after_ms: member.metadata.rebalance_timeout_ms,
            });
            ErrorCode::RebalanceInProgress
        } else {
            ErrorCode::None
        };
        Ok(Decision { records: Vec::new(), answer, timers })
    }

    /// Decides on a LeaveGroup: of members that speak the classic protocol, or of any that an operator names. A code for
    /// each.
    pub fn classic_leave(
        &self,
        context: &Context<'_>,
        leaving: &[MemberIdentity<'_>],
    ) -> Decision<Vec<ErrorCode>> {
        let found: Vec<Result<&str, ErrorCode>> =
            leaving.iter().map(|member| self.who_leaves(member)).collect();
        let ids: BTreeSet<&str> = found.iter().flatten().copied().collect();
        let Decision { records, timers, .. } = self.fence(context, ids);
        let answer = found.into_iter().map(|found| found.err().unwrap_or(ErrorCode::None)).collect();
        Decision { records, answer, timers }
    }

    fn who_leaves(&self, leaving: &MemberIdentity<'_>) -> Result<&str, ErrorCode> {
        match leaving.group_instance_id {
            Some(instance_id) if leaving.member_id.is_empty() => {
                self.static_members.get(instance_id).map(AsRef::as_ref).ok_or(ErrorCode::UnknownMemberId)
            }
            instance_id => self.known_member(leaving.member_id, instance_id).map(|(id, _)| &**id),
        }
    }

    fn known_member(
        &self,
        member_id: &str,
        instance_id: Option<&str>,
    ) -> Result<(&Arc<str>, &Member), ErrorCode> {
        match instance_id {
            Some(instance_id) => self.known_static(member_id, instance_id).map_err(|refused| refused.code),
            None => match self.members.get_key_value(member_id) {
                Some((id, member)) => Ok((id, &**member)),
                None => Err(ErrorCode::UnknownMemberId),
            },
        }
    }

    /// The member of a request, which has to speak the classic protocol and to come in its own generation.
    fn known_classic(
        &self,
        member_id: &str,
        instance_id: Option<&str>,
        generation_id: i32,
    ) -> Result<(&Arc<str>, &Member, &ClassicMember), ErrorCode> {
        let (id, member) = self.known_member(member_id, instance_id)?;
        let classic = member.metadata.classic.as_ref().ok_or(ErrorCode::UnknownMemberId)?;
        if generation_id != member.current.member_epoch {
            return Err(ErrorCode::IllegalGeneration);
        }
        Ok((id, member, classic))
    }

    /// All members of the classic protocol have to have one that they offer in common.
    fn check_protocols(&self, request: &JoinGroupRequest<'_>) -> Result<(), ErrorCode> {
        let others = self.members.iter().filter(|(id, _)| ***id != *request.member_id);
        let others: Vec<&ClassicMember> =
            others.filter_map(|(_, member)| member.metadata.classic.as_ref()).collect();
        let offers = |other: &ClassicMember, name: &str| {
            other.supported_protocols.iter().any(|(offered, _)| **offered == *name)
        };
        let is_common = |name: &str| others.iter().all(|other| offers(other, name));
        let is_supported = request.protocol_type == CONSUMER
            && request.protocols.iter().any(|protocol| is_common(protocol.name));
        if is_supported { Ok(()) } else { Err(ErrorCode::InconsistentGroupProtocol) }
    }
}

impl Draft<'_> {
    fn admit_classic(
        &mut self,
        join: &ClassicJoin<'_>,
        timers: &mut Vec<TimerChange>,
    ) -> Result<Admitted, ErrorCode> {
        let id: Arc<str> = join.member_id.into();
        let known =
            join.request.group_instance_id.and_then(|instance_id| self.group.static_member(instance_id));
        let Some((known, member)) = known else {
            if join.request.group_instance_id.is_some() && !join.request.member_id.is_empty() {
                // Its instance was removed: it comes again as a new member.
                return Err(ErrorCode::UnknownMemberId);
            }
            return Ok(match self.group.member(&id) {
                Some(member) => (id, member.clone(), false),
                None => (id, Member::default(), true),
            });
        };
        let (known, member) = (Arc::clone(known), member.clone());
        if known == id {
            return Ok((id, member, false));
        }
        if !join.request.member_id.is_empty() {
            return Err(ErrorCode::FencedInstanceId);
        }
        let member = self.replace_static(&known, &id, member, timers);
        Ok((id, member, false))
    }
}

/// What a member says about itself.
fn metadata(
    join: &ClassicJoin<'_>,
    said: &ConsumerProtocolSubscription<'_>,
) -> Result<MemberMetadata, ErrorCode> {
    let request = join.request;
    let protocols = request.protocols.iter();
    consumer_metadata(
        said,
        MemberMetadata {
            instance_id: request.group_instance_id.map(Arc::from),
            client_id: join.client.id.into(),
            client_host: join.client.host.into(),
            rebalance_timeout_ms: rebalance_timeout_ms(request),
            classic: Some(ClassicMember {
                session_timeout_ms: request.session_timeout_ms,
                supported_protocols: protocols
                    .map(|one| (one.name.into(), Bytes::copy_from_slice(one.metadata)))
                    .collect(),
            }),
            ..MemberMetadata::default()
        },
    )
}

/// Fills in what a subscription says.
pub(super) fn consumer_metadata(
    said: &ConsumerProtocolSubscription<'_>,
    metadata: MemberMetadata,
) -> Result<MemberMetadata, ErrorCode> {
    let names: BTreeSet<&str> = said.topics.iter().copied().collect();
    if names.len() > GROUP_MEMBER_TOPICS_MAX {
        return Err(ErrorCode::InvalidRequest);
    }
    Ok(MemberMetadata {
        rack_id: said.rack_id.map(Arc::from),
        subscribed_topic_names: names.into_iter().map(Arc::from).collect(),
        ..metadata
    })
}

/// What a consumer subscribes to, in the bytes that it offers to a protocol.
pub(super) fn subscription(said: &[u8]) -> Option<ConsumerProtocolSubscription<'_>> {
    ConsumerProtocolSubscription::from_versioned_lenient(said).ok()
}

/// Partitions by name; those that are not there are left out.
pub(super) fn partitions<'a>(
    image: &Image,
    topics: impl Iterator<Item = (&'a str, &'a [i32])>,
) -> Partitions {
    let known = topics.filter_map(|(name, partitions)| Some((image.topic(name)?, partitions)));
    known
        .flat_map(|(topic, partitions)| {
            let there = partitions.iter().filter(|partition| topic.partition(**partition).is_some());
            there.map(|partition| PartitionId { topic: topic.id, partition: *partition })
        })
        .collect()
}

/// What a consumer is assigned, in the encoding of its protocol.
pub(super) fn assignment(partitions: &Partitions, image: &Image, version: i16) -> Bytes {
    let topics = partitions.by_topic().filter_map(|(topic, partitions)| {
        Some(TopicPartition { topic: &image.topic_by_id(topic)?.name, partitions: partitions.collect() })
    });
    let assignment = ConsumerProtocolAssignment { assigned_partitions: topics.collect(), user_data: None };
    let versions = ConsumerProtocolAssignment::MIN_VERSION..=ConsumerProtocolAssignment::MAX_VERSION;
    assignment.to_versioned(version.clamp(*versions.start(), *versions.end())).into()
}

/// The version in which a member speaks, which is also that in which it is answered.
pub(super) fn version_of(said: &[u8]) -> i16 {
    said.first_chunk().map_or(0, |version| i16::from_be_bytes(*version))
}

/// Versions before 1 have one timeout for both.
fn rebalance_timeout_ms(request: &JoinGroupRequest<'_>) -> i32 {
    if request.rebalance_timeout_ms < 0 { request.session_timeout_ms } else { request.rebalance_timeout_ms }
}
