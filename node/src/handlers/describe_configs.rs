//! DescribeConfigs (key 32). KIP-133, KIP-226 (synonyms), KIP-569 (types and documentation).

use std::collections::BTreeSet;
use std::rc::Rc;

use flumen_core::config::{
    BROKER_SETTINGS, ConfigSource, Described, GROUP_SETTINGS, Setting, Settings, TOPIC_SETTINGS,
};
use flumen_core::metadata::{Image, Refused, check_topic_name};
use flumen_core::types::NodeId;
use flumen_wire::ErrorCode;
use flumen_wire::messages::describe_configs_request::{DescribeConfigsRequest, DescribeConfigsResource};
use flumen_wire::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResponse, DescribeConfigsResult, DescribeConfigsSynonym,
};

use super::carried::outcome;
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::runtime;
use crate::shard::Shard;

/// Most memory that the descriptions in one response take, about: enough for the settings of 3,000 topics. A few bytes of
/// request ask for many of response, and the same resource may be named any number of times.
const DESCRIBED_BYTES_MAX: usize = 64 << 20;

/// Kinds of resources, on the wire.
pub(super) mod resource_type {
    pub(crate) const TOPIC: i8 = 2;
    pub(crate) const BROKER: i8 = 4;
    pub(crate) const BROKER_LOGGER: i8 = 8;
    pub(crate) const CLIENT_METRICS: i8 = 16;
    pub(crate) const GROUP: i8 = 32;
}

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: DescribeConfigsRequest<'_> = request.body()?;
    let image = shard.image();
    let node = shard.node_id();
    let settings = image.settings(node, &shard.facts.statics);
    let _alone = shard.large_answer.lock().await;
    let mut budget = DESCRIBED_BYTES_MAX;
    let mut described = Vec::with_capacity(body.resources.len());
    for resource in &body.resources {
        let one = if budget == 0 {
            Err(refused(ErrorCode::InvalidRequest, "Too many configurations are asked for in one request."))
        } else {
            describe(&image, &settings, node, resource)
        };
        let bytes = one.iter().flatten().map(|one| shown_bytes(one, &body)).sum();
        budget = budget.saturating_sub(bytes);
        described.push(one);
        runtime::yield_if_needed().await;
    }
    let results = body.resources.iter().zip(&described);
    let results = results.map(|(resource, described)| result(&body, resource, described)).collect();
    request.respond(&DescribeConfigsResponse { results, ..DescribeConfigsResponse::default() })
}

fn describe(
    image: &Image,
    settings: &Settings,
    node: NodeId,
    resource: &DescribeConfigsResource<'_>,
) -> Result<Vec<Described>, Refused> {
    let name = resource.resource_name;
    match resource.resource_type {
        resource_type::TOPIC => {
            check_topic_name(name).map_err(|text| refused(ErrorCode::InvalidTopicException, text))?;
            if image.topic(name).is_none() {
                return Err(Refused { code: ErrorCode::UnknownTopicOrPartition, message: None });
            }
            let overrides = image.topic_overrides(name);
            let asked = asked(resource, TOPIC_SETTINGS).into_iter();
            Ok(asked.map(|setting| settings.describe_topic(setting, &overrides)).collect())
        }
        resource_type::BROKER if name.is_empty() => Ok(describe_all_brokers(settings, resource)),
        resource_type::BROKER => {
            let id: i32 = name.parse().map_err(|_| {
                let text = format!("Broker id must be an integer, but it is: {name}");
                refused(ErrorCode::InvalidRequest, text)
            })?;
            if id != node.0 {
                let text =
                    format!("Unexpected broker id, expected {node} or empty string, but received {name}");
                return Err(refused(ErrorCode::InvalidRequest, text));
            }
            let asked = asked(resource, BROKER_SETTINGS).into_iter();
            Ok(asked.map(|setting| settings.describe_broker(setting)).collect())
        }
        resource_type::GROUP if name.is_empty() => {
            Err(refused(ErrorCode::InvalidRequest, "Group name must not be empty"))
        }
        resource_type::GROUP => {
            let overrides = image.group_overrides(name).cloned().unwrap_or_default();
            let asked = asked(resource, GROUP_SETTINGS).into_iter();
            Ok(asked.map(|setting| settings.describe_group(setting, &overrides)).collect())
        }
        other => {
            let text = format!("Unsupported resource type: {}", type_name(other));
            Err(refused(ErrorCode::InvalidRequest, text))
        }
    }
}

