//! A request on its way to the controller's shard, and the answers of its parts on their way back.
//!
//! What a decoded body borrows from its frame cannot leave the shard, so the frame's bytes travel (shared, not
//! copied) and are decoded once more over there. Their first decoding has passed, so the second does.

use std::time::Duration;

use bytes::Bytes;
use flumen_core::metadata::Refused;
use flumen_wire::ErrorCode;
use flumen_wire::codec::{Decode, Reader};

use super::Request;
use crate::runtime;

/// The bytes of a body that was decoded before.
pub(super) struct Carried {
    body: Bytes,
    version: i16,
    /// When the client gives up, on the clock of [`runtime::uptime`].
    deadline: Option<Duration>,
}

impl Carried {
    /// Of a request without a time limit.
    pub(super) fn new(request: &Request) -> Carried {
        Carried { body: request.frame.slice(request.body_at..), version: request.version, deadline: None }
    }

    /// Of a request that says how long its client waits. Zero and less, which clients send for "do not wait until
    /// every broker knows", sets no limit: here the answer comes when all is done.
    pub(super) fn with_timeout(request: &Request, timeout_ms: i32) -> Carried {
        let timeout = u64::try_from(timeout_ms).ok().filter(|timeout| *timeout > 0);
        let deadline = timeout.map(|timeout| request.began + Duration::from_millis(timeout));
        Carried { deadline, ..Carried::new(request) }
    }

    /// Refuses a decision whose turn has come too late. As in Kafka, one that was begun is finished.
    pub(super) fn check_in_time(&self) -> Result<(), Refused> {
        match self.deadline {
            Some(deadline) if runtime::uptime() > deadline => {
                Err(Refused { code: ErrorCode::RequestTimedOut, message: None })
            }
            _ => Ok(()),
        }
    }

    /// The body.
    pub(super) fn body<'a, M: Decode<'a>>(&'a self) -> M {
        let mut reader = Reader::new(&self.body);
        M::decode(&mut reader, self.version).expect("the same bytes were decoded before")
    }
}

/// One answer per part of a request: the controller's, or, where it refused the request as a whole, that for each.
pub(super) fn per_part<T>(
    decided: Result<Vec<Result<T, Refused>>, Refused>,
    parts: usize,
) -> Vec<Result<T, Refused>> {
    match decided {
        Ok(answers) => {
            assert_eq!(answers.len(), parts, "each part has its answer");
            answers
        }
        Err(refused) => (0..parts).map(|_| Err(refused.clone())).collect(),
    }
}

/// Error code and text of one part.
pub(super) fn outcome<T>(decided: &Result<T, Refused>) -> (i16, Option<&str>) {
    match decided {
        Ok(_) => (ErrorCode::None.code(), None),
        Err(refused) => (refused.code.code(), refused.message.as_deref().map(shown)),
    }
}

/// Longest text of an error. Some repeat what they refuse, and what is refused may be long.
const TEXT_BYTES_MAX: usize = 1_024;

/// As much of an error's text as leaves.
pub(super) fn shown(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Refused {
        Refused { code: ErrorCode::InvalidConfig, message: Some("é".repeat(1_000)) }
    }

    #[test]
    fn a_refusal_of_the_whole_is_each_parts() {
        let answers = per_part::<()>(Err(refused()), 3);
        assert_eq!(answers, vec![Err(refused()); 3]);
        assert_eq!(per_part(Ok(vec![Ok(1), Err(refused())]), 2), vec![Ok(1), Err(refused())]);
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let answer: Result<(), Refused> =
            Err(Refused { message: Some(format!("x{}", "é".repeat(1_000))), ..refused() });
        let (code, text) = outcome(&answer);
        assert_eq!(code, 40);
        assert_eq!(text.map(str::len), Some(1_023));
        assert_eq!(outcome(&Ok(())), (0, None));
    }
}
