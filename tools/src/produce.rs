//! `flumen produce`: lines become records.
//!
//! A thread of its own reads, since reading may block; it hands over whole lines in pieces, a bounded number at a time.
//! Records are built from the pieces without a copy of their own.

use crate::amount;
use crate::cli::{Acks, ProduceOptions};
use crate::failure::{Failure, warn};
use crate::interrupt::{GRACE, Interrupt, TICK};
use crate::output::{Out, StatusLine};
use crate::record_format::unescape;
use crate::time;
use flumen_client::error::Error;
use flumen_client::producer::{Delivery, Producer, ProducerSettings};
use flumen_client::{Cluster, runtime};
use flumen_wire::batch::NewRecord;
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What is read at once.
const PIECE_BYTES: usize = 256 << 10;
/// The longest line that is taken: brokers refuse far smaller records.
const LINE_BYTES_MAX: usize = 256 << 20;
/// Pieces that wait to be sent.
const PIECES_MAX: usize = 4;

/// What has arrived.
#[derive(Debug, Default)]
struct Arrived {
    records: u64,
    bytes: u64,
    /// By partition: how many, and the first offset.
    partitions: BTreeMap<i32, (u64, i64)>,
    failed: u64,
    first_failure: Option<Error>,
}

pub(crate) async fn run(cluster: &Cluster, options: ProduceOptions, out: &mut Out) -> Result<(), Failure> {
    let usage = |what: &'static str| move |why: String| Failure::usage(format!("{what}: {why}"));
    let separator =
        options.key_separator.as_deref().map(unescape).transpose().map_err(usage("--key-separator"))?;
    if separator.as_ref().is_some_and(Vec::is_empty) {
        return Err(Failure::usage("--key-separator: give at least one character"));
    }
    let settings = producer_settings(&options, cluster.settings().retry_timeout)?;
    let source = open(options.file.as_deref())?;
    // Not before what was asked for is known to make sense: the broker may make the topic.
    let topic = cluster.topic(&options.topic, !options.no_create).await?;
    let arrived = Rc::new(RefCell::new(Arrived::default()));
    let noted = arrived.clone();
    let producer =
        Producer::start(cluster, settings, move |delivery| noted.borrow_mut().note(delivery)).await?;
    let interrupt = Interrupt::listen()?;
    let lines = read(source)?;
    let began = Instant::now();
    let mut status = StatusLine::new();
    let mut meter = Meter::new();

    let headers: Vec<(&[u8], Option<&[u8]>)> =
        options.headers.iter().map(|(key, value)| (key.as_bytes(), Some(value.as_bytes()))).collect();
    let name = topic.name.clone();
    let mut failed_to_read = None;
    let mut sent = 0;
    'pieces: while !interrupt.is_asked() && arrived.borrow().first_failure.is_none() {
        let piece = match runtime::timeout(TICK, lines.recv()).await {
            Some(Ok(Ok(piece))) => piece,
            Some(Ok(Err(error))) => {
                let name = options.file.as_deref().map_or("standard input".into(), Path::to_string_lossy);
                failed_to_read = Some(Failure::io(name, error));
                break;
            }
            Some(Err(_)) => break,
            None => {
                meter.show(&mut status, &arrived.borrow());
                continue;
            }
        };
        let timestamp = time::now_ms();
        for line in piece.strip_suffix(b"\n").unwrap_or(&piece).split(|byte| *byte == b'\n') {
            let (key, value) = split(line, separator.as_deref(), options.null);
            let record = NewRecord { timestamp, key, value, headers: &headers };
            let taken = producer.send(&name, options.partition, record);
            match interrupt.bounds(Duration::ZERO, taken).await {
                Some(taken) => taken?,
                None => break 'pieces,
            }
            sent += 1;
        }
        meter.show(&mut status, &arrived.borrow());
    }
    let flushed = interrupt.bounds(GRACE, producer.flush()).await.is_some();
    status.clear();
    let arrived = arrived.borrow();
    summarize(&arrived, began.elapsed(), &status, out)?;
    match failed_to_read {
        _ if arrived.first_failure.is_some() || !flushed => Err(arrived.what_failed(sent)),
        Some(error) => Err(error),
        None if interrupt.is_asked() => Err(Failure::Interrupted),
        None => Ok(()),
    }
}

