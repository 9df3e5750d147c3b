//! Xen's system time, the counter that all domains of a host share, read by the hypercall `HVMOP_get_time`.

use std::io;
use std::sync::Arc;

use super::XenError;
use super::hypercall::{Hypercalls, PRIVCMD};
use super::platform::HostCounters;

/// `HVMOP_get_time` of Xen's `public/hvm/hvm_op.h`, which xen-sys lacks. Its argument is one `u64`, nanoseconds.
const HVMOP_GET_TIME: u64 = 10;

/// Access to Xen's system time.
#[derive(Debug)]
pub struct SystemTime {
    hypercalls: Arc<Hypercalls>,
}

impl SystemTime {
    /// Opens what it takes, and reads once to see that Xen lets us.
    ///
    /// # Errors
    ///
    /// Not Xen, not Dom0, no such device, no permission; each says what to do.
    pub fn open() -> Result<SystemTime, XenError> {
        let system_time = SystemTime { hypercalls: Arc::new(Hypercalls::open()?) };
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
        let mut now = 0u64;
        self.hypercalls.call(xen_sys::__HYPERVISOR_hvm_op, &mut now, |address| [HVMOP_GET_TIME, address, 0, 0, 0])?;
        Ok(now)
    }

    /// All counters of the host at one instant, if this Xen can tell.
    ///
    /// # Errors
    ///
    /// What Xen answers to an operation that it has not got, or does not let us have.
    pub fn host_counters(&self) -> io::Result<HostCounters> {
        HostCounters::new(Arc::clone(&self.hypercalls))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_hypercall_has_xens_number() {
        assert_eq!(xen_sys::__HYPERVISOR_hvm_op, 34);
    }
}
