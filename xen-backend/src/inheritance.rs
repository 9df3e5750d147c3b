//! What a daemon's predecessor knew. The algorithm begins anew with each daemon, and a clock that has been right for seconds
//! only follows a server that lies for as long. What the predecessor left is older: for the first hour it has a veto.

use radclock::clock::Clock;
use radclock::time::Counter;

/// After so long without a contradiction the new clock knows as much, s; and after so long a contradiction the servers are
/// believed: the predecessor may have been misled itself.
const HEARD_SECS: f64 = 3600.0;

/// The clock of the daemon before.
#[derive(Clone, Copy, Debug)]
pub struct Inheritance {
    clock: Clock,
    /// Since when it was agreed with, or contradicted, without a break.
    since: Counter,
    is_contradicted: bool,
}

impl Inheritance {
    /// `clock` was found at `now`.
    pub fn new(clock: Clock, now: Counter) -> Inheritance {
        Inheritance { clock, since: now, is_contradicted: false }
    }

    /// Compares with the servers' clock at `now`: by their own bounds both may be right, or not.
    pub fn hear(&mut self, other: &Clock, now: Counter) {
        let known = self.clock.reading_at(now).zip(other.reading_at(now));
        let is_contradicted = known.is_some_and(|((ours, our_error), (theirs, their_error))| {
            theirs.since(ours).abs() > our_error.saturating_add(their_error)
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

    /// Whether it counts no more.
    pub fn is_heard(&self, now: Counter) -> bool {
        self.clock.period.span(now.since(self.since)).as_secs_f64() > HEARD_SECS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let mut inheritance = Inheritance::new(clock(0, 0.0), at(10));
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
        let mut inheritance = Inheritance::new(clock(0, 0.0), at(10));
        inheritance.hear(&clock(3600, 0.0), at(3600));
        assert!(!inheritance.is_contradicted());
        assert!(!inheritance.is_heard(at(3610)) && inheritance.is_heard(at(3611)));
    }
}
