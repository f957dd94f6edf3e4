//! Each fault of a batch by itself, what a broker changes in place, and walks over cut and broken bytes.

use super::*;
use crate::compression::Compression;
use proptest::prelude::*;

fn record(value: &[u8]) -> NewRecord<'_> {
    NewRecord { timestamp: 1_700_000_000_000, key: Some(b"key"), value: Some(value), headers: &[] }
}

fn batch_of(compression: Compression, count: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(compression);
    for _ in 0..count {
        builder.push(record(b"a value that is not too short"));
    }
    builder.build()
}

/// Changes bytes and makes the CRC right again, so that what follows the CRC check is tested.
fn patched(mut batch: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c(&batch[CRC_FROM..]);
    batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    batch
}

/// One record with a body of the test's making.
fn with_body(count: i32, body: &[u8]) -> Vec<u8> {
    let mut batch = batch_of(Compression::None, 1);
    batch.truncate(HEADER_LEN);
    batch.extend_from_slice(body);
    let length = (batch.len() - PREFIX_LEN) as i32;
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    let batch = patched(batch, 23, &(count - 1).to_be_bytes());
    patched(batch, 57, &count.to_be_bytes())
}

#[track_caller]
fn refused(batch: &[u8], error: BatchError) {
    assert_eq!(check(batch, &CheckRules::default()), Err(error));
}

#[test]
fn a_batch_ends_where_it_was_begun_as_it_is_built_elsewhere() {
    for compression in Compression::ALL {
        let mut builder = BatchBuilder::with_room(compression, vec![9; 10_000], 100);
        for value in [&b"first"[..], b"second", b""] {
            let (before, expected) = (builder.len_bytes(), builder.len_with(&record(value)));
            builder.push(record(value));
            assert_eq!(builder.len_bytes() - before, expected);
        }
        let built = builder.build();
        assert_eq!(builder.finish(&mut Vec::new())[100..], built);
        assert!(check(&built, &CheckRules::default()).is_ok());
    }
}

#[test]
fn good_batches_pass() {
    for compression in Compression::ALL {
        let batch = batch_of(compression, 7);
        let opened = CheckRules { open_compressed: true, keys_required: true, ..CheckRules::default() };
        for rules in [CheckRules::default(), opened] {
            let checked = check(&batch, &rules).unwrap();
            assert_eq!(checked.header.size(), batch.len());
            assert_eq!(checked.header.compression(), Ok(compression));
            assert_eq!(
                (checked.min_timestamp, checked.max_timestamp),
                (1_700_000_000_000, 1_700_000_000_000)
            );
        }
    }
}

#[test]
fn extent() {
    let batch = batch_of(Compression::None, 2);
    refused(&[], BatchError::Missing);
    for cut in [1, 11, 12, 16, 17, 60, 61, batch.len() - 1] {
        refused(&batch[..cut], BatchError::Missing);
    }
    refused(&[&batch[..], &batch[..]].concat(), BatchError::Several);
    refused(&[&batch[..], b"x"].concat(), BatchError::Several);
    for magic in [0, 1, 3, -1, 127] {
        refused(&patched(batch.clone(), 16, &[magic as u8]), BatchError::Magic(magic));
    }
    for length in [i32::MIN, -1, 0, 13, 14, 48] {
        refused(&patched(batch.clone(), 8, &length.to_be_bytes()), BatchError::Length(length));
    }
    refused(&patched(batch.clone(), 8, &i32::MAX.to_be_bytes()), BatchError::Missing);
    let rules = CheckRules { batch_bytes_max: batch.len() - 1, ..CheckRules::default() };
    assert_eq!(check(&batch, &rules), Err(BatchError::TooLarge { size: batch.len(), max: batch.len() - 1 }));
    let rules = CheckRules { batch_bytes_max: batch.len(), ..CheckRules::default() };
    assert!(check(&batch, &rules).is_ok());
}

#[test]
fn every_flipped_bit_under_the_crc_is_seen() {
    let batch = batch_of(Compression::Lz4, 3);
    for bit in CRC_AT * 8..batch.len() * 8 {
        let mut flipped = batch.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(check(&flipped, &CheckRules::default()).is_err(), "bit {bit}");
    }
}

