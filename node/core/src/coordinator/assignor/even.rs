//! The assignor `uniform` where all members subscribe to the same topics: sizes differ by at most one, and no assignment
//! with such sizes moves fewer partitions.
//!
//! Who has more than its share keeps as much of it; who has the larger of the two shares already gets the larger; what is
//! free then goes around among those who lack some. A round goes topic by topic, so that every member gets some of
//! each topic as far as there are enough: topics differ in traffic, and sizes alone would not see it.

use std::cmp::Reverse;
use std::collections::VecDeque;

use super::{Member, Numbering, PartitionCounts, Partitions, topics_of};
use crate::types::PartitionId;

pub(super) fn assign(members: &[Member<'_>], counts: &PartitionCounts) -> Vec<Partitions> {
    let numbering = Numbering::new(topics_of(&members[0], counts).collect());
    let mut taken = vec![false; numbering.len()];
    let mut kept: Vec<Vec<PartitionId>> =
        members.iter().map(|member| still_possible(member, &numbering, &mut taken)).collect();

    let shares = shares(&kept, numbering.len());
    for (kept, share) in kept.iter_mut().zip(&shares) {
        for dropped in cut_to(kept, *share) {
            let (number, _) = numbering.number(dropped).expect("what was kept is there");
            taken[number] = false;
        }
    }

    let lacks = |index: usize, kept: &[Vec<PartitionId>]| shares[index] - kept[index].len();
    let mut wanting: Vec<usize> = (0..members.len()).filter(|index| lacks(*index, &kept) > 0).collect();
    wanting.sort_by_key(|index| Reverse(lacks(*index, &kept)));
    let mut round = VecDeque::from(wanting);
    let free = numbering.partitions().into_iter().zip(&taken).filter(|(_, taken)| !**taken);
    for (partition, _) in free {
        let index = round.pop_front().expect("the shares add up to all partitions");
        kept[index].push(partition);
        if lacks(index, &kept) > 0 {
            round.push_back(index);
        }
    }
    kept.into_iter().map(Partitions::from).collect()
}

/// What of a member's current partitions is there and nobody else's.
fn still_possible(member: &Member<'_>, numbering: &Numbering, taken: &mut [bool]) -> Vec<PartitionId> {
    let mut kept = Vec::with_capacity(member.current.len());
    for partition in member.current {
        if let Some((number, _)) = numbering.number(*partition)
            && !std::mem::replace(&mut taken[number], true)
        {
            kept.push(*partition);
        }
    }
    kept
}

/// How many partitions each member is to have.
fn shares(kept: &[Vec<PartitionId>], partitions: usize) -> Vec<usize> {
    let (share, mut longer) = (partitions / kept.len(), partitions % kept.len());
    let mut shares = vec![share; kept.len()];
    let had_more = (0..kept.len()).filter(|index| kept[*index].len() > share);
    let had_less = (0..kept.len()).filter(|index| kept[*index].len() <= share);
    for index in had_more.chain(had_less) {
        if longer == 0 {
            break;
        }
        shares[index] += 1;
        longer -= 1;
    }
    shares
}

/// Cuts what a member keeps to its share and returns the rest, which is taken from the topics of which it has most.
fn cut_to(kept: &mut Vec<PartitionId>, share: usize) -> Vec<PartitionId> {
    if kept.len() <= share {
        return Vec::new();
    }
    // By rank within the topic: first one of each topic, then a second one of each, and so on.
    let mut ranked: Vec<(usize, PartitionId)> = Vec::with_capacity(kept.len());
    for topic in kept.chunk_by(|a, b| a.topic == b.topic) {
        ranked.extend(topic.iter().copied().enumerate());
    }
    ranked.sort_unstable();
    kept.clear();
    kept.extend(ranked[..share].iter().map(|(_, partition)| *partition));
    ranked[share..].iter().map(|(_, partition)| *partition).collect()
}
