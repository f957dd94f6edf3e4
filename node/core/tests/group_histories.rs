//! Random histories of classic groups: members that come, assign, commit, leave, fall silent, die; appends that fail;
//! restarts. After every step:
//!
//! - a token is answered at most once, and at the end every token is;
//! - the log, replayed from its start, gives the coordinator's hard state;
//! - of one generation no two members were given the same partition;
//! - what the coordinator holds is bounded by who is there.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use flumen_core::config::{BrokerConfig, GroupConfig};
use flumen_core::coordinator::{Answer, Batch, Caller, Context, Coordinator, Record, Request, Token};
use flumen_core::limits::BATCH_BYTES_MAX;
use flumen_core::metadata::Image;
use flumen_wire::ErrorCode;
use flumen_wire::codec::Versioned;
use flumen_wire::group::consumer_protocol_subscription::ConsumerProtocolSubscription;
use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
use flumen_wire::messages::join_group_request::{JoinGroupRequest, JoinGroupRequestProtocol};
use flumen_wire::messages::leave_group_request::{LeaveGroupRequest, MemberIdentity};
use flumen_wire::messages::offset_commit_request::OffsetCommitRequest;
use flumen_wire::messages::sync_group_request::{SyncGroupRequest, SyncGroupRequestAssignment};
use proptest::prelude::*;

/// Partitions that the leader deals out.
const PARTITIONS: u8 = 12;
const CLIENTS: usize = 6;

/// What a client knows of its membership, as a real one would.
#[derive(Clone, Debug, Default)]
struct Client {
    instance: Option<String>,
    member_id: String,
    generation_id: i32,
    /// To the leader: whom to assign to.
    members: Vec<String>,
    synced: bool,
    waits_for: Option<Token>,
}

#[derive(Clone, Debug)]
enum Step {
    /// The client does what it would do next.
    Go(usize),
    Beat(usize),
    Commit(usize),
    Leave(usize),
    /// The client is killed and starts again; what it waited for is nobody's.
    Die(usize),
    Wait(u64),
    /// The batch that is being appended becomes durable.
    Durable,
    /// It does not.
    Fail,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..CLIENTS;
    prop_oneof![
        12 => client.clone().prop_map(Step::Go),
        3 => client.clone().prop_map(Step::Beat),
        2 => client.clone().prop_map(Step::Commit),
        1 => client.clone().prop_map(Step::Leave),
        1 => client.prop_map(Step::Die),
        3 => (0..8_000_u64).prop_map(Step::Wait),
        8 => Just(Step::Durable),
        1 => Just(Step::Fail),
        1 => Just(Step::Restart),
    ]
}

struct World {
    coordinator: Coordinator,
    config: GroupConfig,
    image: Image,
    now_ms: u64,
    tokens: u64,
    uuids: u128,
    /// Tokens that are not answered, and whose they are.
    open: BTreeMap<Token, Option<usize>>,
    clients: Vec<Client>,
    log: Vec<Record>,
    appending: Option<Batch>,
    /// What was given out: generation and partition to member.
    given: BTreeMap<(i32, u8), String>,
}

impl World {
    fn new(max_size: u32, delay_ms: u32) -> World {
        let mut config = BrokerConfig::default().group;
        config.max_size = max_size;
        config.initial_rebalance_delay_ms = delay_ms;
        let client = |number: usize| Client {
            instance: number.is_multiple_of(3).then(|| format!("static{number}")),
            ..Client::default()
        };
        let mut world = World {
            coordinator: Coordinator::default(),
            config,
            image: Image::default(),
            now_ms: 0,
            tokens: 0,
            uuids: 0,
            open: BTreeMap::new(),
            clients: (0..CLIENTS).map(client).collect(),
            log: Vec::new(),
            appending: None,
            given: BTreeMap::new(),
        };
        world.load();
        world
    }

