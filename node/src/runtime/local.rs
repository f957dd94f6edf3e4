//! Waiting for one another among the tasks of one shard. Nothing here is `Send`.
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[derive(Default)]
struct State {
    /// Counts calls of `notify_all`.
    round: Cell<u64>,
    waiting: RefCell<Slab<Option<Waker>>>,
}

/// A bell: wakes all who wait for it at that moment. Clones are the same bell.
///
/// To wait for a condition: take [`Bell::next`] first, then look at the condition, then await. A ring in between is
/// not lost.
#[derive(Clone, Default)]
pub struct Bell(Rc<State>);

impl Bell {
    /// A bell that nobody waits for.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes all that hold a [`Bell::next`].
    pub fn ring(&self) {
        self.0.round.set(self.0.round.get().wrapping_add(1));
        let mut waiting = self.0.waiting.borrow_mut();
        for (_, slot) in waiting.iter_mut() {
            if let Some(waker) = slot.take() {
                // Only marks the task as runnable: no code of ours runs here.
                waker.wake();
            }
        }
    }

    /// Waits for the next ring, counted from this call.
    pub fn next(&self) -> Ring {
        Ring { bell: self.0.clone(), round: self.0.round.get(), key: None }
    }
}

/// Future of [`Bell::next`].
pub struct Ring {
    bell: Rc<State>,
    round: u64,
    key: Option<usize>,
}

impl Future for Ring {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.bell.round.get() != self.round {
            return Poll::Ready(());
        }
        let bell = self.bell.clone();
        let mut waiting = bell.waiting.borrow_mut();
        match self.key {
            None => self.key = Some(waiting.insert(Some(cx.waker().clone()))),
            Some(key) => waiting[key] = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.bell.waiting.borrow_mut().try_remove(key);
        }
    }
}
