//! `simulate`: writes a simulated trace with its truth, for `radclockd replay` and for scoring.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use simulator::family::{self, FAMILIES};
use simulator::trace::Trace;

/// Write a simulated trace: stamps with the true times beside them.
#[derive(Parser)]
#[command(name = "simulate", version)]
struct Arguments {
    /// The kind of trace; without it, the kinds are listed.
    family: Option<String>,
    /// Chooses the parameters and all noise.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End after so many hours; the family's own length if not given.
    #[arg(long, allow_negative_numbers = true)]
    hours: Option<f64>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simulate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let mut out = io::stdout().lock();
    let Some(name) = &arguments.family else {
        for family in FAMILIES {
            writeln!(out, "{:<22}{}", family.name, family.about)?;
        }
        return Ok(());
    };
    let family = family::find(name).with_context(|| format!("no family is called {name:?}; `simulate` lists them"))?;
    let mut scenario = family.scenario(arguments.seed);
    if let Some(hours) = arguments.hours {
        if !(hours > 0.0 && hours <= 10_000.0) {
            bail!("--hours {hours}: it must be above 0 and at most 10000");
        }
        scenario.hours = hours;
    }
    let trace = Trace::of(name, &scenario, &scenario.run(arguments.seed), 0);
    let text = trace.to_text(&format!("seed={} hours={}", arguments.seed, scenario.hours));
    match out.write_all(text.as_bytes()) {
        // Whoever reads it has had enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
