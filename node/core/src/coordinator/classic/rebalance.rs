//! From one generation to the next: the wait for members, the vote on the protocol, the leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flumen_wire::ErrorCode;

use super::members::join_refused;
use super::{ClassicGroup, ClassicState, Effects, InitialRebalance, millis};
use crate::coordinator::answer::{Answer, JoinAnswer, JoinedMember};
use crate::coordinator::timers::Timer;
use crate::coordinator::{Context, Coordinator};

/// The shortest time that members have for a rebalance. One that asks for less, or for none, would have the others gone
/// before they can hear of it.
const REBALANCE_TIMEOUT_MIN: Duration = Duration::from_secs(1);

impl ClassicGroup {
    /// Begins a new generation, unless one is being formed already: that one may be complete now.
    pub(super) fn rebalance(&mut self, fx: &mut Effects<'_>) {
        if self.state == ClassicState::PreparingRebalance {
            self.complete_join_if_all_joined(fx);
        } else {
            self.prepare_rebalance(fx);
        }
    }

    /// Has all members join again.
    pub(super) fn prepare_rebalance(&mut self, fx: &mut Effects<'_>) {
        if self.state == ClassicState::CompletingRebalance {
            // The assignment that they wait for will not be made.
            self.refuse_syncs(fx, ErrorCode::RebalanceInProgress);
        }
        self.pending_sync.clear();
        fx.timers.cancel(&self.id, Timer::Sync);
        if self.state == ClassicState::Empty {
            let delay = Duration::from_millis(u64::from(fx.cx.config.initial_rebalance_delay_ms));
            let remaining = self.rebalance_timeout().saturating_sub(delay);
            self.enter(fx.cx, ClassicState::PreparingRebalance);
            if delay.is_zero() {
                return self.complete_join(fx);
            }
            self.initial = Some(InitialRebalance { new_member_added: false, remaining, delay });
            fx.timers.set(&self.id, Timer::Join, fx.cx.now + delay);
        } else {
            self.enter(fx.cx, ClassicState::PreparingRebalance);
            if self.all_have_joined() {
                self.complete_join(fx);
            } else {
                fx.timers.set(&self.id, Timer::Join, fx.cx.now + self.rebalance_timeout());
            }
        }
    }

    /// Completes the join phase if nobody is missing. The first of a group that was empty lasts its whole delay.
    pub(super) fn complete_join_if_all_joined(&mut self, fx: &mut Effects<'_>) {
        if self.state == ClassicState::PreparingRebalance && self.initial.is_none() && self.all_have_joined()
        {
            self.complete_join(fx);
        }
    }

    fn all_have_joined(&self) -> bool {
        self.members.len() == self.awaiting_join && self.pending.is_empty()
    }

    /// The longest time that any member takes to join.
    fn rebalance_timeout(&self) -> Duration {
        let own = self.members.values().map(|member| millis(member.rebalance_timeout_ms));
        own.max().unwrap_or_default().max(REBALANCE_TIMEOUT_MIN)
    }

    /// The time for joining is over.
    fn join_time_is_up(&mut self, fx: &mut Effects<'_>) {
        if self.state != ClassicState::PreparingRebalance {
            return;
        }
        match self.initial.take() {
            // Members still come: wait on, up to the rebalance timeout.
            Some(initial) if initial.new_member_added && !initial.remaining.is_zero() => {
                let base = Duration::from_millis(u64::from(fx.cx.config.initial_rebalance_delay_ms));
                let delay = base.min(initial.remaining);
                let remaining = initial.remaining.saturating_sub(initial.delay);
                self.initial = Some(InitialRebalance { new_member_added: false, remaining, delay });
                fx.timers.set(&self.id, Timer::Join, fx.cx.now + delay);
            }
            _ => self.complete_join(fx),
        }
    }

    /// The generation stands, with those who came. Static members that did not come stay until their session ends.
    fn complete_join(&mut self, fx: &mut Effects<'_>) {
        fx.timers.cancel(&self.id, Timer::Join);
        self.initial = None;
        let late = self.members.values().filter(|m| m.join.is_none() && m.group_instance_id.is_none());
        for member_id in late.map(|member| Arc::clone(&member.id)).collect::<Vec<_>>() {
            self.remove(fx, &member_id);
        }
        if !self.elect_leader() && !self.members.is_empty() {
            // Only static members are left, and none of them has come: wait for them, or for their sessions to end.
            fx.timers.set(&self.id, Timer::Join, fx.cx.now + self.rebalance_timeout());
            return;
        }
        self.generation_id = self.generation_id.checked_add(1).unwrap_or(1);
        self.pending_sync.clear();
        if self.members.is_empty() {
            self.protocol = None;
            self.leader = None;
            self.subscribed = self.subscriptions();
            self.enter(fx.cx, ClassicState::Empty);
            fx.records.push(self.record());
            return;
        }
        self.protocol = self.vote();
        self.subscribed = self.subscriptions();
        self.enter(fx.cx, ClassicState::CompletingRebalance);
        for member_id in self.members.keys().cloned().collect::<Vec<_>>() {
            if let Some(token) = self.take_join(&member_id) {
                fx.outbox.answer(token, self.joined(&member_id, self.is_leader(&member_id), false));
            }
            self.renew_session(fx, &member_id);
            self.members.get_mut(&member_id).expect("a member").is_new = false;
            self.pending_sync.insert(member_id);
        }
        fx.timers.set(&self.id, Timer::Sync, fx.cx.now + self.rebalance_timeout());
    }

