//! The XenBus device as strings: its nodes in XenStore and its states. No XenStore is accessed here.
//!
//! What the nodes mean is written down in `xen-frontend/kmod/radclockif.h`; the states are those of Xen's
//! `public/io/xenbus.h`.

use core::fmt;
use std::string::String;

/// The device type, as in `device/radclock` and `backend/radclock`.
pub const DEVICE_TYPE: &str = "radclock";
/// The protocol's version, in both `version` nodes.
pub const PROTOCOL_VERSION: &str = "1";
/// Where Dom0 keeps a directory for each domain that has the clock.
pub const BACKEND_ROOT: &str = "/local/domain/0/backend/radclock";
/// The directory whose children are the domains, by number.
pub const DOMAINS: &str = "/local/domain";

/// The nodes inside the directories of the backend and the frontend.
pub mod node {
    /// Backend: the frontend's directory.
    pub const FRONTEND: &str = "frontend";
    /// Backend: the frontend's domain.
    pub const FRONTEND_ID: &str = "frontend-id";
    /// Backend: "0" when the device is being taken away for good.
    pub const ONLINE: &str = "online";
    /// Both: a [`XenbusState`](super::XenbusState) as a number.
    pub const STATE: &str = "state";
    /// Both: the version of the protocol.
    pub const VERSION: &str = "version";
    /// Backend: the grant reference of the page.
    pub const PAGE_REF: &str = "page-ref";
    /// Backend: the event channel that tells of updates.
    pub const EVENT_CHANNEL: &str = "event-channel";
    /// Backend: this boot of the host, 32 hexadecimal digits.
    pub const HOST_ID: &str = "host-id";
    /// Backend: the name of the time domain.
    pub const TIME_DOMAIN: &str = "time-domain";
    /// Frontend: the backend's directory.
    pub const BACKEND: &str = "backend";
    /// Frontend: the backend's domain.
    pub const BACKEND_ID: &str = "backend-id";
}

/// A domain's own directory.
pub fn domain_dir(domid: u16) -> String {
    format!("{DOMAINS}/{domid}")
}

/// The parent of a domain's device directories of this type; not writable by the domain.
pub fn frontend_root(domid: u16) -> String {
    format!("{DOMAINS}/{domid}/device/{DEVICE_TYPE}")
}

/// The frontend's directory, owned by the domain.
pub fn frontend_dir(domid: u16) -> String {
    format!("{DOMAINS}/{domid}/device/{DEVICE_TYPE}/0")
}

/// The parent of the backend's directories for a domain.
pub fn backend_root(domid: u16) -> String {
    format!("{BACKEND_ROOT}/{domid}")
}

/// The backend's directory for a domain, readable by it.
pub fn backend_dir(domid: u16) -> String {
    format!("{BACKEND_ROOT}/{domid}/0")
}

/// A domain's UUID, from what its `vm` node says (`/vm/<uuid>`).
pub fn uuid_of_vm(vm: &str) -> Option<&str> {
    vm.strip_prefix("/vm/").filter(|uuid| !uuid.is_empty() && !uuid.contains('/'))
}

/// The state of either end of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum XenbusState {
    /// Nothing was said yet.
    Unknown = 0,
    /// The device exists.
    Initialising = 1,
    /// The backend has made its offer and waits for the frontend.
    InitWait = 2,
    /// This end is ready, the other is not.
    Initialised = 3,
    /// In use.
    Connected = 4,
    /// This end is going away.
    Closing = 5,
    /// This end is gone.
    Closed = 6,
    /// Not used by this device.
    Reconfiguring = 7,
    /// Not used by this device.
    Reconfigured = 8,
}

impl XenbusState {
    /// From what a `state` node says: a decimal number from 0 to 8, and nothing else.
    pub fn parse(text: &str) -> Option<XenbusState> {
        Some(match text {
            "0" => XenbusState::Unknown,
            "1" => XenbusState::Initialising,
            "2" => XenbusState::InitWait,
            "3" => XenbusState::Initialised,
            "4" => XenbusState::Connected,
            "5" => XenbusState::Closing,
            "6" => XenbusState::Closed,
            "7" => XenbusState::Reconfiguring,
            "8" => XenbusState::Reconfigured,
            _ => return None,
        })
    }

    /// What a `state` node says.
    pub fn number(self) -> String {
        format!("{}", self as u8)
    }
}

impl fmt::Display for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            XenbusState::Unknown => "Unknown",
            XenbusState::Initialising => "Initialising",
            XenbusState::InitWait => "InitWait",
            XenbusState::Initialised => "Initialised",
            XenbusState::Connected => "Connected",
            XenbusState::Closing => "Closing",
            XenbusState::Closed => "Closed",
            XenbusState::Reconfiguring => "Reconfiguring",
            XenbusState::Reconfigured => "Reconfigured",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_its_node() {
        for number in 0..=8 {
            let state = XenbusState::parse(&number.to_string()).expect("a state");
            assert_eq!(state as u8, number);
            assert_eq!(XenbusState::parse(&state.number()), Some(state));
        }
    }

    #[test]
    fn anything_else_is_no_state() {
        for text in ["", "9", "10", "-1", " 4", "4 ", "04", "Connected", "\u{0}", &"4".repeat(4096)] {
            assert_eq!(XenbusState::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_uuid_comes_out_of_a_vm_path() {
        assert_eq!(uuid_of_vm("/vm/7d7a"), Some("7d7a"));
        assert_eq!(uuid_of_vm("/vm/"), None);
        assert_eq!(uuid_of_vm("/vm/a/b"), None);
        assert_eq!(uuid_of_vm("7d7a"), None);
    }
}
