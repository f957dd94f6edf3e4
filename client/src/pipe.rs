//! One socket to one broker that its owner drives: no task, no channel, nothing allocated for a request. For load
//! generators, whose own cost would otherwise be what they measure; [`crate::Link`] is what others want.
//!
//! ```text
//!   write() ──► poll_flush()        requests, encoded where they are sent from
//!   poll_receive() ──► next()       responses, in the order of their requests, read where they were received
//! ```
//!
//! Whoever owns it calls these from one task and is woken by it. It has no deadline of its own: [`Pipe::oldest`] says
//! since when an answer is due.
//!
//! Invariants: responses come in the order of requests, or the pipe is broken; memory for a response grows as its bytes
//! arrive, to at most [`RESPONSE_BYTES_MAX`]; buffers are kept as large as they were needed.

use crate::error::Error;
use crate::limits::RESPONSE_BYTES_MAX;
use crate::link::{explain, is_gone, open};
use crate::runtime::Stream;
use flumen_wire::ApiKey;
use flumen_wire::codec::Reader;
use flumen_wire::frame::{self, PREFIX_LEN};
use futures_io::{AsyncRead, AsyncWrite};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

/// What is read at once, at least.
const READ_BYTES: usize = 32 << 10;

/// A request that waits for its response.
#[derive(Debug)]
pub struct Asked<T> {
    /// The owner's.
    pub token: T,
    /// What was asked.
    pub key: ApiKey,
    /// In which version.
    pub version: i16,
    /// When it was written.
    pub at: Instant,
    correlation_id: i32,
}

/// A request and the body of its response.
pub type Answered<'a, T> = (Asked<T>, &'a [u8]);

/// See the head of this file.
#[derive(Debug)]
pub struct Pipe<T> {
    stream: Stream,
    address: Rc<str>,
    next_correlation_id: i32,
    outgoing: Vec<u8>,
    /// How much of `outgoing` the kernel has.
    written: usize,
    in_flight: VecDeque<Asked<T>>,
    incoming: Vec<u8>,
    /// Where what is not read yet begins in `incoming`, and where what was received ends.
    received: std::ops::Range<usize>,
}

impl<T> Pipe<T> {
    /// Connects to `host:port`. What the broker can do is for the owner to know.
    pub async fn connect(address: &str) -> Result<Pipe<T>, Error> {
        let stream = open(address).await?;
        Ok(Pipe {
            stream,
            address: address.into(),
            next_correlation_id: 1,
            outgoing: Vec::new(),
            written: 0,
            in_flight: VecDeque::new(),
            incoming: Vec::new(),
            received: 0..0,
        })
    }

    /// The peer, as it was given.
    pub fn address(&self) -> &Rc<str> {
        &self.address
    }

    /// How many requests wait for their responses.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The request that waits longest.
    pub fn oldest(&self) -> Option<&Asked<T>> {
        self.in_flight.front()
    }

