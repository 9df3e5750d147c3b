//! The shared page: Linux's `struct vmclock_abi` version 1 and, behind it, this project's own extension.
//!
//! The same layout stands on both sides. On the wire (the page that Dom0 grants) the counter is Xen system time in
//! nanoseconds, [`CounterId::XEN_SYSTEM_TIME`]; in a guest's `/dev/vmclock0` it is the TSC, [`CounterId::X86_TSC`].
//! All fields are little-endian. Source: Linux, `include/uapi/linux/vmclock-abi.h`; the extension's twin in C is
//! `xen-frontend/kmod/radclockif.h`, and a test holds both against each other.

use core::mem::{offset_of, size_of};

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::clock::{Clock, Period, Status};
use crate::leap::month_around;
use crate::time::{Counter, Timestamp};

/// "VCLK", the first four bytes of a vmclock page.
pub const VMCLOCK_MAGIC: u32 = 0x4b4c_4356;
/// The version of the structure that this crate reads and writes.
pub const VMCLOCK_VERSION: u16 = 1;
/// "RCLK", the first four bytes of the extension.
pub const EXTENSION_MAGIC: u32 = 0x4b4c_4352;
/// The version of the extension that this crate reads and writes.
pub const EXTENSION_VERSION: u16 = 1;
/// Where the extension stands in the page.
pub const EXTENSION_OFFSET: usize = 0x100;
/// The size of the page.
pub const PAGE_SIZE: usize = 4096;

/// Which counter a page speaks of (vmclock's `counter_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CounterId(pub u8);

impl CounterId {
    /// The TSC that `rdtsc` returns in this domain.
    pub const X86_TSC: CounterId = CounterId(1);
    /// Xen system time in nanoseconds. A private value outside the registered ones.
    pub const XEN_SYSTEM_TIME: CounterId = CounterId(0xe0);
    /// Linux's `CLOCK_MONOTONIC_RAW` in nanoseconds, on a machine without Xen and without a stable TSC. Private.
    pub const MONOTONIC_RAW: CounterId = CounterId(0xe1);
    /// No counter.
    pub const INVALID: CounterId = CounterId(0xff);
}

/// `leap_indicator`: a leap second is inserted at the end of this month.
pub const LEAP_PRE_POS: u8 = 1;
/// `leap_indicator`: a second is left out at the end of this month.
pub const LEAP_PRE_NEG: u8 = 2;
/// `leap_indicator`: an inserted leap second is in progress.
pub const LEAP_POS: u8 = 3;
/// `leap_indicator`: a leap second was inserted at the end of last month.
pub const LEAP_POST_POS: u8 = 4;
/// `leap_indicator`: a second was left out at the end of last month.
pub const LEAP_POST_NEG: u8 = 5;

/// `time_type`: seconds since 1970 in UTC.
pub const TIME_UTC: u8 = 0;
/// `time_type`: seconds since 1970 in TAI.
pub const TIME_TAI: u8 = 1;

bitflags! {
    /// vmclock's `flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Flags: u64 {
        /// `tai_offset_sec` is valid.
        const TAI_OFFSET_VALID = 1 << 0;
        /// A disruption is to be expected within about a day.
        const DISRUPTION_SOON = 1 << 1;
        /// A disruption is to be expected within about an hour.
        const DISRUPTION_IMMINENT = 1 << 2;
        /// `counter_period_esterror_rate_frac_sec` is valid.
        const PERIOD_ESTERROR_VALID = 1 << 3;
        /// `counter_period_maxerror_rate_frac_sec` is valid.
        const PERIOD_MAXERROR_VALID = 1 << 4;
        /// `time_esterror_nanosec` is valid.
        const TIME_ESTERROR_VALID = 1 << 5;
        /// `time_maxerror_nanosec` is valid.
        const TIME_MAXERROR_VALID = 1 << 6;
        /// Time read by these pages never runs backwards.
        const TIME_MONOTONIC = 1 << 7;
        /// `vm_generation_counter` is kept.
        const VM_GEN_COUNTER_PRESENT = 1 << 8;
    }
}

