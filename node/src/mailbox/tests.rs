//! Two shards and their mailboxes, also with room for one message only.
use super::*;
use crate::runtime::{Settings, Stopper, run_once, sleep, spawn, start, timeout};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

fn settings() -> Settings {
    Settings { io_memory: 1 << 20, ring_depth: 64, ..Settings::default() }
}

const TIGHT: Capacity = Capacity { requests: 1, calls: 1 };
const ROOMY: Capacity = Capacity { requests: 1024, calls: 1024 };

/// Each of `shards` shards has `tasks` tasks that each make `calls` calls to every other shard, and reads its own
/// inbox. Returns the calls answered.
fn all_call_all(shards: usize, capacity: Capacity, tasks: usize, calls: u64) -> u64 {
    let total = Arc::new(AtomicU64::new(0));
    let counted = total.clone();
    let executors = start(&settings(), mesh::<u64, u64>(shards, capacity), move |seat, post| {
        let total = counted.clone();
        async move {
            let (caller, inbox) = post.open();
            let reading = spawn(
                "inbox",
                inbox.run(|incoming| {
                    incoming.reply.expect("a request").send(incoming.body + 1);
                }),
            );
            let mut all = Vec::new();
            for task in 0..tasks {
                let (caller, total) = (caller.clone(), total.clone());
                all.push(spawn("caller", async move {
                    for call in 0..calls {
                        let to =
                            ShardId((seat.shard.0 + 1 + (task as u16 % (seat.shards - 1))) % seat.shards);
                        assert_eq!(caller.call(to, call).await, Ok(call + 1));
                        total.fetch_add(1, Ordering::Relaxed);
                    }
                }));
            }
            for task in all {
                task.await.expect("it ends");
            }
            // The others may still ask.
            while total.load(Ordering::Relaxed) < (seat.shards as u64) * tasks as u64 * calls {
                sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(caller.open_calls(), 0);
            caller.close();
            reading.await.expect("it ends");
        }
    })
    .expect("executors");
    for result in executors.join() {
        result.expect("no panic");
    }
    total.load(Ordering::Relaxed)
}

#[test]
fn two_shards_with_room_for_one_message_never_wait_for_each_other() {
    assert_eq!(all_call_all(2, TIGHT, 8, 500), 8_000);
    assert_eq!(all_call_all(3, Capacity { requests: 1, calls: 3 }, 6, 200), 3_600);
}

#[test]
fn a_full_box_says_so_and_gives_the_message_back() {
    run_once(&settings(), || async {
        let mut posts = mesh::<u32, u32>(2, TIGHT);
        let (_other, other_inbox) = posts.pop().expect("two").open();
        let (caller, inbox) = posts.pop().expect("two").open();
        let to = ShardId(1);
        let call = caller.try_call(to, 1).expect("room");
        assert!(matches!(caller.try_call(to, 2), Err(Full(2))), "no slot for the reply");
        assert!(matches!(caller.try_tell(to, 3), Err(Full(3))), "no room for the request");
        // A call that nobody waits for keeps its slot until its reply has come.
        drop(call);
        assert_eq!(caller.open_calls(), 1);
        spawn("other", other_inbox.run(|incoming| incoming.reply.expect("a request").send(9)));
        spawn("inbox", inbox.run(|_| ()));
        assert_eq!(timeout(Duration::from_secs(5), caller.call(to, 4)).await, Ok(Ok(9)));
        assert_eq!(caller.open_calls(), 0);
    })
    .expect("an executor");
}

#[test]
fn an_unanswered_request_and_a_closed_shard_are_told_to_who_asked() {
    run_once(&settings(), || async {
        let mut posts = mesh::<u32, u32>(2, ROOMY);
        let (other, other_inbox) = posts.pop().expect("two").open();
        let (caller, inbox) = posts.pop().expect("two").open();
        spawn("inbox", inbox.run(|_| ()));
        let reading = spawn("other", other_inbox.run(drop));
        assert_eq!(caller.call(ShardId(1), 1).await, Err(Gone), "dropped by the handler");
        other.close();
        reading.await.expect("it ends");
        assert_eq!(caller.call(ShardId(1), 2).await, Err(Gone), "closed");
        assert_eq!(caller.tell(ShardId(1), 2).await, Err(Gone), "closed");
        let own = spawn("late", {
            let caller = caller.clone();
            async move { caller.call(ShardId(0), 3).await }
        });
        sleep(Duration::from_millis(1)).await;
        caller.close();
        assert_eq!(timeout(Duration::from_secs(5), own).await, Ok(Ok(Err(Gone))));
    })
    .expect("an executor");
}

#[test]
fn plain_threads_send_notes() {
    let mut posts = mesh::<u32, ()>(1, ROOMY);
    let notes = posts[0].notes();
    let stopper = Stopper::new();
    let stop = stopper.subscribe();
    let executors =
        start(&settings(), vec![(posts.pop().expect("one"), stop)], |_, (post, stop)| async move {
            let (_caller, inbox) = post.open();
            let sum = Rc::new(Cell::new(0));
            let adding = sum.clone();
            spawn(
                "inbox",
                inbox.run(move |incoming| {
                    assert!(incoming.reply.is_none());
                    adding.set(adding.get() + incoming.body);
                }),
            );
            stop.stopped().await;
            sleep(Duration::from_millis(20)).await;
            sum.get()
        })
        .expect("an executor");
    for n in 1..=100 {
        while notes.try_send(ShardId(0), n).is_err() {
            std::thread::yield_now();
        }
    }
    stopper.stop();
    assert_eq!(executors.join().pop().expect("one").expect("no panic"), 5050);
}

/// Not a test of time: prints what a round trip costs. `cargo test --release -- --ignored --nocapture mailbox`.
#[test]
#[ignore = "a measurement"]
fn measure() {
    for (name, tasks, calls) in [("one at a time", 1, 50_000), ("64 at a time", 64, 20_000)] {
        let start = Instant::now();
        let answered = all_call_all(2, ROOMY, tasks, calls);
        let per = start.elapsed().as_secs_f64() / (answered / 2) as f64;
        println!(
            "{name}: {:.2} us a round trip, {:.0} messages/s",
            per * 1e6,
            2.0 * answered as f64 / start.elapsed().as_secs_f64()
        );
    }
}
