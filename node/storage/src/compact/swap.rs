//! A new segment takes the place of old ones.
//!
//! ```text
//!   <base>.cleaned   written, synced                 recovery gives it up
//!   <base>.<end>.swap   renamed, directory synced    recovery gives it up, the old segments are there
//!   a checkpoint that has the new segment in its log is durable: the point of no return
//!   <base>.<end>.swap                                recovery renames it over <base>.log
//!   <base>.log       renamed over the old one; the group's other segments and old indexes go
//! ```
//!
//! A rename puts one file in another's place at once, so there is no moment without either, and no order between the removal
//! of the others and it that matters: what no checkpoint names is given up by the next start. That is, it gets a name with
//! `.deleted` behind it, and the engine removes it little by little (`removal`). `end` in the name is the base offset of the
//! segment after the group: with the length it tells whether the checkpoint means this file.

use std::rc::Rc;

use flumen_core::log::Segment;
use flumen_core::types::Offset;

use super::copy::remove_leftover;
use super::pass::Work;
use super::{Interrupted, Swap};
use crate::disk::Disk;
use crate::engine::{Engine, planted};
use crate::partition::segment_path;
use crate::segment::{INDEX_EXTENSIONS, SegmentIndex};

/// A segment that is whole and synced under its `.cleaned` name.
pub(super) struct Cleaned {
    pub(super) path: String,
    pub(super) segment: Segment,
    /// Base offset of the segment after the group.
    pub(super) end: Offset,
    pub(super) index: SegmentIndex,
}

fn swap_path(directory: &str, base: Offset, end: Offset) -> String {
    format!("{}.{end:020}.swap", segment_path(directory, base))
}

/// Base offset, and that of the segment after the group, from the name of a `.swap` file.
pub(crate) fn parse_swap_name(name: &str) -> Option<(Offset, Offset)> {
    let offset = |digits: &str| {
        let is_offset = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_offset.then(|| digits.parse().ok().map(Offset)).flatten()
    };
    let mut parts = name.split('.');
    let parsed = (offset(parts.next()?)?, offset(parts.next()?)?);
    (parts.next() == Some("swap") && parts.next().is_none()).then_some(parsed)
}

