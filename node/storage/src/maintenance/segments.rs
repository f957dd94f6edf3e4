//! Segments that are full are closed: cut to their true length, with their index. Of those that are not, the index is kept
//! from time to time, so that a start need not scan them.

use std::cell::RefCell;
use std::rc::Rc;

use flumen_core::types::Offset;

use crate::api::Slot;
use crate::disk::{Disk, File};
use crate::engine::Engine;
use crate::partition::{Partition, segment_path};
use crate::segment::SegmentIndex;

/// What is scanned at once to complete an index that nobody asked for.
const INDEX_SCAN_BYTES_MAX: u64 = 16 << 20;

/// A segment that can be closed.
struct Closing<D: Disk> {
    base: Offset,
    /// Where it is open.
    file: Option<Rc<D::File>>,
    /// Its true length.
    size: u64,
    index: Rc<RefCell<SegmentIndex>>,
}

impl<D: Disk, T: 'static> Engine<D, T> {
    /// Cuts rolled segments to their true length and writes their indexes, once all of them is on disk. Returns of which
    /// partitions.
    pub(super) async fn close_rolled(&self) -> Vec<Slot> {
        let mut closed = Vec::new();
        for slot in self.with_rolled() {
            loop {
                let closing = {
                    let mut state = self.state.borrow_mut();
                    state.get_mut(slot).and_then(|partition| {
                        let closable = partition.closable()?;
                        partition.tended += 1;
                        Some((closable, partition.directory.clone()))
                    })
                };
                let Some((Closing { base, file, size, index }, directory)) = closing else { break };
                let path = segment_path(&directory, base);
                if let Some(file) = &file
                    && let Err(error) = file.truncate(size).await
                {
                    self.segment_fault(slot, base, "truncation", &error);
                    self.tended(slot);
                    break;
                }
                index.borrow_mut().close();
                let whole = index.borrow().clone();
                if whole.covered_from() == 0 {
                    // Purely derived: where it cannot be written now, it is rebuilt when it is needed.
                    self.reader.write_index(&path, &whole).await.ok();
                }
                let mut state = self.state.borrow_mut();
                let Some(partition) = state.get_mut(slot) else { break };
                partition.writers.pop_front();
                partition.indexes.pop_front();
                state.dirty_since.get_or_insert(self.disk.monotonic());
                drop(state);
                self.tended(slot);
                closed.push(slot);
            }
        }
        closed.dedup();
        closed
    }

    fn with_rolled(&self) -> Vec<Slot> {
        let state = self.state.borrow();
        let rolled =
            |slot: &Slot| state.get(*slot).is_some_and(|p| p.writers.len() > 1 && p.offline.is_none());
        state.slots().into_iter().filter(rolled).collect()
    }

    /// Keeps the indexes of active segments that grew by so many bytes, so that nobody scans after a restart what lies below.
    /// Of what a durable checkpoint holds: those bytes stay where they are. What is too much for one turn is for the
    /// next checkpoint's.
    pub(super) async fn keep_indexes(&self, grown_min: u64, count_max: usize) {
        let mut left = count_max;
        let slots = self.state.borrow().slots();
        for slot in slots {
            let (view, position) = {
                let mut state = self.state.borrow_mut();
                let Some(partition) = state.get_mut(slot) else { continue };
                let end = partition.checkpointed;
                let kept = match partition.index_kept {
                    (base, position) if base == end.segment_base => position,
                    _ => 0,
                };
                let active = end.segment_base == partition.log.active().base_offset;
                let served = partition.offline.is_none() && !partition.deleting;
                if !active || !served || end.position.saturating_sub(kept) < grown_min {
                    continue;
                }
                if left == 0 {
                    return;
                }
                left -= 1;
                let view = partition.view(partition.log.segments().len() - 1, self.reader.era());
                partition.tended += 1;
                (view, end.position)
            };
            let reached = self.reader.keep_index(&view, position, grown_min, INDEX_SCAN_BYTES_MAX).await;
            if let Some(partition) = self.state.borrow_mut().get_mut(slot) {
                // Where it cannot be had the next attempt waits for as many bytes again.
                partition.index_kept = (view.base_offset, reached.unwrap_or(position));
            }
            self.tended(slot);
            self.keep_journal_ready().await;
        }
    }
}

impl<D: Disk, T> Partition<D, T> {
    /// The oldest segment, when it was rolled and all of it is on disk.
    fn closable(&self) -> Option<Closing<D>> {
        let writer = self.writers.front()?;
        if self.writers.len() < 2 || writer.is_busy() || self.offline.is_some() || self.allocating {
            return None;
        }
        let segment = self.log.segments().iter().find(|segment| segment.base_offset == writer.base)?;
        let filled_past = self.filled.segment_base > writer.base
            || (self.filled.segment_base == writer.base && self.filled.position == segment.size);
        let held_here = self.held.as_ref().is_some_and(|held| held.mark.active_base() <= writer.base);
        if writer.written() < segment.size || !filled_past || held_here {
            return None;
        }
        Some(Closing {
            base: writer.base,
            file: writer.file.clone(),
            size: segment.size,
            index: self.indexes.front()?.clone(),
        })
    }
}
