//! What the loopback address carries between two threads, by plain sockets that block: the floor of what any client and
//! broker on one machine can do.

use super::{latency_of, nanoseconds, new_histogram};
use crate::failure::Failure;
use crate::result::Latency;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const CHUNK_BYTES: usize = 256 << 10;
const PING_BYTES: usize = 64;

/// Bytes per second over one connection, as they arrive.
pub(super) fn throughput(each: Duration) -> Result<f64, Failure> {
    let (mut near, far) = pair(|mut far| {
        let chunk = vec![7; CHUNK_BYTES];
        // Ends when the reader has had enough.
        while far.write_all(&chunk).is_ok() {}
        Ok(())
    })?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut received = 0u64;
    let began = Instant::now();
    while began.elapsed() < each {
        received += near.read(&mut chunk).map_err(loopback)? as u64;
    }
    let elapsed_s = began.elapsed().as_secs_f64();
    drop(near);
    ended(far)?;
    Ok(received as f64 / elapsed_s)
}

/// From a write to the answer of the other thread.
pub(super) fn round_trip(each: Duration) -> Result<Latency, Failure> {
    let (mut near, far) = pair(|mut far| {
        let mut ping = [0; PING_BYTES];
        // Ends at the end of the stream.
        while far.read_exact(&mut ping).is_ok() {
            far.write_all(&ping)?;
        }
        Ok(())
    })?;
    let mut histogram = new_histogram()?;
    let mut ping = [1; PING_BYTES];
    let began = Instant::now();
    while began.elapsed() < each {
        let sent = Instant::now();
        near.write_all(&ping).and_then(|()| near.read_exact(&mut ping)).map_err(loopback)?;
        histogram.saturating_record(nanoseconds(sent.elapsed()));
    }
    drop(near);
    ended(far)?;
    latency_of(&histogram, "round trips over the loopback address")
}

/// A connection of ours, and a thread that has its other end.
fn pair(
    far: impl FnOnce(TcpStream) -> io::Result<()> + Send + 'static,
) -> Result<(TcpStream, JoinHandle<io::Result<()>>), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(loopback)?;
    let near = listener.local_addr().and_then(TcpStream::connect).map_err(loopback)?;
    let (other, _) = listener.accept().map_err(loopback)?;
    near.set_nodelay(true).and_then(|()| other.set_nodelay(true)).map_err(loopback)?;
    let thread = std::thread::Builder::new().name("loopback".to_owned());
    let thread = thread.spawn(move || far(other)).map_err(loopback)?;
    Ok((near, thread))
}

fn ended(far: JoinHandle<io::Result<()>>) -> Result<(), Failure> {
    match far.join() {
        Ok(result) => result.map_err(loopback),
        Err(_) => Err(Failure::Other("the other end of the loopback connection ended early".to_owned())),
    }
}

fn loopback(error: io::Error) -> Failure {
    Failure::io("the loopback address", error)
}
