//! The kernel's clocks: reading them beside the shared clock, and adjusting `CLOCK_REALTIME`.
//!
//! What to adjust is none of its business; that is [`super::steer`]'s.

use std::time::Duration;

use clock_steering::unix::{EMPTY_TIMEX, UnixClock};
use clock_steering::{Clock, LeapIndicator, TimeOffset};
use nix::time::{ClockId, clock_gettime};
use xen_radclock::{RadClock, ReadError, Span, Timestamp};

use super::steer::{Adjustment, Frequency, Kernel, Leap, Look, Quality, Shared, Unreadable};

const CLOCK: UnixClock = UnixClock::CLOCK_REALTIME;
/// The kernel's own largest bound, beyond which it calls its clock unsynchronised (`NTP_PHASE_LIMIT`).
const UNKNOWN: Duration = Duration::from_secs(16);
/// Of so many looks the one with the narrowest bracket counts.
const TRIES: usize = 8;

/// The kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No capability to.
    #[error("cannot adjust the system's clock: permission denied; run it as root, or with CAP_SYS_TIME")]
    Permission,
    /// Something else.
    #[error("cannot adjust the system's clock: {0}")]
    Other(std::io::Error),
}

impl From<clock_steering::unix::Error> for KernelError {
    fn from(error: clock_steering::unix::Error) -> Self {
        use clock_steering::unix::Error;
        match error {
            Error::NoPermission | Error::NoAccess => KernelError::Permission,
            other => KernelError::Other(other.into()),
        }
    }
}

/// Switches off the kernel's own loops, so that the clock does what it is told.
pub fn take() -> Result<(), KernelError> {
    Ok(CLOCK.disable_kernel_ntp_algorithm()?)
}

/// What the kernel says of its adjustments.
pub fn state() -> Result<Kernel, KernelError> {
    let mut timex = EMPTY_TIMEX;
    adjtimex(&mut timex)?;
    let loops = libc::STA_PLL | libc::STA_FLL | libc::STA_PPSTIME | libc::STA_PPSFREQ;
    Ok(Kernel {
        frequency: Frequency(timex.freq),
        tick: timex.tick,
        loops: timex.status & loops != 0,
        tai_offset: timex.tai,
    })
}

/// Looks at all clocks.
pub fn look(clock: &RadClock) -> Result<Look, KernelError> {
    let kernel = state()?;
    let tries = (0..TRIES).map(|_| try_look(clock, kernel));
    let narrowest = tries.flatten().min_by_key(|look| (look.shared.is_err(), look.uncertainty));
    narrowest.ok_or_else(|| KernelError::Other(std::io::Error::other("its clocks run backwards")))
}

/// Nothing if a clock was set meanwhile.
fn try_look(clock: &RadClock, kernel: Kernel) -> Option<Look> {
    let (raw_before, real_before) = (nanos(ClockId::CLOCK_MONOTONIC_RAW), nanos(ClockId::CLOCK_REALTIME));
    let reading = clock.now();
    let (real_after, raw_after) = (nanos(ClockId::CLOCK_REALTIME), nanos(ClockId::CLOCK_MONOTONIC_RAW));
    let width = (raw_after - raw_before).max(real_after - real_before);
    if raw_after < raw_before || real_after < real_before {
        return None;
    }
    let page = clock.snapshot().ok();
    let disruption_marker = match &reading {
        Ok(reading) => Some(reading.sample.disruption_marker),
        Err(_) => page.as_ref().map(|page| page.abi.disruption_marker.get()),
    };
    let shared = match reading {
        // The kernel says it by repeating a second.
        Ok(reading) if reading.leap_second => Err(Unreadable::Leap),
        Ok(reading) => Ok(Shared {
            time: reading.time,
            max_error: reading.max_error,
            tai_offset: reading.tai_offset,
            leap: page.map_or(Leap::None, |page| leap(page.abi.leap_indicator, reading.time)),
        }),
        Err(ReadError::Leap) => Err(Unreadable::Leap),
        Err(_) => Err(Unreadable::Other),
    };
    Some(Look {
        raw: raw_before + (raw_after - raw_before) / 2,
        asleep: asleep(),
        real: Timestamp::from_unix(0, (real_before + (real_after - real_before) / 2).cast_unsigned()),
        uncertainty: Span::from_nanos(width / 2 + 1),
        disruption_marker,
        shared,
        kernel,
    })
}

/// How long this machine slept since it booted, ns, at least and at most.
fn asleep() -> (i64, i64) {
    let before = nanos(ClockId::CLOCK_MONOTONIC);
    let boot = nanos(ClockId::CLOCK_BOOTTIME);
    (boot - nanos(ClockId::CLOCK_MONOTONIC), boot - before)
}

fn nanos(id: ClockId) -> i64 {
    let time = clock_gettime(id).expect("every Linux has these clocks");
    time.tv_sec() * 1_000_000_000 + time.tv_nsec()
}

