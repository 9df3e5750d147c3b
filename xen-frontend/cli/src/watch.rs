//! `radclock watch`: a line for each change that matters to a person.
//!
//! A page changes with every update; what matters is the state, the host behind it, a disruption, a warning, and a
//! jump of the time.

use std::io::{self, Write};
use std::thread::sleep;
use std::time::Duration;

use serde::Serialize;
use xen_radclock::{Clock, Flags, RadClock, ReadError, Span, Status};

use crate::show::{ReadingJson, flag_names};
use crate::{Failure, format};

#[derive(clap::Args)]
pub struct Args {
    /// How often to look, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,
    /// Report jumps of at least so many nanoseconds (those beyond the bound always)
    #[arg(long, value_name = "NS", default_value_t = 1000)]
    jump: u64,
    /// End after so many lines
    #[arg(long, value_name = "LINES")]
    count: Option<u64>,
}

/// What a person cares about, and the parameters to find jumps by.
#[derive(Clone, PartialEq)]
struct View {
    status: Status,
    error: Option<ReadError>,
    host: Option<[u8; 16]>,
    disruption_marker: u64,
    flags: Flags,
    leap_indicator: u8,
    clock: Option<Clock>,
}

/// One line, as JSON: what changed, in words, and the state after it.
#[derive(Serialize)]
struct Line {
    changes: Vec<String>,
    status: String,
    reading: Option<ReadingJson>,
    host_id: Option<String>,
    disruption_marker: u64,
    flags: Vec<String>,
    /// New time less old time at the same counter value, if the parameters changed.
    jump_ns: Option<i64>,
}

pub fn run(clock: &RadClock, args: &Args, json: bool) -> Result<(), Failure> {
    let mut last: Option<View> = None;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        // A page in the middle of a write is looked at the next time.
        if let Ok(page) = clock.snapshot() {
            let result = clock.now();
            let view = View {
                status: result.as_ref().map_or(page.abi.status(), |reading| reading.status),
                error: result.as_ref().err().copied(),
                host: page.extension().map(|ext| ext.host_id),
                disruption_marker: page.abi.disruption_marker.get(),
                flags: page.abi.flags(),
                leap_indicator: page.abi.leap_indicator,
                clock: page.abi.clock().ok().filter(|_| page.abi.status().is_readable()),
            };
            let jump = last.as_ref().and_then(|last| jump(clock, last, &view));
            let changes = changes(last.as_ref(), &view, jump, Span::from_nanos(args.jump.min(1 << 62) as i64));
            if !changes.is_empty() {
                let line = Line {
                    changes,
                    status: view.status.to_string(),
                    reading: result.as_ref().ok().map(ReadingJson::from),
                    host_id: view.host.as_ref().map(format::host_id),
                    disruption_marker: view.disruption_marker,
                    flags: flag_names(view.flags),
                    jump_ns: jump.map(|(jump, _)| jump.floor_nanos()),
                };
                if json {
                    format::json(&line)?;
                } else {
                    let time = result.map_or_else(|_| "-".into(), |reading| format::utc(reading.time));
                    writeln!(io::stdout(), "{time} {}", line.changes.join(", "))?;
                }
                left -= 1;
            }
            last = Some(view);
        }
        if left > 0 {
            sleep(Duration::from_millis(args.interval));
        }
    }
    Ok(())
}

/// By how much the time jumped now, and the bound that stood before; nothing across a disruption, where the old
/// parameters are of another counter, nor if they did not change.
fn jump(clock: &RadClock, last: &View, view: &View) -> Option<(Span, Span)> {
    let (old, new) = (last.clock?, view.clock?);
    if old == new || last.disruption_marker != view.disruption_marker {
        return None;
    }
    let counter = clock.sample().ok()?.counter;
    let (before, bound) = old.reading_at(counter)?;
    let (after, _) = new.reading_at(counter)?;
    Some((after.since(before), bound))
}

fn changes(last: Option<&View>, view: &View, jump: Option<(Span, Span)>, report: Span) -> Vec<String> {
    let mut changes = Vec::new();
    let describe = |view: &View| match view.error {
        // The state says it already.
        None | Some(ReadError::Status(_)) => view.status.to_string(),
        Some(error) => format!("{} ({error})", view.status),
    };
    let Some(last) = last else {
        let host = view.host.map_or_else(|| "unknown".into(), |host| format::host_id(&host));
        return vec![describe(view), format!("host {host}"), format!("disruption marker {}", view.disruption_marker)];
    };
    // An update between the page's copy and the reading shows as an error of the moment.
    let passing = |error: Option<ReadError>| matches!(error, Some(ReadError::Busy(_)));
    if describe(last) != describe(view) && !passing(view.error) {
        changes.push(format!("{} -> {}", describe(last), describe(view)));
    }
    if let (true, Some(host)) = (last.host != view.host, view.host) {
        changes.push(format!("host {}", format::host_id(&host)));
    }
    if last.disruption_marker != view.disruption_marker {
        changes.push(format!("disruption marker {} -> {}", last.disruption_marker, view.disruption_marker));
    }
    let of_interest = Flags::DISRUPTION_SOON | Flags::DISRUPTION_IMMINENT | Flags::TAI_OFFSET_VALID;
    for (name, flag) in of_interest.iter_names() {
        match (last.flags.contains(flag), view.flags.contains(flag)) {
            (false, true) => changes.push(format!("{} set", name.to_lowercase())),
            (true, false) => changes.push(format!("{} cleared", name.to_lowercase())),
            _ => {}
        }
    }
    if last.leap_indicator != view.leap_indicator {
        changes.push(format!("leap indicator {} -> {}", last.leap_indicator, view.leap_indicator));
    }
    if let Some((jump, bound)) = jump {
        if jump.abs() > bound {
            changes.push(format!("jump {} (beyond the bound of {})", format::signed(jump), format::signed(bound)));
        } else if jump.abs() >= report {
            changes.push(format!("jump {}", format::signed(jump)));
        }
    }
    changes
}
