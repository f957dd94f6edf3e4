//! Results as a run would make them, for tests: 20 seconds at 5,000 records a second, latencies with a tail, and a stall
//! of 200 ms every 7 seconds that shows in the records that were due meanwhile.

use super::*;

const SECONDS: u64 = 20;
const RATE: u64 = 5_000;
const RECORD_BYTES: u64 = 1024;
const STALL_NS: u64 = 200_000_000;

/// `slowness` multiplies latencies and CPU, not the rate, as in an open loop.
pub(crate) fn run(name: &str, seed: u64, slowness: f64) -> RunResult {
    let mut random = fastrand::Rng::with_seed(seed);
    let produce = part(PartKind::Produce, &mut random, 400_000.0 * slowness, STALL_NS);
    let end_to_end = part(PartKind::EndToEnd, &mut random, 700_000.0 * slowness, STALL_NS);
    let lateness = part(PartKind::Lateness, &mut random, 9_000.0, 0);
    let bytes = produce.bytes + end_to_end.bytes;
    let mut process = BrokerProcess {
        pid: 4711,
        name: name.to_owned(),
        usage: usage(0.3 * slowness, &mut random),
        ..BrokerProcess::default()
    };
    process.relate(Amount { bytes, records: produce.records, requests: produce.requests });
    RunResult {
        format: RUN_FORMAT.to_owned(),
        format_version: FORMAT_VERSION,
        tool: Tool {
            version: "0.1.0".to_owned(),
            command: vec!["flumen-bench".to_owned(), "run".to_owned()],
        },
        scenario: "latency".to_owned(),
        setting: serde_json::json!({ "rate": RATE, "record": { "size": RECORD_BYTES }, "partitions": 4 }),
        driver: "flumen".to_owned(),
        manner: None,
        topics: None,
        broker: Broker {
            addresses: vec!["127.0.0.1:9092".to_owned()],
            version: Some(name.to_owned()),
            cluster_id: None,
            nodes: 1,
        },
        machines: vec![crate::machine::describe(Path::new("/"))],
        started_unix_ms: 1_790_000_000_000,
        duration_s: SECONDS as f64,
        verdict: Verdict::default(),
        parts: vec![produce, end_to_end, lateness],
        integrity: Some(Integrity { checked: RATE * SECONDS, ..Integrity::default() }),
        generator: usage(0.2, &mut random),
        broker_process: Some(process),
        limits: None,
        restarts: Vec::new(),
        growths: Vec::new(),
    }
}

pub(crate) fn histogram_of(result: &RunResult, kind: PartKind) -> Histogram<u64> {
    let latency = result.part(kind).and_then(|part| part.latency.as_ref()).expect("it was timed");
    latency.decode().expect("a histogram of this file")
}

/// An exponential tail above `base_ns`, and the stalls.
fn part(kind: PartKind, random: &mut fastrand::Rng, base_ns: f64, stall_ns: u64) -> Part {
    let empty = || Histogram::<u64>::new_with_bounds(1, 3_600_000_000_000, 3).expect("sound bounds");
    let mut whole = empty();
    let mut seconds = Vec::new();
    for second in 0..SECONDS {
        let mut here = empty();
        for place in 0..RATE {
            let tail = -(1.0 - random.f64()).ln();
            let mut ns = (base_ns * (1.0 + 0.25 * tail + 0.04 * tail * tail)) as u64;
            // Due while the stall lasts, from the middle of its second: answered at its end.
            let into_stall_ns = (place * 1_000_000_000 / RATE).checked_sub(500_000_000);
            if second % 7 == 4
                && let Some(left_ns) = into_stall_ns.and_then(|into| stall_ns.checked_sub(into))
            {
                ns += left_ns;
            }
            here.record(ns).expect("within bounds");
        }
        let summary = Summary::of(&here);
        seconds.push(Second {
            at_s: second as f64,
            length_s: 1.0,
            requests: RATE,
            records: RATE,
            bytes: RATE * RECORD_BYTES,
            errors: 0,
            p50_ns: summary.p50_ns,
            p99_ns: summary.p99_ns,
            p99_9_ns: summary.p99_9_ns,
            max_ns: summary.max_ns,
        });
        whole.add(here).expect("the same bounds");
    }
    Part {
        kind,
        name: String::new(),
        phase: String::new(),
        requests: RATE * SECONDS,
        records: RATE * SECONDS,
        bytes: RATE * SECONDS * RECORD_BYTES,
        late: Amount::default(),
        errors: BTreeMap::new(),
        latency: Latency::of(&whole),
        drift: None,
        seconds,
    }
}

fn usage(cores: f64, random: &mut fastrand::Rng) -> Usage {
    let second = |at: u64| UsageSecond {
        at_s: at as f64,
        length_s: 1.0,
        cores: cores * (0.9 + 0.2 * random.f64()),
        rss_bytes: (80 << 20) + (at << 20),
        disk_read_bytes: 0,
        disk_write_bytes: RATE * RECORD_BYTES,
    };
    let seconds: Vec<UsageSecond> = (0..SECONDS).map(second).collect();
    Usage {
        // Exactly, so that ratios of them are known.
        cpu_user_s: 0.7 * cores * SECONDS as f64,
        cpu_system_s: 0.3 * cores * SECONDS as f64,
        rss_bytes_max: 100 << 20,
        disk_write_bytes: SECONDS * RATE * RECORD_BYTES,
        context_switches_voluntary: 12_000,
        context_switches_involuntary: 300,
        disk_read_bytes: 0,
        seconds,
    }
}
