//! A glommio stream as hyper wants it.
use futures_io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use hyper::rt::{Read, ReadBufCursor, Write};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Bytes read at a time: a request of ours has a few hundred.
const READ_BYTES: usize = 2048;

pub(super) struct Stream(TcpStream);

impl Stream {
    pub(super) fn new(stream: TcpStream) -> Self {
        Stream(stream)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // hyper's buffer is not initialised, and glommio reads into a slice: a copy keeps both happy.
        let mut buffer = [0; READ_BYTES];
        let room = cursor.remaining().min(READ_BYTES);
        let read = ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer[..room]))?;
        cursor.put_slice(&buffer[..read]);
        Poll::Ready(Ok(()))
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}
