//! Faults: what must happen is in the name of each test.

use std::io::ErrorKind;

use super::*;
use flumen_core::journal::GroupHeader;
use flumen_core::types::Lsn;
use flumen_storage::sim::{Fault, Operation};

async fn recovered(disk: &SimDisk, incarnation: u64, partitions: i32) -> Recovered {
    let how = RecoverySettings::new(Incarnation(incarnation), DIRECTORY_ID);
    recover(disk, &how, &known(partitions, incarnation as i32)).await.unwrap()
}

/// A node of one shard with its partitions.
async fn node(
    disk: &SimDisk,
    incarnation: u64,
    partitions: i32,
) -> (TestEngine, TestSink, Vec<Slot>, Vec<String>) {
    let recovered = recovered(disk, incarnation, partitions).await;
    let (engine, sink) = start(disk, settings(incarnation, 0, 1), recovered.journal_files_of(0, 1));
    engine.prepare().await;
    let mut slots = Vec::new();
    for partition in recovered.partitions {
        slots.push(engine.adopt(partition).await.unwrap());
    }
    (engine, sink, slots, recovered.findings)
}

/// Appends `count` batches to each partition, one cycle each, and returns what was acknowledged, by partition.
async fn produce(
    disk: &SimDisk,
    engine: &TestEngine,
    sink: &TestSink,
    slots: &[Slot],
    count: u64,
) -> Vec<Vec<(i64, Vec<u8>)>> {
    let mut acknowledged = vec![Vec::new(); slots.len()];
    for round in 0..count {
        let mut sent = Vec::new();
        for (index, slot) in slots.iter().enumerate() {
            let tag = round * 100 + index as u64;
            let (bytes, header) = batch(tag, 2, 300);
            if let Some(placed) = append(disk, engine, *slot, &bytes, &header, tag).await {
                sent.push((index, tag, placed.base_offset.0, bytes[61..].to_vec()));
            }
        }
        let count = sent.len();
        until_settled(disk, sink, count).await;
        let answers: BTreeMap<u64, _> = sink.0.borrow_mut().answers.drain(..).collect();
        for (index, tag, base, records) in sent {
            if answers[&tag].is_ok() {
                acknowledged[index].push((base, records));
            }
        }
    }
    acknowledged
}

/// Appends, once there is room, as a node does. `None` when it is refused.
async fn append(
    disk: &SimDisk,
    engine: &TestEngine,
    slot: Slot,
    bytes: &Bytes,
    header: &BatchHeader,
    tag: u64,
) -> Option<Placed> {
    for _ in 0..10_000 {
        match engine.append(slot, disk.now_ms(), bytes.clone(), header, tag) {
            Ok(placed) => return Some(placed),
            Err((_, AppendError::Refused(_))) => return None,
            Err((_, AppendError::Full)) => disk.sleep(Duration::from_millis(1)).await,
        }
    }
    panic!("no room comes: {:?}", engine.metrics());
}

fn fault(path: &str, operation: Operation, kind: ErrorKind) -> Fault {
    Fault { path_contains: path.to_owned(), operation, skip: 0, count: u32::MAX, kind }
}

/// The partitions' whole content in another life.
fn after_crash(sim: Sim, crash: Crash, partitions: i32, expected: Vec<Vec<(i64, Vec<u8>)>>) -> Sim {
    let sim = sim.crash(crash);
    let disk = sim.disk();
    sim.run(async move {
        let (engine, _, slots, findings) = node(&disk, 2, partitions).await;
        assert!(findings.is_empty(), "{findings:?}");
        for (slot, expected) in slots.iter().zip(&expected) {
            let found = read_all(&engine, *slot).await;
            assert_eq!(&found[..expected.len()], &expected[..]);
        }
        engine.stop().await;
    })
    .unwrap();
    sim
}

