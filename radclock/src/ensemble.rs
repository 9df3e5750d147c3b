//! Several servers, one clock: which of them to believe, and what they say together. A pure state machine over one
//! [`Synchroniser`] a server; `docs/servers.md` explains it.
//!
//! Each server's own clock claims that the true time lies in an interval. Where a majority of the intervals overlap is
//! where the time is (Marzullo's intersection); who overlaps nowhere with it is a falseticker. The clock is a mean of the
//! others, weighted by their bounds and trimmed at both ends; its bound spans the whole intersection, so it
//! holds as long as a majority is truthful. Where each server's time usually is beside the clock is learnt, and the clock
//! stays near the median of what they say less that: so a server that begins to lie does not take it along, however
//! much better than the others it was. With one server the clock is that server's, unchanged; who has changed its mind
//! within its first hour is judged by what it says now, if there are others.

mod usual;

use self::usual::Usual;
use crate::clock::{Clock, Period, Status};
use crate::stamp::Stamp;
use crate::sync::{ParamError, SyncParams, SyncReport, Synchroniser, Verdict};
use crate::time::{Counter, Span, Timestamp};

/// The largest number of servers.
pub const MAX_SERVERS: usize = 8;

/// Share of the weight that is cut off at either end of the mean, and the largest share that one server may have: so a
/// server that is off alone is cut off entirely.
const TRIM: f64 = 0.4;
/// A server with so many times the weight of all others together (a bound a quarter of theirs) cannot be checked by
/// them any better than their majority does, and is not held to [`TRIM`].
const RULES: f64 = 16.0;
/// A server that never gave an answer worth taking is waited for during so many polls.
const MISSES: u32 = 4;
/// What a change of weights would move the clock by is held back, and let go by and by, in about so many seconds…
const HELD_BACK_SECS: f64 = 500.0;
/// …but the clock never is farther than this (s) from what the servers in the middle say.
const HELD_BACK_BEYOND: f64 = 5e-6;

/// What a server is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum Standing {
    /// It has not said enough for a clock of its own.
    Waiting,
    /// Its interval overlaps with the majority's.
    Truechimer,
    /// Its interval lies outside of the majority's: it is not followed.
    Falseticker,
    /// No good stamp for eight poll periods: it has no vote until it is heard again. What it said before still counts,
    /// less and less as its bound grows.
    Silent,
    /// There is no majority.
    Undecided,
}

impl core::fmt::Display for Standing {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(match self {
            Standing::Waiting => "waiting",
            Standing::Truechimer => "truechimer",
            Standing::Falseticker => "falseticker",
            Standing::Silent => "silent",
            Standing::Undecided => "undecided",
        })
    }
}

/// What is thought of a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Opinion {
    /// What it is held for.
    pub standing: Standing,
    /// Its share in the clock, 0 to 1; all shares add up to 1.
    pub weight: f64,
    /// Its own clock minus the common one, s, and the bound that it claims, s, as of the last update.
    pub offset: Option<(f64, f64)>,
}

const UNKNOWN: Opinion = Opinion { standing: Standing::Waiting, weight: 0.0, offset: None };

#[derive(Clone, Debug)]
struct Server {
    sync: Synchroniser,
    /// Polls without an answer, or with one that was not taken. Means nothing once it had a clock.
    missed: u32,
    had_clock: bool,
    usual: Usual,
    opinion: Opinion,
}

impl Server {
    /// It may still come with a clock that is as good as any.
    fn is_expected(&self) -> bool {
        !self.had_clock && self.missed < MISSES
    }

    fn miss(&mut self) {
        self.missed = self.missed.saturating_add(1);
    }
}

/// What a server's own clock says at an instant.
#[derive(Clone, Copy, Debug)]
struct View {
    server: usize,
    time: Timestamp,
    error: Span,
    /// Seconds a count, and the bound on its error.
    period: f64,
    period_error: f64,
    is_fresh: bool,
}

impl View {
    fn interval(&self) -> (Timestamp, Timestamp) {
        (self.time.saturating_sub(self.error), self.time.saturating_add(self.error))
    }
}

