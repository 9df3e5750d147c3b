//! The synchronisation algorithm: stamps in, parameters with error bounds out. A pure state machine: no clock, no
//! socket, no thread and no log inside. `docs/algorithm.md` explains the model.

mod bank;
mod cycle;
mod delay;
mod dispute;
mod enclosure;
mod filter;
mod former;
mod rate;
mod resolution;
mod rise;

use crate::clock::{Clock, Period, Status};
use crate::stamp::Stamp;
use crate::time::{Counter, Span};
use bank::Bank;
use cycle::Finder;
use dispute::{Cause, Dispute, Shown};
use enclosure::Enclosure;
use filter::{Direction, Normal};
use former::Former;
use rate::RateBound;
use resolution::Resolution;
use rise::Watch;

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
    /// How often the clock was given up and learnt anew because the server had contradicted it for too long.
    pub restarts: u64,
}

/// Standard deviations in the bound on the time, where they count twice…
const TIME_SIGMAS: f64 = 2.3;
/// …on the rate, which has to hold for longer, and in what is no contradiction.
const RATE_SIGMAS: f64 = 4.0;
const SANE_SIGMAS: f64 = 4.0;
/// A packet that came earlier than it can shows how wrong a reading was. The bound is at least so many times the worst
/// of these, and up to twice that while few stamps were seen…
const SURPRISE_MARGIN: f64 = 2.0;
/// …which is forgotten by so much a stamp, relative, and within no less than so many seconds.
const SURPRISE_DECAY: f64 = 0.005;
const SURPRISE_SECS: f64 = 3000.0;
/// What small changes of a path that are no level shift may do to the clock, relative.
const UNSEEN_DRIFT: f64 = 0.3e-9;
/// So many stamps have told how noisy readings are, but for a quarter of the variance…
const NOISE_STAMPS: f64 = 400.0;
/// …and so many have told half of how far they surprise.
const SURPRISE_STAMPS: f64 = 50.0;
/// Stamps that agree before there is a clock.
const WARMUP_STAMPS: u64 = 3;
/// An oscillator's rate may jump by so much at once (relative), and the phase that follows is believed up to so many
/// seconds; anything more sudden is the server's.
const RATE_JUMP: f64 = 5e-6;
const RATE_JUMP_SECS: f64 = 300e-6;
/// After a silence it may have changed by this in all of it, relative, and that is believed as well, but doubted for an hour.
const CHANGED_RATE: f64 = 1e-6;
/// A round trip shorter, or a stamp earlier, by so little is no contradiction, s.
const TOLERANCE: f64 = 2e-6;
/// A server that goes on contradicting the clock is believed in the end: after so many stamps…
const DISTRUST_STAMPS: u32 = 8;
/// …and as long as it had confirmed the clock before, at most so many seconds.
const DISTRUST_SECS: f64 = 86400.0;
/// …and in this part of that time it is doubted already.
const DOUBTED_PART: f64 = 4.0;
/// A clock is young until it was confirmed for so many seconds without a contradiction. Before that it cannot tell a server
/// that lies from a counter that is set right now and then, as long as they contradict each other by less than so many
/// seconds: its bound covers both. And one that replaced a clock that was given up covers that one, too.
const YOUNG_SECS: f64 = 3600.0;
const SET_RIGHT_SECS: f64 = 50e-3;
/// Poll periods without a stamp after which the clock is free-running, as in NTP's reach register.
const VALID_POLLS: f64 = 8.0;
/// A poll period is taken as no shorter and no longer than this for it, s.
const POLL_SECS: (f64, f64) = (8.0, 1024.0);
/// The host's error is forgotten by so much a stamp, relative.
const HOST_DECAY: f64 = 0.05;

/// Whether corrections of the clock take each other back: then it follows the server's noise, and not an oscillator, whose
/// errors go on. Of white noise the correlation of each correction with the one before is −1/2.
#[derive(Clone, Copy, Debug, Default)]
struct Swing {
    last: f64,
    power: f64,
    product: f64,
    seen: f64,
}

