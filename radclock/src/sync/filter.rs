//! One Kalman filter of the clock's error under one-sided noise.
//!
//! The state is the clock's error, the error of its rate, the smallest delay of each direction, and a cycle of the rate. A stamp's delay
//! above the smallest is never negative and skewed, so each direction is taken in by moment matching: Bayes' rule for a
//! normal prediction under the [`Delay`] model, then the posterior's mean and variance carried back to the state.

use super::delay::{Delay, Posterior};

/// Spectral density of the phase's random walk, s²/s: white noise of an oscillator's rate, a nanosecond in 100 s.
const PHASE_WANDER: f64 = 1e-20;

const THETA: usize = 0;
const RATE: usize = 1;
const CYCLE: usize = 4;
const SWING: usize = 5;
const STATES: usize = 6;

/// A cycle's strength and phase are forgotten within so many of its periods.
const CYCLE_PERIODS: f64 = 20.0;

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
    /// Amplitude of the rate's cycle, relative; zero for none.
    pub(super) cycle: f64,
}

/// Time that passes, and what that does to a cycle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    secs: f64,
    /// What the two parts of the cycle add to the time, s.
    cycle: f64,
    swing: f64,
    /// How the two parts turn into each other while they fade.
    cos: f64,
    sin: f64,
    /// What forgetting adds to the variances of time, rate and both, in units of the cycle's amplitude squared.
    forgets: [f64; 3],
}

