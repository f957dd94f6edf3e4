//! The page itself: HTML with its style and script in it. All that comes from a result passes [`Html::text`] or
//! [`data_of`].

use super::series::{self, Chart, Side, Track};
use super::words::{self, Weight};
use crate::compare::document::{Comparison, Over, Ratio};
use crate::compare::figures::{Figure, Unit};
use crate::quantity;
use crate::result::{Machine, Part, PartKind, RestartSeen, RunResult};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// HTML that grows. Only literals of this file go in as they are.
#[derive(Default)]
struct Html(String);

impl Html {
    fn raw(&mut self, html: &'static str) -> &mut Html {
        self.0.push_str(html);
        self
    }

    /// Escaped for text and for quoted attributes alike.
    fn text(&mut self, text: impl AsRef<str>) -> &mut Html {
        for character in text.as_ref().chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                other => self.0.push(other),
            }
        }
        self
    }

    fn cell(&mut self, text: impl AsRef<str>) -> &mut Html {
        self.raw("<td>").text(text).raw("</td>")
    }
}

/// JSON that may stand in a script element: nothing in it can end the element or open a comment, and the two line
/// separators that JSON allows and scripts did not are escaped too.
fn data_of(charts: &[Chart]) -> String {
    // Plain structures of numbers and text always have a JSON form; infinities become null.
    let json = serde_json::to_string(charts).unwrap_or_else(|_| "[]".to_owned());
    let mut safe = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                safe.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            other => safe.push(other),
        }
    }
    safe
}

/// The page being made: its text, and the charts that the text has places for.
struct Page<'a> {
    html: Html,
    charts: Vec<Chart>,
    sides: &'a [Side<'a>],
}

pub(super) fn write(sides: &[Side], comparison: Option<&Comparison>) -> String {
    let scenario = sides.iter().flat_map(|side| side.runs.first()).next().map_or("", |run| &run.scenario);
    let scenario = comparison.map_or(scenario, |comparison| &comparison.scenario);
    let names: Vec<&str> = sides.iter().map(|side| side.name.as_str()).collect();
    let title = format!("{scenario}: {}", names.join(" against "));
    let mut page = Page { html: Html::default(), charts: Vec::new(), sides };
    page.head(&title);
    page.html.raw("<header><p class=\"kicker\">flumen-bench · ").text(scenario).raw("</p><h1>");
    for (tone, name) in names.iter().enumerate() {
        if tone > 0 {
            page.html.raw(" <span class=\"against\">against</span> ");
        }
        page.named(tone, name);
    }
    page.html.raw("</h1><p class=\"subject\">").text(words::subject(sides, comparison)).raw("</p>");
    page.verdicts(comparison);
    page.html.raw("</header>\n<main>\n");
    match comparison {
        Some(comparison) => page.ratios(comparison),
        None => page.headlines(),
    }
    page.courses();
    page.limits();
    page.setting(comparison);
    page.html.raw("</main>\n<script type=\"application/json\" id=\"data\">");
    page.html.0.push_str(&data_of(&page.charts));
    page.html.raw("</script>\n<script>").raw(SCRIPT).raw("</script>\n</body></html>\n");
    page.html.0
}

