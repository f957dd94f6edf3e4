//! Fetch sessions (KIP-227): which partitions a request is about, and which of them its answer may leave out.
//!
//! One table per shard, owned by it: a session lives where its connection does. A client that comes back on
//! another shard is told that its session is not found, and begins a new one; the old one goes by eviction.
//!
//! ```text
//!   request (id, epoch)                                   begin ──> partitions to read     finish
//!   (0, 0)   (id, 0)   full; an old session `id` ends ──> as named ──> all of them, and a new session's id
//!   (0, -1)  (id, -1)  sessionless; `id` ends         ──> as named ──> all of them, id 0
//!   (id, n)            incremental, n as expected     ──> all of the session ──> those with news
//!                      n unexpected: INVALID_FETCH_SESSION_EPOCH; id unknown: FETCH_SESSION_ID_NOT_FOUND
//! ```
//!
//! The epoch rises by one with each incremental request, from 1, and wraps from `i32::MAX` to 1. A partition
//! has news when it has records, an error, another high watermark or log start than was last told, or
//! anything else to say. What was answered with records goes to the end of the session's order, so that no
//! partition starves when an answer is full before its turn.
//!
//! Invariants: at most `slots` sessions, and [`SESSION_PARTITIONS_MAX`] partitions in all of them together;
//! a session is never empty; ids are random, and arguments.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use flumen_wire::ErrorCode;

use crate::limits::SESSION_PARTITIONS_MAX;
use crate::types::{Offset, TopicId};

/// Epoch of a request that begins a session.
const INITIAL_EPOCH: i32 = 0;
/// Epoch of a request that has none, and ends the one it names.
const FINAL_EPOCH: i32 = -1;

/// A topic as a request names it: by identity from version 13 on, by name before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TopicKey {
    /// Its name.
    Name(Arc<str>),
    /// Its identity.
    Id(TopicId),
}

/// What a request wants of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchParams {
    /// The epoch that the client believes is current; -1 is none.
    pub current_leader_epoch: i32,
    /// From where to read.
    pub fetch_offset: Offset,
    /// The epoch of the last record that the client has; -1 is none.
    pub last_fetched_epoch: i32,
    /// Log start of a follower; -1 from consumers.
    pub log_start_offset: Offset,
    /// Most bytes of this partition.
    pub partition_max_bytes: i32,
}

/// A partition to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its topic.
    pub topic: TopicKey,
    /// Its index.
    pub partition: i32,
    /// What is wanted of it.
    pub params: FetchParams,
}

/// How a request names its session.
#[derive(Clone, Copy, Debug)]
pub struct SessionRequest {
    /// The session; 0 is none.
    pub session_id: i32,
    /// Its epoch.
    pub session_epoch: i32,
    /// Whether the request names topics by identity (version 13 and later).
    pub by_id: bool,
}

/// A request between [`FetchSessions::begin`] and [`FetchSessions::finish`].
#[derive(Debug)]
pub struct FetchContext {
    kind: ContextKind,
}

#[derive(Debug)]
enum ContextKind {
    Sessionless,
    Full {
        by_id: bool,
    },
    Incremental {
        session_id: i32,
        /// The session's epoch after this request; another by the time of the answer means that the client
        /// did not wait for it.
        epoch: i32,
        /// Place of each partition in the session's order, as in the list to read.
        places: Vec<u64>,
    },
}

/// What reading one partition came to, as far as its session cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it is answered with an error.
    pub is_error: bool,
    /// The high watermark in the answer.
    pub high_watermark: Offset,
    /// The log start in the answer.
    pub log_start_offset: Offset,
    /// Bytes of records in the answer.
    pub records_bytes: usize,
    /// Whether the answer says more: a diverging epoch, a better replica.
    pub has_more: bool,
}

/// How to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The session's id in the answer; 0 is none.
    pub session_id: i32,
    /// Which of the partitions that were read to put in, in their order. `None` is all.
    pub included: Option<Vec<bool>>,
}

/// The sessions of one shard.
#[derive(Debug)]
pub struct FetchSessions {
    slots: usize,
    /// How long a session is safe from being evicted: when it is young, and when it is in use.
    eviction_ms: u64,
    sessions: HashMap<i32, Session>,
    partition_count: usize,
}

#[derive(Debug)]
struct Session {
    /// What the next incremental request has to say.
    epoch: i32,
    by_id: bool,
    created_ms: u64,
    used_ms: u64,
    /// By place in the order in which they are read.
    partitions: BTreeMap<u64, Cached>,
    places: HashMap<(TopicKey, i32), u64>,
    next_place: u64,
}

