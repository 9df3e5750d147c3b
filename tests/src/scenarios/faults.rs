//! What goes wrong around a clock, for seconds each; `ci/experiment faults` is the same for longer.

use anyhow::{Context, Result, ensure};

use crate::progress::say;
use crate::readings::ensure_decided;
use crate::{Lab, faults};

/// So many faults share a pair of readers, since it takes longer to fetch and judge what those noted down than most faults last.
const TOGETHER: usize = 6;

/// Servers that lie, fall silent or talk nonsense; Dom0's own clock; too little CPU; daemons that die, stand still or are
/// upgraded; pauses: none of a PV and a PVH guest's readings is outside of its bound.
pub fn no_reading_is_wrong_whatever_goes_wrong_around_the_clock(lab: &Lab) -> Result<()> {
    let outcomes = faults::run(lab, true, TOGETHER)?;
    say!("{}", faults::table(&outcomes).markdown());
    let undecided = outcomes.iter().map(|outcome| outcome.undecided).sum();
    ensure_decided(undecided, outcomes.iter().map(|outcome| outcome.verdict.records).sum())?;
    for outcome in outcomes {
        let about = || format!("{}, {}", outcome.fault, outcome.guest);
        outcome.verdict.ensure_none_wrong().with_context(about)?;
        ensure!(outcome.readings > 0, "{}: the clock was never read", about());
    }
    Ok(())
}
