//! Produce requests under way: their parts, where each part's batch is, and the answer when all are settled.
//!
//! Owned by the shard of the connection. A request has one *part* per partition. A part of a partition of this
//! shard goes straight into the engine; one of another shard travels there and its outcome comes home.
//!
//! ```text
//!   open ── part: append here ─────────────── engine says durable ──┐
//!     │                                                             ├─> settled ── last one: answer
//!     └─── part: forward ── append there ── engine says durable ────┘
//! ```
//!
//! Invariants:
//! - **placed** is fixed in the order in which requests were read: an append that finds no room waits in one queue
//!   per shard, and nothing overtakes it;
//! - what waits is bounded: the connection of a request that waits, or that went to a shard which has much of ours
//!   already, is not read until it is answered;
//! - **produced** is told only after the engine settled every part: the answer cannot leave before the data is
//!   as durable as the topic asks.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::Bytes;
use flumen_core::types::PartitionId;
use flumen_storage::{AppendError, Placed};
use flumen_wire::ErrorCode;
use flumen_wire::batch::BatchHeader;
use slab::Slab;

use super::Shard;
use super::mail::{Answer, RemoteAppend, ShardReply};
use crate::handlers;
use crate::handlers::Request;

/// One partition's part of a produce request of this shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    call: u32,
    index: u32,
}

/// What the engine hands back when an answer may leave.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Token {
    /// A part of a request of this shard.
    Part(Part),
    /// A batch that another shard sent: which of them, and which batch.
    Remote { batch: u32, index: u32 },
    /// A task of this shard waits.
    Waiter(u32),
}

/// What became of a part.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) error: ErrorCode,
    pub(crate) message: Option<Box<str>>,
    /// Which records of the batch were at fault, by index.
    pub(crate) records_at_fault: Vec<i32>,
    pub(crate) base_offset: i64,
    pub(crate) log_append_time: i64,
    pub(crate) log_start_offset: i64,
}

impl Outcome {
    pub(crate) fn error(error: ErrorCode) -> Outcome {
        Outcome {
            error,
            message: None,
            records_at_fault: Vec::new(),
            base_offset: -1,
            log_append_time: -1,
            log_start_offset: -1,
        }
    }

    pub(crate) fn error_because(error: ErrorCode, message: impl Into<Box<str>>) -> Outcome {
        Outcome { message: Some(message.into()), ..Outcome::error(error) }
    }

    pub(super) fn unavailable() -> Outcome {
        Outcome::error(ErrorCode::NotLeaderOrFollower)
    }

    fn placed(placed: &Placed) -> Outcome {
        Outcome {
            error: ErrorCode::None,
            message: None,
            records_at_fault: Vec::new(),
            base_offset: placed.base_offset.0,
            log_append_time: placed.log_append_time,
            log_start_offset: placed.log_start_offset.0,
        }
    }
}

/// A topic of a produce response.
pub(crate) struct ProducedTopic {
    pub(crate) name: Box<str>,
    pub(crate) id: [u8; 16],
    /// Where its partitions start in [`ProduceCall::partitions`].
    pub(crate) from: usize,
}

/// A partition of a produce response; `outcome` is valid once settled.
pub(crate) struct ProducedPartition {
    pub(crate) index: i32,
    pub(crate) outcome: Outcome,
}

/// A produce request under way.
pub(crate) struct ProduceCall {
    pub(crate) request: Request,
    pub(crate) topics: Vec<ProducedTopic>,
    pub(crate) partitions: Vec<ProducedPartition>,
    /// Parts not settled, and one for the handler while it adds parts.
    unsettled: usize,
    /// The connection is not read until this is answered.
    holds: bool,
}

/// Batches that another shard sent in one message, until all are settled.
struct RemoteBatch {
    reply: ShardReply,
    outcomes: Vec<(Part, Outcome)>,
    unsettled: usize,
}

/// An append that found the engine full.
struct Waiting {
    partition: PartitionId,
    header: BatchHeader,
    batch: Bytes,
    token: Token,
}

