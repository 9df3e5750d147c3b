//! A backend that is broken in every way there is: the guest's driver says so, its programs get an error at once, and its
//! kernel does not mind.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::footprint::{ensure_no_complaint, ensure_no_complaint_in};
use crate::guest::{Guest, Kind};
use crate::host::{COMMAND_LIMIT, Host};
use crate::progress::say;
use crate::readings::Reader;
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
const NEVER_GRANTED: &str = "4294967295";
/// What makes the offer unusable.
const OFFERS: &[Offer] = &[
    Offer { node: "version", value: "2", said: "protocol version 2, only 1 is known", keeps_clock: false },
    Offer { node: "version", value: "99999999999999999999", said: "protocol version ", keeps_clock: false },
    Offer { node: "page-ref", value: NEVER_GRANTED, said: "mapping page-ref 4294967295", keeps_clock: true },
    Offer { node: "page-ref", value: "none", said: "reading page-ref", keeps_clock: true },
];
/// How often one of them is made without a pause, and how many lines of the kernel's log that may fill in so many seconds (Linux's
/// `DEFAULT_RATELIMIT_BURST` and `_INTERVAL`).
const REPEATS: usize = 150;
const LINES: usize = 10;
const SECONDS: f64 = 5.0;
/// A program's attempt to read the clock, in emulation, with the start of its process.
const READ_LIMIT_MS: u64 = 10_000;

/// An offer with a node that is wrong.
#[derive(Debug)]
struct Offer {
    node: &'static str,
    value: &'static str,
    /// By the driver, in its kernel's log.
    said: &'static str,
    /// A guest that has parameters goes on by them.
    keeps_clock: bool,
}

