//! What happens in a life: producers, readers, an administrator, and trouble.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use flumen_core::types::{LeaderEpoch, Offset, PartitionId, Timestamp, TopicId};
use flumen_storage::disk::Disk;
use flumen_storage::sim::{Fault, Operation, Random};
use flumen_storage::{AppendError, ReadError, StorageError};
use flumen_wire::ErrorCode;
use flumen_wire::batch::{BatchHeader, Batches, assign};

use crate::batches;
use crate::model::{Partition, Producer, Sent, Token};
use crate::node::Node;
use crate::scenario::Trouble;

/// Starts the tasks of a life.
pub(crate) fn start(node: &Rc<Node>) {
    let ids: Vec<(PartitionId, usize)> = {
        let model = node.shared.model.borrow();
        model
            .partitions
            .values()
            .filter(|p| !p.deleted && !p.offline)
            .map(|p| (p.id, p.producers.len()))
            .collect()
    };
    for (id, producers) in ids {
        start_producers(node, id, producers);
    }
    for _ in 0..2 {
        let node = node.clone();
        node.disk.clone().spawn(async move { read(node).await });
    }
    let administrator = node.clone();
    node.disk.spawn(async move { administrate(administrator).await });
    if node.shared.troubled.get() {
        let trouble = node.clone();
        node.disk.spawn(async move { make_trouble(trouble).await });
    }
}

fn start_producers(node: &Rc<Node>, id: PartitionId, count: usize) {
    for producer in 0..count {
        let node = node.clone();
        node.disk.clone().spawn(async move { produce(node, id, producer).await });
    }
}

async fn pause(node: &Node, micros_max: u64) {
    let micros = node.shared.random.borrow_mut().between(1, micros_max.max(1));
    node.disk.sleep(Duration::from_micros(micros)).await;
}

fn draw<R>(node: &Node, with: impl FnOnce(&mut Random) -> R) -> R {
    with(&mut node.shared.random.borrow_mut())
}

/// One producer: keeps up to five batches in flight, sends again what was not answered, and now and then what was.
async fn produce(node: Rc<Node>, id: PartitionId, producer: usize) {
    loop {
        if node.shared.stopping.get() {
            return;
        }
        pause(&node, node.shared.scenario.pause_micros_max).await;
        if node.shared.model.borrow().partitions.get(&id).is_none_or(|p| p.deleted || p.offline) {
            return;
        }
        let burst = draw(&node, |random| random.between(1, 4));
        for _ in 0..burst {
            let Some(sent) = next_to_send(&node, &id, producer) else { break };
            if !send(&node, &id, producer, sent).await {
                break;
            }
        }
    }
}

fn next_to_send(node: &Node, id: &PartitionId, producer: usize) -> Option<Sent> {
    let now_ms = node.disk.now_ms();
    let scenario = &node.shared.scenario;
    let random = &mut *node.shared.random.borrow_mut();
    let mut model = node.shared.model.borrow_mut();
    let partition = model.partitions.get_mut(id)?;
    let bytes_max = u64::from(partition.config.segment_bytes);
    let keyed = partition.config.cleanup_policy.compact;
    let producer = &mut partition.producers[producer];
    if let Some(sent) = producer.window.iter().find(|sent| !sent.acked && sent.placed.is_none()) {
        return Some(sent.clone());
    }
    if producer.id >= 0 && random.chance(1, 10) && !producer.window.is_empty() {
        return Some(producer.window[random.index(producer.window.len())].clone());
    }
    if producer.in_flight() >= 5 || node.shared.stopping.get() {
        return None;
    }
    if producer.id >= 0 && producer.in_flight() == 0 && random.chance(1, 40) {
        producer.epoch += 1;
        producer.next_sequence = 0;
        producer.window.clear();
    }
    node.shared.serial.set(node.shared.serial.get() + 1);
    let sent =
        batches::make(scenario, random, producer, node.shared.serial.get(), now_ms, (bytes_max, keyed));
    while producer.window.len() >= 5 {
        // Only answered ones are in the way: at most four are in flight.
        let answered = producer.window.iter().position(|sent| sent.acked)?;
        producer.window.remove(answered);
    }
    producer.window.push_back(sent.clone());
    Some(sent)
}

