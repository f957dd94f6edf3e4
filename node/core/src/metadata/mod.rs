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

/// Most partitions that all topics together may have. Each costs memory on its shard, a directory and an
/// entry of every checkpoint.
pub const PARTITIONS_MAX: usize = 200_000;

/// Most partitions that one request may create; Kafka's bound.
pub const PARTITIONS_PER_REQUEST_MAX: usize = 10_000;

/// Most partitions of one topic: an index has at most five digits, so that directory names fit the file
/// system.
pub const PARTITIONS_PER_TOPIC_MAX: usize = 100_000;

/// Longest name of a topic; Kafka's bound: with a partition's number it must fit a file name.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// Most settings that one topic or broker may have. More than there are names.
pub const OVERRIDES_MAX: usize = 512;

/// Producer ids given to a node at a time; Kafka's number.
pub const PRODUCER_ID_BLOCK_LEN: i64 = 1_000;

const _: () = assert!(PARTITIONS_PER_REQUEST_MAX <= PARTITIONS_PER_TOPIC_MAX);
const _: () = assert!(PARTITIONS_PER_TOPIC_MAX <= PARTITIONS_MAX);
const _: () = assert!(TOPIC_NAME_BYTES_MAX + "-99999".len() <= 255);
const _: () = assert!(crate::config::TOPIC_SETTINGS.len() <= OVERRIDES_MAX);
const _: () = assert!(crate::config::BROKER_SETTINGS.len() <= OVERRIDES_MAX);
