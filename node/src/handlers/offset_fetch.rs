//! OffsetFetch (key 9): how far groups have read. KIP-709 (several groups, from version 8), KIP-848 (members, topic ids
//! from version 10). There are no transactions, so that every offset is stable (KIP-447).

use std::rc::Rc;

use flumen_core::coordinator::{
    Answer, Caller, FetchOffsets, FetchedPartition, FetchedTopic, Request as GroupRequest, TopicAsked,
};
use flumen_core::types::TopicId;
use flumen_wire::ErrorCode;
use flumen_wire::messages::offset_fetch_request::{OffsetFetchRequest, OffsetFetchRequestGroup};
use flumen_wire::messages::offset_fetch_response::{
    OffsetFetchResponse, OffsetFetchResponseGroup, OffsetFetchResponsePartition,
    OffsetFetchResponsePartitions, OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};

use super::group::{are_repeated, each};
use super::{Refusal, Request, check_partitions};
use crate::net::response::Response;
use crate::shard::Shard;

/// The first version that may ask for all topics, and that has an error of its own.
const ALL_TOPICS_VERSION: i16 = 2;
/// The first version that asks for several groups.
const GROUPS_VERSION: i16 = 8;
/// The first version that names topics by id.
const TOPIC_ID_VERSION: i16 = 10;

/// Partitions that are asked for, of one topic.
struct Asked {
    /// Empty where the id is not known.
    name: String,
    id: TopicId,
    partitions: Vec<i32>,
}

/// What is asked of one group.
struct GroupAsked {
    group_id: String,
    member_id: Option<String>,
    member_epoch: i32,
    /// `None`: everything.
    topics: Option<Vec<Asked>>,
}

/// What comes of it.
struct GroupFetched {
    error: ErrorCode,
    topics: Vec<(FetchedTopic, ErrorCode)>,
}

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: OffsetFetchRequest<'_> = request.body()?;
    let version = request.version;
    let of_groups = body.groups.iter().flat_map(|group| group.topics.iter().flatten());
    check_partitions(of_groups.map(|topic| &topic.partition_indexes))?;
    check_partitions(body.topics.iter().flatten().map(|topic| &topic.partition_indexes))?;
    if version >= GROUPS_VERSION {
        let repeated = are_repeated(body.groups.iter().map(|group| group.group_id));
        let asked = body.groups.iter().zip(repeated).map(|(group, is_repeated)| async move {
            match is_repeated {
                true => GroupFetched { error: ErrorCode::InvalidRequest, topics: Vec::new() },
                false => fetch(shard, of_group(shard, group, version), version).await,
            }
        });
        let fetched = each(asked).await?;
        let groups = body.groups.iter().zip(&fetched).map(|(group, fetched)| OffsetFetchResponseGroup {
            group_id: group.group_id,
            error_code: fetched.error.code(),
            topics: fetched.topics.iter().map(|(topic, code)| new_topic(topic, *code, version)).collect(),
        });
        let groups = groups.collect();
        return request.respond(&OffsetFetchResponse { groups, ..OffsetFetchResponse::default() });
    }
    let fetched = fetch(shard, of_one(shard, &body), version).await;
    let error_code = if version >= ALL_TOPICS_VERSION { fetched.error.code() } else { 0 };
    let topics = fetched.topics.iter().map(|(topic, code)| OffsetFetchResponseTopic {
        name: &topic.name,
        partitions: topic
            .partitions
            .iter()
            .map(|p| OffsetFetchResponsePartition {
                partition_index: p.partition,
                committed_offset: p.offset,
                committed_leader_epoch: p.leader_epoch,
                metadata: Some(&p.metadata),
                error_code: code.code(),
            })
            .collect(),
    });
    let topics = topics.collect();
    request.respond(&OffsetFetchResponse { topics, error_code, ..OffsetFetchResponse::default() })
}

fn known_id(shard: &Shard, name: &str) -> TopicId {
    shard.image().topic(name).map_or(TopicId::ZERO, |topic| topic.id)
}

fn of_one(shard: &Shard, body: &OffsetFetchRequest<'_>) -> GroupAsked {
    let topics = body.topics.as_ref().map(|topics| {
        let asked = topics.iter().map(|topic| Asked {
            name: topic.name.to_owned(),
            id: known_id(shard, topic.name),
            partitions: topic.partition_indexes.clone(),
        });
        asked.collect()
    });
    GroupAsked { group_id: body.group_id.to_owned(), member_id: None, member_epoch: -1, topics }
}

