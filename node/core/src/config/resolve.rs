//! Which of several values of a setting counts, and how that is told (KIP-226).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::group::behind;
use super::setting::{Kind, Setting, Update};
use super::topic::{TopicSynonym, Unit, topic_synonyms};
use super::{BrokerConfig, ConfigError, LogConfig, broker_setting, check_broker_setting, topic_setting};

/// Values that were changed while running, by name. They were checked before they were stored.
pub type Overrides = BTreeMap<String, String>;

/// Where a value comes from, with the codes of DescribeConfigs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub enum ConfigSource {
    /// Set for the topic.
    TopicConfig = 1,
    /// Set for this broker while running.
    DynamicBrokerConfig = 2,
    /// Set for all brokers while running.
    DynamicDefaultBrokerConfig = 3,
    /// Given at start.
    StaticBrokerConfig = 4,
    /// The default.
    DefaultConfig = 5,
    /// Set for the group.
    GroupConfig = 8,
}

impl ConfigSource {
    /// The code on the wire.
    pub fn code(self) -> i8 {
        self as i8
    }
}

/// The broker settings given at start, by command line, environment or file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StaticSettings {
    values: BTreeMap<&'static str, String>,
}

impl StaticSettings {
    /// Takes one `--set name=value`. Refuses what is unknown, does not fit, or has a flag of its own.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        let setting = check_broker_setting(name, value)?;
        if let Some(flag) = setting.flag {
            return Err(ConfigError::HasFlag { name: setting.name, flag });
        }
        self.values.insert(setting.name, value.to_owned());
        Ok(())
    }

    /// Takes a value that came by a flag of its own (`--node-id` is `node.id`), so that it is described.
    pub fn set_from_flag(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        let setting = check_broker_setting(name, value)?;
        self.values.insert(setting.name, value.to_owned());
        Ok(())
    }

    /// The names that were given and that nothing acts on, for a warning at start.
    pub fn without_effect(&self) -> impl Iterator<Item = &'static str> {
        self.values
            .keys()
            .copied()
            .filter(|name| broker_setting(name).is_some_and(|setting| !setting.honoured))
    }

    /// What contradicts what.
    pub fn check(&self) -> Result<(), ConfigError> {
        let settings = Settings { statics: Arc::new(self.clone()), ..Settings::default() };
        check_log_config(&settings.log_config(&Overrides::new()))?;
        settings.check_group_bounds()
    }
}

/// Kafka's rules between settings of one topic.
pub(super) fn check_log_config(config: &LogConfig) -> Result<(), ConfigError> {
    if config.min_compaction_lag_ms > config.max_compaction_lag_ms {
        return Err(ConfigError::Conflict(format!(
            "conflict topic config setting min.compaction.lag.ms ({}) > max.compaction.lag.ms ({})",
            config.min_compaction_lag_ms, config.max_compaction_lag_ms
        )));
    }
    Ok(())
}

/// One setting as it is in force, for DescribeConfigs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// The setting.
    pub setting: &'static Setting,
    /// Its value; `None` where it has none, or none that may be shown.
    pub value: Option<String>,
    /// Where the value comes from.
    pub source: ConfigSource,
    /// Whether it can be changed only at start.
    pub read_only: bool,
    /// Every value that was set for it, the one in force first.
    pub synonyms: Vec<Synonym>,
}

/// One of the values that stand behind a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synonym {
    /// The setting that carries it.
    pub name: &'static str,
    /// The value; `None` where it may not be shown.
    pub value: Option<String>,
    /// Where it was set.
    pub source: ConfigSource,
}

/// All that a node knows of settings beside a topic's own: cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Given at start.
    pub statics: Arc<StaticSettings>,
    /// Set for all brokers while running.
    pub cluster: Arc<Overrides>,
    /// Set for this broker while running.
    pub broker: Arc<Overrides>,
}

impl Settings {
    /// The typed settings of a topic with these overrides.
    pub fn log_config(&self, topic: &Overrides) -> LogConfig {
        LogConfig::read(&TopicValues { settings: self, topic })
    }

    /// The typed settings of this broker.
    pub fn broker_config(&self) -> BrokerConfig {
        BrokerConfig::read(self)
    }

    /// Checks a topic's overrides against each other and against what lies below them.
    pub fn check_topic(&self, topic: &Overrides) -> Result<(), ConfigError> {
        check_log_config(&self.log_config(topic))
    }

    /// One topic setting, as it is in force for a topic with these overrides.
    pub fn describe_topic(&self, setting: &'static Setting, topic: &Overrides) -> Described {
        let own = valid(setting, topic.get(setting.name)).map(|value| Synonym {
            name: setting.name,
            value: Some(setting.canonical(value)),
            source: ConfigSource::TopicConfig,
        });
        let behind = topic_synonyms(setting.name);
        let inherited = self.chain(behind).map(|found| found.synonym());
        let (value, source) = match self.topic_value(setting, topic) {
            Some((value, source)) => (Some(value), source),
            None => (None, ConfigSource::DefaultConfig),
        };
        Described {
            setting,
            value,
            source,
            read_only: false,
            synonyms: own.into_iter().chain(inherited).collect(),
        }
    }

