//! Committed offsets: how far each group has read each partition. Hard state alone.
//!
//! `commit` takes them, here they are kept, fetched and deleted, `expiry` lets go of old ones. An offset names its
//! topic, and since Kafka 4.1 also the topic's identity: what was committed for a topic that was deleted is not
//! that of a new topic of its name.

mod commit;
mod expiry;

pub(super) use expiry::Aging;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use flumen_wire::ErrorCode;
use flumen_wire::group::offset_commit_key::OffsetCommitKey;
use flumen_wire::group::offset_commit_value::OffsetCommitValue;
use flumen_wire::messages::offset_delete_request::OffsetDeleteRequest;

use super::answer::{Answer, FetchedPartition, FetchedTopic};
use super::groups::Group;
use super::record::Record;
use super::{Context, Coordinator, classic::ClassicState};
use crate::types::TopicId;

/// What Kafka writes: the topic's identity is there from version 4 on.
const VALUE_VERSION: i16 = 4;
/// The version that has a time of expiry; clients up to OffsetCommit 4 may ask for one.
const EXPIRING_VALUE_VERSION: i16 = 1;
/// No offset.
const NO_OFFSET: i64 = -1;
const NO_EPOCH: i32 = -1;
/// No time.
const NO_TIME: i64 = -1;

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Committed {
    offset: i64,
    leader_epoch: i32,
    metadata: Arc<str>,
    commit_timestamp: i64,
    /// Of clients that ask for a retention of their own; -1 of all others.
    expire_timestamp: i64,
    topic_id: TopicId,
}

type Partitions = BTreeMap<i32, Committed>;
type Topics = BTreeMap<Arc<str>, Partitions>;

/// All offsets of a coordinator, by group, topic and partition.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    by_group: BTreeMap<Arc<str>, Topics>,
    len: usize,
    metadata_bytes: usize,
}

/// A fetch of one group's offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchOffsets<'a> {
    /// The group.
    pub group_id: &'a str,
    /// Who asks, where it is a member of a consumer group (from version 9 on).
    pub member_id: Option<&'a str>,
    /// Its epoch; -1 where it is none.
    pub member_epoch: i32,
    /// What is asked for; `None` is everything.
    pub topics: Option<Vec<TopicAsked<'a>>>,
}

/// Partitions of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicAsked<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its identity, where it is known: offsets of another topic of that name do not count.
    pub id: TopicId,
    /// The partitions.
    pub partitions: &'a [i32],
}

/// Replay and look-up.
impl Offsets {
    pub(super) fn replay(&mut self, key: &OffsetCommitKey<'_>, value: Option<OffsetCommitValue<'_>>) {
        match value {
            Some(value) => {
                let committed = Committed {
                    offset: value.offset,
                    leader_epoch: value.leader_epoch,
                    metadata: shared(value.metadata),
                    commit_timestamp: value.commit_timestamp,
                    expire_timestamp: value.expire_timestamp,
                    topic_id: TopicId(value.topic_id),
                };
                let partitions = entry(entry(&mut self.by_group, key.group), key.topic);
                self.metadata_bytes += committed.metadata.len();
                match partitions.insert(key.partition, committed) {
                    Some(old) => self.metadata_bytes -= old.metadata.len(),
                    None => self.len += 1,
                }
            }
            None => self.remove(key),
        }
    }

    fn remove(&mut self, key: &OffsetCommitKey<'_>) {
        let Some(topics) = self.by_group.get_mut(key.group) else { return };
        let Some(partitions) = topics.get_mut(key.topic) else { return };
        if let Some(old) = partitions.remove(&key.partition) {
            self.len -= 1;
            self.metadata_bytes -= old.metadata.len();
        }
        if partitions.is_empty() {
            topics.remove(key.topic);
        }
        if topics.is_empty() {
            self.by_group.remove(key.group);
        }
    }

    fn get(&self, group: &str, topic: &str, partition: i32) -> Option<&Committed> {
        self.by_group.get(group)?.get(topic)?.get(&partition)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of what clients said beside their offsets.
    fn metadata_bytes(&self) -> usize {
        self.metadata_bytes
    }

    /// Whether a group has any.
    pub(super) fn has_any(&self, group: &str) -> bool {
        self.by_group.contains_key(group)
    }

    /// The records that delete all offsets of a group.
    pub(super) fn tombstones(&self, group: &str) -> Vec<Record> {
        let topics = self.by_group.get(group).into_iter().flatten();
        topics
            .flat_map(|(topic, partitions)| {
                partitions.keys().map(move |partition| tombstone(group, topic, *partition))
            })
            .collect()
    }

    pub(super) fn snapshot(&self) -> impl Iterator<Item = Record> {
        self.by_group.iter().flat_map(|(group, topics)| {
            topics.iter().flat_map(move |(topic, partitions)| {
                partitions.iter().map(move |(partition, committed)| {
                    committed.record(&OffsetCommitKey { group, topic, partition: *partition })
                })
            })
        })
    }

    fn fetch(&self, request: &FetchOffsets<'_>) -> Vec<FetchedTopic> {
        let all = self.by_group.get(request.group_id);
        match &request.topics {
            None => {
                all.into_iter().flatten().map(|(name, partitions)| fetched_all(name, partitions)).collect()
            }
            Some(asked) => asked
                .iter()
                .map(|topic| {
                    let committed = all.and_then(|topics| topics.get(topic.name));
                    let partitions = topic.partitions.iter().map(|&partition| {
                        let found = committed.and_then(|partitions| partitions.get(&partition));
                        let found = found.filter(|found| found.is_of(topic.id));
                        fetched(partition, found)
                    });
                    FetchedTopic { name: topic.name.into(), id: topic.id, partitions: partitions.collect() }
                })
                .collect(),
        }
    }
}

impl Committed {
    /// Whether it was committed for this topic; where either is not known, the name has to do.
    fn is_of(&self, id: TopicId) -> bool {
        self.topic_id == id || self.topic_id == TopicId::ZERO || id == TopicId::ZERO
    }