/// `struct vmclock_abi`, version 1. Fields from `seq_count` on are protected by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmclockAbi {
    /// [`VMCLOCK_MAGIC`].
    pub magic: U32,
    /// Size of the region that holds the structure, bytes ([`PAGE_SIZE`]).
    pub size: U32,
    /// [`VMCLOCK_VERSION`].
    pub version: U16,
    /// A [`CounterId`].
    pub counter_id: u8,
    /// [`TIME_UTC`] or [`TIME_TAI`]; others are not read.
    pub time_type: u8,
    /// Odd while an update is in progress.
    pub seq_count: U32,
    /// Changes whenever the counter was disrupted (migration, restore): discard what was learnt of it.
    pub disruption_marker: U64,
    /// [`Flags`].
    pub flags: U64,
    /// Zero.
    pub pad: [u8; 2],
    /// A [`Status`].
    pub clock_status: u8,
    /// A hint only: the time itself never is smeared.
    pub leap_second_smearing_hint: u8,
    /// TAI − UTC at the reference instant, seconds, two's complement.
    pub tai_offset_sec: U16,
    /// vmclock's `VMCLOCK_LEAP_*`: [`LEAP_PRE_POS`] and the like, 0 for none.
    pub leap_indicator: u8,
    /// Shift of the period and of its errors.
    pub counter_period_shift: u8,
    /// The counter at the reference instant.
    pub counter_value: U64,
    /// The counter's period, 2^-(64 + shift) s.
    pub counter_period_frac_sec: U64,
    /// Estimated error of the period, same unit.
    pub counter_period_esterror_rate_frac_sec: U64,
    /// Bound on the error of the period, same unit.
    pub counter_period_maxerror_rate_frac_sec: U64,
    /// The time at the reference instant, s.
    pub time_sec: U64,
    /// Its fraction, 2⁻⁶⁴ s.
    pub time_frac_sec: U64,
    /// Estimated error of the time, ns.
    pub time_esterror_nanosec: U64,
    /// Bound on the error of the time, ns.
    pub time_maxerror_nanosec: U64,
    /// Changes when the guest was loaded from a snapshot.
    pub vm_generation_counter: U64,
}

/// What this project adds behind [`VmclockAbi`], at [`EXTENSION_OFFSET`], protected by the same `seq_count`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Extension {
    /// [`EXTENSION_MAGIC`].
    pub magic: U32,
    /// [`EXTENSION_VERSION`].
    pub version: U16,
    /// Zero.
    pub pad: U16,
    /// 16 random bytes, new at each boot of the host: two pages with the same one have the same counter behind them.
    pub host_id: [u8; 16],
    /// Grows by one with each update of the parameters by the daemon.
    pub generation: U64,
    /// How long after the reference instant the parameters count as synchronised, ns. After that the clock is
    /// [`Status::Freerunning`], whatever `clock_status` says, and a reader lets its bound grow by 2⁻²⁰ (1 ppm) faster; unless
    /// this is 0, for then the bound does so by itself.
    pub valid_nanos: U64,
    /// The first second of the month after the leap second that `leap_indicator` speaks of, seconds since 1970 in UTC;
    /// 0 for none. So that who moves the reference instant on need not move the indicator on with it.
    pub leap_sec: U64,
}

/// A whole page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Page {
    /// vmclock's part.
    pub abi: VmclockAbi,
    pad: [u8; EXTENSION_OFFSET - size_of::<VmclockAbi>()],
    /// This project's part.
    pub ext: Extension,
    rest: [u8; PAGE_SIZE - EXTENSION_OFFSET - size_of::<Extension>()],
}

const _: () = {
    assert!(size_of::<VmclockAbi>() == 112);
    assert!(offset_of!(VmclockAbi, counter_id) == 10);
    assert!(offset_of!(VmclockAbi, seq_count) == 12);
    assert!(offset_of!(VmclockAbi, disruption_marker) == 16);
    assert!(offset_of!(VmclockAbi, flags) == 24);
    assert!(offset_of!(VmclockAbi, clock_status) == 34);
    assert!(offset_of!(VmclockAbi, tai_offset_sec) == 36);
    assert!(offset_of!(VmclockAbi, counter_period_shift) == 39);
    assert!(offset_of!(VmclockAbi, counter_value) == 40);
    assert!(offset_of!(VmclockAbi, time_sec) == 72);
    assert!(offset_of!(VmclockAbi, vm_generation_counter) == 104);
    assert!(size_of::<Extension>() == 48);
    assert!(offset_of!(Extension, host_id) == 8);
    assert!(offset_of!(Extension, generation) == 24);
    assert!(offset_of!(Extension, valid_nanos) == 32);
    assert!(offset_of!(Extension, leap_sec) == 40);
    assert!(offset_of!(Page, ext) == EXTENSION_OFFSET);
    assert!(size_of::<Page>() == PAGE_SIZE);
};

