//! One thread of the load: an executor, the connections on it, and what they count.

use super::churn::{churn, open_idle};
use super::effort::{Gauge, Sample};
use super::group_reader::read_in_group;
use super::lane::Lane;
use super::reader::Reader;
use super::{Control, Effort, Origin, Plan, Received, Report, Tally, Work};
use crate::failure::Failure;
use crate::scenario::Mode;
use crate::sequence::Sequences;
use crate::target::failure_of;
use flumen_client::runtime::{self, UringSettings};
use flumen_client::{Cluster, Error, Settings};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// How long lanes have to tell what they did when nothing is waited for any more.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(1);
/// How often whoever waits for another thread looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// What the connections of a thread share.
pub(super) struct Shop {
    pub(super) plan: Arc<Plan>,
    pub(super) control: Arc<Control>,
    pub(super) cluster: Cluster,
    /// By part, of the second that runs.
    pub(super) tallies: RefCell<Vec<Tally>>,
    /// When the load began.
    pub(super) start: Cell<Instant>,
    pub(super) acknowledged: RefCell<BTreeMap<Origin, Sequences>>,
    pub(super) unsent: Cell<u64>,
    /// Lanes that go on.
    pub(super) lanes: Cell<usize>,
}

impl Shop {
    /// Nanoseconds from the start.
    pub(super) fn ns(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start.get()).as_nanos() as u64
    }

    pub(super) fn at(&self, ns: u64) -> Instant {
        self.start.get() + Duration::from_nanos(ns)
    }

    pub(super) fn warmup_ns(&self) -> u64 {
        self.plan.warmup.as_nanos() as u64
    }

    /// Whether what was due then is within the measured time.
    pub(super) fn is_measured(&self, due_ns: u64) -> bool {
        due_ns >= self.warmup_ns() && due_ns < self.control.end_ns()
    }

    /// Whether it is the measured time now.
    pub(super) fn is_measuring(&self) -> bool {
        self.is_measured(self.ns(Instant::now()))
    }

    /// Counts errors that happened now, warm-up excepted.
    pub(super) fn error(&self, part: usize, name: &str, count: u64) {
        if self.ns(Instant::now()) >= self.warmup_ns() {
            self.tallies.borrow_mut()[part].error(name, count);
        }
    }

    /// A consumer is done that has read all the time: to the end of the measured time, if not beyond.
    pub(super) fn note_end(&self, part: usize) {
        let end_ns = self.ns(Instant::now()).min(self.control.end_ns());
        let tally = &mut self.tallies.borrow_mut()[part];
        tally.last_ns = tally.last_ns.max(end_ns);
    }

    /// Whether the load has begun: members of groups read before that.
    pub(super) fn has_started(&self) -> bool {
        self.control.start_at.get().is_some()
    }

    pub(super) async fn wait_for_start(&self) {
        let start = loop {
            if let Some(start) = self.control.start_at.get() {
                break *start;
            }
            if self.control.is_abandoned() {
                break Instant::now();
            }
            runtime::sleep(LOOK_INTERVAL).await;
        };
        self.start.set(start);
        runtime::sleep(start.saturating_duration_since(Instant::now())).await;
    }
}

/// Runs the work of one thread to its end, on io_uring where there is any.
pub(crate) fn run_thread(
    plan: Arc<Plan>,
    control: Arc<Control>,
    work: Work,
    reports: Sender<Report>,
    uring: bool,
) {
    let told = reports.clone();
    let main = move || async move {
        if let Err(error) = carry_out(plan, control, work, &reports).await {
            let _ = reports.send(Report::Failed(failure_of(error)));
        }
    };
    if !uring {
        return runtime::block_on(main());
    }
    if let Err(error) = runtime::run_uring(&UringSettings::default(), main) {
        let _ = told.send(Report::Failed(Failure::Other(error.to_string())));
    }
}

