//! The Rust of one message: its structures, how they are read, how they are written.
//!
//! The code is plain: one statement per field, a condition where versions differ. rustfmt lays it out afterwards.

use std::fmt::Write;

use super::definitions::{Field, Kind, Message, Struct, Type, Versions};
use super::{condition, mentions};

/// The whole file of one message, without its header.
pub(crate) fn message(message: &Message) -> String {
    let (first, last) = (message.versions.first, message.versions.last);
    let what = match message.kind {
        Kind::Request => format!("the request of API key {}", message.key),
        Kind::Response => format!("the response of API key {}", message.key),
        Kind::RecordKey => format!("the key of records of type {}", message.key),
        Kind::RecordValue => format!("the value of records of type {}", message.key),
        Kind::Data => "what members of a group tell each other".to_owned(),
    };
    let mut out = if first == last {
        format!("//! `{}`: {what}, version {first}.\n\n", message.name)
    } else {
        format!("//! `{}`: {what}, versions {first} to {last}.\n\n", message.name)
    };
    let body: String = message.structs.iter().map(|structure| emit_struct(message, structure)).collect();
    let mut names = vec!["Decode", "DecodeError", "Encode", contract(message), "Reader"];
    if body.contains("Counter::") {
        names.push("Counter");
    }
    if body.contains("Records<'a>") {
        names.push("Records");
    }
    names.push("Sink");
    names.sort_unstable();
    let _ = writeln!(out, "use crate::codec::{{{}}};", names.join(", "));
    out.push_str(if message.is_of_an_api() { "use crate::messages::ApiKey;\n\n" } else { "\n" });
    out + &body
}

/// The trait that says what the message is.
fn contract(message: &Message) -> &'static str {
    match message.kind {
        Kind::Request | Kind::Response => "Message",
        Kind::RecordKey => "RecordKey",
        Kind::RecordValue | Kind::Data => "Versioned",
    }
}

fn emit_struct(message: &Message, structure: &Struct) -> String {
    let mut out = String::new();
    let is_root = structure.name == message.name;
    let name = type_name(message, &structure.name);
    let derived = structure.fields.iter().all(|field| field_default(field) == "Default::default()");
    let derives = if derived { "Clone, Debug, Default, PartialEq" } else { "Clone, Debug, PartialEq" };
    if is_root {
        let body = if message.is_of_an_api() { "The body of a " } else { "" };
        let _ = writeln!(out, "/// {body}`{}`.", structure.name);
    } else {
        let _ = writeln!(out, "/// `{}`, a part of [`{}`].", structure.name, message.name);
    }
    let _ = writeln!(out, "#[derive({derives})]\npub struct {name} {{");
    for field in &structure.fields {
        let _ = writeln!(out, "/// {}", field_doc(message, field));
        let _ = writeln!(out, "pub {}: {},", field.rust_name(), field_type(message, field, "'a"));
    }
    out.push_str("}\n\n");
    if !derived {
        let anonymous = anonymous_name(message, &structure.name);
        let _ = writeln!(out, "impl Default for {anonymous} {{\n#[inline]\nfn default() -> Self {{\nSelf {{");
        for field in &structure.fields {
            let _ = writeln!(out, "{}: {},", field.rust_name(), field_default(field));
        }
        out.push_str("}\n}\n}\n\n");
    }
    if is_root {
        let anonymous = anonymous_name(message, &structure.name);
        let contract = contract(message);
        let Versions { first, last } = message.versions;
        let versions = format!("const MIN_VERSION: i16 = {first};\nconst MAX_VERSION: i16 = {last};\n");
        let constants = match message.kind {
            Kind::Request | Kind::Response => {
                format!("const KEY: ApiKey = ApiKey::{};\n{versions}", api_name(message))
            }
            Kind::RecordKey => format!("const TYPE: i16 = {};\n", message.key),
            Kind::RecordValue | Kind::Data => versions,
        };
        let _ = writeln!(out, "impl {contract} for {anonymous} {{\n{constants}}}\n");
    }
    emit_decode(message, structure, is_root, &mut out);
    emit_encode(message, structure, is_root, &mut out);
    out
}

/// Name of the API in [`ApiKey`]: the message's without its last word.
pub(crate) fn api_name(message: &Message) -> &str {
    let suffix = if message.kind == Kind::Request { "Request" } else { "Response" };
    message.name.strip_suffix(suffix).unwrap_or(&message.name)
}

