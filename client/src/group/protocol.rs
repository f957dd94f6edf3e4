//! What members of a consumer group tell each other through the coordinator, which does not look into it: Kafka's
//! `ConsumerProtocolSubscription` and `ConsumerProtocolAssignment`.
//!
//! Both begin with a version; a reader takes what it knows of a newer one. Written in version 2 of the subscription (with what
//! the member owns, and since when) and version 0 of the assignment, which every client reads.

use crate::metadata::{TopicPartition, by_topic};
use flumen_wire::codec::{Decode, DecodeError, Encode, Reader, Sink, Writer};
use flumen_wire::group::consumer_protocol_assignment::{self, ConsumerProtocolAssignment};
use flumen_wire::group::consumer_protocol_subscription::{self, ConsumerProtocolSubscription};
use std::rc::Rc;

/// The versions that are written.
const SUBSCRIPTION_VERSION: i16 = 2;
const ASSIGNMENT_VERSION: i16 = 0;
/// The newest version of either that is known here.
const NEWEST: i16 = 3;

/// What a member wants and has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    /// Topics, sorted.
    pub topics: Vec<Rc<str>>,
    /// What it had in the generation before.
    pub owned: Vec<TopicPartition>,
    /// That generation; -1 where the member does not say.
    pub generation: i32,
}

/// What a member gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// In the order of topic and number.
    pub partitions: Vec<TopicPartition>,
}

impl Subscription {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let owned = by_topic(self.owned.iter().map(|at| (at, ())));
        let body = ConsumerProtocolSubscription {
            topics: self.topics.iter().map(|topic| &**topic).collect(),
            owned_partitions: owned
                .iter()
                .map(|(topic, partitions)| consumer_protocol_subscription::TopicPartition {
                    topic,
                    partitions: numbers(partitions),
                })
                .collect(),
            generation_id: self.generation,
            ..Default::default()
        };
        encode(SUBSCRIPTION_VERSION, &body)
    }

    /// From bytes of any version.
    pub fn decode(bytes: &[u8]) -> Result<Subscription, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = reader.i16()?.min(NEWEST);
        let body = ConsumerProtocolSubscription::decode(&mut reader, version)?;
        let mut topics: Vec<Rc<str>> = body.topics.into_iter().map(Rc::from).collect();
        topics.sort();
        topics.dedup();
        let owned = body.owned_partitions.into_iter().flat_map(|one| partitions(one.topic, one.partitions));
        Ok(Subscription { topics, owned: owned.collect(), generation: body.generation_id })
    }
}

impl Assignment {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let assigned = by_topic(self.partitions.iter().map(|at| (at, ())));
        let body = ConsumerProtocolAssignment {
            assigned_partitions: assigned
                .iter()
                .map(|(topic, partitions)| consumer_protocol_assignment::TopicPartition {
                    topic,
                    partitions: numbers(partitions),
                })
                .collect(),
            ..Default::default()
        };
        encode(ASSIGNMENT_VERSION, &body)
    }

    /// From bytes of any version. No bytes are an empty assignment.
    pub fn decode(bytes: &[u8]) -> Result<Assignment, DecodeError> {
        if bytes.is_empty() {
            return Ok(Assignment::default());
        }
        let mut reader = Reader::new(bytes);
        let version = reader.i16()?.min(NEWEST);
        let body = ConsumerProtocolAssignment::decode(&mut reader, version)?;
        let assigned = body.assigned_partitions.into_iter();
        let mut partitions: Vec<_> = assigned.flat_map(|one| partitions(one.topic, one.partitions)).collect();
        partitions.sort();
        Ok(Assignment { partitions })
    }
}

fn encode(version: i16, body: &impl Encode) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.i16(version);
    body.write(&mut writer, version);
    writer.into_bytes()
}

fn numbers(partitions: &[(i32, ())]) -> Vec<i32> {
    partitions.iter().map(|(partition, ())| *partition).collect()
}

fn partitions(topic: &str, numbers: Vec<i32>) -> impl Iterator<Item = TopicPartition> + use<> {
    let topic: Rc<str> = topic.into();
    numbers.into_iter().map(move |partition| TopicPartition { topic: topic.clone(), partition })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_come_back_as_written() {
        let partitions =
            vec![TopicPartition::new("a", 0), TopicPartition::new("a", 7), TopicPartition::new("b", 1)];
        let assignment = Assignment { partitions: partitions.clone() };
        assert_eq!(Assignment::decode(&assignment.encode()), Ok(assignment));
        assert_eq!(Assignment::decode(&[]), Ok(Assignment::default()));
        let subscription =
            Subscription { topics: vec!["a".into(), "b".into()], owned: partitions, generation: 9 };
        assert_eq!(Subscription::decode(&subscription.encode()), Ok(subscription));
    }

    #[test]
    fn an_old_subscription_and_a_newer_one_are_read() {
        // Version 0 of one topic: no owned partitions. As the Java client writes it.
        let old = [0, 0, 0, 0, 0, 1, 0, 1, b't', 0xff, 0xff, 0xff, 0xff];
        let read = Subscription::decode(&old).expect("read");
        assert_eq!((read.topics.len(), read.owned.len(), read.generation), (1, 0, -1));
        // Version 3 adds a rack behind all that.
        let mut newer = Subscription { topics: vec!["t".into()], owned: vec![], generation: 4 }.encode();
        newer[1] = 3;
        newer.extend_from_slice(&[0, 1, b'r']);
        assert_eq!(Subscription::decode(&newer).expect("read").generation, 4);
        assert!(Subscription::decode(&old[..7]).is_err());
    }
}
