//! The image: all metadata at one offset of the metadata log. Immutable once shared; every shard has it.
//!
//! Its parts are behind `Arc`s. Replaying on an image that nobody else holds changes it in place; on one that
//! was handed out, the first change of a part copies that part's table (of pointers), so a batch of records
//! costs each table one copy at most.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use super::record::{
    BrokerRegistration, ClusterId, ConfigResource, PartitionChange, PartitionRecord, Record,
};
use super::topic_name::{collision_key, is_internal_topic};
use crate::config::{Overrides, Settings, StaticSettings};
use crate::types::{LeaderEpoch, NodeId, TopicId};

/// All metadata at one offset of the metadata log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// How many records were replayed, since the log began.
    offset: u64,
    topics_offset: TopicsOffset,
    cluster_id: Option<ClusterId>,
    features: Arc<BTreeMap<String, i16>>,
    brokers: Arc<BTreeMap<NodeId, Arc<Broker>>>,
    topics: Arc<HashMap<TopicId, Arc<Topic>>>,
    names: Arc<BTreeMap<Arc<str>, TopicId>>,
    /// Names by the form in which their metrics would be confused ('.' and '_').
    collisions: Arc<BTreeMap<String, Arc<str>>>,
    configs: Arc<BTreeMap<ConfigResource, Arc<Overrides>>>,
    /// Bytes of their names and values.
    config_bytes: usize,
    /// How many of them are groups.
    configured_groups: usize,
    partition_count: usize,
    next_producer_id: i64,
}

/// The offset at which topics, or their numbers of partitions, last changed; what an image says does not depend on it.
#[derive(Clone, Copy, Debug, Default)]
struct TopicsOffset(u64);

impl PartialEq for TopicsOffset {
    fn eq(&self, _: &TopicsOffset) -> bool {
        true
    }
}

impl Eq for TopicsOffset {}

/// A registered node.
pub type Broker = BrokerRegistration;

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its identity.
    pub id: TopicId,
    /// Its name.
    pub name: Arc<str>,
    /// Its partitions, by index.
    pub partitions: Vec<Partition>,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The nodes that hold it, the preferred leader first.
    pub replicas: Box<[NodeId]>,
    /// Those in sync.
    pub isr: Box<[NodeId]>,
    /// The leader, if there is one.
    pub leader: Option<NodeId>,
    /// The leader's reign.
    pub leader_epoch: LeaderEpoch,
    /// Counts changes of this partition.
    pub partition_epoch: i32,
}

impl Topic {
    /// One of its partitions.
    pub fn partition(&self, index: i32) -> Option<&Partition> {
        self.partitions.get(usize::try_from(index).ok()?)
    }

    /// The directory of a partition in the data folder.
    pub fn directory(&self, partition: i32) -> String {
        format!("{}-{partition}", self.name)
    }
}

/// A record that does not fit the image: the log is not what was written, or of a release that knows more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayError {
    /// The record's place in the log.
    pub offset: u64,
    /// What does not fit.
    pub reason: String,
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "metadata record {} does not fit what precedes it: {}", self.offset, self.reason)
    }
}

impl std::error::Error for ReplayError {}

/// Look-ups.
impl Image {
    /// How many records were replayed since the log began: the version of this image.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Two images of one log that agree in this have the same topics, with as many partitions. They differ in it also where
    /// one began from a snapshot.
    pub fn topics_offset(&self) -> u64 {
        self.topics_offset.0
    }

