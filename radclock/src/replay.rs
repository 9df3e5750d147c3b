//! Replaying a trace: the lines of a stamp file in, what a reader of the clock would have got out. Text only; files
//! are the caller's business.

use crate::stamp::{Stamp, StampError};
use crate::sync::Synchroniser;
use crate::time::Span;

/// A line of a trace that cannot be replayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {error}")]
pub struct ReplayError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    #[source]
    pub error: StampError,
}

/// Runs the lines of a trace through `sync`, and yields a line a stamp.
///
/// A line is `counter utc max_error_s`: for the stamp's `Ta`, the time in decimal seconds and the bound on its error
/// that the parameters gave **before** this stamp was processed; or a comment while there is no clock yet. Stamps
/// that the algorithm does not accept are answered like any other.
pub fn replay<L>(lines: L, mut sync: Synchroniser) -> impl Iterator<Item = Result<String, ReplayError>>
where
    L: IntoIterator,
    L::Item: AsRef<str>,
{
    lines.into_iter().enumerate().filter_map(move |(index, line)| {
        let text = line.as_ref();
        let text = text.split_once('#').map_or(text, |(before, _)| before).trim();
        if text.is_empty() {
            return None;
        }
        Some(match text.parse() {
            Ok(stamp) => Ok(step(&mut sync, &stamp)),
            Err(error) => Err(ReplayError { line: index + 1, error }),
        })
    })
}

fn step(sync: &mut Synchroniser, stamp: &Stamp) -> String {
    let line = match sync.clock() {
        Some(clock) => {
            format!("{} {} {}", stamp.ta.0, clock.time_at(stamp.ta), seconds_up(clock.max_error_at(stamp.ta)))
        }
        None => format!("# {} not yet synchronised", stamp.ta.0),
    };
    sync.process(stamp);
    line
}

/// Decimal seconds with nine decimals, rounded up, for a bound.
fn seconds_up(span: Span) -> String {
    let nanos = span.ceil_nanos();
    format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}
