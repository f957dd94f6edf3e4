//! A cluster as a client sees it: from a few addresses to the broker that has what is wanted.
//!
//! Holds one [`Link`] for each broker and purpose, the last metadata, and the coordinators that were looked up. What
//! a broker refuses because it is no longer the one to ask is asked again elsewhere, with pauses that double, until
//! [`Settings::retry_timeout`] is over.

use crate::api::Call;
use crate::error::Error;
use crate::limits::{BACKOFF_MAX, BACKOFF_MIN, CLIENT_ID_BYTES_MAX};
use crate::link::{Answer, Link, LinkSettings};
use crate::metadata::{Metadata, Topic, TopicPartition, by_topic};
use crate::runtime;
use flumen_wire::ErrorCode;
use flumen_wire::messages::find_coordinator_request::FindCoordinatorRequest;
use flumen_wire::messages::list_offsets_request::{
    ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic,
};
use flumen_wire::messages::metadata_request::{MetadataRequest, MetadataRequestTopic};
use futures_util::future::join_all;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a topic that is about to be created may be unknown.
const CREATION_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a leader may not know yet that it is one.
const SETTLING_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a cluster is and how patiently it is asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Addresses to begin with, `host:port`.
    pub brokers: Vec<String>,
    /// What the client calls itself.
    pub client_id: String,
    /// How long one answer may take.
    pub request_timeout: Duration,
    /// How long a request is tried again.
    pub retry_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            brokers: vec!["127.0.0.1:9092".to_owned()],
            client_id: "flumen".to_owned(),
            request_timeout: Duration::from_secs(30),
            retry_timeout: Duration::from_secs(30),
        }
    }
}

/// What a link is for. Answers come in order, so what waits long at the broker has a link of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Questions and commands.
    Admin,
    /// Produce.
    Produce,
    /// Fetch, which waits for data.
    Fetch,
    /// JoinGroup and SyncGroup, which wait for other members.
    Join,
    /// Heartbeats and commits.
    Group,
}

/// Which topics metadata is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Topics<'a> {
    /// Brokers alone.
    None,
    /// All of them.
    All,
    /// Those.
    Named(&'a [&'a str]),
}

/// An offset found by time, or an end of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    /// -1 where no record is that late.
    pub offset: i64,
    /// Of the record, where one was looked for.
    pub timestamp: i64,
}

/// The timestamp that asks for the start of a log.
pub const EARLIEST: i64 = -2;
/// The timestamp that asks for the end of a log.
pub const LATEST: i64 = -1;

/// See the head of this file. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Cluster(Rc<Inner>);

struct Inner {
    settings: Settings,
    links: RefCell<HashMap<(i32, Lane), Link>>,
    /// To whichever broker answered first.
    bootstrap: RefCell<Option<Link>>,
    metadata: RefCell<Rc<Metadata>>,
    coordinators: RefCell<HashMap<String, i32>>,
}

impl Cluster {
    /// Finds a broker that answers, and learns the others from it.
    pub async fn connect(settings: Settings) -> Result<Cluster, Error> {
        if settings.client_id.len() > CLIENT_ID_BYTES_MAX {
            return Err(Error::Invalid(format!("a client id has at most {CLIENT_ID_BYTES_MAX} bytes")));
        }
        let cluster = Cluster(Rc::new(Inner {
            settings,
            links: RefCell::default(),
            bootstrap: RefCell::default(),
            metadata: RefCell::default(),
            coordinators: RefCell::default(),
        }));
        cluster.refresh(Topics::None, false).await?;
        Ok(cluster)
    }

    /// As given.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// What was learned last.
    pub fn metadata(&self) -> Rc<Metadata> {
        self.0.metadata.borrow().clone()
    }

    // -- links ------------------------------------------------------------------------------------

    /// A link to whichever broker answers.
    pub async fn any(&self) -> Result<Link, Error> {
        let held = self.0.bootstrap.borrow().as_ref().filter(|link| link.is_open()).cloned();
        if let Some(link) = held {
            return Ok(link);
        }
        let known: Vec<String> = self.metadata().brokers.iter().map(|one| one.address()).collect();
        let given = self.0.settings.brokers.iter().filter(|one| !known.contains(one)).cloned();
        let mut failed = Vec::new();
        for address in given.chain(known.iter().cloned()) {
            match Link::connect(&address, &self.link_settings()).await {
                Ok(link) => {
                    *self.0.bootstrap.borrow_mut() = Some(link.clone());
                    return Ok(link);
                }
                Err(error) => failed.push((address, error)),
            }
        }
        // One that answered, but not as a broker does, says more than that none did.
        match failed.iter().position(|(_, error)| error.silence().is_none()) {
            Some(place) => Err(failed.swap_remove(place).1),
            None => Err(Error::NoBroker(Rc::new(
                failed
                    .into_iter()
                    .map(|(address, error)| (address, error.silence().unwrap_or_else(|| error.to_string())))
                    .collect(),
            ))),
        }
    }

