//! Online migration (KIP-848): a classic group becomes a consumer group when a member of the consumer protocol joins it,
//! and back when the last such member has gone. `group.consumer.migration.policy` says which of these may be.
//!
//! ```text
//!            a member joins by ConsumerGroupHeartbeat
//!   classic ────────────────────────────────────────> consumer, with members of both protocols
//!           <────────────────────────────────────────
//!            no member speaks the consumer protocol
//! ```
//!
//! Generation and group epoch are one number that only rises. What members own they go on to own, until they are told
//! otherwise by the ways of their protocol (`classic`).

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use flumen_wire::ErrorCode;
use flumen_wire::codec::Versioned;
use flumen_wire::group::consumer_protocol_assignment::ConsumerProtocolAssignment;
use flumen_wire::group::consumer_protocol_subscription::ConsumerProtocolSubscription;
use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
use flumen_wire::messages::join_group_request::JoinGroupRequest;
use flumen_wire::messages::leave_group_request::LeaveGroupRequest;
use flumen_wire::messages::sync_group_request::SyncGroupRequest;

use super::change::{
    AssignmentEpochs, Change, ClassicMember, CurrentAssignment, GroupEpoch, MemberMetadata, MemberState,
    TargetEpoch,
};
use super::classic::{ClassicJoin, assignment, consumer_metadata, partitions, subscription, version_of};
use super::requests::{fits, in_context};
use super::{Client, ConsumerGroup, Heartbeat, HeartbeatAnswer, Refused};
use crate::coordinator::answer::{Answer, JoinAnswer, SyncAnswer};
use crate::coordinator::assignor::Partitions;
use crate::coordinator::classic::{
    CONSUMER, ClassicGroup, MEMBER_ID_VERSION, MovedMember, join_refused, new_member_id,
};
use crate::coordinator::outbox::Token;
use crate::coordinator::record::Record;
use crate::coordinator::{Caller, Context, Coordinator};
use crate::limits::GROUP_MEMBERS_MAX;
use crate::types::PartitionId;

/// Requests of members that speak the classic protocol, in a consumer group that has members.
impl Coordinator {
    pub(in crate::coordinator) fn join_consumer_group(
        &mut self,
        cx: &Context<'_>,
        caller: &Caller<'_>,
        request: &JoinGroupRequest<'_>,
        token: Token,
    ) {
        let mut member_id: Arc<str> = request.member_id.into();
        if member_id.is_empty() {
            member_id = new_member_id(caller, request, &cx.uuid);
            if caller.version >= MEMBER_ID_VERSION && request.group_instance_id.is_none() {
                let answer = join_refused(&member_id, ErrorCode::MemberIdRequired);
                return self.outbox.answer(token, answer);
            }
        }
        let client = Client { id: caller.client_id, host: caller.client_host };
        let join = ClassicJoin { request, client, member_id: &member_id };
        let group = self.groups.consumer(request.group_id).expect("a consumer group is asked");
        let decision = in_context(cx, request.group_id, |context| group.classic_join(context, &join));
        let decision = decision.and_then(|decision| {
            decision.encode(request.group_id).fitting(cx).map_err(|refused| refused.code)
        });
        let answer = match decision {
            Err(error) => join_refused(&member_id, error),
            Ok(decision) => {
                let joined = self.carry_out(cx, &request.group_id.into(), decision);
                Answer::Joined(JoinAnswer {
                    error: ErrorCode::None,
                    generation_id: joined.generation_id,
                    protocol_type: Some(CONSUMER.into()),
                    protocol_name: Some(joined.protocol_name),
                    // Nobody leads: the coordinator assigns.
                    leader: "".into(),
                    skip_assignment: false,
                    member_id: joined.member_id,
                    members: Vec::new(),
                })
            }
        };
        self.outbox.answer(token, answer);
    }

    pub(in crate::coordinator) fn sync_consumer_group(
        &mut self,
        cx: &Context<'_>,
        request: &SyncGroupRequest<'_>,
        token: Token,
    ) {
        let group = self.groups.consumer(request.group_id).expect("a consumer group is asked");
        let answer = match in_context(cx, request.group_id, |context| group.classic_sync(context, request)) {
            Err(error) => Answer::Failed(error),
            Ok(decision) => {
                let decision = decision.encode(request.group_id);
                let synced = self.carry_out(cx, &request.group_id.into(), decision);
                Answer::Synced(SyncAnswer {
                    protocol_type: Some(CONSUMER.into()),
                    protocol_name: Some(synced.protocol_name),
                    assignment: synced.assignment,
                })
            }
        };
        self.outbox.answer(token, answer);
    }

