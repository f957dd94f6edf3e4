//! Generates the codec of the Kafka protocol from Kafka's own message definitions.
//!
//! `definitions` gets them (they are in the jars of Kafka's Java client and group coordinator) and checks them; `emit` writes the Rust of one
//! message; `index` the table of APIs; `samples` what `wire/samples` needs to make messages at random and to hand
//! them to an independent codec.

mod definitions;
mod emit;
mod index;
mod samples;

use std::collections::BTreeMap;

use crate::codegen::{Folders, HEADER, rustfmt};
use definitions::Message;

/// The APIs of which code is generated: those that a client may see. Brokers' talk among themselves is left out.
const API_KEYS: &[i16] = &[
    0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 28, 29, 30, 31, 32,
    33, 35, 36, 37, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 60, 61, 65, 66, 68, 69, 71, 72, 74, 75, 76, 77,
    78, 79, 88, 89, 90, 91, 92,
];

/// The types of records of group coordinators of which code is generated: those of offsets, classic groups and consumer
/// groups.
const RECORD_TYPES: &[i16] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 16];

/// What members of a group tell each other.
const DATA: &[&str] = &["ConsumerProtocolAssignment", "ConsumerProtocolSubscription"];

/// Generates every file, formatted.
pub(crate) fn generate() -> Result<Folders, String> {
    let mut messages = definitions::load(API_KEYS)?;
    let group = definitions::load_group(RECORD_TYPES, DATA)?;
    let mut sources = files(&messages);
    sources.insert("mod.rs".to_owned(), index::modules(&messages));
    let mut group_sources = files(&group);
    group_sources.insert("mod.rs".to_owned(), index::group_modules(&group));
    messages.extend(group);
    let one = |name: &str, source: String| BTreeMap::from([(name.to_owned(), source)]);
    let rows = one("mod.rs", samples::samples(&messages));
    let oracle = one("oracle.rs", samples::oracle(&messages));
    let mut folders = Folders::new();
    let made = [
        ("wire/src/messages", sources),
        ("wire/src/group", group_sources),
        ("wire/samples/src/messages", rows),
        ("wire/samples/tests/generated", oracle),
    ];
    for (folder, files) in made {
        let mut formatted = BTreeMap::new();
        for (name, source) in files {
            let source =
                rustfmt(&format!("{HEADER}{source}")).map_err(|reason| format!("{name}: {reason}"))?;
            formatted.insert(name, source);
        }
        folders.insert(folder, formatted);
    }
    Ok(folders)
}

/// The file of each message.
fn files(messages: &[Message]) -> BTreeMap<String, String> {
    messages.iter().map(|message| (format!("{}.rs", message.module()), emit::message(message))).collect()
}

/// Which of a message's versions something holds for, as a Rust expression over `version`; none when it is for all.
fn condition(range: definitions::Versions, message: &Message) -> Option<String> {
    let valid = message.versions;
    match (range.first > valid.first, range.last < valid.last) {
        (false, false) => None,
        (true, false) => Some(format!("version >= {}", range.first)),
        (false, true) => Some(format!("version <= {}", range.last)),
        (true, true) if range.first == range.last => Some(format!("version == {}", range.first)),
        (true, true) => Some(format!("({}..={}).contains(&version)", range.first, range.last)),
    }
}

/// Whether code mentions a name, as a word of its own.
fn mentions(code: &str, name: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name)
}

#[cfg(test)]
mod tests {
    /// Fails with the reason when the definitions can be neither found nor fetched.
    #[test]
    fn the_committed_codec_is_what_the_definitions_give() {
        if let Err(reason) = super::generate().and_then(|folders| crate::codegen::compare(&folders)) {
            panic!("{reason}");
        }
    }
}
