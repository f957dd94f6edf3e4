//! Any bytes as a frame: the header, then the body of whatever API and version it names, as a request and as a
//! response. Nothing may panic or take memory by what the frame claims, and what is accepted must mean the same when
//! it is written and read again.
//!
//! `cargo fuzz run --sanitizer none request_frames -- -max_total_time=60` in `wire`: there is no unsafe code for a sanitizer to
//! watch.

#![no_main]

use flumen_wire::codec::Reader;
use flumen_wire::frame::{PREFIX_LEN, RequestHeader, decode_response_header, frame_len};
use flumen_wire::{ApiKey, api};
use libfuzzer_sys::fuzz_target;
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fuzz_target!(|bytes: &[u8]| {
    if let Some(prefix) = bytes.first_chunk::<PREFIX_LEN>() {
        let _ = frame_len(*prefix, 100 << 20);
    }
    let mut reader = Reader::new(bytes);
    let Ok(header) = RequestHeader::decode(&mut reader) else { return };
    let body = &bytes[bytes.len() - reader.remaining()..];
    let _ = api::accept(header.api_key, header.api_version);
    if let Some(key) = ApiKey::from_key(header.api_key) {
        let _ = decode_response_header(&mut Reader::new(body), key, header.api_version);
    }
    for row in flumen_wire_samples::ROWS.iter().filter(|row| row.key == header.api_key) {
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        let _ = (row.decode)(body, header.api_version);
        let taken = MEMORY.peak_usage().saturating_sub(before);
        assert!(taken <= 32 * body.len() + (8 << 10), "{} took {taken} bytes", row.name);
        let Ok(written) = (row.recode)(body, header.api_version) else { continue };
        assert_eq!((row.recode)(&written, header.api_version), Ok(written), "{}", row.name);
    }
});
