//! A broker that does next to nothing, for looking at the generator itself: it answers at once, stalls by a script, and
//! spoils what it keeps where it is told to. What the generator reports of it can be checked by arithmetic.
//!
//! A thread for each connection, blocking sockets: slow to accept, exact in its stalls. Any topic exists, unless it is told
//! which do, and all have the same number of partitions.
//!
//! Invariants: during a stall nothing is answered, on no connection; what is kept for readers has at most
//! [`Script::keep_bytes_max`], the oldest of a partition go first.

use crate::cli::NullBrokerOptions;
use crate::console::say;
use crate::failure::Failure;
use crate::interrupt;
use flumen_wire::ErrorCode;
use flumen_wire::api::ApiKey;
use flumen_wire::batch::{BatchHeader, assign};
use flumen_wire::codec::{Decode, Message, Reader, Records, Writer};
use flumen_wire::frame::{RequestHeader, encode_response, frame_len};
use flumen_wire::messages::api_versions_response::{ApiVersion, ApiVersionsResponse};
use flumen_wire::messages::create_topics_request::CreateTopicsRequest;
use flumen_wire::messages::create_topics_response::{CreatableTopicResult, CreateTopicsResponse};
use flumen_wire::messages::fetch_request::FetchRequest;
use flumen_wire::messages::fetch_response::{FetchResponse, FetchableTopicResponse, PartitionData};
use flumen_wire::messages::init_producer_id_response::InitProducerIdResponse;
use flumen_wire::messages::list_offsets_request::ListOffsetsRequest;
use flumen_wire::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsResponse, ListOffsetsTopicResponse,
};
use flumen_wire::messages::metadata_request::MetadataRequest;
use flumen_wire::messages::metadata_response::{
    MetadataResponse, MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use flumen_wire::messages::produce_request::ProduceRequest;
use flumen_wire::messages::produce_response::{
    PartitionProduceResponse, ProduceResponse, TopicProduceResponse,
};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The longest request.
const REQUEST_BYTES_MAX: usize = 128 << 20;
/// Of every so many batches one is spoiled, where batches are.
const SPOILED_EVERY: u64 = 100;

const APIS: &[(ApiKey, i16, i16)] = &[
    (ApiKey::Produce, 3, 11),
    (ApiKey::Fetch, 4, 11),
    (ApiKey::ListOffsets, 1, 6),
    (ApiKey::Metadata, 0, 12),
    (ApiKey::ApiVersions, 0, 4),
    (ApiKey::CreateTopics, 2, 6),
    (ApiKey::InitProducerId, 0, 4),
];

/// What it does besides answering.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub partitions: i32,
    /// Every so often it stalls; zero: never.
    pub stall_every: Duration,
    /// For so long.
    pub stall: Duration,
    pub fault: Fault,
    /// Whether batches are kept for readers.
    pub keeps: bool,
    pub keep_bytes_max: usize,
    /// Those that there are; none: all are.
    pub topics: Vec<String>,
}

impl Default for Script {
    fn default() -> Script {
        Script {
            partitions: 4,
            stall_every: Duration::ZERO,
            stall: Duration::ZERO,
            fault: Fault::None,
            keeps: false,
            keep_bytes_max: 256 << 20,
            topics: Vec::new(),
        }
    }
}

/// What it does to one batch of every hundred that it acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fault {
    None,
    Lose,
    Duplicate,
    /// It is kept behind the next one.
    Reorder,
}

