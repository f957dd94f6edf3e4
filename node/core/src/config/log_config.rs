//! The settings of one topic as the log reads them: typed, complete, checked.

use super::resolve::Values;
use super::setting::{list_items, parse_boolean};
use flumen_wire::compression::Compression;

/// What becomes of old segments. Neither: they are kept for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanupPolicy {
    /// Deleted by age and size.
    pub delete: bool,
    /// Compacted to the last record of each key.
    pub compact: bool,
}

/// Whose clock a record's timestamp is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The broker's, when it appended.
    LogAppendTime,
}

/// All that a log needs to know of its topic's settings. Times in milliseconds, sizes in bytes; names are
/// the settings'.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct LogConfig {
    pub cleanup_policy: CleanupPolicy,
    /// The codec in which batches are stored; `None`: as they come.
    pub compression_type: Option<Compression>,
    pub delete_retention_ms: i64,
    pub file_delete_delay_ms: i64,
    /// Records after which the log is synced; 1 is durable before acknowledged.
    pub flush_messages: i64,
    pub flush_ms: i64,
    pub index_interval_bytes: u32,
    /// What of the log stays on local disk; where it is unset, `retention_bytes`.
    pub local_retention_bytes: i64,
    /// What of the log stays on local disk; where it is unset, `retention_ms`.
    pub local_retention_ms: i64,
    pub max_compaction_lag_ms: i64,
    /// Largest batch accepted, all of it counted.
    pub max_message_bytes: u32,
    pub message_timestamp_after_max_ms: i64,
    pub message_timestamp_before_max_ms: i64,
    pub message_timestamp_type: TimestampType,
    pub min_cleanable_dirty_ratio: f64,
    pub min_compaction_lag_ms: i64,
    pub min_insync_replicas: u32,
    /// -1 (or any negative number) is no limit.
    pub retention_bytes: i64,
    /// -1 is for ever.
    pub retention_ms: i64,
    pub segment_bytes: u32,
    pub segment_index_bytes: u32,
    pub segment_jitter_ms: i64,
    pub segment_ms: i64,
    pub unclean_leader_election_enable: bool,
}

impl LogConfig {
    pub(super) fn read(values: &impl Values) -> LogConfig {
        let retention_bytes = values.long("retention.bytes");
        let retention_ms = values.long("retention.ms");
        let local = |name, whole| match values.long(name) {
            -2 => whole,
            set => set,
        };
        LogConfig {
            cleanup_policy: cleanup_policy(&values.text("cleanup.policy")),
            compression_type: compression_type(values),
            delete_retention_ms: values.long("delete.retention.ms"),
            file_delete_delay_ms: values.long("file.delete.delay.ms"),
            flush_messages: values.long("flush.messages"),
            flush_ms: values.long("flush.ms"),
            index_interval_bytes: values.count("index.interval.bytes"),
            local_retention_bytes: local("local.retention.bytes", retention_bytes),
            local_retention_ms: local("local.retention.ms", retention_ms),
            max_compaction_lag_ms: values.long("max.compaction.lag.ms"),
            max_message_bytes: values.count("max.message.bytes"),
            message_timestamp_after_max_ms: values.long("message.timestamp.after.max.ms"),
            message_timestamp_before_max_ms: values.long("message.timestamp.before.max.ms"),
            message_timestamp_type: match values.text("message.timestamp.type").as_ref() {
                "LogAppendTime" => TimestampType::LogAppendTime,
                _ => TimestampType::CreateTime,
            },
            min_cleanable_dirty_ratio: values.text("min.cleanable.dirty.ratio").parse().unwrap_or(0.5),
            min_compaction_lag_ms: values.long("min.compaction.lag.ms"),
            min_insync_replicas: values.count("min.insync.replicas"),
            retention_bytes,
            retention_ms,
            segment_bytes: values.count("segment.bytes"),
            segment_index_bytes: values.count("segment.index.bytes"),
            segment_jitter_ms: values.long("segment.jitter.ms"),
            segment_ms: values.long("segment.ms"),
            unclean_leader_election_enable: parse_boolean(&values.text("unclean.leader.election.enable"))
                .unwrap_or(false),
        }
    }

    /// Whether a record must be synced before it is acknowledged.
    pub fn is_durable_before_ack(&self) -> bool {
        self.flush_messages == 1
    }

    /// Age at which a segment is closed: that of a compacted log in time for `max.compaction.lag.ms`.
    pub fn segment_ms_max(&self) -> i64 {
        match self.cleanup_policy.compact {
            true => self.segment_ms.min(self.max_compaction_lag_ms),
            false => self.segment_ms,
        }
    }
}

impl Default for LogConfig {
    /// The defaults of the tables.
    fn default() -> LogConfig {
        super::Settings::default().log_config(&super::Overrides::new())
    }
}

fn cleanup_policy(value: &str) -> CleanupPolicy {
    let has = |policy: &str| list_items(value).any(|item| item == policy);
    CleanupPolicy { delete: has("delete"), compact: has("compact") }
}

fn compression_type(values: &impl Values) -> Option<Compression> {
    match values.text("compression.type").as_ref() {
        "uncompressed" => Some(Compression::None),
        // `producer` is the name of no codec.
        name => Compression::from_name(name),
    }
}
