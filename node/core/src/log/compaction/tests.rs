//! Compaction against dumb models: a map of the last value of each key, segment lists by hand.

use std::collections::{BTreeMap, BTreeSet};

use flumen_wire::batch::{BatchBuilder, Batches, NewRecord, RawBatch};
use flumen_wire::compression::Compression;

use super::*;
use crate::log::SLOT_BYTES;

/// xorshift: the tests need variety, not quality.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Offset, key, value (a tombstone has none).
type Kept = (i64, Vec<u8>, Option<Vec<u8>>);

/// A batch of a log: its bytes, and which of its records are still there.
#[derive(Clone)]
struct Stored {
    bytes: Vec<u8>,
    left: Vec<Kept>,
    /// When its tombstones may go.
    horizon: Option<i64>,
    emptied: bool,
}

fn header(stored: &Stored) -> BatchHeader {
    let mut header = Batches::new(&stored.bytes).next().unwrap().unwrap().header;
    if let Some(horizon) = stored.horizon {
        header.attributes.0 |= 0x40;
        header.base_timestamp = horizon;
    }
    header
}

fn append(random: &mut Random, base: i64, keys: u64) -> Stored {
    let producer = random.below(3) as i64;
    let mut builder = BatchBuilder::new(Compression::None).at(base, 1).producer(producer, 0, base as i32);
    let mut left = Vec::new();
    for i in 0..1 + random.below(5) as i64 {
        let key = random.below(keys).to_be_bytes();
        let value = (random.below(4) > 0).then(|| (base + i).to_be_bytes());
        let value = value.as_ref().map(|value| &value[..]);
        builder.push(NewRecord { timestamp: 5, key: Some(&key), value, headers: &[] });
        left.push((base + i, key.to_vec(), value.map(<[u8]>::to_vec)));
    }
    Stored { bytes: builder.build(), left, horizon: None, emptied: false }
}

/// One pass as the engine makes it, over the batches below `end`. Returns the pass, for what it knows.
fn pass(log: &mut Vec<Stored>, first_dirty: Offset, end: Offset, map_bytes: usize, now_ms: i64) -> Pass {
    let mut map = OffsetMap::new(map_bytes, 0.9, (end.0 - first_dirty.0) as u64, 77, first_dirty);
    let all: Vec<Kept> = log.iter().flat_map(|stored| stored.left.clone()).collect();
    let dirty = all.iter().filter(|(offset, ..)| (first_dirty.0..end.0).contains(offset));
    let mut whole = true;
    for (offset, key, _) in dirty {
        whole = map.offer(key, Offset(*offset));
        if !whole {
            break;
        }
    }
    if whole {
        map.cover(end);
    }
    let mut last_offsets = HashMap::new();
    for stored in log.iter() {
        let header = header(stored);
        last_offsets.insert(ProducerId(header.producer_id), Offset(header.last_offset()));
    }
    let pass = Pass { map, now_ms, delete_retention_ms: 100, last_offsets };
    log.retain_mut(|stored| {
        let header = header(stored);
        if header.next_offset() > end.0 || pass.fate(&header) == Fate::Whole {
            return true;
        }
        let Stored { bytes, left, horizon, emptied } = stored;
        let source: RawBatch<'_> = Batches::new(bytes).next().unwrap().unwrap();
        let records = source.records(1 << 20).unwrap();
        let here = |record: &Record<'_>| left.iter().any(|(offset, ..)| *offset == record.offset);
        let kept: BTreeSet<i64> = records
            .iter()
            .map(Result::unwrap)
            .filter(|record| here(record) && pass.keeps(&header, record))
            .map(|record| record.offset)
            .collect();
        left.retain(|(offset, ..)| kept.contains(offset));
        if left.iter().any(|(offset, _, value)| value.is_none() && *offset < pass.map.end().0) {
            *horizon = horizon.or(pass.delete_horizon(&header));
        }
        *emptied = left.is_empty();
        !*emptied || pass.keeps_header(&header)
    });
    pass
}

