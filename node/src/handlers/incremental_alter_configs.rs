//! IncrementalAlterConfigs (key 44): settings one by one. KIP-339.

use std::rc::Rc;

use flumen_core::metadata::{ConfigChange, ResourceChanges};
use flumen_wire::messages::incremental_alter_configs_request::{
    AlterConfigsResource, IncrementalAlterConfigsRequest,
};
use flumen_wire::messages::incremental_alter_configs_response::{
    AlterConfigsResourceResponse, IncrementalAlterConfigsResponse,
};

use super::carried::{Carried, outcome, per_part};
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: IncrementalAlterConfigsRequest<'_> = request.body()?;
    let carried = Carried::new(request);
    let decided = shard.decide(move |controller| {
        let body: IncrementalAlterConfigsRequest<'_> = carried.body();
        let resources: Vec<ResourceChanges<'_>> = body.resources.iter().map(changes).collect();
        Ok(controller.incremental_alter_configs(&resources, body.validate_only))
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
    let body = IncrementalAlterConfigsResponse { responses, ..IncrementalAlterConfigsResponse::default() };
    request.respond(&body)
}

fn changes<'a>(resource: &AlterConfigsResource<'a>) -> ResourceChanges<'a> {
    let configs = resource.configs.iter();
    ResourceChanges {
        resource_type: resource.resource_type,
        resource_name: resource.resource_name,
        changes: configs
            .map(|config| ConfigChange {
                name: config.name,
                operation: config.config_operation,
                value: config.value,
            })
            .collect(),
    }
}
