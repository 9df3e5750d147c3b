//! The host's counters as clocks: independent RADclocks in one Dom0 on the same exchanges, over the platform timer, Xen's
//! system time and the TSC, idle and under load, and what the ways of stamping packets do to them. On the patched Xen,
//! the only one that shows all counters.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab_agent::clocks::{CLOCKS, Exchange, Line, Sample};
use serde::Serialize;
use simulator::score::percentile;

use super::Options;
use crate::command::{self, Background};
use crate::host::Host;
use crate::payload::Parts;
use crate::plot::{Axis, Mark, Plot, Scale, Series, distribution};
use crate::progress::Step;
use crate::report::{Report, Table, figure};
use crate::timeline::Timeline;
use crate::truth::{self, Truth};
use crate::{Lab, wait};

/// All clocks find their counter's rate.
const SETTLING: Duration = Duration::from_secs(90);
const SETTLING_QUICK: Duration = Duration::from_secs(40);
/// Of either phase.
const PHASE: Duration = Duration::from_secs(240);
const PHASE_QUICK: Duration = Duration::from_secs(60);
/// Between the phases.
const LOADED: Duration = Duration::from_secs(5);
/// How often the build machine's time is marked, and with how many brackets.
const EVERY: Duration = Duration::from_millis(250);
const MARK: usize = 200;
const TRUTH: Duration = Duration::from_secs(5);
const COUNTERS: &str = "radclock-ctl counters --json --seconds 10";
const END_LIMIT: Duration = Duration::from_secs(120);
/// Two processes that compute and one that writes, for as long as its folder is there.
const LOAD: &str = "mkdir /run/load; for n in 1 2; do (while test -d /run/load; do for i in $(seq 10000); do :; done; done) & \
                    done; (while test -d /run/load; do dd if=/dev/urandom of=/run/load/data bs=1M count=8; done) &";
/// Clocks by the kernel's stamps.
const BY_KERNEL: [usize; 3] = [2, 0, 1];
/// What is set against each other.
const PAIRS: [(usize, usize); 3] = [(2, 0), (1, 0), (2, 1)];
/// The part of the idle phase that is shown close, s.
const CLOSE: f64 = 20.0;

#[derive(Serialize)]
struct Results {
    /// The platform timer.
    timer: String,
    /// What `radclock-ctl counters` says, idle.
    counters: serde_json::Value,
    settling_s: u64,
    /// True errors are within this of those measured, ns.
    uncertainty_ns: f64,
    phases: Vec<Phase>,
}

#[derive(Serialize)]
struct Phase {
    name: &'static str,
    duration_s: u64,
    /// Of each clock.
    errors: Vec<(&'static str, Spread)>,
    /// How often the error was within the bound that the clock claimed, for each clock.
    inside: Vec<f64>,
    /// Clock less clock.
    differences: Vec<(String, Spread)>,
    /// Medians of what bracketing adds to a stamp, ns, for each of the first four clocks.
    bracket_ns: [f64; 4],
    rtt: Spread,
    /// How much earlier than the kernel user space stamps a request.
    send: Spread,
    /// How much later than the kernel user space stamps a reply.
    receive: Spread,
    /// How far user space's two stamps move the offset: half of the difference of the two.
    shift: Spread,
}

/// Where values lie, µs.
#[derive(Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    /// Between the quartiles.
    iqr: f64,
    p1: f64,
    p99: f64,
    /// The largest, whatever its sign.
    largest: f64,
    count: usize,
}

impl Spread {
    fn of_nanos(values: impl IntoIterator<Item = f64>) -> Result<Spread> {
        let mut values: Vec<f64> = values.into_iter().map(|nanos| nanos / 1e3).collect();
        values.sort_by(f64::total_cmp);
        let (Some(first), Some(last)) = (values.first(), values.last()) else { anyhow::bail!("no values") };
        Ok(Spread {
            median: percentile(&values, 0.5),
            iqr: percentile(&values, 0.75) - percentile(&values, 0.25),
            p1: percentile(&values, 0.01),
            p99: percentile(&values, 0.99),
            largest: first.abs().max(last.abs()),
            count: values.len(),
        })
    }

