//! Metadata (key 3): nodes, topics, leaders. Creates topics on first use where that is allowed.
//!
//! Invariants: a topic is described once, however often it is named; where there is an id, a name beside it says nothing
//! (the Java client sends an empty one).

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

use flumen_core::coordinator::OFFSETS_TOPIC;
use flumen_core::limits::PARTITIONS_PER_REQUEST_MAX;
use flumen_core::metadata::{Image, NewTopic, Topic, check_topic_name, is_internal_topic};
use flumen_core::types::TopicId;
use flumen_wire::ErrorCode;
use flumen_wire::messages::metadata_request::{MetadataRequest, MetadataRequestTopic};
use flumen_wire::messages::metadata_response::{
    MetadataResponse, MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};

use super::authorized_operations as operations;
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

/// The first version that asks by id.
const ID_VERSION: i16 = 12;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: MetadataRequest<'_> = request.body()?;
    // Version 0 has no null: an empty list stands for all.
    let asked = body.topics.filter(|topics| request.version > 0 || !topics.is_empty());
    let asked = asked.map(|topics| distinct(request.version, topics));
    let asked = asked.as_deref();
    if let Some(refused) = asked.and_then(|asked| refused_of_old(request.version, asked)) {
        return request.respond(&refused);
    }
    let refusals = match asked {
        Some(topics) if body.allow_auto_topic_creation || request.version < 4 => {
            create_missing(shard, topics).await
        }
        _ => Vec::new(),
    };
    let image = image_for(shard, asked).await;
    let topics = match asked {
        None => image.topics().map(|topic| describe(topic, None)).collect(),
        Some(asked) => asked.iter().map(|topic| look_up(&image, topic, &refusals)).collect(),
    };
    let mut answer = MetadataResponse { topics, ..MetadataResponse::default() };
    if body.include_topic_authorized_operations {
        for topic in answer.topics.iter_mut().filter(|topic| topic.error_code == 0) {
            topic.topic_authorized_operations = operations::TOPIC;
        }
    }
    if body.include_cluster_authorized_operations {
        answer.cluster_authorized_operations = operations::CLUSTER;
    }
    let cluster_id = image.cluster_id().map(|id| id.to_string());
    answer.cluster_id = cluster_id.as_deref();
    answer.controller_id = shard.node_id().0;
    answer.brokers = image
        .brokers()
        .filter_map(|broker| {
            let listener = broker.listeners.first()?;
            Some(MetadataResponseBroker {
                node_id: broker.node.0,
                host: &listener.host,
                port: i32::from(listener.port),
                rack: broker.rack.as_deref(),
            })
        })
        .collect();
    request.respond(&answer)
}

/// Before topics could be asked for by id, a request may have fields for that, but not use them: none of it is answered, as
/// in Kafka.
fn refused_of_old<'a>(version: i16, asked: &'a [MetadataRequestTopic<'a>]) -> Option<MetadataResponse<'a>> {
    let by_id = |topic: &MetadataRequestTopic<'_>| topic.name.is_none() || topic.topic_id != [0; 16];
    if version >= ID_VERSION || !asked.iter().any(by_id) {
        return None;
    }
    let refuse = |topic: &MetadataRequestTopic<'a>| MetadataResponseTopic {
        name: Some(topic.name.unwrap_or_default()),
        ..unknown(ErrorCode::InvalidRequest, topic)
    };
    Some(MetadataResponse { topics: asked.iter().map(refuse).collect(), ..MetadataResponse::default() })
}

