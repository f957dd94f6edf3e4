//! Compaction on the simulated disk: what stays, what readers see meanwhile, what a crash at any step leaves.

use std::cell::Cell;

use flumen_core::config::CleanupPolicy;

use super::*;

/// A compacted log of small segments.
fn compacted() -> LogConfig {
    LogConfig {
        cleanup_policy: CleanupPolicy { delete: false, compact: true },
        segment_bytes: 16 << 10,
        min_cleanable_dirty_ratio: 0.01,
        delete_retention_ms: 1000,
        ..config()
    }
}

fn compacting(incarnation: u64) -> EngineSettings {
    let backoff = Duration::from_millis(300);
    let compaction = CompactionSettings { backoff, ..CompactionSettings::default() };
    EngineSettings { compaction, ..settings(incarnation, 0, 1) }
}

type Runs = Rc<RefCell<Vec<CompactionRun>>>;

fn compact(disk: &SimDisk, engine: &TestEngine) -> Runs {
    let runs = Runs::default();
    let (engine, heard) = (engine.clone(), runs.clone());
    disk.spawn(async move { engine.run_compaction(|run| heard.borrow_mut().push(run.clone())).await });
    runs
}

/// Records of a batch: key, and a value of this length or a tombstone.
type Update = (u32, Option<usize>);

fn updates(
    codec: Compression,
    serial: u64,
    sequence: i32,
    now_ms: i64,
    updates: &[Update],
) -> (Bytes, BatchHeader) {
    let mut builder = BatchBuilder::new(codec).producer(serial as i64 % 3, 0, sequence);
    for (key, len) in updates {
        let value = len.map(|len| [&serial.to_be_bytes()[..], &vec![*key as u8; len][..]].concat());
        let key = format!("key {key}");
        builder.push(NewRecord {
            timestamp: now_ms,
            key: Some(key.as_bytes()),
            value: value.as_deref(),
            ..NewRecord::default()
        });
    }
    let bytes = Bytes::from(builder.build());
    let header = BatchHeader::parse(&bytes).unwrap();
    (bytes, header)
}

/// What a log is to a reader of keys: by key, offset and value of the last record below `end`; tombstones are `None`.
type Table = BTreeMap<Vec<u8>, (i64, Option<Vec<u8>>)>;

/// A record as the log holds it: offset, key, value.
type Seen = (i64, Vec<u8>, Option<Vec<u8>>);

#[derive(Default)]
struct Written {
    records: Vec<Seen>,
    bytes: u64,
    /// By producer, the next.
    sequences: [i32; 3],
}

impl Written {
    fn note(&mut self, base: i64, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.records
            .extend(records_of(bytes).into_iter().map(|(offset, key, value)| (base + offset, key, value)));
    }

    fn table(&self, end: i64) -> Table {
        let below = self.records.iter().filter(|(offset, ..)| *offset < end);
        below.map(|(offset, key, value)| (key.clone(), (*offset, value.clone()))).collect()
    }
}

fn records_of(bytes: &[u8]) -> Vec<Seen> {
    let mut found = Vec::new();
    for raw in Batches::new(bytes) {
        let raw = raw.unwrap();
        assert!(flumen_wire::batch::crc_matches(raw.bytes));
        for record in &raw.records(1 << 20).unwrap() {
            let record = record.unwrap();
            found.push((record.offset, record.key.unwrap().to_vec(), record.value.map(<[u8]>::to_vec)));
        }
    }
    found
}

