//! The clock's arithmetic once more, in rational numbers of any size, and clocks to try it on.

#![allow(dead_code, reason = "each test uses its own part")]

use num_rational::BigRational;
use num_traits::{FromPrimitive, One, Signed, Zero};
use proptest::prelude::*;
use radclock::clock::{Clock, Period};
use radclock::time::{Counter, Span, Timestamp};

pub fn int(value: impl Into<num_bigint::BigInt>) -> BigRational {
    BigRational::from_integer(value.into())
}

pub fn pow2(exponent: i32) -> BigRational {
    let power = int(num_bigint::BigInt::one() << exponent.unsigned_abs());
    if exponent < 0 { power.recip() } else { power }
}

pub fn nanos(value: u64) -> BigRational {
    int(value) / int(1_000_000_000)
}

pub fn of_timestamp(time: Timestamp) -> BigRational {
    int(time.as_frac()) * pow2(-64)
}

pub fn of_span(span: Span) -> BigRational {
    int(span.as_frac()) * pow2(-64)
}

pub fn of_period(period: Period) -> BigRational {
    int(period.frac) * pow2(-64 - i32::from(period.shift))
}

pub fn rate(clock: &Clock) -> BigRational {
    int(clock.period_max_error) * pow2(-64 - i32::from(clock.period.shift))
}

/// Seconds since 1970 at `counts` from the reference.
pub fn time(clock: &Clock, counts: &BigRational) -> BigRational {
    of_timestamp(clock.time) + counts * of_period(clock.period)
}

/// The bound there.
pub fn bound(clock: &Clock, counts: &BigRational) -> BigRational {
    nanos(clock.max_error_nanos) + counts.abs() * rate(clock)
}

pub fn f64(value: f64) -> BigRational {
    BigRational::from_f64(value).expect("finite")
}

pub fn zero() -> BigRational {
    BigRational::zero()
}

/// A period of 0.1–10 GHz with any number of significant bits above 40.
pub fn periods() -> impl Strategy<Value = Period> {
    (1e-10..1e-8, 0u8..20).prop_map(|(secs, drop): (f64, u8)| {
        let full = Period::from_secs_f64(secs).expect("in range");
        Period::new(full.frac >> drop, full.shift - drop).expect("not zero")
    })
}

/// A counter anywhere, and often just before or behind a wrap-around.
pub fn counters() -> impl Strategy<Value = Counter> {
    prop_oneof![any::<u64>(), (0u64..1 << 40).prop_map(u64::wrapping_neg), 0u64..1 << 40].prop_map(Counter)
}

/// A clock as a daemon makes them: this century, wrong by up to a second and 1000 ppm.
pub fn clocks() -> impl Strategy<Value = Clock> {
    (counters(), 0u64..4_102_444_800, any::<u64>(), periods(), 0f64..1e-3, 0u64..1_000_000_000).prop_map(
        |(counter, secs, frac, period, error, max_error_nanos)| Clock {
            counter,
            time: Timestamp::new(secs, frac),
            period,
            period_max_error: (period.frac as f64 * error) as u64,
            max_error_nanos,
        },
    )
}

/// Any clock that has a period.
pub fn any_clocks() -> impl Strategy<Value = Clock> {
    (any::<[u64; 6]>(), 0..=Period::MAX_SHIFT).prop_map(|(words, shift)| Clock {
        counter: Counter(words[0]),
        time: Timestamp::new(words[1], words[2]),
        period: Period { frac: words[3].max(1), shift },
        period_max_error: words[4],
        max_error_nanos: words[5],
    })
}
