//! Black-box tests against the real binary: `interop`, `crash`, `golden`.