/// Everything from `from`, as a consumer reads it: gaps are allowed, going back is not.
async fn consume(engine: &TestEngine, slot: Slot, from: i64, bytes_max: usize) -> Vec<Seen> {
    let end = engine.offsets(slot).unwrap().high_watermark;
    let (mut at, mut found) = (Offset(from), Vec::new());
    while at < end {
        let slices = match engine.read(slot, at, bytes_max, true).unwrap() {
            ReadOutcome::Cached { slices, .. } => slices,
            ReadOutcome::Disk(read) => {
                let read = engine.read_disk(read).await;
                read.unwrap_or_else(|error| panic!("{error:?} at {at}: {:?}", engine.take_read_faults()))
            }
            ReadOutcome::Empty => panic!("empty below the high watermark"),
        };
        assert!(!slices.is_empty(), "nothing at {at}, below {end}");
        let bytes = slices.to_vec();
        let last = Batches::new(&bytes).last().unwrap().unwrap().header;
        assert!(last.next_offset() > at.0, "a read that does not get on at {at}");
        found.extend(records_of(&bytes).into_iter().filter(|(offset, ..)| *offset >= at.0));
        at = Offset(last.next_offset());
    }
    found
}

/// What is read is a compacted form of what was written: below `cleaned` exactly the last record of each key (tombstones
/// may be gone), above it everything.
fn check(written: &Written, seen: &[Seen], cleaned: i64) {
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "offsets rise");
    let all: BTreeMap<i64, &Seen> = written.records.iter().map(|record| (record.0, record)).collect();
    for record in seen {
        assert_eq!(all.get(&record.0), Some(&record), "what is read was written there");
    }
    let offsets: std::collections::BTreeSet<i64> = seen.iter().map(|record| record.0).collect();
    let table = written.table(cleaned);
    for (offset, key, value) in &written.records {
        let last = table.get(key).is_some_and(|(last, _)| last == offset);
        let there = offsets.contains(offset);
        match (*offset >= cleaned, last, value) {
            (true, ..) | (_, true, Some(_)) => assert!(there, "{offset} is gone"),
            (false, false, _) => assert!(!there, "{offset} was overwritten and is still there"),
            (false, true, None) => {}
        }
    }
}

/// Appends batches of random updates, waiting for their answers.
async fn write(
    disk: &SimDisk,
    (engine, sink): &(TestEngine, TestSink),
    slot: Slot,
    written: &mut Written,
    (first, count, keys): (u64, u64, u64),
) {
    for serial in first..first + count {
        let codec = Compression::ALL[(serial % 5) as usize];
        let mix = serial.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let of = |i: u64| {
            let draw = (mix ^ i.wrapping_mul(0xd134_2543_de82_ef95)) >> 20;
            ((draw % keys) as u32, (!draw.is_multiple_of(11)).then_some((draw >> 8) as usize % 300))
        };
        let batch: Vec<Update> = (0..1 + mix % 9).map(of).collect();
        let sequence = &mut written.sequences[serial as usize % 3];
        let (bytes, header) = updates(codec, serial, *sequence, disk.now_ms(), &batch);
        *sequence += batch.len() as i32;
        let heard = sink.0.borrow().answers.len();
        let placed = loop {
            match engine.append(slot, disk.now_ms(), bytes.clone(), &header, serial) {
                Ok(placed) => break placed,
                Err((_, AppendError::Full)) => disk.sleep(Duration::from_millis(5)).await,
                Err((_, error)) => panic!("{error:?}"),
            }
        };
        written.note(placed.base_offset.0, &bytes);
        until_settled(disk, sink, heard + 1).await;
    }
}

async fn until(disk: &SimDisk, what: &str, condition: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        disk.sleep(Duration::from_millis(1)).await;
    }
    panic!("never: {what}");
}

/// How far the last run came that did not fail.
fn cleaned(runs: &Runs) -> i64 {
    let runs = runs.borrow();
    if let Some(failed) = runs.iter().find(|run| run.failed.is_some()) {
        panic!("{failed:?}");
    }
    runs.last().map_or(0, |run| run.first_dirty.0)
}

