//! The assignor `range`: each topic cut into as many contiguous ranges as it has subscribers, the first ones longer by
//! one where it does not come out even.
//!
//! Members go in one order for every topic, those with instance ids first and by these, so that a static member gets
//! the same ranges under its next member id. That one order is what makes topics co-partitioned.

use std::collections::BTreeMap;

use super::{Member, PartitionCounts, Partitions, topics_of};
use crate::types::{PartitionId, TopicId};

pub(super) fn assign(members: &[Member<'_>], counts: &PartitionCounts) -> Vec<Partitions> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|index| {
        let member = &members[*index];
        (member.instance_id.is_none(), member.instance_id, member.id)
    });
    let mut subscribers: BTreeMap<TopicId, Vec<usize>> = BTreeMap::new();
    for index in order {
        for (topic, _) in topics_of(&members[index], counts) {
            subscribers.entry(topic).or_default().push(index);
        }
    }
    let mut assigned: Vec<Vec<PartitionId>> = vec![Vec::new(); members.len()];
    for (topic, subscribers) in subscribers {
        let partitions = counts[&topic];
        // As many as there are partitions at most get any.
        let shares = i32::try_from(subscribers.len()).unwrap_or(i32::MAX);
        let (quota, longer) = (partitions / shares, partitions % shares);
        let mut next = 0;
        for (index, rank) in subscribers.into_iter().zip(0..shares) {
            let end = next + quota + i32::from(rank < longer);
            assigned[index].extend((next..end).map(|partition| PartitionId { topic, partition }));
            next = end;
        }
    }
    assigned.into_iter().map(Partitions::from).collect()
}
