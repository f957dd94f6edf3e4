//! Subscriptions by regular expression: the topics whose whole name matches.
//!
//! The syntax is RE2's, as in Kafka, which crate `regex` shares up to rarities. Like RE2 it takes time linear in the
//! name, whatever the expression; what an expression may take to compile is bounded here.

use std::sync::Arc;

use flumen_wire::ErrorCode;
use regex::{Regex, RegexBuilder};

use super::Refused;
use crate::limits::{GROUP_EXPRESSION_BYTES_MAX, GROUP_EXPRESSION_COMPILED_BYTES_MAX};
use crate::metadata::{Image, is_internal_topic};

/// Checks an expression that a member came with, and makes it fit for [`matching`].
pub(super) fn compile(expression: &str) -> Result<Regex, Refused> {
    let invalid = |reason: String| {
        let shown: String = expression.chars().take(80).collect();
        Refused::new(
            ErrorCode::InvalidRegularExpression,
            format!("SubscribedTopicRegex `{shown}` is not a valid regular expression: {reason}."),
        )
    };
    if expression.len() > GROUP_EXPRESSION_BYTES_MAX {
        return Err(invalid(format!("it is longer than {GROUP_EXPRESSION_BYTES_MAX} bytes")));
    }
    // On its own first: within the group it might be completed by what surrounds it.
    bounded(expression)
        .and_then(|_| bounded(&format!(r"\A(?:{expression})\z")))
        .map_err(|error| invalid(reason(&error)))
}

fn bounded(expression: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(expression)
        .size_limit(GROUP_EXPRESSION_COMPILED_BYTES_MAX)
        .dfa_size_limit(GROUP_EXPRESSION_COMPILED_BYTES_MAX)
        .build()
}

/// The last line of an error, which says what is wrong; those above it repeat and point into the expression.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default().trim();
    last.trim_start_matches("error: ").trim_end_matches('.').to_owned()
}

/// The names of topics that match, in rising order. Topics of the broker itself never do.
pub(super) fn matching(regex: &Regex, image: &Image) -> Vec<Arc<str>> {
    image
        .topics()
        .filter(|topic| !is_internal_topic(&topic.name) && regex.is_match(&topic.name))
        .map(|topic| Arc::clone(&topic.name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_names_match() {
        let matches = |expression: &str, name: &str| compile(expression).expect("valid").is_match(name);
        assert!(matches("a|bc", "bc"));
        assert!(!matches("a|bc", "abc"));
        assert!(matches("orders-.*", "orders-eu"));
        assert!(!matches("orders", "orders-eu"));
        assert!(!matches("rders", "orders"));
        assert!(matches("(?i)ORDERS", "orders"));
        assert!(matches("^orders$", "orders"));
        assert!(matches(r"\p{L}+\d", "orders1"));
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for bad in
            ["[", "a)(b", "*", "(?<name", r"\y", "(?=look)", r"(a)\1", "x{1000}{1000}", &"a".repeat(5_000)]
        {
            let refused = compile(bad).expect_err(bad);
            assert_eq!(refused.code, ErrorCode::InvalidRegularExpression);
            assert!(refused.message.len() < 400, "{}", refused.message);
        }
        assert_eq!(
            compile("[").expect_err("no class").message,
            "SubscribedTopicRegex `[` is not a valid regular expression: unclosed character class."
        );
    }
}
