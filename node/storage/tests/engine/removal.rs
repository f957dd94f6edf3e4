//! Segments that retention gave up: they give back their space in steps, in time, and hold up no deletion.

use super::*;

const LOOK: Duration = Duration::from_secs(2);
const STEP: u64 = 4 << 10;

/// Settings of the given life, which removes in steps.
fn in_steps(incarnation: u64) -> EngineSettings {
    EngineSettings { removal_step_bytes: STEP, retention_interval: LOOK, ..settings(incarnation, 0, 1) }
}

/// A first life with these settings, and a partition of several segments.
async fn filled(disk: &SimDisk, settings: EngineSettings) -> (TestEngine, TestSink, Slot) {
    recover(disk, &RecoverySettings::new(Incarnation(1), DIRECTORY_ID), &HashMap::new()).await.unwrap();
    let (engine, sink) = start(disk, settings, Vec::new());
    engine.prepare().await;
    let slot = fill(disk, &engine, &sink, 0).await;
    (engine, sink, slot)
}

/// Makes a partition of several segments.
async fn fill(disk: &SimDisk, engine: &TestEngine, sink: &TestSink, partition: i32) -> Slot {
    let directory = format!("t-{partition}");
    let slot = engine.create_partition(id(partition), &directory, config(), LeaderEpoch(1)).await.unwrap();
    append(disk, engine, sink, slot, 60).await;
    slot
}

async fn append(disk: &SimDisk, engine: &TestEngine, sink: &TestSink, slot: Slot, batches: u64) {
    for tag in 0..batches {
        let settled = sink.0.borrow().answers.len();
        let (bytes, header) = batch(tag, 1, 4000);
        while let Err((_, error)) = engine.append(slot, 0, bytes.clone(), &header, tag) {
            assert!(matches!(error, AppendError::Full), "{error:?}");
            disk.sleep(Duration::from_millis(1)).await;
        }
        until_settled(disk, sink, settled + 1).await;
    }
}

/// Has retention leave next to nothing of a partition, and returns when it is at it.
async fn begin(disk: &SimDisk, engine: &TestEngine, slot: Slot) {
    engine.set_config(slot, LogConfig { retention_bytes: 1, ..config() });
    until(disk, || going(disk).iter().any(|length| *length > 0)).await;
}

/// Lengths of the segments that have gone, and are not gone.
fn going(disk: &SimDisk) -> Vec<u64> {
    let files = disk.files().into_iter();
    files
        .filter(|(name, _)| name.ends_with(".log.deleted"))
        .map(|(_, content)| content.len() as u64)
        .collect()
}

fn segments(disk: &SimDisk) -> usize {
    disk.files().keys().filter(|name| name.starts_with("t-") && name.ends_with(".log")).count()
}

async fn until(disk: &SimDisk, holds: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if holds() {
            return;
        }
        disk.sleep(Duration::from_micros(200)).await;
    }
    panic!("it does not come to that: {:?}", disk.files().keys());
}

#[test]
fn space_is_given_back_in_steps_and_before_the_next_look() {
    run(async |disk| {
        let (engine, _, slot) = filled(&disk, in_steps(1)).await;
        begin(&disk, &engine, slot).await;
        let began = disk.monotonic();
        let mut seen: Vec<u64> = Vec::new();
        // Batches that wait for the first space of a partition are no reason for haste.
        let others = Rc::clone(&engine);
        disk.spawn(async move {
            for number in 1..20 {
                let directory = format!("u-{number}");
                let made = others.create_partition(id(number), &directory, config(), LeaderEpoch(1)).await;
                let (bytes, header) = batch(100, 1, 100);
                others.append(made.unwrap(), 0, bytes, &header, 100).unwrap();
            }
        });
        // One that has records is kept, and the one that is written to.
        while segments(&disk) > 2 || !going(&disk).is_empty() {
            assert!(disk.monotonic() < began + LOOK / 2, "{:?}", disk.files().keys());
            let lengths = going(&disk);
            assert!(lengths.len() <= 1, "one at a time");
            if lengths != seen.last().copied().into_iter().collect::<Vec<_>>() {
                seen.extend(lengths.first());
            }
            disk.sleep(Duration::from_micros(50)).await;
        }
        let steps = seen.windows(2).filter(|pair| pair[0].saturating_sub(pair[1]) == STEP).count();
        assert!(steps >= 30, "{steps} steps: {seen:?}");
        assert!(engine.offsets(slot).unwrap().log_start > Offset(40));
        engine.stop().await;
    });
}

/// Retention by size has nothing to wait for when a segment is full.
#[test]
fn a_log_at_its_size_gives_up_a_segment_for_each_that_is_full() {
    run(async |disk| {
        let seldom = EngineSettings { retention_interval: Duration::from_secs(3600), ..in_steps(1) };
        let (engine, sink, slot) = filled(&disk, seldom).await;
        let (before, start) = (segments(&disk), engine.offsets(slot).unwrap().log_start);
        // Its time has to wait.
        engine.set_config(slot, LogConfig { retention_ms: 0, ..config() });
        append(&disk, &engine, &sink, slot, 30).await;
        assert_eq!(engine.offsets(slot).unwrap().log_start, start);
        engine.set_config(slot, LogConfig { retention_bytes: 100 << 10, ..config() });
        append(&disk, &engine, &sink, slot, 60).await;
        until(&disk, || engine.offsets(slot).unwrap().log_start > start && segments(&disk) < before).await;
        assert!(disk.monotonic() < Duration::from_secs(3600));
        engine.stop().await;
    });
}

