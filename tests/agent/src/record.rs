//! Reads one clock of a domain again and again, and writes each reading down with the TSC at which it was taken: the
//! build machine, which knows its own TSC's relation to that one, can tell how wrong each was. Or compares the system's
//! clock with the shared one, here and now. For the lab.
//!
//! It needs no question from outside, so it goes on through a migration.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use lab_agent::samples::{Difference, Sample, system_clock};
use lab_agent::tsc;
use nix::time::{ClockId, clock_gettime};
use xen_radclock::RadClock;

/// Of so many readings, the one in the narrowest bracket is written down.
const BRACKETS: usize = 5;
/// How soon to try again when a clock cannot be read.
const RETRY: Duration = Duration::from_millis(1);

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a line a reading to FILE until it is ended.
    Write { clock: Clock, file: PathBuf, milliseconds: u64 },
    /// Print how far the system's clock is from the shared one, as JSON.
    Difference,
}

#[derive(Clone, Copy, ValueEnum)]
enum Clock {
    /// The shared clock, with its bound.
    Shared,
    /// `CLOCK_REALTIME`, with the kernel's `maxerror`.
    System,
}

fn main() -> ExitCode {
    let result = match &Arguments::parse().command {
        Command::Write { clock, file, milliseconds } => write(*clock, file, Duration::from_millis(*milliseconds)),
        Command::Difference => difference(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-record: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn write(which: Clock, path: &Path, period: Duration) -> Result<()> {
    let mut file = File::create(path).with_context(|| path.display().to_string())?;
    let clock = RadClock::open()?;
    let mut next = Instant::now();
    loop {
        let record = match which {
            Clock::Shared => shared(&clock),
            Clock::System => system(&clock)?,
        };
        writeln!(file, "{record}").with_context(|| path.display().to_string())?;
        let pause = if record.reading.is_some() { period } else { RETRY };
        next = (next + pause).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn difference() -> Result<()> {
    let clock = RadClock::open()?;
    let bracket = |_| {
        let before = system_nanos();
        let reading = clock.now()?;
        let after = system_nanos();
        Ok((after - before, before, reading))
    };
    let brackets = (0..100).map(bracket).collect::<Result<Vec<_>>>()?;
    let (width, before, reading) = brackets.into_iter().min_by_key(|(width, ..)| *width).context("no reading")?;
    let kernel = system_clock()?;
    let difference = Difference {
        offset_ns: before + width / 2 - reading.time.as_nanos().cast_signed(),
        half_width_ns: width / 2 + 1,
        bound_ns: reading.max_error_nanos(),
        system_bound_ns: kernel.max_error_us * 1000,
        synchronized: kernel.synchronized,
        tai_offset_s: kernel.tai_offset_s,
    };
    println!("{}", serde_json::to_string(&difference)?);
    Ok(())
}

/// `CLOCK_REALTIME`, ns since 1970.
fn system_nanos() -> i64 {
    let time = clock_gettime(ClockId::CLOCK_REALTIME).expect("every Linux has it");
    time.tv_sec() * 1_000_000_000 + time.tv_nsec()
}

fn shared(clock: &RadClock) -> Sample {
    match clock.now() {
        Ok(reading) => Sample {
            tsc: reading.sample.counter.0,
            half_width: 0,
            disruption_marker: reading.sample.disruption_marker,
            reading: Some((reading.time.as_nanos(), reading.max_error_nanos())),
        },
        Err(_) => Sample { tsc: tsc(), half_width: 0, disruption_marker: marker(clock), reading: None },
    }
}

fn system(clock: &RadClock) -> Result<Sample> {
    let bracket = |_| {
        let before = tsc();
        let nanos = system_nanos();
        let after = tsc();
        (after.wrapping_sub(before), before, nanos)
    };
    let (width, before, nanos) = (0..BRACKETS).map(bracket).min_by_key(|bracket| bracket.0).expect("some");
    Ok(Sample {
        tsc: before + width / 2,
        half_width: width / 2 + 1,
        disruption_marker: marker(clock),
        reading: Some((nanos.cast_unsigned(), system_clock()?.max_error_us * 1000)),
    })
}

/// Tells the readings before a migration from those after it, which have another TSC.
fn marker(clock: &RadClock) -> u64 {
    loop {
        if let Ok(sample) = clock.sample() {
            return sample.disruption_marker;
        }
    }
}
