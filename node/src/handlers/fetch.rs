//! Fetch (key 1): records out of logs, with long polls and incremental sessions (KIP-74, KIP-227, KIP-516).
//!
//! ```text
//!   session ──> wants ── by shard: read, watch ──> enough, or an error, or time is up? ── no: park ──┐
//!                 ^                                        │ yes                                      │
//!                 └──────────── woken ─────────────────────┼──────────────────────────────────────────┘
//!                                                          └──> response: head + slices of the caches
//! ```
//!
//! Invariants: record bytes are sent from where they lie; at least one batch is returned whatever its size, if
//! there is one; a peer that hangs up ends its parked fetch at once; of one connection one fetch reads at a time, and
//! it reads the less, the more all peers leave unread.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use flumen_core::fetch::{FetchContext, FetchParams, Finished, Outcome, SessionRequest, TopicKey, Wanted};
use flumen_core::limits::TOPIC_NAME_BYTES_MAX;
use flumen_core::metadata::Image;
use flumen_core::types::{Offset, PartitionId, ShardId, TopicId};
use flumen_wire::ErrorCode;
use flumen_wire::codec::Records;
use flumen_wire::messages::fetch_request::FetchRequest;
use flumen_wire::messages::fetch_response::{
    EpochEndOffset, FetchResponse, FetchableTopicResponse, PartitionData,
};

use super::{Refusal, Request};
use crate::net::response::{Payload, Response};
use crate::runtime;
use crate::shard::Shard;
use crate::shard::fetch::{ParkedFetch, PartitionRead, Wait, Want, Watch};

/// The first version that names topics by id.
const TOPIC_ID_VERSION: i16 = 13;
/// How long a fetch that was woken for too little rests before it looks again: at first, and in the end.
const REST_MIN: Duration = Duration::from_micros(500);
const REST_MAX: Duration = Duration::from_millis(5);
/// How long a fetch rests that may not wait, as too many do.
const UNPARKED_REST: Duration = Duration::from_millis(100);

type Read = PartitionRead<Box<dyn Payload>>;

/// A fetch, free of the frame that it came in: it may wait for long.
struct Fetch {
    max_wait: Duration,
    bytes_min: usize,
    bytes_max: usize,
    /// What is to be read, by the session's word.
    wanted: Vec<Wanted>,
    /// For each wanted partition, what to read; or why there is nothing to be read.
    wants: Vec<Result<Want, ErrorCode>>,
}

pub(super) async fn handle(shard: &Rc<Shard>, mut request: Request) -> Result<Response, Refusal> {
    // Few bytes may ask for all of a session: of these a connection has one at a time.
    if let Some(place) = request.place {
        request.connection.turn(place).await;
    }
    if request.connection.is_closed() {
        // Nothing is read for nobody.
        return refuse(&request, ErrorCode::NetworkException);
    }
    let (fetch, context) = match begin(shard, &request)? {
        Ok(begun) => begun,
        Err(error) => return refuse(&request, error),
    };
    request.release_frame();
    let reads = gather(shard, &request, &fetch).await;
    let outcomes: Vec<Outcome> = reads.iter().map(outcome).collect();
    let fresh_id = shard.random(|rng| rng.i32(1..));
    let finished =
        shard.sessions.borrow_mut().finish(uptime_ms(), context, fresh_id, &fetch.wanted, &outcomes);
    match finished {
        Ok(finished) => respond(&request, &fetch, reads, &finished),
        Err(error) => refuse(&request, error),
    }
}

/// Whether no topic can have this name.
fn is_too_long(name: &str) -> bool {
    name.len() > TOPIC_NAME_BYTES_MAX
}

