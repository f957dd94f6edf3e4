//! What is known of a cluster: its brokers, topics, leaders. Owned, so that it outlives the frame it came in.

use crate::error::Error;
use flumen_wire::ErrorCode;
use flumen_wire::messages::metadata_response::{MetadataResponse, MetadataResponseTopic};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Rc<str>,
    /// Its number.
    pub partition: i32,
}

impl TopicPartition {
    /// Puts the two together.
    pub fn new(topic: impl Into<Rc<str>>, partition: i32) -> TopicPartition {
        TopicPartition { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// Topics with numbers of partitions and an item for each.
pub type ByTopic<'a, T> = Vec<(&'a Rc<str>, Vec<(i32, T)>)>;

/// Items of partitions, gathered by topic, in the order that requests list them.
pub fn by_topic<'a, T>(items: impl IntoIterator<Item = (&'a TopicPartition, T)>) -> ByTopic<'a, T> {
    let mut topics: BTreeMap<&Rc<str>, Vec<(i32, T)>> = BTreeMap::new();
    for (at, item) in items {
        topics.entry(&at.topic).or_default().push((at.partition, item));
    }
    topics.into_iter().collect()
}

/// A broker.
#[derive(Clone, Debug)]
pub struct Broker {
    /// Its number.
    pub id: i32,
    /// Where clients are to connect.
    pub host: String,
    /// The port there.
    pub port: i32,
    /// Where it stands.
    pub rack: Option<String>,
}

impl Broker {
    /// `host:port`.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// A partition, as the broker that was asked sees it.
#[derive(Clone, Debug)]
pub struct Partition {
    /// Its number.
    pub index: i32,
    /// The broker that leads it; -1 for none.
    pub leader: i32,
    /// The leader's reign; -1 where the broker does not say.
    pub leader_epoch: i32,
    /// Brokers that hold it, the preferred leader first.
    pub replicas: Vec<i32>,
    /// Those of them that are in sync.
    pub isr: Vec<i32>,
    /// Those of them that are gone.
    pub offline: Vec<i32>,
}

/// A topic.
#[derive(Clone, Debug)]
pub struct Topic {
    /// Its name.
    pub name: Rc<str>,
    /// Its id; zeros where the broker does not say.
    pub id: [u8; 16],
    /// Whether the broker keeps it for itself.
    pub internal: bool,
    /// By number.
    pub partitions: Vec<Partition>,
    /// What is wrong with it.
    pub error: ErrorCode,
}

impl Topic {
    fn new(name: &str, response: &MetadataResponseTopic<'_>) -> Topic {
        let partition =
            |one: &flumen_wire::messages::metadata_response::MetadataResponsePartition| Partition {
                index: one.partition_index,
                leader: one.leader_id,
                leader_epoch: one.leader_epoch,
                replicas: one.replica_nodes.clone(),
                isr: one.isr_nodes.clone(),
                offline: one.offline_replicas.clone(),
            };
        let mut partitions: Vec<_> = response.partitions.iter().map(partition).collect();
        partitions.sort_by_key(|one| one.index);
        Topic {
            name: name.into(),
            id: response.topic_id,
            internal: response.is_internal,
            partitions,
            error: ErrorCode::from_code(response.error_code),
        }
    }

    /// The partition with this number.
    pub fn partition(&self, index: i32) -> Result<&Partition, Error> {
        self.partitions.iter().find(|one| one.index == index).ok_or_else(|| Error::UnknownPartition {
            topic: self.name.to_string(),
            partition: index,
            count: self.partitions.len(),
        })
    }
}

/// See the head of this file.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    /// Of the cluster.
    pub cluster_id: Option<String>,
    /// The broker that takes administrative requests; -1 for unknown.
    pub controller: i32,
    /// By number.
    pub brokers: Vec<Broker>,
    /// Those that were asked for.
    pub topics: BTreeMap<Rc<str>, Topic>,
}

impl Metadata {
    /// What a response says, with topics of before that it does not name when `keep`.
    pub fn update(&self, response: &MetadataResponse<'_>, keep: bool) -> Metadata {
        let broker = |one: &flumen_wire::messages::metadata_response::MetadataResponseBroker<'_>| Broker {
            id: one.node_id,
            host: one.host.to_owned(),
            port: one.port,
            rack: one.rack.map(str::to_owned),
        };
        let mut brokers: Vec<_> = response.brokers.iter().map(broker).collect();
        brokers.sort_by_key(|one| one.id);
        let mut topics = if keep { self.topics.clone() } else { BTreeMap::new() };
        for one in &response.topics {
            let Some(name) = one.name else { continue };
            topics.insert(name.into(), Topic::new(name, one));
        }
        Metadata {
            cluster_id: response.cluster_id.map(str::to_owned),
            controller: response.controller_id,
            brokers,
            topics,
        }
    }

    /// The broker with this number.
    pub fn broker(&self, id: i32) -> Option<&Broker> {
        self.brokers.iter().find(|one| one.id == id)
    }

    /// The leader of a partition, if there is one.
    pub fn leader(&self, at: &TopicPartition) -> Result<i32, Error> {
        let topic = self.topics.get(&at.topic).ok_or_else(|| Error::UnknownTopic(at.topic.to_string()))?;
        let leader = topic.partition(at.partition)?.leader;
        if leader < 0 {
            return Err(Error::NoLeader { topic: at.topic.to_string(), partition: at.partition });
        }
        Ok(leader)
    }
}

/// An id as Kafka prints it: 22 characters of URL-safe base64.
pub fn print_id(id: &[u8; 16]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits = u128::from_be_bytes(*id);
    // 22 digits of 6 bits are 132: the last digit has 2 bits of its own and 4 of padding.
    let digit = |place: u32| {
        let value = if place == 21 { bits << 4 } else { bits >> (122 - 6 * place) };
        char::from(DIGITS[(value & 63) as usize])
    };
    (0..22).map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_as_kafka_prints_them() {
        assert_eq!(print_id(&[0; 16]), "AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(print_id(&[0xff; 16]), "_____________________w");
        let counted: [u8; 16] = std::array::from_fn(|i| i as u8);
        assert_eq!(print_id(&counted), "AAECAwQFBgcICQoLDA0ODw");
    }

    #[test]
    fn addresses_of_version_6_are_bracketed() {
        let broker = |host: &str| Broker { id: 1, host: host.to_owned(), port: 9092, rack: None }.address();
        assert_eq!(broker("h"), "h:9092");
        assert_eq!(broker("::1"), "[::1]:9092");
    }
}
