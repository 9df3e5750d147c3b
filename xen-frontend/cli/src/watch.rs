//! `radclock watch`: a line for each change that matters to a person.
//!
//! A page changes with every update; what matters is the state, the host behind it, a disruption, a warning of one, and
//! a jump of the time.

use std::io::{self, Write};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use xen_radclock::{Disruption, Flags, Page, RadClock, ReadError, Reading, Span, Status, Timestamp};

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

/// What a person cares about, and the page to find jumps by.
struct View {
    status: Status,
    error: Option<ReadError>,
    host: Option<[u8; 16]>,
    disruption_marker: u64,
    flags: Flags,
    leap_indicator: u8,
    /// If it can be read.
    page: Option<Page>,
}

/// One line, as JSON: what changed, in words, and the state after it.
#[derive(Serialize)]
struct Line {
    change: String,
    status: String,
    reading: Option<ReadingJson>,
    host_id: Option<String>,
    disruption_marker: u64,
    flags: Vec<String>,
}

pub fn run(clock: &RadClock, args: &Args, json: bool) -> Result<(), Failure> {
    let report = Span::from_nanos(args.jump.min(1 << 62) as i64);
    let mut last: Option<View> = None;
    let mut last_reading: Option<(Reading, Instant)> = None;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        // A page in the middle of a write is looked at the next time.
        if let Ok(page) = clock.snapshot() {
            let result = clock.now();
            let reading = result.ok().map(|reading| (reading, Instant::now()));
            let view = View {
                status: result.as_ref().map_or(page.abi.status(), |reading| reading.status),
                error: result.as_ref().err().copied(),
                host: page.extension().map(|ext| ext.host_id),
                disruption_marker: page.abi.disruption_marker.get(),
                flags: page.abi.flags(),
                leap_indicator: page.abi.leap_indicator,
                page: page.abi.status().is_readable().then_some(page),
            };
            let jump = match (&last, last_reading, reading) {
                (_, Some(before), Some(after)) if is_other_counter(&before.0, &after.0) => Some(across(before, after)),
                (Some(last), ..) => jump(clock, last, &view, report),
                _ => None,
            };
            for change in changes(last.as_ref(), &view, jump) {
                if left == 0 {
                    break;
                }
                left -= 1;
                print(change, &view, reading.map(|(reading, _)| reading).as_ref(), json)?;
            }
            last = Some(view);
            last_reading = reading.or(last_reading);
        }
        if left > 0 {
            sleep(Duration::from_millis(args.interval));
        }
    }
    Ok(())
}

fn print(change: String, view: &View, reading: Option<&Reading>, json: bool) -> io::Result<()> {
    if json {
        return format::json(&Line {
            change,
            status: view.status.to_string(),
            reading: reading.map(ReadingJson::from),
            host_id: view.host.as_ref().map(format::host_id),
            disruption_marker: view.disruption_marker,
            flags: flag_names(view.flags),
        });
    }
    let time = match reading {
        Some(reading) => format::utc(reading.time),
        None => format!("~{}", format::utc(system_time())),
    };
    writeln!(io::stdout(), "{time} {change}")
}

/// For who wants to know when it was that the clock could not be read.
fn system_time() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(since_1970.as_secs(), since_1970.subsec_nanos().into())
}

/// Whether a disruption lies between two readings.
fn is_other_counter(before: &Reading, after: &Reading) -> bool {
    before.sample.disruption_marker != after.sample.disruption_marker
}

