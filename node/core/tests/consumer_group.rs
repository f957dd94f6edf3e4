//! A consumer group under random histories: members that join, heartbeat, give up partitions at their own pace, leave,
//! crash, restart, lose answers; topics that come, grow and go.
//!
//! After every answer: no partition is owned by two members; the records, replayed on an empty group, also with
//! all but the last of each key left out, give the same group. At the end everybody heartbeats until nothing changes:
//! then every partition of a subscribed topic is owned, and the sizes are even.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flumen_core::coordinator::assignor::{Assignor, Partitions};
use flumen_core::coordinator::consumer::{
    Change, Client, ConsumerGroup, Context, Decision, GroupSettings, GroupState, Heartbeat, HeartbeatAnswer,
    Refused, TimerChange,
};
use flumen_core::metadata::{Image, PartitionRecord, Record as MetadataRecord};
use flumen_core::types::{LeaderEpoch, NodeId, PartitionId, TopicId};
use flumen_wire::ErrorCode;
use flumen_wire::messages::consumer_group_heartbeat_request::{
    ConsumerGroupHeartbeatRequest, TopicPartitions,
};
use proptest::prelude::*;

const TOPICS: [&str; 4] = ["a", "b", "c", "other"];

/// A client: what it believes.
#[derive(Clone, Debug, Default)]
struct Consumer {
    member_id: String,
    instance_id: Option<String>,
    epoch: i32,
    topics: BTreeSet<usize>,
    regex: Option<&'static str>,
    /// What it owns: told, and not reported given up.
    owned: BTreeSet<PartitionId>,
    /// What it was told last.
    told: BTreeSet<PartitionId>,
    /// It has to say what it owns.
    has_news: bool,
    /// It has to say all about itself.
    is_unsure: bool,
}

struct World {
    image: Image,
    next_topic_id: u8,
    group: ConsumerGroup,
    log: Vec<Change>,
    consumers: BTreeMap<u8, Consumer>,
    next_member: u32,
    settings: GroupSettings,
    /// Members with a session timer, and with a rebalance timer.
    sessions: BTreeSet<Arc<str>>,
    rebalances: BTreeSet<Arc<str>>,
}

#[derive(Clone, Debug)]
enum Event {
    Join { who: u8, topics: u8, is_static: bool, by_regex: bool },
    Heartbeat { who: u8, is_lost: bool },
    Acknowledge(u8),
    Leave(u8),
    Pause(u8),
    Crash(u8),
    RebalanceExpires(u8),
    Topic { which: usize, partitions: i32 },
    Reload,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let who = 0..7_u8;
    let one = prop_oneof![
        4 => (who.clone(), 0..16_u8, any::<bool>(), 0..4_u8)
            .prop_map(|(who, topics, is_static, regex)| Event::Join { who, topics, is_static, by_regex: regex == 0 }),
        16 => (who.clone(), 0..8_u8).prop_map(|(who, lost)| Event::Heartbeat { who, is_lost: lost == 0 }),
        8 => who.clone().prop_map(Event::Acknowledge),
        1 => who.clone().prop_map(Event::Leave),
        1 => who.clone().prop_map(Event::Pause),
        1 => who.clone().prop_map(Event::Crash),
        1 => who.prop_map(Event::RebalanceExpires),
        2 => (0..TOPICS.len(), 0..7_i32).prop_map(|(which, partitions)| Event::Topic { which, partitions }),
        1 => Just(Event::Reload),
    ];
    prop::collection::vec(one, 1..120)
}

impl World {
    fn new() -> World {
        World {
            image: Image::default(),
            next_topic_id: 0,
            group: ConsumerGroup::new("g".into()),
            log: Vec::new(),
            consumers: BTreeMap::new(),
            next_member: 0,
            settings: GroupSettings {
                heartbeat_interval_ms: 5_000,
                session_timeout_ms: 45_000,
                assignment_interval_ms: 0,
                assignors: Assignor::ALL.to_vec(),
                max_size: 6,
            },
            sessions: BTreeSet::new(),
            rebalances: BTreeSet::new(),
        }
    }

