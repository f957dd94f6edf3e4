//! Batches of one partition: the one that collects records, those that wait, and what may be sent now.
//!
//! ```text
//!   append ──► open ──(full, lingered, flushed)──► ready ──► in flight ──► done
//!                                                   ▲            │ refused for now
//!                                                   └────────────┘  in order of sequence, and not before all that
//!                                                                   were in flight have come back
//! ```

use crate::connection::Frame;
use crate::error::Error;
use crate::limits::{BACKOFF_MAX, BACKOFF_MIN, HEADROOM};
use flumen_wire::batch::{BatchBuilder, NewRecord, sequence_after};
use flumen_wire::codec::Writer;
use flumen_wire::compression::Compression;
use flumen_wire::frame::encode_request_around;
use flumen_wire::messages::produce_request::{PartitionProduceData, ProduceRequest, TopicProduceData};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The id that a broker gave to an idempotent producer, and its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The id.
    pub id: i64,
    /// The epoch.
    pub epoch: i16,
}

/// A batch that is complete.
#[derive(Debug)]
pub(super) struct Batch {
    /// Room for the head of a request, the batch, and after a send the tail of the request.
    buffer: Vec<u8>,
    end: usize,
    pub(super) count: i32,
    /// What its records were counted as.
    pub(super) bytes: usize,
    pub(super) created: Instant,
    /// Its place among the batches of its partition.
    number: u64,
    pub(super) last_error: Option<Error>,
}

impl Batch {
    pub(super) fn records(&self) -> &[u8] {
        &self.buffer[HEADROOM..self.end]
    }

    /// A request of this batch alone, built around it.
    pub(super) fn into_frame(
        mut self,
        version: i16,
        client_id: &str,
        (acks, timeout_ms): (i16, i32),
        (topic, index): (&str, i32),
    ) -> (Frame, Batch) {
        self.buffer.truncate(self.end);
        let (mut head, mut tail) = (Writer::new(), Writer::new());
        let records = self.records();
        let partition_data = vec![PartitionProduceData { index, records: Some(records) }];
        let topic_data = vec![TopicProduceData { name: topic, partition_data, ..Default::default() }];
        let request = ProduceRequest { transactional_id: None, acks, timeout_ms, topic_data };
        encode_request_around((&mut head, &mut tail), records, 0, Some(client_id), version, &request);
        let start = HEADROOM - head.bytes().len();
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer[start..HEADROOM].copy_from_slice(head.bytes());
        buffer.extend_from_slice(tail.bytes());
        (Frame { buffer, start }, self)
    }

    /// Takes its memory back after a send.
    pub(super) fn reclaim(&mut self, buffer: Rc<Vec<u8>>) {
        self.buffer = Rc::try_unwrap(buffer).unwrap_or_else(|shared| (*shared).clone());
    }

    /// As [`Batch::reclaim`], of a frame that was not sent.
    pub(super) fn take_back(&mut self, frame: Frame) {
        self.buffer = frame.buffer;
    }

    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }
}

struct Open {
    builder: BatchBuilder,
    bytes: usize,
    since: Instant,
}

/// The batches of one partition.
pub(super) struct Queue {
    open: Option<Open>,
    ready: VecDeque<Batch>,
    pub(super) in_flight: usize,
    /// The broker has taken a batch, so that it refuses one that comes before its turn. Of a producer that it does not
    /// know it takes whichever comes first, and then refuses those that were to come before it.
    known: bool,
    /// One was refused for now: nothing is sent before the others have come back.
    retrying: bool,
    /// Nothing is sent before.
    pub(super) paused_until: Option<Instant>,
    pause: Duration,
    next_sequence: i32,
    next_number: u64,
}

/// What a queue needs to know to close a batch.
pub(super) struct Closing<'a> {
    pub(super) identity: Option<Identity>,
    pub(super) scratch: &'a mut Vec<u8>,
}

impl Queue {
    pub(super) fn new() -> Queue {
        Queue {
            open: None,
            ready: VecDeque::new(),
            in_flight: 0,
            known: false,
            retrying: false,
            paused_until: None,
            pause: BACKOFF_MIN,
            next_sequence: 0,
            next_number: 0,
        }
    }

    /// Adds a record; how much memory it takes, and whether the batch that it went into is new.
    pub(super) fn append(
        &mut self,
        record: NewRecord<'_>,
        compression: Compression,
        spare: impl FnOnce() -> Vec<u8>,
    ) -> usize {
        let open = self.open.get_or_insert_with(|| Open {
            builder: BatchBuilder::with_room(compression, spare(), HEADROOM),
            bytes: 0,
            since: Instant::now(),
        });
        let before = open.builder.len_bytes();
        open.builder.push(record);
        let bytes = open.builder.len_bytes() - before;
        open.bytes += bytes;
        bytes
    }

