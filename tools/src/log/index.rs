//! Kafka's index files beside a segment: `.index` maps offsets to positions, `.timeindex` timestamps to offsets.

use std::collections::BTreeMap;
use std::path::Path;

/// Bytes of an entry of each kind.
const OFFSET_ENTRY: usize = 8;
const TIME_ENTRY: usize = 12;

/// A fault with its place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct IndexFault {
    pub(crate) position: u64,
    pub(crate) what: String,
}

fn fault(entry: usize, size: usize, what: impl Into<String>) -> Result<usize, IndexFault> {
    Err(IndexFault { position: (entry * size) as u64, what: what.into() })
}

/// The entries, without the zeros that a broker allocates ahead of them while it runs.
fn entries(bytes: &[u8], size: usize) -> Result<Vec<&[u8]>, IndexFault> {
    if !bytes.len().is_multiple_of(size) {
        let what = format!("{} bytes are no whole number of entries of {size}", bytes.len());
        return Err(IndexFault { position: (bytes.len() / size * size) as u64, what });
    }
    let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
    // The first entry of a segment may be zeros itself, and so may the end of the last.
    Ok(bytes.chunks_exact(size).take(used.div_ceil(size)).collect())
}

/// Checks an offset index against the segment's batches: their base and last offsets by position. How many entries.
pub(crate) fn check_offsets(
    bytes: &[u8],
    base_offset: i64,
    batches: &BTreeMap<u64, (i64, i64)>,
) -> Result<usize, IndexFault> {
    let entries = entries(bytes, OFFSET_ENTRY)?;
    let mut before = None;
    for (number, entry) in entries.iter().enumerate() {
        let relative = u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]);
        let position = u64::from(u32::from_be_bytes([entry[4], entry[5], entry[6], entry[7]]));
        let offset = base_offset + i64::from(relative);
        if before.is_some_and(|(o, p)| offset <= o || position <= p) {
            return fault(
                number,
                OFFSET_ENTRY,
                format!("entry {number} (offset {offset}, position {position}) does not rise"),
            );
        }
        before = Some((offset, position));
        match batches.get(&position) {
            None => {
                return fault(
                    number,
                    OFFSET_ENTRY,
                    format!("entry {number}: no batch begins at position {position}"),
                );
            }
            Some((first, _)) if *first > offset => {
                let what = format!(
                    "entry {number}: the batch at position {position} begins at offset {first}, behind {offset}"
                );
                return fault(number, OFFSET_ENTRY, what);
            }
            Some(_) => {}
        }
    }
    Ok(entries.len())
}

/// Checks a time index: timestamps and offsets rise, and the offsets are in the segment. How many entries.
pub(crate) fn check_times(bytes: &[u8], base_offset: i64, next_offset: i64) -> Result<usize, IndexFault> {
    let entries = entries(bytes, TIME_ENTRY)?;
    let mut before = None;
    for (number, entry) in entries.iter().enumerate() {
        let timestamp = i64::from_be_bytes(std::array::from_fn(|i| entry[i]));
        let offset = base_offset + i64::from(u32::from_be_bytes([entry[8], entry[9], entry[10], entry[11]]));
        if before.is_some_and(|(t, o)| timestamp < t || offset < o) {
            return fault(
                number,
                TIME_ENTRY,
                format!("entry {number} (timestamp {timestamp}, offset {offset}) goes back"),
            );
        }
        before = Some((timestamp, offset));
        if offset >= next_offset && next_offset > base_offset {
            return fault(
                number,
                TIME_ENTRY,
                format!("entry {number}: offset {offset} is behind the segment's end {next_offset}"),
            );
        }
    }
    Ok(entries.len())
}

/// The bytes of a file beside the segment; none when it is not there.
pub(crate) fn read_beside(segment: &Path, extension: &str) -> std::io::Result<Option<Vec<u8>>> {
    match std::fs::read(segment.with_extension(extension)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(entries: &[(u32, u32)]) -> Vec<u8> {
        entries.iter().flat_map(|(o, p)| [o.to_be_bytes(), p.to_be_bytes()].concat()).collect()
    }

    #[test]
    fn an_offset_index_must_rise_and_point_at_batches() {
        let batches = BTreeMap::from([(0, (100, 104)), (70, (105, 109)), (140, (110, 119))]);
        let check = |entries: &[(u32, u32)]| check_offsets(&offsets(entries), 100, &batches);
        assert_eq!(check(&[(4, 0), (19, 140)]), Ok(2));
        assert_eq!(check(&[(4, 0), (9, 70), (0, 0), (0, 0)]), Ok(2));
        assert_eq!(check(&[]), Ok(0));
        let said = |entries: &[(u32, u32)]| check(entries).map_err(|fault| (fault.position, fault.what));
        assert!(
            said(&[(9, 70), (9, 140)])
                .is_err_and(|(position, what)| position == 8 && what.contains("does not rise"))
        );
        assert!(said(&[(4, 1)]).is_err_and(|(_, what)| what.contains("no batch begins at position 1")));
        assert!(said(&[(4, 140)]).is_err_and(|(_, what)| what.contains("begins at offset 110")));
        let mut odd = offsets(&[(4, 0)]);
        odd.push(1);
        assert!(check_offsets(&odd, 100, &batches).is_err_and(|fault| fault.position == 8));
    }

    #[test]
    fn a_time_index_must_not_go_back() {
        let times = |entries: &[(i64, u32)]| -> Vec<u8> {
            entries.iter().flat_map(|(t, o)| [&t.to_be_bytes()[..], &o.to_be_bytes()[..]].concat()).collect()
        };
        assert_eq!(check_times(&times(&[(1000, 4), (2000, 9), (0, 0)]), 100, 120), Ok(2));
        assert!(check_times(&times(&[(2000, 4), (1000, 9)]), 100, 120).is_err());
        assert!(check_times(&times(&[(2000, 20)]), 100, 120).is_err());
    }
}
