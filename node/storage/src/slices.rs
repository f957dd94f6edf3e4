//! Record bytes that are read without a copy: ranges of buffers that the batch cache or a disk read holds.

use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use crate::disk::Buffer;

/// A range of a shared buffer. Holding it keeps the whole buffer in memory.
pub struct Slice<B> {
    buffer: Rc<B>,
    start: u32,
    end: u32,
}

impl<B> Clone for Slice<B> {
    fn clone(&self) -> Self {
        Slice { buffer: self.buffer.clone(), start: self.start, end: self.end }
    }
}

impl<B> fmt::Debug for Slice<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({}..{})", self.start, self.end)
    }
}

impl<B: Buffer> Slice<B> {
    /// A range of `buffer`, which must lie within it.
    pub fn new(buffer: Rc<B>, range: Range<usize>) -> Slice<B> {
        assert!(range.start <= range.end && range.end <= buffer.as_slice().len(), "slice outside its buffer");
        let (start, end) = (range.start as u32, range.end as u32);
        assert!(end as usize == range.end, "buffers are below 4 GiB");
        Slice { buffer, start, end }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.buffer.as_slice()[self.start as usize..self.end as usize]
    }

    /// A part of it, relative to its start.
    pub fn slice(&self, range: Range<usize>) -> Slice<B> {
        assert!(range.start <= range.end && range.end <= self.len(), "slice outside its slice");
        Slice {
            buffer: self.buffer.clone(),
            start: self.start + range.start as u32,
            end: self.start + range.end as u32,
        }
    }
}

impl<B> Slice<B> {
    /// Bytes in it.
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Where it lies in its buffer.
    pub fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The buffer behind it.
    pub fn buffer(&self) -> &Rc<B> {
        &self.buffer
    }
}

/// A list of slices that belong one after the other.
pub struct Slices<B> {
    list: Vec<Slice<B>>,
    len: usize,
}

impl<B> Default for Slices<B> {
    fn default() -> Self {
        Slices { list: Vec::new(), len: 0 }
    }
}

impl<B> fmt::Debug for Slices<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slices({} bytes in {})", self.len, self.list.len())
    }
}

impl<B: Buffer> Slices<B> {
    /// Adds one at the end; an empty one is left out.
    pub fn push(&mut self, slice: Slice<B>) {
        if !slice.is_empty() {
            self.len += slice.len();
            self.list.push(slice);
        }
    }

    /// The slices, in order, none empty.
    pub fn iter(&self) -> impl Iterator<Item = &Slice<B>> {
        self.list.iter()
    }

    /// All bytes, copied into one piece (tests, small reads).
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len);
        for slice in &self.list {
            bytes.extend_from_slice(slice.as_slice());
        }
        bytes
    }
}

impl<B> Slices<B> {
    /// Bytes in all of them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many slices there are.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// Takes the list apart.
    pub fn into_vec(self) -> Vec<Slice<B>> {
        self.list
    }
}