#[test]
fn a_full_disk_refuses_what_has_no_space_and_recovers() {
    run(async |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 2).await;
        let mut kept = produce(&disk, &engine, &sink, &slots, 5).await;
        disk.inject(fault(".log", Operation::Length, ErrorKind::StorageFull));
        let mut refused = 0;
        for tag in 1000..1400 {
            let (bytes, header) = batch(tag, 1, 1000);
            let placed = loop {
                match engine.append(slots[0], disk.now_ms(), bytes.clone(), &header, tag) {
                    Ok(placed) => break placed,
                    Err((_, AppendError::Full)) => disk.sleep(Duration::from_millis(1)).await,
                    Err(refused) => panic!("{refused:?}"),
                }
            };
            until_settled(&disk, &sink, 1).await;
            match sink.0.borrow_mut().answers.pop().unwrap().1 {
                Ok(()) => kept[0].push((placed.base_offset.0, bytes[61..].to_vec())),
                Err(error) => {
                    assert_eq!(error, ErrorCode::KafkaStorageError);
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "space ran out");
        assert!(engine.metrics().storage_full > 0);
        assert_eq!(read_all(&engine, slots[0]).await, kept[0], "reads go on, and offsets have no gap");
        assert!(sink.0.borrow().offline.is_empty());
        disk.clear_faults();
        let more = produce(&disk, &engine, &sink, &slots, 3).await;
        assert_eq!(more[0].len(), 3, "it recovers");
        kept[0].extend(more[0].clone());
        assert_eq!(read_all(&engine, slots[0]).await, kept[0]);
        engine.stop().await;
    });
}

#[test]
fn a_segment_that_cannot_be_written_takes_its_partition_offline_and_loses_nothing() {
    let kept: Rc<RefCell<Vec<_>>> = Rc::default();
    let seen = kept.clone();
    let sim = run(async move |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 2).await;
        let mut all = produce(&disk, &engine, &sink, &slots, 20).await;
        disk.inject(fault("t-0/", Operation::Write, ErrorKind::Other));
        disk.sleep(Duration::from_secs(1)).await;
        assert_eq!(sink.0.borrow().offline.len(), 1);
        assert_eq!(engine.read(slots[0], Offset(0), 100, true).err(), Some(ReadError::Offline));
        let (bytes, header) = batch(1, 1, 100);
        let refused = engine.append(slots[0], 0, bytes, &header, 1).unwrap_err().1;
        assert_eq!(refused, AppendError::Refused(ErrorCode::KafkaStorageError));
        // The other goes on, for longer than the journal has files: RELOG keeps it free.
        for _ in 0..15 {
            let more = produce(&disk, &engine, &sink, &slots[1..], 40).await;
            all[1].extend(more[0].clone());
            disk.sleep(Duration::from_millis(300)).await;
        }
        let metrics = engine.metrics();
        assert_eq!(metrics.partitions_offline, 1);
        assert!(metrics.journal_files_free > 0 && metrics.checkpoints > 3, "{metrics:?}");
        assert_eq!(read_all(&engine, slots[1]).await, all[1]);
        *seen.borrow_mut() = all;
        disk.clear_faults();
    });
    let kept = kept.take();
    after_crash(sim, Crash::Power, 2, kept);
}

/// A node whose parts run with `settings`, and what ended it.
async fn node_with(disk: &SimDisk, settings: EngineSettings) -> (TestEngine, TestSink, Vec<Slot>, Ended) {
    recovered(disk, 1, 0).await;
    let (engine, sink, ended) = started(disk, settings, Vec::new());
    engine.prepare().await;
    let mut slots = Vec::new();
    for p in 0..2 {
        let made = engine.create_partition(id(p), &format!("t-{p}"), config(), LeaderEpoch(1)).await;
        slots.push(made.unwrap());
    }
    (engine, sink, slots, ended)
}

/// Appends to one partition until the engine has ended. `None` when that takes longer than anybody waits.
async fn until_ended(disk: &SimDisk, engine: &TestEngine, slot: Slot, ended: &Ended) -> Option<String> {
    let (bytes, header) = batch(7, 1, 2_000);
    for tag in 0..20_000 {
        if let Some(said) = &*ended.borrow() {
            return Some(said.clone());
        }
        if engine.append(slot, disk.now_ms(), bytes.clone(), &header, tag).is_err() {
            disk.sleep(Duration::from_millis(1)).await;
        }
    }
    None
}

