//! Time as integers: instants and spans in units of 2⁻⁶⁴ s (vmclock's format), and raw counter values.
//!
//! A double at today's UNIX time resolves only 240 ns, so absolute time never is one. Spans may be turned into a
//! double for statistics ([`Span::as_secs_f64`]); a double never becomes an instant.

use core::ops::{Add, AddAssign, Neg, Sub, SubAssign};

/// Nanoseconds in a second.
pub const NANOS_PER_SEC: u64 = 1_000_000_000;

/// A reading of a raw counter, in counts. The counter never is adjusted; it may wrap around.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Counter(pub u64);

impl Counter {
    /// Counts from `earlier` to `self`, signed: the shorter way round, so that it survives a wrap-around.
    pub const fn since(self, earlier: Counter) -> i64 {
        self.0.wrapping_sub(earlier.0) as i64
    }

    /// The counter `counts` later (earlier if negative), with wrap-around.
    pub const fn offset(self, counts: i64) -> Counter {
        Counter(self.0.wrapping_add_signed(counts))
    }
}

/// A signed span of time in units of 2⁻⁶⁴ s. Range ±2⁶³ s, at whose ends the operators saturate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(i128);

impl Span {
    /// No time at all.
    pub const ZERO: Span = Span(0);
    /// The longest span there is.
    pub const MAX: Span = Span(i128::MAX);

    /// From units of 2⁻⁶⁴ s.
    pub const fn from_frac(units: i128) -> Span {
        Span(units)
    }

    /// In units of 2⁻⁶⁴ s.
    pub const fn as_frac(self) -> i128 {
        self.0
    }

    /// From whole nanoseconds, rounded to the nearest unit.
    pub const fn from_nanos(nanos: i64) -> Span {
        let units = nanos_to_units(nanos.unsigned_abs()) as i128;
        Span(if nanos < 0 { -units } else { units })
    }

    /// From whole seconds.
    pub const fn from_secs(secs: i64) -> Span {
        Span((secs as i128) << 64)
    }

    /// In nanoseconds, rounded down (towards minus infinity), saturating at the range of `i64`.
    pub const fn floor_nanos(self) -> i64 {
        saturate(self.nanos_floor_i128())
    }

    /// In nanoseconds, rounded up (towards plus infinity), saturating at the range of `i64`: for bounds.
    pub const fn ceil_nanos(self) -> i64 {
        saturate(-Span(self.0.saturating_neg()).nanos_floor_i128())
    }

    const fn nanos_floor_i128(self) -> i128 {
        let secs = self.0 >> 64;
        let frac = self.0 as u64;
        secs * NANOS_PER_SEC as i128 + ((frac as u128 * NANOS_PER_SEC as u128) >> 64) as i128
    }

    /// In seconds as a double, for statistics and messages.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 18_446_744_073_709_551_616.0
    }

    /// From seconds as a double, for results of statistics. Not-a-number becomes zero; out of range saturates.
    pub fn from_secs_f64(secs: f64) -> Span {
        Span((secs * 18_446_744_073_709_551_616.0) as i128)
    }

    /// Its magnitude.
    pub const fn abs(self) -> Span {
        Span(self.0.saturating_abs())
    }

    /// The sum, or the nearest end of the range.
    pub const fn saturating_add(self, other: Span) -> Span {
        Span(self.0.saturating_add(other.0))
    }
}

/// Nearest units of 2⁻⁶⁴ s. The product stays below 2¹²⁸ − 2⁶⁴, which leaves room for the half.
const fn nanos_to_units(nanos: u64) -> u128 {
    (((nanos as u128) << 64) + NANOS_PER_SEC as u128 / 2) / NANOS_PER_SEC as u128
}

const fn saturate(value: i128) -> i64 {
    if value > i64::MAX as i128 {
        i64::MAX
    } else if value < i64::MIN as i128 {
        i64::MIN
    } else {
        value as i64
    }
}

