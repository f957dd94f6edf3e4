//! Bytes as a journal file (and a checkpoint) of a data folder: recovery on the simulated disk. Nothing panics, it ends, and
//! memory stays within the files' sizes, whatever lengths the bytes claim.
//!
//! In `node/storage/`: `cargo +nightly fuzz run journal -- -max_total_time=60 -max_len=65536`.
#![no_main]

use std::collections::HashMap;

use flumen_core::config::LogConfig;
use flumen_core::types::{Incarnation, LeaderEpoch, PartitionId, TopicId};
use flumen_core::journal::{FileHeader, GroupHeader, hash};
use flumen_core::types::{Lsn, ShardId};
use flumen_storage::disk::Disk;
use flumen_storage::sim::{Sim, SimOptions};
use flumen_storage::{KnownPartition, RecoverySettings, recover};
use libfuzzer_sys::fuzz_target;
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

const DIRECTORY_ID: [u8; 16] = [7; 16];
const UUID: [u8; 16] = [9; 16];
const BLOCK: usize = 4096;

/// A file with a good header and one group whose header and hashes are good, around whatever table and bodies are given.
fn mend(bytes: &[u8], entry_count: u32) -> Vec<u8> {
    let len = bytes.len().next_multiple_of(BLOCK).max(BLOCK);
    let mut file = vec![0; BLOCK + len];
    file[BLOCK..BLOCK + bytes.len()].copy_from_slice(bytes);
    let capacity = file.len() as u64;
    FileHeader { number: 0, directory_id: DIRECTORY_ID, file_uuid: UUID, capacity }.encode(&mut file[..BLOCK]);
    let group = &mut file[BLOCK..];
    let table_end = (128 + entry_count as usize * 72).min(group.len());
    let header = GroupHeader {
        shard: ShardId(0),
        entry_count,
        file_uuid: UUID,
        incarnation: Incarnation(1),
        lsn: Lsn(1),
        durable_lsn: Lsn(0),
        previous_hash: 0,
        byte_length: len as u64,
        table_hash: hash(&group[128..table_end]),
        body_hash: hash(&group[table_end..]),
        position: BLOCK as u64,
    };
    header.encode(group);
    file
}

fuzz_target!(|input: (&[u8], &[u8], u8)| {
    let (journal, checkpoint, mode) = input;
    let journal = if mode & 1 == 0 { mend(journal, u32::from(mode >> 3)) } else { journal.to_vec() };
    let mut checkpoint = checkpoint.to_vec();
    if mode & 2 == 0 {
        let sum = hash(&checkpoint);
        checkpoint.extend_from_slice(&sum.to_le_bytes());
    }
    ALLOCATED.reset_peak_usage();
    let before = ALLOCATED.current_usage();
    let held = journal.len() + checkpoint.len();
    let sim = Sim::new(1, SimOptions { steps_max: 1_000_000, ..SimOptions::default() });
    let disk = sim.disk();
    let with_checkpoint = mode & 4 == 0;
    let ran = sim.run(async move {
        for directory in ["journal", "checkpoint"] {
            disk.create_directory(directory).await.expect("an empty disk");
        }
        disk.write_file("journal/00", &journal, false).await.expect("an empty disk");
        if with_checkpoint {
            disk.write_file("checkpoint/1-0-1", &checkpoint, false).await.expect("an empty disk");
        }
        let id = PartitionId { topic: TopicId([0; 16]), partition: 0 };
        let partition =
            KnownPartition { directory: "t-0".into(), config: LogConfig::default(), leader_epoch: LeaderEpoch(2) };
        let known = HashMap::from([(id, partition)]);
        let settings = RecoverySettings::new(Incarnation(2), DIRECTORY_ID);
        let _ = recover(&disk, &settings, &known).await;
    });
    assert_eq!(ran, Ok(()));
    let peak = ALLOCATED.peak_usage() - before;
    assert!(peak < (16 << 20) + 16 * held, "{peak} bytes for {held} of input");
});
