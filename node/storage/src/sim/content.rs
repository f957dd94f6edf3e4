//! Content of one simulated file: what a reader sees, what is on the medium, and what lies between.
//!
//! ```text
//!   write completes          sync called after it completes
//!   ────────────▶ pending ───────────────────────────────▶ base
//!                 (view already shows it)      power fails: each block of `pending` on its own is
//!                                              kept, lost, an older version, or torn at 512 bytes
//! ```
//!
//! What a power failure may do (ext4 or XFS with direct I/O on a disk with a volatile cache):
//! - a logical sector of 512 bytes is atomic; a 4 KiB block is not;
//! - of several unsynced writes of one sector any version may be on the medium, in no order between sectors;
//! - changes of length are journalled by the file system: a prefix of them survives, in order. Data written
//!   after a lost cut, beyond it, is lost with it; data beyond the surviving length is lost; a range whose
//!   length survived without its data reads as zeros;
//! - a failed sync may have written anything, and what it did not write is never written afterwards, while
//!   reads go on showing it (the kernel marks such pages clean).

use std::collections::BTreeMap;
use std::rc::Rc;

use super::Random;
use crate::disk::BLOCK;

/// A logical sector: what the medium writes as a whole or not at all.
pub const SECTOR: usize = 512;

pub(super) type Block = Rc<[u8]>;
type Blocks = BTreeMap<u64, Block>;

const BLOCK_BYTES: u64 = BLOCK as u64;

#[derive(Clone, Debug)]
enum Change {
    Write { block: u64, data: Block },
    SetLen(u64),
}

/// One file. Invariant: `view` is `base` plus all of `pending`, unless a sync has failed.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    view: Blocks,
    view_len: u64,
    base: Blocks,
    base_len: u64,
    /// Completed and not synced, in order of completion, each with its sequence number.
    pending: Vec<(u64, Change)>,
    /// Blocks `[0, preallocated)` have space.
    preallocated: u64,
    /// Blocks at and past `preallocated` that hold data.
    written_past: u64,
    /// A sync of everything lost something of this file: the next sync of it says so (Linux's `errseq`).
    lost: bool,
}

fn apply(blocks: &mut Blocks, len: &mut u64, change: &Change) {
    match change {
        Change::Write { block, data } => {
            blocks.insert(*block, data.clone());
        }
        Change::SetLen(new) => {
            if *new < *len {
                cut(blocks, *new);
            }
            *len = *new;
        }
    }
}