/// Decodes the request and asks its session what is to be read. The inner error is the answer to all of it.
fn begin(shard: &Shard, request: &Request) -> Result<Result<(Fetch, FetchContext), ErrorCode>, Refusal> {
    let body: FetchRequest<'_> = request.body()?;
    let named = body.topics.iter().map(|topic| topic.topic);
    if named.chain(body.forgotten_topics_data.iter().map(|topic| topic.topic)).any(is_too_long) {
        // No topic bears it, and sessions keep names.
        return Ok(Err(ErrorCode::InvalidTopicException));
    }
    let by_id = request.version >= TOPIC_ID_VERSION;
    let key =
        |name: &str, id| if by_id { TopicKey::Id(TopicId(id)) } else { TopicKey::Name(Arc::from(name)) };
    let mut named = Vec::new();
    for topic in &body.topics {
        let topic_key = key(topic.topic, topic.topic_id);
        named.extend(topic.partitions.iter().map(|asked| Wanted {
            topic: topic_key.clone(),
            partition: asked.partition,
            params: FetchParams {
                current_leader_epoch: asked.current_leader_epoch,
                fetch_offset: Offset(asked.fetch_offset),
                last_fetched_epoch: asked.last_fetched_epoch,
                log_start_offset: Offset(asked.log_start_offset),
                partition_max_bytes: asked.partition_max_bytes,
            },
        }));
    }
    // Of a partition that is named twice the last word counts, as in Kafka.
    if named.len() > 1 {
        let mut seen = HashSet::with_capacity(named.len());
        named.reverse();
        named.retain(|wanted| seen.insert((wanted.topic.clone(), wanted.partition)));
        named.reverse();
    }
    let forgotten: Vec<(TopicKey, i32)> = body
        .forgotten_topics_data
        .iter()
        .flat_map(|topic| {
            let topic_key = key(topic.topic, topic.topic_id);
            topic.partitions.iter().map(move |partition| (topic_key.clone(), *partition))
        })
        .collect();
    let session = SessionRequest { session_id: body.session_id, session_epoch: body.session_epoch, by_id };
    let begun = shard.sessions.borrow_mut().begin(uptime_ms(), session, named, &forgotten);
    let (context, wanted) = match begun {
        Ok(begun) => begun,
        Err(error) => return Ok(Err(error)),
    };
    let image = shard.image();
    let wants = wanted.iter().map(|wanted| resolve(&image, wanted)).collect();
    let bytes_max = usize::try_from(body.max_bytes).unwrap_or(0);
    let fetch = Fetch {
        max_wait: Duration::from_millis(u64::try_from(body.max_wait_ms).unwrap_or(0)),
        bytes_min: usize::try_from(body.min_bytes).unwrap_or(0),
        bytes_max: bytes_max.min(shard.config().fetch_max_bytes as usize),
        wanted,
        wants,
    };
    Ok(Ok((fetch, context)))
}

fn resolve(image: &Image, wanted: &Wanted) -> Result<Want, ErrorCode> {
    let (known, unknown) = match &wanted.topic {
        TopicKey::Name(name) => (image.topic(name), ErrorCode::UnknownTopicOrPartition),
        TopicKey::Id(id) => (image.topic_by_id(*id), ErrorCode::UnknownTopicId),
    };
    let known = known.ok_or(unknown)?;
    if known.partition(wanted.partition).is_none() {
        return Err(ErrorCode::UnknownTopicOrPartition);
    }
    Ok(Want {
        partition: PartitionId { topic: known.id, partition: wanted.partition },
        offset: wanted.params.fetch_offset.0,
        bytes_max: usize::try_from(wanted.params.partition_max_bytes).unwrap_or(0),
        current_leader_epoch: wanted.params.current_leader_epoch,
        last_fetched_epoch: wanted.params.last_fetched_epoch,
    })
}

fn uptime_ms() -> u64 {
    runtime::uptime().as_millis() as u64
}

fn outcome(read: &Read) -> Outcome {
    Outcome {
        is_error: read.error != ErrorCode::None,
        high_watermark: Offset(read.high_watermark),
        log_start_offset: Offset(read.log_start_offset),
        records_bytes: read.len,
        has_more: read.diverging.is_some(),
    }
}

/// Reads until there is enough, or something to tell, or the time is up.
async fn gather(shard: &Rc<Shard>, request: &Request, fetch: &Fetch) -> Vec<Read> {
    let wants: Vec<Want> = fetch.wants.iter().filter_map(|want| want.as_ref().ok().copied()).collect();
    let deadline = request.began + fetch.max_wait;
    let may_wait = wants.len() == fetch.wants.len() && !wants.is_empty();
    let may_park = shard.may_park(wants.len());
    if may_wait && !may_park {
        // Without any rest it would be asked again at once.
        runtime::sleep(fetch.max_wait.min(UNPARKED_REST)).await;
    }
    let may_wait = may_wait && may_park;
    let mut parked = Parked { shard, fetch: None, wants: &wants };
    let reads = read_until(shard, request, fetch, &mut parked, may_wait.then_some(deadline)).await;
    parked.end(request);
    let mut reads = reads.into_iter();
    let read_of = |want: &Result<Want, ErrorCode>| match want {
        Ok(_) => reads.next().expect("one read for each want"),
        Err(error) => Read::error(*error),
    };
    fetch.wants.iter().map(read_of).collect()
}

