//! Frames: a length of four bytes, a header, a body.
//!
//! A server reads four bytes, asks [`frame_len`] whether to believe them, reads so many bytes, and takes the
//! [`RequestHeader`] off a [`Reader`] over them; the body follows in the same reader. [`encode_response`] makes the
//! answer's whole frame. A client goes the other way round with [`encode_request`] and [`decode_response_header`].

use std::fmt;

use crate::api::{is_flexible, response_header_version};
use crate::codec::{Counter, DecodeError, Message, Reader, Sink, Writer};
use crate::messages::ApiKey;

/// Length of the length before each frame.
pub const PREFIX_LEN: usize = 4;

/// Why a length before a frame is not believed. The connection cannot go on: where the next frame starts is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The length is below zero.
    Negative(i32),
    /// The length is above what the receiver takes (`socket.request.max.bytes`).
    TooLarge {
        /// What the prefix says.
        len: usize,
        /// What is allowed.
        max: usize,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::Negative(len) => write!(f, "a frame of {len} bytes"),
            FrameError::TooLarge { len, max } => {
                write!(f, "a frame of {len} bytes, where {max} are allowed")?;
                match other_protocol(*len) {
                    Some(what) => write!(f, " (it begins as {what})"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for FrameError {}

/// What begins with these four bytes, taken for a length.
fn other_protocol(len: usize) -> Option<&'static str> {
    match &u32::try_from(len).ok()?.to_be_bytes() {
        [0x15 | 0x16, 3, _, _] => Some("TLS does: both sides have to speak plaintext"),
        b"GET " | b"POST" | b"HEAD" | b"HTTP" => {
            Some("HTTP does: this is about the address of the Kafka protocol")
        }
        _ => None,
    }
}

/// Length of the frame behind a prefix, at most `max`. Nothing is to be allocated before this has said yes.
#[inline]
pub fn frame_len(prefix: [u8; PREFIX_LEN], max: usize) -> Result<usize, FrameError> {
    let claimed = i32::from_be_bytes(prefix);
    let len = usize::try_from(claimed).map_err(|_| FrameError::Negative(claimed))?;
    if len > max { Err(FrameError::TooLarge { len, max }) } else { Ok(len) }
}

/// What stands before every request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestHeader<'a> {
    /// Number of the API; may be one that we do not know.
    pub api_key: i16,
    /// Version of the request; may be one that we do not know.
    pub api_version: i16,
    /// Comes back in the response's header.
    pub correlation_id: i32,
    /// What the client calls itself.
    pub client_id: Option<&'a str>,
}

impl<'a> RequestHeader<'a> {
    /// Takes a header (version 1 or 2) off a frame. That of an API which we do not know is read as version 1.
    #[inline]
    pub fn decode(reader: &mut Reader<'a>) -> Result<RequestHeader<'a>, DecodeError> {
        let api_key = reader.i16()?;
        let api_version = reader.i16()?;
        let correlation_id = reader.i32()?;
        // Not compact in version 2 either, so that a server can read it whatever the version.
        let client_id = reader.nullable_string(false)?;
        if ApiKey::from_key(api_key).is_some_and(|key| is_flexible(key, api_version)) {
            reader.skip_tags()?;
        }
        Ok(RequestHeader { api_key, api_version, correlation_id, client_id })
    }

    /// Writes the header.
    fn write<S: Sink>(&self, sink: &mut S) {
        sink.i16(self.api_key);
        sink.i16(self.api_version);
        sink.i32(self.correlation_id);
        sink.nullable_string(self.client_id, false);
        if ApiKey::from_key(self.api_key).is_some_and(|key| is_flexible(key, self.api_version)) {
            sink.uvarint(0);
        }
    }
}

/// Appends a whole request frame, prefix included.
pub fn encode_request<M: Message>(
    writer: &mut Writer,
    correlation_id: i32,
    client_id: Option<&str>,
    version: i16,
    body: &M,
) {
    let header = RequestHeader { api_key: M::KEY as i16, api_version: version, correlation_id, client_id };
    let mut size = Counter::default();
    header.write(&mut size);
    body.write(&mut size, version);
    begin_frame(writer, size);
    header.write(writer);
    body.write(writer, version);
}

/// Splits a whole request frame around `payload`, which the body holds as one of its fields and which lies in memory
/// already: appends what comes before it, prefix included, to `head`, and what comes after it to `tail`. So a sender
/// that left room around a record batch sends it without copying it.
///
/// # Panics
/// When the body does not hold `payload` itself (an equal slice elsewhere does not count).
pub fn encode_request_around<M: Message>(
    (head, tail): (&mut Writer, &mut Writer),
    payload: &[u8],
    correlation_id: i32,
    client_id: Option<&str>,
    version: i16,
    body: &M,
) {
    let header = RequestHeader { api_key: M::KEY as i16, api_version: version, correlation_id, client_id };
    let mut size = Counter::default();
    header.write(&mut size);
    body.write(&mut size, version);
    assert!(size.len() <= i32::MAX as usize, "a frame of {} bytes does not fit the protocol", size.len());
    let mut around = Around { payload, head, tail, passed: false };
    around.i32(size.len() as i32);
    header.write(&mut around);
    body.write(&mut around, version);
    assert!(around.passed, "the payload is no field of the body");
}

/// Writes what comes before one slice to one writer, what comes after it to another, and the slice nowhere.
struct Around<'w> {
    payload: &'w [u8],
    head: &'w mut Writer,
    tail: &'w mut Writer,
    passed: bool,
}

impl Around<'_> {
    fn side(&mut self) -> &mut Writer {
        if self.passed { self.tail } else { self.head }
    }
}

impl Sink for Around<'_> {
    fn put(&mut self, bytes: &[u8]) {
        if !self.passed && std::ptr::eq(bytes, self.payload) {
            self.passed = true;
        } else {
            self.side().put(bytes);
        }
    }

    fn uvarint(&mut self, value: u32) {
        self.side().uvarint(value);
    }

    fn varlong(&mut self, value: i64) {
        self.side().varlong(value);
    }

    fn splice(&mut self, len: usize) {
        self.side().splice(len);
    }
}

