//! Zero wrong readings, whatever goes wrong around the clock: each fault for as long as it takes to show.

use anyhow::Result;

use super::Options;
use crate::faults::Outcome;
use crate::payload::Parts;
use crate::plot::{Axis, Mark, Plot, Scale, Series};
use crate::report::Report;
use crate::{Lab, faults};

/// Runs it.
pub fn run(options: &Options) -> Result<Report> {
    let lab = Lab::prepare(Parts::All)?;
    let outcomes = faults::run(&lab, options.quick, 1)?;
    let mut report = Report::new("What goes wrong around the clock", &outcomes)?;
    report.text(
        "One emulated Xen host with a PV and a PVH guest of two virtual CPUs each. A process in each guest reads the clock as \
         fast as it can, and each of its readings is held against the true time. Between radclockd and its one server \
         (chronyd, asked every second) stands a relay that does to the answers what bad servers and paths do. Each row ends \
         when the clock is synchronised again. A record holds the readings of up to 10 ms.",
    );
    report.table(&faults::table(&outcomes));
    report.plot("faults", plot(&outcomes));
    let (readings, wrong) = outcomes.iter().fold((0, 0), |(readings, wrong), outcome| {
        (readings + outcome.readings, wrong + outcome.wrong + outcome.verdict.revenants + outcome.verdict.backwards)
    });
    let sum = format!("{readings} readings in all; {wrong} records with a wrong one.");
    report.text(&sum);
    if wrong > 0 {
        report.fail(sum);
    }
    Ok(report)
}

/// What each fault did to the errors and bounds of both guests.
fn plot(outcomes: &[Outcome]) -> Plot {
    let mut names: Vec<String> = outcomes.iter().map(|outcome| outcome.fault.clone()).collect();
    names.dedup();
    let series = |label: &str, colour, nanos: fn(&Outcome) -> u64| {
        let place = |outcome: &Outcome| names.iter().position(|name| *name == outcome.fault);
        let read = outcomes.iter().filter(|outcome| outcome.readings > 0);
        let points = read.filter_map(|outcome| Some((nanos(outcome) as f64 / 1e3, place(outcome)? as f64))).collect();
        Series { label: label.to_owned(), mark: Mark::Dots, colour, points }
    };
    Plot {
        title: "What goes wrong around the clock: readings in a PV and a PVH guest".to_owned(),
        series: vec![
            series("largest error", 0, |outcome| outcome.largest_error_ns.unsigned_abs()),
            series("largest bound", 1, |outcome| outcome.largest_bound_ns),
        ],
        x: Axis::new("µs", Scale::Log),
        y: Axis::of_names(names),
    }
}
