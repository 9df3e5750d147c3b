//! When Xen's system time leaves the line that it usually keeps against the TSC: how far a clock over it is off meanwhile.
//!
//! Once a second Xen compares system time with its platform timer and changes the scale so that any difference is gone a second
//! later. If it is held up between reading the one and the other (by firmware, or by the host it runs on itself), it takes that
//! time for a difference, corrects what was right, and takes that back in the second after. The triangle is as high as the
//! hold-up was long. The algorithm sees it at the next stamp, guests do at once. So what leaves the line goes into the bound as
//! soon as it is looked at. What the TSC itself is worth is judged by how well the two keep the line.
//!
//! A Xen that stood still for longer than its platform timer takes to wrap around loses that time for good. No line can tell
//! which of the two is wrong then, only a server can: until one was heard, the line stays as it was, and so does the bound.

use std::collections::VecDeque;
use std::time::Duration;

use radclock::clock::Clock;
use radclock::compose::Added;
use radclock::time::{Counter, Span};

use crate::relation::Sample;

/// How often to look: the longer, the further an excursion has gone before it is seen. Xen that was held up for 7 ms is then
/// 0.14 ms off.
pub const LOOK: Duration = Duration::from_millis(20);
/// From one point of the line to the next, ns, in the end: about a triangle's length, but not in step with Xen's seconds.
const SPACING_NANOS: f64 = 1.7e9;
/// …and at first, so that there is a line soon. When there are [`POINTS`], every other one goes, and the distance is doubled.
const FIRST_SPACING_NANOS: f64 = SPACING_NANOS / 16.0;
/// Points of the line: about a minute, in which the oscillators wander less than any bound over a network can tell.
const POINTS: usize = 32;
/// Fewer points are no line.
const FEWEST_POINTS: usize = 16;
/// So many times as far from the line as three quarters of the points is usual (4.6 σ of a normal distribution).
const USUAL: f64 = 4.0;
/// What a server says so long after an excursion began (system time, ns) is of the clock as it has become. A triangle is over by
/// then, and so is what Xen makes up for with a slower system time.
const TOLD_NANOS: i64 = 60_000_000_000;
/// By so much of its length even a young line cannot be wrong: it is system time that left it.
const IMPOSSIBLE: f64 = 1.0 / 16.0;
/// What no bound over a network need tell of, ns: it has that much in hand.
const SMALL_NANOS: i64 = 5_000;
/// A narrower bound, as by a PTP clock, has such a share of itself in hand.
const SMALL_SHARE: i128 = 8;

/// What a bound has in hand, so that it need not be another for that.
pub fn in_hand(bound: Span) -> Span {
    Span::from_nanos(SMALL_NANOS).min(Span::from_frac(bound.as_frac() / SMALL_SHARE))
}

/// System time that leaves its line by half of itself and more has no clock, units of 2⁻⁶⁴: no page can say a bound that grows
/// so fast. Xen that makes up for a hold-up has a system time up to 14 times too slow.
const TOO_FAST: u64 = 1 << 63;

/// Watches for excursions.
#[derive(Clone, Debug)]
pub struct Excursion {
    points: VecDeque<Sample>,
    /// From one of them to the next, ns.
    spacing: f64,
    line: Option<Line>,
    last: Option<(Sample, f64)>,
    added: Option<Added>,
    /// The excursion that goes on.
    off: Option<Off>,
}

/// System time that is off its line.
#[derive(Clone, Copy, Debug)]
struct Off {
    /// System time when it was first seen.
    since: Counter,
    /// A server has agreed with the clock long enough after that: another line is being drawn.
    is_told: bool,
}

impl Off {
    /// Whether what was heard at `at` tells what has become of the clock.
    fn tells(&self, at: Counter) -> bool {
        at.since(self.since) >= TOLD_NANOS
    }
}

/// What system time usually is, by the TSC.
#[derive(Clone, Copy, Debug)]
struct Line {
    origin: Sample,
    /// Nanoseconds a count.
    rate: f64,
    /// System time at `origin`, from that of the sample, ns.
    level: f64,
    /// How far three quarters of the points are from the line at most, ns.
    usual: f64,
}