impl Page<'_> {
    fn head(&mut self, title: &str) {
        self.html
            .raw("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n")
            .raw("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; ")
            .raw("style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n")
            .raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>")
            .text(title)
            .raw("</title>\n<style>")
            .raw(STYLE)
            .raw("</style></head>\n<body>\n");
    }

    /// A contender, with its colour before it.
    fn named(&mut self, tone: usize, name: &str) {
        self.html.raw("<span class=\"side tone-").text(tone.to_string()).raw("\">").text(name).raw("</span>");
    }

    fn verdicts(&mut self, comparison: Option<&Comparison>) {
        self.html.raw("<ul class=\"verdicts\">");
        for sentence in words::verdicts(self.sides, comparison) {
            self.html.raw(match sentence.weight {
                Weight::Good => "<li class=\"good\"><b>✓</b><span>",
                Weight::Warning => "<li class=\"warning\"><b>!</b><span>",
                Weight::Bad => "<li class=\"bad\"><b>✕</b><span>",
                Weight::Note => "<li class=\"note\"><b>·</b><span>",
            });
            self.html.text(sentence.text).raw("</span></li>");
        }
        self.html.raw("</ul>");
    }

    /// The few figures of a run that one looks for first.
    fn headlines(&mut self) {
        self.html.raw("<section class=\"headlines\">");
        let sides = self.sides;
        for (tone, side) in sides.iter().enumerate() {
            let Some(run) = side.runs.first() else { continue };
            if sides.len() > 1 {
                self.html.raw("<h3>");
                self.named(tone, &side.name);
                self.html.raw("</h3>");
            }
            for (phase, figures) in headlines(run) {
                if let Some(phase) = phase {
                    self.html.raw("<h4>").text(phase).raw("</h4>");
                }
                self.html.raw("<dl>");
                for (name, value) in figures {
                    self.html.raw("<div><dt>").text(name).raw("</dt><dd>").text(value).raw("</dd></div>");
                }
                self.html.raw("</dl>");
            }
        }
        self.html.raw("</section>\n");
    }

    /// Ratios as a table whose last column draws them on one scale.
    fn ratios(&mut self, comparison: &Comparison) {
        let Some(first) = comparison.contenders.first() else { return };
        for (place, other) in comparison.contenders.iter().enumerate().skip(1) {
            let ratios: Vec<&Ratio> = comparison.ratios.iter().filter(|ratio| ratio.to == place).collect();
            let span = span_of(&ratios);
            self.html.raw("<section><h2>");
            self.named(0, &first.name);
            self.html.raw(" as a multiple of ");
            self.named(place, &other.name);
            self.html.raw("</h2><div class=\"wide\"><table class=\"ratios\"><thead><tr><th>figure</th><th>");
            self.html.text(&first.name).raw("</th><th>").text(&other.name);
            self.html.raw("</th><th>ratio</th><th>interval</th><th class=\"drawn\">").text(&first.name);
            self.html.raw(" has less ← 1 → more</th></tr></thead><tbody>");
            for ratio in ratios {
                self.ratio(ratio, span);
            }
            self.html.raw("</tbody></table></div><p class=\"small\">").text(interval_words(comparison));
            self.html.raw("</p></section>\n");
        }
    }

    fn ratio(&mut self, ratio: &Ratio, span: f64) {
        let is_seconds = ratio.over == Over::Seconds;
        self.html.raw(if is_seconds { "<tr class=\"minor\"><th>" } else { "<tr><th>" });
        self.html.text(named_figure(ratio));
        self.html.raw(if is_seconds { " <small>over seconds</small>" } else { "" }).raw("</th>");
        self.html.cell(amount(ratio.figure, ratio.a)).cell(amount(ratio.figure, ratio.b));
        self.html.raw("<td><strong>").text(quantity::ratio(ratio.ratio)).raw("</strong></td>");
        let interval = ratio.interval.map(|interval| {
            format!("{} – {}", quantity::ratio(interval.low), quantity::ratio(interval.high))
        });
        self.html.cell(interval.unwrap_or_else(|| format!("{} are too few", ratio.samples)));
        let (low, high) = ratio.interval.map_or((ratio.ratio, ratio.ratio), |one| (one.low, one.high));
        let (better, word) = judged(ratio);
        let place = |value: f64| format!("{:.2}", 50.0 + 50.0 * (value.ln() / span).clamp(-1.0, 1.0));
        self.html
            .raw("<td class=\"drawn\"><svg viewBox=\"0 0 100 12\" preserveAspectRatio=\"none\" class=\"");
        self.html
            .text(better)
            .raw("\" aria-hidden=\"true\"><line class=\"one\" x1=\"50\" x2=\"50\" y1=\"0\" y2=\"12\"/>");
        for (class, from, to) in [("bar", 1.0, ratio.ratio), ("whisker", low, high)] {
            self.html.raw("<line class=\"").text(class).raw("\" x1=\"").text(place(from));
            self.html.raw("\" x2=\"").text(place(to)).raw("\" y1=\"6\" y2=\"6\"/>");
        }
        self.html.raw("</svg><span class=\"").text(better).raw("\">").text(word).raw("</span></td></tr>");
    }

    /// A place for a chart; its curves are drawn there by the script.
    fn chart(&mut self, caption: Option<(usize, &str)>, chart: Chart) {
        self.html.raw("<figure data-chart=\"").text(self.charts.len().to_string()).raw("\"><figcaption>");
        if let Some((tone, name)) = caption {
            self.named(tone, name);
        }
        self.html.raw("</figcaption><div class=\"plot\"></div></figure>");
        self.charts.push(chart);
    }

    /// For each phase all that was timed in it, then its throughput; at the end the CPU of the whole.
    fn courses(&mut self) {
        let sides = self.sides;
        let tracks = Track::all(sides);
        let mut phases: Vec<&str> = Vec::new();
        for track in &tracks {
            if !phases.contains(&track.phase.as_str()) {
                phases.push(&track.phase);
            }
        }
        for phase in &phases {
            let of_phase: Vec<&Track> = tracks.iter().filter(|track| track.phase == *phase).collect();
            if phases.len() > 1 {
                self.html.raw("<h2 class=\"phase\">Phase: ").text(phase).raw("</h2>");
            }
            for track in of_phase.iter().filter(|track| track.kind.is_work()) {
                self.latency(track);
            }
            self.charts_over_time("Throughput", series::throughputs(sides, &of_phase));
        }
        if phases.len() > 1 {
            self.html.raw("<h2 class=\"phase\">All phases</h2>");
        }
        self.charts_over_time("CPU, in cores", series::cores(sides));
    }

    /// Percentiles of all, then the course over time of each.
    fn latency(&mut self, track: &Track) {
        let sides = self.sides;
        let Some(percentiles) = series::percentiles(sides, track) else { return };
        self.html.raw("<section><h2>Latency, ").text(track.title());
        self.html.raw("</h2><p class=\"small\">");
        self.html.raw(match track.kind {
            PartKind::Produce => "From the time at which a record was due to its acknowledgement.",
            PartKind::EndToEnd => "From the time at which a record was due to its receipt by a consumer.",
            PartKind::Fetch => "From the request to the whole answer.",
            _ => "From the attempt to the broker's first answer.",
        });
        self.html.raw(" Both scales are logarithmic; the curve ends at the slowest of all.</p>");
        self.chart(None, percentiles);
        self.percentile_table(track);
        self.html.raw("<h3>Over time: median, p99 and the slowest of each second</h3>");
        self.row(series::latencies(sides, track));
        self.html.raw("</section>\n");
    }

    fn charts_over_time(&mut self, title: &str, charts: Vec<Option<Chart>>) {
        if charts.iter().any(Option::is_some) {
            self.html.raw("<section><h2>").text(title).raw("</h2>");
            self.row(charts);
            self.html.raw("</section>\n");
        }
    }

    fn row(&mut self, charts: Vec<Option<Chart>>) {
        let sides = self.sides;
        self.html.raw("<div class=\"row\">");
        for (tone, (side, chart)) in sides.iter().zip(charts).enumerate() {
            if let Some(chart) = chart {
                self.chart((sides.len() > 1).then_some((tone, &side.name)), chart);
            }
        }
        self.html.raw("</div>");
    }

    fn percentile_table(&mut self, track: &Track) {
        const COLUMNS: [(&str, f64); 5] =
            [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];
        self.html.raw("<div class=\"wide\"><table><thead><tr><th></th><th>timed</th>");
        for (name, _) in COLUMNS {
            self.html.raw("<th>").text(name).raw("</th>");
        }
        self.html.raw("<th>max</th></tr></thead><tbody>");
        let sides = self.sides;
        for (tone, side) in sides.iter().enumerate() {
            let Some(histogram) = series::merged(side, track) else { continue };
            self.html.raw("<tr><th>");
            self.named(tone, &side.name);
            self.html.raw("</th>").cell(quantity::grouped(histogram.len()));
            for (_, quantile) in COLUMNS {
                // Of fewer samples the percentile would be the maximum under another name.
                let is_known = (1.0 - quantile) * histogram.len() as f64 >= 1.0;
                let value = histogram.value_at_quantile(quantile) as f64;
                self.html.cell(if is_known { quantity::duration(value) } else { "–".to_owned() });
            }
            self.html.cell(quantity::duration(histogram.max() as f64)).raw("</tr>");
        }
        self.html.raw("</tbody></table></div>");
        for side in sides {
            if let Some(sentence) = words::over_raw(side, track) {
                self.html.raw("<p class=\"small\">").text(sentence).raw("</p>");
            }
        }
    }

    /// The most that the machine takes, where a run measured it.
    fn limits(&mut self) {
        let sides = self.sides;
        let Some(limits) = sides.iter().flat_map(|side| &side.runs).find_map(|run| run.limits.as_ref())
        else {
            return;
        };
        self.html.raw("<section><h2>What this machine can do at most</h2>");
        self.html.raw("<p class=\"small\">Each alone, right before the load.</p>");
        self.html.raw("<div class=\"wide\"><table class=\"facts\"><tbody>");
        for (name, value) in limits.rows() {
            self.fact(&name, &value);
        }
        for side in sides {
            for share in words::shares(side, limits) {
                self.fact(&side.name, &share);
            }
        }
        self.html.raw("</tbody></table></div></section>\n");
    }

    /// All that is needed to repeat it.
    fn setting(&mut self, comparison: Option<&Comparison>) {
        self.html
            .raw("<section><h2>Measured on, and with</h2><div class=\"wide\"><table class=\"facts\"><tbody>");
        let sides = self.sides;
        let Some(first) = sides.iter().flat_map(|side| side.runs.first()).next() else { return };
        for (place, machine) in first.machines.iter().enumerate() {
            let name =
                if first.machines.len() > 1 { format!("worker {}", place + 1) } else { "machine".to_owned() };
            self.fact(&name, &machine_words(machine));
        }
        for (place, side) in sides.iter().enumerate() {
            let described =
                comparison.and_then(|one| one.contenders.get(place)).map(|one| one.description.clone());
            let broker = side.runs.first().map(|run| broker_words(run)).unwrap_or_default();
            self.fact(&side.name, &described.unwrap_or(broker));
        }
        self.fact("flumen-bench", &first.tool.version);
        let command = comparison.map_or(&first.tool.command, |one| &one.tool.command);
        self.fact("command", &command.join(" "));
        self.html.raw("</tbody></table></div><details><summary>The whole setting</summary><pre>");
        let setting = serde_json::to_string_pretty(&first.setting).unwrap_or_default();
        self.html.text(setting).raw("</pre></details></section>\n");
    }

    fn fact(&mut self, name: &str, value: &str) {
        self.html.raw("<tr><th>").text(name).raw("</th>").cell(value).raw("</tr>");
    }
}

