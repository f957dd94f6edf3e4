//! `flumen-bench`: a load generator for any broker of the Kafka protocol, and what is made of its results.
//!
//! ```text
//!   scenario   what load, for how long          cli       what can be asked for
//!   target     the cluster and its topics       result    the document that a run leaves, and all else reads
//!   layout     which thread has what
//!   phase      one load, over all threads       report    results -> one HTML page
//!   engine     the load itself, thread by       machine   what the figures were measured on
//!              thread: lanes send, readers      process   CPU, memory, disk of a local broker and of ourselves
//!              read, and all is tallied
//!   remote     the same on several machines
//!   schedule, payload, keys                     when records are due, what they hold, whose they are
//!   sequence, growth, collect                   what arrived, and what adds up to what
//!   compare    brokers by turns -> ratios       limits    what the machine can do at most
//!   outage     a local broker that is killed      quantity  amounts as people read them
//!              and started again                  verdict   whether figures may be believed
//! ```
//!
//! A run is measured by one module and judged by others, and between them stands only [`result::RunResult`]: whatever is
//! compared, drawn or repeated is read from that file, so a result that was made elsewhere serves as well.

mod cli;
mod collect;
mod compare;
mod console;
mod engine;
mod failure;
mod growth;
mod hlog;
mod interrupt;
mod keys;
mod layout;
mod limits;
mod machine;
mod null_broker;
mod outage;
mod payload;
mod phase;
mod process;
mod progress;
mod quantity;
mod remote;
mod report;
mod result;
mod run;
mod scenario;
mod schedule;
mod selftest;
mod sequence;
mod summary;
mod target;
mod verdict;

use clap::Parser;
use cli::{Arguments, Command};
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell();
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        None => run::scenario(scenario::Scenario::load("canonical")?, &arguments.run),
        Some(Command::Run(asked)) => {
            run::scenario(scenario::Scenario::load(&asked.scenario)?, &asked.options)
        }
        Some(Command::Rerun(asked)) => run::again(&asked.result, &asked.options),
        Some(Command::Scenarios) => {
            let line = |(name, description)| format!("{name:18}{description}\n");
            console::say(&scenario::Scenario::built_in().map(line).collect::<String>())
        }
        Some(Command::Compare(options)) => compare::run(&options),
        Some(Command::Worker(options)) => remote::serve(&options),
        Some(Command::Selftest(options)) => selftest::run(&options),
        Some(Command::NullBroker(options)) => null_broker::serve(&options),
        Some(Command::Limits(options)) => limits::run(&options),
        Some(Command::Report(options)) => report::run(&options),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_sound() {
        Arguments::command().debug_assert();
    }
}
