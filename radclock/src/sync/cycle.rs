//! Finds the cycle that the oscillator's rate goes through, if it goes through one: air conditioning, a thermostat, a fan
//! or a job that runs again and again heat a crystal up and let it cool down at the same pace for hours.
//!
//! The estimated rate is taken apart into the frequencies of a grid, as a Fourier transform with a fading memory would.
//! This only names the pace. How strong the cycle is, and whether it is one at all, is for the filters to find out.

use core::f64::consts::TAU;

use super::filter::Normal;

/// The shortest and the longest cycle looked for, s. A shorter one moves the time by less than it can be seen to, a longer
/// one can be followed.
const SHORTEST: f64 = 600.0;
const LONGEST: f64 = 7200.0;
/// The memory fades by a factor of e in so many seconds: cycles keep their pace for hours, not for days.
const MEMORY: f64 = 6.0 * 3600.0;
/// Frequencies are so far apart, rad/s: about as far as the memory can tell them apart.
const GRID: f64 = 1.0 / MEMORY;
const FREQUENCIES: usize = ((TAU / SHORTEST - TAU / LONGEST) / GRID) as usize + 1;
/// Slower changes of the rate than in so many seconds are not part of a cycle.
const TREND: f64 = 1.5 * 3600.0;
/// Rates are averaged over at least so many seconds.
const SAMPLE: f64 = 60.0;
/// What must have been seen before there is a pace, s.
const PATIENCE: f64 = 1.5 * 3600.0;
/// Another pace replaces the one in use when it is so many times as strong.
const STRONGER: f64 = 2.0;

/// What to make of the newest rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// The same cycle, at this angular frequency, rad/s.
    Same(f64),
    /// Another one.
    New(f64),
}

#[derive(Clone, Debug)]
pub(super) struct Finder {
    /// Correlation with each frequency of the grid, as seen from now.
    parts: Vec<[f64; 2]>,
    /// The rate around which it cycles, and the total weight that this rests on.
    trend: f64,
    weight: f64,
    /// The sample under way: the rates' weighted sum, their weight, s.
    sum: f64,
    sum_weight: f64,
    secs: f64,
    /// Since the rate was known at all, s.
    seen: f64,
    /// Where on the grid the cycle in use is.
    current: Option<usize>,
}

impl Finder {
    pub(super) fn new() -> Finder {
        Finder {
            parts: vec![[0.0; 2]; FREQUENCIES],
            trend: 0.0,
            weight: 0.0,
            sum: 0.0,
            sum_weight: 0.0,
            secs: 0.0,
            seen: 0.0,
            current: None,
        }
    }

    fn frequency(place: f64) -> f64 {
        TAU / LONGEST + GRID * place
    }

    /// The rate was this (relative), over the last `secs`.
    pub(super) fn see(&mut self, rate: Normal, secs: f64) -> Option<Pace> {
        let weight = secs / (rate.variance + 1e-20);
        self.sum += weight * rate.mean;
        self.sum_weight += weight;
        self.secs += secs;
        if self.secs < SAMPLE || self.sum_weight <= 0.0 {
            return None;
        }
        let (mean, weight, secs) = (self.sum / self.sum_weight, self.sum_weight, self.secs);
        (self.sum, self.sum_weight, self.secs) = (0.0, 0.0, 0.0);
        self.seen += secs;

        self.weight = self.weight * (-secs / TREND).exp() + weight;
        let off = weight * (mean - self.trend);
        self.trend += off / self.weight;
        let off = weight * (mean - self.trend);

        let keep = (-secs / MEMORY).exp();
        let (sin, cos) = (Finder::frequency(0.0) * secs).sin_cos();
        let mut turn = [keep * cos, keep * sin];
        let (sin, cos) = (GRID * secs).sin_cos();
        for part in &mut self.parts {
            *part = [part[0] * turn[0] - part[1] * turn[1] + off, part[0] * turn[1] + part[1] * turn[0]];
            turn = [turn[0] * cos - turn[1] * sin, turn[0] * sin + turn[1] * cos];
        }
        if self.seen < PATIENCE { None } else { self.pace() }
    }

    /// How strong a frequency is. An oscillator that wanders is the weaker, and an estimate of its rate the noisier, the
    /// higher the frequency; the factor lies between what would level out the one and the other.
    fn strength(&self, place: usize) -> f64 {
        let [re, im] = self.parts[place];
        let frequency = Finder::frequency(place as f64);
        (re * re + im * im) * frequency
    }

    fn pace(&mut self) -> Option<Pace> {
        let inner = 1..FREQUENCIES - 1;
        let strongest = inner.clone().max_by(|&a, &b| self.strength(a).total_cmp(&self.strength(b)))?;
        let near = |place: usize| place.saturating_sub(1).max(1)..(place + 2).min(FREQUENCIES - 1);
        let peak = |around: usize| near(around).max_by(|&a, &b| self.strength(a).total_cmp(&self.strength(b)));
        let (place, new) = match self.current.and_then(peak) {
            Some(place) if self.strength(strongest) < STRONGER * self.strength(place) => (place, false),
            _ => (strongest, true),
        };
        self.current = Some(place);
        // The peak's top by the parabola through three points.
        let [left, top, right] = [place - 1, place, place + 1].map(|place| self.strength(place));
        let bend = left - 2.0 * top + right;
        let aside = if bend < 0.0 { (0.5 * (left - right) / bend).clamp(-0.5, 0.5) } else { 0.0 };
        let frequency = Finder::frequency(place as f64 + aside);
        Some(if new { Pace::New(frequency) } else { Pace::Same(frequency) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace_of(period: f64, amplitude: f64, poll: f64) -> f64 {
        let mut finder = Finder::new();
        let mut found = None;
        for k in 0..(12.0 * 3600.0 / poll) as u32 {
            let t = f64::from(k) * poll;
            // A drift that is no cycle, and errors of the estimate that are none either.
            let wobble = 1e-8 * (f64::from(k * 7919 % 1009) / 504.5 - 1.0);
            let mean = 37e-6 + 5e-8 * (TAU * t / 86_400.0).sin() + amplitude * (TAU * t / period).sin() + wobble;
            found = finder.see(Normal { mean, variance: 1e-16 }, poll).or(found);
        }
        let Some(Pace::Same(frequency) | Pace::New(frequency)) = found else { panic!("no pace") };
        TAU / frequency
    }

    #[test]
    fn the_pace_of_a_cycle_is_found_whatever_the_poll_period() {
        for (period, poll) in [(1800.0, 16.0), (900.0, 64.0), (4200.0, 1.0), (2711.0, 256.0)] {
            let found = pace_of(period, 1.25e-8, poll);
            assert!((found / period - 1.0).abs() < 0.02, "{period} {poll}: {found}");
        }
    }

    #[test]
    fn nothing_is_said_before_some_cycles_were_seen() {
        let mut finder = Finder::new();
        for _ in 0..80 {
            assert_eq!(finder.see(Normal { mean: 1e-6, variance: 1e-16 }, 64.0), None);
        }
    }
}
