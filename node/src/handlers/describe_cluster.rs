//! DescribeCluster (key 60). KIP-700, KIP-919 (kinds of endpoints), KIP-1073 (fenced brokers).

use std::rc::Rc;

use flumen_core::metadata::Broker;
use flumen_wire::ErrorCode;
use flumen_wire::messages::describe_cluster_request::DescribeClusterRequest;
use flumen_wire::messages::describe_cluster_response::{DescribeClusterBroker, DescribeClusterResponse};

use super::authorized_operations as operations;
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

/// An endpoint that serves clients of brokers; this one.
const BROKERS: i8 = 1;
/// An endpoint that serves clients of controllers.
const CONTROLLERS: i8 = 2;

pub(super) fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: DescribeClusterRequest = request.body()?;
    let image = shard.image();
    let cluster_id = image.cluster_id().map(|id| id.to_string()).unwrap_or_default();
    let answer = DescribeClusterResponse {
        cluster_id: &cluster_id,
        // Never -1, not even in an error: some clients end on it.
        controller_id: shard.node_id().0,
        error_message: None,
        ..DescribeClusterResponse::default()
    };
    if let Err((code, text)) = check_endpoint(body.endpoint_type) {
        let answer =
            DescribeClusterResponse { error_code: code.code(), error_message: Some(&text), ..answer };
        return request.respond(&answer);
    }
    // Nobody fences brokers yet, so those that are there are all that can be asked for.
    let answer = DescribeClusterResponse {
        brokers: image.brokers().filter_map(broker).collect(),
        cluster_authorized_operations: operations::when_asked(
            body.include_cluster_authorized_operations,
            operations::CLUSTER,
        ),
        ..answer
    };
    request.respond(&answer)
}

fn check_endpoint(endpoint_type: i8) -> Result<(), (ErrorCode, String)> {
    match endpoint_type {
        BROKERS => Ok(()),
        CONTROLLERS => {
            let text = "The request was sent to an endpoint of type BROKER, but we wanted an endpoint of type \
                        CONTROLLER";
            Err((ErrorCode::MismatchedEndpointType, text.to_owned()))
        }
        other => Err((ErrorCode::UnsupportedEndpointType, format!("Unsupported endpoint type {other}"))),
    }
}

fn broker(broker: &Broker) -> Option<DescribeClusterBroker<'_>> {
    let listener = broker.listeners.first()?;
    Some(DescribeClusterBroker {
        broker_id: broker.node.0,
        host: &listener.host,
        port: i32::from(listener.port),
        rack: broker.rack.as_deref(),
        ..DescribeClusterBroker::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_brokers_are_described() {
        assert_eq!(check_endpoint(1), Ok(()));
        assert_eq!(check_endpoint(2).map_err(|(code, _)| code), Err(ErrorCode::MismatchedEndpointType));
        for unknown in [0, 3, -1] {
            let refused =
                Err((ErrorCode::UnsupportedEndpointType, format!("Unsupported endpoint type {unknown}")));
            assert_eq!(check_endpoint(unknown), refused);
        }
    }
}
