//! The metadata log on the simulated disk: many lives of one machine, and what a damaged file is answered with.

use std::cell::RefCell;

use flumen_core::metadata::{
    BrokerRegistration, ClusterId, ConfigResource, DirectoryId, Listener, PartitionChange, PartitionRecord,
};
use flumen_core::types::{Incarnation, LeaderEpoch, NodeId, TopicId};

use super::*;
use crate::lifecycle::partition_metadata;
use crate::sim::{Crash, Fault, Operation, Random, Sim, SimDisk, SimOptions, Stop};

fn uuids(seed: u64) -> impl FnMut() -> [u8; 16] + 'static {
    let mut random = Random::new(seed);
    move || {
        let mut uuid = [0; 16];
        random.fill(&mut uuid);
        uuid
    }
}

/// A decision of one record or of three.
fn decision(n: u64) -> Vec<Record> {
    let setting = |name: &str, value: String| Record::Config {
        resource: ConfigResource::Topic("t".into()),
        name: name.into(),
        value: Some(value),
    };
    // Some are longer than a block.
    let long = "x".repeat(if n.is_multiple_of(7) { 9000 } else { (n % 50) as usize });
    match n % 3 {
        0 => vec![setting("a", n.to_string()), setting("b", long), setting("c", n.to_string())],
        _ => vec![setting("a", format!("{n}{long}"))],
    }
}

fn offset_after(decisions: u64) -> u64 {
    (0..decisions).map(|n| decision(n).len() as u64).sum()
}

fn image_after(decisions: u64) -> Image {
    let mut image = Image::default();
    for record in (0..decisions).flat_map(decision) {
        image.replay(&record).expect("fits");
    }
    image
}

async fn open(
    disk: &SimDisk,
    epoch: u64,
    snapshot_bytes: u64,
) -> Result<(MetadataLog<SimDisk>, Image), MetadataLogError> {
    MetadataLog::recover(
        disk.clone(),
        epoch,
        snapshot_bytes,
        uuids(disk.monotonic().as_nanos() as u64 ^ epoch),
    )
    .await
}

/// What `verify` makes of the files as they are now.
fn verified(disk: &SimDisk) -> Result<Image, MetadataLogError> {
    let files = disk.files();
    let names = files.keys().filter_map(|path| path.strip_prefix("metadata/")).map(str::to_owned);
    verify(&names.collect::<Vec<_>>(), |path| files.get(path).cloned().ok_or(io::ErrorKind::NotFound.into()))
}

/// One life: recovers, checks that nothing acknowledged is missing, appends until it is killed.
async fn life(disk: SimDisk, epoch: u64, acknowledged: Rc<RefCell<u64>>, appends: u64) {
    let seen = disk.files().keys().any(|path| path.ends_with(".log")).then(|| verified(&disk));
    let (mut log, mut image) = open(&disk, epoch, 20_000).await.expect("recovers");
    if let Some(seen) = seen {
        assert_eq!(seen.expect("what recovers is sound"), image);
    }
    let had = *acknowledged.borrow();
    let recovered = (had..=had + 1).find(|n| offset_after(*n) == image.offset());
    let recovered =
        recovered.unwrap_or_else(|| panic!("{had} decisions acknowledged, found {}", image.offset()));
    assert_eq!(image, image_after(recovered), "what is recovered is what was appended");
    // What recovery shows, others may have seen.
    *acknowledged.borrow_mut() = recovered;
    for n in recovered..recovered + appends {
        let records = decision(n);
        log.append(&records).await.expect("no fault was asked for");
        *acknowledged.borrow_mut() = n + 1;
        records.iter().for_each(|record| image.replay(record).expect("fits"));
        if log.is_snapshot_due() {
            log.snapshot(&image).await.expect("no fault was asked for");
        }
    }
}

