//! Heartbeat (key 12): a member of a classic group is alive, and hears whether its group is rebalancing.

use std::rc::Rc;

use flumen_core::coordinator::Request as GroupRequest;
use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
use flumen_wire::messages::heartbeat_response::HeartbeatResponse;

use super::carried::Carried;
use super::group::{Who, code};
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: HeartbeatRequest<'_> = request.body()?;
    let (carried, who) = (Carried::new(request), Who::of(request));
    let answer = shard.coordinate(body.group_id, move |coordinator, cx, token| {
        let body: HeartbeatRequest<'_> = carried.body();
        coordinator.handle(cx, &who.caller(), GroupRequest::Heartbeat(&body), token);
    });
    let error_code = code(&answer.await).code();
    request.respond(&HeartbeatResponse { error_code, ..HeartbeatResponse::default() })
}