/// A partition of a session.
#[derive(Debug)]
struct Cached {
    wanted: Wanted,
    /// What the client was last told; -1 after an error, so that what follows is told.
    high_watermark: Offset,
    log_start_offset: Offset,
}

impl FetchSessions {
    /// A table of `slots` sessions, which are safe from eviction for `eviction_ms` (Kafka: 120,000).
    pub fn new(slots: usize, eviction_ms: u64) -> FetchSessions {
        FetchSessions { slots, eviction_ms, sessions: HashMap::new(), partition_count: 0 }
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// How many partitions all sessions remember.
    pub fn partition_count(&self) -> usize {
        self.partition_count
    }

    /// Takes a request: the partitions that it names, and those that it forgets. Returns all partitions to
    /// read, in the order in which to read them. An error is the answer to the whole request.
    pub fn begin(
        &mut self,
        now_ms: u64,
        request: SessionRequest,
        named: Vec<Wanted>,
        forgotten: &[(TopicKey, i32)],
    ) -> Result<(FetchContext, Vec<Wanted>), ErrorCode> {
        let whole = |kind| Ok((FetchContext { kind }, named.clone()));
        match request.session_epoch {
            INITIAL_EPOCH | FINAL_EPOCH => {
                self.remove(request.session_id);
                let kind = match request.session_epoch {
                    INITIAL_EPOCH => ContextKind::Full { by_id: request.by_id },
                    _ => ContextKind::Sessionless,
                };
                Ok((FetchContext { kind }, named))
            }
            _ => {
                let session =
                    self.sessions.get(&request.session_id).ok_or(ErrorCode::FetchSessionIdNotFound)?;
                if session.by_id != request.by_id {
                    return Err(ErrorCode::FetchSessionTopicIdError);
                }
                if session.epoch != request.session_epoch {
                    return Err(ErrorCode::InvalidFetchSessionEpoch);
                }
                if self.partition_count + named.len() > SESSION_PARTITIONS_MAX {
                    self.remove(request.session_id);
                    return Err(ErrorCode::FetchSessionIdNotFound);
                }
                self.update(now_ms, request.session_id, &named, forgotten);
                match self.sessions.get(&request.session_id) {
                    // It has forgotten all, and is gone.
                    None => whole(ContextKind::Sessionless),
                    Some(session) => Ok(session.context(request.session_id)),
                }
            }
        }
    }

    /// Applies an incremental request to its session.
    fn update(&mut self, now_ms: u64, session_id: i32, named: &[Wanted], forgotten: &[(TopicKey, i32)]) {
        let Some(session) = self.sessions.get_mut(&session_id) else { return };
        let before = session.partitions.len();
        for wanted in named {
            session.want(wanted);
        }
        for key in forgotten {
            if let Some(place) = session.places.remove(key) {
                session.partitions.remove(&place);
            }
        }
        session.used_ms = now_ms;
        session.epoch = next_epoch(session.epoch);
        self.partition_count = self.partition_count + session.partitions.len() - before;
        if session.partitions.is_empty() {
            self.remove(session_id);
        }
    }

    /// Ends a request: `wanted` as [`FetchSessions::begin`] gave it, and what reading each came to. A full
    /// request becomes a session here, under `fresh_id` (random), if there is room. An error is the answer to
    /// the whole request.
    pub fn finish(
        &mut self,
        now_ms: u64,
        context: FetchContext,
        fresh_id: i32,
        wanted: &[Wanted],
        outcomes: &[Outcome],
    ) -> Result<Finished, ErrorCode> {
        assert_eq!(wanted.len(), outcomes.len(), "each partition that was to be read has an outcome");
        match context.kind {
            ContextKind::Sessionless => Ok(Finished { session_id: 0, included: None }),
            ContextKind::Full { by_id } => {
                let session_id = self.create(now_ms, fresh_id, by_id, wanted, outcomes);
                Ok(Finished { session_id, included: None })
            }
            ContextKind::Incremental { session_id, epoch, places } => {
                let session = self.sessions.get_mut(&session_id).ok_or(ErrorCode::FetchSessionIdNotFound)?;
                if session.epoch != epoch {
                    return Err(ErrorCode::InvalidFetchSessionEpoch);
                }
                let told = places.iter().zip(outcomes).map(|(place, outcome)| session.tell(*place, outcome));
                Ok(Finished { session_id, included: Some(told.collect()) })
            }
        }
    }

    /// Forgets a session whose connection is gone for good; nothing when there is none.
    pub fn remove(&mut self, session_id: i32) {
        if let Some(session) = self.sessions.remove(&session_id) {
            self.partition_count -= session.partitions.len();
        }
    }

    /// Makes a session; 0 where there is no room for it.
    fn create(
        &mut self,
        now_ms: u64,
        fresh_id: i32,
        by_id: bool,
        wanted: &[Wanted],
        outcomes: &[Outcome],
    ) -> i32 {
        let is_usable = fresh_id > 0 && !self.sessions.contains_key(&fresh_id) && !wanted.is_empty();
        if !is_usable || !self.make_room(now_ms, wanted.len()) {
            return 0;
        }
        let mut session = Session {
            epoch: next_epoch(INITIAL_EPOCH),
            by_id,
            created_ms: now_ms,
            used_ms: now_ms,
            partitions: BTreeMap::new(),
            places: HashMap::with_capacity(wanted.len()),
            next_place: 0,
        };
        for (wanted, outcome) in wanted.iter().zip(outcomes) {
            let place = session.want(wanted);
            session.remember(place, outcome);
        }
        self.partition_count += session.partitions.len();
        self.sessions.insert(fresh_id, session);
        fresh_id
    }

    /// Makes room for one more session of `size` partitions, as Kafka does: one that nobody used for long
    /// goes first, else the smallest one that is old, if it is smaller than the new one.
    fn make_room(&mut self, now_ms: u64, size: usize) -> bool {
        if self.slots == 0 || size > SESSION_PARTITIONS_MAX {
            return false;
        }
        if self.sessions.len() >= self.slots {
            let Some(victim) = self.victim(now_ms, size) else { return false };
            self.remove(victim);
        }
        self.partition_count + size <= SESSION_PARTITIONS_MAX
    }

    /// Only looked for when the table is full; it is bounded by its slots.
    fn victim(&self, now_ms: u64, size: usize) -> Option<i32> {
        let since = |then: u64| now_ms.saturating_sub(then);
        let stalest = self.sessions.iter().min_by_key(|(id, session)| (session.used_ms, **id));
        if let Some((id, session)) = stalest
            && since(session.used_ms) > self.eviction_ms
        {
            return Some(*id);
        }
        let old = self.sessions.iter().filter(|(_, session)| since(session.created_ms) > self.eviction_ms);
        let smallest = old.map(|(id, session)| (session.partitions.len(), *id)).min()?;
        (smallest.0 < size).then_some(smallest.1)
    }
}

impl Session {
    /// Adds a partition at the end, or changes what is wanted of it; returns its place.
    fn want(&mut self, wanted: &Wanted) -> u64 {
        let key = (wanted.topic.clone(), wanted.partition);
        let place = *self.places.entry(key).or_insert(self.next_place);
        if place == self.next_place {
            self.next_place += 1;
        }
        let cached = self.partitions.entry(place).or_insert_with(|| Cached {
            wanted: wanted.clone(),
            high_watermark: Offset(-1),
            log_start_offset: Offset(-1),
        });
        cached.wanted.params = wanted.params;
        place
    }

