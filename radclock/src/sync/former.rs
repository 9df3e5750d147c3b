//! What clocks said that were given up. Whether the server is right now or was right before cannot be known while the clock
//! that replaced them is young: its bound covers both.

use crate::clock::Clock;
use crate::time::{Counter, Span, Timestamp};

/// The time lies where one of them claimed, or where the present clock does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Former(Clock);

impl Former {
    /// `clock` is given up at `now`; `before` are those given up earlier.
    pub(super) fn new(clock: Clock, before: Option<Former>, now: Counter) -> Former {
        Former(before.and_then(|Former(other)| span_both(&clock, &other, now)).unwrap_or(clock))
    }

    /// The clock with a bound that covers what these said.
    pub(super) fn covered_by(&self, clock: Clock) -> Clock {
        let max_error_nanos = match (clock.reading_at(clock.counter), self.0.reading_at(clock.counter)) {
            (Some((time, _)), Some((other, error))) => {
                other.since(time).abs().saturating_add(error).ceil_nanos().unsigned_abs()
            }
            _ => u64::MAX,
        };
        Clock { max_error_nanos: clock.max_error_nanos.max(max_error_nanos), ..clock }
    }
}

/// A clock whose bound covers both at `now`, and later.
fn span_both(clock: &Clock, other: &Clock, now: Counter) -> Option<Clock> {
    let ends = |clock: &Clock| -> Option<(Timestamp, Timestamp)> {
        let (time, error) = clock.reading_at(now)?;
        Some((time.saturating_sub(error), time.saturating_add(error)))
    };
    let ((low, high), (other_low, other_high)) = (ends(clock)?, ends(other)?);
    let (low, high) = (low.min(other_low), high.max(other_high));
    let half = Span::from_frac(((high.as_frac() - low.as_frac()) / 2) as i128);
    let apart = (clock.period.as_secs_f64() - other.period.as_secs_f64()).abs();
    let period_error = clock.period_error().max(apart + other.period_error());
    Some(Clock {
        counter: now,
        time: low.saturating_add(half),
        // A nanosecond for what the halving and both times' rounding lose.
        max_error_nanos: half.ceil_nanos().unsigned_abs().saturating_add(1),
        period: clock.period,
        period_max_error: clock.period.units(period_error).ceil() as u64,
    })
}
