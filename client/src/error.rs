//! What can go wrong, in words that say what to do.

use flumen_wire::codec::DecodeError;
use flumen_wire::frame::FrameError;
use flumen_wire::{ApiKey, ErrorCode};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

/// From here on a batch may be more than a broker takes in one request: as brokers come, a topic takes about so much.
const SUSPICIOUS_BYTES: usize = 1 << 20;

/// Why a request got no good answer. Cheap to clone: one failure of a connection is told to all who waited on it.
#[derive(Clone, Debug)]
pub enum Error {
    /// None of the addresses that were given answered. With each, what it said.
    NoBroker(Rc<Vec<(String, String)>>),
    /// The address cannot be read or resolved.
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// The socket failed.
    Socket {
        /// Of the peer.
        address: Rc<str>,
        /// What the system says.
        why: String,
    },
    /// The cluster gave an address for a broker, and nothing that is one answers there.
    Advertised {
        /// The broker.
        broker: i32,
        /// What the cluster says of it.
        address: String,
        /// What came of trying.
        last: Box<Error>,
    },
    /// The peer closed the connection.
    Closed {
        /// Of the peer.
        address: Rc<str>,
        /// The request that was waiting longest.
        waiting: Option<ApiKey>,
    },
    /// No answer came in time.
    Timeout {
        /// Of the peer.
        address: Rc<str>,
        /// What was asked.
        api: ApiKey,
        /// How long it was waited for.
        after: Duration,
    },
    /// More requests in flight than a connection takes.
    Busy {
        /// Of the peer.
        address: Rc<str>,
    },
    /// The peer lacks the API, or has no version of it that we have.
    Unsupported {
        /// Of the peer.
        address: Rc<str>,
        /// What was wanted.
        api: ApiKey,
        /// The versions that we can use.
        ours: (i16, i16),
        /// The versions that it has, if it has any.
        theirs: Option<(i16, i16)>,
    },
    /// What came is no response.
    Malformed {
        /// Of the peer.
        address: Rc<str>,
        /// What was asked, where that is known.
        api: Option<ApiKey>,
        /// What is wrong.
        why: String,
    },
    /// The broker refused.
    Broker {
        /// Its reason.
        code: ErrorCode,
        /// Its words.
        message: Option<String>,
        /// What was asked of it, as in "topic t".
        about: String,
    },
    /// The topic is not there.
    UnknownTopic(String),
    /// The topic has no such partition.
    UnknownPartition {
        /// The topic.
        topic: String,
        /// What was asked for.
        partition: i32,
        /// How many there are.
        count: usize,
    },
    /// A partition has no leader now.
    NoLeader {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
    },
    /// Records could not be delivered in time.
    Undelivered {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// How long it was tried.
        after: Duration,
        /// How large the batch was on the wire.
        bytes: usize,
        /// What came of the last attempt.
        last: Option<Box<Error>>,
    },
    /// What the caller asked for cannot be.
    Invalid(String),
}

impl Error {
    /// A broker's answer about something, unless it is [`ErrorCode::None`].
    pub fn check(code: i16, message: Option<&str>, about: impl FnOnce() -> String) -> Result<(), Error> {
        match ErrorCode::from_code(code) {
            ErrorCode::None => Ok(()),
            code => Err(Error::Broker { code, message: message.map(str::to_owned), about: about() }),
        }
    }

    pub(crate) fn decode(address: &Rc<str>, api: ApiKey, error: DecodeError) -> Error {
        Error::Malformed { address: address.clone(), api: Some(api), why: error.to_string() }
    }

    pub(crate) fn frame(address: &Rc<str>, error: FrameError) -> Error {
        Error::Malformed { address: address.clone(), api: None, why: error.to_string() }
    }

    /// Why nobody was there, without the address; none where somebody was, or where this is of no address.
    pub(crate) fn silence(&self) -> Option<String> {
        match self {
            Error::Address { why, .. } | Error::Socket { why, .. } => Some(why.clone()),
            Error::Timeout { api, after, .. } => {
                Some(format!("no answer to {} within {:.1} s", api.name(), after.as_secs_f64()))
            }
            _ => None,
        }
    }

    /// What came of connecting to an address that nobody gave but the cluster: the mistake is there.
    pub(crate) fn of_advertised(self, broker: i32, address: String) -> Error {
        match self {
            Error::Address { .. } | Error::Socket { .. } | Error::Closed { .. } | Error::Timeout { .. } => {
                Error::Advertised { broker, address, last: Box::new(self) }
            }
            other => other,
        }
    }