    /// The cluster's identity, once it has one.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster_id
    }

    /// Features and their levels, by name.
    pub fn features(&self) -> impl Iterator<Item = (&str, i16)> {
        self.features.iter().map(|(name, level)| (name.as_str(), *level))
    }

    /// Level of a feature; 0 where it is not set.
    pub fn feature(&self, name: &str) -> i16 {
        self.features.get(name).copied().unwrap_or(0)
    }

    /// All nodes, by number.
    pub fn brokers(&self) -> impl ExactSizeIterator<Item = &Broker> {
        self.brokers.values().map(Arc::as_ref)
    }

    /// A node.
    pub fn broker(&self, node: NodeId) -> Option<&Broker> {
        self.brokers.get(&node).map(Arc::as_ref)
    }

    /// A topic by name.
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topic_by_id(*self.names.get(name)?)
    }

    /// A topic by identity.
    pub fn topic_by_id(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(&id)
    }

    /// All topics, by name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.names.values().filter_map(|id| self.topics.get(id))
    }

    /// The topics from a name on, for answers that come in pages.
    pub fn topics_from(&self, name: &str) -> impl Iterator<Item = &Arc<Topic>> {
        let names = self.names.range::<str, _>((std::ops::Bound::Included(name), std::ops::Bound::Unbounded));
        names.filter_map(|(_, id)| self.topics.get(id))
    }

    /// How many topics there are.
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// How many partitions all topics have.
    pub fn partition_count(&self) -> usize {
        self.partition_count
    }

    /// A topic whose name gives the same metric names as this one.
    pub(super) fn colliding(&self, name: &str) -> Option<&str> {
        self.collisions.get(&collision_key(name)).map(AsRef::as_ref)
    }

    /// Bytes of the names and values of all settings.
    pub fn config_bytes(&self) -> usize {
        self.config_bytes
    }

    /// The settings that were set for a resource.
    pub fn overrides(&self, resource: &ConfigResource) -> Option<&Arc<Overrides>> {
        self.configs.get(resource)
    }

    /// The settings that a topic has of its own: those that were set for it. The broker's own topics are synced before
    /// anything in them is acknowledged, whatever was set for them or for all topics.
    pub fn topic_overrides(&self, name: &str) -> Arc<Overrides> {
        let mut overrides =
            self.overrides(&ConfigResource::Topic(name.to_owned())).cloned().unwrap_or_default();
        if is_internal_topic(name) {
            Arc::make_mut(&mut overrides).insert("flush.messages".to_owned(), "1".to_owned());
        }
        overrides
    }

    /// The settings that were set for a group, if any were.
    pub fn group_overrides(&self, group_id: &str) -> Option<&Arc<Overrides>> {
        if self.configured_groups == 0 {
            return None;
        }
        self.overrides(&ConfigResource::Group(group_id.to_owned()))
    }

    /// How many groups have settings of their own.
    pub(super) fn configured_groups(&self) -> usize {
        self.configured_groups
    }

    /// The resources that have settings of their own.
    pub fn configured(&self) -> impl Iterator<Item = &ConfigResource> {
        self.configs.keys()
    }

    /// What lies below the topics' own settings on a node: what was given at start, and the records.
    pub fn settings(&self, node: NodeId, statics: &Arc<StaticSettings>) -> Settings {
        let of = |resource| self.overrides(&resource).cloned().unwrap_or_default();
        Settings {
            statics: Arc::clone(statics),
            cluster: of(ConfigResource::Broker(None)),
            broker: of(ConfigResource::Broker(Some(node))),
        }
    }

    /// The first producer id that is free.
    pub(super) fn next_producer_id(&self) -> i64 {
        self.next_producer_id
    }
}

/// Replay: the only way in which an image changes.
impl Image {
    /// Applies the next record. On an error the image is as it was, and must not be used further.
    pub fn replay(&mut self, record: &Record) -> Result<(), ReplayError> {
        match record {
            Record::ClusterId(id) => match self.cluster_id {
                Some(known) if known != *id => return Err(self.unfit(format!("cluster {id} after {known}"))),
                _ => self.cluster_id = Some(*id),
            },
            Record::FeatureLevel { name, level } => {
                let features = Arc::make_mut(&mut self.features);
                match level {
                    0 => features.remove(name),
                    level => features.insert(name.clone(), *level),
                };
            }
            Record::RegisterBroker(registration) => self.register(registration)?,
            Record::Topic { id, name } => self.add_topic(*id, name)?,
            Record::Partition(partition) => self.add_partition(partition)?,
            Record::PartitionChange(change) => self.change_partition(change)?,
            Record::RemoveTopic(id) => self.remove_topic(*id)?,
            Record::Config { resource, name, value } => self.configure(resource, name, value.as_deref()),
            Record::ProducerIds { next, .. } => {
                if *next < self.next_producer_id {
                    return Err(self.unfit(format!("producer id {next} was given away before")));
                }
                self.next_producer_id = *next;
            }
        }
        self.offset += 1;
        if matches!(record, Record::Topic { .. } | Record::Partition(_) | Record::RemoveTopic(_)) {
            self.topics_offset = TopicsOffset(self.offset);
        }
        Ok(())
    }

