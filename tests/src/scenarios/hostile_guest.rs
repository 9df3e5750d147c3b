//! A guest that means harm: its nodes rewritten with rubbish as fast as XenStore takes it, its event channel flooded, its grant
//! kept for ever. Dom0's daemon and the other guest go on, and neither pays more than twice for it.
//!
//! The host has one CPU, so that a guest that is only busy takes it from Dom0 and from the other guest, too: wakeups come
//! later, caches are cold, and Dom0's kernel counts time that Xen gave to a guest as its process's. That is the scheduler's
//! doing and any guest's right. So the attacks are compared with the same guest being busy with nothing.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::footprint::{Footprint, ensure_no_complaint_in};
use crate::figures::{UpdateLatency, update_latency};
use crate::guest::{Guest, Kind};
use crate::host::{COMMAND_LIMIT, Host};
use crate::readings::Reader;
use crate::report::Table;
use crate::{Lab, wait};

/// How long the daemon is looked at in each case.
const WINDOW: Duration = Duration::from_secs(15);
/// What the guest does lasts longer.
const ATTACK_SECS: u64 = 26;
/// Updates of which the latencies are compared, some 17 ms apart.
const UPDATES: usize = 600;
/// The daemon's memory may grow by what its allocator keeps.
const MEMORY_KIB: u64 = 1024;
/// Lines that it may log in a window: ten offers at once, each with its states.
const LINES: usize = 80;
/// Under attack nothing may be more than this times what it is beside a guest that is only busy…
const FACTOR: f64 = 2.0;
/// …but for what the build machine's own load does to a window: percent of the CPU…
const CPU_NOISE: f64 = 3.0;
/// …and of latencies, ns: half of the updates are compared closely, the latest of a hundred less so, since QEMU stands still
/// for tens of milliseconds where two compilers use the build machine.
const MEDIAN_NOISE: i64 = 1_000_000;
const P99_NOISE: i64 = 20_000_000;

/// What the daemon costs in a window.
#[derive(Debug)]
struct Cost {
    cpu_percent: f64,
    /// What xenstored costs, which answers the guest: reported, not judged.
    xenstored_percent: f64,
    memory_kib: u64,
    lines: usize,
    /// How long it takes to answer the administrator, its process included, at worst.
    answer: Duration,
}