    fn cells(&self) -> [String; 5] {
        [self.median, self.iqr, self.p1, self.p99, self.largest].map(figure)
    }
}

/// What was seen, and when: in seconds since the beginning.
struct Seen {
    /// With the true time, ns since 1970.
    samples: Vec<(f64, Sample, i64)>,
    exchanges: Vec<(f64, Exchange)>,
    uncertainty_ns: f64,
    /// Of the TSC.
    nanos_per_count: f64,
}

/// Runs it.
pub fn run(options: &Options) -> Result<Report> {
    let lab = Lab::prepare(Parts::All)?;
    let host = lab.boot_patched()?;
    let step = Step::begin("Looking at the counters");
    let counters: serde_json::Value = serde_json::from_str(&host.run(COUNTERS)?)?;
    step.done();
    let before = offset(&host)?;
    host.stop_radclockd("TERM")?;
    let (settling, phase) = if options.quick { (SETTLING_QUICK, PHASE_QUICK) } else { (SETTLING, PHASE) };
    let output = lab.run.path().join("clocks");
    let mut timeline = watch(&host, &output, settling, phase)?;
    // What radclockd has left can still be read.
    let after = truth::measure(&host, TRUTH, |probe| Ok(host.expression(probe)))?;
    timeline.drop_disturbed();
    let seen = Seen::read(&output, &timeline, &[before, after])?;
    report(&seen, counters, settling, phase)
}

/// Dom0's TSC against the build machine's.
fn offset(host: &Host) -> Result<Truth> {
    host.start_radclockd()?;
    host.await_synchronized()?;
    let step = Step::begin("Measuring Dom0's TSC against this machine's");
    let truth = truth::measure(host, TRUTH, |probe| Ok(host.expression(probe)))?;
    step.done();
    Ok(truth)
}

/// Runs the clocks; gives the build machine's time meanwhile.
fn watch(host: &Host, output: &Path, settling: Duration, phase: Duration) -> Result<Timeline> {
    let step = Step::begin("Running the clocks");
    let whole = settling + 2 * phase;
    let command = format!("nice -n -10 lab-clocks 10.0.2.2:{} {}", host.ntp_port(), whole.as_secs());
    let clocks = Background::start("ssh", &host.expression(&command).stdout_path(output).stderr_capture())?;
    let mut timeline = Timeline::default();
    let mut is_loaded = false;
    let start = Instant::now();
    let ended = loop {
        timeline.mark(MARK);
        if !is_loaded && start.elapsed() >= settling + phase {
            host.run(&format!("({LOAD}) > /dev/null 2>&1"))?;
            is_loaded = true;
        }
        if let Some(ended) = clocks.ended()? {
            break ended;
        }
        ensure!(start.elapsed() < whole + END_LIMIT, "lab-clocks goes on for too long");
        step.detail(&format!("{} of {} s", start.elapsed().as_secs(), whole.as_secs()));
        wait::check()?;
        thread::sleep(EVERY);
    };
    command::success(&command, &ended)?;
    host.run("rm -r /run/load")?;
    step.done();
    Ok(timeline)
}