    /// The link to a broker for a purpose, made when there is none.
    pub async fn node(&self, id: i32, lane: Lane) -> Result<Link, Error> {
        let held = self.0.links.borrow().get(&(id, lane)).filter(|link| link.is_open()).cloned();
        if let Some(link) = held {
            return Ok(link);
        }
        let metadata = self.metadata();
        let broker = metadata.broker(id).ok_or_else(|| Error::Broker {
            code: ErrorCode::BrokerNotAvailable,
            message: None,
            about: format!("broker {id}"),
        })?;
        let connected = Link::connect(&broker.address(), &self.link_settings()).await;
        let link = connected.map_err(|error| error.of_advertised(id, broker.address()))?;
        self.0.links.borrow_mut().insert((id, lane), link.clone());
        Ok(link)
    }

    /// The broker that takes administrative requests.
    pub async fn controller(&self) -> Result<Link, Error> {
        match self.metadata().controller {
            id if id >= 0 && self.metadata().broker(id).is_some() => self.node(id, Lane::Admin).await,
            _ => self.any().await,
        }
    }

    /// The coordinator of a group.
    pub async fn coordinator(&self, group: &str, lane: Lane) -> Result<Link, Error> {
        let held = self.0.coordinators.borrow().get(group).copied();
        if let Some(id) = held
            && let Ok(link) = self.node(id, lane).await
        {
            return Ok(link);
        }
        let id = self.find_coordinator(group).await?;
        self.0.coordinators.borrow_mut().insert(group.to_owned(), id);
        self.node(id, lane).await
    }

    /// Forgets who coordinates a group, after a refusal.
    pub fn forget_coordinator(&self, group: &str) {
        self.0.coordinators.borrow_mut().remove(group);
    }

    async fn find_coordinator(&self, group: &str) -> Result<i32, Error> {
        let link = self.any().await?;
        let answer = link
            .call(|version| match version {
                4.. => FindCoordinatorRequest { coordinator_keys: vec![group], ..Default::default() },
                _ => FindCoordinatorRequest { key: group, ..Default::default() },
            })
            .await?;
        let response = answer.read()?;
        let about = || format!("the coordinator of group {group:?}");
        let (code, message, id) = match response.coordinators.first() {
            Some(one) => (one.error_code, one.error_message, one.node_id),
            None => (response.error_code, response.error_message, response.node_id),
        };
        Error::check(code, message, about)?;
        if self.metadata().broker(id).is_none() {
            self.refresh(Topics::None, false).await?;
        }
        Ok(id)
    }

    fn link_settings(&self) -> LinkSettings {
        LinkSettings {
            client_id: self.0.settings.client_id.clone(),
            request_timeout: self.0.settings.request_timeout,
        }
    }

    // -- asking again -----------------------------------------------------------------------------

    /// Does `attempt` until it succeeds, fails for good, or time is over. Between attempts the metadata is renewed.
    pub async fn retry<T>(&self, mut attempt: impl AsyncFnMut() -> Result<T, Error>) -> Result<T, Error> {
        let mut pauses = Backoff::new(self.0.settings.retry_timeout);
        loop {
            match attempt().await {
                Err(error) if error.is_retriable() && !matches!(error, Error::NoBroker(_)) => {
                    if !pauses.pause().await {
                        return Err(error);
                    }
                    let _ = self.refresh(Topics::None, false).await;
                }
                done => return done,
            }
        }
    }

