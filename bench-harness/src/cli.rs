//! What can be asked for: the commands and their arguments, as clap reads and documents them.

use crate::engine::{Driver, Means};
use crate::null_broker::Fault;
use crate::scenario::Overrides;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Where a broker is, unless it is said.
pub(crate) const BROKERS: &str = "127.0.0.1:9092";

const EXIT_CODES: &str = "\
Exit codes:
  0    done; read what is said of the figures
  1    something failed on the way
  2    the arguments or the scenario make no sense
  3    no broker answers
  4    records were lost, duplicated or reordered, or none came at all
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
    /// Hold brokers against each other by turns: A B B A, as ratios with intervals
    Compare(CompareOptions),
    /// Make load for a coordinator elsewhere, which names this one with --workers. For trusted networks
    Worker(WorkerOptions),
    /// Check the generator against a broker whose stalls are known
    Selftest(SelftestOptions),
    /// Be a broker that does next to nothing, to look at a generator
    NullBroker(NullBrokerOptions),
    /// Measure what this machine can do at most: disk, sync, loopback, checksums
    Limits(LimitsOptions),
    /// Draw results as one HTML page that needs nothing else
    Report(ReportOptions),
}

/// How to run, whatever is run.
#[derive(Args, Clone, Debug)]
pub(crate) struct RunOptions {
    /// Addresses to begin with, HOST:PORT, separated by commas [default: 127.0.0.1:9092; rerun: those of the result]
    #[arg(short, long, env = "FLUMEN_BROKERS", value_name = "ADDRESSES")]
    pub brokers: Option<String>,
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
    /// Have these make the load, each its share: addresses of `flumen-bench worker`, separated by commas
    #[arg(long, value_name = "ADDRESSES")]
    pub workers: Option<String>,
    /// Where the broker's data is, when it is on this machine: which disk the result names
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Measure what this machine can do at most before the load, and put it into the result
    #[arg(long)]
    pub limits: bool,
    /// Time bare synchronous writes below --data-dir at the same time as the load, fifty a second: what the disk gave
    /// meanwhile
    #[arg(long)]
    pub raw_sync: bool,
    #[command(flatten)]
    pub sending: Sending,
    #[command(flatten)]
    pub overrides: Overrides,
}

/// What makes the load.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Sending {
    /// The client of the producers [default: flumen; rerun: that of the result]
    #[arg(long, value_enum)]
    pub driver: Option<Driver>,
    /// Sockets by epoll instead of io_uring
    #[arg(long)]
    pub epoll: bool,
}

impl Sending {
    pub(crate) fn means(self) -> Means {
        Means { driver: self.driver.unwrap_or_default(), uring: !self.epoll }
    }
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
pub(crate) struct WorkerOptions {
    /// Where to listen; port 0 takes a free one. The address is printed
    #[arg(long, default_value = "127.0.0.1:7999", value_name = "HOST:PORT")]
    pub listen: String,
}

#[derive(Args, Debug)]
pub(crate) struct SelftestOptions {
    /// How long each stall is
    #[arg(long, default_value_t = 200.0, value_name = "MILLISECONDS", allow_negative_numbers = true)]
    pub stall_ms: f64,
    /// How often there is one
    #[arg(long, default_value_t = 5000.0, value_name = "MILLISECONDS", allow_negative_numbers = true)]
    pub every_ms: f64,
    /// How many are measured
    #[arg(long, default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..10_000))]
    pub stalls: u32,
    #[command(flatten)]
    pub sending: Sending,
}

#[derive(Args, Debug)]
pub(crate) struct NullBrokerOptions {
    /// Where to listen; port 0 takes a free one. The address is printed
    #[arg(long, default_value = "127.0.0.1:0", value_name = "HOST:PORT")]
    pub listen: String,
    /// Of every topic
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..100_000))]
    pub partitions: i32,
    /// How long each stall is
    #[arg(long, default_value_t = 0, value_name = "MILLISECONDS")]
    pub stall_ms: u64,
    /// How often there is one; 0: never
    #[arg(long, default_value_t = 0, value_name = "MILLISECONDS")]
    pub every_ms: u64,
    /// What is done to one batch of every hundred; it keeps batches then
    #[arg(long, value_enum, default_value = "none")]
    pub fault: Fault,
    /// Keep batches for readers
    #[arg(long)]
    pub keep: bool,
    /// Of these so many bytes; the oldest of a partition go first
    #[arg(long, default_value_t = 256 << 20, value_name = "BYTES")]
    pub keep_bytes: usize,
    /// A topic that there is; may be given several times. Without any, every topic is there
    #[arg(long = "topic", value_name = "NAME")]
    pub topics: Vec<String>,
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

/// What is compared: `flumen`, `kafka` (as it comes: it does not sync), `kafka-sync` (flush.messages=1) are started
/// here, with data of their own, and removed at the end; an address is a broker that runs.
#[derive(Args, Debug)]
pub(crate) struct CompareOptions {
    /// A name, or the path of a TOML file
    #[arg(default_value = "latency")]
    pub scenario: String,
    /// The one that is held against the others: flumen, flumen=PATH of its program, kafka, kafka-sync, or HOST:PORT
    #[arg(long, value_name = "BROKER")]
    pub a: String,
    /// What it is held against; may be given several times
    #[arg(long, value_name = "BROKER", required = true)]
    pub b: Vec<String>,
    /// Times that each is measured; below 3 there are no intervals
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub turns: u32,
    /// Turns before those that are thrown away, so that caches and compilers are warm
    #[arg(long, default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub warmup_turns: u32,
    /// The comparison with all its runs, as JSON; a page is drawn beside it, as .html
    #[arg(short, long, default_value = "comparison.json", value_name = "FILE")]
    pub output: PathBuf,
    /// Where brokers that are started here keep their data: below it, in folders that are removed again
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// Measure what this machine can do at most before the first turn that counts
    #[arg(long)]
    pub limits: bool,
    /// Kafka's jars; without it they are taken from the user's cache, where Maven puts them once
    #[arg(long, env = "FLUMEN_BENCH_KAFKA_JARS", value_name = "FOLDER")]
    pub kafka_jars: Option<PathBuf>,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Time bare synchronous writes on the disk of each broker that is started here, at the same time as the load
    #[arg(long)]
    pub raw_sync: bool,
    #[command(flatten)]
    pub sending: Sending,
    #[command(flatten)]
    pub overrides: Overrides,
}

#[derive(Args, Debug)]
pub(crate) struct LimitsOptions {
    /// On the disk that is meant; a file of 512 MiB is made there and removed
    #[arg(long, default_value = ".", value_name = "FOLDER")]
    pub folder: PathBuf,
    /// How long each thing is measured; there are six
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS", allow_negative_numbers = true)]
    pub seconds: f64,
    /// Write the figures as JSON, whole histograms included
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}