    fn with(&mut self, happens: impl FnOnce(&mut Coordinator, &Context<'_>)) {
        self.uuids += 1;
        let cx = Context {
            now: Duration::from_millis(self.now_ms),
            now_ms: self.now_ms as i64,
            image: &self.image,
            config: &self.config,
            decision_bytes_max: BATCH_BYTES_MAX,
            uuid: self.uuids.to_be_bytes(),
        };
        happens(&mut self.coordinator, &cx);
    }

    fn ask(&mut self, client: usize, waits: bool, request: Request<'_>) {
        self.tokens += 1;
        let token = Token(self.tokens);
        self.open.insert(token, waits.then_some(client));
        if waits {
            self.clients[client].waits_for = Some(token);
        }
        let caller = Caller { client_id: "c", client_host: "/h", version: 9 };
        self.with(|coordinator, cx| coordinator.handle(cx, &caller, request, token));
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Go(client) if self.clients[client].waits_for.is_some() => {}
            Step::Go(client) if self.clients[client].generation_id > 0 => self.sync(client),
            Step::Go(client) => self.join(client),
            Step::Beat(client) => self.beat(client),
            Step::Commit(client) => self.commit(client),
            Step::Leave(client) => self.leave(client),
            Step::Die(client) => {
                let instance = self.clients[client].instance.clone();
                for waiting in self.open.values_mut().filter(|whose| **whose == Some(client)) {
                    *waiting = None;
                }
                self.clients[client] = Client { instance, ..Client::default() };
            }
            Step::Wait(ms) => self.wait(ms),
            Step::Durable => {
                if let Some(batch) = self.appending.take() {
                    self.coordinator.committed(&batch);
                }
            }
            Step::Fail => {
                if let Some(batch) = self.appending.take() {
                    let written = self.log.len() - batch.records.len();
                    self.log.truncate(written);
                    self.reload();
                }
            }
            Step::Restart => {
                // What was being appended is in the log, though nobody was told.
                self.appending = None;
                self.reload();
            }
        }
        self.settle();
        self.check();
    }

    fn join(&mut self, client: usize) {
        let Client { instance, member_id, .. } = self.clients[client].clone();
        let metadata =
            ConsumerProtocolSubscription { topics: vec!["t"], ..Default::default() }.to_versioned(3);
        let request = JoinGroupRequest {
            group_id: "g",
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 15_000,
            member_id: &member_id,
            group_instance_id: instance.as_deref(),
            protocol_type: "consumer",
            protocols: vec![JoinGroupRequestProtocol { name: "range", metadata: &metadata }],
            reason: None,
        };
        self.ask(client, true, Request::JoinGroup(&request));
    }

    fn sync(&mut self, client: usize) {
        let Client { instance, member_id, generation_id, members, .. } = self.clients[client].clone();
        let mut dealt: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        for partition in (0..PARTITIONS).filter(|_| !members.is_empty()) {
            // Not the same each time.
            let at = (usize::from(partition) + generation_id as usize) % members.len();
            dealt.entry(&members[at]).or_default().push(partition);
        }
        let request = SyncGroupRequest {
            group_id: "g",
            generation_id,
            member_id: &member_id,
            group_instance_id: instance.as_deref(),
            protocol_type: Some("consumer"),
            protocol_name: Some("range"),
            assignments: dealt
                .iter()
                .map(|(member_id, assignment)| SyncGroupRequestAssignment { member_id, assignment })
                .collect(),
        };
        self.ask(client, true, Request::SyncGroup(&request));
    }

    fn beat(&mut self, client: usize) {
        let Client { instance, member_id, generation_id, .. } = self.clients[client].clone();
        let request = HeartbeatRequest {
            group_id: "g",
            generation_id,
            member_id: &member_id,
            group_instance_id: instance.as_deref(),
        };
        self.ask(client, false, Request::Heartbeat(&request));
    }

    fn commit(&mut self, client: usize) {
        let Client { instance, member_id, generation_id, .. } = self.clients[client].clone();
        let request = OffsetCommitRequest {
            group_id: "g",
            generation_id_or_member_epoch: generation_id,
            member_id: &member_id,
            group_instance_id: instance.as_deref(),
            ..Default::default()
        };
        self.ask(client, false, Request::OffsetCommit(&request));
    }

    fn leave(&mut self, client: usize) {
        let Client { instance, member_id, .. } = self.clients[client].clone();
        let group_instance_id = instance.as_deref();
        let member = MemberIdentity { member_id: &member_id, group_instance_id, reason: None };
        let request = LeaveGroupRequest { group_id: "g", member_id: "", members: vec![member] };
        self.ask(client, false, Request::LeaveGroup(&request));
    }

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