/// The servers of one counter and their common clock.
#[derive(Clone, Debug)]
pub struct Ensemble {
    servers: Vec<Server>,
    clock: Option<Clock>,
    valid_nanos: u64,
    /// A majority agrees, or nobody objects.
    is_agreed: bool,
    /// What the clock is off the servers' mean, s, since weights changed.
    held_back: f64,
    /// The last server with more weight than others can check ([`RULES`]): where they usually are is beside its time.
    ruler: Option<usize>,
}

impl Ensemble {
    /// So many servers, of which nothing is known yet.
    ///
    /// # Panics
    ///
    /// Without a server, or with more than [`MAX_SERVERS`].
    pub fn new(params: &SyncParams, servers: usize) -> Result<Ensemble, ParamError> {
        assert!((1..=MAX_SERVERS).contains(&servers), "{servers} servers");
        let sync = Synchroniser::new(params.clone())?;
        let server = Server { sync, missed: 0, had_clock: false, usual: Usual::default(), opinion: UNKNOWN };
        Ok(Ensemble {
            servers: vec![server; servers],
            clock: None,
            valid_nanos: 0,
            is_agreed: true,
            held_back: 0.0,
            ruler: None,
        })
    }

    /// Takes a server's stamp; each server's stamps come in the order of their counter values.
    pub fn process(&mut self, server: usize, stamp: &Stamp) -> Verdict {
        let server = &mut self.servers[server];
        let verdict = server.sync.process(stamp);
        if verdict != Verdict::Accepted {
            server.miss();
        }
        self.update(stamp.tf);
        verdict
    }

    /// A server did not answer a poll that ended at `now`, or nothing that could be made a stamp.
    pub fn missed(&mut self, server: usize, now: Counter) {
        let server = &mut self.servers[server];
        server.miss();
        if server.missed == MISSES {
            self.update(now);
        }
    }

    /// The parameters to publish, once there are any. Without a majority they stay what they were last.
    pub fn clock(&self) -> Option<Clock> {
        self.clock
    }

    /// What the servers say now. Of several, a majority does: [`Ensemble::clock`]. One that says so alone, after it has said
    /// otherwise, leaves the doubt that [`Synchroniser::claim`] tells of.
    pub fn claim(&self) -> Option<Clock> {
        match &self.servers[..] {
            [only] => only.sync.claim(),
            _ => self.clock,
        }
    }

    /// The state of the clock at a counter reading.
    pub fn status(&self, now: Counter) -> Status {
        let Some(clock) = self.clock else { return Status::Initializing };
        let age = clock.period.span(now.since(clock.counter)).abs();
        let is_valid = self.is_agreed && age.ceil_nanos().unsigned_abs() <= self.valid_nanos;
        if is_valid { Status::Synchronized } else { Status::Freerunning }
    }

    /// How long after its reference instant the clock counts as synchronised, ns.
    pub fn valid_nanos(&self) -> u64 {
        if self.is_agreed { self.valid_nanos } else { 0 }
    }

    /// Whether the servers contradict each other and none of their times has a majority.
    pub fn is_divided(&self) -> bool {
        !self.is_agreed
    }

    /// Whether [`Ensemble::update`] has something to do though no stamp came: part of a change is held back.
    pub fn is_moving(&self) -> bool {
        self.held_back.abs() > 1e-6
    }

    /// What is thought of a server.
    pub fn opinion(&self, server: usize) -> Opinion {
        self.servers[server].opinion
    }

    /// What a server's synchroniser says of itself.
    pub fn report(&self, server: usize) -> &SyncReport {
        self.servers[server].sync.report()
    }

    /// What a server's own clock says at a counter reading.
    pub fn time_by(&self, server: usize, counter: Counter) -> Option<(Timestamp, Span)> {
        self.servers[server].sync.clock_at(counter)?.reading_at(counter)
    }

    /// The server with the largest share in the clock.
    pub fn heaviest(&self) -> usize {
        let weight = |&server: &usize| self.servers[server].opinion.weight;
        (0..self.servers.len()).rev().max_by(|a, b| weight(a).total_cmp(&weight(b))).unwrap_or(0)
    }

