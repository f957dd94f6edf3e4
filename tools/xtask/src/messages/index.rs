//! The table of APIs, and the modules of the messages.

use std::fmt::Write;

use super::definitions::{KAFKA_VERSION, Kind, Message};
use super::emit;

/// The file `mod.rs` beside what coordinators and members of groups write, without its header.
pub(crate) fn group_modules(messages: &[Message]) -> String {
    let mut out = format!(
        "//! What group coordinators keep in the records of `__consumer_offsets`, and what members of a group tell \
         each other\n//! in the bytes that JoinGroup and SyncGroup carry.\n//!\n\
         //! Generated from the message definitions of Apache Kafka {KAFKA_VERSION}. How their bytes begin says \n\
         //! [`RecordKey`](crate::codec::RecordKey) and [`Versioned`](crate::codec::Versioned).\n\n"
    );
    for message in messages {
        let _ = writeln!(out, "pub mod {};", message.module());
    }
    out
}

/// The file `mod.rs` beside the messages, without its header.
pub(crate) fn modules(messages: &[Message]) -> String {
    let mut out = format!(
        "//! The messages of the Kafka protocol, one module each, and the APIs that they belong to.\n\
         //!\n//! Generated from the message definitions of Apache Kafka {KAFKA_VERSION}.\n\n"
    );
    for message in messages {
        let _ = writeln!(out, "pub mod {};", message.module());
    }
    let requests: Vec<&Message> = messages.iter().filter(|message| message.kind == Kind::Request).collect();
    out.push_str(
        "\n/// An API of the Kafka protocol, by the key that a request carries.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]\n#[repr(i16)]\npub enum ApiKey {\n",
    );
    for request in &requests {
        let name = emit::api_name(request);
        let _ = writeln!(out, "/// `{name}`.\n{name} = {},", request.key);
    }
    out.push_str("}\n\nimpl ApiKey {\n/// Every API that there is code for, by rising key.\npub const ALL: &[ApiKey] = &[\n");
    for request in &requests {
        let _ = writeln!(out, "ApiKey::{},", emit::api_name(request));
    }
    out.push_str("];\n\n/// The API with this key.\npub const fn from_key(key: i16) -> Option<ApiKey> {\nSome(match key {\n");
    for request in &requests {
        let _ = writeln!(out, "{} => ApiKey::{},", request.key, emit::api_name(request));
    }
    out.push_str("_ => return None,\n})\n}\n\n");
    out.push_str("/// Kafka's name of the API.\npub const fn name(self) -> &'static str {\nmatch self {\n");
    for request in &requests {
        let name = emit::api_name(request);
        let _ = writeln!(out, "ApiKey::{name} => {name:?},");
    }
    out.push_str(
        "}\n}\n\n/// The oldest and the newest version that there is code for.\n\
         pub(crate) const fn versions(self) -> (i16, i16) {\nmatch self {\n",
    );
    for request in &requests {
        let versions = request.versions;
        let _ =
            writeln!(out, "ApiKey::{} => ({}, {}),", emit::api_name(request), versions.first, versions.last);
    }
    out.push_str(
        "}\n}\n\n/// The first version with compact lengths and tagged fields; none when there is not any.\n\
         pub(crate) const fn first_flexible_version(self) -> Option<i16> {\nmatch self {\n",
    );
    for request in &requests {
        let flexible = request.flexible;
        let first = if flexible.is_empty() { "None".to_owned() } else { format!("Some({})", flexible.first) };
        let _ = writeln!(out, "ApiKey::{} => {first},", emit::api_name(request));
    }
    out.push_str("}\n}\n}\n");
    out
}
