//! Recorded arrivals: a text file with a time on each line, in microseconds from the start of the recording, fractions
//! allowed. Empty lines and those that begin with `#` are passed over; what follows the time, behind a comma or a space,
//! too, so that a table can be used as it is.

use crate::failure::Failure;
use std::path::Path;

/// More arrivals than this do not fit sensibly in memory.
const ARRIVALS_MAX: usize = 100_000_000;

/// Nanoseconds from the first arrival, ascending.
pub(crate) fn read_trace(path: &Path) -> Result<Vec<u64>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::io(path.display(), error))?;
    parse(&text).map_err(|why| Failure::Usage(format!("{}: {why}", path.display())))
}

fn parse(text: &str) -> Result<Vec<u64>, String> {
    let mut times = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let first = line.split([',', ' ', '\t', ';']).next().unwrap_or_default();
        let micros: f64 = first.parse().map_err(|_| format!("line {}: {first:?} is no time", number + 1))?;
        if !(0.0..1e15).contains(&micros) {
            return Err(format!("line {}: {first} is no time from the start", number + 1));
        }
        if times.len() == ARRIVALS_MAX {
            return Err(format!("more than {ARRIVALS_MAX} arrivals"));
        }
        times.push((micros * 1000.0).round() as u64);
    }
    // Recorders on several threads write out of order.
    times.sort_unstable();
    let first = *times.first().ok_or("no arrivals")?;
    times.iter_mut().for_each(|time| *time -= first);
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn times_are_read_sorted_and_counted_from_the_first() {
        let text = "# recorded\n100.5,other\n\n101 x\n100\n";
        assert_eq!(parse(text), Ok(vec![0, 500, 1000]));
        assert_eq!(parse("5\nsoon\n"), Err("line 2: \"soon\" is no time".to_owned()));
        assert!(parse("-1\n").is_err() && parse("nan\n").is_err() && parse("# nothing\n").is_err());
    }
}
