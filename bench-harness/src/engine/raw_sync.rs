//! Bare writes beside the load: 4 KiB, durable when the write returns, on the disk of the broker's data, at the same time as
//! the load and by the clock. So a result says by itself what the disk gave while it was measured, and latencies of a broker
//! that syncs can be stated as a multiple of it.
//!
//! Few, so that they disturb little: a broker that syncs all the time makes hundreds or thousands of such writes a second.

use super::{Control, Effort, Plan, Report, Tally};
use crate::limits::SyncedFile;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// Fifty a second: after 20 s their p99 is the tenth slowest.
const INTERVAL: Duration = Duration::from_millis(20);
const SECOND_NS: u64 = 1_000_000_000;

/// Runs beside the other threads, and tells what they tell.
pub(crate) fn run_raw_sync(
    plan: &Plan,
    control: &Control,
    folder: &Path,
    part: usize,
    reports: &Sender<Report>,
) {
    let file = match SyncedFile::create(folder) {
        Ok(file) => file,
        Err(failure) => return drop(reports.send(Report::Failed(failure))),
    };
    let _ = reports.send(Report::Ready);
    let start = loop {
        match control.start_at.get() {
            Some(start) => break *start,
            None if control.is_abandoned() => return,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let warmup_ns = plan.warmup.as_nanos() as u64;
    let mut due_ns = warmup_ns;
    let mut tally = Tally::default();
    for second in 0.. {
        let ends_ns = warmup_ns + (second + 1) * SECOND_NS;
        while due_ns < ends_ns.min(control.end_ns()) && !control.is_abandoned() {
            let due = start + Duration::from_nanos(due_ns);
            let wait = due.checked_duration_since(Instant::now());
            std::thread::sleep(wait.unwrap_or_default());
            // What was due while the one before it took its time has waited for it; waking up late is not the disk's.
            let from = if wait.is_some() { Instant::now() } else { due };
            match file.write() {
                Ok(bytes) => {
                    tally.time(from.elapsed().as_nanos() as u64);
                    tally.requests += 1;
                    tally.bytes += bytes;
                }
                Err(failure) => return drop(reports.send(Report::Failed(failure))),
            }
            due_ns += INTERVAL.as_nanos() as u64;
        }
        let mut tallies = vec![Tally::default(); plan.parts.len()];
        tallies[part] = std::mem::take(&mut tally);
        let _ = reports.send(Report::Interval { second, tallies });
        if due_ns >= control.end_ns() || control.is_abandoned() {
            break;
        }
    }
    let _ = reports.send(Report::Produced { acknowledged: Default::default(), unsent: 0 });
    let _ = reports.send(Report::Done { received: Vec::new(), effort: Effort::default() });
}
