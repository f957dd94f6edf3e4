//! The settings of topics: those of Kafka 4.3, sorted by name, with the settings of brokers that they
//! fall back to.

use super::setting::{Bounds, Setting};

/// Every codec that a broker can be told to store in.
pub(super) const COMPRESSION_TYPES: &[&str] = &["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"];
pub(super) const CLEANUP_POLICIES: &[&str] = &["compact", "delete"];
pub(super) const TIMESTAMP_TYPES: &[&str] = &["CreateTime", "LogAppendTime"];

/// Smallest segment that may be asked for; Kafka's bound since 4.2.
pub(super) const SEGMENT_BYTES_MIN: i64 = 1024 * 1024;

/// All settings of topics, sorted by name.
pub const TOPIC_SETTINGS: &[Setting] = &[
    Setting::list(
        "cleanup.policy",
        "delete",
        "What becomes of old segments: deleted by age and size, compacted to the last record of each key, \
         both, or (when empty) kept for ever.",
    )
    .bounds(Bounds::OneOf(CLEANUP_POLICIES)),
    Setting::int("compression.gzip.level", "-1", "Level used when the broker itself compresses with gzip.")
        .bounds(Bounds::BetweenOrMinusOne(1, 9))
        .ignored(),
    Setting::int("compression.lz4.level", "9", "Level used when the broker itself compresses with lz4.")
        .bounds(Bounds::Between(1, 17))
        .ignored(),
    Setting::string(
        "compression.type",
        "producer",
        "Codec in which batches are stored; 'producer' keeps each as it came.",
    )
    .bounds(Bounds::OneOf(COMPRESSION_TYPES)),
    Setting::int("compression.zstd.level", "3", "Level used when the broker itself compresses with zstd.")
        .bounds(Bounds::Between(-131_072, 22))
        .ignored(),
    Setting::long(
        "delete.retention.ms",
        "86400000",
        "How long a compacted topic keeps the marker that a key was deleted.",
    )
    .at_least(0),
    Setting::long(
        "file.delete.delay.ms",
        "60000",
        "How long the directory of a deleted partition stays before it is removed.",
    )
    .at_least(0),
    Setting::long(
        "flush.messages",
        "1",
        "Records after which the log is synced. 1: every record is on disk before it is acknowledged. More: \
         it is acknowledged before that, and the last ones may be lost with the machine.",
    )
    .at_least(1),
    Setting::long(
        "flush.ms",
        "9223372036854775807",
        "Longest time until a record is synced, where flush.messages lets it wait.",
    )
    .at_least(0),
    Setting::list(
        "follower.replication.throttled.replicas",
        "",
        "Replicas whose catching up is throttled on the follower's side: '*', or partition:broker pairs.",
    )
    .bounds(Bounds::ThrottledReplicas)
    .ignored(),
    Setting::int("index.interval.bytes", "4096", "Bytes of log between two entries of the offset index.")
        .at_least(0),
    Setting::list(
        "leader.replication.throttled.replicas",
        "",
        "Replicas whose catching up is throttled on the leader's side: '*', or partition:broker pairs.",
    )
    .bounds(Bounds::ThrottledReplicas)
    .ignored(),
    Setting::long(
        "local.retention.bytes",
        "-2",
        "Size kept on local disk when older segments are in remote storage; -2 means retention.bytes.",
    )
    .at_least(-2)
    .ignored(),
    Setting::long(
        "local.retention.ms",
        "-2",
        "Age kept on local disk when older segments are in remote storage; -2 means retention.ms.",
    )
    .at_least(-2)
    .ignored(),
    Setting::long(
        "max.compaction.lag.ms",
        "9223372036854775807",
        "Longest time that a record of a compacted topic stays out of compaction.",
    )
    .at_least(1),
    Setting::int(
        "max.message.bytes",
        "1048588",
        "Largest record batch accepted, as it arrives (compressed).",
    )
    .at_least(0),
    Setting::long(
        "message.timestamp.after.max.ms",
        "3600000",
        "How far a record's timestamp may lie in the broker's future; beyond, the batch is refused.",
    )
    .at_least(0),
    Setting::long(
        "message.timestamp.before.max.ms",
        "9223372036854775807",
        "How far a record's timestamp may lie in the broker's past; beyond, the batch is refused.",
    )
    .at_least(0),
    Setting::string(
        "message.timestamp.type",
        "CreateTime",
        "Whether a record bears the producer's time or the broker's time of append.",
    )
    .bounds(Bounds::OneOf(TIMESTAMP_TYPES)),
    Setting::double(
        "min.cleanable.dirty.ratio",
        "0.5",
        "Share of a compacted log that must be uncompacted before compaction is worth it.",
    )
    .bounds(Bounds::Ratio),
    Setting::long(
        "min.compaction.lag.ms",
        "0",
        "Shortest time that a record of a compacted topic stays out of compaction.",
    )
    .at_least(0),
    Setting::int(
        "min.insync.replicas",
        "1",
        "In-sync replicas without which a produce with acks=all is refused.",
    )
    .at_least(1),
    Setting::boolean(
        "preallocate",
        "false",
        "Whether a segment's space is taken at once. Flumen always allocates ahead of what it stages.",
    )
    .ignored(),
    Setting::boolean("remote.log.copy.disable", "false", "Stops copying of segments to remote storage.")
        .ignored(),
    Setting::boolean(
        "remote.log.delete.on.disable",
        "false",
        "Whether turning remote storage off removes what is there.",
    )
    .ignored(),
    Setting::boolean(
        "remote.storage.enable",
        "false",
        "Keeps old segments in remote storage; not available.",
    )
    .ignored(),
    Setting::long(
        "retention.bytes",
        "-1",
        "Size above which the oldest segments of a partition are deleted; -1 is no limit.",
    ),
    Setting::long(
        "retention.ms",
        "604800000",
        "Age above which segments are deleted, by their newest record; -1 is for ever.",
    )
    .at_least(-1),
    Setting::int("segment.bytes", "1073741824", "Size at which a segment is closed and a new one begun.")
        .at_least(SEGMENT_BYTES_MIN),
    Setting::int(
        "segment.index.bytes",
        "10485760",
        "Largest offset index of a segment; a full one closes it.",
    )
    .at_least(4),
    Setting::long(
        "segment.jitter.ms",
        "0",
        "Random time taken off segment.ms, so that segments do not all roll at once.",
    )
    .at_least(0)
    .ignored(),
    Setting::long("segment.ms", "604800000", "Age at which a segment is closed even when it is not full.")
        .at_least(1),
    Setting::boolean(
        "unclean.leader.election.enable",
        "false",
        "Whether a replica outside the ISR may become leader, which loses records.",
    ),
];

