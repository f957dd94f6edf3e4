#![allow(clippy::disallowed_types)] // measures time
//! How long an assignment takes.
//!
//! `cargo bench -p flumen-core --bench assignors`. Budget: 10 ms for 100 members and 1,000 partitions, 1 s for 1,000
//! members and 10,000 partitions, whatever was there before.

use flumen_core::coordinator::assignor::{Assignor, Member, PartitionCounts, Partitions};
use flumen_core::types::{PartitionId, TopicId};
use std::hint::black_box;
use std::time::{Duration, Instant};

struct Consumer {
    id: String,
    topics: Vec<TopicId>,
    current: Partitions,
}

fn main() {
    println!(
        "{:>7} {:>10} {:>14} | {:>10} {:>10} {:>12} {:>12} {:>12}",
        "members", "partitions", "subscriptions", "first", "again", "half left", "half came", "one had all"
    );
    for (members, topics, partitions) in [(100, 10, 100), (1_000, 100, 100), (1_000, 10, 1_000)] {
        for mixed in [false, true] {
            let counts: PartitionCounts =
                (0..topics).map(|number: u8| (TopicId([number; 16]), partitions)).collect();
            let figures = measure(members, &counts, mixed);
            let kind = if mixed { "mixed" } else { "equal" };
            let [first, again, left, came, all] = figures.map(|time| format!("{time:.1?}"));
            println!(
                "{members:>7} {:>10} {kind:>14} | {first:>10} {again:>10} {left:>12} {came:>12} {all:>12}",
                i32::from(topics) * partitions,
            );
        }
    }
}

fn measure(members: usize, counts: &PartitionCounts, mixed: bool) -> [Duration; 5] {
    let mut group: Vec<Consumer> = (0..members)
        .map(|index| {
            let wanted = |topic: &&TopicId| {
                let number = usize::from(topic.0[0]);
                !mixed || (index * 7 + number * 13) % 5 < 2 + index % 3
            };
            let topics = counts.keys().filter(wanted).copied().collect();
            Consumer { id: format!("member-{index:05}"), topics, current: Partitions::new() }
        })
        .collect();
    let first = assign(&mut group, counts);
    let again = assign(&mut group, counts);
    let mut left: Vec<Consumer> = Vec::new();
    for index in (0..members / 2).rev() {
        left.push(group.remove(2 * index));
    }
    let half_left = assign(&mut group, counts);
    group.extend(left.into_iter().map(|consumer| Consumer { current: Partitions::new(), ..consumer }));
    let half_came = assign(&mut group, counts);
    for (index, consumer) in group.iter_mut().enumerate() {
        let all = consumer
            .topics
            .iter()
            .flat_map(|topic| (0..counts[topic]).map(|partition| PartitionId { topic: *topic, partition }));
        consumer.current = if index == 0 { all.collect() } else { Partitions::new() };
    }
    let one_had_all = assign(&mut group, counts);
    [first, again, half_left, half_came, one_had_all]
}

/// Assigns, and lets the members have it.
fn assign(group: &mut [Consumer], counts: &PartitionCounts) -> Duration {
    let members: Vec<Member<'_>> = group
        .iter()
        .map(|consumer| Member {
            id: &consumer.id,
            instance_id: None,
            topics: &consumer.topics,
            current: &consumer.current,
        })
        .collect();
    let began = Instant::now();
    let assigned = black_box(Assignor::Uniform.assign(black_box(&members), counts));
    let took = began.elapsed();
    for (consumer, partitions) in group.iter_mut().zip(assigned) {
        consumer.current = partitions;
    }
    took
}