impl Cost {
    fn of(host: &Host) -> Result<Cost> {
        let pid = host.radclockd_pid()?;
        let ticks = || -> Result<[u64; 2]> {
            let stats = host.run(&format!("cat /proc/{pid}/stat /proc/$(pidof xenstored)/stat"))?;
            let ticks = stats.lines().map(|stat| {
                let fields: Vec<&str> = stat.rsplit(')').next().context("no stat")?.split_whitespace().collect();
                Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
            });
            ticks.collect::<Result<Vec<_>>>()?.try_into().ok().context("not two processes")
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
        let ticks_after = ticks()?;
        let percent = |process: usize| (ticks_after[process] - ticks_before[process]) as f64 / seconds;
        let status = host.run(&format!("cat /proc/{pid}/status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
        Ok(Cost {
            cpu_percent: percent(0),
            xenstored_percent: percent(1),
            memory_kib: memory.trim().trim_end_matches(" kB").parse()?,
            lines: lines()? - lines_before,
            answer,
        })
    }

    fn ensure_bounded(&self, busy: &Cost) -> Result<()> {
        ensure!(
            self.cpu_percent <= busy.cpu_percent * FACTOR + CPU_NOISE,
            "too much of the CPU: {self:?}, beside a busy guest {busy:?}"
        );
        ensure!(self.memory_kib <= busy.memory_kib + MEMORY_KIB, "the daemon grows: {self:?}, before {busy:?}");
        ensure!(self.lines <= LINES, "the daemon logs {} lines", self.lines);
        Ok(())
    }
}

fn ensure_as_prompt(latency: &UpdateLatency, busy: &UpdateLatency) -> Result<()> {
    let allowed = |busy: i64, noise: i64| (busy as f64 * FACTOR) as i64 + noise;
    ensure!(
        latency.median <= allowed(busy.median, MEDIAN_NOISE) && latency.p99 <= allowed(busy.p99, P99_NOISE),
        "updates are late: {latency:?}, beside a busy guest {busy:?}"
    );
    Ok(())
}

/// What the guest does, and what it says at the end.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Nothing,
    Spin,
    Nodes { victim: u16 },
    Flood,
}

impl Deed {
    fn name(self) -> &'static str {
        match self {
            Deed::Nothing => "quiet",
            Deed::Spin => "busy with nothing",
            Deed::Nodes { .. } => "rewrites its nodes",
            Deed::Flood => "sends events, holds the page",
        }
    }

    fn begin(self, host: &Host, guest: &Guest) -> Result<()> {
        let command = match self {
            Deed::Nothing => return Ok(()),
            Deed::Spin => "spin".to_owned(),
            Deed::Nodes { victim } => format!("nodes {victim}"),
            Deed::Flood => format!("flood {}", offered(host, guest.domid()?, "event-channel")?),
        };
        guest.run(&format!("lab-hostile {command} {ATTACK_SECS} > /run/deed 2>&1 < /dev/null &")).map(drop)
    }

    /// Waits for its end.
    fn await_end(self, guest: &Guest) -> Result<String> {
        let says = match self {
            Deed::Nothing => return Ok(String::new()),
            Deed::Spin => "rounds",
            Deed::Nodes { .. } => "written",
            Deed::Flood => "events",
        };
        wait::until(says, COMMAND_LIMIT, || {
            let said = guest.run("cat /run/deed")?;
            ensure!(!said.contains("lab-hostile:"), "the attack failed: {said}");
            Ok(said.contains(says).then(|| said.trim().to_owned()))
        })
    }
}

/// A node of the backend's directory for a guest.
fn offered(host: &Host, domid: u16, node: &str) -> Result<String> {
    Ok(host.run(&format!("xenstore-read /local/domain/0/backend/radclock/{domid}/0/{node}"))?.trim().to_owned())
}

fn await_offer(host: &Host, domid: u16) -> Result<()> {
    wait::until("an offer", COMMAND_LIMIT, || {
        let state = format!("xenstore-read /local/domain/0/backend/radclock/{domid}/0/state");
        let output = host.output(&state, COMMAND_LIMIT)?;
        Ok((output.stdout.trim_ascii() == b"2").then_some(()))
    })
}

/// The daemon costs little more, updates reach the other guest as they did, its readings are right, and nothing of the hostile
/// one is left in the end.
pub fn a_hostile_guest_disturbs_nobody(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    host.start_radclockd()?;
    let before = Footprint::after_a_first_guest(&host)?;
    let good = host.create("good", Kind::Pvh)?;
    let evil = host.create("evil", Kind::Pv)?;
    for guest in [&good, &evil] {
        guest.await_synchronized()?;
    }
    let (domid, victim) = (evil.domid()?, good.domid()?);
    ensure!(domid > victim, "the other guest's nodes are not where the attack looks for them");
    let deeds = [Deed::Nothing, Deed::Spin, Deed::Nodes { victim }, Deed::Flood];

    let reader = Reader::start(&good, &[&host])?;
    let cost_of = |deed: Deed| {
        deed.begin(&host, &evil)?;
        let cost = Cost::of(&host)?;
        println!("{}: {cost:?}; {}", deed.name(), deed.await_end(&evil)?);
        Ok::<_, anyhow::Error>(cost)
    };
    let quiet = cost_of(Deed::Nothing)?;
    // Before, between and after the attacks, since what a process is said to use grows with the build machine's load.
    let mut busy = vec![cost_of(Deed::Spin)?];
    let nodes = cost_of(Deed::Nodes { victim })?;
    busy.push(cost_of(Deed::Spin)?);
    hold_the_page(&host, &evil)?;
    let flood = cost_of(Deed::Flood)?;
    busy.push(cost_of(Deed::Spin)?);
    let busy = busy.into_iter().max_by(|a, b| a.cpu_percent.total_cmp(&b.cpu_percent)).context("three")?;
    let costs = [quiet, busy, nodes, flood];
    // The page is taken back as far as the guest is concerned that holds it.
    host.run("radclock-ctl detach evil && radclock-ctl attach evil")?;
    let verdict = reader.stop(&good)?.judge(Kind::Pvh)?;
    println!("the other guest: {verdict}");
    verdict.ensure_none_wrong()?;
    ensure!(verdict.errors == 0, "the other guest had no clock for a while: {verdict}");

    host.stop_radclockd("TERM")?;
    let mut latencies = Vec::new();
    for deed in deeds {
        // The hostile guest has no driver any more: the other one is all that connects.
        let latency = update_latency(lab, &host, &good, UPDATES, 1, || {
            await_offer(&host, domid)?;
            deed.begin(&host, &evil)
        })?;
        println!("{}: {latency:?}; {}", deed.name(), deed.await_end(&evil)?);
        latencies.push(latency);
    }
    println!("{}", table(&deeds, &costs, &latencies).markdown());
    for (cost, latency) in costs.iter().zip(&latencies).skip(2) {
        cost.ensure_bounded(&costs[1])?;
        ensure_as_prompt(latency, &latencies[1])?;
    }

    host.start_radclockd()?;
    good.await_synchronized()?;
    ensure_no_complaint_in(&good)?;
    evil.destroy()?;
    good.destroy()?;
    before.await_again(&host)
}

/// Without the driver the page and the port of the next offer are the guest's to take.
fn hold_the_page(host: &Host, evil: &Guest) -> Result<()> {
    let domid = evil.domid()?;
    evil.run("rmmod xen_radclockfront; insmod /lib/xen-evtchn.ko; insmod /lib/xen-gntdev.ko")?;
    host.run("radclock-ctl detach evil && radclock-ctl attach evil")?;
    await_offer(host, domid)?;
    evil.run(&format!("lab-hostile hold {} > /run/hold 2>&1 < /dev/null &", offered(host, domid, "page-ref")?))?;
    wait::until("the page to be held", COMMAND_LIMIT, || {
        Ok(evil.run("cat /run/hold")?.contains("holding").then_some(()))
    })
    .with_context(|| evil.run("cat /run/hold").unwrap_or_default())
}

fn table(deeds: &[Deed], costs: &[Cost], latencies: &[UpdateLatency]) -> Table {
    let mut table = Table::new([
        "the hostile guest",
        "daemon's CPU",
        "xenstored's CPU",
        "memory",
        "lines",
        "answer",
        "median",
        "99 %",
        "worst",
    ]);
    for ((deed, cost), latency) in deeds.iter().zip(costs).zip(latencies) {
        let millis = |nanos: i64| format!("{:.1} ms", nanos as f64 / 1e6);
        table.row([
            deed.name().to_owned(),
            format!("{:.1} %", cost.cpu_percent),
            format!("{:.1} %", cost.xenstored_percent),
            format!("{} KiB", cost.memory_kib),
            cost.lines.to_string(),
            format!("{} ms", cost.answer.as_millis()),
            millis(latency.median),
            millis(latency.p99),
            millis(latency.max),
        ]);
    }
    table
}