async fn read_until(
    shard: &Rc<Shard>,
    request: &Request,
    fetch: &Fetch,
    parked: &mut Parked<'_>,
    deadline: Option<Duration>,
) -> Vec<Read> {
    let mut rest = Duration::ZERO;
    loop {
        let left = deadline.unwrap_or_default().saturating_sub(runtime::uptime());
        let connection = &request.connection;
        let in_vain = connection.is_closed() || shard.net.is_pressed(connection);
        let wait = !left.is_zero() && !shard.stopping.get() && !in_vain;
        let grant = shard.net.grant(fetch.bytes_max);
        let enough = fetch.bytes_min.min(grant.bytes);
        let wait = wait.then(|| Wait { watch: parked.watch(request), bytes_min: enough });
        let reads = read_all(shard, parked.wants, grant.bytes, wait).await;
        drop(grant);
        let found: usize = reads.iter().map(|read| read.len).sum();
        let is_telling =
            |read: &Read| read.error != ErrorCode::None || read.diverging.is_some() || read.is_part;
        let telling = reads.iter().any(is_telling);
        let Some(waiting) = parked.fetch.as_ref().filter(|_| wait.is_some()) else { return reads };
        if telling || found >= enough {
            return reads;
        }
        drop(reads);
        // Woken or out of time: either way, look again. Of the request nothing is held meanwhile.
        shard.net.unpin(&request.connection, request.pinned);
        shard.net.flush(&**shard);
        let _ = runtime::timeout(left, waiting.woken()).await;
        shard.net.pin(&request.connection, request.pinned);
        if !rest.is_zero() {
            // Where small batches come one by one, each would be read as often as one comes.
            runtime::sleep(rest.min(left)).await;
        }
        rest = (rest * 2).clamp(REST_MIN, REST_MAX);
    }
}

/// What a fetch that waits has left behind; taken back when it ends.
struct Parked<'a> {
    shard: &'a Rc<Shard>,
    fetch: Option<Rc<ParkedFetch>>,
    wants: &'a [Want],
}

impl Parked<'_> {
    fn watch(&mut self, request: &Request) -> Watch {
        let fetch = self.fetch.get_or_insert_with(|| {
            let fetch = self.shard.park(self.wants.len());
            request.connection.parked.borrow_mut().push(Rc::clone(&fetch));
            fetch
        });
        Watch { shard: self.shard.id, fetch: fetch.key() }
    }

    /// Takes back the watches on all shards, and the place among the parked.
    fn end(&mut self, request: &Request) {
        let Some(fetch) = self.fetch.take() else { return };
        request.connection.parked.borrow_mut().retain(|parked| !Rc::ptr_eq(parked, &fetch));
        let watch = Watch { shard: self.shard.id, fetch: fetch.key() };
        self.shard.unpark(&fetch);
        for (target, wants) in by_shard(self.shard, self.wants) {
            let partitions: Vec<PartitionId> = wants.iter().map(|(_, want)| want.partition).collect();
            self.shard.unwatch_on(target, watch, partitions);
        }
    }
}

/// Groups wants by the shard that owns them, in the order in which the client named them.
fn by_shard(shard: &Shard, wants: &[Want]) -> Vec<(ShardId, Vec<(usize, Want)>)> {
    let mut groups: Vec<(ShardId, Vec<(usize, Want)>)> = Vec::new();
    for (index, want) in wants.iter().enumerate() {
        let owner = shard.owner(want.partition);
        match groups.iter_mut().find(|(target, _)| *target == owner) {
            Some((_, group)) => group.push((index, *want)),
            None => groups.push((owner, vec![(index, *want)])),
        }
    }
    groups
}

