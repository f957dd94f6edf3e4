//! How fast compaction may go: `log.cleaner.io.max.bytes.per.second`, and short rests for the shard's other work.
//!
//! A shard's tasks share one thread, and the ring is looked at when none of them is ready. So compaction never computes for
//! long: after so many bytes without an I/O of its own it sleeps for a moment, which lets everybody else run.

use std::time::Duration;

use crate::disk::Disk;

/// Bytes that are worked on before others are let in: some hundred microseconds.
const BYTES_WITHOUT_REST: usize = 128 << 10;
/// Enough for the thread to go through its other tasks.
const REST: Duration = Duration::from_micros(50);
/// Longest sleep at a time: whoever waits for compaction to leave a partition waits no longer.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// The pace of one pass.
pub(super) struct Pace<D: Disk> {
    disk: D,
    /// Bytes per second.
    rate: f64,
    since: Duration,
    bytes: f64,
    unrested: usize,
}

impl<D: Disk> Pace<D> {
    pub(super) fn new(disk: &D, bytes_per_second: f64) -> Pace<D> {
        let since = disk.monotonic();
        Pace { disk: disk.clone(), rate: bytes_per_second.max(1.0), since, bytes: 0.0, unrested: 0 }
    }

    /// So many bytes were read or written. Returns whether the pass is ahead of its time, by how much to sleep now;
    /// sleep, see whether the pass still has a point, and ask again with 0.
    pub(super) fn ahead(&mut self, bytes: usize) -> Option<Duration> {
        self.bytes += bytes as f64;
        let due = self.bytes / self.rate;
        let spent = self.disk.monotonic().saturating_sub(self.since).as_secs_f64();
        // Time that was lost is not made up for: the bound is on every moment, not on the mean.
        if spent > due {
            (self.since, self.bytes) = (self.disk.monotonic(), 0.0);
            return None;
        }
        let ahead = Duration::from_secs_f64((due - spent).min(SLEEP_MAX.as_secs_f64()));
        (ahead > REST).then_some(ahead)
    }

    /// So many bytes were looked at. Rests when that was enough.
    pub(super) async fn worked(&mut self, bytes: usize) {
        self.unrested += bytes;
        if self.unrested >= BYTES_WITHOUT_REST {
            self.unrested = 0;
            self.disk.sleep(REST).await;
        }
    }
}
