//! What a fetch brought of one partition, and its records.

use super::ConsumerSettings;
use crate::error::Error;
use crate::limits::RESPONSE_BYTES_MAX;
use crate::link::Answer;
use crate::metadata::TopicPartition;
use bytes::Bytes;
use flumen_wire::batch::{BatchError, Batches, Record};
use flumen_wire::messages::fetch_request::FetchRequest;
use flumen_wire::messages::fetch_response::PartitionData;
use flumen_wire::{ApiKey, ErrorCode};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::rc::Rc;

/// What came of one partition. The bytes are those of the response.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Which.
    pub at: TopicPartition,
    /// From where it was asked for.
    pub asked: i64,
    /// Where to ask next.
    pub next_offset: i64,
    /// The end of what may be read.
    pub end: i64,
    /// Where the log starts; -1 where the broker does not say.
    pub log_start_offset: i64,
    pub(super) error: ErrorCode,
    records: Bytes,
    /// Of aborted transactions: producer and first offset, by offset. None: all records are wanted.
    aborted: Option<Vec<(i64, i64)>>,
}

/// Reads an answer. A partition that nobody asked for is malformed.
pub(super) fn read(
    answer: Answer<FetchRequest<'static>>,
    asked: &[(TopicPartition, i64)],
    settings: &ConsumerSettings,
) -> Result<Vec<Fetched>, Error> {
    let address = answer.address().clone();
    let malformed =
        |why: String| Error::Malformed { address: address.clone(), api: Some(ApiKey::Fetch), why };
    let response = answer.read()?;
    Error::check(response.error_code, None, || format!("fetching from {address}"))?;
    let mut all = Vec::new();
    for topic in &response.responses {
        let name: Rc<str> = topic.topic.into();
        for one in &topic.partitions {
            let at = TopicPartition { topic: name.clone(), partition: one.partition_index };
            let Some((_, offset)) = asked.iter().find(|(asked, _)| *asked == at) else {
                return Err(malformed(format!("{at} was not asked for")));
            };
            let bytes = one.records.and_then(|records| records.as_slice()).unwrap_or_default();
            let records = answer.body().slice_ref(bytes);
            let (next_offset, whole) = extent(&records, *offset, settings.check_crcs)
                .map_err(|error| malformed(format!("{at} from offset {offset}: {error}")))?;
            if whole == 0 && !records.is_empty() {
                return Err(malformed(format!("{at}: the batch at offset {offset} does not come whole")));
            }
            all.push(Fetched {
                asked: *offset,
                next_offset,
                end: if settings.read_committed { one.last_stable_offset } else { one.high_watermark },
                log_start_offset: one.log_start_offset,
                error: ErrorCode::from_code(one.error_code),
                records: records.slice(..whole),
                aborted: settings.read_committed.then(|| aborted(one)),
                at,
            });
        }
    }
    Ok(all)
}

/// The offset behind the whole batches, and their bytes. What comes before a batch that is corrupt is handed out; it is an
/// error when it is asked for itself.
fn extent(records: &[u8], asked: i64, check_crcs: bool) -> Result<(i64, usize), BatchError> {
    let mut batches = Batches::new(records);
    let mut next_offset = asked;
    let mut whole = 0;
    for batch in &mut batches {
        let checked = batch.and_then(|batch| match check_crcs {
            true => batch.check_crc().map(|()| batch),
            false => Ok(batch),
        });
        match checked {
            Ok(batch) => {
                next_offset = next_offset.max(batch.header.next_offset());
                whole = batch.position + batch.bytes.len();
            }
            Err(_) if next_offset > asked => break,
            Err(error) => return Err(error),
        }
    }
    Ok((next_offset, whole))
}

fn aborted(partition: &PartitionData<'_>) -> Vec<(i64, i64)> {
    let mut aborted: Vec<_> = partition
        .aborted_transactions
        .iter()
        .flatten()
        .map(|one| (one.producer_id, one.first_offset))
        .collect();
    aborted.sort_by_key(|(_, first_offset)| *first_offset);
    aborted
}

