//! How good a clock was on a trace: its readings, and their figures.

use radclock::stamp::Stamp;
use radclock::sync::Synchroniser;
use radclock::time::{Counter, Span, Timestamp};
use serde::Serialize;

use crate::scenario::seconds;
use crate::trace::Trace;

/// One reading held against the truth.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// True time since the beginning, s.
    pub at: f64,
    /// What the clock said less the truth, s.
    pub error: f64,
    /// What it said that it is wrong by at most, s.
    pub bound: f64,
    /// The true error is within this of `error`, s: 0 where the truth is known.
    pub uncertainty: f64,
}

/// A clock that is fed with stamps.
pub trait Clock {
    /// The time and the bound on its error that a reader gets at a counter value; nothing while there is no clock.
    fn read(&self, counter: Counter) -> Option<(Timestamp, Span)>;

    /// Takes a stamp in.
    fn process(&mut self, stamp: &Stamp);
}

impl Clock for Synchroniser {
    fn read(&self, counter: Counter) -> Option<(Timestamp, Span)> {
        self.clock_at(counter).map(|clock| (clock.time_at(counter), clock.max_error_at(counter)))
    }

    fn process(&mut self, stamp: &Stamp) {
        self.process(stamp);
    }
}

/// What a reader would have got at each stamp's `Ta`, before the clock took that stamp in; nothing before there is a clock.
pub fn replay(trace: &Trace, clock: &mut impl Clock) -> Vec<Reading> {
    let mut readings = vec![];
    for line in &trace.lines {
        if let Some((time, bound)) = clock.read(line.stamp.ta) {
            let error = time.since(line.sent).as_secs_f64();
            readings.push(Reading { at: seconds(line.sent), error, bound: bound.as_secs_f64(), uncertainty: 0.0 });
        }
        clock.process(&line.stamp);
    }
    readings
}

/// The readings of a trace that are scored: those after [`Trace::warm`].
pub fn scored<'readings>(trace: &Trace, readings: &'readings [Reading]) -> &'readings [Reading] {
    let from = trace.lines.first().map_or(0.0, |line| seconds(line.sent)) + trace.warm();
    &readings[readings.partition_point(|reading| reading.at < from)..]
}

/// The figures of one clock.
#[derive(Clone, Debug, Serialize)]
pub struct Score {
    /// How many readings were scored.
    pub readings: usize,
    /// Root mean square of the error, µs.
    pub rms_us: f64,
    /// 99 of 100 errors are not larger, µs.
    pub p99_us: f64,
    /// The largest error, µs.
    pub max_us: f64,
    /// The error that half of the readings are below, with its sign, µs.
    pub median_us: f64,
    /// How many readings were outside of their bound for certain.
    pub outside_bound: usize,
    /// The share of the others.
    pub inside: f64,
    /// Half of the bounds are not larger, µs.
    pub median_bound_us: f64,
}

impl Score {
    /// Of readings less `asymmetry` (s), the part of the error that no client can see; it is not taken off where the error
    /// is held against the bound. Nothing for no readings.
    pub fn new(readings: &[Reading], asymmetry: f64) -> Option<Score> {
        if readings.is_empty() {
            return None;
        }
        let count = readings.len() as f64;
        let mut signed: Vec<f64> = readings.iter().map(|reading| (reading.error - asymmetry) * 1e6).collect();
        let mut sizes: Vec<f64> = signed.iter().map(|error| error.abs()).collect();
        let mut bounds: Vec<f64> = readings.iter().map(|reading| reading.bound * 1e6).collect();
        for values in [&mut signed, &mut sizes, &mut bounds] {
            values.sort_by(f64::total_cmp);
        }
        let is_outside = |reading: &&Reading| reading.error.abs() - reading.uncertainty > reading.bound;
        let outside_bound = readings.iter().filter(is_outside).count();
        Some(Score {
            readings: readings.len(),
            rms_us: (sizes.iter().map(|error| error * error).sum::<f64>() / count).sqrt(),
            p99_us: percentile(&sizes, 0.99),
            max_us: percentile(&sizes, 1.0),
            median_us: percentile(&signed, 0.5),
            outside_bound,
            inside: 1.0 - outside_bound as f64 / count,
            median_bound_us: percentile(&bounds, 0.5),
        })
    }
}

/// Of sorted values, interpolated between neighbours.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_the_errors_without_the_asymmetry() {
        let reading = |error: f64| Reading { at: 0.0, error: error * 1e-6, bound: 5.5e-6, uncertainty: 0.0 };
        let score = Score::new(&[2.0, 4.0, 6.0].map(reading), 1e-6).expect("three readings");
        let near = |value: f64, expected: f64| (value - expected).abs() < 1e-9;
        assert!(near(score.rms_us, (35.0f64 / 3.0).sqrt()) && near(score.max_us, 5.0) && near(score.median_us, 3.0));
        assert!(near(score.p99_us, 4.96) && near(score.inside, 2.0 / 3.0) && near(score.median_bound_us, 5.5));
        assert_eq!(score.outside_bound, 1);
        let unsure = Score::new(&[Reading { uncertainty: 1e-6, ..reading(6.0) }], 0.0).expect("one");
        assert_eq!(unsure.outside_bound, 0, "not outside for certain");
        assert!(Score::new(&[], 0.0).is_none());
    }
}
