//! The controller: what a request makes of the metadata, as records. It changes nothing.
//!
//! One `impl` block per kind of request stands in `topics`, `partitions` and `configs`; nodes and producer
//! ids are here. A request about several things is answered for each of them, and what one of them does is
//! seen by the next: they are decided on a [`Draft`], an image on which the records so far are replayed.

use std::fmt;
use std::sync::Arc;

use flumen_wire::ErrorCode;

use super::image::Image;
use super::record::{BrokerRegistration, ClusterId, Record};
use super::{PARTITIONS_MAX, PRODUCER_ID_BLOCK_LEN};
use crate::config::{BrokerConfig, ConfigError, StaticSettings};
use crate::limits::CONFIGS_BYTES_MAX;
use crate::types::NodeId;

/// Decides on the metadata as it is in one image.
#[derive(Clone, Copy, Debug)]
pub struct Controller<'a> {
    /// The metadata.
    pub image: &'a Image,
    /// What the deciding node was given at start.
    pub statics: &'a Arc<StaticSettings>,
    /// Its settings in force.
    pub config: &'a BrokerConfig,
    /// Most partitions of all topics together.
    pub partitions_max: usize,
}

/// Records to append, and the answer to give once they are durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<R> {
    /// In the order in which they are to be replayed; they go into the log together.
    pub records: Vec<Record>,
    /// The answer.
    pub response: R,
}

/// A request, or one part of it, that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Kafka's code.
    pub code: ErrorCode,
    /// What is wrong, for people; Kafka's words where it has any.
    pub message: Option<String>,
}

impl Refused {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Refused {
        Refused { code, message: Some(message.into()) }
    }

    pub(super) fn bare(code: ErrorCode) -> Refused {
        Refused { code, message: None }
    }
}

impl From<ConfigError> for Refused {
    fn from(error: ConfigError) -> Refused {
        Refused::new(ErrorCode::InvalidConfig, error.to_string())
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(f, "{}: {message}", self.code),
            None => self.code.fmt(f),
        }
    }
}

impl std::error::Error for Refused {}

/// Producer ids that a node may give out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerIdBlock {
    /// The first of them.
    pub first: i64,
    /// How many.
    pub len: i64,
}

/// An image with the records of the decision so far.
pub(super) struct Draft {
    pub(super) image: Image,
    pub(super) records: Vec<Record>,
}

impl Draft {
    /// Whether there is room for the settings among the records of one part of a request.
    pub(super) fn check_configs(&self, records: &[Record]) -> Result<(), Refused> {
        let bytes = records.iter().map(|record| match record {
            Record::Config { name, value: Some(value), .. } => name.len() + value.len(),
            _ => 0,
        });
        if self.image.config_bytes() + bytes.sum::<usize>() <= CONFIGS_BYTES_MAX {
            return Ok(());
        }
        let text = format!("All settings together take more than {CONFIGS_BYTES_MAX} bytes.");
        Err(Refused::new(ErrorCode::PolicyViolation, text))
    }

    /// Adds the records of one part of a request.
    pub(super) fn extend(&mut self, records: Vec<Record>) {
        for record in &records {
            let replayed = self.image.replay(record);
            assert!(replayed.is_ok(), "decided a record that does not fit: {record:?}: {replayed:?}");
        }
        self.records.extend(records);
    }

    /// The decision; without records when the request only wanted to know.
    pub(super) fn into_decision<R>(self, response: R, validate_only: bool) -> Decision<R> {
        Decision { records: if validate_only { Vec::new() } else { self.records }, response }
    }
}

impl<'a> Controller<'a> {
    /// A controller with the usual limits.
    pub fn new(
        image: &'a Image,
        statics: &'a Arc<StaticSettings>,
        config: &'a BrokerConfig,
    ) -> Controller<'a> {
        Controller { image, statics, config, partitions_max: PARTITIONS_MAX }
    }

    pub(super) fn draft(&self) -> Draft {
        Draft { image: self.image.clone(), records: Vec::new() }
    }

    /// What a start adds to the metadata log: the cluster's identity, if it has none, and the levels of features that it does
    /// not have yet, which came with a later release than the one that began the log.
    pub fn bootstrap(&self, cluster_id: ClusterId, features: &[(&str, i16)]) -> Vec<Record> {
        let identity = self.image.cluster_id().is_none().then_some(Record::ClusterId(cluster_id));
        let lacking = features.iter().filter(|(name, level)| self.image.feature(name) < *level);
        let lacking =
            lacking.map(|(name, level)| Record::FeatureLevel { name: (*name).into(), level: *level });
        identity.into_iter().chain(lacking).collect()
    }

    /// Registers a node at its start. Its incarnation has to be higher than ever before, and its data folder
    /// the one that is known under its number.
    pub fn register_broker(&self, registration: BrokerRegistration) -> Result<Vec<Record>, Refused> {
        if let Some(known) = self.image.broker(registration.node) {
            if known.directory != registration.directory {
                return Err(Refused::new(
                    ErrorCode::DuplicateBrokerRegistration,
                    format!(
                        "node {} is registered with the data folder {}, and this is {}: give this node a number of \
                         its own",
                        registration.node, known.directory, registration.directory
                    ),
                ));
            }
            if registration.incarnation <= known.incarnation {
                return Err(Refused::new(
                    ErrorCode::StaleBrokerEpoch,
                    format!(
                        "node {} registers incarnation {}, after {}",
                        registration.node, registration.incarnation, known.incarnation
                    ),
                ));
            }
        }
        Ok(vec![Record::RegisterBroker(registration)])
    }

    /// Gives a node the next block of producer ids.
    pub fn allocate_producer_ids(&self, node: NodeId) -> Result<Decision<ProducerIdBlock>, Refused> {
        let first = self.image.next_producer_id();
        let next = first
            .checked_add(PRODUCER_ID_BLOCK_LEN)
            .ok_or_else(|| Refused::new(ErrorCode::UnknownServerError, "Exhausted all producerIds"))?;
        Ok(Decision {
            records: vec![Record::ProducerIds { node, next }],
            response: ProducerIdBlock { first, len: PRODUCER_ID_BLOCK_LEN },
        })
    }
}
