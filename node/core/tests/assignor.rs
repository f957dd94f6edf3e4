//! Assignors against dumb models, over random histories of joins, leaves and topics that come, grow and go.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use flumen_core::coordinator::assignor::{Assignor, Member, PartitionCounts, Partitions};
use flumen_core::types::{PartitionId, TopicId};
use proptest::prelude::*;

/// A member between two assignments.
#[derive(Clone, Debug, Default)]
struct Consumer {
    topics: Vec<TopicId>,
    current: Partitions,
}

type Group = BTreeMap<String, Consumer>;

fn topic(number: u8) -> TopicId {
    TopicId([number; 16])
}

fn assign(assignor: Assignor, group: &Group, counts: &PartitionCounts) -> Vec<Partitions> {
    let members: Vec<Member<'_>> = group
        .iter()
        .map(|(id, consumer)| Member {
            id,
            instance_id: None,
            topics: &consumer.topics,
            current: &consumer.current,
        })
        .collect();
    assignor.assign(&members, counts)
}

fn subscribed(group: &Group, counts: &PartitionCounts) -> BTreeSet<PartitionId> {
    let topics: BTreeSet<TopicId> =
        group.values().flat_map(|consumer| consumer.topics.iter().copied()).collect();
    counts
        .iter()
        .filter(|(topic, _)| topics.contains(topic))
        .flat_map(|(topic, count)| (0..*count).map(|partition| PartitionId { topic: *topic, partition }))
        .collect()
}

/// Each partition of a subscribed topic goes to exactly one member, who subscribes to it, and nothing else to anybody.
fn check_complete(group: &Group, counts: &PartitionCounts, assigned: &[Partitions]) {
    assert_eq!(assigned.len(), group.len());
    let mut given = BTreeSet::new();
    for (consumer, partitions) in group.values().zip(assigned) {
        for partition in partitions {
            assert!(given.insert(*partition), "{partition:?} goes to two members");
            assert!(consumer.topics.contains(&partition.topic), "{partition:?} was not subscribed to");
        }
    }
    assert_eq!(given, subscribed(group, counts));
}

/// What members still have of what they had, before anything moves.
fn possible(group: &Group, counts: &PartitionCounts) -> Vec<Partitions> {
    let mut taken = BTreeSet::new();
    let wanted = subscribed(group, counts);
    group
        .values()
        .map(|consumer| {
            consumer.current.filtered(|partition| {
                wanted.contains(&partition)
                    && consumer.topics.contains(&partition.topic)
                    && taken.insert(partition)
            })
        })
        .collect()
}

fn kept(before: &[Partitions], after: &[Partitions]) -> usize {
    before.iter().zip(after).map(|(before, after)| before.intersection(after).len()).sum()
}

fn sizes(assigned: &[Partitions]) -> Vec<usize> {
    let mut sizes: Vec<usize> = assigned.iter().map(|partitions| partitions.len()).collect();
    sizes.sort_unstable();
    sizes
}

/// The most that can be kept with sizes that differ by at most one: every way to say who gets the larger size is as
/// good as giving it to those who have most.
fn most_kept_evenly(possible: &[Partitions], partitions: usize) -> usize {
    let (share, longer) = (partitions / possible.len(), partitions % possible.len());
    let mut had: Vec<usize> = possible.iter().map(|partitions| partitions.len()).collect();
    had.sort_unstable_by(|a, b| b.cmp(a));
    had.iter().enumerate().map(|(rank, had)| (*had).min(share + usize::from(rank < longer))).sum()
}

