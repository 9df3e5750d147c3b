//! Guests come and go, and so do their drivers; Dom0 keeps nothing of them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest::Kind;
use crate::host::{COMMAND_LIMIT, Host};
use crate::{Lab, wait};

/// Memory of the daemon that may come and go with its allocator.
const MEMORY_SLACK_KIB: u64 = 512;

/// What a host holds for its guests' sake.
#[derive(Debug, PartialEq, Eq)]
struct Footprint {
    /// Active grants of Dom0's.
    grants: usize,
    /// Dom0's event channels.
    event_channels: usize,
    /// Paths in XenStore.
    nodes: BTreeSet<String>,
    /// The daemon's open files.
    files: usize,
    /// The daemon's memory, KiB.
    memory: u64,
}

impl Footprint {
    fn of(host: &Host) -> Result<Footprint> {
        let pid = host.radclockd_pid()?;
        let count = |shell: &str| -> Result<usize> { Ok(host.run(shell)?.trim().parse()?) };
        host.run("xl dmesg -c > /dev/null; xl debug-keys g")?;
        let grants = host.run("xl dmesg")?;
        let dom0 = grants.split("grant-table for remote d").find(|table| table.starts_with("0 "));
        let dom0 = dom0.with_context(|| format!("Xen shows no grants of Dom0's:\n{grants}"))?;
        let status = host.run(&format!("cat /proc/{pid}/status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
        let nodes = host.run("xenstore-ls -f")?;
        Ok(Footprint {
            grants: dom0.lines().filter(|line| line.starts_with("(XEN) [")).count(),
            event_channels: count("lsevtchn 0 | wc -l")?,
            nodes: nodes.lines().filter_map(|line| line.split(" = ").next()).map(str::to_owned).collect(),
            files: count(&format!("ls /proc/{pid}/fd | wc -l"))?,
            memory: memory.trim().trim_end_matches(" kB").parse()?,
        })
    }

    /// Waits until the host is as it was: what a guest leaves goes a moment after it.
    fn await_again(&self, host: &Host) -> Result<()> {
        let mut now = Footprint::of(host)?;
        let again = wait::until("the host to be as before", Duration::from_secs(30), || {
            now = Footprint::of(host)?;
            Ok(self.is_again(&now).then_some(()))
        });
        again.with_context(|| {
            let new: Vec<_> = now.nodes.difference(&self.nodes).collect();
            let counts = |of: &Footprint| {
                format!(
                    "{} grants, {} event channels, {} files, {} KiB",
                    of.grants, of.event_channels, of.files, of.memory
                )
            };
            format!("before: {}; now: {}; new XenStore nodes: {new:?}", counts(self), counts(&now))
        })
    }

    fn is_again(&self, now: &Footprint) -> bool {
        now.grants == self.grants
            && now.event_channels == self.event_channels
            && now.nodes == self.nodes
            && now.files == self.files
            && now.memory <= self.memory + MEMORY_SLACK_KIB
    }
}

/// Waits until the guest's driver is connected, from outside.
fn await_connected(host: &Host, domid: u16) -> Result<()> {
    let state = format!("xenstore-read /local/domain/{domid}/device/radclock/0/state");
    // Looked at seldom: the guest needs the one emulated CPU to boot.
    host.run(&format!("for i in $(seq 80); do [ \"$({state})\" = 4 ] && exit 0; sleep 1; done; exit 1"))
        .map(drop)
        .with_context(|| format!("domain {domid} does not connect:\n{}", host.radclockd_log().unwrap_or_default()))
}

/// Waits until no guest's device is left in XenStore.
fn await_forgotten(host: &Host) -> Result<()> {
    wait::until("XenStore to forget the guests", COMMAND_LIMIT, || {
        let left = host.output("xenstore-ls -f | grep -q radclock/", COMMAND_LIMIT)?;
        Ok((!left.status.success()).then_some(()))
    })
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
    // The first guest leaves what all later ones use again.
    let first = host.create("first", Kind::Pvh)?;
    first.await_synchronized()?;
    first.destroy()?;
    await_forgotten(&host)?;
    let before = Footprint::of(&host)?;
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
