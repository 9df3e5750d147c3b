//! What a clock's error really is, without assuming anything of emulation or of Xen.
//!
//! The memory of a host is a file on the build machine. A probe in a domain owns a page in it ([`Exchange`]); the build
//! machine keeps writing its own TSC there, and the probe answers each value that it sees with a reading of the
//! domain's clock. So the reading was taken after the build machine's TSC was that value, and before the build machine
//! saw the answer. The narrowest such brackets, mapped to the build machine's `CLOCK_REALTIME` (which is also what its
//! NTP server serves), are the truth.

use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab_agent::{Exchange, tsc};
use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Whence, lseek};
use radclock::page::PAGE_SIZE;
use radclock::time::Timestamp;

use crate::command::{self, Background};
use crate::host::Host;
use crate::wait;

/// How many of the narrowest brackets are kept.
const KEPT: usize = 15;
/// QEMU reads the TSC without waiting for the load before it, so a reading can seem to be taken before its question was
/// there, by as long as a cache line takes from one core to another. Brackets are this much wider at both ends, in counts.
pub(crate) const REORDERING: u64 = 1000;
const FIND_LIMIT: Duration = Duration::from_secs(60);
/// A measurement goes on until it has so many readings, and a bracket so narrow, in counts of the build machine's TSC
/// (some 10 µs): a build machine that is busy has neither at once.
const ENOUGH_READINGS: usize = 1000;
const NARROW_ENOUGH: u64 = 30_000;
/// But for no longer than this.
const MEASURE_LIMIT: Duration = Duration::from_secs(40);

/// What was found of a domain's clock.
#[derive(Clone, Copy, Debug)]
pub struct Truth {
    /// The reading less the true time, ns, in the narrowest bracket.
    pub error_ns: f64,
    /// The true error is within this of `error_ns`.
    pub uncertainty_ns: f64,
    /// What the reading claimed as the bound on its error, ns.
    pub bound_ns: u64,
    /// The time read.
    pub time: Timestamp,
    /// Whether the clock said that it is synchronised, in all of the samples.
    pub synchronized: bool,
    /// How many readings were taken.
    pub samples: usize,
    /// How many of them were outside of their bound for certain.
    pub violations: usize,
    /// Under emulation a domain's TSC may be the build machine's plus a constant. How many values of that constant agree
    /// with all of the brackets; negative if none does.
    pub constant_offset_room: i64,
    /// That constant, in counts: the middle of what agrees.
    pub counter_offset: i64,
}

impl Truth {
    /// Whether the error is inside of the bound for certain.
    pub fn is_inside(&self) -> bool {
        self.violations == 0 && self.error_ns.abs() + self.uncertainty_ns <= self.bound_ns as f64
    }
}

struct Sample {
    asked: u64,
    answered: u64,
    time: Timestamp,
    bound_ns: u64,
    counter: u64,
    synchronized: bool,
}

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
        anyhow::bail!("QEMU's memory is not shared")
    }

    /// Where the page with this magic is, once it is there.
    pub(crate) fn find(&self, magic: [u64; 2]) -> Result<u64> {
        wait::until("the probe's page", FIND_LIMIT, || Ok(self.find_all(magic)?.first().copied()))
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

    pub(crate) fn exchange(&self, offset: u64) -> Result<MmapRaw> {
        Ok(MmapOptions::new().offset(offset).len(PAGE_SIZE).map_raw(&self.file)?)
    }
}

