//! Reading partitions that were assigned, each from a position of its own.
//!
//! One fetch is open to each leader; when its answer is taken, the next one is sent before the records are handed
//! out, so that network and caller work at the same time. Memory: for each leader one answer that is being read and
//! one that is on its way.
//!
//! Invariant: records of a partition come in order, each once, from the position on. A position moves when the
//! records are handed out.

mod records;

pub use records::Fetched;

use crate::cluster::{Backoff, Cluster, LATEST, Lane};
use crate::error::{Error, is_retriable};
use crate::link::Answer;
use crate::metadata::{TopicPartition, by_topic};
use crate::runtime;
use flumen_wire::ErrorCode;
use flumen_wire::messages::fetch_request::{FetchPartition, FetchRequest, FetchTopic};
use futures_util::future::{FutureExt, LocalBoxFuture};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How to fetch.
#[derive(Clone, Debug)]
pub struct ConsumerSettings {
    /// How long the broker waits for `bytes_min`.
    pub wait: Duration,
    /// How much it waits for.
    pub bytes_min: i32,
    /// How much one answer holds at most (a first batch that is larger comes all the same).
    pub bytes_max: i32,
    /// How much of one partition.
    pub partition_bytes_max: i32,
    /// Whether batches are checked against their CRCs.
    pub check_crcs: bool,
    /// Whether records of open and aborted transactions are held back.
    pub read_committed: bool,
    /// Where to go on when a position is outside of the log; none: that is an error.
    pub reset: Option<i64>,
}

impl Default for ConsumerSettings {
    fn default() -> ConsumerSettings {
        ConsumerSettings {
            wait: Duration::from_millis(500),
            bytes_min: 1,
            bytes_max: 16 << 20,
            partition_bytes_max: 4 << 20,
            check_crcs: true,
            read_committed: true,
            reset: None,
        }
    }
}

/// Where reading a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The next offset to read.
    pub offset: i64,
    /// The end of what may be read, as the leader said last; -1 when it has not.
    pub end: i64,
}

/// A position that was outside of the log, and where reading went on instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    /// Which partition.
    pub at: TopicPartition,
    /// The offset that the log does not have, or has no more.
    pub from: i64,
    /// The next one that is read.
    pub to: i64,
}

/// A fetch that is open: its leader, what was asked from where, and what comes of it.
type Open = LocalBoxFuture<'static, (i32, Asked, Result<Answer<FetchRequest<'static>>, Error>)>;
type Asked = Vec<(TopicPartition, i64)>;

/// See the head of this file.
pub struct Consumer {
    cluster: Cluster,
    settings: ConsumerSettings,
    positions: BTreeMap<TopicPartition, Position>,
    paused: BTreeSet<TopicPartition>,
    open: FuturesUnordered<Open>,
    /// Leaders to which a fetch is open.
    busy: BTreeSet<i32>,
    backoff: Option<Backoff>,
    /// What is to be done before the next fetch; survives a [`Consumer::poll`] that is dropped.
    recovery: Option<Recovery>,
    /// What [`Consumer::take_resets`] hands out: of a partition the last one.
    resets: BTreeMap<TopicPartition, Reset>,
}

/// A pause, then new metadata, then new positions for partitions whose old ones are outside of the log.
type Recovery = LocalBoxFuture<'static, Result<BTreeMap<TopicPartition, i64>, Error>>;

impl Consumer {
    /// Reads nothing yet.
    pub fn new(cluster: &Cluster, settings: ConsumerSettings) -> Consumer {
        Consumer {
            cluster: cluster.clone(),
            settings,
            positions: BTreeMap::new(),
            paused: BTreeSet::new(),
            open: FuturesUnordered::new(),
            busy: BTreeSet::new(),
            backoff: None,
            recovery: None,
            resets: BTreeMap::new(),
        }
    }