impl Swing {
    const MEMORY_STAMPS: f64 = 64.0;
    const CORRELATION: f64 = -0.35;
    /// Smaller noise is left to the filters' evidence, s…
    const LEAST: f64 = 100e-6;
    /// …and all noise as long as no wild oscillator is believed in, 1/s.
    const WILD: f64 = 1e-11;

    /// Another correction, s. Its noise, s, if it is that.
    fn see(&mut self, correction: f64) -> Option<f64> {
        let keep = 1.0 - 1.0 / Self::MEMORY_STAMPS;
        self.power = keep * self.power + correction * correction;
        self.product = keep * self.product + correction * self.last;
        self.seen = keep * self.seen + 1.0;
        self.last = correction;
        let noise = (self.power / self.seen / 2.0).sqrt();
        let swings = self.seen > Self::MEMORY_STAMPS / 2.0 && self.product < Self::CORRELATION * self.power;
        (swings && noise > Self::LEAST).then(|| {
            *self = Swing::default();
            noise
        })
    }
}

/// The RADclock of one server.
#[derive(Clone, Debug)]
pub struct Synchroniser {
    params: SyncParams,
    report: SyncReport,
    state: Option<State>,
    /// What was given up before, as long as the clock is young.
    former: Option<Former>,
    /// `ta` and `tf` of the last sound stamp.
    last: Option<(Counter, Counter)>,
}

impl Synchroniser {
    /// A clock that knows nothing yet.
    pub fn new(params: SyncParams) -> Result<Synchroniser, ParamError> {
        let check = |name, value, low: f64, high: f64, range| {
            if (low..=high).contains(&value) { Ok(()) } else { Err(ParamError { name, value, range }) }
        };
        check("nominal_period", params.nominal_period, 2e-11, 5e-8, "from 2e-11 to 5e-8 s a count")?;
        check("nominal_skew", params.nominal_skew, 1e-6, 0.01, "from 1e-6 to 0.01")?;
        Ok(Synchroniser { params, report: SyncReport::default(), state: None, former: None, last: None })
    }

    /// Takes one stamp; stamps come in the order of their counter values.
    pub fn process(&mut self, stamp: &Stamp) -> Verdict {
        let verdict = if self.is_sound(stamp) {
            self.last = Some((stamp.ta, stamp.tf));
            self.take(stamp)
        } else {
            Verdict::Invalid
        };
        match verdict {
            Verdict::Accepted => self.report.accepted += 1,
            Verdict::Invalid => self.report.invalid += 1,
            Verdict::Insane => self.report.insane += 1,
        }
        verdict
    }

    fn is_sound(&self, stamp: &Stamp) -> bool {
        let in_order = self.last.is_none_or(|(ta, tf)| stamp.ta.since(ta) > 0 && stamp.tf.since(tf) > 0);
        in_order && stamp.tf.since(stamp.ta) > 0 && stamp.te >= stamp.tb && self.network_delay(stamp) > 0.0
    }

    /// How long the stamp's packets were on their way, s.
    fn network_delay(&self, stamp: &Stamp) -> f64 {
        let period = self.state.as_ref().map_or(self.params.nominal_period, |state| state.period);
        stamp.tf.since(stamp.ta) as f64 * period - stamp.te.since(stamp.tb).as_secs_f64()
    }

    fn take(&mut self, stamp: &Stamp) -> Verdict {
        let rtt = self.network_delay(stamp);
        let Some(state) = &mut self.state else {
            self.state = State::new(&self.params, stamp, rtt);
            return Verdict::Accepted;
        };
        let verdict = state.take(&self.params, stamp, &mut self.report);
        if !state.is_young() {
            self.former = None;
        }
        if verdict == Verdict::Insane {
            if state.stamps < WARMUP_STAMPS {
                // Two stamps that contradict each other: either may be right, and the newer one is at hand.
                self.state = State::new(&self.params, stamp, rtt);
            } else if state.is_refuted() {
                self.former = state.clock.map(|clock| Former::new(clock, self.former, stamp.tf)).or(self.former);
                // Whatever was the reason, it may come again.
                let surprise = state.surprise;
                self.state = State::new(&self.params, stamp, rtt).map(|state| State { surprise, ..state });
                self.report.restarts += 1;
            }
        }
        verdict
    }

