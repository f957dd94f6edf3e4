//! Heartbeats: members join, stay and leave by them, and learn from the answers what to own (KIP-848, KIP-345).
//!
//! | member epoch | meaning |
//! |---|---|
//! | 0 | joins, or joins again, owning nothing |
//! | above 0 | is here, in this epoch; says what it owns when that has changed |
//! | -1 | leaves for good |
//! | -2 | a static member that will come back: what it has stays its own until its session ends |

use std::sync::Arc;

use flumen_wire::ErrorCode;
use flumen_wire::messages::consumer_group_heartbeat_request::ConsumerGroupHeartbeatRequest;

use super::super::assignor::{Assignor, Partitions};
use super::change::{AssignmentEpochs, Change, CurrentAssignment, MemberMetadata, MemberState};
use super::group::{ConsumerGroup, Draft, Member};
use super::{Context, Decision, Refused, TimerChange, partitions_of};
use crate::limits::{GROUP_MEMBER_TOPICS_MAX, GROUP_MEMBERS_BYTES_MAX, GROUP_NAME_BYTES_MAX, PARTITIONS_MAX};

/// The epoch with which a member leaves.
pub const LEAVE_EPOCH: i32 = -1;
/// The epoch with which a static member leaves to come back, and which it has meanwhile.
pub const LEAVE_STATIC_EPOCH: i32 = -2;

/// What it says, what it is to have and what it has.
const RECORDS_PER_MEMBER: usize = 3;

/// A heartbeat.
#[derive(Clone, Copy, Debug)]
pub struct Heartbeat<'a> {
    /// As it came.
    pub request: &'a ConsumerGroupHeartbeatRequest<'a>,
    /// In which version.
    pub version: i16,
    /// Who sent it.
    pub client: Client<'a>,
    /// An id for a member that has none: version 0 leaves it to the broker.
    pub new_member_id: &'a str,
}

/// Who speaks for a member.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// What the client calls itself.
    pub id: &'a str,
    /// The address that it speaks from.
    pub host: &'a str,
}

/// What a heartbeat is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    /// The member.
    pub member_id: Arc<str>,
    /// Its epoch from now on.
    pub member_epoch: i32,
    /// When it is to send the next one.
    pub heartbeat_interval_ms: i32,
    /// What it is to own from now on; `None`: as before.
    pub assignment: Option<Partitions>,
}

impl ConsumerGroup {
    /// Decides on a heartbeat.
    pub fn heartbeat(
        &self,
        context: &Context<'_>,
        heartbeat: &Heartbeat<'_>,
    ) -> Result<Decision<HeartbeatAnswer>, Refused> {
        check(context, heartbeat)?;
        match heartbeat.request.member_epoch {
            LEAVE_EPOCH | LEAVE_STATIC_EPOCH => self.leave(context, heartbeat.request),
            _ => match self.undisturbed(context, heartbeat) {
                Some(decision) => {
                    debug_assert!(self.stay(context, heartbeat).is_ok_and(|whole| {
                        (whole.records, whole.answer, whole.timers)
                            == (Vec::new(), decision.answer.clone(), decision.timers.clone())
                    }));
                    Ok(decision)
                }
                None => self.stay(context, heartbeat),
            },
        }
    }

