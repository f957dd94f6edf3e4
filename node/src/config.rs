//! What a node is told at its start: flags over environment over file over defaults, checked once, here.
//!
//! Every source is first read into text under the flags' names ([`sources`]); then the texts are given
//! their meaning, so that a mistake is reported the same way wherever it stands.
use crate::cli::Arguments;
use crate::sys;
use flumen_core::config::{BrokerConfig, ConfigError, Settings, StaticSettings, parse_size};
use flumen_core::types::NodeId;
use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;

mod sources;

/// Shards of one node at most.
pub const SHARDS_MAX: u16 = 256;
/// The least that `--memory` may be.
pub const MEMORY_MIN: u64 = 64 << 20;
/// What `--memory` is at most unless told otherwise.
const MEMORY_DEFAULT_MAX: u64 = 1 << 30;

/// How long a group waits for more members before it shares the partitions out: not at all in a node that serves this
/// machine alone, where somebody develops and looks on.
const NO_WAIT_ALONE: [&str; 2] =
    ["group.initial.rebalance.delay.ms", "group.consumer.assignment.interval.ms"];

/// A name or address, and a port, as given: not resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address, without the brackets of IPv6.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// All that a node is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's number.
    pub node_id: NodeId,
    /// The data folder, absolute.
    pub data_dir: PathBuf,
    /// Where Kafka's clients are listened for. Port 0: a free one.
    pub kafka_addr: SocketAddr,
    /// What clients are told to connect to, where that was given.
    pub kafka_advertised: Option<HostPort>,
    /// Where health and metrics are served.
    pub admin_addr: SocketAddr,
    /// Reserved for other nodes; nothing listens there yet.
    pub cluster_addr: SocketAddr,
    /// Reserved: other nodes. A start that names any but itself is refused yet.
    pub seeds: Vec<HostPort>,
    /// Shards to run.
    pub shards: u16,
    /// Bytes of memory for data, all shards together.
    pub memory: u64,
    /// Broker settings as given, for DescribeConfigs and for topics.
    pub settings: Settings,
    /// Broker settings as the driver reads them.
    pub broker: BrokerConfig,
    /// What is odd but no reason not to start: to be logged.
    pub warnings: Vec<String>,
}

/// Why a node cannot start as told. The text says what to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The file of `--config` cannot be read, or is not TOML.
    File(String),
    /// A key of the file that no flag is named like.
    UnknownKey(String),
    /// A value that does not fit. `source` says where it stands.
    Value {
        /// Flag, variable or key.
        source: String,
        /// What was given.
        value: String,
        /// What would fit.
        expected: String,
    },
    /// A broker setting.
    Setting {
        /// Flag, variable or key.
        source: String,
        /// What is wrong with it.
        error: String,
    },
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mistake::File(text) | Mistake::UnknownKey(text) => f.write_str(text),
            Mistake::Value { source, value, expected } => write!(f, "{source}: '{value}' is not {expected}"),
            Mistake::Setting { source, error } => write!(f, "{source}: {error}"),
        }
    }
}

impl std::error::Error for Mistake {}

/// A text and where it stands.
#[derive(Clone, Debug)]
struct Given {
    value: String,
    source: String,
}

impl Given {
    fn wrong(&self, expected: impl Into<String>) -> Mistake {
        Mistake::Value { source: self.source.clone(), value: self.value.clone(), expected: expected.into() }
    }
}

impl Config {
    /// From the command line, the process's environment, and the file that either of them names.
    pub fn load(arguments: &Arguments) -> Result<Config, Mistake> {
        Config::from_sources(
            arguments,
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }

    fn from_sources(
        arguments: &Arguments,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, Mistake> {
        let mut given = sources::gather(arguments, environment)?;
        let mut warnings = std::mem::take(&mut given.warnings);
        let node_id = number(given.take("node-id"), 1, 0, i32::MAX as u64)? as i32;
        let data_dir = PathBuf::from(text(given.take("data-dir"), "./flumen-data")?);
        let shards = shards(given.take("shards"), &mut warnings)?;
        let kafka_addr = address(given.take("kafka-addr"), "127.0.0.1:9092")?;
        let seeds = seeds(given.take("seeds"))?;
        let is_alone = kafka_addr.ip().is_loopback() && seeds.is_empty();
        let data_dir = std::path::absolute(&data_dir).unwrap_or(data_dir);
        let kafka_advertised = given.take("kafka-advertised").map(|given| host_port(&given)).transpose()?;
        let (number, folder) = (node_id.to_string(), data_dir.display().to_string());
        let mut flags = vec![
            ("node.id", number.clone()),
            ("broker.id", number),
            ("log.dir", folder.clone()),
            ("log.dirs", folder),
            ("listeners", format!("PLAINTEXT://{kafka_addr}")),
        ];
        flags.extend(kafka_advertised.iter().map(|at| ("advertised.listeners", format!("PLAINTEXT://{at}"))));
        let settings = settings(&given.settings, &flags, is_alone, &mut warnings)?;
        Ok(Config {
            node_id: NodeId(node_id),
            data_dir,
            kafka_addr,
            kafka_advertised,
            admin_addr: address(given.take("admin-addr"), "127.0.0.1:9644")?,
            cluster_addr: address(given.take("cluster-addr"), "127.0.0.1:7946")?,
            seeds,
            shards,
            memory: memory(given.take("memory"))?,
            broker: settings.broker_config(),
            settings,
            warnings,
        })
    }

    /// What clients are told to connect to, when the listener has this address.
    pub fn advertised(&self, listening: SocketAddr) -> HostPort {
        match &self.kafka_advertised {
            Some(given) => given.clone(),
            None if listening.ip().is_unspecified() => {
                HostPort { host: host_name(listening.ip()), port: listening.port() }
            }
            None => HostPort { host: listening.ip().to_string(), port: listening.port() },
        }
    }
}

/// The machine's name, for clients elsewhere, when the listener has every address.
fn host_name(unspecified: IpAddr) -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    let resolves =
        !name.is_empty() && (name, 0).to_socket_addrs().is_ok_and(|mut found| found.next().is_some());
    match (resolves, unspecified) {
        (true, _) => name.to_owned(),
        (false, IpAddr::V4(_)) => "127.0.0.1".into(),
        (false, IpAddr::V6(_)) => "::1".into(),
    }
}

fn text(given: Option<Given>, default: &str) -> Result<String, Mistake> {
    match given {
        Some(given) if given.value.is_empty() => Err(given.wrong("a name")),
        Some(given) => Ok(given.value),
        None => Ok(default.to_owned()),
    }
}

fn number(given: Option<Given>, default: u64, min: u64, max: u64) -> Result<u64, Mistake> {
    let Some(given) = given else { return Ok(default) };
    match given.value.parse::<u64>() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(given.wrong(format!("a whole number from {min} to {max}"))),
    }
}