impl Fetched {
    /// Bytes of its batches.
    pub fn len_bytes(&self) -> usize {
        self.records.len()
    }

    /// Its batches as they came.
    pub fn batches(&self) -> Batches<'_> {
        Batches::new(&self.records)
    }

    /// Hands out its records in order, without what comes before the asked offset, control records and records of
    /// aborted transactions. Ends early where `each` breaks, and says so.
    pub fn for_each(
        &self,
        mut each: impl FnMut(&Record<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        let malformed = |error: BatchError| Error::Invalid(format!("{} cannot be read: {error}", self.at));
        let mut coming = self.aborted.iter().flatten().peekable();
        let mut aborted = BTreeSet::new();
        for batch in self.batches() {
            let batch = batch.map_err(malformed)?;
            let header = &batch.header;
            while let Some((producer, _)) = coming.next_if(|(_, first)| *first <= header.last_offset()) {
                aborted.insert(*producer);
            }
            if header.is_control() {
                // The end of a transaction, whichever.
                aborted.remove(&header.producer_id);
                continue;
            }
            if header.is_transactional() && aborted.contains(&header.producer_id) {
                continue;
            }
            for record in &batch.records(RESPONSE_BYTES_MAX).map_err(malformed)? {
                let record = record.map_err(malformed)?;
                if record.offset >= self.asked && each(&record).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_wire::batch::{BatchBuilder, NewRecord};
    use flumen_wire::compression::Compression;

    fn batch(builder: BatchBuilder, values: &[&str]) -> Vec<u8> {
        let mut builder = builder;
        for value in values {
            builder.push(NewRecord { value: Some(value.as_bytes()), ..Default::default() });
        }
        builder.build()
    }

    fn at(offset: i64, producer: i64) -> BatchBuilder {
        BatchBuilder::new(Compression::None).at(offset, 0).producer(producer, 0, 0).transactional()
    }

    fn values(fetched: &Fetched) -> Vec<String> {
        let mut seen = Vec::new();
        let each = |record: &Record<'_>| {
            seen.push(String::from_utf8(record.value.expect("a value").to_vec()).expect("text"));
            ControlFlow::Continue(())
        };
        assert_eq!(fetched.for_each(each).expect("readable"), ControlFlow::Continue(()));
        seen
    }

    #[test]
    fn aborted_records_control_records_and_earlier_ones_are_left_out() {
        let log = [
            batch(BatchBuilder::new(Compression::None).at(0, 0), &["early", "plain"]),
            batch(at(2, 7), &["aborted"]),
            batch(at(3, 8), &["committed"]),
            batch(at(4, 7).control(), &["marker"]),
            batch(at(5, 8).control(), &["marker"]),
            batch(at(6, 7), &["again"]),
        ]
        .concat();
        let mut fetched = Fetched {
            at: TopicPartition::new("t", 0),
            asked: 1,
            next_offset: 7,
            end: 7,
            log_start_offset: 0,
            error: ErrorCode::None,
            records: log.clone().into(),
            aborted: Some(vec![(7, 2)]),
        };
        assert_eq!(values(&fetched), ["plain", "committed", "again"]);
        fetched.aborted = None;
        assert_eq!(values(&fetched), ["plain", "aborted", "committed", "again"]);
        assert_eq!(extent(&log, 1, true), Ok((7, log.len())));
        // A batch that was cut is asked for again.
        assert_eq!(extent(&log[..log.len() - 1], 1, true).map(|(next, _)| next), Ok(6));
        // What comes before a corrupt batch is handed out.
        let last = batch(at(6, 7), &["again"]).len();
        let mut broken = log.clone();
        broken[log.len() - 1] ^= 1;
        assert_eq!(extent(&broken, 1, true), Ok((6, log.len() - last)));
        assert!(matches!(extent(&broken[log.len() - last..], 6, true), Err(BatchError::Crc { .. })));
        let mut broken = log;
        broken[70] ^= 1;
        assert!(matches!(extent(&broken, 1, true), Err(BatchError::Crc { .. })));
        assert!(extent(&broken, 1, false).is_ok());
    }
}
