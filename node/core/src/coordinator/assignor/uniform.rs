//! The assignor `uniform` where members subscribe to different topics: as even as the subscriptions allow, and sticky.
//!
//! As even as can be means: no partition, and no chain of partitions handed on from member to member, can be moved such
//! that a member loses one and another, smaller by two or more, gains one. Such an assignment has the least sum of
//! squared sizes, and the same sizes as every other one that has (an optimal semi-matching; Harvey, Ladner, Lovász, Tamir,
//! 2003). Chains are sought from the largest member down. Where none leads from a member to one smaller by two, none will
//! later lead from any member that it reaches, so those are settled and never looked at again.
//!
//! ```text
//!   keep what is possible ──> give away what is free ──> hand on along chains
//! ```
//!
//! Few partitions move because chains are the shortest, and rather move what has moved already. That is not always the
//! fewest possible: in small random groups, of which all assignments can be tried, it moves one too many once in some
//! fifty thousand times.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Member, Numbering, PartitionCounts, Partitions, topics_of};
use crate::types::{PartitionId, TopicId};

/// Nobody.
const NONE: usize = usize::MAX;

pub(super) fn assign(members: &[Member<'_>], counts: &PartitionCounts) -> Vec<Partitions> {
    let mut draft = Draft::new(members, counts);
    draft.keep_current(members);
    draft.give_free();
    draft.balance();
    draft.into_assignment()
}

/// The assignment as it grows. Members are indices, topics are indices, partitions are numbers.
struct Draft {
    numbering: Numbering,
    /// Who subscribes to each topic, in rising order.
    subscribers: Vec<Vec<usize>>,
    /// What each member subscribes to, in rising order.
    topics: Vec<Vec<usize>>,
    /// The topic of each partition.
    topic_of: Vec<usize>,
    /// Who has each partition.
    owner: Vec<usize>,
    /// Who had it before.
    former: Vec<usize>,
    /// What each member has of each topic that it subscribes to, in the order of `topics`.
    held: Vec<Vec<Vec<usize>>>,
    sizes: Vec<usize>,
}

/// A way from one member to another: each hands one partition of a topic to the next.
struct Chain {
    giver: usize,
    steps: Vec<Step>,
}

#[derive(Clone, Copy)]
struct Step {
    topic: usize,
    taker: usize,
}

impl Draft {
    fn new(members: &[Member<'_>], counts: &PartitionCounts) -> Draft {
        let mut all: Vec<(TopicId, i32)> =
            members.iter().flat_map(|member| topics_of(member, counts)).collect();
        all.sort_unstable();
        all.dedup();
        let numbering = Numbering::new(all);
        let topics: Vec<Vec<usize>> = members
            .iter()
            .map(|member| topics_of(member, counts).filter_map(|(id, _)| numbering.topic(id)).collect())
            .collect();
        let mut subscribers = vec![Vec::new(); numbering.topics.len()];
        for (member, topics) in topics.iter().enumerate() {
            for topic in topics {
                subscribers[*topic].push(member);
            }
        }
        let topic_of = (0..numbering.topics.len())
            .flat_map(|topic| numbering.of_topic(topic).map(move |_| topic))
            .collect();
        Draft {
            subscribers,
            topic_of,
            owner: vec![NONE; numbering.len()],
            former: vec![NONE; numbering.len()],
            held: topics.iter().map(|topics| vec![Vec::new(); topics.len()]).collect(),
            sizes: vec![0; topics.len()],
            topics,
            numbering,
        }
    }

    /// The place of a topic among those that a member subscribes to.
    fn slot(&self, member: usize, topic: usize) -> Option<usize> {
        self.topics[member].binary_search(&topic).ok()
    }

    fn holds_of(&self, member: usize, topic: usize) -> &[usize] {
        self.slot(member, topic).map_or(&[], |slot| &self.held[member][slot])
    }

    fn give(&mut self, partition: usize, member: usize) {
        let slot = self.slot(member, self.topic_of[partition]).expect("goes to subscribers alone");
        self.held[member][slot].push(partition);
        self.owner[partition] = member;
        self.sizes[member] += 1;
    }

    fn take(&mut self, partition: usize) {
        let member = self.owner[partition];
        let slot = self.slot(member, self.topic_of[partition]).expect("was given to a subscriber");
        let held = &mut self.held[member][slot];
        let place = held.iter().position(|have| *have == partition).expect("is held by its owner");
        held.swap_remove(place);
        self.owner[partition] = NONE;
        self.sizes[member] -= 1;
    }

    fn keep_current(&mut self, members: &[Member<'_>]) {
        for (index, member) in members.iter().enumerate() {
            for partition in member.current {
                let Some((number, topic)) = self.numbering.number(*partition) else { continue };
                if self.owner[number] == NONE && self.slot(index, topic).is_some() {
                    self.former[number] = index;
                    self.give(number, index);
                }
            }
        }
    }

    /// Gives what nobody has to whoever has least; topics with the fewest subscribers go first.
    fn give_free(&mut self) {
        let mut topics: Vec<usize> = (0..self.subscribers.len()).collect();
        topics.sort_by_key(|topic| self.subscribers[*topic].len());
        for topic in topics {
            let least = self.subscribers[topic].iter().map(|member| Reverse((self.sizes[*member], *member)));
            let mut least = BinaryHeap::from_iter(least);
            for partition in self.numbering.of_topic(topic) {
                if self.owner[partition] != NONE {
                    continue;
                }
                let Some(Reverse((size, member))) = least.pop() else { break };
                self.give(partition, member);
                least.push(Reverse((size + 1, member)));
            }
        }
    }

    /// Hands partitions on until it is as even as can be.
    fn balance(&mut self) {
        let mut settled = vec![false; self.sizes.len()];
        let mut largest = BinaryHeap::from_iter(
            self.sizes.iter().enumerate().map(|(member, size)| (*size, Reverse(member))),
        );
        while let Some((size, Reverse(giver))) = largest.pop() {
            if settled[giver] || self.sizes[giver] != size {
                continue;
            }
            let reached = self.search(giver, |draft, member| draft.sizes[member] + 2 <= size, &settled);
            match reached {
                Ok(chain) => {
                    let taker = self.hand_on(&chain);
                    for member in [giver, taker] {
                        largest.push((self.sizes[member], Reverse(member)));
                    }
                }
                Err(all) => all.into_iter().for_each(|member| settled[member] = true),
            }
        }
    }

    /// The shortest chain from `giver` to a member that will do, the smallest of those that are equally near; or all
    /// whom chains lead to, if none will do.
    fn search(
        &self,
        giver: usize,
        will_do: impl Fn(&Draft, usize) -> bool,
        closed: &[bool],
    ) -> Result<Chain, Vec<usize>> {
        let mut came_from: Vec<Option<(usize, usize)>> = vec![None; self.sizes.len()];
        let mut seen_topics = vec![false; self.subscribers.len()];
        let mut reached = vec![giver];
        let mut layer = vec![giver];
        while !layer.is_empty() {
            let mut next = Vec::new();
            for from in layer {
                for (topic, held) in self.topics[from].iter().zip(&self.held[from]) {
                    if held.is_empty() || std::mem::replace(&mut seen_topics[*topic], true) {
                        continue;
                    }
                    for to in &self.subscribers[*topic] {
                        if *to != giver && !closed[*to] && came_from[*to].is_none() {
                            came_from[*to] = Some((from, *topic));
                            next.push(*to);
                        }
                    }
                }
            }
            let fit = next.iter().filter(|member| will_do(self, **member));
            if let Some(taker) = fit.min_by_key(|member| self.sizes[**member]) {
                return Ok(chain_to(*taker, giver, &came_from));
            }
            reached.extend(&next);
            layer = next;
        }
        Err(reached)
    }

    /// Moves one partition along each step, and returns who has one more now.
    fn hand_on(&mut self, chain: &Chain) -> usize {
        let mut from = chain.giver;
        for step in &chain.steps {
            let held = self.holds_of(from, step.topic);
            // Rather one that comes back to where it was, or that has moved already.
            let best = held.iter().copied().max_by_key(|partition| {
                let former = self.former[*partition];
                (former == step.taker, former != from, Reverse(*partition))
            });
            let partition = best.expect("a chain goes over what is held");
            self.take(partition);
            self.give(partition, step.taker);
            from = step.taker;
        }
        from
    }

    fn into_assignment(self) -> Vec<Partitions> {
        let partitions = self.numbering.partitions();
        let mut assigned: Vec<Vec<PartitionId>> = vec![Vec::new(); self.sizes.len()];
        for (partition, owner) in partitions.into_iter().zip(self.owner) {
            if owner != NONE {
                assigned[owner].push(partition);
            }
        }
        assigned.into_iter().map(Partitions::from).collect()
    }
}

fn chain_to(taker: usize, giver: usize, came_from: &[Option<(usize, usize)>]) -> Chain {
    let mut steps = Vec::new();
    let mut taker = taker;
    while let Some((from, topic)) = came_from[taker] {
        steps.push(Step { topic, taker });
        taker = from;
    }
    assert_eq!(taker, giver, "a chain leads back to where it was sought from");
    steps.reverse();
    Chain { giver, steps }
}
