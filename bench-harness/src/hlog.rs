//! Interval logs: a line for each second with its whole histogram, as HdrHistogram's log analyzers and plotters read
//! them. One file for each part of the load.
//!
//! A line is written when its second is over, so that an hour costs no more memory than a second, and a run that ends
//! early leaves what it had. A file that cannot be written does not end the run: it is told at its end.

use crate::collect::SecondTallies;
use crate::engine::PartName;
use crate::failure::Failure;
use crate::result::PartKind;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Values in the log are milliseconds of this many nanoseconds in the histogram's maximum column.
const MAX_VALUE_DIVISOR: f64 = 1e6;

/// The logs of one run.
pub(crate) struct IntervalLogs {
    path: PathBuf,
    /// By part.
    files: BTreeMap<String, BufWriter<File>>,
    serializer: V2DeflateSerializer,
    /// What the times in the logs count from.
    began: Duration,
    failed: Option<Failure>,
}

impl IntervalLogs {
    /// They are written beside `path`: `name.hlog` becomes `name-produce.hlog`. That it can be written is found now.
    pub(crate) fn create(path: &Path) -> Result<IntervalLogs, Failure> {
        let probe = path.with_extension("hlog.new");
        File::create(&probe)
            .and_then(|_| std::fs::remove_file(&probe))
            .map_err(|error| Failure::io(path.display(), error))?;
        Ok(IntervalLogs {
            path: path.to_owned(),
            files: BTreeMap::new(),
            serializer: V2DeflateSerializer::new(),
            began: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            failed: None,
        })
    }

    /// Writes a second of each part.
    pub(crate) fn second(&mut self, phase: &str, parts: &[PartName], done: &SecondTallies) {
        let at = Duration::from_nanos(done.at_unix_ns).saturating_sub(self.began);
        for (part, tally) in parts.iter().zip(&done.tallies) {
            if self.failed.is_none() {
                let name = name_of(phase, part);
                let written = self.write(&name, at, &tally.histogram);
                self.failed =
                    written.map_err(|error| Failure::io(self.path_of(&name).display(), error)).err();
            }
        }
    }

    /// What became of them.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        if let Some(failure) = self.failed.take() {
            return Err(failure);
        }
        let flush = |(name, file): (&String, &mut BufWriter<File>)| {
            file.flush().map_err(|error| (name.clone(), error))
        };
        let flushed: Result<(), (String, io::Error)> = self.files.iter_mut().try_for_each(flush);
        flushed.map_err(|(name, error)| Failure::io(self.path_of(&name).display(), error))
    }

    fn path_of(&self, name: &str) -> PathBuf {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!("{stem}-{name}.hlog"))
    }

    fn write(&mut self, name: &str, at: Duration, histogram: &Histogram<u64>) -> io::Result<()> {
        if !self.files.contains_key(name) {
            let mut file = BufWriter::new(File::create(self.path_of(name))?);
            let start = UNIX_EPOCH + self.began;
            IntervalLogWriterBuilder::new()
                .add_comment("flumen-bench: latencies in nanoseconds")
                .with_start_time(start)
                .with_base_time(start)
                .with_max_value_divisor(MAX_VALUE_DIVISOR)
                .begin_log_with(&mut file, &mut self.serializer)?;
            self.files.insert(name.to_owned(), file);
        }
        let mut encoded = Vec::new();
        self.serializer
            .serialize(histogram, &mut encoded)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        let Some(file) = self.files.get_mut(name) else { return Ok(()) };
        let (at_s, max) = (at.as_secs_f64(), histogram.max() as f64 / MAX_VALUE_DIVISOR);
        writeln!(file, "{at_s:.3},1.000,{max:.3},{}", BASE64_STANDARD.encode(encoded))?;
        file.flush()
    }
}

fn name_of(phase: &str, part: &PartName) -> String {
    let kind = match part.kind {
        PartKind::Produce => "produce",
        PartKind::EndToEnd => "end-to-end",
        PartKind::Fetch => "fetch",
        PartKind::Lateness => "lateness",
        PartKind::RawSync => "raw-sync",
        PartKind::Connect => "connect",
    };
    let words = [phase, kind, &part.name];
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    words.join("-").replace([' ', '/'], "-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Tally;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    #[test]
    fn a_second_is_in_the_file_when_it_is_over_at_the_time_at_which_it_was() {
        let folder = std::env::temp_dir().join(format!("flumen-bench-hlog-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let mut logs = IntervalLogs::create(&folder.join("log.hlog")).expect("room");
        let mut tally = Tally::default();
        tally.time(2_000_000);
        let part = PartName { kind: PartKind::Produce, name: "a/b".to_owned() };
        // Connecting and warm-up took 12.5 s.
        let at_unix_ns = logs.began.as_nanos() as u64 + 12_500_000_000;
        logs.second("p", &[part], &SecondTallies { second: 0, at_unix_ns, tallies: vec![tally] });
        let text = std::fs::read(folder.join("log-p-produce-a-b.hlog")).expect("it is there already");
        let intervals: Vec<_> = IntervalLogIterator::new(&text)
            .filter_map(|entry| match entry.expect("well formed") {
                LogEntry::Interval(interval) => Some(interval),
                _ => None,
            })
            .collect();
        assert_eq!(intervals.len(), 1);
        assert_eq!(intervals[0].start_timestamp(), Duration::from_millis(12_500));
        assert_eq!(intervals[0].duration(), Duration::from_secs(1));
        assert!((intervals[0].max() - 2.0).abs() < 0.01);
        logs.finish().expect("room");
        std::fs::remove_dir_all(&folder).expect("the folder");
    }
}
