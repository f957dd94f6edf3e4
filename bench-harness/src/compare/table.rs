//! A comparison on the terminal: a table of ratios for each pair, and what takes from them.

use super::document::{Comparison, Over, Ratio};
use crate::quantity;
use crate::report::{amount, judged, named_figure};
use std::fmt::Write;

const HEADINGS: [&str; 6] = ["", "A", "B", "A / B", "interval", ""];

pub(super) fn of(comparison: &Comparison) -> String {
    let mut out = String::new();
    let Some(first) = comparison.contenders.first() else { return out };
    for (place, other) in comparison.contenders.iter().enumerate().skip(1) {
        let turns = comparison.runs.iter().filter(|run| run.contender == place).count();
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "\n{}, {turns} turns: A is {}, B is {}",
            comparison.scenario, first.name, other.name
        );
        let mut rows = vec![HEADINGS.map(str::to_owned)];
        rows.extend(comparison.ratios.iter().filter(|ratio| ratio.to == place).map(row));
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
        for row in &rows {
            let mut line = format!("{:<1$}", row[0], widths[0]);
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                let _ = write!(line, "  {cell:>width$}");
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
    let bootstrap = &comparison.bootstrap;
    let _ = writeln!(
        out,
        "\nThe interval holds {:.0} % of {} bootstrap drawings of whole turns, and is widened as few turns ask for; of blocks of {} s where it says so.",
        bootstrap.confidence * 100.0,
        quantity::grouped(u64::from(bootstrap.resamples)),
        bootstrap.block_seconds
    );
    warnings(comparison, &mut out);
    out
}

fn row(ratio: &Ratio) -> [String; 6] {
    let over = if ratio.over == Over::Seconds { " (over seconds)" } else { "" };
    let interval = ratio.interval.map_or_else(
        || "too few turns".to_owned(),
        |interval| format!("{} – {}", quantity::ratio(interval.low), quantity::ratio(interval.high)),
    );
    [
        format!("{}{over}", named_figure(ratio)),
        amount(ratio.figure, ratio.a),
        amount(ratio.figure, ratio.b),
        quantity::ratio(ratio.ratio),
        interval,
        judged(ratio).1,
    ]
}

fn warnings(comparison: &Comparison, out: &mut String) {
    if let Some(reason) = &comparison.verdict.partial {
        let _ = writeln!(out, "PARTIAL: {reason}");
    }
    for note in &comparison.verdict.notes {
        let _ = writeln!(out, "note: {note}");
    }
    for run in &comparison.runs {
        let name = comparison.contenders.get(run.contender).map_or("", |one| &one.name);
        let mut say = |word: &str, what: &str| {
            let _ = writeln!(out, "{word}: {name}, turn {}: {what}", run.turn);
        };
        let verdict = &run.result.verdict;
        verdict.generator_limited.iter().for_each(|reason| say("GENERATOR LIMITED", reason));
        verdict.incomplete.iter().for_each(|reason| say("INCOMPLETE", reason));
        verdict.failed.iter().for_each(|reason| say("FAILED", reason));
        verdict.notes.iter().for_each(|note| say("note", note));
        for part in run.result.parts.iter().filter(|part| !part.errors.is_empty()) {
            let errors =
                part.errors.iter().map(|(name, count)| format!("{name} {}", quantity::grouped(*count)));
            say("errors", &errors.collect::<Vec<_>>().join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::document::{COMPARISON_FORMAT, Contender, Turn};
    use crate::compare::figures::Digest;
    use crate::compare::statistics;
    use crate::result::{Verdict, fixture};
    use std::path::Path;

    fn comparison() -> Comparison {
        let contender = |name: &str| Contender { name: name.to_owned(), description: String::new() };
        let run = |contender: usize, turn: u32| {
            let result = fixture::run("x", u64::from(turn), if contender == 0 { 1.0 } else { 4.0 });
            Turn { contender, turn, result }
        };
        let runs: Vec<Turn> = (1..=3).flat_map(|turn| [run(0, turn), run(1, turn)]).collect();
        let digests = |place: usize| -> Vec<Digest> {
            let own = runs.iter().filter(|run| run.contender == place);
            own.map(|run| Digest::of(&run.result).expect("sound")).collect()
        };
        Comparison {
            format: COMPARISON_FORMAT.to_owned(),
            format_version: 1,
            tool: runs[0].result.tool.clone(),
            scenario: "latency".to_owned(),
            started_unix_ms: 0,
            contenders: vec![contender("flumen"), contender("kafka")],
            ratios: statistics::ratios(&digests(0), &digests(1), 1),
            runs,
            bootstrap: statistics::BOOTSTRAP,
            verdict: Verdict::default(),
        }
    }

    #[test]
    fn a_row_holds_both_values_the_ratio_and_the_judgement() {
        let text = of(&comparison());
        let line = text.lines().find(|line| line.starts_with("broker CPU per record")).expect("such a row");
        let cells: Vec<&str> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(
            cells,
            ["broker CPU per record", "30.0 µs", "120 µs", "0.25", "0.25 – 0.25", "4.00 × better"],
            "{text}"
        );
        assert!(text.lines().any(|line| line.starts_with("produced, records (over seconds)")), "{text}");
    }

    #[test]
    fn what_takes_from_the_figures_is_said() {
        let mut comparison = comparison();
        comparison.verdict.partial = Some("interrupted".to_owned());
        let third = &mut comparison.runs[3].result;
        third.verdict.generator_limited = Some("it was full".to_owned());
        third.verdict.incomplete = Some("9 were never sent".to_owned());
        third.verdict.notes.push("the broker did not keep up".to_owned());
        third.parts[0].errors.insert("TIMEOUT".to_owned(), 1234);
        comparison.ratios.iter_mut().for_each(|ratio| ratio.is_withheld = true);
        let text = of(&comparison);
        for line in [
            "INCOMPLETE: kafka, turn 2: 9 were never sent",
            "note: kafka, turn 2: the broker did not keep up",
            "errors: kafka, turn 2: TIMEOUT 1,234",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}: {text}");
        }
        assert!(!text.contains("better") && !text.contains("worse"), "{text}");
        assert!(text.contains("PARTIAL: interrupted\n"), "{text}");
        assert!(text.contains("GENERATOR LIMITED: kafka, turn 2: it was full\n"), "{text}");
    }

    #[test]
    fn the_document_is_read_again_and_checked() {
        let comparison = comparison();
        let document = serde_json::to_vec(&comparison).expect("a document");
        assert_eq!(Comparison::parse(&document, Path::new("c.json")).expect("sound"), comparison);
        let mut wrong = comparison.clone();
        wrong.ratios[0].to = 7;
        let document = serde_json::to_vec(&wrong).expect("a document");
        assert!(Comparison::parse(&document, Path::new("c.json")).is_err());
        let as_run = crate::result::RunResult::parse(&document, Path::new("c.json"));
        assert!(as_run.is_err(), "a comparison is no run");
    }
}
