//! Segments on the simulated disk, against a list of what was written.

use std::cell::RefCell;
use std::rc::Rc;

use flumen_core::types::{LeaderEpoch, Offset, Timestamp};
use flumen_wire::batch::{BatchBuilder, NewRecord};
use flumen_wire::compression::Compression;

use super::*;
use crate::disk::Disk;
use crate::sim::{Random, Sim, SimDisk, SimOptions};

const INTERVAL: u32 = 4096;
const PATH: &str = "t-0/00000000000000001000";
const BASE: i64 = 1000;

/// One batch of the model.
#[derive(Clone)]
struct Batch {
    base: i64,
    position: u64,
    bytes: Vec<u8>,
    /// Timestamps of its records.
    times: Vec<i64>,
}

impl Batch {
    fn last(&self) -> i64 {
        self.base + self.times.len() as i64 - 1
    }
}

fn segment(seed: u64, count: usize, value_max: u64) -> Vec<Batch> {
    let mut random = Random::new(seed);
    let (mut base, mut position, mut out) = (BASE, 0, Vec::new());
    for i in 0..count {
        let codec = Compression::ALL[random.index(5)];
        let mut builder = BatchBuilder::new(codec).at(base, 3);
        let mut times = Vec::new();
        for _ in 0..random.between(1, 6) {
            let mut value = vec![0; random.between(1, value_max) as usize];
            random.fill(&mut value);
            let timestamp = 1_000_000 + 10 * i as i64 + random.below(40) as i64;
            times.push(timestamp);
            builder.push(NewRecord { timestamp, key: None, value: Some(&value), headers: &[] });
        }
        let bytes = builder.build();
        let size = bytes.len() as u64;
        out.push(Batch { base, position, bytes, times });
        base = out[i].last() + 1;
        position += size;
    }
    out
}

fn view(batches: &[Batch]) -> SegmentView {
    let last = batches.last().expect("a segment with batches");
    SegmentView {
        path: PATH.into(),
        base_offset: Offset(BASE),
        end_offset: Offset(last.last() + 1),
        len: last.position + last.bytes.len() as u64,
        contiguous: true,
        live: None,
        max_timestamp: batches.iter().flat_map(|batch| &batch.times).max().copied().unwrap_or(-1),
        index_interval_bytes: INTERVAL,
        era: 0,
    }
}

fn bytes(batches: &[Batch]) -> Vec<u8> {
    batches.iter().flat_map(|batch| batch.bytes.clone()).collect()
}

fn index_of(batches: &[Batch]) -> SegmentIndex {
    let mut index = SegmentIndex::new(BASE, INTERVAL);
    for batch in batches {
        let largest = *batch.times.iter().max().expect("records");
        index.append(batch.position, batch.bytes.len() as u64, batch.last(), largest);
    }
    index
}

fn settings() -> ReaderSettings {
    let default = ReaderSettings::default();
    ReaderSettings { window_min: 4096, window_max: 32 << 10, ..default }
}

/// A disk with the segment, garbage behind its end, and perhaps index files.
async fn store(disk: &SimDisk, content: &[u8], index: Option<(&[u8], &[u8])>) {
    disk.create_directory("t-0").await.expect("made");
    let mut padded = content.to_vec();
    padded.extend_from_slice(&[0x5A; 777]);
    disk.write_file(&format!("{PATH}.log"), &padded, false).await.expect("written");
    if let Some((offsets, times)) = index {
        disk.write_file(&format!("{PATH}.index"), offsets, false).await.expect("written");
        disk.write_file(&format!("{PATH}.timeindex"), times, false).await.expect("written");
    }
}

fn on_disk<T: 'static>(work: impl AsyncFnOnce(SimDisk) -> T + 'static) -> T {
    let sim = Sim::new(1, SimOptions::default());
    let disk = sim.disk();
    sim.run(async move { work(disk).await }).expect("no crash was asked for")
}

fn any_epoch(_: Offset, _: LeaderEpoch) -> bool {
    true
}

