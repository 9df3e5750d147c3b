//! Replaying a trace: the lines of a stamp file in, what a reader of the clock would have got out. Text only; files
//! are the caller's business.

use crate::clock::{Clock, Status};
use crate::ensemble::Ensemble;
use crate::stamp::{Stamp, StampError};
use crate::sync::Synchroniser;
use crate::time::{Counter, Span};

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
    stamps(lines).map(move |stamp| {
        let stamp = stamp?;
        let line = answer(sync.clock_at(stamp.ta), stamp.ta);
        sync.process(&stamp);
        Ok(line)
    })
}

/// Runs several traces, each of a server of its own, through their `ensemble` in the order of the counter at which the
/// replies arrived, and yields a line a stamp as [`replay`] does. All traces are of the same counter.
///
/// # Panics
///
/// If there are not as many traces as the ensemble has servers.
pub fn replay_several(traces: &[Vec<Stamp>], mut ensemble: Ensemble) -> impl Iterator<Item = String> {
    let mut merged: Vec<(usize, Stamp)> = traces
        .iter()
        .enumerate()
        .flat_map(|(server, stamps)| stamps.iter().map(move |stamp| (server, *stamp)))
        .collect();
    // Against one of them, so that the counter may wrap around.
    let first = merged.first().map_or(Counter(0), |(_, stamp)| stamp.tf);
    merged.sort_by_key(|(_, stamp)| stamp.tf.since(first));
    merged.into_iter().map(move |(server, stamp)| {
        if ensemble.status(stamp.ta) == Status::Freerunning {
            ensemble.update(stamp.ta);
        }
        let line = answer(ensemble.clock(), stamp.ta);
        ensemble.process(server, &stamp);
        line
    })
}

/// The stamps of a trace, without its comments.
pub fn stamps<L>(lines: L) -> impl Iterator<Item = Result<Stamp, ReplayError>>
where
    L: IntoIterator,
    L::Item: AsRef<str>,
{
    lines.into_iter().enumerate().filter_map(|(index, line)| {
        let text = line.as_ref();
        let text = text.split_once('#').map_or(text, |(before, _)| before).trim();
        (!text.is_empty()).then(|| text.parse().map_err(|error| ReplayError { line: index + 1, error }))
    })
}

fn answer(clock: Option<Clock>, ta: Counter) -> String {
    match clock {
        Some(clock) => format!("{} {} {}", ta.0, clock.time_at(ta), seconds_up(clock.max_error_at(ta))),
        None => format!("# {} not yet synchronised", ta.0),
    }
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
    fn several_traces_are_merged_and_a_liar_among_them_is_not_followed() {
        let text = include_str!("../tests/data/lan-1s.stamps");
        let honest: Vec<Stamp> = stamps(text.lines()).map(Result::unwrap).collect();
        // The same exchanges a little later each.
        let later = |counts: i64, lie: Span| {
            let shifted = |stamp: &Stamp| {
                let by = Span::from_nanos(counts) + lie;
                let (tb, te) = (stamp.tb.saturating_add(by), stamp.te.saturating_add(by));
                Stamp { ta: stamp.ta.offset(counts), tb, te, tf: stamp.tf.offset(counts), ..*stamp }
            };
            honest.iter().map(shifted).collect::<Vec<_>>()
        };
        let traces = [honest.clone(), later(1_000_000, Span::from_secs(3)), later(2_000_000, Span::ZERO)];
        let ensemble = Ensemble::new(&SyncParams::default(), 3).unwrap();
        let out: Vec<String> = replay_several(&traces, ensemble).collect();
        assert_eq!(out.len(), 3 * honest.len());
        let alone = run(text);
        // A line's time as the server times of a stamp, for their difference.
        let time = |line: &str| line.split(' ').nth(1).unwrap().to_owned();
        let (together, alone) = (time(&out[out.len() - 3]), time(alone.last().unwrap().as_ref().unwrap()));
        let both: Stamp = format!("0 {together} {alone} 1").parse().unwrap();
        assert!(both.te.since(both.tb).as_secs_f64().abs() < 1e-4, "{both}");
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
