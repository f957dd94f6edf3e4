//! Assignors: who of a consumer group gets which partition. KIP-848.
//!
//! Pure functions from the members, what they subscribe to and have now, and the topics, to what each is to have. How
//! the members get there without two of them owning a partition at a time is not known here (`consumer`).
//!
//! | name | result |
//! |---|---|
//! | `uniform` | as even as the subscriptions allow: with equal subscriptions, sizes differ by at most one. Sticky: as few partitions move as can be |
//! | `range` | each topic in contiguous ranges, by the order of the members, so that topics with as many partitions and the same subscribers are split alike (co-partitioned). Not sticky, as in Kafka |
//!
//! Invariants:
//! - each partition of a topic that someone subscribes to goes to exactly one member, and that one subscribes to it;
//! - nothing else goes to anybody: no topic that is not there, no partition past a topic's end;
//! - the same input gives the same output: no clock, no randomness, no order of a hash map.

mod even;
mod partitions;
mod range;
mod uniform;

pub use partitions::Partitions;

use std::collections::BTreeMap;

use crate::types::{PartitionId, TopicId};

/// A server-side assignor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Assignor {
    /// Even, and sticky.
    Uniform,
    /// Contiguous ranges, co-partitioned.
    Range,
}

/// A member, as an assignor sees it.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its instance id, if it is a static member. It is part of the order in which `range` goes.
    pub instance_id: Option<&'a str>,
    /// The topics that it subscribes to, in rising order, each once. Those that are not there do not matter.
    pub topics: &'a [TopicId],
    /// What it was to have until now. What is no longer possible in it does not matter.
    pub current: &'a Partitions,
}

/// How many partitions each topic has.
pub type PartitionCounts = BTreeMap<TopicId, i32>;

impl Assignor {
    /// All of them.
    pub const ALL: [Assignor; 2] = [Assignor::Uniform, Assignor::Range];

    /// Kafka's name.
    pub fn name(self) -> &'static str {
        match self {
            Assignor::Uniform => "uniform",
            Assignor::Range => "range",
        }
    }

    /// The assignor of this name.
    pub fn from_name(name: &str) -> Option<Assignor> {
        Assignor::ALL.into_iter().find(|assignor| assignor.name() == name)
    }

    /// What each member is to have, in the order of the members.
    pub fn assign(self, members: &[Member<'_>], counts: &PartitionCounts) -> Vec<Partitions> {
        match self {
            _ if members.is_empty() => Vec::new(),
            Assignor::Uniform if have_equal_topics(members, counts) => even::assign(members, counts),
            Assignor::Uniform => uniform::assign(members, counts),
            Assignor::Range => range::assign(members, counts),
        }
    }
}

/// The topics of a member that are there, with their numbers of partitions.
fn topics_of<'a>(
    member: &Member<'a>,
    counts: &'a PartitionCounts,
) -> impl Iterator<Item = (TopicId, i32)> + use<'a> {
    member.topics.iter().filter_map(|topic| Some((*topic, *counts.get(topic)?)))
}

fn have_equal_topics(members: &[Member<'_>], counts: &PartitionCounts) -> bool {
    members.windows(2).all(|pair| {
        pair[0].topics == pair[1].topics || topics_of(&pair[0], counts).eq(topics_of(&pair[1], counts))
    })
}

/// The partitions of some topics, numbered from 0 in rising order, so that tables about them can be plain vectors.
struct Numbering {
    topics: Vec<(TopicId, i32)>,
    /// The number of each topic's first partition, and the number of all at the end.
    first: Vec<usize>,
}

impl Numbering {
    /// Of topics in rising order.
    fn new(topics: Vec<(TopicId, i32)>) -> Numbering {
        let mut first = Vec::with_capacity(topics.len() + 1);
        let mut next = 0;
        for (_, count) in &topics {
            first.push(next);
            next += usize::try_from(*count).unwrap_or(0);
        }
        first.push(next);
        Numbering { topics, first }
    }

    /// How many partitions there are.
    fn len(&self) -> usize {
        self.first[self.topics.len()]
    }

    /// The index of a topic.
    fn topic(&self, topic: TopicId) -> Option<usize> {
        self.topics.binary_search_by(|(id, _)| id.cmp(&topic)).ok()
    }

    /// A partition's number, and its topic's index.
    fn number(&self, partition: PartitionId) -> Option<(usize, usize)> {
        let topic = self.topic(partition.topic)?;
        let index = usize::try_from(partition.partition).ok()?;
        let number = self.first[topic].checked_add(index)?;
        (number < self.first[topic + 1]).then_some((number, topic))
    }

    /// The numbers of a topic's partitions.
    fn of_topic(&self, topic: usize) -> std::ops::Range<usize> {
        self.first[topic]..self.first[topic + 1]
    }

    /// All partitions, by number.
    fn partitions(&self) -> Vec<PartitionId> {
        let each = |(topic, count): &(TopicId, i32)| {
            let topic = *topic;
            (0..*count).map(move |partition| PartitionId { topic, partition })
        };
        self.topics.iter().flat_map(each).collect()
    }
}
