//! Sockets: listeners that the shards share and nobody else, and vectored sends.
use bytes::BytesMut;
use socket2::{Domain, Protocol, Socket, Type};
use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Connections that wait to be accepted, for each shard.
const BACKLOG: i32 = 1024;
/// A node that was killed may keep its port for so long: the kernel ends its io_uring, and what that holds, after the
/// process is gone.
const PORT_LINGERS_MAX: Duration = Duration::from_secs(1);
/// From one look at a port that is taken to the next.
const PORT_LOOK_EVERY: Duration = Duration::from_millis(5);

/// Why an address cannot be listened on.
#[derive(Debug)]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// What the kernel says.
    pub error: io::Error,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ListenError { address, error } = self;
        match error.kind() {
            io::ErrorKind::AddrInUse => write!(
                f,
                "{address} is in use by another process (`ss -ltnp 'sport = :{}'` shows which); \
                 choose another address or stop it",
                address.port()
            ),
            io::ErrorKind::AddrNotAvailable => {
                write!(f, "{address} is not an address of this machine (`ip address` lists them)")
            }
            io::ErrorKind::PermissionDenied => {
                write!(
                    f,
                    "{address} may not be listened on by this user: ports under 1024 need CAP_NET_BIND_SERVICE"
                )
            }
            _ => write!(f, "cannot listen on {address}: {error}"),
        }
    }
}

impl std::error::Error for ListenError {}

/// Sockets on one address, one for each shard, that do not listen yet: who connects is refused.
pub struct Bound {
    sockets: Vec<Socket>,
    address: SocketAddr,
}

/// Binds one socket for each shard; the kernel spreads connections over them. With port 0 all get the same free
/// port. An address that any other process listens on is refused after a moment, also when that process shares its port as
/// we do: the first socket is bound without sharing, and shares only once it has the port.
pub fn bind(address: SocketAddr, shards: usize) -> Result<Bound, ListenError> {
    let fail = |error| ListenError { address, error };
    let first = bound_alone(address).map_err(fail)?;
    first.set_reuse_port(true).map_err(fail)?;
    let local = first
        .local_addr()
        .and_then(|local| local.as_socket().ok_or_else(|| io::Error::other("not an internet address")))
        .map_err(fail)?;
    let mut sockets = vec![first];
    for _ in 1..shards {
        sockets.push(bound(local, true).map_err(fail)?);
    }
    Ok(Bound { sockets, address: local })
}

impl Bound {
    /// The address, with the port that was found free where none was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts to listen, on all at once, so that no shard is sent connections while others cannot have theirs.
    pub fn listen(self) -> Result<Vec<OwnedFd>, ListenError> {
        for socket in &self.sockets {
            socket.listen(BACKLOG).map_err(|error| ListenError { address: self.address, error })?;
        }
        Ok(self.sockets.into_iter().map(OwnedFd::from).collect())
    }
}

/// The only socket on the address, once whoever had it before is gone.
fn bound_alone(address: SocketAddr) -> io::Result<Socket> {
    let until = Instant::now() + PORT_LINGERS_MAX;
    loop {
        match bound(address, false) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(PORT_LOOK_EVERY);
            }
            result => return result,
        }
    }
}