/// Whether the engine took it.
async fn send(node: &Node, id: &PartitionId, producer: usize, sent: Sent) -> bool {
    let Some(slot) = node.slot(id) else { return false };
    let shard = node.shard(id);
    let known = node.with_partition(id, |partition| {
        let found = (sent.header.producer_id >= 0).then(|| partition.find(&sent.header)).flatten();
        let troubled = node.shared.troubled.get();
        // Where there is trouble, what is not confirmed may have failed already, and the answer is on its way.
        found.map(|candidate| {
            (candidate.header.base_offset, (troubled && !candidate.confirmed).then_some(candidate.token))
        })
    });
    let header = sent.header;
    let token = {
        let mut model = node.shared.model.borrow_mut();
        model.token(Token::Batch {
            partition: *id,
            base: -1,
            producer,
            serial: sent.serial,
            shard,
            duplicate: false,
        })
    };
    let now_ms = node.disk.now_ms();
    let result = node.engine(id).append(slot, now_ms, Bytes::copy_from_slice(&sent.bytes), &header, token);
    let placed = match result {
        Ok(placed) => placed,
        Err((token, error)) => {
            refused(node, id, &header, token, error).await;
            return false;
        }
    };
    let base = placed.base_offset.0;
    let mut model = node.shared.model.borrow_mut();
    let answers = model.answers.get(&shard).copied().unwrap_or_default();
    if let Some(Token::Batch { base: at, duplicate, .. }) = model.tokens.get_mut(&token) {
        *at = base;
        *duplicate = placed.duplicate;
    }
    model.duplicates += u64::from(placed.duplicate);
    let partition = model.partitions.get_mut(id).expect("it was there");
    let name = partition.directory.clone();
    match known {
        Some((original, unsure)) if placed.duplicate || unsure.is_none() => assert!(
            placed.duplicate && base == original,
            "{name}: a retry of the batch at {original} was placed at {base} ({placed:?})"
        ),
        None if placed.duplicate => {
            let deleted = partition.retention || base < partition.log_start_asked;
            assert!(
                deleted || sent.acked,
                "{name}: a batch that is not there is called a duplicate of {base}"
            );
        }
        _ => {
            let again = sent.acked && header.producer_id >= 0;
            assert!(!again, "{name}: a retry of an answered batch was appended again, at {base}");
            if let Some((original, Some(token))) = known {
                partition.fail(original, token);
            }
            let mut bytes = sent.bytes.to_vec();
            assign(&mut bytes, base, node.incarnation as i32);
            partition.place(token, sent.serial, bytes.into(), shard, answers);
        }
    }
    let window = &mut partition.producers[producer].window;
    if let Some(sent) = window.iter_mut().find(|other| other.serial == sent.serial) {
        sent.placed = Some(token);
    }
    true
}

async fn refused(node: &Node, id: &PartitionId, header: &BatchHeader, token: u64, error: AppendError) {
    node.shared.model.borrow_mut().tokens.remove(&token);
    match error {
        AppendError::Full => {
            let room = node.shared.room.get();
            for _ in 0..100 {
                if node.shared.room.get() != room {
                    return;
                }
                node.disk.sleep(Duration::from_millis(5)).await;
            }
            let waited = node.shared.troubled.get() || node.shared.stopping.get();
            assert!(
                waited || node.shared.fault.borrow().is_some(),
                "no room for {} bytes in half a second of virtual time: {:?}",
                header.size(),
                node.engine(id).metrics()
            );
        }
        AppendError::Refused(code) => {
            let gone = node.shared.model.borrow().partitions.get(id).is_none_or(|p| p.deleted || p.offline);
            let expected = match code {
                // The latter: the batch before it has failed, and the answer is on its way.
                ErrorCode::KafkaStorageError | ErrorCode::OutOfOrderSequenceNumber => {
                    node.shared.troubled.get()
                }
                ErrorCode::UnknownTopicOrPartition => gone,
                _ => false,
            };
            let ending = node.shared.stopping.get() || node.shared.fault.borrow().is_some();
            if !(expected || gone || ending) {
                let known = node.slot(id).map(|slot| node.engine(id).producers(slot));
                panic!(
                    "{id:?}: {header:?} is refused with {code:?} though nothing is wrong; known: {known:?}"
                );
            }
            node.disk.sleep(Duration::from_millis(3)).await;
        }
    }
}

