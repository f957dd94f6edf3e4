//! Formats round trip, any flipped bit is seen, and a scan of arbitrary bytes never panics.

use super::*;
use crate::limits::BLOCK_BYTES;
use crate::types::*;

const UUID: [u8; 16] = [7; 16];

/// A small deterministic generator (SplitMix64).
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn entry(random: &mut Random, body: usize) -> Entry {
    let base = random.below(1 << 40) as i64;
    Entry {
        kind: EntryKind::Data,
        partition: PartitionId {
            topic: TopicId([random.below(256) as u8; 16]),
            partition: random.below(100) as i32,
        },
        leader_epoch: LeaderEpoch(random.below(9) as i32),
        base_offset: Offset(base),
        last_offset: Offset(base + random.below(50) as i64),
        segment_base: Offset(base / 2),
        position: random.below(1 << 30),
        length: body as u64,
        body_length: body as u32,
    }
}

/// Builds a group of random entries.
fn group(random: &mut Random, position: u64, lsn: u64, previous_hash: u64) -> (Vec<u8>, Vec<Entry>) {
    let count = 1 + random.below(5) as usize;
    let bodies: Vec<usize> = (0..count).map(|_| 1 + random.below(3000) as usize).collect();
    let mut bytes = vec![0u8; group_len(count, bodies.iter().sum())];
    let entries: Vec<Entry> = bodies.iter().map(|body| entry(random, *body)).collect();
    for (index, entry) in entries.iter().enumerate() {
        entry.encode(&mut bytes, index);
    }
    let table_end = GROUP_HEADER_LEN + count * ENTRY_LEN;
    let body_end = table_end + bodies.iter().sum::<usize>();
    for byte in &mut bytes[table_end..body_end] {
        *byte = random.below(256) as u8;
    }
    let header = GroupHeader {
        shard: ShardId(3),
        entry_count: count as u32,
        file_uuid: UUID,
        incarnation: Incarnation(9),
        lsn: Lsn(lsn),
        durable_lsn: Lsn(lsn - 1),
        previous_hash,
        byte_length: bytes.len() as u64,
        table_hash: hash(&bytes[GROUP_HEADER_LEN..table_end]),
        body_hash: hash(&bytes[table_end..]),
        position,
    };
    header.encode(&mut bytes);
    (bytes, entries)
}

/// A file with `count` groups from LSN `first` on, padded with `rest` blocks of zeros.
fn file(random: &mut Random, first: u64, count: u64, rest: usize) -> (Vec<u8>, Vec<Vec<Entry>>) {
    let header = FileHeader { number: 1, directory_id: [1; 16], file_uuid: UUID, capacity: 1 << 20 };
    let mut bytes = vec![0; BLOCK_BYTES as usize];
    header.encode(&mut bytes);
    let mut previous = 0;
    let mut all = Vec::new();
    for lsn in first..first + count {
        let (group, entries) = group(random, bytes.len() as u64, lsn, previous);
        previous = hash(&group[..GROUP_HEADER_LEN]);
        bytes.extend_from_slice(&group);
        all.push(entries);
    }
    bytes.resize(bytes.len() + rest * BLOCK_BYTES as usize, 0);
    (bytes, all)
}

