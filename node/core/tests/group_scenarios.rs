#![allow(clippy::disallowed_methods)] // reads its scenarios
//! Plays the scenarios in `tests/scenarios/groups`, one per file, on one coordinator: a line is a command, and the lines
//! after it that begin with `>` are what must come of it. `FLUMEN_BLESS=1` writes what came instead.
//!
//! ```text
//! config NAME=VALUE ..           settings: max, delay, min-session, max-session, retention, metadata
//! topic NAME COUNT | drop NAME   a topic comes, or goes
//! erase NAME                     a topic goes, and the coordinator is not told
//! join GROUP [MEMBER] [as=NAME] [v=N] [type=T] [session=MS] [rebalance=MS] PROTOCOL=TOPIC+TOPIC ..
//! sync GROUP MEMBER GENERATION [as=NAME] [protocol=P] [MEMBER:ASSIGNMENT ..]
//! beat GROUP MEMBER GENERATION [as=NAME]
//! leave GROUP MEMBER|as=NAME|MEMBER/NAME ..
//! commit GROUP [MEMBER GENERATION] [as=NAME] [v=N] [keep=MS] TOPIC-PARTITION=OFFSET[/METADATA] ..
//! fetch GROUP [TOPIC-PARTITION ..] | forget GROUP TOPIC-PARTITION ..
//! describe GROUP | list [state=S] [type=T] | delete GROUP
//! wait MS                        time passes
//! hold | flush                   nothing becomes durable | what was held back does
//! fail                           what is being appended fails: the state is dropped and loaded again
//! restart                        the log is loaded by a new coordinator
//! retire                         the node stops
//! ```
//!
//! Each request has a number, from 1, under which it is answered. Members are called m1, m2, ..: each JoinGroup without an
//! id counts, also one that is refused. A type other than `consumer` says its words as they stand. After every command the log, replayed
//! from its start, must give the coordinator's hard state.
#![allow(clippy::unwrap_used)]

