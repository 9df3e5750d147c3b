//! A guest that means harm: its nodes rewritten with rubbish as fast as XenStore takes it, its event channel flooded, its grant
//! kept for ever. Dom0's daemon and the other guest go on.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::footprint::{Footprint, ensure_no_complaint_in};
use crate::guest::{Guest, Kind};
use crate::host::{COMMAND_LIMIT, Host};
use crate::readings::Reader;
use crate::{Lab, wait};

/// How long the daemon is looked at, quiet and under each attack.
const WINDOW: Duration = Duration::from_secs(10);
/// An attack lasts longer.
const ATTACK_SECS: u64 = 16;
/// The daemon's memory may grow by what its allocator keeps.
const MEMORY_KIB: u64 = 1024;
/// Lines that it may log in a window: ten offers at once, each with its states.
const LINES: usize = 80;

/// What the daemon costs in a window.
#[derive(Debug)]
struct Cost {
    cpu_percent: f64,
    memory_kib: u64,
    lines: usize,
    /// How long it takes to answer the administrator, its process included, at worst.
    answer: Duration,
}

impl Cost {
    fn of(host: &Host) -> Result<Cost> {
        let pid = host.radclockd_pid()?;
        let ticks = || -> Result<u64> {
            let stat = host.run(&format!("cat /proc/{pid}/stat"))?;
            let fields: Vec<&str> = stat.rsplit(')').next().context("no stat")?.split_whitespace().collect();
            Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
        };
        let lines = || Ok::<_, anyhow::Error>(host.radclockd_log()?.lines().count());
        let (ticks_before, lines_before, start) = (ticks()?, lines()?, Instant::now());
        let mut answer = Duration::ZERO;
        while start.elapsed() < WINDOW {
            let asked = Instant::now();
            host.run("radclock-ctl list > /dev/null")?;
            answer = answer.max(asked.elapsed());
            thread::sleep(Duration::from_secs(1));
        }
        let seconds = start.elapsed().as_secs_f64();
        let status = host.run(&format!("cat /proc/{pid}/status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
        Ok(Cost {
            cpu_percent: (ticks()? - ticks_before) as f64 / seconds,
            memory_kib: memory.trim().trim_end_matches(" kB").parse()?,
            lines: lines()? - lines_before,
            answer,
        })
    }

    fn tell(&self, what: &str) {
        let Cost { cpu_percent, memory_kib, lines, answer } = self;
        println!("{what}: daemon {cpu_percent:.1} % CPU, {memory_kib} KiB, {lines} lines, answers within {answer:?}");
    }

    fn ensure_bounded(&self, quiet: &Cost) -> Result<()> {
        ensure!(self.memory_kib <= quiet.memory_kib + MEMORY_KIB, "the daemon grows: {self:?}, before {quiet:?}");
        ensure!(self.lines <= LINES, "the daemon logs {} lines", self.lines);
        Ok(())
    }
}

/// The node of the backend's directory for a guest.
fn offered(host: &Host, domid: u16, node: &str) -> Result<String> {
    Ok(host.run(&format!("xenstore-read /local/domain/0/backend/radclock/{domid}/0/{node}"))?.trim().to_owned())
}

/// Starts an attack in the guest.
fn attack(guest: &Guest, command: &str) -> Result<()> {
    guest.run(&format!("lab-hostile {command} > /run/attack 2>&1 < /dev/null &")).map(drop)
}

/// What an attack said at its end.
fn result_of(guest: &Guest, says: &str) -> Result<String> {
    wait::until(says, COMMAND_LIMIT, || {
        let said = guest.run("cat /run/attack")?;
        ensure!(!said.contains("lab-hostile:"), "the attack failed: {said}");
        Ok(said.contains(says).then(|| said.trim().to_owned()))
    })
}

/// The daemon costs little more, the other guest's readings are right, and nothing of the hostile one is left in the end.
pub fn a_hostile_guest_disturbs_nobody(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    host.start_radclockd()?;
    let before = Footprint::after_a_first_guest(&host)?;
    let good = host.create("good", Kind::Pvh)?;
    let evil = host.create("evil", Kind::Pv)?;
    for guest in [&good, &evil] {
        guest.await_synchronized()?;
    }
    let domid = evil.domid()?;
    ensure!(domid > good.domid()?, "the other guest's nodes are not where the attack looks for them");
    let reader = Reader::start(&good, &[&host])?;
    let quiet = Cost::of(&host)?;
    quiet.tell("quiet");

    attack(&evil, &format!("nodes {} {ATTACK_SECS}", good.domid()?))?;
    let cost = Cost::of(&host)?;
    cost.tell("nodes rewritten");
    cost.ensure_bounded(&quiet)?;
    println!("{}", result_of(&evil, "written")?);

    // Without the driver the page and the port of the next offer are the guest's to take.
    evil.run("rmmod xen_radclockfront; insmod /lib/xen-evtchn.ko; insmod /lib/xen-gntdev.ko")?;
    host.run("radclock-ctl detach evil && radclock-ctl attach evil")?;
    wait::until("an offer", COMMAND_LIMIT, || Ok((offered(&host, domid, "state")? == "2").then_some(())))?;
    evil.run(&format!("lab-hostile hold {} > /run/hold 2>&1 < /dev/null &", offered(&host, domid, "page-ref")?))?;
    wait::until("the page to be held", COMMAND_LIMIT, || {
        Ok(evil.run("cat /run/hold")?.contains("holding").then_some(()))
    })
    .with_context(|| evil.run("cat /run/hold").unwrap_or_default())?;
    attack(&evil, &format!("flood {} {ATTACK_SECS}", offered(&host, domid, "event-channel")?))?;
    let cost = Cost::of(&host)?;
    cost.tell("events sent and the page held");
    cost.ensure_bounded(&quiet)?;
    println!("{}", result_of(&evil, "events")?);
    // The page is taken back as far as the guest is concerned that holds it.
    host.run("radclock-ctl detach evil && radclock-ctl attach evil")?;

    let verdict = reader.stop(&good)?.judge(Kind::Pvh)?;
    println!("the other guest: {verdict}");
    verdict.ensure_none_wrong()?;
    ensure!(verdict.errors == 0, "the other guest had no clock for a while: {verdict}");
    good.await_synchronized()?;
    ensure_no_complaint_in(&good)?;
    evil.destroy()?;
    good.destroy()?;
    before.await_again(&host)
}
