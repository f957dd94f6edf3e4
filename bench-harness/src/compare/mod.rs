//! `flumen-bench compare`: brokers held against each other, by turns in one run, A B B A, so that what changes on the
//! machine changes for all of them; as ratios with intervals, never as single runs.
//!
//! ```text
//!   contender --start--> warm-up turns --> turn 1: A, B   turn 2: B, A   ... --> statistics --> document, page, table
//!   kafka                (thrown away)                                           figures
//! ```
//!
//! All contenders run all the time; one that is not measured has nothing to do. Each run has topics of its own. Ctrl-C ends
//! the run at hand, and what was measured until then is compared and marked as partial.

mod contender;
pub(crate) mod document;
pub(crate) mod figures;
mod kafka;
pub(crate) mod statistics;
mod table;

use crate::cli::{CompareOptions, RunOptions};
use crate::console::{Console, remark};
use crate::failure::Failure;
use crate::result::{FORMAT_VERSION, RunResult, Tool, Verdict};
use crate::run::{Measured, check_writable, measure};
use crate::scenario::Scenario;
use crate::{interrupt, machine, report};
use contender::{Contender, Place, Spec};
use document::{COMPARISON_FORMAT, Comparison, Turn};
use figures::Digest;
use std::fs::File;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn run(options: &CompareOptions) -> Result<(), Failure> {
    let scenario = Scenario::load(&options.scenario)?.with(&options.overrides)?;
    let names: Vec<&str> = std::iter::once(&options.a).chain(&options.b).map(String::as_str).collect();
    let specs = names.iter().map(|name| Spec::parse(name)).collect::<Result<Vec<_>, _>>()?;
    specs.iter().try_for_each(contender::check_address)?;
    report::check_count(specs.len())?;
    check_writable(Some(&options.output))?;
    let interrupted = interrupt::flag()?;
    let place = Place {
        folder: options.folder.clone().unwrap_or_else(std::env::temp_dir),
        kafka_jars: options.kafka_jars.clone(),
    };
    let started_unix_ms =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
    let mut contenders = Vec::new();
    for spec in &specs {
        contenders.push(Contender::start(spec, &place, &interrupted)?);
    }
    let notes = notes(&contenders, &names);
    let (runs, partial) = turns(&scenario, options, &names, &mut contenders, &interrupted);
    let described = names.iter().zip(&contenders).map(|(name, contender)| document::Contender {
        name: (*name).to_owned(),
        description: contender.description.clone(),
    });
    let described: Vec<document::Contender> = described.collect();
    drop(contenders);
    let comparison = Comparison {
        format: COMPARISON_FORMAT.to_owned(),
        format_version: FORMAT_VERSION,
        tool: Tool { version: env!("CARGO_PKG_VERSION").to_owned(), command: std::env::args().collect() },
        scenario: scenario.name.clone(),
        started_unix_ms,
        ratios: ratios(&runs, described.len())?,
        contenders: described,
        runs,
        bootstrap: statistics::BOOTSTRAP,
        verdict: Verdict { partial: partial.as_ref().map(why), notes, ..Verdict::default() },
    };
    let finished = finish(&comparison, options);
    if let Err(Failure::BrokenPipe) | Ok(()) = finished {
        partial.map_or(Ok(()), Err)?;
        judge(&comparison)?;
    }
    finished
}

/// All turns, or those until something ended them.
fn turns(
    scenario: &Scenario,
    options: &CompareOptions,
    names: &[&str],
    contenders: &mut [Contender],
    interrupted: &AtomicBool,
) -> (Vec<Turn>, Option<Failure>) {
    let mut runs = Vec::new();
    // Before the first turn that counts.
    let mut wants_limits = [false, options.limits];
    for turn in 0..options.warmup_turns + options.turns {
        let counted = (turn + 1).checked_sub(options.warmup_turns).filter(|counted| *counted > 0);
        for place in order(contenders.len(), counted.map_or(turn, |counted| counted - 1)) {
            write_back(contenders);
            let contender = &mut contenders[place];
            if !options.quiet {
                match counted {
                    Some(counted) => {
                        remark(&format!("turn {counted} of {}: {}", options.turns, names[place]))
                    }
                    None => remark(&format!("warm-up: {}", names[place])),
                }
            }
            let with_limits = std::mem::take(&mut wants_limits[usize::from(counted.is_some())]);
            let asked = run_options(options, contender, with_limits);
            let measured = measure(scenario, &asked, interrupted, &mut None, &mut |_| ());
            let Measured { mut result, ended } = match measured {
                Ok(measured) => measured,
                Err(failure) => return (runs, Some(blamed(failure, names[place], contender))),
            };
            // What was started here is known.
            result.broker.version = contender.data.is_some().then(|| contender.description.clone());
            if let Some(turn) = counted {
                runs.push(Turn { contender: place, turn, result });
            }
            if let Some(failure) = ended {
                return (runs, Some(blamed(failure, names[place], contender)));
            }
        }
    }
    (runs, None)
}

