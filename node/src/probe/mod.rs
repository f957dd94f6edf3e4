//! What a node tells of itself: counters and latencies of each shard, merged for Prometheus on request; and its log.
//!
//! Counters live on the shard that counts (no atomics); for `GET /metrics` each shard makes a [`Snapshot`], which
//! travels through the mailbox, and shard 0 merges and prints them.
pub mod histogram;
pub mod log;
pub mod snapshot;

pub use histogram::Histogram;
pub use log::Limit;
pub use snapshot::Snapshot;

use crate::runtime::Health;
use flumen_wire::ErrorCode;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

/// Counts up. Owned by one shard.
#[derive(Debug, Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// One more.
    pub fn one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.set(self.0.get().wrapping_add(count));
    }

    /// So far.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// API keys that are counted apart; the protocol's highest is below.
const API_KEYS: usize = 96;

/// What a shard counts of its clients. One for each shard, shared by its tasks.
#[derive(Default)]
pub struct ShardProbe {
    /// Connections closed for what the client sent.
    pub bad_peers: Counter,
    apis: RefCell<Vec<Option<Box<Api>>>>,
}

/// What is counted of one API.
#[derive(Default)]
struct Api {
    latency: Histogram,
    /// Requests by the first error of their answer. No more entries than there are error codes.
    errors: BTreeMap<ErrorCode, u64>,
}

impl ShardProbe {
    /// All at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// A request was answered: `latency` from its last byte read to its response handed to the kernel (or dropped, with
    /// acks=0); `error` is the first that the response tells.
    pub fn request(&self, api_key: i16, latency: Duration, error: ErrorCode) {
        let Some(index) = usize::try_from(api_key).ok().filter(|&index| index < API_KEYS) else { return };
        let mut apis = self.apis.borrow_mut();
        if apis.len() <= index {
            apis.resize_with(index + 1, || None);
        }
        let api = apis[index].get_or_insert_default();
        api.latency.record(latency);
        if !error.is_none() {
            *api.errors.entry(error).or_default() += 1;
        }
    }

    /// Writes what was counted, with the names of the APIs.
    pub fn report(&self, api_name: impl Fn(i16) -> &'static str, snapshot: &mut Snapshot) {
        let counters =
            [("flumen_bad_peers_total", "Connections closed for what the client sent.", &self.bad_peers)];
        for (name, help, counter) in counters {
            snapshot.counter(name, help, "", counter.get());
        }
        for (key, api) in self.apis.borrow().iter().enumerate() {
            let Some(api) = api else { continue };
            let labels = format!("api=\"{}\"", api_name(key as i16));
            for (error, count) in &api.errors {
                let labels = format!("{labels},error=\"{error}\"");
                let help = "Requests whose answer tells an error, by its first.";
                snapshot.counter("flumen_request_errors_total", help, &labels, *count);
            }
            snapshot.histogram("flumen_request_seconds", "From request to response.", &labels, &api.latency);
        }
    }
}

/// Writes what the watchdog has seen, by shard.
pub fn report_health(health: &[Health], snapshot: &mut Snapshot) {
    for (shard, health) in health.iter().enumerate() {
        let labels = format!("shard=\"{shard}\"");
        let counters = [
            ("flumen_polls_total", "Polls of tasks.", health.polls),
            (
                "flumen_stalls_total",
                "Polls that lasted 5 ms or more, waits for a core included.",
                health.stalls,
            ),
            ("flumen_rescues_total", "Times that a shard slept although it had work.", health.rescues),
            ("flumen_isolated_panics_total", "Panics of isolated tasks.", health.isolated_panics),
        ];
        for (name, help, value) in counters {
            snapshot.counter(name, help, &labels, value);
        }
        let stalled = health.stalled_us as f64 / 1e6;
        snapshot.real_counter("flumen_stalled_seconds_total", "Time in such polls.", &labels, stalled);
    }
}

/// Writes what the process uses.
pub fn report_process(snapshot: &mut Snapshot) {
    let usage = crate::sys::usage();
    let cpu = (usage.user_us + usage.system_us) as f64 / 1e6;
    snapshot.real_counter("process_cpu_seconds_total", "Processor time, user and system.", "", cpu);
    snapshot.gauge("process_resident_memory_bytes", "Resident memory.", "", usage.resident_bytes as f64);
    snapshot.gauge("process_open_fds", "Open file descriptors.", "", usage.open_files as f64);
    snapshot.gauge("flumen_uptime_seconds", "Since the start.", "", crate::runtime::uptime().as_secs_f64());
    snapshot.gauge(
        "flumen_info",
        "Which build runs.",
        concat!("version=\"", env!("CARGO_PKG_VERSION"), "\""),
        1.0,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shards_count_adds_up() {
        let name = |key| if key == 0 { "Produce" } else { "Fetch" };
        let mut merged = Snapshot::default();
        for _ in 0..2 {
            let probe = ShardProbe::new();
            probe.request(0, Duration::from_micros(100), ErrorCode::None);
            probe.request(1, Duration::from_millis(3), ErrorCode::OffsetOutOfRange);
            probe.request(-1, Duration::ZERO, ErrorCode::CorruptMessage);
            probe.request(i16::MAX, Duration::ZERO, ErrorCode::CorruptMessage);
            let mut snapshot = Snapshot::default();
            probe.report(name, &mut snapshot);
            merged.merge(snapshot);
        }
        report_health(&[Health { stalls: 2, stalled_us: 1_500_000, ..Health::default() }], &mut merged);
        report_process(&mut merged);
        let text = merged.to_text();
        for line in [
            "# TYPE flumen_request_errors_total counter",
            "flumen_request_errors_total{api=\"Fetch\",error=\"OFFSET_OUT_OF_RANGE\"} 2",
            "flumen_request_seconds_bucket{api=\"Produce\",le=\"0.000128\"} 2",
            "flumen_request_seconds_count{api=\"Fetch\"} 2",
            "flumen_stalls_total{shard=\"0\"} 2",
            "flumen_stalled_seconds_total{shard=\"0\"} 1.5",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
    }
}
