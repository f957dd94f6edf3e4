//! A client of the Kafka protocol, for commands and load generators. One thread owns all that it uses: nothing here
//! is `Send`, and nothing locks.
//!
//! ```text
//!   Admin   Producer   Consumer   GroupMember      what users call; retries, routing, batching
//!      └───────┴──────────┴───────────┘
//!                   Cluster                        metadata, one link for each node and purpose, coordinators
//!                    Link                          one socket: many requests in flight, versions, deadlines
//!                 Connection                       sans-IO: frames, correlation
//!                   runtime                        io_uring (glommio), or epoll; the only place that names them
//! ```
//!
//! Commands stand on the upper row. A load generator finds its way with [`Cluster`] and then drives a [`Pipe`] itself,
//! with batches that are built where they are sent from ([`producer::request`]).
//!
//! Invariants:
//! * Memory is bounded: what is sent and not answered by [`limits::IN_FLIGHT_MAX`] per link and the producer's
//!   `buffer_bytes_max`, what is received by [`limits::RESPONSE_BYTES_MAX`] per frame, which grows as bytes arrive.
//! * Every request has a deadline. A connection whose oldest answer is overdue is closed: answers come in order, so
//!   nothing behind it can be believed to come.
//! * Every [`Error`] says what happened, where, and what to do about it.

pub mod admin;
pub mod api;
pub mod cluster;
pub mod connection;
pub mod consumer;
pub mod error;
pub mod group;
pub mod limits;
pub mod link;
pub mod metadata;
pub mod pipe;
pub mod producer;
pub mod runtime;
pub mod versions;

pub use cluster::{Cluster, Lane, Settings};
pub use error::Error;
pub use link::Link;
pub use pipe::Pipe;
