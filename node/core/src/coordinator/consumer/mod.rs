//! Groups whose coordinator makes the assignment (KIP-848). Their hard state, and the requests of their members.

use std::sync::Arc;

use flumen_wire::ErrorCode;
use flumen_wire::group::consumer_group_current_member_assignment_key::ConsumerGroupCurrentMemberAssignmentKey;
use flumen_wire::group::consumer_group_current_member_assignment_value::ConsumerGroupCurrentMemberAssignmentValue;
use flumen_wire::group::consumer_group_member_metadata_key::ConsumerGroupMemberMetadataKey;
use flumen_wire::group::consumer_group_member_metadata_value::ConsumerGroupMemberMetadataValue;
use flumen_wire::group::consumer_group_metadata_key::ConsumerGroupMetadataKey;
use flumen_wire::group::consumer_group_metadata_value::ConsumerGroupMetadataValue;
use flumen_wire::group::consumer_group_regular_expression_key::ConsumerGroupRegularExpressionKey;
use flumen_wire::group::consumer_group_regular_expression_value::ConsumerGroupRegularExpressionValue;
use flumen_wire::group::consumer_group_target_assignment_member_key::ConsumerGroupTargetAssignmentMemberKey;
use flumen_wire::group::consumer_group_target_assignment_member_value::ConsumerGroupTargetAssignmentMemberValue;
use flumen_wire::group::consumer_group_target_assignment_metadata_key::ConsumerGroupTargetAssignmentMetadataKey;
use flumen_wire::group::consumer_group_target_assignment_metadata_value::ConsumerGroupTargetAssignmentMetadataValue;
use flumen_wire::messages::consumer_group_heartbeat_request::ConsumerGroupHeartbeatRequest;
use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
use flumen_wire::messages::join_group_request::JoinGroupRequest;
use flumen_wire::messages::leave_group_request::LeaveGroupRequest;
use flumen_wire::messages::sync_group_request::SyncGroupRequest;

use super::answer::{Answer, ListedGroup};
use super::groups::{Group, Groups};
use super::outbox::Token;
use super::record::Record;
use super::{Caller, Context, Coordinator};

/// The answer to ConsumerGroupHeartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatAnswer {}

/// A consumer group, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerGroupDescription {}

/// A consumer group.
#[derive(Debug)]
pub(super) struct ConsumerGroup {
    id: Arc<str>,
    /// Rises with every change of members, subscriptions or topics.
    group_epoch: i32,
}

impl ConsumerGroup {
    pub(super) fn listed(&self) -> ListedGroup {
        ListedGroup {
            group_id: Arc::clone(&self.id),
            protocol_type: "consumer".into(),
            state: "Empty",
            group_type: "consumer",
        }
    }

    /// Hard state as records.
    pub(super) fn snapshot(&self, records: &mut Vec<Record>) {
        let key = ConsumerGroupMetadataKey { group_id: &self.id };
        let value = ConsumerGroupMetadataValue { epoch: self.group_epoch, ..Default::default() };
        records.push(Record::new(&key, &value, 0));
    }

    /// Why DeleteGroups may not take it.
    pub(super) fn refuses_deletion(&self) -> Option<ErrorCode> {
        None
    }

    /// The records that end it.
    pub(super) fn tombstones(&self) -> Vec<Record> {
        vec![Record::tombstone(&ConsumerGroupMetadataKey { group_id: &self.id })]
    }

    /// Whether a commit under this member and epoch is taken.
    pub(super) fn check_commit(&self, _member_id: &str, _epoch: i32, _version: i16) -> Result<(), ErrorCode> {
        Ok(())
    }

    /// Whether a fetch of offsets under this member and epoch is answered.
    pub(super) fn check_fetch(&self, _member_id: Option<&str>, _epoch: i32) -> Result<(), ErrorCode> {
        Ok(())
    }

    /// Whether OffsetDelete has to leave the offsets of a topic alone.
    pub(super) fn is_subscribed_to(&self, _topic: &str) -> bool {
        false
    }

    /// Whether it has no members.
    pub(super) fn is_empty(&self) -> bool {
        true
    }
}

