//! One client connection: requests in, responses out in the order of their requests.
//!
//! Owned by the shard whose listener accepted it; never leaves that core. Requests of one connection are worked
//! on at the same time, so each takes a *place* in the output first, and its response leaves when all places
//! before it have left.
//!
//! ```text
//!   open ──(peer closes, bad frame, I/O error, too slow)──> closed
//!     reading <──> paused      paused: the peer must first take its responses, or the shard has no room
//! ```
//!
//! Invariants:
//! - responses leave in the order of the requests;
//! - nothing is allocated by a length that a peer merely claims: buffers grow as the bytes arrive;
//! - what one connection can pin is bounded: its unprocessed input by one frame, its places by `REQUESTS_IN_FLIGHT_MAX`,
//!   the frames of requests under way by `IN_FLIGHT_BYTES_MAX` and one, or by one where those of all connections of the
//!   shard are too much; and no further request is read, nor one that was read begun, while `UNSENT_BYTES_PAUSE` wait to be
//!   sent;
//! - a closed connection has no descriptor, whoever waits for something on its behalf.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::response::{Piece, Response};
use crate::runtime::local::Bell;
use crate::shard::fetch::ParkedFetch;

/// Requests of one connection that may be under way at once; past it, its input waits in the socket.
pub(crate) const REQUESTS_IN_FLIGHT_MAX: usize = 2048;
/// As many of any size.
const REQUESTS_IN_FLIGHT_MIN: usize = 256;
/// What the requests of a connection may pin, from [`REQUESTS_IN_FLIGHT_MIN`] of them on.
const IN_FLIGHT_BYTES_PAUSE: usize = 4 << 20;
/// What fewer may pin. One may be as large as any.
const IN_FLIGHT_BYTES_MAX: usize = 16 << 20;
/// What a request is taken to pin at least that is worked on as a task.
pub(crate) const TASK_BYTES: usize = IN_FLIGHT_BYTES_PAUSE / REQUESTS_IN_FLIGHT_MIN;
/// Response bytes waiting to be sent, from which on no further request of the connection is read or begun.
pub(crate) const UNSENT_BYTES_PAUSE: usize = 1 << 20;
/// Slices given to one `sendmsg`.
const IOVECS_MAX: usize = 64;

/// Names a connection of this shard for good: slots are used again, keys are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionKey {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl ConnectionKey {
    pub(super) fn to_u64(self) -> u64 {
        u64::from(self.slot) | u64::from(self.generation) << 32
    }

    pub(super) fn from_u64(data: u64) -> Self {
        ConnectionKey { slot: data as u32, generation: (data >> 32) as u32 }
    }
}

/// The place of a response in the output of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

