//! The files of one shard's journal: which is written, which are full, which are free.
//!
//! ```text
//!   created ──▶ free ──▶ current ──▶ sealed ──▶ (a durable checkpoint covers its last LSN) ──▶ free
//!                │ ▲
//!                ▼ │   the first time: every block is written, see `lay_out`
//!              laying out
//! ```
//!
//! Invariants: a file's header is written once, and is durable, with its directory, before the file is used; a file is
//! written again only when a durable checkpoint covers its last group. A shard's files have numbers of their own:
//! `number % shards == shard`.

use std::collections::VecDeque;
use std::rc::Rc;

use flumen_core::journal::{ENTRY_LEN, FileHeader, file_uuid};
use flumen_core::limits::{BLOCK_BYTES, GROUP_BYTES_MAX, JOURNAL_FILES_MAX};
use flumen_core::types::Lsn;

use crate::api::EngineSettings;
use crate::disk::{BLOCK, Buffer, Disk, File, OpenMode};

/// Bytes of one write that lays out a file: small enough that a commit beside it waits little.
const LAY_OUT_BYTES: usize = 256 << 10;

/// A journal file that may be written from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalFileInfo {
    /// The number in its name.
    pub number: u32,
    /// Its identity.
    pub file_uuid: [u8; 16],
    /// Its length.
    pub capacity: u64,
    /// Whether it may be written: not where an offline partition's data lies in it.
    pub usable: bool,
    /// Whether every block was written once, so that a synchronous write changes no metadata of the file system.
    pub laid_out: bool,
}

/// Path of a journal file.
pub(crate) fn journal_path(number: u32) -> String {
    format!("journal/{number:02}")
}

/// The file that is written.
pub(crate) struct Current<D: Disk> {
    pub(crate) info: JournalFileInfo,
    pub(crate) file: Rc<D::File>,
    pub(crate) position: u64,
    pub(crate) last_lsn: Lsn,
}

struct Sealed {
    info: JournalFileInfo,
    last_lsn: Lsn,
}

/// The journal of one shard, as it stands.
pub(crate) struct Journal<D: Disk> {
    pub(crate) current: Option<Current<D>>,
    sealed: VecDeque<Sealed>,
    free: VecDeque<JournalFileInfo>,
    /// Taken from the free ones for a while.
    laying_out: bool,
    next_number: u32,
    number_step: u32,
    created: u32,
    files_min: usize,
    files_max: usize,
    group_bytes_max: u64,
    /// LSN of the next group.
    pub(crate) next_lsn: Lsn,
    pub(crate) durable_lsn: Lsn,
    pub(crate) previous_hash: u64,
    /// Bytes of groups since the last checkpoint.
    pub(crate) bytes_since_checkpoint: u64,
    /// No file could be created for want of space.
    pub(crate) disk_full: bool,
}

impl<D: Disk> Journal<D> {
    pub(crate) fn new(settings: &EngineSettings, files: Vec<JournalFileInfo>) -> Journal<D> {
        let (shard, shards) = (u32::from(settings.shard.0), u32::from(settings.shards));
        assert!(files.iter().all(|file| file.number % shards == shard), "files are dealt out by number");
        let next_number = files.iter().map(|file| file.number + shards).max().unwrap_or(shard);
        // A quarter at most stays unused at the end of a file.
        let smallest = files
            .iter()
            .filter(|file| file.usable)
            .map(|file| file.capacity)
            .chain([settings.journal_file_bytes])
            .min();
        let usable = smallest.unwrap_or(0) - BLOCK_BYTES;
        let group_bytes_max = (usable / 4 / BLOCK_BYTES * BLOCK_BYTES).min(GROUP_BYTES_MAX);
        // Two checkpoints' worth, and as much again where segments are slow.
        let per_checkpoint = settings.checkpoint_bytes.div_ceil(settings.journal_file_bytes) as usize;
        let files_max = settings.journal_files.max(2) + 4 * (per_checkpoint + 1);
        assert!(group_bytes_max >= 2 * BLOCK_BYTES, "journal files hold groups of some size");
        Journal {
            current: None,
            sealed: VecDeque::new(),
            free: files.into_iter().filter(|file| file.usable).collect(),
            laying_out: false,
            next_number,
            number_step: shards,
            created: 0,
            files_min: settings.journal_files.max(2),
            files_max: files_max.min(JOURNAL_FILES_MAX),
            group_bytes_max,
            next_lsn: Lsn(1),
            durable_lsn: Lsn(0),
            previous_hash: 0,
            bytes_since_checkpoint: 0,
            disk_full: false,
        }
    }

    pub(crate) fn group_bytes_max(&self) -> u64 {
        self.group_bytes_max
    }

    /// Bytes left in the current file.
    pub(crate) fn remaining(&self) -> u64 {
        self.current.as_ref().map_or(0, |current| current.info.capacity - current.position)
    }

    /// Whether so many staged bytes in so many batches certainly find space in files that exist.
    pub(crate) fn room_for(&self, bytes: usize, batches: usize) -> bool {
        let needed = (bytes + batches * ENTRY_LEN) as u64 + 4 * BLOCK_BYTES;
        let usable = |space: u64| space.saturating_sub(self.group_bytes_max);
        let free: u64 = self.free.iter().map(|file| usable(file.capacity - BLOCK_BYTES)).sum();
        needed <= usable(self.remaining()) + free
    }

    /// Whether one more file should be made: none is free, and there are not too many.
    pub(crate) fn is_short(&self) -> bool {
        (self.free.is_empty() || self.file_count() < self.files_min) && self.file_count() < self.files_max
    }