/// Forgets what lies past `len`, so that a later extension reads as zeros.
fn cut(blocks: &mut Blocks, len: u64) {
    blocks.split_off(&len.div_ceil(BLOCK_BYTES));
    let tail = (len % BLOCK_BYTES) as usize;
    if tail > 0
        && let Some(block) = blocks.get_mut(&(len / BLOCK_BYTES))
    {
        let mut cleared = block.to_vec();
        cleared[tail..].fill(0);
        *block = cleared.into();
    }
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.view_len
    }

    /// Blocks of space taken.
    pub(super) fn allocated(&self) -> u64 {
        self.preallocated + self.written_past
    }

    /// Blocks of space that a write of `[first, end)` would newly take.
    pub(super) fn missing_space(&self, first: u64, end: u64) -> u64 {
        (first.max(self.preallocated)..end).filter(|block| !self.view.contains_key(block)).count() as u64
    }

    /// Copies what a reader sees at `position` into `out`; returns how much of it is content.
    pub(super) fn read(&self, position: u64, out: &mut [u8]) -> usize {
        let content = self.view_len.saturating_sub(position).min(out.len() as u64) as usize;
        let mut done = 0;
        while done < content {
            let at = position + done as u64;
            let within = (at % BLOCK_BYTES) as usize;
            let n = (BLOCK - within).min(content - done);
            match self.view.get(&(at / BLOCK_BYTES)) {
                Some(block) => out[done..done + n].copy_from_slice(&block[within..within + n]),
                None => out[done..done + n].fill(0),
            }
            done += n;
        }
        content
    }

    fn push(&mut self, sequence: u64, change: Change) {
        apply(&mut self.view, &mut self.view_len, &change);
        self.pending.push((sequence, change));
    }

    fn recount(&mut self) {
        self.preallocated = self.preallocated.min(self.view_len.div_ceil(BLOCK_BYTES));
        self.written_past = self.view.range(self.preallocated..).count() as u64;
    }

    /// A completed write of whole blocks. `keep` says which sectors of it reached the file (all, unless the
    /// write failed or was interrupted).
    pub(super) fn write(
        &mut self,
        sequence: u64,
        position: u64,
        data: &[u8],
        mut keep: impl FnMut() -> bool,
    ) {
        debug_assert!(position.is_multiple_of(BLOCK_BYTES) && data.len().is_multiple_of(BLOCK));
        let first = position / BLOCK_BYTES;
        for (i, bytes) in data.chunks(BLOCK).enumerate() {
            let block = first + i as u64;
            let mut merged = match self.view.get(&block) {
                Some(old) => old.to_vec(),
                None => vec![0; BLOCK],
            };
            for (old, new) in merged.chunks_mut(SECTOR).zip(bytes.chunks(SECTOR)) {
                if keep() {
                    old.copy_from_slice(new);
                }
            }
            self.push(sequence, Change::Write { block, data: merged.into() });
        }
        let end = position + data.len() as u64;
        if end > self.view_len {
            self.push(sequence, Change::SetLen(end));
        }
        self.recount();
    }

    /// Replaces everything, as `open(O_TRUNC)` and a buffered write do: not atomic.
    pub(super) fn replace(&mut self, sequence: u64, content: &[u8]) {
        self.push(sequence, Change::SetLen(0));
        for (i, bytes) in content.chunks(BLOCK).enumerate() {
            let mut block = bytes.to_vec();
            block.resize(BLOCK, 0);
            self.push(sequence, Change::Write { block: i as u64, data: block.into() });
        }
        self.push(sequence, Change::SetLen(content.len() as u64));
        self.recount();
    }

    pub(super) fn set_len(&mut self, sequence: u64, len: u64) {
        self.push(sequence, Change::SetLen(len));
        self.recount();
    }

    pub(super) fn preallocate(&mut self, sequence: u64, len: u64) {
        if len > self.view_len {
            self.push(sequence, Change::SetLen(len));
        }
        self.preallocated = self.preallocated.max(len.div_ceil(BLOCK_BYTES));
        self.recount();
    }

    /// A sync that was called before `mark` was handed out: all that completed before it is on the medium.
    pub(super) fn sync(&mut self, mark: u64) {
        let kept = self.pending.partition_point(|(sequence, _)| *sequence < mark);
        for (_, change) in self.pending.drain(..kept) {
            apply(&mut self.base, &mut self.base_len, &change);
        }
    }

    /// A sync that failed: anything of it may be on the medium; the rest is forgotten, and no later sync
    /// brings it there, although reads still show it.
    pub(super) fn sync_failed(&mut self, mark: u64, random: &mut Random) {
        let count = self.pending.partition_point(|(sequence, _)| *sequence < mark);
        for (_, change) in self.pending.drain(..count) {
            if matches!(change, Change::SetLen(_)) || random.chance(1, 2) {
                apply(&mut self.base, &mut self.base_len, &change);
            }
        }
    }

    /// A sync of everything that failed: this file is one of those that it failed for, or goes on as before.
    pub(super) fn sync_all_failed(&mut self, mark: u64, random: &mut Random) {
        if self.pending.iter().any(|(sequence, _)| *sequence < mark) && random.chance(1, 2) {
            self.sync_failed(mark, random);
            self.lost = true;
        }
    }

    /// Whether an earlier sync of everything lost something of this file; told once.
    pub(super) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// The write `[position, +len)` of a file opened with `synchronous` has completed: it, and the length
    /// that makes it readable, are on the medium; other writes of the file are not.
    pub(super) fn sync_range(&mut self, sequence: u64, position: u64, len: u64) {
        let blocks = position / BLOCK_BYTES..(position + len) / BLOCK_BYTES;
        let mut rest: Vec<(u64, Change)> = Vec::new();
        for (at, change) in std::mem::take(&mut self.pending) {
            match &change {
                Change::SetLen(new) => {
                    let end = new.div_ceil(BLOCK_BYTES);
                    rest.retain(
                        |(_, earlier)| !matches!(earlier, Change::Write { block, .. } if *block >= end),
                    );
                    apply(&mut self.base, &mut self.base_len, &change);
                }
                Change::Write { block, .. } if at == sequence && blocks.contains(block) => {
                    rest.retain(
                        |(_, earlier)| !matches!(earlier, Change::Write { block: b, .. } if b == block),
                    );
                    apply(&mut self.base, &mut self.base_len, &change);
                }
                Change::Write { .. } => rest.push((at, change)),
            }
        }
        self.pending = rest;
    }

    /// The power fails: `pending` is decided block by block, and what survives is all there is.
    pub(super) fn power_failure(&mut self, random: &mut Random) {
        let pending = std::mem::take(&mut self.pending);
        let lengths = pending.iter().filter(|(_, change)| matches!(change, Change::SetLen(_))).count();
        let lengths_kept = match random.below(4) {
            0 => 0,
            1 | 2 => lengths,
            _ => random.index(lengths + 1),
        };
        let chosen = choose_versions(&pending, lengths_kept, random);
        let mut versions: BTreeMap<u64, usize> = BTreeMap::new();
        let mut lengths_seen = 0;
        for (_, change) in &pending {
            match change {
                Change::SetLen(_) => {
                    lengths_seen += 1;
                    if lengths_seen <= lengths_kept {
                        apply(&mut self.base, &mut self.base_len, change);
                    }
                }
                Change::Write { block, data } => {
                    let version = versions.entry(*block).or_default();
                    *version += 1;
                    let Some(sectors) = chosen.get(block) else { continue };
                    if !sectors.contains(version) {
                        continue;
                    }
                    let mut merged = self.base.get(block).map_or_else(|| vec![0; BLOCK], |old| old.to_vec());
                    for (i, sector) in sectors.iter().enumerate() {
                        if sector == version {
                            let range = i * SECTOR..(i + 1) * SECTOR;
                            merged[range.clone()].copy_from_slice(&data[range]);
                        }
                    }
                    self.base.insert(*block, merged.into());
                }
            }
        }
        cut(&mut self.base, self.base_len);
        self.view = self.base.clone();
        self.view_len = self.base_len;
        self.recount();
    }

    /// Flips bits of the byte at `position`, on the medium and for readers.
    pub(super) fn corrupt(&mut self, position: u64, mask: u8) {
        for blocks in [&mut self.view, &mut self.base] {
            if let Some(block) = blocks.get_mut(&(position / BLOCK_BYTES)) {
                let mut bytes = block.to_vec();
                bytes[(position % BLOCK_BYTES) as usize] ^= mask;
                *block = bytes.into();
            }
        }
    }
}

