//! What records hold: made once, before the load, and cut from a pool while it runs, so that making a record costs a
//! copy and nothing else.
//!
//! Content that shrinks to a wanted part of its size is random bytes with runs of zeros between them, in pieces that are
//! short enough for the windows of all codecs: what is random stays, what is zero goes.

mod header;

pub(crate) use header::{HEADER_BYTES, Header};

use crate::failure::Failure;
use crate::scenario::{Content, Payload, Sizes};
use fastrand::Rng;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Bytes that records are cut from: more than the caches and the codecs' windows hold of one connection's batches.
const POOL_BYTES: usize = 4 << 20;
/// Of a file of lines, so much is used.
const LINES_BYTES_MAX: u64 = 64 << 20;
/// Compressible content repeats its pattern of random bytes and zeros with this period.
const PIECE_BYTES: usize = 512;
/// Sizes by lot are drawn before the load.
const SIZES_DRAWN: usize = 1 << 16;

/// Where a line begins and ends in the pool.
type Line = (u32, u32);

/// See the head of this file. Clones share the pool.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    pool: Arc<[u8]>,
    /// Of a file.
    lines: Arc<[Line]>,
    sizes: Arc<[u32]>,
    next: usize,
    position: usize,
    value: Vec<u8>,
}

impl Values {
    pub(crate) fn new(settings: &Payload, seed: u64) -> Result<Values, Failure> {
        let mut rng = Rng::with_seed(seed);
        let sizes = draw_sizes(settings, &mut rng);
        let largest = sizes.iter().copied().max().unwrap_or_default() as usize;
        let pool_bytes = POOL_BYTES.max(2 * largest);
        let (pool, lines) = match settings.content {
            Content::Random => (pattern(&mut rng, 1.0, pool_bytes), Vec::new()),
            Content::Compressible => (pattern(&mut rng, settings.ratio, pool_bytes), Vec::new()),
            Content::Lines => read_lines(Path::new(settings.file.as_deref().unwrap_or_default()))?,
        };
        let (pool, lines, sizes) = (pool.into(), lines.into(), sizes.into());
        Ok(Values { pool, lines, sizes, next: 0, position: 0, value: Vec::new() })
    }

    /// The same, beginning elsewhere.
    pub(crate) fn starting_at(&self, number: usize) -> Values {
        let position = number.wrapping_mul(65_537 * PIECE_BYTES) % self.pool.len();
        Values { next: number, position: position - position % PIECE_BYTES, ..self.clone() }
    }

    /// Bytes of the next record's value.
    pub(crate) fn next_len(&self) -> usize {
        self.len_ahead(0)
    }

    /// Of the one that comes so many later.
    pub(crate) fn len_ahead(&self, later: usize) -> usize {
        let number = self.next.wrapping_add(later);
        if self.lines.is_empty() {
            return self.sizes[number % self.sizes.len()] as usize;
        }
        let (from, to) = self.lines[number % self.lines.len()];
        HEADER_BYTES + (to - from) as usize
    }

    /// Of the largest value.
    #[cfg_attr(not(feature = "librdkafka"), expect(dead_code, reason = "our own client asks for no bound"))]
    pub(crate) fn len_max(&self) -> usize {
        let lines = self.lines.iter().map(|(from, to)| HEADER_BYTES + (to - from) as usize);
        lines.max().unwrap_or_else(|| self.sizes.iter().copied().max().unwrap_or_default() as usize)
    }

    /// The next record's value, with its header where that fits; a line follows its header whole.
    pub(crate) fn next(&mut self, header: &Header) -> &[u8] {
        let len = self.next_len();
        self.value.clear();
        if len >= HEADER_BYTES {
            let mut head = [0; HEADER_BYTES];
            header.write(&mut head);
            self.value.extend_from_slice(&head);
        }
        let body = len - self.value.len();
        if self.lines.is_empty() {
            if self.position + body > self.pool.len() {
                self.position = 0;
            }
            self.value.extend_from_slice(&self.pool[self.position..self.position + body]);
            self.position += body;
        } else {
            let (from, to) = self.lines[self.next % self.lines.len()];
            self.value.extend_from_slice(&self.pool[from as usize..to as usize]);
        }
        self.next = self.next.wrapping_add(1);
        &self.value
    }

    /// Whether every value has a header.
    pub(crate) fn are_checked(&self) -> bool {
        !self.lines.is_empty() || self.sizes.iter().all(|size| *size as usize >= HEADER_BYTES)
    }
}

fn draw_sizes(settings: &Payload, rng: &mut Rng) -> Vec<u32> {
    let (min, max) = (settings.size_min as u32, settings.size_max as u32);
    let log_normal = |rng: &mut Rng| {
        let drawn = settings.size as f64 * (settings.sigma * normal(rng)).exp();
        (drawn as u32).clamp(min, max)
    };
    match settings.sizes {
        Sizes::Fixed => vec![settings.size as u32],
        Sizes::Uniform => (0..SIZES_DRAWN).map(|_| rng.u32(min..=max)).collect(),
        Sizes::LogNormal => (0..SIZES_DRAWN).map(|_| log_normal(rng)).collect(),
    }
}