/// Of a directory whose sync failed nothing is sure, so its partition's journal stays; the others go on until there is no
/// more room for it.
#[test]
fn a_directory_that_cannot_be_synced_stops_no_other_partition_before_the_journal_is_full() {
    run(async |disk| {
        let settings = EngineSettings { journal_files: 8, ..settings(1, 0, 1) };
        let (engine, sink, slots, ended) = node_with(&disk, settings).await;
        disk.inject(fault("t-0", Operation::Sync, ErrorKind::Other));
        produce(&disk, &engine, &sink, &slots, 20).await;
        disk.sleep(Duration::from_secs(1)).await;
        assert_eq!(sink.0.borrow().offline.len(), 1);
        let before = engine.metrics().checkpoints;
        let others = produce(&disk, &engine, &sink, &slots[1..], 40).await;
        assert_eq!(others[0].len(), 40);
        disk.sleep(Duration::from_secs(1)).await;
        assert!(engine.metrics().checkpoints > before, "checkpoints go on without it");
        let said = until_ended(&disk, &engine, slots[1], &ended).await.expect("it ends, it does not hang");
        assert!(said.contains("t-0") && said.contains("offline"), "{said}");
    });
}

/// A topic that is deleted while the directory of its new segment is being synced.
#[test]
fn a_checkpoint_needs_no_directory_that_has_gone() {
    let takes = Duration::from_secs(2);
    let sim = Sim::new(1, SimOptions { sync_all_takes: takes, ..SimOptions::default() });
    let disk = sim.disk();
    sim.run(async move {
        let (engine, sink, slots, _) = node_with(&disk, settings(1, 0, 1)).await;
        produce(&disk, &engine, &sink, &slots, 4).await;
        // In the midst of the first checkpoint's sync.
        disk.sleep(takes / 2).await;
        let deleting = engine.clone();
        disk.spawn(async move { deleting.delete_partition(&id(0)).await.unwrap() });
        disk.sleep(takes).await;
        assert_eq!(engine.metrics().checkpoints, 1, "the first is made all the same");
    })
    .unwrap();
}

/// What an offline partition has in memory is given back by no fill: where it is most of what there is, appends would wait
/// for ever.
#[test]
fn memory_full_of_an_offline_partition_ends_the_engine() {
    run(async |disk| {
        let settings = EngineSettings {
            staged_bytes_max: 128 << 10,
            bulk_bytes_min: 1 << 30,
            journal_file_bytes: 2 << 20,
            checkpoint_bytes: 1 << 20,
            checkpoint_interval: Duration::from_secs(1000),
            ..settings(1, 0, 1)
        };
        let (engine, sink, slots, ended) = node_with(&disk, settings).await;
        disk.inject(fault("t-0/", Operation::Write, ErrorKind::Other));
        // At once, so that it is one group: three quarters of the memory.
        for tag in 0..48 {
            let (bytes, header) = batch(tag, 1, 2_000);
            engine.append(slots[0], 0, bytes, &header, tag).unwrap();
        }
        until_settled(&disk, &sink, 48).await;
        let said = until_ended(&disk, &engine, slots[1], &ended).await.expect("it ends, it does not hang");
        assert!(said.contains("t-0"), "{said}");
    });
}

/// Without space for a third journal file nothing but a checkpoint makes room, and nothing else asks for one.
#[test]
fn a_journal_that_cannot_grow_is_freed_before_the_interval() {
    run(async |disk| {
        let settings = EngineSettings {
            staged_bytes_max: 4 << 20,
            checkpoint_bytes: 4 << 20,
            checkpoint_interval: Duration::from_secs(1000),
            ..settings(1, 0, 1)
        };
        let (engine, _, slots, _) = node_with(&disk, settings).await;
        disk.inject(fault("journal/", Operation::Length, ErrorKind::StorageFull));
        let began = disk.monotonic();
        let (bytes, header) = batch(7, 1, 2_000);
        let mut taken = 0;
        // Four times what two files hold.
        while taken < 256 && disk.monotonic() - began < Duration::from_secs(60) {
            match engine.append(slots[0], 0, bytes.clone(), &header, taken) {
                Ok(_) => taken += 1,
                Err(_) => disk.sleep(Duration::from_millis(1)).await,
            }
        }
        let took = disk.monotonic() - began;
        assert!(
            taken == 256 && took < Duration::from_secs(10),
            "{taken} in {took:?}: {:?}",
            engine.metrics()
        );
    });
}

