//! What a client may do, as the bit fields in which Metadata, DescribeTopicPartitions, DescribeCluster and the
//! descriptions of groups say it (KIP-430).
//!
//! There is no authorizer, so everybody may do everything: the answer is every operation that the kind of resource
//! has, as Kafka answers then.

/// Codes of ACL operations, on the wire and as bit numbers.
mod operation {
    pub(super) const READ: u32 = 3;
    pub(super) const WRITE: u32 = 4;
    pub(super) const CREATE: u32 = 5;
    pub(super) const DELETE: u32 = 6;
    pub(super) const ALTER: u32 = 7;
    pub(super) const DESCRIBE: u32 = 8;
    pub(super) const CLUSTER_ACTION: u32 = 9;
    pub(super) const DESCRIBE_CONFIGS: u32 = 10;
    pub(super) const ALTER_CONFIGS: u32 = 11;
    pub(super) const IDEMPOTENT_WRITE: u32 = 12;
}
use operation::*;

/// The field's value where the client did not ask.
pub(crate) const NOT_ASKED: i32 = i32::MIN;

/// Every operation on a topic.
pub(crate) const TOPIC: i32 =
    bits(&[READ, WRITE, CREATE, DELETE, ALTER, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS]);

/// Every operation on the cluster.
pub(crate) const CLUSTER: i32 =
    bits(&[CREATE, ALTER, DESCRIBE, CLUSTER_ACTION, DESCRIBE_CONFIGS, ALTER_CONFIGS, IDEMPOTENT_WRITE]);

/// Every operation on a group.
pub(crate) const GROUP: i32 = bits(&[READ, DELETE, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS]);

/// `operations` for a client that asked for them.
pub(crate) const fn when_asked(asked: bool, operations: i32) -> i32 {
    if asked { operations } else { NOT_ASKED }
}

const fn bits(operations: &[u32]) -> i32 {
    let mut field = 0;
    let mut at = 0;
    while at < operations.len() {
        field |= 1 << operations[at];
        at += 1;
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_those_that_kafka_sends_without_an_authorizer() {
        assert_eq!(TOPIC, 3576);
        assert_eq!(CLUSTER, 8096);
        assert_eq!(GROUP, 3400);
        assert_eq!(when_asked(false, TOPIC), i32::MIN);
        assert_eq!(when_asked(true, TOPIC), TOPIC);
    }
}
