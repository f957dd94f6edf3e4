//! A response as a list of byte slices, so that record data goes from the batch cache to the socket
//! without a copy.

use bytes::Bytes;
use flumen_wire::ErrorCode;
use flumen_wire::codec::Writer;

/// Record bytes that a response refers to: a slice of a cached buffer of this shard, or one lent by another.
pub(crate) trait Payload {
    fn bytes(&self) -> &[u8];
}

/// A contiguous part of a response.
pub(crate) enum Piece {
    /// Encoded by a handler.
    Encoded(Bytes),
    /// Record data that lies in a shared buffer; dropping it gives the buffer back.
    Records(Box<dyn Payload>),
}

impl Piece {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Piece::Encoded(bytes) => bytes,
            Piece::Records(payload) => payload.bytes(),
        }
    }
}

/// What leaves for one request: the length prefix, the header and the body.
pub(crate) struct Response {
    pieces: Vec<Piece>,
    len: usize,
    error: ErrorCode,
}

/// How long a response may be, in bytes: above all that clients take, whose requests can ask for more.
pub(crate) const RESPONSE_BYTES_MAX: usize = 256 << 20;

impl Response {
    /// A response that was written whole, length prefix included.
    pub(crate) fn encoded(written: Writer) -> Response {
        let error = ErrorCode::from_code(written.error());
        let bytes = written.into_bytes();
        let len = bytes.len();
        Response { pieces: vec![Piece::Encoded(Bytes::from(bytes))], len, error }
    }

    /// A response where record data was left out at the writer's cuts. `payloads` holds, for each cut, the
    /// slices that belong there; their lengths add up to what the encoder announced.
    pub(crate) fn spliced(written: Writer, payloads: Vec<Vec<Box<dyn Payload>>>) -> Response {
        let error = ErrorCode::from_code(written.error());
        let (head, cuts) = written.into_parts();
        assert_eq!(cuts.len(), payloads.len(), "one list of slices for each cut");
        let head = Bytes::from(head);
        let mut pieces = Vec::with_capacity(cuts.len() * 2 + 1);
        let mut from = 0;
        let mut len = head.len();
        for (cut, slices) in cuts.iter().zip(payloads) {
            if cut.position > from {
                pieces.push(Piece::Encoded(head.slice(from..cut.position)));
            }
            from = cut.position;
            let mut spliced = 0;
            for slice in slices {
                spliced += slice.bytes().len();
                pieces.push(Piece::Records(slice));
            }
            assert_eq!(spliced, cut.len, "the slices have the length that the response announces");
            len += spliced;
        }
        if from < head.len() {
            pieces.push(Piece::Encoded(head.slice(from..)));
        }
        Response { pieces, len, error }
    }

    /// The first error that it tells.
    pub(crate) fn error(&self) -> ErrorCode {
        self.error
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn into_pieces(self) -> Vec<Piece> {
        self.pieces
    }
}
