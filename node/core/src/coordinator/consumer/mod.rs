//! Consumer groups: the protocol in which the broker assigns (KIP-848).
//!
//! A member sends heartbeats, and each answer may tell it what to own from now on. Three epochs order what happens:
//!
//! ```text
//!   a join, a leave, a topic that grew ──> group epoch + 1
//!                                             │  the assignor (next heartbeat of anybody)
//!                                             v
//!                                          target epoch = group epoch; a target for each member
//!                                             │  reconciliation (heartbeats of that member)
//!                                             v
//!                                          member epoch = target epoch: it gave up what it should not have,
//!                                          and got what was free of what it should
//! ```
//!
//! Decide, then replay: [`ConsumerGroup::heartbeat`] and its like look at the group and return records, an answer and
//! timers to set; [`ConsumerGroup::replay`] alone changes a group, live and at load.
//!
//! Invariants:
//! - **no partition is told to a member while another may own it**: owned is what a member was told, until it says that
//!   it gave it up, or is fenced. [`ConsumerGroup`] keeps the owner of each partition, and there is one at most;
//! - replay takes records in any order in which a compacted log can hold them, and never fails;
//! - a member that does not say what it owns is taken to own all that it was told;
//! - no clock and no randomness: the time and new member ids are arguments.
//!
//! | file | what is in it |
//! |---|---|
//! | `change` | what is kept |
//! | `group` | the state, and replay |
//! | `heartbeat` | join, stay, leave; static members; fencing |
//! | `target` | epochs, regular expressions, running the assignor |
//! | `reconcile` | the step of one member towards its target |
//! | `expression` | regular expressions against topics |
//! | `classic`, `migrate` | members that speak the classic protocol; from one kind of group to the other |
//! | `describe` | what others may see |
//! | `requests`, `encode` | the group within its coordinator, and in the log |

mod change;
mod classic;
mod describe;
mod encode;
mod expression;
mod group;
mod heartbeat;
mod migrate;
mod reconcile;
mod requests;
mod target;

use std::sync::Arc;

use flumen_wire::ErrorCode;

use super::assignor::{Assignor, Partitions};
use crate::metadata::Image;

pub use change::{
    AssignmentEpochs, Change, ClassicMember, CurrentAssignment, GroupEpoch, MemberMetadata, MemberState,
    ResolvedExpression, TargetEpoch,
};
pub use classic::{ClassicJoin, ClassicJoined, ClassicSynced};
pub use describe::{CommitRight, DescribedGroup, DescribedMember, GroupState};
pub use group::{ConsumerGroup, Member};
pub use heartbeat::{Client, Heartbeat, HeartbeatAnswer, LEAVE_EPOCH, LEAVE_STATIC_EPOCH};

/// The settings of a group that are in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSettings {
    /// How often members are told to send heartbeats.
    pub heartbeat_interval_ms: i32,
    /// After how long a silence they are gone.
    pub session_timeout_ms: i32,
    /// Least time between two assignments; 0: each heartbeat may bring one.
    pub assignment_interval_ms: i32,
    /// Assignors that may be asked for; the first one is for those who ask for none.
    pub assignors: Vec<Assignor>,
    /// Most members.
    pub max_size: usize,
}

/// What decisions are made from, besides the group.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The topics that there are.
    pub image: &'a Image,
    /// The group's settings.
    pub settings: &'a GroupSettings,
    /// Milliseconds since the Unix epoch.
    pub now_ms: i64,
}

/// Records to append, the answer to give once they are durable, and timers to set at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<R> {
    /// In the order in which they are to be replayed; they go into the log together.
    pub records: Vec<Change>,
    /// The answer.
    pub answer: R,
    /// Timers set and stopped.
    pub timers: Vec<TimerChange>,
}

/// A timer of a member. Setting one replaces the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimerChange {
    /// The member has to be heard of within this time, or [`ConsumerGroup::session_expired`] is asked.
    Session {
        /// The member.
        member_id: Arc<str>,
        /// Milliseconds from now.
        after_ms: i32,
    },
    /// The member has to give up partitions within this time, or [`ConsumerGroup::rebalance_expired`] is asked.
    Rebalance {
        /// The member.
        member_id: Arc<str>,
        /// Milliseconds from now.
        after_ms: i32,
    },
    /// A member that speaks the classic protocol has to join within this time, or is asked after likewise. A timer that
    /// runs already stays.
    RebalanceUnlessSet {
        /// The member.
        member_id: Arc<str>,
        /// Milliseconds from now.
        after_ms: i32,
    },
    /// Nothing more has to be given up.
    StopRebalance {
        /// The member.
        member_id: Arc<str>,
    },
    /// The member is gone, and all its timers.
    Stop {
        /// The member.
        member_id: Arc<str>,
    },
}

/// A request that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Kafka's code.
    pub code: ErrorCode,
    /// What is wrong, for people; Kafka's words where it has any.
    pub message: String,
}

impl Refused {
    pub(in crate::coordinator) fn new(code: ErrorCode, message: impl Into<String>) -> Refused {
        Refused { code, message: message.into() }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Refused {}

/// The partitions that a request or a record lists.
fn partitions_of<'a>(topics: impl IntoIterator<Item = (&'a [u8; 16], &'a [i32])>) -> Partitions {
    let each = |(topic, partitions): (&'a [u8; 16], &'a [i32])| {
        let topic = crate::types::TopicId(*topic);
        partitions.iter().map(move |partition| crate::types::PartitionId { topic, partition: *partition })
    };
    topics.into_iter().flat_map(each).collect()
}
