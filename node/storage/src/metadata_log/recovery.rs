//! Recovery of the metadata log: idempotent, and it changes nothing before all of it was understood.

use std::collections::HashSet;
use std::io;
use std::rc::Rc;

use flumen_core::metadata::Image;

use super::format::{FileHeader, FileKind, Frame, Tail, scan};
use super::{
    FILE_BYTES_MAX, METADATA_DIRECTORY, MetadataLog, MetadataLogError, codec, create_log, log_path,
    publish_log, snapshot_path,
};
use crate::disk::{BLOCK, Buffer, Disk, File, OpenMode};
use crate::lifecycle::partition_metadata;

/// What is in the folder, by the names of its files; each list rises.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) snapshots: Vec<u64>,
    logs: Vec<u64>,
    temporary: Vec<String>,
}

impl Listing {
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a str>) -> Listing {
        let mut listing = Listing::default();
        for name in names {
            let offset = |stem: &str| stem.parse::<u64>().ok().filter(|_| stem.len() == 20);
            match name.split_once('.') {
                Some((_, end)) if end.ends_with(".tmp") => {
                    listing.temporary.push(format!("{METADATA_DIRECTORY}/{name}"));
                }
                Some((stem, "snapshot")) => listing.snapshots.extend(offset(stem)),
                Some((stem, "log")) => listing.logs.extend(offset(stem)),
                // Not ours.
                _ => {}
            }
        }
        listing.snapshots.sort_unstable();
        listing.logs.sort_unstable();
        listing
    }

    /// The log that goes on after `from` records, those of the newest snapshot.
    pub(super) fn log_for(&self, from: u64) -> Result<u64, MetadataLogError> {
        let Some(base) = self.logs.iter().copied().rfind(|base| *base <= from) else {
            return Err(MetadataLogError::Missing(log_path(from)));
        };
        match self.logs.last().filter(|later| **later > from) {
            Some(later) => Err(MetadataLogError::Missing(snapshot_path(*later))),
            None => Ok(base),
        }
    }
}

pub(super) async fn recover<D: Disk>(
    disk: D,
    epoch: u64,
    snapshot_bytes: u64,
    mut fresh_uuid: Box<dyn FnMut() -> [u8; 16]>,
) -> Result<(MetadataLog<D>, Image), MetadataLogError> {
    let folder = |error| MetadataLogError::Io { file: METADATA_DIRECTORY.to_owned(), error };
    disk.create_directory(METADATA_DIRECTORY).await.map_err(folder)?;
    disk.sync_directory("").await.map_err(folder)?;
    // A process that was killed may have left names behind that are not on disk yet; what is appended to a file
    // counts only if its name stays.
    disk.sync_directory(METADATA_DIRECTORY).await.map_err(folder)?;
    let listing = list(&disk).await.map_err(folder)?;
    if listing.snapshots.is_empty() && listing.logs.is_empty() {
        // Whoever has no metadata takes all partitions for deleted ones.
        if has_partitions(&disk).await.map_err(folder)? {
            return Err(MetadataLogError::Missing(log_path(0)));
        }
        let header = FileHeader { uuid: fresh_uuid(), offset: 0, epoch };
        let created = async {
            let made = create_log(&disk, header).await?;
            publish_log(&disk, 0).await?;
            Ok(made)
        };
        let (file, allocated) = created.await.map_err(folder)?;
        let log = Recovered { file, header, position: BLOCK as u64, allocated, tail: Vec::new() };
        return Ok((log.into_log(disk, 0, epoch, snapshot_bytes, fresh_uuid), Image::default()));
    }
    let mut image = match listing.snapshots.last() {
        Some(offset) => read_snapshot(&disk, *offset).await?,
        None => Image::default(),
    };
    let from = image.offset();
    let base = listing.log_for(from)?;
    let log = read_log(&disk, base, epoch, &mut image).await?;
    for name in &listing.temporary {
        disk.remove_file(name).await.map_err(folder)?;
    }
    remove_older(&disk, from, base).await.map_err(folder)?;
    let next_offset = image.offset();
    Ok((log.into_log(disk, next_offset, epoch, snapshot_bytes, fresh_uuid), image))
}

/// Removes snapshots before the one at `snapshot` and logs before the one at `log`.
pub(super) async fn remove_older<D: Disk>(disk: &D, snapshot: u64, log: u64) -> io::Result<()> {
    let listing = list(disk).await?;
    let snapshots =
        listing.snapshots.iter().filter(|offset| **offset < snapshot).map(|offset| snapshot_path(*offset));
    let logs = listing.logs.iter().filter(|offset| **offset < log).map(|offset| log_path(*offset));
    let older: Vec<String> = snapshots.chain(logs).collect();
    for path in &older {
        disk.remove_file(path).await?;
    }
    if !older.is_empty() {
        disk.sync_directory(METADATA_DIRECTORY).await?;
    }
    Ok(())
}

