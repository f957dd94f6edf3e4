//! InitProducerId (key 22): identities of idempotent producers. KIP-98, KIP-360.
//!
//! Each shard gives ids out of a block of its own; the controller gives the blocks, durably, so that no id is ever
//! given twice. What is left of a block when the node stops is lost, as in Kafka.

use std::net::SocketAddr;
use std::rc::Rc;

use flumen_core::metadata::{ProducerIdBlock, Refused};
use flumen_wire::ErrorCode;
use flumen_wire::messages::init_producer_id_request::InitProducerIdRequest;
use flumen_wire::messages::init_producer_id_response::InitProducerIdResponse;
use futures_util::lock::Mutex;

use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

/// What stands for no producer id and for no epoch.
const NONE: i64 = -1;

/// The producer ids that a shard may give out. Taken while a new block is fetched, so that one fetch serves all who
/// wait.
#[derive(Default)]
pub(crate) struct ProducerIds(Mutex<Option<ProducerIdBlock>>);

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: InitProducerIdRequest<'_> = request.body()?;
    let assigned = match refusal(&body) {
        Some(code) => Err(code),
        None => next_id(shard, request.connection.peer).await,
    };
    let answer = InitProducerIdResponse::default();
    let answer = match assigned {
        Ok(producer_id) => InitProducerIdResponse { producer_id, producer_epoch: 0, ..answer },
        Err(code) => InitProducerIdResponse {
            error_code: code.code(),
            producer_id: NONE,
            producer_epoch: NONE as i16,
            ..answer
        },
    };
    request.respond(&answer)
}

fn refusal(body: &InitProducerIdRequest<'_>) -> Option<ErrorCode> {
    if body.transactional_id.is_some() {
        // Transactions are not served. Of the codes that say no, this is the one that both the Java client and
        // librdkafka take as final; after others they ask again until their own time is up.
        return Some(ErrorCode::TransactionalIdAuthorizationFailed);
    }
    if (body.producer_id == NONE) != (i64::from(body.producer_epoch) == NONE) {
        return Some(ErrorCode::InvalidRequest);
    }
    // A producer that has an id and wants a higher epoch gets a new id instead, as in Kafka: only of transactional
    // ones is anything known that an epoch could be counted on.
    None
}

async fn next_id(shard: &Rc<Shard>, peer: SocketAddr) -> Result<i64, ErrorCode> {
    let mut block = shard.producer_ids.0.lock().await;
    if let Some(id) = take(&mut block) {
        return Ok(id);
    }
    let node = shard.node_id();
    let fetched = shard.decide(move |controller| controller.allocate_producer_ids(node)).await;
    match fetched {
        Ok(fetched) => {
            *block = Some(fetched);
            Ok(take(&mut block).expect("a new block is not empty"))
        }
        Err(Refused { code, message }) => {
            let reason = format!("no producer ids: {code}: {}", message.unwrap_or_default());
            crate::net::Requests::complain(&**shard, peer, &reason);
            // As in Kafka: clients ask again after this one.
            Err(ErrorCode::CoordinatorLoadInProgress)
        }
    }
}

/// The next id of a block, if it has one left.
fn take(block: &mut Option<ProducerIdBlock>) -> Option<i64> {
    let left = block.as_mut().filter(|block| block.len > 0)?;
    let id = left.first;
    left.first += 1;
    left.len -= 1;
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_gives_each_of_its_ids_once() {
        let mut block = Some(ProducerIdBlock { first: 1_000, len: 3 });
        let given: Vec<i64> = std::iter::from_fn(|| take(&mut block)).collect();
        assert_eq!(given, [1_000, 1_001, 1_002]);
        assert_eq!(take(&mut None), None);
    }

    #[test]
    fn who_gets_an_id() {
        let body = |transactional_id, producer_id, producer_epoch| {
            let default = InitProducerIdRequest::default();
            InitProducerIdRequest { transactional_id, producer_id, producer_epoch, ..default }
        };
        assert_eq!(refusal(&body(None, -1, -1)), None);
        assert_eq!(refusal(&body(None, 7, 3)), None);
        assert_eq!(refusal(&body(None, 7, -1)), Some(ErrorCode::InvalidRequest));
        assert_eq!(refusal(&body(None, -1, 3)), Some(ErrorCode::InvalidRequest));
        let transactional = refusal(&body(Some("t"), -1, -1));
        assert_eq!(transactional, Some(ErrorCode::TransactionalIdAuthorizationFailed));
    }
}
