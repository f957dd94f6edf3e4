//! One group, members of both protocols: they come, act at their own pace, leave and crash in random histories, and the
//! group becomes a consumer group and a classic one again as they do.
//!
//! After every event: no partition is owned by two members, and whoever loads the log has the same hard state. At the end
//! everybody lives on in peace: then every partition is owned, and the group is of the kind that its members make it.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flumen_core::config::{BrokerConfig, GroupConfig};
use flumen_core::coordinator::{Answer, Caller, Context, Coordinator, Record, Request, Token};
use flumen_core::limits::BATCH_BYTES_MAX;
use flumen_core::metadata::{Image, PartitionRecord, Record as MetadataRecord};
use flumen_core::types::{LeaderEpoch, NodeId, TopicId};
use flumen_wire::ErrorCode;
use flumen_wire::codec::Versioned;
use flumen_wire::group::consumer_protocol_assignment::{self, ConsumerProtocolAssignment};
use flumen_wire::group::consumer_protocol_subscription::{self, ConsumerProtocolSubscription};
use flumen_wire::messages::consumer_group_heartbeat_request::{
    ConsumerGroupHeartbeatRequest, TopicPartitions,
};
use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
use flumen_wire::messages::join_group_request::{JoinGroupRequest, JoinGroupRequestProtocol};
use flumen_wire::messages::leave_group_request::{LeaveGroupRequest, MemberIdentity};
use flumen_wire::messages::sync_group_request::{SyncGroupRequest, SyncGroupRequestAssignment};
use proptest::prelude::*;

const PARTITIONS: i32 = 7;
const TOPIC: TopicId = TopicId([7; 16]);
const SESSION_MS: i32 = 6_000;
const PROTOCOL: &str = "assignor";
const STEP: Duration = Duration::from_secs(2);

/// A client: what it believes, and what it waits for.
#[derive(Clone, Debug)]
struct Client {
    member_id: String,
    /// Generation or member epoch.
    epoch: i32,
    owned: BTreeSet<i32>,
    /// Of the consumer protocol: what it was told last, and whether it has to say what it owns.
    told: BTreeSet<i32>,
    speaks: Speaks,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Consumer,
    /// The classic protocol; a cooperative client keeps what it owns while it joins.
    Classic {
        is_cooperative: bool,
    },
}

#[derive(Clone, Debug)]
enum Step {
    /// To join, or to join again.
    Join,
    Joining(Token),
    /// To ask for its assignment; a leader with what all members said.
    Sync(Vec<(String, BTreeSet<i32>)>),
    Syncing(Token),
    Member,
}

struct World {
    coordinator: Coordinator,
    config: GroupConfig,
    image: Image,
    now: Duration,
    tokens: u64,
    answers: BTreeMap<u64, Answer>,
    log: Vec<Record>,
    clients: BTreeMap<u8, Client>,
    is_cooperative: bool,
    /// What leaders add to each assignment.
    user_data: Option<&'static [u8]>,
}

#[derive(Clone, Debug)]
enum Event {
    Come { who: u8, is_consumer: bool },
    Act(u8),
    Leave(u8),
    Crash(u8),
    Pass,
    Reload,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let who = 0..5_u8;
    let one = prop_oneof![
        4 => (who.clone(), any::<bool>()).prop_map(|(who, is_consumer)| Event::Come { who, is_consumer }),
        20 => who.clone().prop_map(Event::Act),
        2 => who.clone().prop_map(Event::Leave),
        1 => who.prop_map(Event::Crash),
        2 => Just(Event::Pass),
        1 => Just(Event::Reload),
    ];
    prop::collection::vec(one, 1..100)
}

impl World {
    fn new(is_cooperative: bool) -> World {
        let mut config = BrokerConfig::default().group;
        config.initial_rebalance_delay_ms = 0;
        config.consumer_session_timeout_ms = SESSION_MS as u32;
        let mut image = Image::default();
        image.replay(&MetadataRecord::Topic { id: TOPIC, name: "t".to_owned() }).unwrap();
        for partition in 0..PARTITIONS {
            let record = PartitionRecord {
                topic: TOPIC,
                partition,
                replicas: vec![NodeId(1)],
                isr: vec![NodeId(1)],
                leader: Some(NodeId(1)),
                leader_epoch: LeaderEpoch(0),
                partition_epoch: 0,
            };
            image.replay(&MetadataRecord::Partition(record)).unwrap();
        }
        let mut world = World {
            coordinator: Coordinator::default(),
            config,
            image,
            now: Duration::ZERO,
            tokens: 0,
            answers: BTreeMap::new(),
            log: Vec::new(),
            clients: BTreeMap::new(),
            is_cooperative,
            user_data: None,
        };
        world.with(|coordinator, cx| coordinator.finish_loading(cx));
        world
    }