    /// The code, where a broker gave one, or says the same by leaving out what was asked for.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Broker { code, .. } => Some(*code),
            Error::UnknownTopic(_) | Error::UnknownPartition { .. } => {
                Some(ErrorCode::UnknownTopicOrPartition)
            }
            _ => None,
        }
    }

    /// Whether the connection is gone, rather than the request refused.
    pub fn is_connection(&self) -> bool {
        match self {
            Error::Advertised { last, .. } => last.is_connection(),
            Error::Socket { .. } | Error::Closed { .. } | Error::Timeout { .. } | Error::Malformed { .. } => {
                true
            }
            _ => false,
        }
    }

    /// Whether the same request may succeed later, perhaps elsewhere.
    pub fn is_retriable(&self) -> bool {
        match self {
            Error::Socket { .. } | Error::Closed { .. } | Error::NoLeader { .. } | Error::Busy { .. } => true,
            Error::NoBroker(_) | Error::Timeout { .. } => true,
            Error::Advertised { last, .. } => last.is_retriable(),
            Error::Broker { code, .. } => is_retriable(*code),
            _ => false,
        }
    }
}

/// Whether Kafka calls the error retriable.
pub fn is_retriable(code: ErrorCode) -> bool {
    use ErrorCode as E;
    matches!(
        code,
        E::LeaderNotAvailable
            | E::NotLeaderOrFollower
            | E::RequestTimedOut
            | E::ReplicaNotAvailable
            | E::NetworkException
            | E::CoordinatorLoadInProgress
            | E::CoordinatorNotAvailable
            | E::NotCoordinator
            | E::NotEnoughReplicas
            | E::NotEnoughReplicasAfterAppend
            | E::NotController
            | E::KafkaStorageError
            | E::FencedLeaderEpoch
            | E::UnknownLeaderEpoch
            | E::OffsetNotAvailable
            | E::PreferredLeaderNotAvailable
            | E::EligibleLeadersNotAvailable
            | E::UnstableOffsetCommit
            | E::ThrottlingQuotaExceeded
            | E::ConcurrentTransactions
            | E::UnknownTopicOrPartition
            | E::UnknownTopicId
    )
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoBroker(tried) => {
                write!(f, "no broker answers")?;
                for (address, why) in tried.iter() {
                    write!(f, "; {address}: {why}")?;
                }
                write!(f, ". Is one running there? Name others with --brokers or FLUMEN_BROKERS")
            }
            Error::Address { address, why } => {
                write!(
                    f,
                    "{address:?} is no address of a broker: {why}; give HOST:PORT, as in 127.0.0.1:9092"
                )
            }
            Error::Socket { address, why } => write!(f, "{address}: {why}"),
            Error::Advertised { broker, address, last } => {
                let why = last.silence().unwrap_or_else(|| last.to_string());
                write!(
                    f,
                    "broker {broker} advertises the address {address}, and does not answer there: {why}. If it runs, \
                     clients here need another address: look at its advertised.listeners (flumen-node: \
                     --kafka-advertised)"
                )
            }
            Error::Closed { address, waiting: None } => write!(f, "{address} closed the connection"),
            Error::Closed { address, waiting: Some(ApiKey::ApiVersions) } => write!(
                f,
                "{address} closed the connection at the first request: is it the Kafka listener, and without TLS \
                 or SASL? The broker's log says why"
            ),
            Error::Closed { address, waiting: Some(api) } => {
                write!(f, "{address} closed the connection instead of answering {}", api.name())
            }
            Error::Timeout { address, api, after } => write!(
                f,
                "{address} did not answer {} within {:.1} s; is it overloaded? --timeout waits longer",
                api.name(),
                after.as_secs_f64()
            ),
            Error::Busy { address } => write!(f, "too many requests to {address} are waiting for answers"),
            Error::Unsupported { address, api, theirs: None, .. } => write!(
                f,
                "the broker at {address} does not have the API {}, which this needs; a newer broker may",
                api.name()
            ),
            Error::Unsupported { address, api, ours, theirs: Some(theirs) } => write!(
                f,
                "the broker at {address} has {} in the versions {} to {}, and this client in {} to {}: use versions of \
                 the two that overlap",
                api.name(),
                theirs.0,
                theirs.1,
                ours.0,
                ours.1
            ),
            Error::Malformed { address, api, why } => {
                let api = api.map_or("a response", ApiKey::name);
                write!(f, "{address} sent {api} that cannot be read: {why}; is it a Kafka broker?")
            }
            Error::Broker { code, message, about } => refusal(f, *code, message.as_deref(), about),
            Error::UnknownTopic(topic) => write!(
                f,
                "there is no topic {topic:?}; `flumen topic list` shows those there are, `flumen topic create {topic}` makes it"
            ),
            Error::UnknownPartition { topic, partition, count } => {
                write!(f, "topic {topic:?} has no partition {partition}: it has {count}, counted from 0")
            }
            Error::NoLeader { topic, partition } => write!(
                f,
                "partition {partition} of {topic:?} has no leader now: a broker that holds it must come back"
            ),
            Error::Undelivered { topic, partition, after, bytes, last } => {
                write!(
                    f,
                    "records for partition {partition} of {topic:?} were not delivered within {:.1} s",
                    after.as_secs_f64()
                )?;
                let Some(last) = last else { return Ok(()) };
                write!(f, ": {last}")?;
                match **last {
                    Error::Closed { .. } if *bytes > SUSPICIOUS_BYTES => write!(
                        f,
                        ". The batch has {bytes} bytes: a broker hangs up on a request larger than its \
                         socket.request.max.bytes; raise that, or send smaller records"
                    ),
                    _ => Ok(()),
                }
            }
            Error::Invalid(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}

/// Our words with the broker's behind them, or the broker's alone.
fn refusal(f: &mut fmt::Formatter<'_>, code: ErrorCode, message: Option<&str>, about: &str) -> fmt::Result {
    let ours = explain(code);
    write!(f, "{about}: {}", ours.unwrap_or(code.name()))?;
    match (ours, message.filter(|message| !message.is_empty())) {
        (None, Some(message)) => write!(f, ": {message}"),
        (Some(_), Some(message)) => write!(f, " ({}: {message})", code.name()),
        (Some(_), None) => write!(f, " ({})", code.name()),
        (None, None) => Ok(()),
    }
}

/// What a code means to who gave a command, and what to do. Codes that speak for themselves with the broker's message
/// have none.
fn explain(code: ErrorCode) -> Option<&'static str> {
    use ErrorCode as E;
    Some(match code {
        E::UnknownTopicOrPartition => "not there; `flumen topic list` shows the topics",
        E::TopicAlreadyExists => {
            "exists already; `flumen topic describe` shows it, `flumen topic alter` changes it"
        }
        E::MessageTooLarge => {
            "the batch is larger than the topic's max.message.bytes; raise that, or send smaller records, or fewer in a \
             batch (--batch-size)"
        }
        E::NotEnoughReplicas | E::NotEnoughReplicasAfterAppend => {
            "fewer replicas are in sync than min.insync.replicas asks for; bring brokers back, or use --acks 1"
        }
        E::NonEmptyGroup => "the group has members; stop its consumers first",
        E::UnknownMemberId => {
            "the group has members now, and only they may do this; stop its consumers first"
        }
        E::GroupIdNotFound => "there is no such group; `flumen group list` shows those there are",
        E::CoordinatorNotAvailable => "the group's coordinator is not available yet; try again in a moment",
        E::CoordinatorLoadInProgress => "the group's coordinator is still loading; try again in a moment",
        E::OffsetOutOfRange => "the offset lies outside the log; `flumen topic describe` shows its ends",
        E::InvalidReplicationFactor => "more replicas than brokers; `flumen cluster info` shows the brokers",
        E::TopicAuthorizationFailed | E::GroupAuthorizationFailed | E::ClusterAuthorizationFailed => {
            "not permitted; ask for an ACL that allows it"
        }
        E::InvalidTopicException => "no valid topic name: letters, digits, '.', '_' and '-', at most 249",
        E::UnsupportedVersion => "the broker does not support this request; a newer one may",
        E::SecurityDisabled => "the broker has no authorizer",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_do_and_keep_the_brokers_words() {
        let about = || "topic t".to_owned();
        let refused = |code: ErrorCode, words| {
            Error::check(code.code(), words, about).expect_err("refused").to_string()
        };
        assert_eq!(
            refused(ErrorCode::TopicAlreadyExists, Some("Topic 't' already exists.")),
            "topic t: exists already; `flumen topic describe` shows it, `flumen topic alter` changes it \
             (TOPIC_ALREADY_EXISTS: Topic 't' already exists.)"
        );
        assert_eq!(
            refused(ErrorCode::InvalidConfig, Some("no such key")),
            "topic t: INVALID_CONFIG: no such key"
        );
        assert_eq!(refused(ErrorCode::InvalidConfig, None), "topic t: INVALID_CONFIG");
        assert!(Error::check(0, None, about).is_ok());
    }

    #[test]
    fn a_lacking_api_is_named() {
        let error =
            Error::Unsupported { address: "h:1".into(), api: ApiKey::JoinGroup, ours: (0, 9), theirs: None };
        assert!(error.to_string().contains("does not have the API JoinGroup"), "{error}");
        assert!(!error.is_retriable() && !error.is_connection());
    }
}
