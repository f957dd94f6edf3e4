//! One life of a simulated node: recovery, engines of all shards, the sink that tells the model.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use flumen_core::types::{Incarnation, LeaderEpoch, Offset, PartitionId, ShardId};
use flumen_storage::sim::{Random, SimDisk};
use flumen_storage::{
    CompactionRun, CompactionSettings, Engine, EngineSettings, Grave, KnownPartition, PlantedBug, ReadError,
    ReadOutcome, Recovered, RecoveryError, RecoverySettings, Sink, Slot, recover,
};
use flumen_wire::ErrorCode;

use crate::model::{Model, Reported, reported};
use crate::scenario::{Scenario, Trouble};

pub(crate) type SimEngine = Engine<SimDisk, u64>;

pub(crate) const DIRECTORY_ID: [u8; 16] = *b"flumen test bed!";

/// What every part of a life sees.
pub(crate) struct Shared {
    pub(crate) scenario: Scenario,
    pub(crate) planted: Option<PlantedBug>,
    pub(crate) model: Rc<RefCell<Model>>,
    pub(crate) random: RefCell<Random>,
    pub(crate) serial: Cell<u64>,
    /// The journal of a shard has failed: the node is to exit.
    pub(crate) fault: RefCell<Option<String>>,
    /// Journals that have not ended yet, in this life.
    pub(crate) journals: Cell<usize>,
    /// Faults may be on.
    pub(crate) troubled: Cell<bool>,
    /// Counts the sink's calls of `room`.
    pub(crate) room: Cell<u64>,
    pub(crate) stopping: Cell<bool>,
}

impl Shared {
    /// Whether trouble of this life is there already while it recovers.
    pub(crate) fn recovery_may_fail(&self) -> bool {
        self.troubled.get() && matches!(self.scenario.trouble, Trouble::Reads | Trouble::DiskFull)
    }
}

/// Tells the model what the engine says.
struct ModelSink {
    shared: Rc<Shared>,
    shard: u16,
}

impl Sink<u64> for ModelSink {
    fn settled(&self, answers: &mut Vec<(u64, Result<(), ErrorCode>)>) {
        let mut model = self.shared.model.borrow_mut();
        *model.answers.entry(self.shard).or_default() += 1;
        for (token, result) in answers.drain(..) {
            if let Err(code) = result {
                assert!(
                    self.shared.troubled.get() || self.shared.stopping.get() || model.excuses(token),
                    "an answer is {code:?} though nothing is wrong"
                );
            }
            model.settle(token, result.is_ok());
        }
    }

    fn advanced(&self, _: &[(Slot, PartitionId)]) {}

    fn room(&self) {
        self.shared.room.set(self.shared.room.get() + 1);
    }

    fn partition_offline(&self, id: PartitionId, reason: &str) {
        let mut model = self.shared.model.borrow_mut();
        model.faults += 1;
        if let Some(partition) = model.partitions.get_mut(&id) {
            let name = partition.directory.clone();
            assert!(self.shared.troubled.get(), "{name} went offline though nothing is wrong: {reason}");
            partition.offline = true;
        }
    }
}

/// The engines of a life.
pub(crate) struct Node {
    pub(crate) shared: Rc<Shared>,
    pub(crate) disk: SimDisk,
    pub(crate) engines: Vec<Rc<SimEngine>>,
    pub(crate) incarnation: u64,
    salt: u64,
}

impl Node {
    /// Recovers and starts. Checks every log against the model.
    pub(crate) async fn start(
        shared: Rc<Shared>,
        disk: SimDisk,
        incarnation: u64,
        corrupted: bool,
    ) -> Result<Node, RecoveryError> {
        let (shards, salt) = {
            let mut random = shared.random.borrow_mut();
            (random.between(1, shared.scenario.shards_max) as u16, random.next_u64())
        };
        let known = known(&shared.model.borrow(), incarnation);
        let settings = RecoverySettings {
            planted: shared.planted,
            producer_expiration_ms: i64::MAX / 4,
            ..RecoverySettings::new(Incarnation(incarnation), DIRECTORY_ID)
        };
        let recovered: Recovered = recover(&disk, &settings, &known).await?;
        let mut engines = Vec::new();
        for shard in 0..shards {
            let settings = engine_settings(&shared, shard, shards, incarnation);
            let sink = ModelSink { shared: shared.clone(), shard };
            engines.push(Engine::new(
                disk.clone(),
                settings,
                recovered.journal_files_of(shard, shards),
                sink,
            ));
        }
        let node = Node { shared, disk, engines, incarnation, salt };
        for partition in recovered.partitions {
            let engine = node.engine(&partition.id).clone();
            engine.adopt(partition).await.expect("recovery names each partition once");
        }
        // Before retention runs: what recovery left is what is checked.
        node.check_all(corrupted, &recovered.graves).await;
        node.engines[0].bury(recovered.graves);
        node.run_loops();
        Ok(node)
    }

