//! `flumen-bench compare`: brokers held against each other, by turns in one run, A B A B, so that what changes on the
//! machine changes for all of them; as ratios with intervals, never as single runs.
//!
//! ```text
//!   contender --start--> warm-up turns --> turn 1: A, B   turn 2: A, B   ... --> statistics --> document, page, table
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
use crate::failure::Failure;
use crate::result::{FORMAT_VERSION, RunResult, Tool, Verdict};
use crate::run::{check_writable, measure};
use crate::scenario::Scenario;
use crate::{interrupt, report};
use contender::{Contender, Place, Spec};
use document::{COMPARISON_FORMAT, Comparison, Turn};
use figures::Digest;
use std::sync::atomic::{AtomicBool, Ordering};
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
        verdict: Verdict { partial: partial.as_ref().map(why), ..Verdict::default() },
    };
    finish(&comparison, options)?;
    match partial {
        Some(failure) => Err(failure),
        None => judge(&comparison),
    }
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
    for turn in 0..options.warmup_turns + options.turns {
        let counted = (turn + 1).checked_sub(options.warmup_turns).filter(|counted| *counted > 0);
        for (place, contender) in contenders.iter_mut().enumerate() {
            if !options.quiet {
                match counted {
                    Some(counted) => eprintln!("turn {counted} of {}: {}", options.turns, names[place]),
                    None => eprintln!("warm-up: {}", names[place]),
                }
            }
            let with_limits = options.limits && counted == Some(1) && place == 0;
            let asked = run_options(options, contender, with_limits);
            let measured = measure(scenario, &asked, interrupted, &mut None, &mut |_| ());
            match (measured, counted) {
                (Err(failure), _) => return (runs, Some(blamed(failure, names[place], contender))),
                (Ok(result), Some(turn)) => runs.push(Turn { contender: place, turn, result }),
                (Ok(_), None) => {}
            }
            if interrupted.load(Ordering::Relaxed) {
                return (runs, Some(Failure::Interrupted));
            }
        }
    }
    (runs, None)
}

fn run_options(options: &CompareOptions, contender: &Contender, limits: bool) -> RunOptions {
    RunOptions {
        brokers: contender.address.clone(),
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
    let a = digests(0)?;
    let mut found = Vec::new();
    for to in 1..contenders {
        found.extend(statistics::ratios(&a, &digests(to)?, to));
    }
    Ok(found)
}

/// Prints the table, writes the document and the page beside it.
fn finish(comparison: &Comparison, options: &CompareOptions) -> Result<(), Failure> {
    if comparison.runs.is_empty() {
        return Ok(());
    }
    print!("{}", table::of(comparison));
    let page = options.output.with_extension("html");
    comparison.write(&options.output)?;
    report::write_comparison(comparison, &page)?;
    println!("\nwritten: {} and {}", options.output.display(), page.display());
    Ok(())
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
