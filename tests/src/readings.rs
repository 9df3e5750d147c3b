//! A process in a guest that reads the clock as fast as it can and notes down every reading, over suspends and
//! migrations; and the judgement of each of its readings by the truth, see [`crate::observer`].

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab_agent::{Point, Record, RecordKind};
use zerocopy::FromBytes;

use crate::command;
use crate::guest::{Guest, Kind};
use crate::host::{COMMAND_LIMIT, Host};
use crate::observer::{Interval, Observed, Observer, Relation};
use crate::{probe, wait};

const LOG: &str = "/run/readings";
/// The log comes over the guest's console.
const TAKE_LIMIT: Duration = Duration::from_secs(480);
/// So much of it at once: xenconsoled drops what is not taken from it in time if it is more than a megabyte. Without padding in
/// base64.
const PIECE: usize = 3 << 17;
/// How often a piece is asked for: a console whose host is slow loses some of it.
const TAKES: usize = 4;
/// Within a record the true time may bend away from a straight line by this much: 100 ppm of 10 ms.
const BEND: i64 = 1_000;
/// Of how many records it may remain open whether they are right: where the build machine was too busy to ask, the truth is
/// not known well enough.
const UNDECIDED: f64 = 0.01;
/// A bound above this tells little of what would be wrong, ns.
const WIDE: u64 = 10_000_000;
/// After the first reading on a new clock, ns.
const SETTLED: u64 = 500_000_000;

/// A reader at work in a guest.
pub struct Reader {
    observer: Observer,
}

/// What a reader noted down, and what the build machine saw meanwhile.
pub struct Readings {
    records: Vec<Record>,
    observed: Observed,
}

impl Reader {
    /// Starts it. `hosts` are those that the guest may come to.
    pub fn start(guest: &Guest, hosts: &[&Host]) -> Result<Reader> {
        let magic = probe::random_magic()?;
        let observer = Observer::start(hosts, magic)?;
        let reader = format!("lab-reader {:016x}{:016x} {LOG}", magic[1], magic[0]);
        guest.run(&format!("{reader} > {LOG}.error 2>&1 & echo $! > {LOG}.pid"))?;
        Ok(Reader { observer })
    }

    /// Ends it. `guest` tells where it is now.
    pub fn stop(self, guest: &Guest) -> Result<Readings> {
        guest.run(&format!("kill $(cat {LOG}.pid)")).with_context(|| {
            let said = guest.run(&format!("cat {LOG}.error")).unwrap_or_default();
            format!("the reader has ended: {said}")
        })?;
        wait::until("the reader to end", COMMAND_LIMIT, || {
            let alive = guest.output(&format!("test -d /proc/$(cat {LOG}.pid)"), COMMAND_LIMIT)?;
            Ok((!alive.status.success()).then_some(()))
        })?;
        let observed = self.observer.stop()?;
        let run = |shell: &str| command::success(shell, &guest.output(shell, TAKE_LIMIT)?);
        let size: usize = run(&format!("gzip -f {LOG} && wc -c < {LOG}.gz"))?.trim().parse()?;
        let mut packed = String::new();
        for piece in 0..size.div_ceil(PIECE) {
            let take = format!("dd if={LOG}.gz bs={PIECE} skip={piece} count=1 2> /dev/null | base64 -w 4000");
            let length = (size - piece * PIECE).min(PIECE).div_ceil(3) * 4;
            let is_whole = |taken: &String| taken.bytes().filter(|byte| !byte.is_ascii_whitespace()).count() == length;
            let takes = (0..TAKES).map(|_| run(&take)).find(|taken| taken.as_ref().map_or(true, is_whole));
            packed.push_str(&takes.context("the console goes on losing the log")??);
        }
        run(&format!("rm {LOG}.gz"))?;
        let unpack = command::reading("sh", ["-c", "base64 -d | gzip -dc"], packed);
        let log = command::output("gzip", &unpack, TAKE_LIMIT)?;
        ensure!(log.status.success(), "the log is damaged: {}", String::from_utf8_lossy(&log.stderr));
        let records = log.stdout.chunks(size_of::<Record>());
        let records = records.map(|bytes| Record::read_from_bytes(bytes).ok()).collect::<Option<_>>();
        Ok(Readings { records: records.context("the log ends in the middle")?, observed })
    }
}

/// A reading and the truth.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    /// As it was read.
    pub point: Point,
    /// The true time.
    pub truth: Interval,
    /// The true time, without any assumption of the counter's rate.
    pub certain: Interval,
}

