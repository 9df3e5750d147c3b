//! Warnings of a disruption: what the administrator and the toolstack announce reaches the guest's processes, and ends with
//! the disruption.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::guest::Guest;
use crate::host::Host;
use crate::{Lab, demo, wait};

/// From an order to a line in the guest, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

const SOON: &str = "a disruption is to come soon, within a day";
const IMMINENT: &str = "a disruption is imminent, within an hour";
const OVER: &str = "no longer warned of a disruption";
const DISRUPTED: &str = "disrupted, disruption marker ";
const JUMP: &str = "jump +";

/// What `radclock watch` has printed in a guest, without the times, and without the small jumps of each update.
fn watched(guest: &Guest) -> Result<Vec<String>> {
    let text = guest.run("cat /run/watch")?;
    let changes = text.lines().filter_map(|line| line.split_once(' ')).map(|(_, change)| change);
    let of_the_event = |line: &&str| !line.starts_with("jump") || line.contains("since the last reading");
    Ok(changes.filter(of_the_event).map(str::to_owned).collect())
}

/// Waits until the last line is this one.
fn await_line(guest: &Guest, line: &str) -> Result<()> {
    let mut seen = Vec::new();
    let there = wait::until(line, LIMIT, || {
        seen = watched(guest)?;
        Ok(seen.last().is_some_and(|last| last.starts_with(line)).then_some(()))
    });
    there.with_context(|| format!("{} saw {seen:#?}", guest.name()))
}

/// What the daemon says that a guest is warned of.
fn warning(host: &Host, guest: &Guest) -> Result<Value> {
    let shown: Value = serde_json::from_str(&host.run(&format!("radclock-ctl --json show {}", guest.name()))?)?;
    shown.get("warning").cloned().context("radclock-ctl show says nothing of warnings")
}

fn prepare(host: &Host, guest: &Guest, option: &str) -> Result<()> {
    host.run(&format!("radclock-ctl prepare-migration {} {option}", guest.name())).map(drop)
}

/// A process in a guest sees each warning, the disruption, and the jump, in this order, and no time without a clock;
/// afterwards nothing is left of the warning, whether the guest moved on or was only copied. A daemon that died warns of nothing any more as soon as there is another.
pub fn a_guest_is_warned_and_sees_the_whole_disruption(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    host.start_radclockd()?;
    let mut guests = Vec::new();
    for (name, kind) in demo::GUESTS {
        let guest = host.create(name, kind)?;
        guest.await_synchronized()?;
        guest.run("radclock watch --interval 20 > /run/watch 2>&1 < /dev/null &")?;
        guests.push(guest);
    }
    for guest in &mut guests {
        await_line(guest, "synchronized, host ")?;
        prepare(&host, guest, "")?;
        await_line(guest, SOON)?;
        ensure!(warning(&host, guest)? == "soon", "{}: {}", guest.name(), warning(&host, guest)?);
        prepare(&host, guest, "--cancel")?;
        await_line(guest, OVER)?;
        prepare(&host, guest, "--imminent")?;
        await_line(guest, IMMINENT)?;
        ensure!(warning(&host, guest)? == "imminent", "{}: {}", guest.name(), warning(&host, guest)?);

        let image = format!("/tmp/{}.saved", guest.name());
        guest.save(&image)?;
        guest.restore(&host, &image)?;
        await_line(guest, OVER)?;
        ensure!(warning(&host, guest)?.is_null(), "{} is warned after its restore", guest.name());

        prepare(&host, guest, "")?;
        await_line(guest, SOON)?;
        host.run(&format!("xl save -c {} {image}", guest.name()))?;
        await_line(guest, OVER)?;
        ensure!(warning(&host, guest)?.is_null(), "{} is warned after a checkpoint", guest.name());

        // The toolstack's request may, or may not, be seen before the guest stops.
        let seen: Vec<String> = watched(guest)?.into_iter().skip(1).collect();
        let last_soon = seen.iter().rposition(|line| line == SOON).context("no second warning")?;
        let second = seen[last_soon + 1..].iter().filter(|line| *line != IMMINENT);
        let events: Vec<&String> = seen[..=last_soon].iter().chain(second).collect();
        let expected = [SOON, OVER, IMMINENT, DISRUPTED, JUMP, OVER, SOON, DISRUPTED, JUMP, OVER];
        let as_expected = events.len() == expected.len()
            && events.iter().zip(expected).all(|(event, expected)| event.starts_with(expected));
        ensure!(as_expected, "{} saw {seen:#?}", guest.name());
    }

    for guest in &guests {
        prepare(&host, guest, "")?;
        await_line(guest, SOON)?;
    }
    host.stop_radclockd("KILL")?;
    host.start_radclockd()?;
    for guest in &guests {
        wait::until("the end of a dead daemon's warning", LIMIT, || {
            let seen = watched(guest)?;
            let warned = seen.iter().rposition(|line| line == SOON).context("no third warning")?;
            Ok(seen[warned..].iter().any(|line| line == OVER).then_some(()))
        })?;
    }
    Ok(())
}
