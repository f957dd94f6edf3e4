//! Opening the data folder, on shard 0, before any shard serves.
//!
//! ```text
//!   identity (node.meta) ── incarnation +1, durable ── metadata log ── registration: new leader epochs, durable
//!     ── recovery of the logs ── journals free
//! ```
//!
//! Invariants:
//! - **the incarnation is durable before anything but `node.meta` is written**, so what an earlier start left behind can
//!   be told from what this one writes;
//! - **the registration is durable before recovery ends**: it raises the leader epoch of every partition that this
//!   node leads, so that no epoch ever covers two different records.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flumen_core::config::BrokerConfig;
use flumen_core::metadata::{
    BrokerRegistration, ClusterId, Controller, DirectoryId, Image, Listener, Record,
};
use flumen_core::types::{Incarnation, PartitionId, ShardId};
use flumen_storage::identity::{Identity, identify, next_incarnation};
use flumen_storage::metadata_log::MetadataLog;
use flumen_storage::{
    CompactionSettings, EngineSettings, Grave, JournalFileInfo, KnownPartition, RecoveredPartition,
    RecoverySettings, recover,
};
use futures_util::lock::Mutex;

use crate::disk::GlommioDisk;
use crate::handlers::FEATURES;
use crate::server::NodeFacts;
use crate::shard::metadata::ControllerLog;
use crate::sys;

/// The data folder, ready to be served.
pub(crate) struct Opened {
    pub(crate) controller: ControllerLog,
    pub(crate) image: Arc<Image>,
    pub(crate) folder: Folder,
    /// By shard.
    pub(crate) journal_files: Vec<Vec<JournalFileInfo>>,
    pub(crate) recovered: Vec<RecoveredPartition>,
    /// What is to be removed, which the first shard does.
    pub(crate) graves: Vec<Grave>,
}

/// Whose folder it is, and which start of its node this is.
#[derive(Clone, Copy)]
pub(crate) struct Folder {
    directory_id: DirectoryId,
    incarnation: Incarnation,
}

/// Opens the data folder. The error says what is wrong and what to do.
pub(crate) async fn open(facts: &NodeFacts, listening: SocketAddr) -> Result<Opened, String> {
    let disk = facts.disk();
    let fresh = Identity {
        cluster_id: ClusterId(random_uuid()),
        node_id: facts.node_id,
        directory_id: DirectoryId(random_uuid()),
    };
    let identity = identify(&disk, fresh).await.map_err(text)?;
    let incarnation = next_incarnation(&disk).await.map_err(text)?;
    let folder = Folder { directory_id: identity.directory_id, incarnation };
    let snapshot_bytes = facts.config.broker.metadata_log_max_record_bytes_between_snapshots;
    let (mut log, mut image) =
        MetadataLog::recover(disk.clone(), incarnation.0, snapshot_bytes, random_uuid).await.map_err(text)?;

    let bootstrap = controller(facts, &image).bootstrap(identity.cluster_id, &FEATURES_AT_START);
    write(&mut log, &mut image, bootstrap).await?;
    let registration = registration(facts, folder, listening);
    let registered = controller(facts, &image)
        .register_broker(registration)
        .map_err(|refused| refused.message.unwrap_or_else(|| refused.code.to_string()))?;
    write(&mut log, &mut image, registered).await?;

    let settings = RecoverySettings {
        producer_expiration_ms: producer_expiration_ms(facts, &image),
        ..RecoverySettings::new(incarnation, identity.directory_id.0)
    };
    let recovered = recover(&disk, &settings, &known_partitions(facts, &image)).await.map_err(text)?;
    for finding in &recovered.findings {
        tracing::warn!("recovery: {finding}");
    }
    tracing::debug!(
        partitions = recovered.partitions.len(),
        journal_bytes = recovered.journal_bytes,
        written_bytes = recovered.written_bytes,
        took_ms = recovered.took.as_millis() as u64,
        "recovered"
    );
    let shards = facts.config.shards;
    Ok(Opened {
        controller: Mutex::new(log),
        image: Arc::new(image),
        folder,
        journal_files: (0..shards).map(|shard| recovered.journal_files_of(shard, shards)).collect(),
        recovered: recovered.partitions,
        graves: recovered.graves,
    })
}

