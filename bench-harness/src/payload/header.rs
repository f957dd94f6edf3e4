//! What each record's value begins with: who sent it, the how manieth it is, when it was due.
//!
//! ```text
//!  0 "FLMB"    4 producer u32    8 run u64    16 sequence u64 (within producer and partition)
//! 24 due u64 (nanoseconds since 1970)
//! ```
//!
//! By the run, records of other programs and of earlier runs are told apart; by the sequence, loss, duplicates and
//! reordering; by the time, latency from end to end.

/// Bytes of the header. Shorter values have none, and are neither checked nor timed at a consumer.
pub(crate) const HEADER_BYTES: usize = 32;
const MAGIC: [u8; 4] = *b"FLMB";

/// See the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub run: u64,
    pub producer: u32,
    pub sequence: u64,
    pub due_unix_ns: u64,
}

impl Header {
    pub(crate) fn write(&self, value: &mut [u8; HEADER_BYTES]) {
        value[..4].copy_from_slice(&MAGIC);
        value[4..8].copy_from_slice(&self.producer.to_be_bytes());
        value[8..16].copy_from_slice(&self.run.to_be_bytes());
        value[16..24].copy_from_slice(&self.sequence.to_be_bytes());
        value[24..].copy_from_slice(&self.due_unix_ns.to_be_bytes());
    }

    /// None where the value has no such header.
    pub(crate) fn read(value: &[u8]) -> Option<Header> {
        let (head, _) = value.split_first_chunk::<HEADER_BYTES>()?;
        if head[..4] != MAGIC {
            return None;
        }
        let long = |at: usize| head[at..].first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        let producer = head[4..].first_chunk().map(|bytes| u32::from_be_bytes(*bytes))?;
        Some(Header { run: long(8)?, producer, sequence: long(16)?, due_unix_ns: long(24)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let header = Header { run: 1 << 40, producer: 7, sequence: u64::MAX, due_unix_ns: 3 };
        let mut value = [0; HEADER_BYTES];
        header.write(&mut value);
        assert_eq!(Header::read(&value), Some(header));
        assert_eq!(Header::read(&[&value[..], b"more"].concat()), Some(header));
        assert_eq!(Header::read(&value[..31]), None);
        value[0] = b'G';
        assert_eq!(Header::read(&value), None);
    }
}
