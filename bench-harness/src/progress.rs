//! What is shown while a load runs: one line that is written over, on a terminal; nothing in a pipe.

use crate::collect::SecondTallies;
use crate::engine::PartName;
use crate::result::PartKind;
use std::io::{IsTerminal, Write};

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Progress {
    is_shown: bool,
    phase: String,
    seconds: f64,
    is_open: bool,
}

impl Progress {
    /// Shown where standard error is a terminal, unless `quiet`.
    pub(crate) fn new(quiet: bool) -> Progress {
        let is_shown = !quiet && std::io::stderr().is_terminal();
        Progress { is_shown, phase: String::new(), seconds: 0.0, is_open: false }
    }

    pub(crate) fn begin(&mut self, phase: &str, warmup_s: f64, seconds: f64) {
        (self.phase, self.seconds) = (phase.to_owned(), seconds);
        if self.is_shown {
            let line = format!("{phase}: warm-up {warmup_s:.0} s, then {seconds:.0} s");
            self.write(&line);
        }
    }

    pub(crate) fn second(&mut self, parts: &[PartName], done: &SecondTallies) {
        if self.is_shown {
            let line = line(&self.phase, self.seconds, parts, done);
            self.write(&line);
        }
    }

    pub(crate) fn end(&mut self) {
        if self.is_open {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
            self.is_open = false;
        }
    }

    fn write(&mut self, line: &str) {
        let mut out = std::io::stderr().lock();
        let _ = write!(out, "\r\x1b[K{line}").and_then(|()| out.flush());
        self.is_open = true;
    }
}

/// Rate, median, p99, maximum of the last second, errors.
fn line(phase: &str, seconds: f64, parts: &[PartName], done: &SecondTallies) -> String {
    let mut line = format!("{phase} {}/{seconds:.0} s", done.second + 1);
    for (part, tally) in parts.iter().zip(&done.tallies) {
        let label = match part.kind {
            PartKind::Produce => "produce",
            PartKind::EndToEnd => "end to end",
            PartKind::Fetch => "fetch",
            PartKind::Connect => "connect",
            PartKind::Lateness | PartKind::RawSync => continue,
        };
        let count = tally.records.max(tally.requests);
        line += &format!("  {label} {count}/s");
        if !tally.histogram.is_empty() {
            let at = |quantile| milliseconds(tally.histogram.value_at_quantile(quantile));
            let max = milliseconds(tally.histogram.max());
            line += &format!(" p50 {} p99 {} max {max}", at(0.5), at(0.99));
        }
        if tally.errors() > 0 {
            line += &format!(" errors {}", tally.errors());
        }
    }
    line
}

/// With three digits.
pub(crate) fn milliseconds(nanoseconds: u64) -> String {
    let value = nanoseconds as f64 / 1e6;
    match value {
        ..10.0 => format!("{value:.2} ms"),
        ..100.0 => format!("{value:.1} ms"),
        _ => format!("{value:.0} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Tally;

    #[test]
    fn a_line_tells_the_last_second() {
        let part = |kind| PartName { kind, name: String::new() };
        let mut tally = Tally { records: 3, requests: 2, ..Tally::default() };
        for nanoseconds in [1_000_000, 2_000_000, 30_000_000] {
            tally.time(nanoseconds);
        }
        tally.error("TIMEOUT", 4);
        let done = SecondTallies { second: 2, at_unix_ns: 0, tallies: vec![tally, Tally::default()] };
        let shown = line("p", 9.0, &[part(PartKind::Produce), part(PartKind::Lateness)], &done);
        assert_eq!(shown, "p 3/9 s  produce 3/s p50 2.00 ms p99 30.0 ms max 30.0 ms errors 4");
    }
}