    fn context(&self, session_id: i32) -> (FetchContext, Vec<Wanted>) {
        let places = self.partitions.keys().copied().collect();
        let wanted = self.partitions.values().map(|cached| cached.wanted.clone()).collect();
        (FetchContext { kind: ContextKind::Incremental { session_id, epoch: self.epoch, places } }, wanted)
    }

    /// Remembers what the client is told of a partition.
    fn remember(&mut self, place: u64, outcome: &Outcome) {
        if let Some(cached) = self.partitions.get_mut(&place) {
            cached.high_watermark = if outcome.is_error { Offset(-1) } else { outcome.high_watermark };
            cached.log_start_offset = outcome.log_start_offset;
        }
    }

    /// Whether the answer must speak of a partition; if so, remembers what it says.
    fn tell(&mut self, place: u64, outcome: &Outcome) -> bool {
        let Some(cached) = self.partitions.get(&place) else { return false };
        let has_news = outcome.is_error
            || outcome.has_more
            || outcome.records_bytes > 0
            || outcome.high_watermark != cached.high_watermark
            || outcome.log_start_offset != cached.log_start_offset;
        if has_news {
            self.remember(place, outcome);
        }
        if outcome.records_bytes > 0 {
            self.move_to_end(place);
        }
        has_news
    }

    fn move_to_end(&mut self, place: u64) {
        if let Some(cached) = self.partitions.remove(&place) {
            self.places.insert((cached.wanted.topic.clone(), cached.wanted.partition), self.next_place);
            self.partitions.insert(self.next_place, cached);
            self.next_place += 1;
        }
    }
}

fn next_epoch(epoch: i32) -> i32 {
    match epoch {
        FINAL_EPOCH => FINAL_EPOCH,
        i32::MAX => 1,
        epoch => epoch + 1,
    }
}

#[cfg(test)]
mod tests;
