//! One Kalman filter of the clock's error under one-sided noise.
//!
//! The state is the clock's error, the error of its rate, and the smallest delay of each direction. A stamp's delay
//! above the smallest is never negative and skewed, so each direction is taken in by moment matching: Bayes' rule for a
//! normal prediction under the [`Delay`] model, then the posterior's mean and variance carried back to the state.

use super::delay::{Delay, Posterior};

/// Spectral density of the phase's random walk, s²/s: white noise of an oscillator's rate, a nanosecond in 100 s.
const PHASE_WANDER: f64 = 1e-20;

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

impl Normal {
    pub(super) fn sigma(self) -> f64 {
        self.variance.max(0.0).sqrt()
    }
}

/// What a filter takes for granted.
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
    /// A filter that knows one exchange: the clock is wrong by about half the round trip (s), its rate by `skew`.
    pub(super) fn new(assumed: Assumed, rtt: f64, skew: f64) -> Filter {
        let half = rtt / 2.0;
        let mut cov = [[0.0; STATES]; STATES];
        cov[THETA][THETA] = half * half;
        cov[RATE][RATE] = skew * skew;
        // What is not known of the smallest delays is common to both: their difference cannot be seen.
        for row in &mut cov[2..] {
            row[2..].fill(half * half);
        }
        Filter { assumed, mean: [0.0, 0.0, half, half], cov, delays: [Delay::new(), Delay::new()] }
    }

    /// The same knowledge under other assumptions.
    pub(super) fn assuming(&self, assumed: Assumed) -> Filter {
        Filter { assumed, ..self.clone() }
    }

    /// Lets `dt` seconds pass (or takes them back, when two exchanges overlap).
    pub(super) fn predict(&mut self, dt: f64) {
        self.mean[THETA] += dt * self.mean[RATE];
        let rate = self.cov[RATE];
        for (theta, rate) in self.cov[THETA].iter_mut().zip(rate) {
            *theta += dt * rate;
        }
        for row in &mut self.cov {
            row[THETA] += dt * row[RATE];
        }
        let (q, t) = (self.assumed.wander, dt.abs());
        self.cov[THETA][THETA] += q * t * t * t / 3.0 + PHASE_WANDER * t;
        let cross = q * t * dt / 2.0;
        self.cov[THETA][RATE] += cross;
        self.cov[RATE][THETA] += cross;
        self.cov[RATE][RATE] += q * t;
    }

    /// The delay above the smallest that a measurement (s, with the host's noise, s²) in a direction amounts to.
    pub(super) fn excess(&self, direction: Direction, measured: f64, host: f64) -> Normal {
        let (sign, d) = (direction.sign(), direction.delay_state());
        let noise = self.assumed.noise * self.assumed.noise + host;
        Normal {
            mean: measured - sign * self.mean[THETA] - self.mean[d],
            // Rounding may leave a little less than nothing of a covariance that was huge before a good stamp.
            variance: (self.cov[THETA][THETA] + 2.0 * sign * self.cov[THETA][d] + self.cov[d][d]).max(0.0) + noise,
        }
    }

    /// Takes in a measurement (s, with the host's noise, s²), and returns the logarithm of the density it had.
    pub(super) fn update(&mut self, direction: Direction, measured: f64, host: f64) -> f64 {
        let prior = self.excess(direction, measured, host);
        let delay = &mut self.delays[direction as usize];
        let posterior = delay.posterior(prior);
        delay.learn(&posterior);
        let (sign, d) = (direction.sign(), direction.delay_state());
        let gain = self.cov.map(|row| (sign * row[THETA] + row[d]) / prior.variance);
        // The excess falls when the state rises: hence prior minus posterior.
        let moved = prior.mean - posterior.excess.mean;
        let widened = posterior.excess.variance - prior.variance;
        for (i, row) in self.cov.iter_mut().enumerate() {
            self.mean[i] += gain[i] * moved;
            for (cov, other) in row.iter_mut().zip(gain) {
                *cov += gain[i] * other * widened;
            }
        }
        posterior.log_evidence
    }

    /// Learns how long delays are, and nothing else.
    pub(super) fn learn_delays(&mut self, posteriors: &[Posterior; 2]) {
        for (delay, posterior) in self.delays.iter_mut().zip(posteriors) {
            delay.learn(posterior);
        }
    }

    /// The smallest delays have moved by so much, known to `sigma`; `together` if by the same amount, so that what is
    /// known of their difference stays.
    pub(super) fn shift(&mut self, moved: [f64; 2], sigma: [f64; 2], together: bool) {
        for i in Direction::BOTH {
            self.mean[i.delay_state()] += moved[i as usize];
            for j in Direction::BOTH {
                if i == j || together {
                    self.cov[i.delay_state()][j.delay_state()] += sigma[i as usize] * sigma[j as usize];
                }
            }
        }
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

    /// The smallest round trip, s.
    pub(super) fn round_trip(&self) -> Normal {
        let [f, b] = Direction::BOTH.map(Direction::delay_state);
        Normal { mean: self.mean[f] + self.mean[b], variance: self.cov[f][f] + 2.0 * self.cov[f][b] + self.cov[b][b] }
    }

    /// The smallest delay of a direction, s.
    pub(super) fn smallest(&self, direction: Direction) -> f64 {
        self.mean[direction.delay_state()]
    }

    pub(super) fn assumed(&self) -> Assumed {
        self.assumed
    }

    pub(super) fn delay(&self, direction: Direction) -> &Delay {
        &self.delays[direction as usize]
    }
}
