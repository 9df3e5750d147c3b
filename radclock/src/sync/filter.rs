//! One Kalman filter of the clock's error under one-sided noise.
//!
//! The state is the clock's error, the error of its rate, and the smallest delay of each direction. A stamp's delay
//! above the smallest is never negative and skewed, so each direction is taken in by moment matching: Bayes' rule for a
//! normal prediction under the [`Delay`] model, then the posterior's mean and variance carried back to the state.

use super::delay::Delay;

const THETA: usize = 0;
const RATE: usize = 1;
const STATES: usize = 4;

/// Which way a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the server: `Tb − C(Ta)`, the delay plus the clock's error.
    Forward = 0,
    /// Back: `C(Tf) − Te`, the delay minus the clock's error.
    Backward = 1,
}

impl Direction {
    pub(super) const BOTH: [Direction; 2] = [Direction::Forward, Direction::Backward];

    /// How the clock's error enters what is measured in this direction.
    fn sign(self) -> f64 {
        match self {
            Direction::Forward => 1.0,
            Direction::Backward => -1.0,
        }
    }

    fn delay_state(self) -> usize {
        2 + self as usize
    }
}

/// A normal distribution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Normal {
    pub(super) mean: f64,
    pub(super) variance: f64,
}

/// What a filter takes for granted; a bank of them covers the range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Assumed {
    /// Spectral density of the rate's random walk, 1/s.
    pub(super) wander: f64,
    /// Noise of a reading of the counter, and of a delay about its model, s.
    pub(super) noise: f64,
}

#[derive(Clone, Debug)]
pub(super) struct Filter {
    assumed: Assumed,
    /// True time minus the clock's, s; error of the clock's rate, relative; smallest delay forward and backward, s.
    mean: [f64; STATES],
    cov: [[f64; STATES]; STATES],
    delays: [Delay; 2],
}

impl Filter {
    /// A filter that knows one exchange: the clock is wrong by at most half the round trip (s), its rate by `skew`.
    pub(super) fn new(assumed: Assumed, rtt: f64, skew: f64) -> Filter {
        let half = rtt / 2.0;
        let mut cov = [[0.0; STATES]; STATES];
        cov[THETA][THETA] = half * half;
        cov[RATE][RATE] = skew * skew;
        // What is not known of the smallest delays is common to both: the difference cannot be seen.
        for row in &mut cov[2..] {
            row[2..].fill(half * half);
        }
        Filter { assumed, mean: [0.0, 0.0, half, half], cov, delays: [Delay::new(), Delay::new()] }
    }

    /// The same knowledge under other assumptions.
    pub(super) fn assuming(&self, assumed: Assumed) -> Filter {
        Filter { assumed, ..self.clone() }
    }

    /// Lets `dt` seconds pass (or takes them back).
    pub(super) fn predict(&mut self, dt: f64, phase_wander: f64) {
        self.mean[THETA] += dt * self.mean[RATE];
        let rate = self.cov[RATE];
        for (theta, rate) in self.cov[THETA].iter_mut().zip(rate) {
            *theta += dt * rate;
        }
        for row in &mut self.cov {
            row[THETA] += dt * row[RATE];
        }
        let (q, t) = (self.assumed.wander, dt.abs());
        self.cov[THETA][THETA] += q * t * t * t / 3.0 + phase_wander * t;
        let cross = q * t * dt / 2.0;
        self.cov[THETA][RATE] += cross;
        self.cov[RATE][THETA] += cross;
        self.cov[RATE][RATE] += q * t;
    }

    /// The delay above the smallest that a measurement (s, with a host's noise, s²) in a direction amounts to.
    pub(super) fn excess(&self, direction: Direction, measured: f64, host: f64) -> Normal {
        let (sign, d) = (direction.sign(), direction.delay_state());
        let cov = &self.cov;
        Normal {
            mean: measured - sign * self.mean[THETA] - self.mean[d],
            variance: cov[THETA][THETA]
                + 2.0 * sign * cov[THETA][d]
                + cov[d][d]
                + self.assumed.noise * self.assumed.noise
                + host,
        }
    }

    /// Takes in a measurement (s) with the host's noise (s²), and returns the logarithm of its density.
    pub(super) fn update(&mut self, direction: Direction, measured: f64, host: f64) -> f64 {
        let prior = self.excess(direction, measured, host);
        let delay = &mut self.delays[direction as usize];
        let posterior = delay.posterior(prior.mean, prior.variance);
        delay.learn(&posterior);
        let (sign, d) = (direction.sign(), direction.delay_state());
        // The excess falls when the state rises: hence the sign of the gain.
        let mut gain = [0.0; STATES];
        for (i, gain) in gain.iter_mut().enumerate() {
            *gain = (sign * self.cov[i][THETA] + self.cov[i][d]) / prior.variance;
        }
        let moved = prior.mean - posterior.mean;
        let shrunk = posterior.variance - prior.variance;
        for i in 0..STATES {
            self.mean[i] += gain[i] * moved;
            for j in 0..STATES {
                self.cov[i][j] += gain[i] * gain[j] * shrunk;
            }
        }
        posterior.log_evidence
    }

    /// Learns how long delays are from a stamp that is not to move the state.
    pub(super) fn learn_only(&mut self, excess: [Normal; 2]) {
        for (delay, normal) in self.delays.iter_mut().zip(excess) {
            let posterior = delay.posterior(normal.mean, normal.variance.max(1e-14));
            delay.learn(&posterior);
        }
    }

    /// The smallest delay of a direction has moved to about `excess` above what it was, known to `sigma`.
    pub(super) fn shift(&mut self, direction: Direction, excess: f64, sigma: f64) {
        let d = direction.delay_state();
        self.mean[d] += excess;
        self.cov[d][d] += sigma * sigma;
    }

    /// The clock was corrected by so much time (s) and rate.
    pub(super) fn rebase(&mut self, theta: f64, rate: f64) {
        self.mean[THETA] -= theta;
        self.mean[RATE] -= rate;
    }

    pub(super) fn theta(&self) -> Normal {
        Normal { mean: self.mean[THETA], variance: self.cov[THETA][THETA] }
    }

    pub(super) fn rate(&self) -> Normal {
        Normal { mean: self.mean[RATE], variance: self.cov[RATE][RATE] }
    }

    pub(super) fn assumed(&self) -> Assumed {
        self.assumed
    }

    /// The smallest round trip, s.
    pub(super) fn round_trip(&self) -> Normal {
        let [f, b] = Direction::BOTH.map(Direction::delay_state);
        Normal { mean: self.mean[f] + self.mean[b], variance: self.cov[f][f] + 2.0 * self.cov[f][b] + self.cov[b][b] }
    }

    /// The smallest delay of a direction, s.
    pub(super) fn smallest(&self, direction: Direction) -> Normal {
        let d = direction.delay_state();
        Normal { mean: self.mean[d], variance: self.cov[d][d] }
    }

    pub(super) fn delay(&self, direction: Direction) -> &Delay {
        &self.delays[direction as usize]
    }
}
