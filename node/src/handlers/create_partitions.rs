//! CreatePartitions (key 37). KIP-195. The answer leaves when every shard serves the new partitions.

use std::collections::HashSet;
use std::rc::Rc;

use flumen_core::metadata::NewPartitions;
use flumen_core::types::NodeId;
use flumen_wire::messages::create_partitions_request::{CreatePartitionsRequest, CreatePartitionsTopic};
use flumen_wire::messages::create_partitions_response::{
    CreatePartitionsResponse, CreatePartitionsTopicResult,
};

use super::carried::{Carried, outcome, per_part};
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: CreatePartitionsRequest<'_> = request.body()?;
    let carried = Carried::with_timeout(request, body.timeout_ms);
    let decided = shard.decide(move |controller| {
        carried.check_in_time()?;
        let body: CreatePartitionsRequest<'_> = carried.body();
        let topics: Vec<NewPartitions<'_>> = body.topics.iter().map(new_partitions).collect();
        Ok(controller.create_partitions(&topics, body.validate_only))
    });
    let decided = per_part(decided.await, body.topics.len());
    let mut seen = HashSet::new();
    // A name that stands in the request twice is refused, once.
    let results = body
        .topics
        .iter()
        .zip(&decided)
        .filter(|(topic, _)| seen.insert(topic.name))
        .map(|(topic, decided)| {
            let (error_code, error_message) = outcome(decided);
            CreatePartitionsTopicResult { name: topic.name, error_code, error_message }
        })
        .collect();
    request.respond(&CreatePartitionsResponse { results, ..CreatePartitionsResponse::default() })
}

fn new_partitions<'a>(topic: &CreatePartitionsTopic<'a>) -> NewPartitions<'a> {
    let nodes = |ids: &[i32]| ids.iter().copied().map(NodeId).collect();
    let assignments = topic.assignments.as_deref();
    NewPartitions {
        name: topic.name,
        count: topic.count,
        assignments: assignments.map(|all| all.iter().map(|one| nodes(&one.broker_ids)).collect()),
    }
}
