//! DescribeTopicPartitions (key 75): topics in pages, sorted by name. KIP-966.

use std::collections::BTreeSet;
use std::rc::Rc;

use flumen_core::metadata::{Image, Partition, Topic, check_topic_name, is_internal_topic};
use flumen_core::types::NodeId;
use flumen_wire::ErrorCode;
use flumen_wire::messages::describe_topic_partitions_request::DescribeTopicPartitionsRequest;
use flumen_wire::messages::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponse, DescribeTopicPartitionsResponsePartition,
    DescribeTopicPartitionsResponseTopic,
};

use super::authorized_operations as operations;
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

pub(super) fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: DescribeTopicPartitionsRequest<'_> = request.body()?;
    let image = shard.image();
    let limit_max = shard.config().max_request_partition_size_limit as usize;
    request.respond(&answer(&image, &body, limit_max))
}

fn answer<'a>(
    image: &'a Image,
    body: &DescribeTopicPartitionsRequest<'a>,
    limit_max: usize,
) -> DescribeTopicPartitionsResponse<'a> {
    let names: BTreeSet<&str> = body.topics.iter().map(|topic| topic.name).collect();
    let (first, from) = match &body.cursor {
        None => ("", 0),
        Some(cursor) => match usize::try_from(cursor.partition_index) {
            // The cursor is a place in what is asked for.
            Ok(from) if names.is_empty() || names.contains(cursor.topic_name) => (cursor.topic_name, from),
            _ => return refusal_of_all(&names),
        },
    };
    let limit = usize::try_from(body.response_partition_limit).unwrap_or(0).min(limit_max).max(1);
    let mut page = Page { response: DescribeTopicPartitionsResponse::default(), left: limit };
    let start = |name: &str| if name == first { from } else { 0 };
    if names.is_empty() {
        for topic in image.topics_from(first) {
            if !page.add(topic, start(&topic.name)) {
                break;
            }
        }
    } else {
        for &name in names.range(first..) {
            let more = match image.topic(name) {
                Some(topic) => page.add(topic, start(name)),
                None => page.add_unknown(name),
            };
            if !more {
                break;
            }
        }
    }
    page.response
}

/// The request says where to go on, and there is no such place.
fn refusal_of_all<'a>(names: &BTreeSet<&'a str>) -> DescribeTopicPartitionsResponse<'a> {
    let topics = names.iter().map(|name| DescribeTopicPartitionsResponseTopic {
        error_code: ErrorCode::InvalidRequest.code(),
        name: Some(name),
        ..DescribeTopicPartitionsResponseTopic::default()
    });
    DescribeTopicPartitionsResponse { topics: topics.collect(), ..DescribeTopicPartitionsResponse::default() }
}

/// A response that fills up.
struct Page<'a> {
    response: DescribeTopicPartitionsResponse<'a>,
    /// Partitions that it has room for.
    left: usize,
}

impl<'a> Page<'a> {
    /// Adds a topic's partitions from `from` on. `false` when the page is full, and says where the next begins.
    fn add(&mut self, topic: &'a Topic, from: usize) -> bool {
        if self.left == 0 {
            return self.end(&topic.name, 0);
        }
        let count = topic.partitions.len();
        let from = from.min(count);
        let to = (from + self.left).min(count);
        self.left -= to - from;
        self.response.topics.push(DescribeTopicPartitionsResponseTopic {
            error_code: ErrorCode::None.code(),
            name: Some(&topic.name),
            topic_id: topic.id.0,
            is_internal: is_internal_topic(&topic.name),
            partitions: (from..to).map(|index| partition(index, &topic.partitions[index])).collect(),
            topic_authorized_operations: operations::TOPIC,
        });
        to == count || self.end(&topic.name, to)
    }

    /// Adds a topic that is not there. It takes the room of one partition, so that names alone cannot make a
    /// response long.
    fn add_unknown(&mut self, name: &'a str) -> bool {
        if self.left == 0 {
            return self.end(name, 0);
        }
        self.left -= 1;
        let code = match check_topic_name(name) {
            Ok(()) => ErrorCode::UnknownTopicOrPartition,
            Err(_) => ErrorCode::InvalidTopicException,
        };
        self.response.topics.push(DescribeTopicPartitionsResponseTopic {
            error_code: code.code(),
            name: Some(name),
            is_internal: is_internal_topic(name),
            topic_authorized_operations: operations::TOPIC,
            ..DescribeTopicPartitionsResponseTopic::default()
        });
        true
    }

    fn end(&mut self, topic_name: &'a str, partition: usize) -> bool {
        let partition_index = i32::try_from(partition).unwrap_or(i32::MAX);
        self.response.next_cursor = Some(Cursor { topic_name, partition_index });
        false
    }
}