/// The structure's name, with a lifetime if it has one.
fn type_name(message: &Message, name: &str) -> String {
    if message.struct_borrows(name) { format!("{name}<'a>") } else { name.to_owned() }
}

pub(crate) fn anonymous_name(message: &Message, name: &str) -> String {
    type_name(message, name).replace("'a", "'_")
}

fn rust_type(message: &Message, ty: &Type, lifetime: &str) -> String {
    match ty {
        Type::Bool => "bool".to_owned(),
        Type::I8 => "i8".to_owned(),
        Type::I16 => "i16".to_owned(),
        Type::U16 => "u16".to_owned(),
        Type::I32 => "i32".to_owned(),
        Type::U32 => "u32".to_owned(),
        Type::I64 => "i64".to_owned(),
        Type::F64 => "f64".to_owned(),
        Type::Uuid => "[u8; 16]".to_owned(),
        Type::String => format!("&{lifetime} str"),
        Type::Bytes => format!("&{lifetime} [u8]"),
        Type::Records => format!("Records<{lifetime}>"),
        Type::Struct(name) => type_name(message, name).replace("'a", lifetime),
        Type::Array(element) => format!("Vec<{}>", rust_type(message, element, lifetime)),
    }
}

fn field_type(message: &Message, field: &Field, lifetime: &str) -> String {
    let ty = rust_type(message, &field.ty, lifetime);
    if field.is_nullable() { format!("Option<{ty}>") } else { ty }
}

fn field_doc(message: &Message, field: &Field) -> String {
    let range = |versions: Versions| match (versions.first, versions.last) {
        (first, last) if first == last => format!("version {first}"),
        (first, last) if last == message.versions.last => format!("versions {first}+"),
        (first, last) => format!("versions {first} to {last}"),
    };
    let mut doc = format!("`{}`, {}", field.name, range(field.versions));
    if field.nullable == field.versions {
        doc.push_str("; may be null");
    } else if field.is_nullable() {
        let _ = write!(doc, "; may be null in {}", range(field.nullable));
    }
    if let Some(tag) = field.tag {
        let _ = write!(doc, "; tag {tag}");
    }
    doc + "."
}

/// The value of a field that is not on the wire.
pub(crate) fn field_default(field: &Field) -> String {
    let text = field.default.as_deref().unwrap_or("");
    if field.is_nullable() {
        return match (text, &field.ty) {
            ("null", _) => "Default::default()".to_owned(),
            (_, Type::String) => format!("Some({text:?})"),
            (_, Type::Array(_)) => "Some(Vec::new())".to_owned(),
            (_, Type::Bytes) => "Some(&[])".to_owned(),
            _ => "Some(Default::default())".to_owned(),
        };
    }
    let natural = match field.ty {
        Type::Bool => text.is_empty() || text == "false",
        Type::String | Type::Bytes | Type::Records | Type::Uuid | Type::Struct(_) | Type::Array(_) => {
            text.is_empty()
        }
        _ => text.is_empty() || text == "0",
    };
    match (natural, &field.ty) {
        (true, _) => "Default::default()".to_owned(),
        (false, Type::String) => format!("{text:?}"),
        (false, Type::I32) if text == "-2147483648" => "i32::MIN".to_owned(),
        (false, Type::I64) if text == "9223372036854775807" => "i64::MAX".to_owned(),
        (false, _) => text.to_owned(),
    }
}

/// An expression that tells whether a field is at its default, or that it is not.
fn at_default(field: &Field, expected: bool) -> String {
    let name = format!("self.{}", field.rust_name());
    let default = field_default(field);
    let (equals, not) = if expected { ("==", "") } else { ("!=", "!") };
    match (&field.ty, default.as_str()) {
        (_, "Default::default()") if field.is_nullable() => {
            format!("{name}.{}()", if expected { "is_none" } else { "is_some" })
        }
        (Type::Array(_) | Type::String | Type::Bytes, "Default::default()") => {
            format!("{not}{name}.is_empty()")
        }
        (Type::Bool, default) => {
            let set = if default == "true" { expected } else { !expected };
            format!("{}{name}", if set { "" } else { "!" })
        }
        (Type::Uuid, "Default::default()") => format!("{name} {equals} [0; 16]"),
        (Type::F64, "Default::default()") => format!("{name} {equals} 0.0"),
        (Type::Struct(inner), "Default::default()") => format!("{name} {equals} {inner}::default()"),
        (_, "Default::default()") => format!("{name} {equals} 0"),
        (_, default) => format!("{name} {equals} {default}"),
    }
}

