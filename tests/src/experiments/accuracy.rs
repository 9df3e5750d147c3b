//! How right the clock is on traces with known truth, simulated and given (with `--traces`), beside ClockBound's synchroniser on the
//! same traces.

use std::collections::BTreeMap;

use anyhow::Result;
use radclock::sync::{SyncParams, Synchroniser};
use serde::Serialize;
use simulator::family::FAMILIES;
use simulator::oscillator::allan_deviation;
use simulator::scenario::seconds;
use simulator::score::{Reading, Score, percentile, replay, scored};
use simulator::trace::Trace;

use super::Options;
use super::peer::ClockBound;
use crate::plot::{Axis, Mark, Plot, Scale, Series, distribution};
use crate::progress::Step;
use crate::report::{Report, Table, figure};
use crate::wait;

const OURS: &str = "Xen RADclock";
const PEER: &str = "ClockBound";
/// Runs of each family in a full run; a quick one has the first only.
const SEEDS: u64 = 5;
/// Traces whose errors are drawn.
const DRAWN: &[&str] = &[
    "lan-16s",
    "lan-1s-cold",
    "hpet-saw-16s",
    "loaded-host-16s",
    "shift-up-16s",
    "gap-16s",
    "server-fault-16s",
    "wan-64s",
    "heated-by-load-16s",
];
/// Traces whose counter's Allan deviation is drawn.
const COUNTERS: &[&str] =
    &["lan-16s", "lan-1s-cold", "hpet-saw-16s", "warm-room-64s", "heated-by-load-16s", "poor-crystal-16s"];

#[derive(Serialize)]
struct Results {
    traces: Vec<Outcome>,
}

/// Both clocks on one trace.
#[derive(Serialize)]
struct Outcome {
    trace: String,
    /// Of a simulated one.
    seed: Option<u64>,
    stamps: usize,
    /// Half of the smallest round trip, µs: no bound can be smaller without knowing more.
    half_round_trip_us: f64,
    xen_radclock: Option<Figures>,
    clock_bound: Option<Figures>,
    #[serde(skip)]
    run: Run,
}

/// One clock's figures.
#[derive(Serialize)]
struct Figures {
    #[serde(flatten)]
    score: Score,
    /// How many readings there were from the first on, those before the scored ones included…
    all_readings: usize,
    /// …and how many of them were outside of their bound.
    all_outside_bound: usize,
}

/// What is drawn of it.
struct Run {
    trace: Trace,
    ours: Vec<Reading>,
    peer: Vec<Reading>,
}

/// Runs it.
pub fn run(options: &Options) -> Result<Report> {
    let mut outcomes = vec![];
    for dir in &options.traces {
        for trace in Trace::read_all(dir)? {
            outcomes.push(judge(trace, None)?);
        }
    }
    let given = outcomes.len();
    for family in FAMILIES {
        for seed in 1..=if options.quick { 1 } else { SEEDS } {
            let scenario = family.scenario(seed);
            outcomes.push(judge(Trace::of(family.name, &scenario, &scenario.run(seed), 0), Some(seed))?);
        }
    }
    let results = Results { traces: outcomes };
    let mut report = Report::new("Accuracy on traces with known truth", &results)?;
    report.text(&format!(
        "Each clock is asked for the time at each stamp's `Ta`, before it is given that stamp, and held against the true \
         time. Half of the difference between the smallest one-way delays, which no client can know, is taken off the \
         error, but not where it is held against the claimed bound. Scored is what comes after 2 h; after 10 min in a trace \
         of less than 3 h. How many readings were outside of their bound is said of all, from a clock's first one on. {PEER} is `ff::Ntp` of the crate `clock-bound` 3.0.0-rc.0 with its default parameters and the \
         poll period of the trace; {OURS} has its default parameters."
    ));
    let (given, simulated) = results.traces.split_at(given);
    if !given.is_empty() {
        report.heading("Given traces");
        report.table(&table(given.iter().map(|outcome| (outcome.trace.clone(), vec![outcome])).collect()));
    }
    report.heading("Simulated traces");
    if !options.quick {
        report.text(&format!(
            "{SEEDS} runs of each family: figures are the medians of the runs, but max is the largest, and readings are counted over all."
        ));
    }
    let mut families: Vec<(String, Vec<&Outcome>)> = vec![];
    for outcome in simulated {
        match families.last_mut() {
            Some((family, outcomes)) if *family == outcome.trace => outcomes.push(outcome),
            _ => families.push((outcome.trace.clone(), vec![outcome])),
        }
    }
    report.plot("rms", overview("Simulated traces: rms of the error", &families));
    report.table(&table(families));
    report.heading("Errors");
    for outcome in results.traces.iter().filter(|outcome| outcome.is_first() && DRAWN.contains(&outcome.trace.as_str()))
    {
        let file = outcome.file();
        report.plot(&format!("error-{file}"), error_plot(outcome));
        report.plot(&format!("distribution-{file}"), distribution_plot(outcome)?);
    }
    report.heading("What the traces are like");
    report.text(
        "How much longer round trips are than the smallest one, and the Allan deviation of the counter, at the multiple of \
         the poll period that is next to the interval named.",
    );
    let first: Vec<&Outcome> = results.traces.iter().filter(|outcome| outcome.is_first()).collect();
    report.table(&kinds(&first));
    report.plot("allan", allan_plot(&first));
    Ok(report)
}

