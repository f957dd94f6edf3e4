//! JoinGroup: who may come in, and what that changes.
//!
//! ```text
//!   no id ──┬─ static name ── known ── takes the place of the one before ── perhaps without a rebalance
//!           │                └─ new ── member
//!           ├─ version 4+ ── MEMBER_ID_REQUIRED with an id: pending (KIP-394)
//!           └─ before ───── member
//!   an id ──┬─ pending ──── member
//!           └─ member ───── rejoins, or only asks again
//! ```

use std::sync::Arc;

use bytes::Bytes;
use flumen_wire::ErrorCode;
use flumen_wire::messages::join_group_request::JoinGroupRequest;

use super::members::join_refused;
use super::{
    ClassicGroup, ClassicState, Effects, Member, NEW_MEMBER_TIMEOUT, Protocol, members_bytes_max, millis,
};
use crate::coordinator::groups::Group;
use crate::coordinator::outbox::Token;
use crate::coordinator::{Caller, Context, Coordinator};
use crate::limits::{GROUP_MEMBERS_MAX, GROUP_NAME_BYTES_MAX, GROUPS_PER_COORDINATOR_MAX};

/// The first version whose members know that they have to ask for an id first (KIP-394).
pub(in crate::coordinator) const MEMBER_ID_VERSION: i16 = 4;
/// The first version whose leader may be told to take the assignment that there is (KIP-814).
const SKIP_ASSIGNMENT_VERSION: i16 = 9;
/// What of a client's id goes into a member's id.
const CLIENT_ID_BYTES_MAX: usize = GROUP_NAME_BYTES_MAX - 64;
/// What follows it there: `-`, and a UUID in text.
const UUID_BYTES: usize = 37;

/// A JoinGroup on its way through the group.
struct Joining<'a> {
    caller: &'a Caller<'a>,
    request: &'a JoinGroupRequest<'a>,
    token: Token,
}

impl Joining<'_> {
    fn refuse(&self, fx: &mut Effects<'_>, member_id: &str, error: ErrorCode) {
        fx.outbox.answer(self.token, join_refused(member_id, error));
    }

    fn protocols(&self) -> Vec<Protocol> {
        let said = self.request.protocols.iter();
        said.map(|said| (said.name.into(), Bytes::copy_from_slice(said.metadata))).collect()
    }

    /// What the member adds to its group, its id included, which may be still to be made.
    fn bytes(&self) -> usize {
        let said = self.request.protocols.iter().map(|said| said.name.len() + said.metadata.len());
        let id = match self.request.member_id {
            "" => named_part(self.caller, self.request).len() + UUID_BYTES,
            id => id.len(),
        };
        let instance_id = self.request.group_instance_id.unwrap_or_default();
        let names = [instance_id, self.caller.client_id, self.caller.client_host];
        said.sum::<usize>() + id + names.map(str::len).iter().sum::<usize>()
    }

    fn says_what(&self, member: &Member) -> bool {
        let said = self.request.protocols.iter().map(|said| (said.name, said.metadata));
        said.eq(member.protocols.iter().map(|(name, metadata)| (&**name, &**metadata)))
    }

    /// Versions before 1 have one timeout for both.
    fn rebalance_timeout_ms(&self) -> i32 {
        let timeout = self.request.rebalance_timeout_ms;
        if timeout < 0 { self.request.session_timeout_ms } else { timeout }
    }

    fn member(&self, id: Arc<str>) -> Member {
        Member {
            id,
            group_instance_id: self.request.group_instance_id.map(Into::into),
            client_id: self.caller.client_id.into(),
            client_host: self.caller.client_host.into(),
            rebalance_timeout_ms: self.rebalance_timeout_ms(),
            session_timeout_ms: self.request.session_timeout_ms,
            protocols: self.protocols(),
            assignment: Bytes::new(),
            join: Some(self.token),
            sync: None,
            is_new: true,
        }
    }
}

/// What the id of a new member begins with: whose it is.
fn named_part<'a>(caller: &Caller<'a>, request: &JoinGroupRequest<'a>) -> &'a str {
    let whose = request.group_instance_id.unwrap_or(caller.client_id);
    let mut end = whose.len().min(CLIENT_ID_BYTES_MAX);
    while !whose.is_char_boundary(end) {
        end -= 1;
    }
    &whose[..end]
}

/// The id of a new member: whose it is, and a UUID.
pub(in crate::coordinator) fn new_member_id(
    caller: &Caller<'_>,
    request: &JoinGroupRequest<'_>,
    uuid: &[u8; 16],
) -> Arc<str> {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let uuid = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    format!("{}-{uuid}", named_part(caller, request)).into()
}