    fn run_loops(&self) {
        for engine in &self.engines {
            let (journal, shared) = (engine.clone(), self.shared.clone());
            shared.journals.set(shared.journals.get() + 1);
            self.disk.spawn(async move {
                if let Err(fault) = journal.run_journal().await {
                    *shared.fault.borrow_mut() = Some(fault.to_string());
                }
                shared.journals.set(shared.journals.get() - 1);
            });
            let maintenance = engine.clone();
            self.disk.spawn(async move { maintenance.run_maintenance().await });
            if !self.shared.scenario.compacts {
                continue;
            }
            let (compaction, shared) = (engine.clone(), self.shared.clone());
            self.disk.spawn(async move { compaction.run_compaction(|run| told(&shared, run)).await });
        }
    }

    pub(crate) fn shard(&self, id: &PartitionId) -> u16 {
        let mut random = Random::new(self.salt ^ u64::from(id.topic.0[15]) << 32 ^ id.partition as u64);
        random.index(self.engines.len()) as u16
    }

    pub(crate) fn engine(&self, id: &PartitionId) -> &Rc<SimEngine> {
        &self.engines[usize::from(self.shard(id))]
    }

    pub(crate) fn slot(&self, id: &PartitionId) -> Option<Slot> {
        self.engine(id).partition(id)
    }

    pub(crate) fn offsets(&self, id: &PartitionId) -> Option<Reported> {
        self.engine(id).offsets(self.slot(id)?).map(reported)
    }

    /// What a consumer gets.
    pub(crate) async fn read(
        &self,
        id: &PartitionId,
        offset: i64,
        bytes_max: usize,
    ) -> Result<Vec<u8>, ReadError> {
        let engine = self.engine(id);
        let Some(slot) = self.slot(id) else { return Err(ReadError::Gone) };
        match engine.read(slot, Offset(offset), bytes_max, true)? {
            ReadOutcome::Cached { slices, .. } => Ok(slices.to_vec()),
            ReadOutcome::Disk(read) => Ok(engine.read_disk(read).await?.to_vec()),
            ReadOutcome::Empty => Ok(Vec::new()),
        }
    }

    /// The whole log of a partition, read as a consumer does.
    pub(crate) async fn read_all(&self, id: &PartitionId, from: Reported) -> Result<Vec<u8>, ReadError> {
        let mut all = Vec::new();
        let mut at = from.log_start;
        while at < from.high_watermark {
            let bytes_max = self.shared.random.borrow_mut().between(1, 60 << 10) as usize;
            let bytes = self.read(id, at, bytes_max).await?;
            assert!(
                !bytes.is_empty(),
                "nothing is served at {at}, below the high watermark {}",
                from.high_watermark
            );
            let batches = flumen_wire::batch::Batches::new(&bytes);
            let last = batches.last().expect("at least one batch").expect("well formed");
            assert!(last.header.next_offset() > at, "a read that does not get on at {at}");
            at = last.header.next_offset();
            all.extend(bytes);
        }
        Ok(all)
    }

    /// Every partition, right after recovery.
    async fn check_all(&self, corrupted: bool, graves: &[Grave]) {
        let ids: Vec<PartitionId> = self.shared.model.borrow().partitions.keys().copied().collect();
        for id in ids {
            self.check_one(&id, corrupted).await;
        }
        let mut model = self.shared.model.borrow_mut();
        let known: Vec<String> = model.partitions.values().map(|p| format!("{}/", p.directory)).collect();
        for path in self.disk.files().into_keys() {
            let orphan = |name: &String| path.starts_with(name.as_str());
            let stale = model.gone.iter().any(orphan) && !known.iter().any(orphan);
            let buried = graves.iter().any(|grave| match grave {
                Grave::File(file, _) => path == *file,
                Grave::Directory(directory) => {
                    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
                }
            });
            assert!(buried || !stale, "{path} belongs to a topic that was deleted before the start");
            let is_offline = model.partitions.values().any(|p| p.offline && path.starts_with(&p.directory));
            assert!(buried || is_offline || !path.ends_with(".deleted"), "{path} is never removed");
        }
        model.gone.clear();
        model.recoveries += 1;
    }