#[test]
fn a_journal_that_cannot_be_written_acknowledges_nothing_and_says_why() {
    let kept: Rc<RefCell<Vec<_>>> = Rc::default();
    let seen = kept.clone();
    let sim = run(async move |disk| {
        let recovered = recovered(&disk, 1, 1).await;
        let sink = TestSink::default();
        let engine =
            Engine::new(disk.clone(), settings(1, 0, 1), recovered.journal_files_of(0, 1), sink.clone());
        engine.prepare().await;
        let said: Rc<RefCell<Option<String>>> = Rc::default();
        let (journal, fault_said) = (engine.clone(), said.clone());
        disk.spawn(async move {
            let fault = journal.run_journal().await.unwrap_err();
            *fault_said.borrow_mut() = Some(fault.to_string());
        });
        let mut slots = Vec::new();
        for partition in recovered.partitions {
            slots.push(engine.adopt(partition).await.unwrap());
        }
        *seen.borrow_mut() = produce(&disk, &engine, &sink, &slots, 10).await;
        disk.inject(fault("journal/", Operation::Write, ErrorKind::Other));
        let (bytes, header) = batch(500, 1, 100);
        engine.append(slots[0], 0, bytes, &header, 500).unwrap();
        disk.sleep(Duration::from_secs(1)).await;
        assert!(sink.0.borrow().answers.is_empty(), "nothing of that group is answered");
        let said = said.borrow().clone().unwrap();
        assert!(said.contains("journal/") && said.contains("acknowledged"), "{said}");
        disk.clear_faults();
    });
    let kept = kept.take();
    after_crash(sim, Crash::Power, 1, kept);
}

/// Flips a bit within the first partition's batch of the second group. Returns in which file.
fn flip_in_second_group(disk: &SimDisk) -> String {
    let files = disk.files();
    let batch = |journal: &[u8]| {
        let wanted = |at: &usize| {
            let second = journal[at / 4096 * 4096..].starts_with(b"FLUMGRUP");
            second && journal[*at..].starts_with(&[0, 0, 0, 0, 0, 0, 0, 100])
        };
        (4096..journal.len()).find(wanted)
    };
    let mut journals = files.iter().filter(|(path, _)| path.starts_with("journal/"));
    let (path, at) = journals.find_map(|(path, journal)| Some((path, batch(journal)?))).unwrap();
    disk.corrupt(path, at as u64 + 3, 0x10).unwrap();
    path.clone()
}

/// Its file may be in the midst of being laid out anew, and a partition that was made since has nothing in it.
#[test]
fn a_journal_that_a_checkpoint_covers_may_be_in_pieces() {
    let sim = run(async |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 1).await;
        produce(&disk, &engine, &sink, &slots, 4).await;
    });
    let sim = sim.crash(Crash::Power);
    let disk = sim.disk();
    sim.run(async move {
        assert!(recovered(&disk, 2, 1).await.findings.is_empty());
        flip_in_second_group(&disk);
        let after = recovered(&disk, 3, 2).await;
        assert!(after.findings.is_empty(), "{:?}", after.findings);
        assert!(after.partitions.iter().all(|partition| partition.offline.is_none()));
        assert_eq!(after.partitions[0].offsets().1, Offset(8));
    })
    .unwrap();
}

/// Three starts: of 40 batches some are in the journal alone; then the disk refuses, so that the partition is offline and
/// its journal stays; then a group of one of the journal's files, the `file`th from the front, is gone. What is found then.
fn after_a_start_without_a_disk(file: impl FnOnce(usize) -> usize + 'static) -> (Option<String>, Offset) {
    const BATCHES: u64 = 40;
    let sim = run(async |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 1).await;
        let acknowledged = produce(&disk, &engine, &sink, &slots, BATCHES).await;
        assert_eq!(acknowledged[0].len() as u64, BATCHES);
    });
    let sim = sim.crash(Crash::Power);
    let disk = sim.disk();
    sim.run(async move {
        disk.inject(fault("t-0/", Operation::Write, ErrorKind::Other));
        let refused = recovered(&disk, 2, 1).await;
        assert!(refused.partitions[0].offline.is_some(), "{:?}", refused.findings);
        disk.clear_faults();
        let mut journals: Vec<(Lsn, String, u64)> = Vec::new();
        for (path, bytes) in disk.files().into_iter().filter(|(path, _)| path.starts_with("journal/")) {
            let mut groups = bytes.chunks(4096).filter_map(|block| GroupHeader::decode(block).ok());
            if let (Some(first), Some(second)) = (groups.next(), groups.next()) {
                journals.push((first.lsn, path, second.position));
            }
        }
        journals.sort();
        let (_, path, second_group) = &journals[file(journals.len())];
        disk.corrupt(path, *second_group, 0xff).unwrap();
        let after = recovered(&disk, 3, 1).await;
        let partition = &after.partitions[0];
        (partition.offline.clone(), partition.offsets().1)
    })
    .unwrap()
}

