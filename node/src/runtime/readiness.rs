//! Waiting until a descriptor of any kind is readable.

use std::os::fd::BorrowedFd;

use futures_lite::AsyncReadExt;

use crate::sys;

/// Resolves once `descriptor` is readable; nothing is read from it. For descriptors that are no sockets, such as an
/// epoll instance.
///
/// glommio has no public call for that. But it asks the ring for readiness as soon as a stream is made, waits for
/// it on the first read, and only then reads: which a descriptor that is no socket refuses, to no effect.
pub async fn readable(descriptor: BorrowedFd<'_>) {
    let Ok(duplicate) = descriptor.try_clone_to_owned() else {
        // Out of descriptors: look again soon.
        return super::sleep(std::time::Duration::from_millis(10)).await;
    };
    let mut stream = sys::stream(duplicate);
    // The error is the news.
    let _ = stream.read(&mut [0]).await;
}
