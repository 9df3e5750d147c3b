//! Guests that are saved, restored, checkpointed, moved, paused or suspend themselves on one host. Whenever they run, they
//! have the right time or none, and nothing of it stays behind. Two hosts are `moves`' business.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::footprint::{Footprint, ensure_no_complaint, ensure_no_complaint_in};
use crate::faults::DOM0_WEIGHT;
use crate::guest::{Guest, Kind};
use crate::host::{COMMAND_LIMIT, Host};
use crate::progress::say;
use crate::readings::Reader;
use crate::{Lab, demo, payload, wait};

/// Long enough for guests to be far behind when they come back.
const LONG: Duration = Duration::from_secs(60);
/// Of a pause.
const SHORT: Duration = Duration::from_secs(10);
/// For readings of a clock, and for the build machine to find out what they should have been.
const STAY: Duration = Duration::from_secs(2);

/// A host with a synchronised PV and PVH guest, in each of which a process reads all the time, and what the host was before.
struct Scene<'host> {
    host: &'host Host,
    before: Footprint,
    guests: Vec<Guest<'host>>,
    readers: Vec<Reader>,
}

impl<'host> Scene<'host> {
    fn begin(host: &'host Host) -> Result<Scene<'host>> {
        host.start_radclockd()?;
        let before = Footprint::after_a_first_guest(host)?;
        // One page for each, and one more while it is moved or its daemon has died: the kernel refuses a page if others
        // are still granted.
        host.run("echo 4 > /sys/module/xen_gntalloc/parameters/limit")?;
        let mut guests = Vec::new();
        for (name, kind) in demo::GUESTS {
            guests.push(host.create(name, kind)?);
        }
        // A guest that boots beside a reader takes long: the host has one CPU.
        guests.iter().try_for_each(Guest::await_synchronized)?;
        // What saves them must not starve because they are busy.
        host.run(DOM0_WEIGHT)?;
        let readers = guests.iter().map(|guest| Reader::start(guest, &[host])).collect::<Result<_>>()?;
        stay()?;
        Ok(Scene { host, before, guests, readers })
    }

    fn save(&self) -> Result<()> {
        self.guests.iter().try_for_each(|guest| guest.save(&image(guest)))
    }

    fn restore(&mut self) -> Result<()> {
        for guest in &mut self.guests {
            let image = image(guest);
            guest.restore(self.host, &image)?;
        }
        Ok(())
    }

    /// Each guest is synchronised, soon.
    fn ensure_clock(&self, after: &str) -> Result<()> {
        self.guests.iter().try_for_each(|guest| ensure_clock(guest, after))?;
        stay()
    }

    /// No guest has a clock.
    fn ensure_no_clock(&self, seconds: u64) -> Result<()> {
        self.guests.iter().try_for_each(|guest| ensure_no_clock(guest, seconds))
    }

    /// Ends the readers: none of their readings was wrong.
    fn judge(&mut self) -> Result<()> {
        self.readers.drain(..).zip(&self.guests).try_for_each(|(reader, guest)| judge(reader, guest))
    }

    /// Ends the readers and the guests; all is as before them, and nobody has complained.
    fn end(mut self) -> Result<()> {
        self.judge()?;
        for guest in self.guests {
            ensure_no_complaint_in(&guest)?;
            guest.destroy()?;
        }
        ensure_no_complaint(self.host)?;
        self.before.await_again(self.host)
    }
}

fn image(guest: &Guest) -> String {
    format!("/tmp/{}.saved", guest.name())
}

/// Leaves the readers some time.
pub fn stay() -> Result<()> {
    wait::pass(STAY)
}

/// The guest is synchronised, soon.
pub fn ensure_clock(guest: &Guest, after: &str) -> Result<()> {
    let log = || guest.host().radclockd_log().unwrap_or_default();
    guest.await_synchronized().with_context(log).with_context(|| after.to_owned())
}

/// Ends a reader: none of its readings was wrong. A busy build machine may not be able to tell of some.
pub fn judge(reader: Reader, guest: &Guest) -> Result<()> {
    let verdict = reader.stop(guest)?.judge(guest.kind())?;
    say!("{}: {verdict}", guest.name());
    ensure!(verdict.readings > 0, "{} has not read the time", guest.name());
    verdict.ensure_none_wrong().with_context(|| guest.name().to_owned())
}

/// For so long the guest has no clock.
pub fn ensure_no_clock(guest: &Guest, seconds: u64) -> Result<()> {
    let reads = format!("for i in $(seq {seconds}); do radclock now && exit 0; sleep 1; done; exit 1");
    let said = guest.output(&reads, COMMAND_LIMIT)?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    ensure!(said.status.code() == Some(1), "{} reads {}{}", guest.name(), text(&said.stdout), text(&said.stderr));
    Ok(())
}

/// At once, and after a minute in which another version of the daemon has taken over.
pub fn saved_guests_get_the_clock_of_whichever_daemon_is_there(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    let mut scene = Scene::begin(&host)?;
    scene.save()?;
    scene.restore()?;
    scene.ensure_clock("restored at once")?;

    scene.save()?;
    let saved = Instant::now();
    host.stop_radclockd("TERM")?;
    host.start_radclockd_program(host.install_other_radclockd()?, &host.configuration())?;
    host.await_synchronized()?;
    let version = format!("radclockd {}:", payload::OTHER_VERSION);
    ensure!(host.radclockd_log()?.contains(&version), "the other version does not run");
    wait::pass(LONG.saturating_sub(saved.elapsed()))?;
    scene.restore()?;
    scene.ensure_clock("restored after a minute, by another daemon")?;
    scene.end()
}

/// A daemon that is not there, one that carries on its predecessor's clock, one that has none, and one that gets there in the
/// end: errors, a clock that runs free, errors, and the clock.
pub fn restored_guests_have_the_clock_that_the_daemon_has(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    let mut scene = Scene::begin(&host)?;
    scene.save()?;
    host.stop_radclockd("KILL")?;
    scene.restore()?;
    scene.ensure_no_clock(5).context("without a daemon")?;

    host.start_radclockd_with(&without_server(&host))?;
    for guest in &scene.guests {
        guest.await_state("freerunning", 60).context("with what is left of an earlier daemon's clock")?;
    }
    stay()?;
    host.stop_radclockd("TERM")?;

    start_radclockd_without_clock(&host)?;
    scene.guests.iter().try_for_each(await_connected)?;
    scene.ensure_no_clock(3).context("with a daemon that is not synchronised")?;
    scene.save()?;
    scene.restore()?;
    scene.guests.iter().try_for_each(await_connected)?;
    scene.ensure_no_clock(3).context("restored by a daemon that is not synchronised")?;
    host.stop_radclockd("TERM")?;

    host.start_radclockd()?;
    scene.ensure_clock("with a synchronised daemon")?;
    scene.end()
}

/// A configuration with a server that does not answer: nobody listens on port 1.
fn without_server(host: &Host) -> String {
    host.configuration().replace(&format!("port = {}", host.ntp_port()), "port = 1")
}

/// Starts a daemon that has no clock: no server, and nothing of an earlier daemon's.
pub fn start_radclockd_without_clock(host: &Host) -> Result<()> {
    host.run("rm -r /run/radclock")?;
    host.start_radclockd_with(&without_server(host))
}

/// Waits until the daemon has the guest connected.
pub fn await_connected(guest: &Guest) -> Result<()> {
    let state = format!("/local/domain/0/backend/radclock/{}/0/state", guest.domid()?);
    wait::until("the guest to be connected", COMMAND_LIMIT, || {
        let state = guest.host().output(&format!("xenstore-read {state}"), COMMAND_LIMIT)?;
        Ok((state.stdout == b"4\n").then_some(()))
    })
}

/// A checkpoint, a pause, suspends from inside, a migration to the same host.
pub fn guests_that_are_held_up_go_on_with_the_clock(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    let mut scene = Scene::begin(&host)?;
    for guest in &scene.guests {
        let image = image(guest);
        host.run(&format!("xl save -c {} {image} && rm {image}", guest.name()))?;
    }
    scene.ensure_clock("after a checkpoint")?;

    let marker = |guest: &Guest| Ok::<_, anyhow::Error>(reading(guest)?["disruption_marker"].clone());
    for guest in &scene.guests {
        let before = marker(guest)?;
        host.run(&format!("xl pause {}", guest.name()))?;
        wait::pass(SHORT)?;
        host.run(&format!("xl unpause {}", guest.name()))?;
        ensure!(marker(guest)? == before, "a pause is no disruption");
    }
    scene.ensure_clock("after a pause")?;

    // Nothing wakes a guest from a real suspend: it has no source of wake-ups. This goes through all but the last step.
    for (guest, level) in scene.guests.iter().zip(["devices", "platform"]) {
        let before = marker(guest)?;
        guest.run(&format!(
            "echo 1 > /sys/module/suspend/parameters/pm_test_delay && echo {level} > /sys/power/pm_test && \
             echo mem > /sys/power/state"
        ))?;
        ensure!(marker(guest)? != before, "a suspend is a disruption");
    }
    scene.ensure_clock("after a suspend from inside")?;

    for guest in scene.guests.iter_mut().filter(|guest| guest.kind() == Kind::Pvh) {
        host.run(&format!("xl migrate -s '' {} 'xl migrate-receive'", guest.name()))?;
    }
    scene.ensure_clock("after a migration to the same host")?;
    scene.end()
}

/// What `radclock now --json` says.
fn reading(guest: &Guest) -> Result<serde_json::Value> {
    guest.await_synchronized()?;
    Ok(serde_json::from_str(&guest.run("radclock now --json")?)?)
}

/// As fast as Dom0 can write them.
pub fn guests_are_saved_and_restored_in_the_midst_of_page_updates(lab: &Lab) -> Result<()> {
    const ROUNDS: usize = 2;
    let host = lab.boot()?;
    let mut scene = Scene::begin(&host)?;

    let offer_none = host.configuration().replace("offer = \"all\"", "offer = \"none\"");
    host.stop_radclockd("TERM")?;
    host.start_radclockd_with(&offer_none)?;
    host.await_synchronized()?;
    background(&host, "updates", "lab-publisher rapid 600")?;
    for round in 0..ROUNDS {
        scene.ensure_clock("under page updates").with_context(|| format!("round {round}"))?;
        scene.save()?;
        scene.restore()?;
    }
    scene.ensure_clock("after page updates")?;
    end_background(&host, "updates").with_context(|| host.radclockd_log().unwrap_or_default())?;
    host.stop_radclockd("TERM")?;
    host.start_radclockd()?;
    scene.ensure_clock("after the publisher")?;
    scene.end()
}

/// Starts a shell command in Dom0.
pub fn background(host: &Host, name: &str, shell: &str) -> Result<()> {
    let shell = shlex::try_quote(shell)?;
    host.run(&format!("setsid sh -c {shell} < /dev/null > /run/{name}.log 2>&1 & echo $! > /run/{name}.pid")).map(drop)
}

/// Ends it with what it has started, and waits for that.
pub fn end_background(host: &Host, name: &str) -> Result<()> {
    let group = host.run(&format!("cat /run/{name}.pid"))?;
    let group = group.trim();
    let ended = host.output(&format!("kill -TERM -- -{group}"), COMMAND_LIMIT)?;
    if !ended.status.success() {
        bail!("{name} had ended by itself:\n{}", host.run(&format!("cat /run/{name}.log"))?);
    }
    wait::until(name, COMMAND_LIMIT, || {
        let alive = host.output(&format!("kill -0 -- -{group}"), COMMAND_LIMIT)?;
        Ok((!alive.status.success()).then_some(()))
    })
}
