//! Produce (key 0): batches into logs. KIP-98 (idempotence), KIP-516 (topic ids from version 13).
//!
//! The batches are checked here, on the shard of the connection, while their bytes are warm; offsets, sequences
//! and durability are the engine's on the shard that owns the partition. Record bytes are neither copied nor
//! encoded again on the way, unless the topic has a `compression.type` of its own and they come in another.

use bytes::Bytes;
use flumen_core::config::{LogConfig, TimestampType};
use flumen_core::metadata::is_internal_topic;
use flumen_core::types::PartitionId;
use flumen_wire::ErrorCode;
use flumen_wire::batch::{self, BatchError, BatchHeader, CheckRules, Checked, RecordFault};
use flumen_wire::messages::produce_request::{ProduceRequest, TopicProduceData};
use flumen_wire::messages::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, ProduceResponse, TopicProduceResponse,
};

use super::Request;
use crate::net::Flow;
use crate::runtime;
use crate::shard::Shard;
use crate::shard::produce::{OpenCall, Outcome, ProduceCall};

/// The first version whose clients may send zstd (KIP-110).
const ZSTD_VERSION: i16 = 7;
/// The first version that names topics by id.
const TOPIC_ID_VERSION: i16 = 13;
/// What a client calls itself that may write to the broker's own topics, as in Kafka: no guard, but a safety catch.
const ADMIN_CLIENT: &str = "__admin_client";

/// Puts every batch of a request on its way, in order, within the turn.
pub(crate) fn begin(shard: &Shard, mut request: Request) -> Flow {
    let frame = Request { connection: request.connection.clone(), frame: request.frame.clone(), ..request };
    let body: ProduceRequest<'_> = match frame.body() {
        Ok(body) => body,
        Err(error) => return Flow::Close(format!("a Produce that cannot be read: {error}")),
    };
    if body.acks != 0 {
        request.place = Some(request.connection.reserve());
    }
    request.release_frame();
    let version = request.version;
    let call = shard.open_produce(request);
    let refusal = refusal_of_all(&body);
    for topic in &body.topic_data {
        add_topic(shard, call, &frame, version, topic, refusal.as_ref());
    }
    shard.close_produce(call);
    Flow::Continue
}

/// What is wrong with the request as a whole.
fn refusal_of_all(body: &ProduceRequest<'_>) -> Option<Outcome> {
    if !(-1..=1).contains(&body.acks) {
        return Some(Outcome::error(ErrorCode::InvalidRequiredAcks));
    }
    if body.transactional_id.is_some() {
        return Some(Outcome::error_because(ErrorCode::InvalidRequest, "transactions are not served"));
    }
    None
}

fn add_topic(
    shard: &Shard,
    call: OpenCall,
    frame: &Request,
    version: i16,
    topic: &TopicProduceData<'_>,
    refusal: Option<&Outcome>,
) {
    let image = shard.image();
    let known = if version >= TOPIC_ID_VERSION {
        image.topic_by_id(flumen_core::types::TopicId(topic.topic_id))
    } else {
        image.topic(topic.name)
    };
    shard.add_topic(call, topic.name, topic.topic_id);
    let config = known.map(|known| shard.log_config(known.id, &known.name));
    for data in &topic.partition_data {
        let checked = match (refusal, known, &config) {
            (Some(refusal), _, _) => Err(refusal.clone()),
            (None, Some(known), _) if is_internal_topic(&known.name) && frame.client_id() != ADMIN_CLIENT => {
                Err(Outcome::error(ErrorCode::InvalidTopicException))
            }
            (None, Some(known), Some(config)) if known.partition(data.index).is_some() => {
                let records = data.records.map_or(Bytes::new(), |records| frame.share(records));
                check(records, config, version).map(|(header, batch)| (known.id, header, batch))
            }
            (None, None, _) if version >= TOPIC_ID_VERSION => Err(Outcome::error(ErrorCode::UnknownTopicId)),
            _ => Err(Outcome::error(ErrorCode::UnknownTopicOrPartition)),
        };
        match checked {
            Ok((topic, header, batch)) => {
                let partition = PartitionId { topic, partition: data.index };
                shard.add_part(call, data.index, partition, header, batch);
            }
            Err(outcome) => shard.add_refused(call, data.index, outcome),
        }
    }
}