impl Judged {
    fn new(point: Point, relation: &Relation) -> Result<Judged> {
        let (truth, certain) = (relation.true_time(point.counter)?, relation.certain_time(point.counter)?);
        Ok(Judged { point, truth, certain })
    }

    /// Reading less true time, ns.
    pub fn error(&self) -> i64 {
        self.point.time as i64 - (self.truth.earliest + self.truth.latest) / 2
    }
}

/// From one clock to the next.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// The last reading on the old clock.
    pub last: Judged,
    /// The first on the new one.
    pub first: Judged,
    /// How many errors were read between them.
    pub errors: u64,
    /// The guest's `CLOCK_MONOTONIC_RAW` right after the first reading, ns.
    pub raw_nanos: u64,
    /// The largest bound of the readings on the new clock that are more than half a second after the first, ns.
    pub later_bound: u64,
}

impl Change {
    /// From the last good reading to the first, ms of true time: how long the guest stood still, and had no clock.
    pub fn unavailable_ms(&self) -> f64 {
        (self.first.truth.earliest - self.last.truth.earliest) as f64 / 1e6
    }

    /// How much more the clock went on than true time, ns.
    pub fn jump(&self) -> i64 {
        self.first.error() - self.last.error()
    }

    /// What the bounds of both readings allow it to be, ns.
    pub fn allowed(&self) -> i64 {
        (self.first.point.bound + self.last.point.bound) as i64
    }
}

/// Readings were wrong, which nothing excuses.
#[derive(Debug)]
pub struct WrongReadings(String);

impl fmt::Display for WrongReadings {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongReadings {}

/// What was found of all readings.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// How many there were.
    pub readings: u64,
    /// How many of them in records whose bounds are above 10 ms.
    pub wide: u64,
    /// How many records of at least one reading that was outside of its bound for certain.
    pub wrong: u64,
    /// How many records of readings of which it cannot be told: the truth is not known well enough there.
    pub undecided: u64,
    /// How many records of readings there were.
    pub records: u64,
    /// How many times there was an error instead.
    pub errors: u64,
    /// How many of these because the page was being written for as long as a reader tries.
    pub busy: u64,
    /// Readings of a clock after it was said to be disrupted.
    pub revenants: u64,
    /// How many records of readings that were before the one before by more than both bounds.
    pub backwards: u64,
    /// How far a reading on one clock was before the one before, at most, ns.
    pub largest_step_back: i64,
    /// From one clock to the next.
    pub changes: Vec<Change>,
    /// The largest error of the readings that were judged one by one, where it could be told whether they are right, ns.
    pub largest_error: i64,
    /// Of the same, the largest error as a part of its bound.
    pub largest_part: f64,
    /// The smallest and largest bound, ns.
    pub bounds: (u64, u64),
    /// How well the truth was known: the median, and the worst, ns.
    pub tolerance: (i64, i64),
    /// What was wrong, for a person: the first few.
    pub faults: Vec<String>,
}

impl Readings {
    /// Judges them. `kind` is the guest's.
    pub fn judge(&self, kind: Kind) -> Result<Verdict> {
        let mut verdict = Verdict { bounds: (u64::MAX, 0), ..Verdict::default() };
        let mut tolerances = Vec::new();
        let mut relation: Option<(u64, Option<Relation>)> = None;
        let mut last: Option<Judged> = None;
        let (mut errors, mut disrupted) = (0, None);
        for record in &self.records {
            let kind_of_record = RecordKind::new(record.kind).context("a record of an unknown kind")?;
            if !kind_of_record.is_readable() {
                verdict.errors += record.count;
                verdict.busy += if kind_of_record == RecordKind::Busy { record.count } else { 0 };
                errors += record.count;
                if kind_of_record == RecordKind::Unreliable {
                    disrupted = relation.as_ref().map(|(marker, _)| *marker);
                }
                continue;
            }
            let is_new = relation.as_ref().is_none_or(|(marker, _)| *marker != record.marker);
            if is_new {
                relation = Some((record.marker, self.observed.relation(record.marker, kind)));
            }
            let Some((_, Some(related))) = &relation else {
                // The clock did not last until the build machine had asked.
                verdict.add_unseen(record);
                last = None;
                continue;
            };
            let (first, end) = (Judged::new(record.first, related)?, Judged::new(record.last, related)?);
            if disrupted == Some(record.marker) {
                verdict.revenants += record.count;
                verdict.fault(|| format!("read on a clock that was said to be disrupted: {record:?}"));
            }
            verdict.add(record, &first, &end);
            tolerances.extend([first.truth.tolerance(), end.truth.tolerance()]);
            if let Some(last) = last
                && is_new
            {
                let change = Change { last, first, errors, raw_nanos: record.raw_nanos, later_bound: 0 };
                verdict.add_change(change);
            }
            if let Some(change) = verdict.changes.last_mut()
                && first.point.time > change.first.point.time + SETTLED
            {
                change.later_bound = change.later_bound.max(first.point.bound);
            }
            last = Some(end);
            errors = 0;
        }
        tolerances.sort_unstable();
        let at = |part: usize| tolerances.get(part).copied().unwrap_or_default();
        verdict.tolerance = (at(tolerances.len() / 2), at(tolerances.len().saturating_sub(1)));
        Ok(verdict)
    }

