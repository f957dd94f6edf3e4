//! Signals reach the stopper: in a process of its own, for they reach all of it.
use flumen_node::runtime::Stopper;
use flumen_node::signals;
use std::process::Command;
use std::time::{Duration, Instant};

/// Set in the child that is to be ended by the second signal.
const CHILD: &str = "FLUMEN_TEST_SIGNALS";

#[test]
fn the_first_signal_stops_and_the_second_ends_at_once() {
    if std::env::var_os(CHILD).is_some() {
        return be_signalled_twice();
    }
    let this = std::env::current_exe().expect("a path");
    let ended = Command::new(this).arg("--nocapture").env(CHILD, "1").status().expect("started");
    assert_eq!(ended.code(), Some(128 + signal_hook::consts::SIGTERM), "{ended}");
}

fn be_signalled_twice() {
    let stopper = Stopper::new();
    signals::handle(stopper.clone()).expect("a thread");
    signal_hook::low_level::raise(signal_hook::consts::SIGINT).expect("raised");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !stopper.is_stopping() {
        assert!(Instant::now() < deadline, "SIGINT stops");
        std::thread::sleep(Duration::from_millis(1));
    }
    // One that follows at once is the same wish told twice; one that comes later ends the process.
    while Instant::now() < deadline {
        signal_hook::low_level::raise(signal_hook::consts::SIGTERM).expect("raised");
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("the second signal ends the process");
}
