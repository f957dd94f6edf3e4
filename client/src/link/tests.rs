//! A link against a peer that behaves and against several that do not, each a thread with a socket.

use super::*;
use flumen_wire::codec::{Message, Writer};
use flumen_wire::frame::{PREFIX_LEN, RequestHeader, encode_response};
use flumen_wire::messages::api_versions_response::ApiVersion;
use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
use flumen_wire::messages::heartbeat_response::HeartbeatResponse;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// What a peer makes of a request: a response, nothing yet, or the end.
enum Does {
    Answer(Vec<u8>),
    Wait,
    Close,
}

fn respond<M: Message>(header: &RequestHeader<'_>, version: i16, body: &M) -> Does {
    let mut writer = Writer::new();
    encode_response(&mut writer, header.correlation_id, version, body);
    Does::Answer(writer.into_bytes())
}

fn versions(header: &RequestHeader<'_>, version: i16, error: ErrorCode) -> Does {
    let api = |api_key, max_version| ApiVersion { api_key, min_version: 0, max_version };
    let api_keys = vec![api(ApiKey::ApiVersions as i16, 2), api(ApiKey::Heartbeat as i16, 4)];
    let body = ApiVersionsResponse { error_code: error.code(), api_keys, ..Default::default() };
    respond(header, version, &body)
}

/// A peer for one connection.
fn peer(mut each: impl FnMut(&RequestHeader<'_>) -> Does + Send + 'static) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a client");
        while let Some(frame) = read_frame(&mut socket) {
            let header = RequestHeader::decode(&mut Reader::new(&frame)).expect("a header");
            match each(&header) {
                Does::Answer(bytes) => socket.write_all(&bytes).expect("sent"),
                Does::Wait => {}
                Does::Close => return,
            }
        }
    });
    address
}

pub(crate) fn read_frame(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let mut prefix = [0; PREFIX_LEN];
    socket.read_exact(&mut prefix).ok()?;
    let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
    socket.read_exact(&mut frame).ok()?;
    Some(frame)
}

/// Answers the question for its versions as a current broker does, the rest as `each` says.
fn current(mut each: impl FnMut(&RequestHeader<'_>) -> Does + Send + 'static) -> String {
    peer(move |header| {
        if header.api_key == ApiKey::ApiVersions as i16 {
            versions(header, header.api_version, ErrorCode::None)
        } else {
            each(header)
        }
    })
}

fn settings(timeout_ms: u64) -> LinkSettings {
    LinkSettings { client_id: "test".to_owned(), request_timeout: Duration::from_millis(timeout_ms) }
}

fn heartbeat(generation_id: i32) -> HeartbeatRequest<'static> {
    HeartbeatRequest { group_id: "g", generation_id, member_id: "m", group_instance_id: None }
}

/// Runs on both drivers.
fn on_both<Fut: Future<Output = ()>>(test: impl Fn() -> Fut) {
    runtime::block_on(test());
    runtime::run_uring(&runtime::UringSettings::default(), &test).expect("io_uring is to be had here");
}

#[test]
fn many_requests_are_in_flight_and_answered_in_order() {
    on_both(|| async {
        let address = current(|header| {
            let body = HeartbeatResponse { throttle_time_ms: header.correlation_id, error_code: 0 };
            respond(header, header.api_version, &body)
        });
        let link = Link::connect(&address, &settings(5000)).await.expect("connected");
        let send = |n| link.send(4, &heartbeat(n), Duration::ZERO).expect("sent");
        let pending: Vec<_> = (0..500).map(send).collect();
        assert_eq!(link.in_flight(), 500);
        let mut seen = Vec::new();
        for one in pending {
            let answer: Answer<HeartbeatRequest<'_>> = link.answer(one).await.expect("answered");
            seen.push(answer.read().expect("whole").throttle_time_ms);
        }
        assert_eq!(seen, (2..502).collect::<Vec<_>>());
    });
}

