//! The figures that are compared, each as a function of a set of runs (or of seconds), so that it can be computed again
//! from any drawing of them. Rates are sums over sums, percentiles are those of merged histograms: no figure is a mean
//! of figures.

use crate::engine::Amount;
use crate::result::{PartKind, RunResult, Second};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// See the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    ProduceRecordsPerS,
    ProduceBytesPerS,
    ProduceP50,
    ProduceP99,
    #[serde(rename = "produce_p99_9")]
    ProduceP999,
    /// As a multiple of the bare writes' beside the load.
    ProduceP99OverRaw,
    EndToEndRecordsPerS,
    EndToEndP50,
    EndToEndP99,
    #[serde(rename = "end_to_end_p99_9")]
    EndToEndP999,
    FetchBytesPerS,
    CpuPerGb,
    CpuPerRecord,
    CpuPerRequest,
    RssMax,
    FirstAcknowledgement,
}

/// Of what kind a figure's values are, for their print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    PerSecond,
    BytesPerSecond,
    Nanoseconds,
    CpuSecondsPerGb,
    CpuMicroseconds,
    Bytes,
    Times,
}

/// How a figure is computed.
enum Source {
    Records(PartKind),
    Bytes(PartKind),
    Quantile(PartKind, f64),
    /// CPU seconds of the broker per unit of work.
    Cpu(fn(&Amount) -> u64, f64),
    RssMax,
    /// A quantile as a multiple of that of the bare writes.
    OverRaw(PartKind, f64),
    /// From the kills of the broker, all of them together, for each.
    FirstAcknowledgement,
}

