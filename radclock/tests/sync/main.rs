//! The synchroniser in a small world with a known truth: how good its clock is, and that its bound holds whatever happens.

mod world;

use proptest::prelude::*;
use radclock::clock::Status;
use radclock::stamp::{Stamp, StampSource};
use radclock::sync::{SyncParams, Synchroniser, Verdict};
use radclock::time::{Counter, Span, Timestamp};
use world::{Path, Random, World, lan, median_bound, rms, worst};

const HOUR: f64 = 3600.0;
const US: f64 = 1e-6;

#[test]
fn a_quiet_lan_gives_microseconds_and_a_tight_bound() {
    for seed in 1..=3 {
        let run = lan(seed).run(8.0, |_| 16.0);
        run.assert_honest();
        let settled = run.after(2.0 * HOUR);
        assert!(rms(settled) < 4.5 * US, "seed {seed}: {}", rms(settled));
        assert!(worst(settled) < 25.0 * US, "seed {seed}: {}", worst(settled));
        assert!(median_bound(settled) < 1.3 * 200.0 * US + 20.0 * US, "seed {seed}: {}", median_bound(settled));
    }
}

#[test]
fn a_cold_start_has_a_clock_within_ten_seconds_and_a_bound_that_narrows() {
    for (seed, skew) in [(4, 37e-6), (5, -300e-6), (6, 450e-6)] {
        let run = World { skew, ..lan(seed) }.run(0.5, |_| 1.0);
        run.assert_honest();
        assert!(run.readings[0].at < run.start + 10.0);
        assert!(median_bound(run.after(600.0)) < 0.5 * run.readings[0].bound);
        assert!(rms(run.after(600.0)) < 2.0 * US, "seed {seed}: {}", rms(run.after(600.0)));
    }
}

#[test]
fn three_exchanges_of_a_burst_make_a_clock() {
    let world = lan(7);
    let mut random = Random(7);
    let mut sync = Synchroniser::new(SyncParams::default()).unwrap();
    for t in [10.0, 12.0] {
        assert_eq!(sync.status(world.counter(t)), Status::Initializing);
        assert_eq!(sync.process(&world.stamp(&mut random, t)), Verdict::Accepted);
        assert_eq!(sync.clock(), None);
    }
    sync.process(&world.stamp(&mut random, 14.0));
    let clock = sync.clock().unwrap();
    assert_eq!(sync.status(world.counter(15.0)), Status::Synchronized);
    for t in [0.0, 15.0, 100.0, 10_000.0] {
        assert!(world.error(&clock, t).abs() <= clock.max_error_at(world.counter(t)).as_secs_f64(), "{t}");
    }
}

#[test]
fn without_stamps_the_clock_is_free_running_and_its_bound_grows() {
    let world = lan(8);
    let run = world.run(1.0, |_| 16.0);
    let clock = run.sync.clock().unwrap();
    let valid = run.sync.valid_nanos() as f64 * 1e-9;
    assert!((7.0 * 16.0..9.0 * 16.0).contains(&valid));
    assert_eq!(run.sync.status(world.counter(HOUR + valid - 20.0)), Status::Synchronized);
    assert_eq!(run.sync.status(world.counter(HOUR + valid + 20.0)), Status::Freerunning);
    let bound = |hours: f64| clock.max_error_at(world.counter(hours * HOUR));
    assert!(bound(2.0) > bound(1.5) && bound(1.5) > bound(1.1));
}

#[test]
fn a_lying_server_is_not_followed() {
    for (seed, lie) in [(9, 0.15), (10, -10.0), (11, 0.004)] {
        let run = World { lies: vec![(3.0 * HOUR, 3.25 * HOUR, lie)], ..lan(seed) }.run(5.0, |_| 16.0);
        run.assert_honest();
        assert!(worst(run.after(2.0 * HOUR)) < 60.0 * US, "{lie}: {}", worst(run.after(2.0 * HOUR)));
        let insane = run.readings.iter().filter(|reading| reading.verdict == Verdict::Insane).count();
        assert!((50..60).contains(&insane), "{lie}: {insane}");
        assert_eq!(run.sync.report().insane as usize, insane);
    }
}

