//! How wrong the rate may be: what the filters say, and what an oscillator may do while nobody looks.
//!
//! A filter knows the rate of the last minutes. Hours without a stamp are another matter: temperature takes the rate
//! wherever it has been before and a little farther. So the bound spans the range of the rates seen, and an allowance
//! that shrinks as more has been seen.

/// How far the rate may leave the range seen, relative…
const ALLOWANCE: f64 = 0.1e-6;
/// …and on top of it while the rate has been seen for less than `SEEN_SECS`; afterwards in inverse proportion.
const ALLOWANCE_EARLY: f64 = 2e-6;
const SEEN_SECS: f64 = 1.5 * 3600.0;
/// The range seen is forgotten within about so many seconds.
const MEMORY_SECS: f64 = 10.0 * 86400.0;

/// The rates seen, relative to the nominal one.
#[derive(Clone, Copy, Debug)]
struct Range {
    low: f64,
    high: f64,
    secs: f64,
}

/// The bound on the rate's error.
#[derive(Clone, Debug)]
pub(super) struct RateBound {
    skew: f64,
    seen: Option<Range>,
    bound: f64,
}

impl RateBound {
    /// Before anything was seen: the rate is anywhere within `skew` of the nominal one.
    pub(super) fn new(skew: f64) -> RateBound {
        RateBound { skew, seen: None, bound: skew }
    }

    /// The bound, relative.
    pub(super) fn get(&self) -> f64 {
        self.bound
    }

    /// The rate is estimated as `rate` off the nominal one, to within `error`; `secs` after the estimate before.
    pub(super) fn see(&mut self, rate: f64, error: f64, secs: f64) {
        // Estimates worse than the allowance would only spoil the range.
        if self.seen.is_none() && error < ALLOWANCE_EARLY {
            self.seen = Some(Range { low: rate, high: rate, secs: 0.0 });
        }
        let beyond = match &mut self.seen {
            None => ALLOWANCE_EARLY,
            Some(range) => {
                let leak = (secs / MEMORY_SECS).min(1.0);
                range.low = rate.min(range.low + leak * (rate - range.low));
                range.high = rate.max(range.high + leak * (rate - range.high));
                range.secs += secs;
                let early = ALLOWANCE_EARLY * (SEEN_SECS / range.secs).min(1.0);
                (range.high - rate).max(rate - range.low) + ALLOWANCE + early
            }
        };
        self.bound = (error + beyond).min(self.skew + rate.abs());
    }
}
