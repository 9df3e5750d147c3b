//! How far a guest's clock is from Dom0's at one and the same value of Xen's system time.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab_agent::{Pair, Recorded};
use radclock::page::Page;
use radclock::time::{Counter, Span};
use zerocopy::IntoBytes;

use crate::command::{self, Background};
use crate::guest::Guest;
use crate::host::{COMMAND_LIMIT, Host};

const PAIRS: usize = 20;

/// The guest's time less Dom0's, ns, where they differ most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Divergence {
    /// Of all pairs.
    pub largest_ns: f64,
    /// Of those where the guest's bound is not wider than Dom0's by that much: the driver did not know.
    pub largest_unknown_ns: f64,
}

/// How far they differ at all.
///
/// The guest says what its page makes of a TSC value, and Xen's system time at that value; the page that Dom0 granted
/// says what that is in UTC. Both pages are of the same generation.
pub fn measure(host: &Host, guest: &Guest) -> Result<Divergence> {
    let recorder = host.expression("lab-probe wire 10000").stdout_capture().stderr_capture();
    let recorder = Background::start("ssh", &recorder)?;
    let pairs = guest.output(&format!("lab-probe pairs {PAIRS}"), COMMAND_LIMIT)?;
    let pairs = command::success("lab-probe pairs", &pairs)?;
    let recorded = crate::wait::until("the record of pages", Duration::from_secs(60), || recorder.ended())?;
    let recorded = command::success("lab-probe wire", &recorded)?;
    let mut wire = BTreeMap::new();
    for line in recorded.lines() {
        let page = page(&serde_json::from_str::<Recorded>(line)?.page)?;
        wire.insert(page.ext.generation.get(), page);
    }
    let mut divergence = None::<Divergence>;
    for line in pairs.lines() {
        let pair: Pair = serde_json::from_str(line)?;
        let guest_page = page(&pair.page)?;
        let Some(wire_page) = wire.get(&guest_page.ext.generation.get()) else { continue };
        ensure!(guest_page.ext.host_id == wire_page.ext.host_id, "the guest's page is another host's");
        let out_of_range = "a page's parameters are out of range";
        let (in_guest, bound) = guest_page.abi.clock()?.reading_at(Counter(pair.tsc)).context(out_of_range)?;
        let (in_dom0, bound_in_dom0) =
            wire_page.abi.clock()?.reading_at(Counter(pair.system_time)).context(out_of_range)?;
        let nanos = |span: Span| span.as_secs_f64() * 1e9;
        let difference = nanos(in_guest.since(in_dom0));
        let divergence = divergence.get_or_insert_default();
        let raise = |largest: &mut f64| {
            if difference.abs() > largest.abs() {
                *largest = difference;
            }
        };
        raise(&mut divergence.largest_ns);
        if difference.abs() > nanos(bound - bound_in_dom0) {
            raise(&mut divergence.largest_unknown_ns);
        }
    }
    divergence.context("no page of the guest's was seen in Dom0")
}

/// A page as [`Recorded`] has it.
pub(crate) fn page(hex: &str) -> Result<Page> {
    let bytes = hex.as_bytes().chunks(2).map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?));
    let bytes = bytes.collect::<Result<Vec<u8>>>()?;
    let mut page = Page::zeroed();
    let (used, _) = page.as_mut_bytes().split_at_mut_checked(bytes.len()).context("too long for a page")?;
    used.copy_from_slice(&bytes);
    Ok(page)
}
