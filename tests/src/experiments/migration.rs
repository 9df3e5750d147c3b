//! What a live migration does to a guest's time: by our clock, by the system's clock that `radclock discipline` keeps, and
//! by those that Debian's time daemons keep.
//!
//! Four equal guests, one for each subject, move from one host to the other. Each writes its readings down with its TSC
//! ([`lab_agent::records`]); what the TSC was on the build machine at the same time, and so the true time, is worked out
//! afterwards ([`Timeline`], [`truth`]).

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab_agent::samples::Sample;
use serde::Serialize;

use super::Options;
use crate::daemons::{Daemon, SERVERS};
use crate::guest::{Guest, Kind};
use crate::host::{Host, Pair};
use crate::payload::Parts;
use crate::plot::{Axis, Mark, Plot, Scale, Series};
use crate::progress::Step;
use crate::report::{Report, Table};
use crate::timeline::Timeline;
use crate::{Lab, truth, wait};

/// Between two readings of a guest, ms.
const PERIOD: u64 = 25;
/// Times in s.
#[derive(Clone, Copy)]
struct Schedule {
    /// How long the time daemons get to find the time after they were started.
    warm_up: u64,
    /// How long is recorded before the first migration.
    before: u64,
    /// How long after the last one.
    after: u64,
}

const SCHEDULE: Schedule = Schedule { warm_up: 90, before: 600, after: 600 };
/// The daemons have found the time by then; how long chronyd and ntpd take after a migration is not seen to its end.
const SCHEDULE_QUICK: Schedule = Schedule { warm_up: 30, before: 20, after: 60 };
/// Errors below these are asked for, ns.
const SETTLED: [(&str, f64); 3] = [("100 µs", 1e5), ("1 ms", 1e6), ("10 ms", 1e7)];
const LIMIT: Duration = Duration::from_secs(120);
/// A mark of the build machine's time is the narrowest of so many brackets.
const MARK: usize = 200;

/// Whose time is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Radclock,
    Discipline,
    Chronyd,
    Ntpd,
}

impl Subject {
    const ALL: [Subject; 4] = [Subject::Radclock, Subject::Discipline, Subject::Chronyd, Subject::Ntpd];

    fn name(self) -> &'static str {
        match self {
            Subject::Radclock => "radclock",
            Subject::Discipline => "discipline",
            Subject::Chronyd => "chronyd",
            Subject::Ntpd => "ntpd",
        }
    }

    fn daemon(self) -> Option<Daemon> {
        match self {
            Subject::Chronyd => Some(Daemon::Chronyd),
            Subject::Ntpd => Some(Daemon::Ntpd),
            Subject::Radclock | Subject::Discipline => None,
        }
    }

    /// What keeps time in the guest. Our clock needs nothing there.
    fn command(self) -> Option<&'static str> {
        match self {
            Subject::Radclock => None,
            Subject::Discipline => Some("radclock discipline"),
            Subject::Chronyd | Subject::Ntpd => self.daemon().map(Daemon::command),
        }
    }

    /// Which clock is read.
    fn clock(self) -> &'static str {
        if self == Subject::Radclock { "shared" } else { "system" }
    }
}

/// A subject's figures. Times are true time.
#[derive(Debug, Serialize)]
struct Figures {
    /// Readings that gave a time.
    readings: usize,
    /// Readings whose error was beyond their bound for certain. A system's clock has the kernel's `maxerror` for a bound.
    outside_bound: usize,
    /// The largest error of all, ns.
    max_abs_error_ns: u64,
    /// The largest error before the migration, ns.
    max_abs_error_before_ns: u64,
    /// How long the guest ran on the new host before its clock could be read, ms.
    unavailable_ms: f64,
    /// How long no reading was taken, because the guest did not run, ms.
    standstill_ms: f64,
    /// From the guest's first instant on the new host until the error is below 100 µs for good, s; null if it never is.
    settle_100us_s: Option<f64>,
    /// The same for 1 ms.
    settle_1ms_s: Option<f64>,
    /// The same for 10 ms.
    settle_10ms_s: Option<f64>,
    /// True errors are known to within this, ns.
    uncertainty_ns: u64,
}

#[derive(Debug, Serialize)]
struct Results {
    radclock: Figures,
    chronyd: Figures,
    ntpd: Figures,
    discipline: Figures,
    /// How long was recorded before the first migration, and after the last one, s.
    before_s: u64,
    after_s: u64,
}