impl Coordinator {
    pub(in crate::coordinator) fn join_group(
        &mut self,
        cx: &Context<'_>,
        caller: &Caller<'_>,
        request: &JoinGroupRequest<'_>,
        token: Token,
    ) {
        let (id, member_id) = (request.group_id, request.member_id);
        let refusal = self.refuses_join(cx, request);
        if let Some(error) = refusal {
            self.outbox.answer(token, join_refused(member_id, error));
            return;
        }
        let is_new = match self.groups.get(id) {
            Some(Group::Consumer(group)) if !group.is_empty() => {
                return self.join_consumer_group(cx, caller, request, token);
            }
            // Nobody is in it any more: it becomes a classic group, and its offsets stay.
            Some(Group::Consumer(_)) => {
                self.write_group_tombstones(id);
                true
            }
            Some(Group::Classic(_)) => false,
            None => true,
        };
        if is_new {
            let id: Arc<str> = id.into();
            let mut group = ClassicGroup::new(Arc::clone(&id));
            group.enter(cx, ClassicState::Empty);
            // The group is there from now on, for whoever reads the log.
            let record = group.record();
            self.groups.insert(id, Group::Classic(group));
            self.write(record);
        }
        self.with_classic(cx, id, |group, fx| group.join(fx, &Joining { caller, request, token }));
    }

    /// What is wrong with a JoinGroup, whatever its group is like.
    fn refuses_join(&self, cx: &Context<'_>, request: &JoinGroupRequest<'_>) -> Option<ErrorCode> {
        let names = request.protocols.iter().map(|protocol| protocol.name);
        let names = names.chain([request.protocol_type, request.group_instance_id.unwrap_or_default()]);
        let timeouts = cx.config.min_session_timeout_ms..=cx.config.max_session_timeout_ms;
        let is_new = self.groups.get(request.group_id).is_none();
        if request.group_id.is_empty() || request.group_id.len() > GROUP_NAME_BYTES_MAX {
            Some(ErrorCode::InvalidGroupId)
        } else if !timeouts.contains(&request.session_timeout_ms) {
            Some(ErrorCode::InvalidSessionTimeout)
        } else if names.into_iter().any(|name| name.len() > CLIENT_ID_BYTES_MAX) {
            Some(ErrorCode::InvalidRequest)
        } else if is_new && !request.member_id.is_empty() {
            Some(ErrorCode::UnknownMemberId)
        } else if is_new && (request.protocol_type.is_empty() || request.protocols.is_empty()) {
            // Such a member makes no group.
            Some(ErrorCode::InconsistentGroupProtocol)
        } else if is_new && self.groups.len() >= GROUPS_PER_COORDINATOR_MAX {
            Some(ErrorCode::CoordinatorNotAvailable)
        } else {
            None
        }
    }
}

impl ClassicGroup {
    fn join(&mut self, fx: &mut Effects<'_>, joining: &Joining<'_>) {
        let request = joining.request;
        let names = request.protocols.iter().map(|protocol| protocol.name);
        if !self.accepts(request.member_id, fx.cx.config.max_size as usize) {
            joining.refuse(fx, "", ErrorCode::GroupMaxSizeReached);
            let was_member = self.members.contains_key(request.member_id);
            self.remove(fx, request.member_id);
            if was_member {
                self.members_left(fx);
            } else {
                // Perhaps its id was the last that was waited for.
                self.complete_join_if_all_joined(fx);
            }
        } else if !self.supports(request.protocol_type, names) {
            joining.refuse(fx, request.member_id, ErrorCode::InconsistentGroupProtocol);
        } else if self.bytes - self.bytes_of(request.member_id) + joining.bytes() > members_bytes_max(fx.cx) {
            // No record holds it; Kafka finds that out later, and says the same.
            joining.refuse(fx, request.member_id, ErrorCode::UnknownServerError);
        } else if request.member_id.is_empty() {
            self.join_new(fx, joining);
        } else {
            self.join_again(fx, joining);
        }
    }

    /// Whether there is room. While a generation forms, those count who have come to it: members that were there before
    /// compete with new ones.
    fn accepts(&self, member_id: &str, max_size: usize) -> bool {
        let member = self.members.get(member_id);
        let has_room = match self.state {
            ClassicState::Empty => true,
            ClassicState::PreparingRebalance => {
                member.is_some_and(|member| member.join.is_some()) || self.awaiting_join < max_size
            }
            _ => member.is_some() || self.members.len() < max_size,
        };
        let is_known = member.is_some() || self.pending.contains(member_id);
        has_room && (is_known || self.members.len() + self.pending.len() < GROUP_MEMBERS_MAX)
    }

