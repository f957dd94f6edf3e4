//! Consumer groups within their coordinator: requests, timers and records come in here, and become decisions of one
//! group.

use std::sync::Arc;
use std::time::Duration;

use flumen_wire::ErrorCode;
use flumen_wire::messages::consumer_group_heartbeat_request::ConsumerGroupHeartbeatRequest;

use super::heartbeat::check;
use super::{
    Change, Client, ConsumerGroup, Context, Decision, GroupSettings, GroupState, Heartbeat, HeartbeatAnswer,
    Refused, TimerChange,
};
use crate::coordinator::answer::{Answer, ListedGroup};
use crate::coordinator::assignor::Assignor;
use crate::coordinator::classic::ClassicState;
use crate::coordinator::groups::{Group, Groups};
use crate::coordinator::record::{Decoded, Record};
use crate::coordinator::timers::Timer;
use crate::coordinator::{self, Caller, Coordinator};
use crate::limits::{GROUP_MEMBERS_MAX, GROUPS_PER_COORDINATOR_MAX};
use crate::types::TopicId;

impl GroupSettings {
    fn of(cx: &coordinator::Context<'_>, group_id: &str) -> GroupSettings {
        let config = cx.config;
        let own = config.of_consumer_group(cx.image.group_overrides(group_id).map(AsRef::as_ref));
        let int = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        GroupSettings {
            heartbeat_interval_ms: int(own.heartbeat_interval_ms),
            session_timeout_ms: int(own.session_timeout_ms),
            assignment_interval_ms: int(own.assignment_interval_ms),
            assignors: config
                .consumer_assignors
                .iter()
                .filter_map(|name| Assignor::from_name(name))
                .collect(),
            max_size: (config.consumer_max_size as usize).min(GROUP_MEMBERS_MAX),
        }
    }
}

