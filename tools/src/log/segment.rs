//! Walking the batches of a segment from the file, one at a time, however large the file is.

use flumen_wire::batch::{BatchError, BatchHeader, Batches, HEADER_LEN, RawBatch};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

/// The largest batch that is believed: what a length claims beyond it is damage.
const BATCH_BYTES_MAX: usize = 512 << 20;

/// Why a walk ended before the end of the file.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The file cannot be read.
    Io(io::Error),
    /// The bytes are no batch.
    Batch(BatchError),
    /// The file ends inside of a batch: so many bytes of it are there.
    Cut(usize),
    /// Zeros follow, and then something else.
    Hole(u64),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Io(error) => error.fmt(f),
            Fault::Batch(error) => error.fmt(f),
            Fault::Cut(bytes) => write!(f, "the file ends inside of a batch, after {bytes} bytes of it"),
            Fault::Hole(position) => write!(f, "zeros, and then other bytes from position {position} on"),
        }
    }
}

/// Hands out batches in order. What is allocated ahead, zeros up to the end of the file, is an end.
pub(crate) struct Segment {
    file: BufReader<File>,
    position: u64,
    batch: Vec<u8>,
    /// Zeros at the end of the file.
    pub(crate) allocated_ahead: u64,
}

impl Segment {
    pub(crate) fn open(path: &Path) -> io::Result<Segment> {
        let file = BufReader::with_capacity(1 << 20, File::open(path)?);
        Ok(Segment { file, position: 0, batch: Vec::new(), allocated_ahead: 0 })
    }

    /// Where the next batch begins.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next batch, with its position; its CRC and its records are not checked.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, RawBatch<'_>)>, Fault> {
        let mut header = [0; HEADER_LEN];
        let read = fill(&mut self.file, &mut header).map_err(Fault::Io)?;
        if read == 0 {
            return Ok(None);
        }
        if header[..read].iter().all(|byte| *byte == 0) {
            return self.zeros(read as u64).map(|()| None);
        }
        if read < HEADER_LEN {
            return Err(Fault::Cut(read));
        }
        let parsed = BatchHeader::parse(&header).map_err(Fault::Batch)?;
        let size = parsed.size();
        if size > BATCH_BYTES_MAX {
            return Err(Fault::Batch(BatchError::TooLarge { size, max: BATCH_BYTES_MAX }));
        }
        self.batch.clear();
        self.batch.extend_from_slice(&header);
        // Grows with what is there, not with what is claimed.
        let body = (size - HEADER_LEN) as u64;
        let read = (&mut self.file).take(body).read_to_end(&mut self.batch).map_err(Fault::Io)?;
        if (read as u64) < body {
            return Err(Fault::Cut(self.batch.len()));
        }
        let position = self.position;
        self.position += size as u64;
        match Batches::new(&self.batch).next() {
            Some(Ok(batch)) => Ok(Some((position, batch))),
            Some(Err(error)) => Err(Fault::Batch(error)),
            None => Err(Fault::Cut(self.batch.len())),
        }
    }

    /// Everything up to the end of the file must be zero.
    fn zeros(&mut self, mut count: u64) -> Result<(), Fault> {
        let mut chunk = vec![0; 64 << 10];
        loop {
            let read = fill(&mut self.file, &mut chunk).map_err(Fault::Io)?;
            if let Some(place) = chunk[..read].iter().position(|byte| *byte != 0) {
                return Err(Fault::Hole(self.position + count + place as u64));
            }
            count += read as u64;
            if read == 0 {
                self.allocated_ahead = count;
                return Ok(());
            }
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(source: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match source.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