/// Everything from `offset` on, read by read; and the offsets at which the reads began.
async fn read_on(
    reader: &SegmentReader<SimDisk>,
    view: &SegmentView,
    batches: &[Batch],
    from: usize,
    bytes_max: usize,
) -> Result<Vec<u8>, SegmentError> {
    let (mut at, mut all) = (from, Vec::new());
    while at < batches.len() {
        let got = reader.read(view, Offset(batches[at].base), bytes_max, true, &any_epoch).await?;
        assert!(!got.is_empty(), "at least one batch");
        assert_eq!(got.count(), 1, "one slice of one buffer");
        let mut len = 0;
        while len < got.len() {
            len += batches[at].bytes.len();
            at += 1;
        }
        assert_eq!(len, got.len(), "whole batches");
        assert!(len <= bytes_max || len == batches[at - 1].bytes.len());
        all.extend(got.to_vec());
    }
    Ok(all)
}

#[test]
fn every_offset_is_found_and_a_reader_goes_through() {
    for (seed, value_max) in [(1, 20), (2, 300), (3, 20_000)] {
        on_disk(async move |disk| {
            let batches = segment(seed, 60, value_max);
            let mut index = index_of(&batches);
            index.close();
            store(&disk, &bytes(&batches), Some((&index.offset_file(), &index.time_file()))).await;
            let reader = SegmentReader::new(disk, settings());
            let view = view(&batches);
            for batch in &batches {
                for offset in batch.base..=batch.last() {
                    let got = reader.read(&view, Offset(offset), 1, true, &any_epoch).await.expect("read");
                    assert_eq!(got.to_vec(), batch.bytes, "offset {offset}");
                    let none = reader.read(&view, Offset(offset), 1, false, &any_epoch).await.expect("read");
                    assert!(none.is_empty());
                }
            }
            for bytes_max in [1, 1000, 10_000, 1 << 20] {
                let all = read_on(&reader, &view, &batches, 0, bytes_max).await.expect("read");
                assert_eq!(all, bytes(&batches));
                let past =
                    reader.read(&view, view.end_offset, bytes_max, true, &any_epoch).await.expect("read");
                assert!(past.is_empty(), "nothing at the end");
            }
            assert_eq!(reader.metrics().indexes_rebuilt, 0);
        });
    }
}

#[test]
fn a_sequential_reader_reads_the_disk_once_in_growing_reads() {
    on_disk(async |disk| {
        let batches = segment(5, 2000, 100);
        store(&disk, &bytes(&batches), None).await;
        let reader = SegmentReader::new(disk, settings());
        let view = view(&batches);
        let first = reader.read(&view, Offset(BASE), 1, true, &any_epoch).await.expect("read");
        assert_eq!(first.len(), batches[0].bytes.len());
        let before = reader.metrics();
        read_on(&reader, &view, &batches, 1, 1000).await.expect("read");
        let after = reader.metrics();
        let (reads, len) = (after.disk_reads - before.disk_reads, view.len);
        // 4, 8, 16, then 32 KiB at a time; each overlaps the one before by less than a block and a batch.
        assert!(reads <= 3 + len / (26 << 10) + 1, "{reads} reads for {len} bytes");
        assert!(reader.cached_bytes() < 200 << 10);
    });
}

#[test]
fn readers_without_end_use_bounded_memory() {
    on_disk(async |disk| {
        let batches = segment(5, 2000, 100);
        store(&disk, &bytes(&batches), None).await;
        let bounds = ReaderSettings { streams_max: 10, read_ahead_bytes_max: 40 << 10, ..settings() };
        let reader = SegmentReader::new(disk, bounds);
        let view = view(&batches);
        let index_bytes = index_of(&batches).weight() * 2;
        for batch in &batches {
            reader.read(&view, Offset(batch.base), 1, true, &any_epoch).await.expect("read");
            assert!(reader.cached_bytes() <= index_bytes + (40 << 10));
        }
        reader.forget("t-0/");
        assert_eq!(reader.cached_bytes(), 0);
    });
}