    /// Reads these from these offsets, and nothing else from now on. Those that it reads already go on.
    pub fn assign(&mut self, offsets: &BTreeMap<TopicPartition, i64>) {
        let position =
            |(at, offset): (&TopicPartition, &i64)| (at.clone(), Position { offset: *offset, end: -1 });
        self.positions = offsets.iter().map(position).collect();
        self.paused.retain(|at| offsets.contains_key(at));
        self.resets.retain(|at, _| offsets.contains_key(at));
    }

    /// Stops reading a partition and forgets where it was.
    pub fn revoke(&mut self, at: &TopicPartition) {
        self.positions.remove(at);
        self.paused.remove(at);
        self.resets.remove(at);
    }

    /// Reads one more.
    pub fn add(&mut self, at: TopicPartition, offset: i64) {
        self.positions.insert(at, Position { offset, end: -1 });
    }

    /// Does not ask for a partition any more, and keeps its position.
    pub fn pause(&mut self, at: &TopicPartition) {
        self.paused.insert(at.clone());
    }

    /// Where it is, in all that it reads.
    pub fn positions(&self) -> &BTreeMap<TopicPartition, Position> {
        &self.positions
    }

    /// Positions that were outside of the log since this was asked last; see [`ConsumerSettings::reset`].
    pub fn take_resets(&mut self) -> Vec<Reset> {
        std::mem::take(&mut self.resets).into_values().collect()
    }

