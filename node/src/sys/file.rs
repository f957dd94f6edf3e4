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