impl Seen {
    fn read(output: &Path, timeline: &Timeline, offsets: &[Truth]) -> Result<Seen> {
        let offset = offsets.iter().map(|truth| truth.counter_offset).sum::<i64>() / offsets.len() as i64;
        let apart = offsets.iter().map(|truth| (truth.counter_offset - offset).abs()).max().unwrap_or_default();
        let room = offsets.iter().map(|truth| truth.constant_offset_room / 2).max().unwrap_or_default();
        ensure!(room >= 0, "Dom0's TSC is not this machine's plus a constant");
        let rate = timeline.nanos_per_count().context("the time was not marked")?;
        let mut seen = Seen {
            samples: vec![],
            exchanges: vec![],
            uncertainty_ns: (apart + room) as f64 * rate,
            nanos_per_count: rate,
        };
        let mut first = None;
        for line in fs::read_to_string(output)?.lines() {
            match serde_json::from_str(line).with_context(|| line.to_owned())? {
                Line::Sample(sample) => {
                    let tsc = sample.tsc.wrapping_sub(offset.cast_unsigned());
                    let (time, _) = timeline.at(tsc).context("the time was not marked")?;
                    let first = *first.get_or_insert(time);
                    seen.samples.push(((time - first) as f64 * 1e-9, sample, time));
                }
                Line::Exchange(exchange) => {
                    let at = seen.samples.last().map_or(0.0, |(at, ..)| *at);
                    seen.exchanges.push((at, exchange));
                }
            }
        }
        ensure!(!seen.samples.is_empty() && !seen.exchanges.is_empty(), "lab-clocks said nothing");
        Ok(seen)
    }

    /// How long Xen takes to read the platform timer, ns: the median.
    fn reading_ns(&self, from: f64, to: f64) -> f64 {
        let samples = self.samples.iter().filter(|(at, ..)| (from..to).contains(at));
        let mut widths: Vec<f64> = samples.map(|(_, sample, _)| (sample.tsc_end - sample.tsc) as f64).collect();
        widths.sort_by(f64::total_cmp);
        percentile(&widths, 0.5) * self.nanos_per_count
    }

    /// The errors of a clock, ns, with the times.
    fn errors(&self, clock: usize, from: f64, to: f64) -> Vec<(f64, f64)> {
        let error = |(at, sample, time): &(f64, Sample, i64)| {
            let (reading, _) = sample.readings[clock]?;
            Some((*at, reading.wrapping_sub(time.cast_unsigned()).cast_signed() as f64))
        };
        self.samples.iter().filter(|(at, ..)| (from..to).contains(at)).filter_map(error).collect()
    }

    /// How far apart two clocks are, ns, with the times.
    fn differences(&self, (one, other): (usize, usize), from: f64, to: f64) -> Vec<(f64, f64)> {
        let difference = |(at, sample, _): &(f64, Sample, i64)| {
            let (one, other) = (sample.readings[one]?.0, sample.readings[other]?.0);
            Some((*at, one.wrapping_sub(other).cast_signed() as f64))
        };
        self.samples.iter().filter(|(at, ..)| (from..to).contains(at)).filter_map(difference).collect()
    }

    fn phase(&self, name: &'static str, from: f64, to: f64) -> Result<Phase> {
        let values = |points: Vec<(f64, f64)>| points.into_iter().map(|(_, value)| value);
        let inside = |clock: usize| {
            let (mut inside, mut count) = (0.0, 0.0);
            for (_, sample, time) in self.samples.iter().filter(|(at, ..)| (from..to).contains(at)) {
                let Some((reading, bound)) = sample.readings[clock] else { continue };
                let error = reading.wrapping_sub(time.cast_unsigned()).cast_signed() as f64;
                count += 1.0;
                inside += if error.abs() <= bound as f64 + self.uncertainty_ns { 1.0 } else { 0.0 };
            }
            inside / count
        };
        let exchanges: Vec<&Exchange> =
            self.exchanges.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, exchange)| exchange).collect();
        let spread = |value: fn(&Exchange) -> f64| Spread::of_nanos(exchanges.iter().map(|exchange| value(exchange)));
        let errors = (0..CLOCKS.len())
            .map(|clock| Ok((CLOCKS[clock], Spread::of_nanos(values(self.errors(clock, from, to)))?)))
            .collect::<Result<_>>()?;
        let differences = PAIRS
            .iter()
            .map(|&pair| Ok((pair_name(pair), Spread::of_nanos(values(self.differences(pair, from, to)))?)))
            .collect::<Result<_>>()?;
        let mut bracket_ns = [0.0; 4];
        for (clock, median) in bracket_ns.iter_mut().enumerate() {
            let mut widths: Vec<f64> = exchanges.iter().map(|exchange| exchange.bracket_ns[clock]).collect();
            widths.sort_by(f64::total_cmp);
            *median = percentile(&widths, 0.5);
        }
        Ok(Phase {
            name,
            duration_s: (to - from) as u64,
            errors,
            inside: (0..CLOCKS.len()).map(inside).collect(),
            differences,
            bracket_ns,
            rtt: spread(|exchange| exchange.rtt_ns)?,
            send: spread(|exchange| exchange.send_ns)?,
            receive: spread(|exchange| exchange.receive_ns)?,
            shift: spread(|exchange| (exchange.receive_ns - exchange.send_ns) / 2.0)?,
        })
    }
}

