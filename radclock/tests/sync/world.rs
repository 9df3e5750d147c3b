//! A small world with a known truth: an oscillator, a network and a server, all of it from one seed.

use radclock::clock::Clock;
use radclock::stamp::{Stamp, StampSource};
use radclock::sync::{SyncParams, Synchroniser, Verdict};
use radclock::time::{Counter, Span, Timestamp};

const EPOCH: Timestamp = Timestamp::new(1_800_000_000, 0);
const DAY: f64 = 86_400.0;

/// One direction of the network.
#[derive(Clone, Copy)]
pub struct Path {
    /// The smallest delay, s.
    pub min: f64,
    /// Mean of the queueing above it, s.
    pub queue: f64,
    /// How often there is a burst, and its mean, s.
    pub burst: (f64, f64),
}

/// What is true; everything is a function of the true time since the start, s.
pub struct World {
    pub seed: u64,
    /// The counter's period, s, and its first value.
    pub period: f64,
    pub first: u64,
    /// How far the rate is off the nominal one, and how far it swings in a day and, by a quarter of that, in half an hour.
    pub skew: f64,
    pub swing: f64,
    /// A change of the rate: when, and by how much.
    pub jump: (f64, f64),
    /// Each second the rate is off by at most so much, and the counter is set right at the second's end.
    pub jitter: f64,
    pub path: Path,
    /// Mean of what lies between a packet and its timestamp, s.
    pub host_delay: f64,
    /// How long the server keeps a request, s.
    pub held: f64,
    /// What is added to the smallest delays from a time on.
    pub shifts: Vec<(f64, [f64; 2])>,
    /// When there are no exchanges.
    pub gaps: Vec<(f64, f64)>,
    /// When the server's clock is wrong, and by how much.
    pub lies: Vec<(f64, f64, f64)>,
    pub host_error: f64,
}

/// A LAN, a decent crystal, an honest server.
pub fn lan(seed: u64) -> World {
    World {
        seed,
        period: 1e-9,
        first: 21_623_424_151_522,
        skew: 37e-6,
        swing: 0.05e-6,
        jump: (f64::INFINITY, 0.0),
        jitter: 0.0,
        path: Path { min: 200e-6, queue: 40e-6, burst: (0.02, 1e-3) },
        host_delay: 1.5e-6,
        held: 20e-6,
        shifts: vec![],
        gaps: vec![],
        lies: vec![],
        host_error: 0.0,
    }
}

/// What a reader would have got at a stamp's `Ta`, before that stamp.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// True time since the start, s.
    pub at: f64,
    /// What the clock said minus the truth, and its bound, s.
    pub error: f64,
    pub bound: f64,
    pub verdict: Verdict,
}

pub struct Run {
    pub sync: Synchroniser,
    /// When the first exchange ended, s.
    pub start: f64,
    /// One a stamp as soon as there was a clock.
    pub readings: Vec<Reading>,
}

impl World {
    fn phase(&self, t: f64) -> f64 {
        let swing = |amplitude: f64, period: f64| {
            let w = std::f64::consts::TAU / period;
            amplitude / w * (1.0 - (w * t).cos())
        };
        let second = Random(self.seed ^ t.floor().to_bits()).uniform();
        self.skew * t
            + swing(self.swing, DAY)
            + swing(self.swing / 4.0, 1800.0)
            + (t - self.jump.0).max(0.0) * if t > self.jump.0 { self.jump.1 } else { 0.0 }
            + self.jitter * (2.0 * second - 1.0) * t.fract()
    }

    pub fn counter(&self, t: f64) -> Counter {
        Counter(self.first.wrapping_add(((t + self.phase(t)) / self.period) as u64))
    }

    pub fn time(&self, t: f64) -> Timestamp {
        EPOCH.saturating_add(Span::from_secs_f64(t))
    }

    /// What a clock is wrong by at a true time, s.
    pub fn error(&self, clock: &Clock, t: f64) -> f64 {
        clock.time_at(self.counter(t)).since(self.time(t)).as_secs_f64()
    }

    fn delay(&self, random: &mut Random, t: f64, direction: usize) -> f64 {
        let shift: f64 = self.shifts.iter().filter(|shift| t >= shift.0).map(|shift| shift.1[direction]).sum();
        let burst = if random.uniform() < self.path.burst.0 { random.exponential(self.path.burst.1) } else { 0.0 };
        self.path.min + shift + random.exponential(self.path.queue) + random.exponential(self.host_delay) + burst
    }

    /// The exchange that starts at a true time.
    pub fn stamp(&self, random: &mut Random, t: f64) -> Stamp {
        let lie: f64 = self.lies.iter().filter(|lie| (lie.0..lie.1).contains(&t)).map(|lie| lie.2).sum();
        let arrives = t + self.delay(random, t, 0);
        let leaves = arrives + self.held;
        let back = leaves + self.delay(random, leaves, 1);
        let host = |random: &mut Random| (self.host_error * (2.0 * random.uniform() - 1.0) / self.period) as i64;
        Stamp {
            ta: self.counter(t).offset(host(random)),
            tb: self.time(arrives + lie),
            te: self.time(leaves + lie),
            tf: self.counter(back).offset(host(random)),
            host_error: Span::from_secs_f64(self.host_error),
            root_delay: Span::ZERO,
            root_dispersion: Span::ZERO,
            source: StampSource::Kernel,
        }
    }

    /// Runs a synchroniser for some hours at the poll period that `poll` gives for each time (s).
    pub fn run(&self, hours: f64, poll: impl Fn(f64) -> f64) -> Run {
        let params = SyncParams { nominal_period: self.period, ..SyncParams::default() };
        let mut sync = Synchroniser::new(params).unwrap();
        let mut random = Random(self.seed);
        let mut readings = vec![];
        let start = 8.0;
        let mut t = start;
        while t < hours * 3600.0 {
            let ta = t + random.uniform() * 0.3;
            t += poll(t);
            if self.gaps.iter().any(|gap| (gap.0..gap.1).contains(&ta)) {
                continue;
            }
            let stamp = self.stamp(&mut random, ta);
            let clock = sync.clock();
            let verdict = sync.process(&stamp);
            if let Some(clock) = clock {
                let bound = clock.max_error_at(self.counter(ta)).as_secs_f64();
                readings.push(Reading { at: ta, error: self.error(&clock, ta), bound, verdict });
            }
        }
        Run { sync, start, readings }
    }
}

impl Run {
    /// The readings from a time on, s.
    pub fn after(&self, t: f64) -> &[Reading] {
        &self.readings[self.readings.partition_point(|reading| reading.at < t)..]
    }

    /// Every reading is inside its bound.
    #[track_caller]
    pub fn assert_honest(&self) {
        assert!(self.readings.len() > 20, "a clock soon");
        for reading in &self.readings {
            assert!(reading.error.abs() <= reading.bound, "outside its bound: {reading:?}");
        }
    }
}

pub fn rms(readings: &[Reading]) -> f64 {
    (readings.iter().map(|reading| reading.error * reading.error).sum::<f64>() / readings.len() as f64).sqrt()
}

pub fn worst(readings: &[Reading]) -> f64 {
    readings.iter().map(|reading| reading.error.abs()).fold(0.0, f64::max)
}

pub fn median_bound(readings: &[Reading]) -> f64 {
    let mut bounds: Vec<f64> = readings.iter().map(|reading| reading.bound).collect();
    bounds.sort_by(f64::total_cmp);
    bounds[bounds.len() / 2]
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1, both excluded.
    pub fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / 2f64.powi(53)
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.uniform().ln()
    }
}
