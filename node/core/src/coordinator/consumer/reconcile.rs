//! One step of a member from what it has towards what it is to have.
//!
//! ```text
//!                    ┌──────────── a newer target ───────────┐
//!                    v                                       │
//!   ┌── has to give something up? ── yes ──> UnrevokedPartitions: the member keeps its epoch, and is
//!   │            │ no                        told what it has left. On when it says that it gave it up
//!   │            v
//!   │   epoch = target epoch; gets what is free of what it lacks
//!   │            │
//!   │            ├── something is not free ──> UnreleasedPartitions: gets it once others gave it up
//!   │            └── has all ──> Stable ──────────────────────────────────┘
//! ```
//!
//! Invariants: a partition is added only if nobody else may own it; what was told before leaves the assignment only by way
//! of `pending_revocation`, unless the member has said that it does not own it.

use super::super::assignor::Partitions;
use super::change::{CurrentAssignment, MemberState};
use super::group::ConsumerGroup;

impl ConsumerGroup {
    /// What a member has after one step; what it had where there is none to take. `owned` is what it says that it owns,
    /// if it says it.
    pub(super) fn reconciled(
        &self,
        member_id: &str,
        current: &CurrentAssignment,
        owned: Option<&Partitions>,
    ) -> CurrentAssignment {
        let epoch = current.member_epoch;
        match current.state {
            MemberState::Stable if epoch == self.target_epoch.epoch => current.clone(),
            MemberState::Stable | MemberState::UnreleasedPartitions => {
                self.next_step(member_id, current, epoch, owned)
            }
            MemberState::UnrevokedPartitions | MemberState::Unknown => match owned {
                Some(owned) if owned.is_disjoint(&current.pending_revocation) => {
                    self.next_step(member_id, current, epoch.saturating_add(1), Some(owned))
                }
                _ => current.clone(),
            },
        }
    }

    /// The step of a member that owes nothing any more, in this epoch unless it can move on to the target's.
    fn next_step(
        &self,
        member_id: &str,
        current: &CurrentAssignment,
        epoch: i32,
        owned: Option<&Partitions>,
    ) -> CurrentAssignment {
        let target = self.target(member_id);
        let kept = current.assigned.intersection(&target);
        let to_revoke = current.assigned.difference(&target);
        let still_owned = |revoked: &Partitions| owned.is_none_or(|owned| !owned.is_disjoint(revoked));
        if !to_revoke.is_empty() && still_owned(&to_revoke) {
            return CurrentAssignment {
                member_epoch: epoch.min(self.target_epoch.epoch),
                previous_member_epoch: current.member_epoch,
                state: MemberState::UnrevokedPartitions,
                since: current.since.carried(kept.iter().chain(to_revoke.iter()), epoch),
                assigned: kept,
                pending_revocation: to_revoke,
            };
        }
        let lacking = target.difference(&kept);
        let free =
            lacking.filtered(|partition| self.owner(&partition).is_none_or(|owner| &**owner == member_id));
        let has_all = free.len() == lacking.len();
        let assigned = kept.union(&free);
        let next = CurrentAssignment {
            member_epoch: self.target_epoch.epoch,
            previous_member_epoch: current.member_epoch,
            state: if has_all { MemberState::Stable } else { MemberState::UnreleasedPartitions },
            since: current.since.carried(assigned.iter(), self.target_epoch.epoch),
            assigned,
            pending_revocation: Partitions::new(),
        };
        // Waiting for the same as before is no step.
        let epochs = |of: &CurrentAssignment| CurrentAssignment { previous_member_epoch: 0, ..of.clone() };
        if epochs(&next) == epochs(current) { current.clone() } else { next }
    }
}