/// The kernel's leap seconds come at the end of the day, a page's at the end of the month.
fn leap(indicator: u8, time: Timestamp) -> Leap {
    let second = i64::try_from(time.secs()).ok().and_then(|secs| jiff::Timestamp::from_second(secs).ok());
    let date = second.map(|second| jiff::tz::TimeZone::UTC.to_datetime(second).date());
    match indicator {
        _ if date.is_none_or(|date| date.day() != date.days_in_month()) => Leap::None,
        1 => Leap::Insert,
        2 => Leap::Delete,
        _ => Leap::None,
    }
}

/// Carries out an adjustment. A step only if nothing disrupted the clock since it was worked out.
pub fn apply(adjustment: &Adjustment, look: &Look, clock: &RadClock) -> Result<(), KernelError> {
    if let Some(step) = adjustment.step
        && !clock.sample().is_ok_and(|sample| Some(sample.disruption_marker) != look.disruption_marker)
    {
        // Rounded down, with the rest in nanoseconds, as the kernel wants it.
        let nanos = step.floor_nanos();
        let (seconds, nanos) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000) as u32);
        CLOCK.step_clock(TimeOffset { seconds, nanos })?;
        forget_leap_second()?;
    }
    set_frequency(adjustment.frequency)?;
    if let Some(offset) = adjustment.tai_offset {
        CLOCK.set_tai(offset)?;
    }
    match adjustment.quality {
        Quality::Synchronized { max_error, est_error, leap } => {
            CLOCK.error_estimate_update(micros(est_error), micros(max_error))?;
            CLOCK.set_leap_seconds(match leap {
                Leap::None => LeapIndicator::NoWarning,
                Leap::Insert => LeapIndicator::Leap61,
                Leap::Delete => LeapIndicator::Leap59,
            })?;
        }
        Quality::Unsynchronized => unsynchronised()?,
        Quality::Unknown => {
            CLOCK.error_estimate_update(UNKNOWN, UNKNOWN)?;
            unsynchronised()?;
        }
    }
    Ok(())
}

/// Leaves the clock to itself, at the right rate as far as is known; nobody vouches for it.
pub fn release(frequency: Frequency) -> Result<(), KernelError> {
    set_frequency(frequency)?;
    unsynchronised()
}

fn set_frequency(frequency: Frequency) -> Result<(), KernelError> {
    CLOCK.set_frequency(frequency.relative() * 1e6)?;
    Ok(())
}

/// A leap second that the kernel was told of comes nevertheless.
fn unsynchronised() -> Result<(), KernelError> {
    let status = status()?;
    set_status(status | libc::STA_UNSYNC)
}

/// A step takes from the kernel when the leap second comes that it was told of, but not that one is to come (Linux, `ntp_clear()`): it
/// would wait for it for ever. It begins anew where its phase-locked loop is switched off.
fn forget_leap_second() -> Result<(), KernelError> {
    let status = status()? & !(libc::STA_INS | libc::STA_DEL);
    set_status(status | libc::STA_PLL)?;
    set_status(status & !libc::STA_PLL)
}

fn status() -> Result<i32, KernelError> {
    let mut timex = EMPTY_TIMEX;
    adjtimex(&mut timex)?;
    Ok(timex.status)
}

fn set_status(status: i32) -> Result<(), KernelError> {
    adjtimex(&mut libc::timex { modes: libc::MOD_STATUS, status, ..EMPTY_TIMEX })
}

/// What the crate has no function for.
fn adjtimex(timex: &mut libc::timex) -> Result<(), KernelError> {
    // SAFETY: the structure lives as long as the call.
    if unsafe { libc::adjtimex(timex) } != -1 {
        return Ok(());
    }
    match std::io::Error::last_os_error() {
        error if error.kind() == std::io::ErrorKind::PermissionDenied => Err(KernelError::Permission),
        error => Err(KernelError::Other(error)),
    }
}

/// Rounded up to what the kernel counts in.
fn micros(span: Span) -> Duration {
    Duration::from_micros((span.ceil_nanos().max(0).cast_unsigned()).div_ceil(1000)).min(UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leap_second_is_of_the_last_day_of_the_month_only() {
        let time = |text: &str| Timestamp::from_unix(text.parse::<jiff::Timestamp>().unwrap().as_second() as u64, 0);
        assert_eq!(leap(1, time("2026-12-31T00:00:00Z")), Leap::Insert);
        assert_eq!(leap(1, time("2026-12-31T23:59:59Z")), Leap::Insert);
        assert_eq!(leap(1, time("2026-12-30T23:59:59Z")), Leap::None);
        assert_eq!(leap(2, time("2028-02-29T12:00:00Z")), Leap::Delete);
        assert_eq!(leap(2, time("2028-02-28T12:00:00Z")), Leap::None);
        assert_eq!(leap(4, time("2026-12-31T12:00:00Z")), Leap::None);
    }

    #[test]
    fn what_the_kernel_says_can_be_read_by_anybody() {
        let kernel = state().unwrap();
        assert!((kernel.tick - super::super::steer::NOMINAL_TICK).abs() <= 1000, "{kernel:?}");
    }

    #[test]
    fn bounds_are_rounded_up_and_end_where_the_kernels_do() {
        assert_eq!(micros(Span::from_nanos(1001)), Duration::from_micros(2));
        assert_eq!(micros(Span::MAX), UNKNOWN);
    }
}
