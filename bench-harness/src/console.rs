//! Standard output. Whoever reads it may go, and a disk behind it may be full: neither ends a run, whose result has other
//! places to be written to; it is told at the end.

use crate::failure::Failure;
use std::io::{self, Write};

/// See the head of this file.
#[derive(Debug, Default)]
pub(crate) struct Console {
    failed: Option<io::Error>,
}

impl Console {
    /// Nothing is written any more once something could not be.
    pub(crate) fn print(&mut self, text: &str) {
        if self.failed.is_none() {
            let mut out = io::stdout().lock();
            self.failed = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
        }
    }

    /// What became of it.
    pub(crate) fn end(self) -> Result<(), Failure> {
        match self.failed {
            None => Ok(()),
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::BrokenPipe),
            Some(error) => Err(Failure::io("standard output", error)),
        }
    }
}

/// Writes to it at once, or fails.
pub(crate) fn say(text: &str) -> Result<(), Failure> {
    let mut console = Console::default();
    console.print(text);
    console.end()
}

/// A line of no consequence to standard error.
pub(crate) fn remark(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
