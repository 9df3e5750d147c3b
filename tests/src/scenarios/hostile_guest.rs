//! A guest that means harm: its nodes rewritten with rubbish as fast as XenStore takes it, its event channel flooded, its grant
//! kept for ever. Dom0's daemon and the other guest go on as if it did not.
//!
//! The host has one CPU, and any guest that is busy takes it from Dom0 and from the other guest. That is the scheduler's
//! doing, and so are the administrator's means against it: a weight for Dom0 ([`DOM0_WEIGHT`]), with which the daemon's CPU is
//! compared, and a cap for the guest ([`CAP`]), with which updates are compared, since xenstored answers the guest on the CPU
//! that the other one reads with. The quiet figures are taken with the same means in force; of at most [`ROUNDS`] comparisons
//! with them there has to be one in which nothing is more than twice as much. Readings are right all the time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::footprint::{Footprint, ensure_no_complaint, ensure_no_complaint_in};
use crate::faults::DOM0_WEIGHT;
use crate::figures::{UpdateLatency, update_latency};
use crate::guest::{Guest, Kind};
use crate::host::{COMMAND_LIMIT, Host};
use crate::progress::say;
use crate::readings::Reader;
use crate::report::Table;
use crate::{Lab, wait};

/// What docs/threat-model.md tells the administrator to do about a guest that is not trusted, in percent of a CPU. In emulation a
/// request costs xenstored 5 ms, a hundred times what it does on hardware, so it is little here.
const CAP: u32 = 5;
const NO_CAP: u32 = 0;
/// Instead of [`DOM0_WEIGHT`].
const DEFAULT_WEIGHT: &str = "xl sched-credit2 -d Domain-0 -w 256";
/// The daemon is looked at in so many windows of half a second in each case. Linux counts what Xen gives to others, and what
/// the build machine takes from Xen, as run time of the process that it took place in: that is in few of them, and medians
/// leave it out.
const WINDOWS: usize = 30;
/// What the guest does lasts longer.
const ATTACK_SECS: u64 = 28;
/// What XenStore lets a guest do, as `lab-hostile` calls it: without one of these the attack would be less than it says.
const ALLOWED: &[&str] = &[
    "binary state",
    "empty state",
    "no state",
    "connected",
    "any state",
    "below state",
    "another backend",
    "another backend's domain",
    "large version",
    "no device",
    "suspend",
    "binary shutdown",
];
/// And what it does not: more than the quota for a node, and nodes of another guest's.
const FORBIDDEN: &[&str] = &["huge state", "another's state"];
/// Updates of which the latencies are compared, some 17 ms apart.
const UPDATES: usize = 600;
/// The daemon's memory may grow by what its allocator keeps.
const MEMORY_KIB: u64 = 1024;
/// Lines that it may log in one case, from before the deed until its end: ten offers at once, each with its states.
const LINES: usize = 80;
/// Under attack nothing may be more than this times the quiet figure just before…
const FACTOR: f64 = 2.0;
/// …but that the latest update of a hundred may have met two requests to xenstored, which shares the CPU with the reader, ns.
const TWO_REQUESTS: f64 = 10e6;
/// How often quiet and attack are compared until they are that close: the build machine may be busier in the one than in the other.
const ROUNDS: usize = 4;

/// What the daemon costs.
#[derive(Debug)]
struct Cost {
    /// The median of the windows, and their mean, which is reported.
    cpu_percent: f64,
    mean_percent: f64,
    /// How often it came to run, a second, over all windows. It does not depend on what a second of the CPU is worth.
    runs: f64,
    /// What xenstored costs, which answers the guest: reported, not judged.
    xenstored_percent: f64,
    memory_kib: u64,
    /// Lines in its log, to be counted by the caller.
    lines: usize,
    /// How long it takes to answer the administrator, its process included.
    answer: Duration,
}