/// The file was being laid out anew, since checkpoints cover it.
#[test]
fn a_partition_that_the_disk_kept_offline_comes_back_whole() {
    assert_eq!(after_a_start_without_a_disk(|_| 0), (None, Offset(80)));
}

#[test]
fn a_partition_that_the_disk_kept_offline_stays_so_where_its_journal_has_a_hole() {
    let (offline, _) = after_a_start_without_a_disk(|files| files - 1);
    let reason = offline.expect("what was acknowledged is gone");
    assert!(reason.contains("are missing"), "{reason}");
}

#[test]
fn a_flipped_bit_in_acknowledged_journal_data_is_reported_and_never_cut() {
    let sim = run(async |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 2).await;
        // No checkpoint in between: what counts is in the journal alone.
        produce(&disk, &engine, &sink, &slots, 4).await;
    });
    let sim = sim.crash(Crash::Power);
    let disk = sim.disk();
    sim.run(async move {
        let path = flip_in_second_group(&disk);
        for incarnation in 2..4 {
            let recovered = recovered(&disk, incarnation, 2).await;
            let offline: Vec<&str> =
                recovered.partitions.iter().filter_map(|p| p.offline.as_deref()).collect();
            assert_eq!(offline.len(), 1, "only the partition concerned: {:?}", recovered.findings);
            assert!(offline[0].contains(&format!("{path} at position")), "{offline:?}");
            assert!(recovered.journal_files.iter().any(|file| !file.usable), "kept");
            assert_eq!(recovered.partitions[1].offsets().1, Offset(8), "the other is whole");
        }
    })
    .unwrap();
}

#[test]
fn a_torn_tail_is_cut() {
    let sim = run(async |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 1).await;
        produce(&disk, &engine, &sink, &slots, 3).await;
    });
    let sim = sim.crash(Crash::Power);
    let disk = sim.disk();
    sim.run(async move {
        // The last group alone: nothing says that it was durable.
        let files = disk.files();
        let group = |journal: &[u8]| {
            (0..journal.len()).step_by(4096).rfind(|at| journal[*at..].starts_with(b"FLUMGRUP"))
        };
        let mut journals = files.iter().filter(|(path, _)| path.starts_with("journal/"));
        let (path, last) = journals.find_map(|(path, journal)| Some((path, group(journal)?))).unwrap();
        disk.corrupt(path, last as u64 + 300, 1).unwrap();
        let recovered = recovered(&disk, 2, 1).await;
        assert!(recovered.findings.is_empty(), "{:?}", recovered.findings);
        assert_eq!(recovered.partitions[0].offsets().1, Offset(4));
    })
    .unwrap();
}

#[test]
fn a_corrupt_checkpoint_takes_its_partitions_offline() {
    let sim = run(async |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 1).await;
        produce(&disk, &engine, &sink, &slots, 3).await;
        disk.sleep(Duration::from_secs(1)).await;
        assert!(engine.metrics().checkpoints > 0);
    });
    let sim = sim.crash(Crash::Power);
    let disk = sim.disk();
    sim.run(async move {
        let checkpoint =
            disk.files().keys().find(|path| path.starts_with("checkpoint/1-0-")).cloned().unwrap();
        disk.corrupt(&checkpoint, 60, 1).unwrap();
        let recovered = recovered(&disk, 2, 1).await;
        assert!(
            recovered.partitions[0].offline.as_deref().unwrap().contains(&checkpoint),
            "{:?}",
            recovered.findings
        );
    })
    .unwrap();
}

#[test]
fn deleted_partitions_leave_nothing_and_their_names_can_be_used_again() {
    run(async |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 1).await;
        produce(&disk, &engine, &sink, &slots, 3).await;
        let (bytes, header) = batch(900, 1, 100);
        engine.append(slots[0], 0, bytes, &header, 900).unwrap();
        engine.delete_partition(&id(0)).await.unwrap();
        until_settled(&disk, &sink, 1).await;
        assert_eq!(engine.partition(&id(0)), None);
        assert_eq!(engine.read(slots[0], Offset(0), 1, true).err(), Some(ReadError::Gone));
        let again = PartitionId { topic: TopicId([2; 16]), partition: 0 };
        let slot = engine.create_partition(again, "t-0", config(), LeaderEpoch(0)).await.unwrap();
        assert_eq!(engine.offsets(slot).unwrap(), Offsets::default());
        disk.sleep(Duration::from_secs(120)).await;
        assert!(disk.files().keys().all(|path| !path.contains("-delete")), "{:?}", disk.files().keys());
        engine.stop().await;
    });
}