impl<D: Disk, T: 'static> Engine<D, T> {
    /// Puts new segments in place.
    pub(super) async fn swap(&self, work: &mut Work<D>, cleaned: Vec<Cleaned>) -> Result<(), Interrupted> {
        if cleaned.is_empty() {
            return Ok(());
        }
        let directory = match self.still_wanted(work.slot) {
            Ok(()) => self.state.borrow().get(work.slot).map(|partition| partition.directory.clone()),
            Err(_) => None,
        };
        let Some(directory) = directory else {
            self.discard(cleaned).await;
            return Err(Interrupted::Over);
        };
        if let Err(error) = self.name_swaps(work, &directory, &cleaned).await {
            for one in &cleaned {
                let path = swap_path(&directory, one.segment.base_offset, one.end);
                remove_leftover(&self.disk, &path).await;
            }
            self.discard(cleaned).await;
            return Err(error);
        }
        let round = self.count_on(work, &cleaned)?;
        if !planted!(self.settings, SwapBeforeCheckpoint) {
            self.checkpointed_after(work, round).await?;
        }
        for one in cleaned {
            self.put_in_place(work, &directory, one).await?;
        }
        Ok(())
    }

    /// Removes what was written in vain. The directory is this partition's still: who deletes it waits for the pass.
    pub(super) async fn discard(&self, cleaned: Vec<Cleaned>) {
        for one in cleaned {
            remove_leftover(&self.disk, &one.path).await;
        }
    }

    /// Gives new segments their `.swap` names, durably.
    async fn name_swaps(
        &self,
        work: &Work<D>,
        directory: &Rc<str>,
        cleaned: &[Cleaned],
    ) -> Result<(), Interrupted> {
        for one in cleaned {
            let path = swap_path(directory, one.segment.base_offset, one.end);
            let renamed = self.disk.rename(&one.path, &path).await;
            renamed.map_err(|error| Interrupted::Failed(format!("{path}: {error}")))?;
            self.still_wanted(work.slot)?;
            if planted!(self.settings, OldRemovedBeforeSwap) {
                let old = segment_path(directory, one.segment.base_offset);
                self.disk.remove_file(&format!("{old}.log")).await.ok();
            }
        }
        if let Err(error) = self.disk.sync_directory(directory).await {
            // Names of other segments may be lost with it.
            let reason = format!("sync of directory {directory} failed: {error}");
            self.sync_fault(work.slot, reason.clone());
            self.settle_soon();
            return Err(Interrupted::Failed(reason));
        }
        self.still_wanted(work.slot)
    }

    /// From now on checkpoints say that the new segments are there. Returns the number of the last one that does not.
    /// Also checks that all that they replace is still in the log.
    fn count_on(&self, work: &mut Work<D>, cleaned: &[Cleaned]) -> Result<u64, Interrupted> {
        let mut state = self.state.borrow_mut();
        let round = state.checkpoint_round;
        let now = self.disk.monotonic();
        let partition = state.get_mut(work.slot).ok_or(Interrupted::Over)?;
        let mut log = partition.log.clone();
        for one in cleaned {
            // Retention may have taken some: these are removed in their turn.
            // Nor is anything compacted behind what was not: a tombstone there may delete what is left here.
            match (!work.is_partial).then(|| log.replace(one.end, one.segment)).flatten() {
                Some(_) => partition.compaction.swaps.push(Swap { end: one.end, segment: one.segment }),
                None => work.is_partial = true,
            }
        }
        let start = partition.log.log_start();
        partition.compaction.cleaned.get_or_insert(start);
        state.checkpoint_wanted = true;
        state.dirty_since.get_or_insert(now);
        drop(state);
        self.upkeep.notify();
        Ok(round)
    }

    /// Waits until a checkpoint is durable whose snapshot was taken after round `round`.
    async fn checkpointed_after(&self, work: &Work<D>, round: u64) -> Result<(), Interrupted> {
        loop {
            let seen = self.progress.count();
            self.still_wanted(work.slot)?;
            if self.state.borrow().checkpoint_round_durable > round {
                return Ok(());
            }
            self.progress.after(seen).await;
        }
    }

    /// From now on what is read of the partition counts only if the read is over. `false` where the group is gone.
    fn begin_renaming(&self, work: &Work<D>, base: Offset) -> Result<bool, Interrupted> {
        let mut state = self.state.borrow_mut();
        let partition = state.get_mut(work.slot).ok_or(Interrupted::Over)?;
        let is_counted_on = partition.compaction.swaps.iter().any(|swap| swap.segment.base_offset == base);
        if is_counted_on {
            partition.compaction.layout += 1;
            partition.compaction.renaming = true;
        }
        Ok(is_counted_on)
    }

    /// Renames one new segment over the old one, and forgets the others of its group.
    async fn put_in_place(
        &self,
        work: &mut Work<D>,
        directory: &Rc<str>,
        one: Cleaned,
    ) -> Result<(), Interrupted> {
        self.still_wanted(work.slot)?;
        let (base, end) = (one.segment.base_offset, one.end);
        let (path, swap_path) = (segment_path(directory, base), swap_path(directory, base, end));
        if !self.begin_renaming(work, base)? {
            remove_leftover(&self.disk, &swap_path).await;
            return Ok(());
        }
        let renamed = self.disk.rename(&swap_path, &format!("{path}.log")).await;
        let gone = {
            let mut state = self.state.borrow_mut();
            let partition = state.get_mut(work.slot).ok_or(Interrupted::Over)?;
            partition.compaction.renaming = false;
            match &renamed {
                Ok(()) => {
                    partition.compaction.swaps.retain(|swap| swap.segment.base_offset != base);
                    partition.log.replace(end, one.segment).expect("segments under a swap stay in their log")
                }
                Err(_) => Vec::new(),
            }
        };
        self.progress.notify();
        if let Err(error) = renamed {
            // Which of the two lies there nobody can say: the next start finds out.
            self.segment_fault(work.slot, base, "renaming", &error);
            return Err(Interrupted::Failed(format!("{path}.log: {error}")));
        }
        self.reader.forget(&path);
        // Old index files lead astray; reads notice, and look for themselves.
        for extension in INDEX_EXTENSIONS {
            remove_leftover(&self.disk, &format!("{path}.{extension}")).await;
        }
        for base in gone {
            self.unlink(&segment_path(directory, base)).await;
        }
        self.reader.write_index(&path, &one.index).await.ok();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_swaps_are_read_as_they_are_written() {
        let path = swap_path("t-0", Offset(7), Offset(i64::MAX));
        let name = path.strip_prefix("t-0/").unwrap_or_default();
        assert_eq!(parse_swap_name(name), Some((Offset(7), Offset(i64::MAX))));
        for name in [
            "00000000000000000007.log",
            "00000000000000000007.cleaned",
            "00000000000000000007.swap",
            "00000000000000000007.00000000000000000009.swap.x",
            "00000000000000000007.+0000000000000000009.swap",
        ] {
            assert_eq!(parse_swap_name(name), None, "{name}");
        }
    }
}