#[test]
fn what_was_acknowledged_survives_crashes_at_any_moment() {
    for seed in 0..50 {
        let mut random = Random::new(seed);
        let mut sim = Sim::new(seed, SimOptions::default());
        let acknowledged = Rc::new(RefCell::new(0));
        for epoch in 1..12 {
            // Often inside recovery.
            let steps = if random.chance(1, 3) { random.between(1, 15) } else { random.between(1, 200) };
            sim.crash_after(steps);
            let outcome = sim.run(life(sim.disk(), epoch, Rc::clone(&acknowledged), 40));
            assert!(matches!(outcome, Ok(()) | Err(Stop::Crashed)), "seed {seed}: {outcome:?}");
            sim = sim.crash(if random.chance(1, 2) { Crash::Power } else { Crash::Process });
        }
        sim.run(life(sim.disk(), 99, acknowledged, 5)).unwrap_or_else(|stop| panic!("seed {seed}: {stop:?}"));
    }
}

/// Runs on a fresh simulated disk.
fn on_disk<T: 'static>(work: impl AsyncFn(SimDisk) -> T + 'static) -> T {
    let sim = Sim::new(1, SimOptions::default());
    let disk = sim.disk();
    sim.run(async move { work(disk).await }).expect("no crash was asked for")
}

async fn filled(disk: &SimDisk, decisions: u64, snapshot_bytes: u64) -> Image {
    let (mut log, mut image) = open(disk, 1, snapshot_bytes).await.expect("recovers");
    for n in 0..decisions {
        log.append(&decision(n)).await.expect("appends");
        decision(n).iter().for_each(|record| image.replay(record).expect("fits"));
        if log.is_snapshot_due() {
            log.snapshot(&image).await.expect("snapshot");
        }
    }
    image
}

#[test]
fn a_folder_with_partitions_and_no_metadata_is_not_a_new_one() {
    on_disk(async |disk| {
        filled(&disk, 20, 1 << 30).await;
        for directory in ["journal", "t-0"] {
            disk.create_directory(directory).await.expect("made");
        }
        disk.write_file("t-0/partition.metadata", b"version: 0\n", true).await.expect("written");
        disk.remove_directory("metadata").await.expect("removed");
        let error = open(&disk, 2, 1 << 30).await.err().expect("refused").to_string();
        assert!(error.contains("metadata/00000000000000000000.log is missing"), "{error}");
        assert!(disk.files().contains_key("t-0/partition.metadata"));
    });
}

#[test]
fn a_flipped_bit_is_said_with_its_place_and_changes_nothing() {
    on_disk(async |disk| {
        filled(&disk, 20, 1 << 30).await;
        let path = log_path(0);
        let good = disk.files()[&path].clone();
        let second = (4104..).find(|at| good[*at..*at + 4] == *b"FLMF").expect("a second frame");
        for (position, said) in
            [(5, 0), (20, 0), (4096 + 9, 4096), (4096 + 60, 4096), (second as u64 + 45, second as u64)]
        {
            disk.corrupt(&path, position, 0x10).expect("there");
            let before = disk.files();
            match verified(&disk).expect_err("unsound") {
                MetadataLogError::Corrupt { position: at, .. } => assert_eq!(at, said),
                other => panic!("{other}"),
            }
            match open(&disk, 2, 1 << 30).await.err().expect("refused") {
                MetadataLogError::Corrupt { file, position: at, reason } => {
                    assert_eq!((file.as_str(), at), (path.as_str(), said), "{reason}");
                }
                other => panic!("{other}"),
            }
            assert_eq!(disk.files(), before);
            disk.corrupt(&path, position, 0x10).expect("there");
        }
        let (log, image) = open(&disk, 2, 1 << 30).await.expect("whole again");
        assert_eq!((log.next_offset(), image), (offset_after(20), image_after(20)));
    });
}

#[test]
fn a_torn_tail_is_cut_and_what_follows_it_never_comes_back() {
    on_disk(async |disk| {
        filled(&disk, 5, 1 << 30).await;
        let path = log_path(0);
        let whole = disk.files()[&path].clone();
        let mut last = 4096;
        let mut end = 4096;
        while whole[end..end + 4] == *b"FLMF" {
            last = end;
            let len = u32::from_le_bytes(whole[end + 4..end + 8].try_into().expect("four")) as usize;
            end = (end + 40 + len).next_multiple_of(8);
        }
        disk.corrupt(&path, last as u64 + 41, 0xff).expect("there");
        assert_eq!(verified(&disk).expect("a torn tail is no corruption"), image_after(4));
        let (mut log, image) = open(&disk, 2, 1 << 30).await.expect("a torn tail is no corruption");
        assert_eq!(image, image_after(4));
        assert!(disk.files()[&path][last..].iter().all(|byte| *byte == 0));
        log.append(&decision(4)).await.expect("appends");
        assert_eq!(open(&disk, 3, 1 << 30).await.expect("recovers").1, image_after(5));
    });
}