/// Appends a whole response frame, prefix included. What is spliced in counts in the prefix, and the writer holds
/// the cuts. Of what a peer can make long, see [`encode_response_within`].
pub fn encode_response<M: Message>(writer: &mut Writer, correlation_id: i32, version: i16, body: &M) {
    let encoded = encode_response_within(writer, i32::MAX as usize, correlation_id, version, body);
    encoded.expect("a frame fits the protocol");
}

/// As [`encode_response`], unless the frame would be longer than `len_max` bytes: then nothing is written, and the error is
/// how long it would be.
pub fn encode_response_within<M: Message>(
    writer: &mut Writer,
    len_max: usize,
    correlation_id: i32,
    version: i16,
    body: &M,
) -> Result<(), usize> {
    let mut size = Counter::default();
    write_response_header(&mut size, M::KEY, version, correlation_id);
    body.write(&mut size, version);
    if size.len() > len_max {
        return Err(size.len());
    }
    begin_frame(writer, size);
    write_response_header(writer, M::KEY, version, correlation_id);
    body.write(writer, version);
    Ok(())
}

/// Takes a response's header off a frame: its correlation id.
#[inline]
pub fn decode_response_header(
    reader: &mut Reader<'_>,
    key: ApiKey,
    version: i16,
) -> Result<i32, DecodeError> {
    let correlation_id = reader.i32()?;
    if response_header_version(key, version) > 0 {
        reader.skip_tags()?;
    }
    Ok(correlation_id)
}

fn write_response_header<S: Sink>(sink: &mut S, key: ApiKey, version: i16, correlation_id: i32) {
    sink.i32(correlation_id);
    if response_header_version(key, version) > 0 {
        sink.uvarint(0);
    }
}

