//! File systems.
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What a path lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// The kernel's number of its kind.
    pub magic: i64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that an ordinary user may still take.
    pub usable_bytes: u64,
}

impl FileSystem {
    /// A file system in memory.
    pub fn is_tmpfs(&self) -> bool {
        self.magic == libc::TMPFS_MAGIC
    }
}

/// Asks for the file system of `path`.
pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a zero byte; an all-zero `statfs` is valid, and the call fills it.
    let statfs = unsafe {
        let mut statfs: libc::statfs = std::mem::zeroed();
        if libc::statfs(path.as_ptr(), &mut statfs) != 0 {
            return Err(io::Error::last_os_error());
        }
        statfs
    };
    let block = statfs.f_bsize as u64;
    Ok(FileSystem {
        magic: statfs.f_type,
        total_bytes: statfs.f_blocks * block,
        usable_bytes: statfs.f_bavail * block,
    })
}

/// Makes durable all that was written to the file system of `file` (`syncfs`). Blocks.
pub fn sync_file_system(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open while `file` is borrowed; no memory is passed.
    if unsafe { libc::syncfs(file.as_raw_fd()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The kernel's `struct fiemap`, with room for some extents.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FiemapExtent; FIEMAP_EXTENTS],
}

/// The kernel's `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const FIEMAP_EXTENTS: usize = 32;
/// `_IOWR('f', 11, struct fiemap)`, whose size is without extents.
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;
const FIEMAP_EXTENT_LAST: u32 = 0x1;
/// Unknown place, delayed allocation, unwritten.
const FIEMAP_EXTENT_NOT_WRITTEN: u32 = 0x2 | 0x4 | 0x800;
const _: () = assert!(size_of::<Fiemap>() == 32 + FIEMAP_EXTENTS * 56);

/// Whether every block of a file is on disk and written (`FS_IOC_FIEMAP`). Blocks.
pub fn is_laid_out(file: &File) -> io::Result<bool> {
    let len = file.metadata()?.len();
    let mut end = 0;
    while end < len {
        let mut map = Fiemap {
            start: end,
            length: len - end,
            flags: 0,
            mapped_extents: 0,
            extent_count: FIEMAP_EXTENTS as u32,
            reserved: 0,
            extents: [FiemapExtent::default(); FIEMAP_EXTENTS],
        };
        // SAFETY: the descriptor is open while `file` is borrowed; the kernel writes to `map` alone, and at most the
        // extents that `extent_count` says it has.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &mut map) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mapped = (map.mapped_extents as usize).min(FIEMAP_EXTENTS);
        let mut last = false;
        for extent in &map.extents[..mapped] {
            if extent.logical > end || extent.flags & FIEMAP_EXTENT_NOT_WRITTEN != 0 {
                return Ok(false);
            }
            end = extent.logical + extent.length;
            last = extent.flags & FIEMAP_EXTENT_LAST != 0;
        }
        if mapped == 0 || last {
            return Ok(end >= len);
        }
    }
    Ok(true)
}