/// One consumer after another: from somewhere, on through some reads; sometimes by time.
async fn read(node: Rc<Node>) {
    while !node.shared.stopping.get() {
        pause(&node, 3000).await;
        let Some((id, name)) = any_partition(&node) else { continue };
        let Some(offsets) = node.offsets(&id) else { continue };
        assert!(
            offsets.log_start <= offsets.high_watermark && offsets.high_watermark <= offsets.log_end,
            "{name}: {offsets:?}"
        );
        if offsets.high_watermark <= offsets.log_start {
            continue;
        }
        if draw(&node, |random| random.chance(1, 6)) {
            by_time(&node, &id).await;
            continue;
        }
        let mut at = draw(&node, |random| {
            random.between(offsets.log_start as u64, offsets.high_watermark as u64 - 1) as i64
        });
        for _ in 0..draw(&node, |random| random.between(1, 6)) {
            let bytes_max = draw(&node, |random| random.between(1, 30_000)) as usize;
            match node.read(&id, at, bytes_max).await {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(bytes) => at = seen(&node, &id, at, &bytes),
                Err(error) => {
                    read_failed(&node, &id, at, error);
                    break;
                }
            }
        }
    }
}

fn any_partition(node: &Node) -> Option<(PartitionId, String)> {
    let model = node.shared.model.borrow();
    let all: Vec<&Partition> = model.partitions.values().filter(|p| !p.deleted && !p.offline).collect();
    if all.is_empty() {
        return None;
    }
    let chosen = all[node.shared.random.borrow_mut().index(all.len())];
    Some((chosen.id, chosen.directory.clone()))
}

fn seen(node: &Node, id: &PartitionId, at: i64, bytes: &[u8]) -> i64 {
    let mut model = node.shared.model.borrow_mut();
    model.reads += 1;
    let Some(partition) = model.partitions.get_mut(id) else { return at };
    // The partition may have been deleted, or cut at the front, while the disk was read.
    let high_watermark = node.offsets(id).map_or(i64::MAX, |offsets| offsets.high_watermark);
    partition.seen(at, bytes, high_watermark);
    let last = Batches::new(bytes).last().and_then(Result::ok).expect("checked just now");
    last.header.next_offset()
}

fn read_failed(node: &Node, id: &PartitionId, at: i64, error: ReadError) {
    let model = node.shared.model.borrow();
    let Some(partition) = model.partitions.get(id) else { return };
    let name = &partition.directory;
    let log_start = node.offsets(id).map_or(i64::MAX, |offsets| offsets.log_start);
    let fine = match error {
        ReadError::OffsetOutOfRange => at < log_start,
        ReadError::Gone => partition.deleted,
        ReadError::Offline => partition.offline || node.shared.troubled.get(),
        _ => node.shared.troubled.get(),
    };
    let said = || node.engine(id).take_read_faults();
    let at = at.max(0);
    assert!(
        fine || partition.deleted,
        "{name}: reading at {at}: {error:?} (log start {log_start}): {:?}",
        said()
    );
}

