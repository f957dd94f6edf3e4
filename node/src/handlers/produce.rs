//! Produce (key 0): batches into logs. KIP-98 (idempotence), KIP-516 (topic ids from version 13).
//!
//! The batches are checked here, on the shard of the connection, while their bytes are warm; offsets, sequences
//! and durability are the engine's on the shard that owns the partition. Record bytes are neither copied nor
//! encoded again on the way, unless the topic has a `compression.type` of its own and they come in another.

use bytes::Bytes;
use flumen_core::config::{LogConfig, TimestampType};
use flumen_core::coordinator::OFFSETS_TOPIC;
use flumen_core::metadata::is_internal_topic;
use flumen_core::types::{PartitionId, TopicId};
use flumen_wire::ErrorCode;
use flumen_wire::batch::{self, BatchError, BatchHeader, CheckRules, Checked, RecordFault};
use flumen_wire::compression::Compression;
use flumen_wire::messages::produce_request::{ProduceRequest, TopicProduceData};
use flumen_wire::messages::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, ProduceResponse, TopicProduceResponse,
};

use super::{Refusal, Request};
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

/// Bytes that the compressed batches of one request may open to, and for each byte of the request. Past it they are
/// refused: a few kilobytes can be made to open to gigabytes.
const OPENED_BYTES: usize = 64 << 20;
const OPENED_BYTES_PER_BYTE: usize = 32;

/// Puts every batch of a request on its way, in order: within the turn, or, where compressed batches have to be opened, once
/// that is done on a thread apart. The connection's next request is not begun before.
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
    let refusal = refusal_of_all(&body);
    let known: Vec<Option<Known>> =
        body.topic_data.iter().map(|topic| Known::find(shard, &frame, topic)).collect();
    let topics = || body.topic_data.iter().zip(known.iter().map(Option::as_ref));
    let opens = topics().any(|(topic, known)| {
        let mut batches = topic.partition_data.iter().filter_map(|data| data.records);
        known.is_some_and(|known| batches.any(|records| known.rules.opens(records)))
    });
    let resolve = |topic, known| resolve(&frame, topic, known, refusal.as_ref());
    if opens {
        let topics = topics()
            .map(|(topic, known)| (topic.name.into(), topic.topic_id, resolve(topic, known).collect()))
            .collect();
        begin_apart(shard, request, frame.frame.len(), topics);
        return Flow::Continue;
    }
    let call = shard.open_produce(request);
    for (topic, known) in topics() {
        shard.add_topic(call, topic.name, topic.topic_id);
        for (index, part) in resolve(topic, known) {
            add(shard, call, index, part.check(usize::MAX).0);
        }
    }
    shard.close_produce(call);
    Flow::Continue
}

/// A topic of a request: its name, its id, and for each partition what to do.
type Topic = (Box<str>, [u8; 16], Vec<(i32, Part)>);

/// Checks the parts of a request on a thread apart, and puts them on their way then.
fn begin_apart(shard: &Shard, request: Request, frame_bytes: usize, topics: Vec<Topic>) {
    let shard = shard.shared();
    let connection = request.connection.clone();
    shard.net.hold(&connection);
    runtime::spawn("produce", async move {
        let check_all = move || {
            let mut left = OPENED_BYTES + frame_bytes.saturating_mul(OPENED_BYTES_PER_BYTE);
            let mut check = |(index, part): (i32, Part)| {
                let (checked, opened) = part.check(left);
                left = left.saturating_sub(opened);
                (index, checked)
            };
            let topics = topics.into_iter();
            topics.map(|(name, id, parts)| (name, id, parts.into_iter().map(&mut check).collect())).collect()
        };
        let topics: Vec<(Box<str>, _, Vec<_>)> = runtime::blocking(check_all).await;
        let call = shard.open_produce(request);
        for (name, id, parts) in topics {
            shard.add_topic(call, &name, id);
            for (index, checked) in parts {
                add(&shard, call, index, checked);
            }
        }
        shard.close_produce(call);
        shard.net.release(&connection);
        shard.net.flush(&*shard);
    });
}

