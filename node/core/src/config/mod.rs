//! Settings under Kafka's names: what is known, what a value may be, which value counts.
//!
//! Pure tables and functions; no state. Names and values of topics and brokers that were changed while
//! running are records of the metadata log (`metadata`); those given at start are a [`StaticSettings`].
//!
//! ```text
//!   topic override  >  one broker's  >  all brokers'  >  given at start  >  default
//!   (records)          (records)        (records)        (--set, flags)     (tables here)
//! ```
//!
//! [`Settings`] resolves that chain, once, into typed [`LogConfig`] and [`BrokerConfig`], and tells
//! DescribeConfigs where each value comes from.
//!
//! Invariants: the tables are sorted by name; every default satisfies its own bounds; a value is checked
//! before it is stored, and a stored one that no longer passes (written by another release) counts as
//! absent, never as a crash.

mod broker;
mod broker_config;
mod group;
mod group_config;
mod log_config;
mod near;
mod resolve;
mod setting;
mod size;
mod topic;

use std::fmt;

pub use broker::BROKER_SETTINGS;
pub use broker_config::BrokerConfig;
pub use group::{ConsumerGroupConfig, GROUP_SETTINGS};
pub use group_config::GroupConfig;
pub use log_config::{CleanupPolicy, LogConfig, TimestampType};
pub use resolve::{ConfigSource, Described, Overrides, Settings, StaticSettings, Synonym};
pub use setting::{Bounds, Kind, Setting, Update, list_items};
pub use size::{SizeError, parse_size};
pub use topic::{TOPIC_SETTINGS, TopicSynonym, Unit, topic_synonyms};

pub use crate::limits::CONFIG_VALUE_BYTES_MAX;
use crate::limits::CONFIG_WORD_BYTES_MAX;

/// What is wrong with a setting that was given. Its display is the message for whoever gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// There is no such setting.
    Unknown {
        /// Of what: `topic`, `broker` or `group`.
        scope: &'static str,
        /// The name that was given.
        name: String,
        /// A name that is like it.
        near: Option<&'static str>,
    },
    /// The value does not fit.
    BadValue {
        /// The setting.
        name: &'static str,
        /// The value that was given.
        value: String,
        /// Why not.
        reason: String,
    },
    /// Two settings contradict each other.
    Conflict(String),
    /// The setting has a flag of its own on the command line.
    HasFlag {
        /// The setting.
        name: &'static str,
        /// The flag.
        flag: &'static str,
    },
    /// The value is longer than [`CONFIG_VALUE_BYTES_MAX`].
    TooLong,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Unknown { scope, name, near } => {
                write!(f, "Unknown {scope} config name: {name}")?;
                match near {
                    Some(near) => write!(f, "; did you mean {near}?"),
                    None => Ok(()),
                }
            }
            ConfigError::BadValue { name, value, reason } => {
                write!(f, "Invalid value {value} for configuration {name}: {reason}")
            }
            ConfigError::Conflict(text) => f.write_str(text),
            ConfigError::HasFlag { name, flag } => write!(f, "{name} is set by {flag}"),
            ConfigError::TooLong => write!(
                f,
                "The configuration value cannot be added because it exceeds the maximum value size of \
                 {CONFIG_VALUE_BYTES_MAX} bytes."
            ),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The topic setting of this name.
pub fn topic_setting(name: &str) -> Option<&'static Setting> {
    find(TOPIC_SETTINGS, name)
}

/// The broker setting of this name.
pub fn broker_setting(name: &str) -> Option<&'static Setting> {
    find(BROKER_SETTINGS, name)
}

/// The group setting of this name.
pub fn group_setting(name: &str) -> Option<&'static Setting> {
    find(GROUP_SETTINGS, name)
}

fn find(table: &'static [Setting], name: &str) -> Option<&'static Setting> {
    table.binary_search_by(|setting| setting.name.cmp(name)).ok().map(|index| &table[index])
}

/// Checks one setting given for a topic.
pub fn check_topic_setting(name: &str, value: &str) -> Result<&'static Setting, ConfigError> {
    let setting = topic_setting(name).ok_or_else(|| unknown("topic", name))?;
    check_value(setting, value)?;
    if setting.name == "remote.storage.enable" && setting.canonical(value) == "true" {
        return Err(ConfigError::Conflict(
            "Tiered Storage functionality is disabled in the broker. Topic cannot be configured with remote log \
             storage."
                .to_owned(),
        ));
    }
    Ok(setting)
}

/// Checks one setting given for a broker.
pub fn check_broker_setting(name: &str, value: &str) -> Result<&'static Setting, ConfigError> {
    let setting = broker_setting(name).ok_or_else(|| unknown("broker", name))?;
    check_value(setting, value)?;
    Ok(setting)
}

/// Checks one setting given for a group.
pub fn check_group_setting(name: &str, value: &str) -> Result<&'static Setting, ConfigError> {
    let setting = group_setting(name).ok_or_else(|| unknown("group", name))?;
    check_value(setting, value)?;
    Ok(setting)
}

fn check_value(setting: &'static Setting, value: &str) -> Result<(), ConfigError> {
    let bytes_max = match setting.kind {
        Kind::String | Kind::List | Kind::Class | Kind::Password => CONFIG_VALUE_BYTES_MAX,
        _ => CONFIG_WORD_BYTES_MAX,
    };
    if value.len() > bytes_max {
        return Err(ConfigError::TooLong);
    }
    setting.check(value)
}

/// The error for a name that is not known, with the name that was probably meant.
pub fn unknown(scope: &'static str, name: &str) -> ConfigError {
    ConfigError::Unknown { scope, name: name.chars().take(250).collect(), near: near::nearest(scope, name) }
}
