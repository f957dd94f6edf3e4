//! Bounded messages between the shards, and from plain threads to a shard.
//!
//! Each shard has one [`Inbox`], read by one task: requests and notes of the others, and the replies to its own
//! requests. Sending never waits and takes no lock; where there is no room, the sender is told at once.
//!
//! ```text
//!   shard A                                        shard B
//!   Caller::call ── a reply slot of A reserved ──> requests (bounded) ──> Inbox::run ── handler(Incoming)
//!   Call (future) <── Inbox::run of A <── replies of A (a slot is reserved: always room) <── Reply::send
//! ```
//!
//! That is why two shards never wait for each other: a handler runs to its end without waiting, a reply always
//! fits, and so every inbox is always read. Who finds a request box full waits as a task, not as a shard.
//!
//! Invariants: replies in a shard's box plus requests of it that are not answered never exceed the box's capacity; a
//! [`Reply`] is answered exactly once, by `send` or (as [`Gone`]) by its drop; a parked inbox is woken after
//! every push.
use crate::runtime::local::Bell;
use atomic_waker::AtomicWaker;
use crossbeam_queue::ArrayQueue;
use flumen_core::types::ShardId;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll, Waker};

/// Messages taken from an inbox before other tasks get their turn.
const BATCH: usize = 64;

/// How many messages fit.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Requests and notes that wait at one shard, of all senders together.
    pub requests: usize,
    /// Requests of one shard that are not answered yet, to all others together.
    pub calls: usize,
}

/// There is no room at the receiver (or the sender has too many calls open); the message comes back.
pub struct Full<Q>(pub Q);

impl<Q> fmt::Debug for Full<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full")
    }
}

/// The request was dropped without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

struct Letter<Q> {
    body: Q,
    /// Where the reply goes: `None` for a note.
    from: Option<(usize, u32)>,
}

/// One shard's box, as all others see it.
struct Mailbox<Q, P> {
    requests: ArrayQueue<Letter<Q>>,
    replies: ArrayQueue<(u32, Result<P, Gone>)>,
    /// The reading task found nothing and went to sleep.
    parked: AtomicBool,
    reader: AtomicWaker,
    closed: AtomicBool,
    /// Somebody waits for room among the requests.
    crowded: AtomicBool,
    waiting_for_room: ArrayQueue<Waker>,
}

impl<Q, P> Mailbox<Q, P> {
    fn wake_reader(&self) {
        // The push comes before the look at `parked`; the reader sets `parked` before its last look at the queues.
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Acquire) && self.parked.swap(false, Ordering::AcqRel) {
            self.reader.wake();
        }
    }

    fn push_request(&self, letter: Letter<Q>) -> Result<(), Letter<Q>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(letter);
        }
        self.requests.push(letter)?;
        self.wake_reader();
        Ok(())
    }

    /// After a push: if the box was closed in between, nobody reads it any more, and we empty it ourselves.
    fn empty_if_closed(&self, boxes: &Mailboxes<Q, P>) {
        fence(Ordering::SeqCst);
        if !self.closed.load(Ordering::Acquire) {
            return;
        }
        while let Some(letter) = self.requests.pop() {
            drop(letter.from.map(|(index, key)| Reply { to: Some((boxes.clone(), index, key)) }));
        }
    }

    fn push_reply(&self, key: u32, result: Result<P, Gone>) {
        let pushed = self.replies.push((key, result));
        assert!(pushed.is_ok(), "each call has reserved the slot of its reply");
        self.wake_reader();
    }

    fn make_room(&self) {
        // Pairs with the fence in `Room::poll`: either we see its flag, or it sees the room.
        fence(Ordering::SeqCst);
        // Not for each slot: those who wait would all come for it.
        let half_empty = self.requests.len() <= self.requests.capacity() / 2;
        if half_empty && self.crowded.load(Ordering::Relaxed) {
            self.crowded.store(false, Ordering::SeqCst);
            while let Some(waker) = self.waiting_for_room.pop() {
                waker.wake();
            }
        }
    }
}

type Mailboxes<Q, P> = Arc<[Mailbox<Q, P>]>;

/// One shard's place among the mailboxes. `Send`: it is given to the shard's thread, and opened there.
pub struct Post<Q, P> {
    boxes: Mailboxes<Q, P>,
    index: usize,
}

