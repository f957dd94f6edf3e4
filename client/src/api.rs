//! Which response belongs to which request, and how new a version is used.

use flumen_wire::codec::{Decode, Message};
use flumen_wire::messages::*;

/// A request and the response that it gets.
pub trait Call: Message {
    /// What comes back.
    type Response<'a>: Decode<'a>;
    /// The newest version that is used. Lower than the newest there is where that addresses topics by id: by name, a
    /// topic that was made anew is found, and nothing has to be looked up.
    const NEWEST: i16 = Self::MAX_VERSION;
}

macro_rules! calls {
    ($($module:ident::$request:ident $(<$life:lifetime>)?, $back:ident::$response:ident $(<$place:lifetime>)? $(, $newest:literal)?;)*) => {
        $(impl$(<$life>)? Call for $module::$request$(<$life>)? {
            type Response<'a> = $back::$response$(<$place>)?;
            $(const NEWEST: i16 = $newest;)?
        })*
    };
}

calls! {
    api_versions_request::ApiVersionsRequest<'r>, api_versions_response::ApiVersionsResponse<'a>;
    metadata_request::MetadataRequest<'r>, metadata_response::MetadataResponse<'a>;
    produce_request::ProduceRequest<'r>, produce_response::ProduceResponse<'a>, 12;
    fetch_request::FetchRequest<'r>, fetch_response::FetchResponse<'a>, 12;
    list_offsets_request::ListOffsetsRequest<'r>, list_offsets_response::ListOffsetsResponse<'a>;
    init_producer_id_request::InitProducerIdRequest<'r>, init_producer_id_response::InitProducerIdResponse;
    find_coordinator_request::FindCoordinatorRequest<'r>, find_coordinator_response::FindCoordinatorResponse<'a>;
    join_group_request::JoinGroupRequest<'r>, join_group_response::JoinGroupResponse<'a>;
    sync_group_request::SyncGroupRequest<'r>, sync_group_response::SyncGroupResponse<'a>;
    heartbeat_request::HeartbeatRequest<'r>, heartbeat_response::HeartbeatResponse;
    leave_group_request::LeaveGroupRequest<'r>, leave_group_response::LeaveGroupResponse<'a>;
    offset_commit_request::OffsetCommitRequest<'r>, offset_commit_response::OffsetCommitResponse<'a>, 9;
    offset_fetch_request::OffsetFetchRequest<'r>, offset_fetch_response::OffsetFetchResponse<'a>, 9;
    describe_groups_request::DescribeGroupsRequest<'r>, describe_groups_response::DescribeGroupsResponse<'a>;
    consumer_group_describe_request::ConsumerGroupDescribeRequest<'r>,
        consumer_group_describe_response::ConsumerGroupDescribeResponse<'a>;
    list_groups_request::ListGroupsRequest<'r>, list_groups_response::ListGroupsResponse<'a>;
    delete_groups_request::DeleteGroupsRequest<'r>, delete_groups_response::DeleteGroupsResponse<'a>;
    create_topics_request::CreateTopicsRequest<'r>, create_topics_response::CreateTopicsResponse<'a>;
    delete_topics_request::DeleteTopicsRequest<'r>, delete_topics_response::DeleteTopicsResponse<'a>;
    create_partitions_request::CreatePartitionsRequest<'r>, create_partitions_response::CreatePartitionsResponse<'a>;
    describe_configs_request::DescribeConfigsRequest<'r>, describe_configs_response::DescribeConfigsResponse<'a>;
    incremental_alter_configs_request::IncrementalAlterConfigsRequest<'r>,
        incremental_alter_configs_response::IncrementalAlterConfigsResponse<'a>;
    describe_cluster_request::DescribeClusterRequest, describe_cluster_response::DescribeClusterResponse<'a>;
}

#[cfg(test)]
pub(crate) mod tests {
    /// An API that the peers of tests lack.
    pub(crate) type Lacking<'a> = super::join_group_request::JoinGroupRequest<'a>;
}
