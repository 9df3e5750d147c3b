//! A backend that is broken in every way there is: the guest's driver says so, its programs get an error at once, and its
//! kernel does not mind.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::footprint::ensure_no_complaint_in;
use crate::guest::{Guest, Kind};
use crate::host::{COMMAND_LIMIT, Host};
use crate::{Lab, wait};

/// What makes the page unusable, as `lab-publisher broken` knows it.
const PAGES: &[&str] = &[
    "magic",
    "zeroes",
    "version",
    "size",
    "extension",
    "counter",
    "tai",
    "status",
    "no bound",
    "period of zero",
    "period overflows",
    "shift",
    "rate overflows",
    "bound overflows",
    "year 9999",
    "time overflows",
    "stuck",
];
/// What the PV guest is put through: the driver is the same.
const FEW: &[&str] = &["magic", "year 9999", "stuck"];
/// What makes the offer unusable: the node, and what it says.
const NODES: &[(&str, &str)] =
    &[("version", "2"), ("version", "99999999999999999999"), ("page-ref", "4294967295"), ("page-ref", "none")];
/// A program's attempt to read the clock, in emulation, with the start of its process.
const READ_LIMIT_MS: u64 = 2_000;

/// One guest, the broken backend's process for it, and its nodes.
struct Victim<'host> {
    host: &'host Host,
    guest: Guest<'host>,
    domid: u16,
    page_ref: String,
    port: String,
}

impl<'host> Victim<'host> {
    fn new(host: &'host Host, kind: Kind) -> Result<Victim<'host>> {
        let guest = host.create(kind.name(), kind)?;
        guest.await_boot()?;
        let domid = guest.domid()?;
        let fifo = format!("/run/broken-{domid}");
        host.run(&format!(
            "mkfifo {fifo}; setsid lab-publisher broken {domid} {fifo} > {fifo}.log 2>&1 < /dev/null &"
        ))?;
        let offer = wait::until("the broken backend's page", COMMAND_LIMIT, || {
            let said = host.run(&format!("cat {fifo}.log"))?;
            Ok(said.trim().split_once(' ').map(|(page, port)| (page.to_owned(), port.to_owned())))
        });
        let (page_ref, port) = offer?;
        let victim = Victim { host, guest, domid, page_ref, port };
        let (backend, frontend) = (victim.backend(), victim.frontend());
        // Written by nobody's code of ours, but in its order: the permissions first, the backend's state last but one.
        host.run(&format!(
            "xenstore-write {backend} '' && xenstore-chmod {backend} n0 r{domid}
             xenstore-write {frontend} '' && xenstore-chmod {frontend} n{domid} r0
             xenstore-write {backend}/frontend {frontend} {backend}/frontend-id {domid} {backend}/online 1
             xenstore-write {frontend}/backend {backend} {frontend}/backend-id 0 {frontend}/state 1"
        ))?;
        Ok(victim)
    }

    fn backend(&self) -> String {
        format!("/local/domain/0/backend/radclock/{}/0", self.domid)
    }

    fn frontend(&self) -> String {
        format!("/local/domain/{}/device/radclock/0", self.domid)
    }

    /// Writes the offer, with one node as `broken` says.
    fn offer(&self, broken: Option<(&str, &str)>) -> Result<()> {
        let backend = self.backend();
        let nodes = [("version", "1"), ("page-ref", &self.page_ref), ("event-channel", &self.port)];
        let nodes = nodes.map(|(name, good)| match broken {
            Some((node, value)) if node == name => format!("{backend}/{name} '{value}'"),
            _ => format!("{backend}/{name} {good}"),
        });
        self.host.run(&format!("xenstore-write {} {backend}/state 2", nodes.join(" "))).map(drop)
    }

    /// Has the broken backend do something.
    fn act(&self, action: &str) -> Result<()> {
        self.host.run(&format!("echo '{action}' > /run/broken-{}", self.domid)).map(drop)
    }

    /// The driver says UNRELIABLE, and a program has an error, at once.
    fn await_unreliable(&self, why: &str) -> Result<()> {
        let context =
            || format!("{} with {why}:\n{}", self.guest.name(), self.guest.run("dmesg | tail").unwrap_or_default());
        let status = "dd if=/dev/vmclock0 bs=1 skip=34 count=1 2> /dev/null | hexdump -e '1/1 \"%u\"'";
        wait::until(
            "UNRELIABLE",
            Duration::from_secs(30),
            || Ok((self.guest.run(status)?.trim() == "4").then_some(())),
        )
        .with_context(context)?;
        let read = "read a b < /proc/uptime; radclock now 2>&1 && exit 1; read c d < /proc/uptime; echo; echo $a $c";
        let said = self.guest.run(read).with_context(context)?;
        let uptimes = said.lines().last().context("no times")?.split(' ');
        let uptimes = uptimes.map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        let took = ((uptimes[1] - uptimes[0]) * 1e3) as u64;
        ensure!(said.contains("unreliable"), "{why}: radclock says {said}");
        ensure!(took <= READ_LIMIT_MS, "{why}: an error took {took} ms");
        Ok(())
    }
}

/// Wrong magic, absurd parameters, a page that is never finished, versions from the future: no time is read, and none of it
/// stays once the backend is right again. A page that is taken away is no clock that goes wrong, either.
pub fn a_broken_backend_gives_no_time_and_does_no_harm(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    for (kind, pages) in [(Kind::Pvh, PAGES), (Kind::Pv, FEW)] {
        let victim = Victim::new(&host, kind)?;
        let guest = &victim.guest;
        for &broken in NODES {
            victim.offer(Some(broken))?;
            // Nobody has to be told what never was: the page goes on saying that there is no clock.
            let logged = || Ok(guest.run("dmesg")?.contains("radclock-0:").then_some(()));
            wait::until("the driver to say what is wrong", COMMAND_LIMIT, logged)?;
            guest.await_state("unreadable", 10).with_context(|| format!("{broken:?}"))?;
        }
        victim.offer(None)?;
        guest.await_synchronized()?;
        for page in pages {
            victim.act(page)?;
            victim.await_unreliable(page)?;
            victim.act("good")?;
            guest.await_synchronized().with_context(|| format!("after {page}"))?;
        }
        victim.act("flood")?;
        guest.run("lab-probe read 1").context("while events come as fast as they can")?;

        // A grant that has ended is not mapped again; what was mapped stays, so the clock goes on by what it said.
        victim.act("torn down")?;
        victim.offer(Some(("page-ref", "4294967295")))?;
        wait::until("the driver to let go", COMMAND_LIMIT, || {
            let state = host.run(&format!("xenstore-read {}/state", victim.frontend()))?;
            Ok((state.trim() != "4").then_some(()))
        })?;
        guest.run("lab-probe read 1").context("by the parameters of a page that is gone")?;
        host.run(&format!("xenstore-write {}/state 6", victim.backend()))?;
        victim.await_unreliable("a backend that has closed")?;
        ensure_no_complaint_in(guest)?;
        let lines = guest.run("dmesg | grep -c radclock")?;
        println!(
            "{}: {} broken pages, {} broken offers, {} lines in its kernel's log",
            guest.name(),
            pages.len(),
            NODES.len(),
            lines.trim()
        );
        victim.act("end")?;
        victim.guest.destroy()?;
    }
    Ok(())
}