/// Figures under the name of their phase; where there is one phase alone, all are together without a name.
type Headlines = Vec<(Option<String>, Vec<(String, String)>)>;

fn headlines(run: &RunResult) -> Headlines {
    let mut phases: Vec<&str> = run.parts.iter().map(|part| part.phase.as_str()).collect();
    phases.dedup();
    let is_single = phases.len() <= 1;
    let mut found: Headlines = Vec::new();
    for phase in phases {
        let of_phase = run.parts.iter().filter(|part| part.phase == phase);
        let mut figures: Vec<(String, String)> = of_phase.flat_map(part_headlines).collect();
        figures.extend(run.restarts.iter().filter(|one| one.phase == phase).map(restart_headline));
        found.push(((!is_single).then(|| format!("Phase: {phase}")), figures));
    }
    let whole = broker_headlines(run);
    match found.first_mut() {
        Some((None, figures)) => figures.extend(whole),
        _ if whole.is_empty() => {}
        _ => found.push(((!is_single).then(|| "Broker, over all phases".to_owned()), whole)),
    }
    found
}

fn part_headlines(part: &Part) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut add = |name: &str, value: String| {
        let mut name = format!("{} {name}", series::word(part.kind));
        if !part.name.is_empty() {
            name = format!("{name}, {}", part.name);
        }
        found.push((name, value));
    };
    if !part.kind.is_work() || part.kind == PartKind::Connect {
        return found;
    }
    if part.kind != PartKind::EndToEnd {
        add("records", format!("{}/s", quantity::number(part.records_per_s())));
        add("bytes", format!("{}/s", quantity::bytes(part.bytes_per_s())));
    }
    if let Some(latency) = &part.latency {
        add("p50", quantity::duration(latency.summary.p50_ns as f64));
        add("p99.9", quantity::duration(latency.summary.p99_9_ns as f64));
    }
    found
}

