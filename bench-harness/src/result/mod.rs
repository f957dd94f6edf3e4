//! The result of a run, as a versioned JSON document. It holds all that is needed to judge the run and to repeat it: the
//! whole setting after defaults and overrides, the machine, the broker, whether its figures may be believed, and the
//! whole histograms, so that results can be merged and percentiles drawn without averaging any.
//!
//! Units are in the names: `_ns`, `_s`, `_bytes`. Latencies are whole nanoseconds. `at_s` counts from the start of the
//! measured time (after warm-up).
//!
//! Invariants:
//! * What this version writes, it reads to an equal value. A document of a later version is refused, never half read;
//!   fields that are not known are passed over, so a version may add fields and stays readable.
//! * `summary` beside a histogram is derived from it and is there for readers without an HdrHistogram library. Nothing
//!   here computes with it.

#[cfg(test)]
pub(crate) mod fixture;

use crate::engine::{Amount, Driver};
use crate::failure::Failure;
use crate::limits::Limits;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What `format` says in the result of a run.
pub(crate) const RUN_FORMAT: &str = "flumen-bench run";
/// What `format_version` says at most. It is raised when a reader of the old one would be misled.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// A result larger than this is not one: an hour of ten parts is below 20 MB.
const DOCUMENT_BYTES_MAX: u64 = 256 << 20;

/// See the head of this file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunResult {
    /// [`RUN_FORMAT`].
    pub format: String,
    pub format_version: u32,
    pub tool: Tool,
    /// The name of the scenario, for headings; `setting` is what ran.
    pub scenario: String,
    /// The whole scenario, defaults and overrides included: what `rerun` runs.
    pub setting: serde_json::Value,
    /// The client that made the load: `flumen`, or `librdkafka` with its version.
    pub driver: String,
    /// How it was run, beside the scenario; none in results of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manner: Option<Manner>,
    /// The topics that were written to and read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topics: Option<TopicsSeen>,
    pub broker: Broker,
    /// Where the load was made: this machine, or one for each worker.
    pub machines: Vec<Machine>,
    /// Wall clock at the start of the measured time, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Of the measured time, without warm-up.
    pub duration_s: f64,
    pub verdict: Verdict,
    /// One for each kind of work; see [`PartKind`].
    pub parts: Vec<Part>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub integrity: Option<Integrity>,
    /// Of the generator itself, over all its machines.
    pub generator: Usage,
    /// Of the broker, when it runs on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_process: Option<BrokerProcess>,
    /// What this machine can do at most, when it was asked to measure that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Of the phases in which the broker was killed, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restarts: Vec<RestartSeen>,
    /// Of the phases in which that was looked at, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub growths: Vec<Growth>,
}

/// The broker was killed (`kill -9`) and started again at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RestartSeen {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// From the begin of the phase's measured time.
    pub killed_at_s: f64,
    /// From the kill until something that was sent after it was acknowledged. None: nothing ever was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_acknowledgement_ns: Option<u64>,
}

/// What was asked for beside the scenario: what `rerun` asks for again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manner {
    pub driver: Driver,
    /// Sockets by epoll instead of io_uring.
    #[serde(default)]
    pub epoll: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    #[serde(default)]
    pub raw_sync: bool,
    #[serde(default)]
    pub limits: bool,
}

/// The topics as they were, which may not be as the scenario would have made them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TopicsSeen {
    pub count: u32,
    /// Of all together.
    pub partitions: u64,
    /// How many of the topics were made for this run.
    pub made: u32,
}

/// By how much the logs grew in a phase, and by how much they should have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Growth {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// Records that were acknowledged, warm-up included.
    pub acknowledged: u64,
    /// Offsets that the logs have more than before.
    pub appended: u64,
    /// Acknowledged, and by how much logs grew too little: each partition for itself.
    pub missing: u64,
    /// By how much logs grew beyond what was acknowledged.
    pub surplus: u64,
}

/// The program that measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tool {
    pub version: String,
    /// Its arguments, the program's name first.
    pub command: Vec<String>,
}

