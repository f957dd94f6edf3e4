//! Answers of coordinators: owned, so that they may cross to the shard of the connection, which encodes them.

use std::sync::Arc;

use bytes::Bytes;
use flumen_wire::ErrorCode;

use super::consumer::{DescribedGroup, HeartbeatAnswer, Refused};
use crate::types::TopicId;

/// The answer to one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The request as a whole is refused. For those that have nothing to say but that it was done, this with
    /// [`ErrorCode::None`] says so: Heartbeat, DeleteGroups.
    Failed(ErrorCode),
    /// To JoinGroup.
    Joined(JoinAnswer),
    /// To SyncGroup.
    Synced(SyncAnswer),
    /// To LeaveGroup: for each member of the request.
    Left(Vec<ErrorCode>),
    /// To OffsetCommit: for each partition of the request, over all its topics.
    Committed(Vec<ErrorCode>),
    /// To OffsetFetch.
    Fetched(Vec<FetchedTopic>),
    /// To OffsetDelete: for each partition of the request, over all its topics.
    OffsetsDeleted(Vec<ErrorCode>),
    /// To DescribeGroups.
    Described(Result<GroupDescription, Refused>),
    /// To ListGroups: those of this coordinator.
    Listed(Vec<ListedGroup>),
    /// To ConsumerGroupHeartbeat.
    ConsumerHeartbeat(Result<HeartbeatAnswer, Refused>),
    /// To ConsumerGroupDescribe.
    ConsumerDescribed(Result<DescribedGroup, Refused>),
}

/// What a member hears of the generation that it is part of, or why it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinAnswer {
    /// Why not.
    pub error: ErrorCode,
    /// -1 with an error.
    pub generation_id: i32,
    /// The group's type of protocols.
    pub protocol_type: Option<Arc<str>>,
    /// The protocol that all members speak, by vote.
    pub protocol_name: Option<Arc<str>>,
    /// The leader's member id.
    pub leader: Arc<str>,
    /// The leader is to take the assignment that there is (KIP-814).
    pub skip_assignment: bool,
    /// The member's own id.
    pub member_id: Arc<str>,
    /// To the leader: all members.
    pub members: Vec<JoinedMember>,
}

/// A member, as its leader hears of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedMember {
    /// Its id.
    pub member_id: Arc<str>,
    /// Its static name (KIP-345).
    pub group_instance_id: Option<Arc<str>>,
    /// What it says to the chosen protocol.
    pub metadata: Bytes,
}

/// What a member is assigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncAnswer {
    /// The group's type of protocols.
    pub protocol_type: Option<Arc<str>>,
    /// The protocol of the generation.
    pub protocol_name: Option<Arc<str>>,
    /// What the leader has made for this member.
    pub assignment: Bytes,
}

/// Committed offsets of one topic, in the order of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedTopic {
    /// Its name.
    pub name: Arc<str>,
    /// Its identity when the offset was committed; [`TopicId::ZERO`] where that is not known.
    pub id: TopicId,
    /// Its partitions.
    pub partitions: Vec<FetchedPartition>,
}

/// The committed offset of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedPartition {
    /// The partition.
    pub partition: i32,
    /// The next offset to read; -1 where none was committed.
    pub offset: i64,
    /// -1 where it was not said.
    pub leader_epoch: i32,
    /// What the client put beside it.
    pub metadata: Arc<str>,
}

/// A classic group, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// Kafka's name of its state.
    pub state: &'static str,
    /// Empty where there never was one.
    pub protocol_type: Arc<str>,
    /// Of a stable group; else empty.
    pub protocol: Arc<str>,
    /// All members.
    pub members: Vec<DescribedMember>,
}

/// A member of a classic group, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedMember {
    /// Its id.
    pub member_id: Arc<str>,
    /// Its static name.
    pub group_instance_id: Option<Arc<str>>,
    /// The id that its client chose.
    pub client_id: Arc<str>,
    /// Where it is.
    pub client_host: Arc<str>,
    /// What it says to the protocol; of a stable group only.
    pub metadata: Bytes,
    /// What it is assigned.
    pub assignment: Bytes,
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedGroup {
    /// Its id.
    pub group_id: Arc<str>,
    /// Empty where there never was one.
    pub protocol_type: Arc<str>,
    /// Kafka's name of its state.
    pub state: &'static str,
    /// Kafka's name of its type.
    pub group_type: &'static str,
}
