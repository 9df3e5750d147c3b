//! From a page and a counter reading to a time with a bound, or an error: never a wrong time.
//!
//! No system call, lock or allocation, and a bounded number of steps. Which counter is read, and how, is the
//! caller's business; so is finding the page.

use core::mem::size_of;

use crate::clock::Status;
use crate::page::{
    CounterId, EXTENSION_OFFSET, Extension, LEAP_POS, LEAP_PRE_NEG, LEAP_PRE_POS, PageError, VmclockAbi,
};
use crate::seqcount::{Busy, SharedPage};
use crate::time::{Counter, Span, Timestamp};

/// How far before the reference instant a counter read just now may lie: other CPUs' counters may lag a little, but
/// a counter further back than this was reset, or has gone half way round.
const MAX_BACKWARDS: Span = Span::from_secs(1);

/// A raw counter value, and the undisturbed run of the counter that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sample {
    /// The counter's value.
    pub counter: Counter,
    /// The page's disruption marker then. Values with different ones are of different counters (before and after a
    /// migration, say) and must not be subtracted.
    pub disruption_marker: u64,
}

/// A time, with what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The counter value that was turned into time.
    pub sample: Sample,
    /// The time there, in UTC.
    pub time: Timestamp,
    /// Bound on its error, in either direction.
    pub max_error: Span,
    /// [`Status::Synchronized`] or [`Status::Freerunning`].
    pub status: Status,
    /// TAI − UTC in seconds, if the clock knows it.
    pub tai_offset: Option<i16>,
}

impl Reading {
    /// The earliest that the true time can be, in UTC.
    pub const fn earliest(&self) -> Timestamp {
        self.time.saturating_sub(self.max_error)
    }

    /// The latest that the true time can be, in UTC.
    pub const fn latest(&self) -> Timestamp {
        self.time.saturating_add(self.max_error)
    }

    /// The bound for who keeps [`Reading::time`] in whole nanoseconds, rounded down: in nanoseconds, with what that
    /// rounding takes off.
    pub const fn max_error_nanos(&self) -> u64 {
        self.max_error.saturating_add(Span::from_nanos(1)).ceil_nanos().cast_unsigned()
    }

    /// The time in TAI, if the clock knows its offset. The bound is the same.
    pub const fn tai(&self) -> Option<Timestamp> {
        match self.tai_offset {
            Some(offset) => self.time.checked_add(Span::from_secs(offset as i64)),
            None => None,
        }
    }
}

/// Why there is no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The page is being written all the time.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The page is none that can be used here.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The clock says that it must not be read.
    #[error("{}", match .0 {
        Status::Initializing => "the clock is not synchronised yet",
        Status::Unreliable => "the clock is unreliable now: its counter was disrupted or its host is gone",
        _ => "the clock is in an unknown state",
    })]
    Status(Status),
    /// The counter was disrupted (migration, restore) after the value was taken: it belongs to a counter that is gone.
    #[error("the counter was disrupted since that value was taken")]
    Disrupted,
    /// The counter lies more than a second before the page's reference instant, so it was reset.
    #[error("the counter went backwards: it was reset, and the page does not know yet")]
    Backwards,
    /// A leap second lies between the page's reference instant and now, or is in progress: UTC is not known until the
    /// page is updated.
    #[error("a leap second came since the clock was updated last")]
    Leap,
    /// The time, or its bound, lies outside of what can be said.
    #[error("the page's parameters give a time out of range")]
    Range,
}

/// The time now by `page`, whose counter must be `id` and is read by `counter`.
///
/// `counter` runs after the page was read and before it is known that no write fell into it, so it may run more than
/// once. It must return the counter as of that moment, ordered after loads before it and before loads after it.
///
/// # Errors
///
/// Any [`ReadError`] but [`ReadError::Disrupted`].
#[inline]
pub fn read(page: &SharedPage, id: CounterId, mut counter: impl FnMut() -> Counter) -> Result<Reading, ReadError> {
    let (view, now) = page.read(|page| (View::load(page), counter()))?;
    view.check(id)?;
    view.reading(now, MAX_BACKWARDS)
}

