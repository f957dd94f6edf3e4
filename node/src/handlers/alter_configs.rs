//! AlterConfigs (key 33), the old way: what a resource's request does not name goes back to what lies below. KIP-133.

use std::rc::Rc;

use flumen_core::metadata::{ConfigChange, ResourceChanges};
use flumen_wire::messages::alter_configs_request::{AlterConfigsRequest, AlterConfigsResource};
use flumen_wire::messages::alter_configs_response::{AlterConfigsResourceResponse, AlterConfigsResponse};

use super::carried::{Carried, outcome, per_part};
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: AlterConfigsRequest<'_> = request.body()?;
    let carried = Carried::new(request);
    let decided = shard.decide(move |controller| {
        let body: AlterConfigsRequest<'_> = carried.body();
        let resources: Vec<ResourceChanges<'_>> = body.resources.iter().map(changes).collect();
        Ok(controller.alter_configs(&resources, body.validate_only))
    });
    let decided = per_part(decided.await, body.resources.len());
    let responses = body.resources.iter().zip(&decided).map(|(resource, decided)| {
        let (error_code, error_message) = outcome(decided);
        AlterConfigsResourceResponse {
            error_code,
            error_message,
            resource_type: resource.resource_type,
            resource_name: resource.resource_name,
        }
    });
    let responses = responses.collect();
    request.respond(&AlterConfigsResponse { responses, ..AlterConfigsResponse::default() })
}

fn changes<'a>(resource: &AlterConfigsResource<'a>) -> ResourceChanges<'a> {
    let configs = resource.configs.iter();
    ResourceChanges {
        resource_type: resource.resource_type,
        resource_name: resource.resource_name,
        // All of them are set; the operation is not looked at.
        changes: configs
            .map(|config| ConfigChange { name: config.name, operation: 0, value: config.value })
            .collect(),
    }
}