/// Features that a cluster has from its first start with this release on.
const FEATURES_AT_START: [(&str, i16); FEATURES.len()] = {
    let mut features = [("", 0); FEATURES.len()];
    let mut index = 0;
    while index < FEATURES.len() {
        features[index] = (FEATURES[index].0, FEATURES[index].2);
        index += 1;
    }
    features
};

fn controller<'a>(facts: &'a NodeFacts, image: &'a Image) -> Controller<'a> {
    Controller::new(image, &facts.statics, &facts.config.broker)
}

async fn write(
    log: &mut MetadataLog<GlommioDisk>,
    image: &mut Image,
    records: Vec<Record>,
) -> Result<(), String> {
    log.append(&records).await.map_err(text)?;
    records.iter().try_for_each(|record| image.replay(record)).map_err(text)
}

fn registration(facts: &NodeFacts, folder: Folder, listening: SocketAddr) -> BrokerRegistration {
    let advertised = facts.config.advertised(listening);
    BrokerRegistration {
        node: facts.node_id,
        incarnation: folder.incarnation,
        directory: folder.directory_id,
        rack: facts.config.broker.broker_rack.clone(),
        listeners: vec![Listener {
            name: "PLAINTEXT".to_owned(),
            host: advertised.host,
            port: advertised.port,
        }],
    }
}

fn known_partitions(facts: &NodeFacts, image: &Image) -> HashMap<PartitionId, KnownPartition> {
    let settings = image.settings(facts.node_id, &facts.statics);
    let mut known = HashMap::with_capacity(image.partition_count());
    for topic in image.topics() {
        let config = settings.log_config(&image.topic_overrides(&topic.name));
        for (partition, index) in topic.partitions.iter().zip(0..) {
            let id = PartitionId { topic: topic.id, partition: index };
            let directory = topic.directory(index);
            let (config, leader_epoch) = (config.clone(), partition.leader_epoch);
            known.insert(id, KnownPartition { directory, config, leader_epoch });
        }
    }
    known
}

/// How the engine of one shard is set up: the node's memory, dealt out.
pub(crate) fn engine_settings(
    facts: &NodeFacts,
    shard: ShardId,
    folder: &Folder,
    image: &Image,
) -> EngineSettings {
    let (shards, memory) = (facts.config.shards, facts.config.memory as usize);
    let usual = EngineSettings::new(shard, shards, folder.incarnation, folder.directory_id.0, memory);
    EngineSettings {
        retention_interval: Duration::from_millis(facts.config.broker.log_retention_check_interval_ms),
        producer_expiration_ms: producer_expiration_ms(facts, image),
        ..usual
    }
}

/// The part of `--memory` that maps of keys may take while logs are compacted.
const COMPACTION_SHARE: u64 = 8;

/// How compaction runs, by the broker settings in force.
pub(crate) fn compaction_settings(facts: &NodeFacts, config: &BrokerConfig) -> CompactionSettings {
    let map_bytes = config.log_cleaner_dedupe_buffer_size.min(facts.config.memory / COMPACTION_SHARE);
    CompactionSettings {
        enable: config.log_cleaner_enable,
        backoff: Duration::from_millis(config.log_cleaner_backoff_ms),
        dedupe_buffer_bytes: usize::try_from(map_bytes).unwrap_or(usize::MAX),
        load_factor: config.log_cleaner_io_buffer_load_factor,
        io_buffer_bytes: config.log_cleaner_io_buffer_size as usize,
        io_bytes_per_second: config.log_cleaner_io_max_bytes_per_second,
        hash_seed: u64::from_ne_bytes(sys::random_bytes()),
    }
}

/// As it is at the start, with what was set while a node ran: a change takes effect with the next start.
fn producer_expiration_ms(facts: &NodeFacts, image: &Image) -> i64 {
    let config = image.settings(facts.node_id, &facts.statics).broker_config();
    i64::try_from(config.producer_id_expiration_ms).unwrap_or(i64::MAX)
}

/// 16 random bytes in the form of a UUID, version 4.
fn random_uuid() -> [u8; 16] {
    let mut bytes = sys::random_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

fn text(error: impl Display) -> String {
    error.to_string()
}
