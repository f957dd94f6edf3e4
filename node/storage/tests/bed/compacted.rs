//! What a compacted log may hold: of each batch that was sent, the records that are left; of each key, the last one.
//!
//! Old values may be gone or still there, in any batch; a tombstone may be gone once its time is over, and with it
//! everything older of its key. Nothing else may be missing, nothing changes its offset or content, and what a completed
//! recovery has not shown never comes back.

use std::collections::BTreeMap;
use std::ops::Range;

use flumen_wire::batch::{BatchHeader, Batches};

use crate::model::{Candidate, Partition, Reported, whole_batches};

/// A record: offset, timestamp, key, value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    offset: i64,
    timestamp: i64,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

fn held(bytes: &[u8]) -> Vec<Held> {
    let raw = Batches::new(bytes).next().expect("a batch").expect("well formed");
    let records = raw.records(1 << 20).expect("it opens");
    let one = |record: flumen_wire::batch::Record<'_>| Held {
        offset: record.offset,
        timestamp: record.timestamp,
        key: record.key.unwrap_or_default().to_vec(),
        value: record.value.map(<[u8]>::to_vec),
    };
    records.iter().map(|record| one(record.expect("it reads"))).collect()
}

impl Candidate {
    /// Whether these bytes are this batch, or what compaction may leave of it.
    pub(crate) fn is(&self, bytes: &[u8], compacted: bool) -> bool {
        if *self.bytes == *bytes {
            return true;
        }
        let Ok(header) = BatchHeader::parse(bytes) else { return false };
        let place = |h: &BatchHeader| {
            let producer = (h.producer_id, h.producer_epoch, h.base_sequence);
            (h.base_offset, h.last_offset_delta, h.partition_leader_epoch, producer)
        };
        if !compacted || place(&header) != place(&self.header) || !flumen_wire::batch::crc_matches(bytes) {
            return false;
        }
        let all = held(&self.bytes);
        held(bytes).iter().all(|left| all.contains(left))
    }
}

impl Partition {
    /// The last record of each key, by what is believed to be in the log.
    fn last_of_keys(&self, believed: impl Fn(&Candidate) -> bool) -> BTreeMap<Vec<u8>, Held> {
        let batches = self.log.values().flatten().filter(|candidate| believed(candidate));
        batches.flat_map(|candidate| held(&candidate.bytes)).map(|held| (held.key.clone(), held)).collect()
    }

    /// The greatest timestamp in a range of offsets, of what compaction leaves there: values that are the last of their
    /// keys. (Retention goes by what is left of a segment.)
    pub(crate) fn youngest_value(&self, offsets: Range<i64>) -> Option<i64> {
        let last = self.last_of_keys(|candidate| !candidate.failed);
        let there = last.values().filter(|held| offsets.contains(&held.offset) && held.value.is_some());
        there.map(|held| held.timestamp).max()
    }

    /// What a read returned that was asked for `offset`: batches that were sent, or what is left of them. What lies between
    /// them, and is not there, was overwritten or deleted.
    pub(crate) fn seen_compacted(&mut self, offset: i64, bytes: &[u8], high_watermark: i64) {
        let directory = self.directory.clone();
        let (mut next, mut shown) = (offset, Vec::new());
        for batch in whole_batches(&directory, bytes) {
            let (base, last) = (batch.header.base_offset, batch.header.last_offset());
            assert!(last >= next, "{directory}: {base}..={last} is served where {next} follows");
            assert!(next == offset || base >= next, "{directory}: {base} is served twice");
            assert!(last < high_watermark, "{directory}: {last} is served, above the high watermark");
            self.confirm_seen(base, batch.bytes);
            shown.extend(held(batch.bytes).into_iter().map(|held| held.offset));
            next = last + 1;
        }
        let last = self.last_of_keys(|candidate| !candidate.failed);
        for held in last.values().filter(|held| (offset..next).contains(&held.offset) && held.value.is_some())
        {
            let confirmed =
                self.log.range(..=held.offset).next_back().is_some_and(|(_, here)| here[0].confirmed);
            let there = shown.contains(&held.offset) || !confirmed;
            assert!(there, "{directory}: the last record of a key, at {}, was passed over", held.offset);
        }
    }

    /// A whole log after a recovery, checked; what of it is there is the truth from now on.
    pub(crate) fn compacted_truth(
        &self,
        reported: Reported,
        content: &[u8],
        now_ms: i64,
    ) -> BTreeMap<i64, Vec<Candidate>> {
        let directory = &self.directory;
        let Reported { log_start, log_end, .. } = reported;
        let (mut next, mut truth, mut shown) = (log_start, BTreeMap::new(), BTreeMap::new());
        for batch in whole_batches(directory, content) {
            let (base, last) = (batch.header.base_offset, batch.header.last_offset());
            let first = truth.is_empty() && base <= log_start && log_start <= last;
            assert!(
                first || base >= next,
                "{directory}: after recovery {base} follows, {next} at least should"
            );
            truth.insert(base, self.taken_from(base, batch.bytes));
            shown.extend(held(batch.bytes).into_iter().map(|held| (held.offset, held)));
            next = last + 1;
        }
        assert_eq!(next, log_end, "{directory}: after recovery the log ends early");
        let mut last = self.last_of_keys(|candidate| candidate.confirmed);
        for held in shown.values() {
            let newer = last.get(&held.key).is_none_or(|last| last.offset < held.offset);
            if newer {
                last.insert(held.key.clone(), held.clone());
            }
        }
        for held in last.values().filter(|held| held.offset >= log_start) {
            let Held { offset, timestamp, .. } = held;
            if shown.contains_key(offset) {
                continue;
            }
            assert!(held.value.is_none(), "{directory}: the last record of its key, at {offset}, is lost");
            let age = now_ms - timestamp;
            let term = self.config.delete_retention_ms;
            assert!(age >= term, "{directory}: a tombstone at {offset} is gone after {age} ms of {term}");
            let older = shown.values().find(|other| other.key == held.key);
            assert!(older.is_none(), "{directory}: deleted at {offset}, the key is back: {older:?}");
        }
        truth
    }
}
