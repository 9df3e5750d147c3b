//! What two clocks of Dom0 are wrong by, again and again for hours: the shared clock and the system's. A probe stays in
//! Dom0 and sleeps between the samples. One sample of one domain for a check is [`crate::truth`]'s business.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab_agent::{Exchange, tsc};
use memmap2::MmapRaw;
use radclock::time::Timestamp;

use crate::command::{self, Background};
use crate::host::Host;
use crate::truth::{Memory, RealTime, Scale, random_magic};
use crate::wait;

/// The probe gives up when nobody has asked for so long.
const PROBE_LIMIT: Duration = Duration::from_secs(600);
/// A sample is the narrowest bracket of so many, which take milliseconds.
const BRACKETS: usize = 200;
/// Of fewer, if the build machine is so busy that they take longer than this.
const PATIENCE: Duration = Duration::from_secs(2);
const SAMPLE_LIMIT: Duration = Duration::from_secs(120);

/// A probe in Dom0.
pub struct Watch {
    probe: Background,
    map: MmapRaw,
}

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

struct Bracket {
    asked: u64,
    answered: u64,
    shared: Timestamp,
    shared_bound_ns: u64,
    system: Timestamp,
    system_bound_us: u64,
}

impl Watch {
    /// Starts the probe. The shared clock must be readable in Dom0.
    pub fn start(host: &Host) -> Result<Watch> {
        let memory = Memory::of(host)?;
        let magic = random_magic()?;
        let command = format!("lab-probe watch {:016x}{:016x} {}", magic[1], magic[0], PROBE_LIMIT.as_secs());
        let probe = Background::start("ssh", &host.expression(&command).stdout_capture().stderr_capture())?;
        let found = memory.find(magic);
        if found.is_err()
            && let Some(output) = probe.ended()?
        {
            command::success(&command, &output)?;
        }
        Ok(Watch { probe, map: memory.exchange(found?)? })
    }

    /// Both clocks now.
    pub fn sample(&self) -> Result<Sample> {
        let before = RealTime::now();
        let brackets = self.brackets()?;
        let after = RealTime::now();
        let scale = Scale::between(&before, &after);
        let narrowest = brackets.iter().min_by_key(|bracket| bracket.answered - bracket.asked).context("no answer")?;
        let error = |time| scale.error(time, narrowest.asked, narrowest.answered);
        let (shared, uncertainty_ns) = error(narrowest.shared);
        let (system, _) = error(narrowest.system);
        Ok(Sample {
            shared: Reading { error_ns: shared, bound_ns: narrowest.shared_bound_ns as f64 },
            system: Reading { error_ns: system, bound_ns: narrowest.system_bound_us as f64 * 1e3 },
            uncertainty_ns,
        })
    }

    fn exchange(&self) -> &Exchange {
        // SAFETY: the mapping is a page long, aligned, and lives as long as this; the struct is all atomics.
        unsafe { &*self.map.as_ptr().cast::<Exchange>() }
    }

    fn brackets(&self) -> Result<Vec<Bracket>> {
        let exchange = self.exchange();
        let mut brackets = Vec::new();
        let mut last = exchange.answer.load(Ordering::Acquire);
        let start = Instant::now();
        while brackets.len() < BRACKETS && (brackets.is_empty() || start.elapsed() < PATIENCE) {
            wait::check()?;
            if let Some(output) = self.probe.ended()? {
                command::success("lab-probe watch", &output)?;
            }
            if start.elapsed() > SAMPLE_LIMIT {
                bail!("the probe in Dom0 has not answered for {} s", SAMPLE_LIMIT.as_secs());
            }
            for _ in 0..1000 {
                exchange.question.store(tsc(), Ordering::Release);
                let asked = exchange.answer.load(Ordering::Acquire);
                if asked == 0 || asked == last {
                    continue;
                }
                let answered = tsc();
                let [secs, frac, shared_bound_ns, ..] =
                    exchange.sample.each_ref().map(|word| word.load(Ordering::Relaxed));
                let [system, system_bound_us] = exchange.system.each_ref().map(|word| word.load(Ordering::Relaxed));
                fence(Ordering::Acquire);
                if exchange.answer.load(Ordering::Relaxed) != asked {
                    continue;
                }
                last = asked;
                brackets.push(Bracket {
                    asked,
                    answered,
                    shared: Timestamp::new(secs, frac),
                    shared_bound_ns,
                    system: Timestamp::from_unix(system / 1_000_000_000, system % 1_000_000_000),
                    system_bound_us,
                });
            }
        }
        Ok(brackets)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.exchange().stop.store(1, Ordering::Relaxed);
    }
}