    /// Puts together what the servers say at `now`. [`Ensemble::process`] does it after each stamp.
    pub fn update(&mut self, now: Counter) {
        for server in &mut self.servers {
            server.had_clock |= server.sync.clock().is_some();
        }
        if let [only] = &mut self.servers[..] {
            let is_silent = only.sync.status(now) == Status::Freerunning;
            let standing = match only.sync.clock() {
                None => Standing::Waiting,
                Some(_) if is_silent => Standing::Silent,
                Some(_) => Standing::Truechimer,
            };
            self.clock = only.sync.clock_at(now);
            self.valid_nanos = if is_silent { 0 } else { only.sync.valid_nanos() };
            let offset = self.clock.map(|clock| (0.0, clock.max_error_at(now).as_secs_f64()));
            only.opinion = Opinion { standing, weight: 1.0, offset };
            return;
        }
        let views = self.views(now);
        let fresh: Vec<View> = views.iter().copied().filter(|view| view.is_fresh).collect();
        if fresh.is_empty() {
            // Nobody says anything new: the clock goes on by itself.
            if self.status(now) == Status::Freerunning {
                self.run_free(now);
            }
            self.judge(&views, now, |_| Standing::Silent, None);
            return;
        }
        let majority = self.majority(now, &fresh);
        self.is_agreed = majority.is_some();
        match majority {
            Some((low, high, votes)) => self.combine(now, &views, (low, high), votes),
            None => {
                let expected = self.servers.iter().any(Server::is_expected);
                self.is_agreed = expected && self.clock.is_none();
                self.run_free(now);
                let standing = if self.is_agreed { Standing::Waiting } else { Standing::Undecided };
                self.judge(&views, now, |view| if view.is_fresh { standing } else { Standing::Silent }, None);
            }
        }
    }

    /// Nobody confirms the clock from now on, or since its validity ended.
    fn run_free(&mut self, now: Counter) {
        if self.valid_nanos > 0 {
            self.clock = self.clock.map(|clock| clock.free_running(self.valid_nanos, now));
            self.valid_nanos = 0;
        }
    }

    fn views(&self, now: Counter) -> Vec<View> {
        let view = |(server, Server { sync, .. }): (usize, &Server)| {
            let is_fresh = sync.status(now) == Status::Synchronized;
            let claim = sync.claim()?;
            let clock = if is_fresh { claim } else { claim.free_running(sync.valid_nanos(), now) };
            let (time, error) = clock.reading_at(now)?;
            Some(View {
                server,
                time,
                error,
                period: clock.period.as_secs_f64(),
                period_error: clock.period_error(),
                is_fresh,
            })
        };
        self.servers.iter().enumerate().filter_map(view).collect()
    }

    /// Where the time lies if a majority of those that can be heard tells the truth, and how many that is.
    fn majority(&self, now: Counter, fresh: &[View]) -> Option<(Timestamp, Timestamp, usize)> {
        let intervals: Vec<_> = fresh.iter().map(View::interval).collect();
        let expected = self.servers.iter().filter(|server| server.is_expected()).count();
        let votes = (fresh.len() + expected) / 2 + 1;
        let (low, high) = intersection(&intervals, votes)?;
        let own = self.clock.and_then(|clock| clock.reading_at(now));
        let contradicts =
            own.is_some_and(|(time, error)| high < time.saturating_sub(error) || low > time.saturating_add(error));
        if !contradicts {
            return Some((low, high, votes));
        }
        // The few that are left must not turn over what more of them agreed on before.
        let votes = votes.max(self.servers.len() / 2 + 1);
        intersection(&intervals, votes).map(|(low, high)| (low, high, votes))
    }

