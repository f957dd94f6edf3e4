//! Members that speak the classic protocol, in a consumer group.

use flumen_wire::ErrorCode;
use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
use flumen_wire::messages::join_group_request::JoinGroupRequest;
use flumen_wire::messages::leave_group_request::LeaveGroupRequest;
use flumen_wire::messages::sync_group_request::SyncGroupRequest;

use crate::coordinator::answer::Answer;
use crate::coordinator::outbox::Token;
use crate::coordinator::{Caller, Context, Coordinator};

impl Coordinator {
    /// JoinGroup of a member that speaks the classic protocol, in a consumer group that has members.
    pub(in crate::coordinator) fn join_consumer_group(
        &mut self,
        _cx: &Context<'_>,
        _caller: &Caller<'_>,
        _request: &JoinGroupRequest<'_>,
        token: Token,
    ) {
        self.outbox.answer(token, Answer::Failed(ErrorCode::InconsistentGroupProtocol));
    }

    /// SyncGroup of such a member.
    pub(in crate::coordinator) fn sync_consumer_group(
        &mut self,
        _cx: &Context<'_>,
        _request: &SyncGroupRequest<'_>,
        token: Token,
    ) {
        self.outbox.answer(token, Answer::Failed(ErrorCode::UnknownMemberId));
    }

    /// Heartbeat of such a member.
    pub(in crate::coordinator) fn heartbeat_in_consumer_group(
        &mut self,
        _cx: &Context<'_>,
        _request: &HeartbeatRequest<'_>,
    ) -> ErrorCode {
        ErrorCode::UnknownMemberId
    }

    /// LeaveGroup, of such members or by an operator.
    pub(in crate::coordinator) fn leave_consumer_group(
        &mut self,
        _cx: &Context<'_>,
        _request: &LeaveGroupRequest<'_>,
    ) -> Answer {
        Answer::Failed(ErrorCode::UnknownMemberId)
    }
}
