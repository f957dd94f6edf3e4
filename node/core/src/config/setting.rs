//! One setting: its name, type, default and bounds, and what a value given for it means.
//!
//! A setting is data. The tables of them stand in `topic` and `broker`; everything here works on one row.
//! Values are text, as the protocol carries them, until [`Setting::check`] has passed them; from then on
//! the typed readers of `log_config` and `broker_config` may rely on their form.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::ConfigError;

/// A setting's type, with the code that DescribeConfigs has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub enum Kind {
    /// `true` or `false`, in any case.
    Boolean = 1,
    /// Text.
    String = 2,
    /// A number of 32 bits.
    Int = 3,
    /// A number of 16 bits.
    Short = 4,
    /// A number of 64 bits.
    Long = 5,
    /// A number with a fraction.
    Double = 6,
    /// Values separated by commas.
    List = 7,
    /// The name of a class; nothing that Flumen loads.
    Class = 8,
    /// Text that is never shown.
    Password = 9,
}

impl Kind {
    /// The code on the wire.
    pub fn code(self) -> i8 {
        self as i8
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Boolean => "BOOLEAN",
            Kind::String => "STRING",
            Kind::Int => "INT",
            Kind::Short => "SHORT",
            Kind::Long => "LONG",
            Kind::Double => "DOUBLE",
            Kind::List => "LIST",
            Kind::Class => "CLASS",
            Kind::Password => "PASSWORD",
        }
    }
}

/// What a value has to satisfy beyond its type. Bounds are inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounds {
    /// Nothing more.
    Any,
    /// A whole number of at least this.
    AtLeast(i64),
    /// A whole number between these.
    Between(i64, i64),
    /// A whole number between these, or -1.
    BetweenOrMinusOne(i64, i64),
    /// A fraction between 0 and 1.
    Ratio,
    /// One of these words, or for a list: each of them one of these words.
    OneOf(&'static [&'static str]),
    /// `*`, or a list of `partition:broker`.
    ThrottledReplicas,
    /// A list of `address:connections`, with addresses of IPv4 or IPv6.
    ConnectionsByAddress,
}

/// How a setting of a broker can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// At start only.
    ReadOnly,
    /// While running, for one broker or as the default of all.
    ClusterWide,
    /// While running, for one broker.
    PerBroker,
}

/// One setting of topics or of brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Kafka's name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// The default as text; `None` where there is none.
    pub default: Option<&'static str>,
    /// What a value has to satisfy.
    pub bounds: Bounds,
    /// Whether and how it changes while a broker runs. Settings of topics always do.
    pub update: Update,
    /// The flag of the command line that sets it, where there is one; then `--set` refuses it.
    pub flag: Option<&'static str>,
    /// Whether Flumen acts on it. Those it does not are known so that tools which set or read them work.
    pub honoured: bool,
    /// What it does.
    pub doc: &'static str,
}

macro_rules! kinds {
    ($($name:ident $kind:ident),* $(,)?) => {
        $(
            #[doc = concat!("A setting of type ", stringify!($kind), ".")]
            pub(super) const fn $name(name: &'static str, default: &'static str, doc: &'static str) -> Setting {
                Setting::of(Kind::$kind, name, Some(default), doc)
            }
        )*
    };
}

impl Setting {
    kinds!(boolean Boolean, string String, int Int, short Short, long Long, double Double, list List);

    const fn of(kind: Kind, name: &'static str, default: Option<&'static str>, doc: &'static str) -> Setting {
        Setting {
            name,
            kind,
            default,
            bounds: Bounds::Any,
            update: Update::ReadOnly,
            flag: None,
            honoured: true,
            doc,
        }
    }

    /// A setting without a default.
    pub(super) const fn unset(kind: Kind, name: &'static str, doc: &'static str) -> Setting {
        Setting::of(kind, name, None, doc)
    }

    pub(super) const fn at_least(mut self, min: i64) -> Setting {
        self.bounds = Bounds::AtLeast(min);
        self
    }

    pub(super) const fn bounds(mut self, bounds: Bounds) -> Setting {
        self.bounds = bounds;
        self
    }

    pub(super) const fn cluster_wide(mut self) -> Setting {
        self.update = Update::ClusterWide;
        self
    }

    pub(super) const fn flag(mut self, flag: &'static str) -> Setting {
        self.flag = Some(flag);
        self
    }

    /// Known, and without effect.
    pub(super) const fn ignored(mut self) -> Setting {
        self.honoured = false;
        self
    }

    /// Whether its value must not be shown.
    pub fn is_sensitive(&self) -> bool {
        self.kind == Kind::Password
    }

