//! The raw counters of this host, and how fast they nominally count. Nobody adjusts them.

use std::time::Duration;

use radclock::page::CounterId;
use radclock::time::Counter;
use serde::Deserialize;

use crate::xen::SystemTime;

/// Why a counter cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CounterError {
    /// Asked for, but the kernel does not trust it.
    #[error("the TSC of this machine is not stable ({0}): set clock.counter to \"monotonic-raw\" or \"auto\"")]
    UnstableTsc(String),
    /// The two clocks did not advance as they should while they were compared.
    #[error("the TSC did not advance against CLOCK_MONOTONIC_RAW: set clock.counter to \"monotonic-raw\"")]
    Calibration,
    /// Reading after reading was the same, or less.
    #[error("the counter stands still")]
    Stopped,
    /// Xen's system time cannot be read.
    #[error("cannot read Xen's system time: {0}")]
    Xen(#[from] std::io::Error),
}

/// The counter that the daemon synchronises.
#[derive(Debug)]
pub enum HostCounter {
    /// Xen's system time, ns: the same in all domains of the host.
    Xen(SystemTime),
    /// A counter of this machine, without Xen.
    Local(LocalCounter),
}

impl HostCounter {
    /// The counter now.
    pub fn read(&self) -> Result<Counter, CounterError> {
        match self {
            HostCounter::Xen(time) => Ok(Counter(time.now()?)),
            HostCounter::Local(counter) => Ok(counter.read()),
        }
    }

    /// Its number in a page.
    pub fn id(&self) -> CounterId {
        match self {
            HostCounter::Xen(_) => CounterId::XEN_SYSTEM_TIME,
            HostCounter::Local(counter) => counter.id(),
        }
    }

    /// Its name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            HostCounter::Xen(_) => "xen-system-time",
            HostCounter::Local(counter) => counter.name(),
        }
    }

    /// Its nominal period, s a count. Takes a tenth of a second to measure the TSC.
    pub fn nominal_period(&self) -> Result<f64, CounterError> {
        match self {
            HostCounter::Xen(_) => Ok(1e-9),
            HostCounter::Local(counter) => counter.nominal_period(),
        }
    }
}

/// Which counter to use without Xen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CounterChoice {
    /// The TSC if the kernel itself keeps time by it, else `CLOCK_MONOTONIC_RAW`.
    #[default]
    Auto,
    /// The TSC.
    Tsc,
    /// `CLOCK_MONOTONIC_RAW`.
    MonotonicRaw,
}

/// A counter that any process can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalCounter {
    /// The TSC.
    Tsc,
    /// `CLOCK_MONOTONIC_RAW` in ns.
    MonotonicRaw,
}

impl LocalCounter {
    /// The counter to use by `choice` on this machine.
    pub fn choose(choice: CounterChoice) -> Result<LocalCounter, CounterError> {
        match choice {
            CounterChoice::MonotonicRaw => Ok(LocalCounter::MonotonicRaw),
            CounterChoice::Tsc => match tsc_is_stable() {
                Ok(()) => Ok(LocalCounter::Tsc),
                Err(reason) => Err(CounterError::UnstableTsc(reason)),
            },
            CounterChoice::Auto => match tsc_is_stable() {
                Ok(()) => Ok(LocalCounter::Tsc),
                Err(reason) => {
                    tracing::info!("counting by CLOCK_MONOTONIC_RAW: the TSC is not stable ({reason})");
                    Ok(LocalCounter::MonotonicRaw)
                }
            },
        }
    }

    /// The counter now.
    pub fn read(self) -> Counter {
        match self {
            LocalCounter::Tsc => read_tsc(),
            LocalCounter::MonotonicRaw => Counter(monotonic_raw()),
        }
    }

    /// Its number in a page.
    pub fn id(self) -> CounterId {
        match self {
            LocalCounter::Tsc => CounterId::X86_TSC,
            LocalCounter::MonotonicRaw => CounterId::MONOTONIC_RAW,
        }
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            LocalCounter::Tsc => "tsc",
            LocalCounter::MonotonicRaw => "monotonic-raw",
        }
    }

    /// Its nominal period, s a count. Takes a tenth of a second to measure the TSC.
    pub fn nominal_period(self) -> Result<f64, CounterError> {
        match self {
            LocalCounter::Tsc => measure_tsc_period(),
            LocalCounter::MonotonicRaw => Ok(1e-9),
        }
    }
}

/// The TSC now, not before anything that precedes it in the program.
#[inline]
pub fn read_tsc() -> Counter {
    // SAFETY: LFENCE (SSE2) and RDTSC exist on every x86-64; a kernel that forbids RDTSC does not offer the TSC as
    // its clock source.
    Counter(unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    })
}

/// `CLOCK_MONOTONIC_RAW`, ns.
fn monotonic_raw() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn tsc_is_stable() -> Result<(), String> {
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    if source.trim() != "tsc" {
        return Err(format!("the kernel keeps time by {}", source.trim()));
    }
    let path = "/proc/cpuinfo";
    let cpus = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    for flag in ["constant_tsc", "nonstop_tsc"] {
        if !cpus.lines().filter(|line| line.starts_with("flags")).all(|line| line.split(' ').any(|word| word == flag)) {
            return Err(format!("a processor without {flag}"));
        }
    }
    Ok(())
}

/// Long enough that the reading's own duration (some 50 ns) is below 1 ppm.
const CALIBRATION: Duration = Duration::from_millis(100);

fn measure_tsc_period() -> Result<f64, CounterError> {
    let (tsc0, raw0) = tsc_and_raw();
    std::thread::sleep(CALIBRATION);
    let (tsc1, raw1) = tsc_and_raw();
    let counts = tsc1.since(tsc0);
    if counts <= 0 || raw1 <= raw0 {
        return Err(CounterError::Calibration);
    }
    Ok((raw1 - raw0) as f64 * 1e-9 / counts as f64)
}

/// Both read at once: the narrowest of a few brackets.
fn tsc_and_raw() -> (Counter, u64) {
    let bracket = |_| {
        let low = read_tsc();
        let raw = monotonic_raw();
        let width = read_tsc().since(low).max(0);
        (width, low.offset(width / 2), raw)
    };
    let (_, tsc, raw) = (0..10).map(bracket).min_by_key(|&(width, ..)| width).expect("ten tries");
    (tsc, raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_advances_by_its_nominal_period() {
        for counter in [LocalCounter::Tsc, LocalCounter::MonotonicRaw] {
            let period = counter.nominal_period().unwrap();
            let (start, first) = (std::time::Instant::now(), counter.read());
            std::thread::sleep(Duration::from_millis(50));
            let counted = counter.read().since(first) as f64 * period;
            let elapsed = start.elapsed().as_secs_f64();
            assert!((counted / elapsed - 1.0).abs() < 0.02, "{counter:?}: {counted} s in {elapsed} s");
        }
    }
}
