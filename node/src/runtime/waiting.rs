//! How a shard waits for its sockets.
//!
//! glommio's way to sleep and wake costs about nine entries into the kernel, a barrier on all cores and an eventfd that
//! is armed anew: more than all the rest of a small request. A shard that has had work a moment ago therefore waits in
//! one `epoll_wait` for what a request consists of: its sockets, its own ring (`ring.rs`), other shards (the bell
//! of its door), the next of its sleeps (`clock.rs`), and what has asked for it ([`attend`]). Else what glommio works on is
//! not among these, so that wait is bounded:
//!
//! ```text
//!              nothing runnable, nothing in flight through glommio, PASS not over
//!   turn ── others run ──────────────────────────────────────────────> epoll_wait ── sockets ──> turn
//!                │                                                         │ PASS is over
//!                └── otherwise ──> glommio's way: its rings, its timers, its sleep ── any of these ──> turn
//! ```
//!
//! Invariants: a shard whose tasks are runnable does not wait; a task that a foreign thread wakes rings the bell;
//! a sleep ends when it should, glommio's other timers and files come late by [`PASS`] at most; a shard at rest sleeps
//! glommio's way.
use super::clock::{next_alarm, ring_alarms};
use super::executor::is_in_flight;
use super::task::{Home, home};
use super::{ring, uptime};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use std::cell::{Cell, OnceCell};
use std::future::poll_fn;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// Longest time without a look at glommio's rings and timers. A look costs as much as a small request, and is seldom needed:
/// what glommio does for requests is counted as in flight, and what the admin server waits for is attended.
const PASS: Duration = Duration::from_millis(500);
/// How often the other tasks are let run before glommio is asked, which has a queue for those in the background.
const ROUNDS_MAX: u32 = 8;

const SOCKETS: u64 = 0;
const RING: u64 = 1;
const BELL: u64 = 2;
const ATTENDED: u64 = 3;

thread_local! {
    /// What the shard waits with; made by whoever is first. `None`: there were no descriptors left.
    static EPOLL: OnceCell<Option<Rc<OwnedFd>>> = const { OnceCell::new() };
}

fn shared_epoll() -> Option<Rc<OwnedFd>> {
    let create = || epoll::create(epoll::CreateFlags::CLOEXEC).ok().map(Rc::new);
    EPOLL.with(|epoll| epoll.get_or_init(create).clone())
}

/// Has a change of `descriptor`, which glommio waits for, end this shard's waits without glommio, until it is closed. Where
/// that fails, it is seen late by [`PASS`].
pub fn attend(descriptor: BorrowedFd<'_>) {
    // A change is told once: who is slow to take it does not keep the shard awake.
    let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
    if let Some(epoll) = shared_epoll() {
        let _ = epoll::add(&*epoll, descriptor, epoll::EventData::new_u64(ATTENDED), flags);
    }
}

/// See the module. For one task of each shard.
pub struct Waiting {
    /// `None`: there are no descriptors left. Then glommio's way is the only one.
    epoll: Option<Rc<OwnedFd>>,
    _ring: Option<ring::Watch>,
    home: Rc<Home>,
    /// When glommio is to look at its rings next.
    next_pass: Cell<Duration>,
}

/// What a wait ended with.
enum Seen {
    Sockets,
    /// Tasks were woken.
    Others,
    Nothing,
}

impl Waiting {
    /// For `sockets`, a descriptor whose readiness epoll reports.
    pub fn new(sockets: BorrowedFd<'_>) -> Waiting {
        let (home, ring) = (home(), ring::Watch::begin());
        let epoll = home.door.bell().and_then(|bell| {
            let epoll = shared_epoll()?;
            let add = |fd: BorrowedFd<'_>, name| {
                epoll::add(&*epoll, fd, epoll::EventData::new_u64(name), epoll::EventFlags::IN).ok()
            };
            add(sockets, SOCKETS)?;
            add(bell.as_fd(), BELL)?;
            ring.as_ref().map_or(Some(()), |ring| add(ring.as_fd(), RING))?;
            Some(epoll)
        });
        // Without it nobody would look at the ring but its own task.
        let ring = ring.filter(|_| epoll.is_some());
        Waiting { epoll, _ring: ring, home, next_pass: Cell::new(Duration::ZERO) }
    }

    /// Resolves once the sockets may be ready.
    pub async fn readable(&self, sockets: BorrowedFd<'_>) {
        let mut rounds = 0;
        while let Some(epoll) = &self.epoll {
            self.home.door.answer();
            let runnable = self.home.door.pulse.owes_a_poll();
            if runnable && rounds < ROUNDS_MAX {
                rounds += 1;
                give_way().await;
                continue;
            }
            let left = self.next_pass.get().saturating_sub(uptime());
            if runnable || left.is_zero() || is_in_flight() {
                break;
            }
            match self.wait(epoll, left) {
                Seen::Sockets => return,
                Seen::Others => rounds = 0,
                Seen::Nothing => break,
            }
        }
        match &self.epoll {
            Some(epoll) => super::readable(epoll.as_fd()).await,
            None => super::readable(sockets).await,
        }
        ring::collect();
        self.next_pass.set(uptime() + PASS);
    }

    fn wait(&self, epoll: &OwnedFd, time: Duration) -> Seen {
        let door = &self.home.door;
        if !door.begin_wait() {
            door.end_wait(false);
            return Seen::Others;
        }
        let alarm = next_alarm().map_or(time, |at| at.saturating_sub(uptime()));
        let time = time.min(alarm);
        let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 4];
        // It holds its core no more than if it slept.
        let name = door.pulse.leave_for_a_while();
        let found = epoll::wait(epoll, &mut events, Some(&time));
        door.pulse.enter(name);
        let found: &[epoll::Event] = match found {
            Ok((found, _)) => found,
            // A completion of the ring interrupts the wait.
            Err(Errno::INTR) => {
                &[epoll::Event { flags: epoll::EventFlags::IN, data: epoll::EventData::new_u64(RING) }]
            }
            Err(error) => panic!("epoll_wait on our own descriptor: {error}"),
        };
        let has = |name| found.iter().any(|event| event.data.u64() == name);
        door.end_wait(has(BELL));
        if has(ATTENDED) {
            self.next_pass.set(Duration::ZERO);
        }
        ring::collect();
        let rung = ring_alarms();
        match found {
            [] if !rung => Seen::Nothing,
            _ if has(SOCKETS) => Seen::Sockets,
            _ => Seen::Others,
        }
    }
}

/// Lets all tasks of this queue that are runnable run once.
async fn give_way() {
    let mut given = false;
    poll_fn(|context| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