#[test]
fn the_last_record_of_each_key_stays_where_it_was() {
    let sim = Sim::new(1, SimOptions::default());
    let disk = sim.disk();
    let written = Rc::new(RefCell::new(Written::default()));
    let first_dirty = Rc::new(Cell::new(0));
    let (kept, came) = (written.clone(), first_dirty.clone());
    sim.run(async move {
        recover(&disk, &RecoverySettings::new(Incarnation(1), DIRECTORY_ID), &HashMap::new()).await.unwrap();
        // All that is written fits the cache, which must not show what compaction took.
        let cached = EngineSettings { cache_bytes_max: 8 << 20, ..compacting(1) };
        let started = start(&disk, cached, Vec::new());
        let engine = started.0.clone();
        engine.prepare().await;
        let slot = engine.create_partition(id(0), "t-0", compacted(), LeaderEpoch(1)).await.unwrap();
        let runs = compact(&disk, &engine);
        let mut written = Written::default();
        write(&disk, &started, slot, &mut written, (0, 600, 40)).await;
        until(&disk, "a run", || cleaned(&runs) > 1500).await;
        disk.sleep(Duration::from_secs(3)).await;
        let cleaned_to = cleaned(&runs);
        let count = runs.borrow().len();
        for (from, bytes_max) in [(0, 1), (0, 4096), (0, 1 << 20), (777, 300), (cleaned_to - 1, 5000)] {
            let seen = consume(&engine, slot, from, bytes_max).await;
            if from == 0 {
                check(&written, &seen, cleaned_to);
            } else {
                let whole = consume(&engine, slot, 0, 9000).await;
                let rest: Vec<Seen> = whole.into_iter().filter(|record| record.0 >= from).collect();
                assert_eq!(seen, rest);
            }
        }
        let after = engine.size_bytes(slot);
        assert!(after * 3 < written.bytes, "{} bytes became {after}", written.bytes);
        let metrics = engine.metrics();
        assert!(metrics.compaction_runs > 0 && metrics.compaction_written_bytes > 0, "{metrics:?}");
        assert!(metrics.compaction_runs_failed == 0, "{:?}", runs.borrow());
        // Small segments were merged: at most two can be less than half full, beside the active one and the dirty.
        let segments = disk.files().keys().filter(|path| path.ends_with(".log")).count();
        assert!(segments < 12, "{segments} segments are left");
        assert!(!disk.files().keys().any(|path| path.ends_with(".swap") || path.ends_with(".cleaned")));
        let (found, _, _) = engine.offset_for_timestamp(slot, Timestamp(0)).await.unwrap().unwrap();
        assert_eq!(found.0, consume(&engine, slot, 0, 9000).await[0].0, "by time, the first that is left");
        assert!(engine.max_timestamp(slot).await.unwrap().is_some());
        disk.sleep(Duration::from_secs(5)).await;
        assert_eq!(runs.borrow().len(), count, "nothing is dirty, so nothing is done");
        engine.stop().await;
        came.set(cleaned_to);
        *kept.borrow_mut() = written;
    })
    .unwrap();
    // The next start knows that it is compacted, and how far.
    let sim = sim.crash(Crash::Process);
    let disk = sim.disk();
    sim.run(async move {
        let known = HashMap::from([known_compacted(2)]);
        let recovered =
            recover(&disk, &RecoverySettings::new(Incarnation(2), DIRECTORY_ID), &known).await.unwrap();
        assert!(recovered.findings.is_empty(), "{:?}", recovered.findings);
        let (engine, _) = start(&disk, compacting(2), recovered.journal_files_of(0, 1));
        let slot = engine.adopt(recovered.partitions.into_iter().next().unwrap()).await.unwrap();
        let runs = compact(&disk, &engine);
        let seen = consume(&engine, slot, 0, 9000).await;
        check(&written.borrow(), &seen, first_dirty.get());
        disk.sleep(Duration::from_secs(5)).await;
        assert!(runs.borrow().iter().all(|run| run.bytes_removed < 20_000), "{:?}", runs.borrow());
        // Plain again, its gaps are no damage.
        let plain =
            LogConfig { cleanup_policy: CleanupPolicy { delete: true, compact: false }, ..compacted() };
        engine.set_config(slot, plain);
        let cleaned_to = first_dirty.get().max(cleaned(&runs));
        let seen = consume(&engine, slot, 0, 9000).await;
        check(&written.borrow(), &seen, cleaned_to);
        engine.stop().await;
    })
    .unwrap();
}

