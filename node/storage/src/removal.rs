//! Removal of segments that retention gave up, of directories of deleted partitions, and of what recovery found to be
//! removed: file by file, and little by little.
//!
//! A file system may tell its device of space that is free again (ext4 and XFS mounted with `discard`) in the very commit
//! that the syncs of everybody wait for. Gigabytes at once, which is what retention finds every five minutes, then hold
//! up all writes for as long as the device takes. So a segment gets another name first, which is all that a start after
//! a crash has to know, and then gives back its space in steps, each durable before others have the disk to themselves
//! for a while:
//!
//! ```text
//!   X.log ── rename ──> X.log.deleted ── truncate, sync, rest ──(until it is empty)──> removed
//! ```
//!
//! Invariants: a name that says a file is to go is never given to one that counts; rests are so short that the segments
//! that wait are gone within half of retention's interval after the last of them was given up; there are none where this
//! shard ran out of space, nor for a segment that a partition's deletion waits for.

use std::cmp::min;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::select;

use crate::api::Slot;
use crate::disk::{Disk, File, OpenMode};
use crate::engine::Engine;
use crate::segment::INDEX_EXTENSIONS;

/// A rest for each such time that a step has taken, and the longest.
const RESTS: u32 = 3;
const REST_MAX: Duration = Duration::from_millis(500);
/// Files below this part of a step are removed as they are, until together they come to it.
const SMALL: u64 = 32;
/// How long space counts as short after it ran out.
const SHORT_FOR: Duration = Duration::from_secs(5);

/// What nobody needs, under a name that says so to every start. Whoever finds it may remove it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grave {
    /// A file, and how long it is.
    File(String, u64),
    /// A directory with files in it.
    Directory(String),
}

impl Grave {
    /// Removes it at once. What stays is found by the next start.
    pub(crate) async fn remove<D: Disk>(&self, disk: &D) {
        match self {
            Grave::File(path, _) => disk.remove_file(path).await.ok(),
            Grave::Directory(path) => disk.remove_directory(path).await.ok(),
        };
    }
}

/// A segment that retention gave up.
pub(crate) struct Removal {
    pub(crate) slot: Slot,
    /// Its path, without extension.
    pub(crate) path: String,
    pub(crate) bytes: u64,
}

/// What a file's name ends with once it is to go.
pub(crate) const BURIED: &str = ".deleted";

/// Name of a file once it is to go.
pub(crate) fn buried_file(path: &str) -> String {
    format!("{path}{BURIED}")
}

/// Name of a partition's directory once it is to go: at most 255 bytes, as file systems have it. Of a long topic's name the
/// end stays, and with it the partition's number.
pub(crate) fn buried_directory(directory: &str, unique: &str) -> String {
    const NAME_BYTES_MAX: usize = 255;
    let room = NAME_BYTES_MAX - (unique.len() + ".-delete".len());
    // Names of topics are ASCII.
    let kept = directory.get(directory.len().saturating_sub(room)..).unwrap_or_default();
    format!("{kept}.{unique}-delete")
}

