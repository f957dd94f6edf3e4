//! Who reads what, decided by the member that leads the group: Kafka's `range` and `cooperative-sticky` assignors.
//!
//! Pure: from subscriptions and partition counts to an assignment. Invariants, which the property tests hold:
//! each partition of a subscribed topic goes to at most one member, and to exactly one under `range`; under
//! `cooperative-sticky` one that moves goes to nobody until its owner has given it up, and where all members want the
//! same topics, sizes of the target differ by at most one.

use super::protocol::Subscription;
use crate::metadata::TopicPartition;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// How partitions are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Assignor {
    /// Of each topic, a stretch for each member. All members stop during a rebalance.
    #[default]
    Range,
    /// As few moves as can be; members keep reading what they keep (KIP-429).
    CooperativeSticky,
}

/// By member.
pub type Assignments = BTreeMap<String, Vec<TopicPartition>>;

impl Assignor {
    /// As the protocol calls it.
    pub fn name(self) -> &'static str {
        match self {
            Assignor::Range => "range",
            Assignor::CooperativeSticky => "cooperative-sticky",
        }
    }

    /// By its name.
    pub fn from_name(name: &str) -> Option<Assignor> {
        [Assignor::Range, Assignor::CooperativeSticky].into_iter().find(|one| one.name() == name)
    }

    /// Whether members keep what they have while they rejoin.
    pub fn is_cooperative(self) -> bool {
        self == Assignor::CooperativeSticky
    }

    /// Decides. `counts` says how many partitions each topic has; topics that are not there get nothing.
    pub fn assign(
        self,
        members: &BTreeMap<String, Subscription>,
        counts: &BTreeMap<Rc<str>, i32>,
    ) -> Assignments {
        match self {
            Assignor::Range => range(members, counts),
            Assignor::CooperativeSticky => release_before_move(members, sticky(members, counts)),
        }
    }
}

fn range(members: &BTreeMap<String, Subscription>, counts: &BTreeMap<Rc<str>, i32>) -> Assignments {
    let mut out: Assignments = members.keys().map(|id| (id.clone(), Vec::new())).collect();
    for (topic, count) in counts {
        let wanting: Vec<&String> =
            members.iter().filter(|(_, s)| s.topics.contains(topic)).map(|(id, _)| id).collect();
        if wanting.is_empty() {
            continue;
        }
        let (each, extra) = (count / wanting.len() as i32, count % wanting.len() as i32);
        let mut next = 0;
        for (place, id) in wanting.into_iter().enumerate() {
            let take = each + i32::from((place as i32) < extra);
            let stretch = (next..next + take).map(|partition| TopicPartition::new(topic.clone(), partition));
            out.entry(id.clone()).or_default().extend(stretch);
            next += take;
        }
    }
    out
}

/// The target: everybody keeps what he has as far as it is fair, the rest goes to those who have least.
fn sticky(members: &BTreeMap<String, Subscription>, counts: &BTreeMap<Rc<str>, i32>) -> Assignments {
    let mut free: BTreeSet<TopicPartition> = counts
        .iter()
        .filter(|(topic, _)| members.values().any(|member| member.topics.contains(topic)))
        .flat_map(|(topic, count)| (0..*count).map(|p| TopicPartition::new(topic.clone(), p)))
        .collect();
    let mut out: Assignments = members.keys().map(|id| (id.clone(), Vec::new())).collect();
    for (id, at) in claims(members) {
        if free.remove(&at) {
            out.entry(id).or_default().push(at);
        }
    }
    // What nobody has, to the member that wants it and has least. Those that few want first.
    let wanting = |topic: &Rc<str>| -> Vec<&String> {
        members.iter().filter(|(_, s)| s.topics.contains(topic)).map(|(id, _)| id).collect()
    };
    let topics: BTreeMap<Rc<str>, Vec<&String>> =
        free.iter().map(|at| (at.topic.clone(), wanting(&at.topic))).collect();
    let mut free: Vec<_> = free.into_iter().collect();
    free.sort_by_key(|at| topics[&at.topic].len());
    for at in free {
        let least = topics[&at.topic].iter().copied().min_by_key(|id| out.get(*id).map_or(0, Vec::len));
        if let Some(id) = least {
            out.entry(id.clone()).or_default().push(at);
        }
    }
    balance(members, &mut out);
    for partitions in out.values_mut() {
        partitions.sort();
    }
    out
}

