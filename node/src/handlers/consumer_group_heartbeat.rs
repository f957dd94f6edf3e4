//! ConsumerGroupHeartbeat (key 68): a member of a consumer group joins, stays or leaves, and hears what to own. KIP-848.

use std::rc::Rc;

use flumen_core::coordinator::{Answer, Request as GroupRequest};
use flumen_wire::ErrorCode;
use flumen_wire::messages::consumer_group_heartbeat_request::ConsumerGroupHeartbeatRequest;
use flumen_wire::messages::consumer_group_heartbeat_response::{
    Assignment, ConsumerGroupHeartbeatResponse, TopicPartitions,
};

use super::carried::Carried;
use super::group::Who;
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: ConsumerGroupHeartbeatRequest<'_> = request.body()?;
    let (carried, who) = (Carried::new(request), Who::of(request));
    let answer = shard.coordinate(body.group_id, move |coordinator, cx, token| {
        let body: ConsumerGroupHeartbeatRequest<'_> = carried.body();
        coordinator.handle(cx, &who.caller(), GroupRequest::ConsumerGroupHeartbeat(&body), token);
    });
    let answer = match answer.await {
        Answer::ConsumerHeartbeat(answer) => answer,
        Answer::Failed(code) => return request.respond(&refused(code, None)),
        other => unreachable!("no answer to ConsumerGroupHeartbeat: {other:?}"),
    };
    let answer = match &answer {
        Err(refusal) => return request.respond(&refused(refusal.code, Some(&refusal.message))),
        Ok(answer) => answer,
    };
    let assignment = answer.assignment.as_ref().map(|partitions| Assignment {
        topic_partitions: partitions
            .by_topic()
            .map(|(topic, partitions)| TopicPartitions {
                topic_id: topic.0,
                partitions: partitions.collect(),
            })
            .collect(),
    });
    request.respond(&ConsumerGroupHeartbeatResponse {
        member_id: Some(&answer.member_id),
        member_epoch: answer.member_epoch,
        heartbeat_interval_ms: answer.heartbeat_interval_ms,
        assignment,
        ..ConsumerGroupHeartbeatResponse::default()
    })
}

fn refused(code: ErrorCode, text: Option<&str>) -> ConsumerGroupHeartbeatResponse<'_> {
    ConsumerGroupHeartbeatResponse {
        error_code: code.code(),
        error_message: text,
        ..ConsumerGroupHeartbeatResponse::default()
    }
}
