//! Load from several machines: one coordinates, the others are workers and make the load.
//!
//! ```text
//!   coordinator                                   worker (a process on each machine, `flumen-bench worker`)
//!     clock questions ─────────────────────────►    answers with its wall clock, before and after each phase
//!     Job (scenario, phase, target, which share) ►  lays out its share, connects
//!     ◄─────────────────────────────── Prepared     so many threads
//!     ◄───────────────────────────────── Report     Ready, from each thread
//!     Start (time) ────────────────────────────►    all begin at the same time
//!     ◄───────────────────────────────── Report     seconds with their histograms, what was acknowledged, received
//!     Seal, Cut, Abandon ──────────────────────►
//!     ◄───────────────────────────────── Ended      what the machine's process took
//!     Heard ───────────────────────────────────►    ready for the next Job
//! ```
//!
//! A line of JSON is a message; histograms travel in HdrHistogram's own encoding and are merged bucket by bucket, exactly
//! as those of threads are. Whoever can reach a worker can have it make load: it is for networks that are trusted.
//!
//! Invariants: a message is below [`MESSAGE_BYTES_MAX`]; a connection that breaks ends the run, on both sides.

mod clock;
mod link;
mod worker;

pub(crate) use link::{Link, connect};
pub(crate) use worker::serve;

use crate::engine::{Amount, Effort, Means, Origin, Place, Received, Report, Tally};
use crate::failure::Failure;
use crate::layout::MachineShare;
use crate::result::{Latency, Machine, Usage};
use crate::scenario::Scenario;
use crate::sequence::Sequences;
use crate::target::Target;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Write};

/// Of one line: sequences of a thousand connections over a thousand partitions fit.
const MESSAGE_BYTES_MAX: u64 = 256 << 20;
/// Both sides must be of the same.
const PROTOCOL_VERSION: u32 = 3;

/// To a worker.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Hello {
        protocol: u32,
        version: String,
    },
    Clock,
    Job(Box<Job>),
    Start {
        at_unix_ns: u64,
    },
    Seal {
        acknowledged: u64,
    },
    Cut,
    Abandon,
    /// The end of the phase has been heard: nothing more comes of it.
    Heard,
}

/// A phase to be run.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    scenario: Scenario,
    phase: usize,
    target: Target,
    run: u64,
    share: MachineShare,
    /// To be added to the worker's clock to get the coordinator's.
    clock_offset_ns: i64,
    means: Means,
}

/// From a worker.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Hello { protocol: u32, version: String, machine: Box<Machine> },
    Clock { unix_ns: u64 },
    Prepared { threads: usize },
    Told(Told),
    Ended { usage: Usage },
}

