//! Bytes as a segment and its index files: reading by offset and by time, scanning, rebuilding. Nothing panics, the
//! walk ends, and memory stays within what a batch may take, whatever lengths the bytes claim.
//!
//! In `node/storage/`: `cargo +nightly fuzz run segment -- -max_total_time=60`.
#![no_main]

use flumen_core::types::{Offset, Timestamp};
use flumen_storage::disk::Disk;
use flumen_storage::segment::{ReaderSettings, SegmentReader, SegmentView};
use flumen_storage::sim::{Sim, SimOptions};
use libfuzzer_sys::fuzz_target;
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

const PATH: &str = "t-0/00000000000000000000";
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Makes batches of whatever is there: lengths that fit, offsets that follow, CRCs that are right, so that what is
/// behind the checks is reached.
fn mend(log: &mut [u8]) {
    let (mut at, mut offset) = (0, 0i64);
    while log.len() - at >= 62 {
        let rest = &mut log[at..];
        let size = (62 + usize::from(rest[11])).min(rest.len());
        let batch = &mut rest[..size];
        batch[..8].copy_from_slice(&offset.to_be_bytes());
        batch[8..12].copy_from_slice(&(size as i32 - 12).to_be_bytes());
        batch[16] = 2;
        batch[23..26].fill(0);
        offset += i64::from(batch[26]) + 1;
        let crc = flumen_wire::crc::crc32c(&batch[21..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
        at += size;
    }
}

fuzz_target!(|input: (&[u8], &[u8], &[u8], u8)| {
    let (log, index, timeindex, mode) = input;
    let (mut log, index, timeindex) = (log.to_vec(), index.to_vec(), timeindex.to_vec());
    let contiguous = mode & 1 == 0;
    if mode & 2 == 0 {
        mend(&mut log);
    }
    ALLOCATED.reset_peak_usage();
    let before = ALLOCATED.current_usage();
    let sim = Sim::new(1, SimOptions { steps_max: 1_000_000, ..SimOptions::default() });
    let disk = sim.disk();
    let view = SegmentView {
        path: PATH.into(),
        base_offset: Offset(0),
        end_offset: Offset(1 << 40),
        len: log.len() as u64,
        contiguous,
        live: None,
        max_timestamp: -1,
        index_interval_bytes: 512,
        era: 0,
    };
    let ran = sim.run(async move {
        disk.create_directory("t-0").await.expect("an empty disk");
        for (extension, bytes) in [("log", &log), ("index", &index), ("timeindex", &timeindex)] {
            disk.write_file(&format!("{PATH}.{extension}"), bytes, false).await.expect("an empty disk");
        }
        let settings = ReaderSettings {
            batch_bytes_max: BATCH_BYTES_MAX,
            ..ReaderSettings::default()
        };
        let reader = SegmentReader::new(disk, settings);
        let mut at = 0;
        // Each read gets on by an offset at least, so the smallest batch bounds their number.
        for _ in 0..=log.len() / 61 {
            match reader.read(&view, Offset(at), 4096, true, &|_, _| true).await {
                Ok(slices) if !slices.is_empty() => {
                    let bytes = slices.to_vec();
                    let batches = flumen_wire::batch::Batches::new(&bytes);
                    let last = batches.last().expect("not empty").expect("verified");
                    assert!(last.header.next_offset() > at);
                    at = last.header.next_offset();
                }
                _ => break,
            }
        }
        let _ = reader.offset_for_timestamp(&view, Timestamp(1_000), Offset(0)).await;
        let _ = reader.max_timestamp(&view).await;
        let _ = reader.read(&view, Offset(at / 2), 1, true, &|_, _| true).await;
    });
    assert_eq!(ran, Ok(()));
    let peak = ALLOCATED.peak_usage() - before;
    assert!(peak < 64 << 20, "{peak} bytes for one segment");
});
