//! Topics: created and deleted.

use std::collections::HashSet;

use flumen_wire::ErrorCode;

use super::controller::{Controller, Decision, Draft, Refused};
use super::placement::{check_assignment, new_partition, place};
use super::record::{ConfigResource, Record};
use super::topic_name::check_topic_name;
use super::{PARTITIONS_PER_REQUEST_MAX, PARTITIONS_PER_TOPIC_MAX};
use crate::config::{Overrides, check_topic_setting};
use crate::types::{NodeId, TopicId};

/// A topic to create.
#[derive(Clone, Debug, Default)]
pub struct NewTopic<'a> {
    /// Its name.
    pub name: &'a str,
    /// How many partitions; -1 is the default, or what `assignments` says.
    pub partitions: i32,
    /// How many replicas; -1 is the default, or what `assignments` says.
    pub replication_factor: i16,
    /// Replicas of each partition, where somebody chose them: partition and nodes.
    pub assignments: Vec<(i32, Vec<NodeId>)>,
    /// Settings.
    pub configs: Vec<(&'a str, Option<&'a str>)>,
}

impl<'a> NewTopic<'a> {
    /// A topic with the defaults of everything, as auto-creation makes it.
    pub fn with_defaults(name: &'a str) -> NewTopic<'a> {
        NewTopic { name, partitions: -1, replication_factor: -1, ..NewTopic::default() }
    }
}

/// A topic that is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedTopic {
    /// Its identity.
    pub id: TopicId,
    /// How many partitions it has.
    pub partitions: i32,
    /// How many replicas each has.
    pub replication_factor: i16,
    /// Its settings.
    pub overrides: Overrides,
}

/// A topic to delete, by one of name and identity.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeleteTopic<'a> {
    /// The name.
    pub name: Option<&'a str>,
    /// The identity; zero where the name is given.
    pub id: TopicId,
}

/// A topic that is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedTopic {
    /// Its identity.
    pub id: TopicId,
    /// Its name.
    pub name: String,
}

/// One answer per topic of a request, in its order.
type PerTopic<T> = Vec<Result<T, Refused>>;

