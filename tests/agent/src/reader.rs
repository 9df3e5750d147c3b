//! Reads the clock as fast as it can, for as long as it lives, wherever its guest goes, and notes down every reading in
//! a form that the lab can judge each of them by: [`lab_agent::Record`]. Through a page in its memory
//! ([`lab_agent::Beacon`]) the build machine sees its counter meanwhile.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use anyhow::{Context, Result};
use clap::Parser;
use lab_agent::{Beacon, Point, RECORD_NANOS, Record, RecordKind, tsc};
use memmap2::MmapOptions;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::time::{ClockId, clock_gettime};
use radclock::clock::{Period, Status};
use radclock::page::PAGE_SIZE;
use radclock::time::{NANOS_PER_SEC, Span};
use xen_radclock::{RadClock, ReadError, Reading};
use zerocopy::IntoBytes;

/// Until a page has been seen.
const NANOSECOND: Period = Period { frac: 18_446_744_073, shift: 0 };

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_: i32) {
    STOP.store(true, Ordering::Relaxed);
}

#[derive(Parser)]
struct Arguments {
    /// 32 hexadecimal digits by which the build machine finds this memory.
    magic: String,
    /// Where the records go; complete after SIGTERM.
    log: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-reader: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    // SAFETY: the handler only stores to an atomic.
    unsafe { signal(Signal::SIGTERM, SigHandler::Handler(stop))? };
    let magic = u128::from_str_radix(&arguments.magic, 16).context("the magic")?;
    let clock = RadClock::open()?;
    let file = File::create(&arguments.log).with_context(|| arguments.log.display().to_string())?;
    let mut log = Log { file: BufWriter::new(file), clock: &clock, period: NANOSECOND, open: None, last: None };
    let memory = MmapOptions::new().len(PAGE_SIZE).map_anon()?;
    // SAFETY: a mapping of zeroes, a page long and aligned to it; the struct is all atomics and lives no longer.
    let beacon = unsafe { &*memory.as_ptr().cast::<Beacon>() };
    mlockall(MlockAllFlags::MCL_CURRENT).context("cannot lock memory")?;
    beacon.magic[0].store(magic as u64, Ordering::Relaxed);
    beacon.magic[1].store((magic >> 64) as u64, Ordering::Relaxed);
    let mut answered = 0;
    let mut beat = 0;
    while !STOP.load(Ordering::Relaxed) {
        beat += 1;
        beacon.beat.store(beat, Ordering::Relaxed);
        let question = beacon.question.load(Ordering::Acquire);
        match clock.now() {
            Ok(reading) => {
                if question != answered {
                    beacon.answer.store(0, Ordering::Relaxed);
                    fence(Ordering::Release);
                    beacon.counter.store(reading.sample.counter.0, Ordering::Relaxed);
                    beacon.marker.store(reading.sample.disruption_marker, Ordering::Relaxed);
                    beacon.answer.store(question, Ordering::Release);
                    answered = question;
                }
                log.reading(&reading)?;
            }
            Err(error) => log.error(&error)?,
        }
    }
    log.close()?;
    Ok(log.file.flush()?)
}

/// Writes records.
struct Log<'clock> {
    file: BufWriter<File>,
    clock: &'clock RadClock,
    /// Of the line of the record that is open.
    period: Period,
    open: Option<Open>,
    /// The reading before, unless there was an error since.
    last: Option<Reading>,
}

/// A record that is not finished.
enum Open {
    Readings(Run),
    Errors(Record),
}

/// Readings that follow each other on one clock. Spans and limits in 2⁻⁶⁴ s.
struct Run {
    count: u64,
    raw_nanos: u64,
    first: Reading,
    last: Reading,
    /// Makes the line that readings are compared with: from the first one on, by the page's rate at that time.
    period: Period,
    lower: i128,
    upper: i128,
    backwards: i128,
    overlap: i128,
}

impl Run {
    fn begin(first: Reading, period: Period) -> Run {
        let bound = first.max_error.as_frac();
        let raw_nanos = raw_nanos();
        Run {
            count: 1,
            raw_nanos,
            first,
            last: first,
            period,
            lower: -bound,
            upper: bound,
            backwards: 0,
            overlap: i128::MIN,
        }
    }

    fn line_at(&self, reading: &Reading) -> i128 {
        self.period.span(reading.sample.counter.since(self.first.sample.counter)).as_frac()
    }

