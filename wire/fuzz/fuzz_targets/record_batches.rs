//! Arbitrary bytes as record batches: checked, walked, decompressed. Nothing panics, memory stays bounded, and what `check`
//! lets pass is readable.
//!
//! In `wire/`: `cargo +nightly fuzz run record_batches fuzz/corpus/record_batches fuzz/seeds/record_batches -- -max_total_time=60`.
#![no_main]

use flumen_wire::batch::{
    BatchHeader, Batches, CheckRules, HEADER_LEN, PREFIX_LEN, RecordSet, Retained, assign, check,
    crc_matches, set_log_append_time,
};
use flumen_wire::compression::Compression;
use libfuzzer_sys::fuzz_target;
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// How much a compressed batch may hold here.
const DECOMPRESSED_BYTES_MAX: usize = 1 << 20;
/// What one input may cost: decompressed bytes, twice for growth, and a codec's own state. An LZ4 frame's header can ask
/// for blocks of 8 MiB, and for two of them.
const ALLOCATED_BYTES_MAX: usize = 24 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((&mode, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    if mode & 1 != 0 {
        mend(&mut bytes);
    }
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let rules = CheckRules {
        batch_bytes_max: 1 << 20,
        zstd_allowed: mode & 2 == 0,
        keys_required: mode & 4 != 0,
        open_compressed: mode & 8 != 0,
        decompressed_bytes_max: DECOMPRESSED_BYTES_MAX,
    };
    if let Ok(checked) = check(&bytes, &rules) {
        let opened = rules.open_compressed || checked.header.compression() == Ok(Compression::None);
        passed(&bytes, checked.header, opened);
    }
    walk(&bytes);
    let peak = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(peak <= ALLOCATED_BYTES_MAX, "{peak} bytes allocated for {} bytes of input", bytes.len());
});

/// Makes whatever is there pass the first checks, so that the records are reached.
fn mend(bytes: &mut [u8]) {
    if bytes.len() < HEADER_LEN {
        return;
    }
    bytes[..8].fill(0);
    let batch_length = (bytes.len() - PREFIX_LEN) as i32;
    bytes[8..12].copy_from_slice(&batch_length.to_be_bytes());
    bytes[16] = 2;
    let crc = flumen_wire::crc::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
}

/// What passed is one batch whose records, where they were opened, can all be read; a broker can place and stamp it.
fn passed(bytes: &[u8], header: BatchHeader, opened: bool) {
    let mut batches = Batches::new(bytes);
    let batch = batches.next().expect("one batch").expect("that is good");
    assert!(
        batch.header == header && batch.bytes == bytes && batch.crc_matches() && batches.next().is_none()
    );
    if opened {
        let records = batch.records(DECOMPRESSED_BYTES_MAX).expect("opened before");
        assert_eq!(records.iter().filter(|record| record.is_ok()).count(), header.record_count as usize);
        assert!(records.iter().all(|record| record.is_ok()));
        if header.compression() == Ok(Compression::None) && header.record_count > 0 {
            thinned(&records, header);
        }
    }
    let mut stamped = bytes.to_vec();
    assign(&mut stamped, 1 << 40, 7);
    set_log_append_time(&mut stamped, 1);
    assert!(crc_matches(&stamped));
}

/// Every other record goes, as compaction lets them: the rest reads as before.
fn thinned(records: &RecordSet<'_>, header: BatchHeader) {
    let keep: Vec<bool> = (0..header.record_count).map(|number| number % 2 == 0).collect();
    let seen = |records: &RecordSet<'_>| -> Vec<(i64, i64, Option<Vec<u8>>)> {
        let records = records.iter().flatten();
        records.map(|record| (record.offset, record.timestamp, record.key.map(<[u8]>::to_vec))).collect()
    };
    let left: Vec<_> = seen(records).into_iter().step_by(2).collect();
    for horizon in [None, Some(header.max_timestamp.wrapping_add(86_400_000))] {
        let bytes = Retained::new(records, &keep, horizon).build();
        let batch = Batches::new(&bytes).next().expect("one batch").expect("that is good");
        assert!(batch.crc_matches() && batch.header.last_offset() == header.last_offset());
        let again = batch.records(DECOMPRESSED_BYTES_MAX).expect("not compressed");
        assert_eq!(seen(&again), left);
    }
}

fn walk(bytes: &[u8]) {
    let mut batches = Batches::new(bytes);
    while let Some(batch) = batches.next() {
        let Ok(batch) = batch else { continue };
        if let Ok(records) = batch.records(DECOMPRESSED_BYTES_MAX) {
            assert!(records.len_bytes() <= DECOMPRESSED_BYTES_MAX.max(bytes.len()));
            for record in records.iter().flatten() {
                assert!(record.size <= records.len_bytes());
                record.headers.for_each(|(key, _)| assert!(key.len() < record.size));
            }
        }
    }
    assert!(batches.position() <= bytes.len());
}
