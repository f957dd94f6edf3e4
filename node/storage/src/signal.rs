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
