//! How many connections the node has, over all shards, and how many it may have. One for the node; shards meet in it only
//! when a connection comes or goes.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Connections may take three of four descriptors: the rest is for the files of logs and journals.
const SHARE_OF_FILES: (u64, u64) = (3, 4);

/// See the module.
#[derive(Debug)]
pub(crate) struct Admission {
    open: AtomicUsize,
    /// `max.connections`.
    wanted_max: AtomicUsize,
    /// What the limit of open files leaves for connections.
    files_max: usize,
}

impl Admission {
    pub(crate) fn new(open_files_max: u64) -> Admission {
        let (of_four, four) = SHARE_OF_FILES;
        let files_max = usize::try_from(open_files_max / four * of_four).unwrap_or(usize::MAX);
        Admission { open: AtomicUsize::new(0), wanted_max: AtomicUsize::new(usize::MAX), files_max }
    }

    /// Takes a new value of `max.connections`. Those that are there stay.
    pub(crate) fn set_max(&self, max: u32) {
        self.wanted_max.store(max as usize, Ordering::Relaxed);
    }

    /// One more, until [`leave`](Admission::leave); or why not.
    pub(super) fn enter(&self) -> Result<(), &'static str> {
        let open = self.open.fetch_add(1, Ordering::Relaxed);
        let refused = if open >= self.wanted_max.load(Ordering::Relaxed) {
            "refused: max.connections is reached"
        } else if open >= self.files_max {
            "refused: connections have three quarters of the limit of open files; raise it (`ulimit -n`)"
        } else {
            return Ok(());
        };
        self.leave();
        Err(refused)
    }

    /// One that had [entered](Admission::enter) is gone.
    pub(super) fn leave(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_of_both_limits_holds_and_may_change() {
        let admission = Admission::new(8);
        assert!((0..6).all(|_| admission.enter().is_ok()));
        assert!(admission.enter().is_err_and(|why| why.contains("ulimit")));
        admission.set_max(2);
        assert!(admission.enter().is_err_and(|why| why.contains("max.connections")));
        (0..5).for_each(|_| admission.leave());
        assert!(admission.enter().is_ok() && admission.enter().is_err());
        admission.set_max(u32::MAX);
        assert!(admission.enter().is_ok());
    }
}
