//! Holds the page's layout and the driver's arithmetic in C (`xen-frontend/kmod/radclockif.h`,
//! `radclock_compose.h`) against their Rust twins, and tests what has none (`radclock_line.h`). There is nothing here to use.

#![cfg(test)]

use std::mem::{offset_of, size_of};

use proptest::prelude::*;
use radclock::clock::{Clock, Period, Status};
use radclock::compose::{Added, TimeInfo, compose};
use radclock::page::{
    Content, CounterId, EXTENSION_MAGIC, EXTENSION_OFFSET, EXTENSION_VERSION, Extension, Flags, PAGE_SIZE, Page,
    TIME_TAI, TIME_UTC, VMCLOCK_MAGIC, VMCLOCK_VERSION, VmclockAbi,
};
use radclock::time::{Counter, Timestamp};

#[repr(C)]
struct CTimeInfo {
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
}

#[repr(C)]
struct CAdded {
    nanos: u64,
    rate: u64,
}

#[repr(C)]
#[derive(Default)]
struct CParams {
    counter_value: u64,
    time_sec: u64,
    time_frac_sec: u64,
    time_maxerror_nanosec: u64,
    counter_period_frac_sec: u64,
    counter_period_maxerror_rate_frac_sec: u64,
    counter_period_shift: u8,
}

unsafe extern "C" {
    fn check_compose(wire: &CParams, info: &CTimeInfo, tsc: u64, added: &CAdded, guest: &mut CParams) -> bool;
    fn check_system_time(info: &CTimeInfo, tsc: u64) -> u64;
    fn check_valid_left(valid_nanos: u64, wire_counter: u64, info: &CTimeInfo, tsc: u64) -> u64;
    fn check_line_look(line: *mut u64, tsc: u64, system_time: u64, heard: u64) -> u64;
    fn check_line_departure(line: *const u64, info: &CTimeInfo) -> u64;
    static check_line_size: u64;
    fn check_wire(page: &Page) -> i32;
    static check_layout: [u64; LAYOUT_LEN];
    static check_layout_len: u64;
    static check_values: [u64; VALUES_LEN];
    static check_values_len: u64;
}

const LAYOUT_LEN: usize = 3 + 2 * (23 + 7 + 2);
const VALUES_LEN: usize = 25;

fn c_info(info: &TimeInfo) -> CTimeInfo {
    let TimeInfo { tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift } = *info;
    CTimeInfo { tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift }
}

fn compose_in_c(wire: &Clock, info: &TimeInfo, tsc: Counter, added: Added) -> Option<Clock> {
    let wire = CParams {
        counter_value: wire.counter.0,
        time_sec: wire.time.secs(),
        time_frac_sec: wire.time.frac(),
        time_maxerror_nanosec: wire.max_error_nanos,
        counter_period_frac_sec: wire.period.frac,
        counter_period_maxerror_rate_frac_sec: wire.period_max_error,
        counter_period_shift: wire.period.shift,
    };
    let mut guest = CParams::default();
    let added = CAdded { nanos: added.nanos, rate: added.rate };
    // SAFETY: the function reads and writes the structures it is given, whose layout is the header's.
    unsafe { check_compose(&wire, &c_info(info), tsc.0, &added, &mut guest) }.then(|| Clock {
        counter: Counter(guest.counter_value),
        time: Timestamp::new(guest.time_sec, guest.time_frac_sec),
        period: Period { frac: guest.counter_period_frac_sec, shift: guest.counter_period_shift },
        period_max_error: guest.counter_period_maxerror_rate_frac_sec,
        max_error_nanos: guest.time_maxerror_nanosec,
    })
}

/// The driver's `struct radclock_line`, which only it looks into.
struct Line([u64; 16]);

impl Line {
    fn new() -> Line {
        // SAFETY: a constant in C.
        assert!(unsafe { check_line_size } <= size_of::<Line>() as u64);
        Line([0; 16])
    }

    /// What the bound has on top after a look, ns.
    fn look(&mut self, tsc: u64, system_time: u64, heard: u64) -> u64 {
        // SAFETY: the structure fits, and begins as all zeros.
        unsafe { check_line_look(self.0.as_mut_ptr(), tsc, system_time, heard) }
    }