/// Without a broker's number: what was set for all brokers while running, and that alone.
fn describe_all_brokers(settings: &Settings, resource: &DescribeConfigsResource<'_>) -> Vec<Described> {
    let cluster = Settings { cluster: settings.cluster.clone(), ..Settings::default() };
    let asked = asked(resource, BROKER_SETTINGS).into_iter();
    asked
        .filter(|setting| settings.cluster.contains_key(setting.name))
        .map(|setting| cluster.describe_broker(setting))
        .filter(|described| described.source == ConfigSource::DynamicDefaultBrokerConfig)
        .map(|mut described| {
            described.synonyms.retain(|one| one.source == ConfigSource::DynamicDefaultBrokerConfig);
            described
        })
        .collect()
}

/// The settings of a table that are asked for. No names, and no list of names, ask for all; names that are not known
/// are left out. The names are looked up in the table, and not the other way round: there may be millions of them.
fn asked(resource: &DescribeConfigsResource<'_>, table: &'static [Setting]) -> Vec<&'static Setting> {
    match &resource.configuration_keys {
        Some(names) if !names.is_empty() => {
            let place = |name: &&str| table.binary_search_by(|setting| setting.name.cmp(name)).ok();
            let places: BTreeSet<usize> = names.iter().filter_map(place).collect();
            places.into_iter().map(|place| &table[place]).collect()
        }
        _ => table.iter().collect(),
    }
}

fn type_name(resource_type: i8) -> &'static str {
    match resource_type {
        resource_type::BROKER_LOGGER => "BROKER_LOGGER",
        resource_type::CLIENT_METRICS => "CLIENT_METRICS",
        _ => "UNKNOWN",
    }
}

fn refused(code: ErrorCode, text: impl Into<String>) -> Refused {
    Refused { code, message: Some(text.into()) }
}

/// About how many bytes a description takes until it has left, as it is and in the response.
fn shown_bytes(described: &Described, body: &DescribeConfigsRequest<'_>) -> usize {
    const FIXED_BYTES: usize = 256;
    let len = |value: &Option<String>| value.as_ref().map_or(0, String::len);
    let mut bytes = FIXED_BYTES + described.setting.name.len() + len(&described.value);
    if body.include_synonyms {
        let synonyms = described.synonyms.iter();
        bytes += synonyms.map(|one| FIXED_BYTES + one.name.len() + len(&one.value)).sum::<usize>();
    }
    if body.include_documentation {
        bytes += described.setting.doc.len();
    }
    bytes
}

fn result<'a>(
    body: &DescribeConfigsRequest<'_>,
    resource: &DescribeConfigsResource<'a>,
    described: &'a Result<Vec<Described>, Refused>,
) -> DescribeConfigsResult<'a> {
    let (error_code, error_message) = outcome(described);
    let configs = described.iter().flatten().map(|one| config(body, one)).collect();
    DescribeConfigsResult {
        error_code,
        error_message,
        resource_type: resource.resource_type,
        resource_name: resource.resource_name,
        configs,
    }
}

