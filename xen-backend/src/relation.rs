//! How this domain's TSC runs against Xen's system time, measured, so that Dom0's own programs have a page over the
//! TSC as guests have; and how another counter that is kept in its place does, so that guests have theirs.
//!
//! A line through two brackets (TSC, system time, TSC). The line is kept and drawn longer for as long as it predicts
//! the next bracket; when it does not, system time was stepped or Xen has changed the scale, and a new line starts. What was missed, and how far
//! the rates of recent lines differ, goes into the bound.

use radclock::clock::{Clock, Period};
use radclock::compose::{Added, TimeInfo};
use radclock::time::Counter;

/// The TSC (or the other counter) and system time read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The TSC, halfway between two readings.
    pub tsc: Counter,
    /// Xen's system time in between, ns.
    pub system_time: u64,
    /// Half the distance of the two readings, in counts.
    pub half_width: u64,
}

/// Readings to choose the narrowest from.
const TRIES: usize = 5;

impl Sample {
    /// Reads both, the narrowest of a few tries.
    pub fn take<E>(mut tsc: impl FnMut() -> Counter, mut system: impl FnMut() -> Result<u64, E>) -> Result<Sample, E> {
        let mut best: Option<Sample> = None;
        for _ in 0..TRIES {
            let low = tsc();
            let system_time = system()?;
            let width = tsc().since(low).max(0);
            let half_width = width.unsigned_abs() / 2 + 1;
            if best.is_none_or(|best| half_width < best.half_width) {
                best = Some(Sample { tsc: low.offset(width / 2), system_time, half_width });
            }
        }
        Ok(best.expect("at least one try"))
    }
}

/// The longest line: beyond it the oscillators' own wander counts more than the brackets.
const MAX_LINE_NANOS: f64 = 64e9;
/// So long a line is no part of what Xen takes back soon (see [`crate::excursion`]), ns: what its rate is, the counter's is.
const STRAIGHT_NANOS: u64 = 2_000_000_000;
/// Figures of the past lose half of their weight in this time, ns.
const MEMORY_NANOS: f64 = 60e9;

/// The line and what is known of its quality.
#[derive(Clone, Debug)]
pub struct Relation {
    start: Sample,
    last: Sample,
    /// Nanoseconds a count.
    rate: f64,
    /// Relative, from the brackets' widths at both ends.
    rate_error: f64,
    /// How far rates differed lately, relative.
    wander: f64,
    /// How far a prediction was off lately, ns: noise of the brackets, or changes too small to end the line.
    miss: f64,
}

impl Relation {
    /// From two brackets some milliseconds apart; nothing if either clock stood still or ran backwards.
    pub fn new(start: Sample, last: Sample) -> Option<Relation> {
        let mut relation = Relation { start, last, rate: 0.0, rate_error: 0.0, wander: 0.0, miss: 0.0 };
        relation.draw().then_some(relation)
    }

    /// Draws the line from `start` to `last`.
    fn draw(&mut self) -> bool {
        let counts = self.last.tsc.since(self.start.tsc);
        let nanos = self.last.system_time.wrapping_sub(self.start.system_time) as i64;
        if counts <= 0 || nanos <= 0 {
            return false;
        }
        self.rate = nanos as f64 / counts as f64;
        // Whole nanoseconds at both ends.
        self.rate_error = (self.start.half_width + self.last.half_width) as f64 / counts as f64 + 2.0 / nanos as f64;
        true
    }

    /// Takes the next bracket. Nothing if either clock ran backwards: start anew.
    pub fn update(&mut self, next: Sample) -> Option<()> {
        let counts = next.tsc.since(self.last.tsc);
        let nanos = next.system_time.wrapping_sub(self.last.system_time) as i64;
        if counts <= 0 || nanos <= 0 {
            return None;
        }
        let decay = (-(nanos as f64) / MEMORY_NANOS).exp2();
        let widths = (self.last.half_width + next.half_width) as f64 * self.rate + 2.0;
        let off = (nanos as f64 - counts as f64 * self.rate).abs();
        let expected = widths + counts as f64 * self.rate * self.rate_error;
        // The bracket's own error may have hidden a part of it.
        self.miss = (self.miss * decay).max(off + next.half_width as f64 * self.rate);
        self.wander *= decay;
        let starts = self.start == self.last;
        if off > expected && !starts {
            // A step, or another scale: which of them, the next bracket tells. The rate holds until then.
            self.start = next;
            self.last = next;
            return Some(());
        }
        if (next.tsc.since(self.start.tsc) as f64) * self.rate > MAX_LINE_NANOS {
            // Half the line goes on, by its own prediction, so that it need not start over.
            let half = next.tsc.since(self.start.tsc) / 2;
            self.start = Sample {
                tsc: self.start.tsc.offset(half),
                system_time: self.start.system_time.wrapping_add((half as f64 * self.rate) as u64),
                half_width: (self.start.half_width + self.last.half_width).div_ceil(2),
            };
        }
        let before = self.rate;
        self.last = next;
        if !self.draw() {
            return None;
        }
        if starts {
            self.wander = self.wander.max((self.rate / before - 1.0).abs() - self.rate_error);
        }
        Some(())
    }

