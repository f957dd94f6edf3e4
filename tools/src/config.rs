//! `flumen config`.

use crate::cli::{ConfigCommand, EntityKind};
use crate::failure::Failure;
use crate::output::{Column, Out, Table};
use crate::topic::Outcomes;
use flumen_client::Cluster;
use flumen_client::admin::configs::{self, Change, Config, Entity};
use serde_json::{Value, json};

pub(crate) async fn run(cluster: &Cluster, command: ConfigCommand, out: &mut Out) -> Result<(), Failure> {
    match command {
        ConfigCommand::Get { kind, name, keys, changed } => {
            get(cluster, &entity(kind, &name)?, &keys, changed, out).await
        }
        ConfigCommand::Set { kind, name, configs, reset } => {
            let changes: Vec<Change> = configs
                .into_iter()
                .map(|(key, value)| Change::Set(key, value))
                .chain(reset.into_iter().map(Change::Reset))
                .collect();
            configs::alter(cluster, &entity(kind, &name)?, &changes).await?;
            let mut outcomes = Outcomes::new("SETTING");
            for change in changes {
                match change {
                    Change::Set(key, value) => outcomes.add(key, Ok(format!("set to {value}"))),
                    Change::Reset(key) => outcomes.add(key, Ok("reset".to_owned())),
                }
            }
            outcomes.print(out)
        }
    }
}

fn entity(kind: EntityKind, name: &str) -> Result<Entity, Failure> {
    Ok(match kind {
        EntityKind::Topic => Entity::Topic(name.to_owned()),
        EntityKind::Group => Entity::Group(name.to_owned()),
        EntityKind::Broker if name == "all" => Entity::Brokers,
        EntityKind::Broker => {
            let number = name.parse().ok().filter(|id| *id >= 0);
            Entity::Broker(number.ok_or_else(|| {
                Failure::usage(format!("broker {name:?}: give its number (`flumen cluster info`), or all"))
            })?)
        }
    })
}

async fn get(
    cluster: &Cluster,
    entity: &Entity,
    keys: &[String],
    changed: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let configs = configs::describe(cluster, entity, keys).await?;
    if let Some(missing) = keys.iter().find(|key| !configs.iter().any(|config| config.name == **key)) {
        return Err(Failure::usage(format!("there is no setting {missing:?}; without a name all are shown")));
    }
    let shown = configs.iter().filter(|config| !changed || config.is_set);
    if out.is_json() {
        let one = |config: &Config| {
            json!({
                "name": config.name,
                "value": config.value,
                "source": config.source,
                "read_only": config.read_only,
                "sensitive": config.sensitive,
            })
        };
        return out.json(&shown.map(one).collect::<Vec<Value>>().into());
    }
    let mut table = Table::new(&[Column::Whole("SETTING"), Column::Text("VALUE"), Column::Whole("FROM")]);
    for config in shown {
        table.row(vec![config.name.clone(), value_of(config).to_owned(), config.source.to_owned()]);
    }
    out.table(&table)
}

/// As it is shown. A secret is not; a setting may also have no value at all.
pub(crate) fn value_of(config: &Config) -> &str {
    match &config.value {
        Some(value) => value,
        None if config.sensitive => "(secret)",
        None => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_secrets_are_called_so() {
        let config = |value: Option<&str>, sensitive| Config {
            name: "n".to_owned(),
            value: value.map(str::to_owned),
            source: "default",
            is_set: false,
            read_only: false,
            sensitive,
        };
        for (value, sensitive, shown) in
            [(Some("5"), false, "5"), (None, false, "-"), (None, true, "(secret)"), (Some(""), false, "")]
        {
            assert_eq!(value_of(&config(value, sensitive)), shown);
        }
    }
}