fn pair_name((one, other): (usize, usize)) -> String {
    format!("{} - {}", CLOCKS[one], CLOCKS[other])
}

fn report(seen: &Seen, counters: serde_json::Value, settling: Duration, phase: Duration) -> Result<Report> {
    let begin = settling.as_secs_f64();
    let middle = begin + phase.as_secs_f64();
    let end = middle + phase.as_secs_f64();
    let loaded = middle + LOADED.as_secs_f64();
    let phases = vec![seen.phase("idle", begin, middle)?, seen.phase("loaded", loaded, end)?];
    let timer = counters["counters"][2]["timer"].as_str().context("radclock-ctl shows no platform timer")?.to_owned();
    let results =
        Results { timer, counters, settling_s: settling.as_secs(), uncertainty_ns: seen.uncertainty_ns, phases };
    let mut report = Report::new("HPET, Xen Clocksource and TSC as the counter of a clock", &results)?;
    report.text(&format!(
        "One emulated Xen host with our patches for Xen; its platform timer is {}. Seven independent RADclocks in its Dom0 \
         take the same exchanges, one a second with an NTP server on the build machine, and are read {} times a second, all \
         at one instant, for {} min idle and {} min while two processes compute and one writes. The first {} s are not in \
         the figures. True time is the build machine's clock, which the server serves; true errors are within {} µs of \
         those measured; of differences with the platform timer's clock, half of the time that Xen takes to read that timer \
         is uncertain, {} µs (median). By the kernel's stamps, and bracketed with the TSC, unless it says otherwise.",
        results.timer,
        10,
        phase.as_secs() / 60,
        phase.as_secs() / 60,
        settling.as_secs(),
        figure(seen.uncertainty_ns / 1e3),
        figure(seen.reading_ns(begin, end) / 2e3)
    ));
    report.heading("Counters");
    report.table(&counters_table(&results.counters)?);
    let recalibration = &results.counters["recalibration"];
    let of = |name: &str| recalibration[name].as_f64().unwrap_or_default();
    report.text(&format!(
        "In {:.0} s Xen recalibrated {} times: steps of {} ns (median) to {} ns (largest), changes of rate of {} ppm (median).",
        results.counters["duration_s"].as_f64().unwrap_or_default(),
        recalibration["count"],
        figure(of("median_step_ns")),
        figure(of("largest_step_ns")),
        figure(of("median_rate_ppm"))
    ));
    let header = |first: &str| [first, "", "median", "IQR", "1 %", "99 %", "largest"].map(str::to_owned);
    report.heading("Differences of the clocks");
    let mut table = Table::new(header("difference, µs"));
    for phase in &results.phases {
        for (name, spread) in &phase.differences {
            table.row([name.clone(), phase.name.to_owned()].into_iter().chain(spread.cells()));
        }
    }
    report.table(&table);
    let series = |points: Vec<(f64, f64)>| -> Result<Vec<(f64, f64)>> {
        distribution(points.into_iter().map(|(_, nanos)| nanos / 1e3))
    };
    let line = |label: String, mark, colour, points| Series { label, mark, colour, points };
    for (name, from, to) in [("idle", begin, middle), ("loaded", loaded, end)] {
        let lines = PAIRS.iter().enumerate().map(|(colour, &pair)| {
            Ok(line(pair_name(pair), Mark::Line, colour, series(seen.differences(pair, from, to))?))
        });
        report.plot(
            &format!("differences-{name}"),
            Plot {
                title: format!("Differences of clocks on the same exchanges, {name}"),
                x: Axis::new("difference, µs", Scale::SymLog(1.0)),
                y: Axis::new("share of readings that are not larger", Scale::Linear).within(0.0, 1.0),
                series: lines.collect::<Result<_>>()?,
            },
        );
    }
    report.heading("Errors of the clocks");
    let mut table = Table::new(header("error, µs").into_iter().chain(["inside bound".to_owned()]));
    for phase in &results.phases {
        for ((name, spread), inside) in phase.errors.iter().zip(&phase.inside) {
            let cells = [(*name).to_owned(), phase.name.to_owned()].into_iter().chain(spread.cells());
            table.row(cells.chain([format!("{:.2} %", inside * 100.0)]));
        }
    }
    report.table(&table);
    let errors = BY_KERNEL.iter().enumerate().map(|(colour, &clock)| {
        let points = seen.errors(clock, begin, end).into_iter().map(|(at, nanos)| (at / 60.0, nanos / 1e3)).collect();
        line(CLOCKS[clock].to_owned(), Mark::Dots, colour, points)
    });
    report.plot(
        "errors",
        Plot {
            title: format!("Errors of three clocks on the same exchanges; loaded from {:.1} min on", middle / 60.0),
            x: Axis::new("time, min", Scale::Linear),
            y: Axis::new("clock less true time, µs", Scale::Linear),
            series: errors.collect(),
        },
    );
    report.heading("What stamping does");
    let mut table = Table::new(header("µs"));
    for phase in &results.phases {
        for (name, spread) in [
            ("round trip", &phase.rtt),
            ("user space stamps a request earlier by", &phase.send),
            ("user space stamps a reply later by", &phase.receive),
            ("user space moves the offset by", &phase.shift),
        ] {
            table.row([name.to_owned(), phase.name.to_owned()].into_iter().chain(spread.cells()));
        }
    }
    report.table(&table);
    let mut table = Table::new(["what bracketing adds to a stamp, ns (median)", "idle", "loaded"].map(str::to_owned));
    for (clock, name) in CLOCKS.iter().enumerate().take(4) {
        let cells = results.phases.iter().map(|phase| figure(phase.bracket_ns[clock]));
        table.row([(*name).to_owned()].into_iter().chain(cells));
    }
    report.table(&table);
    let kernel_and_user = [(1, "kernel"), (5, "user space")];
    let mut lines = Vec::new();
    for (colour, (clock, name)) in kernel_and_user.into_iter().enumerate() {
        for (mark, from, to, phase) in [(Mark::Line, begin, middle, "idle"), (Mark::Thin, loaded, end, "loaded")] {
            lines.push(line(format!("{name}, {phase}"), mark, colour, series(seen.errors(clock, from, to))?));
        }
    }
    report.plot(
        "stamps",
        Plot {
            title: "Errors by the kernel's stamps and by those of user space (TSC)".to_owned(),
            x: Axis::new("clock less true time, µs", Scale::Linear),
            y: Axis::new("share of readings that are not larger", Scale::Linear).within(0.0, 1.0),
            series: lines,
        },
    );
    report.heading("The counters themselves");
    let phases = Phases::new(&seen.samples, begin, middle)?;
    report.text(
        "Idle, without any clock: how far the platform timer and Xen's system time are from a straight line over the TSC, and \
         how stable each is against the others (Allan deviation).",
    );
    let close = phases.residuals(CLOSE);
    let names = [format!("platform ({})", results.timer), "xen-clocksource".to_owned()];
    report.plot(
        "residuals",
        Plot {
            title: format!("Platform timer and Xen's system time over the TSC, {CLOSE:.0} s"),
            x: Axis::new("time, s", Scale::Linear),
            y: Axis::new("off a straight line, µs", Scale::Linear),
            series: names
                .into_iter()
                .zip(close)
                .zip(0..)
                .map(|((name, points), colour)| line(name, Mark::DottedLine, colour, points))
                .collect(),
        },
    );
    let deviations = [
        (format!("platform ({}) over TSC", results.timer), allan(&phases.platform)),
        ("xen-clocksource over TSC".to_owned(), allan(&phases.system_time)),
        (
            format!("platform ({}) over xen-clocksource", results.timer),
            allan(&phases.platform.iter().zip(&phases.system_time).map(|(one, other)| one - other).collect::<Vec<_>>()),
        ),
    ];
    report.plot(
        "allan",
        Plot {
            title: "Stability of the counters against each other".to_owned(),
            x: Axis::new("averaging time, s", Scale::Log),
            y: Axis::new("Allan deviation", Scale::Log),
            series: deviations
                .into_iter()
                .zip(0..)
                .map(|((name, points), colour)| line(name, Mark::DottedLine, colour, points))
                .collect(),
        },
    );
    Ok(report)
}

