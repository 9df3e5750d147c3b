//! `radclock bench`: what one reading costs here, beside what it is to be compared with, in the same run.

use std::hint::black_box;
use std::io::{self, Write};
use std::time::{Instant, SystemTime};

use serde::Serialize;
use xen_radclock::RadClock;

use crate::{Failure, format};

#[derive(clap::Args)]
pub struct Args {
    /// How many batches of each
    #[arg(long, value_name = "N", default_value_t = 1001, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batches: u32,
}

/// Readings in a batch: long against the two readings of the clock around it.
const BATCH: u32 = 1000;

/// Median nanoseconds a reading.
#[derive(Serialize)]
struct Result {
    now_ns: f64,
    clock_gettime_ns: f64,
    /// Nothing where the processor has none.
    rdtscp_ns: Option<f64>,
    batches: u32,
    batch: u32,
}

pub fn run(clock: &RadClock, args: &Args, json: bool) -> std::result::Result<(), Failure> {
    clock.now()?;
    let has_rdtscp = has_rdtscp();
    let mut samples: [Vec<f64>; 3] = Default::default();
    // In turns, so that all three meet the same disturbances.
    for _ in 0..args.batches {
        samples[0].push(batch(|| clock.now()));
        samples[1].push(batch(SystemTime::now));
        if has_rdtscp {
            samples[2].push(batch(rdtscp));
        }
    }
    let [now, gettime, rdtscp] = samples.map(median);
    let result = Result {
        now_ns: now.unwrap_or_default(),
        clock_gettime_ns: gettime.unwrap_or_default(),
        rdtscp_ns: rdtscp,
        batches: args.batches,
        batch: BATCH,
    };
    if json {
        format::json(&result)?;
        return Ok(());
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{:<36}{:>8.1} ns", "radclock now(), bound included", result.now_ns)?;
    writeln!(out, "{:<36}{:>8.1} ns", "clock_gettime(CLOCK_REALTIME)", result.clock_gettime_ns)?;
    if let Some(rdtscp) = result.rdtscp_ns {
        writeln!(out, "{:<36}{rdtscp:>8.1} ns", "rdtscp")?;
    }
    writeln!(out, "medians of {} batches of {} readings", result.batches, result.batch)?;
    Ok(())
}

/// Nanoseconds a call.
fn batch<T>(mut read: impl FnMut() -> T) -> f64 {
    let start = Instant::now();
    for _ in 0..BATCH {
        black_box(read());
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH)
}

fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}

#[cfg(target_arch = "x86_64")]
fn has_rdtscp() -> bool {
    use std::arch::x86_64::__cpuid;
    __cpuid(0x8000_0000).eax >= 0x8000_0001 && __cpuid(0x8000_0001).edx & (1 << 27) != 0
}

#[cfg(target_arch = "x86_64")]
fn rdtscp() -> u64 {
    let mut aux = 0;
    // SAFETY: only called where the processor says that it has it.
    unsafe { std::arch::x86_64::__rdtscp(&mut aux) }
}
