//! The host's counters beside each other, as Dom0 sees them: their rates, what a reading costs, and the steps that Xen's
//! system time makes when Xen recalibrates it. Looks at Xen alone; the daemon need not run.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use xen_backend::counter::read_tsc;
use xen_backend::xen::platform::{Timer, XenpfCounters};
use xen_backend::xen::{HostCounters, SystemTime};

/// Between two looks. A PM timer of 24 bits wraps every 4.7 s.
const PAUSE: Duration = Duration::from_millis(5);
/// Readings whose median is the cost of one.
const READINGS: usize = 200;
/// Looks at either end of which the narrowest counts.
const END: usize = 20;
/// So many widths of samples tell their median well enough.
const KEPT: usize = 4096;
/// System time and its extrapolation are in whole nanoseconds: less than this is no step, ns.
const ROUNDING_NS: f64 = 5.0;

/// What was seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Counters {
    /// How long was looked, s, by Xen's system time.
    pub duration_s: f64,
    /// Why only two counters can be seen, if so.
    pub unpatched: Option<String>,
    /// Each of them.
    pub counters: Vec<CounterReport>,
    /// How Xen's system time changes where Xen recalibrates it; not known on an unpatched Xen.
    pub recalibration: Option<Recalibration>,
}

/// A counter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CounterReport {
    /// As in the configuration of `radclockd`; a timer by its own name.
    pub name: String,
    /// The timer behind it.
    pub timer: Option<String>,
    /// Its nominal rate, Hz, if it has one.
    pub nominal_hz: Option<f64>,
    /// Its rate by Xen's system time, Hz.
    pub rate_hz: f64,
    /// Its rate by Xen's system time less the nominal one, ppm of that.
    pub off_ppm: Option<f64>,
    /// The rate is right to within this, ppm.
    pub uncertainty_ppm: f64,
    /// What a reading from Dom0 takes, ns.
    pub read_ns: f64,
    /// For how long Xen itself reads it, ns.
    pub sample_ns: Option<f64>,
}

/// Steps and changes of rate of Xen's system time against the TSC.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Recalibration {
    /// How many were seen.
    pub count: usize,
    /// Half of the steps were not larger, ns.
    pub median_step_ns: f64,
    /// The largest step, ns.
    pub largest_step_ns: f64,
    /// Half of the changes of rate were not larger, ppm.
    pub median_rate_ppm: f64,
}

/// Looks for this long.
pub fn look(duration: Duration) -> anyhow::Result<Counters> {
    let time = SystemTime::open()?;
    match time.host_counters() {
        Ok(counters) => patched(&time, &counters, duration),
        Err(error) => unpatched(&time, duration, error.to_string()),
    }
}

/// One timer over time, its wraps counted. What is kept of it does not grow with the time.
struct Course {
    timer: Timer,
    name: String,
    /// How many looks there were.
    looks: usize,
    /// The first and the last [`END`] samples, with what was counted until then.
    first: Vec<(XenpfCounters, u64)>,
    last: VecDeque<(XenpfCounters, u64)>,
    widths: Thinned,
}

impl Course {
    /// If the host has this timer.
    fn begin(counters: &HostCounters, timer: Timer) -> Option<Course> {
        Some(Course::from(timer, counters.sample(timer).ok()?))
    }

    fn from(timer: Timer, sample: XenpfCounters) -> Course {
        let (first, last, widths) = (Vec::new(), VecDeque::new(), Thinned::default());
        let mut course = Course { timer, name: sample.name(), looks: 0, first, last, widths };
        course.push(sample, 0);
        course
    }

    fn look(&mut self, counters: &HostCounters) -> anyhow::Result<XenpfCounters> {
        let sample = counters.sample(self.timer).with_context(|| format!("sampling {}", self.name))?;
        self.take(sample);
        Ok(sample)
    }

    fn take(&mut self, sample: XenpfCounters) {
        let (last, counted) = self.last.back().expect("the first");
        let mask = u64::MAX >> (64 - sample.width.clamp(1, 64));
        let counted = counted + (sample.count.wrapping_sub(last.count) & mask);
        self.push(sample, counted);
    }

    fn push(&mut self, sample: XenpfCounters, counted: u64) {
        self.looks += 1;
        self.widths.push(width(&sample));
        if self.first.len() < END {
            self.first.push((sample, counted));
        }
        if self.last.len() == END {
            self.last.pop_front();
        }
        self.last.push_back((sample, counted));
    }

