//! The synchronisation algorithm: stamps in, parameters with error bounds out. A pure state machine: no clock, no
//! socket, no thread and no log inside. `docs/algorithm.md` explains the model.

mod delay;
mod filter;

use std::collections::VecDeque;

use crate::clock::{Clock, Period, Status};
use crate::stamp::Stamp;
use crate::time::{Counter, Span};
use filter::{Assumed, Direction, Filter, Normal};

/// The algorithm's parameters, validated by [`Synchroniser::new`].
#[derive(Clone, Debug, PartialEq)]
pub struct SyncParams {
    /// The counter's nominal period, seconds a count (1e-9 for Xen system time).
    pub nominal_period: f64,
    /// How far the real period may be from the nominal one, relative (500e-6).
    pub nominal_skew: f64,
}

impl Default for SyncParams {
    fn default() -> SyncParams {
        SyncParams { nominal_period: 1e-9, nominal_skew: 500e-6 }
    }
}

/// A parameter out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} is {value}: it must be {range}")]
pub struct ParamError {
    /// The field of [`SyncParams`].
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    /// What is allowed.
    pub range: &'static str,
}

/// What became of a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
pub enum Verdict {
    /// Taken into the estimates.
    Accepted,
    /// Out of order, or impossible in itself (`tf` before `ta`, `te` before `tb`, a negative network delay).
    Invalid,
    /// Sound in itself, but its offset contradicts the clock beyond what either's bound allows: not followed.
    Insane,
}

/// What the algorithm says of itself, for status displays.
#[derive(Clone, Debug, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SyncReport {
    /// Stamps accepted, invalid, insane.
    pub accepted: u64,
    /// See [`Verdict::Invalid`].
    pub invalid: u64,
    /// See [`Verdict::Insane`].
    pub insane: u64,
    /// The smallest round trip in use, s.
    pub min_rtt_s: f64,
    /// How far the last stamp's round trip exceeded it, s.
    pub last_point_error_s: f64,
    /// The estimated period, s a count.
    pub period_s: f64,
    /// Bound on its relative error.
    pub period_error: f64,
    /// The last correction of the clock, s.
    pub last_offset_s: f64,
    /// Level shifts of the smallest round trip seen, up and down.
    pub shifts_up: u64,
    /// See `shifts_up`.
    pub shifts_down: u64,
}

/// Spectral densities of the rate's random walk that the filters of the bank assume, 1/s.
const WANDERS: [f64; 8] = [1e-20, 1e-19, 1e-18, 1e-17, 1e-16, 1e-14, 1e-11, 1e-8];
/// Noises of a reading that they assume, s: a good counter, a coarse one or a WAN, an emulated one.
const NOISES: [f64; 3] = [0.3e-6, 3e-6, 30e-6];
/// The evidence for each filter rests on about so many stamps.
const EVIDENCE_STAMPS: f64 = 100.0;
/// A filter whose evidence lags by more than this (natural logarithm) starts anew from the best.
const HOPELESS: f64 = 300.0;
/// Spectral density of the phase's random walk, s²/s: white noise of the oscillator's frequency.
const PHASE_WANDER: f64 = 1e-20;
/// Standard deviations in a bound.
const SIGMAS: f64 = 5.0;
/// Stamps that agree before the clock counts as synchronised.
const WARMUP_STAMPS: u64 = 3;
/// …once so many stamps have taught what is likely.
const POOR_AFTER: u64 = 50;
/// A stamp is left out if a round trip as long is less likely than this (natural logarithm).
const POOR_LOG_PROBABILITY: f64 = -3.0;
/// A level shift upward shows in the last so many stamps…
const SHIFT_STAMPS: [usize; 5] = [8, 16, 32, 64, 128];
/// …over at least so many seconds…
const SHIFT_SECS: f64 = 100.0;
/// …that would be so unlikely (natural logarithm) without one.
const SHIFT_LOG_PROBABILITY: f64 = -25.0;
/// How far an oscillator's rate may leave the range seen of it so far, relative, once and for all…
const RATE_ALLOWANCE: f64 = 0.1e-6;
/// …and while it has been seen for less than `RATE_SEEN_SECS`.
const RATE_ALLOWANCE_EARLY: f64 = 2e-6;
const RATE_SEEN_SECS: f64 = 3.0 * 3600.0;
/// The range seen of the rate is forgotten within about so many seconds.
const RATE_MEMORY_SECS: f64 = 10.0 * 86400.0;
/// A server is believed against the clock after a day at the latest.
const DISTRUST_SECS: f64 = 86400.0;
/// Polls without a stamp before the clock is free-running, as in NTP's reach register.
const VALID_POLLS: f64 = 8.0;
const POLL_RANGE_SECS: (f64, f64) = (8.0, 1024.0);