/// What compaction may and must leave of `all`, once passes have covered everything below `end`.
fn check(all: &[Kept], log: &[Stored], end: Offset, tombstones_may_go: bool) {
    let left: BTreeMap<i64, (&[u8], Option<&[u8]>)> =
        log.iter().flat_map(|s| &s.left).map(|(o, k, v)| (*o, (k.as_slice(), v.as_deref()))).collect();
    let mut last: BTreeMap<&[u8], (i64, Option<&[u8]>)> = BTreeMap::new();
    for (offset, key, value) in all.iter().filter(|(offset, ..)| *offset < end.0) {
        last.insert(key, (*offset, value.as_deref()));
    }
    for (key, (offset, value)) in &last {
        match left.get(offset) {
            Some(found) => assert_eq!(found, &(*key, *value), "content never changes"),
            None => assert!(value.is_none() && tombstones_may_go, "the last value at {offset} is gone"),
        }
    }
    for (offset, (key, value)) in &left {
        if *offset < end.0 {
            assert_eq!(last[key].0, *offset, "an old value of the key is still there");
        } else {
            assert!(all.contains(&(*offset, key.to_vec(), value.map(<[u8]>::to_vec))));
        }
    }
    let above = all.iter().filter(|(offset, ..)| *offset >= end.0);
    assert!(above.into_iter().all(|(offset, ..)| left.contains_key(offset)), "what is not cleaned stays");
}