    /// How many answers the truth rests on.
    pub fn answers(&self) -> usize {
        self.observed.answers()
    }
}

impl Verdict {
    fn fault(&mut self, what: impl FnOnce() -> String) {
        if self.faults.len() < 10 {
            self.faults.push(what());
        }
    }

    fn add(&mut self, record: &Record, first: &Judged, last: &Judged) {
        self.readings += record.count;
        self.records += 1;
        self.wide += if first.point.bound.min(last.point.bound) > WIDE { record.count } else { 0 };
        let mut certainly_wrong = false;
        let mut certainly_right = true;
        for (judged, line) in [(first, 0), (last, record.line_nanos)] {
            let line = first.point.time as i64 + line;
            let Judged { truth, certain, .. } = judged;
            certainly_wrong |= certain.latest - line < record.lower_nanos - BEND
                || certain.earliest - line > record.upper_nanos + BEND;
            certainly_right &= truth.earliest - line >= record.lower_nanos && truth.latest - line <= record.upper_nanos;
            self.bounds = (self.bounds.0.min(judged.point.bound), self.bounds.1.max(judged.point.bound));
        }
        if certainly_wrong || certainly_right {
            for judged in [first, last] {
                let error = judged.error().abs();
                self.largest_error = self.largest_error.max(error);
                self.largest_part = self.largest_part.max(error as f64 / judged.point.bound as f64);
            }
        }
        if certainly_wrong {
            self.wrong += 1;
            self.fault(|| format!("outside of the bound: {record:?}, first {first:?}, last {last:?}"));
        } else if !certainly_right {
            self.undecided += 1;
        }
        self.largest_step_back = self.largest_step_back.max(record.backwards_nanos);
        if record.overlap_nanos > 0 {
            self.backwards += 1;
            self.fault(|| format!("backwards by more than the bounds: {record:?}"));
        }
    }

    /// A record of a clock whose counter nobody has seen.
    fn add_unseen(&mut self, record: &Record) {
        self.readings += record.count;
        self.records += 1;
        self.undecided += 1;
    }

    fn add_change(&mut self, change: Change) {
        let back = change.last.point.time as i64 - change.first.point.time as i64;
        if back > change.allowed() {
            self.backwards += 1;
            self.fault(|| format!("backwards from one clock to the next by more than the bounds: {change:?}"));
        }
        self.changes.push(change);
    }

    /// The change with the largest jump.
    pub fn largest_jump(&self) -> Option<&Change> {
        self.changes.iter().max_by_key(|change| change.jump().abs())
    }

    /// Fails with [`WrongReadings`] if any reading was wrong.
    pub fn ensure_none_wrong(&self) -> Result<()> {
        if self.faults.is_empty() {
            return Ok(());
        }
        bail!(WrongReadings(format!("{self}\n{}", self.faults.join("\n"))))
    }

    /// Fails if any reading was wrong, if too few can be shown to be right, or if a jump is larger than its bounds say.
    pub fn check(&self) -> Result<()> {
        self.ensure_none_wrong()?;
        ensure_decided(self.undecided, self.records)?;
        for change in &self.changes {
            let tolerance = change.first.truth.tolerance() + change.last.truth.tolerance();
            ensure!(
                change.jump().abs() <= change.allowed() + tolerance,
                "a jump larger than its bounds say: {change:?}"
            );
        }
        Ok(())
    }
}

