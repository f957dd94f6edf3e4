//! Settings: altered, whole (the old way) or one by one (KIP-339).

use flumen_wire::ErrorCode;

use super::OVERRIDES_MAX;
use super::controller::{Controller, Decision, Draft, Refused};
use super::image::Image;
use super::record::{ConfigResource, Record};
use super::topics::duplicates;
use crate::config::{
    Kind, Overrides, Setting, Settings, Update, broker_setting, check_broker_setting, check_group_setting,
    check_topic_setting, group_setting, list_items, topic_setting, unknown,
};
use crate::limits::{ALTERED_RESOURCES_MAX, CONFIGURED_GROUP_ID_BYTES_MAX, CONFIGURED_GROUPS_MAX};
use crate::types::NodeId;

/// What is done to one setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlterOp {
    /// It gets this value.
    Set,
    /// It goes back to what lies below.
    Delete,
    /// These items are added to its list.
    Append,
    /// These items are taken off its list.
    Subtract,
}

impl AlterOp {
    /// From the code on the wire.
    pub fn from_code(code: i8) -> Option<AlterOp> {
        match code {
            0 => Some(AlterOp::Set),
            1 => Some(AlterOp::Delete),
            2 => Some(AlterOp::Append),
            3 => Some(AlterOp::Subtract),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            AlterOp::Set => "SET",
            AlterOp::Delete => "DELETE",
            AlterOp::Append => "APPEND",
            AlterOp::Subtract => "SUBTRACT",
        }
    }
}

/// One change of one setting.
#[derive(Clone, Copy, Debug)]
pub struct ConfigChange<'a> {
    /// The setting.
    pub name: &'a str,
    /// What is done to it, as its code on the wire.
    pub operation: i8,
    /// With which value.
    pub value: Option<&'a str>,
}

/// Changes for one resource: a topic, a broker or a group, as the protocol names it.
#[derive(Clone, Debug)]
pub struct ResourceChanges<'a> {
    /// 2 for topics, 4 for brokers, 32 for groups.
    pub resource_type: i8,
    /// The topic's name, the broker's number, or nothing for all brokers, the group's id.
    pub resource_name: &'a str,
    /// What is changed.
    pub changes: Vec<ConfigChange<'a>>,
}

impl ConfigResource {
    /// From the protocol's type and name.
    pub fn parse(resource_type: i8, name: &str) -> Result<ConfigResource, Refused> {
        let invalid = |text: String| Err(Refused::new(ErrorCode::InvalidRequest, text));
        match (resource_type, name) {
            (2, "") => invalid("Default topic resources are not allowed.".to_owned()),
            (2, name) => Ok(ConfigResource::Topic(name.to_owned())),
            (4, "") => Ok(ConfigResource::Broker(None)),
            (4, name) => match name.parse::<i32>() {
                Ok(node) if node >= 0 => Ok(ConfigResource::Broker(Some(NodeId(node)))),
                Ok(_) => invalid("Invalid negative broker ID.".to_owned()),
                Err(_) => invalid(format!("Node id must be an integer, but it is: {name}")),
            },
            (32, "") => invalid("Default group resources are not allowed.".to_owned()),
            (32, id) if id.len() > CONFIGURED_GROUP_ID_BYTES_MAX => {
                invalid(format!("The group's id is longer than {CONFIGURED_GROUP_ID_BYTES_MAX} bytes."))
            }
            (32, id) => Ok(ConfigResource::Group(id.to_owned())),
            (8 | 16, _) => invalid(format!("Unexpected resource type {}.", type_name(resource_type))),
            _ => invalid(format!("Unknown resource type {resource_type}")),
        }
    }

    fn setting(&self, name: &str) -> Option<&'static Setting> {
        match self {
            ConfigResource::Topic(_) => topic_setting(name),
            ConfigResource::Broker(_) => broker_setting(name),
            ConfigResource::Group(_) => group_setting(name),
        }
    }

    fn scope(&self) -> &'static str {
        match self {
            ConfigResource::Topic(_) => "topic",
            ConfigResource::Broker(_) => "broker",
            ConfigResource::Group(_) => "group",
        }
    }
}

fn type_name(resource_type: i8) -> &'static str {
    match resource_type {
        8 => "BROKER_LOGGER",
        _ => "CLIENT_METRICS",
    }
}

