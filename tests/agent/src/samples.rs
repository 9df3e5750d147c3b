//! Readings of a clock as they are written down in a domain, a line each, and read on the build machine.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// One reading, or that there was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The domain's TSC at the reading.
    pub tsc: u64,
    /// The reading was taken within so many counts of it, on either side.
    pub half_width: u64,
    /// The shared clock's disruption marker then: it changes with each migration.
    pub disruption_marker: u64,
    /// The time, ns since 1970, and the bound on its error, ns; nothing if the clock could not be read.
    pub reading: Option<(u64, u64)>,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.tsc, self.half_width, self.disruption_marker)?;
        match self.reading {
            Some((time, bound)) => write!(f, " {time} {bound}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Sample {
    type Err = Error;

    fn from_str(line: &str) -> Result<Sample> {
        let numbers: Result<Vec<u64>, _> = line.split_ascii_whitespace().map(str::parse).collect();
        let numbers = numbers.with_context(|| format!("a record: {line:?}"))?;
        match numbers[..] {
            [tsc, half_width, disruption_marker] => Ok(Sample { tsc, half_width, disruption_marker, reading: None }),
            [tsc, half_width, disruption_marker, time, bound] => {
                Ok(Sample { tsc, half_width, disruption_marker, reading: Some((time, bound)) })
            }
            _ => anyhow::bail!("a record: {line:?}"),
        }
    }
}

/// The system's clock beside the shared one.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Difference {
    /// `CLOCK_REALTIME` less the shared clock, ns.
    pub offset_ns: i64,
    /// How far off that may be, ns.
    pub half_width_ns: i64,
    /// The shared clock's bound, ns.
    pub bound_ns: u64,
    /// The kernel's `maxerror`, ns.
    pub system_bound_ns: u64,
    /// Whether the kernel calls its clock synchronised.
    pub synchronized: bool,
    /// The kernel's TAI − UTC, s.
    pub tai_offset_s: i32,
}

/// What the kernel says of its clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    /// Bound on its error, µs.
    pub max_error_us: u64,
    /// Whether somebody vouches for it.
    pub synchronized: bool,
    /// TAI − UTC, s.
    pub tai_offset_s: i32,
}

/// Asks the kernel.
pub fn system_clock() -> Result<SystemClock> {
    // SAFETY: all zeroes is a valid timex, and asks for nothing to be changed.
    let mut timex: nix::libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: it points to a timex that the call may write to.
    Errno::result(unsafe { nix::libc::adjtimex(&mut timex) }).context("adjtimex")?;
    Ok(SystemClock {
        max_error_us: timex.maxerror.cast_unsigned(),
        synchronized: timex.status & nix::libc::STA_UNSYNC == 0,
        tai_offset_s: timex.tai,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let none = Sample { tsc: 1, half_width: 2, disruption_marker: 3, reading: None };
        let some = Sample { reading: Some((1_795_348_800_000_000_000, 20_000)), ..none };
        for record in [none, some] {
            assert_eq!(record.to_string().parse::<Sample>().unwrap(), record);
        }
        assert!("1 2".parse::<Sample>().is_err() && "1 2 x".parse::<Sample>().is_err());
    }
}
