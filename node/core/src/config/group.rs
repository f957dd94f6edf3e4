//! The settings of single groups (GROUP resources): those of Kafka 4.3 for the groups that are served, sorted by name, with
//! the settings of brokers that they fall back to and that bound them.
//!
//! A value is checked against the bounds of brokers when it is set. Bounds may change afterwards, so it is held within
//! them again where it is used.

use super::resolve::{Overrides, Settings, Values};
use super::setting::Setting;
use super::{ConfigError, GroupConfig};

/// All settings of groups, sorted by name.
pub const GROUP_SETTINGS: &[Setting] = &[
    Setting::int(
        "consumer.assignment.interval.ms",
        "1000",
        "Least time between two assignments of the group, where its coordinator assigns.",
    )
    .at_least(0),
    Setting::int(
        "consumer.heartbeat.interval.ms",
        "5000",
        "Time between heartbeats that members are told, where the coordinator assigns.",
    )
    .at_least(1),
    Setting::int(
        "consumer.session.timeout.ms",
        "45000",
        "Time without a heartbeat after which a member is gone, where the coordinator assigns.",
    )
    .at_least(1),
];

/// The settings of brokers behind one of groups: its value where the group has none, its least, its greatest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behind {
    pub(super) default: &'static str,
    min: &'static str,
    max: &'static str,
}

/// What stands behind a setting of groups.
pub(super) fn behind(name: &str) -> Option<Behind> {
    macro_rules! behind {
        ($what:literal) => {
            Some(Behind {
                default: concat!("group.consumer.", $what),
                min: concat!("group.consumer.min.", $what),
                max: concat!("group.consumer.max.", $what),
            })
        };
    }
    match name {
        "consumer.assignment.interval.ms" => behind!("assignment.interval.ms"),
        "consumer.heartbeat.interval.ms" => behind!("heartbeat.interval.ms"),
        "consumer.session.timeout.ms" => behind!("session.timeout.ms"),
        _ => None,
    }
}

impl Settings {
    /// Checks a group's overrides against the bounds of brokers and against each other. Messages are Kafka's.
    pub fn check_group(&self, group: &Overrides) -> Result<(), ConfigError> {
        for setting in GROUP_SETTINGS {
            let Some((number, behind)) = overridden(setting, group).zip(behind(setting.name)) else {
                continue;
            };
            if number < self.long(behind.min) {
                return Err(conflict(setting.name, "greater than or equal to", behind.min));
            }
            if number > self.long(behind.max) {
                return Err(conflict(setting.name, "less than or equal to", behind.max));
            }
        }
        let (session, heartbeat) = ("consumer.session.timeout.ms", "consumer.heartbeat.interval.ms");
        let in_force = |name: &str| {
            let setting = super::group_setting(name)?;
            overridden(setting, group).or_else(|| behind(name).map(|behind| self.long(behind.default)))
        };
        if in_force(session) <= in_force(heartbeat) {
            return Err(conflict(session, "greater than", heartbeat));
        }
        Ok(())
    }

    /// The brokers' own values have to be within their own bounds, as Kafka wants it at start.
    pub(super) fn check_group_bounds(&self) -> Result<(), ConfigError> {
        for behind in GROUP_SETTINGS.iter().filter_map(|setting| behind(setting.name)) {
            let (min, max) = (self.long(behind.min), self.long(behind.max));
            if max < min {
                return Err(conflict(behind.max, "greater than or equal to", behind.min));
            }
            if self.long(behind.default) < min {
                return Err(conflict(behind.default, "greater than or equal to", behind.min));
            }
            if self.long(behind.default) > max {
                return Err(conflict(behind.default, "less than or equal to", behind.max));
            }
        }
        let (session, heartbeat) =
            ("group.consumer.session.timeout.ms", "group.consumer.heartbeat.interval.ms");
        if self.long(session) <= self.long(heartbeat) {
            return Err(conflict(session, "greater than", heartbeat));
        }
        Ok(())
    }
}

fn conflict(name: &str, relation: &str, other: &str) -> ConfigError {
    ConfigError::Conflict(format!("{name} must be {relation} {other}"))
}

fn overridden(setting: &Setting, group: &Overrides) -> Option<i64> {
    let value = group.get(setting.name).filter(|value| setting.check(value).is_ok())?;
    setting.canonical(value).parse().ok()
}

/// What counts for one consumer group, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ConsumerGroupConfig {
    pub assignment_interval_ms: u32,
    pub heartbeat_interval_ms: u32,
    pub session_timeout_ms: u32,
}

impl GroupConfig {
    /// What counts for a group with these overrides, within the bounds that are in force now.
    pub fn of_consumer_group(&self, group: Option<&Overrides>) -> ConsumerGroupConfig {
        let value = |name: &str, default: u32, (min, max): (u32, u32)| {
            let own = group.and_then(|group| overridden(super::group_setting(name)?, group));
            own.map_or(default, |own| own.clamp(i64::from(min), i64::from(max.max(min))) as u32)
        };
        ConsumerGroupConfig {
            assignment_interval_ms: value(
                "consumer.assignment.interval.ms",
                self.consumer_assignment_interval_ms,
                self.consumer_assignment_interval_bounds_ms,
            ),
            heartbeat_interval_ms: value(
                "consumer.heartbeat.interval.ms",
                self.consumer_heartbeat_interval_ms,
                self.consumer_heartbeat_interval_bounds_ms,
            ),
            session_timeout_ms: value(
                "consumer.session.timeout.ms",
                self.consumer_session_timeout_ms,
                self.consumer_session_timeout_bounds_ms,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::broker_setting;
    use super::*;

    fn overrides(pairs: &[(&str, &str)]) -> Overrides {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_table_is_sorted_and_its_defaults_are_the_brokers() {
        assert!(GROUP_SETTINGS.is_sorted_by_key(|setting| setting.name));
        for setting in GROUP_SETTINGS {
            let behind = behind(setting.name).expect("each has some");
            assert_eq!(broker_setting(behind.default).expect("known").default, setting.default);
            assert!(broker_setting(behind.min).is_some() && broker_setting(behind.max).is_some());
        }
        assert_eq!(Settings::default().check_group_bounds(), Ok(()));
    }

    #[test]
    fn what_is_used_stays_within_bounds_that_came_later() {
        let set =
            overrides(&[("consumer.session.timeout.ms", "50000"), ("consumer.heartbeat.interval.ms", "x")]);
        let config =
            |max| GroupConfig { consumer_session_timeout_bounds_ms: (45_000, max), ..GroupConfig::default() };
        assert_eq!(config(60_000).of_consumer_group(Some(&set)).session_timeout_ms, 50_000);
        assert_eq!(config(47_000).of_consumer_group(Some(&set)).session_timeout_ms, 47_000);
        assert_eq!(config(47_000).of_consumer_group(None).session_timeout_ms, 45_000);
        // What no longer passes counts as absent.
        assert_eq!(config(60_000).of_consumer_group(Some(&set)).heartbeat_interval_ms, 5_000);
    }
}