/// Takes exactly the memory that a frame needs, and writes its prefix.
fn begin_frame(writer: &mut Writer, size: Counter) {
    assert!(size.len() <= i32::MAX as usize, "a frame of {} bytes does not fit the protocol", size.len());
    writer.reserve_exact(PREFIX_LEN + size.written());
    writer.i32(size.len() as i32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Decode, Records};
    use crate::messages::api_versions_request::ApiVersionsRequest;
    use crate::messages::api_versions_response::ApiVersionsResponse;
    use crate::messages::fetch_response::{FetchResponse, FetchableTopicResponse, PartitionData};
    use crate::messages::produce_request::{PartitionProduceData, ProduceRequest, TopicProduceData};

    #[test]
    fn lengths_are_checked_before_they_are_believed() {
        assert_eq!(frame_len([0, 0, 1, 0], 1000), Ok(256));
        assert_eq!(frame_len([0, 0, 0, 0], 1000), Ok(0));
        assert_eq!(frame_len([0xff; 4], 1000), Err(FrameError::Negative(-1)));
        assert_eq!(frame_len([0x80, 0, 0, 0], usize::MAX), Err(FrameError::Negative(i32::MIN)));
        let claimed = i32::MAX as usize;
        let error = frame_len([0x7f, 0xff, 0xff, 0xff], 1000);
        assert_eq!(error, Err(FrameError::TooLarge { len: claimed, max: 1000 }));
        for (prefix, word) in [(*b"GET ", "HTTP"), ([0x16, 3, 1, 2], "TLS"), ([0x16, 4, 1, 2], "allowed")] {
            let why = frame_len(prefix, 100 << 20).map_err(|error| error.to_string());
            assert!(why.as_ref().is_err_and(|why| why.contains(word)), "{why:?}");
        }
    }

    #[test]
    fn requests_come_back_as_sent() {
        for version in 0..=4 {
            let mut request = ApiVersionsRequest::default();
            if version >= 3 {
                request.client_software_name = "flumen";
                request.client_software_version = "1";
            }
            let mut writer = Writer::new();
            encode_request(&mut writer, 7, Some("me"), version, &request);
            let bytes = writer.into_bytes();
            let prefix = *bytes.first_chunk().expect("a prefix");
            assert_eq!(frame_len(prefix, 1000), Ok(bytes.len() - PREFIX_LEN));
            let mut reader = Reader::new(&bytes[PREFIX_LEN..]);
            let header = RequestHeader::decode(&mut reader).expect("a header");
            let sent =
                RequestHeader { api_key: 18, api_version: version, correlation_id: 7, client_id: Some("me") };
            assert_eq!(header, sent);
            assert_eq!(ApiVersionsRequest::decode(&mut reader, version), Ok(request));
            assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn a_request_around_its_payload_is_the_same_request() {
        let records = vec![7_u8; 300];
        let partition_data = vec![PartitionProduceData { index: 3, records: Some(&records) }];
        for version in 3..=12 {
            let topic =
                TopicProduceData { name: "t", partition_data: partition_data.clone(), ..Default::default() };
            let body = ProduceRequest { acks: -1, topic_data: vec![topic], ..Default::default() };
            let mut whole = Writer::new();
            encode_request(&mut whole, 9, Some("me"), version, &body);
            let (mut head, mut tail) = (Writer::new(), Writer::new());
            encode_request_around((&mut head, &mut tail), &records, 9, Some("me"), version, &body);
            let joined = [head.bytes(), &records, tail.bytes()].concat();
            assert_eq!(joined, whole.into_bytes(), "version {version}");
        }
    }

    #[test]
    fn the_header_of_an_api_versions_response_has_no_tags() {
        let mut writer = Writer::new();
        encode_response(&mut writer, 7, 3, &ApiVersionsResponse::default());
        let bytes = writer.into_bytes();
        // Prefix, correlation id, error code, empty compact array, throttle time, no tags.
        assert_eq!(bytes, [0, 0, 0, 12, 0, 0, 0, 7, 0, 0, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_fetch_response_with_spliced_records_is_one_with_its_records_copied() {
        let (first, second) = (vec![1_u8; 300], vec![2_u8; 5]);
        let response = |a, b| {
            let partition = |partition_index, records| PartitionData {
                partition_index,
                records: Some(records),
                ..Default::default()
            };
            let partitions = vec![partition(0, a), partition(1, b)];
            let topic = FetchableTopicResponse { topic: "t", partitions, ..Default::default() };
            FetchResponse { responses: vec![topic], ..Default::default() }
        };
        for version in 4..=12 {
            let mut copied = Writer::new();
            let whole = response(Records::Slice(&first), Records::Slice(&second));
            encode_response(&mut copied, 9, version, &whole);
            let copied = copied.into_bytes();

            let mut writer = Writer::new();
            encode_response(&mut writer, 9, version, &response(Records::Spliced(300), Records::Spliced(5)));
            assert_eq!(writer.wire_len(), copied.len());
            let (bytes, cuts) = writer.into_parts();
            let joined = [
                &bytes[..cuts[0].position],
                &first,
                &bytes[cuts[0].position..cuts[1].position],
                &second,
                &bytes[cuts[1].position..],
            ];
            assert_eq!(joined.concat(), copied, "version {version}");

            let mut reader = Reader::new(&copied[PREFIX_LEN..]);
            assert_eq!(decode_response_header(&mut reader, ApiKey::Fetch, version), Ok(9));
            assert_eq!(FetchResponse::decode(&mut reader, version), Ok(whole));
            assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn a_header_of_an_unknown_api_can_be_read() {
        let mut reader = Reader::new(&[0x7f, 0, 0, 1, 0, 0, 0, 2, 0xff, 0xff]);
        let header = RequestHeader::decode(&mut reader).expect("a header");
        assert_eq!(
            header,
            RequestHeader { api_key: 0x7f00, api_version: 1, correlation_id: 2, client_id: None }
        );
    }
}
