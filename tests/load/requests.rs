//! Unbatched produce requests by hand, since librdkafka would batch them: every request holds one batch of one
//! record, and every connection keeps `--depth` of them in flight.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::{Failure, Figures, Options, Watched, payload, per_record};

const PRODUCE: i16 = 0;
/// The last version without tagged fields.
const PRODUCE_VERSION: i16 = 8;

pub(crate) fn run(mut options: Options) -> Result<Figures, Failure> {
    let brokers: String = options.take("brokers", None)?;
    let topic: String = options.take("topic", None)?;
    let partitions: u32 = options.take("partitions", Some(4))?;
    let size: usize = options.take("size", Some(1024))?;
    let count: u64 = options.take("count", None)?;
    let connections: u32 = options.take("connections", Some(16))?;
    let depth: u64 = options.take("depth", Some(8))?;
    let pid: u32 = options.take("pid", Some(0))?;
    options.done()?;
    let each = count / u64::from(connections);

    let watched = Watched::begin(pid)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|number| {
                let request = request(&topic, number % partitions, size);
                let brokers = &brokers;
                scope.spawn(move || one_connection(brokers, &request, each, depth))
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a connection's thread panicked")??;
        }
        Ok::<(), Failure>(())
    })?;
    let mut figures = Figures::default();
    let cpu_s = watched.end(&mut figures)?;
    per_record(&mut figures, cpu_s, each * u64::from(connections), size);
    Ok(figures)
}

fn one_connection(brokers: &str, request: &[u8], count: u64, depth: u64) -> Result<(), Failure> {
    let mut stream = TcpStream::connect(brokers)?;
    stream.set_nodelay(true)?;
    let (mut sent, mut answered) = (0, 0);
    let mut response = Vec::new();
    while answered < count {
        while sent < count && sent < answered + depth {
            stream.write_all(request)?;
            sent += 1;
        }
        let mut prefix = [0; 4];
        stream.read_exact(&mut prefix)?;
        response.resize(u32::from_be_bytes(prefix) as usize, 0);
        stream.read_exact(&mut response)?;
        let code = error_code(&response)?;
        if code != 0 {
            return Err(format!("produce was answered with error {code}").into());
        }
        answered += 1;
    }
    Ok(())
}

/// Correlation id, one topic with its name, one partition with its index, and then the code.
fn error_code(response: &[u8]) -> Result<i16, Failure> {
    let name_len = response.get(8..10).ok_or("a response cut short")?;
    let at = 10 + usize::from(u16::from_be_bytes(name_len.try_into()?)) + 4 + 4;
    let code = response.get(at..at + 2).ok_or("a response cut short")?;
    Ok(i16::from_be_bytes(code.try_into()?))
}

fn request(topic: &str, partition: u32, size: usize) -> Vec<u8> {
    let records = batch(&payload(size));
    let mut body = Vec::new();
    body.extend_from_slice(&PRODUCE.to_be_bytes());
    body.extend_from_slice(&PRODUCE_VERSION.to_be_bytes());
    body.extend_from_slice(&1i32.to_be_bytes()); // correlation id
    string(&mut body, "load");
    body.extend_from_slice(&(-1i16).to_be_bytes()); // transactional id: none
    body.extend_from_slice(&(-1i16).to_be_bytes()); // acks: all
    body.extend_from_slice(&30_000i32.to_be_bytes()); // timeout
    body.extend_from_slice(&1i32.to_be_bytes()); // topics
    string(&mut body, topic);
    body.extend_from_slice(&1i32.to_be_bytes()); // partitions
    body.extend_from_slice(&partition.to_be_bytes());
    body.extend_from_slice(&(records.len() as u32).to_be_bytes());
    body.extend_from_slice(&records);
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    frame
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// A record batch v2 with one record. The broker's own fields (base offset, leader epoch) are not under its CRC.
fn batch(value: &[u8]) -> Vec<u8> {
    let mut record = vec![0, 0, 0, 1]; // attributes, timestamp delta, offset delta, key: none
    varint(&mut record, value.len() as i64);
    record.extend_from_slice(value);
    record.push(0); // headers
    let timestamp = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64);

    let mut checked = vec![0; 2 + 4]; // attributes, last offset delta
    checked.extend_from_slice(&timestamp.to_be_bytes());
    checked.extend_from_slice(&timestamp.to_be_bytes());
    checked.extend_from_slice(&(-1i64).to_be_bytes()); // producer id
    checked.extend_from_slice(&(-1i16).to_be_bytes()); // producer epoch
    checked.extend_from_slice(&(-1i32).to_be_bytes()); // base sequence
    checked.extend_from_slice(&1i32.to_be_bytes()); // count
    varint(&mut checked, record.len() as i64);
    checked.extend_from_slice(&record);

    let mut out = vec![0; 8]; // base offset
    out.extend_from_slice(&(9 + checked.len() as u32).to_be_bytes());
    out.extend_from_slice(&(-1i32).to_be_bytes()); // partition leader epoch
    out.push(2); // magic
    out.extend_from_slice(&crc32c::crc32c(&checked).to_be_bytes());
    out.extend_from_slice(&checked);
    out
}

fn varint(out: &mut Vec<u8>, value: i64) {
    let mut left = ((value << 1) ^ (value >> 63)) as u64;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}
