//! From a page and a counter reading to a time with a bound, or an error: never a wrong time.
//!
//! No system call, lock or allocation, and a bounded number of steps. Which counter is read, and how, is the
//! caller's business; so is finding the page.

use core::mem::{offset_of, size_of};

use crate::clock::{Clock, FREE_SHIFT, Period, Status};
use crate::leap::{LeapKind, LeapSecond, Phase};
use crate::page::{
    CounterId, EXTENSION_MAGIC, EXTENSION_OFFSET, EXTENSION_VERSION, Extension, Flags, LEAP_POS, LEAP_POST_NEG,
    LEAP_POST_POS, LEAP_PRE_NEG, LEAP_PRE_POS, PAGE_SIZE, Page, PageError, TIME_UTC, VMCLOCK_MAGIC, VMCLOCK_VERSION,
    VmclockAbi,
};
use crate::seqcount::{Busy, SharedPage};
use crate::time::{Counter, Span, Timestamp};

/// The word of a page at the offset of a field.
macro_rules! field {
    ($page:ident.$width:ident, $type:ident::$field:ident $(+ $offset:ident)?) => {
        $page.$width::<{ offset_of!($type, $field) $(+ $offset)? }>()
    };
}

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
    /// The time there, in UTC. An inserted second has the number of the second before it once more.
    pub time: Timestamp,
    /// Bound on its error, in either direction.
    pub max_error: Span,
    /// [`Status::Synchronized`] or [`Status::Freerunning`].
    pub status: Status,
    /// TAI − UTC in seconds, if the clock knows it. It changes where the seconds of [`Reading::time`] do, so the sum of
    /// both never steps.
    pub tai_offset: Option<i16>,
    /// In an inserted second, 23:59:60.
    pub leap_second: bool,
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
    /// UTC steps within the bound of this very instant, so its second cannot be told.
    #[error("a leap second begins right now: which second it is cannot be told")]
    Leap,
    /// The time, or its bound, lies outside of what can be said.
    #[error("the page's parameters give a time out of range")]
    Range,
}

/// The time now by `page`, whose counter must be `id` and is read by `counter`.
///
/// `counter` runs between the two looks at the page's sequence count, and so may run more than once. It must return
/// the counter as of that moment, ordered after the loads before it.
///
/// # Errors
///
/// Any [`ReadError`] but [`ReadError::Disrupted`].
#[inline(always)]
pub fn read(page: &SharedPage, id: CounterId, mut counter: impl FnMut() -> Counter) -> Result<Reading, ReadError> {
    match read_ordinary(page, id, &mut counter) {
        Some(reading) => Ok(reading),
        None => read_any(page, id, counter),
    }
}

/// [`read`] for what nearly always is there: a page of this project, at rest, synchronised, no leap second known;
/// nothing otherwise. Apart from [`read_any`] so that a reading costs no more than one of the system's clock.
#[inline(always)]
fn read_ordinary(page: &SharedPage, id: CounterId, counter: impl FnOnce() -> Counter) -> Option<Reading> {
    let (now, head, ext_head, state, flags, disruption_marker, clock, valid_nanos) = page.try_read(|page| {
        // Before the other loads, for which its fence would wait.
        let now = counter();
        let state = field!(page.u64_at, VmclockAbi::pad).to_le_bytes();
        let clock = Clock {
            counter: Counter(field!(page.u64_at, VmclockAbi::counter_value)),
            time: Timestamp::new(
                field!(page.u64_at, VmclockAbi::time_sec),
                field!(page.u64_at, VmclockAbi::time_frac_sec),
            ),
            period: Period { frac: field!(page.u64_at, VmclockAbi::counter_period_frac_sec), shift: state[7] },
            period_max_error: field!(page.u64_at, VmclockAbi::counter_period_maxerror_rate_frac_sec),
            max_error_nanos: field!(page.u64_at, VmclockAbi::time_maxerror_nanosec),
        };
        (
            now,
            load_head(page),
            field!(page.u64_at, Extension::magic + EXTENSION_OFFSET),
            state,
            field!(page.u64_at, VmclockAbi::flags),
            field!(page.u64_at, VmclockAbi::disruption_marker),
            clock,
            field!(page.u64_at, Extension::valid_nanos + EXTENSION_OFFSET),
        )
    })?;
    let [_, _, clock_status, _, tai @ .., leap_indicator, _] = state;
    let bounds = (Flags::TIME_MAXERROR_VALID | Flags::PERIOD_MAXERROR_VALID).bits();
    let ordinary = head == ordinary_head(id)
        && ext_head == u64::from(EXTENSION_VERSION) << 32 | u64::from(EXTENSION_MAGIC)
        && clock_status == Status::Synchronized as u8
        && leap_indicator == 0
        && clock.period.shift <= Period::MAX_SHIFT
        && clock.period.frac != 0
        && flags & bounds == bounds;
    if !ordinary {
        return None;
    }
    let counts = now.since(clock.counter);
    if counts < 0 || is_older(clock.period.span(counts), valid_nanos) {
        return None;
    }
    let (time, max_error) = clock.reading_at(now)?;
    Some(Reading {
        sample: Sample { counter: now, disruption_marker },
        time,
        max_error,
        status: Status::Synchronized,
        tai_offset: (flags & Flags::TAI_OFFSET_VALID.bits() != 0).then_some(i16::from_le_bytes(tai)),
        leap_second: false,
    })
}