fn known_compacted(epoch: i32) -> (PartitionId, KnownPartition) {
    let leader_epoch = LeaderEpoch(epoch);
    (id(0), KnownPartition { directory: "t-0".to_owned(), config: compacted(), leader_epoch })
}

#[test]
fn a_map_that_is_too_small_takes_many_passes() {
    let sim = Sim::new(2, SimOptions::default());
    let disk = sim.disk();
    sim.run(async move {
        recover(&disk, &RecoverySettings::new(Incarnation(1), DIRECTORY_ID), &HashMap::new()).await.unwrap();
        let mut settings = compacting(1);
        // 64 slots, for 400 keys.
        settings.compaction.dedupe_buffer_bytes = 1;
        let started = start(&disk, settings, Vec::new());
        let engine = started.0.clone();
        engine.prepare().await;
        let slot = engine.create_partition(id(0), "t-0", compacted(), LeaderEpoch(1)).await.unwrap();
        let mut written = Written::default();
        write(&disk, &started, slot, &mut written, (0, 400, 400)).await;
        let runs = compact(&disk, &engine);
        until(&disk, "many runs", || cleaned(&runs) > 1500).await;
        disk.sleep(Duration::from_secs(3)).await;
        assert!(runs.borrow().len() > 10, "{} runs", runs.borrow().len());
        assert!(runs.borrow().iter().all(|run| run.keys <= 64 && run.map_bytes <= 64 * 24));
        check(&written, &consume(&engine, slot, 0, 9000).await, cleaned(&runs));
        engine.stop().await;
    })
    .unwrap();
}

#[test]
fn tombstones_go_when_their_time_is_over() {
    let sim = Sim::new(3, SimOptions::default());
    let disk = sim.disk();
    sim.run(async move {
        recover(&disk, &RecoverySettings::new(Incarnation(1), DIRECTORY_ID), &HashMap::new()).await.unwrap();
        let started = start(&disk, compacting(1), Vec::new());
        let engine = started.0.clone();
        engine.prepare().await;
        let slot = engine.create_partition(id(0), "t-0", compacted(), LeaderEpoch(1)).await.unwrap();
        let runs = compact(&disk, &engine);
        let (bytes, header) =
            updates(Compression::Lz4, 0, 0, 5, &[(901, Some(9)), (902, Some(9)), (901, None)]);
        engine.append(slot, 5, bytes, &header, 0).unwrap();
        let mut written = Written { sequences: [3, 0, 0], ..Written::default() };
        // So much that its segment is closed and checkpointed.
        write(&disk, &started, slot, &mut written, (30, 60, 40)).await;
        until(&disk, "the first run", || cleaned(&runs) > 3).await;
        let met_at = disk.monotonic();
        let has = |seen: &[Seen], offset| seen.iter().any(|record| record.0 == offset);
        let seen = consume(&engine, slot, 0, 9000).await;
        assert!(!has(&seen, 0) && has(&seen, 2), "the tombstone stays at first");
        for serial in (100..).step_by(60) {
            write(&disk, &started, slot, &mut written, (serial, 60, 40)).await;
            disk.sleep(Duration::from_millis(400)).await;
            let gone = !has(&consume(&engine, slot, 0, 9000).await, 2);
            let age = disk.monotonic() - met_at;
            assert!(!gone || age >= Duration::from_millis(900), "gone after {age:?}");
            if gone {
                break;
            }
            assert!(age < Duration::from_secs(10), "never gone");
        }
        engine.stop().await;
    })
    .unwrap();
}