pub(crate) struct Connection {
    pub(crate) key: ConnectionKey,
    pub(crate) peer: SocketAddr,
    /// Until it is closed: tasks that wait for something else may know the connection for long after.
    pub(super) socket: RefCell<Option<OwnedFd>>,
    /// The head of a frame whose rest has not arrived.
    pub(super) partial: RefCell<BytesMut>,
    /// `partial` holds whole frames, left there by a pause.
    pub(super) backlog: Cell<bool>,
    /// Bytes of `partial`, as the shard's intake counts them, and since when there are any.
    pub(super) unfinished_bytes: Cell<usize>,
    pub(super) unfinished_since: Cell<Duration>,
    /// Waits for memory to take more of a frame.
    pub(super) starved: Cell<bool>,
    /// The last frame was larger than what is received at once.
    pub(super) large: Cell<bool>,
    output: RefCell<Output>,
    pub(super) closed: Cell<bool>,
    /// What epoll watches for.
    pub(super) interest: Cell<Interest>,
    /// The peer sends no more: what is left can be read, and then the end.
    pub(super) hung_up: Cell<bool>,
    /// On the list of connections to look after at the end of this turn.
    pub(super) listed: Cell<bool>,
    /// A handler asked for a pause (back-pressure of the log).
    pub(super) held: Cell<u32>,
    pub(super) last_active: Cell<Duration>,
    /// When the peer took something last, of what it has not taken whole.
    pub(super) stands_since: Cell<Duration>,
    /// Rung when responses have left, or can no more.
    moved: Bell,
    /// What the requests under way pin.
    in_flight_bytes: Cell<usize>,
    /// Fetches of this connection that wait for data.
    pub(crate) parked: RefCell<Vec<Rc<ParkedFetch>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interest {
    pub(super) read: bool,
    /// That the peer hangs up: as `read`, and also where only others keep it from being read. It is told again and again until it is read.
    pub(super) hangup: bool,
    pub(super) write: bool,
}

#[derive(Default)]
struct Output {
    /// Number of the first place in `places`.
    first: u64,
    /// `None`: the answer is still being worked on.
    places: VecDeque<Option<Response>>,
    /// Responses that are next to leave.
    unsent: VecDeque<Piece>,
    /// Bytes of the first unsent piece that have left.
    sent_of_first: usize,
    unsent_bytes: usize,
    /// Bytes of ready responses that wait behind one that is not.
    waiting_bytes: usize,
}

/// What became of an attempt to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    All,
    /// The socket is full.
    Blocked,
    /// The peer is gone.
    Failed,
}

/// Below how many pinned bytes a connection with so many requests under way may send another.
fn in_flight_bytes_max(requests: usize) -> usize {
    match requests {
        0 => usize::MAX,
        1..REQUESTS_IN_FLIGHT_MIN => IN_FLIGHT_BYTES_MAX,
        _ => IN_FLIGHT_BYTES_PAUSE,
    }
}