    /// System time in between, ns, and the TSC's rate by it, Hz.
    fn span(&self) -> (f64, f64) {
        let ((first, _), (last, _)) = (self.first[0], self.last[self.last.len() - 1]);
        let nanos = (last.system_time - first.system_time) as f64;
        (nanos, last.tsc.wrapping_sub(first.tsc) as f64 / nanos * 1e9)
    }

    fn report(&self, name: &str, tsc_hz: f64, read_ns: f64) -> CounterReport {
        let end = END.min(self.looks.div_ceil(2));
        let narrowest = |(sample, _): &&(XenpfCounters, u64)| width(sample);
        let (first, counted_first) = self.first[..end].iter().min_by_key(narrowest).expect("a few");
        let (last, counted_last) = self.last.iter().skip(self.last.len() - end).min_by_key(narrowest).expect("a few");
        // The count was read in the middle of its sample, give or take a half.
        let middle = |sample: &XenpfCounters| width(sample) as f64 / 2.0 / tsc_hz;
        let system_time = (last.system_time - first.system_time) as f64 * 1e-9;
        let seconds = system_time + middle(last) - middle(first);
        let nominal = first.frequency as f64;
        let rate = (counted_last - counted_first) as f64 / seconds;
        let mut widths: Vec<f64> = self.widths.kept.iter().map(|&width| width as f64 / tsc_hz * 1e9).collect();
        CounterReport {
            name: name.to_owned(),
            timer: Some(self.name.clone()),
            nominal_hz: Some(nominal),
            rate_hz: rate,
            off_ppm: Some((rate / nominal - 1.0) * 1e6),
            uncertainty_ppm: (middle(first) + middle(last) + 1.0 / nominal + 2e-9) / seconds * 1e6,
            read_ns,
            sample_ns: Some(median(&mut widths)),
        }
    }
}

fn width(sample: &XenpfCounters) -> u64 {
    sample.tsc_end.wrapping_sub(sample.tsc)
}

/// Some of many values, evenly spread over all of them.
#[derive(Default)]
struct Thinned {
    seen: usize,
    /// One of 2^this many is kept.
    halved: u32,
    kept: Vec<u64>,
}

impl Thinned {
    fn push(&mut self, value: u64) {
        if self.seen.is_multiple_of(1 << self.halved) {
            self.kept.push(value);
        }
        self.seen += 1;
        if self.kept.len() == KEPT {
            self.kept = self.kept.iter().copied().step_by(2).collect();
            self.halved += 1;
        }
    }
}

fn patched(time: &SystemTime, counters: &HostCounters, duration: Duration) -> anyhow::Result<Counters> {
    let timers = [Timer::Platform, Timer::Hpet, Timer::AcpiPm];
    let mut courses: Vec<Course> = timers.into_iter().filter_map(|timer| Course::begin(counters, timer)).collect();
    let mut steps = Steps::default();
    let start = Instant::now();
    while start.elapsed() < duration {
        sleep(PAUSE);
        for course in &mut courses {
            let sample = course.look(counters)?;
            if course.timer == Timer::Platform {
                steps.push(&sample);
            }
        }
    }
    let platform = courses.first().context("Xen no longer samples its platform timer")?;
    let (nanos, tsc_hz) = platform.span();
    let mut reports =
        vec![tsc_report(tsc_hz, 2.0 / nanos * 1e6), clocksource_report(cost(tsc_hz, || time.now().map(drop))?)];
    for course in &courses {
        let read_ns = cost(tsc_hz, || counters.sample(course.timer).map(drop))?;
        let name = if course.timer == Timer::Platform { "platform" } else { &course.name };
        reports.push(course.report(name, tsc_hz, read_ns));
    }
    Ok(Counters {
        duration_s: nanos * 1e-9,
        unpatched: None,
        counters: reports,
        recalibration: Some(steps.recalibration()),
    })
}

fn unpatched(time: &SystemTime, duration: Duration, reason: String) -> anyhow::Result<Counters> {
    let bracket = || -> anyhow::Result<(u64, u64, u64)> {
        let mut best = (u64::MAX, 0, 0);
        for _ in 0..END {
            let low = read_tsc();
            let now = time.now()?;
            let width = read_tsc().since(low).max(0).unsigned_abs();
            best = best.min((width, low.0 + width / 2, now));
        }
        Ok(best)
    };
    let first = bracket()?;
    sleep(duration);
    let last = bracket()?;
    let nanos = (last.2 - first.2) as f64;
    let counts = last.1.wrapping_sub(first.1) as f64;
    let tsc_hz = counts / nanos * 1e9;
    let uncertainty = (first.0 + last.0) as f64 / 2.0 / counts * 1e6;
    Ok(Counters {
        duration_s: nanos * 1e-9,
        unpatched: Some(reason),
        counters: vec![tsc_report(tsc_hz, uncertainty), clocksource_report(cost(tsc_hz, || time.now().map(drop))?)],
        recalibration: None,
    })
}

