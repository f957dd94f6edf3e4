//! What the page draws, computed here so that its script only draws: a chart is lines in plain numbers, already merged
//! and scaled, and carries the words beside them.

use crate::result::{Part, PartKind, RunResult, Second, UsageSecond};
use hdrhistogram::Histogram;
use serde::Serialize;

/// Points of a percentile curve for each factor of ten in 1/(1-p).
const POINTS_PER_DECADE: u32 = 40;
/// Points of a curve over time. Of more seconds, neighbours are put together.
const TIME_POINTS_MAX: usize = 1200;
/// A second whose maximum is so many times the median second's is a stall, and is marked.
const STALL_FACTOR: u64 = 8;
/// Below, nobody calls it one.
const STALL_NS_MIN: u64 = 5_000_000;
const MARKS_MAX: usize = 4;

/// One contender of the page: all its runs, one after the other.
pub(super) struct Side<'a> {
    pub name: String,
    pub runs: Vec<&'a RunResult>,
}

/// As the script reads it.
#[derive(Serialize)]
pub(super) struct Chart {
    /// `percentile`: x is log10(1/(1-p)); `time`: x is seconds.
    pub x: &'static str,
    pub y: Scale,
    pub y_label: String,
    /// The same for charts that stand side by side.
    pub y_range: (f64, f64),
    pub x_max: f64,
    pub series: Vec<Series>,
    pub marks: Vec<Mark>,
    /// Where one run ends and the next one begins.
    pub breaks: Vec<f64>,
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Scale {
    /// Logarithmic, in nanoseconds.
    Duration,
    /// Linear from zero.
    Records,
    Bytes,
    Cores,
}

#[derive(Serialize)]
pub(super) struct Series {
    pub name: String,
    /// Place of the contender, which has a colour; none is grey.
    pub tone: Option<usize>,
    pub style: Style,
    /// y is none where there was nothing.
    pub points: Vec<(f64, Option<f64>)>,
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Style {
    Line,
    Thin,
    Dashed,
    /// One run of several, behind the line of all.
    Faint,
    /// From the floor of the chart to the value.
    Area,
}

#[derive(Serialize)]
pub(super) struct Mark {
    pub x: f64,
    pub y: f64,
    pub tone: usize,
}

/// A part that all runs of a page have, by what tells it from the others of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Track {
    pub kind: PartKind,
    pub name: String,
    pub phase: String,
}

impl Track {
    /// Of all runs, in the order of the first one.
    pub(super) fn all(sides: &[Side]) -> Vec<Track> {
        let mut tracks: Vec<Track> = Vec::new();
        for part in sides.iter().flat_map(|side| &side.runs).flat_map(|run| &run.parts) {
            let track = Track { kind: part.kind, name: part.name.clone(), phase: part.phase.clone() };
            if !tracks.contains(&track) {
                tracks.push(track);
            }
        }
        tracks
    }

    fn part<'a>(&self, run: &'a RunResult) -> Option<&'a Part> {
        let is_it =
            |part: &&Part| (part.kind, &part.name, &part.phase) == (self.kind, &self.name, &self.phase);
        run.parts.iter().find(is_it)
    }

    fn seconds<'a>(&self, run: &'a RunResult) -> &'a [Second] {
        self.part(run).map_or(&[], |part| &part.seconds)
    }

    fn histogram(&self, run: &RunResult) -> Option<Histogram<u64>> {
        self.part(run)?.latency.as_ref()?.decode().ok()
    }

    /// What was measured at the same time of another kind. Bare writes are those of the whole phase.
    pub(super) fn beside(&self, kind: PartKind) -> Track {
        let name = if kind == PartKind::RawSync { String::new() } else { self.name.clone() };
        Track { kind, name, phase: self.phase.clone() }
    }

    /// The phase is left out: it is a heading above.
    pub(super) fn title(&self) -> String {
        match self.name.as_str() {
            "" => word(self.kind).to_owned(),
            name => format!("{}, {name}", word(self.kind)),
        }
    }
}

/// All runs of a side in one histogram. None where nothing of it was timed.
pub(super) fn merged(side: &Side, track: &Track) -> Option<Histogram<u64>> {
    let mut whole: Option<Histogram<u64>> = None;
    for histogram in side.runs.iter().filter_map(|run| track.histogram(run)) {
        match &mut whole {
            None => whole = Some(histogram),
            // Another generator's bounds may be narrower.
            Some(whole) => {
                whole.auto(true);
                whole.add(histogram).ok()?;
            }
        }
    }
    whole
}

