//! The guards around glommio, tasks and their time, and how a shard waits.
use super::*;
use std::cell::{Cell, RefCell};
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

fn settings() -> Settings {
    Settings { io_memory: 1 << 20, ring_depth: 64, ..Settings::default() }
}

fn on_shard<F, Fut, T>(main: F) -> T
where
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: std::future::Future<Output = T> + 'static,
    T: Send + 'static,
{
    run_once(&settings(), main).expect("an executor")
}

#[test]
fn shards_run_their_seeds_and_return_what_they_made_of_them() {
    let executors =
        start(&settings(), vec![10, 20, 30], |seat, seed| async move { (shard().0, seat.shards, seed) })
            .expect("three executors");
    let results: Vec<_> = executors.join().into_iter().map(|result| result.expect("no panic")).collect();
    assert_eq!(results, [(0, 3, 10), (1, 3, 20), (2, 3, 30)]);
}

#[test]
fn a_spawned_task_runs_later_never_inside_the_call() {
    on_shard(|| async {
        let log = Rc::new(RefCell::new(Vec::new()));
        let borrowed = log.borrow_mut();
        let join = {
            let log = log.clone();
            spawn("later", async move { log.borrow_mut().push("task") })
        };
        drop(borrowed);
        log.borrow_mut().push("caller");
        join.await.expect("it ran");
        assert_eq!(*log.borrow(), ["caller", "task"]);
    });
}

#[test]
fn a_panic_of_an_isolated_task_ends_that_task_alone() {
    let executors = start(&settings(), vec![()], |_, ()| async {
        let lost = spawn_isolated("isolated", async { assert!(uptime().is_zero(), "planned") }).await;
        let fine = spawn_isolated("isolated", async { 7 }).await;
        (lost, fine)
    })
    .expect("an executor");
    let health = executors.health();
    let result = executors.join().pop().expect("one shard").expect("the shard lives");
    assert_eq!(result, (Err(Lost), Ok(7)));
    assert_eq!(health()[0].isolated_panics, 1);
}

#[test]
fn a_panic_on_the_blocking_thread_reaches_the_caller_and_the_thread_lives_on() {
    on_shard(|| async {
        for _ in 0..8 {
            let lost = spawn_isolated("blocked", blocking(|| assert!(uptime().is_zero(), "planned"))).await;
            assert_eq!(lost, Err(Lost));
        }
        assert_eq!(blocking(|| 7).await, 7);
    });
}

/// A future that hands out its waker and is ready when told.
struct Handed {
    waker: Arc<std::sync::Mutex<Option<Waker>>>,
    ready: Arc<AtomicBool>,
    polls: Rc<Cell<u64>>,
}

impl std::future::Future for Handed {
    type Output = ();
    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<()> {
        self.polls.set(self.polls.get() + 1);
        *self.waker.lock().expect("not poisoned") = Some(cx.waker().clone());
        if self.ready.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// glommio's own waker panics at the 32,768th clone, and in the thread that wakes a busy executor as often.
#[test]
fn wakers_may_be_cloned_and_woken_without_limit_from_any_thread() {
    on_shard(|| async {
        let waker = Arc::new(std::sync::Mutex::new(None::<Waker>));
        let ready = Arc::new(AtomicBool::new(false));
        let polls = Rc::new(Cell::new(0));
        let join =
            spawn("handed", Handed { waker: waker.clone(), ready: ready.clone(), polls: polls.clone() });
        sleep(Duration::from_millis(1)).await;
        let foreign = {
            let (waker, ready) = (waker.clone(), ready.clone());
            std::thread::spawn(move || {
                let waker = waker.lock().expect("not poisoned").clone().expect("polled once");
                let clones: Vec<Waker> = (0..100_000).map(|_| waker.clone()).collect();
                for waker in &clones {
                    waker.wake_by_ref();
                }
                ready.store(true, Ordering::SeqCst);
                waker.wake();
                clones
            })
        };
        // The executor is busy meanwhile.
        while !foreign.is_finished() {
            std::hint::spin_loop();
        }
        assert_eq!(polls.get(), 1);
        join.await.expect("woken");
        assert_eq!(polls.get(), 2, "many wakes, one poll");
        // Wakers that outlive their task, dropped and woken elsewhere, do nothing.
        let clones = foreign.join().expect("no panic");
        std::thread::spawn(move || clones.into_iter().for_each(Waker::wake)).join().expect("no panic");
        waker.lock().expect("not poisoned").take();
    });
}

#[test]
fn wakes_from_foreign_threads_are_never_lost() {
    on_shard(|| async {
        let count = Arc::new(AtomicU64::new(0));
        let waker = Arc::new(atomic_waker::AtomicWaker::new());
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (count, waker) = (count.clone(), waker.clone());
                std::thread::spawn(move || {
                    for turn in 0..20_000 {
                        count.fetch_add(1, Ordering::SeqCst);
                        waker.wake();
                        if turn % 100 == 0 {
                            std::thread::sleep(Duration::from_micros(100));
                        }
                    }
                })
            })
            .collect();
        let all = std::future::poll_fn(|cx| {
            waker.register(cx.waker());
            if count.load(Ordering::SeqCst) == 40_000 { Poll::Ready(()) } else { Poll::Pending }
        });
        timeout(Duration::from_secs(20), all).await.expect("the last wake arrives");
        for thread in threads {
            thread.join().expect("no panic");
        }
    });
}