/// What a writer puts into a page, in this crate's types. `seq_count` is the seqcount's business, not the content's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Whose readings the parameters turn into time.
    pub counter_id: CounterId,
    /// The clock's state.
    pub status: Status,
    /// The parameters; without them (not yet synchronised) the page carries zeroes and a status that forbids reading.
    pub clock: Option<Clock>,
    /// See [`VmclockAbi::disruption_marker`].
    pub disruption_marker: u64,
    /// Warnings of a coming disruption: only [`Flags::DISRUPTION_SOON`] and [`Flags::DISRUPTION_IMMINENT`] count.
    pub disruption: Flags,
    /// TAI − UTC in seconds, if known.
    pub tai_offset: Option<i16>,
    /// vmclock's `VMCLOCK_LEAP_*`: [`LEAP_PRE_POS`] and the like, 0 for none.
    pub leap_indicator: u8,
    /// See [`Extension::host_id`].
    pub host_id: [u8; 16],
    /// See [`Extension::generation`].
    pub generation: u64,
    /// See [`Extension::valid_nanos`].
    pub valid_nanos: u64,
}

/// Why a page cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// The first bytes are not "VCLK".
    #[error("not a vmclock page (magic {0:#010x})")]
    Magic(u32),
    /// A version of the structure that is not known here.
    #[error("vmclock version {0} is not supported, only version 1")]
    Version(u16),
    /// The structure is cut off before the fields that a reader needs.
    #[error("the vmclock structure is cut off: {0} bytes")]
    Size(u32),
    /// The page counts in a counter that cannot be read here.
    #[error("counter {0:#04x} cannot be read here")]
    CounterId(u8),
    /// Neither UTC, nor TAI with a known offset.
    #[error("time type {0} is not supported")]
    TimeType(u8),
    /// A period of zero, or a shift out of range.
    #[error("impossible counter period")]
    Period,
    /// A time in TAI from which its offset to UTC cannot be subtracted.
    #[error("impossible time")]
    Time,
    /// The page claims no bound on its error, so a time read from it would have none.
    #[error("the page gives no bound on its error")]
    NoBound,
}

impl Page {
    /// A page of zeroes: to everybody who reads it, no clock at all.
    pub const fn zeroed() -> Page {
        zerocopy::transmute!([0u8; PAGE_SIZE])
    }

    /// Lays out `content`, with a `seq_count` of zero.
    pub fn new(content: &Content) -> Page {
        let mut page = Page::zeroed();
        let mut flags = content.disruption & (Flags::DISRUPTION_SOON | Flags::DISRUPTION_IMMINENT);
        let abi = &mut page.abi;
        abi.magic.set(VMCLOCK_MAGIC);
        abi.size.set(PAGE_SIZE as u32);
        abi.version.set(VMCLOCK_VERSION);
        abi.counter_id = content.counter_id.0;
        abi.time_type = TIME_UTC;
        abi.disruption_marker.set(content.disruption_marker);
        abi.clock_status = content.status as u8;
        abi.leap_indicator = content.leap_indicator;
        if let Some(offset) = content.tai_offset {
            flags |= Flags::TAI_OFFSET_VALID;
            abi.tai_offset_sec.set(offset as u16);
        }
        if let Some(clock) = &content.clock {
            flags |= Flags::PERIOD_MAXERROR_VALID | Flags::TIME_MAXERROR_VALID;
            abi.counter_period_shift = clock.period.shift;
            abi.counter_value.set(clock.counter.0);
            abi.counter_period_frac_sec.set(clock.period.frac);
            abi.counter_period_maxerror_rate_frac_sec.set(clock.period_max_error);
            abi.time_sec.set(clock.time.secs());
            abi.time_frac_sec.set(clock.time.frac());
            abi.time_maxerror_nanosec.set(clock.max_error_nanos);
        } else if content.status.is_readable() {
            abi.clock_status = Status::Initializing as u8;
        }
        abi.flags.set(flags.bits());
        page.ext = Extension {
            magic: EXTENSION_MAGIC.into(),
            version: EXTENSION_VERSION.into(),
            pad: 0.into(),
            host_id: content.host_id,
            generation: content.generation.into(),
            valid_nanos: content.valid_nanos.into(),
            leap_sec: page.abi.leap_month().unwrap_or(0).into(),
        };
        page
    }

