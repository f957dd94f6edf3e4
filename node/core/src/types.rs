//! Newtypes of the domain. Plain data: no behaviour beyond arithmetic and display.
//!
//! *Offset* is a place in a log, *position* a place in a file. An end offset is exclusive: it is the
//! offset that the next record will get.

use std::fmt;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

newtype!(
    /// A place in a partition's log.
    Offset(i64)
);
newtype!(
    /// The reign of one leader over one partition (KIP-101). Rises by one with each election.
    LeaderEpoch(i32)
);
newtype!(
    /// A node of the cluster; `broker.id` to Kafka's clients.
    NodeId(i32)
);
newtype!(
    /// Identity of an idempotent or transactional producer (KIP-98).
    ProducerId(i64)
);
newtype!(
    /// Fences older instances of the same producer (KIP-98).
    ProducerEpoch(i16)
);
newtype!(
    /// Milliseconds since the Unix epoch, as record batches carry it; -1 where there is none.
    Timestamp(i64)
);
newtype!(
    /// Number of one start of one node on one data folder; made durable before anything else is written.
    Incarnation(u64)
);
newtype!(
    /// Log sequence number: counts the groups of one journal within one incarnation, from 1.
    Lsn(u64)
);
newtype!(
    /// Index of a shard (a core) within a node.
    ShardId(u16)
);

impl Offset {
    /// The offset `count` records further on. `None` where the log would pass `i64::MAX`.
    pub fn checked_add(self, count: i64) -> Option<Offset> {
        self.0.checked_add(count).map(Offset)
    }
}

impl Timestamp {
    /// What Kafka says where a batch carries no timestamp.
    pub const NONE: Timestamp = Timestamp(-1);
}

/// A topic's identity, never used again after deletion (KIP-516).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(pub [u8; 16]);

impl TopicId {
    /// The id that stands for "no id" on the wire.
    pub const ZERO: TopicId = TopicId([0; 16]);
}

/// As Kafka prints it: URL-safe base64 without padding, 22 characters.
impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let bits = u128::from_be_bytes(self.0);
        for i in 0..22 {
            let shift = 122 - 6 * i;
            let sextet = if shift >= 0 { bits >> shift } else { bits << -shift } & 63;
            write!(f, "{}", ALPHABET[sextet as usize] as char)?;
        }
        Ok(())
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One partition of one topic, by identity (not by name, which may be used again).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId {
    /// The topic.
    pub topic: TopicId,
    /// The partition's index in the topic, from 0.
    pub partition: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_id_prints_as_kafka_does() {
        assert_eq!(TopicId::ZERO.to_string(), "AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(TopicId([0xff; 16]).to_string(), "_____________________w");
    }
}
