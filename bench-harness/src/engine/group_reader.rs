//! A member of a consumer group, as its users write one: it joins, reads what it is given, commits, and joins again when
//! the group rebalances.

use super::receipts::{Receipts, Taken};
use super::tally::{Amount, error_name};
use super::thread::Shop;
use super::{Place, ReaderPlan, Received};
use crate::scenario::From;
use flumen_client::cluster::{EARLIEST, LATEST, Topics};
use flumen_client::consumer::{Consumer, ConsumerSettings, offsets_at};
use flumen_client::group::{GroupMember, GroupSettings};
use flumen_client::metadata::TopicPartition;
use flumen_client::{Cluster, Error, runtime};
use flumen_wire::ErrorCode;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long one wait for records is: the end is looked for after that.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// Between two commits, as Kafka's clients have it.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// Pause after an error.
const PAUSE: Duration = Duration::from_millis(100);

/// Finds where the group begins, and joins it. The group is complete when all members have joined, so that none may wait
/// for another: `joined` is called when this one has.
pub(super) async fn read_in_group(
    shop: Rc<Shop>,
    plan: ReaderPlan,
    joined: impl FnOnce(),
) -> Result<Received, Error> {
    let mut topics = BTreeMap::new();
    let mut all = Vec::new();
    for (number, name) in shop.plan.topics.iter().enumerate() {
        topics.insert(name.to_string(), number as u32);
        all.extend(
            (0..shop.plan.partitions[number]).map(|partition| TopicPartition::new(&**name, partition)),
        );
    }
    let when = match plan.settings.from {
        From::Earliest => EARLIEST,
        From::Latest => LATEST,
    };
    // With connections of its own: a JoinGroup waits at the broker for the other members, and those behind it on the same
    // connection would wait with it.
    let cluster = Cluster::connect(shop.cluster.settings().clone()).await?;
    let named: Vec<&str> = shop.plan.topics.iter().map(|name| &**name).collect();
    cluster.refresh(Topics::Named(&named), false).await?;
    let begin = offsets_at(&cluster, &all, when).await?;
    let names = shop.plan.topics.iter().map(|name| Rc::from(&**name)).collect();
    let member = GroupMember::new(&cluster, GroupSettings::new(&plan.group_id, names));
    let settings = ConsumerSettings {
        wait: Duration::from_millis(plan.settings.wait_ms.into()),
        bytes_min: plan.settings.bytes_min,
        bytes_max: plan.settings.bytes_max,
        partition_bytes_max: plan.settings.partition_bytes_max,
        reset: Some(EARLIEST),
        ..ConsumerSettings::default()
    };
    let mut reader = GroupReader {
        consumer: Consumer::new(&cluster, settings),
        cluster,
        member,
        begin,
        ends: None,
        topics,
        receipts: Receipts::of_member(plan.group),
        counted: 0,
        committed_at: Instant::now(),
        has_caught_up: false,
        plan,
    };
    reader.join().await?;
    joined();
    Ok(reader.run(&shop).await)
}

struct GroupReader {
    plan: ReaderPlan,
    cluster: Cluster,
    member: GroupMember,
    consumer: Consumer,
    /// Where what nobody has committed begins.
    begin: BTreeMap<TopicPartition, i64>,
    /// Where everything ends that was acknowledged. What answers to fetches said of ends may be older than that.
    ends: Option<BTreeMap<TopicPartition, i64>>,
    topics: BTreeMap<String, u32>,
    receipts: Receipts,
    /// Of the distinct records, those that the group's count has.
    counted: u64,
    committed_at: Instant,
    /// All that was there is read, where that is the work.
    has_caught_up: bool,
}

impl GroupReader {
    async fn join(&mut self) -> Result<(), Error> {
        let assigned = self.member.join().await?;
        let committed = self.member.committed(&assigned).await?;
        let offsets = assigned.into_iter().map(|at| {
            let offset = committed
                .get(&at)
                .map(|one| one.offset)
                .or_else(|| self.begin.get(&at).copied())
                .unwrap_or(0);
            (at, offset)
        });
        self.consumer.assign(&offsets.collect());
        Ok(())
    }

    async fn run(mut self, shop: &Shop) -> Received {
        let mut sealed_since = None;
        loop {
            let ended = shop.has_started() && shop.ns(Instant::now()) >= shop.control.end_ns();
            if shop.control.is_abandoned() || (!self.plan.checks && ended) {
                break;
            }
            if let Some(acknowledged) = shop.control.sealed() {
                let since = *sealed_since.get_or_insert_with(Instant::now);
                if self.ends.is_none()
                    && let Err(error) = self.find_ends().await
                {
                    shop.error(self.plan.part, &error_name(&error), 1);
                }
                if self.is_complete(shop, acknowledged, since) {
                    break;
                }
            }
            if let Err(error) = self.step(shop).await {
                shop.error(self.plan.part, &error_name(&error), 1);
                runtime::sleep(PAUSE).await;
            }
        }
        self.note_reached();
        if !self.has_caught_up {
            shop.note_end(self.plan.part);
        }
        let _ = self.commit().await;
        let _ = self.member.leave().await;
        self.receipts.into_received()
    }

    /// Whether its work is what was there before.
    fn reads_history(&self) -> bool {
        !self.plan.checks && self.plan.settings.from == From::Earliest
    }