#[test]
fn header_fields() {
    let batch = batch_of(Compression::None, 2);
    let count = |count: i32, last_offset_delta: i32| BatchError::Count { count, last_offset_delta };
    refused(&patched(batch.clone(), 0, &5i64.to_be_bytes()), BatchError::BaseOffset(5));
    refused(&patched(batch.clone(), 57, &3i32.to_be_bytes()), count(3, 1));
    refused(&patched(batch.clone(), 57, &0i32.to_be_bytes()), count(0, 1));
    refused(&patched(batch.clone(), 57, &(-1i32).to_be_bytes()), count(-1, 1));
    refused(&patched(batch.clone(), 23, &i32::MAX.to_be_bytes()), count(2, i32::MAX));
    refused(&BatchBuilder::new(Compression::None).build(), count(0, 0));
    refused(&patched(batch.clone(), 21, &[0, 5]), BatchError::UnknownCompression(5));
    refused(&patched(batch.clone(), 21, &[0, 8]), BatchError::TimestampType);
    refused(&patched(batch.clone(), 21, &[0, 0x20]), BatchError::Control);
    refused(&patched(batch.clone(), 21, &[0, 0x10]), BatchError::Producer { id: -1, epoch: -1 });
    let with_producer = |id, epoch, sequence| {
        let mut builder = BatchBuilder::new(Compression::None).producer(id, epoch, sequence);
        builder.push(record(b"v")).build()
    };
    refused(&with_producer(1, 0, -1), BatchError::Sequence(-1));
    refused(&with_producer(1, -1, 0), BatchError::Producer { id: 1, epoch: -1 });
    assert!(check(&with_producer(1, 0, 0), &CheckRules::default()).is_ok());
    let zstd = batch_of(Compression::Zstd, 1);
    let rules = CheckRules { zstd_allowed: false, ..CheckRules::default() };
    assert_eq!(check(&zstd, &rules), Err(BatchError::ZstdTooEarly));
}

/// A compressed batch that nobody opens says how many records it has: no more than there can be.
#[test]
fn records_of_a_compressed_batch() {
    for compression in Compression::ALL.into_iter().filter(|codec| *codec != Compression::None) {
        let mut builder = BatchBuilder::new(compression);
        for _ in 0..300_000 {
            builder.push(NewRecord { key: None, value: None, ..record(b"") });
        }
        assert!(check(&builder.build(), &CheckRules::default()).is_ok(), "{compression:?}");
        let claims = |count: i32| {
            let batch = patched(batch_of(compression, 2), 57, &count.to_be_bytes());
            patched(batch, 23, &(count - 1).to_be_bytes())
        };
        for count in [10_000_000, i32::MAX] {
            refused(&claims(count), BatchError::Count { count, last_offset_delta: count - 1 });
        }
    }
}