    /// How fast the record leaves it, relative; infinite if no bound could follow.
    fn departure(&self, info: &TimeInfo) -> f64 {
        // SAFETY: as above.
        match unsafe { check_line_departure(self.0.as_ptr(), &c_info(info)) } {
            u64::MAX => f64::INFINITY,
            rate => rate as f64 / 2f64.powi(64),
        }
    }
}

#[test]
fn layout_is_the_headers() {
    macro_rules! layout {
        ($($type:ident { $($field:ident),* })*) => {{
            fn size<T, F>(_: impl Fn(&T) -> &F) -> u64 { size_of::<F>() as u64 }
            vec![$(
                size_of::<$type>() as u64,
                $(offset_of!($type, $field) as u64, size(|whole: &$type| &whole.$field)),*
            ),*]
        }};
    }
    let rust = layout! {
        VmclockAbi {
            magic, size, version, counter_id, time_type, seq_count, disruption_marker, flags, pad, clock_status,
            leap_second_smearing_hint, tai_offset_sec, leap_indicator, counter_period_shift, counter_value,
            counter_period_frac_sec, counter_period_esterror_rate_frac_sec, counter_period_maxerror_rate_frac_sec,
            time_sec, time_frac_sec, time_esterror_nanosec, time_maxerror_nanosec, vm_generation_counter
        }
        Extension { magic, version, pad, host_id, generation, valid_nanos, leap_sec }
        Page { abi, ext }
    };
    // SAFETY: constants in C.
    unsafe {
        assert_eq!(check_layout_len, LAYOUT_LEN as u64);
        assert_eq!(check_layout.as_slice(), rust);
    }
}

#[test]
fn values_are_the_headers() {
    let rust = [
        PAGE_SIZE as u64,
        VMCLOCK_MAGIC.into(),
        VMCLOCK_VERSION.into(),
        CounterId::X86_TSC.0.into(),
        CounterId::XEN_SYSTEM_TIME.0.into(),
        CounterId::MONOTONIC_RAW.0.into(),
        CounterId::INVALID.0.into(),
        TIME_UTC.into(),
        TIME_TAI.into(),
        Flags::TAI_OFFSET_VALID.bits(),
        Flags::DISRUPTION_SOON.bits(),
        Flags::DISRUPTION_IMMINENT.bits(),
        Flags::PERIOD_ESTERROR_VALID.bits(),
        Flags::PERIOD_MAXERROR_VALID.bits(),
        Flags::TIME_ESTERROR_VALID.bits(),
        Flags::TIME_MAXERROR_VALID.bits(),
        Flags::TIME_MONOTONIC.bits(),
        Status::Unknown as u64,
        Status::Initializing as u64,
        Status::Synchronized as u64,
        Status::Freerunning as u64,
        Status::Unreliable as u64,
        EXTENSION_MAGIC.into(),
        EXTENSION_VERSION.into(),
        EXTENSION_OFFSET as u64,
    ];
    // SAFETY: constants in C.
    unsafe {
        assert_eq!(check_values_len, VALUES_LEN as u64);
        assert_eq!(check_values, rust);
    }
}

/// A number of any size, the small ones as often as the large.
fn any_size() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (any::<u64>(), 0u32..64).prop_map(|(value, shift)| value >> shift),
        1 => any::<u64>(),
        1 => prop::sample::select(vec![0, 1, u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1]),
    ]
}

/// Any record, valid or not.
fn any_infos() -> impl Strategy<Value = TimeInfo> {
    (any::<u64>(), any::<u64>(), any_size(), -40i8..40).prop_map(|(tsc_timestamp, system_time, mul, tsc_shift)| {
        TimeInfo { tsc_timestamp, system_time, tsc_to_system_mul: mul as u32, tsc_shift }
    })
}

fn valid_infos() -> impl Strategy<Value = TimeInfo> {
    any_infos().prop_filter("valid", TimeInfo::is_valid)
}

