//! Scenarios: what load, for how long, on which topics. TOML in `scenarios/`, or a file of the user's; flags override.
//!
//! ```text
//!   scenario ── topic           made when it is not there, removed when it was made
//!          └── phases ── one after the other, each measured by itself
//!                   ├── producers ...   groups of connections that send
//!                   ├── consumers ...   groups of connections that read
//!                   ├── churn           connections that come and go
//!                   └── restart         the broker is killed in the midst
//! ```
//!
//! Invariants: a key that is not known is an error, never ignored; whatever [`Scenario::check`] lets pass can be run; the
//! whole setting, defaults included, is written into the result, and read back runs the same.

use crate::failure::Failure;
use flumen_wire::compression::Compression;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Scenarios that come with the program.
const BUILT_IN: &[(&str, &str)] = &[
    ("canonical", include_str!("../scenarios/canonical.toml")),
    ("throughput", include_str!("../scenarios/throughput.toml")),
    ("latency", include_str!("../scenarios/latency.toml")),
    ("unbatched", include_str!("../scenarios/unbatched.toml")),
    ("small-messages", include_str!("../scenarios/small-messages.toml")),
    ("many-partitions", include_str!("../scenarios/many-partitions.toml")),
    ("fan-out", include_str!("../scenarios/fan-out.toml")),
    ("catch-up", include_str!("../scenarios/catch-up.toml")),
    ("compression", include_str!("../scenarios/compression.toml")),
    ("connection-storm", include_str!("../scenarios/connection-storm.toml")),
    ("idle", include_str!("../scenarios/idle.toml")),
    ("restart", include_str!("../scenarios/restart.toml")),
    ("soak", include_str!("../scenarios/soak.toml")),
];

/// Bounds of what a scenario may ask for: above any sensible one, below what would exhaust the machine that runs it.
mod bounds {
    pub(super) const CONNECTIONS_MAX: u32 = 20_000;
    pub(super) const PARTITIONS_MAX: i32 = 200_000;
    pub(super) const TOPICS_MAX: u32 = 10_000;
    pub(super) const SECONDS_MAX: f64 = 7.0 * 86_400.0;
    pub(super) const RATE_MAX: f64 = 1e9;
    pub(super) const RECORD_BYTES_MAX: usize = 64 << 20;
    pub(super) const REQUEST_BYTES_MAX: usize = 100 << 20;
    pub(super) const IN_FLIGHT_MAX: usize = 1024;
    /// Partitions that all connections of a phase know of, each for itself: about a hundred bytes each.
    pub(super) const PLACES_MAX: u64 = 20_000_000;
}

/// See the head of this file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    #[serde(default)]
    pub name: String,
    /// What it is for, in a sentence.
    #[serde(default)]
    pub description: String,
    /// Of all that is drawn by lot: the same seed makes the same load.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// Threads that make the load; 0: half of the cores, so that a broker on the same machine has the rest.
    #[serde(default)]
    pub threads: usize,
    /// After so long without an answer a connection is given up.
    #[serde(default = "defaults::request_timeout")]
    pub request_timeout_s: f64,
    #[serde(default)]
    pub topic: TopicSettings,
    pub phases: Vec<Phase>,
}

/// The topics that are written to and read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TopicSettings {
    pub name: String,
    /// With more than one the name gets `-0`, `-1`, and so on.
    pub count: u32,
    /// Of each.
    pub partitions: i32,
    /// -1: as the broker has it.
    pub replication_factor: i16,
    /// Settings of the topic, under Kafka's names.
    pub configs: BTreeMap<String, String>,
    /// Whether topics that the run made stay when it is over.
    pub keep: bool,
    /// Whether topics that are not there are made.
    pub create: bool,
}

impl Default for TopicSettings {
    fn default() -> TopicSettings {
        TopicSettings {
            name: "flumen-bench".to_owned(),
            count: 1,
            partitions: 4,
            replication_factor: -1,
            configs: BTreeMap::new(),
            keep: false,
            create: true,
        }
    }
}

