//! A consumer that reads all partitions from positions of its own: a connection to each leader, with a fetch open on it.
//!
//! Fetch sessions (KIP-227) keep the cost of a fetch by what changed, not by how many partitions there are. Records are
//! read where they were received; what they say of themselves is checked and timed ([`Receipts`]).

use super::receipts::{Receipts, Taken};
use super::tally::{Amount, error_name};
use super::thread::Shop;
use super::{Place, ReaderPlan, Received};
use crate::scenario::From;
use flumen_client::Error;
use flumen_client::api::Call;
use flumen_client::cluster::{EARLIEST, LATEST, Lane, Topics};
use flumen_client::limits::{BACKOFF_MAX, BACKOFF_MIN, RESPONSE_BYTES_MAX};
use flumen_client::metadata::TopicPartition;
use flumen_client::pipe::Pipe;
use flumen_client::runtime::{self, Alarm};
use flumen_wire::batch::Batches;
use flumen_wire::codec::{Decode, Reader as Decoder, Writer};
use flumen_wire::frame::encode_request;
use flumen_wire::messages::fetch_request::{FetchPartition, FetchRequest, FetchTopic};
use flumen_wire::messages::fetch_response::FetchResponse;
use flumen_wire::{ApiKey, ErrorCode};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

struct Position {
    at: TopicPartition,
    place: Place,
    offset: i64,
    /// The end of what may be read, as the leader said last; -1 when it has not.
    end: i64,
    /// That end, once all that was acknowledged is below it.
    goal: Option<i64>,
    /// Whether the session does not know this position yet.
    is_news: bool,
}

impl Position {
    fn is_at_end(&self) -> bool {
        self.end >= 0 && self.offset >= self.end
    }
}

/// See the head of this file.
pub(super) struct Reader {
    plan: ReaderPlan,
    by_leader: Vec<(i32, Vec<Position>)>,
}

/// What the connections of one reader share.
struct Common {
    plan: ReaderPlan,
    receipts: RefCell<Receipts>,
    sealed_since: Cell<Option<Instant>>,
}

impl Reader {
    /// Finds where to begin.
    pub(super) async fn open(shop: &Rc<Shop>, plan: ReaderPlan) -> Result<Reader, Error> {
        let mut all = Vec::new();
        for (topic, name) in shop.plan.topics.iter().enumerate() {
            for partition in 0..shop.plan.partitions[topic] {
                let place = Place { topic: topic as u32, partition };
                all.push((TopicPartition::new(&**name, partition), place));
            }
        }
        let end = match plan.settings.from {
            From::Earliest => EARLIEST,
            From::Latest => LATEST,
        };
        let asked: Vec<_> = all.iter().map(|(at, _)| (at.clone(), end)).collect();
        let found = shop.cluster.list_offsets(&asked).await?;
        let positions = all.into_iter().map(|(at, place)| {
            let offset = found.get(&at).map_or(0, |one| one.offset.max(0));
            Position { at, place, offset, end: -1, goal: None, is_news: true }
        });
        let by_leader = by_leader(shop, positions.collect())?;
        Ok(Reader { plan, by_leader })
    }

    /// Reads until all that was acknowledged is there, or the load is over.
    pub(super) async fn run(self, shop: &Rc<Shop>) -> Received {
        let (group, reader) = (self.plan.group, self.plan.reader);
        let common = Rc::new(Common {
            plan: self.plan,
            receipts: RefCell::new(Receipts::of_reader(group, reader)),
            sealed_since: Cell::new(None),
        });
        let reading = self
            .by_leader
            .into_iter()
            .map(|(leader, positions)| Session::new(common.clone(), leader, positions).run(shop));
        futures_util::future::join_all(reading).await;
        common.receipts.take().into_received()
    }
}

fn by_leader(shop: &Shop, positions: Vec<Position>) -> Result<Vec<(i32, Vec<Position>)>, Error> {
    let metadata = shop.cluster.metadata();
    let mut groups: BTreeMap<i32, Vec<Position>> = BTreeMap::new();
    for one in positions {
        groups.entry(metadata.leader(&one.at)?).or_default().push(one);
    }
    Ok(groups.into_iter().collect())
}

/// The partitions of one leader.
struct Session {
    common: Rc<Common>,
    leader: i32,
    /// Ascending by place.
    positions: Vec<Position>,
    /// Of the fetch session; 0 where there is none.
    id: i32,
    epoch: i32,
    backoff: Duration,
    /// Of who reads old data: it has come to its end. What it reads from there on is of the tail, and not counted.
    has_caught_up: bool,
}

