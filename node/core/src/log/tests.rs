//! The log against a model that keeps every record by itself.

use super::*;

/// A small deterministic generator (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// One batch as the model keeps it.
#[derive(Clone, Copy, Debug)]
struct Kept {
    base: i64,
    last: i64,
    segment: i64,
    position: u64,
    size: u64,
    timestamp: i64,
}

fn config(segment_bytes: u32, segment_ms: i64) -> LogConfig {
    LogConfig { segment_bytes, segment_ms, ..LogConfig::default() }
}

/// What the segments must be, from the batches alone.
fn check(log: &Log, kept: &[Kept]) {
    let active = log.active().base_offset.0;
    for segment in log.segments() {
        let of: Vec<&Kept> = kept.iter().filter(|batch| batch.segment == segment.base_offset.0).collect();
        assert_eq!(segment.size, of.iter().map(|batch| batch.size).sum::<u64>());
        assert_eq!(segment.max_timestamp, of.iter().map(|batch| batch.timestamp).max().unwrap_or(-1));
        assert!(!of.is_empty() || segment.base_offset.0 == active, "only the active segment may be empty");
        let mut at = 0;
        for batch in of {
            assert_eq!(batch.position, at, "batches lie back to back");
            at += batch.size;
        }
    }
    for pair in kept.windows(2) {
        assert_eq!(pair[0].last + 1, pair[1].base, "no gap and no overlap");
    }
    assert_eq!(log.log_end().0, kept.last().map_or(log.log_end().0, |batch| batch.last + 1));
    let restored = Log::restore(log.log_start(), log.log_end(), log.segments().to_vec());
    assert_eq!(restored.as_ref(), Some(log));
}

#[test]
fn follows_a_dumb_model() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let config = config(500 + random.below(2000) as u32, 1 + random.below(100) as i64);
        let mut log = Log::new(Offset(0), 0);
        let mut kept: Vec<Kept> = Vec::new();
        let mut mark: Option<(Mark, usize)> = None;
        for now in 0..200 {
            match random.below(20) {
                0 => {
                    log.roll(now);
                }
                1 => mark = Some((log.mark(), kept.len())),
                2 => {
                    if let Some((mark, len)) = mark.take() {
                        log.rewind(mark);
                        kept.truncate(len);
                    }
                }
                3 => {
                    let to = log.log_start().0
                        + random.below((log.log_end().0 - log.log_start().0 + 1) as u64) as i64;
                    log.advance_log_start(Offset(to));
                    let gone = log.drop_below_start();
                    kept.retain(|batch| gone.iter().all(|segment| segment.base_offset.0 != batch.segment));
                    mark = None;
                }
                _ => {
                    let timestamp = random.below(50) as i64 - 1;
                    let incoming = Incoming {
                        size: 61 + random.below(400),
                        records: 1 + random.below(9) as i64,
                        max_timestamp: timestamp,
                    };
                    let placed = log.place(now, &config, &incoming).unwrap();
                    kept.push(Kept {
                        base: placed.base_offset.0,
                        last: placed.last_offset.0,
                        segment: placed.segment_base.0,
                        position: placed.position,
                        size: incoming.size,
                        timestamp,
                    });
                }
            }
            check(&log, &kept);
        }
    }
}

#[test]
fn replay_builds_the_same_log_and_refuses_any_other_order() {
    let config = config(1000, 1 << 40);
    let mut log = Log::new(Offset(0), 5);
    let mut copy = log.clone();
    let mut random = Random(9);
    for _ in 0..50 {
        let batch = Incoming { size: 61 + random.below(300), records: 3, max_timestamp: 7 };
        let placed = log.place(5, &config, &batch).unwrap();
        let mut wrong = placed;
        wrong.base_offset.0 += 1;
        assert!(copy.replay(&wrong, &batch, 5).is_err());
        wrong = placed;
        wrong.position += 1;
        assert!(copy.replay(&wrong, &batch, 5).is_err());
        copy.replay(&placed, &batch, 5).unwrap();
        assert!(copy.replay(&placed, &batch, 5).is_err());
    }
    assert_eq!(log, copy);
}

