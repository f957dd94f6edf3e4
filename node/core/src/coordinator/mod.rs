//! Group coordinators: who is in a group, what each member is to read, and how far a group has read.
//!
//! One [`Coordinator`] for each partition of `__consumer_offsets`; a group belongs to the partition that its id
//! hashes to ([`partition_for`]). Decide, then replay (Kafka's variant of it):
//!
//! ```text
//!   request + token ──> decide ──> records ──> replay: hard state     (at once, at append)
//!                          │          └──> next_batch ──> log ── durable ──> committed
//!                          ├──> timers, parked joins and syncs: soft state              │
//!                          └──> answers, held until all that they depend on is committed┘──> pop_ready
//!
//!   no append for now: refuse_held ──> answers that are held are NOT_COORDINATOR; the batch is appended later
//!   an append fails: abandon ──> every token is answered NOT_COORDINATOR; a new Coordinator loads the log
//! ```
//!
//! | module | decides |
//! |---|---|
//! | `classic` | groups whose members make the assignment (JoinGroup, SyncGroup, Heartbeat, LeaveGroup) |
//! | `consumer`, `assignor` | groups whose coordinator makes it (KIP-848) |
//! | `offsets` | committed offsets, of groups of any kind and of none |
//!
//! Invariants:
//! - **replay alone changes hard state**, live and at load, and it reads the bytes of the log: whoever replays the log
//!   has the same hard state ([`Coordinator::snapshot`]);
//! - soft state is lost at a reload and made anew from hard state by [`Coordinator::finish_loading`]: sessions begin
//!   again, whoever was parked asks again;
//! - **an answer leaves when what it depends on is in the log** (`outbox`), and every token is answered once;
//! - a decision is no larger than the log takes: what would be is refused before it changes anything;
//! - no clock and no randomness: both are in the [`Context`];
//! - what clients can make it hold is bounded (`limits`).

mod answer;
pub mod assignor;
mod classic;
pub mod consumer;
mod groups;
mod offsets;
mod outbox;
mod record;
mod timers;

use std::fmt;
use std::time::Duration;

use flumen_wire::ErrorCode;
use flumen_wire::codec::DecodeError;
use flumen_wire::messages::consumer_group_heartbeat_request::ConsumerGroupHeartbeatRequest;
use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
use flumen_wire::messages::join_group_request::JoinGroupRequest;
use flumen_wire::messages::leave_group_request::LeaveGroupRequest;
use flumen_wire::messages::offset_commit_request::OffsetCommitRequest;
use flumen_wire::messages::offset_delete_request::OffsetDeleteRequest;
use flumen_wire::messages::sync_group_request::SyncGroupRequest;

use crate::config::GroupConfig;
use crate::limits::COORDINATOR_BATCH_BYTES;
use crate::metadata::Image;
use groups::Groups;
use offsets::Offsets;
use outbox::Outbox;
use timers::{Timer, Timers};

pub use answer::{
    Answer, DescribedMember, FetchedPartition, FetchedTopic, GroupDescription, JoinAnswer, JoinedMember,
    ListedGroup, SyncAnswer,
};
pub use groups::GroupCounts;
pub use offsets::{FetchOffsets, TopicAsked};
pub use outbox::{Batch, Token};
pub use record::{Decoded, Record};

/// The topic of the coordinators' logs.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// What a decision may look at beside the coordinator's own state.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Monotonic time, for deadlines.
    pub now: Duration,
    /// Milliseconds since the Unix epoch, for what is written.
    pub now_ms: i64,
    /// The metadata.
    pub image: &'a Image,
    /// The settings.
    pub config: &'a GroupConfig,
    /// What one decision may come to in the log, in bytes.
    pub decision_bytes_max: usize,
    /// A random UUID of this decision's own: the new member's id, if one joins.
    pub uuid: [u8; 16],
}

/// Who asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller<'a> {
    /// The id that its client chose.
    pub client_id: &'a str,
    /// Where it is, as Kafka writes it: `/127.0.0.1`.
    pub client_host: &'a str,
    /// Version of the request.
    pub version: i16,
}

/// A request to the coordinator of one group; ListGroups is asked of every coordinator.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Request<'a> {
    JoinGroup(&'a JoinGroupRequest<'a>),
    SyncGroup(&'a SyncGroupRequest<'a>),
    Heartbeat(&'a HeartbeatRequest<'a>),
    LeaveGroup(&'a LeaveGroupRequest<'a>),
    OffsetCommit(&'a OffsetCommitRequest<'a>),
    OffsetFetch(&'a FetchOffsets<'a>),
    OffsetDelete(&'a OffsetDeleteRequest<'a>),
    DescribeGroup(&'a str),
    ListGroups { states: &'a [&'a str], types: &'a [&'a str] },
    DeleteGroup(&'a str),
    ConsumerGroupHeartbeat(&'a ConsumerGroupHeartbeatRequest<'a>),
    ConsumerGroupDescribe(&'a str),
}

/// A record of the log that cannot be read: not what was written, or of a release that knows more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayError(pub DecodeError);

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a record of {OFFSETS_TOPIC} cannot be read: {}", self.0)
    }
}

