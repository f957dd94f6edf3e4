//! Reading for fetches, here and for other shards, and waking those that wait for data.
//!
//! A fetch is a task of the shard of its connection. It reads each partition on the shard that owns it; where
//! there is not enough, it leaves a *watch* there and parks. What the journal makes durable wakes it.
//!
//! ```text
//!   fetch task ── read(wants, wait) ──> owner: read, note the watch ── not enough
//!     parked  <────────── Wake ──────── owner: high watermark moved
//! ```
//!
//! Invariant: **no wake-up is lost.** Reading and leaving the watch are one step on the owning shard, between
//! which its high watermark cannot move.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use flumen_core::types::{LeaderEpoch, Offset, PartitionId, ShardId};
use flumen_storage::disk::Buffer as _;
use flumen_storage::{ReadOutcome, Slot};
use flumen_wire::ErrorCode;

use super::Shard;
use super::mail::Mail;
use crate::disk;
use crate::net::response::Payload;
use crate::sys::Lent;

/// Most partitions that the waiting fetches of a shard read, all together: each takes some 200 bytes.
const PARKED_WANTS_MAX: usize = 1 << 20;

/// A fetch that waits for data.
pub(crate) struct ParkedFetch {
    key: u64,
    /// How many partitions it reads.
    wants: usize,
    woken: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl ParkedFetch {
    pub(crate) fn wake(&self) {
        self.woken.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Names it for good: keys are not used again.
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// Resolves once woken, also when that was before the call.
    pub(crate) fn woken(self: &Rc<Self>) -> Woken {
        Woken(Rc::clone(self))
    }
}

pub(crate) struct Woken(Rc<ParkedFetch>);

impl Future for Woken {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.woken.take() {
            return Poll::Ready(());
        }
        *self.0.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Who wants to know when a partition grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Watch {
    pub(crate) shard: ShardId,
    pub(crate) fetch: u64,
}

/// That a fetch may wait, and for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    pub(crate) watch: Watch,
    /// With so many bytes it does not wait.
    pub(crate) bytes_min: usize,
}

/// Parked fetches of this shard, and watches that fetches of any shard left on its partitions.
#[derive(Default)]
pub(crate) struct Fetches {
    parked: RefCell<HashMap<u64, Rc<ParkedFetch>>>,
    /// Partitions that they read, of all together.
    parked_wants: Cell<usize>,
    next_key: Cell<u64>,
    watches: RefCell<HashMap<Slot, HashSet<Watch>>>,
}

/// One partition that a fetch reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) partition: PartitionId,
    pub(crate) offset: i64,
    pub(crate) bytes_max: usize,
    /// -1: the client does not know.
    pub(crate) current_leader_epoch: i32,
    /// -1: the client does not ask for divergence (KIP-595).
    pub(crate) last_fetched_epoch: i32,
}

/// What one partition gave; `R` holds the record bytes.
#[derive(Debug)]
pub(crate) struct PartitionRead<R> {
    pub(crate) error: ErrorCode,
    pub(crate) high_watermark: i64,
    pub(crate) log_start_offset: i64,
    pub(crate) leader_epoch: i32,
    /// The client's log and ours part here: epoch and its end.
    pub(crate) diverging: Option<(i32, i64)>,
    pub(crate) records: Vec<R>,
    pub(crate) len: usize,
    /// There is more than was read, as much as may be or a window of the disk: nothing to wait for.
    pub(crate) is_part: bool,
}

impl<R> PartitionRead<R> {
    pub(crate) fn error(error: ErrorCode) -> Self {
        PartitionRead {
            error,
            high_watermark: -1,
            log_start_offset: -1,
            leader_epoch: -1,
            diverging: None,
            records: Vec::new(),
            len: 0,
            is_part: false,
        }
    }