mod scenario;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use flumen_core::config::{BrokerConfig, GroupConfig, StaticSettings};
use flumen_core::coordinator::{
    Answer, Batch, Caller, Context, Coordinator, Decoded, FetchOffsets, Record, Request, Token, TopicAsked,
};
use flumen_core::limits::BATCH_BYTES_MAX;
use flumen_core::metadata::{
    BrokerRegistration, Controller, DeleteTopic, DirectoryId, Image, Listener, NewTopic,
};
use flumen_core::types::{Incarnation, NodeId, TopicId};
use flumen_wire::codec::Versioned;
use flumen_wire::group::consumer_protocol_subscription::ConsumerProtocolSubscription;
use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
use flumen_wire::messages::join_group_request::{JoinGroupRequest, JoinGroupRequestProtocol};
use flumen_wire::messages::leave_group_request::{LeaveGroupRequest, MemberIdentity};
use flumen_wire::messages::offset_commit_request::{
    OffsetCommitRequest, OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use flumen_wire::messages::offset_delete_request::{
    OffsetDeleteRequest, OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use flumen_wire::messages::sync_group_request::{SyncGroupRequest, SyncGroupRequestAssignment};

struct World {
    coordinator: Coordinator,
    image: Image,
    config: GroupConfig,
    now_ms: u64,
    /// The ids that were made, by what scenarios call them less one.
    ids: Vec<String>,
    requests: u64,
    log: Vec<Record>,
    held: Option<Batch>,
    holding: bool,
    out: Vec<String>,
}

#[test]
fn scenarios() {
    scenario::play_all("groups", play);
}

fn play(script: &str) -> String {
    let mut world = World {
        coordinator: Coordinator::default(),
        image: image(),
        config: BrokerConfig::default().group,
        now_ms: 0,
        ids: Vec::new(),
        requests: 0,
        log: Vec::new(),
        held: None,
        holding: false,
        out: Vec::new(),
    };
    world.load();
    let mut out = String::new();
    for line in script.lines().filter(|line| !line.starts_with('>')) {
        writeln!(out, "{line}").unwrap();
        let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
        if let Some((command, words)) = words.split_first() {
            world.run(command, words);
            world.settle();
            world.check();
        }
        for said in world.out.drain(..) {
            writeln!(out, "> {said}").unwrap();
        }
    }
    out
}

fn image() -> Image {
    let registration = BrokerRegistration {
        node: NodeId(1),
        incarnation: Incarnation(1),
        directory: DirectoryId([1; 16]),
        rack: None,
        listeners: vec![Listener { name: "PLAINTEXT".into(), host: "localhost".into(), port: 9092 }],
    };
    let mut image = Image::default();
    let records = decide(&image, |controller| controller.register_broker(registration).unwrap());
    records.iter().for_each(|record| image.replay(record).unwrap());
    image
}

fn decide<R>(image: &Image, decide: impl FnOnce(&Controller<'_>) -> R) -> R {
    decide(&Controller::new(image, &std::sync::Arc::new(StaticSettings::default()), &BrokerConfig::default()))
}

/// The value of `NAME=` among words.
fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn number<T: std::str::FromStr>(words: &[&str], name: &str, default: T) -> T {
    option(words, name).map_or(default, |word| word.parse().ok().expect("a number"))
}

/// `TOPIC-PARTITION`, split.
fn partition(word: &str) -> (&str, i32) {
    let (topic, partition) = word.rsplit_once('-').expect("TOPIC-PARTITION");
    (topic, partition.parse().unwrap())
}

fn subscription(protocol_type: &str, said: &str) -> Vec<u8> {
    if protocol_type != "consumer" {
        return said.as_bytes().to_vec();
    }
    let topics = said.split('+').filter(|topic| !topic.is_empty()).collect();
    ConsumerProtocolSubscription { topics, ..Default::default() }.to_versioned(3)
}

/// What scenarios call a member.
fn member_name(id: &str) -> String {
    match id.rsplit_once("0000-0000-0000-").and_then(|(_, end)| u8::from_str_radix(end, 16).ok()) {
        Some(number) => format!("m{number}"),
        None if id.is_empty() => "-".to_owned(),
        None => id.to_owned(),
    }
}

impl World {
    fn with(&mut self, happens: impl FnOnce(&mut Coordinator, &Context<'_>)) {
        let mut uuid = [0; 16];
        uuid[15] = self.ids.len() as u8;
        let cx = Context {
            now: Duration::from_millis(self.now_ms),
            now_ms: self.now_ms as i64,
            image: &self.image,
            config: &self.config,
            decision_bytes_max: BATCH_BYTES_MAX,
            uuid,
        };
        happens(&mut self.coordinator, &cx);
    }

    fn ask(&mut self, caller: Caller<'_>, request: Request<'_>) {
        self.requests += 1;
        let token = Token(self.requests);
        self.with(|coordinator, cx| coordinator.handle(cx, &caller, request, token));
    }

    /// The id of a member, by what scenarios call it.
    fn member_id(&self, name: &str) -> String {
        let number = name.strip_prefix('m').and_then(|number| number.parse::<usize>().ok());
        match number.and_then(|number| self.ids.get(number - 1)) {
            Some(id) => id.clone(),
            None if name == "-" => String::new(),
            None => name.to_owned(),
        }
    }

    fn run(&mut self, command: &str, words: &[&str]) {
        let words: Vec<&str> = words.iter().map(|word| if *word == "\"\"" { "" } else { word }).collect();
        let words = &words[..];
        match command {
            "config" => self.configure(words),
            "topic" => self.topic(words[0], words[1].parse().unwrap()),
            "drop" => {
                self.erase_topic(words[0]);
                self.with(|coordinator, cx| coordinator.metadata_changed(cx, &[words[0]]));
            }
            "erase" => self.erase_topic(words[0]),
            "join" => self.join(words),
            "sync" => self.sync(words),
            "beat" => self.beat(words),
            "leave" => self.leave(words),
            "commit" => self.commit(words),
            "fetch" => self.fetch(words),
            "forget" => self.forget(words),
            "describe" => self.ask(Caller::default(), Request::DescribeGroup(words[0])),
            "delete" => self.ask(Caller::default(), Request::DeleteGroup(words[0])),
            "list" => {
                let states: Vec<&str> = option(words, "state").into_iter().collect();
                let types: Vec<&str> = option(words, "type").into_iter().collect();
                self.ask(Caller::default(), Request::ListGroups { states: &states, types: &types });
            }
            "wait" => self.wait(words[0].parse().unwrap()),
            "hold" => self.holding = true,
            "flush" => self.holding = false,
            "fail" => self.fail(),
            "restart" => self.restart(),
            "retire" => self.coordinator.retire(),
            _ => panic!("no such command: {command}"),
        }
    }

    fn configure(&mut self, words: &[&str]) {
        let config = &mut self.config;
        config.max_size = number(words, "max", config.max_size);
        config.initial_rebalance_delay_ms = number(words, "delay", config.initial_rebalance_delay_ms);
        config.min_session_timeout_ms = number(words, "min-session", config.min_session_timeout_ms);
        config.max_session_timeout_ms = number(words, "max-session", config.max_session_timeout_ms);
        config.offsets_retention_ms = number(words, "retention", config.offsets_retention_ms);
        config.offset_metadata_bytes_max = number(words, "metadata", config.offset_metadata_bytes_max);
    }

    fn topic(&mut self, name: &str, partitions: i32) {
        let mut id = [9; 16];
        id[15] = self.image.topic_count() as u8 + self.requests as u8;
        let topic = NewTopic { partitions, ..NewTopic::with_defaults(name) };
        let decision = decide(&self.image, |c| c.create_topics(&[topic], &[TopicId(id)], false));
        decision.records.iter().for_each(|record| self.image.replay(record).unwrap());
        self.with(|coordinator, cx| coordinator.metadata_changed(cx, &[]));
    }

    fn erase_topic(&mut self, name: &str) {
        let topic = DeleteTopic { name: Some(name), id: TopicId::ZERO };
        let decision = decide(&self.image, |controller| controller.delete_topics(&[topic]));
        decision.records.iter().for_each(|record| self.image.replay(record).unwrap());
    }

    fn join(&mut self, words: &[&str]) {
        let named = ["as", "v", "type", "session", "rebalance"];
        let rest = words[1..].iter().filter(|word| !named.iter().any(|name| option(&[word], name).is_some()));
        let (protocols, members): (Vec<&str>, Vec<&str>) = rest.partition(|word| word.contains('='));
        let protocol_type = option(words, "type").unwrap_or("consumer");
        let protocols: Vec<(&str, Vec<u8>)> = protocols
            .iter()
            .map(|word| word.split_once('=').unwrap())
            .map(|(name, said)| (name, subscription(protocol_type, said)))
            .collect();
        let member = self.member_id(members.first().unwrap_or(&"-"));
        if member.is_empty() {
            let number = self.ids.len() + 1;
            let whose = option(words, "as").unwrap_or("c");
            self.ids.push(format!("{whose}-00000000-0000-0000-0000-{number:012x}"));
        }
        let request = JoinGroupRequest {
            group_id: words[0],
            session_timeout_ms: number(words, "session", 10_000),
            rebalance_timeout_ms: number(words, "rebalance", 60_000),
            member_id: &member,
            group_instance_id: option(words, "as"),
            protocol_type,
            protocols: protocols
                .iter()
                .map(|(name, metadata)| JoinGroupRequestProtocol { name, metadata })
                .collect(),
            reason: None,
        };
        let caller = Caller { client_id: "c", client_host: "/h", version: number(words, "v", 9) };
        self.ask(caller, Request::JoinGroup(&request));
    }

    fn sync(&mut self, words: &[&str]) {
        let member = self.member_id(words[1]);
        let made: Vec<(String, &str)> = words[3..]
            .iter()
            .filter_map(|word| word.split_once(':'))
            .map(|(member, assignment)| (self.member_id(member), assignment))
            .collect();
        let request = SyncGroupRequest {
            group_id: words[0],
            generation_id: words[2].parse().unwrap(),
            member_id: &member,
            group_instance_id: option(words, "as"),
            protocol_type: None,
            protocol_name: option(words, "protocol"),
            assignments: made
                .iter()
                .map(|(member_id, assignment)| SyncGroupRequestAssignment {
                    member_id,
                    assignment: assignment.as_bytes(),
                })
                .collect(),
        };
        self.ask(Caller::default(), Request::SyncGroup(&request));
    }

    fn beat(&mut self, words: &[&str]) {
        let member = self.member_id(words[1]);
        let request = HeartbeatRequest {
            group_id: words[0],
            generation_id: words[2].parse().unwrap(),
            member_id: &member,
            group_instance_id: option(words, "as"),
        };
        self.ask(Caller::default(), Request::Heartbeat(&request));
    }

    fn leave(&mut self, words: &[&str]) {
        let members: Vec<(String, Option<&str>)> = words[1..]
            .iter()
            .map(|word| match (word.strip_prefix("as="), word.split_once('/')) {
                (Some(name), _) => (String::new(), Some(name)),
                (None, Some((member, name))) => (self.member_id(member), Some(name)),
                (None, None) => (self.member_id(word), None),
            })
            .collect();
        let members = members.iter().map(|(member_id, name)| MemberIdentity {
            member_id,
            group_instance_id: *name,
            reason: None,
        });
        let request = LeaveGroupRequest { group_id: words[0], member_id: "", members: members.collect() };
        self.ask(Caller::default(), Request::LeaveGroup(&request));
    }

    fn commit(&mut self, words: &[&str]) {
        let plain: Vec<&str> = words.iter().copied().filter(|word| !word.contains('=')).collect();
        let member = self.member_id(plain.get(1).unwrap_or(&"-"));
        let offsets = words.iter().filter(|word| word.split('=').next().unwrap().contains('-'));
        let topics = offsets.filter_map(|word| word.split_once('=')).map(|(place, said)| {
            let (topic, partition_index) = partition(place);
            let (offset, metadata) = said.split_once('/').unwrap_or((said, ""));
            let committed = OffsetCommitRequestPartition {
                partition_index,
                committed_offset: offset.parse().unwrap(),
                committed_leader_epoch: 0,
                committed_metadata: Some(metadata),
            };
            OffsetCommitRequestTopic { name: topic, partitions: vec![committed], ..Default::default() }
        });
        let request = OffsetCommitRequest {
            group_id: words[0],
            generation_id_or_member_epoch: plain.get(2).map_or(-1, |word| word.parse().unwrap()),
            member_id: &member,
            group_instance_id: option(words, "as"),
            retention_time_ms: number(words, "keep", -1),
            topics: topics.collect(),
        };
        let caller = Caller { version: number(words, "v", 9), ..Caller::default() };
        self.ask(caller, Request::OffsetCommit(&request));
    }

    fn fetch(&mut self, words: &[&str]) {
        let asked: Vec<(&str, [i32; 1])> = words[1..]
            .iter()
            .map(|word| partition(word))
            .map(|(topic, partition)| (topic, [partition]))
            .collect();
        let topics = asked.iter().map(|(name, partitions)| TopicAsked {
            name,
            id: self.image.topic(name).map_or(TopicId::ZERO, |topic| topic.id),
            partitions,
        });
        let topics: Vec<_> = topics.collect();
        let topics = (!topics.is_empty()).then_some(topics);
        let request = FetchOffsets { group_id: words[0], member_id: None, member_epoch: -1, topics };
        self.ask(Caller::default(), Request::OffsetFetch(&request));
    }

    fn forget(&mut self, words: &[&str]) {
        let topics = words[1..].iter().map(|word| partition(word)).map(|(name, partition_index)| {
            OffsetDeleteRequestTopic {
                name,
                partitions: vec![OffsetDeleteRequestPartition { partition_index }],
            }
        });
        let request = OffsetDeleteRequest { group_id: words[0], topics: topics.collect() };
        self.ask(Caller::default(), Request::OffsetDelete(&request));
    }

    /// Time passes, from deadline to deadline.
    fn wait(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while let Some(deadline) = self.coordinator.next_deadline()
            && deadline <= Duration::from_millis(end)
        {
            self.now_ms = self.now_ms.max(deadline.as_millis() as u64);
            self.with(|coordinator, cx| coordinator.tick(cx));
            self.settle();
        }
        self.now_ms = end;
    }

    fn restart(&mut self) {
        let lost = std::mem::take(&mut self.coordinator).abandon();
        for token in lost {
            self.out.push(format!("{} NOT_COORDINATOR", token.0));
        }
        self.load();
    }

    fn fail(&mut self) {
        if let Some(batch) = self.held.take() {
            let written = self.log.len() - batch.records.len();
            self.log.truncate(written);
        }
        self.holding = false;
        self.restart();
    }

    fn load(&mut self) {
        for record in &self.log {
            self.coordinator.load(&record.key, record.value.as_deref()).unwrap();
        }
        self.with(|coordinator, cx| coordinator.finish_loading(cx));
    }

    /// Appends what there is to append, and hears the answers that may leave.
    fn settle(&mut self) {
        loop {
            while let Some((token, answer)) = self.coordinator.pop_ready() {
                let said = said(&answer);
                self.out.push(format!("{} {said}", token.0));
            }
            if !self.holding
                && let Some(batch) = self.held.take()
            {
                self.coordinator.committed(&batch);
                continue;
            }
            if self.held.is_some() {
                return;
            }
            let Some(batch) = self.coordinator.next_batch(1 << 20) else { return };
            self.out.extend(batch.records.iter().map(written));
            self.log.extend(batch.records.iter().cloned());
            self.held = Some(batch);
        }
    }

    fn check(&self) {
        let mut again = Coordinator::default();
        for record in &self.log {
            again.load(&record.key, record.value.as_deref()).unwrap();
        }
        if self.coordinator.backlog_bytes() == 0 {
            assert_eq!(again.snapshot(), self.coordinator.snapshot());
        }
    }
}

fn said(answer: &Answer) -> String {
    let codes =
        |codes: &[flumen_wire::ErrorCode]| codes.iter().map(|code| code.name()).collect::<Vec<_>>().join(" ");
    match answer {
        Answer::Failed(code) => code.name().to_owned(),
        Answer::Joined(joined) if !joined.error.is_none() => {
            format!("{} {}", joined.error, member_name(&joined.member_id))
        }
        Answer::Joined(joined) => {
            let mut text = format!(
                "joined as {} generation {} protocol {} leader {}",
                member_name(&joined.member_id),
                joined.generation_id,
                joined.protocol_name.as_deref().unwrap_or("none"),
                member_name(&joined.leader)
            );
            if joined.skip_assignment {
                text.push_str(" skip");
            }
            if !joined.members.is_empty() {
                let members: Vec<String> = joined
                    .members
                    .iter()
                    .map(|member| match &member.group_instance_id {
                        Some(name) => format!("{}/{name}", member_name(&member.member_id)),
                        None => member_name(&member.member_id),
                    })
                    .collect();
                write!(text, " of {}", members.join(" ")).unwrap();
            }
            text
        }
        Answer::Synced(synced) => format!("assigned '{}'", String::from_utf8_lossy(&synced.assignment)),
        Answer::Left(left) => format!("left: {}", codes(left)),
        Answer::Committed(committed) => format!("committed: {}", codes(committed)),
        Answer::OffsetsDeleted(deleted) => format!("forgotten: {}", codes(deleted)),
        Answer::Fetched(topics) => {
            let partitions = topics.iter().flat_map(|topic| {
                topic.partitions.iter().map(|p| {
                    let metadata = if p.metadata.is_empty() { "" } else { "/" };
                    format!("{}-{}={}{metadata}{}", topic.name, p.partition, p.offset, p.metadata)
                })
            });
            format!("fetched: {}", partitions.collect::<Vec<_>>().join(" "))
        }
        Answer::Described(Err(refused)) => refused.to_string(),
        Answer::Described(Ok(group)) => {
            let members = group.members.iter().map(|member| {
                format!(
                    "{}='{}'",
                    member_name(&member.member_id),
                    String::from_utf8_lossy(&member.assignment)
                )
            });
            let members = members.collect::<Vec<_>>().join(" ");
            format!("{} {} '{}' {members}", group.state, group.protocol_type, group.protocol)
                .trim()
                .to_owned()
        }
        Answer::Listed(groups) => {
            let groups = groups.iter().map(|g| format!("{} {} {}", g.group_id, g.group_type, g.state));
            groups.collect::<Vec<_>>().join(", ")
        }
        other => format!("{other:?}"),
    }
}

fn written(record: &Record) -> String {
    match record.decode().unwrap() {
        Decoded::OffsetCommit(key, value) => {
            let value = value.map_or("tombstone".to_owned(), |value| value.offset.to_string());
            format!("log: offset of {} {}-{}: {value}", key.group, key.topic, key.partition)
        }
        Decoded::GroupMetadata(key, None) => format!("log: group {}: tombstone", key.group),
        Decoded::GroupMetadata(key, Some(value)) => {
            let members: BTreeMap<_, _> = value
                .members
                .iter()
                .map(|member| (member_name(member.member_id), String::from_utf8_lossy(member.assignment)))
                .collect();
            let members: Vec<String> = members.iter().map(|(id, made)| format!(" {id}='{made}'")).collect();
            format!("log: group {}: generation {}{}", key.group, value.generation, members.concat())
        }
        other => format!("log: {other:?}"),
    }
}