    /// Requests that will not be answered any more, oldest first.
    pub fn drain(&mut self) -> impl Iterator<Item = Asked<T>> + '_ {
        self.in_flight.drain(..)
    }

    // -- out --------------------------------------------------------------------------------------

    /// Bytes of requests that the kernel has not taken.
    pub fn unsent_bytes(&self) -> usize {
        self.outgoing.len() - self.written
    }

    /// Adds a request. `write` appends one whole frame with the given correlation id to the buffer. Without a `token` no
    /// response is expected (Produce with acks=0).
    pub fn write(
        &mut self,
        (key, version): (ApiKey, i16),
        token: Option<T>,
        now: Instant,
        write: impl FnOnce(Vec<u8>, i32) -> Vec<u8>,
    ) {
        let correlation_id = self.next_correlation_id;
        self.next_correlation_id = correlation_id.wrapping_add(1) & i32::MAX;
        // Also where the kernel never takes all: what it has taken goes once it is as much as what would be moved.
        if self.written >= self.unsent_bytes() {
            self.outgoing.drain(..self.written);
            self.written = 0;
        }
        self.outgoing = write(std::mem::take(&mut self.outgoing), correlation_id);
        if let Some(token) = token {
            self.in_flight.push_back(Asked { token, key, version, at: now, correlation_id });
        }
    }

    /// Gives the kernel what it takes. Ready when it has everything.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while self.written < self.outgoing.len() {
            match Pin::new(&mut self.stream).poll_write(context, &self.outgoing[self.written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.closed())),
                Poll::Ready(Ok(count)) => self.written += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.failed(&error))),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    // -- in ---------------------------------------------------------------------------------------

    /// Reads once. Ready when something came: then [`Pipe::next`] is to be called until there is nothing more.
    pub fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.make_room();
        let room = &mut self.incoming[self.received.end..];
        match Pin::new(&mut self.stream).poll_read(context, room) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(self.closed())),
            Poll::Ready(Ok(count)) => {
                self.received.end += count;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.failed(&error))),
            Poll::Pending => Poll::Pending,
        }
    }

    /// The next response that is whole: its request and its body.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Answered<'_, T>>, Error> {
        let Some(len) = self.frame_len()? else { return Ok(None) };
        if self.received.len() < PREFIX_LEN + len {
            return Ok(None);
        }
        let begin = self.received.start + PREFIX_LEN;
        self.received.start = begin + len;
        let malformed = |why| Error::Malformed { address: self.address.clone(), api: None, why };
        let Some(asked) = self.in_flight.pop_front() else {
            return Err(malformed("a response that nothing asked for".to_owned()));
        };
        let mut reader = Reader::new(&self.incoming[begin..begin + len]);
        let found = frame::decode_response_header(&mut reader, asked.key, asked.version)
            .map_err(|error| Error::decode(&self.address, asked.key, error))?;
        if found != asked.correlation_id {
            let expected = asked.correlation_id;
            return Err(malformed(format!(
                "a response with correlation id {found} where {expected} was due"
            )));
        }
        let body = begin + len - reader.remaining();
        Ok(Some((asked, &self.incoming[body..begin + len])))
    }

    fn frame_len(&self) -> Result<Option<usize>, Error> {
        let Some(prefix) = self.incoming[self.received.clone()].first_chunk::<PREFIX_LEN>() else {
            return Ok(None);
        };
        let len = frame::frame_len(*prefix, RESPONSE_BYTES_MAX);
        len.map(Some).map_err(|error| Error::frame(&self.address, error))
    }

    /// Room behind what was received: at least [`READ_BYTES`], and as much as has come of a large frame already.
    fn make_room(&mut self) {
        if self.received.is_empty() {
            self.received = 0..0;
        }
        if self.incoming.len() - self.received.end >= READ_BYTES {
            return;
        }
        self.incoming.copy_within(self.received.clone(), 0);
        self.received = 0..self.received.len();
        let claimed = self.frame_len().ok().flatten().map_or(0, |len| PREFIX_LEN + len);
        let wanted = claimed.min(2 * self.received.end).max(self.received.end + READ_BYTES);
        if self.incoming.len() < wanted {
            self.incoming.resize(wanted, 0);
        }
    }

    fn closed(&self) -> Error {
        Error::Closed { address: self.address.clone(), waiting: self.oldest().map(|one| one.key) }
    }

    fn failed(&self, error: &io::Error) -> Error {
        if is_gone(error) {
            return self.closed();
        }
        Error::Socket { address: self.address.clone(), why: explain(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::block_on;
    use flumen_wire::codec::{Decode, Writer};
    use flumen_wire::frame::{encode_request, encode_response};
    use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
    use flumen_wire::messages::heartbeat_response::HeartbeatResponse;
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    fn request(correlation_id: i32, generation_id: i32) -> Vec<u8> {
        let body = HeartbeatRequest { group_id: "g", generation_id, member_id: "m", group_instance_id: None };
        let mut writer = Writer::new();
        encode_request(&mut writer, correlation_id, Some("me"), 4, &body);
        writer.into_bytes()
    }

    fn response(correlation_id: i32, throttle_time_ms: i32) -> Vec<u8> {
        let mut writer = Writer::new();
        let body = HeartbeatResponse { throttle_time_ms, error_code: 0 };
        encode_response(&mut writer, correlation_id, 4, &body);
        writer.into_bytes()
    }

    /// Sends three requests to a peer that checks them and answers with `answers`, in two pieces. What came, by token.
    fn exchange(answers: Vec<u8>) -> Result<Vec<(u32, i32)>, Error> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let peer = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("a client");
            let expected = [request(1, 10), request(2, 11), request(3, 12)].concat();
            let mut asked = vec![0; expected.len()];
            socket.read_exact(&mut asked).expect("three requests");
            assert_eq!(asked, expected);
            let (first, second) = answers.split_at(answers.len() / 2);
            socket.write_all(first).expect("taken");
            socket.write_all(second).expect("taken");
        });
        let came = block_on(async {
            let mut pipe = Pipe::connect(&address).await?;
            for token in 0..3_u32 {
                pipe.write(
                    (ApiKey::Heartbeat, 4),
                    Some(token),
                    Instant::now(),
                    |mut buffer, correlation_id| {
                        buffer.extend(request(correlation_id, 10 + token as i32));
                        buffer
                    },
                );
            }
            poll_fn(|context| pipe.poll_flush(context)).await?;
            let mut came = Vec::new();
            while pipe.in_flight() > 0 {
                poll_fn(|context| pipe.poll_receive(context)).await?;
                while let Some((asked, body)) = pipe.next()? {
                    let body = HeartbeatResponse::decode(&mut Reader::new(body), asked.version);
                    came.push((asked.token, body.expect("readable").throttle_time_ms));
                }
            }
            Ok(came)
        });
        peer.join().expect("no panic");
        came
    }

    #[test]
    fn responses_reach_their_requests() {
        let came = exchange([response(1, 7), response(2, 8), response(3, 9)].concat());
        assert_eq!(came.expect("answered"), [(0, 7), (1, 8), (2, 9)]);
    }

    #[test]
    fn what_is_no_response_breaks_it() {
        let wrong_order = exchange([response(1, 7), response(3, 9), response(2, 8)].concat());
        assert!(matches!(wrong_order, Err(Error::Malformed { .. })), "{wrong_order:?}");
        let negative = exchange(vec![0xff; 8]);
        assert!(matches!(negative, Err(Error::Malformed { .. })), "{negative:?}");
        let short = exchange(response(1, 7));
        assert!(matches!(short, Err(Error::Closed { waiting: Some(ApiKey::Heartbeat), .. })), "{short:?}");
    }
}
