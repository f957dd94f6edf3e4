//! Groups under clients that are many, or mean: what they may make a coordinator hold is bounded, and each is told so by
//! Kafka's code.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flumen_core::config::{BrokerConfig, GroupConfig};
use flumen_core::coordinator::{Answer, Caller, Context, Coordinator, JoinAnswer, Request, Token};
use flumen_core::limits::{
    BATCH_BYTES_MAX, GROUP_EXPRESSIONS_MAX, GROUP_MEMBERS_BYTES_MAX, GROUP_MEMBERS_MAX, GROUP_NAME_BYTES_MAX,
    GROUPS_PER_COORDINATOR_MAX, OFFSET_COMMIT_BYTES_MAX, OFFSETS_METADATA_BYTES_MAX,
    OFFSETS_PER_COORDINATOR_MAX,
};
use flumen_core::metadata::{Image, PartitionRecord, Record};
use flumen_core::types::{LeaderEpoch, TopicId};
use flumen_wire::ErrorCode;
use flumen_wire::messages::consumer_group_heartbeat_request::ConsumerGroupHeartbeatRequest;
use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
use flumen_wire::messages::join_group_request::{JoinGroupRequest, JoinGroupRequestProtocol};
use flumen_wire::messages::offset_commit_request::{
    OffsetCommitRequest, OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use flumen_wire::messages::offset_delete_request::{
    OffsetDeleteRequest, OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use flumen_wire::messages::sync_group_request::{SyncGroupRequest, SyncGroupRequestAssignment};

struct World {
    coordinator: Coordinator,
    config: GroupConfig,
    image: Image,
    now: Duration,
    tokens: u64,
    answers: BTreeMap<u64, Answer>,
    /// Bytes of the records of the largest batch.
    largest_batch: usize,
    decision_bytes_max: usize,
}

impl World {
    fn new(delay_ms: u32) -> World {
        let mut config = BrokerConfig::default().group;
        config.initial_rebalance_delay_ms = delay_ms;
        let mut world = World {
            coordinator: Coordinator::default(),
            config,
            image: Image::default(),
            now: Duration::ZERO,
            tokens: 0,
            answers: BTreeMap::new(),
            largest_batch: 0,
            decision_bytes_max: BATCH_BYTES_MAX,
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
            decision_bytes_max: self.decision_bytes_max,
            uuid: u128::from(self.tokens).to_be_bytes(),
        };
        happens(&mut self.coordinator, &cx);
        loop {
            while let Some((token, answer)) = self.coordinator.pop_ready() {
                assert!(self.answers.insert(token.0, answer).is_none());
            }
            let bytes_max = (1 << 20).min(self.decision_bytes_max / 2);
            let Some(batch) = self.coordinator.next_batch(bytes_max) else { return };
            let bytes = batch.records.iter().map(|record| record.len_bytes()).sum();
            assert!(bytes <= self.decision_bytes_max);
            self.largest_batch = self.largest_batch.max(bytes);
            self.coordinator.committed(&batch);
        }
    }

    fn ask(&mut self, version: i16, request: Request<'_>) -> u64 {
        self.ask_as("client", version, request)
    }

    fn ask_as(&mut self, client_id: &str, version: i16, request: Request<'_>) -> u64 {
        self.tokens += 1;
        let token = self.tokens;
        let caller = Caller { client_id, client_host: "/h", version };
        self.with(|coordinator, cx| coordinator.handle(cx, &caller, request, Token(token)));
        token
    }

    fn join(&mut self, version: i16, group_id: &str, member_id: &str, metadata: &[u8]) -> u64 {
        self.join_as("client", version, group_id, member_id, metadata)
    }

    fn join_as(
        &mut self,
        client_id: &str,
        version: i16,
        group_id: &str,
        member_id: &str,
        metadata: &[u8],
    ) -> u64 {
        let request = JoinGroupRequest {
            group_id,
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 60_000,
            member_id,
            group_instance_id: None,
            protocol_type: "consumer",
            protocols: vec![JoinGroupRequestProtocol { name: "range", metadata }],
            reason: None,
        };
        self.ask_as(client_id, version, Request::JoinGroup(&request))
    }

    /// A member of a consumer group joins.
    fn consumer(&mut self, member_id: &str, regex: Option<&str>) -> Result<(), ErrorCode> {
        self.heartbeat(member_id, regex, regex.is_none().then(|| vec!["t"]))
    }

    fn subscriber(&mut self, member_id: &str, topics: &[String]) -> Result<(), ErrorCode> {
        self.heartbeat(member_id, None, Some(topics.iter().map(AsRef::as_ref).collect()))
    }

    fn heartbeat(
        &mut self,
        member_id: &str,
        regex: Option<&str>,
        topics: Option<Vec<&str>>,
    ) -> Result<(), ErrorCode> {
        let request = ConsumerGroupHeartbeatRequest {
            group_id: "c",
            member_id,
            rebalance_timeout_ms: 60_000,
            subscribed_topic_names: topics,
            subscribed_topic_regex: regex,
            topic_partitions: Some(Vec::new()),
            ..ConsumerGroupHeartbeatRequest::default()
        };
        let token = self.ask(1, Request::ConsumerGroupHeartbeat(&request));
        match self.answers.remove(&token) {
            Some(Answer::ConsumerHeartbeat(answer)) => answer.map(drop).map_err(|refused| refused.code),
            other => panic!("{other:?}"),
        }
    }

    fn joined(&mut self, token: u64) -> JoinAnswer {
        match self.answers.remove(&token) {
            Some(Answer::Joined(joined)) => joined,
            other => panic!("{other:?}"),
        }
    }

    fn members(&mut self, group_id: &str) -> usize {
        let token = self.ask(0, Request::DescribeGroup(group_id));
        match self.answers.remove(&token) {
            Some(Answer::Described(Ok(group))) => group.members.len(),
            Some(Answer::Described(Err(_))) => 0,
            other => panic!("{other:?}"),
        }
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.coordinator.next_deadline()
            && deadline <= end
        {
            self.now = self.now.max(deadline);
            self.with(|coordinator, cx| coordinator.tick(cx));
        }
        self.now = end;
    }
}

/// Topics and partitions.
impl World {
    fn topic(&mut self, name: &str, partitions: i32) {
        let id = TopicId([self.image.topic_count() as u8 + 1; 16]);
        self.image.replay(&Record::Topic { id, name: name.into() }).unwrap();
        for partition in 0..partitions {
            let record = PartitionRecord {
                topic: id,
                partition,
                replicas: vec![],
                isr: vec![],
                leader: None,
                leader_epoch: LeaderEpoch(0),
                partition_epoch: 0,
            };
            self.image.replay(&Record::Partition(record)).unwrap();
        }
    }

    /// Commits offset 1 for the first partitions of a topic; how many were taken, the others having been too much.
    fn commit(&mut self, group_id: &str, topic: &str, partitions: i32) -> usize {
        let offset = |partition_index| OffsetCommitRequestPartition {
            partition_index,
            committed_offset: 1,
            ..Default::default()
        };
        let request = OffsetCommitRequest {
            group_id,
            generation_id_or_member_epoch: -1,
            retention_time_ms: -1,
            topics: vec![OffsetCommitRequestTopic {
                name: topic,
                partitions: (0..partitions).map(offset).collect(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let token = self.ask(7, Request::OffsetCommit(&request));
        let Some(Answer::Committed(codes)) = self.answers.remove(&token) else { panic!("no commit") };
        let refused = codes.iter().filter(|code| **code == ErrorCode::InvalidCommitOffsetSize).count();
        let taken = codes.iter().filter(|code| **code == ErrorCode::None).count();
        assert_eq!(taken + refused, partitions as usize);
        taken
    }
}

fn sync<'a>(member_id: &'a str, assignments: Vec<SyncGroupRequestAssignment<'a>>) -> SyncGroupRequest<'a> {
    SyncGroupRequest {
        group_id: "g",
        generation_id: 1,
        member_id,
        group_instance_id: None,
        protocol_type: None,
        protocol_name: None,
        assignments,
    }
}

/// 500 members come at once, each with the round trip for its id; they are one generation, which every one of them hears of.
#[test]
fn a_storm_of_500_members() {
    let mut world = World::new(3_000);
    let metadata = [7; 200];
    let ids: Vec<Arc<str>> = (0..500)
        .map(|_| world.join(9, "g", "", &metadata))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|token| {
            let answer = world.joined(token);
            assert_eq!(answer.error, ErrorCode::MemberIdRequired);
            answer.member_id
        })
        .collect();
    let tokens: Vec<u64> = ids.iter().map(|id| world.join(9, "g", id, &metadata)).collect();
    // As long as members come, the first generation waits a second time.
    world.wait(Duration::from_secs(6));
    let answers: Vec<JoinAnswer> = tokens.into_iter().map(|token| world.joined(token)).collect();
    assert!(answers.iter().all(|answer| answer.error == ErrorCode::None && answer.generation_id == 1));
    let leaders: Vec<_> = answers.iter().filter(|answer| !answer.members.is_empty()).collect();
    assert_eq!(leaders.len(), 1);
    assert_eq!(leaders[0].members.len(), 500);
    let leader = Arc::clone(&leaders[0].member_id);
    let waiting: Vec<u64> = ids
        .iter()
        .filter(|id| **id != leader)
        .map(|id| world.ask(5, Request::SyncGroup(&sync(id, Vec::new()))))
        .collect();
    let assignments = ids
        .iter()
        .map(|member_id| SyncGroupRequestAssignment { member_id, assignment: member_id.as_bytes() });
    world.ask(5, Request::SyncGroup(&sync(&leader, assignments.collect())));
    assert_eq!(waiting.len(), 499);
    assert!(waiting.iter().all(|token| matches!(world.answers[token], Answer::Synced(_))));
    world.answers.clear();
    // Heartbeats of all.
    for id in &ids {
        let request =
            HeartbeatRequest { group_id: "g", generation_id: 1, member_id: id, group_instance_id: None };
        world.ask(4, Request::Heartbeat(&request));
    }
    assert!(world.answers.values().all(|answer| *answer == Answer::Failed(ErrorCode::None)));
    assert_eq!(world.coordinator.unanswered(), 0);
}

/// A client that asks for an id, or joins, and dies, again and again: what it leaves behind goes.
#[test]
fn a_member_that_joins_and_dies_a_thousand_times() {
    for version in [3, 9] {
        let mut world = World::new(0);
        for _ in 0..1_000 {
            let token = world.join(version, "g", "", b"said");
            if version >= 4 {
                // Every other time it dies only when it knows its id and has joined.
                let id = world.joined(token).member_id;
                if token.is_multiple_of(2) {
                    world.join(version, "g", &id, b"said");
                }
            }
            world.wait(Duration::from_secs(1));
        }
        let at_work = world.members("g");
        // Before KIP-394 nobody knows which are dead until five minutes have passed; since, a minute does, in which the others are waited for.
        assert!(at_work <= if version < 4 { 302 } else { 40 }, "{at_work} members");
        world.wait(Duration::from_secs(900));
        assert_eq!(world.members("g"), 0);
        assert_eq!(world.coordinator.unanswered(), 0, "version {version}");
        assert_eq!(world.coordinator.group_counts().classic_empty, 0, "it went with its last member");
    }
}

/// Ids that are given out count.
#[test]
fn ids_that_nobody_uses_are_bounded() {
    let mut world = World::new(3_000);
    for _ in 0..GROUP_MEMBERS_MAX {
        let token = world.join(9, "g", "", b"");
        assert_eq!(world.joined(token).error, ErrorCode::MemberIdRequired);
    }
    let token = world.join(9, "g", "", b"");
    assert_eq!(world.joined(token).error, ErrorCode::GroupMaxSizeReached);
    world.wait(Duration::from_secs(11));
    let token = world.join(9, "g", "", b"");
    assert_eq!(world.joined(token).error, ErrorCode::MemberIdRequired);
}

/// Ids are as long as the name of their client: those that were given out count with what members say.
#[test]
fn long_ids_that_nobody_uses_are_bounded() {
    let mut world = World::new(3_000);
    let client_id = "c".repeat(30_000);
    let mut refused = 0;
    for number in 0..1_000 {
        let token = world.join_as(&client_id, 9, "g", "", b"");
        let fits = number * 30_037 + 2 * 30_037 <= GROUP_MEMBERS_BYTES_MAX;
        match world.joined(token).error {
            ErrorCode::MemberIdRequired => assert_eq!(refused, 0),
            ErrorCode::UnknownServerError => {
                assert!(!fits);
                refused += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert!(refused > 1_000 - GROUP_MEMBERS_BYTES_MAX / 30_000, "{refused}");
    world.wait(Duration::from_secs(11));
    let token = world.join_as(&client_id, 9, "g", "", b"");
    assert_eq!(world.joined(token).error, ErrorCode::MemberIdRequired);
}

/// Each record of a member of a consumer group names it, and its group.
#[test]
fn names_of_consumers_are_bounded() {
    let mut world = World::new(0);
    world.topic("t", 1);
    let name = |number: usize| format!("{number:05}{}", "m".repeat(32_000));
    let mut joined = 0;
    while world.consumer(&name(joined), None).is_ok() {
        joined += 1;
        assert!(joined < 200);
    }
    assert!(joined > GROUP_MEMBERS_BYTES_MAX / 105_000, "{joined}");
    assert_eq!(world.consumer(&name(joined), None), Err(ErrorCode::GroupMaxSizeReached));
    assert_eq!(world.consumer("short", None), Ok(()));
}

/// All of them are matched with all topics, again and again.
#[test]
fn expressions_are_bounded() {
    let mut world = World::new(0);
    for number in 0..GROUP_EXPRESSIONS_MAX {
        assert_eq!(world.consumer(&format!("m{number}"), Some(&format!("t{number}.*"))), Ok(()));
    }
    assert_eq!(world.consumer("other", Some("u.*")), Err(ErrorCode::GroupMaxSizeReached));
    assert_eq!(world.consumer("same", Some("t7.*")), Ok(()));
}

/// What members say to their protocols is bounded for all of a group.
#[test]
fn what_members_say_is_bounded() {
    let mut world = World::new(3_000);
    let large = vec![1; GROUP_MEMBERS_BYTES_MAX / 3];
    for _ in 0..2 {
        world.join(3, "g", "", &large);
    }
    for said in [&large[..], &vec![1; GROUP_MEMBERS_BYTES_MAX]] {
        let token = world.join(3, "g", "", said);
        assert_eq!(world.joined(token).error, ErrorCode::UnknownServerError);
    }
    let token = world.join(3, "g", "", b"little");
    world.wait(Duration::from_secs(61));
    assert_eq!(world.joined(token).generation_id, 1);
}

#[test]
fn groups_are_bounded() {
    let mut world = World::new(3_000);
    for number in 0..GROUPS_PER_COORDINATOR_MAX {
        world.join(9, &number.to_string(), "", b"");
    }
    world.answers.clear();
    let token = world.join(9, "one more", "", b"");
    assert_eq!(world.joined(token).error, ErrorCode::CoordinatorNotAvailable);
    let token = world.join(9, "0", "", b"");
    assert_eq!(world.joined(token).error, ErrorCode::MemberIdRequired);
}

#[test]
fn whoever_asks_while_it_loads_is_told() {
    let mut world = World::new(0);
    world.coordinator = Coordinator::default();
    let token = world.join(9, "g", "", b"");
    assert_eq!(world.answers[&token], Answer::Failed(ErrorCode::CoordinatorLoadInProgress));
    assert_eq!(world.coordinator.next_deadline(), None);
    world.with(|coordinator, cx| coordinator.finish_loading(cx));
    let token = world.join(9, "g", "", b"");
    assert_eq!(world.joined(token).error, ErrorCode::MemberIdRequired);
}

/// Each record of a commit names the group: a request of kilobytes with a long name would become hundreds of megabytes.
#[test]
fn what_one_commit_becomes_is_bounded() {
    let mut world = World::new(0);
    world.topic("t", 5_000);
    let group = "g".repeat(GROUP_NAME_BYTES_MAX);
    let taken = world.commit(&group, "t", 5_000);
    assert!((900..1_100).contains(&taken), "{taken}");
    assert!(world.largest_batch < OFFSET_COMMIT_BYTES_MAX + (1 << 20));
    assert_eq!(world.coordinator.offset_count(), taken);
    // One of good manners is taken whole.
    assert_eq!(world.commit("h", "t", 5_000), 5_000);
}

/// A log of small segments takes small decisions: whoever asks for a larger one is refused, and nobody else.
#[test]
fn decisions_fit_the_log() {
    let mut world = World::new(3_000);
    world.decision_bytes_max = 1 << 20;
    world.topic("t", 5_000);
    let group = "g".repeat(3_000);
    let taken = world.commit(&group, "t", 5_000);
    assert!((300..350).contains(&taken), "{taken}");
    // Deleted all together, in several decisions.
    for topic in ["u", "v"] {
        world.topic(topic, 300);
        assert_eq!(world.commit(&group, topic, 300), 300);
    }
    let token = world.ask(0, Request::DeleteGroup(&group));
    assert_eq!(world.answers.remove(&token), Some(Answer::Failed(ErrorCode::None)));
    // What classic members say, and what they are assigned.
    let token = world.join(3, "g", "", &vec![1; 400 << 10]);
    assert_eq!(world.joined(token).error, ErrorCode::UnknownServerError);
    let token = world.join(3, "g", "", &vec![1; 300 << 10]);
    world.wait(Duration::from_secs(6));
    let leader = world.joined(token).member_id;
    for (bytes, error) in [(400 << 10, ErrorCode::UnknownServerError), (300 << 10, ErrorCode::None)] {
        let assignment = vec![2; bytes];
        let made = SyncGroupRequestAssignment { member_id: &leader, assignment: &assignment };
        let generation_id = if error.is_none() { 2 } else { 1 };
        let request = SyncGroupRequest { generation_id, ..sync(&leader, vec![made]) };
        let token = world.ask(5, Request::SyncGroup(&request));
        match world.answers.remove(&token) {
            Some(Answer::Synced(_)) => assert_eq!(error, ErrorCode::None),
            answer => assert_eq!(answer, Some(Answer::Failed(error))),
        }
        if !error.is_none() {
            let token = world.join(3, "g", &leader, &vec![1; 300 << 10]);
            assert_eq!(world.joined(token).generation_id, 2);
        }
    }
    // What a consumer group becomes.
    let names: Vec<String> = (0..4_000).map(|number| format!("{number:0>200}")).collect();
    assert_eq!(world.subscriber("large", &names), Err(ErrorCode::UnknownServerError));
    assert_eq!(world.subscriber("small", &names[..1_000]), Ok(()));
    assert_eq!(world.subscriber("large", &names), Err(ErrorCode::UnknownServerError));
    assert_eq!(world.subscriber("other", &names[..1_000]), Ok(()));
}

/// Past the bound new offsets are refused; those that are there go on.
#[test]
fn offsets_are_bounded() {
    let mut world = World::new(0);
    const PARTITIONS: i32 = 1 << 17;
    let topics: Vec<String> =
        (0..OFFSETS_PER_COORDINATOR_MAX as i32 / PARTITIONS).map(|number| format!("t{number}")).collect();
    for topic in &topics {
        world.topic(topic, PARTITIONS);
    }
    for topic in &topics[1..] {
        assert_eq!(world.commit("g", topic, PARTITIONS), PARTITIONS as usize);
    }
    assert_eq!(world.commit("g", "t0", PARTITIONS - 5), PARTITIONS as usize - 5);
    // Some new ones among many that are not.
    assert_eq!(world.commit("g", "t0", PARTITIONS), PARTITIONS as usize);
    assert_eq!(world.coordinator.offset_count(), OFFSETS_PER_COORDINATOR_MAX);
    assert_eq!((world.commit("h", "t0", 5), world.commit("g", "t0", 5)), (0, 5));
}

/// What is said beside offsets has a room, too; whoever says no more than before goes on.
#[test]
fn what_is_said_beside_offsets_is_bounded() {
    let mut world = World::new(0);
    let fits = (OFFSETS_METADATA_BYTES_MAX / 4_000) as i32;
    world.topic("t", fits + 10);
    let mut commit = |from: i32, to: i32, said: usize| {
        let said = "s".repeat(said);
        let partitions = (from..to).map(|partition_index| OffsetCommitRequestPartition {
            partition_index,
            committed_offset: 1,
            committed_leader_epoch: -1,
            committed_metadata: Some(&said),
        });
        let topics = vec![OffsetCommitRequestTopic {
            name: "t",
            partitions: partitions.collect(),
            ..Default::default()
        }];
        let request = OffsetCommitRequest {
            group_id: "g",
            generation_id_or_member_epoch: -1,
            retention_time_ms: -1,
            topics,
            ..OffsetCommitRequest::default()
        };
        let token = world.ask(9, Request::OffsetCommit(&request));
        match world.answers.remove(&token) {
            Some(Answer::Committed(codes)) => codes.iter().filter(|code| code.is_none()).count(),
            answer => panic!("{answer:?}"),
        }
    };
    // Few in one request, as its records have a bound of their own.
    for from in (0..fits).step_by(100) {
        let to = fits.min(from + 100);
        assert_eq!(commit(from, to, 4_000), (to - from) as usize);
    }
    assert_eq!(commit(fits, fits + 10, 4_000), 0);
    assert_eq!(commit(fits, fits + 10, 0), 10);
    assert_eq!(commit(0, 10, 4_000), 10);
    assert_eq!(commit(0, 9, 1), 9);
    assert_eq!(commit(fits, fits + 10, 4_000), 9);
}

/// However many offsets go at once, what is written of it comes in batches that the log takes.
#[test]
fn offsets_that_go_together_are_written_apart() {
    let mut world = World::new(0);
    world.topic("t", 5_000);
    world.topic("u", 5_000);
    let group = "g".repeat(3_000);
    for topic in ["t", "u"] {
        assert_eq!(world.commit(&group, topic, 5_000), 5_000);
    }
    world.largest_batch = 0;
    world.with(|coordinator, cx| coordinator.metadata_changed(cx, &["t"]));
    assert_eq!(world.coordinator.offset_count(), 5_000);
    let partitions = |range: std::ops::Range<i32>| {
        range.map(|partition_index| OffsetDeleteRequestPartition { partition_index }).collect()
    };
    let request = OffsetDeleteRequest {
        group_id: &group,
        topics: vec![OffsetDeleteRequestTopic { name: "u", partitions: partitions(0..2_500) }],
    };
    let token = world.ask(0, Request::OffsetDelete(&request));
    assert!(
        matches!(world.answers.remove(&token), Some(Answer::OffsetsDeleted(codes)) if codes.len() == 2_500)
    );
    assert_eq!(world.coordinator.offset_count(), 2_500);
    let token = world.ask(0, Request::DeleteGroup(&group));
    assert!(matches!(world.answers.remove(&token), Some(Answer::Failed(ErrorCode::None))));
    assert_eq!(world.coordinator.offset_count(), 0);
    assert!((1 << 20..2 << 20).contains(&world.largest_batch), "{}", world.largest_batch);
}
