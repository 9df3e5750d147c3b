//! What a clock's error really is, without assuming anything of emulation or of Xen: a probe reads the clock in answer to
//! the build machine ([`crate::probe`]). The narrowest brackets of its answers, as the build machine's time
//! ([`crate::timeline`]), are the truth.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use radclock::time::Timestamp;

use crate::host::Host;
use crate::probe::{Answer, Probe, REORDERING};
use crate::timeline::Timeline;

/// Fewer answers are not enough to tell.
const ENOUGH_TO_TELL: usize = 15;
/// How long the probe waits for a question.
const PROBE_PATIENCE: Duration = Duration::from_secs(60);
/// A measurement goes on until it has so many readings, and a bracket so narrow, in counts of the build machine's TSC
/// (some 10 µs): a build machine that is busy has neither at once.
const ENOUGH_READINGS: usize = 1000;
const NARROW_ENOUGH: u64 = 30_000;
/// But for no longer than this.
const MEASURE_LIMIT: Duration = Duration::from_secs(40);
/// One reading in so many may lie outside of its bracket: in one run of 2.4 million on a quiet build machine, 2 µs was the most.
const RARE: usize = 100_000;
/// A mark of the build machine's time is the narrowest of so many brackets.
const MARK: usize = 1000;

/// What was found of a domain's clock.
#[derive(Clone, Copy, Debug)]
pub struct Truth {
    /// The reading less the true time, ns, in the narrowest bracket.
    pub error_ns: f64,
    /// The true error is within this of `error_ns`.
    pub uncertainty_ns: f64,
    /// What the reading claimed as the bound on its error, ns.
    pub bound_ns: u64,
    /// The time read.
    pub time: Timestamp,
    /// Whether the clock said that it is synchronised, in all of the samples.
    pub synchronized: bool,
    /// How many readings were taken.
    pub samples: usize,
    /// How many of them were outside of their bound for certain.
    pub violations: usize,
    /// Under emulation a domain's TSC may be the build machine's plus a constant. How many values of that constant agree
    /// with all of the brackets, but for rare ones; negative if none does.
    pub constant_offset_room: i64,
    /// That constant, in counts: the middle of what agrees.
    pub counter_offset: i64,
}

impl Truth {
    /// Whether the error is inside of the bound for certain.
    pub fn is_inside(&self) -> bool {
        self.violations == 0 && self.error_ns.abs() + self.uncertainty_ns <= self.bound_ns as f64
    }
}

/// Measures for `duration`, or longer if the build machine is busy. `probe` makes a command line into what runs it in the
/// domain.
pub fn measure(host: &Host, duration: Duration, probe: impl FnOnce(&str) -> Result<duct::Expression>) -> Result<Truth> {
    let mut probe = Probe::start(host, "truth", PROBE_PATIENCE, probe)?;
    let mut timeline = Timeline::default();
    timeline.mark(MARK);
    let mut answers: Vec<Answer> = Vec::new();
    let mut narrowest = u64::MAX;
    let start = Instant::now();
    loop {
        let enough = answers.len() >= ENOUGH_READINGS && narrowest <= NARROW_ENOUGH;
        if start.elapsed() >= if enough { duration } else { MEASURE_LIMIT } {
            break;
        }
        probe.ask(|answer| {
            narrowest = narrowest.min(answer.width());
            answers.push(answer);
        })?;
    }
    timeline.mark(MARK);
    probe.end()?;
    evaluate(&answers, &timeline)
}

fn evaluate(answers: &[Answer], timeline: &Timeline) -> Result<Truth> {
    ensure!(answers.len() > ENOUGH_TO_TELL, "the probe answered only {} times", answers.len());
    let mut violations = 0;
    for answer in answers {
        let (error, uncertainty) = answer.error(answer.time, timeline)?;
        violations += usize::from(error.abs() - uncertainty > answer.bound_ns as f64);
    }
    let offset = |at: u64, answer: &Answer| answer.counter.wrapping_sub(at).cast_signed();
    let rare = answers.len() / RARE;
    let mut offsets: Vec<i64> = answers.iter().map(|answer| offset(answer.asked, answer)).collect();
    let latest = *offsets.select_nth_unstable(rare).1;
    offsets = answers.iter().map(|answer| offset(answer.answered, answer)).collect();
    let earliest = *offsets.select_nth_unstable(answers.len() - 1 - rare).1;
    let narrowest = answers.iter().min_by_key(|answer| answer.width()).expect("some");
    let (error_ns, uncertainty_ns) = narrowest.error(narrowest.time, timeline)?;
    Ok(Truth {
        error_ns,
        uncertainty_ns,
        bound_ns: narrowest.bound_ns,
        time: narrowest.time,
        synchronized: answers.iter().all(|answer| answer.synchronized),
        samples: answers.len(),
        violations,
        constant_offset_room: latest - earliest + 2 * REORDERING.cast_signed(),
        counter_offset: earliest + (latest - earliest) / 2,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::Mark;

    /// A reading at this TSC value, wrong by so much, in a bracket of so much.
    fn answer(at: u64, error: u64, bracket: u64) -> Answer {
        Answer {
            asked: at - bracket / 2,
            answered: at + bracket / 2,
            time: Timestamp::from_unix(1000, at + error),
            bound_ns: 1500,
            counter: at + 77,
            synchronized: true,
            system: Timestamp::from_unix(0, 0),
            system_bound_us: 0,
        }
    }

    /// On a build machine whose TSC counts nanoseconds from 1000 s on.
    fn truth(answers: &[Answer]) -> Truth {
        let marks = [0, 2_000_000_000].map(|tsc| Mark::exact(tsc, 1_000_000_000_000 + tsc as i64));
        evaluate(answers, &Timeline::from_iter(marks)).expect("enough answers")
    }

    #[test]
    fn the_narrowest_bracket_gives_the_error() {
        let mut answers: Vec<Answer> = (1..=100).map(|n| answer(n * 1_000_000, 300, 4000)).collect();
        answers.push(answer(500_000, 200, 100));
        let truth = truth(&answers);
        assert!((truth.error_ns - 200.0).abs() < 1.0 && (truth.uncertainty_ns - 1050.0).abs() < 1.0, "{truth:?}");
        assert!(truth.is_inside() && truth.constant_offset_room > 0, "{truth:?}");
    }

    #[test]
    fn one_reading_in_many_may_lie_outside_of_its_bracket() {
        let mut answers: Vec<Answer> = (1..=RARE as u64).map(|n| answer(n * 10_000, 300, 4000)).collect();
        answers[7].counter -= 9000;
        assert!(truth(&answers).constant_offset_room > 0);
        answers[8].counter -= 9000;
        assert!(truth(&answers).constant_offset_room < 0);
    }

    #[test]
    fn one_reading_outside_of_its_bound_for_certain_is_enough_to_fail() {
        let mut answers: Vec<Answer> = (1..=100).map(|n| answer(n * 1_000_000, 100, 100)).collect();
        answers.push(answer(500_000, 5000, 400));
        let truth = truth(&answers);
        assert_eq!(truth.violations, 1);
        assert!(!truth.is_inside());
    }

    #[test]
    fn a_bracket_too_wide_to_tell_proves_nothing() {
        let answers: Vec<Answer> = (1..=100).map(|n| answer(n * 1_000_000, 400, 2000)).collect();
        let truth = truth(&answers);
        assert_eq!(truth.violations, 0);
        assert!(!truth.is_inside(), "it may be outside: {truth:?}");
    }
}