/// Mailboxes for `shards` shards. `Q`: what is asked, or noted; `P`: what is answered.
pub fn mesh<Q: Send, P: Send>(shards: usize, capacity: Capacity) -> Vec<Post<Q, P>> {
    let boxes: Mailboxes<Q, P> = (0..shards)
        .map(|_| Mailbox {
            requests: ArrayQueue::new(capacity.requests),
            replies: ArrayQueue::new(capacity.calls),
            parked: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            closed: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            waiting_for_room: ArrayQueue::new(shards * capacity.calls.max(64)),
        })
        .collect();
    (0..shards).map(|index| Post { boxes: boxes.clone(), index }).collect()
}

impl<Q: Send, P: Send> Post<Q, P> {
    /// Opens it on its shard: the side that asks, and the side that reads.
    pub fn open(self) -> (Caller<Q, P>, Inbox<Q, P>) {
        let calls = Rc::new(Calls {
            boxes: self.boxes,
            index: self.index,
            open: RefCell::new(Slab::new()),
            freed: Bell::new(),
            ended: Cell::new(false),
        });
        (Caller(calls.clone()), Inbox { calls })
    }

    /// A handle for plain threads, to send notes to any shard.
    pub fn notes(&self) -> Notes<Q, P> {
        Notes(self.boxes.clone())
    }
}

fn send<Q, P>(boxes: &Mailboxes<Q, P>, to: ShardId, letter: Letter<Q>) -> Result<(), Full<Q>> {
    let mailbox = &boxes[usize::from(to.0)];
    mailbox.push_request(letter).map_err(|letter| Full(letter.body))?;
    mailbox.empty_if_closed(boxes);
    Ok(())
}

/// Sends notes from any thread.
pub struct Notes<Q, P>(Mailboxes<Q, P>);

impl<Q, P> Clone for Notes<Q, P> {
    fn clone(&self) -> Self {
        Notes(self.0.clone())
    }
}

impl<Q: Send, P: Send> Notes<Q, P> {
    /// Sends a note, which nobody answers.
    pub fn try_send(&self, to: ShardId, body: Q) -> Result<(), Full<Q>> {
        send(&self.0, to, Letter { body, from: None })
    }
}

enum Slot<P> {
    Waiting(Option<Waker>),
    Answered(Result<P, Gone>),
    /// The future was dropped; the reply is still to come.
    Abandoned,
}

struct Calls<Q, P> {
    boxes: Mailboxes<Q, P>,
    index: usize,
    open: RefCell<Slab<Slot<P>>>,
    /// A call was answered: its slot is free.
    freed: Bell,
    ended: Cell<bool>,
}

/// A shard's side that asks. Clones share the shard's bound on open calls. Not `Send`.
pub struct Caller<Q, P>(Rc<Calls<Q, P>>);

impl<Q, P> Clone for Caller<Q, P> {
    fn clone(&self) -> Self {
        Caller(self.0.clone())
    }
}

impl<Q: Send, P: Send> Caller<Q, P> {
    /// Sends a request, if there is room for it and for its reply. The future is the reply; the request is on its
    /// way also when the future is dropped.
    pub fn try_call(&self, to: ShardId, body: Q) -> Result<Call<Q, P>, Full<Q>> {
        let calls = &self.0;
        let mut open = calls.open.borrow_mut();
        if open.len() >= calls.boxes[calls.index].replies.capacity() || calls.ended.get() {
            return Err(Full(body));
        }
        let key = open.insert(Slot::Waiting(None)) as u32;
        match send(&calls.boxes, to, Letter { body, from: Some((calls.index, key)) }) {
            Ok(()) => Ok(Call { calls: calls.clone(), key: Some(key) }),
            Err(full) => {
                open.remove(key as usize);
                Err(full)
            }
        }
    }

    /// As [`Caller::try_call`], waiting for room. `Gone` when the other shard has ended.
    pub async fn call(&self, to: ShardId, body: Q) -> Result<P, Gone> {
        self.send(to, body).await?.await
    }

