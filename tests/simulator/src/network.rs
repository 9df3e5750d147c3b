//! Paths and servers: how long packets take, which are lost, and what the server says.

use std::f64::consts::TAU;

use crate::oscillator::Load;
use crate::random::Random;

const DAY: f64 = 86_400.0;
/// A server keeps a request at least so long, and on the mean this much longer, s.
const HELD: f64 = 15e-6;
const HELD_MORE: f64 = 17e-6;

/// One direction of a path.
#[derive(Clone, Copy, Debug)]
pub struct Direction {
    /// The smallest delay, s.
    pub min: f64,
    /// Mean of the ordinary queueing above it, s.
    pub queue: f64,
    /// The share of packets that meet a burst.
    pub burst_share: f64,
    /// The scale of the wait in a burst, s: heavy-tailed, see [`Random::lomax`].
    pub burst: f64,
    /// How heavy: 1.1 (very) to 3.
    pub burst_tail: f64,
    /// How much more queueing there is at the worst time of day than on average, relative. 0 to 1.
    pub daily: f64,
}

/// A change of the smallest delays for good.
#[derive(Clone, Copy, Debug)]
pub struct Shift {
    /// When, s.
    pub at: f64,
    /// What is added on the way there, s.
    pub there: f64,
    /// What is added on the way back, s.
    pub back: f64,
}

/// How many exchanges are lost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loss {
    /// The share at the best times.
    pub low: f64,
    /// The share at the worst times.
    pub high: f64,
    /// From the best times to the next best, s. 0 if there is no difference.
    pub period: f64,
}

/// A time during which a server lies.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// From then on, s.
    pub from: f64,
    /// Until then, s.
    pub to: f64,
    /// What its time is ahead, s.
    pub offset: f64,
}

/// A server and the path to it.
#[derive(Clone, Debug)]
pub struct Server {
    /// The way there.
    pub there: Direction,
    /// The way back.
    pub back: Direction,
    /// In order of time.
    pub shifts: Vec<Shift>,
    /// Lost exchanges.
    pub loss: Loss,
    /// When it lies.
    pub faults: Vec<Fault>,
    /// Standard deviation of the server's time about true time, another value for each exchange, s.
    pub noise: f64,
    /// Since when it has that noise, s.
    pub noisy_from: f64,
    /// The server's timestamps are multiples of this, rounded down, s. 0 if they are not rounded.
    pub quantum: f64,
    /// What the server says of its distance to its reference, there and back, s.
    pub root_delay: f64,
    /// What the server says of its own error, s.
    pub root_dispersion: f64,
    /// Queueing is this much longer while the host is loaded, as a factor.
    pub loaded: f64,
}

/// What an exchange's two packets met.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Journey {
    /// True time of arrival at the host, s.
    pub returns: f64,
    /// What the server says of when the request arrived there and the reply left, s.
    pub said: [f64; 2],
}

impl Direction {
    /// With these parameters, in the order of the fields, a tail as of the recorded traces and all day the same.
    pub const fn new(min: f64, queue: f64, burst_share: f64, burst: f64) -> Direction {
        Direction { min, queue, burst_share, burst, burst_tail: 1.7, daily: 0.0 }
    }

    fn delay(&self, random: &mut Random, t: f64, load: f64) -> f64 {
        let busy = load * (1.0 + self.daily * (TAU * t / DAY).sin());
        let burst = if random.chance((self.burst_share * busy).min(1.0)) {
            random.lomax(self.burst, self.burst_tail)
        } else {
            0.0
        };
        self.min + random.exponential(self.queue * busy) + burst
    }
}

impl Server {
    /// An honest server at the end of a quiet path.
    pub fn new(there: Direction, back: Direction) -> Server {
        Server {
            there,
            back,
            shifts: vec![],
            loss: Loss::default(),
            faults: vec![],
            noise: 0.0,
            noisy_from: 0.0,
            quantum: 0.0,
            root_delay: 0.0,
            root_dispersion: 0.0,
            loaded: 1.0,
        }
    }

    /// Half of the difference between the smallest one-way delays, s: what a clock that uses this server alone is wrong by
    /// without being able to know.
    pub fn asymmetry(&self) -> f64 {
        (self.there.min - self.back.min) / 2.0
    }