/// The RADclock of one server.
#[derive(Clone, Debug)]
pub struct Synchroniser {
    params: SyncParams,
    report: SyncReport,
    state: Option<State>,
}

impl Synchroniser {
    /// A clock that knows nothing yet.
    pub fn new(params: SyncParams) -> Result<Synchroniser, ParamError> {
        let check = |name, value, low: f64, high: f64, range| {
            if (low..=high).contains(&value) { Ok(()) } else { Err(ParamError { name, value, range }) }
        };
        check("nominal_period", params.nominal_period, 2e-11, 5e-8, "from 2e-11 to 5e-8 s a count")?;
        check("nominal_skew", params.nominal_skew, 1e-6, 0.01, "from 1e-6 to 0.01")?;
        Ok(Synchroniser { params, report: SyncReport::default(), state: None })
    }

    /// Takes one stamp; stamps come in the order of their counter values.
    pub fn process(&mut self, stamp: &Stamp) -> Verdict {
        let verdict = self.judge(stamp);
        match verdict {
            Verdict::Accepted => self.report.accepted += 1,
            Verdict::Invalid => self.report.invalid += 1,
            Verdict::Insane => self.report.insane += 1,
        }
        verdict
    }

    fn judge(&mut self, stamp: &Stamp) -> Verdict {
        let period = self.state.as_ref().map_or(self.params.nominal_period, |state| state.period);
        let rtt = stamp.tf.since(stamp.ta) as f64 * period;
        let held = stamp.te.since(stamp.tb).as_secs_f64();
        if stamp.tf.since(stamp.ta) <= 0 || held < 0.0 || rtt - held <= 0.0 {
            return Verdict::Invalid;
        }
        match &mut self.state {
            None => {
                self.state = Some(State::new(&self.params, stamp, rtt - held));
                Verdict::Accepted
            }
            Some(state) => {
                if stamp.ta.since(state.last_ta) <= 0 || stamp.tf.since(state.tf) <= 0 {
                    return Verdict::Invalid;
                }
                let verdict = state.take(&self.params, stamp, &mut self.report);
                if verdict == Verdict::Insane && state.distrusted() {
                    self.state = None;
                }
                verdict
            }
        }
    }

    /// The parameters to publish, once there are any.
    pub fn clock(&self) -> Option<Clock> {
        self.state.as_ref().and_then(|state| state.clock)
    }

    /// The state of the clock at a counter reading.
    pub fn status(&self, now: Counter) -> Status {
        match self.clock() {
            None => Status::Initializing,
            Some(clock) => {
                let age = clock.period.span(now.since(clock.counter)).abs();
                if age.ceil_nanos().unsigned_abs() > self.valid_nanos() {
                    Status::Freerunning
                } else {
                    Status::Synchronized
                }
            }
        }
    }

    /// How long after its reference instant the clock counts as synchronised, ns.
    pub fn valid_nanos(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| (state.poll * VALID_POLLS * 1e9) as u64)
    }

    /// What the algorithm says of itself.
    pub fn report(&self) -> &SyncReport {
        &self.report
    }
}