impl Step {
    /// `secs` of a cycle with this angular frequency, rad/s, if there is one.
    pub(super) fn new(secs: f64, frequency: Option<f64>) -> Step {
        let Some(frequency) = frequency else {
            return Step { secs, cycle: 0.0, swing: 0.0, cos: 1.0, sin: 0.0, forgets: [0.0; 3] };
        };
        let memory = CYCLE_PERIODS * core::f64::consts::TAU / frequency;
        let (sin, cos) = (frequency * secs).sin_cos();
        let keep = (-secs.abs() / memory).exp();
        // Within a radian what is new in the cycle adds up as in a random walk of the rate, after that it averages out.
        let lost = 1.0 - keep * keep;
        let walk = 2.0 * secs.abs() / memory;
        let within = frequency * secs.abs() < 1.0;
        Step {
            secs,
            cycle: sin / frequency,
            swing: (1.0 - cos) / frequency,
            cos: keep * cos,
            sin: keep * sin,
            forgets: [
                walk * (secs * secs / 3.0).min(1.0 / (frequency * frequency)),
                lost,
                if within { lost * secs / 2.0 } else { 0.0 },
            ],
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Filter {
    assumed: Assumed,
    /// True time minus the clock's, s; error of the clock's rate without the cycle, relative; smallest delay forward and
    /// backward, s; the cycle's part in the rate now and a quarter of a period from now, relative.
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
        for row in &mut cov[2..4] {
            row[2..4].fill(half * half);
        }
        let mut filter =
            Filter { assumed, mean: [0.0, 0.0, half, half, 0.0, 0.0], cov, delays: [Delay::new(), Delay::new()] };
        filter.forget_cycle();
        filter
    }

    /// The same knowledge under other assumptions.
    pub(super) fn assuming(&self, assumed: Assumed) -> Filter {
        let mut filter = Filter { assumed, ..self.clone() };
        if assumed.cycle != self.assumed.cycle {
            filter.forget_cycle();
        }
        filter
    }

    /// The cycle is another one: nothing is known of it.
    pub(super) fn forget_cycle(&mut self) {
        self.mean[RATE] += self.mean[CYCLE];
        self.cov[RATE][RATE] += 2.0 * self.cov[RATE][CYCLE] + self.cov[CYCLE][CYCLE];
        self.cov[THETA][RATE] += self.cov[THETA][CYCLE];
        self.cov[RATE][THETA] = self.cov[THETA][RATE];
        for part in [CYCLE, SWING] {
            self.mean[part] = 0.0;
            self.cov[part] = [0.0; STATES];
            for row in &mut self.cov {
                row[part] = 0.0;
            }
            self.cov[part][part] = self.assumed.cycle * self.assumed.cycle;
        }
    }

    /// Lets time pass (or takes it back, when two exchanges overlap).
    pub(super) fn predict(&mut self, step: &Step) {
        if self.has_cycle() {
            self.turn(step);
        } else {
            self.mean[THETA] += step.secs * self.mean[RATE];
            for row in &mut self.cov[..CYCLE] {
                row[THETA] += step.secs * row[RATE];
            }
            self.cov[THETA][THETA] += step.secs * self.cov[RATE][THETA];
            for other in RATE..CYCLE {
                self.cov[THETA][other] = self.cov[other][THETA];
            }
        }
        let (q, dt, t) = (self.assumed.wander, step.secs, step.secs.abs());
        self.cov[THETA][THETA] += q * t * t * t / 3.0 + PHASE_WANDER * t;
        let cross = q * t * dt / 2.0;
        self.cov[THETA][RATE] += cross;
        self.cov[RATE][THETA] += cross;
        self.cov[RATE][RATE] += q * t;
    }

    /// Without one its two states are zero, and so is all that they have to do with the others.
    fn has_cycle(&self) -> bool {
        self.assumed.cycle != 0.0
    }

    /// What time does to a state with a cycle.
    fn turn(&mut self, step: &Step) {
        let advance = |state: &mut [f64; STATES]| {
            let [cycle, swing] = [state[CYCLE], state[SWING]];
            state[THETA] += step.secs * state[RATE] + step.cycle * cycle + step.swing * swing;
            state[CYCLE] = step.cos * cycle + step.sin * swing;
            state[SWING] = step.cos * swing - step.sin * cycle;
        };
        advance(&mut self.mean);
        for row in &mut self.cov {
            advance(row);
        }
        // The same down the columns, all of them at a time.
        for i in 0..STATES {
            let [cycle, swing] = [self.cov[CYCLE][i], self.cov[SWING][i]];
            self.cov[THETA][i] += step.secs * self.cov[RATE][i] + step.cycle * cycle + step.swing * swing;
            self.cov[CYCLE][i] = step.cos * cycle + step.sin * swing;
            self.cov[SWING][i] = step.cos * swing - step.sin * cycle;
        }
        let square = self.assumed.cycle * self.assumed.cycle;
        self.cov[THETA][THETA] += square * step.forgets[0];
        self.cov[CYCLE][CYCLE] += square * step.forgets[1];
        self.cov[SWING][SWING] += square * step.forgets[1];
        self.cov[THETA][CYCLE] += square * step.forgets[2];
        self.cov[CYCLE][THETA] += square * step.forgets[2];
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
        if self.has_cycle() {
            self.correct::<STATES>(direction, prior, posterior.excess);
        } else {
            self.correct::<CYCLE>(direction, prior, posterior.excess);
        }
        posterior.log_evidence
    }

    /// Carries what became of an excess back to the first so many states.
    fn correct<const SOME: usize>(&mut self, direction: Direction, prior: Normal, posterior: Normal) {
        let (sign, d) = (direction.sign(), direction.delay_state());
        let gain: [f64; SOME] =
            core::array::from_fn(|state| (sign * self.cov[state][THETA] + self.cov[state][d]) / prior.variance);
        // The excess falls when the state rises: hence prior minus posterior.
        let moved = prior.mean - posterior.mean;
        let widened = posterior.variance - prior.variance;
        for (i, row) in self.cov[..SOME].iter_mut().enumerate() {
            self.mean[i] += gain[i] * moved;
            for (cov, other) in row.iter_mut().zip(gain) {
                *cov += gain[i] * other * widened;
            }
        }
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

    /// The clock and its rate may be off by so much more (s; relative) than was thought.
    pub(super) fn loosen(&mut self, theta: f64, rate: f64) {
        self.cov[THETA][THETA] += theta * theta;
        self.cov[RATE][RATE] += rate * rate;
    }

    /// The clock was corrected by so much time (s) and rate.
    pub(super) fn rebase(&mut self, theta: f64, rate: f64) {
        self.mean[THETA] -= theta;
        self.mean[RATE] -= rate;
    }

    pub(super) fn theta(&self) -> Normal {
        Normal { mean: self.mean[THETA], variance: self.cov[THETA][THETA] }
    }

    /// Error of the clock's rate now.
    pub(super) fn rate(&self) -> Normal {
        let cov = &self.cov;
        Normal {
            mean: self.mean[RATE] + self.mean[CYCLE],
            variance: cov[RATE][RATE] + 2.0 * cov[RATE][CYCLE] + cov[CYCLE][CYCLE],
        }
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