/// A reader that goes over the log again and again while it is compacted sees, each time, all that must be there.
#[test]
fn reads_race_with_swaps() {
    for seed in 10..30 {
        let sim = Sim::new(seed, SimOptions::default());
        let disk = sim.disk();
        sim.run(async move {
            recover(&disk, &RecoverySettings::new(Incarnation(1), DIRECTORY_ID), &HashMap::new())
                .await
                .unwrap();
            let started = start(&disk, EngineSettings { cache_bytes_max: 0, ..compacting(1) }, Vec::new());
            let engine = started.0.clone();
            engine.prepare().await;
            let slot = engine.create_partition(id(0), "t-0", compacted(), LeaderEpoch(1)).await.unwrap();
            let mut written = Written::default();
            write(&disk, &started, slot, &mut written, (0, 150, 30)).await;
            let runs = compact(&disk, &engine);
            let written = Rc::new(written);
            let rounds = Rc::new(Cell::new(0));
            for bytes_max in [1, 700, 5000, 100_000] {
                let (engine, written, rounds, disk) =
                    (engine.clone(), written.clone(), rounds.clone(), disk.clone());
                disk.clone().spawn(async move {
                    loop {
                        let seen = consume(&engine, slot, 0, bytes_max).await;
                        let end = engine.offsets(slot).unwrap().high_watermark.0;
                        let offsets: BTreeMap<i64, &Seen> = seen.iter().map(|r| (r.0, r)).collect();
                        for (key, (offset, value)) in written.table(end) {
                            let found = offsets.get(&offset).map(|(_, key, value)| (key, value));
                            assert_eq!(found, Some((&key, &value)), "the last record of a key, at {offset}");
                        }
                        engine.offset_for_timestamp(slot, Timestamp(0)).await.unwrap();
                        rounds.set(rounds.get() + 1);
                        disk.sleep(Duration::from_micros(300)).await;
                    }
                });
            }
            until(&disk, "a run", || cleaned(&runs) > 0 && rounds.get() > 40).await;
            engine.stop().await;
        })
        .unwrap();
    }
}

/// Compaction, cut short after every so many steps of I/O: what is left is the old or the new, and the next start goes on.
#[test]
fn a_crash_at_any_step_leaves_the_old_or_the_new() {
    let all: Vec<u64> = (1..400).step_by(if cfg!(debug_assertions) { 3 } else { 1 }).collect();
    let (mut swaps, mut leftovers) = (0, 0);
    for steps in all {
        let sim = Sim::new(steps, SimOptions::default());
        let disk = sim.disk();
        let written = Rc::new(RefCell::new(Written::default()));
        let kept = written.clone();
        sim.run(async move {
            recover(&disk, &RecoverySettings::new(Incarnation(1), DIRECTORY_ID), &HashMap::new())
                .await
                .unwrap();
            let started = start(&disk, compacting(1), Vec::new());
            let engine = started.0.clone();
            engine.prepare().await;
            let slot = engine.create_partition(id(0), "t-0", compacted(), LeaderEpoch(1)).await.unwrap();
            let mut all = Written::default();
            write(&disk, &started, slot, &mut all, (0, 120, 25)).await;
            *kept.borrow_mut() = all;
            engine.stop().await;
        })
        .unwrap();
        let sim = sim.crash(Crash::Process);
        let disk = sim.disk();
        sim.crash_after(40 + steps);
        let _ = sim.run(async move {
            let known = HashMap::from([known_compacted(2)]);
            let settings = RecoverySettings::new(Incarnation(2), DIRECTORY_ID);
            let recovered = recover(&disk, &settings, &known).await.unwrap();
            let (engine, _) = start(&disk, compacting(2), recovered.journal_files_of(0, 1));
            engine.adopt(recovered.partitions.into_iter().next().unwrap()).await.unwrap();
            compact(&disk, &engine);
            disk.sleep(Duration::from_secs(60)).await;
        });
        let sim = sim.crash(if steps % 3 == 0 { Crash::Process } else { Crash::Power });
        let disk = sim.disk();
        swaps += disk.files().keys().filter(|path| path.ends_with(".swap")).count();
        leftovers += disk.files().keys().filter(|path| path.ends_with(".cleaned")).count();
        sim.run(async move {
            let known = HashMap::from([known_compacted(3)]);
            let settings = RecoverySettings::new(Incarnation(3), DIRECTORY_ID);
            let recovered = recover(&disk, &settings, &known).await.unwrap();
            assert!(recovered.findings.is_empty(), "{steps}: {:?}", recovered.findings);
            assert!(!disk.files().keys().any(|path| path.ends_with(".swap") || path.ends_with(".cleaned")));
            let (engine, _) = start(&disk, compacting(3), recovered.journal_files_of(0, 1));
            let slot = engine.adopt(recovered.partitions.into_iter().next().unwrap()).await.unwrap();
            let seen = consume(&engine, slot, 0, 9000).await;
            let written = written.take();
            let offsets: Vec<i64> = seen.iter().map(|record| record.0).collect();
            for (_, (offset, value)) in written.table(i64::MAX) {
                assert!(value.is_none() || offsets.contains(&offset), "{steps}: {offset} is gone");
            }
            let runs = compact(&disk, &engine);
            disk.sleep(Duration::from_secs(3)).await;
            // What the first attempt finished, none was needed for.
            let come = cleaned(&runs);
            if come > 0 {
                check(&written, &consume(&engine, slot, 0, 9000).await, come);
            }
            engine.stop().await;
        })
        .unwrap();
    }
    assert!(swaps > 0 && leftovers > 0, "no crash met a swap ({swaps}) or a copy ({leftovers})");
}

