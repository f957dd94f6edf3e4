//! The sockets of one shard: accepting, framing, back-pressure, sending.
//!
//! Owned by one core. All sockets of a shard hang on one epoll instance, whose readiness the executor's ring
//! reports; one *turn* then serves every socket that is ready, so that a commit cycle finds many requests and a
//! wake-up is shared by many connections. Responses given during a turn leave at its end, in one vectored write
//! per connection.
//!
//! ```text
//!   ring: epoll readable ──> turn: accept, receive, cut frames, handle ──> flush: send, pause, resume, close
//! ```
//!
//! Invariants:
//! - a frame is handled as soon as it is whole, and its bytes are shared, not copied, by those who need them;
//! - a peer that does not read, or sends garbage, costs a bounded amount of memory and disturbs no other.

pub(crate) mod admission;
pub(crate) mod connection;
mod intake;
pub(crate) mod response;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use flumen_wire::frame;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with};
use slab::Slab;

use crate::{runtime, sys};
use admission::Admission;
use connection::{Connection, ConnectionKey, Interest, Place, Sent};
use intake::Intake;
use response::Response;

/// Sockets served in one turn; the rest are ready still in the next.
const EVENTS_PER_TURN: usize = 256;
/// Bytes taken from one socket in one turn, so that one busy peer does not hold up the others.
const BYTES_PER_TURN: usize = 1 << 20;
/// Bytes taken from all sockets in one turn, before groups are formed and answers leave.
const BYTES_PER_TURN_MAX: u64 = 8 << 20;
/// Connections whose pause is over that are served in one flush.
const RESUMED_PER_FLUSH: usize = 64;
/// Memory that small frames are received into, shared by all connections of the shard.
const ARENA_BYTES: usize = 256 << 10;
/// Least room for one receive.
const RECEIVE_BYTES: usize = 64 << 10;
/// What is received of a frame whose predecessor was large: its head, so that little is copied when it is large, too.
const HEAD_BYTES: usize = 4 << 10;
/// What the buffer of a large frame is made with at most, before its bytes are there.
const FRAME_BYTES_AT_ONCE: usize = 1 << 20;
/// What a response may always bring, however much the peers have not read.
const GRANT_BYTES_MIN: usize = 64 << 10;
/// The part of what is left for unread responses that one may take.
const GRANT_SHARE: usize = 4;
/// How long a peer may take nothing, at least, before it is closed for what it leaves unread.
const STANDS_MIN: Duration = Duration::from_secs(1);
/// How often it is looked who pins too much.
const RELIEVE_EVERY: Duration = Duration::from_millis(100);
/// How many times what peers may leave unread is so much that nobody is waited for.
const UNSENT_FAR: usize = 2;
const LISTENER: u64 = u64::MAX;
const RESUMED: u64 = u64::MAX - 1;

/// Limits of the listener, from the broker's settings.
#[derive(Clone, Debug)]
pub(crate) struct NetLimits {
    /// `socket.request.max.bytes`.
    pub(crate) request_bytes_max: usize,
    /// Who may connect.
    pub(crate) admission: Arc<Admission>,
    /// `connections.max.idle.ms`.
    pub(crate) idle_max: Duration,
    /// Response bytes that peers who do not read may pin in this shard.
    pub(crate) unsent_bytes_max: usize,
    /// Bytes of requests of this shard that have not arrived whole.
    pub(crate) unfinished_bytes_max: usize,
    /// Bytes of requests of this shard under way, from which on each connection may have one alone.
    pub(crate) in_flight_bytes_max: usize,
}

/// What a handler wants done with the connection after a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Continue,
    /// Close it; the reason goes to the log.
    Close(String),
}

/// Who takes the requests.
pub(crate) trait Requests {
    fn frame(&self, connection: &Rc<Connection>, frame: Bytes) -> Flow;
    /// A connection was refused or closed for a reason that an operator may want to know.
    fn complain(&self, peer: SocketAddr, reason: &str);
}