    /// A request to the coordinator of a group, which is looked up again when it is another.
    pub async fn call_coordinator<R: Call, T>(
        &self,
        group: &str,
        lane: Lane,
        wait: Duration,
        make: impl Fn(i16) -> R,
        mut read: impl FnMut(&Answer<R>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut pauses = Backoff::new(self.0.settings.retry_timeout);
        loop {
            let result = match self.coordinator(group, lane).await {
                Ok(link) => link.call_within(wait, &make).await.and_then(|answer| read(&answer)),
                Err(error) => Err(error),
            };
            match result {
                Err(error) if error.is_retriable() && !matches!(error, Error::NoBroker(_)) => {
                    self.forget_coordinator(group);
                    if !pauses.pause().await {
                        return Err(error);
                    }
                }
                done => return done,
            }
        }
    }

    // -- metadata ---------------------------------------------------------------------------------

    /// Asks for metadata.
    pub async fn refresh(&self, topics: Topics<'_>, create: bool) -> Result<Rc<Metadata>, Error> {
        let link = self.any().await?;
        let answer = link
            .call(|version| MetadataRequest {
                topics: match topics {
                    // Version 0 cannot say "none"; it says "all" with an empty list.
                    Topics::None => Some(Vec::new()),
                    Topics::All if version == 0 => Some(Vec::new()),
                    Topics::All => None,
                    Topics::Named(names) => Some(
                        names
                            .iter()
                            .map(|name| MetadataRequestTopic { topic_id: [0; 16], name: Some(name) })
                            .collect(),
                    ),
                },
                // Before version 4 the broker decides.
                allow_auto_topic_creation: create || version < 4,
                ..Default::default()
            })
            .await?;
        let response = answer.read()?;
        Error::check(response.error_code, None, || "metadata".to_owned())?;
        let updated = Rc::new(self.metadata().update(&response, !matches!(topics, Topics::All)));
        *self.0.metadata.borrow_mut() = updated.clone();
        Ok(updated)
    }

    /// A topic that is there, asked for now. With `create` the broker may make it.
    pub async fn topic(&self, name: &str, create: bool) -> Result<Topic, Error> {
        let mut pauses = Backoff::new(self.0.settings.retry_timeout.min(CREATION_TIMEOUT));
        loop {
            let metadata = self.refresh(Topics::Named(&[name]), create).await?;
            let topic = metadata.topics.get(name).cloned();
            let code = topic.as_ref().map_or(ErrorCode::UnknownTopicOrPartition, |topic| topic.error);
            let unknown = code == ErrorCode::UnknownTopicOrPartition;
            match topic {
                Some(topic) if code.is_none() && !topic.partitions.is_empty() => return Ok(topic),
                _ if unknown && !create => return Err(Error::UnknownTopic(name.to_owned())),
                _ if unknown || code == ErrorCode::LeaderNotAvailable => {}
                _ => Error::check(code.code(), None, || format!("topic {name:?}"))?,
            }
            if !pauses.pause().await {
                return Err(Error::UnknownTopic(name.to_owned()));
            }
        }
    }

    /// Asks again for the topics that are known.
    pub async fn refresh_known(&self) -> Result<Rc<Metadata>, Error> {
        let metadata = self.metadata();
        let names: Vec<&str> = metadata.topics.keys().map(|name| &**name).collect();
        self.refresh(Topics::Named(&names), false).await
    }

    // -- offsets ----------------------------------------------------------------------------------

    /// Offsets by time, or the ends of logs ([`EARLIEST`], [`LATEST`]), asked of the partitions' leaders until all are
    /// told or time is over.
    pub async fn list_offsets(
        &self,
        asked: &[(TopicPartition, i64)],
    ) -> Result<BTreeMap<TopicPartition, ListedOffset>, Error> {
        let mut found = BTreeMap::new();
        let mut pauses = Backoff::new(self.0.settings.retry_timeout);
        loop {
            let left: Vec<_> = asked.iter().filter(|(at, _)| !found.contains_key(at)).collect();
            let Some((first, _)) = left.first() else { return Ok(found) };
            let (first, known) = (first.clone(), found.len());
            let refused = self.list_offsets_once(&left, &mut found).await;
            match refused.into_values().reduce(graver) {
                None if found.len() == known => {
                    return Err(Error::Invalid(format!("the leader of {first} says nothing of its offsets")));
                }
                None => {}
                Some(error) if !error.is_retriable() || !pauses.pause().await => return Err(error),
                Some(_) => drop(self.refresh_known().await),
            }
        }
    }

    /// As [`Cluster::list_offsets`], of those partitions whose leaders tell, and why others did not. Nobody is waited
    /// for: only a leader that does not know yet that it is one, as after a topic was made, is asked again for a while.
    pub async fn list_offsets_told(
        &self,
        asked: &[(TopicPartition, i64)],
    ) -> (BTreeMap<TopicPartition, ListedOffset>, Option<Error>) {
        let mut found = BTreeMap::new();
        let mut refused = BTreeMap::new();
        let mut left: Vec<_> = asked.iter().collect();
        let mut pauses = Backoff::new(self.0.settings.retry_timeout.min(SETTLING_TIMEOUT));
        loop {
            refused.extend(self.list_offsets_once(&left, &mut found).await);
            refused.retain(|at, _| !found.contains_key(at));
            left.retain(|(at, _)| refused.get(at).is_some_and(is_settling));
            if left.is_empty() || !pauses.pause().await {
                return (found, refused.into_values().reduce(graver));
            }
            let _ = self.refresh_known().await;
        }
    }

    /// Asks each leader once, all at the same time. What they know goes into `found`; the refusals come back.
    async fn list_offsets_once(
        &self,
        asked: &[&(TopicPartition, i64)],
        found: &mut BTreeMap<TopicPartition, ListedOffset>,
    ) -> BTreeMap<TopicPartition, Error> {
        let mut by_leader: BTreeMap<i32, Vec<&(TopicPartition, i64)>> = BTreeMap::new();
        let metadata = self.metadata();
        let mut refused = BTreeMap::new();
        for one in asked {
            match metadata.leader(&one.0) {
                Ok(leader) => by_leader.entry(leader).or_default().push(one),
                Err(error) => drop(refused.insert(one.0.clone(), error)),
            }
        }
        let answers = by_leader.into_iter().map(|(leader, partitions)| async move {
            let answer = self.list_offsets_of(leader, &partitions).await;
            (partitions, answer)
        });
        for (partitions, answer) in join_all(answers).await {
            match answer {
                Ok(told) => {
                    for (at, one) in told {
                        match one {
                            Ok(offset) => drop(found.insert(at, offset)),
                            Err(error) => drop(refused.insert(at, error)),
                        }
                    }
                }
                Err(error) => {
                    refused.extend(partitions.into_iter().map(|(at, _)| (at.clone(), error.clone())));
                }
            }
        }
        refused
    }

    /// What one leader says of each partition.
    async fn list_offsets_of(
        &self,
        leader: i32,
        asked: &[&(TopicPartition, i64)],
    ) -> Result<Vec<(TopicPartition, Result<ListedOffset, Error>)>, Error> {
        let link = self.node(leader, Lane::Admin).await?;
        let topics = by_topic(asked.iter().map(|(at, timestamp)| (at, *timestamp)));
        let answer = link
            .call(|_| ListOffsetsRequest {
                replica_id: -1,
                topics: topics
                    .iter()
                    .map(|(name, partitions)| ListOffsetsTopic {
                        name,
                        partitions: partitions
                            .iter()
                            .map(|(partition_index, timestamp)| ListOffsetsPartition {
                                partition_index: *partition_index,
                                current_leader_epoch: -1,
                                timestamp: *timestamp,
                            })
                            .collect(),
                    })
                    .collect(),
                ..Default::default()
            })
            .await?;
        let mut told = Vec::new();
        for topic in answer.read()?.topics {
            let name: Rc<str> = topic.name.into();
            for one in topic.partitions {
                let at = TopicPartition { topic: name.clone(), partition: one.partition_index };
                let refusal = Error::check(one.error_code, None, || format!("offsets of {at}"));
                let offset = ListedOffset { offset: one.offset, timestamp: one.timestamp };
                told.push((at, refusal.map(|()| offset)));
            }
        }
        Ok(told)
    }
}

/// The one of two refusals that ends all asking, if one does.
fn graver(one: Error, other: Error) -> Error {
    if one.is_retriable() && !other.is_retriable() { other } else { one }
}

/// Whether a leader says that it is none, or has no such partition: it may not have heard yet.
fn is_settling(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(
            ErrorCode::NotLeaderOrFollower
                | ErrorCode::LeaderNotAvailable
                | ErrorCode::UnknownTopicOrPartition
                | ErrorCode::FencedLeaderEpoch
                | ErrorCode::UnknownLeaderEpoch
        )
    )
}

/// Pauses that double, with some chance in them so that clients do not come back all at once.
pub struct Backoff {
    until: Instant,
    next: Duration,
}

impl Backoff {
    /// None begins after `timeout` from now.
    pub fn new(timeout: Duration) -> Backoff {
        Backoff { until: Instant::now() + timeout, next: BACKOFF_MIN }
    }

    /// Waits. `false` when time is over.
    pub async fn pause(&mut self) -> bool {
        match self.next_pause() {
            Some(pause) => {
                runtime::sleep(pause).await;
                true
            }
            None => false,
        }
    }

    /// How long to wait; none when time is over.
    pub fn next_pause(&mut self) -> Option<Duration> {
        let pause = self.next.mul_f64(0.8 + 0.4 * fastrand::f64());
        self.next = (self.next * 2).min(BACKOFF_MAX);
        (Instant::now() < self.until).then_some(pause)
    }
}

#[cfg(test)]
mod tests;