    pub(in crate::coordinator) fn heartbeat_in_consumer_group(
        &mut self,
        cx: &Context<'_>,
        request: &HeartbeatRequest<'_>,
    ) -> ErrorCode {
        let group = self.groups.consumer(request.group_id).expect("a consumer group is asked");
        match in_context(cx, request.group_id, |context| group.classic_heartbeat(context, request)) {
            Err(error) => error,
            Ok(decision) => self.carry_out(cx, &request.group_id.into(), decision.encode(request.group_id)),
        }
    }

    /// LeaveGroup, of such members or by an operator.
    pub(in crate::coordinator) fn leave_consumer_group(
        &mut self,
        cx: &Context<'_>,
        request: &LeaveGroupRequest<'_>,
    ) -> Answer {
        let group = self.groups.consumer(request.group_id).expect("a consumer group is asked");
        let decision =
            in_context(cx, request.group_id, |context| group.classic_leave(context, &request.members));
        match decision.encode(request.group_id).fitting(cx) {
            Ok(decision) => Answer::Left(self.carry_out(cx, &request.group_id.into(), decision)),
            Err(refused) => Answer::Failed(refused.code),
        }
    }
}

/// To the consumer protocol.
impl Coordinator {
    /// Decides on the heartbeat with which a member joins a classic group that has members: it becomes a consumer group.
    pub(super) fn upgrade(
        &mut self,
        cx: &Context<'_>,
        heartbeat: &Heartbeat<'_>,
    ) -> Result<HeartbeatAnswer, Refused> {
        let id: Arc<str> = heartbeat.request.group_id.into();
        let classic = self.groups.classic(&id).expect("a classic group is asked");
        let refused = |obstacle: &str| {
            let text = format!("Cannot upgrade classic group {id} to consumer group because {obstacle}.");
            Refused::new(ErrorCode::GroupIdNotFound, text)
        };
        let changes = upgraded(cx, classic).map_err(refused)?;
        let mut group = ConsumerGroup::new(Arc::clone(&id));
        changes.iter().for_each(|change| group.replay(change));
        // Nothing has changed yet: if the member is refused, the group stays as it is.
        let (decision, timers) = in_context(cx, &id, |context| {
            group.heartbeat(context, heartbeat).map(|decision| (decision, group.timers(context)))
        })?;
        let decision = decision.encode(&id).fitting(cx)?;
        let moved: Vec<Record> = changes.iter().map(|change| change.encode(&id)).collect();
        if !fits(cx, &moved) {
            return Err(refused(TOO_LARGE));
        }
        self.end_moved_classic(cx, &id);
        self.write_all(moved);
        timers.into_iter().for_each(|timer| self.set_timer(cx, &id, timer));
        Ok(self.carry_out(cx, &id, decision))
    }

    /// Makes a consumer group a classic one if no member speaks the consumer protocol any more.
    pub(super) fn downgrade_if_all_classic(&mut self, cx: &Context<'_>, id: &Arc<str>) {
        let Some(group) = self.groups.consumer(id) else { return };
        let has_room = group.members().len() <= (cx.config.max_size as usize).min(GROUP_MEMBERS_MAX);
        if !cx.config.consumer_migration_downgrade || !has_room || !group.is_all_classic() {
            return;
        }
        let members = group.members().filter_map(|(id, member)| {
            let metadata = &member.metadata;
            let classic = metadata.classic.as_ref()?;
            let version = classic.supported_protocols.first().map_or(0, |(_, said)| version_of(said));
            Some(MovedMember {
                id: Arc::clone(id),
                group_instance_id: metadata.instance_id.clone(),
                client_id: Arc::clone(&metadata.client_id),
                client_host: Arc::clone(&metadata.client_host),
                rebalance_timeout_ms: metadata.rebalance_timeout_ms,
                session_timeout_ms: classic.session_timeout_ms,
                protocols: classic.supported_protocols.clone(),
                assignment: assignment(&member.current.assigned, cx.image, version),
            })
        });
        let moved = ClassicGroup::of_moved(cx, id, group.epoch(), CONSUMER, members.collect());
        let mut records = group.tombstones();
        records.push(moved.record());
        if !fits(cx, &records) {
            return;
        }
        self.write_group_tombstones(id);
        self.timers.cancel_group(id);
        self.begin_moved_classic(cx, moved);
    }
}

/// Why a classic group stays one, in Kafka's words.
const DISABLED: &str = "online upgrade is disabled";
const NOT_OF_CONSUMERS: &str = "the group does not use the consumer embedded protocol";
const TOO_LARGE: &str = "the group size exceeds the consumer group maximum size";
const MALFORMED: &str = "the embedded consumer protocol is malformed";
const CUSTOM_ASSIGNOR: &str = "an unsupported custom assignor is in use. Please refer to the documentation or switch to a \
                               default assignor before re-attempting the upgrade";