    /// Records that make this image out of an empty one, apart from its offset.
    pub fn snapshot(&self) -> Vec<Record> {
        let mut records = Vec::with_capacity(self.partition_count + 2 * self.topics.len() + 8);
        records.extend(self.cluster_id.map(Record::ClusterId));
        records.extend(
            self.features().map(|(name, level)| Record::FeatureLevel { name: name.to_owned(), level }),
        );
        // Before the partitions: a registration raises the epochs of what is there.
        records.extend(self.brokers().cloned().map(Record::RegisterBroker));
        for topic in self.topics() {
            records.push(Record::Topic { id: topic.id, name: topic.name.to_string() });
            records.extend(topic.partitions.iter().zip(0..).map(|(partition, index)| {
                Record::Partition(PartitionRecord {
                    topic: topic.id,
                    partition: index,
                    replicas: partition.replicas.to_vec(),
                    isr: partition.isr.to_vec(),
                    leader: partition.leader,
                    leader_epoch: partition.leader_epoch,
                    partition_epoch: partition.partition_epoch,
                })
            }));
        }
        for (resource, overrides) in self.configs.iter() {
            records.extend(overrides.iter().map(|(name, value)| Record::Config {
                resource: resource.clone(),
                name: name.clone(),
                value: Some(value.clone()),
            }));
        }
        if self.next_producer_id > 0 {
            records.push(Record::ProducerIds { node: NodeId(-1), next: self.next_producer_id });
        }
        records
    }

    /// The image of a snapshot that was taken at `offset`.
    pub fn from_snapshot<'a>(
        offset: u64,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> Result<Image, ReplayError> {
        let mut image = Image::default();
        for record in records {
            image.replay(record)?;
        }
        image.offset = offset;
        image.topics_offset = TopicsOffset(offset);
        Ok(image)
    }

    fn unfit(&self, reason: String) -> ReplayError {
        ReplayError { offset: self.offset, reason }
    }

    fn register(&mut self, registration: &BrokerRegistration) -> Result<(), ReplayError> {
        let node = registration.node;
        let known = self.brokers.get(&node).map(|broker| broker.incarnation);
        if known.is_some_and(|known| registration.incarnation < known) {
            return Err(self.unfit(format!("node {node} registers an incarnation of the past")));
        }
        if known != Some(registration.incarnation) {
            self.raise_epochs_led_by(node)?;
        }
        Arc::make_mut(&mut self.brokers).insert(node, Arc::new(registration.clone()));
        Ok(())
    }

    fn raise_epochs_led_by(&mut self, node: NodeId) -> Result<(), ReplayError> {
        let leads = |topic: &Topic| topic.partitions.iter().any(|partition| partition.leader == Some(node));
        if !self.topics.values().any(|topic| leads(topic)) {
            return Ok(());
        }
        for topic in Arc::make_mut(&mut self.topics).values_mut().filter(|topic| leads(topic)) {
            let partitions = &mut Arc::make_mut(topic).partitions;
            for partition in partitions.iter_mut().filter(|partition| partition.leader == Some(node)) {
                let raised =
                    partition.leader_epoch.0.checked_add(1).zip(partition.partition_epoch.checked_add(1));
                let Some((leader_epoch, partition_epoch)) = raised else {
                    return Err(ReplayError {
                        offset: self.offset,
                        reason: "an epoch passes its end".to_owned(),
                    });
                };
                partition.leader_epoch = LeaderEpoch(leader_epoch);
                partition.partition_epoch = partition_epoch;
            }
        }
        Ok(())
    }

    fn add_topic(&mut self, id: TopicId, name: &str) -> Result<(), ReplayError> {
        if self.topics.contains_key(&id) || self.names.contains_key(name) {
            return Err(self.unfit(format!("topic {name} ({id}) is there already")));
        }
        let name: Arc<str> = Arc::from(name);
        Arc::make_mut(&mut self.names).insert(Arc::clone(&name), id);
        Arc::make_mut(&mut self.collisions).insert(collision_key(&name), Arc::clone(&name));
        Arc::make_mut(&mut self.topics).insert(id, Arc::new(Topic { id, name, partitions: Vec::new() }));
        Ok(())
    }

    fn add_partition(&mut self, record: &PartitionRecord) -> Result<(), ReplayError> {
        let next = match self.topics.get(&record.topic) {
            Some(topic) => topic.partitions.len(),
            None => {
                return Err(self.unfit(format!("partition of topic {}, which is not there", record.topic)));
            }
        };
        if usize::try_from(record.partition) != Ok(next) {
            return Err(self.unfit(format!("partition {} of {}, not {next}", record.partition, record.topic)));
        }
        if let Some(topic) = Arc::make_mut(&mut self.topics).get_mut(&record.topic) {
            Arc::make_mut(topic).partitions.push(Partition {
                replicas: record.replicas.clone().into(),
                isr: record.isr.clone().into(),
                leader: record.leader,
                leader_epoch: record.leader_epoch,
                partition_epoch: record.partition_epoch,
            });
        }
        self.partition_count += 1;
        Ok(())
    }

