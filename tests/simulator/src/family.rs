//! Families of scenarios. A family is a kind of place or of trouble; the seed chooses its parameters within what the kind
//! allows, and all noise. Twelve are of the kinds that other clocks were measured with; the others are mixtures.

use crate::network::{Direction, Fault, Loss, Server, Shift};
use crate::oscillator::{Cycle, Heating, Oscillator, Weather};
use crate::random::Random;
use crate::scenario::Scenario;

const DAY: f64 = 86_400.0;
const HOUR: f64 = 3600.0;
const US: f64 = 1e-6;
const MS: f64 = 1e-3;
const PPM: f64 = 1e-6;
/// The stream of random numbers that chooses parameters; those of scenarios count from 0.
const STREAM: u64 = 1 << 32;

/// A kind of scenario.
#[derive(Debug)]
pub struct Family {
    /// What it is called: kind and poll period.
    pub name: &'static str,
    /// The kind, in a line.
    pub about: &'static str,
    make: fn(&mut Random) -> Scenario,
}

impl Family {
    /// The scenario that this seed chooses.
    pub fn scenario(&self, seed: u64) -> Scenario {
        // Different families must not share their numbers.
        let name = self.name.bytes().fold(0, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
        (self.make)(&mut Random::new(seed, STREAM + name % STREAM))
    }
}

/// The family of this name.
pub fn find(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}

macro_rules! families {
    ($($name:literal, $make:expr, $about:literal;)*) => {
        /// All families.
        pub static FAMILIES: &[Family] =
            &[$(Family { name: $name, about: $about, make: $make }),*];
    };
}

families! {
    "lan-16s", |r| scenario(r, 24.0, 16.0, lan), "a LAN";
    "lan-1s-cold", |r| scenario(r, 0.5, 1.0, lan), "the first half hour on a LAN";
    "hpet-saw-16s", hpet, "a counter that is set right from the HPET every second";
    "loaded-host-16s", |r| scenario(r, 24.0, 16.0, loaded), "a host too busy to take packets in at once";
    "shift-up-16s", |r| shifted(r, 16.0, [0.9, 0.9]), "a longer route from some hour on";
    "shift-down-16s", |r| shifted(r, 16.0, [-0.5, -0.5]), "a shorter route from some hour on";
    "gap-16s", gaps, "hours without an exchange";
    "server-fault-16s", fault, "a server that is wrong for some minutes, twice";
    "warm-room-64s", warm_room, "a room whose temperature is not controlled";
    "wan-64s", |r| scenario(r, 96.0, 64.0, wan), "a server across the Internet";
    "wan-asym-64s", |r| scenario(r, 48.0, 64.0, asymmetric_wan), "the same by unequal routes";
    "sparse-1024s", |r| scenario(r, 240.0, 1024.0, metro), "an exchange every 17 minutes";
    "shift-one-sided-16s", |r| shifted(r, 16.0, [0.7, 0.0]), "a longer route in one direction only";
    "shift-in-fault-16s", shift_in_fault, "a longer route while the server is wrong";
    "heated-by-load-16s", heated, "load that warms the machine and holds packets up";
    "poor-crystal-16s", poor_crystal, "an oscillator with much flicker and random walk";
    "changing-polls", changing_polls, "poll periods from 1 s to 1024 s";
    "lossy-64s", lossy, "up to half of the exchanges lost, queues in one direction only";
    "congested-days-64s", congested, "an uplink that is full in the afternoon";
    "quantised-16s", quantised, "a server with coarse timestamps";
    "noisy-server-16s", noisy_server, "a server with a millisecond of noise";
    "hpet-loaded-16s", hpet_loaded, "a counter that is set right every second on a busy host";
    "shaky-host-16s", shaky_host, "timestamps in wide brackets, late interrupts";
    "weather-in-gap-16s", weather_in_gap, "hours without an exchange, in which the temperature changes";
    "weather-16s", weather, "a temperature that changes within minutes";
    "small-fault-16s", small_fault, "a server that is wrong by milliseconds for hours";
    "late-noise-16s", late_noise, "a server that becomes noisy by a millisecond, and does not say so";
    "mixture", mixture, "some of all the above at once";
}

fn scenario(random: &mut Random, hours: f64, poll: f64, server: fn(&mut Random) -> Server) -> Scenario {
    Scenario {
        hours,
        polls: vec![poll],
        poll_change: f64::INFINITY,
        oscillator: crystal(random),
        period: 1e-9,
        load: None,
        host_error: 0.0,
        host_delay: 1.5 * US,
        gaps: vec![],
        servers: vec![server(random)],
    }
}

/// A decent crystal in an air-conditioned room.
fn crystal(random: &mut Random) -> Oscillator {
    Oscillator {
        skew: random.between(-60.0, 60.0) * PPM,
        white: random.scale(2e-11, 2e-10),
        flicker: random.scale(3e-11, 3e-10),
        walk: random.scale(1e-13, 2e-12),
        cycles: vec![
            Cycle { amplitude: random.scale(0.025, 0.1) * PPM, period: DAY, begin: random.share() },
            Cycle {
                amplitude: random.scale(0.006, 0.025) * PPM,
                period: random.between(1500.0, 2400.0),
                begin: random.share(),
            },
        ],
        weather: vec![],
        heating: None,
        sawtooth: 0.0,
    }
}

/// Both directions alike, but for up to 5 % of the smallest delay.
fn alike(random: &mut Random, min: (f64, f64), queue: f64, burst_share: f64, burst: f64) -> Server {
    let there = random.scale(min.0, min.1);
    let back = there * random.between(0.95, 1.05);
    let factor = random.scale(0.6, 1.6);
    let direction = |min| Direction::new(min, queue * factor, burst_share, burst * factor);
    Server::new(direction(there), direction(back))
}

fn lan(random: &mut Random) -> Server {
    alike(random, (120.0 * US, 300.0 * US), 40.0 * US, 0.02, MS)
}

fn campus(random: &mut Random) -> Server {
    alike(random, (350.0 * US, 600.0 * US), 60.0 * US, 0.03, 2.0 * MS)
}

fn loaded(random: &mut Random) -> Server {
    alike(random, (200.0 * US, 350.0 * US), 300.0 * US, 0.35, 5.0 * MS)
}

fn metro(random: &mut Random) -> Server {
    alike(random, (1.5 * MS, 3.0 * MS), 150.0 * US, 0.05, 4.0 * MS)
}

fn wan(random: &mut Random) -> Server {
    alike(random, (5.0 * MS, 10.0 * MS), 400.0 * US, 0.08, 8.0 * MS)
}

fn asymmetric_wan(random: &mut Random) -> Server {
    let mut server = alike(random, (8.0 * MS, 12.0 * MS), 800.0 * US, 0.15, 20.0 * MS);
    let longer = 1.0 + random.between(0.2, 0.4);
    if random.chance(0.5) {
        server.there.min *= longer
    } else {
        server.back.min *= longer
    }
    server
}

fn hpet(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 24.0, 16.0, lan);
    scenario.oscillator.sawtooth = sawtooth(random);
    scenario
}

