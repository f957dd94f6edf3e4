//! Faults on demand, for tests with real processes (feature `fault-injection`) and for ours.
//!
//! The variable `FLUMEN_FAULT` holds rules, separated by `;`, each `operation:path:fault[:after=N][:times=M]`:
//!
//! - `operation`: open, read, write, sync, preallocate, truncate, create, list, rename, remove, or `any`;
//! - `path`: part of the path within the data folder (empty: every path);
//! - `fault`: EIO, ENOSPC, EROFS, or for writes `short=BYTES`: at most so many bytes are written;
//! - `after=N`: the first N such operations go well; `times=M`: then M fail (else: all).
//!
//! `FLUMEN_FAULT_FILE` names a file with the same content, which is read again at every operation: a test can let
//! a fault come and go in a running process. Counts are for each shard and rule.
use std::cell::{Cell, RefCell};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Open,
    Read,
    Write,
    Sync,
    Preallocate,
    Truncate,
    Create,
    List,
    Rename,
    Remove,
}

const OPERATIONS: [(&str, Operation); 10] = [
    ("open", Operation::Open),
    ("read", Operation::Read),
    ("write", Operation::Write),
    ("sync", Operation::Sync),
    ("preallocate", Operation::Preallocate),
    ("truncate", Operation::Truncate),
    ("create", Operation::Create),
    ("list", Operation::List),
    ("rename", Operation::Rename),
    ("remove", Operation::Remove),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Error(i32),
    Short(usize),
}

#[derive(Debug)]
struct Rule {
    /// `None`: any.
    operation: Option<Operation>,
    path: String,
    fault: Fault,
    after: u64,
    times: u64,
    seen: Cell<u64>,
}

struct State {
    rules: RefCell<Vec<Rule>>,
    file: Option<PathBuf>,
    text: RefCell<String>,
}

#[derive(Clone)]
pub(super) struct Faults(Rc<State>);

impl Faults {
    pub(super) fn from_environment() -> Self {
        let text = std::env::var("FLUMEN_FAULT").unwrap_or_default();
        let file = std::env::var_os("FLUMEN_FAULT_FILE").map(PathBuf::from);
        Self::new(&text, file)
    }

    pub(super) fn new(text: &str, file: Option<PathBuf>) -> Self {
        let rules = parse(text).unwrap_or_else(|why| panic!("FLUMEN_FAULT: {why}"));
        Faults(Rc::new(State { rules: RefCell::new(rules), file, text: RefCell::new(text.to_owned()) }))
    }

    fn reload(&self) {
        let Some(file) = &self.0.file else { return };
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if *self.0.text.borrow() != text {
            *self.0.rules.borrow_mut() = parse(&text).unwrap_or_else(|why| panic!("fault file: {why}"));
            *self.0.text.borrow_mut() = text;
        }
    }

    fn next(&self, operation: Operation, path: &str) -> Option<Fault> {
        self.reload();
        let rules = self.0.rules.borrow();
        rules.iter().find_map(|rule| {
            if rule.operation.is_some_and(|other| other != operation) || !path.contains(&rule.path) {
                return None;
            }
            let seen = rule.seen.replace(rule.seen.get() + 1);
            (seen >= rule.after && seen - rule.after < rule.times).then_some(rule.fault)
        })
    }

    pub(super) fn check(&self, operation: Operation, path: &str) -> io::Result<()> {
        match self.next(operation, path) {
            Some(Fault::Error(code)) => Err(io::Error::from_raw_os_error(code)),
            _ => Ok(()),
        }
    }

    /// `Some(len)`: the write is to be that short.
    pub(super) fn check_write(&self, path: &str) -> io::Result<Option<usize>> {
        match self.next(Operation::Write, path) {
            Some(Fault::Error(code)) => Err(io::Error::from_raw_os_error(code)),
            Some(Fault::Short(len)) => Ok(Some(len)),
            None => Ok(None),
        }
    }
}

fn parse(text: &str) -> Result<Vec<Rule>, String> {
    text.split([';', '\n']).map(str::trim).filter(|rule| !rule.is_empty()).map(parse_rule).collect()
}

fn parse_rule(text: &str) -> Result<Rule, String> {
    let mut parts = text.split(':');
    let (Some(operation), Some(path), Some(fault)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("{text}: not operation:path:fault"));
    };
    let operation = match operation {
        "any" => None,
        name => {
            let known = OPERATIONS.iter().find(|(known, _)| *known == name);
            Some(known.ok_or_else(|| format!("{name}: no such operation"))?.1)
        }
    };
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text}: not a number"));
    let fault = match fault {
        "EIO" => Fault::Error(libc::EIO),
        "ENOSPC" => Fault::Error(libc::ENOSPC),
        "EROFS" => Fault::Error(libc::EROFS),
        other => match other.strip_prefix("short=") {
            Some(len) => Fault::Short(number(len)? as usize),
            None => return Err(format!("{other}: no such fault")),
        },
    };
    let mut rule =
        Rule { operation, path: path.into(), fault, after: 0, times: u64::MAX, seen: Cell::new(0) };
    for part in parts {
        match part.split_once('=') {
            Some(("after", n)) => rule.after = number(n)?,
            Some(("times", n)) => rule.times = number(n)?,
            _ => return Err(format!("{part}: neither after=N nor times=M")),
        }
    }
    Ok(rule)
}
