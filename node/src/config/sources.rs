//! Where the texts come from: command line, environment, file.
use super::{Given, Mistake};
use crate::cli::Arguments;
use std::collections::HashMap;
use std::path::Path;

/// The names of all flags that take one value, as they stand in the file too.
const NAMES: [&str; 9] = [
    "node-id",
    "data-dir",
    "kafka-addr",
    "kafka-advertised",
    "admin-addr",
    "cluster-addr",
    "seeds",
    "shards",
    "memory",
];

/// The texts given, by flag, the strongest source only; and all settings, the strongest last.
#[derive(Default)]
pub(super) struct Sources {
    values: HashMap<&'static str, Given>,
    pub(super) settings: Vec<(String, Given)>,
    pub(super) warnings: Vec<String>,
}

impl Sources {
    pub(super) fn take(&mut self, name: &'static str) -> Option<Given> {
        debug_assert!(NAMES.contains(&name));
        self.values.remove(name)
    }
}

pub(super) fn gather(
    arguments: &Arguments,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Sources, Mistake> {
    let mut from_environment = Sources::default();
    let mut file = arguments.config.clone();
    for (name, value) in environment {
        let Some(rest) = name.strip_prefix("FLUMEN_") else { continue };
        if rest == "CONFIG" {
            file = file.or_else(|| Some(value.into()));
        } else {
            from_environment.variable(&name, rest, value)?;
        }
    }
    let mut all = match &file {
        Some(path) => read_file(path)?,
        None => Sources::default(),
    };
    all.values.extend(from_environment.values);
    from_environment.settings.sort_by(|a, b| a.1.source.cmp(&b.1.source));
    all.settings.extend(from_environment.settings);
    all.warnings.extend(from_environment.warnings);
    all.flags(arguments)?;
    Ok(all)
}

impl Sources {
    fn flags(&mut self, arguments: &Arguments) -> Result<(), Mistake> {
        let values = [
            &arguments.node_id,
            &arguments.data_dir,
            &arguments.kafka_addr,
            &arguments.kafka_advertised,
            &arguments.admin_addr,
            &arguments.cluster_addr,
            &arguments.seeds,
            &arguments.shards,
            &arguments.memory,
        ];
        for (name, value) in NAMES.into_iter().zip(values) {
            if let Some(value) = value {
                self.values.insert(name, Given { value: value.clone(), source: format!("--{name}") });
            }
        }
        for pair in &arguments.set {
            self.pair(pair, format!("--set {pair}"))?;
        }
        Ok(())
    }

    fn pair(&mut self, pair: &str, source: String) -> Result<(), Mistake> {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(Mistake::Value {
                source,
                value: pair.to_owned(),
                expected: "KEY=VALUE, as in num.partitions=3".into(),
            });
        };
        let given = Given { value: value.trim().to_owned(), source };
        self.settings.push((name.trim().to_owned(), given));
        Ok(())
    }

    /// One variable of the environment, `rest` without its prefix.
    fn variable(&mut self, variable: &str, rest: &str, value: String) -> Result<(), Mistake> {
        let dashed = rest.to_ascii_lowercase().replace('_', "-");
        if let Some(name) = NAMES.into_iter().find(|name| *name == dashed) {
            // An empty variable is one that is not set: scripts and containers cannot always leave it out.
            if !value.is_empty() {
                self.values.insert(name, Given { value, source: variable.to_owned() });
            }
        } else if rest == "SET" {
            for pair in value.split([';', '\n']).map(str::trim).filter(|pair| !pair.is_empty()) {
                self.pair(pair, format!("{variable}: {pair}"))?;
            }
        } else if let Some(setting) = rest.strip_prefix("SET_") {
            let name = setting.to_ascii_lowercase().replace('_', ".");
            self.settings.push((name, Given { value, source: variable.to_owned() }));
        } else if !is_foreign(rest) {
            self.warnings.push(format!("the environment variable {variable} means nothing to a node"));
        }
        Ok(())
    }
}

/// Variables that mean something elsewhere: logging, tests, and what Kubernetes sets for a service of that name.
fn is_foreign(rest: &str) -> bool {
    matches!(rest, "LOG" | "FAULT" | "FAULT_FILE") || rest.contains("SERVICE_") || rest.starts_with("PORT")
}

fn read_file(path: &Path) -> Result<Sources, Mistake> {
    let wrong = |error: String| Mistake::File(format!("{}: {error}", path.display()));
    let content = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let table: toml::Table = content.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
    let mut sources = Sources::default();
    for (key, value) in &table {
        let source = format!("{}: {key}", path.display());
        let dashed = key.replace('_', "-");
        if dashed == "set" {
            let toml::Value::Table(settings) = value else {
                return Err(wrong("set is a table: write [set], and settings under it".into()));
            };
            flatten(settings, "", path, &mut sources)?;
        } else if let Some(name) = NAMES.into_iter().find(|name| *name == dashed) {
            let value = scalar(value, &source)?;
            sources.values.insert(name, Given { value, source });
        } else {
            return Err(Mistake::UnknownKey(unknown_key(path, key)));
        }
    }
    Ok(sources)
}

fn unknown_key(path: &Path, key: &str) -> String {
    let known = format!("known are {} and the table [set]", NAMES.join(", "));
    match flumen_core::config::check_broker_setting(key, "") {
        Err(flumen_core::config::ConfigError::Unknown { .. }) => {
            format!("{}: unknown key {key}; {known}", path.display())
        }
        _ => format!("{}: {key} is a broker setting: write it under [set]", path.display()),
    }
}

/// Settings under `[set]`: dotted names are tables to TOML, quoted ones are not; both are taken.
fn flatten(table: &toml::Table, prefix: &str, path: &Path, sources: &mut Sources) -> Result<(), Mistake> {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        if let toml::Value::Table(inner) = value {
            flatten(inner, &name, path, sources)?;
        } else {
            let source = format!("{}: {name}", path.display());
            let value = scalar(value, &source)?;
            sources.settings.push((name, Given { value, source }));
        }
    }
    Ok(())
}

/// A value as the flag would have it; a list joined by commas.
fn scalar(value: &toml::Value, source: &str) -> Result<String, Mistake> {
    Ok(match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(flag) => flag.to_string(),
        toml::Value::Array(items) => {
            let items: Result<Vec<String>, Mistake> = items.iter().map(|item| scalar(item, source)).collect();
            items?.join(",")
        }
        toml::Value::Datetime(_) | toml::Value::Table(_) => {
            return Err(Mistake::Value {
                source: source.to_owned(),
                value: value.type_str().to_owned(),
                expected: "a text, a number, true or false, or a list of them".into(),
            });
        }
    })
}