    /// What `stay` comes to where a member says nothing new and there is nothing new for it: nearly always. What it has, which
    /// may be thousands of partitions, is not looked at.
    fn undisturbed(
        &self,
        context: &Context<'_>,
        heartbeat: &Heartbeat<'_>,
    ) -> Option<Decision<HeartbeatAnswer>> {
        let Heartbeat { request, client, .. } = heartbeat;
        let (id, member) = match request.instance_id {
            Some(instance_id) => self.static_member(instance_id)?,
            None => self.member_entry(request.member_id)?,
        };
        let Member { metadata, current } = member;
        let is_known =
            |said: Option<&str>, known: &Option<Arc<str>>| said.is_none() || said == known.as_deref();
        let says_nothing_new = **id == *request.member_id
            && request.topic_partitions.is_none()
            && request.subscribed_topic_names.is_none()
            && is_known(request.subscribed_topic_regex, &metadata.subscribed_topic_regex)
            && is_known(request.rack_id, &metadata.rack_id)
            && is_known(request.server_assignor, &metadata.server_assignor)
            && [-1, metadata.rebalance_timeout_ms].contains(&request.rebalance_timeout_ms)
            && *metadata.client_id == *client.id
            && *metadata.client_host == *client.host
            && metadata.classic.is_none();
        let epoch = request.member_epoch;
        let has_all = current.state == MemberState::Stable
            && [current.member_epoch, self.target_epoch.epoch, self.epoch.epoch] == [epoch; 3]
            && epoch > 0
            && !self.is_metadata_newer(context.image);
        if !says_nothing_new || !has_all {
            return None;
        }
        let [session, _] = member_timers(context, id, member);
        let answer = HeartbeatAnswer {
            member_id: Arc::clone(id),
            member_epoch: epoch,
            heartbeat_interval_ms: context.settings.heartbeat_interval_ms,
            assignment: None,
        };
        Some(Decision { records: Vec::new(), answer, timers: vec![session] })
    }

    /// Decides on a member that has not been heard of in time.
    pub fn session_expired(&self, context: &Context<'_>, member_id: &str) -> Decision<()> {
        self.fence(context, [member_id])
    }

    /// Decides on a member that had to give up partitions by now.
    pub fn rebalance_expired(&self, context: &Context<'_>, member_id: &str) -> Decision<()> {
        match self.member(member_id) {
            Some(member)
                if member.current.state == MemberState::UnrevokedPartitions
                    // Their timer runs while they have to join again, or to ask for what they got.
                    || member.metadata.classic.is_some() =>
            {
                self.fence(context, [member_id])
            }
            _ => Decision { records: Vec::new(), answer: (), timers: Vec::new() },
        }
    }

    /// The timers of a group that was loaded: everybody gets a whole session from now on.
    pub fn timers(&self, context: &Context<'_>) -> Vec<TimerChange> {
        self.members.iter().flat_map(|(id, member)| member_timers(context, id, member)).collect()
    }

    fn stay(
        &self,
        context: &Context<'_>,
        heartbeat: &Heartbeat<'_>,
    ) -> Result<Decision<HeartbeatAnswer>, Refused> {
        let request = heartbeat.request;
        let owned = owned_partitions(request);
        let member_id =
            if request.member_id.is_empty() { heartbeat.new_member_id } else { request.member_id };
        self.check_room(context, member_id, request.instance_id)?;
        let mut draft = Draft::of(self);
        let mut timers = Vec::new();
        let (id, before, is_new) = match request.instance_id {
            Some(instance_id) => {
                draft.admit_static(request, member_id, instance_id, owned.as_ref(), &mut timers)?
            }
            None => draft.admit(request, member_id, owned.as_ref())?,
        };

        let metadata = updated(&before.metadata, heartbeat);
        let told = before.current.assigned.clone();
        let is_full = request.rebalance_timeout_ms != -1
            && (request.subscribed_topic_names.is_some() || request.subscribed_topic_regex.is_some())
            && owned.is_some();
        let (records, after) = draft.advance(
            context,
            &mut timers,
            Arrival { id: Arc::clone(&id), before, is_new, metadata, owned },
        )?;
        let tells = request.member_epoch == 0 || is_full || after.assigned != told;
        let answer = HeartbeatAnswer {
            member_id: id,
            member_epoch: after.member_epoch,
            heartbeat_interval_ms: context.settings.heartbeat_interval_ms,
            assignment: tells.then_some(after.assigned),
        };
        // Only now is it certain that the records of this comparison are appended.
        self.compared_with.set(Some(context.image.topics_offset()));
        Ok(Decision { records, answer, timers })
    }

    pub(super) fn check_room(
        &self,
        context: &Context<'_>,
        member_id: &str,
        instance_id: Option<&str>,
    ) -> Result<(), Refused> {
        let is_known = self.members.contains_key(member_id)
            || instance_id.is_some_and(|instance_id| self.static_members.contains_key(instance_id));
        let max_size = context.settings.max_size;
        if self.members.len() >= max_size && !is_known {
            return Err(Refused::new(
                ErrorCode::GroupMaxSizeReached,
                format!("The consumer group has reached its maximum capacity of {max_size} members."),
            ));
        }
        Ok(())
    }

