//! Several clocks in one Dom0 on the same exchanges, over different counters, as `lab-clocks` tells the build machine of
//! them: a line of JSON each.

use serde::{Deserialize, Serialize};

/// A clock: its counter, and how its stamps are taken.
pub const CLOCKS: [&str; 7] = [
    "xen-clocksource",
    "tsc",
    "platform",
    "xen-clocksource, bracketed by hypercalls",
    "xen-clocksource, stamps of user space",
    "tsc, stamps of user space",
    "platform, stamps of user space",
];

/// What was seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// An exchange with the server.
    Exchange(Exchange),
    /// All counters and clocks at one instant.
    Sample(Sample),
}

/// An exchange.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    /// Round trip by the kernel's stamps, ns.
    pub rtt_ns: f64,
    /// Bound on what bracketing adds to a stamp of the kernel's, ns, for each of the first four clocks.
    pub bracket_ns: [f64; 4],
    /// How much earlier user space stamped the request than the kernel, ns.
    pub send_ns: f64,
    /// How much later user space stamped the reply than the kernel, ns.
    pub receive_ns: f64,
}

/// An instant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The TSC.
    pub tsc: u64,
    /// The TSC after the timer was read.
    pub tsc_end: u64,
    /// Xen's system time at `tsc`, ns.
    pub system_time: u64,
    /// The platform timer.
    pub count: u64,
    /// Its nominal rate, Hz.
    pub frequency: u64,
    /// Time of each of [`CLOCKS`], ns since 1970, and the bound on its error, ns.
    pub readings: [Option<(u64, u64)>; 7],
}