#[test]
fn record_structure() {
    use RecordFault::*;
    let fault = |index, fault| BatchError::Record { index, fault };
    // length, attributes, timestamp delta, offset delta, key, value, header count; numbers are zigzag
    let good = [14, 0, 0, 0, 1, 1, 0, 0];
    assert_eq!(good[0] / 2, 7);
    let good = [12, 0, 0, 0, 1, 1, 0];
    assert!(check(&with_body(1, &good), &CheckRules::default()).is_ok());
    refused(&with_body(2, &good), fault(1, Truncated));
    refused(&with_body(1, &[&good[..], &[0]].concat()), BatchError::Remainder(1));
    refused(&with_body(i32::MAX, &good), fault(1, Truncated));
    refused(&with_body(1, &good[..6]), fault(0, Truncated));
    refused(&with_body(1, &[0xff; 9]), fault(0, Varint));
    refused(&with_body(1, &[1]), fault(0, Length));
    refused(&with_body(1, &[0]), fault(0, Varint));
    refused(&with_body(1, &[12, 0, 0, 2, 1, 1, 0]), fault(0, OffsetDelta));
    refused(&with_body(2, &[good, good].concat()), fault(1, OffsetDelta));
    refused(&with_body(1, &[12, 0, 0, 0, 3, 1, 0]), fault(0, Length));
    refused(&with_body(1, &[12, 0, 0, 0, 8, 1, 0]), fault(0, Length));
    refused(&with_body(1, &[12, 0, 0, 0, 1, 1, 1]), fault(0, Header));
    refused(&with_body(1, &[12, 0, 0, 0, 1, 1, 2]), fault(0, Header));
    refused(&with_body(1, &[16, 0, 0, 0, 1, 1, 2, 1, 1]), fault(0, Header));
    refused(&with_body(1, &[14, 0, 0, 0, 1, 1, 0, 0]), fault(0, Remainder));
    let five = [20, 0, 0, 0, 1, 1, 0xfe, 0xff, 0xff, 0xff, 0x0f];
    refused(&with_body(1, &five), fault(0, Header));
    assert!(check(&with_body(1, &[18, 0, 0, 0, 1, 1, 2, 0, 1, 0][..9]), &CheckRules::default()).is_err());
    assert!(check(&with_body(1, &[16, 0, 0, 0, 1, 1, 2, 0, 1]), &CheckRules::default()).is_ok());
}

#[test]
fn codes_are_kafkas() {
    use crate::ErrorCode::*;
    use crate::compression::CompressionError;
    for (error, code) in [
        (BatchError::Missing, InvalidRecord),
        (BatchError::Several, InvalidRecord),
        (BatchError::Magic(0), InvalidRecord),
        (BatchError::Magic(1), InvalidRecord),
        (BatchError::Magic(3), CorruptMessage),
        (BatchError::Length(0), CorruptMessage),
        (BatchError::Crc { stored: 0, computed: 1 }, CorruptMessage),
        (BatchError::TooLarge { size: 2, max: 1 }, MessageTooLarge),
        (BatchError::Control, InvalidRecord),
        (BatchError::TimestampType, InvalidTimestamp),
        (BatchError::UnknownCompression(5), UnsupportedCompressionType),
        (BatchError::ZstdTooEarly, UnsupportedCompressionType),
        (BatchError::Record { index: 0, fault: RecordFault::Varint }, InvalidRecord),
        (BatchError::Decompress(CompressionError::Malformed(Compression::Lz4)), CorruptMessage),
        (BatchError::Decompress(CompressionError::TooLarge { limit: 1 }), MessageTooLarge),
    ] {
        assert_eq!(error.error_code(), code, "{error}");
    }
}

#[test]
fn compacted_topics_need_keys() {
    for compression in Compression::ALL {
        let mut builder = BatchBuilder::new(compression);
        builder.push(record(b"v")).push(NewRecord { key: None, ..record(b"v") });
        let batch = builder.build();
        assert!(check(&batch, &CheckRules::default()).is_ok());
        let rules = CheckRules { keys_required: true, ..CheckRules::default() };
        let error = check(&batch, &rules).unwrap_err();
        assert_eq!(error, BatchError::Record { index: 1, fault: RecordFault::NoKey });
        assert_eq!(error.record_index(), Some(1));
    }
}

#[test]
fn a_small_batch_that_opens_to_much_is_refused() {
    for compression in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let big = vec![0; 4 << 20];
        let mut builder = BatchBuilder::new(compression);
        let batch = builder.push(record(&big)).build();
        let mut rules =
            CheckRules { open_compressed: true, decompressed_bytes_max: 1 << 20, ..CheckRules::default() };
        let error = check(&batch, &rules).unwrap_err();
        let too_large = crate::compression::CompressionError::TooLarge { limit: 1 << 20 };
        assert_eq!(error, BatchError::Decompress(too_large));
        rules.decompressed_bytes_max = builder.len_bytes() - HEADER_LEN;
        assert!(check(&batch, &rules).is_ok());
    }
}