/// The sizes of an assignment that is as even as can be, made the slow way: partition by partition, each time with
/// whatever chain of hand-overs ends at the smallest member that can be reached.
fn fairest_sizes(group: &Group, counts: &PartitionCounts) -> Vec<usize> {
    let subscriptions: Vec<&Vec<TopicId>> = group.values().map(|consumer| &consumer.topics).collect();
    let mut owned: Vec<Vec<PartitionId>> = vec![Vec::new(); group.len()];
    for partition in subscribed(group, counts) {
        // (member, partition that it gets, whom it is taken from)
        let mut found: Vec<(usize, PartitionId, Option<usize>)> = Vec::new();
        let mut open = vec![(partition, None)];
        while let Some((wanted, from)) = open.pop() {
            for (index, topics) in subscriptions.iter().enumerate() {
                if topics.contains(&wanted.topic) && !found.iter().any(|(known, ..)| *known == index) {
                    found.push((index, wanted, from));
                    open.extend(owned[index].iter().map(|owned| (*owned, Some(index))));
                }
            }
        }
        let (mut member, ..) = *found.iter().min_by_key(|(index, ..)| owned[*index].len()).unwrap();
        loop {
            let (_, gets, from) = *found.iter().find(|(index, ..)| *index == member).unwrap();
            owned[member].push(gets);
            let Some(from) = from else { break };
            owned[from].retain(|partition| *partition != gets);
            member = from;
        }
    }
    let mut sizes: Vec<usize> = owned.iter().map(Vec::len).collect();
    sizes.sort_unstable();
    sizes
}

#[derive(Clone, Debug)]
enum Event {
    Join(u8, u8),
    Leave(u8),
    Subscribe(u8, u8),
    Topic(u8, i32),
}

fn events(topics: u8) -> impl Strategy<Value = Vec<Event>> {
    let one = prop_oneof![
        4 => (0..12_u8, any::<u8>()).prop_map(|(member, subscription)| Event::Join(member, subscription)),
        2 => (0..12_u8).prop_map(Event::Leave),
        1 => (0..12_u8, any::<u8>()).prop_map(|(member, subscription)| Event::Subscribe(member, subscription)),
        2 => (0..topics, 0..12_i32).prop_map(|(topic, count)| Event::Topic(topic, count)),
    ];
    prop::collection::vec(one, 1..24)
}

/// Plays a history. A subscription is a set of bits, or all topics where the group is to be of one mind.
fn play(
    events: &[Event],
    of_one_mind: bool,
    mut check: impl FnMut(&mut Group, &PartitionCounts) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let mut group = Group::new();
    let mut counts = PartitionCounts::new();
    let topics = |bits: u8| -> Vec<TopicId> {
        (0..8).filter(|bit| of_one_mind || bits & (1 << bit) != 0).map(topic).collect()
    };
    for event in events {
        match event {
            Event::Join(member, bits) => {
                group.entry(format!("m{member:02}")).or_default().topics = topics(*bits);
            }
            Event::Leave(member) => drop(group.remove(&format!("m{member:02}"))),
            Event::Subscribe(member, bits) => {
                if let Some(consumer) = group.get_mut(&format!("m{member:02}")) {
                    consumer.topics = topics(*bits);
                }
            }
            Event::Topic(number, 0) => drop(counts.remove(&topic(*number))),
            Event::Topic(number, count) => drop(counts.insert(topic(*number), *count)),
        }
        if !group.is_empty() {
            check(&mut group, &counts)?;
        }
    }
    Ok(())
}

fn settle(group: &mut Group, assigned: Vec<Partitions>) {
    for (consumer, partitions) in group.values_mut().zip(assigned) {
        consumer.current = partitions;
    }
}

/// The most that any assignment with the fairest sizes keeps: all of them are tried.
struct Exhaustive<'a> {
    partitions: Vec<PartitionId>,
    subscriptions: Vec<&'a [TopicId]>,
    possible: &'a [Partitions],
    fairest: Vec<usize>,
    sizes: Vec<usize>,
    best: usize,
}

