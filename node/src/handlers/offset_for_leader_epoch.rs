//! OffsetForLeaderEpoch (key 23): where an epoch ends in our log, so that a client finds where its own parts from it
//! (KIP-101, KIP-320).

use std::rc::Rc;

use flumen_core::types::{LeaderEpoch, PartitionId};
use flumen_wire::ErrorCode;
use flumen_wire::messages::offset_for_leader_epoch_request::OffsetForLeaderEpochRequest;
use flumen_wire::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderEpochResponse, OffsetForLeaderTopicResult,
};

use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;
use crate::shard::fetch::fence;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: OffsetForLeaderEpochRequest<'_> = request.body()?;
    let image = shard.image();
    let mut queries = Vec::new();
    let mut topics = Vec::with_capacity(body.topics.len());
    for topic in &body.topics {
        let known = image.topic(topic.topic);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            let mut answer = failed(asked.partition, ErrorCode::UnknownTopicOrPartition);
            if let Some(known) = known.filter(|known| known.partition(asked.partition).is_some()) {
                let partition = PartitionId { topic: known.id, partition: asked.partition };
                queries.push((partition, (asked.current_leader_epoch, asked.leader_epoch)));
                answer.error_code = ErrorCode::None.code();
            }
            partitions.push(answer);
        }
        topics.push(OffsetForLeaderTopicResult { topic: topic.topic, partitions });
    }
    let found = shard
        .ask_owners(queries, |shard, partition, (current, asked)| async move {
            look_up(&shard, partition, current, asked)
        })
        .await;
    let mut found = found.into_iter();
    let asked = topics.iter_mut().flat_map(|topic| &mut topic.partitions).filter(|p| p.error_code == 0);
    for place in asked {
        let found = found.next().flatten();
        *place = found.unwrap_or_else(|| failed(place.partition, ErrorCode::NotLeaderOrFollower));
    }
    request.respond(&OffsetForLeaderEpochResponse { topics, ..Default::default() })
}

fn look_up(shard: &Shard, partition: PartitionId, current: i32, asked: i32) -> EpochEndOffset {
    let index = partition.partition;
    let slot = match shard.readable(&partition) {
        Ok(slot) => slot,
        Err(error) => return failed(index, error),
    };
    let leader_epoch = shard.leader_epoch(&partition);
    if let Some(error) = fence(current, leader_epoch) {
        return failed(index, error);
    }
    let mut answer = failed(index, ErrorCode::None);
    if let Some((epoch, end)) = shard.engine.end_offset_for_epoch(slot, LeaderEpoch(asked)) {
        answer.leader_epoch = epoch.0;
        answer.end_offset = end.0;
    }
    answer
}

fn failed(partition: i32, error: ErrorCode) -> EpochEndOffset {
    EpochEndOffset { error_code: error.code(), partition, leader_epoch: -1, end_offset: -1 }
}
