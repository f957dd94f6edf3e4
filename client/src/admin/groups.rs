//! Groups from outside: which there are, what they hold, where they are, and setting that.

use crate::cluster::{Cluster, Lane};
use crate::error::Error;
use crate::group::protocol::Assignment;
use crate::metadata::{TopicPartition, by_topic};
use flumen_wire::ErrorCode;
use flumen_wire::messages::consumer_group_describe_request::ConsumerGroupDescribeRequest;
use flumen_wire::messages::delete_groups_request::DeleteGroupsRequest;
use flumen_wire::messages::describe_groups_request::DescribeGroupsRequest;
use flumen_wire::messages::list_groups_request::ListGroupsRequest;
use flumen_wire::messages::offset_commit_request::{
    OffsetCommitRequest, OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use flumen_wire::messages::offset_fetch_request::{OffsetFetchRequest, OffsetFetchRequestGroup};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedGroup {
    /// Its id.
    pub id: String,
    /// What its members do, "consumer" as a rule.
    pub protocol_type: String,
    /// Its state, where the broker says.
    pub state: String,
    /// "classic", "consumer" or another, where the broker says.
    pub kind: String,
    /// The broker that coordinates it.
    pub coordinator: i32,
}

/// A member of a group.
#[derive(Clone, Debug)]
pub struct GroupMember {
    /// Its id.
    pub id: String,
    /// Its static name.
    pub instance_id: Option<String>,
    /// What its client calls itself.
    pub client_id: String,
    /// Where it is.
    pub host: String,
    /// What it has.
    pub assignment: Vec<TopicPartition>,
}

/// A group, described.
#[derive(Clone, Debug)]
pub struct GroupDescription {
    /// Its id.
    pub id: String,
    /// Its state.
    pub state: String,
    /// "classic" or "consumer".
    pub kind: &'static str,
    /// How partitions are assigned.
    pub assignor: String,
    /// The broker that coordinates it.
    pub coordinator: i32,
    /// Its members.
    pub members: Vec<GroupMember>,
}

/// A committed position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The next record to read.
    pub offset: i64,
    /// What the committer noted.
    pub metadata: String,
}

/// All groups of all brokers.
pub async fn list(cluster: &Cluster) -> Result<Vec<ListedGroup>, Error> {
    let metadata = cluster.refresh(crate::cluster::Topics::None, false).await?;
    let mut groups = BTreeSet::new();
    for broker in &metadata.brokers {
        let found = cluster
            .retry(async || {
                let link = cluster.node(broker.id, Lane::Admin).await?;
                let answer = link.call(|_| ListGroupsRequest::default()).await?;
                let response = answer.read()?;
                Error::check(response.error_code, None, || format!("the groups of broker {}", broker.id))?;
                let listed =
                    |one: &flumen_wire::messages::list_groups_response::ListedGroup<'_>| ListedGroup {
                        id: one.group_id.to_owned(),
                        protocol_type: one.protocol_type.to_owned(),
                        state: one.group_state.to_owned(),
                        kind: one.group_type.to_lowercase(),
                        coordinator: broker.id,
                    };
                Ok(response.groups.iter().map(listed).collect::<Vec<_>>())
            })
            .await?;
        groups.extend(found);
    }
    Ok(groups.into_iter().collect())
}

/// Describes a group of either kind.
pub async fn describe(cluster: &Cluster, group: &str) -> Result<GroupDescription, Error> {
    match describe_consumer(cluster, group).await {
        // Another kind of group, an older broker, or no group: the older request tells these apart.
        Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) => {}
        Err(Error::Unsupported { .. }) => {}
        Err(error) if error.code() == Some(ErrorCode::UnsupportedVersion) => {}
        done => return done,
    }
    describe_classic(cluster, group).await
}