impl TopicSettings {
    pub(crate) fn names(&self) -> Vec<String> {
        match self.count {
            1 => vec![self.name.clone()],
            count => (0..count).map(|number| format!("{}-{number}", self.name)).collect(),
        }
    }
}

/// A stretch of time that is measured by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Phase {
    #[serde(default)]
    pub name: String,
    /// The time that is measured.
    pub seconds: f64,
    /// Before that.
    #[serde(default = "defaults::warmup")]
    pub warmup_seconds: f64,
    /// It is over earlier, as soon as so many bytes of values were acknowledged; looked at by the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub producers: Vec<Producers>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consumers: Vec<Consumers>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub churn: Option<Churn>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
}

/// The broker is killed (`kill -9`) and started again at once, as it was. It runs on this machine, under nothing that
/// would start it by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Restart {
    /// From the begin of the measured time.
    pub at_seconds: f64,
}

/// A group of connections that send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Producers {
    pub name: String,
    /// How many producers; each has a connection to each leader that it needs.
    pub count: u32,
    pub load: Load,
    /// Records per second of all together; of an open load.
    pub rate: f64,
    pub arrivals: Arrivals,
    /// Of a ramp: the rate at its end.
    pub rate_end: f64,
    /// Of bursts: how long one lasts. The rate holds on average, over burst and pause.
    pub burst_ms: f64,
    pub pause_ms: f64,
    /// Of a replay: a file with the time of each arrival on a line, in microseconds from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Requests that may be unanswered on a connection.
    pub in_flight: usize,
    pub acks: Acks,
    pub idempotent: bool,
    #[serde(with = "codec")]
    pub compression: Compression,
    pub partitioning: Partitioning,
    /// How many keys there are; 0: records have none.
    pub keys: u64,
    /// Exponent of Zipf's law over the keys; 0: all alike.
    pub key_skew: f64,
    /// How long a record waits for others that may share its request.
    pub linger_ms: f64,
    /// How large a batch gets, before compression.
    pub batch_bytes: usize,
    /// How many records a batch gets; 0: as many as fit. 1 is "unbatched".
    pub batch_records: usize,
    /// How large a request gets, unless one batch is larger.
    pub request_bytes: usize,
    /// How many batches a request gets, each of another partition; 0: as many as fit.
    pub request_batches: usize,
    pub payload: Payload,
}

impl Default for Producers {
    fn default() -> Producers {
        Producers {
            name: String::new(),
            count: 1,
            load: Load::Open,
            rate: 1000.0,
            arrivals: Arrivals::Constant,
            rate_end: 0.0,
            burst_ms: 100.0,
            pause_ms: 900.0,
            trace: None,
            in_flight: 5,
            acks: Acks::All,
            idempotent: false,
            compression: Compression::None,
            partitioning: Partitioning::RoundRobin,
            keys: 0,
            key_skew: 0.0,
            linger_ms: 0.0,
            batch_bytes: 64 << 10,
            batch_records: 0,
            request_bytes: 1 << 20,
            request_batches: 0,
            payload: Payload::default(),
        }
    }
}

/// When records are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Load {
    /// By the clock, whatever the broker does.
    Open,
    /// As soon as the broker has answered for earlier ones: as many as go.
    Closed,
}

/// How arrivals of an open load lie in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Arrivals {
    Constant,
    Poisson,
    Bursty,
    Ramp,
    Trace,
}

/// Who must have a record before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Acks {
    All,
    Leader,
    None,
}

impl Acks {
    pub(crate) fn code(self) -> i16 {
        match self {
            Acks::All => -1,
            Acks::Leader => 1,
            Acks::None => 0,
        }
    }
}

/// How batches are compressed, by the names of the codecs.
mod codec {
    use super::*;
    use serde::de::Error;