/// The batches of a partition.
#[derive(Debug, Default)]
struct Log {
    /// With the offset behind each.
    batches: VecDeque<(i64, Vec<u8>)>,
    end: i64,
    appended: u64,
    /// Waits for the one that is to come before it.
    held: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Logs {
    by_partition: HashMap<(String, i32), Log>,
    bytes: usize,
}

#[derive(Debug)]
struct Shared {
    script: Script,
    address: SocketAddr,
    began: Instant,
    logs: Mutex<Logs>,
    appended: Condvar,
    /// None: all that are asked for.
    topics: Option<Mutex<BTreeSet<String>>>,
}

/// See the head of this file. It runs as long as the process.
#[derive(Debug)]
pub(crate) struct NullBroker {
    shared: Arc<Shared>,
}

impl NullBroker {
    /// Listens, and answers from then on.
    pub(crate) fn start(listen: &str, script: Script) -> Result<NullBroker, Failure> {
        let listener = TcpListener::bind(listen).map_err(|error| Failure::io(listen, error))?;
        let address = listener.local_addr().map_err(|error| Failure::io(listen, error))?;
        let topics = script.topics.iter().cloned().collect::<BTreeSet<String>>();
        let shared = Arc::new(Shared {
            topics: (!topics.is_empty()).then(|| Mutex::new(topics)),
            script,
            address,
            began: Instant::now(),
            logs: Mutex::default(),
            appended: Condvar::new(),
        });
        let accepting = shared.clone();
        let accept = move || {
            for stream in listener.incoming().flatten() {
                let shared = accepting.clone();
                // A connection that cannot be served is closed, which its client sees.
                let _ = std::thread::Builder::new().spawn(move || shared.serve(stream));
            }
        };
        std::thread::Builder::new().spawn(accept).map_err(|error| Failure::io("a thread", error))?;
        Ok(NullBroker { shared })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.shared.address
    }
}

/// `flumen-bench null-broker`: until it is ended.
pub(crate) fn serve(options: &NullBrokerOptions) -> Result<(), Failure> {
    let (every, stall) = (Duration::from_millis(options.every_ms), Duration::from_millis(options.stall_ms));
    if !every.is_zero() && stall >= every {
        return Err(Failure::Usage("--stall-ms must be below --every-ms".to_owned()));
    }
    let broker = NullBroker::start(
        &options.listen,
        Script {
            partitions: options.partitions,
            stall_every: every,
            stall,
            fault: options.fault,
            keeps: options.keep || options.fault != Fault::None,
            keep_bytes_max: options.keep_bytes,
            topics: options.topics.clone(),
        },
    )?;
    say(&format!("{}\n", broker.address()))?;
    let ended = interrupt::flag()?;
    while !ended.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A request that is not one.
struct Nonsense;

impl<E: std::error::Error> From<E> for Nonsense {
    fn from(_: E) -> Nonsense {
        Nonsense
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let (mut request, mut response) = (Vec::new(), Vec::new());
        while read_frame(&mut stream, &mut request).is_ok() {
            response.clear();
            let Ok(answered) = self.answer(&mut request, response) else { return };
            response = answered;
            self.sit_out_stall();
            if !response.is_empty() && stream.write_all(&response).is_err() {
                return;
            }
        }
    }

    /// Waits for the end of the stall that is now, if there is one.
    fn sit_out_stall(&self) {
        if self.script.stall_every.is_zero() {
            return;
        }
        let within = self.began.elapsed().as_nanos() % self.script.stall_every.as_nanos();
        // A stall ends each period, so that none is at the begin.
        let begin = (self.script.stall_every - self.script.stall).as_nanos();
        if within >= begin {
            let left = self.script.stall_every.as_nanos() - within;
            std::thread::sleep(Duration::from_nanos(left as u64));
        }
    }

    /// The frame of the answer, or nothing where none is wanted.
    fn answer(&self, frame: &mut [u8], into: Vec<u8>) -> Result<Vec<u8>, Nonsense> {
        let mut reader = Reader::new(frame);
        let header = RequestHeader::decode(&mut reader)?;
        let key = ApiKey::from_key(header.api_key).ok_or(Nonsense)?;
        let (version, correlation_id) = (header.api_version, header.correlation_id);
        let known = APIS.iter().find(|(known, ..)| *known == key).ok_or(Nonsense)?;
        if !(known.1..=known.2).contains(&version) {
            return Err(Nonsense);
        }
        let mut writer = Writer::append_to(into);
        let mut reply = Reply { writer: &mut writer, correlation_id, version };
        match key {
            ApiKey::ApiVersions => reply.send(&versions()),
            ApiKey::Metadata => self.metadata(&MetadataRequest::decode(&mut reader, version)?, &mut reply),
            ApiKey::CreateTopics => {
                self.create_topics(&CreateTopicsRequest::decode(&mut reader, version)?, &mut reply)
            }
            ApiKey::InitProducerId => {
                let producer_id = self.began.elapsed().as_nanos() as i64;
                reply.send(&InitProducerIdResponse { producer_id, ..Default::default() });
            }
            ApiKey::Produce => self.produce(&ProduceRequest::decode(&mut reader, version)?, &mut reply)?,
            ApiKey::ListOffsets => {
                self.list_offsets(&ListOffsetsRequest::decode(&mut reader, version)?, &mut reply)
            }
            ApiKey::Fetch => self.fetch(&FetchRequest::decode(&mut reader, version)?, &mut reply),
            _ => return Err(Nonsense),
        }
        Ok(writer.into_bytes())
    }

    fn logs(&self) -> MutexGuard<'_, Logs> {
        self.logs.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn knows(&self, topic: &str) -> bool {
        self.topics.as_ref().is_none_or(|topics| {
            topics.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).contains(topic)
        })
    }

    /// Those that are not there are made; they have as many partitions as all.
    fn create_topics(&self, request: &CreateTopicsRequest<'_>, reply: &mut Reply<'_>) {
        let create = |name: &str| match &self.topics {
            Some(topics) if !self.knows(name) => {
                topics.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(name.to_owned());
                ErrorCode::None
            }
            _ => ErrorCode::TopicAlreadyExists,
        };
        let result = |name| CreatableTopicResult {
            name,
            error_code: create(name).code(),
            configs: Some(Vec::new()),
            ..Default::default()
        };
        let topics = request.topics.iter().map(|topic| result(topic.name)).collect();
        reply.send(&CreateTopicsResponse { topics, ..Default::default() });
    }

    fn metadata(&self, request: &MetadataRequest<'_>, reply: &mut Reply<'_>) {
        let partition = |partition_index| MetadataResponsePartition {
            partition_index,
            leader_id: 1,
            replica_nodes: vec![1],
            isr_nodes: vec![1],
            ..Default::default()
        };
        let topic = |name| match self.knows(name) {
            true => MetadataResponseTopic {
                name: Some(name),
                partitions: (0..self.script.partitions).map(partition).collect(),
                ..Default::default()
            },
            false => MetadataResponseTopic {
                error_code: ErrorCode::UnknownTopicOrPartition.code(),
                name: Some(name),
                ..Default::default()
            },
        };
        let host = self.address.ip().to_string();
        let port = i32::from(self.address.port());
        let names = request.topics.iter().flatten().filter_map(|topic| topic.name);
        reply.send(&MetadataResponse {
            brokers: vec![MetadataResponseBroker { node_id: 1, host: &host, port, rack: None }],
            controller_id: 1,
            topics: names.map(topic).collect(),
            ..Default::default()
        });
    }

    fn produce(&self, request: &ProduceRequest<'_>, reply: &mut Reply<'_>) -> Result<(), Nonsense> {
        let mut responses = Vec::with_capacity(request.topic_data.len());
        for topic in &request.topic_data {
            let mut partition_responses = Vec::with_capacity(topic.partition_data.len());
            for one in &topic.partition_data {
                let records = one.records.unwrap_or_default();
                let base_offset = match self.script.keeps {
                    true => self.keep(topic.name, one.index, records)?,
                    false => 0,
                };
                partition_responses.push(PartitionProduceResponse {
                    index: one.index,
                    base_offset,
                    ..Default::default()
                });
            }
            responses.push(TopicProduceResponse {
                name: topic.name,
                partition_responses,
                ..Default::default()
            });
        }
        if request.acks != 0 {
            reply.send(&ProduceResponse { responses, ..Default::default() });
        }
        Ok(())
    }

    /// Keeps a batch, unless the script has it otherwise.
    fn keep(&self, topic: &str, partition: i32, records: &[u8]) -> Result<i64, Nonsense> {
        let mut logs = self.logs();
        let logs = &mut *logs;
        let log = logs.by_partition.entry((topic.to_owned(), partition)).or_default();
        log.appended += 1;
        let fault = if log.appended.is_multiple_of(SPOILED_EVERY) { self.script.fault } else { Fault::None };
        let base_offset = log.end;
        let mut bytes = 0;
        match fault {
            Fault::Lose => {}
            Fault::Reorder => log.held = Some(records.to_vec()),
            Fault::None | Fault::Duplicate => {
                bytes += log.append(records)?;
                if fault == Fault::Duplicate {
                    bytes += log.append(records)?;
                }
                if let Some(held) = log.held.take() {
                    bytes += log.append(&held)?;
                }
            }
        }
        logs.bytes += bytes;
        while logs.bytes > self.script.keep_bytes_max {
            let Some((_, oldest)) = log.batches.pop_front() else { break };
            logs.bytes -= oldest.len();
        }
        self.appended.notify_all();
        Ok(base_offset)
    }

    fn list_offsets(&self, request: &ListOffsetsRequest<'_>, reply: &mut Reply<'_>) {
        let logs = self.logs();
        let partition = |topic: &str, partition_index: i32, timestamp: i64| {
            let log = logs.by_partition.get(&(topic.to_owned(), partition_index));
            let offset = match timestamp {
                -1 => log.map_or(0, |log| log.end),
                _ => log.map_or(0, Log::begin),
            };
            // Whoever keeps nothing has no offsets, and must not feign that it lost everything.
            let error =
                if self.script.keeps { ErrorCode::None } else { ErrorCode::UnsupportedForMessageFormat };
            ListOffsetsPartitionResponse {
                partition_index,
                error_code: error.code(),
                offset,
                timestamp: -1,
                ..Default::default()
            }
        };
        let topic = |topic: &flumen_wire::messages::list_offsets_request::ListOffsetsTopic<'_>| {
            let found =
                topic.partitions.iter().map(|one| partition(topic.name, one.partition_index, one.timestamp));
            found.collect()
        };
        let topics = request
            .topics
            .iter()
            .map(|one| ListOffsetsTopicResponse { name: one.name, partitions: topic(one) })
            .collect();
        reply.send(&ListOffsetsResponse { topics, ..Default::default() });
    }