/// The cluster that was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Broker {
    /// As given.
    pub addresses: Vec<String>,
    /// What is known of it, where `compare` started it: `flumen-node 0.1.0, ...`. Else none: nothing in the protocol says
    /// which version a broker is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    pub nodes: u32,
}

/// A machine, as it describes itself. Without its name or addresses: results are handed around.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// `Linux 6.12.9`.
    pub kernel: String,
    /// The distribution.
    pub os: String,
    pub architecture: String,
    pub cpu_model: String,
    /// Of these this process may use `cores_usable`.
    pub cores: u32,
    pub cores_usable: u32,
    pub memory_bytes: u64,
    pub clock_source: String,
    /// Below the folder that the run was told of (the broker's data where it is local), else the working folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// A hypervisor, where one shows itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<String>,
    /// How far this machine's clock may be off that of the first one; none for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_error_ns: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Disk {
    pub device: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    pub file_system: String,
    /// The kernel's name of what it believes the cache to be: `write back`, `write through`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_cache: Option<String>,
}

/// Whether the figures may be believed. All empty: they stand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// Why the run ended before its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<String>,
    /// Why the generator, not the broker, was the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator_limited: Option<String>,
    /// What has no latency in the histograms: percentiles are lower bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<String>,
    /// Why the run failed: records lost, duplicated or reordered; nothing acknowledged at all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
    /// What else a reader should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What is measured in a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PartKind {
    /// From the intended time of a record to its acknowledgement.
    Produce,
    /// From the intended time of a record to its receipt by a consumer.
    EndToEnd,
    /// Receiving alone; its latency is that of fetch requests.
    Fetch,
    /// From the intended time of a record to its leaving the generator: the generator's own error.
    Lateness,
    /// A bare synchronous write to the disk, at the same time as the load.
    RawSync,
    /// Opening a connection until the broker answers on it.
    Connect,
}

impl PartKind {
    /// Whether a broker had to do something for it.
    pub(crate) fn is_work(self) -> bool {
        !matches!(self, PartKind::Lateness | PartKind::RawSync)
    }
}

/// One kind of work, over the whole measured time and by the second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub kind: PartKind,
    /// What tells it from other parts of its kind: `tail`, `cold reader`. May be empty.
    #[serde(default)]
    pub name: String,
    /// The phase of the scenario, where it has several.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    pub requests: u64,
    pub records: u64,
    pub bytes: u64,
    /// Of these, what came back after the end of the measured time: the broker's process was not watched any more.
    #[serde(default, skip_serializing_if = "Amount::is_nothing")]
    pub late: Amount,
    /// Under Kafka's name of each error; `CONNECTION` for a broken one, `TIMEOUT` for no answer.
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
    /// None where nothing was timed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// How the end compares with the beginning, of a part that was measured for a minute or longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    /// Ascending, one for each second of the measured time, also where nothing happened. More, where answers came for long
    /// after it; fewer, where old data had been read before it was over.
    pub seconds: Vec<Second>,
}

/// The first sixth of the measured time beside the last one: of an hour, ten minutes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Drift {
    /// How long each is.
    pub length_s: u64,
    pub first: Summary,
    pub last: Summary,
}

/// A second of a part. What is in it is what came back in it: acknowledged, or received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Second {
    /// Its begin.
    pub at_s: f64,
    /// Shorter than a second at the end of a run.
    pub length_s: f64,
    pub requests: u64,
    pub records: u64,
    pub bytes: u64,
    pub errors: u64,
    /// Zero, as those below, where `requests` is.
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p99_9_ns: u64,
    pub max_ns: u64,
}

/// A whole histogram.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// In nanoseconds, HdrHistogram's V2 encoding, deflated, in base64: as in the lines of an interval log.
    pub histogram: String,
    pub summary: Summary,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub count: u64,
    pub min_ns: u64,
    pub mean_ns: f64,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p99_ns: u64,
    pub p99_9_ns: u64,
    pub p99_99_ns: u64,
    pub max_ns: u64,
}

