//! What two clocks of Dom0 are wrong by, again and again for hours: the shared clock and the system's. The probe stays in
//! Dom0 and sleeps between the samples. One sample of one domain for a check is [`crate::truth`]'s business.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::host::Host;
use crate::probe::{Answer, Probe};
use crate::timeline::Timeline;

/// The probe gives up when nobody has asked for so long.
const PROBE_PATIENCE: Duration = Duration::from_secs(600);
/// A sample is the narrowest bracket of so many, which take milliseconds.
const BRACKETS: usize = 200;
/// Of fewer, if the build machine is so busy that they take longer than this.
const PATIENCE: Duration = Duration::from_secs(2);
const SAMPLE_LIMIT: Duration = Duration::from_secs(120);
/// A mark of the build machine's time is the narrowest of so many brackets.
const MARK: usize = 1000;

/// A probe in Dom0.
pub struct Watch(Probe);

/// A clock's error at one time.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The reading less the true time, ns.
    pub error_ns: f64,
    /// What the clock said that it is wrong by at most, ns.
    pub bound_ns: f64,
}

/// Both clocks at one time.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The shared clock.
    pub shared: Reading,
    /// `CLOCK_REALTIME`, with the kernel's `maxerror`.
    pub system: Reading,
    /// True errors are within this of those above, ns.
    pub uncertainty_ns: f64,
}

impl Watch {
    /// Starts the probe. The shared clock must be readable in Dom0.
    pub fn start(host: &Host) -> Result<Watch> {
        Ok(Watch(Probe::start(host, "watch", PROBE_PATIENCE, |command| Ok(host.expression(command)))?))
    }

    /// Both clocks now.
    pub fn sample(&mut self) -> Result<Sample> {
        let mut timeline = Timeline::default();
        timeline.mark(MARK);
        let mut narrowest: Option<Answer> = None;
        let mut count = 0;
        let start = Instant::now();
        while count < BRACKETS && (count == 0 || start.elapsed() < PATIENCE) {
            ensure!(
                start.elapsed() < SAMPLE_LIMIT,
                "the probe in Dom0 has not answered for {} s",
                SAMPLE_LIMIT.as_secs()
            );
            self.0.ask(|answer| {
                count += 1;
                narrowest = narrowest.filter(|best| best.width() <= answer.width()).or(Some(answer));
            })?;
        }
        timeline.mark(MARK);
        let answer = narrowest.expect("the loop ends with one");
        let (shared, uncertainty_ns) = answer.error(answer.time, &timeline)?;
        let (system, _) = answer.error(answer.system, &timeline)?;
        Ok(Sample {
            shared: Reading { error_ns: shared, bound_ns: answer.bound_ns as f64 },
            system: Reading { error_ns: system, bound_ns: answer.system_bound_us as f64 * 1e3 },
            uncertainty_ns,
        })
    }
}