    fn with(&mut self, happens: impl FnOnce(&mut Coordinator, &Context<'_>)) {
        let cx = Context {
            now: self.now,
            now_ms: self.now.as_millis() as i64,
            image: &self.image,
            config: &self.config,
            decision_bytes_max: BATCH_BYTES_MAX,
            uuid: u128::from(self.tokens).to_be_bytes(),
        };
        happens(&mut self.coordinator, &cx);
        loop {
            while let Some((token, answer)) = self.coordinator.pop_ready() {
                assert!(self.answers.insert(token.0, answer).is_none());
            }
            let Some(batch) = self.coordinator.next_batch(1 << 20) else { return };
            self.log.extend(batch.records.iter().cloned());
            self.coordinator.committed(&batch);
        }
    }

    fn ask(&mut self, request: Request<'_>, version: i16) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        let caller = Caller { client_id: "client", client_host: "/127.0.0.1", version };
        self.with(|coordinator, cx| coordinator.handle(cx, &caller, request, token));
        token
    }

    fn answered(&mut self, token: Token) -> Answer {
        self.answers.remove(&token.0).expect("it is answered at once")
    }

    fn run(&mut self, event: &Event) {
        match event {
            Event::Come { who, is_consumer } => {
                let is_cooperative = self.is_cooperative;
                let speaks = if *is_consumer { Speaks::Consumer } else { Speaks::Classic { is_cooperative } };
                self.tokens += 1;
                let member_id =
                    if *is_consumer { format!("consumer-{}", self.tokens) } else { String::new() };
                self.clients.entry(*who).or_insert(Client {
                    member_id,
                    epoch: 0,
                    owned: BTreeSet::new(),
                    told: BTreeSet::new(),
                    speaks,
                    step: Step::Join,
                });
                self.act(*who);
            }
            Event::Act(who) => self.act(*who),
            Event::Leave(who) => self.leave(*who),
            Event::Crash(who) => drop(self.clients.remove(who)),
            Event::Pass => self.pass(5),
            Event::Reload => self.reload(),
        }
        self.check();
    }

    /// Everybody who lives does what there is to do, again and again.
    fn pass(&mut self, steps: u32) {
        for _ in 0..steps {
            for who in self.clients.keys().copied().collect::<Vec<_>>() {
                self.act(who);
                self.act(who);
                self.check();
            }
            self.now += STEP;
            self.with(|coordinator, cx| coordinator.tick(cx));
            self.check();
        }
    }

    fn act(&mut self, who: u8) {
        let Some(client) = self.clients.get(&who).cloned() else { return };
        let next = match (client.speaks, &client.step) {
            (Speaks::Consumer, _) => self.consumer_heartbeat(client),
            (Speaks::Classic { is_cooperative }, Step::Join) => self.join(client, is_cooperative),
            (_, Step::Joining(token)) => match self.answers.remove(&token.0) {
                Some(answer) => self.joined(client, answer),
                None => client,
            },
            (_, Step::Sync(members)) => {
                let members = members.clone();
                self.sync(client, &members)
            }
            (Speaks::Classic { is_cooperative }, Step::Syncing(token)) => match self.answers.remove(&token.0)
            {
                Some(answer) => synced(client, answer, is_cooperative),
                None => client,
            },
            (_, Step::Member) => self.heartbeat(client),
        };
        self.clients.insert(who, next);
    }

    fn consumer_heartbeat(&mut self, mut client: Client) -> Client {
        let joins = client.epoch == 0;
        // What it was told to give up it has given up by now.
        client.owned = client.told.clone();
        let owned = client.owned.iter().copied().collect::<Vec<_>>();
        let request = ConsumerGroupHeartbeatRequest {
            group_id: "g",
            member_id: &client.member_id,
            member_epoch: client.epoch,
            rebalance_timeout_ms: if joins { 30_000 } else { -1 },
            subscribed_topic_names: joins.then(|| vec!["t"]),
            topic_partitions: Some(if owned.is_empty() {
                Vec::new()
            } else {
                vec![TopicPartitions { topic_id: TOPIC.0, partitions: owned }]
            }),
            ..ConsumerGroupHeartbeatRequest::default()
        };
        let token = self.ask(Request::ConsumerGroupHeartbeat(&request), 1);
        match self.answered(token) {
            Answer::ConsumerHeartbeat(Ok(answer)) => {
                client.epoch = answer.member_epoch;
                if let Some(assignment) = answer.assignment {
                    client.told = assignment.iter().map(|partition| partition.partition).collect();
                    client.owned.extend(&client.told);
                }
                client.step = Step::Member;
            }
            Answer::ConsumerHeartbeat(Err(refused)) => {
                let codes =
                    [ErrorCode::UnknownMemberId, ErrorCode::FencedMemberEpoch, ErrorCode::GroupIdNotFound];
                assert!(codes.contains(&refused.code), "{refused}");
                client.epoch = 0;
                client.owned.clear();
                client.told.clear();
            }
            other => panic!("{other:?}"),
        }
        client
    }

    fn join(&mut self, mut client: Client, is_cooperative: bool) -> Client {
        if !is_cooperative {
            client.owned.clear();
        }
        let owned = consumer_protocol_subscription::TopicPartition {
            topic: "t",
            partitions: client.owned.iter().copied().collect(),
        };
        let said = ConsumerProtocolSubscription {
            topics: vec!["t"],
            owned_partitions: if client.owned.is_empty() { Vec::new() } else { vec![owned] },
            ..ConsumerProtocolSubscription::default()
        };
        let said = said.to_versioned(1);
        let request = JoinGroupRequest {
            group_id: "g",
            session_timeout_ms: SESSION_MS,
            rebalance_timeout_ms: 30_000,
            member_id: &client.member_id,
            protocol_type: "consumer",
            protocols: vec![JoinGroupRequestProtocol { name: PROTOCOL, metadata: &said }],
            ..JoinGroupRequest::default()
        };
        client.step = Step::Joining(self.ask(Request::JoinGroup(&request), 5));
        client
    }

    fn joined(&mut self, mut client: Client, answer: Answer) -> Client {
        let joined = match answer {
            Answer::Joined(joined) => joined,
            other => panic!("{other:?}"),
        };
        match joined.error {
            ErrorCode::None => {
                client.member_id = joined.member_id.to_string();
                client.epoch = joined.generation_id;
                let said = |metadata: &[u8]| -> BTreeSet<i32> {
                    let said = ConsumerProtocolSubscription::from_versioned(metadata).unwrap();
                    said.owned_partitions.iter().flat_map(|topic| topic.partitions.clone()).collect()
                };
                let members = joined.members.iter();
                let members = members.map(|member| (member.member_id.to_string(), said(&member.metadata)));
                client.step = Step::Sync(members.collect());
            }
            ErrorCode::MemberIdRequired => {
                client.member_id = joined.member_id.to_string();
                client.step = Step::Join;
            }
            ErrorCode::UnknownMemberId => {
                client.member_id.clear();
                client.owned.clear();
                client.step = Step::Join;
            }
            ErrorCode::RebalanceInProgress => client.step = Step::Join,
            other => panic!("{other}"),
        }
        client
    }

    /// A leader gives partitions around; what another member owns is left with it, or, if that is too much, with nobody
    /// until it was given up.
    fn sync(&mut self, mut client: Client, members: &[(String, BTreeSet<i32>)]) -> Client {
        let mut assigned: Vec<BTreeSet<i32>> = vec![BTreeSet::new(); members.len()];
        for partition in 0..PARTITIONS {
            let Some(place) = (partition as usize).checked_rem(members.len()) else { break };
            let owner = members.iter().position(|(_, owned)| owned.contains(&partition));
            if owner.is_none_or(|owner| owner == place) {
                assigned[place].insert(partition);
            }
        }
        let encoded: Vec<Vec<u8>> = assigned.iter().map(|one| encode(one, self.user_data)).collect();
        let assignments = members
            .iter()
            .zip(&encoded)
            .map(|((id, _), assignment)| SyncGroupRequestAssignment { member_id: id, assignment });
        let request = SyncGroupRequest {
            group_id: "g",
            generation_id: client.epoch,
            member_id: &client.member_id,
            protocol_type: Some("consumer"),
            protocol_name: Some(PROTOCOL),
            assignments: assignments.collect(),
            ..SyncGroupRequest::default()
        };
        client.step = Step::Syncing(self.ask(Request::SyncGroup(&request), 5));
        client
    }

    fn heartbeat(&mut self, mut client: Client) -> Client {
        let request = HeartbeatRequest {
            group_id: "g",
            generation_id: client.epoch,
            member_id: &client.member_id,
            ..HeartbeatRequest::default()
        };
        let token = self.ask(Request::Heartbeat(&request), 4);
        match self.answered(token) {
            Answer::Failed(ErrorCode::None) => {}
            Answer::Failed(ErrorCode::RebalanceInProgress) => client.step = Step::Join,
            Answer::Failed(error) => lose_all(&mut client, error),
            other => panic!("{other:?}"),
        }
        client
    }

    fn leave(&mut self, who: u8) {
        let Some(client) = self.clients.remove(&who) else { return };
        if client.speaks == Speaks::Consumer {
            let request = ConsumerGroupHeartbeatRequest {
                group_id: "g",
                member_id: &client.member_id,
                member_epoch: -1,
                ..ConsumerGroupHeartbeatRequest::default()
            };
            self.ask(Request::ConsumerGroupHeartbeat(&request), 1);
        } else if !client.member_id.is_empty() {
            let identity = MemberIdentity { member_id: &client.member_id, ..MemberIdentity::default() };
            let request =
                LeaveGroupRequest { group_id: "g", members: vec![identity], ..LeaveGroupRequest::default() };
            self.ask(Request::LeaveGroup(&request), 5);
        }
    }

    /// The coordinator moves: what waits is told so, and the state comes from the log.
    fn reload(&mut self) {
        let state = std::mem::take(&mut self.coordinator);
        for token in state.abandon() {
            for client in self.clients.values_mut() {
                if matches!(client.step, Step::Joining(waits) | Step::Syncing(waits) if waits == token) {
                    client.step = Step::Join;
                }
            }
        }
        let mut loaded = Coordinator::default();
        for record in &self.log {
            loaded.load(&record.key, record.value.as_deref()).unwrap();
        }
        self.coordinator = loaded;
        self.with(|coordinator, cx| coordinator.finish_loading(cx));
    }

    fn check(&self) {
        let mut owners = BTreeMap::new();
        for (who, client) in &self.clients {
            for partition in client.owned.union(&client.told) {
                let other = owners.insert(*partition, *who);
                assert!(other.is_none(), "{partition} is owned by {other:?} and {who}: {:#?}", self.clients);
            }
        }
        let mut loaded = Coordinator::default();
        for record in &self.log {
            loaded.load(&record.key, record.value.as_deref()).unwrap();
        }
        assert_eq!(loaded.snapshot(), self.coordinator.snapshot());
    }

    fn kind(&self) -> Option<&'static str> {
        let counts = self.coordinator.group_counts();
        match (counts.consumer, counts.classic_stable + counts.classic_preparing_rebalance) {
            (1, 0) => Some("consumer"),
            (0, 1) => Some("classic"),
            _ => None,
        }
    }