    /// Half of the smallest round trip before any shift, s.
    pub fn half_round_trip(&self) -> f64 {
        (self.there.min + self.back.min) / 2.0
    }

    pub(crate) fn is_lost(&self, random: &mut Random, t: f64) -> bool {
        let Loss { low, high, period } = self.loss;
        let worse = if period > 0.0 { (1.0 - (TAU * t / period).cos()) / 2.0 } else { 0.0 };
        random.chance(low + (high - low) * worse)
    }

    /// A request that leaves the host at true time `t`.
    pub(crate) fn exchange(&self, random: &mut Random, t: f64, load: &Load) -> Journey {
        let busy = |t| if load.is_busy(t) { self.loaded } else { 1.0 };
        let (mut there, mut back) = (0.0, 0.0);
        for shift in self.shifts.iter().filter(|shift| shift.at <= t) {
            there += shift.there;
            back += shift.back;
        }
        let arrives = t + self.there.delay(random, t, busy(t)) + there;
        let leaves = arrives + HELD + random.exponential(HELD_MORE);
        let returns = leaves + self.back.delay(random, leaves, busy(leaves)) + back;
        let wrong: f64 = self.faults.iter().filter(|fault| (fault.from..fault.to).contains(&t)).map(|f| f.offset).sum();
        let noise = random.normal() * if t < self.noisy_from { 0.0 } else { self.noise };
        let wrong = wrong + noise;
        let said = [arrives, leaves].map(|time| {
            let time = time + wrong;
            if self.quantum > 0.0 { (time / self.quantum).floor() * self.quantum } else { time }
        });
        Journey { returns, said }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Direction = Direction::new(1e-3, 0.0, 0.0, 0.0);

    fn journeys(server: &Server, t: f64) -> Vec<Journey> {
        let mut random = Random::new(1, 1);
        (0..20_000).map(|_| server.exchange(&mut random, t, &Load::default())).collect()
    }

    #[test]
    fn a_tail_is_as_heavy_as_it_is_said_to_be() {
        let mut random = Random::new(1, 1);
        let mut waits: Vec<f64> = (0..100_000).map(|_| random.lomax(1.0, 1.7)).collect();
        waits.sort_by(f64::total_cmp);
        for (share, expected) in [(0.5, 0.503), (0.9, 2.87), (0.99, 14.0)] {
            let found = waits[(share * waits.len() as f64) as usize];
            assert!((found / expected - 1.0).abs() < 0.05, "{share}: {found}");
        }
    }

    #[test]
    fn a_shift_moves_each_direction_by_its_own() {
        let server =
            Server { shifts: vec![Shift { at: 100.0, there: 5e-4, back: -2e-4 }], ..Server::new(QUIET, QUIET) };
        for (t, there, back) in [(99.0, 1e-3, 1e-3), (101.0, 1.5e-3, 0.8e-3)] {
            let journey = &journeys(&server, t)[0];
            assert!(
                (journey.said[0] - t - there).abs() < 1e-9 && (journey.returns - journey.said[1] - back).abs() < 1e-9
            );
        }
    }

    #[test]
    fn a_server_lies_during_its_faults_only_and_rounds_down() {
        let faults = vec![Fault { from: 10.0, to: 20.0, offset: -0.5 }];
        let server = Server { faults, quantum: 1e-3, ..Server::new(QUIET, QUIET) };
        for (t, wrong) in [(9.9, 0.0), (10.0, -0.5), (20.0, 0.0)] {
            for journey in &journeys(&server, t)[..100] {
                let error = journey.said[0] - (t + 1e-3) - wrong;
                assert!((-1e-3..=1e-9).contains(&error), "{t}: {error}");
                assert!((journey.said[1] / 1e-3).fract().min(1.0 - (journey.said[1] / 1e-3).fract()) < 1e-6);
            }
        }
    }

    #[test]
    fn loss_comes_and_goes() {
        let loss = Loss { low: 0.1, high: 0.5, period: 1000.0 };
        let server = Server { loss, ..Server::new(QUIET, QUIET) };
        let mut random = Random::new(1, 1);
        let mut lost = |t| f64::from((0..20_000).map(|_| u32::from(server.is_lost(&mut random, t))).sum::<u32>()) / 2e4;
        assert!((lost(1000.0) - 0.1).abs() < 0.01 && (lost(500.0) - 0.5).abs() < 0.02);
    }
}
