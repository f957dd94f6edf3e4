//! The table against a model that remembers every batch ever written; bounds; snapshots.

use super::*;
use flumen_wire::batch::{Attributes, MAGIC};
use proptest::prelude::*;

const EXPIRATION_MS: i64 = 1000;

/// The header of a batch with `count` records.
fn header(producer_id: i64, epoch: i16, sequence: i32, count: i32, base_offset: i64) -> BatchHeader {
    BatchHeader {
        base_offset,
        batch_length: 49,
        partition_leader_epoch: 0,
        magic: MAGIC,
        crc: 0,
        attributes: Attributes::default(),
        last_offset_delta: count - 1,
        base_timestamp: 0,
        max_timestamp: base_offset * 10,
        producer_id,
        producer_epoch: epoch,
        base_sequence: sequence,
        record_count: count,
    }
}

/// Every batch of one producer, as (epoch, first sequence on a line that does not wrap, count, base offset).
#[derive(Default)]
struct Model {
    batches: Vec<(i16, i64, i32, i64)>,
}

/// Where lines of sequences begin in these tests: near the wrap, so that it is crossed.
const LINE_START: i64 = i32::MAX as i64 - 20;

impl Model {
    fn check(&self, epoch: i16, line: i64, count: i32) -> Result<Verdict, &'static str> {
        let Some(current) = self.batches.iter().map(|b| b.0).max() else { return Ok(Verdict::Append) };
        if epoch < current {
            return Err("fenced");
        }
        if epoch > current {
            return if wrap(line) == 0 { Ok(Verdict::Append) } else { Err("out of order") };
        }
        let of_epoch: Vec<_> = self.batches.iter().filter(|b| b.0 == epoch).collect();
        let recent = &of_epoch[of_epoch.len().saturating_sub(WINDOW_BATCHES)..];
        if let Some(b) = recent.iter().find(|b| b.1 == line && b.2 == count) {
            let last_offset = Offset(b.3 + i64::from(count) - 1);
            let append_time = Timestamp(b.3 * 10);
            return Ok(Verdict::Duplicate { base_offset: Offset(b.3), last_offset, append_time });
        }
        let last = of_epoch[of_epoch.len() - 1];
        if line == last.1 + i64::from(last.2) {
            return Ok(Verdict::Append);
        }
        Err("out of order")
    }
}

fn wrap(line: i64) -> i32 {
    (line % (1 << 31)) as i32
}

fn told(result: Result<Verdict, SequenceError>) -> Result<Verdict, &'static str> {
    result.map_err(|error| match error {
        SequenceError::Fenced { .. } => "fenced",
        SequenceError::OutOfOrder { .. } => "out of order",
    })
}

#[derive(Clone, Debug)]
enum Send {
    /// What comes next.
    Next { count: i32 },
    /// A batch of earlier, counted from the latest.
    Again { back: usize },
    /// Any range near the latest.
    Wild { from: i64, count: i32 },
    /// A new instance of the producer; it begins where it should not if `late`.
    NewEpoch { late: bool, count: i32 },
    /// An old instance writes on.
    OldEpoch { count: i32 },
}

fn send() -> impl Strategy<Value = Send> {
    prop_oneof![
        6 => (1i32..6).prop_map(|count| Send::Next { count }),
        3 => (0usize..9).prop_map(|back| Send::Again { back }),
        2 => (-40i64..10, 1i32..6).prop_map(|(from, count)| Send::Wild { from, count }),
        1 => (any::<bool>(), 1i32..6).prop_map(|(late, count)| Send::NewEpoch { late, count }),
        1 => (1i32..6).prop_map(|count| Send::OldEpoch { count }),
    ]
}

proptest! {
    #[test]
    fn as_if_every_batch_were_remembered(sends in prop::collection::vec((0i64..3, send()), 1..120)) {
        let mut table = ProducerTable::new(EXPIRATION_MS);
        table.update(0, &header(-1, -1, -1, 1, 0));
        let mut models: [Model; 3] = Default::default();
        let mut log_end = 1;
        for (id, send) in sends {
            let model = &mut models[id as usize];
            let last = model.batches.last().copied().unwrap_or((0, LINE_START - 1, 1, 0));
            let next = last.1 + i64::from(last.2);
            // An epoch's line begins at a multiple of the wrap, but for the very first, which may begin anywhere.
            let (epoch, line, count) = match send {
                Send::Next { count } => (last.0, next, count),
                Send::Again { back } => {
                    let index = model.batches.len().wrapping_sub(back + 1);
                    model.batches.get(index).map_or((last.0, next, 1), |b| (b.0, b.1, b.2))
                }
                Send::Wild { from, count } => (last.0, next + from, count),
                Send::NewEpoch { late, count } => (last.0 + 1, (1 << 32) + i64::from(late), count),
                Send::OldEpoch { count } => (last.0 - 1, next, count),
            };
            if epoch < 0 {
                continue;
            }
            let header = header(id, epoch, wrap(line), count, log_end);
            let verdict = table.check(0, &header);
            prop_assert_eq!(told(verdict), model.check(epoch, line, count), "{:?}", header);
            if verdict == Ok(Verdict::Append) {
                table.update(0, &header);
                model.batches.push((epoch, line, count, log_end));
                log_end += i64::from(count);
            }
            let snapshot = table.snapshot();
            prop_assert_eq!(ProducerTable::restore(EXPIRATION_MS, &snapshot).unwrap().snapshot(), snapshot);
        }
        // What recovery reads from the log gives the same table.
        let mut found: Vec<BatchHeader> = vec![header(-1, -1, -1, 1, 0)];
        for (id, model) in models.iter().enumerate() {
            found.extend(model.batches.iter().map(|b| header(id as i64, b.0, wrap(b.1), b.2, b.3)));
        }
        found.sort_by_key(|h| h.base_offset);
        let mut recovered = ProducerTable::new(EXPIRATION_MS);
        found.iter().for_each(|h| recovered.apply_recovered(0, h));
        prop_assert_eq!(recovered.snapshot(), table.snapshot());
    }
}

