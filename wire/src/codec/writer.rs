//! Writing the primitive types of the protocol: to bytes, or to a count of bytes.

use super::{Encode, Records};

/// The longest string of versions before flexible ones, whose lengths have 16 bits, and by Kafka's rule of all others.
const STRING_BYTES_MAX: usize = i16::MAX as usize;

/// Where an encoded message goes: into bytes ([`Writer`]) or into a size ([`Counter`]).
pub trait Sink {
    /// Takes bytes.
    fn put(&mut self, bytes: &[u8]);

    /// Takes an unsigned variable-length integer.
    fn uvarint(&mut self, value: u32);

    /// Takes a signed variable-length integer of 64 bits, zigzag-coded.
    fn varlong(&mut self, value: i64);

    /// An error code of a response.
    #[inline]
    fn error_code(&mut self, code: i16) {
        self.i16(code);
    }

    /// Notes that `len` bytes which are not here belong at this place.
    fn splice(&mut self, len: usize);

    /// One byte, one or zero.
    #[inline]
    fn bool(&mut self, value: bool) {
        self.put(&[u8::from(value)]);
    }

    /// One byte.
    #[inline]
    fn i8(&mut self, value: i8) {
        self.put(&value.to_be_bytes());
    }

    /// Two bytes.
    #[inline]
    fn i16(&mut self, value: i16) {
        self.put(&value.to_be_bytes());
    }

    /// Two bytes.
    #[inline]
    fn u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    /// Four bytes.
    #[inline]
    fn i32(&mut self, value: i32) {
        self.put(&value.to_be_bytes());
    }

    /// Four bytes.
    #[inline]
    fn u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    /// Eight bytes.
    #[inline]
    fn i64(&mut self, value: i64) {
        self.put(&value.to_be_bytes());
    }

    /// Eight bytes, IEEE 754.
    #[inline]
    fn f64(&mut self, value: f64) {
        self.put(&value.to_be_bytes());
    }

    /// Sixteen bytes.
    #[inline]
    fn uuid(&mut self, value: [u8; 16]) {
        self.put(&value);
    }

    /// A signed variable-length integer of 32 bits, zigzag-coded.
    #[inline]
    fn varint(&mut self, value: i32) {
        self.uvarint(((value << 1) ^ (value >> 31)) as u32);
    }

    /// The length of bytes or of an array; none for null.
    #[inline]
    fn len(&mut self, len: Option<usize>, flexible: bool) {
        match (len, flexible) {
            (None, true) => self.uvarint(0),
            (None, false) => self.i32(-1),
            (Some(len), true) => self.uvarint(wire_len(len) as u32 + 1),
            (Some(len), false) => self.i32(wire_len(len)),
        }
    }

    /// A string that may be null. One longer than the protocol can carry is cut short at a character: it can only be
    /// a text of ours.
    #[inline]
    fn nullable_string(&mut self, value: Option<&str>, flexible: bool) {
        let Some(value) = value else {
            return if flexible { self.uvarint(0) } else { self.i16(-1) };
        };
        let bytes = if value.len() > STRING_BYTES_MAX { shorten(value) } else { value.as_bytes() };
        if flexible {
            self.uvarint(bytes.len() as u32 + 1);
        } else {
            self.i16(bytes.len() as i16);
        }
        self.put(bytes);
    }

    /// A string; see [`Sink::nullable_string`].
    #[inline]
    fn string(&mut self, value: &str, flexible: bool) {
        self.nullable_string(Some(value), flexible);
    }

    /// Bytes that may be null.
    #[inline]
    fn nullable_bytes(&mut self, value: Option<&[u8]>, flexible: bool) {
        self.len(value.map(<[u8]>::len), flexible);
        self.put(value.unwrap_or_default());
    }

    /// Bytes.
    #[inline]
    fn bytes(&mut self, value: &[u8], flexible: bool) {
        self.nullable_bytes(Some(value), flexible);
    }

    /// Records that may be null.
    #[inline]
    fn nullable_records(&mut self, value: Option<Records<'_>>, flexible: bool) {
        self.len(value.map(|records| records.len()), flexible);
        match value {
            Some(Records::Slice(bytes)) => self.put(bytes),
            Some(Records::Spliced(len)) => self.splice(len),
            None => {}
        }
    }

    /// Records.
    #[inline]
    fn records(&mut self, value: Records<'_>, flexible: bool) {
        self.nullable_records(Some(value), flexible);
    }

    /// A structure that may be null.
    #[inline]
    fn nullable_struct<T: Encode>(&mut self, value: Option<&T>, version: i16)
    where
        Self: Sized,
    {
        match value {
            Some(value) => {
                self.i8(1);
                value.write(self, version);
            }
            None => self.i8(-1),
        }
    }

    /// The head of a tagged field.
    #[inline]
    fn tag(&mut self, tag: u32, size: usize) {
        self.uvarint(tag);
        self.uvarint(wire_len(size) as u32);
    }
}

/// A length as the protocol carries it.
///
/// # Panics
/// Past 2 GiB: every response is bounded far below.
#[inline]
fn wire_len(len: usize) -> i32 {
    assert!(len < i32::MAX as usize, "a length of {len} does not fit the protocol");
    len as i32
}