#[test]
fn a_peer_that_knows_only_old_versions_is_asked_in_one_of_those() {
    on_both(|| async {
        let address = peer(|header| match header.api_version {
            // As KIP-511 has it: version 0 whatever was asked.
            3.. => versions(header, 0, ErrorCode::UnsupportedVersion),
            version => versions(header, version, ErrorCode::None),
        });
        let link = Link::connect(&address, &settings(5000)).await.expect("connected");
        assert_eq!(link.version::<HeartbeatRequest<'_>>().expect("it has it"), 4);
        let lacking = link.version::<crate::api::tests::Lacking<'_>>().expect_err("it has not");
        assert!(lacking.to_string().contains("does not have the API JoinGroup"), "{lacking}");
    });
}

#[test]
fn an_overdue_answer_ends_the_connection_for_all_who_wait() {
    on_both(|| async {
        let address = current(|_| Does::Wait);
        let link = Link::connect(&address, &settings(80)).await.expect("connected");
        let patient = link.send(4, &heartbeat(1), Duration::from_secs(60)).expect("sent");
        let began = Instant::now();
        // The first may take a minute, and the second comes after it.
        runtime::sleep(Duration::from_millis(150)).await;
        assert!(link.is_open());
        drop(patient);
        let address = current(|_| Does::Wait);
        let link = Link::connect(&address, &settings(80)).await.expect("connected");
        let first = link.send(4, &heartbeat(1), Duration::ZERO).expect("sent");
        let error = link.call(|_| heartbeat(2)).await.expect_err("no answer comes");
        assert!(matches!(&error, Error::Timeout { api: ApiKey::Heartbeat, .. }), "{error}");
        assert!(matches!(first.await, Ok(Err(Error::Timeout { .. }))));
        assert!(!link.is_open() && link.call(|_| heartbeat(3)).await.is_err());
        assert!(began.elapsed() < Duration::from_secs(20));
    });
}

#[test]
fn a_peer_that_closes_is_told_with_what_it_was_asked() {
    on_both(|| async {
        let address = current(|_| Does::Close);
        let link = Link::connect(&address, &settings(5000)).await.expect("connected");
        let error = link.call(|_| heartbeat(0)).await.expect_err("closed");
        assert!(
            error.to_string().contains("closed the connection instead of answering Heartbeat"),
            "{error}"
        );
        let address = peer(|_| Does::Close);
        let error = Link::connect(&address, &settings(5000)).await.err().expect("closed");
        assert!(error.to_string().contains("is it the Kafka listener"), "{error}");
    });
}

#[test]
fn what_is_no_broker_is_told() {
    on_both(|| async {
        let http = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
        let address = peer(move |_| Does::Answer(http.clone()));
        let error = Link::connect(&address, &settings(5000)).await.err().expect("no broker");
        assert!(error.to_string().contains("is it a Kafka broker?"), "{error}");
        let error = Link::connect("127.0.0.1:1", &settings(5000)).await.err().expect("nobody there");
        assert_eq!(error.to_string(), "127.0.0.1:1: connection refused");
        let error = Link::connect("nonsense", &settings(5000)).await.err().expect("no address");
        assert!(error.to_string().contains("give HOST:PORT"), "{error}");
    });
}

#[test]
fn a_dropped_link_closes_its_socket() {
    on_both(|| async {
        let (told, closed) = std::sync::mpsc::channel();
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("a client");
            let frame = read_frame(&mut socket).expect("a request");
            let header = RequestHeader::decode(&mut Reader::new(&frame)).expect("a header");
            if let Does::Answer(bytes) = versions(&header, header.api_version, ErrorCode::None) {
                socket.write_all(&bytes).expect("sent");
            }
            told.send(read_frame(&mut socket).is_none()).expect("awaited");
        });
        drop(Link::connect(&address, &settings(5000)).await.expect("connected"));
        runtime::sleep(Duration::from_millis(1)).await;
        assert_eq!(closed.recv_timeout(Duration::from_secs(10)), Ok(true));
    });
}
