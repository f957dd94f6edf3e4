//! Epoll on the calling thread: starts in well under a millisecond, asks the kernel for nothing unusual.

use async_executor::LocalExecutor;
use async_io::{Async, Timer};
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::Duration;

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

pub(super) async fn connect(address: SocketAddr) -> io::Result<Stream> {
    let stream = Async::<TcpStream>::connect(address).await?;
    stream.get_ref().set_nodelay(true)?;
    Ok(stream)
}
