//! One connection as bytes in and out: frames, correlation, what is in flight. No socket, no clock.
//!
//! ```text
//!   send() ──► outgoing() ──► sent(n)            requests, in order, in few large pieces
//!   receive_buffer() ──► received(n) ──► next()   responses, in the order of their requests, each with its token
//! ```
//!
//! A driver moves the bytes: it writes what [`Connection::outgoing`] holds and says how much went, reads into
//! [`Connection::receive_buffer`] and says how much came, and takes responses until there are none. `T` is whatever
//! the driver needs to bring a response to its asker.
//!
//! Invariants: responses come in the order of requests, or the connection is broken; memory for a response grows as
//! its bytes arrive; buffers of sent frames are used again.

use crate::limits::{IN_FLIGHT_MAX, READ_CHUNK, RESPONSE_BYTES_MAX, WRITE_CHUNK};
use bytes::{Bytes, BytesMut};
use flumen_wire::ApiKey;
use flumen_wire::codec::{DecodeError, Message, Reader, Writer};
use flumen_wire::frame::{self, FrameError, PREFIX_LEN};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

/// Where the correlation id of a frame stands: behind its length, its API key and its version.
const CORRELATION_AT: usize = 8;

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A frame of no sensible length.
    Frame(FrameError),
    /// A response header that cannot be read.
    Header(ApiKey, DecodeError),
    /// A response to something else than what was asked first.
    Correlation {
        /// The oldest request's.
        expected: i32,
        /// The response's.
        found: i32,
    },
    /// A response that nothing asked for.
    Unasked,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Frame(error) => error.fmt(f),
            Broken::Header(api, error) => write!(f, "the header of a response to {}: {error}", api.name()),
            Broken::Correlation { expected, found } => {
                write!(f, "a response with correlation id {found} where {expected} was due")
            }
            Broken::Unasked => f.write_str("a response that nothing asked for"),
        }
    }
}

/// The connection has as many requests in flight as it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A request that waits for its response.
#[derive(Debug)]
pub struct InFlight<T> {
    /// The driver's.
    pub token: T,
    /// What was asked.
    pub key: ApiKey,
    /// In which version.
    pub version: i16,
    correlation_id: i32,
}

/// A response as it came: its body is read out of the frame.
#[derive(Clone, Debug)]
pub struct Response {
    /// What it answers.
    pub key: ApiKey,
    /// In which version.
    pub version: i16,
    /// The body.
    pub body: Bytes,
}

/// An encoded request frame in a buffer: the frame begins at `start`, what is before it is room that was not used.
#[derive(Debug, Default)]
pub struct Frame {
    /// The buffer.
    pub buffer: Vec<u8>,
    /// Where the frame begins.
    pub start: usize,
}

/// What is to be written: requests gathered here, or a frame that its maker keeps too, to send it again or to use its
/// memory again.
#[derive(Debug)]
enum Piece {
    Gathered(Vec<u8>),
    Lent(Rc<Vec<u8>>, usize),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Gathered(bytes) => bytes,
            Piece::Lent(buffer, start) => &buffer[*start..],
        }
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct Connection<T> {
    client_id: String,
    next_correlation_id: i32,
    outgoing: VecDeque<Piece>,
    /// How much of the first piece has been sent.
    sent: usize,
    /// Of a gathered piece that is sent.
    spare: Vec<u8>,
    in_flight: VecDeque<InFlight<T>>,
    incoming: BytesMut,
    /// How much of `incoming` holds bytes from the peer; what is behind is room for more.
    filled: usize,
    response_bytes_max: usize,
}

impl<T> Connection<T> {
    /// A connection on which nothing has been sent yet.
    pub fn new(client_id: &str) -> Connection<T> {
        Connection {
            client_id: client_id.to_owned(),
            next_correlation_id: 1,
            outgoing: VecDeque::new(),
            sent: 0,
            spare: Vec::new(),
            in_flight: VecDeque::new(),
            incoming: BytesMut::new(),
            filled: 0,
            response_bytes_max: RESPONSE_BYTES_MAX,
        }
    }