impl Session {
    fn new(common: Rc<Common>, leader: i32, positions: Vec<Position>) -> Session {
        Session { common, leader, positions, id: 0, epoch: 0, backoff: BACKOFF_MIN, has_caught_up: false }
    }

    async fn run(mut self, shop: &Rc<Shop>) {
        self.read_all(shop).await;
        if !self.has_caught_up {
            shop.note_end(self.common.plan.part);
        }
    }

    async fn read_all(&mut self, shop: &Rc<Shop>) {
        let part = self.common.plan.part;
        while !self.is_over(shop) {
            let error = match self.read(shop).await {
                Ok(()) => return,
                Err(error) => error,
            };
            shop.error(part, &error_name(&error), 1);
            runtime::sleep(self.backoff).await;
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
            let names: Vec<&str> = shop.plan.topics.iter().map(|name| &**name).collect();
            if let Err(error) = shop.cluster.refresh(Topics::Named(&names), false).await {
                shop.error(part, &error_name(&error), 1);
                continue;
            }
            self.follow_leaders(shop);
        }
    }

    /// What has another leader now is read there by a session of its own.
    fn follow_leaders(&mut self, shop: &Rc<Shop>) {
        let positions = std::mem::take(&mut self.positions);
        let metadata = shop.cluster.metadata();
        let leader_of = |one: &Position| metadata.leader(&one.at).unwrap_or(self.leader);
        let mut groups: BTreeMap<i32, Vec<Position>> = BTreeMap::new();
        for one in positions {
            groups.entry(leader_of(&one)).or_default().push(one);
        }
        if let Some((leader, positions)) = groups.pop_first() {
            (self.leader, self.positions) = (leader, positions);
        }
        for (leader, positions) in groups {
            let other = Session::new(self.common.clone(), leader, positions);
            let shop = shop.clone();
            let running: std::pin::Pin<Box<dyn Future<Output = ()>>> =
                Box::pin(async move { other.run(&shop).await });
            runtime::spawn(running);
        }
    }

    fn is_over(&self, shop: &Shop) -> bool {
        let ended = shop.ns(Instant::now()) >= shop.control.end_ns();
        if shop.control.is_abandoned() || (!self.common.plan.checks && ended) {
            return true;
        }
        let Some(acknowledged) = shop.control.sealed() else { return false };
        let since = self.common.sealed_since.get().unwrap_or_else(|| {
            self.common.sealed_since.set(Some(Instant::now()));
            Instant::now()
        });
        let receipts = self.common.receipts.borrow();
        let is_at_goal = || self.positions.iter().all(|one| receipts.has_reached(one.place));
        (receipts.distinct() >= acknowledged && is_at_goal())
            || receipts.is_quiet(since, self.common.plan.settings.pause())
    }

    /// An answer to what was asked after all was acknowledged says how far there is anything to read. What a session
    /// does not mention is as it was.
    fn look_for_goals(&mut self) {
        let mut receipts = self.common.receipts.borrow_mut();
        for one in self.positions.iter_mut().filter(|one| one.end >= 0) {
            if one.offset >= *one.goal.get_or_insert(one.end) {
                receipts.note_reached(one.place);
            }
        }
    }