    fn settle(&mut self) {
        self.pass(40);
        if self.clients.is_empty() {
            return;
        }
        let owned: BTreeSet<i32> =
            self.clients.values().flat_map(|client| client.owned.iter().copied()).collect();
        assert_eq!(owned.len(), PARTITIONS as usize, "all are owned: {:#?}", self.clients);
        let has_consumers = self.clients.values().any(|client| client.speaks == Speaks::Consumer);
        assert_eq!(self.kind(), Some(if has_consumers { "consumer" } else { "classic" }));
    }
}

fn synced(mut client: Client, answer: Answer, is_cooperative: bool) -> Client {
    match answer {
        Answer::Synced(answer) => {
            let said = ConsumerProtocolAssignment::from_versioned(&answer.assignment).unwrap();
            let assigned: BTreeSet<i32> =
                said.assigned_partitions.iter().flat_map(|topic| topic.partitions.clone()).collect();
            // Who has given something up says so by joining again.
            let gave_up = is_cooperative && !client.owned.is_subset(&assigned);
            client.owned = assigned;
            client.step = if gave_up { Step::Join } else { Step::Member };
        }
        Answer::Failed(ErrorCode::RebalanceInProgress) => client.step = Step::Join,
        Answer::Failed(error) => lose_all(&mut client, error),
        other => panic!("{other:?}"),
    }
    client
}