fn config<'a>(
    body: &DescribeConfigsRequest<'_>,
    described: &'a Described,
) -> DescribeConfigsResourceResult<'a> {
    let synonyms = described.synonyms.iter().filter(|_| body.include_synonyms);
    DescribeConfigsResourceResult {
        name: described.setting.name,
        value: described.value.as_deref(),
        read_only: described.read_only,
        config_source: described.source.code(),
        is_sensitive: described.setting.is_sensitive(),
        synonyms: synonyms
            .map(|one| DescribeConfigsSynonym {
                name: one.name,
                value: one.value.as_deref(),
                source: one.source.code(),
            })
            .collect(),
        config_type: described.setting.kind.code(),
        documentation: body.include_documentation.then_some(described.setting.doc),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flumen_core::config::StaticSettings;
    use flumen_core::metadata::{ConfigResource, Record};
    use flumen_core::types::TopicId;

    use super::*;

    const NODE: NodeId = NodeId(1);

    fn image() -> Image {
        let mut image = Image::default();
        let set = |resource, name: &str, value: &str| Record::Config {
            resource,
            name: name.to_owned(),
            value: Some(value.to_owned()),
        };
        for record in [
            Record::Topic { id: TopicId([1; 16]), name: "t".to_owned() },
            set(ConfigResource::Topic("t".to_owned()), "retention.ms", "5"),
            set(ConfigResource::Broker(None), "log.retention.ms", "7"),
        ] {
            image.replay(&record).expect("fits");
        }
        image
    }

    fn resource<'a>(
        resource_type: i8,
        resource_name: &'a str,
        keys: Option<Vec<&'a str>>,
    ) -> DescribeConfigsResource<'a> {
        DescribeConfigsResource { resource_type, resource_name, configuration_keys: keys }
    }

    fn described(resource: &DescribeConfigsResource<'_>) -> Result<Vec<Described>, Refused> {
        let image = image();
        let settings = image.settings(NODE, &Arc::new(StaticSettings::default()));
        describe(&image, &settings, NODE, resource)
    }

    #[test]
    fn keys_select_and_none_select_all() {
        let some = described(&resource(2, "t", Some(vec!["retention.ms", "no.such", "retention.ms"])))
            .expect("known");
        assert_eq!(some.len(), 1);
        assert_eq!((some[0].value.as_deref(), some[0].source.code()), (Some("5"), 1));
        for keys in [None, Some(vec![])] {
            let all = described(&resource(2, "t", keys)).expect("known");
            assert_eq!(all.len(), TOPIC_SETTINGS.len());
        }
    }

    #[test]
    fn without_a_number_only_what_was_set_for_all_brokers() {
        let all = described(&resource(4, "", None)).expect("known");
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].setting.name, all[0].value.as_deref()), ("log.retention.ms", Some("7")));
        assert_eq!(all[0].synonyms.len(), 1);
    }

    #[test]
    fn what_cannot_be_described() {
        let code =
            |kind, name| described(&resource(kind, name, None)).map(|all| all.len()).map_err(|e| e.code);
        assert_eq!(code(2, "u"), Err(ErrorCode::UnknownTopicOrPartition));
        assert_eq!(code(2, "u u"), Err(ErrorCode::InvalidTopicException));
        assert_eq!(code(2, ""), Err(ErrorCode::InvalidTopicException));
        assert_eq!(code(4, "1"), Ok(BROKER_SETTINGS.len()));
        assert_eq!(code(4, "2"), Err(ErrorCode::InvalidRequest));
        assert_eq!(code(4, "x"), Err(ErrorCode::InvalidRequest));
        assert_eq!(code(32, "g"), Ok(GROUP_SETTINGS.len()));
        assert_eq!(code(32, ""), Err(ErrorCode::InvalidRequest));
        for kind in [0, 1, 3, 8, 16, -1] {
            assert_eq!(code(kind, "1"), Err(ErrorCode::InvalidRequest), "{kind}");
        }
    }

    #[test]
    fn synonyms_and_documentation_are_sent_when_asked_for() {
        let one = described(&resource(2, "t", Some(vec!["retention.ms"]))).expect("known").remove(0);
        let plain = DescribeConfigsRequest::default();
        let sent = config(&plain, &one);
        assert!(sent.synonyms.is_empty() && sent.documentation.is_none());
        let whole = DescribeConfigsRequest {
            include_synonyms: true,
            include_documentation: true,
            ..DescribeConfigsRequest::default()
        };
        let sent = config(&whole, &one);
        let sources: Vec<i8> = sent.synonyms.iter().map(|one| one.source).collect();
        assert_eq!(sources[..2], [1, 3], "{sources:?}");
        assert!(sent.documentation.is_some());
        assert!(shown_bytes(&one, &whole) > shown_bytes(&one, &plain));
    }
}