/// What sequence numbers in the records showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Integrity {
    /// Acknowledged records that were looked for.
    pub checked: u64,
    /// Acknowledged, and not there where a consumer looked for them.
    pub lost: u64,
    /// Acknowledged, and not come to: a consumer was still behind when reading ended.
    #[serde(default)]
    pub unread: u64,
    /// Acknowledged, and deleted by the broker (retention) before a consumer came to them.
    #[serde(default)]
    pub deleted: u64,
    /// Received more than once, from different offsets.
    pub duplicated: u64,
    /// Given again to members of a group, from the same offset: after a rebalance that is as it must be.
    #[serde(default)]
    pub redelivered: u64,
    /// Received after a later one of the same producer and partition.
    pub reordered: u64,
}

/// What a process took of the machine during the measured time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub cpu_user_s: f64,
    pub cpu_system_s: f64,
    pub rss_bytes_max: u64,
    /// To and from the disk itself, as the kernel accounts it.
    pub disk_read_bytes: u64,
    pub disk_write_bytes: u64,
    /// Of all threads: waits, and losses of the core to another thread.
    pub context_switches_voluntary: u64,
    pub context_switches_involuntary: u64,
    /// Ascending, about one a second.
    pub seconds: Vec<UsageSecond>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct UsageSecond {
    pub at_s: f64,
    pub length_s: f64,
    /// User and system: 1.0 is one whole core.
    pub cores: f64,
    pub rss_bytes: u64,
    pub disk_read_bytes: u64,
    pub disk_write_bytes: u64,
}

/// The broker's process, and its CPU per unit of work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BrokerProcess {
    pub pid: u32,
    /// The kernel's name of it.
    pub name: String,
    /// The broker ended in the midst and another process took its place: figures are those of the parts seen.
    #[serde(default)]
    pub restarted: bool,
    pub usage: Usage,
    /// CPU seconds (user and system) per 10^9 bytes produced and fetched; none where there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_s_per_gb: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_record: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_request: Option<f64>,
}

impl RunResult {
    /// Reads and checks a result. What is not one is told apart from one that is of a later version.
    pub(crate) fn read(path: &Path) -> Result<RunResult, Failure> {
        RunResult::parse(&read_document(path)?, path)
    }

    pub(crate) fn parse(document: &[u8], path: &Path) -> Result<RunResult, Failure> {
        check_format(document, path, &[RUN_FORMAT])?;
        let result: RunResult = serde_json::from_slice(document).map_err(|e| unreadable(path, &e))?;
        result.check(path)?;
        Ok(result)
    }

    /// Whether its histograms can be decoded.
    pub(crate) fn check(&self, path: &Path) -> Result<(), Failure> {
        for latency in self.parts.iter().filter_map(|part| part.latency.as_ref()) {
            latency.decode().map_err(|reason| {
                Failure::Other(format!("{}: a histogram of it is damaged: {reason}", path.display()))
            })?;
        }
        Ok(())
    }

    /// Whole or not at all: a full disk leaves what was there.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        write_document(path, &serde_json::to_vec_pretty(self).map_err(|e| Failure::Other(e.to_string()))?)
    }

    /// The first part of a kind, which is the main one.
    pub(crate) fn part(&self, kind: PartKind) -> Option<&Part> {
        self.parts.iter().find(|part| part.kind == kind)
    }
}

impl Usage {
    /// Adds what was taken in a later stretch of time, which began at `from_s`.
    pub(crate) fn add_behind(&mut self, mut later: Usage, from_s: f64) {
        later.seconds.iter_mut().for_each(|second| second.at_s += from_s);
        self.seconds.append(&mut later.seconds);
        self.rss_bytes_max = self.rss_bytes_max.max(later.rss_bytes_max);
        self.add_totals(&later);
    }

    /// Adds what another process took in the same time. Seconds that begin at nearly the
    /// same time are added.
    pub(crate) fn add_beside(&mut self, other: Usage) {
        self.rss_bytes_max += other.rss_bytes_max;
        self.add_totals(&other);
        if self.seconds.is_empty() {
            self.seconds = other.seconds;
            return;
        }
        for (sum, one) in self.seconds.iter_mut().zip(other.seconds) {
            sum.cores += one.cores;
            sum.rss_bytes += one.rss_bytes;
            sum.disk_read_bytes += one.disk_read_bytes;
            sum.disk_write_bytes += one.disk_write_bytes;
        }
    }

