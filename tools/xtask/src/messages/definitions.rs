//! Kafka's message definitions: where they come from, and what of them the generator understands.
//!
//! They are JSON with comments, one file per message, inside the jars of Kafka's Java client and of its group
//! coordinator. The jars are taken from the local Maven repository, and fetched into it by Maven when they are not
//! there. Anything in a definition that this does not know ends the generation: a key that is passed over would be a
//! message that is wrong.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Map, Value};

/// The release of Apache Kafka whose protocol we speak.
pub(crate) const KAFKA_VERSION: &str = "4.3.1";

/// A range of versions, both ends included; empty when the first is above the last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Versions {
    pub(crate) first: i16,
    pub(crate) last: i16,
}

impl Versions {
    pub(crate) const NONE: Versions = Versions { first: 1, last: 0 };

    fn parse(text: &str) -> Result<Versions, String> {
        let number = |text: &str| text.parse::<i16>().map_err(|_| format!("versions: {text:?}"));
        if text == "none" {
            Ok(Versions::NONE)
        } else if let Some(first) = text.strip_suffix('+') {
            Ok(Versions { first: number(first)?, last: i16::MAX })
        } else if let Some((first, last)) = text.split_once('-') {
            Ok(Versions { first: number(first)?, last: number(last)? })
        } else {
            Ok(Versions { first: number(text)?, last: number(text)? })
        }
    }

    pub(crate) fn and(self, other: Versions) -> Versions {
        let both = Versions { first: self.first.max(other.first), last: self.last.min(other.last) };
        if both.is_empty() { Versions::NONE } else { both }
    }

    pub(crate) fn is_empty(self) -> bool {
        self.first > self.last
    }

    pub(crate) fn contains(self, version: i16) -> bool {
        (self.first..=self.last).contains(&version)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Request,
    Response,
    /// Key of a record of a coordinator's log.
    RecordKey,
    /// Value of such a record.
    RecordValue,
    /// What members of a group tell each other.
    Data,
}

/// One message.
#[derive(Debug)]
pub(crate) struct Message {
    /// Such as `FetchRequest`.
    pub(crate) name: String,
    /// Of the API, or the type of the record; -1 of what is neither.
    pub(crate) key: i16,
    pub(crate) kind: Kind,
    pub(crate) versions: Versions,
    pub(crate) flexible: Versions,
    /// The message's own structure first, then those that it is made of.
    pub(crate) structs: Vec<Struct>,
}

#[derive(Debug)]
pub(crate) struct Struct {
    pub(crate) name: String,
    pub(crate) fields: Vec<Field>,
}

#[derive(Debug)]
pub(crate) struct Field {
    /// Kafka's name, such as `LogStartOffset`.
    pub(crate) name: String,
    pub(crate) ty: Type,
    /// Never empty: fields that no valid version has are dropped.
    pub(crate) versions: Versions,
    pub(crate) nullable: Versions,
    pub(crate) tag: Option<u32>,
    pub(crate) default: Option<String>,
    pub(crate) ignorable: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Type {
    Bool,
    I8,
    I16,
    U16,
    I32,
    U32,
    I64,
    F64,
    Uuid,
    String,
    Bytes,
    Records,
    Struct(String),
    Array(Box<Type>),
}

impl Message {
    /// Whether it is the body of a request or a response.
    pub(crate) fn is_of_an_api(&self) -> bool {
        matches!(self.kind, Kind::Request | Kind::Response)
    }

    /// Name of the Rust module.
    pub(crate) fn module(&self) -> String {
        snake_case(&self.name)
    }

    pub(crate) fn structure(&self, name: &str) -> Option<&Struct> {
        self.structs.iter().find(|structure| structure.name == name)
    }

    /// Whether a type holds text or bytes that borrow from the frame.
    pub(crate) fn borrows(&self, ty: &Type) -> bool {
        match ty {
            Type::String | Type::Bytes | Type::Records => true,
            Type::Array(element) => self.borrows(element),
            Type::Struct(name) => self.struct_borrows(name),
            _ => false,
        }
    }

    pub(crate) fn struct_borrows(&self, name: &str) -> bool {
        self.structure(name).is_some_and(|s| s.fields.iter().any(|field| self.borrows(&field.ty)))
    }

    /// The fewest bytes of a value on the wire, over all versions in which it occurs.
    pub(crate) fn min_size(&self, ty: &Type, within: Versions) -> usize {
        let within = within.and(self.versions);
        let versions = (within.first..=within.last).filter(|version| match ty {
            Type::Struct(name) => self.occurs(name, *version),
            _ => true,
        });
        versions.map(|version| self.size_in(ty, version)).min().unwrap_or(0)
    }