/// A reading with what is true.
#[derive(Clone, Copy, Debug)]
struct Point {
    /// True time since the guest's first instant on the new host, s.
    at: f64,
    /// The clock's error and its bound, ns; nothing if it could not be read.
    reading: Option<(f64, f64)>,
    /// How far off `at` and the error may be, ns.
    uncertainty: f64,
}

/// One subject's guest.
struct Run<'pair> {
    subject: Subject,
    guest: Guest<'pair>,
    /// What its TSC is more than the build machine's, on either host.
    offsets: Vec<Offset>,
}

#[derive(Clone, Copy, Debug)]
struct Offset {
    counts: i64,
    room: i64,
}

pub fn run(options: &Options) -> Result<Report> {
    let schedule = if options.quick { SCHEDULE_QUICK } else { SCHEDULE };
    let lab = Lab::prepare(Parts::All)?;
    let pair = lab.boot_pair()?;
    prepare_hosts(&pair)?;
    let mut timeline = Timeline::default();
    let mut runs = Vec::new();
    for (number, subject) in Subject::ALL.into_iter().enumerate() {
        let guest = create_guest(&pair.first, subject, number)?;
        runs.push(Run { subject, guest, offsets: vec![] });
    }
    for run in &runs {
        start_keeping_time(run)?;
    }
    pass(&mut timeline, "Letting the time daemons find the time", schedule.warm_up)?;
    for run in &mut runs {
        run.measure_offset()?;
        run.guest.run(&format!(
            "setsid lab-record write {} /run/record {PERIOD} < /dev/null > /run/record.log 2>&1 &",
            run.subject.clock()
        ))?;
    }
    pass(&mut timeline, "Recording before the migration", schedule.before)?;
    for run in &mut runs {
        let step = Step::begin(format!("Migrating the guest of {}", run.subject.name()));
        timeline.mark(MARK);
        run.guest.migrate(&pair.second)?;
        timeline.mark(MARK);
        step.done();
    }
    pass(&mut timeline, "Recording after the migration", schedule.after)?;
    let mut records = Vec::new();
    for (number, run) in runs.iter_mut().enumerate() {
        records.push(run.fetch(number)?);
        run.measure_offset()?;
        timeline.mark(MARK);
    }
    timeline.drop_disturbed();
    let points =
        runs.iter().zip(&records).map(|(run, records)| Ok((run.subject, evaluate(records, &run.offsets, &timeline)?)));
    let points = points.collect::<Result<Vec<_>>>()?;
    report(&points, schedule)
}

/// Both hosts have our clock and, as real hosts have, a right system clock, from which Xen gives resumed guests their time
/// of day.
fn prepare_hosts(pair: &Pair) -> Result<()> {
    for host in pair.hosts() {
        host.start_radclockd()?;
    }
    for host in pair.hosts() {
        host.await_synchronized()?;
        host.run("setsid radclock discipline < /dev/null > /var/log/discipline.log 2>&1 &")?;
        wait::until("Dom0's system clock", LIMIT, || {
            let log = host.run("cat /var/log/discipline.log")?;
            Ok(log.contains("following the shared clock").then_some(()))
        })?;
    }
    pair.first.serve_guests()
}

/// It boots while this returns.
fn create_guest(host: &Host, subject: Subject, number: usize) -> Result<Guest<'_>> {
    match subject.daemon() {
        Some(daemon) => daemon.install(host)?,
        None => drop(host.run("rm -rf /guest")?),
    }
    host.create_with_network(subject.name(), Kind::Pvh, &format!("10.9.0.{}", 11 + number))
}

fn start_keeping_time(Run { subject, guest, .. }: &Run) -> Result<()> {
    guest.await_synchronized()?;
    guest.run("route add default gw 10.9.0.1")?;
    if let Some(command) = subject.command() {
        guest.run(&format!("setsid {command} < /dev/null > /run/daemon.log 2>&1 &"))?;
    }
    Ok(())
}

