//! What a daemon's predecessor knew. The algorithm begins anew with each daemon, and a clock that has been right for seconds
//! only follows a server that lies for as long. What the predecessor left is older: for the first hour it has a veto, and
//! bounds the new clock's error from both sides.

use radclock::clock::Clock;
use radclock::page::Page;
use radclock::time::{Counter, Span};

use crate::relation::Sample;

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
    /// How much of that whoever has the clock was told.
    told: Span,
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
        Inheritance { clock, doubt, told: doubt, least_nanos, since: now, is_contradicted: false }
    }

    /// The clock itself.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// It may be off by `doubt` by now; says how much more that is than was told, once it is more than `in_hand`.
    pub fn doubt(&mut self, doubt: Span, in_hand: Span) -> Option<Span> {
        self.doubt = self.doubt.max(doubt);
        let more = self.doubt - self.told;
        (more > in_hand).then(|| {
            self.told = self.doubt;
            more
        })
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

/// The one clock that the daemon before left over two counters. Where the two pages part, one of the counters was held up; and
/// as long as Xen makes up for that, they go on parting.
#[derive(Clone, Copy, Debug)]
pub struct Twins {
    over_system_time: Clock,
    over_tsc: Clock,
    /// The farthest so far.
    apart: Span,
}

impl Twins {
    /// Nothing unless both pages have a clock that can be read `now`.
    pub fn new(over_system_time: &Page, over_tsc: &Page, now: &Sample) -> Option<Twins> {
        let clock = |page: &Page| page.abi.clock().ok();
        let (over_system_time, over_tsc) = clock(over_system_time).zip(clock(over_tsc))?;
        let mut twins = Twins { over_system_time, over_tsc, apart: Span::ZERO };
        twins.apart = twins.apart_at(now)?;
        Some(twins)
    }

    /// Which of them is wrong cannot be told, and their bounds say nothing of it: what each is wrong by is in the other as well.
    fn apart_at(&self, now: &Sample) -> Option<Span> {
        let (one, _) = self.over_system_time.reading_at(Counter(now.system_time))?;
        let (other, _) = self.over_tsc.reading_at(now.tsc)?;
        Some(other.since(one).abs())
    }

    /// Takes the next reading of both counters.
    pub fn look(&mut self, now: &Sample) {
        self.apart = self.apart.max(self.apart_at(now).unwrap_or(Span::MAX));
    }

    /// How far the clock may be off by more than it says.
    pub fn apart(&self) -> Span {
        self.apart
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::excursion::in_hand;
    use proptest::prelude::*;
    use radclock::clock::{Period, Status};
    use radclock::page::{Content, CounterId, Flags};
    use radclock::time::Timestamp;

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

    /// As it stands in a page over another counter.
    fn page(clock: Clock) -> Page {
        Page::new(&Content {
            counter_id: CounterId::XEN_SYSTEM_TIME,
            status: Status::Freerunning,
            clock: Some(clock),
            disruption_marker: 0,
            disruption: Flags::empty(),
            tai_offset: None,
            leap_indicator: 0,
            host_id: [0; 16],
            generation: 0,
            valid_nanos: 0,
        })
    }

    /// The TSC counts from elsewhere.
    fn tsc(nanos: u64) -> Counter {
        Counter(nanos + 77_000_000_000)
    }

    fn twins(now: &Sample) -> Twins {
        let over_tsc = Clock { counter: tsc(1_000_000_000), ..clock(1, 0.0) };
        Twins::new(&page(clock(1, 0.0)), &page(over_tsc), now).expect("readings")
    }

    #[test]
    fn twins_part_once_a_counter_was_held_up() {
        for lost in [0, 500, 500_000, 100_000_000, -100_000_000] {
            let system_time = 60_000_000_000;
            let now = Sample { tsc: tsc(system_time).offset(lost), system_time, half_width: 100 };
            let apart = twins(&now).apart();
            assert!((apart - Span::from_nanos(lost.abs())).abs() <= Span::from_nanos(2), "{lost}: {apart:?}");
        }
    }

    proptest! {
        /// System time is slow for minutes after the daemon has started. What was left is covered all the time, and after it.
        #[test]
        fn the_doubt_grows_with_what_xen_makes_up_for(
            begun in 0.0f64..30.0, slow in 1.0f64..200.0, slower in 1.1f64..14.0, servers in 0.0f64..0.5e-3,
        ) {
            // Of true time since 60 s, which the TSC counts.
            let off = |secs: f64| (secs + begun).min(begun + slow) * (1.0 - 1.0 / slower);
            let sample = |secs: f64| {
                let nanos = 60e9 + secs * 1e9;
                Sample { tsc: tsc(nanos as u64), system_time: (nanos - off(secs) * 1e9) as u64, half_width: 100 }
            };
            let mut twins = twins(&sample(0.0));
            let left = clock(1, 0.0);
            let mut inheritance = Inheritance::new(left, twins.apart(), Counter(sample(0.0).system_time));
            let mut shown = Clock { max_error_nanos: left.max_error_nanos + twins.apart().ceil_nanos() as u64, ..left };
            for look in 0..2000 {
                let secs = f64::from(look) * (slow + 10.0) / 2000.0;
                let now = sample(secs);
                let at = Counter(now.system_time);
                twins.look(&now);
                if let Some(more) = inheritance.doubt(twins.apart(), in_hand(shown.max_error_at(at))) {
                    shown.max_error_nanos += more.ceil_nanos() as u64;
                }
                let truth = Timestamp::new(1_800_000_060, 0).saturating_add(Span::from_secs_f64(secs));
                let (time, bound) = shown.reading_at(at).expect("a reading");
                let hand = Span::from_nanos(5_010);
                prop_assert!(truth.since(time).abs() <= bound + hand, "{} s off at {secs} s", truth.since(time).as_secs_f64());
                // The right servers have no veto against them.
                let theirs = Clock { counter: at, time: truth.saturating_add(Span::from_secs_f64(servers)), ..left };
                inheritance.hear(&theirs, at);
                prop_assert!(!inheritance.is_contradicted(), "at {secs} s");
            }
            prop_assert!((twins.apart().as_secs_f64() - off(slow)).abs() < 1e-6);
        }
    }

    #[test]
    fn the_doubt_only_grows() {
        let mut inheritance = Inheritance::new(clock(0, 0.0), Span::from_nanos(100), at(10));
        let mut doubt = |nanos| inheritance.doubt(Span::from_nanos(nanos), Span::from_nanos(5_000));
        assert_eq!(doubt(5_000), None);
        assert_eq!(doubt(6_000), Some(Span::from_nanos(6_000) - Span::from_nanos(100)));
        assert_eq!((doubt(0), doubt(11_000)), (None, None));
        assert_eq!(doubt(12_000), Some(Span::from_nanos(12_000) - Span::from_nanos(6_000)));
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
            let most = 2_000_000 + 51_000_000 + doubt + after * 1000;
            prop_assert!(bounded.max_error_nanos <= most.max(right(0, left).max_error_nanos));
        }
    }
}