impl Cost {
    fn of(host: &Host) -> Result<Cost> {
        let pid = host.radclockd_pid()?;
        // Seconds; and of all of the daemon's threads the time that they ran, ns, and how often; and xenstored's time.
        let samples = host.run(&format!(
            "xenstored=$(pidof xenstored)
            for sample in $(seq 0 {WINDOWS}); do
                run=0 runs=0
                for thread in /proc/{pid}/task/*/schedstat; do
                    read ran waited times < $thread && run=$((run + ran)) runs=$((runs + times))
                done
                read ran waited times < /proc/$xenstored/schedstat
                read now idle < /proc/uptime
                echo $now $run $runs $ran
                sleep 0.5
            done"
        ))?;
        let samples =
            samples.lines().map(|line| Ok(line.split(' ').map(str::parse).collect::<Result<Vec<f64>, _>>()?));
        let samples = samples.collect::<Result<Vec<_>>>()?;
        let rates = |column: usize| {
            let rates = samples.windows(2).map(|pair| (pair[1][column] - pair[0][column]) / (pair[1][0] - pair[0][0]));
            // A thread that has ended takes along what it had used.
            let mut rates: Vec<f64> = rates.filter(|rate| *rate >= 0.0).collect();
            ensure!(rates.len() > WINDOWS / 2, "no samples: {samples:?}");
            rates.sort_by(f64::total_cmp);
            Ok(rates)
        };
        let median = |column: usize| rates(column).map(|rates| rates[rates.len() / 2]);
        let mean = |column: usize| rates(column).map(|rates| rates.iter().sum::<f64>() / rates.len() as f64);
        let asked = Instant::now();
        host.run("radclock-ctl list > /dev/null")?;
        let answer = asked.elapsed();
        let status = host.run(&format!("cat /proc/{pid}/status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
        Ok(Cost {
            cpu_percent: median(1)? / 1e7,
            mean_percent: mean(1)? / 1e7,
            runs: mean(2)?,
            xenstored_percent: mean(3)? / 1e7,
            memory_kib: memory.trim().trim_end_matches(" kB").parse()?,
            lines: 0,
            answer,
        })
    }
}

/// Quiet and the attack by turns, until what it costs is within what the quiet figures allow.
fn compared<T>(
    attack: Deed,
    mut measure: impl FnMut(Deed) -> Result<T>,
    is_within: impl Fn(&T, &T) -> bool,
) -> Result<[T; 2]> {
    for _ in 0..ROUNDS {
        let (quiet, attacked) = (measure(Deed::Nothing)?, measure(attack)?);
        if is_within(&quiet, &attacked) {
            return Ok([quiet, attacked]);
        }
        say!("more than {FACTOR} times as much");
    }
    bail!("{}: more than {FACTOR} times the quiet figures, {ROUNDS} times one after the other", attack.name())
}

/// What the guest does, and what it says at the end.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Nothing,
    Nodes { victim: u16 },
    Flood,
}

impl Deed {
    fn name(self) -> &'static str {
        match self {
            Deed::Nothing => "quiet",
            Deed::Nodes { .. } => "rewrites its nodes",
            Deed::Flood => "sends events, holds the page",
        }
    }

    fn begin(self, host: &Host, guest: &Guest) -> Result<()> {
        let command = match self {
            Deed::Nothing => return Ok(()),
            Deed::Nodes { victim } => {
                // Removed in the deed before, perhaps: the daemon offers it again.
                let exists = format!("xenstore-exists /local/domain/{}/device/radclock/0/backend", guest.domid()?);
                wait::until("the device", COMMAND_LIMIT, || {
                    Ok(host.output(&exists, COMMAND_LIMIT)?.status.success().then_some(()))
                })?;
                format!("nodes {victim}")
            }
            Deed::Flood => format!("flood {}", offered(host, guest.domid()?, "event-channel")?),
        };
        guest.run(&format!("lab-hostile {command} {ATTACK_SECS} > /run/deed 2>&1 < /dev/null &")).map(drop)
    }

    /// Waits for its end.
    fn await_end(self, guest: &Guest) -> Result<String> {
        let says = match self {
            Deed::Nothing => return Ok(String::new()),
            Deed::Nodes { .. } => "end",
            Deed::Flood => "events",
        };
        let said = wait::until(says, COMMAND_LIMIT, || {
            let said = guest.run("cat /run/deed")?;
            ensure!(!said.contains("lab-hostile:"), "the attack failed: {said}");
            Ok(said.contains(says).then(|| said.trim().replace('\n', "; ")))
        })?;
        if let Deed::Nodes { .. } = self {
            for (kinds, allowed) in [(ALLOWED, true), (FORBIDDEN, false)] {
                for kind in kinds {
                    let written = written(&said, kind).with_context(|| format!("no {kind}: {said}"))?;
                    ensure!((written > 0) == allowed, "{kind}: {written} written: {said}");
                }
            }
        }
        Ok(said)
    }
}

/// How often a kind of deed was done, by what `lab-hostile` says.
fn written(said: &str, kind: &str) -> Option<u64> {
    said.split("; ").find_map(|deed| deed.strip_prefix(kind)?.strip_prefix(": ")?.split(' ').next()?.parse().ok())
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
    let nodes = Deed::Nodes { victim };
    let memory = Cost::of(&host)?.memory_kib;

    let reader = Reader::start(&good, &[&host])?;
    let cost_of = |deed: Deed| {
        let lines = || Ok::<_, anyhow::Error>(host.radclockd_log()?.lines().count());
        let lines_before = lines()?;
        deed.begin(&host, &evil)?;
        let mut cost = Cost::of(&host)?;
        let said = deed.await_end(&evil)?;
        cost.lines = lines()? - lines_before;
        say!("{}: {cost:.1?}; {said}", deed.name());
        ensure!(cost.memory_kib <= memory + MEMORY_KIB, "the daemon grows from {memory} KiB");
        ensure!(cost.lines <= LINES, "the daemon logs too much");
        Ok(cost)
    };
    let cpu = |quiet: &Cost, attacked: &Cost| attacked.cpu_percent <= FACTOR * quiet.cpu_percent;
    host.run(DOM0_WEIGHT)?;
    let rewriting = compared(nodes, cost_of, cpu)?;
    hold_the_page(&host, &evil)?;
    let holding = compared(Deed::Flood, cost_of, cpu)?;
    // The page is taken back as far as the guest is concerned that holds it.
    host.run("radclock-ctl detach evil && radclock-ctl attach evil")?;
    let verdict = reader.stop(&good)?.judge(Kind::Pvh)?;
    say!("the other guest: {verdict}");
    verdict.ensure_none_wrong()?;
    ensure!(verdict.errors == 0, "the other guest had no clock for a while: {verdict}");

    host.stop_radclockd("TERM")?;
    // Without the weight: the other guest must not wait for xenstored.
    host.run(DEFAULT_WEIGHT)?;
    let cap = |percent: u32| host.run(&format!("xl sched-credit2 -d evil -c {percent}")).map(drop);
    let latency_of = |deed: Deed| {
        // The hostile guest has no driver any more: the other one is all that connects.
        let latency = update_latency(lab, &host, &good, UPDATES, 1, || {
            await_offer(&host, domid)?;
            deed.begin(&host, &evil)?;
            cap(CAP)
        })?;
        cap(NO_CAP)?;
        say!("{}: {latency:?}; {}", deed.name(), deed.await_end(&evil)?);
        Ok(latency)
    };
    let latencies = |quiet: &UpdateLatency, attacked: &UpdateLatency| {
        let times = |nanos: i64| nanos as f64 * FACTOR;
        attacked.median as f64 <= times(quiet.median) && attacked.p99 as f64 <= times(quiet.p99) + TWO_REQUESTS
    };
    let late_by_nodes = compared(nodes, latency_of, latencies)?;
    let late_by_flood = compared(Deed::Flood, latency_of, latencies)?;
    let rows = [
        ("quiet", &rewriting[0], &late_by_nodes[0]),
        ("rewrites its nodes", &rewriting[1], &late_by_nodes[1]),
        ("quiet, holds the page", &holding[0], &late_by_flood[0]),
        ("sends events, holds the page", &holding[1], &late_by_flood[1]),
    ];
    say!("{}", table(&rows).markdown());

    host.start_radclockd()?;
    good.await_synchronized()?;
    ensure_no_complaint_in(&good)?;
    evil.destroy()?;
    good.destroy()?;
    before.await_again(&host)?;
    ensure_no_complaint(&host)
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

fn table(rows: &[(&str, &Cost, &UpdateLatency)]) -> Table {
    let mut table = Table::new([
        "the hostile guest",
        "daemon's CPU",
        "mean",
        "runs a second",
        "xenstored's CPU",
        "memory",
        "lines",
        "answer",
        "updates, capped: median",
        "99 %",
        "worst",
    ]);
    for (name, cost, latency) in rows {
        let millis = |nanos: i64| format!("{:.1} ms", nanos as f64 / 1e6);
        table.row([
            (*name).to_owned(),
            format!("{:.1} %", cost.cpu_percent),
            format!("{:.1} %", cost.mean_percent),
            format!("{:.0}", cost.runs),
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
