//! DescribeGroups (key 15): classic groups and their members. KIP-1043 (unknown groups are an error from version 6).

use std::rc::Rc;

use flumen_core::coordinator::{Answer, Caller, GroupDescription, Request as GroupRequest};
use flumen_wire::ErrorCode;
use flumen_wire::messages::describe_groups_request::DescribeGroupsRequest;
use flumen_wire::messages::describe_groups_response::{
    DescribeGroupsResponse, DescribedGroup, DescribedGroupMember,
};

use super::authorized_operations as operations;
use super::group::{are_repeated, each};
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

/// The first version in which a group that there is none of is an error; before, it is a dead group.
const NOT_FOUND_VERSION: i16 = 6;
/// The first version that tells static names.
const INSTANCE_VERSION: i16 = 4;
const DEAD: &str = "Dead";

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: DescribeGroupsRequest<'_> = request.body()?;
    let repeated = are_repeated(body.groups.iter().copied());
    let asked = body.groups.iter().zip(repeated).map(|(group_id, is_repeated)| {
        let group_id = (*group_id).to_owned();
        async move {
            if is_repeated {
                return Answer::Failed(ErrorCode::InvalidRequest);
            }
            let id = group_id.clone();
            let call = move |coordinator: &mut flumen_core::coordinator::Coordinator,
                             cx: &flumen_core::coordinator::Context<'_>,
                             token| {
                let described = GroupRequest::DescribeGroup(&id);
                coordinator.handle(cx, &Caller::default(), described, token);
            };
            shard.coordinate(&group_id, call).await
        }
    });
    let answers = each(asked).await?;
    let operations = operations::when_asked(body.include_authorized_operations, operations::GROUP);
    let groups = body.groups.iter().zip(&answers).map(|(group_id, answer)| {
        let group = match answer {
            Answer::Described(Ok(group)) => described(group, request.version),
            Answer::Described(Err(refused)) => not_found(&refused.message, request.version),
            Answer::Failed(code) => DescribedGroup { error_code: code.code(), ..DescribedGroup::default() },
            other => unreachable!("no answer to DescribeGroups: {other:?}"),
        };
        DescribedGroup { group_id, authorized_operations: operations, ..group }
    });
    let groups = groups.collect();
    request.respond(&DescribeGroupsResponse { groups, ..DescribeGroupsResponse::default() })
}

fn not_found(text: &str, version: i16) -> DescribedGroup<'_> {
    let group = DescribedGroup { group_state: DEAD, ..DescribedGroup::default() };
    if version < NOT_FOUND_VERSION {
        return group;
    }
    DescribedGroup { error_code: ErrorCode::GroupIdNotFound.code(), error_message: Some(text), ..group }
}

fn described(group: &GroupDescription, version: i16) -> DescribedGroup<'_> {
    let members = group.members.iter().map(|member| DescribedGroupMember {
        member_id: &member.member_id,
        group_instance_id: member.group_instance_id.as_deref().filter(|_| version >= INSTANCE_VERSION),
        client_id: &member.client_id,
        client_host: &member.client_host,
        member_metadata: &member.metadata,
        member_assignment: &member.assignment,
    });
    DescribedGroup {
        group_state: group.state,
        protocol_type: &group.protocol_type,
        protocol_data: &group.protocol,
        members: members.collect(),
        ..DescribedGroup::default()
    }
}