    fn add_totals(&mut self, other: &Usage) {
        self.cpu_user_s += other.cpu_user_s;
        self.cpu_system_s += other.cpu_system_s;
        self.disk_read_bytes += other.disk_read_bytes;
        self.disk_write_bytes += other.disk_write_bytes;
        self.context_switches_voluntary += other.context_switches_voluntary;
        self.context_switches_involuntary += other.context_switches_involuntary;
    }
}

impl Integrity {
    pub(crate) fn add(&mut self, other: Integrity) {
        self.checked += other.checked;
        self.lost += other.lost;
        self.unread += other.unread;
        self.deleted += other.deleted;
        self.duplicated += other.duplicated;
        self.redelivered += other.redelivered;
        self.reordered += other.reordered;
    }
}

impl Part {
    /// What came back within the measured time.
    pub(crate) fn in_time(&self) -> Amount {
        Amount {
            requests: self.requests - self.late.requests.min(self.requests),
            records: self.records - self.late.records.min(self.records),
            bytes: self.bytes - self.late.bytes.min(self.bytes),
        }
    }

    /// Over how long it worked.
    pub(crate) fn length_s(&self) -> f64 {
        self.seconds.iter().map(|second| second.length_s).sum()
    }

    /// Records per second of that.
    pub(crate) fn records_per_s(&self) -> f64 {
        let length = self.length_s();
        if length > 0.0 { self.records as f64 / length } else { 0.0 }
    }

    pub(crate) fn bytes_per_s(&self) -> f64 {
        let length = self.length_s();
        if length > 0.0 { self.bytes as f64 / length } else { 0.0 }
    }
}

impl Latency {
    /// None for an empty histogram.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Option<Latency> {
        if histogram.is_empty() {
            return None;
        }
        let mut bytes = Vec::new();
        // Fails on counts beyond 2^63 and on a writer that fails: neither is here.
        V2DeflateSerializer::new().serialize(histogram, &mut bytes).ok()?;
        Some(Latency { histogram: BASE64_STANDARD.encode(bytes), summary: Summary::of(histogram) })
    }

    /// The histogram, or what is wrong with the text.
    pub(crate) fn decode(&self) -> Result<Histogram<u64>, String> {
        let bytes = BASE64_STANDARD.decode(&self.histogram).map_err(|error| error.to_string())?;
        Deserializer::new().deserialize(&mut bytes.as_slice()).map_err(|error| error.to_string())
    }
}

impl Summary {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Summary {
        Summary {
            count: histogram.len(),
            min_ns: histogram.min(),
            mean_ns: histogram.mean(),
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p99_9_ns: histogram.value_at_quantile(0.999),
            p99_99_ns: histogram.value_at_quantile(0.9999),
            max_ns: histogram.max(),
        }
    }
}

/// The bytes of a result, if there are not too many of them.
pub(crate) fn read_document(path: &Path) -> Result<Vec<u8>, Failure> {
    let size = std::fs::metadata(path).map_err(|error| Failure::io(path.display(), error))?.len();
    if size > DOCUMENT_BYTES_MAX {
        return Err(Failure::Other(format!("{}: {size} bytes are no result", path.display())));
    }
    std::fs::read(path).map_err(|error| Failure::io(path.display(), error))
}

