//! Everything that goes wrong around a clock, one fault after the other, while a process in a PV and one in a PVH guest
//! read the time as fast as they can: what each of their readings was worth.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::command;
use crate::guest::Guest;
use crate::host::{COMMAND_LIMIT, Host};
use crate::progress::{Step, say};
use crate::readings::{Reader, Verdict};
use crate::relay::{Answers, Relay};
use crate::report::Table;
use crate::{Lab, demo, payload, wait};

/// What saves guests and talks to the server must not starve because the guests are busy.
pub(crate) const DOM0_WEIGHT: &str = "xl sched-credit2 -d Domain-0 -w 2048";

/// How long a guest's clock may take to run free without a server, s: eight polls and at least 64 s, and what a busy machine adds.
const FREERUNNING_LIMIT: u64 = 90;

/// For a command in a Dom0 that is starved.
const STARVED_LIMIT: Duration = Duration::from_secs(600);

/// What goes wrong.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    /// For how long, s; and in a quick run.
    seconds: [u64; 2],
    begin: fn(&Scene) -> Result<()>,
    end: fn(&Scene) -> Result<()>,
}

macro_rules! answers {
    ($name:literal, $seconds:expr, $answers:expr) => {
        Fault {
            name: $name,
            seconds: $seconds,
            begin: |scene| scene.answers($answers),
            end: |scene| scene.answers_as_before(),
        }
    };
}

macro_rules! in_dom0 {
    ($name:literal, $seconds:expr, $begin:expr, $end:expr) => {
        Fault {
            name: $name,
            seconds: $seconds,
            begin: |scene| scene.host.run($begin).map(drop),
            end: |scene| scene.host.run($end).map(drop),
        }
    };
}

pub(crate) const FAULTS: &[Fault] = &[
    answers!("none", [60, 5], Answers::Right),
    Fault {
        name: "server stopped",
        seconds: [900, 10],
        begin: |scene| scene.answers(Answers::Lost),
        end: |scene| {
            scene.guests.iter().try_for_each(|guest| guest.await_state("freerunning", FREERUNNING_LIMIT))?;
            scene.answers_as_before()
        },
    },
    answers!("server ahead by 10 s", [60, 10], Answers::Shifted(10_000_000_000)),
    answers!("answers to nobody's request", [30, 4], Answers::WrongOrigin),
    answers!("stratum 16", [30, 4], Answers::Unsynchronized),
    answers!("garbage", [30, 4], Answers::Garbage),
    answers!("truncated answers", [30, 4], Answers::Truncated),
    answers!("oversized answers", [30, 4], Answers::Oversized),
    in_dom0!(
        "Dom0's system clock an hour ahead",
        [60, 5],
        "date -s @$(($(date +%s) + 3600))",
        "date -s @$(($(date +%s) - 3600))"
    ),
    in_dom0!(
        "Dom0's system clock 500 ppm fast",
        [120, 5],
        "busybox adjtimex -q -f 32768000",
        "busybox adjtimex -q -f 0"
    ),
    Fault {
        name: "Dom0 starved by busy guests",
        seconds: [60, 10],
        // Half of what each virtual CPU of a guest has: less than the daemon would use, and enough for the end to come.
        begin: |scene| scene.host.run("xl sched-credit2 -d Domain-0 -w 128").map(drop),
        end: |scene| {
            let shell = format!("nice -n -20 {DOM0_WEIGHT}");
            command::success(&shell, &scene.host.output(&shell, STARVED_LIMIT)?).map(drop)
        },
    },
    Fault {
        name: "virtual CPUs taken offline and back",
        seconds: [60, 5],
        begin: |scene| {
            let flap = "while [ -e /tmp/flap ]; do for on in 0 1; do \
                        echo $on > /sys/devices/system/cpu/cpu1/online && echo $on >> /tmp/flapped; sleep 0.2; done; done";
            scene.in_guests(&format!("touch /tmp/flap; setsid sh -c '{flap}' > /dev/null 2>&1 &"))
        },
        end: |scene| {
            scene.in_guests(
                "until grep -q 0 /tmp/flapped && grep -q 1 /tmp/flapped; do sleep 0.1; done; rm /tmp/flap /tmp/flapped; \
                 sleep 1; grep -q 1 /sys/devices/system/cpu/cpu1/online",
            )
        },
    },
    in_dom0!("guests paused", [60, 5], "xl pause pv; xl pause pvh", "xl unpause pv; xl unpause pvh"),
    in_dom0!("radclockd stopped (SIGSTOP)", [60, 8], "kill -STOP $(pidof radclockd)", "kill -CONT $(pidof radclockd)"),
    Fault {
        name: "radclockd killed",
        seconds: [60, 8],
        begin: |scene| scene.host.stop_radclockd("KILL"),
        end: |scene| scene.host.start_radclockd_with(&scene.configuration()),
    },
    Fault {
        name: "radclockd upgraded",
        seconds: [30, 5],
        begin: |scene| {
            scene.host.stop_radclockd("TERM")?;
            scene.host.start_radclockd_program(scene.other_radclockd, &scene.configuration())
        },
        end: |scene| {
            let version = payload::OTHER_VERSION;
            scene.host.run(&format!("radclock-ctl doctor | grep -q 'version {version}'")).map(drop)
        },
    },
    Fault {
        name: "kiss of death",
        seconds: [30, 4],
        begin: |scene| scene.answers(Answers::Kiss),
        // It is for an administrator to have the server asked again.
        end: |scene| {
            scene.answers_as_before()?;
            scene.restart()
        },
    },
    // The last one, since in a clock that young it leaves a bound in which smaller errors would go unseen.
    answers!("server behind by 50 ms", [600, 15], Answers::Shifted(-50_000_000)),
];

