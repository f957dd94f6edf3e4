//! Partition directories in recovery: files are cut to their true ends; what metadata does not know, what lies below the
//! log start and what was never journalled gets a name that says so, and is left to the engine ([`Grave`]): a start waits for
//! no file system that gives back gigabytes.

use std::collections::{HashMap, HashSet};
use std::io;

use flumen_core::limits::RECOVERY_DEPTH;
use flumen_core::types::{Offset, PartitionId};
use flumen_wire::batch::{BatchHeader, HEADER_LEN, crc_matches};
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::checkpoints::Base;
use super::replay::{ExtentSeen, Replay};
use super::{KnownPartition, Recovery, RecoveryError, failed};
use crate::compact::parse_swap_name;
use crate::disk::{BLOCK, Buffer, DirectoryEntry, Disk, File, OpenMode};
use crate::engine::planted;
use crate::lifecycle::{clear_the_way, make_directory, partition_metadata};
use crate::partition::segment_path;
use crate::removal::{BURIED, Grave, buried_directory, buried_file};
use crate::segment::{INDEX_EXTENSIONS, PARTIAL_INDEX};

/// Longest `partition.metadata`.
const METADATA_BYTES_MAX: u64 = 4096;
/// Folders that are not partitions.
const OURS: [&str; 3] = ["journal", "checkpoint", "metadata"];

/// What a directory turned out to be.
#[derive(Default)]
struct Settled {
    changed: bool,
    /// Damage to what was acknowledged.
    corrupt: Option<String>,
    graves: Vec<Grave>,
}

