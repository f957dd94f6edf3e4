//! The oracle: what was sent, what was acknowledged, what readers saw, and what a log may therefore hold.
//!
//! Every batch that the engine placed is a *candidate* at its base offset. It becomes *confirmed* when its
//! answer said so, when a reader saw it, or when a completed recovery showed it: from then on exactly these bytes
//! stand at this offset until the log start passes them. After a recovery the log must be a run of batches
//! without a gap, each of them confirmed or a candidate, that holds everything confirmed; candidates that a
//! completed recovery did not show must never come back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use flumen_core::config::LogConfig;
use flumen_core::types::{Offset, PartitionId};
use flumen_wire::batch::{BatchHeader, Batches};

/// A batch that the log may hold.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// What its answer bears.
    pub(crate) token: u64,
    /// Whose it is.
    pub(crate) serial: u64,
    pub(crate) bytes: Rc<[u8]>,
    pub(crate) header: BatchHeader,
    /// Its answer was an error in this life: it may come back after a restart, not before.
    pub(crate) failed: bool,
    pub(crate) confirmed: bool,
    /// Number of the answer that confirmed it, counted over the shard; 0 where something else did.
    pub(crate) settled_at: u64,
    /// How many answers the shard had given when it was placed.
    pub(crate) placed_at: u64,
    /// A completed recovery has shown it: it is in its segment.
    pub(crate) recovered: bool,
    pub(crate) shard: u16,
}

/// One batch on its way from an idempotent or plain producer, from when it was first sent to its answer.
#[derive(Clone)]
pub(crate) struct Sent {
    /// Its own, for ever.
    pub(crate) serial: u64,
    /// As the producer made it: offsets not assigned.
    pub(crate) bytes: Rc<[u8]>,
    pub(crate) header: BatchHeader,
    /// The token under which the engine placed it, in this life.
    pub(crate) placed: Option<u64>,
    pub(crate) acked: bool,
}

impl std::fmt::Debug for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Sent { serial, bytes, header, placed, acked } = self;
        write!(f, "{serial}: {} bytes, sequence {}, {placed:?} {acked}", bytes.len(), header.base_sequence)
    }
}

/// A producer of one partition, as its client library sees things.
#[derive(Debug)]
pub(crate) struct Producer {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
    pub(crate) next_sequence: i32,
    /// The last five batches at most, oldest first, answered or not.
    pub(crate) window: VecDeque<Sent>,
}

impl Producer {
    pub(crate) fn new(id: i64) -> Producer {
        Producer { id, epoch: 0, next_sequence: 0, window: VecDeque::new() }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.window.iter().filter(|sent| !sent.acked).count()
    }
}

/// One partition as it must be.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) id: PartitionId,
    pub(crate) directory: String,
    pub(crate) config: LogConfig,
    /// Acknowledged is durable; not so where `flush.messages` says otherwise.
    pub(crate) strict: bool,
    /// Its topic is to be deleted, or is.
    pub(crate) deleted: bool,
    pub(crate) offline: bool,
    /// Created by an engine, in this life or an earlier one.
    pub(crate) created: bool,
    pub(crate) log: BTreeMap<i64, Vec<Candidate>>,
    /// The log start that an answer has promised.
    pub(crate) log_start: i64,
    /// The greatest log start that was asked for.
    pub(crate) log_start_asked: i64,
    /// Retention is or was on.
    pub(crate) retention: bool,
    pub(crate) producers: Vec<Producer>,
}

/// Offsets that an engine reports after recovery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reported {
    pub(crate) log_start: i64,
    pub(crate) high_watermark: i64,
    pub(crate) log_end: i64,
}

impl Partition {
    pub(crate) fn new(
        id: PartitionId,
        directory: String,
        config: LogConfig,
        producers: Vec<Producer>,
    ) -> Partition {
        let retention =
            config.cleanup_policy.delete && (config.retention_bytes >= 0 || config.retention_ms >= 0);
        Partition {
            id,
            directory,
            strict: config.is_durable_before_ack(),
            config,
            deleted: false,
            offline: false,
            created: false,
            log: BTreeMap::new(),
            log_start: 0,
            log_start_asked: 0,
            retention,
            producers,
        }
    }

