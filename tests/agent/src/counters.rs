//! The platform operation `XENPF_get_counters` as our patched Xen has it (`xen/include/public/platform.h`, which says
//! what the fields mean), and what is told of it to the build machine.

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `__HYPERVISOR_platform_op`.
pub const PLATFORM_OP: u64 = 7;
/// `XENPF_INTERFACE_VERSION`.
pub const INTERFACE_VERSION: u32 = 0x0300_0001;
/// `XENPF_get_counters`.
pub const GET_COUNTERS: u32 = 0x5243;

/// `struct xenpf_counters`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Counters {
    /// Which timer.
    pub timer: u32,
    /// Zero.
    pub flags: u32,
    /// TSC before the timer was read.
    pub tsc: u64,
    /// The timer's count.
    pub count: u64,
    /// TSC after the timer was read.
    pub tsc_end: u64,
    /// Xen's system time at `tsc`, ns.
    pub system_time: u64,
    /// The timer's nominal rate, Hz.
    pub frequency: u64,
    /// Significant bits of `count`.
    pub width: u32,
    /// The physical CPU.
    pub cpu: u32,
    /// The timer's name, padded with zeros.
    pub name: [u8; 16],
}

/// `struct xen_platform_op` with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PlatformOp {
    /// `XENPF_*`.
    pub cmd: u32,
    /// [`INTERFACE_VERSION`].
    pub interface_version: u32,
    /// The operation's part of the union.
    pub counters: Counters,
    /// The rest of the union.
    pub rest: [u8; 56],
}

impl PlatformOp {
    /// Asks for a sample. What is not input has a pattern, so that it is seen whether Xen writes it.
    pub fn get_counters(timer: u32, flags: u32) -> PlatformOp {
        let mut counters = Counters::default();
        counters.as_mut_bytes().fill(0xa5);
        let counters = Counters { timer, flags, ..counters };
        PlatformOp { cmd: GET_COUNTERS, interface_version: INTERFACE_VERSION, counters, rest: [0xa5; 56] }
    }
}

/// One sample, with the fields of [`Counters`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// TSC before the timer was read.
    pub tsc: u64,
    /// The timer's count.
    pub count: u64,
    /// TSC after the timer was read.
    pub tsc_end: u64,
    /// Xen's system time at `tsc`, ns.
    pub system_time: u64,
    /// The timer's nominal rate, Hz.
    pub frequency: u64,
    /// Significant bits of `count`.
    pub width: u32,
    /// The physical CPU.
    pub cpu: u32,
    /// The timer's name.
    pub name: String,
}

impl From<Counters> for Sample {
    fn from(counters: Counters) -> Sample {
        let Counters { tsc, count, tsc_end, system_time, frequency, width, cpu, name, .. } = counters;
        let name = String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned();
        Sample { tsc, count, tsc_end, system_time, frequency, width, cpu, name }
    }
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Linux's number of the error, or 0.
    pub errno: i32,
    /// Whether Xen has written to the structure.
    pub changed: bool,
}
