//! What is known of one direction's queueing delay: a mixture of exponentials over fixed scales, its weights learnt.
//!
//! A stamp's delay in one direction is the smallest one plus something that is never negative. No one scale fits a
//! quiet LAN, a loaded host and a WAN with bursts; a mixture over all scales fits each once it has seen some stamps.

use super::filter::Normal;

/// How many exponentials.
pub(super) const COMPONENTS: usize = 9;

/// Their means, s: a factor of four apart, from below any network's jitter to above any congestion worth modelling.
const SCALES: [f64; COMPONENTS] = [1e-6, 4e-6, 16e-6, 64e-6, 256e-6, 1024e-6, 4096e-6, 16384e-6, 65536e-6];

/// Their inverses, 1/s.
const RATES: [f64; COMPONENTS] = {
    let mut rates = SCALES;
    let mut k = 0;
    while k < COMPONENTS {
        rates[k] = 1.0 / SCALES[k];
        k += 1;
    }
    rates
};

/// The weights that a direction starts with count as so many stamps.
const PRIOR_STAMPS: f64 = 4.0;
/// The weights forget: they rest on about so many stamps.
const MEMORY_STAMPS: f64 = 400.0;
/// No weight falls below this, so that a delay not seen for long still is possible.
const MIN_WEIGHT: f64 = 1e-4;

/// Logarithm of the density of a delay that no exponential explains.
const UNHEARD_OF: f64 = -700.0;

/// The distribution of one direction's delay above its smallest.
#[derive(Clone, Debug)]
pub(super) struct Delay {
    weights: [f64; COMPONENTS],
    stamps: f64,
}

/// What a predicted delay becomes once it is known to come from a [`Delay`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Posterior {
    /// Logarithm of the density of the prediction.
    pub(super) log_evidence: f64,
    /// The delay above the smallest, s.
    pub(super) excess: Normal,
    /// How much each exponential had to do with it; their sum is 1.
    shares: [f64; COMPONENTS],
}

impl Delay {
    pub(super) fn new() -> Delay {
        Delay { weights: [1.0 / COMPONENTS as f64; COMPONENTS], stamps: PRIOR_STAMPS }
    }