    /// The engine has placed a batch: these bytes are now a candidate at their base offset.
    pub(crate) fn place(&mut self, token: u64, serial: u64, bytes: Rc<[u8]>, shard: u16, answers: u64) {
        let header = BatchHeader::parse(&bytes).expect("a batch that we made");
        let here = self.log.entry(header.base_offset).or_default();
        if let Some(old) = here.iter().find(|old| old.confirmed) {
            panic!(
                "{}: offset {} is given away again: it was confirmed with other content ({:?})",
                self.directory, header.base_offset, old.header
            );
        }
        let covering = self.log.range(..=header.base_offset).flat_map(|(_, batches)| batches);
        for old in covering.rev().take(4) {
            let inside = old.confirmed && old.header.last_offset() >= header.base_offset;
            assert!(
                !inside,
                "{}: offset {} lies inside a confirmed batch",
                self.directory, header.base_offset
            );
        }
        let candidate = Candidate {
            token,
            serial,
            bytes,
            header,
            failed: false,
            confirmed: false,
            settled_at: 0,
            placed_at: answers,
            recovered: false,
            shard,
        };
        self.log.entry(header.base_offset).or_default().push(candidate);
    }

    /// Whether this batch (by producer and sequence) is in the log for sure.
    pub(crate) fn find(&self, header: &BatchHeader) -> Option<&Candidate> {
        self.log.values().flatten().filter(|candidate| !candidate.failed).find(|candidate| {
            let found = &candidate.header;
            (found.producer_id, found.producer_epoch, found.base_sequence)
                == (header.producer_id, header.producer_epoch, header.base_sequence)
        })
    }

    /// An answer said that the batch at `base` is durable; it was placed under `token`, or is an older one.
    pub(crate) fn acknowledge(&mut self, base: i64, token: u64, serial: u64, answers: u64) {
        if !self.strict {
            return;
        }
        let directory = self.directory.clone();
        // Compaction has taken all of it, perhaps, before its producer asked again.
        let overwritten = self.is_compacted() && self.log.range(base + 1..).next().is_some();
        let here = self.log.entry(base).or_default();
        let placed = here.iter().rposition(|candidate| candidate.token == token);
        let same = |candidate: &Candidate| !candidate.failed && candidate.serial == serial;
        let Some(at) = placed.or_else(|| here.iter().rposition(same)) else {
            assert!(
                base < self.log_start_asked || self.retention || overwritten,
                "{directory}: answer for offset {base}, not sent"
            );
            if here.is_empty() {
                self.log.remove(&base);
            }
            return;
        };
        let candidate = &mut here[at];
        assert!(
            !candidate.failed,
            "{directory}: {base} is acknowledged after its retry was appended elsewhere"
        );
        candidate.confirmed = true;
        if candidate.settled_at == 0 {
            candidate.settled_at = answers;
        }
        here.swap(0, at);
        here.truncate(1);
    }

    /// An answer said that the batch at `base` is not in the log.
    pub(crate) fn fail(&mut self, base: i64, token: u64) {
        let here = self.log.entry(base).or_default();
        if let Some(candidate) = here.iter_mut().find(|candidate| candidate.token == token) {
            assert!(!candidate.confirmed, "{}: offset {base} failed after it was seen", self.directory);
            candidate.failed = true;
        }
    }

