//! Which names a topic may have.

use super::TOPIC_NAME_BYTES_MAX;

/// Topics of the broker itself.
const INTERNAL: [&str; 3] = ["__consumer_offsets", "__share_group_state", "__transaction_state"];

/// Whether a topic is the broker's own.
pub fn is_internal_topic(name: &str) -> bool {
    INTERNAL.contains(&name)
}

/// Kafka's rules for names, in its words. What passes is safe as a part of a path.
pub fn check_topic_name(name: &str) -> Result<(), String> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let reason = if name.is_empty() {
        "the empty string is not allowed".to_owned()
    } else if name == "." || name == ".." {
        format!("'{name}' is not allowed")
    } else if name.len() > TOPIC_NAME_BYTES_MAX {
        // Kafka repeats the whole name; an answer need not be as long as the mistake.
        let shown: String = name.chars().take(TOPIC_NAME_BYTES_MAX + 1).collect();
        format!("the length of '{shown}' is longer than the max allowed length {TOPIC_NAME_BYTES_MAX}")
    } else if !name.bytes().all(is_legal) {
        format!("'{name}' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'")
    } else {
        return Ok(());
    };
    Err(format!("Topic name is invalid: {reason}"))
}

/// Names with the same key give the same names of metrics, where '.' becomes '_'; they may not both exist.
pub(super) fn collision_key(name: &str) -> String {
    name.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["a", "A-b_c.9", "...", "__consumer_offsets", &"x".repeat(249)] {
            assert_eq!(check_topic_name(name), Ok(()));
        }
        for (name, reason) in [
            ("", "the empty string is not allowed"),
            (".", "'.' is not allowed"),
            ("..", "'..' is not allowed"),
            ("a b", "'a b' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"),
            ("é", "'é' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"),
            ("a/b", "'a/b' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"),
        ] {
            assert_eq!(check_topic_name(name), Err(format!("Topic name is invalid: {reason}")));
        }
        let long = check_topic_name(&"x".repeat(100_000)).expect_err("too long");
        assert!(long.len() < 400 && long.ends_with("is longer than the max allowed length 249"));
    }
}