fn add(shard: &Shard, call: OpenCall, index: i32, checked: Result<Batch, Outcome>) {
    match checked {
        Ok(Batch { partition, header, bytes }) => shard.add_part(call, index, partition, header, bytes),
        Err(outcome) => shard.add_refused(call, index, outcome),
    }
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

/// What a request has for one partition.
enum Part {
    Refused(Outcome),
    Batch { partition: PartitionId, records: Bytes, rules: Rules },
}

/// A batch that may enter its partition's log.
struct Batch {
    partition: PartitionId,
    header: BatchHeader,
    bytes: Bytes,
}

/// What a topic asks of batches, at this moment.
#[derive(Clone, Copy)]
struct Rules {
    check: CheckRules,
    /// Batches are kept in this codec.
    codec: Option<Compression>,
    /// Timestamps that producers may give: from, to.
    timestamps: Option<(i64, i64)>,
}

/// A topic that a request names and that exists.
struct Known {
    id: TopicId,
    partitions: usize,
    /// One of the broker's own, and not this client's to write to.
    is_guarded: bool,
    rules: Rules,
}

impl Known {
    fn find(shard: &Shard, frame: &Request, topic: &TopicProduceData<'_>) -> Option<Known> {
        let image = shard.image();
        let known = match frame.version >= TOPIC_ID_VERSION {
            true => image.topic_by_id(TopicId(topic.topic_id))?,
            false => image.topic(topic.name)?,
        };
        Some(Known {
            id: known.id,
            partitions: known.partitions.len(),
            // Offsets are written by coordinators alone: whatever else was there would keep their groups from being loaded.
            is_guarded: is_internal_topic(&known.name)
                && (&*known.name == OFFSETS_TOPIC || frame.client_id() != ADMIN_CLIENT),
            rules: Rules::of(&shard.log_config(known.id, &known.name), frame.version),
        })
    }
}

/// For each partition that a topic of a request names, what there is to do.
fn resolve<'a>(
    frame: &'a Request,
    topic: &'a TopicProduceData<'a>,
    known: Option<&'a Known>,
    refusal: Option<&'a Outcome>,
) -> impl Iterator<Item = (i32, Part)> {
    let unknown = match frame.version >= TOPIC_ID_VERSION {
        true => ErrorCode::UnknownTopicId,
        false => ErrorCode::UnknownTopicOrPartition,
    };
    topic.partition_data.iter().map(move |data| {
        let refused = |error| Part::Refused(Outcome::error(error));
        let part = match (refusal, known) {
            (Some(refusal), _) => Part::Refused(refusal.clone()),
            (None, None) => refused(unknown),
            (None, Some(known)) if known.is_guarded => refused(ErrorCode::InvalidTopicException),
            (None, Some(known))
                if usize::try_from(data.index).is_ok_and(|index| index < known.partitions) =>
            {
                let records = data.records.map_or(Bytes::new(), |records| frame.share(records));
                let partition = PartitionId { topic: known.id, partition: data.index };
                Part::Batch { partition, records, rules: known.rules }
            }
            (None, Some(_)) => refused(ErrorCode::UnknownTopicOrPartition),
        };
        (data.index, part)
    })
}

impl Part {
    /// Checks the batch against its topic's settings, opening it to so many bytes at most. Also says how many it took.
    fn check(self, opened_bytes_max: usize) -> (Result<Batch, Outcome>, usize) {
        let (partition, records, mut rules) = match self {
            Part::Refused(outcome) => return (Err(outcome), 0),
            Part::Batch { partition, records, rules } => (partition, records, rules),
        };
        rules.check.decompressed_bytes_max = rules.check.decompressed_bytes_max.min(opened_bytes_max);
        let opens = rules.opens(&records);
        match batch::check(&records, &rules.check) {
            Ok(checked) => {
                let batch = rules.admit(records, &checked);
                let batch = batch.map(|(header, bytes)| Batch { partition, header, bytes });
                (batch, checked.opened_bytes)
            }
            Err(error) => {
                let outcome = Outcome {
                    records_at_fault: records_at_fault(&records, &rules.check, &error),
                    ..Outcome::error_because(error.error_code(), error.to_string())
                };
                (Err(outcome), if opens { rules.check.decompressed_bytes_max } else { 0 })
            }
        }
    }
}

