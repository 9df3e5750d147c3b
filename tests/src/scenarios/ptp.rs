//! A PTP hardware clock in Dom0 as the reference. It is a module of the lab's own (`tests/ptp`): neither Debian's kernel nor
//! QEMU has one. The kernel's PTP clocks, their device and system calls are the real ones.

use anyhow::{Result, ensure};

use super::daemon::max_error_ns;
use crate::demo::{self, Domain};
use crate::guest::Guest;
use crate::host::{COMMAND_LIMIT, Host};
use crate::payload::PTP_CLOCK;
use crate::progress::say;
use crate::timeline::Timeline;
use crate::{Lab, wait};

/// A mark of the build machine's time is the narrowest of so many brackets.
const BRACKETS: usize = 1000;
/// How far the clock is made to be off at most, ns: what is known of Dom0's TSC and of the build machine's rate.
const ACCURACY: u32 = 5000;

/// Instead of an NTP server, and beside it, its bound is what guests get, and it holds.
pub fn guests_have_the_time_of_a_ptp_hardware_clock(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    let mut timeline = Timeline::default();
    timeline.mark(BRACKETS);
    let guests = demo::synchronise(&host)?;
    let over_ntp = measure(&host, &guests)?;
    timeline.mark(BRACKETS);
    load(&host, &timeline, over_ntp[0].truth.counter_offset)?;

    let clock = format!("[[phc]]\ndevice = \"/dev/ptp0\"\ntimescale = \"utc\"\naccuracy = {ACCURACY}\n");
    for configuration in [format!("{clock}\n[guests]\noffer = \"all\"\n"), format!("{}\n{clock}", host.configuration())]
    {
        host.stop_radclockd("TERM")?;
        host.start_radclockd_with(&configuration)?;
        host.await_synchronized()?;
        guests.iter().try_for_each(Guest::await_synchronized)?;
        // Dom0's bound is as wide as Xen's system time is off its line by the TSC, which in emulation comes and goes.
        wait::until("a bound of Dom0's narrower than over NTP", COMMAND_LIMIT, || {
            let bound = host.run("radclock now --json").and_then(|said| max_error_ns(&said));
            Ok(bound.is_ok_and(|bound| bound < over_ntp[0].bound_ns).then_some(()))
        })?;
        for (ptp, ntp) in measure(&host, &guests)?.iter().zip(&over_ntp).skip(1) {
            ensure!(ptp.bound_ns < ntp.bound_ns, "{}: {} ns, and {} over NTP", ptp.name, ptp.bound_ns, ntp.bound_ns);
        }
        let servers = host.run("radclock-ctl servers")?;
        ensure!(servers.contains("/dev/ptp0"), "{servers}");
    }
    Ok(())
}

/// All domains, none of them wrong.
fn measure(host: &Host, guests: &[Guest]) -> Result<Vec<Domain>> {
    let domains = demo::measure(host, guests)?;
    say!("{}", domains.table());
    let faults = domains.faults();
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(domains.domains)
}

/// Loads the clock, with the build machine's time, for a Dom0 whose TSC is the build machine's plus `counter_offset`.
fn load(host: &Host, timeline: &Timeline, counter_offset: i64) -> Result<()> {
    let line = || {
        let tsc = timeline.last()?;
        Some((tsc, timeline.at(tsc)?.0, timeline.nanos_per_count()?))
    };
    let (tsc, nanos, rate) = line().expect("there are two marks");
    let tsc = tsc.wrapping_add_signed(counter_offset);
    let period = (rate * 2f64.powi(32)).round() as u64;
    host.run(&format!("busybox insmod /lab/{PTP_CLOCK} tsc={tsc} nanos={nanos} period={period} && test -c /dev/ptp0"))
        .map(drop)
}