/// All produce requests of a shard.
#[derive(Default)]
pub(crate) struct Produces {
    calls: RefCell<Slab<ProduceCall>>,
    remote: RefCell<Slab<RemoteBatch>>,
    waiting: RefCell<VecDeque<Waiting>>,
}

/// A request to which the handler still adds parts.
#[derive(Clone, Copy)]
pub(crate) struct OpenCall(u32);

impl Shard {
    /// Opens a request. Parts are added to it until [`Shard::close_produce`].
    pub(crate) fn open_produce(&self, request: Request) -> OpenCall {
        let call = ProduceCall {
            request,
            topics: Vec::with_capacity(1),
            partitions: Vec::with_capacity(1),
            unsettled: 1,
            holds: false,
        };
        OpenCall(self.produces.calls.borrow_mut().insert(call) as u32)
    }

    pub(crate) fn add_topic(&self, call: OpenCall, name: &str, id: [u8; 16]) {
        let mut calls = self.produces.calls.borrow_mut();
        let call = &mut calls[call.0 as usize];
        call.topics.push(ProducedTopic { name: name.into(), id, from: call.partitions.len() });
    }

    /// Adds a part that is settled already: it was refused.
    pub(crate) fn add_refused(&self, call: OpenCall, index: i32, outcome: Outcome) {
        let mut calls = self.produces.calls.borrow_mut();
        calls[call.0 as usize].partitions.push(ProducedPartition { index, outcome });
    }

    /// Adds a part and sends its batch on its way.
    pub(crate) fn add_part(
        &self,
        call: OpenCall,
        index: i32,
        partition: PartitionId,
        header: BatchHeader,
        batch: Bytes,
    ) {
        let part = {
            let mut calls = self.produces.calls.borrow_mut();
            let entry = &mut calls[call.0 as usize];
            entry.unsettled += 1;
            entry.partitions.push(ProducedPartition { index, outcome: Outcome::unavailable() });
            Part { call: call.0, index: entry.partitions.len() as u32 - 1 }
        };
        let owner = self.owner(partition);
        if owner == self.id {
            self.append(Waiting { partition, header, batch, token: Token::Part(part) });
        } else if !self.forward(owner, RemoteAppend { part, partition, header, batch }) {
            self.hold_back(part);
        }
    }

    /// All parts are added.
    pub(crate) fn close_produce(&self, call: OpenCall) {
        self.part_settled(call.0);
    }

    /// Appends a batch of a task of this shard, in its turn among those that wait for room. Returns when it is as durable as
    /// its topic asks, or was refused: then it is not in the log.
    pub(super) async fn append_and_wait(
        &self,
        partition: PartitionId,
        header: BatchHeader,
        batch: Bytes,
    ) -> Result<(), ErrorCode> {
        let (token, settled) = self.shared().waiter();
        self.append(Waiting { partition, header, batch, token });
        settled.await
    }

    /// Batches of other shards' connections.
    pub(super) fn append_for_others(&self, appends: Vec<RemoteAppend>, reply: ShardReply) {
        let outcomes: Vec<_> = appends.iter().map(|append| (append.part, Outcome::unavailable())).collect();
        let batch = RemoteBatch { reply, unsettled: outcomes.len(), outcomes };
        let batch = self.produces.remote.borrow_mut().insert(batch) as u32;
        for (index, append) in appends.into_iter().enumerate() {
            let RemoteAppend { partition, header, batch: bytes, .. } = append;
            let token = Token::Remote { batch, index: index as u32 };
            self.append(Waiting { partition, header, batch: bytes, token });
        }
    }

    /// The engine has room again: those who wait go first.
    pub(super) fn append_waiting(&self) {
        loop {
            let Some(next) = self.produces.waiting.borrow_mut().pop_front() else { return };
            if let Some(next) = self.try_append(next) {
                self.produces.waiting.borrow_mut().push_front(next);
                return;
            }
        }
    }

