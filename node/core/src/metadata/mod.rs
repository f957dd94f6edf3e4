//! Cluster metadata: what topics, partitions, settings and nodes there are, and the controller's decisions.
//!
//! Decide, then replay (Kafka's variant of it):
//!
//! ```text
//!   request ──> Controller::*(&Image) ──> records + response        nothing has changed yet
//!                                            │
//!                              metadata log: append, sync           (node/storage, metadata_log)
//!                                            │
//!               Image::replay(record) <──────┘ ──> response leaves; the new Image goes to every shard
//! ```
//!
//! Invariants:
//! - replay alone changes an [`Image`], live and at start, so a restart ends in the same image;
//! - [`Image::snapshot`] replayed on an empty image gives the same image;
//! - an image is immutable once shared, and cheap to clone: its parts are shared until they change;
//! - no clock and no randomness: ids are arguments;
//! - which shard serves a partition is not metadata; it follows from the number of cores of that start.

mod configs;
mod controller;
mod image;
mod partitions;
mod placement;
mod record;
mod topic_name;
mod topics;

pub use configs::{AlterOp, ConfigChange, ResourceChanges};
pub use controller::{Controller, Decision, ProducerIdBlock, Refused};
pub use image::{Broker, Image, Partition, ReplayError, Topic};
pub use partitions::NewPartitions;
pub use record::{
    BrokerRegistration, ClusterId, ConfigResource, DirectoryId, Listener, PartitionChange, PartitionRecord,
    Record,
};
pub use topic_name::{check_topic_name, is_internal_topic};
pub use topics::{CreatedTopic, DeleteTopic, DeletedTopic, NewTopic};

pub use crate::limits::{
    OVERRIDES_MAX, PARTITIONS_MAX, PARTITIONS_PER_REQUEST_MAX, PARTITIONS_PER_TOPIC_MAX,
    PRODUCER_ID_BLOCK_LEN, TOPIC_NAME_BYTES_MAX,
};
