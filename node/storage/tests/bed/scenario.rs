//! What a seed means: sizes, thresholds, how many shards and lives, and which troubles.

use std::time::Duration;

use flumen_core::config::{CleanupPolicy, LogConfig};
use flumen_storage::sim::Random;

/// The trouble of a run, beside crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    /// The disk fills up and has space again.
    DiskFull,
    /// Writes and syncs of segments fail.
    Segments,
    /// Writes of the journal fail.
    Journal,
    /// Reads, opens and lists fail, in recovery too.
    Reads,
    /// Before the last life a bit flips somewhere on the disk.
    Corruption,
}

/// All that a run is made of, except the choices on the way.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) lives: u32,
    pub(crate) trouble: Trouble,
    pub(crate) partitions: usize,
    pub(crate) shards_max: u64,
    pub(crate) staged_bytes_max: usize,
    pub(crate) cache_bytes_max: usize,
    pub(crate) journal_file_bytes: u64,
    pub(crate) journal_files: usize,
    pub(crate) checkpoint_bytes: u64,
    pub(crate) checkpoint_interval: Duration,
    pub(crate) bulk_bytes_min: usize,
    /// Percent of batches that are bulk.
    pub(crate) bulk_percent: u64,
    /// Largest value of a batch that is not bulk.
    pub(crate) value_max: u64,
    /// Pauses of a producer between batches, at most.
    pub(crate) pause_micros_max: u64,
    /// Steps of I/O after which a life ends at the latest.
    pub(crate) steps_max: u64,
    /// Topics come and go.
    pub(crate) topics_change: bool,
    /// Some partitions are compacted.
    pub(crate) compacts: bool,
    pub(crate) dedupe_buffer_bytes: usize,
    pub(crate) compaction_bytes_per_second: f64,
    pub(crate) index_keep_bytes: u64,
    pub(crate) index_bytes_max: usize,
    pub(crate) removal_step_bytes: u64,
    /// How long a checkpoint's sync takes at least: fills go on beside it.
    pub(crate) sync_all_takes: Duration,
}

impl Scenario {
    pub(crate) fn new(seed: u64) -> Scenario {
        let mut random = Random::new(seed ^ 0x5ce0_a210);
        let r = &mut random;
        // Drawn apart: what a seed is without compaction stays what it was.
        let mut apart = Random::new(seed ^ 0x00c0_4bac);
        let trouble = match r.below(20) {
            0..=9 => Trouble::None,
            10 | 11 => Trouble::DiskFull,
            12..=14 => Trouble::Segments,
            15 | 16 => Trouble::Journal,
            17 => Trouble::Reads,
            _ => Trouble::Corruption,
        };
        Scenario {
            lives: r.between(2, 7) as u32,
            trouble,
            partitions: r.between(1, 6) as usize,
            shards_max: r.between(1, 3),
            staged_bytes_max: pick(r, &[64 << 10, 256 << 10, 4 << 20]),
            cache_bytes_max: pick(r, &[0, 32 << 10, 1 << 20]),
            journal_file_bytes: pick(r, &[64 << 10, 128 << 10, 512 << 10]) as u64,
            journal_files: r.between(1, 4) as usize,
            checkpoint_bytes: pick(r, &[16 << 10, 64 << 10, 512 << 10]) as u64,
            checkpoint_interval: Duration::from_millis(pick(r, &[5, 50, 1000]) as u64),
            bulk_bytes_min: pick(r, &[12 << 10, 24 << 10]),
            bulk_percent: pick(r, &[0, 5, 20]) as u64,
            value_max: pick(r, &[80, 1500, 9000]) as u64,
            pause_micros_max: pick(r, &[300, 2000, 20_000]) as u64,
            steps_max: pick(r, &[150, 600, 2500]) as u64,
            topics_change: r.chance(1, 3),
            compacts: seed % 4 == 3,
            dedupe_buffer_bytes: pick(&mut apart, &[1, 1 << 20]),
            compaction_bytes_per_second: pick(&mut apart, &[500_000, usize::MAX]) as f64,
            index_keep_bytes: pick(&mut apart, &[1, 8 << 10, usize::MAX]) as u64,
            index_bytes_max: pick(&mut apart, &[1, 4 << 10, 1 << 20]),
            removal_step_bytes: pick(&mut apart, &[1 << 10, 16 << 10, usize::MAX]) as u64,
            sync_all_takes: Duration::from_micros(pick(&mut apart, &[0, 2_000, 50_000]) as u64),
        }
    }

    /// Settings of one partition.
    pub(crate) fn log_config(&self, random: &mut Random) -> LogConfig {
        let mut config = LogConfig {
            segment_bytes: pick(random, &[10 << 10, 40 << 10, 300 << 10]) as u32,
            index_interval_bytes: pick(random, &[512, 4096]) as u32,
            max_message_bytes: 1 << 20,
            retention_ms: -1,
            retention_bytes: -1,
            flush_messages: 1,
            ..LogConfig::default()
        };
        if random.chance(1, 8) {
            config.flush_messages = i64::MAX;
            config.flush_ms = 20;
        }
        match random.below(6) {
            0 => config.retention_bytes = pick(random, &[0, 20 << 10, 60 << 10]) as i64,
            1 => config.retention_ms = pick(random, &[0, 50, 2000]) as i64,
            _ => {}
        }
        if random.chance(1, 8) {
            config.segment_ms = 30;
        }
        if self.compacts && config.is_durable_before_ack() && random.chance(2, 3) {
            let delete = config.retention_bytes >= 0 || config.retention_ms >= 0;
            config.cleanup_policy = CleanupPolicy { delete, compact: true };
            config.min_cleanable_dirty_ratio = 0.01;
            config.delete_retention_ms = pick(random, &[0, 60, 3000]) as i64;
            config.segment_bytes = pick(random, &[10 << 10, 20 << 10]) as u32;
            config.max_compaction_lag_ms = if random.chance(1, 3) { 50 } else { i64::MAX };
        }
        config
    }
}

fn pick(random: &mut Random, of: &[usize]) -> usize {
    of[random.index(of.len())]
}