impl Controller<'_> {
    /// The settings below those of topics, as they are in an image.
    pub(super) fn settings(&self, image: &Image) -> Settings {
        // What one node alone was told must not decide over a topic.
        image.settings(NodeId(-1), self.statics)
    }

    /// Changes settings one by one.
    pub fn incremental_alter_configs(
        &self,
        resources: &[ResourceChanges<'_>],
        validate_only: bool,
    ) -> Decision<Vec<Result<(), Refused>>> {
        self.alter(resources, validate_only, |resource, current, changes| {
            let mut overrides = current.clone();
            for change in changes {
                apply(resource, &mut overrides, change)?;
            }
            Ok(overrides)
        })
    }

    /// Sets a resource's settings, all of them: what is not named goes back to what lies below. The operation
    /// of each change is not looked at.
    pub fn alter_configs(
        &self,
        resources: &[ResourceChanges<'_>],
        validate_only: bool,
    ) -> Decision<Vec<Result<(), Refused>>> {
        self.alter(resources, validate_only, |resource, _, changes| {
            let mut overrides = Overrides::new();
            for change in changes {
                set(resource, &mut overrides, change.name, change.value)?;
            }
            Ok(overrides)
        })
    }

    fn alter(
        &self,
        resources: &[ResourceChanges<'_>],
        validate_only: bool,
        change: impl Fn(&ConfigResource, &Overrides, &[ConfigChange<'_>]) -> Result<Overrides, Refused>,
    ) -> Decision<Vec<Result<(), Refused>>> {
        if resources.len() > ALTERED_RESOURCES_MAX {
            let text = format!("More than {ALTERED_RESOURCES_MAX} resources in one request.");
            let refused = || Err(Refused::new(ErrorCode::InvalidRequest, text.clone()));
            let responses = resources.iter().map(|_| refused()).collect();
            return self.draft().into_decision(responses, validate_only);
        }
        let twice = duplicates(resources.iter().map(|one| (one.resource_type, one.resource_name)));
        let mut draft = self.draft();
        let mut responses = Vec::with_capacity(resources.len());
        for one in resources {
            let decided = if twice.contains(&(one.resource_type, one.resource_name)) {
                Err(Refused::new(ErrorCode::InvalidRequest, "Each resource must appear at most once."))
            } else {
                self.alter_resource(&draft, one, &change)
            };
            let decided = decided.and_then(|records| draft.check_configs(&records).map(|()| records));
            responses.push(decided.map(|records| draft.extend(records)));
        }
        draft.into_decision(responses, validate_only)
    }

    fn alter_resource(
        &self,
        draft: &Draft,
        one: &ResourceChanges<'_>,
        change: impl Fn(&ConfigResource, &Overrides, &[ConfigChange<'_>]) -> Result<Overrides, Refused>,
    ) -> Result<Vec<Record>, Refused> {
        let resource = ConfigResource::parse(one.resource_type, one.resource_name)?;
        check_exists(&draft.image, &resource)?;
        let twice = duplicates(one.changes.iter().map(|change| change.name));
        if let Some(change) = one.changes.iter().find(|change| twice.contains(change.name)) {
            let text = format!("Error due to duplicate config keys : {}", change.name);
            return Err(Refused::new(ErrorCode::InvalidRequest, text));
        }
        let current = draft.image.overrides(&resource).cloned().unwrap_or_default();
        let altered = change(&resource, &current, &one.changes)?;
        assert!(altered.len() <= OVERRIDES_MAX);
        self.check_altered(draft, &resource, &altered)?;
        let names = current.keys().chain(altered.keys().filter(|name| !current.contains_key(*name)));
        let changed = names.filter(|name| current.get(*name) != altered.get(*name));
        Ok(changed
            .map(|name| Record::Config {
                resource: resource.clone(),
                name: name.clone(),
                value: altered.get(name).cloned(),
            })
            .collect())
    }

    /// What the settings of a resource must satisfy together.
    fn check_altered(
        &self,
        draft: &Draft,
        resource: &ConfigResource,
        altered: &Overrides,
    ) -> Result<(), Refused> {
        let mut settings = self.settings(&draft.image);
        match resource {
            ConfigResource::Topic(_) => return Ok(settings.check_topic(altered)?),
            ConfigResource::Group(_) => {
                let is_new = draft.image.overrides(resource).is_none() && !altered.is_empty();
                if is_new && draft.image.configured_groups() >= CONFIGURED_GROUPS_MAX {
                    let text = format!("{CONFIGURED_GROUPS_MAX} groups have settings of their own already.");
                    return Err(Refused::new(ErrorCode::PolicyViolation, text));
                }
                return Ok(settings.check_group(altered)?);
            }
            ConfigResource::Broker(None) => settings.cluster = altered.clone().into(),
            ConfigResource::Broker(Some(_)) => settings.broker = altered.clone().into(),
        }
        Ok(settings.check_topic(&Overrides::new())?)
    }
}

fn check_exists(image: &Image, resource: &ConfigResource) -> Result<(), Refused> {
    match resource {
        ConfigResource::Topic(name) if image.topic(name).is_none() => Err(Refused::new(
            ErrorCode::UnknownTopicOrPartition,
            format!("The topic '{name}' does not exist."),
        )),
        ConfigResource::Broker(Some(node)) if image.broker(*node).is_none() => {
            Err(Refused::new(ErrorCode::BrokerIdNotRegistered, format!("No broker with id {node} found.")))
        }
        _ => Ok(()),
    }
}

/// One incremental change.
fn apply(
    resource: &ConfigResource,
    overrides: &mut Overrides,
    change: &ConfigChange<'_>,
) -> Result<(), Refused> {
    let operation = AlterOp::from_code(change.operation).ok_or_else(|| {
        Refused::new(ErrorCode::InvalidRequest, format!("Unknown operations type {}", change.operation))
    })?;
    if operation == AlterOp::Set {
        return set(resource, overrides, change.name, change.value);
    }
    let setting =
        resource.setting(change.name).ok_or_else(|| Refused::from(unknown(resource.scope(), change.name)))?;
    check_updatable(resource, setting)?;
    if operation == AlterOp::Delete {
        overrides.remove(setting.name);
        return Ok(());
    }
    if setting.kind != Kind::List {
        let text =
            format!("Can't {} to key {} because its type is not LIST.", operation.name(), setting.name);
        return Err(Refused::new(ErrorCode::InvalidConfig, text));
    }
    let given = change.value.ok_or_else(|| no_value(change.name))?;
    let current = overrides.get(setting.name).map_or(setting.default.unwrap_or(""), String::as_str);
    let mut items: Vec<&str> = list_items(current).collect();
    for item in list_items(given) {
        match operation {
            AlterOp::Subtract => items.retain(|present| *present != item),
            _ if items.contains(&item) => {}
            _ => items.push(item),
        }
    }
    let joined = items.join(",");
    set(resource, overrides, change.name, Some(&joined))
}

/// Sets one value, if it may be set.
fn set(
    resource: &ConfigResource,
    overrides: &mut Overrides,
    name: &str,
    value: Option<&str>,
) -> Result<(), Refused> {
    let value = value.ok_or_else(|| no_value(name))?;
    let setting = match resource {
        ConfigResource::Topic(_) => check_topic_setting(name, value)?,
        ConfigResource::Broker(_) => check_broker_setting(name, value)?,
        ConfigResource::Group(_) => check_group_setting(name, value)?,
    };
    check_updatable(resource, setting)?;
    // Blanks around it mean nothing.
    overrides.insert(setting.name.to_owned(), value.trim().to_owned());
    Ok(())
}

fn check_updatable(resource: &ConfigResource, setting: &Setting) -> Result<(), Refused> {
    let invalid =
        |text: &str| Err(Refused::new(ErrorCode::InvalidRequest, format!("{text}: Set({})", setting.name)));
    match (resource, setting.update) {
        (ConfigResource::Topic(_) | ConfigResource::Group(_), _)
        | (ConfigResource::Broker(_), Update::ClusterWide) => Ok(()),
        (ConfigResource::Broker(Some(_)), Update::PerBroker) => Ok(()),
        (ConfigResource::Broker(None), Update::PerBroker) => {
            invalid("Cannot update these configs at default cluster level, broker id must be specified")
        }
        (ConfigResource::Broker(_), Update::ReadOnly) => invalid("Cannot update these configs dynamically"),
    }
}

fn no_value(name: &str) -> Refused {
    Refused::new(ErrorCode::InvalidRequest, format!("Null value not supported for : {name}"))
}
