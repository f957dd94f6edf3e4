//! Lending a shard's buffer to another shard without a copy.
//!
//! Buffers for direct I/O belong to the executor that made them and are not `Send`. What crosses over is a [`Lent`]:
//! address, length, and where to give it back. The buffer itself waits on its home shard:
//!
//! ```text
//!   home:   lend(Rc<B>) ── table[token] = Rc<B> ─────────────────────────── collect() ── Rc<B> dropped here
//!   away:         └── Lent ── read, read ── drop ── returned.push(token) ───────┘
//! ```
//!
//! Invariants: the table holds a reference for as long as a `Lent` of that token exists; a token is pushed once,
//! by the drop of its only `Lent`; at most `limit` tokens are out, so the queue of that capacity always has room.
use crossbeam_queue::ArrayQueue;
use slab::Slab;
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

/// Memory that stays where it is, and as it is.
///
/// # Safety
/// While any reference to `self` is shared (an `Rc` with more than one owner, say), `bytes` returns the same address
/// and length each time, nothing writes to that memory, and reading it on another thread is sound.
pub unsafe trait Stable: 'static {
    /// The bytes.
    fn bytes(&self) -> &[u8];
}

// SAFETY: a boxed slice without interior mutability.
unsafe impl Stable for Box<[u8]> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: glommio's buffer owns one allocation for its life; it changes only through `&mut`, which an `Rc` with two
// owners does not give. A write that is in flight only reads it.
unsafe impl Stable for crate::disk::Buffer {
    fn bytes(&self) -> &[u8] {
        flumen_storage::disk::Buffer::as_slice(self)
    }
}

// SAFETY: as above, of which this is the part that is written from.
unsafe impl Stable for glommio::io::DmaBuffer {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// A shard's side: what it has lent out. Not `Send`.
pub struct Lender<B: Stable> {
    table: RefCell<Slab<Rc<B>>>,
    returned: Arc<ArrayQueue<usize>>,
}

impl<B: Stable> Lender<B> {
    /// Lends out at most `limit` at a time.
    pub fn new(limit: usize) -> Self {
        Lender { table: RefCell::new(Slab::new()), returned: Arc::new(ArrayQueue::new(limit)) }
    }

    /// Lends `range` of `buffer`. `None` when too many are out: the caller then copies.
    pub fn lend(&self, buffer: &Rc<B>, range: Range<usize>) -> Option<Lent> {
        self.collect();
        let mut table = self.table.borrow_mut();
        if table.len() >= self.returned.capacity() {
            return None;
        }
        let slice = &buffer.bytes()[range];
        let (address, len) = (NonNull::from(slice).cast::<u8>(), slice.len());
        let token = table.insert(buffer.clone());
        Some(Lent { address, len, home: Some((self.returned.clone(), token)) })
    }

    /// Lets go of what has come back. Called by `lend`, too. How many are still out.
    pub fn collect(&self) -> usize {
        while let Some(token) = self.returned.pop() {
            let buffer = self.table.borrow_mut().remove(token);
            // Outside of the borrow: its memory may be given back to the disk's pool here.
            drop(buffer);
        }
        self.table.borrow().len()
    }
}

impl<B: Stable> Drop for Lender<B> {
    /// At the end of the home shard, what is still out must stay readable: it is never freed.
    fn drop(&mut self) {
        if self.collect() > 0 {
            for buffer in self.table.get_mut().drain() {
                std::mem::forget(buffer);
            }
        }
    }
}

/// Bytes of another shard's buffer (or owned ones: [`Lent::owned`]). Dropping it, on any thread, gives them back.
pub struct Lent {
    address: NonNull<u8>,
    len: usize,
    /// `None` when the bytes are owned: a leaked box that `drop` takes back.
    home: Option<(Arc<ArrayQueue<usize>>, usize)>,
}

// SAFETY: what is shared is memory that nobody writes to while this exists (`Stable`, and the table's reference),
// and that is freed only after the token has come back through a queue, which orders all reads before it.
unsafe impl Send for Lent {}
// SAFETY: as above; `&Lent` gives nothing but `&[u8]`.
unsafe impl Sync for Lent {}

impl Lent {
    /// Bytes of its own: a copy, for where lending is not possible or not worth it.
    pub fn owned(bytes: Box<[u8]>) -> Lent {
        let len = bytes.len();
        // SAFETY: the pointer of a box is never null.
        let address = unsafe { NonNull::new_unchecked(Box::into_raw(bytes).cast::<u8>()) };
        Lent { address, len, home: None }
    }
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: lent: the table of the home shard keeps the buffer, and `Stable` keeps it in its place; after the
        // home shard's end it is never freed. Owned: from a box of this length.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        match self.home.take() {
            Some((returned, token)) => {
                let pushed = returned.push(token);
                debug_assert!(pushed.is_ok(), "no more tokens are out than the queue has room for");
            }
            // SAFETY: made by `owned` from a box of exactly this slice, and taken back once.
            None => drop(unsafe {
                Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.address.as_ptr(), self.len))
            }),
        }
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lent({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    struct Noted(Box<[u8]>, Rc<Cell<u32>>);

    // SAFETY: as `Box<[u8]>`.
    unsafe impl Stable for Noted {
        fn bytes(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Noted {
        fn drop(&mut self) {
            self.0.fill(0xdd);
            self.1.set(self.1.get() + 1);
        }
    }

    fn buffer(drops: &Rc<Cell<u32>>) -> Rc<Noted> {
        Rc::new(Noted((0..100).collect(), drops.clone()))
    }

    #[test]
    fn the_buffer_lives_until_what_is_lent_of_it_came_back() {
        let drops = Rc::new(Cell::new(0));
        let lender = Lender::new(4);
        let (first, second) = {
            let buffer = buffer(&drops);
            (lender.lend(&buffer, 10..20).expect("room"), lender.lend(&buffer, 0..0).expect("room"))
        };
        let read = std::thread::spawn(move || first.to_vec()).join().expect("no panic");
        assert_eq!(read, (10..20).collect::<Vec<u8>>());
        assert_eq!((lender.collect(), drops.get()), (1, 0));
        drop(second);
        assert_eq!((lender.collect(), drops.get()), (0, 1));
    }

    #[test]
    fn what_is_out_when_the_home_shard_ends_stays_readable() {
        let drops = Rc::new(Cell::new(0));
        let lender = Lender::new(4);
        let lent = lender.lend(&buffer(&drops), 0..100).expect("room");
        let returned_before = lender.lend(&buffer(&drops), 0..100).expect("room");
        drop(returned_before);
        drop(lender);
        assert_eq!(drops.get(), 1, "only the one that came back");
        assert_eq!(lent[99], 99);
        drop(lent);
        assert_eq!(drops.get(), 1);
    }

    #[test]
    fn no_more_than_the_limit_is_lent_out() {
        let drops = Rc::new(Cell::new(0));
        let lender = Lender::new(2);
        let buffer = buffer(&drops);
        let held: Vec<_> = (0..3).map(|_| lender.lend(&buffer, 0..1)).collect();
        assert!(held[0].is_some() && held[1].is_some() && held[2].is_none());
        drop(held);
        assert!(lender.lend(&buffer, 0..1).is_some());
        assert_eq!(&*Lent::owned(b"own".as_slice().into()), b"own");
        assert_eq!(&*Lent::owned(b"".as_slice().into()), b"");
    }
}
