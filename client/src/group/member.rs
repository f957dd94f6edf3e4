//! A member of a classic group.
//!
//! ```text
//!   new ── join() ──► stable ──(heartbeat says so, or a topic changed)──► rebalancing ── join() ──► stable
//!                       └──────────────── leave() ──► gone
//! ```
//!
//! A heartbeat task keeps the member alive and notes when the group rebalances; the owner asks
//! [`GroupMember::must_rejoin`] between two polls and then calls [`GroupMember::join`]. Under an eager assignor the owner stops
//! reading and commits before that; under a cooperative one it reads on, and afterwards gives up what it lost.

use super::assignor::Assignor;
use super::protocol::{Assignment, Subscription};
use crate::admin::groups::{self, CommittedOffset, Committer, commit};
use crate::cluster::{Backoff, Cluster, Lane, Topics};
use crate::error::Error;
use crate::metadata::TopicPartition;
use crate::runtime;
use flumen_wire::ErrorCode;
use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
use flumen_wire::messages::join_group_request::{JoinGroupRequest, JoinGroupRequestProtocol};
use flumen_wire::messages::leave_group_request::{LeaveGroupRequest, MemberIdentity};
use flumen_wire::messages::sync_group_request::{SyncGroupRequest, SyncGroupRequestAssignment};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// How a member behaves.
#[derive(Clone, Debug)]
pub struct GroupSettings {
    /// The group's id.
    pub group: String,
    /// What to read.
    pub topics: Vec<Rc<str>>,
    /// How partitions are spread, if this member may choose.
    pub assignor: Assignor,
    /// After so long without a heartbeat the coordinator takes the member for dead.
    pub session_timeout: Duration,
    /// How long the coordinator waits for members to rejoin.
    pub rebalance_timeout: Duration,
    /// Between two heartbeats.
    pub heartbeat_interval: Duration,
    /// A static name: a restart within the session keeps its place.
    pub instance_id: Option<String>,
}

impl GroupSettings {
    /// Kafka's defaults.
    pub fn new(group: &str, topics: Vec<Rc<str>>) -> GroupSettings {
        GroupSettings {
            group: group.to_owned(),
            topics,
            assignor: Assignor::Range,
            session_timeout: Duration::from_secs(45),
            rebalance_timeout: Duration::from_secs(60),
            heartbeat_interval: Duration::from_secs(3),
            instance_id: None,
        }
    }
}

/// What the heartbeat task shares with its owner.
struct Life {
    /// The generation for which heartbeats are sent; -1 while there is none.
    generation: Cell<i32>,
    member_id: RefCell<String>,
    must_rejoin: Cell<bool>,
    failed: RefCell<Option<Error>>,
    gone: Cell<bool>,
}

/// See the head of this file.
pub struct GroupMember {
    cluster: Cluster,
    settings: GroupSettings,
    life: Rc<Life>,
    owned: Vec<TopicPartition>,
    /// Of the last generation, for the claim on `owned`.
    owned_generation: i32,
    partition_counts: BTreeMap<Rc<str>, i32>,
}

impl GroupMember {
    /// Not in the group yet.
    pub fn new(cluster: &Cluster, settings: GroupSettings) -> GroupMember {
        let life = Rc::new(Life {
            generation: Cell::new(-1),
            member_id: RefCell::default(),
            must_rejoin: Cell::new(true),
            failed: RefCell::default(),
            gone: Cell::new(false),
        });
        runtime::spawn(heartbeats(cluster.clone(), settings.clone(), life.clone()));
        GroupMember {
            cluster: cluster.clone(),
            settings,
            life,
            owned: Vec::new(),
            owned_generation: -1,
            partition_counts: BTreeMap::new(),
        }
    }

    /// Whether the assignment is not valid any more. An error is for good.
    pub fn must_rejoin(&self) -> Result<bool, Error> {
        match self.life.failed.borrow().clone() {
            Some(error) => Err(error),
            None => Ok(self.life.must_rejoin.get()),
        }
    }

    /// The id that the coordinator gave.
    pub fn member_id(&self) -> String {
        self.life.member_id.borrow().clone()
    }

    /// Has the next [`GroupMember::must_rejoin`] say yes, as when a topic has got more partitions.
    pub fn request_rejoin(&self) {
        self.life.must_rejoin.set(true);
    }