/// A B, B A, A B, ...: who comes second finds the machine as the first one left it, so both do so as often.
fn order(contenders: usize, turn: u32) -> Vec<usize> {
    match turn % 2 {
        0 => (0..contenders).collect(),
        _ => (0..contenders).rev().collect(),
    }
}

/// What one contender has left in the page cache is not written to the disk while another is measured.
fn write_back(contenders: &[Contender]) {
    for folder in contenders.iter().filter_map(|contender| contender.data.as_deref()) {
        // A file system that cannot is as it is.
        let _ = File::open(folder).map(rustix::fs::syncfs);
    }
}

/// Of file systems on which a sync, or a write, is not what it is on a disk.
fn notes(contenders: &[Contender], names: &[&str]) -> Vec<String> {
    let note = |(contender, name): (&Contender, &&str)| {
        let why = machine::no_disk_below(contender.data.as_deref()?)?;
        Some(format!("{name}: {why}"))
    };
    contenders.iter().zip(names).filter_map(note).collect()
}

fn run_options(options: &CompareOptions, contender: &Contender, limits: bool) -> RunOptions {
    RunOptions {
        brokers: Some(contender.address.clone()),
        output: None,
        hlog: None,
        quiet: options.quiet,
        workers: None,
        limits,
        data_dir: contender.data.clone(),
        raw_sync: options.raw_sync && contender.data.is_some(),
        sending: options.sending,
        // The scenario holds them already.
        overrides: Default::default(),
    }
}

/// A failed run says whose it was, and what the broker said when it ended.
fn blamed(failure: Failure, name: &str, contender: &mut Contender) -> Failure {
    match (failure, contender.why_ended()) {
        (Failure::Interrupted, _) => Failure::Interrupted,
        (_, Some(ended)) => Failure::Other(format!("{name}: {ended}")),
        (Failure::NoBroker(what), None) => Failure::NoBroker(format!("{name}: {what}")),
        (other, None) => Failure::Other(format!("{name}: {}", other)),
    }
}

fn why(failure: &Failure) -> String {
    match failure {
        Failure::Interrupted => "interrupted before its time".to_owned(),
        other => other.to_string(),
    }
}

/// Of the turns that all contenders had.
fn ratios(runs: &[Turn], contenders: usize) -> Result<Vec<document::Ratio>, Failure> {
    let digests = |place: usize| -> Result<Vec<Digest>, Failure> {
        let own = runs.iter().filter(|run| run.contender == place);
        own.map(|run| Digest::of(&run.result).map_err(Failure::Other)).collect()
    };
    let is_incomplete = |place: usize| {
        runs.iter().any(|run| run.contender == place && run.result.verdict.incomplete.is_some())
    };
    let a = digests(0)?;
    let mut found = Vec::new();
    for to in 1..contenders {
        let is_withheld = is_incomplete(0) || is_incomplete(to);
        let ratios = statistics::ratios(&a, &digests(to)?, to).into_iter();
        found.extend(ratios.map(|ratio| document::Ratio { is_withheld, ..ratio }));
    }
    Ok(found)
}

/// Writes the document and the page beside it, and prints the table.
fn finish(comparison: &Comparison, options: &CompareOptions) -> Result<(), Failure> {
    if comparison.runs.is_empty() {
        return Ok(());
    }
    let page = options.output.with_extension("html");
    let written =
        comparison.write(&options.output).and_then(|()| report::write_comparison(comparison, &page));
    let mut console = Console::default();
    console.print(&table::of(comparison));
    written?;
    console.print(&format!("\nwritten: {} and {}\n", options.output.display(), page.display()));
    console.end()
}

/// A run that failed makes the comparison one that failed.
fn judge(comparison: &Comparison) -> Result<(), Failure> {
    let failed = |run: &Turn| -> Option<String> {
        let RunResult { verdict, .. } = &run.result;
        let name = &comparison.contenders.get(run.contender)?.name;
        (!verdict.failed.is_empty())
            .then(|| format!("{name}, turn {}: {}", run.turn, verdict.failed.join("; ")))
    };
    let all: Vec<String> = comparison.runs.iter().filter_map(failed).collect();
    if all.is_empty() { Ok(()) } else { Err(Failure::Unsound(all.join("\n"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::fixture;

    #[test]
    fn each_contender_is_first_as_often_as_any_other() {
        assert_eq!([0, 1, 2].map(|turn| order(2, turn)), [[0, 1], [1, 0], [0, 1]]);
        assert_eq!(order(3, 1), [2, 1, 0]);
    }

    #[test]
    fn a_pair_with_a_run_that_left_something_out_is_not_judged() {
        let run = |contender: usize, is_incomplete: bool| {
            let mut result = fixture::run("x", 1, 1.0 + contender as f64);
            result.verdict.incomplete = is_incomplete.then(|| "3 were never sent".to_owned());
            Turn { contender, turn: 1, result }
        };
        let runs = [run(0, false), run(1, false), run(2, true)];
        let found = ratios(&runs, 3).expect("sound");
        assert!(found.iter().all(|ratio| ratio.is_withheld == (ratio.to == 2)), "{found:?}");
        assert!(found.iter().any(|ratio| ratio.to == 1));
    }
}
