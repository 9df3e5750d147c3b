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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::SyncParams;

    fn run(text: &str) -> Vec<Result<String, ReplayError>> {
        replay(text.lines(), Synchroniser::new(SyncParams::default()).unwrap()).collect()
    }

    #[test]
    fn every_stamp_is_answered_with_what_stood_before_it() {
        let text = include_str!("../tests/data/lan-1s.stamps");
        let stamps: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let out: Vec<String> = run(text).into_iter().map(Result::unwrap).collect();
        assert_eq!(out.len(), stamps.len());
        for (index, (line, stamp)) in out.iter().zip(&stamps).enumerate() {
            let ta = stamp.split(' ').next().unwrap();
            if index < 3 {
                assert_eq!(*line, format!("# {ta} not yet synchronised"));
                continue;
            }
            let columns: Vec<&str> = line.split(' ').collect();
            assert_eq!((columns.len(), columns[0]), (3, ta));
            // The truth is the fifth column, in the same decimal seconds.
            let truth: Stamp = format!("0 {} {} 1", stamp.split(' ').nth(4).unwrap(), columns[1]).parse().unwrap();
            let bound: f64 = columns[2].parse().unwrap();
            assert!(truth.te.since(truth.tb).as_secs_f64().abs() <= bound, "{line}");
            assert!(bound < 2e-3, "{line}");
        }
    }

    #[test]
    fn comments_and_empty_lines_are_passed_over() {
        assert_eq!(run("# a trace\n\n  \t\n1 5.0 5.1 1000000000 # the first\n").len(), 1);
    }

    #[test]
    fn a_wrong_line_is_named_by_its_number() {
        let out = run("# a trace\n1 5.0 5.1 1000000000\n\n2 6.0 x 2000000000\n");
        assert!(out[0].is_ok());
        assert!(out[1].as_ref().unwrap_err().to_string().starts_with("line 4: Te is `x`: a time is"));
    }

    #[test]
    fn bounds_are_rounded_up() {
        assert_eq!(seconds_up(Span::from_frac(1)), "0.000000001");
        assert_eq!(seconds_up(Span::from_nanos(1_250_000_000)), "1.250000000");
    }
}
