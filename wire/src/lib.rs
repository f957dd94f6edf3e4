//! The Kafka protocol as bytes: frames, messages, record batches. No sockets, no clock.

pub mod api;
pub mod batch;
pub mod codec;
pub mod compression;
pub mod crc;
pub mod error_code;
pub mod frame;
pub mod group;
pub mod messages;

pub use error_code::ErrorCode;
pub use messages::ApiKey;