fn sawtooth(random: &mut Random) -> f64 {
    let size = random.scale(0.8, 2.5) * US;
    if random.chance(0.5) { size } else { -size }
}

/// Shifts by these parts of a millisecond, more or less, between the sixth hour and the sixteenth.
fn shifted(random: &mut Random, poll: f64, [there, back]: [f64; 2]) -> Scenario {
    let mut scenario = scenario(random, 24.0, poll, campus);
    let server = &mut scenario.servers[0];
    // What is taken away must be there.
    for (direction, shift) in [(&mut server.there, there), (&mut server.back, back)] {
        direction.min += (-2.0 * shift * MS).max(0.0);
    }
    let factor = random.scale(0.6, 1.5);
    let at = random.between(6.0, 16.0) * HOUR;
    server.shifts = vec![Shift { at, there: there * factor * MS, back: back * factor * MS }];
    scenario
}

fn gaps(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 48.0, 16.0, campus);
    let first = random.between(8.0, 14.0) * HOUR;
    let second = first + random.between(12.0, 20.0) * HOUR;
    scenario.gaps =
        vec![(first, first + random.between(4.0, 9.0) * HOUR), (second, second + random.between(1.0, 5.0) * HOUR)];
    scenario
}

fn fault(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 24.0, 16.0, campus);
    let mut lie = |hours: (f64, f64), minutes: (f64, f64), size: (f64, f64)| {
        let from = random.between(hours.0, hours.1) * HOUR;
        let size = random.scale(size.0, size.1);
        let offset = if random.chance(0.5) { size } else { -size };
        Fault { from, to: from + 60.0 * random.between(minutes.0, minutes.1), offset }
    };
    scenario.servers[0].faults =
        vec![lie((5.0, 9.0), (5.0, 20.0), (5.0 * MS, 0.3)), lie((12.0, 20.0), (2.0, 10.0), (0.3, 30.0))];
    scenario
}