/// A thread's report, as it travels.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    Ready,
    Interval { second: u64, tallies: Vec<TallySent> },
    Produced { acknowledged: Vec<SequencesSent>, unsent: u64 },
    Done { received: Vec<ReceivedSent>, effort: Effort },
    Failed(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct TallySent {
    requests: u64,
    records: u64,
    bytes: u64,
    late: Amount,
    last_ns: u64,
    errors: BTreeMap<String, u64>,
    latency: Option<Latency>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SequencesSent {
    producer: u32,
    topic: u32,
    partition: i32,
    ranges: Vec<(u64, u64)>,
    overflowed: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct ReceivedSent {
    group: usize,
    reader: Option<usize>,
    sequences: Vec<SequencesSent>,
    offsets: Vec<SequencesSent>,
    deleted: Vec<SequencesSent>,
    reached: Vec<Place>,
    deleted_in: Vec<Place>,
    duplicated: u64,
    redelivered: u64,
    reordered: u64,
    read: u64,
}

impl ReceivedSent {
    fn of(received: &Received) -> ReceivedSent {
        // Offsets have no producer.
        let offsets =
            received.offsets.iter().map(|(place, offsets)| ((0, *place), offsets.clone())).collect();
        ReceivedSent {
            group: received.group,
            reader: received.reader,
            sequences: send_sequences(&received.sequences),
            offsets: send_sequences(&offsets),
            deleted: send_sequences(&received.deleted),
            reached: received.reached.iter().copied().collect(),
            deleted_in: received.deleted_in.iter().copied().collect(),
            duplicated: received.duplicated,
            redelivered: received.redelivered,
            reordered: received.reordered,
            read: received.read,
        }
    }

    fn into_received(self) -> Received {
        let offsets = take_sequences(self.offsets).into_iter();
        Received {
            group: self.group,
            reader: self.reader,
            sequences: take_sequences(self.sequences),
            offsets: offsets.map(|((_, place), offsets)| (place, offsets)).collect(),
            deleted: take_sequences(self.deleted),
            reached: self.reached.into_iter().collect(),
            deleted_in: self.deleted_in.into_iter().collect(),
            duplicated: self.duplicated,
            redelivered: self.redelivered,
            reordered: self.reordered,
            read: self.read,
        }
    }
}

impl TallySent {
    fn of(tally: &Tally) -> TallySent {
        TallySent {
            requests: tally.requests,
            records: tally.records,
            bytes: tally.bytes,
            late: tally.late,
            last_ns: tally.last_ns,
            errors: tally.errors.clone(),
            latency: Latency::of(&tally.histogram),
        }
    }

    fn into_tally(self) -> Result<Tally, String> {
        let mut tally = Tally {
            requests: self.requests,
            records: self.records,
            bytes: self.bytes,
            late: self.late,
            last_ns: self.last_ns,
            errors: self.errors,
            ..Tally::default()
        };
        if let Some(latency) = self.latency {
            tally.histogram.add(latency.decode()?).map_err(|error| error.to_string())?;
        }
        Ok(tally)
    }
}

fn send_sequences(all: &BTreeMap<Origin, Sequences>) -> Vec<SequencesSent> {
    let one = |((producer, place), sequences): (&Origin, &Sequences)| SequencesSent {
        producer: *producer,
        topic: place.topic,
        partition: place.partition,
        ranges: sequences.ranges().collect(),
        overflowed: sequences.overflowed,
    };
    all.iter().map(one).collect()
}

fn take_sequences(all: Vec<SequencesSent>) -> BTreeMap<Origin, Sequences> {
    let one = |sent: SequencesSent| {
        let mut sequences = Sequences::default();
        for (begin, end) in sent.ranges {
            sequences.add_range(begin, end);
        }
        sequences.overflowed = sent.overflowed;
        ((sent.producer, Place { topic: sent.topic, partition: sent.partition }), sequences)
    };
    all.into_iter().map(one).collect()
}

impl Told {
    fn of(report: &Report) -> Told {
        match report {
            Report::Ready => Told::Ready,
            Report::Interval { second, tallies } => {
                Told::Interval { second: *second, tallies: tallies.iter().map(TallySent::of).collect() }
            }
            Report::Produced { acknowledged, unsent } => {
                Told::Produced { acknowledged: send_sequences(acknowledged), unsent: *unsent }
            }
            Report::Done { received, effort } => {
                let received = received.iter().map(ReceivedSent::of).collect();
                Told::Done { received, effort: *effort }
            }
            Report::Failed(failure) => Told::Failed(failure.to_string()),
        }
    }

    fn into_report(self) -> Result<Report, String> {
        Ok(match self {
            Told::Ready => Report::Ready,
            Told::Interval { second, tallies } => {
                let tallies = tallies.into_iter().map(TallySent::into_tally).collect::<Result<_, _>>()?;
                Report::Interval { second, tallies }
            }
            Told::Produced { acknowledged, unsent } => {
                Report::Produced { acknowledged: take_sequences(acknowledged), unsent }
            }
            Told::Done { received, effort } => {
                let received = received.into_iter().map(ReceivedSent::into_received).collect();
                Report::Done { received, effort }
            }
            Told::Failed(why) => Report::Failed(Failure::Other(why)),
        })
    }
}

fn write_line(out: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    out.write_all(&line)
}

/// The next message; none at the end.
fn read_line<T: for<'a> Deserialize<'a>>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.take(MESSAGE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a message that does not end"));
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_arrives_as_it_was_told() {
        let late = Amount { requests: 1, records: 2, bytes: 3 };
        let mut tally = Tally { requests: 3, records: 7, bytes: 9, late, last_ns: 11, ..Tally::default() };
        [5, 70_000, 123_456_789].iter().for_each(|nanoseconds| tally.time(*nanoseconds));
        tally.error("TIMEOUT", 2);
        let report = Report::Interval { second: 4, tallies: vec![tally.clone(), Tally::default()] };
        let mut line = Vec::new();
        write_line(&mut line, &Told::of(&report)).expect("written");
        let read: Told = read_line(&mut line.as_slice()).expect("read").expect("a message");
        let Ok(Report::Interval { second, tallies }) = read.into_report() else { panic!("another report") };
        assert_eq!((second, tallies.len(), tallies[0].records), (4, 2, 7));
        assert_eq!((tallies[0].late, tallies[0].last_ns), (late, 11));
        assert_eq!((&tallies[0].histogram, &tallies[0].errors), (&tally.histogram, &tally.errors));
    }

    #[test]
    fn sequences_arrive_as_they_are() {
        let mut sequences = Sequences::default();
        sequences.add_range(0, 10);
        sequences.add_range(12, 13);
        sequences.overflowed = 1;
        let all = BTreeMap::from([((7, Place { topic: 1, partition: 2 }), sequences)]);
        assert_eq!(take_sequences(send_sequences(&all)), all);
    }

    #[test]
    fn what_was_received_arrives_as_it_is() {
        let place = Place { topic: 1, partition: 2 };
        let mut some = Sequences::default();
        some.add_range(3, 9);
        let received = Received {
            group: 1,
            reader: Some(4),
            sequences: BTreeMap::from([((7, place), some.clone())]),
            offsets: BTreeMap::from([(place, some.clone())]),
            reached: [place].into(),
            deleted: BTreeMap::from([((8, place), some)]),
            deleted_in: [place].into(),
            duplicated: 1,
            redelivered: 2,
            reordered: 3,
            read: 4,
        };
        assert_eq!(ReceivedSent::of(&received).into_received(), received);
    }

    #[test]
    fn half_a_message_is_an_error_and_none_is_the_end() {
        let none: io::Result<Option<Order>> = read_line(&mut &b""[..]);
        assert!(matches!(none, Ok(None)));
        let half: io::Result<Option<Order>> = read_line(&mut &b"\"Cut"[..]);
        assert!(half.is_err());
    }
}
