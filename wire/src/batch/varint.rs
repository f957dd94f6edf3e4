//! Variable-length integers of record bodies: zigzag, seven bits a byte, least significant first (as in Protocol
//! Buffers). Nearly all that occur have one or two bytes, so these are decoded without a loop.

/// What every reader here answers for bytes that are no such integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

#[inline(always)]
fn zigzag(raw: u32) -> i32 {
    (raw >> 1) as i32 ^ -((raw & 1) as i32)
}

/// Reads an `i32` of at most five bytes at `*at` and moves on.
#[inline(always)]
pub(crate) fn read_i32(bytes: &[u8], at: &mut usize) -> Result<i32, Malformed> {
    let Some(&first) = bytes.get(*at) else { return Err(Malformed) };
    if first < 0x80 {
        *at += 1;
        return Ok(zigzag(u32::from(first)));
    }
    let Some(&second) = bytes.get(*at + 1) else { return Err(Malformed) };
    if second < 0x80 {
        *at += 2;
        return Ok(zigzag(u32::from(first & 0x7f) | u32::from(second) << 7));
    }
    read_long(bytes, at, 5).map(|raw| zigzag(raw as u32))
}

/// Reads an `i64` of at most ten bytes at `*at` and moves on.
#[inline(always)]
pub(crate) fn read_i64(bytes: &[u8], at: &mut usize) -> Result<i64, Malformed> {
    let Some(&first) = bytes.get(*at) else { return Err(Malformed) };
    if first < 0x80 {
        *at += 1;
        return Ok(i64::from(zigzag(u32::from(first))));
    }
    let Some(&second) = bytes.get(*at + 1) else { return Err(Malformed) };
    if second < 0x80 {
        *at += 2;
        return Ok(i64::from(zigzag(u32::from(first & 0x7f) | u32::from(second) << 7)));
    }
    read_long(bytes, at, 10).map(|raw| (raw >> 1) as i64 ^ -((raw & 1) as i64))
}

/// Bits beyond the type's width are dropped, as Kafka's readers do.
#[cold]
#[inline(never)]
fn read_long(bytes: &[u8], at: &mut usize, bytes_max: usize) -> Result<u64, Malformed> {
    let mut raw = 0u64;
    for i in 0..bytes_max {
        let Some(&byte) = bytes.get(*at + i) else { return Err(Malformed) };
        raw |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            *at += i + 1;
            return Ok(raw);
        }
    }
    Err(Malformed)
}

/// Appends `value`; small absolute values are short.
pub(crate) fn write(out: &mut Vec<u8>, value: i64) {
    let mut raw = ((value << 1) ^ (value >> 63)) as u64;
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

/// Bytes that [`write`] takes.
pub(crate) fn len(value: i64) -> usize {
    let raw = ((value << 1) ^ (value >> 63)) as u64;
    (64 - (raw | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(value: i64, shift in 0u32..64) {
            let value = value >> shift;
            let mut out = vec![0xff];
            write(&mut out, value);
            prop_assert_eq!(out.len() - 1, len(value));
            let mut at = 1;
            prop_assert_eq!(read_i64(&out, &mut at), Ok(value));
            prop_assert_eq!(at, out.len());
            if let Ok(small) = i32::try_from(value) {
                at = 1;
                prop_assert_eq!(read_i32(&out, &mut at), Ok(small));
                prop_assert_eq!(at, out.len());
            }
            for cut in 1..out.len() {
                prop_assert_eq!(read_i64(&out[..cut], &mut 1), Err(Malformed));
            }
        }
    }

    #[test]
    fn endless_ones_are_refused() {
        assert_eq!(read_i32(&[0xff; 20], &mut 0), Err(Malformed));
        assert_eq!(read_i64(&[0xff; 20], &mut 0), Err(Malformed));
        assert_eq!(read_i64(&[], &mut 0), Err(Malformed));
    }
}