fn producer_settings(
    options: &ProduceOptions,
    delivery_timeout: Duration,
) -> Result<ProducerSettings, Failure> {
    let linger = amount::duration(&options.linger)
        .ok_or_else(|| Failure::usage(format!("--linger {}: give a time, as in 5ms", options.linger)))?;
    Ok(ProducerSettings {
        acks: match options.acks {
            Acks::All => -1,
            Acks::Leader => 1,
            Acks::None => 0,
        },
        compression: options.compression,
        linger,
        batch_bytes: options.batch_size as usize,
        delivery_timeout,
        idempotent: !options.no_idempotence,
        create_topics: !options.no_create,
        ..ProducerSettings::default()
    })
}

/// Key and value of a line. A line without the separator has no key.
fn split<'l>(line: &'l [u8], separator: Option<&[u8]>, null: bool) -> (Option<&'l [u8]>, Option<&'l [u8]>) {
    let (key, value) = match separator {
        None => (None, line),
        Some(separator) => match line.windows(separator.len()).position(|window| window == separator) {
            Some(place) => (Some(&line[..place]), &line[place + separator.len()..]),
            None => (None, line),
        },
    };
    let present = |field: &&[u8]| !(null && field.is_empty());
    (key.filter(present), Some(value).filter(present))
}

impl Arrived {
    fn note(&mut self, delivery: Delivery<'_>) {
        let count = delivery.count as u64;
        match delivery.result {
            Ok(offset) => {
                self.records += count;
                self.bytes += delivery.bytes as u64;
                let of_partition = self.partitions.entry(delivery.at.partition).or_insert((0, offset));
                of_partition.0 += count;
            }
            Err(error) => {
                self.failed += count;
                self.first_failure.get_or_insert(error);
            }
        }
    }

    /// Of what was sent, not all has arrived, or it is not known yet whether it has.
    fn what_failed(&self, sent: u64) -> Failure {
        let Some(error) = &self.first_failure else {
            let unknown = amount::count((sent - self.records) as i64);
            return Failure::Partial(format!(
                "interrupted before {unknown} of {} records were acknowledged: whether they arrived is not known",
                amount::count(sent as i64)
            ));
        };
        if self.failed > 1 {
            let failed = amount::count(self.failed as i64);
            warn(&format!("{failed} records were not delivered, the first because:"));
        }
        error.clone().into()
    }
}

/// Shows how it goes, with the rate since the last look.
struct Meter {
    at: Instant,
    records: u64,
    bytes: u64,
}

impl Meter {
    fn new() -> Meter {
        Meter { at: Instant::now(), records: 0, bytes: 0 }
    }

    fn show(&mut self, status: &mut StatusLine, arrived: &Arrived) {
        if !status.is_due() {
            return;
        }
        let seconds = self.at.elapsed().as_secs_f64();
        let per_second = |count: u64| (count as f64 / seconds) as u64;
        status.show(&format!(
            "{} records  {}  {}/s  {}/s",
            amount::count(arrived.records as i64),
            amount::bytes(arrived.bytes),
            amount::count(per_second(arrived.records - self.records) as i64),
            amount::bytes(per_second(arrived.bytes - self.bytes)),
        ));
        *self = Meter { at: Instant::now(), records: arrived.records, bytes: arrived.bytes };
    }
}

fn summarize(arrived: &Arrived, took: Duration, status: &StatusLine, out: &mut Out) -> Result<(), Failure> {
    if out.is_json() {
        let partition = |(partition, (records, offset)): (&i32, &(u64, i64))| json!({ "partition": partition, "records": records, "first_offset": (*offset >= 0).then_some(offset) });
        return out.json(&json!({
            "records": arrived.records,
            "bytes": arrived.bytes,
            "failed": arrived.failed,
            "seconds": took.as_secs_f64(),
            "partitions": arrived.partitions.iter().map(partition).collect::<Vec<_>>(),
        }));
    }
    if status.is_visible() {
        let seconds = took.as_secs_f64().max(1e-6);
        let _ = writeln!(
            io::stderr(),
            "{} records, {} in {} ({}/s, {}/s)",
            amount::count(arrived.records as i64),
            amount::bytes(arrived.bytes),
            amount::elapsed(took),
            amount::count((arrived.records as f64 / seconds) as i64),
            amount::bytes((arrived.bytes as f64 / seconds) as u64),
        );
    }
    Ok(())
}