/// For each block with pending writes and each of its sectors: which version survives (0: the one on the
/// medium, n: the n-th pending write of the block). A write past a lost cut cannot survive.
fn choose_versions(
    pending: &[(u64, Change)],
    lengths_kept: usize,
    random: &mut Random,
) -> BTreeMap<u64, [usize; BLOCK / SECTOR]> {
    let mut eligible: BTreeMap<u64, usize> = BTreeMap::new();
    let mut lengths_seen = 0;
    let mut lost_cut = u64::MAX;
    for (_, change) in pending {
        match change {
            Change::SetLen(new) => {
                lengths_seen += 1;
                if lengths_seen > lengths_kept {
                    lost_cut = lost_cut.min(new.div_ceil(BLOCK_BYTES));
                }
            }
            Change::Write { block, .. } if *block < lost_cut => *eligible.entry(*block).or_default() += 1,
            Change::Write { .. } => {}
        }
    }
    // A whole file is sometimes kept or lost as one, so that states near "nothing happened" are common too.
    let bias = random.below(4);
    let mut chosen = BTreeMap::new();
    for (block, versions) in eligible {
        let kind = if bias == 0 { 9 } else { random.below(9) };
        let mut sectors = [0; BLOCK / SECTOR];
        match kind {
            0..=2 => {}
            3 => sectors.fill(random.index(versions + 1)),
            4 | 5 => sectors.iter_mut().for_each(|sector| *sector = random.index(versions + 1)),
            _ => sectors.fill(versions),
        }
        chosen.insert(block, sectors);
    }
    chosen
}