impl Add for Span {
    type Output = Span;
    fn add(self, other: Span) -> Span {
        self.saturating_add(other)
    }
}

impl Sub for Span {
    type Output = Span;
    fn sub(self, other: Span) -> Span {
        Span(self.0.saturating_sub(other.0))
    }
}

impl AddAssign for Span {
    fn add_assign(&mut self, other: Span) {
        *self = *self + other;
    }
}

impl SubAssign for Span {
    fn sub_assign(&mut self, other: Span) {
        *self = *self - other;
    }
}

impl Neg for Span {
    type Output = Span;
    fn neg(self) -> Span {
        Span(self.0.saturating_neg())
    }
}

/// An instant: whole seconds since 1970-01-01 00:00:00 (UTC or TAI, as its source says) and a fraction in units
/// of 2⁻⁶⁴ s, as vmclock's `time_sec` and `time_frac_sec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u128);

impl Timestamp {
    /// From seconds and a fraction of 2⁻⁶⁴ s.
    pub const fn new(secs: u64, frac: u64) -> Timestamp {
        Timestamp(((secs as u128) << 64) | frac as u128)
    }

    /// From seconds and nanoseconds, rounded to the nearest unit (more than a second of nanoseconds carries over),
    /// or the end of the range.
    pub const fn from_unix(secs: u64, nanos: u64) -> Timestamp {
        Timestamp(((secs as u128) << 64).saturating_add(nanos_to_units(nanos)))
    }

    /// Units of 2⁻⁶⁴ s since 1970.
    pub const fn as_frac(self) -> u128 {
        self.0
    }

    /// From units of 2⁻⁶⁴ s since 1970.
    pub const fn from_frac(units: u128) -> Timestamp {
        Timestamp(units)
    }

    /// Whole seconds since 1970.
    pub const fn secs(self) -> u64 {
        (self.0 >> 64) as u64
    }

    /// The fraction of the second, in units of 2⁻⁶⁴ s.
    pub const fn frac(self) -> u64 {
        self.0 as u64
    }

    /// The fraction of the second in nanoseconds, 0 to 999 999 999, rounded down.
    pub const fn subsec_nanos(self) -> u32 {
        ((self.frac() as u128 * NANOS_PER_SEC as u128) >> 64) as u32
    }

    /// Nanoseconds since 1970, rounded down; `u64` holds them until the year 2554, then it saturates.
    pub const fn as_nanos(self) -> u64 {
        let nanos = self.secs() as u128 * NANOS_PER_SEC as u128 + self.subsec_nanos() as u128;
        if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 }
    }

    /// As the standard library's type, to the nanosecond; nothing if that cannot hold it.
    #[cfg(feature = "std")]
    pub fn to_system_time(self) -> Option<std::time::SystemTime> {
        std::time::SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::new(self.secs(), self.subsec_nanos()))
    }

    /// The instant `span` later (earlier if negative), or nothing outside of the range.
    pub const fn checked_add(self, span: Span) -> Option<Timestamp> {
        match self.0.checked_add_signed(span.0) {
            Some(units) => Some(Timestamp(units)),
            None => None,
        }
    }

    /// The instant `span` later, or the nearest end of the range.
    pub const fn saturating_add(self, span: Span) -> Timestamp {
        Timestamp(self.0.saturating_add_signed(span.0))
    }

    /// The instant `span` earlier, or the nearest end of the range.
    pub const fn saturating_sub(self, span: Span) -> Timestamp {
        self.saturating_add(Span(span.0.saturating_neg()))
    }

    /// Time from `earlier` to `self`. Exact as long as both lie before the year 292 277 026 596.
    pub const fn since(self, earlier: Timestamp) -> Span {
        Span(self.0.wrapping_sub(earlier.0) as i128)
    }
}

impl core::fmt::Display for Timestamp {
    /// Decimal seconds since 1970 with nine decimals.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{:09}", self.secs(), self.subsec_nanos())
    }
}
