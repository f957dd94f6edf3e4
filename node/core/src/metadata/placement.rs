//! Which nodes hold a new partition.

use flumen_wire::ErrorCode;

use super::controller::Refused;
use super::image::Image;
use super::record::PartitionRecord;
use crate::types::{LeaderEpoch, NodeId, TopicId};

/// Replicas for `count` partitions, evenly over the nodes: each next partition begins at the next node, and
/// each round over all nodes shifts the followers by one more. Begins where the last topic ended, so that
/// many small topics are even too.
pub(super) fn place(
    image: &Image,
    count: usize,
    replication_factor: usize,
) -> Result<Vec<Vec<NodeId>>, Refused> {
    let nodes: Vec<NodeId> = image.brokers().map(|broker| broker.node).collect();
    if replication_factor > nodes.len() {
        return Err(Refused::new(
            ErrorCode::InvalidReplicationFactor,
            format!(
                "Unable to replicate the partition {replication_factor} time(s): The target replication factor of \
                 {replication_factor} cannot be reached because only {} broker(s) are registered.",
                nodes.len()
            ),
        ));
    }
    let start = image.partition_count();
    let replicas_of = |index: usize| {
        let first = (start + index) % nodes.len();
        let round = (start + index) / nodes.len();
        let followers = nodes.len().max(2) - 1;
        let follower = |rank: usize| nodes[(first + 1 + (round + rank) % followers) % nodes.len()];
        std::iter::once(nodes[first]).chain((0..replication_factor - 1).map(follower)).collect()
    };
    Ok((0..count).map(replicas_of).collect())
}

/// Checks replicas that somebody chose.
pub(super) fn check_assignment(
    image: &Image,
    replicas: &[NodeId],
    replication_factor: Option<usize>,
) -> Result<(), Refused> {
    let refuse = |text: String| Err(Refused::new(ErrorCode::InvalidReplicaAssignment, text));
    if replicas.is_empty() {
        return refuse("The manual partition assignment includes an empty replica list.".to_owned());
    }
    let mut sorted = replicas.to_vec();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        if pair[0] == pair[1] {
            return refuse(format!(
                "The manual partition assignment includes the broker {} more than once.",
                pair[0]
            ));
        }
    }
    if let Some(node) = sorted.iter().find(|node| image.broker(**node).is_none()) {
        return refuse(format!(
            "The manual partition assignment includes broker {node}, but no such broker is registered."
        ));
    }
    match replication_factor {
        Some(expected) if expected != replicas.len() => refuse(format!(
            "The manual partition assignment includes a partition with {} replica(s), but this is not consistent \
             with previous partitions, which have {expected} replica(s).",
            replicas.len()
        )),
        _ => Ok(()),
    }
}

/// A new partition on these nodes: all in sync, the first one leading.
pub(super) fn new_partition(topic: TopicId, partition: usize, replicas: Vec<NodeId>) -> PartitionRecord {
    PartitionRecord {
        topic,
        partition: i32::try_from(partition).expect("bounded by PARTITIONS_PER_TOPIC_MAX"),
        isr: replicas.clone(),
        leader: replicas.first().copied(),
        replicas,
        leader_epoch: LeaderEpoch(0),
        partition_epoch: 0,
    }
}
