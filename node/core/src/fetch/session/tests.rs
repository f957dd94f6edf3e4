//! Sessions by example, and against a model that remembers everything in plain lists.

use proptest::prelude::*;

use super::*;

fn topic(n: u8) -> TopicKey {
    TopicKey::Id(TopicId([n; 16]))
}

fn wanted(n: u8, offset: i64) -> Wanted {
    Wanted {
        topic: topic(n),
        partition: 0,
        params: FetchParams {
            current_leader_epoch: -1,
            fetch_offset: Offset(offset),
            last_fetched_epoch: -1,
            log_start_offset: Offset(-1),
            partition_max_bytes: 1000,
        },
    }
}

fn request(session_id: i32, session_epoch: i32) -> SessionRequest {
    SessionRequest { session_id, session_epoch, by_id: true }
}

fn outcome(high_watermark: i64, records_bytes: usize) -> Outcome {
    Outcome {
        is_error: false,
        high_watermark: Offset(high_watermark),
        log_start_offset: Offset(0),
        records_bytes,
        has_more: false,
    }
}

const ERROR: Outcome = Outcome {
    is_error: true,
    high_watermark: Offset(-1),
    log_start_offset: Offset(-1),
    records_bytes: 0,
    has_more: false,
};

/// Begins a session with these partitions, all of them read to nothing at high watermark 0.
fn open(sessions: &mut FetchSessions, now_ms: u64, id: i32, topics: &[u8]) -> i32 {
    let named = topics.iter().map(|n| wanted(*n, 0)).collect();
    let (context, to_read) = sessions.begin(now_ms, request(0, 0), named, &[]).expect("full");
    let outcomes = vec![outcome(0, 0); to_read.len()];
    sessions.finish(now_ms, context, id, &to_read, &outcomes).expect("answered").session_id
}

/// One incremental request: which topics were read, and which of them the answer speaks of.
fn step(
    sessions: &mut FetchSessions,
    request: SessionRequest,
    named: Vec<Wanted>,
    forgotten: &[u8],
    outcomes: impl Fn(u8) -> Outcome,
) -> Result<(Vec<u8>, Vec<u8>), ErrorCode> {
    let forgotten: Vec<(TopicKey, i32)> = forgotten.iter().map(|n| (topic(*n), 0)).collect();
    let (context, to_read) = sessions.begin(1, request, named, &forgotten)?;
    let number = |wanted: &Wanted| match &wanted.topic {
        TopicKey::Id(id) => id.0[0],
        TopicKey::Name(_) => panic!("no names here"),
    };
    let results: Vec<Outcome> = to_read.iter().map(|wanted| outcomes(number(wanted))).collect();
    let finished = sessions.finish(1, context, 0, &to_read, &results)?;
    let included = finished.included.unwrap_or(vec![true; to_read.len()]);
    let told =
        to_read.iter().zip(included).filter(|(_, included)| *included).map(|(wanted, _)| number(wanted));
    Ok((to_read.iter().map(number).collect(), told.collect()))
}

