//! DeleteRecords (key 21): moves the start of logs. KIP-107.
//!
//! The answer of a partition leaves when its new start is durable.

use std::rc::Rc;

use flumen_core::metadata::{Image, is_internal_topic};
use flumen_core::types::{Offset, PartitionId, TopicId};
use flumen_wire::ErrorCode;
use flumen_wire::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsRequest};
use flumen_wire::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsResponse, DeleteRecordsTopicResult,
};

use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

/// The low watermark that goes with an error.
const NO_LOW_WATERMARK: i64 = -1;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: DeleteRecordsRequest<'_> = request.body()?;
    let image = shard.image();
    let (mut wanted, mut places) = (Vec::new(), Vec::new());
    let mut topics: Vec<DeleteRecordsTopicResult<'_>> = Vec::with_capacity(body.topics.len());
    for topic in &body.topics {
        let deletable = deletable(shard, &image, topic.name);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for DeleteRecordsPartition { partition_index, offset } in &topic.partitions {
            let known = deletable.and_then(|deletable| deletable.partition(*partition_index));
            if let Ok(id) = known {
                wanted.push((id, *offset));
                places.push((topics.len(), partitions.len()));
            }
            partitions.push(result(*partition_index, known.map(|_| Offset(NO_LOW_WATERMARK))));
        }
        topics.push(DeleteRecordsTopicResult { name: topic.name, partitions });
    }
    let results = shard.ask_owners(wanted, delete_here).await;
    for ((topic, partition), deleted) in places.into_iter().zip(results) {
        let place = &mut topics[topic].partitions[partition];
        // None: that shard has ended, and so does the node.
        *place = result(place.partition_index, deleted.unwrap_or(Err(ErrorCode::NotLeaderOrFollower)));
    }
    request.respond(&DeleteRecordsResponse { topics, ..DeleteRecordsResponse::default() })
}

/// A topic whose records may be deleted.
#[derive(Clone, Copy)]
struct Deletable {
    id: TopicId,
    partitions: usize,
}

impl Deletable {
    fn partition(self, partition: i32) -> Result<PartitionId, ErrorCode> {
        match usize::try_from(partition) {
            Ok(index) if index < self.partitions => Ok(PartitionId { topic: self.id, partition }),
            _ => Err(ErrorCode::UnknownTopicOrPartition),
        }
    }
}

fn deletable(shard: &Shard, image: &Image, name: &str) -> Result<Deletable, ErrorCode> {
    let topic = image.topic(name).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    if is_internal_topic(name) {
        return Err(ErrorCode::InvalidTopicException);
    }
    let policy = shard.log_config(topic.id, name).cleanup_policy;
    if policy.compact && !policy.delete {
        return Err(ErrorCode::PolicyViolation);
    }
    Ok(Deletable { id: topic.id, partitions: topic.partitions.len() })
}

fn result(partition_index: i32, low_watermark: Result<Offset, ErrorCode>) -> DeleteRecordsPartitionResult {
    let (low_watermark, code) = match low_watermark {
        Ok(low_watermark) => (low_watermark.0, ErrorCode::None),
        Err(code) => (NO_LOW_WATERMARK, code),
    };
    DeleteRecordsPartitionResult { partition_index, low_watermark, error_code: code.code() }
}

/// On the shard that owns the partition: moves the start of its log, and waits until that is durable. The engine knows
/// what -1 stands for (the high watermark), and that an offset below the start changes nothing.
async fn delete_here(shard: Rc<Shard>, id: PartitionId, offset: i64) -> Result<Offset, ErrorCode> {
    // The topic has it and the engine has not: it could not be created or opened.
    let slot = shard.engine.partition(&id).ok_or(ErrorCode::KafkaStorageError)?;
    let (token, durable) = shard.waiter();
    let low_watermark = shard.engine.delete_records(slot, Offset(offset), token).map_err(|(_, code)| code)?;
    durable.await.map(|()| low_watermark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_partitions_that_exist() {
        let topic = Deletable { id: TopicId([1; 16]), partitions: 2 };
        assert_eq!(topic.partition(1), Ok(PartitionId { topic: topic.id, partition: 1 }));
        for unknown in [2, -1, i32::MAX] {
            assert_eq!(topic.partition(unknown), Err(ErrorCode::UnknownTopicOrPartition), "{unknown}");
        }
    }

    #[test]
    fn an_error_has_no_low_watermark() {
        let failed = result(3, Err(ErrorCode::OffsetOutOfRange));
        assert_eq!((failed.partition_index, failed.low_watermark, failed.error_code), (3, -1, 1));
        let moved = result(3, Ok(Offset(7)));
        assert_eq!((moved.low_watermark, moved.error_code), (7, 0));
    }
}
