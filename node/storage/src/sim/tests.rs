//! What the simulated disk promises, and that one seed is one run.

use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::disk::{BLOCK, Buffer, Disk, File, OpenMode};

const WRITE: OpenMode = OpenMode { create_new: false, write: true, synchronous: false };
const CREATE: OpenMode = OpenMode { create_new: true, write: true, synchronous: false };
const CREATE_SYNCHRONOUS: OpenMode = OpenMode { create_new: true, write: true, synchronous: true };

fn block(disk: &SimDisk, byte: u8) -> Rc<SimBuffer> {
    let mut buffer = disk.allocate(BLOCK);
    buffer.as_mut_slice().fill(byte);
    Rc::new(buffer)
}

fn sim(seed: u64) -> Sim {
    Sim::new(seed, SimOptions { keep_trace: true, ..SimOptions::default() })
}

/// What many seeds leave of what `work` did, as a sorted list without repetition.
fn survivors(crash: Crash, path: &str, work: impl AsyncFn(SimDisk) + Copy + 'static) -> Vec<Option<Vec<u8>>> {
    let mut all = Vec::new();
    for seed in 0..200 {
        let sim = sim(seed);
        let disk = sim.disk();
        sim.run(async move { work(disk).await }).expect("no crash was asked for");
        all.push(sim.crash(crash).disk().files().get(path).cloned());
    }
    all.sort();
    all.dedup();
    all
}

#[test]
fn what_was_synced_with_its_directory_survives() {
    let left = survivors(Crash::Power, "a", async |disk| {
        let file = disk.open("a", CREATE).await.expect("created");
        file.write_at(block(&disk, 7), 0).await.expect("written");
        file.sync().await.expect("synced");
        disk.sync_directory("").await.expect("synced");
    });
    assert_eq!(left, [Some(vec![7; BLOCK])]);
}

#[test]
fn a_name_is_lost_without_a_sync_of_its_directory() {
    let left = survivors(Crash::Power, "a", async |disk| {
        let file = disk.open("a", CREATE_SYNCHRONOUS).await.expect("created");
        file.write_at(block(&disk, 7), 0).await.expect("written");
    });
    assert_eq!(left, [None, Some(vec![7; BLOCK])]);
}

