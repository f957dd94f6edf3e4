//! The four codecs of record batches, in the framing that Kafka's clients use: gzip members, snappy in the "xerial"
//! framing of snappy-java or as one bare block (librdkafka), LZ4 frames, zstd frames.
//!
//! Invariant: what comes out is bounded by the caller, and memory grows with what really came out, never with
//! what a header claims.

use std::fmt;
use std::io::{self, Read, Write};

/// How the records of a batch are compressed. The numbers are those of the attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// RFC 1952.
    Gzip = 1,
    /// Snappy blocks.
    Snappy = 2,
    /// LZ4 frames.
    Lz4 = 3,
    /// Zstandard (KIP-110).
    Zstd = 4,
}

/// Why a compressed block cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionError {
    /// Not what the codec writes.
    Malformed(Compression),
    /// More comes out than the caller allows.
    TooLarge {
        /// The caller's limit in bytes.
        limit: usize,
    },
}

impl Compression {
    /// How many bytes may come out of so many at most, as the formats have it: a back reference of DEFLATE is of up to 258
    /// bytes in two bits, one of Snappy of 64 in three bytes; each byte of an LZ4 length is 255; a block of Zstandard that repeats
    /// one byte takes four and is of up to 128 KiB.
    pub const fn opened_bytes_max(self, bytes: usize) -> usize {
        let ratio = match self {
            Compression::None => 1,
            Compression::Gzip => 1_032,
            Compression::Snappy => 22,
            Compression::Lz4 => 255,
            Compression::Zstd => 32 << 10,
        };
        bytes.saturating_mul(ratio)
    }

    /// All of them, in the order of their numbers.
    pub const ALL: [Compression; 5] =
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

    /// The number in a batch's attributes.
    pub fn id(self) -> u8 {
        self as u8
    }

    /// `Err` gives back a number that no codec has.
    pub fn from_id(id: u8) -> Result<Compression, u8> {
        Compression::ALL.get(usize::from(id)).copied().ok_or(id)
    }

    /// How `compression.type` spells each of [`Compression::ALL`].
    pub const NAMES: [&'static str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

    /// As `compression.type` spells it.
    pub fn name(self) -> &'static str {
        Compression::NAMES[self as usize]
    }

    /// The one that is spelt so.
    pub fn from_name(name: &str) -> Option<Compression> {
        Compression::ALL.into_iter().find(|codec| codec.name() == name)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for CompressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CompressionError::Malformed(codec) => write!(f, "malformed {codec} data"),
            CompressionError::TooLarge { limit } => write!(f, "more than {limit} bytes once decompressed"),
        }
    }
}

impl std::error::Error for CompressionError {}

/// Appends `input`, compressed at the codec's default level, to `out`.
pub fn compress(codec: Compression, input: &[u8], out: &mut Vec<u8>) {
    let written = match codec {
        Compression::None => {
            out.extend_from_slice(input);
            Ok(())
        }
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
            encoder.write_all(input).and_then(|()| encoder.finish().map(drop))
        }
        Compression::Snappy => {
            snappy::compress(input, out);
            Ok(())
        }
        Compression::Lz4 => {
            // Kafka's Java client reads independent blocks only.
            let info = lz4_flex::frame::FrameInfo::new()
                .block_mode(lz4_flex::frame::BlockMode::Independent)
                .block_size(lz4_flex::frame::BlockSize::Max64KB);
            let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, out);
            encoder.write_all(input).and_then(|()| encoder.finish().map(drop).map_err(io::Error::other))
        }
        Compression::Zstd => zstd::bulk::compress(input, zstd::DEFAULT_COMPRESSION_LEVEL)
            .map(|compressed| out.extend_from_slice(&compressed)),
    };
    written.expect("a Vec takes every write");
}

