//! Hours of everything: guests come, go, reboot, are saved, restored, attached and detached; servers fail and daemons die, at
//! random from a seed. At the end: what was wrong, what crashed, and what is left behind.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::Lab;
use crate::faults::{FAULTS, Scene};
use crate::guest::{Guest, Kind};
use crate::host::Host;
use crate::progress::Step;
use crate::readings::{Verdict, ensure_decided};
use crate::scenarios::footprint::{Footprint, await_forgotten, ensure_no_complaint, ensure_no_complaint_in};

/// After so many events the readings are judged, and reading begins anew.
const EVENTS: usize = 8;
/// Guests that come and go, besides the two that stay.
const VISITORS: usize = 3;
/// One more than the guests need: while a page is exchanged, its guest has two.
const PAGES: usize = VISITORS + 2 + 3;

/// What the daemon may hold for the guests that are there and by its allocator more than for none, however long it has run: memory, KiB…
const HELD_KIB: u64 = 1024;
/// …and open files, some for each page and the sockets of the poll that is under way.
const HELD_FILES: usize = 4 * PAGES;

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Fault(usize),
    Create,
    Destroy,
    Reboot,
    SaveAndRestore,
    Attach,
    Restart,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Event::Fault(number) => FAULTS[*number].name,
            Event::Create => "a guest comes",
            Event::Destroy => "a guest goes",
            Event::Reboot => "a guest is rebooted",
            Event::SaveAndRestore => "a guest that is read is saved and restored",
            Event::Attach => "a guest is detached and attached",
            Event::Restart => "radclockd is restarted",
        })
    }
}

/// What was found, all in all.
#[derive(Debug, Default)]
struct Tally {
    events: BTreeMap<Event, usize>,
    readings: u64,
    wide: u64,
    errors: u64,
    records: u64,
    wrong: u64,
    undecided: u64,
    /// What a daemon held in the end, at most: memory, KiB, and open files.
    held: (u64, usize),
    faults: Vec<String>,
}

/// Runs it for so long, and a little longer. The same seed makes the same events.
pub fn run(lab: &Lab, duration: Duration, seed: u64) -> Result<()> {
    let host = lab.boot()?;
    let mut random = fastrand::Rng::with_seed(seed);
    let scene = Scene::begin(&host)?;
    let before = Footprint::after_a_first_guest(&host)?;
    host.run(&format!("echo {PAGES} > /sys/module/xen_gntalloc/parameters/limit"))?;
    let mut scene = scene.with_guests()?;
    let mut soak = Soak { host: &host, visitors: Vec::new(), visits: 0, tally: Tally::default() };
    let start = Instant::now();
    let result = soak.last(&mut scene, start, duration, &mut random);
    let Soak { visitors, tally, .. } = soak;
    println!("seed {seed}, {} min: {tally}", start.elapsed().as_secs() / 60);
    if tally.wrong > 0 {
        println!("wrong readings:\n{}", tally.faults.join("\n"));
    }
    result?;
    for guest in scene.guests.into_iter().chain(visitors.into_iter().map(|visitor| visitor.guest)) {
        ensure_no_complaint_in(&guest)?;
        guest.destroy()?;
    }
    await_forgotten(&host)?;
    ensure_no_complaint(&host)?;
    before.await_again(&host).context("something is left behind")?;
    println!("nobody complained, and nothing is left behind.\nbefore: {before}\nafter: {}", Footprint::of(&host)?);
    let (memory, files) = tally.held;
    ensure!(memory <= before.memory + HELD_KIB, "the daemon grew to {memory} KiB: it began with {}", before.memory);
    ensure!(
        files <= before.files + HELD_FILES,
        "the daemon came to {files} open files: it began with {}",
        before.files
    );
    ensure_decided(tally.undecided, tally.records)?;
    ensure!(tally.wrong == 0, "{} records of readings were wrong", tally.wrong);
    Ok(())
}

/// A guest that comes and goes.
struct Visitor<'host> {
    guest: Guest<'host>,
    /// It has booted: it can be asked for its kernel's complaints.
    is_up: bool,
}

impl Visitor<'_> {
    fn ensure_no_complaint(&self) -> Result<()> {
        if self.is_up { ensure_no_complaint_in(&self.guest) } else { Ok(()) }
    }
}

struct Soak<'host> {
    host: &'host Host,
    visitors: Vec<Visitor<'host>>,
    visits: usize,
    tally: Tally,
}

