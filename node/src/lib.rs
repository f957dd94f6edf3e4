//! The driver: what a node does, as opposed to what it decides.
//!
//! One glommio executor for each shard ([`runtime`]); effects of the machines of `flumen-core` are carried out
//! here. Only [`sys`] holds `unsafe`; where glommio may be named says `GLOMMIO_PLACES` in `tests/tests/tidiness.rs`.
pub mod admin;
pub mod cli;
pub mod config;
pub mod disk;
mod handlers;
pub mod kernel;
pub mod mailbox;
mod net;
pub mod probe;
pub mod runtime;
pub mod server;
mod shard;
pub mod signals;
mod startup;
pub mod sys;
