//! The only door to glommio's executor: one executor for each shard, tasks, timers, blocking calls, and the
//! watchdog that guards them.
//!
//! Everything that runs on a shard is a task spawned here, because glommio 0.9.0 needs guarding
//! (`tests.rs` has tests of most of it):
//!
//! - an executor may park although tasks are runnable: [`watchdog`] sees it and wakes it;
//! - a task's reference count is an `i16`, and dropping the last waker on a foreign thread races the task's end:
//!   wakers that leave this module are ours (`task.rs`), of which glommio never hears;
//! - a panic of a task ends its executor silently: here it ends the process, or (isolated) the task alone;
//! - a panic on the blocking thread kills that thread: [`blocking`] carries it back to its caller;
//! - the first sleep costs milliseconds: the registration behind it is made while the process has one thread.
mod clock;
mod executor;
pub mod local;
mod readiness;
pub(crate) mod ring;
mod stop;
mod task;
#[cfg(test)]
mod tests;
mod waiting;
pub mod watchdog;

pub use clock::{Elapsed, now_ms, sleep, timeout, uptime, yield_if_needed, yield_now};
pub(crate) use executor::InFlight;
pub use executor::{Executors, Seat, Settings, StartError, blocking, run_once, shard, start};
pub use readiness::readable;
pub use stop::{Stop, Stopper};
pub(crate) use task::quietly;
pub use task::{Join, Lost, Queue, panic_is_expected, spawn, spawn_in, spawn_isolated};
pub use waiting::{Waiting, attend};
pub use watchdog::Health;
