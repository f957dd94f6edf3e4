//! ListGroups (key 16): all groups of all coordinators. KIP-518 (by state, from version 4), KIP-848 (by type, from 5).

use std::rc::Rc;

use flumen_core::coordinator::{Answer, Caller, Context, Coordinator, Request as GroupRequest, Token};
use flumen_wire::ErrorCode;
use flumen_wire::messages::list_groups_request::ListGroupsRequest;
use flumen_wire::messages::list_groups_response::{ListGroupsResponse, ListedGroup};
use futures_util::future::join_all;

use super::carried::Carried;
use super::{Refusal, Request, at_most};
use crate::net::response::Response;
use crate::shard::Shard;

/// Most states, and types, that groups may be asked for by; there are fewer.
const FILTERS_MAX: usize = 64;
/// The first versions that tell the state and the type of a group.
const STATE_VERSION: i16 = 4;
const TYPE_VERSION: i16 = 5;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: ListGroupsRequest<'_> = request.body()?;
    at_most(body.states_filter.len().max(body.types_filter.len()), FILTERS_MAX, "states or types")?;
    let asked = (0..shard.coordinator_partitions()).map(|partition| {
        let carried = Carried::new(request);
        shard.coordinate_at(
            partition,
            move |coordinator: &mut Coordinator, cx: &Context<'_>, token: Token| {
                let body: ListGroupsRequest<'_> = carried.body();
                let (states, types) = (&body.states_filter[..], &body.types_filter[..]);
                coordinator.handle(cx, &Caller::default(), GroupRequest::ListGroups { states, types }, token);
            },
        )
    });
    let answers = join_all(asked).await;
    let mut error = ErrorCode::None;
    let mut groups = Vec::new();
    for answer in &answers {
        match answer {
            Answer::Listed(listed) => groups.extend(listed.iter().map(|group| ListedGroup {
                group_id: &group.group_id,
                protocol_type: &group.protocol_type,
                group_state: if request.version >= STATE_VERSION { group.state } else { "" },
                group_type: if request.version >= TYPE_VERSION { group.group_type } else { "" },
            })),
            // That coordinator is no longer here: its groups are listed where it is.
            Answer::Failed(ErrorCode::NotCoordinator) => {}
            Answer::Failed(code) => error = *code,
            other => unreachable!("no answer to ListGroups: {other:?}"),
        }
    }
    let answer = ListGroupsResponse { error_code: error.code(), groups, ..ListGroupsResponse::default() };
    request.respond(&answer)
}
