//! The Kafka protocol as bytes: frames, messages, record batches. No sockets, no clock.
pub mod batch;
pub mod compression;
pub mod crc;
