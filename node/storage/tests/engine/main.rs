//! The engine on the simulated disk: what is acknowledged is read back, from memory, from disk, and after crashes.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use flumen_core::config::LogConfig;
use flumen_core::types::*;
use flumen_storage::disk::Disk;
use flumen_storage::sim::{Crash, Sim, SimDisk, SimOptions};
use flumen_storage::*;
use flumen_wire::ErrorCode;
use flumen_wire::batch::{BatchBuilder, BatchHeader, Batches, NewRecord};
use flumen_wire::compression::Compression;

mod compaction;
mod faults;
mod golden;
mod removal;

const DIRECTORY_ID: [u8; 16] = [9; 16];

/// What the sink heard.
#[derive(Default)]
struct Heard {
    answers: Vec<(u64, Result<(), ErrorCode>)>,
    offline: Vec<(PartitionId, String)>,
}

#[derive(Clone, Default)]
struct TestSink(Rc<RefCell<Heard>>);

impl Sink<u64> for TestSink {
    fn settled(&self, answers: &mut Vec<(u64, Result<(), ErrorCode>)>) {
        self.0.borrow_mut().answers.append(answers);
    }
    fn advanced(&self, _: &[(Slot, PartitionId)]) {}
    fn room(&self) {}
    fn partition_offline(&self, partition: PartitionId, reason: &str) {
        self.0.borrow_mut().offline.push((partition, reason.to_owned()));
    }
}

fn id(partition: i32) -> PartitionId {
    PartitionId { topic: TopicId([1; 16]), partition }
}

fn config() -> LogConfig {
    LogConfig { segment_bytes: 48 << 10, index_interval_bytes: 512, ..LogConfig::default() }
}

fn known(partitions: i32, epoch: i32) -> HashMap<PartitionId, KnownPartition> {
    let one = |p| {
        let leader_epoch = LeaderEpoch(epoch);
        (id(p), KnownPartition { directory: format!("t-{p}"), config: config(), leader_epoch })
    };
    (0..partitions).map(one).collect()
}

fn settings(incarnation: u64, shard: u16, shards: u16) -> EngineSettings {
    EngineSettings {
        staged_bytes_max: 256 << 10,
        cache_bytes_max: 64 << 10,
        index_bytes_max: 1 << 20,
        journal_file_bytes: 64 << 10,
        checkpoint_bytes: 48 << 10,
        bulk_bytes_min: 3 << 10,
        checkpoint_interval: Duration::from_millis(200),
        ..EngineSettings::new(ShardId(shard), shards, Incarnation(incarnation), DIRECTORY_ID, 1 << 20)
    }
}

fn batch(tag: u64, records: usize, size: usize) -> (Bytes, BatchHeader) {
    let mut builder = BatchBuilder::new(Compression::None);
    for record in 0..records {
        let mut value = vec![tag as u8; size];
        value[..8].copy_from_slice(&tag.to_be_bytes());
        value[8] = record as u8;
        builder.push(NewRecord { timestamp: 1_700_000_000_000, value: Some(&value), ..NewRecord::default() });
    }
    let bytes = Bytes::from(builder.build());
    let header = BatchHeader::parse(&bytes).unwrap();
    (bytes, header)
}

type TestEngine = Rc<Engine<SimDisk, u64>>;

fn run(test: impl AsyncFnOnce(SimDisk) + 'static) -> Sim {
    let sim = Sim::new(7, SimOptions::default());
    let disk = sim.disk();
    sim.run(async move { test(disk).await }).unwrap();
    sim
}

/// What ended an engine's journal, once something has.
type Ended = Rc<RefCell<Option<String>>>;

/// One engine with its loops running.
fn started(
    disk: &SimDisk,
    settings: EngineSettings,
    files: Vec<JournalFileInfo>,
) -> (TestEngine, TestSink, Ended) {
    let sink = TestSink::default();
    let engine = Engine::new(disk.clone(), settings, files, sink.clone());
    let (journal, ended) = (engine.clone(), Ended::default());
    let end = ended.clone();
    disk.spawn(async move {
        if let Err(fault) = journal.run_journal().await {
            *end.borrow_mut() = Some(fault.to_string());
        }
    });
    let upkeep = engine.clone();
    disk.spawn(async move { upkeep.run_maintenance().await });
    (engine, sink, ended)
}

/// The same, of an engine that nothing is to end: what does is seen as answers that do not come.
fn start(disk: &SimDisk, settings: EngineSettings, files: Vec<JournalFileInfo>) -> (TestEngine, TestSink) {
    let (engine, sink, _) = started(disk, settings, files);
    (engine, sink)
}

