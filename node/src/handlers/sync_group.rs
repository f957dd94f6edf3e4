//! SyncGroup (key 14): a member of a classic group asks for its assignment; the leader brings those of all. The answer
//! waits for the leader.

use std::rc::Rc;

use flumen_core::coordinator::{Answer, Request as GroupRequest};
use flumen_wire::messages::sync_group_request::SyncGroupRequest;
use flumen_wire::messages::sync_group_response::SyncGroupResponse;

use super::carried::Carried;
use super::group::Who;
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

/// The first version that tells the protocol.
const PROTOCOL_VERSION: i16 = 5;

pub(super) async fn handle(shard: &Rc<Shard>, mut request: Request) -> Result<Response, Refusal> {
    let body: SyncGroupRequest<'_> = request.body()?;
    let group_id = body.group_id.to_owned();
    let (carried, who) = (Carried::new(&request), Who::of(&request));
    // The answer may take minutes.
    request.release_frame();
    let answer = shard.coordinate(&group_id, move |coordinator, cx, token| {
        let body: SyncGroupRequest<'_> = carried.body();
        coordinator.handle(cx, &who.caller(), GroupRequest::SyncGroup(&body), token);
    });
    let tells_protocol = request.version >= PROTOCOL_VERSION;
    let answer = answer.await;
    let response = match &answer {
        Answer::Synced(synced) => SyncGroupResponse {
            protocol_type: synced.protocol_type.as_deref().filter(|_| tells_protocol),
            protocol_name: synced.protocol_name.as_deref().filter(|_| tells_protocol),
            assignment: &synced.assignment,
            ..SyncGroupResponse::default()
        },
        Answer::Failed(code) => SyncGroupResponse { error_code: code.code(), ..SyncGroupResponse::default() },
        other => unreachable!("no answer to SyncGroup: {other:?}"),
    };
    request.respond(&response)
}
