//! Experiments: longer than a test, and they judge nothing but what must never be. Each ends in a report with tables, plots and figures.

mod accuracy;
mod accuracy_lab;
mod counters;
mod faults;
mod migration;
mod peer;
mod scale;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::packages;
use crate::payload::target_dir;
use crate::report::Report;

/// A question, and what answers it.
pub struct Experiment {
    /// As on the command line.
    pub name: &'static str,
    /// The question, in a line.
    pub about: &'static str,
    /// Answers it.
    pub run: fn(&Options) -> Result<Report>,
}

/// What the command line says, besides the name and where to write.
#[derive(Debug)]
pub struct Options {
    /// In a few minutes, with what that allows.
    pub quick: bool,
    /// Folders of recorded traces to use besides the simulated ones.
    pub traces: Vec<PathBuf>,
}

/// All experiments.
pub const EXPERIMENTS: &[Experiment] = &[
    Experiment {
        name: "accuracy",
        about: "the clock on simulated and given traces, beside ClockBound's (half a minute; --quick: 4 s)",
        run: accuracy::run,
    },
    Experiment {
        name: "accuracy-lab",
        about: "Dom0's clock in the lab, beside chronyd's on the same path (an hour; --quick: 5 min)",
        run: accuracy_lab::run,
    },
    Experiment {
        name: "counters",
        about: "HPET, Xen's system time and the TSC as the counter of a clock, on the same exchanges (11 min; --quick: 4 min)",
        run: counters::run,
    },
    Experiment {
        name: "faults",
        about: "what readings are worth while all goes wrong around the clock (55 min; --quick: 5 min)",
        run: faults::run,
    },
    Experiment {
        name: "migration",
        about: "A guest's time across a live migration, ours and that of today's daemons (40 min; --quick: 12 min)",
        run: migration::run,
    },
    Experiment {
        name: "scale",
        about: "what a guest costs the host, by the number of guests (12 min; --quick: 5 min)",
        run: scale::run,
    },
];

/// Runs one and writes its report to `out`, or to `experiments/NAME` where cargo builds. Without a name, lists them.
pub fn run(name: Option<&str>, out: Option<&Path>, options: &Options) -> Result<()> {
    let Some(name) = name else {
        for Experiment { name, about, .. } in EXPERIMENTS {
            println!("{name:<16}{about}");
        }
        return Ok(());
    };
    let experiment = EXPERIMENTS.iter().find(|experiment| experiment.name == name);
    let experiment = experiment.with_context(|| {
        let names: Vec<&str> = EXPERIMENTS.iter().map(|experiment| experiment.name).collect();
        format!("no experiment is called {name:?}; there are: {}", names.join(", "))
    })?;
    ensure!(options.traces.is_empty() || name == "accuracy", "--traces is for the experiment `accuracy` only");
    let out = out.map_or_else(|| target_dir().join("experiments").join(name), Path::to_owned);
    // Before hours of work are lost.
    std::fs::create_dir_all(&out).with_context(|| format!("--out {}", out.display()))?;
    for dir in &options.traces {
        ensure!(dir.is_dir(), "--traces {}: no such folder", dir.display());
    }
    packages::install()?;
    let report = (experiment.run)(options)?;
    report.write(&out, name, options.quick)?;
    println!("{}\nThis report, its plots and figures.json are in {}", report.markdown(), out.display());
    ensure!(report.failure().is_none(), "{}", report.failure().unwrap_or_default());
    Ok(())
}
