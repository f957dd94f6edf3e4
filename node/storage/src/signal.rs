//! A wake-up within one thread: a task waits, another says "look again". Notifications before the wait are kept.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// One flag and those who wait for it. A notification wakes all waiters; the first polled takes the flag, so one
/// task waits on a signal, or all waiters check a condition of their own in a loop.
#[derive(Default)]
pub(crate) struct Signal {
    set: Cell<bool>,
    waiters: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Wakes who waits, or lets the next wait return at once.
    pub(crate) fn notify(&self) {
        self.set.set(true);
        // Taken out first: a waker may run its task at once, which may wait again.
        let waiters = std::mem::take(&mut *self.waiters.borrow_mut());
        for waker in waiters {
            waker.wake();
        }
    }

    /// Waits for a notification, and takes it.
    pub(crate) fn wait(&self) -> Wait<'_> {
        Wait { signal: self }
    }
}

/// See [`Signal::wait`]. Dropping it loses nothing.
pub(crate) struct Wait<'a> {
    signal: &'a Signal,
}

impl Future for Wait<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.signal.set.replace(false) {
            return Poll::Ready(());
        }
        let mut waiters = self.signal.waiters.borrow_mut();
        if !waiters.iter().any(|waker| waker.will_wake(context.waker())) {
            waiters.push(context.waker().clone());
        }
        Poll::Pending
    }
}

/// A counter that many may wait on: whoever noted its value before looking misses nothing.
#[derive(Default)]
pub(crate) struct Progress {
    count: Cell<u64>,
    waiters: RefCell<Vec<Waker>>,
}

impl Progress {
    /// Something changed.
    pub(crate) fn notify(&self) {
        self.count.set(self.count.get() + 1);
        let waiters = std::mem::take(&mut *self.waiters.borrow_mut());
        for waker in waiters {
            waker.wake();
        }
    }

    /// The count now, for [`after`](Self::after).
    pub(crate) fn count(&self) -> u64 {
        self.count.get()
    }

    /// Waits until the count is no longer `seen`.
    pub(crate) fn after(&self, seen: u64) -> After<'_> {
        After { progress: self, seen }
    }
}

/// See [`Progress::after`].
pub(crate) struct After<'a> {
    progress: &'a Progress,
    seen: u64,
}

impl Future for After<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.progress.count.get() != self.seen {
            return Poll::Ready(());
        }
        let mut waiters = self.progress.waiters.borrow_mut();
        if !waiters.iter().any(|waker| waker.will_wake(context.waker())) {
            waiters.push(context.waker().clone());
        }
        Poll::Pending
    }
}
