//! Settings of topics, brokers and groups.

use crate::cluster::{Cluster, Lane};
use crate::error::Error;
use crate::link::Link;
use flumen_wire::messages::describe_configs_request::{DescribeConfigsRequest, DescribeConfigsResource};
use flumen_wire::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig, IncrementalAlterConfigsRequest,
};

/// Whose settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entity {
    /// A topic's.
    Topic(String),
    /// A broker's.
    Broker(i32),
    /// Those that all brokers share.
    Brokers,
    /// A group's.
    Group(String),
}

impl Entity {
    /// Kafka's number of the kind, and the name on the wire.
    fn resource(&self) -> (i8, String) {
        match self {
            Entity::Topic(name) => (2, name.clone()),
            Entity::Broker(id) => (4, id.to_string()),
            Entity::Brokers => (4, String::new()),
            Entity::Group(name) => (32, name.clone()),
        }
    }

    fn about(&self) -> String {
        match self {
            Entity::Topic(name) => format!("topic {name:?}"),
            Entity::Broker(id) => format!("broker {id}"),
            Entity::Brokers => "all brokers".to_owned(),
            Entity::Group(name) => format!("group {name:?}"),
        }
    }

    /// A broker answers for itself, any for the rest.
    async fn link(&self, cluster: &Cluster) -> Result<Link, Error> {
        match self {
            Entity::Broker(id) => cluster.node(*id, Lane::Admin).await,
            _ => cluster.any().await,
        }
    }
}

/// One setting, as it holds.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name.
    pub name: String,
    /// Its value; secrets have none.
    pub value: Option<String>,
    /// Where the value is from.
    pub source: &'static str,
    /// Whether somebody set it, as opposed to its default.
    pub is_set: bool,
    /// Whether it cannot be changed.
    pub read_only: bool,
    /// Whether it is a secret.
    pub sensitive: bool,
}

/// How a setting is to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// To this value.
    Set(String, String),
    /// Back to what it would be otherwise.
    Reset(String),
}

/// The settings of an entity: those named, or all when none is named.
pub async fn describe(cluster: &Cluster, entity: &Entity, keys: &[String]) -> Result<Vec<Config>, Error> {
    let link = entity.link(cluster).await?;
    let (resource_type, name) = entity.resource();
    let answer = link
        .call(|_| DescribeConfigsRequest {
            resources: vec![DescribeConfigsResource {
                resource_type,
                resource_name: &name,
                configuration_keys: (!keys.is_empty()).then(|| keys.iter().map(String::as_str).collect()),
            }],
            ..Default::default()
        })
        .await?;
    let response = answer.read()?;
    let mut configs = Vec::new();
    for result in &response.results {
        Error::check(result.error_code, result.error_message, || entity.about())?;
        for one in &result.configs {
            let (source, is_set) = source(one.config_source);
            configs.push(Config {
                name: one.name.to_owned(),
                value: one.value.map(str::to_owned),
                source,
                is_set,
                read_only: one.read_only,
                sensitive: one.is_sensitive,
            });
        }
    }
    configs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(configs)
}

/// Changes settings, all or none.
pub async fn alter(cluster: &Cluster, entity: &Entity, changes: &[Change]) -> Result<(), Error> {
    let link = entity.link(cluster).await?;
    let (resource_type, name) = entity.resource();
    let change = |one: &'_ Change| match one {
        Change::Set(name, value) => (name.clone(), 0, Some(value.clone())),
        Change::Reset(name) => (name.clone(), 1, None),
    };
    let changes: Vec<(String, i8, Option<String>)> = changes.iter().map(change).collect();
    let answer = link
        .call(|_| IncrementalAlterConfigsRequest {
            resources: vec![AlterConfigsResource {
                resource_type,
                resource_name: &name,
                configs: changes
                    .iter()
                    .map(|(name, config_operation, value)| AlterableConfig {
                        name,
                        config_operation: *config_operation,
                        value: value.as_deref(),
                    })
                    .collect(),
            }],
            validate_only: false,
        })
        .await?;
    for one in answer.read()?.responses {
        Error::check(one.error_code, one.error_message, || entity.about())?;
    }
    Ok(())
}

/// Kafka's numbers of where a value is from, in words, and whether that means that somebody set it.
fn source(code: i8) -> (&'static str, bool) {
    match code {
        1 => ("topic", true),
        2 => ("broker", true),
        3 => ("all brokers", true),
        4 => ("start", true),
        5 => ("default", false),
        6 => ("logger", true),
        7 => ("client metrics", true),
        8 => ("group", true),
        _ => ("unknown", false),
    }
}
