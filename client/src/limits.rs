//! Every bound of the client.

use std::time::Duration;

/// The largest response that is taken: above what any fetch asks for, plus one batch of the largest usual size.
pub const RESPONSE_BYTES_MAX: usize = 256 << 20;
/// Requests that may be unanswered on one connection.
pub const IN_FLIGHT_MAX: usize = 1024;
/// What is read from a socket at once, and the memory that small responses share.
pub const READ_CHUNK: usize = 256 << 10;
/// Requests are gathered in one buffer up to so many bytes; larger ones get their own.
pub const WRITE_CHUNK: usize = 64 << 10;
/// Room left before a batch for the head of its request: a header, a topic name, lengths.
pub const HEADROOM: usize = 640;
/// The longest client id, so that a head fits its room.
pub const CLIENT_ID_BYTES_MAX: usize = 128;

/// How long a connection attempt may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses between attempts: the first, and what they grow to.
pub const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// See [`BACKOFF_MIN`].
pub const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Batches of an idempotent producer that may be in flight for one partition: brokers remember so many.
pub const BATCHES_IN_FLIGHT_MAX: usize = 5;
/// Batch buffers that a producer keeps for new batches.
pub const SPARE_BUFFERS_MAX: usize = 16;
/// Bytes of batches in one Produce request, unless one batch alone is larger.
pub const PRODUCE_BYTES_MAX: usize = 1 << 20;

const _: () = assert!(HEADROOM > CLIENT_ID_BYTES_MAX + 249 + 64);
