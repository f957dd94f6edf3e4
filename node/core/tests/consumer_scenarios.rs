#![allow(clippy::disallowed_methods)] // reads its scenarios
//! Plays the scenarios in `tests/scenarios/consumer`, one per file: a line is a command, and the lines after it that begin
//! with `>` are what must come of it. `FLUMEN_BLESS=1` writes what came instead.
//!
//! ```text
//! topic NAME COUNT               creates a topic, or grows it
//! delete NAME                    deletes it
//! join M topics=A,B [as=INSTANCE] [regex=R] [assignor=A] [rebalance=MS] [v=0]
//! beat M [epoch=N] [owns=told | owns=A:0,1;B:2] [topics=A,B] [regex=R] [as=INSTANCE]
//! leave M [as=INSTANCE]          for good
//! pause M as=INSTANCE            to come back
//! silent M                       its session expires
//! slow M                         its time to give up partitions is over
//! commit M EPOCH [v=N]           may it commit? M is - for nobody
//! fetch M EPOCH                  may it read offsets?
//! show                           the group and its members
//! load                           replays all records on a new group
//! records                        what the last command has written
//! size N                         most members from now on
//! ```
//!
//! A member comes with the epoch that it was told last, and is told `-` where nothing changes.
#![allow(clippy::unwrap_used)]

mod scenario;

use std::collections::BTreeMap;
use std::fmt::Write;

use flumen_core::coordinator::assignor::{Assignor, Partitions};
use flumen_core::coordinator::consumer::{
    Change, Client, ConsumerGroup, Context, Decision, GroupSettings, Heartbeat, TimerChange,
};
use flumen_core::metadata::{Image, PartitionRecord, Record};
use flumen_core::types::{LeaderEpoch, NodeId, PartitionId, TopicId};
use flumen_wire::messages::consumer_group_heartbeat_request::{
    ConsumerGroupHeartbeatRequest, TopicPartitions,
};

struct World {
    image: Image,
    next_topic: u8,
    group: ConsumerGroup,
    log: Vec<Change>,
    last: Vec<Change>,
    settings: GroupSettings,
    now_ms: i64,
    epochs: BTreeMap<String, i32>,
    told: BTreeMap<String, Partitions>,
}

#[test]
fn scenarios() {
    scenario::play_all("consumer", play);
}

fn play(script: &str) -> String {
    let mut world = World {
        image: Image::default(),
        next_topic: 0,
        group: ConsumerGroup::new("g".into()),
        log: Vec::new(),
        last: Vec::new(),
        settings: GroupSettings {
            heartbeat_interval_ms: 5_000,
            session_timeout_ms: 45_000,
            assignment_interval_ms: 0,
            assignors: Assignor::ALL.to_vec(),
            max_size: 100,
        },
        now_ms: 1_000,
        epochs: BTreeMap::new(),
        told: BTreeMap::new(),
    };
    let mut out = String::new();
    for line in script.lines().filter(|line| !line.starts_with('>')) {
        writeln!(out, "{line}").unwrap();
        let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
        if let Some((command, words)) = words.split_first() {
            for outcome in world.run(command, words) {
                writeln!(out, "> {outcome}").unwrap();
            }
        }
    }
    out
}

fn option<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

impl World {
    fn run(&mut self, command: &str, words: &[&str]) -> Vec<String> {
        match command {
            "topic" => self.topic(words[0], words[1].parse().unwrap()),
            "delete" => {
                let id = self.image.topic(words[0]).unwrap().id;
                self.image.replay(&Record::RemoveTopic(id)).unwrap();
                Vec::new()
            }
            "join" => {
                self.told.remove(words[0]);
                self.heartbeat(words[0], 0, words)
            }
            "beat" => {
                let epoch = option(words, "epoch").map(|epoch| epoch.parse().unwrap());
                let epoch = epoch.unwrap_or_else(|| self.epochs.get(words[0]).copied().unwrap_or(0));
                self.heartbeat(words[0], epoch, words)
            }
            "leave" => self.heartbeat(words[0], -1, words),
            "pause" => self.heartbeat(words[0], -2, words),
            "silent" => {
                let decision = self.group.session_expired(&self.context(), words[0]);
                self.carry_out(decision);
                Vec::new()
            }
            "slow" => {
                let decision = self.group.rebalance_expired(&self.context(), words[0]);
                let is_fenced = !decision.records.is_empty();
                self.carry_out(decision);
                vec![if is_fenced { "fenced" } else { "in time" }.to_owned()]
            }
            "commit" | "fetch" => vec![self.offsets(command, words)],
            "show" => self.show(),
            "load" => {
                let mut loaded = ConsumerGroup::new("g".into());
                self.log.iter().for_each(|change| loaded.replay(change));
                assert_eq!(loaded, self.group);
                self.group = loaded;
                self.group.timers(&self.context()).iter().filter_map(timer).collect()
            }
            "records" => self.last.iter().map(|change| self.change(change)).collect(),
            "interval" => {
                self.settings.assignment_interval_ms = words[0].parse().unwrap();
                Vec::new()
            }
            "pass" => {
                self.now_ms += words[0].parse::<i64>().unwrap();
                Vec::new()
            }
            "size" => {
                self.settings.max_size = words[0].parse().unwrap();
                Vec::new()
            }
            _ => panic!("no such command: {command}"),
        }
    }