fn partition(index: usize, partition: &Partition) -> DescribeTopicPartitionsResponsePartition {
    let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
    let leader_id = partition.leader.map(|node| node.0);
    DescribeTopicPartitionsResponsePartition {
        error_code: match leader_id {
            Some(_) => ErrorCode::None.code(),
            None => ErrorCode::LeaderNotAvailable.code(),
        },
        partition_index: i32::try_from(index).unwrap_or(i32::MAX),
        leader_id: leader_id.unwrap_or(-1),
        leader_epoch: partition.leader_epoch.0,
        replica_nodes: ids(&partition.replicas),
        isr_nodes: ids(&partition.isr),
        eligible_leader_replicas: Some(Vec::new()),
        last_known_elr: Some(Vec::new()),
        offline_replicas: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use flumen_core::metadata::{PartitionRecord, Record};
    use flumen_core::types::{LeaderEpoch, TopicId};
    use flumen_wire::messages::describe_topic_partitions_request::{Cursor as From, TopicRequest};

    use super::*;

    /// Topics `a`, `b`, `c` with 3, 2 and 1 partitions.
    fn image() -> Image {
        let mut image = Image::default();
        for (byte, name, count) in [(1, "a", 3), (2, "b", 2), (3, "c", 1)] {
            let topic = TopicId([byte; 16]);
            image.replay(&Record::Topic { id: topic, name: name.to_owned() }).expect("fits");
            for partition in 0..count {
                let record = PartitionRecord {
                    topic,
                    partition,
                    replicas: vec![NodeId(1)],
                    isr: vec![NodeId(1)],
                    leader: Some(NodeId(1)),
                    leader_epoch: LeaderEpoch(4),
                    partition_epoch: 0,
                };
                image.replay(&Record::Partition(record)).expect("fits");
            }
        }
        image
    }

    /// The page as text: topics with their partitions or errors, and where the next page begins.
    fn page(topics: &[&str], limit: i32, cursor: Option<(&str, i32)>) -> String {
        let image = image();
        let body = DescribeTopicPartitionsRequest {
            topics: topics.iter().map(|name| TopicRequest { name }).collect(),
            response_partition_limit: limit,
            cursor: cursor.map(|(topic_name, partition_index)| From { topic_name, partition_index }),
        };
        let answer = answer(&image, &body, 5);
        let mut text = String::new();
        for topic in &answer.topics {
            let name = topic.name.expect("named");
            let indexes: Vec<i32> = topic.partitions.iter().map(|p| p.partition_index).collect();
            text += &match ErrorCode::from_code(topic.error_code) {
                ErrorCode::None => format!("{name}{indexes:?} "),
                error => format!("{name}:{error} "),
            };
        }
        if let Some(next) = &answer.next_cursor {
            text += &format!("next {}-{}", next.topic_name, next.partition_index);
        }
        text
    }

    #[test]
    fn pages_follow_each_other() {
        assert_eq!(page(&[], 100, None), "a[0, 1, 2] b[0, 1] next c-0");
        assert_eq!(page(&[], 100, Some(("c", 0))), "c[0] ");
        assert_eq!(page(&[], 2, None), "a[0, 1] next a-2");
        assert_eq!(page(&[], 2, Some(("a", 2))), "a[2] b[0] next b-1");
        assert_eq!(page(&[], 2, Some(("b", 1))), "b[1] c[0] ");
        assert_eq!(page(&[], 0, None), "a[0] next a-1");
        assert_eq!(page(&[], -7, Some(("aa", 1))), "b[0] next b-1");
    }

    #[test]
    fn named_topics_come_sorted_and_once() {
        assert_eq!(page(&["c", "a", "c"], 5, None), "a[0, 1, 2] c[0] ");
        assert_eq!(page(&["c", "a"], 5, Some(("c", 0))), "c[0] ");
        let errors = "a b:INVALID_TOPIC_EXCEPTION c[0] x:UNKNOWN_TOPIC_OR_PARTITION ";
        assert_eq!(page(&["x", "c", "a b"], 5, None), errors);
        assert_eq!(page(&["v", "w", "x", "y", "z"], 2, None).matches("UNKNOWN").count(), 2);
    }

    #[test]
    fn a_cursor_is_a_place_in_what_is_asked_for() {
        assert_eq!(page(&["a"], 5, Some(("b", 0))), "a:INVALID_REQUEST ");
        assert_eq!(page(&["a"], 5, Some(("a", -1))), "a:INVALID_REQUEST ");
        assert_eq!(page(&[], 5, Some(("a", -1))), "");
        assert_eq!(page(&["a"], 5, Some(("a", 9))), "a[] ");
    }
}
