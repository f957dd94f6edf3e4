//! The log: lines to standard error, written by a thread of their own, so that a reader of them who is slow (a full
//! pipe, a terminal) never holds up a shard. When too many wait, lines are dropped, and their number is told.
use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that may wait.
const LINES_MAX: usize = 4096;
/// What is logged unless `FLUMEN_LOG` says otherwise. glommio's reactor reports the guard of the polled ring as an
/// error, see `runtime`.
const DEFAULT: &str = "info,glommio=warn,glommio::reactor=off";

enum Entry {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

static QUEUE: OnceLock<SyncSender<Entry>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Starts the log. `filter`: levels by target, as in `info,flumen_node::net=debug`; wrong ones are told of.
/// Panics print as before, except those that are expected.
pub fn start(filter: Option<&str>) {
    let (targets, wrong) = match filter {
        None | Some("") => (DEFAULT.parse::<Targets>(), None),
        Some(text) => match format!("{DEFAULT},{text}").parse::<Targets>() {
            Ok(targets) => (Ok(targets), None),
            Err(error) => (DEFAULT.parse::<Targets>(), Some(error)),
        },
    };
    let (sender, receiver) = sync_channel(LINES_MAX);
    if QUEUE.set(sender).is_err() {
        return;
    }
    std::thread::Builder::new()
        .name("log".into())
        .stack_size(256 << 10)
        .spawn(move || write_lines(&receiver))
        .expect("a thread can be started");
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(Lines)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    // An error: another subscriber is set, in a test.
    let _ =
        tracing_subscriber::registry().with(targets.expect("the default is valid")).with(lines).try_init();
    if let Some(error) = wrong {
        tracing::warn!(%error, "FLUMEN_LOG is not understood and has no effect");
    }
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !crate::runtime::panic_is_expected() {
            print(info);
        }
    }));
}

/// Waits until all lines so far are written, or a second has passed. Before the process ends.
pub fn flush() {
    let Some(queue) = QUEUE.get() else { return };
    let (done, written) = sync_channel(1);
    if queue.send(Entry::Flush(done)).is_ok() {
        let _ = written.recv_timeout(Duration::from_secs(1));
    }
}

fn write_lines(receiver: &Receiver<Entry>) {
    let mut told = 0;
    while let Ok(entry) = receiver.recv() {
        match entry {
            // Where standard error is closed nobody reads: nothing is to be done.
            Entry::Line(line) => drop(io::stderr().write_all(&line)),
            Entry::Flush(done) => drop(done.send(())),
        }
        let dropped = DROPPED.load(Ordering::Relaxed);
        if dropped > told {
            let _ = writeln!(io::stderr(), "{} log lines were dropped: too many at once", dropped - told);
            told = dropped;
        }
    }
}

/// Makes the writer of each line.
struct Lines;

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Vec::with_capacity(160))
    }
}

/// One line; handed over when it is complete.
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.0);
        if !line.is_empty()
            && let Some(queue) = QUEUE.get()
            && queue.try_send(Entry::Line(line)).is_err()
        {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Bounds how often something is logged: what a hostile client can cause must not fill a disk. Owned by one shard.
#[derive(Debug)]
pub struct Limit {
    every: Duration,
    last: Cell<Option<Instant>>,
    suppressed: Cell<u64>,
}

impl Limit {
    /// One line in `every`.
    pub const fn new(every: Duration) -> Self {
        Limit { every, last: Cell::new(None), suppressed: Cell::new(0) }
    }

    /// Whether a line may be logged now; if so, how many were not since the last one.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        if self.last.get().is_some_and(|last| now.saturating_duration_since(last) < self.every) {
            self.suppressed.set(self.suppressed.get() + 1);
            return None;
        }
        self.last.set(Some(now));
        Some(self.suppressed.replace(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_a_while_and_the_number_of_the_others() {
        let limit = Limit::new(Duration::from_secs(1));
        let start = Instant::now();
        assert_eq!(limit.pass(start), Some(0));
        assert_eq!(limit.pass(start), None);
        assert_eq!(limit.pass(start + Duration::from_millis(999)), None);
        assert_eq!(limit.pass(start + Duration::from_millis(1000)), Some(2));
        assert_eq!(limit.pass(start + Duration::from_millis(2500)), Some(0));
    }
}
