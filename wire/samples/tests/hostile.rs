//! Decoders under hostile bytes: they neither panic nor take memory by what a frame claims.
//!
//! The allocator keeps the peak, so there is one test in this binary, and nothing else runs beside it.

use flumen_wire::codec::DecodeError;
use flumen_wire_samples::{ROWS, Row, Seed};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What the decoder of a frame may take: a small multiple of it, and what a lone structure may need.
fn allowance(frame: &[u8]) -> usize {
    32 * frame.len() + (8 << 10)
}

/// Decodes, and checks the memory that it took.
fn decode(row: &Row, frame: &[u8], version: i16) -> Result<(), DecodeError> {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let outcome = (row.decode)(frame, version);
    let taken = MEMORY.peak_usage().saturating_sub(before);
    assert!(
        taken <= allowance(frame),
        "{} version {version} took {taken} bytes for a frame of {}: {frame:02x?}",
        row.name,
        frame.len()
    );
    outcome
}

/// Every cut of a message is an error.
fn truncated(row: &Row, version: i16, frame: &[u8]) {
    // A long one is cut at its ends and in strides.
    let stride = (frame.len() / 64).max(1);
    for len in (0..frame.len()).filter(|len| *len < 64 || len % stride == 0 || frame.len() - len < 16) {
        assert!(decode(row, &frame[..len], version).is_err(), "{} version {version} cut at {len}", row.name);
    }
}

/// Counts and lengths as large as they can be said, at every place where there might be one.
fn overstated(row: &Row, version: i16, frame: &[u8]) {
    let claims: [&[u8]; 6] = [
        &[0x7f, 0xff, 0xff, 0xff],
        &[0x00, 0xff, 0xff, 0xff],
        &[0x80, 0, 0, 0],
        &[0x7f, 0xff],
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0xff, 0xff, 0xff, 0xff, 0x07],
    ];
    for place in 0..frame.len().min(96) {
        for claim in claims {
            let mut hostile = frame.to_vec();
            let end = (place + claim.len()).min(hostile.len());
            hostile[place..end].copy_from_slice(&claim[..end - place]);
            let _ = decode(row, &hostile, version);
        }
    }
}

fn mutated(row: &Row, version: i16, frame: &[u8], seed: &mut Seed) {
    for _ in 0..40 {
        let mut hostile = frame.to_vec();
        for _ in 0..=seed.below(4) {
            if hostile.is_empty() {
                break;
            }
            let place = seed.below(hostile.len());
            match seed.below(4) {
                0 => hostile[place] = seed.word() as u8,
                1 => hostile[place] ^= 1 << seed.below(8),
                2 => hostile.insert(place, seed.word() as u8),
                _ => drop(hostile.remove(place)),
            }
        }
        if decode(row, &hostile, version).is_ok() {
            // What we accept we can also say, and it means the same again.
            if let Ok(bytes) = (row.recode)(&hostile, version) {
                assert_eq!((row.recode)(&bytes, version), Ok(bytes), "{} version {version}", row.name);
            }
        }
    }
}

/// Twenty bytes that claim 2^31 elements, in every way of saying so.
fn twenty_bytes(row: &Row, version: i16) {
    for fill in [0x7f_u8, 0xff, 0x80, 0x01, 0x02, 0x00] {
        let _ = decode(row, &[fill; 20], version);
    }
    for place in 0..16 {
        let mut frame = [0_u8; 20];
        frame[place..place + 4].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff]);
        let _ = decode(row, &frame, version);
        frame[place..place + 4].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
        let _ = decode(row, &frame, version);
    }
}

#[test]
fn hostile_frames_are_errors_and_take_little_memory() {
    for row in ROWS {
        for version in row.versions.0..=row.versions.1 {
            twenty_bytes(row, version);
            for seed in 0..3 {
                let mut seed = Seed::new(seed << 32 | version as u64);
                let frame = (row.sample)(&mut seed, version);
                assert_eq!(
                    (row.recode)(&frame, version).as_ref(),
                    Ok(&frame),
                    "{} version {version}",
                    row.name
                );
                truncated(row, version, &frame);
                overstated(row, version, &frame);
                mutated(row, version, &frame, &mut seed);
            }
        }
        assert_eq!(decode(row, &[0; 64], row.versions.1 + 1), Err(DecodeError::UnsupportedVersion));
        assert_eq!(decode(row, &[0; 64], -1), Err(DecodeError::UnsupportedVersion));
    }
    a_large_frame_cannot_take_more_than_the_cap();
}

/// Metadata version 1 with millions of empty names: small on the wire, large in memory.
fn a_large_frame_cannot_take_more_than_the_cap() {
    let count = 20_000_000_i32;
    let mut frame = count.to_be_bytes().to_vec();
    frame.resize(4 + 2 * count as usize, 0);
    let row = ROWS.iter().find(|row| row.name == "MetadataRequest").expect("a row");
    assert_eq!(decode(row, &frame, 1), Err(DecodeError::TooLarge));
    assert_eq!(decode(row, &[0x7f, 0xff, 0xff, 0xff], 1), Err(DecodeError::Truncated));
}
