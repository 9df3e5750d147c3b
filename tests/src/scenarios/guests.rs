//! Guests come and go, and so do their drivers; Dom0 keeps nothing of them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::footprint::{Footprint, await_forgotten};
use crate::Lab;
use crate::guest::Kind;
use crate::host::Host;

/// Waits until the guest's driver is connected, from outside.
fn await_connected(host: &Host, domid: u16) -> Result<()> {
    let state = format!("xenstore-read /local/domain/{domid}/device/radclock/0/state");
    // Looked at seldom: the guest needs the one emulated CPU to boot.
    host.run(&format!("for i in $(seq 80); do [ \"$({state})\" = 4 ] && exit 0; sleep 1; done; exit 1"))
        .map(drop)
        .with_context(|| format!("domain {domid} does not connect:\n{}", host.radclockd_log().unwrap_or_default()))
}

/// No grant, event channel, XenStore node, file or memory is left, however often a guest comes and is destroyed.
pub fn a_guest_created_twenty_times_leaves_nothing_behind(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    host.start_radclockd()?;
    let mut before = None;
    let mut references = BTreeSet::new();
    for round in 0..20 {
        let kind = if round % 2 == 0 { Kind::Pvh } else { Kind::Pv };
        let guest = host.create("guest", kind)?;
        let domid = guest.domid()?;
        await_connected(&host, domid).with_context(|| format!("guest {round}"))?;
        references.insert(host.run(&format!("xenstore-read /local/domain/0/backend/radclock/{domid}/0/page-ref"))?);
        guest.destroy()?;
        // The first two may leave what all later ones use again.
        if round == 1 {
            await_forgotten(&host)?;
            before = Some(Footprint::of(&host)?);
        }
    }
    let before = before.expect("there were more than two rounds");
    ensure!(before.grants == 0, "Dom0 still grants {} pages with no guest there", before.grants);
    before.await_again(&host)?;
    // Xen shows grants that a guest maps; the kernel gives out the number of one that has ended again.
    ensure!(references.len() <= 5, "grants are not ended: the guests had references {references:?}");
    Ok(())
}

/// A reboot is a new domain: it gets the clock anew, and the old one leaves nothing.
pub fn a_rebooted_guest_gets_the_clock_again_and_leaves_nothing_behind(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    host.start_radclockd()?;
    let before = Footprint::after_a_first_guest(&host)?;
    for kind in [Kind::Pv, Kind::Pvh] {
        let guest = host.create(kind.name(), kind)?;
        guest.await_synchronized()?;
        guest.reboot()?;
        guest.await_synchronized()?;
        guest.destroy()?;
    }
    before.await_again(&host)
}

/// Without the driver there is no clock, and one clear line; with it again, the clock is back.
pub fn an_unloaded_driver_can_be_loaded_again(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    host.start_radclockd()?;
    for kind in [Kind::Pv, Kind::Pvh] {
        let guest = host.create(kind.name(), kind)?;
        guest.await_synchronized()?;
        for _ in 0..3 {
            guest.run("rmmod xen_radclockfront && test ! -e /dev/vmclock0")?;
            guest.run("insmod /lib/xen-radclockfront.ko")?;
            guest.await_synchronized()?;
        }
        guest.destroy()?;
    }
    Ok(())
}
