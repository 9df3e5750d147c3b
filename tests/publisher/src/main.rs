//! Publishes updates to all guests in `radclockd`'s place and by its code, for measuring how long one takes. The clock
//! that it publishes is Xen's system time itself, and the generation of each page is the instant of its publication.
//! So a guest that meets a new generation reads on the clock how late it is. Prints these instants, a line each. Follows no server: `radclockd` does.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use lab_agent::LAST_GENERATION;
use radclock::clock::{Clock, Period, Status};
use radclock::page::{Content, CounterId, Flags, Page};
use radclock::time::{Counter, NANOS_PER_SEC, Timestamp};
use xen_backend::xen::{GuestPolicy, Guests, SystemTime};

const CONNECT_LIMIT: Duration = Duration::from_secs(60);
const VALID_NANOS: u64 = 60 * NANOS_PER_SEC;
const HOST_ID: [u8; 16] = *b"lab's publisher ";

#[derive(Parser)]
struct Arguments {
    /// How many updates.
    updates: u32,
    /// How many guests are connected before the first.
    guests: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(&arguments))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-publisher: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<()> {
    let system_time = SystemTime::open()?;
    let guests = Guests::start(GuestPolicy::All, HOST_ID, "lab".to_owned(), page(0, None)).await?;
    await_connected(&guests, arguments.guests).await?;
    // The reader in the guest waits for a clock that has no time yet, then for the first update.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut published = Vec::new();
    for update in 0..arguments.updates {
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
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Between 5 and 30 ms, evenly spread and in no step with anything periodic: multiples of the golden ratio.
fn pause(update: u32) -> Duration {
    let fraction = (f64::from(update) * 0.618_033_988_749_895).fract();
    Duration::from_secs_f64(0.005 + 0.025 * fraction)
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