/// Counters of the sockets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NetCounters {
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) open: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

pub(crate) struct Net {
    epoll: OwnedFd,
    listener: OwnedFd,
    limits: NetLimits,
    connections: RefCell<Slab<Rc<Connection>>>,
    generation: Cell<u32>,
    arena: RefCell<BytesMut>,
    /// Connections with something to send, or whose pause may be over.
    listed: RefCell<Vec<Rc<Connection>>>,
    /// Connections whose pause is over, left for the next turn, and what makes that come.
    resumed: RefCell<Vec<Rc<Connection>>>,
    resumed_event: OwnedFd,
    /// What is ready, and how many of that have been served.
    events: RefCell<Vec<epoll::Event>>,
    served: Cell<usize>,
    counters: RefCell<NetCounters>,
    accepting: Cell<bool>,
    /// The listener is watched: not while descriptors are short.
    listening: Cell<bool>,
    now: Cell<Duration>,
    intake: Intake,
    /// Response bytes of all connections that have not left.
    unsent_bytes: Cell<usize>,
    /// What responses may bring that are being made.
    granted_bytes: Cell<usize>,
    /// What the requests under way of all connections pin.
    in_flight_bytes: Cell<usize>,
    /// When peers were last closed for what they leave unread.
    relieved: Cell<Duration>,
    /// When fetches were last woken for what is pinned behind them.
    hurried: Cell<Duration>,
}

/// How much a response may bring. Held while it is gathered.
pub(crate) struct Grant<'a> {
    net: &'a Net,
    pub(crate) bytes: usize,
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        self.net.granted_bytes.set(self.net.granted_bytes.get() - self.bytes);
    }
}

