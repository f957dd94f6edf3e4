//! What shards say to each other.
//!
//! What is on the hot path has a type of its own ([`Mail`]): batches for partitions of the other shard, the news that data
//! has come for parked fetches, or that one waits no more, calls of group coordinators and what these answer. Everything
//! else is a function that is carried over and run there ([`Shard::ask`]).
//!
//! Order: batches for one shard leave in the order in which their requests were read, through one task per
//! target, so that batches of one connection for one partition keep their order across shards.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;
use flumen_core::coordinator;
use flumen_core::types::{PartitionId, ShardId};
use flumen_wire::batch::BatchHeader;
use futures_util::stream::{self, StreamExt};

use super::Shard;
use super::coordinator::{Call, Origin};
use super::fetch::Watch;
use super::produce::{Outcome, Part};
use crate::mailbox::{Caller, Inbox, Incoming, Post, Reply};
use crate::runtime::{self, local::Bell};

/// Messages that wait at one shard.
pub(crate) const REQUESTS_MAX: usize = 4096;
/// Partitions of one request that a shard works on at a time: what waits for the journal shares its cycles.
const OWNED_AT_ONCE: usize = 64;
/// Requests of one shard that others have not answered.
pub(crate) const CALLS_MAX: usize = 1024;
/// The part of `--memory`, divided by the shards, that batches may take which one shard has sent to another and which
/// are not settled. Past it, a connection that sends more is not read until its own are: that shard cannot hold it
/// back itself.
const FORWARDED_SHARE: u64 = 16;

type Errand = Box<dyn FnOnce(Rc<Shard>) -> Pin<Box<dyn Future<Output = Box<dyn Any + Send>>>> + Send>;

/// A message to another shard.
pub(crate) enum Mail {
    /// Batches for partitions that live there.
    Append(Vec<RemoteAppend>),
    /// Data has come for these parked fetches of yours.
    Wake(Vec<u64>),
    /// A fetch of yours no longer waits for these partitions.
    Unwatch { watch: Watch, partitions: Vec<PartitionId> },
    /// For the group coordinator of a partition that lives there.
    Coordinate { partition: i32, call: Call, origin: Origin },
    /// What a coordinator says to a call of yours.
    Answered { key: u32, answer: coordinator::Answer },
    /// Run this there.
    Errand(Errand),
}

/// An answer from another shard.
pub(crate) enum Answer {
    /// Each part's outcome, once it is durable or refused.
    Settled(Vec<(Part, Outcome)>),
    Errand(Box<dyn Any + Send>),
}

/// A batch on its way to the shard that owns its partition.
pub(crate) struct RemoteAppend {
    pub(crate) part: Part,
    pub(crate) partition: PartitionId,
    pub(crate) header: BatchHeader,
    pub(crate) batch: Bytes,
}

pub(crate) type ShardPost = Post<Mail, Answer>;
pub(crate) type ShardCaller = Caller<Mail, Answer>;
pub(crate) type ShardInbox = Inbox<Mail, Answer>;
pub(crate) type ShardReply = Reply<Mail, Answer>;

/// Batches for one other shard.
#[derive(Default)]
pub(super) struct Outgoing {
    /// Those that wait to be sent.
    appends: RefCell<Vec<RemoteAppend>>,
    bell: Bell,
    /// Bytes of those that are not settled, on their way or there.
    bytes: Cell<usize>,
}

impl Shard {
    /// Runs `errand` on another shard (or here) and returns its result. `None` when that shard has ended.
    pub(crate) async fn ask<R, F, Fut>(self: &Rc<Self>, target: ShardId, errand: F) -> Option<R>
    where
        R: Send + 'static,
        F: FnOnce(Rc<Shard>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        if target == self.id {
            return Some(errand(Rc::clone(self)).await);
        }
        let boxed: Errand = Box::new(move |shard| {
            let result = errand(shard);
            Box::pin(async move { Box::new(result.await) as Box<dyn Any + Send> })
        });
        match self.caller.call(target, Mail::Errand(boxed)).await {
            Ok(Answer::Errand(result)) => {
                Some(*result.downcast::<R>().expect("the errand returns what its type says"))
            }
            Ok(Answer::Settled(_)) => unreachable!("an errand is answered by its result"),
            Err(_) => None,
        }
    }

