//! The bank of filters: one for each combination of how far the oscillator wanders and how noisy a reading is. Each is
//! weighted by how well it foretold the recent stamps, so that nothing has to be told about the machine or the network.

use std::collections::VecDeque;

use super::cycle::Pace;
use super::filter::{Assumed, Direction, Filter, Normal, Step};

/// How far the rate of a crystal wanders, from a quiet room to a fan's draught: spectral density of its random walk, 1/s.
/// 2e-19 is 0.02 ppm in an hour.
const WANDERS: [f64; 4] = [1e-20, 2e-19, 4e-18, 1e-16];
/// Noise of a reading, and of a delay about its model, s. From a TSC on a LAN to a WAN whose queues are milliseconds: there
/// a sharper edge than this is luck. Closer where a reading of the TSC mostly lies.
const NOISES: [f64; 7] = [0.5e-6, 1e-6, 2e-6, 8e-6, 32e-6, 128e-6, 600e-6];
/// The same for what is hardly a crystal any more, up to a counter under emulation (30 ppm in a second).
const WILD_WANDERS: [f64; 2] = [1e-13, 1e-9];
const WILD_NOISES: [f64; 3] = [2e-6, 32e-6, 300e-6];
/// Amplitude of a cycle of the rate, and what it wanders besides, 1/s.
const CYCLES: [(f64, f64); 3] = [(1e-8, 1e-20), (1e-7, 1e-20), (1e-7, 3e-19)];
/// One more, for when a cycle is known. Before that it would be a filter without one like others, and make its wander
/// count more than others.
const LATE_CYCLES: [(f64, f64); 1] = [(1e-7, 3e-18)];
const CYCLE_NOISES: [f64; 3] = [0.5e-6, 2e-6, 8e-6];
/// The evidence for a filter rests on about so many stamps.
const MEMORY_STAMPS: f64 = 400.0;
/// A stamp counts as so much evidence. No oscillator does a random walk exactly, so evidence taken in full would soon leave
/// one filter alone, and not the one with the smallest error; taken in part, neighbours are averaged.
const TRUST: f64 = 0.25;
/// A filter whose evidence (natural logarithm) lags by so much is put to sleep: it would never come back by itself…
const HOPELESS: f64 = 300.0;
/// …but a change of the oscillator may make it the best within a few stamps. So at each stamp so many of those asleep try
/// again from the state of the best.
const WOKEN: usize = 3;
/// How closely a delay is known that only teaches the delay models, s².
const LEARNT_VARIANCE: f64 = 1e-12;
/// A filter whose evidence lags by so much has a ten-thousandth of the best one's weight, which is not worth the arithmetic.
const NEGLIGIBLE: f64 = 36.8;
/// Two rises or falls that differ by less than so many standard deviations are one of both directions.
const TOGETHER_SIGMAS: f64 = 1.2;

#[derive(Clone, Debug)]
struct Member {
    filter: Filter,
    /// Logarithm of the density that it gave to the recent stamps.
    evidence: f64,
    /// Its share in what the bank says, from the evidence; all shares add up to 1.
    weight: f64,
}

#[derive(Clone, Debug)]
pub(super) struct Bank {
    members: Vec<Member>,
    /// What the hopeless ones assumed; they take part in nothing.
    asleep: VecDeque<Assumed>,
    /// Angular frequency of the rate's cycle, rad/s, once there is one.
    frequency: Option<f64>,
}

impl Bank {
    /// Filters that know one exchange of `rtt` seconds, and that the rate is wrong by about `skew` at most.
    pub(super) fn new(rtt: f64, skew: f64) -> Bank {
        let steady = WANDERS.iter().flat_map(|&wander| NOISES.map(|noise| Assumed { wander, noise, cycle: 0.0 }));
        let wild =
            WILD_WANDERS.iter().flat_map(|&wander| WILD_NOISES.map(|noise| Assumed { wander, noise, cycle: 0.0 }));
        let grid: Vec<Assumed> = steady.chain(wild).chain(cycling(&CYCLES)).collect();
        let weight = 1.0 / grid.len() as f64;
        Bank {
            members: grid
                .into_iter()
                .map(|assumed| Member { filter: Filter::new(assumed, rtt, skew), evidence: 0.0, weight })
                .collect(),
            asleep: VecDeque::new(),
            frequency: None,
        }
    }

    /// Lets `dt` seconds pass.
    pub(super) fn predict(&mut self, dt: f64) {
        let step = Step::new(dt, self.frequency);
        for member in &mut self.members {
            member.filter.predict(&step);
        }
    }