/// Everything learnt since the first stamp.
#[derive(Clone, Debug)]
struct State {
    /// The clock in use, without a bound: what the filters' errors are relative to.
    base: Clock,
    /// Its period, s a count.
    period: f64,
    bank: Vec<Member>,
    clock: Option<Clock>,
    last_ta: Counter,
    /// When the last stamp was accepted.
    tf: Counter,
    /// Seconds of accepted stamps, and of insane ones since.
    confirmed: f64,
    contradicted: f64,
    contradictions: u32,
    stamps: u64,
    poll: f64,
    rates: Option<RateRange>,
    rate_bound: f64,
    recent: VecDeque<Recent>,
}

/// A filter and the logarithm of the evidence for it.
#[derive(Clone, Debug)]
struct Member {
    filter: Filter,
    evidence: f64,
}

/// The rates seen, relative to the nominal one.
#[derive(Clone, Copy, Debug)]
struct RateRange {
    low: f64,
    high: f64,
    seen: f64,
}

/// A recent stamp, as far as level shifts upward are concerned.
#[derive(Clone, Copy, Debug)]
struct Recent {
    secs: f64,
    excess: [f64; 2],
}

fn bank_of(filter: impl Fn(Assumed) -> Filter) -> Vec<Member> {
    let grid = WANDERS.iter().flat_map(|&wander| NOISES.map(|noise| Assumed { wander, noise }));
    grid.map(|assumed| Member { filter: filter(assumed), evidence: 0.0 }).collect()
}

impl State {
    fn new(params: &SyncParams, stamp: &Stamp, rtt: f64) -> State {
        let period = Period::from_secs_f64(params.nominal_period).unwrap_or(Period { frac: 1, shift: 0 });
        // The middle of the exchange is the same instant for both sides, give or take half the round trip.
        let middle = Span::from_frac(stamp.te.since(stamp.tb).as_frac() / 2);
        let base = Clock {
            counter: stamp.ta.offset(stamp.tf.since(stamp.ta) / 2),
            time: stamp.tb.saturating_add(middle),
            period,
            period_max_error: 0,
            max_error_nanos: 0,
        };
        State {
            base,
            period: params.nominal_period,
            bank: bank_of(|assumed| Filter::new(assumed, rtt, params.nominal_skew)),
            clock: None,
            last_ta: stamp.ta,
            tf: base.counter,
            confirmed: 0.0,
            contradicted: 0.0,
            contradictions: 0,
            stamps: 1,
            poll: POLL_RANGE_SECS.0,
            rates: None,
            rate_bound: params.nominal_skew,
            recent: VecDeque::new(),
        }
    }

    fn secs(&self, counts: i64) -> f64 {
        counts as f64 * self.period
    }

