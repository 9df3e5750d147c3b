//! The system's clock of a guest, kept on the shared clock by `radclock discipline`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab_agent::samples::Difference;

use crate::guest::{Guest, Kind};
use crate::{Lab, demo, wait};

/// How far the system's clock may be from the shared one. Under emulation a guest is late for microseconds all the time.
const CLOSE_NS: i64 = 100_000;
const LIMIT: Duration = Duration::from_secs(60);

/// A clock that is seconds wrong is right at once; it stays on the shared clock, the kernel knows how good it is, and it is
/// right again after the guest was saved and restored. While there is no shared clock it is held where it is.
pub fn a_guests_system_clock_follows_the_shared_clock_through_a_restore(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    let mut guests = demo::synchronise(&host)?;
    for guest in &guests {
        // Eleven minutes fast.
        guest.run("date -s @$(($(date +%s) + 660))")?;
        start(guest)?;
        await_close(guest)?;
        ensure!(log(guest)?.contains("stepped the clock by -6"), "{}: {}", guest.name(), log(guest)?);
    }
    for guest in &guests {
        for _ in 0..10 {
            check(guest, &difference(guest)?)?;
        }
    }
    for guest in &mut guests {
        guest.save("/run/saved")?;
        guest.restore(&host, "/run/saved")?;
        guest.await_synchronized()?;
        await_close(guest)?;
        check(guest, &difference(guest)?)?;
    }
    host.stop_radclockd("TERM")?;
    for guest in &guests {
        wait::until("the service to hold", LIMIT, || {
            Ok(log(guest)?.contains("cannot be read: holding").then_some(()))
        })?;
    }
    host.start_radclockd()?;
    for guest in &guests {
        let stepped = |log: &str| log.matches("stepped").count();
        let before = stepped(&log(guest)?);
        guest.await_synchronized()?;
        await_close(guest)?;
        ensure!(stepped(&log(guest)?) == before, "{} was not held: {}", guest.name(), log(guest)?);
    }
    // Told to stop, it leaves a clock that says that nobody keeps it.
    for guest in &guests {
        guest.run("kill $(pidof radclock)")?;
        wait::until("the service to end", LIMIT, || Ok(log(guest)?.contains("stopped; ").then_some(())))?;
        let left = difference(guest)?;
        ensure!(!left.synchronized, "{} still says that it is synchronised: {left:?}", guest.name());
    }
    Ok(())
}

/// Two that adjust one clock make it wrong, so the second one does not start, and the first one leaves when somebody else
/// adjusts it.
pub fn nobody_else_adjusts_the_clock_beside_discipline(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    host.start_radclockd()?;
    let guest = host.create("pvh", Kind::Pvh)?;
    guest.await_synchronized()?;
    let refused = |why: &str| -> Result<()> {
        let output = guest.output("radclock discipline", LIMIT)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(3) && said.lines().count() == 1 && said.contains(why), "{output:?}");
        Ok(())
    };
    // By its name as good as the real one.
    guest.run(
        "ln -s /bin/lab-probe /run/chronyd; setsid /run/chronyd await unreadable 300 < /dev/null > /dev/null 2>&1 &",
    )?;
    wait::until("a chronyd", LIMIT, || Ok(guest.output("pidof chronyd", LIMIT)?.status.success().then_some(())))?;
    refused("chronyd (process ")?;
    guest.run("kill $(pidof chronyd)")?;
    start(&guest)?;
    await_close(&guest)?;
    refused("another radclock discipline runs already")?;
    guest.run("date -s @$(($(date +%s) + 5))")?;
    let end = wait::until("the service to end", LIMIT, || {
        let log = log(&guest)?;
        Ok(log.contains("status 3").then_some(log))
    })?;
    ensure!(end.contains("radclock: somebody else adjusts the system's clock: it was stepped by +"), "{end}");
    let left = difference(&guest)?;
    ensure!(left.offset_ns > 3_000_000_000, "it touched the clock after all: {left:?}");
    Ok(())
}

fn start(guest: &Guest) -> Result<()> {
    let service = "radclock discipline; echo \"status $?\"";
    guest.run(&format!("setsid sh -c '{service}' < /dev/null > /run/discipline.log 2>&1 &")).map(drop)
}

fn log(guest: &Guest) -> Result<String> {
    guest.run("cat /run/discipline.log")
}

fn difference(guest: &Guest) -> Result<Difference> {
    let said = guest.run("lab-record difference")?;
    serde_json::from_str(&said).context(said)
}

/// Waits until the clock is where it is to be.
fn await_close(guest: &Guest) -> Result<()> {
    wait::until("the system's clock to be right", LIMIT, || {
        let difference = difference(guest)?;
        Ok((difference.synchronized && difference.offset_ns.abs() < CLOSE_NS).then_some(()))
    })
    .with_context(|| log(guest).unwrap_or_default())
}

fn check(guest: &Guest, difference: &Difference) -> Result<()> {
    let Difference { offset_ns, half_width_ns, bound_ns, system_bound_ns, synchronized, .. } = *difference;
    let name = guest.name();
    ensure!(synchronized, "{name} says that it is not synchronised");
    ensure!(offset_ns.abs() - half_width_ns < CLOSE_NS, "{name} is off by {offset_ns} ns: {}", log(guest)?);
    ensure!(
        offset_ns.unsigned_abs().saturating_sub(half_width_ns.unsigned_abs()) < system_bound_ns,
        "{name} is off by {offset_ns} ns, and claims {system_bound_ns} ns; the shared clock claims {bound_ns} ns"
    );
    Ok(())
}