    fn combine(&mut self, now: Counter, views: &[View], (low, high): (Timestamp, Timestamp), votes: usize) {
        let believed: Vec<View> = views
            .iter()
            .copied()
            .filter(|view| {
                let (from, to) = view.interval();
                from <= high && to >= low
            })
            .collect();
        let width = high.since(low).as_secs_f64();
        let times: Vec<f64> = believed.iter().map(|view| view.time.since(low).as_secs_f64()).collect();
        let periods: Vec<f64> = believed.iter().map(|view| view.period).collect();
        let weights = shares(believed.iter().map(|view| view.error.as_secs_f64()), RULES);
        let rate_weights = shares(believed.iter().map(|view| view.period_error), RULES);

        let ruler =
            weights.iter().position(|&weight| weight > RULES / (1.0 + RULES)).map(|index| believed[index].server);
        if ruler.is_some() && ruler != self.ruler {
            self.ruler = ruler;
            self.servers.iter_mut().for_each(|server| server.usual = Usual::default());
        }

        let mean = trimmed_mean(&times, &weights).clamp(0.0, width);
        let elapsed = self.clock.map_or(0.0, |clock| clock.period.span(now.since(clock.counter)).as_secs_f64());
        self.held_back = match &self.clock {
            None => 0.0,
            Some(clock) => {
                // What these servers would have said with the weights of before, or if they are not the same ones,
                // what was said before.
                let before: Vec<f64> = believed.iter().map(|view| self.servers[view.server].opinion.weight).collect();
                let are_same =
                    before.iter().all(|&weight| weight > 0.0) && (before.iter().sum::<f64>() - 1.0).abs() < 1e-9;
                let unchanged = if are_same {
                    trimmed_mean(&times, &before)
                } else {
                    clock.time_at(now).since(low).as_secs_f64() - self.held_back
                };
                self.held_back * (-elapsed.max(0.0) / HELD_BACK_SECS).exp() + unchanged - mean
            }
        };
        let (least, most) = self.usual_range(views, low).unwrap_or_else(|| {
            let (least, most) = middle(&times);
            (least.min(mean) - HELD_BACK_BEYOND, most.max(mean) + HELD_BACK_BEYOND)
        });
        let time = (mean + self.held_back).clamp(least, most).clamp(0.0, width);
        self.held_back = time - mean;
        for view in believed.iter().filter(|view| view.is_fresh) {
            self.servers[view.server].usual.see(view.time.since(low).as_secs_f64() - time, elapsed);
        }

        let rates: Vec<_> = believed
            .iter()
            .filter(|view| view.is_fresh)
            .map(|view| (view.period - view.period_error, view.period + view.period_error))
            .collect();
        let (slowest, fastest) = intersection(&rates, votes).unwrap_or_else(|| {
            // Rates that no majority agrees on change right now.
            rates.iter().fold((f64::MAX, f64::MIN), |(low, high), rate| (low.min(rate.0), high.max(rate.1)))
        });
        let period = trimmed_mean(&periods, &rate_weights).clamp(slowest, fastest);
        let valid = believed.iter().filter(|view| view.is_fresh).map(|view| self.servers[view.server].left(now)).max();

        if let Some(exact) = Period::from_secs_f64(period) {
            let period_max_error = exact.units((fastest - period).max(period - slowest)).ceil();
            // No better than the best of them, and silent ones still vote for where the time may be: one of two that are left
            // may be the liar.
            let intervals: Vec<_> = views.iter().map(View::interval).collect();
            let (from, to) = intersection(&intervals, views.len() / 2 + 1).unwrap_or((low, high));
            let (from, to) = (from.min(low).since(low).as_secs_f64(), to.max(high).since(low).as_secs_f64());
            let best = believed.iter().map(|view| view.error.as_secs_f64()).fold(f64::INFINITY, f64::min);
            let max_error = (time - from).max(to - time).max(best) * 1e9;
            self.clock = Some(Clock {
                counter: now,
                time: low.saturating_add(Span::from_secs_f64(time)),
                period: exact,
                // One unit for the period's own rounding, and a nanosecond for that of the times.
                period_max_error: (period_max_error as u64).saturating_add(1),
                max_error_nanos: (max_error.ceil() as u64).saturating_add(1),
            });
            self.valid_nanos = valid.unwrap_or(0);
        }
        let standing = |view: &View| {
            let is_believed = believed.iter().any(|other| other.server == view.server);
            match (is_believed, view.is_fresh) {
                (_, false) => Standing::Silent,
                (true, true) => Standing::Truechimer,
                (false, true) => Standing::Falseticker,
            }
        };
        let shares: Vec<_> = believed.iter().map(|view| view.server).zip(weights).collect();
        self.judge(views, now, standing, Some(&shares));
    }

