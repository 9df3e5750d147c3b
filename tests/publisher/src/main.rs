//! Publishes updates to all guests in `radclockd`'s place and by its code: a series of them, for measuring how long one
//! takes, or `radclockd`'s own clock hundreds of times a second, so that whatever happens in a guest happens in the midst of one.
//! Follows no server: `radclockd` does. And a backend that is broken in every way there is ([`hostile`]).

mod hostile;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use lab_agent::LAST_GENERATION;
use memmap2::{Mmap, MmapOptions};
use radclock::clock::{Clock, Period, Status};
use radclock::page::{Content, CounterId, Flags, PAGE_SIZE, Page};
use radclock::seqcount::SharedPage;
use radclock::time::{Counter, NANOS_PER_SEC, Timestamp};
use xen_backend::xen::{GuestPolicy, Guests, SystemTime};

/// For dozens of guests on one processor.
const CONNECT_LIMIT: Duration = Duration::from_secs(300);
/// How often what is waited for is looked at.
const LOOK: Duration = Duration::from_millis(100);
const VALID_NANOS: u64 = 60 * NANOS_PER_SEC;
const HOST_ID: [u8; 16] = *b"lab's publisher ";

const WIRE: &str = "/run/radclock/wire0";
const RAPID_PAUSE: Duration = Duration::from_millis(2);

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The clock is Xen's system time itself, and the generation of each page is the instant of its publication, so a
    /// guest that meets a new generation reads on the clock how late it is. Prints these instants, a line each.
    Series {
        /// How many updates.
        updates: u32,
        /// How many guests are connected before the first.
        guests: usize,
        /// Begin when this file is there, and not before.
        #[arg(long, value_name = "FILE")]
        after: Option<PathBuf>,
    },
    /// The same clock, published as the lines say that are written to the FIFO: `COUNT MILLISECONDS` is so many updates with
    /// about so long from one to the next, of which each gives a line with the instant of its publication and how long it took
    /// from the first page to the last guest's event, both in ns. Says `connected`, once so many guests are, and `done`.
    Fanout { guests: usize, fifo: PathBuf },
    /// The clock of the radclockd that runs here and offers it to no guest, every 2 ms with another reference instant.
    /// Prints how many updates there were.
    Rapid { seconds: u64 },
    /// A broken backend of one guest, without its nodes: grants a page, prints its reference and a port, and then does what
    /// the lines say that are written to the FIFO. What is right in it is the clock of the radclockd that runs here and
    /// offers it to no guest.
    Broken { domid: u16, fifo: PathBuf },
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(command))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-publisher: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Series { updates, guests, after } => series(updates, guests, after.as_deref()).await,
        Command::Fanout { guests, fifo } => fanout(guests, &fifo).await,
        Command::Rapid { seconds } => rapid(Duration::from_secs(seconds)).await,
        Command::Broken { domid, fifo } => hostile::run(domid, &fifo),
    }
}

async fn series(updates: u32, connected: usize, after: Option<&Path>) -> Result<()> {
    let system_time = SystemTime::open()?;
    let guests = Guests::start(GuestPolicy::All, HOST_ID, "lab".to_owned(), page(0, None)).await?;
    await_connected(&guests, connected).await?;
    while after.is_some_and(|file| !file.exists()) {
        tokio::time::sleep(LOOK).await;
    }
    // The reader in the guest waits for a clock that has no time yet, then for the first update.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut published = Vec::new();
    for update in 0..updates {
        let now = system_time.now()?;
        published.push(now);
        guests.publish(&page(now, Some(clock(now))));
        tokio::time::sleep(pause(update)).await;
    }
    // For the guests to see the last update, and then the end.
    tokio::time::sleep(Duration::from_secs(1)).await;
    guests.publish(&page(LAST_GENERATION, None));
    tokio::time::sleep(Duration::from_secs(1)).await;
    guests.shutdown().await;
    for instant in published {
        println!("{instant}");
    }
    Ok(())
}

async fn fanout(connected: usize, fifo: &Path) -> Result<()> {
    let system_time = SystemTime::open()?;
    let guests = Guests::start(GuestPolicy::All, HOST_ID, "lab".to_owned(), page(0, None)).await?;
    await_connected(&guests, connected).await?;
    println!("connected");
    // For writing as well, so that it does not end with each writer.
    let fifo = OpenOptions::new().read(true).write(true).open(fifo).context(fifo.display().to_string())?;
    let mut lines = BufReader::new(fifo).lines();
    loop {
        // Elsewhere, for guests come and go meanwhile.
        let (rest, line) = tokio::task::spawn_blocking(move || {
            let line = lines.next();
            (lines, line)
        })
        .await?;
        lines = rest;
        let line = line.context("the FIFO has ended")??;
        if line == "end" {
            break;
        }
        let (updates, period) = line.split_once(' ').with_context(|| line.clone())?;
        let period = Duration::from_millis(period.parse()?);
        for update in 0..updates.parse()? {
            let now = system_time.now()?;
            let page = page(now, Some(clock(now)));
            let start = Instant::now();
            guests.publish(&page);
            println!("{now} {}", start.elapsed().as_nanos());
            tokio::time::sleep(period.mul_f64(0.5 + spread(update))).await;
        }
        println!("done");
    }
    guests.shutdown().await;
    Ok(())
}