    /// One group setting, as it was set for a group with these overrides.
    pub fn describe_group(&self, setting: &'static Setting, group: &Overrides) -> Described {
        let own = valid(setting, group.get(setting.name)).map(|value| Synonym {
            name: setting.name,
            value: Some(setting.canonical(value)),
            source: ConfigSource::GroupConfig,
        });
        let behind =
            behind(setting.name).map(|behind| TopicSynonym { name: behind.default, unit: Unit::Same });
        let inherited = self.chain(behind.as_slice()).map(|found| found.synonym());
        let synonyms: Vec<Synonym> = own.into_iter().chain(inherited).collect();
        let (value, source) = match synonyms.first() {
            Some(first) => (first.value.clone(), first.source),
            None => (setting.default.map(str::to_owned), ConfigSource::DefaultConfig),
        };
        Described { setting, value, source, read_only: false, synonyms }
    }

    /// One broker setting, as it is in force on this node.
    pub fn describe_broker(&self, setting: &'static Setting) -> Described {
        let itself = [TopicSynonym { name: setting.name, unit: Unit::Same }];
        let synonyms: Vec<Synonym> = self.chain(&itself).map(|found| found.synonym()).collect();
        let (value, source) = match synonyms.first() {
            Some(first) => (first.value.clone(), first.source),
            None => (None, ConfigSource::DefaultConfig),
        };
        Described { setting, value, source, read_only: setting.update == Update::ReadOnly, synonyms }
    }

    fn topic_value(&self, setting: &'static Setting, topic: &Overrides) -> Option<(String, ConfigSource)> {
        if let Some(value) = valid(setting, topic.get(setting.name)) {
            return Some((setting.canonical(value), ConfigSource::TopicConfig));
        }
        let converted = self.chain(topic_synonyms(setting.name)).find_map(|found| {
            let value = found.unit.convert(&found.setting.canonical(found.value));
            // A broker may be told what no topic may be (a roll time of 0): the next one counts then.
            setting.check(&value).is_ok().then_some((value, found.source))
        });
        converted.or_else(|| setting.default.map(|value| (value.to_owned(), ConfigSource::DefaultConfig)))
    }

    /// Every value that was set under these names, strongest first: by source, then in the names' order.
    fn chain<'a>(&'a self, names: &'a [TopicSynonym]) -> impl Iterator<Item = Found<'a>> {
        const SOURCES: [ConfigSource; 4] = [
            ConfigSource::DynamicBrokerConfig,
            ConfigSource::DynamicDefaultBrokerConfig,
            ConfigSource::StaticBrokerConfig,
            ConfigSource::DefaultConfig,
        ];
        SOURCES.into_iter().flat_map(move |source| {
            names.iter().filter_map(move |synonym| {
                let setting = broker_setting(synonym.name)?;
                let value = match source {
                    ConfigSource::DynamicBrokerConfig => valid(setting, self.broker.get(setting.name)),
                    ConfigSource::DynamicDefaultBrokerConfig => {
                        valid(setting, self.cluster.get(setting.name))
                    }
                    ConfigSource::StaticBrokerConfig => {
                        self.statics.values.get(setting.name).map(String::as_str)
                    }
                    _ => setting.default,
                };
                value.map(|value| Found { setting, unit: synonym.unit, value, source })
            })
        })
    }
}

/// One value of the chain.
struct Found<'a> {
    setting: &'static Setting,
    unit: Unit,
    value: &'a str,
    source: ConfigSource,
}

impl Found<'_> {
    fn synonym(&self) -> Synonym {
        let value = (!self.setting.is_sensitive()).then(|| self.setting.canonical(self.value));
        Synonym { name: self.setting.name, value, source: self.source }
    }
}

/// A stored value, unless this release no longer takes it.
fn valid<'a>(setting: &Setting, value: Option<&'a String>) -> Option<&'a str> {
    value.map(String::as_str).filter(|value| setting.check(value).is_ok())
}

/// What the typed structures read from. Every name asked for stands in the tables (tested).
pub(super) trait Values {
    /// The value in force, in canonical form; empty where there is none.
    fn text(&self, name: &str) -> Cow<'_, str>;

    /// As a number; 0 where it is none.
    fn long(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap_or(0)
    }

    /// As a number that is not negative and fits.
    fn count(&self, name: &str) -> u32 {
        self.long(name).clamp(0, i64::from(u32::MAX)) as u32
    }
}

struct TopicValues<'a> {
    settings: &'a Settings,
    topic: &'a Overrides,
}

impl Values for TopicValues<'_> {
    fn text(&self, name: &str) -> Cow<'_, str> {
        debug_assert!(topic_setting(name).is_some(), "{name} is no topic setting");
        let value = topic_setting(name).and_then(|setting| self.settings.topic_value(setting, self.topic));
        Cow::Owned(value.map(|(value, _)| value).unwrap_or_default())
    }
}

