//! Making, changing and removing topics.

use super::CHANGE_TIMEOUT_MS;
use crate::cluster::Cluster;
use crate::error::Error;
use flumen_wire::messages::create_partitions_request::{CreatePartitionsRequest, CreatePartitionsTopic};
use flumen_wire::messages::create_topics_request::{
    CreatableTopic, CreatableTopicConfig, CreateTopicsRequest,
};
use flumen_wire::messages::delete_topics_request::{DeleteTopicState, DeleteTopicsRequest};
use std::time::Duration;

/// A topic to be made.
#[derive(Clone, Debug)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// How many partitions; -1: as the broker has it.
    pub partitions: i32,
    /// How many replicas; -1: as the broker has it.
    pub replicas: i16,
    /// Settings that differ from the broker's.
    pub configs: Vec<(String, String)>,
}

/// A topic that was made, or why not.
#[derive(Debug)]
pub struct CreatedTopic {
    /// Its name.
    pub name: String,
    /// What it has; -1 where the broker does not say.
    pub partitions: i32,
    /// See `partitions`.
    pub replicas: i16,
    /// What came of it.
    pub result: Result<(), Error>,
}

const WAIT: Duration = Duration::from_millis(CHANGE_TIMEOUT_MS as u64);

/// Makes topics. With `validate_only` the broker only says whether it could.
pub async fn create(
    cluster: &Cluster,
    topics: &[NewTopic],
    validate_only: bool,
) -> Result<Vec<CreatedTopic>, Error> {
    let link = cluster.controller().await?;
    let answer = link
        .call_within(WAIT, |version| CreateTopicsRequest {
            topics: topics
                .iter()
                .map(|topic| CreatableTopic {
                    name: &topic.name,
                    // Before version 4 there is no "as the broker has it".
                    num_partitions: topic.partitions.max(if version < 4 { 1 } else { -1 }),
                    replication_factor: topic.replicas.max(if version < 4 { 1 } else { -1 }),
                    assignments: Vec::new(),
                    configs: topic
                        .configs
                        .iter()
                        .map(|(name, value)| CreatableTopicConfig { name, value: Some(value) })
                        .collect(),
                })
                .collect(),
            timeout_ms: CHANGE_TIMEOUT_MS,
            validate_only,
        })
        .await?;
    let response = answer.read()?;
    Ok(response
        .topics
        .iter()
        .map(|one| CreatedTopic {
            name: one.name.to_owned(),
            partitions: one.num_partitions,
            replicas: one.replication_factor,
            result: Error::check(one.error_code, one.error_message, || format!("topic {:?}", one.name)),
        })
        .collect())
}

/// Removes topics; with each, what came of it.
pub async fn delete(cluster: &Cluster, names: &[String]) -> Result<Vec<(String, Result<(), Error>)>, Error> {
    let link = cluster.controller().await?;
    let answer = link
        .call_within(WAIT, |version| {
            let mut request = DeleteTopicsRequest { timeout_ms: CHANGE_TIMEOUT_MS, ..Default::default() };
            if version >= 6 {
                let by_name = |name| DeleteTopicState { name: Some(name), topic_id: [0; 16] };
                request.topics = names.iter().map(String::as_str).map(by_name).collect();
            } else {
                request.topic_names = names.iter().map(String::as_str).collect();
            }
            request
        })
        .await?;
    let response = answer.read()?;
    Ok(response
        .responses
        .iter()
        .map(|one| {
            let name = one.name.unwrap_or_default().to_owned();
            let result = Error::check(one.error_code, one.error_message, || format!("topic {name:?}"));
            (name, result)
        })
        .collect())
}

/// Raises the number of a topic's partitions to `count`.
pub async fn create_partitions(cluster: &Cluster, topic: &str, count: i32) -> Result<(), Error> {
    let link = cluster.controller().await?;
    let answer = link
        .call_within(WAIT, |_| CreatePartitionsRequest {
            topics: vec![CreatePartitionsTopic { name: topic, count, assignments: None }],
            timeout_ms: CHANGE_TIMEOUT_MS,
            validate_only: false,
        })
        .await?;
    for one in answer.read()?.results {
        Error::check(one.error_code, one.error_message, || format!("topic {topic:?}"))?;
    }
    Ok(())
}