fn judge(trace: Trace, seed: Option<u64>) -> Result<Outcome> {
    wait::check()?;
    let step = Step::begin(match seed {
        Some(seed) => format!("{}, seed {seed}", trace.name),
        None => trace.name.clone(),
    });
    let ours = replay(&trace, &mut Synchroniser::new(SyncParams::default())?);
    let peer = ClockBound::new(poll(&trace)).map_or_else(Vec::new, |mut clock| replay(&trace, &mut clock));
    let figures = |readings: &[Reading]| {
        let [all, score] = [readings, scored(&trace, readings)].map(|some| Score::new(some, trace.asymmetry()));
        let all = all?;
        Some(Figures { score: score?, all_readings: all.readings, all_outside_bound: all.outside_bound })
    };
    let (xen_radclock, clock_bound) = (figures(&ours), figures(&peer));
    step.done();
    Ok(Outcome {
        trace: trace.name.clone(),
        seed,
        stamps: trace.lines.len(),
        half_round_trip_us: trace.half_round_trip() * 1e6,
        xen_radclock,
        clock_bound,
        run: Run { trace, ours, peer },
    })
}

/// The poll period that a user would have set, s: the usual one.
fn poll(trace: &Trace) -> f64 {
    let mut intervals: Vec<f64> =
        trace.lines.windows(2).map(|pair| pair[1].sent.since(pair[0].sent).as_secs_f64()).collect();
    intervals.sort_by(f64::total_cmp);
    if intervals.is_empty() { 1.0 } else { percentile(&intervals, 0.5).round().max(1.0) }
}

impl Outcome {
    /// Of several runs of a family only one is drawn.
    fn is_first(&self) -> bool {
        self.seed.is_none_or(|seed| seed == 1)
    }

    fn title(&self) -> String {
        let origin = self.seed.map_or("given".to_owned(), |seed| format!("simulated, seed {seed}"));
        format!("{} ({origin})", self.trace)
    }

    fn file(&self) -> String {
        let origin = if self.seed.is_some() { "simulated" } else { "given" };
        format!("{origin}-{}", self.trace)
    }