/// Whole lines, or why there are no more.
type Piece = io::Result<Vec<u8>>;

/// Where lines come from.
type Source = Box<dyn Read + Send>;

/// The file, or standard input.
fn open(file: Option<&Path>) -> Result<Source, Failure> {
    Ok(match file {
        None => Box::new(io::stdin()),
        Some(path) => Box::new(File::open(path).map_err(|error| Failure::io(path.display(), error))?),
    })
}

/// Starts the thread that reads. What it hands over ends at the end of a line.
fn read(mut source: Source) -> Result<async_channel::Receiver<Piece>, Failure> {
    let (sender, receiver) = async_channel::bounded(PIECES_MAX);
    let reader = move || {
        let mut rest = Vec::new();
        loop {
            match next_piece(&mut source, &mut rest) {
                Ok(piece) if piece.is_empty() => return,
                // Nobody waits for more when the command ends early.
                Ok(piece) => {
                    if sender.send_blocking(Ok(piece)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let _ = sender.send_blocking(Err(error));
                    return;
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("reader".to_owned())
        .spawn(reader)
        .map_err(|error| Failure::io("a thread", error))?;
    Ok(receiver)
}

/// Reads on until there is at least one whole line; `rest` is what has come of the next. Empty at the end.
fn next_piece(source: &mut impl Read, rest: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    loop {
        let filled = rest.len();
        if filled > LINE_BYTES_MAX {
            return Err(io::Error::other(format!("a line of more than {LINE_BYTES_MAX} bytes")));
        }
        rest.resize(filled + PIECE_BYTES, 0);
        let count = match source.read(&mut rest[filled..]) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                rest.truncate(filled);
                continue;
            }
            Err(error) => return Err(error),
        };
        rest.truncate(filled + count);
        if count == 0 {
            return Ok(std::mem::take(rest));
        }
        if let Some(place) = rest[filled..].iter().rposition(|byte| *byte == b'\n') {
            let after = rest.split_off(filled + place + 1);
            return Ok(std::mem::replace(rest, after));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_at_the_first_separator() {
        let both = |line: &'static [u8], separator, null| split(line, separator, null);
        assert_eq!(both(b"a:b:c", Some(b":"), false), (Some(&b"a"[..]), Some(&b"b:c"[..])));
        assert_eq!(both(b"a::b", Some(b"::"), false), (Some(&b"a"[..]), Some(&b"b"[..])));
        assert_eq!(both(b"abc", Some(b":"), false), (None, Some(&b"abc"[..])));
        assert_eq!(both(b"a:b", None, false), (None, Some(&b"a:b"[..])));
        assert_eq!(both(b"a:", Some(b":"), false), (Some(&b"a"[..]), Some(&b""[..])));
        assert_eq!(both(b"a:", Some(b":"), true), (Some(&b"a"[..]), None));
        assert_eq!(both(b":b", Some(b":"), true), (None, Some(&b"b"[..])));
        assert_eq!(both(b"", None, false), (None, Some(&b""[..])));
    }

    /// Hands out a few bytes at a time; between two of them a signal comes.
    struct Drip<'b>(&'b [u8], usize, bool);

    impl Read for Drip<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.2 = !self.2;
            if self.2 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let count = self.1.min(self.0.len()).min(into.len());
            into[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn pieces_are_whole_lines_however_they_come() {
        let text = b"one\ntwo\n\nthree and more\nno end";
        for step in 1..40 {
            let (mut source, mut rest, mut all) = (Drip(text, step, false), Vec::new(), Vec::new());
            loop {
                let piece = next_piece(&mut source, &mut rest).expect("readable");
                if piece.is_empty() {
                    break;
                }
                assert!(piece.ends_with(b"\n") || piece.ends_with(b"no end"), "{step}");
                all.extend(piece);
            }
            assert_eq!(all, text);
        }
    }
}