#[test]
fn only_news_is_told() {
    let mut sessions = FetchSessions::new(10, 120_000);
    assert_eq!(open(&mut sessions, 0, 7, &[1, 2, 3]), 7);
    let quiet = |_| outcome(0, 0);
    assert_eq!(step(&mut sessions, request(7, 1), vec![], &[], quiet), Ok((vec![1, 2, 3], vec![])));
    // A high watermark that rose is told once.
    let risen = |n| outcome(if n == 2 { 5 } else { 0 }, 0);
    assert_eq!(step(&mut sessions, request(7, 2), vec![], &[], risen), Ok((vec![1, 2, 3], vec![2])));
    assert_eq!(step(&mut sessions, request(7, 3), vec![], &[], risen), Ok((vec![1, 2, 3], vec![])));
    // Errors are told each time, and so is what follows them.
    let failed = |n| if n == 3 { ERROR } else { risen(n) };
    assert_eq!(step(&mut sessions, request(7, 4), vec![], &[], failed), Ok((vec![1, 2, 3], vec![3])));
    assert_eq!(step(&mut sessions, request(7, 5), vec![], &[], failed), Ok((vec![1, 2, 3], vec![3])));
    assert_eq!(step(&mut sessions, request(7, 6), vec![], &[], risen), Ok((vec![1, 2, 3], vec![3])));
    // What had records is read last the next time.
    let records = |n| outcome(if n == 2 { 5 } else { 0 }, if n == 1 { 10 } else { 0 });
    assert_eq!(step(&mut sessions, request(7, 7), vec![], &[], records), Ok((vec![1, 2, 3], vec![1])));
    assert_eq!(step(&mut sessions, request(7, 8), vec![], &[], risen), Ok((vec![2, 3, 1], vec![])));
    // Partitions come and go; a new one is told at once.
    assert_eq!(
        step(&mut sessions, request(7, 9), vec![wanted(4, 0)], &[3], risen),
        Ok((vec![2, 1, 4], vec![4]))
    );
    assert_eq!(sessions.partition_count(), 3);
    // One that forgets all is over.
    assert_eq!(step(&mut sessions, request(7, 10), vec![], &[1, 2, 4], quiet), Ok((vec![], vec![])));
    assert!(sessions.is_empty());
    assert_eq!(sessions.partition_count(), 0);
}

#[test]
fn what_does_not_fit_the_session_is_refused() {
    let mut sessions = FetchSessions::new(10, 120_000);
    open(&mut sessions, 0, 7, &[1]);
    let quiet = |_| outcome(0, 0);
    let mut tried = |session_id, epoch, by_id| {
        step(&mut sessions, SessionRequest { session_id, session_epoch: epoch, by_id }, vec![], &[], quiet)
    };
    assert_eq!(tried(8, 1, true), Err(ErrorCode::FetchSessionIdNotFound));
    assert_eq!(tried(0, 1, true), Err(ErrorCode::FetchSessionIdNotFound));
    assert_eq!(tried(7, 2, true), Err(ErrorCode::InvalidFetchSessionEpoch));
    assert_eq!(tried(7, -2, true), Err(ErrorCode::InvalidFetchSessionEpoch));
    assert_eq!(tried(7, 1, false), Err(ErrorCode::FetchSessionTopicIdError));
    assert!(tried(7, 1, true).is_ok());
    assert_eq!(tried(7, 1, true), Err(ErrorCode::InvalidFetchSessionEpoch));
    // A full request ends the session that it names, and so does a final one.
    for epoch in [0, -1] {
        open(&mut sessions, 0, 9, &[1]);
        let (_, to_read) = sessions.begin(0, request(9, epoch), vec![wanted(2, 0)], &[]).expect("always");
        assert_eq!(to_read.len(), 1);
        assert!(!sessions.sessions.contains_key(&9));
    }
}

#[test]
fn an_answer_that_was_not_waited_for_is_refused() {
    let mut sessions = FetchSessions::new(10, 120_000);
    open(&mut sessions, 0, 7, &[1]);
    let (first, to_read) = sessions.begin(0, request(7, 1), vec![], &[]).expect("first");
    let (second, _) = sessions.begin(0, request(7, 2), vec![], &[]).expect("second");
    let results = [outcome(0, 0)];
    assert_eq!(sessions.finish(0, first, 0, &to_read, &results), Err(ErrorCode::InvalidFetchSessionEpoch));
    assert!(sessions.finish(0, second, 0, &to_read, &results).is_ok());
    // Nor is one of a session that is gone by then.
    let (third, _) = sessions.begin(0, request(7, 3), vec![], &[]).expect("third");
    sessions.remove(7);
    assert_eq!(sessions.finish(0, third, 0, &to_read, &results), Err(ErrorCode::FetchSessionIdNotFound));
}

