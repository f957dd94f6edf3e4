//! OffsetCommit: whether a group's commit is taken, and the records that it becomes.

use std::sync::Arc;

use flumen_wire::ErrorCode;
use flumen_wire::group::offset_commit_key::OffsetCommitKey;
use flumen_wire::messages::offset_commit_request::{OffsetCommitRequest, OffsetCommitRequestTopic};

use super::{Committed, NO_TIME};
use crate::coordinator::answer::Answer;
use crate::coordinator::groups::Group;
use crate::coordinator::record::Record;
use crate::coordinator::{Caller, Context, Coordinator};
use crate::limits::{
    GROUPS_PER_COORDINATOR_MAX, OFFSET_COMMIT_BYTES_MAX, OFFSETS_METADATA_BYTES_MAX,
    OFFSETS_PER_COORDINATOR_MAX,
};
use crate::metadata::Topic;
use crate::types::{PartitionId, TopicId};

/// The first version that names topics by id (KIP-848).
const TOPIC_ID_VERSION: i16 = 10;
/// The first version whose clients know GROUP_ID_NOT_FOUND.
const GROUP_ID_NOT_FOUND_VERSION: i16 = 9;

impl Coordinator {
    pub(in crate::coordinator) fn commit_offsets(
        &mut self,
        cx: &Context<'_>,
        caller: &Caller<'_>,
        request: &OffsetCommitRequest<'_>,
    ) -> Answer {
        // Nobody asks the group about what does not exist, as in Kafka; and a commit of that alone renews no session.
        let exists =
            |topic: &OffsetCommitRequestTopic<'_>| existing(cx, topic, caller.version).next().is_some();
        let asks = request.topics.is_empty() || request.topics.iter().any(exists);
        let refusal = if asks { self.check_commit(cx, caller, request).err() } else { None };
        let room = OFFSETS_PER_COORDINATOR_MAX.saturating_sub(self.offsets.len());
        let mut records = Vec::new();
        let bytes_max = OFFSET_COMMIT_BYTES_MAX.min(cx.decision_bytes_max);
        let (mut bytes, mut added, mut said) = (0, 0, self.offsets.metadata_bytes());
        let mut codes = Vec::new();
        for topic in &request.topics {
            let known = known_topic(cx, topic, caller.version);
            for partition in &topic.partitions {
                let index = partition.partition_index;
                let metadata = partition.committed_metadata.unwrap_or("");
                let Some(known) = known else {
                    codes.push(if caller.version >= TOPIC_ID_VERSION {
                        ErrorCode::UnknownTopicId
                    } else {
                        ErrorCode::UnknownTopicOrPartition
                    });
                    continue;
                };
                let old = self.offsets.get(request.group_id, &known.name, index);
                let (is_new, old_said) = (old.is_none(), old.map_or(0, |old| old.metadata.len()));
                if known.partition(index).is_none() {
                    codes.push(ErrorCode::UnknownTopicOrPartition);
                } else if let Some(refusal) = refusal {
                    codes.push(refusal);
                } else if is_too_long(metadata, cx.config.offset_metadata_bytes_max as usize) {
                    codes.push(ErrorCode::OffsetMetadataTooLarge);
                } else if bytes + request.group_id.len() + metadata.len() > bytes_max
                    || metadata.len() > old_said
                        && said + metadata.len() - old_said > OFFSETS_METADATA_BYTES_MAX
                {
                    codes.push(ErrorCode::InvalidCommitOffsetSize);
                } else {
                    let committed = Committed {
                        offset: partition.committed_offset,
                        leader_epoch: partition.committed_leader_epoch,
                        metadata: metadata.into(),
                        commit_timestamp: cx.now_ms,
                        expire_timestamp: expire_timestamp(cx, request.retention_time_ms),
                        topic_id: known.id,
                    };
                    let record = record(&committed, request.group_id, &known.name, index);
                    if bytes + record.len_bytes() > bytes_max || is_new && added >= room {
                        codes.push(ErrorCode::InvalidCommitOffsetSize);
                        continue;
                    }
                    bytes += record.len_bytes();
                    added += usize::from(is_new);
                    said = said + metadata.len() - old_said;
                    records.push(record);
                    codes.push(ErrorCode::None);
                }
            }
        }
        self.write_all(records);
        match refusal {
            Some(refusal) if codes.iter().all(|code| *code == refusal) => Answer::Failed(refusal),
            _ => Answer::Committed(codes),
        }
    }

    fn check_commit(
        &mut self,
        cx: &Context<'_>,
        caller: &Caller<'_>,
        request: &OffsetCommitRequest<'_>,
    ) -> Result<(), ErrorCode> {
        let (member_id, epoch) = (request.member_id, request.generation_id_or_member_epoch);
        match self.groups.get(request.group_id) {
            // Whoever commits without being a member needs no group; the first offset makes it.
            None if epoch < 0 && self.groups.len() >= GROUPS_PER_COORDINATOR_MAX => {
                Err(ErrorCode::CoordinatorNotAvailable)
            }
            None if epoch < 0 => Ok(()),
            None if caller.version >= GROUP_ID_NOT_FOUND_VERSION => Err(ErrorCode::GroupIdNotFound),
            None => Err(ErrorCode::IllegalGeneration),
            Some(Group::Consumer(group)) => {
                let right = group.check_commit(member_id, epoch, caller.version);
                let right = right.map_err(|refused| refused.code)?;
                // One that is not its own to commit fails all, as in Kafka. Unknown ones have a code of their own.
                let mut named = request.topics.iter().flat_map(|topic| existing(cx, topic, caller.version));
                named.try_for_each(|id| right.check(id))
            }
            Some(Group::Classic(_)) => {
                self.check_classic_commit(cx, request.group_id, member_id, request.group_instance_id, epoch)
            }
        }
    }
}

fn known_topic<'a>(
    cx: &Context<'a>,
    topic: &OffsetCommitRequestTopic<'_>,
    version: i16,
) -> Option<&'a Arc<Topic>> {
    if version >= TOPIC_ID_VERSION {
        cx.image.topic_by_id(TopicId(topic.topic_id))
    } else {
        cx.image.topic(topic.name)
    }
}

/// The partitions that are named and exist.
fn existing<'a>(
    cx: &Context<'a>,
    topic: &'a OffsetCommitRequestTopic<'_>,
    version: i16,
) -> impl Iterator<Item = PartitionId> + 'a {
    let named = topic.partitions.iter().map(|one| one.partition_index);
    known_topic(cx, topic, version).into_iter().flat_map(move |known| {
        let here = named.clone().filter(|index| known.partition(*index).is_some());
        here.map(|index| PartitionId { topic: known.id, partition: index })
    })
}

/// In what Java calls characters: UTF-16 units, of which each takes at most three bytes.
fn is_too_long(metadata: &str, max: usize) -> bool {
    metadata.len() > max && metadata.encode_utf16().count() > max
}

/// A client of old may say for how long its offsets are to be kept.
fn expire_timestamp(cx: &Context<'_>, retention_time_ms: i64) -> i64 {
    if retention_time_ms < 0 { NO_TIME } else { cx.now_ms.saturating_add(retention_time_ms) }
}

fn record(committed: &Committed, group: &str, topic: &str, partition: i32) -> Record {
    committed.record(&OffsetCommitKey { group, topic, partition })
}