/// Measures for `duration`, or longer if the build machine is busy. `probe` starts `lab-probe` in the domain, with the arguments that are appended.
pub fn measure(host: &Host, duration: Duration, probe: impl FnOnce(&str) -> Result<duct::Expression>) -> Result<Truth> {
    let memory = Memory::of(host)?;
    let magic = random_magic()?;
    let arguments = format!("lab-probe truth {:016x}{:016x} {}", magic[1], magic[0], FIND_LIMIT.as_secs());
    let probe = Background::start("ssh", &probe(&arguments)?.stdout_capture().stderr_capture())?;
    let found = memory.find(magic);
    if found.is_err()
        && let Some(output) = probe.ended()?
    {
        command::success(&arguments, &output)?;
    }
    let map = memory.exchange(found?)?;
    // SAFETY: the mapping is a page long, aligned, and lives to the end of this function; the struct is all atomics.
    let exchange = unsafe { &*map.as_ptr().cast::<Exchange>() };
    let before = RealTime::now();
    let samples = take_samples(exchange, duration);
    let after = RealTime::now();
    exchange.stop.store(1, Ordering::Relaxed);
    let output = wait::until("the probe to end", FIND_LIMIT, || probe.ended())?;
    command::success(&arguments, &output)?;
    evaluate(samples?, &before, &after)
}

pub(crate) fn random_magic() -> Result<[u64; 2]> {
    let mut bytes = [0; 16];
    std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
    let word = |range: Range<usize>| u64::from_le_bytes(bytes[range].try_into().expect("8 bytes"));
    Ok([word(0..8), word(8..16)])
}

fn take_samples(exchange: &Exchange, duration: Duration) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    let mut last = 0;
    let mut narrowest = u64::MAX;
    let start = Instant::now();
    loop {
        let enough = samples.len() >= ENOUGH_READINGS && narrowest <= NARROW_ENOUGH;
        if start.elapsed() >= if enough { duration } else { MEASURE_LIMIT } {
            break;
        }
        wait::check()?;
        // The clock of the loop above is slower to read than an answer takes to arrive.
        for _ in 0..1000 {
            exchange.question.store(tsc(), Ordering::Release);
            let asked = exchange.answer.load(Ordering::Acquire);
            if asked == 0 || asked == last {
                continue;
            }
            let answered = tsc();
            let words = exchange.sample.each_ref().map(|word| word.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if exchange.answer.load(Ordering::Relaxed) != asked {
                continue;
            }
            last = asked;
            narrowest = narrowest.min(answered - asked);
            let [secs, frac, bound_ns, counter, synchronized] = words;
            let time = Timestamp::new(secs, frac);
            samples.push(Sample { asked, answered, time, bound_ns, counter, synchronized: synchronized == 1 });
        }
    }
    Ok(samples)
}

/// The build machine's time at a value of its TSC.
pub(crate) struct RealTime {
    tsc: f64,
    base: u64,
    time: Timestamp,
    uncertainty: f64,
}

impl RealTime {
    /// The narrowest of many brackets.
    pub(crate) fn now() -> RealTime {
        let bracket = || {
            let before = tsc();
            let time = clock_gettime(ClockId::CLOCK_REALTIME).expect("every Linux has it");
            let after = tsc();
            (before, after, Timestamp::from_unix(time.tv_sec() as u64, time.tv_nsec() as u64))
        };
        let (before, after, time) =
            (0..1000).map(|_| bracket()).min_by_key(|(before, after, _)| after - before).expect("some");
        let uncertainty = (after - before) as f64 / 2.0;
        RealTime { tsc: uncertainty, base: before, time, uncertainty }
    }
}

/// The build machine's TSC as true time.
pub(crate) struct Scale<'real> {
    before: &'real RealTime,
    nanos_per_count: f64,
    uncertainty_ns: f64,
}

impl Scale<'_> {
    pub(crate) fn between<'real>(before: &'real RealTime, after: &RealTime) -> Scale<'real> {
        let seconds = after.time.since(before.time).as_secs_f64();
        let counts = (after.base - before.base) as f64 + after.tsc - before.tsc;
        let nanos_per_count = seconds * 1e9 / counts;
        Scale { before, nanos_per_count, uncertainty_ns: before.uncertainty.max(after.uncertainty) * nanos_per_count }
    }

    /// A reading less the true time, ns, and how far off that may be, for a reading that was taken between two values of
    /// the build machine's TSC.
    pub(crate) fn error(&self, reading: Timestamp, asked: u64, answered: u64) -> (f64, f64) {
        let Scale { before, nanos_per_count, uncertainty_ns } = self;
        let half = (answered - asked) as f64 / 2.0;
        let since_base = asked.wrapping_sub(before.base).cast_signed() as f64 + half - before.tsc;
        let read = reading.since(before.time).as_secs_f64() * 1e9;
        (read - since_base * nanos_per_count, (half + REORDERING as f64) * nanos_per_count + uncertainty_ns)
    }
}

