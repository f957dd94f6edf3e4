//! What `check` costs next to a plain CRC pass over the same bytes, in the same run.
//!
//! `cargo bench -p flumen-wire --bench batch_check`. Budget: 15 ns for a record of 100 bytes.

use flumen_wire::batch::{BatchBuilder, CheckRules, NewRecord, check};
use flumen_wire::compression::Compression;
use flumen_wire::crc::crc32c;
use std::hint::black_box;
use std::time::Instant;

const BYTES_PER_ROUND: usize = 256 << 20;
const ROUNDS: usize = 5;

fn main() {
    println!(
        "{:>8} {:>9} | {:>9} {:>7} | {:>9} {:>7} | check/crc",
        "record", "batch", "check", "", "crc", ""
    );
    for (record_bytes, batch_bytes) in
        [(100, 1 << 10), (100, 16 << 10), (100, 1 << 20), (1 << 10, 16 << 10), (1 << 10, 1 << 20)]
    {
        let (batch, count) = batch(record_bytes, batch_bytes);
        let rules = CheckRules::default();
        let check_ns = best_ns(batch.len(), || u64::from(check(black_box(&batch), &rules).is_ok()));
        let crc_ns = best_ns(batch.len(), || crc32c(black_box(&batch)).into());
        println!(
            "{record_bytes:>6} B {:>7} B | {:>6.2} ns {:>2.0} GB/s | {:>6.2} ns {:>2.0} GB/s | {:.2}   (ns per record)",
            batch.len(),
            check_ns / count as f64,
            batch.len() as f64 / check_ns,
            crc_ns / count as f64,
            batch.len() as f64 / crc_ns,
            check_ns / crc_ns,
        );
    }
}

/// Records as a producer with keys makes them: a key of 10 bytes, a value of the rest.
fn batch(record_bytes: usize, batch_bytes: usize) -> (Vec<u8>, i32) {
    let value = vec![b'v'; record_bytes - 10];
    let mut builder = BatchBuilder::new(Compression::None).producer(7, 0, 0);
    while builder.len_bytes() + record_bytes < batch_bytes || builder.count() == 0 {
        let timestamp = 1_700_000_000_000 + i64::from(builder.count() / 20);
        builder.push(NewRecord { timestamp, key: Some(b"0123456789"), value: Some(&value), headers: &[] });
    }
    (builder.build(), builder.count())
}

/// The best round's time for one call.
fn best_ns(bytes: usize, call: impl Fn() -> u64) -> f64 {
    let calls = (BYTES_PER_ROUND / bytes).max(1);
    let round = |_| {
        let begin = Instant::now();
        for _ in 0..calls {
            black_box(call());
        }
        begin.elapsed().as_secs_f64() * 1e9 / calls as f64
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}