fn restart_headline(restart: &RestartSeen) -> (String, String) {
    let first = restart.first_acknowledgement_ns.map(|ns| quantity::duration(ns as f64));
    (Figure::FirstAcknowledgement.label().to_owned(), first.unwrap_or_else(|| "never".to_owned()))
}

fn broker_headlines(run: &RunResult) -> Vec<(String, String)> {
    let Some(process) = &run.broker_process else { return Vec::new() };
    let cpu = process.cpu_s_per_gb.map(|cpu_s| ("CPU per GB".to_owned(), amount(Figure::CpuPerGb, cpu_s)));
    let memory = quantity::bytes(process.usage.rss_bytes_max as f64);
    let rest = [("memory, at most".to_owned(), memory)];
    cpu.into_iter().chain(rest).map(|(name, value)| (format!("broker {name}"), value)).collect()
}

/// With its phase, where it is of one.
pub(crate) fn named_figure(ratio: &Ratio) -> String {
    match ratio.phase.as_str() {
        "" => ratio.figure.label().to_owned(),
        phase => format!("{}, {phase}", ratio.figure.label()),
    }
}

/// A figure's value with its unit.
pub(crate) fn amount(figure: Figure, value: f64) -> String {
    match figure.unit() {
        Unit::PerSecond => format!("{}/s", quantity::number(value)),
        Unit::BytesPerSecond => format!("{}/s", quantity::bytes(value)),
        Unit::Nanoseconds => quantity::duration(value),
        Unit::CpuSecondsPerGb => format!("{} s", quantity::three_digits(value)),
        Unit::CpuMicroseconds => format!("{} µs", quantity::three_digits(value)),
        Unit::Bytes => quantity::bytes(value),
        Unit::Times => format!("{} ×", quantity::ratio(value)),
    }
}