impl Line {
    /// The line through the middle of all: the median of the slopes between any two points (Theil and Sen), then of the levels.
    fn through(points: &VecDeque<Sample>) -> Option<Line> {
        if points.len() < FEWEST_POINTS {
            return None;
        }
        let origin = *points.back()?;
        let mut slopes: Vec<f64> = points
            .iter()
            .enumerate()
            .flat_map(|(index, early)| points.range(index + 1..).map(move |late| slope(early, late)))
            .collect();
        let mut line = Line { origin, rate: quantile(&mut slopes, 0.5), level: 0.0, usual: 0.0 };
        let mut residuals: Vec<f64> = points.iter().map(|point| line.residual(point)).collect();
        line.level = quantile(&mut residuals, 0.5);
        residuals.iter_mut().for_each(|residual| *residual = (*residual - line.level).abs());
        line.usual = quantile(&mut residuals, 0.75);
        Some(line)
    }

    /// How far system time is ahead of the line, ns.
    fn residual(&self, sample: &Sample) -> f64 {
        nanos(&self.origin, sample) - sample.tsc.since(self.origin.tsc) as f64 * self.rate - self.level
    }
}

/// System time from one sample to the other, ns.
fn nanos(from: &Sample, to: &Sample) -> f64 {
    to.system_time.wrapping_sub(from.system_time) as i64 as f64
}

fn slope(from: &Sample, to: &Sample) -> f64 {
    nanos(from, to) / to.tsc.since(from.tsc) as f64
}

/// The value below which that share of the values is. There has to be one.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    let index = (values.len() as f64 * share) as usize;
    *values.select_nth_unstable_by(index, f64::total_cmp).1
}

impl Default for Excursion {
    fn default() -> Excursion {
        Excursion {
            points: VecDeque::new(),
            spacing: FIRST_SPACING_NANOS,
            line: None,
            last: None,
            added: None,
            off: None,
        }
    }
}

impl Excursion {
    /// Takes the next reading of both counters. `clock` is what is kept over system time, and `heard` when a server last agreed
    /// with it.
    pub fn look(&mut self, sample: Sample, clock: Option<&Clock>, heard: Option<Counter>) {
        let before = self.added.take();
        // Either clock was set back, as on another host: what was known is of the past. But system time alone has left its line.
        let is_past =
            |last: &Sample| sample.tsc.since(last.tsc) <= 0 || self.line.is_none() && nanos(last, &sample) <= 0.0;
        if self.last.is_some_and(|(last, _)| is_past(&last)) {
            *self = Excursion::default();
        }
        let residual = self.line.map(|line| {
            let residual = line.residual(&sample);
            let bound = clock.map_or(Span::MAX, |clock| clock.max_error_at(Counter(sample.system_time)));
            self.added = self.judge(&line, &sample, residual, in_hand(bound));
            residual
        });
        let residual = residual.unwrap_or_default();
        if self.added.is_some() != before.is_some() {
            tracing::debug!("Xen's system time is {:.1} us off its line by the TSC", residual / 1e3);
        }
        self.follow(&sample, heard);
        if self.takes_points(residual) && self.points.back().is_none_or(|point| nanos(point, &sample) >= self.spacing) {
            self.points.push_back(sample);
            if let Some(line) = Line::through(&self.points) {
                self.line = Some(line);
                self.off = self.off.filter(|off| !off.is_told);
            }
            if self.points.len() == POINTS {
                self.make_room();
            }
        }
        self.last = Some((sample, residual));
    }

    /// Begins or ends an excursion; or another line, if the clock is known to be right although it goes on.
    fn follow(&mut self, sample: &Sample, heard: Option<Counter>) {
        if self.added.is_none() {
            self.off = None;
            return;
        }
        let off = self.off.get_or_insert(Off { since: Counter(sample.system_time), is_told: false });
        if !off.is_told && heard.is_some_and(|heard| off.tells(heard)) {
            off.is_told = true;
            self.points.clear();
            self.spacing = FIRST_SPACING_NANOS;
        }
    }

    /// Whether the line goes on. It must not follow what nobody has told to be right; but a young one may itself be what is
    /// wrong, as long as that is possible.
    fn takes_points(&self, residual: f64) -> bool {
        let Some(off) = &self.off else { return true };
        let length = self.points.front().zip(self.points.back()).map_or(0.0, |(first, last)| nanos(first, last));
        let is_young = self.spacing < SPACING_NANOS && residual.abs() < length * IMPOSSIBLE;
        off.is_told || is_young
    }

    fn make_room(&mut self) {
        if self.spacing < SPACING_NANOS {
            self.spacing *= 2.0;
            let mut stays = true;
            self.points.retain(|_| {
                stays = !stays;
                stays
            });
        } else {
            self.points.pop_front();
        }
    }