impl<D: Disk> Recovery<'_, D> {
    /// A partition of which no checkpoint speaks may never have been whole: its directory must be its own.
    pub(super) async fn check_new_directories(&mut self, base: &Base) -> Result<(), RecoveryError> {
        let new: Vec<(PartitionId, String)> = self
            .replays
            .values()
            .filter(|replay| !replay.has_record && replay.offline.is_none())
            .map(|replay| (replay.id, replay.known.directory.clone()))
            .collect();
        for (id, directory) in new {
            let path = format!("{directory}/partition.metadata");
            let is_own = match self.disk.read_file(&path, METADATA_BYTES_MAX).await {
                Ok(content) if content == partition_metadata(id.topic).as_bytes() => true,
                Ok(content) if names_a_topic(&content) => false,
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Ok(_) => {
                    self.offline(id, format!("{path} is corrupt"), None);
                    continue;
                }
                Err(error) => {
                    self.offline(id, format!("{path}: {error}"), None);
                    continue;
                }
            };
            // Every start makes a checkpoint before anything can be written.
            if is_own && base.names.is_empty() && has_records(self.disk, &directory).await {
                return Err(RecoveryError::CheckpointMissing(directory));
            }
            if !is_own {
                // Nothing was acknowledged before the directory was durable: it is another topic's, or half made.
                let made = match clear_the_way(self.disk, &directory).await {
                    Ok(in_the_way) => {
                        self.graves.extend(in_the_way);
                        make_directory(self.disk, id, &directory).await
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = made {
                    self.offline(id, format!("{directory}: {error}"), None);
                }
            }
        }
        Ok(())
    }

    pub(super) async fn settle_directories(
        &mut self,
        known: &HashMap<PartitionId, KnownPartition>,
    ) -> Result<(), RecoveryError> {
        self.bury_strangers(known).await?;
        let now_ms = self.now_ms;
        let mut verify_left = self.verify_left;
        let mut lost = Vec::new();
        for replay in self.replays.values_mut().filter(|replay| replay.offline.is_none()) {
            replay.drop_deleted(now_ms);
            let segments = replay.log.segments();
            let kept = |base: &Offset| segments.iter().any(|segment| segment.base_offset == *base);
            let absent = replay.absent.iter().find(|(base, _)| kept(base));
            lost.extend(absent.map(|(_, reason)| (replay.id, reason.clone())));
            // Extents beyond the budget are found by the reads of consumers.
            replay.extents.retain(|extent| {
                let fits = extent.length <= verify_left;
                verify_left -= if fits { extent.length } else { 0 };
                fits
            });
        }
        for (id, reason) in lost {
            self.offline(id, reason, None);
        }
        let disk = self.disk;
        let discards = planted!(self.settings, SwapDiscarded);
        let mut settled = Vec::new();
        {
            let mut queue = self.replays.values().filter(|replay| replay.offline.is_none());
            let mut tasks = FuturesUnordered::new();
            loop {
                while tasks.len() < RECOVERY_DEPTH {
                    let Some(replay) = queue.next() else { break };
                    tasks.push(async move { (replay.id, settle(disk, replay, discards).await) });
                }
                match tasks.next().await {
                    None => break,
                    Some(done) => settled.push(done),
                }
            }
        }
        for (id, outcome) in settled {
            match outcome {
                Ok(Settled { changed, corrupt, graves }) => {
                    self.graves.extend(graves);
                    if let Some(replay) = self.replays.get_mut(&id) {
                        replay.directory_changed |= changed;
                    }
                    if let Some(reason) = corrupt {
                        let incarnation = self.settings.incarnation;
                        self.offline(id, reason, Some(incarnation));
                    }
                }
                Err(reason) => self.offline(id, reason, None),
            }
        }
        Ok(())
    }

    /// Directories of deleted partitions, and of topics that metadata does not know.
    async fn bury_strangers(
        &mut self,
        known: &HashMap<PartitionId, KnownPartition>,
    ) -> Result<(), RecoveryError> {
        let directories: HashSet<&str> = known.values().map(|known| known.directory.as_str()).collect();
        let mut entries = self.disk.list("").await.map_err(failed("listing the data folder"))?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries.into_iter().filter(|entry| entry.is_directory) {
            let name = entry.name.as_str();
            if OURS.contains(&name) || directories.contains(name) {
                continue;
            }
            let metadata = format!("{name}/partition.metadata");
            let partition = self.disk.read_file(&metadata, METADATA_BYTES_MAX).await.is_ok();
            if name.ends_with("-delete") {
                self.graves.push(Grave::Directory(entry.name));
            } else if partition {
                // Of two long names the same may be kept.
                let unique = format!("{:x}-{:x}", self.settings.incarnation.0, self.graves.len());
                let buried = buried_directory(name, &unique);
                self.disk.rename(name, &buried).await.map_err(failed(name))?;
                self.graves.push(Grave::Directory(buried));
            } else {
                self.findings.push(format!("{name} is none of ours"));
            }
        }
        Ok(())
    }

    /// Makes durable which files there are, where that changed.
    pub(super) async fn sync_directories(&mut self) -> Result<(), RecoveryError> {
        let changed =
            self.replays.values().filter(|replay| replay.directory_changed || !replay.touched.is_empty());
        let changed: Vec<String> = changed.map(|replay| replay.known.directory.clone()).collect();
        for directory in changed {
            self.disk.sync_directory(&directory).await.map_err(failed(&directory))?;
        }
        Ok(())
    }
}

impl Replay {
    /// Takes out of the log what lies wholly below its start; a log without records begins a new segment.
    fn drop_deleted(&mut self, now_ms: i64) {
        if self.log.log_start() == self.log.log_end() && self.log.active().size > 0 {
            self.log.roll(now_ms);
        }
        self.log.drop_below_start();
    }
}

/// Compacted segments that the checkpoint counts on take their places; others, which it does not know, are to go: then
/// all is there that they would have replaced. Returns the base offsets of the former.
async fn finish_swaps<D: Disk>(
    disk: &D,
    replay: &Replay,
    entries: &[DirectoryEntry],
    discards: bool,
    graves: &mut Vec<Grave>,
) -> Result<HashSet<Offset>, (String, io::Error)> {
    let directory = replay.known.directory.as_str();
    let segments = replay.log.segments();
    let mut finished = HashSet::new();
    for entry in entries {
        let Some((base, end)) = parse_swap_name(&entry.name) else { continue };
        let swap = format!("{directory}/{}", entry.name);
        let counted_on = segments
            .windows(2)
            .any(|pair| (pair[0].base_offset, pair[1].base_offset, pair[0].size) == (base, end, entry.len));
        if !counted_on || discards {
            graves.push(bury(disk, &swap, entry.len).await.map_err(|error| (swap, error))?);
            continue;
        }
        let path = segment_path(directory, base);
        for extension in INDEX_EXTENSIONS {
            // They are of the old segment, and may be missing.
            disk.remove_file(&format!("{path}.{extension}")).await.ok();
        }
        disk.rename(&swap, &format!("{path}.log")).await.map_err(|error| (swap, error))?;
        finished.insert(base);
    }
    Ok(finished)
}

/// Gives a file a name that says it is to go.
async fn bury<D: Disk>(disk: &D, path: &str, bytes: u64) -> io::Result<Grave> {
    let buried = buried_file(path);
    disk.rename(path, &buried).await?;
    Ok(Grave::File(buried, bytes))
}

/// Brings one directory into the state that the log says.
async fn settle<D: Disk>(disk: &D, replay: &Replay, discards: bool) -> Result<Settled, String> {
    let directory = replay.known.directory.as_str();
    let in_words = |path: &str, error: io::Error| format!("{path}: {error}");
    let entries = disk.list(directory).await.map_err(|error| in_words(directory, error))?;
    let mut settled = Settled::default();
    let segments = replay.log.segments();
    let mut seen = finish_swaps(disk, replay, &entries, discards, &mut settled.graves)
        .await
        .map_err(|(path, error)| in_words(&path, error))?;
    settled.changed |= !seen.is_empty() || !settled.graves.is_empty();
    let mut longer = Vec::new();
    for entry in &entries {
        let path = format!("{directory}/{}", entry.name);
        let Some((base, extension)) = parse_file_name(&entry.name) else { continue };
        if extension.ends_with(BURIED) {
            settled.graves.push(Grave::File(path, entry.len));
            continue;
        }
        if seen.contains(&base) && extension == "log" {
            // What a compacted segment has replaced.
            continue;
        }
        if parse_swap_name(&entry.name).is_some() {
            continue;
        }
        let segment = segments.iter().find(|segment| segment.base_offset == base);
        if extension == "cleaned" || (extension == "log" && segment.is_none()) {
            let buried = bury(disk, &path, entry.len).await;
            settled.graves.push(buried.map_err(|error| in_words(&path, error))?);
            settled.changed = true;
            continue;
        }
        // What is kept of the index of an active segment speaks of what a checkpoint covers, unless that was cut.
        let old = match extension {
            PARTIAL_INDEX => replay.cut.contains(&base),
            _ => extension.ends_with("index") && replay.touched.contains(&base),
        };
        let stale = segment.is_none() || old || extension.ends_with(".tmp");
        if stale {
            disk.remove_file(&path).await.map_err(|error| in_words(&path, error))?;
            settled.changed = true;
        } else if let Some(segment) = segment
            && extension == "log"
        {
            seen.insert(base);
            // What recovery wrote since the listing ended at a whole block.
            let written = replay.touched.contains(&base);
            if entry.len > segment.size || written {
                longer.push((path.clone(), segment.size));
            }
            if entry.len < segment.size {
                let text = format!("{path} ends at {}, its true end is {}", entry.len, segment.size);
                settled.corrupt.get_or_insert(text);
            }
        }
    }
    for segment in segments.iter().filter(|segment| !seen.contains(&segment.base_offset)) {
        let path = format!("{}.log", segment_path(directory, segment.base_offset));
        if segment.size > 0 {
            settled
                .corrupt
                .get_or_insert(format!("{path} is missing, {} bytes of it are known", segment.size));
            continue;
        }
        let mode = OpenMode { create_new: true, write: true, synchronous: false };
        disk.open(&path, mode).await.map_err(|error| in_words(&path, error))?;
        settled.changed = true;
    }
    // What contradicts the files does not say which part of them is too much, either.
    for (path, size) in longer.into_iter().filter(|_| settled.corrupt.is_none()) {
        let mode = OpenMode { write: true, ..OpenMode::default() };
        let file = disk.open(&path, mode).await.map_err(|error| in_words(&path, error))?;
        file.truncate(size).await.map_err(|error| in_words(&path, error))?;
    }
    for extent in &replay.extents {
        if settled.corrupt.is_none()
            && segments.iter().any(|segment| segment.base_offset == extent.segment_base)
        {
            let path = format!("{}.log", segment_path(directory, extent.segment_base));
            settled.corrupt = verify(disk, &path, extent).await.map_err(|error| in_words(&path, error))?;
        }
    }
    Ok(settled)
}

/// Whether there is a segment with something in it.
async fn has_records<D: Disk>(disk: &D, directory: &str) -> bool {
    let entries = disk.list(directory).await.unwrap_or_default();
    entries
        .iter()
        .any(|entry| entry.len > 0 && parse_file_name(&entry.name).is_some_and(|(_, kind)| kind == "log"))
}

/// Whether it is a `partition.metadata` as it should be, of whatever topic.
fn names_a_topic(content: &[u8]) -> bool {
    let text = std::str::from_utf8(content).unwrap_or_default();
    let id = text.strip_prefix("version: 0\ntopic_id: ").and_then(|rest| rest.strip_suffix('\n'));
    id.is_some_and(|id| id.len() == 22)
}

/// Base offset and extension of a segment's file.
fn parse_file_name(name: &str) -> Option<(Offset, &str)> {
    let (digits, extension) = name.split_once('.')?;
    let digits = (digits.len() == 20).then_some(digits)?;
    Some((Offset(digits.parse().ok()?), extension))
}

/// Compares bulk with the headers that were journalled for it. Says where it differs.
async fn verify<D: Disk>(disk: &D, path: &str, extent: &ExtentSeen) -> io::Result<Option<String>> {
    let block = BLOCK as u64;
    let start = extent.position - extent.position % block;
    let end = extent.position + extent.length;
    if extent.length == 0 {
        return Ok(None);
    }
    let file = disk.open(path, OpenMode::default()).await?;
    let len = (end - start).next_multiple_of(block) as usize;
    let (buffer, content) = file.read_at(start, len).await?;
    if start + (content as u64) < end {
        return Ok(Some(format!("{path} ends at {}, bulk reaches to {end}", start + content as u64)));
    }
    let bytes = &buffer.as_slice()[(extent.position - start) as usize..(end - start) as usize];
    let mut at = 0;
    for header in extent.headers.chunks_exact(HEADER_LEN) {
        let Ok(size) = BatchHeader::parse(header).map(|header| header.size()) else { break };
        let Some(batch) = bytes.get(at..at + size) else {
            // The last one's end is in the journal: its head is compared, reads check the rest.
            let head = &bytes[at.min(bytes.len())..];
            let common = head.len().min(HEADER_LEN);
            let differs = head[..common] != header[..common];
            let position = extent.position + at as u64;
            return Ok(
                differs.then(|| format!("{path} at position {position}: not the batch that was journalled"))
            );
        };
        if batch[..HEADER_LEN] != *header || !crc_matches(batch) {
            let position = extent.position + at as u64;
            return Ok(Some(format!("{path} at position {position}: not the batch that was journalled")));
        }
        at += size;
    }
    Ok(None)
}