/// Checks one partition's records against its topic's settings.
fn check(records: Bytes, config: &LogConfig, version: i16) -> Result<(BatchHeader, Bytes), Outcome> {
    let rules = CheckRules {
        batch_bytes_max: config.max_message_bytes as usize,
        zstd_allowed: version >= ZSTD_VERSION,
        keys_required: config.cleanup_policy.compact,
        // What is compressed again is opened, and looked at.
        open_compressed: config.compression_type.is_some(),
        ..CheckRules::default()
    };
    let checked = batch::check(&records, &rules).map_err(|error| Outcome {
        records_at_fault: records_at_fault(&records, &rules, &error),
        ..Outcome::error_because(error.error_code(), error.to_string())
    })?;
    if checked.header.is_transactional() {
        return Err(Outcome::error_because(ErrorCode::InvalidRequest, "transactions are not served"));
    }
    check_timestamps(&checked, config)?;
    let codec = config.compression_type.filter(|codec| checked.header.compression() != Ok(*codec));
    let is_timestamp_wrong = checked.max_timestamp != checked.header.max_timestamp;
    if codec.is_none() && !is_timestamp_wrong {
        return Ok((checked.header, records));
    }
    // Changed in a copy, as Kafka does: what the topic asks for, and the producer's word on its highest timestamp.
    let refused = |error: BatchError| Outcome::error_because(error.error_code(), error.to_string());
    let mut changed = match codec {
        Some(codec) => batch::recompress(&records, codec, rules.decompressed_bytes_max).map_err(refused)?,
        None => records.to_vec(),
    };
    if changed.len() > rules.batch_bytes_max {
        return Err(refused(BatchError::TooLarge { size: changed.len(), max: rules.batch_bytes_max }));
    }
    if is_timestamp_wrong {
        batch::set_max_timestamp(&mut changed, checked.max_timestamp);
    }
    let header = BatchHeader::parse(&changed).map_err(refused)?;
    Ok((header, Bytes::from(changed)))
}

/// The index of each record that is why the batch is refused: clients say of those what is wrong, and of the others
/// of the batch only that they were in bad company. All that lack a key; of other faults the first, as nothing after it can be read.
fn records_at_fault(records: &[u8], rules: &CheckRules, error: &BatchError) -> Vec<i32> {
    let BatchError::Record { fault: RecordFault::NoKey, .. } = error else {
        return error.record_index().into_iter().collect();
    };
    let Some(Ok(batch)) = batch::Batches::new(records).next() else { return Vec::new() };
    let Ok(opened) = batch.records(rules.decompressed_bytes_max) else { return Vec::new() };
    (0..)
        .zip(&opened)
        .filter(|(_, record)| record.as_ref().is_ok_and(|record| record.key.is_none()))
        .map(|(at, _)| at)
        .collect()
}

/// `message.timestamp.before.max.ms` and `message.timestamp.after.max.ms` (KIP-937).
fn check_timestamps(checked: &Checked, config: &LogConfig) -> Result<(), Outcome> {
    if config.message_timestamp_type == TimestampType::LogAppendTime || checked.max_timestamp < 0 {
        return Ok(());
    }
    let now = runtime::now_ms();
    let earliest = now.saturating_sub(config.message_timestamp_before_max_ms);
    let latest = now.saturating_add(config.message_timestamp_after_max_ms);
    let wrong = [checked.min_timestamp, checked.max_timestamp]
        .into_iter()
        .find(|timestamp| *timestamp >= 0 && !(earliest..=latest).contains(timestamp));
    match wrong {
        None => Ok(()),
        Some(timestamp) => Err(Outcome::error_because(
            ErrorCode::InvalidTimestamp,
            format!(
                "Timestamp {timestamp} of message with offset 0 is out of range. The timestamp should be within \
                 [{earliest}, {latest}]"
            ),
        )),
    }
}

/// All parts are settled: answers, or, without acks, closes the connection when anything was refused.
pub(crate) fn answer(shard: &Shard, call: ProduceCall) {
    let request = &call.request;
    request.connection.unpin(request.pinned);
    let latency = runtime::uptime().saturating_sub(request.began);
    let failed = call.partitions.iter().any(|partition| partition.outcome.error != ErrorCode::None);
    shard.probe.request(request.key as i16, latency, failed);
    let Some(place) = request.place else {
        let refused = call.partitions.iter().find(|partition| partition.outcome.error != ErrorCode::None);
        if let Some(refused) = refused {
            let reason = format!("closed: a produce without acks was refused with {}", refused.outcome.error);
            crate::net::Requests::complain(shard, request.connection.peer, &reason);
            shard.net.close(&request.connection);
        }
        return;
    };
    let ends = call.topics.iter().skip(1).map(|next| next.from).chain([call.partitions.len()]);
    let responses = call
        .topics
        .iter()
        .zip(ends)
        .map(|(topic, end)| TopicProduceResponse {
            name: &topic.name,
            topic_id: topic.id,
            partition_responses: call.partitions[topic.from..end]
                .iter()
                .map(|partition| partition_response(partition.index, &partition.outcome))
                .collect(),
        })
        .collect();
    let body = ProduceResponse { responses, ..ProduceResponse::default() };
    shard.net.answer(&request.connection, place, request.respond(&body));
}

fn partition_response(index: i32, outcome: &Outcome) -> PartitionProduceResponse<'_> {
    PartitionProduceResponse {
        index,
        error_code: outcome.error.code(),
        base_offset: outcome.base_offset,
        log_append_time_ms: outcome.log_append_time,
        log_start_offset: outcome.log_start_offset,
        record_errors: outcome
            .records_at_fault
            .iter()
            .map(|&batch_index| BatchIndexAndErrorMessage {
                batch_index,
                batch_index_error_message: outcome.message.as_deref(),
            })
            .collect(),
        error_message: outcome.message.as_deref(),
        ..PartitionProduceResponse::default()
    }
}
