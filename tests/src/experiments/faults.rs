//! Zero wrong readings, whatever goes wrong around the clock: each fault for as long as it takes to show.

use anyhow::Result;

use super::Options;
use crate::payload::Parts;
use crate::report::Report;
use crate::{Lab, faults};

/// Runs it.
pub fn run(options: &Options) -> Result<Report> {
    let lab = Lab::prepare(Parts::All)?;
    let outcomes = faults::run(&lab, options.quick)?;
    let mut report = Report::new("What goes wrong around the clock", &outcomes)?;
    report.text(
        "One emulated Xen host with a PV and a PVH guest of two virtual CPUs each. A process in each guest reads the clock as \
         fast as it can, and each of its readings is held against the true time. Between radclockd and its one server \
         (chronyd, asked every second) stands a relay that does to the answers what bad servers and paths do. Each row ends \
         when the clock is synchronised again. A record holds the readings of up to 10 ms.",
    );
    report.table(&faults::table(&outcomes));
    let (readings, wrong) = outcomes.iter().fold((0, 0), |(readings, wrong), outcome| {
        (readings + outcome.readings, wrong + outcome.wrong + outcome.verdict.revenants + outcome.verdict.backwards)
    });
    report.text(&format!("{readings} readings in all; {wrong} records with a wrong one."));
    Ok(report)
}
