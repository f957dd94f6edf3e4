//! What members of a consumer group tell each other through the coordinator, which does not look into it: Kafka's
//! `ConsumerProtocolSubscription` and `ConsumerProtocolAssignment`.
//!
//! Both begin with a version; a reader takes what it knows of a newer one. Written in version 2 of the subscription (with what
//! the member owns, and since when) and version 0 of the assignment, which every client reads.

use crate::metadata::{TopicPartition, by_topic};
use flumen_wire::codec::{DecodeError, Reader, Sink, Writer};
use std::rc::Rc;

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
    /// As bytes, in version 2.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.i16(2);
        writer.len(Some(self.topics.len()), false);
        for topic in &self.topics {
            writer.string(topic, false);
        }
        writer.nullable_bytes(None, false);
        write_partitions(&mut writer, &self.owned);
        writer.i32(self.generation);
        writer.into_bytes()
    }

    /// From bytes of any version.
    pub fn decode(bytes: &[u8]) -> Result<Subscription, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = reader.i16()?;
        let mut topics: Vec<Rc<str>> = reader.array(false, 2, |reader| reader.string(false).map(Rc::from))?;
        topics.sort();
        topics.dedup();
        reader.nullable_bytes(false)?;
        let owned = if version >= 1 { read_partitions(&mut reader)? } else { Vec::new() };
        let generation = if version >= 2 { reader.i32()? } else { -1 };
        Ok(Subscription { topics, owned, generation })
    }
}

impl Assignment {
    /// As bytes, in version 0.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.i16(0);
        write_partitions(&mut writer, &self.partitions);
        writer.nullable_bytes(None, false);
        writer.into_bytes()
    }

    /// From bytes of any version. No bytes are an empty assignment.
    pub fn decode(bytes: &[u8]) -> Result<Assignment, DecodeError> {
        if bytes.is_empty() {
            return Ok(Assignment::default());
        }
        let mut reader = Reader::new(bytes);
        reader.i16()?;
        let mut partitions = read_partitions(&mut reader)?;
        partitions.sort();
        Ok(Assignment { partitions })
    }
}

fn write_partitions(writer: &mut Writer, partitions: &[TopicPartition]) {
    let topics = by_topic(partitions.iter().map(|at| (at, ())));
    writer.len(Some(topics.len()), false);
    for (topic, partitions) in topics {
        writer.string(topic, false);
        writer.len(Some(partitions.len()), false);
        for (partition, ()) in partitions {
            writer.i32(partition);
        }
    }
}

fn read_partitions(reader: &mut Reader<'_>) -> Result<Vec<TopicPartition>, DecodeError> {
    let topics = reader.array(false, 6, |reader| {
        let topic: Rc<str> = reader.string(false)?.into();
        Ok((topic, reader.array(false, 4, |reader| reader.i32())?))
    })?;
    let of = |(topic, partitions): (Rc<str>, Vec<i32>)| {
        partitions.into_iter().map(move |partition| TopicPartition { topic: topic.clone(), partition })
    };
    Ok(topics.into_iter().flat_map(of).collect())
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
