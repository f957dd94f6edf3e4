//! Bytes on disk, frozen: a fixed run of the engine on the simulated disk must leave exactly the files under `tests/golden/storage`
//! of the repository. A change there is a change of format: it needs a new version number and an upgrade path.
//!
//! `FLUMEN_GOLDEN_WRITE=1 cargo test -p flumen-storage --test engine golden` writes them anew.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use flumen_core::config::LogConfig;
use flumen_core::types::{Incarnation, LeaderEpoch, Offset, PartitionId, ShardId, TopicId};
use flumen_storage::disk::Disk;
use flumen_storage::sim::{Sim, SimDisk, SimOptions};
use flumen_storage::{
    CompactionSettings, Engine, EngineSettings, KnownPartition, RecoverySettings, Sink, Slot, recover,
};
use flumen_wire::ErrorCode;
use flumen_wire::batch::{BatchBuilder, BatchHeader, NewRecord};
use flumen_wire::compression::Compression;

struct Answers;

impl Sink<u32> for Answers {
    fn settled(&self, answers: &mut Vec<(u32, Result<(), ErrorCode>)>) {
        assert!(answers.drain(..).all(|(_, result)| result.is_ok()));
    }
    fn advanced(&self, _: &[(Slot, PartitionId)]) {}
    fn room(&self) {}
    fn partition_offline(&self, _: PartitionId, reason: &str) {
        panic!("{reason}");
    }
}

const DIRECTORY_ID: [u8; 16] = *b"golden directory";

fn settings() -> EngineSettings {
    EngineSettings {
        shard: ShardId(0),
        shards: 1,
        incarnation: Incarnation(1),
        directory_id: DIRECTORY_ID,
        staged_bytes_max: 1 << 20,
        cache_bytes_max: 1 << 20,
        index_bytes_max: 1 << 20,
        journal_file_bytes: 64 << 10,
        journal_files: 1,
        checkpoint_bytes: 1 << 20,
        checkpoint_interval: Duration::from_secs(3600),
        index_keep_bytes: 256,
        retention_interval: Duration::from_secs(3600),
        removal_step_bytes: 32 << 20,
        bulk_bytes_min: 12 << 10,
        producer_expiration_ms: 86_400_000,
        compaction: CompactionSettings::default(),
        planted: None,
    }
}

fn batch(number: i32, value_len: usize, now_ms: i64) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Compression::None).producer(77, 1, number);
    let value: Vec<u8> = (0..value_len).map(|i| (i as i32 * 31 + number) as u8).collect();
    builder.push(NewRecord { timestamp: now_ms, key: Some(b"key"), value: Some(&value), headers: &[] });
    builder.build()
}

/// Batches of all kinds in turn: small ones, bulk, rolls, a log start.
async fn work(disk: SimDisk) {
    let id = PartitionId { topic: TopicId(*b"golden topic id."), partition: 3 };
    let config = LogConfig { segment_bytes: 24 << 10, index_interval_bytes: 1024, ..LogConfig::default() };
    let directory = "golden-3".to_string();
    let known = KnownPartition { directory, config, leader_epoch: LeaderEpoch(5) };
    let known = HashMap::from([(id, known)]);
    let recovery = RecoverySettings::new(Incarnation(1), DIRECTORY_ID);
    let recovered = recover(&disk, &recovery, &known).await.expect("an empty disk");
    let files = recovered.journal_files_of(0, 1);
    let engine: Rc<Engine<SimDisk, u32>> = Engine::new(disk.clone(), settings(), files, Answers);
    for partition in recovered.partitions {
        engine.adopt(partition).await.expect("it is there once");
    }
    let (journal, maintenance) = (engine.clone(), engine.clone());
    disk.spawn(async move { journal.run_journal().await.expect("a healthy disk") });
    disk.spawn(async move { maintenance.run_maintenance().await });
    disk.sleep(Duration::from_millis(100)).await;
    let slot = engine.partition(&id).expect("adopted");
    for number in 0..24 {
        let now_ms = 1_700_000_000_000 + i64::from(number);
        let bytes = batch(number, if number % 9 == 8 { 13_000 } else { 400 + 37 * number as usize }, now_ms);
        let header = BatchHeader::parse(&bytes).expect("a batch");
        engine.append(slot, now_ms, Bytes::from(bytes), &header, number as u32).expect("room");
        // One batch a group, whatever the disk's delays are.
        disk.sleep(Duration::from_millis(100)).await;
    }
    engine.delete_records(slot, Offset(2), 1000).expect("below the high watermark");
    disk.sleep(Duration::from_millis(100)).await;
    engine.stop().await;
}

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/storage")
}

/// A long run of zeros at the end is said, not kept.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut out = (bytes.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(&bytes[..used]);
    out
}

#[test]
fn files_on_disk_are_as_they_were() {
    let sim = Sim::new(1, SimOptions::default());
    let disk = sim.disk();
    sim.run(async move { work(disk).await }).expect("no crash was asked for");
    let all = sim.disk().files();
    let files: BTreeMap<String, Vec<u8>> =
        all.iter().map(|(path, bytes)| (path.replace('/', "_"), stored(bytes))).collect();
    for kind in
        ["journal_", "checkpoint_", ".log", ".index", ".timeindex", ".partialindex", "partition.metadata"]
    {
        assert!(files.keys().any(|name| name.contains(kind)), "the run leaves no {kind}");
    }
    let folder = golden();
    if std::env::var_os("FLUMEN_GOLDEN_WRITE").is_some() {
        std::fs::remove_dir_all(&folder).ok();
        std::fs::create_dir_all(&folder).expect("the folder is made");
        for (name, bytes) in &files {
            std::fs::write(folder.join(name), bytes).expect("written");
        }
    }
    let mut kept = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).expect("golden files") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        kept.insert(name, std::fs::read(entry.path()).expect("readable"));
    }
    let names: Vec<_> = files.keys().collect();
    assert_eq!(names, kept.keys().collect::<Vec<_>>(), "the files are others");
    for (name, bytes) in &files {
        let differs = bytes.iter().zip(&kept[name]).position(|(a, b)| a != b);
        assert_eq!((differs, bytes.len()), (None, kept[name].len()), "{name} is not as it was");
    }
}
