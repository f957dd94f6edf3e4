//! Records as FlatBuffers, and back.

use flumen_core::metadata::{
    BrokerRegistration, ClusterId, ConfigResource, DirectoryId, Listener, PartitionChange, PartitionRecord,
    Record,
};
use flumen_core::types::{Incarnation, LeaderEpoch, NodeId, TopicId};
use flumen_schemas::metadata as schema;
use flumen_schemas::planus::{Builder, ReadAsRoot};

/// A leader that did not change, in `PartitionChange`.
const LEADER_AS_IT_WAS: i32 = -2;
/// No leader.
const NO_LEADER: i32 = -1;

/// The payload of a frame.
pub(super) fn encode(records: &[Record]) -> Vec<u8> {
    let records = records.iter().map(|record| schema::Record { change: to_schema(record) }).collect();
    Builder::new().finish(schema::Frame { records }, None).to_vec()
}

/// The records of a frame; the error says what is wrong with it.
pub(super) fn decode(payload: &[u8]) -> Result<Vec<Record>, String> {
    let frame = schema::FrameRef::read_as_root(payload).and_then(schema::Frame::try_from);
    let frame = frame.map_err(|error| error.to_string())?;
    frame.records.into_iter().map(|record| from_schema(record.change)).collect()
}

fn to_schema(record: &Record) -> schema::Change {
    use schema::Change;
    match record {
        Record::ClusterId(id) => Change::ClusterId(Box::new(schema::ClusterId { id: uuid(id.0) })),
        Record::FeatureLevel { name, level } => {
            Change::FeatureLevel(Box::new(schema::FeatureLevel { name: name.clone(), level: *level }))
        }
        Record::RegisterBroker(registration) => Change::RegisterBroker(Box::new(schema::RegisterBroker {
            node: registration.node.0,
            incarnation: registration.incarnation.0,
            directory: uuid(registration.directory.0),
            rack: registration.rack.clone(),
            listeners: registration.listeners.iter().map(listener).collect(),
        })),
        Record::Topic { id, name } => {
            Change::Topic(Box::new(schema::Topic { id: uuid(id.0), name: name.clone() }))
        }
        Record::Partition(partition) => Change::Partition(Box::new(schema::Partition {
            topic: uuid(partition.topic.0),
            partition: partition.partition,
            replicas: numbers(&partition.replicas),
            isr: numbers(&partition.isr),
            leader: partition.leader.map_or(NO_LEADER, |node| node.0),
            leader_epoch: partition.leader_epoch.0,
            partition_epoch: partition.partition_epoch,
        })),
        Record::PartitionChange(change) => Change::PartitionChange(Box::new(schema::PartitionChange {
            topic: uuid(change.topic.0),
            partition: change.partition,
            replicas: change.replicas.as_deref().map(numbers),
            isr: change.isr.as_deref().map(numbers),
            leader: change.leader.map_or(LEADER_AS_IT_WAS, |leader| leader.map_or(NO_LEADER, |node| node.0)),
        })),
        Record::RemoveTopic(id) => Change::RemoveTopic(Box::new(schema::RemoveTopic { id: uuid(id.0) })),
        Record::Config { resource, name, value } => {
            let (resource_type, resource_name) = match resource {
                ConfigResource::Topic(name) => (schema::ResourceType::Topic, name.clone()),
                ConfigResource::Broker(Some(node)) => (schema::ResourceType::Broker, node.to_string()),
                ConfigResource::Broker(None) => (schema::ResourceType::Broker, String::new()),
                ConfigResource::Group(id) => (schema::ResourceType::Group, id.clone()),
            };
            let (name, value) = (name.clone(), value.clone());
            Change::Config(Box::new(schema::Config { resource_type, resource_name, name, value }))
        }
        Record::ProducerIds { node, next } => {
            Change::ProducerIds(Box::new(schema::ProducerIds { node: node.0, next: *next }))
        }
    }
}

fn from_schema(change: schema::Change) -> Result<Record, String> {
    use schema::Change;
    Ok(match change {
        Change::ClusterId(it) => Record::ClusterId(ClusterId(bytes(it.id))),
        Change::FeatureLevel(it) => Record::FeatureLevel { name: it.name, level: it.level },
        Change::RegisterBroker(it) => Record::RegisterBroker(BrokerRegistration {
            node: NodeId(it.node),
            incarnation: Incarnation(it.incarnation),
            directory: DirectoryId(bytes(it.directory)),
            rack: it.rack,
            listeners: it
                .listeners
                .into_iter()
                .map(|one| Listener { name: one.name, host: one.host, port: one.port })
                .collect(),
        }),
        Change::Topic(it) => Record::Topic { id: TopicId(bytes(it.id)), name: it.name },
        Change::Partition(it) => Record::Partition(PartitionRecord {
            topic: TopicId(bytes(it.topic)),
            partition: it.partition,
            replicas: nodes(it.replicas),
            isr: nodes(it.isr),
            leader: leader(it.leader)?,
            leader_epoch: LeaderEpoch(it.leader_epoch),
            partition_epoch: it.partition_epoch,
        }),
        Change::PartitionChange(it) => Record::PartitionChange(PartitionChange {
            topic: TopicId(bytes(it.topic)),
            partition: it.partition,
            replicas: it.replicas.map(nodes),
            isr: it.isr.map(nodes),
            leader: match it.leader {
                LEADER_AS_IT_WAS => None,
                number => Some(leader(number)?),
            },
        }),
        Change::RemoveTopic(it) => Record::RemoveTopic(TopicId(bytes(it.id))),
        Change::Config(it) => {
            let resource = match (it.resource_type, it.resource_name.as_str()) {
                (schema::ResourceType::Topic, _) => ConfigResource::Topic(it.resource_name),
                (schema::ResourceType::Group, _) => ConfigResource::Group(it.resource_name),
                (schema::ResourceType::Broker, "") => ConfigResource::Broker(None),
                (schema::ResourceType::Broker, name) => {
                    let node = name.parse().map_err(|_| format!("broker '{name}' is no number"))?;
                    ConfigResource::Broker(Some(NodeId(node)))
                }
            };
            Record::Config { resource, name: it.name, value: it.value }
        }
        Change::ProducerIds(it) => Record::ProducerIds { node: NodeId(it.node), next: it.next },
    })
}

fn uuid(bytes: [u8; 16]) -> schema::Uuid {
    let bits = u128::from_be_bytes(bytes);
    schema::Uuid { high: (bits >> 64) as u64, low: bits as u64 }
}

fn bytes(uuid: schema::Uuid) -> [u8; 16] {
    (u128::from(uuid.high) << 64 | u128::from(uuid.low)).to_be_bytes()
}

fn listener(listener: &Listener) -> schema::Listener {
    schema::Listener { name: listener.name.clone(), host: listener.host.clone(), port: listener.port }
}

fn numbers(nodes: &[NodeId]) -> Vec<i32> {
    nodes.iter().map(|node| node.0).collect()
}

fn nodes(numbers: Vec<i32>) -> Vec<NodeId> {
    numbers.into_iter().map(NodeId).collect()
}

fn leader(number: i32) -> Result<Option<NodeId>, String> {
    match number {
        NO_LEADER => Ok(None),
        number if number >= 0 => Ok(Some(NodeId(number))),
        number => Err(format!("{number} is no leader")),
    }
}