/// What a daemon publishes, over a record of a TSC of 0.1–10 GHz, and a TSC within an hour of it.
fn sane() -> impl Strategy<Value = (Clock, TimeInfo, Counter, Added)> {
    let wire = (0u64..1 << 33, any::<u64>(), 0.999e-9..1.001e-9, 0f64..1e-3, 0u64..1 << 32, any::<i32>());
    (wire, any::<[u64; 2]>(), 1u32 << 31.., -3i8..=4, any::<i32>(), 0u64..1 << 30, 0u64..1 << 54).prop_map(
        |((secs, frac, period, error, max_error_nanos, age), [tsc, system_time], mul, shift, at, nanos, rate)| {
            let info = TimeInfo { tsc_timestamp: tsc, system_time, tsc_to_system_mul: mul, tsc_shift: shift };
            let period = Period::from_secs_f64(period).expect("in range");
            let wire = Clock {
                counter: Counter(system_time).offset(i64::from(age) << 10),
                time: Timestamp::new(secs, frac),
                period,
                period_max_error: (period.frac as f64 * error) as u64,
                max_error_nanos,
            };
            (wire, info, Counter(tsc).offset(i64::from(at) << 10), Added { nanos, rate })
        },
    )
}

/// Anything at all.
fn extreme() -> impl Strategy<Value = (Clock, TimeInfo, Counter, Added)> {
    let wire = (any_size(), any_size(), any::<u64>(), any_size(), 0u8..70, any_size(), any_size());
    (wire, any_infos(), any_size(), any_size(), any_size()).prop_map(|(wire, info, tsc, nanos, rate)| {
        let (counter, secs, frac, period, shift, period_max_error, max_error_nanos) = wire;
        let wire = Clock {
            counter: Counter(counter),
            time: Timestamp::new(secs, frac),
            period: Period { frac: period, shift },
            period_max_error,
            max_error_nanos,
        };
        (wire, info, Counter(tsc), Added { nanos, rate })
    })
}