    pub(super) fn serialize<S: serde::Serializer>(
        codec: &Compression,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(codec.name())
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Compression, D::Error> {
        let name = String::deserialize(deserializer)?;
        Compression::from_name(&name).ok_or_else(|| D::Error::unknown_variant(&name, &Compression::NAMES))
    }
}

/// Which partition a record goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Partitioning {
    /// One after the other.
    RoundRobin,
    /// A whole batch to one, the next batch to the next one.
    Sticky,
    /// By lot.
    Random,
    /// By the hash of the key, as Kafka's clients do.
    Key,
}

/// What records hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Payload {
    pub content: Content,
    pub sizes: Sizes,
    /// Fixed: of each. Log-normal: the median.
    pub size: usize,
    /// Uniform: the least and the most. Log-normal: records are cut to these.
    pub size_min: usize,
    pub size_max: usize,
    /// Log-normal: the standard deviation of the logarithm.
    pub sigma: f64,
    /// Compressible: to what part of its size the content shrinks.
    pub ratio: f64,
    /// Lines: the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

impl Default for Payload {
    fn default() -> Payload {
        Payload {
            content: Content::Random,
            sizes: Sizes::Fixed,
            size: 1024,
            size_min: 64,
            size_max: 1 << 20,
            sigma: 1.0,
            ratio: 0.5,
            file: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Content {
    /// Does not compress.
    Random,
    Compressible,
    Lines,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Sizes {
    Fixed,
    Uniform,
    LogNormal,
}

/// A group of connections that read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Consumers {
    pub name: String,
    pub count: u32,
    /// Each reads everything, or they share a group.
    pub mode: Mode,
    pub from: From,
    /// How long the broker waits for `bytes_min`.
    pub wait_ms: u32,
    pub bytes_min: i32,
    /// Of one answer.
    pub bytes_max: i32,
    /// Of one partition in it.
    pub partition_bytes_max: i32,
    /// A pause before each fetch: a slow consumer.
    pub pause_ms: f64,
}

impl Default for Consumers {
    fn default() -> Consumers {
        Consumers {
            name: String::new(),
            count: 1,
            mode: Mode::Assign,
            from: From::Latest,
            wait_ms: 500,
            bytes_min: 1,
            bytes_max: 16 << 20,
            partition_bytes_max: 1 << 20,
            pause_ms: 0.0,
        }
    }
}

impl Consumers {
    pub(crate) fn pause(&self) -> Duration {
        Duration::from_secs_f64(self.pause_ms / 1e3)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// Each consumer reads all partitions.
    Assign,
    /// The consumers are members of one group.
    Group,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum From {
    Earliest,
    Latest,
}

/// Connections that come and go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Churn {
    /// Opened per second; each asks for the versions and for metadata.
    pub rate: f64,
    /// How long each stays open after that.
    #[serde(default)]
    pub hold_ms: f64,
    /// Connections that are opened before the warm-up and stay idle.
    #[serde(default)]
    pub idle: u32,
}

mod defaults {
    pub(super) fn seed() -> u64 {
        1
    }

    pub(super) fn request_timeout() -> f64 {
        30.0
    }

    pub(super) fn warmup() -> f64 {
        2.0
    }
}

/// Flags that override what the scenario says, in every phase.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Overrides {
    /// Seconds that each phase measures
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub seconds: Option<f64>,
    /// Seconds before that
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub warmup: Option<f64>,
    /// Records per second, of open loads
    #[arg(long, value_name = "RECORDS", allow_negative_numbers = true)]
    pub rate: Option<f64>,
    /// Topic to write to and read, which must be there: it is used as it is, and stays
    #[arg(long, value_name = "NAME")]
    pub topic: Option<String>,
    /// Make the topic if it is not there; what was made goes when the run is over
    #[arg(long)]
    pub create_topic: bool,
    /// Partitions of topics that are made
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub partitions: Option<i32>,
    /// Replicas of topics that are made
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub replication_factor: Option<i16>,
    /// Producers in each group of them
    #[arg(long, value_name = "COUNT")]
    pub producers: Option<u32>,
    /// Bytes of each record's value
    #[arg(long, value_name = "BYTES")]
    pub size: Option<usize>,
    /// Threads that make the load
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<usize>,
    /// Of all that is drawn by lot
    #[arg(long)]
    pub seed: Option<u64>,
    /// Any setting, as in `phases.0.producers.0.acks="leader"`, in TOML
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl Scenario {
    /// One that comes with the program, or a file.
    pub(crate) fn load(name: &str) -> Result<Scenario, Failure> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
            return Scenario::parse(text, name);
        }
        let path = Path::new(name);
        let looks_like_a_path = path.extension().is_some() || name.contains('/') || path.exists();
        if !looks_like_a_path {
            let known: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            let known = known.join(", ");
            return Err(Failure::Usage(format!("no scenario {name:?}; there are {known}, or give a file")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| Failure::io(name, error))?;
        let stem = path.file_stem().map_or(name.into(), |stem| stem.to_string_lossy());
        Scenario::parse(&text, &stem)
    }

    /// Name and description of those that come with the program.
    pub(crate) fn built_in() -> impl Iterator<Item = (&'static str, String)> {
        BUILT_IN.iter().map(|(name, text)| {
            let scenario = Scenario::parse(text, name);
            (*name, scenario.map(|one| one.description).unwrap_or_default())
        })
    }

    pub(crate) fn parse(text: &str, name: &str) -> Result<Scenario, Failure> {
        let mut scenario: Scenario =
            toml::from_str(text).map_err(|error| Failure::Usage(format!("scenario {name}: {error}")))?;
        if scenario.name.is_empty() {
            scenario.name = name.to_owned();
        }
        Ok(scenario)
    }

    /// Applies flags, and checks the whole.
    pub(crate) fn with(mut self, flags: &Overrides) -> Result<Scenario, Failure> {
        if !flags.set.is_empty() {
            self = self.with_set(&flags.set)?;
        }
        fn put<T: Clone>(place: &mut T, flag: &Option<T>) {
            if let Some(value) = flag {
                *place = value.clone();
            }
        }
        put(&mut self.topic.name, &flags.topic);
        self.topic.create = flags.create_topic || (self.topic.create && flags.topic.is_none());
        put(&mut self.topic.partitions, &flags.partitions);
        put(&mut self.topic.replication_factor, &flags.replication_factor);
        put(&mut self.threads, &flags.threads);
        put(&mut self.seed, &flags.seed);
        for phase in &mut self.phases {
            put(&mut phase.seconds, &flags.seconds);
            put(&mut phase.warmup_seconds, &flags.warmup);
            for producers in &mut phase.producers {
                put(&mut producers.rate, &flags.rate);
                put(&mut producers.count, &flags.producers);
                put(&mut producers.payload.size, &flags.size);
            }
        }
        self.check()?;
        Ok(self)
    }

    /// Sets single values by their path. The path must lead to a place that is there or could be there.
    fn with_set(self, pairs: &[String]) -> Result<Scenario, Failure> {
        let wrong = |pair: &str, why: &str| Failure::Usage(format!("--set {pair}: {why}"));
        let mut root = toml::Value::try_from(&self).map_err(|error| Failure::Other(error.to_string()))?;
        for pair in pairs {
            let (key, value) = pair.split_once('=').ok_or_else(|| wrong(pair, "give KEY=VALUE"))?;
            let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"));
            let value = match parsed {
                Ok(mut table) => table.remove("value").unwrap_or_else(|| value.into()),
                // A word without quotes is a word.
                Err(_) => value.trim().into(),
            };
            let mut place = &mut root;
            let mut steps = key.trim().split('.').peekable();
            while let Some(step) = steps.next() {
                let is_last = steps.peek().is_none();
                let missing = || wrong(pair, &format!("there is no {step:?}"));
                place = match place {
                    toml::Value::Table(table) => match is_last {
                        true => table.entry(step).or_insert(toml::Value::Boolean(false)),
                        false => table.get_mut(step).ok_or_else(missing)?,
                    },
                    toml::Value::Array(items) => {
                        let index = step.parse::<usize>().ok();
                        index.and_then(|index| items.get_mut(index)).ok_or_else(missing)?
                    }
                    _ => return Err(wrong(pair, &format!("nothing is below {step:?}"))),
                };
            }
            // A whole number where a fraction may stand.
            *place = match (&*place, value) {
                (toml::Value::Float(_), toml::Value::Integer(whole)) => toml::Value::Float(whole as f64),
                (_, value) => value,
            };
        }
        root.try_into().map_err(|error| Failure::Usage(format!("--set: {error}")))
    }

    /// Says what makes no sense, where it stands.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        use bounds::*;
        let at =
            |place: &str, what: String| Failure::Usage(format!("scenario {}: {place}: {what}", self.name));
        let within = |place: &str, value: f64, from: f64, to: f64| {
            if (from..=to).contains(&value) {
                return Ok(());
            }
            Err(at(place, format!("{value} is not between {from} and {to}")))
        };
        if self.phases.is_empty() {
            return Err(at("phases", "there are none".to_owned()));
        }
        if self.topic.name.is_empty() || self.topic.name.len() > 240 {
            return Err(at("topic.name", "give a name of at most 240 bytes".to_owned()));
        }
        within("topic.count", self.topic.count.into(), 1.0, TOPICS_MAX.into())?;
        within("topic.partitions", self.topic.partitions.into(), 1.0, PARTITIONS_MAX.into())?;
        let partitions = u64::from(self.topic.count) * self.topic.partitions as u64;
        if partitions > PARTITIONS_MAX as u64 {
            let what = format!("with topic.count these are {partitions}, and at most {PARTITIONS_MAX}");
            return Err(at("topic.partitions", what));
        }
        within("threads", self.threads as f64, 0.0, 1024.0)?;
        within("request_timeout_s", self.request_timeout_s, 0.1, 3600.0)?;
        for (number, phase) in self.phases.iter().enumerate() {
            let place = |key: &str| format!("phases.{number}.{key}");
            within(&place("seconds"), phase.seconds, 0.1, SECONDS_MAX)?;
            within(&place("warmup_seconds"), phase.warmup_seconds, 0.0, SECONDS_MAX)?;
            phase.check_places(partitions).map_err(|what| at(&place("producers"), what))?;
            if let Some(bytes) = phase.bytes {
                within(&place("bytes"), bytes as f64, 1.0, 1e15)?;
            }
            if phase.producers.is_empty() && phase.consumers.is_empty() && phase.churn.is_none() {
                return Err(at(&place(""), "it has neither producers nor consumers nor churn".to_owned()));
            }
            for (index, one) in phase.producers.iter().enumerate() {
                let place = |key: &str| format!("phases.{number}.producers.{index}.{key}");
                within(&place("count"), one.count.into(), 1.0, CONNECTIONS_MAX.into())?;
                within(&place("in_flight"), one.in_flight as f64, 1.0, IN_FLIGHT_MAX as f64)?;
                within(&place("batch_bytes"), one.batch_bytes as f64, 1.0, REQUEST_BYTES_MAX as f64)?;
                within(&place("request_bytes"), one.request_bytes as f64, 1.0, REQUEST_BYTES_MAX as f64)?;
                within(&place("linger_ms"), one.linger_ms, 0.0, 60_000.0)?;
                within(&place("key_skew"), one.key_skew, 0.0, 10.0)?;
                one.check_load().map_err(|(key, why)| at(&place(key), why))?;
                one.payload.check().map_err(|(key, why)| at(&place(&format!("payload.{key}")), why))?;
            }
            for (index, one) in phase.consumers.iter().enumerate() {
                let place = |key: &str| format!("phases.{number}.consumers.{index}.{key}");
                within(&place("count"), one.count.into(), 1.0, CONNECTIONS_MAX.into())?;
                within(&place("wait_ms"), one.wait_ms.into(), 0.0, 60_000.0)?;
                within(&place("bytes_min"), one.bytes_min.into(), 0.0, f64::from(i32::MAX))?;
                within(&place("bytes_max"), one.bytes_max.into(), 1.0, (128 << 20) as f64)?;
                within(
                    &place("partition_bytes_max"),
                    one.partition_bytes_max.into(),
                    1.0,
                    (128 << 20) as f64,
                )?;
                within(&place("pause_ms"), one.pause_ms, 0.0, 3_600_000.0)?;
            }
            if let Some(restart) = &phase.restart {
                within(&place("restart.at_seconds"), restart.at_seconds, 0.0, phase.seconds)?;
            }
            if let Some(churn) = &phase.churn {
                let place = |key: &str| format!("phases.{number}.churn.{key}");
                within(&place("rate"), churn.rate, 0.0, 1e6)?;
                within(&place("hold_ms"), churn.hold_ms, 0.0, 3_600_000.0)?;
                within(&place("idle"), churn.idle.into(), 0.0, CONNECTIONS_MAX.into())?;
            }
        }
        Ok(())
    }
}

type Wrong = (&'static str, String);

impl Phase {
    /// Whether its connections can know of so many partitions.
    pub(crate) fn check_places(&self, partitions: u64) -> Result<(), String> {
        let producers: u64 = self.producers.iter().map(|one| u64::from(one.count)).sum();
        let consumers: u64 = self.consumers.iter().map(|one| u64::from(one.count)).sum();
        let places = (producers + consumers).saturating_mul(partitions);
        if places <= bounds::PLACES_MAX {
            return Ok(());
        }
        Err(format!(
            "{producers} producers and {consumers} consumers on {partitions} partitions: their product is above {}",
            bounds::PLACES_MAX
        ))
    }
}

impl Producers {
    fn check_load(&self) -> Result<(), Wrong> {
        let positive = |key, value: f64, max: f64| {
            if value > 0.0 && value <= max {
                Ok(())
            } else {
                Err((key, format!("{value} is not above 0 and at most {max}")))
            }
        };
        if self.load == Load::Open {
            if self.arrivals != Arrivals::Trace {
                positive("rate", self.rate, bounds::RATE_MAX)?;
            }
            match self.arrivals {
                Arrivals::Ramp => positive("rate_end", self.rate_end, bounds::RATE_MAX)?,
                Arrivals::Bursty => {
                    positive("burst_ms", self.burst_ms, 3_600_000.0)?;
                    positive("pause_ms", self.pause_ms, 3_600_000.0)?;
                }
                Arrivals::Trace if self.trace.is_none() => {
                    return Err(("trace", "arrivals = \"trace\" needs a file".to_owned()));
                }
                _ => {}
            }
        }
        if self.idempotent && self.acks != Acks::All {
            return Err(("idempotent", "it needs acks = \"all\"".to_owned()));
        }
        if self.idempotent && self.in_flight > flumen_client::limits::BATCHES_IN_FLIGHT_MAX {
            return Err(("in_flight", "an idempotent producer has at most 5".to_owned()));
        }
        if self.partitioning == Partitioning::Key && self.keys == 0 {
            return Err(("keys", "partitioning = \"key\" needs keys".to_owned()));
        }
        Ok(())
    }
}

impl Payload {
    fn check(&self) -> Result<(), Wrong> {
        let size = |key, value: usize| {
            if value <= bounds::RECORD_BYTES_MAX {
                Ok(())
            } else {
                Err((key, format!("{value} is above {}", bounds::RECORD_BYTES_MAX)))
            }
        };
        size("size", self.size)?;
        size("size_max", self.size_max)?;
        if self.size_min > self.size_max {
            return Err(("size_min", format!("{} is above size_max, {}", self.size_min, self.size_max)));
        }
        if !(0.0..=10.0).contains(&self.sigma) {
            return Err(("sigma", format!("{} is not between 0 and 10", self.sigma)));
        }
        if self.content == Content::Compressible && !(0.01..=1.0).contains(&self.ratio) {
            return Err(("ratio", format!("{} is not between 0.01 and 1", self.ratio)));
        }
        if self.content == Content::Lines && self.file.is_none() {
            return Err(("file", "content = \"lines\" needs a file".to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "scenario/tests.rs"]
mod tests;
