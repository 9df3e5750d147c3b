//! A guest that moves between two hosts goes on with the new host's clock from its first instant there, and no reader
//! ever gets a wrong time.

use std::env;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets};
use lab_agent::Recorded;

use super::footprint::{Footprint, ensure_no_complaint, ensure_no_complaint_in};
use crate::guest::{Guest, Kind};
use crate::host::{Host, Pair, SECOND_RATE_PPB};
use crate::progress::{Step, say};
use crate::readings::{Change, Reader, Verdict};
use crate::{Lab, divergence, wait};

/// How often there and back, if another number than [`ROUNDS`] is wanted: more take too long for each run of all scenarios.
const ROUNDS_VARIABLE: &str = "LAB_ROUNDS";
const ROUNDS: usize = 2;
/// Between two migrations, in which the clock is read on.
const STAY: Duration = Duration::from_secs(2);
/// Keeps the guest busy: random numbers into memory again and again, and a packet to each host every 20 ms.
const LOAD: &str = "(while :; do dd if=/dev/urandom of=/run/load bs=64k count=32; usleep 20000; done) > /dev/null 2>&1 & \
    echo $! > /run/load.pid; \
    for host in 1 2; do ping -q -i 0.02 -s 1000 10.9.0.$host > /run/ping$host 2>&1 & echo $! >> /run/load.pid; done";
const TIMING: &str = "/sys/class/misc/vmclock0/resume_timing";
/// Bounds grow and shrink with each answer of the server; the first one of a clock may be larger than those that happen to
/// follow by this part of them.
const BOUND_SLACK: f64 = 0.5;

/// PV and PVH guests under load, there and back several times each, judged reading by reading. From the first reading on a
/// new host the clock is as good as it is later.
pub fn no_reading_is_wrong_while_guests_migrate_under_load(lab: &Lab) -> Result<()> {
    let pair = lab.boot_pair()?;
    for host in pair.hosts() {
        host.start_radclockd()?;
    }
    let mut footprints = Vec::new();
    for host in pair.hosts() {
        host.await_synchronized()?;
        footprints.push(Footprint::after_a_first_guest(host)?);
    }
    let mut moves = Vec::new();
    for kind in [Kind::Pv, Kind::Pvh] {
        moves.push(Moves::of(&pair, kind)?);
    }
    say!("{}\n{}", readings_table(&moves), timing_table(&moves));
    let [first, second] = pair.hosts().map(Counting::of);
    let (first, second) = (first?, second?);
    say!(
        "Xen's system time: {:+.1} ppm on the first host, {:+.1} ppm on the second, which was booted {:.3} s after it",
        first.rate_ppm,
        second.rate_ppm,
        second.zero - first.zero
    );
    let (apart, made) = (second.rate_ppm - first.rate_ppm, SECOND_RATE_PPB as f64 / 1e3);
    ensure!((apart - made).abs() < made / 2.0, "the hosts' rates are {apart:.1} ppm apart and not {made:.1}");
    for moves in &moves {
        moves.check()?;
    }
    for (host, before) in pair.hosts().into_iter().zip(footprints) {
        ensure_no_complaint(host)?;
        before.await_again(host)?;
    }
    Ok(())
}

fn rounds() -> Result<usize> {
    let Ok(given) = env::var(ROUNDS_VARIABLE) else { return Ok(ROUNDS) };
    given.parse().with_context(|| format!("{ROUNDS_VARIABLE}={given} is not a number of rounds"))
}

/// How a host's Xen system time runs, by its daemon.
struct Counting {
    /// How fast it is.
    rate_ppm: f64,
    /// When it was 0, s since 1970.
    zero: f64,
}

impl Counting {
    fn of(host: &Host) -> Result<Counting> {
        let recorded = host.run("lab-probe wire 1")?;
        let recorded: Recorded = serde_json::from_str(recorded.lines().next().context("no page")?)?;
        let clock = divergence::page(&recorded.page)?.abi.clock()?;
        let period = clock.period.as_secs_f64();
        let zero = clock.time.as_nanos() as f64 / 1e9 - clock.counter.0 as f64 * period;
        Ok(Counting { rate_ppm: (1e-9 / period - 1.0) * 1e6, zero })
    }
}

/// All migrations of one guest.
struct Moves {
    kind: Kind,
    verdict: Verdict,
    timings: Vec<Timing>,
}

/// How long one resume took: what is reached, and after how many ns from the guest's first instruction.
struct Timing {
    /// `CLOCK_MONOTONIC_RAW` of the guest at its first instruction, ns.
    started: u64,
    phases: Vec<(String, u64)>,
}

impl Timing {
    fn of(guest: &Guest) -> Result<Timing> {
        let text = guest.run(&format!("cat {TIMING}"))?;
        let lines = text.lines().map(|line| {
            let (name, number) = line.split_once(' ').with_context(|| format!("{TIMING} says {line:?}"))?;
            Ok((name.to_owned(), number.parse()?))
        });
        let mut phases = lines.collect::<Result<Vec<(String, u64)>>>()?;
        let started = phases.iter().find(|(name, _)| name == "started").context("no start")?.1;
        phases.retain(|(name, _)| !["resumes", "started"].contains(&name.as_str()));
        Ok(Timing { started, phases })
    }
}

