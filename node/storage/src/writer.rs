//! One segment that is being written: which bytes of it are submitted, which are on disk, and the partial last
//! block, which is rewritten with an identical prefix as the segment grows.
//!
//! ```text
//!   0            written       frontier   + partial          allocated
//!   |--- on disk ---|-- in flight --|====== memory ==| unwritten |
//! ```
//!
//! `frontier` is block-aligned; `partial` are the bytes from it on, fewer than a block. A *fill* writes whole blocks
//! and the partial one padded with zeros, and is alone on its segment; a *bulk* write ends at a whole block, so
//! several may be in flight.

use std::collections::VecDeque;
use std::rc::Rc;

use flumen_core::types::Offset;

use crate::disk::{BLOCK, Buffer, Disk};

/// See the module.
pub(crate) struct Writer<D: Disk> {
    pub(crate) base: Offset,
    pub(crate) file: Option<Rc<D::File>>,
    /// Bytes that have space.
    pub(crate) allocated: u64,
    /// By how much space grows the next time.
    pub(crate) step: u64,
    frontier: u64,
    partial: Vec<u8>,
    partial_on_disk: usize,
    /// Bytes of the last block that are on disk and not in `partial` yet: after a restart.
    pub(crate) unloaded: usize,
    written: u64,
    fill_in_flight: bool,
    /// A write failed: what comes after it does not count as on disk.
    broken: bool,
    /// Its file is new, and the directory was not synced since.
    pub(crate) unnamed: bool,
    /// Ends of bulk writes in flight, in order, and whether each is done.
    bulk: VecDeque<(u64, bool)>,
    bulk_first: u64,
}

/// A write to be made.
pub(crate) struct Write<B> {
    pub(crate) buffer: B,
    pub(crate) position: u64,
    /// Where the new bytes begin in the buffer.
    pub(crate) new_at: usize,
}

impl<D: Disk> Writer<D> {
    /// A segment that has `size` bytes on disk already.
    pub(crate) fn new(base: Offset, size: u64, step: u64) -> Writer<D> {
        let frontier = size - size % BLOCK as u64;
        Writer {
            base,
            file: None,
            allocated: 0,
            step,
            frontier,
            partial: Vec::new(),
            partial_on_disk: 0,
            unloaded: (size - frontier) as usize,
            written: size,
            fill_in_flight: false,
            broken: false,
            unnamed: false,
            bulk: VecDeque::new(),
            bulk_first: 0,
        }
    }

    /// Where the partial block lies that must be read first.
    pub(crate) fn unloaded_block(&self) -> Option<(u64, usize)> {
        (self.unloaded > 0).then_some((self.frontier, self.unloaded))
    }

    /// Takes the partial block that was read.
    pub(crate) fn load(&mut self, bytes: &[u8]) {
        assert!(bytes.len() == self.unloaded && self.partial.is_empty());
        self.partial.extend_from_slice(bytes);
        self.partial_on_disk = bytes.len();
        self.unloaded = 0;
    }

    /// Whether it is open, with what a write needs.
    pub(crate) fn is_ready(&self) -> bool {
        self.file.is_some() && self.unloaded == 0
    }

    /// Bytes from the start that are on disk.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Bytes from the start that are submitted or kept in the partial block.
    pub(crate) fn submitted(&self) -> u64 {
        self.frontier + (self.partial.len() + self.unloaded) as u64
    }

    /// Whether the partial block has bytes that no write took.
    pub(crate) fn has_unwritten_partial(&self) -> bool {
        self.partial.len() > self.partial_on_disk
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.fill_in_flight || !self.bulk.is_empty()
    }

    pub(crate) fn fill_in_flight(&self) -> bool {
        self.fill_in_flight
    }

    /// A write of everything up to the end of `parts`, the last block padded with zeros. Nothing else may be in flight.
    pub(crate) fn fill(&mut self, disk: &D, parts: &[&[u8]], lose_prefix: bool) -> Write<D::Buffer> {
        assert!(!self.is_busy() && self.is_ready());
        let write = self.gather(disk, parts, true, lose_prefix).expect("a fill has bytes to write");
        self.partial_on_disk = self.partial.len();
        self.fill_in_flight = true;
        write
    }

    /// The fill is on disk, or it failed and the segment takes no more.
    pub(crate) fn fill_done(&mut self, sound: bool) {
        assert!(self.fill_in_flight);
        self.fill_in_flight = false;
        self.broken |= !sound;
        if !self.broken {
            self.written = self.submitted();
        }
    }

    /// A write of whole blocks up to the end of `parts`; what is left stays in the partial block. `None` when there is
    /// no whole block. Returns its number, for [`bulk_done`](Self::bulk_done).
    pub(crate) fn bulk(&mut self, disk: &D, parts: &[&[u8]]) -> Option<(u64, Write<D::Buffer>)> {
        assert!(!self.fill_in_flight && self.is_ready());
        let write = self.gather(disk, parts, false, false)?;
        self.partial_on_disk = 0;
        let number = self.bulk_first + self.bulk.len() as u64;
        self.bulk.push_back((self.frontier, false));
        Some((number, write))
    }