impl<D: Disk, T: 'static> Engine<D, T> {
    /// Removes what is there to be removed, beside all else: fills and checkpoints must not wait for it.
    pub(crate) async fn remove_files(&self) {
        loop {
            let removal = self.state.borrow_mut().removals.pop_front();
            if let Some(removal) = removal {
                self.remove_segment(&removal).await;
                self.tended(removal.slot);
                continue;
            }
            let now = self.disk.monotonic();
            let next = self.state.borrow().graves.iter().min().cloned();
            match next {
                Some((at, grave)) if at <= now => {
                    self.clear(&grave, None).await;
                    self.state.borrow_mut().graves.retain(|(_, other)| *other != grave);
                }
                Some((at, _)) => {
                    select(self.removal_work.wait(), pin!(self.disk.sleep(at.saturating_sub(now)))).await;
                }
                None => self.removal_work.wait().await,
            }
        }
    }

    /// Takes over what is to be removed, such as recovery finds.
    pub fn bury(&self, graves: impl IntoIterator<Item = Grave>) {
        let now = self.disk.monotonic();
        self.state.borrow_mut().graves.extend(graves.into_iter().map(|grave| (now, grave)));
        self.removal_work.notify();
    }

    async fn remove_segment(&self, removal: &Removal) {
        let path = format!("{}.log", removal.path);
        let gone = buried_file(&path);
        let renamed = self.disk.rename(&path, &gone).await.is_ok();
        // Readers that are at it still are below the log start, and find that out.
        self.unlink(&removal.path).await;
        if renamed {
            self.clear(&Grave::File(gone, removal.bytes), Some(removal.slot)).await;
        }
    }

    /// Removes the files of a segment. What cannot be removed is removed at the next start.
    pub(crate) async fn unlink(&self, path: &str) {
        self.reader.forget(path);
        for extension in ["log", "txnindex", "snapshot"].iter().chain(&INDEX_EXTENSIONS) {
            self.disk.remove_file(&format!("{path}.{extension}")).await.ok();
        }
    }

    async fn clear(&self, grave: &Grave, slot: Option<Slot>) {
        match grave {
            Grave::File(path, bytes) => self.give_back(path, *bytes, slot).await,
            Grave::Directory(directory) => {
                for entry in self.disk.list(directory).await.unwrap_or_default() {
                    let path = format!("{directory}/{}", entry.name);
                    self.give_back(&path, entry.len, slot).await;
                    self.disk.remove_file(&path).await.ok();
                }
            }
        }
        grave.remove(&self.disk).await;
    }

    /// Empties a file little by little. A failure costs no more than that the rest goes at once.
    async fn give_back(&self, path: &str, bytes: u64, slot: Option<Slot>) {
        let step = self.settings.removal_step_bytes;
        {
            let mut state = self.state.borrow_mut();
            state.removed_small += bytes;
            if state.removed_small < step / SMALL {
                return;
            }
            state.removed_small = 0;
        }
        if self.is_urgent(slot) {
            return;
        }
        let mode = OpenMode { write: true, ..OpenMode::default() };
        let Ok(file) = self.disk.open(path, mode).await else { return };
        let mut left = bytes;
        while left > 0 && !self.is_urgent(slot) {
            left = left.saturating_sub(step);
            let began = self.disk.monotonic();
            if file.truncate(left).await.is_err() || file.sync().await.is_err() {
                return;
            }
            let took = self.disk.monotonic().saturating_sub(began);
            self.disk.sleep(min(took * RESTS, self.rest_max(left, slot))).await;
        }
    }

    /// The longest rest with which all segments are gone in time, where `left` is what the file in hand has yet.
    fn rest_max(&self, left: u64, slot: Option<Slot>) -> Duration {
        let state = self.state.borrow();
        let queued: u64 = state.removals.iter().map(|removal| removal.bytes).sum();
        let waiting = queued + if slot.is_some() { left } else { 0 };
        if waiting == 0 {
            return REST_MAX;
        }
        let steps = waiting.div_ceil(self.settings.removal_step_bytes).try_into().unwrap_or(u32::MAX);
        min(REST_MAX, state.removals_due.saturating_sub(self.disk.monotonic()) / steps)
    }

    /// Whether space is short, or somebody waits for the partition to be gone.
    fn is_urgent(&self, slot: Option<Slot>) -> bool {
        let state = self.state.borrow();
        let is_deleted = |slot| state.get(slot).is_none_or(|partition| partition.deleting);
        let is_short = state.journal.disk_full || self.disk.monotonic() < state.space_short_until;
        is_short || slot.is_some_and(is_deleted)
    }

    /// A partition got no space.
    pub(crate) fn space_ran_out(&self) {
        self.state.borrow_mut().space_short_until = self.disk.monotonic() + SHORT_FOR;
    }
}
