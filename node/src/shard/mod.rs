//! A shard: one core, and all that it owns.
//!
//! Its partitions (the engine), its connections (the net), its fetches and produces under way, its view of the
//! metadata. Nothing here is shared with another core; what shards say to each other is in `mail`.
//!
//! ```text
//!            sockets ready          journal: durable          mail             timers
//!                 │                        │                   │                  │
//!   net turn ─────┴──> handlers ──> engine │ ──> settled ──────┴──> answers ──────┴──> one flush per turn
//! ```
//!
//! Invariants:
//! - no lock, no wait inside a turn; whatever waits is a task that owns its data;
//! - a partition lives on exactly one shard, found by arithmetic ([`Shard::owner`]), never by look-up;
//! - the answer of a produce leaves only from the engine's `settled`.

pub(crate) mod coordinator;
pub(crate) mod fetch;
pub(crate) mod mail;
pub(crate) mod metadata;
mod metrics;
pub(crate) mod produce;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flumen_core::config::{BrokerConfig, LogConfig, StaticSettings};
use flumen_core::fetch::FetchSessions;
use flumen_core::metadata::Image;
use flumen_core::types::{NodeId, PartitionId, ShardId, TopicId};
use flumen_storage::{
    CompactionRun, Engine, EngineSettings, Grave, JournalFileInfo, RecoveredPartition, Sink, Slot,
};
use flumen_wire::ErrorCode;
use futures_util::lock::Mutex;

use crate::admin;
use crate::disk::{Buffer, GlommioDisk};
use crate::handlers::{self, init_producer_id::ProducerIds};
use crate::net::connection::Connection;
use crate::net::{Flow, Net, NetLimits, Requests};
use crate::probe::{Limit, ShardProbe};
use crate::runtime::local::Bell;
use crate::runtime::{self, Queue, Stop};
use crate::server::NodeFacts;
use crate::startup::compaction_settings;
use crate::sys::Lender;
use coordinator::Coordinators;
use fetch::Fetches;
use mail::{Mail, Outgoing, ShardCaller, ShardInbox, ShardPost};
use metadata::ControllerLog;
use produce::{Produces, Token};

/// Slices of this shard's buffers that other shards may hold at a time; past it, they get copies.
const LENT_MAX: usize = 65_536;
/// Log lines about peers who misbehave: at most one in this time.
const COMPLAINTS_EVERY: Duration = Duration::from_secs(1);
/// The part of `--memory` that responses may pin which nobody reads.
const UNSENT_SHARE: u64 = 4;
/// The part of `--memory` that requests may take which have not arrived whole.
const UNFINISHED_SHARE: u64 = 8;
/// The part of `--memory` that requests under way may take before each connection may have one alone.
const IN_FLIGHT_SHARE: u64 = 4;
/// How long a fetch session is safe from others that want its slot; Kafka's.
const SESSION_EVICTION_MS: u64 = 120_000;
/// How often connections are looked at for idleness.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// How long a stopping shard waits for requests under way.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// What a shard is started with; crosses to its thread.
pub(crate) struct ShardSeed {
    pub(crate) facts: Arc<NodeFacts>,
    pub(crate) listener: OwnedFd,
    pub(crate) post: ShardPost,
    pub(crate) image: Arc<Image>,
    pub(crate) engine: EngineSettings,
    pub(crate) journal_files: Vec<JournalFileInfo>,
    pub(crate) recovered: Vec<RecoveredPartition>,
    pub(crate) graves: Vec<Grave>,
    pub(crate) stop: Stop,
}

pub(crate) struct Shard {
    me: Weak<Shard>,
    pub(crate) id: ShardId,
    pub(crate) count: usize,
    pub(crate) facts: Arc<NodeFacts>,
    pub(crate) engine: Rc<Engine<GlommioDisk, Token>>,
    pub(crate) net: Net,
    pub(crate) probe: ShardProbe,
    pub(crate) sessions: RefCell<FetchSessions>,
    pub(crate) stopping: Cell<bool>,
    /// The image shows partitions of this shard that could not be created yet.
    lacks_partitions: Cell<bool>,
    /// On the controller's shard alone.
    controller: Option<ControllerLog>,
    /// Held by the task of this shard whose decision is under way.
    deciding: Mutex<()>,
    /// Held by the task whose answer is large in memory until it is sent.
    pub(crate) large_answer: Mutex<()>,
    image: RefCell<Arc<Image>>,
    config: RefCell<Rc<BrokerConfig>>,
    /// Settings of topics, resolved when first asked for; emptied by each new image.
    log_configs: RefCell<HashMap<TopicId, Rc<LogConfig>>>,
    deleted_names: RefCell<metadata::DeletedNames>,
    produces: Produces,
    fetches: Fetches,
    coordinators: Coordinators,
    waiters: RefCell<slab::Slab<Waiter>>,
    pub(crate) producer_ids: ProducerIds,
    caller: ShardCaller,
    /// Notes to shards whose mailbox was full.
    late_notes: RefCell<HashMap<ShardId, VecDeque<Mail>>>,
    outgoing: Vec<Outgoing>,
    lender: Lender<Buffer>,
    complaints: Limit,
    /// Of damaged data, which a client can ask for again and again.
    damages: Limit,
    rng: RefCell<fastrand::Rng>,
}