/// What can be known of the jump across a disruption. There is no counter that both clocks could be asked for: between
/// the two readings this system stood still for a time that only their difference tells. Only if that comes out
/// negative, beyond both bounds, one of the clocks must be wrong.
fn across(before: (Reading, Instant), after: (Reading, Instant)) -> String {
    let elapsed = after.0.time.since(before.0.time);
    let ran = after.1.duration_since(before.1);
    let ran = Span::from_nanos(i64::try_from(ran.as_nanos()).unwrap_or(i64::MAX));
    let stood = elapsed - ran;
    // What the system's own clock may be off by meanwhile.
    let own = Span::from_nanos(ran.ceil_nanos() / 1000);
    let bounds = before.0.max_error.saturating_add(after.0.max_error).saturating_add(own);
    let (elapsed, ran) = (format::signed(elapsed), format::secs(ran.as_secs_f64()));
    let bounds_text = format::secs(bounds.as_secs_f64());
    if stood.saturating_add(bounds) < Span::from_nanos(0) {
        format!(
            "jump {elapsed} since the last reading before, but the system ran for {ran}: beyond the bounds of {bounds_text}, \
             so one of the clocks is wrong"
        )
    } else {
        let stood = format::secs(stood.as_secs_f64());
        format!(
            "jump {elapsed} since the last reading before: the system ran for {ran} and stood still for {stood} \
             ± {bounds_text}"
        )
    }
}

/// By how much the time jumped now, with the bound that stood before; nothing if the parameters did not change, or by
/// less than `report` and than that bound.
fn jump(clock: &RadClock, last: &View, view: &View, report: Span) -> Option<String> {
    let (old, new) = (last.page?, view.page?);
    if old.abi.clock() == new.abi.clock() || last.disruption_marker != view.disruption_marker {
        return None;
    }
    let counter = clock.sample().ok()?.counter;
    let (before, after) = old.reading_at(counter).ok().zip(new.reading_at(counter).ok())?;
    let (jump, bound) = (after.time.since(before.time), before.max_error);
    if jump.abs() > bound {
        Some(format!("jump {} (beyond the bound of {})", format::signed(jump), format::signed(bound)))
    } else {
        (jump.abs() >= report).then(|| format!("jump {}", format::signed(jump)))
    }
}

/// In the order in which a disruption goes by.
fn changes(last: Option<&View>, view: &View, jump: Option<String>) -> Vec<String> {
    let mut changes = Vec::new();
    let describe = |view: &View| match view.error {
        // The state says it already.
        None | Some(ReadError::Status(_)) => view.status.to_string(),
        Some(error) => format!("{} ({error})", view.status),
    };
    let warning = Disruption::from_flags(view.flags);
    let warned = |warning: Disruption| match warning {
        Disruption::Soon => "a disruption is to come soon, within a day".to_owned(),
        Disruption::Imminent => "a disruption is imminent, within an hour".to_owned(),
    };
    let Some(last) = last else {
        let host = view.host.map_or_else(|| "unknown".into(), |host| format::host_id(&host));
        let marker = view.disruption_marker;
        changes.push(format!("{}, host {host}, disruption marker {marker}", describe(view)));
        changes.extend(warning.map(warned));
        return changes;
    };
    let was_warned = Disruption::from_flags(last.flags);
    if warning != was_warned {
        changes.extend(warning.map(warned));
    }
    if last.disruption_marker != view.disruption_marker {
        changes.push(format!("disrupted, disruption marker {} -> {}", last.disruption_marker, view.disruption_marker));
    }
    // An update between the page's copy and the reading shows as an error of the moment.
    let passing = |error: Option<ReadError>| matches!(error, Some(ReadError::Busy(_)));
    if describe(last) != describe(view) && !passing(view.error) {
        changes.push(format!("{} -> {}", describe(last), describe(view)));
    }
    if let (true, Some(host)) = (last.host != view.host, view.host) {
        changes.push(format!("new host {}", format::host_id(&host)));
    }
    changes.extend(jump);
    if warning.is_none() && was_warned.is_some() {
        changes.push("no longer warned of a disruption".to_owned());
    }
    if last.flags.contains(Flags::TAI_OFFSET_VALID) != view.flags.contains(Flags::TAI_OFFSET_VALID) {
        let known = view.flags.contains(Flags::TAI_OFFSET_VALID);
        changes.push(format!("TAI - UTC {}", if known { "known" } else { "no longer known" }));
    }
    if last.leap_indicator != view.leap_indicator {
        changes.push(format!("leap indicator {} -> {}", last.leap_indicator, view.leap_indicator));
    }
    changes
}
