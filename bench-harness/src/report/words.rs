//! What the page says before it draws anything: whether the figures may be believed, and why not.

use super::series::{Side, Track, merged, title, word};
use crate::compare::document::Comparison;
use crate::limits::Limits;
use crate::quantity;
use crate::result::{PartKind, RunResult};

/// How much a sentence takes from the figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// They stand.
    Good,
    /// Read it before you use them.
    Warning,
    /// They do not stand.
    Bad,
    Note,
}

pub(super) struct Sentence {
    pub weight: Weight,
    pub text: String,
}

/// Names of errors that are listed; of more, the rest is summed.
const ERRORS_LISTED_MAX: usize = 4;

/// The worst first.
pub(super) fn verdicts(sides: &[Side], comparison: Option<&Comparison>) -> Vec<Sentence> {
    let mut found = Vec::new();
    if let Some(comparison) = comparison {
        let verdict = &comparison.verdict;
        add_verdict(&mut found, "", verdict);
    }
    for side in sides {
        for (turn, run) in side.runs.iter().enumerate() {
            let whose = match (sides.len(), side.runs.len()) {
                (1, 1) => String::new(),
                (_, 1) => format!("{}: ", side.name),
                _ => format!("{}, turn {}: ", side.name, turn + 1),
            };
            add_verdict(&mut found, &whose, &run.verdict);
            add_errors(&mut found, &whose, run);
        }
    }
    if found.iter().all(|one: &Sentence| one.weight == Weight::Note) {
        let text = "The figures stand: the generator kept up, the runs were whole.".to_owned();
        found.push(Sentence { weight: Weight::Good, text });
    }
    found.extend(integrity(sides));
    found.extend(lateness(sides));
    let order = [Weight::Bad, Weight::Warning, Weight::Good, Weight::Note];
    found.sort_by_key(|one| order.iter().position(|weight| *weight == one.weight));
    found
}

fn add_verdict(found: &mut Vec<Sentence>, whose: &str, verdict: &crate::result::Verdict) {
    let mut say = |weight, text: String| found.push(Sentence { weight, text: format!("{whose}{text}") });
    for reason in &verdict.failed {
        say(Weight::Bad, format!("Failed: {reason}"));
    }
    if let Some(reason) = &verdict.partial {
        say(Weight::Warning, format!("Partial: {reason}. What is here ends early."));
    }
    if let Some(reason) = &verdict.generator_limited {
        let text = format!(
            "The generator was the limit, not the broker: {reason}. The broker may do better than this."
        );
        say(Weight::Warning, text);
    }
    if let Some(reason) = &verdict.incomplete {
        say(Weight::Warning, format!("Incomplete: {reason}."));
    }
    for note in &verdict.notes {
        say(Weight::Note, note.clone());
    }
}

fn add_errors(found: &mut Vec<Sentence>, whose: &str, run: &RunResult) {
    for part in run.parts.iter().filter(|part| !part.errors.is_empty()) {
        let total: u64 = part.errors.values().sum();
        let mut named: Vec<(&String, &u64)> = part.errors.iter().collect();
        named.sort_by(|a, b| b.1.cmp(a.1));
        let mut texts: Vec<String> = named
            .iter()
            .take(ERRORS_LISTED_MAX)
            .map(|(name, count)| format!("{name} {}", quantity::grouped(**count)))
            .collect();
        if named.len() > ERRORS_LISTED_MAX {
            texts.push("others".to_owned());
        }
        let text =
            format!("{whose}{} errors ({}): {}.", quantity::grouped(total), title(part), texts.join(", "));
        found.push(Sentence { weight: Weight::Warning, text });
    }
}

fn integrity(sides: &[Side]) -> Option<Sentence> {
    let all = sides.iter().flat_map(|side| &side.runs).filter_map(|run| run.integrity);
    let (mut checked, mut lost, mut duplicated, mut reordered, mut runs) = (0, 0, 0, 0, 0);
    for one in all {
        // What nobody came to was not looked at.
        checked += one.checked.saturating_sub(one.unread + one.deleted);
        lost += one.lost;
        duplicated += one.duplicated;
        reordered += one.reordered;
        runs += 1;
    }
    if runs == 0 {
        return None;
    }
    let checked = quantity::grouped(checked);
    let (weight, text) = match (lost, duplicated, reordered) {
        (0, 0, 0) => {
            let text =
                format!("{checked} acknowledged records were checked: none lost, duplicated or reordered.");
            (Weight::Good, text)
        }
        _ => {
            let [lost, duplicated, reordered] = [lost, duplicated, reordered].map(quantity::grouped);
            let text = format!(
                "Of {checked} acknowledged records {lost} were lost, {duplicated} duplicated, {reordered} reordered."
            );
            (Weight::Bad, text)
        }
    };
    Some(Sentence { weight, text })
}

/// How late the generator itself was, which bounds what its figures can say.
fn lateness(sides: &[Side]) -> Option<Sentence> {
    let late = sides
        .iter()
        .flat_map(|side| &side.runs)
        .filter_map(|run| run.part(PartKind::Lateness)?.latency.as_ref())
        .map(|latency| latency.summary.p99_9_ns)
        .max()?;
    let text = format!(
        "Latency counts from the time at which a record was due. 99.9 % of them left the generator within {} of it{}.",
        quantity::duration(late as f64),
        if sides.iter().map(|side| side.runs.len()).sum::<usize>() > 1 { ", in the worst run" } else { "" },
    );
    Some(Sentence { weight: Weight::Note, text })
}