async fn has_partitions<D: Disk>(disk: &D) -> io::Result<bool> {
    for entry in disk.list("").await?.iter().filter(|entry| entry.is_directory) {
        match disk.read_file(&format!("{}/partition.metadata", entry.name), BLOCK as u64).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => return Ok(true),
        }
    }
    Ok(false)
}

/// The directory of a partition whose topic the metadata does not know, and which is not on its way to be removed.
async fn stranger<D: Disk>(disk: &D, image: &Image) -> io::Result<Option<String>> {
    let known: HashSet<String> = image.topics().map(|topic| partition_metadata(topic.id)).collect();
    for entry in disk.list("").await?.into_iter().filter(|entry| entry.is_directory) {
        if entry.name.ends_with("-delete") {
            continue;
        }
        match disk.read_file(&format!("{}/partition.metadata", entry.name), BLOCK as u64).await {
            Ok(content) if std::str::from_utf8(&content).is_ok_and(|text| known.contains(text)) => {}
            Ok(_) => return Ok(Some(entry.name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

async fn list<D: Disk>(disk: &D) -> io::Result<Listing> {
    let entries = disk.list(METADATA_DIRECTORY).await?;
    Ok(Listing::of(entries.iter().map(|entry| entry.name.as_str())))
}

/// A log that was read, before it is handed out.
struct Recovered<F> {
    file: F,
    header: FileHeader,
    position: u64,
    allocated: u64,
    tail: Vec<u8>,
}

impl<F> Recovered<F> {
    fn into_log<D: Disk<File = F>>(
        self,
        disk: D,
        next_offset: u64,
        epoch: u64,
        snapshot_bytes: u64,
        fresh_uuid: Box<dyn FnMut() -> [u8; 16]>,
    ) -> MetadataLog<D> {
        MetadataLog {
            disk,
            file: self.file,
            header: self.header,
            position: self.position,
            allocated: self.allocated,
            tail: self.tail,
            next_offset,
            epoch,
            snapshot_bytes,
            snapshot_due_at: BLOCK as u64 + snapshot_bytes,
            failed: None,
            fresh_uuid,
        }
    }
}

/// Opens a file for synchronous writing and makes durable what it holds, so that what is read can be relied
/// upon: a process that was killed may have left writes behind that are not on disk yet.
async fn open_synced<D: Disk>(disk: &D, path: &str) -> io::Result<(D::File, Vec<u8>)> {
    let file = disk.open(path, OpenMode { create_new: false, write: true, synchronous: true }).await?;
    file.sync().await?;
    let bytes = disk.read_file(path, FILE_BYTES_MAX).await?;
    Ok((file, bytes))
}

async fn read_snapshot<D: Disk>(disk: &D, offset: u64) -> Result<Image, MetadataLogError> {
    let path = snapshot_path(offset);
    let read = open_synced(disk, &path).await;
    let (_, bytes) = read.map_err(|error| MetadataLogError::Io { file: path.clone(), error })?;
    image_of(offset, &bytes)
}

/// What the bytes of a snapshot say.
pub(super) fn image_of(offset: u64, bytes: &[u8]) -> Result<Image, MetadataLogError> {
    let corrupt = |position: usize, reason: &str| MetadataLogError::Corrupt {
        file: snapshot_path(offset),
        position: position as u64,
        reason: reason.to_owned(),
    };
    let header = FileHeader::decode(bytes, FileKind::Snapshot).map_err(|reason| corrupt(0, reason))?;
    if header.offset != offset {
        return Err(corrupt(32, "the file is not the one that its name says"));
    }
    let (frames, end, _) = scan(bytes, &header.uuid);
    let mut records = Vec::new();
    for frame in &frames {
        if frame.header.offset != records.len() as u64 {
            return Err(corrupt(frame.position, "the frame does not follow the one before it"));
        }
        if frame.header.count > 0 {
            records.extend(decode_frame(frame).map_err(|reason| corrupt(frame.position, &reason))?);
        }
    }
    if end != bytes.len() || frames.last().is_none_or(|last| last.header.count != 0) {
        return Err(corrupt(end, "the snapshot does not end here, and no frame follows"));
    }
    Image::from_snapshot(offset, &records).map_err(MetadataLogError::Replay)
}

fn decode_frame(frame: &Frame<'_>) -> Result<Vec<flumen_core::metadata::Record>, String> {
    let records = codec::decode(frame.payload)?;
    if records.len() != frame.header.count as usize {
        return Err(format!("the frame holds {} records, and says {}", records.len(), frame.header.count));
    }
    Ok(records)
}

/// Replays what a log has beyond the image, and cuts a torn tail.
async fn read_log<D: Disk>(
    disk: &D,
    base: u64,
    epoch: u64,
    image: &mut Image,
) -> Result<Recovered<D::File>, MetadataLogError> {
    let failed = |error| MetadataLogError::Io { file: log_path(base), error };
    let (file, bytes) = open_synced(disk, &log_path(base)).await.map_err(failed)?;
    let Replayed { header, end, tail } = replay_log(base, epoch, &bytes, image)?;
    if tail == Tail::Torn
        && let Some(directory) = stranger(disk, image).await.map_err(failed)?
    {
        return Err(MetadataLogError::Corrupt {
            file: log_path(base),
            position: end as u64,
            reason: format!(
                "this would be a frame that was never finished, but for {directory}, a partition of a topic that no frame \
                 before it knows: what made the topic was finished, and is damaged"
            ),
        });
    }
    let whole = end / BLOCK * BLOCK;
    let kept = bytes[whole..end].to_vec();
    let allocated = cut(disk, &file, bytes.len(), end, &kept, tail).await.map_err(failed)?;
    Ok(Recovered { file, header, position: end as u64, allocated, tail: kept })
}

/// Where the frames of a log that was replayed end, and how.
pub(super) struct Replayed {
    header: FileHeader,
    end: usize,
    tail: Tail,
}

/// Replays what the bytes of a log have beyond the image. No frame is of an epoch past `epoch`.
pub(super) fn replay_log(
    base: u64,
    epoch: u64,
    bytes: &[u8],
    image: &mut Image,
) -> Result<Replayed, MetadataLogError> {
    let corrupt = |position: usize, reason: &str| MetadataLogError::Corrupt {
        file: log_path(base),
        position: position as u64,
        reason: reason.to_owned(),
    };
    let header = FileHeader::decode(bytes, FileKind::Log).map_err(|reason| corrupt(0, reason))?;
    if header.offset != base {
        return Err(corrupt(32, "the file is not the one that its name says"));
    }
    let (frames, end, tail) = scan(bytes, &header.uuid);
    if tail == Tail::Corrupt {
        return Err(corrupt(
            end,
            "a frame was damaged after it was written; there are intact ones behind it",
        ));
    }
    let mut next = base;
    let mut last_epoch = header.epoch;
    for frame in &frames {
        if frame.header.offset != next || frame.header.count == 0 {
            return Err(corrupt(frame.position, "the frame does not follow the one before it"));
        }
        if frame.header.epoch < last_epoch || frame.header.epoch > epoch {
            return Err(corrupt(frame.position, "the frame is of an epoch that it cannot be of"));
        }
        (next, last_epoch) = (frame.header.end(), frame.header.epoch);
        if next <= image.offset() {
            continue;
        }
        if frame.header.offset != image.offset() {
            return Err(corrupt(frame.position, "the snapshot was taken within this frame"));
        }
        for record in decode_frame(frame).map_err(|reason| corrupt(frame.position, &reason))? {
            image.replay(&record).map_err(MetadataLogError::Replay)?;
        }
    }
    if next < image.offset() {
        return Err(corrupt(end, "the log ends before the snapshot that was taken of it"));
    }
    Ok(Replayed { header, end, tail })
}

/// Removes what follows the last frame, so that no later recovery finds it behind new frames. Returns the
/// length of the file.
async fn cut<D: Disk>(
    disk: &D,
    file: &D::File,
    len: usize,
    end: usize,
    kept: &[u8],
    tail: Tail,
) -> io::Result<u64> {
    let whole_blocks = len.is_multiple_of(BLOCK);
    if tail == Tail::Clean && whole_blocks {
        return Ok(len as u64);
    }
    if !kept.is_empty() {
        let mut buffer = disk.allocate(BLOCK);
        let bytes = buffer.as_mut_slice();
        bytes[..kept.len()].copy_from_slice(kept);
        bytes[kept.len()..].fill(0);
        file.write_at(Rc::new(buffer), (end - kept.len()) as u64).await?;
    }
    let new_len = end.next_multiple_of(BLOCK) as u64;
    file.truncate(new_len).await?;
    file.sync().await?;
    Ok(new_len)
}