fn emit_decode(message: &Message, structure: &Struct, is_root: bool, out: &mut String) {
    let name = type_name(message, &structure.name);
    let min_size = message.min_size(&Type::Struct(structure.name.clone()), message.versions);
    let tagged: Vec<&Field> = structure.fields.iter().filter(|field| field.tag.is_some()).collect();
    let mut body = String::new();
    for field in &structure.fields {
        let name = field.rust_name();
        if field.tag.is_some() {
            let ty = field_type(message, field, "'a");
            let _ = writeln!(body, "let mut {name}: {ty} = {};", field_default(field));
            continue;
        }
        let read = read_field(message, field);
        let _ = match condition(field.versions, message) {
            None => writeln!(body, "let {name} = {read};"),
            Some(present) => {
                writeln!(body, "let {name} = if {present} {{ {read} }} else {{ {} }};", field_default(field))
            }
        };
    }
    if !message.flexible.is_empty() {
        let tags =
            if tagged.is_empty() { "reader.skip_tags()?;".to_owned() } else { read_tags(message, &tagged) };
        body += &when(condition(message.flexible, message).as_ref().map(|_| "flexible".to_owned()), &tags);
    }
    let names: Vec<String> = structure.fields.iter().map(Field::rust_name).collect();
    let _ = writeln!(body, "Ok(Self {{ {} }})", names.join(", "));
    let _ = writeln!(out, "impl<'a> Decode<'a> for {name} {{\nconst MIN_SIZE: usize = {};\n", min_size);
    let version = parameter("version", &body, is_root);
    let reader = parameter("reader", &body, false);
    let _ =
        writeln!(out, "fn decode({reader}: &mut Reader<'a>, {version}: i16) -> Result<Self, DecodeError> {{");
    if is_root {
        let outside = outside(message.versions);
        let _ = writeln!(out, "if {outside} {{ return Err(DecodeError::UnsupportedVersion); }}");
    }
    out.push_str(&flexible_binding(message, &body));
    out.push_str(&body);
    out.push_str("}\n}\n\n");
}

/// An expression that tells whether a version is one of these.
fn inside(versions: Versions) -> String {
    match versions {
        Versions { first, last } if first == last => format!("version == {first}"),
        Versions { first, last } => format!("({first}..={last}).contains(&version)"),
    }
}

fn outside(versions: Versions) -> String {
    match versions {
        Versions { first, last } if first == last => format!("version != {first}"),
        versions => format!("!{}", inside(versions)),
    }
}

/// `name`, or `_name` if the body does not mention it.
fn parameter(name: &str, body: &str, used: bool) -> String {
    let used = used || mentions(body, name) || (name == "version" && mentions(body, "flexible"));
    if used { name.to_owned() } else { format!("_{name}") }
}

/// Binds `flexible` where it depends on the version and is asked for.
fn flexible_binding(message: &Message, body: &str) -> String {
    match condition(message.flexible, message) {
        Some(flexible) if !message.flexible.is_empty() && mentions(body, "flexible") => {
            format!("let flexible = {flexible};\n")
        }
        _ => String::new(),
    }
}

/// Whether lengths are compact, as an argument.
fn flexible(message: &Message) -> &'static str {
    match (message.flexible.is_empty(), condition(message.flexible, message)) {
        (true, _) => "false",
        (false, None) => "true",
        (false, Some(_)) => "flexible",
    }
}

/// `statements`, under a condition if there is one.
fn when(condition: Option<String>, statements: &str) -> String {
    match condition {
        Some(condition) => format!("if {condition} {{\n{statements}\n}}\n"),
        None => format!("{statements}\n"),
    }
}

fn read_tags(message: &Message, tagged: &[&Field]) -> String {
    let mut out =
        "for _ in 0..reader.tag_count()? {\nlet (tag, end) = reader.tag()?;\nmatch tag {\n".to_owned();
    for field in tagged {
        let tag = field.tag.unwrap_or_default();
        let guard = condition(field.versions.and(message.flexible), message)
            .filter(|_| field.versions != message.flexible)
            .map(|present| format!(" if {present}"))
            .unwrap_or_default();
        let read = read_field(message, field);
        let _ =
            writeln!(out, "{tag}{guard} => {{\n{} = {read};\nreader.end_tag(end)?;\n}}", field.rust_name());
    }
    out + "_ => reader.skip_tag(end)?,\n}\n}"
}