fn tsc_report(rate_hz: f64, uncertainty_ppm: f64) -> CounterReport {
    let read_ns = cost(rate_hz, || {
        read_tsc();
        Ok(())
    });
    CounterReport {
        name: "tsc".to_owned(),
        timer: None,
        nominal_hz: None,
        rate_hz,
        off_ppm: None,
        uncertainty_ppm,
        read_ns: read_ns.unwrap_or_default(),
        sample_ns: None,
    }
}

fn clocksource_report(read_ns: f64) -> CounterReport {
    CounterReport {
        name: "xen-clocksource".to_owned(),
        timer: None,
        nominal_hz: Some(1e9),
        rate_hz: 1e9,
        off_ppm: Some(0.0),
        uncertainty_ppm: 0.0,
        read_ns,
        sample_ns: None,
    }
}

/// What `read` takes, ns: the median, less what reading the TSC around it takes at least.
fn cost(tsc_hz: f64, mut read: impl FnMut() -> std::io::Result<()>) -> anyhow::Result<f64> {
    let mut widths = Vec::new();
    for _ in 0..READINGS {
        let low = read_tsc();
        read()?;
        widths.push(read_tsc().since(low) as f64 / tsc_hz * 1e9);
    }
    Ok(median(&mut widths))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Where the line from the TSC to system time bends or steps, by each CPU's samples.
#[derive(Default)]
struct Steps {
    /// The TSC and system time of the first sample.
    origin: Option<(u64, u64)>,
    cpus: BTreeMap<u32, Lines>,
}

impl Steps {
    fn push(&mut self, sample: &XenpfCounters) {
        let (tsc, system_time) = *self.origin.get_or_insert((sample.tsc, sample.system_time));
        let point = (sample.tsc.wrapping_sub(tsc) as f64, sample.system_time.wrapping_sub(system_time) as f64);
        self.cpus.entry(sample.cpu).or_default().push(point);
    }

    /// On the CPU that was seen most often.
    fn recalibration(self) -> Recalibration {
        let Some(mut lines) = self.cpus.into_values().max_by_key(|lines| lines.seen) else {
            return Recalibration::default();
        };
        lines.end();
        let Lines { mut steps, mut rates, .. } = lines;
        Recalibration {
            count: steps.len(),
            largest_step_ns: steps.iter().copied().fold(0.0, f64::max),
            median_step_ns: median(&mut steps),
            median_rate_ppm: median(&mut rates),
        }
    }
}

/// Lines through points, each as long as it predicts the next point, and how those of at least three points follow each
/// other.
#[derive(Default)]
struct Lines {
    seen: usize,
    before: Option<Line>,
    line: Option<Line>,
    /// ns and ppm, one of each where a line follows another.
    steps: Vec<f64>,
    rates: Vec<f64>,
}

#[derive(Clone, Copy)]
struct Line {
    points: usize,
    first: (f64, f64),
    last: (f64, f64),
}

impl Lines {
    fn push(&mut self, point: (f64, f64)) {
        self.seen += 1;
        match &mut self.line {
            Some(line) if line.points < 2 || (line.at(point.0) - point.1).abs() <= ROUNDING_NS => {
                line.points += 1;
                line.last = point;
            }
            _ => {
                self.end();
                self.line = Some(Line { points: 1, first: point, last: point });
            }
        }
    }

    fn end(&mut self) {
        let Some(line) = self.line.take() else { return };
        if let Some(before) = self.before.replace(line)
            && before.points >= 3
            && line.points >= 3
        {
            let between = (before.last.0 + line.first.0) / 2.0;
            self.steps.push((line.at(between) - before.at(between)).abs());
            self.rates.push((line.slope() / before.slope() - 1.0).abs() * 1e6);
        }
    }
}

impl Line {
    fn slope(&self) -> f64 {
        (self.last.1 - self.first.1) / (self.last.0 - self.first.0)
    }

    fn at(&self, x: f64) -> f64 {
        self.first.1 + (x - self.first.0) * self.slope()
    }
}

/// A table, and the steps below it.
pub fn table(counters: &Counters) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "COUNTER",
        "NOMINAL Hz",
        "RATE Hz",
        "OFF ppm",
        "± ppm",
        "READ ns",
        "SAMPLE ns",
    ]);
    for column in 1..7 {
        table.column_mut(column).expect("there are seven").set_cell_alignment(CellAlignment::Right);
    }
    let optional =
        |value: Option<f64>, digits| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"));
    for counter in &counters.counters {
        let name = match &counter.timer {
            Some(timer) if *timer != counter.name => format!("{} ({timer})", counter.name),
            _ => counter.name.clone(),
        };
        table.add_row([
            name,
            optional(counter.nominal_hz, 0),
            format!("{:.1}", counter.rate_hz),
            optional(counter.off_ppm, 3),
            format!("{:.3}", counter.uncertainty_ppm),
            format!("{:.0}", counter.read_ns),
            optional(counter.sample_ns, 0),
        ]);
    }
    let mut text: String = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    let _ = match &counters.recalibration {
        Some(Recalibration { count: 0, .. }) => {
            writeln!(text, "xen-clocksource: no step in {:.0} s", counters.duration_s)
        }
        Some(seen) => writeln!(
            text,
            "xen-clocksource: {} recalibrations in {:.0} s; steps of {:.0} ns (median) to {:.0} ns (largest), changes of \
             rate of {:.3} ppm (median)",
            seen.count, counters.duration_s, seen.median_step_ns, seen.largest_step_ns, seen.median_rate_ppm
        ),
        None => writeln!(
            text,
            "This Xen does not sample all counters (see hypervisor-patch/): {}",
            counters.unpatched.as_deref().unwrap_or("unknown")
        ),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(step: f64, rate: f64) -> Vec<XenpfCounters> {
        (0..1000u32)
            .map(|number| {
                // Every 5 ms, recalibrated each second; a 3 GHz TSC.
                let at = f64::from(number) * 5e6;
                let epoch = (at / 1e9).floor();
                let odd = epoch % 2.0;
                let rate = if odd == 1.0 { (at - epoch * 1e9) * rate * 1e-6 } else { 0.0 };
                XenpfCounters {
                    tsc: (at * 3.0) as u64 + 77,
                    tsc_end: (at * 3.0) as u64 + 3077,
                    system_time: (at + epoch * step + rate) as u64 + 5,
                    count: (at as u64 * 14_318_180 / 1_000_000_000 + 0xffff_0000) & 0xffff_ffff,
                    frequency: 14_318_180,
                    width: 32,
                    ..XenpfCounters::default()
                }
            })
            .collect()
    }

    #[test]
    fn steps_are_found_where_xen_recalibrates() {
        let recalibration = |samples: &[XenpfCounters]| {
            let mut steps = Steps::default();
            samples.iter().for_each(|sample| steps.push(sample));
            steps.recalibration()
        };
        let seen = recalibration(&samples(250.0, 0.0));
        assert_eq!(seen.count, 4);
        assert!((seen.median_step_ns - 250.0).abs() < 4.0 && (seen.largest_step_ns - 250.0).abs() < 4.0, "{seen:?}");
        assert_eq!(recalibration(&samples(0.0, 0.0)).count, 0);
    }

    #[test]
    fn a_timer_that_wraps_has_its_rate() {
        let samples = samples(0.0, 0.0);
        let mut course = Course::from(Timer::Hpet, samples[0]);
        samples[1..].iter().for_each(|sample| course.take(*sample));
        let report = course.report("hpet", 3e9, 1000.0);
        assert!(report.off_ppm.expect("a nominal rate").abs() < report.uncertainty_ppm, "{report:?}");
        assert!(report.uncertainty_ppm < 1.0 && report.sample_ns == Some(1000.0));
    }

    #[test]
    fn an_hour_takes_no_more_memory_than_a_minute() {
        let mut course = Course::from(Timer::Platform, XenpfCounters::default());
        for number in 1..720_000 {
            course.take(XenpfCounters { tsc: number, tsc_end: 2 * number, ..XenpfCounters::default() });
        }
        assert_eq!((course.first.len(), course.last.len()), (END, END));
        let kept = &course.widths.kept;
        assert!((KEPT / 2..KEPT).contains(&kept.len()), "{}", kept.len());
        // Of all of the time alike.
        assert!(kept[kept.len() / 2].abs_diff(360_000) < 1000, "{}", kept[kept.len() / 2]);
    }

    #[test]
    fn the_table_names_each_counter_and_what_cannot_be_seen() {
        let counters = Counters {
            duration_s: 10.0,
            unpatched: Some("Function not implemented".to_owned()),
            counters: vec![tsc_report(3e9, 0.01), clocksource_report(900.0)],
            recalibration: None,
        };
        let text = table(&counters);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("tsc") && lines[2].contains("xen-clocksource"), "{text}");
        assert!(lines[3].contains("hypervisor-patch/") && lines[3].ends_with("Function not implemented"), "{text}");
    }
}