    /// Fetches on one connection, until it breaks or all is read.
    async fn read(&mut self, shop: &Rc<Shop>) -> Result<(), Error> {
        let link = shop.cluster.node(self.leader, Lane::Admin).await?;
        let version = link.version::<FetchRequest<'_>>()?;
        let mut pipe: Pipe<()> = Pipe::connect(link.address()).await?;
        (self.id, self.epoch) = (0, 0);
        self.positions.iter_mut().for_each(|one| one.is_news = true);
        let settings = self.common.plan.settings.clone();
        let mut alarm = Alarm::new();
        while !self.is_over(shop) {
            if !settings.pause().is_zero() {
                runtime::sleep(settings.pause()).await;
            }
            let asked_at = Instant::now();
            let is_sealed = shop.control.sealed().is_some();
            self.ask(&mut pipe, shop, version);
            let deadline =
                asked_at + shop.plan.request_timeout + Duration::from_millis(settings.wait_ms.into());
            loop {
                let received = poll_fn(|context| {
                    if let Poll::Ready(Err(error)) = pipe.poll_flush(context) {
                        return Poll::Ready(Err(error));
                    }
                    match pipe.poll_receive(context) {
                        Poll::Ready(result) => Poll::Ready(result.map(|()| true)),
                        Poll::Pending => alarm.poll_at(context, deadline).map(|()| Ok(false)),
                    }
                });
                if !received.await? {
                    let address = pipe.address().clone();
                    return Err(Error::Timeout {
                        address,
                        api: ApiKey::Fetch,
                        after: shop.plan.request_timeout,
                    });
                }
                let address = pipe.address().clone();
                if let Some((_, body)) = pipe.next()? {
                    let malformed = |why: String| Error::Malformed {
                        address: address.clone(),
                        api: Some(ApiKey::Fetch),
                        why,
                    };
                    let response = FetchResponse::decode(&mut Decoder::new(body), version)
                        .map_err(|error| malformed(error.to_string()))?;
                    self.take(shop, &response, asked_at).map_err(|error| match error {
                        TakeError::Malformed(why) => malformed(why),
                        TakeError::Refused(error) => error,
                    })?;
                    if is_sealed {
                        self.look_for_goals();
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    fn ask(&mut self, pipe: &mut Pipe<()>, shop: &Shop, version: i16) {
        let settings = &self.common.plan.settings;
        let has_session = version >= 7;
        let mut topics: Vec<FetchTopic<'_>> = Vec::new();
        for one in self.positions.iter().filter(|one| one.is_news || !has_session) {
            let name = &shop.plan.topics[one.place.topic as usize];
            if topics.last().is_none_or(|topic| topic.topic != &**name) {
                topics.push(FetchTopic { topic: name, ..Default::default() });
            }
            let partition = FetchPartition {
                partition: one.place.partition,
                fetch_offset: one.offset,
                partition_max_bytes: settings.partition_bytes_max,
                ..Default::default()
            };
            topics.last_mut().into_iter().for_each(|topic| topic.partitions.push(partition.clone()));
        }
        // Nothing is coming any more: what there is to read is known at once.
        let waits = shop.control.sealed().is_none() || self.positions.iter().all(|one| one.goal.is_some());
        let request = FetchRequest {
            max_wait_ms: if waits { settings.wait_ms as i32 } else { 0 },
            min_bytes: settings.bytes_min,
            max_bytes: settings.bytes_max,
            session_id: if has_session { self.id } else { 0 },
            session_epoch: if has_session { self.epoch } else { -1 },
            topics,
            ..Default::default()
        };
        let client_id = &*shop.plan.client_id;
        pipe.write((FetchRequest::KEY_OF, version), Some(()), Instant::now(), |buffer, correlation_id| {
            let mut writer = Writer::append_to(buffer);
            encode_request(&mut writer, correlation_id, Some(client_id), version, &request);
            writer.into_bytes()
        });
        self.positions.iter_mut().for_each(|one| one.is_news = false);
    }

    fn take(
        &mut self,
        shop: &Shop,
        response: &FetchResponse<'_>,
        asked_at: Instant,
    ) -> Result<(), TakeError> {
        match ErrorCode::from_code(response.error_code) {
            ErrorCode::None => {}
            ErrorCode::FetchSessionIdNotFound | ErrorCode::InvalidFetchSessionEpoch => {
                // The session was evicted: begin another.
                (self.id, self.epoch) = (0, 0);
                self.positions.iter_mut().for_each(|one| one.is_news = true);
                return Ok(());
            }
            code => return Err(refused(code, "fetching".to_owned())),
        }
        (self.id, self.epoch) = match (response.session_id, self.epoch) {
            (0, _) => {
                self.positions.iter_mut().for_each(|one| one.is_news = true);
                (0, 0)
            }
            (id, epoch) => (id, if epoch == i32::MAX { 1 } else { epoch + 1 }),
        };
        let now = Instant::now();
        let (mut records, mut bytes) = (0, 0);
        for topic in &response.responses {
            let Some(number) = shop.plan.topics.iter().position(|name| **name == *topic.topic) else {
                continue;
            };
            for one in &topic.partitions {
                let place = Place { topic: number as u32, partition: one.partition_index };
                let Ok(found) = self.positions.binary_search_by_key(&place, |one| one.place) else {
                    continue;
                };
                let position = &mut self.positions[found];
                match ErrorCode::from_code(one.error_code) {
                    ErrorCode::None => position.end = one.high_watermark,
                    ErrorCode::OffsetOutOfRange if one.log_start_offset > position.offset => {
                        // Retention has taken it: go on with what there is.
                        position.offset = one.log_start_offset;
                        position.is_news = true;
                        self.common.receipts.borrow_mut().note_deletion(place);
                        shop.error(self.common.plan.part, ErrorCode::OffsetOutOfRange.name(), 1);
                        continue;
                    }
                    ErrorCode::OffsetOutOfRange if shop.control.sealed().is_some() => {
                        // The log ends before what was read of it: nothing is left to come.
                        self.common.receipts.borrow_mut().note_reached(place);
                        return Err(refused(ErrorCode::OffsetOutOfRange, format!("reading {}", position.at)));
                    }
                    code => return Err(refused(code, format!("reading {}", position.at))),
                }
                let slice = one.records.and_then(|records| records.as_slice()).unwrap_or_default();
                if !slice.is_empty() {
                    let (more, read) = receive(shop, &self.common, position, slice, now)?;
                    records += more;
                    bytes += read;
                }
            }
        }
        self.backoff = BACKOFF_MIN;
        if shop.is_measuring() && records > 0 && !self.has_caught_up {
            let mut tallies = shop.tallies.borrow_mut();
            let tally = &mut tallies[self.common.plan.part];
            let mut amount = Amount { requests: 1, ..Amount::default() };
            if !self.common.plan.checks {
                tally.time(now.duration_since(asked_at).as_nanos() as u64);
                (amount.records, amount.bytes) = (records, bytes);
            }
            tally.count(amount, shop.ns(now), shop.control.end_ns());
        }
        let reads_history = !self.common.plan.checks && self.common.plan.settings.from == From::Earliest;
        self.has_caught_up |= reads_history && self.positions.iter().all(Position::is_at_end);
        Ok(())
    }
}

enum TakeError {
    Malformed(String),
    Refused(Error),
}

fn refused(code: ErrorCode, about: String) -> TakeError {
    TakeError::Refused(Error::Broker { code, message: None, about })
}

/// Reads the batches of one partition: how many records, and bytes of their values.
fn receive(
    shop: &Shop,
    common: &Common,
    position: &mut Position,
    slice: &[u8],
    now: Instant,
) -> Result<(u64, u64), TakeError> {
    let now_unix_ns = shop.control.clock.unix_ns(now);
    let start_unix_ns = shop.control.clock.unix_ns(shop.start.get());
    let malformed = |at: &TopicPartition, why: String| TakeError::Malformed(format!("{at}: {why}"));
    let mut receipts = common.receipts.borrow_mut();
    let mut tallies = shop.tallies.borrow_mut();
    let tally = &mut tallies[common.plan.part];
    let (mut records, mut bytes) = (0, 0);
    let mut measured = Amount::default();
    for batch in Batches::new(slice) {
        let batch = batch.map_err(|error| malformed(&position.at, error.to_string()))?;
        batch.check_crc().map_err(|error| malformed(&position.at, error.to_string()))?;
        let next = batch.header.next_offset();
        if batch.header.is_control() || next <= position.offset {
            position.offset = position.offset.max(next);
            continue;
        }
        let set =
            batch.records(RESPONSE_BYTES_MAX).map_err(|error| malformed(&position.at, error.to_string()))?;
        for record in &set {
            let record = record.map_err(|error| malformed(&position.at, error.to_string()))?;
            if record.offset < position.offset {
                continue;
            }
            let value = record.value.unwrap_or_default();
            records += 1;
            bytes += value.len() as u64;
            let taken = receipts.take(shop.plan.run, position.place, record.offset, value);
            let Taken::Ours(header) = taken else { continue };
            let due_ns = header.due_unix_ns.saturating_sub(start_unix_ns);
            if common.plan.checks && shop.is_measured(due_ns) {
                tally.time(now_unix_ns.saturating_sub(header.due_unix_ns));
                measured.add(Amount { requests: 0, records: 1, bytes: value.len() as u64 });
            }
        }
        position.offset = next;
    }
    position.is_news = true;
    if measured.records > 0 {
        tally.count(measured, shop.ns(now), shop.control.end_ns());
    }
    if records > 0 {
        receipts.note_arrival(now);
    }
    Ok((records, bytes))
}

/// The API of a request type, as a constant.
trait KeyOf {
    const KEY_OF: ApiKey;
}

impl<R: Call> KeyOf for R {
    const KEY_OF: ApiKey = R::KEY;
}