    /// The extension, if this page has one that is known here. QEMU's and Firecracker's pages have none.
    pub fn extension(&self) -> Option<&Extension> {
        self.ext.is_known(self.abi.size.get()).then_some(&self.ext)
    }
}

impl Extension {
    /// Whether this is an extension of the version known here, in a page of so many bytes.
    pub(crate) fn is_known(&self, size: u32) -> bool {
        size as usize >= EXTENSION_OFFSET + size_of::<Extension>()
            && self.magic.get() == EXTENSION_MAGIC
            && self.version.get() == EXTENSION_VERSION
    }
}

impl VmclockAbi {
    /// Checks the layout: magic, version and size.
    pub fn check_layout(&self) -> Result<(), PageError> {
        if self.magic.get() != VMCLOCK_MAGIC {
            return Err(PageError::Magic(self.magic.get()));
        }
        if self.version.get() != VMCLOCK_VERSION {
            return Err(PageError::Version(self.version.get()));
        }
        // The first kernels' structure ends before this field, which no reader needs.
        if (self.size.get() as usize) < offset_of!(VmclockAbi, vm_generation_counter) {
            return Err(PageError::Size(self.size.get()));
        }
        Ok(())
    }

    /// The clock's state as the page says it.
    pub fn status(&self) -> Status {
        Status::from_abi(self.clock_status)
    }

    /// The flags, unknown bits dropped.
    pub fn flags(&self) -> Flags {
        Flags::from_bits_truncate(self.flags.get())
    }

    /// TAI − UTC in seconds, if the page knows it.
    pub fn tai_offset(&self) -> Option<i16> {
        self.flags().contains(Flags::TAI_OFFSET_VALID).then(|| self.tai_offset_sec.get() as i16)
    }

    /// The first second of the month after the leap second that the indicator speaks of, by the reference instant.
    pub(crate) fn leap_month(&self) -> Option<u64> {
        let (first, next) = month_around(self.utc_secs().ok()?);
        match self.leap_indicator {
            LEAP_PRE_POS | LEAP_PRE_NEG => Some(next),
            // Some call 23:59:60 by the number of the second after it.
            LEAP_POS if self.utc_secs() == Ok(first) => Some(first),
            LEAP_POS => Some(next),
            LEAP_POST_POS | LEAP_POST_NEG => Some(first),
            _ => None,
        }
    }

    fn utc_secs(&self) -> Result<u64, PageError> {
        match (self.time_type, self.tai_offset()) {
            (TIME_UTC, _) => Ok(self.time_sec.get()),
            (TIME_TAI, Some(offset)) => {
                self.time_sec.get().checked_add_signed(-i64::from(offset)).ok_or(PageError::Time)
            }
            (other, _) => Err(PageError::TimeType(other)),
        }
    }

    /// The parameters as they stand, with the time in UTC whichever scale the page uses.
    pub fn clock(&self) -> Result<Clock, PageError> {
        let flags = self.flags();
        if !flags.contains(Flags::TIME_MAXERROR_VALID | Flags::PERIOD_MAXERROR_VALID) {
            return Err(PageError::NoBound);
        }
        let period =
            Period::new(self.counter_period_frac_sec.get(), self.counter_period_shift).ok_or(PageError::Period)?;
        Ok(Clock {
            counter: Counter(self.counter_value.get()),
            time: Timestamp::new(self.utc_secs()?, self.time_frac_sec.get()),
            period,
            period_max_error: self.counter_period_maxerror_rate_frac_sec.get(),
            max_error_nanos: self.time_maxerror_nanosec.get(),
        })
    }
}