    fn append(&self, append: Waiting) {
        let wait = !self.produces.waiting.borrow().is_empty();
        let full = if wait { Some(append) } else { self.try_append(append) };
        let Some(append) = full else { return };
        if let Token::Part(part) = append.token {
            self.hold_back(part);
        }
        self.produces.waiting.borrow_mut().push_back(append);
    }

    /// Returns the append when there is no room for it.
    fn try_append(&self, append: Waiting) -> Option<Waiting> {
        let Waiting { partition, header, batch, token } = append;
        let Some(slot) = self.engine.partition(&partition) else {
            self.settle(token, Outcome::error(ErrorCode::UnknownTopicOrPartition));
            return None;
        };
        match self.engine.append(slot, crate::runtime::now_ms(), batch.clone(), &header, token) {
            Ok(placed) => self.set_placed(token, &placed),
            Err((token, AppendError::Full)) => return Some(Waiting { partition, header, batch, token }),
            Err((token, AppendError::Refused(error))) => self.settle(token, Outcome::error(error)),
        }
        None
    }

    /// Stops reading from the connection of a request that must wait for room.
    fn hold_back(&self, part: Part) {
        let mut calls = self.produces.calls.borrow_mut();
        let call = &mut calls[part.call as usize];
        if !std::mem::replace(&mut call.holds, true) {
            self.net.hold(&call.request.connection);
        }
    }

    /// Notes where a batch lies; its answer waits for the engine.
    fn set_placed(&self, token: Token, placed: &Placed) {
        match token {
            Token::Part(part) => {
                let mut calls = self.produces.calls.borrow_mut();
                calls[part.call as usize].partitions[part.index as usize].outcome = Outcome::placed(placed);
            }
            Token::Remote { batch, index } => {
                let mut remote = self.produces.remote.borrow_mut();
                remote[batch as usize].outcomes[index as usize].1 = Outcome::placed(placed);
            }
            // It does not ask where.
            Token::Waiter(_) => {}
        }
    }

    /// The engine's word on a token: the batch is as durable as its topic asks, or it failed.
    pub(super) fn engine_settled(&self, token: Token, result: Result<(), ErrorCode>) {
        match (token, result) {
            (Token::Part(part), Ok(())) => self.part_settled(part.call),
            (Token::Remote { batch, .. }, Ok(())) => self.remote_settled(batch),
            (Token::Waiter(waiter), result) => self.settle_waiter(waiter, result),
            (token, Err(error)) => self.settle(token, Outcome::error(error)),
        }
    }

    /// Outcomes of parts that other shards took.
    pub(super) fn settle_parts(&self, outcomes: Vec<(Part, Outcome)>) {
        for (part, outcome) in outcomes {
            self.settle(Token::Part(part), outcome);
        }
    }

    fn settle(&self, token: Token, outcome: Outcome) {
        match token {
            Token::Part(part) => {
                let mut calls = self.produces.calls.borrow_mut();
                calls[part.call as usize].partitions[part.index as usize].outcome = outcome;
                drop(calls);
                self.part_settled(part.call);
            }
            Token::Remote { batch, index } => {
                self.produces.remote.borrow_mut()[batch as usize].outcomes[index as usize].1 = outcome;
                self.remote_settled(batch);
            }
            Token::Waiter(waiter) => self.settle_waiter(waiter, Err(outcome.error)),
        }
    }

    fn part_settled(&self, key: u32) {
        let mut calls = self.produces.calls.borrow_mut();
        let call = &mut calls[key as usize];
        call.unsettled -= 1;
        if call.unsettled > 0 {
            return;
        }
        let call = calls.remove(key as usize);
        drop(calls);
        if call.holds {
            self.net.release(&call.request.connection);
        }
        handlers::produce::answer(self, call);
    }

    fn remote_settled(&self, key: u32) {
        let mut remote = self.produces.remote.borrow_mut();
        let batch = &mut remote[key as usize];
        batch.unsettled -= 1;
        if batch.unsettled > 0 {
            return;
        }
        let batch = remote.remove(key as usize);
        drop(remote);
        batch.reply.send(Answer::Settled(batch.outcomes));
    }
}