/// Appends what `input` holds to `out`: at most `limit` bytes. On an error `out` holds what came before it.
pub fn decompress(
    codec: Compression,
    input: &[u8],
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<(), CompressionError> {
    match codec {
        Compression::None if input.len() > limit => Err(CompressionError::TooLarge { limit }),
        Compression::None => {
            out.extend_from_slice(input);
            Ok(())
        }
        Compression::Gzip => drain(codec, flate2::bufread::MultiGzDecoder::new(input), limit, out),
        Compression::Snappy => snappy::decompress(input, limit, out),
        Compression::Lz4 => lz4_decompress(input, limit, out),
        Compression::Zstd => zstd_decompress(input, limit, out),
    }
}

/// Reads all that `source` gives, and one byte past the limit to tell a full buffer from an overflow.
fn drain(
    codec: Compression,
    source: impl Read,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<(), CompressionError> {
    let before = out.len();
    let read = source.take((limit as u64).saturating_add(1)).read_to_end(out);
    if out.len() - before > limit {
        return Err(CompressionError::TooLarge { limit });
    }
    read.map(drop).map_err(|_| CompressionError::Malformed(codec))
}

/// Most frames of LZ4 in one block of data: each costs the room of a block of up to 4 MiB, also where nothing comes out.
const LZ4_FRAMES_MAX: usize = 16;
/// The frames of the old format have no end, and blocks of 8 MiB. No client writes them.
const LZ4_LEGACY_MAGIC: [u8; 4] = 0x184C_2102_u32.to_le_bytes();

/// Frame after frame. A missing end mark is let pass: that nothing was cut is for the batch's CRC to say.
fn lz4_decompress(mut input: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), CompressionError> {
    let before = out.len();
    for _ in 0..LZ4_FRAMES_MAX {
        if input.starts_with(&LZ4_LEGACY_MAGIC) {
            break;
        }
        let left = input.len();
        let mut decoder = lz4_flex::frame::FrameDecoder::new(input);
        let drained = drain(Compression::Lz4, &mut decoder, limit - (out.len() - before), out);
        input = decoder.into_inner();
        match drained {
            Err(CompressionError::TooLarge { .. }) => return Err(CompressionError::TooLarge { limit }),
            Err(error) => return Err(error),
            Ok(()) if input.is_empty() || input.len() == left => return Ok(()),
            Ok(()) => {}
        }
    }
    Err(CompressionError::Malformed(Compression::Lz4))
}

/// The first guess at how much comes out, where the frame does not say.
const ZSTD_FIRST_GUESS_MIN: usize = 64 << 10;

/// One-shot, into a buffer that is enlarged and tried again: unlike zstd's streaming decoder it allocates no window of a
/// size that the frame claims (up to 128 MiB).
fn zstd_decompress(input: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), CompressionError> {
    const MALFORMED: CompressionError = CompressionError::Malformed(Compression::Zstd);
    let claimed = zstd::zstd_safe::get_frame_content_size(input).map_err(|_| MALFORMED)?;
    let first_guess = input.len().saturating_mul(4).max(ZSTD_FIRST_GUESS_MIN);
    // A small claim is believed, as nothing can be lost by it; a large one must be earned by growth.
    let mut room = match claimed {
        Some(size) if size <= first_guess as u64 => size as usize,
        _ => first_guess,
    };
    let mut context = zstd::zstd_safe::DCtx::create();
    let mut opened = Vec::new();
    loop {
        room = room.min(limit);
        opened.clear();
        opened.reserve_exact(room);
        match context.decompress(&mut opened, input) {
            Ok(_) if opened.len() > limit => return Err(CompressionError::TooLarge { limit }),
            Ok(_) => {
                if out.is_empty() {
                    *out = opened;
                } else {
                    out.extend_from_slice(&opened);
                }
                return Ok(());
            }
            Err(code) if !zstd_lacked_room(code) => return Err(MALFORMED),
            Err(_) if room == limit => return Err(CompressionError::TooLarge { limit }),
            Err(_) => room = room.max(ZSTD_FIRST_GUESS_MIN).saturating_mul(4),
        }
    }
}

/// zstd returns the negated number of an error; 70 is `ZSTD_error_dstSize_tooSmall`.
fn zstd_lacked_room(code: usize) -> bool {
    code == 70usize.wrapping_neg()
}

mod snappy {
    //! The framing of snappy-java: a header of 16 bytes, then blocks, each with its compressed length in front.

    use super::{Compression, CompressionError};

    const MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
    const HEADER_LEN: usize = 16;
    const BLOCK_BYTES: usize = 32 << 10;

    pub(super) fn compress(input: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&1i32.to_be_bytes()); // version
        out.extend_from_slice(&1i32.to_be_bytes()); // oldest version that can read it
        let mut encoder = snap::raw::Encoder::new();
        for block in input.chunks(BLOCK_BYTES) {
            let compressed = encoder.compress_vec(block).expect("32 KiB are within snappy's limits");
            out.extend_from_slice(&(compressed.len() as u32).to_be_bytes());
            out.extend_from_slice(&compressed);
        }
    }

    pub(super) fn decompress(input: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), CompressionError> {
        const MALFORMED: CompressionError = CompressionError::Malformed(Compression::Snappy);
        if !input.starts_with(&MAGIC) {
            return block(input, limit, limit, out);
        }
        let mut rest = input.get(HEADER_LEN..).ok_or(MALFORMED)?;
        let before = out.len();
        while !rest.is_empty() {
            // A stream may be several streams, one after the other.
            if rest.starts_with(&MAGIC) {
                rest = rest.get(HEADER_LEN..).ok_or(MALFORMED)?;
                continue;
            }
            let (length, after) = rest.split_first_chunk().ok_or(MALFORMED)?;
            let length = u32::from_be_bytes(*length) as usize;
            let compressed = after.get(..length).ok_or(MALFORMED)?;
            block(compressed, limit - (out.len() - before), limit, out)?;
            rest = &after[length..];
        }
        Ok(())
    }

    /// Snappy makes at most 64 bytes of three: a claim past that is a lie, found before anything is allocated.
    const RATIO_MAX: usize = 64;

    fn block(
        compressed: &[u8],
        left: usize,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), CompressionError> {
        let malformed = |_| CompressionError::Malformed(Compression::Snappy);
        let length = snap::raw::decompress_len(compressed).map_err(malformed)?;
        if length > left {
            return Err(CompressionError::TooLarge { limit });
        }
        if length > compressed.len().saturating_mul(RATIO_MAX) {
            return Err(CompressionError::Malformed(Compression::Snappy));
        }
        let at = out.len();
        out.resize(at + length, 0);
        let written = snap::raw::Decoder::new().decompress(compressed, &mut out[at..]).map_err(malformed);
        out.truncate(at + written.unwrap_or(0));
        written.map(drop)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