    /// Takes responses up to this size instead of [`RESPONSE_BYTES_MAX`].
    pub fn with_response_bytes_max(mut self, bytes: usize) -> Connection<T> {
        self.response_bytes_max = bytes;
        self
    }

    /// What it calls itself.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    // -- out --------------------------------------------------------------------------------------

    /// Puts a request into the output. `token` comes back with its response.
    pub fn send<M: Message>(&mut self, version: i16, request: &M, token: T) -> Result<(), Full> {
        let correlation_id = self.open(M::KEY, version, token)?;
        // Behind those that wait already, but not into a piece that is half sent.
        let gathers = self.sent == 0 || self.outgoing.len() > 1;
        let buffer = match self.outgoing.back_mut() {
            Some(Piece::Gathered(bytes)) if gathers && bytes.len() < WRITE_CHUNK => std::mem::take(bytes),
            _ => {
                let mut buffer = std::mem::take(&mut self.spare);
                buffer.reserve(WRITE_CHUNK);
                self.outgoing.push_back(Piece::Gathered(Vec::new()));
                buffer
            }
        };
        let mut writer = Writer::append_to(buffer);
        frame::encode_request(&mut writer, correlation_id, Some(&self.client_id), version, request);
        if let Some(Piece::Gathered(bytes)) = self.outgoing.back_mut() {
            *bytes = writer.into_bytes();
        }
        Ok(())
    }

    /// Puts a frame that was encoded elsewhere into the output, with the next correlation id in it. Without a
    /// `token` no response is expected (Produce with acks=0). The buffer is shared until it is written or the
    /// connection ends; after its response it is the caller's alone again.
    pub fn send_frame(
        &mut self,
        key: ApiKey,
        version: i16,
        mut frame: Frame,
        token: Option<T>,
    ) -> Result<Rc<Vec<u8>>, (Full, Frame)> {
        let correlation_id = match token {
            Some(token) => match self.open(key, version, token) {
                Ok(correlation_id) => correlation_id,
                Err(full) => return Err((full, frame)),
            },
            None => self.correlate(),
        };
        let at = frame.start + CORRELATION_AT;
        frame.buffer[at..at + 4].copy_from_slice(&correlation_id.to_be_bytes());
        let buffer = Rc::new(frame.buffer);
        self.outgoing.push_back(Piece::Lent(buffer.clone(), frame.start));
        Ok(buffer)
    }

    /// What is to be written next; empty when nothing is.
    pub fn outgoing(&self) -> &[u8] {
        self.outgoing.front().map_or(&[], |piece| &piece.bytes()[self.sent..])
    }

