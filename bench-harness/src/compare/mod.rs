//! Brokers held against each other: by turns in one run, A B A B, so that what changes on the machine changes for all of
//! them; as ratios with intervals, never as single runs.
//!
//! ```text
//!   statistics   ratios and their intervals     figures    what is compared, over any set of runs
//!   document     what a comparison leaves
//! ```

pub(crate) mod document;
pub(crate) mod figures;
pub(crate) mod statistics;
