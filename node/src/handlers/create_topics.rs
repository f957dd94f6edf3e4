//! CreateTopics (key 19). KIP-464 (defaults of the broker), KIP-525 (the topic's settings in the response), KIP-516
//! (its id).
//!
//! The answer leaves when every shard serves its partitions of the new topics and Metadata shows them.

use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

use flumen_core::config::{Described, Overrides, TOPIC_SETTINGS};
use flumen_core::metadata::{CreatedTopic, NewTopic, PARTITIONS_PER_REQUEST_MAX, Refused};
use flumen_core::types::{NodeId, TopicId};
use flumen_wire::ErrorCode;
use flumen_wire::messages::create_topics_request::{CreatableTopic, CreateTopicsRequest};
use flumen_wire::messages::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult, CreateTopicsResponse,
};

use super::carried::{Carried, outcome, per_part};
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

/// The first version whose response says more than an error.
const DETAILS_VERSION: i16 = 5;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: CreateTopicsRequest<'_> = request.body()?;
    let decided = create(shard, request, &body).await;
    let effective = effective_settings(shard, request.version, &decided);
    let mut seen = HashSet::new();
    let answers = body.topics.iter().zip(&decided);
    // A name that stands in the request twice is refused, once.
    let topics = answers
        .filter(|(topic, _)| seen.insert(topic.name))
        .map(|(topic, decided)| result(topic.name, decided, &effective))
        .collect();
    request.respond(&CreateTopicsResponse { topics, ..CreateTopicsResponse::default() })
}

/// Has the controller decide. One answer per topic of the request.
async fn create(
    shard: &Rc<Shard>,
    request: &Request,
    body: &CreateTopicsRequest<'_>,
) -> Vec<Result<CreatedTopic, Refused>> {
    let count = body.topics.len();
    if count > PARTITIONS_PER_REQUEST_MAX {
        let message = Some("Unable to perform excessively large batch operation.".to_owned());
        return per_part(Err(Refused { code: ErrorCode::PolicyViolation, message }), count);
    }
    let ids: Vec<TopicId> = (0..count).map(|_| new_topic_id(shard)).collect();
    let carried = Carried::with_timeout(request, body.timeout_ms);
    let decided = shard.decide(move |controller| {
        carried.check_in_time()?;
        let body: CreateTopicsRequest<'_> = carried.body();
        let topics: Vec<NewTopic<'_>> = body.topics.iter().map(new_topic).collect();
        Ok(controller.create_topics(&topics, &ids, body.validate_only))
    });
    per_part(decided.await, count)
}

fn new_topic<'a>(topic: &CreatableTopic<'a>) -> NewTopic<'a> {
    let nodes = |ids: &[i32]| ids.iter().copied().map(NodeId).collect();
    NewTopic {
        name: topic.name,
        partitions: topic.num_partitions,
        replication_factor: topic.replication_factor,
        assignments: topic.assignments.iter().map(|a| (a.partition_index, nodes(&a.broker_ids))).collect(),
        configs: topic.configs.iter().map(|config| (config.name, config.value)).collect(),
    }
}

/// The identity of a topic that is about to be created: random, in no use.
pub(crate) fn new_topic_id(shard: &Shard) -> TopicId {
    let image = shard.image();
    loop {
        let id = topic_id(shard.random(|rng| rng.u128(..)));
        if image.topic_by_id(id).is_none() && !starts_with_dash(id) {
            return id;
        }
    }
}

/// Random bits as a UUID of version 4, as Kafka's ids are; so none of the ids that Kafka reserves comes out.
fn topic_id(random: u128) -> TopicId {
    let mut bytes = random.to_be_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    TopicId(bytes)
}

/// Whether the printed id would look like an option to a command line tool. Kafka has no such ids.
fn starts_with_dash(id: TopicId) -> bool {
    id.0[0] >> 2 == 62
}

/// The settings of the new topics as they are in force, by what was set for them: topics with the same settings
/// share one list.
fn effective_settings(
    shard: &Shard,
    version: i16,
    decided: &[Result<CreatedTopic, Refused>],
) -> BTreeMap<Overrides, Vec<Described>> {
    let mut effective = BTreeMap::new();
    if version < DETAILS_VERSION {
        return effective;
    }
    let settings = shard.image().settings(shard.node_id(), &shard.facts.statics);
    for created in decided.iter().flatten() {
        if !effective.contains_key(&created.overrides) {
            let described =
                TOPIC_SETTINGS.iter().map(|setting| settings.describe_topic(setting, &created.overrides));
            effective.insert(created.overrides.clone(), described.collect());
        }
    }
    effective
}

fn result<'a>(
    name: &'a str,
    decided: &'a Result<CreatedTopic, Refused>,
    effective: &'a BTreeMap<Overrides, Vec<Described>>,
) -> CreatableTopicResult<'a> {
    let (error_code, error_message) = outcome(decided);
    let refused = CreatableTopicResult { name, error_code, error_message, ..CreatableTopicResult::default() };
    let Ok(created) = decided else { return refused };
    let described = effective.get(&created.overrides).into_iter().flatten();
    CreatableTopicResult {
        topic_id: created.id.0,
        num_partitions: created.partitions,
        replication_factor: created.replication_factor,
        configs: Some(described.map(config).collect()),
        ..refused
    }
}

fn config(described: &Described) -> CreatableTopicConfigs<'_> {
    CreatableTopicConfigs {
        name: described.setting.name,
        value: described.value.as_deref(),
        read_only: described.read_only,
        config_source: described.source.code(),
        is_sensitive: described.setting.is_sensitive(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_ids_are_random_uuids() {
        for random in [0, 1, u128::MAX, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef] {
            let id = topic_id(random);
            assert_ne!(id, TopicId::ZERO);
            assert_eq!((id.0[6] >> 4, id.0[8] >> 6), (4, 2), "version and variant");
        }
    }

    #[test]
    fn a_leading_dash_is_seen() {
        for byte in 0..=u8::MAX {
            let id = TopicId([byte; 16]);
            assert_eq!(starts_with_dash(id), id.to_string().starts_with('-'), "{byte}");
        }
    }

    #[test]
    fn a_refused_topic_says_only_why() {
        let refused = Refused { code: ErrorCode::TopicAlreadyExists, message: Some("there".to_owned()) };
        let decided = Err(refused);
        let effective = BTreeMap::new();
        let result = result("t", &decided, &effective);
        assert_eq!((result.error_code, result.error_message), (36, Some("there")));
        assert_eq!((result.num_partitions, result.replication_factor), (-1, -1));
        assert_eq!(result.topic_id, [0; 16]);
    }
}