    /// The rate goes through a cycle at this pace.
    pub(super) fn set_pace(&mut self, pace: Pace) {
        let (Pace::Same(frequency) | Pace::New(frequency)) = pace;
        if self.frequency.replace(frequency).is_none() {
            self.join(cycling(&LATE_CYCLES));
        }
        if matches!(pace, Pace::New(_)) {
            for member in &mut self.members {
                member.filter.forget_cycle();
            }
        }
    }

    /// More filters, which begin where the best one is.
    fn join(&mut self, grid: impl Iterator<Item = Assumed>) {
        let Some(Member { filter, evidence, .. }) = self.best().cloned() else { return };
        let members: Vec<Member> =
            grid.map(|assumed| Member { filter: filter.assuming(assumed), evidence, weight: 0.0 }).collect();
        self.members.reserve_exact(members.len() + self.asleep.len());
        self.members.extend(members);
    }

    /// Takes in a stamp: what was measured forward and backward, with the host's noise (s²).
    pub(super) fn update(&mut self, measured: [f64; 2], host: f64) {
        for Member { filter, evidence, .. } in &mut self.members {
            let forward = filter.update(Direction::Forward, measured[0], host);
            let backward = filter.update(Direction::Backward, measured[1], host);
            *evidence = *evidence * (1.0 - 1.0 / MEMORY_STAMPS) + forward + backward;
        }
        self.weigh();
    }

    fn best(&self) -> Option<&Member> {
        self.members.iter().max_by(|a, b| a.evidence.total_cmp(&b.evidence))
    }

    /// Starts some of the hopeless filters anew from the best.
    fn wake(&mut self) {
        let Some(Member { filter, evidence, .. }) = self.best().cloned() else { return };
        for assumed in self.asleep.drain(..WOKEN.min(self.asleep.len())) {
            self.members.push(Member { filter: filter.assuming(assumed), evidence: evidence - HOPELESS, weight: 0.0 });
        }
    }

    /// Weighs the filters by their evidence, and puts the hopeless ones to sleep.
    fn weigh(&mut self) {
        let Some(best) = self.best().map(|best| best.evidence) else { return };
        let asleep = &mut self.asleep;
        self.members.retain(|member| {
            let hopeless = member.evidence < best - HOPELESS;
            if hopeless {
                asleep.push_back(member.filter.assumed());
            }
            !hopeless
        });
        let mut total = 0.0;
        for member in &mut self.members {
            member.weight = weight(best - member.evidence);
            total += member.weight;
        }
        for member in &mut self.members {
            member.weight /= total;
        }
        self.wake();
    }

    /// Learns how long delays are from a stamp whose delays above the smallest were these (s), and nothing else.
    ///
    /// What the weightiest filter makes of it is good enough for all, and spares the arithmetic.
    pub(super) fn learn_delays(&mut self, excess: [f64; 2]) {
        let Some(best) = self.members.iter().max_by(|a, b| a.weight.total_cmp(&b.weight)) else { return };
        let posteriors = Direction::BOTH.map(|direction| {
            let prior = Normal { mean: excess[direction as usize], variance: LEARNT_VARIANCE };
            best.filter.delay(direction).posterior(prior)
        });
        for member in &mut self.members {
            member.filter.learn_delays(&posteriors);
        }
    }

    /// Readings have become noisy by so much, s, and it is not the oscillator: from now on only filters count that expect a good
    /// part of it, and they begin where the best one is. Less noise is tried again by and by; a wild oscillator is not, since it
    /// would explain the same.
    pub(super) fn expect_noise(&mut self, noise: f64) {
        let Some(Member { filter, evidence, .. }) = self.best().cloned() else { return };
        let least = (noise / 4.0).min(NOISES[NOISES.len() - 1]);
        let all = self.members.iter().map(|member| member.filter.assumed()).chain(self.asleep.drain(..));
        let steady = all.filter(|assumed| assumed.wander < WILD_WANDERS[0]);
        let (noisy, asleep): (Vec<Assumed>, Vec<Assumed>) = steady.partition(|assumed| assumed.noise >= least);
        self.asleep = asleep.into();
        self.members = noisy
            .into_iter()
            .map(|assumed| Member { filter: filter.assuming(assumed), evidence, weight: 0.0 })
            .collect();
        self.weigh();
    }

    /// See [`Filter::loosen`].
    pub(super) fn loosen(&mut self, theta: f64, rate: f64) {
        for member in &mut self.members {
            member.filter.loosen(theta, rate);
        }
    }