/// Retention is removing files of a topic when that is deleted and made again under its name.
#[test]
fn what_is_removed_of_a_deleted_topic_is_not_that_of_its_namesake() {
    for seed in 0..300 {
        let sim = Sim::new(seed, SimOptions::default());
        let disk = sim.disk();
        sim.run(async move {
            let (engine, sink, slots, _) = node(&disk, 1, 1).await;
            produce(&disk, &engine, &sink, &slots, 80).await;
            disk.sleep(Duration::from_secs(1)).await;
            engine.delete_records(slots[0], Offset(160), 1).unwrap();
            until_settled(&disk, &sink, 1).await;
            sink.0.borrow_mut().answers.clear();
            engine.delete_partition(&id(0)).await.unwrap();
            let again = PartitionId { topic: TopicId([2; 16]), partition: 0 };
            let slot = engine.create_partition(again, "t-0", config(), LeaderEpoch(0)).await.unwrap();
            disk.sleep(Duration::from_secs(1)).await;
            assert!(disk.files().contains_key("t-0/00000000000000000000.log"), "seed {seed}");
            let kept = produce(&disk, &engine, &sink, &[slot], 3).await;
            assert_eq!(read_all(&engine, slot).await, kept[0]);
        })
        .unwrap();
    }
}

#[test]
fn delete_records_moves_the_log_start_durably_and_frees_segments() {
    let sim = run(async |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 1).await;
        produce(&disk, &engine, &sink, &slots, 200).await;
        disk.sleep(Duration::from_secs(1)).await;
        let segments = |disk: &SimDisk| disk.files().keys().filter(|path| path.ends_with(".log")).count();
        assert!(segments(&disk) > 2);
        assert_eq!(
            engine.delete_records(slots[0], Offset(401), 1).unwrap_err().1,
            ErrorCode::OffsetOutOfRange
        );
        assert_eq!(engine.delete_records(slots[0], Offset(390), 1).unwrap(), Offset(390));
        until_settled(&disk, &sink, 1).await;
        assert_eq!(engine.offsets(slots[0]).unwrap().log_start, Offset(390));
        assert_eq!(engine.read(slots[0], Offset(389), 1, true).err(), Some(ReadError::OffsetOutOfRange));
        disk.sleep(Duration::from_secs(1)).await;
        // Virtual time may leap: what counts is that it comes.
        for _ in 0..100 {
            if segments(&disk) > 1 {
                disk.sleep(Duration::from_millis(50)).await;
            }
        }
        assert_eq!(segments(&disk), 1, "{:?}", disk.files().keys());
    });
    let sim = sim.crash(Crash::Power);
    let disk = sim.disk();
    sim.run(async move {
        let recovered = recovered(&disk, 2, 1).await;
        assert_eq!(recovered.partitions[0].offsets(), (Offset(390), Offset(400)));
    })
    .unwrap();
}

#[test]
fn a_retry_is_answered_with_its_first_offset_and_only_when_that_is_durable() {
    run(async |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 1).await;
        let make = |sequence: i32| {
            let mut builder = BatchBuilder::new(Compression::None).producer(5, 0, sequence);
            builder.push(NewRecord { timestamp: 1, value: Some(b"x"), ..NewRecord::default() });
            let bytes = Bytes::from(builder.build());
            let header = BatchHeader::parse(&bytes).unwrap();
            (bytes, header)
        };
        let (first, header) = make(0);
        engine.append(slots[0], 0, first.clone(), &header, 1).unwrap();
        let retried = engine.append(slots[0], 0, first.clone(), &header, 2).unwrap();
        assert!(retried.duplicate && retried.base_offset == Offset(0));
        assert!(sink.0.borrow().answers.is_empty());
        until_settled(&disk, &sink, 2).await;
        assert_eq!(engine.append(slots[0], 0, first, &header, 3).unwrap().base_offset, Offset(0));
        until_settled(&disk, &sink, 3).await;
        let (gap, header) = make(5);
        let refused = engine.append(slots[0], 0, gap, &header, 4).unwrap_err().1;
        assert_eq!(refused, AppendError::Refused(ErrorCode::OutOfOrderSequenceNumber));
        engine.stop().await;
    });
}