    /// What a read returned that was asked for `offset`. Each batch must be one that was sent there.
    pub(crate) fn seen(&mut self, offset: i64, bytes: &[u8], high_watermark: i64) {
        if self.is_compacted() {
            return self.seen_compacted(offset, bytes, high_watermark);
        }
        let mut expected = None;
        for batch in whole_batches(&self.directory, bytes) {
            let header = batch.header;
            let (base, last) = (header.base_offset, header.last_offset());
            match expected {
                Some(expected) => assert_eq!(base, expected, "{}: a gap within one read", self.directory),
                None => assert!(
                    base <= offset && offset <= last,
                    "{}: asked for {offset}, got {base}..={last}",
                    self.directory
                ),
            }
            expected = Some(last + 1);
            assert!(last < high_watermark, "{}: {last} is served, above the high watermark", self.directory);
            self.confirm_seen(base, batch.bytes);
        }
    }

    /// Old values of keys may be gone (`compacted.rs`).
    pub(crate) fn is_compacted(&self) -> bool {
        self.config.cleanup_policy.compact
    }

    pub(crate) fn confirm_seen(&mut self, base: i64, bytes: &[u8]) {
        let directory = &self.directory;
        let (strict, compacted) = (self.strict, self.is_compacted());
        let Some(here) = self.log.get_mut(&base) else {
            panic!("{directory}: nothing was ever sent to offset {base}")
        };
        let matches = |candidate: &Candidate| !candidate.failed && candidate.is(bytes, compacted);
        let Some(at) = here.iter().rposition(matches) else {
            panic!("{directory}: what is served at offset {base} was not sent there, or was lost before");
        };
        if strict {
            here.swap(0, at);
            here.truncate(1);
            here[0].confirmed = true;
        }
    }

    /// Checks a whole log after a recovery has completed, read from `reported.log_start` to its end, and takes it for the
    /// truth from now on.
    pub(crate) fn recovered(&mut self, reported: Reported, content: &[u8], now_ms: i64) {
        let directory = self.directory.clone();
        let Reported { log_start, high_watermark, log_end } = reported;
        assert_eq!(high_watermark, log_end, "{directory}: after recovery all that is there is readable");
        assert!(
            log_start >= self.log_start,
            "{directory}: the log start fell from {} to {log_start}",
            self.log_start
        );
        if !self.retention {
            let asked = self.log_start_asked;
            assert!(
                log_start <= asked,
                "{directory}: the log start is {log_start}, never asked for above {asked}"
            );
        }
        let truth = match self.is_compacted() {
            true => self.compacted_truth(reported, content, now_ms),
            false => self.plain_truth(reported, content),
        };
        self.log = truth;
        self.log_start = self.log_start.max(log_start);
    }

    /// A log without gaps that holds all that was confirmed.
    fn plain_truth(&self, reported: Reported, content: &[u8]) -> BTreeMap<i64, Vec<Candidate>> {
        let directory = &self.directory;
        let Reported { log_start, log_end, .. } = reported;
        let mut next = log_start;
        let mut truth = BTreeMap::new();
        for batch in whole_batches(directory, content) {
            let (base, last) = (batch.header.base_offset, batch.header.last_offset());
            let first = truth.is_empty() && base <= log_start && log_start <= last;
            assert!(first || base == next, "{directory}: after recovery {base} follows where {next} should");
            truth.insert(base, self.taken_from(base, batch.bytes));
            next = last + 1;
        }
        assert_eq!(next, log_end, "{directory}: after recovery the log ends early");
        for candidate in self.log.values().flatten().filter(|candidate| candidate.confirmed) {
            let (base, last) = (candidate.header.base_offset, candidate.header.last_offset());
            assert!(
                last < log_start || truth.contains_key(&base),
                "{directory}: {base}..={last} was confirmed and is lost (the log is {log_start}..{log_end})"
            );
        }
        truth
    }

