//! The settings of groups and committed offsets as their coordinator reads them: typed, complete, checked.

use super::resolve::{Settings, Values};
use super::setting::list_items;

/// The settings of groups. Names are the settings'; times in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct GroupConfig {
    pub consumer_assignment_interval_ms: u32,
    /// What a group may set instead: least and greatest.
    pub consumer_assignment_interval_bounds_ms: (u32, u32),
    pub consumer_assignors: Vec<String>,
    pub consumer_heartbeat_interval_ms: u32,
    /// What a group may set instead: least and greatest.
    pub consumer_heartbeat_interval_bounds_ms: (u32, u32),
    pub consumer_max_size: u32,
    pub consumer_migration_upgrade: bool,
    pub consumer_migration_downgrade: bool,
    pub consumer_session_timeout_ms: u32,
    /// What a group may set instead: least and greatest.
    pub consumer_session_timeout_bounds_ms: (u32, u32),
    pub initial_rebalance_delay_ms: u32,
    pub max_session_timeout_ms: i32,
    pub max_size: u32,
    pub min_session_timeout_ms: i32,
    /// `offset.metadata.max.bytes`.
    pub offset_metadata_bytes_max: u32,
    pub offsets_retention_check_interval_ms: u64,
    /// `offsets.retention.minutes`, in milliseconds.
    pub offsets_retention_ms: i64,
    pub offsets_topic_num_partitions: i32,
    pub offsets_topic_replication_factor: i16,
    pub offsets_topic_segment_bytes: u32,
}

impl GroupConfig {
    pub(super) fn read(values: &Settings) -> GroupConfig {
        let int = |name| i32::try_from(values.long(name)).unwrap_or(i32::MAX);
        let migration = values.text("group.consumer.migration.policy").into_owned();
        let bounds = |min, max| (values.count(min), values.count(max));
        GroupConfig {
            consumer_assignment_interval_ms: values.count("group.consumer.assignment.interval.ms"),
            consumer_assignment_interval_bounds_ms: bounds(
                "group.consumer.min.assignment.interval.ms",
                "group.consumer.max.assignment.interval.ms",
            ),
            consumer_assignors: list_items(&values.text("group.consumer.assignors"))
                .map(str::to_owned)
                .collect(),
            consumer_heartbeat_interval_ms: values.count("group.consumer.heartbeat.interval.ms"),
            consumer_heartbeat_interval_bounds_ms: bounds(
                "group.consumer.min.heartbeat.interval.ms",
                "group.consumer.max.heartbeat.interval.ms",
            ),
            consumer_max_size: values.count("group.consumer.max.size"),
            consumer_migration_upgrade: matches!(migration.as_str(), "upgrade" | "bidirectional"),
            consumer_migration_downgrade: matches!(migration.as_str(), "downgrade" | "bidirectional"),
            consumer_session_timeout_ms: values.count("group.consumer.session.timeout.ms"),
            consumer_session_timeout_bounds_ms: bounds(
                "group.consumer.min.session.timeout.ms",
                "group.consumer.max.session.timeout.ms",
            ),
            initial_rebalance_delay_ms: values.count("group.initial.rebalance.delay.ms"),
            max_session_timeout_ms: int("group.max.session.timeout.ms"),
            max_size: values.count("group.max.size"),
            min_session_timeout_ms: int("group.min.session.timeout.ms"),
            offset_metadata_bytes_max: values.count("offset.metadata.max.bytes"),
            offsets_retention_check_interval_ms: u64::from(
                values.count("offsets.retention.check.interval.ms"),
            ),
            offsets_retention_ms: values.long("offsets.retention.minutes").saturating_mul(60_000),
            offsets_topic_num_partitions: int("offsets.topic.num.partitions"),
            offsets_topic_replication_factor: i16::try_from(values.long("offsets.topic.replication.factor"))
                .unwrap_or(i16::MAX),
            offsets_topic_segment_bytes: values.count("offsets.topic.segment.bytes"),
        }
    }
}

impl Default for GroupConfig {
    fn default() -> GroupConfig {
        super::BrokerConfig::default().group
    }
}
