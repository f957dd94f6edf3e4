//! ListConfigResources (key 74): what has settings. KIP-714 (version 0: subscriptions to clients' metrics), KIP-1142
//! (everything).

use std::rc::Rc;

use flumen_core::metadata::{ConfigResource as Configured, Image};
use flumen_wire::ErrorCode;
use flumen_wire::messages::list_config_resources_request::ListConfigResourcesRequest;
use flumen_wire::messages::list_config_resources_response::{ConfigResource, ListConfigResourcesResponse};

use super::describe_configs::resource_type::{BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP, TOPIC};
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

/// What may be asked for, in the order of the answer. Of groups those are listed that have settings of their own.
/// Subscriptions to clients' metrics and loggers have none here: their lists are empty.
const SUPPORTED: [i8; 5] = [GROUP, CLIENT_METRICS, BROKER_LOGGER, BROKER, TOPIC];

pub(super) fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: ListConfigResourcesRequest = request.body()?;
    let image = shard.image();
    let asked = asked(request.version, &body.resource_types);
    let nodes: Vec<String> = image.brokers().map(|broker| broker.node.to_string()).collect();
    let answer = ListConfigResourcesResponse::default();
    let answer = match asked {
        Ok(asked) => ListConfigResourcesResponse { config_resources: list(&image, &nodes, &asked), ..answer },
        Err(code) => ListConfigResourcesResponse { error_code: code.code(), ..answer },
    };
    request.respond(&answer)
}

/// The kinds that are asked for; no kinds stand for all.
fn asked(version: i16, kinds: &[i8]) -> Result<Vec<i8>, ErrorCode> {
    if version == 0 {
        return Ok(vec![CLIENT_METRICS]);
    }
    if kinds.iter().any(|kind| !SUPPORTED.contains(kind)) {
        return Err(ErrorCode::UnsupportedVersion);
    }
    Ok(SUPPORTED.into_iter().filter(|kind| kinds.is_empty() || kinds.contains(kind)).collect())
}

fn list<'a>(image: &'a Image, nodes: &'a [String], asked: &[i8]) -> Vec<ConfigResource<'a>> {
    let mut resources = Vec::new();
    for kind in asked {
        let mut add = |name| resources.push(ConfigResource { resource_name: name, resource_type: *kind });
        match *kind {
            BROKER => nodes.iter().for_each(|node| add(node)),
            GROUP => image.configured().for_each(|resource| {
                if let Configured::Group(id) = resource {
                    add(id);
                }
            }),
            TOPIC => image.topics().for_each(|topic| add(&topic.name)),
            _ => {}
        }
    }
    resources
}

#[cfg(test)]
mod tests {
    use flumen_core::metadata::Record;
    use flumen_core::types::TopicId;

    use super::*;

    #[test]
    fn which_kinds() {
        assert_eq!(asked(0, &[]), Ok(vec![16]));
        assert_eq!(asked(1, &[]), Ok(vec![32, 16, 8, 4, 2]));
        assert_eq!(asked(1, &[2, 4, 2]), Ok(vec![4, 2]));
        assert_eq!(asked(1, &[2, 64]), Err(ErrorCode::UnsupportedVersion));
    }

    #[test]
    fn what_there_is() {
        let mut image = Image::default();
        let topic = Record::Topic { id: TopicId([1; 16]), name: "t".to_owned() };
        let (name, value) = ("consumer.session.timeout.ms".to_owned(), Some("50000".to_owned()));
        let group = Record::Config { resource: Configured::Group("g".to_owned()), name, value };
        for record in [topic, group] {
            image.replay(&record).expect("fits");
        }
        let nodes = ["1".to_owned()];
        let listed = list(&image, &nodes, &[32, 16, 8, 4, 2]);
        let listed: Vec<(i8, &str)> =
            listed.iter().map(|one| (one.resource_type, one.resource_name)).collect();
        assert_eq!(listed, [(32, "g"), (4, "1"), (2, "t")]);
    }
}
