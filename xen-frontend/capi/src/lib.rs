//! The guest time API for C: [`xen_radclock`] behind plain functions, error codes and structures.
//!
//! `include/radclock.h` is made from this file; a test holds it current
//! (`RADCLOCK_WRITE_HEADER=1 cargo test -p radclock-capi` writes it anew).

#![allow(non_camel_case_types, reason = "C's names")]

use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;

use libc::timespec;
use xen_radclock::{
    Disruption, LeapSecond, OpenError, Parameters, RadClock, ReadError, Reading, Sample, Span, Status, Timestamp,
};

/// What a function returns: RADCLOCK_OK, or why it did nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum radclock_error {
    /// Done.
    RADCLOCK_OK = 0,
    /// A pointer that must not be NULL is NULL.
    RADCLOCK_ERR_ARGUMENT = 1,
    /// No clock: neither the guest's driver (/dev/vmclock0) nor radclockd's page (/run/radclock/vmclock0) is there.
    RADCLOCK_ERR_NOT_FOUND = 2,
    /// The device or file cannot be opened or mapped; errno says why.
    RADCLOCK_ERR_IO = 3,
    /// The page has a layout or a counter that is not known, or gives no bound on its error.
    RADCLOCK_ERR_PAGE = 4,
    /// The page was being written all the while (some 100 us). Try again.
    RADCLOCK_ERR_BUSY = 5,
    /// The clock is not synchronised yet.
    RADCLOCK_ERR_NOT_SYNCHRONIZED = 6,
    /// The clock is unreliable now: the counter was disrupted or the host is gone. It may come back.
    RADCLOCK_ERR_UNRELIABLE = 7,
    /// The counter was disrupted (migration, restore) since the sample was taken.
    RADCLOCK_ERR_DISRUPTED = 8,
    /// The counter was reset and the page does not know yet.
    RADCLOCK_ERR_BACKWARDS = 9,
    /// A leap second begins right now, and which second it is cannot be told.
    RADCLOCK_ERR_LEAP = 10,
    /// The page's parameters give a time or a bound out of range.
    RADCLOCK_ERR_RANGE = 11,
}
use radclock_error::*;

/// The state of a clock that can be read.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum radclock_status {
    /// Right to within the bound.
    RADCLOCK_SYNCHRONIZED = 2,
    /// Right to within a bound that goes on growing: the parameters are older than their validity.
    RADCLOCK_FREERUNNING = 3,
}

/// What the host warns of.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum radclock_warning {
    /// Nothing. A disruption may come without a warning.
    RADCLOCK_NO_WARNING = 0,
    /// The counter will be disrupted, by a migration say, within about a day.
    RADCLOCK_DISRUPTION_SOON = 1,
    /// The same within about an hour.
    RADCLOCK_DISRUPTION_IMMINENT = 2,
}

/// An open clock.
pub struct radclock(RadClock);

/// A raw counter value, to be turned into a time later.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct radclock_sample {
    /// The counter's value.
    pub counter: u64,
    /// Values with different markers are of different counters (before and after a migration, say) and must not be
    /// subtracted.
    pub disruption_marker: u64,
}

/// A time, with what is known of it. The true time lies between earliest and latest.
#[repr(C)]
pub struct radclock_reading {
    /// UTC, rounded down to a nanosecond.
    pub time: timespec,
    /// The earliest that the true time can be, rounded down.
    pub earliest: timespec,
    /// The latest that the true time can be, rounded up.
    pub latest: timespec,
    /// Bound on the error of time in either direction, ns, rounded up.
    pub max_error_ns: u64,
    /// RADCLOCK_SYNCHRONIZED or RADCLOCK_FREERUNNING.
    pub status: radclock_status,
    /// TAI - UTC, s; 0 unless tai_offset_known.
    pub tai_offset: i32,
    /// Whether the clock knows TAI - UTC.
    pub tai_offset_known: bool,
    /// In an inserted second, 23:59:60: time has the number of the second before it once more.
    pub leap_second: bool,
    /// The counter value that was turned into time.
    pub sample: radclock_sample,
}

/// The clock's parameters: at counter value N, from the reference instant on, the time is
///   time_sec + time_frac / 2^64 + (N - counter) * period_frac / 2^(64 + period_shift) s
/// wrong by at most
///   max_error_ns / 10^9 + (N - counter) * period_max_error / 2^(64 + period_shift) s.
/// From leap_at on, if that is not 0, the time is leap_adjustment seconds more than so.
#[repr(C)]
pub struct radclock_parameters {
    /// The counter at the reference instant.
    pub counter: u64,
    /// The time there, UTC, s.
    pub time_sec: u64,
    /// Its fraction, 2^-64 s.
    pub time_frac: u64,
    /// Bound on its error, ns.
    pub max_error_ns: u64,
    /// The counter's period, 2^-(64 + period_shift) s.
    pub period_frac: u64,
    /// Bound on the error of the period, same unit: that of a clock that nobody keeps, so that it holds at any age.
    pub period_max_error: u64,
    /// The first second by the formula that is counted otherwise because of a leap second to come, or 0: none is known.
    pub leap_at: u64,
    /// -1 after a second that is inserted, 1 after one that is left out. What is inserted has the number of the second before it.
    pub leap_adjustment: i32,
    /// See period_frac; at most 63.
    pub period_shift: u8,
    /// See radclock_sample.
    pub disruption_marker: u64,
}

