//! Our codec against an independent one: the crate `kafka-protocol`.
//!
//! For every message and every version that both know, messages at random are encoded by us, decoded and encoded again
//! by the oracle, and must come out as the same bytes. One codec that reads a field in another place or width than
//! the other writes it cannot pass that by, and no field has to be named.

#[path = "generated/oracle.rs"]
mod oracles;

use flumen_wire_samples::{ROWS, Row, Seed};
use kafka_protocol::protocol::{Decodable, Encodable, Message};
use oracles::ORACLES;

/// The independent codec of one message, without its type.
pub(crate) struct Oracle {
    versions: (i16, i16),
    recode: fn(&[u8], i16) -> Result<Vec<u8>, String>,
    default: fn(i16) -> Result<Vec<u8>, String>,
}

impl Oracle {
    const fn of<T: Decodable + Encodable + Message + Default>() -> Oracle {
        Oracle {
            versions: (T::VERSIONS.min, T::VERSIONS.max),
            recode: |mut bytes, version| {
                let value = T::decode(&mut bytes, version).map_err(|error| format!("decode: {error:?}"))?;
                if !bytes.is_empty() {
                    return Err(format!("{} bytes left over", bytes.len()));
                }
                encode(&value, version)
            },
            default: |version| encode(&T::default(), version),
        }
    }

    fn knows(&self, version: i16) -> bool {
        (self.versions.0..=self.versions.1).contains(&version)
    }
}

fn encode<T: Encodable>(value: &T, version: i16) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes, version).map_err(|error| format!("encode: {error:?}"))?;
    Ok(bytes)
}

/// Every message with its oracle, version by version.
fn pairs() -> impl Iterator<Item = (&'static Row, &'static Oracle, i16)> {
    ORACLES.iter().flat_map(|(name, oracle)| {
        let row = ROWS.iter().find(|row| row.name == *name).expect("a message of ours");
        (row.versions.0..=row.versions.1).map(move |version| (row, oracle, version))
    })
}

#[test]
fn random_messages_mean_the_same_to_both() {
    let mut pairs_checked = 0;
    for (row, oracle, version) in pairs() {
        if !oracle.knows(version) {
            continue;
        }
        pairs_checked += 1;
        for seed in 0..50 {
            let bytes = (row.sample)(&mut Seed::new(seed), version);
            let theirs = (oracle.recode)(&bytes, version);
            assert_eq!(theirs.as_ref(), Ok(&bytes), "{} version {version} seed {seed}", row.name);
            assert_eq!(
                (row.recode)(&bytes, version),
                Ok(bytes),
                "{} version {version} seed {seed}",
                row.name
            );
        }
    }
    println!("{pairs_checked} messages and versions agree");
    assert!(pairs_checked > 400, "only {pairs_checked} messages and versions were compared");
}

/// Defaults are facts too: what is not said means the same to both.
#[test]
fn default_messages_are_the_same_bytes() {
    let mut differing = Vec::new();
    for (row, oracle, version) in pairs() {
        if oracle.knows(version) && (oracle.default)(version) != Ok((row.default)(version)) {
            differing.push(format!("{} {version}", row.name));
        }
    }
    assert_eq!(differing, [""; 0]);
}

/// The versions that are newer than the oracle: they are checked against ourselves alone (`tests/hostile.rs`),
/// as are the two APIs of streams groups.
#[test]
fn what_the_oracle_lacks_is_known() {
    let missing: Vec<String> = pairs()
        .filter(|(_, oracle, version)| !oracle.knows(*version))
        .map(|(row, _, version)| format!("{} {version}", row.name))
        .collect();
    let known = [
        "ListOffsetsRequest 11",
        "ListOffsetsResponse 11",
        "OffsetCommitRequest 10",
        "OffsetFetchRequest 10",
        "InitProducerIdRequest 6",
        "DescribeLogDirsRequest 5",
        "DescribeLogDirsResponse 5",
        "ShareFetchRequest 2",
        "ShareFetchResponse 2",
        "ShareAcknowledgeRequest 2",
        "ShareAcknowledgeResponse 2",
        "DescribeShareGroupOffsetsRequest 1",
        "DescribeShareGroupOffsetsResponse 1",
    ];
    assert_eq!(missing, known);
}

/// A sender newer than us adds tagged fields; they do not disturb us.
#[test]
fn unknown_tagged_fields_are_passed_over() {
    for row in ROWS {
        for version in row.versions.0..=row.versions.1 {
            let Some(key) = flumen_wire::ApiKey::from_key(row.key) else { continue };
            if !flumen_wire::api::is_flexible(key, version) {
                continue;
            }
            let default = (row.default)(version);
            // A default message sets no tags, so its last byte counts none.
            let (count, rest) = default.split_last().expect("at least the count of tags");
            assert_eq!(*count, 0, "{} version {version}", row.name);
            let tagged = [rest, &[2, 100, 3, 1, 2, 3, 0xff, 0x7f, 0]].concat();
            assert_eq!((row.recode)(&tagged, version), Ok(default.clone()), "{} version {version}", row.name);
            let lying = [rest, &[1, 100, 3, 1, 2]].concat();
            assert!((row.decode)(&lying, version).is_err(), "{} version {version}", row.name);
        }
    }
}