/// Whether A is better, and how many times: the class and the word. Even, where the difference is one that nobody would
/// care for; unclear, where the interval has 1 in it; incomplete, where a run left something out.
pub(crate) fn judged(ratio: &Ratio) -> (&'static str, String) {
    const EVEN: f64 = 0.02;
    if ratio.is_withheld {
        return ("even", "incomplete".to_owned());
    }
    let (low, high) = ratio.interval.map_or((ratio.ratio, ratio.ratio), |one| (one.low, one.high));
    if (ratio.ratio - 1.0).abs() < EVEN {
        return ("even", "even".to_owned());
    }
    if low <= 1.0 && high >= 1.0 {
        return ("even", "unclear".to_owned());
    }
    let is_better = (ratio.ratio > 1.0) == ratio.figure.more_is_better();
    let class = if is_better { "better" } else { "worse" };
    (class, format!("{} × {class}", quantity::ratio(ratio.ratio.max(1.0 / ratio.ratio))))
}

/// Logarithm of the ratio at the edge of the drawing: the same on both sides of one.
fn span_of(ratios: &[&Ratio]) -> f64 {
    let ends = |ratio: &&Ratio| {
        let interval = ratio.interval.map_or([1.0, 1.0], |one| [one.low, one.high]);
        [ratio.ratio, interval[0], interval[1]].map(|value| if value > 0.0 { value.ln().abs() } else { 0.0 })
    };
    ratios.iter().flat_map(ends).fold(1.2f64.ln(), f64::max) * 1.05
}

