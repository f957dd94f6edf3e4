//! Reading the primitive types of the protocol from one frame, without trust and without copies.

use std::fmt;
use std::mem::size_of;

use super::Decode;

/// The most memory that the arrays of one decoded message may take, however large its frame.
///
/// Payloads are borrowed and do not count, so this bounds element counts only: some half a million partitions in one
/// request, where a large real one has some ten thousand.
pub const DECODED_BYTES_MAX: usize = 64 << 20;

/// How much larger than its frame a decoded message may be. A field takes at least one byte on the wire and at most
/// 24 in memory (an empty array), so that no honest message comes near this.
const DECODED_BYTES_PER_FRAME_BYTE: usize = 32;

/// What small frames may allocate in any case, so that fields which a version lacks do not count against it.
const DECODED_BYTES_MIN: usize = 4 << 10;

/// Why bytes are not a message. All of these are the fault of whoever sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// A value, or the claimed length of one, goes past the end of the frame.
    Truncated,
    /// A length below zero where that does not mean null.
    NegativeLength,
    /// Null where the version does not allow it.
    UnexpectedNull,
    /// A variable-length integer longer than its type.
    VarintTooLong,
    /// A string that is not UTF-8.
    NotUtf8,
    /// A string of more than 32,767 bytes.
    StringTooLong,
    /// A tagged field whose size is not that of its content.
    TagSizeMismatch,
    /// Arrays that would take more memory than a frame of this size may.
    TooLarge,
    /// A version that the message does not have.
    UnsupportedVersion,
    /// Bytes after the end of the message.
    TrailingBytes,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DecodeError::Truncated => "a length goes past the end of the frame",
            DecodeError::NegativeLength => "a length is negative",
            DecodeError::UnexpectedNull => "a field that must not be null is null",
            DecodeError::VarintTooLong => "a variable-length integer does not end",
            DecodeError::NotUtf8 => "a string is not UTF-8",
            DecodeError::StringTooLong => "a string is longer than 32767 bytes",
            DecodeError::TagSizeMismatch => "a tagged field is not as long as it says",
            DecodeError::TooLarge => "the message would take too much memory",
            DecodeError::UnsupportedVersion => "the version is not supported",
            DecodeError::TrailingBytes => "bytes follow the end of the message",
        })
    }
}

impl std::error::Error for DecodeError {}

