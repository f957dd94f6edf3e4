//! One file per Kafka API: request in, response out.
//!
//! [`dispatch`] is called within a turn, for each frame, in the order in which they came. Produce puts its batches in
//! place right there; every other API runs as a task of its own, so that a slow one holds up nobody. Each request
//! takes its place in the connection's output first, so responses leave in order whatever finishes first.
//!
//! A handler is `async fn handle(shard, request) -> Result<Response, Refusal>`. It decodes its body from the
//! request's frame, which it borrows; a body that cannot be decoded ends the connection.

mod alter_configs;
mod api_versions;
pub(crate) mod authorized_operations;
mod carried;
mod consumer_group_describe;
mod consumer_group_heartbeat;
mod create_partitions;
mod create_topics;
mod delete_groups;
mod delete_records;
mod delete_topics;
mod describe_cluster;
mod describe_configs;
mod describe_groups;
mod describe_log_dirs;
mod describe_producers;
mod describe_topic_partitions;
pub(crate) mod fetch;
mod find_coordinator;
mod group;
mod heartbeat;
mod incremental_alter_configs;
pub(crate) mod init_producer_id;
mod join_group;
mod leave_group;
mod list_config_resources;
mod list_groups;
mod list_offsets;
mod metadata;
mod not_here;
mod offset_commit;
mod offset_delete;
mod offset_fetch;
mod offset_for_leader_epoch;
pub(crate) mod produce;
mod sync_group;

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use flumen_core::limits::PARTITIONS_MAX;
use flumen_wire::ApiKey;
use flumen_wire::api::{self, Unsupported};
use flumen_wire::codec::{Decode, DecodeError, Message, Reader, Writer};
use flumen_wire::frame::{RequestHeader, encode_response_within};

use crate::net::Flow;
use crate::net::connection::{Connection, Place, TASK_BYTES};
use crate::net::response::{RESPONSE_BYTES_MAX, Response};
use crate::runtime;
use crate::shard::Shard;

pub(crate) use api_versions::FEATURES;
pub(crate) use create_topics::new_topic_id;

/// A request under way.
pub(crate) struct Request {
    pub(crate) key: ApiKey,
    pub(crate) version: i16,
    pub(crate) correlation_id: i32,
    pub(crate) connection: Rc<Connection>,
    /// Where the response goes; `None` for a produce that wants none.
    pub(crate) place: Option<Place>,
    pub(crate) began: Duration,
    /// What it is taken to pin of its connection's share.
    pub(crate) pinned: usize,
    frame: Bytes,
    body_at: usize,
}

/// Why a request gets no response.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Its bytes are not what its header says.
    Malformed(DecodeError),
    /// Its connection is to be closed for this reason.
    Close(String),
}

impl From<DecodeError> for Refusal {
    fn from(error: DecodeError) -> Self {
        Refusal::Malformed(error)
    }
}

impl Request {
    /// Decodes the body, which borrows from the frame.
    pub(crate) fn body<'a, M: Decode<'a>>(&'a self) -> Result<M, DecodeError> {
        let mut reader = Reader::new(&self.frame[self.body_at..]);
        // Bytes behind the body are no fault, as in Kafka.
        M::decode(&mut reader, self.version)
    }

    /// What the client calls itself.
    pub(crate) fn client_id(&self) -> &str {
        let header = RequestHeader::decode(&mut Reader::new(&self.frame));
        header.ok().and_then(|header| header.client_id).unwrap_or_default()
    }

    /// Shares a part of the frame, such as a batch, without a copy.
    pub(crate) fn share(&self, part: &[u8]) -> Bytes {
        self.frame.slice_ref(part)
    }

    /// The response frame of a body without spliced records.
    pub(crate) fn respond<M: Message>(&self, body: &M) -> Result<Response, Refusal> {
        self.encode(body).map(Response::encoded)
    }

    /// The response frame of a body; what is spliced in is left out.
    fn encode<M: Message>(&self, body: &M) -> Result<Writer, Refusal> {
        let mut writer = Writer::new();
        let (id, version) = (self.correlation_id, self.version);
        encode_response_within(&mut writer, RESPONSE_BYTES_MAX, id, version, body)
            .map_err(|len| Refusal::Close(too_large(self.key, len)))?;
        Ok(writer)
    }