    /// Bayes' rule for a delay predicted like this (s): each exponential turns it into a normal distribution cut off at
    /// zero, whose moments are known in closed form.
    pub(super) fn posterior(&self, prior: Normal) -> Posterior {
        let sigma = prior.sigma();
        let place = prior.mean / sigma;
        // Everything is relative to the normal density at zero where that is the largest there is.
        let (log_scale, at_zero) =
            if place > 0.0 { (0.0, (-0.5 * place * place).exp()) } else { (-0.5 * place * place, 1.0) };
        let ratios = RATES.map(|rate| sigma * rate);
        // An exponential moves the prediction down by the square of its deviation over the scale. These, the shortest, move it
        // below zero: what remains is a tail. Of what the others leave, zero cuts off the smaller part.
        let below = ratios.iter().take_while(|&&ratio| ratio >= place).count();
        let mut scaled = [0.0; COMPONENTS];
        let mut means = [0.0; COMPONENTS];
        let mut variances = [0.0; COMPONENTS];
        for k in 0..below {
            let cut = ratios[k] - place;
            let tail = Tail::beyond(cut);
            means[k] = tail.mean;
            variances[k] = tail.variance;
            scaled[k] = at_zero * INV_SQRT_TAU / (tail.mean + cut);
        }
        // From one scale to the next shorter one the exponential is raised to the fourth power, and what blurs it to the sixteenth.
        let (mut fall, mut lift) = (0.0, 0.0);
        for k in (below..COMPONENTS).rev() {
            let ratio = ratios[k];
            if ratio > SHORT {
                // An exponential so much shorter than the delay had nothing to do with it, nor have those shorter still.
                scaled[..below].fill(0.0);
                break;
            }
            let cut = ratio - place;
            let blur = 0.5 * ratio * ratio;
            if k == COMPONENTS - 1 {
                (fall, lift) = ((-prior.mean * RATES[k]).exp(), blur.exp());
            } else {
                fall = to_the_fourth(fall);
                // Anew as long as that is exact, since each power takes errors along.
                lift = if blur < 1e-3 { small_exp(blur) } else { to_the_fourth(to_the_fourth(lift)) };
            }
            let whole = fall * lift;
            if cut < -CERTAIN {
                (scaled[k], means[k], variances[k]) = (whole, -cut, 1.0);
            } else {
                let off = at_zero * INV_SQRT_TAU;
                let beyond = Tail::beyond(-cut).mean - cut;
                scaled[k] = (whole - off / beyond).max(f64::MIN_POSITIVE);
                let hazard = off / scaled[k];
                means[k] = hazard - cut;
                variances[k] = 1.0 - hazard * means[k];
            }
        }
        let mut shares = [0.0; COMPONENTS];
        let mut total = 0.0;
        let mut first = 0.0;
        for k in 0..COMPONENTS {
            shares[k] = self.weights[k] * RATES[k] * scaled[k];
            total += shares[k];
            first += shares[k] * means[k];
        }
        if total <= 0.0 {
            // Longer than any congestion that is modelled: it says nothing.
            return Posterior { log_evidence: UNHEARD_OF, excess: prior, shares: self.weights };
        }
        let inverse = 1.0 / total;
        let mean = first * inverse;
        let mut second = 0.0;
        for k in 0..COMPONENTS {
            shares[k] *= inverse;
            let off = means[k] - mean;
            second += shares[k] * (variances[k] + off * off);
        }
        let excess = Normal { mean: sigma * mean, variance: prior.variance * second };
        Posterior { log_evidence: total.ln() + log_scale, excess, shares }
    }

    /// Learns from a stamp.
    pub(super) fn learn(&mut self, posterior: &Posterior) {
        self.stamps = (self.stamps + 1.0).min(MEMORY_STAMPS);
        let gain = 1.0 / self.stamps;
        let mut total = 0.0;
        for (weight, share) in self.weights.iter_mut().zip(&posterior.shares) {
            *weight = (*weight + gain * (share - *weight)).max(MIN_WEIGHT);
            total += *weight;
        }
        let inverse = 1.0 / total;
        for weight in &mut self.weights {
            *weight *= inverse;
        }
    }

    /// The delay that half of all exceed, s.
    pub(super) fn median(&self) -> f64 {
        let (mut low, mut high) = (0.0, SCALES[COMPONENTS - 1]);
        for _ in 0..20 {
            let middle = 0.5 * (low + high);
            *(if self.tail(middle) > 0.5 { &mut low } else { &mut high }) = middle;
        }
        high
    }

    /// Probability of a delay beyond so many seconds.
    pub(super) fn tail(&self, delay: f64) -> f64 {
        let mut fall = (-delay.max(0.0) * RATES[COMPONENTS - 1]).exp();
        let mut sum = 0.0;
        for weight in self.weights.iter().rev() {
            sum += weight * fall;
            // The next shorter scale's.
            fall = to_the_fourth(fall);
        }
        sum
    }
}

/// A cut farther below the mean than so many standard deviations cuts nothing off.
const CERTAIN: f64 = 7.0;
/// A delay's share of an exponential shorter than a standard deviation by this factor is nothing, unless the delay is
/// predicted to be negative or nearly so.
const SHORT: f64 = 20.0;

const INV_SQRT_TAU: f64 = 0.398_942_280_401_432_7;

/// A normal distribution beyond a cut, in its standard deviations.
#[derive(Clone, Copy, Debug)]
struct Tail {
    /// Mean of what lies there, above the cut.
    mean: f64,
    /// Its variance.
    variance: f64,
}

