//! The node's binary: reads what it is told, looks at where it runs, and hands both to the server.
use clap::Parser;
use flumen_node::cli::Arguments;
use flumen_node::config::Config;
use flumen_node::probe::log;
use flumen_node::runtime::Stopper;
use flumen_node::{kernel, runtime, server, signals, sys};
use std::process::ExitCode;

/// What was asked for makes no sense.
const EXIT_USAGE: u8 = 2;
/// What was asked for cannot be had here, or went wrong.
const EXIT_FAILED: u8 = 1;

fn main() -> ExitCode {
    // The clock of all shards, and the start of the start-up time that is logged.
    runtime::uptime();
    // First of all, for it is free only while the process has one thread.
    sys::register_membarrier();
    sys::keep_freed_memory();
    let config = match Config::load(&Arguments::parse()) {
        Ok(config) => config,
        Err(mistake) => {
            eprintln!("flumen-node: {mistake}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    log::start(std::env::var("FLUMEN_LOG").ok().as_deref());
    let outcome = run(config);
    log::flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flumen-node: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn run(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let place = kernel::prepare(&config)?;
    for warning in config.warnings.iter().chain(&place.warnings) {
        tracing::warn!("{warning}");
    }
    let stopper = Stopper::new();
    signals::handle(stopper.clone())?;
    server::run(config, &place, stopper)?;
    Ok(())
}