/// Everything of a partition, batch by batch, through the read path.
async fn read_all(engine: &TestEngine, slot: Slot) -> Vec<(i64, Vec<u8>)> {
    let offsets = engine.offsets(slot).unwrap();
    let mut at = offsets.log_start;
    let mut found = Vec::new();
    while at < offsets.high_watermark {
        let slices = match engine.read(slot, at, 20_000, true).unwrap() {
            ReadOutcome::Cached { slices, .. } => slices,
            ReadOutcome::Disk(read) => {
                let read = engine.read_disk(read).await;
                read.unwrap_or_else(|error| panic!("{error:?} at {at}: {:?}", engine.take_read_faults()))
            }
            ReadOutcome::Empty => panic!("empty below the high watermark"),
        };
        assert!(!slices.is_empty(), "nothing at {at} of {offsets:?}");
        for raw in Batches::new(&slices.to_vec()) {
            let raw = raw.unwrap();
            assert!(flumen_wire::batch::crc_matches(raw.bytes));
            assert!(
                raw.header.base_offset <= at.0 && at.0 < raw.header.next_offset(),
                "offsets without a gap"
            );
            at = Offset(raw.header.next_offset());
            found.push((raw.header.base_offset, raw.bytes[61..].to_vec()));
        }
    }
    found
}

async fn until_settled(disk: &SimDisk, sink: &TestSink, count: usize) {
    for _ in 0..10_000 {
        if sink.0.borrow().answers.len() >= count {
            return;
        }
        disk.sleep(Duration::from_millis(1)).await;
    }
    panic!(
        "only {} of {count} answers came; offline {:?}",
        sink.0.borrow().answers.len(),
        sink.0.borrow().offline
    );
}

/// What others have written to the file system makes a sync long: memory comes free meanwhile.
#[test]
fn appends_do_not_wait_for_a_sync_of_everything() {
    let takes = Duration::from_secs(10);
    let sim = Sim::new(1, SimOptions { sync_all_takes: takes, ..SimOptions::default() });
    let disk = sim.disk();
    sim.run(async move {
        recover(&disk, &RecoverySettings::new(Incarnation(1), DIRECTORY_ID), &HashMap::new()).await.unwrap();
        // Memory runs out before the journal does.
        let staged_max = 128 << 10;
        let settings = EngineSettings {
            staged_bytes_max: staged_max,
            checkpoint_bytes: 128 << 10,
            bulk_bytes_min: 1 << 30,
            ..settings(1, 0, 1)
        };
        let (engine, sink) = start(&disk, settings, Vec::new());
        engine.prepare().await;
        let slot = engine.create_partition(id(0), "t-0", config(), LeaderEpoch(1)).await.unwrap();
        let began = disk.monotonic();
        let mut bytes_sent = 0;
        for tag in 0..180 {
            let (bytes, header) = batch(tag, 1, 2_000);
            bytes_sent += bytes.len();
            while let Err((_, error)) = engine.append(slot, 5, bytes.clone(), &header, tag) {
                assert!(matches!(error, AppendError::Full), "{error:?}");
                disk.sleep(Duration::from_millis(1)).await;
            }
            if tag % 10 == 0 {
                disk.sleep(Duration::from_millis(2)).await;
            }
        }
        until_settled(&disk, &sink, 180).await;
        let took = disk.monotonic() - began;
        assert!(bytes_sent > 2 * staged_max && took < takes / 2, "{bytes_sent} bytes took {took:?}");
    })
    .unwrap();
}

/// A consumer may have heard of an offset that is not durable yet.
#[test]
fn what_is_not_durable_yet_is_not_there_and_not_out_of_range() {
    let sim = Sim::new(1, SimOptions::default());
    let disk = sim.disk();
    sim.run(async move {
        recover(&disk, &RecoverySettings::new(Incarnation(1), DIRECTORY_ID), &HashMap::new()).await.unwrap();
        let (engine, sink) = start(&disk, settings(1, 0, 1), Vec::new());
        engine.prepare().await;
        let slot = engine.create_partition(id(0), "t-0", config(), LeaderEpoch(1)).await.unwrap();
        let (bytes, header) = batch(1, 3, 100);
        engine.append(slot, 5, bytes, &header, 1).unwrap();
        let read = |offset| engine.read(slot, Offset(offset), 1000, true);
        assert!((0..=3).all(|offset| matches!(read(offset), Ok(ReadOutcome::Empty))));
        assert_eq!(read(4).err(), Some(ReadError::OffsetOutOfRange));
        until_settled(&disk, &sink, 1).await;
        assert!(matches!(read(2), Ok(ReadOutcome::Cached { .. })));
        assert!(matches!(read(3), Ok(ReadOutcome::Empty)));
        engine.stop().await;
    })
    .unwrap();
}