    fn take(&mut self, params: &SyncParams, stamp: &Stamp, report: &mut SyncReport) -> Verdict {
        let since = self.secs(stamp.ta.since(self.tf));
        let flight = self.secs(stamp.tf.since(stamp.ta));
        let measured = [
            stamp.tb.since(self.base.time_at(stamp.ta)).as_secs_f64(),
            self.base.time_at(stamp.tf).since(stamp.te).as_secs_f64(),
        ];
        let host = stamp.host_error.as_secs_f64();
        let noise = host * host / 3.0;

        let mut bank = self.bank.clone();
        for member in &mut bank {
            member.filter.predict(since, PHASE_WANDER);
        }
        let mut excess = [Normal { mean: 0.0, variance: 0.0 }; 2];
        for direction in Direction::BOTH {
            excess[direction as usize] =
                combine(&bank, |filter| filter.excess(direction, measured[direction as usize], noise));
        }
        // Sanity: what is too early in one direction is either a shorter path, and then the round trip fell as well, or
        // the server's clock against ours.
        let allowance = self.rate_bound * since.abs() + host + 2e-6;
        let slack = |normal: Normal| SIGMAS * normal.variance.sqrt() + allowance;
        let early: Vec<Direction> = Direction::BOTH
            .into_iter()
            .filter(|&direction| excess[direction as usize].mean < -slack(excess[direction as usize]))
            .collect();
        if self.stamps >= WARMUP_STAMPS && !early.is_empty() {
            let sum = excess[0].mean + excess[1].mean;
            let round = combine(&bank, Filter::round_trip);
            let shifted = sum < -(SIGMAS * round.variance.sqrt() + host + 2e-6);
            let possible = early.iter().all(|&direction| {
                let smallest = combine(&bank, |filter| filter.smallest(direction));
                smallest.mean + excess[direction as usize].mean > 0.0
            });
            if !shifted || !possible {
                self.last_ta = stamp.ta;
                self.contradictions += 1;
                self.contradicted = since;
                return Verdict::Insane;
            }
            report.shifts_down += 1;
            for direction in early {
                let fall = excess[direction as usize].mean;
                for member in &mut bank {
                    member.filter.shift(direction, fall, -fall / 2.0);
                }
            }
        }
        self.bank = bank;

        let poor = self.stamps > POOR_AFTER && self.log_tail(excess[0].mean + excess[1].mean) < POOR_LOG_PROBABILITY;
        for member in &mut self.bank {
            if poor {
                member.filter.learn_only(excess);
                member.filter.predict(flight, PHASE_WANDER);
                continue;
            }
            let mut log = member.filter.update(Direction::Forward, measured[0], noise);
            member.filter.predict(flight, PHASE_WANDER);
            log += member.filter.update(Direction::Backward, measured[1], noise);
            member.evidence = member.evidence * (1.0 - 1.0 / EVIDENCE_STAMPS) + log;
        }
        self.restart_hopeless();
        self.look_for_rise(excess, since.abs(), report);

        let theta = combine(&self.bank, Filter::theta);
        let rate = combine(&self.bank, Filter::rate);
        self.correct(stamp, theta.mean, rate.mean);
        for member in &mut self.bank {
            member.filter.rebase(theta.mean, rate.mean);
        }

        self.stamps += 1;
        self.confirmed += since.abs();
        self.contradicted = 0.0;
        self.contradictions = 0;
        self.poll = since.abs().clamp(POLL_RANGE_SECS.0, POLL_RANGE_SECS.1);
        self.bound_rate(params, rate, since.abs());
        let round_trip = combine(&self.bank, Filter::round_trip);
        report.min_rtt_s = round_trip.mean;
        report.last_point_error_s = measured[0] + measured[1] - report.min_rtt_s;
        report.last_offset_s = theta.mean;
        report.period_s = self.period;
        report.period_error = self.rate_bound;
        self.publish(stamp, theta, round_trip);
        Verdict::Accepted
    }

    fn restart_hopeless(&mut self) {
        let best = self.bank.iter().max_by(|a, b| a.evidence.total_cmp(&b.evidence)).cloned();
        let Some(best) = best else { return };
        for member in &mut self.bank {
            if member.evidence < best.evidence - HOPELESS {
                member.filter = best.filter.assuming(member.filter.assumed());
                member.evidence = best.evidence - HOPELESS;
            }
        }
    }

    /// Logarithm of the probability of a round trip so far above its smallest, or farther: one direction's doing.
    fn log_tail(&self, excess: f64) -> f64 {
        let probability = combine(&self.bank, |filter| Normal {
            mean: Direction::BOTH.iter().map(|&direction| filter.delay(direction).tail(excess)).sum(),
            variance: 0.0,
        });
        probability.mean.min(1.0).ln()
    }

    fn look_for_rise(&mut self, excess: [Normal; 2], secs: f64, report: &mut SyncReport) {
        if self.recent.len() == SHIFT_STAMPS[SHIFT_STAMPS.len() - 1] {
            self.recent.pop_back();
        }
        self.recent.push_front(Recent { secs, excess: excess.map(|normal| normal.mean) });
        let mut span = 0.0;
        let mut lowest = f64::INFINITY;
        let mut each = [f64::INFINITY; 2];
        for (index, recent) in self.recent.iter().enumerate() {
            let count = index + 1;
            span += recent.secs;
            lowest = lowest.min(recent.excess[0] + recent.excess[1]);
            for (lowest, excess) in each.iter_mut().zip(recent.excess) {
                *lowest = lowest.min(excess);
            }
            if !SHIFT_STAMPS.contains(&count) || span < SHIFT_SECS || lowest < 0.0 {
                continue;
            }
            if count as f64 * self.log_tail(lowest) < SHIFT_LOG_PROBABILITY {
                report.shifts_up += 1;
                for direction in Direction::BOTH {
                    let rise = each[direction as usize].max(0.0);
                    for member in &mut self.bank {
                        member.filter.shift(direction, rise, rise / 2.0);
                    }
                }
                self.recent.clear();
                return;
            }
        }
    }