fn bound(address: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    // Lets a restarted node have the port while connections of its predecessor linger.
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A listener of [`listen`], for the executor of this thread.
pub fn listener(fd: OwnedFd) -> glommio::net::TcpListener {
    // SAFETY: the descriptor is a listening TCP socket, open, and ours to give away.
    unsafe { glommio::net::TcpListener::from_raw_fd(fd.into_raw_fd()) }
}

/// A connected TCP socket, for the executor of this thread.
pub fn stream(fd: OwnedFd) -> glommio::net::TcpStream {
    // SAFETY: the descriptor is open, and ours to give away.
    unsafe { glommio::net::TcpStream::from_raw_fd(fd.into_raw_fd()) }
}

/// The descriptor of a socket that says it by number only.
pub fn borrowed(socket: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open while `socket` is borrowed.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

/// Sends what the kernel takes at once of `slices`, in order, without waiting: `WouldBlock` where it takes
/// nothing. At most 1,024 slices count.
pub fn send_vectored(socket: &impl AsRawFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    const SLICES_MAX: usize = 1024; // UIO_MAXIOV
    // SAFETY: an all-zero `msghdr` is valid. `IoSlice` has the layout of `iovec` (the standard library promises
    // it), the slices are borrowed over the call, and the kernel only reads from them. The descriptor is open while
    // `socket` is borrowed.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = slices.as_ptr().cast_mut().cast();
        message.msg_iovlen = slices.len().min(SLICES_MAX) as _;
        libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives what is there, without waiting, into the spare room of `buffer`: at most `room` bytes, for which it must
/// have capacity. 0: the peer has ended its side.
pub fn receive_into(
    socket: BorrowedFd<'_>,
    buffer: &mut BytesMut,
    room: usize,
) -> Result<usize, rustix::io::Errno> {
    let spare = &mut buffer.spare_capacity_mut()[..room];
    let (filled, _) = rustix::net::recv(socket, spare, rustix::net::RecvFlags::DONTWAIT)?.0;
    let received = filled.len();
    let len = buffer.len() + received;
    // SAFETY: the kernel has initialised `received` bytes of the spare capacity, from its start.
    unsafe { buffer.set_len(len) };
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    fn listen(address: SocketAddr, shards: usize) -> Result<(Vec<OwnedFd>, SocketAddr), ListenError> {
        let bound = bind(address, shards)?;
        let address = bound.address();
        Ok((bound.listen()?, address))
    }

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().expect("an address")
    }

    #[test]
    fn a_port_that_lingers_is_waited_for() {
        let before = TcpListener::bind(any()).expect("a free port");
        let address = before.local_addr().expect("it has one");
        std::thread::scope(|threads| {
            threads.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                drop(before);
            });
            assert_eq!(listen(address, 2).expect("free by then").1, address);
        });
    }

    #[test]
    fn shards_share_a_port_that_a_second_node_cannot_have() {
        let (ours, address) = listen(any(), 3).expect("a free port");
        assert_eq!(ours.len(), 3);
        assert_ne!(address.port(), 0);
        let second = listen(address, 3).expect_err("taken");
        assert_eq!(second.error.kind(), io::ErrorKind::AddrInUse);
        assert!(second.to_string().contains("in use by another process"));
        // All three get connections.
        let listeners: Vec<TcpListener> = ours.into_iter().map(TcpListener::from).collect();
        for listener in &listeners {
            listener.set_nonblocking(true).expect("a flag");
        }
        let clients: Vec<_> = (0..64).map(|_| TcpStream::connect(address).expect("accepted")).collect();
        let mut accepted = [0; 3];
        for _ in 0..1000 {
            for (count, listener) in accepted.iter_mut().zip(&listeners) {
                *count += usize::from(listener.accept().is_ok());
            }
            if accepted.iter().sum::<usize>() == clients.len() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(accepted.iter().all(|&count| count > 0), "{accepted:?}");
        drop((listeners, clients));
        listen(address, 3).expect("free again at once, though connections linger");
    }

    #[test]
    fn a_vectored_send_is_in_order_and_stops_when_the_kernel_is_full() {
        let listener = TcpListener::bind(any()).expect("a free port");
        let sender = TcpStream::connect(listener.local_addr().expect("bound")).expect("accepted");
        let (mut receiver, _) = listener.accept().expect("connected");
        let parts = [IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"two")];
        assert_eq!(send_vectored(&sender, &parts).expect("room"), 7);
        let mut got = [0; 7];
        receiver.read_exact(&mut got).expect("sent");
        assert_eq!(&got, b"one two");
        let block = vec![0; 1 << 20];
        let many = vec![IoSlice::new(&block); 2000];
        let mut total = 0;
        let error = loop {
            match send_vectored(&sender, &many) {
                Ok(sent) => total += sent,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(total > 0);
    }
}