#[test]
fn file_header_round_trips_and_every_flipped_bit_is_seen() {
    let header = FileHeader { number: 12, directory_id: [1; 16], file_uuid: UUID, capacity: 64 << 20 };
    let mut block = vec![0xaa; BLOCK_BYTES as usize];
    header.encode(&mut block);
    assert_eq!(FileHeader::decode(&block), Ok(header));
    for bit in 0..FILE_HEADER_LEN * 8 {
        block[bit / 8] ^= 1 << (bit % 8);
        assert!(FileHeader::decode(&block).is_err(), "bit {bit}");
        block[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn groups_round_trip() {
    let mut random = Random(1);
    for seed in 0..50 {
        let (bytes, entries) = file(&mut random, 1 + seed, 1 + seed % 7, 2);
        let found = scan(&bytes, UUID, BLOCK_BYTES);
        assert_eq!(found.groups.len() as u64, 1 + seed % 7);
        assert_eq!(found.stop, Stop::Bad);
        assert!(found.beyond.is_empty());
        for (group, entries) in found.groups.iter().zip(&entries) {
            assert!(group.is_valid());
            let table = decode_table(&group.header, &bytes[group.position as usize..]).unwrap();
            assert_eq!(&table.iter().map(|(entry, _)| *entry).collect::<Vec<_>>(), entries);
        }
    }
}

#[test]
fn every_flipped_bit_of_a_group_is_seen() {
    let mut random = Random(2);
    let (mut bytes, _) = file(&mut random, 5, 3, 0);
    let clean = scan(&bytes, UUID, BLOCK_BYTES);
    let (start, end) = (clean.groups[1].position as usize, clean.groups[2].position as usize);
    let bits = (0..128 * 8 * 5).chain((0..4000).map(|_| random.below(((end - start) * 8) as u64) as usize));
    for bit in bits.collect::<Vec<_>>() {
        let at = start + bit / 8;
        bytes[at] ^= 1 << (bit % 8);
        let found = scan(&bytes, UUID, BLOCK_BYTES);
        assert!(found.groups[0].is_valid());
        let seen = found.groups.get(1).is_none_or(|group| !group.is_valid());
        assert!(seen, "bit {bit} of the group");
        // The group after it says that this one was durable.
        let durable = found.groups.iter().skip(2).map(|group| group.header.durable_lsn);
        let known = durable.chain(found.beyond.iter().map(|seen| seen.durable_lsn)).max().unwrap();
        assert_eq!(judge(Lsn(6), known), Tail::Corrupt);
        bytes[at] ^= 1 << (bit % 8);
    }
}

#[test]
fn what_an_older_use_left_is_told_apart() {
    let mut random = Random(3);
    let (old, _) = file(&mut random, 1, 12, 0);
    let (new, _) = file(&mut random, 40, 3, 0);
    let mut bytes = new.clone();
    bytes.extend_from_slice(&old[new.len().min(old.len())..]);
    let found = scan(&bytes, UUID, BLOCK_BYTES);
    assert_eq!(found.groups.iter().map(|group| group.header.lsn.0).collect::<Vec<_>>(), [40, 41, 42]);
    assert!(found.beyond.iter().all(|seen| seen.lsn < Lsn(40)));
    assert_eq!(judge(Lsn(43), Lsn(41)), Tail::Torn);
}

#[test]
fn a_scan_of_mangled_bytes_ends() {
    let mut random = Random(4);
    for _ in 0..300 {
        let (mut bytes, _) = file(&mut random, 1, 4, 1);
        for _ in 0..random.below(40) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.below(256) as u8;
        }
        bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
        scan(&bytes, UUID, BLOCK_BYTES);
        FileHeader::decode(&bytes).ok();
        decode_extent(&bytes).ok();
    }
}

#[test]
fn extents_round_trip() {
    let mut body = vec![0u8; extent_body_len(2, 5)];
    encode_extent_prefix(&mut body, 2, 5);
    let extent = decode_extent(&body).unwrap();
    assert_eq!((extent.headers.len(), extent.tail.len()), (122, 5));
    assert!(decode_extent(&body[..body.len() - 1]).is_err());
    body[0] = 0xff;
    assert!(decode_extent(&body).is_err());
}

#[test]
fn routes_keep_the_order_of_a_partition() {
    assert_eq!(route(10, 10, 100, false), Route::Journal);
    assert_eq!(route(10, 10, 100, true), Route::Wait);
    assert_eq!(route(100, 100, 100, true), Route::Bulk);
    // Half will do where others have as much.
    assert_eq!(route(50, 99, 100, false), Route::Journal);
    assert_eq!(route(50, 100, 100, false), Route::Bulk);
    assert_eq!(route(49, 1000, 100, false), Route::Journal);
    assert_eq!(route(49, 1000, 100, true), Route::Wait);
    let mut cut = GroupCut::new(2 * BLOCK_BYTES);
    assert!(cut.add(4000) && cut.extend(3000) && !cut.extend(2000) && !cut.add(1100) && cut.add(100));
    assert_eq!(cut.len(), 2 * BLOCK_BYTES as usize);
}

#[test]
fn checkpoints_are_due_only_when_dirty() {
    let mut plan = CheckpointPlan { journal_bytes: 99, ..Default::default() };
    assert!(!checkpoint_due(&plan, 10, 10, 10, 10));
    plan.dirty_ms = Some(0);
    assert!(checkpoint_due(&plan, 10, 10, 10, 10));
    assert!(!checkpoint_due(&plan, 100, 10, 10, 10));
    plan.dirty_ms = Some(10);
    assert!(checkpoint_due(&plan, 100, 10, 10, 10));
    assert_eq!(free_files([Lsn(4), Lsn(9), Lsn(12)].into_iter(), Lsn(9)), 2);
}

#[test]
fn fills_are_calm_until_somebody_waits_or_memory_or_the_journal_runs_short() {
    let bound = FillPressure { staged_max: 800, checkpoint_bytes: 400, ..Default::default() };
    let begins = FillPressure { staged_bytes: 499, journal_bytes: 400, ..bound };
    assert_eq!(begins.pace(), FillPace::CALM);
    assert_eq!(FillPressure { awaited: true, ..begins }.pace(), FillPace::HURRIED);
    assert_eq!(FillPressure { staged_bytes: 500, ..begins }.pace(), FillPace::STEADY);
    assert_eq!(FillPressure { staged_bytes: 600, ..begins }.pace(), FillPace::HURRIED);
    assert_eq!(FillPressure { journal_bytes: 800, ..begins }.pace(), FillPace::STEADY);
    assert_eq!(FillPressure { journal_bytes: 1200, ..begins }.pace(), FillPace::HURRIED);
}
