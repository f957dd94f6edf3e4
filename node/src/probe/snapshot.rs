//! Numbers on their way from the shards to Prometheus.
use super::histogram::{Counted, Histogram};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Ends of the buckets that Prometheus is shown: powers of two of microseconds, 16 us to 33 s.
const SHOWN: std::ops::RangeInclusive<u32> = 4..=25;

#[derive(Clone, Debug)]
enum Value {
    Counter(u64),
    RealCounter(f64),
    Gauge(f64),
    Histogram(Counted),
}

#[derive(Clone, Debug)]
struct Family {
    help: &'static str,
    values: BTreeMap<String, Value>,
}

/// Values of one moment, by name and labels. `Send`. Merging adds those of the same name and labels.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    families: BTreeMap<&'static str, Family>,
}

impl Snapshot {
    /// A value that only grows. `labels` as Prometheus writes them, without the braces: `api="Fetch"`.
    pub fn counter(&mut self, name: &'static str, help: &'static str, labels: &str, value: u64) {
        self.put(name, help, labels, Value::Counter(value));
    }

    /// A value that only grows and is not whole, such as seconds.
    pub fn real_counter(&mut self, name: &'static str, help: &'static str, labels: &str, value: f64) {
        self.put(name, help, labels, Value::RealCounter(value));
    }

    /// A value that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, labels: &str, value: f64) {
        self.put(name, help, labels, Value::Gauge(value));
    }

    /// A distribution.
    pub fn histogram(&mut self, name: &'static str, help: &'static str, labels: &str, value: &Histogram) {
        self.put(name, help, labels, Value::Histogram(value.counted()));
    }

    fn put(&mut self, name: &'static str, help: &'static str, labels: &str, value: Value) {
        let family = self.families.entry(name).or_insert_with(|| Family { help, values: BTreeMap::new() });
        match family.values.get_mut(labels) {
            Some(known) => known.add(&value),
            None => {
                family.values.insert(labels.to_owned(), value);
            }
        }
    }

    /// Adds another shard's.
    pub fn merge(&mut self, other: Snapshot) {
        for (name, family) in other.families {
            for (labels, value) in family.values {
                self.put(name, family.help, &labels, value);
            }
        }
    }

    /// As Prometheus reads it (text format 0.0.4).
    pub fn to_text(&self) -> String {
        let mut text = String::with_capacity(16 << 10);
        for (name, family) in &self.families {
            let kind = match family.values.values().next() {
                Some(Value::Counter(_) | Value::RealCounter(_)) => "counter",
                Some(Value::Gauge(_)) => "gauge",
                Some(Value::Histogram(_)) => "histogram",
                None => continue,
            };
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", family.help);
            for (labels, value) in &family.values {
                value.write(name, labels, &mut text);
            }
        }
        text
    }
}

impl Value {
    fn add(&mut self, other: &Value) {
        match (self, other) {
            (Value::Counter(mine), Value::Counter(more)) => *mine += more,
            (
                Value::RealCounter(mine) | Value::Gauge(mine),
                Value::RealCounter(more) | Value::Gauge(more),
            ) => {
                *mine += more;
            }
            (Value::Histogram(mine), Value::Histogram(more)) => mine.merge(more),
            _ => unreachable!("a name has one kind"),
        }
    }

    fn write(&self, name: &str, labels: &str, text: &mut String) {
        let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        // Writing to a string does not fail.
        let _ = match self {
            Value::Counter(value) => writeln!(text, "{name}{braced} {value}"),
            Value::RealCounter(value) | Value::Gauge(value) => writeln!(text, "{name}{braced} {value}"),
            Value::Histogram(counted) => {
                let before = if labels.is_empty() { String::new() } else { format!("{labels},") };
                for power in SHOWN {
                    let (end, count) = ((1u64 << power) as f64 / 1e6, counted.count_below(1 << power));
                    let _ = writeln!(text, "{name}_bucket{{{before}le=\"{end}\"}} {count}");
                }
                let (count, sum) = (counted.count(), counted.sum_us as f64 / 1e6);
                let _ = writeln!(text, "{name}_bucket{{{before}le=\"+Inf\"}} {count}");
                writeln!(text, "{name}_sum{braced} {sum}\n{name}_count{braced} {count}")
            }
        };
    }
}
