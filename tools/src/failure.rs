//! How a command can end other than well, and the exit code of each.

use flumen_client::Error;
use std::fmt::Display;
use std::io::{self, Write};

/// See the head of this file.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The cluster could not be asked, or refused.
    Client(Error),
    /// What was asked for makes no sense; found after the arguments were read.
    Usage(String),
    /// A file.
    Io(String, io::Error),
    /// Some of what was asked for could not be done; what, has been said.
    Partial(String),
    /// What was looked at is not sound.
    Unsound(String),
    /// Ctrl-C before the end.
    Interrupted,
    /// Nobody reads the output any more.
    BrokenPipe,
}

impl Failure {
    pub(crate) fn usage(what: impl Into<String>) -> Failure {
        Failure::Usage(what.into())
    }

    pub(crate) fn io(what: impl Display, error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::Io(what.to_string(), error),
        }
    }

    /// As `flumen --help` lists them.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::BrokenPipe => 0,
            Failure::Client(Error::NoBroker(_)) => 3,
            Failure::Client(_) | Failure::Io(..) | Failure::Partial(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Unsound(_) => 4,
            Failure::Interrupted => 130,
        }
    }

    /// To standard error.
    pub(crate) fn tell(&self) {
        let text = match self {
            Failure::Client(error) => error.to_string(),
            Failure::Usage(what) | Failure::Partial(what) | Failure::Unsound(what) => what.clone(),
            Failure::Io(what, error) => format!("{what}: {error}"),
            Failure::Interrupted => "interrupted".to_owned(),
            Failure::BrokenPipe => return,
        };
        warn(&text);
    }
}

/// A line to standard error. That nobody reads it is no reason to fail.
pub(crate) fn warn(text: &str) {
    let _ = writeln!(io::stderr(), "flumen: {text}");
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Client(error)
    }
}
