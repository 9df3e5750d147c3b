//! A scenario is one machine with its oscillator, the servers that it asks, and what goes wrong; running it gives the
//! exchanges with their true times.

use radclock::stamp::{Stamp, StampSource};
use radclock::time::{Counter, Span, Timestamp};

use crate::network::Server;
use crate::oscillator::{Load, Oscillator, Phase};
use crate::random::Random;

/// True time 0 of every scenario.
const EPOCH: Timestamp = Timestamp::new(1_800_000_000, 0);
/// The first exchange begins about then, s.
const FIRST: f64 = 8.0;
/// How far polls are from even, as a share of the period, in either direction.
const POLL_JITTER: f64 = 0.02;

/// One machine and its servers.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// How long it runs, h.
    pub hours: f64,
    /// Poll periods, s: each for as long as [`Scenario::poll_change`] says, then the next, from the beginning again.
    pub polls: Vec<f64>,
    /// s.
    pub poll_change: f64,
    /// The machine's oscillator.
    pub oscillator: Oscillator,
    /// The counter's nominal period, s a count.
    pub period: f64,
    /// When the machine is busy and for how long at a time, on average: `(busy, idle)`, s. Never, if there is nothing.
    pub load: Option<(f64, f64)>,
    /// How wide the brackets are in which the host's timestamps are taken: each is off by up to this in either direction, s.
    pub host_error: f64,
    /// Mean of what else lies between a packet and its timestamp, such as an interrupt that comes late, s. It only ever adds
    /// to the delays.
    pub host_delay: f64,
    /// When nothing is exchanged, s.
    pub gaps: Vec<(f64, f64)>,
    /// At least one. The first is the one of a scenario with a single server.
    pub servers: Vec<Server>,
}

/// An exchange with the truth beside it.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Which of the servers.
    pub server: usize,
    /// What the host knows.
    pub stamp: Stamp,
    /// True time at `Ta`.
    pub sent: Timestamp,
    /// True time at `Tf`.
    pub received: Timestamp,
}

/// A scenario that has been run. The oscillator can be asked at any time.
#[derive(Clone, Debug)]
pub struct World {
    phase: Phase,
    period: f64,
    first: u64,
    exchanges: Vec<Exchange>,
}

impl Scenario {
    /// Runs it with this seed.
    ///
    /// # Panics
    ///
    /// If there is no server, or no poll period.
    pub fn run(&self, seed: u64) -> World {
        assert!(!self.servers.is_empty() && !self.polls.is_empty(), "{self:?}");
        let duration = self.hours * 3600.0;
        let mut random = Random::new(seed, 0);
        // Any value that a machine may have been up for.
        let first = random.between(5.0e12, 4.0e13) as u64;
        let load = match self.load {
            Some((busy, idle)) => Load::new(&mut random, duration, busy, idle),
            None => Load::default(),
        };
        // Replies arrive after the end.
        let phase = self.oscillator.run(&mut random, duration + 3600.0, &load);
        let mut world = World { phase, period: self.period, first, exchanges: vec![] };
        for (number, server) in self.servers.iter().enumerate() {
            let mut random = Random::new(seed, 1 + number as u64);
            self.ask(&mut world, number, server, &mut random, &load);
        }
        world.exchanges.sort_by_key(|exchange| exchange.received);
        world
    }

    fn ask(&self, world: &mut World, number: usize, server: &Server, random: &mut Random, load: &Load) {
        // Servers are not all asked at once.
        let mut even = FIRST + self.polls[0] * number as f64 / self.servers.len() as f64;
        while even < self.hours * 3600.0 {
            let poll = self.polls[(even / self.poll_change) as usize % self.polls.len()];
            let sent = even + poll * random.between(-POLL_JITTER, POLL_JITTER);
            even += poll;
            if self.gaps.iter().any(|gap| (gap.0..gap.1).contains(&sent)) || server.is_lost(random, sent) {
                continue;
            }
            let mut host = || {
                let bracket = random.between(-self.host_error, self.host_error);
                bracket + if self.host_delay > 0.0 { random.exponential(self.host_delay) } else { 0.0 }
            };
            let (before, after) = (host(), host());
            let journey = server.exchange(random, sent + before, load);
            let received = journey.returns + after;
            let stamp = Stamp {
                ta: world.counter(sent),
                tb: time(journey.said[0]),
                te: time(journey.said[1]),
                tf: world.counter(received),
                host_error: Span::from_secs_f64(self.host_error),
                root_delay: Span::from_secs_f64(server.root_delay),
                root_dispersion: Span::from_secs_f64(server.root_dispersion),
                source: StampSource::Kernel,
            };
            world.exchanges.push(Exchange { server: number, stamp, sent: time(sent), received: time(received) });
        }
    }
}

impl World {
    /// The exchanges in the order in which their replies arrived.
    pub fn exchanges(&self) -> &[Exchange] {
        &self.exchanges
    }

    /// The counter at a time since the beginning, s.
    pub fn counter(&self, t: f64) -> Counter {
        Counter(self.first.wrapping_add(((t + self.phase.at(t)) / self.period) as u64))
    }

    /// The counter's phase at a time since the beginning: how far it is ahead of counting evenly, s.
    pub fn phase(&self, t: f64) -> f64 {
        self.phase.at(t)
    }
}

/// A time since the beginning, s, as true time.
pub fn time(t: f64) -> Timestamp {
    let whole = t.floor();
    EPOCH.saturating_add(Span::from_nanos(whole as i64 * 1_000_000_000)).saturating_add(Span::from_secs_f64(t - whole))
}

/// True time since the beginning, s.
pub fn seconds(time: Timestamp) -> f64 {
    time.since(EPOCH).as_secs_f64()
}
