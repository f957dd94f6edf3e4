//! DescribeProducers (key 61): who writes to a partition with sequence numbers. KIP-664.

use std::collections::HashSet;
use std::rc::Rc;

use flumen_core::types::PartitionId;
use flumen_wire::ErrorCode;
use flumen_wire::messages::describe_producers_request::DescribeProducersRequest;
use flumen_wire::messages::describe_producers_response::{
    DescribeProducersResponse, PartitionResponse, ProducerState, TopicResponse,
};

use super::{Refusal, Request, check_partitions};
use crate::net::response::Response;
use crate::shard::Shard;

/// What stands where there is no transaction.
const NO_TRANSACTION: i64 = -1;
/// What stands where no coordinator ever wrote.
const NO_COORDINATOR: i32 = -1;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: DescribeProducersRequest<'_> = request.body()?;
    check_partitions(body.topics.iter().map(|topic| &topic.partition_indexes))?;
    let image = shard.image();
    let mut topics: Vec<TopicResponse<'_>> = Vec::with_capacity(body.topics.len());
    let (mut wanted, mut places) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for topic in &body.topics {
        let known = image.topic(topic.name);
        let mut partitions = Vec::with_capacity(topic.partition_indexes.len());
        for index in &topic.partition_indexes {
            let id = known.filter(|known| known.partition(*index).is_some());
            let id = id.map(|known| PartitionId { topic: known.id, partition: *index });
            partitions.push(match id {
                // A partition may have many producers; named again and again it would fill the memory.
                Some(id) if !seen.insert(id) => refused(*index, ErrorCode::InvalidRequest),
                Some(id) => {
                    wanted.push((id, ()));
                    places.push((topics.len(), partitions.len()));
                    PartitionResponse { partition_index: *index, ..PartitionResponse::default() }
                }
                None => refused(*index, ErrorCode::UnknownTopicOrPartition),
            });
        }
        topics.push(TopicResponse { name: topic.name, partitions });
    }
    let results = shard.ask_owners(wanted, producers_here).await;
    for ((topic, partition), result) in places.into_iter().zip(results) {
        let place = &mut topics[topic].partitions[partition];
        // None: that shard has ended, and so does the node.
        *place = match result.unwrap_or(Err(ErrorCode::NotLeaderOrFollower)) {
            Ok(active_producers) => PartitionResponse {
                partition_index: place.partition_index,
                error_message: None,
                active_producers,
                ..PartitionResponse::default()
            },
            Err(code) => refused(place.partition_index, code),
        };
    }
    request.respond(&DescribeProducersResponse { topics, ..DescribeProducersResponse::default() })
}

fn refused<'a>(partition_index: i32, code: ErrorCode) -> PartitionResponse<'a> {
    PartitionResponse {
        partition_index,
        error_code: code.code(),
        error_message: None,
        ..PartitionResponse::default()
    }
}

/// On the shard that owns the partition.
async fn producers_here(shard: Rc<Shard>, id: PartitionId, (): ()) -> Result<Vec<ProducerState>, ErrorCode> {
    // The topic has it: it could not be created or opened, or is offline.
    let slot = shard.readable(&id).map_err(|_| ErrorCode::KafkaStorageError)?;
    let producers = shard.engine.producers(slot).into_iter();
    let described = producers.map(|producer| ProducerState {
        producer_id: producer.producer_id.0,
        producer_epoch: i32::from(producer.epoch.0),
        last_sequence: producer.last_sequence,
        last_timestamp: producer.last_timestamp.0,
        coordinator_epoch: NO_COORDINATOR,
        current_txn_start_offset: NO_TRANSACTION,
    });
    Ok(described.collect())
}