/// A host whose daemon asks its server through a relay, and two guests with two virtual CPUs each.
pub(crate) struct Scene<'host> {
    host: &'host Host,
    relay: Relay,
    /// Another version of the daemon, in Dom0.
    other_radclockd: &'static str,
    pub(crate) guests: Vec<Guest<'host>>,
}

impl<'host> Scene<'host> {
    /// Starts the daemon.
    pub(crate) fn begin(host: &'host Host) -> Result<Scene<'host>> {
        let other_radclockd = host.install_other_radclockd()?;
        host.run(DOM0_WEIGHT)?;
        let scene = Scene { host, relay: Relay::start(host.ntp_port())?, other_radclockd, guests: Vec::new() };
        host.start_radclockd_with(&scene.configuration())?;
        host.await_synchronized()?;
        Ok(scene)
    }

    /// Starts the guests.
    pub(crate) fn with_guests(mut self) -> Result<Scene<'host>> {
        for (name, kind) in demo::GUESTS {
            self.guests.push(self.host.create_with_cpus(name, kind, 2)?);
        }
        self.guests.iter().try_for_each(Guest::await_synchronized)?;
        Ok(self)
    }

    /// The daemon's.
    pub(crate) fn configuration(&self) -> String {
        let port = |port: u16| format!("port = {port}");
        self.host.configuration().replace(&port(self.host.ntp_port()), &port(self.relay.port()))
    }

    /// Stops the daemon, whichever version it is, and starts the usual one.
    pub(crate) fn restart(&self) -> Result<()> {
        self.host.stop_radclockd("TERM")?;
        self.host.start_radclockd_with(&self.configuration())
    }

    /// Starts a process in each guest that reads all the time.
    pub(crate) fn read(&self) -> Result<Vec<Reader>> {
        self.guests.iter().map(|guest| Reader::start(guest, &[self.host])).collect()
    }

    fn answers(&self, answers: Answers) -> Result<()> {
        self.relay.set(answers);
        Ok(())
    }

    /// Once there was one as it was to be.
    fn answers_as_before(&self) -> Result<()> {
        wait::until("the server to be asked", COMMAND_LIMIT, || Ok((self.relay.made() > 0).then_some(())))?;
        self.answers(Answers::Right)
    }