/// Opens the clock at path, or the first of /dev/vmclock0 and /run/radclock/vmclock0 that exists if path is NULL.
///
/// The clock need not be synchronised. On success *clock is to be closed with radclock_close(); otherwise it is set
/// to NULL.
///
/// Errors: RADCLOCK_ERR_ARGUMENT, _NOT_FOUND, _IO (see errno), _PAGE, _BUSY.
///
/// # Safety
///
/// `path` is NULL or a string; `clock` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn radclock_open(path: *const c_char, clock: *mut *mut radclock) -> radclock_error {
    // SAFETY: as the caller vouches.
    let Some(clock) = (unsafe { clock.as_mut() }) else {
        return RADCLOCK_ERR_ARGUMENT;
    };
    *clock = std::ptr::null_mut();
    let opened = if path.is_null() {
        RadClock::open()
    } else {
        // SAFETY: as the caller vouches.
        RadClock::open_path(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()))
    };
    match opened {
        Ok(opened) => {
            *clock = Box::into_raw(Box::new(radclock(opened)));
            RADCLOCK_OK
        }
        Err(OpenError::NotFound) => RADCLOCK_ERR_NOT_FOUND,
        Err(OpenError::Io { source, .. }) => {
            // An error without a number is the page's being too short.
            // SAFETY: the address of this thread's errno may be written.
            unsafe { *libc::__errno_location() = source.raw_os_error().unwrap_or(libc::EINVAL) };
            RADCLOCK_ERR_IO
        }
        Err(OpenError::Busy { .. }) => RADCLOCK_ERR_BUSY,
        Err(_) => RADCLOCK_ERR_PAGE,
    }
}

/// Closes a clock. NULL is allowed.
///
/// # Safety
///
/// `clock` is NULL or came from radclock_open() and is not used again, by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn radclock_close(clock: *mut radclock) {
    if !clock.is_null() {
        // SAFETY: as the caller vouches.
        drop(unsafe { Box::from_raw(clock) });
    }
}

/// The time now, with the bound on its error. No system call, lock or allocation.
///
/// Errors: all but RADCLOCK_ERR_NOT_FOUND, _IO and _DISRUPTED. On an error *reading is left alone. All but _ARGUMENT
/// may pass, so a program that lives long tries again.
///
/// # Safety
///
/// `clock` is NULL or an open clock; `reading` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn radclock_now(clock: *const radclock, reading: *mut radclock_reading) -> radclock_error {
    // SAFETY: as the caller vouches.
    unsafe { call(clock, reading, |clock| clock.now().map(|reading| reading_to_c(&reading))) }
}

/// The raw counter now, cheaper than the time. No system call, lock or allocation.
///
/// Errors: RADCLOCK_ERR_ARGUMENT, _PAGE, _BUSY. On an error *sample is left alone.
///
/// # Safety
///
/// `clock` is NULL or an open clock; `sample` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn radclock_sample_now(clock: *const radclock, sample: *mut radclock_sample) -> radclock_error {
    // SAFETY: as the caller vouches.
    unsafe { call(clock, sample, |clock| clock.sample().map(sample_to_c)) }
}

/// The time at which a sample was taken, by the parameters as they are now: best soon after. No system call, lock or
/// allocation.
///
/// Errors: all but RADCLOCK_ERR_NOT_FOUND, _IO and _BACKWARDS. On an error *reading is left alone.
///
/// # Safety
///
/// `clock` is NULL or an open clock; `reading` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn radclock_time_of(
    clock: *const radclock,
    sample: radclock_sample,
    reading: *mut radclock_reading,
) -> radclock_error {
    let sample = Sample { counter: xen_radclock::Counter(sample.counter), disruption_marker: sample.disruption_marker };
    // SAFETY: as the caller vouches.
    unsafe { call(clock, reading, |clock| clock.time_of(sample).map(|reading| reading_to_c(&reading))) }
}

/// The clock's parameters now, for a conversion of one's own.
///
/// Errors: RADCLOCK_ERR_ARGUMENT, _PAGE, _BUSY, _NOT_SYNCHRONIZED, _UNRELIABLE, _LEAP, _RANGE. On an error *parameters is left
/// alone.
///
/// # Safety
///
/// `clock` is NULL or an open clock; `parameters` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn radclock_get_parameters(
    clock: *const radclock,
    parameters: *mut radclock_parameters,
) -> radclock_error {
    let get = |clock: &RadClock| {
        let Parameters { clock, leap, disruption_marker } = clock.parameters()?;
        Ok(radclock_parameters {
            counter: clock.counter.0,
            time_sec: clock.time.secs(),
            time_frac: clock.time.frac(),
            max_error_ns: clock.max_error_nanos,
            period_frac: clock.period.frac,
            period_max_error: clock.period_max_error,
            period_shift: clock.period.shift,
            leap_at: leap.map_or(0, LeapSecond::edge),
            leap_adjustment: leap.map_or(0, |leap| -leap.kind.adjustment() as i32),
            disruption_marker,
        })
    };
    // SAFETY: as the caller vouches.
    unsafe { call(clock, parameters, get) }
}

