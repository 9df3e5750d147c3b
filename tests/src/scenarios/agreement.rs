//! One clock for all domains, read by many, from Rust and from C.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::guest::Kind;
use crate::progress::say;
use crate::{Lab, demo};

/// A PV and a PVH guest have Dom0's clock, and its bounds hold.
pub fn guests_agree_with_dom0_and_true_errors_are_inside_their_bounds(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    let guests = demo::synchronise(&host)?;
    let domains = demo::measure(&host, &guests)?;
    say!("{}", domains.table());
    let faults = domains.faults();
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Nobody disturbs anybody: readers only read.
pub fn ten_processes_in_a_guest_read_at_once(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    host.start_radclockd()?;
    let guest = host.create("pvh", Kind::Pvh)?;
    guest.await_synchronized()?;
    let start_ten = "for i in 0 1 2 3 4 5 6 7 8 9; do lab-probe read 5 & all=\"$all $!\"; done";
    let said = guest.run(&format!("{start_ten}; for one in $all; do wait $one || exit 1; done"))?;
    ensure!(said.lines().count() == 10, "not all of the ten have read to the end:\n{said}");
    Ok(())
}

/// The example that comes with the C library, as it is.
pub fn a_c_program_reads_the_clock_in_a_guest(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    host.start_radclockd()?;
    let guest = host.create("pv", Kind::Pv)?;
    guest.await_synchronized()?;
    let before = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let said = guest.run("c-example")?;
    let after = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let now = said.lines().find_map(|line| line.strip_prefix("now ")).with_context(|| said.clone())?;
    // "1795353937.265733838 +- 11524 ns synchronized"
    let [time, "+-", bound, "ns", "synchronized"] = now.split(' ').collect::<Vec<_>>()[..] else {
        anyhow::bail!("it says {now:?}")
    };
    let (time, bound): (f64, f64) = (time.parse()?, bound.parse::<f64>()? / 1e9);
    ensure!((before - bound..=after + bound).contains(&time), "it says {now:?}, but it was {before} to {after}");
    Ok(())
}
