//! The driver in user space (`driver/driver.c`) as Rust, and what several targets have in common.

use arbitrary::Arbitrary;
use radclock::clock::{Clock, Period};
use radclock::compose::{Added, TimeInfo};
use radclock::page::{
    CounterId, EXTENSION_MAGIC, EXTENSION_VERSION, Extension, Flags, PAGE_SIZE, Page, VMCLOCK_MAGIC, VMCLOCK_VERSION,
    VmclockAbi,
};
use radclock::time::{Counter, Timestamp};
use zerocopy::FromBytes;

/// `struct radclock_time_info`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct CTimeInfo {
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
}

impl From<TimeInfo> for CTimeInfo {
    fn from(info: TimeInfo) -> CTimeInfo {
        let TimeInfo { tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift } = info;
        CTimeInfo { tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift }
    }
}

impl From<CTimeInfo> for TimeInfo {
    fn from(info: CTimeInfo) -> TimeInfo {
        let CTimeInfo { tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift } = info;
        TimeInfo { tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift }
    }
}

/// `struct radclock_params`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct CParams {
    counter_value: u64,
    time_sec: u64,
    time_frac_sec: u64,
    time_maxerror_nanosec: u64,
    counter_period_frac_sec: u64,
    counter_period_maxerror_rate_frac_sec: u64,
    counter_period_shift: u8,
}

#[repr(C)]
struct CAdded {
    nanos: u64,
    rate: u64,
}

unsafe extern "C" {
    fn fuzz_check_wire(page: &Page) -> i32;
    fn fuzz_compose(page: &Page, info: &CTimeInfo, tsc: u64, added: &CAdded, guest: &mut CParams) -> bool;
}

/// Whether the driver takes this page from a backend.
pub fn driver_takes(page: &Page) -> bool {
    // SAFETY: it reads the page, whose layout is the header's.
    unsafe { fuzz_check_wire(page) == 0 }
}

/// What the driver composes.
pub fn driver_composes(page: &Page, info: &TimeInfo, tsc: Counter, added: Added) -> Option<Clock> {
    let mut guest = CParams::default();
    let added = CAdded { nanos: added.nanos, rate: added.rate };
    // SAFETY: it reads and writes the structures, whose layout is the header's.
    unsafe { fuzz_compose(page, &(*info).into(), tsc.0, &added, &mut guest) }.then(|| Clock {
        counter: Counter(guest.counter_value),
        time: Timestamp::new(guest.time_sec, guest.time_frac_sec),
        period: Period { frac: guest.counter_period_frac_sec, shift: guest.counter_period_shift },
        period_max_error: guest.counter_period_maxerror_rate_frac_sec,
        max_error_nanos: guest.time_maxerror_nanosec,
    })
}

/// A page of which a part is as it should be.
#[derive(Arbitrary, Debug)]
pub struct AnyPage {
    right: u8,
    status: u8,
    period_off: i32,
    abi: [u8; 112],
    ext: [u8; 48],
}

impl AnyPage {
    /// The page, over the counter `id` where that is right.
    pub fn page(&self, id: CounterId) -> Page {
        let mut page = Page::zeroed();
        page.abi = VmclockAbi::read_from_bytes(&self.abi).expect("as many bytes");
        page.ext = Extension::read_from_bytes(&self.ext).expect("as many bytes");
        let is_right = |bit: u8| self.right & 1 << bit == 0;
        if is_right(0) {
            page.abi.magic.set(VMCLOCK_MAGIC);
            page.abi.version.set(VMCLOCK_VERSION);
            page.abi.size.set(PAGE_SIZE as u32);
        }
        if is_right(1) {
            page.ext.magic.set(EXTENSION_MAGIC);
            page.ext.version.set(EXTENSION_VERSION);
        }
        if is_right(2) {
            page.abi.counter_id = id.0;
            page.abi.time_type = 0;
        }
        if is_right(3) {
            let bounds = Flags::TIME_MAXERROR_VALID | Flags::PERIOD_MAXERROR_VALID;
            page.abi.flags.set(page.abi.flags.get() | bounds.bits());
            page.abi.seq_count.set(page.abi.seq_count.get() & !1);
        }
        if is_right(4) {
            page.abi.clock_status = 2 + self.status % 2;
        }
        if is_right(5) {
            let period = Period::from_secs_f64(1e-9 * (1.0 + f64::from(self.period_off) / 2e11)).expect("in range");
            page.abi.counter_period_shift = period.shift;
            page.abi.counter_period_frac_sec.set(period.frac);
            page.abi
                .counter_period_maxerror_rate_frac_sec
                .set(page.abi.counter_period_maxerror_rate_frac_sec.get() >> 30);
        }
        if is_right(6) {
            page.abi.time_sec.set(page.abi.time_sec.get() >> 32);
        }
        if is_right(7) {
            page.abi.time_maxerror_nanosec.set(page.abi.time_maxerror_nanosec.get() >> 34);
        }
        page
    }
}

/// A vCPU's record, likely one that Xen makes.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct AnyRecord {
    tsc_timestamp: u64,
    system_time: u64,
    mul: u32,
    shift: i8,
    /// It is none that Xen makes.
    pub is_wild: bool,
}

impl AnyRecord {
    /// The record.
    pub fn info(&self) -> TimeInfo {
        let AnyRecord { tsc_timestamp, system_time, mul, shift, is_wild } = *self;
        if is_wild {
            TimeInfo { tsc_timestamp, system_time, tsc_to_system_mul: mul, tsc_shift: shift }
        } else {
            TimeInfo { tsc_timestamp, system_time, tsc_to_system_mul: mul | 1 << 31, tsc_shift: shift % 4 }
        }
    }
}

/// Whether all that the wire's clock allows at an instant is allowed by the guest's.
pub fn covers(guest: &Clock, tsc: Counter, wire: &Clock, system_time: Counter) -> bool {
    let (Some((inner, inner_error)), Some((outer, outer_error))) =
        (wire.reading_at(system_time), guest.reading_at(tsc))
    else {
        // Where either has no reading, nobody reads.
        return true;
    };
    let off = outer.since(inner).as_frac().unsigned_abs();
    off.saturating_add(inner_error.as_frac().unsigned_abs()) <= outer_error.as_frac().unsigned_abs()
}