fn interval_words(comparison: &Comparison) -> String {
    let bootstrap = &comparison.bootstrap;
    format!(
        "Intervals hold {:.0} % of {} bootstrap drawings, and are widened as few samples ask for. Over turns: whole runs are drawn, those of a turn together, so \
         the interval tells what another comparison would show. Over seconds: blocks of {} s are drawn apart, which \
         leaves out what differs from run to run. Percentiles are those of merged histograms; none is a mean of \
         percentiles. Better and worse are said where the whole interval is on one side of 1, and the ratio more than 2 % \
         from it.",
        bootstrap.confidence * 100.0,
        quantity::grouped(u64::from(bootstrap.resamples)),
        bootstrap.block_seconds,
    )
}

fn machine_words(machine: &Machine) -> String {
    let mut parts = vec![
        format!(
            "{} ({}), {} of {} cores",
            machine.cpu_model, machine.architecture, machine.cores_usable, machine.cores
        ),
        format!("{} of memory", quantity::bytes(machine.memory_bytes as f64)),
        machine.kernel.clone(),
        machine.os.clone(),
        format!("clock {}", machine.clock_source),
    ];
    if let Some(disk) = &machine.disk {
        let cache = disk.write_cache.as_ref().map(|cache| format!(", {cache} cache")).unwrap_or_default();
        parts.push(format!("{} on {}{cache}", disk.file_system, disk.model.as_ref().unwrap_or(&disk.device)));
    }
    if let Some(hypervisor) = &machine.hypervisor {
        parts.push(format!("a virtual machine ({hypervisor})"));
    }
    parts.join(" · ")
}

