//! JoinGroup (key 11): a member comes into the next generation of its classic group. KIP-345 (static members), KIP-394
//! (member ids first), KIP-814 (the assignment may stay). The answer waits until the generation stands.

use std::rc::Rc;

use flumen_core::coordinator::{Answer, JoinAnswer, Request as GroupRequest};
use flumen_wire::messages::join_group_request::JoinGroupRequest;
use flumen_wire::messages::join_group_response::{JoinGroupResponse, JoinGroupResponseMember};

use super::carried::Carried;
use super::group::Who;
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

/// The first version that tells the type of protocols, and in which the protocol may be null.
const PROTOCOL_TYPE_VERSION: i16 = 7;
/// The first version that tells static names.
const INSTANCE_VERSION: i16 = 5;

pub(super) async fn handle(shard: &Rc<Shard>, mut request: Request) -> Result<Response, Refusal> {
    let body: JoinGroupRequest<'_> = request.body()?;
    let (group_id, member_id) = (body.group_id.to_owned(), body.member_id.to_owned());
    let (carried, who) = (Carried::new(&request), Who::of(&request));
    // The answer may take minutes.
    request.release_frame();
    let answer = shard.coordinate(&group_id, move |coordinator, cx, token| {
        let body: JoinGroupRequest<'_> = carried.body();
        coordinator.handle(cx, &who.caller(), GroupRequest::JoinGroup(&body), token);
    });
    let answer = answer.await;
    let response = match &answer {
        Answer::Joined(joined) => response(joined, request.version),
        Answer::Failed(code) => JoinGroupResponse {
            error_code: code.code(),
            protocol_name: none(request.version),
            member_id: &member_id,
            ..JoinGroupResponse::default()
        },
        other => unreachable!("no answer to JoinGroup: {other:?}"),
    };
    request.respond(&response)
}

/// No protocol, in the words of the version.
fn none(version: i16) -> Option<&'static str> {
    (version < PROTOCOL_TYPE_VERSION).then_some("")
}

fn response(joined: &JoinAnswer, version: i16) -> JoinGroupResponse<'_> {
    let members = joined.members.iter().map(|member| JoinGroupResponseMember {
        member_id: &member.member_id,
        group_instance_id: member.group_instance_id.as_deref().filter(|_| version >= INSTANCE_VERSION),
        metadata: &member.metadata,
    });
    JoinGroupResponse {
        error_code: joined.error.code(),
        generation_id: joined.generation_id,
        protocol_type: joined.protocol_type.as_deref().filter(|_| version >= PROTOCOL_TYPE_VERSION),
        protocol_name: joined.protocol_name.as_deref().or(none(version)),
        leader: &joined.leader,
        skip_assignment: joined.skip_assignment,
        member_id: &joined.member_id,
        members: members.collect(),
        ..JoinGroupResponse::default()
    }
}
