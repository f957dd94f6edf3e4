//! SIGTERM and SIGINT: the first stops the node cleanly, a later one ends it at once.
use crate::runtime::Stopper;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::time::{Duration, Instant};

/// A second signal so soon after the first is the same wish told twice: `timeout` and some supervisors signal the process
/// and then its group.
const SAME_WISH: Duration = Duration::from_secs(1);

/// Starts the thread that waits for them.
pub fn handle(stopper: Stopper) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("signals".into()).stack_size(256 << 10).spawn(move || {
        let mut first: Option<Instant> = None;
        for signal in signals.forever() {
            let name = if signal == SIGTERM { "SIGTERM" } else { "SIGINT" };
            if first.is_some_and(|first| first.elapsed() < SAME_WISH) {
                continue;
            }
            if stopper.is_stopping() {
                // What was acknowledged is on disk; the next start recovers, as after a crash.
                eprintln!("flumen-node: {name} again: ending at once");
                signal_hook::low_level::exit(128 + signal);
            }
            tracing::info!("{name}: stopping; again to end at once");
            first = Some(Instant::now());
            stopper.stop();
        }
    })?;
    Ok(())
}
