//! `flumen-bench`: a load generator for any broker of the Kafka protocol, and what is made of its results.
//!
//! ```text
//!   cli      what can be asked for        result    the document that a run leaves, and all else reads
//!   report   results -> one HTML page     machine   what the figures were measured on
//!                                         process   CPU, memory, disk of a local broker and of ourselves
//! ```
//!
//! A run is measured by one module and judged by others, and between them stands only [`result::RunResult`]: whatever is
//! compared, drawn or repeated is read from that file, so a result that was made elsewhere serves as well.

mod cli;
mod compare;
mod failure;
mod machine;
mod process;
mod quantity;
mod report;
mod result;

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
        Command::Report(options) => report::run(&options),
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