/// Percentiles of one track, all contenders in one chart.
pub(super) fn percentiles(sides: &[Side], track: &Track) -> Option<Chart> {
    let mut series = Vec::new();
    let mut curve = |name: String, tone, style, histogram: &Histogram<u64>| {
        series.push(Series { name, tone, style, points: quantile_points(histogram) });
    };
    let is_single = sides.len() == 1;
    for (tone, side) in sides.iter().enumerate() {
        if side.runs.len() > 1 {
            for (turn, run) in side.runs.iter().enumerate() {
                if let Some(one) = track.histogram(run) {
                    curve(format!("{}, turn {}", side.name, turn + 1), Some(tone), Style::Faint, &one);
                }
            }
        }
    }
    let mut is_empty = true;
    for (tone, side) in sides.iter().enumerate() {
        if let Some(whole) = merged(side, track) {
            is_empty = false;
            let name = if is_single { track.title() } else { side.name.clone() };
            curve(name, Some(tone), Style::Line, &whole);
        }
    }
    if is_empty {
        return None;
    }
    for (kind, name) in [(PartKind::RawSync, "bare write and sync"), (PartKind::Lateness, "generator's own")]
    {
        let all =
            Side { name: String::new(), runs: sides.iter().flat_map(|side| side.runs.clone()).collect() };
        if let Some(whole) = merged(&all, &track.beside(kind)) {
            curve(name.to_owned(), None, Style::Dashed, &whole);
        }
    }
    let x_max = series.iter().filter_map(|one| one.points.last()).map(|point| point.0).fold(1.0, f64::max);
    // What stands beside may reach far below, and would press the curves together.
    let y_range = log_range(series.iter().filter(|one| one.style == Style::Line));
    let y_range = (y_range.0 / 3.0, y_range.1);
    Some(Chart {
        x: "percentile",
        y: Scale::Duration,
        y_label: "latency".to_owned(),
        y_range,
        x_max,
        series,
        marks: Vec::new(),
        breaks: Vec::new(),
    })
}

/// Ends where the histogram does: at the last of its values, which is its maximum.
fn quantile_points(histogram: &Histogram<u64>) -> Vec<(f64, Option<f64>)> {
    let last = (histogram.len().max(1) as f64).log10();
    let steps = (last * f64::from(POINTS_PER_DECADE)).ceil() as u32;
    let x_of = |step: u32| (f64::from(step) / f64::from(POINTS_PER_DECADE)).min(last);
    let point = |x: f64| {
        let value = histogram.value_at_quantile(1.0 - 10f64.powf(-x));
        (x, Some(value.max(1) as f64))
    };
    let mut points: Vec<_> = (0..steps).map(x_of).map(point).collect();
    points.push((last, Some(histogram.max().max(1) as f64)));
    points
}

/// Latency by the second, one chart for each contender, all to the same scale.
pub(super) fn latencies(sides: &[Side], track: &Track) -> Vec<Option<Chart>> {
    let mut charts: Vec<Option<Chart>> = sides
        .iter()
        .enumerate()
        .map(|(tone, side)| {
            let line = Timeline::of(side, |run| track.seconds(run));
            let seconds = line.seconds();
            if seconds.iter().all(|(_, second)| second.max_ns == 0) {
                return None;
            }
            let curve = |name: &str, style, value: fn(&Second) -> u64| Series {
                name: name.to_owned(),
                tone: Some(tone),
                style,
                points: thinned(
                    &seconds,
                    |second| (value(second) > 0).then(|| value(second) as f64),
                    f64::max,
                ),
            };
            let series = vec![
                curve("max", Style::Area, |second| second.max_ns),
                curve("p99", Style::Thin, |second| second.p99_ns),
                curve("p50", Style::Line, |second| second.p50_ns),
            ];
            Some(Chart {
                x: "time",
                y: Scale::Duration,
                y_label: "latency".to_owned(),
                y_range: log_range(series.iter()),
                x_max: line.length_s,
                series,
                marks: stalls(&seconds, tone),
                breaks: line.breaks,
            })
        })
        .collect();
    share_ranges(&mut charts);
    charts
}