/// A place in a frame, and what may still be allocated for what is read from it.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    /// Bytes of memory that arrays may still take.
    budget: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `frame`. Arrays may take 32 times its length, and never more than
    /// [`DECODED_BYTES_MAX`].
    #[inline]
    pub fn new(frame: &'a [u8]) -> Reader<'a> {
        let proportional = frame.len().saturating_mul(DECODED_BYTES_PER_FRAME_BYTE);
        let budget = proportional.clamp(DECODED_BYTES_MIN, DECODED_BYTES_MAX);
        Reader { rest: frame, budget }
    }

    /// How many bytes are left.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Ends the reading: an error when bytes are left over.
    ///
    /// Kafka's own broker does not look, and neither should a server, since a client may know more than it.
    #[inline]
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::TrailingBytes) }
    }

    #[inline]
    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.rest = tail;
        Ok(*head)
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.rest.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    /// A byte: zero is false, all else is true, as in Kafka.
    #[inline]
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        Ok(self.fixed::<1>()? != [0])
    }

    /// One byte, signed.
    #[inline]
    pub fn i8(&mut self) -> Result<i8, DecodeError> {
        Ok(i8::from_be_bytes(self.fixed()?))
    }

    /// Two bytes, signed.
    #[inline]
    pub fn i16(&mut self) -> Result<i16, DecodeError> {
        Ok(i16::from_be_bytes(self.fixed()?))
    }

    /// Two bytes, unsigned.
    #[inline]
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.fixed()?))
    }

    /// Four bytes, signed.
    #[inline]
    pub fn i32(&mut self) -> Result<i32, DecodeError> {
        Ok(i32::from_be_bytes(self.fixed()?))
    }

    /// Four bytes, unsigned.
    #[inline]
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.fixed()?))
    }

    /// Eight bytes, signed.
    #[inline]
    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_be_bytes(self.fixed()?))
    }

    /// Eight bytes, IEEE 754.
    #[inline]
    pub fn f64(&mut self) -> Result<f64, DecodeError> {
        Ok(f64::from_be_bytes(self.fixed()?))
    }

    /// Sixteen bytes.
    #[inline]
    pub fn uuid(&mut self) -> Result<[u8; 16], DecodeError> {
        self.fixed()
    }

    /// An unsigned variable-length integer of at most 32 bits: seven bits a byte, lowest first.
    #[inline]
    pub fn uvarint(&mut self) -> Result<u32, DecodeError> {
        // Lengths below 128 are nearly all that occur.
        match self.rest.split_first() {
            Some((&byte, tail)) if byte < 0x80 => {
                self.rest = tail;
                Ok(u32::from(byte))
            }
            _ => self.long_uvarint(),
        }
    }

    fn long_uvarint(&mut self) -> Result<u32, DecodeError> {
        let mut value = 0_u32;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.fixed::<1>()?;
            if shift == 28 && byte > 0x0f {
                return Err(DecodeError::VarintTooLong);
            }
            value |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::VarintTooLong)
    }

    /// A signed variable-length integer of at most 32 bits, zigzag-coded.
    #[inline]
    pub fn varint(&mut self) -> Result<i32, DecodeError> {
        let coded = self.uvarint()?;
        Ok((coded >> 1) as i32 ^ -((coded & 1) as i32))
    }

    /// A signed variable-length integer of at most 64 bits, zigzag-coded.
    #[inline]
    pub fn varlong(&mut self) -> Result<i64, DecodeError> {
        let mut coded = 0_u64;
        for shift in (0..70).step_by(7) {
            let [byte] = self.fixed::<1>()?;
            if shift == 63 && byte > 0x01 {
                return Err(DecodeError::VarintTooLong);
            }
            coded |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((coded >> 1) as i64 ^ -((coded & 1) as i64));
            }
        }
        Err(DecodeError::VarintTooLong)
    }

    /// A length of flexible versions: zero is null, else one more than the length.
    #[inline]
    fn compact_len(&mut self) -> Result<Option<usize>, DecodeError> {
        Ok((self.uvarint()? as usize).checked_sub(1))
    }

    /// A length of 32 bits: -1 is null.
    #[inline]
    fn wide_len(&mut self) -> Result<Option<usize>, DecodeError> {
        match self.i32()? {
            -1 => Ok(None),
            len => usize::try_from(len).map(Some).map_err(|_| DecodeError::NegativeLength),
        }
    }

    #[inline]
    fn len(&mut self, flexible: bool) -> Result<Option<usize>, DecodeError> {
        if flexible { self.compact_len() } else { self.wide_len() }
    }

    /// A string that may be null.
    #[inline]
    pub fn nullable_string(&mut self, flexible: bool) -> Result<Option<&'a str>, DecodeError> {
        let len = if flexible {
            self.compact_len()?
        } else {
            match self.i16()? {
                -1 => None,
                len => Some(usize::try_from(len).map_err(|_| DecodeError::NegativeLength)?),
            }
        };
        let Some(len) = len else { return Ok(None) };
        // As Kafka's: what comes as a compact string may have to leave as one that is not.
        if len > i16::MAX as usize {
            return Err(DecodeError::StringTooLong);
        }
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).map(Some).map_err(|_| DecodeError::NotUtf8)
    }

    /// A string.
    #[inline]
    pub fn string(&mut self, flexible: bool) -> Result<&'a str, DecodeError> {
        self.nullable_string(flexible)?.ok_or(DecodeError::UnexpectedNull)
    }

    /// Bytes that may be null.
    #[inline]
    pub fn nullable_bytes(&mut self, flexible: bool) -> Result<Option<&'a [u8]>, DecodeError> {
        match self.len(flexible)? {
            Some(len) => Ok(Some(self.take(len)?)),
            None => Ok(None),
        }
    }

    /// Bytes.
    #[inline]
    pub fn bytes(&mut self, flexible: bool) -> Result<&'a [u8], DecodeError> {
        self.nullable_bytes(flexible)?.ok_or(DecodeError::UnexpectedNull)
    }

    /// An array that may be null, of values that take at least `min_size` bytes each on the wire.
    #[inline]
    pub fn nullable_array<T>(
        &mut self,
        flexible: bool,
        min_size: usize,
        mut element: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<Vec<T>>, DecodeError> {
        let Some(count) = self.len(flexible)? else { return Ok(None) };
        self.claim(count, min_size, size_of::<T>())?;
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(element(self)?);
        }
        Ok(Some(values))
    }

    /// An array of values that take at least `min_size` bytes each on the wire.
    #[inline]
    pub fn array<T>(
        &mut self,
        flexible: bool,
        min_size: usize,
        element: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        self.nullable_array(flexible, min_size, element)?.ok_or(DecodeError::UnexpectedNull)
    }

    /// An array of structures that may be null.
    #[inline]
    pub fn nullable_structs<T: Decode<'a>>(
        &mut self,
        flexible: bool,
        version: i16,
    ) -> Result<Option<Vec<T>>, DecodeError> {
        self.nullable_array(flexible, T::MIN_SIZE, |reader| T::decode(reader, version))
    }

    /// An array of structures.
    #[inline]
    pub fn structs<T: Decode<'a>>(&mut self, flexible: bool, version: i16) -> Result<Vec<T>, DecodeError> {
        self.nullable_structs(flexible, version)?.ok_or(DecodeError::UnexpectedNull)
    }

    /// A structure that may be null: a byte says whether it is there.
    #[inline]
    pub fn nullable_struct<T: Decode<'a>>(&mut self, version: i16) -> Result<Option<T>, DecodeError> {
        if self.i8()? < 0 { Ok(None) } else { T::decode(self, version).map(Some) }
    }

    /// Checks an array's count before memory is taken for it: the elements must fit into the bytes left, and their
    /// values into the budget.
    #[inline]
    fn claim(&mut self, count: usize, min_size: usize, value_size: usize) -> Result<(), DecodeError> {
        debug_assert!(min_size > 0, "an element of no bytes would make a count unbounded");
        if count > self.rest.len() / min_size.max(1) {
            return Err(DecodeError::Truncated);
        }
        let memory = count.checked_mul(value_size).ok_or(DecodeError::TooLarge)?;
        self.budget = self.budget.checked_sub(memory).ok_or(DecodeError::TooLarge)?;
        Ok(())
    }

    /// How many tagged fields follow. Each takes two bytes or more, so the count is bounded by what is left.
    #[inline]
    pub fn tag_count(&mut self) -> Result<u32, DecodeError> {
        let count = self.uvarint()?;
        if count as usize > self.rest.len() / 2 { Err(DecodeError::Truncated) } else { Ok(count) }
    }

    /// The head of a tagged field: its tag, and how many bytes will be left behind it (see [`Reader::end_tag`]).
    #[inline]
    pub fn tag(&mut self) -> Result<(u32, usize), DecodeError> {
        let tag = self.uvarint()?;
        let size = self.uvarint()? as usize;
        let end = self.rest.len().checked_sub(size).ok_or(DecodeError::Truncated)?;
        Ok((tag, end))
    }

    /// Checks that a tagged field was exactly as long as it said.
    #[inline]
    pub fn end_tag(&mut self, end: usize) -> Result<(), DecodeError> {
        if self.rest.len() == end { Ok(()) } else { Err(DecodeError::TagSizeMismatch) }
    }

    /// Passes over the content of a tagged field that is not known.
    #[inline]
    pub fn skip_tag(&mut self, end: usize) -> Result<(), DecodeError> {
        let size = self.rest.len().checked_sub(end).ok_or(DecodeError::TagSizeMismatch)?;
        self.take(size).map(|_| ())
    }

    /// Passes over all tagged fields of a structure that has none of its own.
    #[inline]
    pub fn skip_tags(&mut self) -> Result<(), DecodeError> {
        for _ in 0..self.tag_count()? {
            let (_, end) = self.tag()?;
            self.skip_tag(end)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Sink, Writer};

    #[test]
    fn varints_end_and_fit_their_type() {
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x0f]).uvarint(), Ok(u32::MAX));
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x1f]).uvarint(), Err(DecodeError::VarintTooLong));
        assert_eq!(Reader::new(&[0x80; 20]).uvarint(), Err(DecodeError::VarintTooLong));
        assert_eq!(Reader::new(&[0x80]).uvarint(), Err(DecodeError::Truncated));
        assert_eq!(Reader::new(&[0x80; 20]).varlong(), Err(DecodeError::VarintTooLong));
        let mut longest = [0xff; 10];
        longest[9] = 0x01;
        assert_eq!(Reader::new(&longest).varlong(), Ok(i64::MIN));
        longest[9] = 0x02;
        assert_eq!(Reader::new(&longest).varlong(), Err(DecodeError::VarintTooLong));
    }

    #[test]
    fn varints_come_back_as_written() {
        for value in [0, 1, -1, 63, 64, -64, -65, 8191, 8192, i32::MAX, i32::MIN] {
            let mut writer = Writer::new();
            writer.varint(value);
            writer.varlong(i64::from(value) << 31);
            writer.uvarint(value as u32);
            let bytes = writer.into_bytes();
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.varint(), Ok(value));
            assert_eq!(reader.varlong(), Ok(i64::from(value) << 31));
            assert_eq!(reader.uvarint(), Ok(value as u32));
            assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn a_count_is_checked_against_the_bytes_left() {
        let frame = [0x7f, 0xff, 0xff, 0xff, 1, 2, 3, 4];
        assert_eq!(Reader::new(&frame).array(false, 4, |r| r.i32()), Err(DecodeError::Truncated));
        let frame = [0xff, 0xff, 0xff, 0xfe];
        assert_eq!(Reader::new(&frame).array(false, 4, |r| r.i32()), Err(DecodeError::NegativeLength));
        let frame = [0xff, 0xff, 0xff, 0xff];
        assert_eq!(Reader::new(&frame).nullable_array(false, 4, |r| r.i32()), Ok(None));
    }

    #[test]
    fn arrays_share_one_budget() {
        let mut frame = vec![0_u8; 400];
        frame[3] = 100;
        frame[107] = 100;
        let mut reader = Reader::new(&frame);
        let wide = |r: &mut Reader<'_>| r.i8().map(|_| [0_u8; 100]);
        assert!(reader.array(false, 1, wide).is_ok(), "10,000 bytes of the 12,800 that this frame may take");
        assert_eq!(reader.array(false, 1, wide), Err(DecodeError::TooLarge));
    }

    #[test]
    fn lengths_below_minus_one_are_refused() {
        assert_eq!(Reader::new(&[0xff, 0xfe]).nullable_string(false), Err(DecodeError::NegativeLength));
        assert_eq!(Reader::new(&[0xff, 0xff]).nullable_string(false), Ok(None));
        assert_eq!(Reader::new(&[0xff, 0xff]).string(false), Err(DecodeError::UnexpectedNull));
        assert_eq!(Reader::new(&[0]).string(true), Err(DecodeError::UnexpectedNull));
        assert_eq!(Reader::new(&[2, 0xff]).string(true), Err(DecodeError::NotUtf8));
    }

    #[test]
    fn compact_strings_are_as_long_as_others_at_most() {
        // The varint of the length and one more.
        let compact = |len: usize| {
            let tail = [0x80 | (len + 1) as u8, 0x80 | ((len + 1) >> 7) as u8, ((len + 1) >> 14) as u8];
            [&tail[..], &vec![b'x'; len]].concat()
        };
        assert_eq!(Reader::new(&compact(32_767)).string(true).map(str::len), Ok(32_767));
        assert_eq!(Reader::new(&compact(32_768)).string(true), Err(DecodeError::StringTooLong));
    }

    #[test]
    fn unknown_tags_are_passed_over_and_bounded() {
        let frame = [2, 9, 1, 0xaa, 10, 0, 0x55];
        let mut reader = Reader::new(&frame);
        assert_eq!(reader.skip_tags(), Ok(()));
        assert_eq!(reader.i8(), Ok(0x55));
        assert_eq!(
            Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0]).skip_tags(),
            Err(DecodeError::Truncated)
        );
        assert_eq!(Reader::new(&[1, 0, 5, 1]).skip_tags(), Err(DecodeError::Truncated));
    }
}