    /// The line as Xen itself would write it down, with the last bracket as its reference.
    pub fn info(&self) -> TimeInfo {
        // mul = rate / 2^shift * 2^32 lies in 2^31..2^32.
        let shift = self.rate.log2().floor() as i8 + 1;
        let mul = (self.rate * 2f64.powi(32 - i32::from(shift))).min(f64::from(u32::MAX)) as u32;
        TimeInfo {
            tsc_timestamp: self.last.tsc.0,
            system_time: self.last.system_time,
            tsc_to_system_mul: mul,
            tsc_shift: shift,
        }
    }

    /// The counter at the last bracket, which is the reference of a clock that is moved.
    pub fn reference(&self) -> Counter {
        self.last.tsc
    }

    /// Nanoseconds a count, if they are off `nominal` by more than `tolerance` (relative), for certain.
    pub fn strays(&self, nominal: f64, tolerance: f64) -> Option<f64> {
        let nanos = self.last.system_time.wrapping_sub(self.start.system_time);
        let strays = nanos >= STRAIGHT_NANOS && (self.rate / nominal - 1.0).abs() > tolerance + self.rate_error;
        strays.then_some(self.rate)
    }

    /// Moves a clock over the counter to Xen's system time, with the last bracket as its reference. Nothing if the result
    /// cannot be said in a page.
    pub fn over_system_time(&self, clock: &Clock) -> Option<Clock> {
        /// Of the arithmetic in floating point, relative.
        const ROUNDING: f64 = 1e-15;
        let (time, max_error) = clock.reading_at(self.last.tsc)?;
        let secs = clock.period.as_secs_f64();
        let period = Period::from_secs_f64(secs / self.rate)?;
        let added = self.added();
        let relative = clock.period_max_error as f64 / clock.period.frac as f64;
        let relative = (1.0 + relative) * (1.0 + added.rate as f64 / 2f64.powi(64) + ROUNDING) - 1.0 + ROUNDING;
        Some(Clock {
            counter: Counter(self.last.system_time),
            time,
            period,
            period_max_error: (relative * period.frac as f64) as u64 + 1,
            max_error_nanos: u64::try_from(max_error.ceil_nanos()).ok()?.checked_add(added.nanos)?.checked_add(2)?,
        })
    }