    fn context(&self) -> Context<'_> {
        Context { image: &self.image, settings: &self.settings, now_ms: self.now_ms }
    }

    fn topic(&mut self, name: &str, count: i32) -> Vec<String> {
        let known = self.image.topic(name).map(|topic| (topic.id, topic.partitions.len() as i32));
        let (id, from) = known.unwrap_or_else(|| {
            self.next_topic += 1;
            let id = TopicId([self.next_topic; 16]);
            self.image.replay(&Record::Topic { id, name: name.to_owned() }).unwrap();
            (id, 0)
        });
        for partition in from..count {
            let record = PartitionRecord {
                topic: id,
                partition,
                replicas: vec![NodeId(1)],
                isr: vec![NodeId(1)],
                leader: Some(NodeId(1)),
                leader_epoch: LeaderEpoch(0),
                partition_epoch: 0,
            };
            self.image.replay(&Record::Partition(record)).unwrap();
        }
        Vec::new()
    }

    fn heartbeat(&mut self, member: &str, epoch: i32, words: &[&str]) -> Vec<String> {
        let joins = epoch == 0;
        let names =
            option(words, "topics").map(|names| names.split(',').filter(|name| !name.is_empty()).collect());
        let rebalance = option(words, "rebalance").map(|ms| ms.parse().unwrap());
        let version = option(words, "v").map_or(1, |version| version.parse().unwrap());
        let request = ConsumerGroupHeartbeatRequest {
            group_id: "g",
            member_id: if version == 0 && joins { "" } else { member },
            member_epoch: epoch,
            instance_id: option(words, "as"),
            rebalance_timeout_ms: rebalance.unwrap_or(if joins { 60_000 } else { -1 }),
            subscribed_topic_names: names,
            subscribed_topic_regex: option(words, "regex"),
            server_assignor: option(words, "assignor"),
            topic_partitions: if joins { Some(Vec::new()) } else { self.owned(member, words) },
            ..ConsumerGroupHeartbeatRequest::default()
        };
        let heartbeat = Heartbeat {
            request: &request,
            version,
            client: Client { id: "client", host: "/127.0.0.1" },
            new_member_id: member,
        };
        let decided = self.group.heartbeat(&self.context(), &heartbeat);
        let decision = match decided {
            Ok(decision) => decision,
            Err(refused) => return vec![refused.to_string()],
        };
        let answer = decision.answer.clone();
        let mut timers: Vec<String> = decision.timers.iter().filter_map(timer).collect();
        self.carry_out(decision);
        self.epochs.insert(member.to_owned(), answer.member_epoch);
        let told = match answer.assignment {
            Some(assignment) => {
                let shown = self.partitions(&assignment);
                self.told.insert(member.to_owned(), assignment);
                shown
            }
            None => "-".to_owned(),
        };
        let mut outcome = vec![format!("{} epoch {}: {told}", answer.member_id, answer.member_epoch)];
        outcome.append(&mut timers);
        outcome
    }

    fn owned(&self, member: &str, words: &[&str]) -> Option<Vec<TopicPartitions>> {
        let text = option(words, "owns")?;
        if text == "told" {
            let told = self.told.get(member).cloned().unwrap_or_default();
            let topics = told.by_topic().map(|(topic, partitions)| TopicPartitions {
                topic_id: topic.0,
                partitions: partitions.collect(),
            });
            return Some(topics.collect());
        }
        let one = |part: &str| {
            let (topic, partitions) = part.split_once(':').unwrap();
            TopicPartitions {
                topic_id: self.image.topic(topic).unwrap().id.0,
                partitions: partitions.split(',').map(|partition| partition.parse().unwrap()).collect(),
            }
        };
        Some(text.split(';').filter(|part| !part.is_empty()).map(one).collect())
    }

    fn carry_out<R>(&mut self, decision: Decision<R>) {
        for change in &decision.records {
            self.group.replay(change);
        }
        self.log.extend(decision.records.iter().cloned());
        self.last = decision.records;
    }

    fn offsets(&self, command: &str, words: &[&str]) -> String {
        let (member, epoch) = (words[0], words[1].parse().unwrap());
        let checked = match (command, member) {
            ("commit", member) => {
                let version = option(words, "v").map_or(9, |version| version.parse().unwrap());
                let right = self.group.check_commit(if member == "-" { "" } else { member }, epoch, version);
                let right = match right {
                    Ok(right) => right,
                    Err(refused) => return refused.to_string(),
                };
                let of = |place: &str| {
                    let (topic, partition) = place.split_once(':').unwrap();
                    let topic = self.image.topic(topic).unwrap().id;
                    PartitionId { topic, partition: partition.parse().unwrap() }
                };
                let refused = option(words, "of").and_then(|place| right.check(of(place)).err());
                return refused.map_or_else(|| "yes".to_owned(), |code| code.to_string());
            }
            (_, "-") => self.group.check_fetch(None, epoch),
            (_, member) => self.group.check_fetch(Some(member), epoch),
        };
        checked.map_or_else(|refused| refused.to_string(), |()| "yes".to_owned())
    }

    fn show(&self) -> Vec<String> {
        let described = self.group.describe(&self.context());
        let mut lines = vec![format!(
            "{} epoch {} target {} by {}",
            described.state.name(),
            described.group_epoch,
            described.assignment_epoch,
            described.assignor.name()
        )];
        for described in described.members {
            let current = &described.member.current;
            let mut line = format!(
                "{} epoch {} {:?} has {} of {}",
                described.id,
                current.member_epoch,
                current.state,
                self.partitions(&current.assigned),
                self.partitions(&described.target)
            );
            if !current.pending_revocation.is_empty() {
                write!(line, ", gives up {}", self.partitions(&current.pending_revocation)).unwrap();
            }
            lines.push(line);
        }
        lines
    }

    fn partitions(&self, partitions: &Partitions) -> String {
        if partitions.is_empty() {
            return "nothing".to_owned();
        }
        let topics = partitions.by_topic().map(|(topic, partitions)| {
            let name = self.image.topic_by_id(topic).map_or("(gone)", |topic| &topic.name);
            let list: Vec<String> = partitions.map(|partition| partition.to_string()).collect();
            format!("{name}:{}", list.join(","))
        });
        topics.collect::<Vec<_>>().join(" ")
    }

    fn change(&self, change: &Change) -> String {
        match change {
            Change::Epoch(Some(epoch)) => format!("group epoch {}", epoch.epoch),
            Change::TargetEpoch(Some(epoch)) => {
                format!("target epoch {} at {}", epoch.epoch, epoch.timestamp_ms)
            }
            Change::Member(id, Some(metadata)) => format!(
                "member {id} as {:?} topics {:?} regex {:?} assignor {:?}",
                metadata.instance_id,
                metadata.subscribed_topic_names,
                metadata.subscribed_topic_regex,
                metadata.server_assignor
            ),
            Change::Member(id, None) => format!("member {id} gone"),
            Change::Target(id, Some(target)) => format!("target of {id}: {}", self.partitions(target)),
            Change::Target(id, None) => format!("target of {id} gone"),
            Change::Current(id, Some(current)) => format!(
                "{id} from epoch {} to {} {:?}: {}, gives up {}",
                current.previous_member_epoch,
                current.member_epoch,
                current.state,
                self.partitions(&current.assigned),
                self.partitions(&current.pending_revocation)
            ),
            Change::Current(id, None) => format!("{id} has nothing"),
            Change::Expression(regex, Some(resolved)) => format!("{regex} is {:?}", resolved.topics),
            Change::Expression(regex, None) => format!("{regex} gone"),
            Change::Epoch(None) => "no group epoch".to_owned(),
            Change::TargetEpoch(None) => "no target epoch".to_owned(),
        }
    }
}

/// Timers that are worth a line: sessions begin with every heartbeat.
fn timer(timer: &TimerChange) -> Option<String> {
    match timer {
        TimerChange::Rebalance { member_id, after_ms } => {
            Some(format!("{member_id} has {after_ms} ms to give up what it should not have"))
        }
        _ => None,
    }
}