    /// Joins or rejoins, and gives the assignment. With a cooperative assignor it may have to be called again right
    /// away, when this member has to give something up.
    pub async fn join(&mut self) -> Result<Vec<TopicPartition>, Error> {
        let mut pauses =
            Backoff::new(self.cluster.settings().retry_timeout + self.settings.rebalance_timeout);
        loop {
            self.life.generation.set(-1);
            let error = match self.join_once().await {
                Ok(assignment) => return Ok(assignment),
                Err(error) => error,
            };
            match error.code() {
                // The id that was given is for the next attempt.
                Some(ErrorCode::MemberIdRequired) => continue,
                Some(ErrorCode::UnknownMemberId | ErrorCode::IllegalGeneration) => self.forget(),
                Some(ErrorCode::RebalanceInProgress) => {}
                _ if error.is_retriable() => self.cluster.forget_coordinator(&self.settings.group),
                _ => return Err(error),
            }
            if !pauses.pause().await {
                return Err(error);
            }
        }
    }

    /// What was owned is not any more: the coordinator has dropped this member.
    fn forget(&mut self) {
        self.life.member_id.borrow_mut().clear();
        self.owned.clear();
        self.owned_generation = -1;
    }

    async fn join_once(&mut self) -> Result<Vec<TopicPartition>, Error> {
        let settings = self.settings.clone();
        let member_id = self.member_id();
        let cooperative = settings.assignor.is_cooperative();
        let subscription = Subscription {
            topics: settings.topics.clone(),
            owned: if cooperative { self.owned.clone() } else { Vec::new() },
            generation: if cooperative { self.owned_generation } else { -1 },
        }
        .encode();
        let link = self.cluster.coordinator(&settings.group, Lane::Join).await?;
        let answer = link
            .call_within(settings.rebalance_timeout, |version| JoinGroupRequest {
                group_id: &settings.group,
                session_timeout_ms: millis(settings.session_timeout),
                rebalance_timeout_ms: if version >= 1 { millis(settings.rebalance_timeout) } else { -1 },
                member_id: &member_id,
                group_instance_id: settings.instance_id.as_deref().filter(|_| version >= 5),
                protocol_type: "consumer",
                protocols: vec![JoinGroupRequestProtocol {
                    name: settings.assignor.name(),
                    metadata: &subscription,
                }],
                reason: None,
            })
            .await?;
        let joined = answer.read()?;
        if !joined.member_id.is_empty() {
            *self.life.member_id.borrow_mut() = joined.member_id.to_owned();
        }
        Error::check(joined.error_code, None, || format!("joining group {:?}", settings.group))?;
        let generation = joined.generation_id;
        let leads = joined.leader == joined.member_id && !joined.skip_assignment;
        let assignments = if leads {
            let members = joined.members.iter().map(|one| {
                let about =
                    |error| Error::Invalid(format!("member {}: its subscription: {error}", one.member_id));
                Ok((one.member_id.to_owned(), Subscription::decode(one.metadata).map_err(about)?))
            });
            let members = members.collect::<Result<BTreeMap<_, _>, Error>>()?;
            self.decide(joined.protocol_name, &members).await?
        } else {
            // Whoever leads now looks after the topics.
            self.partition_counts.clear();
            Vec::new()
        };
        let assigned = self.sync(generation, &assignments).await?;
        let kept: BTreeSet<&TopicPartition> = assigned.iter().collect();
        let gives_up = self.owned.iter().any(|at| !kept.contains(at));
        self.owned = assigned.clone();
        self.owned_generation = generation;
        // Under a cooperative assignor, what was given up is handed out in one more round.
        self.life.must_rejoin.set(self.settings.assignor.is_cooperative() && gives_up);
        self.life.generation.set(generation);
        Ok(assigned)
    }