    /// Waits for something to come, as long as the request says.
    fn fetch(&self, request: &FetchRequest<'_>, reply: &mut Reply<'_>) {
        let deadline = Instant::now() + Duration::from_millis(request.max_wait_ms.max(0) as u64);
        let mut logs = self.logs();
        loop {
            let has_news = request.topics.iter().any(|topic| {
                topic.partitions.iter().any(|one| {
                    let log = logs.by_partition.get(&(topic.topic.to_owned(), one.partition));
                    log.is_some_and(|log| log.end > one.fetch_offset)
                })
            });
            let left = deadline.saturating_duration_since(Instant::now());
            if has_news || left.is_zero() {
                break;
            }
            let woken = self.appended.wait_timeout(logs, left);
            logs = woken.map_or_else(|poisoned| poisoned.into_inner().0, |(logs, _)| logs);
        }
        let mut found: Vec<Vec<Found>> = Vec::new();
        for topic in &request.topics {
            let partition = |one: &flumen_wire::messages::fetch_request::FetchPartition| {
                let log = logs.by_partition.get(&(topic.topic.to_owned(), one.partition));
                let bytes = log.map(|log| log.read(one.fetch_offset, one.partition_max_bytes as usize));
                let (begin, end) = log.map_or((0, 0), |log| (log.begin(), log.end));
                let bytes = (begin..=end).contains(&one.fetch_offset).then(|| bytes.unwrap_or_default());
                Found { partition: one.partition, begin, end, bytes }
            };
            found.push(topic.partitions.iter().map(partition).collect());
        }
        drop(logs);
        let responses = request.topics.iter().zip(&found).map(|(topic, partitions)| FetchableTopicResponse {
            topic: topic.topic,
            partitions: partitions.iter().map(Found::answer).collect(),
            ..Default::default()
        });
        reply.send(&FetchResponse { responses: responses.collect(), ..Default::default() });
    }
}