#[test]
fn the_number_of_producers_is_bounded_and_the_longest_idle_go() {
    let mut table = ProducerTable::new(EXPIRATION_MS);
    let max = PRODUCERS_PER_PARTITION_MAX as i64;
    for id in 0..max {
        table.update(0, &header(id, 0, 0, 1, id));
    }
    table.update(0, &header(0, 0, 1, 1, max)); // writes again, so it stays
    assert_eq!(table.len(), PRODUCERS_PER_PARTITION_MAX);
    table.update(0, &header(max, 0, 0, 1, max + 1));
    assert_eq!(table.len(), PRODUCERS_PER_PARTITION_MAX - PRODUCERS_EVICTED_AT_ONCE + 1);
    let first_left: Vec<i64> = table.active(0).take(2).map(|p| p.producer_id.0).collect();
    assert_eq!(first_left, [0, PRODUCERS_EVICTED_AT_ONCE as i64 + 1]);
    // One that was forgotten writes on with whatever sequence it is at.
    assert_eq!(table.check(0, &header(1, 0, 77, 1, 0)), Ok(Verdict::Append));
    table.evict_oldest(usize::MAX);
    assert!(table.is_empty());
}

#[test]
fn a_refused_first_batch_is_not_overtaken() {
    let mut table = ProducerTable::new(EXPIRATION_MS);
    table.update(0, &header(1, 0, 0, 1, 0));
    let (first, second) = (header(7, 2, 40, 3, 1), header(7, 2, 43, 1, 1));
    table.refuse(10, &first);
    table.refuse(10, &second); // behind the first, refused with it
    let early = table.check(10, &second);
    assert_eq!(early, Err(SequenceError::OutOfOrder { sequence: 43, expected: 40 }));
    assert_eq!(table.check(10, &header(7, 3, 5, 1, 1)), Ok(Verdict::Append), "a newer instance owes nothing");
    assert_eq!(table.check(10, &header(8, 2, 43, 1, 1)), Ok(Verdict::Append), "nor does another producer");
    table.update(11, &first);
    table.update(11, &header(7, 2, 43, 1, 4));
    table.refuse(12, &header(7, 2, 44, 1, 5));
    table.truncate_to(Offset(1));
    assert_eq!(table.check(12, &second), Ok(Verdict::Append), "it was written, so nothing is owed");
}

#[test]
fn what_is_refused_is_bounded_and_forgotten_in_time() {
    let mut table = ProducerTable::new(EXPIRATION_MS);
    table.update(0, &header(1, 0, 0, 1, 0));
    for id in 0..PRODUCERS_PER_PARTITION_MAX as i64 + 10 {
        table.refuse(10, &header(1000 + id, 0, 0, 1, 1));
    }
    assert_eq!(table.refused.len(), PRODUCERS_PER_PARTITION_MAX);
    let last = header(1000 + PRODUCERS_PER_PARTITION_MAX as i64 + 9, 0, 5, 1, 1);
    assert!(table.check(10, &last).is_err());
    table.expire(10 + EXPIRATION_MS);
    assert_eq!(table.refused.len(), 0);
    assert_eq!(table.check(10 + EXPIRATION_MS, &last), Ok(Verdict::Append));
}

#[test]
fn snapshots_that_contradict_themselves_are_refused() {
    let mut table = ProducerTable::new(EXPIRATION_MS);
    for id in [3, 5] {
        table.update(0, &header(id, 0, 0, 2, id * 10));
        table.update(0, &header(id, 0, 2, 2, id * 10 + 2));
    }
    let good = table.snapshot();
    let refused = |change: &dyn Fn(&mut ProducerSnapshot), id: i64| {
        let mut snapshot = good.clone();
        change(&mut snapshot);
        let restored = ProducerTable::restore(EXPIRATION_MS, &snapshot);
        assert_eq!(restored.map(drop).unwrap_err(), SnapshotError(ProducerId(id)));
    };
    refused(&|s| s.producers.swap(0, 1), 3);
    refused(&|s| s.producers[1].producer_id = ProducerId(3), 3);
    refused(&|s| s.producers[0].window_len = 0, 3);
    refused(&|s| s.producers[0].window_len = 6, 3);
    refused(&|s| s.producers[1].window[1].last_offset = Offset(51), 5);
    refused(&|s| s.producers[1].window[1].last_sequence = 5, 5);
    refused(&|s| s.producers[1].epoch = ProducerEpoch(-1), 5);
    let state = good.producers[0];
    let parts = |batches: &[BatchState]| {
        ProducerState::from_parts(state.producer_id, state.epoch, state.seen, batches)
    };
    assert_eq!(parts(state.window()), Some(state));
    assert_eq!(parts(&[state.window[0]; 6]), None);
    assert_eq!(parts(&[]), None);
}

#[test]
fn an_idle_table_is_small() {
    assert!(size_of::<ProducerTable>() <= 64);
}