    /// As [`Caller::call`], returning as soon as the request is on its way: requests sent one after the other arrive
    /// in that order.
    pub async fn send(&self, to: ShardId, mut body: Q) -> Result<Call<Q, P>, Gone> {
        loop {
            let freed = self.0.freed.next();
            match self.try_call(to, body) {
                Ok(call) => return Ok(call),
                Err(Full(again)) => body = again,
            }
            self.room(to, freed).await?;
        }
    }

    /// Sends a note, which nobody answers.
    pub fn try_tell(&self, to: ShardId, body: Q) -> Result<(), Full<Q>> {
        send(&self.0.boxes, to, Letter { body, from: None })
    }

    /// As [`Caller::try_tell`], waiting for room. `Gone` when the other shard has ended.
    pub async fn tell(&self, to: ShardId, mut body: Q) -> Result<(), Gone> {
        loop {
            let freed = self.0.freed.next();
            match self.try_tell(to, body) {
                Ok(()) => return Ok(()),
                Err(Full(again)) => body = again,
            }
            self.room(to, freed).await?;
        }
    }

    /// Ends this shard's inbox: [`Inbox::run`] returns, and whoever asks from then on gets [`Gone`].
    pub fn close(&self) {
        self.0.ended.set(true);
        let mine = &self.0.boxes[self.0.index];
        mine.parked.store(false, Ordering::Relaxed);
        mine.reader.wake();
    }

    /// Requests of this shard without an answer yet.
    pub fn open_calls(&self) -> usize {
        self.0.open.borrow().len()
    }

    /// Waits until a try may succeed where it just did not.
    async fn room(&self, to: ShardId, freed: crate::runtime::local::Ring) -> Result<(), Gone> {
        let calls = &self.0;
        let theirs = &calls.boxes[usize::from(to.0)];
        let mut freed = std::pin::pin!(freed);
        let mut registered = false;
        std::future::poll_fn(|cx| {
            if theirs.closed.load(Ordering::Acquire) || calls.ended.get() {
                return Poll::Ready(Err(Gone));
            }
            if calls.open.borrow().len() >= calls.boxes[calls.index].replies.capacity() {
                // Our own bound: an answer will ring.
                return freed.as_mut().poll(cx).map(Ok);
            }
            if registered || !theirs.requests.is_full() {
                return Poll::Ready(Ok(()));
            }
            registered = true;
            if theirs.waiting_for_room.push(cx.waker().clone()).is_err() {
                // Very many wait already: try again after the others.
                cx.waker().wake_by_ref();
            }
            theirs.crowded.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if theirs.requests.is_full() { Poll::Pending } else { Poll::Ready(Ok(())) }
        })
        .await
    }
}

/// A request under way. Resolves to its reply.
pub struct Call<Q, P> {
    calls: Rc<Calls<Q, P>>,
    key: Option<u32>,
}

impl<Q, P> Future for Call<Q, P> {
    type Output = Result<P, Gone>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let key = self.key.expect("not polled after its end") as usize;
        let mut open = self.calls.open.borrow_mut();
        match &mut open[key] {
            Slot::Answered(_) => {}
            Slot::Waiting(waker) => {
                *waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Slot::Abandoned => unreachable!("only the drop of this future abandons it"),
        }
        let Slot::Answered(result) = open.remove(key) else { unreachable!("looked at just now") };
        drop(open);
        self.key = None;
        self.calls.freed.ring();
        Poll::Ready(result)
    }
}

impl<Q, P> Drop for Call<Q, P> {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut open = self.calls.open.borrow_mut();
        let slot = &mut open[key as usize];
        if matches!(slot, Slot::Answered(_)) {
            let answered = open.remove(key as usize);
            drop(open);
            drop(answered);
            self.calls.freed.ring();
        } else {
            // The slot stays taken until the reply comes: its place in the box is reserved.
            *slot = Slot::Abandoned;
        }
    }
}

/// What has come in: a request, or a note (then `reply` is `None`).
pub struct Incoming<Q, P> {
    /// What is asked.
    pub body: Q,
    /// The way back.
    pub reply: Option<Reply<Q, P>>,
}

/// The way back to who asked. `Send`. Dropped without `send`, the other side gets [`Gone`].
pub struct Reply<Q, P> {
    to: Option<(Mailboxes<Q, P>, usize, u32)>,
}

