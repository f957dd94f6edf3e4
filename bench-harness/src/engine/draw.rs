//! Where the next record goes, and what its key is: one lane's lots, whatever client sends it.

use super::{Place, Plan};
use crate::keys::Keys;
use crate::scenario::{Partitioning, Producers};
use flumen_client::producer::partitioner;

/// With skew, a lane of few partitions may have rare keys only.
const DRAWS_MAX: usize = 10_000;

/// A place of the lane by its number, and the rank of a key.
pub(super) type Drawn = (u32, u64);

/// See the head of this file.
pub(super) struct Draw {
    partitioning: Partitioning,
    /// None where records have none.
    keys: Option<Keys>,
    lots: fastrand::Rng,
    next: usize,
    key: Vec<u8>,
}

impl Draw {
    /// Producers do not all begin with the same of their `places`.
    pub(super) fn new(settings: &Producers, producer: u32, places: usize, seed: u64) -> Draw {
        let seed = seed ^ (u64::from(producer) << 32);
        Draw {
            partitioning: settings.partitioning,
            keys: (settings.keys > 0).then(|| Keys::new(settings.keys, settings.key_skew, seed)),
            lots: fastrand::Rng::with_seed(seed),
            next: producer as usize % places,
            key: Vec::new(),
        }
    }

    pub(super) fn has_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// The next one of so many places; `find` gives the number of a place that is the lane's.
    pub(super) fn next(&mut self, plan: &Plan, places: usize, find: impl Fn(Place) -> Option<u32>) -> Drawn {
        let key = self.keys.as_mut().map_or(0, Keys::next);
        let place = match self.partitioning {
            Partitioning::Sticky => self.next,
            Partitioning::RoundRobin => {
                let place = self.next;
                self.turn(places);
                place
            }
            Partitioning::Random => self.lots.usize(0..places),
            Partitioning::Key => return self.by_key(plan, places, find, key),
        };
        (place as u32, key)
    }

    /// Goes on to the place after the one at hand, and says which it is.
    pub(super) fn turn(&mut self, places: usize) -> usize {
        self.next = (self.next + 1) % places;
        self.next
    }

    /// The lane has other places now.
    pub(super) fn begin_again(&mut self) {
        self.next = 0;
    }

    /// Draws keys until one belongs to a place of this lane: those of other leaders have lanes of their own.
    fn by_key(
        &mut self,
        plan: &Plan,
        places: usize,
        find: impl Fn(Place) -> Option<u32>,
        mut key: u64,
    ) -> Drawn {
        for _ in 0..DRAWS_MAX {
            write_key(&mut self.key, key);
            // Keys spread over the topics as over the partitions of each.
            let topic = (key % plan.topics.len() as u64) as u32;
            let partition = partitioner::of_key(&self.key, plan.partitions[topic as usize]);
            if let Some(place) = find(Place { topic, partition }) {
                return (place, key);
            }
            key = self.keys.as_mut().map_or(0, Keys::next);
        }
        (self.lots.u32(0..places as u32), key)
    }
}

/// A key as text, so that other tools show it.
pub(super) fn write_key(into: &mut Vec<u8>, rank: u64) {
    into.clear();
    into.extend_from_slice(b"key-");
    let mut digits = [b'0'; 12];
    let mut left = rank;
    for digit in digits.iter_mut().rev() {
        *digit += (left % 10) as u8;
        left /= 10;
    }
    into.extend_from_slice(&digits);
}