    pub(crate) fn map<S>(self, records: impl FnMut(R) -> S) -> PartitionRead<S> {
        PartitionRead {
            error: self.error,
            high_watermark: self.high_watermark,
            log_start_offset: self.log_start_offset,
            leader_epoch: self.leader_epoch,
            diverging: self.diverging,
            records: self.records.into_iter().map(records).collect(),
            len: self.len,
            is_part: self.is_part,
        }
    }
}

/// The part of a buffer from which on it is worth holding for as long as a peer takes to read: less is copied, so that
/// what responses pin is what they bring, within this factor.
const SHARED_PART: usize = 4;

type Slice = flumen_storage::Slice<disk::Buffer>;

/// Whole batches, in order.
pub(crate) enum RecordBytes {
    /// Where the cache or a disk read has them.
    Shared(Slice),
    /// One or more slices that were small parts of their buffers.
    Copied(Vec<u8>),
}

impl Payload for RecordBytes {
    fn bytes(&self) -> &[u8] {
        match self {
            RecordBytes::Shared(slice) => slice.as_slice(),
            RecordBytes::Copied(bytes) => bytes,
        }
    }
}

/// Copies what would pin much more than it brings, runs of it into one.
fn record_bytes(slices: Vec<Slice>) -> Vec<RecordBytes> {
    let mut found = Vec::with_capacity(slices.len());
    for slice in slices {
        if slice.len() * SHARED_PART >= slice.buffer().as_slice().len() {
            found.push(RecordBytes::Shared(slice));
        } else if let Some(RecordBytes::Copied(run)) = found.last_mut() {
            run.extend_from_slice(slice.as_slice());
        } else {
            found.push(RecordBytes::Copied(slice.as_slice().to_vec()));
        }
    }
    found
}

impl Payload for Lent {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl Shard {
    /// Whether a fetch of so many partitions may wait. Where not, it is answered with what there is.
    pub(crate) fn may_park(&self, wants: usize) -> bool {
        self.fetches.parked_wants.get() + wants <= PARKED_WANTS_MAX
    }

    /// Makes a fetch known, so that it can be woken.
    pub(crate) fn park(&self, wants: usize) -> Rc<ParkedFetch> {
        let key = self.fetches.next_key.get();
        self.fetches.next_key.set(key + 1);
        let parked = Rc::new(ParkedFetch { key, wants, woken: Cell::new(false), waker: RefCell::default() });
        self.fetches.parked_wants.set(self.fetches.parked_wants.get() + wants);
        self.fetches.parked.borrow_mut().insert(key, Rc::clone(&parked));
        parked
    }

    /// The fetch is over.
    pub(crate) fn unpark(&self, parked: &ParkedFetch) {
        if self.fetches.parked.borrow_mut().remove(&parked.key).is_some() {
            self.fetches.parked_wants.set(self.fetches.parked_wants.get() - parked.wants);
        }
    }

    pub(super) fn wake_parked(&self, key: u64) {
        // Where it is not known any more, the fetch is over.
        let parked = self.fetches.parked.borrow().get(&key).map(Rc::clone);
        if let Some(parked) = parked {
            parked.wake();
        }
    }

    /// Partitions whose high watermark moved, or that are no longer served: whoever watches them looks again.
    pub(super) fn wake_watchers(&self, partitions: &[(Slot, PartitionId)]) {
        let mut remote: Vec<Vec<u64>> = Vec::new();
        for (slot, _) in partitions {
            let Some(watches) = self.fetches.watches.borrow_mut().remove(slot) else { continue };
            for watch in watches {
                if watch.shard == self.id {
                    self.wake_parked(watch.fetch);
                } else {
                    remote.resize_with(self.count, Vec::new);
                    remote[usize::from(watch.shard.0)].push(watch.fetch);
                }
            }
        }
        for (target, mut keys) in remote.into_iter().enumerate().filter(|(_, keys)| !keys.is_empty()) {
            keys.sort_unstable();
            keys.dedup();
            self.tell(ShardId(target as u16), Mail::Wake(keys));
        }
    }

    /// Takes back watches that a fetch left on another shard (or here) and that did not fire.
    pub(crate) fn unwatch_on(&self, target: ShardId, watch: Watch, partitions: Vec<PartitionId>) {
        if target == self.id {
            self.unwatch(watch, &partitions);
        } else {
            self.tell(target, Mail::Unwatch { watch, partitions });
        }
    }

    pub(super) fn unwatch(&self, watch: Watch, partitions: &[PartitionId]) {
        let mut watches = self.fetches.watches.borrow_mut();
        for partition in partitions {
            let Some(slot) = self.engine.partition(partition) else { continue };
            if let Some(left) = watches.get_mut(&slot) {
                left.remove(&watch);
                if left.is_empty() {
                    watches.remove(&slot);
                }
            }
        }
    }

    /// Reads partitions that live on this shard, in order, until `bytes_max` are found. The first batch that is
    /// found comes whole whatever its size (KIP-74). As long as there is less than `wait` is for, its watch is left.
    pub(crate) async fn read(
        &self,
        wants: &[Want],
        bytes_max: usize,
        wait: Option<Wait>,
    ) -> Vec<PartitionRead<RecordBytes>> {
        let mut found = 0;
        let mut reads = Vec::with_capacity(wants.len());
        for want in wants {
            let budget = bytes_max.saturating_sub(found).min(want.bytes_max);
            let read = self.read_partition(want, budget, found, wait).await;
            found += read.len;
            reads.push(read);
        }
        reads
    }