    /// Moves the clock to the stamp's end, with the correction found.
    fn correct(&mut self, stamp: &Stamp, theta: f64, rate: f64) {
        let time = self.base.time_at(stamp.tf).saturating_add(Span::from_secs_f64(theta));
        let period = self.period * (1.0 + rate);
        if let Some(exact) = Period::from_secs_f64(period) {
            self.period = period;
            self.base.period = exact;
        }
        self.base.counter = stamp.tf;
        self.base.time = time;
        self.tf = stamp.tf;
        self.last_ta = stamp.ta;
    }

    fn bound_rate(&mut self, params: &SyncParams, rate: Normal, secs: f64) {
        let wander = combine(&self.bank, |filter| Normal { mean: filter.assumed().wander, variance: 0.0 }).mean;
        let sigma = (rate.variance + wander * VALID_POLLS * self.poll / 3.0).sqrt();
        let now = self.period / params.nominal_period - 1.0;
        let mut bound = SIGMAS * sigma;
        let mut allowance = RATE_ALLOWANCE_EARLY;
        if bound < RATE_ALLOWANCE_EARLY || self.rates.is_some() {
            let range = self.rates.get_or_insert(RateRange { low: now, high: now, seen: 0.0 });
            let leak = (secs / RATE_MEMORY_SECS).min(1.0);
            range.low = now.min(range.low + leak * (now - range.low));
            range.high = now.max(range.high + leak * (now - range.high));
            range.seen += secs;
            allowance = RATE_ALLOWANCE + RATE_ALLOWANCE_EARLY * (RATE_SEEN_SECS / range.seen).min(1.0);
            bound += (range.high - now).max(now - range.low);
        }
        self.rate_bound = (bound + allowance).min(params.nominal_skew);
    }

    fn publish(&mut self, stamp: &Stamp, theta: Normal, round_trip: Normal) {
        if self.stamps < WARMUP_STAMPS {
            return;
        }
        let paths = Direction::BOTH.map(|direction| combine(&self.bank, |filter| filter.smallest(direction)).mean);
        let noise = combine(&self.bank, |filter| Normal { mean: filter.assumed().noise, variance: 0.0 }).mean;
        let server = stamp.root_delay.as_secs_f64() / 2.0 + stamp.root_dispersion.as_secs_f64();
        let bound = paths[0].max(paths[1])
            + SIGMAS * (round_trip.variance.sqrt() / 2.0 + theta.variance.sqrt() + noise)
            + stamp.host_error.as_secs_f64()
            + server;
        let scale = 2f64.powi(64 + i32::from(self.base.period.shift));
        self.clock = Some(Clock {
            max_error_nanos: (bound * 1e9).ceil() as u64,
            period_max_error: (self.rate_bound * self.period * scale).ceil() as u64,
            ..self.base
        });
    }

    /// Whether the server has contradicted the clock for as long as it had confirmed it, or for a day.
    fn distrusted(&self) -> bool {
        self.contradictions >= 8 && self.contradicted > self.confirmed.min(DISTRUST_SECS)
    }
}

/// Mean and variance over the bank, each filter with the evidence for it.
fn combine(bank: &[Member], of: impl Fn(&Filter) -> Normal) -> Normal {
    let top = bank.iter().map(|member| member.evidence).fold(f64::NEG_INFINITY, f64::max);
    let mut total = 0.0;
    let mut mean = 0.0;
    let mut square = 0.0;
    for member in bank {
        let weight = (member.evidence - top).exp();
        let Normal { mean: m, variance: v } = of(&member.filter);
        total += weight;
        mean += weight * m;
        square += weight * (v + m * m);
    }
    mean /= total;
    Normal { mean, variance: (square / total - mean * mean).max(0.0) }
}
