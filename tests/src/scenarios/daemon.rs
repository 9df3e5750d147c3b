//! Guests outlive the daemon, and may be there before it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest::{Guest, Kind};
use crate::host::Host;
use crate::progress::say;
use crate::readings::Reader;
use crate::scenarios::footprint::Footprint;
use crate::{Lab, demo, truth, wait};

/// `kill -9`: guests go on by what they have, with a bound that grows and holds, and need nobody to reconnect.
pub fn guests_run_free_when_radclockd_is_killed_and_reconnect_when_it_is_back(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    let configuration = format!("{}\n[clock]\nvalidity = 5\n", host.configuration());
    let guests = demo::synchronise_with(&host, &configuration)?;
    ensure_least_privilege(&host)?;
    let old_pages = guests.iter().map(|guest| page_ref(&host, guest)).collect::<Result<Vec<_>>>()?;
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
    for (guest, old_page) in guests.iter().zip(old_pages) {
        guest.await_synchronized().with_context(|| host.radclockd_log().unwrap_or_default())?;
        let page = page_ref(&host, guest)?;
        ensure!(page != old_page, "{} is offered the dead daemon's grant {page}", guest.name());
    }
    Ok(())
}

/// At work the daemon has given up what docs/threat-model.md says, and its files are as it says.
fn ensure_least_privilege(host: &Host) -> Result<()> {
    const NONE: &str = "0000000000000000";
    let pid = host.radclockd_pid()?;
    // A thread may end while it is looked at.
    let threads = host.run(&format!("cat /proc/{pid}/task/*/status 2> /dev/null; true"))?;
    for (field, expected) in [
        ("CapInh:", NONE),
        ("CapPrm:", NONE),
        ("CapEff:", NONE),
        ("CapBnd:", NONE),
        ("CapAmb:", NONE),
        ("NoNewPrivs:", "1"),
        ("Seccomp:", "2"),
    ] {
        let values: Vec<&str> = threads.lines().filter_map(|line| line.strip_prefix(field)).map(str::trim).collect();
        let is_right = !values.is_empty() && values.iter().all(|value| *value == expected);
        ensure!(is_right, "radclockd's threads have {field} {values:?}, not {expected}");
    }
    let log = host.radclockd_log()?;
    ensure!(log.contains("files by Landlock"), "radclockd's files are not restricted:\n{log}");
    let files = host.run("cd /run/radclock && stat -c '%n %U:%G %a' . *")?;
    let files: Vec<&str> = files.lines().collect();
    let expected = [
        ". root:root 755",
        "radclockd.lock root:root 600",
        "radclockd.sock root:root 660",
        "slept root:root 600",
        "vmclock0 root:root 644",
        "wire0 root:root 644",
    ];
    ensure!(files == expected, "in /run/radclock there is {files:#?}");
    Ok(())
}

/// Xen loses its pace, and nobody in Dom0 sees it: a guest that reads the TSC itself does, and claims no more than it knows. (A
/// PV guest's TSC is Xen's system time here.)
pub fn no_reading_is_wrong_when_a_host_is_held_up_without_a_daemon(lab: &Lab) -> Result<()> {
    // Longer than Xen's platform timer takes to wrap around: the HPET, in 43 s.
    const HELD_UP: Duration = Duration::from_secs(50);
    let host = lab.boot()?;
    host.start_radclockd()?;
    host.await_synchronized()?;
    let guest = host.create("pvh", Kind::Pvh)?;
    guest.await_synchronized()?;
    // Its line is as long as it gets.
    wait::pass(Duration::from_secs(40))?;
    let reader = Reader::start(&guest, &[&host])?;
    host.run("kill -STOP $(pidof radclockd)")?;
    host.hold_up(HELD_UP)?;
    guest.await_state("unreadable", 60)?;
    host.run("kill -CONT $(pidof radclockd)")?;
    host.await_synchronized()?;
    wait::until("the guest to be sure again", Duration::from_secs(240), || {
        Ok(bound(&guest).is_ok_and(|bound| bound < 100_000_000).then_some(()))
    })?;
    let verdict = reader.stop(&guest)?.judge(guest.kind())?;
    say!("{verdict}");
    verdict.ensure_none_wrong()
}

/// The grant reference of the page that a guest is offered.
fn page_ref(host: &Host, guest: &Guest) -> Result<String> {
    let domid = guest.domid()?;
    Ok(host.run(&format!("xenstore-read /local/domain/0/backend/radclock/{domid}/0/page-ref"))?.trim().to_owned())
}

/// The bound that the guest's clock claims now, ns.
fn bound(guest: &Guest) -> Result<u64> {
    max_error_ns(&guest.run("radclock now --json")?)
}

/// The bound in what `radclock now --json` says.
pub fn max_error_ns(said: &str) -> Result<u64> {
    let reading: serde_json::Value = serde_json::from_str(said)?;
    reading["max_error_ns"].as_u64().with_context(|| format!("no max_error_ns in {reading}"))
}

/// The order of a host's start does not matter, and a daemon that is stopped takes everything back: guests know that
/// they have no clock, and nothing of it stays in Dom0. The next one serves them as the first did.
pub fn guests_that_were_there_first_get_the_clock_and_lose_it_with_a_clean_stop(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    let guests = [host.create("pv", Kind::Pv)?, host.create("pvh", Kind::Pvh)?];
    for guest in &guests {
        guest.await_boot()?;
        guest.await_state("unreadable", 5)?;
    }
    // For both guests, but not for twice as many: the kernel refuses a page if those of before are still granted.
    host.run("echo 3 > /sys/module/xen_gntalloc/parameters/limit")?;
    let traces =
        || host.run("xenstore-ls -f | sed 's/ = .*//'; lsevtchn 0 | wc -l; ls /run/radclock | grep sock || true");
    let before = traces()?;
    for _ in 0..2 {
        host.start_radclockd()?;
        for guest in &guests {
            guest.await_synchronized()?;
        }
        host.stop_radclockd("TERM")?;
        for guest in &guests {
            guest.await_state("unreadable", 5)?;
        }
        let log = host.radclockd_log()?;
        for guest in &guests {
            let closing = format!("({}): Closing", guest.name());
            ensure!(log.contains(&closing), "{} was not told:\n{log}", guest.name());
        }
        let after = traces()?;
        ensure!(after == before, "the stopped daemon leaves\n{after}\nwhere there was\n{before}");
    }
    Ok(())
}

/// A xenstored that falls silent takes neither the guests' clock nor, each time, something of the daemon's.
pub fn a_silent_xenstored_costs_the_daemon_nothing(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    host.start_radclockd()?;
    let before = Footprint::after_a_first_guest(&host)?;
    let guest = host.create("pvh", Kind::Pvh)?;
    guest.await_synchronized()?;
    for times in 1..=3 {
        host.run("kill -STOP $(pidof xenstored)")?;
        await_logged(&host, "lost XenStore", times)?;
        host.run("kill -CONT $(pidof xenstored)")?;
        await_logged(&host, "reached XenStore again", times)?;
        guest.await_synchronized()?;
    }
    guest.destroy()?;
    before.await_again(&host)
}

/// Waits until the daemon has said something so many times.
fn await_logged(host: &Host, text: &str, times: usize) -> Result<()> {
    wait::until(text, Duration::from_secs(60), || {
        Ok((host.radclockd_log()?.matches(text).count() >= times).then_some(()))
    })
}