    /// Checks a value given for this setting. Messages are Kafka's.
    pub fn check(&self, value: &str) -> Result<(), ConfigError> {
        self.check_value(value.trim()).map_err(|reason| ConfigError::BadValue {
            name: self.name,
            value: value.to_owned(),
            reason,
        })
    }

    fn check_value(&self, value: &str) -> Result<(), String> {
        match self.kind {
            Kind::Boolean => match parse_boolean(value) {
                Some(_) => Ok(()),
                None => Err("Expected value to be either true or false".to_owned()),
            },
            Kind::Int | Kind::Short | Kind::Long => {
                let number = self.parse_number(value).ok_or_else(|| self.not_a_number())?;
                self.check_number(number)
            }
            Kind::Double => {
                let number = value.parse::<f64>().ok().filter(|n| !n.is_nan());
                self.check_double(number.ok_or_else(|| self.not_a_number())?)
            }
            Kind::List => self.check_list(value),
            Kind::String | Kind::Class | Kind::Password => match self.bounds {
                Bounds::OneOf(words) => check_word(words, value),
                Bounds::ConnectionsByAddress => connections_by_address(value).map(|_| ()),
                _ => Ok(()),
            },
        }
    }

    fn not_a_number(&self) -> String {
        format!("Not a number of type {}", self.kind.name())
    }

    /// The number that `value` says, if it fits the type.
    fn parse_number(&self, value: &str) -> Option<i64> {
        match self.kind {
            Kind::Int => value.parse::<i32>().ok().map(i64::from),
            Kind::Short => value.parse::<i16>().ok().map(i64::from),
            _ => value.parse::<i64>().ok(),
        }
    }

    fn check_number(&self, number: i64) -> Result<(), String> {
        let (min, max) = match self.bounds {
            Bounds::AtLeast(min) => (min, i64::MAX),
            Bounds::Between(min, max) => (min, max),
            Bounds::BetweenOrMinusOne(min, max) => {
                return if number == -1 || (min..=max).contains(&number) {
                    Ok(())
                } else {
                    Err(format!("Value must be between {min} and {max} or equal to -1"))
                };
            }
            _ => return Ok(()),
        };
        if number < min {
            Err(format!("Value must be at least {min}"))
        } else if number > max {
            Err(format!("Value must be no more than {max}"))
        } else {
            Ok(())
        }
    }

    fn check_double(&self, number: f64) -> Result<(), String> {
        match self.bounds {
            Bounds::Ratio if number < 0.0 => Err("Value must be at least 0".to_owned()),
            Bounds::Ratio if number > 1.0 => Err("Value must be no more than 1".to_owned()),
            _ => Ok(()),
        }
    }

    fn check_list(&self, value: &str) -> Result<(), String> {
        match self.bounds {
            Bounds::OneOf(words) => list_items(value).try_for_each(|word| check_word(words, word)),
            Bounds::ThrottledReplicas if value == "*" => Ok(()),
            Bounds::ThrottledReplicas => {
                if list_items(value).all(is_throttled_replica) {
                    Ok(())
                } else {
                    Err(format!(
                        "{} must be the literal '*' or a list of replicas in the following format: \
                         [partitionId]:[brokerId],[partitionId]:[brokerId],...",
                        self.name
                    ))
                }
            }
            _ => Ok(()),
        }
    }

    /// A value that passed [`Setting::check`], in the form in which Kafka shows it.
    pub fn canonical(&self, value: &str) -> String {
        let value = value.trim();
        match self.kind {
            Kind::Boolean => value.to_ascii_lowercase(),
            Kind::List => list_items(value).collect::<Vec<_>>().join(","),
            Kind::Int | Kind::Short | Kind::Long => match self.parse_number(value) {
                Some(number) => number.to_string(),
                None => value.to_owned(),
            },
            _ => value.to_owned(),
        }
    }
}

fn check_word(words: &[&str], word: &str) -> Result<(), String> {
    if words.contains(&word) { Ok(()) } else { Err(format!("String must be one of: {}", words.join(", "))) }
}

fn is_throttled_replica(item: &str) -> bool {
    item.split_once(':').is_some_and(|(partition, broker)| {
        let is_id = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_id(partition) && is_id(broker)
    })
}

/// What `127.0.0.1:200,::1:10` says. Names are not looked up: who connects is known by its address alone.
pub(super) fn connections_by_address(value: &str) -> Result<BTreeMap<IpAddr, u32>, String> {
    let read = |item: &str| {
        let (address, count) = item.rsplit_once(':')?;
        let address = address.trim().trim_matches(['[', ']']).parse::<IpAddr>().ok()?;
        let count = count.trim().parse::<i32>().ok()?;
        Some((address.to_canonical(), u32::try_from(count).ok()?))
    };
    let explain =
        |item| format!("{item:?} is not of the form ADDRESS:CONNECTIONS, with an address of IPv4 or IPv6");
    list_items(value).map(|item| read(item).ok_or_else(|| explain(item))).collect()
}

