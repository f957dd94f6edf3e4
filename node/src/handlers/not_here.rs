//! What tools ask of every Kafka, and what Kafka answers where none of it was set up: no authorizer (ACLs: keys 29 to 31), no
//! quotas (48), no users (50), no reassignments (46), and every leader the preferred one (43).

use std::rc::Rc;

use flumen_core::metadata::Image;
use flumen_wire::ErrorCode;
use flumen_wire::messages::create_acls_request::CreateAclsRequest;
use flumen_wire::messages::create_acls_response::{AclCreationResult, CreateAclsResponse};
use flumen_wire::messages::delete_acls_request::DeleteAclsRequest;
use flumen_wire::messages::delete_acls_response::{DeleteAclsFilterResult, DeleteAclsResponse};
use flumen_wire::messages::describe_acls_request::DescribeAclsRequest;
use flumen_wire::messages::describe_acls_response::DescribeAclsResponse;
use flumen_wire::messages::describe_client_quotas_request::DescribeClientQuotasRequest;
use flumen_wire::messages::describe_client_quotas_response::DescribeClientQuotasResponse;
use flumen_wire::messages::describe_user_scram_credentials_request::DescribeUserScramCredentialsRequest;
use flumen_wire::messages::describe_user_scram_credentials_response::{
    DescribeUserScramCredentialsResponse, DescribeUserScramCredentialsResult,
};
use flumen_wire::messages::elect_leaders_request::ElectLeadersRequest;
use flumen_wire::messages::elect_leaders_response::{
    ElectLeadersResponse, PartitionResult, ReplicaElectionResult,
};
use flumen_wire::messages::list_partition_reassignments_request::ListPartitionReassignmentsRequest;
use flumen_wire::messages::list_partition_reassignments_response::ListPartitionReassignmentsResponse;

use super::{Refusal, Request, at_most, check_partitions};
use crate::net::response::Response;
use crate::shard::Shard;

/// Most that one request may name: each takes more in the answer.
const NAMED_MAX: usize = 100_000;
const NO_AUTHORIZER: &str = "No Authorizer is configured.";

pub(super) fn describe_acls(request: &Request) -> Result<Response, Refusal> {
    let _: DescribeAclsRequest<'_> = request.body()?;
    request.respond(&DescribeAclsResponse {
        error_code: ErrorCode::SecurityDisabled.code(),
        error_message: Some(NO_AUTHORIZER),
        ..DescribeAclsResponse::default()
    })
}

pub(super) fn create_acls(request: &Request) -> Result<Response, Refusal> {
    let body: CreateAclsRequest<'_> = request.body()?;
    at_most(body.creations.len(), NAMED_MAX, "ACLs")?;
    let refused = |_| AclCreationResult {
        error_code: ErrorCode::SecurityDisabled.code(),
        error_message: Some(NO_AUTHORIZER),
    };
    let results = body.creations.iter().map(refused).collect();
    request.respond(&CreateAclsResponse { results, ..CreateAclsResponse::default() })
}

pub(super) fn delete_acls(request: &Request) -> Result<Response, Refusal> {
    let body: DeleteAclsRequest<'_> = request.body()?;
    at_most(body.filters.len(), NAMED_MAX, "filters")?;
    let refused = |_| DeleteAclsFilterResult {
        error_code: ErrorCode::SecurityDisabled.code(),
        error_message: Some(NO_AUTHORIZER),
        ..DeleteAclsFilterResult::default()
    };
    let filter_results = body.filters.iter().map(refused).collect();
    request.respond(&DeleteAclsResponse { filter_results, ..DeleteAclsResponse::default() })
}

pub(super) fn describe_client_quotas(request: &Request) -> Result<Response, Refusal> {
    let _: DescribeClientQuotasRequest<'_> = request.body()?;
    request.respond(&DescribeClientQuotasResponse {
        entries: Some(Vec::new()),
        ..DescribeClientQuotasResponse::default()
    })
}

pub(super) fn describe_user_scram_credentials(request: &Request) -> Result<Response, Refusal> {
    let body: DescribeUserScramCredentialsRequest<'_> = request.body()?;
    let users = body.users.unwrap_or_default();
    at_most(users.len(), NAMED_MAX, "users")?;
    let texts: Vec<String> = users
        .iter()
        .map(|user| format!("Attempt to describe a user credential that does not exist: {}", user.name))
        .collect();
    let unknown = users.iter().zip(&texts).map(|(user, text)| DescribeUserScramCredentialsResult {
        user: user.name,
        error_code: ErrorCode::ResourceNotFound.code(),
        error_message: Some(text),
        ..DescribeUserScramCredentialsResult::default()
    });
    let results = unknown.collect();
    request.respond(&DescribeUserScramCredentialsResponse {
        results,
        ..DescribeUserScramCredentialsResponse::default()
    })
}

pub(super) fn list_partition_reassignments(request: &Request) -> Result<Response, Refusal> {
    let _: ListPartitionReassignmentsRequest<'_> = request.body()?;
    request.respond(&ListPartitionReassignmentsResponse::default())
}

pub(super) fn elect_leaders(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: ElectLeadersRequest<'_> = request.body()?;
    let named = body.topic_partitions.iter().flatten();
    check_partitions(named.clone().map(|topic| &topic.partitions))?;
    let image = shard.image();
    let of_topic = |topic: &str, partitions: &[i32]| {
        partitions.iter().map(|partition| elected(&image, topic, *partition)).collect()
    };
    // Of all partitions none has anything to be said, as in Kafka.
    let results = named.map(|topic| ReplicaElectionResult {
        topic: topic.topic,
        partition_result: of_topic(topic.topic, &topic.partitions),
    });
    let replica_election_results = results.collect();
    request.respond(&ElectLeadersResponse { replica_election_results, ..ElectLeadersResponse::default() })
}

/// What comes of electing a leader where the only replica is it.
fn elected(image: &Image, topic: &str, partition_id: i32) -> PartitionResult<'static> {
    let known = image.topic(topic);
    let (code, text) = match known {
        None => (ErrorCode::UnknownTopicOrPartition, "No such topic as the one named."),
        Some(topic) if topic.partition(partition_id).is_none() => {
            (ErrorCode::UnknownTopicOrPartition, "No such partition as the one named.")
        }
        Some(_) => (ErrorCode::ElectionNotNeeded, "Leader election not needed for topic partition."),
    };
    PartitionResult { partition_id, error_code: code.code(), error_message: Some(text) }
}
