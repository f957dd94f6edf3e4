//! Members of a classic group: in, out, what they speak.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use flumen_wire::ErrorCode;

use super::{ClassicGroup, Effects, Member, Protocol, millis};
use crate::coordinator::answer::{Answer, JoinAnswer, SyncAnswer};
use crate::coordinator::outbox::Token;
use crate::coordinator::timers::Timer;

impl Member {
    /// What it says to a protocol.
    pub(super) fn metadata(&self, protocol: &str) -> Bytes {
        let said = self.protocols.iter().find(|(name, _)| &**name == protocol);
        said.map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }

    /// Bytes of its names.
    pub(super) fn name_bytes(&self) -> usize {
        let instance = self.group_instance_id.as_ref().map_or(0, |name| name.len());
        self.id.len() + instance + self.client_id.len() + self.client_host.len()
    }

    pub(super) fn said(&self, protocol: &str) -> &[u8] {
        let said = self.protocols.iter().find(|(name, _)| &**name == protocol);
        said.map_or(&[], |(_, metadata)| metadata)
    }
}

/// The refusal of a JoinGroup.
pub(in crate::coordinator) fn join_refused(member_id: &str, error: ErrorCode) -> Answer {
    Answer::Joined(JoinAnswer {
        error,
        generation_id: -1,
        protocol_type: None,
        protocol_name: None,
        leader: "".into(),
        skip_assignment: false,
        member_id: member_id.into(),
        members: Vec::new(),
    })
}

fn bytes_of(protocols: &[Protocol]) -> usize {
    protocols.iter().map(|(name, metadata)| name.len() + metadata.len()).sum()
}

