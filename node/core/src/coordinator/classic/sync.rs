//! SyncGroup, Heartbeat, LeaveGroup, and who may commit: what members do between two rebalances.

use std::collections::BTreeMap;

use bytes::Bytes;
use flumen_wire::ErrorCode;
use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
use flumen_wire::messages::leave_group_request::{LeaveGroupRequest, MemberIdentity};
use flumen_wire::messages::sync_group_request::SyncGroupRequest;

use super::{ClassicGroup, ClassicState, Effects, members_bytes_max};
use crate::coordinator::answer::Answer;
use crate::coordinator::groups::Group;
use crate::coordinator::outbox::Token;
use crate::coordinator::timers::Timer;
use crate::coordinator::{Context, Coordinator};

impl Coordinator {
    pub(in crate::coordinator) fn sync_group(
        &mut self,
        cx: &Context<'_>,
        request: &SyncGroupRequest<'_>,
        token: Token,
    ) {
        if request.group_id.is_empty() {
            return self.outbox.answer(token, Answer::Failed(ErrorCode::InvalidGroupId));
        }
        if matches!(self.groups.get(request.group_id), Some(Group::Consumer(_))) {
            return self.sync_consumer_group(cx, request, token);
        }
        let synced = self.with_classic(cx, request.group_id, |group, fx| group.sync(fx, request, token));
        if synced.is_none() {
            self.outbox.answer(token, Answer::Failed(ErrorCode::UnknownMemberId));
        }
    }

    pub(in crate::coordinator) fn heartbeat(
        &mut self,
        cx: &Context<'_>,
        request: &HeartbeatRequest<'_>,
    ) -> ErrorCode {
        if request.group_id.is_empty() {
            return ErrorCode::InvalidGroupId;
        }
        if matches!(self.groups.get(request.group_id), Some(Group::Consumer(_))) {
            return self.heartbeat_in_consumer_group(cx, request);
        }
        let heard = self.with_classic(cx, request.group_id, |group, fx| group.heartbeat(fx, request));
        heard.unwrap_or(ErrorCode::UnknownMemberId)
    }

    pub(in crate::coordinator) fn leave_group(
        &mut self,
        cx: &Context<'_>,
        request: &LeaveGroupRequest<'_>,
    ) -> Answer {
        if request.group_id.is_empty() {
            return Answer::Failed(ErrorCode::InvalidGroupId);
        }
        if matches!(self.groups.get(request.group_id), Some(Group::Consumer(_))) {
            return self.leave_consumer_group(cx, request);
        }
        let left = self.with_classic(cx, request.group_id, |group, fx| group.leave(fx, &request.members));
        // Of a group that is not there, nobody is a member.
        Answer::Left(left.unwrap_or_else(|| vec![ErrorCode::UnknownMemberId; request.members.len()]))
    }

    /// Whether a commit is taken from whoever says to be this member of this generation. It counts as a heartbeat.
    pub(in crate::coordinator) fn check_classic_commit(
        &mut self,
        cx: &Context<'_>,
        group_id: &str,
        member_id: &str,
        instance_id: Option<&str>,
        generation_id: i32,
    ) -> Result<(), ErrorCode> {
        let checked = self.with_classic(cx, group_id, |group, fx| {
            group.check_commit(member_id, instance_id, generation_id)?;
            if matches!(group.state, ClassicState::Stable | ClassicState::PreparingRebalance) {
                group.renew_session(fx, member_id);
            }
            Ok(())
        });
        checked.unwrap_or(Ok(()))
    }
}

impl ClassicGroup {
    fn sync(&mut self, fx: &mut Effects<'_>, request: &SyncGroupRequest<'_>, token: Token) {
        if let Err(error) = self.check_sync(request) {
            return fx.outbox.answer(token, Answer::Failed(error));
        }
        let member_id = request.member_id;
        match self.state {
            ClassicState::Empty => fx.outbox.answer(token, Answer::Failed(ErrorCode::UnknownMemberId)),
            ClassicState::PreparingRebalance => {
                fx.outbox.answer(token, Answer::Failed(ErrorCode::RebalanceInProgress));
            }
            ClassicState::CompletingRebalance => {
                self.has_synced(fx, member_id);
                self.park_sync(fx, member_id, token);
                if self.is_leader(member_id) {
                    self.assign(fx, request);
                }
            }
            ClassicState::Stable => {
                self.has_synced(fx, member_id);
                self.renew_session(fx, member_id);
                fx.outbox.answer(token, self.assignment_of(member_id));
            }
        }
    }