    /// Where the time is, since `low`, by three or more servers of which a majority is where it usually is: where so
    /// many agree, and there as near to their median as the second best of them is steady. One that fell silent counts,
    /// since a liar that did so may still rule the mean.
    fn usual_range(&self, views: &[View], low: Timestamp) -> Option<(f64, f64)> {
        let known: Vec<(f64, f64)> = views
            .iter()
            .map(|view| (&self.servers[view.server].usual, view.time.since(low).as_secs_f64()))
            .filter(|(usual, _)| usual.is_known())
            .map(|(usual, time)| (usual.corrected(time), usual.deviation()))
            .collect();
        if known.len() < 3 {
            return None;
        }
        // The narrowest ranges that a majority agrees in.
        let (least, most) = [1.0, 2.0, 4.0].into_iter().find_map(|wider| {
            let half = |deviation: f64| wider * usual::DEVIATIONS * deviation;
            let ranges: Vec<_> = known.iter().map(|&(time, dev)| (time - half(dev), time + half(dev))).collect();
            intersection(&ranges, known.len() / 2 + 1)
        })?;
        let (times, mut deviations): (Vec<f64>, Vec<f64>) = known.into_iter().unzip();
        let median = trimmed_mean(&times, &shares(deviations.iter().copied(), f64::INFINITY)).clamp(least, most);
        deviations.sort_by(f64::total_cmp);
        let beyond = HELD_BACK_BEYOND.max(deviations[1]);
        Some((least.max(median - beyond), most.min(median + beyond)))
    }

    /// Writes down what is thought of each server. Without new shares those of before stay.
    fn judge(
        &mut self,
        views: &[View],
        now: Counter,
        standing: impl Fn(&View) -> Standing,
        shares: Option<&[(usize, f64)]>,
    ) {
        let common = self.clock.map(|clock| clock.time_at(now));
        for (index, server) in self.servers.iter_mut().enumerate() {
            let view = views.iter().find(|view| view.server == index);
            let weight = match shares {
                Some(shares) => shares.iter().find(|share| share.0 == index).map_or(0.0, |share| share.1),
                None => server.opinion.weight,
            };
            server.opinion = Opinion {
                standing: view.map_or(
                    if server.is_expected() || server.sync.report().accepted > 0 {
                        Standing::Waiting
                    } else {
                        Standing::Silent
                    },
                    &standing,
                ),
                weight,
                offset: view.map(|view| {
                    let offset = common.map_or(0.0, |common| view.time.since(common).as_secs_f64());
                    (offset, view.error.as_secs_f64())
                }),
            };
        }
    }
}

impl Server {
    /// How long from `now` its clock counts as synchronised, ns.
    fn left(&self, now: Counter) -> u64 {
        let Some(clock) = self.sync.clock() else { return 0 };
        let age = clock.period.span(now.since(clock.counter)).ceil_nanos();
        self.sync.valid_nanos().saturating_add_signed(age.saturating_neg())
    }
}

/// From the first to the last point that at least so many of the intervals contain (Marzullo 1984). Whatever those
/// intervals are that contain the truth: if they are so many, it lies in here.
fn intersection<T: PartialOrd + Copy>(intervals: &[(T, T)], votes: usize) -> Option<(T, T)> {
    let covers = |point: T| intervals.iter().filter(|(low, high)| *low <= point && point <= *high).count();
    // A region begins where some interval begins, and ends where some ends.
    let (mut low, mut high) = (None, None);
    for &(start, end) in intervals {
        if low.is_none_or(|low| start < low) && covers(start) >= votes {
            low = Some(start);
        }
        if high.is_none_or(|high| end > high) && covers(end) >= votes {
            high = Some(end);
        }
    }
    low.zip(high)
}