    /// A bulk write is on disk, those before it count first; or it failed, and the segment takes no more.
    pub(crate) fn bulk_done(&mut self, number: u64, sound: bool) {
        self.broken |= !sound;
        self.bulk[(number - self.bulk_first) as usize].1 = true;
        while let Some((end, true)) = self.bulk.front() {
            // A fill before may have had the partial block on disk already.
            if !self.broken {
                self.written = self.written.max(*end);
            }
            self.bulk.pop_front();
            self.bulk_first += 1;
        }
    }

    /// The bytes of the partial block.
    pub(crate) fn partial(&self) -> &[u8] {
        &self.partial
    }

    fn gather(
        &mut self,
        disk: &D,
        parts: &[&[u8]],
        pad: bool,
        lose_prefix: bool,
    ) -> Option<Write<D::Buffer>> {
        let new_at = self.partial.len();
        let total = new_at + parts.iter().map(|part| part.len()).sum::<usize>();
        let whole = total - total % BLOCK;
        let len = if pad { total.next_multiple_of(BLOCK) } else { whole };
        let position = self.frontier;
        if len == 0 {
            for part in parts {
                self.partial.extend_from_slice(part);
            }
            return None;
        }
        assert!(position + total as u64 <= self.allocated, "written only where there is space");
        let mut buffer = disk.allocate(len);
        let bytes = buffer.as_mut_slice();
        bytes[..new_at].copy_from_slice(&self.partial);
        if lose_prefix {
            bytes[..new_at].fill(0);
        }
        // The rest of the last block is kept, whether or not it is written now.
        let mut rest = Vec::with_capacity(total - whole);
        if whole == 0 {
            rest.append(&mut self.partial);
        }
        let mut at = new_at;
        for part in parts {
            let fits = part.len().min(len.saturating_sub(at));
            if fits > 0 {
                bytes[at..at + fits].copy_from_slice(&part[..fits]);
            }
            if at + part.len() > whole {
                rest.extend_from_slice(&part[whole.saturating_sub(at)..]);
            }
            at += part.len();
        }
        bytes[total.min(len)..].fill(0);
        self.frontier += whole as u64;
        self.partial = rest;
        assert!(self.partial.len() == total - whole, "every byte is either written whole or kept");
        Some(Write { buffer, position, new_at })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sim::{Random, Sim, SimDisk, SimOptions};

    /// Fills and bulk, in any order and of any size, make the segment that plain appending makes.
    #[test]
    fn writes_what_was_appended() {
        for seed in 0..200 {
            let sim = Sim::new(seed, SimOptions::default());
            let disk = sim.disk();
            let mut random = Random::new(seed);
            let size = random.below(6000);
            let mut model: Vec<u8> = (0..size).map(|at| at as u8).collect();
            let mut file = model.clone();
            let mut writer: Writer<SimDisk> = Writer::new(Offset(0), size, 0);
            writer.allocated = 1 << 30;
            writer.file = None;
            if let Some((at, len)) = writer.unloaded_block() {
                writer.load(&model[at as usize..at as usize + len]);
            }
            writer.file = Some(Rc::new(sim.run(open(disk.clone())).unwrap()));
            for round in 0..40u64 {
                let new: Vec<u8> = (0..random.below(9000)).map(|at| (at + round) as u8).collect();
                let cut = random.below(new.len() as u64 + 1) as usize;
                let parts = [&new[..cut], &new[cut..]];
                model.extend_from_slice(&new);
                if random.chance(1, 2) {
                    if new.is_empty() && !writer.has_unwritten_partial() && writer.partial().is_empty() {
                        continue;
                    }
                    let write = writer.fill(&disk, &parts, false);
                    put(&mut file, write.position, write.buffer.as_slice());
                    writer.fill_done(true);
                    assert_eq!(writer.written(), model.len() as u64);
                } else if let Some((number, write)) = writer.bulk(&disk, &parts) {
                    put(&mut file, write.position, write.buffer.as_slice());
                    writer.bulk_done(number, true);
                }
                assert_eq!(writer.submitted(), model.len() as u64);
                let written = writer.written() as usize;
                assert_eq!(file[..written], model[..written], "seed {seed} round {round}");
                assert!(model.len() - written < BLOCK);
            }
        }
    }

    async fn open(disk: SimDisk) -> <SimDisk as Disk>::File {
        let mode = crate::disk::OpenMode { create_new: true, write: true, synchronous: false };
        disk.open("segment", mode).await.unwrap()
    }

    fn put(file: &mut Vec<u8>, position: u64, bytes: &[u8]) {
        let end = position as usize + bytes.len();
        file.resize(file.len().max(end), 0);
        file[position as usize..end].copy_from_slice(bytes);
    }
}
