//! One clock for all domains, read by many, from Rust and from C.

use anyhow::{Result, ensure};

use crate::{Lab, demo};

/// A PV and a PVH guest have Dom0's clock, and its bounds hold.
pub fn guests_agree_with_dom0_and_true_errors_are_inside_their_bounds(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    let guests = demo::synchronise(&host)?;
    let domains = demo::measure(&host, &guests)?;
    eprintln!("{}", domains.table());
    let faults = domains.faults();
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}
