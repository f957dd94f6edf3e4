//! Batches as clients send them.

use std::rc::Rc;

use flumen_storage::sim::Random;
use flumen_wire::batch::{BatchBuilder, BatchHeader, NewRecord};
use flumen_wire::compression::Compression;

use crate::model::{Producer, Sent};
use crate::scenario::Scenario;

/// Keys of a compacted partition's records.
const KEYS: u64 = 90;

/// A new batch of `producer`, of at most `bytes_max` bytes: never two with the same content. With keys
/// and tombstones for a compacted partition.
pub(crate) fn make(
    scenario: &Scenario,
    random: &mut Random,
    producer: &mut Producer,
    serial: u64,
    now_ms: i64,
    (bytes_max, keyed): (u64, bool),
) -> Sent {
    let bulk = random.chance(scenario.bulk_percent, 100);
    let len = match bulk {
        true => random.between(scenario.bulk_bytes_min as u64, scenario.bulk_bytes_min as u64 * 2),
        false => random.between(1, scenario.value_max),
    };
    let len = len.min(bytes_max - 300);
    let codec = if random.chance(1, 10) { Compression::Lz4 } else { Compression::None };
    let mut builder = BatchBuilder::new(codec);
    if producer.id >= 0 {
        builder = builder.producer(producer.id, producer.epoch, producer.next_sequence);
    }
    let records = if bulk { 1 } else { random.between(1, 4) };
    let mut value = vec![0; (len / records).max(8) as usize];
    for _ in 0..records {
        random.fill(&mut value[8..]);
        value[..8].copy_from_slice(&serial.to_be_bytes());
        let timestamp = now_ms - random.below(3) as i64;
        let key = keyed.then(|| random.below(KEYS).to_be_bytes());
        let key = key.as_ref().map(|key| &key[..]);
        let tombstone = keyed && random.chance(1, 6);
        builder.push(NewRecord { timestamp, key, value: (!tombstone).then_some(&value), headers: &[] });
    }
    let bytes: Rc<[u8]> = builder.build().into();
    let header = BatchHeader::parse(&bytes).expect("built well");
    if producer.id >= 0 {
        producer.next_sequence = flumen_wire::batch::sequence_after(producer.next_sequence, records as i32);
    }
    Sent { serial, bytes, header, placed: None, acked: false }
}