/// The raw counter now, to be turned into time later; `id` and `counter` as for [`read`].
///
/// Says nothing of the clock: it need not be synchronised yet.
///
/// # Errors
///
/// [`ReadError::Busy`], and [`ReadError::Page`] if the page has another layout or another counter.
#[inline]
pub fn sample(page: &SharedPage, id: CounterId, mut counter: impl FnMut() -> Counter) -> Result<Sample, ReadError> {
    let (view, counter) = page.read(|page| (View::load(page), counter()))?;
    view.check(id)?;
    Ok(Sample { counter, disruption_marker: view.abi.disruption_marker.get() })
}

/// The time at which `sample` was taken.
///
/// The bound counts from the page's reference instant, so it is best soon after. A value taken more than half of the
/// counter's range ago (29 years at 10 GHz) cannot be told from one in the future.
///
/// # Errors
///
/// Any [`ReadError`] but [`ReadError::Backwards`].
pub fn read_at(page: &SharedPage, id: CounterId, sample: Sample) -> Result<Reading, ReadError> {
    let view = page.read(View::load)?;
    view.check(id)?;
    if view.abi.disruption_marker.get() != sample.disruption_marker {
        return Err(ReadError::Disrupted);
    }
    view.reading(sample.counter, Span::MAX)
}

/// The part of a page that a time is made of.
struct View {
    abi: VmclockAbi,
    ext: Extension,
}

impl View {
    #[inline]
    fn load(page: &SharedPage) -> View {
        View {
            abi: zerocopy::transmute!(page.words::<0, { size_of::<VmclockAbi>() / 8 }>()),
            ext: zerocopy::transmute!(page.words::<EXTENSION_OFFSET, { size_of::<Extension>() / 8 }>()),
        }
    }

    #[inline]
    fn check(&self, id: CounterId) -> Result<(), PageError> {
        self.abi.check_layout()?;
        if self.abi.counter_id == id.0 { Ok(()) } else { Err(PageError::CounterId(self.abi.counter_id)) }
    }

    #[inline]
    fn reading(&self, counter: Counter, max_backwards: Span) -> Result<Reading, ReadError> {
        let abi = &self.abi;
        let mut status = abi.status();
        if !status.is_readable() {
            return Err(ReadError::Status(status));
        }
        let clock = abi.clock()?;
        let elapsed = clock.period.span(counter.since(clock.counter));
        if elapsed < -max_backwards {
            return Err(ReadError::Backwards);
        }
        let (time, max_error) = clock.reading_at(counter).ok_or(ReadError::Range)?;
        if abi.leap_indicator != 0 && leap_intervenes(abi.leap_indicator, clock.time, time.saturating_add(max_error)) {
            return Err(ReadError::Leap);
        }
        if self.ext.is_known(abi.size.get()) {
            // 2^64 / 10^9 rounded down: rather too early than too late.
            if elapsed.as_frac().unsigned_abs() > u128::from(self.ext.valid_nanos.get()) * 18_446_744_073 {
                status = Status::Freerunning;
            }
        }
        let sample = Sample { counter, disruption_marker: abi.disruption_marker.get() };
        Ok(Reading { sample, time, max_error, status, tai_offset: abi.tai_offset() })
    }
}

/// Whether a leap second that a page announced at `reference` may have come by `latest`.
#[cold]
fn leap_intervenes(indicator: u8, reference: Timestamp, latest: Timestamp) -> bool {
    match indicator {
        LEAP_POS => true,
        // A second that is left out makes the last minute one shorter.
        LEAP_PRE_NEG => latest.secs() >= end_of_month(reference.secs()) - 1,
        LEAP_PRE_POS => latest.secs() >= end_of_month(reference.secs()),
        _ => false,
    }
}

/// The first second of the month after the one that `secs` since 1970 lies in.
fn end_of_month(secs: u64) -> u64 {
    const DAY: u64 = 86_400;
    // Days since 1 March of the year 0, so that the leap day is a year's last; then the usual cycles of 400, 100, 4
    // and 1 years, the last of which may be a day longer than its formula says.
    let days = secs / DAY + 719_468;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let is_february = month == 11;
    let next_month_starts = if is_february {
        let year = year_of_era + 1;
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        365 + u64::from(leap)
    } else {
        (153 * (month + 1) + 2) / 5
    };
    (days - day_of_year + next_month_starts - 719_468).saturating_mul(DAY)
}
