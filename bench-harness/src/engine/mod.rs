//! The load: threads that each run one executor with some of the connections, and what they tell the one that started
//! them.
//!
//! ```text
//!   run (one thread)                           worker thread, one for each core that is used
//!     plan ──────────────────────────────────►   connects, finds positions
//!     ◄──────────────────────────── Ready
//!     start_at ──────────────────────────────►   Lane ...    sends          one connection each
//!     ◄──────────────────────────── Interval     Reader ...  reads          one connection each
//!     ◄──────────────────────────── Produced     Churn       comes and goes
//!     sealed(acknowledged) ──────────────────►   readers read up to what was acknowledged
//!     ◄──────────────────────────── Done
//! ```
//!
//! A thread of `librdkafka` has lanes alone and that library's threads behind it; one of `raw_sync` writes to the disk.
//! Both tell the same.
//!
//! Threads share nothing but [`Control`], which they read; what they count stays with them until they send it. Times are
//! those of one monotonic clock, whose place in wall time was read once ([`Clock`]).

mod churn;
mod draw;
mod effort;
mod group_reader;
mod lane;
#[cfg(feature = "librdkafka")]
pub(crate) mod librdkafka;
mod raw_sync;
mod reader;
mod receipts;
mod tally;
mod thread;

pub(crate) use effort::Effort;
pub(crate) use raw_sync::run_raw_sync;
pub(crate) use tally::{Amount, PartName, Tally, histogram};
pub(crate) use thread::run_thread;

use crate::failure::Failure;
use crate::outage::Outage;
use crate::payload::Values;
use crate::scenario::{Churn, Consumers, Producers, Scenario};
use crate::schedule::Share;
use crate::sequence::Sequences;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Which client sends, and how the sockets of our own are driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Means {
    pub driver: Driver,
    /// By io_uring where there is any, else by epoll.
    pub uring: bool,
}

/// The client of the producers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Driver {
    /// Our own
    #[default]
    Flumen,
    /// What users of that library see; only where it is built in
    Librdkafka,
}

impl Driver {
    /// As results call it.
    pub(crate) fn name(self) -> String {
        match self {
            Driver::Flumen => "flumen".to_owned(),
            #[cfg(feature = "librdkafka")]
            Driver::Librdkafka => librdkafka::name(),
            #[cfg(not(feature = "librdkafka"))]
            Driver::Librdkafka => "librdkafka".to_owned(),
        }
    }

    /// Whether it can make this load, in this build.
    pub(crate) fn check(self, scenario: &Scenario) -> Result<(), Failure> {
        match self {
            Driver::Flumen => Ok(()),
            #[cfg(feature = "librdkafka")]
            Driver::Librdkafka => librdkafka::check(scenario),
            #[cfg(not(feature = "librdkafka"))]
            Driver::Librdkafka => Err(Failure::Usage(format!(
                "--driver librdkafka ({}): this flumen-bench is built without it; cargo build --release -p flumen-bench \
                 --features librdkafka",
                scenario.name
            ))),
        }
    }
}

/// How long a load may go on past its end with what was due before it.
pub(crate) const BACKLOG_TIMEOUT: Duration = Duration::from_secs(5);
/// How long readers wait for records that were acknowledged before they say that nothing comes any more.
pub(crate) const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The place of the monotonic clock in wall time. On several machines `offset_ns` brings it to that of the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    base: Instant,
    base_unix_ns: u64,
}

impl Clock {
    /// With what is to be added to this machine's wall clock.
    pub(crate) fn new(offset_ns: i64) -> Clock {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock {
            base: Instant::now(),
            base_unix_ns: (since.as_nanos() as u64).saturating_add_signed(offset_ns),
        }
    }

    pub(crate) fn unix_ns(&self, at: Instant) -> u64 {
        match at.checked_duration_since(self.base) {
            Some(since) => self.base_unix_ns + since.as_nanos() as u64,
            None => self.base_unix_ns - self.base.duration_since(at).as_nanos() as u64,
        }
    }

    pub(crate) fn instant(&self, unix_ns: u64) -> Instant {
        match unix_ns.checked_sub(self.base_unix_ns) {
            Some(since) => self.base + Duration::from_nanos(since),
            None => self.base - Duration::from_nanos(self.base_unix_ns - unix_ns),
        }
    }
}

/// What threads read of the one that runs them.
#[derive(Debug)]
pub(crate) struct Control {
    pub clock: Clock,
    /// When the load begins; warm-up first.
    pub start_at: OnceLock<Instant>,
    /// Nanoseconds from the start after which nothing new is made; less after an interrupt.
    end_ns: AtomicU64,
    /// All producers are done: so many records were acknowledged.
    sealed: OnceLock<u64>,
    /// Whatever goes on is to end now.
    pub abandoned: AtomicBool,
    /// Distinct records that the members of each consumer group have, by its index.
    pub group_received: Vec<AtomicU64>,
    /// Of the broker, where the load is to kill it.
    pub outage: Outage,
}

