//! Changes as they lie in the log: Kafka's records, byte for byte.

use std::sync::Arc;

use bytes::Bytes;
use flumen_wire::group::consumer_group_current_member_assignment_key::ConsumerGroupCurrentMemberAssignmentKey;
use flumen_wire::group::consumer_group_current_member_assignment_value::{
    self as current_value, ConsumerGroupCurrentMemberAssignmentValue,
};
use flumen_wire::group::consumer_group_member_metadata_key::ConsumerGroupMemberMetadataKey;
use flumen_wire::group::consumer_group_member_metadata_value::{
    ClassicMemberMetadata, ClassicProtocol, ConsumerGroupMemberMetadataValue,
};
use flumen_wire::group::consumer_group_metadata_key::ConsumerGroupMetadataKey;
use flumen_wire::group::consumer_group_metadata_value::ConsumerGroupMetadataValue;
use flumen_wire::group::consumer_group_regular_expression_key::ConsumerGroupRegularExpressionKey;
use flumen_wire::group::consumer_group_regular_expression_value::ConsumerGroupRegularExpressionValue;
use flumen_wire::group::consumer_group_target_assignment_member_key::ConsumerGroupTargetAssignmentMemberKey;
use flumen_wire::group::consumer_group_target_assignment_member_value::{
    self as target_value, ConsumerGroupTargetAssignmentMemberValue,
};
use flumen_wire::group::consumer_group_target_assignment_metadata_key::ConsumerGroupTargetAssignmentMetadataKey;
use flumen_wire::group::consumer_group_target_assignment_metadata_value::ConsumerGroupTargetAssignmentMetadataValue;

use super::change::{
    AssignmentEpochs, Change, ClassicMember, CurrentAssignment, GroupEpoch, MemberMetadata, MemberState,
    ResolvedExpression, TargetEpoch,
};
use super::partitions_of;
use crate::coordinator::assignor::Partitions;
use crate::coordinator::record::{Decoded, Record};
use crate::types::{PartitionId, TopicId};

/// Each value has one version, and grows by tagged fields.
const VERSION: i16 = 0;

impl Change {
    /// The record that makes this change in a group.
    pub fn encode(&self, group_id: &str) -> Record {
        match self {
            Change::Epoch(epoch) => {
                let key = ConsumerGroupMetadataKey { group_id };
                record(
                    &key,
                    epoch.map(|epoch| ConsumerGroupMetadataValue {
                        epoch: epoch.epoch,
                        metadata_hash: epoch.metadata_hash,
                    }),
                )
            }
            Change::Member(member_id, metadata) => {
                let key = ConsumerGroupMemberMetadataKey { group_id, member_id };
                record(&key, metadata.as_ref().map(|metadata| member_value(metadata)))
            }
            Change::Expression(regular_expression, resolved) => {
                let key = ConsumerGroupRegularExpressionKey { group_id, regular_expression };
                record(
                    &key,
                    resolved.as_ref().map(|resolved| ConsumerGroupRegularExpressionValue {
                        topics: resolved.topics.iter().map(AsRef::as_ref).collect(),
                        version: resolved.image_offset,
                        timestamp: resolved.timestamp_ms,
                    }),
                )
            }
            Change::TargetEpoch(epoch) => {
                let key = ConsumerGroupTargetAssignmentMetadataKey { group_id };
                record(
                    &key,
                    epoch.map(|epoch| ConsumerGroupTargetAssignmentMetadataValue {
                        assignment_epoch: epoch.epoch,
                        assignment_timestamp: epoch.timestamp_ms,
                    }),
                )
            }
            Change::Target(member_id, target) => {
                let key = ConsumerGroupTargetAssignmentMemberKey { group_id, member_id };
                record(
                    &key,
                    target.as_ref().map(|target| ConsumerGroupTargetAssignmentMemberValue {
                        topic_partitions: target
                            .by_topic()
                            .map(|(topic, partitions)| target_value::TopicPartition {
                                topic_id: topic.0,
                                partitions: partitions.collect(),
                            })
                            .collect(),
                    }),
                )
            }
            Change::Current(member_id, current) => {
                let key = ConsumerGroupCurrentMemberAssignmentKey { group_id, member_id };
                record(
                    &key,
                    current.as_ref().map(|current| ConsumerGroupCurrentMemberAssignmentValue {
                        member_epoch: current.member_epoch,
                        previous_member_epoch: current.previous_member_epoch,
                        state: current.state.code(),
                        assigned_partitions: current_partitions(&current.assigned, &current.since),
                        partitions_pending_revocation: current_partitions(
                            &current.pending_revocation,
                            &current.since,
                        ),
                    }),
                )
            }
        }
    }