#[test]
fn epochs_wrap_to_one() {
    assert_eq!(next_epoch(0), 1);
    assert_eq!(next_epoch(i32::MAX), 1);
    assert_eq!(next_epoch(-1), -1);
}

#[test]
fn the_table_is_bounded_and_evicts_as_kafka_does() {
    let mut sessions = FetchSessions::new(2, 100);
    assert_eq!(open(&mut sessions, 0, 1, &[1]), 1);
    assert_eq!(open(&mut sessions, 0, 2, &[1, 2, 3]), 2);
    // Full of young sessions: the client does without.
    assert_eq!(open(&mut sessions, 50, 3, &[1, 2]), 0);
    // In use, but old: a larger one takes the place of the smallest.
    for id in [1, 2] {
        let (context, to_read) = sessions.begin(90, request(id, 1), vec![], &[]).expect("known");
        let results = vec![outcome(0, 0); to_read.len()];
        sessions.finish(90, context, 0, &to_read, &results).expect("answered");
    }
    assert_eq!(open(&mut sessions, 150, 4, &[1]), 0, "not larger than the smallest");
    assert_eq!(open(&mut sessions, 150, 4, &[1, 2]), 4);
    assert!(!sessions.sessions.contains_key(&1));
    // Not used for long: anything takes its place.
    assert_eq!(open(&mut sessions, 191, 5, &[1]), 5);
    assert!(!sessions.sessions.contains_key(&2));
    assert_eq!((sessions.len(), sessions.partition_count()), (2, 3));
    // No room at all, no usable id, nothing to remember.
    assert_eq!(open(&mut FetchSessions::new(0, 100), 0, 1, &[1]), 0);
    let mut sessions = FetchSessions::new(9, 100);
    assert_eq!(open(&mut sessions, 0, 0, &[1]), 0);
    assert_eq!(open(&mut sessions, 0, -5, &[1]), 0);
    assert_eq!(open(&mut sessions, 0, 1, &[]), 0);
    assert_eq!(open(&mut sessions, 0, 1, &[1]), 1);
    assert_eq!(open(&mut sessions, 0, 1, &[1]), 0, "an id that is taken");
}

#[test]
fn one_session_cannot_take_all_memory() {
    let mut sessions = FetchSessions::new(10, 100);
    open(&mut sessions, 0, 7, &[1]);
    sessions.partition_count = SESSION_PARTITIONS_MAX;
    assert_eq!(open(&mut sessions, 0, 8, &[1]), 0);
    let more = sessions.begin(0, request(7, 1), vec![wanted(2, 0)], &[]);
    assert_eq!(more.err(), Some(ErrorCode::FetchSessionIdNotFound));
    assert!(sessions.is_empty());
}

/// One session as a list: topic, offset wanted, high watermark and log start last told.
#[derive(Debug, Default)]
struct Model {
    partitions: Vec<(u8, i64, i64, i64)>,
}

impl Model {
    fn want(&mut self, n: u8, offset: i64) {
        match self.partitions.iter_mut().find(|one| one.0 == n) {
            Some(one) => one.1 = offset,
            None => self.partitions.push((n, offset, -1, -1)),
        }
    }

    fn tell(&mut self, results: &[Outcome]) -> Vec<u8> {
        let mut told = Vec::new();
        let mut stay = Vec::new();
        let mut moved = Vec::new();
        for (one, result) in self.partitions.iter().zip(results) {
            let mut one = *one;
            let (hw, start) = (result.high_watermark.0, result.log_start_offset.0);
            if result.is_error || result.records_bytes > 0 || (hw, start) != (one.2, one.3) {
                told.push(one.0);
                (one.2, one.3) = (if result.is_error { -1 } else { hw }, start);
            }
            if result.records_bytes > 0 { moved.push(one) } else { stay.push(one) }
        }
        self.partitions = stay;
        self.partitions.append(&mut moved);
        told
    }
}