/// Reads all wants, on their shards at the same time, and keeps what fits, in the client's order.
async fn read_all(shard: &Rc<Shard>, wants: &[Want], bytes_max: usize, wait: Option<Wait>) -> Vec<Read> {
    let groups = by_shard(shard, wants);
    let share = bytes_max / groups.len().max(1);
    let mut reads: Vec<Option<Read>> = wants.iter().map(|_| None).collect();
    let asked = groups.into_iter().map(|(target, group)| async move {
        let (indexes, wants): (Vec<usize>, Vec<Want>) = group.into_iter().unzip();
        let found = read_on(shard, target, wants, share, wait).await;
        indexes.into_iter().zip(found).collect::<Vec<_>>()
    });
    for (index, read) in futures_util::future::join_all(asked).await.into_iter().flatten() {
        reads[index] = Some(read);
    }
    let mut reads: Vec<Read> = reads
        .into_iter()
        .map(|read| read.unwrap_or_else(|| Read::error(ErrorCode::NotLeaderOrFollower)))
        .collect();
    trim(&mut reads, bytes_max);
    reads
}

async fn read_on(
    shard: &Rc<Shard>,
    target: ShardId,
    wants: Vec<Want>,
    bytes_max: usize,
    wait: Option<Wait>,
) -> Vec<Read> {
    if target == shard.id {
        let reads = shard.read(&wants, bytes_max, wait).await;
        return reads.into_iter().map(|read| read.map(|slice| Box::new(slice) as Box<dyn Payload>)).collect();
    }
    let reads = shard
        .ask(target, move |owner| async move { owner.read_for_other(&wants, bytes_max, wait).await })
        .await
        .unwrap_or_default();
    reads.into_iter().map(|read| read.map(|lent| Box::new(lent) as Box<dyn Payload>)).collect()
}

/// Each shard may return one batch above its share (KIP-74); of these only the first is kept where the sum is
/// too much.
fn trim(reads: &mut [Read], bytes_max: usize) {
    let mut total = 0;
    for read in reads {
        if total > 0 && total + read.len > bytes_max {
            read.records.clear();
            read.len = 0;
        }
        total += read.len;
    }
}

/// The answer to all of a request that its session refuses.
fn refuse(request: &Request, error: ErrorCode) -> Result<Response, Refusal> {
    request.respond(&FetchResponse { error_code: error.code(), ..FetchResponse::default() })
}

fn respond(
    request: &Request,
    fetch: &Fetch,
    reads: Vec<Read>,
    finished: &Finished,
) -> Result<Response, Refusal> {
    let mut payloads = Vec::new();
    let mut responses: Vec<FetchableTopicResponse<'_>> = Vec::new();
    let mut last: Option<&TopicKey> = None;
    let is_included = |index: usize| finished.included.as_ref().is_none_or(|included| included[index]);
    for (index, (wanted, read)) in fetch.wanted.iter().zip(reads).enumerate() {
        if !is_included(index) {
            continue;
        }
        if last != Some(&wanted.topic) {
            last = Some(&wanted.topic);
            let (topic, topic_id) = match &wanted.topic {
                TopicKey::Name(name) => (&**name, [0; 16]),
                TopicKey::Id(id) => ("", id.0),
            };
            responses.push(FetchableTopicResponse { topic, topic_id, partitions: Vec::new() });
        }
        let topic = responses.last_mut().expect("pushed before its first partition");
        topic.partitions.push(partition_data(wanted.partition, read, &mut payloads));
    }
    let body = FetchResponse { session_id: finished.session_id, responses, ..FetchResponse::default() };
    Ok(Response::spliced(request.encode(&body)?, payloads))
}

fn partition_data<'a>(
    index: i32,
    read: Read,
    payloads: &mut Vec<Vec<Box<dyn Payload>>>,
) -> PartitionData<'a> {
    let mut data = PartitionData {
        partition_index: index,
        error_code: read.error.code(),
        high_watermark: read.high_watermark,
        // Without transactions all that is readable is stable.
        last_stable_offset: read.high_watermark,
        log_start_offset: read.log_start_offset,
        preferred_read_replica: -1,
        aborted_transactions: None,
        ..PartitionData::default()
    };
    if let Some((epoch, end_offset)) = read.diverging {
        data.diverging_epoch = EpochEndOffset { epoch, end_offset };
    }
    data.records = Some(if read.len == 0 { Records::Slice(&[]) } else { Records::Spliced(read.len) });
    if read.len > 0 {
        payloads.push(read.records);
    }
    data
}