impl Moves {
    fn of(pair: &Pair, kind: Kind) -> Result<Moves> {
        let mut guest = pair.first.create_with_network(kind.name(), kind, "10.9.0.11")?;
        guest.await_synchronized()?;
        let reader = Reader::start(&guest, &pair.hosts())?;
        guest.run(LOAD)?;
        let mut timings = Vec::new();
        for round in 1..=rounds()? {
            for (to, name) in [(&pair.second, "second"), (&pair.first, "first")] {
                wait::pass(STAY)?;
                let step = Step::begin(format!("Round {round}: {} to the {name} host", kind.name()));
                guest.migrate(to)?;
                timings.push(Timing::of(&guest)?);
                step.done();
            }
        }
        wait::pass(STAY)?;
        let step = Step::begin(format!("Judging the readings of {}", kind.name()));
        guest.run("kill $(cat /run/load.pid)")?;
        let readings = reader.stop(&guest)?;
        let verdict = readings.judge(kind)?;
        step.done();
        say!("{}: {verdict}", kind.name());
        ensure_no_complaint_in(&guest)?;
        guest.destroy()?;
        Ok(Moves { kind, verdict, timings })
    }

    fn check(&self) -> Result<()> {
        let Moves { kind, verdict, timings } = self;
        let (kind, changes) = (kind.name(), &verdict.changes);
        verdict.check().with_context(|| kind.to_owned())?;
        ensure!(
            changes.len() == timings.len(),
            "{kind}: {} migrations, but {} changes of the clock",
            timings.len(),
            changes.len()
        );
        for (change, timing) in changes.iter().zip(timings) {
            let allowed = change.later_bound as f64 * (1.0 + BOUND_SLACK);
            ensure!(
                change.first.point.bound as f64 <= allowed,
                "{kind}: the first reading's bound is larger than later ones: {change:?}"
            );
            // Without a wait for the backend the nodes are there, so that all is done before processes run.
            ensure!(timing.phases.iter().any(|(name, _)| name == "published"), "{kind}: the resume did not publish");
            ensure!(change.errors == 0, "{kind}: the clock was not there from the first instant on: {change:?}");
        }
        Ok(())
    }

    /// One more row a migration: from the guest's first instruction to its first good reading.
    fn first_readings(&self) -> Vec<f64> {
        let both = self.verdict.changes.iter().zip(&self.timings);
        both.map(|(change, timing)| change.raw_nanos.saturating_sub(timing.started) as f64 / 1e6).collect()
    }
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header);
    table
}

fn number(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn micros(nanos: i64) -> String {
    format!("{:.1} µs", nanos as f64 / 1e3)
}

/// A row a guest and direction.
fn readings_table(moves: &[Moves]) -> Table {
    let mut table = new_table(&[
        "guest",
        "to host",
        "moves",
        "readings",
        "wrong",
        "undecided",
        "errors",
        "largest jump",
        "its bounds",
        "largest error",
        "of its bound",
        "truth within",
        "no reading for (median, most)",
    ]);
    for Moves { kind, verdict, .. } in moves {
        for direction in 0..2 {
            let changes: Vec<&Change> = verdict.changes.iter().skip(direction).step_by(2).collect();
            let Some(jump) = changes.iter().max_by_key(|change| change.jump().abs()) else { continue };
            let gaps = sorted(changes.iter().map(|change| change.unavailable_ms()));
            let errors: u64 = changes.iter().map(|change| change.errors).sum();
            let mut row = vec![Cell::new(kind.name()), number(2 - direction), number(changes.len())];
            if direction == 0 {
                row.extend([number(verdict.readings), number(verdict.wrong), number(verdict.undecided)]);
            } else {
                row.extend(["", "", ""].map(Cell::new));
            }
            row.extend([number(errors), number(micros(jump.jump())), number(micros(jump.allowed()))]);
            if direction == 0 {
                row.extend([
                    number(micros(verdict.largest_error)),
                    number(format!("{:.0} %", verdict.largest_part * 100.0)),
                    number(format!("{} ({})", micros(verdict.tolerance.0), micros(verdict.tolerance.1))),
                ]);
            } else {
                row.extend(["", "", ""].map(Cell::new));
            }
            row.push(number(format!("{:.0} ms, {:.0} ms", median(&gaps), gaps[gaps.len() - 1])));
            table.add_row(row);
        }
    }
    table
}

/// A row a phase, in ms from the guest's first instruction on the new host.
fn timing_table(moves: &[Moves]) -> Table {
    let mut table = new_table(&["guest", "from the first instruction to", "median", "worst"]);
    let mut add = |kind: Kind, name: &str, times: Vec<f64>| {
        if !times.is_empty() {
            let times = [median(&times), times[times.len() - 1]].map(|time| number(format!("{time:.3} ms")));
            table.add_row([Cell::new(kind.name()), Cell::new(name)].into_iter().chain(times));
        }
    };
    for moves in moves {
        let Some(first) = moves.timings.first() else { continue };
        for (name, _) in &first.phases {
            let times = moves.timings.iter().filter_map(|timing| timing.phases.iter().find(|phase| phase.0 == *name));
            add(moves.kind, name, sorted(times.map(|(_, nanos)| *nanos as f64 / 1e6)));
        }
        add(moves.kind, "first reading in a process", sorted(moves.first_readings()));
    }
    table
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}