fn counters_table(counters: &serde_json::Value) -> Result<Table> {
    let mut table = Table::new(["counter", "rate, Hz", "off nominal, ppm", "±", "a reading, ns", "in Xen, ns"]);
    for counter in counters["counters"].as_array().context("radclock-ctl shows no counters")? {
        let name = counter["name"].as_str().unwrap_or_default();
        let name = match counter["timer"].as_str() {
            Some(timer) if timer != name => format!("{name} ({timer})"),
            _ => name.to_owned(),
        };
        let number = |key: &str| counter[key].as_f64().map_or_else(|| "-".to_owned(), figure);
        let rate = counter["rate_hz"].as_f64().map_or_else(String::new, |rate| format!("{rate:.0}"));
        table.row([name, rate, number("off_ppm"), number("uncertainty_ppm"), number("read_ns"), number("sample_ns")]);
    }
    Ok(table)
}

/// How far counters are ahead of the TSC, s, every [`Phases::INTERVAL`].
struct Phases {
    platform: Vec<f64>,
    system_time: Vec<f64>,
}

impl Phases {
    /// s.
    const INTERVAL: f64 = 0.1;

    fn new(samples: &[(f64, Sample, i64)], from: f64, to: f64) -> Result<Phases> {
        let samples: Vec<&Sample> =
            samples.iter().filter(|(at, ..)| (from..to).contains(at)).map(|(_, sample, _)| sample).collect();
        let [first, .., last] = samples[..] else { anyhow::bail!("too few samples") };
        let hz = (last.tsc - first.tsc) as f64 / (last.system_time - first.system_time) as f64 * 1e9;
        // The timer was read in the middle of the sample.
        let by_platform = |sample: &&Sample| {
            let tsc = (sample.tsc - first.tsc) as f64 + (sample.tsc_end - sample.tsc) as f64 / 2.0;
            (tsc / hz, (sample.count.wrapping_sub(first.count)) as f64 / sample.frequency as f64 - tsc / hz)
        };
        let by_system_time = |sample: &&Sample| {
            let tsc = (sample.tsc - first.tsc) as f64 / hz;
            (tsc, (sample.system_time - first.system_time) as f64 * 1e-9 - tsc)
        };
        Ok(Phases {
            platform: even(&samples.iter().map(by_platform).collect::<Vec<_>>(), Self::INTERVAL),
            system_time: even(&samples.iter().map(by_system_time).collect::<Vec<_>>(), Self::INTERVAL),
        })
    }