impl Rules {
    fn of(config: &LogConfig, version: i16) -> Rules {
        let check = CheckRules {
            batch_bytes_max: config.max_message_bytes as usize,
            zstd_allowed: version >= ZSTD_VERSION,
            keys_required: config.cleanup_policy.compact,
            // What is compressed again is opened, and looked at.
            open_compressed: config.compression_type.is_some(),
            ..CheckRules::default()
        };
        let now = runtime::now_ms();
        let from = now.saturating_sub(config.message_timestamp_before_max_ms);
        let to = now.saturating_add(config.message_timestamp_after_max_ms);
        let timestamps = (config.message_timestamp_type == TimestampType::CreateTime).then_some((from, to));
        Rules { check, codec: config.compression_type, timestamps }
    }

    /// Whether a batch is opened or compressed, which takes time.
    fn opens(&self, records: &[u8]) -> bool {
        let recompresses = self.codec.is_some_and(|codec| codec != Compression::None);
        recompresses || self.check.opens_compressed() && is_compressed(records)
    }

    /// What enters the log of a batch that is sound.
    fn admit(&self, records: Bytes, checked: &Checked) -> Result<(BatchHeader, Bytes), Outcome> {
        if checked.header.is_transactional() {
            return Err(Outcome::error_because(ErrorCode::InvalidRequest, "transactions are not served"));
        }
        self.check_timestamps(checked)?;
        let codec = self.codec.filter(|codec| checked.header.compression() != Ok(*codec));
        let is_timestamp_wrong = checked.max_timestamp != checked.header.max_timestamp;
        if codec.is_none() && !is_timestamp_wrong {
            return Ok((checked.header, records));
        }
        // Changed in a copy, as Kafka does: what the topic asks for, and the producer's word on its highest timestamp.
        let refused = |error: BatchError| Outcome::error_because(error.error_code(), error.to_string());
        let mut changed = match codec {
            Some(codec) => {
                batch::recompress(&records, codec, self.check.decompressed_bytes_max).map_err(refused)?
            }
            None => records.to_vec(),
        };
        if changed.len() > self.check.batch_bytes_max {
            return Err(refused(BatchError::TooLarge {
                size: changed.len(),
                max: self.check.batch_bytes_max,
            }));
        }
        if is_timestamp_wrong {
            batch::set_max_timestamp(&mut changed, checked.max_timestamp);
        }
        let header = BatchHeader::parse(&changed).map_err(refused)?;
        Ok((header, Bytes::from(changed)))
    }

    /// `message.timestamp.before.max.ms` and `message.timestamp.after.max.ms` (KIP-937).
    fn check_timestamps(&self, checked: &Checked) -> Result<(), Outcome> {
        let Some((earliest, latest)) = self.timestamps.filter(|_| checked.max_timestamp >= 0) else {
            return Ok(());
        };
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
}

/// Whether what may be a batch says that it is compressed. Whatever is wrong with it, the check finds.
fn is_compressed(records: &[u8]) -> bool {
    BatchHeader::parse(records).is_ok_and(|header| header.compression() != Ok(Compression::None))
}

/// Of how many records a refusal says that they are at fault; each takes an entry of the response.
const RECORDS_AT_FAULT_MAX: usize = 1_000;

/// The index of each record that is why the batch is refused: clients say of those what is wrong, and of the others
/// of the batch only that they were in bad company. The first that lack a key; of other faults the first, as nothing after it can be
/// read.
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
        .take(RECORDS_AT_FAULT_MAX)
        .collect()
}

/// All parts are settled: answers, or, without acks, closes the connection when anything was refused.
pub(crate) fn answer(shard: &Shard, call: ProduceCall) {
    let request = &call.request;
    shard.net.unpin(&request.connection, request.pinned);
    let latency = runtime::uptime().saturating_sub(request.began);
    let mut errors = call.partitions.iter().map(|partition| partition.outcome.error);
    let error = errors.find(|error| !error.is_none()).unwrap_or(ErrorCode::None);
    shard.probe.request(request.key as i16, latency, error);
    let Some(place) = request.place else {
        if !error.is_none() {
            let reason = format!("closed: a produce without acks was refused with {error}");
            super::close(shard, &request.connection, request.key, Refusal::Close(reason));
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
    match request.respond(&body) {
        Ok(response) => shard.net.answer(&request.connection, place, response),
        Err(refusal) => super::close(shard, &request.connection, request.key, refusal),
    }
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