/// What is asked for, each once: by its id where it has one, else by its name.
fn distinct(version: i16, mut topics: Vec<MetadataRequestTopic<'_>>) -> Vec<MetadataRequestTopic<'_>> {
    if version >= ID_VERSION {
        for topic in topics.iter_mut().filter(|topic| topic.topic_id != [0; 16]) {
            topic.name = None;
        }
    }
    let mut seen = HashSet::new();
    topics.retain(|topic| seen.insert((topic.name, topic.topic_id)));
    topics
}

/// This shard's image, unless it lacks something that is asked for: another shard may have shown that already.
async fn image_for(shard: &Rc<Shard>, asked: Option<&[MetadataRequestTopic<'_>]>) -> Arc<Image> {
    let image = shard.image();
    let knows = |topic: &MetadataRequestTopic<'_>| match topic.name {
        Some(name) => image.topic(name).is_some(),
        None => image.topic_by_id(TopicId(topic.topic_id)).is_some(),
    };
    if asked.is_some_and(|asked| asked.iter().all(knows)) { image } else { shard.newest_image().await }
}

/// Creates the topics that are not there. Returns those that could not be created, by name, and why.
async fn create_missing(shard: &Rc<Shard>, asked: &[MetadataRequestTopic<'_>]) -> Vec<(String, ErrorCode)> {
    if !shard.config().auto_create_topics_enable {
        return Vec::new();
    }
    let image = shard.image();
    let is_missing = |name: &&str| image.topic(name).is_none() && check_topic_name(name).is_ok();
    let missing = asked.iter().filter_map(|topic| topic.name).filter(is_missing);
    // Our own topics are not made as others are.
    let (ours, missing): (Vec<&str>, Vec<&str>) = missing.partition(|name| is_internal_topic(name));
    if ours.contains(&OFFSETS_TOPIC) {
        // Where it fails, the topic is unknown still, and the client asks again.
        let _ = shard.ensure_offsets_topic().await;
    }
    let mut missing: Vec<String> = missing.into_iter().map(str::to_owned).collect();
    missing.sort_unstable();
    missing.dedup();
    // Each makes a partition at least. The others are unknown still, and asked for again.
    missing.truncate(PARTITIONS_PER_REQUEST_MAX);
    if missing.is_empty() {
        return Vec::new();
    }
    let ids: Vec<_> = missing.iter().map(|_| super::create_topics::new_topic_id(shard)).collect();
    let names = missing.clone();
    let decided = shard
        .decide(move |controller| {
            let topics: Vec<_> = names.iter().map(|name| NewTopic::with_defaults(name)).collect();
            Ok(controller.create_topics(&topics, &ids, false))
        })
        .await;
    match decided {
        Err(refused) => missing.into_iter().map(|name| (name, refused.code)).collect(),
        Ok(results) => missing
            .into_iter()
            .zip(results)
            .filter_map(|(name, result)| match result {
                Ok(_) => None,
                // Somebody else was quicker.
                Err(refused) if refused.code == ErrorCode::TopicAlreadyExists => None,
                Err(refused) => Some((name, refused.code)),
            })
            .collect(),
    }
}

fn look_up<'a>(
    image: &'a Image,
    asked: &'a MetadataRequestTopic<'a>,
    refusals: &[(String, ErrorCode)],
) -> MetadataResponseTopic<'a> {
    let Some(name) = asked.name else {
        return match image.topic_by_id(TopicId(asked.topic_id)) {
            Some(topic) => describe(topic, None),
            None => unknown(ErrorCode::UnknownTopicId, asked),
        };
    };
    if let Some(topic) = image.topic(name) {
        return describe(topic, Some(name));
    }
    let refusal = refusals.binary_search_by(|(refused, _)| refused.as_str().cmp(name));
    let error = match refusal {
        Ok(at) => refusals[at].1,
        Err(_) if check_topic_name(name).is_err() => ErrorCode::InvalidTopicException,
        Err(_) => ErrorCode::UnknownTopicOrPartition,
    };
    unknown(error, asked)
}

fn unknown<'a>(error: ErrorCode, asked: &MetadataRequestTopic<'a>) -> MetadataResponseTopic<'a> {
    MetadataResponseTopic {
        error_code: error.code(),
        name: asked.name,
        topic_id: asked.topic_id,
        ..MetadataResponseTopic::default()
    }
}

fn describe<'a>(topic: &'a Arc<Topic>, name: Option<&'a str>) -> MetadataResponseTopic<'a> {
    let name = name.unwrap_or(&topic.name);
    MetadataResponseTopic {
        name: Some(name),
        topic_id: topic.id.0,
        is_internal: is_internal_topic(name),
        partitions: topic
            .partitions
            .iter()
            .zip(0..)
            .map(|(partition, partition_index)| MetadataResponsePartition {
                error_code: match partition.leader {
                    Some(_) => ErrorCode::None.code(),
                    None => ErrorCode::LeaderNotAvailable.code(),
                },
                partition_index,
                leader_id: partition.leader.map_or(-1, |leader| leader.0),
                leader_epoch: partition.leader_epoch.0,
                replica_nodes: partition.replicas.iter().map(|node| node.0).collect(),
                isr_nodes: partition.isr.iter().map(|node| node.0).collect(),
                offline_replicas: Vec::new(),
            })
            .collect(),
        ..MetadataResponseTopic::default()
    }
}
