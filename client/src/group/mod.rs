//! Being a member of a group, by the classic protocol: every consumer of the group agrees on who reads what.

pub mod assignor;
pub mod member;
pub mod protocol;

pub use assignor::Assignor;
pub use member::{GroupMember, GroupSettings};
