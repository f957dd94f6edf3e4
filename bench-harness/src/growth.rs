//! Did the logs grow by what was acknowledged? Asked of the broker before and after a phase (ListOffsets), so that loss is
//! found where nobody reads.
//!
//! A log that grew by less has lost records. One that grew by more may hold duplicates, unless records of unknown fate or
//! another writer explain it.

use crate::engine::Place;
use crate::failure::Failure;
use crate::result::Growth;
use crate::target::{Target, failure_of};
use flumen_client::cluster::{LATEST, Topics};
use flumen_client::consumer::offsets_at;
use flumen_client::metadata::TopicPartition;
use flumen_client::runtime;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Followers may lag behind what a leader alone has acknowledged: so long is waited for them.
const LAG_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The ends of the logs, by partition.
pub(crate) type Ends = BTreeMap<Place, i64>;

/// Where the logs of the target end now.
pub(crate) fn ends(target: &Target, timeout: Duration) -> Result<Ends, Failure> {
    let asked = async {
        let cluster = target.connect(timeout).await?;
        let names: Vec<&str> = target.topics.iter().map(|topic| topic.name.as_str()).collect();
        cluster.refresh(Topics::Named(&names), false).await?;
        let mut places = BTreeMap::new();
        for (topic, state) in target.topics.iter().enumerate() {
            for partition in 0..state.leaders.len() as i32 {
                let place = Place { topic: topic as u32, partition };
                places.insert(TopicPartition::new(&*state.name, partition), place);
            }
        }
        let partitions: Vec<_> = places.keys().cloned().collect();
        let found = offsets_at(&cluster, &partitions, LATEST).await?;
        Ok(found.into_iter().filter_map(|(at, end)| Some((*places.get(&at)?, end))).collect())
    };
    runtime::block_on(asked).map_err(failure_of)
}

/// How the logs have grown since `begin`; what seems to be missing may be on its way.
pub(crate) fn since(
    begin: &Ends,
    acknowledged: &BTreeMap<Place, u64>,
    target: &Target,
    timeout: Duration,
) -> Result<Growth, Failure> {
    let deadline = Instant::now() + LAG_TIMEOUT;
    loop {
        let growth = between(begin, &ends(target, timeout)?, acknowledged);
        if growth.missing == 0 || Instant::now() > deadline {
            return Ok(growth);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn between(begin: &Ends, end: &Ends, acknowledged: &BTreeMap<Place, u64>) -> Growth {
    let mut growth = Growth::default();
    for (place, begin) in begin {
        let appended = end.get(place).map_or(0, |end| end.saturating_sub(*begin).max(0)) as u64;
        let acknowledged = acknowledged.get(place).copied().unwrap_or_default();
        growth.appended += appended;
        growth.acknowledged += acknowledged;
        growth.missing += acknowledged.saturating_sub(appended);
        growth.surplus += appended.saturating_sub(acknowledged);
    }
    growth
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_partition_lacks_another_does_not_make_up_for() {
        let at = |partition| Place { topic: 0, partition };
        let begin = Ends::from([(at(0), 100), (at(1), 0), (at(2), 7)]);
        let end = Ends::from([(at(0), 110), (at(1), 12), (at(2), 3)]);
        let acknowledged = BTreeMap::from([(at(0), 13), (at(1), 10), (at(2), 1)]);
        let growth = between(&begin, &end, &acknowledged);
        assert_eq!((growth.acknowledged, growth.appended), (24, 22));
        assert_eq!((growth.missing, growth.surplus), (3 + 1, 2));
    }
}
