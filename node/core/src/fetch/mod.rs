//! Fetching: sessions, so that a consumer need not name its partitions again with every request (KIP-227).

mod session;

pub use session::{
    FetchContext, FetchParams, FetchSessions, Finished, Outcome, SessionRequest, TopicKey, Wanted,
};
