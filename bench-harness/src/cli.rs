//! What can be asked for: the commands and their arguments, as clap reads and documents them.

use crate::scenario::Overrides;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Where a broker is, unless it is said.
pub(crate) const BROKERS: &str = "127.0.0.1:9092";

const EXIT_CODES: &str = "\
Exit codes:
  0    done, and the figures stand
  1    something failed on the way
  2    the arguments or the scenario make no sense
  3    no broker answers
  4    records were lost, duplicated or reordered
  130  interrupted (Ctrl-C); what there was has been written, marked as partial";

/// Measures any broker that speaks the Kafka protocol: latency from the time at which a record was due, whole
/// histograms, records checked for loss, and the word `limited` where the generator was.
#[derive(Debug, Parser)]
#[command(
    name = "flumen-bench",
    version,
    max_term_width = 100,
    after_help = EXIT_CODES,
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunOptions,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a scenario: one that comes with the program (see `scenarios`), or a file
    Run(RunScenario),
    /// Run again what a result holds the setting of
    Rerun(Rerun),
    /// List the scenarios that come with the program
    Scenarios,
    /// Draw results as one HTML page that needs nothing else
    Report(ReportOptions),
}

/// How to run, whatever is run.
#[derive(Args, Clone, Debug)]
pub(crate) struct RunOptions {
    /// Addresses to begin with, HOST:PORT, separated by commas
    #[arg(short, long, default_value = BROKERS, env = "FLUMEN_BROKERS", value_name = "ADDRESSES")]
    pub brokers: String,
    /// Write the result as JSON, from which it can be drawn, compared and run again
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write an interval log for each part, a line for each second, as HdrHistogram's tools read it: the part's name is
    /// added to this one
    #[arg(long, value_name = "FILE")]
    pub hlog: Option<PathBuf>,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Where the broker's data is, when it is on this machine: which disk the result names
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Sockets by epoll instead of io_uring
    #[arg(long)]
    pub epoll: bool,
    #[command(flatten)]
    pub overrides: Overrides,
}

#[derive(Args, Debug)]
pub(crate) struct RunScenario {
    /// A name, or the path of a TOML file
    pub scenario: String,
    #[command(flatten)]
    pub options: RunOptions,
}

#[derive(Args, Debug)]
pub(crate) struct Rerun {
    /// The result of a run
    #[arg(value_name = "RESULT.json")]
    pub result: PathBuf,
    #[command(flatten)]
    pub options: RunOptions,
}

#[derive(Args, Debug)]
pub(crate) struct ReportOptions {
    /// Results of runs or of a comparison, as `-o` wrote them; several are drawn side by side
    #[arg(required = true, value_name = "RESULT.json")]
    pub results: Vec<PathBuf>,
    /// The page to write
    #[arg(short, long, default_value = "report.html", value_name = "FILE")]
    pub output: PathBuf,
}
