//! Hypercalls from user space.
//!
//! Dom0's kernel passes them on through `/dev/xen/privcmd`. What a hypercall points to lies in a page of
//! `/dev/xen/hypercall`, which the kernel neither swaps nor moves: to Xen a page that is not there just now is an
//! error, not a page fault.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use memmap2::{MmapOptions, MmapRaw};
use radclock::page::PAGE_SIZE;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{XenError, check_dom0, open_device};

pub(super) const PRIVCMD: &str = "/dev/xen/privcmd";
const HYPERCALL_BUFFER: &str = "/dev/xen/hypercall";
const MODULE: &str = "xen-privcmd";

/// `struct privcmd_hypercall` of Linux's `xen/privcmd.h`.
#[repr(C)]
struct PrivcmdHypercall {
    op: u64,
    arg: [u64; 5],
}

/// `IOCTL_PRIVCMD_HYPERCALL`: `_IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))`.
pub(super) const IOCTL_PRIVCMD_HYPERCALL: u64 = ((size_of::<PrivcmdHypercall>() as u64) << 16) | ((b'P' as u64) << 8);

/// The way to Xen, for one caller at a time.
#[derive(Debug)]
pub(super) struct Hypercalls {
    privcmd: File,
    /// The page that a hypercall's argument is in.
    buffer: Mutex<MmapRaw>,
}

impl Hypercalls {
    /// Opens what it takes.
    ///
    /// # Errors
    ///
    /// Not Xen, not Dom0, no such device, no permission; each says what to do.
    pub(super) fn open() -> Result<Hypercalls, XenError> {
        check_dom0(Path::new("/"))?;
        let buffer = MmapOptions::new()
            .len(PAGE_SIZE)
            .map_raw(&open_device(HYPERCALL_BUFFER, MODULE)?)
            .map_err(|source| XenError::device(HYPERCALL_BUFFER, "mapping a page", source))?;
        Ok(Hypercalls { privcmd: open_device(PRIVCMD, MODULE)?, buffer: Mutex::new(buffer) })
    }

    /// Makes the hypercall `op` with what `arguments` makes of the address of `argument`, which Xen may read and write.
    ///
    /// # Errors
    ///
    /// Whatever the kernel or Xen answers. `argument` may have been written to even then.
    pub(super) fn call<T: Copy + FromBytes + IntoBytes + Immutable>(
        &self,
        op: u32,
        argument: &mut T,
        arguments: impl FnOnce(u64) -> [u64; 5],
    ) -> io::Result<()> {
        const { assert!(size_of::<T>() <= PAGE_SIZE && align_of::<T>() <= PAGE_SIZE) };
        let buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let place = buffer.as_mut_ptr().cast::<T>();
        let call = PrivcmdHypercall { op: op.into(), arg: arguments(place as u64) };
        // SAFETY: the page is mapped, large and aligned enough, and nobody holds a reference to it. The kernel reads
        // `call`, which is laid out as it expects; Xen writes no more than a `T`. Volatile, because the compiler does
        // not see that Xen reads and writes.
        unsafe {
            place.write_volatile(*argument);
            let result = libc::ioctl(self.privcmd.as_raw_fd(), IOCTL_PRIVCMD_HYPERCALL, &raw const call);
            let error = (result < 0).then(io::Error::last_os_error);
            *argument = place.read_volatile();
            error.map_or(Ok(()), Err)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctl_has_the_kernels_number() {
        assert_eq!(IOCTL_PRIVCMD_HYPERCALL, 0x30_5000);
    }
}