/// Writes beside and renames, so that what was there stays until the new one is whole. What is no file (a pipe, a
/// terminal) is written to.
pub(crate) fn write_document(path: &Path, document: &[u8]) -> Result<(), Failure> {
    let is_special = std::fs::metadata(path).is_ok_and(|there| !there.is_file());
    if is_special {
        return std::fs::write(path, document).map_err(|error| Failure::io(path.display(), error));
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    std::fs::write(beside, document).and_then(|()| std::fs::rename(beside, path)).map_err(|error| {
        let _ = std::fs::remove_file(beside);
        Failure::io(path.display(), error)
    })
}

/// Which of `known` the document is, or why it can not be read here.
pub(crate) fn check_format<'a>(document: &[u8], path: &Path, known: &[&'a str]) -> Result<&'a str, Failure> {
    #[derive(Deserialize)]
    struct Head {
        format: String,
        format_version: u32,
    }
    let head: Head = serde_json::from_slice(document).map_err(|error| unreadable(path, &error))?;
    let Some(format) = known.iter().find(|one| **one == head.format) else {
        return Err(Failure::Other(format!(
            "{}: it is a {:?}, and wanted is {}",
            path.display(),
            head.format,
            known.join(" or ")
        )));
    };
    if head.format_version > FORMAT_VERSION {
        return Err(Failure::Other(format!(
            "{}: it is of format version {}; this flumen-bench reads up to {FORMAT_VERSION}",
            path.display(),
            head.format_version
        )));
    }
    Ok(format)
}

pub(crate) fn unreadable(path: &Path, error: &serde_json::Error) -> Failure {
    Failure::Other(format!("{}: not a result of flumen-bench: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(document: &serde_json::Value) -> Result<RunResult, String> {
        let bytes = serde_json::to_vec(document).expect("a document");
        RunResult::parse(&bytes, Path::new("r.json")).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = std::env::temp_dir().join(format!("flumen-bench-result-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("r.json");
        let mut result = fixture::run("flumen 0.1.0", 1, 1.0);
        result.verdict.partial = Some("Ctrl-C".to_owned());
        result.parts[0].errors.insert("NOT_LEADER_OR_FOLLOWER".to_owned(), 3);
        result.write(&path).expect("room");
        assert_eq!(RunResult::read(&path).expect("sound"), result);
        assert_eq!(std::fs::read_dir(&folder).expect("the folder").count(), 1, "nothing is left beside it");
        std::fs::remove_dir_all(&folder).expect("the folder");
    }

    #[test]
    fn a_histogram_survives_to_the_last_count() {
        let result = fixture::run("x", 1, 1.0);
        let latency = result.parts[0].latency.as_ref().expect("timed");
        let histogram = latency.decode().expect("sound");
        assert_eq!(histogram.len(), result.parts[0].records);
        assert_eq!(Summary::of(&histogram), latency.summary);
        assert_eq!(Latency::of(&histogram).expect("not empty").summary, latency.summary);
        assert_eq!(Latency::of(&Histogram::new(3).expect("sound bounds")), None);
    }

    #[test]
    fn fields_of_a_later_minor_writer_are_passed_over() {
        let mut document = serde_json::to_value(fixture::run("x", 1, 1.0)).expect("a document");
        document["something_new"] = serde_json::json!({ "a": 1 });
        assert!(parse(&document).is_ok());
    }

    #[test]
    fn what_is_no_result_is_refused_with_the_reason() {
        let sound = serde_json::to_value(fixture::run("x", 1, 1.0)).expect("a document");
        let with = |field: &str, value: serde_json::Value| {
            let mut document = sound.clone();
            *document.pointer_mut(field).expect("such a field") = value;
            parse(&document).expect_err("it is not sound")
        };
        assert!(with("/format", "something".into()).contains("wanted is flumen-bench run"));
        assert!(with("/format_version", 2.into()).contains("reads up to 1"));
        assert!(with("/parts/0/latency/histogram", "AAAA".into()).contains("damaged"));
        assert!(with("/parts/0/latency/histogram", "?".into()).contains("damaged"));
        assert!(with("/parts/0/requests", (-1).into()).contains("not a result"));
        assert!(parse(&serde_json::json!([])).expect_err("no object").contains("not a result"));
    }

    #[test]
    fn a_path_that_can_not_be_written_is_named() {
        let failure =
            fixture::run("x", 1, 1.0).write(Path::new("/nowhere/r.json")).expect_err("no such folder");
        assert!(matches!(&failure, Failure::Io(what, _) if what == "/nowhere/r.json"), "{failure:?}");
        let failure = write_document(Path::new("/dev/full"), b"document").expect_err("it is full");
        assert!(matches!(&failure, Failure::Io(what, _) if what == "/dev/full"), "{failure:?}");
    }
}