    /// Whether one more file may be made.
    pub(crate) fn may_grow(&self) -> bool {
        self.file_count() < self.files_max
    }

    /// Takes a free file to write next, one that is laid out if there is one.
    pub(crate) fn take_free(&mut self) -> Option<JournalFileInfo> {
        let best = self.free.iter().position(|file| file.laid_out).unwrap_or(0);
        self.free.remove(best)
    }

    /// Whether a file that is laid out waits while one that is not is written.
    pub(crate) fn has_better(&self) -> bool {
        let bare = |current: &Current<D>| !current.info.laid_out && current.last_lsn.0 > 0;
        self.current.as_ref().is_some_and(bare) && self.free.iter().any(|file| file.laid_out)
    }

    /// Takes a free file to lay out.
    pub(crate) fn take_bare(&mut self) -> Option<JournalFileInfo> {
        let at = self.free.iter().rposition(|file| !file.laid_out)?;
        self.laying_out = true;
        self.free.remove(at)
    }

    /// Gives back what [`take_bare`](Self::take_bare) took.
    pub(crate) fn put_laid_out(&mut self, info: JournalFileInfo) {
        self.laying_out = false;
        self.free.push_front(info);
    }

    /// Puts a file among the free ones.
    pub(crate) fn put_free(&mut self, info: JournalFileInfo) {
        self.free.push_back(info);
    }

    /// Goes on in another file, opened.
    pub(crate) fn switch(&mut self, info: JournalFileInfo, file: D::File) {
        let next = Current { info, file: Rc::new(file), position: BLOCK_BYTES, last_lsn: Lsn(0) };
        if let Some(full) = self.current.replace(next) {
            assert!(full.last_lsn.0 > 0, "a file is left only when it holds a group");
            self.sealed.push_back(Sealed { info: full.info, last_lsn: full.last_lsn });
        }
    }

    /// A durable checkpoint covers all groups up to `covered`.
    pub(crate) fn release(&mut self, covered: Lsn) {
        let count = flumen_core::journal::free_files(self.sealed.iter().map(|file| file.last_lsn), covered);
        for sealed in self.sealed.drain(..count) {
            self.free.push_back(sealed.info);
        }
    }

    /// The last LSN of the file that has been full the longest.
    pub(crate) fn oldest_sealed_lsn(&self) -> Option<Lsn> {
        self.sealed.front().map(|file| file.last_lsn)
    }

    /// The last LSN of the files that are full.
    pub(crate) fn sealed_lsn(&self) -> Option<Lsn> {
        self.sealed.back().map(|file| file.last_lsn)
    }

    /// Whether a group was formed that is not durable yet.
    pub(crate) fn has_group_in_flight(&self) -> bool {
        self.next_lsn.0 > self.durable_lsn.0 + 1
    }

    pub(crate) fn free_count(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn file_count(&self) -> usize {
        let taken = usize::from(self.current.is_some()) + usize::from(self.laying_out);
        self.free.len() + self.sealed.len() + taken
    }

    /// Identity of a file to be created.
    pub(crate) fn next_file(&mut self, settings: &EngineSettings) -> JournalFileInfo {
        let number = self.next_number;
        self.next_number += self.number_step;
        let uuid = file_uuid(settings.directory_id, settings.incarnation, settings.shard, self.created);
        self.created += 1;
        let capacity = settings.journal_file_bytes;
        JournalFileInfo { number, file_uuid: uuid, capacity, usable: true, laid_out: false }
    }
}

/// Creates a journal file: space, header, all of it durable.
pub(crate) async fn create<D: Disk>(
    disk: &D,
    directory_id: [u8; 16],
    info: JournalFileInfo,
) -> std::io::Result<()> {
    let path = journal_path(info.number);
    let made = make(disk, &path, directory_id, info).await;
    if made.is_err() {
        // Half a file is of no use; recovery would remove it too.
        disk.remove_file(&path).await.ok();
    }
    made
}

async fn make<D: Disk>(
    disk: &D,
    path: &str,
    directory_id: [u8; 16],
    info: JournalFileInfo,
) -> std::io::Result<()> {
    let file = disk.open(path, OpenMode { create_new: true, write: true, synchronous: false }).await?;
    file.preallocate(info.capacity).await?;
    let mut block = disk.allocate(BLOCK);
    let header =
        FileHeader { number: info.number, directory_id, file_uuid: info.file_uuid, capacity: info.capacity };
    header.encode(block.as_mut_slice());
    file.write_at(Rc::new(block), 0).await?;
    file.sync().await?;
    disk.sync_directory("journal").await
}

/// Writes zeros to all of a free file behind its header, and syncs them.
pub(crate) async fn lay_out<D: Disk>(disk: &D, info: JournalFileInfo) -> std::io::Result<()> {
    let mode = OpenMode { create_new: false, write: true, synchronous: false };
    let file = disk.open(&journal_path(info.number), mode).await?;
    let mut zeros = disk.allocate(LAY_OUT_BYTES.min((info.capacity - BLOCK_BYTES) as usize));
    zeros.as_mut_slice().fill(0);
    let zeros = Rc::new(zeros);
    let mut position = BLOCK_BYTES;
    while position < info.capacity {
        let left = (info.capacity - position) as usize;
        if left >= zeros.as_slice().len() {
            file.write_at(zeros.clone(), position).await?;
        } else {
            let mut last = disk.allocate(left);
            last.as_mut_slice().fill(0);
            file.write_at(Rc::new(last), position).await?;
        }
        position += zeros.as_slice().len() as u64;
    }
    file.sync().await
}
