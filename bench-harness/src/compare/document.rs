//! A comparison as a versioned JSON document: all its runs whole, and the ratios that were drawn from them.

use super::figures::Figure;
use crate::failure::Failure;
use crate::result::{self, RunResult, Tool, Verdict};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What `format` says in a comparison.
pub(crate) const COMPARISON_FORMAT: &str = "flumen-bench comparison";

/// See the head of this file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Comparison {
    /// [`COMPARISON_FORMAT`].
    pub format: String,
    pub format_version: u32,
    pub tool: Tool,
    pub scenario: String,
    pub started_unix_ms: u64,
    /// The first one is A, to which all others are held.
    pub contenders: Vec<Contender>,
    /// In the order in which they ran, without warm-ups.
    pub runs: Vec<Turn>,
    pub ratios: Vec<Ratio>,
    /// How the intervals were drawn.
    pub bootstrap: Bootstrap,
    /// Of the comparison itself; each run has its own.
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Contender {
    /// As given: `flumen`, `kafka-sync`, an address.
    pub name: String,
    /// What that means: the program and the settings that it was started with.
    pub description: String,
}

/// One measured run of one contender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Turn {
    /// Place in `contenders`.
    pub contender: usize,
    /// From 1; runs of one turn were next to each other.
    pub turn: u32,
    pub result: RunResult,
}

/// How figures were drawn again.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bootstrap {
    pub resamples: u32,
    pub seed: u64,
    /// Of the intervals: 0.95.
    pub confidence: f64,
    /// Seconds that were drawn together, because neighbours are alike.
    pub block_seconds: u32,
}

/// Over what an interval was drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Over {
    /// Whole turns, A and B of a turn together: what another comparison would show.
    Turns,
    /// Blocks of seconds, A and B apart: what these runs vary in themselves. Narrower than the truth, since what differs
    /// from run to run is not in it.
    Seconds,
}

/// A figure of A, divided by that of another contender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ratio {
    pub figure: Figure,
    /// Of the scenario; empty where it has one, and for figures of the whole run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// Place in `contenders` of the other.
    pub to: usize,
    pub over: Over,
    /// From all turns together: percentiles of merged histograms, never means of percentiles.
    pub a: f64,
    pub b: f64,
    pub ratio: f64,
    /// None where there were too few samples to draw from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// Turns, or blocks of seconds of the smaller side.
    pub samples: u32,
    /// A run of A or of the other left out what was due (`verdict.incomplete`): neither is called better.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_withheld: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Interval {
    pub low: f64,
    pub high: f64,
}

impl Comparison {
    /// Checked as far as the rest of the program relies on it.
    pub(crate) fn parse(document: &[u8], path: &Path) -> Result<Comparison, Failure> {
        result::check_format(document, path, &[COMPARISON_FORMAT])?;
        let comparison: Comparison =
            serde_json::from_slice(document).map_err(|error| result::unreadable(path, &error))?;
        let count = comparison.contenders.len();
        let in_range = |place: usize| place < count;
        if !comparison.runs.iter().all(|run| in_range(run.contender))
            || !comparison.ratios.iter().all(|ratio| in_range(ratio.to))
        {
            return Err(Failure::Other(format!(
                "{}: a run or a ratio of it is of none of its {count} contenders",
                path.display()
            )));
        }
        for run in &comparison.runs {
            run.result.check(path)?;
        }
        Ok(comparison)
    }

    /// Whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let document = serde_json::to_vec_pretty(self).map_err(|error| Failure::Other(error.to_string()))?;
        result::write_document(path, &document)
    }
}