#[test]
fn index_files_that_are_of_no_use_are_rebuilt() {
    let batches = segment(7, 200, 300);
    let mut good = index_of(&batches);
    good.close();
    let (offsets, times) = (good.offset_file(), good.time_file());
    assert!(offsets.len() >= 5 * 8 && times.len() >= 5 * 12);
    let mut shifted = offsets.clone();
    shifted[8 * 3 + 7] ^= 1;
    let mut late = times.clone();
    late[12 * 2 + 11] ^= 1;
    let zeros = vec![0; offsets.len()];
    let cases: Vec<(&str, Vec<u8>, Vec<u8>)> = vec![
        ("odd length", offsets[..offsets.len() - 3].to_vec(), times.clone()),
        ("zeros", zeros, times.clone()),
        ("zeros at the end", [&offsets[..], &[0; 16]].concat(), times.clone()),
        ("falling", offsets.chunks(8).rev().flatten().copied().collect(), times.clone()),
        ("shifted position", shifted, times.clone()),
        ("odd times", offsets.clone(), times[..13].to_vec()),
        ("falling times", offsets.clone(), times.chunks(12).rev().flatten().copied().collect()),
    ];
    for (name, offsets, times) in cases {
        let batches = batches.clone();
        let expected = (good.offset_file(), good.time_file());
        on_disk(async move |disk| {
            store(&disk, &bytes(&batches), Some((&offsets, &times))).await;
            let reader = SegmentReader::new(disk.clone(), settings());
            let view = view(&batches);
            for batch in batches.iter().rev() {
                let got = reader.read(&view, Offset(batch.last()), 1, true, &any_epoch).await.expect(name);
                assert_eq!(got.to_vec(), batch.bytes, "{name}");
            }
            assert_eq!(reader.metrics().indexes_rebuilt, 1, "{name}");
            let files = disk.files();
            let written = (&files[&format!("{PATH}.index")], &files[&format!("{PATH}.timeindex")]);
            assert_eq!(written, (&expected.0, &expected.1), "{name}: the files are written again");
        });
    }
    let stale = (offsets[..16].to_vec(), times[..12].to_vec());
    on_disk(async move |disk| {
        store(&disk, &bytes(&batches), Some((&stale.0, &stale.1))).await;
        let reader = SegmentReader::new(disk, settings());
        let largest = reader.largest_timestamp(&view(&batches)).await.expect("read").expect("a timestamp");
        let model = batches.iter().flat_map(|batch| &batch.times).max().copied();
        assert_eq!(Some(largest.timestamp), model, "a short index is continued");
        assert_eq!(reader.metrics().indexes_rebuilt, 0);
    });
}

/// A view of a segment that is written to, whose index knows only what came since recovery began at batch `from`.
fn resumed(batches: &[Batch], from: usize) -> SegmentView {
    let mut live = SegmentIndex::resume(BASE, INTERVAL, batches[from].position);
    for batch in &batches[from..] {
        let largest = *batch.times.iter().max().expect("records");
        live.append(batch.position, batch.bytes.len() as u64, batch.last(), largest);
    }
    SegmentView { live: Some(Rc::new(RefCell::new(live))), ..view(batches) }
}