#[test]
fn a_clean_stop_leaves_segments_of_their_true_length_and_nothing_to_replay() {
    let sim = run(async |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 3).await;
        let kept = produce(&disk, &engine, &sink, &slots, 10).await;
        engine.stop().await;
        let size: usize = kept[0].iter().map(|(_, records)| records.len() + 61).sum();
        assert_eq!(disk.files()["t-0/00000000000000000000.log"].len(), size);
    });
    let sim = sim.crash(Crash::Power);
    let disk = sim.disk();
    sim.run(async move {
        let recovered = recovered(&disk, 2, 3).await;
        assert_eq!(recovered.written_bytes, 0);
        assert!(recovered.findings.is_empty());
    })
    .unwrap();
}

#[test]
fn a_failed_sync_is_never_believed_later() {
    let kept: Rc<RefCell<Vec<_>>> = Rc::default();
    let seen = kept.clone();
    let sim = run(async move |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 2).await;
        let mut all = produce(&disk, &engine, &sink, &slots, 10).await;
        // A sync fails, of one partition's bulk.
        disk.inject(Fault { count: 1, ..fault("t-0", Operation::Sync, ErrorKind::Other) });
        let (big, header) = batch(9, 1, 40_000);
        engine.append(slots[0], 0, big, &header, 9).ok();
        for _ in 0..40 {
            if sink.0.borrow().offline.is_empty() {
                disk.sleep(Duration::from_millis(50)).await;
            }
        }
        let offline = sink.0.borrow().offline.clone();
        assert!(
            offline.iter().all(|(_, reason)| reason.contains("sync")) && !offline.is_empty(),
            "{offline:?}"
        );
        sink.0.borrow_mut().answers.clear();
        let more = produce(&disk, &engine, &sink, &slots, 30).await;
        assert!(more[0].is_empty());
        all[1].extend(more[1].clone());
        disk.sleep(Duration::from_secs(1)).await;
        *seen.borrow_mut() = all;
    });
    let kept = kept.take();
    after_crash(sim, Crash::Power, 2, kept);
}

/// Runs `trouble` on a node of which everything is staged and nothing filled, and expects the engine to end for a reason
/// that holds `reason`; what was acknowledged is there in the next life.
fn ends_the_engine(trouble: Fault, reason: &'static str) {
    let kept: Rc<RefCell<Vec<_>>> = Rc::default();
    let seen = kept.clone();
    let sim = run(async move |disk| {
        let recovered = recovered(&disk, 1, 2).await;
        let (engine, sink, ended) = started(&disk, settings(1, 0, 1), recovered.journal_files_of(0, 1));
        engine.prepare().await;
        let mut slots = Vec::new();
        for partition in recovered.partitions {
            slots.push(engine.adopt(partition).await.unwrap());
        }
        *seen.borrow_mut() = produce(&disk, &engine, &sink, &slots, 10).await;
        disk.inject(trouble);
        for tag in 0..10_000 {
            if ended.borrow().is_some() {
                break;
            }
            let (bytes, header) = batch(tag, 1, 2000);
            engine.append(slots[0], 0, bytes, &header, tag).ok();
            disk.sleep(Duration::from_millis(5)).await;
        }
        let said = ended.borrow().clone().expect("the engine has ended");
        assert!(said.contains(reason), "{said}");
        engine.stop().await;
        disk.clear_faults();
    });
    let kept = kept.take();
    after_crash(sim, Crash::Power, 2, kept);
}

#[test]
fn a_failed_sync_of_everything_ends_the_engine() {
    let trouble = Fault { count: 1, ..fault("sync_all", Operation::Sync, ErrorKind::Other) };
    ends_the_engine(trouble, "sync of the data folder");
}

#[test]
fn a_journal_file_that_cannot_be_made_ends_the_engine() {
    ends_the_engine(fault("journal/", Operation::Length, ErrorKind::Other), "journal/");
}

