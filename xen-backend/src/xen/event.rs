//! The event channel that tells a guest of a new page.
//!
//! Each guest has a handle of `/dev/xen/evtchn` of its own: the kernel takes one lock a handle for binding, unbinding
//! and notifying, so a guest that comes or goes never delays a notification to another. Closing the handle, or
//! dying, unbinds the port.
//!
//! A guest can notify back as often as it likes. The first event masks the port, and since nobody here ever reads
//! the handle and unmasks it again, the rest costs Dom0 nothing.

use std::io;
use std::path::Path;

use xenevtchn::error::Error;
use xenevtchn::raw::{EVENT_CHANNEL_DEVICE, RawEventChannelService};

use super::XenError;

const MODULE: &str = "xen-evtchn";

/// A port of this domain that one other domain may bind. Unbound when dropped.
pub struct Port {
    handle: RawEventChannelService,
    port: xen_sys::evtchn_port_t,
}

impl Port {
    /// Says whether event channels can be had here at all.
    pub fn check() -> Result<(), XenError> {
        RawEventChannelService::open().map(drop).map_err(open_error)
    }

    /// A new port for a domain. The domain has to exist.
    pub fn new(domid: u16) -> Result<Port, XenError> {
        let handle = RawEventChannelService::open().map_err(open_error)?;
        let port = handle
            .bind_unbound_port(u32::from(domid))
            .map_err(|error| XenError::device(EVENT_CHANNEL_DEVICE, "allocating an event channel", io_error(error)))?;
        Ok(Port { handle, port })
    }

    /// Its number, under which the other domain binds it.
    pub fn number(&self) -> u32 {
        self.port
    }

    /// Sends an event. Without effect as long as the other domain has not bound the port.
    pub fn notify(&self) -> io::Result<()> {
        self.handle.notify(self.port).map(drop).map_err(io_error)
    }
}

fn open_error(error: Error) -> XenError {
    XenError::open(Path::new(EVENT_CHANNEL_DEVICE), MODULE, io_error(error))
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::Kernel(errno) => io::Error::from_raw_os_error(errno as i32),
        Error::Io(error) => error,
        other => io::Error::other(other),
    }
}
