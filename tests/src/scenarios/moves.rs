//! Guests that move between two hosts while something goes wrong: wherever they end up, they have the right time or none, no
//! move is held up by the clock, and neither host keeps anything of it. Moves that go well are `migration`'s business.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::footprint::{Footprint, ensure_no_complaint, ensure_no_complaint_in};
use super::suspend::{
    await_connected, background, end_background, ensure_clock, ensure_no_clock, judge, start_radclockd_without_clock,
    stay,
};
use crate::command::{self, Background};
use crate::guest::{Guest, Kind};
use crate::host::{COMMAND_LIMIT, Host, Pair};
use crate::readings::Reader;
use crate::{Lab, truth, wait};

const MOVE_LIMIT: Duration = Duration::from_secs(600);
const MIGRATE_LOCALLY: &str = "xl migrate -s '' pv 'xl migrate-receive'";

const LOAD: &str = "insmod /lib/xen-radclockfront.ko";
const UNLOAD: &str = "rmmod xen_radclockfront";

/// Two hosts with synchronised daemons, and what they were before any guest.
struct Scene<'pair> {
    pair: &'pair Pair,
    before: Vec<Footprint>,
}

impl<'pair> Scene<'pair> {
    fn begin(pair: &'pair Pair) -> Result<Scene<'pair>> {
        let mut before = Vec::new();
        for host in pair.hosts() {
            host.start_radclockd()?;
            before.push(Footprint::after_a_first_guest(host)?);
        }
        for host in pair.hosts() {
            host.await_synchronized()?;
        }
        Ok(Scene { pair, before })
    }

    fn create(&self, host: &'pair Host, name: &str, kind: Kind) -> Result<Guest<'pair>> {
        let guest = host.create(name, kind)?;
        guest.await_synchronized()?;
        Ok(guest)
    }

    /// Starts a process that reads all the time. Guests that boot beside it take long: a host has one CPU.
    fn read(&self, guest: &Guest) -> Result<Reader> {
        let reader = Reader::start(guest, &self.pair.hosts())?;
        stay()?;
        Ok(reader)
    }

    /// Ends the guests, whose readers had no wrong reading; both hosts are as before them, and nobody has complained.
    fn end(self, guests: Vec<(Guest, Reader)>) -> Result<()> {
        self.end_of(guests)?;
        for (host, before) in self.pair.hosts().into_iter().zip(&self.before) {
            ensure_no_complaint(host)?;
            before.await_again(host)?;
        }
        Ok(())
    }

    /// Ends some guests, whose readers had no wrong reading, and nobody in them has complained.
    fn end_of(&self, guests: Vec<(Guest, Reader)>) -> Result<()> {
        for (guest, reader) in guests {
            judge(reader, &guest)?;
            ensure_no_complaint_in(&guest)?;
            guest.destroy()?;
        }
        Ok(())
    }
}

/// Migrates by this command in the source's Dom0, which has to fail and leave the guest running there.
fn ensure_fails(guest: &Guest, migrate: &str, names: &str) -> Result<()> {
    let output = guest.host().output(migrate, MOVE_LIMIT)?;
    let said = String::from_utf8_lossy(&output.stderr).replace('\r', "\n");
    ensure!(!output.status.success(), "{migrate} went well");
    ensure!(said.contains(names), "{migrate} should say {names:?}, but says:\n{said}");
    ensure_clock(guest, &format!("after a migration that failed ({names})"))?;
    stay()
}

/// It loses its connection, finds no memory, or is refused when all of it is there and the source has stopped: it
/// goes on where it was. So does it if the source's daemon dies, but elsewhere.
pub fn a_migration_that_fails_resumes_with_the_clock(lab: &Lab) -> Result<()> {
    let pair = lab.boot_pair()?;
    let scene = Scene::begin(&pair)?;
    let mut guest = scene.create(&pair.first, "guest", Kind::Pvh)?;
    let reader = scene.read(&guest)?;

    // The first pass alone is more than that.
    let cut = "xl migrate -s '' guest 'head -c 40000000 | socat - TCP:10.9.0.2:7000'";
    ensure_fails(&guest, cut, "failed")?;

    let free: u32 = pair.second.run("xl info free_memory")?.trim().parse()?;
    pair.second.run(&format!("guest-create filler pvh {}", free.saturating_sub(100)))?;
    ensure_fails(&guest, "migrate guest", "failed")?;
    pair.second.run("xl destroy filler")?;

    // Its name is taken, as the receiver finds out when it is to start it.
    pair.second.run("guest-create guest pvh && xl pause guest")?;
    ensure_fails(&guest, "migrate guest", "resum")?;
    pair.second.run("xl destroy guest")?;

    let migration = Background::start("migrate", &guest.host().expression("migrate guest").stderr_capture())?;
    wait::until("the guest's arrival", MOVE_LIMIT, || {
        Ok(pair.second.run("xl list")?.contains("guest--incoming").then_some(()))
    })?;
    pair.first.stop_radclockd("KILL")?;
    let output = wait::until("the migration", MOVE_LIMIT, || migration.ended())?;
    command::success("migrate, while the source's daemon dies", &output)?;
    guest.moved_to(&pair.second);
    ensure_clock(&guest, "after the source's daemon has died")?;
    pair.first.start_radclockd()?;
    pair.first.await_synchronized()?;
    stay()?;
    scene.end(vec![(guest, reader)])
}

/// Saved here, restored there, a PV guest then to the host that it is on, for which Debian's Xen lacks shadow paging; a PVH guest to a
/// host whose daemon is not there, not synchronised, or late; then two at once in opposite directions.
pub fn a_guest_gets_the_clock_of_any_host_as_soon_as_that_has_one(lab: &Lab) -> Result<()> {
    let pair = lab.boot_pair()?;
    let scene = Scene::begin(&pair)?;
    let mut pv = scene.create(&pair.first, "pv", Kind::Pv)?;
    let pv_reader = scene.read(&pv)?;
    restore_there(&pair, &mut pv)?;
    pv.host().run(MIGRATE_LOCALLY)?;
    ensure_clock(&pv, "after a migration to the same host")?;
    stay()?;
    scene.end_of(vec![(pv, pv_reader)])?;

    let mut pvh = scene.create(&pair.first, "pvh", Kind::Pvh)?;
    let mut other = scene.create(&pair.second, "other", Kind::Pvh)?;
    let pvh_reader = scene.read(&pvh)?;
    restore_there(&pair, &mut pvh)?;

    pair.first.stop_radclockd("TERM")?;
    pvh.migrate(&pair.first)?;
    ensure_no_clock(&pvh, 3).context("moved to a host without a daemon")?;
    start_radclockd_without_clock(&pair.first)?;
    await_connected(&pvh)?;
    ensure_no_clock(&pvh, 3).context("on a host whose daemon is not synchronised")?;
    pvh.migrate(&pair.second)?;
    ensure_clock(&pvh, "moved away from a daemon that is not synchronised")?;
    stay()?;
    pvh.migrate(&pair.first)?;
    ensure_no_clock(&pvh, 3).context("moved to a host whose daemon is not synchronised")?;
    pair.first.stop_radclockd("KILL")?;
    pair.first.start_radclockd()?;
    ensure_clock(&pvh, "when the daemon is synchronised at last")?;
    stay()?;

    let other_reader = scene.read(&other)?;
    let migrations = [&pvh, &other].map(|guest| {
        let migrate = format!("migrate {}", guest.name());
        Background::start(&migrate, &guest.host().expression(&migrate).stderr_capture())
    });
    for migration in migrations {
        let migration = migration?;
        let output = wait::until("both migrations", MOVE_LIMIT, || migration.ended())?;
        command::success("one of two migrations at once", &output)?;
    }
    pvh.moved_to(&pair.second);
    other.moved_to(&pair.first);
    for guest in [&pvh, &other] {
        ensure_clock(guest, "moved while another guest moved the other way")?;
    }
    stay()?;
    scene.end(vec![(pvh, pvh_reader), (other, other_reader)])
}

/// Saves a guest of the first host, and restores it on the second.
fn restore_there<'pair>(pair: &'pair Pair, guest: &mut Guest<'pair>) -> Result<()> {
    let image = format!("/tmp/{}.saved", guest.name());
    guest.save(&image)?;
    copy(&pair.first, &pair.second, &image)?;
    guest.restore(&pair.second, &image)?;
    ensure_clock(guest, "restored on the other host")?;
    stay()
}

/// There and back while the guest is attached and detached on both hosts as fast as that goes; without a device to a host that
/// offers one; there and back while its driver is loaded and unloaded all the time; and after a load that nobody answered, a
/// PV and a PVH guest. The clock is disrupted too often meanwhile to judge each of its readings.
pub fn guests_migrate_in_the_midst_of_attach_detach_and_module_load(lab: &Lab) -> Result<()> {
    let pair = lab.boot_pair()?;
    let scene = Scene::begin(&pair)?;
    for kind in [Kind::Pv, Kind::Pvh] {
        let mut guest = scene.create(&pair.first, kind.name(), kind)?;
        // Both fail while the guest is away.
        let attach = format!("while :; do radclock-ctl detach {0}; radclock-ctl attach {0}; done", guest.name());
        pair.hosts().into_iter().try_for_each(|host| background(host, "attach", &attach))?;
        guest.migrate(&pair.second)?;
        guest.migrate(&pair.first)?;
        pair.hosts().into_iter().try_for_each(|host| end_background(host, "attach"))?;
        pair.first.run(&format!("radclock-ctl attach {}", guest.name()))?;
        ensure_right(&guest, "after attach and detach")?;

        pair.first.run(&format!("radclock-ctl detach {}", guest.name()))?;
        wait::until("the device to be gone", COMMAND_LIMIT, || {
            let device = guest.output("test -e /sys/bus/xen/devices/radclock-0", COMMAND_LIMIT)?;
            Ok((!device.status.success()).then_some(()))
        })?;
        guest.migrate(&pair.second)?;
        ensure_right(&guest, "moved without a device to a host that offers one")?;

        let load = format!("while [ -e /tmp/go ]; do {UNLOAD}; {LOAD}; done; touch /tmp/ended");
        guest.run(&format!("touch /tmp/go; setsid sh -c '{load}' > /dev/null 2>&1 &"))?;
        guest.migrate(&pair.first)?;
        guest.migrate(&pair.second)?;
        guest.run("rm /tmp/go")?;
        wait::until("the driver's loading to end", COMMAND_LIMIT, || {
            let ended = guest.output("test -e /tmp/ended", COMMAND_LIMIT)?;
            Ok(ended.status.success().then_some(()))
        })?;
        ensure_right(&guest, "after loading and unloading")?;

        guest.run(UNLOAD)?;
        // A device that is new, so that the kernel does not know it as closed, with the offer of a daemon that is dead.
        pair.second.run(&format!("radclock-ctl detach {0} && radclock-ctl attach {0}", guest.name()))?;
        pair.second.stop_radclockd("KILL")?;
        guest.run(LOAD)?;
        guest.migrate(&pair.first)?;
        ensure_right(&guest, "after a load that nobody answered")?;
        pair.second.start_radclockd()?;
        pair.second.await_synchronized()?;

        ensure_no_complaint_in(&guest)?;
        guest.destroy()?;
    }
    scene.end(vec![])
}

/// The guest has the clock, soon, and all of a thousand readings are inside their bounds.
fn ensure_right(guest: &Guest, after: &str) -> Result<()> {
    ensure_clock(guest, after)?;
    let truth = truth::measure(guest.host(), Duration::from_secs(1), |probe| guest.expression(probe))?;
    ensure!(truth.is_inside(), "{after}, {}'s error is outside of its bound: {truth:?}", guest.name());
    Ok(())
}

/// Copies a file to the other host over the network between them, and removes it here.
fn copy(from: &Host, to: &Host, path: &str) -> Result<()> {
    let partial = format!("{path}.partial");
    // Renamed when it is complete: the sender knows only that the receiver's kernel has it.
    let receive = format!("socat -u TCP-LISTEN:7100,reuseaddr OPEN:{partial},creat,trunc && mv {partial} {path}");
    let receiver = Background::start("socat", &to.expression(&receive).stderr_capture())?;
    let address = to.run("ip -4 -o address show dev xenbr0 | sed 's/.* inet \\([0-9.]*\\).*/\\1/'")?;
    let send = format!("socat -u OPEN:{path},rdonly TCP:{}:7100,retry=100,interval=0.1 && rm {path}", address.trim());
    command::success(&send, &from.output(&send, MOVE_LIMIT)?)?;
    let output = wait::until("the copy", MOVE_LIMIT, || receiver.ended())?;
    command::success("socat", &output).map(drop)
}
