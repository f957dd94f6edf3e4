//! `flumen`, the command: topics, records, groups and settings of any cluster that speaks the Kafka protocol; segments
//! on disk; what a machine lacks to run a node.
//!
//! ```text
//!   cli      what can be asked for          one file for each command      topic, group, config, produce, consume, ...
//!   output   tables, JSON, the terminal     one file for each notation     record_format, offset_spec, time, amount
//! ```
//!
//! Each command makes a [`output::Report`] or writes to [`output::Out`]; which form that takes is decided there alone.

mod amount;
mod cli;
mod cluster;
mod config;
mod consume;
mod doctor;
mod failure;
mod group;
mod interrupt;
mod log;
mod offset_spec;
mod output;
mod produce;
mod record_format;
mod time;
mod topic;

use clap::{CommandFactory, Parser};
use cli::{Arguments, Command};
use failure::Failure;
use flumen_client::{Cluster, Settings, runtime};
use output::Out;
use std::net::Ipv6Addr;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = Out::new(arguments.format);
    let result = run(arguments, &mut out).and_then(|()| out.flush());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads us has read enough.
        Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = out.flush();
            failure.tell();
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(arguments: Arguments, out: &mut Out) -> Result<(), Failure> {
    // Where no broker is asked, it does not matter which was named.
    let settings = settings(&arguments);
    match arguments.command {
        Command::Completions { shell } => {
            let mut command = Arguments::command();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "flumen", &mut script);
            out.write(&script)
        }
        Command::Man { directory } => man(directory.as_deref(), out),
        Command::Log(command) => log::run(command, out),
        Command::Doctor(options) => doctor::run(&options, out),
        command => runtime::block_on(async {
            let cluster = Cluster::connect(settings?).await?;
            match command {
                Command::Topic(command) => topic::run(&cluster, command, out).await,
                Command::Group(command) => group::run(&cluster, command, out).await,
                Command::Config(command) => config::run(&cluster, command, out).await,
                Command::Cluster(command) => cluster::run(&cluster, command, out).await,
                Command::Produce(options) => produce::run(&cluster, options, out).await,
                Command::Consume(options) => consume::run(&cluster, options, out).await,
                Command::Completions { .. } | Command::Man { .. } | Command::Log(_) | Command::Doctor(_) => {
                    Ok(())
                }
            }
        }),
    }
}

fn settings(arguments: &Arguments) -> Result<Settings, Failure> {
    let timeout = amount::duration(&arguments.timeout).ok_or_else(|| {
        Failure::usage(format!("--timeout {}: give a time, as in 30s or 500ms", arguments.timeout))
    })?;
    let addresses = arguments.brokers.split(',').map(str::trim).filter(|one| !one.is_empty());
    let read = |one: &str| {
        with_port(one).ok_or_else(|| {
            Failure::usage(format!("--brokers {one}: give HOST:PORT, as in 127.0.0.1:9092 or [::1]:9092"))
        })
    };
    let brokers = addresses.map(read).collect::<Result<Vec<String>, Failure>>()?;
    if brokers.is_empty() {
        return Err(Failure::usage("--brokers: give at least one HOST:PORT"));
    }
    Ok(Settings {
        brokers,
        client_id: arguments.client_id.clone(),
        request_timeout: timeout,
        retry_timeout: timeout,
    })
}

/// Kafka's port where none is given; none where what is given is no address.
fn with_port(address: &str) -> Option<String> {
    if address.parse::<Ipv6Addr>().is_ok() {
        return Some(format!("[{address}]:9092"));
    }
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !address.ends_with(']') => (host, port.parse::<u16>().ok()?),
        _ => (address, 9092),
    };
    let in_brackets = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_host = match in_brackets {
        Some(inside) => inside.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains([':', '[', ']']),
    };
    is_host.then(|| format!("{host}:{port}"))
}

/// One page to standard output, or a page for each command into a directory.
fn man(directory: Option<&std::path::Path>, out: &mut Out) -> Result<(), Failure> {
    let command = Arguments::command();
    let Some(directory) = directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command)
            .render(&mut page)
            .map_err(|error| Failure::io("the man page", error))?;
        return out.write(&page);
    };
    std::fs::create_dir_all(directory).map_err(|error| Failure::io(directory.display(), error))?;
    clap_mangen::generate_to(command, directory).map_err(|error| Failure::io(directory.display(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_kafkas_unless_it_is_given() {
        for (given, used) in [
            ("h", "h:9092"),
            ("h:1", "h:1"),
            ("::1", "[::1]:9092"),
            ("[::1]", "[::1]:9092"),
            ("[::1]:1", "[::1]:1"),
            ("10.0.0.1", "10.0.0.1:9092"),
        ] {
            assert_eq!(with_port(given).as_deref(), Some(used));
        }
        for wrong in ["127.0.0.1:99999", "h:", "h:x", ":9092", "a:b:1", "[::1", "[h]", "[::1]:x", "::1]:1"] {
            assert_eq!(with_port(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_arguments_are_sound() {
        Arguments::command().debug_assert();
    }
}