#[test]
fn a_deletion_does_not_wait_for_the_steps() {
    run(async |disk| {
        let slow = EngineSettings { removal_step_bytes: 1, ..settings(1, 0, 1) };
        let slow = EngineSettings { retention_interval: LOOK, ..slow };
        let (engine, _, slot) = filled(&disk, slow).await;
        begin(&disk, &engine, slot).await;
        let began = disk.monotonic();
        engine.delete_partition(&id(0)).await.unwrap();
        let took = disk.monotonic() - began;
        assert!(took < Duration::from_secs(1), "{took:?} for a log of bytes that go one by one");
        engine.stop().await;
    });
}

#[test]
fn a_deletion_waits_for_no_segments_of_others() {
    run(async |disk| {
        let slow = EngineSettings { removal_step_bytes: 64, ..settings(1, 0, 1) };
        let slow = EngineSettings { retention_interval: Duration::from_secs(600), ..slow };
        let (engine, sink, slot) = filled(&disk, slow).await;
        let other = fill(&disk, &engine, &sink, 1).await;
        engine.delete_records(slot, Offset(50), 1000).unwrap();
        until(&disk, || going(&disk).iter().any(|length| *length > 0)).await;
        // Its segments wait behind those of the first.
        let before = engine.metrics().segments_deleted;
        engine.delete_records(other, Offset(50), 1001).unwrap();
        until(&disk, || engine.metrics().segments_deleted > before).await;
        let began = disk.monotonic();
        engine.delete_partition(&id(1)).await.unwrap();
        let took = disk.monotonic() - began;
        assert!(!going(&disk).is_empty(), "the first is not done");
        assert!(took < Duration::from_secs(1), "{took:?}");
        engine.stop().await;
    });
}

/// Ends a life whose retention is in the midst of a segment, and has others before it; returns what is there after a crash.
fn in_the_midst() -> Sim {
    let settings = in_steps(1);
    let sim = run(async |disk| {
        let (engine, _, slot) = filled(&disk, settings).await;
        begin(&disk, &engine, slot).await;
        drop(engine);
    });
    sim.crash(Crash::Process)
}

#[test]
fn a_start_leaves_what_was_on_its_way_to_the_engine_which_goes_on_with_it() {
    let sim = in_the_midst();
    let disk = sim.disk();
    sim.run(async move {
        let before: u64 = going(&disk).iter().sum();
        assert!(before > 0);
        let recovery = RecoverySettings::new(Incarnation(2), DIRECTORY_ID);
        let mut recovered = recover(&disk, &recovery, &known(1, 1)).await.unwrap();
        assert!(recovered.findings.is_empty(), "{:?}", recovered.findings);
        assert_eq!(recovered.partitions[0].offline, None);
        let left: u64 = going(&disk).iter().sum();
        assert!(
            left >= before,
            "recovery waits for no removal: {before} bytes were on their way, {left} are left"
        );
        let (engine, _) = start(&disk, in_steps(2), recovered.journal_files_of(0, 1));
        engine.adopt(recovered.partitions.remove(0)).await.unwrap();
        engine.prepare().await;
        engine.bury(recovered.graves);
        let mut steps = 0;
        let mut last = left;
        while last > 0 {
            disk.sleep(Duration::from_micros(50)).await;
            let now = going(&disk).iter().sum();
            steps += usize::from(now != last);
            last = now;
        }
        assert!(steps as u64 >= left / STEP, "{left} bytes in {steps} steps");
        until(&disk, || going(&disk).is_empty()).await;
        engine.stop().await;
    })
    .unwrap();
}

#[test]
fn a_topic_that_metadata_no_longer_knows_goes_behind_the_start() {
    let sim = in_the_midst();
    let disk = sim.disk();
    sim.run(async move {
        let recovery = RecoverySettings::new(Incarnation(2), DIRECTORY_ID);
        let recovered = recover(&disk, &recovery, &HashMap::new()).await.unwrap();
        let of_topic = |path: &str| path.starts_with("t-0/");
        let of_grave = |path: &str| path.starts_with("t-0.") && path.contains("-delete/");
        assert!(!disk.files().keys().any(|path| of_topic(path)), "its name can be used again");
        assert!(disk.files().keys().any(|path| of_grave(path)), "{:?}", disk.files().keys());
        // A start that comes before all is gone knows it again.
        let again = RecoverySettings::new(Incarnation(3), DIRECTORY_ID);
        let again = recover(&disk, &again, &HashMap::new()).await.unwrap();
        assert_eq!(again.graves, recovered.graves);
        let (engine, _) = start(&disk, in_steps(3), again.journal_files_of(0, 1));
        engine.bury(again.graves);
        until(&disk, || !disk.files().keys().any(|path| of_grave(path))).await;
        engine.stop().await;
    })
    .unwrap();
}

/// Without room for a checkpoint a start cannot serve: what is to be removed has that room.
#[test]
fn a_start_on_a_full_disk_removes_at_once() {
    let sim = in_the_midst();
    let disk = sim.disk();
    sim.run(async move {
        // Somebody else has what was in reserve, and the little that recovery frees otherwise.
        disk.remove_file("checkpoint/reserve-0.tmp").await.unwrap();
        disk.set_capacity(disk.allocated() - 2 * config().segment_bytes as u64);
        let recovery = RecoverySettings::new(Incarnation(2), DIRECTORY_ID);
        let recovered = recover(&disk, &recovery, &known(1, 1)).await.unwrap();
        assert_eq!(recovered.partitions[0].offline, None);
        assert_eq!(recovered.graves, []);
        assert_eq!(going(&disk), []);
    })
    .unwrap();
}