    fn judge(&self, line: &Line, sample: &Sample, residual: f64, in_hand: Span) -> Option<Added> {
        let width = sample.half_width as f64 * line.rate + 2.0;
        if residual.abs() <= USUAL * line.usual + width + in_hand.as_secs_f64() * 1e9 {
            return None;
        }
        let (last, before) = self.last?;
        let widths = width + last.half_width as f64 * line.rate;
        let departing = ((residual - before).abs() - widths).max(0.0) / nanos(&last, sample).max(1.0);
        Some(Added { nanos: (residual.abs() + width).ceil() as u64, rate: (departing * 2f64.powi(64)) as u64 })
    }

    /// Whether system time is off its line.
    pub fn goes_on(&self) -> bool {
        self.added.is_some()
    }

    /// By how much system time has left its line for good, s, if it has: long after an excursion began that still goes on, a
    /// server was `refused` at an instant by a clock that it was so far ahead of, and with a clock by the TSC it agrees far better.
    pub fn parted(&self, refused: Option<(Counter, Span)>) -> Option<f64> {
        let (at, ahead) = refused?;
        let residual = self.off.filter(|off| !off.is_told && off.tells(at)).and(self.last)?.1 * 1e-9;
        ((ahead.as_secs_f64() + residual).abs() <= residual.abs() / 2.0).then_some(residual)
    }