/// A task that waits for the engine's word on a token.
#[derive(Default)]
struct Waiter {
    result: Option<Result<(), ErrorCode>>,
    bell: Bell,
}

/// A waiter's place, free again when the future that waits is gone.
struct WaiterEntry {
    shard: Rc<Shard>,
    key: usize,
}

impl Drop for WaiterEntry {
    fn drop(&mut self) {
        self.shard.waiters.borrow_mut().remove(self.key);
    }
}

/// Runs one shard until the node stops. The result is what ended it. The first shard has the controller, and the
/// listener of the admin address.
pub(crate) async fn run(
    id: ShardId,
    seed: ShardSeed,
    first: Option<(ControllerLog, OwnedFd)>,
) -> Result<(), String> {
    let (controller, admin) = first.unzip();
    let ShardSeed { facts, listener, post, image, engine, journal_files, recovered, graves, stop } = seed;
    let count = usize::from(facts.config.shards);
    let (caller, inbox) = post.open();
    let statics: &Arc<StaticSettings> = &facts.statics;
    let config = Rc::new(image.settings(facts.node_id, statics).broker_config());
    let limits = NetLimits {
        request_bytes_max: config.socket_request_max_bytes as usize,
        admission: Arc::clone(&facts.admission),
        idle_max: config.connections_max_idle_ms.map_or(Duration::MAX, Duration::from_millis),
        unsent_bytes_max: (facts.config.memory / UNSENT_SHARE) as usize / count,
        unfinished_bytes_max: (facts.config.memory / UNFINISHED_SHARE) as usize / count,
        in_flight_bytes_max: (facts.config.memory / IN_FLIGHT_SHARE) as usize / count,
    };
    facts.admission.limit(&config);
    let session_slots = (config.max_incremental_fetch_session_cache_slots as usize).div_ceil(count);
    let net = Net::new(listener, limits).map_err(|e| format!("cannot watch the listener: {e}"))?;
    let shard = Rc::new_cyclic(|shard: &Weak<Shard>| Shard {
        me: Weak::clone(shard),
        id,
        count,
        engine: Engine::new(facts.disk(), engine, journal_files, EngineSink(Weak::clone(shard))),
        net,
        probe: ShardProbe::new(),
        sessions: RefCell::new(FetchSessions::new(session_slots, SESSION_EVICTION_MS)),
        stopping: Cell::new(false),
        lacks_partitions: Cell::new(false),
        controller,
        deciding: Mutex::new(()),
        large_answer: Mutex::new(()),
        image: RefCell::new(image),
        config: RefCell::new(config),
        log_configs: RefCell::default(),
        deleted_names: RefCell::default(),
        produces: Produces::default(),
        fetches: Fetches::default(),
        coordinators: Coordinators::default(),
        waiters: RefCell::default(),
        producer_ids: ProducerIds::default(),
        caller,
        late_notes: RefCell::default(),
        outgoing: (0..count).map(|_| Outgoing::default()).collect(),
        lender: Lender::new(LENT_MAX),
        complaints: Limit::new(COMPLAINTS_EVERY),
        damages: Limit::new(COMPLAINTS_EVERY),
        rng: RefCell::new(fastrand::Rng::with_seed(u64::from_ne_bytes(crate::sys::random_bytes()))),
        facts,
    });
    if let Some(listener) = admin {
        admin::serve(listener, shard.pages());
    }
    shard.run(inbox, recovered, graves, stop).await
}