impl Run<'_> {
    fn measure_offset(&mut self) -> Result<()> {
        let name = self.subject.name();
        let truth = truth::measure(self.guest.host(), Duration::from_secs(1), |probe| self.guest.expression(probe))?;
        let room = truth.constant_offset_room;
        ensure!(room >= 0, "the TSC of {name}'s guest is not the build machine's plus a constant");
        self.offsets.push(Offset { counts: truth.counter_offset, room });
        Ok(())
    }

    /// Ends the recording and gives what was recorded.
    fn fetch(&self, number: usize) -> Result<Vec<Sample>> {
        let host = self.guest.host();
        let (port, file) = (9000 + number, format!("/run/record-{}", self.subject.name()));
        // Over the network: a console is too slow for so much.
        host.run(&format!(
            "setsid socat -u TCP-LISTEN:{port},bind=10.9.0.2 CREATE:{file} < /dev/null > /dev/null 2>&1 &"
        ))?;
        let send = format!("kill $(pidof lab-record); nc 10.9.0.2 {port} < /run/record && wc -c < /run/record");
        let said = self.guest.run(&send)?;
        let size: usize = said.trim().parse().with_context(|| said.clone())?;
        let text = wait::until("the records", LIMIT, || {
            let text = host.run(&format!("cat {file}"))?;
            Ok((text.len() >= size).then_some(text))
        })?;
        // The last line may have been cut off.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(str::parse).collect()
    }
}

/// Lets time pass, s, and marks it.
fn pass(timeline: &mut Timeline, what: &str, seconds: u64) -> Result<()> {
    let step = Step::begin(what);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(seconds) {
        wait::check()?;
        timeline.mark(MARK);
        step.detail(&format!("{} of {seconds} s", start.elapsed().as_secs()));
        thread::sleep(Duration::from_secs(1));
    }
    step.done();
    Ok(())
}

fn evaluate(records: &[Sample], offsets: &[Offset], timeline: &Timeline) -> Result<Vec<Point>> {
    let [old, new] = offsets else { anyhow::bail!("a TSC's offset was not measured") };
    let first_marker = records.first().context("nothing was recorded")?.disruption_marker;
    let moved = |record: &Sample| record.disruption_marker != first_marker;
    ensure!(records.iter().any(moved), "the guest did not notice that it was migrated");
    let rate = timeline.nanos_per_count().context("the time was not marked")?;
    let place = |record: &Sample| {
        let offset = if moved(record) { new } else { old };
        let (time, uncertainty) =
            timeline.at(record.tsc.wrapping_add_signed(-offset.counts)).context("the time was not marked")?;
        anyhow::Ok((time, (offset.room as f64 / 2.0 + record.half_width as f64) * rate + uncertainty as f64))
    };
    let arrival = records.iter().find(|record| moved(record)).context("no arrival")?;
    let (arrived, _) = place(arrival)?;
    let point = |record: &Sample| {
        let (time, uncertainty) = place(record)?;
        let error = |read: u64| read.wrapping_sub(time as u64).cast_signed() as f64;
        let reading = record.reading.map(|(read, bound)| (error(read), bound as f64));
        Ok(Point { at: (time - arrived) as f64 * 1e-9, reading, uncertainty })
    };
    records.iter().map(point).collect()
}

fn figures(points: &[Point]) -> Figures {
    let readings = || points.iter().filter_map(|point| Some((point, point.reading?)));
    let largest = |after: bool| {
        let errors = readings().filter(|(point, _)| after || point.at < 0.0).map(|(_, (error, _))| error.abs());
        errors.fold(0.0, f64::max) as u64
    };
    let outside = |(point, (error, bound)): &(&Point, (f64, f64))| error.abs() - point.uncertainty > *bound;
    let arrived = readings().find(|(point, _)| point.at >= 0.0).map(|(point, _)| point.at);
    let departed = points.iter().rev().find(|point| point.at < 0.0).map_or(0.0, |point| point.at);
    let settle = |limit: f64| {
        let last_bad = points.iter().rposition(|point| point.reading.is_none_or(|(error, _)| error.abs() >= limit));
        match last_bad {
            None => Some(0.0),
            Some(last) if last + 1 == points.len() => None,
            Some(last) => Some(points[last + 1].at.max(0.0)),
        }
    };
    Figures {
        readings: readings().count(),
        outside_bound: readings().filter(outside).count(),
        max_abs_error_ns: largest(true),
        max_abs_error_before_ns: largest(false),
        unavailable_ms: arrived.map_or(f64::INFINITY, |at| at * 1e3),
        standstill_ms: -departed * 1e3,
        settle_100us_s: settle(SETTLED[0].1),
        settle_1ms_s: settle(SETTLED[1].1),
        settle_10ms_s: settle(SETTLED[2].1),
        uncertainty_ns: points.iter().map(|point| point.uncertainty).fold(0.0, f64::max) as u64,
    }
}