/// The second lie is farther off than the rate's bound allows, but no farther than the rate may have changed in a silence as
/// long as the first. There was no silence.
#[test]
fn a_liar_that_changes_its_lie_is_not_followed_either() {
    for (seed, first, second) in [(34, 0.1, 3e-3), (35, -5.0, -2.5e-3), (36, 0.1, -3e-3)] {
        let lies = vec![(24.0 * HOUR, 25.0 * HOUR, first), (25.0 * HOUR, 25.2 * HOUR, second)];
        let run = World { lies, ..lan(seed) }.run(26.0, |t| if t < 23.0 * HOUR { 64.0 } else { 16.0 });
        run.assert_honest();
        let off = worst(run.after(23.0 * HOUR));
        assert!(off < 100.0 * US, "{first}, then {second}: {off}");
    }
}

#[test]
fn a_server_that_never_stops_contradicting_the_clock_is_believed_after_as_long_as_it_confirmed_it() {
    let mut world = lan(12);
    world.lies = vec![(0.5 * HOUR, 9.0 * HOUR, 2.0)];
    let run = world.run(3.0, |_| 16.0);
    assert_eq!(run.sync.report().restarts, 1);
    let first = run.readings.iter().find(|reading| (reading.error - 2.0).abs() < 1e-3).unwrap();
    assert!((0.95 * HOUR..1.05 * HOUR).contains(&first.at), "{}", first.at);
    // Who is right is not known for another hour.
    let covers = |reading: &&world::Reading| reading.at > first.at && reading.bound > reading.error.abs();
    assert!((0.95 * HOUR..1.1 * HOUR).contains(&(run.readings.iter().filter(covers).count() as f64 * 16.0)));
}

#[test]
fn a_lie_in_the_very_first_stamp_is_forgotten() {
    let run = World { lies: vec![(0.0, 10.0, -5.0)], ..lan(13) }.run(0.5, |_| 2.0);
    run.assert_honest();
    assert!(run.readings[0].at < run.start + 20.0);
}

#[test]
fn a_risen_round_trip_is_a_level_shift_and_leaves_the_clock_alone() {
    for (seed, shift) in [(14, [0.9e-3, 0.9e-3]), (15, [0.9e-3, 0.0]), (16, [0.0, 0.4e-3])] {
        let run = World { shifts: vec![(3.0 * HOUR, shift)], ..lan(seed) }.run(6.0, |_| 16.0);
        run.assert_honest();
        assert!(worst(run.after(2.0 * HOUR)) < 35.0 * US, "{shift:?}: {}", worst(run.after(2.0 * HOUR)));
        let report = run.sync.report();
        assert_eq!((report.shifts_up, report.shifts_down), (1, 0), "{shift:?}");
        assert!((report.min_rtt_s - 400.0 * US - shift[0] - shift[1]).abs() < 30.0 * US, "{}", report.min_rtt_s);
    }
}

#[test]
fn a_fallen_round_trip_is_a_level_shift_and_leaves_the_clock_alone() {
    for (seed, shift) in [(17, [-0.5e-3, -0.5e-3]), (18, [-0.5e-3, 0.0]), (19, [0.0, -0.3e-3])] {
        let mut world = lan(seed);
        world.path.min = 800.0 * US;
        world.shifts = vec![(3.0 * HOUR, shift)];
        let run = world.run(6.0, |_| 16.0);
        run.assert_honest();
        assert!(worst(run.after(2.0 * HOUR)) < 35.0 * US, "{shift:?}: {}", worst(run.after(2.0 * HOUR)));
        let report = run.sync.report();
        assert_eq!((report.shifts_up, report.shifts_down, report.insane), (0, 1, 0), "{shift:?}");
        assert!((report.min_rtt_s - 1600.0 * US - shift[0] - shift[1]).abs() < 30.0 * US, "{}", report.min_rtt_s);
    }
}