#[cold]
fn shorten(value: &str) -> &[u8] {
    &value.as_bytes()[..value.floor_char_boundary(STRING_BYTES_MAX)]
}

/// A place in the written bytes where bytes of the caller's belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Place in the writer's bytes: what is written before it comes first, then the `len` bytes.
    pub position: usize,
    /// How many bytes belong there.
    pub len: usize,
}

/// Collects the bytes of one frame, and the places where records are spliced in.
///
/// With the cuts `c1, c2` what goes out is `bytes[..c1.position]`, `c1.len` bytes of records,
/// `bytes[c1.position..c2.position]`, `c2.len` bytes of records, `bytes[c2.position..]`: one vectored write.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    cuts: Vec<Cut>,
    spliced: usize,
    error: i16,
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// A writer that goes on behind what `bytes` holds.
    pub fn append_to(bytes: Vec<u8>) -> Writer {
        Writer { bytes, ..Writer::default() }
    }

    /// Makes room for so many more bytes and no more than that.
    pub fn reserve_exact(&mut self, additional: usize) {
        self.bytes.reserve_exact(additional);
    }

    /// What was written, without what is spliced in.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where records are spliced in, in rising position.
    pub fn cuts(&self) -> &[Cut] {
        &self.cuts
    }

    /// Length on the wire, spliced bytes included.
    pub fn wire_len(&self) -> usize {
        self.bytes.len() + self.spliced
    }

    /// The first error code of what was written, or 0 where all of them are.
    pub fn error(&self) -> i16 {
        self.error
    }

    /// The bytes and the cuts.
    pub fn into_parts(self) -> (Vec<u8>, Vec<Cut>) {
        (self.bytes, self.cuts)
    }

    /// The bytes of a frame that has nothing spliced in.
    ///
    /// # Panics
    /// When something is: use [`Writer::into_parts`].
    pub fn into_bytes(self) -> Vec<u8> {
        assert!(self.cuts.is_empty(), "records are spliced into this frame");
        self.bytes
    }
}

impl Sink for Writer {
    #[inline]
    fn error_code(&mut self, code: i16) {
        if self.error == 0 {
            self.error = code;
        }
        self.i16(code);
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    #[inline]
    fn uvarint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    #[inline]
    fn varlong(&mut self, value: i64) {
        let mut coded = zigzag(value);
        while coded >= 0x80 {
            self.bytes.push(coded as u8 | 0x80);
            coded >>= 7;
        }
        self.bytes.push(coded as u8);
    }

    #[inline]
    fn splice(&mut self, len: usize) {
        if len > 0 {
            self.cuts.push(Cut { position: self.bytes.len(), len });
            self.spliced += len;
        }
    }
}

/// Counts what a [`Writer`] would write.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter {
    written: usize,
    spliced: usize,
}

impl Counter {
    /// Length on the wire, spliced bytes included.
    #[inline]
    pub fn len(&self) -> usize {
        self.written + self.spliced
    }

    /// Whether nothing was counted.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length without what is spliced in: the memory that a writer needs.
    #[inline]
    pub fn written(&self) -> usize {
        self.written
    }
}

impl Sink for Counter {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        self.written += bytes.len();
    }

    #[inline]
    fn uvarint(&mut self, value: u32) {
        self.written += (38 - (value | 1).leading_zeros() as usize) / 7;
    }

    #[inline]
    fn varlong(&mut self, value: i64) {
        self.written += (70 - (zigzag(value) | 1).leading_zeros() as usize) / 7;
    }

    #[inline]
    fn splice(&mut self, len: usize) {
        self.spliced += len;
    }
}

#[inline]
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_counts_what_the_writer_writes() {
        for bits in 0..63 {
            for value in [(1_i64 << bits) - 1, 1_i64 << bits, -(1_i64 << bits)] {
                let (mut writer, mut counter) = (Writer::new(), Counter::default());
                writer.uvarint(value as u32);
                counter.uvarint(value as u32);
                writer.varlong(value);
                counter.varlong(value);
                assert_eq!(writer.bytes().len(), counter.len(), "{value}");
            }
        }
    }

    #[test]
    fn spliced_records_leave_a_cut_behind_their_length() {
        let mut writer = Writer::new();
        writer.i16(7);
        writer.records(Records::Spliced(300), false);
        writer.nullable_records(None, false);
        writer.records(Records::Spliced(0), true);
        writer.records(Records::Slice(b"abc"), true);
        writer.records(Records::Spliced(300), true);
        assert_eq!(writer.wire_len(), 2 + 4 + 300 + 4 + 1 + 4 + 2 + 300);
        let (bytes, cuts) = writer.into_parts();
        assert_eq!(cuts, [Cut { position: 6, len: 300 }, Cut { position: 17, len: 300 }]);
        assert_eq!(bytes[..10], [0, 7, 0, 0, 1, 44, 255, 255, 255, 255]);
        assert_eq!(bytes[10..], [1, 4, b'a', b'b', b'c', 0xad, 0x02]);
    }

    #[test]
    fn strings_that_are_too_long_are_cut_at_a_character() {
        let long = "é".repeat(20_000);
        let mut writer = Writer::new();
        writer.string(&long, false);
        assert_eq!(writer.bytes().len(), 2 + 32_766);
        assert_eq!(writer.bytes()[..2], 32_766_i16.to_be_bytes());
    }
}
