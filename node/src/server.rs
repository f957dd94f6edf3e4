//! From a configuration to a running node, and back.
//!
//! ```text
//!   address bound ── shards started ── shard 0: data folder opened (startup) ── listening ── all shards serve ── stop
//! ```
//!
//! Invariants:
//! - nothing is listened on before recovery has ended: whoever can connect sees all that was acknowledged;
//! - every shard stops when one of them ends, for whatever reason.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flumen_core::config::StaticSettings;
use flumen_core::types::{NodeId, ShardId};
use futures_channel::oneshot;

use crate::config::Config;
use crate::disk::{GlommioDisk, SyncGate};
use crate::kernel::Place;
use crate::mailbox::{self, Capacity};
use crate::net::admission::Admission;
use crate::runtime::{self, Seat, Stopper};
use crate::shard::{self, ShardSeed, mail};
use crate::startup;
use crate::sys;

/// Exit code of a node whose journal or metadata log cannot go on.
pub(crate) const EXIT_STORAGE_FAULT: i32 = 3;

/// Ends the process at once, after what was logged is written: nothing more may be acknowledged, by any shard.
pub(crate) fn end(code: i32) -> ! {
    crate::probe::log::flush();
    std::process::exit(code);
}

/// What does not change while the node runs, and every shard may know.
pub(crate) struct NodeFacts {
    pub(crate) node_id: NodeId,
    pub(crate) statics: Arc<StaticSettings>,
    pub(crate) data_dir: PathBuf,
    /// Whether the data folder's file system takes direct I/O.
    pub(crate) direct: bool,
    pub(crate) sync_gate: Arc<SyncGate>,
    pub(crate) config: Config,
    /// Where the listeners are bound; set once they are.
    pub(crate) kafka_addr: std::sync::OnceLock<SocketAddr>,
    pub(crate) admin_addr: std::sync::OnceLock<SocketAddr>,
    /// What the watchdog has seen, by shard.
    pub(crate) health: std::sync::OnceLock<Box<dyn Fn() -> Vec<runtime::Health> + Send + Sync>>,
    pub(crate) admission: Arc<Admission>,
    /// Shards that serve.
    pub(crate) serving: AtomicUsize,
}

impl NodeFacts {
    /// The data folder, for the shard of this thread.
    pub(crate) fn disk(&self) -> GlommioDisk {
        GlommioDisk::mount(&self.data_dir, self.direct, Arc::clone(&self.sync_gate))
    }

    /// Whether all shards serve.
    pub(crate) fn is_ready(&self) -> bool {
        self.serving.load(Ordering::Acquire) == usize::from(self.config.shards)
    }

    /// One more shard serves; the last of them says that the node is ready.
    pub(crate) fn shard_serves(&self) {
        if self.serving.fetch_add(1, Ordering::AcqRel) + 1 < usize::from(self.config.shards) {
            return;
        }
        let text = |address: &std::sync::OnceLock<SocketAddr>| address.get().map(ToString::to_string);
        let kafka = text(&self.kafka_addr).unwrap_or_default();
        let admin = text(&self.admin_addr).unwrap_or_default();
        tracing::info!(
            kafka,
            admin,
            shards = self.config.shards,
            data = %self.data_dir.display(),
            "ready in {} ms",
            runtime::uptime().as_millis()
        );
    }
}

/// How a shard comes to its seed: shard 0 opens the data folder and hands out the others'.
enum Role {
    Opens {
        bound: sys::Bound,
        admin: sys::Bound,
        posts: Vec<mail::ShardPost>,
        seeds: Vec<oneshot::Sender<ShardSeed>>,
    },
    Waits(oneshot::Receiver<ShardSeed>),
}

/// Runs the node until it is asked to stop. An error is what ended it.
pub fn run(config: Config, place: &Place, stopper: Stopper) -> Result<(), String> {
    let shards = usize::from(config.shards);
    let facts = Arc::new(NodeFacts {
        node_id: config.node_id,
        statics: Arc::clone(&config.settings.statics),
        data_dir: config.data_dir.clone(),
        direct: place.direct,
        sync_gate: Arc::default(),
        config,
        kafka_addr: std::sync::OnceLock::new(),
        admin_addr: std::sync::OnceLock::new(),
        health: std::sync::OnceLock::new(),
        admission: Arc::new(Admission::new(place.open_files_max)),
        serving: AtomicUsize::new(0),
    });
    let capacity = Capacity { requests: mail::REQUESTS_MAX, calls: mail::CALLS_MAX };
    let (senders, receivers): (Vec<_>, Vec<_>) = (1..shards).map(|_| oneshot::channel()).unzip();
    let bound = sys::bind(facts.config.kafka_addr, shards).map_err(|error| error.to_string())?;
    let _ = facts.kafka_addr.set(bound.address());
    let admin = sys::bind(facts.config.admin_addr, 1).map_err(|error| error.to_string())?;
    let _ = facts.admin_addr.set(admin.address());
    let posts = mailbox::mesh(shards, capacity);
    let mut roles = vec![Role::Opens { bound, admin, posts, seeds: senders }];
    roles.extend(receivers.into_iter().map(Role::Waits));

    let shard_facts = Arc::clone(&facts);
    let shard_stopper = stopper.clone();
    let executors = runtime::start(&place.executors, roles, move |seat, role| {
        let (facts, stopper) = (Arc::clone(&shard_facts), shard_stopper.clone());
        async move {
            let result = serve(seat, role, facts, &stopper).await;
            // Whatever ended this shard ends the others.
            stopper.stop();
            result
        }
    })
    .map_err(|error| error.to_string())?;
    let _ = facts.health.set(Box::new(executors.health()));
    let mut ended = Ok(());
    for result in executors.join() {
        let result = result.unwrap_or_else(|_| Err("a shard panicked".to_owned()));
        if ended.is_ok() {
            ended = result;
        }
    }
    ended
}

async fn serve(seat: Seat, role: Role, facts: Arc<NodeFacts>, stopper: &Stopper) -> Result<(), String> {
    match role {
        Role::Waits(seed) => match seed.await {
            Ok(seed) => shard::run(seat.shard, seed, None).await,
            // Shard 0 says why.
            Err(_) => Ok(()),
        },
        Role::Opens { bound, admin, posts, seeds } => {
            let opened = startup::open(&facts, bound.address()).await.map_err(|error| error.to_string())?;
            let admin = admin.listen().map_err(|error| error.to_string())?.remove(0);
            let listeners = bound.listen().map_err(|error| error.to_string())?;
            let mut parts: Vec<Vec<_>> = Vec::new();
            parts.resize_with(posts.len(), Vec::new);
            for partition in opened.recovered {
                parts[usize::from(shard::owner(partition.id, posts.len()).0)].push(partition);
            }
            let mut graves = opened.graves;
            let made = posts.into_iter().zip(listeners).zip(parts).zip(opened.journal_files).enumerate();
            let mut made = made.map(|(index, (((post, listener), recovered), journal_files))| ShardSeed {
                journal_files,
                facts: Arc::clone(&facts),
                listener,
                post,
                image: Arc::clone(&opened.image),
                engine: startup::engine_settings(
                    &facts,
                    ShardId(index as u16),
                    &opened.folder,
                    &opened.image,
                ),
                recovered,
                graves: std::mem::take(&mut graves),
                stop: stopper.subscribe(),
            });
            let own = made.next().expect("there is a shard 0");
            for (seed, sender) in made.zip(seeds) {
                // Fails only when that shard has ended, which ends the node.
                let _ = sender.send(seed);
            }
            shard::run(seat.shard, own, Some((opened.controller, admin))).await
        }
    }
}