/// One guest, the broken backend's process for it, and its nodes.
struct Victim<'host> {
    host: &'host Host,
    guest: Guest<'host>,
    domid: u16,
    page_ref: String,
    port: String,
    /// How often its kernel's log was marked.
    marks: Cell<u32>,
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
        let victim = Victim { host, guest, domid, page_ref, port, marks: Cell::new(0) };
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

    /// Makes an offer that the driver cannot take, and waits until it has said so: of this offer, not of one before.
    fn offer_in_vain(&self, node: &str, value: &str, said: &str) -> Result<()> {
        let mark = format!("lab: offer {}:", self.marks.replace(self.marks.get() + 1));
        self.guest.run(&format!("echo '{mark} {node} {value}' > /dev/kmsg"))?;
        self.offer(Some((node, value)))?;
        wait::until("the driver to say what is wrong", COMMAND_LIMIT, || {
            let log = self.guest.run("dmesg")?;
            let (_, since) = log.split_once(&mark).context("the mark is gone from the log")?;
            Ok(since.lines().any(|line| line.contains("radclock-0:") && line.contains(said)).then_some(()))
        })
        .with_context(|| format!("{node} {value}: {}", self.guest.run("dmesg | tail").unwrap_or_default()))
    }

    /// The same offer again and again fills the guest's log more slowly.
    fn repeat_in_vain(&self) -> Result<()> {
        let said = format!("mapping page-ref {NEVER_GRANTED}");
        // By the guest's own time.
        let look = || -> Result<(usize, f64)> {
            let uptime = self.guest.run("cat /proc/uptime")?;
            let uptime = uptime.split(' ').next().context("no time")?.parse()?;
            Ok((self.guest.run("dmesg")?.matches(&said).count(), uptime))
        };
        let (lines_before, begin) = look()?;
        let backend = self.backend();
        let offer = format!("xenstore-write {backend}/page-ref {NEVER_GRANTED} {backend}/state 2");
        self.host.run(&format!("for i in $(seq {REPEATS}); do {offer}; done"))?;
        let (lines, end) = look()?;
        let (lines, took) = (lines - lines_before, end - begin);
        let name = self.guest.name();
        say!("{name}: {REPEATS} offers in vain in {took:.0} s, {lines} lines of them in its kernel's log");
        let most = LINES * (took / SECONDS + 2.0) as usize;
        ensure!((1..=most).contains(&lines), "{lines} lines of {REPEATS} offers in {took} s");
        Ok(())
    }

    fn ensure_not_connected(&self) -> Result<()> {
        let state = self.host.run(&format!("xenstore-read {}/state", self.frontend()))?;
        ensure!(state.trim() != "4", "{} is connected", self.guest.name());
        Ok(())
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

/// Wrong magic, absurd parameters, a page that is never finished, versions from the future: no time is read, none that is
/// wrong before the driver has seen it, and none of it stays once the backend is right again. A page that is taken away is no
/// clock that goes wrong, either.
pub fn a_broken_backend_gives_no_time_and_does_no_harm(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    // What is broken is this clock, a right one.
    host.start_radclockd_with(&host.configuration().replace("offer = \"all\"", "offer = \"none\""))?;
    host.await_synchronized()?;
    for (kind, pages) in [(Kind::Pvh, PAGES), (Kind::Pv, FEW)] {
        let victim = Victim::new(&host, kind)?;
        let guest = &victim.guest;
        for offer in OFFERS {
            victim.offer_in_vain(offer.node, offer.value, offer.said)?;
            victim.ensure_not_connected()?;
            // Nobody has to be told what never was: the page goes on saying that there is no clock.
            guest.await_state("unreadable", 10).with_context(|| format!("{offer:?}"))?;
        }
        // A PV guest's driver is the same.
        if kind == Kind::Pvh {
            victim.repeat_in_vain()?;
        }
        victim.offer(None)?;
        guest.await_synchronized()?;
        // A PV guest's driver is the same, but its counter is emulated: the truth is not known as well there.
        let reader = (kind == Kind::Pvh).then(|| Reader::start(guest, &[&host])).transpose()?;
        for page in pages {
            victim.act(page)?;
            victim.await_unreliable(page)?;
            victim.act("good")?;
            guest.await_synchronized().with_context(|| format!("after {page}"))?;
        }
        victim.act("flood")?;
        guest.run("lab-probe read 1").context("while events come as fast as they can")?;
        for offer in OFFERS {
            if !offer.keeps_clock {
                // While a page is mapped, an offer of the same one is no news.
                victim.offer_in_vain("page-ref", NEVER_GRANTED, "mapping page-ref 4294967295")?;
            }
            victim.offer_in_vain(offer.node, offer.value, offer.said)?;
            if offer.keeps_clock {
                guest.run("radclock now").with_context(|| format!("by what was there before {offer:?}"))?;
            } else {
                victim.await_unreliable(offer.value)?;
            }
            victim.offer(None)?;
            guest.await_synchronized().with_context(|| format!("after {offer:?}"))?;
        }
        take_away(&victim)?;
        if let Some(reader) = reader {
            let verdict = reader.stop(guest)?.judge(kind)?;
            say!("{}: {verdict}", guest.name());
            verdict.ensure_none_wrong()?;
            // Each broken page was the end of a clock that was read, and there was another one after it.
            ensure!(verdict.changes.len() >= pages.len(), "the reader missed some of it: {verdict}");
        }
        ensure_no_complaint_in(guest)?;
        let lines = guest.run("dmesg | grep -c radclock")?;
        say!(
            "{}: {} broken pages, {} broken offers, {} lines in its kernel's log",
            guest.name(),
            pages.len(),
            OFFERS.len(),
            lines.trim()
        );
        victim.act("end")?;
        victim.guest.destroy()?;
    }
    ensure_no_complaint(&host)
}

/// The grant of a page that the guest has mapped ends as soon as the guest lets go of it, and is not mapped again. The clock goes
/// on by what the page said last, until the backend closes.
fn take_away(victim: &Victim) -> Result<()> {
    let Victim { host, guest, .. } = victim;
    victim.act("torn down")?;
    // Linux asks Xen once a second whether the grant can be ended. It cannot.
    let bound = || -> Result<u64> {
        let said: serde_json::Value = serde_json::from_str(&guest.run("radclock --json now")?)?;
        said["max_error_ns"].as_u64().context("no bound")
    };
    let before = bound().context("from a page that is about to be the guest's alone")?;
    guest.run("sleep 3")?;
    let after = bound().context("from a page that is the guest's alone")?;
    ensure!(after > before, "nobody renews the clock, and its bound stays {after} ns");
    victim.offer_in_vain("page-ref", NEVER_GRANTED, "mapping page-ref 4294967295")?;
    victim.ensure_not_connected()?;
    host.run("sleep 3")?;
    victim.offer_in_vain("page-ref", &victim.page_ref, &format!("mapping page-ref {}", victim.page_ref))?;
    victim.ensure_not_connected()?;
    guest.run("radclock now").context("by the parameters of a page that is gone")?;
    host.run(&format!("xenstore-write {}/state 6", victim.backend()))?;
    victim.await_unreliable("a backend that has closed")
}