/// What a fetch finds in a partition.
struct Found {
    partition: i32,
    begin: i64,
    end: i64,
    /// None where the log does not have the offset.
    bytes: Option<Vec<u8>>,
}

impl Found {
    fn answer(&self) -> PartitionData<'_> {
        let answer = PartitionData {
            partition_index: self.partition,
            log_start_offset: self.begin,
            ..Default::default()
        };
        match &self.bytes {
            Some(bytes) => PartitionData {
                high_watermark: self.end,
                last_stable_offset: self.end,
                records: Some(Records::Slice(bytes)),
                ..answer
            },
            None => PartitionData {
                error_code: ErrorCode::OffsetOutOfRange.code(),
                high_watermark: -1,
                last_stable_offset: -1,
                ..answer
            },
        }
    }
}

impl Log {
    /// Bytes that it took.
    fn append(&mut self, records: &[u8]) -> Result<usize, Nonsense> {
        let header = BatchHeader::parse(records)?;
        let mut bytes = records.to_vec();
        assign(&mut bytes, self.end, 0);
        self.end += i64::from(header.last_offset_delta) + 1;
        self.batches.push_back((self.end, bytes));
        Ok(records.len())
    }

    fn begin(&self) -> i64 {
        let first = self.batches.front().and_then(|(_, bytes)| BatchHeader::parse(bytes).ok());
        first.map_or(self.end, |header| header.base_offset)
    }

    fn read(&self, offset: i64, bytes_max: usize) -> Vec<u8> {
        let first = self.batches.partition_point(|(end, _)| *end <= offset);
        let mut read = Vec::new();
        for (_, bytes) in self.batches.range(first..) {
            if !read.is_empty() && read.len() + bytes.len() > bytes_max {
                break;
            }
            read.extend_from_slice(bytes);
        }
        read
    }
}

struct Reply<'w> {
    writer: &'w mut Writer,
    correlation_id: i32,
    version: i16,
}

impl Reply<'_> {
    fn send<M: Message>(&mut self, body: &M) {
        encode_response(self.writer, self.correlation_id, self.version, body);
    }
}

fn versions() -> ApiVersionsResponse<'static> {
    let api = |(key, min_version, max_version): &(ApiKey, i16, i16)| ApiVersion {
        api_key: *key as i16,
        min_version: *min_version,
        max_version: *max_version,
    };
    ApiVersionsResponse { api_keys: APIS.iter().map(api).collect(), ..Default::default() }
}

fn read_frame(stream: &mut TcpStream, into: &mut Vec<u8>) -> io::Result<()> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix)?;
    let len = frame_len(prefix, REQUEST_BYTES_MAX).map_err(|error| io::Error::other(error.to_string()))?;
    into.clear();
    // Memory follows what comes, not what is claimed.
    let read = stream.take(len as u64).read_to_end(into)?;
    if read == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