/// The fault itself: with a preemption timer of 50 us glommio soon parks with runnable tasks, for good. With the
/// watchdog the work goes on.
#[test]
fn the_watchdog_wakes_a_shard_that_parked_with_runnable_work() {
    let settings = Settings { preempt: Duration::from_micros(50), ..settings() };
    let stopper = Stopper::new();
    let seeds = vec![stopper.subscribe()];
    let executors = start(&settings, seeds, |_, stop| async move {
        while !stop.is_stopping() {
            let turns: Vec<_> = (0..4).map(|_| spawn("turn", yield_now())).collect();
            for turn in turns {
                turn.await.expect("it ends");
            }
            blocking(|| ()).await;
        }
    })
    .expect("an executor");
    let health = executors.health();
    let deadline = Instant::now() + Duration::from_secs(60);
    while health()[0].rescues < 3 {
        assert!(
            Instant::now() < deadline,
            "never parked with work: has glommio mended it? {:?}",
            health()[0]
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    // Three times it stood still, and three times it went on.
    stopper.stop();
    executors.join().pop().expect("one shard").expect("no panic");
}

#[test]
fn a_loop_of_sleeps_without_length_holds_up_nobody() {
    let turns = on_shard(|| async {
        let stop = Rc::new(Cell::new(false));
        let seen = stop.clone();
        let looping = spawn("looping", async move {
            let mut turns = 0;
            while !seen.get() {
                sleep(Duration::ZERO).await;
                turns += 1;
            }
            turns
        });
        yield_now().await;
        stop.set(true);
        looping.await.expect("it ends")
    });
    assert!(turns >= 1);
}

/// The same fault before anything of a shard was polled, and when its main task is over: nothing of ours has a waker
/// then that could be counted. Executors park there the more often the shorter their timer is; with one as short as
/// their turn, whatever that takes here, they do nothing else for ever. So it is shortened, from far above, until some have.
#[test]
fn a_shard_that_parks_at_its_start_or_at_its_end_goes_on() {
    let mut rescues = 0;
    let shorter =
        |before: &Duration| Some(before.mul_f64(0.8)).filter(|after| *after > Duration::from_micros(5));
    for preempt in std::iter::successors(Some(Duration::from_millis(2)), shorter) {
        let settings = Settings { preempt, ..settings() };
        for _ in 0..5 {
            let executors = start(&settings, vec![()], |_, ()| sleep(Duration::from_micros(100)));
            let executors = executors.expect("an executor");
            let health = executors.health();
            executors.join().pop().expect("one shard").expect("no panic");
            rescues += health()[0].rescues;
        }
        if rescues >= 3 {
            break;
        }
    }
}

#[test]
fn a_task_that_holds_its_core_is_reported() {
    let executors = start(&settings(), vec![()], |_, ()| async {
        spawn("hog", async { std::thread::sleep(Duration::from_millis(60)) }).await.expect("it ends");
        sleep(Duration::from_millis(20)).await;
    })
    .expect("an executor");
    let health = executors.health();
    executors.join().pop().expect("one shard").expect("no panic");
    let health = health()[0];
    assert!(health.stalls >= 1 && health.stalled_us >= 30_000, "{health:?}");
}

#[test]
fn a_timeout_ends_what_takes_too_long_and_only_that() {
    on_shard(|| async {
        assert_eq!(timeout(Duration::from_millis(5), std::future::pending::<()>()).await, Err(Elapsed));
        assert_eq!(timeout(Duration::from_secs(5), async { 7 }).await, Ok(7));
    });
}

#[test]
fn a_stop_reaches_every_shard_from_a_plain_thread() {
    let stopper = Stopper::new();
    let seeds = vec![stopper.subscribe(), stopper.subscribe()];
    let executors = start(&settings(), seeds, |_, stop| async move {
        stop.stopped().await;
        stop.stopped().await;
        stop.is_stopping()
    })
    .expect("two executors");
    std::thread::sleep(Duration::from_millis(20));
    stopper.stop();
    stopper.stop();
    assert!(executors.join().into_iter().all(|stopped| stopped.expect("no panic")));
}

#[test]
fn a_ring_between_taking_the_next_and_awaiting_it_is_not_lost() {
    on_shard(|| async {
        let bell = local::Bell::new();
        let next = bell.next();
        bell.ring();
        timeout(Duration::from_secs(5), next).await.expect("rung");
        let never = bell.next();
        assert_eq!(timeout(Duration::from_millis(2), never).await, Err(Elapsed));
    });
}

/// Keeps `waiting` in its own wait, as a busy shard would be, until `over`.
async fn wait_until(over: impl Fn() -> bool) {
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().expect("two sockets");
    let waiting = Waiting::new(socket.as_fd());
    spawn("waiting", async move { waiting.readable(socket.as_fd()).await });
    let deadline = uptime() + Duration::from_secs(10);
    while !over() {
        assert!(uptime() < deadline, "the shard waits, and nothing ends it");
        sleep(Duration::from_millis(1)).await;
    }
}

/// It waits where glommio does not see it: each wake by a foreign thread must ring its bell.
#[test]
fn a_shard_that_waits_for_its_sockets_is_woken_by_foreign_threads() {
    on_shard(|| async {
        const WAKES: u64 = 2_000;
        let slot = Arc::new(std::sync::Mutex::new(None::<Waker>));
        let woken = Rc::new(Cell::new(0));
        let (counted, shown) = (woken.clone(), slot.clone());
        spawn("woken", async move {
            while counted.get() < WAKES {
                let mut first = true;
                std::future::poll_fn(|context| {
                    if !std::mem::take(&mut first) {
                        return Poll::Ready(());
                    }
                    *shown.lock().expect("no panic") = Some(context.waker().clone());
                    Poll::Pending
                })
                .await;
                counted.set(counted.get() + 1);
            }
        });
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        let waker = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if let Some(waker) = slot.lock().expect("no panic").take() {
                    waker.wake();
                }
                std::thread::yield_now();
            }
        });
        wait_until(|| woken.get() >= WAKES).await;
        over.store(true, Ordering::Relaxed);
        waker.join().expect("no panic");
    });
}