fn lose_all(client: &mut Client, error: ErrorCode) {
    match error {
        ErrorCode::UnknownMemberId => client.member_id.clear(),
        ErrorCode::IllegalGeneration => {}
        other => panic!("{other}"),
    }
    client.owned.clear();
    client.step = Step::Join;
}

fn encode(partitions: &BTreeSet<i32>, user_data: Option<&[u8]>) -> Vec<u8> {
    let topic = consumer_protocol_assignment::TopicPartition {
        topic: "t",
        partitions: partitions.iter().copied().collect(),
    };
    let assigned_partitions = if partitions.is_empty() { Vec::new() } else { vec![topic] };
    ConsumerProtocolAssignment { assigned_partitions, user_data }.to_versioned(1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_partition_is_owned_twice(events in events(), is_cooperative in any::<bool>()) {
        let mut world = World::new(is_cooperative);
        for event in &events {
            world.run(event);
        }
        world.settle();
    }
}

/// The way there and back, once.
#[test]
fn an_application_changes_over_and_back() {
    for is_cooperative in [false, true] {
        let mut world = World::new(is_cooperative);
        let come = |world: &mut World, who, is_consumer| {
            world.run(&Event::Come { who, is_consumer });
            world.pass(10);
        };
        come(&mut world, 0, false);
        come(&mut world, 1, false);
        assert_eq!(world.kind(), Some("classic"));
        come(&mut world, 2, true);
        assert_eq!(world.kind(), Some("consumer"));
        world.run(&Event::Leave(0));
        come(&mut world, 3, true);
        let sizes: Vec<usize> = world.clients.values().map(|client| client.owned.len()).collect();
        assert!(sizes.iter().all(|size| (2..=3).contains(size)), "{sizes:?}");
        world.run(&Event::Leave(1));
        world.pass(5);
        come(&mut world, 4, false);
        world.run(&Event::Leave(2));
        world.run(&Event::Crash(3));
        world.pass(10);
        assert_eq!(world.kind(), Some("classic"));
        world.settle();
    }
}

/// What an assignor of its own has added to an assignment would be lost, as with Kafka Streams: the group stays as it is.
#[test]
fn user_data_keeps_a_group_classic() {
    for (user_data, kind) in [(&b"tasks"[..], "classic"), (b"", "consumer")] {
        let mut world = World::new(true);
        world.user_data = Some(user_data);
        world.run(&Event::Come { who: 0, is_consumer: false });
        world.pass(5);
        world.run(&Event::Come { who: 1, is_consumer: true });
        world.pass(5);
        assert_eq!(world.kind(), Some(kind));
    }
    let mut world = World::new(true);
    world.user_data = Some(b"tasks");
    world.run(&Event::Come { who: 0, is_consumer: false });
    world.pass(5);
    let request = ConsumerGroupHeartbeatRequest {
        group_id: "g",
        member_id: "m",
        rebalance_timeout_ms: 30_000,
        subscribed_topic_names: Some(vec!["t"]),
        topic_partitions: Some(Vec::new()),
        ..ConsumerGroupHeartbeatRequest::default()
    };
    let token = world.ask(Request::ConsumerGroupHeartbeat(&request), 1);
    let Answer::ConsumerHeartbeat(Err(refused)) = world.answered(token) else { panic!("it joined") };
    assert_eq!(refused.code, ErrorCode::GroupIdNotFound);
    assert!(refused.message.contains("an unsupported custom assignor is in use"), "{refused}");
}

/// A policy that forbids it.
#[test]
fn migration_may_be_forbidden() {
    let mut world = World::new(true);
    world.config.consumer_migration_upgrade = false;
    world.run(&Event::Come { who: 0, is_consumer: false });
    world.pass(5);
    world.run(&Event::Come { who: 1, is_consumer: true });
    world.pass(5);
    assert_eq!(world.kind(), Some("classic"));
    assert_eq!(world.clients[&1].epoch, 0);
    world.config.consumer_migration_upgrade = true;
    world.config.consumer_migration_downgrade = false;
    world.pass(5);
    assert_eq!(world.kind(), Some("consumer"));
    world.run(&Event::Leave(1));
    world.pass(5);
    assert_eq!((world.kind(), world.clients[&0].owned.len()), (Some("consumer"), PARTITIONS as usize));
}

/// An id goes with its instance: when that was removed, whoever still has both comes again as a new member.
#[test]
fn a_static_member_that_was_removed_comes_again_as_a_new_one() {
    let mut world = World::new(true);
    world.run(&Event::Come { who: 0, is_consumer: true });
    world.pass(5);
    let said = ConsumerProtocolSubscription { topics: vec!["t"], ..ConsumerProtocolSubscription::default() };
    let said = said.to_versioned(1);
    let mut join = |member_id: &str| {
        let request = JoinGroupRequest {
            group_id: "g",
            session_timeout_ms: SESSION_MS,
            rebalance_timeout_ms: 30_000,
            member_id,
            group_instance_id: Some("instance"),
            protocol_type: "consumer",
            protocols: vec![JoinGroupRequestProtocol { name: PROTOCOL, metadata: &said }],
            ..JoinGroupRequest::default()
        };
        let token = world.ask(Request::JoinGroup(&request), 5);
        let Answer::Joined(answer) = world.answered(token) else { panic!("no answer to a join") };
        answer.error
    };
    assert_eq!(join("removed"), ErrorCode::UnknownMemberId);
    assert_eq!(join(""), ErrorCode::None);
}