impl ClassicGroup {
    /// Whether all members speak one of these protocols.
    pub(super) fn supports<'p>(
        &self,
        protocol_type: &str,
        mut names: impl Iterator<Item = &'p str> + Clone,
    ) -> bool {
        if self.members.is_empty() {
            return !protocol_type.is_empty() && names.next().is_some();
        }
        let is_spoken_by_all = |name: &str| self.supported.get(name) == Some(&self.members.len());
        self.protocol_type.as_deref() == Some(protocol_type) && names.any(is_spoken_by_all)
    }

    /// Whether this member may act in this group: KIP-345's rules for static members included.
    pub(super) fn check_member(&self, member_id: &str, instance_id: Option<&str>) -> Result<(), ErrorCode> {
        if let Some(instance_id) = instance_id {
            match self.static_members.get(instance_id) {
                None => return Err(ErrorCode::UnknownMemberId),
                Some(current) if &**current != member_id => return Err(ErrorCode::FencedInstanceId),
                Some(_) => {}
            }
        }
        if self.members.contains_key(member_id) { Ok(()) } else { Err(ErrorCode::UnknownMemberId) }
    }

    /// Puts a member in. The first one brings its type of protocols and leads.
    pub(super) fn insert(&mut self, member: Member) {
        let id = Arc::clone(&member.id);
        self.take_pending(&id);
        if self.leader.is_none() {
            self.leader = Some(Arc::clone(&id));
        }
        if let Some(instance_id) = &member.group_instance_id {
            self.static_members.insert(Arc::clone(instance_id), Arc::clone(&id));
        }
        self.count_protocols(&member.protocols, true);
        self.bytes += member.name_bytes();
        self.awaiting_join += usize::from(member.join.is_some());
        let before = self.members.insert(id, member);
        assert!(before.is_none(), "a member is in a group once");
    }

    /// Takes a member out; whatever waits in its name is answered.
    pub(super) fn remove(&mut self, fx: &mut Effects<'_>, member_id: &str) {
        self.refuse_waiting(fx, member_id, "", ErrorCode::UnknownMemberId);
        self.pending_sync.remove(member_id);
        if let Some(pending) = self.take_pending(member_id) {
            fx.timers.cancel(&self.id, Timer::Session(pending));
        }
        let Some(member) = self.members.remove(member_id) else { return };
        self.count_protocols(&member.protocols, false);
        self.bytes -= member.name_bytes();
        if let Some(instance_id) = &member.group_instance_id
            && self.static_members.get(instance_id) == Some(&member.id)
        {
            self.static_members.remove(instance_id);
        }
        if self.leader.as_ref() == Some(&member.id) {
            self.leader = self.members.keys().next().cloned();
        }
        fx.timers.cancel(&self.id, Timer::Session(member.id));
    }

    /// What a member, if it is one or is about to be, has added to the group.
    pub(super) fn bytes_of(&self, member_id: &str) -> usize {
        match self.members.get(member_id) {
            Some(member) => member.name_bytes() + bytes_of(&member.protocols),
            None => self.pending.get(member_id).map_or(0, |id| id.len()),
        }
    }

    /// An id was given out.
    pub(super) fn add_pending(&mut self, member_id: Arc<str>) {
        self.bytes += member_id.len();
        let is_new = self.pending.insert(member_id);
        assert!(is_new, "an id is given out once");
    }

    /// It was used, or will not be.
    pub(super) fn take_pending(&mut self, member_id: &str) -> Option<Arc<str>> {
        let pending = self.pending.take(member_id)?;
        self.bytes -= pending.len();
        Some(pending)
    }

    fn count_protocols(&mut self, protocols: &[Protocol], present: bool) {
        let bytes = bytes_of(protocols);
        self.bytes = if present { self.bytes + bytes } else { self.bytes - bytes };
        // A protocol that a member names twice counts once.
        let unique: BTreeMap<&Arc<str>, ()> = protocols.iter().map(|(name, _)| (name, ())).collect();
        for (name, ()) in unique {
            let count = self.supported.entry(Arc::clone(name)).or_default();
            *count = if present { *count + 1 } else { *count - 1 };
            if *count == 0 {
                self.supported.remove(name);
            }
        }
    }

    /// What a member says changes.
    pub(super) fn update_protocols(&mut self, member_id: &str, protocols: Vec<Protocol>) {
        let member = self.members.get_mut(member_id).expect("a member");
        let before = std::mem::replace(&mut member.protocols, protocols.clone());
        self.count_protocols(&before, false);
        self.count_protocols(&protocols, true);
    }

    /// Gives a static member's place to whoever came with its name, under a new id. The one before is told, if it
    /// waits for something.
    pub(super) fn replace_static(&mut self, fx: &mut Effects<'_>, old_id: &str, new_id: &Arc<str>) {
        self.refuse_waiting(fx, old_id, old_id, ErrorCode::FencedInstanceId);
        let mut member = self.members.remove(old_id).expect("a static member is a member");
        self.bytes -= member.name_bytes();
        fx.timers.cancel(&self.id, Timer::Session(Arc::clone(&member.id)));
        member.id = Arc::clone(new_id);
        if self.pending_sync.remove(old_id) {
            self.pending_sync.insert(Arc::clone(new_id));
        }
        if self.leader.as_deref() == Some(old_id) {
            self.leader = Some(Arc::clone(new_id));
        }
        let instance_id = member.group_instance_id.clone().expect("it is static");
        self.static_members.insert(instance_id, Arc::clone(new_id));
        self.bytes += member.name_bytes();
        self.members.insert(Arc::clone(new_id), member);
    }

    /// Answers what a member waits for with an error.
    fn refuse_waiting(&mut self, fx: &mut Effects<'_>, member_id: &str, told_id: &str, error: ErrorCode) {
        if let Some(token) = self.take_join(member_id) {
            fx.outbox.answer(token, join_refused(told_id, error));
        }
        if let Some(token) = self.members.get_mut(member_id).and_then(|member| member.sync.take()) {
            fx.outbox.answer(token, Answer::Failed(error));
        }
    }

    /// Parks a JoinGroup. One of the same member that still waits is a former try of it.
    pub(super) fn park_join(&mut self, fx: &mut Effects<'_>, member_id: &str, token: Token) {
        if let Some(former) = self.take_join(member_id) {
            fx.outbox.answer(former, join_refused(member_id, ErrorCode::RebalanceInProgress));
        }
        let member = self.members.get_mut(member_id).expect("a member");
        member.join = Some(token);
        self.awaiting_join += 1;
    }

    pub(super) fn take_join(&mut self, member_id: &str) -> Option<Token> {
        let token = self.members.get_mut(member_id)?.join.take()?;
        self.awaiting_join -= 1;
        Some(token)
    }

    /// Parks a SyncGroup, as above.
    pub(super) fn park_sync(&mut self, fx: &mut Effects<'_>, member_id: &str, token: Token) {
        let member = self.members.get_mut(member_id).expect("a member");
        if let Some(former) = member.sync.replace(token) {
            fx.outbox.answer(former, Answer::Failed(ErrorCode::RebalanceInProgress));
        }
    }

    /// A member was heard of.
    pub(super) fn renew_session(&self, fx: &mut Effects<'_>, member_id: &str) {
        if let Some(member) = self.members.get(member_id) {
            fx.session(&self.id, &member.id, millis(member.session_timeout_ms));
        }
    }

    pub(super) fn is_leader(&self, member_id: &str) -> bool {
        self.leader.as_deref() == Some(member_id)
    }

    /// What a member is assigned in this generation.
    pub(super) fn assignment_of(&self, member_id: &str) -> Answer {
        let member = self.members.get(member_id).expect("a member");
        Answer::Synced(SyncAnswer {
            protocol_type: self.protocol_type.clone(),
            protocol_name: self.protocol.clone(),
            assignment: member.assignment.clone(),
        })
    }
}
