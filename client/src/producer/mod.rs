//! Sending records: into batches, batches into requests, requests to leaders, again where they are refused for now.
//!
//! One task sends for all partitions. Records of one partition leave in the order they were given: with idempotence
//! five batches are in flight and the broker keeps their order, without it one.
//!
//! Invariants: at most `buffer_bytes_max` of records are held ([`Producer::send`] waits); each record is reported
//! exactly once, as delivered or not; a batch is copied neither for its request nor for being sent again.

mod batch;
pub mod partitioner;
pub mod request;

pub use batch::Identity;

use crate::cluster::{Cluster, Lane};
use crate::error::Error;
use crate::limits::{BATCHES_IN_FLIGHT_MAX, PRODUCE_BYTES_MAX, SPARE_BUFFERS_MAX};
use crate::link::{Answer, Link};
use crate::metadata::TopicPartition;
use crate::runtime;
use batch::{Batch, Closing, Queue};
use flumen_wire::batch::NewRecord;
use flumen_wire::compression::Compression;
use flumen_wire::messages::init_producer_id_request::InitProducerIdRequest;
use flumen_wire::messages::produce_request::{PartitionProduceData, ProduceRequest, TopicProduceData};
use flumen_wire::{ApiKey, ErrorCode};
use futures_util::future::select;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// How to send.
#[derive(Clone, Debug)]
pub struct ProducerSettings {
    /// -1: all replicas in sync; 1: the leader; 0: nobody says anything.
    pub acks: i16,
    /// How batches are compressed.
    pub compression: Compression,
    /// How long a batch waits for more records while others are not in flight.
    pub linger: Duration,
    /// How large a batch grows, before compression.
    pub batch_bytes: usize,
    /// How much is held that is not delivered.
    pub buffer_bytes_max: usize,
    /// How long a batch is tried.
    pub delivery_timeout: Duration,
    /// Whether the broker is to drop duplicates and keep the order of what is sent again.
    pub idempotent: bool,
    /// Whether the broker may make a topic that is not there.
    pub create_topics: bool,
}

impl Default for ProducerSettings {
    fn default() -> ProducerSettings {
        ProducerSettings {
            acks: -1,
            compression: Compression::None,
            linger: Duration::from_millis(5),
            batch_bytes: 256 << 10,
            buffer_bytes_max: 32 << 20,
            delivery_timeout: Duration::from_secs(120),
            idempotent: true,
            create_topics: true,
        }
    }
}

/// What became of a batch.
#[derive(Debug)]
pub struct Delivery<'a> {
    /// Where to.
    pub at: &'a TopicPartition,
    /// How many records.
    pub count: i32,
    /// Their bytes, uncompressed.
    pub bytes: usize,
    /// The offset of the first (-1 where nobody said), or why they did not arrive.
    pub result: Result<i64, Error>,
}