    fn reload(&mut self) {
        for token in std::mem::take(&mut self.coordinator).abandon() {
            self.answered(token, &Answer::Failed(ErrorCode::NotCoordinator));
        }
        // Generations that were never written are formed again, with others in them.
        self.load();
    }

    fn load(&mut self) {
        for record in &self.log {
            self.coordinator.load(&record.key, record.value.as_deref()).unwrap();
        }
        self.with(|coordinator, cx| coordinator.finish_loading(cx));
    }

    fn settle(&mut self) {
        while let Some((token, answer)) = self.coordinator.pop_ready() {
            self.answered(token, &answer);
        }
        if self.appending.is_none()
            && let Some(batch) = self.coordinator.next_batch(1 << 20)
        {
            self.log.extend(batch.records.iter().cloned());
            self.appending = Some(batch);
        }
    }

    fn answered(&mut self, token: Token, answer: &Answer) {
        let whose = self.open.remove(&token).expect("a token is answered once");
        let Some(client) = whose else { return };
        let client = &mut self.clients[client];
        assert_eq!(client.waits_for.take(), Some(token));
        match answer {
            Answer::Joined(joined) if joined.error == ErrorCode::None => {
                client.member_id = joined.member_id.to_string();
                client.generation_id = joined.generation_id;
                client.members = joined.members.iter().map(|member| member.member_id.to_string()).collect();
                if joined.skip_assignment {
                    client.members.clear();
                }
                client.synced = false;
            }
            Answer::Joined(joined) => {
                let keeps =
                    matches!(joined.error, ErrorCode::MemberIdRequired | ErrorCode::RebalanceInProgress);
                client.member_id = if keeps { joined.member_id.to_string() } else { String::new() };
                client.generation_id = 0;
            }
            Answer::Synced(synced) => {
                for partition in synced.assignment.iter() {
                    let place = (client.generation_id, *partition);
                    let holder = self.given.entry(place).or_insert_with(|| client.member_id.clone());
                    // A static member that came back has the place of the one before.
                    let same = |id: &str| id.rsplit_once("-0000").map(|(whose, _)| whose.to_owned());
                    let is_static = client.instance.is_some() && holder.starts_with("static");
                    assert!(
                        *holder == client.member_id || is_static && same(holder).is_some(),
                        "{place:?} is {holder}'s and {}'s",
                        client.member_id
                    );
                }
                client.synced = true;
                // Joins again, as after a change that it has seen.
                client.generation_id = 0;
            }
            Answer::Failed(ErrorCode::RebalanceInProgress | ErrorCode::NotCoordinator) => {
                client.generation_id = 0;
            }
            Answer::Failed(_) => {
                client.member_id.clear();
                client.generation_id = 0;
            }
            other => panic!("{other:?}"),
        }
    }

    fn check(&self) {
        assert_eq!(self.coordinator.unanswered(), self.open.len(), "no token is lost");
        if self.coordinator.backlog_bytes() == 0 {
            let mut again = Coordinator::default();
            for record in &self.log {
                again.load(&record.key, record.value.as_deref()).unwrap();
            }
            assert_eq!(again.snapshot(), self.coordinator.snapshot());
        }
    }

    /// All fall silent: in the end nobody is in the group, and nobody waits.
    fn finish(&mut self) {
        for _ in 0..4 {
            self.step(&Step::Durable);
            self.wait(400_000);
            self.step(&Step::Durable);
        }
        assert_eq!(self.open, BTreeMap::new());
        assert_eq!(self.coordinator.group_counts().classic_stable, 0);
        let deadline = self.coordinator.next_deadline().map(|at| at.as_millis() as u64);
        let expiry = self.config.offsets_retention_check_interval_ms;
        assert!(
            deadline.is_none_or(|at| at >= self.now_ms / expiry * expiry),
            "only expiry is left: {deadline:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

    #[test]
    fn groups_keep_their_promises(
        steps in prop::collection::vec(step(), 1..120),
        max_size in prop_oneof![Just(u32::MAX), 2..6_u32],
        delay_ms in prop_oneof![Just(0), Just(3_000)],
    ) {
        let mut world = World::new(max_size, delay_ms);
        for step in &steps {
            world.step(step);
        }
        world.finish();
    }
}