/// Of mean 0 and spread 1 (Box and Muller).
fn normal(rng: &mut Rng) -> f64 {
    let (radius, angle) = ((-2.0 * (1.0 - rng.f64()).ln()).sqrt(), std::f64::consts::TAU * rng.f64());
    radius * angle.cos()
}

/// Of each piece, so much is random, and the rest zeros.
fn pattern(rng: &mut Rng, ratio: f64, len: usize) -> Vec<u8> {
    let mut pool = vec![0; len];
    for piece in pool.chunks_mut(PIECE_BYTES) {
        let random = (piece.len() as f64 * ratio).round() as usize;
        rng.fill(&mut piece[..random]);
    }
    pool
}

/// A file and where its lines are. Empty ones are left out.
fn read_lines(path: &Path) -> Result<(Vec<u8>, Vec<Line>), Failure> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LINES_BYTES_MAX).read_to_end(&mut text));
    read.map_err(|error| Failure::io(path.display(), error))?;
    let (mut lines, mut from) = (Vec::new(), 0);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let content = line.strip_suffix(b"\n").unwrap_or(line).len();
        if content > 0 {
            lines.push((from as u32, (from + content) as u32));
        }
        from += line.len();
    }
    if lines.is_empty() {
        return Err(Failure::Usage(format!("{}: it has no lines", path.display())));
    }
    Ok((text, lines))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_wire::batch::{BatchBuilder, NewRecord};
    use flumen_wire::compression::Compression;

    const HEADER: Header = Header { run: 1, producer: 2, sequence: 3, due_unix_ns: 4 };

    fn values(settings: &Payload) -> Values {
        Values::new(settings, 5).expect("made")
    }

    #[test]
    fn sizes_follow_their_law() {
        let fixed = values(&Payload { size: 100, ..Payload::default() });
        assert_eq!(fixed.next_len(), 100);
        let uniform = Payload { sizes: Sizes::Uniform, size_min: 50, size_max: 150, ..Payload::default() };
        let mut uniform = values(&uniform);
        let drawn: Vec<usize> = (0..10_000).map(|_| uniform.next(&HEADER).len()).collect();
        assert!(drawn.iter().all(|size| (50..=150).contains(size)));
        let mean = drawn.iter().sum::<usize>() as f64 / drawn.len() as f64;
        assert!((mean - 100.0).abs() < 2.0, "{mean}");
        let skewed = Payload { sizes: Sizes::LogNormal, size: 200, size_min: 0, ..Payload::default() };
        let mut skewed = values(&skewed);
        let mut drawn: Vec<usize> = (0..10_000).map(|_| skewed.next(&HEADER).len()).collect();
        drawn.sort_unstable();
        let (median, high) = (drawn[5000] as f64, drawn[8413] as f64);
        assert!((median / 200.0 - 1.0).abs() < 0.1, "{median}");
        // One spread above the median of the logarithm.
        assert!((high / median / std::f64::consts::E - 1.0).abs() < 0.1, "{high}");
    }

    #[test]
    fn content_shrinks_to_the_wanted_part() {
        for ratio in [0.1, 0.3, 0.5, 1.0] {
            let mut values = values(&Payload { content: Content::Compressible, ratio, ..Payload::default() });
            for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
                let (mut plain, mut packed) =
                    (BatchBuilder::new(Compression::None), BatchBuilder::new(codec));
                for _ in 0..200 {
                    let record = NewRecord { value: Some(values.next(&HEADER)), ..Default::default() };
                    plain.push(record);
                    packed.push(record);
                }
                let found = packed.build().len() as f64 / plain.build().len() as f64;
                assert!((found - ratio).abs() < 0.08, "{codec:?}: {found} instead of {ratio}");
            }
        }
    }

    #[test]
    fn values_begin_with_the_header_where_it_fits() {
        let mut large = values(&Payload { size: 40, ..Payload::default() });
        assert_eq!(Header::read(large.next(&HEADER)), Some(HEADER));
        assert!(large.are_checked());
        let mut small = values(&Payload { size: 31, ..Payload::default() });
        assert_eq!((small.next(&HEADER).len(), small.are_checked()), (31, false));
    }

    #[test]
    fn lines_of_a_file_come_one_after_the_other() {
        let path = std::env::temp_dir().join(format!("flumen-bench-lines-{}", std::process::id()));
        std::fs::write(&path, "first\n\nsecond").expect("written");
        let file = Some(path.to_string_lossy().into_owned());
        let lines = Values::new(&Payload { content: Content::Lines, file, ..Payload::default() }, 1);
        std::fs::remove_file(&path).expect("removed");
        let mut lines = lines.expect("read");
        for expected in ["first", "second", "first"] {
            assert_eq!(&lines.next(&HEADER)[HEADER_BYTES..], expected.as_bytes());
        }
    }
}
