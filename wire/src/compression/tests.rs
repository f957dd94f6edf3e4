//! Every codec there and back, at its limit, cut short and broken; the framings of other writers.

use super::*;
use proptest::prelude::*;

const CODECS: [Compression; 4] =
    [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

fn compressed(codec: Compression, input: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    compress(codec, input, &mut out);
    out
}

fn opened(codec: Compression, input: &[u8], limit: usize) -> Result<Vec<u8>, CompressionError> {
    let mut out = b"before".to_vec();
    decompress(codec, input, limit, &mut out).map(|()| out.split_off(6))
}

#[test]
fn there_and_back_at_the_limit() {
    for codec in Compression::ALL {
        for len in [0, 1, 100, 32 << 10, (32 << 10) + 1, 300_000, 5 << 20] {
            let input: Vec<u8> = (0..len).map(|i: usize| (i / 7 * 13 % 251) as u8).collect();
            let packed = compressed(codec, &input);
            assert!(opened(codec, &packed, len).unwrap() == input, "{codec} {len}");
            if len > 0 {
                assert_eq!(
                    opened(codec, &packed, len - 1).unwrap_err(),
                    CompressionError::TooLarge { limit: len - 1 },
                    "{codec} {len}"
                );
            }
        }
    }
}

#[test]
fn cut_and_broken_input_is_refused_or_bounded() {
    let input: Vec<u8> = (0..50_000u32).flat_map(|i| (i * i).to_le_bytes()).collect();
    for codec in CODECS {
        let packed = compressed(codec, &input);
        for cut in [1, 5, 17, packed.len() / 2, packed.len() - 5] {
            assert!(opened(codec, &packed[..cut], 1 << 20).map_or(true, |out| out != input), "{codec} {cut}");
        }
        for at in (0..packed.len()).step_by(packed.len() / 97) {
            let mut broken = packed.clone();
            broken[at] ^= 0x55;
            let _ = opened(codec, &broken, 1 << 20);
        }
    }
    assert!(opened(Compression::Snappy, &[0xff, 0xff, 0xff, 0xff, 0x0f, 0], 64 << 20).is_err());
}

#[test]
fn bare_snappy_blocks_are_read() {
    let input = b"a bare block, as librdkafka writes it, a bare block".repeat(40);
    let packed = snap::raw::Encoder::new().compress_vec(&input).unwrap();
    assert_eq!(opened(Compression::Snappy, &packed, 1 << 20).unwrap(), input);
}

#[test]
fn streams_after_each_other_are_one() {
    for codec in CODECS {
        let packed = [compressed(codec, b"first "), compressed(codec, b"second")].concat();
        assert_eq!(opened(codec, &packed, 12).unwrap(), b"first second", "{codec}");
        assert!(opened(codec, &packed, 11).is_err());
    }
}

/// A frame costs the room of its blocks, whatever comes out of it, and takes a few bytes.
#[test]
fn lz4_frames_without_end_are_refused() {
    let empty = compressed(Compression::Lz4, b"");
    assert_eq!(opened(Compression::Lz4, &empty.repeat(16), 1 << 20).unwrap(), b"");
    assert!(opened(Compression::Lz4, &empty.repeat(17), 1 << 20).is_err());
    let legacy = [0x02, 0x21, 0x4c, 0x18, 1, 0, 0, 0, 0];
    assert!(opened(Compression::Lz4, &legacy, 1 << 20).is_err());
    assert!(opened(Compression::Lz4, &[&empty, legacy.as_slice()].concat(), 1 << 20).is_err());
}

/// The streaming writers of other clients do not state the size.
#[test]
fn zstd_without_a_stated_size() {
    let input = vec![7; 9 << 20];
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.write_all(&input).unwrap();
    let packed = encoder.finish().unwrap();
    assert!(opened(Compression::Zstd, &packed, input.len()).unwrap() == input);
    assert!(opened(Compression::Zstd, &packed, input.len() - 1).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_survived(codec in 0usize..5, input in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(out) = opened(Compression::ALL[codec], &input, 1000) {
            prop_assert!(out.len() <= 1000);
        }
    }
}
