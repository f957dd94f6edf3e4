//! What `wire/samples` needs of every message: how to make one at random, and which message of the independent
//! codec is the same.

use std::fmt::Write;

use super::definitions::{Field, Kind, Message, Type};
use super::emit;
use super::{condition, mentions};

/// Random messages, and one row per message that tests go over.
pub(crate) fn samples(messages: &[Message]) -> String {
    let mut out =
        "//! Messages at random, for tests: in every version, with the fields that the version has.\n\n\
                   // One statement per field reads as the definition does.\n\
                   #![allow(clippy::field_reassign_with_default)]\n\n\
                   use flumen_wire::codec::{Decode, Reader};\nuse flumen_wire::{group as g, messages as m};\n\
                   use flumen_wire::codec::Records;\n\nuse crate::{Row, Sample, Seed, encoded};\n\n"
            .to_owned();
    for message in messages {
        for structure in &message.structs {
            let name = emit::anonymous_name(message, &structure.name).replace("'_", "'static");
            let mut body = String::new();
            for field in &structure.fields {
                let set = format!("value.{} = {};", field.rust_name(), sample_field(message, field));
                let _ = match condition(field.versions, message) {
                    Some(present) => writeln!(body, "if {present} {{ {set} }}"),
                    None => writeln!(body, "{set}"),
                };
            }
            // Not as the name of a field.
            let asked = body.replace(".version =", "");
            let version = if mentions(&asked, "version") { "version" } else { "_version" };
            let _ = writeln!(
                out,
                "impl Sample for {}::{name} {{\nfn sample(seed: &mut Seed, {version}: i16) -> Self {{\n\
                 let mut value = Self::default();\n{body}value\n}}\n}}\n",
                path(message)
            );
        }
    }
    out.push_str("/// Every message.\npub const ROWS: &[Row] = &[\n");
    for message in messages {
        let ty = format!("{}::{}", path(message), message.name);
        let key = if message.is_of_an_api() { message.key } else { -1 };
        let (first, last) = (message.versions.first, message.versions.last);
        let _ = writeln!(
            out,
            "Row {{\nname: {:?},\nkey: {},\nrequest: {},\nversions: ({first}, {last}),\n\
             sample: |seed, version| {{\nlet value = {ty}::sample(seed, version);\n\
             let bytes = encoded(&value, version);\n\
             let again = {ty}::decode(&mut Reader::new(&bytes), version);\n\
             assert_eq!(again, Ok(value), \"version {{version}}\");\nbytes\n}},\n\
             recode: |bytes, version| {{\nlet mut reader = Reader::new(bytes);\n\
             let value = {ty}::decode(&mut reader, version)?;\nreader.finish()?;\n\
             Ok(encoded(&value, version))\n}},\n\
             decode: |bytes, version| {ty}::decode(&mut Reader::new(bytes), version).map(drop),\n\
             default: |version| encoded(&{ty}::default(), version),\n}},",
            message.name,
            key,
            message.kind == Kind::Request,
        );
    }
    out.push_str("];\n");
    out
}

/// The module of a message, by the short names of the generated file.
fn path(message: &Message) -> String {
    let folder = if message.is_of_an_api() { "m" } else { "g" };
    format!("{folder}::{}", message.module())
}

fn sample_field(message: &Message, field: &Field) -> String {
    let value = sample(&field.ty);
    if field.nullable == field.versions {
        format!("seed.maybe(|seed| {value})")
    } else if field.is_nullable() {
        let nullable = condition(field.nullable, message).unwrap_or_else(|| "true".to_owned());
        format!("if {nullable} {{ seed.maybe(|seed| {value}) }} else {{ Some({value}) }}")
    } else {
        value
    }
}

fn sample(ty: &Type) -> String {
    match ty {
        Type::Bool => "seed.bool()".to_owned(),
        Type::I8 => "seed.number() as i8".to_owned(),
        Type::I16 => "seed.number() as i16".to_owned(),
        Type::U16 => "seed.number() as u16".to_owned(),
        Type::I32 => "seed.number() as i32".to_owned(),
        Type::U32 => "seed.number() as u32".to_owned(),
        Type::I64 => "seed.number()".to_owned(),
        Type::F64 => "seed.number() as f64".to_owned(),
        Type::Uuid => "seed.uuid()".to_owned(),
        Type::String => "seed.string()".to_owned(),
        Type::Bytes => "seed.bytes()".to_owned(),
        Type::Records => "Records::Slice(seed.bytes())".to_owned(),
        Type::Struct(_) => "Sample::sample(seed, version)".to_owned(),
        Type::Array(element) => format!("seed.list(|seed| {})", sample(element)),
    }
}

/// APIs that the independent codec lacks altogether: StreamsGroupHeartbeat, StreamsGroupDescribe.
const NOT_IN_ORACLE: &[i16] = &[88, 89];

/// The same messages in the codec that ours is compared with.
pub(crate) fn oracle(messages: &[Message]) -> String {
    let mut out =
        "//! The messages of the independent codec, by name.\n\nuse kafka_protocol::messages as theirs;\n\n\
                   use crate::Oracle;\n\n/// Each message's name, and the independent codec of it.\n\
                   pub(crate) const ORACLES: &[(&str, Oracle)] = &[\n"
            .to_owned();
    let is_known = |message: &&Message| {
        // Records of coordinators are not part of a client's protocol.
        matches!(message.kind, Kind::Request | Kind::Response | Kind::Data)
            && !NOT_IN_ORACLE.contains(&message.key)
    };
    for message in messages.iter().filter(is_known) {
        let _ = writeln!(out, "({0:?}, Oracle::of::<theirs::{0}>()),", message.name);
    }
    out.push_str("];\n");
    out
}