    /// Whether a structure is anywhere in a version of the message.
    fn occurs(&self, name: &str, version: i16) -> bool {
        name == self.name
            || self.structs.iter().any(|holder| {
                let mut fields = holder.fields.iter().filter(|field| field.versions.contains(version));
                fields.any(|field| field.ty.innermost() == &Type::Struct(name.to_owned()))
                    && self.occurs(&holder.name, version)
            })
    }

    /// The fewest bytes of a value in one version.
    fn size_in(&self, ty: &Type, version: i16) -> usize {
        let flexible = self.flexible.contains(version);
        match ty {
            Type::Bool | Type::I8 => 1,
            Type::I16 | Type::U16 => 2,
            Type::I32 | Type::U32 => 4,
            Type::I64 | Type::F64 => 8,
            Type::Uuid => 16,
            Type::String if !flexible => 2,
            Type::Bytes | Type::Records | Type::Array(_) if !flexible => 4,
            Type::String | Type::Bytes | Type::Records | Type::Array(_) => 1,
            Type::Struct(name) => {
                let fields = self.structure(name).map(|s| s.fields.as_slice()).unwrap_or_default();
                let present = fields.iter().filter(|f| f.tag.is_none() && f.versions.contains(version));
                let sizes = present.map(|field| match field.ty {
                    Type::Struct(_) if field.nullable.contains(version) => 1,
                    _ => self.size_in(&field.ty, version),
                });
                sizes.sum::<usize>() + usize::from(flexible)
            }
        }
    }
}

impl Type {
    /// The type itself, or what an array of arrays of it is made of in the end.
    pub(crate) fn innermost(&self) -> &Type {
        match self {
            Type::Array(element) => element.innermost(),
            other => other,
        }
    }
}

impl Field {
    /// Name of the Rust field.
    pub(crate) fn rust_name(&self) -> String {
        let name = snake_case(&self.name);
        if matches!(name.as_str(), "type" | "match") { format!("r#{name}") } else { name }
    }