    /// Lets go of the frame's memory, which is shared with other requests.
    pub(crate) fn release_frame(&mut self) {
        self.frame = Bytes::new();
        self.body_at = 0;
    }
}

/// Most partitions that one request may name: more than there can be.
const PARTITIONS_NAMED_MAX: usize = 5 * PARTITIONS_MAX;

/// Refuses a request that names too many of something: each takes far more in memory, and in the answer, than in the request.
fn at_most(count: usize, max: usize, what: &str) -> Result<(), Refusal> {
    if count <= max {
        return Ok(());
    }
    Err(Refusal::Close(format!("{count} {what} in one request, where {max} are allowed")))
}

/// As [`at_most`], of partitions, listed by topic.
fn check_partitions<'a>(named: impl Iterator<Item = &'a Vec<i32>>) -> Result<(), Refusal> {
    at_most(named.map(Vec::len).sum(), PARTITIONS_NAMED_MAX, "partitions")
}

/// Takes one frame. What it starts goes on after the turn.
pub(crate) fn dispatch(shard: &Shard, connection: &Rc<Connection>, frame: Bytes) -> Flow {
    let mut reader = Reader::new(&frame);
    let header = match RequestHeader::decode(&mut reader) {
        Ok(header) => header,
        Err(error) => return Flow::Close(format!("a request header that cannot be read: {error}")),
    };
    let body_at = frame.len() - reader.remaining();
    let (version, correlation_id) = (header.api_version, header.correlation_id);
    let key = match api::accept(header.api_key, version) {
        Ok(key) => key,
        Err(Unsupported::Version(ApiKey::ApiVersions, _)) => {
            let place = connection.reserve();
            shard.net.answer(connection, place, api_versions::unsupported(correlation_id));
            return Flow::Continue;
        }
        Err(unsupported) => return Flow::Close(unsupported.to_string()),
    };
    let mut request = Request {
        key,
        version,
        correlation_id,
        connection: Rc::clone(connection),
        place: None,
        began: runtime::uptime(),
        pinned: frame.len().max(if key == ApiKey::Produce { 0 } else { TASK_BYTES }),
        frame,
        body_at,
    };
    shard.net.pin(connection, request.pinned);
    match key {
        ApiKey::Produce => produce::begin(shard, request),
        _ => {
            request.place = Some(connection.reserve());
            run(shard.shared(), request);
            Flow::Continue
        }
    }
}

/// Runs a handler as a task, and sends what it says.
fn run(shard: Rc<Shard>, request: Request) {
    runtime::spawn(request.key.name(), async move {
        let Some(place) = request.place else { unreachable!("reserved before") };
        let (key, began, connection) = (request.key, request.began, Rc::clone(&request.connection));
        let pinned = request.pinned;
        match may_be_large(key) {
            true => connection.turn(place).await,
            false => connection.room(place).await,
        }
        let handled = handle(&shard, request).await;
        shard.net.unpin(&connection, pinned);
        match handled {
            Ok(response) => {
                let error = response.error();
                shard.net.answer(&connection, place, response);
                shard.probe.request(key as i16, runtime::uptime().saturating_sub(began), error);
            }
            Err(refusal) => close(&shard, &connection, key, refusal),
        }
        shard.net.flush(&*shard);
    });
}

/// Ends the connection of a request that gets no response.
fn close(shard: &Shard, connection: &Rc<Connection>, key: ApiKey, refusal: Refusal) {
    let reason = match refusal {
        Refusal::Malformed(error) => format!("{} that cannot be read: {error}", key.name()),
        Refusal::Close(reason) => reason,
    };
    crate::net::Requests::complain(shard, connection.peer, &reason);
    shard.net.close(connection);
}

fn too_large(key: ApiKey, len: usize) -> String {
    format!("{} whose response would take {len} bytes, where {RESPONSE_BYTES_MAX} are allowed", key.name())
}