impl Shard {
    async fn run(
        self: Rc<Self>,
        inbox: ShardInbox,
        recovered: Vec<RecoveredPartition>,
        graves: Vec<Grave>,
        stop: Stop,
    ) -> Result<(), String> {
        self.engine.set_compaction(compaction_settings(&self.facts, &self.config()));
        for partition in recovered {
            self.engine.adopt(partition).await.map_err(|error| error.to_string())?;
        }
        self.engine.bury(graves);
        self.engine.prepare().await;
        let journal = {
            let shard = Rc::clone(&self);
            runtime::spawn("journal", async move {
                let result = shard.engine.run_journal().await;
                if let Err(fault) = &result {
                    // Nothing more may be acknowledged, by any shard of this node.
                    tracing::error!(shard = shard.id.0, "{fault}");
                    crate::server::end(crate::server::EXIT_STORAGE_FAULT);
                }
                result
            })
        };
        let maintenance = {
            let shard = Rc::clone(&self);
            runtime::spawn_in(Queue::Background, "maintenance", async move {
                shard.engine.run_maintenance().await;
            })
        };
        let compaction = {
            let shard = Rc::clone(&self);
            runtime::spawn_in(Queue::Background, "compaction", async move {
                shard.engine.run_compaction(report_compaction).await;
            })
        };
        runtime::spawn("inbox", Rc::clone(&self).run_inbox(inbox));
        for target in (0..self.count as u16).map(ShardId).filter(|target| *target != self.id) {
            runtime::spawn("forwarder", Rc::clone(&self).run_forwarder(target));
        }
        runtime::spawn("sweep", Rc::clone(&self).run_sweep());
        let image = self.image();
        self.seat_coordinators(&image, &image);
        runtime::spawn("group timer", Rc::clone(&self).run_coordinator_timer());
        runtime::spawn("net", Rc::clone(&self).run_net());
        self.facts.shard_serves();

        stop.stopped().await;
        self.drain().await;
        self.engine.stop().await;
        let journalled = journal.await;
        let _ = maintenance.await;
        let _ = compaction.await;
        self.net.close_all();
        match journalled {
            Ok(Ok(())) => Ok(()),
            Ok(Err(fault)) => Err(fault.to_string()),
            Err(_) => Err("the journal task ended without a word".to_owned()),
        }
    }

    /// For tasks that outlive the turn.
    pub(crate) fn shared(&self) -> Rc<Shard> {
        self.me.upgrade().expect("a shard is only used through its Rc")
    }

    /// Serves the sockets until the end.
    async fn run_net(self: Rc<Self>) {
        let waiting = runtime::Waiting::new(self.net.readiness());
        loop {
            waiting.readable(self.net.readiness()).await;
            self.net.turn(runtime::uptime(), &*self);
        }
    }

    async fn run_sweep(self: Rc<Self>) {
        loop {
            runtime::sleep(SWEEP_INTERVAL).await;
            self.net.sweep(runtime::uptime(), &*self);
            self.lender.collect();
            self.create_missing().await;
        }
    }

