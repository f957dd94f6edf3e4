//! Epoll on the calling thread: starts in well under a millisecond, asks the kernel for nothing unusual.

use async_executor::LocalExecutor;
use async_io::{Async, Timer};
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::{Driver, Running};

/// See [`super::connect`].
pub(super) type Stream = Async<TcpStream>;

thread_local! {
    static EXECUTOR: Rc<LocalExecutor<'static>> = Rc::new(LocalExecutor::new());
}

/// Runs a future to its end on this thread, with all tasks that it starts.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let _running = Running::enter(Driver::Plain);
    let executor = EXECUTOR.with(Rc::clone);
    async_io::block_on(executor.run(future))
}

pub(super) fn spawn(task: impl Future<Output = ()> + 'static) {
    EXECUTOR.with(|executor| executor.spawn(task)).detach();
}

pub(super) async fn sleep(duration: Duration) {
    Timer::after(duration).await;
}

/// See [`super::Alarm`].
#[derive(Debug)]
pub(super) struct Alarm {
    timer: Timer,
    at: Option<Instant>,
}

impl Alarm {
    pub(super) fn new() -> Alarm {
        Alarm { timer: Timer::never(), at: None }
    }

    pub(super) fn poll_at(&mut self, context: &mut Context<'_>, at: Instant) -> Poll<()> {
        if Instant::now() >= at {
            return Poll::Ready(());
        }
        if self.at != Some(at) {
            self.timer.set_at(at);
            self.at = Some(at);
        }
        Pin::new(&mut self.timer).poll(context).map(|_| self.at = None)
    }
}

pub(super) async fn connect(address: SocketAddr) -> io::Result<Stream> {
    let stream = Async::<TcpStream>::connect(address).await?;
    stream.get_ref().set_nodelay(true)?;
    Ok(stream)
}
