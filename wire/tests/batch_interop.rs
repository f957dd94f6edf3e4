//! Batches written by others: golden bytes of the Java client 4.3.1 (`MemoryRecordsBuilder`) and of kafka-python
//! (`DefaultRecordBatchBuilder`), each with the same four records; and the `kafka-protocol` crate, both ways.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use flumen_wire::batch::{BatchBuilder, BatchHeader, Batches, CheckRules, NewRecord, RawBatch, check};
use flumen_wire::compression::Compression;
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records as oracle;

const BASE_TIMESTAMP: i64 = 1_700_000_000_000;
const BASE_SEQUENCE: i32 = i32::MAX - 1;

fn opening() -> CheckRules {
    CheckRules { open_compressed: true, ..CheckRules::default() }
}

#[track_caller]
fn assert_is_the_golden_batch(bytes: &[u8], compression: Compression) {
    let checked = check(bytes, &opening()).unwrap();
    assert_eq!((checked.min_timestamp, checked.max_timestamp), (BASE_TIMESTAMP, BASE_TIMESTAMP + 21));
    let header = checked.header;
    assert_eq!(header.compression(), Ok(compression));
    assert_eq!((header.producer_id, header.producer_epoch), (4711, 3));
    assert_eq!((header.base_sequence, header.last_sequence()), (BASE_SEQUENCE, 1));
    let batch = Batches::new(bytes).next().unwrap().unwrap();
    let set = batch.records(1 << 20).unwrap();
    let value = b"value ".repeat(40);
    for (i, record) in set.iter().enumerate() {
        let record = record.unwrap();
        assert_eq!((record.offset, record.timestamp), (i as i64, BASE_TIMESTAMP + 7 * i as i64));
        let key = format!("key-{i}");
        assert_eq!(record.key, (i != 1).then_some(key.as_bytes()));
        assert_eq!(record.value, (i != 2).then_some(&value[..]));
        let headers: Vec<_> = record.headers.collect();
        let expected: [(&[u8], Option<&[u8]>); 2] = [(b"h", Some(b"x")), (b"null", None)];
        assert_eq!(headers, if i == 3 { &expected[..] } else { &[] });
    }
    assert_eq!(set.iter().count(), 4);
}

macro_rules! golden {
    ($($name:ident $writer:literal;)*) => {$(
        #[test]
        fn $name() {
            for compression in Compression::ALL {
                let path = format!("{}/tests/golden/{}-{}.batch", env!("CARGO_MANIFEST_DIR"), $writer, compression);
                assert_is_the_golden_batch(&std::fs::read(path).unwrap(), compression);
            }
        }
    )*};
}

golden! {
    the_java_clients_batches_are_read "java";
    kafka_pythons_batches_are_read "kafka-python";
}

fn our_batch(compression: Compression) -> Vec<u8> {
    let mut builder = BatchBuilder::new(compression).producer(4711, 3, BASE_SEQUENCE);
    let value = b"value ".repeat(40);
    for i in 0..4 {
        let key = format!("key-{i}");
        let headers: &[(&[u8], Option<&[u8]>)] = &[(b"h", Some(b"x")), (b"null", None)];
        builder.push(NewRecord {
            timestamp: BASE_TIMESTAMP + 7 * i,
            key: (i != 1).then_some(key.as_bytes()),
            value: (i != 2).then_some(&value),
            headers: if i == 3 { headers } else { &[] },
        });
    }
    builder.build()
}

/// Without compression there is one way to write a batch.
#[test]
fn ours_is_byte_for_byte_javas() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/java-none.batch");
    assert_eq!(our_batch(Compression::None), std::fs::read(path).unwrap());
}

#[test]
fn the_oracle_reads_ours() {
    for compression in Compression::ALL {
        let mut bytes = Bytes::from(our_batch(compression));
        let set = oracle::RecordBatchDecoder::decode(&mut bytes).unwrap();
        assert_eq!(set.records.len(), 4, "{compression}");
        for (i, record) in set.records.iter().enumerate() {
            assert_eq!(record.timestamp, BASE_TIMESTAMP + 7 * i as i64);
            assert_eq!((record.producer_id, record.producer_epoch), (4711, 3));
            assert_eq!(record.key.is_none(), i == 1);
            assert_eq!(record.value.as_ref().map(Bytes::len), (i != 2).then_some(240));
            assert_eq!(record.headers.len(), if i == 3 { 2 } else { 0 });
        }
    }
}

#[test]
fn we_read_the_oracles() {
    let codecs = [
        oracle::Compression::None,
        oracle::Compression::Gzip,
        oracle::Compression::Snappy,
        oracle::Compression::Lz4,
        oracle::Compression::Zstd,
    ];
    for (theirs, ours) in codecs.into_iter().zip(Compression::ALL) {
        let value = Bytes::from(b"value ".repeat(40));
        let records: Vec<oracle::Record> = (0..4)
            .map(|i| oracle::Record {
                transactional: false,
                control: false,
                delete_horizon: false,
                partition_leader_epoch: -1,
                producer_id: 4711,
                producer_epoch: 3,
                timestamp_type: oracle::TimestampType::Creation,
                offset: i,
                sequence: i as i32,
                timestamp: BASE_TIMESTAMP + 7 * i,
                key: (i != 1).then(|| Bytes::from(format!("key-{i}"))),
                value: (i != 2).then(|| value.clone()),
                headers: if i == 3 {
                    IndexMap::from([(StrBytes::from("h"), Some(Bytes::from("x")))])
                } else {
                    IndexMap::new()
                },
            })
            .collect();
        let mut bytes = bytes::BytesMut::new();
        let options = oracle::RecordEncodeOptions { version: 2, compression: theirs };
        oracle::RecordBatchEncoder::encode(&mut bytes, &records, &options).unwrap();
        let checked = check(&bytes, &opening()).unwrap();
        assert_eq!(checked.header.compression(), Ok(ours));
        assert_eq!(checked.header, BatchHeader::parse(&bytes).unwrap());
        let batch: RawBatch<'_> = Batches::new(&bytes).next().unwrap().unwrap();
        let set = batch.records(1 << 20).unwrap();
        assert_eq!(set.iter().filter(|record| record.as_ref().unwrap().value == Some(&value)).count(), 3);
    }
}