#[test]
fn retention_by_time_rolls_and_empties_a_log() {
    run(async |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 1).await;
        produce(&disk, &engine, &sink, &slots, 50).await;
        engine.set_config(slots[0], LogConfig { retention_ms: 1000, ..config() });
        for _ in 0..2000 {
            if engine.offsets(slots[0]).unwrap().log_start < Offset(100) {
                disk.sleep(Duration::from_secs(1)).await;
            }
        }
        assert_eq!(engine.offsets(slots[0]).unwrap().log_start, Offset(100));
        for _ in 0..100 {
            if engine.size_bytes(slots[0]) > 0 {
                disk.sleep(Duration::from_secs(10)).await;
            }
        }
        assert_eq!(engine.size_bytes(slots[0]), 0);
        let more = produce(&disk, &engine, &sink, &slots, 2).await;
        assert_eq!(more[0][0].0, 100);
        engine.stop().await;
        assert!(disk.files().contains_key("t-0/00000000000000000100.log"), "{:?}", disk.files().keys());
    });
}

#[test]
fn offsets_are_found_by_time_on_disk_and_in_memory() {
    run(async |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 1).await;
        engine.set_config(slots[0], LogConfig { retention_ms: -1, ..config() });
        for round in 0..120i64 {
            let mut builder = BatchBuilder::new(Compression::None);
            for at in 0..3 {
                let timestamp = 1_000_000 + round * 30 + at * 10;
                builder.push(NewRecord { timestamp, value: Some(&[7; 400]), ..NewRecord::default() });
            }
            let bytes = Bytes::from(builder.build());
            let header = BatchHeader::parse(&bytes).unwrap();
            engine.append(slots[0], 0, bytes, &header, round as u64).unwrap();
            until_settled(&disk, &sink, round as usize + 1).await;
        }
        for wait in [0, 2] {
            disk.sleep(Duration::from_secs(wait)).await;
            for offset in [0i64, 1, 100, 200, 358, 359] {
                let wanted = Timestamp(1_000_000 + offset * 10 - 5);
                let found = engine.offset_for_timestamp(slots[0], wanted).await.unwrap();
                let found = found.unwrap_or_else(|| panic!("{offset} after {wait}: {:?}", engine.metrics()));
                assert_eq!((found.0, found.1), (Offset(offset), Timestamp(1_000_000 + offset * 10)));
            }
            assert_eq!(engine.offset_for_timestamp(slots[0], Timestamp(1_003_591)).await.unwrap(), None);
            let greatest = engine.max_timestamp(slots[0]).await.unwrap().unwrap();
            assert_eq!((greatest.0, greatest.1), (Offset(359), Timestamp(1_003_590)));
        }
        engine.stop().await;
    });
}

#[test]
fn a_relaxed_topic_is_acknowledged_when_its_group_is_formed() {
    run(async |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 2).await;
        engine.set_config(slots[1], LogConfig { flush_messages: i64::MAX, ..config() });
        produce(&disk, &engine, &sink, &slots, 2).await;
        for (slot, tag) in [(slots[0], 10), (slots[1], 11)] {
            let (bytes, header) = batch(tag, 1, 100);
            engine.append(slot, 0, bytes, &header, tag).unwrap();
        }
        until_settled(&disk, &sink, 2).await;
        let order: Vec<u64> = sink.0.borrow().answers.iter().map(|(tag, _)| *tag).collect();
        assert_eq!(order, [11, 10], "the relaxed one first, though it came last");
        engine.stop().await;
    });
}

/// A folder that lost its checkpoints is refused as it is: nothing tells acknowledged records from others any more.
#[test]
fn without_a_checkpoint_nothing_is_taken_for_new() {
    run(async |disk| {
        let (engine, sink, slots, _) = node(&disk, 1, 2).await;
        produce(&disk, &engine, &sink, &slots, 20).await;
        engine.stop().await;
        let before = disk.files();
        disk.remove_directory("checkpoint").await.unwrap();
        let settings = RecoverySettings::new(Incarnation(2), DIRECTORY_ID);
        let error = recover(&disk, &settings, &known(2, 2)).await.err().unwrap().to_string();
        assert!(error.contains("checkpoint is empty, but t-0 has been in use"), "{error}");
        for (path, content) in before.iter().filter(|(path, _)| path.starts_with("t-")) {
            assert_eq!(disk.files().get(path), Some(content), "{path}");
        }
    });
}