async fn by_time(node: &Node, id: &PartitionId) {
    let Some(slot) = node.slot(id) else { return };
    let readable = node.with_partition(id, |partition| partition.readable());
    if readable.is_empty() {
        return;
    }
    let back = draw(node, |random| random.below(100)) as i64;
    let timestamp = node.disk.now_ms() - back;
    let found = node.engine(id).offset_for_timestamp(slot, Timestamp(timestamp)).await;
    match found {
        Ok(Some((offset, at, _))) => {
            assert!(at.0 >= timestamp, "asked for {timestamp}, got a record of {}", at.0);
            let end = node.offsets(id).map_or(i64::MAX, |offsets| offsets.high_watermark);
            assert!(offset.0 < end, "a record above the high watermark is told");
        }
        Ok(None) => {}
        Err(error) => read_failed(node, id, i64::MIN, error),
    }
}

/// Deletes records, creates and deletes topics, changes settings.
async fn administrate(node: Rc<Node>) {
    loop {
        pause(&node, 40_000).await;
        if node.shared.stopping.get() {
            return;
        }
        match draw(&node, |random| random.below(5)) {
            0 | 1 => delete_records(&node),
            2 if node.shared.scenario.topics_change => create_topic(&node).await,
            3 if node.shared.scenario.topics_change => delete_topic(&node).await,
            _ => {}
        }
    }
}

fn delete_records(node: &Node) {
    let Some((id, name)) = any_partition(node) else { return };
    let (Some(slot), Some(offsets)) = (node.slot(&id), node.offsets(&id)) else { return };
    let offset = draw(node, |random| {
        let whole = random.chance(1, 5);
        let below = random.between(offsets.log_start as u64, offsets.high_watermark as u64) as i64;
        if whole { offsets.high_watermark } else { below }
    });
    let token = node.shared.model.borrow_mut().token(Token::Delete { partition: id, offset });
    // Asked for from now on, whatever the answer will be.
    node.with_partition(&id, |partition| partition.log_start_asked = partition.log_start_asked.max(offset));
    if let Err((token, code)) = node.engine(&id).delete_records(slot, Offset(offset), token) {
        node.shared.model.borrow_mut().tokens.remove(&token);
        let fine =
            node.shared.troubled.get() || node.shared.fault.borrow().is_some() || node.shared.stopping.get();
        assert!(fine, "{name}: deleting below {offset}: {code:?}");
    }
}

/// A new partition of the model, with a name that may have been used before.
pub(crate) fn new_partition(
    node_random: &mut Random,
    scenario: &crate::scenario::Scenario,
    number: u64,
) -> Partition {
    let name = format!("topic{}", number % 8);
    let mut topic = [0; 16];
    topic[8..].copy_from_slice(&(number + 1).to_be_bytes());
    let id = PartitionId { topic: TopicId(topic), partition: (number % 3) as i32 };
    let config = scenario.log_config(node_random);
    let mut producers = Vec::new();
    for i in 0..node_random.between(1, 2) {
        let idempotent = config.is_durable_before_ack() && node_random.chance(2, 3);
        producers.push(Producer::new(if idempotent { (number * 10 + i) as i64 } else { -1 }));
    }
    Partition::new(id, format!("{name}-{}", id.partition), config, producers)
}

async fn create_topic(node: &Rc<Node>) {
    let (id, directory, config, producers) = {
        let serial = node.shared.serial.get() + 1;
        node.shared.serial.set(serial);
        let partition = draw(node, |random| new_partition(random, &node.shared.scenario, serial));
        let mut model = node.shared.model.borrow_mut();
        let taken =
            model.partitions.values().any(|other| !other.deleted && other.directory == partition.directory);
        if taken || model.partitions.len() > 8 {
            return;
        }
        let parts =
            (partition.id, partition.directory.clone(), partition.config.clone(), partition.producers.len());
        // Metadata is durable first.
        model.partitions.insert(partition.id, partition);
        parts
    };
    create(node, id, &directory, config).await;
    start_producers(node, id, producers);
}

/// Creates a partition of the model on its engine, again and again while the disk is troubled.
pub(crate) async fn create(
    node: &Node,
    id: PartitionId,
    directory: &str,
    config: flumen_core::config::LogConfig,
) {
    loop {
        let epoch = LeaderEpoch(node.incarnation as i32);
        let created = node.engine(&id).create_partition(id, directory, config.clone(), epoch).await;
        match created {
            Ok(_) => break,
            Err(StorageError::Stopping) => return,
            Err(error) => {
                let fine = node.shared.troubled.get() || node.shared.fault.borrow().is_some();
                assert!(fine, "{directory}: creation: {error}");
                node.disk.sleep(Duration::from_millis(20)).await;
            }
        }
    }
    node.with_partition(&id, |partition| partition.created = true);
}

