//! The metadata of this node: the controller on shard 0, and how each shard takes a new image into service.
//!
//! ```text
//!   handler (any shard) ── decide ──> shard 0: Controller decides ── metadata log: append + sync
//!                                        └─> new image ── on every shard ──> response
//!   each step on all shards before the next one: create what is new ── publish the image ── delete what is gone
//! ```
//!
//! Invariants:
//! - one decision at a time, from the image that all before it led to;
//! - **an image is published only after its records are durable**;
//! - a partition is served before any shard's image shows it, and no image shows it any more when it is removed;
//! - **the controller's shard publishes first**: whatever was seen on some shard is in its image ([`Shard::newest_image`]);
//! - a decision is answered when every shard acts by it.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use flumen_core::config::Settings;
use flumen_core::metadata::{Controller, Decision, Image, Record, Refused, Topic};
use flumen_core::types::{PartitionId, ShardId, TopicId};
use flumen_storage::metadata_log::{AppendError, MetadataLog};
use flumen_wire::ErrorCode;
use futures_util::lock::Mutex;
use futures_util::stream::StreamExt;

use super::Shard;
use crate::disk::GlommioDisk;
use crate::startup::compaction_settings;

/// Where the controller lives.
pub(crate) const CONTROLLER: ShardId = ShardId(0);
/// Partitions of a shard whose files are put away at the same time.
const DELETIONS_AT_ONCE: usize = 64;

/// Names of deleted topics that a shard remembers.
const DELETED_NAMES_MAX: usize = 10_000;

/// Names that topics had which were deleted since the start, the last of them. Who wrote to such a topic may go on in one
/// of the same name where it was.
#[derive(Default)]
pub(crate) struct DeletedNames {
    known: HashSet<Arc<str>>,
    /// As they were deleted.
    order: VecDeque<Arc<str>>,
}

