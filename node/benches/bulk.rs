//! One shard writing in bulk to a real disk, without a network, by turns with fio on a file in the same state: allocated,
//! never written, the same bytes between two syncs. Prints MB/s and the ratio, never fails for a slow disk.
//!
//! `cargo bench -p flumen-node --bench bulk [-- FOLDER]`: FOLDER (default: the build folder) is on the disk to measure,
//! and takes twice 2 GiB. Wants `fio`; says so and measures the engine alone where it is missing.

#![allow(clippy::unwrap_used, missing_docs)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use flumen_core::config::LogConfig;
use flumen_core::types::{Incarnation, LeaderEpoch, PartitionId, ShardId, TopicId};
use flumen_node::disk::{GlommioDisk, PROBE_FILE};
use flumen_node::runtime::local::Bell;
use flumen_node::runtime::{Settings, run_once, spawn};
use flumen_storage::disk::BLOCK;
use flumen_storage::{Engine, EngineSettings, RecoverySettings, Sink, Slot, recover};
use flumen_wire::ErrorCode;
use flumen_wire::batch::{BatchBuilder, BatchHeader, NewRecord};
use flumen_wire::compression::Compression;

const BYTES: usize = 2 << 30;
const BATCH_BYTES: usize = 1 << 20;
/// What the engine syncs together when more is under way, in fio's blocks of 256 KiB.
const BLOCKS_PER_SYNC: usize = 16;
const TURNS: usize = 5;
/// Batches unanswered at a time.
const IN_FLIGHT_MAX: usize = 96;

#[derive(Clone, Default)]
struct Answers {
    durable: Rc<Cell<usize>>,
    failed: Rc<RefCell<Option<String>>>,
    news: Bell,
}

impl Sink<()> for Answers {
    fn settled(&self, answers: &mut Vec<((), Result<(), ErrorCode>)>) {
        for (_, outcome) in answers.drain(..) {
            match outcome {
                Ok(()) => self.durable.set(self.durable.get() + 1),
                Err(code) => drop(self.failed.replace(Some(format!("{code:?}")))),
            }
        }
        self.news.ring();
    }
    fn advanced(&self, _: &[(Slot, PartitionId)]) {}
    fn room(&self) {
        self.news.ring();
    }
    fn partition_offline(&self, _: PartitionId, reason: &str) {
        self.failed.replace(Some(reason.to_owned()));
        self.news.ring();
    }
}

/// MB/s of one shard.
fn engine_turn(folder: &Path, partitions: i32) -> f64 {
    let root = folder.join("engine");
    std::fs::create_dir_all(&root).unwrap();
    let probe = root.join(PROBE_FILE);
    std::fs::write(&probe, [0; BLOCK]).unwrap();
    let settings = Settings { probe_file: Some(probe), ..Settings::default() };
    let data = root.clone();
    let rate = run_once(&settings, move || engine_run(data.clone(), partitions)).unwrap();
    std::fs::remove_dir_all(root).unwrap();
    rate
}

async fn engine_run(root: PathBuf, partitions: i32) -> f64 {
    let disk = GlommioDisk::mount(&root, true, Default::default());
    let nothing = HashMap::new();
    recover(&disk, &RecoverySettings::new(Incarnation(1), [1; 16]), &nothing).await.unwrap();
    let answers = Answers::default();
    let settings = EngineSettings::new(ShardId(0), 1, Incarnation(1), [1; 16], 512 << 20);
    let engine = Engine::new(disk, settings, Vec::new(), answers.clone());
    engine.prepare().await;
    let (journal, upkeep) = (engine.clone(), engine.clone());
    let journal = spawn("journal", async move { journal.run_journal().await });
    let upkeep = spawn("upkeep", async move { upkeep.run_maintenance().await });
    let mut slots = Vec::new();
    for partition in 0..partitions {
        let id = PartitionId { topic: TopicId([1; 16]), partition };
        let made = engine.create_partition(id, "bulk", LogConfig::default(), LeaderEpoch(0)).await;
        slots.push(made.unwrap());
    }
    let (batch, header) = bulk_batch();
    let count = BYTES / batch.len();
    let began = Instant::now();
    let mut sent = 0;
    while answers.durable.get() < count {
        let news = answers.news.next();
        while sent < count && sent - answers.durable.get() < IN_FLIGHT_MAX {
            let slot = slots[sent % slots.len()];
            if engine.append(slot, 1_700_000_000_000, batch.clone(), &header, ()).is_err() {
                break;
            }
            sent += 1;
        }
        if let Some(failed) = answers.failed.borrow().as_ref() {
            panic!("the engine refuses: {failed}");
        }
        if answers.durable.get() < count {
            news.await;
        }
    }
    let rate = (count * batch.len()) as f64 / 1e6 / began.elapsed().as_secs_f64();
    engine.stop().await;
    journal.await.unwrap().unwrap();
    upkeep.await.unwrap();
    rate
}

fn bulk_batch() -> (Bytes, BatchHeader) {
    let mut builder = BatchBuilder::new(Compression::None);
    for _ in 0..BATCH_BYTES / 1100 {
        builder.push(NewRecord {
            timestamp: 1_700_000_000_000,
            value: Some(&[7; 1024]),
            ..NewRecord::default()
        });
    }
    let bytes = Bytes::from(builder.build());
    let header = BatchHeader::parse(&bytes).unwrap();
    (bytes, header)
}

/// MB/s of fio, or why there is none.
fn fio_turn(folder: &Path) -> Result<f64, String> {
    let file = folder.join("fio");
    let done = Command::new("fio")
        .args(["--name=bulk", "--ioengine=io_uring", "--rw=write", "--direct=1", "--bs=256k", "--iodepth=16"])
        .args(["--fallocate=native", "--output-format=json", "--end_fsync=1"])
        .arg(format!("--fdatasync={BLOCKS_PER_SYNC}"))
        .arg(format!("--size={BYTES}"))
        .arg(format!("--filename={}", file.display()))
        .output()
        .map_err(|error| format!("fio cannot be run ({error}): install it to see the ratio"))?;
    let _ = std::fs::remove_file(&file);
    let text = String::from_utf8_lossy(&done.stdout);
    let report: serde_json::Value =
        serde_json::from_str(&text[text.find('{').unwrap_or(0)..]).map_err(|error| error.to_string())?;
    let rate = report["jobs"][0]["write"]["bw_bytes"].as_f64().ok_or("no bandwidth in what fio says")?;
    Ok(rate / 1e6)
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn main() {
    let asked = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target");
    let folder = asked.map_or(target, PathBuf::from).join(format!("flumen-bulk-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (mut one, mut four, mut fio) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        one.push(engine_turn(&folder, 1));
        match fio_turn(&folder) {
            Ok(rate) => fio.push(rate),
            Err(why) => println!("{why}"),
        }
        four.push(engine_turn(&folder, 4));
    }
    std::fs::remove_dir_all(&folder).unwrap();
    for (name, rates) in [("1 partition", &mut one), ("4 partitions", &mut four), ("fio", &mut fio)] {
        if !rates.is_empty() {
            let middle = median(rates);
            println!("{name:12} {middle:6.0} MB/s ({:.0}..{:.0})", rates[0], rates[rates.len() - 1]);
        }
    }
    if !fio.is_empty() {
        let base = median(&mut fio);
        println!("of fio: {:.2} (1 partition), {:.2} (4)", median(&mut one) / base, median(&mut four) / base);
    }
}