    /// As [`Shard::read`], for another shard.
    pub(crate) async fn read_for_other(
        &self,
        wants: &[Want],
        bytes_max: usize,
        wait: Option<Wait>,
    ) -> Vec<PartitionRead<Lent>> {
        let reads = self.read(wants, bytes_max, wait).await;
        reads
            .into_iter()
            .map(|read| {
                read.map(|bytes| match bytes {
                    RecordBytes::Shared(slice) => self
                        .lender
                        .lend(slice.buffer(), slice.range())
                        .unwrap_or_else(|| Lent::owned(slice.as_slice().into())),
                    RecordBytes::Copied(bytes) => Lent::owned(bytes.into_boxed_slice()),
                })
            })
            .collect()
    }

    async fn read_partition(
        &self,
        want: &Want,
        bytes_max: usize,
        found: usize,
        wait: Option<Wait>,
    ) -> PartitionRead<RecordBytes> {
        let Some(slot) = self.engine.partition(&want.partition) else {
            return PartitionRead::error(ErrorCode::UnknownTopicOrPartition);
        };
        let leader_epoch = self.leader_epoch(&want.partition);
        if let Some(error) = fence(want.current_leader_epoch, leader_epoch) {
            return PartitionRead::error(error);
        }
        let mut read = PartitionRead::error(ErrorCode::None);
        read.leader_epoch = leader_epoch;
        if let Some(diverging) = self.divergence(slot, want) {
            read.diverging = Some(diverging);
        } else {
            let at_least_one = found == 0;
            match self.engine.read(slot, Offset(want.offset), bytes_max, at_least_one) {
                Ok(ReadOutcome::Cached { slices, is_part }) => {
                    read.len = slices.len();
                    read.is_part = is_part && found + read.len > 0;
                    read.records = record_bytes(slices.into_vec());
                    self.watch(slot, found + read.len, wait);
                }
                Ok(ReadOutcome::Empty) => self.watch(slot, found, wait),
                // Nothing of it may be taken: then nothing is read, either.
                Ok(ReadOutcome::Disk(_)) if bytes_max == 0 && !at_least_one => read.is_part = found > 0,
                Ok(ReadOutcome::Disk(disk_read)) => {
                    // Before the read, in which the high watermark may move: there may be no batch at the offset or after it.
                    self.watch(slot, found, wait);
                    match self.engine.read_disk(disk_read).await {
                        Ok(slices) => {
                            read.len = slices.len();
                            read.records = record_bytes(slices.into_vec());
                            read.is_part = read.len > 0;
                        }
                        Err(error) => {
                            self.report_read_faults();
                            read.error = error.error_code();
                        }
                    }
                }
                Err(error) => read.error = error.error_code(),
            }
        }
        if let Some(offsets) = self.engine.offsets(slot) {
            read.high_watermark = offsets.high_watermark.0;
            read.log_start_offset = offsets.log_start.0;
        }
        read
    }

    /// Leaves the watch of a fetch that waits, unless what it has found is enough.
    fn watch(&self, slot: Slot, found: usize, wait: Option<Wait>) {
        let Some(Wait { watch, .. }) = wait.filter(|wait| found < wait.bytes_min) else { return };
        // Woken for another partition, it looks again at those where it has left one.
        self.fetches.watches.borrow_mut().entry(slot).or_default().insert(watch);
    }

    /// Says which bytes on disk are not what was written, with file and position.
    pub(crate) fn report_read_faults(&self) {
        for fault in self.engine.take_read_faults() {
            if let Some(suppressed) = self.damages.pass(std::time::Instant::now()) {
                tracing::error!(suppressed, "{fault}");
            }
        }
    }

    /// Where the client's log, whose last epoch it names, parts from ours (KIP-595, KIP-320).
    fn divergence(&self, slot: Slot, want: &Want) -> Option<(i32, i64)> {
        if want.last_fetched_epoch < 0 {
            return None;
        }
        match self.engine.end_offset_for_epoch(slot, LeaderEpoch(want.last_fetched_epoch)) {
            Some((epoch, end)) if epoch.0 < want.last_fetched_epoch || end.0 < want.offset => {
                Some((epoch.0, end.0))
            }
            _ => None,
        }
    }
}

/// A client that knows an older or a newer leader is told so (KIP-320).
pub(crate) fn fence(client_epoch: i32, leader_epoch: i32) -> Option<ErrorCode> {
    if client_epoch < 0 || client_epoch == leader_epoch {
        None
    } else if client_epoch < leader_epoch {
        Some(ErrorCode::FencedLeaderEpoch)
    } else {
        Some(ErrorCode::UnknownLeaderEpoch)
    }
}