impl Controller<'_> {
    /// Creates topics. `ids` are random, one for each. A name that stands in the request twice is refused
    /// wherever it stands.
    pub fn create_topics(
        &self,
        topics: &[NewTopic<'_>],
        ids: &[TopicId],
        validate_only: bool,
    ) -> Decision<PerTopic<CreatedTopic>> {
        assert_eq!(topics.len(), ids.len());
        let twice = duplicates(topics.iter().map(|topic| topic.name));
        let mut draft = self.draft();
        let mut budget = PARTITIONS_PER_REQUEST_MAX;
        let mut responses = Vec::with_capacity(topics.len());
        for (topic, id) in topics.iter().zip(ids) {
            let decided = if twice.contains(topic.name) {
                Err(Refused::new(ErrorCode::InvalidRequest, "Duplicate topic name."))
            } else {
                let made = self.create_topic(&draft, topic, *id, &mut budget);
                made.and_then(|made| draft.check_configs(&made.0).map(|()| made))
            };
            responses.push(decided.map(|(records, created)| {
                draft.extend(records);
                created
            }));
        }
        draft.into_decision(responses, validate_only)
    }

    fn create_topic(
        &self,
        draft: &Draft,
        topic: &NewTopic<'_>,
        id: TopicId,
        budget: &mut usize,
    ) -> Result<(Vec<Record>, CreatedTopic), Refused> {
        assert!(id != TopicId::ZERO && draft.image.topic_by_id(id).is_none(), "topic ids are new and random");
        check_new_name(draft, topic.name)?;
        let overrides = self.new_overrides(draft, &topic.configs)?;
        let replicas = if topic.assignments.is_empty() {
            let (count, factor) = self.counts(topic)?;
            self.check_partition_count(draft, 0, count, *budget)?;
            place(&draft.image, count, factor)?
        } else {
            self.assigned(draft, topic, *budget)?
        };
        *budget -= replicas.len();
        let created = CreatedTopic {
            id,
            partitions: i32::try_from(replicas.len()).expect("checked against PARTITIONS_PER_TOPIC_MAX"),
            replication_factor: i16::try_from(replicas[0].len()).unwrap_or(i16::MAX),
            overrides,
        };
        let mut records = vec![Record::Topic { id, name: topic.name.to_owned() }];
        records.extend(created.overrides.iter().map(|(name, value)| Record::Config {
            resource: ConfigResource::Topic(topic.name.to_owned()),
            name: name.clone(),
            value: Some(value.clone()),
        }));
        let partitions = replicas.into_iter().enumerate();
        records.extend(partitions.map(|(index, nodes)| Record::Partition(new_partition(id, index, nodes))));
        Ok((records, created))
    }

    fn new_overrides(&self, draft: &Draft, configs: &[(&str, Option<&str>)]) -> Result<Overrides, Refused> {
        let twice = duplicates(configs.iter().map(|(name, _)| *name));
        if let Some(name) = configs.iter().map(|(name, _)| *name).find(|name| twice.contains(name)) {
            let text = format!("Error due to duplicate config keys : {name}");
            return Err(Refused::new(ErrorCode::InvalidRequest, text));
        }
        let mut overrides = Overrides::new();
        for (name, value) in configs {
            let Some(value) = value else {
                let text = format!("Null value not supported for topic configs: {name}");
                return Err(Refused::new(ErrorCode::InvalidConfig, text));
            };
            let setting = check_topic_setting(name, value)?;
            overrides.insert(setting.name.to_owned(), value.trim().to_owned());
        }
        self.settings(&draft.image).check_topic(&overrides)?;
        Ok(overrides)
    }

    /// Partitions and replicas of a topic whose placement is ours.
    fn counts(&self, topic: &NewTopic<'_>) -> Result<(usize, usize), Refused> {
        let factor = match topic.replication_factor {
            -1 => self.config.default_replication_factor,
            factor => factor,
        };
        let factor = usize::try_from(factor).ok().filter(|factor| *factor > 0).ok_or_else(|| {
            Refused::new(
                ErrorCode::InvalidReplicationFactor,
                "Replication factor must be larger than 0, or -1 to use the default value.",
            )
        })?;
        let count = match topic.partitions {
            -1 => self.config.num_partitions,
            count => count,
        };
        let count = usize::try_from(count).ok().filter(|count| *count > 0).ok_or_else(|| {
            Refused::new(
                ErrorCode::InvalidPartitions,
                "Number of partitions was set to an invalid non-positive value.",
            )
        })?;
        Ok((count, factor))
    }

    /// Refuses `added` partitions on a topic of `present` where that passes a bound.
    pub(super) fn check_partition_count(
        &self,
        draft: &Draft,
        present: usize,
        added: usize,
        budget: usize,
    ) -> Result<(), Refused> {
        let refuse = |text: String| Err(Refused::new(ErrorCode::InvalidPartitions, text));
        if added > budget {
            return refuse(format!(
                "Excessively large number of partitions per request: at most {PARTITIONS_PER_REQUEST_MAX} can be \
                 created at once."
            ));
        }
        if present + added > PARTITIONS_PER_TOPIC_MAX {
            return refuse(format!("A topic can have at most {PARTITIONS_PER_TOPIC_MAX} partitions."));
        }
        if draft.image.partition_count() + added > self.partitions_max {
            return refuse(format!(
                "{added} more partitions would pass the limit of {} for all topics together; there are {}.",
                self.partitions_max,
                draft.image.partition_count()
            ));
        }
        Ok(())
    }

    /// Replicas of a topic whose placement somebody chose.
    fn assigned(
        &self,
        draft: &Draft,
        topic: &NewTopic<'_>,
        budget: usize,
    ) -> Result<Vec<Vec<NodeId>>, Refused> {
        let invalid = |text: &str| Err(Refused::new(ErrorCode::InvalidRequest, text));
        if topic.replication_factor != -1 {
            return invalid(
                "A manual partition assignment was specified, but replication factor was not set to -1.",
            );
        }
        if topic.partitions != -1 {
            return invalid(
                "A manual partition assignment was specified, but numPartitions was not set to -1.",
            );
        }
        self.check_partition_count(draft, 0, topic.assignments.len(), budget)?;
        let mut assignments: Vec<&(i32, Vec<NodeId>)> = topic.assignments.iter().collect();
        assignments.sort_by_key(|(partition, _)| *partition);
        let mut factor = None;
        for (expected, (partition, replicas)) in (0..).zip(&assignments) {
            if *partition != expected {
                let text = if *partition == expected - 1 {
                    format!("Found multiple manual partition assignments for partition {partition}")
                } else {
                    "partitions should be a consecutive 0-based integer sequence".to_owned()
                };
                return Err(Refused::new(ErrorCode::InvalidReplicaAssignment, text));
            }
            check_assignment(&draft.image, replicas, factor)?;
            factor = Some(replicas.len());
        }
        Ok(assignments.into_iter().map(|(_, replicas)| replicas.clone()).collect())
    }

    /// Deletes topics.
    pub fn delete_topics(&self, topics: &[DeleteTopic<'_>]) -> Decision<PerTopic<DeletedTopic>> {
        let names = duplicates(topics.iter().filter_map(|topic| topic.name));
        let ids = duplicates(topics.iter().map(|topic| topic.id).filter(|id| *id != TopicId::ZERO));
        let given: HashSet<TopicId> = topics.iter().map(|topic| topic.id).collect();
        let mut draft = self.draft();
        let mut responses = Vec::with_capacity(topics.len());
        for topic in topics {
            let decided =
                self.delete_topic(&draft, topic, |name| names.contains(name), |id| ids.contains(id), &given);
            responses.push(decided.inspect(|deleted| draft.extend(vec![Record::RemoveTopic(deleted.id)])));
        }
        draft.into_decision(responses, false)
    }

    fn delete_topic(
        &self,
        draft: &Draft,
        topic: &DeleteTopic<'_>,
        name_is_twice: impl Fn(&str) -> bool,
        id_is_twice: impl Fn(&TopicId) -> bool,
        given: &HashSet<TopicId>,
    ) -> Result<DeletedTopic, Refused> {
        let invalid = |text: &str| Err(Refused::new(ErrorCode::InvalidRequest, text));
        if !self.config.delete_topic_enable {
            return Err(Refused::new(ErrorCode::TopicDeletionDisabled, "Topic deletion is disabled."));
        }
        let found = match topic.name {
            None if topic.id == TopicId::ZERO => return invalid("Neither topic name nor id were specified."),
            Some(_) if topic.id != TopicId::ZERO => {
                return invalid("You may not specify both topic name and topic id.");
            }
            Some(name) if name_is_twice(name) => return invalid("Duplicate topic name."),
            None if id_is_twice(&topic.id) => return invalid("Duplicate topic id."),
            Some(name) => draft.image.topic(name).ok_or(ErrorCode::UnknownTopicOrPartition),
            None => draft.image.topic_by_id(topic.id).ok_or(ErrorCode::UnknownTopicId),
        };
        let found = found.map_err(Refused::bare)?;
        if topic.name.is_some() && given.contains(&found.id) {
            return invalid("The provided topic name maps to an ID that was already supplied.");
        }
        Ok(DeletedTopic { id: found.id, name: found.name.to_string() })
    }
}

fn check_new_name(draft: &Draft, name: &str) -> Result<(), Refused> {
    check_topic_name(name).map_err(|text| Refused::new(ErrorCode::InvalidTopicException, text))?;
    if name == "__cluster_metadata" {
        let text = format!("Creation of internal topic {name} is prohibited.");
        return Err(Refused::new(ErrorCode::InvalidRequest, text));
    }
    if draft.image.topic(name).is_some() {
        return Err(Refused::new(ErrorCode::TopicAlreadyExists, format!("Topic '{name}' already exists.")));
    }
    match draft.image.colliding(name) {
        Some(other) => {
            let text = format!("Topic '{name}' collides with existing topic: {other}");
            Err(Refused::new(ErrorCode::InvalidTopicException, text))
        }
        None => Ok(()),
    }
}

/// What stands in a list more than once.
pub(super) fn duplicates<T: Eq + std::hash::Hash + Copy>(items: impl Iterator<Item = T>) -> HashSet<T> {
    let mut seen = HashSet::new();
    items.filter(|item| !seen.insert(*item)).collect()
}