#[test]
fn timestamps_are_those_of_the_records() {
    let mut builder = BatchBuilder::new(Compression::None);
    for timestamp in [500, -1, 300, 900] {
        builder.push(NewRecord { timestamp, ..record(b"v") });
    }
    // a false maximum in the header is not believed
    let batch = patched(builder.build(), MAX_TIMESTAMP_AT, &i64::MAX.to_be_bytes());
    let checked = check(&batch, &CheckRules::default()).unwrap();
    assert_eq!((checked.min_timestamp, checked.max_timestamp), (300, 900));
    let mut mended = batch.clone();
    set_max_timestamp(&mut mended, checked.max_timestamp);
    assert_eq!(mended, builder.build());

    let mut builder = BatchBuilder::new(Compression::None);
    let batch = builder.push(NewRecord { timestamp: -1, ..record(b"v") }).build();
    let checked = check(&batch, &CheckRules::default()).unwrap();
    assert_eq!((checked.min_timestamp, checked.max_timestamp), (-1, -1));
}

#[test]
fn a_broker_changes_place_and_time_only() {
    let original = batch_of(Compression::Gzip, 3);
    let mut batch = original.clone();
    assign(&mut batch, 1 << 40, 17);
    assert!(crc_matches(&batch));
    let header = BatchHeader::parse(&batch).unwrap();
    assert_eq!((header.base_offset, header.partition_leader_epoch), (1 << 40, 17));
    assert_eq!((header.last_offset(), header.next_offset()), ((1 << 40) + 2, (1 << 40) + 3));
    assert_eq!(batch[CRC_AT..], original[CRC_AT..]);

    set_log_append_time(&mut batch, 42);
    assert!(crc_matches(&batch));
    let header = BatchHeader::parse(&batch).unwrap();
    assert_eq!((header.timestamp_type(), header.max_timestamp), (TimestampType::LogAppendTime, 42));
    assert_eq!(header.compression(), Ok(Compression::Gzip));
    let raw = Batches::new(&batch).next().unwrap().unwrap();
    let records = raw.records(1 << 20).unwrap();
    assert!(records.iter().all(|record| record.unwrap().timestamp == 42));
}

#[test]
fn a_batch_in_another_codec_is_the_same_batch() {
    for from in Compression::ALL {
        let original = batch_of(from, 5);
        let header = BatchHeader::parse(&original).unwrap();
        let records = Batches::new(&original).next().unwrap().unwrap().records(1 << 20).unwrap();
        for to in Compression::ALL {
            let changed = recompress(&original, to, 1 << 20).unwrap();
            assert!(crc_matches(&changed));
            let raw = Batches::new(&changed).next().unwrap().unwrap();
            assert_eq!((raw.header.compression(), raw.header.size()), (Ok(to), changed.len()));
            assert_eq!(raw.records(1 << 20).unwrap().body, records.body, "{from} to {to}");
            let same =
                |header: BatchHeader| (header.last_offset(), header.max_timestamp, header.record_count);
            assert_eq!(same(raw.header), same(header));
        }
    }
    let small = recompress(&batch_of(Compression::Gzip, 5), Compression::None, 10);
    assert!(matches!(small, Err(BatchError::Decompress(_))), "{small:?}");
}

#[test]
fn sequences_wrap() {
    assert_eq!(sequence_after(0, 0), 0);
    assert_eq!(sequence_after(i32::MAX, 0), i32::MAX);
    assert_eq!(sequence_after(i32::MAX, 1), 0);
    assert_eq!(sequence_after(i32::MAX - 2, 10), 7);
    assert_eq!(sequence_after(i32::MAX, i32::MAX), i32::MAX - 1);
}