#[test]
fn both_refuse_a_rate_that_does_not_fit() {
    let period = Period::from_secs_f64(1e-9).expect("in range");
    let wire = Clock {
        counter: Counter(0),
        time: Timestamp::new(1, 0),
        period,
        // The sum of both and its product with the rate take more than 64 and 128 bits.
        period_max_error: period.frac,
        max_error_nanos: 0,
    };
    let info = TimeInfo { tsc_timestamp: 0, system_time: 0, tsc_to_system_mul: u32::MAX, tsc_shift: 0 };
    let added = Added { nanos: 0, rate: u64::MAX };
    assert_eq!(compose(&wire, &info, Counter(0), added), None);
    assert_eq!(compose_in_c(&wire, &info, Counter(0), added), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn both_compose_the_same_from_what_a_host_says((wire, info, tsc, added) in sane()) {
        let rust = compose(&wire, &info, tsc, added);
        prop_assert_eq!(rust, compose_in_c(&wire, &info, tsc, added));
        prop_assert!(rust.is_some() || wire.time.secs() < 1 << 13);
    }

    #[test]
    fn both_compose_the_same_from_anything((wire, info, tsc, added) in extreme()) {
        prop_assert_eq!(compose(&wire, &info, tsc, added), compose_in_c(&wire, &info, tsc, added));
    }

    #[test]
    fn both_read_the_same_system_time(info in valid_infos(), tsc in any::<u64>()) {
        // SAFETY: the function reads the structure, whose layout is the header's.
        let c = unsafe { check_system_time(&c_info(&info), tsc) };
        prop_assert_eq!(info.system_time(Counter(tsc)), c);
    }

    #[test]
    fn validity_shrinks_by_the_time_the_reference_moved(
        valid in any_size(), age in any::<i64>(), info in valid_infos(), tsc in any::<u64>(),
    ) {
        let now = info.system_time(Counter(tsc));
        // SAFETY: the function reads the structure, whose layout is the header's.
        let left = unsafe { check_valid_left(valid, now.wrapping_sub(age as u64), &c_info(&info), tsc) };
        prop_assert_eq!(i128::from(left), (i128::from(valid) - i128::from(age.max(0))).max(0));
    }

    #[test]
    fn the_driver_takes_the_pages_that_the_daemon_writes((wire, ..) in sane(), id in any::<bool>(), status in 0u8..=4) {
        let counter_id = if id { CounterId::XEN_SYSTEM_TIME } else { CounterId::X86_TSC };
        let page = Page::new(&Content {
            counter_id,
            status: Status::from_abi(status),
            clock: Some(wire),
            disruption_marker: 0,
            disruption: Flags::empty(),
            tai_offset: None,
            leap_indicator: 0,
            host_id: [0; 16],
            generation: 0,
            valid_nanos: 0,
        });
        // SAFETY: the function reads the page, whose layout is the header's.
        prop_assert_eq!(unsafe { check_wire(&page) } == 0, id);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Xen pulls system time back and forth by up to `noise` from second to second, is held up some time later, and stays off
    /// or takes it back: whatever is more than usual is covered at each look. Both clocks drift by `drift`.
    #[test]
    fn what_leaves_the_line_is_covered(
        drift in -1e-4f64..1e-4, noise in 0f64..40e3, begin in 12f64..300.0, log_height in 4f64..9.0, falls in any::<bool>(),
        stays in any::<bool>(), step in prop_oneof![0.004f64..0.02, 0.02f64..1.0], is_heard in any::<bool>(),
    ) {
        let height = 10f64.powf(log_height) * if falls { -1.0 } else { 1.0 };
        let mut line = Line::new();
        let (mut now, mut most) = (0.0, 0u64);
        while now < begin + 50.0 {
            now += step;
            let since = now - begin;
            let off = match since {
                ..0.0 => 0.0,
                _ if stays => since.min(1.0) * height,
                _ => (1.0 - (since - 1.0).abs()).max(0.0) * height,
            };
            let usual = if (now as u64).is_multiple_of(2) { noise * now.fract() } else { noise * (1.0 - now.fract()) };
            let system_time = (now * 1e9 + usual + off) as u64;
            let tsc = u64::MAX.wrapping_add((now * 2.7e9 * (1.0 + drift)) as u64);
            let added = line.look(tsc, system_time, if is_heard { system_time } else { 0 });
            if since < 0.0 {
                // Two looks a second may see half of what is usual, and then all of it.
                prop_assert!(added == 0 || step > 0.5 && added as f64 <= 24.0 * noise, "{} at {} s", added, now);
            } else {
                // Twice what is usual, or taken for usual at first, is no difference yet; the line itself is off by as much.
                let hand = 2.0 * (2.0 * f64::max(100e3, 3.0 * noise) + 5e3);
                prop_assert!(added as f64 + hand >= off.abs(), "{} of {} at {} s", added, off, since);
            }
            // The longer it is off, the less is known of where the line is; a young one soon.
            prop_assert!(begin < 70.0 || added as f64 <= off.abs() + 600e3 + 40.0 * noise, "{} of {}", added, off);
            most = most.max(added);
        }
        prop_assert!(height.abs() < 1e6 || step > 0.5 || most > 0);
    }

    /// A page that is composed while Xen runs at another pace leaves the truth as fast as that, until the next look.
    #[test]
    fn another_pace_is_in_the_rate_or_gives_no_clock(
        pace in prop_oneof![0.9..1.1, 0.99999..1.00001, 0.01..20.0], mul in 1u32 << 28..1 << 31, shift in -2i8..=2,
        at in any::<u64>(),
    ) {
        let info = |mul| TimeInfo { tsc_timestamp: at, system_time: at, tsc_to_system_mul: mul, tsc_shift: shift };
        let (right, wrong) = (info(mul), info((f64::from(mul) * pace) as u32));
        prop_assume!(wrong.is_valid());
        let mut line = Line::new();
        let second = (2f64.powi(32 - i32::from(shift)) / f64::from(mul) * 1e9) as u64;
        for secs in 0..40 {
            let tsc = at.wrapping_add(secs * second);
            prop_assert_eq!(line.look(tsc, right.system_time(Counter(tsc)), 0), 0);
        }
        let pace = f64::from(wrong.tsc_to_system_mul) / f64::from(mul);
        let expected = (1.0 - 1.0 / pace).abs();
        prop_assert!(line.departure(&right) < 1e-8);
        let departure = line.departure(&wrong);
        prop_assert!((departure - expected).abs() < 1e-8 || departure.is_infinite() && expected > 0.06, "{departure}");
        prop_assert!(departure.is_infinite() || expected < 0.065);
    }

    #[test]
    fn a_line_takes_anything(
        looks in prop::collection::vec((any_size(), any_size(), any::<bool>(), any_size()), 1..100), info in valid_infos(),
    ) {
        let (mut line, mut tsc, mut system_time) = (Line::new(), 0u64, 0u64);
        for (counts, nanos, back, heard) in looks {
            tsc = if back { tsc.wrapping_sub(counts) } else { tsc.wrapping_add(counts) };
            system_time = system_time.wrapping_add(nanos);
            prop_assert!(line.look(tsc, system_time, heard) < 1 << 63);
            line.departure(&info);
        }
    }
}

/// Parameters whose reference is a minute later have it. Those of a daemon that is gone never do, however long they are valid.
#[test]
fn a_difference_that_stays_is_absorbed_by_parameters_of_later_only() {
    for is_heard in [false, true] {
        let mut line = Line::new();
        let added: Vec<u64> = (0..300)
            .map(|secs| {
                let lost = if secs < 100 { 0 } else { 50_000_000_000 };
                let system_time = (secs + 1000) * 1_000_000_000 - lost;
                line.look(secs * 2_700_000_000, system_time, if is_heard { system_time } else { 1_090_000_000_000 })
            })
            .collect();
        assert_eq!(added[..100], [0; 100]);
        assert!(added[100..150].iter().all(|&added| added >= 50_000_000_000));
        assert_eq!(added[170..].iter().all(|&added| added == 0), is_heard);
        assert_eq!(added[170..].iter().all(|&added| added >= 50_000_000_000), !is_heard);
    }
}

/// A host that stands still for minutes has a Xen that lost most of them, and makes up for them at a slow pace. Each look knows how
/// much, however long ago the one before was, and no clock runs at that pace.
#[test]
fn what_a_host_that_stood_still_lost_is_off_the_line() {
    for still in [50u64, 300, 3000, 100_000] {
        let mut line = Line::new();
        let at = |secs: u64| secs * 2_700_000_000;
        let info = |mul: u32| TimeInfo { tsc_timestamp: 0, system_time: 0, tsc_to_system_mul: mul, tsc_shift: 0 };
        let mul = (2f64.powi(32) / 2.7) as u32;
        assert!((0..100).all(|secs| line.look(at(secs), secs * 1_000_000_000, 0) == 0));
        assert_eq!(line.departure(&info(mul)) as u32, 0);
        for secs in 0..200 {
            let kept = 99_000_000_000 + still % 43 * 1_000_000_000 + secs * 1_000_000_000 / 13;
            let lost = (99 + still + secs) * 1_000_000_000 - kept;
            assert!(line.look(at(99 + still + secs), kept, 0) >= lost, "{still} s, {secs} s later");
            assert!(line.departure(&info(mul / 13)).is_infinite());
        }
    }
}

/// A line that was drawn while Xen was held up is given up once the daemon has been heard for a minute.
#[test]
fn a_young_line_of_another_slope_does_not_last() {
    for height in [7_000_000, 230_000_000] {
        let mut line = Line::new();
        let added: Vec<u64> = (0u64..100)
            .map(|secs| {
                let system_time = (secs + 1000) * 1_000_000_000 + if secs == 1 { height } else { 0 };
                line.look(secs * 2_700_000_000, system_time, system_time)
            })
            .collect();
        assert!(added[2] > 0 && added[65..].iter().all(|&added| added == 0), "{added:?}");
    }
}

/// However far system time jumps: the TSC says how long ago the line was looked at.
#[test]
fn a_leap_of_minutes_is_off_the_line() {
    for leap in [200_000_000_000, 290_000_000_000, 1 << 55] {
        let mut line = Line::new();
        let mut look = |secs: u64, more: u64| line.look(secs * 2_700_000_000, secs * 1_000_000_000 + more, 0);
        assert!((0..60).all(|secs| look(secs, 0) == 0));
        assert!(look(60, leap) >= leap);
    }
}
