//! A probe in a domain, which answers the build machine with readings of the domain's clocks.
//!
//! The memory of a host is a file on the build machine. The probe (`lab-probe`) owns a page in it ([`Exchange`]); the build
//! machine keeps writing its own TSC there, and the probe answers each value that it sees. So the clocks were read after
//! the build machine's TSC was that value, and before the build machine saw the answer.

use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab_agent::{Exchange, tsc};
use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use radclock::page::PAGE_SIZE;
use radclock::time::Timestamp;

use crate::command::{self, Background};
use crate::host::Host;
use crate::timeline::Timeline;
use crate::wait;

/// QEMU reads the TSC without waiting for the load before it, so a reading can seem to be taken before its question was
/// there, by as long as a cache line takes from one core to another. Brackets are this much wider at both ends, in counts.
pub(crate) const REORDERING: u64 = 1000;
const LIMIT: Duration = Duration::from_secs(60);
/// How often the page is looked at for an answer before anything else is: a look at a clock takes longer than an answer
/// does to arrive.
const LOOKS: usize = 1000;

/// The memory of a running host.
pub struct Memory {
    file: File,
}

impl Memory {
    /// The memory of this host.
    pub fn of(host: &Host) -> Result<Memory> {
        let descriptors = format!("/proc/{}/fd", host.qemu_pid());
        for descriptor in fs::read_dir(&descriptors).context(descriptors)? {
            let path = descriptor?.path();
            if fs::read_link(&path).is_ok_and(|target| target.to_string_lossy().contains("memfd:memory-backend")) {
                return Ok(Memory { file: OpenOptions::new().read(true).write(true).open(path)? });
            }
        }
        bail!("QEMU's memory is not shared")
    }

    /// Where pages with this magic are now: the probe's own, and copies of it.
    pub(crate) fn find_all(&self, magic: [u64; 2]) -> Result<Vec<u64>> {
        let magic: Vec<u8> = magic.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut found = Vec::new();
        let mut next = 0;
        while let Some(range) = self.data_after(next)? {
            // SAFETY: the file is not truncated while QEMU runs; what changes under the mapping is only compared.
            let map = unsafe {
                let length = (range.end - range.start) as usize;
                MmapOptions::new().offset(range.start).len(length).map(&self.file)?
            };
            let pages = map.chunks(PAGE_SIZE).enumerate().filter(|(_, page)| page[..16] == magic);
            found.extend(pages.map(|(page, _)| range.start + (page * PAGE_SIZE) as u64));
            next = range.end;
        }
        Ok(found)
    }

