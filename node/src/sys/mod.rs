//! The only `unsafe` of the project: system calls that no crate wraps as we need them, and the handle that lends a
//! buffer to another shard. Every block says why it is sound.
#![allow(unsafe_code)]
mod file;
mod lent;
mod machine;
mod ring;
mod socket;
mod uring;

pub use file::{FileSystem, file_system, is_laid_out, sync_file_system};
pub use lent::{Lender, Lent, Stable};
pub use machine::{
    Limit, Resource, Usage, allow_interrupts, allowed_cpus, interrupt_thread, keep_freed_memory, limit,
    memory_total, raise_limit, random_bytes, register_membarrier, thread_id, usage,
};
pub use ring::Ring;
pub use socket::{Bound, ListenError, bind, borrowed, listener, receive_into, send_vectored, stream};
pub use uring::probe_uring;