fn of_group(shard: &Shard, group: &OffsetFetchRequestGroup<'_>, version: i16) -> GroupAsked {
    let image = shard.image();
    let topics = group.topics.as_ref().map(|topics| {
        let asked = topics.iter().map(|topic| {
            let (name, id) = if version >= TOPIC_ID_VERSION {
                let id = TopicId(topic.topic_id);
                (image.topic_by_id(id).map_or(String::new(), |topic| topic.name.to_string()), id)
            } else {
                (topic.name.to_owned(), known_id(shard, topic.name))
            };
            Asked { name, id, partitions: topic.partition_indexes.clone() }
        });
        asked.collect()
    });
    GroupAsked {
        group_id: group.group_id.to_owned(),
        member_id: group.member_id.map(str::to_owned),
        member_epoch: group.member_epoch,
        topics,
    }
}

async fn fetch(shard: &Shard, asked: GroupAsked, version: i16) -> GroupFetched {
    let asked = Rc::new(asked);
    let group_id = asked.group_id.clone();
    let known = |topic: &&Asked| !topic.name.is_empty();
    // What travels is owned: the closure runs on another shard, perhaps.
    let (member_id, member_epoch) = (asked.member_id.clone(), asked.member_epoch);
    let travelling: Option<Vec<(String, TopicId, Vec<i32>)>> = asked.topics.as_ref().map(|topics| {
        let topics = topics.iter().filter(known);
        topics.map(|topic| (topic.name.clone(), topic.id, topic.partitions.clone())).collect()
    });
    let call_group = group_id.clone();
    let answer = shard.coordinate(&group_id, move |coordinator, cx, token| {
        let topics = travelling.as_ref().map(|topics| {
            let asked = topics.iter();
            asked.map(|(name, id, partitions)| TopicAsked { name, id: *id, partitions }).collect()
        });
        let member_id = member_id.as_deref();
        let fetch = FetchOffsets { group_id: &call_group, member_id, member_epoch, topics };
        coordinator.handle(
            cx,
            &Caller { version, ..Caller::default() },
            GroupRequest::OffsetFetch(&fetch),
            token,
        );
    });
    let (fetched, error) = match answer.await {
        Answer::Fetched(fetched) => (fetched, ErrorCode::None),
        Answer::Failed(code) => (Vec::new(), code),
        other => unreachable!("no answer to OffsetFetch: {other:?}"),
    };
    match &asked.topics {
        None => GroupFetched { error, topics: all_topics(shard, fetched, version) },
        Some(topics) => GroupFetched { error, topics: per_topic(topics, fetched, error, version) },
    }
}

/// Everything that a group has committed. Topics without an identity cannot be told to those who want it.
fn all_topics(shard: &Shard, fetched: Vec<FetchedTopic>, version: i16) -> Vec<(FetchedTopic, ErrorCode)> {
    let image = shard.image();
    let with_id = fetched.into_iter().filter_map(|topic| {
        let known = image.topic(&topic.name).map(|known| known.id);
        match known {
            Some(id) => Some(FetchedTopic { id, ..topic }),
            None if version < TOPIC_ID_VERSION => Some(topic),
            None => None,
        }
    });
    with_id.map(|topic| (topic, ErrorCode::None)).collect()
}

/// What was asked for, in that order. Under an error of the group there are no topics, but for the oldest version,
/// which has no other place for it.
fn per_topic(
    asked: &[Asked],
    fetched: Vec<FetchedTopic>,
    error: ErrorCode,
    version: i16,
) -> Vec<(FetchedTopic, ErrorCode)> {
    if error != ErrorCode::None && version >= ALL_TOPICS_VERSION {
        return Vec::new();
    }
    let mut fetched = fetched.into_iter();
    let topics = asked.iter().map(|asked| {
        let found = if asked.name.is_empty() { None } else { fetched.next() };
        match found {
            Some(found) => (found, error),
            None if asked.name.is_empty() => (nothing(asked), ErrorCode::UnknownTopicId),
            None => (nothing(asked), error),
        }
    });
    topics.collect()
}

fn nothing(asked: &Asked) -> FetchedTopic {
    let partitions = asked.partitions.iter().map(|&partition| FetchedPartition {
        partition,
        offset: -1,
        leader_epoch: -1,
        metadata: Default::default(),
    });
    FetchedTopic { name: asked.name.as_str().into(), id: asked.id, partitions: partitions.collect() }
}

fn new_topic(topic: &FetchedTopic, code: ErrorCode, version: i16) -> OffsetFetchResponseTopics<'_> {
    let by_id = version >= TOPIC_ID_VERSION;
    OffsetFetchResponseTopics {
        name: if by_id { "" } else { &topic.name },
        topic_id: if by_id { topic.id.0 } else { [0; 16] },
        partitions: topic
            .partitions
            .iter()
            .map(|p| OffsetFetchResponsePartitions {
                partition_index: p.partition,
                committed_offset: p.offset,
                committed_leader_epoch: p.leader_epoch,
                metadata: Some(&p.metadata),
                error_code: code.code(),
            })
            .collect(),
    }
}
