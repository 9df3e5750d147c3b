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
use crate::watch::{self, Watch};
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
/// A reading whose true error is not known to within this, µs, tells of the build machine and not of a clock.
const UNSURE_US: f64 = 25.0;

/// Both clocks at one time.
#[derive(Serialize)]
struct Sample {
    /// Since the beginning, s.
    at_s: f64,
    /// The reading less the true time, and what the clock claimed as the bound on that, µs.
    shared_error_us: f64,
    shared_bound_us: f64,
    chronyd_error_us: f64,
    chronyd_bound_us: f64,
    /// True errors are within this of those above, µs.
    uncertainty_us: f64,
}

#[derive(Serialize)]
struct Results {
    /// How often both clocks asked the server, s.
    poll_s: u32,
    /// From the beginning to the end, s, of which the first `settling_s` are not in the figures.
    duration_s: u64,
    settling_s: u64,
    /// How many of the samples after that are not in the figures either, as the true errors are not known to within
    /// `unsure_us`.
    unsure: usize,
    unsure_us: f64,
    /// How far the true errors of the others may be from the measured ones: half of them are not farther, µs.
    median_uncertainty_us: f64,
    shared: Figures,
    chronyd: Figures,
    /// All of them, so that other figures and pictures can be made.
    samples: Vec<Sample>,
}

/// Of one clock.
#[derive(Serialize)]
struct Figures {
    measured: Score,
    /// The same errors less their median, which holds what no client can know of its path.
    about_median: Score,
}

impl Sample {
    fn new(at: Duration, sample: &watch::Sample) -> Sample {
        Sample {
            at_s: at.as_secs_f64(),
            shared_error_us: sample.shared.error_ns / 1e3,
            shared_bound_us: sample.shared.bound_ns / 1e3,
            chronyd_error_us: sample.system.error_ns / 1e3,
            chronyd_bound_us: sample.system.bound_ns / 1e3,
            uncertainty_us: sample.uncertainty_ns / 1e3,
        }
    }

    fn shared(&self) -> Reading {
        self.reading(self.shared_error_us, self.shared_bound_us)
    }

    fn chronyd(&self) -> Reading {
        self.reading(self.chronyd_error_us, self.chronyd_bound_us)
    }

    fn reading(&self, error_us: f64, bound_us: f64) -> Reading {
        let seconds = |micros: f64| micros * 1e-6;
        Reading {
            at: self.at_s,
            error: seconds(error_us),
            bound: seconds(bound_us),
            uncertainty: seconds(self.uncertainty_us),
        }
    }
}