impl<Q, P> Reply<Q, P> {
    /// Answers. Never waits: the slot was reserved when the request was sent.
    pub fn send(mut self, body: P) {
        if let Some((boxes, index, key)) = self.to.take() {
            boxes[index].push_reply(key, Ok(body));
        }
    }
}

impl<Q, P> Drop for Reply<Q, P> {
    fn drop(&mut self) {
        if let Some((boxes, index, key)) = self.to.take() {
            boxes[index].push_reply(key, Err(Gone));
        }
    }
}

/// A shard's side that reads.
pub struct Inbox<Q, P> {
    calls: Rc<Calls<Q, P>>,
}

impl<Q: Send, P: Send> Inbox<Q, P> {
    /// Reads until [`Caller::close`]: replies go to their calls, everything else to `handler`, which must not wait. Run
    /// it in a task of its own.
    pub async fn run(self, mut handler: impl FnMut(Incoming<Q, P>)) {
        while !self.calls.ended.get() {
            self.wait().await;
            for _ in 0..BATCH {
                let progressed = self.read_reply() | self.read_request(&mut handler);
                if !progressed {
                    break;
                }
            }
            // More may be there: `wait` then returns at once, after the others had their turn.
            crate::runtime::yield_if_needed().await;
        }
    }

    fn mine(&self) -> &Mailbox<Q, P> {
        &self.calls.boxes[self.calls.index]
    }

    async fn wait(&self) {
        let mine = self.mine();
        std::future::poll_fn(|cx| {
            let ended = &self.calls.ended;
            let nothing = || mine.requests.is_empty() && mine.replies.is_empty() && !ended.get();
            if !nothing() {
                mine.parked.store(false, Ordering::Relaxed);
                return Poll::Ready(());
            }
            mine.reader.register(cx.waker());
            mine.parked.store(true, Ordering::Release);
            fence(Ordering::SeqCst);
            if nothing() {
                return Poll::Pending;
            }
            mine.parked.store(false, Ordering::Relaxed);
            Poll::Ready(())
        })
        .await;
    }

    fn read_reply(&self) -> bool {
        let Some((key, result)) = self.mine().replies.pop() else { return false };
        let mut open = self.calls.open.borrow_mut();
        let slot = &mut open[key as usize];
        let unwanted = match std::mem::replace(slot, Slot::Abandoned) {
            Slot::Waiting(waker) => {
                *slot = Slot::Answered(result);
                if let Some(waker) = waker {
                    waker.wake();
                }
                None
            }
            Slot::Abandoned => {
                open.remove(key as usize);
                Some(result)
            }
            Slot::Answered(_) => unreachable!("a reply is sent once"),
        };
        drop(open);
        if unwanted.is_some() {
            self.calls.freed.ring();
        }
        true
    }

    fn read_request(&self, handler: &mut impl FnMut(Incoming<Q, P>)) -> bool {
        let Some(letter) = self.mine().requests.pop() else { return false };
        self.mine().make_room();
        let boxes = &self.calls.boxes;
        let reply = letter.from.map(|(index, key)| Reply { to: Some((boxes.clone(), index, key)) });
        handler(Incoming { body: letter.body, reply });
        true
    }
}

impl<Q, P> Drop for Inbox<Q, P> {
    /// The shard ends: no more is taken, and whoever asked or waits for room is told.
    fn drop(&mut self) {
        let mine = &self.calls.boxes[self.calls.index];
        mine.closed.store(true, Ordering::SeqCst);
        self.calls.ended.set(true);
        while let Some(letter) = mine.requests.pop() {
            let boxes = &self.calls.boxes;
            drop(letter.from.map(|(index, key)| Reply { to: Some((boxes.clone(), index, key)) }));
        }
        mine.crowded.store(false, Ordering::SeqCst);
        while let Some(waker) = mine.waiting_for_room.pop() {
            waker.wake();
        }
        let open = &self.calls.open;
        for (_, slot) in open.borrow_mut().iter_mut() {
            if let Slot::Waiting(waker) = slot {
                let waker = waker.take();
                *slot = Slot::Answered(Err(Gone));
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
        self.calls.freed.ring();
    }
}

#[cfg(test)]
mod tests;
