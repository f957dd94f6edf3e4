//! FindCoordinator (key 10): the node that coordinates a group. KIP-699 (several, from version 4). The first one creates
//! the topic of the coordinators' logs.

use std::rc::Rc;

use flumen_core::coordinator::{OFFSETS_TOPIC, partition_for};
use flumen_core::metadata::Image;
use flumen_wire::ErrorCode;
use flumen_wire::messages::find_coordinator_request::FindCoordinatorRequest;
use flumen_wire::messages::find_coordinator_response::{Coordinator, FindCoordinatorResponse};

use super::group::check_count;
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

/// The first version that asks for several.
const SEVERAL_VERSION: i16 = 4;
/// Kinds of coordinators.
const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: FindCoordinatorRequest<'_> = request.body()?;
    check_count(body.coordinator_keys.len())?;
    let refusal = match body.key_type {
        GROUP => shard.ensure_offsets_topic().await.err(),
        // Transactions are not served; after this code clients do not ask again (see InitProducerId).
        TRANSACTION => Some(ErrorCode::TransactionalIdAuthorizationFailed),
        _ => Some(ErrorCode::InvalidRequest),
    };
    let image = shard.image();
    let find = |key| match refusal {
        Some(code) => none(key, code),
        None => coordinator(&image, key).unwrap_or(none(key, ErrorCode::CoordinatorNotAvailable)),
    };
    if request.version >= SEVERAL_VERSION {
        let coordinators = body.coordinator_keys.iter().map(|key| find(key)).collect();
        let answer = FindCoordinatorResponse { coordinators, ..FindCoordinatorResponse::default() };
        return request.respond(&answer);
    }
    let found = find(body.key);
    let answer = FindCoordinatorResponse {
        error_code: found.error_code,
        error_message: found.error_message,
        node_id: found.node_id,
        host: found.host,
        port: found.port,
        ..FindCoordinatorResponse::default()
    };
    request.respond(&answer)
}

/// The leader of the group's partition.
fn coordinator<'a>(image: &'a Image, key: &'a str) -> Option<Coordinator<'a>> {
    let topic = image.topic(OFFSETS_TOPIC)?;
    let partition = topic.partition(partition_for(key, topic.partitions.len() as i32))?;
    let broker = image.broker(partition.leader?)?;
    let listener = broker.listeners.first()?;
    Some(Coordinator {
        key,
        node_id: broker.node.0,
        host: &listener.host,
        port: i32::from(listener.port),
        error_code: ErrorCode::None.code(),
        error_message: None,
    })
}

fn none(key: &str, code: ErrorCode) -> Coordinator<'_> {
    Coordinator {
        key,
        node_id: -1,
        host: "",
        port: -1,
        error_code: code.code(),
        error_message: Some(code.name()),
    }
}