/// What makes a consumer group out of a classic one, or why there is none to be made.
fn upgraded(cx: &Context<'_>, classic: &ClassicGroup) -> Result<Vec<Change>, &'static str> {
    let members = classic.moving();
    let max_size = (cx.config.consumer_max_size as usize).min(GROUP_MEMBERS_MAX);
    if !cx.config.consumer_migration_upgrade {
        return Err(DISABLED);
    }
    if !classic.uses_consumer_protocol() {
        return Err(NOT_OF_CONSUMERS);
    }
    if members.len() >= max_size {
        return Err(TOO_LARGE);
    }
    let epoch = classic.generation_id();
    let spoken = classic.spoken_protocol();
    // Not an assignment of the coordinator's: the first one of those need not wait.
    let target = TargetEpoch { epoch, timestamp_ms: 0 };
    let mut changes =
        vec![Change::Epoch(Some(GroupEpoch { epoch, metadata_hash: 0 })), Change::TargetEpoch(Some(target))];
    let members: Vec<MovedMember> = members.collect();
    let owned = owned(cx, &members, spoken.as_deref())?;
    for (member, owned) in members.into_iter().zip(owned) {
        let id = Arc::clone(&member.id);
        let current = CurrentAssignment {
            member_epoch: epoch,
            previous_member_epoch: epoch,
            state: MemberState::Stable,
            assigned: owned.clone(),
            pending_revocation: Partitions::new(),
            since: AssignmentEpochs::all(&owned, epoch),
        };
        let metadata = moved_metadata(member, spoken.as_deref()).ok_or(MALFORMED)?;
        changes.push(Change::Member(Arc::clone(&id), Some(Arc::new(metadata))));
        changes.push(Change::Target(Arc::clone(&id), Some(Arc::new(owned))));
        changes.push(Change::Current(id, Some(current)));
    }
    Ok(changes)
}

/// What each member of a classic group may own: what it was assigned, and what it said that it owns when it joined. While
/// a generation forms there are no assignments, and members of a cooperative protocol keep what they have. What two
/// of them claim is that one's who said so of the later generation.
fn owned(
    cx: &Context<'_>,
    members: &[MovedMember],
    spoken: Option<&str>,
) -> Result<Vec<Partitions>, &'static str> {
    let mut owned = Vec::with_capacity(members.len());
    let mut claims = Vec::new();
    for (place, member) in members.iter().enumerate() {
        owned.push(assigned(cx, member)?);
        let said = said_to(&member.protocols, spoken).ok_or(MALFORMED)?;
        let topics = said.owned_partitions.iter().map(|one| (one.topic, &one.partitions[..]));
        claims.push((Reverse(said.generation_id), place, partitions(cx.image, topics)));
    }
    claims.sort_by_key(|(generation_id, place, _)| (*generation_id, *place));
    let mut taken: HashSet<PartitionId> = owned.iter().flat_map(|owned| owned.iter().copied()).collect();
    for (_, place, claimed) in claims {
        let free = claimed.filtered(|partition| taken.insert(partition));
        owned[place] = owned[place].union(&free);
    }
    Ok(owned)
}

/// What a member of a classic group was assigned; nothing before it was. What an assignor of its own has added (that of
/// Kafka Streams does) no assignor of the coordinator's would add again.
fn assigned(cx: &Context<'_>, member: &MovedMember) -> Result<Partitions, &'static str> {
    if member.assignment.is_empty() {
        return Ok(Partitions::new());
    }
    let said = ConsumerProtocolAssignment::from_versioned_lenient(&member.assignment);
    let said = said.map_err(|_| MALFORMED)?;
    if said.user_data.is_some_and(|added| !added.is_empty()) {
        return Err(CUSTOM_ASSIGNOR);
    }
    let topics = said.assigned_partitions.iter().map(|topic| (topic.topic, &topic.partitions[..]));
    Ok(partitions(cx.image, topics))
}

/// What a member says to the protocol that is spoken, or to the one that it likes best.
fn said_to<'a>(
    protocols: &'a [(Arc<str>, Bytes)],
    spoken: Option<&str>,
) -> Option<ConsumerProtocolSubscription<'a>> {
    let spoken = protocols.iter().find(|(name, _)| Some(&**name) == spoken);
    subscription(&spoken.or(protocols.first())?.1)
}

fn moved_metadata(member: MovedMember, spoken: Option<&str>) -> Option<MemberMetadata> {
    let mut protocols = member.protocols;
    // The one that is spoken stands first: it is the one in which the member is answered.
    protocols.sort_by_key(|(name, _)| Some(&**name) != spoken);
    let offered = protocols.clone();
    let metadata = MemberMetadata {
        instance_id: member.group_instance_id,
        client_id: member.client_id,
        client_host: member.client_host,
        rebalance_timeout_ms: member.rebalance_timeout_ms,
        classic: Some(ClassicMember {
            session_timeout_ms: member.session_timeout_ms,
            supported_protocols: protocols,
        }),
        ..MemberMetadata::default()
    };
    consumer_metadata(&said_to(&offered, spoken)?, metadata).ok()
}
