//! What the handlers of groups have in common: who asks, and the refusal of a coordinator.

use std::collections::HashSet;

use flumen_core::coordinator::{Answer, Caller};
use flumen_wire::ErrorCode;
use futures_util::stream::{self, StreamExt};

use super::{Refusal, Request, at_most};

/// Most groups that one request may name.
const GROUPS_PER_REQUEST_MAX: usize = 100_000;
/// Of how many groups of one request the coordinators are asked at once.
const GROUPS_AT_ONCE: usize = 64;

/// Who asks, on its way to the coordinator's shard.
pub(super) struct Who {
    client_id: String,
    client_host: String,
    version: i16,
}

impl Who {
    pub(super) fn of(request: &Request) -> Who {
        Who {
            client_id: request.client_id().to_owned(),
            // As Kafka shows it: Java prints an address that was not looked up behind a slash.
            client_host: format!("/{}", request.connection.peer.ip().to_canonical()),
            version: request.version,
        }
    }

    pub(super) fn caller(&self) -> Caller<'_> {
        Caller { client_id: &self.client_id, client_host: &self.client_host, version: self.version }
    }
}

/// Refuses a request that names too many groups.
pub(super) fn check_count(groups: usize) -> Result<(), Refusal> {
    at_most(groups, GROUPS_PER_REQUEST_MAX, "groups")
}

/// What comes of asking for each group that a request names, in their order: few at a time.
pub(super) async fn each<F: Future>(
    asked: impl ExactSizeIterator<Item = F>,
) -> Result<Vec<F::Output>, Refusal> {
    check_count(asked.len())?;
    Ok(stream::iter(asked).buffered(GROUPS_AT_ONCE).collect().await)
}

/// Of each group that a request names, whether it was named before: the same may be named any number of times, and what is to
/// be said of it is large.
pub(super) fn are_repeated<'a>(groups: impl Iterator<Item = &'a str>) -> Vec<bool> {
    let mut seen = HashSet::new();
    groups.map(|group| !seen.insert(group)).collect()
}

/// The code of an answer that has nothing else to say.
pub(super) fn code(answer: &Answer) -> ErrorCode {
    match answer {
        Answer::Failed(code) => *code,
        other => unreachable!("an answer of another kind: {other:?}"),
    }
}
