//! LeaveGroup (key 13): members go, or are sent away by an operator. KIP-345 (several, and by static name, from
//! version 3), KIP-800 (reasons).

use std::rc::Rc;

use flumen_core::coordinator::{Answer, Request as GroupRequest};
use flumen_wire::ErrorCode;
use flumen_wire::messages::leave_group_request::{LeaveGroupRequest, MemberIdentity};
use flumen_wire::messages::leave_group_response::{LeaveGroupResponse, MemberResponse};

use super::carried::Carried;
use super::group::Who;
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

/// The first version with a list of members.
const MEMBERS_VERSION: i16 = 3;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body = members_listed(request.body()?, request.version);
    let (carried, who, version) = (Carried::new(request), Who::of(request), request.version);
    let answer = shard.coordinate(body.group_id, move |coordinator, cx, token| {
        let body = members_listed(carried.body(), version);
        coordinator.handle(cx, &who.caller(), GroupRequest::LeaveGroup(&body), token);
    });
    let response = match answer.await {
        Answer::Left(codes) if version < MEMBERS_VERSION => failed(codes[0]),
        Answer::Left(codes) => LeaveGroupResponse {
            members: body.members.iter().zip(codes).map(|(member, code)| left(member, code)).collect(),
            ..LeaveGroupResponse::default()
        },
        Answer::Failed(code) => failed(code),
        other => unreachable!("no answer to LeaveGroup: {other:?}"),
    };
    request.respond(&response)
}

/// Older versions name one member, apart.
fn members_listed(mut body: LeaveGroupRequest<'_>, version: i16) -> LeaveGroupRequest<'_> {
    if version < MEMBERS_VERSION {
        body.members = vec![MemberIdentity { member_id: body.member_id, ..MemberIdentity::default() }];
    }
    body
}

fn left<'a>(member: &MemberIdentity<'a>, code: ErrorCode) -> MemberResponse<'a> {
    MemberResponse {
        member_id: member.member_id,
        group_instance_id: member.group_instance_id,
        error_code: code.code(),
    }
}

fn failed(code: ErrorCode) -> LeaveGroupResponse<'static> {
    LeaveGroupResponse { error_code: code.code(), ..LeaveGroupResponse::default() }
}