impl Net {
    /// Takes a bound, listening socket.
    pub(crate) fn new(listener: OwnedFd, limits: NetLimits) -> io::Result<Net> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        let net = Net {
            intake: Intake::new(limits.unfinished_bytes_max),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            listener,
            limits,
            connections: RefCell::default(),
            generation: Cell::new(0),
            arena: RefCell::default(),
            listed: RefCell::default(),
            resumed: RefCell::default(),
            resumed_event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            events: RefCell::new(Vec::with_capacity(EVENTS_PER_TURN)),
            served: Cell::new(0),
            counters: RefCell::default(),
            accepting: Cell::new(true),
            listening: Cell::new(false),
            now: Cell::default(),
            unsent_bytes: Cell::default(),
            granted_bytes: Cell::default(),
            in_flight_bytes: Cell::default(),
            relieved: Cell::default(),
            hurried: Cell::default(),
        };
        epoll::add(
            &net.epoll,
            &net.resumed_event,
            epoll::EventData::new_u64(RESUMED),
            epoll::EventFlags::IN,
        )?;
        net.listen()?;
        Ok(net)
    }

    /// Readable when a turn has something to do.
    pub(crate) fn readiness(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    pub(crate) fn counters(&self) -> NetCounters {
        NetCounters { open: self.connections.borrow().len() as u64, ..*self.counters.borrow() }
    }

    /// Serves the sockets that are ready, without waiting: all of them, or as many as are a fair turn. The others are first
    /// in the next.
    pub(crate) fn turn(&self, now: Duration, requests: &impl Requests) {
        self.now.set(now);
        let mut events = self.events.take();
        if self.served.get() == events.len() {
            self.served.set(0);
            self.poll(&mut events);
        }
        let began = self.counters.borrow().bytes_in;
        for event in &events[self.served.get()..] {
            if self.counters.borrow().bytes_in - began >= BYTES_PER_TURN_MAX {
                break;
            }
            self.served.set(self.served.get() + 1);
            self.serve(event, requests);
        }
        self.events.replace(events);
        self.flush(requests);
        self.ease(requests);
    }

    /// Where clients pin too much, has them let go of some.
    fn ease(&self, requests: &impl Requests) {
        if self.unsent_bytes.get() > self.limits.unsent_bytes_max {
            self.relieve(requests);
            self.flush(requests);
        }
        if self.is_crowded() {
            self.hurry();
        }
    }

    fn poll(&self, events: &mut Vec<epoll::Event>) {
        events.clear();
        let poll = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(events),
            Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }),
        );
        match poll {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("epoll_wait on our own descriptor: {error}"),
        }
    }

    fn serve(&self, event: &epoll::Event, requests: &impl Requests) {
        let flags = event.flags;
        match event.data.u64() {
            LISTENER => self.accept(requests),
            RESUMED => self.take_resumed(),
            data => {
                let Some(connection) = self.connection(ConnectionKey::from_u64(data)) else { return };
                if flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP) {
                    return self.close(&connection);
                }
                if flags.contains(epoll::EventFlags::OUT) {
                    self.list(&connection);
                }
                if flags.contains(epoll::EventFlags::RDHUP) {
                    connection.hung_up.set(true);
                }
                if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP) {
                    self.receive(&connection, requests);
                }
            }
        }
    }

    /// A request begins that pins so much, until as much is [taken off](Net::unpin) or its connection is closed.
    pub(crate) fn pin(&self, connection: &Connection, bytes: usize) {
        if !connection.closed.get() {
            connection.pin(bytes);
            self.in_flight_bytes.set(self.in_flight_bytes.get() + bytes);
        }
    }

    /// A request has ended that pinned so much, with an answer or without: another may be read.
    pub(crate) fn unpin(&self, connection: &Rc<Connection>, bytes: usize) {
        // With a connection all of it was taken off.
        if !connection.closed.get() {
            connection.unpin(bytes);
            self.in_flight_bytes.set(self.in_flight_bytes.get() - bytes);
            self.list(connection);
        }
    }

    /// Whether the next request of a connection may be read. Who waits for others to end is looked at again when one of its
    /// own ends, or it hangs up.
    fn may_read(&self, connection: &Connection) -> bool {
        let waits = self.is_crowded() && connection.in_flight_bytes() > 0 && !connection.hung_up.get();
        connection.may_read() && !waits
    }

    /// Requests under way pin more than they should.
    fn is_crowded(&self) -> bool {
        self.in_flight_bytes.get() >= self.limits.in_flight_bytes_max
    }

    /// Whether a fetch may not wait on this connection: requests wait behind it, and all together pin too much. Its peer may be
    /// gone, too: nobody hears of that where what it sent last is not read.
    pub(crate) fn is_pressed(&self, connection: &Connection) -> bool {
        self.is_crowded() && connection.requests_in_flight() > 1
    }

    /// Wakes fetches that may not wait any more.
    fn hurry(&self) {
        if self.now.get().saturating_sub(self.hurried.get()) < RELIEVE_EVERY {
            return;
        }
        self.hurried.set(self.now.get());
        let all = self.connections.borrow();
        let pressed = all.iter().filter(|(_, connection)| self.is_pressed(connection));
        let parked: Vec<_> = pressed.flat_map(|(_, connection)| connection.parked.borrow().clone()).collect();
        drop(all);
        parked.iter().for_each(|fetch| fetch.wake());
    }

    /// Answers a request. The bytes leave with the next [`Net::flush`].
    pub(crate) fn answer(&self, connection: &Rc<Connection>, place: Place, response: Response) {
        if connection.closed.get() {
            return;
        }
        if connection.unsent_bytes() == 0 {
            connection.stands_since.set(runtime::uptime());
        }
        self.unsent_bytes.set(self.unsent_bytes.get() + response.len());
        connection.fill(place, response);
        connection.ring();
        self.list(connection);
    }

    /// Of the `asked` bytes, what a response may bring now: the less, the more the peers leave unread.
    pub(crate) fn grant(&self, asked: usize) -> Grant<'_> {
        let taken = self.unsent_bytes.get() + self.granted_bytes.get();
        let left = self.limits.unsent_bytes_max.saturating_sub(taken);
        let bytes = asked.min((left / GRANT_SHARE).max(GRANT_BYTES_MIN));
        self.granted_bytes.set(self.granted_bytes.get() + bytes);
        Grant { net: self, bytes }
    }

    /// Stops reading from a connection until as many [`Net::release`] have followed.
    pub(crate) fn hold(&self, connection: &Rc<Connection>) {
        connection.held.set(connection.held.get() + 1);
        self.list(connection);
    }

    pub(crate) fn release(&self, connection: &Rc<Connection>) {
        let held = connection.held.get();
        connection.held.set(held.checked_sub(1).expect("a release follows a hold"));
        self.list(connection);
    }

    /// Sends what is ready, and starts or stops reading where that has become right.
    pub(crate) fn flush(&self, requests: &impl Requests) {
        let mut resumed = 0;
        loop {
            let Some(connection) = self.listed.borrow_mut().pop() else { return };
            connection.listed.set(false);
            if connection.closed.get() {
                continue;
            }
            let (sent, bytes) = connection.send();
            self.counters.borrow_mut().bytes_out += bytes as u64;
            if bytes > 0 {
                connection.last_active.set(self.now.get());
                connection.stands_since.set(runtime::uptime());
                self.unsent_bytes.set(self.unsent_bytes.get() - bytes);
                connection.ring();
            }
            if sent == Sent::Failed {
                self.close(&connection);
                continue;
            }
            if connection.backlog.get() && self.may_read(&connection) {
                // A peer that sends and takes without a pause would keep this loop going.
                if resumed < RESUMED_PER_FLUSH {
                    resumed += 1;
                    self.receive(&connection, requests);
                } else {
                    self.resume_later(connection);
                }
                continue;
            }
            let (read, hangup) = (self.may_read(&connection), connection.may_read());
            self.watch(&connection, Interest { read, hangup, write: sent == Sent::Blocked });
        }
    }

    fn resume_later(&self, connection: Rc<Connection>) {
        let mut resumed = self.resumed.borrow_mut();
        resumed.push(connection);
        if resumed.len() == 1 {
            // Only a counter that is full could refuse.
            let _ = rustix::io::write(&self.resumed_event, &1u64.to_ne_bytes());
        }
    }

    fn take_resumed(&self) {
        let _ = rustix::io::read(&self.resumed_event, &mut [0; 8]);
        for connection in self.resumed.take() {
            self.list(&connection);
        }
    }

    /// Watches the listener, unless no more is to be accepted.
    fn listen(&self) -> io::Result<()> {
        if self.accepting.get() && !self.listening.get() {
            let data = epoll::EventData::new_u64(LISTENER);
            epoll::add(&self.epoll, &self.listener, data, epoll::EventFlags::IN)?;
            self.listening.set(true);
        }
        Ok(())
    }

    fn stop_listening(&self) {
        if self.listening.replace(false) {
            // Deleting our own descriptor from our own epoll instance cannot fail.
            let _ = epoll::delete(&self.epoll, &self.listener);
        }
    }

    /// Stops accepting and reading. Requests under way go on.
    pub(crate) fn stop_reading(&self) {
        self.accepting.set(false);
        self.stop_listening();
        let all: Vec<_> = self.connections.borrow().iter().map(|(_, c)| Rc::clone(c)).collect();
        for connection in all {
            self.hold(&connection);
            for parked in connection.parked.take() {
                parked.wake();
            }
        }
    }

    /// Whether all requests have been answered and the answers sent.
    pub(crate) fn is_drained(&self) -> bool {
        self.connections.borrow().iter().all(|(_, c)| c.requests_in_flight() == 0 && c.unsent_bytes() == 0)
    }

    pub(crate) fn close_all(&self) {
        let all: Vec<_> = self.connections.borrow().iter().map(|(_, c)| Rc::clone(c)).collect();
        for connection in all {
            self.close(&connection);
        }
    }

    /// Closes connections that have been idle for too long, and that take too long over a request while others wait for its
    /// memory. Called now and then.
    pub(crate) fn sweep(&self, now: Duration, requests: &impl Requests) {
        self.now.set(now);
        // Where the kernel is short of memory, the next sweep tries again.
        let _ = self.listen();
        let all: Vec<_> = self.connections.borrow().iter().map(|(_, c)| Rc::clone(c)).collect();
        let is_memory_awaited = self.intake.is_awaited();
        for connection in all {
            let idle = now.saturating_sub(connection.last_active.get());
            if idle > self.limits.idle_max && connection.requests_in_flight() == 0 {
                self.close(&connection);
            } else if is_memory_awaited && Intake::is_overdue(&connection, now) {
                requests
                    .complain(connection.peer, "closed: its request does not arrive, and memory is short");
                self.close(&connection);
            }
        }
        self.ease(requests);
        self.flush(requests);
    }

    /// While peers that do not read pin too much, closes those of them that have stood still the longest: after a while, and
    /// at once where it is far too much, but for who has less than his part of that.
    fn relieve(&self, requests: &impl Requests) {
        let is_far_too_much = || self.unsent_bytes.get() / UNSENT_FAR > self.limits.unsent_bytes_max;
        let now = self.now.get();
        if now.saturating_sub(self.relieved.get()) < RELIEVE_EVERY && !is_far_too_much() {
            return;
        }
        self.relieved.set(now);
        let all = self.connections.borrow();
        let stands = all.iter().filter(|(_, c)| c.unsent_bytes() > 0);
        let mut stuck: Vec<_> = stands.map(|(_, c)| (c.stands_since.get(), Rc::clone(c))).collect();
        drop(all);
        stuck.sort_by_key(|(since, _)| std::cmp::Reverse(*since));
        let part = self.unsent_bytes.get() / (2 * stuck.len().max(1));
        while self.unsent_bytes.get() > self.limits.unsent_bytes_max {
            let Some((since, connection)) = stuck.pop() else { return };
            if now.saturating_sub(since) < STANDS_MIN {
                // The last to stand may just have begun, with an answer that is that large by itself.
                if !is_far_too_much() || stuck.is_empty() {
                    return;
                }
                if connection.unsent_bytes() < part {
                    continue;
                }
            }
            requests.complain(connection.peer, "closed: it does not read its responses, and memory is short");
            self.close(&connection);
        }
    }

    pub(crate) fn close(&self, connection: &Rc<Connection>) {
        if connection.closed.replace(true) {
            return;
        }
        self.unsent_bytes.set(self.unsent_bytes.get() - connection.unsent_bytes());
        self.in_flight_bytes.set(self.in_flight_bytes.get() - connection.in_flight_bytes());
        connection.discard_output();
        connection.ring();
        *connection.partial.borrow_mut() = BytesMut::new();
        self.let_go(connection);
        for parked in connection.parked.take() {
            parked.wake();
        }
        if let Some(socket) = connection.socket.take() {
            let _ = epoll::delete(&self.epoll, &socket);
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        }
        self.connections.borrow_mut().remove(connection.key.slot as usize);
        self.limits.admission.leave(connection.peer.ip());
        // Its descriptor may be what was missing; else a sweep tries again.
        let _ = self.listen();
    }

    /// A connection holds no part of a frame any more: others may have its memory.
    fn let_go(&self, connection: &Connection) {
        for waiting in self.intake.let_go(connection) {
            self.list(&waiting);
        }
    }

    fn connection(&self, key: ConnectionKey) -> Option<Rc<Connection>> {
        let connections = self.connections.borrow();
        connections.get(key.slot as usize).filter(|c| c.key == key).map(Rc::clone)
    }

    fn list(&self, connection: &Rc<Connection>) {
        if !connection.listed.replace(true) {
            self.listed.borrow_mut().push(Rc::clone(connection));
        }
    }

    fn watch(&self, connection: &Rc<Connection>, interest: Interest) {
        if connection.interest.replace(interest) == interest {
            return;
        }
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, interest.read);
        flags.set(epoll::EventFlags::RDHUP, interest.hangup);
        flags.set(epoll::EventFlags::OUT, interest.write);
        let data = epoll::EventData::new_u64(connection.key.to_u64());
        let socket = connection.socket.borrow();
        let Some(socket) = socket.as_ref() else { return };
        if let Err(error) = epoll::modify(&self.epoll, socket, data, flags) {
            panic!("epoll_ctl on an open descriptor of ours: {error}");
        }
    }

    fn accept(&self, requests: &impl Requests) {
        for _ in 0..EVENTS_PER_TURN {
            match acceptfrom_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok((socket, peer)) => self.admit(socket, peer, requests),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    // Out of descriptors or memory: those connected go on.
                    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
                    requests
                        .complain(nowhere, &format!("accept failed: {error}; raise the limit of open files"));
                    // Ready all the time, it would keep the core busy.
                    self.stop_listening();
                    return;
                }
            }
        }
    }

    fn admit(&self, socket: OwnedFd, peer: Option<SocketAddrAny>, requests: &impl Requests) {
        let peer = peer
            .and_then(|p| SocketAddr::try_from(p).ok())
            .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
        let mut counters = self.counters.borrow_mut();
        if let Err(refused) = self.limits.admission.enter(peer.ip()) {
            counters.refused += 1;
            drop(counters);
            requests.complain(peer, refused);
            return;
        }
        counters.accepted += 1;
        let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
        let mut connections = self.connections.borrow_mut();
        let entry = connections.vacant_entry();
        self.generation.set(self.generation.get().wrapping_add(1) & 0x7fff_ffff);
        let key = ConnectionKey { slot: entry.key() as u32, generation: self.generation.get() };
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        if epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(key.to_u64()), flags).is_ok() {
            entry.insert(Rc::new(Connection::new(key, socket, peer, self.now.get())));
        } else {
            self.limits.admission.leave(peer.ip());
        }
    }

    /// Takes what the socket holds, up to a fair share, and handles every frame that is whole.
    fn receive(&self, connection: &Rc<Connection>, requests: &impl Requests) {
        connection.last_active.set(self.now.get());
        let mut taken = 0;
        while taken < BYTES_PER_TURN && self.may_read(connection) && !connection.closed.get() {
            let outcome = if connection.backlog.take() {
                let bytes = connection.partial.take().freeze();
                self.let_go(connection);
                self.cut_frames(connection, bytes, requests).map(|()| Received { bytes: 0, drained: false })
            } else if connection.partial.borrow().is_empty() {
                self.receive_frames(connection, requests)
            } else if !self.intake.may_take(connection) {
                break;
            } else {
                self.receive_rest(connection, requests)
            };
            match outcome {
                Ok(Received { bytes, drained }) => {
                    self.counters.borrow_mut().bytes_in += bytes as u64;
                    taken += bytes;
                    if drained {
                        break;
                    }
                }
                Err(Ended::Quietly) => return self.close(connection),
                Err(Ended::Because(reason)) => {
                    requests.complain(connection.peer, &reason);
                    return self.close(connection);
                }
            }
        }
        self.list(connection);
    }

    /// Receives into the shared arena and cuts it into frames; the head of the last one is kept.
    fn receive_frames(
        &self,
        connection: &Rc<Connection>,
        requests: &impl Requests,
    ) -> Result<Received, Ended> {
        let (bytes, room) = {
            let mut arena = self.arena.borrow_mut();
            if arena.capacity() < RECEIVE_BYTES {
                *arena = BytesMut::with_capacity(ARENA_BYTES);
            }
            let head_only = connection.large.take() || self.intake.is_short();
            let room = if head_only { HEAD_BYTES } else { arena.capacity() };
            let received = receive_into(connection, &mut arena, room)?;
            (arena.split_to(received).freeze(), room)
        };
        let received = Received { bytes: bytes.len(), drained: bytes.len() < room };
        self.cut_frames(connection, bytes, requests)?;
        Ok(received)
    }

    /// Goes on with a frame of which a part is here; receives no byte beyond it.
    fn receive_rest(&self, connection: &Rc<Connection>, requests: &impl Requests) -> Result<Received, Ended> {
        let mut partial = connection.partial.take();
        let wanted = self.wanted_len(&partial)?;
        let missing = wanted - partial.len();
        if partial.capacity() < wanted {
            partial.reserve(missing.min(FRAME_BYTES_AT_ONCE.max(partial.len())));
        }
        let room = missing.min(partial.capacity() - partial.len());
        let bytes = receive_into(connection, &mut partial, room)?;
        self.intake.hold(connection, bytes, self.now.get());
        let whole = bytes == missing && wanted > frame::PREFIX_LEN;
        if whole {
            connection.large.set(wanted > RECEIVE_BYTES);
            self.let_go(connection);
            self.cut_frames(connection, partial.freeze(), requests)?;
        } else {
            connection.partial.replace(partial);
        }
        Ok(Received { bytes, drained: bytes < room })
    }

    /// Handles the frames at the head of `bytes`, as long as the connection is not paused. Keeps the rest.
    fn cut_frames(
        &self,
        connection: &Rc<Connection>,
        mut bytes: Bytes,
        requests: &impl Requests,
    ) -> Result<(), Ended> {
        while !bytes.is_empty() && !connection.closed.get() {
            let wanted = self.wanted_len(&bytes)?;
            let whole = bytes.len() >= wanted && wanted > frame::PREFIX_LEN;
            if whole && self.may_read(connection) {
                let mut frame = bytes.split_to(wanted);
                frame.advance(frame::PREFIX_LEN);
                if let Flow::Close(reason) = requests.frame(connection, frame) {
                    return Err(Ended::Because(reason));
                }
                continue;
            }
            // In memory of its own, so that the arena is not pinned.
            let mut partial = BytesMut::with_capacity(wanted.min(FRAME_BYTES_AT_ONCE).max(bytes.len()));
            partial.extend_from_slice(&bytes);
            self.intake.hold(connection, partial.len(), self.now.get());
            connection.partial.replace(partial);
            connection.backlog.set(whole);
            break;
        }
        Ok(())
    }

    /// Length of the frame that starts with `head`, its prefix included, or of the prefix alone where that is
    /// not whole yet.
    fn wanted_len(&self, head: &[u8]) -> Result<usize, Ended> {
        let Some(prefix) = head.first_chunk::<{ frame::PREFIX_LEN }>() else { return Ok(frame::PREFIX_LEN) };
        match frame::frame_len(*prefix, self.limits.request_bytes_max) {
            Ok(0) => Err(Ended::Because("a frame without content".to_owned())),
            Ok(len) => Ok(frame::PREFIX_LEN + len),
            Err(error) => Err(Ended::Because(error.to_string())),
        }
    }
}

struct Received {
    bytes: usize,
    /// The socket has no more for now.
    drained: bool,
}

/// Why a connection ends.
enum Ended {
    /// The peer closed it.
    Quietly,
    Because(String),
}

fn receive_into(connection: &Connection, buffer: &mut BytesMut, room: usize) -> Result<usize, Ended> {
    let socket = connection.socket.borrow();
    let Some(socket) = socket.as_ref() else { return Err(Ended::Quietly) };
    loop {
        match sys::receive_into(socket.as_fd(), buffer, room) {
            Ok(0) => return Err(Ended::Quietly),
            Ok(received) => return Ok(received),
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            Err(_) => return Err(Ended::Quietly),
        }
    }
}
