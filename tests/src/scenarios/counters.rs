//! Our patches for Xen: they apply, and what they add works and cannot be used to hurt the hypervisor.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use lab_agent::counters::{Outcome, Sample};
use nix::errno::Errno;

use crate::cache::Cache;
use crate::guest::{Guest, Kind};
use crate::host::Host;
use crate::progress::say;
use crate::xen::NotServed;
use crate::{Lab, demo, xen};

/// How far a counter may go astray from Xen's system time, ns. System time itself is extrapolated with the TSC, whose
/// rate Xen finds anew each second, in emulation some 100 ppm wrong.
const ASTRAY: f64 = 1e6;
const STORM: u64 = 20_000;

/// Of a release that the lab does not boot, only if Debian's archive has the source at hand.
pub fn the_series_apply_to_debians_sources(_lab: &Lab) -> Result<()> {
    let cache = Cache::open()?;
    for (release, _) in xen::SUITES {
        match xen::check(&cache, release) {
            Err(error) if *release != xen::RELEASE && error.is::<NotServed>() => say!("not shown: {error}"),
            checked => checked?,
        }
    }
    Ok(())
}

pub fn dom0_samples_counters_on_the_patched_xen_and_nobody_crashes_it(lab: &Lab) -> Result<()> {
    let host = lab.boot_patched()?;
    let platform = samples(&host, 0)?;
    ensure!(platform[0].width == 64, "{:?}", platform[0]);
    agree(&platform)?;
    agree(&samples(&host, 1)?)?;
    agree(&samples(&host, 2)?)?;

    let mistakes: BTreeMap<String, Outcome> = serde_json::from_str(&host.run("lab-hypercalls mistakes")?)?;
    for (mistake, outcome) in &mistakes {
        let expected = match mistake.as_str() {
            "none" => None,
            "timer" | "flags" => Some(Errno::EINVAL),
            "version" => Some(Errno::EACCES),
            _ => Some(Errno::EFAULT),
        };
        ensure!(outcome.errno == expected.map_or(0, |errno| errno as i32), "{mistake} in Dom0: {outcome:?}");
        ensure!(outcome.changed == expected.is_none(), "{mistake} in Dom0: {outcome:?}");
    }
    let answers = storm(&host.run(&format!("lab-hypercalls storm {STORM} 1"))?)?;
    for errno in [0, Errno::EINVAL as i32, Errno::EFAULT as i32, Errno::EACCES as i32] {
        ensure!(answers.contains_key(&errno), "Dom0 never got {errno}: {answers:?}");
    }

    for (name, kind) in [("pv", Kind::Pv), ("pvh", Kind::Pvh)] {
        let guest = host.create(name, kind)?;
        guest.await_boot()?;
        refused(&guest)?;
    }

    // It is all there still, and nothing was disturbed.
    agree(&samples(&host, 0)?)
}

/// A PV and a PVH guest have Dom0's clock, and its bounds hold; on the patched Xen over each counter, and on Debian's
/// in spite of a counter that it has not got.
pub fn the_clock_is_right_whichever_counter_is_kept(lab: &Lab) -> Result<()> {
    over_each_counter(&lab.boot_patched()?)?;
    over_system_time_instead(&lab.boot()?)
}

fn configuration(host: &Host, counter: &str) -> String {
    format!("{}\n[clock]\ncounter = \"{counter}\"\n", host.configuration())
}

fn over_each_counter(host: &Host) -> Result<()> {
    let guests = demo::synchronise_with(host, &configuration(host, "platform"))?;
    right(host, &guests)?;
    host.stop_radclockd("TERM")?;
    host.start_radclockd_with(&configuration(host, "tsc"))?;
    host.await_synchronized()?;
    guests.iter().try_for_each(Guest::await_synchronized)?;
    right(host, &guests)?;
    let log = host.radclockd_log()?;
    ensure!(log.contains("counting by platform at") && log.contains("counting by tsc at"), "{log}");
    let counters = host.run("radclock-ctl counters --seconds 2")?;
    // How far Xen steps by its recalibrations, or that it did not just then.
    ensure!(counters.contains("platform (hpet)") && counters.contains("xen-clocksource: "), "{counters}");
    Ok(())
}

fn over_system_time_instead(host: &Host) -> Result<()> {
    host.start_radclockd_with(&configuration(host, "platform"))?;
    host.await_synchronized()?;
    right(host, &[])?;
    let log = host.radclockd_log()?;
    ensure!(log.lines().filter(|line| line.contains("hypervisor-patch/")).count() == 1, "{log}");
    ensure!(log.contains("counting by xen-system-time at"), "{log}");
    let counters = host.run("radclock-ctl counters --seconds 2")?;
    ensure!(counters.contains("hypervisor-patch/") && !counters.contains("platform"), "{counters}");
    Ok(())
}

fn right(host: &Host, guests: &[Guest]) -> Result<()> {
    let domains = demo::measure(host, guests)?;
    say!("{}", domains.table());
    let faults = domains.faults();
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

fn samples(host: &Host, timer: u32) -> Result<Vec<Sample>> {
    let lines = host.run(&format!("lab-hypercalls sample {timer} 20 200"))?;
    Ok(lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

/// All counters go forward, and the timer as fast as system time.
fn agree(samples: &[Sample]) -> Result<()> {
    let first = &samples[0];
    let modulus = 2f64.powi(first.width as i32);
    let per_nanosecond = first.frequency as f64 / 1e9;
    let span = |from: &Sample, to: &Sample| (to.system_time - from.system_time) as f64;
    for pair in samples.windows(2) {
        let [before, after] = pair else { unreachable!("two") };
        ensure!(before.tsc < before.tsc_end && before.tsc_end < after.tsc, "the TSC: {pair:?}");
        ensure!(before.system_time < after.system_time, "system time: {pair:?}");
        let bracket = (after.tsc_end - after.tsc) as f64 / (after.tsc - before.tsc) as f64 * span(before, after);
        let bracket_of_first = (first.tsc_end - first.tsc) as f64 / (after.tsc - first.tsc) as f64 * span(first, after);
        let counted = after.count.wrapping_sub(first.count) as i64 as f64;
        let expected = span(first, after) * per_nanosecond;
        // Wraps of the counter leave no trace in it.
        let astray = (counted - expected) - ((counted - expected) / modulus).round() * modulus;
        let astray = astray / per_nanosecond;
        ensure!(
            astray.abs() < ASTRAY + bracket + bracket_of_first,
            "{} is {astray:.0} ns astray: {pair:?}",
            first.name
        );
    }
    Ok(())
}

/// A guest gets nothing, whatever it tries.
fn refused(guest: &Guest) -> Result<()> {
    guest.run("insmod /lib/xen-privcmd.ko unrestricted=1")?;
    let mistakes: BTreeMap<String, Outcome> = serde_json::from_str(&guest.run("lab-hypercalls mistakes")?)?;
    ensure!(mistakes["none"].errno == Errno::EPERM as i32, "{mistakes:?}");
    ensure!(mistakes.values().all(|outcome| !outcome.changed && outcome.errno != 0), "{mistakes:?}");
    let answers = storm(&guest.run(&format!("lab-hypercalls storm {STORM} 2"))?)?;
    ensure!(!answers.contains_key(&0) && answers.contains_key(&(Errno::EPERM as i32)), "{answers:?}");
    Ok(())
}

fn storm(answers: &str) -> Result<BTreeMap<i32, u64>> {
    Ok(serde_json::from_str(answers)?)
}