impl std::error::Error for ReplayError {}

/// The partition of `__consumer_offsets` that a group belongs to: Kafka's choice, Java's hash of the id's UTF-16.
pub fn partition_for(group_id: &str, partitions: i32) -> i32 {
    let step = |hash: i32, unit: u16| hash.wrapping_mul(31).wrapping_add(i32::from(unit));
    (group_id.encode_utf16().fold(0, step) & i32::MAX) % partitions.max(1)
}

/// The coordinator of the groups of one partition of `__consumer_offsets`. See the module.
#[derive(Debug)]
pub struct Coordinator {
    groups: Groups,
    offsets: Offsets,
    timers: Timers,
    outbox: Outbox,
    /// Until the log has been read to its end.
    loading: bool,
    /// No request is taken any more.
    retired: bool,
    /// When expired offsets are looked for next.
    next_expiry: Duration,
}

impl Default for Coordinator {
    /// A coordinator that is about to load its log: until then it answers COORDINATOR_LOAD_IN_PROGRESS.
    fn default() -> Coordinator {
        Coordinator {
            groups: Groups::default(),
            offsets: Offsets::default(),
            timers: Timers::default(),
            outbox: Outbox::default(),
            loading: true,
            retired: false,
            next_expiry: Duration::MAX,
        }
    }
}

/// Loading.
impl Coordinator {
    /// Takes a record of the log, in its order.
    pub fn load(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), ReplayError> {
        assert!(self.loading, "records come from the log while it is loaded, and then from decisions");
        self.replay(key, value)
    }

    /// The log has been read to its end: soft state begins.
    pub fn finish_loading(&mut self, cx: &Context<'_>) {
        assert!(self.loading, "a log is loaded once");
        self.loading = false;
        // Coordinators that were loaded at the same time do not all look at the same time.
        let interval = Duration::from_millis(cx.config.offsets_retention_check_interval_ms);
        self.next_expiry = cx.now + interval - interval * u32::from(cx.uuid[0]) / 256;
        self.classic_groups_loaded(cx);
        self.consumer_groups_loaded(cx);
        self.delete_orphaned_offsets(cx);
        self.outbox.close();
    }

    /// Whether it is still loading.
    pub fn is_loading(&self) -> bool {
        self.loading
    }

    /// Hard state as records: replayed on a new coordinator, they give the same hard state.
    pub fn snapshot(&self) -> Vec<Record> {
        let mut records = self.groups.snapshot();
        records.extend(self.offsets.snapshot());
        records
    }
}

/// Deciding.
impl Coordinator {
    /// Takes a request. Its answer comes by [`Coordinator::pop_ready`], under its token.
    pub fn handle(&mut self, cx: &Context<'_>, caller: &Caller<'_>, request: Request<'_>, token: Token) {
        self.outbox.take(token);
        if self.retired {
            self.outbox.answer(token, Answer::Failed(ErrorCode::NotCoordinator));
        } else if self.loading {
            self.outbox.answer(token, Answer::Failed(ErrorCode::CoordinatorLoadInProgress));
        } else {
            self.dispatch(cx, caller, request, token);
        }
        self.outbox.close();
    }

    fn dispatch(&mut self, cx: &Context<'_>, caller: &Caller<'_>, request: Request<'_>, token: Token) {
        let answer = match request {
            // These may wait, and then answer by themselves.
            Request::JoinGroup(request) => return self.join_group(cx, caller, request, token),
            Request::SyncGroup(request) => return self.sync_group(cx, request, token),
            Request::Heartbeat(request) => Answer::Failed(self.heartbeat(cx, request)),
            Request::LeaveGroup(request) => self.leave_group(cx, request),
            Request::OffsetCommit(request) => self.commit_offsets(cx, caller, request),
            Request::OffsetFetch(request) => self.fetch_offsets(request),
            Request::OffsetDelete(request) => self.delete_offsets(cx, request),
            Request::DescribeGroup(group_id) => self.describe_group(group_id),
            Request::ListGroups { states, types } => Answer::Listed(self.groups.list(states, types)),
            Request::DeleteGroup(group_id) => Answer::Failed(self.delete_group(cx, group_id)),
            Request::ConsumerGroupHeartbeat(request) => self.consumer_group_heartbeat(cx, caller, request),
            Request::ConsumerGroupDescribe(group_id) => self.describe_consumer_group(cx, group_id),
        };
        self.outbox.answer(token, answer);
    }

