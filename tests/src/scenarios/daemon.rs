//! Guests outlive the daemon, and may be there before it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest::{Guest, Kind};
use crate::{Lab, demo, truth};

/// `kill -9`: guests go on by what they have, with a bound that grows and holds, and need nobody to reconnect.
pub fn guests_run_free_when_radclockd_is_killed_and_reconnect_when_it_is_back(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    let configuration = format!("{}\n[clock]\nvalidity = 5\n", host.configuration());
    let guests = demo::synchronise_with(&host, &configuration)?;
    host.stop_radclockd("KILL")?;
    for guest in &guests {
        guest.await_state("freerunning", 30)?;
        let first = bound(guest)?;
        let truth = truth::measure(&host, Duration::from_secs(1), |probe| guest.expression(probe))?;
        ensure!(!truth.synchronized, "{} takes itself for synchronised again", guest.name());
        ensure!(truth.is_inside(), "{}'s true error is outside of its bound: {truth:?}", guest.name());
        let later = bound(guest)?;
        ensure!(later > first, "{}'s bound does not grow: {first} ns, then {later} ns", guest.name());
    }
    host.start_radclockd_with(&configuration)?;
    for guest in &guests {
        guest.await_synchronized().with_context(|| host.radclockd_log().unwrap_or_default())?;
    }
    Ok(())
}

/// The bound that the guest's clock claims now, ns.
fn bound(guest: &Guest) -> Result<u64> {
    let reading: serde_json::Value = serde_json::from_str(&guest.run("radclock now --json")?)?;
    reading["max_error_ns"].as_u64().with_context(|| format!("no max_error_ns in {reading}"))
}

/// The order of a host's start does not matter.
pub fn a_guest_that_was_there_first_gets_the_clock(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    let guests = [host.create("pv", Kind::Pv)?, host.create("pvh", Kind::Pvh)?];
    for guest in &guests {
        guest.await_boot()?;
        guest.await_state("unreadable", 5)?;
    }
    host.start_radclockd()?;
    for guest in &guests {
        guest.await_synchronized()?;
    }
    Ok(())
}
