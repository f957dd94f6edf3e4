//! CPU of the engine alone: a disk that takes everything at once, one shard, no network. Prints, never fails.
//!
//! `cargo bench -p flumen-storage --bench append`

#![allow(clippy::unwrap_used, missing_docs)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flumen_core::config::LogConfig;
use flumen_core::types::*;
use flumen_storage::disk::{Buffer, DirectoryEntry, Disk, File, OpenMode};
use flumen_storage::*;
use flumen_wire::ErrorCode;
use flumen_wire::batch::{BatchBuilder, BatchHeader, NewRecord};
use flumen_wire::compression::Compression;

/// A disk without a bottom: writes are complete at their second poll, nothing is kept.
#[derive(Clone)]
struct NullDisk {
    start: Instant,
    pool: Rc<RefCell<Vec<Vec<u8>>>>,
}

struct NullBuffer {
    bytes: Vec<u8>,
    pool: Rc<RefCell<Vec<Vec<u8>>>>,
}

impl Drop for NullBuffer {
    fn drop(&mut self) {
        let mut pool = self.pool.borrow_mut();
        if pool.len() < 64 {
            pool.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl Buffer for NullBuffer {
    fn as_slice(&self) -> &[u8] {
        &self.bytes
    }
    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
    fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }
}

struct NullFile;

/// Ready at its second poll, so that loops run as they do on a real disk.
async fn soon() {
    let mut polled = false;
    std::future::poll_fn(|context| {
        if polled {
            return Poll::Ready(());
        }
        polled = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl File for NullFile {
    type Buffer = NullBuffer;
    async fn write_at(&self, buffer: Rc<NullBuffer>, _: u64) -> io::Result<()> {
        soon().await;
        drop(buffer);
        Ok(())
    }
    async fn read_at(&self, _: u64, _: usize) -> io::Result<(NullBuffer, usize)> {
        Err(io::ErrorKind::Unsupported.into())
    }
    async fn sync(&self) -> io::Result<()> {
        soon().await;
        Ok(())
    }
    async fn preallocate(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    async fn truncate(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

impl Disk for NullDisk {
    type Buffer = NullBuffer;
    type File = NullFile;
    fn allocate(&self, len: usize) -> NullBuffer {
        let mut bytes = self.pool.borrow_mut().pop().unwrap_or_default();
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        bytes.truncate(len);
        NullBuffer { bytes, pool: self.pool.clone() }
    }
    async fn open(&self, _: &str, _: OpenMode) -> io::Result<NullFile> {
        Ok(NullFile)
    }
    async fn read_file(&self, _: &str, _: u64) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }
    async fn write_file(&self, _: &str, _: &[u8], _: bool) -> io::Result<()> {
        Ok(())
    }
    async fn create_directory(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    async fn list(&self, path: &str) -> io::Result<Vec<DirectoryEntry>> {
        if path.is_empty() || path == "journal" || path == "checkpoint" {
            Ok(Vec::new())
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
    async fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }
    async fn remove_file(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    async fn remove_directory(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    async fn sync_directory(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    async fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
    async fn is_laid_out(&self, _: &str) -> io::Result<bool> {
        Ok(true)
    }
    async fn sleep(&self, _: Duration) {
        std::future::pending::<()>().await;
    }
    fn now_ms(&self) -> i64 {
        1_700_000_000_000
    }
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

#[derive(Clone, Default)]
struct Count(Rc<Cell<u64>>);

impl Sink<()> for Count {
    fn settled(&self, answers: &mut Vec<((), Result<(), ErrorCode>)>) {
        self.0.set(self.0.get() + answers.len() as u64);
        answers.clear();
    }
    fn advanced(&self, _: &[(Slot, PartitionId)]) {}
    fn room(&self) {}
    fn partition_offline(&self, _: PartitionId, reason: &str) {
        panic!("{reason}");
    }
}

fn batch(records: usize, size: usize) -> (Bytes, BatchHeader) {
    let mut builder = BatchBuilder::new(Compression::None);
    for _ in 0..records {
        builder.push(NewRecord {
            timestamp: 1_700_000_000_000,
            value: Some(&vec![7; size]),
            ..NewRecord::default()
        });
    }
    let bytes = Bytes::from(builder.build());
    let header = BatchHeader::parse(&bytes).unwrap();
    (bytes, header)
}

/// `per_cycle` batches to `partitions` partitions in turn, then the loops run until nothing is left to do.
fn measure(name: &str, partitions: usize, per_cycle: usize, records: usize, size: usize, total: usize) {
    let disk = NullDisk { start: Instant::now(), pool: Rc::default() };
    let mut context = Context::from_waker(Waker::noop());
    let settings = EngineSettings::new(ShardId(0), 1, Incarnation(1), [1; 16], 512 << 20);
    let answered = Count::default();
    let engine: Rc<Engine<NullDisk, ()>> = Engine::new(disk, settings, Vec::new(), answered.clone());
    let mut slots = Vec::new();
    {
        let mut make = pin!(async {
            recover_nothing(&engine).await;
            engine.prepare().await;
            let mut slots = Vec::new();
            for partition in 0..partitions {
                let id = PartitionId { topic: TopicId([1; 16]), partition: partition as i32 };
                let made = engine.create_partition(id, "t", LogConfig::default(), LeaderEpoch(0)).await;
                slots.push(made.unwrap());
            }
            slots
        });
        loop {
            if let Poll::Ready(made) = make.as_mut().poll(&mut context) {
                slots.extend::<Vec<Slot>>(made);
                break;
            }
        }
    }
    let mut journal = pin!(engine.run_journal());
    let mut upkeep = pin!(engine.run_maintenance());
    let (bytes, header) = batch(records, size);
    let count = total / bytes.len();
    let (mut sent, mut next) = (0, 0);
    let started = Instant::now();
    while answered.0.get() < count as u64 {
        for _ in 0..per_cycle.min(count - sent) {
            if engine.append(slots[next % partitions], 1_700_000_000_000, bytes.clone(), &header, ()).is_err()
            {
                break;
            }
            sent += 1;
            next += 1;
        }
        for _ in 0..4 {
            assert!(journal.as_mut().poll(&mut context).is_pending());
            assert!(upkeep.as_mut().poll(&mut context).is_pending());
        }
    }
    let took = started.elapsed();
    let gigabytes = (count * bytes.len()) as f64 / 1e9;
    let metrics = engine.metrics();
    println!(
        "{name}: {:.3} s/GB, {:.2} us a batch, {} groups, {:.0} % past the journal, {} checkpoints",
        took.as_secs_f64() / gigabytes,
        took.as_secs_f64() * 1e6 / count as f64,
        metrics.groups,
        metrics.bulk_bytes as f64 * 100.0 / metrics.batch_bytes as f64,
        metrics.checkpoints,
    );
}

async fn recover_nothing(engine: &Rc<Engine<NullDisk, ()>>) {
    let disk = NullDisk { start: Instant::now(), pool: Rc::default() };
    let settings = RecoverySettings::new(Incarnation(1), [1; 16]);
    recover(&disk, &settings, &HashMap::new()).await.unwrap();
    let _ = engine;
}

fn main() {
    measure("1 KiB, a batch each, 1 partition, 16 a cycle", 1, 16, 1, 1024, 256 << 20);
    measure("1 KiB, a batch each, 1000 partitions, 1000 a cycle", 1000, 1000, 1, 1024, 256 << 20);
    measure("16 KiB batches, 4 partitions, 8 a cycle", 4, 8, 16, 1024, 1 << 30);
    measure("1 MiB batches, 1 partition, 8 a cycle", 1, 8, 1024, 1024, 2 << 30);
    measure("16 KiB batches of 100 B records, 4 partitions", 4, 16, 150, 100, 1 << 30);
}