    pub(crate) fn taken_from(&self, base: i64, bytes: &[u8]) -> Vec<Candidate> {
        let compacted = self.is_compacted();
        let here = self.log.get(&base).map(Vec::as_slice).unwrap_or_default();
        let confirmed = here.iter().any(|candidate| candidate.confirmed);
        let found = here
            .iter()
            .find(|candidate| candidate.is(bytes, compacted) && (candidate.confirmed || !confirmed));
        let Some(found) = found else {
            panic!(
                "{}: after recovery offset {base} holds what was {}",
                self.directory,
                if confirmed { "not confirmed there" } else { "never sent there, or was lost before" }
            );
        };
        vec![Candidate {
            // What compaction took never comes back.
            bytes: bytes.into(),
            confirmed: true,
            failed: false,
            recovered: true,
            settled_at: 0,
            placed_at: 0,
            ..found.clone()
        }]
    }

    /// Bytes that a flipped bit may have taken: nothing may be served that was not sent, and what is missing at
    /// the end must be so little that nothing later proves it was durable.
    pub(crate) fn recovered_from_corruption(&mut self, reported: Reported, content: &[u8]) {
        let directory = self.directory.clone();
        let mut proven = BTreeMap::new();
        for candidate in self.log.values().flatten().filter(|candidate| candidate.confirmed) {
            let latest: &mut u64 = proven.entry(candidate.shard).or_default();
            if candidate.settled_at > 0 {
                *latest = (*latest).max(candidate.placed_at);
            }
        }
        for batch in whole_batches(&directory, content) {
            self.taken_from(batch.header.base_offset, batch.bytes);
        }
        for candidate in self.log.values().flatten() {
            let last = candidate.header.last_offset();
            // A later batch was placed after this one's answer, and was answered: a header says it was durable.
            let proven = proven.get(&candidate.shard).copied().unwrap_or_default();
            let is_proven =
                candidate.recovered || (candidate.settled_at > 0 && candidate.settled_at <= proven);
            assert!(
                !is_proven || last < reported.log_end,
                "{directory}: corruption was taken for a torn tail: {last} was durable, the log ends at {}",
                reported.log_end
            );
        }
    }

    /// Epochs of the log's batches and where each ends, by its content.
    pub(crate) fn epoch_ends(&self, log_start: i64, log_end: i64) -> Vec<(i32, i64)> {
        let mut ends: Vec<(i32, i64)> = Vec::new();
        if self.is_compacted() {
            // All batches of an epoch may be gone.
            return ends;
        }
        for candidate in self.log.values().filter_map(|here| here.first()) {
            let header = &candidate.header;
            if header.last_offset() < log_start {
                continue;
            }
            match ends.last_mut() {
                Some(last) if last.0 == header.partition_leader_epoch => last.1 = header.next_offset(),
                _ => ends.push((header.partition_leader_epoch, header.next_offset())),
            }
        }
        if let Some(last) = ends.last() {
            assert_eq!(last.1, log_end, "{}: the content ends elsewhere", self.directory);
        }
        ends
    }

    /// Checks that retention took nothing that is too young, before `recovered`. `now_ms` is the broker's time. (What
    /// it may take by size depends on batches that may be lost since.)
    pub(crate) fn check_retention(&self, log_start: i64, now_ms: i64) {
        if self.config.retention_bytes >= 0 || self.config.retention_ms < 0 {
            return;
        }
        let youngest = match self.is_compacted() {
            true => self.youngest_value(self.log_start_asked..log_start),
            false => {
                let gone = |candidate: &&Candidate| {
                    let header = &candidate.header;
                    candidate.confirmed
                        && header.last_offset() < log_start
                        && header.base_offset >= self.log_start_asked
                };
                let gone = self.log.values().flatten().filter(gone);
                gone.map(|candidate| candidate.header.max_timestamp).max()
            }
        };
        let limit = now_ms - self.config.retention_ms;
        assert!(
            youngest.is_none_or(|youngest| youngest < limit),
            "{}: retention took records of {youngest:?}, it is {now_ms}",
            self.directory
        );
    }

    /// Base offsets of what is confirmed and readable.
    pub(crate) fn readable(&self) -> Vec<i64> {
        let first = |here: &Vec<Candidate>| here.first().filter(|candidate| candidate.confirmed).cloned();
        let batches = self.log.values().filter_map(first);
        batches
            .filter(|batch| batch.header.last_offset() >= self.log_start)
            .map(|b| b.header.base_offset)
            .collect()
    }

