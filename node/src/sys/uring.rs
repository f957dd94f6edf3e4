//! Asking the kernel for io_uring, before anything relies on it.
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// `struct io_uring_params` of the kernel: 120 bytes, of which nothing but zeros is passed in.
#[repr(C, align(8))]
struct Params([u8; 120]);

/// `struct io_uring_probe` with room for every operation a byte can name.
#[repr(C)]
struct Probe {
    last_operation: u8,
    operations: u8,
    reserved: [u16; 7],
    list: [ProbeOperation; 256],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ProbeOperation {
    operation: u8,
    reserved: u8,
    flags: u16,
    reserved_too: u32,
}

/// Makes a small ring, asks it which operations it knows, and closes it. By number of the operation.
pub fn probe_uring() -> io::Result<Vec<bool>> {
    const REGISTER_PROBE: libc::c_uint = 8;
    const SUPPORTED: u16 = 1;
    let mut params = Params([0; 120]);
    // SAFETY: the structure has the size that the kernel reads and writes.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, &mut params) };
    if ring < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded: a descriptor that is ours alone.
    let _ring = unsafe { OwnedFd::from_raw_fd(ring as i32) };
    let empty = ProbeOperation { operation: 0, reserved: 0, flags: 0, reserved_too: 0 };
    let mut probe = Probe { last_operation: 0, operations: 0, reserved: [0; 7], list: [empty; 256] };
    // SAFETY: the kernel writes at most as many operations as it is told there is room for.
    let done = unsafe { libc::syscall(libc::SYS_io_uring_register, ring, REGISTER_PROBE, &mut probe, 256) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let known = probe.list.iter().take(usize::from(probe.operations));
    Ok(known.map(|operation| operation.flags & SUPPORTED != 0).collect())
}