    /// The parameters to publish, once there are any.
    pub fn clock(&self) -> Option<Clock> {
        let clock = self.claim()?;
        Some(self.former.map_or(clock, |former| former.covered_by(clock)))
    }

    /// The same at a counter reading: its bound grows faster once it is free-running.
    pub fn clock_at(&self, now: Counter) -> Option<Clock> {
        let clock = self.clock()?;
        let is_free = self.status(now) == Status::Freerunning;
        Some(if is_free { clock.free_running(self.valid_nanos(), now) } else { clock })
    }

    /// What the server says now: the clock without the doubt that another was given up for it less than an hour ago.
    pub fn claim(&self) -> Option<Clock> {
        self.state.as_ref().and_then(|state| state.clock)
    }

    /// The state of the clock at a counter reading.
    pub fn status(&self, now: Counter) -> Status {
        let Some(clock) = self.clock() else { return Status::Initializing };
        let age = clock.period.span(now.since(clock.counter)).abs();
        if age.ceil_nanos().unsigned_abs() > self.valid_nanos() { Status::Freerunning } else { Status::Synchronized }
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

/// What a server's time may be wrong by, by its own account and as coarse as it is seen to be, s.
fn server_error(stamp: &Stamp, resolution: Resolution) -> f64 {
    stamp.root_delay.as_secs_f64().abs() / 2.0 + stamp.root_dispersion.as_secs_f64().abs().max(resolution.secs())
}

/// Everything learnt since the first stamp.
#[derive(Clone, Debug)]
struct State {
    /// The clock that the filters' errors are relative to; its bounds are not used.
    base: Clock,
    /// Its period, s a count.
    period: f64,
    bank: Bank,
    /// Where in time the filters stand.
    at: Counter,
    watch: Watch,
    finder: Finder,
    rate_bound: RateBound,
    enclosure: Enclosure,
    resolution: Resolution,
    /// Bound on the error of recent counter readings by the host, s.
    host_error: f64,
    /// How much too early a recent packet came by this clock, s, beyond what the rate's error explains.
    surprise: f64,
    /// By how much all recent round trips were too long, s: so far the clock may have gone between two delays unseen.
    slack: f64,
    clock: Option<Clock>,
    /// Stamps accepted.
    stamps: u64,
    /// Seconds over which stamps were accepted.
    confirmed: f64,
    /// Seconds without a contradiction until the clock is no longer young.
    youth: f64,
    /// Seconds since the last accepted stamp, and stamps refused since.
    silence: f64,
    refused: u32,
    dispute: Dispute,
    swing: Swing,
    /// The smallest round trip of any stamp, s.
    shortest: f64,
    /// The poll period, s.
    poll: f64,
}

impl State {
    fn new(params: &SyncParams, stamp: &Stamp, rtt: f64) -> Option<State> {
        // The middle of the exchange is the same instant for both sides, give or take half the round trip.
        let held = stamp.te.since(stamp.tb).as_frac() / 2;
        let base = Clock {
            counter: stamp.ta.offset(stamp.tf.since(stamp.ta) / 2),
            time: stamp.tb.saturating_add(Span::from_frac(held)),
            period: Period::from_secs_f64(params.nominal_period)?,
            period_max_error: 0,
            max_error_nanos: 0,
        };
        let resolution = Resolution::of(stamp);
        let error = stamp.host_error.as_secs_f64().abs() + server_error(stamp, resolution);
        Some(State {
            base,
            period: params.nominal_period,
            bank: Bank::new(rtt, params.nominal_skew),
            at: base.counter,
            watch: Watch::default(),
            finder: Finder::new(),
            rate_bound: RateBound::new(params.nominal_skew),
            enclosure: Enclosure::of([rtt / 2.0; 2], error),
            resolution,
            host_error: stamp.host_error.as_secs_f64(),
            surprise: 0.0,
            slack: 0.0,
            clock: None,
            stamps: 1,
            confirmed: 0.0,
            youth: YOUNG_SECS,
            silence: 0.0,
            refused: 0,
            dispute: Dispute::default(),
            swing: Swing::default(),
            shortest: rtt,
            poll: POLL_SECS.0,
        })
    }

    fn take(&mut self, params: &SyncParams, stamp: &Stamp, report: &mut SyncReport) -> Verdict {
        // Both measurements count as made at the end: what the rate's error makes of a flight is nanoseconds.
        let since = stamp.tf.since(self.at) as f64 * self.period;
        self.bank.predict(since);
        self.at = stamp.tf;
        self.silence += since;

        let host = stamp.host_error.as_secs_f64().abs();
        self.host_error = host.max(self.host_error * (1.0 - HOST_DECAY));
        // Anywhere within its bound is as likely as anywhere else.
        let noise = host * host / 3.0;
        let measured = [
            stamp.tb.since(self.base.time_at(stamp.ta)).as_secs_f64(),
            self.base.time_at(stamp.tf).since(stamp.te).as_secs_f64(),
        ];
        if !self.is_sane(measured, noise, since, report) {
            self.refused += 1;
            self.doubt(measured, noise, since);
            return Verdict::Insane;
        }
        self.dispute.settle();
        self.shortest = self.shortest.min(measured[0] + measured[1]);

        let predicted =
            Direction::BOTH.map(|direction| self.bank.excess(direction, measured[direction as usize], noise));
        let excess = predicted.map(|excess| excess.mean);
        // Where congestion hides the edge of the delays, the smallest ones may be taken for longer than they are.
        let hidden = (-self.watch.slack()).max(0.0) / 2.0;
        // At first the model itself is what is wrong, and says so.
        let vague = TIME_SIGMAS * self.untold(SURPRISE_STAMPS);
        let blur = self.bank.noise().powi(2);
        let early = predicted.map(|excess| -excess.mean - vague * (excess.variance - blur).max(0.0).sqrt());
        let early = early[0].max(early[1]) - hidden - self.rate_bound.get() * self.silence.abs();
        let forgotten = SURPRISE_DECAY.min(self.silence.abs() / SURPRISE_SECS);
        self.surprise = early.max(self.surprise * (1.0 - forgotten));
        let poor = self.watch.is_poor(&self.bank, excess);
        if !poor {
            self.watch.learn_poor(&mut self.bank);
            self.bank.update(measured, noise);
        }
        if let Some(rise) = self.watch.look(&self.bank, self.silence, excess, poor) {
            report.shifts_up += 1;
            self.bank.shift(rise.moved, rise.sigma);
            self.enclosure.widen(self.spread());
        }
        let silence = self.silence.abs();
        let free = silence > self.poll * VALID_POLLS;
        self.enclosure.widen(silence * if free { self.rate_bound.get() } else { UNSEEN_DRIFT });
        let slack = (self.watch.slack() - 2.0 * self.spread()).max(0.0);
        self.enclosure.widen((slack - self.slack).max(0.0));
        self.slack = slack;
        self.resolution.see(stamp);
        self.enclosure.refine(Enclosure::of(measured, self.spread() + self.stamps_error(stamp)));

        self.stamps += 1;
        self.confirmed += self.silence;
        self.youth -= self.silence.min(POLL_SECS.1);
        self.refused = 0;
        self.poll = self.silence.clamp(POLL_SECS.0, POLL_SECS.1);
        report.last_offset_s = self.correct(stamp);
        if let Some(noise) = self.swing.see(report.last_offset_s).filter(|_| self.bank.wander() > Swing::WILD) {
            self.bank.expect_noise(noise);
        }
        let plain = self.bank.rate_without_cycle();
        let rate = Normal { mean: self.period / params.nominal_period - 1.0 + plain.mean, variance: plain.variance };
        if let Some(pace) = self.finder.see(rate, self.silence) {
            self.bank.set_pace(pace);
        }
        self.bound_rate(params);
        self.silence = 0.0;
        self.publish(stamp);

        report.min_rtt_s = self.bank.round_trip().mean;
        report.last_point_error_s = measured[0] + measured[1] - report.min_rtt_s;
        report.period_s = self.period;
        report.period_error = self.rate_bound.get();
        Verdict::Accepted
    }

    /// Whether the stamp may be followed.
    ///
    /// A packet that came earlier than it can either took a shorter path, and then the round trip fell by as much: a level
    /// shift downward, made known to the filters here. Or the server's clock and this one contradict each other, and then it is
    /// the server's, unless several stamps together tell otherwise.
    fn is_sane(&mut self, measured: [f64; 2], noise: f64, since: f64, report: &mut SyncReport) -> bool {
        let elapsed = self.silence.abs();
        let tolerance = self.host_error + TOLERANCE + self.resolution.secs();
        let excess = Direction::BOTH.map(|direction| self.bank.excess(direction, measured[direction as usize], noise));
        let sigmas = SANE_SIGMAS * excess[0].sigma().max(excess[1].sigma());
        self.dispute.tick();
        let usual = self.rate_bound.get() * elapsed + (RATE_JUMP * elapsed).min(RATE_JUMP_SECS) + self.dispute.noise();
        let is_early = |drift: f64| excess.map(|excess| excess.mean < -(sigmas + drift + tolerance));
        let early = is_early(usual);
        let shown = Shown { secs: elapsed, low: -excess[1].mean, high: excess[0].mean };
        let blur = SANE_SIGMAS * self.bank.noise() + tolerance;
        let claimed = self.dispute.claimed(&shown, blur, self.rate_bound.get());
        let off = (-excess[0].mean).max(-excess[1].mean);
        if early == [false, false] && claimed.is_none() {
            if elapsed > VALID_POLLS * self.poll && off > blur && !self.is_young() {
                self.believe(off);
            }
            return true;
        }
        if claimed.is_some() && shown.allows_no_error(blur) {
            return !self.dispute.sets_aside();
        }
        if claimed.is_none() && self.has_fallen(excess, early, sigmas, tolerance) {
            report.shifts_down += 1;
            return true;
        }
        // A server that has stepped was not silent: it may go on stepping.
        let silent = if self.dispute.is_step() { since.abs() } else { elapsed };
        if claimed.is_none() && is_early(usual.max(CHANGED_RATE * silent)) == [false, false] {
            self.leap(off, off / elapsed);
            return true;
        }
        match self.dispute.refuse(shown, claimed, since, blur, sigmas + usual + tolerance) {
            Cause::Unknown => false,
            Cause::Drift(rate) => {
                self.leap(off, rate);
                true
            }
            Cause::Noise(noise) => {
                self.bank.expect_noise(noise);
                self.surprise = self.surprise.max(noise);
                true
            }
        }
    }

    /// Whether a packet came early because its path has become shorter. That explains no more than the round trip fell by.
    fn has_fallen(&mut self, excess: [Normal; 2], early: [bool; 2], sigmas: f64, tolerance: f64) -> bool {
        let fell = -(excess[0].mean + excess[1].mean);
        let slack = SANE_SIGMAS * self.bank.round_trip().sigma() + 2.0 * tolerance;
        let mut moved = [0.0; 2];
        let mut sigma = [0.0; 2];
        for direction in Direction::BOTH {
            let d = direction as usize;
            if early[d] {
                let is_explained = fell > slack && -excess[d].mean <= fell + sigmas + tolerance;
                if !is_explained || self.bank.smallest(direction) + excess[d].mean <= 0.0 {
                    return false;
                }
                // The stamp's own delay above the new smallest is as long as they mostly are.
                let above = self.bank.median(direction).min(-excess[d].mean);
                moved[d] = excess[d].mean - above;
                sigma[d] = 2.0 * above;
            }
        }
        self.bank.shift(moved, sigma);
        self.enclosure.widen(self.spread());
        true
    }

    /// The clock was off by so much (s), since its rate has changed by so much.
    fn leap(&mut self, off: f64, rate: f64) {
        self.bank.loosen(off, rate);
        self.believe(off);
    }

    /// The clock is off by so much (s), says the server, and is believed. But what it said before may have been right: the bound
    /// covers that, too, and the clock is young again.
    fn believe(&mut self, off: f64) {
        self.enclosure.widen(off.abs());
        self.surprise = self.surprise.max(off.abs() / SURPRISE_MARGIN);
        self.youth = YOUNG_SECS;
        self.confirmed = 0.0;
    }

    /// A stamp that is refused makes the bound cover what the server says, as long as nobody knows who is right: while the clock
    /// is young, now and for some time; if an oscillator can have gone so far; and once the server has contradicted the clock for
    /// a while, measured by how long it had confirmed it.
    fn doubt(&mut self, measured: [f64; 2], noise: f64, since: f64) {
        let excess =
            Direction::BOTH.map(|direction| self.bank.excess(direction, measured[direction as usize], noise).mean);
        let (early, late) = (-excess[0].min(excess[1]), excess[0].max(excess[1]));
        let mut off = self.dispute.doubt();
        if off > 0.0 {
            off += RATE_JUMP * since.abs();
        }
        if self.is_young() && early <= SET_RIGHT_SECS {
            self.youth = YOUNG_SECS;
            self.surprise = self.surprise.max(early);
            off = off.max(late.max(early));
        }
        if self.silence * DOUBTED_PART > self.confirmed.min(DISTRUST_SECS) {
            off = off.max(late.max(early));
        }
        let told = if off > 0.0 { ((off + self.spread()) * 1e9).ceil() as u64 } else { 0 };
        if let Some(clock) = &mut self.clock {
            clock.max_error_nanos = clock.max_error_nanos.max(told);
        }
    }

    /// Moves the clock to the stamp's end with the correction found, which it returns (s).
    fn correct(&mut self, stamp: &Stamp) -> f64 {
        let (theta, rate) = (self.bank.theta().mean, self.bank.rate().mean);
        self.base.time = self.base.time_at(stamp.tf).saturating_add(Span::from_secs_f64(theta));
        self.base.counter = stamp.tf;
        self.at = stamp.tf;
        let period = self.period * (1.0 + rate);
        if let Some(exact) = Period::from_secs_f64(period) {
            self.period = period;
            self.base.period = exact;
        }
        self.bank.rebase(theta, rate);
        self.enclosure.rebase(theta);
        theta
    }

    fn bound_rate(&mut self, params: &SyncParams) {
        // Until the next polls the rate goes on wandering.
        let ahead = self.bank.wander() * VALID_POLLS * self.poll / 3.0;
        let error = RATE_SIGMAS * (self.bank.rate().variance + ahead).sqrt();
        let rate = self.period / params.nominal_period - 1.0;
        self.rate_bound.see(rate, error, self.silence);
    }

    fn publish(&mut self, stamp: &Stamp) {
        if self.stamps < WARMUP_STAMPS {
            return;
        }
        // Unlike a rise that is not known, this ends with the next quick packet, and the enclosure holds again.
        let unseen = self.watch.unseen(self.rate_bound.get(), self.spread());
        // Half of the round trip is never seen, however well the stamps agree.
        let enclosed = self.enclosure.worst().max(self.shortest / 2.0);
        let bound = unseen + enclosed + self.spread() + self.stamps_error(stamp);
        let rate = self.base.period.units(self.rate_bound.get() * self.period);
        // Rust makes zero of not-a-number: the one bound that never may be claimed.
        self.clock = (bound + rate).is_finite().then_some(Clock {
            max_error_nanos: (bound * 1e9).ceil() as u64,
            period_max_error: rate.ceil() as u64,
            ..self.base
        });
    }

    /// What host and server may be wrong by in this stamp, s.
    fn stamps_error(&self, stamp: &Stamp) -> f64 {
        self.host_error + server_error(stamp, self.resolution)
    }

    /// How little the stamps so far have told of what half is told by so many, from 1 to 0.
    fn untold(&self, half: f64) -> f64 {
        half / (half + self.stamps as f64)
    }

    /// How far the clock may be from where it would be with perfect stamps, s.
    fn spread(&self) -> f64 {
        // How noisy readings are is known once there were some; until then it is as assumed.
        let variance = self.bank.theta().variance + (self.untold(NOISE_STAMPS) * self.bank.noise()).powi(2);
        let margin = SURPRISE_MARGIN * (1.0 + self.untold(SURPRISE_STAMPS));
        (TIME_SIGMAS * variance.sqrt()).max(margin * self.surprise)
    }

    fn is_young(&self) -> bool {
        self.youth >= 0.0
    }

    /// Whether the server has contradicted the clock for as long as it had confirmed it.
    fn is_refuted(&self) -> bool {
        self.refused >= DISTRUST_STAMPS && self.silence > self.confirmed.min(DISTRUST_SECS)
    }
}