    /// Does `work` for each partition on the shard that owns it, on all shards at the same time. The results are in the
    /// order of `items`; `None` where that shard has ended.
    pub(crate) async fn ask_owners<I, R, F, Fut>(
        self: &Rc<Self>,
        items: Vec<(PartitionId, I)>,
        work: F,
    ) -> Vec<Option<R>>
    where
        I: Send + 'static,
        R: Send + 'static,
        F: Fn(Rc<Shard>, PartitionId, I) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
        let mut parts: Vec<Vec<(usize, PartitionId, I)>> = Vec::new();
        parts.resize_with(self.count, Vec::new);
        for (index, (partition, item)) in items.into_iter().enumerate() {
            parts[usize::from(self.owner(partition).0)].push((index, partition, item));
        }
        let asked =
            parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty()).map(|(target, part)| {
                let work = work.clone();
                self.ask(ShardId(target as u16), move |shard| async move {
                    let works = part.into_iter().map(|(index, partition, item)| {
                        let done = work(Rc::clone(&shard), partition, item);
                        async move { (index, done.await) }
                    });
                    stream::iter(works).buffer_unordered(OWNED_AT_ONCE).collect::<Vec<_>>().await
                })
            });
        for done in futures_util::future::join_all(asked).await.into_iter().flatten() {
            for (index, result) in done {
                results[index] = Some(result);
            }
        }
        results
    }

    /// Queues a batch for the shard that owns its partition. It leaves at the end of the turn. `false`: that shard has
    /// much of ours already, and who sends more is to wait.
    pub(crate) fn forward(&self, target: ShardId, append: RemoteAppend) -> bool {
        let outgoing = &self.outgoing[usize::from(target.0)];
        let bytes = outgoing.bytes.get() + append.batch.len();
        outgoing.bytes.set(bytes);
        outgoing.appends.borrow_mut().push(append);
        outgoing.bell.ring();
        bytes as u64 <= self.facts.config.memory / FORWARDED_SHARE / self.count as u64
    }

    /// Carries batches to one other shard, in order, and brings their outcomes home.
    pub(super) async fn run_forwarder(self: Rc<Self>, target: ShardId) {
        let outgoing = &self.outgoing[usize::from(target.0)];
        loop {
            let rung = outgoing.bell.next();
            let appends = outgoing.appends.take();
            if appends.is_empty() {
                rung.await;
                continue;
            }
            let parts: Vec<Part> = appends.iter().map(|append| append.part).collect();
            let bytes: usize = appends.iter().map(|append| append.batch.len()).sum();
            let call = self.caller.send(target, Mail::Append(appends)).await;
            let shard = Rc::clone(&self);
            runtime::spawn("remote append", async move {
                let outcomes = match call {
                    Ok(call) => call.await,
                    Err(gone) => Err(gone),
                };
                let settled = &shard.outgoing[usize::from(target.0)].bytes;
                settled.set(settled.get() - bytes);
                match outcomes {
                    Ok(Answer::Settled(outcomes)) => shard.settle_parts(outcomes),
                    Ok(Answer::Errand(_)) => unreachable!("batches are answered by their outcomes"),
                    // That shard has ended, and so does the node: nobody is told anything.
                    Err(_) => shard
                        .settle_parts(parts.into_iter().map(|part| (part, Outcome::unavailable())).collect()),
                }
                shard.net.flush(&*shard);
            });
        }
    }

    /// Serves what the other shards send.
    pub(super) async fn run_inbox(self: Rc<Self>, inbox: ShardInbox) {
        inbox
            .run(|Incoming { body, reply }| match body {
                Mail::Append(appends) => {
                    let reply = reply.expect("batches are sent as a call");
                    self.append_for_others(appends, reply);
                }
                Mail::Wake(keys) => {
                    for key in keys {
                        self.wake_parked(key);
                    }
                }
                Mail::Unwatch { watch, partitions } => self.unwatch(watch, &partitions),
                Mail::Coordinate { partition, call, origin } => {
                    self.take_call(partition, call, origin);
                    self.net.flush(&*self);
                }
                Mail::Answered { key, answer } => self.answered(key, answer),
                Mail::Errand(errand) => {
                    let reply = reply.expect("an errand is sent as a call");
                    let result = errand(Rc::clone(&self));
                    runtime::spawn("errand", async move { reply.send(Answer::Errand(result.await)) });
                }
            })
            .await;
    }
}
