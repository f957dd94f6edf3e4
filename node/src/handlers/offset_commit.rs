//! OffsetCommit (key 8): how far a group has read. KIP-320 (leader epochs), KIP-848 (member epochs, topic ids from
//! version 10). The answer leaves when the offsets are durable.

use std::rc::Rc;

use flumen_core::coordinator::{Answer, Request as GroupRequest};
use flumen_wire::ErrorCode;
use flumen_wire::messages::offset_commit_request::OffsetCommitRequest;
use flumen_wire::messages::offset_commit_response::{
    OffsetCommitResponse, OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};

use super::carried::Carried;
use super::group::Who;
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: OffsetCommitRequest<'_> = request.body()?;
    let (carried, who) = (Carried::new(request), Who::of(request));
    let answer = shard.coordinate(body.group_id, move |coordinator, cx, token| {
        let body: OffsetCommitRequest<'_> = carried.body();
        coordinator.handle(cx, &who.caller(), GroupRequest::OffsetCommit(&body), token);
    });
    let (codes, of_all) = match answer.await {
        Answer::Committed(codes) => (codes, ErrorCode::None),
        Answer::Failed(code) => (Vec::new(), code),
        other => unreachable!("no answer to OffsetCommit: {other:?}"),
    };
    let mut codes = codes.into_iter();
    let topics = body.topics.iter().map(|topic| OffsetCommitResponseTopic {
        name: topic.name,
        topic_id: topic.topic_id,
        partitions: topic
            .partitions
            .iter()
            .map(|partition| OffsetCommitResponsePartition {
                partition_index: partition.partition_index,
                error_code: codes.next().unwrap_or(of_all).code(),
            })
            .collect(),
    });
    request.respond(&OffsetCommitResponse { topics: topics.collect(), ..OffsetCommitResponse::default() })
}
