//! A small io_uring for file operations that clients wait for: what is asked is with the kernel when the call returns.
//!
//! Owned by one thread. The memory of an operation is kept here until the kernel is done with it, whatever becomes of
//! who asked. Whoever holds the ring must learn of completions by its descriptor, or by looking ([`Ring::collect`]).
use super::Stable;
use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// See the module. `B`: the memory that is written from.
pub struct Ring<B: Stable> {
    uring: IoUring,
    operations: Slab<Operation<B>>,
}

struct Operation<B> {
    /// What the kernel reads.
    _memory: Option<Rc<B>>,
    state: State,
}

enum State {
    Waiting(Option<Waker>),
    Done(i32),
    /// Nobody waits any more.
    Abandoned,
}

impl<B: Stable> Ring<B> {
    /// A ring for this thread, with room for `entries` operations that are not with the kernel yet. The error says why
    /// the kernel has none to give, or none of this kind (before 6.0).
    pub fn new(entries: u32) -> io::Result<Ring<B>> {
        let uring = IoUring::builder().setup_coop_taskrun().setup_single_issuer().build(entries)?;
        Ok(Ring { uring, operations: Slab::new() })
    }

    /// Writes all of `memory` at `position`, or, as the kernel likes, less. Returns the operation's key.
    pub fn write(&mut self, file: &impl AsRawFd, memory: Rc<B>, position: u64) -> io::Result<usize> {
        let bytes = memory.bytes();
        let len = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), bytes.as_ptr(), len).offset(position);
        self.submit(entry.build(), Some(memory))
    }

    /// Makes durable what was written to `file` (`fdatasync`). Returns the operation's key.
    pub fn sync(&mut self, file: &impl AsRawFd) -> io::Result<usize> {
        let entry = opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(types::FsyncFlags::DATASYNC);
        self.submit(entry.build(), None)
    }

    /// On return the kernel has the operation, and with it a reference of its own to the file.
    fn submit(&mut self, entry: squeue::Entry, memory: Option<Rc<B>>) -> io::Result<usize> {
        let key = self.operations.insert(Operation { _memory: memory, state: State::Waiting(None) });
        let entry = entry.user_data(key as u64);
        // SAFETY: the memory that the entry points to stays where it is for as long as the operation is in the table,
        // which is until its completion was seen; that nobody writes to it is the promise of `Stable`, as the table
        // holds one reference.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        if pushed.is_err() {
            // Cannot be: nothing is left in the queue by a call that returns.
            self.operations.remove(key);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        while !self.uring.submission().is_empty() {
            match self.uring.submit() {
                Ok(_) => {}
                // The kernel is short of memory, or wants its completions looked at: both pass.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) =>
                {
                    self.collect();
                    std::thread::yield_now();
                }
                Err(error) => panic!("io_uring_enter on our own ring: {error}"),
            }
        }
        Ok(key)
    }

    /// Looks at what has completed, and wakes who waits for it.
    pub fn collect(&mut self) {
        for completion in self.uring.completion() {
            let key = completion.user_data() as usize;
            let operation = &mut self.operations[key];
            match std::mem::replace(&mut operation.state, State::Done(completion.result())) {
                State::Waiting(waker) => waker.into_iter().for_each(Waker::wake),
                State::Abandoned => drop(self.operations.remove(key)),
                State::Done(_) => unreachable!("an operation completes once"),
            }
        }
    }

    /// The result of an operation, which is forgotten with it. To be polled by the one who asked for it.
    pub fn poll(&mut self, key: usize, context: &Context<'_>) -> Poll<io::Result<usize>> {
        let operation = &mut self.operations[key];
        match &mut operation.state {
            State::Done(result) => {
                let result = *result;
                self.operations.remove(key);
                Poll::Ready(usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result)))
            }
            State::Waiting(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            State::Abandoned => unreachable!("an abandoned operation is not polled"),
        }
    }

    /// Nobody will ask for the result.
    pub fn abandon(&mut self, key: usize) {
        let operation = &mut self.operations[key];
        match operation.state {
            State::Done(_) => drop(self.operations.remove(key)),
            _ => operation.state = State::Abandoned,
        }
    }

    /// Whether the kernel is done with all operations.
    pub fn is_idle(&self) -> bool {
        self.operations.iter().all(|(_, operation)| matches!(operation.state, State::Done(_)))
    }
}

impl<B: Stable> AsFd for Ring<B> {
    /// Readable when something has completed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as the ring is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) }
    }
}

impl<B: Stable> Drop for Ring<B> {
    /// The kernel may still read the memory of what it has not completed: that is never freed.
    fn drop(&mut self) {
        self.collect();
        if !self.is_idle() {
            std::mem::forget(std::mem::take(&mut self.operations));
        }
    }
}
