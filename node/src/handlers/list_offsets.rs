//! ListOffsets (key 2): offsets by time, and the ends of logs. KIP-79, KIP-207, KIP-734, KIP-405.

use std::collections::HashSet;
use std::rc::Rc;

use flumen_core::types::{LeaderEpoch, PartitionId, Timestamp};
use flumen_wire::ErrorCode;
use flumen_wire::messages::list_offsets_request::ListOffsetsRequest;
use flumen_wire::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsResponse, ListOffsetsTopicResponse,
};

use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;
use crate::shard::fetch::fence;

/// The first version that tells leader epochs.
const EPOCH_VERSION: i16 = 4;
/// End of the log: the high watermark (the last stable offset is the same while there are no transactions).
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;
const EARLIEST_PENDING_UPLOAD: i64 = -6;

/// The first version that knows each of the special times.
fn first_version(timestamp: i64) -> i16 {
    match timestamp {
        MAX_TIMESTAMP => 7,
        EARLIEST_LOCAL => 8,
        LATEST_TIERED => 9,
        EARLIEST_PENDING_UPLOAD => 11,
        _ => 1,
    }
}

/// One look-up; crosses to the shard that owns the partition.
#[derive(Clone, Copy)]
struct Query {
    timestamp: i64,
    current_leader_epoch: i32,
}

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: ListOffsetsRequest<'_> = request.body()?;
    let twice = named_twice(&body);
    let image = shard.image();
    let mut queries = Vec::new();
    let mut topics = Vec::with_capacity(body.topics.len());
    for topic in &body.topics {
        let known = image.topic(topic.name);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            let index = asked.partition_index;
            let error = match known.filter(|known| known.partition(index).is_some()) {
                _ if twice.contains(&(topic.name, index)) => ErrorCode::InvalidRequest,
                None => ErrorCode::UnknownTopicOrPartition,
                Some(_) if request.version < first_version(asked.timestamp) => ErrorCode::UnsupportedVersion,
                Some(known) => {
                    let partition = PartitionId { topic: known.id, partition: index };
                    let (timestamp, current_leader_epoch) = (asked.timestamp, asked.current_leader_epoch);
                    queries.push((partition, Query { timestamp, current_leader_epoch }));
                    ErrorCode::None
                }
            };
            partitions.push(response(index, error, -1, -1, -1));
        }
        topics.push(ListOffsetsTopicResponse { name: topic.name, partitions });
    }
    let found = shard.ask_owners(queries, |shard, partition, query| async move {
        look_up(&shard, partition, query).await
    });
    let mut found = found.await.into_iter();
    let asked = topics.iter_mut().flat_map(|topic| &mut topic.partitions).filter(|p| p.error_code == 0);
    for place in asked {
        let found = found.next().flatten();
        *place = found
            .unwrap_or_else(|| response(place.partition_index, ErrorCode::NotLeaderOrFollower, -1, -1, -1));
        if request.version < EPOCH_VERSION {
            place.leader_epoch = -1;
        }
    }
    request.respond(&ListOffsetsResponse { topics, ..ListOffsetsResponse::default() })
}

/// Partitions that a request has more than once: none of them is looked up, as with Kafka.
fn named_twice<'a>(body: &ListOffsetsRequest<'a>) -> HashSet<(&'a str, i32)> {
    let mut seen = HashSet::new();
    let named = body
        .topics
        .iter()
        .flat_map(|topic| topic.partitions.iter().map(|partition| (topic.name, partition.partition_index)));
    named.filter(|one| !seen.insert(*one)).collect()
}

async fn look_up(shard: &Shard, partition: PartitionId, query: Query) -> ListOffsetsPartitionResponse {
    let index = partition.partition;
    let failed = |error| response(index, error, -1, -1, -1);
    let slot = match shard.readable(&partition) {
        Ok(slot) => slot,
        Err(error) => return failed(error),
    };
    let leader_epoch = shard.leader_epoch(&partition);
    if let Some(error) = fence(query.current_leader_epoch, leader_epoch) {
        return failed(error);
    }
    let Some(offsets) = shard.engine.offsets(slot) else {
        return failed(ErrorCode::UnknownTopicOrPartition);
    };
    let found = match query.timestamp {
        LATEST => return response(index, ErrorCode::None, -1, offsets.high_watermark.0, leader_epoch),
        EARLIEST | EARLIEST_LOCAL => {
            let epoch = shard.engine.epoch_of(slot, offsets.log_start).map_or(leader_epoch, |epoch| epoch.0);
            return response(index, ErrorCode::None, -1, offsets.log_start.0, epoch);
        }
        // Nothing is tiered, and nothing waits to be.
        LATEST_TIERED | EARLIEST_PENDING_UPLOAD => return response(index, ErrorCode::None, -1, -1, -1),
        MAX_TIMESTAMP => shard.engine.max_timestamp(slot).await,
        timestamp if timestamp < 0 => return failed(ErrorCode::UnsupportedVersion),
        timestamp => shard.engine.offset_for_timestamp(slot, Timestamp(timestamp)).await,
    };
    match found {
        Ok(Some((offset, timestamp, LeaderEpoch(epoch)))) => {
            response(index, ErrorCode::None, timestamp.0, offset.0, epoch)
        }
        Ok(None) => response(index, ErrorCode::None, -1, -1, -1),
        Err(error) => {
            shard.report_read_faults();
            failed(error.error_code())
        }
    }
}

fn response(
    partition_index: i32,
    error: ErrorCode,
    timestamp: i64,
    offset: i64,
    leader_epoch: i32,
) -> ListOffsetsPartitionResponse {
    ListOffsetsPartitionResponse {
        partition_index,
        error_code: error.code(),
        timestamp,
        offset,
        leader_epoch,
    }
}