impl Values for Settings {
    fn text(&self, name: &str) -> Cow<'_, str> {
        debug_assert!(broker_setting(name).is_some_and(|setting| setting.kind != Kind::Password));
        let itself = [TopicSynonym {
            name: broker_setting(name).map_or("", |setting| setting.name),
            unit: Unit::Same,
        }];
        let first = self.chain(&itself).next().map(|found| found.setting.canonical(found.value));
        Cow::Owned(first.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::TOPIC_SETTINGS;
    use super::*;

    fn overrides(pairs: &[(&str, &str)]) -> Overrides {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn settings(statics: &[(&str, &str)], cluster: &[(&str, &str)], broker: &[(&str, &str)]) -> Settings {
        let mut given = StaticSettings::default();
        for (name, value) in statics {
            given.set(name, value).expect("valid");
        }
        Settings {
            statics: Arc::new(given),
            cluster: Arc::new(overrides(cluster)),
            broker: Arc::new(overrides(broker)),
        }
    }

    fn retention(settings: &Settings, topic: &Overrides) -> String {
        let described = settings.describe_topic(topic_setting("retention.ms").expect("known"), topic);
        let chain: Vec<String> = described
            .synonyms
            .iter()
            .map(|one| format!("{:?}:{}={}", one.source, one.name, one.value.as_deref().unwrap_or("-")))
            .collect();
        let value = described.value.expect("has one");
        assert_eq!(settings.log_config(topic).retention_ms.to_string(), value);
        format!("{value} {:?} [{}]", described.source, chain.join(" "))
    }

    #[test]
    fn the_strongest_value_counts_and_all_are_told() {
        let none = overrides(&[]);
        assert_eq!(
            retention(&Settings::default(), &none),
            "604800000 DefaultConfig [DefaultConfig:log.retention.hours=168]"
        );
        let given = settings(&[("log.retention.minutes", "2"), ("log.retention.hours", "1")], &[], &[]);
        assert_eq!(
            retention(&given, &none),
            "120000 StaticBrokerConfig [StaticBrokerConfig:log.retention.minutes=2 \
             StaticBrokerConfig:log.retention.hours=1 DefaultConfig:log.retention.hours=168]"
        );
        let all = settings(
            &[("log.retention.ms", "3")],
            &[("log.retention.ms", "4")],
            &[("log.retention.ms", "5")],
        );
        assert_eq!(
            retention(&all, &overrides(&[("retention.ms", "6")])),
            "6 TopicConfig [TopicConfig:retention.ms=6 DynamicBrokerConfig:log.retention.ms=5 \
             DynamicDefaultBrokerConfig:log.retention.ms=4 StaticBrokerConfig:log.retention.ms=3 \
             DefaultConfig:log.retention.hours=168]"
        );
    }

    #[test]
    fn a_stored_value_that_no_longer_passes_counts_as_absent() {
        let config =
            Settings::default().log_config(&overrides(&[("segment.bytes", "7"), ("retention.ms", "x")]));
        assert_eq!((config.segment_bytes, config.retention_ms), (1 << 30, 604_800_000));
    }

    #[test]
    fn every_default_is_described() {
        for setting in TOPIC_SETTINGS {
            let described = Settings::default().describe_topic(setting, &Overrides::new());
            assert_eq!(described.value.as_deref(), setting.default, "{}", setting.name);
            assert_eq!(described.source, ConfigSource::DefaultConfig);
        }
    }

    #[test]
    fn typed_defaults() {
        let config = LogConfig::default();
        assert!(config.is_durable_before_ack());
        assert_eq!(config.segment_bytes, 1 << 30);
        assert_eq!(config.max_message_bytes, 1_048_588);
        assert_eq!(config.local_retention_ms, config.retention_ms);
        assert_eq!(config.flush_ms, i64::MAX);
        let broker = Settings::default().broker_config();
        assert_eq!((broker.num_partitions, broker.default_replication_factor), (1, 1));
        assert_eq!(broker.socket_request_max_bytes, 100 << 20);
        assert_eq!(broker.broker_rack, None);
    }

    #[test]
    fn what_is_given_at_start_is_checked() {
        let mut given = StaticSettings::default();
        let mut error = |name: &str, value: &str| given.set(name, value).expect_err("refused").to_string();
        assert_eq!(
            error("num.partition", "3"),
            "Unknown broker config name: num.partition; did you mean num.partitions?"
        );
        assert_eq!(
            error("retention.ms", "3"),
            "Unknown broker config name: retention.ms; did you mean log.retention.ms?"
        );
        assert_eq!(
            error("num.partitions", "0"),
            "Invalid value 0 for configuration num.partitions: Value must be at least 1"
        );
        assert_eq!(error("node.id", "3"), "node.id is set by --node-id");
        given.set("num.io.threads", "4").expect("known");
        given.set_from_flag("node.id", "3").expect("known");
        assert_eq!(given.without_effect().collect::<Vec<_>>(), ["num.io.threads"]);
        given.set("log.cleaner.max.compaction.lag.ms", "1").expect("known");
        given.set("log.cleaner.min.compaction.lag.ms", "2").expect("known");
        assert!(given.check().is_err());
    }
}