async fn delete_topic(node: &Node) {
    let Some((id, directory)) = any_partition(node) else { return };
    let ready = node.with_partition(&id, |partition| {
        partition.deleted |= partition.created;
        partition.created
    });
    if !ready {
        return;
    }
    node.shared.model.borrow_mut().gone.insert(directory);
    if let Err(error) = node.engine(&id).delete_partition(&id).await {
        let fine =
            node.shared.troubled.get() || node.shared.stopping.get() || node.shared.fault.borrow().is_some();
        assert!(fine, "deletion: {error}");
    }
}

/// Makes I/O fail, for a time.
async fn make_trouble(node: Rc<Node>) {
    while !node.shared.stopping.get() {
        pause(&node, 60_000).await;
        match node.shared.scenario.trouble {
            Trouble::DiskFull => {
                let spare = draw(&node, |random| random.below(100_000));
                node.disk.set_capacity(node.disk.allocated() + spare);
                pause(&node, 60_000).await;
                if !node.shared.stopping.get() {
                    node.disk.set_capacity(1 << 40);
                }
            }
            Trouble::Segments => {
                let Some((_, name)) = any_partition(&node) else { continue };
                let operation = draw(&node, |random| {
                    [Operation::Write, Operation::Sync, Operation::Length][random.index(3)]
                });
                inject(&node, format!("{name}/"), operation);
            }
            Trouble::Journal => {
                let operation = draw(&node, |random| {
                    [Operation::Write, Operation::Write, Operation::Length][random.index(3)]
                });
                // What ends a node: its journal's I/O, or a sync of everything, by whichever shard.
                match draw(&node, |random| random.chance(1, 3)) {
                    true => inject(&node, "sync_all".to_string(), Operation::Sync),
                    false => inject(&node, "journal/".to_string(), operation),
                }
            }
            Trouble::Reads => inject(&node, "/".to_string(), Operation::Read),
            Trouble::None | Trouble::Corruption => return,
        }
    }
}

fn inject(node: &Node, path_contains: String, operation: Operation) {
    let (skip, count) = draw(node, |random| (random.below(4) as u32, random.between(1, 3) as u32));
    node.disk.inject(Fault { path_contains, operation, skip, count, kind: ErrorKind::Other });
}

/// After the last fault: every partition takes a batch of every producer and serves it.
pub(crate) async fn make_progress(node: &Rc<Node>) {
    let ids: BTreeMap<PartitionId, usize> = {
        let model = node.shared.model.borrow();
        model.partitions.values().filter(|p| !p.deleted).map(|p| (p.id, p.producers.len())).collect()
    };
    for (id, producers) in &ids {
        assert!(!node.with_partition(id, |p| p.offline), "offline at the end though nothing is wrong");
        for producer in 0..*producers {
            let deadline = node.disk.monotonic() + Duration::from_secs(30);
            loop {
                let name = node.with_partition(id, |p| p.directory.clone());
                if node.disk.monotonic() >= deadline {
                    let window = node.with_partition(id, |p| format!("{:?}", p.producers[producer].window));
                    let window: String = window.chars().take(600).collect();
                    panic!("{name}: no progress at the end: {:?}, {window}", node.engine(id).metrics());
                }
                let idle = node.with_partition(id, |p| p.producers[producer].in_flight() == 0);
                if idle && node.with_partition(id, |p| !p.producers[producer].window.is_empty()) {
                    break;
                }
                match next_to_send(node, id, producer) {
                    Some(sent) if sent.placed.is_none() => {
                        send(node, id, producer, sent).await;
                    }
                    _ => {}
                }
                pause(node, 5000).await;
            }
        }
    }
}
