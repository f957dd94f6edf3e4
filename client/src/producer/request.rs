//! Produce requests that are written straight into the buffer they are sent from, and their responses read where they
//! were received: nothing is allocated and no batch is copied.
//!
//! Lengths have four bytes in these versions, so that a batch can be written before its length is known. Later versions
//! say the same with fewer bytes.

use super::Identity;
use flumen_wire::ErrorCode;
use flumen_wire::api::ApiKey;
use flumen_wire::batch::BatchBuilder;
use flumen_wire::codec::{DecodeError, Reader, Sink, Writer};
use flumen_wire::compression::Compression;

/// The versions that are written here, the newest of which brokers know since Kafka 2.4.
pub const VERSIONS: (i16, i16) = (3, 8);

/// What each Produce request says, whatever it holds.
#[derive(Clone, Debug)]
pub struct Head<'a> {
    /// One of [`VERSIONS`].
    pub version: i16,
    /// What the client calls itself.
    pub client_id: &'a str,
    /// -1, 0 or 1.
    pub acks: i16,
    /// How long the broker may take.
    pub timeout_ms: i32,
}

/// A request in the making: [`RequestWriter::topic`] as often as announced, behind each [`RequestWriter::batch`] as often
/// as announced, [`RequestWriter::end`].
#[derive(Debug)]
pub struct RequestWriter {
    buffer: Vec<u8>,
    begin: usize,
}

impl RequestWriter {
    /// Begins a frame of so many topics behind what `buffer` holds.
    pub fn new(buffer: Vec<u8>, head: &Head<'_>, correlation_id: i32, topics: usize) -> RequestWriter {
        assert!(
            (VERSIONS.0..=VERSIONS.1).contains(&head.version),
            "version {} is not written here",
            head.version
        );
        let begin = buffer.len();
        let mut writer = Writer::append_to(buffer);
        writer.i32(0); // its length, once that is known
        writer.i16(ApiKey::Produce as i16);
        writer.i16(head.version);
        writer.i32(correlation_id);
        writer.string(head.client_id, false);
        writer.nullable_string(None, false); // no transactional id
        writer.i16(head.acks);
        writer.i32(head.timeout_ms);
        writer.i32(topics as i32);
        RequestWriter { buffer: writer.into_bytes(), begin }
    }

    /// Goes on with a topic, of which so many batches follow.
    pub fn topic(&mut self, name: &str, batches: usize) {
        let mut writer = Writer::append_to(std::mem::take(&mut self.buffer));
        writer.string(name, false);
        writer.i32(batches as i32);
        self.buffer = writer.into_bytes();
    }

    /// Adds a batch; `fill` puts the records into it. With an identity the batch's first sequence number is beside it.
    pub fn batch(
        &mut self,
        partition: i32,
        compression: Compression,
        identity: Option<(Identity, i32)>,
        scratch: &mut Vec<u8>,
        fill: impl FnOnce(&mut BatchBuilder),
    ) {
        let mut writer = Writer::append_to(std::mem::take(&mut self.buffer));
        writer.i32(partition);
        let length_at = writer.bytes().len();
        writer.i32(0);
        let mut builder = BatchBuilder::behind(compression, writer.into_bytes());
        if let Some((identity, sequence)) = identity {
            builder = builder.producer(identity.id, identity.epoch, sequence);
        }
        fill(&mut builder);
        self.buffer = builder.finish(scratch);
        self.set_length(length_at);
    }

    /// The buffer, with the whole frame at its end.
    pub fn end(mut self) -> Vec<u8> {
        self.set_length(self.begin);
        self.buffer
    }