impl<'host> Soak<'host> {
    fn last(
        &mut self,
        scene: &mut Scene<'host>,
        start: Instant,
        duration: Duration,
        random: &mut fastrand::Rng,
    ) -> Result<()> {
        while start.elapsed() < duration {
            let readers = scene.read()?;
            for _ in 0..EVENTS {
                let event = self.choose(random);
                let (minutes, all) = (start.elapsed().as_secs() / 60, duration.as_secs() / 60);
                let step = Step::begin(format!("{minutes} of {all} min: {event}"));
                let log = || self.host.radclockd_log().unwrap_or_default();
                let happened = self.happen(event, scene, random);
                happened.with_context(log).with_context(|| event.to_string())?;
                *self.tally.events.entry(event).or_default() += 1;
                step.done();
            }
            for (guest, reader) in scene.guests.iter().zip(readers) {
                self.tally.add(reader.stop(guest)?.judge(guest.kind())?);
            }
        }
        Ok(())
    }

    /// One that is possible now.
    fn choose(&self, random: &mut fastrand::Rng) -> Event {
        loop {
            let event = match random.usize(..10) {
                0..4 => Event::Fault(random.usize(..FAULTS.len())),
                4 => Event::Create,
                5 => Event::Destroy,
                6 => Event::Reboot,
                7 => Event::SaveAndRestore,
                8 => Event::Attach,
                _ => Event::Restart,
            };
            let possible = match event {
                Event::Create => self.visitors.len() < VISITORS,
                Event::Destroy | Event::Reboot | Event::Attach => !self.visitors.is_empty(),
                _ => true,
            };
            if possible {
                return event;
            }
        }
    }

    fn happen(&mut self, event: Event, scene: &mut Scene<'host>, random: &mut fastrand::Rng) -> Result<()> {
        let visitor = random.usize(..VISITORS) % self.visitors.len().max(1);
        match event {
            Event::Fault(number) => scene.suffer(&FAULTS[number], true)?,
            Event::Create => {
                self.visits += 1;
                let kind = if random.bool() { Kind::Pv } else { Kind::Pvh };
                let guest = self.host.create(&format!("visitor{}", self.visits), kind)?;
                // Sometimes it goes before it has booted.
                let is_up = random.u8(..4) > 0;
                if is_up {
                    guest.await_synchronized()?;
                }
                self.visitors.push(Visitor { guest, is_up });
            }
            Event::Destroy => {
                let visitor = self.visitors.swap_remove(visitor);
                visitor.ensure_no_complaint()?;
                visitor.guest.destroy()?;
            }
            Event::Reboot => {
                let visitor = &mut self.visitors[visitor];
                visitor.guest.await_boot()?;
                visitor.is_up = true;
                visitor.ensure_no_complaint()?;
                visitor.guest.reboot()?;
                visitor.guest.await_synchronized()?;
            }
            Event::SaveAndRestore => {
                let guest = random.choice(&mut scene.guests).context("no guest")?;
                let image = format!("/tmp/{}.saved", guest.name());
                guest.save(&image)?;
                guest.restore(self.host, &image)?;
                guest.await_synchronized()?;
            }
            Event::Attach => {
                let Visitor { guest, is_up } = &mut self.visitors[visitor];
                guest.await_boot()?;
                *is_up = true;
                self.host.run(&format!("radclock-ctl detach {0} && radclock-ctl attach {0}", guest.name()))?;
                guest.await_synchronized()?;
            }
            Event::Restart => {
                let Footprint { memory, files, .. } = Footprint::of(self.host)?;
                let held = &mut self.tally.held;
                *held = (held.0.max(memory), held.1.max(files));
                scene.restart()?;
                self.host.await_synchronized()?;
                scene.guests.iter().try_for_each(Guest::await_synchronized)?;
            }
        }
        Ok(())
    }
}

impl Tally {
    fn add(&mut self, verdict: Verdict) {
        self.readings += verdict.readings;
        self.wide += verdict.wide;
        self.errors += verdict.errors;
        self.records += verdict.records;
        self.wrong += verdict.wrong + verdict.revenants + verdict.backwards;
        self.undecided += verdict.undecided;
        self.faults.extend(verdict.faults);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Tally { events, readings, wide, errors, records, wrong, undecided, held, .. } = self;
        writeln!(f, "{readings} readings ({wide} with a bound above 10 ms), {errors} errors in place of one")?;
        writeln!(f, "{records} records of readings, {wrong} of them wrong, {undecided} undecided")?;
        writeln!(f, "the daemon held at most {} KiB and {} files when it was restarted", held.0, held.1)?;
        events.iter().try_for_each(|(event, times)| writeln!(f, "{times:>6} × {event}"))
    }
}