fn warm_room(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 72.0, 64.0, campus);
    for cycle in &mut scenario.oscillator.cycles {
        cycle.amplitude *= 8.0;
    }
    scenario
}

fn shift_in_fault(random: &mut Random) -> Scenario {
    let mut scenario = fault(random);
    let fault = scenario.servers[0].faults[0];
    let size = random.scale(0.3, 1.2) * MS;
    let at = random.between(fault.from, fault.to);
    scenario.servers[0].shifts = vec![Shift { at, there: size, back: size }];
    scenario
}

fn heated(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 48.0, 16.0, lan);
    heat(random, &mut scenario);
    scenario
}

fn heat(random: &mut Random, scenario: &mut Scenario) {
    let rise = random.scale(0.1, 1.0) * PPM;
    scenario.oscillator.heating = Some(Heating { rise, time_constant: random.scale(120.0, 1200.0) });
    scenario.load = Some((random.scale(600.0, 7200.0), random.scale(1800.0, 14_400.0)));
    scenario.servers[0].loaded = random.scale(3.0, 10.0);
}

fn poor_crystal(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 24.0, 16.0, lan);
    let oscillator = &mut scenario.oscillator;
    oscillator.white = random.scale(3e-10, 2e-9);
    oscillator.flicker = random.scale(1e-9, 1e-8);
    oscillator.walk = random.scale(3e-11, 3e-10);
    scenario
}

fn changing_polls(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 30.0, 16.0, campus);
    let mut polls: Vec<f64> = (0..=10).map(|power| f64::from(1 << power)).collect();
    // In any order.
    for last in (1..polls.len()).rev() {
        polls.swap(last, (random.share() * (last + 1) as f64) as usize);
    }
    scenario.polls = polls;
    scenario.poll_change = HOUR * random.between(1.0, 2.5);
    scenario
}

fn lossy(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 72.0, 64.0, metro);
    let period = random.between(2.0, 12.0) * HOUR;
    let server = &mut scenario.servers[0];
    server.loss = Loss { low: 0.0, high: 0.5, period };
    let crowded = if random.chance(0.5) { &mut server.there } else { &mut server.back };
    crowded.queue *= 20.0;
    crowded.burst_share = 0.4;
    scenario
}

fn congested(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 96.0, 64.0, wan);
    let server = &mut scenario.servers[0];
    server.there.daily = 0.95;
    server.there.queue *= 5.0;
    server.there.burst_share = 0.3;
    server.there.burst_tail = 1.2;
    server.back.daily = 0.5;
    scenario
}

/// A server says of coarse or noisy timestamps what NTP's precision and dispersion are for.
fn quantised(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 24.0, 16.0, campus);
    let quantum = [US, 10.0 * US, 100.0 * US, MS][(random.share() * 4.0) as usize];
    scenario.servers[0].quantum = quantum;
    scenario.servers[0].root_dispersion = quantum;
    scenario
}

fn noisy_server(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 24.0, 16.0, campus);
    scenario.servers[0].noise = MS;
    scenario.servers[0].root_dispersion = 4.0 * MS;
    scenario
}

fn weather_in_gap(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 36.0, 16.0, campus);
    let from = random.between(10.0, 20.0) * HOUR;
    let duration = random.scale(0.5, 4.0) * HOUR;
    scenario.gaps = vec![(from, from + duration)];
    scenario.oscillator.weather = vec![change(random, from, from + 0.8 * duration, (0.2, 1.0))];
    scenario
}

fn weather(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 36.0, 16.0, campus);
    let mut change = |hour: f64| change(random, hour * HOUR, (hour + 4.0) * HOUR, (0.3, 3.0));
    scenario.oscillator.weather = vec![change(6.0), change(16.0), change(26.0)];
    scenario
}

/// By so many ppm, sometime.
fn change(random: &mut Random, from: f64, to: f64, ppm: (f64, f64)) -> Weather {
    let size = random.scale(ppm.0, ppm.1) * PPM;
    let rise = if random.chance(0.5) { size } else { -size };
    Weather { at: random.between(from, to), rise, time_constant: random.scale(60.0, 1200.0) }
}

fn small_fault(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 36.0, 16.0, campus);
    let from = random.between(8.0, 20.0) * HOUR;
    let size = random.scale(0.7, 5.0) * MS;
    let offset = if random.chance(0.5) { size } else { -size };
    scenario.servers[0].faults = vec![Fault { from, to: from + random.scale(0.5, 3.0) * HOUR, offset }];
    scenario
}

fn late_noise(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 24.0, 16.0, campus);
    scenario.servers[0].noise = MS;
    scenario.servers[0].noisy_from = random.between(6.0, 12.0) * HOUR;
    scenario
}

