//! What a run says on standard output when it is over: a few lines for each phase; for `canonical`, two numbers.

use crate::phase::PhaseOutcome;
use crate::progress::milliseconds;
use crate::result::{Growth, Part, PartKind, RunResult, Usage, UsageSecond};
use std::fmt::Write;

/// The lines of one phase.
pub(crate) fn phase(name: &str, outcome: &PhaseOutcome) -> String {
    let mut text = format!("{name} ({:.1} s)\n", outcome.measured_s);
    for part in &outcome.parts {
        let _ = writeln!(text, "  {}", of_part(part));
        if let Some(drift) = part.drift.filter(|_| part.kind.is_work()) {
            let (first, last) = (drift.first.p99_9_ns, drift.last.p99_9_ns);
            let _ = writeln!(
                text,
                "  {:12}p99.9 of the first {} s {}, of the last {} ({:.2} x)",
                "",
                drift.length_s,
                milliseconds(first),
                milliseconds(last),
                last as f64 / first.max(1) as f64
            );
        }
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
        let _ = writeln!(text, ", memory {} MiB{}", usage.rss_bytes_max >> 20, memory_drift(usage));
    }
    let cpu_s = outcome.usage.cpu_user_s + outcome.usage.cpu_system_s;
    let _ = write!(text, "  {:12}CPU {cpu_s:.2} s, its busiest thread ", "generator");
    let (share, waiting) = (outcome.effort.cpu_share() * 100.0, outcome.effort.waiting_share() * 100.0);
    let _ = writeln!(text, "{share:.0} % of a core, {waiting:.0} % waiting for one");
    if let Some(integrity) = &outcome.integrity {
        let _ = writeln!(
            text,
            "  {:12}{} records: {} lost, {} duplicated, {} reordered",
            "checked", integrity.checked, integrity.lost, integrity.duplicated, integrity.reordered
        );
        for (count, what) in [
            (integrity.unread, "not read when reading ended"),
            (integrity.deleted, "deleted before they were read"),
            (integrity.redelivered, "given again to a member of the group"),
        ] {
            if count > 0 {
                let _ = writeln!(text, "  {:12}{count} {what}", "");
            }
        }
    }
    if let Some(growth) = &outcome.growth {
        let Growth { acknowledged, appended, .. } = growth;
        let _ = writeln!(text, "  {:12}by {appended} records, {acknowledged} were acknowledged", "logs grew");
    }
    text
}

/// How the memory of a long run grew from its first to its last sixth.
fn memory_drift(usage: &Usage) -> String {
    let sixth = usage.seconds.len() / 6;
    let most =
        |seconds: &[UsageSecond]| seconds.iter().map(|second| second.rss_bytes >> 20).max().unwrap_or(0);
    match sixth {
        0..10 => String::new(),
        _ => format!(
            " (first {sixth} s {}, last {})",
            most(&usage.seconds[..sixth]),
            most(&usage.seconds[usage.seconds.len() - sixth..])
        ),
    }
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
        let _ = write!(line, "{:.0} requests/s; ", part.requests as f64 / part.length_s().max(1e-9));
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
    if let Some(why) = &verdict.incomplete {
        let _ = writeln!(text, "INCOMPLETE: {why}");
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
        "throughput  {:.1} MB/s acknowledged ({:.0} records/s of {} bytes)\nlatency     {} p99.9 at {:.0} records/s",
        throughput.bytes_per_s() / 1e6,
        throughput.records_per_s(),
        throughput.bytes.checked_div(throughput.records).unwrap_or_default(),
        milliseconds(late),
        latency.records_per_s()
    ))
}