    pub(crate) fn is_nullable(&self) -> bool {
        !self.nullable.is_empty()
    }
}

/// `LogStartOffset` to `log_start_offset`; a run of capitals is one word.
pub(crate) fn snake_case(name: &str) -> String {
    let characters: Vec<char> = name.chars().collect();
    let mut snake = String::new();
    for (place, character) in characters.iter().enumerate() {
        let after_lower = place > 0 && !characters[place - 1].is_uppercase();
        let before_lower = characters.get(place + 1).is_some_and(|next| next.is_lowercase());
        if place > 0 && character.is_uppercase() && (after_lower || before_lower) {
            snake.push('_');
        }
        snake.extend(character.to_lowercase());
    }
    snake
}

/// Reads the definitions of these APIs, sorted by key, a request before its response.
pub(crate) fn load(keys: &[i16]) -> Result<Vec<Message>, String> {
    let wanted = |kind, key, _: &str| matches!(kind, Kind::Request | Kind::Response) && keys.contains(&key);
    let messages = load_from("kafka-clients", wanted)?;
    if messages.len() != 2 * keys.len() {
        return Err(format!("{} messages of {} APIs", messages.len(), keys.len()));
    }
    Ok(messages)
}

/// Reads the definitions of these types of records in the log of group coordinators, a key before its value, and then
/// those of the data that members tell each other.
pub(crate) fn load_group(record_types: &[i16], data: &[&str]) -> Result<Vec<Message>, String> {
    let mut messages = load_from("kafka-group-coordinator", |kind, key, _| {
        matches!(kind, Kind::RecordKey | Kind::RecordValue) && record_types.contains(&key)
    })?;
    messages.extend(load_from("kafka-clients", |kind, _, name| kind == Kind::Data && data.contains(&name))?);
    if messages.len() != 2 * record_types.len() + data.len() {
        return Err(format!("{} messages of {} types of records", messages.len(), record_types.len()));
    }
    Ok(messages)
}

/// Reads the definitions of one jar that are wanted, by kind, key and name.
fn load_from(artifact: &str, wanted: impl Fn(Kind, i16, &str) -> bool) -> Result<Vec<Message>, String> {
    let path = jar(artifact)?;
    let name = path.display();
    let file = File::open(&path).map_err(|error| format!("{name}: {error}"))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| format!("{name}: {error}"))?;
    let mut messages = Vec::new();
    for place in 0..archive.len() {
        let mut entry = archive.by_index(place).map_err(|error| format!("{name}: {error}"))?;
        let entry_name = entry.name().map_err(|error| format!("{name}: {error}"))?.into_owned();
        if !entry_name.starts_with("common/message/") || !entry_name.ends_with(".json") {
            continue;
        }
        let mut text = String::new();
        entry.read_to_string(&mut text).map_err(|error| format!("{entry_name}: {error}"))?;
        let message = parse(&text, &wanted).map_err(|reason| format!("{entry_name}: {reason}"))?;
        messages.extend(message);
    }
    messages.sort_by(|a, b| (a.key, a.kind, &a.name).cmp(&(b.key, b.kind, &b.name)));
    Ok(messages)
}

/// A jar in the local Maven repository, fetched by Maven when it is not there.
fn jar(artifact: &str) -> Result<PathBuf, String> {
    let home = std::env::home_dir().ok_or("the home folder is not known")?;
    let name = format!("org/apache/kafka/{artifact}/{KAFKA_VERSION}/{artifact}-{KAFKA_VERSION}.jar");
    let path = home.join(".m2/repository").join(name);
    if path.exists() {
        return Ok(path);
    }
    let artifact = format!("-Dartifact=org.apache.kafka:{artifact}:{KAFKA_VERSION}");
    let output = Command::new("mvn")
        .args(["-q", "-B", "dependency:get", &artifact, "-Dtransitive=false"])
        .output()
        .map_err(|error| format!("{} is missing and Maven cannot be run: {error}", path.display()))?;
    if !path.exists() {
        let said = String::from_utf8_lossy(&output.stdout);
        return Err(format!("{} is missing and Maven could not fetch it: {said}", path.display()));
    }
    Ok(path)
}

/// Parses one definition; none when it is not wanted.
fn parse(text: &str, wanted: impl Fn(Kind, i16, &str) -> bool) -> Result<Option<Message>, String> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let value: Value = serde_json::from_str(&lines.join("\n")).map_err(|error| error.to_string())?;
    let object = value.as_object().ok_or("not an object")?;
    let kind = match string(object, "type")? {
        "request" => Kind::Request,
        "response" => Kind::Response,
        "coordinator-key" => Kind::RecordKey,
        "coordinator-value" => Kind::RecordValue,
        "data" => Kind::Data,
        _ => return Ok(None),
    };
    let key = object.get("apiKey").and_then(Value::as_i64).map_or(Ok(-1), i16::try_from);
    let key = key.map_err(|error| error.to_string())?;
    let name = string(object, "name")?.to_owned();
    if !wanted(kind, key, &name) {
        return Ok(None);
    }
    let known = "apiKey type name listeners validVersions flexibleVersions latestVersionUnstable fields commonStructs";
    refuse_unknown(object, known)?;
    let versions = Versions::parse(string(object, "validVersions")?)?;
    let flexible = Versions::parse(string(object, "flexibleVersions")?)?.and(versions);
    let mut message = Message { name, key, kind, versions, flexible, structs: Vec::new() };
    let fields = object.get("fields").ok_or("no fields")?;
    parse_struct(&message.name, fields, versions, &mut message.structs)?;
    if let Some(shared) = object.get("commonStructs") {
        for shared in shared.as_array().ok_or("commonStructs is not an array")? {
            let shared = shared.as_object().ok_or("a common structure is not an object")?;
            let within = Versions::parse(string(shared, "versions")?)?.and(versions);
            let fields = shared.get("fields").ok_or("no fields")?;
            parse_struct(string(shared, "name")?, fields, within, &mut message.structs)?;
        }
    }
    settle_records(&mut message);
    check(&message)?;
    Ok(Some(message))
}

fn parse_struct(
    name: &str,
    fields: &Value,
    within: Versions,
    structs: &mut Vec<Struct>,
) -> Result<(), String> {
    let place = structs.len();
    structs.push(Struct { name: name.to_owned(), fields: Vec::new() });
    for field in fields.as_array().ok_or("fields is not an array")? {
        let object = field.as_object().ok_or("a field is not an object")?;
        let field = parse_field(object, within).map_err(|reason| format!("{name}: {reason}"))?;
        if field.versions.is_empty() {
            continue;
        }
        if let (Type::Struct(inner), Some(fields)) = (field.ty.innermost(), object.get("fields")) {
            parse_struct(inner, fields, field.versions, structs)?;
        }
        structs[place].fields.push(field);
    }
    Ok(())
}