#[test]
fn a_shift_that_hides_in_the_jitter_stays_inside_the_bound() {
    for (seed, shift) in [(31, [2.6e-3, -0.6e-3]), (32, [-0.6e-3, 1.5e-3])] {
        let path = Path { min: 1.8e-3, queue: 1.3e-3, burst: (0.06, 10e-3) };
        let run = World { path, shifts: vec![(3.0 * HOUR, shift)], ..lan(seed) }.run(8.0, |_| 16.0);
        run.assert_honest();
    }
}

#[test]
fn hours_without_stamps_stay_inside_the_bound_and_are_made_good_by_the_next_stamp() {
    for (seed, swing) in [(20, 0.05e-6), (21, 0.4e-6)] {
        let gaps = vec![(2.0 * HOUR, 14.0 * HOUR), (20.0 * HOUR, 22.5 * HOUR)];
        let run = World { gaps: gaps.clone(), swing, ..lan(seed) }.run(24.0, |_| 16.0);
        run.assert_honest();
        for gap in gaps {
            assert!(worst(&run.after(gap.1 + 20.0)[..100]) < 100.0 * US);
        }
        assert_eq!(run.sync.report().insane, 0);
    }
}

#[test]
fn poll_periods_may_change_from_a_second_to_a_quarter_of_an_hour() {
    let poll = |t: f64| [1.0, 16.0, 64.0, 1024.0, 256.0, 2.0][(t / (4.0 * HOUR)) as usize % 6];
    let run = lan(22).run(24.0, poll);
    run.assert_honest();
    assert!(worst(run.after(2.0 * HOUR)) < 200.0 * US, "{}", worst(run.after(2.0 * HOUR)));
}

#[test]
fn a_loopback_server_gives_a_bound_of_tens_of_microseconds() {
    let path = Path { min: 15.0 * US, queue: 4.0 * US, burst: (0.05, 50.0 * US) };
    let run = World { path, ..lan(23) }.run(1.0, |_| 1.0);
    run.assert_honest();
    assert!(median_bound(run.after(600.0)) < 40.0 * US, "{}", median_bound(run.after(600.0)));
}

/// A PTP hardware clock: read between two readings of the counter a microsecond apart, or a little more.
#[test]
fn a_hardware_clock_gives_less_than_a_microsecond() {
    let path = Path { min: 0.45 * US, queue: 0.05 * US, burst: (0.02, US) };
    for (seed, poll) in [(38, 1.0), (39, 1.0), (40, 16.0), (41, 16.0)] {
        let run = World { path, host_delay: 0.0, held: 0.0, ..lan(seed) }.run(6.0, |_| poll);
        run.assert_honest();
        let settled = run.after(2.0 * HOUR);
        assert!(rms(settled) < 0.25 * US, "seed {seed}, every {poll} s: {}", rms(settled));
        assert!(worst(settled) < 1.0 * US, "seed {seed}, every {poll} s: {}", worst(settled));
    }
}

#[test]
fn an_emulated_counter_that_wanders_within_each_second_stays_inside_the_bound() {
    for (seed, poll) in [(24, 1.0), (25, 16.0)] {
        let path = Path { min: 30.0 * US, queue: 20.0 * US, burst: (0.1, 1e-3) };
        let run = World { path, jitter: 100e-6, ..lan(seed) }.run(2.0, |_| poll);
        run.assert_honest();
        assert!(median_bound(run.after(0.5 * HOUR)) < 250.0 * US, "{}", median_bound(run.after(0.5 * HOUR)));
    }
}

#[test]
fn a_counter_whose_rate_jumps_is_followed() {
    let run = World { jump: (4.0 * HOUR, 1e-6), ..lan(26) }.run(8.0, |_| 16.0);
    run.assert_honest();
    assert_eq!(run.sync.report().insane, 0);
    assert!(worst(run.after(4.5 * HOUR)) < 40.0 * US, "{}", worst(run.after(4.5 * HOUR)));
}