/// A side's figures as a share of what the machine can do.
pub(super) fn shares(side: &Side, limits: &Limits) -> Vec<String> {
    let mut found = Vec::new();
    let produced = side.runs.iter().filter_map(|run| run.part(PartKind::Produce));
    let fastest = produced.map(|part| part.bytes_per_s()).fold(0.0, f64::max);
    if let Some(most) = limits.disk.write_bytes_per_s.filter(|most| *most > 0.0) {
        found.push(format!(
            "produced {}/s: {} % of the direct write rate",
            quantity::bytes(fastest),
            quantity::three_digits(100.0 * fastest / most)
        ));
    }
    let track = Track { kind: PartKind::Produce, name: String::new(), phase: String::new() };
    let phase = side.runs.first().and_then(|run| run.part(PartKind::Produce)).map(|part| part.phase.clone());
    let histogram = merged(side, &Track { phase: phase.unwrap_or_default(), ..track });
    if let (Some(histogram), Some(writes)) = (histogram, limits.disk.synced_writes.first()) {
        let (own, floor) = (histogram.value_at_quantile(0.99), writes.latency.summary.p99_ns.max(1));
        found.push(format!(
            "produce p99 {}: {} × that of a {} KiB write with its sync",
            quantity::duration(own as f64),
            quantity::ratio(own as f64 / floor as f64),
            writes.bytes >> 10
        ));
    }
    found
}

/// A side's latency as a multiple of what the disk gave at the same time, where that was measured.
pub(super) fn over_raw(side: &Side, track: &Track) -> Option<String> {
    if track.kind != PartKind::Produce {
        return None;
    }
    let (own, raw) = (merged(side, track)?, merged(side, &track.beside(PartKind::RawSync))?);
    let times = |quantile: f64| {
        let (own, raw) = (own.value_at_quantile(quantile), raw.value_at_quantile(quantile).max(1));
        format!("{} ×", quantity::ratio(own as f64 / raw as f64))
    };
    Some(format!(
        "{}: p50 {}, p99 {} that of the {} bare writes of 4 KiB with their sync that were made on its disk at the same time \
         (p50 {}, p99 {}).",
        side.name,
        times(0.5),
        times(0.99),
        quantity::grouped(raw.len()),
        quantity::duration(raw.value_at_quantile(0.5) as f64),
        quantity::duration(raw.value_at_quantile(0.99) as f64),
    ))
}

/// What the page is of, in one line.
pub(super) fn subject(sides: &[Side], comparison: Option<&Comparison>) -> String {
    let Some(first) = sides.iter().flat_map(|side| side.runs.first()).next() else { return String::new() };
    let mut text = match comparison {
        Some(_) => {
            let turns = sides.iter().map(|side| side.runs.len()).max().unwrap_or(0);
            format!(
                "{turns} turns of {} s each, by turns on one machine",
                quantity::three_digits(first.duration_s)
            )
        }
        None => format!("{} s", quantity::three_digits(first.duration_s)),
    };
    let kinds: Vec<&str> =
        first.parts.iter().map(|part| part.kind).filter(|kind| kind.is_work()).map(word).collect();
    if !kinds.is_empty() {
        let mut kinds = kinds;
        kinds.dedup();
        text.push_str(&format!(" · {}", kinds.join(", ")));
    }
    text.push_str(&format!(" · driver {}", first.driver));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{Integrity, fixture};

    fn said(run: &RunResult) -> Vec<(Weight, String)> {
        let sides = [Side { name: "x".to_owned(), runs: vec![run] }];
        verdicts(&sides, None).into_iter().map(|one| (one.weight, one.text)).collect()
    }

    #[test]
    fn a_sound_run_is_called_so_once() {
        let all = said(&fixture::run("x", 1, 1.0));
        assert!(all[0].1.starts_with("The figures stand") && all[0].0 == Weight::Good, "{all:?}");
        assert!(all[1].1.starts_with("100,000 acknowledged records were checked: none lost"), "{all:?}");
        assert!(all[2].1.contains("99.9 % of them left the generator within 41.0 µs"), "{all:?}");
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn figures_that_leave_something_out_do_not_stand() {
        let mut run = fixture::run("x", 1, 1.0);
        run.verdict.incomplete = Some("9 were never sent".to_owned());
        run.integrity = Some(Integrity { checked: 1_000, unread: 300, deleted: 50, ..Integrity::default() });
        let all = said(&run);
        assert!(all.iter().any(|one| one.1.starts_with("650 acknowledged records were checked")), "{all:?}");
        assert_eq!(all[0], (Weight::Warning, "Incomplete: 9 were never sent.".to_owned()));
        assert!(!all.iter().any(|one| one.1.contains("The figures stand")), "{all:?}");
    }

    #[test]
    fn what_is_wrong_comes_first_and_the_figures_do_not_stand() {
        let mut run = fixture::run("x", 1, 1.0);
        run.verdict.partial = Some("Ctrl-C after 3 s".to_owned());
        run.verdict.generator_limited = Some("its cores were full".to_owned());
        run.verdict.failed.push("7 records were lost".to_owned());
        run.integrity = Some(Integrity { checked: 1_000, lost: 7, ..Integrity::default() });
        for (name, count) in [("A", 5), ("B", 4), ("C", 3), ("D", 2), ("E", 1)] {
            run.parts[0].errors.insert(name.to_owned(), count);
        }
        let all = said(&run);
        let weights: Vec<Weight> = all.iter().map(|one| one.0).collect();
        use Weight::{Bad, Note, Warning};
        assert_eq!(weights, [Bad, Bad, Warning, Warning, Warning, Note], "{all:?}");
        assert_eq!(all[1].1, "Of 1,000 acknowledged records 7 were lost, 0 duplicated, 0 reordered.");
        assert!(all.iter().any(|one| one.1 == "15 errors (produce): A 5, B 4, C 3, D 2, others."), "{all:?}");
        assert!(!all.iter().any(|one| one.1.contains("stand:")), "{all:?}");
    }
}