    fn in_guests(&self, shell: &str) -> Result<()> {
        self.guests.iter().try_for_each(|guest| guest.run(shell).map(drop))
    }

    /// For as long as it is to be, and until the clock is right again.
    pub(crate) fn suffer(&self, fault: &Fault, quick: bool) -> Result<()> {
        (fault.begin)(self)?;
        wait::pass(fault.duration(quick))?;
        (fault.end)(self)?;
        self.host.await_synchronized()?;
        self.guests.iter().try_for_each(Guest::await_synchronized)
    }
}

impl Fault {
    fn duration(&self, quick: bool) -> Duration {
        Duration::from_secs(self.seconds[usize::from(quick)])
    }
}

/// What was read in one guest while one fault lasted, and until the clock was as before.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// What went wrong, one after the other.
    pub fault: String,
    /// For how long, s.
    pub seconds: u64,
    /// The guest's kind.
    pub guest: &'static str,
    /// How many times the clock was read.
    pub readings: u64,
    /// Records of readings of which at least one was outside of its bound for certain.
    pub wrong: u64,
    /// Records for which the truth was not known well enough to tell.
    pub undecided: u64,
    /// How many times there was an error in place of a time.
    pub errors: u64,
    /// The largest error of readings that were judged one by one, ns.
    pub largest_error_ns: i64,
    /// The largest bound, ns.
    pub largest_bound_ns: u64,
    /// All that was found.
    #[serde(skip)]
    pub verdict: Verdict,
}

/// Lets all of it happen. So many faults `together` share a pair of readers, and an outcome each.
pub fn run(lab: &Lab, quick: bool, together: usize) -> Result<Vec<Outcome>> {
    let host = lab.boot()?;
    let scene = Scene::begin(&host)?.with_guests()?;
    let mut outcomes = Vec::new();
    // A log of all faults would take longer to fetch than a guest is waited for.
    for faults in FAULTS.chunks(together) {
        let readers = scene.read()?;
        for fault in faults {
            let step = Step::begin(format!("Fault: {} ({} s)", fault.name, fault.duration(quick).as_secs()));
            let suffered = scene.suffer(fault, quick);
            suffered.with_context(|| host.radclockd_log().unwrap_or_default()).with_context(|| fault.name)?;
            step.done();
        }
        let names = faults.iter().map(|fault| fault.name).collect::<Vec<_>>().join("; ");
        for (guest, reader) in scene.guests.iter().zip(readers) {
            let verdict = reader.stop(guest)?.judge(guest.kind())?;
            // A long run that fails has shown what it has.
            say!("{names}, {}: {verdict}", guest.name());
            outcomes.push(Outcome {
                fault: names.clone(),
                seconds: faults.iter().map(|fault| fault.duration(quick).as_secs()).sum(),
                guest: guest.kind().name(),
                readings: verdict.readings,
                wrong: verdict.wrong,
                undecided: verdict.undecided,
                errors: verdict.errors,
                largest_error_ns: verdict.largest_error,
                largest_bound_ns: verdict.bounds.1,
                verdict,
            });
        }
    }
    Ok(outcomes)
}

/// A row a fault and guest.
pub fn table(outcomes: &[Outcome]) -> Table {
    let header =
        ["fault", "seconds", "guest", "readings", "wrong", "undecided", "errors", "largest error", "largest bound"];
    let mut table = Table::new(header);
    for outcome in outcomes {
        let micros = |nanos: u64| format!("{:.0} µs", nanos as f64 / 1e3);
        let bound = if outcome.readings == 0 { "-".to_owned() } else { micros(outcome.largest_bound_ns) };
        table.row([
            outcome.fault.clone(),
            outcome.seconds.to_string(),
            outcome.guest.to_owned(),
            outcome.readings.to_string(),
            outcome.wrong.to_string(),
            outcome.undecided.to_string(),
            outcome.errors.to_string(),
            micros(outcome.largest_error_ns.unsigned_abs()),
            bound,
        ]);
    }
    table
}