async fn describe_consumer(cluster: &Cluster, group: &str) -> Result<GroupDescription, Error> {
    let coordinator = cluster.coordinator(group, Lane::Admin).await?;
    coordinator.version::<ConsumerGroupDescribeRequest<'_>>()?;
    let id = broker_of(cluster, coordinator.address());
    cluster
        .call_coordinator(
            group,
            Lane::Admin,
            Duration::ZERO,
            |_| ConsumerGroupDescribeRequest { group_ids: vec![group], ..Default::default() },
            |answer| {
                let response = answer.read()?;
                let one = response.groups.first().ok_or_else(|| missing(group))?;
                Error::check(one.error_code, one.error_message, || format!("group {group:?}"))?;
                let member =
                    |one: &flumen_wire::messages::consumer_group_describe_response::Member<'_>| GroupMember {
                        id: one.member_id.to_owned(),
                        instance_id: one.instance_id.map(str::to_owned),
                        client_id: one.client_id.to_owned(),
                        host: one.client_host.to_owned(),
                        assignment: one
                            .assignment
                            .topic_partitions
                            .iter()
                            .flat_map(|topic| {
                                let name: Rc<str> = topic.topic_name.into();
                                topic.partitions.iter().map(move |p| TopicPartition::new(name.clone(), *p))
                            })
                            .collect(),
                    };
                Ok(GroupDescription {
                    id: group.to_owned(),
                    state: one.group_state.to_owned(),
                    kind: "consumer",
                    assignor: one.assignor_name.to_owned(),
                    coordinator: id,
                    members: one.members.iter().map(member).collect(),
                })
            },
        )
        .await
}

async fn describe_classic(cluster: &Cluster, group: &str) -> Result<GroupDescription, Error> {
    let coordinator = cluster.coordinator(group, Lane::Admin).await?;
    let id = broker_of(cluster, coordinator.address());
    cluster
        .call_coordinator(
            group,
            Lane::Admin,
            Duration::ZERO,
            |_| DescribeGroupsRequest { groups: vec![group], ..Default::default() },
            |answer| {
                let response = answer.read()?;
                let one = response.groups.first().ok_or_else(|| missing(group))?;
                Error::check(one.error_code, one.error_message, || format!("group {group:?}"))?;
                if one.group_state == "Dead" {
                    return Err(missing(group));
                }
                let member = |one: &flumen_wire::messages::describe_groups_response::DescribedGroupMember<
                    '_,
                >| GroupMember {
                    id: one.member_id.to_owned(),
                    instance_id: one.group_instance_id.map(str::to_owned),
                    client_id: one.client_id.to_owned(),
                    host: one.client_host.to_owned(),
                    // What is no consumer's assignment (Connect has its own) is not shown.
                    assignment: Assignment::decode(one.member_assignment)
                        .map(|assignment| assignment.partitions)
                        .unwrap_or_default(),
                };
                Ok(GroupDescription {
                    id: group.to_owned(),
                    state: one.group_state.to_owned(),
                    kind: "classic",
                    assignor: one.protocol_data.to_owned(),
                    coordinator: id,
                    members: one.members.iter().map(member).collect(),
                })
            },
        )
        .await
}

fn missing(group: &str) -> Error {
    Error::Broker { code: ErrorCode::GroupIdNotFound, message: None, about: format!("group {group:?}") }
}

fn broker_of(cluster: &Cluster, address: &str) -> i32 {
    let metadata = cluster.metadata();
    metadata.brokers.iter().find(|one| one.address() == address).map_or(-1, |one| one.id)
}

