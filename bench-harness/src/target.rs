//! What is measured: a cluster, and the topics on it that the load uses.

use crate::failure::Failure;
use crate::result::{Broker, TopicsSeen};
use crate::scenario::TopicSettings;
use flumen_client::admin::describe_cluster;
use flumen_client::admin::topics::{NewTopic, create, create_partitions, delete};
use flumen_client::cluster::Topics;
use flumen_client::{Cluster, Error, Settings, runtime};
use flumen_wire::ErrorCode;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long topics may take to get their leaders.
const TOPICS_TIMEOUT: Duration = Duration::from_secs(30);
/// Topics that one request makes.
const TOPICS_PER_REQUEST: usize = 100;
/// Partitions that one request makes. Kafka writes at most 10,000 records of metadata for a request, and refuses one that
/// needs more as an "excessively large batch operation".
const PARTITIONS_PER_REQUEST: usize = 5_000;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Target {
    pub addresses: Vec<String>,
    pub topics: Vec<TopicState>,
    pub broker: Broker,
    /// Those that were made for this run.
    made: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TopicState {
    pub name: String,
    /// By partition.
    pub leaders: Vec<i32>,
}

/// Which kind of failure it is that a broker, or none, answered so.
pub(crate) fn failure_of(error: Error) -> Failure {
    match &error {
        Error::NoBroker(_)
        | Error::Advertised { .. }
        | Error::Socket { .. }
        | Error::Closed { .. }
        | Error::Timeout { .. } => Failure::NoBroker(error.to_string()),
        Error::Address { .. } | Error::Invalid(_) => Failure::Usage(error.to_string()),
        _ => Failure::Other(error.to_string()),
    }
}

fn settings(addresses: &[String], timeout: Duration) -> Settings {
    Settings {
        brokers: addresses.to_vec(),
        client_id: "flumen-bench".to_owned(),
        request_timeout: timeout,
        retry_timeout: timeout,
    }
}

impl Target {
    /// Connects, and makes the topics that are not there.
    pub(crate) fn prepare(
        addresses: &[String],
        topic: &TopicSettings,
        timeout: Duration,
    ) -> Result<Target, Failure> {
        runtime::block_on(async {
            let cluster = Cluster::connect(settings(addresses, timeout)).await.map_err(failure_of)?;
            let described = describe_cluster(&cluster).await.map_err(failure_of)?;
            let mut target = Target {
                addresses: addresses.to_vec(),
                topics: Vec::new(),
                broker: Broker {
                    addresses: addresses.to_vec(),
                    version: None,
                    cluster_id: described.cluster_id,
                    nodes: described.brokers.len() as u32,
                },
                made: Vec::new(),
            };
            let found = match topic.create {
                true => target.make_topics(&cluster, topic).await,
                false => target.find_topics(&cluster, topic).await,
            };
            found.map_err(|error| match error {
                Error::UnknownTopic(name) => Failure::Usage(format!(
                    "--topic {name}: there is no such topic; --create-topic makes it for this run"
                )),
                error => failure_of(error),
            })?;
            Ok(target)
        })
    }

    async fn find_topics(&mut self, cluster: &Cluster, settings: &TopicSettings) -> Result<(), Error> {
        let names = settings.names();
        for name in &names {
            cluster.topic(name, false).await?;
        }
        self.wait_for_leaders(cluster, settings).await
    }

    async fn make_topics(&mut self, cluster: &Cluster, settings: &TopicSettings) -> Result<(), Error> {
        let names = settings.names();
        let wanted_partitions = settings.partitions as usize;
        let first_partitions = wanted_partitions.min(PARTITIONS_PER_REQUEST);
        let topics_per_request = (PARTITIONS_PER_REQUEST / first_partitions).min(TOPICS_PER_REQUEST);
        for some in names.chunks(topics_per_request) {
            let wanted: Vec<_> = some
                .iter()
                .map(|name| NewTopic {
                    name: name.clone(),
                    partitions: first_partitions as i32,
                    replicas: settings.replication_factor,
                    configs: settings.configs.clone().into_iter().collect(),
                })
                .collect();
            for one in create(cluster, &wanted, false).await? {
                match one.result {
                    Ok(()) => self.made.push(one.name),
                    Err(error) if error.code() == Some(ErrorCode::TopicAlreadyExists) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        for name in &self.made {
            let mut there = first_partitions;
            while there < wanted_partitions {
                there = wanted_partitions.min(there + PARTITIONS_PER_REQUEST);
                create_partitions(cluster, name, there as i32).await?;
            }
        }
        self.wait_for_leaders(cluster, settings).await
    }

    async fn wait_for_leaders(&mut self, cluster: &Cluster, settings: &TopicSettings) -> Result<(), Error> {
        let began = Instant::now();
        let names = settings.names();
        let made: HashSet<&str> = self.made.iter().map(String::as_str).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        loop {
            let metadata = cluster.refresh(Topics::Named(&names), false).await?;
            let found: Vec<_> = names.iter().filter_map(|name| metadata.topics.get(*name)).collect();
            let has_leaders = found.len() == names.len()
                && found.iter().all(|topic| {
                    topic.error.is_none()
                        && match made.contains(&*topic.name) {
                            true => topic.partitions.len() == settings.partitions as usize,
                            false => !topic.partitions.is_empty(),
                        }
                        && topic.partitions.iter().all(|one| one.leader >= 0)
                });
            if has_leaders {
                let state = |topic: &&flumen_client::metadata::Topic| TopicState {
                    name: topic.name.to_string(),
                    leaders: topic.partitions.iter().map(|one| one.leader).collect(),
                };
                self.topics = found.iter().map(state).collect();
                return Ok(());
            }
            if began.elapsed() > TOPICS_TIMEOUT {
                let name = names.first().copied().unwrap_or_default();
                return Err(Error::NoLeader { topic: name.to_owned(), partition: 0 });
            }
            runtime::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn connect(&self, timeout: Duration) -> Result<Cluster, Error> {
        Cluster::connect(settings(&self.addresses, timeout)).await
    }

    pub(crate) fn seen(&self) -> TopicsSeen {
        TopicsSeen {
            count: self.topics.len() as u32,
            partitions: self.topics.iter().map(|topic| topic.leaders.len() as u64).sum(),
            made: self.made.len() as u32,
        }
    }

    /// Topics that were there, and have other numbers of partitions than they would have been made with.
    pub(crate) fn notes(&self, settings: &TopicSettings) -> Vec<String> {
        let wanted = settings.partitions as usize;
        let other = |topic: &&TopicState| !self.made.contains(&topic.name) && topic.leaders.len() != wanted;
        let others: Vec<&TopicState> = self.topics.iter().filter(other).collect();
        let Some(first) = others.first() else { return Vec::new() };
        let more = if others.len() > 1 { format!(" (and {} more)", others.len() - 1) } else { String::new() };
        vec![format!(
            "topic {:?}{more} was there with {} partitions; the scenario says {wanted}",
            first.name,
            first.leaders.len()
        )]
    }

    /// Removes what was made for the run.
    pub(crate) fn clean(&self, timeout: Duration) -> Result<(), Failure> {
        if self.made.is_empty() {
            return Ok(());
        }
        runtime::block_on(async {
            let cluster = self.connect(timeout).await?;
            for some in self.made.chunks(TOPICS_PER_REQUEST) {
                delete(&cluster, some).await?;
            }
            Ok(())
        })
        .map_err(failure_of)
    }
}