/// The worst seconds, where they stand out.
fn stalls(seconds: &[(f64, Second)], tone: usize) -> Vec<Mark> {
    let mut all: Vec<u64> = seconds.iter().map(|(_, second)| second.max_ns).filter(|ns| *ns > 0).collect();
    all.sort_unstable();
    let Some(median) = all.get(all.len() / 2) else { return Vec::new() };
    let least = (median * STALL_FACTOR).max(STALL_NS_MIN);
    let mut found: Vec<&(f64, Second)> =
        seconds.iter().filter(|(_, second)| second.max_ns >= least).collect();
    found.sort_by_key(|(_, second)| std::cmp::Reverse(second.max_ns));
    found.truncate(MARKS_MAX);
    found.iter().map(|(x, second)| Mark { x: *x, y: second.max_ns as f64, tone }).collect()
}

/// What was produced and received in a phase by the second.
pub(super) fn throughputs(sides: &[Side], tracks: &[&Track]) -> Vec<Option<Chart>> {
    // A reader of whole batches, or records of many sizes: bytes say more.
    let is_bytes = tracks.iter().any(|track| track.kind == PartKind::Fetch);
    let amount: fn(&Second) -> u64 = if is_bytes { |s| s.bytes } else { |s| s.records };
    let of_side = |(tone, side): (usize, &Side)| {
        let mut chart = linear(if is_bytes { Scale::Bytes } else { Scale::Records });
        for track in tracks {
            let (word, style) = match track.kind {
                PartKind::Produce => ("produced", Style::Line),
                PartKind::EndToEnd => ("received", Style::Dashed),
                PartKind::Fetch => ("fetched", Style::Thin),
                PartKind::Lateness | PartKind::RawSync | PartKind::Connect => continue,
            };
            let line = Timeline::of(side, |run| track.seconds(run));
            let rate =
                |second: &Second| (second.length_s > 0.0).then(|| amount(second) as f64 / second.length_s);
            let points = thinned(&line.seconds(), rate, f64::min);
            let name =
                if track.name.is_empty() { word.to_owned() } else { format!("{word}, {}", track.name) };
            chart.add(Series { name, tone: Some(tone), style, points }, line.length_s);
            chart.breaks = if line.breaks.is_empty() { chart.breaks } else { line.breaks };
        }
        (!chart.series.is_empty()).then_some(chart)
    };
    let mut charts: Vec<Option<Chart>> = sides.iter().enumerate().map(of_side).collect();
    share_ranges(&mut charts);
    charts
}

/// CPU of the broker and of the generator by the second.
pub(super) fn cores(sides: &[Side]) -> Vec<Option<Chart>> {
    let mut charts: Vec<Option<Chart>> = sides
        .iter()
        .enumerate()
        .map(|(tone, side)| {
            let mut chart = linear(Scale::Cores);
            let mut add = |name: &str, tone, style, line: Timeline<UsageSecond>| {
                let points = thinned(&line.seconds(), |second| Some(second.cores), f64::max);
                chart.add(Series { name: name.to_owned(), tone, style, points }, line.length_s);
                chart.breaks = line.breaks;
            };
            let broker = Timeline::of(side, |run| {
                run.broker_process.as_ref().map_or(&[], |process| &process.usage.seconds)
            });
            add("generator", None, Style::Thin, Timeline::of(side, |run| &run.generator.seconds));
            add("broker", Some(tone), Style::Line, broker);
            (!chart.series.is_empty()).then_some(chart)
        })
        .collect();
    share_ranges(&mut charts);
    charts
}

fn linear(y: Scale) -> Chart {
    let y_label = match y {
        Scale::Cores => "cores",
        Scale::Bytes => "bytes per second",
        Scale::Records | Scale::Duration => "records per second",
    };
    Chart {
        x: "time",
        y,
        y_label: y_label.to_owned(),
        y_range: (0.0, 0.0),
        x_max: 0.0,
        series: Vec::new(),
        marks: Vec::new(),
        breaks: Vec::new(),
    }
}