/// Fails if of too many records it cannot be told whether they are right.
pub fn ensure_decided(undecided: u64, records: u64) -> Result<()> {
    ensure!(undecided as f64 <= records as f64 * UNDECIDED, "of {undecided} of {records} records it cannot be told");
    Ok(())
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{} readings in {} records, {} wrong, {} undecided, {} errors ({} while the page was written), {} revenants, {} backwards, {} changes; \
             largest error {} ns, {:.0} % of its bound; bounds {} to {} ns; truth within {} ns, at worst {} ns",
            self.readings,
            self.records,
            self.wrong,
            self.undecided,
            self.errors,
            self.busy,
            self.revenants,
            self.backwards,
            self.changes.len(),
            self.largest_error,
            self.largest_part * 100.0,
            self.bounds.0,
            self.bounds.1,
            self.tolerance.0,
            self.tolerance.1
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::tests::observed;

    /// Ten readings within 9 ms from this time on, ns, each wrong by so much and with a bound of 10 µs, of a counter that
    /// is 5000 ahead of the time.
    fn record(at: u64, error: i64) -> Record {
        let point = |time: u64| Point { counter: time + 5000, time: time.wrapping_add_signed(error), bound: 10_000 };
        Record {
            kind: RecordKind::Synchronized as u64,
            count: 10,
            marker: 7,
            first: point(at),
            last: point(at + 9_000_000),
            line_nanos: 9_000_000,
            lower_nanos: -10_000,
            upper_nanos: 10_000,
            overlap_nanos: -20_000,
            ..Record::default()
        }
    }

    fn judge(records: impl IntoIterator<Item = Record>) -> Verdict {
        let readings = Readings { records: records.into_iter().collect(), observed: observed(1.0) };
        readings.judge(Kind::Pvh).expect("enough to judge by")
    }

    #[test]
    fn readings_inside_their_bounds_are_right() {
        let verdict = judge((1..100).map(|n| record(n * 1_000_000_000, if n % 2 == 0 { 3000 } else { -3000 })));
        verdict.check().expect("right");
        assert_eq!((verdict.readings, verdict.wrong, verdict.undecided), (990, 0, 0));
    }

    #[test]
    fn one_wrong_reading_among_right_ones_is_found() {
        let mut records: Vec<Record> = (1..100).map(|n| record(n * 1_000_000_000, 0)).collect();
        // One of the ten was 16 µs ahead: too late by more than its bound, though first and last are right.
        records[50].lower_nanos = 6_000;
        let verdict = judge(records);
        assert_eq!((verdict.wrong, verdict.undecided), (1, 0));
        assert!(verdict.check().is_err());
    }

    #[test]
    fn a_wrong_reading_is_found_between_answers_that_agree_on_a_constant() {
        // Halfway between two answers, each a millisecond from the next.
        let wrong = Record { lower_nanos: 6_000, ..record(50_000_500_000, 0) };
        let verdict = judge([wrong]);
        assert_eq!((verdict.wrong, verdict.undecided), (1, 0), "{verdict}");
    }

    #[test]
    fn a_reading_too_near_its_bound_for_the_truth_is_not_called_right() {
        let verdict = judge([record(50_000_000_000, 9_500)]);
        assert_eq!((verdict.wrong, verdict.undecided), (0, 1), "{verdict}");
        assert!(verdict.check().is_err());
    }

    #[test]
    fn readings_of_a_clock_whose_counter_nobody_saw_are_not_called_right() {
        let verdict = judge([record(10_000_000_000, 0), Record { marker: 8, ..record(20_000_000_000, 0) }]);
        assert_eq!((verdict.readings, verdict.wrong, verdict.undecided), (20, 0, 1));
        assert!(verdict.check().is_err());
    }

    #[test]
    fn a_clock_that_was_disrupted_may_not_be_read_again() {
        let disrupted = Record { kind: RecordKind::Unreliable as u64, count: 3, marker: 8, ..Record::default() };
        let verdict = judge([record(10_000_000_000, 0), disrupted, record(20_000_000_000, 0)]);
        assert_eq!((verdict.errors, verdict.revenants), (3, 10));
        assert!(verdict.check().is_err());
    }

    #[test]
    fn time_that_runs_backwards_by_more_than_the_bounds_is_found() {
        let backwards = Record { overlap_nanos: 1, ..record(20_000_000_000, 0) };
        assert_eq!(judge([record(10_000_000_000, 0), backwards]).backwards, 1);
    }
}