    fn join_new(&mut self, fx: &mut Effects<'_>, joining: &Joining<'_>) {
        let member_id = new_member_id(joining.caller, joining.request, &fx.cx.uuid);
        if let Some(instance_id) = joining.request.group_instance_id {
            match self.static_members.get(instance_id).cloned() {
                Some(former) => self.join_as_static(fx, joining, &former, member_id),
                None => self.add(fx, joining, member_id),
            }
        } else if joining.caller.version >= MEMBER_ID_VERSION {
            fx.session(&self.id, &member_id, millis(joining.request.session_timeout_ms));
            joining.refuse(fx, &member_id, ErrorCode::MemberIdRequired);
            self.add_pending(member_id);
        } else {
            self.add(fx, joining, member_id);
        }
    }

    fn add(&mut self, fx: &mut Effects<'_>, joining: &Joining<'_>, member_id: Arc<str>) {
        if let Some(initial) = &mut self.initial {
            initial.new_member_added = true;
        }
        if self.members.is_empty() {
            self.protocol_type = Some(joining.request.protocol_type.into());
        }
        fx.session(&self.id, &member_id, NEW_MEMBER_TIMEOUT);
        self.insert(joining.member(member_id));
        self.rebalance(fx);
    }

    fn join_again(&mut self, fx: &mut Effects<'_>, joining: &Joining<'_>) {
        let request = joining.request;
        if let Some(member_id) = self.pending.get(request.member_id).cloned() {
            return self.add(fx, joining, member_id);
        }
        if let Err(error) = self.check_member(request.member_id, request.group_instance_id) {
            return joining.refuse(fx, request.member_id, error);
        }
        let member = &self.members[request.member_id];
        let member_id = Arc::clone(&member.id);
        let says_the_same = joining.says_what(member);
        let is_leader = self.is_leader(&member_id);
        match self.state {
            ClassicState::PreparingRebalance => self.update(fx, joining, &member_id),
            // It has not heard of the generation that it is part of.
            ClassicState::CompletingRebalance if says_the_same => {
                fx.outbox.answer(joining.token, self.joined(&member_id, is_leader, false));
            }
            // A leader that joins again has seen something that only it can see, such as topics that grew.
            ClassicState::Stable if says_the_same && !is_leader => {
                fx.outbox.answer(joining.token, self.joined(&member_id, false, false));
            }
            ClassicState::CompletingRebalance | ClassicState::Stable => {
                self.update(fx, joining, &member_id);
            }
            ClassicState::Empty => joining.refuse(fx, "", ErrorCode::UnknownMemberId),
        }
    }

    /// A member is to be in the next generation, with what it says now.
    fn update(&mut self, fx: &mut Effects<'_>, joining: &Joining<'_>, member_id: &Arc<str>) {
        self.take_over(joining, member_id);
        self.park_join(fx, member_id, joining.token);
        self.rebalance(fx);
    }

    fn take_over(&mut self, joining: &Joining<'_>, member_id: &Arc<str>) {
        self.update_protocols(member_id, joining.protocols());
        let member = self.members.get_mut(member_id).expect("a member");
        self.bytes -= member.name_bytes();
        member.rebalance_timeout_ms = joining.rebalance_timeout_ms();
        member.session_timeout_ms = joining.request.session_timeout_ms;
        member.client_id = joining.caller.client_id.into();
        member.client_host = joining.caller.client_host.into();
        self.bytes += member.name_bytes();
    }

    /// A static member comes back, as after a restart, and takes its place under a new id. While it says what the one
    /// before said to the chosen protocol, it gets the assignment of that, and nobody else notices (KIP-345).
    fn join_as_static(
        &mut self,
        fx: &mut Effects<'_>,
        joining: &Joining<'_>,
        former: &Arc<str>,
        member_id: Arc<str>,
    ) {
        let leader_before = self.leader.clone();
        self.replace_static(fx, former, &member_id);
        self.take_over(joining, &member_id);
        self.renew_session(fx, &member_id);
        if self.state != ClassicState::Stable || self.vote() != self.protocol {
            self.park_join(fx, &member_id, joining.token);
            return self.rebalance(fx);
        }
        self.subscribed = self.subscriptions();
        fx.records.push(self.record());
        let is_leader = self.is_leader(&member_id);
        if joining.caller.version >= SKIP_ASSIGNMENT_VERSION {
            fx.outbox.answer(joining.token, self.joined(&member_id, is_leader, is_leader));
            return;
        }
        // An older client that is told to lead would make an assignment that nobody waits for: the leader's former id
        // is none of its own, so that it asks for its assignment as a follower.
        let mut answer = self.joined(&member_id, false, false);
        if let crate::coordinator::Answer::Joined(joined) = &mut answer {
            joined.leader = leader_before.unwrap_or_default();
        }
        fx.outbox.answer(joining.token, answer);
    }
}
