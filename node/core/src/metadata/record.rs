//! The records of the metadata log, as plain data. Their bytes are in `flumen-schemas`.
//!
//! A record says what became so, never how it was decided: replaying one needs no rule that a later release
//! might change. The one exception is [`Record::RegisterBroker`], which raises the leader epoch of all that
//! the node leads, so that a restart with many partitions costs one record.

use std::fmt;

use crate::types::{Incarnation, LeaderEpoch, NodeId, TopicId};

macro_rules! uuid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                TopicId(self.0).fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

uuid!(
    /// Identity of a cluster; printed as Kafka prints it.
    ClusterId
);
uuid!(
    /// Identity of one data folder, made when it is. A blank disk under an old node id has another one.
    DirectoryId
);

/// One change of metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The cluster's identity; the first record of all.
    ClusterId(ClusterId),
    /// A feature of the cluster was set to a level; 0 removes it (KIP-584).
    FeatureLevel {
        /// Kafka's name of it, such as `transaction.version`.
        name: String,
        /// The level.
        level: i16,
    },
    /// A node registered. A higher incarnation than the last raises the leader epoch, and the partition
    /// epoch, of every partition that it leads.
    RegisterBroker(BrokerRegistration),
    /// A topic came to be. Its partitions follow.
    Topic {
        /// Its identity.
        id: TopicId,
        /// Its name.
        name: String,
    },
    /// A partition came to be, its index the next one of its topic.
    Partition(PartitionRecord),
    /// A partition's leader, ISR or replicas changed.
    PartitionChange(PartitionChange),
    /// A topic is gone, with its partitions and settings.
    RemoveTopic(TopicId),
    /// A setting was set, or (`None`) is back to what lies below.
    Config {
        /// Whose setting.
        resource: ConfigResource,
        /// The setting.
        name: String,
        /// Its value.
        value: Option<String>,
    },
    /// Producer ids below this one are given away.
    ProducerIds {
        /// To which node the last block went.
        node: NodeId,
        /// The first id that is free.
        next: i64,
    },
}

/// What a node says of itself when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerRegistration {
    /// The node.
    pub node: NodeId,
    /// Number of this start of it.
    pub incarnation: Incarnation,
    /// Its data folder.
    pub directory: DirectoryId,
    /// Its rack or zone.
    pub rack: Option<String>,
    /// Where clients reach it, the first being the one that is advertised.
    pub listeners: Vec<Listener>,
}

/// An address of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name, such as `PLAINTEXT`.
    pub name: String,
    /// Host name or address, as clients are told it.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// A partition as it begins (or, in a snapshot, as it is).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionRecord {
    /// The topic.
    pub topic: TopicId,
    /// The partition's index.
    pub partition: i32,
    /// The nodes that hold it, the preferred leader first.
    pub replicas: Vec<NodeId>,
    /// Those in sync.
    pub isr: Vec<NodeId>,
    /// The leader, if there is one.
    pub leader: Option<NodeId>,
    /// The leader's reign.
    pub leader_epoch: LeaderEpoch,
    /// Counts changes of this partition.
    pub partition_epoch: i32,
}

/// What changed of a partition; `None` is as it was. The partition epoch rises by one, the leader epoch too
/// when `leader` is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionChange {
    /// The topic.
    pub topic: TopicId,
    /// The partition's index.
    pub partition: i32,
    /// New replicas.
    pub replicas: Option<Vec<NodeId>>,
    /// New ISR.
    pub isr: Option<Vec<NodeId>>,
    /// New leader, or (`Some(None)`) none any more.
    pub leader: Option<Option<NodeId>>,
}

/// Whose settings.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConfigResource {
    /// A topic's, by name.
    Topic(String),
    /// One broker's, or (`None`) the default of all.
    Broker(Option<NodeId>),
    /// A group's, by id; it need not be there.
    Group(String),
}

impl fmt::Display for ConfigResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigResource::Topic(name) => write!(f, "topic {name}"),
            ConfigResource::Broker(Some(node)) => write!(f, "broker {node}"),
            ConfigResource::Broker(None) => f.write_str("all brokers"),
            ConfigResource::Group(id) => write!(f, "group {id}"),
        }
    }
}