fn report(points: &[(Subject, Vec<Point>)], schedule: Schedule) -> Result<Report> {
    let Schedule { warm_up, before, after } = schedule;
    let of = |subject: Subject| {
        let found = points.iter().find(|(other, _)| *other == subject).map(|(_, points)| figures(points));
        found.context("a subject was left out")
    };
    let results = Results {
        radclock: of(Subject::Radclock)?,
        chronyd: of(Subject::Chronyd)?,
        ntpd: of(Subject::Ntpd)?,
        discipline: of(Subject::Discipline)?,
        before_s: before,
        after_s: after,
    };
    let mut report = Report::new("What a live migration does to a guest's time", &results)?;
    report.text(&format!(
        "Four equal PVH guests on two Xen hosts in emulation, moved live from the one to the other, one after another. \
         The platform timer of the second host runs 40 ppm faster. `radclock`: readings of the shared clock. \
         `discipline`: the system's clock with `radclock discipline`. `chronyd` and `ntpd` (NTPsec): the system's clock \
         with Debian's packages and their configuration, but with {} servers at fixed addresses in place of the pool, all \
         of them the lab's NTP server through the network of the first host, started {warm_up} s before the record begins. \
         Recorded from {before} s before the first migration until {after} s after the last, {} readings a second each.",
        SERVERS.len(),
        1000 / PERIOD
    ));
    report.text(
        "Each reading is held against the build machine's clock, which is also what the NTP server serves. Times count \
         from the guest's first instant on the new host. The bound of a system's clock is the kernel's `maxerror`.",
    );
    let subjects = [
        (Subject::Radclock, &results.radclock),
        (Subject::Discipline, &results.discipline),
        (Subject::Chronyd, &results.chronyd),
        (Subject::Ntpd, &results.ntpd),
    ];
    let mut table = Table::new(
        ["subject", "largest error before", "largest error at all"]
            .map(str::to_owned)
            .into_iter()
            .chain(SETTLED.map(|(name, _)| format!("below {name} after")))
            .chain(["outside of its bound", "no time after arrival"].map(str::to_owned)),
    );
    for (subject, figures) in &subjects {
        let settled = |at: Option<f64>| at.map_or_else(|| format!("not within {after} s"), |at| format!("{at:.1} s"));
        table.row([
            subject.name().to_owned(),
            error_in_words(figures.max_abs_error_before_ns),
            error_in_words(figures.max_abs_error_ns),
            settled(figures.settle_100us_s),
            settled(figures.settle_1ms_s),
            settled(figures.settle_10ms_s),
            format!("{} of {}", figures.outside_bound, figures.readings),
            format!("{:.1} ms", figures.unavailable_ms),
        ]);
    }
    report.table(&table);
    report.plot("migration", error_over_time(points, after as f64));
    report.text("The same after the arrival, both axes logarithmic: how long each takes to be right again.");
    report.plot("settling", error_after_arrival(points));
    Ok(report)
}

fn error_in_words(nanos: u64) -> String {
    let nanos = nanos as f64;
    match nanos {
        n if n < 1e6 => format!("{:.0} µs", n / 1e3),
        n if n < 1e9 => format!("{:.1} ms", n / 1e6),
        n => format!("{:.2} s", n / 1e9),
    }
}

fn series(points: &[(Subject, Vec<Point>)], select: impl Fn(&Point) -> Option<(f64, f64)>) -> Vec<Series> {
    let draw = |(colour, (subject, points)): (usize, &(Subject, Vec<Point>))| {
        let half = |after: bool| points.iter().filter(move |point| (point.at >= 0.0) == after).filter_map(&select);
        // A gap where the guest did not run.
        let points = half(false).chain([(0.0, f64::NAN)]).chain(half(true)).collect();
        Series { label: subject.name().to_owned(), mark: Mark::Line, colour, points }
    };
    // Ours are drawn last, over the others.
    let mut all: Vec<Series> = points.iter().enumerate().map(draw).collect();
    all.reverse();
    all
}