    /// What the line adds to a clock's bound.
    pub fn added(&self) -> Added {
        // What was missed grows with the time between two looks, and one may come late.
        let nanos = self.last.half_width as f64 * self.rate + 2.0 * self.miss + 1.0;
        // The multiplier has 32 bits, the highest of them set.
        let rate = self.rate_error + self.wander + 2f64.powi(-31);
        Added { nanos: nanos.ceil() as u64, rate: (rate * 2f64.powi(64)) as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::excursion::LOOK;
    use proptest::prelude::*;
    use radclock::time::{Span, Timestamp};

    /// Between two looks, ns.
    const STEP: f64 = LOOK.as_nanos() as f64;

    fn off(relation: &Relation, tsc: u64, truth: f64) -> (f64, f64) {
        let info = relation.info();
        let added = relation.added();
        let age = tsc.abs_diff(info.tsc_timestamp) as f64 * relation.rate;
        let bound = added.nanos as f64 + age * added.rate as f64 / 2f64.powi(64) + 2.0;
        ((info.system_time(Counter(tsc)) as f64 - truth).abs(), bound)
    }

    #[test]
    fn on_a_steady_host_the_line_grows() {
        let sample =
            |at: f64| Sample { tsc: Counter((at * 3.0) as u64 + 12_345), system_time: at as u64, half_width: 600 };
        let mut relation = Relation::new(sample(1e9), sample(1.02e9)).unwrap();
        for look in 1..10_000 {
            relation.update(sample(1.02e9 + f64::from(look) * STEP)).unwrap();
        }
        assert!(relation.rate_error < 5e-8 && relation.wander == 0.0 && relation.miss < 202.0);
        assert!(relation.added().nanos < 607);
    }

    #[test]
    fn a_step_costs_its_size_but_leaves_the_rate() {
        let sample = |at: f64, step: f64| Sample {
            tsc: Counter((at * 3.0) as u64),
            system_time: (at + step) as u64,
            half_width: 600,
        };
        let mut relation = Relation::new(sample(1e9, 0.0), sample(1.02e9, 0.0)).unwrap();
        for look in 1..3000 {
            let at = 1.02e9 + f64::from(look) * 1e7;
            relation.update(sample(at, if look < 1000 { 0.0 } else { 1e6 })).unwrap();
        }
        let added = relation.added();
        assert!((1_000_000..2_100_000).contains(&added.nanos), "{added:?}");
        assert!((added.rate as f64 / 2f64.powi(64)) < 1e-6 && relation.wander < 1e-9, "{relation:?}");
    }

    #[test]
    fn a_clock_over_the_counter_is_the_same_over_system_time() {
        for hz in [14_318_180.0, 100e6, 2.7e9] {
            let sample =
                |at: f64| Sample { tsc: Counter((at * hz * 1e-9) as u64), system_time: at as u64, half_width: 3 };
            let mut relation = Relation::new(sample(1e9), sample(1.1e9)).unwrap();
            for look in 1..20 {
                relation.update(sample(1.1e9 + f64::from(look) * 1e9)).unwrap();
            }
            let reference = sample(15e9);
            let clock = Clock {
                counter: reference.tsc,
                time: Timestamp::new(1_800_000_000, 0),
                period: Period::from_secs_f64(1.0 / hz * (1.0 + 3e-5)).unwrap(),
                period_max_error: 1 << 40,
                max_error_nanos: 5000,
            };
            let moved = relation.over_system_time(&clock).unwrap();
            for at in [15e9, 20.1e9, 50e9] {
                let (time, bound) = clock.reading_at(sample(at).tsc).unwrap();
                let (moved, moved_bound) = moved.reading_at(Counter(at as u64)).unwrap();
                let off = moved.since(time).abs();
                // Both are the same to within what the line adds, and so never tighter than the clock that was moved.
                let added = moved_bound - bound;
                assert!(off <= added && added < Span::from_nanos(30_000), "{hz}: {off:?} {added:?}");
            }
            assert_eq!(relation.strays(1e9 / hz * 1.0001, 500e-6), None);
            let rate = relation.strays(1e9 / hz * 1.0006, 500e-6).expect("it strays");
            assert!((rate * hz / 1e9 - 1.0).abs() < 1e-6 && relation.strays(rate, 500e-6).is_none(), "{rate}");
            let short = Relation::new(sample(1e9), sample(1.02e9)).unwrap();
            assert_eq!(short.strays(1e9 / hz * 1.0006, 500e-6), None);
        }
    }

    #[test]
    fn a_clock_that_runs_backwards_ends_the_line() {
        let sample = |tsc, system_time| Sample { tsc: Counter(tsc), system_time, half_width: 1 };
        assert!(Relation::new(sample(100, 100), sample(100, 200)).is_none());
        let mut relation = Relation::new(sample(100, 100), sample(1100, 1100)).unwrap();
        assert!(relation.update(sample(2100, 900)).is_none());
    }

    proptest! {
        /// The scale changes once; readings are wrong by up to their half-widths.
        #[test]
        fn between_looks_the_line_is_right_to_within_its_bound_again_after_a_change(
            ghz in 0.5f64..6.0,
            change in -100e-6f64..100e-6,
            wrong in prop::collection::vec(-1.0f64..1.0, 200),
            half_width in 50u64..20_000,
        ) {
            let knee = 5e9;
            // Nanoseconds of system time at `at` counts.
            let truth = |tsc: f64| {
                let nanos = tsc / ghz;
                nanos + (nanos - knee).max(0.0) * change
            };
            let sample = |tsc: f64, wrong: f64| Sample {
                tsc: Counter(tsc as u64),
                system_time: (truth(tsc.floor() + wrong * half_width as f64) + 1e9) as u64,
                half_width,
            };
            let mut tsc = 1e9 * ghz;
            let mut relation = Relation::new(sample(tsc, wrong[0]), sample(tsc + STEP * ghz, wrong[1])).unwrap();
            tsc += STEP * ghz;
            let mut unseen = false;
            for &wrong in &wrong[2..] {
                let next = tsc + STEP * ghz;
                let crosses = truth(tsc) < knee && truth(next) >= knee;
                for part in [0.25, 0.5, 1.0] {
                    let at = (tsc + (next - tsc) * part).floor();
                    let (off, bound) = off(&relation, at as u64, truth(at) + 1e9);
                    // The first change comes out of the blue.
                    prop_assert!(crosses || unseen || off <= bound, "off {off} bound {bound}");
                }
                relation.update(sample(next, wrong)).unwrap();
                // One more look: the change may have come right before the bracket that should show it.
                unseen = crosses;
                tsc = next;
            }
        }
    }
}