/// All committed positions of a group.
pub async fn offsets(
    cluster: &Cluster,
    group: &str,
) -> Result<BTreeMap<TopicPartition, CommittedOffset>, Error> {
    cluster
        .call_coordinator(
            group,
            Lane::Admin,
            Duration::ZERO,
            |version| match version {
                8.. => OffsetFetchRequest {
                    groups: vec![OffsetFetchRequestGroup {
                        group_id: group,
                        topics: None,
                        ..Default::default()
                    }],
                    ..Default::default()
                },
                _ => OffsetFetchRequest { group_id: group, topics: None, ..Default::default() },
            },
            |answer| {
                let response = answer.read()?;
                let about = || format!("offsets of group {group:?}");
                Error::check(response.error_code, None, about)?;
                let mut found = Vec::new();
                for topic in &response.topics {
                    for p in &topic.partitions {
                        found.push((
                            topic.name,
                            p.partition_index,
                            p.committed_offset,
                            p.metadata,
                            p.error_code,
                        ));
                    }
                }
                for one in &response.groups {
                    Error::check(one.error_code, None, about)?;
                    for topic in &one.topics {
                        for p in &topic.partitions {
                            found.push((
                                topic.name,
                                p.partition_index,
                                p.committed_offset,
                                p.metadata,
                                p.error_code,
                            ));
                        }
                    }
                }
                let mut offsets = BTreeMap::new();
                for (topic, partition, offset, metadata, code) in found {
                    Error::check(code, None, about)?;
                    if offset >= 0 {
                        let metadata = metadata.unwrap_or_default().to_owned();
                        offsets.insert(
                            TopicPartition::new(topic, partition),
                            CommittedOffset { offset, metadata },
                        );
                    }
                }
                Ok(offsets)
            },
        )
        .await
}

/// Sets positions of a group without members.
pub async fn set_offsets(
    cluster: &Cluster,
    group: &str,
    offsets: &BTreeMap<TopicPartition, i64>,
) -> Result<(), Error> {
    commit(cluster, group, &Committer::default(), offsets).await
}

/// In whose name positions are committed.
#[derive(Clone, Debug)]
pub(crate) struct Committer {
    pub(crate) member_id: String,
    pub(crate) generation_id: i32,
    pub(crate) instance_id: Option<String>,
}

impl Default for Committer {
    /// Nobody's: an administrator's.
    fn default() -> Committer {
        Committer { member_id: String::new(), generation_id: -1, instance_id: None }
    }
}

pub(crate) async fn commit(
    cluster: &Cluster,
    group: &str,
    committer: &Committer,
    offsets: &BTreeMap<TopicPartition, i64>,
) -> Result<(), Error> {
    let topics = by_topic(offsets.iter().map(|(at, offset)| (at, *offset)));
    cluster
        .call_coordinator(
            group,
            Lane::Group,
            Duration::ZERO,
            |version| OffsetCommitRequest {
                group_id: group,
                generation_id_or_member_epoch: committer.generation_id,
                member_id: &committer.member_id,
                group_instance_id: committer.instance_id.as_deref().filter(|_| version >= 7),
                topics: topics
                    .iter()
                    .map(|(name, partitions)| OffsetCommitRequestTopic {
                        name,
                        topic_id: [0; 16],
                        partitions: partitions
                            .iter()
                            .map(|(partition_index, committed_offset)| OffsetCommitRequestPartition {
                                partition_index: *partition_index,
                                committed_offset: *committed_offset,
                                committed_leader_epoch: -1,
                                committed_metadata: Some(""),
                            })
                            .collect(),
                    })
                    .collect(),
                ..Default::default()
            },
            |answer| {
                for topic in answer.read()?.topics {
                    for one in topic.partitions {
                        let about =
                            || format!("group {group:?}, offset of {}-{}", topic.name, one.partition_index);
                        Error::check(one.error_code, None, about)?;
                    }
                }
                Ok(())
            },
        )
        .await
}

/// Removes a group and its positions.
pub async fn delete(cluster: &Cluster, group: &str) -> Result<(), Error> {
    cluster
        .call_coordinator(
            group,
            Lane::Admin,
            Duration::ZERO,
            |_| DeleteGroupsRequest { groups_names: vec![group] },
            |answer| {
                for one in answer.read()?.results {
                    Error::check(one.error_code, None, || format!("group {group:?}"))?;
                }
                Ok(())
            },
        )
        .await
}