    /// So many bytes of [`Connection::outgoing`] have been written.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.outgoing.front().is_some_and(|piece| self.sent >= piece.bytes().len()) {
            self.sent = 0;
            if let Some(Piece::Gathered(mut buffer)) = self.outgoing.pop_front() {
                buffer.clear();
                self.spare = buffer;
            }
        }
    }

    fn open(&mut self, key: ApiKey, version: i16, token: T) -> Result<i32, Full> {
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            return Err(Full);
        }
        let correlation_id = self.correlate();
        self.in_flight.push_back(InFlight { token, key, version, correlation_id });
        Ok(correlation_id)
    }

    fn correlate(&mut self) -> i32 {
        let correlation_id = self.next_correlation_id;
        self.next_correlation_id = correlation_id.wrapping_add(1) & i32::MAX;
        correlation_id
    }

    // -- in ---------------------------------------------------------------------------------------

    /// Room for bytes from the peer; never empty.
    pub fn receive_buffer(&mut self) -> &mut [u8] {
        if self.filled == self.incoming.len() {
            self.make_room();
        }
        &mut self.incoming[self.filled..]
    }

    /// So many bytes have been read into [`Connection::receive_buffer`].
    pub fn received(&mut self, bytes: usize) {
        assert!(bytes <= self.incoming.len() - self.filled, "more than there was room for");
        self.filled += bytes;
    }

    /// The next response that is whole, with its request.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<(InFlight<T>, Response)>, Broken> {
        let Some(prefix) = self.incoming[..self.filled].first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let len = frame::frame_len(*prefix, self.response_bytes_max).map_err(Broken::Frame)?;
        if self.filled < PREFIX_LEN + len {
            return Ok(None);
        }
        let mut body = self.incoming.split_to(PREFIX_LEN + len).freeze().slice(PREFIX_LEN..);
        self.filled -= PREFIX_LEN + len;
        let Some(asked) = self.in_flight.pop_front() else { return Err(Broken::Unasked) };
        let mut reader = Reader::new(&body);
        let found = frame::decode_response_header(&mut reader, asked.key, asked.version)
            .map_err(|error| Broken::Header(asked.key, error))?;
        if found != asked.correlation_id {
            return Err(Broken::Correlation { expected: asked.correlation_id, found });
        }
        let header = body.len() - reader.remaining();
        bytes::Buf::advance(&mut body, header);
        let response = Response { key: asked.key, version: asked.version, body };
        Ok(Some((asked, response)))
    }

    /// The request that waits longest.
    pub fn oldest(&self) -> Option<&InFlight<T>> {
        self.in_flight.front()
    }

    /// All that wait, oldest first, to be told that the connection is gone. What was not written is let go.
    pub fn drain(&mut self) -> impl Iterator<Item = InFlight<T>> + '_ {
        self.outgoing.clear();
        self.sent = 0;
        self.in_flight.drain(..)
    }

    /// How many requests wait.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// A new buffer behind what has come of the frame that is being received: twice as large as that, so that memory
    /// follows what a peer sends, not what it claims; but not past the frame.
    fn make_room(&mut self) {
        let claimed = self.incoming[..self.filled].first_chunk::<PREFIX_LEN>().map_or(0, |prefix| {
            frame::frame_len(*prefix, self.response_bytes_max).map_or(0, |len| PREFIX_LEN + len)
        });
        let room = claimed.min(self.filled.saturating_mul(2)).max(self.filled + READ_CHUNK);
        let mut next = BytesMut::zeroed(room);
        next[..self.filled].copy_from_slice(&self.incoming[..self.filled]);
        self.incoming = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_wire::codec::{Decode, Encode};
    use flumen_wire::frame::{RequestHeader, encode_response};
    use flumen_wire::messages::heartbeat_request::HeartbeatRequest;
    use flumen_wire::messages::heartbeat_response::HeartbeatResponse;

    fn request(generation_id: i32) -> HeartbeatRequest<'static> {
        HeartbeatRequest { group_id: "g", generation_id, member_id: "m", group_instance_id: None }
    }

    fn response(correlation_id: i32, throttle_time_ms: i32) -> Vec<u8> {
        let mut writer = Writer::new();
        let body = HeartbeatResponse { throttle_time_ms, error_code: 0 };
        encode_response(&mut writer, correlation_id, 4, &body);
        writer.into_bytes()
    }

    fn feed(connection: &mut Connection<u32>, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = connection.receive_buffer();
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            connection.received(count);
            bytes = &bytes[count..];
        }
    }

    #[test]
    fn requests_leave_in_order_and_responses_find_them_however_they_are_cut() {
        for cut in 1..40 {
            let mut connection = Connection::new("me");
            for token in 0..3 {
                connection.send(4, &request(token as i32), token).expect("room");
            }
            let mut sent = Vec::new();
            while !connection.outgoing().is_empty() {
                let count = cut.min(connection.outgoing().len());
                sent.extend_from_slice(&connection.outgoing()[..count]);
                connection.sent(count);
            }
            let mut at = &sent[..];
            for token in 0..3 {
                let len = frame::frame_len(*at.first_chunk().expect("a prefix"), 1000).expect("a frame");
                let mut reader = Reader::new(&at[PREFIX_LEN..PREFIX_LEN + len]);
                let header = RequestHeader::decode(&mut reader).expect("a header");
                assert_eq!((header.correlation_id, header.client_id), (token + 1, Some("me")));
                assert_eq!(HeartbeatRequest::decode(&mut reader, 4), Ok(request(token)));
                at = &at[PREFIX_LEN + len..];
            }
            let all = [response(1, 10), response(2, 11), response(3, 12)].concat();
            let mut seen = Vec::new();
            for piece in all.chunks(cut) {
                feed(&mut connection, piece);
                while let Some((asked, response)) = connection.next().expect("in order") {
                    let mut reader = Reader::new(&response.body);
                    let body = HeartbeatResponse::decode(&mut reader, response.version).expect("whole");
                    seen.push((asked.token, body.throttle_time_ms));
                }
            }
            assert_eq!(seen, [(0, 10), (1, 11), (2, 12)]);
            assert_eq!(connection.in_flight(), 0);
        }
    }

    #[test]
    fn a_response_out_of_order_or_unasked_breaks_the_connection() {
        let mut connection = Connection::new("me");
        feed(&mut connection, &response(1, 0));
        assert_eq!(connection.next().err(), Some(Broken::Unasked));
        let mut connection = Connection::new("me");
        connection.send(4, &request(0), 0).expect("room");
        feed(&mut connection, &response(2, 0));
        assert_eq!(connection.next().err(), Some(Broken::Correlation { expected: 1, found: 2 }));
        let mut connection = Connection::<u32>::new("me").with_response_bytes_max(100);
        feed(&mut connection, &[0x7f, 0xff, 0xff, 0xff]);
        assert!(matches!(connection.next(), Err(Broken::Frame(FrameError::TooLarge { .. }))));
    }

    #[test]
    fn a_frame_encoded_elsewhere_gets_its_correlation_id() {
        let mut connection = Connection::new("me");
        connection.send(4, &request(0), 0).expect("room");
        let mut writer = Writer::append_to(vec![0xee; 50]);
        frame::encode_request(&mut writer, 0, Some("other"), 4, &request(7));
        let frame = Frame { buffer: writer.into_bytes(), start: 50 };
        let kept = connection.send_frame(ApiKey::Heartbeat, 4, frame, Some(1)).expect("room");
        connection.sent(connection.outgoing().len());
        let mut reader = Reader::new(&connection.outgoing()[PREFIX_LEN..]);
        assert_eq!(RequestHeader::decode(&mut reader).expect("a header").correlation_id, 2);
        // Once written, the buffer is its maker's alone.
        let kept = Rc::try_unwrap(kept).expect_err("not written yet");
        connection.sent(connection.outgoing().len());
        assert!(connection.outgoing().is_empty());
        assert!(Rc::try_unwrap(kept).is_ok());
    }

    #[test]
    fn memory_follows_what_came_not_what_is_claimed() {
        let mut connection = Connection::<u32>::new("me");
        feed(&mut connection, &(200_i32 << 20).to_be_bytes());
        assert!(connection.receive_buffer().len() <= 2 * READ_CHUNK);
        let mut left = 8 << 20;
        while left > 0 {
            let room = connection.receive_buffer().len();
            assert!(room <= READ_CHUNK.max(8 << 20));
            let count = room.min(left);
            connection.received(count);
            left -= count;
        }
        assert!(connection.incoming.len() <= 16 << 20);
    }

    #[test]
    fn what_is_in_flight_is_bounded() {
        let mut connection = Connection::new("me");
        for token in 0..IN_FLIGHT_MAX as u32 {
            connection.send(4, &request(0), token).expect("room");
        }
        assert_eq!(connection.send(4, &request(0), 0), Err(Full));
        assert_eq!(connection.drain().count(), IN_FLIGHT_MAX);
        assert!(request(0).encoded_len(4) > 0);
    }
}