#[derive(Clone, Debug)]
struct Round {
    named: Vec<(u8, i64)>,
    forgotten: Vec<u8>,
    /// By topic: error, high watermark, log start, bytes.
    results: Vec<(bool, i64, i64, usize)>,
    full: bool,
}

fn round() -> impl Strategy<Value = Round> {
    (
        prop::collection::vec((0..8u8, 0..5i64), 0..4),
        prop::collection::vec(0..8u8, 0..3),
        prop::collection::vec(
            (prop::bool::weighted(0.1), 0..3i64, 0..2i64, prop_oneof![3 => Just(0), 1 => Just(9)]),
            8,
        ),
        prop::bool::weighted(0.05),
    )
        .prop_map(|(named, forgotten, results, full)| Round { named, forgotten, results, full })
}

proptest! {
    #[test]
    fn a_session_is_its_list(rounds in prop::collection::vec(round(), 1..40)) {
        let mut sessions = FetchSessions::new(4, 100);
        let mut model: Option<(i32, i32, Model)> = None;
        for (at, round) in rounds.iter().enumerate() {
            let fresh = at as i32 + 1;
            let mut named = round.named.clone();
            let incremental = model.is_some() && !round.full;
            if !incremental {
                // A client names each partition once.
                named.sort_unstable();
                named.dedup_by_key(|one| one.0);
            }
            let (id, epoch, mut list) = match model.take() {
                Some((id, epoch, list)) if incremental => (id, epoch, list),
                Some((id, ..)) => (id, 0, Model::default()),
                None => (0, 0, Model::default()),
            };
            named.iter().for_each(|(n, offset)| list.want(*n, *offset));
            let forgotten = if incremental { round.forgotten.clone() } else { Vec::new() };
            list.partitions.retain(|one| !forgotten.contains(&one.0));

            let asked = named.iter().map(|(n, offset)| wanted(*n, *offset)).collect();
            let dropped: Vec<(TopicKey, i32)> = forgotten.iter().map(|n| (topic(*n), 0)).collect();
            let (context, to_read) = sessions.begin(0, request(id, epoch), asked, &dropped).expect("in step");
            if incremental && list.partitions.is_empty() {
                prop_assert!(sessions.is_empty());
                continue;
            }
            let expected: Vec<Wanted> = list.partitions.iter().map(|one| wanted(one.0, one.1)).collect();
            prop_assert_eq!(&to_read, &expected);
            let results: Vec<Outcome> = list.partitions.iter().map(|one| {
                let (is_error, hw, start, records_bytes) = round.results[usize::from(one.0)];
                if is_error { ERROR } else {
                    Outcome { log_start_offset: Offset(start), ..outcome(hw, records_bytes) }
                }
            }).collect();
            let finished = sessions.finish(0, context, fresh, &to_read, &results).expect("in step");
            if incremental {
                let told = list.tell(&results);
                let names: Vec<u8> = expected.iter().zip(finished.included.expect("incremental"))
                    .filter(|(_, included)| *included)
                    .map(|(one, _)| match &one.topic { TopicKey::Id(id) => id.0[0], _ => 255 })
                    .collect();
                prop_assert_eq!(names, told);
                model = Some((id, epoch + 1, list));
            } else {
                prop_assert_eq!(finished.included, None);
                for (one, result) in list.partitions.iter_mut().zip(&results) {
                    (one.2, one.3) = (result.high_watermark.0, result.log_start_offset.0);
                }
                prop_assert_eq!(finished.session_id, if list.partitions.is_empty() { 0 } else { fresh });
                model = (finished.session_id != 0).then_some((fresh, 1, list));
            }
            prop_assert_eq!(sessions.len(), usize::from(model.is_some()));
            prop_assert_eq!(sessions.partition_count(), model.as_ref().map_or(0, |(_, _, list)| list.partitions.len()));
        }
    }
}