impl Results {
    fn new(samples: Vec<Sample>, duration: Duration, settling: Duration) -> Result<Results> {
        let settled = samples.iter().filter(|sample| sample.at_s >= settling.as_secs_f64());
        let (sure, unsure): (Vec<&Sample>, Vec<&Sample>) =
            settled.partition(|sample| sample.uncertainty_us <= UNSURE_US);
        let figures = |reading: fn(&Sample) -> Reading| -> Result<Figures> {
            let readings: Vec<Reading> = sure.iter().map(|sample| reading(sample)).collect();
            let score = |asymmetry| {
                Score::new(&readings, asymmetry).with_context(|| {
                    let unsure = unsure.len();
                    format!("the build machine was too busy: none of {unsure} samples is known well enough; try again")
                })
            };
            let measured = score(0.0)?;
            let about_median = score(measured.median_us * 1e-6)?;
            Ok(Figures { measured, about_median })
        };
        let mut uncertainties: Vec<f64> = sure.iter().map(|sample| sample.uncertainty_us).collect();
        uncertainties.sort_by(f64::total_cmp);
        let (shared, chronyd) = (figures(Sample::shared)?, figures(Sample::chronyd)?);
        Ok(Results {
            poll_s: POLL,
            duration_s: duration.as_secs(),
            settling_s: settling.as_secs(),
            unsure: unsure.len(),
            unsure_us: UNSURE_US,
            median_uncertainty_us: percentile(&uncertainties, 0.5),
            shared,
            chronyd,
            samples,
        })
    }
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
    report(samples, duration, settling)
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

fn watch(host: &Host, duration: Duration) -> Result<Vec<Sample>> {
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
        samples.push(Sample::new(at, &sample));
        let next = start + EVERY * samples.len() as u32;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    step.done();
    Ok(samples)
}

fn report(samples: Vec<Sample>, duration: Duration, settling: Duration) -> Result<Report> {
    let results = Results::new(samples, duration, settling)?;
    let mut report = Report::new("Dom0's clock in the lab, beside chronyd", &results)?;
    report.text(&format!(
        "One emulated Xen host. In its Dom0 radclockd keeps the shared clock and chronyd the kernel's clock; both ask the \
         same NTP server on the build machine every {POLL} s. A probe reads both clocks at once, every {} s for {} min. \
         True time is the build machine's clock, which the server serves: a reading is known to be taken between two of its \
         values. The first {} min are not in the figures, nor are {} readings of each clock whose true error is not known to \
         within {} µs, the build machine having been busy. Those of the others are known to within {} µs (median).",
        EVERY.as_secs(),
        duration.as_secs() / 60,
        settling.as_secs() / 60,
        results.unsure,
        UNSURE_US,
        figure(results.median_uncertainty_us)
    ));
    let mut table = Table::new([
        "error, µs",
        "median",
        "about it: rms",
        "99 %",
        "max",
        "median claimed bound",
        "outside of it",
        "readings",
    ]);
    for (name, Figures { measured, about_median }) in [("radclockd", &results.shared), ("chronyd", &results.chronyd)] {
        let Score { rms_us, p99_us, max_us, .. } = about_median;
        let figures = [&measured.median_us, rms_us, p99_us, max_us, &measured.median_bound_us];
        let counts = [measured.outside_bound, measured.readings].map(|count| count.to_string());
        table.row([name.to_owned()].into_iter().chain(figures.map(|value| figure(*value))).chain(counts));
    }
    report.table(&table);
    report.text(
        "The median is what emulation makes of the path: it is not as long in both directions, which no client can know. \
         A reading counts as outside of its bound if it is so for certain, by what is known of that reading's true error. \
         chronyd's bound is the kernel's `maxerror`, which chronyd sets and the kernel lets grow by 500 µs a second.",
    );
    type Clock<'results> = (&'static str, fn(&Sample) -> Reading, &'results Figures, usize);
    let clocks: [Clock; 2] =
        [("chronyd", Sample::chronyd, &results.chronyd, 1), ("radclockd", Sample::shared, &results.shared, 0)];
    let line = |label: String, mark, colour, points| Series { label, mark, colour, points };
    let is_sure = |sample: &&Sample| sample.uncertainty_us <= UNSURE_US;
    let minutes = |reading: &Reading| reading.at / 60.0;
    let (mut errors, mut wander, mut sizes) = (vec![], vec![], vec![]);
    for (name, reading, figures, colour) in clocks {
        let all = || results.samples.iter().map(reading);
        let sure = || results.samples.iter().filter(is_sure).map(reading);
        for sign in [1.0, -1.0] {
            let points = all().map(|reading| (minutes(&reading), sign * reading.bound * 1e6)).collect();
            errors.push(line(format!("± claimed bound of {name}"), Mark::Thin, colour, points));
        }
        let points = sure().map(|reading| (minutes(&reading), reading.error * 1e6)).collect();
        errors.push(line(format!("error of {name}"), Mark::Dots, colour, points));
        let about_median = |reading: &Reading| reading.error * 1e6 - figures.measured.median_us;
        let settled = || sure().filter(|reading| reading.at >= settling.as_secs_f64());
        let points = settled().map(|reading| (minutes(&reading), about_median(&reading))).collect();
        wander.push(line(name.to_owned(), Mark::Dots, colour, points));
        let points = distribution(settled().map(|reading| about_median(&reading).abs()))?;
        sizes.push(line(name.to_owned(), Mark::Line, colour, points));
    }
    let time = || Axis::new("time, min", Scale::Linear);
    report.plot(
        "error",
        Plot {
            title: "Error of Dom0's clocks and what they claim".to_owned(),
            x: time(),
            y: Axis::new("clock less true time, µs", Scale::SymLog(10.0)),
            series: errors,
        },
    );
    report.plot(
        "wander",
        Plot {
            title: "Error of Dom0's clocks, each about its median".to_owned(),
            x: time(),
            y: Axis::new("clock less true time, less its median, µs", Scale::Linear),
            series: wander,
        },
    );
    report.plot(
        "distribution",
        Plot {
            title: "How often the error was not farther from its median".to_owned(),
            x: Axis::new("size of the error less its median, µs", Scale::Log),
            y: Axis::new("share of readings", Scale::Linear).within(0.0, 1.0),
            series: sizes,
        },
    );
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_s: f64, shared_error_us: f64, uncertainty_us: f64) -> Sample {
        Sample {
            at_s,
            shared_error_us,
            shared_bound_us: 50.0,
            chronyd_error_us: 2.0 * shared_error_us,
            chronyd_bound_us: 150.0,
            uncertainty_us,
        }
    }

    #[test]
    fn only_what_is_known_of_settled_clocks_is_judged() {
        let samples =
            vec![sample(1.0, 9e9, 1.0), sample(10.0, 60.0, 5.0), sample(12.0, 60.0, 20.0), sample(14.0, 9e9, 26.0)];
        let results = Results::new(samples, Duration::from_secs(16), Duration::from_secs(10)).expect("two that count");
        assert_eq!((results.shared.measured.readings, results.unsure, results.samples.len()), (2, 1, 4));
        // The second of them may be inside.
        assert_eq!((results.shared.measured.outside_bound, results.chronyd.measured.outside_bound), (1, 0));
        assert!((results.chronyd.measured.median_us - 120.0).abs() < 1e-9);
        assert!(results.chronyd.about_median.max_us.abs() < 1e-9, "a constant is in no clock's hands");
        let busy = vec![sample(11.0, 0.0, 30.0)];
        assert!(Results::new(busy, Duration::from_secs(16), Duration::from_secs(10)).is_err());
    }
}