/// Whether few bytes may ask for many: of these a connection has one at a time.
fn may_be_large(key: ApiKey) -> bool {
    matches!(
        key,
        ApiKey::Metadata
            | ApiKey::ListOffsets
            | ApiKey::DescribeConfigs
            | ApiKey::DescribeLogDirs
            | ApiKey::DescribeProducers
            | ApiKey::DescribeTopicPartitions
            | ApiKey::DescribeGroups
            | ApiKey::ConsumerGroupDescribe
            | ApiKey::ListGroups
            | ApiKey::DeleteGroups
            | ApiKey::OffsetFetch
            | ApiKey::CreateAcls
            | ApiKey::DeleteAcls
            | ApiKey::ElectLeaders
            | ApiKey::DescribeUserScramCredentials
    )
}

async fn handle(shard: &Rc<Shard>, request: Request) -> Result<Response, Refusal> {
    let r = request;
    match r.key {
        ApiKey::Fetch => fetch::handle(shard, r).await,
        ApiKey::ListOffsets => list_offsets::handle(shard, &r).await,
        ApiKey::OffsetCommit => offset_commit::handle(shard, &r).await,
        ApiKey::OffsetFetch => offset_fetch::handle(shard, &r).await,
        ApiKey::FindCoordinator => find_coordinator::handle(shard, &r).await,
        ApiKey::JoinGroup => join_group::handle(shard, r).await,
        ApiKey::Heartbeat => heartbeat::handle(shard, &r).await,
        ApiKey::LeaveGroup => leave_group::handle(shard, &r).await,
        ApiKey::SyncGroup => sync_group::handle(shard, r).await,
        ApiKey::DescribeGroups => describe_groups::handle(shard, &r).await,
        ApiKey::ListGroups => list_groups::handle(shard, &r).await,
        ApiKey::DeleteGroups => delete_groups::handle(shard, &r).await,
        ApiKey::OffsetDelete => offset_delete::handle(shard, &r).await,
        ApiKey::ConsumerGroupHeartbeat => consumer_group_heartbeat::handle(shard, &r).await,
        ApiKey::ConsumerGroupDescribe => consumer_group_describe::handle(shard, &r).await,
        ApiKey::Metadata => metadata::handle(shard, &r).await,
        ApiKey::ApiVersions => api_versions::handle(shard, &r),
        ApiKey::CreateTopics => create_topics::handle(shard, &r).await,
        ApiKey::DeleteTopics => delete_topics::handle(shard, &r).await,
        ApiKey::DeleteRecords => delete_records::handle(shard, &r).await,
        ApiKey::InitProducerId => init_producer_id::handle(shard, &r).await,
        ApiKey::OffsetForLeaderEpoch => offset_for_leader_epoch::handle(shard, &r).await,
        ApiKey::DescribeConfigs => describe_configs::handle(shard, &r).await,
        ApiKey::AlterConfigs => alter_configs::handle(shard, &r).await,
        ApiKey::IncrementalAlterConfigs => incremental_alter_configs::handle(shard, &r).await,
        ApiKey::DescribeLogDirs => describe_log_dirs::handle(shard, &r).await,
        ApiKey::CreatePartitions => create_partitions::handle(shard, &r).await,
        ApiKey::DescribeCluster => describe_cluster::handle(shard, &r),
        ApiKey::DescribeProducers => describe_producers::handle(shard, &r).await,
        ApiKey::ListConfigResources => list_config_resources::handle(shard, &r),
        ApiKey::DescribeTopicPartitions => describe_topic_partitions::handle(shard, &r),
        ApiKey::DescribeAcls => not_here::describe_acls(&r),
        ApiKey::CreateAcls => not_here::create_acls(&r),
        ApiKey::DeleteAcls => not_here::delete_acls(&r),
        ApiKey::ElectLeaders => not_here::elect_leaders(shard, &r),
        ApiKey::ListPartitionReassignments => not_here::list_partition_reassignments(&r),
        ApiKey::DescribeClientQuotas => not_here::describe_client_quotas(&r),
        ApiKey::DescribeUserScramCredentials => not_here::describe_user_scram_credentials(&r),
        other => Err(Refusal::Close(format!("{} is not served", other.name()))),
    }
}
