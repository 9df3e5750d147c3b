//! Carries the kernel's packet timestamps from `CLOCK_REALTIME` to the counter.
//!
//! The kernel stamps packets in `CLOCK_REALTIME`, a clock that somebody else sets, slews and steps. So it serves only
//! as a ruler between the packet and a reading of both clocks next to it: counter, realtime, counter. What realtime
//! says of the time of day does not matter, and two brackets around the packet bound how much it can have moved
//! against the counter in between.

use std::io;
use std::os::fd::OwnedFd;

use radclock::clock::Period;
use radclock::time::{Counter, Span};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::counter::Around;

/// `CLOCK_REALTIME`, ns since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Realtime(pub i128);

impl Realtime {
    /// Now.
    pub fn now() -> Realtime {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Realtime::from_parts(now.tv_sec, now.tv_nsec)
    }

    /// From seconds and nanoseconds.
    pub fn from_parts(secs: i64, nanos: i64) -> Realtime {
        Realtime(i128::from(secs) * 1_000_000_000 + i128::from(nanos))
    }

    fn since(self, earlier: Realtime) -> Span {
        let nanos = (self.0 - earlier.0).clamp(i64::MIN.into(), i64::MAX.into());
        Span::from_nanos(nanos as i64)
    }
}

/// Both clocks read at once: realtime was read at `counter`, give or take `half_width`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bracket {
    /// The counter, halfway between the two readings.
    pub counter: Counter,
    /// Half the distance of the two readings.
    pub half_width: Span,
    /// `CLOCK_REALTIME` in between.
    pub realtime: Realtime,
}

/// The kernel's clocks have whole nanoseconds, and so have some counters.
const RESOLUTION: Span = Span::from_nanos(2);
/// Readings to choose the narrowest from.
const TRIES: usize = 5;

impl Bracket {
    /// The narrowest of a few tries of `around`, which reads `CLOCK_REALTIME` between two readings of the counter.
    pub fn take<E>(period: Period, mut around: impl FnMut() -> Result<Around<Realtime>, E>) -> Result<Bracket, E> {
        let mut best: Option<Bracket> = None;
        for _ in 0..TRIES {
            let Around { low, value: realtime, high } = around()?;
            let width = high.since(low).max(0);
            let bracket = Bracket {
                counter: low.offset(width / 2),
                half_width: period.span(width / 2 + 1) + RESOLUTION,
                realtime,
            };
            if best.is_none_or(|best| bracket.half_width < best.half_width) {
                best = Some(bracket);
            }
        }
        Ok(best.expect("at least one try"))
    }
}

/// Tells whether `CLOCK_REALTIME` was set, even there and back again between two brackets.
#[derive(Debug)]
pub struct StepWatch(OwnedFd);

impl StepWatch {
    /// Watches from now on.
    pub fn new() -> io::Result<StepWatch> {
        let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let far = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: i64::MAX, tv_nsec: 0 },
        };
        timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &far)?;
        Ok(StepWatch(timer))
    }

    /// Whether the clock was set since the last call.
    pub fn stepped(&self) -> bool {
        // A timer that is far away and to be cancelled when the clock is set: reading it says so (timerfd_create(2)).
        match rustix::io::read(&self.0, &mut [0; 8]) {
            Err(Errno::AGAIN) => false,
            Err(Errno::CANCELED) => true,
            _ => true,
        }
    }
}

/// The kernel's realtime clock cannot be slewed by more than 10 % (adjtimex(2): `tick` is held to ±10 %), which also
/// leaves room for a counter that is far from its nominal period.
const MAX_SLEW_DIVISOR: i128 = 9;

/// A packet's timestamp cannot be carried over.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CarryError {
    /// Realtime moved against the counter further than slewing can move it: it was stepped, or the counter jumped.
    #[error("CLOCK_REALTIME and the counter moved apart by {:.6} s during the exchange", .0.as_secs_f64())]
    Stepped(Span),
    /// The packet's timestamp lies outside the brackets around it.
    #[error("the kernel's timestamp lies {:.6} s outside the exchange: CLOCK_REALTIME was stepped", .0.as_secs_f64())]
    Outside(Span),
}

