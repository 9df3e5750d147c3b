//! Whom the clock follows, and what is thought of each, as a table.

use comfy_table::{CellAlignment, Table, presets};
use radclock::report::{DaemonStatus, ServerReport};

/// A table of the servers and hardware clocks, and what is wrong below it.
pub fn table(status: &DaemonStatus) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "SERVER",
        "VERDICT",
        "SHARE",
        "OFFSET µs",
        "BOUND µs",
        "RTT µs",
        "REACH",
        "POLL s",
    ]);
    for column in 2..8 {
        table.column_mut(column).expect("there are eight").set_cell_alignment(CellAlignment::Right);
    }
    let micros = |secs: Option<f64>| secs.map_or_else(|| "-".to_owned(), |secs| format!("{:.1}", secs * 1e6));
    for server in &status.servers {
        table.add_row([
            name(server),
            server.standing.to_string(),
            format!("{:.0} %", server.weight * 100.0),
            micros(server.offset_s),
            micros(server.bound_s),
            micros(server.rtt_s),
            format!("{:08b}", server.reach),
            format!("{:.0}", server.poll_s),
        ]);
    }
    let mut text: String = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    for server in &status.servers {
        if let Some(error) = &server.last_error {
            // Errors of the network name their server by themselves.
            let named =
                if error.starts_with(&server.name) { error.clone() } else { format!("{}: {error}", name(server)) };
            text += &named;
            text.push('\n');
        }
    }
    if let Some(problem) = &status.clock.problem {
        text += &format!("{problem}\n");
    }
    text
}

fn name(server: &ServerReport) -> String {
    match &server.address {
        Some(address) if *address != server.name => format!("{} ({address})", server.name),
        _ => server.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use radclock::ensemble::Standing;

    #[test]
    fn each_server_has_a_line_with_its_verdict_and_what_is_wrong_stands_below() {
        let mut good = ServerReport::unheard("10.0.0.1:123".into(), 16.0);
        good.address = Some("10.0.0.1:123".into());
        good.standing = Standing::Truechimer;
        (good.weight, good.offset_s, good.bound_s, good.rtt_s, good.reach) =
            (0.4, Some(-3.2e-6), Some(120e-6), Some(240.04e-6), 255);
        let mut bad = ServerReport::unheard("ntp.example:123".into(), 16.0);
        bad.standing = Standing::Falseticker;
        bad.last_error = Some("its answer contradicts the clock: not followed".into());
        let mut status = crate::guests::tests::status();
        status.servers = vec![good, bad];
        status.clock.problem = Some("the servers contradict each other".into());
        let text = table(&status);
        let lines: Vec<&str> = text.lines().collect();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            words(lines[1]),
            ["10.0.0.1:123", "truechimer", "40", "%", "-3.2", "120.0", "240.0", "11111111", "16"]
        );
        assert_eq!(words(lines[2])[..2], ["ntp.example:123", "falseticker"]);
        assert_eq!(lines[3], "ntp.example:123: its answer contradicts the clock: not followed");
        assert_eq!(lines[4..], ["the servers contradict each other"]);
    }
}
