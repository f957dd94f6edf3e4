//! DeleteGroups (key 42): groups without members, and their offsets (KIP-229).

use std::rc::Rc;

use flumen_core::coordinator::{Caller, Context, Coordinator, Request as GroupRequest, Token};
use flumen_wire::messages::delete_groups_request::DeleteGroupsRequest;
use flumen_wire::messages::delete_groups_response::{DeletableGroupResult, DeleteGroupsResponse};

use super::group::{code, each};
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: DeleteGroupsRequest<'_> = request.body()?;
    let asked = body.groups_names.iter().map(|group_id| {
        let id = (*group_id).to_owned();
        shard.coordinate(group_id, move |coordinator: &mut Coordinator, cx: &Context<'_>, token: Token| {
            coordinator.handle(cx, &Caller::default(), GroupRequest::DeleteGroup(&id), token);
        })
    });
    let answers = each(asked).await?;
    let results = body
        .groups_names
        .iter()
        .zip(&answers)
        .map(|(group_id, answer)| DeletableGroupResult { group_id, error_code: code(answer).code() });
    let results = results.collect();
    request.respond(&DeleteGroupsResponse { results, ..DeleteGroupsResponse::default() })
}