#[test]
fn batches_back_to_back() {
    let parts: Vec<Vec<u8>> = (1..5).map(|count| batch_of(Compression::None, count)).collect();
    let all = parts.concat();
    let mut walk = Batches::new(&all);
    for (part, batch) in parts.iter().zip(&mut walk) {
        let batch = batch.unwrap();
        assert_eq!(batch.bytes, part);
        assert!(batch.crc_matches());
    }
    assert_eq!(walk.position(), all.len());
    assert!(walk.next().is_none() && walk.next_size().is_none());

    let whole = all.len() - parts[3].len();
    for cut in whole..all.len() {
        let mut walk = Batches::new(&all[..cut]);
        assert_eq!(walk.by_ref().filter(Result::is_ok).count(), 3);
        assert_eq!(walk.position(), whole);
        assert_eq!(walk.next_size(), (cut >= whole + 12).then_some(parts[3].len()));
    }
    let broken = patched(all.clone(), whole + 16, &[0]);
    let mut walk = Batches::new(&broken[..whole + 20]);
    assert_eq!(walk.by_ref().nth(3).unwrap().unwrap_err(), BatchError::Magic(0));
    assert!(walk.next().is_none());
    assert_eq!(walk.position(), whole);
}

#[test]
fn holes_of_compaction_are_read() {
    let mut builder = BatchBuilder::new(Compression::Zstd).at(100, 2);
    builder.skip_offsets(3).push(record(b"a")).skip_offsets(2).push(record(b"b"));
    let bytes = builder.build();
    let batch = Batches::new(&bytes).next().unwrap().unwrap();
    assert_eq!((batch.header.last_offset_delta, batch.header.record_count), (6, 2));
    let offsets: Vec<i64> =
        batch.records(1000).unwrap().iter().map(|record| record.unwrap().offset).collect();
    assert_eq!(offsets, [103, 106]);
}

#[derive(Clone, Debug)]
struct Made {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

fn made() -> impl Strategy<Value = Made> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300);
    let headers = prop::collection::vec((bytes(), prop::option::of(bytes())), 0..4);
    (any::<i64>(), prop::option::of(bytes()), prop::option::of(bytes()), headers)
        .prop_map(|(timestamp, key, value, headers)| Made { timestamp, key, value, headers })
}

proptest! {
    #[test]
    fn what_is_built_is_checked_and_read(
        made in prop::collection::vec(made(), 1..20), codec in 0usize..5, sequence in 0i32..,
    ) {
        let mut builder = BatchBuilder::new(Compression::ALL[codec]).producer(9, 1, sequence);
        for m in &made {
            let headers: Vec<(&[u8], Option<&[u8]>)> =
                m.headers.iter().map(|(k, v)| (&k[..], v.as_deref())).collect();
            builder.push(NewRecord {
                timestamp: m.timestamp, key: m.key.as_deref(), value: m.value.as_deref(), headers: &headers,
            });
        }
        let bytes = builder.build();
        let rules = CheckRules { open_compressed: true, ..CheckRules::default() };
        let checked = check(&bytes, &rules).unwrap();
        prop_assert_eq!(checked.max_timestamp, made.iter().map(|m| m.timestamp).max().unwrap().max(-1));
        let batch = Batches::new(&bytes).next().unwrap().unwrap();
        let records = batch.records(1 << 20).unwrap();
        for (i, (record, m)) in records.iter().zip(&made).enumerate() {
            let record = record.unwrap();
            prop_assert_eq!(record.offset, i as i64);
            prop_assert_eq!(record.timestamp, m.timestamp);
            prop_assert_eq!(record.key, m.key.as_deref());
            prop_assert_eq!(record.value, m.value.as_deref());
            let headers: Vec<_> = record.headers.map(|(k, v)| (k.to_vec(), v.map(<[u8]>::to_vec))).collect();
            prop_assert_eq!(&headers, &m.headers);
        }
        prop_assert_eq!(records.iter().count(), made.len());
    }

    /// `check` and the iterators agree: what passes is read without an error.
    #[test]
    fn what_passes_is_readable(flips in prop::collection::vec((61usize..300, any::<u8>()), 0..4)) {
        let mut batch = batch_of(Compression::None, 5);
        for (at, byte) in flips {
            if at < batch.len() {
                batch = patched(batch, at, &[byte]);
            }
        }
        let passes = check(&batch, &CheckRules::default()).is_ok();
        let raw = Batches::new(&batch).next().unwrap().unwrap();
        let readable = raw.records(1 << 20).unwrap().iter().all(|record| record.is_ok());
        prop_assert!(readable || !passes);
    }
}