    /// What came next, of any leader; also an answer without records, which may have moved an end. Pending for ever
    /// when nothing is assigned. May be dropped and called again: nothing is lost.
    pub async fn poll(&mut self) -> Result<Vec<Fetched>, Error> {
        loop {
            if let Some(recovery) = &mut self.recovery {
                let positions = recovery.await;
                self.recovery = None;
                for (at, to) in positions? {
                    if let Some(position) = self.positions.get_mut(&at) {
                        let from = std::mem::replace(&mut position.offset, to);
                        self.resets.insert(at.clone(), Reset { at, from, to });
                    }
                }
            }
            self.ask()?;
            if self.recovery.is_some() {
                continue;
            }
            let Some((leader, asked, result)) = self.open.next().await else {
                return std::future::pending().await;
            };
            self.busy.remove(&leader);
            let mut fetched = match result {
                Ok(answer) => records::read(answer, &asked, &self.settings)?,
                Err(error) if error.is_retriable() => {
                    self.recover(Some(error), Vec::new())?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            // What was revoked, or moved, since it was asked for is left out.
            let is_current =
                |one: &Fetched| self.positions.get(&one.at).is_some_and(|p| p.offset == one.asked);
            fetched.retain(is_current);
            self.heed_refusals(&mut fetched)?;
            if fetched.is_empty() {
                continue;
            }
            for one in &fetched {
                self.positions.insert(one.at.clone(), Position { offset: one.next_offset, end: one.end });
            }
            // The next fetch is on its way while the caller reads.
            self.ask()?;
            return Ok(fetched);
        }
    }

    /// Sends a fetch to each leader that has none open.
    fn ask(&mut self) -> Result<(), Error> {
        let metadata = self.cluster.metadata();
        let mut by_leader: BTreeMap<i32, Vec<(TopicPartition, i64)>> = BTreeMap::new();
        let mut lost = None;
        for (at, position) in self.positions.iter().filter(|(at, _)| !self.paused.contains(at)) {
            match metadata.leader(at) {
                Ok(leader) if self.busy.contains(&leader) => {}
                Ok(leader) => by_leader.entry(leader).or_default().push((at.clone(), position.offset)),
                Err(error) => lost = Some(error),
            }
        }
        if let Some(error) = lost
            && by_leader.is_empty()
            && self.busy.is_empty()
        {
            self.recover(Some(error), Vec::new())?;
        }
        for (leader, asked) in by_leader {
            self.busy.insert(leader);
            self.open.push(fetch(self.cluster.clone(), self.settings.clone(), leader, asked).boxed_local());
        }
        Ok(())
    }

    /// Has the next poll wait, ask for new metadata and find new positions first. The error itself when that has gone
    /// on for too long.
    fn recover(&mut self, error: Option<Error>, resets: Vec<(TopicPartition, i64)>) -> Result<(), Error> {
        let mut pause = Duration::ZERO;
        if let Some(error) = error {
            let timeout = self.cluster.settings().retry_timeout;
            let backoff = self.backoff.get_or_insert_with(|| Backoff::new(timeout));
            pause = backoff.next_pause().ok_or(error)?;
        }
        let cluster = self.cluster.clone();
        let recovery = async move {
            runtime::sleep(pause).await;
            match cluster.refresh_known().await {
                Err(error) if !error.is_retriable() => return Err(error),
                _ => {}
            }
            let found = cluster.list_offsets(&resets).await?;
            Ok(found.into_iter().map(|(at, one)| (at, one.offset)).collect())
        };
        self.recovery = Some(recovery.boxed_local());
        Ok(())
    }

    /// Deals with what partitions refused, and takes that out.
    fn heed_refusals(&mut self, fetched: &mut Vec<Fetched>) -> Result<(), Error> {
        let (mut refused, mut resets) = (None, Vec::new());
        for one in fetched.iter().filter(|one| !one.error.is_none()) {
            let about = || format!("reading {} from offset {}", one.at, one.asked);
            match (one.error, self.settings.reset) {
                (ErrorCode::OffsetOutOfRange, Some(end)) => resets.push((one.at.clone(), end)),
                (code, _) if is_retriable(code) => {
                    refused = Some(Error::Broker { code, message: None, about: about() });
                }
                (code, _) => Error::check(code.code(), None, about)?,
            }
        }
        fetched.retain(|one| one.error.is_none());
        if refused.is_none() && resets.is_empty() {
            self.backoff = None;
            return Ok(());
        }
        self.recover(refused, resets)
    }
}

async fn fetch(
    cluster: Cluster,
    settings: ConsumerSettings,
    leader: i32,
    asked: Asked,
) -> (i32, Asked, Result<Answer<FetchRequest<'static>>, Error>) {
    let result = async {
        let link = cluster.node(leader, Lane::Fetch).await?;
        let topics = by_topic(asked.iter().map(|(at, offset)| (at, *offset)));
        let version = link.version::<FetchRequest<'_>>()?;
        let partition = |(partition, fetch_offset): &(i32, i64)| FetchPartition {
            partition: *partition,
            fetch_offset: *fetch_offset,
            partition_max_bytes: settings.partition_bytes_max,
            ..Default::default()
        };
        let request = FetchRequest {
            max_wait_ms: i32::try_from(settings.wait.as_millis()).unwrap_or(i32::MAX),
            min_bytes: settings.bytes_min,
            max_bytes: settings.bytes_max,
            isolation_level: i8::from(settings.read_committed),
            topics: topics
                .iter()
                .map(|(topic, partitions)| FetchTopic {
                    topic,
                    partitions: partitions.iter().map(partition).collect(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        };
        let pending = link.send(version, &request, settings.wait)?;
        link.answer(pending).await
    }
    .await;
    (leader, asked, result)
}

/// Where to begin: an end of the logs ([`crate::cluster::EARLIEST`], [`LATEST`]), or the first records of a time or
/// later.
pub async fn offsets_at(
    cluster: &Cluster,
    partitions: &[TopicPartition],
    when: i64,
) -> Result<BTreeMap<TopicPartition, i64>, Error> {
    let asked: Vec<_> = partitions.iter().map(|at| (at.clone(), when)).collect();
    let mut found: BTreeMap<_, _> =
        cluster.list_offsets(&asked).await?.into_iter().map(|(at, one)| (at, one.offset)).collect();
    if when >= 0 {
        // After the last record: the end.
        let late: Vec<_> =
            found.iter().filter(|(_, offset)| **offset < 0).map(|(at, _)| (at.clone(), LATEST)).collect();
        found.extend(cluster.list_offsets(&late).await?.into_iter().map(|(at, one)| (at, one.offset)));
    }
    Ok(found)
}
