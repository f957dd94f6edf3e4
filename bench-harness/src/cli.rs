//! What can be asked for: the commands and their arguments, as clap reads and documents them.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

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
#[command(name = "flumen-bench", version, max_term_width = 100, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Draw results as one HTML page that needs nothing else
    Report(ReportOptions),
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