    fn run(&mut self, event: &Event) {
        match event {
            Event::Join { who, topics, is_static, by_regex } => {
                self.join(*who, *topics, *is_static, *by_regex)
            }
            Event::Heartbeat { who, is_lost } => self.heartbeat(*who, *is_lost),
            Event::Acknowledge(who) => {
                if let Some(consumer) = self.consumers.get_mut(who) {
                    // Gives up, and takes up, what it was told: it says so with its next heartbeat.
                    consumer.has_news = true;
                }
            }
            Event::Leave(who) => self.leave(*who, -1),
            Event::Pause(who) => self.leave(*who, -2),
            Event::Crash(who) => {
                if let Some(consumer) = self.consumers.remove(who) {
                    self.expire_session(&consumer.member_id);
                }
            }
            Event::RebalanceExpires(who) => self.expire_rebalance(*who),
            Event::Topic { which, partitions } => self.change_topic(TOPICS[*which], *partitions),
            Event::Reload => self.reload(),
        }
        self.check();
    }

    fn join(&mut self, who: u8, topics: u8, is_static: bool, by_regex: bool) {
        self.next_member += 1;
        let member_id = format!("member-{}", self.next_member);
        let subscribed = (0..4).filter(|bit| topics & (1 << bit) != 0).collect();
        let consumer = self.consumers.entry(who).or_insert_with(|| Consumer {
            member_id,
            instance_id: is_static.then(|| format!("instance-{who}")),
            ..Consumer::default()
        });
        consumer.topics = subscribed;
        consumer.regex = by_regex.then_some("[abc]");
        consumer.is_unsure = true;
        self.heartbeat(who, false);
    }