/// A topic is made by a frame first and then by directories, so that one whose directories are there was made by a whole one.
#[test]
fn a_last_frame_is_not_torn_whose_partitions_are_there() {
    on_disk(async |disk| {
        filled(&disk, 5, 1 << 30).await;
        let path = log_path(0);
        let whole = disk.files()[&path].clone();
        let last = (4096..whole.len() - 8).rfind(|at| whole[*at..*at + 4] == *b"FLMF").expect("frames");
        disk.corrupt(&path, last as u64 + 41, 0xff).expect("there");
        disk.create_directory("t-0").await.expect("made");
        let metadata = partition_metadata(TopicId([7; 16]));
        disk.write_file("t-0/partition.metadata", metadata.as_bytes(), true).await.expect("written");
        let before = disk.files();
        match open(&disk, 2, 1 << 30).await.err().expect("refused") {
            MetadataLogError::Corrupt { position, reason, .. } => {
                assert_eq!(position, last as u64);
                assert!(reason.contains("t-0"), "{reason}");
            }
            other => panic!("{other}"),
        }
        assert_eq!(disk.files(), before);
        // One that is on its way to be removed says nothing.
        disk.rename("t-0", "t-0.1-delete").await.expect("renamed");
        assert_eq!(open(&disk, 2, 1 << 30).await.expect("a torn tail").1, image_after(4));
    });
}

/// Settings of a broker or topic may be as long as a string can be, and there may be many of them.
#[test]
fn a_snapshot_holds_the_longest_settings() {
    on_disk(async |disk| {
        let (mut log, mut image) = open(&disk, 1, 1 << 20).await.expect("recovers");
        for n in 0..1100 {
            let record = Record::Config {
                resource: ConfigResource::Topic(format!("t{n}")),
                name: "leader.replication.throttled.replicas".into(),
                value: Some("0".repeat(i16::MAX as usize)),
            };
            image.replay(&record).expect("fits");
            log.append(&[record]).await.expect("appends");
        }
        log.snapshot(&image).await.expect("snapshot");
        drop(log);
        assert_eq!(open(&disk, 2, 1 << 20).await.expect("recovers").1, image);
    });
}

#[test]
fn snapshots_replace_the_log_and_bound_it() {
    on_disk(async |disk| {
        let image = filled(&disk, 200, 20_000).await;
        let names: Vec<String> = disk.files().into_keys().collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let (log, recovered) = open(&disk, 2, 20_000).await.expect("recovers");
        assert_eq!(recovered, image);
        assert!(log.position < 40_000);

        // Without its snapshot the log is not all there is.
        let snapshot = names.iter().find(|name| name.ends_with(".snapshot")).expect("one");
        let position = 4096 + 50;
        disk.corrupt(snapshot, position, 1).expect("there");
        assert!(matches!(verified(&disk), Err(MetadataLogError::Corrupt { .. })));
        assert!(matches!(open(&disk, 2, 20_000).await.err(), Some(MetadataLogError::Corrupt { .. })));
        disk.remove_file(snapshot).await.expect("removed");
        assert!(matches!(verified(&disk), Err(MetadataLogError::Missing(_))));
        assert!(matches!(open(&disk, 2, 20_000).await.err(), Some(MetadataLogError::Missing(_))));
    });
}

