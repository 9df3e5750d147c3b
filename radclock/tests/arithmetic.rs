//! Clock arithmetic against rational numbers of any size: exact to the last bit, and bounds never too small.

#![allow(missing_docs)]

mod exact;

use exact::{any_clocks, bound, clocks, f64, int, nanos, of_period, of_span, of_timestamp, periods, pow2};
use num_traits::ToPrimitive;
use proptest::prelude::*;
use radclock::clock::{Clock, Period};
use radclock::time::{Counter, Span, Timestamp};

const WEEK: f64 = 7.0 * 86_400.0;

/// `reading_at` says nothing only where the result does not fit, and otherwise the exact time rounded down, with the
/// exact bound rounded up by less than a unit for each of its roundings.
fn check_reading(clock: &Clock, counts: i64) -> Result<(), TestCaseError> {
    let exact_counts = int(counts);
    let (time, max_error) = (exact::time(clock, &exact_counts), bound(clock, &exact_counts));
    let unit = pow2(-64);
    match clock.reading_at(clock.counter.offset(counts)) {
        Some((read, read_error)) => {
            let rounded_off = &time - of_timestamp(read);
            prop_assert!(rounded_off >= exact::zero() && rounded_off < unit);
            let excess = of_span(read_error) - max_error - rounded_off;
            // The constant for nanoseconds is less than a unit too large, for each of them.
            prop_assert!(excess >= exact::zero() && excess <= (int(clock.max_error_nanos) + int(2)) * unit);
            prop_assert_eq!(clock.time_at(clock.counter.offset(counts)), read);
        }
        None => {
            let time_fits = time >= exact::zero() && time < pow2(64);
            let bound_fits = max_error + (int(clock.max_error_nanos) + int(3)) * unit < pow2(63);
            prop_assert!(!time_fits || !bound_fits);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn reading_is_exact_over_weeks(clock in clocks(), secs in -10.0 * WEEK..10.0 * WEEK) {
        let counts = (f64(secs) / of_period(clock.period)).to_integer().to_i64().expect("weeks fit");
        check_reading(&clock, counts)?;
    }

    #[test]
    fn reading_is_exact_or_nothing_at_any_extreme(clock in any_clocks(), counts in any::<i64>()) {
        check_reading(&clock, counts)?;
        check_reading(&clock, i64::MIN)?;
        check_reading(&clock, i64::MAX)?;
    }

    #[test]
    fn reading_does_not_depend_on_where_the_counter_wraps(clock in clocks(), by in any::<i64>(), counts in any::<i32>()) {
        let moved = Clock { counter: clock.counter.offset(by), ..clock };
        let counts = i64::from(counts) << 20;
        prop_assert_eq!(
            clock.reading_at(clock.counter.offset(counts)),
            moved.reading_at(moved.counter.offset(counts))
        );
    }

    #[test]
    fn bound_grows_with_age_on_either_side(clock in clocks(), age in 0i64..1 << 53, more in 0i64..1 << 53) {
        for (near, far) in [(age, age + more), (-age, -age - more)] {
            let at = |counts| clock.max_error_at(clock.counter.offset(counts));
            prop_assert!(at(far) >= at(near));
        }
    }

    #[test]
    fn period_from_a_double_keeps_the_double(secs in 1e-11..1e-7) {
        let period = Period::from_secs_f64(secs).expect("in range");
        prop_assert!(period.frac >> 62 != 0);
        prop_assert_eq!(of_period(period), f64(secs));
        prop_assert_eq!(period.as_secs_f64(), secs);
    }

    #[test]
    fn span_is_the_period_times_the_counts(period in periods(), counts in any::<i64>()) {
        let rounded_off = of_period(period) * int(counts) - of_span(period.span(counts));
        prop_assert!(rounded_off >= exact::zero() && rounded_off < pow2(-64));
    }

    #[test]
    fn nanoseconds_round_as_they_say(units in any::<i128>(), whole in any::<i64>()) {
        let span = Span::from_frac(units);
        let scaled = of_span(span) * int(1_000_000_000);
        let saturated = |value: num_bigint::BigInt| {
            value.to_i64().unwrap_or(if units < 0 { i64::MIN } else { i64::MAX })
        };
        prop_assert_eq!(span.floor_nanos(), saturated(scaled.floor().to_integer()));
        prop_assert_eq!(span.ceil_nanos(), saturated(scaled.ceil().to_integer()));
        let small = Span::from_frac(units >> 40);
        prop_assert_eq!(small.floor_nanos(), (of_span(small) * int(1_000_000_000)).floor().to_integer().to_i64().unwrap());

        for value in [whole, i64::MIN, i64::MAX] {
            let error = of_span(Span::from_nanos(value)) - int(value) / int(1_000_000_000);
            prop_assert!(error.clone() * int(2) <= pow2(-64) && error * int(2) >= -pow2(-64));
        }
    }

    #[test]
    fn timestamp_from_nanoseconds_and_back(secs in 0u64..1 << 40, subsec in any::<u64>()) {
        let time = Timestamp::from_unix(secs, subsec);
        let error = of_timestamp(time) - int(secs) - nanos(subsec);
        prop_assert!(error.clone() * int(2) <= pow2(-64) && error * int(2) >= -pow2(-64));
        prop_assert_eq!(int(time.subsec_nanos()), (of_timestamp(time).fract() * int(1_000_000_000)).floor());
    }

    #[test]
    fn timestamps_add_and_subtract(time in any::<u128>(), span in any::<i128>()) {
        let (start, span) = (Timestamp::from_frac(time), Span::from_frac(span));
        let exact_end = of_timestamp(start) + of_span(span);
        match start.checked_add(span) {
            Some(end) => {
                prop_assert_eq!(of_timestamp(end), exact_end);
                prop_assert_eq!(start.saturating_add(span), end);
                prop_assert_eq!(end.since(start), span);
            }
            None => {
                let end = if exact_end < exact::zero() { Timestamp::from_frac(0) } else { Timestamp::from_frac(u128::MAX) };
                prop_assert_eq!(start.saturating_add(span), end);
            }
        }
    }
}

#[test]
fn spans_saturate_rather_than_wrap() {
    let lowest = Span::from_frac(i128::MIN);
    assert_eq!(Span::MAX + Span::MAX, Span::MAX);
    assert_eq!(lowest - Span::MAX, lowest);
    assert_eq!(-lowest, Span::MAX);
    assert_eq!(lowest.abs(), Span::MAX);
}

#[test]
fn periods_out_of_range_are_refused() {
    assert_eq!(Period::new(0, 0), None);
    assert_eq!(Period::new(1, 64), None);
    for secs in [0.0, -1e-9, 1e-6, 1e-12, f64::NAN, f64::INFINITY] {
        assert_eq!(Period::from_secs_f64(secs), None, "{secs}");
    }
}

#[test]
fn counters_differ_by_the_shorter_way_round() {
    assert_eq!(Counter(5).since(Counter(u64::MAX - 4)), 10);
    assert_eq!(Counter(u64::MAX - 4).since(Counter(5)), -10);
    assert_eq!(Counter(3).offset(-4), Counter(u64::MAX));
}
