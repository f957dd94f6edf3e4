//! Memory of requests that have not arrived whole, over all connections of a shard.
//!
//! ```text
//!   room ──(too much is held)──> short: one connection goes on, those that would take more wait
//!     ▲                            │
//!     └──(a frame is whole, or its connection closed)
//! ```
//!
//! Invariants:
//! - what is held is at most the limit, one frame and one receive, however many peers send;
//! - while anything is held, one connection may go on; whoever does not get on in time while others wait is closed in a sweep,
//!   and so nobody waits for ever.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::connection::{Connection, ConnectionKey};

/// How long a request may take to arrive where others wait for its memory.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct Intake {
    bytes_max: usize,
    /// Bytes of all frames that are not whole.
    held: Cell<usize>,
    /// Goes on while others wait.
    first: Cell<Option<ConnectionKey>>,
    waiting: RefCell<Vec<Rc<Connection>>>,
}

impl Intake {
    pub(super) fn new(bytes_max: usize) -> Intake {
        Intake { bytes_max, held: Cell::new(0), first: Cell::new(None), waiting: RefCell::default() }
    }

    /// More is held than should be: of new frames as little as can be is taken.
    pub(super) fn is_short(&self) -> bool {
        self.held.get() >= self.bytes_max
    }

    /// Whether a connection that holds a part of a frame may take more of it. Where not, it waits until others let go.
    pub(super) fn may_take(&self, connection: &Rc<Connection>) -> bool {
        if !self.is_short() {
            return true;
        }
        let first = self.first.get().unwrap_or(connection.key);
        self.first.set(Some(first));
        if first == connection.key {
            return true;
        }
        if !connection.starved.replace(true) {
            self.waiting.borrow_mut().push(Rc::clone(connection));
        }
        false
    }

    /// A connection holds so much more of a frame.
    pub(super) fn hold(&self, connection: &Connection, bytes: usize, now: Duration) {
        if connection.unfinished_bytes.get() == 0 {
            connection.unfinished_since.set(now);
        }
        connection.unfinished_bytes.set(connection.unfinished_bytes.get() + bytes);
        self.held.set(self.held.get() + bytes);
    }

    /// A connection holds nothing more. Returns those that may go on now.
    pub(super) fn let_go(&self, connection: &Connection) -> Vec<Rc<Connection>> {
        let held = self.held.get().checked_sub(connection.unfinished_bytes.take());
        self.held.set(held.expect("what is let go of was held"));
        if self.first.get() == Some(connection.key) {
            self.first.set(None);
        } else if self.is_short() {
            return Vec::new();
        }
        let waiting = self.waiting.take();
        for connection in &waiting {
            connection.starved.set(false);
        }
        waiting
    }

    /// Whether connections wait for memory.
    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.borrow().iter().any(|waiting| !waiting.is_closed())
    }

    /// Whether a request takes longer to arrive than it may while others wait for memory.
    pub(super) fn is_overdue(connection: &Connection, now: Duration) -> bool {
        connection.unfinished_bytes.get() > 0
            && now.saturating_sub(connection.unfinished_since.get()) > PATIENCE
    }
}