    fn change_partition(&mut self, change: &PartitionChange) -> Result<(), ReplayError> {
        let error =
            self.unfit(format!("change of {}-{}, which is not there", change.topic, change.partition));
        let Ok(index) = usize::try_from(change.partition) else { return Err(error) };
        if self.topics.get(&change.topic).is_none_or(|topic| index >= topic.partitions.len()) {
            return Err(error);
        }
        let topic = Arc::make_mut(&mut self.topics).get_mut(&change.topic);
        let Some(partition) = topic.and_then(|topic| Arc::make_mut(topic).partitions.get_mut(index)) else {
            return Err(error);
        };
        if let Some(replicas) = &change.replicas {
            partition.replicas = replicas.clone().into();
        }
        if let Some(isr) = &change.isr {
            partition.isr = isr.clone().into();
        }
        if let Some(leader) = change.leader {
            partition.leader = leader;
            partition.leader_epoch = LeaderEpoch(partition.leader_epoch.0.saturating_add(1));
        }
        partition.partition_epoch = partition.partition_epoch.saturating_add(1);
        Ok(())
    }

    fn remove_topic(&mut self, id: TopicId) -> Result<(), ReplayError> {
        let Some(topic) = self.topics.get(&id).cloned() else {
            return Err(self.unfit(format!("removal of topic {id}, which is not there")));
        };
        Arc::make_mut(&mut self.topics).remove(&id);
        Arc::make_mut(&mut self.names).remove(&topic.name);
        Arc::make_mut(&mut self.collisions).remove(&collision_key(&topic.name));
        let resource = ConfigResource::Topic(topic.name.to_string());
        if let Some(overrides) = self.configs.get(&resource) {
            self.config_bytes -=
                overrides.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
            Arc::make_mut(&mut self.configs).remove(&resource);
        }
        self.partition_count -= topic.partitions.len();
        Ok(())
    }

