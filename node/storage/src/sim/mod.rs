//! A simulated disk and a deterministic executor: the production engine runs on them in tests and fuzzing.
//!
//! One [`Sim`] is one life of a machine: single-threaded, one seed, virtual time. Every I/O completes after a
//! random virtual delay, so completions reorder; among tasks that are ready the seed chooses. The same seed
//! gives the same trace, byte for byte, as long as what runs on it draws on no other source of chance (no
//! clock, no thread, no map with a random hasher whose order shows).
//!
//! ```text
//!   Sim::new(seed) ──run──▶ Ok(output)
//!        ▲            └───▶ Err(Stop::Crashed)  after `crash_after(n)` steps of I/O
//!        └── crash(Power | Process): every task dropped, the surviving disk in a new life
//! ```
//!
//! `Crash::Power` loses, tears and reorders what was not synced (`content.rs` and `tree.rs` say how).
//! `Crash::Process` keeps all that had completed, still unsynced: a later power failure may take it.
//! Contract violations of `disk::Disk` (misaligned I/O, two writes of one block in flight at once, a write
//! through a read-only handle) are assertions.

mod content;
mod disk;
mod executor;
mod random;
mod tree;

pub use content::SECTOR;
pub use disk::{Fault, Operation, SimBuffer, SimDisk, SimFile};
pub use executor::{Crash, Sim, SimOptions, Stop};
pub use random::Random;

#[cfg(test)]
mod tests;
