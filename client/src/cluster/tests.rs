//! A cluster whose one broker is a thread with sockets, and says what a test has it say.

use super::*;
use crate::link::tests::read_frame;
use flumen_wire::ApiKey;
use flumen_wire::codec::{Decode, Message, Reader, Writer};
use flumen_wire::frame::{RequestHeader, encode_response};
use flumen_wire::messages::api_versions_response::{ApiVersion, ApiVersionsResponse};
use flumen_wire::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsResponse, ListOffsetsTopicResponse,
};
use flumen_wire::messages::metadata_response::{
    MetadataResponse, MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How often a partition was asked for its offsets, and what is said then: an error, or none.
type Says = dyn Fn(i32, usize) -> ErrorCode + Send + Sync;

/// A broker that leads each partition of topic `t` but the last, and advertises where it is told to.
struct Peer {
    advertised: Option<SocketAddr>,
    partitions: i32,
    asked: Vec<AtomicUsize>,
    says: Box<Says>,
}

impl Peer {
    fn start(
        partitions: i32,
        advertised: Option<SocketAddr>,
        says: impl Fn(i32, usize) -> ErrorCode + Send + Sync + 'static,
    ) -> (SocketAddr, Arc<Peer>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let asked = (0..partitions).map(|_| AtomicUsize::new(0)).collect();
        let advertised = advertised.or(Some(address));
        let peer = Arc::new(Peer { advertised, partitions, asked, says: Box::new(says) });
        let serving = peer.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (mut socket, peer) = (socket.expect("a client"), serving.clone());
                std::thread::spawn(move || {
                    while let Some(frame) = read_frame(&mut socket) {
                        if socket.write_all(&peer.answer(&frame)).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        (address, peer)
    }

    fn asked(&self) -> Vec<usize> {
        self.asked.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    fn answer(&self, frame: &[u8]) -> Vec<u8> {
        let mut reader = Reader::new(frame);
        let header = RequestHeader::decode(&mut reader).expect("a header");
        const METADATA: i16 = ApiKey::Metadata as i16;
        const LIST_OFFSETS: i16 = ApiKey::ListOffsets as i16;
        match header.api_key {
            METADATA => self.metadata(&header),
            LIST_OFFSETS => self.offsets(&header, &mut reader),
            _ => {
                let api = |api_key, max_version| ApiVersion { api_key, min_version: 0, max_version };
                let api_keys =
                    vec![api(ApiKey::ApiVersions as i16, 4), api(METADATA, 8), api(LIST_OFFSETS, 5)];
                respond(&header, &ApiVersionsResponse { api_keys, ..Default::default() })
            }
        }
    }

    fn metadata(&self, header: &RequestHeader<'_>) -> Vec<u8> {
        let at = self.advertised.expect("known once it runs");
        let host = at.ip().to_string();
        let leader_id = |index| if index + 1 == self.partitions { -1 } else { 1 };
        let partition = |partition_index| MetadataResponsePartition {
            partition_index,
            leader_id: leader_id(partition_index),
            ..Default::default()
        };
        let body = MetadataResponse {
            brokers: vec![MetadataResponseBroker {
                node_id: 1,
                host: &host,
                port: at.port().into(),
                rack: None,
            }],
            controller_id: 1,
            topics: vec![MetadataResponseTopic {
                name: Some("t"),
                partitions: (0..self.partitions).map(partition).collect(),
                ..Default::default()
            }],
            ..Default::default()
        };
        respond(header, &body)
    }

    fn offsets(&self, header: &RequestHeader<'_>, reader: &mut Reader<'_>) -> Vec<u8> {
        let request = ListOffsetsRequest::decode(reader, header.api_version).expect("a request");
        let partition = |index: i32| {
            let times = self.asked[index as usize].fetch_add(1, Ordering::Relaxed);
            let error = (self.says)(index, times);
            ListOffsetsPartitionResponse {
                partition_index: index,
                error_code: error.code(),
                offset: if error.is_none() { 100 + i64::from(index) } else { -1 },
                ..Default::default()
            }
        };
        let topic = |topic: &ListOffsetsTopic<'_>| ListOffsetsTopicResponse {
            name: "t",
            partitions: topic.partitions.iter().map(|one| partition(one.partition_index)).collect(),
        };
        let topics = request.topics.iter().map(topic).collect();
        respond(header, &ListOffsetsResponse { topics, ..Default::default() })
    }
}

fn respond<M: Message>(header: &RequestHeader<'_>, body: &M) -> Vec<u8> {
    let mut writer = Writer::new();
    encode_response(&mut writer, header.correlation_id, header.api_version, body);
    writer.into_bytes()
}

fn settings(brokers: Vec<String>) -> Settings {
    // So long that a test which waits for its end is seen to hang.
    let timeout = Duration::from_secs(600);
    Settings { brokers, request_timeout: timeout, retry_timeout: timeout, ..Settings::default() }
}

async fn connected(address: SocketAddr) -> Cluster {
    let cluster = Cluster::connect(settings(vec![address.to_string()])).await.expect("it answers");
    cluster.topic("t", false).await.expect("it is there");
    cluster
}

fn ends(partitions: i32) -> Vec<(TopicPartition, i64)> {
    (0..partitions).map(|index| (TopicPartition::new("t", index), LATEST)).collect()
}

#[test]
fn what_a_partition_does_not_tell_is_not_waited_for() {
    let offline = |partition, _| if partition == 1 { ErrorCode::KafkaStorageError } else { ErrorCode::None };
    let (address, peer) = Peer::start(4, None, offline);
    runtime::block_on(async {
        let cluster = connected(address).await;
        let (told, refusal) = cluster.list_offsets_told(&ends(4)).await;
        let told: Vec<_> = told.iter().map(|(at, one)| (at.partition, one.offset)).collect();
        assert_eq!(told, [(0, 100), (2, 102)]);
        assert!(refusal.is_some());
    });
    assert_eq!(peer.asked(), [1, 1, 1, 0]);
}

#[test]
fn a_leader_that_has_not_heard_of_it_yet_is_asked_again() {
    let new = |partition, times| match (partition, times) {
        (0, 0) => ErrorCode::NotLeaderOrFollower,
        (1, 0..2) => ErrorCode::UnknownTopicOrPartition,
        _ => ErrorCode::None,
    };
    let (address, peer) = Peer::start(4, None, new);
    runtime::block_on(async {
        let cluster = connected(address).await;
        let (told, refusal) = cluster.list_offsets_told(&ends(3)).await;
        assert_eq!((told.len(), refusal.map(|error| error.to_string())), (3, None));
    });
    assert_eq!(peer.asked(), [2, 3, 1, 0]);
}

#[test]
fn an_advertised_address_where_nobody_is_is_named_as_such() {
    // Bound and let go again: nobody listens there now.
    let gone = TcpListener::bind(("127.0.0.1", 0)).and_then(|one| one.local_addr()).expect("a free port");
    let (address, _) = Peer::start(2, Some(gone), |_, _| ErrorCode::None);
    runtime::block_on(async {
        let cluster = connected(address).await;
        let error = cluster.node(1, Lane::Admin).await.map(drop).expect_err("nobody is there");
        let text = error.to_string();
        assert!(text.starts_with(&format!("broker 1 advertises the address {gone}, ")), "{text}");
        assert!(text.contains("connection refused") && text.contains("advertised.listeners"), "{text}");
        assert!(error.is_retriable() && error.is_connection());
    });
}

#[test]
fn nobody_answers_whether_refused_silent_or_without_an_address() {
    // The kernel takes the connection, and nobody ever reads from it.
    let silent = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let silent_at = silent.local_addr().expect("bound").to_string();
    let settings = Settings {
        request_timeout: Duration::from_millis(20),
        ..settings(vec!["127.0.0.1:1".to_owned(), silent_at, "without a port".to_owned()])
    };
    runtime::block_on(async {
        let error = Cluster::connect(settings).await.map(drop).expect_err("nobody is there");
        assert!(matches!(&error, Error::NoBroker(tried) if tried.len() == 3), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("connection refused") && text.contains("no answer to ApiVersions within"),
            "{text}"
        );
    });
}