    fn leave(
        &self,
        context: &Context<'_>,
        request: &ConsumerGroupHeartbeatRequest<'_>,
    ) -> Result<Decision<HeartbeatAnswer>, Refused> {
        let (id, member) = match request.instance_id {
            None => {
                self.member_entry(request.member_id).ok_or_else(|| self.unknown_member(request.member_id))?
            }
            Some(instance_id) => self.known_static(request.member_id, instance_id)?,
        };
        let answer = HeartbeatAnswer {
            member_id: Arc::clone(id),
            member_epoch: request.member_epoch,
            heartbeat_interval_ms: 0,
            assignment: None,
        };
        if request.member_epoch == LEAVE_EPOCH {
            let Decision { records, timers, .. } = self.fence(context, [&**id]);
            return Ok(Decision { records, answer, timers });
        }
        let away = CurrentAssignment {
            member_epoch: LEAVE_STATIC_EPOCH,
            previous_member_epoch: member.current.member_epoch,
            state: MemberState::Stable,
            assigned: member.current.assigned.clone(),
            pending_revocation: Partitions::new(),
            // As Kafka writes it: whoever comes back begins anew.
            since: AssignmentEpochs::all(&member.current.assigned, 0),
        };
        Ok(Decision {
            records: vec![Change::Current(Arc::clone(id), Some(away))],
            answer,
            timers: vec![TimerChange::StopRebalance { member_id: Arc::clone(id) }],
        })
    }

    /// Removes members, and has the rest share what they had.
    pub(super) fn fence<'m>(
        &self,
        context: &Context<'_>,
        member_ids: impl IntoIterator<Item = &'m str>,
    ) -> Decision<()> {
        let mut draft = Draft::of(self);
        let mut timers = Vec::new();
        for member_id in member_ids {
            if let Some((id, _)) = self.members.get_key_value(member_id) {
                draft.remove(id);
                timers.push(TimerChange::Stop { member_id: Arc::clone(id) });
            }
        }
        if !draft.records.is_empty() {
            draft.drop_unused_expressions();
            draft.raise_epoch(context, true);
        }
        Decision { records: draft.records, answer: (), timers }
    }

    pub(super) fn known_static(
        &self,
        member_id: &str,
        instance_id: &str,
    ) -> Result<(&Arc<str>, &Member), Refused> {
        let (id, member) = self.static_member(instance_id).ok_or_else(|| {
            Refused::new(ErrorCode::UnknownMemberId, format!("Instance id {instance_id} is unknown."))
        })?;
        if **id != *member_id {
            return Err(Refused::new(
                ErrorCode::FencedInstanceId,
                format!(
                    "Static member {member_id} with instance id {instance_id} was fenced by member {id}."
                ),
            ));
        }
        Ok((id, member))
    }
}

/// Who a request is from: the member's id, the member as it was before, whether it is new.
pub(super) type Admitted = (Arc<str>, Member, bool);

/// A member that comes to be told what to own.
pub(super) struct Arrival {
    pub(super) id: Arc<str>,
    /// As it was.
    pub(super) before: Member,
    pub(super) is_new: bool,
    /// What it says about itself now.
    pub(super) metadata: MemberMetadata,
    /// What it says that it owns.
    pub(super) owned: Option<Partitions>,
}