    /// Sees to it that the leader is one who has joined. False if nobody has.
    fn elect_leader(&mut self) -> bool {
        let has_joined = |id: &Arc<str>| self.members.get(id).is_some_and(|member| member.join.is_some());
        if self.leader.as_ref().is_some_and(has_joined) {
            return true;
        }
        match self.members.values().find(|member| member.join.is_some()) {
            Some(member) => {
                self.leader = Some(Arc::clone(&member.id));
                true
            }
            None => false,
        }
    }

    /// The protocol that most members prefer among those that all of them speak.
    pub(super) fn vote(&self) -> Option<Arc<str>> {
        let mut votes: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
        let is_candidate = |name: &Arc<str>| self.supported.get(name) == Some(&self.members.len());
        for member in self.members.values() {
            let mut names = member.protocols.iter().map(|(name, _)| name);
            *votes.entry(names.find(|name| is_candidate(name))?).or_default() += 1;
        }
        // Where votes are equal, the leader's preference decides, so that the same members get the same protocol.
        let leader = self.leader.as_ref().and_then(|leader| self.members.get(leader))?;
        let rank = |name: &Arc<str>| leader.protocols.iter().position(|(own, _)| own == name);
        let best = votes.into_iter().max_by_key(|(name, count)| (*count, std::cmp::Reverse(rank(name))));
        best.map(|(name, _)| Arc::clone(name))
    }

    /// What a member hears of the generation.
    pub(super) fn joined(&self, member_id: &Arc<str>, with_members: bool, skip_assignment: bool) -> Answer {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let told = if with_members { usize::MAX } else { 0 };
        let members = self.members.values().take(told).map(|member| JoinedMember {
            member_id: Arc::clone(&member.id),
            group_instance_id: member.group_instance_id.clone(),
            metadata: member.metadata(protocol),
        });
        Answer::Joined(JoinAnswer {
            error: ErrorCode::None,
            generation_id: self.generation_id,
            protocol_type: self.protocol_type.clone(),
            protocol_name: self.protocol.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            skip_assignment,
            member_id: Arc::clone(member_id),
            members: members.collect(),
        })
    }

    /// Members that were not heard of since the generation stands are removed; the others join again.
    fn sync_time_is_up(&mut self, fx: &mut Effects<'_>) {
        let in_generation = matches!(self.state, ClassicState::CompletingRebalance | ClassicState::Stable);
        if !in_generation || self.pending_sync.is_empty() {
            return;
        }
        for member_id in std::mem::take(&mut self.pending_sync) {
            self.remove(fx, &member_id);
        }
        self.rebalance(fx);
    }

    /// A member was silent for its session timeout. Whoever waits for an answer of ours is not silent, unless it is new:
    /// then it may not know its id, and could never be heard of again.
    fn session_is_over(&mut self, fx: &mut Effects<'_>, member_id: &Arc<str>) {
        if self.take_pending(member_id).is_some() {
            self.complete_join_if_all_joined(fx);
            return;
        }
        let Some(member) = self.members.get(member_id) else { return };
        if !member.is_new && (member.join.is_some() || member.sync.is_some()) {
            return;
        }
        if let Some(token) = self.take_join(member_id) {
            fx.outbox.answer(token, join_refused("", ErrorCode::UnknownMemberId));
        }
        self.remove(fx, member_id);
        self.members_left(fx);
    }

    /// Some members are gone: the others form a new generation.
    pub(super) fn members_left(&mut self, fx: &mut Effects<'_>) {
        match self.state {
            ClassicState::Empty => {}
            ClassicState::Stable | ClassicState::CompletingRebalance => self.rebalance(fx),
            ClassicState::PreparingRebalance => self.complete_join_if_all_joined(fx),
        }
    }
}

impl Coordinator {
    /// A deadline of a classic group has passed.
    pub(in crate::coordinator) fn classic_timer(
        &mut self,
        cx: &Context<'_>,
        group: &Arc<str>,
        timer: &Timer,
    ) {
        self.with_classic(cx, group, |group, fx| match timer {
            Timer::Join => group.join_time_is_up(fx),
            Timer::Sync => group.sync_time_is_up(fx),
            Timer::Session(member) => group.session_is_over(fx, member),
            Timer::ConsumerSession(_) | Timer::ConsumerRebalance(_) => {
                unreachable!("not of a classic group")
            }
        });
    }
}