    /// A new life: nothing is placed or offline any more; what was not answered is sent again.
    pub(crate) fn begin_life(&mut self) {
        self.offline = false;
        for producer in &mut self.producers {
            for sent in &mut producer.window {
                sent.placed = None;
            }
        }
    }
}

pub(crate) fn whole_batches<'a>(directory: &str, bytes: &'a [u8]) -> Vec<flumen_wire::batch::RawBatch<'a>> {
    let mut batches = Batches::new(bytes);
    let all: Result<Vec<_>, _> = batches.by_ref().collect();
    let all = all.unwrap_or_else(|error| panic!("{directory}: no batches are served: {error:?}"));
    assert_eq!(batches.position(), bytes.len(), "{directory}: part of a batch is served");
    all
}

/// What an answer is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Token {
    Batch { partition: PartitionId, base: i64, producer: usize, serial: u64, shard: u16, duplicate: bool },
    Delete { partition: PartitionId, offset: i64 },
}

/// Everything that outlives a crash.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) partitions: BTreeMap<PartitionId, Partition>,
    pub(crate) tokens: BTreeMap<u64, Token>,
    next_token: u64,
    /// Answers (calls of the sink) per shard in this life.
    pub(crate) answers: BTreeMap<u16, u64>,
    /// Directories of deleted topics whose ids are gone for good.
    pub(crate) gone: BTreeSet<String>,
    pub(crate) batches_acked: u64,
    pub(crate) duplicates: u64,
    pub(crate) reads: u64,
    pub(crate) recoveries: u64,
    pub(crate) faults: u64,
    pub(crate) compactions: u64,
}

impl Model {
    pub(crate) fn token(&mut self, token: Token) -> u64 {
        self.next_token += 1;
        self.tokens.insert(self.next_token, token);
        self.next_token
    }

    pub(crate) fn begin_life(&mut self) {
        self.tokens.clear();
        self.answers.clear();
        for partition in self.partitions.values_mut() {
            partition.begin_life();
        }
    }

    /// Whether the answer concerns a partition that is deleted or offline.
    pub(crate) fn excuses(&self, token: u64) -> bool {
        let Some(Token::Batch { partition, .. } | Token::Delete { partition, .. }) = self.tokens.get(&token)
        else {
            return false;
        };
        self.partitions.get(partition).is_none_or(|partition| partition.deleted || partition.offline)
    }

    /// An answer may leave.
    pub(crate) fn settle(&mut self, token: u64, ok: bool) {
        let Some(what) = self.tokens.remove(&token) else {
            panic!("answer {token} was given twice, or never asked")
        };
        match what {
            Token::Batch { partition, base, producer, serial, shard, duplicate } => {
                let answers = self.answers.get(&shard).copied().unwrap_or_default();
                let Some(partition) = self.partitions.get_mut(&partition) else { return };
                let sender = &mut partition.producers[producer];
                let sent = sender.window.iter_mut().find(|sent| sent.serial == serial);
                if let Some(sent) = sent {
                    sent.acked |= ok;
                    if !ok && sent.placed == Some(token) {
                        sent.placed = None;
                    }
                }
                if ok {
                    partition.acknowledge(base, token, serial, answers);
                    self.batches_acked += 1;
                } else if !duplicate {
                    partition.fail(base, token);
                }
            }
            Token::Delete { partition, offset } => {
                if let Some(partition) = self.partitions.get_mut(&partition)
                    && ok
                {
                    partition.log_start = partition.log_start.max(offset);
                }
            }
        }
    }
}

/// Offsets as the engine's type has them.
pub(crate) fn reported(offsets: flumen_storage::Offsets) -> Reported {
    let Offset(log_start) = offsets.log_start;
    Reported { log_start, high_watermark: offsets.high_watermark.0, log_end: offsets.log_end.0 }
}