impl Figure {
    pub(crate) const ALL: [Figure; 16] = [
        Figure::ProduceRecordsPerS,
        Figure::ProduceBytesPerS,
        Figure::ProduceP50,
        Figure::ProduceP99,
        Figure::ProduceP999,
        Figure::ProduceP99OverRaw,
        Figure::EndToEndRecordsPerS,
        Figure::EndToEndP50,
        Figure::EndToEndP99,
        Figure::EndToEndP999,
        Figure::FetchBytesPerS,
        Figure::CpuPerGb,
        Figure::CpuPerRecord,
        Figure::CpuPerRequest,
        Figure::RssMax,
        Figure::FirstAcknowledgement,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Figure::ProduceRecordsPerS => "produced, records",
            Figure::ProduceBytesPerS => "produced, bytes",
            Figure::ProduceP50 => "produce latency, p50",
            Figure::ProduceP99 => "produce latency, p99",
            Figure::ProduceP999 => "produce latency, p99.9",
            Figure::ProduceP99OverRaw => "produce p99 over a bare write's",
            Figure::EndToEndRecordsPerS => "received, records",
            Figure::EndToEndP50 => "end to end, p50",
            Figure::EndToEndP99 => "end to end, p99",
            Figure::EndToEndP999 => "end to end, p99.9",
            Figure::FetchBytesPerS => "fetched, bytes",
            Figure::CpuPerGb => "broker CPU per GB",
            Figure::CpuPerRecord => "broker CPU per record",
            Figure::CpuPerRequest => "broker CPU per request",
            Figure::RssMax => "broker memory, at most",
            Figure::FirstAcknowledgement => "kill -9 to first acknowledgement",
        }
    }

    pub(crate) fn unit(self) -> Unit {
        match self.source() {
            Source::Records(_) => Unit::PerSecond,
            Source::Bytes(_) => Unit::BytesPerSecond,
            Source::Quantile(..) => Unit::Nanoseconds,
            Source::Cpu(..) if self == Figure::CpuPerGb => Unit::CpuSecondsPerGb,
            Source::Cpu(..) => Unit::CpuMicroseconds,
            Source::RssMax => Unit::Bytes,
            Source::OverRaw(..) => Unit::Times,
            Source::FirstAcknowledgement => Unit::Nanoseconds,
        }
    }

    /// Of rates more is better, of all else less.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self.unit(), Unit::PerSecond | Unit::BytesPerSecond)
    }

    fn source(self) -> Source {
        use PartKind::{EndToEnd, Fetch, Produce};
        match self {
            Figure::ProduceRecordsPerS => Source::Records(Produce),
            Figure::ProduceBytesPerS => Source::Bytes(Produce),
            Figure::ProduceP50 => Source::Quantile(Produce, 0.5),
            Figure::ProduceP99 => Source::Quantile(Produce, 0.99),
            Figure::ProduceP999 => Source::Quantile(Produce, 0.999),
            Figure::ProduceP99OverRaw => Source::OverRaw(Produce, 0.99),
            Figure::EndToEndRecordsPerS => Source::Records(EndToEnd),
            Figure::EndToEndP50 => Source::Quantile(EndToEnd, 0.5),
            Figure::EndToEndP99 => Source::Quantile(EndToEnd, 0.99),
            Figure::EndToEndP999 => Source::Quantile(EndToEnd, 0.999),
            Figure::FetchBytesPerS => Source::Bytes(Fetch),
            Figure::CpuPerGb => Source::Cpu(|work| work.bytes, 1e9),
            Figure::CpuPerRecord => Source::Cpu(|work| work.records, 1e6),
            Figure::CpuPerRequest => Source::Cpu(|work| work.requests, 1e6),
            Figure::RssMax => Source::RssMax,
            Figure::FirstAcknowledgement => Source::FirstAcknowledgement,
        }
    }

    /// Whether it is of a phase of a scenario. All others are of the whole run.
    pub(crate) fn is_of_phase(self) -> bool {
        !matches!(self.source(), Source::Cpu(..) | Source::RssMax | Source::FirstAcknowledgement)
    }

    /// Over whole runs; `drawn` are places in `runs`, with repetitions. None where these have no such figure.
    pub(crate) fn over_runs(self, phase: &str, runs: &[Digest], drawn: &[usize]) -> Option<f64> {
        let drawn = || drawn.iter().map(|place| &runs[*place]);
        let rate = |kind: PartKind, amount: fn(&Second) -> u64| {
            let seconds = || drawn().flat_map(move |run| run.seconds(phase, kind));
            rate_of(seconds(), amount)
        };
        let at = |kind: PartKind, quantile: f64| {
            let counts: Vec<&Counts> = drawn().filter_map(|run| run.counts(phase, kind)).collect();
            quantile_of(&counts, quantile).map(|ns| ns as f64)
        };
        match self.source() {
            Source::Records(kind) => rate(kind, |second| second.records),
            Source::Bytes(kind) => rate(kind, |second| second.bytes),
            Source::Quantile(kind, quantile) => at(kind, quantile),
            Source::OverRaw(kind, quantile) => Some(at(kind, quantile)? / at(PartKind::RawSync, quantile)?),
            Source::FirstAcknowledgement => {
                let all: Vec<u64> = drawn().flat_map(|run| run.first_acknowledgements_ns.clone()).collect();
                (!all.is_empty()).then(|| all.iter().sum::<u64>() as f64 / all.len() as f64)
            }
            Source::Cpu(amount, unit) => {
                let cpu_s = drawn().map(|run| run.cpu_s).sum::<Option<f64>>()?;
                let work: u64 = drawn().map(|run| amount(&run.work)).sum();
                (work > 0).then(|| cpu_s * unit / work as f64)
            }
            Source::RssMax => drawn().filter_map(|run| run.rss_bytes_max).max().map(|bytes| bytes as f64),
        }
    }

    /// Over blocks of consecutive seconds. Only rates have a meaning there: a percentile of a second is one of few samples.
    pub(crate) fn over_blocks(self, blocks: &[Vec<Second>], drawn: &[usize]) -> Option<f64> {
        let seconds = drawn.iter().flat_map(|place| &blocks[*place]);
        match self.source() {
            Source::Records(_) => rate_of(seconds, |second| second.records),
            Source::Bytes(_) => rate_of(seconds, |second| second.bytes),
            _ => None,
        }
    }

    /// The part whose seconds [`Figure::over_blocks`] wants.
    pub(crate) fn part_of_blocks(self) -> Option<PartKind> {
        match self.source() {
            Source::Records(kind) | Source::Bytes(kind) => Some(kind),
            _ => None,
        }
    }
}