    fn check_sync(&self, request: &SyncGroupRequest<'_>) -> Result<(), ErrorCode> {
        self.check_member(request.member_id, request.group_instance_id)?;
        if request.generation_id != self.generation_id {
            return Err(ErrorCode::IllegalGeneration);
        }
        // Clients before version 5 do not say it.
        let differs = |said: Option<&str>, known: Option<&str>| {
            said.is_some_and(|said| known.is_some_and(|known| said != known))
        };
        if differs(request.protocol_type, self.protocol_type.as_deref())
            || differs(request.protocol_name, self.protocol.as_deref())
        {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        Ok(())
    }

    /// A member has asked for its assignment.
    fn has_synced(&mut self, fx: &mut Effects<'_>, member_id: &str) {
        if self.pending_sync.remove(member_id) && self.pending_sync.is_empty() {
            fx.timers.cancel(&self.id, Timer::Sync);
        }
    }

    /// The leader's assignment. Whoever it forgot has nothing; whoever is no member does not matter.
    fn assign(&mut self, fx: &mut Effects<'_>, request: &SyncGroupRequest<'_>) {
        let made: BTreeMap<&str, &[u8]> =
            request.assignments.iter().map(|made| (made.member_id, made.assignment)).collect();
        let bytes: usize = made.values().map(|assignment| assignment.len()).sum();
        if bytes > members_bytes_max(fx.cx) {
            // No record holds it. As in Kafka, all hear of it, and try again.
            self.refuse_syncs(fx, ErrorCode::UnknownServerError);
            return self.rebalance(fx);
        }
        for member in self.members.values_mut() {
            let assignment = made.get(&*member.id).copied().unwrap_or_default();
            member.assignment = Bytes::copy_from_slice(assignment);
        }
        self.enter(fx.cx, ClassicState::Stable);
        fx.records.push(self.record());
        for member_id in self.members.keys().cloned().collect::<Vec<_>>() {
            let token = self.members.get_mut(&member_id).and_then(|member| member.sync.take());
            if let Some(token) = token {
                fx.outbox.answer(token, self.assignment_of(&member_id));
                self.renew_session(fx, &member_id);
            }
        }
    }

    /// Answers all that wait for an assignment with an error; nobody has one any more.
    pub(super) fn refuse_syncs(&mut self, fx: &mut Effects<'_>, error: ErrorCode) {
        for member_id in self.members.keys().cloned().collect::<Vec<_>>() {
            let member = self.members.get_mut(&member_id).expect("a member");
            member.assignment = Bytes::new();
            if let Some(token) = member.sync.take() {
                fx.outbox.answer(token, Answer::Failed(error));
                self.renew_session(fx, &member_id);
            }
        }
    }

    fn heartbeat(&mut self, fx: &mut Effects<'_>, request: &HeartbeatRequest<'_>) -> ErrorCode {
        if let Err(error) = self.check_member(request.member_id, request.group_instance_id) {
            return error;
        }
        if request.generation_id != self.generation_id {
            return ErrorCode::IllegalGeneration;
        }
        self.renew_session(fx, request.member_id);
        match self.state {
            ClassicState::Empty => ErrorCode::UnknownMemberId,
            ClassicState::PreparingRebalance => ErrorCode::RebalanceInProgress,
            ClassicState::CompletingRebalance | ClassicState::Stable => ErrorCode::None,
        }
    }

    fn leave(&mut self, fx: &mut Effects<'_>, leaving: &[MemberIdentity<'_>]) -> Vec<ErrorCode> {
        let mut codes = Vec::with_capacity(leaving.len());
        for member in leaving {
            codes.push(match self.who_leaves(member) {
                Ok(member_id) => {
                    self.remove(fx, &member_id);
                    ErrorCode::None
                }
                Err(error) => error,
            });
        }
        if codes.contains(&ErrorCode::None) {
            self.members_left(fx);
        }
        codes
    }

    /// The id of whoever is meant: an operator names a static member by its name alone.
    fn who_leaves(&self, member: &MemberIdentity<'_>) -> Result<String, ErrorCode> {
        if member.member_id.is_empty() {
            let named = member.group_instance_id.and_then(|name| self.static_members.get(name));
            return named.map(|id| id.to_string()).ok_or(ErrorCode::UnknownMemberId);
        }
        if !self.pending.contains(member.member_id) {
            self.check_member(member.member_id, member.group_instance_id)?;
        }
        Ok(member.member_id.to_owned())
    }

    fn check_commit(
        &self,
        member_id: &str,
        instance_id: Option<&str>,
        generation_id: i32,
    ) -> Result<(), ErrorCode> {
        let is_empty = self.state == ClassicState::Empty;
        if generation_id < 0 && is_empty {
            // An operator, or a client that only keeps its positions here.
            return Ok(());
        }
        if generation_id >= 0 || !member_id.is_empty() || instance_id.is_some() {
            self.check_member(member_id, instance_id)?;
            if generation_id != self.generation_id {
                return Err(ErrorCode::IllegalGeneration);
            }
        } else if !is_empty {
            return Err(ErrorCode::UnknownMemberId);
        }
        if self.state == ClassicState::CompletingRebalance {
            // Its generation is not assigned yet, so it cannot have read anything in it.
            return Err(ErrorCode::RebalanceInProgress);
        }
        Ok(())
    }
}
