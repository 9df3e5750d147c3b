//! Composition against rational numbers of any size.

#![allow(missing_docs)]

mod exact;

use exact::{bound, clocks, int, nanos, of_period, of_span, of_timestamp, pow2, rate};
use num_rational::BigRational;
use num_traits::Signed;
use proptest::prelude::*;
use radclock::clock::{Clock, Period};
use radclock::compose::{Added, TimeInfo, compose};
use radclock::time::Counter;

/// A clock over nanoseconds, wrong by up to 1000 ppm in its period.
fn wires() -> impl Strategy<Value = Clock> {
    (clocks(), 0.999e-9..1.001e-9, 0.0..1e-3).prop_map(|(clock, secs, error)| {
        let period = Period::from_secs_f64(secs).expect("in range");
        Clock { period, period_max_error: (period.frac as f64 * error) as u64, time: clock.time, ..clock }
    })
}

/// A record as Xen makes them for a TSC of 0.1–10 GHz: the multiplier with its highest bit set.
fn records() -> impl Strategy<Value = TimeInfo> {
    (any::<u64>(), any::<u64>(), 0.1f64..10.0).prop_map(|(tsc_timestamp, system_time, ghz)| {
        let tsc_shift = (1.0 / ghz).log2().floor() as i8 + 1;
        let tsc_to_system_mul = (2f64.powi(32 - i32::from(tsc_shift)) / ghz) as u32;
        TimeInfo { tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift }
    })
}

/// System time less the record's, without Xen's rounding, ns.
fn exact_nanos(info: &TimeInfo, counts: i64) -> BigRational {
    int(counts) * int(info.tsc_to_system_mul) * pow2(i32::from(info.tsc_shift) - 32)
}

/// The wire's reference lies up to about a day before or after the record's.
fn aligned(wire: Clock, info: &TimeInfo, age_nanos: i64) -> Clock {
    Clock { counter: Counter(info.system_time).offset(age_nanos), ..wire }
}

const DAY_NANOS: i64 = 86_400_000_000_000;

proptest! {
    #[test]
    fn system_time_is_xens_with_less_than_two_nanoseconds_rounded_off(info in records(), counts in -(1i64 << 50)..1 << 50) {
        let by = info.system_time(Counter(info.tsc_timestamp).offset(counts)).wrapping_sub(info.system_time) as i64;
        let rounded_off = exact_nanos(&info, counts) - int(by);
        prop_assert!(rounded_off >= exact::zero() && rounded_off < int(2));
    }

    #[test]
    fn composed_clock_covers_the_wires_wherever_it_is_read(
        wire in wires(), info in records(), age in -DAY_NANOS..DAY_NANOS,
        at in 0i64..1 << 36, later in -(1i64 << 50)..1 << 50,
    ) {
        let wire = aligned(wire, &info, age);
        let tsc = Counter(info.tsc_timestamp).offset(at);
        let Some(guest) = compose(&wire, &info, tsc, Added::default()) else {
            // A time before 1970 is the only thing that such input can run into.
            prop_assert!(wire.time.secs() <= 2 * 86_400);
            return Ok(());
        };
        prop_assert_eq!(guest.counter, tsc);
        let elapsed_at = |counts| exact_nanos(&info, counts) + int(info.system_time.wrapping_sub(wire.counter.0) as i64);
        let elapsed = elapsed_at(at + later);
        let difference = (exact::time(&guest, &int(later)) - exact::time(&wire, &elapsed)).abs();
        let (wires_bound, composed_bound) = (bound(&wire, &elapsed), bound(&guest, &int(later)));
        prop_assert!(difference + &wires_bound <= composed_bound);
        // Not wider at the reference than it must be, either.
        prop_assert!(bound(&guest, &int(0)) <= bound(&wire, &elapsed_at(at)) + nanos(5));
    }

    #[test]
    fn composed_period_is_the_product_to_64_bits(wire in wires(), info in records()) {
        let wire = aligned(wire, &info, 0);
        prop_assume!(wire.time.secs() > 0);
        let guest = compose(&wire, &info, Counter(info.tsc_timestamp), Added::default()).expect("fits");
        prop_assert!(guest.period.frac >> 63 == 1);
        let scale = int(info.tsc_to_system_mul) * pow2(i32::from(info.tsc_shift) - 32);
        let unit = pow2(-64 - i32::from(guest.period.shift));
        let rounded_off = of_period(wire.period) * &scale - of_period(guest.period);
        prop_assert!(rounded_off >= exact::zero() && rounded_off < unit);
        let excess = rate(&guest) - rate(&wire) * scale - rounded_off;
        prop_assert!(excess >= exact::zero() && excess <= unit * int(4));
    }

    #[test]
    fn what_is_added_is_in_the_bound(
        wire in wires(), info in records(), nanos in 0u64..1_000_000_000, ppm in 0.0..1000.0, later in 0i64..1 << 50,
    ) {
        let wire = aligned(wire, &info, -1000);
        prop_assume!(wire.time.secs() > 0);
        let added = Added { nanos, rate: (ppm * 1e-6 * 2f64.powi(64)) as u64 };
        let tsc = Counter(info.tsc_timestamp);
        let plain = compose(&wire, &info, tsc, Added::default()).expect("fits");
        let wider = compose(&wire, &info, tsc, added).expect("fits");
        prop_assert_eq!(plain.max_error_nanos + nanos, wider.max_error_nanos);
        let growth = int(later) * of_period(plain.period) * int(added.rate) * pow2(-64);
        prop_assert!(
            of_span(wider.max_error_at(tsc.offset(later)))
                >= of_span(plain.max_error_at(tsc.offset(later))) + exact::nanos(nanos) + growth - pow2(-60)
        );
        prop_assert_eq!(of_timestamp(plain.time), of_timestamp(wider.time));
    }

    #[test]
    fn composing_garbage_never_panics(
        wire in exact::any_clocks(), words in any::<[u64; 5]>(), mul in any::<u32>(), shift in any::<i8>(), frac in any::<bool>(),
    ) {
        let info = TimeInfo { tsc_timestamp: words[0], system_time: words[1], tsc_to_system_mul: mul, tsc_shift: shift };
        let period = Period { frac: if frac { wire.period.frac } else { 0 }, shift: words[2] as u8 };
        let composed = compose(&Clock { period, ..wire }, &info, Counter(words[2]), Added { nanos: words[3], rate: words[4] });
        if !info.is_valid() || period.frac == 0 || period.shift > Period::MAX_SHIFT {
            prop_assert_eq!(composed, None);
        }
    }
}