async fn rapid(duration: Duration) -> Result<()> {
    let system_time = SystemTime::open()?;
    let wire = Wire::open()?;
    let mut page = wire.page().snapshot()?;
    let host_id = page.ext.host_id;
    let mut generation = page.ext.generation.get();
    let guests = Guests::start(GuestPolicy::All, host_id, "lab".to_owned(), page).await?;
    let start = Instant::now();
    let mut updates = 0u64;
    while start.elapsed() < duration {
        generation += 1;
        updates += 1;
        // If radclockd was interrupted while it writes the page, what stood there goes on being right.
        if let Ok(newer) = wire.page().snapshot() {
            page = newer;
        }
        guests.publish(&rebased(&page, system_time.now()?, generation)?);
        tokio::time::sleep(RAPID_PAUSE).await;
    }
    guests.shutdown().await;
    println!("{updates}");
    Ok(())
}

/// The page of the radclockd that runs here.
struct Wire(Mmap);

impl Wire {
    fn open() -> Result<Wire> {
        // SAFETY: the file is a page of tmpfs that stays as long as it is mapped; it is read through atomics.
        Ok(Wire(unsafe { MmapOptions::new().len(PAGE_SIZE).map(&File::open(WIRE).context(WIRE)?)? }))
    }

    fn page(&self) -> &SharedPage {
        // SAFETY: a mapping is aligned to pages and lives as long as the reference.
        unsafe { SharedPage::from_ptr(self.0.as_ptr()) }
    }
}

/// The same clock with its reference at `now`, or none if radclockd has none.
fn rebased(wire: &Page, now: u64, generation: u64) -> Result<Page> {
    let mut page = *wire;
    page.ext.generation.set(generation);
    if !wire.abi.status().is_readable() {
        return Ok(page);
    }
    let clock = wire.abi.clock()?;
    let (time, max_error) = clock.reading_at(Counter(now)).context("radclockd's clock has run out")?;
    let age = now.saturating_sub(clock.counter.0);
    page.abi.counter_value.set(now);
    page.abi.time_sec.set(time.secs());
    page.abi.time_frac_sec.set(time.frac());
    page.abi.time_maxerror_nanosec.set(max_error.ceil_nanos() as u64);
    page.ext.valid_nanos.set(wire.ext.valid_nanos.get().saturating_sub(age));
    Ok(page)
}

async fn await_connected(guests: &Guests, count: usize) -> Result<()> {
    let start = Instant::now();
    loop {
        let reports = guests.reports();
        let connected = reports.iter().filter(|guest| guest.frontend_state == "Connected" && guest.attached).count();
        if connected >= count {
            return Ok(());
        }
        if start.elapsed() > CONNECT_LIMIT {
            bail!("after {} s only {connected} guests are connected", CONNECT_LIMIT.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Between 5 and 30 ms.
fn pause(update: u32) -> Duration {
    Duration::from_secs_f64(0.005 + 0.025 * spread(update))
}

/// Between 0 and 1, evenly spread and in no step with anything periodic: multiples of the golden ratio.
fn spread(update: u32) -> f64 {
    (f64::from(update) * 0.618_033_988_749_895).fract()
}

/// Nanoseconds of system time as nanoseconds since 1970, without an error.
fn clock(now: u64) -> Clock {
    Clock {
        counter: Counter(now),
        time: Timestamp::from_unix(now / NANOS_PER_SEC, now % NANOS_PER_SEC),
        period: Period::from_secs_f64(1e-9).expect("a nanosecond is in range"),
        period_max_error: 0,
        max_error_nanos: 0,
    }
}

fn page(generation: u64, clock: Option<Clock>) -> Page {
    Page::new(&Content {
        counter_id: CounterId::XEN_SYSTEM_TIME,
        status: if clock.is_some() { Status::Synchronized } else { Status::Initializing },
        clock,
        disruption_marker: 0,
        disruption: Flags::empty(),
        tai_offset: None,
        leap_indicator: 0,
        host_id: HOST_ID,
        generation,
        valid_nanos: VALID_NANOS,
    })
}
