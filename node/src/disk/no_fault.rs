//! No faults are injected: what [`super::fault`] is in a build without the feature `fault-injection`.
use std::io;

#[derive(Clone, Copy)]
#[rustfmt::skip]
pub(super) enum Operation { Open, Read, Write, Sync, Preallocate, Truncate, Create, List, Rename, Remove }

#[derive(Clone)]
pub(super) struct Faults;

impl Faults {
    pub(super) fn from_environment() -> Self {
        Faults
    }

    #[inline]
    pub(super) fn check(&self, _: Operation, _: &str) -> io::Result<()> {
        Ok(())
    }

    #[inline]
    pub(super) fn check_write(&self, _: &str) -> io::Result<Option<usize>> {
        Ok(None)
    }
}