impl Draft<'_> {
    /// Takes in what a member says, gives everybody a target, and takes the member one step towards its own. Returns all
    /// records of the decision, and what the member has now.
    pub(super) fn advance(
        mut self,
        context: &Context<'_>,
        timers: &mut Vec<TimerChange>,
        arrival: Arrival,
    ) -> Result<(Vec<Change>, CurrentAssignment), Refused> {
        let Arrival { id, before, is_new, metadata, owned } = arrival;
        let resubscribes = is_new
            || metadata.subscribed_topic_names != before.metadata.subscribed_topic_names
            || metadata.subscribed_topic_regex != before.metadata.subscribed_topic_regex;
        if is_new || metadata != *before.metadata {
            if let Some(regex) = metadata.expression() {
                self.add_expression(context, regex)?;
            }
            self.push(Change::Member(Arc::clone(&id), Some(Arc::new(metadata))));
            self.check_bytes()?;
        }
        if resubscribes {
            self.drop_unused_expressions();
        }
        let is_metadata_newer = self.group.is_metadata_newer(context.image);
        if is_metadata_newer {
            self.refresh_expressions(context);
        }
        if resubscribes || is_metadata_newer {
            self.raise_epoch(context, resubscribes);
        }
        self.assign(context);

        let current = self.group.reconciled(&id, &before.current, owned.as_ref());
        let Draft { group, mut records } = self;
        let known = group.member(&id);
        let has_moved = known.is_none_or(|member| member.current != current);
        let metadata = known.map_or(&before.metadata, |member| &member.metadata);
        let after = Member { metadata: Arc::clone(metadata), current };
        let is_due = |timer: &TimerChange| has_moved || matches!(timer, TimerChange::Session { .. });
        timers.extend(member_timers(context, &id, &after).into_iter().filter(is_due));
        if has_moved {
            // Last, so that nothing has to see it in the draft.
            records.push(Change::Current(id, Some(after.current.clone())));
        }
        Ok((records, after.current))
    }

    /// The dynamic member that a heartbeat is from.
    fn admit(
        &mut self,
        request: &ConsumerGroupHeartbeatRequest<'_>,
        member_id: &str,
        owned: Option<&Partitions>,
    ) -> Result<Admitted, Refused> {
        let Some((id, member)) = self.group.members.get_key_value(member_id) else {
            return if request.member_epoch == 0 {
                Ok((Arc::from(member_id), Member::default(), true))
            } else {
                Err(self.group.unknown_member(member_id))
            };
        };
        let member = (**member).clone();
        let id = Arc::clone(id);
        if request.member_epoch == 0 {
            return Ok((id, rejoining(member), false));
        }
        check_epoch(&member, request.member_epoch, owned)?;
        Ok((id, member, false))
    }

    /// The static member that a heartbeat is from. One that was away may come back under another member id.
    fn admit_static(
        &mut self,
        request: &ConsumerGroupHeartbeatRequest<'_>,
        member_id: &str,
        instance_id: &str,
        owned: Option<&Partitions>,
        timers: &mut Vec<TimerChange>,
    ) -> Result<Admitted, Refused> {
        if request.member_epoch != 0 {
            let (id, member) = self.group.known_static(member_id, instance_id)?;
            check_epoch(member, request.member_epoch, owned)?;
            return Ok((Arc::clone(id), member.clone(), false));
        }
        let Some((known, member)) = self.group.static_member(instance_id) else {
            return self.admit(request, member_id, owned);
        };
        let (known, member) = (Arc::clone(known), member.clone());
        if *known == *member_id {
            return Ok((known, rejoining(member), false));
        }
        // Members of the classic protocol do not say that they will be back; the last one counts.
        if member.current.member_epoch != LEAVE_STATIC_EPOCH && member.metadata.classic.is_none() {
            return Err(Refused::new(
                ErrorCode::UnreleasedInstanceId,
                format!(
                    "Static member {member_id} with instance id {instance_id} cannot join the group because the \
                     instance id is owned by member {known}."
                ),
            ));
        }
        let id: Arc<str> = Arc::from(member_id);
        let member = self.replace_static(&known, &id, member, timers);
        Ok((id, member, false))
    }

    /// Gives a new member all that the one before it with its instance id had.
    pub(super) fn replace_static(
        &mut self,
        known: &Arc<str>,
        id: &Arc<str>,
        member: Member,
        timers: &mut Vec<TimerChange>,
    ) -> Member {
        let target = self.group.target(known);
        let member = rejoining(member);
        self.remove(known);
        timers.push(TimerChange::Stop { member_id: Arc::clone(known) });
        self.push(Change::Member(Arc::clone(id), Some(Arc::clone(&member.metadata))));
        self.push(Change::Target(Arc::clone(id), Some(target)));
        self.push(Change::Current(Arc::clone(id), Some(member.current.clone())));
        member
    }

    /// What members say is kept, in memory and in the log, and each record names the group and the member.
    fn check_bytes(&self) -> Result<(), Refused> {
        let names = |id: &str| RECORDS_PER_MEMBER * (self.group.id.len() + id.len());
        let members = self.group.members.iter();
        let bytes: usize = members.map(|(id, member)| names(id) + member.metadata.len_bytes()).sum();
        if bytes <= GROUP_MEMBERS_BYTES_MAX {
            return Ok(());
        }
        let text = format!(
            "What the members of the group say and are called takes more than {GROUP_MEMBERS_BYTES_MAX} bytes."
        );
        Err(Refused::new(ErrorCode::GroupMaxSizeReached, text))
    }

    fn remove(&mut self, id: &Arc<str>) {
        self.push(Change::Current(Arc::clone(id), None));
        self.push(Change::Target(Arc::clone(id), None));
        self.push(Change::Member(Arc::clone(id), None));
    }
}