fn broker_words(run: &RunResult) -> String {
    let mut text = run.broker.version.clone().unwrap_or_else(|| "version unknown".to_owned());
    text.push_str(&format!(", {} node(s), at {}", run.broker.nodes, run.broker.addresses.join(", ")));
    if let Some(process) = &run.broker_process {
        text.push_str(&format!(", here as process {} ({})", process.name, process.pid));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::document::Interval;
    use crate::result::fixture;

    #[test]
    fn a_ratio_is_judged_by_its_whole_interval() {
        let ratio = |figure, ratio, interval: Option<(f64, f64)>| Ratio {
            figure,
            phase: String::new(),
            to: 1,
            over: Over::Turns,
            a: ratio,
            b: 1.0,
            ratio,
            interval: interval.map(|(low, high)| Interval { low, high }),
            samples: 3,
            is_withheld: false,
        };
        let latency = Figure::ProduceP99;
        let withheld = Ratio { is_withheld: true, ..ratio(latency, 0.25, Some((0.2, 0.3))) };
        assert_eq!(judged(&withheld).1, "incomplete");
        for (asked, word) in [
            (ratio(latency, 0.25, Some((0.2, 0.3))), "4.00 × better"),
            (ratio(latency, 4.0, Some((3.0, 5.0))), "4.00 × worse"),
            (ratio(Figure::ProduceBytesPerS, 4.0, Some((3.0, 5.0))), "4.00 × better"),
            (ratio(latency, 2.5, Some((0.7, 10.0))), "unclear"),
            (ratio(latency, 1.01, Some((1.005, 1.015))), "even"),
            (ratio(latency, 0.5, None), "2.00 × better"),
        ] {
            assert_eq!(judged(&asked).1, word, "{asked:?}");
        }
    }

    const HOSTILE: &str =
        "</script><script>alert(1)</script><!--\u{2028}\"'><img src=x onerror=alert(2)>&lt;";

    /// Counts of `<script` and of `</script`, and whatever could have come in from outside.
    fn assert_closed(html: &str) {
        let lower = html.to_ascii_lowercase();
        assert_eq!((lower.matches("<script").count(), lower.matches("</script").count()), (2, 2));
        assert!(!lower.contains("<img") && !lower.contains("<!--"));
    }

    #[test]
    fn hostile_names_stay_text_wherever_they_stand() {
        let mut run = fixture::run(HOSTILE, 1, 1.0);
        run.scenario = HOSTILE.to_owned();
        run.setting = serde_json::json!({ HOSTILE: HOSTILE });
        run.driver = HOSTILE.to_owned();
        run.broker.addresses = vec![HOSTILE.to_owned()];
        run.tool.command = vec![HOSTILE.to_owned()];
        run.machines[0].cpu_model = HOSTILE.to_owned();
        run.verdict.partial = Some(HOSTILE.to_owned());
        run.parts[0].errors.insert(HOSTILE.to_owned(), 1);
        run.parts[1].name = HOSTILE.to_owned();
        // Two, so that names reach the data of the script too.
        let side = || Side { name: HOSTILE.to_owned(), runs: vec![&run, &run] };
        let html = write(&[side(), side()], None);
        assert_closed(&html);
        let data = html.split("id=\"data\">").nth(1).expect("a script element");
        assert!(
            data.contains("\\u003c/script\\u003e") && !data.contains('\u{2028}'),
            "the names are in the data"
        );
    }

    #[test]
    fn the_page_loads_nothing() {
        let run = fixture::run("x", 1, 1.0);
        let html = write(&[Side { name: "x".to_owned(), runs: vec![&run] }], None);
        assert_closed(&html);
        for forbidden in [" src=", "http:", "https:", "url(", "@import", "<link", "fetch(", "innerHTML"] {
            let found = html.replace("http://www.w3.org/2000/svg", "").find(forbidden);
            assert_eq!(found, None, "{forbidden}");
        }
    }

    #[test]
    fn the_data_of_the_script_is_what_was_put_in() {
        let run = fixture::run("<&>", 1, 1.0);
        let side = |name: &str| Side { name: name.to_owned(), runs: vec![&run] };
        let html = write(&[side("<a>"), side("&b")], None);
        let data = html.split("id=\"data\">").nth(1).and_then(|rest| rest.split("</script>").next());
        let charts: serde_json::Value = serde_json::from_str(data.expect("a script element")).expect("JSON");
        assert_eq!(charts[0]["series"][0]["name"], "<a>");
        assert_eq!(charts[0]["series"][1]["name"], "&b");
        let points = charts[0]["series"][0]["points"].as_array().expect("points");
        assert_eq!(
            points.last().expect("an end")[0].as_f64(),
            Some(5.0),
            "100,000 records: the end is at 99.999 %"
        );
    }

    #[test]
    fn figures_stand_under_the_names_of_their_phases() {
        let mut run = fixture::run("x", 1, 1.0);
        let names = |run: &RunResult| headlines(run).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&run), [None]);
        run.restarts.push(RestartSeen {
            phase: "second".to_owned(),
            killed_at_s: 1.0,
            first_acknowledgement_ns: None,
        });
        for (part, phase) in run.parts.iter_mut().zip(["first", "second", "second"]) {
            part.phase = phase.to_owned();
        }
        let expected = ["Phase: first", "Phase: second", "Broker, over all phases"];
        assert_eq!(names(&run), expected.map(|name| Some(name.to_owned())));
        let (_, second) = headlines(&run).swap_remove(1);
        assert_eq!(second.last().expect("there are some").1, "never");
        let html = write(&[Side { name: "x".to_owned(), runs: vec![&run] }], None);
        assert!(html.contains(">Phase: second</h2>"), "{html}");
    }

    #[test]
    fn an_empty_run_is_a_page_too() {
        let mut run = fixture::run("x", 1, 1.0);
        run.parts.clear();
        run.broker_process = None;
        run.generator.seconds.clear();
        let html = write(&[Side { name: "x".to_owned(), runs: vec![&run] }], None);
        assert!(html.ends_with("</html>\n") && !html.contains("<figure"));
    }
}
