//! DeleteTopics (key 20). KIP-516 (by id, from version 6).

use std::collections::HashSet;
use std::rc::Rc;

use flumen_core::metadata::{DeleteTopic, DeletedTopic, Refused};
use flumen_core::types::TopicId;
use flumen_wire::ErrorCode;
use flumen_wire::messages::delete_topics_request::DeleteTopicsRequest;
use flumen_wire::messages::delete_topics_response::{DeletableTopicResult, DeleteTopicsResponse};

use super::carried::{Carried, outcome, per_part};
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

/// The first version that names topics by one of name and id.
const TOPIC_ID_VERSION: i16 = 6;
/// The first version whose clients know TOPIC_DELETION_DISABLED.
const DELETION_DISABLED_VERSION: i16 = 3;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: DeleteTopicsRequest<'_> = request.body()?;
    let asked = asked(&body, request.version);
    let carried = Carried::with_timeout(request, body.timeout_ms);
    let version = request.version;
    let decided = shard.decide(move |controller| {
        carried.check_in_time()?;
        let body: DeleteTopicsRequest<'_> = carried.body();
        Ok(controller.delete_topics(&self::asked(&body, version)))
    });
    let mut decided = per_part(decided.await, asked.len());
    if version < DELETION_DISABLED_VERSION {
        decided.iter_mut().for_each(in_old_words);
    }
    let mut seen = HashSet::new();
    // What stands in the request twice is refused, once.
    let responses = asked
        .iter()
        .zip(&decided)
        .filter(|(topic, _)| seen.insert((topic.name, topic.id)))
        .map(|(topic, decided)| result(topic, decided))
        .collect();
    request.respond(&DeleteTopicsResponse { responses, ..DeleteTopicsResponse::default() })
}

fn asked<'a>(body: &DeleteTopicsRequest<'a>, version: i16) -> Vec<DeleteTopic<'a>> {
    if version >= TOPIC_ID_VERSION {
        let topics = body.topics.iter();
        topics.map(|topic| DeleteTopic { name: topic.name, id: TopicId(topic.topic_id) }).collect()
    } else {
        let names = body.topic_names.iter();
        names.map(|name| DeleteTopic { name: Some(name), id: TopicId::ZERO }).collect()
    }
}

fn in_old_words(decided: &mut Result<DeletedTopic, Refused>) {
    if let Err(refused) = decided
        && refused.code == ErrorCode::TopicDeletionDisabled
    {
        refused.code = ErrorCode::InvalidRequest;
    }
}

/// A deleted topic is answered by name and id, whichever of them was given.
fn result<'a>(
    topic: &DeleteTopic<'a>,
    decided: &'a Result<DeletedTopic, Refused>,
) -> DeletableTopicResult<'a> {
    let (error_code, error_message) = outcome(decided);
    let (name, id) = match decided {
        Ok(deleted) => (Some(deleted.name.as_str()), deleted.id),
        Err(_) => (topic.name, topic.id),
    };
    DeletableTopicResult { name, topic_id: id.0, error_code, error_message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deleted_topic_has_name_and_id() {
        let id = TopicId([7; 16]);
        let decided = Ok(DeletedTopic { id, name: "t".to_owned() });
        let result = result(&DeleteTopic { name: None, id }, &decided);
        assert_eq!((result.name, result.topic_id, result.error_code), (Some("t"), [7; 16], 0));
    }

    #[test]
    fn an_unknown_id_has_no_name() {
        let decided = Err(Refused { code: ErrorCode::UnknownTopicId, message: None });
        let result = result(&DeleteTopic { name: None, id: TopicId([7; 16]) }, &decided);
        assert_eq!((result.name, result.topic_id, result.error_code), (None, [7; 16], 100));
    }

    #[test]
    fn old_clients_hear_of_disabled_deletion_in_words_that_they_know() {
        let mut decided = Err(Refused { code: ErrorCode::TopicDeletionDisabled, message: None });
        in_old_words(&mut decided);
        assert_eq!(decided, Err(Refused { code: ErrorCode::InvalidRequest, message: None }));
    }
}