    async fn check_one(&self, id: &PartitionId, corrupted: bool) {
        let (deleted, created, name) = {
            let model = self.shared.model.borrow();
            let partition = &model.partitions[id];
            (partition.deleted, partition.created, partition.directory.clone())
        };
        let Some(slot) = self.slot(id) else {
            assert!(
                deleted || !created,
                "{name}: a partition that metadata knows is not there after recovery"
            );
            return;
        };
        assert!(!deleted, "{name}: a deleted partition is back");
        if let Some(reason) = self.engine(id).offline_reason(slot) {
            let excused = corrupted || self.shared.recovery_may_fail();
            assert!(excused, "{name} is offline after recovery though nothing is wrong: {reason}");
            self.with_partition(id, |partition| partition.offline = true);
            return;
        }
        let offsets = self.offsets(id).expect("it is there");
        let content = match self.read_all(id, offsets).await {
            Ok(content) => content,
            Err(_) if corrupted || self.shared.recovery_may_fail() => {
                self.with_partition(id, |partition| partition.offline = true);
                return;
            }
            Err(error) => {
                let faults = self.engine(id).take_read_faults();
                panic!("{name}: reading {offsets:?} after recovery: {error:?}: {faults:?}");
            }
        };
        let now_ms = flumen_storage::disk::Disk::now_ms(&self.disk);
        if corrupted {
            self.with_partition(id, |partition| {
                partition.recovered_from_corruption(offsets, &content);
                partition.offline = true;
            });
            return;
        }
        let ends = self.with_partition(id, |partition| {
            partition.check_retention(offsets.log_start, now_ms);
            partition.recovered(offsets, &content, now_ms);
            partition.created = true;
            partition.epoch_ends(offsets.log_start, offsets.log_end)
        });
        for (epoch, end) in ends {
            let told = self.engine(id).end_offset_for_epoch(slot, LeaderEpoch(epoch));
            assert_eq!(told, Some((LeaderEpoch(epoch), Offset(end))), "{name}: end of epoch {epoch}");
        }
        // A leader under whom nobody wrote yet has one, too.
        let current = self.engine(id).leader_epoch(slot).expect("looked up above");
        let told = self.engine(id).end_offset_for_epoch(slot, current);
        assert_eq!(
            told,
            Some((current, Offset(offsets.high_watermark))),
            "{name}: end of the leader's epoch"
        );
    }

    pub(crate) fn with_partition<R>(
        &self,
        id: &PartitionId,
        work: impl FnOnce(&mut crate::model::Partition) -> R,
    ) -> R {
        let mut model = self.shared.model.borrow_mut();
        work(model.partitions.get_mut(id).expect("partitions of the model stay in a life"))
    }
}

/// A pass of compaction is over.
fn told(shared: &Shared, run: &CompactionRun) {
    let mut model = shared.model.borrow_mut();
    if let Some(reason) = &run.failed {
        let excused = shared.troubled.get();
        assert!(excused, "{}: compaction failed though nothing is wrong: {reason}", run.directory);
        return;
    }
    model.compactions += u64::from(run.segments_before > 0);
}

fn known(model: &Model, incarnation: u64) -> HashMap<PartitionId, KnownPartition> {
    let alive = model.partitions.values().filter(|partition| !partition.deleted);
    let known = alive.map(|partition| {
        let known = KnownPartition {
            directory: partition.directory.clone(),
            config: partition.config.clone(),
            leader_epoch: LeaderEpoch(incarnation as i32),
        };
        (partition.id, known)
    });
    known.collect()
}

fn engine_settings(shared: &Shared, shard: u16, shards: u16, incarnation: u64) -> EngineSettings {
    let scenario = &shared.scenario;
    EngineSettings {
        shard: ShardId(shard),
        shards,
        incarnation: Incarnation(incarnation),
        directory_id: DIRECTORY_ID,
        staged_bytes_max: scenario.staged_bytes_max,
        cache_bytes_max: scenario.cache_bytes_max,
        index_bytes_max: scenario.index_bytes_max,
        journal_file_bytes: scenario.journal_file_bytes,
        journal_files: scenario.journal_files,
        checkpoint_bytes: scenario.checkpoint_bytes,
        checkpoint_interval: scenario.checkpoint_interval,
        index_keep_bytes: scenario.index_keep_bytes,
        retention_interval: std::time::Duration::from_millis(100),
        removal_step_bytes: scenario.removal_step_bytes,
        bulk_bytes_min: scenario.bulk_bytes_min,
        producer_expiration_ms: i64::MAX / 4,
        compaction: CompactionSettings {
            backoff: std::time::Duration::from_millis(20),
            dedupe_buffer_bytes: scenario.dedupe_buffer_bytes,
            io_bytes_per_second: scenario.compaction_bytes_per_second,
            hash_seed: incarnation,
            ..CompactionSettings::default()
        },
        planted: shared.planted,
    }
}