/// [`read`], whatever is there.
#[cold]
#[inline(never)]
fn read_any(page: &SharedPage, id: CounterId, mut counter: impl FnMut() -> Counter) -> Result<Reading, ReadError> {
    let (now, view) = page.read(|page| (counter(), View::load(page)))?;
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
    let ordinary =
        page.try_read(|page| (counter(), load_head(page), field!(page.u64_at, VmclockAbi::disruption_marker)));
    match ordinary {
        Some((counter, head, disruption_marker)) if head == ordinary_head(id) => {
            Ok(Sample { counter, disruption_marker })
        }
        _ => sample_any(page, id, counter),
    }
}

#[cold]
#[inline(never)]
fn sample_any(page: &SharedPage, id: CounterId, mut counter: impl FnMut() -> Counter) -> Result<Sample, ReadError> {
    let (counter, view) = page.read(|page| (counter(), View::load(page)))?;
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

/// A clock's parameters, for a conversion of one's own.
///
/// From the reference instant on, the time is what [`Clock::time_at`] says until the leap second that is to come, and the bound is
/// [`Clock::max_error_at`], at any age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// With the time in UTC at the reference instant, and a bound that grows as fast as that of a clock that runs free.
    pub clock: Clock,
    /// The leap second to come, which the clock counts on as if it did not: [`LeapSecond::utc`] has what becomes of its time.
    pub leap: Option<LeapSecond>,
    /// See [`Sample::disruption_marker`].
    pub disruption_marker: u64,
}

impl Page {
    /// The time at a value of the page's counter, as [`read_at`] has it.
    ///
    /// # Errors
    ///
    /// Any [`ReadError`] but [`ReadError::Busy`], [`ReadError::Disrupted`] and [`ReadError::Backwards`].
    pub fn reading_at(&self, counter: Counter) -> Result<Reading, ReadError> {
        self.view()?.reading(counter, Span::MAX)
    }

    /// The parameters, for a conversion of one's own.
    ///
    /// # Errors
    ///
    /// Any [`ReadError`] but [`ReadError::Busy`], [`ReadError::Disrupted`] and [`ReadError::Backwards`].
    pub fn parameters(&self) -> Result<Parameters, ReadError> {
        self.view()?.parameters()
    }

    fn view(&self) -> Result<View, ReadError> {
        self.abi.check_layout()?;
        Ok(View { abi: self.abi, ext: self.ext })
    }
}

/// Magic, size, and the word of version, counter and type of time.
#[inline(always)]
fn load_head(page: &SharedPage) -> [u32; 3] {
    [
        field!(page.u32_at, VmclockAbi::magic),
        field!(page.u32_at, VmclockAbi::size),
        field!(page.u32_at, VmclockAbi::version),
    ]
}

/// [`load_head`] of a page of this project over the counter `id`.
#[inline(always)]
const fn ordinary_head(id: CounterId) -> [u32; 3] {
    let [low, high] = VMCLOCK_VERSION.to_le_bytes();
    [VMCLOCK_MAGIC, PAGE_SIZE as u32, u32::from_le_bytes([low, high, id.0, TIME_UTC])]
}

/// Whether a clock this long from its reference instant is no longer synchronised.
#[inline(always)]
const fn is_older(elapsed: Span, valid_nanos: u64) -> bool {
    elapsed.as_frac().unsigned_abs() > valid_units(valid_nanos)
}

/// Units of 2⁻⁶⁴ s, by 2^64 / 10^9 rounded down: rather too early than too late.
#[inline(always)]
const fn valid_units(valid_nanos: u64) -> u128 {
    valid_nanos as u128 * 18_446_744_073
}

/// What [`Clock::free_running`] adds to the bound of a clock that is older than its validity.
const fn free_growth(elapsed: Span, valid_nanos: u64) -> Span {
    let beyond = elapsed.as_frac().unsigned_abs().saturating_sub(valid_units(valid_nanos));
    Span::from_frac((beyond >> FREE_SHIFT) as i128 + 1)
}