    /// Of the platform timer and of system time, for so long from the beginning: s and µs.
    fn residuals(&self, seconds: f64) -> [Vec<(f64, f64)>; 2] {
        [&self.platform, &self.system_time].map(|phases| {
            let count = ((seconds / Self::INTERVAL) as usize).min(phases.len());
            let points: Vec<(f64, f64)> = phases[..count]
                .iter()
                .enumerate()
                .map(|(at, phase)| (at as f64 * Self::INTERVAL, phase * 1e6))
                .collect();
            let (slope, level) = fitted(&points);
            points.into_iter().map(|(at, phase)| (at, phase - level - slope * at)).collect()
        })
    }
}

/// Values at even times, joined by straight lines.
fn even(points: &[(f64, f64)], interval: f64) -> Vec<f64> {
    let mut values = Vec::new();
    for pair in points.windows(2) {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        while x1 > x0 && values.len() as f64 * interval <= x1 {
            let at = values.len() as f64 * interval;
            values.push(y0 + (y1 - y0) * (at - x0) / (x1 - x0));
        }
    }
    values
}

/// The slope and the level of the line with the smallest squares.
fn fitted(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len() as f64;
    let mean = |value: fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let covariance: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let variance: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let slope = if variance > 0.0 { covariance / variance } else { 0.0 };
    (slope, y - slope * x)
}

