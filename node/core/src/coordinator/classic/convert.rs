//! A classic group becomes a consumer group, and back (KIP-848, online migration). What moves is here; what becomes of it
//! on the other side is in `consumer::migrate`.

use std::sync::Arc;

use bytes::Bytes;
use flumen_wire::ErrorCode;

use super::members::join_refused;
use super::{ClassicGroup, ClassicState, Member, Protocol, millis};
use crate::coordinator::answer::Answer;
use crate::coordinator::groups::Group;
use crate::coordinator::{Context, Coordinator};

/// A member on its way between a classic and a consumer group.
#[derive(Clone, Debug)]
pub(in crate::coordinator) struct MovedMember {
    pub(in crate::coordinator) id: Arc<str>,
    pub(in crate::coordinator) group_instance_id: Option<Arc<str>>,
    pub(in crate::coordinator) client_id: Arc<str>,
    pub(in crate::coordinator) client_host: Arc<str>,
    pub(in crate::coordinator) rebalance_timeout_ms: i32,
    pub(in crate::coordinator) session_timeout_ms: i32,
    pub(in crate::coordinator) protocols: Vec<Protocol>,
    pub(in crate::coordinator) assignment: Bytes,
}

impl ClassicGroup {
    pub(in crate::coordinator) fn generation_id(&self) -> i32 {
        self.generation_id
    }

    /// What of its members moves to a consumer group.
    pub(in crate::coordinator) fn moving(&self) -> impl ExactSizeIterator<Item = MovedMember> {
        self.members.values().map(|member| MovedMember {
            id: Arc::clone(&member.id),
            group_instance_id: member.group_instance_id.clone(),
            client_id: Arc::clone(&member.client_id),
            client_host: Arc::clone(&member.client_host),
            rebalance_timeout_ms: member.rebalance_timeout_ms,
            session_timeout_ms: member.session_timeout_ms,
            protocols: member.protocols.clone(),
            assignment: member.assignment.clone(),
        })
    }

    /// The protocol of this generation; that of the vote before there is any.
    pub(in crate::coordinator) fn spoken_protocol(&self) -> Option<Arc<str>> {
        self.protocol.clone().or_else(|| self.vote())
    }

    /// The classic group that takes the place of a consumer group. Its members have what they had.
    pub(in crate::coordinator) fn of_moved(
        cx: &Context<'_>,
        id: &Arc<str>,
        generation_id: i32,
        protocol_type: &str,
        members: Vec<MovedMember>,
    ) -> ClassicGroup {
        let mut group = ClassicGroup::new(Arc::clone(id));
        group.enter(cx, ClassicState::Stable);
        group.generation_id = generation_id;
        group.protocol_type = Some(protocol_type.into());
        for moved in members {
            group.insert(Member {
                id: moved.id,
                group_instance_id: moved.group_instance_id,
                client_id: moved.client_id,
                client_host: moved.client_host,
                rebalance_timeout_ms: moved.rebalance_timeout_ms,
                session_timeout_ms: moved.session_timeout_ms,
                protocols: moved.protocols,
                assignment: moved.assignment,
                join: None,
                sync: None,
                is_new: false,
            });
        }
        group.protocol = group.vote();
        group.subscribed = group.subscriptions();
        group
    }
}

impl Coordinator {
    /// Ends a classic group whose members have moved. Whoever waits in it has to join again.
    pub(in crate::coordinator) fn end_moved_classic(&mut self, cx: &Context<'_>, id: &str) {
        self.with_classic(cx, id, |group, fx| {
            for member_id in group.members.keys().cloned().collect::<Vec<_>>() {
                if let Some(token) = group.take_join(&member_id) {
                    fx.outbox.answer(token, join_refused(&member_id, ErrorCode::RebalanceInProgress));
                }
                let member = group.members.get_mut(&member_id).expect("a member");
                if let Some(token) = member.sync.take() {
                    fx.outbox.answer(token, Answer::Failed(ErrorCode::RebalanceInProgress));
                }
            }
        });
        self.write_group_tombstones(id);
    }

    /// Puts in a group whose members have moved, and has them join.
    pub(in crate::coordinator) fn begin_moved_classic(&mut self, cx: &Context<'_>, group: ClassicGroup) {
        let id = Arc::clone(&group.id);
        self.write(group.record());
        let written = self.groups.classic(&id).expect("it was written").written.clone();
        self.groups.insert(Arc::clone(&id), Group::Classic(ClassicGroup { written, ..group }));
        self.with_classic(cx, &id, |group, fx| {
            for member in group.members.values() {
                fx.session(&group.id, &member.id, millis(member.session_timeout_ms));
            }
            group.prepare_rebalance(fx);
        });
    }
}