    /// Bytes of the batch that collects.
    pub(super) fn open_bytes(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.builder.len_bytes())
    }

    /// Ends the batch that collects.
    pub(super) fn close(&mut self, closing: &mut Closing<'_>) {
        let Some(open) = self.open.take() else { return };
        let count = open.builder.count();
        let mut builder = open.builder;
        if let Some(identity) = closing.identity {
            builder = builder.producer(identity.id, identity.epoch, self.next_sequence);
            self.next_sequence = sequence_after(self.next_sequence, count);
        }
        let buffer = builder.finish(closing.scratch);
        let end = buffer.len();
        self.ready.push_back(Batch {
            buffer,
            end,
            count,
            bytes: open.bytes,
            created: open.since,
            number: self.next_number,
            last_error: None,
        });
        self.next_number += 1;
    }

    /// Whether one more may be under way. The first batch of all goes alone. While a batch has to be sent again, nothing is
    /// sent until all of its time are back: what was behind it is out of order through no fault of its own.
    pub(super) fn may_send(&self, window: usize) -> bool {
        let alone = self.retrying || !self.known;
        self.in_flight < if alone { 1 } else { window }
    }

    /// When something can be sent that cannot be sent now; `Some(now)` when it can.
    pub(super) fn due(&self, now: Instant, linger: Duration, hurry: bool, window: usize) -> Option<Instant> {
        if !self.may_send(window) {
            // Whatever comes back says so.
            return None;
        }
        let lingered = if self.ready.is_empty() {
            let open = self.open.as_ref()?;
            if hurry { now } else { open.since + linger }
        } else {
            now
        };
        Some(self.paused_until.map_or(lingered, |until| lingered.max(until)).max(now))
    }

    /// The next batch to send; only when [`Queue::due`] says that it is time and [`Queue::may_send`] holds still.
    pub(super) fn take(&mut self, closing: &mut Closing<'_>) -> Option<Batch> {
        if self.ready.is_empty() {
            self.close(closing);
        }
        let batch = self.ready.pop_front()?;
        self.in_flight += 1;
        self.retrying = false;
        self.paused_until = None;
        Some(batch)
    }

    /// A batch is back and was taken.
    pub(super) fn delivered(&mut self) {
        self.known = true;
        self.done();
    }

    /// A batch is back and done with.
    pub(super) fn done(&mut self) {
        self.in_flight -= 1;
        self.pause = BACKOFF_MIN;
    }

    /// A batch is back and must be sent again.
    pub(super) fn again(&mut self, batch: Batch) {
        self.in_flight -= 1;
        self.retrying = true;
        self.hold();
        let place = self.ready.partition_point(|other| other.number < batch.number);
        self.ready.insert(place, batch);
    }

    /// Sends nothing for a while; longer each time.
    pub(super) fn hold(&mut self) {
        self.paused_until = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(BACKOFF_MAX);
    }

    /// Whether earlier batches failed, so that later ones are out of order through no fault of theirs.
    pub(super) fn is_retrying(&self) -> bool {
        self.retrying
    }

    /// Takes out batches that are older than `timeout`, with the memory that they were counted for. Also the one that
    /// collects: while there is no leader, nobody else closes it.
    pub(super) fn expire(
        &mut self,
        now: Instant,
        timeout: Duration,
        closing: &mut Closing<'_>,
    ) -> Vec<Batch> {
        if self.open.as_ref().is_some_and(|open| now >= open.since + timeout) {
            self.close(closing);
        }
        let expired = self.ready.iter().take_while(|batch| now >= batch.created + timeout).count();
        self.ready.drain(..expired).collect()
    }

    /// Takes out everything that is not in flight.
    pub(super) fn abandon(&mut self, closing: &mut Closing<'_>) -> Vec<Batch> {
        self.close(closing);
        self.ready.drain(..).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_none() && self.ready.is_empty() && self.in_flight == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn another(queue: &mut Queue, closing: &mut Closing<'_>) -> Batch {
        let record = NewRecord { value: Some(b"x"), ..NewRecord::default() };
        queue.append(record, Compression::None, Vec::new);
        queue.take(closing).expect("a record is there")
    }

    #[test]
    fn what_no_leader_takes_expires_whether_its_batch_was_full_or_not() {
        let mut scratch = Vec::new();
        let mut closing = Closing { identity: None, scratch: &mut scratch };
        let mut queue = Queue::new();
        let timeout = Duration::from_secs(10);
        let append = |queue: &mut Queue| {
            let record = NewRecord { value: Some(b"x"), ..NewRecord::default() };
            queue.append(record, Compression::None, Vec::new);
        };
        append(&mut queue);
        queue.close(&mut closing);
        append(&mut queue);
        let now = Instant::now();
        assert_eq!(queue.expire(now, timeout, &mut closing).len(), 0);
        assert_eq!(queue.expire(now + timeout, timeout, &mut closing).len(), 2);
        assert!(queue.is_empty());
    }

    #[test]
    fn until_the_broker_knows_the_producer_one_batch_goes_at_a_time() {
        let mut scratch = Vec::new();
        let mut closing = Closing { identity: None, scratch: &mut scratch };
        let mut queue = Queue::new();
        assert!(queue.may_send(5));
        let first = another(&mut queue, &mut closing);
        assert!(!queue.may_send(5), "the second could be taken where the first was refused");
        queue.again(first);
        assert!(queue.may_send(5));
        let first = queue.take(&mut closing).expect("it waits");
        assert!(!queue.may_send(5), "it is still not known whether it is taken");
        assert_eq!(first.number, 0);
        queue.delivered();
        another(&mut queue, &mut closing);
        assert!(queue.may_send(5));
    }

    #[test]
    fn what_is_behind_a_batch_that_failed_waits_for_all_that_was_under_way() {
        let mut scratch = Vec::new();
        let mut closing = Closing { identity: None, scratch: &mut scratch };
        let mut queue = Queue::new();
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(another(&mut queue, &mut closing));
        }
        queue.known = true;
        assert!(queue.may_send(5) && !queue.may_send(3));
        let last = taken.pop().expect("three were taken");
        let middle = taken.pop().expect("three were taken");
        queue.again(middle);
        assert!(!queue.may_send(5), "two are still under way");
        queue.again(last);
        queue.done();
        assert!(queue.may_send(5));
        assert_eq!(queue.take(&mut closing).expect("the earlier of the two").number, 1);
    }
}
