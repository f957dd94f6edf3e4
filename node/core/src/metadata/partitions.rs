//! Partitions: added to topics.

use flumen_wire::ErrorCode;

use super::controller::{Controller, Decision, Draft, Refused};
use super::placement::{check_assignment, new_partition, place};
use super::record::Record;
use super::topics::duplicates;
use super::{PARTITIONS_PER_REQUEST_MAX, is_internal_topic};
use crate::types::NodeId;

/// How many partitions a topic is to have.
#[derive(Clone, Debug)]
pub struct NewPartitions<'a> {
    /// The topic.
    pub name: &'a str,
    /// Its partitions, those it has included.
    pub count: i32,
    /// Replicas of each that is new, where somebody chose them.
    pub assignments: Option<Vec<Vec<NodeId>>>,
}

impl Controller<'_> {
    /// Adds partitions to topics.
    pub fn create_partitions(
        &self,
        topics: &[NewPartitions<'_>],
        validate_only: bool,
    ) -> Decision<Vec<Result<(), Refused>>> {
        let twice = duplicates(topics.iter().map(|topic| topic.name));
        let mut draft = self.draft();
        let mut budget = PARTITIONS_PER_REQUEST_MAX;
        let mut responses = Vec::with_capacity(topics.len());
        for topic in topics {
            let decided = if twice.contains(topic.name) {
                Err(Refused::new(ErrorCode::InvalidRequest, "Duplicate topic name."))
            } else {
                self.add_partitions(&draft, topic, budget)
            };
            responses.push(decided.map(|records| {
                budget -= records.len();
                draft.extend(records);
            }));
        }
        draft.into_decision(responses, validate_only)
    }

    fn add_partitions(
        &self,
        draft: &Draft,
        new: &NewPartitions<'_>,
        budget: usize,
    ) -> Result<Vec<Record>, Refused> {
        let topic =
            draft.image.topic(new.name).ok_or_else(|| Refused::bare(ErrorCode::UnknownTopicOrPartition))?;
        if is_internal_topic(new.name) {
            return Err(Refused::new(
                ErrorCode::InvalidRequest,
                "What this topic holds is spread over its partitions by their number: it cannot change.",
            ));
        }
        let present = topic.partitions.len();
        let count = usize::try_from(new.count).unwrap_or(0);
        let invalid = |text: String| Err(Refused::new(ErrorCode::InvalidPartitions, text));
        if count == present {
            return invalid(format!("Topic already has {present} partition(s)."));
        }
        if count < present {
            return invalid(format!(
                "The topic {} currently has {present} partition(s); {} would not be an increase.",
                new.name, new.count
            ));
        }
        let added = count - present;
        self.check_partition_count(draft, present, added, budget)?;
        let factor = topic.partitions.first().map_or(1, |partition| partition.replicas.len());
        let replicas = match &new.assignments {
            None => place(&draft.image, added, factor)?,
            Some(assignments) if assignments.len() != added => {
                return Err(Refused::new(
                    ErrorCode::InvalidReplicaAssignment,
                    format!(
                        "Attempted to add {added} additional partition(s), but only {} assignment(s) were specified.",
                        assignments.len()
                    ),
                ));
            }
            Some(assignments) => {
                for assignment in assignments {
                    check_assignment(&draft.image, assignment, Some(factor))?;
                }
                assignments.clone()
            }
        };
        let new = replicas.into_iter().enumerate();
        Ok(new
            .map(|(index, nodes)| Record::Partition(new_partition(topic.id, present + index, nodes)))
            .collect())
    }
}
