//! The synchroniser on every family of simulated traces: no reading is outside of its bound, and errors are no larger than
//! what the family allows. Everything follows from the seeds.

use radclock::sync::{SyncParams, Synchroniser};
use simulator::family::{FAMILIES, find};
use simulator::score::{Score, replay, scored};
use simulator::trace::Trace;

const SEEDS: std::ops::RangeInclusive<u64> = 1..=3;

/// Runs a family's seed: the rms of the error must stay below `rms`, and half of the bounds below `slack` and 1.3 times what
/// nobody can know better: half of the smallest round trip, after a shift that of the longer one, and what the server says
/// of itself. In µs.
fn holds(name: &str, seed: u64, rms: f64, slack: f64) {
    let family = find(name).expect("a family");
    let scenario = family.scenario(seed);
    let trace = Trace::of(name, &scenario, &scenario.run(seed), 0);
    let mut sync = Synchroniser::new(SyncParams::default()).expect("valid parameters");
    let readings = replay(&trace, &mut sync);
    for reading in &readings {
        assert!(reading.error.abs() <= reading.bound, "{name}, seed {seed}, outside of its bound: {reading:?}");
    }
    assert!(readings.len() + 100 > trace.lines.len(), "{name}, seed {seed}: {} readings", readings.len());
    let score = Score::new(scored(&trace, &readings), trace.asymmetry()).expect("readings");
    assert!(score.rms_us <= rms, "{name}, seed {seed}: {score:?}");
    let server = &scenario.servers[0];
    let longer: f64 = server.shifts.iter().map(|shift| (shift.there + shift.back).max(0.0) / 2.0).sum();
    let least = server.half_round_trip() + longer + server.root_dispersion;
    assert!(score.median_bound_us <= 1.3e6 * least + slack, "{name}, seed {seed}: {least} s and {score:?}");
}

macro_rules! families {
    ($($test:ident: $name:literal, $rms:literal, $slack:literal;)*) => {
        $(#[test]
        fn $test() {
            SEEDS.for_each(|seed| holds($name, seed, $rms, $slack));
        })*

        #[test]
        fn every_family_is_put_to_the_test() {
            let tested = [$($name),*];
            assert!(FAMILIES.iter().map(|family| family.name).eq(tested));
        }
    };
}

families! {
    lan: "lan-16s", 3.0, 20.0;
    lan_cold: "lan-1s-cold", 1.5, 20.0;
    hpet_sawtooth: "hpet-saw-16s", 3.0, 20.0;
    loaded_host: "loaded-host-16s", 9.0, 20.0;
    shift_up: "shift-up-16s", 3.0, 20.0;
    shift_down: "shift-down-16s", 3.5, 20.0;
    gap: "gap-16s", 9.0, 20.0;
    server_fault: "server-fault-16s", 4.5, 20.0;
    warm_room: "warm-room-64s", 12.0, 20.0;
    wan: "wan-64s", 23.0, 20.0;
    wan_asymmetric: "wan-asym-64s", 65.0, 20.0;
    sparse: "sparse-1024s", 80.0, 30.0;
    shift_one_sided: "shift-one-sided-16s", 4.0, 20.0;
    shift_in_fault: "shift-in-fault-16s", 3.5, 20.0;
    heated_by_load: "heated-by-load-16s", 30.0, 20.0;
    poor_crystal: "poor-crystal-16s", 3.5, 20.0;
    changing_polls: "changing-polls", 2.5, 20.0;
    lossy: "lossy-64s", 120.0, 20.0;
    congested_days: "congested-days-64s", 40.0, 20.0;
    quantised: "quantised-16s", 650.0, 1000.0;
    noisy_server: "noisy-server-16s", 250.0, 6500.0;
    hpet_loaded: "hpet-loaded-16s", 15.0, 40.0;
    shaky_host: "shaky-host-16s", 10.0, 90.0;
    weather_in_gap: "weather-in-gap-16s", 20.0, 20.0;
    weather: "weather-16s", 15.0, 20.0;
    small_fault: "small-fault-16s", 25.0, 20.0;
    late_noise: "late-noise-16s", 250.0, 6500.0;
    mixture: "mixture", 140.0, 200.0;
}

/// Queues that a load made longer, taken for a shift of the path: 20 readings were outside of their bounds.
#[test]
fn longer_queues_are_no_level_shift() {
    holds("heated-by-load-16s", 9, 25.0, 60.0);
}

/// A lie of 5 ms came in a packet that was held up for as long, and was followed.
#[test]
fn a_queue_hides_no_lie() {
    holds("shift-in-fault-16s", 105, 5.0, 20.0);
}
