//! Pseudo-random messages for tests and fuzzing: the same seed gives the same message. How each message is made is generated
//! (`messages/`); this is what it is made of.
//!
//! A crate of its own since its code is large and only tests run it: it is built without optimization, in a fifth of the time.
//! The tests of the whole codec are its own: against an independent one (`tests/oracle.rs`), and against hostile bytes.
#![allow(missing_docs)]

mod messages;

pub use messages::ROWS;

use flumen_wire::codec::{DecodeError, Encode, Writer};

/// One message in every version, without its type.
pub struct Row {
    pub name: &'static str,
    /// -1 of what belongs to no API.
    pub key: i16,
    pub request: bool,
    pub versions: (i16, i16),
    /// Makes a message, checks that decoding gives it back, and returns its bytes.
    pub sample: fn(&mut Seed, i16) -> Vec<u8>,
    /// Decodes all the bytes and encodes what came out.
    pub recode: fn(&[u8], i16) -> Result<Vec<u8>, DecodeError>,
    /// Decodes and drops.
    pub decode: fn(&[u8], i16) -> Result<(), DecodeError>,
    /// The bytes of the default message.
    pub default: fn(i16) -> Vec<u8>,
}

/// A type that can be made at random.
pub trait Sample {
    /// Makes one with the fields that the version has; the others stay at their default.
    fn sample(seed: &mut Seed, version: i16) -> Self;
}

/// Encodes, and checks that the size was foreseen.
pub fn encoded<M: Encode>(message: &M, version: i16) -> Vec<u8> {
    let mut writer = Writer::new();
    message.encode(&mut writer, version);
    assert_eq!(writer.wire_len(), message.encoded_len(version), "version {version}");
    writer.into_bytes()
}

/// Strings on both sides of where lengths take a byte more.
const TEXT: &str = "orders.2024-é-日本-🦀-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789abc\
                    defghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789abcdefghijklmnopqrstuvwxyz-ABCDEFGHIJK";

/// A source of values that looks random.
pub struct Seed {
    state: u64,
    /// How many more array elements may be made, so that nested arrays stay small.
    elements: usize,
}

impl Seed {
    pub fn new(seed: u64) -> Seed {
        Seed { state: seed, elements: 400 }
    }

    /// The next 64 bits (SplitMix64).
    pub fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.word() % bound as u64) as usize
    }

    pub fn bool(&mut self) -> bool {
        self.word() & 1 == 1
    }

    /// Edges more often than chance would have them.
    pub fn number(&mut self) -> i64 {
        const EDGES: [i64; 8] = [0, 1, -1, 127, i32::MAX as i64, i32::MIN as i64, i64::MAX, i64::MIN];
        match self.below(3) {
            0 => EDGES[self.below(EDGES.len())],
            1 => self.below(1000) as i64,
            _ => self.word() as i64,
        }
    }

    pub fn uuid(&mut self) -> [u8; 16] {
        match self.below(4) {
            0 => [0; 16],
            _ => (u128::from(self.word()) << 64 | u128::from(self.word())).to_be_bytes(),
        }
    }

    pub fn string(&mut self) -> &'static str {
        let len = match self.below(4) {
            0 => 0,
            1 => self.below(TEXT.len() + 1),
            _ => self.below(12),
        };
        &TEXT[..TEXT.floor_char_boundary(len)]
    }

    pub fn bytes(&mut self) -> &'static [u8] {
        self.string().as_bytes()
    }

    pub fn maybe<T>(&mut self, value: impl FnOnce(&mut Seed) -> T) -> Option<T> {
        if self.below(3) == 0 { None } else { Some(value(self)) }
    }

    /// Mostly a few, at times more than a one-byte count can say.
    pub fn list<T>(&mut self, mut element: impl FnMut(&mut Seed) -> T) -> Vec<T> {
        let wanted = if self.below(40) == 0 { 130 } else { self.below(4) };
        let count = wanted.min(self.elements);
        self.elements -= count;
        (0..count).map(|_| element(self)).collect()
    }
}
