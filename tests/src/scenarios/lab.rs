//! The lab's own instruments.

use std::time::Duration;

use anyhow::{Result, ensure};
use radclock::clock::{Clock, Period, Status};
use radclock::page::{Content, CounterId, Flags, Page};
use radclock::time::{Counter, Timestamp};
use zerocopy::IntoBytes;

use crate::progress::say;
use crate::{Lab, truth};

/// In emulation Dom0's TSC is the build machine's plus a constant, so the brackets can be checked: each of thousands of
/// readings must lie between the build machine's question and its answer.
pub fn readings_are_seen_between_a_question_and_its_answer(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    let clock = Clock {
        counter: Counter(0),
        time: Timestamp::from_unix(1, 0),
        period: Period::from_secs_f64(1e-9).expect("a period in range"),
        period_max_error: 0,
        max_error_nanos: 0,
    };
    let page = Page::new(&Content {
        counter_id: CounterId::X86_TSC,
        status: Status::Synchronized,
        clock: Some(clock),
        disruption_marker: 0,
        disruption: Flags::empty(),
        tai_offset: None,
        leap_indicator: 0,
        host_id: [1; 16],
        generation: 1,
        valid_nanos: u64::MAX,
    });
    host.run("mkdir -p /run/radclock")?;
    host.write("/run/radclock/vmclock0", page.as_bytes())?;
    let truth = truth::measure(&host, Duration::from_secs(2), |probe| Ok(host.expression(probe)))?;
    say!("{truth:?}");
    ensure!(truth.samples >= 1000, "only {} readings were seen", truth.samples);
    ensure!(truth.uncertainty_ns < 10_000.0, "the narrowest bracket is ± {} ns wide", truth.uncertainty_ns);
    ensure!(truth.constant_offset_room >= 0, "readings lie outside of their brackets: {truth:?}");
    Ok(())
}
