//! What can be asked for: the commands and their arguments, as clap reads and documents them. Conventions are those of
//! kcat and rpk where they have one.

use crate::offset_spec::{self, OffsetSpec};
use crate::record_format::RecordFormat;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use flumen_wire::compression::Compression;
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the broker refused, or something failed on the way
  2    the arguments make no sense
  3    no broker answers
  4    `log verify`, `log dump` or `doctor` found something wrong
  130  interrupted (Ctrl-C) before the end";

/// Topics, records, groups and settings of a cluster that speaks the Kafka protocol; segments on disk; what this machine
/// lacks to run a node.
#[derive(Debug, Parser)]
#[command(name = "flumen", version, max_term_width = 100, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// Brokers to begin with, separated by commas; port 9092 where none is given
    #[arg(
        short,
        long,
        global = true,
        env = "FLUMEN_BROKERS",
        default_value = "127.0.0.1:9092",
        value_name = "HOST:PORT,...",
        help_heading = "Cluster"
    )]
    pub brokers: String,
    /// How long an answer may take, and a request be tried again
    #[arg(long, global = true, default_value = "30s", value_name = "TIME", help_heading = "Cluster")]
    pub timeout: String,
    /// What to be called in the broker's logs and quotas
    #[arg(long, global = true, default_value = "flumen", value_name = "NAME", help_heading = "Cluster")]
    pub client_id: String,
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub format: Format,
    #[command(subcommand)]
    pub command: Command,
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns that fit the terminal
    Table,
    /// JSON: one document, or one line for each record
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make, list, describe, change and remove topics
    #[command(subcommand)]
    Topic(TopicCommand),
    /// List, describe, move and remove consumer groups
    #[command(subcommand)]
    Group(GroupCommand),
    /// Show and change settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Send the lines of standard input, or of a file, as records
    Produce(ProduceOptions),
    /// Print records
    Consume(ConsumeOptions),
    /// About the cluster
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Look at segments on disk, of Flumen's or Kafka's; no broker is asked
    #[command(subcommand)]
    Log(LogCommand),
    /// What this machine lacks to run a node, and the command that mends it
    Doctor(DoctorOptions),
    /// Print completions for a shell
    Completions {
        /// For which
        shell: clap_complete::Shell,
    },
    /// Print the man page, or write one for each command into a directory
    Man {
        /// Where to
        directory: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Make topics
    Create {
        /// Their names
        #[arg(required = true, value_name = "TOPIC")]
        topics: Vec<String>,
        /// How many partitions each gets [default: the broker's num.partitions]
        #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
        partitions: Option<i32>,
        /// How many brokers hold each partition [default: the broker's default.replication.factor]
        #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(i16).range(1..))]
        replicas: Option<i16>,
        /// A setting, as in retention.ms=86400000; may be given many times
        #[arg(short, long = "config", value_name = "KEY=VALUE", value_parser = key_value)]
        configs: Vec<(String, String)>,
        /// Leave topics alone that are there
        #[arg(long)]
        if_not_exists: bool,
        /// Only ask whether it could be done
        #[arg(long)]
        dry_run: bool,
    },
    /// List topics
    List {
        /// Also those that the brokers keep for themselves
        #[arg(short, long)]
        internal: bool,
    },
    /// Show partitions, their leaders and ends, and settings that differ from the defaults
    Describe {
        /// Their names
        #[arg(required = true, value_name = "TOPIC")]
        topics: Vec<String>,
    },
    /// Change a topic
    Alter {
        /// Its name
        topic: String,
        /// Raise the number of partitions to this
        #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
        partitions: Option<i32>,
        /// Change a setting; may be given many times
        #[arg(short, long = "config", visible_alias = "set", value_name = "KEY=VALUE", value_parser = key_value)]
        configs: Vec<(String, String)>,
        /// Take a setting back to its default; may be given many times
        #[arg(long, value_name = "KEY")]
        reset: Vec<String>,
    },
    /// Remove topics with all their records
    Delete {
        /// Their names
        #[arg(required = true, value_name = "TOPIC")]
        topics: Vec<String>,
        /// Do not mind topics that are not there
        #[arg(long)]
        if_exists: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// List groups
    List,
    /// Show where groups are in each partition, how far behind, and who reads it
    Describe {
        /// Their ids
        #[arg(required = true, value_name = "GROUP")]
        groups: Vec<String>,
    },
    /// Move a group without members to other offsets
    Seek {
        /// Its id; one that is not there is made
        group: String,
        /// Where to: start, end, OFFSET, +N (from the start), -N (before the end), @TIME
        #[arg(long, value_name = "OFFSET", value_parser = offset_spec::parse, allow_hyphen_values = true)]
        to: OffsetSpec,
        /// Topics, or single partitions as TOPIC:PARTITION, separated by commas [default: all that the group has]
        #[arg(short, long, value_name = "TOPIC[:N],...", value_delimiter = ',')]
        topics: Vec<String>,
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove groups without members, with their offsets
    Delete {
        /// Their ids
        #[arg(required = true, value_name = "GROUP")]
        groups: Vec<String>,
    },
}

/// What has settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EntityKind {
    /// A topic, by name
    Topic,
    /// A broker, by number; `all` for what all brokers share
    Broker,
    /// A group, by id
    Group,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show settings
    Get {
        /// Of what
        #[arg(value_enum)]
        kind: EntityKind,
        /// Which one
        name: String,
        /// Only these [default: all]
        keys: Vec<String>,
        /// Only those that somebody has set
        #[arg(short, long)]
        changed: bool,
    },
    /// Change settings, all or none
    Set {
        /// Of what
        #[arg(value_enum)]
        kind: EntityKind,
        /// Which one
        name: String,
        /// What to set
        #[arg(value_name = "KEY=VALUE", value_parser = key_value, required_unless_present = "reset")]
        configs: Vec<(String, String)>,
        /// Take a setting back to its default; may be given many times
        #[arg(long, value_name = "KEY")]
        reset: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show brokers, controller and features
    Info {
        /// Also the APIs and their versions
        #[arg(long)]
        apis: bool,
    },
}

/// Arguments of `produce`.
#[derive(Debug, Args)]
pub(crate) struct ProduceOptions {
    /// Where to
    pub topic: String,
    /// What separates key and value in a line; \t and \xHH are understood [default: no keys]
    #[arg(short, long, visible_short_alias = 'K', value_name = "SEP")]
    pub key_separator: Option<String>,
    /// A header for all records; may be given many times
    #[arg(short = 'H', long = "header", value_name = "KEY=VALUE", value_parser = key_value)]
    pub headers: Vec<(String, String)>,
    /// To this partition [default: by the key's hash; without a key, batch by batch to another]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub partition: Option<i32>,
    /// How batches are compressed
    #[arg(short = 'z', long, value_parser = codecs(), default_value_t = Compression::None, value_name = "CODEC")]
    pub compression: Compression,
    /// Read this file instead of standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Who must have a record before it counts as sent
    #[arg(short, long, value_enum, default_value_t = Acks::All, value_name = "WHO")]
    pub acks: Acks,
    /// Send empty values and keys as null
    #[arg(short = 'Z', long)]
    pub null: bool,
    /// How long a batch waits for more records
    #[arg(long, default_value = "5ms", value_name = "TIME")]
    pub linger: String,
    /// How large a batch grows, in bytes
    #[arg(long, default_value_t = 262_144, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub batch_size: u32,
    /// Let brokers neither drop duplicates nor keep the order of what has to be sent again
    #[arg(long)]
    pub no_idempotence: bool,
    /// Fail when the topic is not there, also where the broker would make it
    #[arg(long)]
    pub no_create: bool,
}

/// Codecs of batches, by their names.
fn codecs() -> impl TypedValueParser<Value = Compression> {
    PossibleValuesParser::new(Compression::NAMES)
        .map(|name| Compression::from_name(&name).expect("the parser takes no other names"))
}

/// Acknowledgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Acks {
    /// All replicas in sync
    #[value(alias = "-1")]
    All,
    /// The leader
    #[value(name = "1", alias = "leader")]
    Leader,
    /// Nobody: whether it arrived is not known
    #[value(name = "0", alias = "none")]
    None,
}

/// Arguments of `consume`.
#[derive(Debug, Args)]
pub(crate) struct ConsumeOptions {
    /// What to read
    #[arg(required = true, value_name = "TOPIC")]
    pub topics: Vec<String>,
    /// Read as a member of this group and commit what has been printed
    #[arg(short, long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Where to begin: start, end, OFFSET, +N (from the start), -N (before the end), @TIME [default: start; in a group, where
    /// it was, and start where it never was]
    #[arg(short, long, value_name = "OFFSET", value_parser = offset_spec::parse, allow_hyphen_values = true)]
    pub offset: Option<OffsetSpec>,
    /// End after so many records
    #[arg(short = 'n', visible_short_alias = 'c', long, value_name = "COUNT")]
    pub count: Option<u64>,
    /// How each record is printed: %k key, %v or %s value, %o offset, %p partition, %t topic, %T timestamp in ms, %d the
    /// same as a date, %h headers, %K and %S lengths of key and value, %% a percent sign; \n \r \t \0 \\ \xHH
    /// [default: %v\n]
    #[arg(
        short = 'f',
        long = "output",
        value_name = "FORMAT",
        value_parser = RecordFormat::parse,
        conflicts_with = "json"
    )]
    pub output: Option<RecordFormat>,
    /// Print records as JSON, one a line; as --format json
    #[arg(short = 'J', long)]
    pub json: bool,
    /// Only these partitions, separated by commas
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', conflicts_with = "group")]
    pub partitions: Vec<i32>,
    /// Wait for more at the end, until Ctrl-C
    #[arg(long)]
    pub follow: bool,
    /// Also print records of open and aborted transactions
    #[arg(long)]
    pub read_uncommitted: bool,
    /// How the group spreads partitions
    #[arg(long, value_enum, default_value_t = AssignorName::Range, value_name = "NAME", requires = "group")]
    pub assignor: AssignorName,
    /// A static name in the group: a restart keeps its partitions
    #[arg(long, value_name = "ID", requires = "group")]
    pub instance_id: Option<String>,
    /// How often to look whether topics have got more partitions, for the group to share them
    #[arg(long, default_value = "30s", value_name = "TIME", requires = "group")]
    pub metadata_age: String,
}

/// Assignors of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub(crate) enum AssignorName {
    Range,
    CooperativeSticky,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Print batches, or records
    Dump {
        /// A data folder, the folder of a partition, or a .log file
        path: PathBuf,
        /// Print records instead of batches, as `consume -f` does; JSON with --format json
        #[arg(short, long)]
        records: bool,
        /// With --records, how each is printed: see `consume` [default: %o\t%d\t%k\t%v\n]
        #[arg(
            short = 'f',
            long = "output",
            value_name = "FORMAT",
            value_parser = RecordFormat::parse,
            requires = "records"
        )]
        output: Option<RecordFormat>,
    },
    /// Check every byte: batches, checksums, records, offsets, indexes, journals, checkpoints, the metadata log; fails when
    /// anything is wrong
    Verify {
        /// A data folder, the folder of a partition, or a .log file
        path: PathBuf,
    },
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorOptions {
    /// The data folder of the node, or where it will be
    #[arg(long, env = "FLUMEN_DATA_DIR", default_value = "./flumen-data", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Leave out the disk test
    #[arg(long)]
    pub no_disk: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("give KEY=VALUE".to_owned()),
    }
}
