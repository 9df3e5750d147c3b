//! How right Dom0's clock is on a real Xen host, beside chronyd's: both ask the same server over the same path as often,
//! and both read the same counter, chronyd through the kernel's clock that it disciplines.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use simulator::score::{Reading, Score, percentile};

use super::Options;
use crate::host::{COMMAND_LIMIT, Host};
use crate::payload::Parts;
use crate::plot::{Axis, Mark, Plot, Scale, Series, distribution};
use crate::progress::Step;
use crate::report::{Report, Table, figure};
use crate::watch::{Sample, Watch};
use crate::{Lab, wait};

/// How often both ask, s: what the lab's configuration of radclockd says.
const POLL: u32 = 1;
const EVERY: Duration = Duration::from_secs(2);
const CHRONYD_LIMIT: Duration = Duration::from_secs(120);
/// Out of the figures' way, in the pictures: both clocks are still finding the counter's rate.
const SETTLING: Duration = Duration::from_secs(600);
const SETTLING_QUICK: Duration = Duration::from_secs(60);
const DURATION: Duration = Duration::from_secs(3600);
const DURATION_QUICK: Duration = Duration::from_secs(240);

#[derive(Serialize)]
struct Results {
    /// How often both clocks asked the server, s.
    poll_s: u32,
    /// From the beginning to the end, s, of which the first `settling_s` are not in the figures.
    duration_s: u64,
    settling_s: u64,
    shared: Score,
    chronyd: Score,
    /// How far the true errors may be from the measured ones: half of them are not farther, µs.
    median_uncertainty_us: f64,
}

/// Runs it.
pub fn run(options: &Options) -> Result<Report> {
    let lab = Lab::prepare(Parts::All)?;
    let host = lab.boot()?;
    start_chronyd(&host)?;
    host.start_radclockd()?;
    host.await_synchronized()?;
    let (duration, settling) = if options.quick { (DURATION_QUICK, SETTLING_QUICK) } else { (DURATION, SETTLING) };
    let samples = watch(&host, duration)?;
    report(&samples, duration, settling)
}

/// Starts chronyd in Dom0, with the kernel's clock in its hands, and waits until it has set that.
fn start_chronyd(host: &Host) -> Result<()> {
    let step = Step::begin("Starting chronyd in Dom0");
    let (port, poll) = (host.ntp_port(), POLL.ilog2());
    let configuration = format!(
        "server 10.0.2.2 port {port} iburst minpoll {poll} maxpoll {poll}\nmakestep 0.1 3\nuser root\n\
         pidfile /run/chronyd.pid\nbindcmdaddress /run/chrony/chronyd.sock\n"
    );
    host.write("/etc/chrony/chrony.conf", configuration)?;
    host.run("mkdir -p /run/chrony; setsid chronyd -d < /dev/null >> /var/log/chronyd.log 2>&1 &")?;
    wait::until("chronyd in Dom0", CHRONYD_LIMIT, || {
        let output = host.output("chronyc -n tracking", COMMAND_LIMIT)?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.ends_with(": Normal")).then_some(()))
    })
    .with_context(|| host.run("cat /var/log/chronyd.log; chronyc -n tracking").unwrap_or_default())?;
    step.done();
    Ok(())
}