    /// No new requests; those under way are answered.
    async fn drain(&self) {
        self.stopping.set(true);
        self.net.stop_reading();
        self.stop_coordinators();
        let deadline = runtime::uptime() + DRAIN_MAX;
        while !self.net.is_drained() && runtime::uptime() < deadline {
            self.net.turn(runtime::uptime(), self);
            runtime::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The shard that owns a partition. Partitions of one topic are spread evenly; the topic's identity decides
    /// where they begin.
    pub(crate) fn owner(&self, partition: PartitionId) -> ShardId {
        owner(partition, self.count)
    }

    pub(crate) fn image(&self) -> Arc<Image> {
        Arc::clone(&self.image.borrow())
    }

    pub(crate) fn node_id(&self) -> NodeId {
        self.facts.node_id
    }

    pub(crate) fn config(&self) -> Rc<BrokerConfig> {
        Rc::clone(&self.config.borrow())
    }

    /// A number that nobody can guess well enough to matter: session ids, topic ids.
    pub(crate) fn random<R>(&self, take: impl FnOnce(&mut fastrand::Rng) -> R) -> R {
        take(&mut self.rng.borrow_mut())
    }

    /// Settings of a topic as they are in force.
    pub(crate) fn log_config(&self, topic: TopicId, name: &str) -> Rc<LogConfig> {
        if let Some(config) = self.log_configs.borrow().get(&topic) {
            return Rc::clone(config);
        }
        let image = self.image.borrow();
        let settings = image.settings(self.facts.node_id, &self.facts.statics);
        let config = Rc::new(settings.log_config(&image.topic_overrides(name)));
        self.log_configs.borrow_mut().insert(topic, Rc::clone(&config));
        config
    }

    /// A partition of this shard that can be asked about its log; or the error that says why it cannot.
    pub(crate) fn readable(&self, partition: &PartitionId) -> Result<Slot, ErrorCode> {
        let slot = self.engine.partition(partition).ok_or(ErrorCode::UnknownTopicOrPartition)?;
        match self.engine.offline_reason(slot) {
            None => Ok(slot),
            Some(_) => Err(ErrorCode::KafkaStorageError),
        }
    }

    /// The leader epoch under which this node leads a partition; -1 where it is not known.
    pub(crate) fn leader_epoch(&self, partition: &PartitionId) -> i32 {
        let image = self.image.borrow();
        image
            .topic_by_id(partition.topic)
            .and_then(|topic| topic.partition(partition.partition))
            .map_or(-1, |p| p.leader_epoch.0)
    }

    /// A token for the engine, and the future that resolves when the engine hands it back. The future may only be
    /// dropped before that when the engine did not take the token.
    pub(crate) fn waiter(self: &Rc<Self>) -> (Token, impl Future<Output = Result<(), ErrorCode>> + 'static) {
        let key = self.waiters.borrow_mut().insert(Waiter::default());
        let entry = WaiterEntry { shard: Rc::clone(self), key };
        let wait = async move {
            loop {
                let ring = {
                    let mut waiters = entry.shard.waiters.borrow_mut();
                    if let Some(result) = waiters[key].result.take() {
                        return result;
                    }
                    waiters[key].bell.next()
                };
                ring.await;
            }
        };
        (Token::Waiter(key as u32), wait)
    }

    fn settle_waiter(&self, key: u32, result: Result<(), ErrorCode>) {
        let mut waiters = self.waiters.borrow_mut();
        let waiter = &mut waiters[key as usize];
        waiter.result = Some(result);
        waiter.bell.ring();
    }

    /// Sends a note to another shard, now or as soon as there is room, behind those that wait for it.
    fn tell(&self, target: ShardId, mail: Mail) {
        let mut late = self.late_notes.borrow_mut();
        if let Some(waiting) = late.get_mut(&target) {
            waiting.push_back(mail);
        } else if let Err(full) = self.caller.try_tell(target, mail) {
            late.insert(target, VecDeque::from([full.0]));
            runtime::spawn("late notes", self.shared().send_late_notes(target));
        }
    }

    async fn send_late_notes(self: Rc<Self>, target: ShardId) {
        loop {
            let next = {
                let mut late = self.late_notes.borrow_mut();
                let next = late.get_mut(&target).and_then(VecDeque::pop_front);
                if next.is_none() {
                    late.remove(&target);
                }
                next
            };
            let Some(mail) = next else { return };
            // An error: that shard has ended, and nobody waits for the note.
            let _ = self.caller.tell(target, mail).await;
        }
    }
}

/// The shard, of `count`, that owns a partition.
pub(crate) fn owner(partition: PartitionId, count: usize) -> ShardId {
    let (head, _) = partition.topic.0.split_at(8);
    let start = u64::from_le_bytes(head.try_into().expect("eight bytes"));
    ShardId((start.wrapping_add(partition.partition as u64) % count as u64) as u16)
}

impl Requests for Shard {
    fn frame(&self, connection: &Rc<Connection>, frame: Bytes) -> Flow {
        handlers::dispatch(self, connection, frame)
    }

    fn complain(&self, peer: SocketAddr, reason: &str) {
        self.probe.bad_peers.one();
        if let Some(suppressed) = self.complaints.pass(Instant::now()) {
            tracing::warn!(%peer, suppressed, "{reason}");
        }
    }
}

/// One line for each pass of compaction.
fn report_compaction(run: &CompactionRun) {
    let took_ms = run.took.as_millis() as u64;
    if let Some(reason) = &run.failed {
        tracing::error!(partition = run.directory.as_str(), took_ms, "compaction ended early: {reason}");
        return;
    }
    tracing::info!(
        partition = run.directory.as_str(),
        first_dirty_offset = run.first_dirty.0,
        keys = run.keys,
        map_bytes = run.map_bytes,
        records_before = run.records_before,
        records_after = run.records_after,
        segments_before = run.segments_before,
        segments_after = run.segments_after,
        bytes_read = run.bytes_read,
        bytes_written = run.bytes_written,
        bytes_removed = run.bytes_removed,
        took_ms,
        "compacted"
    );
}

/// Hears of what became durable, and passes it on.
struct EngineSink(Weak<Shard>);

impl Sink<Token> for EngineSink {
    fn settled(&self, answers: &mut Vec<(Token, Result<(), ErrorCode>)>) {
        let Some(shard) = self.0.upgrade() else { return };
        for (token, result) in answers.drain(..) {
            shard.engine_settled(token, result);
        }
        shard.net.flush(&*shard);
    }

    fn advanced(&self, partitions: &[(Slot, PartitionId)]) {
        if let Some(shard) = self.0.upgrade() {
            shard.wake_watchers(partitions);
        }
    }

    fn room(&self) {
        if let Some(shard) = self.0.upgrade() {
            shard.append_waiting();
            shard.net.flush(&*shard);
        }
    }

    fn partition_offline(&self, partition: PartitionId, reason: &str) {
        tracing::error!(topic = %partition.topic, partition = partition.partition, "offline: {reason}");
    }
}