    fn record(&self, key: &OffsetCommitKey<'_>) -> Record {
        let expires = self.expire_timestamp != NO_TIME;
        let value = OffsetCommitValue {
            offset: self.offset,
            leader_epoch: if expires { NO_EPOCH } else { self.leader_epoch },
            metadata: &self.metadata,
            commit_timestamp: self.commit_timestamp,
            expire_timestamp: self.expire_timestamp,
            topic_id: if expires { [0; 16] } else { self.topic_id.0 },
        };
        Record::new(key, &value, if expires { EXPIRING_VALUE_VERSION } else { VALUE_VERSION })
    }
}

fn tombstone(group: &str, topic: &str, partition: i32) -> Record {
    Record::tombstone(&OffsetCommitKey { group, topic, partition })
}

/// Metadata is empty with nearly every client, and that takes no memory of its own.
fn shared(metadata: &str) -> Arc<str> {
    if metadata.is_empty() { Arc::default() } else { metadata.into() }
}

/// The value under a name, made where there is none.
fn entry<'m, V: Default>(map: &'m mut BTreeMap<Arc<str>, V>, name: &str) -> &'m mut V {
    if !map.contains_key(name) {
        map.insert(name.into(), V::default());
    }
    map.get_mut(name).expect("it was put in")
}

fn fetched_all(name: &Arc<str>, partitions: &Partitions) -> FetchedTopic {
    let id = partitions.values().next().map_or(TopicId::ZERO, |committed| committed.topic_id);
    let partitions = partitions.iter().map(|(partition, committed)| fetched(*partition, Some(committed)));
    FetchedTopic { name: Arc::clone(name), id, partitions: partitions.collect() }
}

fn fetched(partition: i32, committed: Option<&Committed>) -> FetchedPartition {
    match committed {
        Some(committed) => FetchedPartition {
            partition,
            offset: committed.offset,
            leader_epoch: committed.leader_epoch,
            metadata: Arc::clone(&committed.metadata),
        },
        None => FetchedPartition {
            partition,
            offset: NO_OFFSET,
            leader_epoch: NO_EPOCH,
            metadata: Arc::default(),
        },
    }
}

/// OffsetFetch, OffsetDelete.
impl Coordinator {
    /// A group that there is none of has no offsets; that is no error.
    pub(super) fn fetch_offsets(&self, request: &FetchOffsets<'_>) -> Answer {
        if let Some(Group::Consumer(group)) = self.groups.get(request.group_id)
            && let Err(refusal) = group.check_fetch(request.member_id, request.member_epoch)
        {
            return Answer::Failed(refusal.code);
        }
        Answer::Fetched(self.offsets.fetch(request))
    }

    /// Deletes offsets of topics that the group is not subscribed to. The topics exist: the handler has looked.
    pub(super) fn delete_offsets(&mut self, cx: &Context<'_>, request: &OffsetDeleteRequest<'_>) -> Answer {
        let group_id = request.group_id;
        let group = match self.groups.get(group_id) {
            None => return Answer::Failed(ErrorCode::GroupIdNotFound),
            Some(group) => group,
        };
        if let Group::Classic(classic) = group
            && classic.state() != ClassicState::Empty
            && !classic.uses_consumer_protocol()
        {
            return Answer::Failed(ErrorCode::NonEmptyGroup);
        }
        let mut codes = Vec::new();
        let mut records = Vec::new();
        let mut named = HashSet::new();
        for topic in &request.topics {
            let subscribed = match group {
                Group::Classic(group) => group.is_subscribed_to(topic.name),
                Group::Consumer(group) => group.is_subscribed_to(topic.name),
            };
            for partition in topic.partitions.iter().map(|partition| partition.partition_index) {
                if subscribed {
                    codes.push(ErrorCode::GroupSubscribedToTopic);
                    continue;
                }
                codes.push(ErrorCode::None);
                let is_there = self.offsets.get(group_id, topic.name, partition).is_some();
                if is_there && named.insert((topic.name, partition)) {
                    records.push(tombstone(group_id, topic.name, partition));
                }
            }
        }
        self.write_apart(cx, records);
        Answer::OffsetsDeleted(codes)
    }
}