/// The part of a page that says something.
struct View {
    abi: VmclockAbi,
    ext: Extension,
}

impl View {
    /// To be run inside of [`SharedPage::read`].
    fn load(page: &SharedPage) -> View {
        View {
            abi: zerocopy::transmute!(page.words::<0, { size_of::<VmclockAbi>() / 8 }>()),
            ext: zerocopy::transmute!(page.words::<EXTENSION_OFFSET, { size_of::<Extension>() / 8 }>()),
        }
    }

    fn check(&self, id: CounterId) -> Result<(), PageError> {
        self.abi.check_layout()?;
        if self.abi.counter_id == id.0 { Ok(()) } else { Err(PageError::CounterId(self.abi.counter_id)) }
    }

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
        let (time, mut max_error) = clock.reading_at(counter).ok_or(ReadError::Range)?;
        let valid_nanos = self.ext.valid_nanos.get();
        if self.ext.is_known(abi.size.get()) && is_older(elapsed, valid_nanos) {
            status = Status::Freerunning;
            // Who lets the bound grow faster by itself says so by a validity of 0.
            if valid_nanos > 0 {
                max_error = max_error.saturating_add(free_growth(elapsed, valid_nanos));
            }
        }
        let at = self.leap(time, max_error)?;
        let sample = Sample { counter, disruption_marker: abi.disruption_marker.get() };
        let tai_offset = abi.tai_offset().map(|offset| offset.wrapping_add(at.offset_change));
        Ok(Reading { sample, time: at.time, max_error, status, tai_offset, leap_second: at.inserted })
    }

    fn parameters(&self) -> Result<Parameters, ReadError> {
        let abi = &self.abi;
        if !abi.status().is_readable() {
            return Err(ReadError::Status(abi.status()));
        }
        let mut clock = abi.clock()?;
        if self.ext.is_known(abi.size.get()) && self.ext.valid_nanos.get() > 0 {
            // One more for what is rounded down there.
            clock.period_max_error = clock.free_period_max_error().saturating_add(1);
        }
        let at = self.leap(clock.time, clock.max_error_at(clock.counter))?;
        clock.time = at.time;
        Ok(Parameters { clock, leap: at.to_come, disruption_marker: abi.disruption_marker.get() })
    }

    /// What UTC is at `time`, counted on from the page's reference instant as if no leap second came.
    fn leap(&self, time: Timestamp, max_error: Span) -> Result<At, ReadError> {
        let unchanged = At { time, offset_change: 0, inserted: false, to_come: None };
        let abi = &self.abi;
        let (kind, is_past) = match abi.leap_indicator {
            LEAP_PRE_POS => (LeapKind::Insert, false),
            LEAP_PRE_NEG => (LeapKind::Delete, false),
            LEAP_POS | LEAP_POST_POS => (LeapKind::Insert, true),
            LEAP_POST_NEG => (LeapKind::Delete, true),
            _ => return Ok(unchanged),
        };
        let stated = if self.ext.is_known(abi.size.get()) { self.ext.leap_sec.get() } else { 0 };
        let month = if stated != 0 { stated } else { abi.leap_month().ok_or(ReadError::Range)? };
        if month == 0 {
            return Ok(unchanged);
        }
        let leap = LeapSecond { month, kind };
        let adjustment = Span::from_secs(kind.adjustment());
        // Some call 23:59:60 by the number of the second after it, as if it had not been inserted yet.
        let is_counted =
            is_past && !(stated == 0 && abi.leap_indicator == LEAP_POS && abi.clock()?.time.secs() == month);
        let count = if is_counted { time.checked_add(adjustment).ok_or(ReadError::Range)? } else { time };
        let step = |count: Timestamp| leap.utc(count).1 != Phase::Before;
        if step(count.saturating_sub(max_error)) != step(count.saturating_add(max_error)) {
            return Err(ReadError::Leap);
        }
        let (utc, phase) = leap.utc(count);
        // Both are whole seconds, at most one apart.
        let offset_change = (time.since(utc).as_frac() >> 64) as i16;
        let to_come = (phase == Phase::Before).then_some(leap);
        Ok(At { time: utc, offset_change, inserted: phase == Phase::During, to_come })
    }
}

/// An instant in UTC, by a page that knows of a leap second.
struct At {
    time: Timestamp,
    /// TAI − UTC there minus what it is at the page's reference instant, s.
    offset_change: i16,
    inserted: bool,
    /// The leap second, if it lies after the instant.
    to_come: Option<LeapSecond>,
}