fn hpet_loaded(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 24.0, 16.0, loaded);
    scenario.oscillator.sawtooth = sawtooth(random);
    scenario
}

fn shaky_host(random: &mut Random) -> Scenario {
    let mut scenario = scenario(random, 24.0, 16.0, lan);
    scenario.host_error = random.scale(5.0, 50.0) * US;
    scenario.host_delay = random.scale(10.0, 100.0) * US;
    scenario
}

fn mixture(random: &mut Random) -> Scenario {
    const PLACES: [fn(&mut Random) -> Server; 6] = [lan, campus, loaded, metro, wan, asymmetric_wan];
    let place = (random.share() * PLACES.len() as f64) as usize;
    let poll = f64::from(1 << (random.share() * 9.0) as u32);
    // Some thousands of exchanges, but a day at least and a week at most.
    let hours = (4000.0 * poll / HOUR).clamp(24.0, 168.0);
    let mut scenario = scenario(random, hours, poll, PLACES[place]);
    let duration = hours * HOUR;
    if random.chance(0.3) {
        scenario.polls.push(poll * 8.0);
        scenario.poll_change = random.between(0.5, 5.0) * HOUR;
    }
    if random.chance(0.4) {
        heat(random, &mut scenario);
    }
    if random.chance(0.3) {
        scenario.oscillator.sawtooth = sawtooth(random);
    }
    if random.chance(0.3) {
        scenario.host_error = random.scale(2.0, 30.0) * US;
    }
    if random.chance(0.3) {
        let from = random.between(0.3, 0.7) * duration;
        scenario.gaps = vec![(from, from + random.scale(0.2, 8.0) * HOUR)];
    }
    let server = &mut scenario.servers[0];
    if random.chance(0.4) {
        server.loss = Loss { low: 0.0, high: 0.5, period: random.between(2.0, 12.0) * HOUR };
    }
    if random.chance(0.4) {
        let crowded = if random.chance(0.5) { &mut server.there } else { &mut server.back };
        crowded.queue *= random.scale(3.0, 20.0);
    }
    if random.chance(0.3) {
        server.quantum = random.scale(1.0, 100.0) * US;
        server.root_dispersion = server.quantum;
    }
    if random.chance(0.5) {
        let mut part = |min: f64| if random.chance(0.7) { min * random.between(0.3, 4.0) } else { 0.0 };
        let (there, back) = (part(server.there.min), part(server.back.min));
        let at = random.between(0.2, 0.8) * duration;
        server.shifts = vec![Shift { at, there, back }];
        if random.chance(0.4) {
            // And back again.
            let at = at + random.between(0.05, 0.15) * duration;
            server.shifts.push(Shift { at, there: -there, back: -back });
        }
    }
    if random.chance(0.4) {
        let from = random.between(0.2, 0.9) * duration;
        let size = random.scale(5.0 * MS, 30.0);
        let offset = if random.chance(0.5) { size } else { -size };
        server.faults = vec![Fault { from, to: from + random.between(5.0, 60.0) * 60.0, offset }];
    }
    scenario
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_run_again_and_another_seed_another() {
        for family in FAMILIES {
            let short = |seed| Scenario { hours: 0.2, ..family.scenario(seed) };
            let stamps = |scenario: &Scenario, seed| -> Vec<String> {
                scenario.run(seed).exchanges().iter().map(|exchange| exchange.stamp.to_string()).collect()
            };
            assert_eq!(stamps(&short(1), 1), stamps(&short(1), 1), "{}", family.name);
            assert_ne!(stamps(&short(1), 1), stamps(&short(2), 2), "{}", family.name);
        }
    }

    #[test]
    fn names_are_found_and_differ() {
        for family in FAMILIES {
            assert!(std::ptr::eq(find(family.name).expect("itself"), family));
        }
        assert!(find("lan").is_none());
    }

    #[test]
    fn no_delay_is_negative_whatever_the_seed() {
        for family in FAMILIES {
            for seed in 0..50 {
                let scenario = family.scenario(seed);
                let server = &scenario.servers[0];
                let (mut there, mut back) = (server.there.min, server.back.min);
                for shift in [Shift { at: 0.0, there: 0.0, back: 0.0 }].iter().chain(&server.shifts) {
                    (there, back) = (there + shift.there, back + shift.back);
                    let least = there.min(back);
                    assert!(least - scenario.host_error > 10.0 * US, "{}, seed {seed}: {least}", family.name);
                }
            }
        }
    }
}