impl Control {
    pub(crate) fn new(clock: Clock, length: Duration, consumer_groups: usize) -> Control {
        Control {
            clock,
            start_at: OnceLock::new(),
            end_ns: AtomicU64::new(length.as_nanos() as u64),
            sealed: OnceLock::new(),
            abandoned: AtomicBool::new(false),
            group_received: (0..consumer_groups).map(|_| AtomicU64::new(0)).collect(),
            outage: Outage::default(),
        }
    }

    pub(crate) fn end_ns(&self) -> u64 {
        self.end_ns.load(Ordering::Relaxed)
    }

    /// Ends the load now, if that is before its time.
    pub(crate) fn cut(&self) {
        let now = self.start_at.get().map_or(0, |start| start.elapsed().as_nanos() as u64);
        self.end_ns.fetch_min(now, Ordering::Relaxed);
    }

    pub(crate) fn seal(&self, acknowledged: u64) {
        let _ = self.sealed.set(acknowledged);
    }

    pub(crate) fn sealed(&self) -> Option<u64> {
        self.sealed.get().copied()
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }
}

/// A partition by the number of its topic in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Place {
    pub topic: u32,
    pub partition: i32,
}

/// What all threads of a phase do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Marks the records of this phase.
    pub run: u64,
    pub brokers: Vec<String>,
    pub client_id: String,
    pub request_timeout: Duration,
    pub seed: u64,
    pub topics: Arc<[Arc<str>]>,
    /// Partitions of each topic.
    pub partitions: Arc<[i32]>,
    pub warmup: Duration,
    /// Warm-up and measured time.
    pub length: Duration,
    /// The load ends when so many bytes were acknowledged.
    pub bytes_max: Option<u64>,
    /// What is counted; lanes, readers and churn say by index where they count.
    pub parts: Vec<PartName>,
}

/// What one thread does.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub lanes: Vec<LanePlan>,
    pub readers: Vec<ReaderPlan>,
    pub churn: Option<ChurnPlan>,
}

impl Work {
    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.is_empty() && self.readers.is_empty() && self.churn.is_none()
    }
}

/// One producer's records for the partitions of one leader, over one connection.
#[derive(Clone, Debug)]
pub(crate) struct LanePlan {
    pub settings: Arc<Producers>,
    pub producer: u32,
    pub places: Vec<Place>,
    pub share: Share,
    pub values: Values,
    pub trace: Option<Arc<[u64]>>,
    /// Where acknowledgements and the lateness of sends are counted.
    pub part: usize,
    pub lateness_part: usize,
}

/// One consumer.
#[derive(Clone, Debug)]
pub(crate) struct ReaderPlan {
    pub settings: Arc<Consumers>,
    /// Its group's index, and its own among all readers.
    pub group: usize,
    pub reader: usize,
    pub part: usize,
    /// Whether it must see every record of this phase, and times them from end to end.
    pub checks: bool,
    /// Of a group: its id.
    pub group_id: String,
}

#[derive(Clone, Debug)]
pub(crate) struct ChurnPlan {
    pub settings: Churn,
    pub share: Share,
    pub part: usize,
}

/// Whose records, and where.
pub(crate) type Origin = (u32, Place);

/// What one reader, or all members of a group on one thread, received of this phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    pub group: usize,
    /// None for the members of a group, which are one.
    pub reader: Option<usize>,
    pub sequences: BTreeMap<Origin, Sequences>,
    /// Of a member, where in the logs these were.
    pub offsets: BTreeMap<Place, Sequences>,
    /// Partitions in which all that was acknowledged has been handed out, if it is there at all.
    pub reached: BTreeSet<Place>,
    /// What the broker may have deleted before it was read, and the partitions in which it deleted something.
    pub deleted: BTreeMap<Origin, Sequences>,
    pub deleted_in: BTreeSet<Place>,
    pub duplicated: u64,
    /// Given again to a member of a group, from the same offset.
    pub redelivered: u64,
    pub reordered: u64,
    /// All records, those of others and of the warm-up included.
    pub read: u64,
}

/// What a thread tells.
#[derive(Debug)]
pub(crate) enum Report {
    /// Everything is connected.
    Ready,
    /// What was counted in a second of the measured time, by part; what came after the end has seconds past it.
    Interval { second: u64, tallies: Vec<Tally> },
    /// All of its lanes are done: what was acknowledged, and how many records that were due were never sent.
    Produced { acknowledged: BTreeMap<Origin, Sequences>, unsent: u64 },
    /// Everything is done.
    Done { received: Vec<Received>, effort: Effort },
    /// It cannot go on.
    Failed(Failure),
}