/// Requests, timers and events, called by the runtime (`coordinator/mod.rs`).
impl Coordinator {
    pub(super) fn consumer_group_heartbeat(
        &mut self,
        _cx: &Context<'_>,
        _caller: &Caller<'_>,
        _request: &ConsumerGroupHeartbeatRequest<'_>,
    ) -> Answer {
        Answer::Failed(ErrorCode::UnsupportedVersion)
    }

    pub(super) fn describe_consumer_group(&mut self, _cx: &Context<'_>, _group_id: &str) -> Answer {
        Answer::Failed(ErrorCode::GroupIdNotFound)
    }

    /// JoinGroup of a member that speaks the classic protocol, in a consumer group that has members.
    pub(super) fn join_consumer_group(
        &mut self,
        _cx: &Context<'_>,
        _caller: &Caller<'_>,
        _request: &JoinGroupRequest<'_>,
        token: Token,
    ) {
        self.outbox.answer(token, Answer::Failed(ErrorCode::InconsistentGroupProtocol));
    }

    /// SyncGroup of such a member.
    pub(super) fn sync_consumer_group(
        &mut self,
        _cx: &Context<'_>,
        _request: &SyncGroupRequest<'_>,
        token: Token,
    ) {
        self.outbox.answer(token, Answer::Failed(ErrorCode::UnknownMemberId));
    }

    /// Heartbeat of such a member.
    pub(super) fn heartbeat_in_consumer_group(
        &mut self,
        _cx: &Context<'_>,
        _request: &HeartbeatRequest<'_>,
    ) -> ErrorCode {
        ErrorCode::UnknownMemberId
    }

    /// LeaveGroup, of such members or by an operator.
    pub(super) fn leave_consumer_group(
        &mut self,
        _cx: &Context<'_>,
        _request: &LeaveGroupRequest<'_>,
    ) -> Answer {
        Answer::Failed(ErrorCode::UnknownMemberId)
    }

    /// The log is loaded: sessions begin.
    pub(super) fn consumer_groups_loaded(&mut self, _cx: &Context<'_>) {}

    pub(super) fn consumer_session_expired(&mut self, _cx: &Context<'_>, _group: &Arc<str>, _member: &str) {}

    pub(super) fn consumer_rebalance_expired(&mut self, _cx: &Context<'_>, _group: &Arc<str>, _member: &str) {
    }

    /// Topics came, grew or went.
    pub(super) fn consumer_groups_metadata_changed(&mut self, _cx: &Context<'_>) {}
}

/// Replay.
impl Groups {
    pub(super) fn replay_consumer_epoch(
        &mut self,
        key: &ConsumerGroupMetadataKey<'_>,
        value: Option<ConsumerGroupMetadataValue>,
    ) {
        match value {
            Some(value) => {
                let id: Arc<str> = key.group_id.into();
                let group = ConsumerGroup { id: Arc::clone(&id), group_epoch: value.epoch };
                self.insert(id, Group::Consumer(group));
            }
            None if self.consumer(key.group_id).is_some() => drop(self.remove(key.group_id)),
            None => {}
        }
    }

    pub(super) fn replay_consumer_member(
        &mut self,
        _key: &ConsumerGroupMemberMetadataKey<'_>,
        _value: Option<ConsumerGroupMemberMetadataValue<'_>>,
    ) {
    }

    pub(super) fn replay_target_epoch(
        &mut self,
        _key: &ConsumerGroupTargetAssignmentMetadataKey<'_>,
        _value: Option<ConsumerGroupTargetAssignmentMetadataValue>,
    ) {
    }

    pub(super) fn replay_target_member(
        &mut self,
        _key: &ConsumerGroupTargetAssignmentMemberKey<'_>,
        _value: Option<ConsumerGroupTargetAssignmentMemberValue>,
    ) {
    }

    pub(super) fn replay_current_assignment(
        &mut self,
        _key: &ConsumerGroupCurrentMemberAssignmentKey<'_>,
        _value: Option<ConsumerGroupCurrentMemberAssignmentValue>,
    ) {
    }

    pub(super) fn replay_regular_expression(
        &mut self,
        _key: &ConsumerGroupRegularExpressionKey<'_>,
        _value: Option<ConsumerGroupRegularExpressionValue<'_>>,
    ) {
    }
}
