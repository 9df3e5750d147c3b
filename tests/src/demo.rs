//! The demonstration: one clock for Dom0, a PV and a PVH guest, and what it is worth, domain by domain.

use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use crate::divergence::{self, Divergence};
use crate::guest::{GUEST_LIMIT, Guest, Kind};
use crate::host::Host;
use crate::progress::Step;
use crate::truth::{self, Truth};
use crate::{Lab, command};

const TRUTH_DURATION: Duration = Duration::from_secs(2);

/// The guests of the demonstration.
pub const GUESTS: [(&str, Kind); 2] = [("pv", Kind::Pv), ("pvh", Kind::Pvh)];

impl Kind {
    /// How far a guest may be from Dom0's clock at the same value of Xen's system time, ns, beyond what its bound says. Under
    /// emulation Xen keeps changing the TSC scale of a PVH guest, and the driver cannot see each change at once.
    pub fn divergence_limit_ns(self) -> f64 {
        match self {
            Kind::Pv => 1_000.0,
            Kind::Pvh => 10_000.0,
        }
    }
}

/// What was found of one domain, as the JSON file has it.
#[derive(Debug, Serialize)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// `dom0`, `pv` or `pvh`.
    pub kind: &'static str,
    /// `synchronized`, or `unsynchronized` if it was not all the time.
    pub status: &'static str,
    /// Its reading less the true time, ns.
    pub error_ns: i64,
    /// The bound that the reading claimed, ns.
    pub bound_ns: u64,
    /// Its time less Dom0's at the same value of Xen's system time, ns; of several, the furthest off.
    pub divergence_ns: i64,
    /// What one reading costs, ns.
    pub read_ns: u64,
    /// Everything of the first three.
    #[serde(skip)]
    pub truth: Truth,
    #[serde(skip)]
    divergence: Divergence,
    #[serde(skip)]
    divergence_limit_ns: f64,
}

/// All domains, as the JSON file has them.
#[derive(Debug, Serialize)]
pub struct Domains {
    /// Dom0 first.
    pub domains: Vec<Domain>,
}

/// Starts the daemon and the guests, and waits until all domains are synchronised.
pub fn synchronise(host: &Host) -> Result<Vec<Guest<'_>>> {
    synchronise_with(host, &host.configuration())
}

/// The same with another configuration of the daemon.
pub fn synchronise_with<'host>(host: &'host Host, configuration: &str) -> Result<Vec<Guest<'host>>> {
    host.start_radclockd_with(configuration)?;
    let step = Step::begin("Starting a PV and a PVH guest");
    let guests = GUESTS.map(|(name, kind)| host.create(name, kind)).into_iter().collect::<Result<Vec<_>>>()?;
    for guest in &guests {
        guest.await_boot()?;
    }
    step.done();
    let step = Step::begin("Synchronising");
    host.await_synchronized()?;
    for guest in &guests {
        guest.await_synchronized()?;
    }
    step.done();
    Ok(guests)
}

/// Measures Dom0 and the guests.
pub fn measure(host: &Host, guests: &[Guest]) -> Result<Domains> {
    let step = Step::begin("Measuring Dom0");
    let truth = truth::measure(host, TRUTH_DURATION, |probe| Ok(host.expression(probe)))?;
    let read_ns = host.run("lab-probe cost")?.trim().parse()?;
    let mut domains = vec![Domain::new("Domain-0", "dom0", truth, Divergence::default(), 0.0, read_ns)];
    step.done();
    for guest in guests {
        let step = Step::begin(format!("Measuring the guest {}", guest.name()));
        let truth = truth::measure(host, TRUTH_DURATION, |probe| guest.expression(probe))?;
        let divergence = divergence::measure(host, guest)?;
        let read_ns = guest.run("lab-probe cost")?.trim().parse()?;
        let (kind, limit) = (guest.kind().name(), guest.kind().divergence_limit_ns());
        domains.push(Domain::new(guest.name(), kind, truth, divergence, limit, read_ns));
        step.done();
    }
    Ok(Domains { domains })
}

