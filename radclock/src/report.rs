//! What `radclockd` says of itself over its status socket, and what it may be asked: JSON, one object a line.
//!
//! A client connects to the Unix socket (`/run/radclock/radclockd.sock`), writes one [`Request`] and a newline, and
//! reads [`Response`]s, a line each: one, or for [`Request::Watch`] one at each change until it hangs up.

use serde::{Deserialize, Serialize};

use crate::clock::Status;
use crate::disruption::Disruption;
use crate::ensemble::Standing;
use crate::leap::LeapKind;
use crate::stamp::StampSource;
use crate::sync::SyncReport;

/// Where the daemon listens unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/radclock/radclockd.sock";

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// A [`Response::Status`].
    Status,
    /// A [`Response::Status`] now and after each change.
    Watch,
    /// Offer the clock to a domain, whatever the policy says.
    Attach {
        /// Xen's number of the domain.
        domid: u16,
    },
    /// Take the clock away from a domain until it is attached again or gone.
    Detach {
        /// Xen's number of the domain.
        domid: u16,
    },
    /// Have a domain's page warn of a disruption, or no longer.
    Warn {
        /// Xen's number of the domain.
        domid: u16,
        /// In place of the warning before.
        warning: Option<Disruption>,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "lowercase")]
pub enum Response {
    /// The daemon's state.
    Status(Box<DaemonStatus>),
    /// Done.
    Ok,
    /// Not done, and why.
    Error {
        /// One line, for a person.
        message: String,
    },
}

/// The daemon's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// The daemon's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The counter it synchronises: `xen-system-time`, `tsc`, `platform` or `monotonic-raw`.
    pub counter: String,
    /// This boot of the host, 32 hexadecimal digits.
    pub host_id: String,
    /// The time domain that guests are told, a name for "the same clock".
    pub time_domain: String,
    /// The shared clock.
    pub clock: ClockReport,
    /// Its servers.
    pub servers: Vec<ServerReport>,
    /// The guests that have the clock or could have it; empty without Xen.
    pub guests: Vec<GuestReport>,
    /// The guests' policy does not apply without Xen.
    pub xen: bool,
}

/// The shared clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClockReport {
    /// Its state now.
    pub status: Status,
    /// Updates published; goes on from those that the daemon before left in its page.
    pub generation: u64,
    /// Seconds since 1970 with nine decimals, now; nothing before the first synchronisation.
    pub time: Option<String>,
    /// Bound on its error now, ns.
    pub max_error_ns: Option<u64>,
    /// Age of the parameters now, s.
    pub age_s: Option<f64>,
    /// TAI − UTC now, s, if a leap-second list that has not expired says it.
    pub tai_offset_s: Option<i16>,
    /// The leap second at the end of this month.
    pub leap: Option<LeapKind>,
    /// What keeps it from being synchronised, or will, in one line.
    pub problem: Option<String>,
    /// The algorithm's own figures, of the server with the largest share.
    pub sync: SyncReport,
}

/// One NTP server, or PTP hardware clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerReport {
    /// As configured, with the port; of a hardware clock its device.
    pub name: String,
    /// The address in use.
    pub address: Option<String>,
    /// Its stratum as last heard.
    pub stratum: Option<u8>,
    /// The poll period now, s.
    pub poll_s: f64,
    /// NTP's reach register: the last eight polls, the newest in the lowest bit.
    pub reach: u8,
    /// The last round trip, s.
    pub rtt_s: Option<f64>,
    /// How its stamps are taken.
    pub stamps: Option<StampSource>,
    /// The last thing that went wrong, in one line.
    pub last_error: Option<String>,
    /// What it is held for.
    pub standing: Standing,
    /// Its share in the clock, 0 to 1.
    pub weight: f64,
    /// Its own clock minus the common one, s.
    pub offset_s: Option<f64>,
    /// Bound on the error of its own clock, s.
    pub bound_s: Option<f64>,
    /// The algorithm's figures for it.
    pub sync: SyncReport,
}

impl ServerReport {
    /// One that was not heard yet, asked every `poll_s` seconds.
    pub fn unheard(name: String, poll_s: f64) -> ServerReport {
        ServerReport {
            name,
            address: None,
            stratum: None,
            poll_s,
            reach: 0,
            rtt_s: None,
            stamps: None,
            last_error: None,
            standing: Standing::Waiting,
            weight: 0.0,
            offset_s: None,
            bound_s: None,
            sync: SyncReport::default(),
        }
    }
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestReport {
    /// Xen's number of the domain.
    pub domid: u16,
    /// Its name in XenStore.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Whether the clock is offered to it.
    pub attached: bool,
    /// The backend's XenBus state, by name (`InitWait`, `Connected`, …).
    pub backend_state: String,
    /// The frontend's XenBus state, by name.
    pub frontend_state: String,
    /// The generation last pushed to it.
    pub generation: u64,
    /// What its page warns of.
    pub warning: Option<Disruption>,
}