#[test]
fn the_clock_does_not_notice_that_the_counter_wraps_around() {
    let hours = 2.0;
    let near = World { first: 0u64.wrapping_sub(HOUR as u64 * 1_000_000_000), ..lan(27) }.run(hours, |_| 16.0);
    let far = lan(27).run(hours, |_| 16.0);
    assert!(near.sync.clock().unwrap().counter.0 < 1 << 62, "it did wrap around");
    for (near, far) in near.readings.iter().zip(&far.readings) {
        assert!((near.error - far.error).abs() < 2e-9 && (near.bound - far.bound).abs() < 2e-9, "{near:?} {far:?}");
    }
}

#[test]
fn a_counter_of_another_frequency_serves_as_well() {
    let run = World { period: 1.0 / 2.9e9, ..lan(28) }.run(4.0, |_| 16.0);
    run.assert_honest();
    assert!(rms(run.after(2.0 * HOUR)) < 5.0 * US);
    assert!((run.sync.report().period_s * 2.9e9 - 1.0 + 37e-6).abs() < 0.1e-6);
}

#[test]
fn the_bound_includes_what_host_and_server_say_of_themselves() {
    let run = World { host_error: 40.0 * US, ..lan(29) }.run(3.0, |_| 16.0);
    run.assert_honest();
    let plain = lan(29).run(3.0, |_| 16.0);
    assert!(median_bound(run.after(HOUR)) > median_bound(plain.after(HOUR)) + 39.0 * US);

    let world = lan(29);
    let mut stamp = world.stamp(&mut Random(1), 3.0 * HOUR);
    let mut bound = |root_delay, root_dispersion| {
        stamp.root_delay = Span::from_nanos(root_delay);
        stamp.root_dispersion = Span::from_nanos(root_dispersion);
        let mut sync = plain.sync.clone();
        assert_eq!(sync.process(&stamp), Verdict::Accepted);
        sync.clock().unwrap().max_error_nanos
    };
    let (without, with) = (bound(0, 0), bound(6_000_000, 500_000));
    assert!(with.abs_diff(without + 3_500_000) <= 1);
}

#[test]
fn stamps_out_of_order_or_impossible_are_refused_and_change_nothing() {
    let world = lan(30);
    let mut run = world.run(1.0, |_| 16.0);
    let good = world.stamp(&mut Random(1), HOUR);
    let before = run.sync.clock();
    let bad = [
        world.stamp(&mut Random(1), HOUR - 60.0),
        Stamp { tf: good.ta, ..good },
        Stamp { tf: good.ta.offset(-1000), ..good },
        Stamp { te: good.tb.saturating_sub(Span::from_nanos(1)), ..good },
        Stamp { te: good.te.saturating_add(Span::from_secs(1)), ..good },
        Stamp { tf: good.tf.offset(i64::MIN), ..good },
    ];
    for stamp in &bad {
        assert_eq!(run.sync.process(stamp), Verdict::Invalid, "{stamp:?}");
    }
    assert_eq!((run.sync.clock(), run.sync.report().invalid), (before, bad.len() as u64));
    assert_eq!(run.sync.process(&good), Verdict::Accepted);
    assert_eq!(run.sync.process(&good), Verdict::Invalid, "twice the same");
}

#[test]
fn a_parameter_out_of_range_is_named() {
    let error = |params| Synchroniser::new(params).unwrap_err().to_string();
    let wild = error(SyncParams { nominal_period: f64::NAN, ..SyncParams::default() });
    assert_eq!(wild, "nominal_period is NaN: it must be from 2e-11 to 5e-8 s a count");
    let loose = error(SyncParams { nominal_skew: 0.5, ..SyncParams::default() });
    assert_eq!(loose, "nominal_skew is 0.5: it must be from 1e-6 to 0.01");
}