/// The overlapping Allan deviation of phases that are [`Phases::INTERVAL`] apart, up to a quarter of them.
fn allan(phases: &[f64]) -> Vec<(f64, f64)> {
    let mut deviations = Vec::new();
    let mut step = 1;
    while step <= phases.len() / 4 {
        let tau = step as f64 * Phases::INTERVAL;
        let seconds: Vec<f64> = (0..phases.len() - 2 * step)
            .map(|at| phases[at + 2 * step] - 2.0 * phases[at + step] + phases[at])
            .collect();
        let mean = seconds.iter().map(|second| second * second).sum::<f64>() / seconds.len() as f64;
        deviations.push((tau, (mean / 2.0).sqrt() / tau));
        step = (step * 3).div_ceil(2);
    }
    deviations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_drift_has_no_deviation_and_white_phase_falls_with_time() {
        let drift: Vec<f64> = (0..1000).map(|at| f64::from(at) * 1e-6).collect();
        assert!(allan(&drift).iter().all(|(_, deviation)| *deviation < 1e-15));
        let white: Vec<f64> = (0..4000u32).map(|at| f64::from(at * 7919 % 1009) * 1e-9).collect();
        let deviations = allan(&white);
        let slope = (deviations[6].1 / deviations[0].1).log10() / (deviations[6].0 / deviations[0].0).log10();
        assert!((slope + 1.0).abs() < 0.2, "{slope}");
    }

    #[test]
    fn values_are_joined_and_lines_fitted() {
        assert_eq!(even(&[(0.0, 1.0), (0.15, 2.5), (0.31, 2.5)], 0.1).len(), 4);
        let values = even(&[(0.0, 1.0), (0.2, 3.0)], 0.1);
        assert!((values[1] - 2.0).abs() < 1e-12);
        let (slope, level) = fitted(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]);
        assert!((slope - 2.0).abs() < 1e-12 && (level - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_spread_has_both_tails() {
        let spread = Spread::of_nanos((0..=1000).map(|value| f64::from(value - 300) * 1e3)).unwrap();
        assert!((spread.median - 200.0).abs() < 1.5 && (spread.iqr - 500.0).abs() < 1.5);
        assert!((spread.p1 + 290.0).abs() < 1.5 && (spread.largest - 700.0).abs() < 1.5);
        assert!(Spread::of_nanos([]).is_err());
    }
}
