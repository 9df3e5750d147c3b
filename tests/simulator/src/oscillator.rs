//! Oscillators: how far a counter is from counting true time evenly. Noise is said by the Allan deviation that it causes
//! (IEEE 1139), temperature by the change of rate that it causes.

use std::f64::consts::{LN_2, TAU};

use crate::random::Random;

/// The phase is worked out at times so far apart and interpolated, s. Rates change slowly against it.
const STEP: f64 = 1.0;
/// Flicker noise is a sum of relaxations with time constants that are this factor apart, from a second on.
const FLICKER_RATIO: f64 = 4.0;
const FLICKER_LONGEST: f64 = 1e6;

/// What an oscillator is like.
#[derive(Clone, Debug)]
pub struct Oscillator {
    /// How much faster than nominal it is, relative.
    pub skew: f64,
    /// White frequency noise: its Allan deviation at 1 s. It falls with the root of the interval.
    pub white: f64,
    /// Flicker frequency noise: its Allan deviation at every interval.
    pub flicker: f64,
    /// Random walk of the frequency: its Allan deviation at 1 s. It rises with the root of the interval.
    pub walk: f64,
    /// Temperature that comes and goes evenly: the day, the air conditioning.
    pub cycles: Vec<Cycle>,
    /// Temperature that follows the machine's load.
    pub heating: Option<Heating>,
    /// Temperature that changes for good.
    pub weather: Vec<Weather>,
    /// A counter that is corrected once a second, as Xen's system time is from the platform timer: how far it runs off
    /// within that second, s, with sign.
    pub sawtooth: f64,
}

/// A sine of the rate.
#[derive(Clone, Copy, Debug)]
pub struct Cycle {
    /// Half of the way from the lowest to the highest rate, relative.
    pub amplitude: f64,
    /// s.
    pub period: f64,
    /// Where it begins, a share of the period.
    pub begin: f64,
}

/// A change of the rate for good.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// From then on, s.
    pub at: f64,
    /// By so much in the end, relative.
    pub rise: f64,
    /// How fast it gets there, s.
    pub time_constant: f64,
}

/// What load does to the rate.
#[derive(Clone, Copy, Debug)]
pub struct Heating {
    /// The change of rate once the machine is warm, relative.
    pub rise: f64,
    /// How fast it gets there, s.
    pub time_constant: f64,
}

impl Weather {
    fn rate(&self, t: f64) -> f64 {
        self.rise * (1.0 - (-(t - self.at).max(0.0) / self.time_constant).exp())
    }
}

/// When a machine is busy: it alternates.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// When it begins and ends, s, in order.
    periods: Vec<(f64, f64)>,
}

impl Load {
    /// Busy for about `busy` s at a time, with about `idle` s in between.
    pub fn new(random: &mut Random, duration: f64, busy: f64, idle: f64) -> Load {
        let mut periods = vec![];
        let mut end = 0.0;
        while end < duration {
            let begin = end + random.exponential(idle);
            end = begin + random.exponential(busy);
            periods.push((begin, end));
        }
        Load { periods }
    }

    /// Whether it is busy at a time.
    pub fn is_busy(&self, t: f64) -> bool {
        let next = self.periods.partition_point(|(_, end)| *end <= t);
        self.periods.get(next).is_some_and(|(begin, _)| *begin <= t)
    }
}

/// An oscillator's run: how far its phase is ahead of true time, s.
#[derive(Clone, Debug)]
pub struct Phase {
    /// At multiples of [`STEP`].
    steps: Vec<f64>,
    sawtooth: f64,
    /// When in a second the counter is corrected.
    correction: f64,
}

impl Oscillator {
    /// Runs it from time 0 on, for `duration` s.
    pub fn run(&self, random: &mut Random, duration: f64, load: &Load) -> Phase {
        let correction = random.share();
        let mut flicker = Flicker::new(random, self.flicker);
        // The Allan variance of a random walk is a third of what the rate gains in variance over the interval.
        let walk_step = self.walk * (3.0 * STEP).sqrt();
        let white_step = self.white * STEP.sqrt();
        let mut heat = 0.0;
        let mut walk = 0.0;
        let mut phase = 0.0;
        let mut steps = vec![phase];
        for step in 0..(duration / STEP).ceil() as usize + 1 {
            let t = (step as f64 + 0.5) * STEP;
            walk += walk_step * random.normal();
            let cycles: f64 =
                self.cycles.iter().map(|cycle| cycle.amplitude * (TAU * (t / cycle.period + cycle.begin)).sin()).sum();
            if let Some(heating) = self.heating {
                let target = if load.is_busy(t) { heating.rise } else { 0.0 };
                heat += (target - heat) * (1.0 - (-STEP / heating.time_constant).exp());
            }
            let weather: f64 = self.weather.iter().map(|weather| weather.rate(t)).sum();
            let rate = self.skew + cycles + weather + heat + walk + flicker.next(random);
            phase += rate * STEP + white_step * random.normal();
            steps.push(phase);
        }
        Phase { steps, sawtooth: self.sawtooth, correction }
    }
}