fn shards(given: Option<Given>, warnings: &mut Vec<String>) -> Result<u16, Mistake> {
    // Heeds the processors that this process may run on, and a container's quota.
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(SHARDS_MAX.into()) as u64;
    let shards = number(given, cores, 1, SHARDS_MAX.into())?;
    let cpus = sys::allowed_cpus().len() as u64;
    if shards > cpus {
        warnings.push(format!("{shards} shards on {cpus} processors: they will be in each other's way"));
    }
    Ok(shards as u16)
}

fn memory(given: Option<Given>) -> Result<u64, Mistake> {
    match given {
        None => Ok((sys::memory_total() / 4).clamp(MEMORY_MIN, MEMORY_DEFAULT_MAX)),
        Some(given) => {
            let bytes = parse_size(&given.value).map_err(|error| Mistake::Setting {
                source: given.source.clone(),
                error: error.to_string(),
            })?;
            if bytes < MEMORY_MIN {
                return Err(given.wrong(format!("enough: at least {}MiB", MEMORY_MIN >> 20)));
            }
            Ok(bytes)
        }
    }
}

fn host_port(given: &Given) -> Result<HostPort, Mistake> {
    let wrong = || given.wrong("HOST:PORT, as in 127.0.0.1:9092 or [::1]:9092");
    let (host, port) = given.value.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host,
        None if host.contains(':') => return Err(wrong()),
        None => host,
    };
    if host.is_empty() || host.len() > 255 || host.contains(char::is_whitespace) {
        return Err(wrong());
    }
    Ok(HostPort { host: host.to_owned(), port })
}

fn address(given: Option<Given>, default: &str) -> Result<SocketAddr, Mistake> {
    let given = given.unwrap_or_else(|| Given { value: default.into(), source: "default".into() });
    let HostPort { host, port } = host_port(&given)?;
    let found = (host.as_str(), port).to_socket_addrs().ok().and_then(|mut found| found.next());
    found.ok_or_else(|| given.wrong("an address of this machine: the name is not known"))
}

fn seeds(given: Option<Given>) -> Result<Vec<HostPort>, Mistake> {
    let Some(given) = given else { return Ok(Vec::new()) };
    let parts = given.value.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| host_port(&Given { value: part.to_owned(), source: given.source.clone() })).collect()
}

fn settings(
    given: &[(String, Given)],
    flags: &[(&'static str, String)],
    is_alone: bool,
    warnings: &mut Vec<String>,
) -> Result<Settings, Mistake> {
    let wrong = |source: &str, error: ConfigError| Mistake::Setting {
        source: source.to_owned(),
        error: explain(error),
    };
    let mut statics = StaticSettings::default();
    for (name, value) in given {
        statics.set(name, &value.value).map_err(|error| wrong(&value.source, error))?;
    }
    let is_given = |name| given.iter().any(|(given, _)| given == name);
    for name in NO_WAIT_ALONE.into_iter().filter(|name| is_alone && !is_given(*name)) {
        statics.set(name, "0").map_err(|error| wrong(name, error))?;
    }
    for (name, value) in flags {
        statics.set_from_flag(name, value).map_err(|error| wrong(name, error))?;
    }
    statics.check().map_err(|error| wrong("settings", error))?;
    warnings.extend(statics.without_effect().map(|name| format!("the setting {name} has no effect here")));
    Ok(Settings { statics: Arc::new(statics), ..Settings::default() })
}

/// An error of the settings, with the known names where one is unknown and nothing is near.
fn explain(error: ConfigError) -> String {
    let text = error.to_string();
    match error {
        ConfigError::Unknown { .. } => {
            let mut names: Vec<&str> = flumen_core::config::BROKER_SETTINGS
                .iter()
                .filter(|setting| setting.honoured && setting.flag.is_none())
                .map(|setting| setting.name)
                .collect();
            names.sort_unstable();
            format!("{text}\nSettings that are known: {}", names.join(", "))
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests;