/// What a broker's value is multiplied with to become the topic's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// The value counts as it is.
    Same,
    /// Minutes, where the topic says milliseconds.
    Minutes,
    /// Hours, where the topic says milliseconds.
    Hours,
}

impl Unit {
    /// The value in the topic's unit. Kafka's bounds keep hours in 32 bits; it saturates.
    pub fn convert(self, value: &str) -> String {
        let factor = match self {
            Unit::Same => return value.to_owned(),
            Unit::Minutes => 60 * 1000,
            Unit::Hours => 60 * 60 * 1000,
        };
        match value.parse::<i64>() {
            // -1 says "no limit" in any unit.
            Ok(number) if number < 0 => "-1".to_owned(),
            Ok(number) => number.saturating_mul(factor).to_string(),
            Err(_) => value.to_owned(),
        }
    }
}

/// A broker setting that a topic setting falls back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicSynonym {
    /// The broker setting.
    pub name: &'static str,
    /// In which unit it counts.
    pub unit: Unit,
}

/// The broker settings that stand behind a topic setting, the strongest first. Empty where there is none.
pub fn topic_synonyms(topic_setting: &str) -> &'static [TopicSynonym] {
    macro_rules! synonyms {
        ($($name:literal $unit:ident),+) => { &[$(TopicSynonym { name: $name, unit: Unit::$unit }),+] };
    }
    match topic_setting {
        "cleanup.policy" => synonyms!("log.cleanup.policy" Same),
        "compression.gzip.level" => synonyms!("compression.gzip.level" Same),
        "compression.lz4.level" => synonyms!("compression.lz4.level" Same),
        "compression.type" => synonyms!("compression.type" Same),
        "compression.zstd.level" => synonyms!("compression.zstd.level" Same),
        "delete.retention.ms" => synonyms!("log.cleaner.delete.retention.ms" Same),
        "file.delete.delay.ms" => synonyms!("log.segment.delete.delay.ms" Same),
        "flush.messages" => synonyms!("log.flush.interval.messages" Same),
        "flush.ms" => synonyms!("log.flush.interval.ms" Same, "log.flush.scheduler.interval.ms" Same),
        "index.interval.bytes" => synonyms!("log.index.interval.bytes" Same),
        "local.retention.bytes" => synonyms!("log.local.retention.bytes" Same),
        "local.retention.ms" => synonyms!("log.local.retention.ms" Same),
        "max.compaction.lag.ms" => synonyms!("log.cleaner.max.compaction.lag.ms" Same),
        "max.message.bytes" => synonyms!("message.max.bytes" Same),
        "message.timestamp.after.max.ms" => synonyms!("log.message.timestamp.after.max.ms" Same),
        "message.timestamp.before.max.ms" => synonyms!("log.message.timestamp.before.max.ms" Same),
        "message.timestamp.type" => synonyms!("log.message.timestamp.type" Same),
        "min.cleanable.dirty.ratio" => synonyms!("log.cleaner.min.cleanable.ratio" Same),
        "min.compaction.lag.ms" => synonyms!("log.cleaner.min.compaction.lag.ms" Same),
        "min.insync.replicas" => synonyms!("min.insync.replicas" Same),
        "preallocate" => synonyms!("log.preallocate" Same),
        "retention.bytes" => synonyms!("log.retention.bytes" Same),
        "retention.ms" => {
            synonyms!("log.retention.ms" Same, "log.retention.minutes" Minutes, "log.retention.hours" Hours)
        }
        "segment.bytes" => synonyms!("log.segment.bytes" Same),
        "segment.index.bytes" => synonyms!("log.index.size.max.bytes" Same),
        "segment.jitter.ms" => synonyms!("log.roll.jitter.ms" Same, "log.roll.jitter.hours" Hours),
        "segment.ms" => synonyms!("log.roll.ms" Same, "log.roll.hours" Hours),
        "unclean.leader.election.enable" => synonyms!("unclean.leader.election.enable" Same),
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::super::broker_setting;
    use super::*;

    /// What no override changes must be the same whichever way it is looked up.
    #[test]
    fn defaults_of_topics_and_of_their_synonyms_agree() {
        for setting in TOPIC_SETTINGS {
            let synonyms = topic_synonyms(setting.name);
            let default = synonyms.iter().find_map(|synonym| {
                let broker = broker_setting(synonym.name).expect("every synonym is a broker setting");
                broker.default.map(|value| synonym.unit.convert(value))
            });
            if !synonyms.is_empty() {
                assert_eq!(default.as_deref(), setting.default, "{}", setting.name);
            }
        }
    }

    #[test]
    fn units() {
        assert_eq!(Unit::Hours.convert("168"), "604800000");
        assert_eq!(Unit::Minutes.convert("-5"), "-1");
        assert_eq!(Unit::Hours.convert("9223372036854775807"), "9223372036854775807");
    }
}