#[test]
fn the_last_value_of_each_key_stays_and_nothing_else() {
    for seed in 1..120 {
        let mut random = Random(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
        // Small enough that some logs need many passes: 64 slots are the least.
        let (keys, map_bytes) = (1 + random.below(300), 24 * 64 + random.below(4) as usize * 24 * 100);
        let (mut log, mut all): (Vec<Stored>, Vec<Kept>) = (Vec::new(), Vec::new());
        let (mut now_ms, mut first_dirty, mut next) = (0, Offset(0), 0);
        let (mut tombstones_met, mut producers) = (i64::MAX, HashMap::new());
        for _ in 0..4 {
            for _ in 0..random.below(150) {
                let stored = append(&mut random, next, keys);
                let appended = header(&stored);
                next = appended.next_offset();
                producers.insert(appended.producer_id, appended.last_offset());
                all.extend(stored.left.clone());
                log.push(stored);
            }
            let bounds: Vec<i64> = log.iter().map(|stored| header(stored).next_offset()).collect();
            let Some(end) = bounds.get(random.below(1 + bounds.len() as u64) as usize).copied() else {
                continue;
            };
            let end = Offset(end.max(first_dirty.0));
            let mut passes = 0;
            while first_dirty < end {
                now_ms += random.below(80) as i64;
                tombstones_met = tombstones_met.min(now_ms);
                let done = pass(&mut log, first_dirty, end, map_bytes, now_ms);
                assert!(done.map.end() > first_dirty, "a pass gets on");
                first_dirty = done.map.end();
                passes += 1;
                assert!(passes < 100);
            }
            check(&all, &log, end, now_ms.saturating_sub(tombstones_met) >= 100);
            for stored in log.windows(2) {
                assert!(header(&stored[0]).next_offset() <= header(&stored[1]).base_offset);
            }
            // What a sequence is derived from: the last batch of each producer below the end, and the end itself.
            let last = log.iter().filter(|s| header(s).next_offset() == end.0).count();
            assert!(end.0 == 0 || last == 1, "the end of the cleaned part is lost");
        }
        for (producer, last) in &producers {
            let found =
                log.iter().map(header).any(|h| (h.producer_id, h.last_offset()) == (*producer, *last));
            assert!(found, "the last batch of producer {producer} is gone");
        }
    }
}

#[test]
fn tombstones_stay_their_time_after_the_first_pass() {
    let mut random = Random(5);
    let mut log = Vec::new();
    let mut builder = BatchBuilder::new(Compression::None).at(0, 1);
    builder.push(NewRecord { timestamp: 5, key: Some(b"gone"), value: Some(b"x"), headers: &[] });
    builder.push(NewRecord { timestamp: 5, key: Some(b"gone"), value: None, headers: &[] });
    builder.push(NewRecord { timestamp: 5, key: Some(b"kept"), value: Some(b"y"), headers: &[] });
    let left = vec![
        (0, b"gone".to_vec(), Some(b"x".to_vec())),
        (1, b"gone".to_vec(), None),
        (2, b"kept".to_vec(), Some(b"y".to_vec())),
    ];
    log.push(Stored { bytes: builder.build(), left, horizon: None, emptied: false });
    let offsets = |log: &[Stored]| log.iter().flat_map(|s| s.left.iter().map(|k| k.0)).collect::<Vec<_>>();
    // However old the record: the time counts from the pass that met it first.
    pass(&mut log, Offset(0), Offset(3), 1 << 16, 1_000_000);
    assert_eq!((offsets(&log), log[0].horizon), (vec![1, 2], Some(1_000_100)));
    let next = append(&mut random, 3, 1 << 40);
    let end = header(&next).next_offset();
    log.push(next);
    pass(&mut log, Offset(3), Offset(end), 1 << 16, 1_000_099);
    assert_eq!((&offsets(&log)[..2], log[0].horizon), (&[1, 2][..], Some(1_000_100)));
    pass(&mut log, Offset(end), Offset(end), 1 << 16, 1_000_100);
    assert_eq!(offsets(&log)[0], 2);
}

#[test]
fn control_batches_stay_and_records_without_a_key_go() {
    let map = OffsetMap::new(1 << 16, 0.9, 10, 3, Offset(10));
    let pass = Pass { map, now_ms: 0, delete_retention_ms: 0, last_offsets: HashMap::new() };
    let mut builder = BatchBuilder::new(Compression::None).at(0, 1);
    builder.push(NewRecord { timestamp: 5, key: None, value: Some(b"x"), headers: &[] });
    let bytes = builder.clone().control().build();
    let control = Batches::new(&bytes).next().unwrap().unwrap();
    assert_eq!(pass.fate(&control.header), Fate::Whole);
    let bytes = builder.build();
    let plain = Batches::new(&bytes).next().unwrap().unwrap();
    assert_eq!(pass.fate(&plain.header), Fate::Judged);
    let records = plain.records(100).unwrap();
    assert!(!pass.keeps(&plain.header, &records.iter().next().unwrap().unwrap()));
}

#[test]
fn the_map_is_full_at_its_bound_and_says_so() {
    let mut map = OffsetMap::new(1000 * SLOT_BYTES, 0.9, u64::MAX, 1, Offset(7));
    assert_eq!((map.size_bytes(), map.end()), (1000 * SLOT_BYTES, Offset(7)));
    let mut taken = 0;
    while map.offer(&(taken as u64).to_be_bytes(), Offset(100 + taken)) {
        taken += 1;
    }
    assert_eq!((taken, map.end(), map.len()), (900, Offset(1000), 900));
    assert!(map.offer(&5u64.to_be_bytes(), Offset(5000)), "a key that is there needs no room");
    assert_eq!(map.get(&5u64.to_be_bytes()), Some(Offset(5000)));
    for key in 0..900u64 {
        let expected = if key == 5 { 5000 } else { 100 + key as i64 };
        assert_eq!(map.get(&key.to_be_bytes()), Some(Offset(expected)));
    }
    assert_eq!(map.get(b"never"), None);
    let small = OffsetMap::new(1 << 30, 0.5, 500, 1, Offset(0));
    assert!(small.size_bytes() <= 1001 * SLOT_BYTES, "no more than the records need: {}", small.size_bytes());
}

fn segment(base: i64, size: u64, first: i64, last: i64) -> Segment {
    Segment { base_offset: Offset(base), size, max_timestamp: last, first_timestamp: first, created_ms: last }
}

/// Segments of 100 offsets each; the last is active.
fn log_of(sizes: &[u64]) -> Log {
    let segments: Vec<Segment> =
        sizes.iter().zip(0..).map(|(size, i)| segment(100 * i, *size, 1000 * i, 1000 * i + 999)).collect();
    let end = 100 * sizes.len() as i64;
    Log::restore(Offset(0), Offset(end), segments).unwrap()
}

#[test]
fn what_is_cleanable_follows_lags_and_bounds() {
    let config = LogConfig { min_compaction_lag_ms: 0, ..LogConfig::default() };
    let log = log_of(&[10, 20, 30, 40, 50]);
    let all = log.cleanable(9_000, &config, None, Offset(500)).unwrap();
    assert_eq!(
        (all.first_dirty, all.end, all.clean_bytes, all.dirty_bytes),
        (Offset(0), Offset(400), 0, 100)
    );
    assert!(all.is_due(&config) && !all.overdue, "never the active segment");
    assert_eq!(log.cleanable(9_000, &config, None, Offset(350)).unwrap().end, Offset(300), "below the bound");
    let some = log.cleanable(9_000, &config, Some(Offset(350)), Offset(500)).unwrap();
    assert_eq!((some.first_dirty, some.clean_bytes, some.dirty_bytes), (Offset(350), 60, 40));
    assert!(!some.is_due(&config), "40 of 100 are not more than half");
    assert!(some.is_due(&LogConfig { min_cleanable_dirty_ratio: 0.39, ..config.clone() }));
    assert_eq!(log.cleanable(9_000, &config, Some(Offset(400)), Offset(500)), None, "nothing is dirty");
    assert_eq!(
        log.cleanable(9_000, &config, Some(Offset(900)), Offset(500)),
        Some(all),
        "of a log that was cut"
    );
    let lag = LogConfig { min_compaction_lag_ms: 5_001, ..config.clone() };
    assert_eq!(log.cleanable(7_000, &lag, None, Offset(500)).unwrap().end, Offset(200), "the young stay");
    let overdue = LogConfig { max_compaction_lag_ms: 5_999, ..config.clone() };
    assert!(log.cleanable(9_000, &overdue, Some(Offset(300)), Offset(500)).unwrap().overdue);
    assert!(!log.cleanable(8_999, &overdue, Some(Offset(300)), Offset(500)).unwrap().overdue);
    let mut cut = log.clone();
    cut.advance_log_start(Offset(150));
    assert_eq!(
        cut.cleanable(9_000, &config, Some(Offset(20)), Offset(500)).unwrap().first_dirty,
        Offset(150)
    );
    assert_eq!(Log::new(Offset(0), 0).cleanable(1, &config, None, Offset(0)), None);
}

#[test]
fn groups_fit_one_segment() {
    let log = log_of(&[10, 20, 30, 90, 5, 0, 5, 50]);
    let config = LogConfig { segment_bytes: 60, ..LogConfig::default() };
    let bases = |end| -> Vec<Vec<i64>> {
        let groups = log.compaction_groups(Offset(end), &config);
        groups.iter().map(|group| group.bases.iter().map(|base| base.0 / 100).collect()).collect()
    };
    assert_eq!(bases(800), [vec![0, 1, 2], vec![3], vec![4, 5, 6]], "never the active one");
    assert_eq!(bases(101), [vec![0, 1]], "up to the segment that holds the end");
    assert!(bases(0).is_empty());
    let groups = log.compaction_groups(Offset(800), &config);
    assert_eq!((groups[0].first(), groups[0].end, groups[0].size), (Offset(0), Offset(300), 60));
    let far = Log::restore(
        Offset(0),
        Offset(1 << 40),
        vec![segment(0, 1, 0, 0), segment(1 << 31, 1, 0, 0), segment((1 << 31) + 5, 1, 0, 0)],
    );
    let groups = far.unwrap().compaction_groups(Offset(1 << 40), &LogConfig::default());
    assert_eq!(groups.len(), 2, "offsets too far from the base");
}

#[test]
fn a_group_is_replaced_where_it_stands() {
    let mut log = log_of(&[10, 20, 30, 40]);
    let before = log.clone();
    assert_eq!(log.replace(Offset(250), segment(100, 5, 0, 0)), None);
    assert_eq!(log.replace(Offset(100), segment(100, 5, 0, 0)), None);
    assert_eq!(log, before);
    assert_eq!(log.replace(Offset(300), segment(100, 5, 0, 0)).unwrap(), [Offset(200)]);
    let sizes: Vec<u64> = log.segments().iter().map(|segment| segment.size).collect();
    assert_eq!((sizes, log.segment_of(Offset(250))), (vec![10, 5, 40], Some(1)));
    assert_eq!(Log::restore(Offset(0), log.log_end(), log.segments().to_vec()).unwrap(), log);
}

#[test]
fn a_compacted_log_rolls_in_time_for_its_greatest_lag() {
    let mut config = LogConfig { max_compaction_lag_ms: 50, ..LogConfig::default() };
    assert_eq!(config.segment_ms_max(), config.segment_ms);
    config.cleanup_policy.compact = true;
    let mut log = Log::new(Offset(0), 0);
    let batch = |timestamp| crate::log::Incoming { size: 10, records: 1, max_timestamp: timestamp };
    assert!(!log.place(0, &config, &batch(0)).unwrap().rolled);
    assert!(!log.place(0, &config, &batch(50)).unwrap().rolled && !log.roll_due(50, &config));
    assert!(log.roll_due(51, &config) && log.place(0, &config, &batch(51)).unwrap().rolled);
}
