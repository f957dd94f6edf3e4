//! Segments that retention gave up: they give back their space in steps, in time, and hold up no deletion.

use super::*;

const LOOK: Duration = Duration::from_secs(2);
const STEP: u64 = 4 << 10;

/// A partition of which retention is to leave next to nothing, in several segments, in a life with these settings.
async fn filled(disk: &SimDisk, settings: EngineSettings) -> (TestEngine, Slot) {
    recover(disk, &RecoverySettings::new(Incarnation(1), DIRECTORY_ID), &HashMap::new()).await.unwrap();
    let (engine, sink) = start(disk, settings, Vec::new());
    engine.prepare().await;
    let slot = engine.create_partition(id(0), "t-0", config(), LeaderEpoch(1)).await.unwrap();
    for tag in 0..60 {
        let (bytes, header) = batch(tag, 1, 4000);
        while let Err((_, error)) = engine.append(slot, 0, bytes.clone(), &header, tag) {
            assert!(matches!(error, AppendError::Full), "{error:?}");
            disk.sleep(Duration::from_millis(1)).await;
        }
        until_settled(disk, &sink, tag as usize + 1).await;
    }
    engine.set_config(slot, LogConfig { retention_bytes: 1, ..config() });
    (engine, slot)
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
    disk.files().keys().filter(|name| name.ends_with(".log")).count()
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
        let settings =
            EngineSettings { removal_step_bytes: STEP, retention_interval: LOOK, ..settings(1, 0, 1) };
        let (engine, slot) = filled(&disk, settings).await;
        until(&disk, || !going(&disk).is_empty()).await;
        let began = disk.monotonic();
        let mut seen: Vec<u64> = Vec::new();
        // One that has records is kept, and the one that is written to.
        while segments(&disk) > 2 || !going(&disk).is_empty() {
            assert!(disk.monotonic() < began + LOOK / 2, "{:?}", disk.files().keys());
            let lengths = going(&disk);
            assert!(lengths.len() <= 1, "one at a time");
            seen.extend(lengths.first());
            seen.dedup();
            disk.sleep(Duration::from_micros(50)).await;
        }
        let steps = seen.windows(2).filter(|pair| pair[0].saturating_sub(pair[1]) == STEP).count();
        assert!(steps >= 20, "{seen:?}");
        assert!(engine.offsets(slot).unwrap().log_start > Offset(40));
        engine.stop().await;
    });
}

#[test]
fn a_deletion_does_not_wait_for_the_steps() {
    run(async |disk| {
        let slow = EngineSettings { removal_step_bytes: 1, ..settings(1, 0, 1) };
        let slow = EngineSettings { retention_interval: LOOK, ..slow };
        let (engine, _) = filled(&disk, slow).await;
        until(&disk, || !going(&disk).is_empty()).await;
        let began = disk.monotonic();
        engine.delete_partition(&id(0)).await.unwrap();
        let took = disk.monotonic() - began;
        assert!(took < Duration::from_secs(1), "{took:?} for a log of bytes that go one by one");
        engine.stop().await;
    });
}

#[test]
fn a_start_removes_what_was_on_its_way() {
    let settings = EngineSettings { removal_step_bytes: STEP, retention_interval: LOOK, ..settings(1, 0, 1) };
    let sim = run(async |disk| {
        let (engine, _) = filled(&disk, settings).await;
        until(&disk, || going(&disk).iter().any(|length| *length > 0)).await;
        // It ends here, in the midst.
        drop(engine);
    });
    let sim = sim.crash(Crash::Process);
    let disk = sim.disk();
    sim.run(async move {
        let settings = RecoverySettings::new(Incarnation(2), DIRECTORY_ID);
        let recovered = recover(&disk, &settings, &known(1, 1)).await.unwrap();
        assert!(recovered.findings.is_empty(), "{:?}", recovered.findings);
        assert_eq!(recovered.partitions[0].offline, None);
        assert_eq!(going(&disk), []);
    })
    .unwrap();
}
