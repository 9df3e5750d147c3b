//! How often something may be done that a guest can bring about: so many times at once, and one a period in the long
//! run (the generic cell rate algorithm). No clock: times are those since any fixed instant.

use std::time::Duration;

/// An allowance and how far it is used up.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    period: Duration,
    burst: u32,
    /// When all of it is there again.
    full_at: Duration,
}

impl Allowance {
    /// One a `period`, and after a while without any `burst` (at least 1) at once.
    pub const fn new(period: Duration, burst: u32) -> Allowance {
        Allowance { period, burst, full_at: Duration::ZERO }
    }

    /// Takes so many, if there are, and says whether there were. If there were not, none is left.
    pub fn take(&mut self, now: Duration, count: u32) -> bool {
        let most = now + self.period * self.burst;
        let wanted = self.full_at.max(now).saturating_add(self.period.saturating_mul(count));
        self.full_at = wanted.min(most);
        wanted <= most
    }

    /// When there is one to take.
    pub fn next(&self) -> Duration {
        self.full_at.saturating_sub(self.period * (self.burst - 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PERIOD: Duration = Duration::from_millis(200);
    const BURST: u32 = 50;

    proptest! {
        #[test]
        fn no_more_are_taken_than_are_allowed(
            tries in prop::collection::vec((0..2_000u64, 1..60u32), 1..300),
        ) {
            let mut allowance = Allowance::new(PERIOD, BURST);
            let (mut now, mut taken) = (Duration::ZERO, 0);
            for (pause, count) in tries {
                now += Duration::from_millis(pause);
                let expected = allowance.next() <= now;
                let took = allowance.take(now, count);
                prop_assert!(expected || !took, "took before {:?}", allowance.next());
                taken += if took { count } else { 0 };
                prop_assert!(taken <= BURST + now.div_duration_f64(PERIOD) as u32);
            }
        }

        #[test]
        fn one_a_period_is_always_there(pauses in prop::collection::vec(200..5_000u64, 1..200)) {
            let mut allowance = Allowance::new(PERIOD, BURST);
            allowance.take(Duration::ZERO, BURST);
            let mut now = Duration::ZERO;
            for pause in pauses {
                now += Duration::from_millis(pause);
                prop_assert!(allowance.next() <= now);
                prop_assert!(allowance.take(now, 1));
            }
        }
    }

    #[test]
    fn all_of_it_is_there_again_after_a_burst_of_periods_however_much_was_asked_for() {
        let mut allowance = Allowance::new(PERIOD, BURST);
        assert!(!allowance.take(Duration::ZERO, u32::MAX));
        assert!(!allowance.take(PERIOD / 2, 1));
        assert!(allowance.take(PERIOD / 2 + PERIOD * BURST, BURST));
    }
}