    /// Each clock's name, colour, readings and figures.
    fn clocks(&self) -> [(&'static str, usize, &[Reading], Option<&Figures>); 2] {
        [
            (OURS, 0, self.run.ours.as_slice(), self.xen_radclock.as_ref()),
            (PEER, 1, self.run.peer.as_slice(), self.clock_bound.as_ref()),
        ]
    }
}

/// A row a group of runs and clock.
fn table(groups: Vec<(String, Vec<&Outcome>)>) -> Table {
    let mut table = Table::new([
        "trace",
        "clock",
        "rms, µs",
        "99 %, µs",
        "max, µs",
        "outside of bound",
        "median bound, µs",
        "½ smallest round trip, µs",
        "rms, ratio",
    ]);
    for (name, outcomes) in groups {
        for (clock, colour, ..) in outcomes[0].clocks() {
            let figures: Vec<&Figures> = outcomes.iter().filter_map(|outcome| outcome.clocks()[colour].3).collect();
            let of = |value: fn(&Score) -> f64| figures.iter().map(|of| value(&of.score)).collect::<Vec<f64>>();
            let half = outcomes.iter().map(|outcome| outcome.half_round_trip_us).collect();
            let ratio = || {
                let ratios = outcomes.iter().filter_map(|outcome| {
                    Some(outcome.xen_radclock.as_ref()?.score.rms_us / outcome.clock_bound.as_ref()?.score.rms_us)
                });
                median(ratios.collect()).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
            };
            let cell = |value: Option<f64>| value.map_or("-".to_owned(), figure);
            let all: usize = figures.iter().map(|of| of.all_readings).sum();
            let outside: usize = figures.iter().map(|of| of.all_outside_bound).sum();
            table.row([
                if colour == 0 { name.clone() } else { String::new() },
                clock.to_owned(),
                cell(median(of(|score| score.rms_us))),
                cell(median(of(|score| score.p99_us))),
                cell(of(|score| score.max_us).into_iter().reduce(f64::max)),
                if all == 0 { "-".to_owned() } else { format!("{outside} of {all}") },
                cell(median(of(|score| score.median_bound_us))),
                cell(median(half)),
                if colour == 0 { ratio() } else { String::new() },
            ]);
        }
    }
    table
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    (!values.is_empty()).then(|| percentile(&values, 0.5))
}

fn overview(title: &str, groups: &[(String, Vec<&Outcome>)]) -> Plot {
    let names = groups.iter().map(|(name, _)| name.clone()).collect();
    let series = [0, 1].map(|clock| {
        let points = groups.iter().enumerate().flat_map(|(place, (_, outcomes))| {
            outcomes.iter().filter_map(move |outcome| Some((outcome.clocks()[clock].3?.score.rms_us, place as f64)))
        });
        Series { label: [OURS, PEER][clock].to_owned(), mark: Mark::Dots, colour: clock, points: points.collect() }
    });
    Plot {
        title: title.to_owned(),
        x: Axis::new("rms of the error, µs", Scale::Log),
        y: Axis::of_names(names),
        series: series.into_iter().rev().collect(),
    }
}

fn error_plot(outcome: &Outcome) -> Plot {
    let asymmetry = outcome.run.trace.asymmetry();
    let cold = outcome.run.trace.lines.last().is_some_and(|line| seconds(line.sent) < 2.0 * 3600.0);
    let unit = if cold { 60.0 } else { 3600.0 };
    let mut series = vec![];
    for (name, colour, readings, _) in outcome.clocks().into_iter().rev() {
        let line = |label: &str, mark, value: &dyn Fn(&Reading) -> f64| {
            let points = readings.iter().map(|reading| (reading.at / unit, value(reading) * 1e6)).collect();
            Series { label: label.to_owned(), mark, colour, points }
        };
        series.push(line(name, Mark::Line, &|reading| reading.error - asymmetry));
        if colour == 0 {
            let label = format!("± claimed bound of {name}");
            let bound = |sign: f64| line(&label, Mark::Thin, &|reading| sign * reading.bound);
            series.extend([bound(1.0), bound(-1.0)].map(|line| Series { colour: 5, ..line }));
        }
    }
    Plot {
        title: format!("{}: error over time", outcome.title()),
        x: Axis::new(if cold { "time, min" } else { "time, h" }, Scale::Linear),
        y: Axis::new("clock less true time, µs", Scale::SymLog(1.0)),
        series,
    }
}

fn distribution_plot(outcome: &Outcome) -> Result<Plot> {
    let asymmetry = outcome.run.trace.asymmetry();
    let mut series = vec![];
    for (name, colour, readings, _) in outcome.clocks() {
        let readings = scored(&outcome.run.trace, readings);
        if !readings.is_empty() {
            let points = distribution(readings.iter().map(|reading| (reading.error - asymmetry).abs() * 1e6))?;
            series.push(Series { label: name.to_owned(), mark: Mark::Line, colour, points });
        }
    }
    // The smallest errors are a matter of luck.
    let sizes = series.iter().flat_map(|line| line.points.iter().filter(|(_, share)| *share >= 0.05));
    let (low, high) = sizes.fold((f64::INFINITY, 0.0f64), |(low, high), (size, _)| (low.min(*size), high.max(*size)));
    Ok(Plot {
        title: format!("{}: how often the error was not larger", outcome.title()),
        x: Axis::new("size of the error, µs", Scale::Log).within(low, high),
        y: Axis::new("share of readings", Scale::Linear).within(0.0, 1.0),
        series,
    })
}

fn kinds(outcomes: &[&Outcome]) -> Table {
    const INTERVALS: [f64; 3] = [64.0, 1024.0, 8192.0];
    let mut table = Table::new([
        "trace",
        "origin",
        "stamps",
        "½ smallest round trip, µs",
        "excess, 50 %, µs",
        "90 %, µs",
        "99 %, µs",
        "σ(64 s)",
        "σ(1024 s)",
        "σ(8192 s)",
    ]);
    for outcome in outcomes {
        let trace = &outcome.run.trace;
        let mut trips: Vec<f64> = trace.round_trips().map(|trip| trip * 1e6).collect();
        trips.sort_by(f64::total_cmp);
        let excess = |share| percentile(&trips, share) - trips[0];
        let deviations = counter_deviation(trace);
        let deviation = |interval: f64| {
            let distance = |tau: f64| (tau / interval).ln().abs();
            let nearest = deviations.iter().min_by(|one, other| distance(one.0).total_cmp(&distance(other.0)));
            let nearest = nearest.filter(|(tau, _)| distance(*tau) < 1.0);
            nearest.map_or("-".to_owned(), |(_, deviation)| format!("{deviation:.1e}"))
        };
        let mut row = vec![
            outcome.trace.clone(),
            if outcome.seed.is_some() { "simulated" } else { "given" }.to_owned(),
            outcome.stamps.to_string(),
            figure(outcome.half_round_trip_us),
        ];
        row.extend([0.5, 0.9, 0.99].map(|share| figure(excess(share))));
        row.extend(INTERVALS.map(deviation));
        table.row(row);
    }
    table
}

/// From the counter's phase at even intervals, interpolated between the stamps.
fn counter_deviation(trace: &Trace) -> Vec<(f64, f64)> {
    let interval = poll(trace);
    let Some(first) = trace.lines.get(1) else { return vec![] };
    let phases: Vec<(f64, f64)> = trace.lines[1..]
        .iter()
        .map(|line| {
            let t = line.sent.since(first.sent).as_secs_f64();
            let counted = line.stamp.ta.0.wrapping_sub(first.stamp.ta.0).cast_signed() as f64 * 1e-9;
            (t, counted - t)
        })
        .collect();
    let mut even = vec![];
    let mut pairs = phases.windows(2).peekable();
    while let Some(pair) = pairs.peek() {
        let t = even.len() as f64 * interval;
        let ((from, before), (to, after)) = (pair[0], pair[1]);
        if t > to {
            pairs.next();
            continue;
        }
        even.push(before + (after - before) * (t - from) / (to - from));
    }
    allan_deviation(&even, interval)
}

fn allan_plot(outcomes: &[&Outcome]) -> Plot {
    let mut colours = BTreeMap::new();
    let mut series = vec![];
    for outcome in
        outcomes.iter().filter(|outcome| outcome.seed.is_some() && COUNTERS.contains(&outcome.trace.as_str()))
    {
        let next = colours.len();
        let colour = *colours.entry(&outcome.trace).or_insert(next);
        let points = counter_deviation(&outcome.run.trace);
        series.push(Series { label: outcome.trace.clone(), mark: Mark::DottedLine, colour, points });
    }
    Plot {
        title: "Allan deviation of the simulated counters".to_owned(),
        x: Axis::new("interval, s", Scale::Log),
        y: Axis::new("Allan deviation", Scale::Log),
        series,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the kinds of traces that others have measured RADclock and ClockBound on, the best of both at most 0.6 times as good.
    #[test]
    fn errors_are_at_most_six_tenths_of_the_peers() {
        let kinds = &FAMILIES[..12];
        assert_eq!((kinds[0].name, kinds[11].name), ("lan-16s", "sparse-1024s"));
        for family in kinds {
            let scenario = family.scenario(1);
            let outcome = judge(Trace::of(family.name, &scenario, &scenario.run(1), 0), Some(1)).unwrap();
            let ours = outcome.xen_radclock.unwrap();
            assert_eq!(ours.all_outside_bound, 0, "{}", family.name);
            // ClockBound takes no poll period of 1024 s.
            let Some(peer) = outcome.clock_bound else {
                assert_eq!(family.name, "sparse-1024s");
                continue;
            };
            let [rms, p99] = [ours.score.rms_us / peer.score.rms_us, ours.score.p99_us / peer.score.p99_us];
            println!("{}: rms {rms:.2}, 99 % {p99:.2}", family.name);
            // Nobody can know how an oscillator drifts in a gap of hours.
            assert!(p99 <= 0.6 && (rms <= 0.6 || family.name == "gap-16s"), "{}: {rms}, {p99}", family.name);
        }
    }
}