    fn set_length(&mut self, at: usize) {
        let length = (self.buffer.len() - at - 4) as i32;
        self.buffer[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// What a broker says of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed<'a> {
    /// Of which topic.
    pub topic: &'a str,
    /// Of which partition.
    pub partition: i32,
    /// What came of it.
    pub error: ErrorCode,
    /// The offset of its first record.
    pub base_offset: i64,
}

/// Reads a response to one of [`VERSIONS`].
pub fn read_response<'a>(
    body: &'a [u8],
    version: i16,
    mut each: impl FnMut(Placed<'a>),
) -> Result<(), DecodeError> {
    let mut reader = Reader::new(body);
    // Values without a size take no memory, however many a peer claims.
    reader.array(false, 6, |reader| {
        let topic = reader.string(false)?;
        reader.array(false, 22, |reader| {
            let partition = reader.i32()?;
            let error = ErrorCode::from_code(reader.i16()?);
            let base_offset = reader.i64()?;
            let _log_append_time_ms = reader.i64()?;
            if version >= 5 {
                let _log_start_offset = reader.i64()?;
            }
            if version >= 8 {
                reader.array(false, 6, |reader| {
                    reader.i32()?;
                    reader.nullable_string(false).map(drop)
                })?;
                reader.nullable_string(false)?;
            }
            each(Placed { topic, partition, error, base_offset });
            Ok(())
        })?;
        Ok(())
    })?;
    let _throttle_time_ms = reader.i32()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_wire::batch::NewRecord;
    use flumen_wire::codec::{Decode, Encode};
    use flumen_wire::frame::RequestHeader;
    use flumen_wire::messages::produce_request::ProduceRequest;
    use flumen_wire::messages::produce_response::{
        PartitionProduceResponse, ProduceResponse, TopicProduceResponse,
    };

    fn builder(sequence: i32) -> BatchBuilder {
        BatchBuilder::new(Compression::Lz4).producer(7, 1, sequence)
    }

    fn fill(builder: &mut BatchBuilder) {
        for value in [&b"one"[..], b"two"] {
            builder.push(NewRecord { value: Some(value), timestamp: 5, ..Default::default() });
        }
    }

    #[test]
    fn a_request_is_what_the_codec_reads() {
        for version in VERSIONS.0..=VERSIONS.1 {
            let head = Head { version, client_id: "me", acks: -1, timeout_ms: 9 };
            let identity = Identity { id: 7, epoch: 1 };
            let mut scratch = Vec::new();
            let mut writer = RequestWriter::new(b"before".to_vec(), &head, 33, 2);
            writer.topic("a", 2);
            writer.batch(0, Compression::Lz4, Some((identity, 4)), &mut scratch, fill);
            writer.batch(3, Compression::Lz4, Some((identity, 6)), &mut scratch, fill);
            writer.topic("b", 1);
            writer.batch(1, Compression::None, None, &mut scratch, fill);
            let bytes = writer.end();
            assert!(bytes.starts_with(b"before"));
            let frame = &bytes[6..];
            assert_eq!(frame[..4], ((frame.len() - 4) as i32).to_be_bytes());

            let mut reader = Reader::new(&frame[4..]);
            let header = RequestHeader::decode(&mut reader).expect("a header");
            assert_eq!(
                (header.api_version, header.correlation_id, header.client_id),
                (version, 33, Some("me"))
            );
            let request = ProduceRequest::decode(&mut reader, version).expect("a body");
            assert_eq!(reader.finish(), Ok(()));
            assert_eq!((request.acks, request.timeout_ms, request.transactional_id), (-1, 9, None));
            let (mut first, mut second) = (builder(4), builder(6));
            let mut third = BatchBuilder::new(Compression::None);
            fill(&mut first);
            fill(&mut second);
            fill(&mut third);
            let found: Vec<_> = request
                .topic_data
                .iter()
                .flat_map(|topic| topic.partition_data.iter().map(|one| (topic.name, one.index, one.records)))
                .collect();
            let (first, second, third) = (first.build(), second.build(), third.build());
            assert_eq!(
                found,
                [("a", 0, Some(&first[..])), ("a", 3, Some(&second[..])), ("b", 1, Some(&third[..]))]
            );
        }
    }

    #[test]
    fn a_response_is_what_the_codec_writes() {
        let partition = |index, error_code, base_offset| PartitionProduceResponse {
            index,
            error_code,
            base_offset,
            ..Default::default()
        };
        let topic = |name, partition_responses| TopicProduceResponse {
            name,
            partition_responses,
            ..Default::default()
        };
        let responses = vec![
            topic("a", vec![partition(0, 0, 8), partition(3, 6, -1)]),
            topic("b", vec![partition(1, 0, 9)]),
        ];
        let response = ProduceResponse { responses, ..Default::default() };
        for version in VERSIONS.0..=VERSIONS.1 {
            let mut writer = Writer::new();
            response.write(&mut writer, version);
            let bytes = writer.into_bytes();
            let mut found = Vec::new();
            let each = |one: Placed<'_>| {
                found.push((one.topic.to_owned(), one.partition, one.error, one.base_offset))
            };
            read_response(&bytes, version, each).expect("readable");
            let expected = [
                ("a".to_owned(), 0, ErrorCode::None, 8),
                ("a".to_owned(), 3, ErrorCode::NotLeaderOrFollower, -1),
                ("b".to_owned(), 1, ErrorCode::None, 9),
            ];
            assert_eq!(found, expected);
            for cut in 0..bytes.len() {
                assert!(read_response(&bytes[..cut], version, |_| {}).is_err());
            }
        }
    }
}
