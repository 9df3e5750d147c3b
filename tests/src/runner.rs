//! Runs scenarios, several hosts at a time where the build machine has the room: an emulated host keeps one of its CPUs busy.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use crate::host::StoodStill;
use crate::progress::{recorded, say};
use crate::readings::WrongReadings;
use crate::scenarios::{Room, Scenario};
use crate::{Lab, wait};

/// How a scenario ended.
struct End {
    scenario: &'static Scenario,
    result: Result<()>,
    /// What it said, unless it has been shown already.
    said: String,
    took: Duration,
}

impl Room {
    /// How many of the hosts that may run at a time.
    fn of(self, hosts: usize) -> usize {
        match self {
            Room::Host => 1,
            Room::Pair => hosts.min(2),
            Room::Machine => hosts,
        }
    }
}

/// Runs them in their order, with at most so many hosts at a time. Scenarios that do not run by themselves are heard when they
/// are over.
pub fn run(lab: &Lab, scenarios: &[&'static Scenario], hosts: usize) -> Result<()> {
    if hosts > 1 {
        lab.build_the_rest()?;
    }
    let mut failed = 0;
    let (sender, ends) = mpsc::channel();
    thread::scope(|scope| {
        let mut free = hosts;
        let mut await_end = |free: &mut usize| {
            let end: End = ends.recv().expect("this thread has a sender, too");
            *free += end.scenario.room.of(hosts);
            let name = end.scenario.name;
            let seconds = end.took.as_secs();
            print!("{}", end.said);
            match end.result {
                Ok(()) => println!("scenario {name} ... ok ({seconds} s)"),
                Err(error) => {
                    wait::check()?;
                    failed += 1;
                    println!("scenario {name} ... FAILED ({seconds} s)\n{error:#}");
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        for scenario in scenarios {
            while free < scenario.room.of(hosts) {
                await_end(&mut free)?;
            }
            free -= scenario.room.of(hosts);
            println!("scenario {} ...", scenario.name);
            let sender = sender.clone();
            scope.spawn(move || {
                let end = run_one(lab, scenario, hosts > 1);
                sender.send(end).expect("the receiver outlives this thread");
            });
        }
        while free < hosts {
            await_end(&mut free)?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    println!("{} passed, {failed} failed", scenarios.len() - failed);
    if failed > 0 {
        bail!("a scenario failed");
    }
    Ok(())
}

fn run_one(lab: &Lab, scenario: &'static Scenario, record: bool) -> End {
    let begin = Instant::now();
    let attempt = || {
        catch_unwind(AssertUnwindSafe(|| attempt(scenario, lab)))
            .unwrap_or_else(|_| Err(anyhow!("it panicked; standard error says why")))
    };
    let (result, said) = if record { recorded(attempt) } else { (attempt(), String::new()) };
    End { scenario, result, said, took: begin.elapsed() }
}

/// Runs it; once more if it failed and an emulated machine stood still. No such thing excuses a wrong reading.
fn attempt(scenario: &Scenario, lab: &Lab) -> Result<()> {
    let attempt = || {
        let lab = lab.part()?;
        let result = (scenario.run)(&lab);
        let stood_still = result.as_ref().is_err_and(|error| error.is::<StoodStill>()) || lab.stood_still()?;
        Ok::<_, anyhow::Error>((result, stood_still))
    };
    match attempt()? {
        (Err(error), true) if !error.is::<WrongReadings>() => {
            wait::check()?;
            say!("{error:#}\nan emulated machine stood still; scenario {} once more ...", scenario.name);
            attempt()?.0
        }
        (result, _) => result,
    }
}
