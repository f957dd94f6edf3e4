//! What others may see of a consumer group, and what they may do to its offsets.

use std::cmp::Ordering;
use std::sync::Arc;

use flumen_wire::ErrorCode;

use super::super::assignor::{Assignor, Partitions};
use super::group::{ConsumerGroup, Member};
use super::{Context, Refused};
use crate::types::PartitionId;

/// The state of a consumer group, as ListGroups and ConsumerGroupDescribe say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// Nobody is in it.
    Empty,
    /// Its epoch has risen, and there are no targets for it yet.
    Assigning,
    /// Members are on their way to their targets.
    Reconciling,
    /// Everybody has what it is to have.
    Stable,
}

impl GroupState {
    /// Kafka's name.
    pub fn name(self) -> &'static str {
        match self {
            GroupState::Empty => "Empty",
            GroupState::Assigning => "Assigning",
            GroupState::Reconciling => "Reconciling",
            GroupState::Stable => "Stable",
        }
    }
}

/// A group, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedGroup {
    /// Its state.
    pub state: GroupState,
    /// Its epoch.
    pub group_epoch: i32,
    /// The epoch of its targets.
    pub assignment_epoch: i32,
    /// The assignor that it would use now.
    pub assignor: Assignor,
    /// Its members, by id.
    pub members: Vec<DescribedMember>,
}

/// A member, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedMember {
    /// Its id.
    pub id: Arc<str>,
    /// What it said about itself, and what it has.
    pub member: Member,
    /// What it is to have.
    pub target: Arc<Partitions>,
}

impl ConsumerGroup {
    /// The group's state.
    pub fn state(&self) -> GroupState {
        if self.members.is_empty() {
            GroupState::Empty
        } else if self.epoch.epoch > self.target_epoch.epoch {
            GroupState::Assigning
        } else if self.is_reconciled() {
            GroupState::Stable
        } else {
            GroupState::Reconciling
        }
    }

    /// All that may be seen.
    pub fn describe(&self, context: &Context<'_>) -> DescribedGroup {
        let each = |(id, member): (&Arc<str>, &Member)| DescribedMember {
            id: Arc::clone(id),
            member: member.clone(),
            target: self.target(id),
        };
        DescribedGroup {
            state: self.state(),
            group_epoch: self.epoch.epoch,
            assignment_epoch: self.target_epoch.epoch,
            assignor: self.preferred_assignor(context),
            members: self.members().map(each).collect(),
        }
    }

    /// What somebody may commit who says that it is this member in this epoch. Members of the consumer protocol need
    /// version 9 of OffsetCommit, in which the generation is an epoch.
    pub fn check_commit(
        &self,
        member_id: &str,
        member_epoch: i32,
        version: i16,
    ) -> Result<CommitRight<'_>, Refused> {
        // Neither tools nor consumers that assign themselves may meddle with a group that has members.
        if member_epoch < 0 && self.is_empty() {
            return Ok(CommitRight::Everything);
        }
        let member = self.known(member_id)?;
        if member.metadata.classic.is_none() && version < 9 {
            return Err(Refused::new(
                ErrorCode::UnsupportedVersion,
                "OffsetCommit version 9 or above must be used by members using the modern group protocol",
            ));
        }
        let known = member.current.member_epoch;
        match member_epoch.cmp(&known) {
            Ordering::Equal => Ok(CommitRight::Everything),
            Ordering::Less => Ok(CommitRight::OfEpoch { member, member_epoch }),
            Ordering::Greater => Err(Refused::new(
                wrong_epoch(member),
                format!("Received member epoch {member_epoch} is newer than current member epoch {known}."),
            )),
        }
    }

    /// Whether who says that it is this member in this epoch may read offsets; tools say nothing.
    pub fn check_fetch(&self, member_id: Option<&str>, member_epoch: i32) -> Result<(), Refused> {
        match member_id {
            None if member_epoch < 0 => Ok(()),
            _ => check_epoch(self.known(member_id.unwrap_or_default())?, member_epoch),
        }
    }

    fn known(&self, member_id: &str) -> Result<&Member, Refused> {
        self.member(member_id).ok_or_else(|| self.unknown_member(member_id))
    }

    pub(super) fn unknown_member(&self, member_id: &str) -> Refused {
        Refused::new(
            ErrorCode::UnknownMemberId,
            format!("Member {member_id} is not a member of group {}.", self.id),
        )
    }
}

fn check_epoch(member: &Member, received: i32) -> Result<(), Refused> {
    let expected = member.current.member_epoch;
    if received == expected {
        return Ok(());
    }
    let text =
        format!("The received member epoch {received} does not match the expected member epoch {expected}.");
    Err(Refused::new(wrong_epoch(member), text))
}

/// What a member is told that comes in another epoch than its own, in the words of its protocol.
fn wrong_epoch(member: &Member) -> ErrorCode {
    match member.metadata.classic {
        Some(_) => ErrorCode::IllegalGeneration,
        None => ErrorCode::StaleMemberEpoch,
    }
}

/// Of which partitions somebody may commit offsets.
#[derive(Clone, Copy, Debug)]
pub enum CommitRight<'a> {
    /// Of any.
    Everything,
    /// A member that has moved on, but did not know so yet: of those that it has had since that epoch, or longer
    /// (KIP-1251).
    OfEpoch {
        /// The member.
        member: &'a Member,
        /// The epoch that it said.
        member_epoch: i32,
    },
}

impl CommitRight<'_> {
    /// Whether it covers a partition.
    pub fn check(&self, partition: PartitionId) -> Result<(), ErrorCode> {
        match self {
            CommitRight::Everything => Ok(()),
            CommitRight::OfEpoch { member, member_epoch } => match member.current.since.of(partition) {
                Some(since) if since <= *member_epoch => Ok(()),
                _ => Err(wrong_epoch(member)),
            },
        }
    }
}