/// `true` or `false` in any case.
pub(super) fn parse_boolean(value: &str) -> Option<bool> {
    if value.eq_ignore_ascii_case("true") {
        Some(true)
    } else if value.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

/// The items of a list, without the blanks around them and without empty ones.
pub fn list_items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::{BROKER_SETTINGS, TOPIC_SETTINGS, topic_setting};
    use super::connections_by_address;

    /// The texts are those of Kafka 4.3.1.
    #[test]
    fn bad_values_get_kafkas_words() {
        let check = |name: &str, value: &str| match topic_setting(name).expect("known").check(value) {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        for (name, value, outcome) in [
            ("segment.bytes", "1000", "Value must be at least 1048576"),
            ("segment.bytes", "99999999999", "Not a number of type INT"),
            ("retention.ms", "-2", "Value must be at least -1"),
            ("retention.ms", "", "Not a number of type LONG"),
            ("segment.ms", "1.5", "Not a number of type LONG"),
            (
                "compression.type",
                "Gzip",
                "String must be one of: uncompressed, zstd, lz4, snappy, gzip, producer",
            ),
            ("compression.gzip.level", "0", "Value must be between 1 and 9 or equal to -1"),
            ("compression.lz4.level", "99", "Value must be no more than 17"),
            ("min.cleanable.dirty.ratio", "1.5", "Value must be no more than 1"),
            ("min.cleanable.dirty.ratio", "x", "Not a number of type DOUBLE"),
            ("min.cleanable.dirty.ratio", "NaN", "Not a number of type DOUBLE"),
            ("preallocate", "yes", "Expected value to be either true or false"),
            ("cleanup.policy", "Delete", "String must be one of: compact, delete"),
            ("cleanup.policy", "delete,foo", "String must be one of: compact, delete"),
        ] {
            assert_eq!(
                check(name, value),
                format!("Invalid value {value} for configuration {name}: {outcome}")
            );
        }
        for (name, value) in [
            ("retention.ms", " 5 "),
            ("retention.bytes", "-7"),
            ("cleanup.policy", ""),
            ("cleanup.policy", "compact, delete"),
            ("preallocate", "TRUE"),
            ("compression.gzip.level", "-1"),
            ("leader.replication.throttled.replicas", "*"),
            ("leader.replication.throttled.replicas", "0:1,2:3"),
        ] {
            assert_eq!(check(name, value), "ok", "{name}={value}");
        }
        assert!(check("leader.replication.throttled.replicas", "x").contains("must be the literal '*'"));
    }

    #[test]
    fn connections_are_limited_by_address() {
        let read = |value: &str| connections_by_address(value).map(Vec::from_iter);
        let addresses = |pairs: &[(&str, u32)]| {
            Ok(pairs.iter().map(|(address, count)| (address.parse().expect("an address"), *count)).collect())
        };
        assert_eq!(read(""), Ok(vec![]));
        assert_eq!(read("127.0.0.1:200, ::1:0"), addresses(&[("127.0.0.1", 200), ("::1", 0)]));
        assert_eq!(read("[::1]:7,::ffff:10.0.0.1:3"), addresses(&[("10.0.0.1", 3), ("::1", 7)]));
        for wrong in ["127.0.0.1", "127.0.0.1:-1", "127.0.0.1:", "some-host:5", ":5", "127.0.0.1:99999999999"]
        {
            assert!(read(wrong).is_err_and(|why| why.contains(wrong)), "{wrong}");
        }
    }

    #[test]
    fn canonical_form_is_what_kafka_shows() {
        let canonical = |name: &str, value: &str| topic_setting(name).expect("known").canonical(value);
        assert_eq!(canonical("cleanup.policy", " compact , delete"), "compact,delete");
        assert_eq!(canonical("preallocate", "TRUE"), "true");
        assert_eq!(canonical("retention.ms", " +5"), "5");
    }

    #[test]
    fn tables_are_sorted_and_their_defaults_are_valid() {
        for table in [TOPIC_SETTINGS, BROKER_SETTINGS] {
            assert!(table.windows(2).all(|pair| pair[0].name < pair[1].name));
            for setting in table {
                assert!(setting.doc.ends_with('.'), "{}", setting.name);
                if let Some(default) = setting.default {
                    assert_eq!(setting.check(default), Ok(()), "{}", setting.name);
                    assert_eq!(setting.canonical(default), default, "{}", setting.name);
                }
            }
        }
    }
}