/// An expression that reads a field in a version that has it.
fn read_field(message: &Message, field: &Field) -> String {
    let within = field.versions;
    if field.nullable == field.versions {
        read(message, &field.ty, true, within)
    } else if field.is_nullable() {
        let nullable = condition(field.nullable, message).unwrap_or_else(|| "true".to_owned());
        let (may, must) = (read(message, &field.ty, true, within), read(message, &field.ty, false, within));
        format!("if {nullable} {{ {may} }} else {{ Some({must}) }}")
    } else {
        read(message, &field.ty, false, within)
    }
}

fn read(message: &Message, ty: &Type, nullable: bool, within: Versions) -> String {
    let prefix = if nullable { "nullable_" } else { "" };
    let flexible = flexible(message);
    match ty {
        Type::String => format!("reader.{prefix}string({flexible})?"),
        Type::Bytes => format!("reader.{prefix}bytes({flexible})?"),
        Type::Records if nullable => format!("reader.nullable_bytes({flexible})?.map(Records::Slice)"),
        Type::Records => format!("Records::Slice(reader.bytes({flexible})?)"),
        Type::Struct(_) if nullable => "reader.nullable_struct(version)?".to_owned(),
        Type::Struct(name) => format!("{name}::decode(reader, version)?"),
        Type::Array(element) if matches!(**element, Type::Struct(_)) => {
            format!("reader.{prefix}structs({flexible}, version)?")
        }
        Type::Array(element) => {
            let min_size = message.min_size(element, within);
            let read = read(message, element, false, within);
            let read = read.strip_suffix('?').unwrap_or(&read);
            format!("reader.{prefix}array({flexible}, {min_size}, |reader| {read})?")
        }
        scalar => format!("reader.{}()?", scalar_name(scalar)),
    }
}

/// Whether the element of a loop over an array is written as the reference that it is.
fn borrowed_by_loop(ty: &Type) -> bool {
    matches!(ty, Type::Struct(_) | Type::Array(_) | Type::String | Type::Bytes)
}

fn scalar_name(ty: &Type) -> &'static str {
    match ty {
        Type::Bool => "bool",
        Type::I8 => "i8",
        Type::I16 => "i16",
        Type::U16 => "u16",
        Type::I32 => "i32",
        Type::U32 => "u32",
        Type::I64 => "i64",
        Type::F64 => "f64",
        _ => "uuid",
    }
}

fn emit_encode(message: &Message, structure: &Struct, is_root: bool, out: &mut String) {
    let tagged: Vec<&Field> = structure.fields.iter().filter(|field| field.tag.is_some()).collect();
    let mut body = String::new();
    for field in &structure.fields {
        // Tagged fields are optional by nature: one that the version lacks is left out without a word.
        if field.tag.is_some() {
            continue;
        }
        let present = condition(field.versions, message);
        body += when(present.clone(), &write_field(message, field)).trim_end();
        if present.is_some() && !field.ignorable {
            let (default, holder) = (at_default(field, true), &structure.name);
            let said = format!("{holder}.{} is not in version {{version}}", field.name);
            let _ = write!(body, " else {{ debug_assert!({default}, {said:?}); }}");
        }
        body.push('\n');
    }
    if !message.flexible.is_empty() {
        let tags = write_tags(message, &tagged);
        body += &when(condition(message.flexible, message).map(|_| "flexible".to_owned()), &tags);
    }
    let anonymous = anonymous_name(message, &structure.name);
    let _ = writeln!(out, "impl Encode for {anonymous} {{");
    let version = parameter("version", &body, is_root);
    let sink = parameter("sink", &body, false);
    let _ = writeln!(out, "fn write<S: Sink>(&self, {sink}: &mut S, {version}: i16) {{");
    if is_root {
        let inside = inside(message.versions);
        let _ = writeln!(out, "assert!({inside}, \"{} has no version {{version}}\");", message.name);
    }
    out.push_str(&flexible_binding(message, &body));
    out.push_str(&body);
    out.push_str("}\n}\n\n");
    if !tagged.is_empty() {
        emit_tag_bodies(message, structure, &tagged, out);
    }
}