#[test]
fn rolls_as_kafka_does() {
    let batch = |size, timestamp| Incoming { size, records: 1, max_timestamp: timestamp };
    let config = config(1000, 100);
    let mut log = Log::new(Offset(0), 0);
    assert_eq!(log.place(0, &config, &batch(1001, 0)), Err(PlaceError::TooLarge));
    assert!(!log.place(0, &config, &batch(500, 10)).unwrap().rolled);
    assert!(!log.place(0, &config, &batch(500, 110)).unwrap().rolled, "exactly full, exactly on time");
    assert!(log.place(0, &config, &batch(1, 110)).unwrap().rolled, "by size");
    assert!(log.place(0, &config, &batch(1, 211)).unwrap().rolled, "by the records' time");
    assert!(!log.place(99, &config, &batch(1, -1)).unwrap().rolled);
    let mut none = Log::new(Offset(0), 0);
    none.place(0, &config, &batch(1, -1)).unwrap();
    assert!(!none.place(100, &config, &batch(1, -1)).unwrap().rolled);
    assert!(none.place(101, &config, &batch(1, -1)).unwrap().rolled, "by the broker's time");
    assert_eq!(Log::new(Offset(i64::MAX), 0).place(0, &config, &batch(1, 0)), Err(PlaceError::Exhausted));
    let mut far = Log::new(Offset(0), 0);
    far.place(0, &config, &Incoming { size: 1, records: 1 << 31, max_timestamp: 0 }).unwrap();
    assert!(far.place(0, &config, &batch(1, 0)).unwrap().rolled, "offsets too far from the base");
}

/// Segments that only their age or index would end are bounded; those that are full are not.
#[test]
fn settings_do_not_make_segments_without_end() {
    let batch = Incoming { size: 100, records: 1, max_timestamp: -1 };
    let config = config(1000, 1);
    let mut log = Log::new(Offset(0), 0);
    let place = |log: &mut Log, now_ms: i64| log.place(now_ms, &config, &batch).unwrap().rolled;
    let rolled = (0..2 * SMALL_SEGMENTS_MAX as i64).filter(|time| place(&mut log, 10 * time)).count();
    // Those behind are full: ten batches each.
    let full = SMALL_SEGMENTS_MAX / 10;
    assert!(rolled.abs_diff(SMALL_SEGMENTS_MAX + full) < 3, "{rolled}");
    assert!(!log.roll_due(i64::MAX, &config));
}

fn log_of(sizes: &[(u64, i64)]) -> Log {
    let mut log = Log::new(Offset(0), 0);
    let config = config(1000, i64::MAX);
    for (index, (size, timestamp)) in sizes.iter().enumerate() {
        if index > 0 {
            log.roll(0);
        }
        log.place(0, &config, &Incoming { size: *size, records: 10, max_timestamp: *timestamp }).unwrap();
    }
    log
}

#[test]
fn retention_takes_whole_segments_from_the_oldest() {
    let log = log_of(&[(100, 10), (100, 20), (100, 30)]);
    let rule = |bytes, ms| LogConfig { retention_bytes: bytes, retention_ms: ms, ..LogConfig::default() };
    let end = log.log_end();
    assert_eq!(log.deletable(1000, &rule(-1, -1), end), None);
    let by_time = log.deletable(125, &rule(-1, 100), end).unwrap();
    assert_eq!((by_time.segments, by_time.log_start, by_time.roll), (2, Offset(20), false));
    let all = log.deletable(500, &rule(-1, 100), end).unwrap();
    assert_eq!((all.segments, all.log_start, all.roll), (3, Offset(30), true));
    let by_size = log.deletable(0, &rule(150, -1), end).unwrap();
    assert_eq!((by_size.segments, by_size.log_start, by_size.reason), (1, Offset(10), Reason::Size));
    assert_eq!(log.deletable(0, &rule(201, -1), end), None, "never below the size");
    assert_eq!(
        log.deletable(500, &rule(-1, 100), Offset(19)).unwrap().segments,
        1,
        "not past the high watermark"
    );
    let mut compacted = rule(0, 0);
    compacted.cleanup_policy.delete = false;
    assert_eq!(log.deletable(5000, &compacted, end), None);
    let mut log = log;
    log.advance_log_start(Offset(25));
    let by_start = log.deletable(0, &compacted, end).unwrap();
    assert_eq!((by_start.segments, by_start.log_start, by_start.reason), (2, Offset(25), Reason::LogStart));
}

#[test]
fn truncation_cuts_at_a_batch_or_not_at_all() {
    let mut log = log_of(&[(100, 1), (100, 2), (100, 3)]);
    assert_eq!(log.truncate(Offset(10), Offset(10), 50), None);
    assert_eq!(log.truncate(Offset(15), Offset(11), 50), None);
    assert_eq!(log.truncate(Offset(15), Offset(10), 50).unwrap(), [Offset(20)]);
    assert_eq!((log.log_end(), log.active().size), (Offset(15), 50));
    assert_eq!(log.truncate(Offset(0), Offset(0), 0).unwrap(), [Offset(10)]);
    assert_eq!(log.log_end(), Offset(0));
}
