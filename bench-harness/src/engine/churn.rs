//! Connections that come and go: each asks for the versions and for metadata, stays for a while, and closes. Timed from
//! when it was due to its first answer. Some more are opened before and stay idle.

use super::ChurnPlan;
use super::tally::{Amount, error_name};
use super::thread::Shop;
use crate::scenario::Producers;
use crate::schedule::{Schedule, Share};
use flumen_client::link::{Link, LinkSettings};
use flumen_client::{Error, runtime};
use flumen_wire::messages::metadata_request::MetadataRequest;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Connections that one thread has open at once: past that, those that are due wait.
const OPEN_MAX: usize = 2000;
/// Idle ones that one thread opens at once: few enough for any broker's backlog.
const OPENING_MAX: usize = 32;
/// Between two looks whether something is over.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Opens those that stay idle: before the load begins, so that what they cost the broker is there when it is watched.
pub(super) async fn open_idle(shop: &Shop, plan: &ChurnPlan) -> Result<Vec<Link>, Error> {
    let Share { index, count, .. } = plan.share;
    let mine = (index..plan.settings.idle as usize).step_by(count);
    let brokers = &shop.plan.brokers;
    let opening = mine
        .map(|number| async move { Link::connect(&brokers[number % brokers.len()], &settings(shop)).await });
    stream::iter(opening).buffer_unordered(OPENING_MAX).try_collect().await
}

pub(super) async fn churn(shop: Rc<Shop>, plan: ChurnPlan, idle: Vec<Link>) {
    if plan.settings.rate > 0.0 {
        open_by_the_clock(&shop, &plan).await;
    }
    while shop.ns(Instant::now()) < shop.control.end_ns() && !shop.control.is_abandoned() {
        runtime::sleep(LOOK_INTERVAL).await;
    }
    drop(idle);
}

fn settings(shop: &Shop) -> LinkSettings {
    LinkSettings { client_id: shop.plan.client_id.clone(), request_timeout: shop.plan.request_timeout }
}

async fn open_by_the_clock(shop: &Rc<Shop>, plan: &ChurnPlan) {
    let law = Producers { rate: plan.settings.rate, ..Producers::default() };
    let mut schedule = Schedule::new(&law, plan.share, shop.plan.length.as_secs_f64(), shop.plan.seed, None);
    let (open, unanswered) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let mut number = 0;
    while schedule.next_ns() < shop.control.end_ns() && !shop.control.is_abandoned() {
        let due_ns = schedule.next_ns();
        runtime::sleep(shop.at(due_ns).saturating_duration_since(Instant::now())).await;
        while open.get() >= OPEN_MAX {
            runtime::sleep(Duration::from_millis(1)).await;
        }
        schedule.advance();
        number += 1;
        open.set(open.get() + 1);
        unanswered.set(unanswered.get() + 1);
        let address = shop.plan.brokers[number % shop.plan.brokers.len()].clone();
        let (shop, open, unanswered, part) = (shop.clone(), open.clone(), unanswered.clone(), plan.part);
        let hold = Duration::from_secs_f64(plan.settings.hold_ms / 1e3);
        runtime::spawn(async move {
            let visited = visit(&shop, &address, due_ns, part).await;
            unanswered.set(unanswered.get() - 1);
            match visited {
                Ok(_open) => runtime::sleep(hold).await,
                Err(error) => shop.error(part, &error_name(&error), 1),
            }
            open.set(open.get() - 1);
        });
    }
    // Each has its answer or its error by the request timeout: a broker that stands still at the end is seen.
    while unanswered.get() > 0 && !shop.control.is_abandoned() {
        runtime::sleep(LOOK_INTERVAL).await;
    }
}

/// The connection, once it was answered.
async fn visit(shop: &Shop, address: &str, due_ns: u64, part: usize) -> Result<Link, Error> {
    let link = Link::connect(address, &settings(shop)).await?;
    let names = Some(Vec::new());
    let asked = link.call(|_| MetadataRequest { topics: names, ..Default::default() }).await?;
    asked.read()?;
    if shop.is_measured(due_ns) {
        let (mut tallies, now_ns) = (shop.tallies.borrow_mut(), shop.ns(Instant::now()));
        tallies[part].time(now_ns.saturating_sub(due_ns));
        let amount = Amount { requests: 1, ..Amount::default() };
        tallies[part].count(amount, now_ns, shop.control.end_ns());
    }
    Ok(link)
}