    async fn find_ends(&mut self) -> Result<(), Error> {
        let all: Vec<TopicPartition> = self.begin.keys().cloned().collect();
        self.ends = Some(offsets_at(&self.cluster, &all, LATEST).await?);
        Ok(())
    }

    /// What was given to several members is in the group's count several times: it alone ends nothing.
    fn is_complete(&mut self, shop: &Shop, acknowledged: u64, since: Instant) -> bool {
        let received = shop.control.group_received[self.plan.group].load(Ordering::Relaxed);
        let mut positions = self.consumer.positions().iter();
        let is_at_end = positions.all(|(at, one)| is_at_end(self.ends.as_ref(), at, one.offset));
        let is_stable = self.member.must_rejoin().is_ok_and(|must| !must);
        (received >= acknowledged && is_at_end && is_stable)
            || self.receipts.is_quiet(since, self.plan.settings.pause())
    }

    fn note_reached(&mut self) {
        for (at, position) in self.consumer.positions() {
            if let Some(topic) = self.topics.get(&*at.topic)
                && is_at_end(self.ends.as_ref(), at, position.offset)
            {
                self.receipts.note_reached(Place { topic: *topic, partition: at.partition });
            }
        }
    }

    async fn step(&mut self, shop: &Shop) -> Result<(), Error> {
        if self.member.must_rejoin()? {
            self.commit().await?;
            self.join().await?;
        }
        if self.committed_at.elapsed() > COMMIT_INTERVAL {
            self.commit().await?;
        }
        if self.reads_history() && !shop.has_started() {
            // It is there to be read by all of the group, when the time for it begins.
            runtime::sleep(POLL_TIMEOUT).await;
            return Ok(());
        }
        if !self.plan.settings.pause().is_zero() {
            runtime::sleep(self.plan.settings.pause()).await;
        }
        let polled = runtime::timeout(POLL_TIMEOUT, self.consumer.poll()).await;
        self.heed_resets();
        let Some(fetched) = polled else { return Ok(()) };
        let now = Instant::now();
        let now_unix_ns = shop.control.clock.unix_ns(now);
        // What is read while others of the group still join is no part of the load.
        let start_unix_ns = shop.control.start_at.get().map(|start| shop.control.clock.unix_ns(*start));
        let is_measured = |due_unix_ns: u64| {
            start_unix_ns.is_some_and(|start| shop.is_measured(due_unix_ns.saturating_sub(start)))
        };
        let mut requests = 1;
        for one in fetched? {
            let Some(topic) = self.topics.get(&*one.at.topic) else { continue };
            let place = Place { topic: *topic, partition: one.at.partition };
            let mut tallies = shop.tallies.borrow_mut();
            let tally = &mut tallies[self.plan.part];
            let mut measured = Amount::default();
            let _ = one.for_each(|record| {
                let value = record.value.unwrap_or_default();
                self.receipts.note_arrival(now);
                let taken = self.receipts.take(shop.plan.run, place, record.offset, value);
                let due_unix_ns = match taken {
                    Taken::Ours(header) => header.due_unix_ns,
                    Taken::Foreign => now_unix_ns,
                    Taken::Redelivered => return ControlFlow::Continue(()),
                };
                if is_measured(due_unix_ns) && !self.has_caught_up {
                    if self.plan.checks && matches!(taken, Taken::Ours(_)) {
                        tally.time(now_unix_ns.saturating_sub(due_unix_ns));
                    }
                    measured.add(Amount { requests: 0, records: 1, bytes: value.len() as u64 });
                }
                ControlFlow::Continue(())
            })?;
            if measured.records > 0 {
                measured.requests = std::mem::take(&mut requests);
                tally.count(measured, shop.ns(now), shop.control.end_ns());
            }
        }
        let mut positions = self.consumer.positions().values();
        if self.reads_history()
            && !self.has_caught_up
            && positions.all(|one| one.end >= 0 && one.offset >= one.end)
        {
            self.has_caught_up = true;
            shop.note_end(self.plan.part);
        }
        let news = self.receipts.distinct() - self.counted;
        self.counted += news;
        shop.control.group_received[self.plan.group].fetch_add(news, Ordering::Relaxed);
        Ok(())
    }

    /// That the group has moved on is no failure: whoever has the partitions now begins at the last commit.
    async fn commit(&mut self) -> Result<(), Error> {
        self.committed_at = Instant::now();
        let positions = self.consumer.positions().iter().map(|(at, position)| (at.clone(), position.offset));
        match self.member.commit(&positions.collect()).await {
            Err(error) if is_over(&error) => {
                self.member.request_rejoin();
                Ok(())
            }
            result => result,
        }
    }

    /// Those parts of the logs that are gone by now.
    fn heed_resets(&mut self) {
        for reset in self.consumer.take_resets() {
            if let Some(topic) = self.topics.get(&*reset.at.topic)
                && reset.to > reset.from
            {
                self.receipts.note_deletion(Place { topic: *topic, partition: reset.at.partition });
            }
        }
    }
}

/// Whether all that ends there was handed out, as far as the ends are known.
fn is_at_end(ends: Option<&BTreeMap<TopicPartition, i64>>, at: &TopicPartition, offset: i64) -> bool {
    ends.and_then(|ends| ends.get(at)).is_some_and(|end| offset >= *end)
}

fn is_over(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(ErrorCode::IllegalGeneration | ErrorCode::UnknownMemberId | ErrorCode::RebalanceInProgress)
    )
}
