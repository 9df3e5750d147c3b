//! The raw counters of this host, and how fast they nominally count. Nobody adjusts them.

use std::time::Duration;

use radclock::page::CounterId;
use radclock::time::Counter;
use serde::Deserialize;

use crate::xen::XenError;
use crate::xen_counter::XenCounter;

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
    /// Xen does not say what the counter is.
    #[error("cannot read Xen's counters: {0}")]
    Xen(#[from] std::io::Error),
    /// There is no Xen to ask, or it does not answer.
    #[error("{0}")]
    NoXen(#[from] XenError),
    /// A counter for machines without Xen.
    #[error(
        "clock.counter = \"monotonic-raw\" is for --local: with Xen it is \"xen-clocksource\", \"tsc\", \"platform\" or \"auto\""
    )]
    OnlyLocal,
    /// A counter that Xen has.
    #[error("clock.counter is a counter of Xen's: with --local it is \"tsc\", \"monotonic-raw\" or \"auto\"")]
    OnlyXen,
}

/// A value, and the counter before and after it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Around<T> {
    /// Not after the value.
    pub low: Counter,
    /// What was read in between.
    pub value: T,
    /// Not before the value.
    pub high: Counter,
}

/// The counter that the daemon synchronises.
#[derive(Debug)]
pub enum HostCounter {
    /// One of the host's, by Xen.
    Xen(XenCounter),
    /// A counter of this machine, without Xen.
    Local(LocalCounter),
}

impl HostCounter {
    /// The counter now.
    pub fn read(&self) -> Result<Counter, CounterError> {
        match self {
            HostCounter::Xen(counter) => Ok(counter.read()?),
            HostCounter::Local(counter) => Ok(counter.read()),
        }
    }

    /// Reads something else between two readings of the counter.
    pub fn around<T>(&self, read: impl FnOnce() -> T) -> Result<Around<T>, CounterError> {
        match self {
            HostCounter::Xen(counter) => Ok(counter.around(read)?),
            HostCounter::Local(counter) => {
                let (low, value, high) = (counter.read(), read(), counter.read());
                Ok(Around { low, value, high })
            }
        }
    }

    /// Its number in a page.
    pub fn id(&self) -> CounterId {
        match self {
            HostCounter::Xen(counter) if counter.is_system_time() => CounterId::XEN_SYSTEM_TIME,
            HostCounter::Xen(counter) if counter.is_tsc() => CounterId::X86_TSC,
            // No page is over it.
            HostCounter::Xen(_) => CounterId::INVALID,
            HostCounter::Local(counter) => counter.id(),
        }
    }

    /// Its name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            HostCounter::Xen(counter) => counter.name(),
            HostCounter::Local(counter) => counter.name(),
        }
    }

    /// Its nominal period, s a count. Takes a tenth of a second to measure the TSC.
    pub fn nominal_period(&self) -> Result<f64, CounterError> {
        match self {
            HostCounter::Xen(counter) => Ok(counter.nominal_period()),
            HostCounter::Local(counter) => counter.nominal_period(),
        }
    }
}

/// Which counter to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CounterChoice {
    /// With Xen its system time. Without, the TSC if the kernel itself keeps time by it, else `CLOCK_MONOTONIC_RAW`.
    #[default]
    Auto,
    /// Xen's system time, ns: the same in all domains of the host.
    XenClocksource,
    /// The TSC. With Xen only where that samples all counters at one instant (`hypervisor-patch/`).
    Tsc,
    /// The timer from which Xen derives its system time; likewise.
    Platform,
    /// `CLOCK_MONOTONIC_RAW`, without Xen.
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
            CounterChoice::XenClocksource | CounterChoice::Platform => Err(CounterError::OnlyXen),
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
    tsc_is_invariant()
}

/// Whether all processors promise a TSC of one rate that never stops; if not, why.
pub fn tsc_is_invariant() -> Result<(), String> {
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
