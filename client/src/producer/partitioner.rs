//! Which partition a record goes to: by Kafka's hash of its key, so that all clients agree; without a key to one
//! partition until its batch is full, then to another (KIP-480), so that batches are large.

/// Of the bytes, as Kafka's clients compute it (MurmurHash2 of 32 bits, with Kafka's seed).
pub fn murmur2(bytes: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let mut hash = SEED ^ bytes.len() as u32;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (place, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * place);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

/// The partition of a key among `count`.
pub fn of_key(key: &[u8], count: i32) -> i32 {
    (murmur2(key) & 0x7fff_ffff) as i32 % count.max(1)
}

/// Another partition than `current` among `count`, where there is another.
pub fn another(current: i32, count: i32) -> i32 {
    if count < 2 {
        return 0;
    }
    let next = fastrand::i32(0..count - 1);
    if next >= current { next + 1 } else { next }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the tests of Kafka's clients (`UtilsTest.testMurmur2`).
    #[test]
    fn the_hash_is_kafkas() {
        let cases: [(&[u8], i32); 7] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
            (b"", 275_646_681),
        ];
        for (key, hash) in cases {
            assert_eq!(murmur2(key) as i32, hash, "{key:?}");
        }
    }

    #[test]
    fn another_is_another() {
        for _ in 0..100 {
            let next = another(2, 3);
            assert!((0..2).contains(&next));
        }
        assert_eq!(another(0, 1), 0);
        assert_eq!(of_key(b"k", 0), 0);
    }
}