#[test]
fn unsynced_writes_are_kept_lost_or_torn_at_sectors() {
    let left = survivors(Crash::Power, "a", async |disk| {
        let file = disk.open("a", CREATE).await.expect("created");
        file.write_at(block(&disk, 1), 0).await.expect("written");
        file.sync().await.expect("synced");
        disk.sync_directory("").await.expect("synced");
        file.write_at(block(&disk, 2), 0).await.expect("written");
        file.write_at(block(&disk, 3), 0).await.expect("written");
    });
    let whole = |byte| Some(vec![byte; BLOCK]);
    assert!([1, 2, 3].iter().all(|byte| left.contains(&whole(*byte))), "each version survives in some run");
    let torn = left.iter().flatten().filter(|content| content.iter().any(|byte| *byte != content[0]));
    let mut torn_seen = 0;
    for content in torn {
        torn_seen += 1;
        assert!(content.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
    }
    assert!(torn_seen > 10, "only {torn_seen} torn blocks");
}

#[test]
fn a_killed_process_loses_nothing_that_completed_but_the_power_may_follow() {
    let work = async |disk: SimDisk| {
        let file = disk.open("a", CREATE).await.expect("created");
        file.write_at(block(&disk, 7), 0).await.expect("written");
    };
    assert_eq!(survivors(Crash::Process, "a", work), [Some(vec![7; BLOCK])]);
    let lost = (0..100).filter(|seed| {
        let sim = sim(*seed);
        let disk = sim.disk();
        sim.run(async move { work(disk).await }).expect("no crash was asked for");
        let sim = sim.crash(Crash::Process).crash(Crash::Power);
        sim.disk().files().get("a") != Some(&vec![7; BLOCK])
    });
    assert!(lost.count() > 10);
}

#[test]
fn a_cut_that_is_lost_takes_later_writes_beyond_it_along() {
    let left = survivors(Crash::Power, "a", async |disk| {
        let file = disk.open("a", CREATE).await.expect("created");
        file.write_at(block(&disk, 1), 0).await.expect("written");
        file.write_at(block(&disk, 1), BLOCK as u64).await.expect("written");
        file.sync().await.expect("synced");
        disk.sync_directory("").await.expect("synced");
        file.truncate(BLOCK as u64).await.expect("cut");
        file.write_at(block(&disk, 2), BLOCK as u64).await.expect("written");
    });
    let content = left.iter().flatten();
    assert!(left.iter().all(Option::is_some));
    for content in content {
        assert!(content[..BLOCK].iter().all(|byte| *byte == 1));
        let tail = &content[BLOCK..];
        let old = tail.contains(&1);
        let new = tail.contains(&2);
        assert!(!(old && new), "a block that was cut mixes with what was written after the cut");
    }
}

#[test]
fn a_failed_sync_is_not_made_good_by_the_next() {
    let lost = (0..50).filter(|seed| {
        let sim = sim(*seed);
        let disk = sim.disk();
        sim.run(async move {
            let file = disk.open("a", CREATE).await.expect("created");
            disk.sync_directory("").await.expect("synced");
            file.write_at(block(&disk, 7), 0).await.expect("written");
            let kind = std::io::ErrorKind::Other;
            disk.inject(Fault {
                path_contains: "a".into(),
                operation: Operation::Sync,
                skip: 0,
                count: 1,
                kind,
            });
            file.sync().await.expect_err("injected");
            file.sync().await.expect("the fault has passed");
            let (buffer, len) = file.read_at(0, BLOCK).await.expect("read");
            assert_eq!((len, buffer.as_slice()[0]), (BLOCK, 7), "readers still see it");
        })
        .expect("no crash was asked for");
        sim.crash(Crash::Power).disk().files()["a"] != vec![7; BLOCK]
    });
    assert!(lost.count() > 5);
}

#[test]
fn a_full_disk_says_so_and_removal_gives_space_back() {
    let sim = Sim::new(1, SimOptions { capacity: 4 * BLOCK as u64, ..SimOptions::default() });
    let disk = sim.disk();
    sim.run(async move {
        let file = disk.open("a", CREATE).await.expect("created");
        file.preallocate(3 * BLOCK as u64).await.expect("there is space");
        let error = file.preallocate(5 * BLOCK as u64).await.expect_err("there is none");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        disk.write_file("b", b"x", false).await.expect("the last block");
        let error = disk.write_file("c", b"x", true).await.expect_err("full");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        disk.remove_file("a").await.expect("removed");
        disk.write_file("c", b"x", true).await.expect_err("still open, so still there");
        drop(file);
        disk.write_file("c", b"x", true).await.expect("space is back");
        assert_eq!(disk.read_file("c", 1).await.expect("read"), b"x");
    })
    .expect("no crash was asked for");
}

#[test]
#[should_panic(expected = "two writes of block 0")]
fn two_writes_of_one_block_at_once_are_a_violation() {
    let sim = sim(1);
    let disk = sim.disk();
    let spawner = disk.clone();
    let _ = sim.run(async move {
        let file = Rc::new(disk.open("a", CREATE).await.expect("created"));
        let other = disk.open("a", WRITE).await.expect("opened");
        let data = block(&disk, 1);
        let first = data.clone();
        spawner.spawn(async move { other.write_at(first, 0).await.expect("written") });
        file.write_at(data, 0).await.expect("written");
    });
}

#[test]
fn a_deadlock_is_told() {
    let sim = sim(1);
    assert_eq!(sim.run(std::future::pending::<()>()), Err(Stop::Stuck));
}

/// Tasks that write, sync and sleep at random until the machine crashes; the trace of it.
fn busy(seed: u64, crash_at: u64) -> (String, u64, std::collections::BTreeMap<String, Vec<u8>>) {
    let sim = sim(seed);
    let disk = sim.disk();
    sim.crash_after(crash_at);
    for task in 0..4u8 {
        let disk = disk.clone();
        sim.spawn(async move {
            let file = disk.open(&format!("file-{task}"), CREATE).await.expect("created");
            for i in 0.. {
                file.write_at(block(&disk, i as u8), i % 7 * BLOCK as u64).await.expect("written");
                if i % 3 == 0 {
                    file.sync().await.expect("synced");
                }
                if i % 5 == u64::from(task) {
                    disk.sync_directory("").await.expect("synced");
                    disk.sleep(Duration::from_micros(50 * i)).await;
                }
            }
        });
    }
    let stop = sim.run(std::future::pending::<()>());
    assert_eq!(stop, Err(Stop::Crashed));
    let (trace, hash) = (sim.trace(), sim.trace_hash());
    (trace, hash, sim.crash(Crash::Power).disk().files())
}

#[test]
fn the_same_seed_is_the_same_run_byte_for_byte() {
    for seed in 0..20 {
        assert_eq!(busy(seed, 50 + 10 * seed), busy(seed, 50 + 10 * seed));
    }
    assert_ne!(busy(1, 100).1, busy(2, 100).1);
}