/// Weights that add up to 1, from the bounds: a server with half the bound has four times the weight. None has more
/// than [`TRIM`] if there are three or more, unless it has more than `rules` times the weight of all others together.
fn shares(bounds: impl Iterator<Item = f64>, rules: f64) -> Vec<f64> {
    let mut weights: Vec<f64> = bounds.map(|bound| 1.0 / (bound * bound).max(1e-30)).collect();
    let mut sorted = weights.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let total: f64 = sorted.iter().sum();
    if sorted.len() >= 3 && sorted[0] <= rules * (total - sorted[0]) {
        // As many of the largest as it takes are made equal, so that each has that share.
        let cap = (1..=2).find_map(|count| {
            let rest: f64 = sorted[count..].iter().sum();
            let cap = TRIM / (1.0 - TRIM * count as f64) * rest;
            (sorted[count] <= cap).then_some(cap)
        });
        for weight in &mut weights {
            *weight = weight.min(cap.unwrap_or(f64::INFINITY));
        }
    }
    let total: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= total);
    weights
}

/// The least and the greatest value, of three or more without one at either end.
fn middle(values: &[f64]) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let cut = usize::from(sorted.len() >= 3);
    (sorted[cut], sorted[sorted.len() - 1 - cut])
}

/// The weighted mean of what is left when [`TRIM`] of the weight is cut off at either end. Weights add up to 1.
fn trimmed_mean(values: &[f64], weights: &[f64]) -> f64 {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let (mut below, mut sum) = (0.0, 0.0);
    for index in order {
        let upto: f64 = below + weights[index];
        let inside = (upto.min(1.0 - TRIM) - f64::max(below, TRIM)).max(0.0);
        sum += inside * values[index];
        below = upto;
    }
    sum / (1.0 - 2.0 * TRIM)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_intersection_is_where_so_many_agree() {
        let intervals = [(0, 10), (2, 12), (11, 20)];
        assert_eq!(intersection(&intervals, 1), Some((0, 20)));
        assert_eq!(intersection(&intervals, 2), Some((2, 12)));
        assert_eq!(intersection(&intervals, 3), None);
        assert_eq!(intersection(&[(0, 1), (1, 2)], 2), Some((1, 1)), "ends belong to it");
    }

    #[test]
    fn no_share_is_larger_than_what_is_trimmed_unless_it_rules() {
        let round = |bounds: &[f64]| -> Vec<f64> {
            shares(bounds.iter().copied(), RULES).into_iter().map(|share| (share * 1000.0).round() / 1000.0).collect()
        };
        assert_eq!(round(&[1.0, 1.0, 1.0]), [0.333; 3]);
        assert_eq!(round(&[1.0, 2.0, 2.0]), [0.4, 0.3, 0.3]);
        assert_eq!(round(&[1.0, 1.0, 5.0]), [0.4, 0.4, 0.2]);
        assert_eq!(round(&[1.0, 10.0, 10.0]), [0.98, 0.01, 0.01]);
        assert_eq!(round(&[1.0, 2.0]), [0.8, 0.2]);
        assert_eq!(round(&[3.0]), [1.0]);
    }

    proptest! {
        #[test]
        fn the_truth_is_in_the_intersection_if_a_majority_tells_it(
            truth in -1000i64..1000,
            good in prop::collection::vec((0i64..500, 0i64..500), 1..8),
            bad in prop::collection::vec((-2000i64..2000, 0i64..3000), 0..8),
        ) {
            let mut intervals: Vec<_> = good.iter().map(|(below, above)| (truth - below, truth + above)).collect();
            intervals.extend(bad.iter().take(good.len() - 1).map(|&(low, width)| (low, low + width)));
            let (low, high) = intersection(&intervals, intervals.len() / 2 + 1).unwrap();
            prop_assert!(low <= truth && truth <= high);
        }

        #[test]
        fn whatever_one_of_three_or_more_says_the_mean_stays_among_the_others(
            others in prop::collection::vec((-1e-3f64..1e-3, 1e-4f64..2e-4), 2..8), lie in -1e3f64..1e3, bound in 1e-4f64..2e-4,
        ) {
            let weights = shares(others.iter().map(|other| other.1).chain([bound]), RULES);
            let values: Vec<f64> = others.iter().map(|other| other.0).chain([lie]).collect();
            let mean = trimmed_mean(&values, &weights);
            let low = others.iter().map(|other| other.0).fold(f64::MAX, f64::min);
            let high = others.iter().map(|other| other.0).fold(f64::MIN, f64::max);
            prop_assert!(low - 1e-9 <= mean && mean <= high + 1e-9, "{mean} {values:?} {weights:?}");
        }
    }
}