fn rate_of<'a>(seconds: impl Iterator<Item = &'a Second>, amount: fn(&Second) -> u64) -> Option<f64> {
    let (mut sum, mut length_s) = (0, 0.0);
    for second in seconds {
        sum += amount(second);
        length_s += second.length_s;
    }
    (length_s > 0.0 && sum > 0).then(|| sum as f64 / length_s)
}

/// The cells of a histogram that are not empty, ascending: highest equivalent value, and the count up to it.
type Counts = Vec<(u64, u64)>;

/// What is needed of a run, decoded once.
#[derive(Debug)]
pub(crate) struct Digest {
    /// The main part of each kind in each phase.
    parts: Vec<PartDigest>,
    /// That came back while the broker was watched.
    work: Amount,
    cpu_s: Option<f64>,
    rss_bytes_max: Option<u64>,
    /// Of each kill that something was acknowledged after.
    first_acknowledgements_ns: Vec<u64>,
}

#[derive(Debug)]
struct PartDigest {
    phase: String,
    kind: PartKind,
    seconds: Vec<Second>,
    counts: Option<Counts>,
}

impl Digest {
    /// An error names the histogram that can not be read.
    pub(crate) fn of(result: &RunResult) -> Result<Digest, String> {
        let mut parts: Vec<PartDigest> = Vec::new();
        let mut work = Amount::default();
        for part in &result.parts {
            if part.kind.is_work() {
                work.add(part.in_time());
            }
            if parts.iter().all(|known| (known.kind, &known.phase) != (part.kind, &part.phase)) {
                let counts = part.latency.as_ref().map(|latency| latency.decode().map(|h| counts_of(&h)));
                parts.push(PartDigest {
                    phase: part.phase.clone(),
                    kind: part.kind,
                    seconds: part.seconds.clone(),
                    counts: counts.transpose()?,
                });
            }
        }
        let usage = result.broker_process.as_ref().map(|process| &process.usage);
        Ok(Digest {
            parts,
            work,
            cpu_s: usage.map(|usage| usage.cpu_user_s + usage.cpu_system_s),
            rss_bytes_max: usage.map(|usage| usage.rss_bytes_max),
            first_acknowledgements_ns: result
                .restarts
                .iter()
                .filter_map(|one| one.first_acknowledgement_ns)
                .collect(),
        })
    }

    /// In the order in which they ran.
    pub(crate) fn phases(&self) -> Vec<&str> {
        let mut phases: Vec<&str> = self.parts.iter().map(|part| part.phase.as_str()).collect();
        phases.dedup();
        phases
    }

    pub(crate) fn seconds(&self, phase: &str, kind: PartKind) -> &[Second] {
        self.part(phase, kind).map_or(&[], |part| &part.seconds)
    }

    fn counts(&self, phase: &str, kind: PartKind) -> Option<&Counts> {
        self.part(phase, kind)?.counts.as_ref()
    }

    fn part(&self, phase: &str, kind: PartKind) -> Option<&PartDigest> {
        self.parts.iter().find(|part| part.kind == kind && part.phase == phase)
    }
}

fn counts_of(histogram: &Histogram<u64>) -> Counts {
    let mut count = 0;
    let mut counts = Vec::new();
    for step in histogram.iter_recorded() {
        count += step.count_at_value();
        counts.push((histogram.highest_equivalent(step.value_iterated_to()), count));
    }
    counts
}