/// Beyond so many standard deviations the asymptotic series is good enough, and the closed form cancels.
const FAR: f64 = 12.0;
/// Steps of the table below to a standard deviation.
const FINE: f64 = 16.0;
/// The mean of a standard normal distribution beyond a cut, above the cut, from each step to the next: a cubic in the part of
/// the step, which goes through both ends smoothly.
static MEANS: [[f64; 4]; (FAR * FINE) as usize + 1] = {
    /// The mean beyond a cut, and what it rises by within a step there: the derivative follows from the value.
    const fn at(cut: f64) -> (f64, f64) {
        let mean = INV_SQRT_TAU / (0.5 * scaled_erfc(cut * core::f64::consts::FRAC_1_SQRT_2)) - cut;
        (mean, ((mean + cut) * mean - 1.0) / FINE)
    }
    let mut means = [[0.0; 4]; (FAR * FINE) as usize + 1];
    let mut step = 0;
    while step < means.len() {
        let (left, start) = at(step as f64 / FINE);
        let (right, end) = at((step + 1) as f64 / FINE);
        let rise = right - left;
        means[step] = [left, start, 3.0 * rise - 2.0 * start - end, start + end - 2.0 * rise];
        step += 1;
    }
    means
};

impl Tail {
    /// Beyond a cut that is not negative.
    #[inline(always)]
    fn beyond(cut: f64) -> Tail {
        if cut >= FAR {
            let inverse = 1.0 / cut;
            let square = inverse * inverse;
            return Tail {
                mean: inverse * (1.0 - square * (2.0 - 10.0 * square)),
                variance: square * (1.0 - square * (6.0 - 50.0 * square)),
            };
        }
        let place = cut * FINE;
        let step = place as usize;
        let t = place - step as f64;
        let [mean, first, second, third] = MEANS[step];
        let mean = mean + t * (first + t * (second + t * third));
        Tail { mean, variance: 1.0 - (mean + cut) * mean }
    }
}

/// `exp(x)` for `0 ≤ x < 1e-3`, exactly.
fn small_exp(x: f64) -> f64 {
    1.0 + x * (1.0 + x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0))))
}

fn to_the_fourth(x: f64) -> f64 {
    let square = x * x;
    square * square
}