/// The counter at the kernel's timestamp `stamp`, taken between `before` and `after`, and the bound on its error.
pub fn carry(
    period: Period,
    before: &Bracket,
    after: &Bracket,
    stamp: Realtime,
) -> Result<(Counter, Span), CarryError> {
    let widths = before.half_width + after.half_width;
    let counted = period.span(after.counter.since(before.counter));
    let moved = after.realtime.since(before.realtime) - counted;
    if moved.abs() > Span::from_frac(counted.abs().as_frac() / MAX_SLEW_DIVISOR) + widths {
        return Err(CarryError::Stepped(moved));
    }
    let from_before = stamp.since(before.realtime);
    let to_after = after.realtime.since(stamp);
    // A nanosecond of slack for clocks that round.
    let outside = from_before.min(to_after) + RESOLUTION;
    if outside < Span::ZERO {
        return Err(CarryError::Outside(-outside));
    }
    let (near, distance) = if from_before < to_after { (before, from_before) } else { (after, -to_after) };
    // Realtime goes one way between the brackets, so that it cannot have moved further than seen at their ends.
    let slew = Span::from_frac(distance.abs().as_frac() / MAX_SLEW_DIVISOR).min(moved.abs() + widths);
    let counts = counts(period, distance);
    Ok((near.counter.offset(counts), near.half_width + slew + period.span(1) + RESOLUTION))
}

/// `span` in counts, rounded towards zero.
fn counts(period: Period, span: Span) -> i64 {
    let counts = span.as_secs_f64() / period.as_secs_f64();
    counts as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PERIOD: f64 = 1e-9;

    fn period() -> Period {
        Period::from_secs_f64(PERIOD).unwrap()
    }

    fn bracket(counter: u64, realtime: i128, half_width: i64) -> Bracket {
        Bracket { counter: Counter(counter), half_width: Span::from_nanos(half_width), realtime: Realtime(realtime) }
    }

    #[test]
    fn a_step_between_the_brackets_is_seen() {
        let before = bracket(1_000_000, 0, 100);
        let after = bracket(2_000_000, 51_000_000, 100);
        let Err(CarryError::Stepped(by)) = carry(period(), &before, &after, Realtime(500_000)) else { panic!() };
        assert!((by - Span::from_nanos(50_000_000)).abs() < Span::from_nanos(1));
        let back = bracket(2_000_000, -51_000_000, 100);
        assert!(matches!(carry(period(), &before, &back, Realtime(500_000)), Err(CarryError::Stepped(_))));
    }

    #[test]
    fn a_stamp_from_before_a_step_there_and_back_is_seen() {
        let before = bracket(1_000_000, 0, 100);
        let after = bracket(2_000_000, 1_000_000, 100);
        assert!(matches!(carry(period(), &before, &after, Realtime(1_500_000)), Err(CarryError::Outside(_))));
        assert!(matches!(carry(period(), &before, &after, Realtime(-1_500)), Err(CarryError::Outside(_))));
    }

    #[test]
    fn a_bracket_is_narrow_and_in_order() {
        let start = std::time::Instant::now();
        let read = || Counter(start.elapsed().as_nanos() as u64);
        let around = || Ok::<_, ()>(Around { low: read(), value: Realtime::now(), high: read() });
        let first = Bracket::take(period(), around).unwrap();
        let second = Bracket::take(period(), around).unwrap();
        assert!(second.counter.since(first.counter) > 0);
        assert!(first.half_width > Span::ZERO && first.half_width < Span::from_nanos(1_000_000));
    }

    proptest! {
        /// Realtime runs at any rate that a kernel can slew to, changing it once on the way; the counter is off its
        /// nominal period; both brackets read wrong by up to their half-width.
        #[test]
        fn the_carried_stamp_is_right_to_within_its_bound(
            offset in -1_000_000_000_000_000i128..1_000_000_000_000_000,
            length in 10_000i64..2_000_000_000,
            knee in 0.0f64..1.0,
            event in 0.0f64..1.0,
            slew in 0.0f64..0.0999,
            share in 0.0f64..1.0,
            forward: bool,
            skew in -500e-6f64..500e-6,
            widths in (1i64..5_000, 1i64..5_000),
            wrong in (-1.0f64..1.0, -1.0f64..1.0),
        ) {
            let sign = if forward { 1.0 } else { -1.0 };
            let length = length as f64;
            let realtime = |t: f64| {
                let first = t.min(knee * length);
                offset + (t + sign * (slew * first + slew * share * (t - first))).round() as i128
            };
            let counter = |t: f64| (1e15 + t * (1.0 + skew)) as u64;
            let before = bracket(counter(wrong.0 * widths.0 as f64), realtime(0.0), widths.0 + 2);
            let after = bracket(counter(length + wrong.1 * widths.1 as f64), realtime(length), widths.1 + 2);
            let t = event * length;
            // The counter's skew against the slew may turn the movement round; by no more than this.
            let turned = Span::from_secs_f64(2.0 * skew.abs() * length * 1e-9);
            let (carried, error) = carry(period(), &before, &after, Realtime(realtime(t))).unwrap();
            let off = period().span(carried.since(Counter(counter(t)))).abs();
            prop_assert!(off <= error + turned, "off {} bound {}", off.as_secs_f64(), error.as_secs_f64());
        }
    }
}
