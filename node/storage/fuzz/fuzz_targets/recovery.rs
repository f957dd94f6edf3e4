//! Arbitrary bytes as a journal file and a checkpoint: recovery ends, without a panic, within bounded memory, and a
//! second recovery of what the first left comes to the same.
//!
//! In `node/storage/`: `cargo +nightly fuzz run recovery -- -max_total_time=60`.
#![no_main]

use std::collections::HashMap;

use flumen_core::config::LogConfig;
use flumen_core::journal::{ENTRY_LEN, FileHeader, GROUP_HEADER_LEN, GroupHeader, hash};
use flumen_core::types::{Incarnation, LeaderEpoch, PartitionId, TopicId};
use flumen_storage::disk::Disk;
use flumen_storage::sim::{Sim, SimOptions};
use flumen_storage::{KnownPartition, RecoverySettings, recover};
use libfuzzer_sys::fuzz_target;
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const UUID: [u8; 16] = [7; 16];
const DIRECTORY_ID: [u8; 16] = [9; 16];
const BLOCK: usize = 4096;
const INPUT_BYTES_MAX: usize = 64 << 10;
/// The file in memory, what is found in it, and what it writes; never what it claims.
const ALLOCATED_BYTES_MAX: usize = 64 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((&mode, data)) = data.split_first() else { return };
    if data.len() > INPUT_BYTES_MAX {
        return;
    }
    let split = if mode & 1 != 0 { data.len() / 4 } else { 0 };
    let (checkpoint, groups) = data.split_at(split);
    let journal = journal(groups, mode & 2 != 0);
    let mut checkpoint = checkpoint.to_vec();
    if mode & 4 != 0 {
        let sum = hash(&checkpoint);
        checkpoint.extend_from_slice(&sum.to_le_bytes());
    }
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let sim = Sim::new(1, SimOptions::default());
    let disk = sim.disk();
    sim.run(async move {
        for directory in ["journal", "checkpoint"] {
            disk.create_directory(directory).await.expect("a healthy disk");
        }
        disk.write_file("journal/00", &journal, true).await.expect("a healthy disk");
        if split > 0 {
            disk.write_file("checkpoint/1-all-0", &checkpoint, true).await.expect("a healthy disk");
        }
        let mut ends = Vec::new();
        let mut findings = Vec::new();
        for incarnation in 2..4 {
            let settings = RecoverySettings::new(Incarnation(incarnation), DIRECTORY_ID);
            let recovered = recover(&disk, &settings, &known()).await.expect("a healthy disk");
            let end = |p: &flumen_storage::RecoveredPartition| (p.offsets(), p.offline.is_some());
            ends.push(recovered.partitions.iter().map(end).collect::<Vec<_>>());
            findings = recovered.findings;
        }
        for (first, second) in ends[0].iter().zip(&ends[1]) {
            assert!(first.1 || first == second, "{first:?} became {second:?}: {findings:?}");
        }
    })
    .expect("recovery ends");
    let peak = ALLOCATOR.peak_usage() - before;
    assert!(peak <= ALLOCATED_BYTES_MAX, "{peak} bytes for an input of {}", data.len());
});

fn known() -> HashMap<PartitionId, KnownPartition> {
    let one = |partition| {
        let id = PartitionId { topic: TopicId([1; 16]), partition };
        let directory = format!("t-{partition}");
        (id, KnownPartition { directory, config: LogConfig::default(), leader_epoch: LeaderEpoch(1) })
    };
    (0..2).map(one).collect()
}

/// A file with a good header; with `mend`, what looks like groups gets the checksums that it needs to be looked into.
fn journal(groups: &[u8], mend: bool) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    bytes.extend_from_slice(groups);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    let capacity = bytes.len() as u64;
    FileHeader { number: 0, directory_id: DIRECTORY_ID, file_uuid: UUID, capacity }
        .encode(&mut bytes[..BLOCK]);
    let (mut position, mut lsn, mut previous_hash) = (BLOCK, 1, 0);
    while mend && position < bytes.len() {
        let group = &mut bytes[position..];
        // The first bytes say how long it is and how many entries it has.
        let byte_length = ((usize::from(group[0]) % 4 + 1) * BLOCK).min(group.len());
        let entry_count = u32::from(group[1]) % 8 + 1;
        let group = &mut group[..byte_length];
        let table_end = GROUP_HEADER_LEN + entry_count as usize * ENTRY_LEN;
        let header = GroupHeader {
            shard: flumen_core::types::ShardId(0),
            entry_count,
            file_uuid: UUID,
            incarnation: Incarnation(1),
            lsn: flumen_core::types::Lsn(lsn),
            durable_lsn: flumen_core::types::Lsn(lsn - 1),
            previous_hash,
            byte_length: byte_length as u64,
            table_hash: hash(&group[GROUP_HEADER_LEN..table_end]),
            body_hash: hash(&group[table_end..]),
            position: position as u64,
        };
        header.encode(group);
        previous_hash = hash(&group[..GROUP_HEADER_LEN]);
        lsn += 1;
        position += byte_length;
    }
    bytes
}