/// With what a checkpoint kept of its index an active segment is scanned from there alone; a damaged file is none.
#[test]
fn what_was_kept_of_an_index_is_continued() {
    let batches = segment(7, 200, 300);
    let mut whole = index_of(&batches);
    let file = whole.partial_file(batches[120].position).expect("it has entries");
    let damaged = (0..file.len()).step_by(7).map(|at| {
        let mut file = file.clone();
        file[at] ^= 1 << (at % 8);
        (file, 1)
    });
    let cut = (0..file.len()).step_by(97).map(|len| (file[..len].to_vec(), 1));
    let cases: Vec<(Vec<u8>, u64)> = [(file.clone(), 0)].into_iter().chain(damaged).chain(cut).collect();
    whole.close();
    for (file, rebuilt) in cases {
        let (batches, expected) = (batches.clone(), (whole.offset_file(), whole.time_file()));
        on_disk(async move |disk| {
            store(&disk, &bytes(&batches), None).await;
            disk.write_file(&format!("{PATH}.{PARTIAL_INDEX}"), &file, false).await.expect("written");
            let reader = SegmentReader::new(disk.clone(), settings());
            let active = resumed(&batches, 150);
            for batch in batches.iter().rev() {
                let got =
                    reader.read(&active, Offset(batch.last()), 1, true, &any_epoch).await.expect("read");
                assert_eq!(got.to_vec(), batch.bytes);
            }
            let largest = reader.largest_timestamp(&active).await.expect("read").expect("a timestamp");
            assert_eq!(Some(largest.timestamp), batches.iter().flat_map(|batch| &batch.times).max().copied());
            assert_eq!(reader.metrics().indexes_rebuilt, rebuilt);
            // Of a segment that was closed meanwhile it serves as well, and goes when Kafka's two are there.
            let reader = SegmentReader::new(disk.clone(), settings());
            let first = reader.read(&view(&batches), Offset(BASE), 1, true, &any_epoch).await.expect("read");
            assert_eq!(first.to_vec(), batches[0].bytes);
            assert_eq!(reader.metrics().indexes_rebuilt, rebuilt);
            let files = disk.files();
            let written = (&files[&format!("{PATH}.index")], &files[&format!("{PATH}.timeindex")]);
            assert_eq!(written, (&expected.0, &expected.1));
            assert!(!files.contains_key(&format!("{PATH}.{PARTIAL_INDEX}")));
        });
    }
}

/// The batch with this one timestamp and of another length: those behind it move.
fn retime(batches: &mut [Batch], number: usize, timestamp: i64) {
    let one = &mut batches[number];
    let mut builder = BatchBuilder::new(Compression::None).at(one.base, 3);
    for time in &mut one.times {
        *time = timestamp;
        builder.push(NewRecord { timestamp, key: None, value: None, headers: &[] });
    }
    one.bytes = builder.build();
    let mut position = 0;
    for batch in batches {
        batch.position = position;
        position += batch.bytes.len() as u64;
    }
}

/// After a restart the index is kept on from where the file ends, a piece at a time, and knows the greatest timestamp, which
/// may lie anywhere and long before the last.
#[test]
fn an_index_is_kept_in_pieces_and_forgets_no_timestamp() {
    for latest in [0, 60, 119, 149, 150, 151, 199] {
        let late = 9_000_000;
        let mut batches = segment(7, 200, 300);
        retime(&mut batches, latest, late);
        on_disk(async move |disk| {
            store(&disk, &bytes(&batches), None).await;
            let (active, end) = (resumed(&batches, 150), view(&batches).len);
            let (mut reached, mut pieces) = (0, 0);
            while reached < end {
                let reader = SegmentReader::new(disk.clone(), settings());
                let kept = reader.keep_index(&active, end, 1, 16 << 10).await.expect("it gets on");
                assert!(kept > reached, "{kept} after {reached}");
                (reached, pieces) = (kept, pieces + 1);
            }
            assert!(pieces > 2, "{pieces}");
            let reader = SegmentReader::new(disk.clone(), settings());
            for view in [resumed(&batches, 190), view(&batches)] {
                let largest = reader.largest_timestamp(&view).await.expect("read").expect("a timestamp");
                assert_eq!(largest, TimeEntry { timestamp: late, offset: batches[latest].last() });
                let found = reader.offset_for_timestamp(&view, Timestamp(late), Offset(BASE)).await;
                let found = found.expect("read").map(|found| found.offset.0);
                assert_eq!(found, Some(batches[latest].base), "batch {latest}");
            }
            assert_eq!(reader.metrics().indexes_rebuilt, 0);
        });
    }
}

