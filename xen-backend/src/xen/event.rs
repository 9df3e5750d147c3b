//! The event channel that tells a guest of a new page, by `/dev/xen/evtchn`.
//!
//! Each guest has a handle of the device of its own: the kernel takes one lock a handle for binding, unbinding and
//! notifying, so a guest that comes or goes never delays a notification to another. Closing the handle, or dying,
//! unbinds the port.
//!
//! A guest can notify back as often as it likes. The first event masks the port, and since nobody here ever reads
//! the handle and unmasks it again, the rest costs Dom0 nothing.
//!
//! The crate krata-xenevtchn 0.0.25 is not used: its numbers for "bind an unbound port" and "unbind" are swapped, so
//! the former fails with "not connected".

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use xen_sys::evtchn_port_t;

use super::{XenError, open_device};

pub(super) const DEVICE: &str = "/dev/xen/evtchn";
const MODULE: &str = "xen-evtchn";

/// `struct ioctl_evtchn_bind_unbound_port` of Linux's `xen/evtchn.h`.
#[repr(C)]
struct BindUnboundPort {
    remote_domain: u32,
}

/// `struct ioctl_evtchn_notify`.
#[repr(C)]
struct Notify {
    port: evtchn_port_t,
}

/// `IOCTL_EVTCHN_BIND_UNBOUND_PORT`: `_IOC(_IOC_NONE, 'E', 2, sizeof(struct ioctl_evtchn_bind_unbound_port))`.
pub(super) const IOCTL_EVTCHN_BIND_UNBOUND_PORT: u64 =
    ((size_of::<BindUnboundPort>() as u64) << 16) | ((b'E' as u64) << 8) | 2;
/// `IOCTL_EVTCHN_NOTIFY`: `_IOC(_IOC_NONE, 'E', 4, sizeof(struct ioctl_evtchn_notify))`.
pub(super) const IOCTL_EVTCHN_NOTIFY: u64 = ((size_of::<Notify>() as u64) << 16) | ((b'E' as u64) << 8) | 4;

/// A port of this domain that one other domain may bind. Unbound when dropped.
#[derive(Debug)]
pub struct Port {
    handle: File,
    port: evtchn_port_t,
}

impl Port {
    /// Says whether event channels can be had here at all.
    pub fn check() -> Result<(), XenError> {
        open_device(DEVICE, MODULE).map(drop)
    }

    /// A new port for a domain. The domain has to exist.
    pub fn new(domid: u16) -> Result<Port, XenError> {
        let handle = open_device(DEVICE, MODULE)?;
        let request = BindUnboundPort { remote_domain: u32::from(domid) };
        // SAFETY: the kernel reads `request`, which is laid out as it expects.
        let port = unsafe { libc::ioctl(handle.as_raw_fd(), IOCTL_EVTCHN_BIND_UNBOUND_PORT, &raw const request) };
        // The port is the answer, or there is none.
        let port = evtchn_port_t::try_from(port)
            .map_err(|_| XenError::device(DEVICE, "allocating an event channel", io::Error::last_os_error()))?;
        Ok(Port { handle, port })
    }

    /// Its number, under which the other domain binds it.
    pub fn number(&self) -> u32 {
        self.port
    }

    /// Sends an event. Without effect as long as the other domain has not bound the port.
    pub fn notify(&self) -> io::Result<()> {
        let request = Notify { port: self.port };
        // SAFETY: the kernel reads `request`, which is laid out as it expects.
        let result = unsafe { libc::ioctl(self.handle.as_raw_fd(), IOCTL_EVTCHN_NOTIFY, &raw const request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctls_have_the_kernels_numbers() {
        assert_eq!(IOCTL_EVTCHN_BIND_UNBOUND_PORT, 0x4_4502);
        assert_eq!(IOCTL_EVTCHN_NOTIFY, 0x4_4504);
    }
}