/// Of all the counts together, what a merged histogram says: the smallest value up to which there are enough. Merging them
/// for each of thousands of drawings would take minutes.
fn quantile_of(all: &[&Counts], quantile: f64) -> Option<u64> {
    let total: u64 = all.iter().filter_map(|counts| counts.last()).map(|(_, count)| count).sum();
    let count_to = |value: u64| -> u64 {
        let one = |counts: &&Counts| match counts.partition_point(|(here, _)| *here <= value) {
            0 => 0,
            place => counts[place - 1].1,
        };
        all.iter().map(one).sum()
    };
    let wanted = ((quantile * total as f64).ceil() as u64).max(1);
    let mut low = all.iter().filter_map(|counts| counts.first()).map(|(value, _)| *value).min()?;
    let mut high = all.iter().filter_map(|counts| counts.last()).map(|(value, _)| *value).max()?;
    while low < high {
        let middle = low + (high - low) / 2;
        if count_to(middle) >= wanted { high = middle } else { low = middle + 1 }
    }
    Some(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::fixture;

    #[test]
    fn a_percentile_over_runs_is_that_of_the_merged_histogram() {
        let runs = [fixture::run("a", 1, 1.0), fixture::run("a", 2, 1.7), fixture::run("a", 3, 0.6)];
        let digests: Vec<Digest> = runs.iter().map(|run| Digest::of(run).expect("sound")).collect();
        for drawn in [vec![0], vec![0, 1, 2], vec![2, 2, 0], vec![1, 1, 1]] {
            let mut merged = fixture::histogram_of(&runs[drawn[0]], PartKind::Produce);
            for place in &drawn[1..] {
                merged.add(fixture::histogram_of(&runs[*place], PartKind::Produce)).expect("the same bounds");
            }
            for (figure, quantile) in
                [(Figure::ProduceP50, 0.5), (Figure::ProduceP99, 0.99), (Figure::ProduceP999, 0.999)]
            {
                let expected = merged.value_at_quantile(quantile) as f64;
                assert_eq!(
                    figure.over_runs("", &digests, &drawn),
                    Some(expected),
                    "{figure:?} over {drawn:?}"
                );
            }
        }
    }

    #[test]
    fn rates_are_sums_over_sums() {
        let second = |records, length_s| Second { records, length_s, ..Second::default() };
        let mut run = fixture::run("a", 1, 1.0);
        run.parts.truncate(1);
        run.parts[0].seconds = vec![second(100, 1.0), second(50, 0.25)];
        let digests = [Digest::of(&run).expect("sound")];
        assert_eq!(Figure::ProduceRecordsPerS.over_runs("", &digests, &[0, 0]), Some(120.0));
        assert_eq!(Figure::EndToEndRecordsPerS.over_runs("", &digests, &[0]), None);
        assert_eq!(Figure::EndToEndP99.over_runs("", &digests, &[0]), None);
    }

    #[test]
    fn a_percentile_is_stated_as_a_multiple_of_the_bare_writes_beside_it() {
        let mut run = fixture::run("a", 1, 1.0);
        let value = |run: &RunResult| {
            let digests = [Digest::of(run).expect("sound")];
            Figure::ProduceP99OverRaw.over_runs("", &digests, &[0])
        };
        assert_eq!(value(&run), None, "nobody wrote beside it");
        let mut raw = run.parts[0].clone();
        raw.kind = PartKind::RawSync;
        run.parts.push(raw);
        assert_eq!(value(&run), Some(1.0));
    }

    #[test]
    fn outages_of_several_runs_are_summed_over_their_kills() {
        let killed = |ns| {
            let mut run = fixture::run("a", 1, 1.0);
            run.restarts.push(crate::result::RestartSeen {
                phase: String::new(),
                killed_at_s: 8.0,
                first_acknowledgement_ns: ns,
            });
            Digest::of(&run).expect("sound")
        };
        let digests = [killed(Some(100)), killed(Some(400)), killed(None)];
        assert_eq!(Figure::FirstAcknowledgement.over_runs("", &digests, &[0, 1, 1]), Some(300.0));
        assert_eq!(Figure::FirstAcknowledgement.over_runs("", &digests, &[2]), None);
    }

    #[test]
    fn each_figure_has_a_name_of_its_own_in_the_document() {
        let names: std::collections::HashSet<String> =
            Figure::ALL.iter().map(|figure| serde_json::to_string(figure).expect("a name")).collect();
        assert_eq!(names.len(), Figure::ALL.len());
        assert!(names.contains("\"produce_p99_9\""), "{names:?}");
    }
}