impl DeletedNames {
    fn insert(&mut self, name: &Arc<str>) {
        if !self.known.insert(Arc::clone(name)) {
            return;
        }
        self.order.push_back(Arc::clone(name));
        if self.order.len() > DELETED_NAMES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// The log of metadata records; taken while a decision is carried out. On shard 0 alone.
pub(crate) type ControllerLog = Mutex<MetadataLog<GlommioDisk>>;

/// A decision: from the controller to records and a response. May be made again, never twice.
type Decide<R> = Box<dyn FnOnce(&Controller<'_>) -> Result<Decision<R>, Refused> + Send>;

impl Shard {
    /// Has the controller decide, and returns its response once the records are durable and every shard acts by
    /// them.
    pub(crate) async fn decide<R: Send + 'static>(
        self: &Rc<Self>,
        decide: impl FnOnce(&Controller<'_>) -> Result<Decision<R>, Refused> + Send + 'static,
    ) -> Result<R, Refused> {
        // One after the other they are carried out: those that wait do it here, not in the other shard's mail.
        let _turn = self.deciding.lock().await;
        let decide: Decide<R> = Box::new(decide);
        let decided = self.ask(CONTROLLER, |controller| async move { controller.carry_out(decide).await });
        decided.await.unwrap_or_else(|| Err(refused(ErrorCode::NotController, "the node is stopping")))
    }

    /// On the controller's shard: decides, writes, and brings the new image to every shard.
    async fn carry_out<R>(self: Rc<Self>, decide: Decide<R>) -> Result<R, Refused> {
        let log = self.controller.as_ref().expect("decisions are made on the controller's shard");
        let mut log = log.lock().await;
        let image = self.image();
        let Decision { records, response } = {
            let config = self.config();
            let controller = Controller::new(&image, &self.facts.statics, &config);
            decide(&controller)?
        };
        if records.is_empty() {
            return Ok(response);
        }
        let next = replayed(&image, &records)?;
        match log.append(&records).await {
            Ok(()) => {}
            Err(error @ AppendError::Failed(_)) => {
                // Whether the records are on disk is not known: only recovery can tell.
                tracing::error!("{error}; mend the disk, then start the node again");
                crate::server::end(crate::server::EXIT_STORAGE_FAULT);
            }
            Err(error) => return Err(refused(ErrorCode::KafkaStorageError, error.to_string())),
        }
        if log.is_snapshot_due()
            && let Err(error) = log.snapshot(&next).await
        {
            tracing::warn!("no snapshot of the metadata could be written: {error}");
        }
        self.bring_into_service(Arc::new(next)).await;
        Ok(response)
    }

    /// Brings an image to every shard, one step after the other.
    async fn bring_into_service(self: &Rc<Self>, next: Arc<Image>) {
        let before = self.image();
        let (old, new) = (Arc::clone(&before), Arc::clone(&next));
        self.on_every_shard(move |shard| {
            let (old, new) = (Arc::clone(&old), Arc::clone(&new));
            async move { shard.create_new(&old, &new).await }
        })
        .await;
        // What another shard shows is in the image of this one, always.
        self.publish(&before, &next);
        let (old, new) = (Arc::clone(&before), Arc::clone(&next));
        self.on_every_shard(move |shard| {
            let (old, new) = (Arc::clone(&old), Arc::clone(&new));
            async move {
                if shard.id != CONTROLLER {
                    shard.publish(&old, &new);
                }
            }
        })
        .await;
        self.on_every_shard(move |shard| {
            let gone = shard.partitions_gone(&before, &next);
            async move { shard.delete_partitions(gone).await }
        })
        .await;
    }

    /// Tries again to create partitions for which the disk had no room, or that it refused: they are in the image already.
    pub(super) async fn create_missing(self: &Rc<Self>) {
        if !self.lacks_partitions.take() {
            return;
        }
        // Under the lock of decisions: what is created is not deleted meanwhile.
        let created = self.ask(CONTROLLER, |controller| async move {
            let log = controller.controller.as_ref().expect("decisions are made on the controller's shard");
            let _decides = log.lock().await;
            let image = controller.image();
            controller
                .on_every_shard(move |shard| {
                    let image = Arc::clone(&image);
                    async move { shard.create_new(&Image::default(), &image).await }
                })
                .await;
        });
        // `None`: the node is stopping.
        created.await.unwrap_or_default();
    }

    /// Does a step on all shards at the same time.
    async fn on_every_shard<Fut: Future<Output = ()> + 'static>(
        self: &Rc<Self>,
        step: impl Fn(Rc<Shard>) -> Fut + Clone + Send + 'static,
    ) {
        let shards = (0..self.count as u16).map(ShardId);
        // `None`: that shard has ended, and so does the node.
        let steps = shards.map(|target| self.ask(target, step.clone()));
        futures_util::future::join_all(steps).await;
    }

    /// An image that holds all that any shard has shown to anybody. This shard's own may be a moment behind that of
    /// another, and a client that has learnt of a topic there must not be told here that there is none: librdkafka,
    /// leading a group, asks once and then assigns nothing of it.
    pub(crate) async fn newest_image(self: &Rc<Self>) -> Arc<Image> {
        let newest = self.ask(CONTROLLER, |controller| async move { controller.image() });
        newest.await.unwrap_or_else(|| self.image())
    }

    /// Acts by a new image from here on.
    fn publish(self: &Rc<Self>, before: &Image, next: &Arc<Image>) {
        let settings = next.settings(self.facts.node_id, &self.facts.statics);
        self.replace_image(next, &settings);
        self.configure(before, next, &settings);
        self.seat_coordinators(before, next);
    }

    async fn delete_partitions(&self, gone: Vec<PartitionId>) {
        let delete = |partition: PartitionId| async move {
            if let Err(error) = self.engine.delete_partition(&partition).await {
                tracing::error!(topic = %partition.topic, partition = partition.partition, "cannot be deleted: {error}");
            }
        };
        futures_util::stream::iter(gone).for_each_concurrent(DELETIONS_AT_ONCE, delete).await;
    }

    fn replace_image(&self, next: &Arc<Image>, settings: &Settings) {
        self.image.replace(Arc::clone(next));
        let config = settings.broker_config();
        if config != *self.config() {
            self.engine.set_compaction(compaction_settings(&self.facts, &config));
            self.facts.admission.limit(&config);
            self.config.replace(Rc::new(config));
        }
        self.log_configs.borrow_mut().clear();
    }

    async fn create_new(&self, before: &Image, next: &Image) {
        topics_gone(before, next).for_each(|topic| self.deleted_names.borrow_mut().insert(&topic.name));
        let settings = next.settings(self.facts.node_id, &self.facts.statics);
        let mut creations = Vec::new();
        for topic in next.topics() {
            let known = before.topic_by_id(topic.id);
            if known.is_some_and(|known| Arc::ptr_eq(known, topic)) {
                continue;
            }
            let from = known.map_or(0, |known| known.partitions.len());
            let config = settings.log_config(&next.topic_overrides(&topic.name));
            for index in from..topic.partitions.len() {
                let id = PartitionId { topic: topic.id, partition: index as i32 };
                if self.owner(id) != self.id || self.engine.partition(&id).is_some() {
                    continue;
                }
                let (topic, config) = (Arc::clone(topic), config.clone());
                creations.push(async move {
                    let epoch = topic.partitions[index].leader_epoch;
                    let directory = topic.directory(index as i32);
                    match self.engine.create_partition(id, &directory, config, epoch).await {
                        Ok(slot) if self.deleted_names.borrow().known.contains(&topic.name) => {
                            self.engine.expect_old_producers(slot);
                        }
                        Ok(_) => {}
                        Err(error) => {
                            tracing::error!(topic = %topic.name, partition = index, "cannot be created: {error}");
                            self.lacks_partitions.set(true);
                        }
                    }
                });
            }
        }
        futures_util::future::join_all(creations).await;
    }

    fn partitions_gone(&self, before: &Image, next: &Image) -> Vec<PartitionId> {
        topics_gone(before, next)
            .flat_map(|topic| {
                let count = topic.partitions.len() as i32;
                (0..count).map(|partition| PartitionId { topic: topic.id, partition })
            })
            .filter(|id| self.owner(*id) == self.id)
            .collect()
    }

    /// Hands changed settings to the logs that they concern.
    fn configure(&self, before: &Image, next: &Image, settings: &Settings) {
        let earlier = before.settings(self.facts.node_id, &self.facts.statics);
        let all = earlier.cluster != settings.cluster || earlier.broker != settings.broker;
        let mut changed: BTreeSet<TopicId> = BTreeSet::new();
        for topic in next.topics() {
            let (was, is) = (before.topic_overrides(&topic.name), next.topic_overrides(&topic.name));
            if all || (!Arc::ptr_eq(&was, &is) && was != is) {
                changed.insert(topic.id);
            }
        }
        for topic in changed.iter().filter_map(|id| next.topic_by_id(*id)) {
            let config = self.log_config(topic.id, &topic.name);
            for partition in 0..topic.partitions.len() as i32 {
                let id = PartitionId { topic: topic.id, partition };
                if let Some(slot) = self.engine.partition(&id) {
                    self.engine.set_config(slot, (*config).clone());
                }
            }
        }
    }
}

fn topics_gone<'a>(before: &'a Image, next: &Image) -> impl Iterator<Item = &'a Arc<Topic>> {
    before.topics().filter(|topic| next.topic_by_id(topic.id).is_none())
}

/// The image after these records.
pub(crate) fn replayed(image: &Image, records: &[Record]) -> Result<Image, Refused> {
    let mut next = image.clone();
    for record in records {
        next.replay(record).map_err(|error| refused(ErrorCode::UnknownServerError, error.to_string()))?;
    }
    Ok(next)
}

fn refused(code: ErrorCode, message: impl Into<String>) -> Refused {
    Refused { code, message: Some(message.into()) }
}
