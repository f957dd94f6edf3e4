//! How a command can end other than well, and the exit code of each.

use crate::console;
use std::fmt::{self, Display, Formatter};
use std::io;

/// See the head of this file.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was asked for makes no sense; found after the arguments were read.
    Usage(String),
    /// A file, or the machine.
    Io(String, io::Error),
    /// Something that was started here, or read here, is not as it must be.
    Other(String),
    /// No broker answers.
    NoBroker(String),
    /// The records of the run were not all there, once, in order. What was wrong has been said.
    Unsound(String),
    /// Whoever read standard output has gone.
    BrokenPipe,
    /// Ctrl-C before the end; what there was has been written.
    Interrupted,
}

impl Failure {
    pub(crate) fn io(what: impl Display, error: io::Error) -> Failure {
        Failure::Io(what.to_string(), error)
    }

    /// As `flumen-bench --help` lists them.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::BrokenPipe => 0,
            Failure::Io(..) | Failure::Other(_) => 1,
            Failure::Usage(_) => 2,
            Failure::NoBroker(_) => 3,
            Failure::Unsound(_) => 4,
            Failure::Interrupted => 130,
        }
    }

    /// To standard error, if there is anything to say.
    pub(crate) fn tell(&self) {
        if !matches!(self, Failure::BrokenPipe) {
            console::remark(&format!("flumen-bench: {self}"));
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(what)
            | Failure::Other(what)
            | Failure::NoBroker(what)
            | Failure::Unsound(what) => f.write_str(what),
            Failure::Io(what, error) => write!(f, "{what}: {error}"),
            Failure::BrokenPipe => f.write_str("standard output is closed"),
            Failure::Interrupted => f.write_str("interrupted"),
        }
    }
}
