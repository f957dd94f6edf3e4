//! Every decision of a node, as pure state machines.
#![forbid(unsafe_code)]
pub mod config;
pub mod coordinator;
pub mod epochs;
pub mod fetch;
pub mod journal;
pub mod limits;
pub mod log;
pub mod metadata;
pub mod producer;
pub mod types;
