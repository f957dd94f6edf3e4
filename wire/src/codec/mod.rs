//! The runtime under the generated messages: reading and writing the primitive types of the Kafka protocol.
//!
//! * [`Reader`] walks over one frame and hands out values that borrow from it.
//! * [`Writer`] produces the bytes of one frame; [`Counter`] takes the same calls and only counts, so that a size is
//!   known before a byte is written. Both are a [`Sink`], and a message writes itself to any sink.
//!
//! Invariants, which the generated code relies on and never repeats:
//! * No length that a peer claims is believed. It is compared with the bytes that are left before anything is
//!   allocated, and what a frame may allocate in total is bounded by [`Reader::new`].
//! * A message cannot nest in itself (the generator refuses it), so the depth of a decoder is that of its schema.
//! * What [`Decode`] accepts, [`Encode`] writes again; what [`Encode::encoded_len`] says is what gets written.

mod reader;
mod writer;

pub use reader::{DECODED_BYTES_MAX, DecodeError, Reader};
pub use writer::{Counter, Cut, Sink, Writer};

use crate::messages::ApiKey;

/// A type that is read from a frame and borrows from it.
pub trait Decode<'a>: Sized {
    /// The fewest bytes that one value takes on the wire, over all versions; what array counts are checked against.
    const MIN_SIZE: usize;

    /// Reads one value in the given version of its message.
    fn decode(reader: &mut Reader<'a>, version: i16) -> Result<Self, DecodeError>;
}

/// A type that is written to a frame.
pub trait Encode {
    /// Writes the value in the given version of its message.
    ///
    /// Fields that the version lacks are left out. Where Kafka would refuse to leave one out (a field that is neither
    /// tagged nor "ignorable", and not at its default) a debug assertion fires.
    ///
    /// # Panics
    /// When the message does not have the version at all: versions are negotiated before a message is built.
    fn write<S: Sink>(&self, sink: &mut S, version: i16);

    /// Writes the value to the end of `writer`.
    #[inline]
    fn encode(&self, writer: &mut Writer, version: i16) {
        self.write(writer, version);
    }

    /// How many bytes the value takes on the wire, spliced records included.
    #[inline]
    fn encoded_len(&self, version: i16) -> usize {
        let mut counter = Counter::default();
        self.write(&mut counter, version);
        counter.len()
    }
}

/// A whole request or response body.
pub trait Message: Encode {
    /// The API that it belongs to.
    const KEY: ApiKey;
    /// The oldest version that can be read and written.
    const MIN_VERSION: i16;
    /// The newest version that can be read and written.
    const MAX_VERSION: i16;
}

/// The key of a record in a coordinator's log: the type of the record as an int16, then the key in its only version, 0.
pub trait RecordKey: Encode {
    /// The type of the record.
    const TYPE: i16;

    /// The bytes of the record's key.
    fn to_key(&self) -> Vec<u8> {
        prefixed(Self::TYPE, self, 0)
    }
}

/// What stands in bytes of its own: its version as an int16, then the value.
pub trait Versioned: Encode {
    /// The oldest version that can be read and written.
    const MIN_VERSION: i16;
    /// The newest version that can be read and written.
    const MAX_VERSION: i16;

    /// Its bytes in one version.
    fn to_versioned(&self, version: i16) -> Vec<u8> {
        prefixed(version, self, version)
    }

    /// Reads such bytes. What follows the value is no fault.
    fn from_versioned<'a>(bytes: &'a [u8]) -> Result<Self, DecodeError>
    where
        Self: Decode<'a>,
    {
        let mut reader = Reader::new(bytes);
        let version = reader.i16()?;
        Self::decode(&mut reader, version)
    }

    /// As [`Versioned::from_versioned`], reading a version that is newer than all known as the newest known: what
    /// members of a group tell each other only ever grows at its end.
    fn from_versioned_lenient<'a>(bytes: &'a [u8]) -> Result<Self, DecodeError>
    where
        Self: Decode<'a>,
    {
        let mut reader = Reader::new(bytes);
        let version = reader.i16()?.min(Self::MAX_VERSION);
        Self::decode(&mut reader, version)
    }
}

fn prefixed<T: Encode + ?Sized>(prefix: i16, value: &T, version: i16) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.reserve_exact(size_of::<i16>() + value.encoded_len(version));
    writer.i16(prefix);
    value.encode(&mut writer, version);
    writer.into_bytes()
}

/// Record batches in a response: held in memory, or announced here and sent from where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Records<'a> {
    /// The bytes themselves; what a decoder yields.
    Slice(&'a [u8]),
    /// So many bytes, which the caller sends at the [`Cut`] that the writer noted.
    Spliced(usize),
}

impl<'a> Records<'a> {
    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Records::Slice(bytes) => bytes.len(),
            Records::Spliced(len) => *len,
        }
    }

    /// Whether there are no bytes at all.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes; none when they are spliced. A decoded message is never spliced.
    #[inline]
    pub fn as_slice(&self) -> Option<&'a [u8]> {
        match self {
            Records::Slice(bytes) => Some(bytes),
            Records::Spliced(_) => None,
        }
    }
}

impl Default for Records<'_> {
    fn default() -> Self {
        Records::Slice(&[])
    }
}