    fn heartbeat(&mut self, who: u8, is_lost: bool) {
        let Some(consumer) = self.consumers.get_mut(&who) else { return };
        let says_all = consumer.epoch == 0 || consumer.is_unsure;
        let says_owned = says_all || consumer.has_news;
        if consumer.has_news && consumer.epoch != 0 {
            // What it was told it has taken up, and the rest it has given up.
            consumer.owned = consumer.told.clone();
        }
        let names: Vec<&str> = consumer.topics.iter().map(|topic| TOPICS[*topic]).collect();
        let owned = consumer.owned.iter().map(|partition| TopicPartitions {
            topic_id: partition.topic.0,
            partitions: vec![partition.partition],
        });
        let request = ConsumerGroupHeartbeatRequest {
            group_id: "g",
            member_id: &consumer.member_id,
            member_epoch: consumer.epoch,
            instance_id: consumer.instance_id.as_deref(),
            rebalance_timeout_ms: if says_all { 60_000 } else { -1 },
            subscribed_topic_names: says_all.then_some(names),
            subscribed_topic_regex: says_all.then(|| consumer.regex.unwrap_or("")),
            topic_partitions: says_owned.then(|| owned.collect()),
            ..ConsumerGroupHeartbeatRequest::default()
        };
        let decided = decide(&self.group, &self.image, &self.settings, &request);
        let answer = self.carry_out(decided);
        let consumer = self.consumers.get_mut(&who).unwrap();
        match answer {
            // The server acts by it; the client asks again, in full.
            Ok(_) if is_lost => consumer.is_unsure = true,
            Ok(answer) => consumer.hear(answer),
            Err(ErrorCode::FencedMemberEpoch | ErrorCode::UnknownMemberId) => {
                // It abandons all, and joins again.
                consumer.owned.clear();
                consumer.told.clear();
                consumer.epoch = 0;
            }
            Err(
                ErrorCode::GroupMaxSizeReached
                | ErrorCode::UnreleasedInstanceId
                | ErrorCode::FencedInstanceId,
            ) => {
                self.consumers.remove(&who);
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn leave(&mut self, who: u8, epoch: i32) {
        let Some(consumer) = self.consumers.remove(&who) else { return };
        let epoch = if consumer.instance_id.is_some() { epoch } else { -1 };
        let request = ConsumerGroupHeartbeatRequest {
            group_id: "g",
            member_id: &consumer.member_id,
            member_epoch: epoch,
            instance_id: consumer.instance_id.as_deref(),
            ..ConsumerGroupHeartbeatRequest::default()
        };
        let decided = decide(&self.group, &self.image, &self.settings, &request);
        let _ = self.carry_out(decided);
    }

    fn expire_session(&mut self, member_id: &str) {
        if self.sessions.contains(member_id) {
            let decision = self.group.session_expired(&context(&self.image, &self.settings), member_id);
            self.carry_out(Ok(decision)).unwrap();
        }
    }

    fn expire_rebalance(&mut self, who: u8) {
        let Some(consumer) = self.consumers.get(&who) else { return };
        let member_id = consumer.member_id.clone();
        if self.rebalances.contains(&*member_id) {
            let decision = self.group.rebalance_expired(&context(&self.image, &self.settings), &member_id);
            let is_fenced = !decision.records.is_empty();
            self.carry_out(Ok(decision)).unwrap();
            if is_fenced {
                // As far as the group is concerned it owns nothing any more.
                let consumer = self.consumers.get_mut(&who).unwrap();
                consumer.owned.clear();
                consumer.told.clear();
            }
        }
    }

    fn change_topic(&mut self, name: &str, partitions: i32) {
        let known = self.image.topic(name).map(|topic| (topic.id, topic.partitions.len() as i32));
        let (id, from) = match known {
            Some((id, _)) if partitions == 0 => {
                self.image.replay(&MetadataRecord::RemoveTopic(id)).unwrap();
                return;
            }
            Some(known) => known,
            None => {
                self.next_topic_id += 1;
                let id = TopicId([self.next_topic_id; 16]);
                self.image.replay(&MetadataRecord::Topic { id, name: name.to_owned() }).unwrap();
                (id, 0)
            }
        };
        for partition in from..partitions {
            let record = PartitionRecord {
                topic: id,
                partition,
                replicas: vec![NodeId(1)],
                isr: vec![NodeId(1)],
                leader: Some(NodeId(1)),
                leader_epoch: LeaderEpoch(0),
                partition_epoch: 0,
            };
            self.image.replay(&MetadataRecord::Partition(record)).unwrap();
        }
    }

    /// The coordinator moves: the state comes from the log, and timers begin anew.
    fn reload(&mut self) {
        self.group = replayed(&self.log);
        self.sessions.clear();
        self.rebalances.clear();
        let timers = self.group.timers(&context(&self.image, &self.settings));
        timers.into_iter().for_each(|timer| self.set(timer));
    }

    fn carry_out<R>(&mut self, decided: Result<Decision<R>, Refused>) -> Result<R, ErrorCode> {
        let Decision { records, answer, timers } = decided.map_err(|refused| refused.code)?;
        for record in records {
            self.group.replay(&record);
            self.log.push(record);
        }
        timers.into_iter().for_each(|timer| self.set(timer));
        Ok(answer)
    }

    fn set(&mut self, timer: TimerChange) {
        match timer {
            TimerChange::Session { member_id, .. } => drop(self.sessions.insert(member_id)),
            TimerChange::Rebalance { member_id, .. } => drop(self.rebalances.insert(member_id)),
            TimerChange::RebalanceUnlessSet { .. } => unreachable!("no member speaks the classic protocol"),
            TimerChange::StopRebalance { member_id } => drop(self.rebalances.remove(&member_id)),
            TimerChange::Stop { member_id } => {
                self.sessions.remove(&member_id);
                self.rebalances.remove(&member_id);
            }
        }
    }

    fn check(&self) {
        let mut owners = BTreeMap::new();
        for (who, consumer) in &self.consumers {
            for partition in consumer.owned.union(&consumer.told) {
                let other = owners.insert(*partition, *who);
                assert!(other.is_none(), "{partition:?} is owned by {other:?} and {who}");
            }
        }
        assert_eq!(replayed(&self.log), self.group, "replay");
        assert_eq!(replayed(&compacted(&self.log)), self.group, "replay of a compacted log");
        let members: BTreeSet<Arc<str>> = self.group.members().map(|(id, _)| Arc::clone(id)).collect();
        assert_eq!(self.sessions, members, "every member has a session timer, and nobody else");
    }

    /// Everybody lives on in peace.
    fn settle(&mut self) {
        // Those who went away and have not come back are gone some time.
        let here: BTreeSet<String> =
            self.consumers.values().map(|consumer| consumer.member_id.clone()).collect();
        for gone in self.sessions.iter().filter(|id| !here.contains(&***id)).cloned().collect::<Vec<_>>() {
            self.expire_session(&gone);
        }
        for round in 0.. {
            assert!(round < 60, "does not settle: {:#?}", self.group);
            for who in self.consumers.keys().copied().collect::<Vec<_>>() {
                if let Some(consumer) = self.consumers.get_mut(&who) {
                    consumer.has_news = true;
                    self.heartbeat(who, false);
                    self.check();
                }
            }
            let is_stable = matches!(self.group.state(), GroupState::Stable | GroupState::Empty);
            let is_in = |consumer: &Consumer| {
                // One that was fenced has abandoned all, and joins again with its next heartbeat.
                consumer.epoch != 0
                    && consumer.owned == consumer.told
                    && self.group.member(&consumer.member_id).is_some()
            };
            if is_stable && self.consumers.values().all(is_in) {
                break;
            }
        }
        self.check_fair();
    }

    fn check_fair(&self) {
        let mut wanted = BTreeSet::new();
        let mut subscriptions = BTreeSet::new();
        for consumer in self.consumers.values() {
            let topics: BTreeSet<&str> = TOPICS
                .iter()
                .enumerate()
                .filter(|(index, name)| {
                    consumer.topics.contains(index) || consumer.regex.is_some() && name.len() == 1
                })
                .map(|(_, name)| *name)
                .collect();
            for topic in topics.iter().filter_map(|name| self.image.topic(name)) {
                let partitions = 0..topic.partitions.len() as i32;
                wanted.extend(partitions.map(|partition| PartitionId { topic: topic.id, partition }));
            }
            subscriptions.insert(topics);
        }
        let owned: BTreeSet<PartitionId> =
            self.consumers.values().flat_map(|consumer| consumer.owned.iter().copied()).collect();
        assert_eq!(owned, wanted, "what is owned is what is subscribed to");
        if subscriptions.len() == 1 {
            let sizes = || self.consumers.values().map(|consumer| consumer.owned.len());
            assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1, "{:?}", self.consumers);
        }
    }
}

impl Consumer {
    fn hear(&mut self, answer: HeartbeatAnswer) {
        if self.epoch == 0 {
            self.owned.clear();
        }
        self.is_unsure = false;
        self.has_news = false;
        self.epoch = answer.member_epoch;
        if let Some(assignment) = answer.assignment {
            self.told = assignment.iter().copied().collect();
            // It may have taken up new ones at once; what it has to give up it still owns.
            self.owned.extend(&self.told);
        }
    }
}

fn context<'a>(image: &'a Image, settings: &'a GroupSettings) -> Context<'a> {
    Context { image, settings, now_ms: 0 }
}

fn decide(
    group: &ConsumerGroup,
    image: &Image,
    settings: &GroupSettings,
    request: &ConsumerGroupHeartbeatRequest<'_>,
) -> Result<Decision<HeartbeatAnswer>, Refused> {
    let heartbeat = Heartbeat {
        request,
        version: 1,
        client: Client { id: "client", host: "/127.0.0.1" },
        new_member_id: "unused",
    };
    group.heartbeat(&context(image, settings), &heartbeat)
}

fn replayed(log: &[Change]) -> ConsumerGroup {
    let mut group = ConsumerGroup::new("g".into());
    log.iter().for_each(|record| group.replay(record));
    group
}

/// The last record of each key, in the order of the log.
fn compacted(log: &[Change]) -> Vec<Change> {
    let key = |record: &Change| match record {
        Change::Epoch(_) => (0, String::new()),
        Change::TargetEpoch(_) => (1, String::new()),
        Change::Member(id, _) => (2, id.to_string()),
        Change::Target(id, _) => (3, id.to_string()),
        Change::Current(id, _) => (4, id.to_string()),
        Change::Expression(regex, _) => (5, regex.to_string()),
    };
    let last: BTreeMap<_, _> = log.iter().enumerate().map(|(place, record)| (key(record), place)).collect();
    let mut places: Vec<usize> = last.into_values().collect();
    places.sort_unstable();
    places.into_iter().map(|place| log[place].clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_partition_is_owned_twice_and_all_are_owned_in_the_end(events in events()) {
        let mut world = World::new();
        for event in &events {
            world.run(event);
        }
        world.settle();
    }
}

#[test]
fn partitions_are_a_set() {
    let partition = |partition| PartitionId { topic: TopicId::ZERO, partition };
    let some: Partitions = [3, 1, 1, 2].map(partition).into_iter().collect();
    assert_eq!(&some[..], [1, 2, 3].map(partition));
}
