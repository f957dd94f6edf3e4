//! OffsetDelete (key 47): offsets of topics that a group does not read any more (KIP-496).

use std::rc::Rc;

use flumen_core::coordinator::{Answer, Request as GroupRequest};
use flumen_wire::ErrorCode;
use flumen_wire::messages::offset_delete_request::OffsetDeleteRequest;
use flumen_wire::messages::offset_delete_response::{
    OffsetDeleteResponse, OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};

use super::carried::Carried;
use super::group::Who;
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: OffsetDeleteRequest<'_> = request.body()?;
    let image = shard.image();
    let known: Vec<bool> = body.topics.iter().map(|topic| image.topic(topic.name).is_some()).collect();
    let (carried, who, asked) = (Carried::new(request), Who::of(request), known.clone());
    let answer = shard.coordinate(body.group_id, move |coordinator, cx, token| {
        let mut body: OffsetDeleteRequest<'_> = carried.body();
        let mut asked = asked.iter();
        body.topics.retain(|_| asked.next() == Some(&true));
        coordinator.handle(cx, &who.caller(), GroupRequest::OffsetDelete(&body), token);
    });
    let codes = match answer.await {
        Answer::OffsetsDeleted(codes) => codes,
        Answer::Failed(code) => {
            let failed = OffsetDeleteResponse { error_code: code.code(), ..OffsetDeleteResponse::default() };
            return request.respond(&failed);
        }
        other => unreachable!("no answer to OffsetDelete: {other:?}"),
    };
    let mut codes = codes.into_iter();
    let topics = body.topics.iter().zip(known).map(|(topic, known)| OffsetDeleteResponseTopic {
        name: topic.name,
        partitions: topic
            .partitions
            .iter()
            .map(|partition| OffsetDeleteResponsePartition {
                partition_index: partition.partition_index,
                error_code: if known {
                    codes.next().expect("one for each partition that was asked about").code()
                } else {
                    ErrorCode::UnknownTopicOrPartition.code()
                },
            })
            .collect(),
    });
    request.respond(&OffsetDeleteResponse { topics: topics.collect(), ..OffsetDeleteResponse::default() })
}
