//! Looks at the shared clock from inside a domain, for the lab: what it reads as, in a form that the build machine can
//! hold against the truth. Not a tool for users; `radclock` is.

use std::cell::Cell;
use std::hint::spin_loop;
use std::mem::offset_of;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use lab_agent::samples::system_clock;
use lab_agent::{Arrival, Exchange, LAST_GENERATION, Pair, Recorded, Update};
use memmap2::{Mmap, MmapOptions};
use nix::time::{ClockId, clock_gettime};
use radclock::clock::Status;
use radclock::page::{EXTENSION_OFFSET, Extension, PAGE_SIZE, Page};
use radclock::seqcount::SharedPage;
use xen_radclock::{RadClock, ReadError, Reading};
use zerocopy::IntoBytes;

/// Longer than the structure and its extension.
const USED: usize = 0x130;
const SYSTEM_TIME: &str = "/sys/class/misc/vmclock0/system_time";
const WIRE: &str = "/run/radclock/wire0";
/// Looks at the page between two at the clock, a fraction of a second.
const SPINS: u32 = 1 << 20;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Wait until the clock is in this state here: synchronized, freerunning, or unreadable.
    Await { state: String, seconds: u64 },
    /// Read the clock for so long, and fail unless every reading is synchronised and agrees with the one before.
    Read { seconds: u64 },
    /// Exchange readings with the build machine, which looks for MAGIC (32 hexadecimal digits) in this memory.
    Truth { magic: String, seconds: u64 },
    /// The same for hours, with the system's clock beside it: sleeps until it is asked.
    Watch { magic: String, seconds: u64 },
    /// Print pairs of TSC and Xen's system time with the page of that moment, a line of JSON each.
    Pairs { count: usize },
    /// Print the page that guests are granted, now and whenever it changes.
    Wire { milliseconds: u64 },
    /// Print what one reading costs, ns: the median of batches.
    Cost,
    /// Watch the page without a pause until a series of updates has ended, and print when each was seen. Says when it begins.
    Updates { seconds: u64 },
    /// Print when the driver took over each update of slow series. Sleeps nearly all the time.
    Arrivals { seconds: u64 },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Await { state, seconds } => await_state(&state, Duration::from_secs(seconds)),
        Command::Read { seconds } => read(Duration::from_secs(seconds)),
        Command::Truth { magic, seconds } => truth(&magic, Duration::from_secs(seconds)),
        Command::Watch { magic, seconds } => watch(&magic, Duration::from_secs(seconds)),
        Command::Pairs { count } => pairs(count),
        Command::Wire { milliseconds } => wire(Duration::from_millis(milliseconds)),
        Command::Cost => cost(),
        Command::Updates { seconds } => updates(Duration::from_secs(seconds)),
        Command::Arrivals { seconds } => arrivals(Duration::from_secs(seconds)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn map(path: &str) -> Result<Mmap> {
    let file = std::fs::File::open(path).with_context(|| path.to_owned())?;
    // SAFETY: the file is a device's or a tmpfs's page that stays as long as it is mapped; it is read through atomics.
    Ok(unsafe { MmapOptions::new().len(PAGE_SIZE).map(&file)? })
}

fn shared(map: &Mmap) -> &SharedPage {
    // SAFETY: a mapping is aligned to pages and lives as long as the reference.
    unsafe { SharedPage::from_ptr(map.as_ptr()) }
}

fn await_state(state: &str, limit: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let now = RadClock::open().map_err(anyhow::Error::from).and_then(|clock| Ok(clock.now()?));
        let reached = match (state, &now) {
            ("synchronized", Ok(reading)) => reading.status == Status::Synchronized,
            ("freerunning", Ok(reading)) => reading.status == Status::Freerunning,
            ("unreadable", Err(_)) => true,
            ("synchronized" | "freerunning" | "unreadable", _) => false,
            _ => bail!("{state:?} is no state to wait for"),
        };
        if reached {
            return Ok(());
        }
        if start.elapsed() > limit {
            match now {
                Ok(reading) => bail!("after {} s the clock is still {:?}", limit.as_secs(), reading.status),
                Err(error) => return Err(error.context(format!("after {} s", limit.as_secs()))),
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn read(duration: Duration) -> Result<()> {
    let clock = RadClock::open()?;
    let start = Instant::now();
    let mut last = clock.now()?;
    let mut count = 1u64;
    while start.elapsed() < duration {
        let reading = clock.now()?;
        ensure!(reading.status == Status::Synchronized, "reading {count} is {}", reading.status);
        ensure!(reading.latest() >= last.earliest(), "reading {count} says it is before the one before: {reading:?}");
        last = reading;
        count += 1;
    }
    println!("{count} readings");
    Ok(())
}

fn truth(magic: &str, limit: Duration) -> Result<()> {
    let clock = RadClock::open()?;
    let start = Instant::now();
    let answer = |page: &Exchange| {
        let Some(reading) = reading(&clock)? else { return Ok(false) };
        store_sample(page, &reading);
        Ok(true)
    };
    let idle = || {
        ensure!(start.elapsed() <= limit, "the build machine did not ask for {} s", limit.as_secs());
        Ok(())
    };
    exchange(magic, answer, idle)
}

fn watch(magic: &str, limit: Duration) -> Result<()> {
    /// Between two questions of a series there are a few.
    const IDLE_LOOKS: u64 = 100_000;
    const SLEEP: Duration = Duration::from_millis(20);
    let clock = RadClock::open()?;
    let looks = Cell::new(0);
    // Not between question and answer: a system call takes longer than everything else there.
    let max_error = Cell::new(system_clock()?.max_error_us);
    let answer = |page: &Exchange| {
        let Some(reading) = reading(&clock)? else { return Ok(false) };
        let system = clock_gettime(ClockId::CLOCK_REALTIME)?;
        store_sample(page, &reading);
        let nanos = system.tv_sec() as u64 * 1_000_000_000 + system.tv_nsec() as u64;
        page.system[0].store(nanos, Ordering::Relaxed);
        page.system[1].store(max_error.get(), Ordering::Relaxed);
        looks.set(0);
        Ok(true)
    };
    let idle = || {
        looks.set(looks.get() + 1);
        if looks.get() > IDLE_LOOKS {
            let idle = SLEEP * (looks.get() - IDLE_LOOKS) as u32;
            ensure!(idle <= limit, "the build machine did not ask for {} s", limit.as_secs());
            thread::sleep(SLEEP);
            max_error.set(system_clock()?.max_error_us);
        }
        Ok(())
    };
    exchange(magic, answer, idle)
}

/// Nothing if the page was being written: on one CPU its writer may have been interrupted, and the next question comes
/// at once.
fn reading(clock: &RadClock) -> Result<Option<Reading>> {
    match clock.now() {
        Err(ReadError::Busy(_)) => Ok(None),
        reading => Ok(Some(reading?)),
    }
}

/// Gives the build machine a page to find, and answers its questions there. `answer` begins with reading the clock and
/// says whether it could; `idle` is called while there is no question.
fn exchange(
    magic: &str,
    mut answer: impl FnMut(&Exchange) -> Result<bool>,
    mut idle: impl FnMut() -> Result<()>,
) -> Result<()> {
    let magic = u128::from_str_radix(magic, 16).context("the magic")?;
    let memory = MmapOptions::new().len(PAGE_SIZE).map_anon()?;
    // SAFETY: a mapping of zeroes, a page long and aligned to it; the struct is all atomics and lives no longer.
    let page = unsafe { &*memory.as_ptr().cast::<Exchange>() };
    nix::sys::mman::mlockall(nix::sys::mman::MlockAllFlags::MCL_CURRENT).context("cannot lock memory")?;
    page.magic[0].store(magic as u64, Ordering::Relaxed);
    page.magic[1].store((magic >> 64) as u64, Ordering::Relaxed);
    let mut last = 0;
    while page.stop.load(Ordering::Relaxed) == 0 {
        let question = page.question.load(Ordering::Acquire);
        if question == last {
            idle()?;
            continue;
        }
        if answer(page)? {
            page.answer.store(question, Ordering::Release);
        }
        last = question;
    }
    Ok(())
}

/// Leaves the page without an answer, so that nobody takes the old one for the new.
fn store_sample(page: &Exchange, reading: &Reading) {
    page.answer.store(0, Ordering::Relaxed);
    fence(Ordering::Release);
    let nanos = reading.max_error.ceil_nanos();
    let synchronized = u64::from(reading.status == Status::Synchronized);
    let sample = [reading.time.secs(), reading.time.frac(), nanos as u64, reading.sample.counter.0, synchronized];
    for (word, value) in page.sample.iter().zip(sample) {
        word.store(value, Ordering::Relaxed);
    }
}

fn hex(page: &Page) -> String {
    page.as_bytes()[..USED].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pairs(count: usize) -> Result<()> {
    let clock = RadClock::open()?;
    let mut left = count;
    for _ in 0..100 * count {
        let before = clock.snapshot()?;
        let pair = std::fs::read_to_string(SYSTEM_TIME).context(SYSTEM_TIME)?;
        let after = clock.snapshot()?;
        if before != after {
            continue;
        }
        let (tsc, system_time) = pair.trim().split_once(' ').with_context(|| format!("{SYSTEM_TIME}: {pair:?}"))?;
        let pair = Pair { tsc: tsc.parse()?, system_time: system_time.parse()?, page: hex(&before) };
        println!("{}", serde_json::to_string(&pair)?);
        left -= 1;
        if left == 0 {
            return Ok(());
        }
        // Spread over several of Xen's recalibrations.
        thread::sleep(Duration::from_millis(60));
    }
    bail!("the page changes all the time");
}

fn wire(duration: Duration) -> Result<()> {
    let map = map(WIRE)?;
    let start = Instant::now();
    let mut last = None;
    while start.elapsed() < duration {
        // One that is being written, by a writer that was interrupted for this, is seen the next time.
        if let Ok(page) = shared(&map).snapshot()
            && last != Some(page)
        {
            println!("{}", serde_json::to_string(&Recorded { page: hex(&page) })?);
            last = Some(page);
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn cost() -> Result<()> {
    const BATCHES: usize = 21;
    const READS: u32 = 1000;
    let clock = RadClock::open()?;
    let mut batches = [0.0; BATCHES];
    for batch in &mut batches {
        let start = Instant::now();
        for _ in 0..READS {
            std::hint::black_box(clock.now()?);
        }
        *batch = start.elapsed().as_secs_f64() * 1e9 / f64::from(READS);
    }
    batches.sort_by(f64::total_cmp);
    println!("{:.0}", batches[BATCHES / 2]);
    Ok(())
}

fn updates(limit: Duration) -> Result<()> {
    const DEVICE: &str = "/dev/vmclock0";
    const OFFSET: usize = EXTENSION_OFFSET + offset_of!(Extension, generation);
    let clock = RadClock::open_path(DEVICE)?;
    let map = map(DEVICE)?;
    // SAFETY: within the page, aligned to 8, mapped as long as `map` lives, and only read.
    let generation = unsafe { &*map.as_ptr().add(OFFSET).cast::<AtomicU64>() };
    let start = Instant::now();
    // Left by whoever kept the clock before.
    let mut last = generation.load(Ordering::Acquire);
    println!("watching");
    let mut updates = Vec::new();
    while last != LAST_GENERATION || updates.is_empty() {
        let mut now = generation.load(Ordering::Acquire);
        for _ in 0..SPINS {
            if now != last {
                break;
            }
            spin_loop();
            now = generation.load(Ordering::Acquire);
        }
        if now == last {
            ensure!(start.elapsed() < limit, "the series did not end within {} s", limit.as_secs());
            continue;
        }
        last = now;
        // Waits for the end of the write. Without a time: the page of a publisher that begins or ends.
        let Ok(reading) = clock.now() else { continue };
        let bound = reading.max_error.ceil_nanos() as u64;
        updates.push(Update { published: now, seen: reading.time.as_nanos(), bound });
    }
    for update in &updates {
        println!("{}", serde_json::to_string(update)?);
    }
    Ok(())
}

fn arrivals(limit: Duration) -> Result<()> {
    /// Well below the second after which the driver of an undisturbed guest makes a new page of the same update.
    const LOOKS: Duration = Duration::from_millis(150);
    let clock = RadClock::open()?;
    let start = Instant::now();
    let mut last = None;
    while start.elapsed() < limit {
        // Without a time: the page of a publisher that begins or ends.
        if let Ok(page) = clock.snapshot()
            && let Ok(reference) = page.abi.clock()
        {
            let published = page.ext.generation.get();
            if last.replace(published) != Some(published) {
                let arrival = Arrival { published, taken: reference.time.as_nanos(), bound: reference.max_error_nanos };
                println!("{}", serde_json::to_string(&arrival)?);
            }
        }
        thread::sleep(LOOKS);
    }
    Ok(())
}