    /// The next part of the file that is not a hole.
    fn data_after(&self, offset: u64) -> Result<Option<Range<u64>>> {
        match lseek(self.file.as_fd(), offset as i64, Whence::SeekData) {
            Ok(start) => Ok(Some(start as u64..lseek(self.file.as_fd(), start, Whence::SeekHole)? as u64)),
            Err(Errno::ENXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn page(&self, offset: u64) -> Result<MmapRaw> {
        Ok(MmapOptions::new().offset(offset).len(PAGE_SIZE).map_raw(&self.file)?)
    }
}

/// Marks a page so that nobody else's is taken for it.
pub(crate) fn random_magic() -> Result<[u64; 2]> {
    let mut bytes = [0; 16];
    std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
    let word = |range: Range<usize>| u64::from_le_bytes(bytes[range].try_into().expect("8 bytes"));
    Ok([word(0..8), word(8..16)])
}

/// What the probe read between two values of the build machine's TSC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) asked: u64,
    pub(crate) answered: u64,
    /// The shared clock's time.
    pub(crate) time: Timestamp,
    /// The bound that it claimed, ns.
    pub(crate) bound_ns: u64,
    /// The value of its counter.
    pub(crate) counter: u64,
    pub(crate) synchronized: bool,
    /// `CLOCK_REALTIME` right after it, and what the kernel says that its error is at most, µs; where it was asked for.
    pub(crate) system: Timestamp,
    pub(crate) system_bound_us: u64,
}

impl Answer {
    pub(crate) fn width(&self) -> u64 {
        self.answered - self.asked
    }

    /// What a reading in this answer was wrong by, ns, and how far off that may be.
    pub(crate) fn error(&self, reading: Timestamp, timeline: &Timeline) -> Result<(f64, f64)> {
        let at = |tsc| timeline.at(tsc).context("the time was not marked");
        let (earliest, before) = at(self.asked - REORDERING)?;
        let (latest, after) = at(self.answered + REORDERING)?;
        let error = |time: i64| reading.as_nanos().wrapping_sub(time as u64).cast_signed() as f64;
        let (most, least) = (error(earliest), error(latest));
        Ok(((most + least) / 2.0, (most - least) / 2.0 + before.max(after) as f64))
    }
}

/// A running probe.
pub(crate) struct Probe {
    command: String,
    running: Background,
    map: MmapRaw,
    last: u64,
}

impl Probe {
    /// Starts `lab-probe` in a domain of this host; `expression` makes a command line into what runs it there. `mode` is its
    /// subcommand, `patience` how long it waits for questions before it gives up.
    pub(crate) fn start(
        host: &Host,
        mode: &str,
        patience: Duration,
        expression: impl FnOnce(&str) -> Result<duct::Expression>,
    ) -> Result<Probe> {
        let memory = Memory::of(host)?;
        let magic = random_magic()?;
        let command = format!("lab-probe {mode} {:016x}{:016x} {}", magic[1], magic[0], patience.as_secs());
        let running = Background::start("ssh", &expression(&command)?.stdout_capture().stderr_capture())?;
        let offset = wait::until("the probe's page", LIMIT, || {
            if let Some(output) = running.ended()? {
                command::success(&command, &output)?;
            }
            Ok(memory.find_all(magic)?.first().copied())
        })?;
        Ok(Probe { command, running, map: memory.page(offset)?, last: 0 })
    }

    fn exchange(&self) -> &Exchange {
        // SAFETY: the mapping is a page long, aligned, and lives as long as this; the struct is all atomics.
        unsafe { &*self.map.as_ptr().cast::<Exchange>() }
    }

    /// Asks for some milliseconds, and gives each answer to `each`. An error if the probe has ended.
    pub(crate) fn ask(&mut self, mut each: impl FnMut(Answer)) -> Result<()> {
        wait::check()?;
        if let Some(output) = self.running.ended()? {
            command::success(&self.command, &output)?;
            bail!("{} has ended", self.command);
        }
        for _ in 0..LOOKS {
            let exchange = self.exchange();
            exchange.question.store(tsc(), Ordering::Release);
            let asked = exchange.answer.load(Ordering::Acquire);
            if asked == 0 || asked == self.last {
                continue;
            }
            let answered = tsc();
            let sample = exchange.sample.each_ref().map(|word| word.load(Ordering::Relaxed));
            let [system, system_bound_us] = exchange.system.each_ref().map(|word| word.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if exchange.answer.load(Ordering::Relaxed) != asked {
                continue;
            }
            self.last = asked;
            let [secs, frac, bound_ns, counter, synchronized] = sample;
            each(Answer {
                asked,
                answered,
                time: Timestamp::new(secs, frac),
                bound_ns,
                counter,
                synchronized: synchronized == 1,
                system: Timestamp::from_unix(system / 1_000_000_000, system % 1_000_000_000),
                system_bound_us,
            });
        }
        Ok(())
    }

    /// Ends it, and sees that nothing went wrong in it.
    pub(crate) fn end(self) -> Result<()> {
        self.exchange().stop.store(1, Ordering::Relaxed);
        let output = wait::until("the probe to end", LIMIT, || self.running.ended())?;
        command::success(&self.command, &output)?;
        Ok(())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.exchange().stop.store(1, Ordering::Relaxed);
    }
}
