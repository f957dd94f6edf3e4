//! Which known setting somebody probably meant by a name that is not known.

use super::{BROKER_SETTINGS, GROUP_SETTINGS, TOPIC_SETTINGS, TopicSynonym, topic_synonyms};

/// Longest name that is compared; what is longer is no slip of the hand.
const NAME_BYTES_MAX: usize = 80;

/// The setting of `scope` that `name` probably means: the same setting under the name that it has in the
/// other scope, or one that is a few keystrokes away.
pub(super) fn nearest(scope: &str, name: &str) -> Option<&'static str> {
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    let (table, twin) = match scope {
        "topic" => (TOPIC_SETTINGS, topic_for_broker_name(name)),
        "group" => (GROUP_SETTINGS, None),
        _ => (BROKER_SETTINGS, topic_synonyms(name).first().map(|synonym| synonym.name)),
    };
    if twin.is_some() {
        return twin;
    }
    let wanted = name.to_ascii_lowercase().replace(['_', '-'], ".");
    let allowed = 1 + wanted.len() / 6;
    table
        .iter()
        .filter(|setting| setting.name.len().abs_diff(wanted.len()) <= allowed)
        .map(|setting| (edit_distance(&wanted, setting.name), setting.name))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name)
}

fn topic_for_broker_name(name: &str) -> Option<&'static str> {
    let has = |synonyms: &[TopicSynonym]| synonyms.iter().any(|synonym| synonym.name == name);
    TOPIC_SETTINGS.iter().find(|setting| has(topic_synonyms(setting.name))).map(|setting| setting.name)
}

/// Insertions, deletions, replacements and swaps of neighbours that make `a` of `b` (optimal string
/// alignment, over bytes).
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_keystrokes() {
        for (a, b, distance) in [
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("acb", "abc", 1),
            ("abd", "abc", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
            assert_eq!(edit_distance(b, a), distance, "{b} {a}");
        }
    }

    #[test]
    fn suggestions() {
        for (scope, name, meant) in [
            ("topic", "retention.msec", Some("retention.ms")),
            ("topic", "retention_ms", Some("retention.ms")),
            ("topic", "log.retention.ms", Some("retention.ms")),
            ("topic", "cleanup.polcy", Some("cleanup.policy")),
            ("topic", "message.max.bytes", Some("max.message.bytes")),
            ("topic", "no.such.thing.at.all", None),
            ("broker", "retention.ms", Some("log.retention.ms")),
            ("broker", "num.partition", Some("num.partitions")),
            ("broker", "auto.create.topic.enable", Some("auto.create.topics.enable")),
            ("broker", "max.message.bytes", Some("message.max.bytes")),
            ("broker", "x", None),
        ] {
            assert_eq!(nearest(scope, name), meant, "{scope} {name}");
        }
        assert_eq!(nearest("topic", &"x".repeat(100_000)), None);
    }
}