    fn takes(&self, reading: &Reading) -> bool {
        reading.sample.disruption_marker == self.first.sample.disruption_marker
            && reading.status == self.first.status
            && reading.time.since(self.first.time).abs().as_frac()
                < (i128::from(RECORD_NANOS) << 64) / i128::from(NANOS_PER_SEC)
    }

    fn add(&mut self, reading: &Reading) {
        let off = reading.time.since(self.first.time).as_frac() - self.line_at(reading);
        let bound = reading.max_error.as_frac();
        self.count += 1;
        self.lower = self.lower.max(off - bound);
        self.upper = self.upper.min(off + bound);
        self.compare(&self.last.clone(), reading);
        self.last = *reading;
    }

    /// Takes note of how far `reading` is before the one that was taken before it.
    fn compare(&mut self, before: &Reading, reading: &Reading) {
        let back = before.time.since(reading.time).as_frac();
        self.backwards = self.backwards.max(back);
        self.overlap = self.overlap.max(back - before.max_error.as_frac() - reading.max_error.as_frac());
    }

    fn record(&self) -> Record {
        let kind = match self.first.status {
            Status::Synchronized => RecordKind::Synchronized,
            _ => RecordKind::Freerunning,
        };
        Record {
            kind: kind as u64,
            count: self.count,
            marker: self.first.sample.disruption_marker,
            raw_nanos: self.raw_nanos,
            first: point(&self.first),
            last: point(&self.last),
            line_nanos: nanos(self.line_at(&self.last)),
            lower_nanos: nanos(self.lower),
            upper_nanos: nanos(self.upper),
            backwards_nanos: nanos(self.backwards),
            overlap_nanos: nanos(self.overlap),
        }
    }
}

impl Log<'_> {
    fn reading(&mut self, reading: &Reading) -> Result<()> {
        match &mut self.open {
            Some(Open::Readings(run)) if run.takes(reading) => run.add(reading),
            _ => {
                self.close()?;
                let period =
                    self.clock.snapshot().ok().and_then(|page| page.abi.clock().ok()).map(|clock| clock.period);
                // While the page is being changed, the rate of before will do.
                self.period = period.unwrap_or(self.period);
                let mut run = Run::begin(*reading, self.period);
                if let Some(before) =
                    self.last.filter(|last| last.sample.disruption_marker == reading.sample.disruption_marker)
                {
                    run.compare(&before, reading);
                }
                self.open = Some(Open::Readings(run));
            }
        }
        self.last = Some(*reading);
        Ok(())
    }

    fn error(&mut self, error: &ReadError) -> Result<()> {
        let kind = match error {
            ReadError::Busy(_) => RecordKind::Busy,
            ReadError::Status(Status::Initializing) => RecordKind::Initializing,
            ReadError::Status(Status::Unreliable) => RecordKind::Unreliable,
            _ => RecordKind::OtherError,
        };
        let at =
            Point { counter: self.clock.sample().map_or_else(|_| tsc(), |sample| sample.counter.0), time: 0, bound: 0 };
        match &mut self.open {
            Some(Open::Errors(record)) if record.kind == kind as u64 => {
                record.count += 1;
                record.last = at;
            }
            _ => {
                self.close()?;
                let marker = self.clock.sample().map_or(0, |sample| sample.disruption_marker);
                self.open = Some(Open::Errors(Record {
                    kind: kind as u64,
                    count: 1,
                    marker,
                    raw_nanos: raw_nanos(),
                    first: at,
                    last: at,
                    ..Record::default()
                }));
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let record = match self.open.take() {
            Some(Open::Readings(run)) => run.record(),
            Some(Open::Errors(record)) => record,
            None => return Ok(()),
        };
        Ok(self.file.write_all(record.as_bytes())?)
    }
}

fn point(reading: &Reading) -> Point {
    Point { counter: reading.sample.counter.0, time: reading.time.as_nanos(), bound: reading.max_error_nanos() }
}

fn raw_nanos() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).expect("every Linux has it");
    now.tv_sec() as u64 * NANOS_PER_SEC + now.tv_nsec() as u64
}

/// The least number stands for no value.
fn nanos(frac: i128) -> i64 {
    if frac == i128::MIN { i64::MIN } else { Span::from_frac(frac).floor_nanos() }
}