/// What members say they own and still want, the newest generation first: a member that was away may claim what
/// others have got since.
fn claims(members: &BTreeMap<String, Subscription>) -> Vec<(String, TopicPartition)> {
    let mut claims: Vec<_> = members
        .iter()
        .flat_map(|(id, member)| {
            let wanted = member.owned.iter().filter(|at| member.topics.contains(&at.topic));
            wanted.map(|at| (-member.generation, id.clone(), at.clone()))
        })
        .collect();
    claims.sort();
    claims.into_iter().map(|(_, id, at)| (id, at)).collect()
}

/// Moves one partition at a time from the member with most to one that wants it and has two less. Each move brings
/// the sizes nearer to each other, so it ends.
fn balance(members: &BTreeMap<String, Subscription>, out: &mut Assignments) {
    loop {
        let mut by_size: Vec<(usize, String)> = out.iter().map(|(id, has)| (has.len(), id.clone())).collect();
        by_size.sort();
        let step = by_size.iter().rev().find_map(|(most, from)| {
            let has = &out[from];
            by_size.iter().take_while(|(least, _)| least + 2 <= *most).find_map(|(_, to)| {
                let wants =
                    |at: &&TopicPartition| members.get(to).is_some_and(|s| s.topics.contains(&at.topic));
                // The last, so that what has been there longest tends to stay.
                has.iter().rev().find(wants).map(|at| (from.clone(), to.clone(), at.clone()))
            })
        });
        let Some((from, to, at)) = step else { return };
        out.entry(from).or_default().retain(|one| *one != at);
        out.entry(to).or_default().push(at);
    }
}