    /// As the leader: counts partitions and spreads them.
    async fn decide(
        &mut self,
        protocol: Option<&str>,
        members: &BTreeMap<String, Subscription>,
    ) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let name = protocol.unwrap_or_default();
        let assignor = Assignor::from_name(name).ok_or_else(|| {
            Error::Invalid(format!("the group settled on the assignor {name:?}, which is not known here"))
        })?;
        let mut topics: Vec<&str> =
            members.values().flat_map(|one| one.topics.iter().map(|t| &**t)).collect();
        topics.sort_unstable();
        topics.dedup();
        let metadata = self.cluster.refresh(Topics::Named(&topics), false).await?;
        let count = |topic: &&str| {
            let topic = metadata.topics.get(*topic).filter(|topic| topic.error.is_none())?;
            Some((topic.name.clone(), topic.partitions.len() as i32))
        };
        self.partition_counts = topics.iter().filter_map(count).collect();
        let assigned = assignor.assign(members, &self.partition_counts);
        let encode =
            |(id, partitions): (String, Vec<TopicPartition>)| (id, Assignment { partitions }.encode());
        Ok(assigned.into_iter().map(encode).collect())
    }

    async fn sync(
        &self,
        generation_id: i32,
        assignments: &[(String, Vec<u8>)],
    ) -> Result<Vec<TopicPartition>, Error> {
        let settings = &self.settings;
        let member_id = self.member_id();
        let link = self.cluster.coordinator(&settings.group, Lane::Join).await?;
        let answer = link
            .call_within(settings.rebalance_timeout, |version| SyncGroupRequest {
                group_id: &settings.group,
                generation_id,
                member_id: &member_id,
                group_instance_id: settings.instance_id.as_deref().filter(|_| version >= 3),
                protocol_type: (version >= 5).then_some("consumer"),
                protocol_name: (version >= 5).then_some(settings.assignor.name()),
                assignments: assignments
                    .iter()
                    .map(|(member_id, assignment)| SyncGroupRequestAssignment { member_id, assignment })
                    .collect(),
            })
            .await?;
        let synced = answer.read()?;
        Error::check(synced.error_code, None, || format!("joining group {:?}", settings.group))?;
        let read = Assignment::decode(synced.assignment);
        let assignment =
            read.map_err(|error| Error::decode(link.address(), flumen_wire::ApiKey::SyncGroup, error))?;
        Ok(assignment.partitions)
    }

    /// Whether topics of the group have other numbers of partitions than when this member, as the leader, spread them.
    pub fn partitions_changed(&self) -> bool {
        let metadata = self.cluster.metadata();
        self.partition_counts.iter().any(|(topic, count)| {
            metadata.topics.get(topic).is_some_and(|topic| topic.partitions.len() as i32 != *count)
        })
    }

    /// Where the group is in these partitions.
    pub async fn committed(
        &self,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, CommittedOffset>, Error> {
        let mut all = groups::offsets(&self.cluster, &self.settings.group).await?;
        Ok(partitions.iter().filter_map(|at| all.remove_entry(at)).collect())
    }

    /// Commits positions. Fails with ILLEGAL_GENERATION or REBALANCE_IN_PROGRESS where the group has moved on.
    pub async fn commit(&self, offsets: &BTreeMap<TopicPartition, i64>) -> Result<(), Error> {
        if offsets.is_empty() {
            return Ok(());
        }
        let committer = Committer {
            member_id: self.member_id(),
            generation_id: self.owned_generation,
            instance_id: self.settings.instance_id.clone(),
        };
        commit(&self.cluster, &self.settings.group, &committer, offsets).await
    }

    /// Leaves, so that others get the partitions at once. A static member stays until its session is over.
    pub async fn leave(self) -> Result<(), Error> {
        let member_id = self.member_id();
        if member_id.is_empty() || self.settings.instance_id.is_some() {
            return Ok(());
        }
        let link = self.cluster.coordinator(&self.settings.group, Lane::Group).await?;
        let answer = link
            .call(|version| match version {
                3.. => LeaveGroupRequest {
                    group_id: &self.settings.group,
                    members: vec![MemberIdentity {
                        member_id: &member_id,
                        group_instance_id: None,
                        reason: (version >= 5).then_some("the consumer is done"),
                    }],
                    ..Default::default()
                },
                _ => LeaveGroupRequest {
                    group_id: &self.settings.group,
                    member_id: &member_id,
                    ..Default::default()
                },
            })
            .await?;
        Error::check(answer.read()?.error_code, None, || format!("leaving group {:?}", self.settings.group))
    }
}

impl Drop for GroupMember {
    fn drop(&mut self) {
        self.life.gone.set(true);
    }
}

/// Sends heartbeats as long as there is a generation to keep alive.
async fn heartbeats(cluster: Cluster, settings: GroupSettings, life: Rc<Life>) {
    loop {
        runtime::sleep(settings.heartbeat_interval).await;
        if life.gone.get() {
            return;
        }
        let generation_id = life.generation.get();
        if generation_id < 0 {
            continue;
        }
        let member_id = life.member_id.borrow().clone();
        let result = heartbeat(&cluster, &settings, generation_id, &member_id).await;
        // An answer to the heartbeat of a generation that is over says nothing of this one.
        if life.generation.get() != generation_id {
            continue;
        }
        let Err(error) = result else { continue };
        match error.code() {
            Some(
                ErrorCode::RebalanceInProgress | ErrorCode::IllegalGeneration | ErrorCode::UnknownMemberId,
            ) => life.must_rejoin.set(true),
            _ if error.is_retriable() => cluster.forget_coordinator(&settings.group),
            _ => *life.failed.borrow_mut() = Some(error),
        }
    }
}

async fn heartbeat(
    cluster: &Cluster,
    settings: &GroupSettings,
    generation_id: i32,
    member_id: &str,
) -> Result<(), Error> {
    let link = cluster.coordinator(&settings.group, Lane::Group).await?;
    let answer = link
        .call(|version| HeartbeatRequest {
            group_id: &settings.group,
            generation_id,
            member_id,
            group_instance_id: settings.instance_id.as_deref().filter(|_| version >= 3),
        })
        .await?;
    Error::check(answer.read()?.error_code, None, || format!("group {:?}", settings.group))
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