/// A member that begins anew: it owns nothing, and what it was told before is its own to have again.
fn rejoining(member: Member) -> Member {
    let CurrentAssignment { assigned, since, .. } = member.current;
    let since = since.carried(assigned.iter(), 0);
    Member { current: CurrentAssignment { assigned, since, ..CurrentAssignment::default() }, ..member }
}

/// What a member says about itself now.
fn updated(before: &MemberMetadata, heartbeat: &Heartbeat<'_>) -> MemberMetadata {
    let request = heartbeat.request;
    let text = |new: Option<&str>, old: &Option<Arc<str>>| new.map(Arc::from).or_else(|| old.clone());
    let names = match &request.subscribed_topic_names {
        Some(names) => {
            let mut names: Vec<&str> = names.clone();
            names.sort_unstable();
            names.dedup();
            names.into_iter().map(Arc::from).collect()
        }
        None => before.subscribed_topic_names.clone(),
    };
    MemberMetadata {
        instance_id: text(request.instance_id, &before.instance_id),
        rack_id: text(request.rack_id, &before.rack_id),
        client_id: Arc::from(heartbeat.client.id),
        client_host: Arc::from(heartbeat.client.host),
        subscribed_topic_names: names,
        subscribed_topic_regex: text(request.subscribed_topic_regex, &before.subscribed_topic_regex),
        rebalance_timeout_ms: match request.rebalance_timeout_ms {
            -1 => before.rebalance_timeout_ms,
            timeout => timeout,
        },
        server_assignor: text(request.server_assignor, &before.server_assignor),
        classic: None,
    }
}

/// The timers that a member in this state has.
pub(super) fn member_timers(context: &Context<'_>, id: &Arc<str>, member: &Member) -> [TimerChange; 2] {
    let member_id = || Arc::clone(id);
    let own = member.metadata.classic.as_ref().map(|classic| classic.session_timeout_ms);
    let after_ms = own.unwrap_or(context.settings.session_timeout_ms);
    let session = TimerChange::Session { member_id: member_id(), after_ms };
    let rebalance = match member.current.state {
        // Those of members that speak the classic protocol: `classic`.
        _ if own.is_some() => TimerChange::StopRebalance { member_id: member_id() },
        MemberState::UnrevokedPartitions => {
            TimerChange::Rebalance { member_id: member_id(), after_ms: member.metadata.rebalance_timeout_ms }
        }
        _ => TimerChange::StopRebalance { member_id: member_id() },
    };
    [session, rebalance]
}

fn owned_partitions(request: &ConsumerGroupHeartbeatRequest<'_>) -> Option<Partitions> {
    let topics = request.topic_partitions.as_ref()?;
    Some(partitions_of(topics.iter().map(|topic| (&topic.topic_id, &topic.partitions[..]))))
}

