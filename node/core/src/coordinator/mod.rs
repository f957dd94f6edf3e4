//! The group coordinator.

pub mod assignor;