/// What is not counted as in flight, and is not to wait for glommio's next pass. By passes alone this would take minutes.
#[test]
fn a_shard_that_waits_for_its_sockets_attends_to_what_glommio_waits_for() {
    on_shard(|| async {
        use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _};
        use std::io::{Read as _, Write as _};

        const ROUNDS: usize = 500;
        let (near, mut far) = std::os::unix::net::UnixStream::pair().expect("two sockets");
        let echo = std::thread::spawn(move || {
            for _ in 0..ROUNDS {
                let mut byte = [0];
                far.read_exact(&mut byte).expect("sent");
                far.write_all(&byte).expect("taken");
            }
        });
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().expect("two sockets");
        let waiting = Waiting::new(socket.as_fd());
        spawn("waiting", async move {
            loop {
                waiting.readable(socket.as_fd()).await;
            }
        });
        attend(near.as_fd());
        let mut stream = crate::sys::stream(near.into());
        let rounds = async {
            for round in 0..ROUNDS {
                let mut byte = [round as u8];
                stream.write_all(&byte).await.expect("taken");
                stream.read_exact(&mut byte).await.expect("it comes back");
                assert_eq!(byte, [round as u8]);
            }
        };
        timeout(Duration::from_secs(60), rounds).await.expect("at once");
        echo.join().expect("no panic");
    });
}

/// Fetches that wait and sessions of groups end by timeouts: a shard that waits without glommio looks at these as well.
#[test]
fn a_timeout_is_an_alarm_of_its_shard() {
    on_shard(|| async {
        let time = Duration::from_secs(60);
        let is_alarm = || super::clock::next_alarm().is_some_and(|at| at <= uptime() + time);
        assert!(!is_alarm());
        let mut waiting = std::pin::pin!(timeout(time, std::future::pending::<()>()));
        std::future::poll_fn(|context| {
            assert!(waiting.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        assert!(is_alarm());
    });
}

/// glommio's own timers are seen by it alone, in its passes.
#[test]
fn a_timer_ends_while_sockets_keep_a_shard_busy() {
    on_shard(|| async {
        let (socket, mut peer) = std::os::unix::net::UnixStream::pair().expect("two sockets");
        socket.set_nonblocking(true).expect("a flag");
        let writer = std::thread::spawn(move || {
            // Until the other side is gone.
            while std::io::Write::write_all(&mut peer, &[1]).is_ok() {
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let over = Rc::new(Cell::new(false));
        let timer_over = over.clone();
        spawn("timer", async move {
            sleep(Duration::from_millis(5)).await;
            timer_over.set(true);
        });
        let waiting = Waiting::new(socket.as_fd());
        let began = uptime();
        while !over.get() {
            assert!(uptime() - began < Duration::from_secs(5), "the timer starves");
            waiting.readable(socket.as_fd()).await;
            let _ = std::io::Read::read(&mut &socket, &mut [0; 64]);
        }
        drop((waiting, socket));
        writer.join().expect("no panic");
    });
}
