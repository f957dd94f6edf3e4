//! Telling every shard to stop, from any thread, once.
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

#[derive(Default)]
struct State {
    stopping: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

/// Asks for the stop.
#[derive(Clone, Default)]
pub struct Stopper(Arc<State>);

/// Learns of the stop.
#[derive(Clone)]
pub struct Stop(Arc<State>);

impl Stopper {
    /// A stop that nobody asked for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The side that learns of it. Any number, on any thread.
    pub fn subscribe(&self) -> Stop {
        Stop(self.0.clone())
    }

    /// Asks all to stop. Again: no effect.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::SeqCst);
        let waiting =
            std::mem::take(&mut *self.0.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        for waker in waiting {
            waker.wake();
        }
    }

    /// Whether the stop was asked for.
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::SeqCst)
    }
}

impl Stop {
    /// Whether the stop was asked for.
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::SeqCst)
    }

    /// Waits for the stop. For few, long-lived tasks (one or two a shard), which tell the others.
    pub fn stopped(&self) -> Stopped {
        Stopped { state: self.0.clone(), registered: false }
    }
}

/// Future of [`Stop::stopped`].
pub struct Stopped {
    state: Arc<State>,
    registered: bool,
}

impl Future for Stopped {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.stopping.load(Ordering::SeqCst) {
            return Poll::Ready(());
        }
        if !self.registered {
            let mut waiting = self.state.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            waiting.push(cx.waker().clone());
            drop(waiting);
            self.registered = true;
            // The stop may have come between the look and the registration.
            if self.state.stopping.load(Ordering::SeqCst) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}
