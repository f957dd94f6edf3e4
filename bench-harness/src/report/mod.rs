//! `flumen-bench report`: results as one HTML page that needs nothing else: no network, no file beside it. What can be
//! said in words and tables is in the page itself; its script only draws curves, out of data that stands in it as JSON.
//!
//! ```text
//!   results --series--> charts as plain numbers --.
//!      '-----words----> verdicts, tables ---------page--> HTML
//! ```
//!
//! Invariant: whatever a scenario, a broker or an error calls itself, it stays text: [`page`] escapes all of it, and the
//! page forbids itself to load anything.

mod page;
mod series;
mod words;

use crate::cli::ReportOptions;
use crate::compare::document::{COMPARISON_FORMAT, Comparison};
use crate::failure::Failure;
use crate::result::{self, RUN_FORMAT, RunResult};
pub(crate) use page::{amount, judged, named_figure};
use series::Side;
use std::path::Path;

/// Contenders that a page has colours for.
const SIDES_MAX: usize = 4;

pub(crate) fn run(options: &ReportOptions) -> Result<(), Failure> {
    let mut results = Vec::new();
    for path in &options.results {
        let document = result::read_document(path)?;
        match result::check_format(&document, path, &[RUN_FORMAT, COMPARISON_FORMAT])? {
            RUN_FORMAT => results.push(RunResult::parse(&document, path)?),
            _ if options.results.len() > 1 => {
                return Err(Failure::Usage(format!(
                    "{}: a comparison has a page of its own: give it alone",
                    path.display()
                )));
            }
            _ => return write_comparison(&Comparison::parse(&document, path)?, &options.output),
        }
    }
    write_runs(&results, &options.results, &options.output)
}

/// The page of a comparison.
pub(crate) fn write_comparison(comparison: &Comparison, output: &Path) -> Result<(), Failure> {
    let side = |(place, contender): (usize, &crate::compare::document::Contender)| Side {
        name: contender.name.clone(),
        runs: comparison.runs.iter().filter(|run| run.contender == place).map(|run| &run.result).collect(),
    };
    let sides: Vec<Side> = comparison.contenders.iter().enumerate().map(side).collect();
    check_count(sides.len())?;
    result::write_document(output, page::write(&sides, Some(comparison)).as_bytes())
}

/// Runs side by side, each for itself; they are not called a comparison, since nothing says that they ran by turns.
fn write_runs(results: &[RunResult], paths: &[std::path::PathBuf], output: &Path) -> Result<(), Failure> {
    check_count(results.len())?;
    let name = |result: &RunResult, path: &Path| match results.len() {
        1 => result.broker.version.clone().unwrap_or_else(|| "broker".to_owned()),
        _ => path.file_stem().map_or_else(|| "run".to_owned(), |stem| stem.to_string_lossy().into_owned()),
    };
    let sides: Vec<Side> = results
        .iter()
        .zip(paths)
        .map(|(result, path)| Side { name: name(result, path), runs: vec![result] })
        .collect();
    result::write_document(output, page::write(&sides, None).as_bytes())
}

/// A page of more would be a puzzle.
pub(crate) fn check_count(sides: usize) -> Result<(), Failure> {
    if sides > SIDES_MAX {
        return Err(Failure::Usage(format!(
            "{sides} results on one page can not be told apart: give at most {SIDES_MAX}"
        )));
    }
    Ok(())
}