fn error_over_time(points: &[(Subject, Vec<Point>)], around: f64) -> Plot {
    let select = |point: &Point| {
        (point.at.abs() <= around).then_some((point.at, point.reading.map_or(f64::NAN, |(error, _)| error / 1e3)))
    };
    Plot {
        title: "Error of a guest's time around a live migration".to_owned(),
        x: Axis::new("true time since the arrival on the new host, s", Scale::Linear),
        y: Axis::new("error, µs", Scale::SymLog(10.0)),
        series: series(points, select),
    }
}

fn error_after_arrival(points: &[(Subject, Vec<Point>)]) -> Plot {
    let select = |point: &Point| {
        let error = point.reading.map_or(f64::NAN, |(error, _)| error.abs() / 1e3);
        // The first reading is at zero, which a logarithmic axis does not have.
        (point.at >= 0.0).then_some((point.at.max(0.01), error))
    };
    Plot {
        title: "How wrong a guest's time is after a live migration".to_owned(),
        x: Axis::new("true time since the arrival on the new host, s", Scale::Log),
        y: Axis::new("absolute error, µs", Scale::Log).within(1.0, 1e5),
        series: series(points, select),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::Mark;

    /// A clock that is wrong by `error` (of the time since arrival, s), read once a second from 10 s before to 100 s after.
    fn points(error: impl Fn(f64) -> Option<f64>) -> Vec<Point> {
        let at = |second: i32| f64::from(second);
        let point = |second| Point {
            at: at(second),
            reading: error(at(second)).map(|error| (error, 5e5)),
            uncertainty: 1000.0,
        };
        (-10..100).map(point).collect()
    }

    #[test]
    fn figures_say_how_long_it_took_to_be_right_for_good() {
        let points = points(|at| match at {
            at if at < 0.0 => Some(2000.0),
            at if at < 3.0 => None,
            at if at < 20.0 => Some(-7e6),
            at if at < 30.0 => Some(5e5 + 900.0),
            _ => Some(50.0),
        });
        let figures = figures(&points);
        assert_eq!((figures.readings, figures.outside_bound), (107, 17));
        assert_eq!((figures.max_abs_error_before_ns, figures.max_abs_error_ns), (2000, 7_000_000));
        assert_eq!((figures.unavailable_ms, figures.standstill_ms), (3000.0, 1000.0));
        let settled = (figures.settle_100us_s, figures.settle_1ms_s, figures.settle_10ms_s);
        assert_eq!(settled, (Some(30.0), Some(20.0), Some(3.0)));
    }

    #[test]
    fn a_clock_that_never_settles_has_no_time_for_it() {
        let figures = figures(&points(|_| Some(2e5)));
        assert_eq!((figures.settle_100us_s, figures.settle_1ms_s), (None, Some(0.0)));
    }

    #[test]
    fn errors_are_found_whatever_the_tsc_is_on_either_host() {
        // A build machine with 2 counts a nanosecond.
        let mark = |second: u64| Mark::exact(second * 2_000_000_000, 5_000_000_000 + second as i64 * 1_000_000_000);
        let timeline = Timeline::from_iter((0..100).map(mark));
        let offsets = [Offset { counts: 7_000, room: 200 }, Offset { counts: -900_000_000_000, room: 200 }];
        let record = |second: u64, marker: u64, error: i64| Sample {
            tsc: (second * 2_000_000_000).wrapping_add_signed(offsets[marker as usize].counts),
            half_width: 0,
            disruption_marker: marker,
            reading: Some(((5_000_000_000 + second * 1_000_000_000).wrapping_add_signed(error), 1000)),
        };
        let records = [record(10, 0, 40), record(20, 0, -30), record(30, 1, 500), record(31, 1, -2)];
        let points = evaluate(&records, &offsets, &timeline).expect("points");
        let errors: Vec<f64> = points.iter().map(|point| point.reading.expect("a reading").0).collect();
        assert_eq!(errors, [40.0, -30.0, 500.0, -2.0]);
        assert_eq!(points.iter().map(|point| point.at).collect::<Vec<_>>(), [-20.0, -10.0, 0.0, 1.0]);
        assert!(points.iter().all(|point| point.uncertainty == 50.0));
    }
}
