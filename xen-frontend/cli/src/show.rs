//! `radclock now` and `radclock status`.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;
use xen_radclock::{Flags, Page, RadClock, ReadError, Reading};

use crate::{Failure, format};

/// A reading as JSON. Times are decimal seconds since 1970 in UTC with nine decimals, as text.
#[derive(Serialize)]
pub struct ReadingJson {
    time: String,
    utc: String,
    earliest: String,
    latest: String,
    max_error_ns: u64,
    status: String,
    tai_offset_s: Option<i16>,
    leap_second: bool,
    counter: u64,
    disruption_marker: u64,
}

impl From<&Reading> for ReadingJson {
    fn from(reading: &Reading) -> Self {
        // Both ends are printed rounded down, so the later one is put a nanosecond later.
        let latest = reading.latest().saturating_add(xen_radclock::Span::from_nanos(1));
        ReadingJson {
            time: reading.time.to_string(),
            utc: utc(reading),
            earliest: reading.earliest().to_string(),
            latest: latest.to_string(),
            max_error_ns: reading.max_error_nanos(),
            status: reading.status.to_string(),
            tai_offset_s: reading.tai_offset,
            leap_second: reading.leap_second,
            counter: reading.sample.counter.0,
            disruption_marker: reading.sample.disruption_marker,
        }
    }
}

/// With an inserted second as 23:59:60, though its number is that of 23:59:59.
fn utc(reading: &Reading) -> String {
    let text = format::utc(reading.time);
    if reading.leap_second { text.replacen(":59.", ":60.", 1) } else { text }
}

pub fn now(clock: &RadClock, json: bool) -> Result<(), Failure> {
    let reading = clock.now()?;
    if json {
        format::json(&ReadingJson::from(&reading))?;
    } else {
        let bound = format::nanos(reading.max_error_nanos());
        writeln!(io::stdout(), "{} ± {bound}, {}", utc(&reading), reading.status)?;
    }
    Ok(())
}

/// What is known of the clock, as JSON. What a clock that cannot be read, or a page without the extension, does not
/// say is null.
#[derive(Serialize)]
struct StatusJson {
    device: String,
    counter: &'static str,
    counter_id: u8,
    /// `synchronized` and `freerunning` can be read, whatever else cannot.
    status: String,
    reading: Option<ReadingJson>,
    /// Why there is no reading.
    error: Option<String>,
    period_s: Option<f64>,
    /// Relative: by how much the bound grows, in seconds a second.
    period_max_error: Option<f64>,
    age_s: Option<f64>,
    valid_s: Option<f64>,
    host_id: Option<String>,
    generation: Option<u64>,
    disruption_marker: u64,
    flags: Vec<String>,
    leap_indicator: u8,
}

fn describe(clock: &RadClock, page: &Page, result: &Result<Reading, ReadError>) -> StatusJson {
    let abi = &page.abi;
    let reading = result.as_ref().ok();
    let parameters = abi.clock().ok().filter(|_| abi.status().is_readable());
    let extension = page.extension();
    StatusJson {
        device: clock.path().display().to_string(),
        counter: format::counter(abi.counter_id),
        counter_id: abi.counter_id,
        status: reading.map_or(abi.status(), |reading| reading.status).to_string(),
        reading: reading.map(ReadingJson::from),
        error: result.as_ref().err().map(ToString::to_string),
        period_s: parameters.map(|clock| clock.period.as_secs_f64()),
        period_max_error: parameters.map(|clock| clock.period_max_error as f64 / clock.period.frac as f64),
        age_s: parameters.zip(reading).map(|(clock, reading)| reading.time.since(clock.time).as_secs_f64()),
        valid_s: extension.map(|ext| ext.valid_nanos.get() as f64 * 1e-9),
        host_id: extension.map(|ext| format::host_id(&ext.host_id)),
        generation: extension.map(|ext| ext.generation.get()),
        disruption_marker: abi.disruption_marker.get(),
        flags: flag_names(abi.flags()),
        leap_indicator: abi.leap_indicator,
    }
}

/// As vmclock calls them, in lower case.
pub fn flag_names(flags: Flags) -> Vec<String> {
    flags.iter_names().map(|(name, _)| name.to_lowercase()).collect()
}

pub fn status(clock: &RadClock, json: bool) -> Result<ExitCode, Failure> {
    let page = clock.snapshot().map_err(ReadError::from)?;
    let result = clock.now();
    let status = describe(clock, &page, &result);
    if json {
        format::json(&status)?;
    } else {
        io::stdout().write_all(in_words(&page, &result, &status).as_bytes())?;
    }
    Ok(if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn in_words(page: &Page, result: &Result<Reading, ReadError>, status: &StatusJson) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text += &format!("{name:<12}{value}\n");
    let parameters = page.abi.clock().ok().filter(|_| page.abi.status().is_readable());

    let frequency = parameters.map_or_else(String::new, |clock| format!(" at {}", format::frequency(clock.period)));
    line("clock", format!("{} ({}{frequency})", status.device, status.counter));
    match result {
        Ok(reading) => {
            line("status", status.status.clone());
            line("time", utc(reading));
            let growth = status
                .period_max_error
                .map_or_else(String::new, |rate| format!(", growing by {} a second", format::secs(rate)));
            line("bound", format!("{}{growth}", format::nanos(reading.max_error_nanos())));
        }
        Err(error) => {
            let why = error.to_string();
            line("status", format!("{}: {why}; {}", status.status, crate::read_hint(error)));
        }
    }
    if let Some(age) = status.age_s {
        let valid = status.valid_s.map_or_else(String::new, |valid| format!(", valid for {}", format::secs(valid)));
        line("age", format!("{}{valid}", format::secs(age)));
    }
    if let (Some(host), Some(generation)) = (&status.host_id, status.generation) {
        line("host", host.clone());
        line("generation", generation.to_string());
    }
    line("disruptions", format!("marker {}", status.disruption_marker));
    if let Some(offset) = page.abi.tai_offset() {
        line("TAI - UTC", format!("{offset} s"));
    }
    match status.leap_indicator {
        0 => {}
        1 => line("leap second", "to be inserted at the end of the month".into()),
        2 => line("leap second", "to be left out at the end of the month".into()),
        3 => line("leap second", "in progress".into()),
        _ => line("leap second", "just over".into()),
    }
    if page.abi.flags().intersects(Flags::DISRUPTION_SOON | Flags::DISRUPTION_IMMINENT) {
        let imminent = page.abi.flags().contains(Flags::DISRUPTION_IMMINENT);
        line("warning", format!("a disruption is to come within {}", if imminent { "an hour" } else { "a day" }));
    }
    text
}
