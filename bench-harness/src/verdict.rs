//! Whether the figures of a run may be believed, and if not, why: what is missing in the histograms, whether the generator
//! was the limit, and what was wrong with the records.

use crate::phase::PhaseOutcome;
use crate::progress::milliseconds;
use crate::result::{Growth, Integrity, PartKind, RestartSeen, Verdict};

/// Lateness of sends that says nothing, however short the latencies are.
const LATENESS_NS_MIN: u64 = 1_000_000;
/// Of what was due: so much may be without a latency before percentiles are called lower bounds. A tenth of what a p99
/// leaves out.
const WITHOUT_LATENCY_MAX: f64 = 0.001;
/// A shorter phase may be over before anything was acknowledged.
const SILENCE_S_MIN: f64 = 0.5;

/// `partial` says why the run ended before its time, if it did.
pub(crate) fn judge(outcomes: &[PhaseOutcome], partial: Option<String>) -> Verdict {
    let is_whole = partial.is_none();
    let mut verdict = Verdict { partial, ..Verdict::default() };
    let mut incomplete = Vec::new();
    for outcome in outcomes {
        let phase = outcome.parts.first().map(|part| part.phase.clone()).unwrap_or_default();
        if let Some(why) = generator_limit(outcome) {
            verdict.generator_limited.get_or_insert(format!("{phase}: {why}"));
        }
        incomplete.extend(without_latency(outcome).into_iter().map(|why| format!("{phase}: {why}")));
        let failed = failures(outcome, is_whole).into_iter().map(|why| format!("{phase}: {why}"));
        verdict.failed.extend(failed);
        let notes = outcome.notes.iter().cloned().chain(notes(outcome));
        verdict.notes.extend(notes.map(|note| format!("{phase}: {note}")));
    }
    verdict.incomplete = (!incomplete.is_empty()).then(|| incomplete.join("; "));
    verdict
}

/// What the histograms do not have, where that is more than a trace.
fn without_latency(outcome: &PhaseOutcome) -> Vec<String> {
    let mut found = Vec::new();
    let of_kind = |kind| outcome.parts.iter().filter(move |part| part.kind == kind);
    let errors = |kind| of_kind(kind).flat_map(|part| part.errors.values()).sum::<u64>();
    let share = |missing: u64, due: u64| missing as f64 / due.max(1) as f64;
    let failed = errors(PartKind::Produce);
    let acknowledged: u64 = of_kind(PartKind::Produce).map(|part| part.records).sum();
    let due = acknowledged + failed + outcome.unsent;
    if share(failed + outcome.unsent, due) > WITHOUT_LATENCY_MAX {
        found.push(format!(
            "of {due} records that were due {} were never sent and {failed} failed ({:.2} %); the latencies of the rest \
             are lower bounds",
            outcome.unsent,
            100.0 * share(failed + outcome.unsent, due)
        ));
    }
    let failed = errors(PartKind::Connect);
    let due = failed + of_kind(PartKind::Connect).map(|part| part.requests).sum::<u64>();
    if share(failed, due) > WITHOUT_LATENCY_MAX {
        found.push(format!(
            "of {due} connections {failed} failed; the latencies of the rest are lower bounds"
        ));
    }
    if let Some(Integrity { checked, unread, deleted, .. }) = outcome.integrity {
        if unread > 0 {
            found.push(format!(
                "of {checked} acknowledged records {unread} were not read, since their consumers were still behind when \
                 reading ended; nothing is known of them"
            ));
        }
        if deleted > 0 {
            found.push(format!(
                "of {checked} acknowledged records {deleted} were deleted by the broker before they were read: retention \
                 was faster than the consumers"
            ));
        }
    }
    found
}

fn failures(outcome: &PhaseOutcome, is_whole: bool) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(Integrity { checked, lost, duplicated, reordered, .. }) = outcome.integrity
        && lost + duplicated + reordered > 0
    {
        found.push(format!(
            "of {checked} records {lost} were lost, {duplicated} duplicated, {reordered} reordered"
        ));
    }
    if let Some(Growth { acknowledged, appended, missing, .. }) = &outcome.growth
        && *missing > 0
    {
        found.push(format!(
            "of {acknowledged} acknowledged records {missing} or more were lost: the logs grew by {appended} alone"
        ));
    }
    let is_long = outcome.measured_s > SILENCE_S_MIN;
    if is_long && outcome.parts.iter().any(|part| part.kind == PartKind::Produce && part.records == 0) {
        found.push("nothing was acknowledged".to_owned());
    }
    for consumers in outcome.nothing_read.iter().filter(|_| is_long && is_whole) {
        let named = if consumers.is_empty() { String::new() } else { format!(" {consumers:?}") };
        found.push(format!("the consumers{named} received nothing"));
    }
    if let Some(RestartSeen { first_acknowledgement_ns: None, .. }) = &outcome.restart {
        found.push("nothing was acknowledged after the broker was killed".to_owned());
    }
    found
}