impl Connection {
    pub(super) fn new(key: ConnectionKey, socket: OwnedFd, peer: SocketAddr, now: Duration) -> Self {
        Connection {
            key,
            peer,
            socket: RefCell::new(Some(socket)),
            partial: RefCell::default(),
            backlog: Cell::new(false),
            unfinished_bytes: Cell::new(0),
            unfinished_since: Cell::new(now),
            starved: Cell::new(false),
            large: Cell::new(false),
            output: RefCell::default(),
            closed: Cell::new(false),
            interest: Cell::new(Interest { read: true, hangup: true, write: false }),
            hung_up: Cell::new(false),
            listed: Cell::new(false),
            held: Cell::new(0),
            last_active: Cell::new(now),
            stands_since: Cell::new(now),
            moved: Bell::new(),
            in_flight_bytes: Cell::new(0),
            parked: RefCell::default(),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// A request begins that pins so much.
    pub(super) fn pin(&self, bytes: usize) {
        self.in_flight_bytes.set(self.in_flight_bytes.get() + bytes);
    }

    /// What the requests under way pin.
    pub(super) fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes.get()
    }

    /// It has ended.
    pub(super) fn unpin(&self, bytes: usize) {
        let left = self.in_flight_bytes.get().checked_sub(bytes);
        self.in_flight_bytes.set(left.expect("a request ends once"));
    }

    /// Takes the next place for a response.
    pub(crate) fn reserve(&self) -> Place {
        let mut output = self.output.borrow_mut();
        output.places.push_back(None);
        Place(output.first + output.places.len() as u64 - 1)
    }

    /// Puts a response in its place. It is sent at the end of the turn, when those before it are there.
    pub(super) fn fill(&self, place: Place, response: Response) {
        let mut output = self.output.borrow_mut();
        let index = place.0.checked_sub(output.first).expect("a place is filled once");
        output.waiting_bytes += response.len();
        let taken = output.places[index as usize].replace(response);
        assert!(taken.is_none(), "a place is filled once");
        while let Some(Some(_)) = output.places.front() {
            let Some(Some(response)) = output.places.pop_front() else { unreachable!("looked at above") };
            output.first += 1;
            output.waiting_bytes -= response.len();
            output.unsent_bytes += response.len();
            output.unsent.extend(response.into_pieces());
        }
    }

    /// Waits until the response to go to `place` may be made: the peer takes those before it.
    pub(crate) async fn room(&self, place: Place) {
        self.until(|output| {
            output.unsent_bytes < UNSENT_BYTES_PAUSE
                && (output.waiting_bytes < UNSENT_BYTES_PAUSE || output.first == place.0)
        })
        .await;
    }

    /// As [`Connection::room`], and until all responses before it are made: for one that may be large.
    pub(crate) async fn turn(&self, place: Place) {
        self.until(|output| output.unsent_bytes < UNSENT_BYTES_PAUSE && output.first == place.0).await;
    }

    async fn until(&self, is_so: impl Fn(&Output) -> bool) {
        while !self.closed.get() && !is_so(&self.output.borrow()) {
            // Nothing happens between the look and this, on one core.
            self.moved.next().await;
        }
    }

    /// Says to those who wait that something has left, or nothing will any more.
    pub(super) fn ring(&self) {
        self.moved.ring();
    }

    /// Whether the next request may be read: the peer takes its responses and nothing holds it up.
    pub(super) fn may_read(&self) -> bool {
        let output = self.output.borrow();
        self.held.get() == 0
            && !self.starved.get()
            && output.places.len() < REQUESTS_IN_FLIGHT_MAX
            && self.in_flight_bytes.get() < in_flight_bytes_max(output.places.len())
            && output.unsent_bytes + output.waiting_bytes < UNSENT_BYTES_PAUSE
    }

    /// Bytes that wait for the peer to read.
    pub(super) fn unsent_bytes(&self) -> usize {
        let output = self.output.borrow();
        output.unsent_bytes + output.waiting_bytes
    }

    /// Requests whose answers have not been given yet.
    pub(super) fn requests_in_flight(&self) -> usize {
        self.output.borrow().places.len()
    }

    /// Sends what can be sent without waiting. Returns the outcome and the bytes that left.
    pub(super) fn send(&self) -> (Sent, usize) {
        let socket = self.socket.borrow();
        let Some(socket) = socket.as_ref() else { return (Sent::Failed, 0) };
        let mut output = self.output.borrow_mut();
        let mut total = 0;
        while !output.unsent.is_empty() {
            let result = {
                let skip = output.sent_of_first;
                let mut slices = [IoSlice::new(&[]); IOVECS_MAX];
                let mut count = 0;
                for (slice, piece) in slices.iter_mut().zip(output.unsent.iter()) {
                    let bytes = piece.bytes();
                    *slice = IoSlice::new(if count == 0 { &bytes[skip..] } else { bytes });
                    count += 1;
                }
                sendmsg(
                    socket.as_fd(),
                    &slices[..count],
                    &mut SendAncillaryBuffer::default(),
                    SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
                )
            };
            match result {
                Ok(sent) => {
                    total += sent;
                    output.consume(sent);
                }
                Err(Errno::AGAIN) => return (Sent::Blocked, total),
                Err(Errno::INTR) => {}
                Err(_) => return (Sent::Failed, total),
            }
        }
        (Sent::All, total)
    }

    /// Lets go of all that is pinned for the peer.
    pub(super) fn discard_output(&self) {
        let mut output = self.output.borrow_mut();
        output.unsent.clear();
        output.unsent_bytes = 0;
        for place in &mut output.places {
            *place = None;
        }
        output.waiting_bytes = 0;
    }
}

impl Output {
    fn consume(&mut self, mut sent: usize) {
        self.unsent_bytes -= sent;
        while sent > 0 {
            let left = self.unsent.front().map_or(0, |piece| piece.bytes().len()) - self.sent_of_first;
            if sent < left {
                self.sent_of_first += sent;
                return;
            }
            sent -= left;
            self.unsent.pop_front();
            self.sent_of_first = 0;
        }
    }
}
