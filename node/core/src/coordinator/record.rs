//! The records of `__consumer_offsets`, byte for byte Kafka's.
//!
//! A decision writes records as bytes, and replay reads bytes, live as at load: what a restart ends in can differ from
//! what was before it only if the log does.

use flumen_wire::codec::{Decode, DecodeError, Reader, RecordKey, Versioned};
use flumen_wire::group::consumer_group_current_member_assignment_key::ConsumerGroupCurrentMemberAssignmentKey;
use flumen_wire::group::consumer_group_current_member_assignment_value::ConsumerGroupCurrentMemberAssignmentValue;
use flumen_wire::group::consumer_group_member_metadata_key::ConsumerGroupMemberMetadataKey;
use flumen_wire::group::consumer_group_member_metadata_value::ConsumerGroupMemberMetadataValue;
use flumen_wire::group::consumer_group_metadata_key::ConsumerGroupMetadataKey;
use flumen_wire::group::consumer_group_metadata_value::ConsumerGroupMetadataValue;
use flumen_wire::group::consumer_group_partition_metadata_key::ConsumerGroupPartitionMetadataKey;
use flumen_wire::group::consumer_group_partition_metadata_value::ConsumerGroupPartitionMetadataValue;
use flumen_wire::group::consumer_group_regular_expression_key::ConsumerGroupRegularExpressionKey;
use flumen_wire::group::consumer_group_regular_expression_value::ConsumerGroupRegularExpressionValue;
use flumen_wire::group::consumer_group_target_assignment_member_key::ConsumerGroupTargetAssignmentMemberKey;
use flumen_wire::group::consumer_group_target_assignment_member_value::ConsumerGroupTargetAssignmentMemberValue;
use flumen_wire::group::consumer_group_target_assignment_metadata_key::ConsumerGroupTargetAssignmentMetadataKey;
use flumen_wire::group::consumer_group_target_assignment_metadata_value::ConsumerGroupTargetAssignmentMetadataValue;
use flumen_wire::group::group_metadata_key::GroupMetadataKey;
use flumen_wire::group::group_metadata_value::GroupMetadataValue;
use flumen_wire::group::legacy_offset_commit_key::LegacyOffsetCommitKey;
use flumen_wire::group::offset_commit_key::OffsetCommitKey;
use flumen_wire::group::offset_commit_value::OffsetCommitValue;

/// What a record takes in a batch beside key and value, where its time is that of the batch: three lengths, the offset,
/// attributes, the time, no headers.
const RECORD_OVERHEAD_BYTES: usize = 3 * 5 + 5 + 3;

/// One record, as it goes into the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its key: the type of the record, and what it is about.
    pub key: Vec<u8>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
}

impl Record {
    /// A record with a value, in one of the value's versions.
    pub fn new<K: RecordKey, V: Versioned>(key: &K, value: &V, version: i16) -> Record {
        Record { key: key.to_key(), value: Some(value.to_versioned(version)) }
    }

    /// A record that takes back what was written under the key.
    pub fn tombstone<K: RecordKey>(key: &K) -> Record {
        Record { key: key.to_key(), value: None }
    }

    /// What it says.
    pub fn decode(&self) -> Result<Decoded<'_>, DecodeError> {
        Decoded::read(&self.key, self.value.as_deref())
    }

    /// Bytes in a batch, at most.
    pub fn len_bytes(&self) -> usize {
        RECORD_OVERHEAD_BYTES + self.key.len() + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// Makes [`Decoded`] and its reader from one list of types.
macro_rules! decoded {
    ($($(#[$doc:meta])* $name:ident($key:ident, $value:ty);)*) => {
        /// What a record says: key, and value or tombstone. Borrows from its bytes.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Decoded<'a> {
            $($(#[$doc])* $name($key<'a>, Option<$value>),)*
            /// A type of record that this node does not know. It is left alone, as by Kafka.
            Unknown(i16),
        }

        impl<'a> Decoded<'a> {
            /// Reads a record as it lies in the log.
            pub fn read(key: &'a [u8], value: Option<&'a [u8]>) -> Result<Decoded<'a>, DecodeError> {
                let mut reader = Reader::new(key);
                let kind = reader.i16()?;
                match kind {
                    $($key::<'_>::TYPE => {
                        let key = $key::decode(&mut reader, 0)?;
                        let value = value.map(<$value>::from_versioned).transpose()?;
                        Ok(Decoded::$name(key, value))
                    })*
                    // The first form of the same key; its value is the same.
                    LegacyOffsetCommitKey::<'_>::TYPE => {
                        let key = LegacyOffsetCommitKey::decode(&mut reader, 0)?;
                        let key = OffsetCommitKey {
                            group: key.group,
                            topic: key.topic,
                            partition: key.partition,
                        };
                        let value = value.map(OffsetCommitValue::from_versioned).transpose()?;
                        Ok(Decoded::OffsetCommit(key, value))
                    }
                    kind => Ok(Decoded::Unknown(kind)),
                }
            }
        }
    };
}

decoded! {
    /// An offset that a group committed.
    OffsetCommit(OffsetCommitKey, OffsetCommitValue<'a>);
    /// A classic group as it was when its assignment was written, or without members.
    GroupMetadata(GroupMetadataKey, GroupMetadataValue<'a>);
    /// The epoch of a consumer group.
    ConsumerGroupMetadata(ConsumerGroupMetadataKey, ConsumerGroupMetadataValue);
    /// What releases before 4.1 wrote of a consumer group's topics; nothing reads it any more.
    ConsumerGroupPartitionMetadata(ConsumerGroupPartitionMetadataKey, ConsumerGroupPartitionMetadataValue<'a>);
    /// A member of a consumer group.
    ConsumerGroupMemberMetadata(ConsumerGroupMemberMetadataKey, ConsumerGroupMemberMetadataValue<'a>);
    /// The epoch of a consumer group's target assignment.
    ConsumerGroupTargetAssignmentMetadata(
        ConsumerGroupTargetAssignmentMetadataKey,
        ConsumerGroupTargetAssignmentMetadataValue
    );
    /// What a member is to own.
    ConsumerGroupTargetAssignmentMember(
        ConsumerGroupTargetAssignmentMemberKey,
        ConsumerGroupTargetAssignmentMemberValue
    );
    /// What a member owns.
    ConsumerGroupCurrentMemberAssignment(
        ConsumerGroupCurrentMemberAssignmentKey,
        ConsumerGroupCurrentMemberAssignmentValue
    );
    /// The topics that a regular expression matches.
    ConsumerGroupRegularExpression(ConsumerGroupRegularExpressionKey, ConsumerGroupRegularExpressionValue<'a>);
}
