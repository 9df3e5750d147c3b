//! What a daemon's predecessor knew. The algorithm begins anew with each daemon, and a clock that has been right for seconds
//! only follows a server that lies for as long. What the predecessor left is older: for the first hour it has a veto, and
//! bounds the new clock's error from both sides.

use radclock::clock::Clock;
use radclock::time::{Counter, Span};

/// After so long without a contradiction the new clock knows as much, s; and after so long a contradiction the servers are
/// believed: the predecessor may have been misled itself.
const HEARD_SECS: f64 = 3600.0;
/// A bound no wider than the error of the rate makes in so many seconds is that of a clock which had just begun: that one was not
/// in doubt, but knew little.
const NEW_SECS: f64 = 60.0;

/// The clock of the daemon before.
#[derive(Clone, Copy, Debug)]
pub struct Inheritance {
    clock: Clock,
    /// What it may be off by more than it says.
    doubt: Span,
    /// The bound on a new clock is no narrower than this, ns.
    least_nanos: u64,
    /// Since when it was agreed with, or contradicted, without a break.
    since: Counter,
    is_contradicted: bool,
}

impl Inheritance {
    /// `clock` was found at `now`, and may be off by `doubt` more than it says.
    pub fn new(clock: Clock, doubt: Span, now: Counter) -> Inheritance {
        let in_a_while = (NEW_SECS / clock.period.as_secs_f64()) as i64;
        let error_at = |counts| clock.max_error_at(clock.counter.offset(counts)).ceil_nanos().unsigned_abs();
        let is_new = error_at(in_a_while) >= error_at(0).saturating_mul(2);
        let least_nanos = if is_new { 0 } else { clock.max_error_nanos };
        Inheritance { clock, doubt, least_nanos, since: now, is_contradicted: false }
    }

    /// The clock itself.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Compares with the servers' clock at `now`: by their own bounds both may be right, or not.
    pub fn hear(&mut self, other: &Clock, now: Counter) {
        let known = self.clock.reading_at(now).zip(other.reading_at(now));
        let is_contradicted = known.is_some_and(|((ours, our_error), (theirs, their_error))| {
            theirs.since(ours).abs() > our_error.saturating_add(self.doubt).saturating_add(their_error)
        });
        if is_contradicted != self.is_contradicted {
            self.is_contradicted = is_contradicted;
            self.since = now;
        }
    }

    /// Whether the servers' clock, as last heard, contradicts this one.
    pub fn is_contradicted(&self) -> bool {
        self.is_contradicted
    }

    /// A clock that does not contradict this one, with a bound no wider than this one allows, and no narrower than the
    /// predecessor's was: if that one was in doubt whether a server lied, nothing that a new daemon hears in its first hour
    /// can tell.
    pub fn bound(&self, clock: Clock) -> Clock {
        let Some((ours, our_error)) = self.clock.reading_at(clock.counter) else { return clock };
        let most = clock.time.since(ours).abs().saturating_add(our_error).saturating_add(self.doubt);
        let most = most.ceil_nanos().unsigned_abs().max(self.least_nanos);
        Clock { max_error_nanos: clock.max_error_nanos.clamp(self.least_nanos, most), ..clock }
    }

    /// Whether it counts no more.
    pub fn is_heard(&self, now: Counter) -> bool {
        self.clock.period.span(now.since(self.since)).as_secs_f64() > HEARD_SECS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use radclock::clock::Period;
    use radclock::time::{Span, Timestamp};

    fn clock(at: u64, off: f64) -> Clock {
        Clock {
            counter: Counter(at * 1_000_000_000),
            time: Timestamp::new(1_800_000_000 + at, 0).saturating_add(Span::from_secs_f64(off)),
            period: Period::from_secs_f64(1e-9).unwrap(),
            period_max_error: 1 << 40,
            max_error_nanos: 300_000,
        }
    }

    fn at(secs: u64) -> Counter {
        Counter(secs * 1_000_000_000)
    }

    #[test]
    fn a_lie_is_vetoed_for_an_hour_and_the_truth_never() {
        let mut inheritance = Inheritance::new(clock(0, 0.0), Span::ZERO, at(10));
        for secs in 10..2000 {
            inheritance.hear(&clock(secs, 500e-6), at(secs));
            assert!(!inheritance.is_contradicted());
        }
        for secs in 2000..5600 {
            inheritance.hear(&clock(secs, -10.0), at(secs));
            assert!(inheritance.is_contradicted(), "{secs}");
            assert!(!inheritance.is_heard(at(secs)));
        }
        assert!(inheritance.is_heard(at(5601)));
    }

    #[test]
    fn agreement_makes_it_needless_after_an_hour() {
        let mut inheritance = Inheritance::new(clock(0, 0.0), Span::ZERO, at(10));
        inheritance.hear(&clock(3600, 0.0), at(3600));
        assert!(!inheritance.is_contradicted());
        assert!(!inheritance.is_heard(at(3610)) && inheritance.is_heard(at(3611)));
    }

    #[test]
    fn one_that_had_just_begun_is_no_reason_for_a_wide_bound() {
        // 300 ppm.
        let cold =
            Clock { period_max_error: (3e-4 * 2f64.powi(63)) as u64, max_error_nanos: 5_000_000, ..clock(0, 0.0) };
        let bound = |left| Inheritance::new(left, Span::ZERO, at(10)).bound(clock(20, 0.0)).max_error_nanos;
        assert_eq!(bound(cold), 300_000);
        assert_eq!(bound(Clock { max_error_nanos: 50_000_000, ..cold }), 50_000_000);
        assert_eq!(bound(Clock { max_error_nanos: 1_000_000, ..clock(0, 0.0) }), 1_000_000);
    }

    proptest! {
        #[test]
        fn a_new_clock_is_bounded_by_what_was_left_and_both_stay_right(
            left in (-1e-3f64..1e-3, 0u64..50_000_000), new in (-1e-3f64..1e-3, 0u64..10_000_000_000), after in 10..3600u64,
            doubt in 0u64..1_000_000,
        ) {
            let right = |secs, (off, more): (f64, u64)| {
                let max_error_nanos = (off.abs() * 1e9) as u64 + 1 + more;
                Clock { max_error_nanos, ..clock(secs, off) }
            };
            let inheritance = Inheritance::new(right(0, left), Span::from_nanos(doubt as i64), at(10));
            let bounded = inheritance.bound(right(after, new));
            prop_assert!(bounded.max_error_nanos >= (new.0.abs() * 1e9) as u64);
            prop_assert!(bounded.max_error_nanos >= right(0, left).max_error_nanos);
            let most = 2_000_000 + 50_000_000 + doubt + after * 1000;
            prop_assert!(bounded.max_error_nanos <= most.max(right(0, left).max_error_nanos));
        }
    }
}