impl Domain {
    fn new(name: &str, kind: &'static str, truth: Truth, divergence: Divergence, limit: f64, read_ns: u64) -> Domain {
        Domain {
            name: name.to_owned(),
            kind,
            status: if truth.synchronized { "synchronized" } else { "unsynchronized" },
            error_ns: truth.error_ns.round() as i64,
            bound_ns: truth.bound_ns,
            divergence_ns: divergence.largest_ns.round() as i64,
            divergence,
            read_ns,
            truth,
            divergence_limit_ns: limit,
        }
    }
}

impl Domains {
    /// What is not as it must be, a line each.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for domain in &self.domains {
            let Domain { name, truth, divergence, divergence_limit_ns, .. } = domain;
            if !truth.synchronized {
                faults.push(format!("{name} is not synchronised"));
            }
            if !truth.is_inside() {
                let Truth { error_ns, uncertainty_ns, bound_ns, violations, samples, .. } = truth;
                faults.push(format!(
                    "{name}: an error of {error_ns:.0} ns (± {uncertainty_ns:.0}) is not inside of the bound of \
                     {bound_ns} ns; {violations} of {samples} readings were outside of theirs"
                ));
            }
            let unknown = divergence.largest_unknown_ns;
            if unknown.abs() > *divergence_limit_ns {
                faults.push(format!(
                    "{name} differs from Dom0 by {unknown:.0} ns, more than {divergence_limit_ns} and than its bound says"
                ));
            }
        }
        faults
    }

    /// For a person.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header([
            "domain",
            "kind",
            "status",
            "time (UTC)",
            "claimed bound",
            "true error",
            "differs from Dom0",
            "one read",
        ]);
        for domain in &self.domains {
            let (seconds, nanos) = (domain.truth.time.secs() % 86_400, domain.truth.time.subsec_nanos());
            let time = format!("{:02}:{:02}:{:02}.{nanos:09}", seconds / 3600, seconds / 60 % 60, seconds % 60);
            let difference = if domain.kind == "dom0" { "-".to_owned() } else { micros(domain.divergence_ns as f64) };
            let error = format!("{} ± {:.1}", micros(domain.truth.error_ns), domain.truth.uncertainty_ns / 1e3);
            let words = [domain.name.clone(), domain.kind.to_owned(), domain.status.to_owned(), time];
            let figures =
                [format!("± {}", micros(domain.bound_ns as f64)), error, difference, format!("{} ns", domain.read_ns)];
            let figures = figures.map(|figure| Cell::new(figure).set_alignment(CellAlignment::Right));
            table.add_row(words.map(Cell::new).into_iter().chain(figures));
        }
        table
    }
}

fn micros(nanos: f64) -> String {
    format!("{:.1} µs", nanos / 1e3)
}

/// The whole demonstration. `Ok` only if all is as it must be.
pub fn run(lab: &Lab, json: Option<&std::path::Path>) -> Result<()> {
    let host = lab.boot()?;
    let guests = synchronise(&host)?;
    let domains = measure(&host, &guests)?;
    println!("{}", domains.table());
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&domains)? + "\n")?;
    }
    let faults = domains.faults();
    anyhow::ensure!(faults.is_empty(), "{}", faults.join("\n"));
    println!("Every domain is synchronised, every true error is inside of its bound, and the guests agree with Dom0.");
    Ok(())
}

impl Guest<'_> {
    /// Waits until the clock is synchronised in the guest.
    pub fn await_synchronized(&self) -> Result<()> {
        self.await_state("synchronized", 60)
    }

    /// Waits until the guest's clock is `synchronized`, `freerunning` or `unreadable`.
    pub fn await_state(&self, state: &str, seconds: u64) -> Result<()> {
        let wait = format!("lab-probe await {state} {seconds}");
        let output = self.output(&wait, GUEST_LIMIT + Duration::from_secs(seconds));
        output
            .and_then(|output| command::success(&format!("{}: {wait}", self.name()), &output))
            .map(drop)
            .with_context(|| self.last_words())
    }
}