#[test]
fn faults_of_the_disk() {
    on_disk(async |disk| {
        let (mut log, mut image) = open(&disk, 1, 1).await.expect("recovers");
        let fault = |path: &str, operation, kind| {
            let path_contains = path.to_owned();
            disk.inject(Fault { path_contains, operation, kind, skip: 0, count: 1 });
        };
        // A snapshot that fails costs nothing.
        log.append(&decision(0)).await.expect("appends");
        decision(0).iter().for_each(|record| image.replay(record).expect("fits"));
        fault(".tmp", Operation::Write, io::ErrorKind::StorageFull);
        assert!(log.snapshot(&image).await.is_err());
        log.append(&decision(1)).await.expect("appends");
        assert_eq!(open(&disk, 1, 1).await.expect("recovers").1, image_after(2));

        // A failed write ends it, whatever the disk does later.
        let (mut log, _) = open(&disk, 1, 1).await.expect("recovers");
        fault(".log", Operation::Write, io::ErrorKind::Other);
        assert!(matches!(log.append(&decision(2)).await, Err(AppendError::Failed(_))));
        assert!(matches!(log.append(&decision(2)).await, Err(AppendError::Failed(_))));
        assert!(!log.is_snapshot_due());

        // A full disk is met before anything is written.
        let (mut log, image) = open(&disk, 1, 1 << 30).await.expect("recovers");
        let had = image.offset();
        disk.set_capacity(disk.allocated());
        let huge = vec![Record::FeatureLevel { name: "x".repeat(3 << 20), level: 1 }];
        assert!(matches!(log.append(&huge).await, Err(AppendError::Full(_))));
        disk.set_capacity(1 << 40);
        log.append(&huge).await.expect("there is room again");
        assert_eq!(open(&disk, 1, 1 << 30).await.expect("recovers").1.offset(), had + 1);
    });
}

#[test]
fn records_come_back_as_they_were() {
    let topic = TopicId([0xf1; 16]);
    let records = vec![
        Record::ClusterId(ClusterId(*b"0123456789abcdef")),
        Record::FeatureLevel { name: "transaction.version".into(), level: 2 },
        Record::RegisterBroker(BrokerRegistration {
            node: NodeId(1),
            incarnation: Incarnation(u64::MAX),
            directory: DirectoryId([9; 16]),
            rack: Some("r".into()),
            listeners: vec![Listener { name: "PLAINTEXT".into(), host: "h".into(), port: 65535 }],
        }),
        Record::RegisterBroker(BrokerRegistration {
            node: NodeId(0),
            incarnation: Incarnation(0),
            directory: DirectoryId::default(),
            rack: None,
            listeners: vec![],
        }),
        Record::Topic { id: topic, name: "t".into() },
        Record::Partition(PartitionRecord {
            topic,
            partition: 0,
            replicas: vec![NodeId(1), NodeId(0)],
            isr: vec![NodeId(1)],
            leader: None,
            leader_epoch: LeaderEpoch(5),
            partition_epoch: 6,
        }),
        Record::PartitionChange(PartitionChange {
            topic,
            partition: 0,
            replicas: None,
            isr: Some(vec![]),
            leader: None,
        }),
        Record::PartitionChange(PartitionChange {
            topic,
            partition: 0,
            replicas: Some(vec![NodeId(0)]),
            isr: None,
            leader: Some(None),
        }),
        Record::PartitionChange(PartitionChange {
            topic,
            partition: 0,
            replicas: None,
            isr: None,
            leader: Some(Some(NodeId(0))),
        }),
        Record::Config {
            resource: ConfigResource::Topic("t".into()),
            name: "a".into(),
            value: Some(String::new()),
        },
        Record::Config { resource: ConfigResource::Broker(None), name: "a".into(), value: None },
        Record::Config {
            resource: ConfigResource::Broker(Some(NodeId(0))),
            name: "a".into(),
            value: Some("b".into()),
        },
        Record::RemoveTopic(topic),
        Record::ProducerIds { node: NodeId(-1), next: i64::MAX },
    ];
    assert_eq!(codec::decode(&codec::encode(&records)), Ok(records));
}

/// Bytes that are no FlatBuffer are an error, not a panic; the checksum is not what stands between.
#[test]
fn damaged_payloads_are_refused() {
    let good = codec::encode(&decision(3));
    let mut random = Random::new(3);
    for _ in 0..5000 {
        let mut bytes = good.clone();
        for _ in 0..random.between(1, 6) {
            let at = random.index(bytes.len());
            bytes[at] = random.next_u64() as u8;
        }
        bytes.truncate(random.index(bytes.len() + 1));
        let _ = codec::decode(&bytes);
    }
}