/// `exp(x²)·erfc(x)` for `x ≥ 0`, to 1e-8: a Chebyshev fit of `(1 + 2x)·exp(x²)·erfc(x)` in `(x − 3.75)/(x + 3.75)`,
/// after Shepherd and Laframboise, Math. Comp. 36 (1981).
const fn scaled_erfc(x: f64) -> f64 {
    const COEFFICIENTS: [f64; 13] = [
        1.237_512_630_032_699,
        -0.140_240_658_321_390_2,
        3.585_495_314_100_629e-3,
        8.227_841_998_354_48e-2,
        -0.108_805_227_549_979,
        9.229_076_959_087_535e-2,
        -5.868_544_049_142_249e-2,
        2.840_925_236_514_697e-2,
        -9.770_087_187_938_137e-3,
        1.675_912_216_918_004e-3,
        3.301_674_606_054_695e-4,
        -2.241_167_463_416_805e-4,
        2.204_671_737_346_627e-5,
    ];
    let (below, above) = (x + 3.75, 1.0 + 2.0 * x);
    let inverse = 1.0 / (below * above);
    let y = (x - 3.75) * above * inverse;
    let mut sum = 0.0;
    let mut k = COEFFICIENTS.len();
    while k > 0 {
        k -= 1;
        sum = sum * y + COEFFICIENTS[k];
    }
    sum * below * inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64, relative: f64) -> bool {
        (a - b).abs() <= relative * b.abs()
    }

    #[test]
    fn scaled_erfc_is_that_of_the_tables() {
        for (x, value) in
            [(0.0, 1.0), (0.5, 0.615_690_344_192_926), (1.0, 0.427_583_576_155_807), (10.0, 0.056_140_992_743_822_6)]
        {
            assert!(close(scaled_erfc(x), value, 1e-8), "{x}");
        }
        assert!(close(scaled_erfc(1e6), 1e-6 / core::f64::consts::PI.sqrt(), 1e-8));
    }

    /// The posterior by summing over a fine grid.
    fn summed(delay: &Delay, prior: Normal) -> (f64, f64, f64) {
        let sigma = prior.sigma();
        let low = (prior.mean - 12.0 * sigma).max(0.0);
        let high = (prior.mean + 12.0 * sigma).max(12.0 * sigma);
        let steps = 400_000;
        let step = (high - low) / f64::from(steps);
        let (mut zero, mut one, mut two) = (0.0, 0.0, 0.0);
        for i in 0..steps {
            let z = low + (f64::from(i) + 0.5) * step;
            let off = (z - prior.mean) / sigma;
            let normal = (-0.5 * off * off).exp() / (sigma * core::f64::consts::TAU.sqrt());
            let exponentials: f64 =
                delay.weights.iter().zip(SCALES).map(|(weight, scale)| weight / scale * (-z / scale).exp()).sum();
            let density = normal * exponentials * step;
            zero += density;
            one += density * z;
            two += density * z * z;
        }
        let mean = one / zero;
        (zero.ln(), mean, two / zero - mean * mean)
    }

    #[test]
    fn the_posterior_is_bayes_rule() {
        let mut delay = Delay::new();
        for delay_us in [30.0, 45.0, 12.0, 80.0, 3.0, 900.0] {
            let posterior = delay.posterior(Normal { mean: delay_us * 1e-6, variance: 1e-12 });
            delay.learn(&posterior);
        }
        for (mean, sigma) in [(0.0, 2e-6), (-8e-6, 2e-6), (30e-6, 5e-6), (50e-6, 2e-6), (200e-6, 6e-6), (-20e-6, 40e-6)]
        {
            let prior = Normal { mean, variance: sigma * sigma };
            let posterior = delay.posterior(prior);
            let (log, mean, variance) = summed(&delay, prior);
            assert!((posterior.log_evidence - log).abs() < 1e-3, "{prior:?}: {} {log}", posterior.log_evidence);
            assert!(close(posterior.excess.mean, mean, 1e-3), "{prior:?}: {} {mean}", posterior.excess.mean);
            assert!(
                close(posterior.excess.variance, variance, 5e-3),
                "{prior:?}: {} {variance}",
                posterior.excess.variance
            );
        }
    }

    #[test]
    fn no_prediction_makes_a_posterior_of_nonsense() {
        let delay = Delay::new();
        for mean in [-1e12, -1.0, -1e-3, 0.0, 1e-9, 1e-3, 1.0, 1e3, 1e12] {
            for sigma in [1e-9, 1e-6, 1e-3, 1.0, 1e6] {
                let posterior = delay.posterior(Normal { mean, variance: sigma * sigma });
                let Normal { mean, variance } = posterior.excess;
                assert!(posterior.log_evidence.is_finite() && mean >= 0.0 && variance >= 0.0, "{mean} {sigma}");
                assert!(variance.is_finite() && mean.is_finite());
            }
        }
    }

    #[test]
    fn a_delay_model_learns_how_long_delays_are() {
        let mut delay = Delay::new();
        for i in 0..400 {
            let quantile = (f64::from(i * 149 % 400) + 0.5) / 400.0;
            let posterior = delay.posterior(Normal { mean: -40e-6 * quantile.ln(), variance: 1e-12 });
            delay.learn(&posterior);
        }
        assert!(close(delay.median(), 40e-6 * 2f64.ln(), 0.15), "{}", delay.median());
        // The true one is 0.08; scales a factor of four apart can only be so exact.
        assert!((0.06..0.2).contains(&delay.tail(100e-6)), "{}", delay.tail(100e-6));
        assert!(delay.tail(0.0) > 0.999 && delay.tail(10e-3) < 0.01);
    }
}
