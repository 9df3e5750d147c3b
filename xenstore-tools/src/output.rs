//! How it is shown: tables for people, JSON for programs.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::guests::{Guest, Host};

/// Writes to standard output. Unlike `print!`, does not panic when the reader has gone.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Whether an error only says that nobody reads on.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// As JSON over several lines.
pub fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// As JSON in one line.
pub fn json_line(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string(value)? + "\n")
}

/// A guest and its nodes as JSON.
pub fn guest_json(guest: &Guest, nodes: &[(String, String)]) -> anyhow::Result<String> {
    let nodes: serde_json::Map<_, _> =
        nodes.iter().map(|(name, value)| (name.clone(), serde_json::Value::from(value.as_str()))).collect();
    let mut value = serde_json::to_value(guest)?;
    value["nodes"] = nodes.into();
    json(&value)
}

/// The host's clock in a line, and its guests in a table.
pub fn list(host: &Host) -> String {
    let mut text = String::new();
    if let Some(clock) = &host.clock {
        text += &clock_line(clock);
    }
    if host.guests.is_empty() {
        text += "no guests\n";
        return text;
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["ID", "NAME", "KIND", "CLOCK", "FRONTEND", "AGE", "DISRUPTION"]);
    for guest in &host.guests {
        table.add_row([
            guest.domid.to_string(),
            guest.name.clone(),
            guest.kind.map_or_else(|| "?".into(), |kind| kind.to_string()),
            guest.state.to_string(),
            guest.frontend_state.clone(),
            guest.age_s.map_or_else(|| "-".into(), seconds),
            guest.warning.map_or_else(|| "-".into(), |warning| warning.to_string()),
        ]);
    }
    for column in [0, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in table.lines() {
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// The list for a reader who watches: on a terminal in place of the one before, else with a gap in front.
pub fn frame(host: &Host) -> String {
    let list = list(host);
    if io::stdout().is_terminal() { format!("\x1b[2J\x1b[H{list}") } else { format!("{list}\n") }
}

/// One guest, a line a property.
pub fn guest(guest: &Guest, nodes: &[(String, String)]) -> String {
    let mut rows = vec![
        ("domain".to_string(), guest.domid.to_string()),
        ("name".into(), guest.name.clone()),
        ("uuid".into(), guest.uuid.clone()),
        ("kind".into(), guest.kind.map_or_else(|| "unknown".into(), |kind| kind.to_string())),
        ("clock".into(), guest.state.to_string()),
        ("backend state".into(), guest.backend_state.clone()),
        ("frontend state".into(), guest.frontend_state.clone()),
    ];
    if let Some(generation) = guest.generation {
        rows.push(("generation".into(), generation.to_string()));
    }
    if let Some(age) = guest.age_s {
        rows.push(("age".into(), seconds(age)));
    }
    if let Some(warning) = guest.warning {
        rows.push(("disruption".into(), warning.to_string()));
    }
    rows.extend(nodes.iter().cloned());
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:width$}  {value}");
        text
    })
}

fn clock_line(clock: &radclock::report::ClockReport) -> String {
    let status = format!("{:?}", clock.status).to_lowercase();
    match (&clock.time, clock.max_error_ns, clock.age_s) {
        (Some(time), Some(error), Some(age)) => {
            let micros = error as f64 / 1000.0;
            format!("clock {status}, {time} ± {micros:.1} µs, parameters {} old\n", seconds(age))
        }
        _ => format!("clock {status}\n"),
    }
}

/// A span to three figures or so.
fn seconds(span: f64) -> String {
    if span < 100.0 { format!("{span:.1} s") } else { format!("{span:.0} s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guests::tests::{domains, status};

    #[test]
    fn a_list_shows_each_guest_in_a_line() {
        let list = list(&Host::new(Some(status()), domains(), None));
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines[0], "clock synchronized, 1795000000.123456789 ± 12.3 µs, parameters 3.2 s old");
        let words = |line: usize| lines[line].split_whitespace().collect::<Vec<_>>();
        assert_eq!(words(1), ["ID", "NAME", "KIND", "CLOCK", "FRONTEND", "AGE", "DISRUPTION"]);
        assert_eq!(words(2), ["1", "db", "PVH", "connected", "Connected", "3.2", "s", "imminent"]);
        assert_eq!(words(4), ["3", "7", "?", "detached", "Connected", "-", "-"]);
        assert_eq!(lines.len(), 7);
    }

    #[test]
    fn a_guest_in_json_has_its_nodes() {
        let host = Host::new(Some(status()), domains(), None);
        let text = guest_json(&host.guests[0], &[("backend/page-ref".into(), "8".into())]).expect("JSON");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["nodes"]["backend/page-ref"], "8");
        assert_eq!(value["kind"], "PVH");
        assert_eq!(value["state"], "connected");
        assert_eq!(value["warning"], "imminent");
    }
}
