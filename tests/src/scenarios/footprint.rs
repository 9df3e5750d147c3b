//! What a host holds for its guests' sake, and what its kernel and Xen complain of: neither may grow with what guests do.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest::{Guest, Kind};
use crate::host::{COMMAND_LIMIT, Host};
use crate::wait;

/// Memory of the daemon that may come and go with its allocator.
const MEMORY_SLACK_KIB: u64 = 512;
/// In a kernel's or Xen's log, something is broken.
const COMPLAINTS: &[&str] = &[
    "panicked",
    "WARNING:",
    "BUG:",
    "kernel BUG",
    "Xen BUG",
    "Oops",
    "Call Trace",
    "call trace",
    "general protection",
    "blocked for more than",
    "Waiting for devices to initialise",
    "still in use",
    "leaked",
    "cannot unmap",
    "cannot be bound anew",
    "Freezing of tasks failed",
];

/// What a host holds for its guests' sake.
#[derive(Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Domains, besides Dom0.
    pub domains: usize,
    /// Active grants of Dom0's.
    pub grants: usize,
    /// Dom0's event channels.
    pub event_channels: usize,
    /// Paths in XenStore.
    pub nodes: BTreeSet<String>,
    /// What stands in the daemon's folder.
    pub run_files: BTreeSet<String>,
    /// The daemon's open files.
    pub files: usize,
    /// The daemon's memory, KiB.
    pub memory: u64,
}

impl Footprint {
    /// What it is now. `radclockd` has to run.
    pub fn of(host: &Host) -> Result<Footprint> {
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
            domains: count("xl list | tail -n +3 | wc -l")?,
            grants: dom0.lines().filter(|line| line.starts_with("(XEN) [")).count(),
            event_channels: count("lsevtchn 0 | wc -l")?,
            nodes: nodes.lines().filter_map(|line| line.split(" = ").next()).map(str::to_owned).collect(),
            run_files: host.run("ls -A /run/radclock")?.lines().map(str::to_owned).collect(),
            // Of several looks the fewest: a poll has a socket of its own until it is answered.
            files: count(&format!(
                "for look in 1 2 3 4 5; do ls /proc/{pid}/fd | wc -l; sleep 0.1; done | sort -n | head -n 1"
            ))?,
            memory: memory.trim().trim_end_matches(" kB").parse()?,
        })
    }

    /// The same of a host on which there was a guest before and is none: the first one leaves what all later ones use again.
    pub fn after_a_first_guest(host: &Host) -> Result<Footprint> {
        let first = host.create("first", Kind::Pvh)?;
        await_offered(host, first.domid()?)?;
        first.destroy()?;
        await_forgotten(host)?;
        Footprint::of(host)
    }

    /// Waits until the host is as it was: what a guest leaves goes a moment after it.
    pub fn await_again(&self, host: &Host) -> Result<()> {
        let mut now = Footprint::of(host)?;
        let again = wait::until("the host to be as before", Duration::from_secs(30), || {
            now = Footprint::of(host)?;
            Ok(self.is_again(&now).then_some(()))
        });
        again.with_context(|| {
            let new: Vec<_> = now.nodes.difference(&self.nodes).collect();
            format!("before: {self}; now: {now}; new XenStore nodes: {new:?}")
        })
    }

    fn is_again(&self, now: &Footprint) -> bool {
        now.domains == self.domains
            && now.grants == self.grants
            && now.event_channels == self.event_channels
            && now.nodes == self.nodes
            && now.run_files == self.run_files
            && now.files == self.files
            && now.memory <= self.memory + MEMORY_SLACK_KIB
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Footprint { domains, grants, event_channels, nodes, run_files, files, memory } = self;
        write!(
            f,
            "{domains} domains, {grants} grants, {event_channels} event channels, {} XenStore nodes; the daemon's: {files} open \
             files, {memory} KiB, {run_files:?}",
            nodes.len()
        )
    }
}

/// Waits until `radclockd` has offered a domain the clock.
fn await_offered(host: &Host, domid: u16) -> Result<()> {
    let page = format!("xenstore-exists /local/domain/0/backend/radclock/{domid}/0/page-ref");
    wait::until("the offer", COMMAND_LIMIT, || Ok(host.output(&page, COMMAND_LIMIT)?.status.success().then_some(())))
}

/// Waits until no guest's device is left in XenStore.
pub fn await_forgotten(host: &Host) -> Result<()> {
    wait::until("XenStore to forget the guests", COMMAND_LIMIT, || {
        let left = host.output("xenstore-ls -f | grep -q radclock/", COMMAND_LIMIT)?;
        Ok((!left.status.success()).then_some(()))
    })
}

/// Fails if Xen, Dom0's kernel or a daemon has complained since the host was booted.
pub fn ensure_no_complaint(host: &Host) -> Result<()> {
    check("Xen", &host.console_log()?)?;
    check("Dom0's kernel", after_boot(&host.run("dmesg")?))?;
    check("radclockd", &host.radclockd_log()?)
}

/// Fails if the guest's kernel has complained since it was booted.
pub fn ensure_no_complaint_in(guest: &Guest) -> Result<()> {
    check(guest.name(), after_boot(&guest.run("dmesg")?))
}

/// A kernel that boots in emulation warns of the processor.
fn after_boot(log: &str) -> &str {
    log.split_once("Run /init as init process").map_or(log, |(_, after)| after)
}

fn check(who: &str, log: &str) -> Result<()> {
    let bad = |line: &&str| COMPLAINTS.iter().any(|word| line.contains(word));
    let complaints: Vec<&str> = log.lines().filter(bad).collect();
    ensure!(complaints.is_empty(), "{who} complains:\n{}", complaints.join("\n"));
    Ok(())
}