    /// When [`Coordinator::tick`] is due. `None`: not before the next request.
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.retired {
            return None;
        }
        let expiry = (!self.loading && !self.groups.is_empty()).then_some(self.next_expiry);
        self.timers.next_deadline().into_iter().chain(expiry).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, cx: &Context<'_>) {
        if self.retired {
            return;
        }
        while let Some((group, timer)) = self.timers.pop(cx.now) {
            match timer {
                Timer::Join | Timer::Sync | Timer::Session(_) => self.classic_timer(cx, &group, &timer),
                Timer::ConsumerSession(member) => self.consumer_session_expired(cx, &group, &member),
                Timer::ConsumerRebalance(member) => self.consumer_rebalance_expired(cx, &group, &member),
            }
            self.outbox.close();
        }
        if !self.loading && self.next_expiry <= cx.now {
            self.next_expiry = cx.now + Duration::from_millis(cx.config.offsets_retention_check_interval_ms);
            self.expire_offsets(cx);
            self.outbox.close();
        }
    }

    /// The metadata has changed: `deleted` are the names of topics that are gone.
    pub fn metadata_changed(&mut self, cx: &Context<'_>, deleted: &[&str]) {
        if self.loading || self.retired {
            return;
        }
        self.delete_offsets_of_topics(cx, deleted);
        self.outbox.close();
    }

    /// Adds a record to the decision that is being made, and changes hard state by it.
    fn write(&mut self, record: Record) {
        let replayed = self.replay(&record.key, record.value.as_deref());
        assert_eq!(replayed, Ok(()), "decided a record that cannot be replayed: {record:?}");
        self.outbox.write(record);
    }

    fn write_all(&mut self, records: Vec<Record>) {
        for record in records {
            self.write(record);
        }
    }

    /// As [`Coordinator::write_all`], of records that need not be in the log together: however many, no decision is much
    /// larger than a batch.
    fn write_apart(&mut self, cx: &Context<'_>, records: Vec<Record>) {
        let bytes_max = COORDINATOR_BATCH_BYTES.min(cx.decision_bytes_max / 2);
        let mut bytes = 0;
        for record in records {
            bytes += record.len_bytes();
            self.write(record);
            if bytes >= bytes_max {
                self.outbox.close();
                bytes = 0;
            }
        }
    }

    /// Replay: the only way in which hard state changes.
    fn replay(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), ReplayError> {
        match Decoded::read(key, value).map_err(ReplayError)? {
            Decoded::OffsetCommit(key, said) => {
                if said.is_some() {
                    self.groups.simple_if_absent(key.group);
                }
                self.offsets.replay(&key, said);
            }
            Decoded::GroupMetadata(key, said) => match (said, value) {
                (Some(said), Some(value)) => self.groups.replay_classic(key.group, &said, value),
                _ => self.remove_classic(key.group),
            },
            // Written by releases before 4.1, and read by none since.
            Decoded::ConsumerGroupPartitionMetadata(..) => {}
            // Share groups, streams groups, and what is not invented yet: left alone, as by Kafka.
            Decoded::Unknown(_) => {}
            of_consumer_group => self.groups.replay_consumer(&of_consumer_group),
        }
        Ok(())
    }
}

/// Effects.
impl Coordinator {
    /// The next batch to append: at least one decision, more while they fit into `bytes_max`. None while one is being
    /// appended or when there is nothing to append.
    pub fn next_batch(&mut self, bytes_max: usize) -> Option<Batch> {
        self.outbox.next_batch(bytes_max)
    }

    /// The batch is committed: what waited for it may leave.
    pub fn committed(&mut self, batch: &Batch) {
        self.outbox.committed(batch);
    }

    /// The next answer that may leave.
    pub fn pop_ready(&mut self) -> Option<(Token, Answer)> {
        self.outbox.pop_ready()
    }

    /// Bytes of records that wait to be appended. Whoever brings requests waits while they are too many.
    pub fn backlog_bytes(&self) -> usize {
        self.outbox.backlog_bytes()
    }

    /// Requests that have no answer which left.
    pub fn unanswered(&self) -> usize {
        self.outbox.unanswered()
    }

    /// What is being appended takes longer than anybody should wait: whoever waits for it is answered with an error, and the
    /// decisions stand.
    pub fn refuse_held(&mut self, error: ErrorCode) {
        self.outbox.refuse_held(error);
    }

    /// Nobody could be heard for so long.
    pub fn put_off_deadlines(&mut self, by: Duration) {
        self.timers.put_off(by);
    }

    /// An append failed, or the partition is led elsewhere: the state is not that of the log any more. These tokens are
    /// to be answered NOT_COORDINATOR.
    pub fn abandon(self) -> Vec<Token> {
        self.outbox.abandon()
    }

    /// The node stops: whoever is parked is told to look for the coordinator elsewhere, and so is whoever asks from now on.
    /// What was decided is still to be appended.
    pub fn retire(&mut self) {
        self.retired = true;
        self.outbox.refuse_parked(ErrorCode::NotCoordinator);
    }

    /// How many groups there are, by type and state.
    pub fn group_counts(&self) -> GroupCounts {
        self.groups.counts()
    }

    /// How many offsets are committed.
    pub fn offset_count(&self) -> usize {
        self.offsets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::partition_for;

    /// The hashes are Java's `String.hashCode`.
    #[test]
    fn groups_hash_as_in_kafka() {
        assert_eq!(partition_for("", 50), 0);
        assert_eq!(partition_for("a", 50), 97 % 50);
        assert_eq!(partition_for("console-consumer-1", i32::MAX), 35_782_224);
        assert_eq!(partition_for("é🦀", i32::MAX), 1_996_715);
        // The lowest hash has no absolute value; the sign is cut off instead.
        assert_eq!(partition_for("polygenelubricants", 50), 0);
    }
}