/// A time index that ends early looks like any other: what the log knows of its segment tells.
#[test]
fn a_time_index_that_was_torn_is_not_believed() {
    let mut batches = segment(7, 200, 300);
    // Before the last offset entry, so that no scan from there finds it.
    retime(&mut batches, 100, 9_000_000);
    let mut good = index_of(&batches);
    good.close();
    let (offsets, times) = (good.offset_file(), good.time_file());
    for entries in 0..times.len() / 12 {
        let (batches, offsets, times) = (batches.clone(), offsets.clone(), times[..entries * 12].to_vec());
        on_disk(async move |disk| {
            store(&disk, &bytes(&batches), Some((&offsets, &times))).await;
            let reader = SegmentReader::new(disk, settings());
            let view = view(&batches);
            let largest = reader.largest_timestamp(&view).await.expect("read").expect("a timestamp");
            assert_eq!(largest.timestamp, view.max_timestamp, "{entries} entries");
            assert_eq!(reader.metrics().indexes_rebuilt, 1);
        });
    }
}

/// Flips each byte of a small segment in turn. What comes back is what was written, or an error that names a
/// place at or before the flipped byte; offsets below it stay readable.
#[test]
fn a_flipped_byte_is_never_served() {
    let batches = segment(11, 6, 30);
    let content = bytes(&batches);
    for at in 0..content.len() {
        let batches = batches.clone();
        let mut content = content.clone();
        content[at] ^= 1 << (at % 8);
        on_disk(async move |disk| {
            store(&disk, &content, None).await;
            let reader = SegmentReader::new(disk, settings());
            let view = view(&batches);
            let only = |_: Offset, epoch: LeaderEpoch| epoch == LeaderEpoch(3);
            let bad = batches.iter().rposition(|batch| batch.position <= at as u64).expect("in a batch");
            for (number, batch) in batches.iter().enumerate() {
                match reader.read(&view, Offset(batch.base), 1 << 20, true, &only).await {
                    Ok(got) => {
                        let from = batch.position as usize;
                        let all = bytes(&batches);
                        let got = got.to_vec();
                        assert_eq!(got, all[from..from + got.len()], "byte {at}: wrong bytes served");
                        let upto = from + got.len();
                        let touched = (from..upto).contains(&at);
                        assert!(!touched, "byte {at}: a flipped byte was served");
                    }
                    Err(SegmentError::Corrupt { file, position, .. }) => {
                        assert_eq!(file, format!("{PATH}.log"));
                        // A wrong base offset may show only when the next batch does not follow.
                        assert!(
                            number >= bad,
                            "byte {at}: batch {number} is not readable, {position} is said"
                        );
                        assert!(position >= batches[bad].position, "byte {at}: position {position}");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
}

#[test]
fn an_epoch_that_does_not_fit_is_corruption() {
    on_disk(async |disk| {
        let batches = segment(13, 3, 60);
        store(&disk, &bytes(&batches), None).await;
        let reader = SegmentReader::new(disk, settings());
        let wrong = |offset: Offset, _: LeaderEpoch| offset.0 < batches[1].base;
        let view = view(&batches);
        let got = reader.read(&view, Offset(BASE), 1 << 20, true, &wrong).await.expect("the first is good");
        assert_eq!(got.to_vec(), batches[0].bytes);
        let error = reader.read(&view, Offset(batches[1].base), 1 << 20, true, &wrong).await.err();
        let text = error.map(|error| error.to_string());
        let position = batches[1].position;
        let expected =
            format!("{PATH}.log at position {position}: corrupt: leader epoch 3 does not fit the offset");
        assert_eq!(text, Some(expected));
    });
}

#[test]
fn a_file_shorter_than_its_segment_is_corruption() {
    on_disk(async |disk| {
        let batches = segment(13, 30, 600);
        let content = bytes(&batches);
        disk.create_directory("t-0").await.expect("made");
        let half = &content[..content.len() / 2];
        disk.write_file(&format!("{PATH}.log"), half, false).await.expect("written");
        let reader = SegmentReader::new(disk, settings());
        let view = view(&batches);
        assert!(reader.read(&view, Offset(BASE), 1, true, &any_epoch).await.is_ok());
        let last = Offset(batches[29].base);
        let error = reader.read(&view, last, 1, true, &any_epoch).await.expect_err("not there").to_string();
        assert!(error.contains("the file ends at"), "{error}");
    });
}

#[test]
fn by_time_as_a_look_at_every_record_finds_it() {
    on_disk(async |disk| {
        let batches = segment(17, 150, 200);
        store(&disk, &bytes(&batches), None).await;
        let reader = SegmentReader::new(disk, settings());
        let view = view(&batches);
        let records: Vec<(i64, i64)> = batches
            .iter()
            .flat_map(|batch| batch.times.iter().enumerate().map(|(i, time)| (batch.base + i as i64, *time)))
            .collect();
        let from = Offset(batches[40].base + 1);
        for time in 999_990..1_001_560 {
            for from in [Offset(BASE), from] {
                let model = records.iter().find(|(offset, at)| *at >= time && *offset >= from.0);
                let found = reader.offset_for_timestamp(&view, Timestamp(time), from).await.expect("read");
                let found = found.map(|found| (found.offset.0, found.timestamp.0));
                assert_eq!(found, model.copied(), "time {time} from {from}");
            }
        }
        let largest = records.iter().map(|(_, at)| *at).max().expect("records");
        let model = records.iter().find(|(_, at)| *at == largest);
        let found =
            reader.max_timestamp(&view).await.expect("read").map(|found| (found.offset.0, found.timestamp.0));
        assert_eq!(found, model.copied());
    });
}

/// A batch enters the live index when its group is formed, and the view once it is on disk.
#[test]
fn the_greatest_timestamp_is_of_what_the_view_has() {
    on_disk(async |disk| {
        let batches = segment(23, 60, 200);
        store(&disk, &bytes(&batches), None).await;
        let reader = SegmentReader::new(disk, settings());
        let live = Some(Rc::new(RefCell::new(index_of(&batches))));
        for shown in 1..batches.len() {
            let view = SegmentView { live: live.clone(), ..view(&batches[..shown]) };
            let records = batches[..shown].iter().flat_map(|b| (b.base..).zip(b.times.iter().copied()));
            let model = records.reduce(|best, next| if next.1 > best.1 { next } else { best });
            let found = reader.max_timestamp(&view).await.expect("read");
            assert_eq!(found.map(|found| (found.offset.0, found.timestamp.0)), model, "{shown} batches");
        }
    });
}

/// After a restart the active segment's index begins in the middle: what lies before is scanned when needed.
#[test]
fn a_live_index_that_begins_in_the_middle_is_completed() {
    for with_files in [false, true] {
        on_disk(async move |disk| {
            let batches = segment(19, 300, 200);
            let whole = index_of(&batches);
            let middle = 140;
            let mut prefix = index_of(&batches[..middle]);
            prefix.close();
            let files = (prefix.offset_file(), prefix.time_file());
            store(&disk, &bytes(&batches), with_files.then_some((&files.0[..], &files.1[..]))).await;
            let mut live = SegmentIndex::resume(BASE, INTERVAL, batches[middle].position);
            for batch in &batches[middle..] {
                let largest = *batch.times.iter().max().expect("records");
                live.append(batch.position, batch.bytes.len() as u64, batch.last(), largest);
            }
            let live = Rc::new(RefCell::new(live));
            let view = SegmentView { live: Some(live.clone()), ..view(&batches) };
            let reader = SegmentReader::new(disk, settings());
            let tail = &batches[250];
            let got = reader.read(&view, Offset(tail.base), 1, true, &any_epoch).await.expect("read");
            assert_eq!(got.to_vec(), tail.bytes);
            assert_eq!(live.borrow().covered_from(), batches[middle].position, "the tail needs no more");
            for batch in batches.iter().rev() {
                let got = reader.read(&view, Offset(batch.last()), 1, true, &any_epoch).await.expect("read");
                assert_eq!(got.to_vec(), batch.bytes);
            }
            assert_eq!(live.borrow().covered_from(), 0);
            assert_eq!(live.borrow().largest_timestamp(), whole.largest_timestamp());
            let found =
                reader.offset_for_timestamp(&view, Timestamp(1_000_700), Offset(BASE)).await.expect("read");
            let model = batches.iter().flat_map(|batch| {
                batch.times.iter().enumerate().map(|(i, time)| (batch.base + i as i64, *time))
            });
            let model = model.into_iter().find(|(_, time)| *time >= 1_000_700).expect("in range");
            assert_eq!(found.map(|found| (found.offset.0, found.timestamp.0)), Some(model));
        });
    }
}

#[test]
fn many_readers_make_an_index_once() {
    for is_live in [false, true] {
        on_disk(async move |disk| {
            let batches = segment(23, 300, 200);
            let middle = 140;
            // What lies behind the middle is of no use to any of them.
            let mut live = SegmentIndex::resume(BASE, INTERVAL, batches[middle].position);
            for batch in &batches[middle..] {
                live.append(batch.position, batch.bytes.len() as u64, batch.last(), batch.times[0]);
            }
            let live = is_live.then(|| Rc::new(RefCell::new(live)));
            let view = SegmentView { live, ..view(&batches) };
            store(&disk, &bytes(&batches), None).await;
            let reader = SegmentReader::new(disk, settings());
            let reads = batches[100..120].iter().map(|batch| {
                let (reader, view) = (&reader, &view);
                async move { reader.read(view, Offset(batch.base), 1, true, &any_epoch).await }
            });
            for (got, batch) in futures_util::future::join_all(reads).await.into_iter().zip(&batches[100..]) {
                assert_eq!(got.expect("read").to_vec(), batch.bytes);
            }
            assert_eq!(reader.metrics().indexes_rebuilt, 1);
        });
    }
}

#[test]
fn index_files_have_kafkas_bytes() {
    let mut index = SegmentIndex::new(500, 100);
    // Position, size, last offset, greatest timestamp.
    for (position, size, last, time) in
        [(0, 101, 504, 70), (101, 50, 505, 90), (151, 60, 509, 80), (211, 9, 510, 95)]
    {
        index.append(position, size, last, time);
    }
    index.close();
    assert_eq!(index.offset_file(), [0, 0, 0, 5, 0, 0, 0, 101, 0, 0, 0, 10, 0, 0, 0, 211]);
    let times = [[0, 0, 0, 0, 0, 0, 0, 90, 0, 0, 0, 5], [0, 0, 0, 0, 0, 0, 0, 95, 0, 0, 0, 10]].concat();
    assert_eq!(index.time_file(), times);
    assert_eq!(index.lookup(504), None);
    assert_eq!(index.lookup(509), Some(OffsetEntry { offset: 505, position: 101 }));
    assert_eq!(index.lookup_time(94), Some(TimeEntry { timestamp: 90, offset: 505 }));
    let again =
        SegmentIndex::parse(500, 100, 511, 220, &index.offset_file(), &index.time_file()).expect("whole");
    assert_eq!(
        (again.covered_to(), again.last_entry()),
        (211, Some(OffsetEntry { offset: 505, position: 101 }))
    );
    assert_eq!(again.largest_timestamp(), Some(TimeEntry { timestamp: 90, offset: 505 }));
    for (end, len) in [(510, 220), (511, 211)] {
        let outside = SegmentIndex::parse(500, 100, end, len, &index.offset_file(), &index.time_file());
        assert!(outside.is_err());
    }
}

/// Whatever is forgotten: what it leads to is a batch, and none that lies behind what is looked for.
#[test]
fn a_sparse_index_leads_to_batches_and_knows_the_greatest_timestamps() {
    for seed in 0..20 {
        let mut batches = segment(seed, 2000, 400);
        retime(&mut batches, 700 + seed as usize * 60, 1_012_000);
        let mut random = Random::new(seed);
        // As after a restart: it begins in the middle, and gets what lies before later.
        let middle = 300;
        let mut index = SegmentIndex::resume(BASE, 64, batches[middle].position);
        let sparse_to = random.between(4_000, 9_000) as usize;
        for (number, batch) in batches.iter().enumerate().skip(middle) {
            let largest = *batch.times.iter().max().expect("records");
            index.append(batch.position, batch.bytes.len() as u64, batch.last(), largest);
            index.fit(sparse_to);
            if number == 1500 {
                assert_eq!(
                    index.lookup(batches[middle].last()).map(|entry| entry.position),
                    Some(batches[middle].position)
                );
                let mut prefix = index_of(&batches[..middle]);
                prefix.fit(sparse_to);
                index.prepend(prefix);
            }
        }
        assert!(index.weight() <= sparse_to, "{} bytes", index.weight());
        let is_exact = index_of(&batches).largest_timestamp() == index.largest_timestamp();
        assert!(is_exact, "{:?}", index.largest_timestamp());
        index.close();
        let end = batches.last().expect("batches").last() + 1;
        let parsed =
            SegmentIndex::parse(BASE, 64, end, index.covered_to(), &index.offset_file(), &index.time_file());
        let kept = index.partial_file(batches[1800].position).expect("entries");
        let partial = SegmentIndex::parse_partial(BASE, 64, end, index.covered_to(), &kept);
        for (index, whole) in
            [(index.clone(), true), (parsed.expect("in order"), false), (partial.expect("sound"), false)]
        {
            let mut greatest = 0;
            for batch in &batches {
                if let Some(entry) = index.lookup(batch.last()) {
                    let of = |one: &Batch| (one.last(), one.position);
                    assert!(entry.offset <= batch.last());
                    assert!(batches.iter().any(|one| of(one) == (entry.offset, entry.position)), "{entry:?}");
                }
                greatest = batch.times.iter().fold(greatest, |greatest, time| greatest.max(*time));
                // Nothing that it passes over has a greater timestamp.
                if let Some(time) = index.last_time_below(batch.last() + 1) {
                    assert!(time.timestamp <= greatest && time.offset <= batch.last());
                    let passed = batches.iter().take_while(|one| one.last() <= time.offset);
                    assert!(passed.flat_map(|one| &one.times).all(|at| *at <= time.timestamp), "{time:?}");
                }
                // At an entry the times know all that came before.
                let is_entry = index.lookup(batch.last()).is_some_and(|entry| entry.offset == batch.last());
                if is_entry && whole {
                    let known = index.last_time_below(batch.last() + 1).map(|time| time.timestamp);
                    assert_eq!(known, Some(greatest), "at {}", batch.last());
                }
            }
        }
        for keep in [middle + 1, 900, 1500, 1999] {
            let mut cut = index.clone();
            let _ = cut.truncate(batches[keep].position, batches[keep].base);
            for batch in &batches[keep..] {
                let largest = *batch.times.iter().max().expect("records");
                cut.append(batch.position, batch.bytes.len() as u64, batch.last(), largest);
                cut.fit(sparse_to);
            }
            assert_eq!(cut.covered_to(), index.covered_to());
        }
    }
}

#[test]
fn a_cut_index_goes_on_as_if_nothing_had_been_there() {
    let batches = segment(23, 200, 200);
    for keep in [0, 1, 50, 199, 200] {
        let mut index = index_of(&batches);
        let position = batches.get(keep).map_or(index.covered_to(), |batch| batch.position);
        let end = batches.get(keep).map_or(i64::MAX, |batch| batch.base);
        let exact = index.truncate(position, end);
        let model = index_of(&batches[..keep]);
        assert_eq!(index.offset_file(), model.offset_file());
        assert_eq!(index.covered_to(), model.covered_to());
        if exact {
            assert_eq!(index.largest_timestamp(), model.largest_timestamp());
        }
    }
}
