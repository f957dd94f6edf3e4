//! What a run says on standard output when it is over: a few lines for each phase; for `canonical`, two numbers.

use crate::phase::PhaseOutcome;
use crate::progress::milliseconds;
use crate::result::{Part, PartKind, RunResult};
use std::fmt::Write;

/// The lines of one phase.
pub(crate) fn phase(name: &str, outcome: &PhaseOutcome) -> String {
    let mut text = format!("{name} ({:.1} s)\n", outcome.measured_s);
    for part in &outcome.parts {
        let _ = writeln!(text, "  {}", of_part(part));
    }
    if let Some(times) = over_raw(&outcome.parts) {
        let _ = writeln!(text, "  {:12}{times}", "of the disk");
    }
    if let Some(restart) = &outcome.restart {
        let first = restart.first_acknowledgement_ns.map_or("never".to_owned(), milliseconds);
        let at = restart.killed_at_s;
        let _ = writeln!(
            text,
            "  {:12}{first} from kill -9 (at {at:.1} s) to the first acknowledgement",
            "restart"
        );
    }
    if let Some(broker) = &outcome.broker_process {
        let usage = &broker.usage;
        let cpu_s = usage.cpu_user_s + usage.cpu_system_s;
        let _ = write!(text, "  {:11} CPU {cpu_s:.2} s", broker.name);
        for (value, unit) in [
            (broker.cpu_s_per_gb, "s/GB"),
            (broker.cpu_us_per_record, "us/record"),
            (broker.cpu_us_per_request, "us/request"),
        ] {
            if let Some(value) = value {
                let _ = write!(text, ", {value:.2} {unit}");
            }
        }
        let _ = writeln!(text, ", memory {} MiB", usage.rss_bytes_max >> 20);
    }
    let cpu_s = outcome.usage.cpu_user_s + outcome.usage.cpu_system_s;
    let share = outcome.cpu_share * 100.0;
    let _ = writeln!(text, "  {:12}CPU {cpu_s:.2} s, its busiest thread {share:.0} %", "generator");
    if let Some(integrity) = &outcome.integrity {
        let _ = writeln!(
            text,
            "  {:12}{} records: {} lost, {} duplicated, {} reordered",
            "checked", integrity.checked, integrity.lost, integrity.duplicated, integrity.reordered
        );
    }
    text
}

/// Latency of acknowledgements as a multiple of bare writes at the same time.
fn over_raw(parts: &[Part]) -> Option<String> {
    let summary = |kind: PartKind| {
        parts.iter().find(|part| part.kind == kind)?.latency.as_ref().map(|latency| latency.summary)
    };
    let (own, raw) = (summary(PartKind::Produce)?, summary(PartKind::RawSync)?);
    let times = |own: u64, raw: u64| own as f64 / raw.max(1) as f64;
    let (p50, p99) = (times(own.p50_ns, raw.p50_ns), times(own.p99_ns, raw.p99_ns));
    Some(format!("produce p50 {p50:.2} x, p99 {p99:.2} x that of a bare write and sync"))
}

fn of_part(part: &Part) -> String {
    let kind = match part.kind {
        PartKind::Produce => "produce",
        PartKind::EndToEnd => "end to end",
        PartKind::Fetch => "fetch",
        PartKind::Lateness => "lateness",
        PartKind::RawSync => "raw sync",
        PartKind::Connect => "connect",
    };
    let mut line = format!("{kind:12}");
    if !part.name.is_empty() {
        let _ = write!(line, "[{}] ", part.name);
    }
    if part.kind.is_work() {
        if part.records > 0 {
            let (records, megabytes) = (part.records_per_s(), part.bytes_per_s() / 1e6);
            let _ = write!(line, "{records:.0} records/s, {megabytes:.1} MB/s, ");
        }
        let seconds: f64 = part.seconds.iter().map(|second| second.length_s).sum();
        let _ = write!(line, "{:.0} requests/s; ", part.requests as f64 / seconds.max(1e-9));
    }
    if let Some(latency) = &part.latency {
        let summary = &latency.summary;
        for (name, value) in [
            ("p50", summary.p50_ns),
            ("p99", summary.p99_ns),
            ("p99.9", summary.p99_9_ns),
            ("max", summary.max_ns),
        ] {
            let _ = write!(line, "{name} {} ", milliseconds(value));
        }
    }
    for (name, count) in &part.errors {
        let _ = write!(line, "{name}: {count} ");
    }
    line.trim_end().trim_end_matches(';').to_owned()
}

/// What is wrong with the figures, a line each.
pub(crate) fn verdict(result: &RunResult) -> String {
    let verdict = &result.verdict;
    let mut text = String::new();
    if let Some(why) = &verdict.partial {
        let _ = writeln!(text, "PARTIAL: {why}");
    }
    if let Some(why) = &verdict.generator_limited {
        let _ = writeln!(text, "LIMITED BY THE GENERATOR: {why}");
    }
    for why in &verdict.failed {
        let _ = writeln!(text, "FAILED: {why}");
    }
    for note in &verdict.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

/// The two numbers of `canonical`.
pub(crate) fn canonical(result: &RunResult) -> Option<String> {
    let produce =
        |phase: &str| result.parts.iter().find(|part| part.kind == PartKind::Produce && part.phase == phase);
    let (throughput, latency) = (produce("throughput")?, produce("latency")?);
    let late = latency.latency.as_ref()?.summary.p99_9_ns;
    Some(format!(
        "throughput  {:.1} MB/s acknowledged ({:.0} records/s of 1 KiB)\nlatency     {} p99.9 at {:.0} records/s",
        throughput.bytes_per_s() / 1e6,
        throughput.records_per_s(),
        milliseconds(late),
        latency.records_per_s()
    ))
}
