//! What a client needs of an executor: sockets, timers, tasks. The only place of the crate that names one.
//!
//! Two drivers behind one face: [`uring`] is glommio on io_uring, for load generators, one executor on each thread;
//! [`plain`] is epoll on the calling thread, for commands, which must start at once and run where io_uring is denied
//! (docs/decisions/0021-two-drivers-for-the-client.md). What runs inside either calls [`connect`], [`sleep`] and
//! [`spawn`] and does not know which.

mod plain;
mod uring;

pub use plain::block_on;
pub use uring::{StartError, UringSettings, run_uring};

use futures_io::{AsyncRead, AsyncWrite};
use futures_util::future::{Either, select};
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    None,
    Plain,
    Uring,
}

thread_local! {
    static DRIVER: Cell<Driver> = const { Cell::new(Driver::None) };
}

/// Says which driver runs on this thread, as long as it lives.
struct Running(Driver);

impl Running {
    fn enter(driver: Driver) -> Running {
        Running(DRIVER.replace(driver))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        DRIVER.set(self.0);
    }
}

/// Starts a task on this thread. It ends by itself, or with the driver.
///
/// # Panics
/// Outside of a driver.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    match DRIVER.get() {
        Driver::Plain => plain::spawn(task),
        Driver::Uring => uring::spawn(task),
        Driver::None => panic!("not inside block_on or run_uring"),
    }
}

/// Waits.
pub async fn sleep(duration: Duration) {
    match DRIVER.get() {
        Driver::Uring => uring::sleep(duration).await,
        _ => plain::sleep(duration).await,
    }
}

/// A timer that is set again and again, for an owner that polls it. Setting it allocates nothing.
#[derive(Debug)]
pub struct Alarm(AlarmInner);

#[derive(Debug)]
enum AlarmInner {
    Plain(plain::Alarm),
    Uring(uring::Alarm),
}

impl Alarm {
    /// Not set. It belongs to the driver that runs now.
    pub fn new() -> Alarm {
        Alarm(match DRIVER.get() {
            Driver::Uring => AlarmInner::Uring(uring::Alarm::new()),
            _ => AlarmInner::Plain(plain::Alarm::new()),
        })
    }

    /// Ready at that time, which may differ from call to call; only the last one wakes.
    pub fn poll_at(&mut self, context: &mut Context<'_>, at: Instant) -> Poll<()> {
        match &mut self.0 {
            AlarmInner::Plain(alarm) => alarm.poll_at(context, at),
            AlarmInner::Uring(alarm) => alarm.poll_at(context, at),
        }
    }
}

impl Default for Alarm {
    fn default() -> Alarm {
        Alarm::new()
    }
}

/// The future's result, or `None` when it takes longer; it is then dropped.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    match select(pin!(future), pin!(sleep(duration))).await {
        Either::Left((result, _)) => Some(result),
        Either::Right(_) => None,
    }
}

/// Lets other tasks run.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A TCP connection, without Nagle's delay.
pub async fn connect(address: SocketAddr) -> io::Result<Stream> {
    Ok(Stream(match DRIVER.get() {
        Driver::Uring => Inner::Uring(uring::connect(address).await?),
        _ => Inner::Plain(plain::connect(address).await?),
    }))
}

/// See [`connect`].
#[derive(Debug)]
pub struct Stream(Inner);

#[derive(Debug)]
enum Inner {
    Plain(plain::Stream),
    Uring(uring::Stream),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Inner::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Inner::Uring(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Inner::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Inner::Uring(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Inner::Plain(stream) => Pin::new(stream).poll_flush(context),
            Inner::Uring(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Inner::Plain(stream) => Pin::new(stream).poll_close(context),
            Inner::Uring(stream) => Pin::new(stream).poll_close(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::{AsyncReadExt, AsyncWriteExt};
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::rc::Rc;

    /// What both drivers must do alike: tasks, timers, sockets, time-outs.
    async fn works(address: SocketAddr) -> String {
        let done = Rc::new(Cell::new(false));
        let set = done.clone();
        spawn(async move { set.set(true) });
        let began = Instant::now();
        sleep(Duration::from_millis(20)).await;
        assert!(began.elapsed() >= Duration::from_millis(20));
        assert!(done.get(), "the task has run");
        let mut alarm = Alarm::new();
        let (late, soon) = (began + Duration::from_secs(600), Instant::now() + Duration::from_millis(20));
        // Moved back and forth; the last time counts.
        for at in [late, soon, late, soon] {
            std::future::poll_fn(|context| Poll::Ready(alarm.poll_at(context, at).is_pending())).await;
        }
        std::future::poll_fn(|context| alarm.poll_at(context, soon)).await;
        assert!(Instant::now() >= soon && began.elapsed() < Duration::from_secs(60));
        assert!(timeout(Duration::from_millis(20), std::future::pending::<()>()).await.is_none());
        let mut stream = connect(address).await.expect("it listens");
        stream.write_all(b"ping").await.expect("written");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("read");
        String::from_utf8(answer).expect("text")
    }

    fn server() -> (SocketAddr, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let thread = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().expect("a client");
            let mut asked = [0; 4];
            peer.read_exact(&mut asked).expect("a question");
            assert_eq!(&asked, b"ping");
            peer.write_all(b"pong").expect("answered");
        });
        (address, thread)
    }

    #[test]
    fn plain() {
        let (address, thread) = server();
        assert_eq!(block_on(works(address)), "pong");
        thread.join().expect("no panic");
    }

    #[test]
    fn uring() {
        let (address, thread) = server();
        let answer =
            run_uring(&UringSettings::default(), move || works(address)).expect("io_uring is to be had here");
        assert_eq!(answer, "pong");
        thread.join().expect("no panic");
    }
}
