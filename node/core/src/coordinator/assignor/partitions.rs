//! A set of partitions: what a member owns, is to own, or has to give back.

use std::ops::Deref;

use crate::types::{PartitionId, TopicId};

/// Partitions in rising order, each once. Sets of this kind are small or walked as a whole, so a sorted list is all
/// that they need to be; partitions of one topic stand together, as the protocol and the records want them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Partitions(Vec<PartitionId>);

impl Partitions {
    /// The empty set.
    pub const fn new() -> Partitions {
        Partitions(Vec::new())
    }

    /// Whether a partition is in it.
    pub fn contains(&self, partition: PartitionId) -> bool {
        self.0.binary_search(&partition).is_ok()
    }

    /// Those that satisfy a condition.
    pub fn filtered(&self, mut wanted: impl FnMut(PartitionId) -> bool) -> Partitions {
        Partitions(self.0.iter().copied().filter(|partition| wanted(*partition)).collect())
    }

    /// Those that are in both.
    pub fn intersection(&self, other: &Partitions) -> Partitions {
        self.filtered(|partition| other.contains(partition))
    }

    /// Those of this set that are not in the other.
    pub fn difference(&self, other: &Partitions) -> Partitions {
        self.filtered(|partition| !other.contains(partition))
    }

    /// Those in either.
    pub fn union(&self, other: &Partitions) -> Partitions {
        self.iter().chain(other.iter()).copied().collect()
    }

    /// Whether all are in the other set.
    pub fn is_subset(&self, other: &Partitions) -> bool {
        self.iter().all(|partition| other.contains(*partition))
    }

    /// Whether none is in the other set.
    pub fn is_disjoint(&self, other: &Partitions) -> bool {
        !self.iter().any(|partition| other.contains(*partition))
    }

    /// Topic by topic.
    pub fn by_topic(&self) -> impl Iterator<Item = (TopicId, impl Iterator<Item = i32>)> {
        self.0
            .chunk_by(|a, b| a.topic == b.topic)
            .map(|chunk| (chunk[0].topic, chunk.iter().map(|partition| partition.partition)))
    }
}

impl Deref for Partitions {
    type Target = [PartitionId];

    fn deref(&self) -> &[PartitionId] {
        &self.0
    }
}

impl From<Vec<PartitionId>> for Partitions {
    fn from(mut partitions: Vec<PartitionId>) -> Partitions {
        partitions.sort_unstable();
        partitions.dedup();
        Partitions(partitions)
    }
}

impl FromIterator<PartitionId> for Partitions {
    fn from_iter<I: IntoIterator<Item = PartitionId>>(partitions: I) -> Partitions {
        Vec::from_iter(partitions).into()
    }
}

impl<'a> IntoIterator for &'a Partitions {
    type Item = &'a PartitionId;
    type IntoIter = std::slice::Iter<'a, PartitionId>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}