impl Phase {
    /// How far it is ahead at a time, s. Before and after the run it stays as at its ends.
    pub fn at(&self, t: f64) -> f64 {
        let place = (t / STEP).clamp(0.0, (self.steps.len() - 1) as f64);
        let step = (place as usize).min(self.steps.len() - 2);
        let (one, other) = (self.steps[step], self.steps[step + 1]);
        one + (other - one) * (place - step as f64) + self.sawtooth * (t - self.correction).rem_euclid(1.0)
    }
}

/// Noise with a density of `h / f`, and so an Allan variance of `2 ln 2 · h` at every interval. It is made of relaxations of
/// equal variance whose time constants are evenly spread by their logarithm.
struct Flicker {
    deviation: f64,
    /// What is left of each after a step, and its value.
    relaxations: Vec<(f64, f64)>,
}

impl Flicker {
    fn new(random: &mut Random, floor: f64) -> Flicker {
        let deviation = floor * (FLICKER_RATIO.ln() / (2.0 * LN_2)).sqrt();
        let constants = std::iter::successors(Some(STEP), |constant| Some(constant * FLICKER_RATIO));
        let relaxations = constants
            .take_while(|constant| *constant <= FLICKER_LONGEST)
            .map(|constant| ((-STEP / constant).exp(), deviation * random.normal()))
            .collect();
        Flicker { deviation, relaxations }
    }

    fn next(&mut self, random: &mut Random) -> f64 {
        for (left, value) in &mut self.relaxations {
            *value = *left * *value + self.deviation * (1.0 - *left * *left).sqrt() * random.normal();
        }
        self.relaxations.iter().map(|(_, value)| value).sum()
    }
}

/// The Allan deviation of a phase (s) that was read every `interval` s: at that interval and its doubles, as long as there
/// are some to average.
pub fn allan_deviation(phase: &[f64], interval: f64) -> Vec<(f64, f64)> {
    let multiples = std::iter::successors(Some(1), |multiple| Some(2 * multiple));
    multiples
        .take_while(|multiple| 4 * multiple < phase.len())
        .map(|multiple| {
            let squares: Vec<f64> = (2 * multiple..phase.len())
                .map(|end| (phase[end] - 2.0 * phase[end - multiple] + phase[end - 2 * multiple]).powi(2))
                .collect();
            let tau = multiple as f64 * interval;
            (tau, (squares.iter().sum::<f64>() / squares.len() as f64 / 2.0).sqrt() / tau)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Oscillator = Oscillator {
        skew: 0.0,
        white: 0.0,
        flicker: 0.0,
        walk: 0.0,
        cycles: vec![],
        weather: vec![],
        heating: None,
        sawtooth: 0.0,
    };

    fn deviations(oscillator: &Oscillator) -> Vec<(f64, f64)> {
        let run = oscillator.run(&mut Random::new(1, 0), 2e5, &Load::default());
        let phase: Vec<f64> = (0..200_000).map(|t| run.at(f64::from(t))).collect();
        let mut deviations = allan_deviation(&phase, 1.0);
        deviations.retain(|(tau, _)| *tau < 1000.0);
        deviations
    }

    #[test]
    fn each_noise_has_the_allan_deviation_that_it_is_said_to_have() {
        for (tau, found) in deviations(&Oscillator { white: 1e-9, ..QUIET }) {
            assert!((found / (1e-9 / tau.sqrt()) - 1.0).abs() < 0.1, "white, {tau} s: {found}");
        }
        for (tau, found) in deviations(&Oscillator { flicker: 1e-9, ..QUIET }) {
            assert!((found / 1e-9 - 1.0).abs() < 0.25, "flicker, {tau} s: {found}");
        }
        // Within the first steps the rate stands still.
        for (tau, found) in &deviations(&Oscillator { walk: 1e-11, ..QUIET })[3..] {
            assert!((found / (1e-11 * tau.sqrt()) - 1.0).abs() < 0.15, "walk, {tau} s: {found}");
        }
    }

    #[test]
    fn a_sawtooth_begins_anew_each_second() {
        let run = Oscillator { sawtooth: 2e-6, ..QUIET }.run(&mut Random::new(1, 0), 100.0, &Load::default());
        let phases: Vec<f64> = (0..10_000).map(|step| run.at(f64::from(step) / 100.0)).collect();
        let falls = phases.windows(2).filter(|pair| pair[1] < pair[0]).count();
        let highest = phases.iter().copied().fold(0.0, f64::max);
        assert!((99..=100).contains(&falls) && (1.97e-6..=2e-6).contains(&highest), "{falls}, {highest}");
    }

    #[test]
    fn load_warms_a_machine_up_and_it_cools_down_again() {
        let load = Load { periods: vec![(1000.0, 5000.0)] };
        let heating = Heating { rise: 1e-6, time_constant: 300.0 };
        let run = Oscillator { heating: Some(heating), ..QUIET }.run(&mut Random::new(1, 0), 1e4, &load);
        let rate = |t: f64| run.at(t + 1.0) - run.at(t);
        assert!(rate(990.0) == 0.0 && (rate(1300.0) / 0.632e-6 - 1.0).abs() < 0.01);
        assert!((rate(4990.0) / 1e-6 - 1.0).abs() < 1e-3 && (rate(5300.0) / 0.368e-6 - 1.0).abs() < 0.01);
    }
}
