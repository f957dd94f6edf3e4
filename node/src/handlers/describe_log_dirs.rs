//! DescribeLogDirs (key 35): sizes of logs, and the space on the volume of the data folder. KIP-113, KIP-827.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use flumen_core::metadata::Image;
use flumen_core::types::PartitionId;
use flumen_wire::ErrorCode;
use flumen_wire::messages::describe_log_dirs_request::{DescribableLogDirTopic, DescribeLogDirsRequest};
use flumen_wire::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResponse, DescribeLogDirsResult, DescribeLogDirsTopic,
};

use super::{Refusal, Request};
use crate::net::response::Response;
use crate::runtime;
use crate::shard::Shard;
use crate::sys;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: DescribeLogDirsRequest<'_> = request.body()?;
    let image = shard.image();
    let asked = asked(&image, body.topics.as_deref());
    let partitions = asked.iter().flat_map(|topic| topic.partitions.iter().map(|id| (*id, ())));
    let sizes = shard.ask_owners(partitions.collect(), size_here).await;

    let mut sizes = sizes.into_iter();
    let topics = asked.iter().filter_map(|topic| {
        let sized = topic.partitions.iter().zip(sizes.by_ref());
        let partitions: Vec<_> =
            sized.filter_map(|(id, size)| Some(partition(id, size.flatten()?))).collect();
        (!partitions.is_empty()).then_some(DescribeLogDirsTopic { name: topic.name, partitions })
    });
    let topics = topics.collect();

    let data_dir =
        std::path::absolute(&shard.facts.data_dir).unwrap_or_else(|_| shard.facts.data_dir.clone());
    let log_dir = data_dir.to_string_lossy().into_owned();
    let volume = runtime::blocking(move || sys::file_system(&data_dir)).await;
    let result = DescribeLogDirsResult { log_dir: &log_dir, topics, ..DescribeLogDirsResult::default() };
    let bytes = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let result = match volume {
        Ok(volume) => DescribeLogDirsResult {
            total_bytes: bytes(volume.total_bytes),
            usable_bytes: bytes(volume.usable_bytes),
            ..result
        },
        Err(error) => {
            let reason = format!("the volume of {log_dir} cannot be asked for its space: {error}");
            crate::net::Requests::complain(&**shard, request.connection.peer, &reason);
            let error_code = ErrorCode::KafkaStorageError.code();
            DescribeLogDirsResult { error_code, topics: Vec::new(), ..result }
        }
    };
    let body = DescribeLogDirsResponse { results: vec![result], ..DescribeLogDirsResponse::default() };
    request.respond(&body)
}

/// Partitions of one topic that are asked for and exist.
#[derive(Debug, PartialEq)]
struct Asked<'a> {
    name: &'a str,
    partitions: Vec<PartitionId>,
}

/// What is asked for, each partition once; what does not exist is left out of the answer. `None` asks for all.
fn asked<'a>(image: &'a Image, topics: Option<&[DescribableLogDirTopic<'a>]>) -> Vec<Asked<'a>> {
    let Some(topics) = topics else {
        let all = image.topics().map(|topic| {
            let indexes = 0..topic.partitions.len() as i32;
            let partitions = indexes.map(|partition| PartitionId { topic: topic.id, partition });
            Asked { name: &topic.name, partitions: partitions.collect() }
        });
        return all.collect();
    };
    let mut named: BTreeMap<&str, BTreeSet<i32>> = BTreeMap::new();
    for topic in topics {
        named.entry(topic.topic).or_default().extend(&topic.partitions);
    }
    let known = named.into_iter().filter_map(|(name, indexes)| {
        let topic = image.topic(name)?;
        let partitions = indexes.into_iter().filter(|index| topic.partition(*index).is_some());
        let partitions = partitions.map(|partition| PartitionId { topic: topic.id, partition });
        Some(Asked { name, partitions: partitions.collect() })
    });
    known.collect()
}

/// On the shard that owns the partition.
async fn size_here(shard: Rc<Shard>, id: PartitionId, (): ()) -> Option<u64> {
    shard.engine.partition(&id).map(|slot| shard.engine.size_bytes(slot))
}

fn partition(id: &PartitionId, size: u64) -> DescribeLogDirsPartition {
    DescribeLogDirsPartition {
        partition_index: id.partition,
        partition_size: i64::try_from(size).unwrap_or(i64::MAX),
        // The log end is never behind the high watermark, and no replica moves between folders.
        offset_lag: 0,
        is_future_key: false,
    }
}

#[cfg(test)]
mod tests {
    use flumen_core::metadata::{PartitionRecord, Record};
    use flumen_core::types::{LeaderEpoch, NodeId, TopicId};

    use super::*;

    #[test]
    fn each_partition_that_exists_once() {
        let mut image = Image::default();
        let topic = TopicId([1; 16]);
        image.replay(&Record::Topic { id: topic, name: "t".to_owned() }).expect("fits");
        for partition in 0..3 {
            let record = PartitionRecord {
                topic,
                partition,
                replicas: vec![NodeId(1)],
                isr: vec![NodeId(1)],
                leader: Some(NodeId(1)),
                leader_epoch: LeaderEpoch(0),
                partition_epoch: 0,
            };
            image.replay(&Record::Partition(record)).expect("fits");
        }
        let indexes = |asked: &[Asked<'_>]| -> Vec<Vec<i32>> {
            asked.iter().map(|topic| topic.partitions.iter().map(|id| id.partition).collect()).collect()
        };
        assert_eq!(indexes(&asked(&image, None)), [[0, 1, 2]]);
        let of =
            |topic, partitions: &[i32]| DescribableLogDirTopic { topic, partitions: partitions.to_vec() };
        let topics = [of("t", &[2, 0, 2]), of("u", &[0]), of("t", &[0, 3, -1])];
        assert_eq!(indexes(&asked(&image, Some(&topics))), [[0, 2]]);
        assert_eq!(asked(&image, Some(&[])), []);
    }
}
