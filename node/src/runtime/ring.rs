//! Writes and syncs past glommio, through a ring of the shard's own.
//!
//! glommio enters the kernel some nine times each time it goes to sleep and wakes, and hands over what was asked of
//! it only then. Writes that clients wait for go to the kernel at once, and their completions are seen by whoever
//! is there to look: the wait for sockets ([`super::Waiting`]), or, before there is one, the task that is started here.
//!
//! A kernel that refuses such a ring is no error: then all goes through glommio.
use super::local::Bell;
use crate::sys;
use glommio::io::DmaBuffer;
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// Operations that are not with the kernel yet; each call hands its own over.
const ENTRIES: u32 = 64;

thread_local! {
    static RING: RefCell<Option<sys::Ring<DmaBuffer>>> = const { RefCell::new(None) };
    static WATCHERS: RefCell<Watchers> = RefCell::default();
}

/// How many look for completions themselves, and a bell for when that changes.
#[derive(Default)]
struct Watchers {
    count: usize,
    changed: Bell,
}

/// Makes this thread's ring, and the task that sees its completions when nobody else does.
pub(super) fn open() {
    match sys::Ring::new(ENTRIES) {
        Ok(ring) => {
            let Ok(descriptor) = ring.as_fd().try_clone_to_owned() else { return };
            RING.set(Some(ring));
            super::spawn("ring", async move {
                loop {
                    let changed = WATCHERS.with_borrow(|watchers| watchers.changed.next());
                    if WATCHERS.with_borrow(|watchers| watchers.count) > 0 {
                        changed.await;
                        continue;
                    }
                    super::readable(descriptor.as_fd()).await;
                    collect();
                }
            });
        }
        Err(error) => tracing::debug!(%error, "no ring of its own: writes go through the executor's"),
    }
}

/// Gives it back. What is under way must have completed.
pub(super) fn close() {
    RING.set(None);
}

/// Whether nothing is under way.
pub(super) fn is_idle() -> bool {
    RING.with_borrow(|ring| ring.as_ref().is_none_or(sys::Ring::is_idle))
}

/// Wakes those whose operations have completed.
pub(super) fn collect() {
    RING.with_borrow_mut(|ring| ring.iter_mut().for_each(sys::Ring::collect));
}

/// Who has it looks for completions: by the descriptor, and with [`collect`].
pub(super) struct Watch(OwnedFd);

impl Watch {
    /// `None` without a ring.
    pub(super) fn begin() -> Option<Watch> {
        let descriptor =
            RING.with_borrow(|ring| ring.as_ref().and_then(|ring| ring.as_fd().try_clone_to_owned().ok()))?;
        WATCHERS.with_borrow_mut(|watchers| watchers.count += 1);
        Some(Watch(descriptor))
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHERS.with_borrow_mut(|watchers| {
            watchers.count -= 1;
            watchers.changed.ring();
        });
    }
}

/// Writes `buffer` at `position`. `None` without a ring.
pub(crate) fn write(
    file: &impl AsRawFd,
    buffer: Rc<DmaBuffer>,
    position: u64,
) -> Option<impl Future<Output = io::Result<usize>>> {
    begin(|ring| ring.write(file, buffer, position))
}

/// `fdatasync`. `None` without a ring.
pub(crate) fn sync(file: &impl AsRawFd) -> Option<impl Future<Output = io::Result<usize>>> {
    begin(|ring| ring.sync(file))
}

fn begin(ask: impl FnOnce(&mut sys::Ring<DmaBuffer>) -> io::Result<usize>) -> Option<Operation> {
    RING.with_borrow_mut(|ring| ask(ring.as_mut()?).ok()).map(|key| Operation { key: Some(key) })
}

/// An operation under way. Dropping it does not stop it.
struct Operation {
    key: Option<usize>,
}

impl Future for Operation {
    type Output = io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let key = self.key.expect("not polled after its end");
        let polled = RING.with_borrow_mut(|ring| {
            // Without it the shard has ended.
            ring.as_mut().map_or(Poll::Pending, |ring| ring.poll(key, context))
        });
        if polled.is_ready() {
            self.key = None;
        }
        polled
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            RING.with_borrow_mut(|ring| ring.iter_mut().for_each(|ring| ring.abandon(key)));
        }
    }
}
