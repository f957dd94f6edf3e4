//! Interval logs: a line for each second with its whole histogram, as HdrHistogram's log analyzers and plotters read
//! them. One file for each part of the load.

use crate::collect::SecondTallies;
use crate::engine::PartName;
use crate::failure::Failure;
use crate::result::PartKind;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Values in the log are milliseconds of this many nanoseconds in the histogram's maximum column.
const MAX_VALUE_DIVISOR: f64 = 1e6;

/// The logs of one run.
#[derive(Debug)]
pub(crate) struct IntervalLogs {
    path: PathBuf,
    /// Encoded intervals by part, kept until the end: a minute is some hundred kilobytes.
    parts: BTreeMap<String, Vec<(Duration, hdrhistogram::Histogram<u64>)>>,
    began: SystemTime,
    offset: Duration,
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
            parts: BTreeMap::new(),
            began: SystemTime::now(),
            offset: Duration::ZERO,
        })
    }

    /// A phase begins.
    pub(crate) fn begin_phase(&mut self) {
        self.offset = self.began.elapsed().unwrap_or_default();
    }

    pub(crate) fn second(&mut self, phase: &str, parts: &[PartName], done: &SecondTallies) {
        for (part, tally) in parts.iter().zip(&done.tallies) {
            let kind = match part.kind {
                PartKind::Produce => "produce",
                PartKind::EndToEnd => "end-to-end",
                PartKind::Fetch => "fetch",
                PartKind::Lateness => "lateness",
                PartKind::RawSync => "raw-sync",
                PartKind::Connect => "connect",
            };
            let words = [phase, kind, &part.name];
            let name = words.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join("-");
            let at = self.offset + Duration::from_secs(done.second);
            self.parts.entry(name.replace([' ', '/'], "-")).or_default().push((at, tally.histogram.clone()));
        }
    }

    pub(crate) fn write(&self) -> Result<(), Failure> {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for (name, intervals) in &self.parts {
            let path = self.path.with_file_name(format!("{stem}-{name}.hlog"));
            self.write_one(&path, intervals).map_err(|error| Failure::io(path.display(), error))?;
        }
        Ok(())
    }

    fn write_one(
        &self,
        path: &Path,
        intervals: &[(Duration, hdrhistogram::Histogram<u64>)],
    ) -> io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        let mut serializer = V2DeflateSerializer::new();
        let since = self.began.duration_since(UNIX_EPOCH).unwrap_or_default();
        let start = UNIX_EPOCH + since;
        {
            let mut writer = IntervalLogWriterBuilder::new()
                .add_comment("flumen-bench: latencies in nanoseconds")
                .with_start_time(start)
                .with_base_time(start)
                .with_max_value_divisor(MAX_VALUE_DIVISOR)
                .begin_log_with(&mut out, &mut serializer)?;
            let none: Option<Tag<'_>> = None;
            for (at, histogram) in intervals {
                writer
                    .write_histogram(histogram, *at, Duration::from_secs(1), none)
                    .map_err(|error| io::Error::other(format!("{error:?}")))?;
            }
        }
        out.flush()
    }
}
