//! All counters of the host at one instant: the platform operation `XENPF_get_counters` of a Xen with the patches of
//! `hypervisor-patch/`. The patched header `xen/include/public/platform.h` says what its fields mean in full.

use std::io;
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::hypercall::Hypercalls;

/// `__HYPERVISOR_platform_op`.
pub const PLATFORM_OP: u32 = 7;
/// `XENPF_INTERFACE_VERSION`.
pub const INTERFACE_VERSION: u32 = 0x0300_0001;
/// `XENPF_get_counters`.
pub const GET_COUNTERS: u32 = 0x5243;

/// A timer of the platform, with the operation's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Timer {
    /// The one from which Xen derives its system time, widened to 64 bits.
    Platform = 0,
    /// The HPET's main counter.
    Hpet = 1,
    /// The ACPI PM timer.
    AcpiPm = 2,
}

/// `struct xenpf_counters`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct XenpfCounters {
    /// In: a [`Timer`].
    pub timer: u32,
    /// In: zero.
    pub flags: u32,
    /// The host's TSC before the timer was read.
    pub tsc: u64,
    /// The timer's count.
    pub count: u64,
    /// The host's TSC after the timer was read.
    pub tsc_end: u64,
    /// Xen's system time at `tsc`, ns.
    pub system_time: u64,
    /// The timer's nominal rate, Hz.
    pub frequency: u64,
    /// Significant bits of `count`.
    pub width: u32,
    /// The physical CPU on which all of it was read.
    pub cpu: u32,
    /// The timer as `clocksource=` calls it, padded with zeros.
    pub name: [u8; 16],
}

impl XenpfCounters {
    /// The timer's name.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.name).trim_end_matches('\0').to_owned()
    }
}

/// `struct xen_platform_op` with [`XenpfCounters`] in its union.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct XenPlatformOp {
    /// `XENPF_*`.
    pub cmd: u32,
    /// [`INTERFACE_VERSION`].
    pub interface_version: u32,
    /// The operation's part of the union.
    pub counters: XenpfCounters,
    /// The rest of the union.
    pub rest: [u8; 56],
}

/// Access to all counters.
#[derive(Debug)]
pub struct HostCounters {
    hypercalls: Arc<Hypercalls>,
}

impl HostCounters {
    /// Samples once to see that Xen lets us.
    pub(super) fn new(hypercalls: Arc<Hypercalls>) -> io::Result<HostCounters> {
        let counters = HostCounters { hypercalls };
        counters.sample(Timer::Platform)?;
        Ok(counters)
    }

    /// The TSC, Xen's system time and `timer` at one instant. Costs a system call, a hypercall and a reading of the
    /// timer, which for an HPET is about a microsecond.
    ///
    /// # Errors
    ///
    /// `ENODEV`: the host has no such timer, or Xen was told not to use it. No other is expected once there was a
    /// sample of [`Timer::Platform`].
    pub fn sample(&self, timer: Timer) -> io::Result<XenpfCounters> {
        let mut operation = XenPlatformOp {
            cmd: GET_COUNTERS,
            interface_version: INTERFACE_VERSION,
            counters: XenpfCounters { timer: timer as u32, ..XenpfCounters::default() },
            rest: [0; 56],
        };
        self.hypercalls.call(PLATFORM_OP, &mut operation, |address| [address, 0, 0, 0, 0])?;
        Ok(operation.counters)
    }
}
