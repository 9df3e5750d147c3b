//! Moving a clock's parameters from one counter to another: from Xen system time to a domain's TSC.
//!
//! Exact integer arithmetic: what is rounded is rounded once, and the bound covers it. This is the reference for the
//! driver's twin in C, `xen-frontend/kmod/radclock_compose.h`; a test holds both to the same integers. Where the
//! record comes from, and how stale it may be, is the driver's business.

use crate::clock::{Clock, Period};
use crate::time::{Counter, NANOS_PER_SEC};

/// How Xen turns this vCPU's TSC into system time: `struct vcpu_time_info` of Xen's `public/xen.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeInfo {
    /// The TSC at the record's instant.
    pub tsc_timestamp: u64,
    /// Xen system time there, ns.
    pub system_time: u64,
    /// Nanoseconds a count of the TSC shifted by `tsc_shift`, in units of 2⁻³². Never 0.
    pub tsc_to_system_mul: u32,
    /// How far the TSC's difference is shifted left (right if negative) before it is multiplied, −31 to 31.
    pub tsc_shift: i8,
}

impl TimeInfo {
    /// Whether the record can be used: Xen never leaves the multiplier at 0 nor shifts further than 31.
    pub const fn is_valid(&self) -> bool {
        self.tsc_to_system_mul != 0 && self.tsc_shift > -32 && self.tsc_shift < 32
    }

    /// Xen system time at a TSC value, ns, as Xen itself computes it, rounding included; also before the record's
    /// instant. Wraps around with the TSC. The record must be valid.
    pub const fn system_time(&self, tsc: Counter) -> u64 {
        let delta = tsc.since(Counter(self.tsc_timestamp)) as i128;
        let shifted = if self.tsc_shift < 0 { delta >> -self.tsc_shift } else { delta << self.tsc_shift };
        // 63 + 31 bits by 32 more: at most 126.
        self.system_time.wrapping_add(((shifted * self.tsc_to_system_mul as i128) >> 32) as u64)
    }
}

/// What a composed clock's bound covers besides the wire's own and the rounding: what is not known of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Added {
    /// Error of system time at the reference, ns: the spread between the vCPUs' records, and the step at a
    /// recalibration by Xen that may have gone unseen.
    pub nanos: u64,
    /// Relative error of the TSC's scale in units of 2⁻⁶⁴: what a recalibration changes in it.
    pub rate: u64,
}

/// Xen's scaling drops up to a nanosecond twice: the TSC's low bits when `tsc_shift` is negative, and the fraction of
/// the product.
const ROUNDING_NANOS: u64 = 2;

/// Moves `wire`, a clock over Xen system time in nanoseconds, to the TSC, with `tsc` as the reference reading.
///
/// `None` if the record is not valid, the period is none, or the result does not fit a page: a time before 1970 or in
/// the second half of the 2⁶⁴ seconds, a period outside of what a page can say, a bound of more than 584 years.
pub fn compose(wire: &Clock, info: &TimeInfo, tsc: Counter, added: Added) -> Option<Clock> {
    let wire_period = Period::new(wire.period.frac, wire.period.shift)?;
    if !info.is_valid() {
        return None;
    }

    let system_time = Counter(info.system_time(tsc));
    let elapsed = system_time.since(wire.counter);
    let time = wire.time.checked_add(wire_period.span(elapsed))?;
    // Both ends in the first half of the range, as in the twin, whose addition wraps around.
    if wire.time.secs() >> 63 != 0 || time.secs() >> 63 != 0 {
        return None;
    }
    let growth = wire.growth_over(elapsed.unsigned_abs());
    let max_error_nanos = u64::try_from(ceil_nanos(growth))
        .ok()?
        .checked_add(wire.max_error_nanos)?
        .checked_add(added.nanos)?
        .checked_add(ROUNDING_NANOS)?;

    // wire_period * mul * 2^(tsc_shift - 32), with 64 significant bits, rounded down.
    let mul = u128::from(info.tsc_to_system_mul);
    let product = u128::from(wire_period.frac) * mul;
    let bits = 128 - product.leading_zeros() as i32;
    let shift = u8::try_from(i32::from(wire_period.shift) + 96 - bits - i32::from(info.tsc_shift)).ok()?;
    let period = Period::new(if bits > 64 { product >> (bits - 64) } else { product << (64 - bits) } as u64, shift)?;

    // The wire's bound rounded up, one unit for the period's rounding, and what is added to the scale.
    let scaled = u128::from(wire.period_max_error) * mul;
    let scaled = if bits > 64 {
        (scaled >> (bits - 64)) + 1
    } else if scaled >> bits != 0 {
        return None;
    } else {
        scaled << (64 - bits)
    };
    let rate = u64::try_from(scaled + 1).ok()?;
    let largest = u128::from(period.frac) + u128::from(rate);
    let added_rate = u64::try_from(mul_shift_64(largest, added.rate)).ok()?.checked_add(1)?;

    Some(Clock { counter: tsc, time, period, period_max_error: rate.checked_add(added_rate)?, max_error_nanos })
}

/// A span in units of 2⁻⁶⁴ s in nanoseconds, rounded up.
const fn ceil_nanos(frac: u128) -> u128 {
    let (secs, rest) = (frac >> 64, frac as u64 as u128);
    secs * NANOS_PER_SEC as u128 + (rest * NANOS_PER_SEC as u128).div_ceil(1 << 64)
}

/// `a * b / 2^64`, rounded down, for an `a` of up to 65 bits.
const fn mul_shift_64(a: u128, b: u64) -> u128 {
    (a >> 64) * b as u128 + (((a as u64 as u128) * b as u128) >> 64)
}
