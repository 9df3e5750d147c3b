//! The clock's parameters: what turns a counter reading into time with a bound on its error.
//!
//! The fields are those of `struct vmclock_abi` (Linux, `include/uapi/linux/vmclock-abi.h`) as integers, so that a
//! conversion is one 64×64 multiplication, a shift and an addition.

use crate::time::{Counter, Span, Timestamp};

/// The period of a counter: `frac / 2^(64 + shift)` seconds a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// Units of 2^-(64 + shift) s. Never 0 in a period that came from [`Period::new`].
    pub frac: u64,
    /// vmclock's `counter_period_shift`, at most [`Period::MAX_SHIFT`].
    pub shift: u8,
}

impl Period {
    /// The largest shift accepted: a 10 GHz counter in full 64-bit precision needs 33.
    pub const MAX_SHIFT: u8 = 63;

    /// A period, or nothing if it is zero or its shift out of range.
    pub const fn new(frac: u64, shift: u8) -> Option<Period> {
        if frac == 0 || shift > Period::MAX_SHIFT { None } else { Some(Period { frac, shift }) }
    }

    /// The nearest period to so many seconds a count, with as many bits as fit.
    ///
    /// `None` outside 0.01–100 GHz and for not-a-number.
    #[cfg(feature = "std")]
    pub fn from_secs_f64(secs: f64) -> Option<Period> {
        if !(1e-11..=1e-7).contains(&secs) {
            return None;
        }
        // 1e-7 s is below 2^-23, so shift lies in 23..=36 and frac uses 63 to 64 bits.
        let shift = (-secs.log2()).floor() as u8;
        let frac = Period { frac: 0, shift }.units(secs).round();
        if frac >= 2f64.powi(64) { Period::new(1 << 63, shift - 1) } else { Period::new(frac as u64, shift) }
    }

    /// In seconds a count.
    #[cfg(feature = "std")]
    pub fn as_secs_f64(self) -> f64 {
        self.frac as f64 / self.units(1.0)
    }

    /// So many seconds a count in this period's units.
    #[cfg(feature = "std")]
    pub(crate) fn units(self, secs: f64) -> f64 {
        secs * 2f64.powi(64 + i32::from(self.shift))
    }

    /// How long so many counts take, rounded towards minus infinity. `shift` must be in range.
    #[inline]
    pub const fn span(self, counts: i64) -> Span {
        Span::from_frac((counts as i128 * self.frac as i128) >> self.shift)
    }
}

/// The state of a clock, as vmclock's `clock_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[repr(u8)]
pub enum Status {
    /// Nothing is known of it. Reading it is an error.
    Unknown = 0,
    /// Not yet synchronised. Reading it is an error.
    Initializing = 1,
    /// Synchronised: the time is right to within its bound.
    Synchronized = 2,
    /// Its parameters are older than their validity; the time is right to within a bound that goes on growing.
    Freerunning = 3,
    /// Not to be used: disrupted, or nonsense. Reading it is an error.
    Unreliable = 4,
}

impl Status {
    /// From vmclock's number; an unregistered one is [`Status::Unknown`].
    pub const fn from_abi(value: u8) -> Status {
        match value {
            1 => Status::Initializing,
            2 => Status::Synchronized,
            3 => Status::Freerunning,
            4 => Status::Unreliable,
            _ => Status::Unknown,
        }
    }

    /// Whether a time may be read in this state.
    pub const fn is_readable(self) -> bool {
        matches!(self, Status::Synchronized | Status::Freerunning)
    }
}

impl core::fmt::Display for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(match self {
            Status::Unknown => "unknown",
            Status::Initializing => "initializing",
            Status::Synchronized => "synchronized",
            Status::Freerunning => "freerunning",
            Status::Unreliable => "unreliable",
        })
    }
}

/// How much more the rate of a clock that runs free may be wrong, relative: 2⁻²⁰, what ten degrees do to a crystal.
pub(crate) const FREE_SHIFT: u32 = 20;

/// The parameters of one clock over one counter.
///
/// At counter value `counter` the time is `time`, wrong by at most `max_error`; from there it advances by
/// `period` a count, and the bound grows by `period_max_error` a count in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The reference reading.
    pub counter: Counter,
    /// The time at the reference reading.
    pub time: Timestamp,
    /// Seconds a count.
    pub period: Period,
    /// Bound on the error of `period`, in the same units (with the period's shift).
    pub period_max_error: u64,
    /// Bound on the error of `time` at the reference reading, ns.
    pub max_error_nanos: u64,
}

impl Clock {
    /// The time at a counter reading, before or after the reference, rounded down; the nearest end of the range if
    /// that lies outside of it, which [`Clock::reading_at`] tells apart.
    #[inline]
    pub const fn time_at(&self, counter: Counter) -> Timestamp {
        self.time.saturating_add(self.period.span(counter.since(self.counter)))
    }

    /// The bound on the error of [`Clock::time_at`] at a counter reading, rounded up, or [`Span::MAX`].
    #[inline]
    pub const fn max_error_at(&self, counter: Counter) -> Span {
        let bound = self.bound_at(counter);
        Span::from_frac(if bound > i128::MAX as u128 { i128::MAX } else { bound as i128 })
    }

    /// [`Clock::time_at`] and [`Clock::max_error_at`], or nothing if either lies outside of its range.
    #[inline]
    pub const fn reading_at(&self, counter: Counter) -> Option<(Timestamp, Span)> {
        let bound = self.bound_at(counter);
        match self.time.checked_add(self.period.span(counter.since(self.counter))) {
            Some(time) if bound <= i128::MAX as u128 => Some((time, Span::from_frac(bound as i128))),
            _ => None,
        }
    }

    /// The same clock at `now`, when it is confirmed for no more than so long after its reference, ns, and by nobody from now on: from
    /// whichever is earlier its bound grows by 2⁻²⁰ (1 ppm) faster, since temperature takes an oscillator where it has never been.
    #[cfg(feature = "std")]
    pub fn free_running(&self, valid_nanos: u64, now: Counter) -> Clock {
        let valid = (valid_nanos as f64 * 1e-9 / self.period.as_secs_f64()) as i64;
        let counter = self.counter.offset(valid.min(now.since(self.counter)).max(0));
        Clock {
            counter,
            time: self.time_at(counter),
            max_error_nanos: self.max_error_at(counter).ceil_nanos().unsigned_abs(),
            period_max_error: self.free_period_max_error(),
            ..*self
        }
    }

    /// The bound on the error of the period where nobody confirms the clock.
    pub(crate) const fn free_period_max_error(&self) -> u64 {
        self.period_max_error.saturating_add(self.period.frac >> FREE_SHIFT)
    }

    /// The bound on the error of the period, s a count.
    #[cfg(feature = "std")]
    pub(crate) fn period_error(&self) -> f64 {
        self.period_max_error as f64 / self.period.units(1.0)
    }

    /// Units of 2⁻⁶⁴ s, below 2¹²⁷ + 2⁹⁹.
    #[inline]
    const fn bound_at(&self, counter: Counter) -> u128 {
        // 2^64 / 10^9 rounded up, so that the bound is, too; and one unit for what `time_at` rounds off.
        let reference = self.max_error_nanos as u128 * 18_446_744_074 + 1;
        reference + self.growth_over(counter.since(self.counter).unsigned_abs())
    }

    /// What the error of the period adds to the bound over so many counts, rounded up, units of 2⁻⁶⁴ s.
    #[inline]
    pub(crate) const fn growth_over(&self, counts: u64) -> u128 {
        ((counts as u128 * self.period_max_error as u128) >> self.period.shift) + 1
    }
}