fn parse_field(object: &Map<String, Value>, within: Versions) -> Result<Field, String> {
    let known = "name type versions nullableVersions taggedVersions tag default ignorable about entityType mapKey \
                 zeroCopy fields";
    refuse_unknown(object, known)?;
    let name = string(object, "name")?.to_owned();
    let range = |key: &str| match object.get(key) {
        Some(_) => Versions::parse(string(object, key)?),
        None => Ok(Versions::NONE),
    };
    let versions = range("versions")?.and(within);
    let tag = match object.get("tag") {
        Some(tag) => {
            Some(tag.as_u64().and_then(|tag| u32::try_from(tag).ok()).ok_or("a tag is not a number")?)
        }
        None => None,
    };
    let tagged = range("taggedVersions")?.and(within);
    if (tag.is_some() || !tagged.is_empty()) && tagged != versions {
        return Err(format!("{name} is tagged in some versions only, which this generator does not know"));
    }
    let default = match object.get("default") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => Some(other.to_string()),
        None => None,
    };
    let ignorable = object.get("ignorable").is_some_and(|value| value == true);
    let ty = parse_type(string(object, "type")?)?;
    let nullable = range("nullableVersions")?.and(versions);
    Ok(Field { name, ty, versions, nullable, tag, default, ignorable })
}

fn parse_type(name: &str) -> Result<Type, String> {
    Ok(match name {
        "bool" => Type::Bool,
        "int8" => Type::I8,
        "int16" => Type::I16,
        "uint16" => Type::U16,
        "int32" => Type::I32,
        "uint32" => Type::U32,
        "int64" => Type::I64,
        "float64" => Type::F64,
        "uuid" => Type::Uuid,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "records" => Type::Records,
        _ => match name.strip_prefix("[]") {
            Some(element) => Type::Array(Box::new(parse_type(element)?)),
            None if name.starts_with(char::is_uppercase) => Type::Struct(name.to_owned()),
            None => return Err(format!("type {name} is not known")),
        },
    })
}

/// Records are null unless set; and only a response can have them sent from elsewhere, to a request they are bytes.
fn settle_records(message: &mut Message) {
    for field in message.structs.iter_mut().flat_map(|structure| &mut structure.fields) {
        if field.ty == Type::Records {
            if field.is_nullable() && field.default.is_none() {
                field.default = Some("null".to_owned());
            }
            if message.kind == Kind::Request {
                field.ty = Type::Bytes;
            }
        }
    }
}

/// What the rest of the generator takes for granted.
fn check(message: &Message) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for structure in &message.structs {
        refuse_recursion(message, structure, &mut vec![&structure.name])?;
    }
    for structure in &message.structs {
        if !names.insert(&structure.name) {
            return Err(format!("two structures are named {}", structure.name));
        }
        for field in &structure.fields {
            if field.tag.is_some() && field.versions.and(message.flexible) != field.versions {
                return Err(format!("{} is tagged in a version that has no tags", field.name));
            }
            if field.rust_name() == "version" && message.versions.first < message.versions.last {
                return Err(format!("{} hides the version, which other fields depend on", field.name));
            }
            if let Type::Array(element) = &field.ty
                && message.min_size(element, field.versions) == 0
            {
                return Err(format!(
                    "elements of {} may have no bytes: counts would be unbounded",
                    field.name
                ));
            }
        }
    }
    Ok(())
}

/// A structure inside itself would let the frame say how deep a decoder recurses.
fn refuse_recursion<'m>(
    message: &'m Message,
    inside: &'m Struct,
    path: &mut Vec<&'m str>,
) -> Result<(), String> {
    for field in &inside.fields {
        let Type::Struct(name) = field.ty.innermost() else { continue };
        if path.contains(&name.as_str()) {
            return Err(format!("{name} holds itself"));
        }
        let structure = message.structure(name).ok_or_else(|| format!("{name} is not defined"))?;
        path.push(name);
        refuse_recursion(message, structure, path)?;
        path.pop();
    }
    Ok(())
}

fn string<'v>(object: &'v Map<String, Value>, key: &str) -> Result<&'v str, String> {
    object.get(key).and_then(Value::as_str).ok_or_else(|| format!("{key} is missing"))
}

fn refuse_unknown(object: &Map<String, Value>, known: &str) -> Result<(), String> {
    match object.keys().find(|key| !known.split_whitespace().any(|known| known == *key)) {
        Some(key) => Err(format!("{key} is not known to this generator")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_rusts() {
        for (kafka, rust) in
            [("LogStartOffset", "log_start_offset"), ("ISRNodes", "isr_nodes"), ("Name", "name")]
        {
            assert_eq!(snake_case(kafka), rust);
        }
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(Versions::parse("3-13"), Ok(Versions { first: 3, last: 13 }));
        assert_eq!(Versions::parse("4"), Ok(Versions { first: 4, last: 4 }));
        assert_eq!(Versions::parse("none"), Ok(Versions::NONE));
        let later = Versions::parse("7+").expect("a range");
        assert_eq!(later.and(Versions { first: 3, last: 13 }), Versions { first: 7, last: 13 });
        assert!(later.and(Versions { first: 3, last: 6 }).is_empty());
        assert!(Versions::parse("x").is_err());
    }
}