impl Exhaustive<'_> {
    fn most_kept(group: &Group, counts: &PartitionCounts, possible: &[Partitions]) -> usize {
        let mut search = Exhaustive {
            partitions: subscribed(group, counts).into_iter().collect(),
            subscriptions: group.values().map(|consumer| &consumer.topics[..]).collect(),
            possible,
            fairest: fairest_sizes(group, counts),
            sizes: vec![0; group.len()],
            best: 0,
        };
        search.place(0, 0);
        search.best
    }

    fn place(&mut self, next: usize, kept: usize) {
        let Some(partition) = self.partitions.get(next).copied() else {
            let mut sizes = self.sizes.clone();
            sizes.sort_unstable();
            if sizes == self.fairest {
                self.best = self.best.max(kept);
            }
            return;
        };
        for member in 0..self.sizes.len() {
            if self.subscriptions[member].contains(&partition.topic)
                && self.sizes[member] < self.fairest[self.fairest.len() - 1]
            {
                self.sizes[member] += 1;
                let keeps = self.possible[member].contains(partition);
                self.place(next + 1, kept + usize::from(keeps));
                self.sizes[member] -= 1;
            }
        }
    }
}

/// Small histories, so that all assignments can be tried.
fn small_events() -> impl Strategy<Value = Vec<Event>> {
    let one = prop_oneof![
        4 => (0..4_u8, 0..16_u8).prop_map(|(member, subscription)| Event::Join(member, subscription)),
        2 => (0..4_u8).prop_map(Event::Leave),
        1 => (0..4_u8, 0..16_u8).prop_map(|(member, subscription)| Event::Subscribe(member, subscription)),
        2 => (0..4_u8, 0..3_i32).prop_map(|(topic, count)| Event::Topic(topic, count)),
    ];
    prop::collection::vec(one, 1..16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn uniform_is_even_and_moves_as_little_as_can_be(events in events(8)) {
        play(&events, true, |group, counts| {
            let assigned = assign(Assignor::Uniform, group, counts);
            check_complete(group, counts, &assigned);
            let sizes = sizes(&assigned);
            prop_assert!(sizes[sizes.len() - 1] - sizes[0] <= 1, "{:?}", sizes);
            let possible = possible(group, counts);
            prop_assert_eq!(
                kept(&possible, &assigned),
                most_kept_evenly(&possible, subscribed(group, counts).len())
            );
            settle(group, assigned);
            Ok(())
        })?;
    }

    #[test]
    fn uniform_is_as_even_as_subscriptions_allow(events in events(8)) {
        play(&events, false, |group, counts| {
            let assigned = assign(Assignor::Uniform, group, counts);
            check_complete(group, counts, &assigned);
            prop_assert_eq!(sizes(&assigned), fairest_sizes(group, counts));
            settle(group, assigned.clone());
            // And it stays as it is, when nothing has changed.
            prop_assert_eq!(assign(Assignor::Uniform, group, counts), assigned);
            Ok(())
        })?;
    }

    #[test]
    fn uniform_hardly_moves_more_than_it_must(events in small_events()) {
        play(&events, false, |group, counts| {
            let assigned = assign(Assignor::Uniform, group, counts);
            let possible = possible(group, counts);
            let most = Exhaustive::most_kept(group, counts, &possible);
            prop_assert!(kept(&possible, &assigned) + 1 >= most, "{:?}", assigned);
            settle(group, assigned);
            Ok(())
        })?;
    }

    #[test]
    fn range_gives_contiguous_ranges_by_the_order_of_members(events in events(8)) {
        play(&events, false, |group, counts| {
            let assigned = assign(Assignor::Range, group, counts);
            check_complete(group, counts, &assigned);
            for (topic, count) in counts {
                let mut next = 0;
                let mut lengths = Vec::new();
                for (consumer, partitions) in group.values().zip(&assigned) {
                    if consumer.topics.contains(topic) {
                        let of_topic = partitions.filtered(|partition| partition.topic == *topic);
                        for partition in &of_topic {
                            prop_assert_eq!(partition.partition, next);
                            next += 1;
                        }
                        lengths.push(of_topic.len());
                    }
                }
                prop_assert!(lengths.is_empty() || next == *count);
                // Longer ones first, and by one at most.
                prop_assert!(lengths.is_sorted_by(|a, b| a >= b));
                prop_assert!(lengths.first().unwrap_or(&0) - lengths.last().unwrap_or(&0) <= 1);
            }
            settle(group, assigned);
            Ok(())
        })?;
    }
}