/// Statements that write the tagged fields that have a value, or that there are none.
fn write_tags(message: &Message, tagged: &[&Field]) -> String {
    if tagged.is_empty() {
        return "sink.uvarint(0);".to_owned();
    }
    let mut sorted = tagged.to_vec();
    sorted.sort_by_key(|field| field.tag);
    let present = |field: &Field| {
        let differs = at_default(field, false);
        let guard = condition(field.versions, message).filter(|_| field.versions != message.flexible);
        match guard {
            Some(guard) => format!("{guard} && {differs}"),
            None => differs,
        }
    };
    let mut out = "let mut tags = 0;\n".to_owned();
    for field in &sorted {
        let _ = writeln!(out, "if {} {{ tags += 1; }}", present(field));
    }
    out.push_str("sink.uvarint(tags);\n");
    for field in &sorted {
        let name = body_name(field);
        let _ = writeln!(
            out,
            "if {} {{\nlet mut size = Counter::default();\nself.{name}(&mut size, version);\n\
             sink.tag({}, size.len());\nself.{name}(sink, version);\n}}",
            present(field),
            field.tag.unwrap_or_default()
        );
    }
    out
}

fn body_name(field: &Field) -> String {
    format!("write_{}", field.rust_name().trim_start_matches("r#"))
}

/// One function per tagged field, as its content is first counted and then written.
fn emit_tag_bodies(message: &Message, structure: &Struct, tagged: &[&Field], out: &mut String) {
    let _ = writeln!(out, "impl {} {{", anonymous_name(message, &structure.name));
    for field in tagged {
        let body = write_field(message, field);
        let version = parameter("version", &body, false);
        let _ = writeln!(out, "fn {}<S: Sink>(&self, sink: &mut S, {version}: i16) {{", body_name(field));
        let _ = writeln!(out, "{}{body}\n}}\n", flexible_binding(message, &body));
    }
    out.push_str("}\n\n");
}

/// Statements that write a field in a version that has it.
fn write_field(message: &Message, field: &Field) -> String {
    let name = format!("self.{}", field.rust_name());
    if field.name == "ErrorCode" && matches!(field.ty, Type::I16) {
        return format!("sink.error_code({name});");
    }
    let write_null = write(message, &field.ty, true, &name);
    if field.nullable == field.versions || !field.is_nullable() {
        return write(message, &field.ty, field.is_nullable(), &name);
    }
    // Null in a version that lacks it goes out as the empty value: a reader would refuse null.
    let nullable = condition(field.nullable, message).unwrap_or_else(|| "true".to_owned());
    let (binding, value) = match field.ty {
        Type::Array(_) => (format!("let value = {name}.as_deref().unwrap_or_default();"), "value"),
        _ => (format!("let value = {name}.unwrap_or_default();"), "value"),
    };
    let write_value = write(message, &field.ty, false, value);
    format!(
        "if {nullable} {{\n{write_null}\n}} else {{\n\
         debug_assert!({name}.is_some(), \"{} is null in version {{version}}\");\n{binding}\n{write_value}\n}}",
        field.name
    )
}

fn write(message: &Message, ty: &Type, nullable: bool, value: &str) -> String {
    let prefix = if nullable { "nullable_" } else { "" };
    let flexible = flexible(message);
    match ty {
        Type::String => format!("sink.{prefix}string({value}, {flexible});"),
        Type::Bytes => format!("sink.{prefix}bytes({value}, {flexible});"),
        Type::Records => format!("sink.{prefix}records({value}, {flexible});"),
        Type::Struct(_) if nullable => format!("sink.nullable_struct({value}.as_ref(), version);"),
        Type::Struct(_) => format!("{value}.write(sink, version);"),
        Type::Array(element) => {
            let by_value = !borrowed_by_loop(element);
            let element_name = if by_value { "*element" } else { "element" };
            let each = write(message, element, false, element_name);
            if nullable {
                format!(
                    "sink.len({value}.as_ref().map(Vec::len), {flexible});\n\
                     for element in {value}.iter().flatten() {{ {each} }}"
                )
            } else {
                let borrowed = if value == "value" { "value".to_owned() } else { format!("&{value}") };
                format!("sink.len(Some({value}.len()), {flexible});\nfor element in {borrowed} {{ {each} }}")
            }
        }
        scalar => format!("sink.{}({value});", scalar_name(scalar)),
    }
}
