//! Idle shards cost nothing: in a process of its own, for whatever else a test does would be counted.
use flumen_node::mailbox::{Capacity, mesh};
use flumen_node::runtime::{self, Settings, Stopper, spawn, start};
use flumen_node::sys;
use std::time::{Duration, Instant};

/// Times that any thread of this process gave up its core to wait.
fn waits() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("proc");
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok())
        .filter_map(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            line.trim().parse::<u64>().ok()
        })
        .sum()
}

#[test]
fn two_idle_shards_and_the_watchdog_sleep() {
    runtime::uptime();
    sys::register_membarrier();
    let stopper = Stopper::new();
    let seeds: Vec<_> = mesh::<u64, u64>(2, Capacity { requests: 64, calls: 64 })
        .into_iter()
        .map(|post| (post, stopper.subscribe()))
        .collect();
    let began = Instant::now();
    let (up, ups) = std::sync::mpsc::channel();
    let executors = start(&Settings::default(), seeds, move |_, (post, stop)| {
        let up = up.clone();
        async move {
            let (caller, inbox) = post.open();
            let reading = spawn("inbox", inbox.run(drop));
            let _ = up.send(());
            stop.stopped().await;
            caller.close();
            reading.await
        }
    })
    .expect("two executors");
    ups.iter().take(2).for_each(drop);
    let start_time = began.elapsed();
    // The watchdog lingers for a moment after the last work, and looks several times meanwhile.
    for _ in 0..100 {
        let seen = waits();
        std::thread::sleep(Duration::from_millis(100));
        if waits() - seen <= 1 {
            break;
        }
    }
    let (waits_before, before) = (waits(), sys::usage());
    std::thread::sleep(Duration::from_secs(1));
    let (waited, after) = (waits() - waits_before, sys::usage());
    let cpu = after.user_us + after.system_us - before.user_us - before.system_us;
    println!(
        "start {start_time:?}; idle for 1 s: {cpu} us of CPU, {waited} waits; {} KiB resident",
        after.resident_bytes >> 10
    );
    // This thread's own sleep is one; a ticking thread would make hundreds.
    assert!(waited <= 10, "{waited}");
    let stopping = Instant::now();
    stopper.stop();
    assert!(executors.join().into_iter().all(|ended| ended.expect("no panic").is_ok()));
    println!("stop {:?}", stopping.elapsed());
}