/// Hears what becomes of every batch.
type Report = Box<dyn FnMut(Delivery<'_>)>;

struct TopicState {
    partitions: i32,
    sticky: i32,
}

/// Wakes tasks that wait for something to change. Whoever waits notes [`Signal::now`] first, then looks whether it has
/// to wait: what changes in between is not missed.
#[derive(Default)]
struct Signal {
    changes: Cell<u64>,
    wakers: RefCell<Vec<Waker>>,
}

impl Signal {
    fn now(&self) -> u64 {
        self.changes.get()
    }

    fn notify(&self) {
        self.changes.set(self.changes.get() + 1);
        for waker in self.wakers.take() {
            waker.wake();
        }
    }

    async fn changed_since(&self, seen: u64) {
        poll_fn(|context| {
            if self.changes.get() != seen {
                return Poll::Ready(());
            }
            let mut wakers = self.wakers.borrow_mut();
            if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

struct Inner {
    cluster: Cluster,
    settings: ProducerSettings,
    identity: Option<Identity>,
    topics: RefCell<HashMap<Rc<str>, TopicState>>,
    queues: RefCell<BTreeMap<TopicPartition, Queue>>,
    buffered: Cell<usize>,
    spare: RefCell<Vec<Vec<u8>>>,
    scratch: RefCell<Vec<u8>>,
    /// Batches do not linger: somebody waits for them.
    hurry: Cell<bool>,
    closed: Cell<bool>,
    /// For the sending task.
    work: Signal,
    /// For those who wait for room, or for the end.
    progress: Signal,
    report: RefCell<Report>,
}

/// See the head of this file. What is still held when it is dropped is not sent: [`Producer::flush`] first.
pub struct Producer(Rc<Inner>);

impl Producer {
    /// Starts it. `report` hears what becomes of every batch.
    pub async fn start(
        cluster: &Cluster,
        mut settings: ProducerSettings,
        report: impl FnMut(Delivery<'_>) + 'static,
    ) -> Result<Producer, Error> {
        // Without an acknowledgement of all, a broker keeps no promise about duplicates.
        settings.idempotent &= settings.acks == -1;
        let identity = if settings.idempotent { identity(cluster).await? } else { None };
        let inner = Rc::new(Inner {
            cluster: cluster.clone(),
            settings,
            identity,
            topics: RefCell::default(),
            queues: RefCell::default(),
            buffered: Cell::new(0),
            spare: RefCell::default(),
            scratch: RefCell::default(),
            hurry: Cell::new(false),
            closed: Cell::new(false),
            work: Signal::default(),
            progress: Signal::default(),
            report: RefCell::new(Box::new(report)),
        });
        runtime::spawn(send_all(inner.clone()));
        Ok(Producer(inner))
    }

    /// Takes a record, once there is room. It is copied. Without a partition, the key chooses one.
    pub async fn send(
        &self,
        topic: &Rc<str>,
        partition: Option<i32>,
        record: NewRecord<'_>,
    ) -> Result<(), Error> {
        let inner = &self.0;
        let partition = match inner.choose(topic, partition, record.key) {
            Some(partition) => partition?,
            None => {
                let found = inner.cluster.topic(topic, inner.settings.create_topics).await?;
                let partitions = found.partitions.len() as i32;
                let state = TopicState { partitions, sticky: partitioner::another(0, partitions) };
                inner.topics.borrow_mut().insert(topic.clone(), state);
                inner.choose(topic, partition, record.key).unwrap_or(Ok(0))?
            }
        };
        loop {
            let seen = inner.progress.now();
            if inner.buffered.get() < inner.settings.buffer_bytes_max {
                break;
            }
            inner.progress.changed_since(seen).await;
        }
        inner.append(TopicPartition { topic: topic.clone(), partition }, record);
        Ok(())
    }

    /// Waits until everything that was sent is reported.
    pub async fn flush(&self) {
        self.0.hurry.set(true);
        self.0.work.notify();
        loop {
            let seen = self.0.progress.now();
            if self.0.queues.borrow().values().all(Queue::is_empty) {
                break;
            }
            self.0.progress.changed_since(seen).await;
        }
        self.0.hurry.set(false);
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.0.closed.set(true);
        self.0.work.notify();
    }
}

/// Asks for an identity; none where the broker does not give any.
pub async fn identity(cluster: &Cluster) -> Result<Option<Identity>, Error> {
    cluster
        .retry(async || {
            let link = cluster.any().await?;
            if link.version::<InitProducerIdRequest<'_>>().is_err() {
                return Ok(None);
            }
            let answer = link
                .call(|_| InitProducerIdRequest {
                    transactional_id: None,
                    transaction_timeout_ms: i32::MAX,
                    ..Default::default()
                })
                .await?;
            let response = answer.read()?;
            Error::check(response.error_code, None, || "a producer id".to_owned())?;
            Ok(Some(Identity { id: response.producer_id, epoch: response.producer_epoch }))
        })
        .await
}

impl Inner {
    /// The partition for a record; none while the topic is not known.
    fn choose(&self, topic: &Rc<str>, asked: Option<i32>, key: Option<&[u8]>) -> Option<Result<i32, Error>> {
        let topics = self.topics.borrow();
        let state = topics.get(topic)?;
        Some(match (asked, key) {
            (Some(partition), _) if (0..state.partitions).contains(&partition) => Ok(partition),
            (Some(partition), _) => Err(Error::UnknownPartition {
                topic: topic.to_string(),
                partition,
                count: state.partitions as usize,
            }),
            (None, Some(key)) => Ok(partitioner::of_key(key, state.partitions)),
            (None, None) => Ok(state.sticky),
        })
    }

    fn append(&self, at: TopicPartition, record: NewRecord<'_>) {
        let mut queues = self.queues.borrow_mut();
        let queue = queues.entry(at.clone()).or_insert_with(Queue::new);
        let was_empty = queue.open_bytes() == 0;
        let spare = || self.spare.borrow_mut().pop().unwrap_or_default();
        let bytes = queue.append(record, self.settings.compression, spare);
        self.buffered.set(self.buffered.get() + bytes);
        let full = queue.open_bytes() >= self.settings.batch_bytes;
        if full {
            queue.close(&mut self.closing(&mut self.scratch.borrow_mut()));
            drop(queues);
            self.move_on(&at);
        }
        if full || was_empty {
            self.work.notify();
        }
    }

    fn closing<'a>(&self, scratch: &'a mut Vec<u8>) -> Closing<'a> {
        Closing { identity: self.identity, scratch }
    }

    /// Records without a key go elsewhere now that a batch is closed.
    fn move_on(&self, at: &TopicPartition) {
        if let Some(state) = self.topics.borrow_mut().get_mut(&at.topic)
            && state.sticky == at.partition
        {
            state.sticky = partitioner::another(state.sticky, state.partitions);
        }
    }

    fn window(&self) -> usize {
        if self.identity.is_some() { BATCHES_IN_FLIGHT_MAX } else { 1 }
    }

    /// Which leaders something can be sent to now, and when to look again.
    fn plan(&self, now: Instant) -> (BTreeMap<i32, Vec<TopicPartition>>, Option<Instant>, bool) {
        let metadata = self.cluster.metadata();
        let (mut leaders, mut next, mut lost) = (BTreeMap::<i32, Vec<_>>::new(), None, false);
        for (at, queue) in self.queues.borrow_mut().iter_mut() {
            let hurry = self.hurry.get() || self.closed.get();
            let Some(due) = queue.due(now, self.settings.linger, hurry, self.window()) else { continue };
            if due > now {
                next = Some(next.map_or(due, |next: Instant| next.min(due)));
                continue;
            }
            match metadata.leader(at) {
                Ok(leader) => leaders.entry(leader).or_default().push(at.clone()),
                Err(_) => {
                    lost = true;
                    queue.hold();
                    next = Some(now);
                }
            }
        }
        (leaders, next, lost)
    }

    /// One request's worth of batches for a leader.
    fn take(&self, partitions: &mut Vec<TopicPartition>) -> Vec<(TopicPartition, Batch)> {
        let mut queues = self.queues.borrow_mut();
        let mut scratch = self.scratch.borrow_mut();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(at) = partitions.pop() {
            // Answers may have come since it was due.
            let Some(queue) = queues.get_mut(&at).filter(|queue| queue.may_send(self.window())) else {
                continue;
            };
            let Some(batch) = queue.take(&mut self.closing(&mut scratch)) else { continue };
            bytes += batch.records().len();
            taken.push((at, batch));
            if bytes >= PRODUCE_BYTES_MAX {
                break;
            }
        }
        drop((queues, scratch));
        for (at, _) in &taken {
            self.move_on(at);
        }
        taken
    }

    fn settle(&self, at: &TopicPartition, mut batch: Batch, result: Result<i64, Error>) {
        let mut queues = self.queues.borrow_mut();
        let Some(queue) = queues.get_mut(at) else { return };
        let error = match result {
            Ok(offset) => {
                queue.delivered();
                drop(queues);
                return self.reported(at, batch, Ok(offset));
            }
            Err(error) => error,
        };
        let out_of_order = error.code() == Some(ErrorCode::OutOfOrderSequenceNumber);
        let again = error.is_retriable() || (out_of_order && queue.is_retrying());
        if again && batch.created.elapsed() < self.settings.delivery_timeout {
            batch.last_error = Some(error);
            return queue.again(batch);
        }
        queue.done();
        // Behind a gap in the sequence the broker takes nothing more.
        let behind = match self.identity {
            Some(_) => queue.abandon(&mut self.closing(&mut self.scratch.borrow_mut())),
            None => Vec::new(),
        };
        drop(queues);
        let error = if again { self.undelivered(at, batch.records().len(), Some(error)) } else { error };
        self.reported(at, batch, Err(error.clone()));
        for batch in behind {
            self.reported(at, batch, Err(error.clone()));
        }
    }

    fn undelivered(&self, at: &TopicPartition, bytes: usize, last: Option<Error>) -> Error {
        Error::Undelivered {
            topic: at.topic.to_string(),
            partition: at.partition,
            after: self.settings.delivery_timeout,
            bytes,
            last: last.map(Box::new),
        }
    }

    /// Reports a batch and takes its memory back.
    fn reported(&self, at: &TopicPartition, batch: Batch, result: Result<i64, Error>) {
        self.buffered.set(self.buffered.get() - batch.bytes);
        (self.report.borrow_mut())(Delivery { at, count: batch.count, bytes: batch.bytes, result });
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_BUFFERS_MAX {
            spare.push(batch.into_buffer());
        }
        drop(spare);
        self.progress.notify();
    }

    /// Gives up what has waited for too long. When to look again.
    fn expire(&self, now: Instant) {
        let timeout = self.settings.delivery_timeout;
        let expired: Vec<_> = {
            let mut queues = self.queues.borrow_mut();
            let mut scratch = self.scratch.borrow_mut();
            let mut closing = self.closing(&mut scratch);
            let mut expire = |queue: &mut Queue| queue.expire(now, timeout, &mut closing);
            queues.iter_mut().map(|(at, queue)| (at.clone(), expire(queue))).collect()
        };
        for (at, batches) in expired {
            for mut batch in batches {
                let error = self.undelivered(&at, batch.records().len(), batch.last_error.take());
                self.reported(&at, batch, Err(error));
            }
        }
    }
}

/// The sending task.
async fn send_all(inner: Rc<Inner>) {
    loop {
        let seen = inner.work.now();
        let now = Instant::now();
        inner.expire(now);
        let (leaders, next, lost) = inner.plan(now);
        let idle = leaders.is_empty();
        for (leader, mut partitions) in leaders {
            match inner.cluster.node(leader, Lane::Produce).await {
                Ok(link) => {
                    while !partitions.is_empty() {
                        let batches = inner.take(&mut partitions);
                        send(&inner, &link, batches).await;
                    }
                }
                Err(error) => refuse(&inner, &partitions, &error).await,
            }
        }
        if lost {
            let _ = inner.cluster.refresh_known().await;
        }
        if inner.closed.get() && inner.queues.borrow().values().all(Queue::is_empty) {
            return;
        }
        if !idle {
            continue;
        }
        match next {
            Some(next) => {
                let timer = runtime::sleep(next.saturating_duration_since(Instant::now()));
                select(pin!(inner.work.changed_since(seen)), pin!(timer)).await;
            }
            None => inner.work.changed_since(seen).await,
        }
    }
}

/// The leader cannot be reached: its partitions wait, and somebody is asked whether it is still the leader.
async fn refuse(inner: &Rc<Inner>, partitions: &[TopicPartition], error: &Error) {
    for at in partitions {
        let taken = inner.take(&mut vec![at.clone()]);
        for (at, batch) in taken {
            inner.settle(&at, batch, Err(error.clone()));
        }
    }
    let _ = inner.cluster.refresh_known().await;
}

/// Sends one request; what comes of it is settled by a task of its own.
async fn send(inner: &Rc<Inner>, link: &Link, mut batches: Vec<(TopicPartition, Batch)>) {
    let timeout_ms = i32::try_from(inner.cluster.settings().request_timeout.as_millis()).unwrap_or(i32::MAX);
    let how = (inner.settings.acks, timeout_ms);
    let version = match link.version::<ProduceRequest<'_>>() {
        Ok(version) => version,
        Err(error) => return fail(inner, batches, &error),
    };
    if batches.len() == 1 || how.0 == 0 {
        for (at, batch) in batches {
            send_alone(inner, link, version, how, at, batch).await;
        }
        return;
    }
    let topics = crate::metadata::by_topic(batches.iter().map(|(at, batch)| (at, batch)));
    let request = ProduceRequest {
        transactional_id: None,
        acks: how.0,
        timeout_ms,
        topic_data: topics
            .into_iter()
            .map(|(name, partitions)| TopicProduceData {
                name,
                partition_data: partitions
                    .into_iter()
                    .map(|(index, batch)| PartitionProduceData { index, records: Some(batch.records()) })
                    .collect(),
                ..Default::default()
            })
            .collect(),
    };
    match link.send(version, &request, Duration::ZERO) {
        Ok(pending) => {
            let (inner, link) = (inner.clone(), link.clone());
            runtime::spawn(async move {
                let answer = link.answer(pending).await;
                settle_all(&inner, std::mem::take(&mut batches), answer).await;
            });
        }
        Err(error) => {
            drop(request);
            fail(inner, batches, &error);
        }
    }
}

/// A request of one batch, sent from where the batch lies.
async fn send_alone(
    inner: &Rc<Inner>,
    link: &Link,
    version: i16,
    how: (i16, i32),
    at: TopicPartition,
    batch: Batch,
) {
    let client_id = link.client_id();
    let (frame, mut batch) = batch.into_frame(version, &client_id, how, (&at.topic, at.partition));
    if how.0 == 0 {
        let sent = link.send_unanswered(ApiKey::Produce, version, frame);
        while sent.is_ok() && link.is_open() && !link.is_flushed() {
            runtime::sleep(Duration::from_millis(1)).await;
        }
        // Nobody will ever say more than this.
        return match sent {
            Ok(buffer) => {
                batch.reclaim(buffer);
                inner.settle(&at, batch, Ok(-1));
            }
            Err(refused) => {
                batch.take_back(refused.frame);
                inner.settle(&at, batch, Err(refused.error));
            }
        };
    }
    match link.send_frame(ApiKey::Produce, version, frame, Duration::ZERO) {
        Ok((pending, buffer)) => {
            let (inner, link) = (inner.clone(), link.clone());
            runtime::spawn(async move {
                let answer = link.answer(pending).await;
                batch.reclaim(buffer);
                settle_all(&inner, vec![(at, batch)], answer).await;
            });
        }
        Err(refused) => {
            batch.take_back(refused.frame);
            inner.settle(&at, batch, Err(refused.error));
        }
    }
}

fn fail(inner: &Rc<Inner>, batches: Vec<(TopicPartition, Batch)>, error: &Error) {
    for (at, batch) in batches {
        inner.settle(&at, batch, Err(error.clone()));
    }
    inner.work.notify();
}

async fn settle_all(
    inner: &Rc<Inner>,
    batches: Vec<(TopicPartition, Batch)>,
    answer: Result<Answer<ProduceRequest<'static>>, Error>,
) {
    let read = answer.and_then(|answer| {
        let mut results = BTreeMap::new();
        for topic in &answer.read()?.responses {
            for one in &topic.partition_responses {
                let at = TopicPartition::new(topic.name, one.index);
                // What was there already is there.
                let duplicate = one.error_code == ErrorCode::DuplicateSequenceNumber.code();
                let code = if duplicate { 0 } else { one.error_code };
                let result = Error::check(code, one.error_message, || format!("records for {at}"));
                results.insert(at, result.map(|()| one.base_offset));
            }
        }
        Ok(results)
    });
    let mut stale = false;
    match read {
        Ok(mut results) => {
            for (at, batch) in batches {
                let unanswered =
                    || Err(Error::Invalid(format!("the broker says nothing of the records for {at}")));
                let result = results.remove(&at).unwrap_or_else(unanswered);
                stale |= result.is_err();
                inner.settle(&at, batch, result);
            }
        }
        Err(error) => {
            stale = true;
            fail(inner, batches, &error);
        }
    }
    if stale {
        let _ = inner.cluster.refresh_known().await;
    }
    inner.work.notify();
}
