//! Xen's system time, the counter that all domains of a host share, read by the hypercall `HVMOP_get_time`.
//!
//! Dom0's kernel passes hypercalls on through `/dev/xen/privcmd`. The argument lies in a page of
//! `/dev/xen/hypercall`, which the kernel neither swaps nor moves: to Xen a page that is not there just now is an
//! error, not a page fault.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use memmap2::{MmapOptions, MmapRaw};
use radclock::page::PAGE_SIZE;

use super::{XenError, check_dom0, open_device};

const PRIVCMD: &str = "/dev/xen/privcmd";
const HYPERCALL_BUFFER: &str = "/dev/xen/hypercall";
const MODULE: &str = "xen-privcmd";

/// `struct privcmd_hypercall` of Linux's `xen/privcmd.h`.
#[repr(C)]
struct PrivcmdHypercall {
    op: u64,
    arg: [u64; 5],
}

/// `IOCTL_PRIVCMD_HYPERCALL`: `_IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))`.
const IOCTL_PRIVCMD_HYPERCALL: u64 = ((size_of::<PrivcmdHypercall>() as u64) << 16) | ((b'P' as u64) << 8);

/// `HVMOP_get_time` of Xen's `public/hvm/hvm_op.h`, which xen-sys lacks. Its argument is one `u64`, nanoseconds.
const HVMOP_GET_TIME: u64 = 10;

/// Access to Xen's system time.
#[derive(Debug)]
pub struct SystemTime {
    privcmd: File,
    /// The page where Xen writes the answer; one caller at a time.
    buffer: Mutex<MmapRaw>,
}

impl SystemTime {
    /// Opens what it takes, and reads once to see that Xen lets us.
    ///
    /// # Errors
    ///
    /// Not Xen, not Dom0, no such device, no permission; each says what to do.
    pub fn open() -> Result<SystemTime, XenError> {
        check_dom0(Path::new("/"))?;
        let buffer = MmapOptions::new()
            .len(PAGE_SIZE)
            .map_raw(&open_device(HYPERCALL_BUFFER, MODULE)?)
            .map_err(|source| XenError::device(HYPERCALL_BUFFER, "mapping a page", source))?;
        let system_time = SystemTime { privcmd: open_device(PRIVCMD, MODULE)?, buffer: Mutex::new(buffer) };
        system_time.now().map_err(|source| match source.raw_os_error() {
            // What a domain without privileges gets.
            Some(libc::EPERM | libc::ENOSYS) => XenError::NotDom0,
            _ => XenError::device(PRIVCMD, "reading Xen's system time", source),
        })?;
        Ok(system_time)
    }

    /// Nanoseconds since Xen started. Costs a system call and a hypercall, about a microsecond.
    ///
    /// # Errors
    ///
    /// Whatever the kernel or Xen answers; none is expected once [`SystemTime::open`] went well.
    pub fn now(&self) -> io::Result<u64> {
        let buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = buffer.as_mut_ptr().cast::<u64>();
        let call = PrivcmdHypercall {
            op: u64::from(xen_sys::__HYPERVISOR_hvm_op),
            arg: [HVMOP_GET_TIME, answer as u64, 0, 0, 0],
        };
        // SAFETY: the kernel reads `call`, which is laid out as it expects; Xen writes eight bytes at the start of
        // the page, to which nobody holds a reference.
        let result = unsafe { libc::ioctl(self.privcmd.as_raw_fd(), IOCTL_PRIVCMD_HYPERCALL, &raw const call) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above; volatile, because the compiler does not see Xen write.
        Ok(unsafe { answer.read_volatile() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctl_has_the_kernels_number() {
        assert_eq!(IOCTL_PRIVCMD_HYPERCALL, 0x30_5000);
        assert_eq!(xen_sys::__HYPERVISOR_hvm_op, 34);
    }
}