    fn configure(&mut self, resource: &ConfigResource, name: &str, value: Option<&str>) {
        let is_group = matches!(resource, ConfigResource::Group(_));
        let configs = Arc::make_mut(&mut self.configs);
        let before = configs.len();
        let bytes = |value: &String| name.len() + value.len();
        match value {
            Some(value) => {
                let overrides = configs.entry(resource.clone()).or_default();
                let old = Arc::make_mut(overrides).insert(name.to_owned(), value.to_owned());
                self.config_bytes =
                    self.config_bytes + name.len() + value.len() - old.as_ref().map_or(0, bytes);
            }
            None => {
                if let Some(overrides) = configs.get_mut(resource) {
                    let old = Arc::make_mut(overrides).remove(name);
                    self.config_bytes -= old.as_ref().map_or(0, bytes);
                    if overrides.is_empty() {
                        configs.remove(resource);
                    }
                }
            }
        }
        if is_group {
            self.configured_groups = self.configured_groups + configs.len() - before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Incarnation;

    fn replay(records: &[Record]) -> Result<Image, String> {
        let mut image = Image::default();
        for record in records {
            image.replay(record).map_err(|error| error.to_string())?;
        }
        Ok(image)
    }

    fn topic(n: u8) -> Record {
        Record::Topic { id: TopicId([n; 16]), name: format!("t{n}") }
    }

    fn partition(n: u8, index: i32) -> Record {
        Record::Partition(PartitionRecord {
            topic: TopicId([n; 16]),
            partition: index,
            replicas: vec![NodeId(1)],
            isr: vec![NodeId(1)],
            leader: Some(NodeId(1)),
            leader_epoch: LeaderEpoch(0),
            partition_epoch: 0,
        })
    }

    fn change(n: u8, index: i32, leader: Option<Option<NodeId>>) -> Record {
        let topic = TopicId([n; 16]);
        Record::PartitionChange(PartitionChange {
            topic,
            partition: index,
            replicas: None,
            isr: None,
            leader,
        })
    }

    fn node(incarnation: u64) -> Record {
        Record::RegisterBroker(BrokerRegistration {
            node: NodeId(1),
            incarnation: Incarnation(incarnation),
            directory: Default::default(),
            rack: None,
            listeners: Vec::new(),
        })
    }

    #[test]
    fn records_that_do_not_fit_are_refused() {
        for records in [
            vec![topic(1), topic(1)],
            vec![partition(1, 0)],
            vec![topic(1), partition(1, 1)],
            vec![topic(1), partition(1, -1)],
            vec![topic(1), change(1, 0, None)],
            vec![topic(1), change(1, -1, None)],
            vec![Record::RemoveTopic(TopicId([1; 16]))],
            vec![node(2), node(1)],
            vec![Record::ClusterId(ClusterId([1; 16])), Record::ClusterId(ClusterId([2; 16]))],
            vec![
                Record::ProducerIds { node: NodeId(1), next: 2000 },
                Record::ProducerIds { node: NodeId(1), next: 1000 },
            ],
        ] {
            assert!(replay(&records).is_err(), "{records:?}");
        }
        // The same incarnation again only says where the node is.
        let image = replay(&[node(2), topic(1), partition(1, 0), node(2), node(3)]).expect("fits");
        assert_eq!(image.topic("t1").expect("there").partitions[0].leader_epoch, LeaderEpoch(1));
    }

    #[test]
    fn a_change_of_leader_is_a_new_epoch_and_any_change_a_new_partition_epoch() {
        let image = replay(&[
            topic(1),
            partition(1, 0),
            change(1, 0, None),
            change(1, 0, Some(None)),
            change(1, 0, Some(Some(NodeId(2)))),
        ])
        .expect("fits");
        let partition = &image.topic_by_id(TopicId([1; 16])).expect("there").partitions[0];
        assert_eq!((partition.leader_epoch.0, partition.partition_epoch), (2, 3));
        assert_eq!(partition.leader, Some(NodeId(2)));
        assert_eq!(image.offset(), 5);
    }

    /// Groups compare their topics with an image only when it may matter to them.
    #[test]
    fn changes_of_topics_are_counted_apart() {
        let mut image = Image::default();
        let mut changes = |record: &Record| {
            let before = image.topics_offset();
            image.replay(record).expect("fits");
            image.topics_offset() != before
        };
        assert!(!changes(&node(1)));
        assert!(changes(&topic(1)) && changes(&partition(1, 0)));
        assert!(!changes(&node(2)) && !changes(&change(1, 0, Some(None))));
        let resource = ConfigResource::Topic("t1".to_owned());
        assert!(!changes(&Record::Config { resource, name: "retention.ms".to_owned(), value: None }));
        assert!(!changes(&Record::ProducerIds { node: NodeId(1), next: 1_000 }));
        assert!(changes(&Record::RemoveTopic(TopicId([1; 16]))));
        let restored = Image::from_snapshot(image.offset(), &image.snapshot()).expect("fits");
        assert_eq!((restored.topics_offset(), &restored), (image.offset(), &image));
    }

    #[test]
    fn topics_of_the_broker_are_synced_before_they_are_acknowledged() {
        let set = |resource, name: &str| Record::Config {
            resource,
            name: name.to_owned(),
            value: Some("100".to_owned()),
        };
        let own = |name: &str| ConfigResource::Topic(name.to_owned());
        let image = replay(&[
            set(ConfigResource::Broker(None), "log.flush.interval.messages"),
            set(own("__consumer_offsets"), "flush.messages"),
            set(own("mine"), "flush.messages"),
        ])
        .expect("fits");
        let settings = image.settings(NodeId(1), &Default::default());
        let flush = crate::config::topic_setting("flush.messages").expect("there");
        for (name, synced) in [("__consumer_offsets", true), ("__transaction_state", true), ("mine", false)] {
            let overrides = image.topic_overrides(name);
            assert_eq!(settings.log_config(&overrides).is_durable_before_ack(), synced, "{name}");
            let described = settings.describe_topic(flush, &overrides);
            assert_eq!(described.value.as_deref(), Some(if synced { "1" } else { "100" }), "{name}");
        }
        assert!(!settings.log_config(&image.topic_overrides("other")).is_durable_before_ack());
    }

    /// Shards read old images while new ones are made.
    #[test]
    fn an_image_that_was_handed_out_does_not_change() {
        let before = replay(&[node(1), topic(1), partition(1, 0)]).expect("fits");
        let kept = before.clone();
        let mut after = before;
        for record in [topic(2), partition(2, 0), node(2), Record::RemoveTopic(TopicId([1; 16]))] {
            after.replay(&record).expect("fits");
        }
        assert_eq!(kept, replay(&[node(1), topic(1), partition(1, 0)]).expect("fits"));
        assert_eq!((after.topic_count(), after.partition_count()), (1, 1));
    }
}
