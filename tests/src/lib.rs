//! Empty: the crate is there for `tests/tidiness.rs`. The suites beside it run the real programs and are Python's: `interop`,
//! `crash`, `load`. `golden` holds frozen bytes, for tests of the crates that write them.