    /// The clock over system time with a bound that covers the excursion, and with the last look as its reference. Nothing
    /// without an excursion, or if the result cannot be said in a page.
    pub fn widened(&self, clock: &Clock) -> Option<(Clock, Counter)> {
        let added = self.added.filter(|added| added.rate < TOO_FAST)?;
        let reference = Counter(self.last?.0.system_time);
        let (time, max_error) = clock.reading_at(reference)?;
        let rate = (added.rate as f64 / 2f64.powi(64) * clock.period.frac as f64) as u64 + 1;
        let widened = Clock {
            counter: reference,
            time,
            period_max_error: clock.period_max_error.saturating_add(rate),
            max_error_nanos: u64::try_from(max_error.ceil_nanos()).ok()?.saturating_add(added.nanos),
            ..*clock
        };
        Some((widened, reference))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GHZ: f64 = 2.7;
    /// Between two looks, ns.
    const STEP: f64 = LOOK.as_nanos() as f64;
    /// Looks a second.
    const RATE: usize = (1_000_000_000 / LOOK.as_nanos()) as usize;

    fn sample(at: f64, off: f64) -> Sample {
        Sample { tsc: Counter((at * GHZ) as u64), system_time: (at + off) as u64 + 1_000_000_000, half_width: 100 }
    }

    fn clock_at(system_time: u64) -> Clock {
        Clock {
            counter: Counter(system_time),
            time: radclock::time::Timestamp::new(1_800_000_000, 0),
            period: radclock::clock::Period::from_secs_f64(1.00002e-9).expect("a period"),
            period_max_error: 1 << 30,
            max_error_nanos: 300_000,
        }
    }

    /// Off by `height` at the middle of its two seconds.
    fn triangle(since: f64, height: f64) -> f64 {
        (1.0 - (since / 1e9 - 1.0).abs()).max(0.0) * height
    }

    fn after(seconds: usize, noise: impl Fn(usize) -> f64) -> (Excursion, f64) {
        let mut excursion = Excursion::default();
        let looks = seconds * RATE;
        for look in 0..looks {
            excursion.look(sample(look as f64 * STEP, noise(look)), None, None);
            // What is usual shows in time.
            assert!(look < 30 * RATE || excursion.added.is_none(), "look {look}");
        }
        (excursion, looks as f64 * STEP)
    }

    #[test]
    fn the_usual_noise_of_the_scale_is_no_excursion() {
        // The sign changes from second to second, as Xen's corrections do.
        after(200, |look| if (look / RATE).is_multiple_of(2) { 30_000.0 } else { -30_000.0 });
        after(200, |_| 0.0);
    }

    #[test]
    fn without_a_line_nothing_is_said_but_there_is_one_soon() {
        let drift = |look: usize| look as f64 * 1e4;
        assert!(after(1, drift).0.line.is_none());
        let (excursion, _) = after(2, drift);
        assert!(excursion.line.is_some() && excursion.added.is_none());
    }

    #[test]
    fn points_are_a_second_and_more_apart_in_the_end() {
        let (excursion, now) = after(100, |_| 0.0);
        let spacing = last_spacing(&excursion);
        assert!((SPACING_NANOS..SPACING_NANOS + STEP).contains(&spacing), "{spacing}");
        assert!(nanos(&excursion.points[0], &sample(now, 0.0)) > 50e9);
    }

    /// Between the last two points, ns.
    fn last_spacing(excursion: &Excursion) -> f64 {
        let last = excursion.points.len() - 1;
        nanos(&excursion.points[last - 1], &excursion.points[last])
    }

    /// Goes on for so long with system time off by `off` (ns) at a time since then (ns), and a server heard as `heard` says.
    /// The looks at which the bound was wider.
    fn go_on(
        excursion: &mut Excursion,
        start: f64,
        seconds: usize,
        off: impl Fn(f64) -> f64,
        heard: impl Fn(f64) -> Option<f64>,
    ) -> Vec<usize> {
        let wider = |look: usize| {
            let since = look as f64 * STEP;
            let heard = heard(since).map(|at| Counter(sample(start + at, off(at)).system_time));
            excursion.look(sample(start + since, off(since)), None, heard);
            excursion.added.is_some().then_some(look)
        };
        (0..seconds * RATE).filter_map(wider).collect()
    }

    #[test]
    fn a_step_that_stays_is_covered_until_a_server_agrees_long_after_it() {
        for (height, age) in [(1e6, 70), (-1e6, 70), (-43e9, 70), (43e9, 70), (-43e9, 10), (43e9, 4)] {
            let (seasoned, start) = after(age, |_| 0.0);
            let run = |heard: &dyn Fn(f64) -> Option<f64>| {
                let mut excursion = seasoned.clone();
                // System time must not run backwards.
                let ramp = |since: f64| if height < 0.0 { (-0.93 * since).max(height) } else { height };
                let wider = go_on(&mut excursion, start, 400, ramp, heard);
                (wider.len(), wider.last().map(|&look| look / RATE))
            };
            let all = 400 * RATE - 3;
            let (looks, last) = run(&|_| None);
            assert!(looks >= all && last == Some(399), "{height} at {age} s: {looks} looks to {last:?} s");
            let (looks, last) = run(&|_| Some(50e9));
            // In system time, which is slower, it is 60 s only later.
            assert!(looks >= all && last == Some(399), "{height} at {age} s, too early: {looks} looks to {last:?} s");
            let (looks, last) = run(&|since| (since >= 130e9).then_some(130e9));
            assert!((130..134).contains(&last.expect("some")), "{height} at {age} s: {looks} looks to {last:?} s");
        }
    }

    #[test]
    fn a_line_that_was_drawn_anew_sees_the_next_excursion() {
        let (mut excursion, start) = after(70, |_| 0.0);
        go_on(&mut excursion, start, 300, |_| 43e9, |since| (since >= 100e9).then_some(100e9));
        let again = start + 300e9;
        let wider = go_on(&mut excursion, again, 100, |since| if since < 10e9 { 43e9 } else { 86e9 }, |_| Some(-200e9));
        assert_eq!((wider.first().map(|look| look / RATE), wider.len()), (Some(10), 90 * RATE));
    }

    #[test]
    fn counter_and_servers_have_parted_once_one_was_refused_by_what_system_time_lost() {
        let (mut excursion, start) = after(70, |_| 0.0);
        let refused = |at: f64, ahead: f64| Some((Counter(sample(at, -43e9).system_time), Span::from_secs_f64(ahead)));
        assert_eq!(excursion.parted(refused(start + 200e9, 43.0)), None, "no excursion");
        go_on(&mut excursion, start, 200, |since| (-0.93 * since).max(-43e9), |_| None);
        assert_eq!(excursion.parted(None), None, "nobody said so");
        assert_eq!(excursion.parted(refused(start + 50e9, 43.0)), None, "too early");
        for other in [-43.0, 10.0, 0.05, 1000.0] {
            assert_eq!(excursion.parted(refused(start + 150e9, other)), None, "a server that is {other} s ahead lies");
        }
        let off = excursion.parted(refused(start + 150e9, 43.1)).expect("it has");
        assert!((off + 43.0).abs() < 1e-3, "{off}");
    }

    #[test]
    fn there_is_no_clock_while_system_time_leaves_its_line_too_fast_for_any_bound() {
        for slower in [1.2, 1.9, 2.1, 14.0, 1e3, -10.0] {
            let (mut excursion, start) = after(70, |_| 0.0);
            let off = |since: f64| -(1.0 - 1.0 / slower) * since.min(5e9);
            for look in 0..6 * RATE {
                let since = look as f64 * STEP;
                excursion.look(sample(start + since, off(since)), None, None);
                if since < 2.0 * STEP {
                    continue;
                }
                let clock = clock_at(excursion.last.expect("it has looked").0.system_time);
                let widened = excursion.widened(&clock);
                let is_fast = since <= 5e9 && !(0.0..1.5).contains(&slower);
                assert_eq!(widened.is_none(), is_fast, "{slower} times at {since} ns");
                assert!(widened.is_none_or(|(clock, _)| clock.max_error_nanos as f64 >= off(since).abs()));
            }
        }
    }

    #[test]
    fn a_narrow_bound_has_less_in_hand() {
        let (excursion, start) = after(70, |_| 0.0);
        for (max_error_nanos, off, is_seen) in [(300_000, 4000.0, false), (300_000, 6000.0, true), (2000, 600.0, true)]
        {
            let now = Sample { half_width: 1, ..sample(start, off) };
            let clock = Clock { max_error_nanos, ..clock_at(now.system_time) };
            let mut excursion = excursion.clone();
            excursion.look(now, Some(&clock), None);
            assert_eq!(excursion.goes_on(), is_seen, "{off} ns of {max_error_nanos}");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_starts_anew() {
        let (mut excursion, _) = after(70, |_| 0.0);
        excursion.look(sample(1e9, 0.0), None, None);
        assert!(excursion.line.is_none() && excursion.added.is_none());
    }

    proptest! {
        /// From the second look at it on, the bound covers the excursion until the next look.
        #[test]
        fn an_excursion_is_covered_once_it_is_seen(
            height in -50e6f64..50e6,
            begin in 0.0f64..1e9,
            (age, noise) in prop_oneof![(Just(70), 0.0f64..20_000.0), (8..70usize, Just(0.0))],
        ) {
            let wave = |look: usize| if (look / RATE).is_multiple_of(2) { noise } else { -noise };
            let (mut excursion, start) = after(age, wave);
            let off = |at: f64| triangle(at - start - begin, height);
            for look in 0..5 * RATE {
                let at = start + look as f64 * STEP;
                excursion.look(sample(at, off(at)), None, None);
                let Added { nanos, rate } = excursion.added.unwrap_or_default();
                let since = at - start - begin;
                // Two looks in it, and none at its far end, where it is over before the next.
                if since < 2.0 * STEP || (since - 1e9).abs() < STEP {
                    continue;
                }
                // The noise has two levels, of which the line may be either.
                let hand = SMALL_NANOS as f64 + (USUAL + 1.0) * 2.0 * noise + 1000.0;
                // What is not seen yet has only now begun to matter.
                let parts: &[f64] = if excursion.goes_on() { &[0.0, 0.3, 0.7, 1.0] } else { &[0.0] };
                for part in parts {
                    let later = part * STEP;
                    // By system time, as a reader's bound grows.
                    let elapsed = later + off(at + later) - off(at);
                    let bound = nanos as f64 + rate as f64 / 2f64.powi(64) * elapsed + hand;
                    prop_assert!(off(at + later).abs() <= bound, "{} off, {bound}", off(at + later));
                }
            }
        }

        #[test]
        fn a_widened_clock_is_the_same_with_a_wider_bound(height in prop_oneof![-6e6..-1e5, 1e5f64..15e6], age in 0u64..20_000_000_000) {
            let (mut excursion, start) = after(70, |_| 0.0);
            excursion.look(sample(start, 0.0), None, None);
            excursion.look(sample(start + STEP, height), None, None);
            let at = Counter(excursion.last.expect("it has looked").0.system_time);
            let clock = clock_at(at.0 - age);
            let (widened, reference) = excursion.widened(&clock).expect("an excursion");
            prop_assert_eq!(reference, at);
            for later in [0, 50_000_000] {
                let (time, bound) = clock.reading_at(Counter(at.0 + later)).expect("a reading");
                let (other, wider) = widened.reading_at(Counter(at.0 + later)).expect("a reading");
                prop_assert!(other.since(time).abs() <= Span::from_nanos(2));
                prop_assert!(wider - bound >= Span::from_nanos(height.abs() as i64 - 2));
            }
        }
    }
}