#[test]
fn what_is_appended_is_acknowledged_and_read() {
    let sim = Sim::new(1, SimOptions::default());
    let disk = sim.disk();
    sim.run(async move {
        recover(&disk, &RecoverySettings::new(Incarnation(1), DIRECTORY_ID), &HashMap::new()).await.unwrap();
        let (engine, sink) = start(&disk, settings(1, 0, 1), Vec::new());
        engine.prepare().await;
        let slot = engine.create_partition(id(0), "t-0", config(), LeaderEpoch(1)).await.unwrap();
        let mut sent = Vec::new();
        for tag in 0..200 {
            let (bytes, header) = batch(tag, 1 + tag as usize % 4, 100 + 37 * (tag as usize % 50));
            let placed = loop {
                match engine.append(slot, 5, bytes.clone(), &header, tag) {
                    Ok(placed) => break placed,
                    // Fills take their time: there is room once they are done.
                    Err((_, AppendError::Full)) => disk.sleep(Duration::from_millis(1)).await,
                    Err((_, error)) => panic!("{error:?}"),
                }
            };
            sent.push((placed.base_offset.0, bytes[61..].to_vec()));
            if tag % 3 == 0 {
                until_settled(&disk, &sink, tag as usize + 1).await;
            }
        }
        until_settled(&disk, &sink, 200).await;
        assert!(sink.0.borrow().answers.iter().all(|(_, answer)| answer.is_ok()));
        assert_eq!(read_all(&engine, slot).await, sent);
        disk.sleep(Duration::from_secs(2)).await;
        assert_eq!(read_all(&engine, slot).await, sent);
        let metrics = engine.metrics();
        assert!(metrics.checkpoints > 0 && metrics.bulk_bytes > 0 && metrics.filled_bytes > 0, "{metrics:?}");
        engine.stop().await;
    })
    .unwrap();
}

/// Partitions share the memory for indexes: the more there are, the sparser each, and everything is found all the same.
#[test]
fn the_memory_for_indexes_is_shared_by_partitions() {
    const PARTITIONS: i32 = 8;
    const BATCHES: u64 = 2400;
    let sim = Sim::new(1, SimOptions::default());
    let disk = sim.disk();
    sim.run(async move {
        recover(&disk, &RecoverySettings::new(Incarnation(1), DIRECTORY_ID), &HashMap::new()).await.unwrap();
        let index_bytes_max = 32 << 10;
        let (engine, sink) =
            start(&disk, EngineSettings { index_bytes_max, ..settings(1, 0, 1) }, Vec::new());
        engine.prepare().await;
        let dense = LogConfig { index_interval_bytes: 0, segment_bytes: 8 << 20, ..config() };
        let mut slots = Vec::new();
        for partition in 0..PARTITIONS {
            let directory = format!("t-{partition}");
            let made =
                engine.create_partition(id(partition), &directory, dense.clone(), LeaderEpoch(1)).await;
            slots.push(made.unwrap());
        }
        for tag in 0..BATCHES {
            let slot = slots[tag as usize % slots.len()];
            let (bytes, header) = batch(tag, 1, 100);
            while let Err((_, error)) = engine.append(slot, 5, bytes.clone(), &header, tag) {
                assert!(matches!(error, AppendError::Full), "{error:?}");
                disk.sleep(Duration::from_millis(1)).await;
            }
        }
        until_settled(&disk, &sink, BATCHES as usize).await;
        let taken = engine.metrics().index_bytes as usize;
        assert!((index_bytes_max / 4..=index_bytes_max).contains(&taken), "{taken} bytes");
        for (at, slot) in slots.iter().enumerate() {
            let tags = read_all(&engine, *slot).await.len();
            assert_eq!(tags, BATCHES as usize / slots.len(), "partition {at}");
        }
        engine.stop().await;
    })
    .unwrap();
}

/// What one life has seen.
#[derive(Default)]
struct Model {
    /// By tag: partition, base offset and records of every batch placed.
    placed: BTreeMap<u64, (i32, i64, Vec<u8>)>,
    acknowledged: Vec<u64>,
    next_tag: u64,
}