fn any_stamp() -> impl Strategy<Value = Stamp> {
    let time = prop_oneof![
        any::<u128>().prop_map(Timestamp::from_frac),
        (0..2_000_000_000u64).prop_map(|s| Timestamp::new(s, 0))
    ];
    let span =
        prop_oneof![Just(Span::ZERO), any::<i64>().prop_map(Span::from_nanos), any::<i128>().prop_map(Span::from_frac)];
    let short = prop_oneof![0..1_000_000_000u64, any::<u64>()];
    (any::<u64>(), time, short.clone(), short, span.clone(), span.clone(), span).prop_map(
        |(ta, tb, held, flight, host_error, root_delay, root_dispersion)| Stamp {
            ta: Counter(ta),
            tb,
            te: tb.saturating_add(Span::from_frac(i128::from(held) << 32)),
            tf: Counter(ta.wrapping_add(flight)),
            host_error,
            root_delay,
            root_dispersion,
            source: StampSource::User,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn garbage_neither_panics_nor_makes_a_bound_shrink_with_age(
        stamps in prop::collection::vec(any_stamp(), 1..40),
        ages in prop::collection::vec(any::<u64>(), 2),
    ) {
        let mut sync = Synchroniser::new(SyncParams::default()).unwrap();
        for stamp in &stamps {
            sync.process(stamp);
            let _ = sync.status(stamp.ta);
            if let Some(clock) = sync.clock() {
                let mut ages = [ages[0] >> 1, ages[1] >> 1];
                ages.sort_unstable();
                let bound = ages.map(|age| clock.max_error_at(clock.counter.offset(age as i64)));
                prop_assert!(clock.max_error_nanos > 0 && bound[0] <= bound[1]);
            }
        }
    }

    #[test]
    fn garbage_among_good_stamps_never_takes_the_clock_out_of_its_bound(
        seed in any::<u64>(),
        garbage in prop::collection::vec((0..200usize, any_stamp()), 1..20),
    ) {
        let world = lan(seed);
        let mut random = Random(seed);
        let mut sync = Synchroniser::new(SyncParams::default()).unwrap();
        for index in 0..200 {
            let t = 100.0 + 16.0 * index as f64;
            if let Some(clock) = sync.clock() {
                let bound = clock.max_error_at(world.counter(t)).as_secs_f64();
                prop_assert!(world.error(&clock, t).abs() <= bound);
            }
            sync.process(&world.stamp(&mut random, t));
            // A liar's stamps look sound in themselves: only its time is anywhere.
            for (_, bad) in garbage.iter().filter(|(at, _)| index > 20 && *at == index) {
                let truth = world.stamp(&mut random, t + 5.0);
                sync.process(&Stamp { tb: bad.tb, te: bad.tb.saturating_add(truth.te.since(truth.tb)), ..truth });
            }
        }
    }
}

#[test]
fn a_young_clock_that_is_contradicted_covers_the_server_as_well() {
    let lie = 2e-3;
    let lies = [600.0, 4000.0, 20_000.0];
    let world = World { lies: lies.map(|from| (from, from + 100.0, lie)).to_vec(), ..lan(1) };
    let run = world.run(6.0, |_| 16.0);
    run.assert_honest();
    let during = |from: f64| run.after(from + 20.0).iter().take_while(move |reading| reading.at < from + 100.0);
    // The second comes within an hour of the first, the third hours after both.
    for (from, young) in lies.into_iter().zip([true, true, false]) {
        assert!(during(from).count() >= 4);
        assert!(during(from).all(|reading| (reading.bound > lie) == young && reading.error < 1e-4), "{from}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_clock_that_was_right_for_seconds_covers_the_truth_whatever_lies_follow(
        seed in any::<u64>(),
        poll in prop::sample::select(vec![1.0, 2.0, 16.0]),
        lies in prop::collection::vec((8.0..60.0f64, 5.0..70.0f64, -2.0..3.0f64, any::<bool>()), 1..4),
    ) {
        let mut at = 8.0;
        let lies: Vec<_> = lies.into_iter().map(|(polls_before, polls, magnitude, is_ahead)| {
            let from = at + polls_before * poll;
            at = from + polls * poll;
            (from, at, 10f64.powf(magnitude) * if is_ahead { 1.0 } else { -1.0 })
        }).collect();
        let run = World { lies, ..lan(seed) }.run(at / HOUR + 0.2, |_| poll);
        run.assert_honest();
    }
}