/// Takes out of a target what another member still owns: that member gives it up in this generation, and the
/// next one assigns it.
fn release_before_move(members: &BTreeMap<String, Subscription>, mut target: Assignments) -> Assignments {
    let owner: BTreeMap<TopicPartition, String> =
        claims(members).into_iter().rev().map(|(id, at)| (at, id)).collect();
    for (id, partitions) in &mut target {
        partitions.retain(|at| owner.get(at).is_none_or(|owner| owner == id));
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(topics: &[&[&str]]) -> BTreeMap<String, Subscription> {
        let subscription = |topics: &[&str]| Subscription {
            topics: topics.iter().map(|topic| Rc::from(*topic)).collect(),
            owned: Vec::new(),
            generation: -1,
        };
        topics.iter().enumerate().map(|(i, topics)| (format!("m{i}"), subscription(topics))).collect()
    }

    fn counts(of: &[(&str, i32)]) -> BTreeMap<Rc<str>, i32> {
        of.iter().map(|(topic, count)| (Rc::from(*topic), *count)).collect()
    }

    fn show(assignments: &Assignments) -> String {
        let one = |(id, partitions): (&String, &Vec<TopicPartition>)| {
            let list: Vec<_> = partitions.iter().map(TopicPartition::to_string).collect();
            format!("{id}: {}", list.join(" "))
        };
        assignments.iter().map(one).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn range_gives_stretches_of_each_topic() {
        let assigned =
            Assignor::Range.assign(&members(&[&["a", "b"], &["a"], &["a"]]), &counts(&[("a", 7), ("b", 2)]));
        assert_eq!(show(&assigned), "m0: a-0 a-1 a-2 b-0 b-1\nm1: a-3 a-4\nm2: a-5 a-6");
    }

    #[test]
    fn a_newcomer_gets_what_others_have_given_up_and_the_rest_stays() {
        let mut group = members(&[&["a"], &["a"]]);
        let counts = counts(&[("a", 5)]);
        let first = Assignor::CooperativeSticky.assign(&group, &counts);
        assert_eq!(show(&first), "m0: a-0 a-2 a-4\nm1: a-1 a-3");
        own(&mut group, &first, 1);
        group.extend(members(&[&["a"], &["a"], &["a"]]).into_iter().skip(2));
        let second = Assignor::CooperativeSticky.assign(&group, &counts);
        assert_eq!(show(&second), "m0: a-0 a-2\nm1: a-1 a-3\nm2: ");
        own(&mut group, &second, 2);
        let third = Assignor::CooperativeSticky.assign(&group, &counts);
        assert_eq!(show(&third), "m0: a-0 a-2\nm1: a-1 a-3\nm2: a-4");
    }

    #[test]
    fn a_member_that_was_away_does_not_take_back_what_others_got() {
        let mut group = members(&[&["a"], &["a"]]);
        let all: Vec<_> = (0..2).map(|p| TopicPartition::new("a", p)).collect();
        for (id, generation, owned) in [("m0", 3, &all[..]), ("m1", 5, &all[..1])] {
            let member = group.get_mut(id).expect("there");
            (member.generation, member.owned) = (generation, owned.to_vec());
        }
        let assigned = Assignor::CooperativeSticky.assign(&group, &counts(&[("a", 2)]));
        assert_eq!(show(&assigned), "m0: a-1\nm1: a-0");
    }

    fn own(group: &mut BTreeMap<String, Subscription>, assigned: &Assignments, generation: i32) {
        for (id, member) in group {
            member.owned = assigned.get(id).cloned().unwrap_or_default();
            member.generation = generation;
        }
    }

    proptest! {
        #[test]
        fn nothing_is_assigned_twice_and_cooperation_settles(
            wants in proptest::collection::vec(0u8..8, 1..8),
            sizes in proptest::collection::vec(0i32..9, 3),
            leaves in 0usize..8,
        ) {
            let topics = ["a", "b", "c"];
            let chosen: Vec<Vec<&str>> = wants
                .iter()
                .map(|bits| (0..3).filter(|i| bits >> i & 1 == 1).map(|i| topics[i]).collect())
                .collect();
            let refs: Vec<&[&str]> = chosen.iter().map(Vec::as_slice).collect();
            let mut group = members(&refs);
            let sizes: Vec<_> = topics.iter().copied().zip(sizes).collect();
            let counts = counts(&sizes);
            let wanted: BTreeSet<_> = chosen.iter().flatten().collect();
            let total: i32 = sizes.iter().filter(|(topic, _)| wanted.contains(topic)).map(|(_, n)| n).sum();

            let ranged = Assignor::Range.assign(&group, &counts);
            prop_assert_eq!(distinct(&ranged), total as usize);

            let mut assigned = Assignor::CooperativeSticky.assign(&group, &counts);
            prop_assert_eq!(distinct(&assigned), total as usize);
            // One leaves; then each round moves on, nobody ever has what another has, and it comes to rest.
            own(&mut group, &assigned, 1);
            if group.len() > 1 {
                let gone = format!("m{}", leaves % group.len());
                group.remove(&gone);
            }
            for generation in 2..5 {
                assigned = Assignor::CooperativeSticky.assign(&group, &counts);
                let distinct_now = distinct(&assigned);
                prop_assert!(distinct_now <= total as usize);
                for (id, has) in &assigned {
                    prop_assert!(has.iter().all(|at| group[id].topics.contains(&at.topic)));
                }
                own(&mut group, &assigned, generation);
            }
            let left: BTreeSet<_> = group.values().flat_map(|s| s.topics.clone()).collect();
            let total: i32 = counts.iter().filter(|(topic, _)| left.contains(*topic)).map(|(_, n)| n).sum();
            prop_assert_eq!(distinct(&assigned), total as usize);
            let same = group.values().all(|s| s.topics == group.values().next().expect("one").topics);
            if same {
                let (least, most) = (assigned.values().map(Vec::len).min(), assigned.values().map(Vec::len).max());
                prop_assert!(most.unwrap_or(0) - least.unwrap_or(0) <= 1);
            }
            prop_assert_eq!(&assigned, &Assignor::CooperativeSticky.assign(&group, &counts));
        }
    }

    /// How many partitions are assigned; an assertion failure when one is twice.
    fn distinct(assignments: &Assignments) -> usize {
        let all: Vec<_> = assignments.values().flatten().collect();
        let set: BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), set.len(), "{assignments:?}");
        set.len()
    }
}