/// Runs `decide` with what decisions of a group are made from.
pub(super) fn in_context<R>(
    cx: &coordinator::Context<'_>,
    group_id: &str,
    decide: impl FnOnce(&Context<'_>) -> R,
) -> R {
    let settings = GroupSettings::of(cx, group_id);
    decide(&Context { image: cx.image, settings: &settings, now_ms: cx.now_ms })
}

/// A decision in the bytes of the log.
pub(super) struct Encoded<R> {
    records: Vec<Record>,
    answer: R,
    timers: Vec<TimerChange>,
}

impl<R> Decision<R> {
    pub(super) fn encode(self, group_id: &str) -> Encoded<R> {
        let Decision { records, answer, timers } = self;
        let records = records.iter().map(|change| change.encode(group_id)).collect();
        Encoded { records, answer, timers }
    }
}

impl<R> Encoded<R> {
    /// Refuses what the log does not take, as Kafka does.
    pub(super) fn fitting(self, cx: &coordinator::Context<'_>) -> Result<Encoded<R>, Refused> {
        if fits(cx, &self.records) {
            return Ok(self);
        }
        let text = "What was decided is larger than a record batch may be.";
        Err(Refused::new(ErrorCode::UnknownServerError, text))
    }
}

/// Whether records may be written as one of two parts of a decision: a change of the group, and its change of kind.
pub(super) fn fits(cx: &coordinator::Context<'_>, records: &[Record]) -> bool {
    records.iter().map(Record::len_bytes).sum::<usize>() <= cx.decision_bytes_max / 2
}

/// Requests.
impl Coordinator {
    pub(in crate::coordinator) fn consumer_group_heartbeat(
        &mut self,
        cx: &coordinator::Context<'_>,
        caller: &Caller<'_>,
        request: &ConsumerGroupHeartbeatRequest<'_>,
    ) -> Answer {
        // As Kafka makes them: a UUID in base64.
        let new_member_id = TopicId(cx.uuid).to_string();
        let heartbeat = Heartbeat {
            request,
            version: caller.version,
            client: Client { id: caller.client_id, host: caller.client_host },
            new_member_id: &new_member_id,
        };
        Answer::ConsumerHeartbeat(self.decide_heartbeat(cx, &heartbeat))
    }

    fn decide_heartbeat(
        &mut self,
        cx: &coordinator::Context<'_>,
        heartbeat: &Heartbeat<'_>,
    ) -> Result<HeartbeatAnswer, Refused> {
        let id = heartbeat.request.group_id;
        // A request that no group would take is told so, whether or not there is one.
        let not_found = |text: String| {
            in_context(cx, id, |context| check(context, heartbeat))?;
            Err(Refused::new(ErrorCode::GroupIdNotFound, text))
        };
        let joins = heartbeat.request.member_epoch == 0;
        let decision = match self.groups.get(id) {
            Some(Group::Consumer(group)) => {
                in_context(cx, id, |context| group.heartbeat(context, heartbeat))?
            }
            Some(Group::Classic(group)) if joins && group.state() == ClassicState::Empty => {
                // Nobody is in it any more: it becomes a consumer group, and its offsets stay.
                self.first_heartbeat(cx, heartbeat)?
            }
            Some(Group::Classic(_)) if joins => return self.upgrade(cx, heartbeat),
            Some(Group::Classic(_)) => return not_found(format!("Group {id} is not a consumer group.")),
            None if joins && self.groups.len() >= GROUPS_PER_COORDINATOR_MAX => {
                let text = format!("There are {GROUPS_PER_COORDINATOR_MAX} groups already.");
                return Err(Refused::new(ErrorCode::GroupMaxSizeReached, text));
            }
            None if joins => self.first_heartbeat(cx, heartbeat)?,
            None => return not_found(format!("Group {id} not found.")),
        };
        let id: Arc<str> = id.into();
        let decision = decision.encode(&id).fitting(cx)?;
        if self.groups.consumer(&id).is_none() {
            self.write_group_tombstones(&id);
            self.timers.cancel_group(&id);
        }
        Ok(self.carry_out(cx, &id, decision))
    }

    /// Decides on a heartbeat in a group that is not there.
    fn first_heartbeat(
        &self,
        cx: &coordinator::Context<'_>,
        heartbeat: &Heartbeat<'_>,
    ) -> Result<Decision<HeartbeatAnswer>, Refused> {
        let group = ConsumerGroup::new(heartbeat.request.group_id.into());
        in_context(cx, heartbeat.request.group_id, |context| group.heartbeat(context, heartbeat))
    }

    pub(in crate::coordinator) fn describe_consumer_group(
        &self,
        cx: &coordinator::Context<'_>,
        group_id: &str,
    ) -> Answer {
        let refused = |text: String| Err(Refused::new(ErrorCode::GroupIdNotFound, text));
        Answer::ConsumerDescribed(match self.groups.get(group_id) {
            Some(Group::Consumer(group)) => Ok(in_context(cx, group_id, |context| group.describe(context))),
            Some(Group::Classic(_)) => refused(format!("Group {group_id} is not a consumer group.")),
            None => refused(format!("Group {group_id} not found.")),
        })
    }

    /// Writes what was decided and sets the timers. A group that has lost its last member of the consumer protocol by
    /// it becomes a classic one.
    pub(super) fn carry_out<R>(
        &mut self,
        cx: &coordinator::Context<'_>,
        group_id: &Arc<str>,
        decision: Encoded<R>,
    ) -> R {
        self.write_all(decision.records);
        decision.timers.into_iter().for_each(|change| self.set_timer(cx, group_id, change));
        self.downgrade_if_all_classic(cx, group_id);
        decision.answer
    }
}

/// Timers.
impl Coordinator {
    pub(super) fn set_timer(
        &mut self,
        cx: &coordinator::Context<'_>,
        group_id: &Arc<str>,
        change: TimerChange,
    ) {
        let at = |after_ms: i32| cx.now + Duration::from_millis(u64::try_from(after_ms).unwrap_or(0));
        match change {
            TimerChange::Session { member_id, after_ms } => {
                self.timers.set(group_id, Timer::ConsumerSession(member_id), at(after_ms));
            }
            TimerChange::Rebalance { member_id, after_ms } => {
                self.timers.set(group_id, Timer::ConsumerRebalance(member_id), at(after_ms));
            }
            TimerChange::RebalanceUnlessSet { member_id, after_ms } => {
                let timer = Timer::ConsumerRebalance(member_id);
                if !self.timers.is_set(group_id, timer.clone()) {
                    self.timers.set(group_id, timer, at(after_ms));
                }
            }
            TimerChange::StopRebalance { member_id } => {
                self.timers.cancel(group_id, Timer::ConsumerRebalance(member_id));
            }
            TimerChange::Stop { member_id } => {
                self.timers.cancel(group_id, Timer::ConsumerSession(Arc::clone(&member_id)));
                self.timers.cancel(group_id, Timer::ConsumerRebalance(member_id));
            }
        }
    }

    /// The log is loaded: sessions begin.
    pub(in crate::coordinator) fn consumer_groups_loaded(&mut self, cx: &coordinator::Context<'_>) {
        let consumers = self.groups.iter().filter_map(|(id, group)| match group {
            Group::Consumer(group) => {
                Some((Arc::clone(id), in_context(cx, id, |context| group.timers(context))))
            }
            Group::Classic(_) => None,
        });
        for (id, timers) in consumers.collect::<Vec<_>>() {
            timers.into_iter().for_each(|change| self.set_timer(cx, &id, change));
        }
    }

    pub(in crate::coordinator) fn consumer_session_expired(
        &mut self,
        cx: &coordinator::Context<'_>,
        group_id: &Arc<str>,
        member_id: &str,
    ) {
        if let Some(group) = self.groups.consumer(group_id) {
            let decision = in_context(cx, group_id, |context| group.session_expired(context, member_id));
            self.carry_out(cx, group_id, decision.encode(group_id));
        }
    }

    pub(in crate::coordinator) fn consumer_rebalance_expired(
        &mut self,
        cx: &coordinator::Context<'_>,
        group_id: &Arc<str>,
        member_id: &str,
    ) {
        if let Some(group) = self.groups.consumer(group_id) {
            let decision = in_context(cx, group_id, |context| group.rebalance_expired(context, member_id));
            self.carry_out(cx, group_id, decision.encode(group_id));
        }
    }
}

impl Groups {
    /// Replays a record of a consumer group. One that says something makes the group, in place of a classic group that
    /// had its id; one that takes something back changes only what is there.
    pub(in crate::coordinator) fn replay_consumer(&mut self, record: &Decoded<'_>) {
        let Some((id, change)) = Change::decode(record) else { return };
        if self.consumer(id).is_none() {
            if change.is_tombstone() {
                return;
            }
            let id: Arc<str> = id.into();
            self.insert(Arc::clone(&id), Group::Consumer(ConsumerGroup::new(id)));
        }
        if change == Change::Epoch(None) {
            // The last of a group's tombstones.
            self.remove(id);
        } else if let Some(group) = self.consumer_mut(id) {
            group.replay(&change);
        }
    }
}

/// What the registry wants to know.
impl ConsumerGroup {
    pub(in crate::coordinator) fn listed(&self) -> ListedGroup {
        ListedGroup {
            group_id: Arc::clone(&self.id),
            protocol_type: "consumer".into(),
            state: self.state().name(),
            group_type: "consumer",
        }
    }

    /// Hard state as records.
    pub(in crate::coordinator) fn snapshot(&self, records: &mut Vec<Record>) {
        records.extend(self.changes().iter().map(|change| change.encode(&self.id)));
    }

    /// Why DeleteGroups may not take it.
    pub(in crate::coordinator) fn refuses_deletion(&self) -> Option<ErrorCode> {
        (self.state() != GroupState::Empty).then_some(ErrorCode::NonEmptyGroup)
    }

    /// The records that end it.
    pub(in crate::coordinator) fn tombstones(&self) -> Vec<Record> {
        // The group itself stands first among what it consists of, and goes last.
        self.changes().iter().rev().map(|change| change.to_tombstone().encode(&self.id)).collect()
    }
}