/// A member may come with its own epoch; or with the one before, when the answer that raised it may have been lost: then
/// what it owns is a part of what it was told.
fn check_epoch(member: &Member, received: i32, owned: Option<&Partitions>) -> Result<(), Refused> {
    let current = &member.current;
    let known = current.member_epoch;
    let fenced = |which: &str| {
        Err(Refused::new(
            ErrorCode::FencedMemberEpoch,
            format!(
                "The consumer group member has a {which} member epoch ({received}) than the one known by the group \
                 coordinator ({known}). The member must abandon all its partitions and rejoin."
            ),
        ))
    };
    if received > known {
        return fenced("greater");
    }
    let missed_one = received == current.previous_member_epoch
        && owned.is_some_and(|owned| owned.is_subset(&current.assigned));
    if received < known && !missed_one {
        return fenced("smaller");
    }
    Ok(())
}

/// What can be said of a heartbeat without the group.
pub(super) fn check(context: &Context<'_>, heartbeat: &Heartbeat<'_>) -> Result<(), Refused> {
    let request = heartbeat.request;
    let invalid = |text: &str| Err(Refused::new(ErrorCode::InvalidRequest, text));
    let joins = request.member_epoch == 0;
    if request.group_id.is_empty() {
        return invalid("GroupId can't be empty.");
    }
    // Up to version 0 the broker makes the id.
    if request.member_id.is_empty() && (heartbeat.version >= 1 || !joins) {
        return invalid("MemberId can't be empty.");
    }
    if request.instance_id == Some("") {
        return invalid("InstanceId can't be empty.");
    }
    if request.rack_id == Some("") {
        return invalid("RackId can't be empty.");
    }
    if request.member_epoch < LEAVE_STATIC_EPOCH {
        return invalid("MemberEpoch is invalid.");
    }
    if request.member_epoch == LEAVE_STATIC_EPOCH && request.instance_id.is_none() {
        return invalid("InstanceId can't be null.");
    }
    if joins {
        if request.rebalance_timeout_ms == -1 {
            return invalid("RebalanceTimeoutMs must be provided in first request.");
        }
        if request.topic_partitions.as_ref().is_none_or(|topics| !topics.is_empty()) {
            return invalid("TopicPartitions must be empty when (re-)joining.");
        }
        if request.subscribed_topic_names.is_none() && request.subscribed_topic_regex.is_none() {
            return invalid(
                "Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining.",
            );
        }
    }
    check_sizes(heartbeat)?;
    match request.server_assignor {
        Some(name) => check_assignor(context, name),
        None => Ok(()),
    }
}

/// Each name on its own; `Draft::check_bytes` looks at all of them.
fn check_sizes(heartbeat: &Heartbeat<'_>) -> Result<(), Refused> {
    let request = heartbeat.request;
    let texts = [Some(request.member_id), request.instance_id, request.rack_id, Some(heartbeat.client.id)];
    let names = request.subscribed_topic_names.as_deref().unwrap_or_default();
    if texts.into_iter().flatten().chain(names.iter().copied()).any(|text| text.len() > GROUP_NAME_BYTES_MAX)
    {
        let text = format!("A name is longer than {GROUP_NAME_BYTES_MAX} bytes.");
        return Err(Refused::new(ErrorCode::InvalidRequest, text));
    }
    if names.len() > GROUP_MEMBER_TOPICS_MAX {
        let text = format!("A member subscribes to {GROUP_MEMBER_TOPICS_MAX} topics by name at most.");
        return Err(Refused::new(ErrorCode::InvalidRequest, text));
    }
    let owned = request.topic_partitions.iter().flatten().map(|topic| topic.partitions.len());
    if owned.sum::<usize>() > PARTITIONS_MAX {
        let text = format!("A member owns {PARTITIONS_MAX} partitions at most.");
        return Err(Refused::new(ErrorCode::InvalidRequest, text));
    }
    Ok(())
}

fn check_assignor(context: &Context<'_>, name: &str) -> Result<(), Refused> {
    let supported = &context.settings.assignors;
    if Assignor::from_name(name).is_some_and(|assignor| supported.contains(&assignor)) {
        return Ok(());
    }
    let supported: Vec<&str> = supported.iter().map(|assignor| assignor.name()).collect();
    let shown: String = name.chars().take(80).collect();
    Err(Refused::new(
        ErrorCode::UnsupportedAssignor,
        format!("ServerAssignor {shown} is not supported. Supported assignors: {}.", supported.join(", ")),
    ))
}