fn evaluate(mut samples: Vec<Sample>, before: &RealTime, after: &RealTime) -> Result<Truth> {
    ensure!(samples.len() > KEPT, "the probe answered only {} times", samples.len());
    let scale = Scale::between(before, after);
    let error = |sample: &Sample| scale.error(sample.time, sample.asked, sample.answered);
    let violations = samples
        .iter()
        .filter(|sample| {
            let (error, uncertainty) = error(sample);
            error.abs() - uncertainty > sample.bound_ns as f64
        })
        .count();
    let offset = |at: u64, sample: &Sample| sample.counter.wrapping_sub(at).cast_signed();
    let latest = samples.iter().map(|sample| offset(sample.asked, sample)).min().expect("some");
    let earliest = samples.iter().map(|sample| offset(sample.answered, sample)).max().expect("some");
    let synchronized = samples.iter().all(|sample| sample.synchronized);
    let taken = samples.len();
    samples.sort_by_key(|sample| sample.answered - sample.asked);
    samples.truncate(KEPT);
    let narrowest = &samples[0];
    let (error_ns, uncertainty_ns) = error(narrowest);
    Ok(Truth {
        error_ns,
        uncertainty_ns,
        bound_ns: narrowest.bound_ns,
        time: narrowest.time,
        synchronized,
        samples: taken,
        violations,
        constant_offset_room: latest - earliest + 2 * REORDERING.cast_signed(),
        counter_offset: earliest + (latest - earliest) / 2,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A build machine whose TSC counts nanoseconds from 1000 s on.
    fn real_time(tsc: u64) -> RealTime {
        RealTime { tsc: 0.0, base: tsc, time: Timestamp::from_unix(1000 + tsc / 1_000_000_000, 0), uncertainty: 0.0 }
    }

    /// A reading at this TSC value, wrong by so much, in a bracket of so much.
    fn sample(at: u64, error: u64, bracket: u64) -> Sample {
        Sample {
            asked: at - bracket / 2,
            answered: at + bracket / 2,
            time: Timestamp::from_unix(1000, at + error),
            bound_ns: 1500,
            counter: at + 77,
            synchronized: true,
        }
    }

    fn truth(samples: Vec<Sample>) -> Truth {
        evaluate(samples, &real_time(0), &real_time(2_000_000_000)).expect("enough samples")
    }

    #[test]
    fn the_narrowest_bracket_gives_the_error() {
        let mut samples: Vec<Sample> = (1..=100).map(|n| sample(n * 1_000_000, 300, 4000)).collect();
        samples.push(sample(500_000, 200, 100));
        let truth = truth(samples);
        assert!((truth.error_ns - 200.0).abs() < 1.0 && (truth.uncertainty_ns - 1050.0).abs() < 1.0, "{truth:?}");
        assert!(truth.is_inside() && truth.constant_offset_room > 0, "{truth:?}");
    }

    #[test]
    fn one_reading_outside_of_its_bound_for_certain_is_enough_to_fail() {
        let mut samples: Vec<Sample> = (1..=100).map(|n| sample(n * 1_000_000, 100, 100)).collect();
        samples.push(sample(500_000, 5000, 400));
        let truth = truth(samples);
        assert_eq!(truth.violations, 1);
        assert!(!truth.is_inside());
    }

    #[test]
    fn a_bracket_too_wide_to_tell_proves_nothing() {
        let truth = truth((1..=100).map(|n| sample(n * 1_000_000, 400, 2000)).collect());
        assert_eq!(truth.violations, 0);
        assert!(!truth.is_inside(), "it may be outside: {truth:?}");
    }
}