fn notes(outcome: &PhaseOutcome) -> Vec<String> {
    let mut found = Vec::new();
    let failed = outcome.parts.iter().any(|part| part.kind == PartKind::Produce && !part.errors.is_empty());
    if let Some(Growth { surplus, .. }) = &outcome.growth
        && *surplus > 0
        && !failed
    {
        found.push(format!(
            "the logs grew by {surplus} records more than were acknowledged: duplicates, or those of another writer"
        ));
    }
    if outcome.unsent > 0 {
        found.push(format!(
            "the broker did not keep up: {} records that were due were never sent",
            outcome.unsent
        ));
    }
    for part in outcome.parts.iter().filter(|part| part.kind == PartKind::Fetch) {
        let named = if part.name.is_empty() { String::new() } else { format!(" {:?}", part.name) };
        if part.records == 0 && outcome.nothing_read.iter().all(|name| *name != part.name) {
            found.push(format!("the consumers{named} had read all that was there before the measured time"));
        } else if part.length_s() < outcome.measured_s - SILENCE_S_MIN {
            let length_s = part.length_s();
            found.push(format!(
                "the consumers{named} had read all that was there after {length_s:.1} s; their rate is that of this time"
            ));
        }
    }
    if let Some(Integrity { redelivered, .. }) = outcome.integrity
        && redelivered > 0
    {
        found.push(format!(
            "{redelivered} records were given again to members of a group, as after a rebalance"
        ));
    }
    found
}