impl Chart {
    /// A series in which nothing happened is left out.
    fn add(&mut self, series: Series, length_s: f64) {
        let most = series.points.iter().filter_map(|point| point.1).fold(0.0, f64::max);
        if most > 0.0 {
            self.y_range.1 = self.y_range.1.max(most * 1.15);
            self.x_max = self.x_max.max(length_s);
            self.series.push(series);
        }
    }
}

/// The runs of a side laid one after the other: seconds of measured time, without what was between.
struct Timeline<T> {
    pieces: Vec<(f64, Vec<T>)>,
    breaks: Vec<f64>,
    length_s: f64,
}

/// What has a place in its run.
trait Timed: Copy {
    fn at_s(&self) -> f64;
    fn end_s(&self) -> f64;
}

impl Timed for Second {
    fn at_s(&self) -> f64 {
        self.at_s
    }

    fn end_s(&self) -> f64 {
        self.at_s + self.length_s
    }
}

impl Timed for UsageSecond {
    fn at_s(&self) -> f64 {
        self.at_s
    }

    fn end_s(&self) -> f64 {
        self.at_s + self.length_s
    }
}

impl<T: Timed> Timeline<T> {
    fn of<'a>(side: &Side<'a>, seconds: impl Fn(&'a RunResult) -> &'a [T]) -> Timeline<T>
    where
        T: 'a,
    {
        let mut line = Timeline { pieces: Vec::new(), breaks: Vec::new(), length_s: 0.0 };
        for run in &side.runs {
            if line.length_s > 0.0 {
                line.breaks.push(line.length_s);
            }
            let seconds = seconds(run);
            line.pieces.push((line.length_s, seconds.to_vec()));
            line.length_s += seconds.last().map_or(0.0, Timed::end_s);
        }
        line
    }

    fn seconds(&self) -> Vec<(f64, T)> {
        let placed = |(from_s, piece): &(f64, Vec<T>)| {
            let from_s = *from_s;
            piece.iter().map(move |one| (from_s + one.at_s(), *one)).collect::<Vec<_>>()
        };
        self.pieces.iter().flat_map(placed).collect()
    }
}

/// At most [`TIME_POINTS_MAX`] points. Of seconds that are put together `worse` says which one stands for them, so that
/// no stall is thinned away.
fn thinned<T>(
    seconds: &[(f64, T)],
    value: impl Fn(&T) -> Option<f64>,
    worse: fn(f64, f64) -> f64,
) -> Vec<(f64, Option<f64>)> {
    let together = seconds.len().div_ceil(TIME_POINTS_MAX).max(1);
    let point = |chunk: &[(f64, T)]| {
        let y = chunk.iter().filter_map(|(_, one)| value(one)).reduce(worse);
        (chunk[0].0, y)
    };
    seconds.chunks(together).map(point).collect()
}

/// From a bit below the least to a bit above the most.
fn log_range<'a>(series: impl Iterator<Item = &'a Series>) -> (f64, f64) {
    let (mut low, mut high) = (f64::INFINITY, 0f64);
    for value in series.flat_map(|one| one.points.iter()).filter_map(|point| point.1) {
        low = low.min(value);
        high = high.max(value);
    }
    if low > high { (1e3, 1e9) } else { (low / 1.3, high * 1.5) }
}

fn share_ranges(charts: &mut [Option<Chart>]) {
    let all = || (f64::INFINITY, 0f64);
    let (low, high) = charts
        .iter()
        .flatten()
        .fold(all(), |range, chart| (range.0.min(chart.y_range.0), range.1.max(chart.y_range.1)));
    let x_max = charts.iter().flatten().fold(0f64, |most, chart| most.max(chart.x_max));
    for chart in charts.iter_mut().flatten() {
        (chart.y_range, chart.x_max) = ((low, high), x_max);
    }
}

/// The part in a reader's words.
pub(super) fn word(kind: PartKind) -> &'static str {
    match kind {
        PartKind::Produce => "produce",
        PartKind::EndToEnd => "end to end",
        PartKind::Fetch => "fetch",
        PartKind::Lateness => "generator's own lateness",
        PartKind::RawSync => "bare write and sync",
        PartKind::Connect => "connect",
    }
}

/// How a part is called where there are several of its kind.
pub(super) fn title(part: &Part) -> String {
    let mut title = word(part.kind).to_owned();
    for more in [&part.name, &part.phase] {
        if !more.is_empty() {
            title = format!("{title}, {more}");
        }
    }
    title
}