/// Samples of both clocks with their times since the beginning, s.
fn watch(host: &Host, duration: Duration) -> Result<Vec<(f64, Sample)>> {
    let step = Step::begin("Watching both clocks");
    let mut watch = Watch::start(host)?;
    let start = Instant::now();
    let mut samples = Vec::new();
    while start.elapsed() < duration {
        let sample = watch.sample()?;
        let at = start.elapsed();
        step.detail(&format!(
            "{} of {} s: {:.1} µs and {:.1} µs",
            at.as_secs(),
            duration.as_secs(),
            sample.shared.error_ns / 1e3,
            sample.system.error_ns / 1e3
        ));
        samples.push((at.as_secs_f64(), sample));
        let next = start + EVERY * samples.len() as u32;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    step.done();
    Ok(samples)
}

fn report(samples: &[(f64, Sample)], duration: Duration, settling: Duration) -> Result<Report> {
    let shared: Vec<Reading> = samples.iter().map(|(at, sample)| reading(*at, sample.shared)).collect();
    let chronyd: Vec<Reading> = samples.iter().map(|(at, sample)| reading(*at, sample.system)).collect();
    let mut uncertainties: Vec<f64> = samples.iter().map(|(_, sample)| sample.uncertainty_ns / 1e3).collect();
    uncertainties.sort_by(f64::total_cmp);
    let largest = uncertainties.last().copied().context("no samples")?;
    let settled = |readings: &[Reading]| -> Vec<Reading> {
        readings.iter().copied().filter(|reading| reading.at >= settling.as_secs_f64()).collect()
    };
    let score = |readings: &[Reading]| Score::new(&settled(readings), 0.0, largest * 1e-6).context("no samples");
    let results = Results {
        poll_s: POLL,
        duration_s: duration.as_secs(),
        settling_s: settling.as_secs(),
        shared: score(&shared)?,
        chronyd: score(&chronyd)?,
        median_uncertainty_us: percentile(&uncertainties, 0.5),
    };
    let mut report = Report::new("Dom0's clock in the lab, beside chronyd", &results)?;
    report.text(&format!(
        "One emulated Xen host. In its Dom0 radclockd keeps the shared clock and chronyd the kernel's clock; both ask the \
         same NTP server on the build machine every {POLL} s. A probe reads both clocks at once, every {} s for {} min. \
         True time is the build machine's clock, which the server serves: a reading is known to be taken between two of its \
         values. The first {} min are not in the figures.",
        EVERY.as_secs(),
        duration.as_secs() / 60,
        settling.as_secs() / 60
    ));
    let mut table =
        Table::new(["error, µs", "median", "rms", "99 %", "max", "median claimed bound", "inside of it", "readings"]);
    for (name, score) in [("radclockd", &results.shared), ("chronyd", &results.chronyd)] {
        let Score { median_us, rms_us, p99_us, max_us, median_bound_us, .. } = score;
        let figures = [median_us, rms_us, p99_us, max_us, median_bound_us].map(|value| figure(*value));
        let shares = [format!("{:.2} %", score.inside * 100.0), score.readings.to_string()];
        table.row([name.to_owned()].into_iter().chain(figures).chain(shares));
    }
    report.table(&table);
    report.text(&format!(
        "True errors are within {} µs of those measured (median). chronyd's bound is the kernel's `maxerror`, which chronyd \
         sets and the kernel lets grow by 500 µs a second.",
        figure(results.median_uncertainty_us)
    ));
    let clocks = [("radclockd", &shared, 0), ("chronyd", &chronyd, 1)];
    let minutes = |reading: &Reading| reading.at / 60.0;
    let line = |label: &str, mark, colour, points| Series { label: label.to_owned(), mark, colour, points };
    let mut errors = Vec::new();
    for (name, readings, colour) in clocks.iter().rev() {
        let bound = format!("± claimed bound of {name}");
        for sign in [1.0, -1.0] {
            let points = readings.iter().map(|reading| (minutes(reading), sign * reading.bound * 1e6)).collect();
            errors.push(line(&bound, Mark::Thin, *colour, points));
        }
        let points = readings.iter().map(|reading| (minutes(reading), reading.error * 1e6)).collect();
        errors.push(line(&format!("error of {name}"), Mark::Dots, *colour, points));
    }
    report.plot(
        "error",
        Plot {
            title: "Error of Dom0's clocks over time".to_owned(),
            x: Axis::new("time, min", Scale::Linear),
            y: Axis::new("clock less true time, µs", Scale::SymLog(10.0)),
            series: errors,
        },
    );
    let sizes = |readings: &[Reading]| distribution(settled(readings).iter().map(|reading| reading.error.abs() * 1e6));
    let series = clocks.iter().map(|(name, readings, colour)| Ok(line(name, Mark::Line, *colour, sizes(readings)?)));
    report.plot(
        "distribution",
        Plot {
            title: "How often the error was not larger".to_owned(),
            x: Axis::new("size of the error, µs", Scale::Log),
            y: Axis::new("share of readings", Scale::Linear).within(0.0, 1.0),
            series: series.collect::<Result<_>>()?,
        },
    );
    Ok(report)
}

fn reading(at: f64, reading: crate::watch::Reading) -> Reading {
    Reading { at, error: reading.error_ns * 1e-9, bound: reading.bound_ns * 1e-9 }
}