/// Why the generator, not the broker, was the limit, if it was.
fn generator_limit(outcome: &PhaseOutcome) -> Option<String> {
    let effort = &outcome.effort;
    if effort.is_full() {
        return Some(format!(
            "a thread of it was full in {} of {} s: it had {:.0} % of a core, and waited {:.0} % of the time for one; give \
             it more with --threads, or a machine of its own",
            effort.full_seconds,
            effort.seconds,
            effort.cpu_share() * 100.0,
            effort.waiting_share() * 100.0
        ));
    }
    let late = |kind: PartKind| {
        let of_kind = outcome.parts.iter().filter(move |part| part.kind == kind);
        of_kind.filter_map(|part| part.latency.as_ref()).map(|latency| latency.summary.p99_9_ns).max()
    };
    let (lateness, latency) = (late(PartKind::Lateness)?, late(PartKind::Produce)?);
    (lateness > LATENESS_NS_MIN && lateness > latency / 2).then(|| {
        let (lateness, latency) = (milliseconds(lateness), milliseconds(latency));
        format!("its own lateness, p99.9 {lateness}, is much of the latency, p99.9 {latency}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::Collector;
    use crate::engine::{Effort, PartName, Tally};
    use crate::result::Usage;

    /// A second of a producer, or of producers and a checked consumer.
    fn outcome(parts: &[(PartKind, Tally)]) -> PhaseOutcome {
        let named: Vec<PartName> =
            parts.iter().map(|(kind, _)| PartName { kind: *kind, name: String::new() }).collect();
        let tallies: Vec<Tally> = parts.iter().map(|(_, tally)| tally.clone()).collect();
        let mut collector = Collector::new(&named, 1, 1.0);
        collector.add(0, &tallies);
        let mut parts = collector.into_parts("p", 0.0);
        parts.iter_mut().for_each(|part| part.phase = "p".to_owned());
        PhaseOutcome {
            parts,
            integrity: None,
            unsent: 0,
            effort: Effort::default(),
            measured_s: 1.0,
            started_unix_ms: 0,
            notes: Vec::new(),
            usage: Usage::default(),
            broker_process: None,
            restart: None,
            nothing_read: Vec::new(),
            acknowledged: Default::default(),
            growth: None,
        }
    }

    fn timed(records: u64, ns: u64) -> Tally {
        let mut tally = Tally { records, ..Tally::default() };
        (0..records).for_each(|_| tally.time(ns));
        tally
    }

    fn late(lateness_ns: u64, latency_ns: u64) -> PhaseOutcome {
        outcome(&[(PartKind::Produce, timed(1, latency_ns)), (PartKind::Lateness, timed(1, lateness_ns))])
    }

    #[test]
    fn a_run_whose_generator_was_the_limit_is_called_so() {
        let limited = |outcome| judge(&[outcome], None).generator_limited;
        assert_eq!(limited(late(100_000, 2_000_000)), None);
        assert!(limited(late(3_000_000, 4_000_000)).is_some_and(|why| why.contains("lateness")));
        assert_eq!(limited(late(3_000_000, 400_000_000)), None, "a stall of the broker is not ours");
        // A closed loop has no lateness, and is called so all the same.
        let mut closed = outcome(&[(PartKind::Produce, timed(1, 1000))]);
        closed.effort = Effort { seconds: 10, full_seconds: 2, length_s: 10.0, cpu_s: 6.0, waiting_s: 3.0 };
        let why = limited(closed).expect("it was full");
        assert!(why.contains("full in 2 of 10 s") && why.contains("60 % of a core"), "{why}");
    }

    #[test]
    fn loss_fails_a_run() {
        let mut lossy = late(1, 1);
        lossy.integrity = Some(Integrity { checked: 10, lost: 1, ..Integrity::default() });
        assert!(judge(&[lossy], None).failed[0].contains("1 were lost"));
        assert!(judge(&[late(1, 1)], Some("Ctrl-C".to_owned())).partial.is_some());
    }

    #[test]
    fn logs_that_grew_too_little_have_lost_and_those_that_grew_too_much_may_hold_duplicates() {
        let verdict = |missing, surplus, errors| {
            let mut tally = timed(100_000, 1);
            (0..errors).for_each(|_| tally.error("CONNECTION", 1));
            let mut one = outcome(&[(PartKind::Produce, tally)]);
            one.growth = Some(Growth { acknowledged: 9, appended: 7, missing, surplus, ..Growth::default() });
            judge(&[one], None)
        };
        assert_eq!(verdict(0, 0, 0), Verdict::default());
        assert!(verdict(2, 0, 0).failed[0].contains("of 9 acknowledged records 2 or more were lost"));
        assert!(verdict(0, 5, 0).notes[0].contains("5 records more"));
        assert_eq!(verdict(0, 5, 1).notes, [""; 0], "those of unknown fate explain it");
    }

    #[test]
    fn what_was_not_read_or_deleted_is_incomplete_and_no_failure() {
        let mut slow = late(1, 1);
        slow.integrity = Some(Integrity { checked: 10, unread: 2, deleted: 3, ..Integrity::default() });
        let verdict = judge(&[slow], None);
        assert_eq!(verdict.failed, [""; 0]);
        let why = verdict.incomplete.expect("said");
        assert!(why.contains("2 were not read") && why.contains("3 were deleted"), "{why}");
    }

    #[test]
    fn percentiles_without_what_was_due_are_lower_bounds() {
        let verdict = |unsent: u64, errors: u64| {
            let mut tally = timed(10_000, 1000);
            tally.error("TIMEOUT", errors);
            let mut one = outcome(&[(PartKind::Produce, tally)]);
            one.unsent = unsent;
            judge(&[one], None)
        };
        assert_eq!(verdict(5, 5).incomplete, None, "a tenth of a percent");
        assert_eq!(verdict(5, 5).notes.len(), 1);
        let why = verdict(6, 5).incomplete.expect("more than that");
        assert!(why.contains("of 10011 records that were due 6 were never sent and 5 failed"), "{why}");
        assert!(why.contains("lower bounds"), "{why}");
    }

    #[test]
    fn consumers_that_received_nothing_fail_a_whole_run() {
        let silent = || {
            let mut one = outcome(&[(PartKind::Produce, timed(9, 1)), (PartKind::EndToEnd, timed(0, 1))]);
            one.nothing_read = vec!["tail".to_owned()];
            one
        };
        let failed = judge(&[silent()], None).failed;
        assert!(failed[0].contains("\"tail\" received nothing"), "{failed:?}");
        assert_eq!(judge(&[silent()], Some("interrupted".to_owned())).failed, [""; 0]);
    }
}
