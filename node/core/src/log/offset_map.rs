//! The map that compaction decides by: for each key of the dirty part of a log, the last offset that it was seen at.
//!
//! Keys are not held, their hashes are: 128 bits of XXH3, seeded by the caller with what no client knows, so that nobody
//! can make two keys meet. A slot takes [`SLOT_BYTES`], whatever the key's length; memory is allocated once and never
//! grows (`SkimpyOffsetMap` of Kafka). What does not fit is left to a later pass.
//!
//! Invariant: every keyed record of the dirty part below [`OffsetMap::end`] is in the map, or a later one of its key is.

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::types::Offset;

/// Bytes that one key takes.
pub const SLOT_BYTES: usize = 24;
/// Fewest slots of a map, so that each pass gets on.
const SLOTS_MIN: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct OffsetMap {
    /// Two halves of the hash, and the offset plus one: 0 is a free slot.
    slots: Vec<[u64; 3]>,
    len: usize,
    len_max: usize,
    seed: u64,
    end: Offset,
}

impl OffsetMap {
    /// An empty map of at most `bytes_max` bytes, filled up to `load_factor`. No more is taken than `records_max` keys
    /// need. It knows nothing from `start` on.
    pub fn new(bytes_max: usize, load_factor: f64, records_max: u64, seed: u64, start: Offset) -> OffsetMap {
        let load_factor = if load_factor.is_finite() { load_factor.clamp(0.1, 0.95) } else { 0.9 };
        let wanted = ((records_max as f64 / load_factor) as usize).saturating_add(1);
        let slots = wanted.min(bytes_max / SLOT_BYTES).max(SLOTS_MIN);
        let len_max = ((slots as f64 * load_factor) as usize).clamp(1, slots - 1);
        OffsetMap { slots: vec![[0; 3]; slots], len: 0, len_max, seed, end: start }
    }

    /// Notes that `key` was seen at `offset`. Offsets rise. `false`: there is no room for another key, and nothing from
    /// this record on may be offered any more.
    #[must_use]
    pub fn offer(&mut self, key: &[u8], offset: Offset) -> bool {
        let (at, found) = self.find(key);
        if found.is_none() {
            if self.len >= self.len_max {
                return false;
            }
            self.len += 1;
        }
        let [high, low] = self.halves(key);
        self.slots[at] = [high, low, offset.0 as u64 + 1];
        self.end = self.end.max(Offset(offset.0 + 1));
        true
    }

    /// Says that all below `end` was offered.
    pub fn cover(&mut self, end: Offset) {
        self.end = self.end.max(end);
    }

    /// The last offset of `key` below [`end`](OffsetMap::end), where the dirty part holds it.
    pub fn get(&self, key: &[u8]) -> Option<Offset> {
        self.find(key).1
    }

    /// The first offset of which it says nothing.
    pub fn end(&self) -> Offset {
        self.end
    }

    /// How many keys it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory.
    pub fn size_bytes(&self) -> usize {
        self.slots.len() * SLOT_BYTES
    }

    fn halves(&self, key: &[u8]) -> [u64; 2] {
        let hash = xxh3_128_with_seed(key, self.seed);
        [(hash >> 64) as u64, hash as u64]
    }

    /// The slot of a key, or where it would go. One slot is always free, so the walk ends.
    fn find(&self, key: &[u8]) -> (usize, Option<Offset>) {
        let [high, low] = self.halves(key);
        let mut at = ((u128::from(high) * self.slots.len() as u128) >> 64) as usize;
        loop {
            match self.slots[at] {
                [_, _, 0] => return (at, None),
                [h, l, next] if (h, l) == (high, low) => return (at, Some(Offset(next as i64 - 1))),
                _ => at = if at + 1 == self.slots.len() { 0 } else { at + 1 },
            }
        }
    }
}