/// What the host warns of now. Also of a clock that cannot be read. Readings are right whether or not there is a
/// warning.
///
/// Errors: RADCLOCK_ERR_ARGUMENT, _BUSY. On an error *warning is left alone.
///
/// # Safety
///
/// `clock` is NULL or an open clock; `warning` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn radclock_get_warning(
    clock: *const radclock,
    warning: *mut radclock_warning,
) -> radclock_error {
    let get = |clock: &RadClock| {
        Ok(match clock.warning()? {
            None => radclock_warning::RADCLOCK_NO_WARNING,
            Some(Disruption::Soon) => radclock_warning::RADCLOCK_DISRUPTION_SOON,
            Some(Disruption::Imminent) => radclock_warning::RADCLOCK_DISRUPTION_IMMINENT,
        })
    };
    // SAFETY: as the caller vouches.
    unsafe { call(clock, warning, get) }
}

/// What an error means, in one English line. The string lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn radclock_strerror(error: i32) -> *const c_char {
    let text = match error {
        0 => c"no error",
        1 => c"a required pointer is NULL",
        2 => c"no clock found: load the driver xen-radclockfront, or start radclockd in Dom0",
        3 => c"the clock's device or file cannot be opened",
        4 => c"the page is not a clock that can be read here",
        5 => c"the page is being written all the time, try again",
        6 => c"the clock is not synchronised yet",
        7 => c"the clock is unreliable now: its counter was disrupted or its host is gone",
        8 => c"the counter was disrupted since the sample was taken",
        9 => c"the counter went backwards: it was reset",
        10 => c"a leap second begins right now: which second it is cannot be told",
        11 => c"the page's parameters give a time out of range",
        _ => c"unknown error",
    };
    text.as_ptr()
}

/// Runs `get` on the clock behind `clock` and stores what it gets.
///
/// # Safety
///
/// Each pointer is NULL or valid: `clock` for reading, `result` for writing.
#[inline]
unsafe fn call<T>(
    clock: *const radclock,
    result: *mut T,
    get: impl FnOnce(&RadClock) -> Result<T, ReadError>,
) -> radclock_error {
    // SAFETY: as the caller vouches.
    let Some(clock) = (unsafe { clock.as_ref() }) else {
        return RADCLOCK_ERR_ARGUMENT;
    };
    if result.is_null() {
        return RADCLOCK_ERR_ARGUMENT;
    }
    match get(&clock.0) {
        Ok(value) => {
            // SAFETY: not NULL, so it may be written, as the caller vouches.
            unsafe { result.write(value) };
            RADCLOCK_OK
        }
        Err(error) => error_to_c(error),
    }
}

#[cold]
fn error_to_c(error: ReadError) -> radclock_error {
    match error {
        ReadError::Busy(_) => RADCLOCK_ERR_BUSY,
        ReadError::Status(Status::Unreliable) => RADCLOCK_ERR_UNRELIABLE,
        ReadError::Status(_) => RADCLOCK_ERR_NOT_SYNCHRONIZED,
        ReadError::Disrupted => RADCLOCK_ERR_DISRUPTED,
        ReadError::Backwards => RADCLOCK_ERR_BACKWARDS,
        ReadError::Leap => RADCLOCK_ERR_LEAP,
        ReadError::Range => RADCLOCK_ERR_RANGE,
        _ => RADCLOCK_ERR_PAGE,
    }
}

#[inline]
fn reading_to_c(reading: &Reading) -> radclock_reading {
    // A nanosecond less a unit: rounding down then rounds up.
    const UP: Span = Span::from_frac(Span::from_nanos(1).as_frac() - 1);
    radclock_reading {
        time: timespec_of(reading.time),
        earliest: timespec_of(reading.earliest()),
        latest: timespec_of(reading.latest().saturating_add(UP)),
        max_error_ns: reading.max_error_nanos(),
        status: match reading.status {
            Status::Synchronized => radclock_status::RADCLOCK_SYNCHRONIZED,
            _ => radclock_status::RADCLOCK_FREERUNNING,
        },
        tai_offset: reading.tai_offset.unwrap_or(0).into(),
        tai_offset_known: reading.tai_offset.is_some(),
        leap_second: reading.leap_second,
        sample: sample_to_c(reading.sample),
    }
}

#[inline]
fn sample_to_c(sample: Sample) -> radclock_sample {
    radclock_sample { counter: sample.counter.0, disruption_marker: sample.disruption_marker }
}

/// A time after the year 292 277 026 596 stays at its end.
#[inline]
fn timespec_of(time: Timestamp) -> timespec {
    timespec { tv_sec: time.secs().min(i64::MAX as u64) as i64, tv_nsec: time.subsec_nanos().into() }
}
