//! What retention may delete: whole segments from the oldest on, all of it below the high watermark
//! (`UnifiedLog.deleteOldSegments` of Kafka).

use super::Log;
use crate::config::LogConfig;
use crate::types::Offset;

/// Which rule lets a segment go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `retention.ms`.
    Time,
    /// `retention.bytes`.
    Size,
    /// It lies below the log start (DeleteRecords).
    LogStart,
}

/// What may be deleted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletable {
    /// How many segments, from the oldest.
    pub segments: usize,
    /// Where the log starts then.
    pub log_start: Offset,
    /// Whether the active segment is among them: then an empty one must be rolled first.
    pub roll: bool,
    /// The rule that let the last of them go.
    pub reason: Reason,
}

impl Log {
    /// What may be deleted at this moment. `None` when nothing may.
    pub fn deletable(&self, now_ms: i64, config: &LogConfig, high_watermark: Offset) -> Option<Deletable> {
        let segments = self.segments();
        let mut excess =
            self.size().saturating_sub(u64::try_from(config.retention_bytes).unwrap_or(u64::MAX));
        let mut count: usize = 0;
        let mut reason = Reason::Time;
        for (index, segment) in segments.iter().enumerate() {
            let end = segments.get(index + 1).map_or(self.log_end(), |next| next.base_offset);
            let last = index + 1 == segments.len();
            if end > high_watermark || (last && segment.size == 0) {
                break;
            }
            let by_start = !last && end <= self.log_start();
            let time = if segment.max_timestamp >= 0 { segment.max_timestamp } else { segment.created_ms };
            let by_time = config.cleanup_policy.delete
                && config.retention_ms >= 0
                && now_ms.saturating_sub(time) > config.retention_ms;
            let by_size = config.cleanup_policy.delete
                && config.retention_bytes >= 0
                && excess >= segment.size
                && segment.size > 0;
            reason = match (by_start, by_time, by_size) {
                (true, ..) => Reason::LogStart,
                (_, true, _) => Reason::Time,
                (_, _, true) => Reason::Size,
                _ => break,
            };
            if by_size {
                excess -= segment.size;
            } else {
                excess = excess.saturating_sub(segment.size);
            }
            count += 1;
        }
        let last = count.checked_sub(1)?;
        let end = segments.get(last + 1).map_or(self.log_end(), |next| next.base_offset);
        Some(Deletable {
            segments: count,
            log_start: end.max(self.log_start()),
            roll: count == segments.len(),
            reason,
        })
    }
}