    /// The group that a record is about and the change that it makes there, if it is one of consumer groups.
    pub fn decode<'a>(record: &Decoded<'a>) -> Option<(&'a str, Change)> {
        Some(match record {
            Decoded::ConsumerGroupMetadata(key, value) => {
                let epoch = value
                    .as_ref()
                    .map(|value| GroupEpoch { epoch: value.epoch, metadata_hash: value.metadata_hash });
                (key.group_id, Change::Epoch(epoch))
            }
            Decoded::ConsumerGroupMemberMetadata(key, value) => {
                let metadata = value.as_ref().map(|value| Arc::new(member_metadata(value)));
                (key.group_id, Change::Member(key.member_id.into(), metadata))
            }
            Decoded::ConsumerGroupRegularExpression(key, value) => {
                let resolved = value.as_ref().map(|value| {
                    Arc::new(ResolvedExpression {
                        topics: texts(&value.topics),
                        image_offset: value.version,
                        timestamp_ms: value.timestamp,
                    })
                });
                (key.group_id, Change::Expression(key.regular_expression.into(), resolved))
            }
            Decoded::ConsumerGroupTargetAssignmentMetadata(key, value) => {
                let epoch = value.as_ref().map(|value| TargetEpoch {
                    epoch: value.assignment_epoch,
                    timestamp_ms: value.assignment_timestamp,
                });
                (key.group_id, Change::TargetEpoch(epoch))
            }
            Decoded::ConsumerGroupTargetAssignmentMember(key, value) => {
                let target = value.as_ref().map(|value| {
                    let topics = value.topic_partitions.iter();
                    Arc::new(partitions_of(topics.map(|topic| (&topic.topic_id, &topic.partitions[..]))))
                });
                (key.group_id, Change::Target(key.member_id.into(), target))
            }
            Decoded::ConsumerGroupCurrentMemberAssignment(key, value) => {
                let current = value.as_ref().map(|value| CurrentAssignment {
                    member_epoch: value.member_epoch,
                    previous_member_epoch: value.previous_member_epoch,
                    state: MemberState::from_code(value.state),
                    assigned: current_set(&value.assigned_partitions),
                    pending_revocation: current_set(&value.partitions_pending_revocation),
                    since: assignment_epochs(value),
                });
                (key.group_id, Change::Current(key.member_id.into(), current))
            }
            _ => return None,
        })
    }
}

fn record<K: flumen_wire::codec::RecordKey, V: flumen_wire::codec::Versioned>(
    key: &K,
    value: Option<V>,
) -> Record {
    match value {
        Some(value) => Record::new(key, &value, VERSION),
        None => Record::tombstone(key),
    }
}

fn texts(texts: &[&str]) -> Vec<Arc<str>> {
    texts.iter().map(|text| Arc::from(*text)).collect()
}

fn current_partitions(
    partitions: &Partitions,
    since: &AssignmentEpochs,
) -> Vec<current_value::TopicPartitions> {
    let of_topic = |(topic, partitions): (TopicId, &[PartitionId])| current_value::TopicPartitions {
        topic_id: topic.0,
        partitions: partitions.iter().map(|one| one.partition).collect(),
        assignment_epochs: partitions.iter().map(|one| since.of(*one)).collect(),
    };
    let topics = partitions.chunk_by(|a, b| a.topic == b.topic);
    topics.map(|partitions| of_topic((partitions[0].topic, partitions))).collect()
}

/// Since when a member has what a record says that it has: releases before 4.3 do not say, and then it is the record's
/// own epoch.
fn assignment_epochs(value: &ConsumerGroupCurrentMemberAssignmentValue) -> AssignmentEpochs {
    let topics = value.assigned_partitions.iter().chain(&value.partitions_pending_revocation);
    topics
        .flat_map(|topic| {
            let epochs = topic.assignment_epochs.as_deref().unwrap_or_default();
            topic.partitions.iter().enumerate().map(move |(place, partition)| {
                let id = PartitionId { topic: TopicId(topic.topic_id), partition: *partition };
                (id, epochs.get(place).copied().unwrap_or(value.member_epoch))
            })
        })
        .collect()
}

fn current_set(topics: &[current_value::TopicPartitions]) -> Partitions {
    partitions_of(topics.iter().map(|topic| (&topic.topic_id, &topic.partitions[..])))
}

fn member_value(metadata: &MemberMetadata) -> ConsumerGroupMemberMetadataValue<'_> {
    ConsumerGroupMemberMetadataValue {
        instance_id: metadata.instance_id.as_deref(),
        rack_id: metadata.rack_id.as_deref(),
        client_id: &metadata.client_id,
        client_host: &metadata.client_host,
        subscribed_topic_names: metadata.subscribed_topic_names.iter().map(AsRef::as_ref).collect(),
        subscribed_topic_regex: metadata.subscribed_topic_regex.as_deref(),
        rebalance_timeout_ms: metadata.rebalance_timeout_ms,
        server_assignor: metadata.server_assignor.as_deref(),
        classic_member_metadata: metadata.classic.as_ref().map(|classic| ClassicMemberMetadata {
            session_timeout_ms: classic.session_timeout_ms,
            supported_protocols: classic
                .supported_protocols
                .iter()
                .map(|(name, metadata)| ClassicProtocol { name, metadata })
                .collect(),
        }),
    }
}

fn member_metadata(value: &ConsumerGroupMemberMetadataValue<'_>) -> MemberMetadata {
    MemberMetadata {
        instance_id: value.instance_id.map(Arc::from),
        rack_id: value.rack_id.map(Arc::from),
        client_id: value.client_id.into(),
        client_host: value.client_host.into(),
        subscribed_topic_names: texts(&value.subscribed_topic_names),
        subscribed_topic_regex: value.subscribed_topic_regex.map(Arc::from),
        rebalance_timeout_ms: value.rebalance_timeout_ms,
        server_assignor: value.server_assignor.map(Arc::from),
        classic: value.classic_member_metadata.as_ref().map(|classic| ClassicMember {
            session_timeout_ms: classic.session_timeout_ms,
            supported_protocols: classic
                .supported_protocols
                .iter()
                .map(|protocol| (protocol.name.into(), Bytes::copy_from_slice(protocol.metadata)))
                .collect(),
        }),
    }
}