async fn carry_out(
    plan: Arc<Plan>,
    control: Arc<Control>,
    work: Work,
    reports: &Sender<Report>,
) -> Result<(), Error> {
    let settings = Settings {
        brokers: plan.brokers.clone(),
        client_id: plan.client_id.clone(),
        request_timeout: plan.request_timeout,
        retry_timeout: plan.request_timeout,
    };
    let cluster = Cluster::connect(settings).await?;
    let names: Vec<&str> = plan.topics.iter().map(|name| &**name).collect();
    cluster.refresh(flumen_client::cluster::Topics::Named(&names), false).await?;
    let shop = Rc::new(Shop {
        tallies: RefCell::new(vec![Tally::default(); plan.parts.len()]),
        plan,
        control,
        cluster,
        start: Cell::new(Instant::now()),
        acknowledged: RefCell::default(),
        unsent: Cell::new(0),
        lanes: Cell::new(work.lanes.len()),
    });
    let mut lanes = Vec::new();
    for plan in work.lanes {
        lanes.push(Lane::open(&shop, plan).await?);
    }
    let received = Rc::new(RefCell::new(Vec::<Received>::new()));
    // Readers, members and what opens connections, as far as they are at it; members that have not joined, and why one could not.
    let (open, joining, failed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Rc::new(RefCell::new(None)));
    let mut readers = Vec::new();
    for plan in work.readers {
        open.set(open.get() + 1);
        if plan.settings.mode == Mode::Assign {
            readers.push(Reader::open(&shop, plan).await?);
            continue;
        }
        joining.set(joining.get() + 1);
        let (shop, received, open) = (shop.clone(), received.clone(), open.clone());
        let (joining, failed) = (joining.clone(), failed.clone());
        runtime::spawn(async move {
            match read_in_group(shop, plan, || joining.set(joining.get() - 1)).await {
                Ok(one) => received.borrow_mut().push(one),
                Err(error) => *failed.borrow_mut() = Some(error),
            }
            open.set(open.get() - 1);
        });
    }
    while joining.get() > 0 {
        runtime::sleep(LOOK_INTERVAL).await;
        if let Some(error) = failed.take() {
            return Err(error);
        }
    }
    let idle = match &work.churn {
        Some(plan) => open_idle(&shop, plan).await?,
        None => Vec::new(),
    };
    let _ = reports.send(Report::Ready);
    shop.wait_for_start().await;

    for lane in lanes {
        let shop = shop.clone();
        runtime::spawn(lane.run(shop));
    }
    if let Some(plan) = work.churn {
        open.set(open.get() + 1);
        let (shop, open) = (shop.clone(), open.clone());
        runtime::spawn(async move {
            churn(shop, plan, idle).await;
            open.set(open.get() - 1);
        });
    }
    for reader in readers {
        let (shop, received, open) = (shop.clone(), received.clone(), open.clone());
        runtime::spawn(async move {
            let one = reader.run(&shop).await;
            received.borrow_mut().push(one);
            open.set(open.get() - 1);
        });
    }
    let is_done = Cell::new(false);
    let all = async {
        tell_when_produced(&shop, reports).await;
        while open.get() > 0 {
            runtime::sleep(LOOK_INTERVAL).await;
        }
        while shop.ns(Instant::now()) < shop.control.end_ns() {
            runtime::sleep(LOOK_INTERVAL).await;
        }
        is_done.set(true);
    };
    let ((), effort) = futures_util::future::join(all, tell_intervals(&shop, reports, &is_done)).await;
    let received = received.take();
    let _ = reports.send(Report::Done { received, effort });
    Ok(())
}

async fn tell_when_produced(shop: &Shop, reports: &Sender<Report>) {
    let mut abandoned_at = None;
    while shop.lanes.get() > 0 {
        if shop.control.is_abandoned() {
            // They end at once, unless they wait for a connection.
            let since: Instant = *abandoned_at.get_or_insert_with(Instant::now);
            if since.elapsed() > ABANDON_TIMEOUT {
                break;
            }
        }
        runtime::sleep(LOOK_INTERVAL).await;
    }
    let acknowledged = shop.acknowledged.take();
    let _ = reports.send(Report::Produced { acknowledged, unsent: shop.unsent.get() });
}

/// Sends what was counted whenever a second of the measured time is over. How full the thread was in that time.
async fn tell_intervals(shop: &Shop, reports: &Sender<Report>, is_done: &Cell<bool>) -> Effort {
    let wait_until = async |at: Instant| {
        while Instant::now() < at && !is_done.get() {
            let left = at.saturating_duration_since(Instant::now());
            runtime::sleep(left.min(Duration::from_millis(20))).await;
        }
    };
    let first_ns = shop.warmup_ns();
    wait_until(shop.at(first_ns)).await;
    let mut gauge = Gauge::new(Sample::now(), Instant::now());
    let mut is_measuring = true;
    for second in 0.. {
        wait_until(shop.at(first_ns + (second + 1) * 1_000_000_000)).await;
        let now = Instant::now();
        if is_measuring {
            gauge.add(Sample::now(), now);
        }
        // What comes after the end is not measured.
        is_measuring = shop.ns(now) < shop.control.end_ns();
        let fresh = vec![Tally::default(); shop.plan.parts.len()];
        let tallies = shop.tallies.replace(fresh);
        let _ = reports.send(Report::Interval { second, tallies });
        if is_done.get() {
            break;
        }
    }
    gauge.effort()
}