/// One life: recover, check, append at random until the crash.
async fn life(disk: SimDisk, incarnation: u64, shards: u16, model: Rc<RefCell<Model>>, seed: u64) {
    const PARTITIONS: i32 = 4;
    let settings_of = RecoverySettings::new(Incarnation(incarnation), DIRECTORY_ID);
    let recovered = recover(&disk, &settings_of, &known(PARTITIONS, incarnation as i32)).await.unwrap();
    assert!(recovered.findings.is_empty(), "{:?}", recovered.findings);
    let mut engines = Vec::new();
    for shard in 0..shards {
        let files = recovered.journal_files_of(shard, shards);
        engines.push(start(&disk, settings(incarnation, shard, shards), files));
    }
    let mut slots = BTreeMap::new();
    for partition in recovered.partitions {
        assert_eq!(partition.offline, None);
        let number = partition.id.partition;
        let shard = number as u16 % shards;
        let slot = engines[shard as usize].0.adopt(partition).await.unwrap();
        slots.insert(number, (shard as usize, slot));
    }
    check(&engines, &slots, &model).await;
    let mut random = seed;
    let mut pick = |bound: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % bound
    };
    loop {
        for _ in 0..pick(12) {
            let partition = pick(PARTITIONS as u64) as i32;
            let (shard, slot) = slots[&partition];
            let tag = model.borrow().next_tag;
            let size = if pick(6) == 0 { 4000 } else { 200 };
            let (bytes, header) = batch(tag, 1 + pick(5) as usize, 9 + pick(size) as usize);
            let now = disk.now_ms();
            match engines[shard].0.append(slot, now, bytes.clone(), &header, tag) {
                Ok(placed) => {
                    let mut model = model.borrow_mut();
                    model.placed.insert(tag, (partition, placed.base_offset.0, bytes[61..].to_vec()));
                    model.next_tag += 1;
                }
                Err((_, AppendError::Full)) => {}
                Err((_, error)) => panic!("{error:?}"),
            }
        }
        for (_, sink) in &engines {
            for (tag, answer) in sink.0.borrow_mut().answers.drain(..) {
                assert_eq!(answer, Ok(()));
                model.borrow_mut().acknowledged.push(tag);
            }
        }
        disk.sleep(Duration::from_micros(pick(3000))).await;
        if pick(40) == 0 {
            check(&engines, &slots, &model).await;
        }
    }
}

/// Everything acknowledged is there, at its offset.
async fn check(
    engines: &[(TestEngine, TestSink)],
    slots: &BTreeMap<i32, (usize, Slot)>,
    model: &Rc<RefCell<Model>>,
) {
    for (partition, (shard, slot)) in slots {
        let found: BTreeMap<i64, Vec<u8>> = read_all(&engines[*shard].0, *slot).await.into_iter().collect();
        let model = model.borrow();
        for tag in &model.acknowledged {
            let (of, base, records) = &model.placed[tag];
            if of == partition {
                assert_eq!(found.get(base), Some(records), "acknowledged batch {tag} at {base} of {of}");
            }
        }
    }
}

/// Lives that end in crashes, with changing shard counts.
fn crashes(seed: u64) {
    let mut sim = Sim::new(seed, SimOptions::default());
    let model = Rc::new(RefCell::new(Model::default()));
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for incarnation in 1..=8 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let steps = if random.is_multiple_of(3) { 20 + random % 200 } else { 100 + random % 4000 };
        sim.crash_after(steps);
        let shards = 1 + (random >> 20) as u16 % 3;
        let outcome = sim.run(life(sim.disk(), incarnation, shards, model.clone(), random));
        assert_eq!(outcome, Err(flumen_storage::sim::Stop::Crashed));
        sim = sim.crash(if random & 0x100 == 0 { Crash::Power } else { Crash::Process });
        // Offsets of what was not acknowledged may be used again.
        let mut model = model.borrow_mut();
        let acknowledged = model.acknowledged.clone();
        model.placed.retain(|tag, _| acknowledged.contains(tag));
    }
}

#[test]
fn nothing_acknowledged_is_lost_in_crashes() {
    let seeds = std::env::var("FLUMEN_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(8);
    let first = std::env::var("FLUMEN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        let caught = std::panic::catch_unwind(|| crashes(seed));
        if let Err(panic) = caught {
            eprintln!("FLUMEN_SEED={seed} FLUMEN_SEEDS=1 replays it");
            std::panic::resume_unwind(panic);
        }
    }
}