/// Deleting a topic, its records, or its settings while it is compacted.
#[test]
fn a_partition_that_goes_is_left_alone() {
    for seed in 40..60 {
        let sim = Sim::new(seed, SimOptions::default());
        let disk = sim.disk();
        sim.run(async move {
            recover(&disk, &RecoverySettings::new(Incarnation(1), DIRECTORY_ID), &HashMap::new())
                .await
                .unwrap();
            let started = start(&disk, compacting(1), Vec::new());
            let engine = started.0.clone();
            engine.prepare().await;
            let slot = engine.create_partition(id(0), "t-0", compacted(), LeaderEpoch(1)).await.unwrap();
            let mut written = Written::default();
            write(&disk, &started, slot, &mut written, (0, 150, 30)).await;
            let runs = compact(&disk, &engine);
            disk.sleep(Duration::from_millis(seed * 7 % 23)).await;
            if seed % 2 == 0 {
                let middle = engine.offsets(slot).unwrap().high_watermark.0 / 2;
                engine.delete_records(slot, Offset(middle), 5000).unwrap();
                disk.sleep(Duration::from_secs(2)).await;
                assert!(runs.borrow().iter().all(|run| run.failed.is_none()), "{:?}", runs.borrow());
                let seen = consume(&engine, slot, middle, 9000).await;
                for (_, (offset, value)) in written.table(i64::MAX) {
                    let there = seen.iter().any(|record| record.0 == offset);
                    assert!(value.is_none() || there || offset < middle, "{offset} is gone");
                }
            }
            engine.delete_partition(&id(0)).await.unwrap();
            let new = PartitionId { topic: TopicId([2; 16]), partition: 0 };
            let again = engine.create_partition(new, "t-0", compacted(), LeaderEpoch(1)).await.unwrap();
            let mut rewritten = Written::default();
            write(&disk, &started, again, &mut rewritten, (1000, 150, 30)).await;
            disk.sleep(Duration::from_secs(3)).await;
            assert!(runs.borrow().iter().all(|run| run.failed.is_none()), "{:?}", runs.borrow());
            let of_new = runs.borrow().iter().filter(|run| run.id == new).map(|run| run.first_dirty.0).max();
            check(&rewritten, &consume(&engine, again, 0, 9000).await, of_new.unwrap());
            engine.stop().await;
        })
        .unwrap();
    }
}