    /// The clock was corrected by so much time (s) and rate.
    pub(super) fn rebase(&mut self, theta: f64, rate: f64) {
        for member in &mut self.members {
            member.filter.rebase(theta, rate);
        }
    }

    /// The smallest delays have moved by so much (s), known to `sigma` (s; zero where nothing moved).
    ///
    /// Two that moved alike, as far as can be seen, are taken to have moved alike: a new path for both directions, which
    /// leaves what is known of their difference as it was.
    pub(super) fn shift(&mut self, mut moved: [f64; 2], mut sigma: [f64; 2]) {
        let blur = (4.0 * self.theta().variance + sigma[0] * sigma[0] + sigma[1] * sigma[1]).sqrt();
        let together = sigma[0] > 0.0 && sigma[1] > 0.0 && (moved[0] - moved[1]).abs() < TOGETHER_SIGMAS * blur;
        if together {
            moved = [0.5 * (moved[0] + moved[1]); 2];
            sigma = [0.5 * blur; 2];
        }
        for member in &mut self.members {
            member.filter.shift(moved, sigma, together);
        }
    }

    /// True time minus the clock's, s.
    pub(super) fn theta(&self) -> Normal {
        self.combine(Filter::theta)
    }

    /// Error of the clock's rate, relative.
    pub(super) fn rate(&self) -> Normal {
        self.combine(Filter::rate)
    }

    /// The same, by those filters alone that know of no cycle, however little they weigh.
    pub(super) fn rate_without_cycle(&self) -> Normal {
        let plain = || self.members.iter().filter(|member| member.filter.assumed().cycle == 0.0);
        let Some(best) = plain().map(|member| member.evidence).max_by(f64::total_cmp) else { return self.rate() };
        combine(plain().map(|member| (weight(best - member.evidence), member.filter.rate())))
    }

    /// The smallest round trip, s.
    pub(super) fn round_trip(&self) -> Normal {
        self.combine(Filter::round_trip)
    }

    /// The smallest delay of a direction, s.
    pub(super) fn smallest(&self, direction: Direction) -> f64 {
        self.average(|filter| filter.smallest(direction))
    }

    /// See [`Filter::excess`].
    pub(super) fn excess(&self, direction: Direction, measured: f64, host: f64) -> Normal {
        self.combine(|filter| filter.excess(direction, measured, host))
    }

    /// Spectral density of the rate's random walk, 1/s.
    pub(super) fn wander(&self) -> f64 {
        self.average(|filter| filter.assumed().wander)
    }

    /// Noise of a reading, s.
    pub(super) fn noise(&self) -> f64 {
        self.average(|filter| filter.assumed().noise.powi(2)).sqrt()
    }

    /// Probability that a delay in this direction exceeds the smallest by more than so many seconds.
    pub(super) fn tail(&self, direction: Direction, excess: f64) -> f64 {
        self.average(|filter| filter.delay(direction).tail(excess))
    }

    /// What half of the delays in this direction exceed the smallest by, s.
    pub(super) fn median(&self, direction: Direction) -> f64 {
        self.average(|filter| filter.delay(direction).median())
    }

    fn average(&self, of: impl Fn(&Filter) -> f64) -> f64 {
        self.combine(|filter| Normal { mean: of(filter), variance: 0.0 }).mean
    }

    /// Mean and variance over the bank, each filter by its weight.
    fn combine(&self, of: impl Fn(&Filter) -> Normal) -> Normal {
        combine(
            self.members.iter().filter(|member| member.weight > 0.0).map(|member| (member.weight, of(&member.filter))),
        )
    }
}

/// Filters with these cycles.
fn cycling(cycles: &[(f64, f64)]) -> impl Iterator<Item = Assumed> {
    cycles.iter().flat_map(|&(cycle, wander)| CYCLE_NOISES.map(|noise| Assumed { wander, noise, cycle }))
}

/// The weight of a filter whose evidence lags by so much, in units of the best one's.
fn weight(lag: f64) -> f64 {
    if lag > NEGLIGIBLE { 0.0 } else { (-TRUST * lag).exp() }
}

/// Mean and variance of a mixture.
fn combine(parts: impl Iterator<Item = (f64, Normal)>) -> Normal {
    let (mut total, mut mean, mut square) = (0.0, 0.0, 0.0);
    for (weight, part) in parts {
        total += weight;
        mean += weight * part.mean;
        square += weight * (part.variance + part.mean * part.mean);
    }
    mean /= total;
    Normal { mean, variance: (square / total - mean * mean).max(0.0) }
}
